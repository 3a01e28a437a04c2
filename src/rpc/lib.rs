//! The gRPC edge: what clients and nodes call, and this node's calls to others. It translates and
//! forwards; every decision is made below.
//!
//! Three connections a peer, so that a heartbeat never waits behind data: Raft and control (the
//! quorum's own, and the session with the controller), replication, forwarding.

mod admin;
mod admission;
mod body;
mod channels;
mod cluster;
mod connections;
mod consume;
mod consumer;
mod control;
mod describe;
mod edge;
mod forwarding;
mod groups;
mod messages;
mod metrics;
mod partitions;
mod produce_stream;
mod producer;
mod records;
mod replication;
mod starts;
mod status;
mod subscribe;

pub use admission::{AdmissionLimits, limited};
pub use channels::{MESSAGE_BYTES, tune_server};
pub use connections::{Connection, ConnectionLimits, accept};
pub use control::{ControlLink, ControllerService, TcpProber};
pub use edge::{Edge, EdgeConfig, LogControl};
pub use metrics::describe as describe_metrics;
pub use replication::{Identity, ReplicationLink, ReplicationService};
pub use status::{from_status, to_status};
