//! Opening and closing files: who serves the handle, and what must be stored before it may write.
//!
//! Invariant: all handles of an inode are served the same way (the kernel answers EIO otherwise), decided under the cell's lock; all
//! that pass through share one backing.

use std::any::Any;
use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock};

use serde_json::json;
use tokio::time::Instant;

use super::error::{FsError, FsResult};
use super::namespace::Entry;
use super::requester::look_up;
use super::wait::{Blocker, Try};
use super::{Asked, Fs};
use crate::admission::Requester;
use crate::catalog::index::Who;
use crate::engine::{Admission, Cell, Inner, Patience, WarmFile, shown};
use crate::kill;
use crate::ports::{Attr, Caller, LowerFile, OpenFlags, SetAttr};
use crate::tier::{Event, IoMode};
use crate::types::{ByteRange, Inode, Timestamp};

/// How far the clock that dates files may be behind the one that is read here, generously.
const CLOCK_TICK_NS: i128 = 20_000_000;
/// `S_ISUID | S_ISGID`.
const SET_ID: u32 = 0o6000;

/// What the kernel keeps for a lower file it may use itself; opaque here.
pub type Backing = Arc<dyn Any + Send + Sync>;

/// Hands a lower file to the kernel for passthrough.
pub trait Register {
    /// Whether there is a kernel to hand it to: else the daemon serves the handle.
    fn has_kernel(&self) -> bool {
        true
    }

    fn register(&self, file: BorrowedFd<'_>) -> std::io::Result<Backing>;
}

/// Who serves a handle.
#[derive(Clone)]
pub enum Service {
    /// The kernel, from this backing.
    Kernel(Backing),
    /// This daemon, through the page cache.
    Daemon,
}

/// A successful open.
pub struct Opened {
    pub fh: u64,
    pub service: Service,
}

/// The handle of every file whose record is damaged: an NFS server opens what it only wants to look at, and one such file must not
/// keep it from listing a directory. All use of its content is refused. No epoch is so high.
const NO_CONTENT: u64 = u64::MAX;

/// An open file.
pub(super) struct OpenFile {
    pub cell: Arc<Cell>,
    pub write: bool,
    /// Whether a program runs from it.
    executed: bool,
    /// When it was opened, if its mappings may write unseen.
    unseen_since: Option<Timestamp>,
    /// The daemon's descriptor of this handle; made on first need where the kernel serves.
    file: OnceLock<Arc<dyn LowerFile>>,
}

/// A lower file that is open already.
#[derive(Clone)]
struct AtHand {
    file: Arc<dyn LowerFile>,
    /// Its registration with the kernel, where it has one.
    backing: Option<Backing>,
    /// Made just now, and open for writing too.
    writes: bool,
    /// When it was last seen to have a name.
    named_at: Option<Instant>,
}

impl From<WarmFile> for AtHand {
    fn from(WarmFile { file, backing, named_at }: WarmFile) -> Self {
        Self { file, backing: Some(backing), writes: false, named_at: Some(named_at) }
    }
}

/// How a handle accesses content.
#[derive(Clone, Copy)]
struct Access {
    write: bool,
    truncate: bool,
}

impl Fs {
    /// Opens a file for `flags` as given to open(2). Permissions have been checked by the kernel.
    pub fn try_open(
        &self,
        file: &mut Asked,
        flags: OpenFlags,
        patience: Patience,
        register: &dyn Register,
    ) -> Try<Opened> {
        let who = file.who.clone();
        let attempt = self.asked(file).and_then(|node| {
            let attempt = self.open_inner(&node, flags, patience, register, who.clone())?;
            self.trace_open(&node, flags, who, &attempt);
            Ok(attempt)
        });
        attempt.unwrap_or_else(|error| Try::Done(Err(error)))
    }

