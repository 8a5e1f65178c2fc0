//! The dead-letter list as the engine keeps it: which failures are listed, what takes them off, when they are tried again by themselves.
//!
//! Invariant: nothing waits for the list or fails with it. What cannot be written there is said in the log; whoever asked for the task was
//! told of its end anyway.

use std::collections::HashSet;
use std::sync::Arc;

use super::error::{EngineError, EngineResult, PeerTrouble};
use super::jobs::{Candidate, JobKind, Outcome};
use super::keys::{parse_key, unescape};
use super::{Engine, Target};
use crate::ports::{Failed, FailedEntry, FailedId, Intent, IntentId, Reason, RemoteErrorKind, Succeeded, Task};
use crate::tier::Refusal;
use crate::types::{FileId, ObjectKey, PairName, Timestamp};

/// Entries read at a time.
const BATCH: usize = 1_000;
/// What no key starts with: listing it is cheap.
const NO_KEY: &str = ".tierfs/none/";
/// Seconds before something listed is tried again by itself, doubled with every failure up to the maximum.
const BACK_OFF_FIRST_S: u64 = 60;
const BACK_OFF_MAX_S: u64 = 24 * 3_600;

impl EngineError {
    /// Under which heading the failure is listed. `None`: nothing is wrong with the file (it is busy, changed, gone, not for tiering), or
    /// with the task alone (it was ended, or the mount cannot do it at all).
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Lower { .. } if self.is_gone() => None,
            Self::Lower { .. } | Self::Journal(_) | Self::NoSpace { .. } | Self::Defect => Some(Reason::Local),
            Self::Remote { source, .. } => Some(match source.kind {
                RemoteErrorKind::Unreachable
                | RemoteErrorKind::TimedOut
                | RemoteErrorKind::SlowDown
                | RemoteErrorKind::Server => Reason::Remote,
                RemoteErrorKind::Denied | RemoteErrorKind::NoSuchBucket => Reason::Configuration,
                RemoteErrorKind::NotFound => Reason::Missing,
                // Of a read: the object is another than the record says.
                RemoteErrorKind::Conflict if matches!(source.operation, "get" | "head") => Reason::Missing,
                RemoteErrorKind::Corrupt => Reason::Checksum,
                RemoteErrorKind::Source => Reason::Local,
                RemoteErrorKind::Conflict | RemoteErrorKind::Archived | RemoteErrorKind::Rejected => Reason::Refused,
            }),
            Self::Corrupt { .. } => Some(Reason::Checksum),
            Self::Archived { .. } => Some(Reason::Refused),
            Self::BadRecord { .. } | Self::ChangedBelow { .. } | Self::RecordLost { .. } | Self::Unproven { .. } => {
                Some(Reason::Record)
            }
            // Both files are served. What is not brought back is told to who asked.
            Self::Shared { .. } | Self::NotKept { .. } => None,
            Self::ForeignPair { .. } | Self::NotMounted { .. } => Some(Reason::Configuration),
            Self::Peer { why: PeerTrouble::Contradiction | PeerTrouble::OtherFile, .. } => Some(Reason::Record),
            // Repeated until it is decided, or nothing that tiering has to do with.
            Self::Peer { .. } => None,
            Self::Refused { why: Refusal::Unknown, .. } => Some(Reason::Local),
            Self::Refused { .. } | Self::Unfit { .. } => None,
            Self::NoPair | Self::ReadOnly | Self::ShuttingDown | Self::Cancelled | Self::Stopped => None,
        }
    }
}

impl JobKind {
    /// What a failure of the job is listed as. `None`: whoever asks gets the answer, and nothing is left undone.
    pub fn task(self) -> Option<Task> {
        match self {
            Self::Migrate => Some(Task::Migrate),
            Self::ArchiveOnly => Some(Task::Archive),
            Self::Recall => Some(Task::Recall),
            Self::Release => Some(Task::Release),
            Self::Pin | Self::Unpin | Self::Retain { .. } | Self::Adopt | Self::Verify { .. } | Self::Check { .. } => {
                None
            }
        }
    }

