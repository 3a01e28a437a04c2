//! What happens to the voters under one seed, and the checks at its end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use quorate_metadata::MetadataImage;
use quorate_types::DirectoryId;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::LONG;
use super::clients::{Clients, Running, allocate, register_a_broker};
use super::net::{Cut, Net};
use super::power::End;
use super::record::Record;
use super::voter::{Controllers, Voter};
use crate::handle::QuorumHandle;

const STEPS: usize = 8;
const CLIENTS: u64 = 4;
/// What is under way at the end is over within this.
const SETTLED: Duration = Duration::from_secs(5);

/// The voters of one run.
pub(crate) struct Script {
    pub(crate) voters: Vec<Voter>,
    pub(crate) controllers: Controllers,
    pub(crate) net: Arc<Net>,
    pub(crate) record: Arc<Record>,
    running: Running,
}

/// Waits for something, at most [`LONG`].
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < until, "waited for {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

impl Script {
    /// Three voters that have a cluster id and a broker for topics.
    pub(crate) async fn begin(record: Arc<Record>) -> Self {
        let net = Arc::new(Net::default());
        let voters: Vec<Voter> = (1..=3).map(|id| Voter::new(id, &net, &record)).collect();
        let controllers = voters.iter().map(|v| (v.node, v.endpoint())).collect();
        let mut script = Self {
            voters,
            controllers,
            net,
            record,
            running: Running::default(),
        };
        for at in 0..3 {
            script.start(at).await;
        }
        register_a_broker(&script.handle(0)).await;
        script
    }

    pub(crate) fn handle(&self, at: usize) -> QuorumHandle {
        self.voters[at].handle().expect("it runs")
    }

    pub(crate) async fn start(&mut self, at: usize) {
        let voter = &mut self.voters[at];
        voter.start(&self.controllers).await;
        let handle = voter.handle().expect("it runs");
        self.running.lock().insert(voter.node, handle);
    }

    pub(crate) async fn end(&mut self, at: usize, end: End) {
        self.running.lock().remove(&self.voters[at].node);
        self.voters[at].end(end).await;
    }

    /// Ends all of them at once.
    pub(crate) async fn end_all(&mut self, end: End) {
        for voter in &mut self.voters {
            voter.let_end(end);
        }
        self.end_all_as_they_were_let().await;
    }

    /// The same, where it was said how before.
    pub(crate) async fn end_all_as_they_were_let(&mut self) {
        for voter in &mut self.voters {
            voter.ended().await;
            self.running.lock().remove(&voter.node);
        }
    }

    /// The index of the voter that leads.
    pub(crate) async fn leader(&self) -> usize {
        let leads = |voter: &Voter| {
            let handle = voter.handle();
            handle.is_some_and(|handle| handle.leadership().borrow().is_self)
        };
        eventually("a leader", || self.voters.iter().any(leads)).await;
        self.voters.iter().position(leads).unwrap_or(0)
    }

    /// Every voter runs, votes under its present name and nobody else does.
    async fn settled(&self) {
        let present: BTreeSet<DirectoryId> = self.voters.iter().map(|v| v.directory).collect();
        let all = || {
            self.voters.iter().all(|voter| {
                let Some(handle) = voter.handle() else {
                    return false;
                };
                let voters = handle.describe().voters;
                present == voters.iter().map(|voter| voter.id.directory).collect()
            })
        };
        eventually("every voter to vote under its present name", all).await;
    }

