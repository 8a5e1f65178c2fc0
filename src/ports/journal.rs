//! Port to the durable notes of remote side effects that must be finished or undone.

use async_trait::async_trait;

use crate::types::{Inode, ObjectKey, PairName, Timestamp};

/// Identity of a stored intent, unique for the life of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IntentId(pub u64);

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
    /// Deletions of `pair` due at `now`, oldest first, at most `limit`.
    async fn due(&self, pair: &PairName, now: Timestamp, limit: usize)
    -> Result<Vec<(IntentId, Intent)>, JournalError>;
    /// All uploads and settlements noted, in order of id, after `after`, at most `limit`: for recovery.
    async fn unfinished(&self, after: Option<IntentId>, limit: usize) -> Result<Vec<(IntentId, Intent)>, JournalError>;
    /// How many notes: (uploads and settlements, deletions).
    async fn counts(&self) -> Result<(u64, u64), JournalError>;
    /// Whether any note names `pair`.
    async fn names_pair(&self, pair: &PairName) -> Result<bool, JournalError>;
}
