//! Producers: idempotent ones that try again until they have an answer, plain ones that do not.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use quorate_record::{Batch, BatchBuilder, Compression, ProducerTag};
use quorate_replication::{Event, Produce, ProduceError, Produced, RequestId};
use quorate_types::{
    Acks, LeaderEpoch, NodeId, ProducerEpoch, ProducerId, Sequence, Timestamp, TopicPartition,
};
use rand::Rng;

use super::schedule::{Scheduled, ms, us};
use super::sight::{Acked, Answered, Deed, payload_of};
use super::trace::note;
use super::world::World;

/// Batches that a producer has under way.
const IN_FLIGHT: usize = 3;
/// How long a client waits for an answer.
const REQUEST_TIMEOUT: Duration = ms(70);
/// How long a broker may wait for the in-sync replicas.
const PATIENCE: Duration = ms(50);

/// One batch on its way.
pub(super) struct Op {
    mark: u64,
    batch: Batch,
    acks: Acks,
    done: bool,
    /// The request that an answer is awaited of.
    request: Option<RequestId>,
}

pub(super) struct Producer {
    pub(super) to: TopicPartition,
    /// Tries again under the same sequence until it is answered.
    idempotent: bool,
    /// The longest pause between two batches, in microseconds.
    pace: u64,
    next_sequence: u32,
    ops: VecDeque<Op>,
    /// Its topic is gone.
    ended: bool,
}

/// A request that may be answered.
#[derive(Clone, Copy)]
pub(super) struct Request {
    client: usize,
    mark: u64,
    node: NodeId,
    acks: Acks,
    payload: u32,
    records: u64,
    epoch: Option<LeaderEpoch>,
    /// It reached the replica: an answer must come once at most.
    answered: bool,
}

#[derive(Default)]
pub(super) struct Clients {
    pub(super) producers: Vec<Producer>,
    requests: BTreeMap<RequestId, Request>,
    next_request: u64,
    next_mark: u64,
    /// Nothing new is sent in that time.
    pub(super) quiet: Range<Duration>,
    pub(super) stopped: bool,
}

impl Clients {
    /// Whether every idempotent producer of a partition has had its answers.
    pub(super) fn at_rest(&self, id: TopicPartition) -> bool {
        let mut theirs = self.producers.iter().filter(|p| p.to == id && !p.ended);
        theirs.all(|producer| !producer.idempotent || producer.ops.is_empty())
    }
}

impl World {
    /// Clients for a new partition; a busy one has more of them.
    pub(super) fn add_producers(&mut self, to: TopicPartition, busy: bool) {
        let pace = self.plan.pace;
        let kinds: &[(bool, u64)] = if busy {
            &[(true, pace), (true, pace), (false, pace)]
        } else {
            &[(true, pace * 4)]
        };
        for (idempotent, pace) in kinds.iter().copied() {
            let client = self.clients.producers.len();
            self.clients.producers.push(Producer {
                to,
                idempotent,
                pace,
                next_sequence: 0,
                ops: VecDeque::new(),
                ended: false,
            });
            let wait = us(self.rng.random_range(0..5_000));
            self.at(wait, Scheduled::ProducerTurn { client });
        }
    }

    fn begin_anew(&mut self, client: usize) {
        let producer = &mut self.clients.producers[client];
        if producer.ended {
            return;
        }
        producer.ended = true;
        producer.ops.clear();
        let to = producer.to;
        self.add_producers(to, false);
        if self.clients.stopped {
            self.new_op(self.clients.producers.len() - 1);
        }
    }

    pub(super) fn end_producers(&mut self, to: TopicPartition) {
        let theirs = self.clients.producers.iter_mut();
        for producer in theirs.filter(|producer| producer.to == to) {
            producer.ended = true;
            producer.ops.clear();
        }
    }

    /// One more batch for each partition: it must be taken once faults are over.
    pub(super) fn last_words(&mut self) {
        self.clients.stopped = true;
        for client in 0..self.clients.producers.len() {
            let producer = &self.clients.producers[client];
            if producer.idempotent && !producer.ended {
                self.new_op(client);
            }
        }
    }

