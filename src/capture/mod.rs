//! What the metadata sync has to tell the other side of a pair: names and inodes that changed since they were told.
//!
//! Nothing here says what changed, only where to look; what is told is what is there then. So many changes of one thing are one, and telling
//! a thing twice is harmless.
//!
//! Why nothing is lost:
//! - Before a change, its directory or inode has a mark on stable storage, or will have one no later than the change itself ([`marks`]). That
//!   costs one empty file for the first change of a directory, and nothing for those that follow while it is there.
//! - A mark goes only when all that was noted for it was told and confirmed, no change is under way ([`Change`]), nothing has happened for
//!   a while, and the share was synced since ([`Capture::sweep`]), so that the sizes that were told are those that a loss of power leaves.
//!   What changes later marks again.
//! - So after any end of the process or the machine, whatever was not confirmed is marked. A marked directory is told whole: all its names, and
//!   that there are no others; a marked inode, its attributes.
//! - A directory that was never told needs no mark of its own: whoever tells its name tells what is in it.
//! - Too much to remember, or to mark, becomes one mark that says so; then the whole share is compared.
//!
//! And nothing is told that a loss of power could undo: who tells waits for [`Capture::barrier`] between looking and telling.

pub mod files;
pub mod id;
pub mod marks;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::ports::{Lower, LowerResult};
use crate::types::{FileId, Inode};
use marks::Marks;

/// Things noted at once, some 200 bytes each; beyond that the share is compared as a whole.
const ITEMS_MAX: usize = 200_000;
/// Marks placed at once.
const MARKS_MAX: usize = 20_000;
/// A mark stays so long after the last change: what is busy is not marked over and over.
const LINGER: Duration = Duration::from_secs(2);
/// Marks go so often. Before, all content is synced: the facts that were told of it are true then, whatever happens.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// Files that are being written are looked at so often.
const WRITTEN_EVERY: Duration = Duration::from_secs(20);

/// Something to look at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    /// What a name of a directory stands for.
    Name(FileId, OsString),
    /// All names of a directory.
    Listing(FileId),
    /// The attributes of an inode, and the facts of its content.
    Inode(FileId),
}

impl Item {
    /// What is marked for it.
    fn mark(&self) -> Mark {
        match self {
            Self::Name(dir, _) | Self::Listing(dir) => Mark::Directory(*dir),
            Self::Inode(id) => Mark::Inode(*id),
        }
    }
}

/// An item with its turn; lower ones came first.
pub type Turn = (u64, Item);

/// What a mark is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mark {
    Directory(FileId),
    Inode(FileId),
}

impl Mark {
    fn id(&self) -> FileId {
        match self {
            Self::Directory(id) | Self::Inode(id) => *id,
        }
    }
}

#[derive(Default)]
struct Marked {
    node: Option<Inode>,
    placed: bool,
    /// Changes under way.
    under_way: u32,
    /// Items noted, or taken and not confirmed.
    items: u32,
    /// A directory whose own name is not told yet.
    born: bool,
    /// A file that was being written when it was told.
    written: bool,
    idle_since: Option<Instant>,
}

#[derive(Default)]
struct Noted {
    next: u64,
    order: BTreeMap<u64, Item>,
    turns: HashMap<Item, u64>,
    marked: HashMap<Mark, Marked>,
    placed: usize,
    /// The mark that says that more changed than is marked.
    wide: bool,
    /// The share is to be compared as a whole.
    compare: bool,
    swept_at: Option<Instant>,
}

/// Takes note of changes. Does nothing until it is switched on.
#[derive(Default)]
pub struct Capture {
    on: AtomicBool,
    /// Whether names are noted too, or inodes only.
    names: bool,
    marks: Option<Marks>,
    noted: Mutex<Noted>,
    /// Changes noted since the start.
    changes: AtomicU64,
    wake: Arc<Notify>,
}

impl std::fmt::Debug for Capture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Capture").field("on", &self.is_on()).field("waiting", &self.waiting()).finish_non_exhaustive()
    }
}

/// A change that is under way: what it is about is marked. To be held from before the change until it is noted, or has failed.
pub struct Change<'a> {
    capture: &'a Capture,
    marks: [Option<Mark>; 2],
}

