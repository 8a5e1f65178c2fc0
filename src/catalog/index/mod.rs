//! An index of the share in SQL: what policies and reports ask, without walking over millions of files.
//!
//! It is never the truth. The mount tells it where to look ([`Recorder`]), a scan fills and reconciles it ([`ScanOptions`]), and whoever acts on
//! a file finds that again by its inode and looks at it through the engine. So it may be late, wrong or gone at any time and no file comes to
//! harm; it can be thrown away and made again at will.

mod coldest;
mod during;
mod names;
mod print;
mod queue;
mod read;
mod recorder;
mod row;
mod scan;
mod sql;
mod store;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};

pub use coldest::{COLDEST, each_coldest};
pub use recorder::{Recorder, Who};
pub use row::{HEAT_HALF_LIFE_S, name_of};
pub use scan::{Progress, ScanOptions, Scanned};
pub use sql::{Cells, Paths, now_s, reader};
pub use store::state_filter;

use crate::lower::Share;
use crate::ports::{Attr, FileKind, Lower, LowerError};
use crate::types::{FileId, FileState, Inode, StateTotal};
use names::SeenAs;
use recorder::{Shard, Touched};
use row::{Facts, Tier};
use scan::Running;
use store::Store;

/// How long a hint waits for company.
const TAKE_EVERY: Duration = Duration::from_secs(1);

/// Why the index cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    #[error("the index {}: {error}", path.display())]
    Io { path: PathBuf, error: std::io::Error },
    #[error("the index's database: {0}")]
    Database(#[from] rusqlite::Error),
    #[error("{0}")]
    Query(String),
    #[error("the share's root cannot be read: {0}")]
    Share(LowerError),
    #[error("a scan runs already: wait for its end, or `tierfs index scan --stop`")]
    Busy,
    #[error("the index is empty: `tierfs index scan` fills it")]
    Empty,
}

pub type IndexResult<T> = Result<T, IndexError>;

/// How the index does, as it is told too. Times are seconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// `empty`, `scanning`, `stopped` (within a scan) or `complete`.
    pub state: String,
    /// Something may be missing since the last scan: hints were lost, or the daemon did not end in order.
    pub stale: bool,
    /// Rows: one an inode.
    pub inodes: u64,
    pub directories: u64,
    /// Bytes of the database.
    pub bytes: u64,
    /// Hints that wait, that came since the mount, that were lost since the last scan.
    pub pending: u64,
    pub recorded: u64,
    pub lost: u64,
    /// When the last whole scan began and ended.
    pub scan_began: Option<i64>,
    pub scan_ended: Option<i64>,
    /// Inodes the scan that runs has met.
    pub scanning: Option<u64>,
    /// Regular files by state.
    pub files: BTreeMap<String, StateTotal>,
}

struct Inner {
    share: Arc<Share>,
    identity: String,
    store: Mutex<Store>,
    recorder: Arc<Recorder>,
    /// Hints lost before this daemon, or before the last scan.
    lost_before: AtomicU64,
    stopping: AtomicBool,
}

/// The index of one share.
pub struct Index {
    inner: Arc<Inner>,
    path: PathBuf,
    scan: Mutex<Option<ScanState>>,
    scan_over: Condvar,
    /// One at a time empties the recorder.
    taking: Mutex<()>,
    taker: Mutex<Option<std::thread::JoinHandle<()>>>,
    names: SeenAs,
}

struct ScanState {
    progress: Arc<Progress>,
    running: Option<Arc<Running>>,
    stop: bool,
}

