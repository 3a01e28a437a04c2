//! Drives senders: each in a thread of its own, so that pacing is exact and a slow send of one
//! holds up no other; their deliveries are awaited in the order of sending, a task a partition.
//!
//! A latency runs from the time a record was meant for (open loop) or from its send (closed loop)
//! until its acknowledgement is seen.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use quorate_client::ClientError;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, JoinSet};

use crate::latencies::Latencies;
use crate::monitor::Monitor;
use crate::payload::Payload;
use crate::report::LoadFailed;
use crate::schedule::{Schedule, Turns};

/// After its time a load waits so long for what is under way …
const DRAIN: Duration = Duration::from_secs(30);
/// … and so long where it was stopped early.
const DRAIN_STOPPED: Duration = Duration::from_secs(5);
/// Records handed to a recorder at a time, and how long one waits for more at most.
const BLOCK: usize = 256;
const HAND_OVER: Duration = Duration::from_micros(200);
/// A batch's records are decided at once: so many of them at most share one look at the clock.
const SAME_TIME: u32 = 16;
/// A paced thread looks so often whether it is to stop.
const LOOK: Duration = Duration::from_millis(50);

/// Where records go.
pub(crate) trait Sink: Send + 'static {
    /// The fate of a record.
    type Delivery: Delivered;

    /// The partition of the next record, as an index below [`lanes`](Sink::lanes).
    fn lane(&mut self) -> usize;

    /// How many partitions there are.
    fn lanes(&self) -> usize;

    /// Takes a record; may wait for room.
    fn send(
        &mut self,
        lane: usize,
        value: &[u8],
    ) -> impl Future<Output = Result<Self::Delivery, ClientError>> + Send;
}

/// A record on its way; those of one lane are decided about in order.
pub(crate) trait Delivered: Send + 'static {
    /// Waits until it is acknowledged or has failed.
    fn wait(self) -> impl Future<Output = Result<(), ClientError>> + Send;
}

/// What became of records.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) latencies: Latencies,
    pub(crate) acknowledged: u64,
    pub(crate) warm_up: u64,
    pub(crate) failed: u64,
    pub(crate) first_error: Option<String>,
    /// When the last measured record was acknowledged.
    pub(crate) last: Option<Instant>,
}

impl Tally {
    pub(crate) fn fail(&mut self, records: u64, error: impl ToString) {
        self.failed += records;
        if records > 0 {
            self.first_error.get_or_insert_with(|| error.to_string());
        }
    }

    fn add(&mut self, other: &Self) {
        self.latencies.add(&other.latencies);
        self.acknowledged += other.acknowledged;
        self.warm_up += other.warm_up;
        self.failed += other.failed;
        if self.first_error.is_none() {
            self.first_error.clone_from(&other.first_error);
        }
        self.last = self.last.max(other.last);
    }
}

/// How a sender kept up.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    sent: u64,
    unsent: u64,
    /// Records that could not even be sent, and why the first could not.
    refused: u64,
    error: Option<ClientError>,
    /// The most that it was behind an intended time of the measured part.
    pub(crate) behind: Duration,
    /// How long it waited for room in the measured part.
    pub(crate) waited: Duration,
}

/// How many of a sender's records are decided, for its bound of those in flight.
#[derive(Debug)]
struct Decided {
    records: AtomicU64,
    wake_at: AtomicU64,
    wake: Notify,
}

impl Decided {
    fn add_one(&self) {
        let records = self.records.fetch_add(1, Ordering::SeqCst) + 1;
        if records >= self.wake_at.load(Ordering::SeqCst) {
            self.wake.notify_one();
        }
    }

    async fn reach(&self, records: u64) {
        self.wake_at.store(records, Ordering::SeqCst);
        while self.records.load(Ordering::SeqCst) < records {
            self.wake.notified().await;
        }
        self.wake_at.store(u64::MAX, Ordering::SeqCst);
    }
}

/// A record with the time that its latency runs from.
type Block<D> = Vec<(Instant, D)>;

struct Lane<D> {
    queue: mpsc::Sender<Block<D>>,
    block: Block<D>,
}

