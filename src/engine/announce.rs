//! Telling of each file that is done with, or failed, at least once, whatever crashes (R27).
//!
//! What is told of a transfer hangs on its note in the journal: it is told, durably, before the note goes. So after a crash either it was told, or the note
//! is still there, and whoever settles that tells of it, by the same id: the note's, which no other ever gets. A failure is told after it is on the
//! dead-letter list, by file, task and time; after an end that was not in order the whole list is told again.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::cell::load_record;
use super::error::EngineResult;
use super::{Cell, Engine, Moved};
use crate::ports::{AnnouncedFailure, AnnouncedFile, Announcement, Announcer, Failed, IntentId};
use crate::record::Record;
use crate::types::{FileState, Inode, Timestamp, WirePath};

/// What the journal remembers while there may be failures that were not told.
const OWED: &str = "announce.owed";
/// Pauses before what could not be told is tried again.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(60);
/// Files that wait so; what is beyond that is told after the next start.
const WAITING_MAX: u64 = 10_000;
/// Entries of the dead-letter list read at a time.
const BATCH: usize = 1_000;

/// Who is told, and how that goes.
#[derive(Default)]
pub(super) struct Announcing {
    to: std::sync::OnceLock<Arc<dyn Announcer>>,
    told: AtomicU64,
    /// Told of soon.
    under_way: AtomicU64,
    /// Could not be told, and are tried again.
    waiting: AtomicU64,
    /// Left to the next start.
    put_off: AtomicU64,
    /// A failure was.
    owed: AtomicBool,
}

/// Something is to be told of, until this is dropped.
pub(super) struct Telling(Arc<Engine>);

impl Drop for Telling {
    fn drop(&mut self) {
        self.0.announcing.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Counts one up as long as it lives.
struct Counted<'c>(&'c AtomicU64);

impl<'c> Counted<'c> {
    fn new(count: &'c AtomicU64) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What is announced, in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announced {
    pub told: u64,
    pub waiting: u64,
    pub put_off: u64,
}

/// The end of a note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finished {
    Archived,
    /// Archived and released in one go.
    Migrated,
    Released,
    Recalled,
    /// A crash came between; it is what its state says.
    Settled,
}

impl Finished {
    /// `uploaded`: the note began as that of an upload.
    pub(super) fn of(moved: Moved, uploaded: bool) -> Self {
        match moved {
            Moved::Archive => Self::Archived,
            Moved::Release if uploaded => Self::Migrated,
            Moved::Release => Self::Released,
            Moved::Recall => Self::Recalled,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Archived => "archived",
            Self::Migrated => "migrated",
            Self::Released => "released",
            Self::Recalled => "recalled",
            Self::Settled => "settled",
        }
    }
}

fn facts(record: &Record) -> Option<AnnouncedFile> {
    let object = record.object.as_ref()?;
    Some(AnnouncedFile {
        state: FileState::from(record.claim).as_str(),
        size: object.len,
        pair: object.pair.name.to_string(),
        object: object.key.to_string(),
        generation: object.generation.0,
    })
}

impl Engine {
    /// Sets who is told; once, before [`Engine::recover`].
    pub fn announce_to(&self, announcer: Arc<dyn Announcer>) {
        // A second one would be a mistake of assembly; the first stays.
        let _ = self.announcing.to.set(announcer);
    }

    /// `None`: nobody is told.
    pub fn announced_files(&self) -> Option<Announced> {
        let all = &self.announcing;
        all.to.get()?;
        let get = |count: &AtomicU64| count.load(Ordering::SeqCst);
        Some(Announced { told: get(&all.told), waiting: get(&all.waiting), put_off: get(&all.put_off) })
    }

    /// Whether something is about to be told that can be.
    pub fn is_announcing(&self) -> bool {
        let all = &self.announcing;
        all.under_way.load(Ordering::SeqCst) > all.waiting.load(Ordering::SeqCst)
    }

    /// Counts what is to be told, from now on; `None`: nobody is told.
    pub(super) fn begin_telling(self: &Arc<Self>) -> Option<Telling> {
        self.announcing.to.get()?;
        self.announcing.under_way.fetch_add(1, Ordering::SeqCst);
        Some(Telling(self.clone()))
    }

    /// Tells of a transfer's end, durably, before its note may go; an error leaves the note to the next start. Tries until it succeeds, if `patiently`.
    pub(super) async fn announce_end(
        &self,
        cell: &Cell,
        note: IntentId,
        finished: Finished,
        patiently: bool,
    ) -> EngineResult<bool> {
        if self.announcing.to.get().is_none() {
            return Ok(true);
        }
        let record = cell.lock().record.clone();
        self.announce_record(&cell.node, &record, note, finished, patiently).await
    }

