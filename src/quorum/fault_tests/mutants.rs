//! The checks can fail. A wiped voter is another member: under its old name they find what it
//! breaks, under a new one, in the same course of events, there is no quorum until the other voter is
//! back, and nothing is lost. And disks that leave syncs out are found, so that the copies of
//! [`super::power`] are shown to lose what they should.

use std::sync::Arc;
use std::time::Duration;

use super::LONG;
use super::clients::allocate;
use super::net::Cut;
use super::power::End;
use super::record::Record;
use super::script::{Script, eventually};

/// What a wiped voter is called. The product knows only [`New`]: a directory id is drawn with the
/// directory.
trait Identity {
    const HANDED_ON: bool;
}

struct New;
struct HandedOn;

impl Identity for New {
    const HANDED_ON: bool = false;
}

impl Identity for HandedOn {
    const HANDED_ON: bool = true;
}

/// An id is acknowledged by the leader and one voter while the third is cut off; the leader goes, the
/// other is wiped, the third is back. Gives what was acknowledged, and what those two gave then.
async fn acknowledged_then_forgotten<I: Identity>(record: Arc<Record>) -> (u64, Option<u64>) {
    let mut script = Script::begin(record).await;
    let leader = script.leader().await;
    let (wiped, third) = ((leader + 1) % 3, (leader + 2) % 3);
    let cut_off = script.voters[third].node;
    // It has everything so far: it will stand for election with a whole log.
    script.agree().await;
    for other in [leader, wiped].map(|at| script.voters[at].node) {
        script.net.cut(other, cut_off, Cut::Refused);
        script.net.cut(cut_off, other, Cut::Refused);
    }
    let handle = script.handle(leader);
    let mut acknowledged = 0;
    for _ in 0..3 {
        acknowledged = allocate(&handle, LONG).await.expect("two of three");
    }
    script.end(leader, End::KilledAfterSync).await;
    script.end(wiped, End::KilledAfterSync).await;
    if I::HANDED_ON {
        script.voters[wiped].wipe_under_its_old_name();
    } else {
        script.voters[wiped].wipe();
    }
    script.start(wiped).await;
    script.net.heal();
    let patience = if I::HANDED_ON {
        LONG
    } else {
        Duration::from_secs(3)
    };
    let given = allocate(&script.handle(third), patience).await.ok();
    if !I::HANDED_ON {
        script.start(leader).await;
        let next = allocate(&script.handle(third), LONG)
            .await
            .expect("two of three");
        assert!(next > acknowledged, "{next} after {acknowledged}");
        let directory = script.voters[wiped].directory;
        let handle = script.handle(third);
        eventually("the wiped voter's vote under its new name", || {
            let voters = handle.describe().voters;
            voters.len() == 3 && voters.iter().any(|v| v.id.directory == directory)
        })
        .await;
        script.agree().await;
    }
    (acknowledged, given)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_voter_under_its_old_name_loses_what_was_acknowledged() {
    let record = Arc::new(Record::default());
    let (acknowledged, given) = acknowledged_then_forgotten::<HandedOn>(record.clone()).await;
    let given = given.expect("a quorum with one that forgot");
    assert!(given <= acknowledged, "{given} is given twice");
    let violations = record.violations();
    println!("{violations:#?}");
    assert!(
        violations.iter().any(|what| what.contains("had applied")),
        "the check finds two entries at one index: {violations:#?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_voter_under_a_new_name_does_not_count_until_it_has_caught_up() {
    let record = Arc::new(Record::default());
    let (_, given) = acknowledged_then_forgotten::<New>(record.clone()).await;
    assert_eq!(given, None, "no quorum while the other voter is down");
    assert_eq!(record.violations(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_that_leave_syncs_out_lose_what_was_acknowledged() {
    let record = Arc::new(Record::default());
    let mut script = Script::begin(record.clone()).await;
    let handle = script.handle(0);
    let mut acknowledged = allocate(&handle, LONG).await.expect("a quorum");
    for voter in &mut script.voters {
        voter.let_end(End::LyingDisk);
    }
    // Until so many of them are without power that nobody acknowledges any more.
    while let Ok(id) = allocate(&handle, Duration::from_secs(2)).await {
        acknowledged = id;
    }
    script.end_all_as_they_were_let().await;
    for at in 0..3 {
        script.start(at).await;
    }
    let given = allocate(&script.handle(0), LONG).await.expect("a quorum");
    assert!(given <= acknowledged, "{given} after {acknowledged}");
    script.agree().await;
    let violations = record.violations();
    println!("{violations:#?}");
    assert!(!violations.is_empty(), "the checks find it");
}
