//! Types to protobuf and errors to gRPC status, both ways.
