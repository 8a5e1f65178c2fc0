//! Release: frees the local blocks of a dual file that nobody has open in any way.
//!
//! Order: object confirmed → kernel lease on the lower file (nobody else has it open or mapped) → record *releasing*, durable → punch,
//! mtime back, durable → record *stub*. From *releasing* on the record outranks the bytes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::announce::Finished;
use super::archive::OpenNote;
use super::cell::{Cell, Inner, same_content};
use super::error::{EngineError, EngineResult, Unfit};
use super::{Engine, Moved, blocking, moving};
use crate::kill;
use crate::ports::{Intent, IntentKind, Keep, LowerFile, RemoteError, RemoteErrorKind, SetAttr, SetTime};
use crate::record::{Claim, ObjectRef, is_peer_key};
use crate::tier::{Event, Refusal, Verdict};
use crate::types::FileId;

/// A lower file held exclusively; dropping the lease lets other openers on.
struct Exclusive {
    file: Arc<dyn LowerFile>,
    _lease: Option<Box<dyn Send + Sync>>,
}

impl Engine {
    /// Frees a dual file's blocks. `note`: the upload's note when this follows an archive at once, whose answer has just confirmed
    /// the object. `Ok(false)`: it was a stub already.
    pub async fn release(self: &Arc<Self>, cell: &Arc<Cell>, note: Option<OpenNote>) -> EngineResult<bool> {
        self.totals.running.fetch_add(1, Ordering::SeqCst);
        self.note_begun(cell.node.id, Moved::Release);
        let mut note = note;
        let result = self.free(cell, &mut note).await;
        if let Err(error) = &result {
            tracing::debug!(file = %cell.node.id, "not released: {error}");
        }
        // Removed meanwhile, it has nothing left to be settled.
        let gone = matches!(note, Some(OpenNote::Settle(_))) && result.as_ref().is_err_and(EngineError::is_gone);
        // What is refused has not come to its mark: one that is there is another release's, which has a note of its own.
        let refused = matches!(result, Err(EngineError::Refused { .. } | EngineError::Unfit { .. }));
        // A release that stuck after its mark keeps its note: the next start, or the next attempt, ends it. So does one that could not
        // store what is so instead of its mark.
        let stuck = !gone && !refused && {
            let inner = cell.lock();
            inner.record.claim == Claim::Releasing || inner.machine.is_unknown()
        };
        if !stuck {
            let uploaded = matches!(note, Some(OpenNote::Upload(_)));
            let finished = match &result {
                Ok(true) => Some(Finished::of(Moved::Release, uploaded)),
                Ok(false) => None,
                // The copy stays.
                Err(_) => uploaded.then_some(Finished::Archived),
            };
            self.spawn_end(cell.clone(), note, finished);
        }
        self.totals.running.fetch_sub(1, Ordering::SeqCst);
        if !matches!(result, Ok(false)) {
            self.note_ended(cell, Moved::Release, result.as_ref().err());
        }
        if matches!(result, Ok(true)) {
            self.totals.released_files.fetch_add(1, Ordering::Relaxed);
            let len = cell.lock().record.object.as_ref().map_or(0, |object| object.len);
            self.totals.released_bytes.fetch_add(len, Ordering::Relaxed);
            self.announce_change(cell.node.id);
        }
        result
    }

