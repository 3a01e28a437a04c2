//! The load of `bench failover`: steady open-loop writes to all partitions, the gaps in their
//! acknowledgements around changes of leaders, and afterwards a check that the log holds what was
//! acknowledged.
//!
//! A gap is the longest time without an acknowledgement in any one partition: what the least lucky
//! client feels.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use quorate_client::Client;
use quorate_types::NodeId;
use tokio::time::{Instant, interval, sleep};

use crate::history::check;
use crate::monitor::Monitor;
use crate::reader::read_from;
use crate::report::{FailoverReport, Gap, LoadFailed, Report, millis};
use crate::writer::{LeaderChange, Writer, WriterOptions};

/// Nothing is waited for longer.
const DEADLINE: Duration = Duration::from_secs(60);
/// After so long without a gap a failover is over.
const OVER: Duration = Duration::from_millis(1_500);
/// Records are sent about so often, several at a time where the rate is high.
const TICK: f64 = 0.002;
const KEYS_A_PARTITION: u64 = 20;
/// Violations that are told in words.
const TOLD: usize = 10;

/// How steady writes are made.
#[derive(Debug, Clone)]
pub struct FailoverOptions {
    /// To which topic, which must exist; nobody else may write to it.
    pub topic: String,
    /// Records a second, above 0.
    pub rate: f64,
    /// Latencies and gaps of so long at first do not count.
    pub warm_up: Duration,
    /// The measured part ends after so long, also where not all kills are done.
    pub duration: Duration,
}

/// Which nodes are killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KillPlan {
    /// How many kills.
    pub kills: u32,
    /// Whether the node of the active controller has its turns too.
    pub controller: bool,
}

/// Whoever can kill nodes and start them again.
pub trait Nodes: Send {
    /// Kills a node with SIGKILL.
    fn kill(&mut self, node: NodeId) -> impl Future<Output = io::Result<()>> + Send;

    /// Starts it again.
    fn start(&mut self, node: NodeId) -> impl Future<Output = io::Result<()>> + Send;
}

/// Writes, and kills nodes by turns, each when all replicas are in sync again.
///
/// # Errors
/// [`LoadFailed`] where the cluster does not recover in time, or nothing could be checked.
pub async fn failover(
    client: &Client,
    options: &FailoverOptions,
    plan: KillPlan,
    nodes: &mut impl Nodes,
    monitor: &Arc<Monitor>,
) -> Result<Report, LoadFailed> {
    let run = Run::begin(client, options, monitor).await?;
    let mut gaps = Vec::new();
    let mut before = None;
    for _ in 0..plan.kills {
        if monitor.stop.is_cancelled() || run.measured.elapsed() >= options.duration {
            break;
        }
        run.in_sync().await?;
        run.acknowledged_after(Instant::now()).await?;
        let (node, controller) = run.next_node(plan, before).await?;
        before = Some(node);
        let at = Instant::now();
        let failed = |what| move |source| LoadFailed::Node { node, what, source };
        nodes.kill(node).await.map_err(failed("killed"))?;
        let went_on = tokio::select! {
            went_on = run.acknowledged_after(at + OVER) => Some(went_on),
            () = monitor.stop.cancelled() => None,
        };
        let gap = run.writer.gaps(at).into_values().max().unwrap_or_default();
        // Whatever came of it, the node is not left dead.
        nodes.start(node).await.map_err(failed("started"))?;
        if let Some(went_on) = went_on {
            went_on?;
            gaps.push(Gap {
                gap_ms: millis(gap),
                partitions: partitions(&run.writer.leader_changes(at)),
                open: false,
                killed: Some(node.get()),
                controller: Some(controller),
            });
        }
    }
    run.in_sync().await?;
    let missing = u64::from(plan.kills).saturating_sub(gaps.len() as u64);
    run.finish(gaps, missing, monitor).await
}

