//! Writing to a stub without bringing its content back: the record tells which bytes are the file's own, and a recall fills around them.
//!
//! What is believed of the file's own bytes is on stable storage before it is stored as such (`Patch::ours`); until then it counts for as long as
//! the filesystem below is mounted (`Patch::fresh`), so the death of the daemon takes nothing, and a power loss what it takes of any
//! filesystem: what nobody had synced. Order: record patched (durable) → bytes → fresh; sync of the bytes → ours → sync of the record.
//! Whoever changes the bytes, writer or recall, holds [`Cell::patching`](super::Cell): no recall fills what was written meanwhile.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;
use tokio::time::{Duration, sleep, timeout};

use super::cell::{Cell, Inner, has_data};
use super::content::Content;
use super::error::{EngineError, EngineResult};
use super::fill::{FOREIGN_DATA, Fill};
use super::session::date;
use super::{Engine, Patience, blocking};
use crate::kill;
use crate::ports::{Intent, IntentKind, LowerError, LowerFile, LowerResult, OpenFlags, PUNCH};
use crate::record::{Claim, Patch};
use crate::tier::{Activity, Event, Verdict};
use crate::types::{ByteRange, Timestamp};

/// How long what was written to a file that stays open may be fresh.
const FRESH_MAX: Duration = Duration::from_secs(2);
/// How often it is looked meanwhile whether the mount is to end.
const TICK: Duration = Duration::from_millis(200);
/// Before what could not be made durable is tried again.
const BACK_OFF: Duration = Duration::from_secs(5);

impl Cell {
    /// Keeps recalls and other writers of a patched file from changing its bytes. `None`: somebody does just now, and the caller may not wait.
    pub fn patching(&self, patience: Patience) -> Option<MutexGuard<'_, ()>> {
        match patience {
            Patience::None => self.patching.try_lock(),
            Patience::Disk => Some(self.patching.lock()),
        }
    }
}

impl Engine {
    /// A stub is about to be written to: its record says so, durably. `false`: somebody has been there below the mount, and only a recall of
    /// all of it can tell what is what.
    pub(super) fn become_patched(self: &Arc<Self>, cell: &Cell, inner: &mut Inner) -> EngineResult<bool> {
        self.check_pair(&cell.node, &inner.record)?;
        let failed = EngineError::lower(cell.node.id);
        let object = inner.record.object.as_ref().expect("a remote claim has an object");
        let attr = self.lower.stat(&cell.node).map_err(&failed)?;
        if attr.size != object.len {
            return Err(self.changed_size(cell, object));
        }
        if inner.record.claim == Claim::Partial && attr.mtime != object.mtime {
            return Ok(false);
        }
        if inner.record.claim == Claim::Stub && !self.is_leftover(cell.node.id, &object.key) {
            let flags = OpenFlags { read: true, no_atime: true, ..Default::default() };
            let file = self.lower.open(&cell.node, flags).map_err(&failed)?;
            if has_data(&*file, object.len).map_err(&failed)? {
                let object = object.key.to_string();
                return Err(EngineError::ChangedBelow { file: cell.node.id, object, why: FOREIGN_DATA });
            }
        }
        let record = inner.record.clone().into_patched(inner.record.generation.after(self.clock.now()));
        if !record.fits() {
            return Ok(false);
        }
        match self.save_durably(cell, inner, record) {
            // A record without a patch is shorter.
            Err(EngineError::Lower { source, .. }) if is_no_room(&source) && !inner.machine.is_unknown() => Ok(false),
            saved => saved.map(|()| self.note_state(cell.node.id)).map(|()| true),
        }
    }

    /// `range` of a patched file is written: in the file, and not made durable yet. With [`Cell::patching`] held.
    pub fn wrote(self: &Arc<Self>, cell: &Arc<Cell>, range: ByteRange) -> EngineResult<()> {
        let mut inner = cell.lock();
        let instance = self.lower.instance();
        // Without a patch the file has become resident meanwhile.
        let Some(patch) = &mut inner.record.patch else { return Ok(()) };
        if !patch.wrote(range, instance.unwrap_or(0)) {
            return Ok(());
        }
        self.keep_patch(cell, &mut inner);
        if instance.is_some() {
            let saved = self.lower.save_record(&cell.node, &inner.record.encode());
            // It counts in memory all the same; who writes is told, and the next one waits for all content.
            inner.patch_is_stuck |= saved.is_err();
            saved.map_err(EngineError::lower(cell.node.id))?;
        }
        kill::point("patch.noted");
        Ok(())
    }

