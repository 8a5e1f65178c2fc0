//! The queue's SQLite file. What is asked for is on stable storage before it is answered, and a file leaves after it has ended.
//!
//! Invariant: a file is in the queue once for each kind of job, whoever asked how often.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, params};

use crate::types::{FileId, WirePath};

/// Raised whenever the tables change.
const VERSION: i32 = 2;
/// Jobs that have ended and are remembered.
const ENDED_MAX: i64 = 1_000;

const TABLES: &str = "
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE job (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    kind      TEXT    NOT NULL,
    paths     TEXT    NOT NULL,
    recursive INTEGER NOT NULL,
    priority  INTEGER NOT NULL,
    state     TEXT    NOT NULL,
    filled    INTEGER NOT NULL DEFAULT 0,
    created   INTEGER NOT NULL,
    ended     INTEGER,
    files     INTEGER NOT NULL DEFAULT 0,
    bytes     INTEGER NOT NULL DEFAULT 0,
    repeated  INTEGER NOT NULL DEFAULT 0,
    done      INTEGER NOT NULL DEFAULT 0,
    done_bytes INTEGER NOT NULL DEFAULT 0,
    unchanged INTEGER NOT NULL DEFAULT 0,
    skipped   INTEGER NOT NULL DEFAULT 0,
    failed    INTEGER NOT NULL DEFAULT 0,
    problem   TEXT,
    outage    TEXT
) STRICT;
CREATE TABLE item (
    kind  TEXT    NOT NULL,
    ino   INTEGER NOT NULL,
    birth INTEGER NOT NULL,
    job   INTEGER NOT NULL,
    task  INTEGER NOT NULL,
    size  INTEGER NOT NULL,
    path  BLOB    NOT NULL,
    PRIMARY KEY (kind, ino, birth)
) STRICT, WITHOUT ROWID;
CREATE INDEX item_of ON item (job, task);
";

/// What happens to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    Waiting,
    Paused,
    Done,
    Cancelled,
}

impl JobState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Paused => "paused",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
        }
    }

    fn from_word(word: &str) -> Self {
        [Self::Waiting, Self::Paused, Self::Done]
            .into_iter()
            .find(|state| state.as_str() == word)
            .unwrap_or(Self::Cancelled)
    }

    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Cancelled)
    }
}

/// A job as it is kept. Times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    pub id: i64,
    pub kind: String,
    pub paths: Vec<WirePath>,
    pub recursive: bool,
    pub priority: i64,
    pub state: JobState,
    /// All its files are known.
    pub filled: bool,
    pub created: i64,
    pub ended: Option<i64>,
    pub files: u64,
    pub bytes: u64,
    /// Files that another job of the same kind has in the queue.
    pub repeated: u64,
    pub done: u64,
    pub done_bytes: u64,
    pub unchanged: u64,
    pub skipped: u64,
    pub failed: u64,
    /// What of its paths could not be read.
    pub problem: Option<String>,
    /// Why it does not get on just now.
    pub outage: Option<String>,
}

const JOB: &str = "id, kind, paths, recursive, priority, state, filled, created, ended, files, bytes, repeated, done, done_bytes, unchanged, \
                   skipped, failed, problem, outage";

fn job_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Job> {
    let count = |at: usize| row.get::<_, i64>(at).map(|count| count as u64);
    Ok(Job {
        id: row.get(0)?,
        kind: row.get(1)?,
        paths: serde_json::from_str(&row.get::<_, String>(2)?).unwrap_or_default(),
        recursive: row.get(3)?,
        priority: row.get(4)?,
        state: JobState::from_word(&row.get::<_, String>(5)?),
        filled: row.get(6)?,
        created: row.get(7)?,
        ended: row.get(8)?,
        files: count(9)?,
        bytes: count(10)?,
        repeated: count(11)?,
        done: count(12)?,
        done_bytes: count(13)?,
        unchanged: count(14)?,
        skipped: count(15)?,
        failed: count(16)?,
        problem: row.get(17)?,
        outage: row.get(18)?,
    })
}

/// A file of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub file: FileId,
    pub size: u64,
    /// Where it was found, relative to the share. Who has nothing but the inode may find nobody who knows its name.
    pub path: PathBuf,
}

