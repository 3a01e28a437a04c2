//! Commits of offsets, from their callers to the quorum and back: cut into pieces that fit a proposal,
//! gathered, and answered item by item.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_group::GroupError;
use quorate_metadata::{Command, Committer, GroupCommit, OffsetToCommit, Outcome, RefusedItem};
use quorate_quorum::{ProposeError, QuorumHandle};
use quorate_types::{CoordinatorEpoch, ErrorCode, GroupId, MemberId};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::gathered::Size;

/// Offsets of one piece, and about so many bytes: a proposal takes several.
const PIECE_ITEMS: usize = 1_000;
const PIECE_BYTES: usize = 128 << 10;
/// What an item takes beside its metadata, about, as it is written.
const ITEM_BYTES: usize = 160;
/// How long a proposal of commits is tried at most. A caller whose time is over does not wait for it.
const TRIED: Duration = Duration::from_secs(10);

/// Offsets that a group's member, or somebody outside, commits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitCall {
    /// Of which group.
    pub group: GroupId,
    /// Who; none: somebody outside, for a group without members.
    pub by: Option<Committer>,
    /// What; a partition once.
    pub offsets: Vec<OffsetToCommit>,
    /// How long to wait for the quorum.
    pub timeout: Duration,
}

/// Items that were refused, by their places in the call.
pub type Refused = Vec<(usize, ErrorCode)>;

/// A part of a call.
pub(crate) struct Piece {
    pub(crate) group: GroupId,
    pub(crate) by: Option<Committer>,
    pub(crate) offsets: Vec<OffsetToCommit>,
    pub(crate) answer: oneshot::Sender<Result<Refused, GroupError>>,
    /// Bounds the bytes of commits that wait; held until the answer.
    pub(crate) room: OwnedSemaphorePermit,
}

/// A piece whose coordinator epoch is known.
pub(crate) struct Commit {
    pub(crate) piece: Piece,
    pub(crate) epoch: CoordinatorEpoch,
}

/// What became of a proposal of commits.
pub(crate) struct Committed {
    pub(crate) asked: Vec<Asked>,
    pub(crate) outcome: Result<Vec<RefusedItem>, ProposeError>,
}

/// A piece that was proposed: who it is from, and who waits.
pub(crate) struct Asked {
    pub(crate) group: GroupId,
    member: Option<MemberId>,
    items: usize,
    answer: oneshot::Sender<Result<Refused, GroupError>>,
    _room: OwnedSemaphorePermit,
}

/// How much an offset takes as it is written: JSON, in which what is not seen is longer.
fn bytes(offset: &OffsetToCommit) -> usize {
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' => 2,
        0..0x20 => 6,
        _ => 1,
    };
    let metadata = offset.metadata.bytes().map(escaped).sum::<usize>();
    ITEM_BYTES + metadata
}

pub(crate) fn size(by: Option<&Committer>, offsets: &[OffsetToCommit]) -> Size {
    let names = by.map_or(0, |by| by.member.as_str().len());
    Size {
        items: offsets.len(),
        bytes: ITEM_BYTES + names + offsets.iter().map(bytes).sum::<usize>(),
    }
}

/// Cuts offsets into pieces that fit a proposal.
pub(crate) fn cut(offsets: Vec<OffsetToCommit>) -> Vec<Vec<OffsetToCommit>> {
    let mut pieces = vec![Vec::new()];
    let mut filled = 0;
    for offset in offsets {
        let more = bytes(&offset);
        let full = |last: &Vec<_>| last.len() >= PIECE_ITEMS || filled + more > PIECE_BYTES;
        if pieces
            .last()
            .is_some_and(|last| !last.is_empty() && full(last))
        {
            pieces.push(Vec::new());
            filled = 0;
        }
        filled += more;
        if let Some(last) = pieces.last_mut() {
            last.push(offset);
        }
    }
    pieces
}

/// Proposes pieces as one command.
pub(crate) async fn propose(quorum: QuorumHandle, commits: Vec<Commit>) -> Committed {
    let mut asked = Vec::with_capacity(commits.len());
    let commits = commits.into_iter().map(|Commit { piece, epoch }| {
        asked.push(Asked {
            group: piece.group.clone(),
            member: piece.by.as_ref().map(|by| by.member.clone()),
            items: piece.offsets.len(),
            answer: piece.answer,
            _room: piece.room,
        });
        GroupCommit {
            group: piece.group,
            coordinator_epoch: epoch,
            by: piece.by,
            offsets: piece.offsets,
        }
    });
    let command = Command::CommitOffsets {
        commits: commits.collect(),
    };
    let outcomes = quorum.propose(vec![command], TRIED).await;
    let outcome = outcomes.map(|outcomes| match outcomes.into_iter().next() {
        Some(Outcome::Judged { refused }) => refused,
        // The command as a whole: every item of it.
        Some(Outcome::Refused(refusal)) => all(&asked, refusal.code),
        _ => all(&asked, ErrorCode::UnknownServerError),
    });
    Committed { asked, outcome }
}

fn all(asked: &[Asked], code: ErrorCode) -> Vec<RefusedItem> {
    let refused = (0..).zip(asked).flat_map(|(group, asked)| {
        let items = (0..).take(asked.items);
        items.map(move |item| RefusedItem { group, item, code })
    });
    refused.collect()
}

