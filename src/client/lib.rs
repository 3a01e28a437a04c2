//! The Rust client: goes straight to the leaders, follows them over failovers, batches, and keeps
//! order and exactly-once per producer and partition.
//!
//! [`Client`] knows the cluster; [`Producer`] and [`Consumer`] are made from it. Everything waits
//! within a bound, and memory is bounded by the options.

mod admin;
mod client;
mod consumer;
mod detours;
mod error;
mod fate;
mod metadata;
mod producer;
mod worker;

pub use client::{Client, ClientOptions};
pub use consumer::{Assignment, Consumed, Consumer, ConsumerOptions};
pub use error::ClientError;
pub use fate::{Acked, Delivery};
pub use metadata::{Metadata, PartitionInfo, TopicInfo};
pub use producer::{Producer, ProducerOptions, ToSend};
