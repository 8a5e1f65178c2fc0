//! How a recall begins and ends: who joins it, what is stored when all content is there, when some of it is, and when the file is cut.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::announce::Finished;
use super::archive::OpenNote;
use super::cell::{Cell, Inner};
use super::error::{EngineError, EngineResult};
use super::fill::{Ending, Fill};
use super::recall::{CUT_WITHIN, Demand, Recall, Wish};
use super::{Engine, Moved, blocking, moving};
use crate::kill;
use crate::ports::{Keep, SetAttr, SetTime};
use crate::record::{Claim, ObjectRef, Record, is_peer_key};
use crate::tier::{Activity, Event, Verdict};
use crate::types::Timestamp;

/// Ends a recall whose task panicked: who waits for it would wait for ever.
struct Ends(Arc<Recall>);

impl Drop for Ends {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.set_gone();
            self.0.finish(Err(EngineError::Defect));
        }
    }
}

impl Engine {
    /// A stub whose size is not its object's was cut or extended by somebody below the mount. It is named in the log.
    pub(super) fn changed_size(&self, cell: &Cell, object: &ObjectRef) -> EngineError {
        let (file, object) = (cell.node.id, object.key.to_string());
        let error = EngineError::ChangedBelow { file, object, why: "its size is not that of its object" };
        self.cells.tell_damage(&cell.node, &error);
        error
    }

    /// Has content brought back, by the recall that runs or a new one. `None`: it is all local already.
    pub async fn start_recall(self: &Arc<Self>, cell: &Arc<Cell>, wish: Wish) -> EngineResult<Option<Demand>> {
        loop {
            if wish.range.is_none() && self.is_to_be_taken(cell) {
                self.take_local(cell).await?;
            }
            {
                let mut inner = cell.lock();
                if inner.machine.is_unknown() {
                    self.reestablish(cell, &mut inner)?;
                }
                match inner.machine.apply(Event::RecallBegin) {
                    Verdict::Already => return Ok(None),
                    Verdict::Go => {
                        let begun = self.begin_recall(cell, &mut inner, wish);
                        if begun.is_err() {
                            inner.machine.apply(Event::RecallAbandoned);
                            cell.changed.notify_waiters();
                        }
                        return begun.map(Some);
                    }
                    Verdict::Refuse(why) => return Err(EngineError::Refused { file: cell.node.id, why }),
                    _ => {
                        if let Some(recall) = inner.recall.clone().filter(|recall| !recall.is_ending()) {
                            self.check_room(cell, &recall, wish)?;
                            if let Some(demand) = recall.join(wish) {
                                return Ok(Some(demand));
                            }
                        }
                    }
                }
            }
            // A release runs, or a recall that ends. The condition is that of joining above: a looser one would go round here without
            // ever waiting, and keep the runtime from the very work that is waited for.
            cell.wait_until(|inner| match inner.machine.activity() {
                Activity::None => true,
                Activity::Recalling { .. } => inner.recall.as_ref().is_some_and(|recall| !recall.is_ending()),
                _ => false,
            })
            .await;
        }
    }

    /// Brings all of a file's content back and waits for the end. `true`: some of it was away.
    pub async fn recall(self: &Arc<Self>, cell: &Arc<Cell>) -> EngineResult<bool> {
        loop {
            let Some(demand) = self.start_recall(cell, Wish::ALL).await? else { return Ok(false) };
            match demand.met().await {
                // Somebody cut the file to nothing meanwhile: there is most likely nothing to bring back any more.
                Err(EngineError::Cancelled) => tokio::time::sleep(CUT_WITHIN).await,
                ended => return ended.map(|()| true),
            }
        }
    }

    /// Who wants all of a file is told at once when it does not fit.
    fn check_room(&self, cell: &Cell, recall: &Recall, wish: Wish) -> EngineResult<()> {
        if wish.range.is_some() {
            return Ok(());
        }
        if self.lower.features().read_only {
            return Err(EngineError::ReadOnly);
        }
        let space = self.lower.space().map_err(EngineError::lower(cell.node.id))?;
        let available = space.blocks_free * space.fragment_size;
        let len = recall.with_plan(|plan| plan.missing());
        if len > available {
            return Err(EngineError::NoSpace { file: cell.node.id, len, available });
        }
        Ok(())
    }

