//! Archive: copies a resident file's content to a fresh object and, if nobody changed it meanwhile, records it dual.
//!
//! Order: note (durable) → upload, while the local data is made durable → under the cell's lock: unchanged? → record dual.
//! The note is taken away only when the record that names the object is durable, or its deletion is noted.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use super::announce::Finished;
use super::cell::{Cell, Inner};
use super::error::{EngineError, EngineResult, PeerTrouble, Unfit};
use super::intents::is_gone;
use super::keys::{member_base, object_key, object_metadata};
use super::orphans::SHARE_METADATA;
use super::packing::{Coming, Joining};
use super::source::{HashingSource, MemorySource};
use super::trees::travelling_xattrs;
use super::{Engine, Moved, Target, blocking};
use crate::kill;
use crate::ports::{
    Attr, FileKind, GIVEN_UP, Intent, IntentId, IntentKind, LowerFile, ObjectSource, OpenFlags, RemoteErrorKind, Stored,
};
use crate::record::{Claim, ObjectRef, Record};
use crate::tier::{Activity, Event, Refusal, Verdict};
use crate::types::{ByteRange, ContentHash, Generation, ObjectKey, PairName, Timestamp};

/// A change this recent may be followed by one with the same timestamps: kernels before 6.13 stamp by the tick, 10 ms at most.
const CLOCK_GRAIN: Duration = Duration::from_millis(20);
/// How often an upload looks whether a writer has spoilt it.
const DISTURBED_PERIOD: Duration = Duration::from_millis(50);
/// Waiting time after a rollback failed, doubled up to the maximum.
const ROLL_BACK_FIRST: Duration = Duration::from_secs(1);
const ROLL_BACK_MAX: Duration = Duration::from_secs(60);
/// Memory a single upload may hold: eight parts of 8 MiB in flight.
pub(super) const UPLOAD_MEMORY_MAX: u64 = 64 << 20;

/// What an archive left: the note that is still open, to be closed by whoever goes on (release) or by the archive itself.
#[derive(Debug)]
pub struct Archived {
    /// Bytes copied; 0 when the file was archived before.
    pub bytes: u64,
    /// The upload's note.
    pub note: Option<OpenNote>,
}

/// A transfer's note in the journal, to be taken away by whoever ends the transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenNote {
    /// Of an upload: if its file is gone, the object must go too.
    Upload(IntentId),
    /// Of blocks being filled or freed: if its file is gone, there is nothing to settle.
    Settle(IntentId),
}

impl Engine {
    /// Copies a file out. `path` is relative to the share and only names the object.
    pub async fn archive(self: &Arc<Self>, cell: &Arc<Cell>, path: &Path) -> EngineResult<Archived> {
        self.check_running()?;
        let target = self.target_for(&cell.node)?;
        if self.lower.features().read_only {
            return Err(EngineError::ReadOnly);
        }
        if target.peer {
            // Content has one owner among two shares: there is no copy beside it.
            return Err(EngineError::Peer { file: cell.node.id, why: PeerTrouble::NoCopies });
        }
        let failed = EngineError::lower(cell.node.id);
        check_fit(cell, &self.lower.stat(&cell.node).map_err(&failed)?)?;
        loop {
            match self.begin_archive(cell)? {
                Verdict::Go => break,
                // It was written to while it was away: its object has one part of it, the file another.
                Verdict::Recall => drop(self.recall(cell).await?),
                _ => return Ok(Archived { bytes: 0, note: None }),
            }
        }
        self.totals.running.fetch_add(1, Ordering::SeqCst);
        self.note_begun(cell.node.id, Moved::Archive);
        let result = self.copy_out(cell, path, &target).await;
        if result.is_err() {
            cell.lock().machine.apply(Event::ArchiveAbandoned);
        }
        cell.changed.notify_waiters();
        self.totals.running.fetch_sub(1, Ordering::SeqCst);
        self.note_ended(cell, Moved::Archive, result.as_ref().err());
        if let Ok(Archived { bytes, .. }) = &result {
            self.note_state(cell.node.id);
            self.totals.archived_files.fetch_add(1, Ordering::Relaxed);
            self.totals.archived_bytes.fetch_add(*bytes, Ordering::Relaxed);
        }
        result
    }

