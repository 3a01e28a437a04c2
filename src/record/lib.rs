//! What a log is made of: record batches, epochs, producer state.
