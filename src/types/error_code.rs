//! The error codes that leave the cluster, by Kafka's names.

macro_rules! error_codes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, retriable: $retriable:literal;)*) => {
        /// What went wrong, by Kafka's name where Kafka has one.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum ErrorCode { $($(#[$doc])* $variant,)* }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &'static [ErrorCode] = &[$(Self::$variant,)*];

            /// The code as it appears in `google.rpc.ErrorInfo.reason`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Reads a code by its name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }

            /// Whether the same request may succeed later without being changed.
            pub const fn is_retriable(self) -> bool {
                match self { $(Self::$variant => $retriable,)* }
            }
        }
    };
}

error_codes! {
    /// The topic or partition does not exist here (it may soon: metadata can lag).
    UnknownTopicOrPartition = "UNKNOWN_TOPIC_OR_PARTITION", retriable: true;
    /// The topic id does not exist (any more).
    UnknownTopicId = "UNKNOWN_TOPIC_ID", retriable: true;
    /// The topic id is not the one of the topic of that name.
    InconsistentTopicId = "INCONSISTENT_TOPIC_ID", retriable: true;
    /// A topic of that name exists.
    TopicAlreadyExists = "TOPIC_ALREADY_EXISTS", retriable: false;
    /// The topic name is illegal.
    InvalidTopic = "INVALID_TOPIC_EXCEPTION", retriable: false;
    /// The partition count is out of range.
    InvalidPartitions = "INVALID_PARTITIONS", retriable: false;
    /// The replication factor is out of range or above the number of brokers.
    InvalidReplicationFactor = "INVALID_REPLICATION_FACTOR", retriable: false;
    /// A configuration key or value is wrong.
    InvalidConfig = "INVALID_CONFIG", retriable: false;
    /// The request makes no sense as it is.
    InvalidRequest = "INVALID_REQUEST", retriable: false;
    /// Another node leads.
    NotLeaderOrFollower = "NOT_LEADER_OR_FOLLOWER", retriable: true;
    /// No replica may lead at present.
    LeaderNotAvailable = "LEADER_NOT_AVAILABLE", retriable: true;
    /// The request's leader epoch is over.
    FencedLeaderEpoch = "FENCED_LEADER_EPOCH", retriable: true;
    /// The request's leader epoch is newer than the receiver's.
    UnknownLeaderEpoch = "UNKNOWN_LEADER_EPOCH", retriable: true;
    /// Fewer in-sync replicas than `min.insync.replicas`; nothing was appended.
    NotEnoughReplicas = "NOT_ENOUGH_REPLICAS", retriable: true;
    /// Not answered in time; a produce may have been appended: outcome unknown.
    RequestTimedOut = "REQUEST_TIMED_OUT", retriable: true;
    /// The offset is outside the log.
    OffsetOutOfRange = "OFFSET_OUT_OF_RANGE", retriable: false;
    /// An unclean election lost records that the reader had read or was to read (R7).
    DataLoss = "DATA_LOSS", retriable: false;
    /// A new leader does not know the high watermark yet (R10).
    OffsetNotAvailable = "OFFSET_NOT_AVAILABLE", retriable: true;
    /// A batch is malformed or its CRC is wrong.
    CorruptMessage = "CORRUPT_MESSAGE", retriable: false;
    /// A batch breaks a rule (offsets, counts, timestamps).
    InvalidRecord = "INVALID_RECORD", retriable: false;
    /// A batch is larger than `max.message.bytes`.
    MessageTooLarge = "MESSAGE_TOO_LARGE", retriable: false;
    /// The compression codec is not known.
    UnsupportedCompressionType = "UNSUPPORTED_COMPRESSION_TYPE", retriable: false;
    /// The sequence leaves a gap.
    OutOfOrderSequenceNumber = "OUT_OF_ORDER_SEQUENCE_NUMBER", retriable: false;
    /// The sequence is older than the last five batches.
    DuplicateSequenceNumber = "DUPLICATE_SEQUENCE_NUMBER", retriable: false;
    /// A newer instance of this producer exists.
    InvalidProducerEpoch = "INVALID_PRODUCER_EPOCH", retriable: false;
    /// The leader knows no such producer.
    UnknownProducerId = "UNKNOWN_PRODUCER_ID", retriable: false;
    /// The broker epoch is not the current one.
    StaleBrokerEpoch = "STALE_BROKER_EPOCH", retriable: false;
    /// The partition epoch is not the current one.
    InvalidUpdateVersion = "INVALID_UPDATE_VERSION", retriable: false;
    /// A proposed ISR member may not be one (KIP-903).
    IneligibleReplica = "INELIGIBLE_REPLICA", retriable: false;
    /// A node of that id is registered and alive.
    DuplicateBrokerRegistration = "DUPLICATE_BROKER_REGISTRATION", retriable: true;
    /// No broker of that id is registered.
    BrokerIdNotRegistered = "BROKER_ID_NOT_REGISTERED", retriable: false;
    /// The node is not the active controller.
    NotController = "NOT_CONTROLLER", retriable: true;
    /// The broker has lost touch with the controller.
    BrokerNotAvailable = "BROKER_NOT_AVAILABLE", retriable: true;
    /// The replica's disk failed or lost data.
    KafkaStorageError = "KAFKA_STORAGE_ERROR", retriable: true;
    /// A replica is damaged and does not serve.
    ReplicaNotAvailable = "REPLICA_NOT_AVAILABLE", retriable: true;
    /// A bound was reached; slow down.
    ThrottlingQuotaExceeded = "THROTTLING_QUOTA_EXCEEDED", retriable: true;
    /// Feature levels do not fit.
    UnsupportedVersion = "UNSUPPORTED_VERSION", retriable: false;
    /// The cluster id is another.
    InconsistentClusterId = "INCONSISTENT_CLUSTER_ID", retriable: false;
    /// A proposal was repeated out of its window, or by an older incarnation.
    StaleProposal = "STALE_PROPOSAL", retriable: false;
    /// The group id is illegal.
    InvalidGroupId = "INVALID_GROUP_ID", retriable: false;
    /// There is no such group.
    GroupIdNotFound = "GROUP_ID_NOT_FOUND", retriable: false;
    /// The group has members.
    NonEmptyGroup = "NON_EMPTY_GROUP", retriable: false;
    /// The group, or the cluster's groups, have as many members or groups as they may.
    GroupMaxSizeReached = "GROUP_MAX_SIZE_REACHED", retriable: false;
    /// The group has no such member: it left, its session ended, or another took its place.
    UnknownMemberId = "UNKNOWN_MEMBER_ID", retriable: false;
    /// The member's epoch is newer than the group's.
    FencedMemberEpoch = "FENCED_MEMBER_EPOCH", retriable: false;
    /// The partition came to the member at a newer epoch, or the epoch is over.
    StaleMemberEpoch = "STALE_MEMBER_EPOCH", retriable: true;
    /// Another member of the same instance id took over.
    FencedInstanceId = "FENCED_INSTANCE_ID", retriable: false;
    /// A member of the same instance id lives, and has not left.
    UnreleasedInstanceId = "UNRELEASED_INSTANCE_ID", retriable: true;
    /// The assignor is not known.
    UnsupportedAssignor = "UNSUPPORTED_ASSIGNOR", retriable: false;
    /// Another node coordinates the group.
    NotCoordinator = "NOT_COORDINATOR", retriable: true;
    /// No node coordinates the group at present.
    CoordinatorNotAvailable = "COORDINATOR_NOT_AVAILABLE", retriable: true;
    /// The member does not own the partition.
    PartitionNotOwned = "PARTITION_NOT_OWNED", retriable: false;
    /// What is kept beside an offset is too long.
    OffsetMetadataTooLarge = "OFFSET_METADATA_TOO_LARGE", retriable: false;
    /// The group changed meanwhile.
    StaleGroupEpoch = "STALE_GROUP_EPOCH", retriable: true;
    /// A fault of the server itself.
    UnknownServerError = "UNKNOWN_SERVER_ERROR", retriable: false;
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_read_back_from_its_name() {
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_name(code.name()), Some(*code));
        }
    }
}
