//! The gRPC edge: what clients and nodes call, and this node's calls to others. It translates and
//! forwards; every decision is made below.
//!
//! Three connections a peer, so that a heartbeat never waits behind data: Raft and control (the
//! quorum's own, and the session with the controller), replication, forwarding.

mod admin;
mod channels;
mod cluster;
mod consumer;
mod control;
mod describe;
mod edge;
mod messages;
mod producer;
mod records;
mod replication;
mod status;

pub use channels::{MESSAGE_BYTES, tune_server};
pub use control::{ControlLink, ControllerService, TcpProber};
pub use edge::{Edge, EdgeConfig};
pub use replication::{Identity, ReplicationLink, ReplicationService};
pub use status::{from_status, to_status};
