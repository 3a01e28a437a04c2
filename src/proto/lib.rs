//! The code generated from `proto/`, and nothing else.
#![allow(missing_docs, clippy::all)]

/// What clients speak: `proto/quorate/v1`.
pub mod v1 {
    tonic::include_proto!("quorate.v1");
}

/// What nodes speak to each other: `proto/quorate/internal/v1`.
pub mod internal {
    tonic::include_proto!("quorate.internal.v1");
}
