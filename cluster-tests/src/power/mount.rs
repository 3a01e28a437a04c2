//! A [`Disk`] as a file system of the kernel's, and its switch.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request,
    TimeOrNow, WriteFlags,
};
use nix::mount::{MntFlags, umount2};
use parking_lot::{Condvar, Mutex, MutexGuard};
use rand::rngs::StdRng;

use super::Lost;
use super::disk::{Disk, Kind, Node};
use super::names::Names;

/// How long a sync takes at first.
const SYNC: Duration = Duration::from_millis(2);
/// Requests that are answered at a time, most of them syncs.
const AT_A_TIME: usize = 8;
/// Only the kernel changes anything here, so it may believe what it was told.
const BELIEVED: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Power {
    On,
    /// Nothing becomes durable any more, and who waits for a sync waits on.
    Failing,
    Off,
}

struct State {
    disk: Disk,
    power: Power,
    /// How long a sync takes.
    sync: Duration,
    /// Syncs are answered and do nothing.
    lies: bool,
    /// Directories being listed, as they were when they were opened.
    listings: BTreeMap<u64, Vec<(OsString, u64, bool)>>,
    last_listing: u64,
}

#[derive(Clone)]
struct Shared(Arc<(Mutex<State>, Condvar)>);

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock()
    }

    /// The state for a request; none is taken any more once the power is off.
    fn on(&self) -> Result<MutexGuard<'_, State>, Errno> {
        let state = self.state();
        match state.power {
            Power::Off => Err(Errno::EIO),
            Power::On | Power::Failing => Ok(state),
        }
    }

    fn switch(&self, power: Power) {
        self.state().power = power;
        self.0.1.notify_all();
    }

    /// Durable when it returns; where the power fails meanwhile, not at all.
    fn sync(&self, number: u64) -> Result<(), Errno> {
        let mut state = self.on()?;
        let mark = state.disk.mark(number)?;
        let end = Instant::now() + state.sync;
        while state.power == Power::On {
            if self.0.1.wait_until(&mut state, end).timed_out() {
                break;
            }
        }
        while state.power == Power::Failing {
            self.0.1.wait(&mut state);
        }
        match state.power {
            Power::On if state.lies => Ok(()),
            Power::On => state.disk.sync(number, mark),
            Power::Failing | Power::Off => Err(Errno::EIO),
        }
    }
}

/// A disk that forgets at a power loss what was not synced, mounted at a path.
pub struct PowerDisk {
    shared: Shared,
    at: PathBuf,
    session: Option<BackgroundSession>,
}

impl PowerDisk {
    /// Makes an empty disk and mounts it at `at`, a directory.
    ///
    /// # Errors
    /// Where the kernel or its rights do not let it: a mount takes root and `/dev/fuse`.
    pub fn mount(at: &Path) -> io::Result<Self> {
        let state = State {
            disk: Disk::new(),
            power: Power::Off,
            sync: SYNC,
            lies: false,
            listings: BTreeMap::new(),
            last_listing: 0,
        };
        let mut made = Self {
            shared: Shared(Arc::new((Mutex::new(state), Condvar::new()))),
            at: at.to_owned(),
            session: None,
        };
        made.power_on()?;
        Ok(made)
    }

    /// From now on a sync takes so long.
    pub fn set_sync_time(&self, sync: Duration) {
        self.shared.state().sync = sync;
    }

    /// From now on, until power comes back, a sync does nothing and says that it has been done.
    pub fn lie(&self) {
        self.shared.state().lies = true;
    }

    /// From now on nothing becomes durable. A sync that is under way never returns to a process that
    /// lives.
    pub fn fail_power(&self) {
        self.shared.switch(Power::Failing);
    }

    /// Takes away what was not synced, all of it or only `some`, by chance, once every process that
    /// used the disk is dead; see the module. Unmounts it.
    ///
    /// # Errors
    /// Where it cannot be unmounted.
    pub fn lose_power(&mut self, some: bool, random: &mut StdRng) -> io::Result<Lost> {
        self.power_off();
        if let Some(session) = self.session.take() {
            self.unmount(session)?;
        }
        Ok(self.shared.state().disk.lose_power(some, random))
    }

    /// Returns when nobody uses the file system any more: a process that is just being started by
    /// another thread holds what is open here until it runs a program of its own.
    fn unmount(&self, session: BackgroundSession) -> io::Result<()> {
        umount2(&self.at, MntFlags::MNT_DETACH)?;
        session.join()
    }

    /// Answers whoever still waits, with an error: a process that was killed ends only then.
    pub fn power_off(&self) {
        self.shared.switch(Power::Off);
    }

    /// Mounts what is left.
    ///
    /// # Errors
    /// As [`mount`](Self::mount).
    pub fn power_on(&mut self) -> io::Result<()> {
        let mut config = Config::default();
        config.n_threads = Some(AT_A_TIME);
        self.shared.state().lies = false;
        self.shared.switch(Power::On);
        let mounted = fuser::spawn_mount(self.shared.clone(), &self.at, &config)?;
        self.session = Some(mounted);
        Ok(())
    }
}

