//! A scan: every directory of the share is read once, by several threads, and compared with what the index knows of it.
//!
//! Threads read directories (names, then attributes in the order of inode numbers, then records where they may be new) and tell only what
//! differs; one thread writes that, a few directories a transaction, together with which directories are still to be read. So a scan that
//! was stopped, by a crash too, goes on where it was.
//!
//! Memory goes by the largest directories being read and by the directories waiting to be, 60 bytes each; deep ones go first.

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rusqlite::{Connection, params};

use super::row::{Facts, Tier, ctime_ns};
use super::store::{Known, NO_PARENT, Store, known};
use super::{IndexResult, Inner, sql};
use crate::lower::{Share, Survey, Surveyed};
use crate::ports::{FileKind, Lower, LowerResult};
use crate::types::{FileId, Inode, RawHandle};

/// Directories read and not yet written.
const AHEAD: usize = 64;
/// Changes in one transaction.
const CHANGES_AT_ONCE: usize = 20_000;
/// Directories in one transaction.
const DIRS_AT_ONCE: usize = 500;
/// A change time so young may be followed by a change that does not move it: the record is read again.
const YOUNG_NS: i64 = 2_000_000_000;
/// Rows waiting for each thread that is told of them at a time.
const PACE_STEP: Duration = Duration::from_millis(100);

/// How a scan is to be done.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScanOptions {
    /// Inodes a second at most; 0: as fast as it goes.
    pub rate: u64,
    /// Threads that read; 0: two a core.
    pub threads: usize,
}

/// How far a scan is.
#[derive(Debug, Default)]
pub struct Progress {
    pub dirs: AtomicU64,
    pub inodes: AtomicU64,
    /// Rows that were written or taken away.
    pub changes: AtomicU64,
    /// Records that had to be read.
    pub records: AtomicU64,
    /// What could not be read.
    pub failed: AtomicU64,
}

/// What a scan has done.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Scanned {
    pub dirs: u64,
    pub inodes: u64,
    pub changes: u64,
    pub records: u64,
    pub failed: u64,
    /// Rows of what is there no more.
    pub gone: u64,
    pub seconds: f64,
    /// It was stopped: the next one goes on.
    pub stopped: bool,
}

/// What one directory has to tell.
struct Found {
    dir: Inode,
    text: Vec<u8>,
    /// Rows that are new or differ; where their names are in `text`.
    rows: Vec<(std::ops::Range<usize>, Facts)>,
    /// Names that are no more.
    gone: Vec<Vec<u8>>,
    below: Vec<Inode>,
    /// The directory itself is no more.
    lost: bool,
}

/// Directories to be read, and those who read them.
struct Queue {
    state: Mutex<Waiting>,
    moved: Condvar,
    stop: AtomicBool,
}

struct Waiting {
    dirs: Vec<Inode>,
    /// Threads that may yet add some.
    busy: usize,
}

impl Queue {
    /// The next directory; `None` when all is read, or the scan is stopped.
    fn next(&self) -> Option<Inode> {
        let mut state = self.state.lock();
        loop {
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            if let Some(dir) = state.dirs.pop() {
                state.busy += 1;
                return Some(dir);
            }
            if state.busy == 0 {
                return None;
            }
            self.moved.wait(&mut state);
        }
    }

    fn add(&self, dirs: &[Inode]) {
        if !dirs.is_empty() {
            self.state.lock().dirs.extend_from_slice(dirs);
            self.moved.notify_all();
        }
    }

    fn done(&self) {
        self.state.lock().busy -= 1;
        self.moved.notify_all();
    }

    fn end(&self) {
        self.stop.store(true, Ordering::SeqCst);
        let _state = self.state.lock();
        self.moved.notify_all();
    }
}

/// Holds a rate over all threads.
struct Rate {
    per_s: u64,
    begun: Instant,
    booked: AtomicU64,
}