    /// A user is about to change a file's bytes or times: what its mtime was while it was filled is over. With [`Cell::patching`] held.
    pub fn end_filling(&self, cell: &Cell, inner: &mut Inner) -> EngineResult<()> {
        let Some(patch) = inner.record.patch.as_mut().filter(|patch| patch.filling.is_some()) else { return Ok(()) };
        patch.filling = None;
        self.lower.save_record(&cell.node, &inner.record.encode()).map_err(EngineError::lower(cell.node.id))
    }

    fn begin_filling(&self, cell: &Cell, mtime: Timestamp) -> LowerResult<()> {
        let mut inner = cell.lock();
        let Some(patch) = inner.record.patch.as_mut().filter(|patch| patch.filling != Some(mtime)) else {
            return Ok(());
        };
        patch.filling = Some(mtime);
        self.lower.save_record(&cell.node, &inner.record.encode())
    }

    /// Makes content and record of a file durable; what was written is the file's own from then on, whatever happens. Blocks on the disk.
    pub fn sync_patched(&self, cell: &Cell) -> EngineResult<()> {
        let failed = EngineError::lower(cell.node.id);
        let fresh = cell.lock().record.patch.as_ref().map(|patch| patch.fresh.clone());
        // Before the record, and what is written meanwhile is not meant.
        self.lower.sync_node(&cell.node).map_err(&failed)?;
        kill::point("patch.synced");
        let Some(fresh) = fresh.filter(|fresh| !fresh.is_empty()) else { return Ok(()) };
        let mut inner = cell.lock();
        let mut record = inner.record.clone();
        let Some(patch) = &mut record.patch else { return Ok(()) };
        patch.synced(&fresh);
        self.lower.save_record(&cell.node, &record.encode()).map_err(&failed)?;
        kill::point("patch.recorded");
        // Under the lock: a record stored in between would say less.
        self.lower.sync_node(&cell.node).map_err(&failed)?;
        inner.record = record;
        Ok(())
    }

    /// A patched file is cut to `len` bytes, which are fewer than are its object's. With [`Cell::patching`] held; blocks on the disk.
    pub fn cut_patched(
        &self,
        cell: &Cell,
        inner: &mut Inner,
        cut: impl FnOnce() -> LowerResult<()>,
        len: u64,
    ) -> EngineResult<()> {
        let failed = EngineError::lower(cell.node.id);
        cut().map_err(&failed)?;
        kill::point("patch.cut");
        if let Some(patch) = &mut inner.record.patch {
            patch.cut(len);
        }
        // The cut first: the record must not give up bytes that are there after all. Nothing may lengthen the file before both are durable, or
        // what was cut off would be taken for its object's again.
        let synced = self.lower.sync_node(&cell.node).and_then(|()| {
            self.lower.save_record(&cell.node, &inner.record.encode())?;
            kill::point("patch.shortened");
            self.lower.sync_node(&cell.node)
        });
        if synced.is_err() {
            self.cells.note_unknown(cell, inner);
        }
        synced.map_err(&failed)
    }

    /// Holds a file that was written to until nothing of it is fresh any more.
    fn keep_patch(self: &Arc<Self>, cell: &Arc<Cell>, inner: &mut Inner) {
        if std::mem::replace(&mut inner.patch_is_kept, true) {
            return;
        }
        let object = inner.record.object.as_ref().expect("a patch has an object");
        let note = Intent {
            pair: object.pair.name.clone(),
            key: object.key.clone(),
            manifest: object.has_manifest(),
            node: cell.node,
            kind: IntentKind::Settle { mtime: object.mtime },
        };
        let (this, cell) = (self.clone(), cell.clone());
        self.totals.running.fetch_add(1, Ordering::SeqCst);
        self.runtime.spawn(async move {
            // For the next start, if this one's end does not come to it.
            let noted = this.journal.add(note).await;
            this.keep_until_durable(&cell).await;
            if let Ok(id) = noted
                && let Err(error) = this.journal.remove(id).await
            {
                tracing::debug!(file = %cell.node.id, "{error}");
            }
            this.totals.running.fetch_sub(1, Ordering::SeqCst);
        });
    }

