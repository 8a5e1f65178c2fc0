//! Cells: the one place in the process where a file's state is held while somebody uses it.
//!
//! Invariant: at most one live cell exists for an inode, so its lock orders every open, change and transfer of that file.
//! A cell lives as long as somebody holds it (a handle, a transfer); afterwards the stored record is the state.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::error::{EngineError, EngineResult};
use super::owner::name_of;
use super::recall::Recall;
use crate::kill;
use crate::ports::{Attr, Lower, LowerError, LowerFile, OpenFlags, SeekTo, if_set};
use crate::record::{Claim, ObjectRef, Record};
use crate::remote::manifest::root_of_zeros;
use crate::tier::{Activity, Event, Machine, Paired};
use crate::types::{FileId, FileState, Generation, Inode, Timestamp};

/// Damaged files remembered as named in the log.
const TOLD_MAX: usize = 1024;
/// What attributes alone may occupy on a file, in bytes: one block of the largest size. With more, there is content.
const ATTRIBUTE_BYTES_MAX: u64 = 64 << 10;
pub(super) const HOLLOW: &str = "its record says that its content is here, but there are only holes";

/// Shards of the table, so that session threads rarely meet.
const SHARDS: usize = 16;

/// One file in use.
pub struct Cell {
    pub node: Inode,
    inner: Mutex<Inner>,
    /// Held by whoever changes the bytes of a patched file; taken before the lock above.
    pub(super) patching: Mutex<()>,
    /// Signalled whenever an activity ends.
    pub changed: Notify,
    table: Weak<Cells>,
}

/// What the cell's lock guards.
pub struct Inner {
    pub machine: Machine,
    /// As last stored (or about to be: see `Machine::is_unknown`).
    pub record: Record,
    /// What the kernel gave for the lower file while handles pass through; kept by the adapter's type.
    pub backing: Option<Arc<dyn Any + Send + Sync>>,
    /// The daemon's own descriptor while handles pass through: for calls that the kernel does not pass.
    pub backing_file: Option<Arc<dyn LowerFile>>,
    /// Whether backing and file may be kept after the last close: open for reading only, and the file has a name as far as is known.
    pub keeps: bool,
    /// When it was last seen to have one.
    pub named_at: Option<Instant>,
    /// Handles that pass through and are open for reading and writing: the kernel tells nobody what their mappings write.
    pub unseen_writers: u32,
    /// Handles of programs that run.
    pub executed: u32,
    /// The recall that runs, for others to join.
    pub recall: Option<Arc<Recall>>,
    /// The mtime to show while a transfer disturbs the lower one.
    pub shown_mtime: Option<Timestamp>,
    /// So many throw all of the content away, and wait for the other side of a pair, or go on just now ([`super::Emptying`]).
    pub emptying: u32,
    /// Somebody sees to it that what was written to a stub becomes durable.
    pub patch_is_kept: bool,
    /// What is written could not be noted: all content has to come before more is.
    pub patch_is_stuck: bool,
}

impl Cell {
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Waits until `ready` says so, looking again whenever an activity ends.
    pub async fn wait_until(&self, mut ready: impl FnMut(&mut Inner) -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before looking, or a change in between would be missed.
            changed.as_mut().enable();
            if ready(&mut self.lock()) {
                return;
            }
            changed.await;
        }
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        if let Some(table) = self.table.upgrade() {
            let mut shard = table.shard(self.node.id).lock();
            // A new cell may have taken the place already.
            if shard.get(&self.node.id).is_some_and(|cell| cell.strong_count() == 0) {
                shard.remove(&self.node.id);
            }
        }
    }
}

/// All live cells.
pub struct Cells {
    lower: Arc<dyn Lower>,
    shards: [Mutex<HashMap<FileId, Weak<Cell>>>; SHARDS],
    /// Files of which a failed sync left unknown what is durable. Held here: if the last user's end were that of the cell, the next one
    /// would believe the stored record, which may be in memory only.
    unknown: Mutex<HashMap<FileId, Arc<Cell>>>,
    /// Damaged files that were named in the log.
    told: Mutex<HashSet<FileId>>,
}

impl Cells {
    pub fn new(lower: Arc<dyn Lower>) -> Arc<Self> {
        Arc::new(Self { lower, shards: Default::default(), unknown: Mutex::default(), told: Mutex::default() })
    }

    /// A sync of the file's record failed: the cell stays until [`Cells::forget_unknown`].
    pub(super) fn note_unknown(&self, cell: &Cell, inner: &mut Inner) {
        inner.machine.apply(Event::SaveUnknown);
        if let Some(cell) = self.live(cell.node.id) {
            self.unknown.lock().insert(cell.node.id, cell);
        }
    }

    /// The stored record is durable again.
    pub(super) fn forget_unknown(&self, cell: &Cell) {
        // Dropped after the lock is given back: this may be the last to hold it, but for the caller.
        let _cell = self.unknown.lock().remove(&cell.node.id);
    }

    fn shard(&self, id: FileId) -> &Mutex<HashMap<FileId, Weak<Cell>>> {
        &self.shards[(id.ino ^ (id.ino >> 7)) as usize % SHARDS]
    }

