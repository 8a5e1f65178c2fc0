//! Intents: what a crash left is finished or undone at the start; objects that must go are deleted when due.
//!
//! An object is deleted only after looking at the inode it was made for: as long as a record names it, it stays.

use std::sync::Arc;
use std::time::Duration;

use super::archive::OpenNote;
use super::cell::{has_data, load_record, stored_record};
use super::error::{EngineError, EngineResult};
use super::failures::answers;
use super::orphans::record_of;
use super::owner::{is_own, is_shared};
use super::session::date;
use super::{Engine, Target, blocking, moving};
use crate::kill;
use crate::ports::{About, Attr, GIVEN_UP, Intent, IntentId, IntentKind, Keep, LowerError, RemoteErrorKind};
use crate::record::{Claim, Record, is_peer_key, manifest_key};
use crate::tier::{Activity, Refusal};
use crate::types::{Inode, ObjectKey, PairName, Timestamp};

/// Notes handled per look at the journal.
const BATCH: usize = 256;
/// How often the journal is asked for due deletions when nothing wakes the loop.
const DELETIONS_PERIOD: Duration = Duration::from_secs(5);
/// When a removed file that is still open is looked at again, in seconds.
const STILL_OPEN_PAUSE_S: i64 = 2;
/// When a file that could not be asked whether it names an object is asked again, in seconds.
pub(super) const UNREADABLE_PAUSE_S: i64 = 60;
/// How long a removal may take after its note, in seconds.
const REMOVAL_GRACE_S: i64 = 5;
/// Waiting time after a deletion failed, doubled up to the maximum.
const BACK_OFF_FIRST: Duration = Duration::from_secs(1);
const BACK_OFF_MAX: Duration = Duration::from_secs(60);
/// Objects in a row that cannot be deleted before all wait.
const FAILURES_MAX: u32 = 16;

/// What an inode says of an object.
enum Reference {
    /// Its record names the object, or others' do.
    Named,
    /// It has no name left but is still open somewhere, so its last reader may need the object; or just now nobody can tell.
    Later,
    /// It does not name the object, durably.
    None,
    /// It is no more; whether durably is not known.
    Gone,
}

impl Engine {
    /// Looks at every transfer that was noted and not finished. Local work only; to be called before anybody is served.
    pub async fn recover(self: &Arc<Self>) -> EngineResult<usize> {
        let mut after = None;
        let mut count = 0;
        if !self.lower.features().read_only {
            // A process that was killed may have left records in the page cache that the disk does not have: all that follows believes
            // what it reads.
            self.sync_share().await?;
            kill::point("recover.synced");
        }
        loop {
            let batch = self.journal.unfinished(after, BATCH).await?;
            let Some((last, _)) = batch.last() else { return Ok(count) };
            after = Some(*last);
            let mut settled = Vec::new();
            for (id, intent) in batch {
                count += 1;
                if self.resumes(id, &intent) {
                    continue;
                }
                match self.recover_one(&intent).await {
                    Ok(named) => settled.push((id, intent, named)),
                    // The note stays for the next start; the mount is not held up by one file.
                    Err(error) => {
                        if matches!(intent.kind, IntentKind::Settle { .. }) {
                            let left = (intent.key.clone(), OpenNote::Settle(id));
                            self.leftovers.lock().insert(intent.node.id, left);
                        }
                        tracing::error!(object = %intent.key, "an interrupted transfer could not be settled: {error}");
                    }
                }
            }
            // Together, so that they share a commit: a start with thousands of notes must not sync for each.
            let ends = settled.iter().map(|(id, intent, named)| self.end_note(*id, intent, *named));
            for failure in futures::future::join_all(ends).await.into_iter().filter_map(Result::err) {
                tracing::error!("a settled transfer stays noted: {failure}");
            }
        }
    }

    pub(super) async fn sync_share(&self) -> EngineResult<()> {
        let lower = self.lower.clone();
        blocking(move || lower.sync_all()).await?.map_err(EngineError::lower(self.lower.root().id))
    }

    async fn recover_one(self: &Arc<Self>, intent: &Intent) -> EngineResult<bool> {
        let (this, noted) = (self.clone(), intent.clone());
        let named = blocking(move || this.settle(&noted)).await?;
        kill::point("recover.settled");
        named
    }

    async fn end_note(self: &Arc<Self>, id: IntentId, intent: &Intent, named: bool) -> EngineResult<()> {
        // Whether the transfer's end was told of before the crash is not known.
        if named && !self.announce_settled(&intent.node, id).await? {
            return Ok(());
        }
        // A recall, or the beginning of a release that came no further: nothing tells which. Either way the file has its content.
        if named && matches!(intent.kind, IntentKind::Settle { .. }) {
            self.note_after_recall(&intent.node, &intent.key).await?;
        }
        match intent.kind {
            // What was archived, and removed before this note was, is kept as long as the removal's own note says.
            IntentKind::Upload if !named && self.is_removed(id, intent).await => self.journal.remove(id).await?,
            IntentKind::Upload if !named => self.journal.set_delete(id, GIVEN_UP).await?,
            IntentKind::Upload | IntentKind::Settle { .. } => self.journal.remove(id).await?,
            IntentKind::Delete { .. } => {}
        }
        kill::point("recover.removed");
        Ok(())
    }

