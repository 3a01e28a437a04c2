//! Errors as they cross the wire: a gRPC code that says whether a retry makes sense, and an
//! `ErrorInfo` whose reason is the code by Kafka's name.

use std::collections::BTreeMap;

use quorate_types::{Endpoint, ErrorCode, LeaderEpoch, NodeId};

/// The domain of every `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "quorate";

/// The gRPC codes in use, by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum GrpcCode {
    /// The request is wrong as it is.
    InvalidArgument = 3,
    /// Not answered in time.
    DeadlineExceeded = 4,
    /// There is no such thing.
    NotFound = 5,
    /// There is such a thing.
    AlreadyExists = 6,
    /// A bound was reached.
    ResourceExhausted = 8,
    /// The state of the system forbids it.
    FailedPrecondition = 9,
    /// Outside of what there is.
    OutOfRange = 11,
    /// A fault of the server.
    Internal = 13,
    /// Try again, perhaps elsewhere.
    Unavailable = 14,
    /// What was stored is damaged, or lost.
    DataLoss = 15,
}

/// The gRPC code of an error code.
pub fn grpc_code(code: ErrorCode) -> GrpcCode {
    use ErrorCode as E;
    match code {
        E::UnknownTopicOrPartition | E::UnknownTopicId => GrpcCode::NotFound,
        E::TopicAlreadyExists => GrpcCode::AlreadyExists,
        E::OffsetOutOfRange => GrpcCode::OutOfRange,
        E::RequestTimedOut => GrpcCode::DeadlineExceeded,
        E::ThrottlingQuotaExceeded => GrpcCode::ResourceExhausted,
        E::UnknownServerError => GrpcCode::Internal,
        E::CorruptMessage | E::DataLoss => GrpcCode::DataLoss,
        E::InvalidTopic
        | E::InvalidPartitions
        | E::InvalidReplicationFactor
        | E::InvalidConfig
        | E::InvalidRequest
        | E::InvalidRecord
        | E::InvalidGroupId
        | E::OffsetMetadataTooLarge
        | E::UnsupportedAssignor
        | E::MessageTooLarge
        | E::UnsupportedCompressionType => GrpcCode::InvalidArgument,
        code if code.is_retriable() => GrpcCode::Unavailable,
        _ => GrpcCode::FailedPrecondition,
    }
}

/// An error as clients get it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ErrorInfo {
    /// By Kafka's name.
    pub code: ErrorCode,
    /// In words.
    pub message: String,
    /// What helps: `leader_id`, `leader_host`, `leader_port`, `leader_epoch`; `coordinator_id`,
    /// `coordinator_host`, `coordinator_port`.
    pub metadata: BTreeMap<String, String>,
}

impl ErrorInfo {
    /// An error without metadata.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            metadata: BTreeMap::new(),
        }
    }

    /// Tells who leads instead.
    #[must_use]
    pub fn with_leader(mut self, leader: NodeId, at: &Endpoint, epoch: LeaderEpoch) -> Self {
        self.metadata.insert("leader_id".into(), leader.to_string());
        self.metadata.insert("leader_host".into(), at.host.clone());
        self.metadata
            .insert("leader_port".into(), at.port.to_string());
        self.metadata
            .insert("leader_epoch".into(), epoch.to_string());
        self
    }

    /// Who leads instead, where the error tells.
    pub fn leader(&self) -> Option<(NodeId, Endpoint)> {
        self.node("leader")
    }

    /// Tells who coordinates the group instead.
    #[must_use]
    pub fn with_coordinator(mut self, coordinator: NodeId, at: &Endpoint) -> Self {
        for (what, value) in [
            ("id", coordinator.to_string()),
            ("host", at.host.clone()),
            ("port", at.port.to_string()),
        ] {
            self.metadata.insert(format!("coordinator_{what}"), value);
        }
        self
    }

    /// Who coordinates the group instead, where the error tells.
    pub fn coordinator(&self) -> Option<(NodeId, Endpoint)> {
        self.node("coordinator")
    }

    fn node(&self, what: &str) -> Option<(NodeId, Endpoint)> {
        let field = |name: &str| self.metadata.get(&format!("{what}_{name}"));
        let id = field("id")?.parse().ok()?;
        let host = field("host")?.clone();
        let port = field("port")?.parse().ok()?;
        Some((id, Endpoint { host, port }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_retried_says_so_in_its_grpc_code() {
        for code in ErrorCode::ALL {
            let retry_codes = [
                GrpcCode::Unavailable,
                GrpcCode::NotFound,
                GrpcCode::DeadlineExceeded,
                GrpcCode::ResourceExhausted,
            ];
            assert_eq!(
                code.is_retriable(),
                retry_codes.contains(&grpc_code(*code)),
                "{code}"
            );
        }
    }

    #[test]
    fn an_error_names_the_leader() {
        let at = Endpoint {
            host: "h".into(),
            port: 7,
        };
        let error = ErrorInfo::new(ErrorCode::NotLeaderOrFollower, "no");
        assert_eq!(error.leader(), None);
        let error = error.with_leader(NodeId::new(3), &at, LeaderEpoch::new(9));
        assert_eq!(error.leader(), Some((NodeId::new(3), at.clone())));
        assert_eq!(error.coordinator(), None);
        let error = ErrorInfo::new(ErrorCode::NotCoordinator, "no");
        let error = error.with_coordinator(NodeId::new(2), &at);
        assert_eq!(error.coordinator(), Some((NodeId::new(2), at)));
    }
}
