//! Producers that have been silent are forgotten, by each replica for itself (R11).

use std::time::Duration;

use quorate_types::Acks;

use crate::tests::Cluster;
use crate::{ProduceError, Timing};

/// Long for a test, short for its steps of 50 ms.
const EXPIRATION: Duration = Duration::from_secs(12);
/// Rounds are ends of a 24th.
const ROUND: Duration = Duration::from_millis(500);

fn cluster() -> Cluster {
    Cluster::with(Timing {
        producer_id_expiration: EXPIRATION,
        ..Timing::default()
    })
}

fn known(cluster: &Cluster, id: u32) -> Vec<u64> {
    let producers = cluster.replica(id).log().producers();
    producers.iter().map(|producer| producer.id.get()).collect()
}

fn refused(cluster: &Cluster, request: u64) -> ProduceError {
    cluster.answers[&request].clone().unwrap_err()
}

#[test]
fn a_silent_producer_is_forgotten_by_every_replica_and_no_sooner() {
    let mut cluster = cluster();
    cluster.produce(1, 0, Acks::All, Some((7, 0)));
    cluster.produce(1, 1, Acks::All, Some((7, 1)));
    cluster.pass(EXPIRATION - ROUND);
    cluster.produce(1, 2, Acks::All, Some((8, 0)));
    for id in 1..=3 {
        assert_eq!(known(&cluster, id), [7, 8]);
    }
    let repeat = cluster.produce(1, 1, Acks::All, Some((7, 1)));
    assert_eq!(cluster.offset(repeat), 1);
    cluster.pass(ROUND * 3);
    for id in 1..=3 {
        assert_eq!(known(&cluster, id), [8]);
    }
    for sequence in [1, 2, 9] {
        let late = cluster.produce(1, 3, Acks::All, Some((7, sequence)));
        let unknown = matches!(
            refused(&cluster, late),
            ProduceError::UnknownProducer { got } if got.get() == sequence
        );
        assert!(unknown, "{:?}", cluster.answers[&late]);
    }
    assert_eq!(cluster.values(1), ["0", "1", "2"]);
    // One that begins anew is taken, as always.
    let anew = cluster.produce_as(1, 3, (7, 1, 0));
    assert_eq!(cluster.offset(anew), 3);
    for id in 1..=3 {
        assert_eq!(known(&cluster, id), [7, 8]);
    }
}

#[test]
fn a_leader_that_has_not_forgotten_a_producer_goes_on_with_it() {
    let mut cluster = cluster();
    cluster.produce(1, 0, Acks::All, Some((7, 0)));
    cluster.pass(EXPIRATION / 2);
    // It knows of nothing but its log: for it the producer has just written.
    cluster.kill(1);
    cluster.fence(1);
    cluster.start(1, 2);
    cluster.run();
    cluster.pass(EXPIRATION / 2 + ROUND * 3);
    assert_eq!((known(&cluster, 1).len(), known(&cluster, 2).len()), (1, 0));
    let forgetful = cluster.leader();
    assert_ne!(forgetful, 1);
    let unknown = cluster.produce(forgetful, 1, Acks::All, Some((7, 1)));
    assert!(matches!(
        refused(&cluster, unknown),
        ProduceError::UnknownProducer { .. }
    ));
    for id in [2, 3] {
        cluster.fence(id);
    }
    assert_eq!(cluster.leader(), 1);
    let next = cluster.produce(1, 1, Acks::Leader, Some((7, 1)));
    assert_eq!(cluster.offset(next), 1);
    let repeat = cluster.produce(1, 0, Acks::Leader, Some((7, 0)));
    assert_eq!(cluster.offset(repeat), 0);
}

#[test]
fn a_process_that_stood_still_ends_one_round_and_not_all_that_have_passed() {
    let mut cluster = cluster();
    cluster.produce(1, 0, Acks::All, Some((7, 0)));
    cluster
        .nodes
        .get_mut(&crate::tests::node(3))
        .unwrap()
        .paused = true;
    cluster.pass(EXPIRATION * 2);
    assert!(known(&cluster, 1).is_empty() && known(&cluster, 2).is_empty());
    cluster
        .nodes
        .get_mut(&crate::tests::node(3))
        .unwrap()
        .paused = false;
    cluster.pass(ROUND);
    assert_eq!(known(&cluster, 3), [7]);
}