    async fn free(self: &Arc<Self>, cell: &Arc<Cell>, note: &mut Option<OpenNote>) -> EngineResult<bool> {
        self.check_running()?;
        let features = self.lower.features();
        if features.read_only {
            return Err(EngineError::ReadOnly);
        }
        let (object, claim) = {
            let inner = cell.lock();
            match (&inner.record.object, inner.machine.claim()) {
                (_, Claim::Stub) => return Ok(false),
                (Some(object), claim) => (object.clone(), claim),
                (None, _) => {
                    return Err(EngineError::Refused { file: cell.node.id, why: Refusal::NotArchived });
                }
            }
        };
        if note.is_none() {
            // Cheap refusals come before the request to the remote.
            self.check_releasable(cell)?;
            // The other side's file is not given up by anybody here.
            let of_peer = is_peer_key(&object.key);
            if !of_peer {
                self.keep_borrowed(cell, &object).await?;
            }
            if !of_peer && let Err(error) = self.confirm_object(cell.node.id, &object).await {
                // Meanwhile a writer may have given the object up: then it is rightly gone.
                let given_up = !cell.lock().record.names(&object.key);
                let changed = EngineError::Refused { file: cell.node.id, why: Refusal::Changed };
                return Err(if given_up { changed } else { error });
            }
            kill::point("release.confirmed");
            let mtime = object.mtime;
            *note = Some(OpenNote::Settle(
                self.journal
                    .add(Intent {
                        pair: object.pair.name.clone(),
                        key: object.key.clone(),
                        manifest: object.has_manifest(),
                        node: cell.node,
                        kind: IntentKind::Settle { mtime },
                    })
                    .await?,
            ));
            kill::point("release.noted");
        }
        let exclusive = {
            let (this, cell, confirmed) = (self.clone(), cell.clone(), object.clone());
            let marked = self.hands.run(move || {
                let mut inner = cell.lock();
                this.mark_releasing(&cell, &mut inner, claim, &confirmed)
            });
            marked.await??
        };
        let result = self.punch(cell, &object, claim, exclusive).await;
        cell.changed.notify_waiters();
        result.map(|()| true)
    }

    fn check_releasable(&self, cell: &Cell) -> EngineResult<()> {
        let refuse = |why| Err(EngineError::Refused { file: cell.node.id, why });
        let inner = cell.lock();
        self.check_pair(&cell.node, &inner.record)?;
        if inner.machine.handles() > 0 {
            return refuse(Refusal::Open);
        }
        if inner.machine.pinned() {
            return refuse(Refusal::Pinned);
        }
        Ok(())
    }

    /// The object is there, in full. Its content was verified when it was stored.
    pub(super) async fn confirm_object(&self, file: FileId, object: &ObjectRef) -> EngineResult<()> {
        let failed = EngineError::remote(file);
        let target = self.target_of(file, object)?;
        let remote = &target.remote;
        let missing = |detail: String| {
            failed(RemoteError {
                kind: RemoteErrorKind::NotFound,
                operation: "confirm",
                object: object.key.to_string(),
                endpoint: object.pair.remote_share.clone(),
                detail,
            })
        };
        let info = remote.head(&object.key).await.map_err(&failed)?;
        if info.len != object.len || info.etag != object.etag {
            return Err(missing(format!(
                "the object has {} bytes and ETag {}, the record says {} and {}: not released",
                info.len, info.etag, object.len, object.etag
            )));
        }
        if object.has_manifest() {
            remote.head(&object.manifest_key()).await.map_err(&failed)?;
        }
        Ok(())
    }

    /// Under the cell's lock: everything that decides, and the mark. On success the activity is `Releasing`.
    fn mark_releasing(
        &self,
        cell: &Cell,
        inner: &mut Inner,
        seen: Claim,
        confirmed: &ObjectRef,
    ) -> EngineResult<Exclusive> {
        let failed = EngineError::lower(cell.node.id);
        let refuse = |why| Err(EngineError::Refused { file: cell.node.id, why });
        if inner.machine.is_unknown() {
            self.reestablish(cell, inner)?;
        }
        // Its times may have been set meanwhile, too: what the note carries would put back the old ones.
        if inner.record.claim != seen || inner.record.object.as_ref() != Some(confirmed) {
            return refuse(Refusal::Changed);
        }
        self.check_pair(&cell.node, &inner.record)?;
        let attr = self.lower.stat(&cell.node).map_err(&failed)?;
        if attr.sealed || inner.record.flags.retained {
            let why = if attr.sealed { Unfit::Sealed } else { Unfit::Retained };
            return Err(EngineError::Unfit { file: cell.node.id, why });
        }
        match inner.machine.apply(Event::ReleaseBegin) {
            Verdict::Save(Claim::Releasing) => {}
            Verdict::Refuse(why) => return refuse(why),
            other => unreachable!("{other:?} to the beginning of a release"),
        }
        let marked = self.hold_and_mark(cell, inner, seen);
        if marked.is_err() {
            inner.machine.apply(Event::ReleaseAbandoned);
        }
        marked
    }