    /// All have applied the same, and have the same image byte for byte.
    pub(crate) async fn agree(&self) {
        let images = || -> Vec<_> {
            self.voters
                .iter()
                .filter_map(Voter::handle)
                .map(|h| h.image())
                .collect()
        };
        let equal = |images: &[Arc<MetadataImage>]| {
            let mut pairs = images.windows(2);
            pairs.all(|two| two[0].applied() == two[1].applied())
        };
        eventually("equal indexes", || equal(&images())).await;
        // A change of voters may still be under way, and applied here and not there: what counts is
        // taken at one moment, where nobody has applied more, if there is such a moment.
        let deadline = Instant::now() + SETTLED;
        let mut end = images();
        while Instant::now() < deadline {
            end = images();
            let index = end.first().map_or(0, |image| image.applied().index.get());
            if equal(&end) && self.record.highest() <= index {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        let encoded: Vec<Vec<u8>> = end.iter().map(|image| image.encode()).collect();
        if encoded.windows(2).any(|two| two[0] != two[1]) {
            self.record.violated("the images differ".to_owned());
        }
        for image in end {
            self.record.ends_with(&image);
        }
    }

    /// Plays the faults of a seed; what was found is in `record`.
    pub(crate) async fn run(seed: u64, record: Arc<Record>) -> String {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut script = Self::begin(record).await;
        let clients = Arc::new(Clients::default());
        let proposing: Vec<JoinHandle<()>> = (0..CLIENTS)
            .map(|of| {
                let running = Arc::clone(&script.running);
                let seed = rng.random();
                tokio::spawn(Arc::clone(&clients).propose(running, seed, of, CLIENTS))
            })
            .collect();
        let mut done = Vec::new();
        for _ in 0..STEPS {
            sleep(Duration::from_millis(rng.random_range(20..400))).await;
            done.push(script.fault(&mut rng).await);
        }
        script.net.heal();
        for at in 0..3 {
            if script.voters[at].handle().is_none() {
                script.start(at).await;
            }
        }
        script.settled().await;
        for client in proposing {
            client.abort();
            let _aborted = client.await;
            clients.abandoned();
        }
        let given = allocate(&script.handle(0), LONG).await.expect("a quorum");
        script.agree().await;
        let image = script.handle(0).image();
        clients.check(&image, given, &script.record);
        for at in 0..3 {
            script.end(at, End::KilledAfterSync).await;
        }
        format!(
            "{} proposals acknowledged, {} applied, under {}",
            clients.acknowledged(),
            image.applied().index,
            done.join(", ")
        )
    }

    /// One fault, and what ends it.
    async fn fault(&mut self, rng: &mut StdRng) -> String {
        let at = rng.random_range(0..3);
        let pause = Duration::from_millis(rng.random_range(0..600));
        match rng.random_range(0..10) {
            kind @ 0..=4 => {
                let end = match kind {
                    0 => End::KilledBeforeSync,
                    1 => End::KilledAfterSync,
                    _ => End::PowerLoss,
                };
                self.end(at, end).await;
                sleep(pause).await;
                self.start(at).await;
                format!("{end:?} of {}", at + 1)
            }
            5 => {
                self.end_all(End::PowerLoss).await;
                for at in 0..3 {
                    self.start(at).await;
                }
                "power loss of all".to_owned()
            }
            6 => {
                // One at a time: two of three that forget are more than a quorum can bear.
                self.net.heal();
                self.settled().await;
                self.end(at, End::KilledAfterSync).await;
                self.voters[at].wipe();
                sleep(pause).await;
                self.start(at).await;
                self.settled().await;
                format!("wipe of {}", at + 1)
            }
            _ => {
                let how = [Cut::Refused, Cut::Swallowed, Cut::AnswerLost][rng.random_range(0..3)];
                let (to, from) =
                    [(true, true), (true, false), (false, true)][rng.random_range(0..3)];
                let me = self.voters[at].node;
                for other in self.voters.iter().map(|v| v.node).filter(|n| *n != me) {
                    if to {
                        self.net.cut(other, me, how);
                    }
                    if from {
                        self.net.cut(me, other, how);
                    }
                }
                sleep(pause + Duration::from_millis(400)).await;
                if rng.random_bool(0.5) {
                    self.net.heal();
                }
                format!("{} cut off, {how:?} to it {to} from it {from}", at + 1)
            }
        }
    }
}