    fn begin_archive(&self, cell: &Cell) -> EngineResult<Verdict> {
        let mut inner = cell.lock();
        if inner.machine.is_unknown() {
            self.reestablish(cell, &mut inner)?;
        }
        match inner.machine.apply(Event::ArchiveBegin) {
            Verdict::Already => self.check_pair(&cell.node, &inner.record).map(|_| Verdict::Already),
            Verdict::Refuse(why) => Err(EngineError::Refused { file: cell.node.id, why }),
            verdict @ (Verdict::Go | Verdict::Recall) => Ok(verdict),
            other => unreachable!("{other:?} to the beginning of an archive"),
        }
    }

    async fn copy_out(self: &Arc<Self>, cell: &Arc<Cell>, path: &Path, target: &Target) -> EngineResult<Archived> {
        self.note_superseded(cell).await?;
        let failed = EngineError::lower(cell.node.id);
        let coming = target.pack.is_some().then(|| self.coming_to_pack());
        let flags = OpenFlags { read: true, no_atime: true, ..Default::default() };
        let file = self.lower.open(&cell.node, flags).map_err(&failed)?;
        let before = self.settled_attr(cell, &*file).await?;
        check_fit(cell, &before)?;
        if self.lower.features().leases && !file.nobody_writes().map_err(&failed)? {
            return Err(EngineError::Refused { file: cell.node.id, why: Refusal::OpenForWriting });
        }
        let generation = cell.lock().record.generation.after(self.clock.now());
        if let Some(coming) = coming.filter(|_| target.packs(before.size))
            && let Some(archived) = self.copy_into_pack(cell, path, target, &file, &before, generation, coming).await?
        {
            return Ok(archived);
        }
        let key = object_key(&target.prefix, path, cell.node.id, generation);
        let manifest = before.size > u64::from(target.chunk_size(before.size));
        let note = self
            .journal
            .add(Intent {
                pair: target.pair.name.clone(),
                key: key.clone(),
                manifest,
                node: cell.node,
                kind: IntentKind::Upload,
            })
            .await?;
        kill::point("archive.noted");
        let copied = self.upload(cell, path, target, &file, &before, generation, &key).await;
        let committed = match copied {
            Ok((stored, source)) => {
                let mut inner = cell.lock();
                self.commit_archive(cell, &mut inner, target, &*file, &before, generation, key, stored, &source)
            }
            Err(error) => Err(error),
        };
        match committed {
            Ok(()) => Ok(Archived { bytes: before.size, note: Some(OpenNote::Upload(note)) }),
            Err(error) => {
                // Rolled back: nothing names the object, so its note becomes its deletion.
                self.roll_back(note).await;
                kill::point("archive.rolled_back");
                Err(error)
            }
        }
    }

    /// As [`Engine::copy_out`], into an object that others' contents share. `None`: there are no others, and nothing was done.
    #[expect(clippy::too_many_arguments, reason = "the facts of one copy, used once")]
    async fn copy_into_pack(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        path: &Path,
        target: &Target,
        file: &Arc<dyn LowerFile>,
        before: &Attr,
        generation: Generation,
        coming: Coming<'_>,
    ) -> EngineResult<Option<Archived>> {
        let _memory = self.memory_for_packing(before.size).await?;
        let source = HashingSource::new(file.clone(), before.size, target.chunk_size(before.size));
        let changed = || EngineError::Refused { file: cell.node.id, why: Refusal::Changed };
        let content = source.whole(&self.hands).await.map_err(|_| changed())?;
        self.check_unchanged(cell, file, before)?;
        let root = source.manifest().map(|manifest| manifest.root());
        let metadata = self.metadata_of(cell, path, target, before, generation, root)?;
        let key = member_base(&target.prefix, path, cell.node.id, generation);
        let joining = Joining { node: cell.node, key, content, metadata, _memory };
        let (copy, durable) = tokio::join!(
            self.into_pack(target, cell, joining, coming),
            // As with an object of its own, see `upload`.
            self.barrier.wait(cell.node),
        );
        let Some(mut copy) = copy? else { return Ok(None) };
        durable?;
        let (key, stored) = (copy.key.clone(), copy.stored.clone());
        let committed = {
            let mut inner = cell.lock();
            self.commit_archive(cell, &mut inner, target, &**file, before, generation, key, stored, &source)
        };
        // Given up, the copy rolls its note back.
        committed?;
        Ok(Some(Archived { bytes: before.size, note: copy.take_note().map(OpenNote::Upload) }))
    }

    /// What travels with a content.
    fn metadata_of(
        &self,
        cell: &Cell,
        path: &Path,
        target: &Target,
        attr: &Attr,
        generation: Generation,
        root: Option<ContentHash>,
    ) -> EngineResult<Vec<(String, String)>> {
        let xattrs = travelling_xattrs(&*self.lower, &cell.node).map_err(EngineError::lower(cell.node.id))?;
        let chunk_size = target.chunk_size(attr.size);
        Ok(object_metadata(path, cell.node.id, generation, attr, &xattrs, root, chunk_size))
    }

