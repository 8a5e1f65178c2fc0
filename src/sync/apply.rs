//! The slave's side of a statement: its share becomes what the master says, as far as it is the master's to say.
//!
//! Directories are found by their id and never by a path, and every name is one step in a directory that is open: no symbolic link is followed,
//! and nothing leads out of the share.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::book::{Book, RefusedName};
use super::limbo::Limbo;
use super::wire::{Answer, Batch, Kind, Node, Refused, Statement, encode, is_name};
use super::{SyncError, SyncResult};
use crate::capture::files::Files;
use crate::capture::id::{Identity, identity, peer_id, set_identity};
use crate::capture::marks::{Barrier, names_in};
use crate::kill;
use crate::ports::{Attr, Caller, Clock, FileKind, Lower, LowerError, LowerResult, NewNode, OpenFlags, RenameMode};
use crate::types::{FileId, Inode, PairFileId, STAGING_NAME};

const OURSELVES: Caller = Caller { uid: 0, gid: 0, pid: 0, umask: 0 };
/// Refusals and nameless inodes told in one answer.
const TOLD_MAX: usize = 1_000;

/// Why a statement was not carried out.
pub(super) enum Not {
    /// The share cannot be written at present: the batch is to be tried again.
    Now(LowerError),
    Refused {
        why: String,
        conflict: bool,
    },
    Book(SyncError),
}

impl From<LowerError> for Not {
    fn from(error: LowerError) -> Self {
        // What has no number is ours, and about one file.
        match error.source.raw_os_error().unwrap_or(0) {
            libc::EIO | libc::ENOSPC | libc::EDQUOT | libc::EROFS | libc::EMFILE | libc::ENFILE | libc::ENOMEM => {
                Self::Now(error)
            }
            _ => Self::Refused { why: error.to_string(), conflict: false },
        }
    }
}

impl From<SyncError> for Not {
    fn from(error: SyncError) -> Self {
        Self::Book(error)
    }
}

pub(super) type Did<T> = Result<T, Not>;

fn conflict<T>() -> Did<T> {
    Err(Not::Refused { why: "something that only this side has is in the way".into(), conflict: true })
}

/// Changes the slave's share.
pub struct Applier {
    pub(super) lower: Arc<dyn Lower>,
    pub(super) files: Arc<dyn Files>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) limbo: Limbo,
    barrier: Barrier,
    /// Names of the directory that is being told in parts.
    listing: Mutex<Option<(FileId, Vec<OsString>)>>,
}

/// One batch under way.
pub(super) struct Work<'a> {
    pub book: &'a Book,
    pub answer: Answer,
    pub dry: bool,
    /// Directories' own attributes, which what is done in them would move; and whether they count by themselves.
    dirs: BTreeMap<PairFileId, (Node, bool)>,
}

impl Work<'_> {
    fn directory_last(&mut self, id: PairFileId, is: &Node, counts: bool) {
        let counts = counts && self.dirs.get(&id).is_none_or(|(_, counts)| *counts);
        self.dirs.insert(id, (is.clone(), counts));
    }
}

pub(super) fn kind_of(kind: &Kind) -> FileKind {
    match kind {
        Kind::Regular(_) => FileKind::Regular,
        Kind::Directory => FileKind::Directory,
        Kind::Symlink { .. } => FileKind::Symlink,
        Kind::Fifo => FileKind::Fifo,
        Kind::Socket => FileKind::Socket,
        Kind::CharDevice { .. } => FileKind::CharDevice,
        Kind::BlockDevice { .. } => FileKind::BlockDevice,
    }
}

impl Applier {
    pub fn new(lower: Arc<dyn Lower>, files: Arc<dyn Files>, clock: Arc<dyn Clock>) -> LowerResult<Self> {
        let limbo = Limbo::open(lower.clone())?;
        let barrier = Barrier::new(lower.clone(), limbo.dir);
        Ok(Self { lower, files, clock, limbo, barrier, listing: Mutex::default() })
    }