    fn begin_recall(self: &Arc<Self>, cell: &Arc<Cell>, inner: &mut Inner, wish: Wish) -> EngineResult<Demand> {
        self.check_pair(&cell.node, &inner.record)?;
        let mut object = inner.record.object.clone().expect("a remote claim has an object");
        let attr = self.lower.stat(&cell.node).map_err(EngineError::lower(cell.node.id))?;
        let patched = inner.record.claim == Claim::Patched;
        if attr.size != object.len && !patched {
            return Err(self.changed_size(cell, &object));
        }
        let keeps = !self.lower.features().read_only;
        let policy = self.recall_policy(&cell.node, &object);
        let recall =
            Recall::new((object.len, object.chunk_size.into()), keeps, policy, self.line.clone(), self.slots.clone());
        self.check_room(cell, &recall, wish)?;
        // A release cut short by a crash may have moved the lower mtime; the record was made with the right one.
        let mtime = if inner.record.claim == Claim::Releasing { object.mtime } else { attr.mtime };
        // Set below the mount, or the content was.
        let dated_below = object.mtime != mtime && !patched;
        // As long as it is not known which, parts that are there are in doubt.
        if dated_below && keeps && inner.record.claim != Claim::Partial {
            // From now on the lower one moves, and after a crash the record says which is right.
            object.mtime = mtime;
            let record = Record { object: Some(object.clone()), ..inner.record.clone() };
            self.lower.save_record(&cell.node, &record.encode()).map_err(EngineError::lower(cell.node.id))?;
            inner.record = record;
        }
        inner.shown_mtime = (!patched).then_some(mtime);
        let demand = recall.join(wish).expect("a new recall can be joined");
        inner.recall = Some(recall.clone());
        let claim = inner.record.claim;
        let fill = Fill::new(self.clone(), cell.clone(), object, claim, mtime, dated_below, recall.clone());
        let (this, cell) = (self.clone(), cell.clone());
        self.totals.running.fetch_add(1, Ordering::SeqCst);
        self.note_begun(cell.node.id, Moved::Recall);
        self.runtime.spawn(async move {
            let _ends = Ends(recall.clone());
            let outcome = this.run_recall(&fill).await;
            let failed = |error: &&EngineError| !matches!(error, EngineError::Cancelled) && !error.is_undecided();
            if let Some(error) = outcome.as_ref().err().filter(failed) {
                this.tell_recall_failed(&cell, &fill.object, error);
            }
            this.note_ended(&cell, Moved::Recall, outcome.as_ref().err());
            recall.finish(outcome);
            this.totals.running.fetch_sub(1, Ordering::SeqCst);
            // Who cut the file to nothing tells the kernel its size by itself. An invalidation before that would make the kernel believe
            // its own, old size rather than the end that a reader is answered, and show the reader zeros.
            if !recall.is_cut() {
                this.announce_change(cell.node.id);
            }
        });
        Ok(demand)
    }

    pub(super) fn tell_recall_failed(&self, cell: &Cell, object: &ObjectRef, error: &EngineError) {
        let path = self.lower.path_of(&cell.node).ok().flatten().unwrap_or_default();
        tracing::warn!(file = %cell.node.id, path = %path.display(), object = %object.key, "recall failed: {error}");
    }

    async fn run_recall(self: &Arc<Self>, fill: &Arc<Fill>) -> EngineResult<()> {
        let (cell, object) = (&fill.cell, &fill.object);
        if !is_peer_key(&object.key)
            && let Err(error) = self.keep_borrowed(cell, object).await
        {
            // Its content comes back all the same; it is not freed again before this succeeds.
            tracing::warn!(file = %cell.node.id, object = %object.key, "another file's object may be deleted while this one uses it: {error}");
        }
        let ended = fill.run().await;
        let touched = fill.end_note().await;
        match ended {
            Ok(Ending::Complete) if is_peer_key(&object.key) => {
                let taken = self.take(fill, touched).await;
                if taken.is_ok() {
                    self.totals.recalled_files.fetch_add(1, Ordering::Relaxed);
                    self.totals.recalled_bytes.fetch_add(object.len, Ordering::Relaxed);
                    self.spawn_note_recalled(cell.node.id);
                }
                taken
            }
            Ok(Ending::Complete) => {
                let unnoted = touched.is_none();
                let saved = if fill.is_patched() {
                    let (this, cell) = (self.clone(), cell.clone());
                    blocking(move || this.commit_patched(&cell)).await.and_then(|saved| saved)
                } else {
                    let mut inner = cell.lock();
                    self.commit_recall(cell, &mut inner)
                };
                cell.changed.notify_waiters();
                if saved.is_ok() {
                    self.totals.recalled_files.fetch_add(1, Ordering::Relaxed);
                    self.totals.recalled_bytes.fetch_add(object.len, Ordering::Relaxed);
                    self.leftover_is_gone(cell);
                    self.spawn_end(cell.clone(), touched, Some(Finished::of(Moved::Recall, false)));
                    // All was there already, and no note's end tells of it.
                    if unnoted && let Err(error) = self.note_after_recall(&cell.node, &object.key).await {
                        tracing::warn!(file = %cell.node.id, object = %object.key, "the object stays until the file changes: {error}");
                    }
                    self.spawn_note_recalled(cell.node.id);
                } else {
                    self.rest_recall(fill, touched).await;
                }
                saved
            }
            Ok(Ending::Cut) => {
                self.undo_recall(fill, touched).await;
                Err(EngineError::Cancelled)
            }
            Ok(Ending::Rest) => {
                self.rest_recall(fill, touched).await;
                if fill.moved.load(Ordering::SeqCst)
                    && let Err(error) = self.refresh_from_peer(cell).await
                {
                    tracing::info!(file = %cell.node.id, "how it is at the pair's other side is not known: {error}");
                }
                Err(EngineError::Cancelled)
            }
            Err(error) => {
                self.rest_recall(fill, touched).await;
                Err(error)
            }
        }
    }

