//! Port to the durable notes of remote side effects that must be finished or undone.

use async_trait::async_trait;

use super::{Failed, FailedEntry, FailedId, Succeeded};
use crate::types::{FileId, Inode, ObjectKey, PairName, Timestamp};

/// Identity of a stored intent, unique for the life of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IntentId(pub u64);

/// When the deletion of an object is due that no record ever named (its copy was given up): at once, and never to be brought back.
pub const GIVEN_UP: Timestamp = Timestamp { secs: 0, nanos: 0 };

/// What notes are about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    /// This object.
    Key(ObjectKey),
    /// Objects whose keys begin so.
    KeysBeginning(String),
    /// The same, whichever pair the notes are of.
    KeysBeginningOfAnyPair(String),
    /// This inode.
    File(FileId),
}

/// What must be finished or undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntentKind {
    /// The object is being uploaded for the inode: afterwards its record names the object, or the object must go.
    Upload,
    /// The object must go, not before the given time and not while the inode's record names it.
    Delete { not_before: Timestamp },
    /// The inode's blocks are being filled or freed, which moves its mtime: afterwards that must be as its record says. What it was when
    /// the transfer began is noted for people only.
    Settle { mtime: Timestamp },
}

/// One note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    pub pair: PairName,
    pub key: ObjectKey,
    /// A manifest object belongs to the object.
    pub manifest: bool,
    pub node: Inode,
    pub kind: IntentKind,
}

/// A file whose content was all brought back: its object is given up, not before the given time, if both are then as they were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recalled {
    pub pair: PairName,
    pub key: ObjectKey,
    pub node: Inode,
    pub not_before: Timestamp,
}

/// The journal cannot do its work.
#[derive(Debug, Clone, thiserror::Error)]
#[error("journal {path}: {reason}")]
pub struct JournalError {
    pub path: String,
    pub reason: String,
}

/// Durable intents. Every call returns only when its effect is on stable storage; concurrent calls share one commit.
#[async_trait]
pub trait Journal: Send + Sync {
    async fn add(&self, intent: Intent) -> Result<IntentId, JournalError>;
    /// Turns an upload into a deletion in one step, or moves a deletion's time. An id that is gone is success.
    async fn set_delete(&self, id: IntentId, not_before: Timestamp) -> Result<(), JournalError>;
    /// Forgets a note whose effect is confirmed. An id that is gone is success.
    async fn remove(&self, id: IntentId) -> Result<(), JournalError>;
    /// Forgets every upload and deletion of the object `key`, for whatever file: somebody else needs it.
    async fn withdraw(&self, key: &ObjectKey) -> Result<(), JournalError>;
    /// Deletions of `pair` due at `now`, oldest first, at most `limit`.
    async fn due(&self, pair: &PairName, now: Timestamp, limit: usize)
    -> Result<Vec<(IntentId, Intent)>, JournalError>;
    /// All uploads and settlements noted, in order of id, after `after`, at most `limit`: for recovery.
    async fn unfinished(&self, after: Option<IntentId>, limit: usize) -> Result<Vec<(IntentId, Intent)>, JournalError>;
    /// How many notes: (uploads and settlements, deletions).
    async fn counts(&self) -> Result<(u64, u64), JournalError>;
    /// Whether any note names `pair`; recalled files do not.
    async fn names_pair(&self, pair: &PairName) -> Result<bool, JournalError>;
    /// Notes of `pair` about something, of all kinds, in order of id, after `after`, at most `limit`.
    async fn noted(
        &self,
        _pair: &PairName,
        _about: About,
        _after: Option<IntentId>,
        _limit: usize,
    ) -> Result<Vec<(IntentId, Intent)>, JournalError> {
        Err(JournalError { path: String::new(), reason: "it cannot be asked for single notes".into() })
    }
    /// Hands an object over to `node`, in one step: all its uploads and deletions become deletions that look at this inode, none due
    /// before `not_before`.
    async fn repoint(
        &self,
        _pair: &PairName,
        _key: &ObjectKey,
        _node: Inode,
        _not_before: Timestamp,
    ) -> Result<(), JournalError> {
        Err(JournalError { path: String::new(), reason: "it cannot hand objects over".into() })
    }
    /// For each key, whether any note names it, of whatever kind and pair.
    async fn names_keys(&self, keys: Vec<ObjectKey>) -> Result<Vec<bool>, JournalError>;

    /// Notes a recalled file, in the place of what was noted of the same file before.
    async fn note_recalled(&self, recalled: Recalled) -> Result<(), JournalError>;
    /// Recalled files of `pair` due at `now`, oldest first, at most `limit`.
    async fn recalled_due(&self, pair: &PairName, now: Timestamp, limit: usize) -> Result<Vec<Recalled>, JournalError>;
    /// Puts a recalled file off, or with `None` forgets it. One that was noted anew since `recalled` was read stays as it is: success.
    async fn settle_recalled(&self, recalled: Recalled, until: Option<Timestamp>) -> Result<(), JournalError>;

    /// Puts a failure on the dead-letter list, or counts it there. Returns how often it failed by now. The list is bounded: beyond that the
    /// entry that failed longest ago is dropped, and counted under the value [`FAILED_DROPPED`].
    async fn note_failed(&self, failed: Failed, now: Timestamp) -> Result<u64, JournalError>;
    /// Takes what succeeded after all off the list. Not listed is success.
    async fn clear_failed(&self, done: Succeeded) -> Result<(), JournalError>;
    /// Takes entries off the list; returns how many of them there were.
    async fn drop_failed(&self, ids: Vec<FailedId>) -> Result<u64, JournalError>;
    /// Entries in order of id, after `after`, at most `limit`.
    async fn failed(&self, after: Option<FailedId>, limit: usize) -> Result<Vec<FailedEntry>, JournalError>;
    /// How many entries the list has. Waits for nothing.
    fn failed_files(&self) -> u64;

    /// What was remembered under a name.
    async fn value(&self, name: &str) -> Result<Option<String>, JournalError>;
    /// Remembers a value, or with `None` forgets it.
    async fn set_value(&self, name: &str, value: Option<String>) -> Result<(), JournalError>;
}

/// Name of the value that counts the entries which the bound of the dead-letter list cost.
pub const FAILED_DROPPED: &str = "failed.dropped";
/// Name of the value that no two journals share: 32 hexadecimal digits, made with the file.
pub const IDENTITY: &str = "identity";