impl Committed {
    /// Answers every caller. `elsewhere` says who coordinates a group now.
    pub(crate) fn answer(self, elsewhere: impl Fn(&GroupId) -> GroupError) {
        let refused = match self.outcome {
            Ok(refused) => refused,
            Err(_undecided) => {
                for asked in self.asked {
                    let _gone = asked.answer.send(Err(GroupError::Undecided));
                }
                return;
            }
        };
        let mut of: BTreeMap<u32, Refused> = BTreeMap::new();
        for RefusedItem { group, item, code } in refused {
            of.entry(group).or_default().push((item as usize, code));
        }
        for (number, asked) in (0..).zip(self.asked) {
            let refused = of.remove(&number).unwrap_or_default();
            let result = match as_a_whole(&asked, &refused, &elsewhere) {
                Some(error) => Err(error),
                None => Ok(refused),
            };
            let _gone = asked.answer.send(result);
        }
    }
}

/// The error of a commit that was refused for who made it, rather than for what is in it.
fn as_a_whole(
    asked: &Asked,
    refused: &Refused,
    elsewhere: impl Fn(&GroupId) -> GroupError,
) -> Option<GroupError> {
    let (_, code) = refused.first()?;
    match code {
        ErrorCode::NotCoordinator => Some(elsewhere(&asked.group)),
        ErrorCode::NonEmptyGroup => Some(GroupError::NonEmpty(1)),
        ErrorCode::GroupIdNotFound | ErrorCode::UnknownMemberId => {
            let member = asked.member.clone();
            Some(member.map_or_else(
                || GroupError::UnknownGroup(asked.group.clone()),
                GroupError::UnknownMember,
            ))
        }
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail where it stands")]
mod tests {
    use std::sync::Arc;

    use quorate_types::{Offset, PartitionId, TopicId, TopicPartition};
    use tokio::sync::Semaphore;

    use super::*;

    fn offset(partition: u32, metadata: &str) -> OffsetToCommit {
        OffsetToCommit {
            partition: TopicPartition::new(
                TopicId::from_bytes([1; 16]),
                PartitionId::new(partition),
            ),
            offset: Some(Offset::new(7)),
            leader_epoch: None,
            metadata: metadata.to_owned(),
        }
    }

    #[test]
    fn a_large_commit_is_cut_into_pieces_in_its_order() {
        let offsets: Vec<_> = (0..2_500).map(|number| offset(number, "")).collect();
        let pieces = cut(offsets.clone());
        assert!(pieces.iter().all(|piece| piece.len() <= PIECE_ITEMS));
        assert!(
            pieces
                .iter()
                .all(|piece| size(None, piece).bytes <= PIECE_BYTES + ITEM_BYTES)
        );
        assert_eq!(pieces.concat(), offsets);
        // What is escaped is longer in the log than it is here.
        let control = "\u{1}".repeat(4_096);
        let pieces = cut((0..100).map(|number| offset(number, &control)).collect());
        assert_eq!(pieces.iter().map(Vec::len).max(), Some(5));
        assert_eq!(cut(vec![offset(0, "")]).len(), 1);
    }

    type Answer = Result<Refused, GroupError>;

    fn asked(member: Option<&str>) -> (Asked, oneshot::Receiver<Answer>) {
        let (answer, told) = oneshot::channel();
        let room = Arc::new(Semaphore::new(1))
            .try_acquire_many_owned(1)
            .unwrap();
        let asked = Asked {
            group: GroupId::new("g").unwrap(),
            member: member.map(|id| MemberId::new(id).unwrap()),
            items: 2,
            answer,
            _room: room,
        };
        (asked, told)
    }

    #[test]
    fn every_caller_is_told_of_its_own_items() {
        let (first, mut first_told) = asked(Some("m"));
        let (second, mut second_told) = asked(Some("n"));
        let (third, mut third_told) = asked(Some("o"));
        let item = |group, item, code| RefusedItem { group, item, code };
        let committed = Committed {
            asked: vec![first, second, third],
            outcome: Ok(vec![
                item(1, 1, ErrorCode::PartitionNotOwned),
                item(2, 0, ErrorCode::UnknownMemberId),
                item(2, 1, ErrorCode::UnknownMemberId),
            ]),
        };
        committed.answer(|_| GroupError::CutOff);
        assert_eq!(first_told.try_recv().unwrap(), Ok(vec![]));
        let refused = vec![(1, ErrorCode::PartitionNotOwned)];
        assert_eq!(second_told.try_recv().unwrap(), Ok(refused));
        let unknown = GroupError::UnknownMember(MemberId::new("o").unwrap());
        assert_eq!(third_told.try_recv().unwrap(), Err(unknown));
    }

    #[test]
    fn who_coordinates_now_is_told_and_an_unknown_outcome_is() {
        let (only, mut told) = asked(None);
        let outcome = Ok(all(std::slice::from_ref(&only), ErrorCode::NotCoordinator));
        let asked_for = vec![only];
        let asked_for = Committed {
            asked: asked_for,
            outcome,
        };
        asked_for.answer(|_| GroupError::NotCoordinator { coordinator: None });
        let elsewhere = GroupError::NotCoordinator { coordinator: None };
        assert_eq!(told.try_recv().unwrap(), Err(elsewhere));
        let (only, mut told) = asked(None);
        let unknown = Committed {
            asked: vec![only],
            outcome: Err(ProposeError::Unknown("late".to_owned())),
        };
        unknown.answer(|_| GroupError::CutOff);
        assert_eq!(told.try_recv().unwrap(), Err(GroupError::Undecided));
    }
}