/// How files of a task ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// They leave the queue.
    pub files: Vec<FileId>,
    pub done: u64,
    pub done_bytes: u64,
    pub unchanged: u64,
    pub skipped: u64,
    pub failed: u64,
}

pub type StoreResult<T> = rusqlite::Result<T>;

pub struct Store {
    db: Connection,
}

impl Store {
    /// Opens the queue of the share `identity`. One of another share or version is begun anew: its files are not here.
    pub fn open(path: &Path, identity: &str) -> StoreResult<Self> {
        let db = Connection::open(path)?;
        db.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
        db.pragma_update(None, "synchronous", "FULL")?;
        let version: i32 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        let mut known = None;
        if version == VERSION {
            let mut value = db.prepare("SELECT value FROM meta WHERE name = 'identity'")?;
            known = value.query_row([], |row| row.get::<_, String>(0)).optional()?;
        }
        if known.as_deref() != Some(identity) {
            if version != 0 {
                tracing::warn!(path = %path.display(), "tasks of another share or version are dropped");
            }
            db.execute_batch("BEGIN; DROP TABLE IF EXISTS meta; DROP TABLE IF EXISTS job; DROP TABLE IF EXISTS item;")?;
            db.execute_batch(TABLES)?;
            db.execute("INSERT INTO meta VALUES ('identity', ?1)", [identity])?;
            db.pragma_update(None, "user_version", VERSION)?;
            db.execute_batch("COMMIT")?;
        }
        Ok(Self { db })
    }

    /// A new job, of which no file is known yet.
    pub fn add(&self, kind: &str, paths: &[WirePath], recursive: bool, priority: i64, now: i64) -> StoreResult<i64> {
        self.db.execute(
            "DELETE FROM job WHERE state IN ('done', 'cancelled') AND id <= (SELECT max(id) FROM job) - ?1",
            [ENDED_MAX],
        )?;
        let paths = serde_json::to_string(paths).unwrap_or_default();
        self.db.execute(
            "INSERT INTO job (kind, paths, recursive, priority, state, created) VALUES (?1, ?2, ?3, ?4, 'waiting', ?5)",
            params![kind, paths, recursive, priority, now],
        )?;
        Ok(self.db.last_insert_rowid())
    }

