//! The dead-letter list over the socket: shown, tried again, dropped.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use super::protocol::{FailedAction, FailedFile, Reply, Summary, WirePath};
use super::server::{Counts, Replies, Server, WALK_AHEAD};
use crate::admission::Requester;
use crate::engine::{Candidate, EngineError, JobKind};
use crate::ports::{Attr, FailedEntry, FailedId, Task};

/// Entries read at a time.
const BATCH: usize = 500;

/// An entry, and what its inode is now; `None`: gone.
struct Looked {
    entry: FailedEntry,
    now: Option<Attr>,
}

impl Server {
    pub(super) async fn failed(
        self: &Arc<Self>,
        paths: Vec<WirePath>,
        action: FailedAction,
        who: Arc<Requester>,
        replies: &Replies,
    ) -> Reply {
        let paths: Vec<PathBuf> = paths.iter().map(WirePath::to_path).collect();
        let ended = match action {
            FailedAction::List => self.list_failed(&paths, replies).await,
            FailedAction::Retry => return self.retry_failed(&paths, who, replies).await,
            FailedAction::Drop => self.drop_failed(&paths).await,
        };
        match ended {
            Ok(summary) => Reply::Done(summary),
            Err(error) => Reply::Error { message: error.to_string() },
        }
    }

    /// The next entries at or below one of `paths`; moves `after` on. `None`: there are no more.
    async fn next_failed(
        self: &Arc<Self>,
        paths: &[PathBuf],
        after: &mut Option<FailedId>,
    ) -> Result<Option<Vec<Looked>>, EngineError> {
        let batch = self.engine.failed(*after, BATCH).await?;
        let Some(last) = batch.last() else { return Ok(None) };
        *after = Some(last.id);
        let (lower, paths) = (self.lower.clone(), paths.to_vec());
        let looked = tokio::task::spawn_blocking(move || {
            let below = |path: &std::path::Path| paths.iter().any(|above| path.starts_with(above));
            let look = |mut entry: FailedEntry| {
                let was_below = below(&entry.failed.path);
                let node = entry.failed.node;
                let now = lower.by_handle(&node.handle).ok().filter(|(found, _)| found.id == node.id);
                if let Some(path) = now.as_ref().and_then(|(node, _)| lower.path_of(node).ok().flatten()) {
                    entry.failed.path = path;
                }
                let wanted = was_below || below(&entry.failed.path);
                let named = now.map(|(_, attr)| attr).filter(|attr| attr.nlink > 0);
                wanted.then_some(Looked { entry, now: named })
            };
            batch.into_iter().filter_map(look).collect()
        });
        Ok(Some(looked.await.map_err(|_| EngineError::ShuttingDown)?))
    }

    async fn list_failed(self: &Arc<Self>, paths: &[PathBuf], replies: &Replies) -> Result<Summary, EngineError> {
        let (mut summary, mut after) = (Summary::default(), None);
        while let Some(batch) = self.next_failed(paths, &mut after).await? {
            for Looked { entry: FailedEntry { failed, attempts, first, last, .. }, .. } in batch {
                summary.files += 1;
                let told = FailedFile {
                    path: WirePath::from_path(&failed.path),
                    task: failed.task.as_str().into(),
                    reason: failed.reason.as_str().into(),
                    message: failed.message,
                    attempts,
                    first: first.secs,
                    last: last.secs,
                    pair: failed.pair.to_string(),
                    object: failed.deletion.map(|(_, key)| key.0),
                };
                if replies.send(Reply::DeadLetter(told)).await.is_err() {
                    return Ok(summary);
                }
            }
        }
        Ok(summary)
    }

    async fn drop_failed(self: &Arc<Self>, paths: &[PathBuf]) -> Result<Summary, EngineError> {
        let (mut summary, mut after) = (Summary::default(), None);
        while let Some(batch) = self.next_failed(paths, &mut after).await? {
            summary.files += self.engine.drop_failed(batch.iter().map(|looked| looked.entry.id).collect()).await?;
        }
        Ok(summary)
    }

    /// Tries every entry once more, by task; what succeeds leaves the list, and so does what is gone.
    async fn retry_failed(self: &Arc<Self>, paths: &[PathBuf], who: Arc<Requester>, replies: &Replies) -> Reply {
        let begun = Instant::now();
        let mut total = Summary::default();
        for task in Task::ALL {
            let ended = match job_of(task) {
                Some(kind) => self.retry_task(&who, (task, kind), paths, replies).await,
                None => self.retry_deletions(paths).await.map_err(|error| error.to_string()),
            };
            match ended {
                Ok(summary) => {
                    total.files += summary.files;
                    total.bytes += summary.bytes;
                    total.unchanged += summary.unchanged;
                    total.skipped += summary.skipped;
                    total.failed += summary.failed;
                }
                Err(message) => return Reply::Error { message },
            }
        }
        Reply::Done(Summary { seconds: begun.elapsed().as_secs_f64(), ..total })
    }

    async fn retry_deletions(self: &Arc<Self>, paths: &[PathBuf]) -> Result<Summary, EngineError> {
        let (mut summary, mut after) = (Summary::default(), None);
        while let Some(batch) = self.next_failed(paths, &mut after).await? {
            for FailedEntry { id: entry, failed, .. } in batch.into_iter().map(|looked| looked.entry) {
                let Some((id, object)) = failed.deletion else { continue };
                if self.engine.hasten_deletion(id, &object).await? {
                    summary.files += 1;
                } else {
                    summary.unchanged += self.engine.drop_failed(vec![entry]).await?;
                }
            }
        }
        Ok(summary)
    }

    async fn retry_task(
        self: &Arc<Self>,
        who: &Arc<Requester>,
        (task, kind): (Task, JobKind),
        paths: &[PathBuf],
        replies: &Replies,
    ) -> Result<Summary, String> {
        let counts = Arc::new(Counts::default());
        let (candidates, taken) = mpsc::channel(WALK_AHEAD);
        let (this, paths, counted) = (self.clone(), paths.to_vec(), counts.clone());
        let feeding = tokio::spawn(async move {
            let (mut summary, mut after) = (Summary::default(), None);
            // An entry that fails again keeps its id, so none is met twice.
            while let Ok(Some(batch)) = this.next_failed(&paths, &mut after).await {
                for Looked { entry, now } in batch.into_iter().filter(|looked| looked.entry.failed.task == task) {
                    let Some(attr) = now else {
                        summary.unchanged += this.engine.drop_failed(vec![entry.id]).await.unwrap_or(0);
                        continue;
                    };
                    counted.add(&attr);
                    let file = Candidate { node: entry.failed.node, attr, path: entry.failed.path };
                    if candidates.send(file).await.is_err() {
                        return Some(summary);
                    }
                }
            }
            Some(summary)
        });
        match self.drive(who.clone(), kind, taken, feeding, counts, replies).await {
            Reply::Done(summary) => Ok(summary),
            Reply::Error { message } => Err(message),
            other => unreachable!("a job ends with {other:?}"),
        }
    }
}

/// The job that does a task again; `None`: the deletions do it.
fn job_of(task: Task) -> Option<JobKind> {
    match task {
        Task::Archive => Some(JobKind::ArchiveOnly),
        Task::Migrate => Some(JobKind::Migrate),
        Task::Release => Some(JobKind::Release),
        Task::Recall => Some(JobKind::Recall),
        Task::Scrub => Some(JobKind::Verify { md5: false }),
        Task::Delete => None,
    }
}
