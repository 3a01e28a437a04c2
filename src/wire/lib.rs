//! Between the types of the house and those of the protocol files, both ways, once; and between
//! error codes and gRPC statuses. Pure.

mod convert;
mod error;
mod groups;
mod unsent;

pub use convert::{WireError, acks, acks_to_proto, endpoint_to_proto, producer_epoch, topic_id};
/// Metadata key of a request that is not to be forwarded: a node has done it already, or the client
/// wants an answer of the leader itself.
pub const FORWARDED: &str = "quorate-forwarded";

pub use error::{DOMAIN, ErrorInfo, GrpcCode, grpc_code};
pub use groups::{
    SUBSCRIPTION_TOPICS, assignor, assignor_to_proto, client_id, group_id, instance_id, member_id,
    subscription,
};
pub use unsent::never_left;
