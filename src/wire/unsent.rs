//! Whether a failed call can have been seen by anybody.

use std::error::Error;

use tonic::{ConnectError, Status};

/// Whether a call failed because there was no connection to send it on: the name did not resolve,
/// or nobody took the connection. Then nobody has seen it.
pub fn never_left(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}
