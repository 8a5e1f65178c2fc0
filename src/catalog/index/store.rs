//! The index's SQLite file: its tables, and what is written to them.
//!
//! It holds nothing that cannot be had again but counts of opens, so a commit is not synced, only what a checkpoint of the log needs (and while it
//! is filled for the first time, nothing). A file that is damaged, of another version or of another share is thrown away.
//!
//! Invariants: `f` has one row an inode, with one of its names; a file with several has all of them in `links`. `parent` 0: no name is known
//! at present; such a row keeps its counts until it is swept, in case the name turns up elsewhere.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use rusqlite::{Connection, OptionalExtension, Statement, params, params_from_iter};

use super::during::During;
use super::row::{FACTS, Facts, Name, heated, state_number, state_of};
use super::{IndexError, IndexResult, coldest, print, sql};
use crate::types::{FileId, FileState, StateTotal};

/// Raised whenever the tables change: older files are made anew.
const VERSION: &str = "4";
/// Bytes of pages kept in memory by the writer.
const CACHE_KIB: i64 = 64 << 10;
/// `parent` of the share's root.
pub(super) const NO_PARENT: i64 = -1;

const TABLES: &str = "
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE f (
    ino INTEGER PRIMARY KEY, birth INTEGER NOT NULL, kind TEXT NOT NULL, mode INTEGER NOT NULL, nlink INTEGER NOT NULL,
    uid INTEGER NOT NULL, gid INTEGER NOT NULL, project INTEGER NOT NULL, size INTEGER NOT NULL, blocks INTEGER NOT NULL,
    atime INTEGER NOT NULL, mtime INTEGER NOT NULL, ctime_ns INTEGER NOT NULL, btime INTEGER NOT NULL, sealed INTEGER NOT NULL,
    state INTEGER NOT NULL, pinned INTEGER NOT NULL, pair TEXT, generation INTEGER NOT NULL,
    parent INTEGER NOT NULL, name NOT NULL,
    accesses INTEGER NOT NULL DEFAULT 0, heat REAL, accessed INTEGER, recalled INTEGER, recalled_by TEXT, wanted_by TEXT
);
CREATE TABLE links (parent INTEGER NOT NULL, name NOT NULL, ino INTEGER NOT NULL, PRIMARY KEY (parent, name)) WITHOUT ROWID;
CREATE INDEX links_ino ON links (ino);
-- Directories that the scan under way has yet to read.
CREATE TABLE todo (ino INTEGER PRIMARY KEY, birth INTEGER NOT NULL, handle_kind INTEGER NOT NULL, handle BLOB NOT NULL);
CREATE VIEW files AS SELECT path(ino) AS path, name, kind, size, blocks * 512 AS online,
    CASE WHEN state IN (2, 3) THEN size WHEN state IN (5, 6) THEN max(size - blocks * 512, 0) ELSE 0 END AS offline, state_name(state) AS state, pair, generation, pinned, sealed,
    uid, gid, project, mode, nlink, atime, mtime, ctime_ns / 1000000000 AS ctime, btime,
    accesses, coalesce(heat_now(heat), 0.0) AS heat, accessed, recalled, recalled_by, ino, parent
    FROM f WHERE parent <> 0;
";

const BY_NAME: &str = "
CREATE INDEX IF NOT EXISTS f_name ON f (parent, name);
CREATE INDEX IF NOT EXISTS f_dirs ON f (parent) WHERE kind = 'd';
";

pub(super) struct Store {
    path: PathBuf,
    pub db: Connection,
    pub during: During,
    /// A name was taken from an inode: there may be rows to sweep.
    swept: bool,
}

impl Store {
    /// Opens the index of the share `identity`, or makes a new one.
    pub fn open(path: &Path, identity: &str) -> IndexResult<Self> {
        if path.exists() {
            match Self::open_file(path) {
                Ok(store) if store.fits(identity) => return Ok(store),
                Ok(_) => tracing::info!(path = %path.display(), "the index is of another version or share: made anew"),
                Err(error) => {
                    tracing::warn!(path = %path.display(), "the index cannot be used and is made anew: {error}")
                }
            }
        }
        Self::create(path, identity)
    }

