//! A directory's fingerprint: a later scan that computes the one stored with its rows need not compare them.
//!
//! Invariant: while a print is stored, the rows of the directory's names are what a scan makes of a listing with that print. It is stored in the
//! transaction that makes it so, and the triggers here take it away in any transaction that changes one of those rows, or which there are,
//! whoever does it. So nobody who writes rows has to know of prints, and whatever the index missed (dropped hints, changes below the mount)
//! shows in the listing, as it would in the comparison.
//!
//! A print is over everything in a row that a listing tells. What it does not tell, the state that a file's record says, is settled before a
//! print is stored: each record was read two seconds after the file's change time or later, so no other can be behind the same change time.

use rusqlite::{Connection, OptionalExtension, params};

use super::IndexResult;
use super::row::{FACTS, Facts, kind_letter};
use super::store::Store;
use crate::types::FileId;

/// 128 bits of BLAKE3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Print([u8; 16]);

/// Bytes hashed at a time: enough for the widest instructions, little enough to stay in the cache.
const BYTES_AT_ONCE: usize = 64 << 10;

/// Computes prints, one after another.
#[derive(Default)]
pub(super) struct Printer {
    hasher: blake3::Hasher,
    bytes: Vec<u8>,
}

impl Printer {
    /// Begins with a directory, whose number may have been another's.
    pub fn begin(&mut self, dir: FileId) {
        self.hasher.reset();
        self.bytes.clear();
        self.numbers([dir.ino, dir.birth]);
    }

    fn numbers<const N: usize>(&mut self, numbers: [u64; N]) {
        self.bytes.extend_from_slice(numbers.map(u64::to_le_bytes).as_flattened());
    }

    /// Adds an entry. Each tells its length, so no two listings are the same bytes.
    pub fn add(&mut self, name: &[u8], facts: &Facts) {
        // All of them by name: one that is new does not compile until it is here, or told not to be.
        let Facts {
            id: FileId { ino, birth },
            kind,
            mode,
            nlink,
            uid,
            gid,
            project,
            size,
            blocks,
            atime,
            mtime,
            ctime_ns,
            btime,
            sealed,
            tier: _,
        } = *facts;
        let kind = u64::from(kind_letter(kind).as_bytes()[0]);
        self.numbers([
            ino,
            birth,
            u64::from(mode) | kind << 32 | u64::from(sealed) << 40,
            u64::from(nlink) | u64::from(project) << 32,
            u64::from(uid) | u64::from(gid) << 32,
            size,
            blocks,
            atime as u64,
            mtime as u64,
            ctime_ns as u64,
            btime as u64,
            name.len() as u64,
        ]);
        self.bytes.extend_from_slice(name);
        if self.bytes.len() >= BYTES_AT_ONCE {
            self.hasher.update(&self.bytes);
            self.bytes.clear();
        }
    }

    pub fn end(&mut self) -> Print {
        self.hasher.update(&self.bytes);
        let mut print = Print([0; 16]);
        self.hasher.finalize_xof().fill(&mut print.0);
        print
    }
}

/// What is stored with a directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stored {
    /// What its rows were changed by others than the scan that compares it: counted.
    pub changes: i64,
    /// When the scan began that compared it last, in seconds since 1970; 0: none has. Records of its rows were read then or later, or are of
    /// files that had not changed for two seconds when they were.
    pub compared: i64,
    pub print: Option<Print>,
}

pub(super) const TABLE: &str = "
CREATE TABLE prints (dir INTEGER PRIMARY KEY, changes INTEGER NOT NULL DEFAULT 0, compared INTEGER NOT NULL DEFAULT 0, print BLOB);
";

/// Takes the prints away of the directories that `$dirs` selects.
macro_rules! taken {
    ($dirs:literal) => {
        concat!("UPDATE prints SET print = NULL, changes = changes + 1 WHERE dir ", $dirs, ";")
    };
}