    /// Applies a batch, and returns when all of it is on stable storage. Number 0 changes nothing and tells what would be done.
    pub fn apply(&self, book: &mut Book, batch: &Batch) -> SyncResult<Answer> {
        if batch.number == 0 {
            return self.work(book, batch);
        }
        self.take_up_failed(book)?;
        // From here on a crash does it once more.
        book.set("pending", &encode(batch))?;
        self.carry_out(book, batch)
    }

    pub(super) fn carry_out(&self, book: &mut Book, batch: &Batch) -> SyncResult<Answer> {
        self.limbo.tidy()?;
        let answer = book.batch(|book| {
            let worked = self.work(book, batch).and_then(|answer| {
                self.barrier.wait()?;
                kill::point("peer.sync.applied");
                Ok(answer)
            });
            // What was made before a failure is remembered as well: the next batch may say something else.
            let Ok(answer) = &worked else { return Ok(worked) };
            book.set_number("number", batch.number)?;
            book.set("answer", &encode(answer))?;
            book.unset("pending")?;
            Ok(worked)
        })?;
        self.files.told();
        answer
    }

    fn work(&self, book: &Book, batch: &Batch) -> SyncResult<Answer> {
        let answer = Answer { run: batch.run, number: batch.number, ..Answer::default() };
        let mut work = Work { book, answer, dry: batch.number == 0, dirs: BTreeMap::new() };
        for statement in &batch.statements {
            self.statement(&mut work, statement)?;
        }
        let dirs = std::mem::take(&mut work.dirs);
        for (id, (said, counts)) in &dirs {
            let Some(node) = self.known(work.book, *id)? else { continue };
            let did = match counts {
                true => self.dress(&mut work, &node, said),
                false => self.dress_inode(&work, &node, said, true).map(drop),
            };
            self.count(&mut work, None, did)?;
        }
        for id in if work.dry { Vec::new() } else { book.nameless(TOLD_MAX)? } {
            let origin = book.known(id)?.map_or(FileId { ino: 0, birth: 0 }, |known| known.origin);
            work.answer.nameless.push((id, origin));
        }
        Ok(work.answer)
    }

    fn statement(&self, work: &mut Work<'_>, statement: &Statement) -> SyncResult<()> {
        match statement {
            Statement::Name { dir, name, is } => match self.directory(work.book, *dir)? {
                Some(node) => self.name(work, (*dir, &node), name, is.as_ref()),
                None => self.unknown(work, *dir, 1),
            },
            Statement::Names { dir, after, upto, names } => {
                let Some(node) = self.directory(work.book, *dir)? else {
                    return self.unknown(work, *dir, names.len() as u64);
                };
                for (name, is) in names {
                    if is.is_some() {
                        self.name(work, (*dir, &node), name, is.as_ref())?;
                    }
                }
                let told: HashSet<&[u8]> = names.iter().map(|(name, _)| &name[..]).collect();
                for name in self.names_between(&node, after.as_deref(), upto.as_deref())? {
                    if !told.contains(name.as_bytes()) {
                        self.name(work, (*dir, &node), name.as_bytes(), None)?;
                    }
                }
                Ok(())
            }
            Statement::Inode(said) => {
                let Some(id) = said.id.filter(|id| *id != PairFileId::ROOT) else { return Ok(()) };
                if said.kind == Kind::Directory {
                    work.directory_last(id, said, true);
                    return Ok(());
                }
                let Some(node) = self.known(work.book, id)? else { return Ok(()) };
                let did = self.dress(work, &node, said);
                self.count(work, None, did)
            }
            Statement::Gone(id) => {
                let did = if work.dry { Ok(()) } else { self.gone(work, *id) };
                self.count(work, None, did)
            }
        }
    }

    fn unknown(&self, work: &mut Work<'_>, dir: PairFileId, names: u64) -> SyncResult<()> {
        work.answer.counts.made += if work.dry { names } else { 0 };
        if !work.answer.unknown.contains(&dir) {
            work.answer.unknown.push(dir);
        }
        Ok(())
    }