impl Rate {
    /// Waits until `inodes` more may be looked at.
    fn wait(&self, inodes: usize, stop: &AtomicBool) {
        if self.per_s == 0 {
            return;
        }
        let booked = self.booked.fetch_add(inodes as u64, Ordering::Relaxed) + inodes as u64;
        let due = Duration::from_secs_f64(booked as f64 / self.per_s as f64);
        while !stop.load(Ordering::SeqCst) {
            let left = due.saturating_sub(self.begun.elapsed());
            if left.is_zero() {
                break;
            }
            std::thread::sleep(left.min(PACE_STEP));
        }
    }
}

struct Reader<'a> {
    share: &'a Share,
    survey: Survey,
    /// `None` while the index is filled for the first time: nothing is known.
    db: Option<Connection>,
    progress: &'a Progress,
    began_ns: i64,
}

impl Reader<'_> {
    fn read(&mut self, dir: Inode) -> IndexResult<Found> {
        let mut found =
            Found { dir, text: Vec::new(), rows: Vec::new(), gone: Vec::new(), below: Vec::new(), lost: false };
        if let Err(error) = self.survey.enter(self.share, &dir) {
            found.lost = matches!(error.errno(), libc::ESTALE | libc::ENOTDIR | libc::ENOENT);
            if !found.lost {
                self.progress.failed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(inode = dir.id.ino, "a directory cannot be read, and is left as it is known: {error}");
            }
            return Ok(found);
        }
        let project = self.survey.project();
        let mut known = match &self.db {
            Some(db) => known(db, dir.id.ino)?,
            None => Known::default(),
        };
        let mut records = 0;
        let mut blind = HashSet::new();
        for at in 0..self.survey.len() {
            match self.entry(at, project, &mut known, &mut records, &mut found) {
                Ok(()) => {}
                Err(error) => {
                    self.progress.failed.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(directory = dir.id.ino, "a name cannot be looked at: {error}");
                    blind.insert(at);
                }
            }
        }
        if blind.is_empty() {
            found.gone.extend(known.rows.into_values().map(|(name, _)| name));
            found.gone.extend(known.links.into_iter().map(|(name, _)| name));
        }
        self.progress.dirs.fetch_add(1, Ordering::Relaxed);
        self.progress.inodes.fetch_add(self.survey.len() as u64, Ordering::Relaxed);
        self.progress.records.fetch_add(records, Ordering::Relaxed);
        Ok(found)
    }

    fn entry(
        &self,
        at: usize,
        project: u32,
        known: &mut Known,
        records: &mut u64,
        found: &mut Found,
    ) -> LowerResult<()> {
        let Some(Surveyed { name, id, attr }) = self.survey.look(at)? else { return Ok(()) };
        let name = name.as_bytes();
        if attr.kind == FileKind::Directory {
            match self.survey.below(at)? {
                Some(below) => found.below.push(below),
                None => return Ok(()),
            }
        }
        let before = known.rows.get(&id.ino).filter(|(known, facts)| known == name && facts.id == id);
        let ctime = ctime_ns(&attr);
        let tier = match before {
            // Storing a record moves the change time.
            Some((_, facts))
                if facts.ctime_ns == ctime && facts.size == attr.size && ctime < self.began_ns - YOUNG_NS =>
            {
                facts.tier.clone()
            }
            // An empty file has its content whatever its record says.
            _ if attr.kind != FileKind::Regular || attr.size == 0 => Tier::none(),
            _ => {
                *records += 1;
                Tier::of(&attr, self.survey.record(at)?.as_deref())
            }
        };
        let facts = Facts::new(id, &attr, project, tier);
        let same = before.is_some_and(|(_, before)| *before == facts);
        if before.is_some() {
            known.rows.remove(&id.ino);
        }
        let linked = !facts.has_links() || known.links.remove(&(name.to_vec(), id.ino));
        if facts.has_links() {
            // Its row may be under another of its names, which is as good.
            known.rows.remove(&id.ino);
        }
        if !(same && linked) {
            let start = found.text.len();
            found.text.extend_from_slice(name);
            found.rows.push((start..found.text.len(), facts));
        }
        Ok(())
    }
}