/// Runs all sinks through the schedule, and waits for what they sent.
///
/// # Errors
/// [`LoadFailed::Task`] where a task died; whatever fails otherwise is counted.
pub(crate) async fn drive<S: Sink>(
    sinks: Vec<S>,
    schedule: &Arc<Schedule>,
    payload: &Payload,
    max_in_flight: usize,
    monitor: &Arc<Monitor>,
) -> Result<(Tally, Pace), LoadFailed> {
    let producers = sinks.len();
    let mut tallies = Vec::new();
    let mut recorders = JoinSet::new();
    let mut senders: Vec<JoinHandle<(S, Pace)>> = Vec::new();
    for (index, sink) in sinks.into_iter().enumerate() {
        let decided = Arc::new(Decided {
            records: AtomicU64::new(0),
            wake_at: AtomicU64::new(u64::MAX),
            wake: Notify::new(),
        });
        let mut lanes = Vec::new();
        for _ in 0..sink.lanes() {
            let (queue, blocks) = mpsc::channel(max_in_flight.max(1));
            let tally = Arc::<Mutex<Tally>>::default();
            recorders.spawn(record(
                blocks,
                schedule.measure_from(),
                Arc::clone(&tally),
                Arc::clone(&decided),
                Arc::clone(monitor),
            ));
            tallies.push(tally);
            lanes.push(Lane {
                queue,
                block: Vec::new(),
            });
        }
        let sender = Sender {
            sink,
            lanes,
            decided,
            turns: Turns::new(Arc::clone(schedule), index, producers),
            schedule: Arc::clone(schedule),
            payload: payload.clone(),
            max_in_flight: max_in_flight.max(1) as u64,
            monitor: Arc::clone(monitor),
            handed_over: Instant::now(),
            pace: Pace::default(),
        };
        let runtime = Handle::current();
        senders.push(tokio::task::spawn_blocking(move || {
            runtime.block_on(sender.run())
        }));
    }
    let mut pace = Pace::default();
    let mut kept = Vec::new();
    for sender in senders {
        let (sink, one) = sender.await?;
        // A sink that is dropped gives up what is under way.
        kept.push(sink);
        pace.sent += one.sent;
        pace.unsent += one.unsent;
        pace.behind = pace.behind.max(one.behind);
        pace.waited += one.waited;
        pace.refused += one.refused;
        pace.error = pace.error.or(one.error);
    }
    drain(&mut recorders, monitor).await?;
    drop(kept);
    let mut tally = Tally::default();
    for one in tallies {
        tally.add(&one.lock());
    }
    let decided = tally.acknowledged + tally.warm_up + tally.failed;
    let undecided = pace.sent.saturating_sub(decided);
    if let Some(error) = &pace.error {
        tally.fail(pace.refused, error);
    }
    tally.fail(undecided, "not decided when the load ended");
    let unsent = "the cluster took no more records: some meant to be sent were not";
    tally.fail(pace.unsent, unsent);
    Ok((tally, pace))
}

/// Waits until every recorder is through with what was sent, within the bound.
async fn drain(recorders: &mut JoinSet<()>, monitor: &Monitor) -> Result<(), LoadFailed> {
    let all = async {
        while let Some(ended) = recorders.join_next().await {
            ended?;
        }
        Ok(())
    };
    let bound = async {
        let stopped = async {
            monitor.stop.cancelled().await;
            tokio::time::sleep(DRAIN_STOPPED).await;
        };
        let _either = tokio::time::timeout(DRAIN, stopped).await;
    };
    tokio::select! {
        biased;
        ended = all => ended,
        () = bound => {
            recorders.shutdown().await;
            Ok(())
        }
    }
}

struct Sender<S: Sink> {
    sink: S,
    lanes: Vec<Lane<S::Delivery>>,
    decided: Arc<Decided>,
    turns: Turns,
    schedule: Arc<Schedule>,
    payload: Payload,
    max_in_flight: u64,
    monitor: Arc<Monitor>,
    handed_over: Instant,
    pace: Pace,
}

/// Why a wait for room ended without it.
struct Halted;

impl<S: Sink> Sender<S> {
    async fn run(mut self) -> (S, Pace) {
        let halted = self.send_all().await.is_err();
        self.hand_over().await;
        // A rate meant to send the turns that are left, whatever ended the sending; the one that it
        // ended at is a refused record, or is counted here.
        if !self.monitor.stop.is_cancelled() && self.schedule.is_open_loop() {
            let late = Instant::now();
            self.pace.unsent += u64::from(halted);
            while self.turns.next(late).is_some() {
                self.pace.unsent += 1;
            }
        }
        (self.sink, self.pace)
    }

    async fn send_all(&mut self) -> Result<(), Halted> {
        let open_loop = self.schedule.is_open_loop();
        let mut now = Instant::now();
        while !self.monitor.stop.is_cancelled() {
            let Some(meant) = self.turns.next(now) else {
                return Ok(());
            };
            if open_loop && meant > now {
                self.hand_over().await;
                now = self.sleep_until(meant)?;
            }
            if self.pace.sent - self.decided.records.load(Ordering::Relaxed) >= self.max_in_flight {
                self.wait_below_bound().await?;
                now = Instant::now();
            }
            if now.saturating_duration_since(self.handed_over) >= HAND_OVER {
                self.hand_over().await;
                self.handed_over = now;
            }
            if open_loop && meant >= self.schedule.measure_from() {
                self.pace.behind = self.pace.behind.max(now.saturating_duration_since(meant));
            }
            let from = if open_loop { meant } else { now };
            if !self.send(from).await? {
                return Ok(());
            }
            now = Instant::now();
        }
        Ok(())
    }

