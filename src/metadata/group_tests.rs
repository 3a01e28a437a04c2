//! Groups against the image: one owner a partition, commits in order, coordinators by epoch.

use std::collections::BTreeSet;
use std::sync::Arc;

use quorate_types::{
    Assignor, CommitSeq, CoordinatorEpoch, ErrorCode, GroupEpoch, GroupId, MemberId, Offset,
    PartitionId, TopicPartition,
};

use crate::tests::{Cluster, P0, TOPIC, node, register};
use crate::{
    AlterGroup, Command, Committer, GROUP_SHARDS, GroupCommit, MemberChange, MemberProfile,
    MetadataImage, OffsetToCommit, Outcome,
};

const P1: TopicPartition = TopicPartition::new(TOPIC, PartitionId::new(1));

pub(crate) fn group() -> GroupId {
    GroupId::new("g").expect("a legal name")
}

pub(crate) fn member(name: &str) -> MemberId {
    MemberId::new(name).expect("a legal name")
}

pub(crate) fn profile() -> MemberProfile {
    MemberProfile {
        instance: None,
        client_id: "c".to_owned(),
        client_host: "h".to_owned(),
        topics: BTreeSet::new(),
        session_timeout_ms: 45_000,
        rebalance_timeout_ms: 60_000,
        assignor: Assignor::Uniform,
    }
}

/// A new member, with what it gets at once.
pub(crate) fn joins(name: &str, assign: &[TopicPartition]) -> MemberChange {
    MemberChange {
        profile: Some(profile()),
        assign: assign.to_vec(),
        ..MemberChange::of(member(name))
    }
}

/// A change by the group's coordinator, who sees the newest image.
pub(crate) fn alter(
    image: &MetadataImage,
    members: Vec<MemberChange>,
    gone: &[&str],
) -> AlterGroup {
    AlterGroup {
        group: group(),
        coordinator_epoch: image.coordinator(&group()).epoch,
        version: image.group(&group()).map(|group| group.version()),
        gone: gone.iter().map(|name| member(name)).collect(),
        members,
        delete: false,
    }
}

pub(crate) fn commit(
    image: &MetadataImage,
    by: Option<(&str, u32, u64)>,
    at: TopicPartition,
    offset: u64,
) -> GroupCommit {
    GroupCommit {
        group: group(),
        coordinator_epoch: image.coordinator(&group()).epoch,
        by: by.map(|(name, epoch, seq)| Committer {
            member: member(name),
            epoch: GroupEpoch::new(epoch),
            seq: Some(CommitSeq::new(seq)),
        }),
        offsets: vec![OffsetToCommit {
            partition: at,
            offset: Some(Offset::new(offset)),
            leader_epoch: None,
            metadata: String::new(),
        }],
    }
}

fn cluster() -> Cluster {
    Cluster::of_three()
}

impl Cluster {
    fn start(&mut self, broker: crate::RegisterBroker) {
        let id = broker.node.get();
        self.run(Command::RegisterBroker(broker));
        self.unfence(id);
    }

    fn alter_group(&mut self, members: Vec<MemberChange>, gone: &[&str]) -> Option<ErrorCode> {
        let changes = vec![alter(&self.image, members, gone)];
        only(self.run(Command::AlterGroups { changes }))
    }

    fn commit(
        &mut self,
        by: Option<(&str, u32, u64)>,
        at: TopicPartition,
        offset: u64,
    ) -> Option<ErrorCode> {
        let commits = vec![commit(&self.image, by, at, offset)];
        only(self.run(Command::CommitOffsets { commits }))
    }

    fn committed(&self, at: TopicPartition) -> Option<u64> {
        let offsets = self.image.offsets(&group());
        offsets.get(&at).map(|committed| committed.offset.get())
    }
}