/// What goes on while a scan runs.
pub(super) struct Running {
    queue: Queue,
}

impl Running {
    pub fn stop(&self) {
        self.queue.end();
    }
}

/// Everything a scan writes, on the thread that called for it.
struct Writer<'a> {
    inner: &'a Inner,
    filling: bool,
}

impl Writer<'_> {
    /// Writes what comes until there is no more.
    fn run(&self, found: &Receiver<Found>, progress: &Progress) -> IndexResult<()> {
        while let Ok(first) = found.recv() {
            let mut store = self.inner.store.lock();
            store.batch(|store| {
                let (mut dirs, mut changes) = (0, 0);
                let mut next = Some(first);
                while let Some(one) = next {
                    changes += self.write(store, &one)?;
                    dirs += 1;
                    next = if dirs < DIRS_AT_ONCE && changes < CHANGES_AT_ONCE { found.try_recv().ok() } else { None };
                }
                progress.changes.fetch_add(changes as u64, Ordering::Relaxed);
                Ok(())
            })?;
        }
        Ok(())
    }

    fn write(&self, store: &mut Store, found: &Found) -> IndexResult<usize> {
        let parent = found.dir.id.ino;
        {
            let mut done = store.db.prepare_cached("DELETE FROM todo WHERE ino = ?1")?;
            done.execute([parent as i64])?;
        }
        for below in &found.below {
            add_todo(&store.db, below)?;
        }
        if found.lost {
            return Ok(0);
        }
        let mut changes = 0;
        if self.filling {
            let rows = found.rows.iter().map(|(name, facts)| (&found.text[name.clone()], facts));
            store.fill(parent, rows)?;
            return Ok(found.rows.len());
        }
        // Names that are gone first: one of them may be an inode's that has another name here.
        for name in &found.gone {
            if store.during.overtaken(parent, name, None) {
                self.inner.recorder.named(&found.dir, std::ffi::OsStr::from_bytes(name));
            } else {
                store.lose(parent as i64, name)?;
                changes += 1;
            }
        }
        for (name, facts) in &found.rows {
            let name = &found.text[name.clone()];
            if store.during.overtaken(parent, name, Some(facts.id.ino)) {
                self.inner.recorder.named(&found.dir, std::ffi::OsStr::from_bytes(name));
            } else {
                store.put(parent as i64, name, facts)?;
                changes += 1;
            }
        }
        Ok(changes)
    }
}

fn add_todo(db: &Connection, dir: &Inode) -> IndexResult<()> {
    let mut add = db.prepare_cached("INSERT OR REPLACE INTO todo VALUES (?1, ?2, ?3, ?4)")?;
    add.execute(params![dir.id.ino as i64, dir.id.birth as i64, dir.handle.kind(), dir.handle.bytes()])?;
    Ok(())
}

fn todo(db: &Connection) -> IndexResult<Vec<Inode>> {
    let mut todo = db.prepare("SELECT ino, birth, handle_kind, handle FROM todo")?;
    let mut rows = todo.query([])?;
    let mut dirs = Vec::new();
    while let Some(row) = rows.next()? {
        let id = FileId { ino: row.get::<_, i64>(0)? as u64, birth: row.get::<_, i64>(1)? as u64 };
        let handle = RawHandle::new(row.get(2)?, row.get_ref(3)?.as_blob().unwrap_or_default());
        dirs.extend(handle.map(|handle| Inode { id, handle }));
    }
    Ok(dirs)
}

