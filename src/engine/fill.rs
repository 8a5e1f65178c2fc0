//! Filling a stub: runs of chunks are fetched, several at a time, each chunk verified as it comes, and written or held for who waits.
//!
//! Nothing is written before the recall's note is durable, and no write outlives the recall it belongs to. What is in the file already counts
//! after a comparison with its hash.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant};

use super::archive::OpenNote;
use super::cell::{Cell, has_data};
use super::error::{EngineError, EngineResult};
use super::fetch::{Bad, is_archived};
use super::plan::{Run, Work};
use super::recall::Recall;
use super::session::date;
use super::slots::Permit;
use super::{Engine, blocking, go_on_panicking, moving};
use crate::admission::Class;
use crate::kill;
use crate::ports::{Intent, IntentId, IntentKind, Keep, LowerError, LowerFile, LowerResult, OpenFlags, SeekTo};
use crate::record::{Claim, ObjectRef, is_peer_key};
use crate::types::{ByteRange, ContentHash, FileId, ObjectKey, Timestamp};

pub(super) const FOREIGN_DATA: &str = "there is data in it that tierfs did not write";

/// How long a recall waits for the next read of an open file, with its hashes at hand, before it ends.
const LINGER: Duration = Duration::from_secs(10);

/// How a recall ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// All content is in the file, dated and durable.
    Complete,
    /// Nobody wants more for now.
    Rest,
    /// The file is cut to nothing.
    Cut,
}

/// One recall at work.
pub(super) struct Fill {
    pub(super) engine: Arc<Engine>,
    pub cell: Arc<Cell>,
    pub object: ObjectRef,
    pub(super) claim: Claim,
    pub mtime: Timestamp,
    /// The file's mtime was not the record's: somebody has been there below the mount.
    dated_below: bool,
    pub recall: Arc<Recall>,
    /// Nothing of it may be in the file: nothing is to be compared.
    bare: bool,
    /// Opened, and looked at.
    looked: OnceCell<Arc<dyn LowerFile>>,
    /// Whether there is a note, or is to be one.
    notes: AtomicBool,
    noted: OnceCell<IntentId>,
    pub(super) hashes: OnceCell<Arc<[ContentHash]>>,
    /// The content was changed at the pair's other side: what that has now is found out when this ends.
    pub moved: AtomicBool,
    /// Chunks whose place in the file has other bytes: to be written with their zeros.
    pub(super) spoilt: Mutex<HashSet<usize>>,
    /// Held by who writes: the filesystem below lets one at a time, and threads that wait there burn what others could use.
    pub(super) writing: tokio::sync::Mutex<()>,
}

impl Fill {
    pub fn new(
        engine: Arc<Engine>,
        cell: Arc<Cell>,
        object: ObjectRef,
        claim: Claim,
        mtime: Timestamp,
        dated_below: bool,
        recall: Arc<Recall>,
    ) -> Arc<Self> {
        let (notes, noted, hashes, spoilt) =
            (AtomicBool::new(false), OnceCell::new(), OnceCell::new(), Mutex::default());
        let (moved, writing) = (AtomicBool::new(false), tokio::sync::Mutex::default());
        // What an interrupted handover has left of a peer's file is compared like any part.
        let bare = claim == Claim::Stub && !engine.is_leftover(cell.node.id, &object.key) && !is_peer_key(&object.key);
        Arc::new(Self {
            engine,
            cell,
            object,
            claim,
            mtime,
            dated_below,
            recall,
            bare,
            looked: OnceCell::new(),
            notes,
            noted,
            hashes,
            moved,
            spoilt,
            writing,
        })
    }

    /// A step of local I/O. Those of many small files that nobody waits for by name share threads.
    pub(super) async fn step<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> EngineResult<T> {
        let bulk = self.object.chunks() == 1 && self.engine.running.class_of(self.cell.node.id).0 == Class::Bulk;
        if bulk { self.engine.hands.run(work).await } else { blocking(work).await }
    }

    pub(super) fn failed(&self) -> impl Fn(LowerError) -> EngineError + use<> {
        EngineError::lower(self.cell.node.id)
    }

    /// The recall's note, durable.
    pub(super) async fn noted(&self) -> EngineResult<IntentId> {
        self.notes.store(true, Ordering::SeqCst);
        let note = || async {
            let noted = self.engine.journal.add(Intent {
                pair: self.object.pair.name.clone(),
                key: self.object.key.clone(),
                manifest: self.object.has_manifest(),
                node: self.cell.node,
                kind: IntentKind::Settle { mtime: self.mtime },
            });
            let noted = noted.await?;
            kill::point("recall.noted");
            Ok(noted)
        };
        self.noted.get_or_try_init(note).await.copied()
    }

    async fn hashes(&self) -> EngineResult<Arc<[ContentHash]>> {
        let read = || self.engine.chunk_hashes(self.cell.node.id, &self.object);
        self.hashes.get_or_try_init(read).await.cloned()
    }