    /// Turns an upload's note into its object's deletion. Where the journal cannot take that now, it is tried until it does; the next start
    /// finds the note as well.
    pub(super) async fn roll_back(self: &Arc<Self>, note: IntentId) {
        let Err(error) = self.journal.set_delete(note, GIVEN_UP).await else {
            return self.deletions.notify_one();
        };
        tracing::warn!("a rollback is tried again later: {error}");
        let this = self.clone();
        self.runtime.spawn(async move {
            let mut pause = ROLL_BACK_FIRST;
            loop {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(ROLL_BACK_MAX);
                if this.journal.set_delete(note, GIVEN_UP).await.is_ok() {
                    return this.deletions.notify_one();
                }
            }
        });
    }

    /// The file's attributes at a moment after which any change must show in them.
    async fn settled_attr(&self, cell: &Cell, file: &dyn LowerFile) -> EngineResult<Attr> {
        loop {
            let attr = file.stat().map_err(EngineError::lower(cell.node.id))?;
            let last = attr.mtime.max(attr.ctime);
            let age = self.clock.now().nanos_since(last);
            // A time in the future says nothing about now; the comparison at the end still holds for it.
            if age < 0 || age >= CLOCK_GRAIN.as_nanos() as i128 {
                return Ok(attr);
            }
            tokio::time::sleep(CLOCK_GRAIN).await;
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the facts of one upload, used once")]
    async fn upload(
        self: &Arc<Self>,
        cell: &Cell,
        path: &Path,
        target: &Target,
        file: &Arc<dyn LowerFile>,
        attr: &Attr,
        generation: Generation,
        key: &ObjectKey,
    ) -> EngineResult<(Stored, Arc<HashingSource>)> {
        let _memory = self.memory_for(attr.size.min(UPLOAD_MEMORY_MAX)).await?;
        let source = HashingSource::new(file.clone(), attr.size, target.chunk_size(attr.size));
        let (body, root): (Arc<dyn ObjectSource>, _) = if attr.size <= u64::from(target.chunk_size(attr.size)) {
            // One chunk is read before the request, so that its hash can travel in the object's metadata.
            let whole = source.read(ByteRange { offset: 0, len: attr.size }).await;
            let changed = |_| EngineError::Refused { file: cell.node.id, why: Refusal::Changed };
            let whole = whole.map_err(changed)?;
            self.check_unchanged(cell, file, attr)?;
            (Arc::new(MemorySource(whole)), source.manifest().map(|manifest| manifest.root()))
        } else {
            (source.clone(), None)
        };
        let mut metadata = self.metadata_of(cell, path, target, attr, generation, root)?;
        let share = (SHARE_METADATA.to_owned(), self.share_id().await?.to_owned());
        metadata.push(share.clone());
        let put = async {
            // A copy that a writer has spoilt is not finished: the asker may hold the inode's lock, which the writer waits for.
            tokio::select! {
                biased;
                stored = target.remote.put(key, attr.size, body, &metadata) => stored.map_err(EngineError::remote(cell.node.id)),
                () = disturbed(cell) => Err(EngineError::Refused { file: cell.node.id, why: Refusal::Changed }),
            }
        };
        let (stored, durable) = tokio::join!(
            put,
            // The bytes were the same when this sync began as at the commit, or there will be no commit.
            self.barrier.wait(cell.node),
        );
        let stored = match stored {
            // It became shorter while it was read: nothing is wrong with the disk or the remote.
            Err(EngineError::Remote { source, .. })
                if source.kind == RemoteErrorKind::Source
                    && !same_attr(&file.stat().map_err(EngineError::lower(cell.node.id))?, attr) =>
            {
                return Err(EngineError::Refused { file: cell.node.id, why: Refusal::Changed });
            }
            stored => stored?,
        };
        durable?;
        kill::point("archive.stored");
        if attr.size > u64::from(target.chunk_size(attr.size)) {
            let changed = || EngineError::Refused { file: cell.node.id, why: Refusal::Changed };
            self.check_unchanged(cell, file, attr)?;
            let encoded = source.manifest().ok_or_else(changed)?.encode();
            let len = encoded.len() as u64;
            let manifest = Arc::new(MemorySource(encoded.into()));
            let key = crate::record::manifest_key(key);
            target.remote.put(&key, len, manifest, &[share]).await.map_err(EngineError::remote(cell.node.id))?;
            kill::point("archive.manifest");
        }
        Ok((stored, source))
    }

    /// Refuses a copy that may be of no state the file ever had, before it can be taken for one: an object of one chunk, or one with a
    /// manifest, is always what the file was at some moment. A rebuild relies on it.
    fn check_unchanged(&self, cell: &Cell, file: &Arc<dyn LowerFile>, before: &Attr) -> EngineResult<()> {
        let failed = EngineError::lower(cell.node.id);
        let unwritten = !self.lower.features().leases || file.nobody_writes().map_err(&failed)?;
        if unwritten && same_attr(&file.stat().map_err(&failed)?, before) {
            return Ok(());
        }
        Err(EngineError::Refused { file: cell.node.id, why: Refusal::Changed })
    }

    /// Under the cell's lock: the writer wins, or the copy becomes the file's object.
    #[expect(clippy::too_many_arguments, reason = "the facts of one upload, used once")]
    fn commit_archive(
        &self,
        cell: &Cell,
        inner: &mut Inner,
        target: &Target,
        file: &dyn LowerFile,
        before: &Attr,
        generation: Generation,
        key: ObjectKey,
        stored: Stored,
        source: &HashingSource,
    ) -> EngineResult<()> {
        let failed = EngineError::lower(cell.node.id);
        let changed = || EngineError::Refused { file: cell.node.id, why: Refusal::Changed };
        let now = file.stat().map_err(&failed)?;
        let same = same_attr(&now, before);
        let unwritten = !self.lower.features().leases || file.nobody_writes().map_err(&failed)?;
        match inner.machine.apply(Event::ArchiveCopied { unchanged: same && unwritten }) {
            Verdict::Save(Claim::Dual) => {}
            _ => return Err(changed()),
        }
        let manifest = source.manifest().ok_or_else(changed)?;
        let record = Record {
            claim: Claim::Dual,
            generation,
            epoch: inner.record.epoch,
            flags: inner.record.flags,
            object: Some(ObjectRef {
                pair: target.pair.clone(),
                key,
                etag: stored.etag,
                version: stored.version,
                generation,
                len: before.size,
                mtime: before.mtime,
                chunk_size: target.chunk_size(before.size),
                root: manifest.root(),
            }),
            superseded: None,
            patch: None,
            peer: None,
        };
        if !record.fits() {
            return Err(EngineError::Unfit { file: cell.node.id, why: Unfit::RecordTooLong });
        }
        self.lower.save_record_through(&cell.node, file, &record.encode()).map_err(&failed)?;
        kill::point("archive.recorded");
        inner.record = record;
        inner.machine.apply(Event::Saved(Claim::Dual));
        Ok(())
    }

    /// Memory for `bytes` of content in flight; waits for others to give theirs back. More than there is at all counts as all.
    pub(super) async fn memory_for(&self, bytes: u64) -> EngineResult<OwnedSemaphorePermit> {
        let mib = bytes.div_ceil(1 << 20).min(self.limits.memory_mib as u64) as u32;
        self.memory.clone().acquire_many_owned(mib).await.map_err(|_| EngineError::ShuttingDown)
    }

    /// Takes a note away once everything done to the file so far is durable.
    pub(super) fn spawn_forget_when_durable(self: &Arc<Self>, cell: Arc<Cell>, note: Option<OpenNote>) {
        self.spawn_end(cell, note, None);
    }

    /// The same, after a transfer that is to be told of before its note goes.
    pub(super) fn spawn_end(self: &Arc<Self>, cell: Arc<Cell>, note: Option<OpenNote>, finished: Option<Finished>) {
        let Some(note) = note else { return };
        let ending = finished.and_then(|_| self.begin_telling());
        let this = self.clone();
        self.runtime.spawn(async move {
            let done = async {
                let gone = |error: &EngineError| matches!(error, EngineError::Lower { source, .. } if is_gone(source));
                let unlinked = match this.barrier.wait(cell.node).await {
                    Err(error) if gone(&error) => {
                        // Its removal may be in memory only: a power loss would bring it back as it was before this transfer's end.
                        this.sync_share().await?;
                        true
                    }
                    Err(error) => return Err(error),
                    Ok(()) => match this.lower.stat(&cell.node) {
                        Err(error) if is_gone(&error) => true,
                        found => found.map_err(EngineError::lower(cell.node.id))?.nlink == 0,
                    },
                };
                kill::point("note.outlived");
                // Not before: who spawns this may have the cell's lock.
                let object = {
                    let inner = cell.lock();
                    inner.record.object.as_ref().map(|object| (object.key.clone(), object.pair.name.clone()))
                };
                if finished == Some(Finished::Recalled)
                    && !unlinked
                    && let Some((key, _)) = &object
                {
                    this.note_after_recall(&cell.node, key).await?;
                }
                if let Some(finished) = finished {
                    let (OpenNote::Upload(id) | OpenNote::Settle(id)) = note;
                    if !this.announce_end(&cell, id, finished, true).await? {
                        return Ok(());
                    }
                    kill::point("note.told");
                }
                match note {
                    // Perhaps unlinked without seeing this object: the note becomes its deletion.
                    OpenNote::Upload(note) if unlinked => {
                        let until = this.kept_until(object.as_ref().map(|(_, pair)| pair));
                        Ok(this.journal.set_delete(note, until).await?)
                    }
                    OpenNote::Upload(note) | OpenNote::Settle(note) => Ok(this.journal.remove(note).await?),
                }
            };
            if let Err::<(), EngineError>(error) = done.await {
                // The note stays, and the next start looks at the file again: harmless.
                tracing::warn!(file = %cell.node.id, "a finished transfer stays noted: {error}");
            }
            kill::point("note.removed");
            drop(ending);
        });
    }

    /// Notes the deletion of the object that changed content left behind, then takes it out of the record.
    pub(super) async fn note_superseded(self: &Arc<Self>, cell: &Arc<Cell>) -> EngineResult<()> {
        self.note_superseded_until(cell, None).await
    }

    /// The same, due at `not_before`; `None`: after the retention.
    pub(super) async fn note_superseded_until(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        not_before: Option<Timestamp>,
    ) -> EngineResult<()> {
        let _noting = self.noting.read().await;
        let Some(old) = cell.lock().record.superseded.clone() else { return Ok(()) };
        let not_before = not_before.unwrap_or_else(|| self.kept_until(Some(&old.pair)));
        self.note_deletion(cell.node, old.pair.clone(), old.key.clone(), old.manifest, not_before).await?;
        kill::point("superseded.noted");
        self.deletions.notify_one();
        let (this, cell) = (self.clone(), cell.clone());
        blocking(move || {
            let mut inner = cell.lock();
            if inner.record.superseded.as_ref() == Some(&old) && !inner.machine.is_unknown() {
                let mut record = inner.record.clone();
                record.superseded = None;
                // Not synced: if this is lost, the deletion is noted twice, and deleting twice is harmless. (Who brings the object back
                // syncs it first.)
                this.lower.save_record(&cell.node, &record.encode()).map_err(EngineError::lower(cell.node.id))?;
                kill::point("superseded.recorded");
                inner.record = record;
            }
            Ok(())
        })
        .await?
    }

    pub(super) fn spawn_note_superseded(self: &Arc<Self>, cell: Arc<Cell>) {
        let this = self.clone();
        self.runtime.spawn(async move {
            if let Err(error) = this.note_superseded(&cell).await {
                // It stays in the record, and is noted at the next archive or unlink.
                tracing::warn!(file = %cell.node.id, "the superseded object could not be noted: {error}");
            }
        });
    }

    /// Until when an object is kept that nothing names from now on; `None`: the pair that files go to.
    pub(super) fn kept_until(&self, pair: Option<&PairName>) -> Timestamp {
        let now = self.clock.now();
        let target = pair.and_then(|pair| self.target_named(pair)).or_else(|| self.target().ok());
        Timestamp { secs: now.secs + target.map_or(0, |target| target.retention_s) as i64, ..now }
    }
}

pub(super) fn check_fit(cell: &Cell, attr: &Attr) -> EngineResult<()> {
    let why = if attr.kind != FileKind::Regular {
        Unfit::NotRegular
    } else if attr.size == 0 {
        Unfit::Empty
    } else if attr.sealed {
        Unfit::Sealed
    } else if cell.lock().record.flags.retained {
        Unfit::Retained
    } else {
        return Ok(());
    };
    Err(EngineError::Unfit { file: cell.node.id, why })
}

/// Whether nothing was written between two looks.
pub(super) fn same_attr(now: &Attr, before: &Attr) -> bool {
    (now.size, now.mtime, now.ctime) == (before.size, before.mtime, before.ctime)
}

/// Ends once the file may have been changed since its copy began.
pub(super) async fn disturbed(cell: &Cell) {
    loop {
        tokio::time::sleep(DISTURBED_PERIOD).await;
        if cell.lock().machine.activity() == (Activity::Archiving { disturbed: true }) {
            return;
        }
    }
}