    fn open_inner(
        &self,
        node: &Inode,
        flags: OpenFlags,
        patience: Patience,
        register: &dyn Register,
        who: Option<Who>,
    ) -> FsResult<Try<Opened>> {
        if flags.write || flags.truncate {
            self.check_writable()?;
            self.to_be_written(node)?;
        }
        let (cell, at_hand) = match self.cell_to_open(node) {
            Err(FsError::Engine(error)) if error.is_damage() && !flags.write && !flags.truncate => {
                return Ok(Try::Done(Ok(Opened { fh: NO_CONTENT, service: Service::Daemon })));
            }
            found => found?,
        };
        let access = Access { write: flags.write, truncate: flags.truncate };
        let mut inner = cell.lock();
        if (access.write || access.truncate) && self.is_replaced(&cell, &inner)? {
            return Err(FsError::Stale);
        }
        // The kernel looks for itself, but after it had us cut the file, unless the open is for writing, too.
        if access.truncate && !access.write && inner.executed > 0 {
            // A program that has just ended is not known to have yet, perhaps: once more, by another thread.
            let again = matches!(patience, Patience::None);
            return if again { Ok(Try::Blocked(Blocker::thread(&cell))) } else { Err(FsError::Executed) };
        }
        if let Some(who) = who.filter(|_| inner.machine.claim().is_remote()) {
            self.recorder().wanted_by(node.id, who);
        }
        // Once: who was let through without the content is served as it comes.
        if patience == Patience::None && !flags.write && !flags.truncate {
            let away = inner.machine.claim().is_remote();
            let first = match self.recalls_at_open(&inner) {
                Some(range) => Some(Blocker::open(&cell, range)),
                // A backup that were refused only when it reads would store zeros, as tar does after a failed read.
                None => (away && self.gate.refuses_some()).then(|| Blocker::leave(&cell)),
            };
            if let Some(blocker) = first {
                return Ok(Try::Blocked(blocker));
            }
        }
        match self.admit_open(&cell, &mut inner, access, flags, at_hand, patience, register)? {
            Ok(opened) => {
                self.recorder().opened(node.id, self.engine.now().secs);
                if inner.machine.is_foreign() {
                    self.engine.look_at_peer(&cell);
                }
                Ok(Try::Done(Ok(opened)))
            }
            Err(admission) => Ok(Try::Blocked(Blocker::admission(&cell, admission))),
        }
    }

    /// Whether a PUT has taken the name of a file that both sides of a pair have, while a request for the old one was on its way, or waited. The file goes on as
    /// what the PUT brought, so nothing may be written to this one: to ESTALE the kernel looks the name up again, and asks for the new one. While
    /// somebody has it open for writing, there is no such PUT.
    pub(super) fn is_replaced(&self, cell: &Cell, inner: &Inner) -> FsResult<bool> {
        let paired = inner.record.peer.is_some() && !inner.machine.has_writers();
        Ok(paired && self.lower.stat(&cell.node)?.nlink == 0)
    }

    /// Tells who watches the file that it was opened.
    fn trace_open(&self, node: &Inode, flags: OpenFlags, who: Option<Who>, attempt: &Try<Opened>) {
        let Try::Done(ended) = attempt else { return };
        self.engine.trace.note(node.id, || {
            let who = match who {
                Some(Who::User { uid, pid }) => look_up(pid, uid),
                _ => Requester::default(),
            };
            let by = match ended {
                Ok(Opened { service: Service::Kernel(_), .. }) => "the kernel",
                Ok(Opened { service: Service::Daemon, .. }) => "the daemon",
                Err(_) => "nobody",
            };
            let how = if flags.truncate {
                "truncate"
            } else if flags.write {
                "write"
            } else {
                "read"
            };
            let error = ended.as_ref().err().map(ToString::to_string);
            json!({ "event": "opened", "to": how, "for": shown(&who), "served_by": by, "error": error })
        });
    }

    /// The cell of a file that is to be opened, and the lower file where it had to be opened to know.
    fn cell_to_open(&self, node: &Inode) -> FsResult<(Arc<Cell>, Option<AtHand>)> {
        if let Some(cell) = self.engine.cells.live(node.id) {
            return Ok((cell, None));
        }
        let at_hand = match self.engine.warm.take(node.id) {
            Some(kept) => AtHand::from(kept),
            None => {
                let flags = OpenFlags { read: true, no_wait: true, ..Default::default() };
                match self.lower.open(node, flags) {
                    Ok(file) => AtHand { file, backing: None, writes: false, named_at: None },
                    // A lease: its holder has the cell by now, or had it.
                    Err(_) => return Ok((self.engine.cells.get(node)?, None)),
                }
            }
        };
        let cell = self.engine.cells.get_through(node, &*at_hand.file)?;
        Ok((cell, Some(at_hand)))
    }

    /// What must come back before an open for reading is answered: all of a small stub that nobody reads through the daemon yet.
    /// Once it is there the open goes on: through the daemon, until the recall is durable too.
    fn recalls_at_open(&self, inner: &Inner) -> Option<ByteRange> {
        let len = inner.record.object.as_ref()?.len;
        let all = ByteRange { offset: 0, len };
        let small = inner.machine.mode() == IoMode::Idle
            && inner.machine.claim().is_remote()
            && inner.record.patch.is_none()
            && len <= self.options.recall_at_open_max;
        (small && !inner.recall.as_ref().is_some_and(|recall| recall.is_available(all))).then_some(all)
    }

