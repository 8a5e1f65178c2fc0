//! The kernel above the filesystem: its locks, its passthrough handles, and the adapter's way of calling `fs`.
//!
//! Each call into `fs` and what the oracle learns from it are one step: nothing else runs in between.

use std::any::Any;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use parking_lot::Mutex;
use tierfs::engine::{Candidate, EngineError, JobKind, Patience};
use tierfs::fs::{Asked, Entry, Fs, FsError, FsResult, Noted, Opened, ROOT, Register, Removal, Service, Try, Waiter};
use tierfs::ports::{Caller, Lower, OpenFlags, RenameMode, SetAttr, SetTime};
use tierfs::types::Timestamp;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use crate::plan::Kind;
use crate::share::{ROOT_INO, SimShare, record_of};
use crate::truth::File;
use crate::world::{State, World};

pub const ROOT_USER: Caller = Caller { uid: 0, gid: 0, pid: 0, umask: 0o022 };

/// Why a user got no answer, or not the one hoped for.
#[derive(Debug)]
pub enum Failure {
    /// The daemon died.
    Dead,
    Fs(FsError),
}

impl From<FsError> for Failure {
    fn from(error: FsError) -> Self {
        Self::Fs(error)
    }
}

pub type Answer<T> = Result<T, Failure>;

/// An open file of a user.
#[derive(Debug)]
pub struct Handle {
    fh: u64,
    pub ino: u64,
    birth: u64,
    pub write: bool,
    /// The kernel's own open file below, of a handle that passes through.
    direct: Option<u64>,
}

/// A shared mapping; it outlives its handle.
#[derive(Debug)]
pub struct Mapping {
    id: u64,
    ino: u64,
    birth: u64,
}

/// How the kernel's inode is being read and written.
#[derive(Default)]
struct Served {
    cached: u32,
    direct: u32,
    backing: usize,
}

pub struct Kernel {
    pub world: Arc<World>,
    pub fs: Arc<Fs>,
    pub life: u32,
    pub lower: Arc<SimShare>,
    locks: Mutex<BTreeMap<u64, Arc<tokio::sync::Mutex<()>>>>,
    served: Mutex<BTreeMap<u64, Served>>,
}

struct Registrar<'a>(&'a World);

impl Register for Registrar<'_> {
    fn register(&self, _: BorrowedFd<'_>) -> std::io::Result<Arc<dyn Any + Send + Sync>> {
        let acting = self.0.lock().acting;
        Ok(Arc::new(acting.expect("it registers as the owner")) as Arc<dyn Any + Send + Sync>)
    }
}

impl Kernel {
    pub fn new(world: Arc<World>, fs: Arc<Fs>, lower: Arc<SimShare>, life: u32) -> Arc<Self> {
        Arc::new(Self { world, fs, life, lower, locks: Mutex::default(), served: Mutex::default() })
    }

    /// The kernel's lock of an inode.
    async fn inode(&self, ino: u64) -> OwnedMutexGuard<()> {
        let lock = self.locks.lock().entry(ino).or_default().clone();
        lock.lock_owned().await
    }

    async fn inodes(&self, mut inos: Vec<u64>) -> Vec<OwnedMutexGuard<()>> {
        inos.sort_unstable();
        inos.dedup();
        let mut held = Vec::new();
        for ino in inos {
            held.push(self.inode(ino).await);
        }
        held
    }

    fn check(&self) -> Answer<()> {
        if self.world.is_alive(self.life) { Ok(()) } else { Err(Failure::Dead) }
    }

    /// The world, as long as this process lives.
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> Answer<T> {
        let mut state = self.world.lock();
        if !state.lives(self.life) {
            return Err(Failure::Dead);
        }
        let value = act(&mut state);
        if state.broken.is_some() {
            self.world.ended.notify_one();
        }
        Ok(value)
    }

