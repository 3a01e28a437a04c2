//! How a member of a group works.

use std::time::Duration;

use quorate_proto::v1;
use quorate_types::{Assignor, GroupId, InstanceId, Offset, Timestamp, TopicName};

use crate::consumer::ConsumerOptions;
use crate::error::ClientError;

/// Where a partition begins for which the group has committed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StartPosition {
    /// At the first record that is still there.
    Earliest,
    /// After the last one: only what comes from now on.
    #[default]
    Latest,
    /// At the first record that is at least so young, else after the last one.
    Timestamp(Timestamp),
    /// At this offset, in every partition; where it lies outside of the log, at its nearer end.
    Offset(Offset),
}

/// How a member of a group works. Made by [`GroupOptions::new`], and changed where it is to differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupOptions {
    /// The group: 1–249 bytes without control characters. All who name it share the partitions.
    pub group: String,
    /// What is read; topics that do not exist yet are read once they do.
    pub topics: Vec<String>,
    /// Makes it a static member (KIP-345): one that is back under this name within its session keeps
    /// its partitions. One whose name another member still has joins once that one's session is over.
    /// By default it is none.
    pub instance_id: Option<String>,
    /// What the program calls itself; shown only (default `quorate-client`).
    pub client_id: String,
    /// How partitions are shared (default uniform).
    pub assignor: Assignor,
    /// A member that is not heard for so long is none any more, and what it had goes to others
    /// (default 45 s). It reads no more itself after seven eighths of that: clocks differ.
    pub session_timeout: Duration,
    /// What a member is to give up it must have given up within this: poll so often (default 5
    /// minutes).
    pub rebalance_timeout: Duration,
    /// Where a partition begins for which nothing is committed (default at the end).
    pub start: StartPosition,
    /// How often that is committed which was returned by the polls before the last one; none: only
    /// [`crate::GroupConsumer::commit`] commits (default 5 s, 1 ms at least).
    pub auto_commit: Option<Duration>,
    /// How long a commit is tried (default 30 s).
    pub commit_timeout: Duration,
    /// How records are fetched.
    pub fetch: ConsumerOptions,
}

impl GroupOptions {
    /// A member of `group` that reads `topics`, with defaults otherwise.
    pub fn new<T: Into<String>>(
        group: impl Into<String>,
        topics: impl IntoIterator<Item = T>,
    ) -> Self {
        Self {
            group: group.into(),
            topics: topics.into_iter().map(Into::into).collect(),
            instance_id: None,
            client_id: "quorate-client".to_owned(),
            assignor: Assignor::default(),
            session_timeout: Duration::from_secs(45),
            rebalance_timeout: Duration::from_secs(300),
            start: StartPosition::default(),
            auto_commit: Some(Duration::from_secs(5)),
            commit_timeout: Duration::from_secs(30),
            fetch: ConsumerOptions::default(),
        }
    }

    /// Whether names are legal.
    pub(super) fn check(&self) -> Result<(), ClientError> {
        GroupId::new(&self.group).map_err(|why| invalid(&why))?;
        if let Some(instance) = &self.instance_id {
            InstanceId::new(instance).map_err(|why| invalid(&why))?;
        }
        check_topics(&self.topics)
    }

    /// As the coordinator is told.
    pub(super) fn profile(&self) -> v1::MemberProfile {
        let assignor = match self.assignor {
            Assignor::Uniform => v1::Assignor::Uniform,
            Assignor::Range => v1::Assignor::Range,
        };
        v1::MemberProfile {
            topics: self.topics.clone(),
            instance_id: self.instance_id.clone(),
            client_id: self.client_id.clone(),
            session_timeout_ms: millis(self.session_timeout),
            rebalance_timeout_ms: millis(self.rebalance_timeout),
            assignor: assignor.into(),
        }
    }
}

fn invalid(why: &dyn std::fmt::Display) -> ClientError {
    ClientError::Invalid(why.to_string())
}

/// Whether these can be subscribed to.
pub(super) fn check_topics(topics: &[String]) -> Result<(), ClientError> {
    if topics.is_empty() {
        return Err(invalid(&"a member of a group reads at least one topic"));
    }
    for topic in topics {
        TopicName::new(topic).map_err(|why| invalid(&format!("topic {topic:?}: {why}")))?;
    }
    Ok(())
}

/// As the protocol has it: 1 ms at least, 49 days at most.
pub(super) fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX).max(1)
}
