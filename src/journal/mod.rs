//! Durable intents in SQLite: the notes of remote side effects that must be finished or undone.
//!
//! Invariant: a call is answered with success only after the transaction that holds its effect is on stable storage
//! (WAL, `synchronous=FULL`). One thread owns the connection; every call waiting when it looks shares one commit, so
//! the cost of the sync is divided among them. Calls take effect in the order they were made.
//!
//! A caller that is dropped while it waits has still been heard: its note may be stored. That is the safe side, since a
//! note that names no object costs one request at the next recovery, a missing one an object for ever.

mod kept;
mod letters;
mod recalled;
mod schema;
mod store;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use crate::ports::{
    About, Failed, FailedEntry, FailedId, Intent, IntentId, Journal, JournalError, Recalled, Succeeded,
};
use crate::types::{Inode, ObjectKey, PairName, Timestamp};

use store::Store;
use writer::{Call, Counts, Reply};

/// Calls that may wait for the writer before callers are held back, and so the most that share one commit.
const CALLS_WAITING_MAX: usize = 4_096;

/// The journal of one state directory. Dropping it finishes what was asked, then closes the file.
pub struct SqliteJournal {
    path: PathBuf,
    calls: Option<mpsc::Sender<Call>>,
    writer: Option<std::thread::JoinHandle<()>>,
    counts: Arc<Counts>,
}

impl SqliteJournal {
    /// Opens the journal at `path`, creating the file (not its directory) if there is none.
    ///
    /// Fails, and leaves the file as it is, if it is damaged, of a newer version, not a journal, or in use.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, JournalError> {
        let path = path.as_ref().to_owned();
        let store = Store::open(&path)?;
        let (calls, inbox) = mpsc::channel(CALLS_WAITING_MAX);
        let counts = Arc::new(Counts::default());
        counts.failed_files.store(store.failed_files, Ordering::Relaxed);
        let counted = counts.clone();
        let writer = std::thread::Builder::new()
            .name("tierfs-journal".into())
            .spawn(move || writer::run(store, inbox, &counted))
            .map_err(|error| failed(&path, format!("cannot start its writer thread: {error}")))?;
        Ok(Self { path, calls: Some(calls), writer: Some(writer), counts })
    }

    /// How many transactions were committed since the journal was opened.
    pub fn commits(&self) -> u64 {
        self.counts.commits.load(Ordering::Relaxed)
    }

    async fn ask<T>(&self, call: impl FnOnce(Reply<T>) -> Call) -> Result<T, JournalError> {
        let stopped = || failed(&self.path, "its writer thread has stopped: restart the mount".into());
        let (reply, answer) = oneshot::channel();
        let calls = self.calls.as_ref().ok_or_else(stopped)?;
        calls.send(call(reply)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

impl Drop for SqliteJournal {
    fn drop(&mut self) {
        // Closing the channel comes first: the writer empties it, answers, and ends.
        drop(self.calls.take());
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!(path = %self.path.display(), "the journal's writer thread panicked");
        }
    }
}

#[async_trait]
impl Journal for SqliteJournal {
    async fn add(&self, intent: Intent) -> Result<IntentId, JournalError> {
        self.ask(|reply| Call::Add { intent, reply }).await
    }

    async fn set_delete(&self, id: IntentId, not_before: Timestamp) -> Result<(), JournalError> {
        self.ask(|reply| Call::SetDelete { id, not_before, reply }).await
    }

    async fn remove(&self, id: IntentId) -> Result<(), JournalError> {
        self.ask(|reply| Call::Remove { id, reply }).await
    }

    async fn withdraw(&self, key: &ObjectKey) -> Result<(), JournalError> {
        let key = key.clone();
        self.ask(|reply| Call::Withdraw { key, reply }).await
    }

    async fn due(
        &self,
        pair: &PairName,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<(IntentId, Intent)>, JournalError> {
        let pair = pair.clone();
        self.ask(|reply| Call::Due { pair, now, limit, reply }).await
    }

    async fn unfinished(&self, after: Option<IntentId>, limit: usize) -> Result<Vec<(IntentId, Intent)>, JournalError> {
        self.ask(|reply| Call::Unfinished { after, limit, reply }).await
    }

    async fn counts(&self) -> Result<(u64, u64), JournalError> {
        self.ask(|reply| Call::Counts { reply }).await
    }

    async fn names_pair(&self, pair: &PairName) -> Result<bool, JournalError> {
        let pair = pair.clone();
        self.ask(|reply| Call::NamesPair { pair, reply }).await
    }

    async fn noted(
        &self,
        pair: &PairName,
        about: About,
        after: Option<IntentId>,
        limit: usize,
    ) -> Result<Vec<(IntentId, Intent)>, JournalError> {
        let pair = pair.clone();
        self.ask(|reply| Call::Noted { pair, about, after, limit, reply }).await
    }

    async fn repoint(
        &self,
        pair: &PairName,
        key: &ObjectKey,
        node: Inode,
        not_before: Timestamp,
    ) -> Result<(), JournalError> {
        let (pair, key) = (pair.clone(), key.clone());
        self.ask(|reply| Call::Repoint { pair, key, node, not_before, reply }).await
    }

    async fn names_keys(&self, keys: Vec<ObjectKey>) -> Result<Vec<bool>, JournalError> {
        self.ask(|reply| Call::NamesKeys { keys, reply }).await
    }

    async fn note_recalled(&self, recalled: Recalled) -> Result<(), JournalError> {
        self.ask(|reply| Call::NoteRecalled { recalled: Box::new(recalled), reply }).await
    }

    async fn recalled_due(&self, pair: &PairName, now: Timestamp, limit: usize) -> Result<Vec<Recalled>, JournalError> {
        let pair = pair.clone();
        self.ask(|reply| Call::RecalledDue { pair, now, limit, reply }).await
    }

    async fn settle_recalled(&self, recalled: Recalled, until: Option<Timestamp>) -> Result<(), JournalError> {
        self.ask(|reply| Call::SettleRecalled { recalled: Box::new(recalled), until, reply }).await
    }

    async fn note_failed(&self, failed: Failed, now: Timestamp) -> Result<u64, JournalError> {
        self.ask(|reply| Call::NoteFailed { failed: Box::new(failed), now, reply }).await
    }

    async fn clear_failed(&self, done: Succeeded) -> Result<(), JournalError> {
        self.ask(|reply| Call::ClearFailed { done, reply }).await
    }

    async fn drop_failed(&self, ids: Vec<FailedId>) -> Result<u64, JournalError> {
        self.ask(|reply| Call::DropFailed { ids, reply }).await
    }

    async fn failed(&self, after: Option<FailedId>, limit: usize) -> Result<Vec<FailedEntry>, JournalError> {
        self.ask(|reply| Call::Failed { after, limit, reply }).await
    }

    fn failed_files(&self) -> u64 {
        self.counts.failed_files.load(Ordering::Relaxed)
    }

    async fn value(&self, name: &str) -> Result<Option<String>, JournalError> {
        let name = name.to_owned();
        self.ask(|reply| Call::Value { name, reply }).await
    }

    async fn set_value(&self, name: &str, value: Option<String>) -> Result<(), JournalError> {
        let name = name.to_owned();
        self.ask(|reply| Call::SetValue { name, value, reply }).await
    }
}

fn failed(path: &Path, reason: String) -> JournalError {
    JournalError { path: path.display().to_string(), reason }
}
