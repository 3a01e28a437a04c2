//! Whole quorums on loopback: made, used, hit, restarted.

mod common;

use std::time::{Duration, Instant};

use common::{LONG, Member, agree, allocate, controllers, endpoint, leader, three};
use quorate_metadata::{Command, Outcome};
use quorate_quorum::{ProposeError, QuorumError};
use quorate_types::{ClusterId, Term};

const MULTI: usize = 2;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(MULTI)
        .enable_all()
        .build()
        .expect("a runtime")
}

fn run(test: impl Future<Output = ()>) {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
    runtime().block_on(test);
}

#[test]
fn three_empty_members_make_one_cluster_and_all_can_propose() {
    run(async {
        let (mut members, _) = three().await;
        let first = members[0].handle().image().cluster_id();
        let mut ids = Vec::new();
        for member in &members {
            assert_eq!(member.handle().image().cluster_id(), first);
            ids.push(allocate(&member.handle()).await);
        }
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 3, "no command was done twice");
        agree(&members).await;
        let index = members[1].handle().read_index().await.unwrap();
        members[1].handle().wait_applied(index).await;
        let description = members[2].handle().describe();
        assert_eq!(description.voters.len(), 3);
        assert!(description.observers.is_empty());
        for member in &mut members {
            member.kill().await;
        }
    });
}

#[test]
fn a_killed_leader_is_replaced_at_once_and_nothing_is_lost() {
    run(async {
        let (mut members, list) = three().await;
        for _ in 0..20 {
            allocate(&members[0].handle()).await;
        }
        let old = leader(&members).await;
        members[old].kill().await;
        let began = Instant::now();
        let survivor = (old + 1) % 3;
        let next = allocate(&members[survivor].handle()).await;
        let gap = began.elapsed();
        println!("the gap was {gap:?}");
        assert!(gap < LONG);
        let again = allocate(&members[(old + 2) % 3].handle()).await;
        assert!(again > next);
        members[old].start(&list).await;
        agree(&members).await;
        for member in &mut members {
            member.kill().await;
        }
    });
}

#[test]
fn leadership_is_handed_over() {
    run(async {
        let (mut members, _) = three().await;
        let old = leader(&members).await;
        let handle = members[old].handle();
        let term = handle.leadership().borrow().term;
        handle.hand_over().await;
        assert!(!handle.leadership().borrow().is_self);
        allocate(&handle).await;
        assert!(handle.leadership().borrow().term > term);
        for member in &mut members {
            member.kill().await;
        }
    });
}

#[test]
fn what_was_decided_survives_a_restart_of_all() {
    run(async {
        let (mut members, list) = three().await;
        let mut last = 0;
        for _ in 0..30 {
            last = allocate(&members[1].handle()).await;
        }
        agree(&members).await;
        let before = members[0].handle().image();
        for member in &mut members {
            member.kill().await;
        }
        for member in &mut members {
            member.start(&list).await;
        }
        assert_eq!(allocate(&members[2].handle()).await, last + 1);
        agree(&members).await;
        assert_eq!(
            members[0].handle().image().cluster_id(),
            before.cluster_id()
        );
        for member in &mut members {
            member.kill().await;
        }
    });
}

#[test]
fn two_of_three_go_on_and_one_alone_does_not() {
    run(async {
        let (mut members, list) = three().await;
        members[0].kill().await;
        allocate(&members[1].handle()).await;
        members[1].kill().await;
        let alone = members[2].handle();
        let command = vec![Command::AllocateProducerIds { count: 1 }];
        let refused = alone.propose(command, Duration::from_millis(700)).await;
        assert!(refused.is_err(), "{refused:?}");
        assert!(
            alone
                .read_index_within(Duration::from_millis(300))
                .await
                .is_err()
        );
        members[0].start(&list).await;
        allocate(&alone).await;
        members[1].start(&list).await;
        agree(&members).await;
        for member in &mut members {
            member.kill().await;
        }
    });
}