    fn hold_and_mark(&self, cell: &Cell, inner: &mut Inner, seen: Claim) -> EngineResult<Exclusive> {
        let failed = EngineError::lower(cell.node.id);
        let refuse = |why| Err(EngineError::Refused { file: cell.node.id, why });
        // What is kept open for the next opener is no opener.
        self.warm.let_go(cell.node.id);
        let keep = if seen == Claim::Releasing { Keep::OwnAndLeft } else { Keep::Own };
        let file = match self.lower.open(&cell.node, moving(keep)) {
            // It runs as a program.
            Err(error) if error.errno() == libc::ETXTBSY => return refuse(Refusal::Open),
            opened => opened.map_err(&failed)?,
        };
        let lease = if self.lower.features().leases {
            match file.try_exclusive().map_err(&failed)? {
                Some(lease) => Some(lease),
                None => return refuse(Refusal::Open),
            }
        } else {
            None
        };
        kill::point("release.leased");
        // Looked at again now that nobody can write: below the mount, somebody may have.
        let now = self.lower.stat(&cell.node).map_err(&failed)?;
        if seen == Claim::Dual && !same_content(&now, &inner.record) {
            tracing::warn!(file = %cell.node.id, "changed below the mount since it was archived: not released");
            return refuse(Refusal::Changed);
        }
        let mut record = inner.record.clone();
        record.claim = Claim::Releasing;
        self.lower.save_record_through(&cell.node, &*file, &record.encode()).map_err(&failed)?;
        kill::point("release.recorded");
        inner.record = record;
        inner.machine.apply(Event::Saved(Claim::Releasing));
        inner.shown_mtime = inner.record.object.as_ref().map(|object| object.mtime);
        Ok(Exclusive { file, _lease: lease })
    }

    /// `seen`: the claim before the mark.
    async fn punch(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        object: &ObjectRef,
        seen: Claim,
        exclusive: Exclusive,
    ) -> EngineResult<()> {
        let failed = EngineError::lower(cell.node.id);
        if let Err(error) = self.barrier.wait_through(cell.node, Some(exclusive.file.clone())).await {
            // Nothing was freed by this attempt: unless an earlier one stuck after its mark, local bytes and object are both good,
            // whichever record survives, and it is dual again.
            let mut inner = cell.lock();
            self.cells.note_unknown(cell, &mut inner);
            inner.machine.apply(Event::ReleaseAbandoned);
            if seen == Claim::Dual {
                inner.record.claim = Claim::Dual;
            }
            inner.shown_mtime = None;
            if let Err(again) = self.reestablish(cell, &mut inner) {
                tracing::error!(file = %cell.node.id, "the record's state on disk is unknown: {again}");
            }
            return Err(error);
        }
        kill::point("release.synced");
        cell.lock().machine.apply(Event::ReleaseMarked);
        let (lower, node, mtime) = (self.lower.clone(), cell.node, object.mtime);
        let punch = move || {
            exclusive.file.punch_all()?;
            kill::point("release.punched");
            exclusive.file.put_back_privileges()?;
            lower.set_attr(&node, &SetAttr { mtime: Some(SetTime::At(mtime)), ..Default::default() })?;
            kill::point("release.dated");
            Ok(exclusive)
        };
        // The blocks of a large file take a while.
        let punched = if object.chunks() == 1 { self.hands.run(punch).await } else { blocking(punch).await };
        let punched = punched?.map_err(&failed);
        let durable = match punched {
            // The lease is held until the stub is complete.
            Ok(exclusive) => {
                self.barrier.wait_through(cell.node, Some(exclusive.file.clone())).await.map(|()| exclusive)
            }
            Err(error) => Err(error),
        };
        let mut inner = cell.lock();
        inner.shown_mtime = None;
        let saved = durable.and_then(|exclusive| {
            kill::point("release.freed");
            inner.machine.apply(Event::ReleasePunched);
            let mut record = inner.record.clone();
            record.claim = Claim::Stub;
            self.lower.save_record_through(&cell.node, &*exclusive.file, &record.encode()).map_err(&failed)?;
            kill::point("release.ended");
            inner.record = record;
            inner.machine.apply(Event::Saved(Claim::Stub));
            Ok(())
        });
        if saved.is_err() {
            // The record says releasing, so the object is served: only space is lost until the next attempt.
            inner.machine.apply(Event::ReleaseAbandoned);
        }
        saved
    }
}
