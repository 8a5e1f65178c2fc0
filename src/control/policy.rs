//! The background policy of a mount: archive by age, release by free space.
//!
//! Memory is bounded: a pass over the share hands files on as it finds them, and remembers at most [`COLDEST_MAX`] of them.

use std::collections::{BinaryHeap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::catalog::walk::{Found, Next, Step, on_own_thread, resolve, walk};
use crate::engine::{Asker, Candidate, Engine, JobKind, Outcome, load_record};
use crate::ports::{Clock, Lower, LowerResult, Task};
use crate::record::Claim;
use crate::types::{FileId, Timestamp};

/// Files a release pass chooses among at a time, coldest first.
const COLDEST_MAX: usize = 10_000;
/// Bounds of the pause between two passes.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// After a pass that the pair's configuration made fail.
const PAUSE_UNHEALTHY: Duration = Duration::from_secs(60);

/// What to do in the background.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Archive files whose content is unchanged for so long.
    pub archive_after: Option<Duration>,
    /// Release dual files when more than so many per cent of the share's space are used …
    pub release_above_pct: Option<u8>,
    /// … until so many are.
    pub release_below_pct: Option<u8>,
}

impl Policy {
    /// Whether there is anything to do.
    pub fn is_idle(&self) -> bool {
        self.archive_after.is_none() && self.release_above_pct.is_none()
    }

    fn pause(&self) -> Duration {
        self.archive_after.map_or(PAUSE_MIN * 5, |after| after / 4).clamp(PAUSE_MIN, PAUSE_MAX)
    }
}

/// Carries out a policy on one mount.
pub struct Runner {
    lower: Arc<dyn Lower>,
    engine: Arc<Engine>,
    clock: Arc<dyn Clock>,
    policy: Policy,
    /// Between the two marks, on the way down.
    freeing: AtomicBool,
}

/// A file that may be released, ordered so that the warmest is on top of a heap.
#[derive(PartialEq, Eq)]
struct Cold {
    last_used: Timestamp,
    ino: u64,
    file: Box<ColdFile>,
}

struct ColdFile(Candidate);

impl PartialEq for ColdFile {
    fn eq(&self, other: &Self) -> bool {
        self.0.node == other.0.node
    }
}
impl Eq for ColdFile {}

impl PartialOrd for Cold {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Cold {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.last_used, self.ino).cmp(&(other.last_used, other.ino))
    }
}

impl Runner {
    pub fn new(lower: Arc<dyn Lower>, engine: Arc<Engine>, clock: Arc<dyn Clock>, policy: Policy) -> Self {
        Self { lower, engine, clock, policy, freeing: AtomicBool::new(false) }
    }

    /// Works until the runtime ends.
    pub async fn run(self: Arc<Self>) {
        loop {
            let healthy = self.pass().await;
            tokio::time::sleep(if healthy { self.policy.pause() } else { PAUSE_UNHEALTHY }).await;
        }
    }

    /// One pass; `false` when the pair is at fault and the next one can wait.
    async fn pass(self: &Arc<Self>) -> bool {
        if let Some(after) = self.policy.archive_after
            && !self.archive_older_than(after).await
        {
            return false;
        }
        if let Some(above) = self.policy.release_above_pct {
            let below = self.policy.release_below_pct.unwrap_or(above);
            match (self.used_above(above), self.used_above(below)) {
                (Ok(over), Ok(excess)) => {
                    // Begun above the high mark, it goes on to the low one, over as many passes as that takes: files become
                    // releasable as they are archived.
                    let freeing = excess > 0.0 && (over > 0.0 || self.freeing.load(Ordering::Relaxed));
                    self.freeing.store(freeing, Ordering::Relaxed);
                    if freeing {
                        self.release_bytes(excess).await;
                    }
                }
                (Err(error), _) | (_, Err(error)) => tracing::warn!("cannot tell the share's free space: {error}"),
            }
        }
        true
    }

    /// How much more is used than `pct` per cent of the space, in bytes, as df(1) reckons it; negative below that.
    fn used_above(&self, pct: u8) -> LowerResult<f64> {
        let space = self.lower.space()?;
        let used = space.blocks.saturating_sub(space.blocks_free) as f64;
        let all = used + space.blocks_available as f64;
        Ok((used - all * f64::from(pct) / 100.0) * space.fragment_size as f64)
    }

