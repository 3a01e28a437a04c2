//! Who takes part in the quorum, and the types that openraft is told to use.
//!
//! Invariant: a [`RaftId`] names one log for all time. Another disk is another directory id, so a
//! node that has forgotten what it voted for can never speak under its old name.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use quorate_types::{DirectoryId, Endpoint, NodeId};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A member of the metadata quorum: a node on one data directory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct RaftId {
    /// The node's number.
    pub node: NodeId,
    /// The data directory it keeps its log and vote in.
    pub directory: DirectoryId,
}

/// Text that is not a [`RaftId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a quorum member's id (node.directory)")]
pub struct InvalidRaftId(String);

impl fmt::Display for RaftId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.node, self.directory)
    }
}

impl fmt::Debug for RaftId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RaftId {
    type Err = InvalidRaftId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidRaftId(text.to_owned());
        let (node, directory) = text.split_once('.').ok_or_else(invalid)?;
        Ok(Self {
            node: node.parse().map_err(|_| invalid())?,
            directory: directory.parse().map_err(|_| invalid())?,
        })
    }
}

impl From<RaftId> for String {
    fn from(id: RaftId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for RaftId {
    type Error = InvalidRaftId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// Where a member listens for other nodes. Empty only in openraft's own test suite.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Peer {
    /// `host:port`.
    pub(crate) address: String,
}

impl Peer {
    pub(crate) fn at(endpoint: &Endpoint) -> Self {
        Self {
            address: endpoint.to_string(),
        }
    }
}

/// An encoded envelope on its way through the log.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proposal(pub(crate) Bytes);

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "proposal of {} bytes", self.0.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl Serialize for Proposal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.as_ref().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Proposal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(Vec::<u8>::deserialize(deserializer)?.into()))
    }
}

/// The encoded outcomes of an entry; empty for what Raft writes by itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Reply(pub(crate) Vec<u8>);

openraft::declare_raft_types!(
    /// One leader a term (`leader_id_std`): the term alone then says which leadership a command
    /// was meant for.
    pub(crate) TypeConfig:
        D = Proposal,
        R = Reply,
        NodeId = RaftId,
        Node = Peer,
        LeaderId = openraft::impls::leader_id_std::LeaderId<Self::Term, Self::NodeId>,
);

pub(crate) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(crate) type RaftLogId = openraft::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(crate) type CommittedLeader = openraft::alias::CommittedLeaderIdOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<RaftId, Peer>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Raft = openraft::Raft<TypeConfig, crate::state_machine::StateMachine>;
pub(crate) type Metrics = openraft::RaftMetrics<TypeConfig>;

/// openraft's test suite makes ids from numbers.
#[cfg(test)]
impl From<u64> for RaftId {
    fn from(number: u64) -> Self {
        Self {
            node: NodeId::new(number as u32),
            directory: DirectoryId::from_bytes(u128::from(number).to_be_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_back_as_it_was_written() {
        let id = RaftId::from(7);
        assert_eq!(id.to_string().parse::<RaftId>().unwrap(), id);
        let json = serde_json::to_string(&std::collections::BTreeMap::from([(id, 1)])).unwrap();
        let back: std::collections::BTreeMap<RaftId, i32> = serde_json::from_str(&json).unwrap();
        assert_eq!(back[&id], 1);
        assert!("7".parse::<RaftId>().is_err());
    }
}
