//! The SQLite file: opening with all that can be wrong with it, and one method per call about intents (`letters` has the rest).
//!
//! Invariants: the file is never replaced or emptied to get past an error; one process at a time has it open; after a
//! sync that failed nothing more is written (what is on disk is unknown), until it is opened anew.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, ffi, params};

use super::schema::{VERSION, steps_from};
use crate::ports::{Intent, IntentId, IntentKind, JournalError};
use crate::types::{FileId, Inode, ObjectKey, PairName, RawHandle, Timestamp};

/// Marks the file as ours in its header ("tier").
const APPLICATION_ID: i32 = 0x7469_6572;
/// How long another process's hold on the file is waited for.
const BUSY_WAIT: Duration = Duration::from_millis(500);

const UPLOAD: i64 = 0;
const DELETE: i64 = 1;
const SETTLE: i64 = 2;

pub(super) const COLUMNS: &str = "id, pair, key, manifest, ino, birth, handle_kind, handle, kind, at_secs, at_nanos";

/// A failed statement, worded for the administrator.
pub(super) struct Fault(pub(super) JournalError);

pub(super) struct Store {
    path: PathBuf,
    connection: Connection,
    /// Why nothing may be asked any more.
    poison: Option<JournalError>,
    /// Entries of the dead-letter list.
    pub(super) failed_files: u64,
}

impl Store {
    pub(super) fn open(path: &Path) -> Result<Self, JournalError> {
        // The file comes first, private: it names paths of users' files. SQLite gives -wal the same mode.
        let io = |error: std::io::Error| super::failed(path, format!("cannot be opened for writing: {error}"));
        let created = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        created.map_err(io)?;
        let connection = Connection::open(path).map_err(|error| worded(path, &error))?;
        let mut store = Self { path: path.to_owned(), connection, poison: None, failed_files: 0 };
        store.prepare().map_err(|fault| fault.0)?;
        store.count_failed()?;
        // SQLite syncs the directory when it makes the -wal; the file's own name must be durable too.
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(io)?;
        Ok(store)
    }