    /// Walks the whole share on a thread of its own.
    async fn each_file(self: &Arc<Self>, mut visit: impl FnMut(Found) -> Next + Send + 'static) {
        let this = self.clone();
        let walked = on_own_thread(move || {
            let root = match resolve(&*this.lower, std::path::Path::new("")) {
                Ok(root) => root,
                Err(error) => return tracing::warn!("the share's root cannot be read: {error}"),
            };
            walk(&*this.lower, root, &mut |step| match step {
                Step::File(found) => visit(found),
                Step::Failed(path, error) => {
                    tracing::warn!(path = %path.display(), "left out of this pass: {error}");
                    Next::Continue
                }
            });
        });
        if walked.await.is_none() {
            tracing::error!("a policy pass failed");
        }
    }

    /// What failed before is not tried again at once. When the list cannot be read, it is.
    async fn put_off(&self, task: Task) -> HashSet<FileId> {
        self.engine.put_off(task).await.unwrap_or_else(|error| {
            tracing::warn!("the dead-letter list cannot be read: {error}");
            HashSet::new()
        })
    }

    async fn archive_older_than(self: &Arc<Self>, after: Duration) -> bool {
        let put_off = self.put_off(Task::Archive).await;
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
        let this = self.clone();
        self.each_file(move |found| {
            let age = now.nanos_since(found.attr.mtime);
            if found.attr.size == 0
                || found.attr.sealed
                || age < after.as_nanos() as i128
                || put_off.contains(&found.node.id)
                || !this.is(&found, Claim::Resident)
            {
                return Next::Continue;
            }
            let candidate = Candidate { node: found.node, attr: found.attr, path: found.path };
            match candidates.blocking_send(candidate) {
                Ok(()) => Next::Continue,
                Err(_) => Next::Stop,
            }
        })
        .await;
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

    /// Whether a file's record makes this claim. Unreadable records are nobody's candidates.
    fn is(&self, found: &Found, claim: Claim) -> bool {
        match self.engine.cells.live(found.node.id) {
            Some(cell) => cell.lock().record.claim == claim,
            None => load_record(&*self.lower, &found.node).is_ok_and(|record| record.claim == claim),
        }
    }

    /// Releases the coldest files that together occupy `excess` bytes, and no more: many are released at once, and those in
    /// hand could not be called back. What turns out not to be releasable is made up for by the next pass.
    async fn release_bytes(self: &Arc<Self>, excess: f64) {
        let coldest = Arc::new(parking_lot::Mutex::new(BinaryHeap::<Cold>::new()));
        let (this, heap) = (self.clone(), coldest.clone());
        let put_off = self.put_off(Task::Release).await;
        self.each_file(move |found| {
            let may = found.attr.blocks > 0 && !found.attr.sealed && !put_off.contains(&found.node.id);
            if may && this.is(&found, Claim::Dual) {
                let last_used = found.attr.atime.max(found.attr.mtime);
                let ino = found.node.id.ino;
                let candidate = Candidate { node: found.node, attr: found.attr, path: found.path };
                let mut heap = heap.lock();
                heap.push(Cold { last_used, ino, file: Box::new(ColdFile(candidate)) });
                if heap.len() > COLDEST_MAX {
                    heap.pop();
                }
            }
            Next::Continue
        })
        .await;
        let files = std::mem::take(&mut *coldest.lock()).into_sorted_vec();
        let (candidates, taken) = mpsc::channel(16);
        let (events, mut ended) = mpsc::channel(256);
        let engine = self.engine.clone();
        let job = tokio::spawn(async move { engine.run_job_for(Asker::Policy, JobKind::Release, taken, events).await });
        let feeding = tokio::spawn(async move {
            let mut planned = 0.0;
            for cold in files {
                if planned >= excess {
                    break;
                }
                planned += cold.file.0.attr.blocks as f64 * 512.0;
                if candidates.send(cold.file.0).await.is_err() {
                    break;
                }
            }
        });
        let mut released = 0u64;
        while let Some(event) = ended.recv().await {
            released += u64::from(matches!(event.outcome, Outcome::Done));
        }
        // Both have ended: their channels are closed.
        let _ = feeding.await;
        if let Ok(Err(error)) = job.await {
            tracing::error!("releasing stopped: {error}");
        }
        tracing::info!(released, "release pass");
    }
}