    /// Sends the next record; says whether more can follow.
    async fn send(&mut self, from: Instant) -> Result<bool, Halted> {
        let number = self.sink.lane();
        let mut send = pin!(self.sink.send(number, self.payload.next(from)));
        let sent = tokio::select! {
            biased;
            sent = &mut send => sent,
            () = std::future::ready(()) => {
                // It waits for room: meanwhile what was sent before is awaited.
                let began = Instant::now();
                hand_over(&mut self.lanes).await;
                let sent = tokio::select! {
                    sent = &mut send => sent,
                    halted = halt(&self.monitor, &self.schedule) => return Err(halted),
                };
                if from >= self.schedule.measure_from() {
                    self.pace.waited += began.elapsed();
                }
                sent
            }
        };
        let delivery = match sent {
            Ok(delivery) => delivery,
            Err(error) => {
                self.monitor.add_failed(1);
                self.pace.refused += 1;
                // A connection may come back; what is refused here is refused for good.
                let goes_on = matches!(error, ClientError::Connection(_));
                self.pace.error.get_or_insert(error);
                return Ok(goes_on);
            }
        };
        self.pace.sent += 1;
        let lane = &mut self.lanes[number];
        lane.block.push((from, delivery));
        if lane.block.len() >= BLOCK {
            lane.hand_over().await;
        }
        Ok(true)
    }

    async fn hand_over(&mut self) {
        hand_over(&mut self.lanes).await;
    }

    /// Waits until an eighth of the bound is free: a wake-up a record would cost more than records.
    async fn wait_below_bound(&mut self) -> Result<(), Halted> {
        self.hand_over().await;
        let began = Instant::now();
        let free = (self.max_in_flight / 8).max(1);
        let wanted = (self.pace.sent + free).saturating_sub(self.max_in_flight);
        tokio::select! {
            () = self.decided.reach(wanted) => {}
            halted = halt(&self.monitor, &self.schedule) => return Err(halted),
        }
        if began >= self.schedule.measure_from() {
            self.pace.waited += began.elapsed();
        }
        Ok(())
    }

    /// Sleeps, exactly, in this thread.
    fn sleep_until(&self, at: Instant) -> Result<Instant, Halted> {
        loop {
            let now = Instant::now();
            if self.monitor.stop.is_cancelled() {
                return Err(Halted);
            }
            match at.checked_duration_since(now) {
                Some(left) if left > Duration::ZERO => std::thread::sleep(left.min(LOOK)),
                _ => return Ok(now),
            }
        }
    }
}

/// Ends when nobody is to wait for room any more.
async fn halt(monitor: &Monitor, schedule: &Schedule) -> Halted {
    let late = tokio::time::Instant::from_std(schedule.until() + DRAIN);
    tokio::select! {
        () = monitor.stop.cancelled() => Halted,
        () = tokio::time::sleep_until(late) => Halted,
    }
}

async fn hand_over<D>(lanes: &mut [Lane<D>]) {
    for lane in lanes {
        lane.hand_over().await;
    }
}

impl<D> Lane<D> {
    async fn hand_over(&mut self) {
        if !self.block.is_empty() {
            // A recorder ends after its sender, or because the load has ended.
            let _ended = self.queue.send(std::mem::take(&mut self.block)).await;
        }
    }
}

async fn record<D: Delivered>(
    mut blocks: mpsc::Receiver<Block<D>>,
    measure_from: Instant,
    tally: Arc<Mutex<Tally>>,
    decided: Arc<Decided>,
    monitor: Arc<Monitor>,
) {
    while let Some(block) = blocks.recv().await {
        let mut done = 0;
        let mut now = Instant::now();
        let mut same = 0;
        for (from, delivery) in block {
            let mut delivery = pin!(delivery.wait());
            let result = match futures::poll!(delivery.as_mut()) {
                Poll::Ready(result) if same < SAME_TIME => {
                    same += 1;
                    result
                }
                Poll::Ready(result) => {
                    (now, same) = (Instant::now(), 0);
                    result
                }
                Poll::Pending => {
                    let result = delivery.await;
                    (now, same) = (Instant::now(), 0);
                    result
                }
            };
            let mut tally = tally.lock();
            match result {
                Ok(()) if from >= measure_from => {
                    tally.acknowledged += 1;
                    tally.latencies.record(now.saturating_duration_since(from));
                    tally.last = Some(now);
                    done += 1;
                }
                Ok(()) => {
                    tally.warm_up += 1;
                    done += 1;
                }
                Err(error) => {
                    tally.fail(1, error);
                    monitor.add_failed(1);
                }
            }
            drop(tally);
            decided.add_one();
        }
        monitor.add_done(done);
    }
}

#[cfg(test)]
#[path = "drive_tests.rs"]
mod tests;
