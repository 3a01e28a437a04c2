//! A replicated log in one binary.
