//! Recall: brings an object's content back into the lower file, chunk by chunk, each verified before it is written or served.
//!
//! One fetch serves all who wait. Order: note (durable) → fetch, verify, write → mtime back → sync → record dual → sync → note
//! removed. Until the record says dual, it still says stub, so any lost step costs a refetch.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::archive::OpenNote;
use super::cell::Cell;
use super::error::{EngineError, EngineResult};
use super::{Engine, blocking, moving};
use crate::kill;
use crate::ports::{Keep, SetAttr, SetTime};
use crate::record::{Claim, ObjectRef, Record};
use crate::tier::{Activity, Event, Verdict};
use crate::types::{ByteRange, Timestamp};

/// How long a cut may take that has cancelled a recall. An attempt before it would start another recall for nothing.
pub const CUT_WITHIN: Duration = Duration::from_millis(20);

/// A recall that runs or has run.
pub struct Recall {
    chunk_size: u64,
    state: Mutex<State>,
    moved: Notify,
    pub(super) cancelled: AtomicBool,
    /// Set before anything written is freed again: from then on no chunk counts as local.
    failed: AtomicBool,
    bytes_done: AtomicU64,
}

struct State {
    /// Chunks that are verified and written.
    local: Vec<bool>,
    /// Chunks nobody fetches yet, in the order they will be.
    pending: VecDeque<usize>,
    outcome: Option<EngineResult<()>>,
}

impl Recall {
    fn new(object: &ObjectRef) -> Arc<Self> {
        let chunks = object.chunks() as usize;
        Arc::new(Self {
            chunk_size: u64::from(object.chunk_size),
            state: Mutex::new(State { local: vec![false; chunks], pending: (0..chunks).collect(), outcome: None }),
            moved: Notify::new(),
            cancelled: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            bytes_done: AtomicU64::new(0),
        })
    }

    /// Asks the recall to stop; what it has written is freed again.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        self.moved.notify_waiters();
    }

    /// Bytes written so far.
    pub fn bytes_done(&self) -> u64 {
        self.bytes_done.load(Ordering::Relaxed)
    }

    /// Whether `range` can be read from the lower file now. To be asked again after the read: only if it is still so were the
    /// bytes read the content, and not blocks being freed after a failure.
    pub fn is_available(&self, range: ByteRange) -> bool {
        let state = self.state.lock();
        let (first, end) = self.chunks_of(range, state.local.len());
        !self.failed.load(Ordering::SeqCst) && state.local[first..end].iter().all(|local| *local)
    }

    /// The chunks that `range` touches, as a range of indices cut to `chunks`.
    fn chunks_of(&self, range: ByteRange, chunks: usize) -> (usize, usize) {
        let end = (range.end().div_ceil(self.chunk_size) as usize).min(chunks);
        (((range.offset / self.chunk_size) as usize).min(end), end)
    }

    /// Whether it brings nothing more: it was cancelled or has failed, and cleans up.
    fn is_ending(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst) || self.failed.load(Ordering::SeqCst)
    }

    pub(super) async fn until_cancelled(&self) {
        self.wait(|_| self.cancelled.load(Ordering::SeqCst).then_some(Ok(()))).await.unwrap_or(());
    }

    fn finish(&self, outcome: EngineResult<()>) {
        self.state.lock().outcome = Some(outcome);
        self.moved.notify_waiters();
    }

    /// Waits until the recall has ended.
    pub async fn finished(&self) -> EngineResult<()> {
        self.wait(|state| state.outcome.clone()).await
    }

    /// Waits until `range` is local (or the recall has ended); its chunks are fetched before others.
    pub async fn available(&self, range: ByteRange) -> EngineResult<()> {
        {
            let mut state = self.state.lock();
            let (first, end) = self.chunks_of(range, state.local.len());
            let wanted = first..end;
            if state.pending.iter().any(|chunk| wanted.contains(chunk)) {
                let (mut now, later): (VecDeque<_>, VecDeque<_>) =
                    state.pending.drain(..).partition(|chunk| wanted.contains(chunk));
                now.extend(later);
                state.pending = now;
            }
        }
        self.wait(|state| {
            let (first, end) = self.chunks_of(range, state.local.len());
            if state.local[first..end].iter().all(|local| *local) { Some(Ok(())) } else { state.outcome.clone() }
        })
        .await
    }

    async fn wait(&self, mut look: impl FnMut(&State) -> Option<EngineResult<()>>) -> EngineResult<()> {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if let Some(result) = look(&self.state.lock()) {
                return result;
            }
            moved.await;
        }
    }

    pub(super) fn next_chunk(&self) -> Option<usize> {
        self.state.lock().pending.pop_front()
    }

    pub(super) fn chunk_is_local(&self, chunk: usize, bytes: u64) {
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
        self.state.lock().local[chunk] = true;
        self.moved.notify_waiters();
    }
}

