//! Simulator, and the harness for tests of whole clusters.
