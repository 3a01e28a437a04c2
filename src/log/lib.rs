//! A data directory: segments, indexes, recovery, group commit.
