//! Between the types of the house and those of the protocol files, both ways, once; and between
//! error codes and gRPC statuses. Pure.

mod convert;
mod error;

pub use convert::{WireError, acks, acks_to_proto, endpoint_to_proto, topic_id};
pub use error::{DOMAIN, ErrorInfo, GrpcCode, grpc_code};
