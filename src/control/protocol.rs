//! Messages on the control socket, and the shape of `--json` output.

mod rules;
mod summary;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::rules::{
    PolicyCandidate, PolicyGlance, PolicyInfo, PolicyRun, ScrubInfo, ScrubPass, Stopped, WhyBackground, WhyFile,
    WhyReason, WhyRule,
};
pub use self::summary::{PackTotals, PairTotals, Summary};
pub use super::told::{ChoiceInfo, Figures, PairReloaded, SpaceInfo, TaskInfo, TaskRate};
pub use crate::catalog::index::Status as IndexInfo;
pub use crate::engine::RecallStatus;
pub use crate::sync::{ComparisonStatus as SyncComparison, Status as SyncInfo};
pub use crate::types::{FileState, RECALLS_XATTR, SOCKET_XATTR, StateTotal, WirePath};

/// What an administrator asks of a mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Archive and release; with `archive_only` stop at dual.
    Migrate {
        paths: Vec<WirePath>,
        recursive: bool,
        archive_only: bool,
    },
    Recall {
        paths: Vec<WirePath>,
        recursive: bool,
    },
    /// Recalls that run now, of the files named (with `recursive` also below) or with these inode numbers; with `cancel` they are ended.
    Recalls {
        paths: Vec<WirePath>,
        recursive: bool,
        inodes: Vec<u64>,
        cancel: bool,
    },
    Release {
        paths: Vec<WirePath>,
        recursive: bool,
    },
    Pin {
        paths: Vec<WirePath>,
        recursive: bool,
    },
    Unpin {
        paths: Vec<WirePath>,
        recursive: bool,
    },
    /// Lock for retention, or end that.
    Retain {
        paths: Vec<WirePath>,
        recursive: bool,
        on: bool,
    },
    /// Read objects again, of about so many files in a million, and compare every chunk with its hash.
    Verify {
        paths: Vec<WirePath>,
        recursive: bool,
        sample_ppm: u32,
        md5: bool,
    },
    /// Compare records with objects and local content.
    Check {
        paths: Vec<WirePath>,
        recursive: bool,
        repair: bool,
        /// Make files of another pair this one's instead.
        #[serde(default)]
        adopt: bool,
    },
    /// State of each file, or only the totals.
    Status {
        paths: Vec<WirePath>,
        recursive: bool,
        files: bool,
    },
    /// Generations of each file that the store has.
    History {
        paths: Vec<WirePath>,
    },
    /// Bring a removed file, or an older generation of one, back as a stub.
    Undelete {
        path: WirePath,
        /// The newest that is kept unless said otherwise.
        generation: Option<u64>,
        /// Where it is to be; `None`: where it was.
        to: Option<WirePath>,
        /// All that was removed below `path`.
        recursive: bool,
    },
    /// Store the names and attributes of what is at and below the paths.
    SaveNames {
        paths: Vec<WirePath>,
        /// Also what did not change since it was stored.
        always: bool,
    },
    /// The dead-letter list: entries below the paths (of the whole mount for its root).
    Failed {
        paths: Vec<WirePath>,
        action: FailedAction,
    },
    /// Find objects that nobody names, and have them deleted after the pair's retention.
    Gc {
        dry_run: bool,
        /// Seconds since an object was begun.
        older_than_s: u64,
        /// Identities of shares whose objects count as this one's, or `unmarked`.
        adopt: Vec<String>,
    },
    /// The index of the share.
    Index {
        action: IndexAction,
    },
    /// One statement that reads the index.
    Sql {
        query: String,
    },
    /// The mount's policies.
    Policy {
        action: PolicyAction,
    },
    /// Jobs over many files that go on by themselves.
    Tasks {
        action: TaskAction,
    },
    /// What decides about files.
    Why {
        paths: Vec<WirePath>,
    },
    /// The metadata sync of the pair.
    Sync {
        action: SyncAction,
    },
    /// What files and directories say of their next copy and their recalls; with any of the three, they say it from now on. An empty word, or 0,
    /// takes back.
    Choose {
        paths: Vec<WirePath>,
        pair: Option<String>,
        chunk_size: Option<u32>,
        recall: Option<String>,
    },
    /// Read a pair's file and credentials again.
    ReloadPair {
        name: String,
    },
    /// What the mount is and does.
    Mount,
    /// What it does just now.
    Figures,
    /// Finish running transfers' current step and accept no new ones: sent before an orderly unmount.
    Quiesce,
}

