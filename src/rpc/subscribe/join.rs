//! What a `Subscribe` asks for.

use quorate_proto::v1;
use quorate_types::ErrorCode;
use quorate_wire::ErrorInfo;

use super::credit::Credit;
use crate::consume::most;
use crate::edge::Edge;
use crate::groups::profile;
use crate::starts::Start;

/// A `Join`, checked.
pub(super) struct Join {
    pub(super) group: String,
    pub(super) profile: v1::MemberProfile,
    /// For partitions of which nothing is committed.
    pub(super) start: Start,
    pub(super) auto_commit: bool,
    /// Bytes of one fetch.
    pub(super) most: u32,
}

impl Join {
    pub(super) fn read(
        edge: &Edge,
        join: v1::subscribe_request::Join,
        host: &str,
    ) -> Result<(Self, Credit), ErrorInfo> {
        let bad = |message: &str| ErrorInfo::new(ErrorCode::InvalidRequest, message);
        quorate_wire::group_id(&join.group)?;
        let said = join
            .profile
            .ok_or_else(|| bad("join needs a profile: the topics to read"))?;
        profile(edge.broker().groups().timing(), &said, host)?;
        let start = v1::Position::try_from(join.start);
        let start = start.map_err(|_| bad("start is no position"))?;
        let credit = Credit::new(join.credit_bytes);
        let credit = credit.ok_or_else(|| bad("credit_bytes: 64 MiB at most"))?;
        let read = Self {
            group: join.group,
            profile: said,
            start: Start::Position(start),
            auto_commit: join.auto_commit,
            most: most(join.max_bytes),
        };
        Ok((read, credit))
    }

    pub(super) fn is_static(&self) -> bool {
        self.profile.instance_id.is_some()
    }
}
