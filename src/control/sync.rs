//! The metadata sync over the socket: how it goes, comparisons, names in the way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::protocol::{Progress, Reply, Summary, SyncAction, SyncDifference, WirePath};
use super::server::{Replies, Server};
use crate::sync::{ComparisonStatus, Ends, SyncError};

/// How often progress is told.
const PERIOD: Duration = Duration::from_millis(200);

fn progress(of: &ComparisonStatus, ended: bool) -> Progress {
    Progress { files_total: of.entries, files_done: of.entries, walked: ended, ..Progress::default() }
}

impl Server {
    pub(super) async fn sync(self: &Arc<Self>, action: SyncAction, replies: &Replies) -> Reply {
        let begun = Instant::now();
        let Some(ends) = self.sync.clone() else {
            let message = "this mount takes part in no metadata sync: its pair has no remote_role = \"gpeer\" with a meta_sync_role";
            return Reply::Error { message: message.into() };
        };
        match act(ends, action, replies).await {
            Ok(summary) => Reply::Done(Summary { seconds: begun.elapsed().as_secs_f64(), ..summary }),
            Err(error) => Reply::Error { message: error.to_string() },
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SyncError> + Send + 'static,
) -> Result<T, SyncError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| SyncError::Stopped)?
}

async fn act(ends: Arc<Ends>, action: SyncAction, replies: &Replies) -> Result<Summary, SyncError> {
    match action {
        SyncAction::Status => {
            let status = blocking(move || ends.status()).await?;
            // A client that is gone needs no answer.
            let _ = replies.send(Reply::Sync(status)).await;
            Ok(Summary::default())
        }
        SyncAction::AcceptMaster => {
            blocking(move || ends.receiver.accept_master()).await?;
            Ok(Summary::default())
        }
        SyncAction::Take { paths } => {
            let mut summary = Summary::default();
            for path in paths {
                let (on, path) = (ends.clone(), path.to_path());
                let taken = blocking(move || {
                    let name = on.receiver.take_path(&path)?;
                    Ok(path.with_file_name(name))
                });
                let moved = taken.await?;
                summary.files += 1;
                let why = "what only this side had is here now; the master's comes with the next attempt".to_owned();
                let told = SyncDifference { path: WirePath::from_path(&moved), why };
                let _ = replies.send(Reply::SyncDifference(told)).await;
            }
            Ok(summary)
        }
        SyncAction::Compare { dry_run: true } => {
            let told = parking_lot::Mutex::new(Instant::now());
            let (progress, named) = ends
                .sender
                .compare_only(&|so_far| {
                    let mut last = told.lock();
                    if last.elapsed() >= PERIOD {
                        *last = Instant::now();
                        let _ = replies.try_send(Reply::Progress(progress(so_far, false)));
                    }
                    !replies.is_closed()
                })
                .await?;
            for (path, why) in named {
                let told = SyncDifference { path: WirePath::from_path(&path), why };
                let _ = replies.send(Reply::SyncDifference(told)).await;
            }
            let summary = Summary { files: progress.counts.differences(), ..Summary::default() };
            let _ = replies.send(Reply::SyncCompared(progress)).await;
            Ok(summary)
        }
        SyncAction::Compare { dry_run: false } => compare(ends, replies).await,
    }
}

/// The comparison runs in the background, whoever looks on; this looks on.
async fn compare(ends: Arc<Ends>, replies: &Replies) -> Result<Summary, SyncError> {
    let on = ends.clone();
    blocking(move || on.sender.want_comparison()).await?;
    let begun = Instant::now();
    loop {
        tokio::time::sleep(PERIOD / 4).await;
        let on = ends.clone();
        let (comparing, (running, last), problem) =
            blocking(move || Ok((on.sender.is_comparing()?, on.sender.comparisons()?, on.sender.problem()))).await?;
        if !comparing {
            let last = last.unwrap_or_default();
            let summary = Summary { files: last.counts.differences(), ..Summary::default() };
            let _ = replies.send(Reply::SyncCompared(last)).await;
            return Ok(summary);
        }
        // What does not pass by itself is not waited for; the comparison goes on when it can.
        if let Some(problem) = problem.filter(|_| begun.elapsed() > Duration::from_secs(10)) {
            return Err(SyncError::Refused(format!(
                "the comparison waits, and goes on by itself when this is mended: {problem}"
            )));
        }
        if replies.send(Reply::Progress(progress(&running.unwrap_or_default(), false))).await.is_err() {
            return Err(SyncError::Stopped);
        }
    }
}
