//! Compiles `proto/` with protox, a protoc in Rust: a machine needs only cargo.

use std::path::{Path, PathBuf};

use prost::Message;

/// What clients speak; told to them by server reflection.
const PUBLIC: [&str; 6] = [
    "quorate/v1/common.proto",
    "quorate/v1/producer.proto",
    "quorate/v1/consumer.proto",
    "quorate/v1/admin.proto",
    "quorate/v1/cluster.proto",
    "quorate/v1/groups.proto",
];

const INTERNAL: [&str; 3] = [
    "quorate/internal/v1/raft.proto",
    "quorate/internal/v1/controller.proto",
    "quorate/internal/v1/replication.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let public = protox::compile(PUBLIC, [root])?;
    std::fs::write(out.join("quorate.v1.bin"), public.encode_to_vec())?;
    let all = protox::compile(PUBLIC.iter().chain(&INTERNAL), [root])?;
    tonic_prost_build::configure().bytes(".").compile_fds(all)?;
    Ok(())
}
