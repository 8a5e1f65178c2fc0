//! What a side of a metadata sync must remember beside what is in the share: which inode has which id, where a numbering is, what was refused,
//! which directories are still to be compared.
//!
//! Ids are in the share as well ([`crate::capture::id`]), so a lost book is made again by a walk. A batch is kept here from before it is
//! applied until it is: after a crash it is applied once more, and every inode that it made is in the book again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use super::{SyncError, SyncResult};
use crate::types::{FileId, Inode, PairFileId, RawHandle};

/// Raised whenever the tables change.
const VERSION: i64 = 1;
/// Marks the file as ours in its header ("tsyn").
const APPLICATION_ID: i64 = 0x7473_796e;
const BUSY_WAIT: Duration = Duration::from_millis(500);

const TABLES: &str = "
CREATE TABLE value (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE inode (id BLOB PRIMARY KEY, ino INTEGER NOT NULL, birth INTEGER NOT NULL, handle_kind INTEGER NOT NULL, handle BLOB NOT NULL,
    origin_ino INTEGER NOT NULL, origin_birth INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE refused (dir BLOB NOT NULL, name BLOB NOT NULL, why TEXT NOT NULL, conflict INTEGER NOT NULL, since INTEGER NOT NULL,
    PRIMARY KEY (dir, name)) WITHOUT ROWID;
-- What lost its name, and where it had it.
CREATE TABLE nameless (id BLOB PRIMARY KEY, dir BLOB NOT NULL, name BLOB NOT NULL) WITHOUT ROWID;
-- Directories that the comparison under way has yet to tell.
CREATE TABLE todo (dry INTEGER NOT NULL, ino INTEGER NOT NULL, birth INTEGER NOT NULL, handle_kind INTEGER NOT NULL, handle BLOB NOT NULL,
    PRIMARY KEY (dry, ino)) WITHOUT ROWID;
";

/// An inode of this side that the other side has too.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    pub node: Inode,
    /// Which inode it is at the master.
    pub origin: FileId,
}

/// A name that is not as the master says.
#[derive(Clone, Debug)]
pub struct RefusedName {
    pub dir: PairFileId,
    pub name: Vec<u8>,
    pub why: String,
    pub conflict: bool,
    /// Seconds since 1970.
    pub since: i64,
}

pub struct Book {
    path: PathBuf,
    db: Connection,
}

fn number(n: u64) -> i64 {
    n as i64
}

fn id_of(bytes: &[u8]) -> rusqlite::Result<PairFileId> {
    bytes.try_into().map(PairFileId).map_err(|_| rusqlite::Error::InvalidQuery)
}

fn node_of(ino: i64, birth: i64, kind: i32, handle: &[u8]) -> rusqlite::Result<Inode> {
    let handle = RawHandle::new(kind, handle).ok_or(rusqlite::Error::InvalidQuery)?;
    Ok(Inode { id: FileId { ino: ino as u64, birth: birth as u64 }, handle })
}

impl Book {
    /// Opens the book of the share whose root is `root`; whether its inodes are all there. One of another share is begun anew.
    pub fn open(path: &Path, root: FileId) -> SyncResult<(Self, bool)> {
        let io = |error: std::io::Error| SyncError::Book { path: path.to_owned(), reason: error.to_string() };
        use std::os::unix::fs::OpenOptionsExt;
        // Private: it names everybody's files. SQLite gives -wal the same mode.
        let made =
            std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        made.map_err(io)?;
        let book = Self { path: path.to_owned(), db: Connection::open(path).map_err(|error| worded(path, &error))? };
        book.prepare().map_err(|error| worded(path, &error))?;
        let version = book.db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0));
        if version.map_err(|error| worded(path, &error))? != VERSION {
            let reason = "is of another version of tierfs: use that one".to_owned();
            return Err(SyncError::Book { path: path.to_owned(), reason });
        }
        if let Some(parent) = path.parent() {
            std::fs::File::open(parent).and_then(|dir| dir.sync_all()).map_err(io)?;
        }
        let identity = root.to_string().into_bytes();
        if book.value("identity")?.is_some_and(|known| known != identity) {
            tracing::warn!(path = %path.display(), "the book of the metadata sync is of another share: begun anew");
            book.run(
                "DELETE FROM inode; DELETE FROM refused; DELETE FROM nameless; DELETE FROM todo; DELETE FROM value;",
            )?;
        }
        book.set("identity", &identity)?;
        let whole = book.value("whole")?.is_some();
        Ok((book, whole))
    }

    fn prepare(&self) -> rusqlite::Result<()> {
        let db = &self.db;
        db.busy_timeout(BUSY_WAIT)?;
        db.set_prepared_statement_cache_capacity(32);
        db.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        db.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
        db.pragma_update(None, "synchronous", "FULL")?;
        if db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))? == 0 {
            db.execute_batch("BEGIN IMMEDIATE")?;
            db.execute_batch(TABLES)?;
            db.pragma_update(None, "application_id", APPLICATION_ID)?;
            db.pragma_update(None, "user_version", VERSION)?;
            db.execute_batch("COMMIT")?;
        }
        Ok(())
    }

    fn fault(&self) -> impl Fn(rusqlite::Error) -> SyncError + '_ {
        |error| worded(&self.path, &error)
    }

    pub fn run(&self, sql: &str) -> SyncResult<()> {
        self.db.execute_batch(sql).map_err(self.fault())
    }

    /// All that `work` writes, or nothing of it.
    pub fn batch<T>(&mut self, work: impl FnOnce(&mut Self) -> SyncResult<T>) -> SyncResult<T> {
        self.run("BEGIN IMMEDIATE")?;
        let done = work(self).and_then(|done| self.run("COMMIT").map(|()| done));
        if done.is_err() {
            // After a failed COMMIT there may be nothing to roll back.
            let _ = self.run("ROLLBACK");
        }
        done
    }

    pub fn value(&self, name: &str) -> SyncResult<Option<Vec<u8>>> {
        let mut query = self.db.prepare_cached("SELECT value FROM value WHERE name = ?1").map_err(self.fault())?;
        query.query_row([name], |row| row.get(0)).optional().map_err(self.fault())
    }

    pub fn set(&self, name: &str, value: &[u8]) -> SyncResult<()> {
        let sql = "INSERT INTO value VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = excluded.value";
        self.db.prepare_cached(sql).and_then(|mut sql| sql.execute(params![name, value])).map_err(self.fault())?;
        Ok(())
    }

    pub fn unset(&self, name: &str) -> SyncResult<()> {
        self.db.execute("DELETE FROM value WHERE name = ?1", [name]).map_err(self.fault())?;
        Ok(())
    }

    /// A number kept under a name; 0 if there is none.
    pub fn number(&self, name: &str) -> SyncResult<u64> {
        Ok(self.value(name)?.and_then(|stored| Some(u64::from_be_bytes(stored.try_into().ok()?))).unwrap_or(0))
    }

    pub fn set_number(&self, name: &str, value: u64) -> SyncResult<()> {
        self.set(name, &value.to_be_bytes())
    }

    pub fn known(&self, id: PairFileId) -> SyncResult<Option<Known>> {
        let sql = "SELECT ino, birth, handle_kind, handle, origin_ino, origin_birth FROM inode WHERE id = ?1";
        let mut query = self.db.prepare_cached(sql).map_err(self.fault())?;
        let found = query.query_row([&id.0[..]], |row| {
            let handle: Vec<u8> = row.get(3)?;
            let origin = FileId { ino: row.get::<_, i64>(4)? as u64, birth: row.get::<_, i64>(5)? as u64 };
            Ok(Known { node: node_of(row.get(0)?, row.get(1)?, row.get(2)?, &handle)?, origin })
        });
        found.optional().map_err(self.fault())
    }

    pub fn put(&self, id: PairFileId, node: &Inode, origin: FileId) -> SyncResult<()> {
        let sql = "INSERT OR REPLACE INTO inode VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
        let values = params![
            &id.0[..],
            number(node.id.ino),
            number(node.id.birth),
            node.handle.kind(),
            node.handle.bytes(),
            number(origin.ino),
            number(origin.birth)
        ];
        self.db.prepare_cached(sql).and_then(|mut sql| sql.execute(values)).map_err(self.fault())?;
        Ok(())
    }

    pub fn forget(&self, id: PairFileId) -> SyncResult<()> {
        for sql in ["DELETE FROM inode WHERE id = ?1", "DELETE FROM nameless WHERE id = ?1"] {
            self.db.prepare_cached(sql).and_then(|mut sql| sql.execute([&id.0[..]])).map_err(self.fault())?;
        }
        Ok(())
    }

    /// Inodes known to both sides.
    pub fn inodes(&self) -> SyncResult<u64> {
        self.db
            .query_row("SELECT count(*) FROM inode", [], |row| row.get::<_, i64>(0))
            .map(|n| n as u64)
            .map_err(self.fault())
    }

    pub fn refuse(&self, refused: &RefusedName) -> SyncResult<()> {
        let sql = "INSERT INTO refused VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (dir, name) DO UPDATE SET why = excluded.why, \
                   conflict = excluded.conflict";
        let RefusedName { dir, name, why, conflict, since } = refused;
        let values = params![&dir.0[..], name, why, conflict, since];
        self.db.prepare_cached(sql).and_then(|mut sql| sql.execute(values)).map_err(self.fault())?;
        Ok(())
    }

    /// A name is as the master says, or the master says nothing of it.
    pub fn accept(&self, dir: PairFileId, name: &[u8]) -> SyncResult<()> {
        let sql = "DELETE FROM refused WHERE dir = ?1 AND name = ?2";
        let values = params![&dir.0[..], name];
        self.db.prepare_cached(sql).and_then(|mut sql| sql.execute(values)).map_err(self.fault())?;
        Ok(())
    }

    /// What was refused: up to `max`, and how many there are.
    pub fn refused(&self, max: usize) -> SyncResult<(Vec<RefusedName>, u64)> {
        let sql = "SELECT dir, name, why, conflict, since FROM refused ORDER BY since, dir, name LIMIT ?1";
        let mut query = self.db.prepare(sql).map_err(self.fault())?;
        let rows = query.query_map([max as i64], |row| {
            let dir: Vec<u8> = row.get(0)?;
            let (name, why, conflict, since) = (row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?);
            Ok(RefusedName { dir: id_of(&dir)?, name, why, conflict, since })
        });
        let rows = rows.and_then(Iterator::collect).map_err(self.fault())?;
        let all = self.db.query_row("SELECT count(*) FROM refused", [], |row| row.get::<_, i64>(0));
        Ok((rows, all.map_err(self.fault())? as u64))
    }

    /// An inode lost its name.
    pub fn unnamed(&self, id: PairFileId, dir: PairFileId, name: &[u8]) -> SyncResult<()> {
        let sql = "INSERT OR REPLACE INTO nameless VALUES (?1, ?2, ?3)";
        let values = params![&id.0[..], &dir.0[..], name];
        self.db.prepare_cached(sql).and_then(|mut sql| sql.execute(values)).map_err(self.fault())?;
        Ok(())
    }

    pub fn named(&self, id: PairFileId) -> SyncResult<()> {
        let sql = "DELETE FROM nameless WHERE id = ?1";
        self.db.prepare_cached(sql).and_then(|mut sql| sql.execute([&id.0[..]])).map_err(self.fault())?;
        Ok(())
    }

    /// Where it had its last name.
    pub fn last_name(&self, id: PairFileId) -> SyncResult<Option<(PairFileId, Vec<u8>)>> {
        let mut query = self.db.prepare_cached("SELECT dir, name FROM nameless WHERE id = ?1").map_err(self.fault())?;
        let row = query.query_row([&id.0[..]], |row| Ok((id_of(&row.get::<_, Vec<u8>>(0)?)?, row.get(1)?)));
        row.optional().map_err(self.fault())
    }

    /// Up to `max` of those without a name.
    pub fn nameless(&self, max: usize) -> SyncResult<Vec<PairFileId>> {
        let mut query = self.db.prepare_cached("SELECT id FROM nameless LIMIT ?1").map_err(self.fault())?;
        let rows = query.query_map([max as i64], |row| id_of(&row.get::<_, Vec<u8>>(0)?));
        rows.and_then(Iterator::collect).map_err(self.fault())
    }

    pub fn add_todo(&self, dry: bool, node: &Inode) -> SyncResult<()> {
        let sql = "INSERT OR REPLACE INTO todo VALUES (?1, ?2, ?3, ?4, ?5)";
        let values = params![dry, number(node.id.ino), number(node.id.birth), node.handle.kind(), node.handle.bytes()];
        self.db.prepare_cached(sql).and_then(|mut sql| sql.execute(values)).map_err(self.fault())?;
        Ok(())
    }

    /// Some of the directories still to be told, up to `max`.
    pub fn some_todo(&self, dry: bool, max: usize) -> SyncResult<Vec<Inode>> {
        let sql = "SELECT ino, birth, handle_kind, handle FROM todo WHERE dry = ?1 LIMIT ?2";
        let mut query = self.db.prepare_cached(sql).map_err(self.fault())?;
        let rows = query.query_map(params![dry, max as i64], |row| {
            let handle: Vec<u8> = row.get(3)?;
            node_of(row.get(0)?, row.get(1)?, row.get(2)?, &handle)
        });
        rows.and_then(Iterator::collect).map_err(self.fault())
    }

    pub fn drop_todo(&self, dry: bool, node: &Inode) -> SyncResult<()> {
        let values = params![dry, number(node.id.ino)];
        self.db.execute("DELETE FROM todo WHERE dry = ?1 AND ino = ?2", values).map_err(self.fault())?;
        Ok(())
    }

    pub fn clear_todo(&self, dry: bool) -> SyncResult<()> {
        self.db.execute("DELETE FROM todo WHERE dry = ?1", [dry]).map_err(self.fault())?;
        Ok(())
    }
}

