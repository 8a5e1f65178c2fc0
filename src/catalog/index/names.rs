//! Names of inodes, for who has nothing but the inode ([`Names`]).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension};

use super::row::name_of;
use super::sql::reader;
use super::{Index, IndexResult};
use crate::ports::Names;
use crate::types::FileId;

/// Where files were seen last, by a connection that is made when first asked.
pub(super) struct SeenAs {
    index: PathBuf,
    db: Mutex<Option<Connection>>,
}

impl SeenAs {
    pub fn new(index: &Path) -> Self {
        Self { index: index.to_owned(), db: Mutex::new(None) }
    }

    /// The database is another one from now on.
    pub fn forget(&self) {
        *self.db.lock() = None;
    }

    fn of(&self, file: FileId) -> IndexResult<Option<(u64, OsString)>> {
        let mut made = self.db.lock();
        let db = match &mut *made {
            Some(db) => db,
            none => none.insert(reader(&self.index)?),
        };
        let mut row = db.prepare_cached("SELECT parent, name FROM f WHERE ino = ?1 AND birth = ?2 AND parent > 0")?;
        let seen = row.query_row([file.ino as i64, file.birth as i64], |row| {
            Ok((row.get::<_, i64>(0)? as u64, OsStr::from_bytes(name_of(row.get_ref(1)?)).to_owned()))
        });
        Ok(seen.optional()?)
    }
}

/// As far as hints were taken.
impl Names for Index {
    fn name_of(&self, file: FileId) -> Option<(u64, OsString)> {
        self.names.of(file).unwrap_or_else(|error| {
            tracing::warn!("the index does not tell a name: {error}");
            None
        })
    }
}
