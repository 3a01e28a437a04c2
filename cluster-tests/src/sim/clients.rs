//! Clients: idempotent producers that try again until they have an answer, plain ones that do not,
//! and a consumer.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use quorate_record::{Batch, BatchBuilder, Compression, ProducerTag};
use quorate_replication::{Event, Faults, Produce, ProduceError, Produced, RequestId, Status};
use quorate_types::{Acks, NodeId, ProducerEpoch, ProducerId, Sequence, Timestamp};
use rand::Rng;

use super::sight::{Acked, Consumed, payload_of};
use super::world::{PARTITION, Scheduled, World, ms};

/// Batches that a producer has under way.
const IN_FLIGHT: usize = 3;
const REQUEST_TIMEOUT: Duration = ms(700);

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
    /// Tries again under the same sequence until it is answered.
    idempotent: bool,
    next_sequence: u32,
    ops: VecDeque<Op>,
}

/// What an answered request was.
pub(super) struct Request {
    pub(super) client: usize,
    pub(super) mark: u64,
    pub(super) node: NodeId,
    acks: Acks,
    payload: u32,
    records: u64,
}

pub(super) struct Clients {
    pub(super) producers: Vec<Producer>,
    pub(super) requests: BTreeMap<RequestId, Request>,
    next_request: u64,
    next_mark: u64,
    consumed: u64,
    /// Nothing new is sent in that time.
    pub(super) quiet: Range<Duration>,
    pub(super) stopped: bool,
}

impl Clients {
    pub(super) fn new() -> Self {
        let producer = |idempotent| Producer {
            idempotent,
            next_sequence: 0,
            ops: VecDeque::new(),
        };
        Self {
            producers: vec![producer(true), producer(true), producer(false)],
            requests: BTreeMap::new(),
            next_request: 0,
            next_mark: 0,
            consumed: 0,
            quiet: Duration::ZERO..Duration::ZERO,
            stopped: false,
        }
    }

    /// Whether every idempotent producer has had its answers.
    pub(super) fn at_rest(&self) -> bool {
        let mut idempotent = self.producers.iter().filter(|producer| producer.idempotent);
        idempotent.all(|producer| producer.ops.is_empty())
    }
}

impl<F: Faults> World<F> {
    /// A producer has something to say, now and then.
    pub(super) fn producer_turn(&mut self, client: usize) {
        if !self.clients.stopped {
            let speaks = !self.clients.quiet.contains(&self.now);
            if speaks && self.clients.producers[client].ops.len() < IN_FLIGHT {
                self.new_op(client);
            }
            let wait = ms(self.rng.random_range(2..self.pace));
            self.at(wait, Scheduled::ProducerTurn { client });
        }
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
    }