    /// Counts the handle and finds who serves it. The inner `Err`: something must happen first.
    #[expect(clippy::too_many_arguments, reason = "the facts of one open, used once")]
    fn admit_open(
        &self,
        cell: &Arc<Cell>,
        inner: &mut Inner,
        access: Access,
        flags: OpenFlags,
        at_hand: Option<AtHand>,
        patience: Patience,
        register: &dyn Register,
    ) -> FsResult<Result<Opened, Admission>> {
        let event = |passthrough| match access {
            Access { truncate: true, .. } => Event::OpenTruncate { passthrough },
            Access { write: true, .. } => Event::OpenWrite { passthrough },
            _ => Event::OpenRead { passthrough },
        };
        let write = access.write || access.truncate;
        let may_pass = self.options.passthrough && register.has_kernel();
        let passthrough = may_pass && !(access.write && self.should_wait(cell, inner, at_hand.as_ref()));
        if access.write && !access.truncate && self.is_privileged_stub(cell, inner)? {
            match self.engine.admit(cell, inner, Event::Rewrite, patience)? {
                Admission::Go => {}
                other => return Ok(Err(other)),
            }
        }
        match self.engine.admit(cell, inner, event(passthrough), patience)? {
            Admission::Go => {}
            other => return Ok(Err(other)),
        }
        let opened = self.serve(cell, inner, access, flags, at_hand, register);
        if opened.is_err() {
            inner.machine.apply(Event::Close { write });
        }
        opened.map(Ok)
    }

    /// Whether an open for writing should be served by the daemon because there is next to no room: what the kernel writes by itself cannot wait for some.
    fn should_wait(&self, cell: &Cell, inner: &Inner, at_hand: Option<&AtHand>) -> bool {
        if !self.room.is_scarce() || inner.machine.mode() != IoMode::Idle {
            return false;
        }
        // As of a stub: the daemon would take them from what a mapping writes, too.
        if self.lower.stat(&cell.node).map_or(true, |attr| attr.mode & SET_ID != 0) {
            return false;
        }
        // A mapping outlives its descriptor, and is of the file below: what it changes, the daemon's pages would not show. Nobody can have one of a file just made.
        let unmapped =
            |file: &Arc<dyn LowerFile>| self.lower.features().leases && file.nobody_writes().unwrap_or(false);
        match at_hand {
            Some(AtHand { writes: true, .. }) => true,
            Some(AtHand { file, .. }) => unmapped(file),
            None => {
                let flags = OpenFlags { read: true, no_wait: true, ..Default::default() };
                self.lower.open(&cell.node, flags).is_ok_and(|file| unmapped(&file))
            }
        }
    }

    /// A stub with set-id bits. The daemon cannot tell what a mapping writes, which leaves them, from what write(2) does: the kernel must.
    fn is_privileged_stub(&self, cell: &Cell, inner: &Inner) -> FsResult<bool> {
        Ok(inner.machine.claim().is_remote() && self.lower.stat(&cell.node)?.mode & SET_ID != 0)
    }

    fn serve(
        &self,
        cell: &Arc<Cell>,
        inner: &mut Inner,
        access: Access,
        flags: OpenFlags,
        mut at_hand: Option<AtHand>,
        register: &dyn Register,
    ) -> FsResult<Opened> {
        if access.truncate {
            self.lower.set_attr(&cell.node, &SetAttr { size: Some(0), ..Default::default() })?;
            kill::point("open.cut");
        }
        let write = access.write || access.truncate;
        let file = OnceLock::new();
        let mut service = Service::Daemon;
        match inner.machine.mode() {
            IoMode::Pass(1) => match self.first_backing(cell, inner, &mut at_hand, register) {
                Ok(backing) => service = Service::Kernel(backing),
                Err(error) => {
                    tracing::warn!(file = %cell.node.id, "no passthrough, the daemon serves it: {error}");
                    inner.machine.apply(Event::Close { write });
                    let again = if write {
                        Event::OpenWrite { passthrough: false }
                    } else {
                        Event::OpenRead { passthrough: false }
                    };
                    inner.machine.apply(again);
                }
            },
            IoMode::Pass(_) => {
                service = Service::Kernel(inner.backing.clone().ok_or(FsError::BadHandle)?);
            }
            IoMode::Daemon(_) | IoMode::Idle => {}
        }
        if let Service::Daemon = service {
            let lower = match at_hand {
                Some(AtHand { file, writes: true, .. }) => file,
                _ => self.lower.open(&cell.node, daemon_flags(flags, write))?,
            };
            let _ = file.set(lower);
        }
        let unseen = flags.read && flags.write && matches!(service, Service::Kernel(_));
        inner.unseen_writers += u32::from(unseen);
        let unseen_since = unseen.then(|| self.engine.now());
        let executed = flags.execute;
        inner.executed += u32::from(executed);
        let fh = self.files.insert(OpenFile { cell: cell.clone(), write, executed, unseen_since, file });
        Ok(Opened { fh, service })
    }

