//! Load against a cluster, what came of it, and whether that is right.
//!
//! Two kinds of load. A [`Writer`] writes numbered keyed records and keeps a history of what was
//! acknowledged where; [`check`] finds what was lost, moved, duplicated, invented or out of order.
//! [`produce`], [`consume`], [`end_to_end`] and [`failover`] measure: open or closed loop, latencies
//! in histograms, a warm-up left out, and a [`Report`] that says so where the generator itself was
//! too slow.

mod batch_sink;
mod consume_load;
mod cpu;
mod drive;
mod end_to_end;
mod failover;
mod gaps;
mod history;
mod latencies;
mod monitor;
mod payload;
mod produce_load;
mod reader;
mod report;
mod request_sink;
mod schedule;
mod writer;

pub use consume_load::{ConsumeOptions, consume};
pub use end_to_end::end_to_end;
pub use failover::{FailoverOptions, KillPlan, Nodes, failover, watch_failovers};
pub use gaps::longest_gap;
pub use history::{History, Sent, Stored, Violation, check};
pub use latencies::{Latencies, Percentiles};
pub use monitor::Monitor;
pub use produce_load::{ProduceOptions, produce};
pub use reader::{ReadFailed, read_all, read_from};
pub use report::{FailoverReport, Gap, LoadFailed, Report};
pub use schedule::Plan;
pub use writer::{LeaderChange, Writer, WriterFailed, WriterOptions};
