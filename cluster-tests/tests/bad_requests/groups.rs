//! Requests about consumer groups that are wrong: of somebody who is no member, and as a whole.

use quorate_proto::v1;
use quorate_proto::v1::groups_client::GroupsClient;
use quorate_types::Endpoint;
use tonic::Code::{FailedPrecondition, InvalidArgument, OutOfRange};

use crate::{TOPIC, expected, invalid};

const GROUP: &str = "bad-groups";

fn heartbeat(change: impl Fn(&mut v1::HeartbeatRequest)) -> v1::HeartbeatRequest {
    let profile = v1::MemberProfile {
        topics: vec![TOPIC.to_owned()],
        ..v1::MemberProfile::default()
    };
    let mut request = v1::HeartbeatRequest {
        group: GROUP.to_owned(),
        member_id: "nobody".to_owned(),
        profile: Some(profile),
        ..v1::HeartbeatRequest::default()
    };
    change(&mut request);
    request
}

fn of(request: &mut v1::HeartbeatRequest) -> &mut v1::MemberProfile {
    request.profile.as_mut().unwrap()
}

pub(crate) async fn heartbeats(node: &Endpoint) {
    let client = GroupsClient::connect(format!("http://{node}")).await;
    let mut client = client.unwrap();
    let illegal = |says| expected(InvalidArgument, "INVALID_GROUP_ID", says);
    let topic = expected(InvalidArgument, "INVALID_TOPIC_EXCEPTION", "is made of a-z");
    let assignor = expected(InvalidArgument, "UNSUPPORTED_ASSIGNOR", "must be 0");
    let unknown = expected(FailedPrecondition, "UNKNOWN_MEMBER_ID", "join anew");
    let many: Vec<String> = (0..1_001).map(|number| format!("t{number}")).collect();
    for (what, request, expected) in [
        (
            "no group",
            heartbeat(|r| r.group.clear()),
            illegal("must not be empty"),
        ),
        (
            "a long group",
            heartbeat(|r| r.group = "x".repeat(250)),
            illegal("at most 249"),
        ),
        (
            "a group with a line's end",
            heartbeat(|r| r.group = "a\n".into()),
            illegal("'\\n'"),
        ),
        (
            "no member id",
            heartbeat(|r| r.member_id.clear()),
            invalid("must not be empty"),
        ),
        (
            "a long instance id",
            heartbeat(|r| of(r).instance_id = Some("x".repeat(250))),
            invalid("at most 249"),
        ),
        (
            "a long client id",
            heartbeat(|r| of(r).client_id = "x".repeat(250)),
            invalid("at most 249"),
        ),
        (
            "no profile",
            heartbeat(|r| r.profile = None),
            invalid("which topics it reads"),
        ),
        (
            "no topics",
            heartbeat(|r| of(r).topics.clear()),
            invalid("there are none"),
        ),
        (
            "1,001 topics",
            heartbeat(|r| of(r).topics = many.clone()),
            invalid("1000 at most"),
        ),
        (
            "an illegal topic",
            heartbeat(|r| of(r).topics = vec!["/".into()]),
            topic,
        ),
        ("an assignor", heartbeat(|r| of(r).assignor = 2), assignor),
        (
            "a leave",
            heartbeat(|r| r.leave = 3),
            invalid("must be 0 (no)"),
        ),
        (
            "a short session",
            heartbeat(|r| of(r).session_timeout_ms = 1),
            invalid("must be from 1000 to 1800000"),
        ),
        (
            "a long session",
            heartbeat(|r| of(r).session_timeout_ms = u32::MAX),
            invalid("must be from 1000 to 1800000"),
        ),
        (
            "a long rebalance timeout",
            heartbeat(|r| of(r).rebalance_timeout_ms = 3_600_001),
            invalid("must be 3600000 or less"),
        ),
        (
            "a short topic id",
            heartbeat(|r| {
                let partitions = vec![0];
                r.owned = vec![v1::TopicPartitions {
                    topic_id: "short".into(),
                    partitions,
                    ..v1::TopicPartitions::default()
                }];
            }),
            invalid("16 bytes"),
        ),
        ("an epoch", heartbeat(|r| r.member_epoch = 7), unknown),
    ] {
        expected.check(
            &format!("heartbeat: {what}"),
            client.heartbeat(request).await,
        );
    }
}