    fn truth<T>(&self, (ino, birth): (u64, u64), act: impl FnOnce(&mut State, &mut File) -> T) -> Answer<T> {
        self.with(|state| {
            let mut file = state.truth.files.remove(&(ino, birth)).expect("every file is known");
            let value = act(state, &mut file);
            state.truth.files.insert((ino, birth), file);
            value
        })
    }

    /// As the adapter does: an attempt at once, later ones after what blocked it.
    async fn drive<T>(&self, mut attempt: impl FnMut(&Fs, Patience) -> Try<T>) -> Answer<T> {
        let waiter = Waiter { pid: 0, uid: 0, since: Instant::now() };
        let mut patience = Patience::None;
        let mut taken = None;
        loop {
            self.check()?;
            let blocker = match attempt(&self.fs, patience) {
                Try::Done(result) => {
                    self.check()?;
                    return Ok(result?);
                }
                Try::Blocked(blocker) => blocker,
            };
            self.with(|state| state.stats.count("waited"))?;
            // What was taken for an attempt goes when it is over.
            drop(taken.take());
            taken = self.fs.unblock(blocker, waiter).await?;
            self.world.pause().await;
            patience = Patience::Disk;
        }
    }

    pub fn id_of(ino: u64) -> u64 {
        if ino == ROOT_INO { ROOT } else { ino }
    }

    pub fn lookup(&self, dir: u64, name: &OsStr) -> Answer<Entry> {
        self.check()?;
        let entry = self.fs.lookup(Self::id_of(dir), name);
        self.check()?;
        Ok(entry?)
    }

    fn birth(&self, ino: u64) -> Answer<u64> {
        self.with(|state| state.disk.seen.nodes.get(&ino).map(|node| node.birth))?.ok_or(Failure::Fs(FsError::Stale))
    }

    pub async fn open(&self, ino: u64, flags: OpenFlags) -> Answer<Handle> {
        let birth = self.birth(ino)?;
        let mut asked = Asked::new(ino);
        let result = self.drive(|fs, patience| {
            if flags.truncate {
                self.asks_size((ino, birth), Some(0));
            }
            let attempt = fs.try_open(&mut asked, flags, patience, &Registrar(&self.world));
            if flags.truncate {
                self.resolve_size((ino, birth), 0);
            }
            attempt.map(|opened| self.opened(ino, birth, flags, opened))
        });
        result.await
    }

    fn opened(&self, ino: u64, birth: u64, flags: OpenFlags, opened: Opened) -> Handle {
        let write = flags.write || flags.truncate;
        let mut state = self.world.lock();
        if state.lives(self.life) && opened.fh != u64::MAX {
            self.count_service(&mut state, ino, &opened.service);
        }
        let direct = match opened.service {
            Service::Kernel(_) if state.lives(self.life) => Some(state.open(ino, write, true)),
            _ => None,
        };
        let service = if direct.is_some() { "passed through" } else { "served by the daemon" };
        state.stats.count(service);
        Handle { fh: opened.fh, ino, birth, write, direct }
    }

    /// The kernel refuses two ways of serving one inode.
    fn count_service(&self, state: &mut State, ino: u64, service: &Service) {
        let mut served = self.served.lock();
        let served = served.entry(ino).or_default();
        match service {
            Service::Kernel(backing) => {
                let id = Arc::as_ptr(backing).cast::<()>() as usize;
                if served.cached > 0 || (served.direct > 0 && served.backing != id) {
                    state.broken(format!("file {ino} is passed through beside other handles"));
                }
                (served.direct, served.backing) = (served.direct + 1, id);
            }
            Service::Daemon => {
                if served.direct > 0 {
                    state.broken(format!("file {ino} is served by the daemon beside passthrough handles"));
                }
                served.cached += 1;
            }
        }
    }

