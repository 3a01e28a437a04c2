//! Compiles `proto/` with protox, a protoc in Rust: a machine needs only cargo.

use std::path::Path;

const FILES: [&str; 8] = [
    "quorate/v1/common.proto",
    "quorate/v1/producer.proto",
    "quorate/v1/consumer.proto",
    "quorate/v1/admin.proto",
    "quorate/v1/cluster.proto",
    "quorate/internal/v1/raft.proto",
    "quorate/internal/v1/controller.proto",
    "quorate/internal/v1/replication.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let descriptors = protox::compile(FILES, [root])?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
