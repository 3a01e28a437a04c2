//! How long clients had to wait when a node was killed, and what the nodes that were left logged
//! meanwhile.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quorate_types::NodeId;

use crate::harness::Cluster;

/// Lines of a gap's story that are told.
const LINES: usize = 120;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Gaps of one kind.
#[derive(Debug, Default)]
pub struct Figures(Vec<Duration>);

impl Figures {
    /// One more.
    pub fn add(&mut self, gap: Duration) {
        self.0.push(gap);
    }

    /// Prints how many there are and percentiles of them; nothing where there are none.
    pub fn print(&mut self, what: &str) {
        self.0.sort_unstable();
        let Some(last) = self.0.len().checked_sub(1) else {
            return;
        };
        let at = |percent: usize| self.0[last * percent / 100].as_millis();
        println!(
            "{what}: {} gaps, p50 {} ms, p90 {} ms, p99 {} ms, max {} ms",
            self.0.len(),
            at(50),
            at(90),
            at(99),
            at(100)
        );
    }
}

/// The logs of the nodes that are left, from the moment of a kill on.
#[derive(Debug)]
pub struct Story {
    killed: Duration,
    logs: Vec<(NodeId, PathBuf, u64)>,
}

impl Story {
    /// To be called right before the kill.
    ///
    /// # Panics
    /// Where a log cannot be read.
    pub fn begin(cluster: &Cluster, killed: NodeId) -> Self {
        let nodes = cluster.processes.node_ids().into_iter();
        let logs = nodes.filter(|node| *node != killed).map(|node| {
            let path = cluster.processes.log_path(node).expect("the node is known");
            let length = fs::metadata(&path).expect("it has a log").len();
            (node, path, length)
        });
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            killed: Duration::from_nanos((now.as_nanos() % DAY.as_nanos()) as u64),
            logs: logs.collect(),
        }
    }

    /// What was logged until so long after the kill, in order, each line with its time since then;
    /// the first 120 lines.
    ///
    /// # Panics
    /// Where a log cannot be read.
    pub fn told(&self, until: Duration) -> Vec<String> {
        let mut lines = Vec::new();
        for (node, path, from) in &self.logs {
            let log = fs::read(path).expect("a log can be read");
            let log = String::from_utf8_lossy(&log[*from as usize..]).into_owned();
            let timed = log.lines().filter_map(|line| {
                let (time, said) = line.split_once(' ')?;
                let after = (time_of_day(time)? + DAY).checked_sub(self.killed)?;
                let after = if after >= DAY { after - DAY } else { after };
                (after <= until).then(|| (after, format!("node {node}: {}", said.trim_start())))
            });
            lines.extend(timed);
        }
        lines.sort();
        let shown = lines.into_iter().take(LINES);
        shown
            .map(|(after, said)| format!("{:7.1} ms {said}", after.as_secs_f64() * 1e3))
            .collect()
    }
}

/// Of a time such as `2026-01-31T23:59:59.999999Z`.
fn time_of_day(time: &str) -> Option<Duration> {
    let clock = time.split_once('T')?.1.strip_suffix('Z')?;
    let mut parts = clock.splitn(3, ':');
    let mut part = || parts.next()?.parse::<f64>().ok();
    Some(Duration::from_secs_f64(
        part()? * 3600.0 + part()? * 60.0 + part()?,
    ))
}