    pub async fn create(&self, dir: u64, name: &OsStr, exclusive: bool) -> Answer<Handle> {
        let _dir = self.inode(dir).await;
        let flags = OpenFlags { read: true, write: true, exclusive, ..Default::default() };
        let (id, name) = (Self::id_of(dir), name.to_owned());
        let result = self.drive(|fs, patience| {
            let attempt = fs.try_create(id, &name, 0o644, flags, &ROOT_USER, patience, &Registrar(&self.world));
            attempt.map(|(entry, opened)| self.opened(entry.id, entry.generation, flags, opened))
        });
        result.await
    }

    pub async fn close(&self, handle: Handle) -> Answer<()> {
        self.with(|state| handle.direct.into_iter().for_each(|id| state.close(id)))?;
        // close(2) returns before the daemon is told.
        self.world.pause().await;
        self.check()?;
        if handle.fh != u64::MAX {
            let mut served = self.served.lock();
            let served = served.entry(handle.ino).or_default();
            let count = if handle.direct.is_some() { &mut served.direct } else { &mut served.cached };
            *count -= 1;
        }
        let released = self.fs.release(handle.fh);
        self.check()?;
        Ok(released?)
    }

    /// Reads, and compares with what must be there.
    pub async fn read(&self, handle: &Handle, offset: u64, len: u32) -> Answer<()> {
        let file = (handle.ino, handle.birth);
        if handle.direct.is_some() {
            self.direct_step("reads", handle.ino)?;
            return self.truth(file, |state, file| {
                let mut got = vec![0; len as usize];
                let read = state.disk.seen.nodes[&handle.ino].content.read(&mut got, offset);
                compare(state, handle.ino, file, offset, &got[..read], len);
            });
        }
        let result = self.drive(|fs, _| match fs.try_read(handle.fh, offset, len) {
            Try::Done(Ok(got)) => {
                let _ = self.truth(file, |state, file| compare(state, handle.ino, file, offset, &got, len));
                Try::Done(Ok(()))
            }
            other => other.map(drop),
        });
        result.await
    }

    fn direct_step(&self, what: &str, ino: u64) -> Answer<()> {
        match self.world.step(self.life, Kind::Direct, || format!("{what} {ino}")) {
            Err(_) => Err(Failure::Dead),
            Ok((_, None)) => Ok(()),
            Ok((_, Some(_))) => Err(FsError::Lower(tierfs::ports::LowerError::from_errno("direct", libc::EIO)).into()),
        }
    }

    /// Writes; `None`: at the end.
    pub async fn write(&self, handle: &Handle, offset: Option<u64>, data: &[u8]) -> Answer<()> {
        let _inode = self.inode(handle.ino).await;
        let file = (handle.ino, handle.birth);
        let end = self.truth(file, |_, file| file.content.size)?;
        let offset = offset.unwrap_or(end).min(end);
        if handle.direct.is_some() {
            self.direct_step("writes", handle.ino)?;
            return self.with(|state| state.direct_write(handle.ino, offset, data, false));
        }
        let result = self.drive(|fs, patience| {
            let _ = self.truth(file, |_, file| file.unanswered_write = Some((offset, data.to_vec())));
            let attempt = fs.try_write(handle.fh, offset, data, patience);
            let _ = self.wrote(handle, offset, data, &attempt);
            attempt
        });
        result.await
    }

