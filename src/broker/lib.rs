//! The broker's shell: hosts the partitions of one data directory and carries out what the pure
//! replication cores decide. It knows nothing of gRPC services or codecs; what it needs from
//! above (streams to leaders, the session with the controller) it asks for through its own traits.
//!
//! One operating-system thread (the *plane*) owns every hosted replica and its log, without locks:
//! requests, stream messages, images and flush completions reach it through one bounded mailbox.
//! Readers never pass through it: they read below the published high watermark.

mod broker;
mod calls;
mod clock;
mod fetch;
mod fetch_room;
mod gathered;
mod group_commits;
mod group_runner;
mod groups;
mod hosted;
mod hosting;
mod leader_links;
mod lifecycle;
mod losses;
mod mailbox;
mod metrics;
mod plane;
mod proposals;
mod stream;
mod transport;
mod unmade;

pub use broker::{Broker, BrokerConfig, BrokerError, Queue};
pub use calls::{
    FetchCall, FetchError, Fetched, Holder, ListedOffset, OffsetPosition, PendingProduce,
    ProduceCall, Waiter,
};
pub use group_commits::{CommitCall, Refused};
pub use groups::Groups;
pub use hosted::HostedPartition;
pub use lifecycle::{LifecycleConfig, ShutdownOutcome};
pub use metrics::describe as describe_metrics;
pub use stream::FollowerOutgoing;
pub use transport::{
    ControllerLink, ControllerSession, Heartbeat, HeartbeatReply, ImageDifference, LeaderStream,
    ReplicationTransport, TransportError,
};

/// The disk that brokers run on: the operating system's, with a delay that tests may set.
pub(crate) type Disk = quorate_log::SlowDir<quorate_log::OsDir>;
