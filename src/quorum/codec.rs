//! How entries and Raft's calls are written, on disk and between members. Entries are protobuf
//! around the envelope's bytes; what is rare (votes, membership, snapshot heads) is JSON.

use std::io;

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::alias::SnapshotMetaOf;
use openraft::raft::AppendEntriesRequest;
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ids::{CommittedLeader, Entry, Proposal, RaftLogId, TypeConfig, Vote};

/// Where an entry is: term and index.
#[derive(Clone, Copy, PartialEq, Message)]
struct Position {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    index: u64,
}

#[derive(Clone, PartialEq, Message)]
struct WireEntry {
    #[prost(message, required, tag = "1")]
    position: Position,
    #[prost(oneof = "Payload", tags = "2, 3, 4")]
    payload: Option<Payload>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Payload {
    /// What a new leader writes to commit what it inherited.
    #[prost(bool, tag = "2")]
    Blank(bool),
    #[prost(bytes = "bytes", tag = "3")]
    Envelope(Bytes),
    /// JSON.
    #[prost(bytes = "vec", tag = "4")]
    Membership(Vec<u8>),
}

#[derive(Clone, PartialEq, Message)]
struct WireAppend {
    /// JSON.
    #[prost(bytes = "vec", tag = "1")]
    vote: Vec<u8>,
    #[prost(message, optional, tag = "2")]
    previous: Option<Position>,
    #[prost(message, repeated, tag = "3")]
    entries: Vec<WireEntry>,
    #[prost(message, optional, tag = "4")]
    leader_commit: Option<Position>,
}

fn invalid(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

pub(crate) fn to_json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("Raft's own messages have string keys and finite numbers")
}

pub(crate) fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    serde_json::from_slice(bytes).map_err(invalid)
}

fn position(id: &RaftLogId) -> Position {
    Position {
        term: id.committed_leader_id().term,
        index: id.index,
    }
}

fn log_id(position: Position) -> RaftLogId {
    RaftLogId::new(CommittedLeader::new(position.term), position.index)
}

fn to_wire(entry: &Entry) -> WireEntry {
    let payload = match &entry.payload {
        EntryPayload::Blank => Payload::Blank(true),
        EntryPayload::Normal(proposal) => Payload::Envelope(proposal.0.clone()),
        EntryPayload::Membership(membership) => Payload::Membership(to_json(membership)),
    };
    WireEntry {
        position: position(&entry.log_id),
        payload: Some(payload),
    }
}

fn from_wire(entry: WireEntry) -> io::Result<Entry> {
    let payload = match entry.payload {
        Some(Payload::Blank(_)) => EntryPayload::Blank,
        Some(Payload::Envelope(bytes)) => EntryPayload::Normal(Proposal(bytes)),
        Some(Payload::Membership(json)) => EntryPayload::Membership(from_json(&json)?),
        None => {
            return Err(invalid(
                "an entry of a kind that this version does not know",
            ));
        }
    };
    Ok(Entry {
        log_id: log_id(entry.position),
        payload,
    })
}

/// The bytes of one entry.
pub(crate) fn encode_entry(entry: &Entry) -> Vec<u8> {
    to_wire(entry).encode_to_vec()
}

/// Reads what [`encode_entry`] wrote.
pub(crate) fn decode_entry(bytes: Bytes) -> io::Result<Entry> {
    from_wire(WireEntry::decode(bytes).map_err(invalid)?)
}

/// About how many bytes an entry takes.
pub(crate) fn entry_size(entry: &Entry) -> usize {
    const OVERHEAD: usize = 64;
    OVERHEAD
        + match &entry.payload {
            EntryPayload::Blank => 0,
            EntryPayload::Normal(proposal) => proposal.0.len(),
            EntryPayload::Membership(membership) => 256 * membership.nodes().count(),
        }
}

pub(crate) fn encode_append(request: &AppendEntriesRequest<TypeConfig>) -> Vec<u8> {
    WireAppend {
        vote: to_json(&request.vote),
        previous: request.prev_log_id.as_ref().map(position),
        entries: request.entries.iter().map(to_wire).collect(),
        leader_commit: request.leader_commit.as_ref().map(position),
    }
    .encode_to_vec()
}

pub(crate) fn decode_append(bytes: Bytes) -> io::Result<AppendEntriesRequest<TypeConfig>> {
    let wire = WireAppend::decode(bytes).map_err(invalid)?;
    Ok(AppendEntriesRequest {
        vote: from_json(&wire.vote)?,
        prev_log_id: wire.previous.map(log_id),
        entries: wire
            .entries
            .into_iter()
            .map(from_wire)
            .collect::<io::Result<_>>()?,
        leader_commit: wire.leader_commit.map(log_id),
    })
}

/// What goes before a snapshot's data: the sender's vote, what the snapshot covers, and how many
/// bytes follow.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct SnapshotHead {
    pub(crate) vote: Vote,
    pub(crate) meta: SnapshotMetaOf<TypeConfig>,
    pub(crate) length: u64,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use openraft::testing::{blank_ent, membership_ent};

    use super::*;
    use crate::ids::RaftId;

    fn entries() -> Vec<Entry> {
        let mut normal = blank_ent::<TypeConfig>(2, RaftId::from(1), 8);
        normal.payload = EntryPayload::Normal(Proposal(Bytes::from_static(b"command")));
        let voters = BTreeSet::from([RaftId::from(1), RaftId::from(2)]);
        vec![
            blank_ent::<TypeConfig>(1, RaftId::from(3), 0),
            normal,
            membership_ent::<TypeConfig>(3, RaftId::from(1), 9, vec![voters]),
        ]
    }

    #[test]
    fn an_entry_is_read_back_as_it_was_written() {
        for entry in entries() {
            assert_eq!(decode_entry(encode_entry(&entry).into()).unwrap(), entry);
        }
    }

    #[test]
    fn an_append_is_read_back_as_it_was_sent() {
        let request = AppendEntriesRequest {
            vote: Vote::new_committed(3, RaftId::from(1)),
            prev_log_id: None,
            entries: entries(),
            leader_commit: Some(entries()[1].log_id),
        };
        let back = decode_append(encode_append(&request).into()).unwrap();
        assert_eq!(back.vote, request.vote);
        assert_eq!(back.prev_log_id, request.prev_log_id);
        assert_eq!(back.entries, request.entries);
        assert_eq!(back.leader_commit, request.leader_commit);
    }

    #[test]
    fn an_entry_of_an_unknown_kind_is_an_error() {
        let unknown = WireEntry {
            position: Position { term: 1, index: 1 },
            payload: None,
        };
        assert!(decode_entry(unknown.encode_to_vec().into()).is_err());
    }
}