fn worded(path: &Path, error: &rusqlite::Error) -> SyncError {
    SyncError::Book { path: path.to_owned(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_another_share_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sync.sqlite");
        let (root, other) = (FileId { ino: 2, birth: 9 }, FileId { ino: 2, birth: 10 });
        let node = Inode { id: FileId { ino: u64::MAX, birth: 7 }, handle: RawHandle::new(-1, &[1, 2]).unwrap() };
        let id = PairFileId([5; 16]);
        {
            let (mut book, whole) = Book::open(&path, root).unwrap();
            assert!(!whole);
            book.set("whole", b"").unwrap();
            book.put(id, &node, root).unwrap();
            book.unnamed(id, PairFileId::ROOT, b"a\xff").unwrap();
            let failed: SyncResult<()> = book.batch(|book| {
                book.set_number("n", 3)?;
                Err(SyncError::Stopped)
            });
            assert!(failed.is_err() && book.number("n").unwrap() == 0);
        }
        {
            let (book, whole) = Book::open(&path, root).unwrap();
            assert!(whole);
            let known = book.known(id).unwrap().unwrap();
            assert_eq!((known.node, known.origin), (node, root));
            assert_eq!(book.last_name(id).unwrap(), Some((PairFileId::ROOT, b"a\xff".to_vec())));
        }
        let (book, whole) = Book::open(&path, other).unwrap();
        assert!(!whole && book.known(id).unwrap().is_none());
    }
}