impl Change<'_> {
    /// A name came, went, or is another inode's now.
    pub fn named(&self, dir: &Inode, name: &OsStr) {
        self.capture.note(Item::Name(dir.id, name.to_owned()), Some(*dir));
    }

    /// As [`Change::named`], of a directory that was just made: nothing in it is marked before its name is told.
    pub fn born(&self, dir: &Inode, name: &OsStr, node: &Inode) {
        self.capture.noted.lock().marked.entry(Mark::Directory(node.id)).or_default().born = true;
        self.named(dir, name);
    }

    /// An inode's attributes, or its content, changed.
    pub fn touched(&self, node: &Inode) {
        self.capture.note(Item::Inode(node.id), Some(*node));
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        let mut noted = self.capture.noted.lock();
        for mark in self.marks.iter().flatten() {
            if let Some(marked) = noted.marked.get_mut(mark) {
                marked.under_way -= 1;
                marked.idle_since = Some(Instant::now());
            }
        }
    }
}

impl Capture {
    /// Takes note from now on, and of what was marked and not confirmed when the last process ended. Without `names`, of inodes only.
    pub fn open(lower: Arc<dyn Lower>, names: bool) -> LowerResult<Self> {
        let marks = Marks::open(lower.clone())?;
        let found = marks.found()?;
        let capture = Self { on: AtomicBool::new(true), names, marks: Some(marks), ..Self::default() };
        {
            let mut noted = capture.noted.lock();
            (noted.wide, noted.compare) = (found.wide, found.wide);
            noted.placed = found.marks.len();
            for (mark, node) in found.marks {
                let marked = Marked { node: Some(node), placed: true, ..Marked::default() };
                noted.marked.insert(mark, marked);
                let item = match mark {
                    Mark::Directory(id) => Item::Listing(id),
                    Mark::Inode(id) => Item::Inode(id),
                };
                capture.queue(&mut noted, item, None);
            }
        }
        Ok(capture)
    }

    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Told when there is something new.
    pub fn wake(&self) -> Arc<Notify> {
        self.wake.clone()
    }

    /// Things noted and not taken.
    pub fn waiting(&self) -> usize {
        self.noted.lock().order.len()
    }

