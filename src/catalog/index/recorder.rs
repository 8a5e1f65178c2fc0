//! What the mount tells the index, on the way of every request: hints to look again, and counts of opens.
//!
//! Invariant: nobody who records waits for the disk or for the index. An entry says where to look, never what is there, so many of one
//! file are one, and their order does not matter. What finds no room is counted as lost: the index then wants a scan.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{OsStr, OsString};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::Thread;

use parking_lot::Mutex;

use crate::types::{FileId, Inode};

const SHARDS: usize = 16;
/// Entries that wait at most, some 100 bytes each.
const PENDING_MAX: usize = 1 << 18;
/// Entries that wake who takes them before their time.
const PENDING_MANY: usize = 1 << 14;

/// Who waited for a recall, or asked for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// A program that opened or read the file.
    User { uid: u32, pid: u32 },
    /// A command or a policy, in a word or two.
    Named(String),
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::User { uid, pid } => write!(f, "uid {uid}, process {pid}"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

/// What is known of one inode since it was last taken.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub node: Option<Inode>,
    /// Its attributes or its state changed.
    pub look: bool,
    pub opens: u32,
    /// Of the last open, seconds since 1970.
    pub opened_at: i64,
    pub who: Option<Who>,
}

#[derive(Default)]
pub(super) struct Shard {
    pub files: HashMap<FileId, Touched>,
    /// Names that came, went or changed what they mean.
    pub names: HashMap<(FileId, OsString), Option<Inode>>,
}

/// Takes hints from anywhere. Does nothing until it is switched on.
#[derive(Default)]
pub struct Recorder {
    on: AtomicBool,
    shards: [Mutex<Shard>; SHARDS],
    pending: AtomicUsize,
    recorded: AtomicU64,
    lost: AtomicU64,
    taker: OnceLock<Thread>,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").field("on", &self.is_on()).field("pending", &self.pending()).finish_non_exhaustive()
    }
}

impl Recorder {
    fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    pub(super) fn switch(&self, on: bool) {
        self.on.store(on, Ordering::SeqCst);
    }

    pub(super) fn set_taker(&self, taker: Thread) {
        // There is one for the recorder's life.
        let _ = self.taker.set(taker);
    }

    /// Entries that wait.
    pub fn pending(&self) -> usize {
        self.pending.load(Ordering::Relaxed)
    }

