//! Where two histories part (R4; KIP-101, KIP-279, KIP-595).

use quorate_record::LeaderEpochCache;
use quorate_types::{LeaderEpoch, Offset};

use crate::messages::Subscribe;

/// What a leader finds about a follower's history.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum History {
    /// The follower's log is a prefix of the leader's.
    Agrees,
    /// The leader's largest epoch ≤ the asked one, and its end; none where all are newer.
    Diverges(Option<LeaderEpoch>, Offset),
    /// It ends before the leader's log begins.
    BelowStart,
}

/// Judges a subscription against the leader's log.
pub(crate) fn judge(
    subscribe: &Subscribe,
    epochs: &LeaderEpochCache,
    log_start: Offset,
    log_end: Offset,
) -> History {
    if subscribe.fetch_offset < log_start {
        return History::BelowStart;
    }
    let Some(asked) = subscribe.last_fetched_epoch else {
        // Without a record nothing can differ: its log begins later than the leader's does.
        return if subscribe.fetch_offset <= log_end {
            History::Agrees
        } else {
            History::Diverges(None, log_start)
        };
    };
    match epochs.end_offset_for(asked, log_end) {
        // Nothing of the leader's log can be compared with what lies below its start.
        None if subscribe.fetch_offset == log_start => History::Agrees,
        None => History::Diverges(None, log_start),
        Some((epoch, end)) if epoch != asked || end < subscribe.fetch_offset => {
            History::Diverges(Some(epoch), end)
        }
        Some(_) => History::Agrees,
    }
}

/// Where a follower cuts its log on `Diverged`: the smaller of the leader's end and its own end of
/// its largest epoch ≤ the leader's.
pub(crate) fn cut_at(
    epochs: &LeaderEpochCache,
    log_start: Offset,
    log_end: Offset,
    epoch: Option<LeaderEpoch>,
    end: Offset,
) -> Offset {
    let own = epoch.and_then(|epoch| epochs.end_offset_for(epoch, log_end));
    match (epoch, own) {
        (Some(_), Some((_, own_end))) => end.min(own_end),
        // Nothing of the own log is as old: none of it can be shared. What lies below its start is not
        // in it, where the leader's history goes so far.
        (Some(_), None) if end >= log_start => log_start,
        (Some(_), None) => Offset::ZERO,
        (None, _) => end.min(log_end),
    }
}

#[cfg(test)]
mod tests {
    use quorate_types::{BrokerEpoch, PartitionId, SubscriptionId, TopicId, TopicPartition};

    use super::*;

    #[test]
    fn of_a_log_that_is_newer_than_the_leaders_end_nothing_is_kept_but_where_it_begins() {
        let mut epochs = LeaderEpochCache::default();
        epochs.note_records(LeaderEpoch::new(5), Offset::new(3), Offset::new(7));
        let cut = |end| {
            let epoch = Some(LeaderEpoch::new(2));
            cut_at(
                &epochs,
                Offset::new(3),
                Offset::new(7),
                epoch,
                Offset::new(end),
            )
        };
        assert_eq!(
            cut(3),
            Offset::new(3),
            "the leader has all that was given up here"
        );
        assert_eq!(cut(6), Offset::new(3));
        assert_eq!(cut(2), Offset::ZERO, "it has not");
    }

    #[test]
    fn a_log_without_a_record_agrees_wherever_the_leaders_log_is() {
        let empty_at = |offset| Subscribe {
            partition: TopicPartition::new(TopicId::from_bytes([1; 16]), PartitionId::new(0)),
            subscription: SubscriptionId::new(1),
            leader_epoch: LeaderEpoch::new(2),
            broker_epoch: BrokerEpoch::new(1),
            fetch_offset: Offset::new(offset),
            last_fetched_epoch: None,
        };
        let mut epochs = LeaderEpochCache::default();
        epochs.note_records(LeaderEpoch::new(1), Offset::new(3), Offset::new(7));
        let judge = |offset| judge(&empty_at(offset), &epochs, Offset::new(3), Offset::new(7));
        assert_eq!(judge(2), History::BelowStart);
        for offset in 3..=7 {
            assert_eq!(judge(offset), History::Agrees);
        }
        assert_eq!(judge(8), History::Diverges(None, Offset::new(3)));
    }
}