fn commit(change: impl Fn(&mut v1::OffsetToCommit)) -> v1::CommitOffsetsRequest {
    let mut offset = v1::OffsetToCommit {
        topic: TOPIC.to_owned(),
        offset: Some(1),
        ..v1::OffsetToCommit::default()
    };
    change(&mut offset);
    v1::CommitOffsetsRequest {
        group: GROUP.to_owned(),
        offsets: vec![offset],
        ..v1::CommitOffsetsRequest::default()
    }
}

pub(crate) async fn commits(node: &Endpoint) {
    let client = GroupsClient::connect(format!("http://{node}")).await;
    let mut client = client.unwrap();
    let negative = expected(OutOfRange, "OFFSET_OUT_OF_RANGE", "must not be negative");
    let long = expected(InvalidArgument, "OFFSET_METADATA_TOO_LARGE", "at most 4096");
    let stranger = expected(FailedPrecondition, "UNKNOWN_MEMBER_ID", "join anew");
    let with = |change: &dyn Fn(&mut v1::CommitOffsetsRequest)| {
        let mut request = commit(|_| {});
        change(&mut request);
        request
    };
    let twice = |r: &mut v1::CommitOffsetsRequest| r.offsets = vec![r.offsets[0].clone(); 2];
    for (what, request, expected) in [
        (
            "nothing",
            with(&|r| r.offsets.clear()),
            invalid("no offsets"),
        ),
        ("a partition twice", with(&twice), invalid("named twice")),
        (
            "10,001 offsets",
            with(&|r| r.offsets = vec![r.offsets[0].clone(); 10_001]),
            invalid("10000 at most"),
        ),
        (
            "partition -1",
            commit(|o| o.partition = -1),
            invalid("partition"),
        ),
        ("offset -1", commit(|o| o.offset = Some(-1)), negative),
        (
            "epoch -1",
            commit(|o| o.leader_epoch = Some(-1)),
            invalid("epoch"),
        ),
        ("metadata", commit(|o| o.metadata = "x".repeat(4_097)), long),
        (
            "a topic id",
            commit(|o| o.topic_id = Some("short".into())),
            invalid("16 bytes"),
        ),
        (
            "a stranger",
            with(&|r| r.member_id = Some("nobody".into())),
            stranger,
        ),
    ] {
        expected.check(
            &format!("commit: {what}"),
            client.commit_offsets(request).await,
        );
    }
    for (what, request, reason) in [
        (
            "no topic",
            commit(|o| o.topic = "no-such".into()),
            "UNKNOWN_TOPIC_OR_PARTITION",
        ),
        (
            "partition 2",
            commit(|o| o.partition = 2),
            "UNKNOWN_TOPIC_OR_PARTITION",
        ),
        (
            "another topic id",
            commit(|o| o.topic_id = Some(vec![7; 16].into())),
            "INCONSISTENT_TOPIC_ID",
        ),
    ] {
        let answer = client.commit_offsets(request).await.unwrap().into_inner();
        let reasons: Vec<String> = answer.refused.into_iter().map(|of| of.reason).collect();
        assert_eq!(reasons, [reason], "commit: {what}");
    }
}

/// Nothing of all that has made a group.
pub(crate) async fn of_no_group(node: &Endpoint) {
    let client = GroupsClient::connect(format!("http://{node}")).await;
    let mut client = client.unwrap();
    let group = || GROUP.to_owned();
    let missing = expected(
        FailedPrecondition,
        "GROUP_ID_NOT_FOUND",
        "there is no group",
    );
    let described = client.describe(v1::DescribeGroupRequest {
        group: group(),
        ..Default::default()
    });
    missing.check("describe", described.await);
    let deleted = client.delete(v1::DeleteGroupRequest { group: group() });
    missing.check("delete", deleted.await);
    let fetched = client.fetch_offsets(v1::FetchOffsetsRequest {
        group: group(),
        ..Default::default()
    });
    assert_eq!(fetched.await.unwrap().into_inner().offsets, []);
}