#[test]
fn an_observer_that_comes_late_is_given_a_snapshot() {
    run(async {
        let (mut members, list) = three().await;
        let handle = members[0].handle();
        for _ in 0..25 {
            let some = (0..10).map(|_| allocate(&handle));
            futures::future::join_all(some).await;
        }
        let until = Instant::now() + LONG;
        while members[leader(&members).await]
            .handle()
            .describe()
            .purged
            .is_none()
        {
            assert!(Instant::now() < until, "nothing was purged");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut observer = Member::new(7);
        observer.start(&list).await;
        common::wait_for_cluster(&observer.handle()).await;
        let until = Instant::now() + LONG;
        while observer.handle().describe().snapshot.is_none() {
            assert!(Instant::now() < until, "it was given no snapshot");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        allocate(&observer.handle()).await;
        members.push(observer);
        agree(&members).await;
        let leading = leader(&members).await;
        assert_eq!(members[leading].handle().describe().observers.len(), 1);
        // It comes back with its own disk.
        members[3].kill().await;
        allocate(&members[0].handle()).await;
        members[3].start(&list).await;
        allocate(&members[3].handle()).await;
        agree(&members).await;
        // And all of them from snapshots.
        for member in &mut members {
            member.kill().await;
        }
        for member in &mut members {
            member.start(&list).await;
        }
        allocate(&members[3].handle()).await;
        agree(&members).await;
        for member in &mut members {
            member.kill().await;
        }
    });
}

#[test]
fn a_voter_with_another_disk_gets_its_vote_back_under_a_new_name() {
    run(async {
        let (mut members, list) = three().await;
        allocate(&members[0].handle()).await;
        let lost = members[2].handle().describe().voters[2].id;
        members[2].kill().await;
        members[2].wipe();
        members[2].start(&list).await;
        let until = Instant::now() + LONG;
        loop {
            let seen = members[2].handle().describe();
            let votes = seen
                .voters
                .iter()
                .any(|v| v.id.directory == members[2].directory);
            let gone = !seen
                .voters
                .iter()
                .chain(&seen.observers)
                .any(|m| m.id == lost);
            if votes && gone && seen.voters.len() == 3 {
                break;
            }
            assert!(Instant::now() < until, "the vote did not move: {seen:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // The new voter counts.
        members[0].kill().await;
        allocate(&members[2].handle()).await;
        for member in members.iter_mut().filter(|member| member.is_running()) {
            member.kill().await;
        }
    });
}

#[test]
fn a_command_of_another_term_is_never_done() {
    run(async {
        let mut members = vec![Member::new(1)];
        let list = controllers(&members);
        members[0].start(&list).await;
        let handle = members[0].handle();
        common::wait_for_cluster(&handle).await;
        let command = || vec![Command::AllocateProducerIds { count: 1 }];
        let old = handle
            .propose_in_term(Term::new(1_000), command(), LONG)
            .await;
        assert!(matches!(old, Err(ProposeError::NotCommitted(_))), "{old:?}");
        leader(&members).await;
        let term = handle.leadership().borrow().term;
        let done = handle.propose_in_term(term, command(), LONG).await.unwrap();
        assert!(
            matches!(done[..], [Outcome::ProducerIds { .. }]),
            "{done:?}"
        );
        members[0].kill().await;
    });
}

#[test]
fn a_node_of_another_cluster_or_without_its_memory_does_not_start() {
    run(async {
        let mut members = vec![Member::new(1)];
        let list = controllers(&members);
        members[0].start(&list).await;
        common::wait_for_cluster(&members[0].handle()).await;

        let mut stranger = Member::new(2);
        let own = vec![(stranger.node, endpoint(stranger.address))];
        stranger.start(&own).await;
        common::wait_for_cluster(&stranger.handle()).await;
        stranger.kill().await;
        let refused = stranger.try_start(&list).await;
        assert!(
            matches!(refused, Err(QuorumError::ForeignCluster { .. })),
            "{refused:?}"
        );

        members[0].kill().await;
        members[0].cluster_id = Some(ClusterId::from_bytes([7; 16]));
        let refused = members[0].try_start(&list).await;
        assert!(
            matches!(refused, Err(QuorumError::ForeignCluster { .. })),
            "{refused:?}"
        );

        let mut forgetful = Member::new(3);
        forgetful.cluster_id = Some(ClusterId::from_bytes([7; 16]));
        let own = vec![(forgetful.node, endpoint(forgetful.address))];
        let refused = forgetful.try_start(&own).await;
        assert!(
            matches!(refused, Err(QuorumError::Forgotten { .. })),
            "{refused:?}"
        );
    });
}

#[test]
fn a_log_whose_snapshot_is_damaged_does_not_start() {
    run(async {
        let mut members = vec![Member::new(1)];
        let list = controllers(&members);
        members[0].start(&list).await;
        let handle = members[0].handle();
        let until = Instant::now() + LONG;
        while handle.describe().purged.is_none() {
            assert!(Instant::now() < until, "nothing was purged");
            futures::future::join_all((0..20).map(|_| allocate(&handle))).await;
        }
        members[0].kill().await;
        for file in std::fs::read_dir(members[0].path().join("snapshots")).unwrap() {
            let path = file.unwrap().path();
            let mut bytes = std::fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
        let refused = members[0].try_start(&list).await;
        assert!(
            matches!(refused, Err(QuorumError::Storage { .. })),
            "{refused:?}"
        );
    });
}
