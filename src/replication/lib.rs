//! The ISR protocol of one partition.