    /// Files of a job, at most a task. One that is in the queue for the same already becomes this job's if the other comes later or is paused; else it stays where it is. `false`:
    /// the job is over.
    pub fn fill(&mut self, job: i64, kind: &str, items: &[Item]) -> StoreResult<bool> {
        let Some(found) = self.job(job)?.filter(|job| !job.state.is_over()) else { return Ok(false) };
        let turn = self.db.transaction()?;
        let (mut added, mut bytes) = (0, 0);
        {
            let mut last = turn.prepare_cached("SELECT coalesce(max(task), 0) + 1 FROM item WHERE job = ?1")?;
            let task: i64 = last.query_row([found.id], |row| row.get(0))?;
            let mut put = turn.prepare_cached("INSERT OR IGNORE INTO item VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?;
            let mut other = turn.prepare_cached(
                "SELECT job.id FROM item JOIN job ON job.id = item.job WHERE item.kind = ?1 AND item.ino = ?2 AND item.birth = ?3 \
                 AND job.id <> ?4 AND (job.state = 'paused' OR job.priority < ?5)",
            )?;
            let mut take = turn.prepare_cached(
                "UPDATE item SET job = ?4, task = ?5, size = ?6, path = ?7 WHERE kind = ?1 AND ino = ?2 AND birth = ?3",
            )?;
            let mut lose = turn.prepare_cached(
                "UPDATE job SET files = files - 1, bytes = bytes - ?2, repeated = repeated + 1 WHERE id = ?1",
            )?;
            for Item { file, size, path } in items {
                let (ino, birth, size) = (file.ino as i64, file.birth as i64, *size as i64);
                let path = path.as_os_str().as_bytes();
                let mut one = put.execute(params![kind, ino, birth, job, task, size, path])?;
                if one == 0 && found.state != JobState::Paused {
                    let from =
                        other.query_row(params![kind, ino, birth, job, found.priority], |row| row.get::<_, i64>(0));
                    if let Some(from) = from.optional()? {
                        one = take.execute(params![kind, ino, birth, job, task, size, path])?;
                        lose.execute([from, size])?;
                    }
                }
                added += one as i64;
                bytes += one as i64 * size;
            }
        }
        turn.execute(
            "UPDATE job SET files = files + ?2, bytes = bytes + ?3, repeated = repeated + ?4 WHERE id = ?1",
            params![job, added, bytes, items.len() as i64 - added],
        )?;
        turn.commit()?;
        Ok(true)
    }

    /// All files of a job are known; `problem`: what of its paths could not be read.
    pub fn filled(&self, job: i64, problem: Option<&str>) -> StoreResult<()> {
        self.db.execute(
            "UPDATE job SET filled = 1, problem = coalesce(?2, problem) WHERE id = ?1",
            params![job, problem],
        )?;
        Ok(())
    }

    /// Jobs of which not all files are known, as a start finds them.
    pub fn unfilled(&self) -> StoreResult<Vec<Job>> {
        let sql = format!("SELECT {JOB} FROM job WHERE filled = 0 AND state IN ('waiting', 'paused') ORDER BY id");
        self.db.prepare(&sql)?.query_map([], job_of)?.collect()
    }

    /// The files of the next task, at most `limit`: of the job with the highest priority, the oldest of those.
    pub fn next(&self, limit: usize) -> StoreResult<Option<(Job, Vec<Item>)>> {
        let sql = format!(
            "SELECT {JOB} FROM job WHERE state = 'waiting' AND EXISTS (SELECT 1 FROM item WHERE item.job = job.id) \
             ORDER BY priority DESC, id LIMIT 1"
        );
        let Some(job) = self.db.prepare_cached(&sql)?.query_row([], job_of).optional()? else { return Ok(None) };
        let mut items = self.db.prepare_cached(
            "SELECT ino, birth, size, path FROM item WHERE job = ?1 AND task = (SELECT min(task) FROM item WHERE job = ?1) LIMIT ?2",
        )?;
        let item = |row: &rusqlite::Row<'_>| {
            let file = FileId { ino: row.get::<_, i64>(0)? as u64, birth: row.get::<_, i64>(1)? as u64 };
            let path = OsStr::from_bytes(row.get_ref(3)?.as_blob()?);
            Ok(Item { file, size: row.get::<_, i64>(2)? as u64, path: path.into() })
        };
        let items = items
            .query_map(params![job.id, i64::try_from(limit).unwrap_or(i64::MAX)], item)?
            .collect::<Result<_, _>>()?;
        Ok(Some((job, items)))
    }

    /// What became of files of a task; `outage`: why the others of it did not end.
    pub fn end(&mut self, job: &Job, ended: &Ended, outage: Option<&str>) -> StoreResult<()> {
        let turn = self.db.transaction()?;
        {
            let mut gone =
                turn.prepare_cached("DELETE FROM item WHERE kind = ?1 AND ino = ?2 AND birth = ?3 AND job = ?4")?;
            for file in &ended.files {
                gone.execute(params![job.kind, file.ino as i64, file.birth as i64, job.id])?;
            }
        }
        turn.execute(
            "UPDATE job SET done = done + ?2, done_bytes = done_bytes + ?3, unchanged = unchanged + ?4, skipped = skipped + ?5, \
             failed = failed + ?6, outage = ?7 WHERE id = ?1",
            params![
                job.id,
                ended.done as i64,
                ended.done_bytes as i64,
                ended.unchanged as i64,
                ended.skipped as i64,
                ended.failed as i64,
                outage
            ],
        )?;
        turn.commit()
    }

    /// Ends the jobs that have no files left; how many.
    pub fn end_jobs(&self, now: i64) -> StoreResult<usize> {
        self.db.execute(
            "UPDATE job SET state = 'done', ended = ?1 WHERE state = 'waiting' AND filled = 1 \
             AND NOT EXISTS (SELECT 1 FROM item WHERE item.job = job.id)",
            [now],
        )
    }