/// What to do with the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IndexAction {
    Status,
    /// Fill it, or compare it with the share; goes on where a scan was stopped.
    Scan {
        /// Inodes a second at most; 0: no bound.
        rate: u64,
        /// Threads; 0: two a core.
        threads: usize,
    },
    /// End the scan that runs, to be gone on with later.
    Stop,
    /// Throw it away, counts of opens too, and fill it again.
    Rebuild {
        rate: u64,
        threads: usize,
    },
}

/// What to do with policies. Without names: with all that are switched on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyAction {
    List,
    /// Read the file again.
    Reload,
    Run {
        names: Vec<String>,
        dry_run: bool,
    },
    /// End their runs, which are named: nothing more is begun.
    Stop {
        names: Vec<String>,
    },
    /// Also what it asks the index, and how many files that is now.
    Explain {
        names: Vec<String>,
    },
}

/// What to do with the metadata sync.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncAction {
    Status,
    /// Compare the whole share with the other side's, and make that equal unless it is dry.
    Compare {
        dry_run: bool,
    },
    /// Rename what only the slave has under these paths.
    Take {
        paths: Vec<WirePath>,
    },
    /// Let go of the master that the slave has.
    AcceptMaster,
}

/// A name that is not the same on both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncDifference {
    pub path: WirePath,
    pub why: String,
}

/// What to do with tasks. Without ids: with all that are not over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskAction {
    Add {
        /// `migrate`, `archive`, `release` or `recall`.
        kind: String,
        paths: Vec<WirePath>,
        recursive: bool,
        /// Higher ones come first.
        priority: i64,
    },
    List {
        /// Also those that are over.
        all: bool,
    },
    Pause {
        ids: Vec<i64>,
    },
    Resume {
        ids: Vec<i64>,
    },
    Cancel {
        ids: Vec<i64>,
    },
    Priority {
        id: i64,
        priority: i64,
    },
    /// Shows how fast tasks may go at which hour; with `set`, after changing it.
    Rate {
        set: Option<String>,
    },
}

/// What to do with entries of the dead-letter list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailedAction {
    List,
    Retry,
    Drop,
}

/// One line of the answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    Progress(Progress),
    File(FileStatus),
    Failure(Failure),
    Digest(FileDigest),
    Repaired {
        path: WirePath,
    },
    Version(FileVersion),
    Restored {
        path: WirePath,
        generation: u64,
        object: String,
    },
    DeadLetter(FailedFile),
    Recall(RecallStatus),
    Orphan(OrphanObject),
    Index(IndexInfo),
    Policy(PolicyInfo),
    Candidate(PolicyCandidate),
    Why(WhyFile),
    Task(TaskInfo),
    TaskRate(TaskRate),
    /// Names of an answer's columns, before its rows.
    Columns {
        columns: Vec<String>,
    },
    /// A row of an answer. Bytes that are no text are `{"bytes": [...]}`.
    Row {
        cells: Vec<serde_json::Value>,
    },
    Sync(SyncInfo),
    SyncCompared(SyncComparison),
    SyncDifference(SyncDifference),
    PairReloaded(PairReloaded),
    Choice(ChoiceInfo),
    Mount(MountInfo),
    Figures(Box<Figures>),
    Done(Summary),
    Error {
        message: String,
    },
}