    /// After an attempt to write, whatever it answered.
    fn wrote(&self, handle: &Handle, offset: u64, data: &[u8], attempt: &Try<()>) -> Answer<()> {
        self.truth((handle.ino, handle.birth), |state, file| {
            file.unanswered_write = None;
            let Try::Done(written) = attempt else { return };
            let node = &state.disk.seen.nodes[&handle.ino];
            let mtime = node.mtime;
            let record = record_of(node);
            if record.as_ref().is_some_and(|record| record.patch.is_some()) {
                file.is_patched();
            }
            if written.is_ok() {
                return file.write(offset, data, mtime);
            }
            if record.as_ref().is_some_and(|record| record.claim.is_remote() && record.patch.is_none()) {
                // Its content is elsewhere.
                return;
            }
            if record.is_some_and(|record| record.patch.is_some()) {
                // What is below is the content only where it was written.
                let mut now = vec![0; data.len()];
                let len = node.content.read(&mut now, offset);
                let len = now[..len].iter().zip(data).take_while(|(now, data)| now == data).count();
                let mut before = vec![0; data.len()];
                let kept = file.content.read(&mut before, offset);
                before.truncate(kept);
                file.refused_writes.push((offset, before));
                return file.write(offset, &data[..len], mtime);
            }
            // Any part of it may have been written.
            let mut now = vec![0; data.len()];
            let len = node.content.read(&mut now, offset);
            let mut before = vec![0; len];
            file.content.read(&mut before, offset);
            let kept =
                now[..len].iter().zip(&before).zip(data).position(|((now, before), data)| now != before && now != data);
            match kept {
                Some(at) => state.broken(format!(
                    "a failed write left other bytes at {} of file {}",
                    offset + at as u64,
                    handle.ino
                )),
                None => file.write(offset, &now[..len], mtime),
            }
        })
    }

    pub fn fsync(&self, handle: &Handle) -> Answer<()> {
        self.check()?;
        let synced = self.fs.sync(handle.fh, false);
        self.check()?;
        synced?;
        self.truth((handle.ino, handle.birth), |_, file| file.synced())
    }

    /// Maps a handle that passes through. `None`: the daemon serves it.
    pub fn map(&self, handle: &Handle) -> Answer<Option<Mapping>> {
        self.with(|state| {
            handle.direct?;
            let id = state.open(handle.ino, handle.write, true);
            if handle.write {
                state.mappings.insert(id);
            }
            state.stats.count(if handle.write { "mapped for writing" } else { "mapped" });
            Some(Mapping { id, ino: handle.ino, birth: handle.birth })
        })
    }

    /// Looks at all that is mapped, and lets it go.
    pub fn unmap(&self, mapping: Mapping) -> Answer<()> {
        self.truth((mapping.ino, mapping.birth), |state, file| {
            let len = file.content.size as u32;
            let got = state.disk.seen.nodes[&mapping.ino].content.bytes();
            compare(state, mapping.ino, file, 0, &got, len);
            state.close(mapping.id);
        })
    }

    fn asks_size(&self, file: (u64, u64), size: Option<u64>) {
        let _ = self.truth(file, |_, file| file.unanswered = size);
    }

    /// After an attempt that may have cut or extended a file, whatever it answered.
    fn resolve_size(&self, file: (u64, u64), size: u64) {
        let _ = self.truth(file, |state, truth| {
            truth.unanswered = None;
            let Some(node) = state.disk.seen.nodes.get(&file.0).filter(|node| node.birth == file.1) else { return };
            if node.content.size == size && truth.content.size != size {
                truth.set_size(size, node.mtime);
            } else if node.content.size == size && node.mtime > truth.mtime {
                truth.mtime_open = true;
            }
        });
    }

    pub async fn truncate(&self, ino: u64, size: u64) -> Answer<()> {
        let _inode = self.inode(ino).await;
        let file = (ino, self.birth(ino)?);
        let mut asked = Asked::new(ino);
        let changes = SetAttr { size: Some(size), ..Default::default() };
        let result = self.drive(|fs, patience| {
            self.asks_size(file, Some(size));
            let attempt = fs.try_set_attr(&mut asked, &changes, patience);
            self.resolve_size(file, size);
            if let Try::Done(Ok(attr)) = &attempt {
                let _ = self.truth(file, |state, truth| {
                    if truth.content.size != size {
                        state.broken(format!("file {ino} was cut to {size} bytes and has {}", truth.content.size));
                    }
                    truth.mtime = attr.mtime;
                });
            }
            attempt
        });
        result.await.map(drop)
    }