/// Writes, and watches for changes of leaders that others cause.
///
/// # Errors
/// [`LoadFailed`] where it could not begin, or nothing could be checked.
pub async fn watch_failovers(
    client: &Client,
    options: &FailoverOptions,
    monitor: &Arc<Monitor>,
) -> Result<Report, LoadFailed> {
    let run = Run::begin(client, options, monitor).await?;
    tokio::select! {
        () = sleep(options.duration) => {}
        () = monitor.stop.cancelled() => {}
    }
    let open = run.writer.stalled(run.measured, OVER);
    let gaps = around(run.writer.leader_changes(run.measured), open);
    run.finish(gaps, 0, monitor).await
}

fn partitions(changes: &[LeaderChange]) -> Vec<u32> {
    let mut partitions: Vec<u32> = changes.iter().map(|c| c.partition.get()).collect();
    partitions.sort_unstable();
    partitions.dedup();
    partitions
}

/// One gap for all changes that overlap: they are of one event. Those of `open` have not ended.
fn around(mut changes: Vec<LeaderChange>, open: Vec<LeaderChange>) -> Vec<Gap> {
    changes.extend(&open);
    changes.sort_by_key(|change| change.last);
    let mut events: Vec<(Instant, Vec<LeaderChange>)> = Vec::new();
    for change in changes {
        match events.last_mut() {
            Some((until, event)) if change.last < *until => {
                *until = change.next.max(*until);
                event.push(change);
            }
            _ => events.push((change.next, vec![change])),
        }
    }
    let longest = |event: &[LeaderChange]| event.iter().map(|c| c.next - c.last).max();
    let gap = |(_, event): (Instant, Vec<LeaderChange>)| Gap {
        gap_ms: millis(longest(&event).unwrap_or_default()),
        partitions: partitions(&event),
        open: event.iter().any(|change| open.contains(change)),
        killed: None,
        controller: None,
    };
    events.into_iter().map(gap).collect()
}

/// A writer at work, and from when on it is measured.
struct Run {
    client: Client,
    topic: String,
    writer: Writer,
    /// Where the topic ended before.
    starts: BTreeMap<u32, i64>,
    measured: Instant,
}

impl Run {
    async fn begin(
        client: &Client,
        options: &FailoverOptions,
        monitor: &Arc<Monitor>,
    ) -> Result<Self, LoadFailed> {
        let topic = &options.topic;
        let starts = in_time("every partition's end", || async {
            let described = client.describe_topic(topic).await;
            let described = described.map_err(|error| error.to_string())?;
            let ends = described.partitions.iter();
            ends.map(|p| Some((p.partition.unsigned_abs(), p.high_watermark?)))
                .collect::<Option<BTreeMap<u32, i64>>>()
                .ok_or_else(|| "a leader tells no high watermark".to_owned())
        })
        .await?;
        let records = (options.rate * TICK).round().max(1.0);
        let partitions = u32::try_from(starts.len()).unwrap_or(u32::MAX);
        let started = Instant::now();
        let writer = Writer::start(
            client,
            WriterOptions {
                topic: topic.clone(),
                partitions,
                keys: KEYS_A_PARTITION * u64::from(partitions),
                records: records as u32,
                every: Duration::from_secs_f64(records / options.rate),
            },
        );
        let mut run = Self {
            client: client.clone(),
            topic: topic.clone(),
            writer,
            starts,
            measured: started,
        };
        run.acknowledged_after(started).await?;
        tokio::select! {
            () = sleep(options.warm_up) => {}
            () = monitor.stop.cancelled() => {}
        }
        run.measured = Instant::now();
        run.writer.measure_from(run.measured);
        Ok(run)
    }

    /// Waits until every partition has acknowledged something after `at`.
    async fn acknowledged_after(&self, at: Instant) -> Result<(), LoadFailed> {
        in_time("every partition to acknowledge something", || async {
            let so_far = self.writer.acknowledged();
            let all = self.writer.all_acknowledged_after(at);
            all.then_some(()).ok_or(format!("{so_far} acknowledged"))
        })
        .await
    }

    async fn in_sync(&self) -> Result<(), LoadFailed> {
        in_time("every replica to be in sync", || async {
            let described = self.client.describe_topic(&self.topic).await;
            let described = described.map_err(|error| error.to_string())?;
            let mut partitions = described.partitions.iter();
            match partitions.find(|p| p.leader.is_none() || p.isr.len() < p.replicas.len()) {
                None => Ok(()),
                Some(p) => Err(format!("partition {}: isr {:?}", p.partition, p.isr)),
            }
        })
        .await
    }

