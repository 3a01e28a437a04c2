//! A group of one member, whose coordinator does as the test says, on one of several nodes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use quorate_proto::v1;
use quorate_proto::v1::groups_server::{Groups, GroupsServer};
use quorate_types::ErrorCode;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use super::{Answers, TOPIC_ID, not_here, refused};

/// What the coordinator was told, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    Beat {
        port: u16,
        member: String,
        epoch: u32,
        owned: Vec<i32>,
        /// What it subscribes to, where it says so.
        topics: Option<Vec<String>>,
    },
    Commit {
        port: u16,
        member: String,
        epoch: u32,
        seq: u64,
        /// Partitions with their offsets and leader epochs.
        offsets: Vec<(i32, i64, Option<i32>)>,
    },
    Left(v1::Leave),
}

/// Groups, and offsets, of one answer.
const PAGE: usize = 2;

/// What becomes of a commit, or a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is taken, and the answer is lost.
    Unheard,
    /// These are refused for now, the others are taken.
    Refuse(i32),
    /// The topic of this one is deleted, the others are taken.
    Deleted(i32),
}

#[derive(Default)]
pub struct State {
    /// Where the coordinator is.
    pub coordinator: u16,
    /// The member, at which epoch.
    pub member: Option<(String, u32)>,
    /// What it is to have; partitions of the topic `t`.
    pub assigned: BTreeSet<i32>,
    pub told: Vec<Told>,
    /// Committed offsets, and the number of the commit.
    pub offsets: BTreeMap<i32, (i64, u64)>,
    /// Heartbeats are not answered.
    pub is_silent: bool,
    /// Whoever joins is refused so.
    pub refuses: Option<ErrorCode>,
    /// Of commits and deletions.
    pub fates: VecDeque<Fate>,
    /// The names of all groups.
    pub groups: BTreeSet<String>,
}

/// The group, shared by its nodes.
#[derive(Clone)]
pub struct Group {
    state: Arc<watch::Sender<State>>,
    interval: Duration,
    session: Duration,
}

impl Group {
    pub fn new(interval: Duration, session: Duration) -> Self {
        Self {
            state: Arc::new(watch::Sender::new(State::default())),
            interval,
            session,
        }
    }

    pub fn service(&self, port: u16) -> GroupsServer<Node> {
        GroupsServer::new(Node {
            port,
            group: self.clone(),
        })
    }

    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut result = None;
        self.state.send_modify(|state| result = Some(change(state)));
        result.unwrap()
    }

    /// Says what the member is to have from now on.
    pub fn assign(&self, partitions: impl IntoIterator<Item = i32>) {
        self.change(|state| {
            state.assigned = partitions.into_iter().collect();
            if let Some((_, epoch)) = &mut state.member {
                *epoch += 1;
            }
        });
    }

    pub fn told(&self) -> Vec<Told> {
        self.state.borrow().told.clone()
    }

    /// Waits until the coordinator was told enough.
    pub async fn until(&self, what: &str, enough: impl Fn(&State) -> bool) {
        let mut state = self.state.subscribe();
        let seen = timeout(super::DEADLINE, state.wait_for(|state| enough(state))).await;
        seen.unwrap_or_else(|_| panic!("not in time: {what}"))
            .unwrap();
    }

    fn answer(&self) -> Result<Response<v1::HeartbeatResponse>, Status> {
        let state = self.state.borrow();
        let epoch = state.member.as_ref().map_or(0, |(_, epoch)| *epoch);
        Ok(Response::new(v1::HeartbeatResponse {
            member_epoch: epoch,
            assigned: vec![v1::TopicPartitions {
                topic: "t".into(),
                topic_id: TOPIC_ID.to_vec().into(),
                partitions: state.assigned.iter().copied().collect(),
            }],
            heartbeat_interval_ms: self.interval.as_millis() as u32,
            session_timeout_ms: self.session.as_millis() as u32,
        }))
    }
}

/// One node.
#[derive(Clone)]
pub struct Node {
    port: u16,
    group: Group,
}

impl Node {
    /// Refuses what another node coordinates and this one may not forward.
    fn check<T>(&self, request: Request<T>) -> Result<T, Status> {
        let marked = request.metadata().contains_key("quorate-forwarded");
        let coordinator = self.group.state.borrow().coordinator;
        if marked && coordinator != self.port {
            let at = [
                ("coordinator_id", "9".to_owned()),
                ("coordinator_host", "127.0.0.1".to_owned()),
                ("coordinator_port", coordinator.to_string()),
            ];
            return Err(refused(ErrorCode::NotCoordinator, &at));
        }
        Ok(request.into_inner())
    }
}

