//! sled 0.34 may panic over a damaged file, or never come to an end: what touches one runs in a
//! thread of its own, with a limit.

use std::any::Any;
use std::sync::mpsc;
use std::time::Duration;

/// sled has so long to open a damaged file or to read it.
const PATIENCE: Duration = Duration::from_secs(120);

/// Why there is no answer from sled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unanswered {
    /// It took too long: the disk is slow, or sled does not come to an end.
    #[error("sled has not read it within {PATIENCE:?}")]
    Late,
    /// It ended otherwise.
    #[error("{0}")]
    Broken(String),
}

/// Runs what sled may never finish, or panic in, where its file is damaged.
pub(crate) fn guarded<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unanswered> {
    let (done, result) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new()
        .name("metadata-reader".to_owned())
        .spawn(move || {
            // Nobody waits any more once the patience is at an end.
            let _ = done.send(work());
        })
        .map_err(|error| Unanswered::Broken(error.to_string()))?;
    match result.recv_timeout(PATIENCE) {
        Ok(value) => Ok(value),
        Err(mpsc::RecvTimeoutError::Timeout) => Err(Unanswered::Late),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(Unanswered::Broken(match thread.join() {
            Err(panic) => format!("sled panicked: {}", panic_text(&*panic)),
            Ok(()) => "sled gave no answer".to_owned(),
        })),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("without a word").to_owned()
}