    fn prepare(&self) -> Result<(), Fault> {
        let db = &self.connection;
        let sql = |error| self.fault(&error);
        db.busy_timeout(BUSY_WAIT).map_err(sql)?;
        db.set_prepared_statement_cache_capacity(32);
        // Exclusive: a second daemon on the same state would undo the first one's uploads.
        db.pragma_update(None, "locking_mode", "EXCLUSIVE").map_err(sql)?;
        // The first access to the contents: here a file that is no database, or a used one, shows.
        let (application, version, tables): (i32, i32, i64) = db
            .query_row(
                "SELECT (SELECT application_id FROM pragma_application_id), (SELECT user_version FROM \
                 pragma_user_version), (SELECT count(*) FROM sqlite_schema)",
                [],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )
            .map_err(sql)?;
        let new = application == 0 && version == 0 && tables == 0;
        if !new && application != APPLICATION_ID {
            return Err(self.refuse("is a database of another program: point tierfs at another state directory".into()));
        }
        let steps = match steps_from(version) {
            Some(steps) if new || version > 0 => steps,
            _ => {
                return Err(self.refuse(format!(
                    "has version {version}, this tierfs knows up to version {VERSION}: use the tierfs that wrote it, or a newer one"
                )));
            }
        };
        let mode: String = db.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0)).map_err(sql)?;
        if !mode.eq_ignore_ascii_case("wal") {
            return Err(
                self.refuse(format!("cannot keep a write-ahead log on its filesystem (SQLite offers {mode:?})"))
            );
        }
        db.pragma_update(None, "synchronous", "FULL").map_err(sql)?;
        db.execute_batch("BEGIN IMMEDIATE").map_err(sql)?;
        if !new {
            let verdict: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(sql)?;
            if verdict != "ok" {
                return Err(self.refuse(damaged(&verdict)));
            }
        }
        // An older file is carried over in one transaction: after a crash it is of one version or the other.
        for step in steps {
            db.execute_batch(step).map_err(sql)?;
        }
        if !steps.is_empty() {
            db.pragma_update(None, "application_id", APPLICATION_ID).map_err(sql)?;
            db.pragma_update(None, "user_version", VERSION).map_err(sql)?;
        }
        db.execute_batch("COMMIT").map_err(sql)
    }

    /// Whether calls may be served at all.
    pub(super) fn usable(&self) -> Result<(), JournalError> {
        self.poison.clone().map_or(Ok(()), Err)
    }

    pub(super) fn begin(&mut self) -> Result<(), JournalError> {
        self.usable()?;
        self.connection.execute_batch("BEGIN IMMEDIATE").map_err(|error| self.note(&error))
    }

    /// After a failure the batch is not stored, or unknown when the sync failed; then the store is poisoned.
    pub(super) fn commit(&mut self) -> Result<(), JournalError> {
        let outcome = self.connection.execute_batch("COMMIT").map_err(|error| self.note(&error));
        if outcome.is_err() {
            self.rollback();
        }
        outcome
    }

    pub(super) fn rollback(&mut self) {
        // SQLite rolls back by itself after some errors (disk full): then there is nothing open any more.
        if self.connection.is_autocommit() {
            return;
        }
        if let Err(error) = self.connection.execute_batch("ROLLBACK") {
            let error = self.note(&error);
            self.poison.get_or_insert(error);
        }
    }

    /// One statement, or a few of one call.
    pub(super) fn run<T>(&mut self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, Fault> {
        work(&self.connection).map_err(|error| Fault(self.note(&error)))
    }

    pub(super) fn close(self) {
        if let Err((_, error)) = self.connection.close() {
            tracing::warn!(path = %self.path.display(), %error, "the journal did not close cleanly; nothing is lost");
        }
    }

    pub(super) fn add(&mut self, intent: &Intent) -> Result<IntentId, Fault> {
        let (kind, at) = match intent.kind {
            IntentKind::Upload => (UPLOAD, None),
            IntentKind::Delete { not_before } => (DELETE, Some(not_before)),
            IntentKind::Settle { mtime } => (SETTLE, Some(mtime)),
        };
        let node = &intent.node;
        let values = params![
            intent.pair.as_str(),
            intent.key.0,
            intent.manifest,
            node.id.ino as i64,
            node.id.birth as i64,
            node.handle.kind(),
            node.handle.bytes(),
            kind,
            at.map(|at| at.secs),
            at.map(|at| at.nanos),
        ];
        let sql = "INSERT INTO intent (pair, key, manifest, ino, birth, handle_kind, handle, kind, at_secs, at_nanos) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
        let stored = self.connection.prepare_cached(sql).and_then(|mut statement| statement.insert(values));
        stored.map(|id| IntentId(id as u64)).map_err(|error| Fault(self.note(&error)))
    }

    /// A settlement stays what it is: its key may be the object its file lives in.
    pub(super) fn set_delete(&mut self, id: IntentId, not_before: Timestamp) -> Result<(), Fault> {
        let sql = "UPDATE intent SET kind = 1, at_secs = ?2, at_nanos = ?3 WHERE id = ?1 AND kind IN (0, 1)";
        let values = params![id.0 as i64, not_before.secs, not_before.nanos];
        let changed = self.connection.prepare_cached(sql).and_then(|mut statement| statement.execute(values));
        changed.map(drop).map_err(|error| Fault(self.note(&error)))
    }

    pub(super) fn remove(&mut self, id: IntentId) -> Result<(), Fault> {
        let sql = "DELETE FROM intent WHERE id = ?1";
        let changed = self.connection.prepare_cached(sql).and_then(|mut statement| statement.execute([id.0 as i64]));
        changed.map(drop).map_err(|error| Fault(self.note(&error)))
    }

    pub(super) fn withdraw(&mut self, key: &ObjectKey) -> Result<(), Fault> {
        let sql = "DELETE FROM intent WHERE key = ?1 AND kind IN (0, 1)";
        let changed = self.connection.prepare_cached(sql).and_then(|mut statement| statement.execute([&key.0]));
        changed.map(drop).map_err(|error| Fault(self.note(&error)))
    }

    pub(super) fn due(
        &mut self,
        pair: &PairName,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<(IntentId, Intent)>, Fault> {
        let sql = format!(
            "SELECT {COLUMNS} FROM intent WHERE pair = ?1 AND kind = 1 AND (at_secs, at_nanos) <= (?2, ?3) \
             ORDER BY at_secs, at_nanos, id LIMIT ?4"
        );
        self.select(&sql, params![pair.as_str(), now.secs, now.nanos, bound(limit)])
    }

    pub(super) fn unfinished(
        &mut self,
        after: Option<IntentId>,
        limit: usize,
    ) -> Result<Vec<(IntentId, Intent)>, Fault> {
        let sql = format!("SELECT {COLUMNS} FROM intent WHERE kind <> 1 AND id > ?1 ORDER BY id LIMIT ?2");
        self.select(&sql, params![after.map_or(0, |id| id.0 as i64), bound(limit)])
    }

    pub(super) fn counts(&mut self) -> Result<(u64, u64), Fault> {
        let sql = "SELECT (SELECT count(*) FROM intent WHERE kind <> 1), (SELECT count(*) FROM intent)";
        let counted = self.connection.query_row(sql, [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)));
        counted
            .map(|(unfinished, all)| (unfinished as u64, (all - unfinished) as u64))
            .map_err(|error| Fault(self.note(&error)))
    }

    pub(super) fn names_pair(&mut self, pair: &PairName) -> Result<bool, Fault> {
        let sql = "SELECT 1 FROM intent WHERE pair = ?1 LIMIT 1";
        let found = self.connection.query_row(sql, [pair.as_str()], |_| Ok(())).optional();
        found.map(|found| found.is_some()).map_err(|error| Fault(self.note(&error)))
    }

    pub(super) fn execute(&mut self, sql: &str, values: impl rusqlite::Params) -> Result<(), Fault> {
        let changed = self.connection.prepare_cached(sql).and_then(|mut statement| statement.execute(values));
        changed.map(drop).map_err(|error| Fault(self.note(&error)))
    }

    pub(super) fn select(
        &mut self,
        sql: &str,
        values: impl rusqlite::Params,
    ) -> Result<Vec<(IntentId, Intent)>, Fault> {
        let rows = self.connection.prepare_cached(sql).and_then(|mut statement| {
            statement.query_map(values, |row| Ok((row.get::<_, i64>(0)?, decode(row)?)))?.collect::<Result<Vec<_>, _>>()
        });
        let rows = rows.map_err(|error| Fault(self.note(&error)))?;
        rows.into_iter()
            .map(|(id, note)| match note {
                Some(intent) => Ok((IntentId(id as u64), intent)),
                None => Err(self.refuse(damaged(&format!("note {id} makes no sense")))),
            })
            .collect()
    }

    /// Words the error, and poisons the store where the state of the file is unknown after it.
    fn note(&mut self, error: &rusqlite::Error) -> JournalError {
        let worded = worded(&self.path, error);
        if leaves_unknown(error) {
            self.poison.get_or_insert_with(|| worded.clone());
        }
        worded
    }

    fn fault(&self, error: &rusqlite::Error) -> Fault {
        Fault(worded(&self.path, error))
    }

    pub(super) fn refuse(&self, reason: String) -> Fault {
        Fault(super::failed(&self.path, reason))
    }
}

