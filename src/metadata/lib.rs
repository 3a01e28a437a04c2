//! What the cluster knows and how it changes: commands, the image that they are applied to, and
//! the difference between two images. Pure: equal commands in equal order give equal images, byte
//! for byte. No clocks, no randomness, no iteration over unordered maps.
//!
//! Invariant: a command is judged when it is applied, by what it carries; what a proposer believed
//! is never enough. The protocol is in README.md beside this file.

mod apply;
mod apply_brokers;
mod apply_groups;
mod apply_partitions;
mod apply_topics;
mod cause;
mod codec;
mod command;
mod delta;
mod election;
#[cfg(test)]
mod election_tests;
mod event;
mod features;
#[cfg(test)]
mod golden_script;
#[cfg(test)]
mod golden_tests;
mod group;
mod group_command;
#[cfg(test)]
mod group_tests;
mod history;
#[cfg(test)]
mod history_tests;
mod image;
mod origins;
mod placement;
mod producers;
#[cfg(test)]
mod tests;

pub use apply::Applied;
pub use codec::{CodecError, ImageError};
pub use command::{
    AlterPartition, AlterTopic, Command, CreateTopic, DamagedReplica, Envelope, LogId, Origin,
    Outcome, Refusal, RegisterBroker, ReportDataLoss,
};
pub use delta::Delta;
pub use event::{ClusterEvent, EventKind};
pub use features::{MAX_LEVEL, MIN_LEVEL, UnknownLevel, check_level};
pub use group::{
    CommittedOffset, GROUP_SHARDS, Group, GroupVersion, Member, MemberProfile, Offsets, Owned,
    Shard, group_shard,
};
pub use group_command::{
    AlterGroup, Committer, GroupCommit, MemberChange, OffsetToCommit, RefusedItem,
};
pub use image::{
    Broker, BrokerState, DataLoss, MetadataImage, Registration, ReplicaAssignment, Topic,
};
