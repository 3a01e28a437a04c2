//! Puts a node together and takes it down in order.
