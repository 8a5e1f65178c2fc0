//! The index over the socket: its state, scans, and statements that read it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::protocol::{IndexAction, Progress, Reply, Summary};
use super::server::{Replies, Server};
use crate::catalog::index::{Index, IndexError, ScanOptions, Scanned};

/// How often a scan's progress is told.
const PROGRESS_PERIOD: Duration = Duration::from_millis(200);

/// Does blocking work of the index on a thread of its own: a scan would keep one of the pool for hours.
pub(super) async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, IndexError> + Send + 'static,
) -> Result<T, String> {
    match crate::catalog::walk::on_own_thread(work).await {
        Some(Ok(done)) => Ok(done),
        Some(Err(error)) => Err(error.to_string()),
        None => Err("the index failed: see the daemon's log".into()),
    }
}

fn done(ended: Result<Summary, String>) -> Reply {
    match ended {
        Ok(summary) => Reply::Done(summary),
        Err(message) => Reply::Error { message },
    }
}

impl Server {
    pub(super) fn indexed(&self) -> Result<Arc<Index>, String> {
        let none = || "this mount has no index: its log says why".to_owned();
        self.index.clone().ok_or_else(none)
    }

    pub(super) async fn index(self: &Arc<Self>, action: IndexAction, replies: &Replies) -> Reply {
        done(self.index_action(action, replies).await)
    }

    async fn index_action(self: &Arc<Self>, action: IndexAction, replies: &Replies) -> Result<Summary, String> {
        let index = self.indexed()?;
        let (rate, threads) = match action {
            IndexAction::Status => return tell_status(index, replies).await,
            IndexAction::Stop => {
                return match on_thread(move || Ok(index.stop_scan())).await? {
                    true => Ok(Summary::default()),
                    false => Err("no scan runs".into()),
                };
            }
            IndexAction::Scan { rate, threads } => (rate, threads),
            IndexAction::Rebuild { rate, threads } => {
                let index = index.clone();
                on_thread(move || index.clear()).await?;
                (rate, threads)
            }
        };
        let begun = Instant::now();
        let scanned = self.scan_for(&index, ScanOptions { rate, threads }, replies).await?;
        let Scanned { inodes, failed, stopped, .. } = scanned;
        tell_status(index, replies).await?;
        if stopped {
            return Err(format!("the scan was stopped after {inodes} inodes: the next one goes on from there"));
        }
        Ok(Summary { files: inodes, failed, seconds: begun.elapsed().as_secs_f64(), ..Summary::default() })
    }

    /// Scans while somebody wants it; a client that leaves stops the scan, which can be gone on with.
    async fn scan_for(&self, index: &Arc<Index>, options: ScanOptions, replies: &Replies) -> Result<Scanned, String> {
        let scanner = index.clone();
        let mut scanning = tokio::spawn(on_thread(move || scanner.scan(options)));
        let mut ticks = tokio::time::interval(PROGRESS_PERIOD);
        loop {
            tokio::select! {
                ended = &mut scanning => {
                    return ended.unwrap_or_else(|error| Err(format!("the scan failed: {error}")));
                }
                _ = ticks.tick() => {
                    let Some((inodes, _)) = index.scanning() else { continue };
                    let progress = Progress { files_total: inodes, files_done: inodes, ..Progress::default() };
                    if replies.send(Reply::Progress(progress)).await.is_err() {
                        let index = index.clone();
                        on_thread(move || Ok(index.stop_scan())).await?;
                    }
                }
            }
        }
    }

    pub(super) async fn sql(self: &Arc<Self>, query: String, replies: &Replies) -> Reply {
        let begun = Instant::now();
        let asked = match self.indexed() {
            Ok(index) => ask(index, query, replies).await,
            Err(message) => Err(message),
        };
        done(asked.map(|rows| Summary { files: rows, seconds: begun.elapsed().as_secs_f64(), ..Summary::default() }))
    }
}

/// Streams the answer to a statement; how many rows it has.
async fn ask(index: Arc<Index>, query: String, replies: &Replies) -> Result<u64, String> {
    let replies = replies.clone();
    let left = Arc::new(AtomicBool::new(false));
    // Told between rows by the channel, and within a long one by this.
    let (gone, watched) = (left.clone(), replies.clone());
    let watching = tokio::spawn(async move {
        watched.closed().await;
        gone.store(true, Ordering::SeqCst);
    });
    let answered = on_thread(move || {
        let mut rows = 0;
        let head = replies.clone();
        let mut head = |columns| drop(head.blocking_send(Reply::Columns { columns }));
        let mut each = |cells| {
            rows += 1;
            replies.blocking_send(Reply::Row { cells }).is_ok()
        };
        index.query(&query, move || !left.load(Ordering::SeqCst), &mut head, &mut each)?;
        Ok(rows)
    })
    .await;
    watching.abort();
    answered
}

async fn tell_status(index: Arc<Index>, replies: &Replies) -> Result<Summary, String> {
    let info = on_thread(move || index.status()).await?;
    // A client that is gone needs no answer.
    let _ = replies.send(Reply::Index(info)).await;
    Ok(Summary::default())
}