    /// What a success of the job shows to be done.
    fn settles(self) -> &'static [Task] {
        match self {
            Self::Migrate => &[Task::Migrate, Task::Archive, Task::Release],
            Self::ArchiveOnly => &[Task::Archive],
            Self::Recall => &[Task::Recall],
            Self::Release => &[Task::Release, Task::Migrate],
            Self::Verify { .. } => &[Task::Scrub],
            Self::Pin | Self::Unpin | Self::Retain { .. } | Self::Adopt | Self::Check { .. } => &[],
        }
    }
}

/// Seconds after the last of `attempts` failures.
fn back_off_s(attempts: u64) -> u64 {
    let doublings = attempts.saturating_sub(1).min(32) as u32;
    BACK_OFF_FIRST_S.saturating_mul(1 << doublings).min(BACK_OFF_MAX_S)
}

/// When what is listed is tried again by itself, seconds since 1970.
pub fn again_at(entry: &FailedEntry) -> i64 {
    entry.last.secs.saturating_add(back_off_s(entry.attempts) as i64)
}

impl Engine {
    /// Entries of the dead-letter list in order of id, after `after`, at most `limit`.
    pub async fn failed(&self, after: Option<FailedId>, limit: usize) -> EngineResult<Vec<FailedEntry>> {
        Ok(self.journal.failed(after, limit).await?)
    }

    /// How many entries it has, and how many its bound has cost.
    pub async fn failed_counts(&self) -> EngineResult<(u64, u64)> {
        let dropped = self.journal.value(crate::ports::FAILED_DROPPED).await?;
        Ok((self.journal.failed_files(), dropped.and_then(|count| count.parse().ok()).unwrap_or(0)))
    }

    /// Takes entries off the list; returns how many there were of them.
    pub async fn drop_failed(&self, ids: Vec<FailedId>) -> EngineResult<u64> {
        Ok(self.journal.drop_failed(ids).await?)
    }

    /// Has a deletion that is put off tried at once; `false`: there is none any more.
    pub async fn hasten_deletion(&self, id: IntentId, object: &ObjectKey) -> EngineResult<bool> {
        self.journal.set_delete(id, self.clock.now()).await?;
        self.deletions.notify_one();
        Ok(self.journal.names_keys(vec![object.clone()]).await?.contains(&true))
    }

    /// Files on the list for `task` that are not to be tried again yet.
    pub async fn put_off(&self, task: Task) -> EngineResult<HashSet<FileId>> {
        let mut files = HashSet::new();
        if self.journal.failed_files() == 0 {
            return Ok(files);
        }
        let now = self.clock.now();
        let mut after = None;
        loop {
            let batch = self.journal.failed(after, BATCH).await?;
            let Some(last) = batch.last() else { return Ok(files) };
            after = Some(last.id);
            for entry in batch.into_iter().filter(|entry| entry.failed.task == task) {
                let age = now.nanos_since(entry.last);
                // A clock that was set back puts nothing off for longer than it would have.
                if age >= 0 && age < i128::from(back_off_s(entry.attempts)) * 1_000_000_000 {
                    files.insert(entry.failed.node.id);
                }
            }
        }
    }

    /// What is listed of one file, but deletions of its objects.
    pub async fn failed_of(&self, file: FileId) -> EngineResult<Vec<FailedEntry>> {
        let mut found = Vec::new();
        let mut after = None;
        while self.journal.failed_files() > 0 {
            let batch = self.journal.failed(after, BATCH).await?;
            let Some(last) = batch.last() else { break };
            after = Some(last.id);
            let of_file = |entry: &FailedEntry| entry.failed.node.id == file && entry.failed.task != Task::Delete;
            found.extend(batch.into_iter().filter(of_file));
        }
        Ok(found)
    }

