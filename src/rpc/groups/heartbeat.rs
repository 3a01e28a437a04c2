//! A member's heartbeats, on their way to the coordinator.

use std::collections::BTreeSet;
use std::time::Duration;

use quorate_group::{GroupTiming, Heartbeat, Leave};
use quorate_metadata::MemberProfile;
use quorate_proto::v1;
use quorate_types::{ErrorCode, GroupEpoch, GroupId, TopicName, TopicPartition};
use quorate_wire::ErrorInfo;
use tonic::Status;
use tonic::metadata::MetadataValue;

use super::{CLIENT_HOST, Coordinated, FORWARD_GRACE, Repeat, by_topic};
use crate::edge::{Edge, forward};
use crate::status::{invalid, to_status};

/// What a member gives up when it is not said, and what one may ask for at most.
const REBALANCE: (Duration, Duration) = (Duration::from_secs(300), Duration::from_secs(3_600));
/// Partitions of one message.
const PARTITIONS: usize = 100_000;
/// A member is to be heard so often in the time of a session, whatever else is said: the last heartbeat
/// that was answered may have been sent two of them ago, and a coordinator is to be replaced meanwhile.
const BEATS: u32 = 6;

fn bad(message: String) -> ErrorInfo {
    ErrorInfo::new(ErrorCode::InvalidRequest, message)
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// Reads what a member says of itself.
pub(crate) fn profile(
    timing: &GroupTiming,
    profile: &v1::MemberProfile,
    host: &str,
) -> Result<MemberProfile, ErrorInfo> {
    let (shortest, usual, longest) = timing.session;
    let session = match profile.session_timeout_ms {
        0 => usual,
        asked => Duration::from_millis(asked.into()),
    };
    if session < shortest || session > longest {
        return Err(bad(format!(
            "session_timeout_ms is {}: must be from {} to {}",
            session.as_millis(),
            shortest.as_millis(),
            longest.as_millis()
        )));
    }
    let rebalance = match profile.rebalance_timeout_ms {
        0 => REBALANCE.0,
        asked => Duration::from_millis(asked.into()),
    };
    if rebalance > REBALANCE.1 {
        return Err(bad(format!(
            "rebalance_timeout_ms is {}: must be {} or less",
            rebalance.as_millis(),
            REBALANCE.1.as_millis()
        )));
    }
    Ok(MemberProfile {
        instance: quorate_wire::instance_id(profile.instance_id.as_deref())?,
        client_id: quorate_wire::client_id(&profile.client_id)?,
        client_host: host.to_owned(),
        topics: quorate_wire::subscription(&profile.topics)?,
        session_timeout_ms: millis(session),
        rebalance_timeout_ms: millis(rebalance),
        assignor: quorate_wire::assignor(profile.assignor)?,
    })
}

fn leave(number: i32) -> Result<Leave, ErrorInfo> {
    match v1::Leave::try_from(number) {
        Ok(v1::Leave::No) => Ok(Leave::No),
        Ok(v1::Leave::ForGood) => Ok(Leave::ForGood),
        Ok(v1::Leave::ForNow) => Ok(Leave::ForNow),
        Err(_) => Err(bad(format!(
            "leave is {number}: must be 0 (no), 1 (for good) or 2 (for now)"
        ))),
    }
}

impl Edge {
    /// Takes a heartbeat to the group's coordinator, here or there. Where many wait already, it is
    /// answered at once.
    pub(crate) async fn group_heartbeat(
        &self,
        mut request: v1::HeartbeatRequest,
        host: &str,
        forwarded: bool,
    ) -> Result<v1::HeartbeatResponse, Status> {
        let told = |error: ErrorInfo| to_status(&error);
        let id = quorate_wire::group_id(&request.group).map_err(told)?;
        // Before it is sent on: what is wrong is said here.
        let mut beat = self
            .heartbeat_of(id.clone(), &request, host)
            .map_err(told)?;
        let place = self.polls().members.try_acquire();
        if place.is_err() {
            (request.max_wait_ms, beat.wait) = (0, Duration::ZERO);
        }
        match self.coordinated(&id, forwarded)? {
            Coordinated::There(mut client, at) => {
                let within = beat
                    .wait
                    .min(self.broker().groups().timing().heartbeat_interval);
                // Not kept while it waits.
                drop(beat);
                let mut onward = forward(request, within + FORWARD_GRACE * 2);
                if let Ok(host) = MetadataValue::try_from(host) {
                    onward.metadata_mut().insert(CLIENT_HOST, host);
                }
                let call = client.heartbeat(onward);
                self.there(&id, at, Repeat::Harmless, call).await
            }
            Coordinated::Here => {
                beat.wait = beat.wait.min(self.longest_wait(&beat));
                let answer = self.broker().groups().heartbeat(beat).await;
                let answer = answer.map_err(|error| to_status(&self.group_error(&id, &error)))?;
                let interval = match answer.session_timeout {
                    Duration::ZERO => answer.heartbeat_interval,
                    session => answer.heartbeat_interval.min(session / BEATS),
                };
                Ok(v1::HeartbeatResponse {
                    member_epoch: answer.epoch.get(),
                    assigned: by_topic(&self.image(), answer.assigned.into_iter()),
                    heartbeat_interval_ms: millis(interval),
                    session_timeout_ms: millis(answer.session_timeout),
                })
            }
        }
    }

    /// A member that waits too long for news would not be heard in time.
    fn longest_wait(&self, beat: &Heartbeat) -> Duration {
        let image = self.image();
        let member = image.group(&beat.group);
        let member = member.and_then(|group| group.members.get(&beat.member));
        member.map_or(Duration::ZERO, |member| {
            Duration::from_millis(member.profile.session_timeout_ms.into()) / BEATS
        })
    }

    fn heartbeat_of(
        &self,
        group: GroupId,
        request: &v1::HeartbeatRequest,
        host: &str,
    ) -> Result<Heartbeat, ErrorInfo> {
        let timing = self.broker().groups().timing();
        let said = request.profile.as_ref();
        let said = said.map(|said| profile(timing, said, host));
        Ok(Heartbeat {
            group,
            member: quorate_wire::member_id(&request.member_id)?,
            epoch: GroupEpoch::new(request.member_epoch),
            owned: self.owned(&request.owned)?,
            profile: said.transpose()?,
            leave: leave(request.leave)?,
            wait: Duration::from_millis(request.max_wait_ms.into()),
        })
    }

    /// What a member says that it has. What there is not is not there to be had, and what the group has
    /// given it is in the coordinator's image.
    pub(crate) fn owned(
        &self,
        owned: &[v1::TopicPartitions],
    ) -> Result<BTreeSet<TopicPartition>, ErrorInfo> {
        let mut named = self.named(owned)?;
        let image = self.image();
        named.retain(|at| image.partition(at).is_some());
        Ok(named)
    }

    /// The partitions that are named, whether there are such or not; by a topic's name only those that
    /// this node knows.
    pub(crate) fn named(
        &self,
        owned: &[v1::TopicPartitions],
    ) -> Result<BTreeSet<TopicPartition>, ErrorInfo> {
        let count: usize = owned.iter().map(|of| of.partitions.len()).sum();
        if count > PARTITIONS {
            let message = format!("{count} partitions: {PARTITIONS} at most");
            return Err(bad(message));
        }
        let image = self.image();
        let mut partitions = BTreeSet::new();
        for of in owned {
            let id = if of.topic_id.is_empty() {
                let illegal = |error: quorate_types::InvalidTopicName| {
                    ErrorInfo::new(ErrorCode::InvalidTopic, error.to_string())
                };
                let name = TopicName::new(&of.topic).map_err(illegal)?;
                image.topic_by_name(&name).map(|topic| topic.id)
            } else {
                let id = quorate_wire::topic_id(&of.topic_id);
                Some(id.map_err(|error| invalid(&error))?)
            };
            for number in &of.partitions {
                let number = Self::partition(*number)?;
                partitions.extend(id.map(|id| TopicPartition::new(id, number)));
            }
        }
        Ok(partitions)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail where it stands")]
mod tests {
    use super::*;

    #[test]
    fn timeouts_out_of_their_range_are_refused() {
        let timing = GroupTiming::default();
        let with = |session, rebalance| {
            let said = v1::MemberProfile {
                topics: vec!["t".to_owned()],
                session_timeout_ms: session,
                rebalance_timeout_ms: rebalance,
                ..v1::MemberProfile::default()
            };
            profile(&timing, &said, "h").map_err(|error| error.code)
        };
        let usual = with(0, 0).unwrap();
        let timeouts = (usual.session_timeout_ms, usual.rebalance_timeout_ms);
        assert_eq!(timeouts, (45_000, 300_000));
        assert!(with(1_000, 1).is_ok() && with(1_800_000, 3_600_000).is_ok());
        for (session, rebalance) in [(999, 0), (1_800_001, 0), (0, 3_600_001)] {
            let refused = with(session, rebalance);
            assert_eq!(refused.unwrap_err(), ErrorCode::InvalidRequest);
        }
        assert!(leave(3).is_err());
    }
}
