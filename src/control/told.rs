//! What a mount tells of itself as a whole, in the shape of `--json` output: what it does just now, its space, its tasks.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::protocol::PolicyGlance;
use crate::engine::RecallStatus;
use crate::types::{StateTotal, WirePath};

/// The filesystem of a mount's share, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpaceInfo {
    pub total: u64,
    /// To users.
    pub available: u64,
    /// What is kept so.
    pub reserve: u64,
    /// Less than that is left: who opens a file for writing now is served by the daemon, and waits for room where there is none.
    #[serde(default)]
    pub scarce: bool,
    /// Files removed through the mount that are still open, and what they have allocated.
    pub removed_files: u64,
    pub removed_bytes: u64,
}

/// What a mount does just now. Counts and bytes are since the mount unless said otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Seconds since 1970.
    pub time: f64,
    pub mountpoint: String,
    pub pair: Option<String>,
    pub pair_problem: Option<String>,
    pub archived_bytes: u64,
    pub released_bytes: u64,
    pub recalled_bytes: u64,
    /// By operation and end.
    pub transfers: BTreeMap<String, BTreeMap<String, u64>>,
    /// Transfers that run now.
    pub running: u64,
    /// Recalls that bring something now, by class; and those that wait for their readers to read on.
    pub recalls_fetching: BTreeMap<String, u64>,
    pub recalls_resting: u64,
    /// Those with the most to bring.
    pub recalls: Vec<RecallStatus>,
    /// Requests for content that run now, and their memory.
    pub fetches: u64,
    pub fetch_bytes: u64,
    /// Of the kernel.
    pub requests: u64,
    pub open_handles: u64,
    /// Noted transfers and deletions.
    pub notes: (u64, u64),
    /// Dead letters, and how many the bound of their list cost.
    pub failed: (u64, u64),
    pub announcements_waiting: u64,
    /// Of the index, as old as that, in seconds.
    pub states: BTreeMap<String, StateTotal>,
    pub states_age: Option<f64>,
    pub space: Option<SpaceInfo>,
    /// Those that are not over, in their order; at most 100.
    #[serde(default)]
    pub tasks: Vec<TaskInfo>,
    /// The policies of the file, and those that were taken out of it and are at work still.
    #[serde(default)]
    pub policies: Vec<PolicyGlance>,
    /// Changes that the index has not taken yet; `None`: there is no index.
    #[serde(default)]
    pub index_pending: Option<u64>,
    /// Inodes and bytes that a scan of the index has been through, while one runs.
    #[serde(default)]
    pub index_scan: Option<(u64, u64)>,
}

/// How fast tasks may go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRate {
    /// As in `-o task_rate=`.
    pub rates: String,
    /// Bytes a second at this hour; `None`: unlimited; 0: nothing begins.
    pub now: Option<u64>,
}

/// A job over many files. Times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskInfo {
    pub id: i64,
    pub kind: String,
    /// `looking` (for its files), `waiting`, `running`, `paused`, `done` or `cancelled`.
    pub state: String,
    pub priority: i64,
    pub paths: Vec<WirePath>,
    pub recursive: bool,
    pub created: i64,
    pub ended: Option<i64>,
    /// All its files are known.
    pub walked: bool,
    /// So far.
    pub files: u64,
    pub bytes: u64,
    /// Files that another task of the kind had in the queue.
    pub repeated: u64,
    /// How files ended.
    pub done: u64,
    pub done_bytes: u64,
    pub unchanged: u64,
    pub skipped: u64,
    pub failed: u64,
    /// Seconds that it will probably take yet.
    pub eta: Option<u64>,
    /// Why it does not get on, or what of its paths could not be read.
    pub problem: Option<String>,
}

impl TaskInfo {
    /// Files that ended, however.
    pub fn ended_files(&self) -> u64 {
        self.done + self.unchanged + self.skipped + self.failed
    }

    /// Files that ended, of all that are known; with a `+` while more are looked for.
    pub fn progress(&self) -> String {
        format!("{}/{}{}", self.ended_files(), self.files, if self.walked { "" } else { "+" })
    }
}

/// What a file or a directory itself says of its next copy and its recalls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChoiceInfo {
    pub path: WirePath,
    pub pair: Option<String>,
    /// Bytes.
    pub chunk_size: Option<u32>,
    pub recall: Option<String>,
}

/// What a mount took over of an edited pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairReloaded {
    pub name: String,
    /// Settings that are others from now on.
    pub changed: Vec<String>,
    /// Settings that are others from the next mount on.
    pub later: Vec<String>,
}
