//! Broker sessions, probing, fencing, controlled shutdown.