fn only(outcome: Outcome) -> Option<ErrorCode> {
    match outcome {
        Outcome::Judged { refused } => refused.first().map(|item| item.code),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_partition_has_one_owner_until_it_is_given_up() {
    let mut cluster = cluster();
    assert_eq!(cluster.alter_group(vec![joins("a", &[P0, P1])], &[]), None);
    let taken = cluster.alter_group(vec![joins("b", &[P1])], &[]);
    assert_eq!(taken, Some(ErrorCode::InvalidRequest));
    let revoke = MemberChange {
        revoke: vec![P1],
        ..MemberChange::of(member("a"))
    };
    assert_eq!(
        cluster.alter_group(vec![joins("b", &[]), revoke], &[]),
        None
    );
    let assign = MemberChange {
        assign: vec![P1],
        ..MemberChange::of(member("b"))
    };
    let early = cluster.alter_group(vec![assign.clone()], &[]);
    assert_eq!(early, Some(ErrorCode::InvalidRequest));
    let release = MemberChange {
        release: vec![P1],
        ..MemberChange::of(member("a"))
    };
    assert_eq!(cluster.alter_group(vec![assign, release], &[]), None);
    let group = cluster.image.group(&group()).unwrap();
    assert_eq!(group.epoch, GroupEpoch::new(3));
    assert_eq!(group.owners.get(&P1), Some(&member("b")));
    let a: Vec<_> = group.members[&member("a")].assigned().collect();
    assert_eq!(a, [P0]);
    assert_eq!(
        group.members[&member("b")].owned[&P1].since,
        GroupEpoch::new(3)
    );
}

#[test]
fn what_a_member_was_to_give_up_it_may_keep_after_all() {
    let mut cluster = cluster();
    cluster.alter_group(vec![joins("a", &[P0])], &[]);
    for change in [
        MemberChange {
            revoke: vec![P0],
            ..MemberChange::of(member("a"))
        },
        MemberChange {
            assign: vec![P0],
            ..MemberChange::of(member("a"))
        },
    ] {
        assert_eq!(cluster.alter_group(vec![change], &[]), None);
    }
    let group = cluster.image.group(&group()).unwrap();
    let owned = group.members[&member("a")].owned[&P0];
    assert_eq!((owned.since, owned.revoking), (GroupEpoch::new(1), false));
}

#[test]
fn a_change_that_is_refused_changes_nothing_and_harms_no_other() {
    let mut cluster = cluster();
    cluster.alter_group(vec![joins("a", &[P0])], &[]);
    let before = cluster.image.group(&group()).cloned();
    let good = AlterGroup {
        group: GroupId::new("h").unwrap(),
        version: None,
        coordinator_epoch: cluster.image.coordinator(&GroupId::new("h").unwrap()).epoch,
        ..alter(&cluster.image, vec![joins("b", &[P0])], &[])
    };
    let stale = AlterGroup {
        version: None,
        ..alter(&cluster.image, vec![joins("b", &[])], &[])
    };
    let unknown = alter(&cluster.image, vec![MemberChange::of(member("x"))], &["a"]);
    let gone = alter(&cluster.image, vec![], &["x"]);
    let changes = vec![stale, good, unknown, gone];
    let outcome = cluster.run(Command::AlterGroups { changes });
    let Outcome::Judged { refused } = outcome else {
        panic!("{outcome:?}")
    };
    let codes: Vec<_> = refused.iter().map(|item| (item.group, item.code)).collect();
    let unknown = ErrorCode::UnknownMemberId;
    assert_eq!(
        codes,
        [(0, ErrorCode::StaleGroupEpoch), (2, unknown), (3, unknown)]
    );
    assert_eq!(cluster.image.group(&group()).cloned(), before);
    assert_eq!(cluster.image.groups().len(), 2);
}

#[test]
fn a_commit_counts_for_its_owner_only_and_in_its_order() {
    let mut cluster = cluster();
    cluster.alter_group(vec![joins("a", &[P0]), joins("b", &[])], &[]);
    assert_eq!(cluster.commit(Some(("a", 1, 2)), P0, 20), None);
    // Late, and repeated: neither changes anything.
    assert_eq!(cluster.commit(Some(("a", 1, 1)), P0, 10), None);
    assert_eq!(cluster.commit(Some(("a", 1, 2)), P0, 99), None);
    assert_eq!(cluster.committed(P0), Some(20));
    // Back on purpose.
    assert_eq!(cluster.commit(Some(("a", 1, 3)), P0, 5), None);
    assert_eq!(cluster.committed(P0), Some(5));
    let code = cluster.commit(Some(("b", 1, 9)), P0, 1);
    assert_eq!(code, Some(ErrorCode::PartitionNotOwned));
    let code = cluster.commit(Some(("x", 1, 9)), P0, 1);
    assert_eq!(code, Some(ErrorCode::UnknownMemberId));
    let code = cluster.commit(Some(("a", 7, 9)), P0, 1);
    assert_eq!(code, Some(ErrorCode::FencedMemberEpoch));
    let code = cluster.commit(None, P0, 1);
    assert_eq!(code, Some(ErrorCode::NonEmptyGroup));
    // It goes to the other one, and comes back: what was sent before is over.
    let release = MemberChange {
        release: vec![P0],
        ..MemberChange::of(member("a"))
    };
    let assign = |name| MemberChange {
        assign: vec![P0],
        ..MemberChange::of(member(name))
    };
    cluster.alter_group(vec![release, assign("b")], &[]);
    assert_eq!(cluster.commit(Some(("b", 2, 1)), P0, 30), None);
    let release = MemberChange {
        release: vec![P0],
        ..MemberChange::of(member("b"))
    };
    cluster.alter_group(vec![release, assign("a")], &[]);
    let code = cluster.commit(Some(("a", 1, 4)), P0, 6);
    assert_eq!(code, Some(ErrorCode::StaleMemberEpoch));
    assert_eq!(cluster.committed(P0), Some(30));
    assert_eq!(cluster.commit(Some(("a", 3, 4)), P0, 31), None);
    assert_eq!(cluster.committed(P0), Some(31));
}

#[test]
fn a_member_takes_no_commit_back() {
    let mut cluster = cluster();
    cluster.alter_group(vec![joins("a", &[P0])], &[]);
    assert_eq!(cluster.commit(Some(("a", 1, 1)), P0, 10), None);
    // A late repeat of the first would come back.
    let mut back = commit(&cluster.image, Some(("a", 1, 2)), P0, 0);
    back.offsets[0].offset = None;
    let commits = vec![back];
    let refused = only(cluster.run(Command::CommitOffsets { commits }));
    assert_eq!(refused, Some(ErrorCode::InvalidRequest));
    assert_eq!(cluster.committed(P0), Some(10));
}

#[test]
fn a_group_whose_offsets_have_changed_since_is_not_deleted() {
    let mut cluster = cluster();
    assert_eq!(cluster.commit(None, P0, 4), None);
    let delete = AlterGroup {
        delete: true,
        ..alter(&cluster.image, Vec::new(), &[])
    };
    // Reset from outside while the coordinator finds that its time is over.
    assert_eq!(cluster.commit(None, P0, 9), None);
    let changes = vec![delete];
    let refused = only(cluster.run(Command::AlterGroups { changes }));
    assert_eq!(refused, Some(ErrorCode::StaleGroupEpoch));
    assert_eq!(cluster.committed(P0), Some(9));
}

#[test]
fn another_coordinator_is_another_epoch_and_the_former_one_changes_nothing() {
    let mut cluster = cluster();
    cluster.alter_group(vec![joins("a", &[P0])], &[]);
    let late = alter(&cluster.image, vec![joins("b", &[])], &[]);
    let late_commit = commit(&cluster.image, Some(("a", 1, 1)), P0, 1);
    let coordinator = cluster.image.coordinator(&group()).coordinator.unwrap();
    let epoch = cluster.image.broker(coordinator).unwrap().epoch;
    cluster.run(Command::FenceBroker {
        node: coordinator,
        epoch,
        cause: "test".to_owned(),
    });
    let next = cluster.image.coordinator(&group());
    assert_ne!(next.coordinator, Some(coordinator));
    assert!(next.epoch > late.coordinator_epoch);
    let outcome = cluster.run(Command::AlterGroups {
        changes: vec![late],
    });
    assert_eq!(only(outcome), Some(ErrorCode::NotCoordinator));
    let commits = vec![late_commit];
    let outcome = cluster.run(Command::CommitOffsets { commits });
    assert_eq!(only(outcome), Some(ErrorCode::NotCoordinator));
    assert_eq!(cluster.commit(Some(("a", 1, 1)), P0, 1), None);
}

#[test]
fn shards_are_spread_and_one_broker_moves_no_other_ones() {
    let mut cluster = cluster();
    let all = |image: &MetadataImage| -> Vec<_> {
        (0..GROUP_SHARDS)
            .map(|shard| image.shard(quorate_types::GroupShard::new(shard)))
            .collect()
    };
    let before = all(&cluster.image);
    for id in 1..=3 {
        let led = before.iter().filter(|of| of.coordinator == Some(node(id)));
        assert!(led.count() >= 10, "node {id}");
    }
    let two = node(2);
    let epoch = cluster.image.broker(two).unwrap().epoch;
    cluster.run(Command::BeginControlledShutdown { node: two, epoch });
    for (before, after) in before.iter().zip(all(&cluster.image)) {
        if before.coordinator == Some(two) {
            assert_ne!(after.coordinator, Some(two));
            assert!(after.epoch > before.epoch);
        } else {
            assert_eq!(*before, after);
        }
    }
    // A new life of it, at another epoch.
    cluster.start(register(2, 2, 2, 1));
    for (before, after) in before.iter().zip(all(&cluster.image)) {
        assert_eq!(before.coordinator, after.coordinator);
        let its = before.coordinator == Some(two);
        assert_eq!(its, after.epoch > before.epoch);
    }
    assert!(
        before
            .iter()
            .all(|shard| shard.epoch > CoordinatorEpoch::ZERO)
    );
}

#[test]
fn a_topic_that_goes_takes_its_offsets_and_owners_with_it() {
    let mut cluster = cluster();
    cluster.alter_group(vec![joins("a", &[P0, P1])], &[]);
    cluster.commit(Some(("a", 1, 1)), P0, 4);
    cluster.run(Command::DeleteTopic { topic_id: TOPIC });
    assert_eq!(cluster.committed(P0), None);
    let group = cluster.image.group(&group()).unwrap();
    assert!(group.owners.is_empty());
    assert!(group.members[&member("a")].owned.is_empty());
    assert_eq!(group.epoch, GroupEpoch::new(2));
}

#[test]
fn a_group_that_is_made_anew_is_another_one() {
    let mut cluster = cluster();
    assert_eq!(cluster.commit(None, P0, 4), None);
    let delete = AlterGroup {
        delete: true,
        ..alter(&cluster.image, Vec::new(), &[])
    };
    let changes = vec![delete];
    let twice = Command::AlterGroups { changes };
    assert_eq!(only(cluster.run(twice.clone())), None);
    assert_eq!(cluster.commit(None, P0, 9), None);
    // Late; of the group that is gone.
    let refused = only(cluster.run(twice));
    assert_eq!(refused, Some(ErrorCode::StaleGroupEpoch));
    assert_eq!(cluster.committed(P0), Some(9));
}

/// Its member has joined again under its id, by a heartbeat that came late, as its commit does.
#[test]
fn a_commit_of_before_a_deletion_does_not_count_in_the_next_group() {
    let mut cluster = cluster();
    cluster.alter_group(vec![joins("a", &[P0])], &[]);
    assert_eq!(cluster.commit(Some(("a", 1, 1)), P0, 4), None);
    assert_eq!(cluster.alter_group(Vec::new(), &["a"]), None);
    let delete = AlterGroup {
        delete: true,
        ..alter(&cluster.image, Vec::new(), &[])
    };
    let changes = vec![delete];
    assert_eq!(only(cluster.run(Command::AlterGroups { changes })), None);
    cluster.image = MetadataImage::from_stored(cluster.image.to_stored());
    assert_eq!(cluster.commit(None, P0, 9), None);
    cluster.alter_group(vec![joins("a", &[P0])], &[]);
    let late = cluster.commit(Some(("a", 1, 2)), P0, 5);
    assert_eq!(late, Some(ErrorCode::StaleMemberEpoch));
    assert_eq!(cluster.committed(P0), Some(9));
}

#[test]
fn a_group_whose_epochs_are_used_up_can_be_deleted_and_made_anew() {
    let mut cluster = cluster();
    assert_eq!(cluster.commit(None, P0, 4), None);
    let used_up = cluster.image.groups.get_mut(&group()).unwrap();
    Arc::make_mut(used_up).epoch = GroupEpoch::new(u32::MAX);
    let refused = Some(ErrorCode::InvalidRequest);
    assert_eq!(cluster.commit(None, P0, 5), refused);
    assert_eq!(cluster.alter_group(vec![joins("a", &[P0])], &[]), refused);
    assert_eq!(cluster.committed(P0), Some(4));
    let delete = AlterGroup {
        delete: true,
        ..alter(&cluster.image, Vec::new(), &[])
    };
    let changes = vec![delete];
    assert_eq!(only(cluster.run(Command::AlterGroups { changes })), None);
    assert_eq!(cluster.commit(None, P0, 5), None);
}

#[test]
fn a_group_goes_only_without_members_and_its_offsets_with_it() {
    let mut cluster = cluster();
    assert_eq!(cluster.commit(None, P0, 4), None);
    cluster.alter_group(vec![joins("a", &[P0])], &[]);
    let delete = |image: &MetadataImage, gone: &[&str]| AlterGroup {
        delete: true,
        ..alter(image, Vec::new(), gone)
    };
    let changes = vec![delete(&cluster.image, &[])];
    let outcome = cluster.run(Command::AlterGroups { changes });
    assert_eq!(only(outcome), Some(ErrorCode::NonEmptyGroup));
    assert_eq!(cluster.committed(P0), Some(4));
    assert_eq!(cluster.alter_group(Vec::new(), &["a"]), None);
    assert!(cluster.image.group(&group()).unwrap().empty_since.is_some());
    let changes = vec![delete(&cluster.image, &[])];
    assert_eq!(only(cluster.run(Command::AlterGroups { changes })), None);
    assert!(cluster.image.group(&group()).is_none());
    assert_eq!(cluster.committed(P0), None);
}