    /// Sends a batch to whom the client takes for the leader.
    pub(super) fn send_op(&mut self, client: usize, mark: u64) {
        let known = self.quorum.registration().and_then(|r| r.leader);
        let nodes = self.node_ids();
        let anyone = nodes[self.rng.random_range(0..nodes.len())];
        let node = known
            .filter(|_| self.rng.random_bool(0.85))
            .unwrap_or(anyone);
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
        };
        self.clients.requests.insert(id, request);
        let (wait, reply_by) = (self.stream_delay(), REQUEST_TIMEOUT);
        self.at(wait, Scheduled::RequestArrives { id });
        self.at(reply_by, Scheduled::RequestTimeout { id });
    }

    pub(super) fn request_arrives(&mut self, id: RequestId) {
        let Some(request) = self.clients.requests.get(&id) else {
            return;
        };
        let ops = &self.clients.producers[request.client].ops;
        let op = ops.iter().find(|op| op.mark == request.mark);
        // A request that the client has given up may arrive all the same.
        let Some(batch) = op.map(|op| op.batch.clone()) else {
            return;
        };
        let (node, acks) = (request.node, request.acks);
        let produce = Produce {
            id,
            batch,
            acks,
            deadline: self.now + ms(500),
            current_epoch: None,
        };
        self.step(node, Event::Produce(produce));
    }

    /// A replica answers: from here on an acknowledgement binds.
    pub(super) fn answered(
        &mut self,
        node: NodeId,
        id: RequestId,
        result: Result<Produced, ProduceError>,
    ) {
        let Some(request) = self.clients.requests.get(&id) else {
            return self.violate(format!("request {} is answered again", id.0));
        };
        let (client, acks) = (request.client, request.acks);
        if let (Ok(produced), Acks::All) = (&result, acks) {
            let base = produced.base_offset.map_or(u64::MAX, |offset| offset.get());
            let acked = Acked {
                base,
                end: base.saturating_add(request.records),
                payload: request.payload,
                epoch: produced.leader_epoch,
            };
            self.note(&format!("node {node} acknowledges {acked:?}"));
            self.acked.push(acked);
        }
        if let Err(ProduceError::DuplicateSequence { got }) = &result {
            self.violate(format!("client {client}: sequence {got} is forgotten"));
        }
        if self.settling || !self.rng.random_bool(0.03) {
            let wait = self.delay();
            let ok = result.is_ok();
            self.at(wait, Scheduled::Answer { id, ok });
        }
    }

    /// An answer reaches the client.
    pub(super) fn answer_arrives(&mut self, id: RequestId, ok: bool) {
        if let Some(request) = self.clients.requests.remove(&id) {
            self.end_attempt(&request, id, ok);
        }
    }

    pub(super) fn request_timed_out(&mut self, id: RequestId) {
        // The request stays known: a late answer must find it, and none may come twice.
        if let Some(request) = self.clients.requests.get(&id) {
            let request = Request { ..*request };
            self.end_attempt(&request, id, false);
        }
    }

    fn end_attempt(&mut self, request: &Request, id: RequestId, ok: bool) {
        let (client, mark) = (request.client, request.mark);
        let producer = &mut self.clients.producers[client];
        let Some(op) = producer.ops.iter_mut().find(|op| op.mark == mark) else {
            return;
        };
        if ok || !producer.idempotent {
            op.done = true;
        } else if op.request == Some(id) {
            op.request = None;
            let wait = ms(self.rng.random_range(5..150));
            self.at(wait, Scheduled::Retry { client, mark });
        }
        // In order, so that a producer never runs ahead of its oldest batch by the broker's window.
        while producer_front_done(&mut self.clients.producers[client]) {}
    }

    /// What waited in a process that has ended is never answered.
    pub(super) fn fail_requests_of(&mut self, node: NodeId) {
        let requests = self.clients.requests.iter();
        let theirs: Vec<RequestId> = requests
            .filter(|(_, request)| request.node == node)
            .map(|(id, _)| *id)
            .collect();
        for id in theirs {
            let wait = self.delay();
            self.at(wait, Scheduled::Answer { id, ok: false });
        }
    }

    /// A consumer reads what some node that takes itself for the leader lets it.
    pub(super) fn consumer_turn(&mut self) {
        let leaders = self.seen.iter().filter_map(|(node, seen)| {
            matches!(seen.status, Status::Leader { .. }).then_some(*node)
        });
        let leaders: Vec<NodeId> = leaders.collect();
        if !leaders.is_empty() {
            let node = leaders[self.rng.random_range(0..leaders.len())];
            self.consume(node);
        }
        let wait = ms(self.rng.random_range(20..200));
        self.at(wait, Scheduled::ConsumerTurn);
    }

    fn consume(&mut self, node: NodeId) {
        let Some(replica) = self.process(node).and_then(|p| p.replica.as_ref()) else {
            return;
        };
        let log = replica.log();
        let from = quorate_types::Offset::new(self.clients.consumed);
        if from >= log.high_watermark() {
            return;
        }
        let read = log.reader().read(from, log.high_watermark(), 2_000);
        let bytes = read.unwrap_or_else(|error| panic!("{PARTITION}: {error}"));
        let batches = Batch::split(bytes).expect("a log holds batches");
        if let Some(last) = batches.last() {
            let end = last.end_offset().get();
            self.clients.consumed = end;
            self.look(None, Some(Consumed { node, end }));
        }
    }
}

fn producer_front_done(producer: &mut Producer) -> bool {
    let done = producer.ops.front().is_some_and(|op| op.done);
    if done {
        producer.ops.pop_front();
    }
    done
}