/// Ends a recall whose task panicked: who waits for it would wait for ever.
struct Ends(Arc<Recall>);

impl Drop for Ends {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.failed.store(true, Ordering::SeqCst);
            self.0.finish(Err(EngineError::Defect));
        }
    }
}

/// A stub whose size is not its object's was cut or extended by somebody below the mount.
fn changed_size(cell: &Cell, object: &ObjectRef) -> EngineError {
    EngineError::ChangedBelow {
        file: cell.node.id,
        object: object.key.to_string(),
        why: "its size is not that of its object",
    }
}

impl Engine {
    /// Starts the recall of a file, or joins the one that runs. `None`: the content is local already.
    pub async fn start_recall(self: &Arc<Self>, cell: &Arc<Cell>) -> EngineResult<Option<Arc<Recall>>> {
        loop {
            {
                let mut inner = cell.lock();
                if inner.machine.is_unknown() {
                    self.reestablish(cell, &mut inner)?;
                }
                match inner.machine.apply(Event::RecallBegin) {
                    Verdict::Already => return Ok(None),
                    Verdict::Go => {
                        let begun = self.begin_recall(cell, &mut inner);
                        if begun.is_err() {
                            inner.machine.apply(Event::RecallAbandoned);
                            cell.changed.notify_waiters();
                        }
                        return begun.map(Some);
                    }
                    Verdict::Refuse(why) => return Err(EngineError::Refused { file: cell.node.id, why }),
                    _ => {
                        if let Some(recall) = inner.recall.clone().filter(|recall| !recall.is_ending()) {
                            return Ok(Some(recall));
                        }
                    }
                }
            }
            // A release runs, or a recall that was cancelled or failed cleans up. The condition is that of joining above: a looser one
            // would go round here without ever waiting, and keep the runtime from the very work that is waited for.
            cell.wait_until(|inner| match inner.machine.activity() {
                Activity::None => true,
                Activity::Recalling { .. } => inner.recall.as_ref().is_some_and(|recall| !recall.is_ending()),
                _ => false,
            })
            .await;
        }
    }

    /// Brings a file's content back and waits for the end. `true`: it was away.
    pub async fn recall(self: &Arc<Self>, cell: &Arc<Cell>) -> EngineResult<bool> {
        loop {
            let Some(recall) = self.start_recall(cell).await? else { return Ok(false) };
            match recall.finished().await {
                // Somebody cut the file to nothing meanwhile: there is most likely nothing to bring back any more.
                Err(EngineError::Cancelled) => tokio::time::sleep(CUT_WITHIN).await,
                ended => return ended.map(|()| true),
            }
        }
    }

    fn begin_recall(self: &Arc<Self>, cell: &Arc<Cell>, inner: &mut super::Inner) -> EngineResult<Arc<Recall>> {
        if self.lower.features().read_only {
            return Err(EngineError::ReadOnly);
        }
        self.check_pair(&cell.node, &inner.record)?;
        let mut object = inner.record.object.clone().expect("a remote claim has an object");
        let attr = self.lower.stat(&cell.node).map_err(EngineError::lower(cell.node.id))?;
        if attr.size != object.len {
            return Err(changed_size(cell, &object));
        }
        // A release cut short by a crash may have moved the lower mtime; the record was made with the right one.
        let mtime = if inner.record.claim == Claim::Releasing { object.mtime } else { attr.mtime };
        if object.mtime != mtime {
            // Set below the mount. From now on the lower one moves, and after a crash the record says which is right.
            object.mtime = mtime;
            let record = Record { object: Some(object.clone()), ..inner.record.clone() };
            self.lower.save_record(&cell.node, &record.encode()).map_err(EngineError::lower(cell.node.id))?;
            inner.record = record;
        }
        inner.shown_mtime = Some(mtime);
        let recall = Recall::new(&object);
        inner.recall = Some(recall.clone());
        let claim = inner.record.claim;
        let (this, cell, shared) = (self.clone(), cell.clone(), recall.clone());
        self.totals.running.fetch_add(1, Ordering::SeqCst);
        self.runtime.spawn(async move {
            let _ends = Ends(shared.clone());
            let outcome = this.run_recall(&cell, &object, claim, mtime, &shared).await;
            if let Some(error) = outcome.as_ref().err().filter(|error| !matches!(error, EngineError::Cancelled)) {
                let path = this.lower.path_of(&cell.node).ok().flatten().unwrap_or_default();
                tracing::warn!(file = %cell.node.id, path = %path.display(), object = %object.key, "recall failed: {error}");
            }
            // Who cut the file to nothing tells the kernel its size by itself. An invalidation before that would make the kernel believe
            // its own, old size rather than the end that a reader is answered, and show the reader zeros.
            let emptied = matches!(outcome, Err(EngineError::Cancelled));
            shared.finish(outcome);
            this.totals.running.fetch_sub(1, Ordering::SeqCst);
            if !emptied {
                this.announce_change(cell.node.id);
            }
        });
        Ok(recall)
    }

