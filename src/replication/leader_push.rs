//! Bringing the log to the followers: pushed as it is appended, within a window a partition and
//! what room the stream has.

use quorate_log::{Dir, PartitionLog, ReadError};
use quorate_record::Batch;
use quorate_types::{Offset, TopicPartition};
use tracing::error;

use crate::Faults;
use crate::events::{Action, Context, Timing};
use crate::leader::{ReplicaLeader, Subscription};
use crate::messages::{Batches, Heartbeat, LeaderMessage, OutOfRange};

impl<F: Faults> ReplicaLeader<F> {
    /// Pushes what every follower can take.
    ///
    /// # Errors
    /// Which file cannot be read, and why.
    pub(crate) fn push<D: Dir>(
        &mut self,
        cx: &Context<'_>,
        partition: TopicPartition,
        log: &PartitionLog<D>,
        timing: &Timing,
        out: &mut Vec<Action<D>>,
    ) -> Result<(), String> {
        for follower in self.followers.values_mut() {
            let Some(subscription) = &mut follower.subscription else {
                continue;
            };
            if subscription.next < log.log_start() {
                // R15: it was cut off by what was given up meanwhile.
                let message = LeaderMessage::OutOfRange(OutOfRange {
                    partition,
                    subscription: subscription.id,
                    log_start: log.log_start(),
                });
                let stream = subscription.stream;
                follower.subscription = None;
                out.push(Action::ToFollower { stream, message });
                continue;
            }
            match push_to(cx, partition, log, timing, subscription, out) {
                Ok(()) => {}
                Err(error) => {
                    follower.subscription = None;
                    match error {
                        ReadError::NotThere(offset) => {
                            error!(%partition, %offset, "a follower asks for what is not there");
                        }
                        error => return Err(error.to_string()),
                    }
                }
            }
        }
        Ok(())
    }

    /// Signs of life: where the high watermark has moved, and now and then.
    pub(crate) fn beat<D: Dir>(
        &mut self,
        cx: &Context<'_>,
        partition: TopicPartition,
        log: &PartitionLog<D>,
        timing: &Timing,
        out: &mut Vec<Action<D>>,
    ) {
        let high_watermark = log.high_watermark();
        for follower in self.followers.values_mut() {
            let Some(subscription) = &mut follower.subscription else {
                continue;
            };
            let idle = cx.now.saturating_sub(subscription.last_sent) >= timing.heartbeat_interval;
            if idle || subscription.told_high_watermark < high_watermark {
                subscription.told_high_watermark = high_watermark;
                subscription.last_sent = cx.now;
                let message = LeaderMessage::Heartbeat(Heartbeat {
                    partition,
                    subscription: subscription.id,
                    high_watermark,
                    log_start: log.log_start(),
                });
                out.push(Action::ToFollower {
                    stream: subscription.stream,
                    message,
                });
            }
        }
    }

    /// Whether some follower has not been told the high watermark.
    pub(crate) fn owes_high_watermark(&self, high_watermark: Offset) -> bool {
        self.followers.values().any(|follower| {
            let subscription = follower.subscription.as_ref();
            subscription.is_some_and(|current| current.told_high_watermark < high_watermark)
        })
    }
}

/// Pushes to one follower, until it can take no more.
fn push_to<D: Dir>(
    cx: &Context<'_>,
    partition: TopicPartition,
    log: &PartitionLog<D>,
    timing: &Timing,
    subscription: &mut Subscription,
    out: &mut Vec<Action<D>>,
) -> Result<(), ReadError> {
    let mut room = cx.streams.room(subscription.stream);
    while subscription.next < log.log_end()
        && subscription.bytes_under_way < timing.window_bytes
        && room > 0
    {
        let read = log
            .reader()
            .read(subscription.next, log.log_end(), timing.push_bytes);
        let bytes = read?;
        if bytes.is_empty() {
            return Ok(());
        }
        let Some(end) = Batch::end_of(&bytes) else {
            return Err(ReadError::NotThere(subscription.next));
        };
        let size = bytes.len() as u64;
        room = room.saturating_sub(bytes.len());
        subscription.next = end;
        subscription.under_way.push_back((end, size));
        subscription.bytes_under_way += size;
        subscription.told_high_watermark = log.high_watermark();
        subscription.last_sent = cx.now;
        let message = LeaderMessage::Batches(Batches {
            partition,
            subscription: subscription.id,
            high_watermark: log.high_watermark(),
            log_start: log.log_start(),
            bytes,
        });
        out.push(Action::ToFollower {
            stream: subscription.stream,
            message,
        });
    }
    Ok(())
}
