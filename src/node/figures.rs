//! Figures that are looked up when somebody asks for `/metrics`, rather than counted: the state of
//! the partitions, the quorum, the queues.

use std::fmt::Write;

use quorate_broker::{Broker, HostedPartition};
use quorate_metadata::{BrokerState, MetadataImage};
use quorate_quorum::QuorumHandle;
use quorate_types::NodeId;

/// Above so many partitions led here, only their sum is given: a line each would be too many.
const ONE_BY_ONE: usize = 2_000;

/// Looks figures up.
pub(crate) struct Figures {
    me: NodeId,
    broker: Broker,
    quorum: QuorumHandle,
}

/// Metrics in the text format of Prometheus.
#[derive(Default)]
struct Text(String);

impl Text {
    /// Begins a gauge.
    fn gauge(&mut self, name: &str, help: &str) {
        self.head(name, "gauge", help);
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to memory does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn value(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let labels = if labels.is_empty() {
            String::new()
        } else {
            format!("{{{labels}}}")
        };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    fn single(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.gauge(name, help);
        self.value(name, "", value);
    }
}

impl Figures {
    pub(crate) fn new(me: NodeId, broker: Broker, quorum: QuorumHandle) -> Self {
        Self { me, broker, quorum }
    }

    /// The figures as of now.
    pub(crate) fn render(&self) -> String {
        let mut text = Text::default();
        let image = self.quorum.image();
        text.gauge("quorate_build_info", "The version that runs");
        let version = concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"");
        text.value("quorate_build_info", version, 1);
        let ready = u8::from(self.broker.ready().is_ok());
        text.single(
            "quorate_ready",
            "Whether the node takes part in the cluster",
            ready,
        );
        self.partitions(&mut text, &image);
        self.raft(&mut text, &image);
        self.queues(&mut text);
        text.0
    }

    fn partitions(&self, text: &mut Text, image: &MetadataImage) {
        let hosted = self.broker.hosted();
        let led: Vec<&HostedPartition> = hosted.iter().filter(|p| p.leading).collect();
        text.single("quorate_partitions", "Replicas on this node", hosted.len());
        text.single(
            "quorate_partitions_led",
            "Partitions that this node leads",
            led.len(),
        );
        let registered = |partition: &&&HostedPartition| image.partition(&partition.id);
        let under = led.iter().filter(|partition| {
            registered(partition).is_some_and(|r| r.isr.len() < r.replicas.len())
        });
        text.single(
            "quorate_partitions_under_replicated",
            "Partitions led here with a replica out of sync",
            under.count(),
        );
        let below = led.iter().filter(|partition| {
            let topic = image.topic(partition.id.topic_id);
            let settings = topic.map(|topic| &topic.settings);
            registered(partition)
                .zip(settings)
                .is_some_and(|(r, settings)| r.isr.len() < r.effective_min_isr(settings))
        });
        text.single(
            "quorate_partitions_under_min_isr",
            "Partitions led here that take no acks=all",
            below.count(),
        );
        let offline = image.partitions().values().filter(|r| r.leader.is_none());
        text.single(
            "quorate_partitions_offline",
            "Partitions of the cluster without a leader, as this node knows",
            offline.count(),
        );
        let unclean = image.partitions().values();
        let unclean = unclean.filter(|registration| registration.unclean_epoch.is_some());
        text.single(
            "quorate_partitions_unclean",
            "Partitions of the cluster that ever had an unclean election, as this node knows",
            unclean.count(),
        );
        let losses = image
            .partitions()
            .values()
            .flat_map(|registration| &registration.losses);
        let lost = losses.map(|loss| {
            let to = loss.to.unwrap_or(loss.from);
            to.get().saturating_sub(loss.from.get())
        });
        text.single(
            "quorate_offsets_lost",
            "Offsets whose records unclean elections have lost, by what replicas have told",
            lost.fold(0, u64::saturating_add),
        );
        let lag = |partition: &HostedPartition| {
            partition.log_end.get() - partition.high_watermark.get().min(partition.log_end.get())
        };
        text.single(
            "quorate_high_watermark_lag_records",
            "Records of the partitions led here that are not committed yet",
            led.iter().map(|partition| lag(partition)).sum::<u64>(),
        );
        if led.len() > ONE_BY_ONE {
            return;
        }
        let label = |partition: &HostedPartition| {
            let topic = image.topic(partition.id.topic_id)?;
            let number = partition.id.partition;
            Some(format!("topic=\"{}\",partition=\"{number}\"", topic.name))
        };
        let mut each = |name: &str, help: &str, value: &dyn Fn(&HostedPartition) -> u64| {
            text.gauge(name, help);
            for partition in &led {
                if let Some(label) = label(partition) {
                    text.value(name, &label, value(partition));
                }
            }
        };
        each(
            "quorate_partition_high_watermark",
            "Offset below which records are committed",
            &|partition| partition.high_watermark.get(),
        );
        each(
            "quorate_partition_log_end_offset",
            "Offset that the next record gets",
            &|partition| partition.log_end.get(),
        );
        each(
            "quorate_partition_log_start_offset",
            "First offset held",
            &|partition| partition.log_start.get(),
        );
        each(
            "quorate_partition_in_sync_replicas",
            "Replicas in the ISR",
            &|partition| {
                let registered = image.partition(&partition.id);
                registered.map_or(0, |r| r.isr.len() as u64)
            },
        );
    }

    fn raft(&self, text: &mut Text, image: &MetadataImage) {
        let quorum = self.quorum.describe();
        text.single("quorate_raft_term", "Raft term", quorum.term);
        let leads = quorum.leader.is_some_and(|leader| leader.node == self.me);
        text.single(
            "quorate_controller_active",
            "Whether this node is the active controller",
            u8::from(leads),
        );
        let known = u8::from(quorum.leader.is_some());
        text.single(
            "quorate_raft_leader_known",
            "Whether this node knows a leader of the metadata quorum",
            known,
        );
        let index = |index: Option<quorate_types::RaftIndex>| index.unwrap_or_default();
        text.single(
            "quorate_raft_last_log_index",
            "Last entry in the metadata log here",
            index(quorum.last_log),
        );
        text.single(
            "quorate_raft_applied_index",
            "Last entry of the metadata log that this node has applied",
            image.applied().index,
        );
        text.single(
            "quorate_raft_snapshot_index",
            "Last entry in the newest metadata snapshot",
            index(quorum.snapshot),
        );
        text.single("quorate_topics", "Topics", image.topics().len());
        text.gauge("quorate_brokers", "Brokers of the cluster, by state");
        for (state, name) in [
            (BrokerState::Active, "active"),
            (BrokerState::Fenced, "fenced"),
            (BrokerState::ShuttingDown, "shutting-down"),
        ] {
            let brokers = image.brokers().values();
            let count = brokers.filter(|broker| broker.state == state).count();
            text.value("quorate_brokers", &format!("state=\"{name}\""), count);
        }
    }

    fn queues(&self, text: &mut Text) {
        let queues = self.broker.queues();
        text.gauge("quorate_queue_used", "What waits in a bounded queue");
        for queue in &queues {
            let label = format!("queue=\"{}\"", queue.name);
            text.value("quorate_queue_used", &label, queue.used);
        }
        text.gauge("quorate_queue_limit", "What may wait in a bounded queue");
        for queue in &queues {
            let label = format!("queue=\"{}\"", queue.name);
            text.value("quorate_queue_limit", &label, queue.limit);
        }
    }
}