    /// Whether the object's deletion is noted otherwise.
    async fn is_removed(&self, id: IntentId, intent: &Intent) -> bool {
        let about = About::Key(intent.key.clone());
        let noted = self.journal.noted(&intent.pair, about, None, BATCH).await.unwrap_or_default();
        noted.iter().any(|(other, note)| *other != id && matches!(note.kind, IntentKind::Delete { .. }))
    }

    /// The inode that something was noted about, as it is now; `None`: it is gone, or its number is another file's.
    pub(super) fn noted_inode(&self, noted: &Inode) -> EngineResult<Option<(Inode, Attr)>> {
        match self.lower.by_handle(&noted.handle) {
            Ok(found) => Ok(Some(found).filter(|(node, _)| node.id == noted.id)),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(EngineError::lower(noted.id)(error)),
        }
    }

    /// Puts one inode back in order after a crash. Returns whether its record names the object. All is durable on return.
    fn settle(&self, intent: &Intent) -> EngineResult<bool> {
        let failed = EngineError::lower(intent.node.id);
        // Without a name it is out of reach, and only lives as long as somebody from before has it open: what it names is deleted
        // when it is gone.
        let found = self.noted_inode(&intent.node)?.filter(|(_, attr)| attr.nlink > 0);
        let Some((node, _)) = found else { return Ok(false) };
        let mut record = load_record(&*self.lower, &node)?;
        let Some(object) = record.object.clone().filter(|object| object.key == intent.key) else { return Ok(false) };
        if self.lower.features().read_only {
            return Err(EngineError::ReadOnly);
        }
        if let Some(patch) = &mut record.patch {
            // What was written and is still there is durable from now on.
            let fresh = patch.fresh.clone();
            self.lower.sync_node(&node).map_err(&failed)?;
            patch.synced(&fresh);
            if let Some(mtime) = patch.filling.take() {
                self.lower.set_attr(&node, &date(mtime)).map_err(&failed)?;
            }
            self.lower.save_record(&node, &record.encode()).map_err(&failed)?;
            kill::point("recover.patched");
            self.lower.sync_node(&node).map_err(&failed)?;
            return Ok(true);
        }
        let (mut held, mut freed) = (None, Ok(()));
        if matches!(record.claim, Claim::Stub | Claim::Partial) {
            let file = self.lower.open(&node, moving(Keep::OwnAndLeft)).map_err(&failed)?;
            file.put_back_privileges().map_err(&failed)?;
            // What a recall had brought may stay: it counts after a comparison with its hash.
            if record.claim == Claim::Stub && has_data(&*file, object.len).map_err(&failed)? {
                record.claim = Claim::Partial;
                self.lower.save_record(&node, &record.encode()).map_err(&failed)?;
                kill::point("recover.kept");
            }
        }
        if record.claim == Claim::Releasing {
            let file = self.lower.open(&node, moving(Keep::OwnAndLeft)).map_err(&failed)?;
            let lease = if self.lower.features().leases { file.try_exclusive().map_err(&failed)? } else { None };
            freed = if lease.is_none() && self.lower.features().leases {
                // Somebody reads the file below the mount.
                Err(EngineError::Refused { file: node.id, why: Refusal::Open })
            } else {
                let freed = file.punch_all().and_then(|_| file.put_back_privileges()).map_err(&failed);
                kill::point("recover.punched");
                freed
            };
            held = Some((file, lease));
        }
        // Not the note's mtime: since its transfer ended, users may have set another.
        self.lower.set_attr(&node, &date(object.mtime)).map_err(&failed)?;
        kill::point("recover.dated");
        if let Some((file, lease)) = held {
            // What is freed is durable before a record says stub: a stub with data in it and without a note is taken for changed below.
            file.sync(false).map_err(&failed)?;
            // The claim holds with the blocks as without. Their note stays with them, or nobody could tell them from a change below the mount.
            freed?;
            record.claim = Claim::Stub;
            self.lower.save_record(&node, &record.encode()).map_err(&failed)?;
            kill::point("recover.recorded");
            drop((file, lease));
        }
        self.lower.sync_node(&node).map_err(&failed)?;
        Ok(true)
    }

