//! Port to whoever is told of each file that is done with, or failed (R27).

use async_trait::async_trait;
use serde::Serialize;

use crate::types::WirePath;

/// One file's end, as receivers get it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Announcement {
    /// The same whenever the same end is told again, and of no other.
    pub id: String,
    /// When it is told first or again, seconds since 1970.
    pub time: i64,
    /// `archived`, `migrated`, `released`, `recalled`, `settled` or `failed`.
    pub event: &'static str,
    /// Relative to the share, as it is now where that can be told.
    pub path: WirePath,
    /// Its number on the share.
    pub inode: u64,
    /// What is known of the file as it is now.
    #[serde(flatten)]
    pub file: Option<AnnouncedFile>,
    /// Why it failed.
    #[serde(flatten)]
    pub failure: Option<AnnouncedFailure>,
}

/// A file as its record says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AnnouncedFile {
    pub state: &'static str,
    /// Bytes of content.
    pub size: u64,
    pub pair: String,
    pub object: String,
    pub generation: u64,
}

/// A failure as it is on the dead-letter list.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AnnouncedFailure {
    pub task: &'static str,
    pub reason: &'static str,
    pub message: String,
    /// How often by now.
    pub attempts: u64,
}

/// Takes announcements.
#[async_trait]
pub trait Announcer: Send + Sync {
    /// Returns when it is on stable storage. The error says why it cannot be at present.
    async fn announce(&self, what: &Announcement) -> Result<(), String>;
}
