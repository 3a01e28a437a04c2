//! Numbers with a meaning. Each is its own type, so that an epoch cannot be added to an offset.

/// A number that must not be negative was negative on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} must not be negative, got {value}")]
pub struct NegativeNumber {
    /// Which number it was.
    pub what: &'static str,
    /// What was sent.
    pub value: i64,
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $raw:ty, $signed:ty, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name($raw);

        impl $name {
            /// The smallest value.
            pub const ZERO: Self = Self(0);

            /// Wraps a raw number.
            pub const fn new(value: $raw) -> Self {
                Self(value)
            }

            /// The raw number.
            pub const fn get(self) -> $raw {
                self.0
            }

            /// The value that follows. Panics where the number space is used up.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.checked_add(1).expect(concat!($what, " space is not exhausted")))
            }

            /// The value that follows; none where the number space is used up.
            pub const fn checked_next(self) -> Option<Self> {
                match self.0.checked_add(1) {
                    Some(next) => Some(Self(next)),
                    None => None,
                }
            }

            /// The number as Kafka's formats and protobuf carry it.
            pub const fn to_signed(self) -> $signed {
                self.0 as $signed
            }

            /// Reads the number from its signed form.
            ///
            /// # Errors
            /// [`NegativeNumber`] for a negative value.
            pub const fn from_signed(value: $signed) -> Result<Self, NegativeNumber> {
                if value < 0 {
                    return Err(NegativeNumber { what: $what, value: value as i64 });
                }
                Ok(Self(value as $raw))
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A record's position in a partition, 0 … 2⁶³−1.
    Offset, u64, i64, "offset"
);
number!(
    /// Counts the leaderships of a partition (KIP-101); bumped on every leader change.
    LeaderEpoch, u32, i32, "leader epoch"
);
number!(
    /// Counts the changes of a partition's registration: the compare-and-set guard.
    PartitionEpoch, u32, i32, "partition epoch"
);
number!(
    /// A broker's registration: the log index of its `RegisterBroker` (KIP-903).
    BrokerEpoch, u64, i64, "broker epoch"
);
number!(
    /// A partition's number within its topic, from 0.
    PartitionId, u32, i32, "partition"
);
number!(
    /// An idempotent producer (KIP-98).
    ProducerId, u64, i64, "producer id"
);
number!(
    /// Fences an older instance of the same producer.
    ProducerEpoch, u16, i16, "producer epoch"
);
number!(
    /// A producer's record counter in a partition; wraps to 0 after 2³¹−1.
    Sequence, u32, i32, "sequence"
);
number!(
    /// An index in the metadata log.
    RaftIndex, u64, i64, "raft index"
);
number!(
    /// A Raft term.
    Term, u64, i64, "term"
);
number!(
    /// A follower's subscription to one partition; never reused by a process.
    SubscriptionId, u64, i64, "subscription id"
);
number!(
    /// A share of the groups: those whose ids hash to it have one coordinator.
    GroupShard, u32, i32, "group shard"
);
number!(
    /// Counts the coordinators of a group shard; bumped whenever it gets another one, or none.
    CoordinatorEpoch, u32, i32, "coordinator epoch"
);
number!(
    /// Counts the changes of a group's members and of what they own. A member's epoch is the group's at
    /// the last change that concerned it (KIP-848).
    GroupEpoch, u32, i32, "group epoch"
);
number!(
    /// Orders the commits of one member: rises with each.
    CommitSeq, u64, i64, "commit sequence"
);

impl Offset {
    /// The offset `count` records further.
    #[must_use]
    pub const fn plus(self, count: u64) -> Self {
        Self(
            self.0
                .checked_add(count)
                .expect("offset space is not exhausted"),
        )
    }

    /// How many offsets lie between `earlier` and this one; 0 where `earlier` is not earlier.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl ProducerEpoch {
    /// The last that a batch can carry.
    pub const LAST: Self = Self(i16::MAX as u16);
}

impl Sequence {
    /// The sequence `count` records further, wrapping after 2³¹−1 as Kafka's does.
    #[must_use]
    pub const fn plus(self, count: u32) -> Self {
        Self(((self.0 as u64 + count as u64) % (1 << 31)) as u32)
    }
}

/// Milliseconds since 1970-01-01 UTC, as records carry them; negative is before that.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Default,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// Wraps milliseconds since the epoch.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the epoch.
    pub const fn millis(self) -> i64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_wraps_after_two_to_the_thirty_one() {
        assert_eq!(Sequence::new(i32::MAX as u32).plus(1), Sequence::ZERO);
        assert_eq!(Sequence::new(i32::MAX as u32 - 1).plus(3), Sequence::new(1));
    }

    #[test]
    fn a_negative_number_is_refused_by_name() {
        let error = Offset::from_signed(-1).unwrap_err();
        assert_eq!(error.to_string(), "offset must not be negative, got -1");
    }
}
