//! The Rust client: goes straight to the leaders, follows them over failovers, batches, and keeps
//! order and exactly-once per producer and partition.
//!
//! A [`Client`] knows the cluster by the addresses that it is given first, and everything else is made
//! from it. Everything waits within a bound, and memory is bounded by the options.
//!
//! | what | from | |
//! | --- | --- | --- |
//! | [`Producer`] | [`Client::producer`] | sends records; retries neither duplicate nor reorder them |
//! | [`Consumer`] | [`Client::consumer`] | reads the partitions that it is told to, from where it is told |
//! | [`GroupConsumer`] | [`Client::group`] | shares the partitions of topics with the other members of its group, and goes on where the group left off |
//! | topics | [`Client::create_topic`] and its neighbours | |
//! | groups | [`Client::list_groups`], [`Client::describe_group`], [`Client::alter_offsets`], [`Client::delete_group`] | |
//!
//! # Example
//! Records are written, and read by a member of a group. `examples/` has whole programs: `producer`,
//! `consumer`, `group` and `admin`.
//!
//! ```no_run
//! use quorate_client::{
//!     Client, ClientError, ClientOptions, Endpoint, GroupEvent, GroupOptions, ProducerOptions,
//!     StartPosition, ToSend,
//! };
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let bootstrap: Vec<Endpoint> = vec!["127.0.0.1:7070".parse()?, "127.0.0.1:7080".parse()?];
//! let client = Client::new(bootstrap, ClientOptions::default())?;
//!
//! let producer = client.producer(ProducerOptions::default());
//! let record = ToSend {
//!     key: Some(b"anna"),
//!     value: Some(b"hello"),
//!     ..ToSend::default()
//! };
//! let delivery = producer.send("demo", record).await?;
//! let acked = delivery.wait().await?;
//! println!("on the disks of {} replicas", acked.fsynced);
//!
//! let mut member = client.group(GroupOptions {
//!     start: StartPosition::Earliest,
//!     ..GroupOptions::new("readers", ["demo"])
//! })?;
//! loop {
//!     match member.poll().await? {
//!         GroupEvent::Records(read) => {
//!             for record in read.records {
//!                 println!("{}-{}: {:?}", read.topic, read.partition, record.value);
//!             }
//!         }
//!         // What is committed at once now need not be done twice by whoever is next.
//!         GroupEvent::Revoked(_) => member.commit().await?,
//!         _ => {}
//!     }
//! #   break;
//! }
//! member.close().await?;
//! producer.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! # What is promised
//! With [`Acks::All`], which is the default, a record that [`Delivery::wait`] returns is on the disk of
//! every in-sync replica. Records of one producer and partition keep their order.
//!
//! A member of a group processes every record at least once: what was returned and not committed is
//! returned again to whoever reads the partition next. Two members never have a partition at once: one
//! that hears nothing from the cluster for its session timeout stops by itself. So that a record is
//! processed once where nothing fails, commit in [`GroupEvent::Revoked`], or let the member commit by
//! itself.
//!
//! Failovers of leaders and coordinators are retried inside; what a [`ClientError`] tells is what no
//! retry helps, or what was not decided in the time given.

mod admin;
mod client;
mod consumer;
mod detours;
mod error;
mod fate;
mod fetcher;
mod group;
mod metadata;
mod producer;
mod producer_ids;
mod worker;

pub use client::{Client, ClientOptions};
pub use consumer::{Assignment, Consumed, Consumer, ConsumerOptions, TopicPartition};
pub use error::ClientError;
pub use fate::{Acked, Delivery};
pub use group::{GroupConsumer, GroupEvent, GroupOptions, OffsetToCommit, StartPosition};
pub use metadata::{Metadata, PartitionInfo, TopicInfo};
pub use producer::{Producer, ProducerOptions, ToSend};

pub use quorate_proto::v1;
pub use quorate_record::{Compression, Record, RecordHeader};
pub use quorate_types::{
    Acks, Assignor, Endpoint, ErrorCode, LeaderEpoch, Offset, PartitionId, Timestamp,
};
