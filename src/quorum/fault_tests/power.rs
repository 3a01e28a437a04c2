//! What a directory holds after a kill or a power loss, taken while the voter runs.
//!
//! The writer of the Raft log and the snapshots ask here at their syncs (only in tests). Once the
//! power is off they get an error, so that nothing is told that the copy does not have.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use parking_lot::{Mutex, MutexGuard};

use crate::promised::PROMISED;

/// How a voter ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Killed as the next sync begins: sled's own buffers are lost.
    KilledBeforeSync,
    /// Killed after the next sync, before anybody is told.
    KilledAfterSync,
    /// What is written after the next sync is lost.
    PowerLoss,
    /// The next syncs do nothing, and then the power goes: what no honest disk does.
    LyingDisk,
}

/// So many syncs a lying disk leaves out.
const LIES: u32 = 20;

#[derive(Debug, Default)]
enum State {
    #[default]
    On,
    Ending(End, PathBuf),
    /// The files as of a sync are in the copy; what is written from now on is lost.
    Synced(PathBuf),
    /// The same, and so many syncs more are told to have been done.
    Lying(PathBuf, u32),
    Off,
}

/// The power of one life of a voter.
#[derive(Debug, Default)]
pub(crate) struct Power {
    /// `metadata`.
    path: PathBuf,
    state: Mutex<State>,
    /// Held by the writer while it works.
    working: Mutex<()>,
}

static ALL: LazyLock<Mutex<HashMap<PathBuf, Arc<Power>>>> = LazyLock::new(Mutex::default);

fn off() -> io::Error {
    io::Error::other("the test took the power away")
}

/// The power of the store at `path`, where a test controls it.
pub(crate) fn of(path: &Path) -> Option<Arc<Power>> {
    let all = ALL.lock();
    path.ancestors().find_map(|above| all.get(above).cloned())
}

/// Copies the files in a directory; some may go meanwhile.
fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    'again: loop {
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                match fs::copy(entry.path(), to.join(entry.file_name())) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue 'again,
                    copied => copied?,
                };
            }
        }
        return Ok(());
    }
}

impl Power {
    /// The power of a voter that keeps its metadata in `path`.
    pub(crate) fn on(path: &Path) -> Arc<Self> {
        let power = Arc::new(Self {
            path: path.to_owned(),
            ..Self::default()
        });
        ALL.lock().insert(path.to_owned(), Arc::clone(&power));
        power
    }

    /// The voter ends at its next sync and leaves what it leaves in `to`.
    pub(crate) fn end(&self, end: End, to: &Path) {
        *self.state.lock() = State::Ending(end, to.to_owned());
    }

    pub(crate) fn is_off(&self) -> bool {
        matches!(*self.state.lock(), State::Off)
    }

    /// Ends a voter that does not sync anything.
    pub(crate) fn end_now(&self) {
        let _between_writes = self.working.lock();
        let mut state = self.state.lock();
        match std::mem::replace(&mut *state, State::Off) {
            State::On | State::Off => {}
            State::Ending(_, to) => self.copy(&to, true),
            State::Synced(to) => self.copy(&to, false),
            // What it noted of its promises is as old as the rest.
            State::Lying(to, _) => self.copy_snapshots(&to),
        }
    }

    /// The last thing that is left of a life; the power is off.
    fn copy(&self, to: &Path, log_too: bool) {
        let (log, left) = (self.path.join("log"), to.join("log"));
        if log_too {
            copy_files(&log, &left).unwrap();
        } else {
            // Written without a sync, but for where it says less.
            fs::copy(log.join(PROMISED), left.join(PROMISED)).unwrap();
        }
        self.copy_snapshots(to);
    }

    fn copy_snapshots(&self, to: &Path) {
        // Each is synced before it has its name, and is never changed.
        copy_files(&self.path.join("snapshots"), &to.join("snapshots")).unwrap();
    }

    /// The writer works until the guard goes.
    pub(crate) fn working(&self) -> MutexGuard<'_, ()> {
        self.working.lock()
    }

    /// A sync is about to begin.
    pub(crate) fn before_sync(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        let (to, log_too) = match &*state {
            State::On | State::Ending(End::KilledAfterSync | End::PowerLoss, _) => return Ok(()),
            State::Ending(End::LyingDisk, to) => {
                let to = to.clone();
                copy_files(&self.path.join("log"), &to.join("log")).unwrap();
                *state = State::Lying(to, LIES);
                return Ok(());
            }
            State::Lying(to, left) if *left > 0 => {
                *state = State::Lying(to.clone(), left - 1);
                return Ok(());
            }
            State::Lying(to, _) => {
                let to = to.clone();
                *state = State::Off;
                self.copy_snapshots(&to);
                return Err(off());
            }
            State::Ending(End::KilledBeforeSync, to) => (to.clone(), true),
            State::Synced(to) => (to.clone(), false),
            State::Off => return Err(off()),
        };
        *state = State::Off;
        self.copy(&to, log_too);
        Err(off())
    }

    /// A sync has ended; nobody was told yet.
    pub(crate) fn after_sync(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        match &*state {
            State::Ending(End::KilledAfterSync, to) => {
                let to = to.clone();
                *state = State::Off;
                self.copy(&to, true);
                Err(off())
            }
            State::Ending(End::PowerLoss, to) => {
                let to = to.clone();
                copy_files(&self.path.join("log"), &to.join("log")).unwrap();
                *state = State::Synced(to);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A snapshot has its name; somebody may be told.
    pub(crate) fn check(&self) -> io::Result<()> {
        if self.is_off() { Err(off()) } else { Ok(()) }
    }
}

/// Forgets a life's power.
pub(crate) fn forget(path: &Path) {
    let gone = ALL.lock().remove(path);
    drop(gone);
}
