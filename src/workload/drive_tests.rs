//! The driver against sinks of the test.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use super::*;
use crate::schedule::Plan;

/// Takes everything at once, but stalls once: in the send, or in the acknowledgement.
struct Stalling {
    sent: u64,
    at: u64,
    stall: Duration,
    in_send: bool,
}

enum Fate {
    Done,
    After(Duration),
    Failed,
    Never,
}

impl Delivered for Fate {
    async fn wait(self) -> Result<(), ClientError> {
        match self {
            Self::Done => Ok(()),
            Self::After(time) => {
                tokio::time::sleep(time).await;
                Ok(())
            }
            Self::Failed => Err(ClientError::TimedOut("as the test wants".into())),
            Self::Never => std::future::pending().await,
        }
    }
}

impl Sink for Stalling {
    type Delivery = Fate;

    fn lane(&mut self) -> usize {
        0
    }

    fn lanes(&self) -> usize {
        1
    }

    async fn send(&mut self, _: usize, _: &[u8]) -> Result<Fate, ClientError> {
        self.sent += 1;
        let stalls = self.sent == self.at;
        if stalls && self.in_send {
            tokio::time::sleep(self.stall).await;
        }
        Ok(if stalls && !self.in_send {
            Fate::After(self.stall)
        } else {
            Fate::Done
        })
    }
}

const OPEN: Plan = Plan {
    warm_up: Duration::ZERO,
    duration: Duration::from_secs(60),
    records: Some(500),
    rate: Some(1_000.0),
};

async fn run<S: Sink>(sinks: Vec<S>, plan: Plan, in_flight: usize) -> (Tally, Pace) {
    let schedule = Arc::new(Schedule::new(Instant::now(), plan));
    let monitor = Arc::<Monitor>::default();
    let payload = Payload::new(10, None);
    drive(sinks, &schedule, &payload, in_flight, &monitor)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_loop_counts_a_stall_for_every_record_that_was_meant_to_be_sent_in_it() {
    for in_send in [false, true] {
        let sink = Stalling {
            sent: 0,
            at: 100,
            stall: Duration::from_millis(200),
            in_send,
        };
        let (tally, pace) = run(vec![sink], OPEN, 10_000).await;
        assert_eq!((tally.acknowledged, tally.failed), (500, 0));
        // 200 records fall into the stall, half of them with more than half of it before them.
        let longest = tally.latencies.percentiles().max_ms.unwrap();
        assert!(longest >= 199.0, "{longest}");
        assert!(tally.latencies.over(Duration::from_millis(100)) >= 90);
        // A stall of the send itself holds the generator up, and that is told.
        if in_send {
            assert!(pace.behind >= Duration::from_millis(190), "{pace:?}");
            assert!(pace.waited >= Duration::from_millis(199), "{pace:?}");
        } else {
            assert_eq!(pace.waited, Duration::ZERO);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_loop_counts_a_stall_once_and_keeps_its_bound() {
    let sink = Stalling {
        sent: 0,
        at: 100,
        stall: Duration::from_millis(100),
        in_send: false,
    };
    let plan = Plan { rate: None, ..OPEN };
    let (tally, pace) = run(vec![sink], plan, 8).await;
    assert_eq!(tally.acknowledged, 500);
    let slow = tally.latencies.over(Duration::from_millis(90));
    // At most the eight in flight; a few more where the machine itself stalls.
    assert!((1..=50).contains(&slow), "{slow}");
    assert!(pace.waited >= Duration::from_millis(90), "{pace:?}");
}

/// Refuses one record, fails one, and leaves one undecided.
struct Failing(u64);

impl Sink for Failing {
    type Delivery = Fate;

    fn lane(&mut self) -> usize {
        usize::try_from(self.0 % 2).unwrap()
    }

    fn lanes(&self) -> usize {
        2
    }

    async fn send(&mut self, _: usize, _: &[u8]) -> Result<Fate, ClientError> {
        self.0 += 1;
        match self.0 {
            7 => Err(ClientError::Connection("gone".into())),
            9 => Ok(Fate::Failed),
            10 => Ok(Fate::Never),
            _ => Ok(Fate::Done),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_load_ends_and_counts_what_is_undecided_as_failed() {
    let plan = Plan {
        records: Some(20),
        ..OPEN
    };
    let schedule = Arc::new(Schedule::new(Instant::now(), plan));
    let monitor = Arc::<Monitor>::default();
    let payload = Payload::new(10, None);
    let load = drive(vec![Failing(0)], &schedule, &payload, 100, &monitor);
    let stop = async {
        while monitor.failed() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Everything is sent by then; one will never be decided.
        tokio::time::sleep(Duration::from_millis(100)).await;
        monitor.stop.cancel();
    };
    let (loaded, ()) = tokio::join!(load, stop);
    let (tally, _) = loaded.unwrap();
    assert_eq!(tally.acknowledged + tally.failed, 20);
    // The refused, the failed, the undecided, and those behind the undecided one in its lane.
    assert!(tally.failed >= 3, "{tally:?}");
    assert!(tally.first_error.is_some());
}

/// Refuses for good from its tenth record on.
struct Refusing(u64);

impl Sink for Refusing {
    type Delivery = Fate;

    fn lane(&mut self) -> usize {
        0
    }

    fn lanes(&self) -> usize {
        1
    }

    async fn send(&mut self, _: usize, _: &[u8]) -> Result<Fate, ClientError> {
        self.0 += 1;
        match self.0 {
            ..10 => Ok(Fate::Done),
            _ => Err(ClientError::Closed),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_refused_sender_was_meant_to_send_has_failed() {
    let plan = Plan {
        records: Some(100),
        rate: Some(10_000.0),
        ..OPEN
    };
    let (tally, _) = run(vec![Refusing(0)], plan, 100).await;
    assert_eq!((tally.acknowledged, tally.failed), (9, 91));
    assert_eq!(tally.first_error, Some(ClientError::Closed.to_string()));
}