    /// A producer has something to say, now and then.
    pub(super) fn producer_turn(&mut self, client: usize) -> bool {
        let producer = &self.clients.producers[client];
        if self.clients.stopped || producer.ended {
            return false;
        }
        let pace = producer.pace;
        let speaks = !self.clients.quiet.contains(&self.now) && producer.ops.len() < IN_FLIGHT;
        if speaks {
            self.new_op(client);
        }
        let wait = us(self.rng.random_range(500..pace));
        self.at(wait, Scheduled::ProducerTurn { client });
        speaks
    }

    fn new_op(&mut self, client: usize) {
        self.clients.next_mark += 1;
        let mark = self.clients.next_mark;
        let records = self.rng.random_range(1..=3_u32);
        let padding = self.rng.random_range(0..120);
        let producer = &mut self.clients.producers[client];
        let mut builder = BatchBuilder::new(Compression::None);
        let acks = if producer.idempotent {
            let base_sequence = Sequence::new(producer.next_sequence);
            producer.next_sequence += records;
            builder = builder.producer(ProducerTag {
                id: ProducerId::new(client as u64),
                epoch: ProducerEpoch::ZERO,
                base_sequence,
            });
            Acks::All
        } else {
            [Acks::All, Acks::All, Acks::Leader, Acks::None][self.rng.random_range(0..4)]
        };
        for record in 0..records {
            let value = format!("{mark}/{record}/{:padding$}", "");
            builder.push(Timestamp::from_millis(1), None, Some(value.as_bytes()), &[]);
        }
        producer.ops.push_back(Op {
            mark,
            batch: builder.build(),
            acks,
            done: false,
            request: None,
        });
        self.send_op(client, mark);
        if acks == Acks::All && self.clients.producers[client].idempotent {
            // The network, or a forwarder, may bring it twice.
            let twice = !self.settling && self.rng.random_bool(0.06);
            if twice {
                let wait = us(self.rng.random_range(0..3_000));
                self.at(wait, Scheduled::Retry { client, mark });
            }
        }
    }

    /// Sends a batch to whom the client takes for the leader.
    pub(super) fn send_op(&mut self, client: usize, mark: u64) {
        let to = self.clients.producers[client].to;
        let registration = self.quorum.latest().partition(&to);
        let known = registration.and_then(|r| r.leader);
        let epoch = registration.map(|r| r.leader_epoch);
        let anyone = NodeId::new(self.rng.random_range(1..=self.plan.nodes));
        let node = known
            .filter(|_| self.settling || self.rng.random_bool(0.9))
            .unwrap_or(anyone);
        let epoch = match self.rng.random_range(0..10) {
            0..5 => None,
            5 => epoch.map(|epoch| LeaderEpoch::new(epoch.get().saturating_sub(1))),
            _ => epoch,
        };
        let ops = &mut self.clients.producers[client].ops;
        let Some(op) = ops.iter_mut().find(|op| op.mark == mark && !op.done) else {
            return;
        };
        self.clients.next_request += 1;
        let id = RequestId(self.clients.next_request);
        op.request = Some(id);
        let request = Request {
            client,
            mark,
            node,
            acks: op.acks,
            payload: payload_of(&op.batch),
            records: u64::from(op.batch.header().record_count),
            epoch,
            answered: false,
        };
        self.clients.requests.insert(id, request);
        note!(
            self,
            Some(to),
            "client {client} sends batch {mark} to node {node}"
        );
        let wait = self.stream_delay();
        self.at(wait, Scheduled::RequestArrives { id });
        self.at(REQUEST_TIMEOUT, Scheduled::RequestTimeout { id });
    }

    /// Where a request goes.
    pub(super) fn addressee_of(&self, id: RequestId) -> Option<NodeId> {
        self.clients.requests.get(&id).map(|request| request.node)
    }

    pub(super) fn request_arrives(&mut self, id: RequestId) {
        let Some(request) = self.clients.requests.get(&id).copied() else {
            return;
        };
        let producer = &self.clients.producers[request.client];
        let (to, node) = (producer.to, request.node);
        let op = producer.ops.iter().find(|op| op.mark == request.mark);
        // A request that the client has given up may arrive all the same.
        let Some(batch) = op.map(|op| op.batch.clone()) else {
            return;
        };
        if self.process(node).is_none() {
            return;
        }
        if self.slot_mut(node, to).is_none() {
            let wait = self.delay();
            return self.at(wait, Scheduled::Answer { id, ok: false });
        }
        let produce = Produce {
            id,
            batch,
            acks: request.acks,
            deadline: self.clock_of(node) + PATIENCE,
            current_epoch: request.epoch,
        };
        self.step(node, to, Event::Produce(produce));
    }