    fn commit_recall(&self, cell: &Cell, inner: &mut Inner) -> EngineResult<()> {
        let Verdict::Save(Claim::Dual) = inner.machine.apply(Event::RecallFetched) else {
            return Err(EngineError::Refused { file: cell.node.id, why: crate::tier::Refusal::Unknown });
        };
        let attr = self.lower.stat(&cell.node).map_err(EngineError::lower(cell.node.id))?;
        let mut record = inner.record.clone();
        record.claim = Claim::Dual;
        let object = record.object.as_mut().expect("a remote claim has an object");
        // Writing chunks never goes beyond the object's length, so this was somebody else.
        if attr.size != object.len {
            return Err(self.changed_size(cell, object));
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

    /// Ends a recall that leaves the file a stub: what is local stays, and the record says that there may be some.
    pub(super) async fn rest_recall(self: &Arc<Self>, fill: &Arc<Fill>, touched: Option<OpenNote>) {
        let cell = &fill.cell;
        let wrote = fill.recall.wrote.load(Ordering::SeqCst);
        let dated = if wrote { fill.date_back().await } else { Ok(()) };
        {
            let mut inner = cell.lock();
            let kept = dated.and_then(|()| if wrote { self.keep_part(cell, &mut inner) } else { Ok(()) });
            match kept {
                Ok(()) => {
                    if wrote {
                        self.leftover_is_gone(cell);
                    }
                    self.spawn_forget_when_durable(cell.clone(), touched);
                }
                // The note stays: the next recall looks at what is there, or the next start does.
                Err(error) => {
                    tracing::warn!(file = %cell.node.id, "what a recall has brought is not recorded: {error}");
                    self.leftovers.lock().extend(touched.map(|note| (cell.node.id, (fill.object.key.clone(), note))));
                }
            }
            self.abandon_recall(&mut inner);
        }
        cell.changed.notify_waiters();
    }

    fn keep_part(&self, cell: &Cell, inner: &mut Inner) -> EngineResult<()> {
        match inner.machine.apply(Event::RecallPaused) {
            Verdict::Go => Ok(()),
            Verdict::Save(Claim::Partial) => {
                let record = Record { claim: Claim::Partial, ..inner.record.clone() };
                self.lower.save_record(&cell.node, &record.encode()).map_err(EngineError::lower(cell.node.id))?;
                kill::point("recall.kept");
                inner.record = record;
                inner.machine.apply(Event::Saved(Claim::Partial));
                Ok(())
            }
            other => {
                tracing::debug!(file = %cell.node.id, "{other:?} to the end of a recall");
                Err(EngineError::Refused { file: cell.node.id, why: crate::tier::Refusal::Unknown })
            }
        }
    }

    fn abandon_recall(&self, inner: &mut Inner) {
        inner.recall = None;
        inner.shown_mtime = None;
        inner.machine.apply(Event::RecallAbandoned);
    }

    /// Frees what a recall has written of a file that is cut to nothing, so that no user finds its blocks.
    async fn undo_recall(self: &Arc<Self>, fill: &Arc<Fill>, touched: Option<OpenNote>) {
        let cell = &fill.cell;
        fill.recall.set_gone();
        if touched.is_some() {
            let (lower, node, mtime) = (self.lower.clone(), cell.node, fill.mtime);
            let undone = blocking(move || {
                let file = lower.open(&node, moving(Keep::OwnAndLeft))?;
                let freed = file.punch_all();
                kill::point("recall.undone");
                // Whether blocks are left or not: the next recall takes the time that it finds for the file's own.
                lower.set_attr(&node, &date(mtime))?;
                freed
            })
            .await;
            let undone = undone.and_then(|undone| undone.map_err(EngineError::lower(cell.node.id)));
            match undone {
                Ok(_) => {
                    self.leftover_is_gone(cell);
                    self.spawn_forget_when_durable(cell.clone(), touched);
                }
                // The note stays: the next recall looks at what is left, or the next start does.
                Err(error) => {
                    tracing::warn!(file = %cell.node.id, "could not free a failed recall's blocks: {error}");
                    let key = cell.lock().record.object.as_ref().map(|object| object.key.clone());
                    self.leftovers.lock().extend(key.zip(touched).map(|left| (cell.node.id, left)));
                }
            }
        }
        self.abandon_recall(&mut cell.lock());
        cell.changed.notify_waiters();
    }
}

/// The change that puts a file's mtime back.
pub(super) fn date(mtime: Timestamp) -> SetAttr {
    SetAttr { mtime: Some(SetTime::At(mtime)), ..Default::default() }
}
