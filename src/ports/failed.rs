//! What was tried and given up for now: the entries of the dead-letter list (R22).
//!
//! Only failures are kept, one entry a file and task however often it fails; a success takes it away.

use std::path::PathBuf;

use super::IntentId;
use crate::types::{FileId, Inode, ObjectKey, PairName, Timestamp};

/// Identity of an entry, unique for the life of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FailedId(pub u64);

/// What was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Task {
    Archive,
    Migrate,
    Release,
    Recall,
    /// Removing an object that nobody needs.
    Delete,
    /// Reading an object again in the background.
    Scrub,
}

impl Task {
    pub const ALL: [Self; 6] = [Self::Archive, Self::Migrate, Self::Release, Self::Recall, Self::Delete, Self::Scrub];

    /// The word in output and in the journal.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Archive => "archive",
            Self::Migrate => "migrate",
            Self::Release => "release",
            Self::Recall => "recall",
            Self::Delete => "delete",
            Self::Scrub => "scrub",
        }
    }

    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|task| task.as_str() == word)
    }
}

/// Why it failed, by what has to happen before it can succeed (R14).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The store does not answer, fails or asks to slow down.
    Remote,
    /// The pair is at fault: credentials, bucket, or it is not the pair that is mounted.
    Configuration,
    /// Content does not match its checksum.
    Checksum,
    /// The object is not there, or is another than the record says.
    Missing,
    /// The store refuses this request for another reason.
    Refused,
    /// The record cannot be read, or contradicts the file.
    Record,
    /// The share below, or the journal: I/O errors, no room.
    Local,
}

impl Reason {
    pub const ALL: [Self; 7] =
        [Self::Remote, Self::Configuration, Self::Checksum, Self::Missing, Self::Refused, Self::Record, Self::Local];

    /// The word in output and in the journal.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Remote => "remote",
            Self::Configuration => "configuration",
            Self::Checksum => "checksum",
            Self::Missing => "missing",
            Self::Refused => "refused",
            Self::Record => "record",
            Self::Local => "local",
        }
    }

    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == word)
    }
}

/// One failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    pub node: Inode,
    pub task: Task,
    pub pair: PairName,
    /// The deletion that failed, and its object; `None` for every other task.
    pub deletion: Option<(IntentId, ObjectKey)>,
    /// Relative to the share, as last known; empty where it never was.
    pub path: PathBuf,
    pub reason: Reason,
    /// One line for the administrator.
    pub message: String,
}

/// An entry of the list: the last failure, and how long this has been going on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedEntry {
    pub id: FailedId,
    pub failed: Failed,
    /// How often it was given up; at least 1.
    pub attempts: u64,
    pub first: Timestamp,
    pub last: Timestamp,
}

/// What a success takes away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Succeeded {
    pub file: FileId,
    pub task: Task,
    /// For [`Task::Delete`] only.
    pub object: Option<ObjectKey>,
}