    /// After a read failed with `error`: waits until its object is back from an archive class, if that was it.
    pub(super) async fn restored(&self, error: EngineError, chunks: &Range<usize>) -> Result<(), Bad> {
        let (EngineError::Remote { file, source }, wanted) = (error, self.recall.unwanted(chunks)) else {
            unreachable!("only what the remote says is passed here")
        };
        match self.engine.restored(file, &self.object, source, wanted).await {
            Err(EngineError::Cancelled) => Err(Bad::Unwanted),
            ended => Ok(ended?),
        }
    }

    /// A slot among all recalls, and memory for `bytes`.
    pub(super) async fn slot(&self, wanted: bool, bytes: u64) -> EngineResult<Permit> {
        self.engine.slot_for(self.cell.node.id, !wanted, bytes).await
    }

    /// The hashes, for a run that somebody wants.
    pub(super) async fn hashes_for(&self, chunks: &Range<usize>) -> Result<Arc<[ContentHash]>, Bad> {
        loop {
            match self.while_wanted(chunks, self.hashes()).await? {
                Err(error) if is_archived(&error) => self.restored(error, chunks).await?,
                hashes => return Ok(hashes?),
            }
        }
    }

    /// The note, if there is or may be one, to be taken away by whoever ends the recall.
    pub async fn end_note(&self) -> Option<OpenNote> {
        if !self.notes.load(Ordering::SeqCst) {
            return None;
        }
        // One that is under way is waited for; none is there only if the journal fails.
        self.noted().await.ok().map(OpenNote::Settle)
    }

    /// Whether the file was written to since it became a stub. Then each write of content puts back the mtime that it found.
    pub fn is_patched(&self) -> bool {
        self.claim == Claim::Patched
    }

    /// Puts the mtime and the privileges back that filling has moved.
    pub async fn date_back(&self) -> EngineResult<()> {
        if self.is_patched() {
            return Ok(());
        }
        let (lower, node, restore) = (self.engine.lower.clone(), self.cell.node, date(self.mtime));
        let file = self.looked.get().cloned();
        let restored = self.step(move || {
            file.map_or(Ok(()), |file| file.put_back_privileges())?;
            lower.set_attr(&node, &restore)
        });
        restored.await?.map_err(self.failed())?;
        kill::point("recall.dated");
        Ok(())
    }

    /// Fetches what is wanted until all is local, nobody wants more, or the file is cut.
    pub async fn run(self: &Arc<Self>) -> EngineResult<Ending> {
        if !self.bare {
            self.file().await?;
        }
        if self.object.has_manifest() {
            let this = self.clone();
            self.engine.runtime.spawn(async move { this.hashes().await.map(drop) });
        }
        let (mut runs, mut begun) = (JoinSet::new(), false);
        let mut since = Instant::now();
        loop {
            let open = self.cell.lock().machine.handles() > 0 && !self.engine.is_stopping();
            if !open {
                self.recall.look_no_further();
            }
            if !self.recall.is_ending() {
                // Who waits does not wait for all of the others.
                let (most, ahead_max) = (self.engine.limits.fetches_per_file, self.engine.limits.ahead_per_file());
                while runs.len() < most {
                    let Some(run) = self.recall.next_run(runs.len() < ahead_max) else { break };
                    let this = self.clone();
                    runs.spawn_on(async move { this.work(run).await }, &self.engine.runtime);
                }
            }
            if !std::mem::replace(&mut begun, true) {
                // The first bytes are on their way meanwhile; none is served or written before the file was looked at, and none written before the note is there.
                if let Err(error) = self.file().await {
                    self.recall.pause();
                    while let Some(ended) = runs.join_next().await {
                        let _ = ended.map_err(go_on_panicking);
                    }
                    return Err(error);
                }
                if self.recall.keeps() {
                    self.notes.store(true, Ordering::SeqCst);
                    let this = self.clone();
                    self.engine.runtime.spawn(async move { this.noted().await.map(drop) });
                }
            }
            if runs.is_empty() {
                if self.recall.with_plan(|plan| plan.is_complete()) && !self.engine.lower.features().read_only {
                    return self.complete().await;
                }
                if self.recall.is_cut() {
                    return Ok(Ending::Cut);
                }
                let over = !open || self.recall.is_paused() || since.elapsed() >= LINGER;
                if over && self.recall.close_at_rest() {
                    return Ok(Ending::Rest);
                }
                if over {
                    since = Instant::now();
                }
            } else {
                since = Instant::now();
            }
            // Never aborted: a blocking write would outlive its task, and could land after the file was cut and written anew. Fetches that
            // nobody wants end at once, writes end by themselves.
            tokio::select! {
                biased;
                Some(ended) = runs.join_next() => { let _ = ended.map_err(go_on_panicking); }
                () = self.recall.stirred() => since = Instant::now(),
                () = tokio::time::sleep_until(since + LINGER), if runs.is_empty() => {}
            }
        }
    }

