//! Appending what clients send (R1, R11) and answering it (R3).

use std::time::Duration;

use quorate_log::{Dir, PartitionLog};
use quorate_record::{SequenceCheck, SequenceError};
use quorate_types::{Acks, Offset, Timestamp, TimestampType};

use crate::Faults;
use crate::events::{Action, Context, Produce, ProduceError, Produced, RequestId, Timing};
use crate::leader::ReplicaLeader;

/// A produce that waits for the high watermark.
pub(crate) struct Pending {
    pub(crate) base: Offset,
    pub(crate) deadline: Duration,
    pub(crate) append_time: Option<Timestamp>,
}

/// What an append led to.
pub(crate) enum Appended {
    /// Answered, or waiting for the high watermark.
    Taken,
    /// Refused before anything was appended.
    Refused(ProduceError),
    /// The disk failed.
    Failed(String),
}

impl<F: Faults> ReplicaLeader<F> {
    pub(crate) fn produce<D: Dir>(
        &mut self,
        cx: &Context<'_>,
        log: &mut PartitionLog<D>,
        timing: &Timing,
        produce: Produce,
        out: &mut Vec<Action<D>>,
    ) -> Appended {
        match self.check(cx, log, timing, &produce) {
            Err(error) => Appended::Refused(error),
            Ok(SequenceCheck::Duplicate { base, end }) => {
                let early = F::DUPLICATE_EARLY && produce.acks == Acks::All;
                self.answer_at(
                    log,
                    produce.id,
                    if early { Acks::Leader } else { produce.acks },
                    produce.deadline,
                    base,
                    end,
                    None,
                    out,
                );
                Appended::Taken
            }
            Ok(SequenceCheck::Append) => {
                let Produce {
                    id,
                    batch,
                    acks,
                    deadline,
                    ..
                } = produce;
                let log_append_time =
                    self.view.settings.timestamp_type == TimestampType::LogAppendTime;
                let append_time = log_append_time.then_some(cx.wall);
                let batch = batch.stamped(log.log_end(), self.epoch);
                let batch = match append_time {
                    Some(at) => batch.with_log_append_time(at),
                    None => batch,
                };
                if let Err(error) = log.append(&batch, cx.wall) {
                    return Appended::Failed(error.to_string());
                }
                let (base, end) = (batch.base_offset(), batch.end_offset());
                self.answer_at(log, id, acks, deadline, base, end, append_time, out);
                Appended::Taken
            }
        }
    }

    fn check<D: Dir>(
        &self,
        cx: &Context<'_>,
        log: &PartitionLog<D>,
        timing: &Timing,
        produce: &Produce,
    ) -> Result<SequenceCheck, ProduceError> {
        let current = self.epoch;
        match produce.current_epoch {
            _ if F::ANY_EPOCH => {}
            Some(asked) if asked < current => return Err(ProduceError::FencedEpoch { current }),
            Some(asked) if asked > current => return Err(ProduceError::UnknownEpoch { current }),
            _ => {}
        }
        let header = produce.batch.header();
        let limit = self.view.settings.max_message_bytes;
        if header.size > limit as usize {
            return Err(ProduceError::TooLarge {
                size: header.size,
                limit,
            });
        }
        if header.is_control || header.is_transactional {
            let why = "control batches and transactions are not taken";
            return Err(ProduceError::InvalidRecord(why.to_owned()));
        }
        if header.timestamp_type == TimestampType::LogAppendTime
            && self.view.settings.timestamp_type == TimestampType::CreateTime
        {
            let why = "the batch says that its time is the leader's: only the leader may say so";
            return Err(ProduceError::InvalidRecord(why.to_owned()));
        }
        if produce.acks != Acks::All
            && cx.now.saturating_sub(cx.controller_contact) > timing.session_timeout
        {
            return Err(ProduceError::ControllerSilent);
        }
        if produce.acks == Acks::All {
            let isr = self.view.registration.isr.len();
            let required = self
                .view
                .registration
                .effective_min_isr(&self.view.settings);
            if isr < required {
                return Err(ProduceError::NotEnoughReplicas { isr, required });
            }
        }
        let Some(tag) = &header.producer else {
            return Ok(SequenceCheck::Append);
        };
        log.producers()
            .check(tag, header.record_count)
            .map_err(|error| match error {
                SequenceError::OutOfOrder { expected, got } => {
                    ProduceError::OutOfOrderSequence { expected, got }
                }
                SequenceError::Duplicate { got } => ProduceError::DuplicateSequence { got },
                SequenceError::UnknownProducer { got } => ProduceError::UnknownProducer { got },
                SequenceError::StaleEpoch { current, .. } => {
                    ProduceError::StaleProducerEpoch { current }
                }
            })
    }

    /// Answers as `acks` asks, now or when the high watermark has reached `end`.
    #[allow(clippy::too_many_arguments)]
    fn answer_at<D: Dir>(
        &mut self,
        log: &PartitionLog<D>,
        id: RequestId,
        acks: Acks,
        deadline: Duration,
        base: Offset,
        end: Offset,
        append_time: Option<Timestamp>,
        out: &mut Vec<Action<D>>,
    ) {
        let pending = Pending {
            base,
            deadline,
            append_time,
        };
        if acks == Acks::All && log.high_watermark() < end && !F::ACK_EARLY {
            self.pending.insert((end, id), pending);
            return;
        }
        let base_offset = (acks != Acks::None).then_some(base);
        let produced = Produced {
            base_offset,
            ..self.promise(log, end, &pending)
        };
        out.push(Action::Answer {
            id,
            result: Ok(produced),
        });
    }

    fn promise<D: Dir>(&self, log: &PartitionLog<D>, end: Offset, pending: &Pending) -> Produced {
        let (replicas, fsynced) = self.holders(log, end);
        Produced {
            base_offset: Some(pending.base),
            leader_epoch: self.epoch,
            append_time: pending.append_time,
            replicas,
            fsynced,
        }
    }

    /// Answers what the high watermark has passed.
    pub(crate) fn acknowledge<D: Dir>(&mut self, log: &PartitionLog<D>, out: &mut Vec<Action<D>>) {
        while let Some(entry) = self.pending.first_entry() {
            let (end, id) = *entry.key();
            if end > log.high_watermark() {
                break;
            }
            let pending = entry.remove();
            let result = Ok(self.promise(log, end, &pending));
            out.push(Action::Answer { id, result });
        }
    }

    /// Answers what has waited too long: outcome unknown.
    pub(crate) fn expire<D: Dir>(&mut self, now: Duration, out: &mut Vec<Action<D>>) {
        let late: Vec<_> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.deadline <= now)
            .map(|(key, _)| *key)
            .collect();
        for key in late {
            self.pending.remove(&key);
            out.push(Action::Answer {
                id: key.1,
                result: Err(ProduceError::TimedOut),
            });
        }
    }

    /// Answers everything that waits when the leadership goes: never success (R3).
    pub(crate) fn abandon<D: Dir>(&mut self, out: &mut Vec<Action<D>>) {
        for ((_, id), pending) in std::mem::take(&mut self.pending) {
            let result = if F::SUCCESS_AFTER_LOSS {
                Ok(Produced {
                    base_offset: Some(pending.base),
                    leader_epoch: self.epoch,
                    append_time: None,
                    replicas: 0,
                    fsynced: 0,
                })
            } else {
                Err(ProduceError::LeadershipLost)
            };
            out.push(Action::Answer { id, result });
        }
    }
}