    pub async fn utimes(&self, ino: u64, mtime: Timestamp) -> Answer<()> {
        let _inode = self.inode(ino).await;
        let file = (ino, self.birth(ino)?);
        let mut asked = Asked::new(ino);
        let changes = SetAttr { mtime: Some(SetTime::At(mtime)), ..Default::default() };
        let result = self.drive(|fs, patience| {
            let _ = self.truth(file, |_, truth| truth.unanswered_mtime.push(mtime));
            let attempt = fs.try_set_attr(&mut asked, &changes, patience);
            let _ = self.truth(file, |state, truth| {
                truth.unanswered_mtime.clear();
                match &attempt {
                    Try::Done(Ok(_)) => truth.set_mtime(mtime),
                    Try::Done(Err(_)) => {
                        let seen = state.disk.seen.nodes.get(&ino).filter(|node| node.birth == file.1);
                        if seen.is_some_and(|node| node.mtime == mtime) {
                            truth.set_mtime(mtime);
                        }
                    }
                    Try::Blocked(_) => {}
                }
            });
            attempt
        });
        result.await.map(drop)
    }

    pub async fn chmod(&self, ino: u64, mode: u32) -> Answer<()> {
        let _inode = self.inode(ino).await;
        let file = (ino, self.birth(ino)?);
        let mut asked = Asked::new(ino);
        let changes = SetAttr { mode: Some(mode), ..Default::default() };
        let result = self.drive(|fs, patience| {
            let _ = self.truth(file, |_, truth| truth.unanswered_mode = Some(mode));
            let attempt = fs.try_set_attr(&mut asked, &changes, patience);
            let _ = self.truth(file, |_, truth| {
                truth.unanswered_mode = None;
                if let Try::Done(Ok(_)) = &attempt {
                    truth.set_mode(mode);
                }
            });
            attempt
        });
        result.await.map(drop)
    }

    /// Looks whether a file shows what it should.
    pub fn stat(&self, ino: u64) -> Answer<()> {
        let file = (ino, self.birth(ino)?);
        let attr = self.fs.attr(ino);
        self.check()?;
        let attr = attr?;
        self.truth(file, |state, truth| {
            let times_kept = truth.mtime_open || state.faults > 0 || attr.mtime == truth.mtime;
            if attr.size != truth.content.size || attr.mode != truth.mode || !times_kept {
                let (size, mode, mtime) = (truth.content.size, truth.mode, truth.mtime);
                state.broken(format!(
                    "file {ino} shows {} bytes, mode {:o}, mtime {:?} rather than {size}, {mode:o}, {mtime:?}",
                    attr.size, attr.mode, attr.mtime
                ));
            }
        })
    }

    fn entry(&self, dir: u64, name: &OsStr) -> Answer<Option<u64>> {
        self.with(|state| state.disk.seen.nodes[&dir].entries.get(name).copied())
    }

    pub async fn unlink(&self, dir: u64, name: &OsStr) -> Answer<()> {
        let _dir = self.inode(dir).await;
        let target = self.entry(dir, name)?.ok_or_else(absent)?;
        let _target = self.inode(target).await;
        let id = Self::id_of(dir);
        self.check()?;
        self.remove(|noted| self.fs.try_unlink(id, name, noted)).await
    }

    async fn remove(&self, attempt: impl Fn(&Noted) -> FsResult<Option<Removal>>) -> Answer<()> {
        let attempted = attempt(&Noted::default());
        self.check()?;
        if let Some(removal) = attempted? {
            let removed = self.fs.note_and_remove(removal, attempt).await;
            self.check()?;
            removed?;
        }
        Ok(())
    }