    /// Deletes objects as they become due, until the runtime ends; rests while the engine does.
    pub fn start_deletions(self: &Arc<Self>) {
        self.resume_handovers();
        let this = self.clone();
        self.runtime.spawn(async move {
            let mut back_off = BACK_OFF_FIRST;
            loop {
                if this.is_stopping() {
                    tokio::time::sleep(BACK_OFF_FIRST).await;
                    continue;
                }
                let pause = match this.delete_due().await {
                    Ok(true) => continue,
                    Ok(false) => {
                        back_off = BACK_OFF_FIRST;
                        DELETIONS_PERIOD
                    }
                    Err(error) => {
                        tracing::warn!("deletions are put off for {} s: {error}", back_off.as_secs());
                        let pause = back_off;
                        back_off = (back_off * 2).min(BACK_OFF_MAX);
                        // A burst of new work must not turn a failing endpoint into a tight loop.
                        tokio::time::sleep(pause).await;
                        continue;
                    }
                };
                // Timing out only means looking again.
                let _ = tokio::time::timeout(pause, this.deletions.notified()).await;
            }
        });
    }

    /// Deletes one batch of each pair; `true` when there may be more. One pair that cannot be used stands in no other's way.
    async fn delete_due(self: &Arc<Self>) -> EngineResult<bool> {
        let (mut more, mut failed) = (false, None);
        for target in self.all_targets() {
            match self.delete_due_of(&target).await {
                Ok(of_this) => more |= of_this,
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(more), Err)
    }

    async fn delete_due_of(self: &Arc<Self>, target: &Target) -> EngineResult<bool> {
        let more_recalled = self.give_up_recalled(target).await?;
        let due = {
            let _alone = self.keeping.asking().await;
            self.journal.due(&target.pair.name, self.clock.now(), BATCH).await?
        };
        let more = more_recalled || due.len() == BATCH;
        let (mut doomed, mut any_gone) = (Vec::new(), false);
        for (id, intent) in due {
            kill::point("delete.due");
            let (this, noted) = (self.clone(), intent.clone());
            let reference = match blocking(move || look_again_if_gone(|| this.reference(&noted))).await? {
                Ok(reference) => reference,
                Err(error) => {
                    // One damaged record, or one bad sector, must not keep the objects of all other files.
                    tracing::warn!(object = %intent.key, "it stays for now, as its file cannot be asked: {error}");
                    self.look_later(id, UNREADABLE_PAUSE_S).await?;
                    continue;
                }
            };
            match reference {
                Reference::Named => {
                    tracing::info!(object = %intent.key, "still named by a file: not deleted");
                    self.journal.remove(id).await?;
                    self.note_deleted(&intent).await;
                    kill::point("delete.spared");
                    continue;
                }
                Reference::Later => {
                    self.look_later(id, STILL_OPEN_PAUSE_S).await?;
                    continue;
                }
                Reference::None => doomed.push((id, intent)),
                Reference::Gone => {
                    any_gone = true;
                    doomed.push((id, intent));
                }
            }
        }
        if any_gone {
            // The removals may be in memory only: a power loss would bring back files whose objects are deleted.
            self.sync_share().await?;
            kill::point("delete.synced");
        }
        self.delete_objects(target, doomed).await?;
        Ok(more)
    }

    /// Deletes objects; one that the store will not give up stands in nobody's way. An error: nothing can be deleted at present.
    async fn delete_objects(self: &Arc<Self>, target: &Target, doomed: Vec<(IntentId, Intent)>) -> EngineResult<()> {
        let mut failed_in_a_row = 0;
        for (id, intent) in doomed {
            let Some(_deleting) = self.keeping.begin(&intent.key) else { continue };
            kill::point("delete.looked");
            let Err(error) = self.delete_object(target, &intent).await else {
                self.journal.remove(id).await?;
                kill::point("delete.removed");
                self.note_deleted(&intent).await;
                failed_in_a_row = 0;
                continue;
            };
            // Refused may be one object alone, which the store has locked.
            let general = error.is_transient() || error.is_configuration();
            if general && !answers(target).await {
                return Err(error);
            }
            self.put_deletion_off(id, &intent, &error).await?;
            failed_in_a_row += 1;
            if general && failed_in_a_row == FAILURES_MAX {
                return Err(error);
            }
        }
        Ok(())
    }

    async fn delete_object(&self, target: &Target, intent: &Intent) -> EngineResult<()> {
        let manifest = intent.manifest.then(|| manifest_key(&intent.key));
        for key in [Some(&intent.key), manifest.as_ref()].into_iter().flatten() {
            match target.remote.delete(key).await {
                Err(error) if error.kind != RemoteErrorKind::NotFound => {
                    return Err(EngineError::remote(intent.node.id)(error));
                }
                _ => kill::point("delete.deleted"),
            }
        }
        Ok(())
    }

    async fn look_later(&self, id: IntentId, pause_s: i64) -> EngineResult<()> {
        let now = self.clock.now();
        Ok(self.journal.set_delete(id, Timestamp { secs: now.secs + pause_s, ..now }).await?)
    }

    fn reference(&self, intent: &Intent) -> EngineResult<Reference> {
        let failed = EngineError::lower(intent.node.id);
        if !is_own(intent.node.id, &intent.key) {
            return Ok(Reference::Named);
        }
        let Some((node, attr)) = self.noted_inode(&intent.node)? else { return Ok(Reference::Gone) };
        // Under the lock that every change of the record takes, so that what is synced is what was looked at.
        let names = match self.cells.unless_live(node.id, || self.stored_names(&node, intent)) {
            Ok(names) => names?,
            Err(cell) => {
                let inner = cell.lock();
                // A sync would wait for the lease of a release, and that for this lock.
                if inner.machine.is_unknown() || inner.machine.activity() == Activity::Releasing {
                    return Ok(Reference::Later);
                }
                let names = inner.record.names(&intent.key);
                if !names {
                    self.lower.sync_node(&node).map_err(&failed)?;
                }
                names
            }
        };
        Ok(match (names, attr.nlink) {
            (false, _) if is_shared(&*self.lower, &node).map_err(&failed)? => Reference::Named,
            (false, _) => Reference::None,
            (true, 0) => Reference::Later,
            (true, _) => Reference::Named,
        })
    }

    /// Whether the stored record names the object. It decides as it is: what cannot be decoded may name anything. A "no" is durable.
    fn stored_names(&self, node: &Inode, intent: &Intent) -> EngineResult<bool> {
        if stored_record(&*self.lower, node)?.is_some_and(|record| record.names(&intent.key)) {
            return Ok(true);
        }
        self.lower.sync_node(node).map_err(EngineError::lower(node.id))?;
        Ok(false)
    }

    /// Before the last name of an inode goes: its objects' deletion is noted, durably. If the removal then fails, the
    /// deletion finds the file still naming the object, and drops the note.
    pub async fn note_removal(self: &Arc<Self>, node: Inode, record: Record) -> EngineResult<()> {
        let _noting = self.noting.read().await;
        // Removed meanwhile by somebody else, who noted it; the object may have been brought back since. Or changed.
        match self.lower.stat(&node) {
            Ok(attr) if attr.nlink > 0 => {}
            Ok(_) => return Ok(()),
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(EngineError::lower(node.id)(error)),
        }
        let record = record_of(&*self.lower, &self.cells, &node).unwrap_or(record);
        let kept_until = |pair: &PairName| {
            let mut not_before = self.kept_until(Some(pair));
            // Looked at before the removal is done, the file would still name the object, and the note would be dropped.
            not_before.secs += REMOVAL_GRACE_S;
            not_before
        };
        // A peer's file is no object.
        if let Some(object) = record.object.filter(|object| !is_peer_key(&object.key)) {
            let (manifest, not_before) = (object.has_manifest(), kept_until(&object.pair.name));
            self.note_deletion(node, object.pair.name, object.key, manifest, not_before).await?;
            kill::point("removal.noted");
        }
        if let Some(old) = record.superseded {
            let not_before = kept_until(&old.pair);
            self.note_deletion(node, old.pair, old.key, old.manifest, not_before).await?;
        }
        Ok(())
    }

    /// Notes that an object is to go, unless its file may not decide that. Of an object that was made for another file the note only
    /// says how long it can be brought back: when it is due, it is dropped, and the collector decides.
    pub(super) async fn note_deletion(
        self: &Arc<Self>,
        node: Inode,
        pair: PairName,
        key: ObjectKey,
        manifest: bool,
        not_before: Timestamp,
    ) -> EngineResult<()> {
        let may = |key: ObjectKey| {
            let this = self.clone();
            blocking(move || this.may_give_up(&node, &key))
        };
        let kind = IntentKind::Delete { not_before };
        if !is_own(node.id, &key) {
            self.journal.add(Intent { pair, key, manifest, node, kind }).await?;
            return Ok(());
        }
        if !may(key.clone()).await?? {
            return Ok(());
        }
        let note = self.journal.add(Intent { pair, key: key.clone(), manifest, node, kind }).await?;
        // Who began to share it meanwhile has marked the file, and then withdrawn the notes there were: perhaps not this one.
        if !may(key).await?? {
            self.journal.remove(note).await?;
        }
        Ok(())
    }
}

/// Looks at a noted inode; once more where it went between two steps, so that the first one finds that.
pub(super) fn look_again_if_gone<T>(look: impl Fn() -> EngineResult<T>) -> EngineResult<T> {
    match look() {
        Err(error) if error.is_gone() => look(),
        looked => looked,
    }
}

/// Whether an inode is not there any more.
pub(super) fn is_gone(error: &LowerError) -> bool {
    matches!(error.errno(), libc::ESTALE | libc::ENOENT)
}
