//! The engine: carries files between the share and the remote, one cell per file in use.
//!
//! It does what `tier` allows, in the order of protocol.md, and nothing without a durable note where a crash could strand
//! something. No lock is held across a network call; waiting openers wait on the cell, never on a session thread.

mod adopt;
mod after_recall;
mod announce;
mod archive;
mod bulk;
mod cell;
mod choices;
mod content;
mod error;
mod facts;
mod failures;
mod fetch;
mod fill;
mod hands;
mod hashes;
mod health;
mod held;
mod history;
mod intents;
mod jobs;
mod keys;
mod line;
mod lost;
mod moves;
mod orphans;
mod owner;
mod pace;
mod packing;
mod patch;
mod peer;
mod places;
mod plan;
mod readers;
mod recall;
mod release;
mod restore;
mod running;
mod session;
mod slots;
mod source;
mod sweep;
mod sync;
mod target;
mod totals;
mod trace;
mod trees;
mod undelete;
mod verify;
mod warm;

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::task::JoinHandle;

pub use announce::Announced;
pub use cell::{Cell, Cells, Inner, activity_of, load_record, same_content, state_of};
pub use choices::{CHOSEN_CHUNK_MAX, Choice, Forget, is_choosable, set_policy_of_tree};
pub use error::{EngineError, EngineResult, NotKept, PeerTrouble, Unfit};
pub use facts::{Facts, FactsError};
pub use failures::again_at;
pub use history::{Standing, Version};
pub use jobs::{Asker, Candidate, IN_USE_PAUSES, JobEvent, JobKind, Outcome};
pub use keys::{KeyParts, object_key, parse_key};
pub use moves::MoveWatch;
pub use orphans::{Kept, Orphan, OrphanRules, Page};
pub use owner::made_for;
pub use pace::Pace;
pub use packing::Packing;
pub use peer::{Emptying, NewHold, OwnerHold, PeerFacts, StagedCopy, wire};
pub use recall::{CUT_WITHIN, Demand, Recall, Wish};
pub use restore::RestorePolicy;
pub use running::{RecallStatus, RequesterStatus};
pub use slots::{Permit, SlotLimits, Slots};
pub use sweep::StoredPack;
pub use target::{NotTaken, Target};
pub use totals::{ANSWERS, Ask, Asked, BOUNDS_S, ENDS, Histogram, Moved, Stall, Totals};
pub use trace::{Tracer, shown};
pub use trees::{stored_at, travelling_xattrs, travels};
pub use warm::{Warm, WarmFile};

use crate::kill;
use crate::ports::{Clock, IntentId, Journal, Keep, Lower, OpenFlags};
use crate::record::{Claim, Record};
use crate::tier::{Activity, Event, Refusal, Verdict};
use crate::types::{FileId, Inode, ObjectKey, Timestamp};
use archive::OpenNote;
use owner::Keeping;
use sync::Barrier;
use target::Targets;

/// Limits of one engine.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Files transferred at once by background jobs.
    pub transfers: usize,
    /// Content held in memory by all transfers but recalls, in units of 1 MiB.
    pub memory_mib: usize,
    /// Requests for one file at once.
    pub fetches_per_file: usize,
    /// Chunks fetched at once for all recalls together, and their memory, which is theirs alone: archiving takes none of it.
    pub recalls: SlotLimits,
}

impl Limits {
    /// Of the requests for one file, how many may be for what nobody waits for yet.
    fn ahead_per_file(&self) -> usize {
        self.fetches_per_file - self.fetches_per_file / 4
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { transfers: 128, memory_mib: 256, fetches_per_file: 8, recalls: SlotLimits::default() }
    }
}

/// Told when an inode's attributes changed behind the kernel's back (blocks freed or filled).
pub type ChangeHook = Box<dyn Fn(FileId) + Send + Sync>;

/// Told when a directory has got a name that the kernel did not ask for.
pub type NameHook = Box<dyn Fn(FileId, &OsStr) + Send + Sync>;