    /// Hints since the start.
    pub fn recorded(&self) -> u64 {
        self.recorded.load(Ordering::Relaxed)
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Something is not known that should be.
    pub(super) fn lose(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    fn shard(&self, id: FileId) -> &Mutex<Shard> {
        &self.shards[(id.ino ^ (id.ino >> 7)) as usize % SHARDS]
    }

    /// Room for one more; wakes the taker when much waits.
    fn make_room(&self) -> bool {
        let before = self.pending.fetch_add(1, Ordering::Relaxed);
        if before >= PENDING_MAX {
            self.pending.fetch_sub(1, Ordering::Relaxed);
            self.lose();
            return false;
        }
        if before == PENDING_MANY
            && let Some(taker) = self.taker.get()
        {
            taker.unpark();
        }
        true
    }

    fn touch(&self, id: FileId, change: impl FnOnce(&mut Touched)) {
        self.recorded.fetch_add(1, Ordering::Relaxed);
        let mut shard = self.shard(id).lock();
        match shard.files.entry(id) {
            Entry::Occupied(known) => change(known.into_mut()),
            Entry::Vacant(room) if self.make_room() => change(room.insert(Touched::default())),
            Entry::Vacant(_) => {}
        }
    }

    /// A file was opened at `at`, seconds since 1970.
    pub fn opened(&self, id: FileId, at: i64) {
        if self.is_on() {
            self.touch(id, |touched| {
                touched.opens = touched.opens.saturating_add(1);
                touched.opened_at = touched.opened_at.max(at);
            });
        }
    }

    /// An inode's attributes, record or content changed.
    pub fn changed(&self, node: &Inode) {
        if self.is_on() {
            self.touch(node.id, |touched| {
                touched.look = true;
                touched.node = Some(*node);
            });
        }
    }

    /// As [`Recorder::changed`], where no more than this is known of it.
    pub fn changed_id(&self, id: FileId) {
        if self.is_on() {
            self.touch(id, |touched| touched.look = true);
        }
    }

    /// Somebody wants content that is not here.
    pub fn wanted_by(&self, id: FileId, who: Who) {
        if self.is_on() {
            self.touch(id, |touched| touched.who = Some(who));
        }
    }

    /// A name came, went, or is another inode's now.
    pub fn named(&self, dir: &Inode, name: &OsStr) {
        self.name(dir.id, name, Some(*dir));
    }

    /// As [`Recorder::named`], where no more than this is known of the directory.
    pub fn named_id(&self, dir: FileId, name: &OsStr) {
        self.name(dir, name, None);
    }

    fn name(&self, dir: FileId, name: &OsStr, node: Option<Inode>) {
        if !self.is_on() {
            return;
        }
        self.recorded.fetch_add(1, Ordering::Relaxed);
        let mut shard = self.shard(dir).lock();
        if let Entry::Vacant(room) = shard.names.entry((dir, name.to_owned()))
            && self.make_room()
        {
            room.insert(node);
        }
    }

    /// A file has another name now. The new one is told first, so that it is never without.
    pub fn renamed(&self, dir: &Inode, name: &OsStr, to_dir: &Inode, to: &OsStr) {
        self.named(to_dir, to);
        self.named(dir, name);
    }

    /// Takes what waits, shard by shard.
    pub(super) fn take(&self) -> Vec<Shard> {
        let shards: Vec<Shard> = self.shards.iter().map(|shard| std::mem::take(&mut *shard.lock())).collect();
        let taken = shards.iter().map(|shard| shard.files.len() + shard.names.len()).sum();
        self.pending.fetch_sub(taken, Ordering::Relaxed);
        shards
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::RawHandle;

    fn node(ino: u64) -> Inode {
        Inode { id: FileId { ino, birth: 1 }, handle: RawHandle::new(1, &ino.to_ne_bytes()).expect("short") }
    }

    #[test]
    fn off_it_keeps_nothing() {
        let recorder = Recorder::default();
        recorder.opened(node(1).id, 5);
        recorder.changed(&node(1));
        recorder.named(&node(1), OsStr::new("a"));
        assert_eq!((recorder.pending(), recorder.recorded(), recorder.lost()), (0, 0, 0));
    }

    #[test]
    fn many_hints_of_one_file_are_one_entry() {
        let recorder = Recorder::default();
        recorder.switch(true);
        for at in [7, 9, 8] {
            recorder.opened(node(1).id, at);
            recorder.changed(&node(1));
            recorder.named(&node(2), OsStr::new("a"));
        }
        assert_eq!(recorder.pending(), 2);
        let shards = recorder.take();
        let touched: Vec<_> = shards.iter().flat_map(|shard| shard.files.values()).collect();
        assert_eq!((touched.len(), touched[0].opens, touched[0].opened_at, touched[0].look), (1, 3, 9, true));
        assert_eq!((recorder.pending(), recorder.recorded()), (0, 9));
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let recorder = Recorder::default();
        recorder.switch(true);
        for ino in 0..PENDING_MAX as u64 + 5 {
            recorder.changed(&node(ino));
        }
        assert_eq!((recorder.pending(), recorder.lost()), (PENDING_MAX, 5));
        // What is there already takes more.
        recorder.opened(node(0).id, 1);
        assert_eq!(recorder.lost(), 5);
        recorder.take();
        recorder.changed(&node(1));
        assert_eq!((recorder.pending(), recorder.lost()), (1, 5));
    }
}
