//! The code generated from `proto/`, and nothing else.
#![allow(missing_docs, clippy::all)]

/// What clients speak: `proto/quorate/v1`.
pub mod v1 {
    tonic::include_proto!("quorate.v1");

    /// The files as a `google.protobuf.FileDescriptorSet`, for server reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/quorate.v1.bin"));
}

/// What nodes speak to each other: `proto/quorate/internal/v1`.
pub mod internal {
    tonic::include_proto!("quorate.internal.v1");
}
