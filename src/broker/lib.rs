//! Hosts partitions: produce, fetch, replication.