    /// Changes since the start.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// To be called before names of directories change. `None`: nobody wants to know.
    pub fn names(&self, dirs: [Option<&Inode>; 2]) -> LowerResult<Option<Change<'_>>> {
        if !self.names {
            return Ok(None);
        }
        self.begin(dirs.map(|dir| dir.map(|dir| (Mark::Directory(dir.id), *dir))))
    }

    /// To be called before an inode's attributes or content change.
    pub fn inode(&self, node: &Inode) -> LowerResult<Option<Change<'_>>> {
        self.begin([Some((Mark::Inode(node.id), *node)), None])
    }

    fn begin(&self, of: [Option<(Mark, Inode)>; 2]) -> LowerResult<Option<Change<'_>>> {
        if !self.is_on() {
            return Ok(None);
        }
        let mut change = Change { capture: self, marks: [None; 2] };
        for (place, (mark, node)) in change.marks.iter_mut().zip(of.into_iter().flatten()) {
            let mut noted = self.noted.lock();
            self.place(&mut noted, mark, node)?;
            noted.marked.entry(mark).or_default().under_way += 1;
            *place = Some(mark);
        }
        Ok(Some(change))
    }

    /// Sees to it that there is a mark. Under the lock: nobody may change what is not marked yet.
    fn place(&self, noted: &mut MutexGuard<'_, Noted>, mark: Mark, node: Inode) -> LowerResult<()> {
        let wide = noted.wide;
        let marked = noted.marked.entry(mark).or_default();
        marked.node = Some(node);
        if marked.placed || marked.born || wide {
            return Ok(());
        }
        let Some(marks) = &self.marks else { return Ok(()) };
        if noted.placed >= MARKS_MAX {
            marks.place_wide()?;
            noted.wide = true;
            return Ok(());
        }
        marks.place(&mark, &node)?;
        noted.placed += 1;
        if let Some(marked) = noted.marked.get_mut(&mark) {
            marked.placed = true;
        }
        Ok(())
    }

    fn note(&self, item: Item, node: Option<Inode>) {
        self.changes.fetch_add(1, Ordering::Relaxed);
        let first = {
            let mut noted = self.noted.lock();
            if let Some(node) = node {
                let marked = noted.marked.entry(item.mark()).or_default();
                (marked.node, marked.written) = (Some(node), false);
            }
            self.queue(&mut noted, item, None);
            noted.order.len() == 1
        };
        if first {
            self.wake.notify_one();
        }
    }

    /// A name changed, and nobody had it marked before: who made the change is not the mount.
    pub fn changed_name(&self, dir: &Inode, name: &OsStr) {
        if !self.is_on() || !self.names {
            return;
        }
        // Without a mark it is told all the same, unless this process ends before.
        if let Err(error) = self.place(&mut self.noted.lock(), Mark::Directory(dir.id), *dir) {
            tracing::warn!("a change of a directory could not be marked for the metadata sync: {error}");
        }
        self.note(Item::Name(dir.id, name.to_owned()), Some(*dir));
    }

    /// A file that was open for writing is closed. It is marked as long as it was open, or its directory is.
    pub fn written(&self, node: &Inode) {
        if self.is_on() {
            self.note(Item::Inode(node.id), Some(*node));
        }
    }

    /// Has something looked at, whatever happened to it.
    pub fn look_at(&self, item: Item, node: &Inode) -> LowerResult<()> {
        self.place(&mut self.noted.lock(), item.mark(), *node)?;
        self.note(item, Some(*node));
        Ok(())
    }

    /// An inode is to be looked at when its change, which is under way, is noted: until then it stays marked.
    pub fn look_at_later(&self, node: &Inode) -> LowerResult<()> {
        let mut noted = self.noted.lock();
        self.place(&mut noted, Mark::Inode(node.id), *node)?;
        let marked = noted.marked.entry(Mark::Inode(node.id)).or_default();
        (marked.written, marked.idle_since) = (true, Some(Instant::now()));
        Ok(())
    }

    fn queue(&self, noted: &mut Noted, item: Item, turn: Option<u64>) {
        if noted.order.len() >= ITEMS_MAX {
            // Forgotten at once: the comparison finds it.
            noted.compare = true;
            if !noted.wide
                && let Some(marks) = &self.marks
            {
                match marks.place_wide() {
                    Ok(()) => noted.wide = true,
                    Err(error) => {
                        tracing::warn!("more changed than can be remembered, which could not be marked: {error}")
                    }
                }
            }
            return;
        }
        let next = noted.next;
        match noted.turns.entry(item.clone()) {
            Entry::Occupied(mut known) => {
                // It keeps the earlier turn.
                if let Some(turn) = turn.filter(|turn| turn < known.get()) {
                    noted.order.remove(known.get());
                    noted.order.insert(turn, item);
                    known.insert(turn);
                }
            }
            Entry::Vacant(room) => {
                let turn = turn.unwrap_or(next);
                noted.next = next.max(turn + 1);
                noted.marked.entry(item.mark()).or_default().items += 1;
                room.insert(turn);
                noted.order.insert(turn, item);
            }
        }
    }

    /// Takes up to `max` items, in their turn. Each must come back by [`Capture::confirm`] or [`Capture::put_back`].
    pub fn take(&self, max: usize) -> Vec<Turn> {
        let mut noted = self.noted.lock();
        let mut taken = Vec::new();
        while taken.len() < max {
            let Some((turn, item)) = noted.order.pop_first() else { break };
            noted.turns.remove(&item);
            taken.push((turn, item));
        }
        taken
    }

    /// What was taken was told, and confirmed.
    pub fn confirm(&self, taken: Vec<Turn>) {
        let mut noted = self.noted.lock();
        for (_, item) in taken {
            settle(&mut noted, &item);
        }
    }

    /// What was taken is to be looked at again, in its old turn.
    pub fn put_back(&self, taken: Vec<Turn>) {
        let mut noted = self.noted.lock();
        for (turn, item) in taken {
            self.queue(&mut noted, item.clone(), Some(turn));
            settle(&mut noted, &item);
        }
    }

    /// A directory's name is told. What is in it is told by its listing, which is noted here.
    pub fn told_directory(&self, node: &Inode) -> LowerResult<()> {
        let mut noted = self.noted.lock();
        if let Some(marked) = noted.marked.get_mut(&Mark::Directory(node.id)) {
            marked.born = false;
        }
        self.place(&mut noted, Mark::Directory(node.id), *node)?;
        self.queue(&mut noted, Item::Listing(node.id), None);
        Ok(())
    }

    /// Whether a directory was made and its name is not told yet.
    pub fn is_born(&self, dir: FileId) -> bool {
        self.noted.lock().marked.get(&Mark::Directory(dir)).is_some_and(|marked| marked.born)
    }

    /// An inode that is known here by its number.
    pub fn node(&self, mark: Mark) -> Option<Inode> {
        self.noted.lock().marked.get(&mark).and_then(|marked| marked.node)
    }

    /// Waits until what was looked at is on stable storage.
    pub fn barrier(&self) -> LowerResult<()> {
        self.marks.as_ref().map_or(Ok(()), |marks| marks.barrier.wait())
    }

    /// Whether the whole share is to be compared: more changed than was remembered.
    pub fn wants_comparison(&self) -> bool {
        self.noted.lock().compare
    }

    /// A comparison has begun, which is durable: it finds all that changed before. From now on changes are marked one by one.
    pub fn comparing(&self) -> LowerResult<()> {
        let mut noted = self.noted.lock();
        noted.compare = false;
        let Some(marks) = self.marks.as_ref().filter(|_| noted.wide) else { return Ok(()) };
        // What is under way may be over after the comparison has passed.
        let noted = &mut *noted;
        for (mark, marked) in noted.marked.iter_mut().filter(|(_, marked)| marked.under_way > 0 && !marked.placed) {
            if let Some(node) = marked.node {
                marks.place(mark, &node)?;
                marked.placed = true;
                noted.placed += 1;
            }
        }
        marks.clear_wide()?;
        noted.wide = false;
        Ok(())
    }

    /// Takes marks away that nothing is noted for any more; not while items are taken. With `at_once` without waiting
    /// whether more changes.
    pub fn sweep(&self, at_once: bool) {
        let Some(marks) = &self.marks else { return };
        let now = Instant::now();
        {
            let mut noted = self.noted.lock();
            let swept = noted.swept_at.is_some_and(|at| now.duration_since(at) < SWEEP_EVERY);
            if noted.marked.is_empty() && !noted.wide || (swept && !at_once) {
                return;
            }
            noted.swept_at = Some(now);
        }
        // Without the lock. What changes meanwhile is not quiet.
        if let Err(error) = marks.sync() {
            tracing::warn!("marks of the metadata sync stay: the share cannot be synced: {error}");
            return;
        }
        let mut noted = self.noted.lock();
        let noted = &mut *noted;
        let mut removed = 0;
        let again = |marked: &Marked| marked.idle_since.is_none_or(|since| now.duration_since(since) >= WRITTEN_EVERY);
        let written: Vec<_> =
            noted.marked.iter().filter(|(_, marked)| marked.written && again(marked)).map(|(mark, _)| *mark).collect();
        for mark in written {
            if let Some(marked) = noted.marked.get_mut(&mark) {
                marked.written = false;
            }
            self.queue(noted, Item::Inode(mark.id()), None);
        }
        // Nothing is taken while this runs: what was born and is not told by now is gone.
        let all_told = noted.order.is_empty();
        noted.marked.retain(|mark, marked| {
            marked.born &= !all_told;
            let idle = marked.idle_since.is_none_or(|since| now.duration_since(since) >= LINGER);
            // After `now` something may have changed that was not synced.
            let quiet = idle || (at_once && marked.idle_since.is_none_or(|since| since < now));
            if marked.items > 0 || marked.under_way > 0 || marked.born || marked.written || !quiet {
                return true;
            }
            let Some(node) = marked.node.filter(|_| marked.placed) else { return false };
            match marks.clear(mark, &node) {
                Ok(()) => {
                    removed += 1;
                    false
                }
                Err(error) => {
                    tracing::warn!(inode = mark.id().ino, "a mark of the metadata sync stays: {error}");
                    true
                }
            }
        });
        noted.placed = noted.placed.saturating_sub(removed);
        if noted.wide && !noted.compare && noted.order.is_empty() && noted.marked.is_empty() {
            match marks.clear_wide() {
                Ok(()) => noted.wide = false,
                Err(error) => tracing::warn!("a mark of the metadata sync stays: {error}"),
            }
        }
    }
}

/// One item less is out for its mark.
fn settle(noted: &mut Noted, item: &Item) {
    if let Some(marked) = noted.marked.get_mut(&item.mark()) {
        marked.items = marked.items.saturating_sub(1);
        if marked.items == 0 && marked.idle_since.is_none() {
            marked.idle_since = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests;