    /// Throws the file away and makes an empty one.
    pub fn create(path: &Path, identity: &str) -> IndexResult<Self> {
        for suffix in ["", "-wal", "-shm"] {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            match std::fs::remove_file(&name) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(IndexError::Io { path: path.to_owned(), error });
                }
                _ => {}
            }
        }
        // Private: it names everybody's files. SQLite gives -wal the same mode.
        use std::os::unix::fs::OpenOptionsExt;
        let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        made.map_err(|error| IndexError::Io { path: path.to_owned(), error })?;
        let store = Self::open_file(path)?;
        store.db.execute_batch(TABLES)?;
        store.db.execute_batch(print::TABLE)?;
        store.db.execute_batch(&print::triggers())?;
        store.set("version", VERSION)?;
        store.set("identity", identity)?;
        Ok(store)
    }

    fn open_file(path: &Path) -> IndexResult<Self> {
        let db = Connection::open(path)?;
        db.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
        db.pragma_update(None, "synchronous", "NORMAL")?;
        db.pragma_update(None, "cache_size", -CACHE_KIB)?;
        db.pragma_update(None, "wal_autocheckpoint", 4_000)?;
        db.busy_timeout(sql::BUSY_WAIT)?;
        db.set_prepared_statement_cache_capacity(64);
        sql::add_functions(&db, path)?;
        Ok(Self { path: path.to_owned(), db, during: During::default(), swept: false })
    }

    fn fits(&self, identity: &str) -> bool {
        let is = |name, wanted: &str| self.get(name).is_ok_and(|value| value.as_deref() == Some(wanted));
        // Nothing of a first filling was synced: after the machine went down, nobody knows what is in the file.
        let sound = !self.is_filling() || is("boot", &boot());
        is("version", VERSION) && is("identity", identity) && sound
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn get(&self, name: &str) -> IndexResult<Option<String>> {
        let mut get = self.db.prepare_cached("SELECT value FROM meta WHERE name = ?1")?;
        Ok(get.query_row([name], |row| row.get(0)).optional()?)
    }

    pub fn get_number(&self, name: &str) -> i64 {
        self.get(name).ok().flatten().and_then(|value| value.parse().ok()).unwrap_or(0)
    }

    pub fn set(&self, name: &str, value: impl std::fmt::Display) -> IndexResult<()> {
        let mut set = self.db.prepare_cached("INSERT OR REPLACE INTO meta VALUES (?1, ?2)")?;
        set.execute(params![name, value.to_string()])?;
        Ok(())
    }

    /// Does `work` in one transaction.
    pub fn batch<T>(&mut self, work: impl FnOnce(&mut Self) -> IndexResult<T>) -> IndexResult<T> {
        self.db.execute_batch("BEGIN IMMEDIATE")?;
        match work(self) {
            Ok(done) => {
                self.db.execute_batch("COMMIT")?;
                Ok(done)
            }
            Err(error) => {
                // What failed is told; that it could not be undone adds nothing.
                let _ = self.db.execute_batch("ROLLBACK");
                Err(error)
            }
        }
    }

    // Filling an empty index.

    /// Whether the table is being filled for the first time: without the index of names, which is made at the end.
    pub fn is_filling(&self) -> bool {
        self.get_number("filling") != 0
    }

    pub fn begin_filling(&self) -> IndexResult<()> {
        self.db.execute_batch("DROP INDEX IF EXISTS f_name; DROP INDEX IF EXISTS f_dirs;")?;
        self.db.execute_batch(coldest::DROP)?;
        self.db.execute_batch(print::NOT_COMING)?;
        self.db.pragma_update(None, "synchronous", "OFF")?;
        self.set("boot", boot())?;
        self.set("filling", 1)
    }

    pub fn end_filling(&self) -> IndexResult<()> {
        self.db.execute_batch(BY_NAME)?;
        self.db.execute_batch(coldest::MAKE)?;
        self.db.execute_batch(print::COMING)?;
        self.db.pragma_update(None, "synchronous", "NORMAL")?;
        self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        self.set("filling", 0)
    }

    /// Adds rows that are not there yet, or are of an earlier attempt.
    pub fn fill<'a>(&self, parent: u64, rows: impl Iterator<Item = (&'a [u8], &'a Facts)>) -> IndexResult<()> {
        let mut put = self.db.prepare_cached(&PUT)?;
        for (name, facts) in rows {
            put_row(&mut put, parent as i64, name, facts)?;
            if facts.has_links() {
                self.add_link(parent, name, facts.id.ino)?;
            }
        }
        Ok(())
    }

    // Names.

    fn add_link(&self, parent: u64, name: &[u8], ino: u64) -> IndexResult<()> {
        let mut link =
            self.db.prepare_cached("INSERT OR REPLACE INTO links (parent, name, ino) VALUES (?1, ?2, ?3)")?;
        link.execute(params![parent as i64, Name(name), ino as i64])?;
        Ok(())
    }

    /// `name` in `parent` is this inode; the one that it was before, if it was another's.
    pub fn put(&mut self, parent: i64, name: &[u8], facts: &Facts) -> IndexResult<Option<u64>> {
        let ino = facts.id.ino as i64;
        let other = {
            let mut other = self.db.prepare_cached("SELECT ino FROM f WHERE parent = ?1 AND name = ?2")?;
            other.query_row(params![parent, Name(name)], |row| row.get::<_, i64>(0)).optional()?
        };
        let before = match other {
            Some(other) if other != ino => self.lose(parent, name)?,
            _ => None,
        };
        if facts.has_links() {
            // The one name that it had so far is not its only one any more.
            let mut first = self.db.prepare_cached(
                "INSERT OR IGNORE INTO links SELECT parent, name, ino FROM f WHERE ino = ?1 AND birth = ?2 AND parent > 0",
            )?;
            first.execute([ino, facts.id.birth as i64])?;
        }
        {
            let mut put = self.db.prepare_cached(&PUT)?;
            put_row(&mut put, parent, name, facts)?;
        }
        if facts.has_links() {
            self.add_link(parent as u64, name, facts.id.ino)?;
        } else {
            let mut none = self.db.prepare_cached("DELETE FROM links WHERE ino = ?1")?;
            none.execute([ino])?;
        }
        Ok(before)
    }

    /// `name` in `parent` is nothing any more, or not what it was; the inode that it was.
    pub fn lose(&mut self, parent: i64, name: &[u8]) -> IndexResult<Option<u64>> {
        self.lose_of(parent, name, None)
    }

    /// As [`Store::lose`], if it was this inode. (After a first filling two may say that they have the name.)
    pub fn lose_of(&mut self, parent: i64, name: &[u8], ino: Option<u64>) -> IndexResult<Option<u64>> {
        let wanted = params![parent, Name(name), ino.map(|ino| ino as i64)];
        let linked: Option<i64> = {
            let mut unlink = self.db.prepare_cached(
                "DELETE FROM links WHERE parent = ?1 AND name = ?2 AND (?3 IS NULL OR ino = ?3) RETURNING ino",
            )?;
            let mut rows = unlink.query(wanted)?;
            rows.next()?.map(|row| row.get(0)).transpose()?
        };
        let first = {
            let mut first = self
                .db
                .prepare_cached("SELECT ino FROM f WHERE parent = ?1 AND name = ?2 AND (?3 IS NULL OR ino = ?3)")?;
            first.query_row(wanted, |row| row.get::<_, i64>(0)).optional()?
        };
        let Some(ino) = first else { return Ok(linked.map(|ino| ino as u64)) };
        let moved = {
            let mut next = self.db.prepare_cached(
                "UPDATE f SET (parent, name) = (SELECT parent, name FROM links WHERE links.ino = ?1 LIMIT 1) \
                 WHERE ino = ?1 AND EXISTS (SELECT 1 FROM links WHERE links.ino = ?1)",
            )?;
            next.execute([ino])?
        };
        if moved == 0 {
            let mut nowhere = self.db.prepare_cached("UPDATE f SET parent = 0 WHERE ino = ?1")?;
            nowhere.execute([ino])?;
            self.swept = true;
        }
        Ok(Some(ino as u64))
    }

    /// Takes away what has no name. Not while a scan runs, which may find one.
    pub fn sweep(&mut self) -> IndexResult<()> {
        if !std::mem::take(&mut self.swept) {
            return Ok(());
        }
        let mut gone = self.db.prepare_cached("DELETE FROM f WHERE parent = 0")?;
        gone.execute([])?;
        Ok(())
    }

    /// After a scan: takes away what it met nowhere, and what is below that. Each directory that has rows is in `prints`.
    pub fn sweep_all(&mut self) -> IndexResult<u64> {
        let mut all = self.db.execute("DELETE FROM f WHERE parent = 0", [])?;
        loop {
            let mut dirs = self.db.prepare_cached(
                "SELECT dir FROM prints WHERE NOT EXISTS (SELECT 1 FROM f WHERE ino = dir AND kind = 'd')",
            )?;
            let dirs: Vec<i64> = dirs.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
            if dirs.is_empty() {
                break;
            }
            for dir in dirs {
                self.db.prepare_cached("DELETE FROM links WHERE parent = ?1")?.execute([dir])?;
                // What has another name keeps its row.
                let mut other = self.db.prepare_cached(
                    "UPDATE f SET (parent, name) = (SELECT parent, name FROM links WHERE links.ino = f.ino LIMIT 1) \
                     WHERE parent = ?1 AND EXISTS (SELECT 1 FROM links WHERE links.ino = f.ino)",
                )?;
                other.execute([dir])?;
                all += self.db.prepare_cached("DELETE FROM f WHERE parent = ?1")?.execute([dir])?;
                self.db.prepare_cached("DELETE FROM prints WHERE dir = ?1")?.execute([dir])?;
            }
        }
        let lost = "DELETE FROM links WHERE NOT EXISTS (SELECT 1 FROM f WHERE f.ino = links.ino)";
        self.db.execute(lost, [])?;
        Ok(all as u64)
    }

    // Inodes.

    /// What is known of an inode's state.
    pub fn state(&self, id: FileId) -> IndexResult<Option<FileState>> {
        let mut state = self.db.prepare_cached("SELECT state FROM f WHERE ino = ?1 AND birth = ?2")?;
        let found = state.query_row([id.ino as i64, id.birth as i64], |row| row.get(0)).optional()?;
        Ok(found.map(state_of))
    }

    /// The inode's attributes and state are these; `false`: it is not in the index.
    pub fn update(&self, facts: &Facts) -> IndexResult<bool> {
        let mut update = self.db.prepare_cached(
            "UPDATE f SET (kind, mode, nlink, uid, gid, size, blocks, atime, mtime, ctime_ns, btime, sealed, state, pinned, pair, generation) = \
             (?3, ?4, ?5, ?6, ?7, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19) WHERE ino = ?1 AND birth = ?2 AND ?8 >= 0",
        )?;
        Ok(update.execute(params_from_iter(facts.values()))? > 0)
    }

    pub fn remove(&self, id: FileId) -> IndexResult<()> {
        let mut remove = self.db.prepare_cached("DELETE FROM f WHERE ino = ?1 AND birth = ?2")?;
        if remove.execute([id.ino as i64, id.birth as i64])? > 0 {
            let mut links = self.db.prepare_cached("DELETE FROM links WHERE ino = ?1")?;
            links.execute([id.ino as i64])?;
        }
        Ok(())
    }

    pub fn opened(&self, id: FileId, opens: u32, at: i64) -> IndexResult<()> {
        let mut heat = self.db.prepare_cached("SELECT heat FROM f WHERE ino = ?1 AND birth = ?2")?;
        let known = heat.query_row([id.ino as i64, id.birth as i64], |row| row.get::<_, Option<f64>>(0)).optional()?;
        let Some(heat) = known else { return Ok(()) };
        let mut count = self.db.prepare_cached(
            "UPDATE f SET accesses = accesses + ?2, heat = ?3, accessed = max(coalesce(accessed, 0), ?4) WHERE ino = ?1",
        )?;
        count.execute(params![id.ino as i64, opens, heated(heat, opens, at), at])?;
        Ok(())
    }

    /// Somebody waits for the file's content.
    pub fn wanted(&self, id: FileId, by: &str) -> IndexResult<()> {
        let mut note = self.db.prepare_cached("UPDATE f SET wanted_by = ?3 WHERE ino = ?1 AND birth = ?2")?;
        note.execute(params![id.ino as i64, id.birth as i64, by])?;
        Ok(())
    }

    /// Its content is back: who wanted it last had it recalled.
    pub fn recalled(&self, id: FileId, at: i64) -> IndexResult<()> {
        let mut note = self.db.prepare_cached(
            "UPDATE f SET recalled = ?2, recalled_by = coalesce(wanted_by, 'unknown'), wanted_by = NULL WHERE ino = ?1",
        )?;
        note.execute(params![id.ino as i64, at])?;
        Ok(())
    }

    /// Regular files by state; of inodes, each once.
    pub fn totals(db: &Connection) -> IndexResult<BTreeMap<String, StateTotal>> {
        let mut totals = db.prepare(
            "SELECT state, count(*), coalesce(sum(size), 0), coalesce(sum(blocks), 0) * 512 FROM f \
             WHERE kind = 'f' AND parent <> 0 GROUP BY state",
        )?;
        let rows = totals.query_map([], |row| {
            let number = |at| row.get::<_, i64>(at).map(|number| number as u64);
            let total = StateTotal { files: number(1)?, bytes: number(2)?, local: number(3)? };
            Ok((state_of(row.get(0)?).to_string(), total))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

/// The row of an inode, new or as it was known: counts are those of the inode, and another's of the same number begin anew.
static PUT: LazyLock<String> = LazyLock::new(|| {
    format!(
        "INSERT INTO f ({FACTS}, parent, name) \
         VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18,?19,?20,?21) \
         ON CONFLICT (ino) DO UPDATE SET (kind, mode, nlink, uid, gid, project, size, blocks, atime, mtime, ctime_ns, btime, sealed, state, \
         pinned, pair, generation, parent, name, accesses, heat, accessed, recalled, recalled_by, wanted_by, birth) = \
         (?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18,?19,?20,?21, \
         iif(birth = ?2, accesses, 0), iif(birth = ?2, heat, NULL), iif(birth = ?2, accessed, NULL), \
         iif(birth = ?2, recalled, NULL), iif(birth = ?2, recalled_by, NULL), iif(birth = ?2, wanted_by, NULL), ?2)"
    )
});

fn put_row(put: &mut Statement<'_>, parent: i64, name: &[u8], facts: &Facts) -> IndexResult<()> {
    for (at, value) in facts.values().iter().enumerate() {
        put.raw_bind_parameter(at + 1, value)?;
    }
    put.raw_bind_parameter(20, parent)?;
    put.raw_bind_parameter(21, Name(name))?;
    put.raw_execute()?;
    Ok(())
}

/// Differs from one start of the machine to the next.
fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// The state of a row, for a filter in SQL.
pub fn state_filter(states: &[FileState]) -> String {
    let numbers: Vec<String> = states.iter().map(|state| state_number(*state).to_string()).collect();
    format!("state IN ({})", numbers.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::index::row::some_facts as facts;
    use crate::ports::FileKind;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("index"), "1-2").unwrap();
        store.end_filling().unwrap();
        (dir, store)
    }

    fn names(store: &Store) -> Vec<(i64, String, i64)> {
        let mut names = store.db.prepare("SELECT parent, name, ino FROM f WHERE parent <> 0 ORDER BY 1, 2").unwrap();
        let names = names.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
        names.map(Result::unwrap).collect()
    }

    #[test]
    fn names_come_and_go_and_counts_stay_with_their_inode() {
        let (_dir, mut store) = store();
        store.put(NO_PARENT, b"", &facts(1, FileKind::Directory, 2)).unwrap();
        store.put(1, b"a", &facts(10, FileKind::Regular, 1)).unwrap();
        store.put(1, b"b", &facts(11, FileKind::Regular, 1)).unwrap();
        store.opened(FileId { ino: 10, birth: 9 }, 3, 100).unwrap();
        // Renamed over the other, told in either order.
        assert_eq!(store.put(1, b"b", &facts(10, FileKind::Regular, 1)).unwrap(), Some(11));
        assert_eq!(store.lose(1, b"a").unwrap(), None);
        store.sweep().unwrap();
        assert_eq!(names(&store), [(-1, "".into(), 1), (1, "b".into(), 10)]);
        assert_eq!(store.lose(1, b"b").unwrap(), Some(10));
        store.put(1, b"c", &facts(10, FileKind::Regular, 1)).unwrap();
        store.sweep().unwrap();
        let opens: i64 = store.db.query_row("SELECT accesses FROM f WHERE ino = 10", [], |row| row.get(0)).unwrap();
        assert_eq!(opens, 3);
        // A number used again is another file.
        let mut other = facts(10, FileKind::Regular, 1);
        other.id.birth = 8;
        store.put(1, b"c", &other).unwrap();
        let opens: i64 = store.db.query_row("SELECT accesses FROM f WHERE ino = 10", [], |row| row.get(0)).unwrap();
        assert_eq!(opens, 0);
    }

    /// A first filling met the directory twice, and its file replaced in between.
    #[test]
    fn of_two_that_say_they_have_a_name_the_one_that_is_meant_loses_it() {
        let (_dir, mut store) = store();
        let two = [10, 11].map(|ino| facts(ino, FileKind::Regular, 1));
        store.fill(1, two.iter().map(|facts| (&b"a"[..], facts))).unwrap();
        assert_eq!(store.lose_of(1, b"a", Some(11)).unwrap(), Some(11));
        assert_eq!(names(&store), [(1, "a".into(), 10)]);
    }

    #[test]
    fn of_several_names_the_last_that_is_left_counts() {
        let (_dir, mut store) = store();
        store.put(NO_PARENT, b"", &facts(1, FileKind::Directory, 2)).unwrap();
        store.put(1, b"a", &facts(10, FileKind::Regular, 1)).unwrap();
        store.put(1, b"b", &facts(10, FileKind::Regular, 2)).unwrap();
        store.put(1, b"c", &facts(10, FileKind::Regular, 3)).unwrap();
        for name in [b"c", b"a"] {
            assert_eq!(store.lose(1, name).unwrap(), Some(10));
            store.sweep().unwrap();
        }
        assert_eq!(names(&store)[1..], [(1, "b".into(), 10)]);
        // What is below a directory that is gone goes with it.
        store.put(1, b"d", &facts(20, FileKind::Directory, 2)).unwrap();
        store.put(20, b"e", &facts(21, FileKind::Directory, 2)).unwrap();
        store.put(21, b"f", &facts(22, FileKind::Regular, 1)).unwrap();
        store.lose(1, b"d").unwrap();
        assert_eq!(store.sweep_all().unwrap(), 3);
        assert_eq!(names(&store).len(), 2);
    }
}