    /// The next node by turns after `before`, and whether it runs the active controller.
    async fn next_node(
        &self,
        plan: KillPlan,
        before: Option<NodeId>,
    ) -> Result<(NodeId, bool), LoadFailed> {
        in_time("an active controller", || async {
            let cluster = self.client.describe_cluster().await;
            let cluster = cluster.map_err(|error| error.to_string())?;
            let controller = cluster.controller.ok_or("there is none")?;
            let nodes = cluster.brokers.iter().map(|broker| broker.node_id);
            let mut nodes: Vec<u32> = nodes
                .filter(|node| plan.controller || *node != controller)
                .collect();
            nodes.sort_unstable();
            let after = before.map_or(0, NodeId::get);
            let next = nodes.iter().find(|node| **node > after).or(nodes.first());
            let next = *next.ok_or("there is no other node")?;
            Ok((NodeId::new(next), next == controller))
        })
        .await
    }

    async fn finish(
        mut self,
        gaps: Vec<Gap>,
        kills_missing: u64,
        monitor: &Monitor,
    ) -> Result<Report, LoadFailed> {
        let leader_changes = self.writer.leader_changes(self.measured).len() as u64;
        let took = self.measured.elapsed();
        self.writer.settle().await?;
        let measured = self.writer.measured();
        let acknowledged = self.writer.acknowledged();
        let history = self.writer.finish().await?;
        let stored = read_from(&self.client, &self.topic, &self.starts).await?;
        let violations = check(&history, &stored);
        let unknown = history.len() as u64 - acknowledged;
        let records = measured.latencies.count();
        let told = violations.iter().take(TOLD).map(|v| format!("{v:?}"));
        let mut report = Report {
            records,
            warm_up_records: acknowledged - records,
            failed: unknown + violations.len() as u64,
            first_error: measured.first_error.map(|error| error.to_string()),
            latency: measured.latencies.percentiles(),
            behind_ms: Some(millis(measured.behind)),
            stopped_early: monitor.stop.is_cancelled(),
            failover: Some(FailoverReport {
                gaps_ms: gaps.iter().map(|gap| gap.gap_ms).collect(),
                gaps,
                kills_missing,
                leader_changes,
                violations: violations.len() as u64,
                violations_seen: told.collect(),
                checked: acknowledged,
            }),
            ..Report::default()
        };
        report.set_rates(measured.bytes, took);
        Ok(report)
    }
}

/// Tries until it succeeds or the deadline passes.
async fn in_time<T, F>(what: &'static str, mut attempt: impl FnMut() -> F) -> Result<T, LoadFailed>
where
    F: Future<Output = Result<T, String>>,
{
    let deadline = Instant::now() + DEADLINE;
    let mut again = interval(Duration::from_millis(20));
    loop {
        again.tick().await;
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(why) if Instant::now() >= deadline => {
                let seconds = DEADLINE.as_secs();
                return Err(LoadFailed::NotInTime { what, seconds, why });
            }
            Err(_not_yet) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_types::PartitionId;

    #[test]
    fn changes_that_overlap_are_one_event_with_its_longest_gap() {
        let begin = Instant::now();
        let change = |partition, last, next| LeaderChange {
            partition: PartitionId::new(partition),
            last: begin + Duration::from_millis(last),
            next: begin + Duration::from_millis(next),
        };
        let changes = vec![
            change(2, 5_000, 5_020),
            change(4, 1_100, 1_900),
            change(1, 1_000, 1_300),
            change(1, 1_250, 1_400),
        ];
        let found = |open| {
            let gaps = around(changes.clone(), open).into_iter();
            gaps.map(|gap| (gap.gap_ms, gap.partitions, gap.open))
                .collect::<Vec<_>>()
        };
        let ended = (800.0, vec![1, 4], false);
        assert_eq!(found(Vec::new()), [ended.clone(), (20.0, vec![2], false)]);
        // A partition that never came back is of the event that it began with.
        let open = vec![change(3, 5_010, 9_000)];
        assert_eq!(found(open), [ended, (3_990.0, vec![2, 3], true)]);
    }
}