impl Drop for PowerDisk {
    fn drop(&mut self) {
        self.power_off();
        if let Some(session) = self.session.take()
            && let Err(error) = self.unmount(session)
        {
            eprintln!("{} stays mounted: {error}", self.at.display());
        }
    }
}

fn attributes(number: u64, node: &Node) -> FileAttr {
    let (kind, size) = match &node.kind {
        Kind::File(content) => (FileType::RegularFile, content.len() as u64),
        Kind::Folder(_) => (FileType::Directory, 0),
    };
    FileAttr {
        ino: INodeNo(number),
        size,
        blocks: size.div_ceil(512),
        atime: node.changed,
        mtime: node.changed,
        ctime: node.changed,
        crtime: node.changed,
        kind,
        perm: node.permissions,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn permissions(mode: u32, umask: u32) -> u16 {
    (mode & !umask & 0o7777) as u16
}

impl Shared {
    fn attributes_of(&self, number: u64) -> Result<FileAttr, Errno> {
        Ok(attributes(number, self.on()?.disk.node(number)?))
    }

    fn make(
        &self,
        folder: INodeNo,
        name: &OsStr,
        kind: Kind,
        permissions: u16,
    ) -> Result<FileAttr, Errno> {
        let mut state = self.on()?;
        let number = state.disk.make(folder.0, name, kind, permissions)?;
        Ok(attributes(number, state.disk.node(number)?))
    }

    fn set_len(&self, number: u64, size: u64) -> Result<(), Errno> {
        let length = usize::try_from(size).map_err(|_| Errno::EFBIG)?;
        self.on()?.disk.set_len(number, length)
    }

    fn open_listing(&self, folder: u64) -> Result<u64, Errno> {
        let mut state = self.on()?;
        let listing = state.disk.list(folder)?;
        state.last_listing += 1;
        let handle = state.last_listing;
        state.listings.insert(handle, listing);
        Ok(handle)
    }
}

fn entry(reply: ReplyEntry, found: Result<FileAttr, Errno>) {
    match found {
        Ok(attributes) => reply.entry(&BELIEVED, &attributes, Generation(0)),
        Err(error) => reply.error(error),
    }
}

fn empty(reply: ReplyEmpty, done: Result<(), Errno>) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Shared {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.on().and_then(|state| {
            let number = state.disk.find(parent.0, name)?;
            Ok(attributes(number, state.disk.node(number)?))
        });
        entry(reply, found);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes_of(ino.0) {
            Ok(attributes) => reply.attr(&BELIEVED, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let cut = size.map_or(Ok(()), |size| self.set_len(ino.0, size));
        match cut.and_then(|()| self.attributes_of(ino.0)) {
            Ok(attributes) => reply.attr(&BELIEVED, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let kind = Kind::Folder(Names::default());
        entry(
            reply,
            self.make(parent, name, kind, permissions(mode, umask)),
        );
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let kind = Kind::File(super::content::Content::default());
        match self.make(parent, name, kind, permissions(mode, umask)) {
            Ok(attributes) => reply.created(
                &BELIEVED,
                &attributes,
                Generation(0),
                FileHandle(0),
                FopenFlags::FOPEN_KEEP_CACHE,
            ),
            Err(error) => reply.error(error),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = |mut state: MutexGuard<'_, State>| state.disk.remove(parent.0, name, false);
        empty(reply, self.on().and_then(removed));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = |mut state: MutexGuard<'_, State>| state.disk.remove(parent.0, name, true);
        empty(reply, self.on().and_then(removed));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if parent != new_parent {
            return reply.error(Errno::EXDEV);
        }
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let renamed =
            |mut state: MutexGuard<'_, State>| state.disk.rename(parent.0, name, new_name);
        empty(reply, self.on().and_then(renamed));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = self.on().and_then(|state| {
            let at = usize::try_from(offset).map_err(|_| Errno::EFBIG)?;
            Ok(state.disk.read(ino.0, at, size as usize)?.to_vec())
        });
        match read {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.on().and_then(|mut state| {
            let at = usize::try_from(offset).map_err(|_| Errno::EFBIG)?;
            state.disk.write(ino.0, at, data)
        });
        match written {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        empty(reply, self.sync(ino.0));
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.open_listing(ino.0) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(error) => reply.error(error),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let state = match self.on() {
            Ok(state) => state,
            Err(error) => return reply.error(error),
        };
        let Some(listing) = state.listings.get(&fh.0) else {
            return reply.error(Errno::EBADF);
        };
        let dots = [
            (OsString::from("."), ino.0, true),
            ("..".into(), ino.0, true),
        ];
        let entries = dots.iter().chain(listing).enumerate();
        for (at, (name, number, is_folder)) in entries.skip(offset as usize) {
            let kind = match is_folder {
                true => FileType::Directory,
                false => FileType::RegularFile,
            };
            if reply.add(INodeNo(*number), at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.state().listings.remove(&fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        empty(reply, self.sync(ino.0));
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let blocks = 16 << 20;
        reply.statfs(blocks, blocks, blocks, 1 << 20, 1 << 20, 4096, 255, 4096);
    }
}