    /// The same after a crash, of a file that nobody uses yet.
    pub(super) async fn announce_settled(&self, node: &Inode, note: IntentId) -> EngineResult<bool> {
        if self.announcing.to.get().is_none() {
            return Ok(true);
        }
        match load_record(&*self.lower, node) {
            Ok(record) => self.announce_record(node, &record, note, Finished::Settled, false).await,
            // It is gone, or damaged: no end of a transfer.
            Err(_) => Ok(true),
        }
    }

    async fn announce_record(
        &self,
        node: &Inode,
        record: &Record,
        note: IntentId,
        finished: Finished,
        patiently: bool,
    ) -> EngineResult<bool> {
        let path = self.lower.path_of(node).ok().flatten().unwrap_or_default();
        let announcement = Announcement {
            id: format!("{}-{}", self.share_id().await?, note.0),
            time: self.now().secs,
            event: finished.as_str(),
            path: WirePath::from_path(&path),
            inode: node.id.ino,
            file: facts(record),
            failure: None,
        };
        Ok(self.tell(&announcement, patiently).await)
    }

    /// Tells of a failure that is on the dead-letter list since `at`; nobody waits for it.
    pub(super) fn spawn_announce_failure(self: &Arc<Self>, failed: Failed, at: Timestamp, attempts: u64) {
        if let Some(telling) = self.begin_telling() {
            self.runtime.spawn(async move { telling.0.announce_failure(failed, at, attempts).await });
        }
    }

    async fn announce_failure(&self, failed: Failed, at: Timestamp, attempts: u64) {
        let Ok(share) = self.share_id().await else { return };
        let now: Option<PathBuf> = self.lower.path_of(&failed.node).ok().flatten();
        let id = failed.node.id;
        let task = failed.task.as_str();
        let object = failed.deletion.as_ref().map_or(String::new(), |(intent, _)| format!("-{}", intent.0));
        let announcement = Announcement {
            id: format!("{share}-{:x}-{:x}-{task}{object}-{}.{:09}", id.ino, id.birth, at.secs, at.nanos),
            time: self.now().secs,
            event: "failed",
            path: WirePath::from_path(&now.unwrap_or(failed.path)),
            inode: id.ino,
            file: None,
            failure: Some(AnnouncedFailure { task, reason: failed.reason.as_str(), message: failed.message, attempts }),
        };
        if !self.tell(&announcement, true).await {
            self.announcing.owed.store(true, Ordering::SeqCst);
        }
    }

    /// `false`: it is left to the next start.
    async fn tell(&self, announcement: &Announcement, patiently: bool) -> bool {
        let all = &self.announcing;
        let Some(to) = all.to.get() else { return true };
        let mut waiting: Option<Counted<'_>> = None;
        let mut pause = AGAIN_FIRST;
        loop {
            if to.announce(announcement).await.is_ok() {
                all.told.fetch_add(1, Ordering::Relaxed);
                return true;
            }
            if !patiently || (waiting.is_none() && all.waiting.load(Ordering::SeqCst) >= WAITING_MAX) {
                all.put_off.fetch_add(1, Ordering::Relaxed);
                return false;
            }
            waiting.get_or_insert_with(|| Counted::new(&all.waiting));
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(AGAIN_MAX);
        }
    }

    /// Tells of failures again that may not have been told before the last end, and from now on remembers that there may be such. In the background.
    pub async fn announce_owed(self: &Arc<Self>) -> EngineResult<()> {
        if self.announcing.to.get().is_none() {
            return Ok(());
        }
        let owed = self.journal.value(OWED).await?.is_some();
        self.journal.set_value(OWED, Some("1".into())).await?;
        if let Some(telling) = self.begin_telling().filter(|_| owed) {
            self.runtime.spawn(async move {
                let this = &telling.0;
                if let Err(error) = this.announce_list().await {
                    this.announcing.owed.store(true, Ordering::SeqCst);
                    tracing::warn!("failures could not be announced again: {error}");
                }
            });
        }
        Ok(())
    }

    async fn announce_list(&self) -> EngineResult<()> {
        let mut after = None;
        loop {
            let batch = self.journal.failed(after, BATCH).await?;
            let Some(last) = batch.last() else { return Ok(()) };
            after = Some(last.id);
            for entry in batch {
                self.announce_failure(entry.failed, entry.last, entry.attempts).await;
            }
        }
    }

    /// An end in order: if all failures were told, the next start need not tell of them.
    pub async fn close_announcements(&self) {
        let all = &self.announcing;
        if all.to.get().is_none() || all.owed.load(Ordering::SeqCst) || all.under_way.load(Ordering::SeqCst) > 0 {
            return;
        }
        if let Err(error) = self.journal.set_value(OWED, None).await {
            tracing::warn!("failures will be announced again: {error}");
        }
    }
}