#[tonic::async_trait]
impl Groups for Node {
    async fn heartbeat(
        &self,
        request: Request<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatResponse>, Status> {
        let beat = self.check(request)?;
        let mut news = self.group.state.subscribe();
        let leave = beat.leave();
        let refusal = self.group.change(|state| {
            if leave != v1::Leave::No {
                state.told.push(Told::Left(leave));
                let left = state.member.take_if(|(id, _)| *id == beat.member_id);
                return left.is_none().then_some(ErrorCode::UnknownMemberId);
            }
            let owned = beat.owned.iter().flat_map(|topic| &topic.partitions);
            state.told.push(Told::Beat {
                port: self.port,
                member: beat.member_id.clone(),
                epoch: beat.member_epoch,
                owned: owned.copied().collect(),
                topics: beat.profile.as_ref().map(|of| of.topics.clone()),
            });
            if state.is_silent {
                return None;
            }
            match &state.member {
                Some((id, _)) if *id == beat.member_id => None,
                _ if beat.member_epoch > 0 => Some(ErrorCode::UnknownMemberId),
                _ if beat.profile.is_none() => Some(ErrorCode::InvalidRequest),
                _ if state.refuses.is_some() => state.refuses,
                _ => {
                    state.member = Some((beat.member_id.clone(), 1));
                    None
                }
            }
        });
        if let Some(code) = refusal {
            return Err(refused(code, &[]));
        }
        if leave != v1::Leave::No {
            return self.group.answer();
        }
        let _heard = news.wait_for(|state| !state.is_silent).await.is_ok();
        let is_news = |state: &State| {
            let known = Some((beat.member_id.clone(), beat.member_epoch));
            state.member != known || state.coordinator != self.port
        };
        let wait = Duration::from_millis(beat.max_wait_ms.into());
        let _news = timeout(wait, news.wait_for(is_news)).await.is_ok();
        let (coordinator, member) = {
            let state = self.group.state.borrow();
            (state.coordinator, state.member.clone())
        };
        if coordinator != self.port {
            return Err(refused(ErrorCode::CoordinatorNotAvailable, &[]));
        }
        match member {
            Some((id, _)) if id != beat.member_id => Err(refused(ErrorCode::UnknownMemberId, &[])),
            None => Err(refused(ErrorCode::UnknownMemberId, &[])),
            _ => self.group.answer(),
        }
    }

    async fn commit_offsets(
        &self,
        request: Request<v1::CommitOffsetsRequest>,
    ) -> Result<Response<v1::CommitOffsetsResponse>, Status> {
        let commit = self.check(request)?;
        let seq = commit.commit_seq.unwrap_or(0);
        let mut answer = v1::CommitOffsetsResponse::default();
        let fate = self.group.change(|state| {
            let fate = state.fates.pop_front();
            let offsets = commit.offsets.iter();
            let offsets = offsets.map(|o| (o.partition, o.offset.unwrap(), o.leader_epoch));
            state.told.push(Told::Commit {
                port: self.port,
                member: commit.member_id.clone().unwrap_or_default(),
                epoch: commit.member_epoch,
                seq,
                offsets: offsets.collect(),
            });
            for offset in &commit.offsets {
                let code = match fate {
                    Some(Fate::Refuse(of)) if of == offset.partition => {
                        Some(ErrorCode::StaleMemberEpoch)
                    }
                    Some(Fate::Deleted(of)) if of == offset.partition => {
                        Some(ErrorCode::UnknownTopicId)
                    }
                    _ => None,
                };
                if let Some(code) = code {
                    answer.refused.push(v1::RefusedOffset {
                        topic: offset.topic.clone(),
                        partition: offset.partition,
                        reason: code.name().to_owned(),
                        retriable: true,
                    });
                    continue;
                }
                let known = state.offsets.entry(offset.partition).or_insert((0, 0));
                if seq > known.1 {
                    *known = (offset.offset.unwrap(), seq);
                }
            }
            fate
        });
        match fate {
            Some(Fate::Unheard) => Err(Status::unavailable("the connection broke")),
            _ => Ok(Response::new(answer)),
        }
    }

    async fn fetch_offsets(
        &self,
        request: Request<v1::FetchOffsetsRequest>,
    ) -> Result<Response<v1::FetchOffsetsResponse>, Status> {
        let after = self.check(request)?.after.map(|after| after.partition);
        let state = self.group.state.borrow();
        let mut offsets = state.offsets.range(after.map_or(0, |after| after + 1)..);
        let page = offsets.by_ref().take(PAGE);
        let page = page.map(|(partition, (offset, _))| v1::CommittedOffset {
            topic: "t".into(),
            topic_id: TOPIC_ID.to_vec().into(),
            partition: *partition,
            offset: *offset,
            ..v1::CommittedOffset::default()
        });
        Ok(Response::new(v1::FetchOffsetsResponse {
            offsets: page.collect(),
            more: offsets.next().is_some(),
        }))
    }

    type SubscribeStream = Answers<v1::SubscribeResponse>;

    async fn subscribe(
        &self,
        _: Request<Streaming<v1::SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        not_here()
    }

    async fn list(
        &self,
        request: Request<v1::ListGroupsRequest>,
    ) -> Result<Response<v1::ListGroupsResponse>, Status> {
        let after = request.into_inner().after.unwrap_or_default();
        let state = self.group.state.borrow();
        let mut groups = state.groups.iter().filter(|group| **group > after);
        let page = groups.by_ref().take(PAGE).map(|group| v1::GroupSummary {
            group: group.clone(),
            ..v1::GroupSummary::default()
        });
        Ok(Response::new(v1::ListGroupsResponse {
            groups: page.collect(),
            more: groups.next().is_some(),
        }))
    }

    async fn describe(
        &self,
        _: Request<v1::DescribeGroupRequest>,
    ) -> Result<Response<v1::DescribeGroupResponse>, Status> {
        not_here()
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteGroupRequest>,
    ) -> Result<Response<v1::DeleteGroupResponse>, Status> {
        let group = self.check(request)?.group;
        let (was, fate) = self
            .group
            .change(|state| (state.groups.remove(&group), state.fates.pop_front()));
        match fate {
            Some(Fate::Unheard) => Err(Status::unavailable("the connection broke")),
            _ if !was => Err(refused(ErrorCode::GroupIdNotFound, &[])),
            _ => Ok(Response::new(v1::DeleteGroupResponse {})),
        }
    }
}
