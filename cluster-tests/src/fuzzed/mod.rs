//! What takes bytes from outside, as functions of bytes: batches, messages of both protocol packages,
//! metadata, a partition's files. None may panic on any bytes, and what is taken must hold what its
//! type promises. Two feed them: `tests/fuzz.rs`, which changes whole samples at random, and the
//! targets in `fuzz/`, which coverage guides.

mod batches;
mod messages;
mod metadata;
mod recovery;
mod seeds;

pub use batches::batches;
pub use messages::{DECODERS, messages};
pub use metadata::metadata;
pub use recovery::recovery;
pub use seeds::{CODECS, seeds};

/// A target by its name.
pub type Target = (&'static str, fn(&[u8]));

/// Every target, by the name of its corpus and of its program in `fuzz/`.
pub const TARGETS: [Target; 4] = [
    ("batch", batches),
    ("messages", messages),
    ("metadata", metadata),
    ("recovery", recovery),
];