    /// Notes how a task on a file ended.
    pub(super) async fn note_end(self: &Arc<Self>, kind: JobKind, file: &Candidate, outcome: &Outcome) {
        match outcome {
            Outcome::Failed(error) => match (kind.task(), error.reason()) {
                (Some(task), Some(_)) => self.note_failure(task, file, error).await,
                // Nothing is left to be tried.
                (_, None) if error.is_gone() => self.note_success(&Task::ALL, file.node.id).await,
                _ => {}
            },
            _ => self.note_success(kind.settles(), file.node.id).await,
        }
    }

    /// Puts a file's failure on the list, if it is one of the file.
    pub async fn note_failure(self: &Arc<Self>, task: Task, file: &Candidate, error: &EngineError) {
        let (Some(reason), Ok(target)) = (error.reason(), self.target()) else { return };
        let failed = Failed {
            node: file.node,
            task,
            pair: target.pair.name.clone(),
            deletion: None,
            path: file.path.clone(),
            reason,
            message: error.to_string(),
        };
        self.list(failed).await;
    }

    /// Returns how often it has failed by now.
    async fn list(self: &Arc<Self>, failed: Failed) -> u64 {
        let (task, path, reason) = (failed.task.as_str(), failed.path.display().to_string(), failed.reason.as_str());
        let (now, told) = (self.clock.now(), failed.clone());
        match self.journal.note_failed(failed, now).await {
            Ok(attempts) => {
                self.spawn_announce_failure(told, now, attempts);
                tracing::warn!(task, path, reason, attempts, "on the dead-letter list (`tierfs failed`)");
                attempts
            }
            Err(error) => {
                tracing::error!(task, path, "a failure could not be put on the dead-letter list: {error}");
                1
            }
        }
    }

    /// Takes a file off the list for `tasks`.
    pub async fn note_success(&self, tasks: &[Task], file: FileId) {
        for task in tasks.iter().filter(|task| **task != Task::Delete) {
            self.unlist(Succeeded { file, task: *task, object: None }).await;
        }
    }

    /// A file was recalled, by whomever; nobody waits for the list.
    pub(super) fn spawn_note_recalled(self: &Arc<Self>, file: FileId) {
        if self.journal.failed_files() > 0 {
            let this = self.clone();
            self.runtime.spawn(async move { this.note_success(&[Task::Recall], file).await });
        }
    }

    async fn unlist(&self, done: Succeeded) {
        // Nearly always there is nothing, and asking would cost every file a turn of the journal.
        if self.journal.failed_files() == 0 {
            return;
        }
        if let Err(error) = self.journal.clear_failed(done).await {
            tracing::warn!("what succeeded stays on the dead-letter list: {error}");
        }
    }

    /// An object is deleted, or is not to be any more.
    pub(super) async fn note_deleted(&self, intent: &Intent) {
        let object = Some(intent.key.clone());
        self.unlist(Succeeded { file: intent.node.id, task: Task::Delete, object }).await;
    }

    /// Puts a deletion off that fails while others do not, so that it stands in nobody's way.
    pub(super) async fn put_deletion_off(
        self: &Arc<Self>,
        id: IntentId,
        intent: &Intent,
        error: &EngineError,
    ) -> EngineResult<()> {
        let reason = error.reason().unwrap_or(Reason::Local);
        let failed = Failed {
            node: intent.node,
            task: Task::Delete,
            pair: intent.pair.clone(),
            deletion: Some((id, intent.key.clone())),
            path: self.path_in(&intent.pair, &intent.key),
            reason,
            message: error.to_string(),
        };
        let attempts = self.list(failed).await;
        let now = self.clock.now();
        let later = Timestamp { secs: now.secs + back_off_s(attempts) as i64, ..now };
        Ok(self.journal.set_delete(id, later).await?)
    }

    /// Whether the remote answers a small question: tells the failure of one object from an outage.
    pub async fn remote_answers(&self) -> bool {
        let targets = self.all_targets();
        for target in &targets {
            if !answers(target).await {
                return false;
            }
        }
        !targets.is_empty()
    }

