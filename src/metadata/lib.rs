//! What the cluster knows and how it changes.
