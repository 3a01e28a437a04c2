//! The gRPC edge.
