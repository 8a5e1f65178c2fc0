//! Files that can be freed, the coldest first: found by the index where there is one, else by a walk over the share.

use std::collections::{BinaryHeap, HashSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::catalog::index::{Index, IndexResult, each_coldest, reader};
use crate::catalog::walk::{Found, Next, Step, on_own_thread, resolve, seek, walk};
use crate::control::unfit::{Standing, is_unreleasable};
use crate::engine::{Candidate, Engine, load_record};
use crate::ports::{Attr, FileKind, Lower, Task};
use crate::types::{FileId, Inode, Timestamp};

/// Files known at a time.
const FILES_MAX: usize = 10_000;
/// Files that the index tells at least, or what it has yet to take is taken first.
const FILES_LEAST: usize = 64;
/// What is known for longer is looked for anew: somebody may have used it since. What a walk found is kept for several times what that took.
const FILES_KEPT: Duration = Duration::from_secs(60);
/// Looking for more takes at most this part of the time, when nothing was found.
const SEARCH_TIMES: u32 = 4;
const SEARCH_PAUSE: Duration = Duration::from_secs(1);

/// A regular file with content that the filter of the index wants; `each` says whether it wants more.
pub fn indexed(index: &Index, filter: &str, each: &mut dyn FnMut(FileId) -> bool) -> IndexResult<()> {
    index.take();
    let db = reader(index.path())?;
    let sql =
        format!("SELECT ino, birth FROM f WHERE kind = 'f' AND parent <> 0 AND sealed = 0 AND size > 0 AND {filter}");
    let mut matching = db.prepare(&sql)?;
    let mut rows = matching.query([])?;
    while let Some(row) = rows.next()? {
        let id = FileId { ino: row.get::<_, i64>(0)? as u64, birth: row.get::<_, i64>(1)? as u64 };
        if !each(id) {
            break;
        }
    }
    Ok(())
}

/// Every file of the share, each by one name, on a thread of its own; what cannot be read is left out, and told.
pub async fn each_file(lower: Arc<dyn Lower>, mut visit: impl FnMut(Found) -> Next + Send + 'static) {
    let walked = on_own_thread(move || {
        let root = match resolve(&*lower, Path::new("")) {
            Ok(root) => root,
            Err(error) => return tracing::warn!("the share's root cannot be read: {error}"),
        };
        walk(&*lower, root, &mut |step| match step {
            Step::File(found) => visit(found),
            Step::Failed(path, error) => {
                tracing::warn!(path = %path.display(), "left out of this pass: {error}");
                Next::Continue
            }
        });
    });
    if walked.await.is_none() {
        tracing::error!("a pass over the share failed");
    }
}

/// When a file was last used, then its identity: the greatest is the warmest.
type Warmth = (Timestamp, u64, u64);

/// The coldest files.
pub(super) struct Pool {
    lower: Arc<dyn Lower>,
    engine: Arc<Engine>,
    index: Option<Arc<Index>>,
    files: VecDeque<FileId>,
    /// When it was filled last, and how long that took.
    filled: Option<(Instant, Duration)>,
    /// All was looked at, and there was nothing: so it is taken to be until then.
    barren_until: Option<Instant>,
}

impl Pool {
    pub fn new(lower: Arc<dyn Lower>, engine: Arc<Engine>, index: Option<Arc<Index>>) -> Self {
        Self { lower, engine, index, files: VecDeque::new(), filled: None, barren_until: None }
    }

    /// Whether there was nothing to be freed when all was looked at, not long ago.
    pub fn is_barren(&self) -> bool {
        self.barren_until.is_some_and(|until| Instant::now() < until)
    }

    /// The coldest file that can probably be freed; `None`: there is none, or it is too early to look again. With `patient` that is waited for, if it
    /// is soon. `walks`: where no index tells, the share is walked.
    pub async fn next(&mut self, patient: bool, walks: bool) -> Option<Candidate> {
        if self.filled.is_some_and(|(at, took)| at.elapsed() > kept_for(took)) {
            self.files.clear();
        }
        loop {
            while let Some(id) = self.files.pop_front() {
                let (lower, engine) = (self.lower.clone(), self.engine.clone());
                let confirmed = tokio::task::spawn_blocking(move || confirm(&*lower, &engine, id)).await;
                if let Ok(Some(candidate)) = confirmed {
                    return Some(candidate);
                }
            }
            let early = self.filled.map_or(Duration::ZERO, |(at, took)| {
                SEARCH_PAUSE.max(took.saturating_mul(SEARCH_TIMES)).saturating_sub(at.elapsed())
            });
            if !early.is_zero() {
                if !patient || early > SEARCH_PAUSE {
                    return None;
                }
                tokio::time::sleep(early).await;
            }
            self.fill(walks).await;
            if self.files.is_empty() {
                return None;
            }
        }
    }

    async fn fill(&mut self, walks: bool) {
        let begun = Instant::now();
        // What failed before is not tried again at once. When the list cannot be read, it is.
        let put_off = self.engine.put_off(Task::Release).await.unwrap_or_default();
        let mut found = Vec::new();
        if let Some(index) = self.index.clone() {
            let left_out = put_off.clone();
            let by_index = on_own_thread(move || coldest(&index, &left_out)).await;
            match by_index {
                Some(Ok(files)) => found = files,
                Some(Err(error)) => tracing::warn!("the index does not tell what can be freed: {error}"),
                None => {}
            }
        }
        if found.is_empty() {
            let fresh = self.index.as_ref().is_some_and(|index| index.is_fresh());
            if !fresh && !walks {
                // Who may walk is to look at once.
                return;
            }
            if !fresh {
                found = self.walk(put_off).await;
            }
        }
        let took = begun.elapsed();
        self.barren_until = found.is_empty().then(|| Instant::now() + kept_for(took));
        self.files = found.into();
        self.filled = Some((Instant::now(), took));
    }

    async fn walk(&self, put_off: HashSet<FileId>) -> Vec<FileId> {
        let coldest = Arc::new(parking_lot::Mutex::new(BinaryHeap::<Warmth>::new()));
        let (heap, lower, engine) = (coldest.clone(), self.lower.clone(), self.engine.clone());
        each_file(self.lower.clone(), move |found| {
            // Of what takes nothing here no record is read.
            let may = found.attr.blocks > 0 && !put_off.contains(&found.node.id);
            if may && can_be_freed(&*lower, &engine, &found.node, &found.attr) {
                let last_used = found.attr.atime.max(found.attr.mtime);
                let mut heap = heap.lock();
                heap.push((last_used, found.node.id.ino, found.node.id.birth));
                if heap.len() > FILES_MAX {
                    heap.pop();
                }
            }
            Next::Continue
        })
        .await;
        let files = std::mem::take(&mut *coldest.lock()).into_sorted_vec();
        files.into_iter().map(|(_, ino, birth)| FileId { ino, birth }).collect()
    }
}

/// How long a search counts that took so long.
fn kept_for(took: Duration) -> Duration {
    FILES_KEPT.max(took.saturating_mul(SEARCH_TIMES))
}

fn coldest(index: &Index, left_out: &HashSet<FileId>) -> IndexResult<Vec<FileId>> {
    let db = reader(index.path())?;
    let look = || {
        let mut files = Vec::new();
        each_coldest(&db, &mut |id| {
            if !left_out.contains(&id) {
                files.push(id);
            }
            files.len() < FILES_MAX
        })
        .map(|()| files)
    };
    let files = look()?;
    if files.len() >= FILES_LEAST {
        return Ok(files);
    }
    // Of a moment ago there may be more. Not before it is needed: a busy share's last second is thousands of files to look at.
    index.take();
    look()
}

/// Whether a file is dual, and nothing keeps it.
fn can_be_freed(lower: &dyn Lower, engine: &Engine, node: &Inode, attr: &Attr) -> bool {
    let known = || match engine.cells.live(node.id) {
        Some(cell) => {
            let inner = cell.lock();
            Some((Standing::of(&inner.record), inner.machine.handles().into()))
        }
        None => Some((Standing::of(&load_record(lower, node).ok()?), 0)),
    };
    is_unreleasable(attr, known).is_none()
}

/// The file as it is now, if it can still be freed, as far as can be told without the engine's locks.
fn confirm(lower: &dyn Lower, engine: &Engine, id: FileId) -> Option<Candidate> {
    let Found { node, attr, path } = seek(lower, id, None).ok()?;
    let fits = attr.kind == FileKind::Regular && can_be_freed(lower, engine, &node, &attr);
    fits.then_some(Candidate { node, attr, path })
}
