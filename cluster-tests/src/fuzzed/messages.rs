//! Bytes as every message that a call of either protocol package takes or gives.

use prost::Message;
use quorate_proto::{internal, v1};

/// Decodes as one kind of message; what is read must be the same when it is written and read again.
fn decode<M: Message + Default + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(message) = M::decode(bytes) {
        assert_eq!(M::decode(&*message.encode_to_vec()).as_ref(), Ok(&message));
    }
}

macro_rules! decoders {
    ($($package:ident { $($message:ident),* $(,)? })*) => {
        &[$($((stringify!($message), decode::<$package::$message> as fn(&[u8]))),*),*]
    };
}

/// Every message of a call by its name; a test compares them with the protocol files.
pub const DECODERS: &[super::Target] = decoders! {
    v1 {
        ProduceRequest, ProduceResponse, ProduceStreamRequest, ProduceStreamResponse,
        InitProducerRequest, InitProducerResponse,
        FetchRequest, FetchResponse, ConsumeRequest, ConsumeResponse,
        ListOffsetsRequest, ListOffsetsResponse,
        CreateTopicRequest, CreateTopicResponse, AlterTopicRequest, AlterTopicResponse,
        DeleteTopicRequest, DeleteTopicResponse, ListTopicsRequest, ListTopicsResponse,
        DescribeTopicRequest, DescribeTopicResponse,
        DescribeClusterRequest, DescribeClusterResponse,
        DescribePartitionsRequest, DescribePartitionsResponse, LogLevelRequest, LogLevelResponse,
        SetFeatureRequest, SetFeatureResponse,
        WatchEventsRequest, ClusterEvent,
        SubscribeRequest, SubscribeResponse, HeartbeatRequest, HeartbeatResponse,
        CommitOffsetsRequest, CommitOffsetsResponse, FetchOffsetsRequest, FetchOffsetsResponse,
        ListGroupsRequest, ListGroupsResponse, DescribeGroupRequest, DescribeGroupResponse,
        DeleteGroupRequest, DeleteGroupResponse,
    }
    internal {
        RaftRequest, RaftReply, SnapshotChunk, ProposeRequest, ProposeReply,
        ReadIndexRequest, ReadIndexReply, JoinRequest, JoinReply,
        IdentifyRequest, IdentifyReply, HoldRequest, HoldReply,
        FollowerMessage, LeaderMessage, Heartbeat, HeartbeatAnswer,
    }
};

/// Through every decoder.
///
/// # Panics
/// Where a message is not the same when it is written and read again.
pub fn messages(bytes: &[u8]) {
    for (_, decode) in DECODERS {
        decode(bytes);
    }
    if let Ok(request) = v1::ProduceRequest::decode(bytes) {
        let _refused = quorate_wire::acks(request.acks);
        let id = request.topic_id.as_deref().unwrap_or_default();
        assert_eq!(quorate_wire::topic_id(id).is_ok(), id.len() == 16);
    }
    if let Ok(request) = v1::HeartbeatRequest::decode(bytes) {
        let legal = |name: &str| {
            let bounded = (1..=249).contains(&name.len());
            bounded && !name.contains(|c: char| c.is_control())
        };
        let (group, member) = (&request.group, &request.member_id);
        assert_eq!(quorate_wire::group_id(group).is_ok(), legal(group));
        assert_eq!(quorate_wire::member_id(member).is_ok(), legal(member));
        let profile = request.profile.unwrap_or_default();
        let _refused = quorate_wire::subscription(&profile.topics);
        let _refused = quorate_wire::assignor(profile.assignor);
    }
}
