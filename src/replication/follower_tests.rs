//! A follower whose log and its leader's begin at different offsets (R15).

use std::sync::Arc;
use std::time::Duration;

use quorate_log::{LogOptions, OsDir, PartitionLog, RecoveryContext};
use quorate_record::{Batch, BatchBuilder, Compression};
use quorate_types::{LeaderEpoch, Offset, SubscriptionId, Timestamp};
use tempfile::TempDir;

use crate::follower::{Followed, ReplicaFollower};
use crate::messages::{Accepted, Batches, Diverged, LeaderMessage, OutOfRange};
use crate::tests::{Cluster, ID, Open, node};
use crate::{Action, Context, PartitionView, Timing};

const SUBSCRIPTION: SubscriptionId = SubscriptionId::new(1);

struct Fixture {
    _root: TempDir,
    log: PartitionLog<OsDir>,
    follower: ReplicaFollower,
}

fn batch(records: usize, base: u64, epoch: u32) -> Batch {
    let mut builder = BatchBuilder::new(Compression::None);
    for _ in 0..records {
        builder.push(Timestamp::from_millis(1), None, Some(b"v"), &[]);
    }
    let (base, epoch) = (Offset::new(base), LeaderEpoch::new(epoch));
    builder.build().stamped(base, epoch)
}

impl Fixture {
    /// A follower that has subscribed at epoch 5, after an unclean election at that epoch or not.
    fn new(unclean: bool, prepare: impl FnOnce(&mut PartitionLog<OsDir>)) -> Self {
        let root = TempDir::new().unwrap();
        let dir = Arc::new(OsDir::new(root.path()));
        let cx = RecoveryContext { same_boot: true };
        let opened = PartitionLog::open(dir, "logs/t-0", LogOptions::default(), cx);
        let (mut log, _) = opened.unwrap();
        prepare(&mut log);
        let cluster = Cluster::new();
        let mut view = PartitionView::of(&cluster.image, &ID, node(2), None).unwrap();
        let registration = Arc::make_mut(&mut view.registration);
        registration.leader_epoch = LeaderEpoch::new(5);
        registration.unclean_epoch = unclean.then_some(LeaderEpoch::new(5));
        let timing = Timing::default();
        let mut follower = ReplicaFollower::new(node(1), view, &timing, Duration::ZERO);
        let mut out: Vec<Action<OsDir>> = Vec::new();
        follower.subscribe(&context(), ID, &log, SUBSCRIPTION, &mut out);
        Self {
            _root: root,
            log,
            follower,
        }
    }

    fn take(&mut self, message: LeaderMessage) {
        let timing = Timing::default();
        let followed = self
            .follower
            .take(&context(), &mut self.log, &timing, message);
        assert!(matches!(followed, Followed::Fine), "{followed:?}");
    }

    fn accept(&mut self, log_start: u64) {
        self.take(LeaderMessage::Accepted(Accepted {
            partition: ID,
            subscription: SUBSCRIPTION,
            log_start: Offset::new(log_start),
        }));
    }

    fn push(&mut self, batch: &Batch, high_watermark: u64, log_start: u64) {
        self.take(LeaderMessage::Batches(Batches {
            partition: ID,
            subscription: SUBSCRIPTION,
            high_watermark: Offset::new(high_watermark),
            log_start: Offset::new(log_start),
            bytes: batch.bytes().clone(),
        }));
    }

    fn ends(&self) -> (u64, u64) {
        (self.log.log_start().get(), self.log.log_end().get())
    }
}

fn context() -> Context<'static> {
    Context {
        now: Duration::from_secs(1),
        wall: Timestamp::from_millis(1),
        controller_contact: Duration::ZERO,
        streams: &Open,
    }
}

#[test]
fn a_log_that_begins_above_where_the_histories_part_begins_anew_there() {
    let mut fixture = Fixture::new(true, |log| log.restart_at(Offset::new(7)).unwrap());
    fixture.take(LeaderMessage::Diverged(Diverged {
        partition: ID,
        subscription: SUBSCRIPTION,
        epoch: None,
        end_offset: Offset::new(3),
    }));
    assert_eq!(fixture.ends(), (3, 3));
}

#[test]
fn a_batch_across_where_an_empty_log_was_to_begin_is_taken_after_an_unclean_election() {
    let mut fixture = Fixture::new(true, |log| log.restart_at(Offset::new(1)).unwrap());
    fixture.accept(0);
    fixture.push(&batch(3, 0, 5), 0, 0);
    assert_eq!(fixture.ends(), (0, 3));
}

#[test]
fn what_is_not_committed_below_the_leaders_start_is_given_up_before_anything_is_acked() {
    let mut fixture = Fixture::new(false, |log| {
        let old = batch(2, 0, 1);
        log.append(&old, Timestamp::from_millis(1)).unwrap();
    });
    fixture.accept(2);
    assert_eq!(fixture.ends(), (2, 2));
    fixture.push(&batch(1, 2, 5), 3, 2);
    assert_eq!(fixture.ends(), (2, 3));
}

#[test]
fn one_that_takes_itself_for_in_sync_waits_for_a_newer_image_when_it_is_behind() {
    let mut fixture = Fixture::new(false, |_| {});
    let out_of_range = || {
        LeaderMessage::OutOfRange(OutOfRange {
            partition: ID,
            subscription: SUBSCRIPTION,
            log_start: Offset::new(7),
        })
    };
    fixture.take(out_of_range());
    assert_eq!(fixture.ends(), (0, 0));
    let registration = Arc::make_mut(&mut fixture.follower.view.registration);
    registration.isr.retain(|member| *member != node(2));
    let mut out: Vec<Action<OsDir>> = Vec::new();
    fixture
        .follower
        .subscribe(&context(), ID, &fixture.log, SUBSCRIPTION, &mut out);
    fixture.take(out_of_range());
    assert_eq!(fixture.ends(), (7, 7));
}

#[test]
fn an_empty_log_that_begins_above_an_unclean_elections_history_begins_where_that_does() {
    let mut fixture = Fixture::new(true, |log| log.restart_at(Offset::new(1)).unwrap());
    let registration = Arc::make_mut(&mut fixture.follower.view.registration);
    registration.isr.retain(|member| *member != node(2));
    fixture.accept(0);
    assert_eq!(fixture.ends(), (0, 0));
}

#[test]
fn what_is_lost_is_told_from_the_beginning_of_the_batch_that_is_cut() {
    let mut fixture = Fixture::new(true, |log| {
        for batch in [batch(2, 0, 1), batch(3, 2, 2)] {
            log.append(&batch, Timestamp::from_millis(1)).unwrap();
        }
    });
    let diverged = LeaderMessage::Diverged(Diverged {
        partition: ID,
        subscription: SUBSCRIPTION,
        epoch: Some(LeaderEpoch::new(3)),
        end_offset: Offset::new(4),
    });
    let timing = Timing::default();
    let followed = fixture
        .follower
        .take(&context(), &mut fixture.log, &timing, diverged);
    let Followed::Lost(report) = followed else {
        panic!("{followed:?}")
    };
    let told = (report.from, report.to);
    assert_eq!(told, (Offset::new(2), Some(Offset::new(5))));
    assert_eq!(fixture.ends(), (0, 5), "nothing is cut before it is told");
}
