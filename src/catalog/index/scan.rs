//! A scan: every directory of the share is read once, by several threads, and compared with what the index knows of it.
//!
//! Threads read directories ([`Reader`]) and tell only what differs; one thread writes that, a few directories a transaction, together with which directories are still to be read. So a scan that
//! was stopped, by a crash too, goes on where it was.
//!
//! Memory goes by the largest directories being read and by the directories waiting to be, 60 bytes each; deep ones go first.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use parking_lot::Mutex;
use rusqlite::{Connection, params};

use super::print::stored;
use super::queue::{Queue, Rate};
use super::read::{Found, Outcome, Reader};
use super::recorder::Recorder;
use super::row::{Facts, Tier};
use super::store::{NO_PARENT, Store};
use super::{IndexResult, Inner, sql};
use crate::ports::Lower;
use crate::types::{FileId, Inode, RawHandle};

/// Directories read and not yet written.
const AHEAD: usize = 64;
/// Changes in one transaction.
const CHANGES_AT_ONCE: usize = 20_000;
/// Directories in one transaction.
const DIRS_AT_ONCE: usize = 500;

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
    /// Directories that were as their prints say.
    pub as_printed: AtomicU64,
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
    pub as_printed: u64,
    pub changes: u64,
    pub records: u64,
    pub failed: u64,
    /// Rows of what is there no more.
    pub gone: u64,
    pub seconds: f64,
    /// It was stopped: the next one goes on.
    pub stopped: bool,
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
    recorder: &'a Recorder,
    filling: bool,
}