    /// The path that an object of the pair was named by.
    fn path_in(&self, pair: &PairName, key: &ObjectKey) -> std::path::PathBuf {
        let prefix = self.target_named(pair).map_or(String::new(), |target| target.prefix.clone());
        parse_key(&prefix, key).map_or_else(|| unescape(&key.0), |parts| unescape(&parts.name))
    }
}

/// Whether a pair's store answers a small question.
pub(super) async fn answers(target: &Target) -> bool {
    target.remote.list(NO_KEY, None).await.is_ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::engine::Unfit;
    use crate::ports::{JournalError, LowerError, RemoteError};
    use crate::record::RecordError;

    #[test]
    fn the_kind_of_a_failure_decides_whether_and_as_what_it_is_listed() {
        use RemoteErrorKind as Kind;
        let file = FileId { ino: 1, birth: 2 };
        let remote = |kind, operation| {
            let (object, endpoint, detail) = ("o".into(), "e".into(), "d".into());
            EngineError::Remote { file, source: RemoteError { kind, operation, object, endpoint, detail } }
        };
        let lower = |errno| EngineError::Lower { file, source: Arc::new(LowerError::from_errno("open", errno)) };
        let refused = |why| EngineError::Refused { file, why };
        let found = "other".parse().unwrap();
        let foreign = EngineError::ForeignPair { file, found, found_share: String::new(), mounted: String::new() };
        for (error, reason) in [
            // Content changed, file gone: rolled back, nothing is left to do.
            (refused(Refusal::Changed), None),
            (lower(libc::ESTALE), None),
            (lower(libc::ENOENT), None),
            // Busy: asked for again.
            (refused(Refusal::Open), None),
            (refused(Refusal::OpenForWriting), None),
            (refused(Refusal::Busy), None),
            (refused(Refusal::Pinned), None),
            (EngineError::Unfit { file, why: Unfit::Sealed }, None),
            (EngineError::Unfit { file, why: Unfit::Retained }, None),
            (EngineError::Cancelled, None),
            (EngineError::Stopped, None),
            (EngineError::ShuttingDown, None),
            // The remote: may pass.
            (remote(Kind::Unreachable, "put"), Some(Reason::Remote)),
            (remote(Kind::TimedOut, "get"), Some(Reason::Remote)),
            (remote(Kind::SlowDown, "put"), Some(Reason::Remote)),
            (remote(Kind::Server, "head"), Some(Reason::Remote)),
            // The pair.
            (remote(Kind::Denied, "put"), Some(Reason::Configuration)),
            (remote(Kind::NoSuchBucket, "put"), Some(Reason::Configuration)),
            (foreign, Some(Reason::Configuration)),
            // Content.
            (remote(Kind::Corrupt, "get"), Some(Reason::Checksum)),
            (EngineError::Corrupt { file, object: "o".into(), offset: 0, len: 1 }, Some(Reason::Checksum)),
            (remote(Kind::NotFound, "get"), Some(Reason::Missing)),
            (remote(Kind::Conflict, "get"), Some(Reason::Missing)),
            (remote(Kind::Conflict, "put"), Some(Reason::Refused)),
            (remote(Kind::Rejected, "put"), Some(Reason::Refused)),
            // The share and the journal.
            (EngineError::BadRecord { file, why: RecordError::Checksum }, Some(Reason::Record)),
            (EngineError::ChangedBelow { file, object: "o".into(), why: "w" }, Some(Reason::Record)),
            (refused(Refusal::Unknown), Some(Reason::Local)),
            (lower(libc::EIO), Some(Reason::Local)),
            (EngineError::NoSpace { file, len: 2, available: 1 }, Some(Reason::Local)),
            (JournalError { path: "p".into(), reason: "r".into() }.into(), Some(Reason::Local)),
        ] {
            assert_eq!(error.reason(), reason, "{error:?}");
        }
    }

    #[test]
    fn pauses_double_up_to_a_day() {
        assert_eq!([1, 2, 3, 11].map(back_off_s), [60, 120, 240, 61_440]);
        assert_eq!([0, 12, 33, 34, u64::MAX].map(back_off_s), [60, 86_400, 86_400, 86_400, 86_400]);
    }
}