/// Answers when the kernel has been told of everything that was announced before.
pub type ToldHook = Box<dyn Fn(oneshot::Sender<()>) + Send + Sync>;

/// How long an announcement is waited for. It may wait in the kernel for a request that waits for a transfer.
const TOLD_WITHIN: Duration = Duration::from_secs(1);

/// Everything that moves content of one share.
pub struct Engine {
    pub(crate) lower: Arc<dyn Lower>,
    journal: Arc<dyn Journal>,
    clock: Arc<dyn Clock>,
    targets: Targets,
    pub cells: Arc<Cells>,
    barrier: Arc<Barrier>,
    pub runtime: Handle,
    /// Lower files that were closed a moment ago.
    pub warm: Arc<Warm>,
    limits: Limits,
    memory: Arc<Semaphore>,
    /// What recalls fetch at once.
    pub slots: Arc<Slots>,
    running: running::Running,
    /// How the remote answers.
    line: Arc<line::Line>,
    manifests: Mutex<hashes::Manifests>,
    zeros: hashes::Zeros,
    pub totals: Arc<Totals>,
    /// What happens to files that somebody watches.
    pub trace: Tracer,
    stopping: AtomicBool,
    /// Woken when a deletion may have become due.
    deletions: Notify,
    /// Stubs in which blocks of a failed recall or release are left, because they could not be freed (XFS wants room in the owner's
    /// quota for that): what is in them is ours, not somebody's change below the mount. Each has a note, so a start finds them again.
    leftovers: Mutex<HashMap<FileId, (ObjectKey, OpenNote)>>,
    keeping: Keeping,
    /// Shared by who looks at a record and notes the deletion of its object; whoever takes objects over has it alone.
    noting: tokio::sync::RwLock<()>,
    changed: std::sync::OnceLock<ChangeHook>,
    named: std::sync::OnceLock<NameHook>,
    watched: std::sync::OnceLock<ChangeHook>,
    told: std::sync::OnceLock<ToldHook>,
    /// Marks the objects of this share.
    share_id: tokio::sync::OnceCell<String>,
    moves: moves::Moves,
    choices: choices::Choices,
    restores: restore::Restores,
    /// Changes of owner that were not decided when the process before this one ended.
    undecided: Mutex<Vec<(IntentId, Inode, String)>>,
    /// Files of which a call of the pair's other side is being answered.
    calling: Mutex<HashSet<FileId>>,
    /// Stubs about which the other side is being asked.
    looking: Mutex<HashSet<FileId>>,
    peer_manifests: peer::Manifests,
    announcing: announce::Announcing,
    packer: packing::Packer,
    bulk: bulk::Bulk,
    /// For short steps of many files.
    hands: Arc<hands::Hands>,
}

impl Engine {
    /// Assembles an engine; nothing runs until [`Engine::recover`] and [`Engine::start_deletions`].
    pub fn new(
        lower: Arc<dyn Lower>,
        journal: Arc<dyn Journal>,
        clock: Arc<dyn Clock>,
        target: Option<Target>,
        runtime: Handle,
        limits: Limits,
    ) -> Arc<Self> {
        let totals = Arc::<Totals>::default();
        let engine = Self {
            cells: Cells::new(lower.clone()),
            barrier: Barrier::new(lower.clone()),
            lower,
            journal,
            clock,
            targets: Targets::new(target, totals.clone()),
            warm: Warm::new(runtime.clone()),
            runtime,
            limits,
            memory: Arc::new(Semaphore::new(limits.memory_mib)),
            slots: Slots::new(limits.recalls),
            running: running::Running::default(),
            line: Arc::new(line::Line::new(limits.fetches_per_file)),
            manifests: Mutex::default(),
            zeros: hashes::Zeros::default(),
            totals,
            trace: Tracer::default(),
            stopping: AtomicBool::new(false),
            deletions: Notify::new(),
            leftovers: Mutex::default(),
            keeping: Keeping::default(),
            noting: tokio::sync::RwLock::default(),
            changed: std::sync::OnceLock::new(),
            named: std::sync::OnceLock::new(),
            watched: std::sync::OnceLock::new(),
            told: std::sync::OnceLock::new(),
            share_id: tokio::sync::OnceCell::new(),
            moves: moves::Moves::default(),
            restores: restore::Restores::default(),
            choices: choices::Choices::default(),
            undecided: Mutex::default(),
            calling: Mutex::default(),
            looking: Mutex::default(),
            peer_manifests: peer::Manifests::default(),
            announcing: announce::Announcing::default(),
            packer: packing::Packer::default(),
            bulk: bulk::Bulk::default(),
            hands: Arc::default(),
        };
        engine.find_choices();
        Arc::new(engine)
    }