impl Index {
    /// Opens the index kept at `path`, or makes an empty one. Hints are taken from now on if it was ever scanned, and the
    /// share asks it for names that the kernel has forgotten.
    pub fn open(share: Arc<Share>, path: &Path) -> IndexResult<Arc<Self>> {
        let identity = share.root().id.to_string();
        let store = Store::open(path, &identity)?;
        let recorder = Arc::new(Recorder::default());
        let used = store.get("state")?.is_some();
        let clean = store.get_number("clean") != 0;
        if used && !clean && store.get_number("stale") == 0 {
            store.set("stale", 1)?;
        }
        store.set("clean", 0)?;
        let inner = Arc::new(Inner {
            share,
            identity,
            store: Mutex::new(store),
            recorder: recorder.clone(),
            lost_before: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
        });
        recorder.switch(used);
        let index = Arc::new(Self {
            inner,
            path: path.to_owned(),
            scan: Mutex::new(None),
            scan_over: Condvar::new(),
            taking: Mutex::new(()),
            taker: Mutex::new(None),
            names: SeenAs::new(path),
        });
        let weak = Arc::downgrade(&index);
        let taker = std::thread::Builder::new().name("tierfs-index".into()).spawn(move || {
            loop {
                std::thread::park_timeout(TAKE_EVERY);
                let Some(index) = weak.upgrade() else { return };
                if index.inner.stopping.load(Ordering::SeqCst) {
                    return;
                }
                if index.inner.recorder.pending() > 0 {
                    index.take();
                }
            }
        });
        let taker = taker.map_err(|error| IndexError::Io { path: path.to_owned(), error })?;
        recorder.set_taker(taker.thread().clone());
        *index.taker.lock() = Some(taker);
        let names: Weak<Self> = Arc::downgrade(&index);
        index.inner.share.set_names(names);
        Ok(index)
    }

    /// Where hints go.
    pub fn recorder(&self) -> &Arc<Recorder> {
        &self.inner.recorder
    }

    /// The database's file, for [`reader`] and [`Paths`].
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes what waits, so that a question now is answered with it; what fails there makes the index stale.
    pub fn take(&self) {
        let _one = self.taking.lock();
        let mut store = self.inner.store.lock();
        if store.is_filling() {
            // Nothing can be found by name yet; hints wait for the end of the scan.
            return;
        }
        let shards = self.inner.recorder.take();
        if shards.iter().all(|shard| shard.files.is_empty() && shard.names.is_empty()) {
            return;
        }
        if let Err(error) = store.batch(|store| self.inner.apply(store, shards)) {
            tracing::warn!("the index missed something, and wants a scan: {error}");
            self.inner.recorder.lose();
        }
    }

    /// Scans the whole share, or goes on with the scan that was stopped. Blocks; one at a time.
    pub fn scan(&self, options: ScanOptions) -> IndexResult<Scanned> {
        let progress = Arc::new(Progress::default());
        {
            let mut scan = self.scan.lock();
            if scan.is_some() {
                return Err(IndexError::Busy);
            }
            *scan = Some(ScanState { progress: progress.clone(), running: None, stop: false });
        }
        let scanned = self.scan_all(options, &progress);
        *self.scan.lock() = None;
        self.scan_over.notify_all();
        scanned
    }

    fn scan_all(&self, options: ScanOptions, progress: &Progress) -> IndexResult<Scanned> {
        let inner = &self.inner;
        // From the first name that is read on, what changes must be heard of.
        inner.recorder.switch(true);
        let lost = inner.recorder.lost();
        // What the database remembers as stale is mended by this scan, unless more is lost meanwhile.
        let scanned = scan::run(inner, options, progress, &|running| {
            let mut scan = self.scan.lock();
            let Some(scan) = &mut *scan else { return };
            if scan.stop || inner.stopping.load(Ordering::SeqCst) {
                running.stop();
            }
            scan.running = Some(running.clone());
        })?;
        if !scanned.stopped {
            // Of what was lost meanwhile, the scan may have read the state before.
            inner.lost_before.store(lost, Ordering::SeqCst);
            inner.store.lock().set("stale", 0)?;
            self.take();
        }
        Ok(scanned)
    }

    /// Has the scan that runs end early; `false`: none runs. Waits for its end.
    pub fn stop_scan(&self) -> bool {
        let mut scan = self.scan.lock();
        let Some(state) = &mut *scan else { return false };
        state.stop = true;
        if let Some(running) = &state.running {
            running.stop();
        }
        while scan.is_some() {
            self.scan_over.wait(&mut scan);
        }
        true
    }

    /// Inodes, changes and records of the scan that runs.
    pub fn scanning(&self) -> Option<(u64, u64)> {
        let scan = self.scan.lock();
        let progress = &scan.as_ref()?.progress;
        Some((progress.inodes.load(Ordering::Relaxed), progress.dirs.load(Ordering::Relaxed)))
    }

    /// Throws everything away, counts of opens too. A scan fills it again.
    pub fn clear(&self) -> IndexResult<()> {
        if self.scan.lock().is_some() {
            return Err(IndexError::Busy);
        }
        let _one = self.taking.lock();
        let mut store = self.inner.store.lock();
        self.inner.recorder.switch(false);
        self.inner.recorder.take();
        *store = Store::create(&self.path, &self.inner.identity)?;
        self.names.forget();
        Ok(())
    }

