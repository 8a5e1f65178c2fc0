//! The background policy of a mount: archive by age. (Release by free space is [`super::space`].)
//!
//! Memory is bounded: files are handed on as the index or a walk over the share finds them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::space::{each_file, indexed};
use super::unfit::{Standing, is_unarchivable, is_young};
use crate::catalog::index::{Index, state_filter};
use crate::catalog::walk::{Found, Next, on_own_thread, seek};
use crate::engine::{Asker, Candidate, Engine, JobKind, Outcome};
use crate::ports::{Clock, FileKind, Lower, Task};
use crate::types::{FileId, FileState, Timestamp};

/// Bounds of the pause between two passes.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// After a pass that the pair's configuration made fail.
const PAUSE_UNHEALTHY: Duration = Duration::from_secs(60);

/// Between two passes.
pub(super) fn pause(after: Duration) -> Duration {
    (after / 4).clamp(PAUSE_MIN, PAUSE_MAX)
}

/// Archives files whose content is unchanged for so long, on one mount.
pub struct Runner {
    lower: Arc<dyn Lower>,
    engine: Arc<Engine>,
    index: Option<Arc<Index>>,
    clock: Arc<dyn Clock>,
    after: Duration,
}

impl Runner {
    pub fn new(
        lower: Arc<dyn Lower>,
        engine: Arc<Engine>,
        index: Option<Arc<Index>>,
        clock: Arc<dyn Clock>,
        after: Duration,
    ) -> Self {
        Self { lower, engine, index, clock, after }
    }

    /// Works until the runtime ends.
    pub async fn run(self: Arc<Self>) {
        loop {
            let healthy = self.pass().await;
            tokio::time::sleep(if healthy { pause(self.after) } else { PAUSE_UNHEALTHY }).await;
        }
    }

    /// One pass; `false` when the pair is at fault and the next one can wait.
    async fn pass(self: &Arc<Self>) -> bool {
        // What failed before is not tried again at once. When the list cannot be read, it is.
        let put_off = self.engine.put_off(Task::Archive).await.unwrap_or_else(|error| {
            tracing::warn!("the dead-letter list cannot be read: {error}");
            HashSet::new()
        });
        let (candidates, taken) = mpsc::channel(256);
        let (events, mut ended) = mpsc::channel(256);
        let engine = self.engine.clone();
        let job =
            tokio::spawn(async move { engine.run_job_for(Asker::Policy, JobKind::ArchiveOnly, taken, events).await });
        let counted = tokio::spawn(async move {
            let (mut archived, mut failed) = (0u64, 0u64);
            while let Some(event) = ended.recv().await {
                match event.outcome {
                    Outcome::Done => archived += 1,
                    Outcome::Failed(error) if !error.is_skip() => {
                        failed += 1;
                        tracing::warn!(path = %event.file.path.display(), "not archived: {error}");
                    }
                    Outcome::Failed(_) | Outcome::Unchanged | Outcome::Digest(_) | Outcome::Repaired => {}
                }
            }
            (archived, failed)
        });
        let now = self.clock.now();
        match self.index.clone().filter(|index| index.is_fresh()) {
            Some(index) => self.feed_indexed(index, now, put_off, candidates).await,
            None => self.feed_walked(now, put_off, candidates).await,
        }
        if let Ok((archived, failed)) = counted.await
            && archived + failed > 0
        {
            tracing::info!(archived, failed, "archive pass");
        }
        match job.await {
            Ok(Err(error)) => {
                tracing::error!("archiving stopped: {error}");
                false
            }
            _ => true,
        }
    }

    async fn feed_walked(
        self: &Arc<Self>,
        now: Timestamp,
        put_off: HashSet<FileId>,
        candidates: mpsc::Sender<Candidate>,
    ) {
        let this = self.clone();
        each_file(self.lower.clone(), move |found| {
            if put_off.contains(&found.node.id) || !this.is_due(&found, now) {
                return Next::Continue;
            }
            let candidate = Candidate { node: found.node, attr: found.attr, path: found.path };
            match candidates.blocking_send(candidate) {
                Ok(()) => Next::Continue,
                Err(_) => Next::Stop,
            }
        })
        .await;
    }

    /// As the index proposes, each after a look at the file itself.
    async fn feed_indexed(
        self: &Arc<Self>,
        index: Arc<Index>,
        now: Timestamp,
        put_off: HashSet<FileId>,
        candidates: mpsc::Sender<Candidate>,
    ) {
        let this = self.clone();
        let proposed = on_own_thread(move || {
            let before = now.secs.saturating_sub(i64::try_from(this.after.as_secs()).unwrap_or(i64::MAX));
            let filter = format!("mtime <= {before} AND {}", state_filter(&[FileState::Resident]));
            indexed(&index, &filter, &mut |id| {
                if put_off.contains(&id) {
                    return true;
                }
                let found = match seek(&*this.lower, id, None) {
                    Ok(found) if found.attr.kind == FileKind::Regular => found,
                    _ => return true,
                };
                if !this.is_due(&found, now) {
                    return true;
                }
                let Found { node, attr, path } = found;
                let candidate = Candidate { node, attr, path };
                candidates.blocking_send(candidate).is_ok()
            })
        });
        match proposed.await {
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::warn!("the index does not tell what is to be archived: {error}"),
            None => tracing::error!("a policy pass failed"),
        }
    }

    fn is_due(&self, found: &Found, now: Timestamp) -> bool {
        let standing = || self.engine.known_record(&found.node).ok().as_ref().map(Standing::of);
        is_young(&found.attr, self.after, now).is_none() && is_unarchivable(&found.attr, standing).is_none()
    }
}