    /// Sets who is told of attribute changes; once.
    pub fn on_change(&self, hook: ChangeHook) {
        // A second hook would be a mistake of assembly; the first stays.
        let _ = self.changed.set(hook);
    }

    /// Has the kernel ask again for a file's attributes.
    pub fn announce_change(&self, file: FileId) {
        if let Some(hook) = self.changed.get() {
            hook(file);
        }
        self.note_state(file);
    }

    /// Sets who is told of changes of files' state; once.
    pub fn on_state(&self, hook: ChangeHook) {
        let _ = self.watched.set(hook);
    }

    /// A file's record says something else now.
    pub(crate) fn note_state(&self, file: FileId) {
        if let Some(hook) = self.watched.get() {
            hook(file);
        }
    }

    /// Sets who is told of new names; once.
    pub fn on_name(&self, hook: NameHook) {
        let _ = self.named.set(hook);
    }

    /// Has the kernel forget what it knows of a name, above all that there is none.
    pub fn announce_name(&self, directory: FileId, name: &OsStr) {
        if let Some(hook) = self.named.get() {
            hook(directory, name);
        }
    }

    /// Sets who tells that announcements have arrived; once.
    pub fn on_told(&self, hook: ToldHook) {
        let _ = self.told.set(hook);
    }

    /// Waits until the kernel knows of what was announced so far, but not for long: then its time-out does the work.
    pub async fn announced(&self) {
        let Some(hook) = self.told.get() else { return };
        let (told, heard) = oneshot::channel();
        hook(told);
        // A sender that is dropped means that nobody can be told.
        let _ = tokio::time::timeout(TOLD_WITHIN, heard).await;
    }

    /// The time by the engine's clock.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// What is noted and not yet done: (uploads and settlements, deletions).
    pub async fn intent_counts(&self) -> EngineResult<(u64, u64)> {
        Ok(self.journal.counts().await?)
    }

    /// No background transfer begins any more; those that run come to their end by themselves. Readers are served still.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    /// Whether background work is to rest.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Takes [`Engine::stop`] back.
    pub fn resume(&self) {
        self.stopping.store(false, Ordering::SeqCst);
    }

    fn check_running(&self) -> EngineResult<()> {
        if self.is_stopping() { Err(EngineError::ShuttingDown) } else { Ok(()) }
    }

    /// Whether transfers still run.
    pub fn is_idle(&self) -> bool {
        self.totals.running.load(Ordering::SeqCst) == 0
    }

    /// Stores `record` and makes it durable under the cell's lock, as a verdict of `Save(Resident)` wants it.
    ///
    /// A failed sync leaves unknown what is stored: the cell says so until [`Engine::reestablish`] succeeds.
    fn save_durably(&self, cell: &Cell, inner: &mut Inner, record: Record) -> EngineResult<()> {
        let failed = EngineError::lower(cell.node.id);
        // A record that could not be stored at all leaves the old one in force.
        self.lower.save_record(&cell.node, &record.encode()).map_err(&failed)?;
        kill::point("dirty.recorded");
        let claim = record.claim;
        inner.record = record;
        if let Err(error) = self.lower.sync_node(&cell.node) {
            self.cells.note_unknown(cell, inner);
            return Err(failed(error));
        }
        kill::point("dirty.synced");
        inner.machine.apply(Event::Saved(claim));
        Ok(())
    }

