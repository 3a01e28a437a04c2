//! Requests of a member to its coordinator, tried again while another one takes over.

use std::time::Duration;

use quorate_wire::ErrorInfo;
use tokio::time::{Instant, sleep};
use tonic::Status;

use crate::status::told;

/// Pause between tries: first, and at most.
pub(super) const RETRY: (Duration, Duration) =
    (Duration::from_millis(20), Duration::from_millis(250));

/// Tries until it succeeds, fails for good, or time is up (none: never).
pub(super) async fn asked<T, F>(
    until: Option<Instant>,
    mut ask: impl FnMut() -> F,
) -> Result<T, ErrorInfo>
where
    F: Future<Output = Result<T, Status>>,
{
    let mut backoff = RETRY.0;
    loop {
        let error = match ask().await {
            Ok(answer) => return Ok(answer),
            Err(status) => told(&status),
        };
        let late = until.is_some_and(|until| Instant::now() + backoff >= until);
        if late || !error.code.is_retriable() {
            return Err(error);
        }
        sleep(backoff).await;
        backoff = (backoff * 2).min(RETRY.1);
    }
}