    /// What this side has of an id.
    pub(super) fn known(&self, book: &Book, id: PairFileId) -> SyncResult<Option<Inode>> {
        let Some(known) = book.known(id)? else { return Ok(None) };
        let there = self
            .lower
            .stat(&known.node)
            .and_then(|attr| Ok(attr.nlink > 0 && peer_id(&*self.lower, &known.node)? == Some(id)));
        match there {
            Ok(there) => Ok(there.then_some(known.node)),
            Err(error) if matches!(error.errno(), libc::ESTALE | libc::ENOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn directory(&self, book: &Book, id: PairFileId) -> SyncResult<Option<Inode>> {
        if id == PairFileId::ROOT {
            return Ok(Some(self.lower.root()));
        }
        let Some(node) = self.known(book, id)? else { return Ok(None) };
        Ok((self.lower.stat(&node)?.kind == FileKind::Directory).then_some(node))
    }

    /// Names of a directory after one and up to another, in order. They are read once for all parts of it.
    fn names_between(&self, dir: &Inode, after: Option<&[u8]>, upto: Option<&[u8]>) -> LowerResult<Vec<OsString>> {
        let mut listing = self.listing.lock();
        let known = listing.take().filter(|(of, _)| *of == dir.id && after.is_some());
        let names = match known {
            Some((_, names)) => names,
            None => names_in(&*self.lower, dir)?,
        };
        let between = |name: &&OsString| {
            let name = name.as_bytes();
            after.is_none_or(|after| name > after) && upto.is_none_or(|upto| name <= upto)
        };
        let found = names.iter().filter(between).cloned().collect();
        if upto.is_some() {
            *listing = Some((dir.id, names));
        }
        Ok(found)
    }

    /// Takes note of how something went; errors are those that end the batch.
    fn count(&self, work: &mut Work<'_>, at: Option<(PairFileId, &[u8])>, did: Did<()>) -> SyncResult<()> {
        match did {
            Ok(()) => {
                if let Some((dir, name)) = at.filter(|_| !work.dry) {
                    work.book.accept(dir, name)?;
                }
                Ok(())
            }
            Err(Not::Now(error)) => Err(error.into()),
            Err(Not::Book(error)) => Err(error),
            Err(Not::Refused { why, conflict }) => {
                work.answer.counts.refused += 1;
                let Some((dir, name)) = at else {
                    tracing::warn!("a statement of the pair's master was not carried out: {why}");
                    return Ok(());
                };
                if work.answer.refused.len() < TOLD_MAX {
                    let refused = Refused { dir, name: name.to_vec(), why: why.clone(), conflict };
                    work.answer.refused.push(refused);
                }
                if !work.dry {
                    let since = self.clock.now().secs;
                    work.book.refuse(&RefusedName { dir, name: name.to_vec(), why, conflict, since })?;
                }
                Ok(())
            }
        }
    }

    fn name(&self, work: &mut Work<'_>, dir: (PairFileId, &Inode), name: &[u8], is: Option<&Node>) -> SyncResult<()> {
        let did = self.try_name(work, dir, name, is);
        self.count(work, Some((dir.0, name)), did)
    }

    fn try_name(
        &self,
        work: &mut Work<'_>,
        (id, dir): (PairFileId, &Inode),
        name: &[u8],
        is: Option<&Node>,
    ) -> Did<()> {
        let hidden = name == STAGING_NAME.as_bytes() && *dir == self.lower.root();
        if !is_name(name) || hidden {
            // Its own comparison comes upon the hidden one.
            let why = "no name that can be synced".to_owned();
            return if is.is_some() { Err(Not::Refused { why, conflict: false }) } else { Ok(()) };
        }
        let name = OsStr::from_bytes(name);
        let now = match self.lower.lookup(dir, name) {
            Err(error) if error.errno() == libc::ENOENT => None,
            found => Some(found?),
        };
        let now = match now {
            Some((node, attr)) => Some((node, attr, peer_id(&*self.lower, &node)?)),
            None => None,
        };
        let Some(is) = is else {
            match now {
                Some((node, attr, Some(own))) => {
                    work.answer.counts.removed += 1;
                    self.unname(work, (id, dir), name, (own, &node, &attr))?;
                }
                _ => work.answer.counts.unchanged += 1,
            }
            return Ok(());
        };
        match now {
            Some((node, attr, own)) if own.is_some() && own == is.id => {
                if attr.kind != kind_of(&is.kind) {
                    return Err(Not::Refused { why: "it is of another kind here".into(), conflict: false });
                }
                if let Some(own) = own.filter(|_| !work.dry) {
                    self.remember(work, own, (&node, attr.kind), is.origin)?;
                }
                if is.kind == Kind::Directory && !work.dry {
                    work.directory_last(own.unwrap_or(PairFileId::ROOT), is, true);
                    return Ok(());
                }
                self.dress(work, &node, is)
            }
            Some((_, _, None)) => conflict(),
            Some((node, attr, Some(own))) => {
                self.unname(work, (id, dir), name, (own, &node, &attr))?;
                self.put(work, dir, name, is)
            }
            None => self.put(work, dir, name, is),
        }
    }

    /// Keeps in the book what is where.
    fn remember(&self, work: &Work<'_>, id: PairFileId, (node, kind): (&Inode, FileKind), origin: FileId) -> Did<()> {
        let known = work.book.known(id)?;
        if known.is_none_or(|known| known.node != *node || known.origin != origin) {
            if kind != FileKind::Regular {
                // An id that came with a backup belongs to this inode from now on.
                set_identity(&*self.lower, node, &Identity { id, there: origin })?;
            }
            work.book.put(id, node, origin)?;
        }
        Ok(())
    }

    /// Takes a name away. An inode without another name is kept until the master has said more.
    pub(super) fn unname(
        &self,
        work: &Work<'_>,
        (dir_id, dir): (PairFileId, &Inode),
        name: &OsStr,
        (id, node, attr): (PairFileId, &Inode, &Attr),
    ) -> Did<()> {
        if work.dry {
            return Ok(());
        }
        if attr.kind != FileKind::Directory && attr.nlink > 1 {
            self.lower.unlink(dir, name)?;
        } else {
            self.limbo.keep(id, node, dir, name)?;
            if work.book.known(id)?.is_none() {
                let there = identity(&*self.lower, node)?.map_or(FileId { ino: 0, birth: 0 }, |is| is.there);
                work.book.put(id, node, there)?;
            }
            work.book.unnamed(id, dir_id, name.as_bytes())?;
        }
        self.files.name_changed(dir.id, name);
        self.files.inode_changed(node.id, false);
        Ok(())
    }

    /// Gives a free name to what the master has there.
    fn put(&self, work: &mut Work<'_>, dir: &Inode, name: &OsStr, is: &Node) -> Did<()> {
        let known = match is.id {
            Some(id) => self.known(work.book, id)?,
            None => None,
        };
        if work.dry {
            let counts = &mut work.answer.counts;
            *if known.is_some() { &mut counts.moved } else { &mut counts.made } += 1;
            return Ok(());
        }
        let Some(id) = is.id.filter(|id| *id != PairFileId::ROOT) else {
            return Err(Not::Refused { why: "the master tells no id".into(), conflict: false });
        };
        let placed = match known {
            Some(node) => {
                work.answer.counts.moved += 1;
                self.place(work, (id, &node), dir, name, is)
            }
            None => {
                work.answer.counts.made += 1;
                self.make(work, id, dir, name, is)
            }
        };
        match placed {
            // Somebody was quicker.
            Err(Not::Refused { .. }) if self.lower.lookup(dir, name).is_ok() => return conflict(),
            placed => placed?,
        }
        self.files.name_changed(dir.id, name);
        Ok(())
    }

    /// Gives a name to an inode that is here under another one, or under none.
    fn place(
        &self,
        work: &mut Work<'_>,
        (id, node): (PairFileId, &Inode),
        dir: &Inode,
        name: &OsStr,
        is: &Node,
    ) -> Did<()> {
        if self.lower.stat(node)?.kind != kind_of(&is.kind) {
            return Err(Not::Refused { why: "it is of another kind here".into(), conflict: false });
        }
        let to = |from: &Inode, old: &OsStr| self.lower.rename(from, old, dir, name, RenameMode::NoReplace);
        if let Some(waits) = self.limbo.name_of(id, node)? {
            to(&self.limbo.dir, &waits)?;
        } else if is.kind == Kind::Directory {
            let gone = || LowerError::from_errno("rename: its place is not known", libc::ESTALE);
            let (above, _) = self.lower.lookup(node, OsStr::new(".."))?;
            let path = self.lower.path_of(node)?.ok_or_else(gone)?;
            let old = path.file_name().ok_or_else(gone)?;
            if self.lower.lookup(&above, old)?.0.id != node.id {
                return Err(gone().into());
            }
            to(&above, old)?;
            self.files.name_changed(above.id, old);
        } else {
            self.lower.link(node, dir, name)?;
        }
        work.book.named(id)?;
        work.book.put(id, node, is.origin)?;
        if is.kind == Kind::Directory {
            work.directory_last(id, is, false);
            return Ok(());
        }
        self.dress_inode(work, node, is, true).map(drop)
    }

    /// Makes what is not here, out of sight, and gives it its name when it is complete.
    fn make(&self, work: &mut Work<'_>, id: PairFileId, dir: &Inode, name: &OsStr, is: &Node) -> Did<()> {
        let aside = Limbo::new_name(id);
        let made = self.make_aside(work, id, &aside, is).and_then(|node| {
            self.lower.rename(&self.limbo.dir, &aside, dir, name, RenameMode::NoReplace)?;
            Ok(node)
        });
        let node = match made {
            Ok(node) => node,
            Err(not) => {
                // The next batch does it if this does not.
                let _ = self.limbo.discard(&aside);
                return Err(not);
            }
        };
        work.book.put(id, &node, is.origin)?;
        if is.kind == Kind::Directory {
            work.answer.made.push((id, is.origin));
            work.directory_last(id, is, false);
        }
        Ok(())
    }

    fn make_aside(&self, work: &Work<'_>, id: PairFileId, aside: &OsStr, is: &Node) -> Did<Inode> {
        let place = &self.limbo.dir;
        let special = |kind, device| NewNode::Special(kind, device);
        let what = match &is.kind {
            Kind::Regular(facts) => {
                if !facts.held {
                    let why = "the master says that this side holds its content, and it is not here".into();
                    return Err(Not::Refused { why, conflict: false });
                }
                let flags = OpenFlags { write: true, exclusive: true, ..OpenFlags::default() };
                let (node, ..) = self.lower.create(place, aside, 0, flags, &OURSELVES)?;
                self.files.make_stub(&node, id, facts, is.origin)?;
                // Set-id bits do not outlive a change of size, so they come after it.
                self.dress_inode(work, &node, is, false)?;
                return Ok(node);
            }
            Kind::Directory => NewNode::Directory,
            Kind::Symlink { target } => NewNode::Symlink(OsStr::from_bytes(target)),
            Kind::Fifo => special(FileKind::Fifo, 0),
            Kind::Socket => special(FileKind::Socket, 0),
            Kind::CharDevice { device } => special(FileKind::CharDevice, *device),
            Kind::BlockDevice { device } => special(FileKind::BlockDevice, *device),
        };
        let (node, _) = self.lower.make(place, aside, what, 0o700, &OURSELVES)?;
        set_identity(&*self.lower, &node, &Identity { id, there: is.origin })?;
        self.dress_inode(work, &node, is, false)?;
        Ok(node)
    }
}
