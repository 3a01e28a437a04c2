//! What a run is made of, drawn from its seed: how large the cluster is, how its topics are set, how
//! fast things go, and which kinds of faults it has.

use std::time::Duration;

use quorate_liveness::LivenessTiming;
use quorate_replication::Timing;
use quorate_types::NodeId;
use rand::Rng;
use rand::rngs::StdRng;

use super::faults::{FAULTS, Fault};
use super::schedule::{ms, us};

/// A silent broker is fenced after so long.
pub(super) const SESSION: Duration = ms(150);

/// A topic as it is made.
#[derive(Debug, Clone)]
pub(super) struct TopicPlan {
    pub(super) partitions: u32,
    pub(super) factor: u32,
    pub(super) min_isr: u32,
    pub(super) page_cache: bool,
    pub(super) unclean: bool,
}

impl TopicPlan {
    fn draw(rng: &mut StdRng, nodes: u32, small: bool) -> Self {
        let factor = [3, 3, 3, 3, 2, 1][rng.random_range(0..6)];
        Self {
            partitions: if small { 1 } else { rng.random_range(1..=3) },
            factor: factor.min(nodes),
            min_isr: if rng.random_bool(0.75) { 2 } else { 1 },
            page_cache: rng.random_bool(0.35),
            unclean: rng.random_bool(0.2),
        }
    }

    /// The settings by their names.
    pub(super) fn settings(&self) -> [(&'static str, String); 3] {
        let durability = if self.page_cache {
            "page-cache"
        } else {
            "fsync"
        };
        [
            ("min.insync.replicas", self.min_isr.to_string()),
            ("durability", durability.to_owned()),
            ("unclean.leader.election.enable", self.unclean.to_string()),
        ]
    }
}

/// What stays broken when the other faults are over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Residue {
    Nothing,
    /// One node stays down.
    Down(NodeId),
    /// One node's disk never syncs again.
    Stalled(NodeId),
    /// One node reaches nobody.
    CutOff(NodeId),
}

impl Residue {
    pub(super) fn node(self) -> Option<NodeId> {
        match self {
            Self::Nothing => None,
            Self::Down(node) | Self::Stalled(node) | Self::CutOff(node) => Some(node),
        }
    }
}

#[derive(Debug)]
pub(super) struct Plan {
    pub(super) nodes: u32,
    pub(super) topics: Vec<TopicPlan>,
    pub(super) enabled: Vec<Fault>,
    /// The longest pause between two faults, in steps.
    pub(super) fault_gap: u64,
    /// The longest pause of a producer, in microseconds.
    pub(super) pace: u64,
    /// How often a message takes long.
    pub(super) slowness: f64,
    /// How often a replica settles later than at once.
    pub(super) gathering: f64,
    pub(super) segment_bytes: u64,
    pub(super) timing: Timing,
    pub(super) liveness: LivenessTiming,
    pub(super) heartbeat: Duration,
    /// Its image lags often.
    pub(super) lagging: Option<NodeId>,
    /// Clocks run apart by up to so many parts in a thousand.
    pub(super) drift: i64,
    /// Brokers register and are unfenced as ever; else the run begins with that done.
    pub(super) by_the_book: bool,
    /// Settings change, topics are deleted and made anew.
    pub(super) changes: bool,
    pub(super) residue: Residue,
    /// Faults strike for so many times the steps.
    pub(super) longer: u64,
}

impl Plan {
    pub(super) fn draw(rng: &mut StdRng) -> Self {
        let nodes = if rng.random_bool(0.7) { 3 } else { 4 };
        let small = rng.random_bool(0.65);
        let count = if small { 1 } else { rng.random_range(1..=3) };
        let topics: Vec<TopicPlan> = (0..count)
            .map(|_| TopicPlan::draw(rng, nodes, small && count == 1))
            .collect();
        // Few kinds at a time come to things that many keep each other from.
        let often = [0.08, 0.2, 0.4][rng.random_range(0..3)];
        let mut enabled: Vec<Fault> = FAULTS
            .into_iter()
            .filter(|_| rng.random_bool(often))
            .collect();
        if topics.iter().any(|topic| topic.page_cache) {
            enabled.extend([Fault::PowerLoss, Fault::StallDisk]);
        }
        if enabled.is_empty() {
            enabled.push(Fault::Kill);
        }
        let heartbeat = ms(rng.random_range(20..50));
        let timing = Timing {
            replica_lag_time_max: ms(rng.random_range(70..250)),
            session_timeout: SESSION,
            heartbeat_interval: heartbeat,
            retry_min: ms(1),
            retry_max: ms(30),
            proposal_retry: ms(5),
            window_bytes: rng.random_range(200..4_000),
            push_bytes: rng.random_range(100..1_500),
            checkpoint_interval: ms(rng.random_range(5..60)),
            // Longer than a run: its producers try for as long as that.
            ..Timing::default()
        };
        let liveness = LivenessTiming {
            session_timeout: SESSION,
            probe_interval: ms(2),
            first_contact: ms(20),
            rebalance_interval: ms(rng.random_range(80..600)),
            rebalance_batch: 16,
        };
        let any = |rng: &mut StdRng| NodeId::new(rng.random_range(1..=nodes));
        let lagging = rng.random_bool(0.3).then(|| any(rng));
        let residue = match rng.random_range(0..10) {
            0..5 => Residue::Nothing,
            5 | 6 => Residue::Down(any(rng)),
            7 | 8 => Residue::Stalled(any(rng)),
            _ => Residue::CutOff(any(rng)),
        };
        Self {
            nodes,
            topics,
            enabled,
            fault_gap: [15, 40, 90][rng.random_range(0..3)],
            pace: [8_000, 8_000, 40_000][rng.random_range(0..3)],
            slowness: [0.0, 0.005, 0.03][rng.random_range(0..3)],
            gathering: [0.0, 0.2, 0.6][rng.random_range(0..3)],
            segment_bytes: rng.random_range(400..3_000),
            timing,
            liveness,
            heartbeat,
            lagging,
            drift: [0, 0, 30, 60][rng.random_range(0..4)],
            by_the_book: rng.random_bool(0.1),
            changes: rng.random_bool(0.45),
            residue,
            longer: 1,
        }
    }

    /// For a run with groups: their sessions end, and coordinators change, in more time than logs
    /// need, and one partition is soon shared out.
    pub(super) fn make_room_for_groups(&mut self) {
        self.longer = 2;
        self.pace *= 5;
        self.fault_gap *= 3;
        if let Some(topic) = self.topics.first_mut() {
            topic.partitions = topic.partitions.max(3);
        }
    }

    /// How long a stalled disk is taken for one that never syncs again.
    pub(super) const FOR_GOOD: Duration = us(u64::MAX / 8);
}
