//! The active controller: liveness and fencing where Raft leads.