    /// Whether there is anything to ask.
    pub fn is_empty(&self) -> bool {
        self.inner.store.lock().get("state").ok().flatten().is_none()
    }

    /// Whether it was filled once and nothing is known to be missing.
    pub fn is_fresh(&self) -> bool {
        let store = self.inner.store.lock();
        store.get("state").ok().flatten().as_deref() == Some("complete")
            && store.get_number("stale") == 0
            && self.lost() == 0
    }

    fn lost(&self) -> u64 {
        self.inner.recorder.lost().saturating_sub(self.inner.lost_before.load(Ordering::SeqCst))
    }

    /// Seconds since 1970 at the end of the last whole scan.
    pub fn scan_ended(&self) -> Option<i64> {
        Some(self.inner.store.lock().get_number("scan_ended")).filter(|at| *at > 0)
    }

    pub fn status(&self) -> IndexResult<Status> {
        let scanning = self.scanning().map(|(inodes, _)| inodes);
        self.take();
        let (state, stale, scan_began, scan_ended) = {
            let store = self.inner.store.lock();
            let time = |name| Some(store.get_number(name)).filter(|at| *at > 0);
            (store.get("state")?, store.get_number("stale") != 0, time("scan_began"), time("scan_ended"))
        };
        let db = reader(&self.path)?;
        let count = |sql| db.query_row(sql, [], |row| row.get::<_, i64>(0)).map(|count| count as u64);
        let sizes = ["", "-wal"].map(|suffix| {
            let mut name = self.path.clone().into_os_string();
            name.push(suffix);
            std::fs::metadata(name).map_or(0, |file| file.len())
        });
        let state = match state.as_deref() {
            None => "empty",
            Some("scanning") if scanning.is_some() => "scanning",
            Some("scanning") => "stopped",
            Some(_) if scanning.is_some() => "scanning",
            Some(_) => "complete",
        };
        Ok(Status {
            state: state.into(),
            stale: stale || self.lost() > 0,
            inodes: count("SELECT count(*) FROM f")?,
            directories: count("SELECT count(*) FROM f WHERE kind = 'd'")?,
            bytes: sizes.iter().sum(),
            pending: self.inner.recorder.pending() as u64,
            recorded: self.inner.recorder.recorded(),
            lost: self.lost(),
            scan_began,
            scan_ended,
            scanning,
            files: Store::totals(&db)?,
        })
    }

    /// Runs one statement that may only read; see [`sql::query`].
    pub fn query(
        &self,
        text: &str,
        wanted: impl Fn() -> bool + Send + 'static,
        head: &mut dyn FnMut(Vec<String>),
        each: &mut dyn FnMut(Cells) -> bool,
    ) -> IndexResult<()> {
        if self.is_empty() {
            return Err(IndexError::Empty);
        }
        self.take();
        sql::query(&self.path, text, wanted, head, each)
    }

    /// Ends in order: what waits is written, and the next mount need not doubt it.
    pub fn close(&self) {
        self.inner.stopping.store(true, Ordering::SeqCst);
        self.stop_scan();
        if let Some(taker) = self.taker.lock().take() {
            taker.thread().unpark();
            // It panics only with a bug of its own, which has been told.
            let _ = taker.join();
        }
        self.take();
        let lost = self.lost();
        let store = self.inner.store.lock();
        let written = store.set("clean", 1).and_then(|()| if lost > 0 { store.set("stale", 1) } else { Ok(()) });
        if let Err(error) = written {
            tracing::warn!("the index was not closed in order: {error}");
        }
    }
}

impl Inner {
    /// Looks where hints say.
    fn apply(&self, store: &mut Store, shards: Vec<Shard>) -> IndexResult<()> {
        let (mut gone, mut replaced, mut files) = (Vec::new(), Vec::new(), Vec::new());
        for shard in shards {
            for ((id, name), dir) in shard.names {
                let dir = match dir {
                    Some(dir) => Ok(dir),
                    None => self.share.by_number(id.ino).map(|(dir, _)| dir),
                };
                match dir {
                    Ok(dir) if dir.id == id => self.name(store, &dir, name, &mut gone, &mut replaced)?,
                    _ => gone.push((id, name)),
                }
            }
            files.extend(shard.files);
        }
        // After what was found: an inode that has another name by now is not without one in between.
        for (dir, name) in gone {
            replaced.extend(store.lose(dir.ino as i64, name.as_bytes())?);
        }
        // What has lost a name may have others, and fewer than before.
        for ino in replaced {
            if let Ok((node, attr)) = self.share.by_number(ino)
                && attr.kind != FileKind::Directory
                && attr.nlink > 0
            {
                self.look(store, &node, attr)?;
            }
        }
        let now = sql::now_s();
        for (id, touched) in files {
            self.file(store, id, touched, now)?;
        }
        if !store.during.is_watching() {
            store.sweep()?;
        }
        Ok(())
    }