    pub async fn rename(&self, (dir, name): (u64, &OsStr), (to_dir, to): (u64, &OsStr), replace: bool) -> Answer<()> {
        let _dirs = self.inodes(vec![dir, to_dir]).await;
        let ends = [self.entry(dir, name)?.ok_or_else(absent)?].into_iter().chain(self.entry(to_dir, to)?);
        let _ends = self.inodes(ends.collect()).await;
        let (id, to_id) = (Self::id_of(dir), Self::id_of(to_dir));
        self.check()?;
        let mode = if replace { RenameMode::Replace } else { RenameMode::NoReplace };
        self.remove(|noted| self.fs.try_rename(id, name, to_id, to, mode, noted)).await
    }

    pub async fn link(&self, ino: u64, dir: u64, name: &OsStr) -> Answer<()> {
        let _locked = self.inodes(vec![ino, dir]).await;
        self.check()?;
        let linked = self.fs.link(ino, Self::id_of(dir), name);
        self.check()?;
        Ok(linked.map(drop)?)
    }

    /// `setxattr` of `user.tierfs.VERB`, with the inode locked as setxattr(2) does.
    pub async fn command(&self, ino: u64, verb: &str, value: &[u8]) -> Answer<()> {
        let _inode = self.inode(ino).await;
        self.check()?;
        let name = OsString::from(format!("user.tierfs.{verb}"));
        let command = self.fs.set_xattr(ino, &name, value, 0, &ROOT_USER);
        self.check()?;
        let ended = self.fs.run_command(command?.expect("it is a command")).await;
        self.check()?;
        Ok(ended?)
    }

    /// What the control socket and policies ask for.
    pub async fn job(&self, ino: u64, kind: JobKind) -> Answer<()> {
        let asked = || -> FsResult<Candidate> {
            let (node, attr) = self.lower.by_number(ino)?;
            let path = self.lower.path_of(&node)?.unwrap_or_else(|| "unnamed".into());
            Ok(Candidate { node, attr, path })
        };
        let asked = asked();
        self.check()?;
        let ended = self.fs.engine.run_one(kind, &asked?).await;
        self.check()?;
        ended.map_err(FsError::from)?;
        Ok(())
    }

    /// An error that nothing can have caused but the daemon itself.
    pub fn judge(&self, what: &str, failure: &Failure, transfer: bool) {
        let Failure::Fs(error) = failure else { return };
        let _ = self.with(|state| {
            state.stats.count("refused or failed");
            state.tell(|| format!("{what}: {error}"));
            let gone = |errno| [libc::ENOENT, libc::EEXIST, libc::ESTALE].contains(&errno);
            let fine = match error {
                FsError::Lower(error) => gone(error.errno()) || error.errno() == libc::EWOULDBLOCK,
                FsError::Stale => true,
                FsError::Engine(EngineError::Lower { source, .. }) => {
                    gone(source.errno()) || source.errno() == libc::EWOULDBLOCK
                }
                FsError::Engine(error) => transfer && error.is_skip(),
                _ => false,
            };
            if !fine && state.faults == 0 {
                state.broken(format!("{what} failed, and nothing else had: {error} ({error:?})"));
            }
        });
    }
}

fn absent() -> Failure {
    FsError::Lower(tierfs::ports::LowerError::from_errno("lookup", libc::ENOENT)).into()
}

fn compare(state: &mut State, ino: u64, file: &File, offset: u64, got: &[u8], len: u32) {
    let mut right = vec![0; len as usize];
    let there = file.content.read(&mut right, offset);
    state.stats.count("read");
    if got == &right[..there] {
        return;
    }
    let at = got.iter().zip(&right[..there]).position(|(got, right)| got != right);
    let around = at.map(|at| {
        let shown = |bytes: &[u8]| String::from_utf8_lossy(&bytes[at..(at + 16).min(bytes.len())]).into_owned();
        format!("; at {}: {:?} rather than {:?}", offset + at as u64, shown(got), shown(&right[..there]))
    });
    let around = around.unwrap_or_default();
    state.broken(format!("a read of file {ino} at {offset} got {} bytes of {there}{around}", got.len()));
}