    /// After a failed sync: stores what memory knows once more and syncs. Success ends the unknown state.
    fn reestablish(&self, cell: &Cell, inner: &mut Inner) -> EngineResult<()> {
        let failed = EngineError::lower(cell.node.id);
        self.lower.save_record(&cell.node, &inner.record.encode()).map_err(&failed)?;
        self.lower.sync_node(&cell.node).map_err(&failed)?;
        inner.machine.apply(Event::Reestablished(inner.record.claim));
        if inner.record.peer.is_some() {
            self.follow(inner);
        }
        self.cells.forget_unknown(cell);
        Ok(())
    }

    /// Feeds an access to the file's machine and does what it wants stored first, if `patience` allows a sync. What cannot be
    /// done without waiting for a transfer is told to the caller. Local I/O only, with the cell's lock held.
    pub fn admit(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        inner: &mut Inner,
        event: Event,
        patience: Patience,
    ) -> EngineResult<Admission> {
        loop {
            if inner.machine.is_unknown() {
                if patience == Patience::None {
                    return Ok(Admission::Sync);
                }
                self.reestablish(cell, inner)?;
            }
            match inner.machine.apply(event) {
                Verdict::Go | Verdict::Already => return Ok(Admission::Go),
                Verdict::Save(Claim::Resident | Claim::Patched) | Verdict::TruncateThenSave
                    if patience == Patience::None =>
                {
                    return Ok(Admission::Sync);
                }
                Verdict::Save(Claim::Patched) => {
                    if !self.become_patched(cell, inner)? {
                        return Ok(Admission::Recall);
                    }
                }
                Verdict::Save(Claim::Resident) => self.become_resident(cell, inner)?,
                Verdict::TruncateThenSave => {
                    self.check_pair(&cell.node, &inner.record)?;
                    let failed = EngineError::lower(cell.node.id);
                    let size = crate::ports::SetAttr { size: Some(0), ..Default::default() };
                    self.lower.set_attr(&cell.node, &size).map_err(&failed)?;
                    kill::point("truncate.cut");
                    let synced = self.lower.sync_node(&cell.node).map_err(&failed);
                    kill::point("truncate.synced");
                    let emptied = synced.and_then(|()| self.become_resident(cell, inner));
                    if emptied.is_err() && inner.record.patch.is_some() {
                        // Nothing is its object's any more, whatever is stored: who lengthens it again must find zeros.
                        let generation = inner.record.generation.after(self.clock.now());
                        inner.record = inner.record.clone().into_resident(generation);
                        self.cells.note_unknown(cell, inner);
                    }
                    emptied?;
                }
                Verdict::Recall => return Ok(Admission::Recall),
                Verdict::TakeEmpty => return Ok(Admission::TakeEmpty),
                Verdict::CancelRecall => {
                    if let Some(recall) = &inner.recall {
                        recall.cancel();
                    }
                    return Ok(Admission::Wait);
                }
                Verdict::Wait => return Ok(Admission::Wait),
                Verdict::Refuse(why) => return Err(EngineError::Refused { file: cell.node.id, why }),
                Verdict::Save(claim) => unreachable!("no access asks to save {claim:?}"),
            }
        }
    }

    /// Content is about to change: the stored claim on the object goes first, durably; the object's deletion is noted after.
    fn become_resident(self: &Arc<Self>, cell: &Arc<Cell>, inner: &mut Inner) -> EngineResult<()> {
        let generation = inner.record.generation.after(self.clock.now());
        let record = inner.record.clone().into_resident(generation);
        self.save_durably(cell, inner, record)?;
        self.trace.note(cell.node.id, || json!({ "event": "changed", "state": "resident" }));
        self.spawn_note_superseded(cell.clone());
        Ok(())
    }