/// Puts the share's root, with which a scan begins.
fn begin(inner: &Inner) -> IndexResult<(Vec<Inode>, bool)> {
    let root = inner.share.root();
    let attr = inner.share.stat(&root).map_err(super::IndexError::Share)?;
    let mut store = inner.store.lock();
    let left = todo(&store.db)?;
    let empty: bool = store.db.query_row("SELECT NOT EXISTS (SELECT 1 FROM f)", [], |row| row.get(0))?;
    if empty {
        store.begin_filling()?;
    }
    let filling = store.is_filling();
    if filling && !empty {
        store.begin_filling()?;
    }
    store.set("state", "scanning")?;
    store.during.watch(!filling);
    if !left.is_empty() {
        return Ok((left, filling));
    }
    store.set("scan_began", sql::now_s())?;
    let facts = Facts::new(root.id, &attr, 0, Tier::none());
    store.batch(|store| {
        if filling {
            store.fill(NO_PARENT as u64, std::iter::once((&b""[..], &facts)))?;
        } else {
            store.put(NO_PARENT, b"", &facts)?;
        }
        add_todo(&store.db, &root)
    })?;
    Ok((vec![root], filling))
}

/// Goes through the whole share, or on where an earlier scan was stopped. Blocks.
pub(super) fn run(
    inner: &Inner,
    options: ScanOptions,
    progress: &Progress,
    wanted: &dyn Fn(&std::sync::Arc<Running>),
) -> IndexResult<Scanned> {
    let begun = Instant::now();
    let (dirs, filling) = begin(inner)?;
    let running = std::sync::Arc::new(Running {
        queue: Queue {
            state: Mutex::new(Waiting { dirs, busy: 0 }),
            moved: Condvar::new(),
            stop: AtomicBool::new(false),
        },
    });
    wanted(&running);
    let queue = &running.queue;
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let threads = if options.threads == 0 { cores * 2 } else { options.threads };
    let rate = Rate { per_s: options.rate, begun, booked: AtomicU64::new(0) };
    let (tell, told) = sync_channel(AHEAD);
    let path = inner.store.lock().path().to_owned();
    let read = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..threads)
            .map(|_| {
                let (tell, path, rate) = (tell.clone(), &path, &rate);
                scope.spawn(move || {
                    let ended = read_all(inner, queue, path, filling, progress, rate, &tell);
                    if ended.is_err() {
                        queue.end();
                    }
                    ended
                })
            })
            .collect();
        drop(tell);
        let written = Writer { inner, filling }.run(&told, progress);
        if written.is_err() {
            queue.end();
            // Who waits for room must not wait for ever.
            drop(told);
        }
        let read: IndexResult<Vec<()>> = readers.into_iter().map(|reader| reader.join().unwrap_or(Ok(()))).collect();
        written.and(read.map(drop))
    });
    let stopped = queue.stop.load(Ordering::SeqCst);
    let mut gone = 0;
    let mut store = inner.store.lock();
    store.during.watch(false);
    read?;
    if !stopped {
        if filling {
            store.end_filling()?;
        }
        gone = store.batch(Store::sweep_all)?;
        store.set("state", "complete")?;
        store.set("scan_ended", sql::now_s())?;
    }
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Ok(Scanned {
        dirs: count(&progress.dirs),
        inodes: count(&progress.inodes),
        changes: count(&progress.changes),
        records: count(&progress.records),
        failed: count(&progress.failed),
        gone,
        seconds: begun.elapsed().as_secs_f64(),
        stopped,
    })
}

/// One reading thread.
fn read_all(
    inner: &Inner,
    queue: &Queue,
    path: &Path,
    filling: bool,
    progress: &Progress,
    rate: &Rate,
    tell: &SyncSender<Found>,
) -> IndexResult<()> {
    let db = if filling { None } else { Some(sql::reader(path)?) };
    let share = &*inner.share;
    let began_ns = sql::now_s().saturating_mul(1_000_000_000);
    let mut reader = Reader { share, survey: Survey::new(share), db, progress, began_ns };
    while let Some(dir) = queue.next() {
        let told = reader.read(dir).map(|found| {
            let below = found.below.clone();
            // Told before those below can be: they are taken off the list when they are told, and must be on it by then.
            let told = tell.send(found).is_ok();
            queue.add(&below);
            told
        });
        queue.done();
        if !told? {
            break;
        }
        rate.wait(reader.survey.len() + 1, &queue.stop);
    }
    Ok(())
}