/// A directory that gets a row is known here: a change is counted, and [`Store::sweep_all`] finds rows whose directory is gone.
/// (No `OR IGNORE`: within a trigger the outer statement's word is followed instead.)
macro_rules! known {
    () => {
        "INSERT INTO prints (dir) SELECT NEW.parent WHERE NEW.parent > 0 AND NOT EXISTS (SELECT 1 FROM prints WHERE dir = NEW.parent);"
    };
}

/// What rows are changed by, from the first filling on.
pub(super) fn triggers() -> String {
    let gone = taken!("= OLD.parent");
    let moved = concat!(known!(), taken!("= OLD.parent"), taken!("= NEW.parent"));
    // The row of a file with several names belongs to each of their directories.
    let named = taken!("IN (SELECT parent FROM links WHERE ino = NEW.ino)");
    let linked = "WHEN EXISTS (SELECT 1 FROM links WHERE ino = NEW.ino)";
    format!(
        "CREATE TRIGGER f_changed AFTER UPDATE OF {FACTS}, name ON f BEGIN {gone} END;
         CREATE TRIGGER f_linked AFTER UPDATE OF {FACTS}, parent, name ON f {linked} BEGIN {named} END;
         CREATE TRIGGER f_moved AFTER UPDATE OF parent ON f WHEN OLD.parent <> NEW.parent BEGIN {moved} END;
         CREATE TRIGGER f_gone AFTER DELETE ON f BEGIN {gone} END;
         CREATE TRIGGER links_gone AFTER DELETE ON links BEGIN {gone} END;"
    )
}

/// What rows come by. Not while the index is filled for the first time, by the scan alone: then a row that comes is one of the directory that is
/// being written.
pub(super) const COMING: &str = concat!(
    "CREATE TRIGGER IF NOT EXISTS f_new AFTER INSERT ON f BEGIN ",
    known!(),
    taken!("= NEW.parent"),
    " END; CREATE TRIGGER IF NOT EXISTS links_new AFTER INSERT ON links BEGIN ",
    known!(),
    taken!("= NEW.parent"),
    " END;"
);
pub(super) const NOT_COMING: &str = "DROP TRIGGER IF EXISTS f_new; DROP TRIGGER IF EXISTS links_new;";

/// What is stored with a directory.
pub(super) fn stored(db: &Connection, dir: u64) -> IndexResult<Stored> {
    let mut stored = db.prepare_cached("SELECT changes, compared, print FROM prints WHERE dir = ?1")?;
    let found = stored.query_row([dir as i64], |row| {
        let print = row.get_ref(2)?.as_blob_or_null()?.and_then(|print| print.try_into().ok());
        Ok(Stored { changes: row.get(0)?, compared: row.get(1)?, print: print.map(Print) })
    });
    Ok(found.optional()?.unwrap_or_default())
}

impl Store {
    /// The rows of `dir` are what a scan that began at `compared` has met; `print` is of its listing, if it may be relied on.
    pub fn compared(&self, dir: u64, compared: i64, print: Option<Print>) -> IndexResult<()> {
        let mut put = self.db.prepare_cached(
            "INSERT INTO prints (dir, compared, print) VALUES (?1, ?2, ?3) \
             ON CONFLICT (dir) DO UPDATE SET (compared, print) = (?2, ?3)",
        )?;
        put.execute(params![dir as i64, compared, print.map(|print| print.0)])?;
        Ok(())
    }

    /// As [`Store::compared`], while the index is filled. A directory met twice, because it was moved meanwhile, has rows of both times.
    pub fn filled(&self, dir: u64, compared: i64, print: Option<Print>) -> IndexResult<()> {
        let mut put = self.db.prepare_cached(
            "INSERT INTO prints (dir, compared, print) VALUES (?1, ?2, ?3) \
             ON CONFLICT (dir) DO UPDATE SET (compared, print, changes) = (0, NULL, changes + 1)",
        )?;
        put.execute(params![dir as i64, compared, print.map(|print| print.0)])?;
        Ok(())
    }
}
