//! sled 0.34 may panic over a damaged file, or never come to an end: what touches one runs in a
//! thread of its own, with a limit.

use std::any::Any;
use std::sync::mpsc;
use std::time::Duration;

/// sled has so long to open a damaged file or to read it.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs what sled may never finish, or panic in, where its file is damaged.
pub(crate) fn guarded<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let (done, result) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new()
        .name("metadata-reader".to_owned())
        .spawn(move || {
            // Nobody waits any more once the patience is at an end.
            let _ = done.send(work());
        })
        .map_err(|error| error.to_string())?;
    match result.recv_timeout(PATIENCE) {
        Ok(value) => Ok(value),
        Err(mpsc::RecvTimeoutError::Timeout) => {
            Err(format!("sled has not read it within {PATIENCE:?}"))
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(match thread.join() {
            Err(panic) => format!("sled panicked: {}", panic_text(&*panic)),
            Ok(()) => "sled gave no answer".to_owned(),
        }),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("without a word").to_owned()
}