    /// Pins or unpins. The wish is stored before it counts.
    pub fn set_pinned(self: &Arc<Self>, cell: &Arc<Cell>, pinned: bool) -> EngineResult<bool> {
        let mut inner = cell.lock();
        if inner.record.flags.pinned == pinned {
            return Ok(false);
        }
        let mut record = inner.record.clone();
        record.flags.pinned = pinned;
        self.lower.save_record(&cell.node, &record.encode()).map_err(EngineError::lower(cell.node.id))?;
        kill::point("pin.recorded");
        inner.record = record;
        inner.machine.apply(Event::Pin(pinned));
        self.note_state(cell.node.id);
        self.trace.note(cell.node.id, || json!({ "event": "pinned", "pinned": pinned }));
        Ok(true)
    }

    /// Locks for retention, or ends that; durable on return. Refused while content is moved away: what has begun would end after the lock.
    fn set_retained(self: &Arc<Self>, cell: &Arc<Cell>, retained: bool) -> EngineResult<bool> {
        let mut inner = cell.lock();
        if inner.machine.is_unknown() {
            self.reestablish(cell, &mut inner)?;
        }
        if inner.record.flags.retained == retained {
            return Ok(false);
        }
        let moving = !matches!(inner.machine.activity(), Activity::None | Activity::Recalling { .. });
        if moving || inner.record.claim == Claim::Releasing {
            return Err(EngineError::Refused { file: cell.node.id, why: Refusal::Busy });
        }
        let mut record = inner.record.clone();
        record.flags.retained = retained;
        let failed = EngineError::lower(cell.node.id);
        self.lower.save_record(&cell.node, &record.encode()).map_err(&failed)?;
        kill::point("retain.recorded");
        inner.record = record;
        if let Err(error) = self.lower.sync_node(&cell.node) {
            self.cells.note_unknown(cell, &mut inner);
            return Err(failed(error));
        }
        self.note_state(cell.node.id);
        self.trace.note(cell.node.id, || json!({ "event": "retained", "retained": retained }));
        Ok(true)
    }

    /// A file's record: what memory knows, or what is stored, judged ([`load_record`]).
    pub fn known_record(&self, node: &Inode) -> EngineResult<Record> {
        match self.cells.live(node.id) {
            Some(cell) => Ok(cell.lock().record.clone()),
            None => load_record(&*self.lower, node),
        }
    }
}

/// Whether the calling thread may wait for the disk. Those that read the kernel's requests may not: a few syncs
/// would hold up everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    None,
    Disk,
}

/// What an access may do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    Go,
    /// Content must come back first: recall, then ask again.
    Recall,
    /// The other side of a pair must give up first what is thrown away: [`Engine::take_empty`], then ask again.
    TakeEmpty,
    /// A short step runs: wait on the cell, then ask again.
    Wait,
    /// A record must be synced first: ask again with patience.
    Sync,
}

/// How a transfer opens a file whose content it fills or frees: no trace of its reads, and the file's privileges stay as `keep` says.
fn moving(keep: Keep) -> OpenFlags {
    OpenFlags { read: true, write: true, no_atime: true, keep, ..Default::default() }
}

/// Starts blocking local I/O off the async workers. A runtime of one thread, as a simulation has, takes it in turn with its tasks: what runs
/// after what is then the same each time.
fn start_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let runtime = Handle::current();
    match runtime.runtime_flavor() {
        RuntimeFlavor::CurrentThread => runtime.spawn(async { work() }),
        _ => runtime.spawn_blocking(work),
    }
}

/// Runs blocking local I/O off the async workers.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> EngineResult<T> {
    start_blocking(work).await.map_err(|error| {
        go_on_panicking(error);
        EngineError::ShuttingDown
    })
}

/// What ended a task, if that was a panic, goes on where the task was waited for.
fn go_on_panicking(error: tokio::task::JoinError) {
    if error.is_panic() {
        std::panic::resume_unwind(error.into_panic());
    }
}