    async fn run_recall(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        object: &ObjectRef,
        claim: Claim,
        mtime: Timestamp,
        recall: &Arc<Recall>,
    ) -> EngineResult<()> {
        let mut touched = None;
        if let Err(error) = self.keep_borrowed(cell, object).await {
            // Its content comes back all the same; it is not freed again before this succeeds.
            tracing::warn!(file = %cell.node.id, object = %object.key, "another file's object may be deleted while this one uses it: {error}");
        }
        let result = self.fill(cell, object, claim, mtime, recall, &mut touched).await;
        let result = result.map_err(|error| self.or_no_space(object, error));
        if result.is_err() {
            recall.failed.store(true, Ordering::SeqCst);
        }
        match result {
            Ok(()) => {
                let saved = {
                    let mut inner = cell.lock();
                    self.commit_recall(cell, &mut inner)
                };
                cell.changed.notify_waiters();
                if saved.is_ok() {
                    self.totals.recalled_files.fetch_add(1, Ordering::Relaxed);
                    self.totals.recalled_bytes.fetch_add(object.len, Ordering::Relaxed);
                    self.leftover_is_gone(cell);
                    self.spawn_forget_when_durable(cell.clone(), touched);
                    self.spawn_note_recalled(cell.node.id);
                } else {
                    recall.failed.store(true, Ordering::SeqCst);
                    self.undo_recall(cell, mtime, touched).await;
                }
                saved
            }
            Err(error) => {
                self.undo_recall(cell, mtime, touched).await;
                Err(error)
            }
        }
    }

    fn commit_recall(&self, cell: &Cell, inner: &mut super::Inner) -> EngineResult<()> {
        let Verdict::Save(Claim::Dual) = inner.machine.apply(Event::RecallFetched) else {
            return Err(EngineError::Cancelled);
        };
        let attr = self.lower.stat(&cell.node).map_err(EngineError::lower(cell.node.id))?;
        let mut record = inner.record.clone();
        record.claim = Claim::Dual;
        let object = record.object.as_mut().expect("a remote claim has an object");
        // Writing chunks never goes beyond the object's length, so this was somebody else.
        if attr.size != object.len {
            return Err(changed_size(cell, object));
        }
        object.mtime = attr.mtime;
        self.lower.save_record(&cell.node, &record.encode()).map_err(EngineError::lower(cell.node.id))?;
        kill::point("recall.recorded");
        inner.record = record;
        inner.machine.apply(Event::Saved(Claim::Dual));
        inner.recall = None;
        inner.shown_mtime = None;
        Ok(())
    }

    /// A write that found the disk full is told like a recall that would not fit: filesystems keep some free blocks back.
    fn or_no_space(&self, object: &ObjectRef, error: EngineError) -> EngineError {
        match (error, self.lower.space()) {
            (EngineError::Lower { file, source }, Ok(space)) if source.errno() == libc::ENOSPC => {
                EngineError::NoSpace { file, len: object.len, available: space.blocks_available * space.fragment_size }
            }
            (error, _) => error,
        }
    }

    /// Frees what a failed recall has written, so that the stub is one again.
    async fn undo_recall(self: &Arc<Self>, cell: &Arc<Cell>, mtime: Timestamp, touched: Option<OpenNote>) {
        if touched.is_some() {
            let (lower, node) = (self.lower.clone(), cell.node);
            let undone = blocking(move || {
                let file = lower.open(&node, moving(Keep::OwnAndLeft))?;
                let freed = file.punch_all();
                kill::point("recall.undone");
                // Whether blocks are left or not: the next recall takes the time that it finds for the file's own.
                lower.set_attr(&node, &SetAttr { mtime: Some(SetTime::At(mtime)), ..Default::default() })?;
                freed
            })
            .await;
            let undone = undone.and_then(|undone| undone.map_err(EngineError::lower(cell.node.id)));
            match undone {
                Ok(_) => {
                    self.leftover_is_gone(cell);
                    self.spawn_forget_when_durable(cell.clone(), touched);
                }
                // The note stays: the next recall writes over what is left, or the next start frees it.
                Err(error) => {
                    tracing::warn!(file = %cell.node.id, "could not free a failed recall's blocks: {error}");
                    let key = cell.lock().record.object.as_ref().map(|object| object.key.clone());
                    self.leftovers.lock().extend(key.zip(touched).map(|left| (cell.node.id, left)));
                }
            }
        }
        let mut inner = cell.lock();
        inner.recall = None;
        inner.shown_mtime = None;
        inner.machine.apply(Event::RecallAbandoned);
        drop(inner);
        cell.changed.notify_waiters();
    }
}