    /// The inode's one backing, of the first handle that passes through. The file at hand is used up unless this fails.
    fn first_backing(
        &self,
        cell: &Cell,
        inner: &mut Inner,
        at_hand: &mut Option<AtHand>,
        register: &dyn Register,
    ) -> FsResult<Backing> {
        // Whoever closed it last may have kept it just now, and still hold the cell.
        let ready = match at_hand.clone().or_else(|| self.engine.warm.take(cell.node.id).map(AtHand::from)) {
            Some(ready) => ready,
            None => AtHand {
                // For reading only: a backing open for writing would look like a writer to the kernel's leases.
                file: self.lower.open(&cell.node, OpenFlags { read: true, ..Default::default() })?,
                backing: None,
                writes: false,
                named_at: None,
            },
        };
        let backing = match ready.backing {
            Some(backing) => backing,
            None => {
                let fd = ready.file.as_fd().ok_or(FsError::Invalid("this share has no descriptors"))?;
                // The kernel reads and writes as whoever registers: the file's owner, or users would get at blocks kept for root.
                let mut registered = None;
                ready.file.as_owner(&mut || registered = Some(register.register(fd)))?;
                registered
                    .unwrap_or_else(|| Err(std::io::ErrorKind::Other.into()))
                    .map_err(|source| crate::ports::LowerError { op: "FUSE_DEV_IOC_BACKING_OPEN", source })?
            }
        };
        inner.backing = Some(backing.clone());
        inner.backing_file = Some(ready.file);
        inner.keeps = !ready.writes;
        inner.named_at = ready.named_at;
        *at_hand = None;
        Ok(backing)
    }