    /// All content is in the file: dates it, and makes both durable.
    async fn complete(&self) -> EngineResult<Ending> {
        kill::point("recall.filled");
        self.engine.restore_is_over(&self.object);
        self.date_back().await?;
        self.engine.barrier.wait(self.cell.node).await?;
        kill::point("recall.synced");
        Ok(Ending::Complete)
    }

    /// The file, opened and looked at. Nothing is served or written before.
    pub(super) async fn file(self: &Arc<Self>) -> EngineResult<Arc<dyn LowerFile>> {
        self.looked.get_or_try_init(|| self.look()).await.cloned()
    }

    /// Opens the file and finds what is in it.
    async fn look(self: &Arc<Self>) -> EngineResult<Arc<dyn LowerFile>> {
        let this = self.clone();
        let look = move || {
            let flags = if this.engine.lower.features().read_only {
                OpenFlags { read: true, no_atime: true, ..Default::default() }
            } else if this.is_patched() {
                // What was written has cost the file its privileges.
                moving(Keep::Nothing)
            } else {
                moving(Keep::OwnAndLeft)
            };
            let file = this.engine.lower.open(&this.cell.node, flags).map_err(this.failed())?;
            if this.bare {
                if has_data(&*file, this.object.len).map_err(this.failed())? {
                    return Err(this.changed_below());
                }
                return Ok(file);
            }
            let found = data(&*file, this.object.len).map_err(this.failed())?;
            if this.is_patched() {
                this.look_at_patch(&found);
                return Ok(file);
            }
            for range in found {
                this.recall.with_plan(|plan| plan.perhaps(plan.chunks_of(range)));
            }
            Ok(file)
        };
        self.step(look).await?
    }

    fn changed_below(&self) -> EngineError {
        EngineError::ChangedBelow { file: self.cell.node.id, object: self.object.key.to_string(), why: FOREIGN_DATA }
    }

    async fn work(self: Arc<Self>, run: Run) {
        let result = match run.work {
            Work::Compare => self.compare(&run).await,
            Work::Fetch => self.fetch(&run).await,
        };
        let failure = match result {
            Ok(()) | Err(Bad::Unwanted) => None,
            Err(Bad::Body(error) | Bad::Else(error)) => Some(error),
        };
        let failure = match failure {
            // It ends, and who waits asks again: then for what is there now.
            Some(error) if is_peer_key(&self.object.key) && self.engine.says_moved(&error) => {
                let told = self.engine.why_moved(&self.cell).await;
                self.moved.store(true, Ordering::SeqCst);
                self.recall.pause();
                return self.recall.run_ended(&run, Some(told));
            }
            failure => failure,
        };
        if let Some(error) = &failure {
            self.engine.tell_recall_failed(&self.cell, &self.object, error);
        }
        self.recall.run_ended(&run, failure);
    }

    /// Looks whether chunks that are in the file are what they should be.
    async fn compare(self: &Arc<Self>, run: &Run) -> Result<(), Bad> {
        let file = self.file().await?;
        let hashes = self.hashes_for(&run.chunks).await?;
        for chunk in run.chunks.clone() {
            let range = self.object.chunk_range(chunk as u64);
            let _slot = self.while_wanted(&run.chunks, self.slot(run.wanted, range.len)).await??;
            let (this, file, hash) = (self.clone(), file.clone(), hashes[chunk]);
            let right = blocking(move || {
                let mut body = vec![0; range.len as usize];
                let got = file.read_at(&mut body, range.offset).map_err(this.failed())?;
                Ok::<_, EngineError>(got == body.len() && ContentHash::of(&body) == hash)
            });
            if right.await?? {
                self.recall.arrived(chunk);
            } else if self.dated_below && !is_peer_key(&self.object.key) {
                return Err(self.changed_below().into());
            } else {
                self.spoilt.lock().insert(chunk);
                self.recall.with_plan(|plan| plan.is_spoilt(chunk));
            }
        }
        Ok(())
    }
}

impl Engine {
    /// Whether what is local of a stub is what an earlier transfer could not free.
    pub(super) fn is_leftover(&self, file: FileId, key: &ObjectKey) -> bool {
        self.leftovers.lock().get(&file).is_some_and(|(left, _)| left == key)
    }

    /// Nothing is left in the file that its record does not tell: the note of what was is done.
    pub(super) fn leftover_is_gone(self: &Arc<Self>, cell: &Arc<Cell>) {
        let left = self.leftovers.lock().remove(&cell.node.id);
        self.spawn_forget_when_durable(cell.clone(), left.map(|(_, note)| note));
    }
}

/// Where there is data within the first `len` bytes of a file.
pub(super) fn data(file: &dyn LowerFile, len: u64) -> LowerResult<Vec<ByteRange>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < len {
        let offset = match file.seek(at, SeekTo::Data) {
            Err(error) if error.errno() == libc::ENXIO => break,
            offset => offset?,
        };
        if offset >= len {
            break;
        }
        let end = file.seek(offset, SeekTo::Hole)?.min(len).max(offset + 1);
        found.push(ByteRange { offset, len: end - offset });
        at = end;
    }
    Ok(found)
}