    /// A replica answers: from here on an acknowledgement binds.
    pub(super) fn answered(
        &mut self,
        node: NodeId,
        to: TopicPartition,
        id: RequestId,
        result: Result<Produced, ProduceError>,
    ) {
        let Some(request) = self.clients.requests.get_mut(&id) else {
            return self.violate(Some(to), format!("request {} is not known", id.0));
        };
        if std::mem::replace(&mut request.answered, true) {
            return self.violate(Some(to), format!("request {} is answered again", id.0));
        }
        let request = *request;
        if let Err(error) = &result {
            note!(
                self,
                Some(to),
                "node {node} refuses {}/{}: {error}",
                request.client,
                request.mark
            );
        }
        if let Ok(produced) = &result
            && let Some(base) = produced.base_offset
        {
            let acked = Acked {
                base: base.get(),
                end: base.get() + request.records,
                payload: request.payload,
                epoch: produced.leader_epoch,
            };
            note!(
                self,
                Some(to),
                "node {node} acknowledges {acked:?} ({:?})",
                request.acks
            );
            let all = request.acks == Acks::All;
            if all && let Some(watched) = self.partitions.get_mut(&to) {
                self.counts.acked += 1;
                watched.acknowledge(acked.clone());
            }
            self.deeds.push(Deed::Answered(Answered {
                node,
                acked,
                asked_epoch: request.epoch,
                all,
            }));
        }
        // What its sequences follow on was lost, or is behind where a log begins.
        let forgotten = self.partitions.get(&to).is_some_and(|watched| {
            let mut seen = watched.seen.values();
            watched.unclean.is_some() || seen.any(|seen| seen.log_start > 0)
        });
        match &result {
            Err(ProduceError::OutOfOrderSequence { .. } | ProduceError::UnknownProducer { .. })
                if forgotten =>
            {
                self.begin_anew(request.client);
            }
            Err(ProduceError::DuplicateSequence { got }) if !forgotten => {
                let what = format!("client {}: sequence {got} is forgotten", request.client);
                self.violate(Some(to), what);
            }
            _ => {}
        }
        if self.settling || !self.rng.random_bool(0.03) {
            let wait = self.delay();
            // A repeat of what is long in the log: clients take that for success.
            let repeat = matches!(result, Err(ProduceError::DuplicateSequence { .. }));
            let ok = repeat || result.is_ok();
            self.at(wait, Scheduled::Answer { id, ok });
        }
    }

    /// An answer reaches the client.
    pub(super) fn answer_arrives(&mut self, id: RequestId, ok: bool) {
        if let Some(request) = self.clients.requests.get(&id).copied() {
            self.end_attempt(&request, id, ok);
        }
    }

    pub(super) fn request_timed_out(&mut self, id: RequestId) -> bool {
        // The request stays known: a late answer must find it, and none may come twice.
        let Some(request) = self.clients.requests.get(&id).copied() else {
            return false;
        };
        self.end_attempt(&request, id, false)
    }

    fn end_attempt(&mut self, request: &Request, id: RequestId, ok: bool) -> bool {
        let (client, mark) = (request.client, request.mark);
        let producer = &mut self.clients.producers[client];
        let Some(op) = producer.ops.iter_mut().find(|op| op.mark == mark) else {
            return false;
        };
        if ok || !producer.idempotent {
            op.done = true;
        } else if op.request == Some(id) {
            op.request = None;
            let wait = us(self.rng.random_range(500..15_000));
            self.at(wait, Scheduled::Retry { client, mark });
        }
        // In order, so that a producer never runs ahead of its oldest batch by the broker's window.
        let ops = &mut self.clients.producers[client].ops;
        while ops.front().is_some_and(|op| op.done) {
            ops.pop_front();
        }
        true
    }

    /// What waited in a process that has ended is never answered.
    pub(super) fn fail_requests_of(&mut self, node: NodeId) {
        let under_way = self.clients.producers.iter();
        let under_way = under_way.flat_map(|producer| &producer.ops);
        let theirs: Vec<RequestId> = under_way
            .filter_map(|op| op.request)
            .filter(|id| self.addressee_of(*id) == Some(node))
            .collect();
        for id in theirs {
            let wait = self.delay();
            self.at(wait, Scheduled::Answer { id, ok: false });
        }
    }
}