    /// Creates and opens a file; opens it where the name exists already (unless exclusively). The kernel must later
    /// forget the entry once.
    #[expect(clippy::too_many_arguments, reason = "the facts of one request, used once")]
    pub fn try_create(
        &self,
        parent: u64,
        name: &OsStr,
        mode: u32,
        flags: OpenFlags,
        who: &Caller,
        patience: Patience,
        register: &dyn Register,
    ) -> Try<(Entry, Opened)> {
        match self.create_inner(parent, name, mode, flags, who, patience, register) {
            Ok(attempt) => attempt,
            Err(error) => Try::Done(Err(error)),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the facts of one request, used once")]
    fn create_inner(
        &self,
        parent: u64,
        name: &OsStr,
        mode: u32,
        flags: OpenFlags,
        who: &Caller,
        patience: Patience,
        register: &dyn Register,
    ) -> FsResult<Try<(Entry, Opened)>> {
        self.check_writable()?;
        Self::check_free(parent, name)?;
        let dir = self.node(parent)?;
        // Exclusive below, always: an existing file may be a stub, and must be opened as one.
        let below = OpenFlags {
            exclusive: true,
            truncate: false,
            read: true,
            write: true,
            sync: flags.sync,
            ..Default::default()
        };
        let change = self.changing([Some(&dir), None])?;
        match self.lower.create(&dir, name, mode, below, who) {
            Ok((node, attr, file)) => {
                self.recorder().named(&dir, name);
                if let Some(change) = change {
                    change.named(&dir, name);
                }
                let opened = self.open_created(&node, flags, file, register)?;
                self.recorder().opened(node.id, self.engine.now().secs);
                self.nodes.remember(&node);
                Ok(Try::Done(Ok((self.entry(&node, attr), opened))))
            }
            Err(error) if error.errno() == libc::EEXIST && !flags.exclusive => {
                let (node, attr) = self.lower.lookup(&dir, name)?;
                self.nodes.remember(&node);
                let entry = self.entry(&node, attr);
                let attempt = self.open_inner(&node, flags, patience, register, None);
                if let Ok(attempt) = &attempt {
                    self.trace_open(&node, flags, Some(Who::User { uid: who.uid, pid: who.pid }), attempt);
                }
                let attempt = attempt.unwrap_or_else(|error| Try::Done(Err(error)));
                if !matches!(attempt, Try::Done(Ok(_))) {
                    self.forget(entry.id, 1);
                }
                Ok(attempt.map(|opened| (entry, opened)))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn open_created(
        &self,
        node: &Inode,
        flags: OpenFlags,
        file: Arc<dyn LowerFile>,
        register: &dyn Register,
    ) -> FsResult<Opened> {
        let cell = self.engine.cells.get_new(node)?;
        let access = Access { write: flags.write, truncate: false };
        let mut inner = cell.lock();
        let at_hand = Some(AtHand { file, backing: None, writes: true, named_at: None });
        self.admit_open(&cell, &mut inner, access, flags, at_hand, Patience::None, register)?
            .map_err(|_| FsError::Invalid("a file just created is busy"))
    }

    /// Closes a handle.
    pub fn release(&self, fh: u64) -> FsResult<()> {
        if fh == NO_CONTENT {
            return Ok(());
        }
        let file = self.files.remove(fh)?;
        self.engine.trace.note(file.cell.node.id, || json!({ "event": "closed", "written": file.write }));
        if file.write {
            self.recorder().changed(&file.cell.node);
            self.was_written(&file.cell.node);
        }
        let mut inner = file.cell.lock();
        inner.executed -= u32::from(file.executed);
        if let Some(since) = file.unseen_since {
            inner.unseen_writers -= 1;
            // It may have been write(2), of which the kernel knows: that cannot be told apart here.
            let changed = |attr: &Attr| attr.mtime.nanos_since(since) >= -CLOCK_TICK_NS;
            let attr = match &inner.backing_file {
                Some(open) => open.stat(),
                None => self.lower.stat(&file.cell.node),
            };
            if attr.is_ok_and(|attr| changed(&attr)) {
                self.engine.announce_change(file.cell.node.id);
            }
        }
        inner.machine.apply(Event::Close { write: file.write });
        if inner.machine.mode() == IoMode::Idle {
            let closed = (inner.backing.take(), inner.backing_file.take());
            // A file handle opens an unlinked file too, and a kept one would never end.
            if let (true, (Some(backing), Some(lower))) = (inner.keeps, closed.clone())
                && let Some(warm) = WarmFile::if_named(lower, backing, inner.named_at)
            {
                // Under the cell's lock, so that no release begins between this close and the keeping.
                self.engine.warm.put(file.cell.node.id, warm);
            }
            if inner.patch_is_kept {
                file.cell.changed.notify_waiters();
            }
            if let Some(recall) = &inner.recall {
                // Nobody reads on: it may end.
                recall.stir();
            }
            drop(inner);
            // Closing reaches into the kernel: not under the lock. A new open registers anew meanwhile.
            drop(closed);
        }
        Ok(())
    }

    pub(super) fn file(&self, fh: u64) -> FsResult<Arc<OpenFile>> {
        if fh == NO_CONTENT {
            return Err(FsError::Damaged);
        }
        self.files.get(fh)
    }

    /// A descriptor good for reading, and for calls that the kernel allows on any.
    pub(super) fn reading_file(&self, open: &OpenFile) -> FsResult<Arc<dyn LowerFile>> {
        if let Some(file) = open.file.get() {
            return Ok(file.clone());
        }
        if let Some(file) = open.cell.lock().backing_file.clone() {
            return Ok(file);
        }
        self.writing_file(open)
    }

    /// A descriptor that can do all that the handle may do.
    pub(super) fn writing_file(&self, open: &OpenFile) -> FsResult<Arc<dyn LowerFile>> {
        if let Some(file) = open.file.get() {
            return Ok(file.clone());
        }
        let file = self.lower.open(&open.cell.node, daemon_flags(OpenFlags::default(), open.write))?;
        Ok(open.file.get_or_init(|| file).clone())
    }
}

/// The daemon's own flags for a handle: always readable (a partial page is read before it is written). Append and direct
/// I/O stay with the kernel, which gives us offsets and sizes.
fn daemon_flags(flags: OpenFlags, write: bool) -> OpenFlags {
    OpenFlags { read: true, write, sync: flags.sync, ..Default::default() }
}