/// `None`: the row breaks a rule of the schema.
fn decode(row: &Row<'_>) -> rusqlite::Result<Option<Intent>> {
    let pair: String = row.get(1)?;
    let key = ObjectKey(row.get(2)?);
    let handle: Vec<u8> = row.get(7)?;
    let Some(handle) = RawHandle::new(row.get(6)?, &handle) else { return Ok(None) };
    let id = FileId { ino: row.get::<_, i64>(4)? as u64, birth: row.get::<_, i64>(5)? as u64 };
    let kind = match row.get::<_, i64>(8)? {
        UPLOAD => IntentKind::Upload,
        DELETE => IntentKind::Delete { not_before: Timestamp { secs: row.get(9)?, nanos: row.get(10)? } },
        SETTLE => IntentKind::Settle { mtime: Timestamp { secs: row.get(9)?, nanos: row.get(10)? } },
        _ => return Ok(None),
    };
    let (manifest, node) = (row.get(3)?, Inode { id, handle });
    Ok(pair.parse().ok().map(|pair| Intent { pair, key, manifest, node, kind }))
}

pub(super) fn bound(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// A sync that failed may have dropped pages the kernel will never write; damage is damage. Neither heals by retrying.
fn leaves_unknown(error: &rusqlite::Error) -> bool {
    let Some(code) = error.sqlite_error() else { return false };
    matches!(code.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
        || [ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_IOERR_DIR_FSYNC].contains(&code.extended_code)
}

pub(super) fn damaged(what: &str) -> String {
    format!(
        "is damaged ({what}); it was left untouched. Restore it from a backup, or move it and its -wal file away and \
         start again: no file content is lost, but objects whose removal it noted stay in the bucket"
    )
}

fn worded(path: &Path, error: &rusqlite::Error) -> JournalError {
    let reason = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => "its disk is full: free some space, nothing that was noted is lost".to_owned(),
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
            format!(
                "cannot be written ({error}): check its directory's permissions, and that its disk is not read-only"
            )
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "is in use by another process: is another tierfs running on the same state directory?".to_owned()
        }
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => damaged(&error.to_string()),
        Some(ErrorCode::SystemIoFailure) => {
            format!("its disk failed ({error}): look at the kernel's log, then restart the mount")
        }
        _ => error.to_string(),
    };
    super::failed(path, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deletion(key: &str, secs: i64) -> Intent {
        let kind = IntentKind::Delete { not_before: Timestamp { secs, nanos: 0 } };
        let node = Inode { id: FileId { ino: 1, birth: 2 }, handle: RawHandle::new(1, &[1, 2, 3]).unwrap() };
        Intent { pair: "p".parse().unwrap(), key: ObjectKey(key.into()), manifest: false, node, kind }
    }

    fn error_of<T>(outcome: Result<T, Fault>) -> JournalError {
        match outcome {
            Ok(_) => panic!("should have failed"),
            Err(Fault(error)) => error,
        }
    }

    #[test]
    fn a_full_disk_is_named_and_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(&dir.path().join("journal.db")).unwrap();
        store.add(&deletion("kept", 1)).map_err(|f| f.0).unwrap();
        let pages: i64 = store.connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
        store.connection.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(())).unwrap();
        store.begin().unwrap();
        let error = (0..100_000).find_map(|n| store.add(&deletion(&format!("{n:01000}"), n)).err()).unwrap().0;
        assert!(error.reason.contains("disk is full"), "{error}");
        store.rollback();
        store.connection.query_row("PRAGMA max_page_count = 100000", [], |_| Ok(())).unwrap();
        assert_eq!(store.counts().map_err(|f| f.0).unwrap(), (0, 1));
        store.begin().unwrap();
        store.add(&deletion("later", 1)).map_err(|f| f.0).unwrap();
        store.commit().unwrap();
        assert_eq!(store.counts().map_err(|f| f.0).unwrap(), (0, 2));
    }

    #[test]
    fn a_read_only_database_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(&dir.path().join("journal.db")).unwrap();
        store.connection.pragma_update(None, "query_only", "ON").unwrap();
        let error = error_of(store.add(&deletion("k", 1)));
        assert!(error.to_string().contains("cannot be written") && error.reason.contains("read-only"), "{error}");
    }

    #[test]
    fn a_failed_sync_poisons() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(&dir.path().join("journal.db")).unwrap();
        let failed_sync = rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_IOERR_FSYNC), None);
        store.note(&failed_sync);
        assert!(store.begin().unwrap_err().reason.contains("restart the mount"));
        assert!(store.usable().is_err());
    }

    #[test]
    fn durability_settings_are_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("journal.db")).unwrap();
        let pragma = |name: &str| store.connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0));
        assert_eq!(pragma("synchronous").unwrap(), 2);
        assert_eq!(pragma("application_id").unwrap(), i64::from(APPLICATION_ID));
        assert_eq!(pragma("user_version").unwrap(), i64::from(VERSION));
    }

    #[test]
    fn queries_use_their_indexes() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("journal.db")).unwrap();
        let plan = |sql: &str| -> String {
            store.connection.query_row(&format!("EXPLAIN QUERY PLAN {sql}"), [], |row| row.get(3)).unwrap()
        };
        let due = plan(
            "SELECT * FROM intent WHERE pair = 'p' AND kind = 1 AND (at_secs, at_nanos) <= (5, 5) \
             ORDER BY at_secs, at_nanos, id LIMIT 5",
        );
        assert!(due.contains("intent_by_pair") && due.contains("at_secs"), "{due}");
        let unfinished = plan("SELECT * FROM intent WHERE kind <> 1 AND id > 5 ORDER BY id LIMIT 5");
        assert!(unfinished.contains("intent_unfinished"), "{unfinished}");
        let named = plan("SELECT 1 FROM intent WHERE key = 'k' LIMIT 1");
        assert!(named.contains("intent_by_key"), "{named}");
        let oldest = plan("SELECT id FROM failed ORDER BY last_secs, last_nanos, id LIMIT 1");
        assert!(oldest.contains("failed_by_age"), "{oldest}");
    }
}