impl Writer<'_> {
    /// Writes what comes until there is no more.
    fn run(&self, store: &Mutex<Store>, found: &Receiver<Found>, progress: &Progress) -> IndexResult<()> {
        while let Ok(first) = found.recv() {
            let mut store = store.lock();
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
        if matches!(found.outcome, Outcome::Unread | Outcome::AsPrinted) {
            return Ok(0);
        }
        if self.filling {
            let rows = found.rows.iter().map(|(name, facts)| (&found.text[name.clone()], facts));
            store.fill(parent, rows)?;
            if let Outcome::Whole { began, print, .. } = found.outcome {
                store.filled(parent, began, print)?;
            }
            return Ok(found.rows.len());
        }
        let (mut changes, mut overtaken) = (0, false);
        // What others have changed since the rows were read is not what they were compared with.
        let before = stored(&store.db, parent)?;
        // Names that are gone first: one of them may be an inode's that has another name here.
        for (name, ino) in &found.gone {
            if store.during.overtaken(parent, name, None) {
                overtaken = true;
                self.recorder.named(&found.dir, std::ffi::OsStr::from_bytes(name));
            } else {
                store.lose_of(parent as i64, name, Some(*ino))?;
                changes += 1;
            }
        }
        for (name, facts) in &found.rows {
            let name = &found.text[name.clone()];
            if store.during.overtaken(parent, name, Some(facts.id.ino)) {
                overtaken = true;
                self.recorder.named(&found.dir, std::ffi::OsStr::from_bytes(name));
            } else {
                store.put(parent as i64, name, facts)?;
                changes += 1;
            }
        }
        // Last: the rows just written have taken the print away.
        if let Outcome::Whole { changes, began, print } = found.outcome
            && changes == before.changes
            && !overtaken
            && (print.is_some() || began != before.compared)
        {
            store.compared(parent, began, print)?;
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
    if empty || (store.is_filling() && !left.is_empty()) {
        store.begin_filling()?;
    } else if store.is_filling() {
        // All had been read when it was cut off. Read once more, it is compared: filling takes nothing away.
        store.end_filling()?;
    }
    let filling = store.is_filling();
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
    let running = std::sync::Arc::new(Running { queue: Queue::new(dirs) });
    wanted(&running);
    let queue = &running.queue;
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let threads = if options.threads == 0 { cores * 2 } else { options.threads };
    let rate = Rate::new(options.rate, begun);
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
        let written = Writer { recorder: &inner.recorder, filling }.run(&inner.store, &told, progress);
        if written.is_err() {
            queue.end();
            // Who waits for room must not wait for ever.
            drop(told);
        }
        let read: IndexResult<Vec<()>> = readers.into_iter().map(|reader| reader.join().unwrap_or(Ok(()))).collect();
        written.and(read.map(drop))
    });
    let stopped = queue.has_ended();
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
        as_printed: count(&progress.as_printed),
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
    let mut reader = Reader::new(share, db, progress);
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
        rate.wait(reader.survey.len() + 1, queue);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::index::print::{Print, Printer};
    use crate::catalog::index::row::some_facts;
    use crate::ports::FileKind;

    fn node(ino: u64) -> Inode {
        Inode { id: FileId { ino, birth: 9 }, handle: RawHandle::new(1, &ino.to_ne_bytes()).unwrap() }
    }

    fn store(filling: bool) -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(&dir.path().join("index"), "1-2").unwrap();
        if filling { store.begin_filling() } else { store.end_filling() }.unwrap();
        store.put(NO_PARENT, b"", &some_facts(1, FileKind::Directory, 2)).unwrap();
        for dir in [2, 3] {
            store.put(1, &[dir as u8], &some_facts(dir, FileKind::Directory, 2)).unwrap();
        }
        store.during.watch(true);
        (dir, store)
    }

    fn a_print() -> Option<Print> {
        Some(Printer::default().end())
    }

    /// Directory `dir`, met with regular files of these numbers, whose names are `a`.
    fn found(store: &Store, dir: u64, inos: &[u64]) -> Found {
        let changes = stored(&store.db, dir).unwrap().changes;
        let rows = inos.iter().map(|ino| (0..1, some_facts(*ino, FileKind::Regular, 1)));
        let outcome = Outcome::Whole { changes, began: 100, print: a_print() };
        Found { dir: node(dir), text: b"a".to_vec(), rows: rows.collect(), gone: vec![], below: vec![], outcome }
    }

    fn is_printed(store: &Store, dir: u64) -> bool {
        stored(&store.db, dir).unwrap().print.is_some()
    }

    #[test]
    fn what_was_compared_is_printed() {
        let (_dir, mut store) = store(false);
        let recorder = Recorder::default();
        let writer = Writer { recorder: &recorder, filling: false };
        let one = found(&store, 2, &[10]);
        writer.write(&mut store, &one).unwrap();
        assert!(is_printed(&store, 2) && !is_printed(&store, 1));
        // Moved: the directory that had it is another one now.
        let other = found(&store, 3, &[10]);
        writer.write(&mut store, &other).unwrap();
        assert!(is_printed(&store, 3) && !is_printed(&store, 2));
    }

    #[test]
    fn what_changed_since_it_was_compared_is_not_printed() {
        let (_dir, mut store) = store(false);
        let recorder = Recorder::default();
        let writer = Writer { recorder: &recorder, filling: false };
        store.put(2, b"b", &some_facts(11, FileKind::Regular, 1)).unwrap();
        let one = found(&store, 2, &[10]);
        assert!(store.update(&some_facts(11, FileKind::Regular, 1)).unwrap());
        writer.write(&mut store, &one).unwrap();
        assert!(!is_printed(&store, 2));
        assert_eq!(stored(&store.db, 2).unwrap().compared, 0, "its records were not all read");
    }

    #[test]
    fn what_was_overtaken_is_not_printed() {
        for gone in [false, true] {
            let (_dir, mut store) = store(false);
            let recorder = Recorder::default();
            recorder.switch(true);
            let writer = Writer { recorder: &recorder, filling: false };
            // Looked at after the listing was read, and before the rows were.
            store.during.saw_name(2, b"a");
            let mut one = found(&store, 2, if gone { &[] } else { &[10] });
            if gone {
                one.gone.push((b"a".to_vec(), 10));
            }
            writer.write(&mut store, &one).unwrap();
            assert!(!is_printed(&store, 2));
            assert_eq!(recorder.pending(), 1, "it is looked at once more");
        }
    }

    #[test]
    fn a_first_filling_prints_what_nothing_was_taken_from() {
        for order in [[2, 3], [3, 2]] {
            let (_dir, mut store) = store(true);
            let recorder = Recorder::default();
            let writer = Writer { recorder: &recorder, filling: true };
            for dir in order {
                // The file is met in both: it was moved meanwhile, and who was written last has it.
                let one = found(&store, dir, &[10]);
                writer.write(&mut store, &one).unwrap();
            }
            assert!(!is_printed(&store, order[0]));
            // Met again, after it was moved itself: nothing of the first time is taken away by filling.
            let again = found(&store, order[1], &[]);
            writer.write(&mut store, &again).unwrap();
            assert!(!is_printed(&store, order[1]));
        }
        let (_dir, mut store) = store(true);
        let recorder = Recorder::default();
        let one = found(&store, 2, &[10]);
        Writer { recorder: &recorder, filling: true }.write(&mut store, &one).unwrap();
        assert!(is_printed(&store, 2));
    }
}