    /// Changes a job that is not over; `false`: there is none such.
    pub fn set_state(&mut self, job: i64, state: JobState, now: i64) -> StoreResult<bool> {
        let turn = self.db.transaction()?;
        let ended = state.is_over().then_some(now);
        let changed = turn.execute(
            "UPDATE job SET state = ?2, ended = ?3 WHERE id = ?1 AND state IN ('waiting', 'paused')",
            params![job, state.as_str(), ended],
        )?;
        if changed > 0 && state.is_over() {
            turn.execute("DELETE FROM item WHERE job = ?1", [job])?;
        }
        turn.commit()?;
        Ok(changed > 0)
    }

    pub fn set_priority(&self, job: i64, priority: i64) -> StoreResult<bool> {
        let changed = self.db.execute(
            "UPDATE job SET priority = ?2 WHERE id = ?1 AND state IN ('waiting', 'paused')",
            params![job, priority],
        )?;
        Ok(changed > 0)
    }

    pub fn job(&self, id: i64) -> StoreResult<Option<Job>> {
        let sql = format!("SELECT {JOB} FROM job WHERE id = ?1");
        self.db.prepare_cached(&sql)?.query_row([id], job_of).optional()
    }

    /// Jobs that have a file in the queue: id, kind and state.
    pub fn of_file(&self, file: FileId) -> StoreResult<Vec<(i64, String, JobState)>> {
        // With the kinds (`run::kind_of`) named the primary key serves.
        let mut jobs = self.db.prepare_cached(
            "SELECT job.id, job.kind, job.state FROM item JOIN job ON job.id = item.job \
             WHERE item.kind IN ('migrate', 'archive', 'release', 'recall') AND item.ino = ?1 AND item.birth = ?2 ORDER BY job.id",
        )?;
        let job =
            |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, JobState::from_word(&row.get::<_, String>(2)?)));
        jobs.query_map([file.ino as i64, file.birth as i64], job)?.collect()
    }

    /// Jobs that wait and that are paused, and files of both that have not ended.
    pub fn lengths(&self) -> StoreResult<(u64, u64, u64)> {
        let sql = "SELECT count(*) FILTER (WHERE state = 'waiting'), count(*) FILTER (WHERE state = 'paused'), \
                   coalesce(sum(files - done - unchanged - skipped - failed), 0) FROM job WHERE state IN ('waiting', 'paused')";
        let count = |row: &rusqlite::Row<'_>, at| row.get::<_, i64>(at).map(|count| count.max(0) as u64);
        self.db.prepare_cached(sql)?.query_row([], |row| Ok((count(row, 0)?, count(row, 1)?, count(row, 2)?)))
    }

    /// Jobs, in the order in which they are carried out; with `all` also those that are over, the newest first.
    pub fn jobs(&self, all: bool) -> StoreResult<Vec<Job>> {
        let over = if all { "" } else { "WHERE state IN ('waiting', 'paused')" };
        let sql = format!("SELECT {JOB} FROM job {over} ORDER BY ended IS NOT NULL, ended DESC, priority DESC, id");
        self.db.prepare(&sql)?.query_map([], job_of)?.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::rate::TASK_FILES;
    use super::*;

    fn items(from: u64, count: u64) -> Vec<Item> {
        (from..from + count)
            .map(|ino| Item { file: FileId { ino, birth: 1 }, size: 10, path: format!("d/{ino}").into() })
            .collect()
    }

    fn add(store: &mut Store, kind: &str, priority: i64, files: &[Item]) -> i64 {
        let job = store.add(kind, &[], true, priority, 5).unwrap();
        for some in files.chunks(TASK_FILES) {
            assert!(store.fill(job, kind, some).unwrap());
        }
        store.filled(job, None).unwrap();
        job
    }

    #[test]
    fn a_queue_of_any_length_is_handed_out_in_tasks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tasks");
        let mut store = Store::open(&path, "1-2").unwrap();
        let job = add(&mut store, "migrate", 0, &items(1, 10_000));
        let (mut seen, mut tasks) = (0, 0);
        while let Some((found, files)) = store.next(TASK_FILES).unwrap() {
            assert_eq!(found.id, job);
            assert!(files.len() <= TASK_FILES, "{}", files.len());
            // A restart in the midst of it changes nothing.
            if tasks == 7 {
                store = Store::open(&path, "1-2").unwrap();
                assert_eq!(store.next(TASK_FILES).unwrap().unwrap().1, files);
            }
            let ended = Ended {
                files: files.iter().map(|item| item.file).collect(),
                done: files.len() as u64,
                ..Ended::default()
            };
            store.end(&found, &ended, None).unwrap();
            (seen, tasks) = (seen + files.len(), tasks + 1);
        }
        assert_eq!((seen, tasks), (10_000, 20));
        assert_eq!(store.end_jobs(9).unwrap(), 1);
        let job = store.job(job).unwrap().unwrap();
        assert_eq!(
            (job.state, job.files, job.bytes, job.done, job.ended),
            (JobState::Done, 10_000, 100_000, 10_000, Some(9))
        );
        assert!(store.jobs(false).unwrap().is_empty() && store.jobs(true).unwrap().len() == 1);
        drop(store);
        let mut store = Store::open(&path, "1-2").unwrap();
        // Smaller tasks than the lots that were queued.
        add(&mut store, "migrate", 0, &items(1, 600));
        assert_eq!(store.next(7).unwrap().unwrap().1, items(1, 7));
        drop(store);
        assert!(Store::open(&path, "3-4").unwrap().jobs(true).unwrap().is_empty(), "of another share");
    }

    #[test]
    fn a_file_is_queued_once_for_each_kind_and_jobs_go_by_priority() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(&dir.path().join("tasks"), "1-2").unwrap();
        let first = add(&mut store, "recall", 0, &items(1, 5));
        let again = add(&mut store, "recall", 0, &items(3, 5));
        let other = add(&mut store, "release", 7, &items(1, 5));
        let job = |store: &Store, id| store.job(id).unwrap().unwrap();
        assert_eq!((job(&store, again).files, job(&store, again).repeated), (2, 3));
        assert_eq!((job(&store, other).files, job(&store, other).repeated), (5, 0));
        assert_eq!(store.next(TASK_FILES).unwrap().unwrap().0.id, other);
        assert!(store.set_state(other, JobState::Paused, 6).unwrap());
        assert_eq!(store.next(TASK_FILES).unwrap().unwrap().0.id, first);
        assert!(store.set_priority(again, 1).unwrap());
        assert_eq!(store.next(TASK_FILES).unwrap().unwrap().0.id, again);
        // Cancelled, its files can be queued again; what comes late for it is not taken.
        assert!(store.set_state(first, JobState::Cancelled, 6).unwrap());
        assert!(!store.fill(first, "recall", &items(50, 1)).unwrap());
        assert!(!store.set_state(first, JobState::Waiting, 6).unwrap());
        let third = add(&mut store, "recall", 0, &items(1, 2));
        assert_eq!(job(&store, third).files, 2);
        assert!(store.set_state(other, JobState::Waiting, 6).unwrap());
        assert_eq!(store.next(TASK_FILES).unwrap().unwrap().0.id, other);
        assert_eq!(store.end_jobs(8).unwrap(), 0);
    }

    #[test]
    fn who_is_more_urgent_takes_files_over() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(&dir.path().join("tasks"), "1-2").unwrap();
        let slow = add(&mut store, "recall", 0, &items(1, 10));
        let fast = add(&mut store, "recall", 3, &items(4, 4));
        let counts = |store: &Store, id| {
            let job = store.job(id).unwrap().unwrap();
            (job.files, job.bytes, job.repeated)
        };
        assert_eq!((counts(&store, slow), counts(&store, fast)), ((6, 60, 4), (4, 40, 0)));
        let (job, files) = store.next(TASK_FILES).unwrap().unwrap();
        assert_eq!((job.id, files), (fast, items(4, 4)));
        // A paused one gives up what is asked for now, whatever its priority.
        assert!(store.set_state(fast, JobState::Paused, 6).unwrap());
        let third = add(&mut store, "recall", 0, &items(4, 1));
        assert_eq!((counts(&store, fast), counts(&store, third)), ((3, 30, 1), (1, 10, 0)));
        // Asked for twice in one job, it is one file.
        assert!(store.fill(third, "recall", &items(4, 1)).unwrap());
        assert_eq!(counts(&store, third), (1, 10, 1));
    }
}