    /// Files in use.
    pub fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// The live cell of an inode, if anybody uses it.
    pub fn live(&self, id: FileId) -> Option<Arc<Cell>> {
        self.shard(id).lock().get(&id)?.upgrade()
    }

    /// The cell of an inode; loads its record when nobody uses it yet.
    pub fn get(self: &Arc<Self>, node: &Inode) -> EngineResult<Arc<Cell>> {
        match self.live(node.id) {
            Some(cell) => Ok(cell),
            None => self.get_with(node, || load_record(&*self.lower, node)),
        }
    }

    /// As [`Cells::get`], by way of `file`, which is open: cheaper.
    pub fn get_through(self: &Arc<Self>, node: &Inode, file: &dyn LowerFile) -> EngineResult<Arc<Cell>> {
        self.get_with(node, || {
            let stored = if_set(file.xattr(OsStr::new(self.lower.record_xattr())));
            judge_record(&*self.lower, node, stored.map_err(EngineError::lower(node.id))?, Some(file))
        })
    }

    /// The cell of an inode that was made just now, and so has no record.
    pub fn get_new(self: &Arc<Self>, node: &Inode) -> EngineResult<Arc<Cell>> {
        self.get_with(node, || Ok(Record::unclaimed()))
    }

    /// Does `work` while nobody uses the file, and so nobody changes its record; else the cell, for whoever has it.
    pub fn unless_live<T>(&self, id: FileId, work: impl FnOnce() -> T) -> Result<T, Arc<Cell>> {
        let shard = self.shard(id).lock();
        match shard.get(&id).and_then(Weak::upgrade) {
            Some(cell) => {
                drop(shard);
                Err(cell)
            }
            None => Ok(work()),
        }
    }

    /// Names a file whose record contradicts it, once for some time: programs are told a number only.
    pub(super) fn tell_damage(&self, node: &Inode, error: &EngineError) {
        if !error.is_damage() {
            return;
        }
        let mut told = self.told.lock();
        if told.len() >= TOLD_MAX {
            told.clear();
        }
        if told.insert(node.id) {
            tracing::error!(path = name_of(&*self.lower, node), file = %node.id, "damaged, reads are answered EIO: {error}");
        }
    }

    fn get_with(
        self: &Arc<Self>,
        node: &Inode,
        load: impl FnOnce() -> EngineResult<Record>,
    ) -> EngineResult<Arc<Cell>> {
        // The record is read under the shard's lock: two loaders cannot both see the state before a third party's change.
        let mut shard = self.shard(node.id).lock();
        if let Some(cell) = shard.get(&node.id).and_then(Weak::upgrade) {
            return Ok(cell);
        }
        let record = load().inspect_err(|error| self.tell_damage(node, error))?;
        let inner = Inner {
            machine: Machine::new(record.claim, record.flags.pinned).paired(paired(&record)),
            record,
            backing: None,
            backing_file: None,
            keeps: false,
            named_at: None,
            unseen_writers: 0,
            executed: 0,
            recall: None,
            shown_mtime: None,
            emptying: 0,
            patch_is_kept: false,
            patch_is_stuck: false,
        };
        let cell = Arc::new(Cell {
            node: *node,
            inner: Mutex::new(inner),
            patching: Mutex::default(),
            changed: Notify::new(),
            table: Arc::downgrade(self),
        });
        shard.insert(node.id, Arc::downgrade(&cell));
        Ok(cell)
    }
}

/// Reads and judges an inode's record. What contradicts the file below is an error, except where both possible
/// stories end the same way (an empty file is resident whatever its record says; changed content is resident again).
pub fn load_record(lower: &dyn Lower, node: &Inode) -> EngineResult<Record> {
    judge_record(lower, node, lower.load_record(node).map_err(EngineError::lower(node.id))?, None)
}

/// A file's record as it is stored, not judged: one that contradicts its file names its object all the same. `None`: there is none.
pub(super) fn stored_record(lower: &dyn Lower, node: &Inode) -> EngineResult<Option<Record>> {
    let stored = lower.load_record(node).map_err(EngineError::lower(node.id))?;
    let record = stored.map(|stored| Record::decode(&stored)).transpose();
    record.map_err(|why| EngineError::BadRecord { file: node.id, why })
}

/// `file`: the inode, where it is open already.
fn judge_record(
    lower: &dyn Lower,
    node: &Inode,
    stored: Option<Vec<u8>>,
    file: Option<&dyn LowerFile>,
) -> EngineResult<Record> {
    let Some(stored) = stored else { return Ok(Record::unclaimed()) };
    let record = Record::decode(&stored).map_err(|why| EngineError::BadRecord { file: node.id, why })?;
    if record.peer.is_some() {
        return super::peer::judge(lower, node, record);
    }
    let Some(object) = &record.object else { return Ok(record) };
    let attr = lower.stat(node).map_err(EngineError::lower(node.id))?;
    let changed_below = |why| Err(EngineError::ChangedBelow { file: node.id, object: object.key.to_string(), why });
    match record.claim {
        Claim::Dual if !same_content(&attr, &record) => {
            let path = name_of(lower, node);
            tracing::warn!(path, object = %object.key, "changed below the mount since it was archived: resident again");
            demote(lower, node, record)
        }
        // A record from before the release, set again by a restore that found size and mtime unchanged (`rsync -X`).
        Claim::Dual if is_hollow(lower, node, &attr, object, file)? => changed_below(HOLLOW),
        // A truncation to zero is made durable before its record: a crash between leaves exactly this.
        claim if claim.is_remote() && attr.size == 0 => demote(lower, node, record),
        Claim::Patched => judge_patch(lower, node, record, attr.size),
        claim if claim.is_remote() && attr.size != object.len => changed_below("its size is not that of its object"),
        _ => Ok(record),
    }
}