    async fn keep_until_durable(self: &Arc<Self>, cell: &Arc<Cell>) {
        loop {
            let mut waited = Duration::ZERO;
            let closed = |inner: &mut Inner| inner.machine.handles() == 0;
            while waited < FRESH_MAX && !self.is_stopping() && timeout(TICK, cell.wait_until(closed)).await.is_err() {
                waited += TICK;
            }
            let (this, at_work) = (self.clone(), cell.clone());
            let kept = blocking(move || this.sync_patched(&at_work).and_then(|()| this.end_patch(&at_work))).await;
            match kept.and_then(|kept| kept) {
                Ok(true) => return,
                Ok(false) => {}
                // Its last name and its last handle are gone.
                Err(error) if error.is_gone() => return,
                Err(error) => {
                    tracing::warn!(file = %cell.node.id, "what was written is not durable yet: {error}");
                    if self.is_stopping() {
                        cell.lock().patch_is_kept = false;
                        return;
                    }
                    sleep(BACK_OFF).await;
                }
            }
        }
    }

    /// Whether nothing is fresh. A file of which nothing is its object's any more is resident from now on.
    fn end_patch(self: &Arc<Self>, cell: &Arc<Cell>) -> EngineResult<bool> {
        let _writing = cell.patching.lock();
        let mut inner = cell.lock();
        if inner.record.patch.as_ref().is_some_and(|patch| !patch.fresh.is_empty()) {
            return Ok(false);
        }
        let idle = inner.machine.activity() == Activity::None && !inner.machine.is_unknown();
        if idle && inner.record.patch.as_ref().is_some_and(Patch::is_whole) {
            self.become_resident(cell, &mut inner)?;
            self.note_state(cell.node.id);
        }
        inner.patch_is_kept = false;
        Ok(true)
    }

    /// All content of a patched file is local and durable: it is resident from now on. Blocks on the disk.
    pub(super) fn commit_patched(self: &Arc<Self>, cell: &Arc<Cell>) -> EngineResult<()> {
        let mut inner = cell.lock();
        let Verdict::Save(Claim::Resident) = inner.machine.apply(Event::RecallFetched) else {
            return Err(EngineError::Refused { file: cell.node.id, why: crate::tier::Refusal::Unknown });
        };
        self.become_resident(cell, &mut inner)?;
        inner.recall = None;
        Ok(())
    }
}

/// Whether an attribute has no room.
fn is_no_room(error: &LowerError) -> bool {
    matches!(error.errno(), libc::ENOSPC | libc::EDQUOT | libc::E2BIG | libc::ERANGE)
}

impl Fill {
    /// Which chunks of a patched file are the file's own, and of which some bytes are there.
    pub(super) fn look_at_patch(&self, data: &[ByteRange]) {
        let Some(patch) = self.cell.lock().record.patch.clone() else { return };
        let own = patch.own();
        self.recall.with_plan(|plan| {
            for chunk in plan.all() {
                let place = self.object.chunk_range(chunk as u64);
                match &patch.of_object_but(&own, place)[..] {
                    [] => plan.arrived(chunk),
                    // Only what is the object's as a whole has its hash.
                    [all]
                        if *all == place
                            && data.iter().any(|found| found.offset < place.end() && place.offset < found.end()) =>
                    {
                        plan.perhaps(chunk..chunk + 1);
                    }
                    _ => {}
                }
            }
        });
    }

    /// Writes what of `place` is still the object's; `None`: it is zeros. Blocks on the disk.
    pub(super) fn write_around(
        &self,
        file: &dyn LowerFile,
        place: ByteRange,
        content: Option<&Content>,
    ) -> LowerResult<()> {
        let _writing = self.cell.patching.lock();
        let Some(patch) = self.cell.lock().record.patch.clone() else { return Ok(()) };
        let mtime = file.stat()?.mtime;
        let parts = patch.of_object(place);
        self.engine.begin_filling(&self.cell, mtime)?;
        kill::point("patch.filling");
        let write = |part: &ByteRange| {
            // What a power loss or a failed write has left there goes first.
            file.allocate(PUNCH, part.offset, part.len)?;
            let Some(content) = content else { return Ok(()) };
            content.slice((part.offset - place.offset) as usize, part.len as usize).write(file, part.offset, true)
        };
        let written = parts.iter().try_for_each(write);
        // Both moved it, and who wrote the rest has set it.
        self.engine.lower.set_attr(&self.cell.node, &date(mtime))?;
        written?;
        if parts.first() != Some(&place) && !parts.is_empty() {
            // No hash tells any more what it should be. Where that cannot be noted, it is fetched again.
            let _ = self.engine.wrote(&self.cell, place);
        }
        Ok(())
    }
}