/// How far a request is. Sent a few times a second at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Files found so far; final once `walked`.
    pub files_total: u64,
    pub files_done: u64,
    pub bytes_total: u64,
    pub bytes_done: u64,
    /// The walk over the named paths is complete.
    pub walked: bool,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileStatus {
    pub path: WirePath,
    pub state: FileState,
    /// Bytes.
    pub size: u64,
    /// Bytes allocated locally.
    pub local: u64,
    pub pinned: bool,
    /// Locked for retention.
    #[serde(default)]
    pub retained: bool,
    /// `archiving`, `releasing` or `recalling` while a transfer runs; `restoring for N s` after its object was found in an archive class.
    pub activity: Option<String>,
    pub pair: Option<String>,
    pub generation: Option<u64>,
    pub object: Option<String>,
}

/// One generation of a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileVersion {
    pub path: WirePath,
    pub generation: u64,
    pub standing: VersionState,
    /// Bytes; `None` where the store does not tell.
    pub size: Option<u64>,
    /// Seconds and nanoseconds since 1970.
    pub mtime: Option<(i64, u32)>,
    /// When it is deleted, in seconds since 1970.
    pub kept_until: Option<i64>,
    pub object: String,
    /// Why the object cannot be used, if so.
    pub problem: Option<String>,
}

/// Where a generation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VersionState {
    Current,
    /// The file was changed since.
    Superseded,
    /// The file was removed.
    Deleted,
}

/// A file's content as it is remotely.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigest {
    pub path: WirePath,
    /// Hexadecimal.
    pub md5: String,
}

/// One file that did not go as asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub path: WirePath,
    pub reason: String,
    /// The file was skipped for a good cause (open, pinned, not regular …) rather than failed.
    pub skipped: bool,
}

/// An entry of the dead-letter list. Times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedFile {
    /// As it is now where that can be told, else as it was.
    pub path: WirePath,
    /// `archive`, `migrate`, `release`, `recall`, `delete` or `scrub`.
    pub task: String,
    /// `remote`, `configuration`, `checksum`, `missing`, `refused`, `record` or `local`.
    pub reason: String,
    pub message: String,
    pub attempts: u64,
    pub first: i64,
    pub last: i64,
    pub pair: String,
    /// The object that was to be deleted.
    pub object: Option<String>,
}

/// An object, or an upload that was begun, which nobody names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrphanObject {
    /// In whose bucket it is.
    #[serde(default)]
    pub pair: String,
    pub key: String,
    /// `object`, `upload`, `pack` (nobody needs it; it goes with a later run), or `deleted pack`.
    pub kind: String,
    /// With its manifest.
    pub bytes: u64,
    /// When it was begun, seconds since 1970.
    pub begun: i64,
    /// It is (or its parts are) to be deleted; `false` in a dry run.
    pub noted: bool,
}

/// A running mount.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MountInfo {
    pub share: String,
    pub mountpoint: String,
    pub pid: u32,
    pub version: String,
    /// The pair that files go to.
    pub pair: Option<String>,
    /// Pairs whose stubs are served as well, and that files may be told to go to.
    #[serde(default)]
    pub further_pairs: Vec<String>,
    /// Why a pair cannot be used at present, if so.
    pub pair_problem: Option<String>,
    /// Objects being uploaded, objects waiting to be deleted.
    pub intents: (u64, u64),
    /// Transfers running now.
    pub transfers: u64,
    /// Entries of the dead-letter list, and how many were dropped from it for want of room.
    #[serde(default)]
    pub failed: (u64, u64),
    #[serde(default)]
    pub scrub: Option<ScrubInfo>,
    #[serde(default)]
    pub space: Option<SpaceInfo>,
    /// Where metrics are served.
    #[serde(default)]
    pub metrics: Option<String>,
    /// What the kernel has asked the daemon for since the mount, by FUSE's name of the request.
    #[serde(default)]
    pub requests: BTreeMap<String, u64>,
}

impl MountInfo {
    /// All pairs, the one that files go to first.
    pub fn pairs(&self) -> impl Iterator<Item = &str> {
        self.pair.iter().chain(&self.further_pairs).map(String::as_str)
    }
}