/// What of a patched file's record still counts.
fn judge_patch(lower: &dyn Lower, node: &Inode, mut record: Record, size: u64) -> EngineResult<Record> {
    let patch = record.patch.as_mut().expect("checked when it was decoded");
    patch.settle(lower.instance());
    if size < patch.base && !lower.features().read_only {
        // A cut is made durable before its record, and nothing may lengthen the file before both are.
        patch.cut(size);
        let failed = EngineError::lower(node.id);
        lower.sync_node(node).map_err(&failed)?;
        lower.save_record(node, &record.encode()).map_err(&failed)?;
        lower.sync_node(node).map_err(&failed)?;
    }
    Ok(record)
}

/// Whether a file that should have its content is all holes, and its content is not all zeros.
pub(super) fn is_hollow(
    lower: &dyn Lower,
    node: &Inode,
    attr: &Attr,
    object: &ObjectRef,
    file: Option<&dyn LowerFile>,
) -> EngineResult<bool> {
    if attr.blocks * 512 > ATTRIBUTE_BYTES_MAX {
        return Ok(false);
    }
    let failed = EngineError::lower(node.id);
    let has_data = match file {
        Some(file) => has_data(file, object.len),
        None => match lower.open(node, OpenFlags { read: true, no_atime: true, no_wait: true, ..Default::default() }) {
            Ok(file) => has_data(&*file, object.len),
            // Somebody's lease: a writer's, whose data will be found the next time.
            Err(error) if error.errno() == libc::EWOULDBLOCK => return Ok(false),
            Err(error) => Err(error),
        },
    };
    Ok(!has_data.map_err(failed)? && object.root != root_of_zeros(object.len, object.chunk_size))
}

/// Whether any of the first `len` bytes is in a block rather than a hole.
pub(super) fn has_data(file: &dyn LowerFile, len: u64) -> Result<bool, LowerError> {
    match file.seek(0, SeekTo::Data) {
        Ok(offset) => Ok(offset < len),
        Err(error) if error.errno() == libc::ENXIO => Ok(false),
        Err(error) => Err(error),
    }
}

/// What the record of a pair's file says to its machine.
pub(super) fn paired(record: &Record) -> Paired {
    record.peer.as_ref().map_or(Paired::default(), |peer| Paired {
        sealed: peer.is_sealed(),
        foreign: peer.is_foreign(),
        handing_over: peer.is_handing_over(),
    })
}

/// Stores, durably, that the content is what is local: from now on somebody may set size and mtime back to what the
/// stale record knows, and it would be believed.
pub(super) fn demote(lower: &dyn Lower, node: &Inode, record: Record) -> EngineResult<Record> {
    let generation = Generation(record.generation.0.saturating_add(1));
    let before = record.encode();
    let record = record.into_resident(generation);
    if !lower.features().read_only {
        let failed = EngineError::lower(node.id);
        // A cut first: a resident record that survives a cut which does not would call holes content.
        lower.sync_node(node).map_err(&failed)?;
        kill::point("demote.synced");
        lower.save_record(node, &record.encode()).map_err(&failed)?;
        kill::point("demote.recorded");
        if let Err(error) = lower.sync_node(node) {
            // Nothing changes until a record is durable: the next load judges anew, and does not believe one that is in memory only.
            lower.save_record(node, &before).map_err(&failed)?;
            return Err(failed(error));
        }
    }
    Ok(record)
}

/// Whether size and mtime below are still those the record was made for.
pub fn same_content(attr: &Attr, record: &Record) -> bool {
    record.object.as_ref().is_some_and(|object| attr.size == object.len && attr.mtime == object.mtime)
}

/// The state of a file as people see it.
pub fn state_of(inner: &Inner) -> FileState {
    match inner.machine.claim() {
        _ if inner.machine.is_unknown() => FileState::Damaged,
        // All of it is here, and it is the other side's until that has answered.
        Claim::Dual if inner.machine.is_foreign() => FileState::Partial,
        claim => claim.into(),
    }
}

/// The transfer that runs, in a word.
pub fn activity_of(inner: &Inner) -> Option<&'static str> {
    match inner.machine.activity() {
        Activity::None => None,
        Activity::Archiving { .. } => Some("archiving"),
        Activity::Releasing => Some("releasing"),
        Activity::Recalling { .. } => Some("recalling"),
        Activity::HandingOver => Some("handing-over"),
    }
}