    fn name(
        &self,
        store: &mut Store,
        dir: &Inode,
        name: OsString,
        gone: &mut Vec<(FileId, OsString)>,
        replaced: &mut Vec<u64>,
    ) -> IndexResult<()> {
        if !store.during.saw_name(dir.id.ino, name.as_bytes()) {
            self.recorder.lose();
        }
        match self.share.lookup(dir, &name) {
            Ok((node, attr)) => {
                let project = {
                    let mut project = store.db.prepare_cached("SELECT project FROM f WHERE ino = ?1")?;
                    project.query_row([dir.id.ino as i64], |row| row.get::<_, i64>(0)).unwrap_or(0) as u32
                };
                let Some(tier) = self.tier(&node, &attr) else { return Ok(()) };
                self.saw(store, node.id);
                let facts = Facts::new(node.id, &attr, project, tier);
                replaced.extend(store.put(dir.id.ino as i64, name.as_bytes(), &facts)?);
            }
            Err(error) if matches!(error.errno(), libc::ENOENT | libc::ESTALE | libc::ENOTDIR) => {
                gone.push((dir.id, name));
            }
            Err(error) => {
                tracing::warn!("the index cannot look at a name: {error}");
                self.recorder.lose();
            }
        }
        Ok(())
    }

    /// `None`: nobody knows. A row that said so would be kept by scans, whose listings are none the wiser.
    fn tier(&self, node: &Inode, attr: &Attr) -> Option<Tier> {
        if attr.kind != FileKind::Regular {
            return Some(Tier::none());
        }
        match self.share.load_record(node) {
            Ok(stored) => Some(Tier::of(attr, stored.as_deref())),
            // Gone meanwhile: another hint says so.
            Err(error) if matches!(error.errno(), libc::ESTALE | libc::ENOENT) => Some(Tier::none()),
            Err(error) => {
                tracing::warn!(inode = node.id.ino, "the index cannot read a record: {error}");
                self.recorder.lose();
                None
            }
        }
    }

    fn saw(&self, store: &mut Store, id: FileId) {
        if !store.during.saw_inode(id.ino) {
            self.recorder.lose();
        }
    }

    fn look(&self, store: &mut Store, node: &Inode, attr: Attr) -> IndexResult<()> {
        self.saw(store, node.id);
        let Some(tier) = self.tier(node, &attr) else { return Ok(()) };
        store.update(&Facts::new(node.id, &attr, 0, tier))?;
        Ok(())
    }

    fn file(&self, store: &mut Store, id: FileId, touched: Touched, now: i64) -> IndexResult<()> {
        let before = match touched.look {
            true => store.state(id)?,
            false => None,
        };
        if touched.look {
            let found = match touched.node {
                Some(node) => self.share.stat(&node).map(|attr| (node, attr)),
                None => self.share.by_number(id.ino),
            };
            match found {
                Ok((node, attr)) if node.id == id && attr.nlink > 0 => self.look(store, &node, attr)?,
                Ok(_) => store.remove(id)?,
                Err(error) if matches!(error.errno(), libc::ESTALE | libc::ENOENT) => store.remove(id)?,
                Err(error) => {
                    tracing::warn!(inode = id.ino, "the index cannot look at a file: {error}");
                    self.recorder.lose();
                }
            }
        }
        if touched.opens > 0 {
            store.opened(id, touched.opens, touched.opened_at)?;
        }
        if let Some(who) = touched.who {
            store.wanted(id, &who.to_string())?;
        }
        let away =
            |state| matches!(state, FileState::Stub | FileState::Partial | FileState::Patched | FileState::Releasing);
        if before.is_some_and(away) && store.state(id)?.is_some_and(|state| !away(state)) {
            store.recalled(id, now)?;
        }
        Ok(())
    }
}
