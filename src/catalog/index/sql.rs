//! Reading the index in SQL: connections that can do nothing else, and the functions that its view needs.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rusqlite::functions::FunctionFlags;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::row::{heat_now, name_of, state_of};
use super::store::NO_PARENT;
use super::{IndexError, IndexResult};
use crate::catalog::glob::Glob;

/// How long a reader waits for a moment without a writer, and a writer for one without readers.
pub(super) const BUSY_WAIT: Duration = Duration::from_secs(10);
/// Directories whose paths a reader remembers.
const PATHS_MAX: usize = 100_000;
/// Levels of a path; more are a ring, of a moment between two renames.
const DEPTH_MAX: usize = 4_096;
/// Steps of SQLite's machine between two looks whether anybody still wants the answer.
const STEPS: i32 = 10_000;

pub fn now_s() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

/// Paths of inodes, by a connection of its own.
pub struct Paths {
    db: Connection,
    known: HashMap<i64, Option<PathBuf>>,
}

impl Paths {
    pub fn new(index: &Path) -> IndexResult<Self> {
        Ok(Self { db: plain(index)?, known: HashMap::new() })
    }

    /// The path of an inode, relative to the share; `None`: it is not known.
    pub fn of(&mut self, ino: i64) -> IndexResult<Option<PathBuf>> {
        match self.step(ino)? {
            None => Ok(None),
            Some((NO_PARENT, _)) => Ok(Some(PathBuf::new())),
            Some((parent, name)) => Ok(self.of_dir(parent)?.map(|path| path.join(OsStr::from_bytes(&name)))),
        }
    }

    /// The path of a directory.
    pub fn of_dir(&mut self, ino: i64) -> IndexResult<Option<PathBuf>> {
        let mut names = Vec::new();
        let mut at = ino;
        let above = loop {
            if let Some(known) = self.known.get(&at) {
                break known.clone();
            }
            match self.step(at)? {
                Some((NO_PARENT, _)) => break Some(PathBuf::new()),
                Some((parent, name)) if parent != 0 && names.len() < DEPTH_MAX => {
                    names.push((at, name));
                    at = parent;
                }
                _ => break None,
            }
        };
        if self.known.len() + names.len() > PATHS_MAX {
            self.known.clear();
        }
        let mut path = above;
        for (ino, name) in names.into_iter().rev() {
            path = path.map(|path| path.join(OsStr::from_bytes(&name)));
            self.known.insert(ino, path.clone());
        }
        Ok(path)
    }

    fn step(&self, ino: i64) -> IndexResult<Option<(i64, Vec<u8>)>> {
        let mut step = self.db.prepare_cached("SELECT parent, name FROM f WHERE ino = ?1")?;
        let found = step.query_row([ino], |row| Ok((row.get(0)?, name_of(row.get_ref(1)?).to_vec())));
        Ok(found.optional()?)
    }

    /// The inode at a path relative to the share.
    pub fn find(&self, path: &Path) -> IndexResult<Option<i64>> {
        let mut at: Option<i64> =
            self.db.query_row("SELECT ino FROM f WHERE parent = ?1", [NO_PARENT], |row| row.get(0)).optional()?;
        let mut step = self.db.prepare_cached(
            "SELECT ino FROM f WHERE parent = ?1 AND name = ?2 UNION SELECT ino FROM links WHERE parent = ?1 AND name = ?2",
        )?;
        for name in path.components() {
            let Some(parent) = at else { return Ok(None) };
            let name = super::row::Name(name.as_os_str().as_bytes());
            at = step.query_row(rusqlite::params![parent, name], |row| row.get(0)).optional()?;
        }
        Ok(at)
    }
}

fn plain(index: &Path) -> IndexResult<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(index, flags)?;
    db.busy_timeout(BUSY_WAIT)?;
    Ok(db)
}

/// A connection that reads, and has the functions `path(ino)`, `inode(path)`, `state_name(number)`, `heat_now(heat)` and `path_like(path, pattern)`.
pub fn reader(index: &Path) -> IndexResult<Connection> {
    let db = plain(index)?;
    add_functions(&db, index)?;
    Ok(db)
}

fn failed(error: impl std::fmt::Display) -> rusqlite::Error {
    rusqlite::Error::UserFunctionError(error.to_string().into())
}

pub(super) fn add_functions(db: &Connection, index_of: &Path) -> IndexResult<()> {
    let flags = FunctionFlags::SQLITE_UTF8;
    // Made when first asked: most statements want no path.
    let paths = AssertUnwindSafe(Arc::new(Mutex::new(None::<Paths>)));
    let index = index_of.to_owned();
    db.create_scalar_function("path", 1, flags, move |call| {
        let mut paths = paths.lock();
        if paths.is_none() {
            *paths = Some(Paths::new(&index).map_err(failed)?);
        }
        let Some(paths) = &mut *paths else { return Ok(Value::Null) };
        Ok(match paths.of(call.get(0)?).map_err(failed)? {
            None => Value::Null,
            Some(path) => match path.to_str() {
                Some(text) => Value::Text(text.to_owned()),
                None => Value::Blob(path.as_os_str().as_bytes().to_vec()),
            },
        })
    })?;
    let index = index_of.to_owned();
    db.create_scalar_function("inode", 1, flags, move |call| {
        let text = name_of(call.get_raw(0));
        let found = Paths::new(&index).and_then(|paths| paths.find(Path::new(OsStr::from_bytes(text))));
        found.map_err(failed)
    })?;
    db.create_scalar_function("state_name", 1, flags | FunctionFlags::SQLITE_DETERMINISTIC, |call| {
        Ok(state_of(call.get(0)?).as_str())
    })?;
    db.create_scalar_function("heat_now", 1, flags, |call| {
        Ok(call.get::<Option<f64>>(0)?.map(|heat| heat_now(heat, now_s())))
    })?;
    db.create_scalar_function("path_like", 2, flags | FunctionFlags::SQLITE_DETERMINISTIC, |call| {
        // Kept from row to row, where the pattern is the same.
        let glob = call.get_or_create_aux(1, |pattern| {
            let text = pattern.as_str().map_err(|error| error.to_string())?;
            Glob::new(text)
        });
        Ok(glob?.matches(name_of(call.get_raw(0))))
    })?;
    Ok(())
}

/// One answer's row.
pub type Cells = Vec<serde_json::Value>;

/// Runs one statement that somebody typed, which may only read. The names of the columns go to `head`, then each row to `each`, until that says
/// `false` or `wanted` does.
pub(super) fn query(
    index: &Path,
    text: &str,
    wanted: impl Fn() -> bool + Send + 'static,
    head: &mut dyn FnMut(Vec<String>),
    each: &mut dyn FnMut(Cells) -> bool,
) -> IndexResult<()> {
    let db = reader(index)?;
    db.authorizer(Some(|context: AuthContext<'_>| match context.action {
        AuthAction::Select | AuthAction::Recursive | AuthAction::Read { .. } => Authorization::Allow,
        // Reads files of the daemon's choice, or has it run code.
        AuthAction::Function { function_name } if function_name.eq_ignore_ascii_case("load_extension") => {
            Authorization::Deny
        }
        AuthAction::Function { .. } => Authorization::Allow,
        _ => Authorization::Deny,
    }));
    db.progress_handler(STEPS, Some(move || !wanted()));
    let mut statement = db.prepare(text).map_err(|error| IndexError::Query(error.to_string()))?;
    head(statement.column_names().into_iter().map(str::to_owned).collect());
    let columns = statement.column_count();
    let mut rows = statement.query([]).map_err(|error| IndexError::Query(error.to_string()))?;
    while let Some(row) = rows.next().map_err(|error| IndexError::Query(error.to_string()))? {
        let cells = (0..columns).map(|at| Ok(as_json(row.get_ref(at)?))).collect::<rusqlite::Result<_>>()?;
        if !each(cells) {
            break;
        }
    }
    Ok(())
}

/// A value as JSON has it; bytes that are no text as a list of numbers.
fn as_json(value: ValueRef<'_>) -> serde_json::Value {
    match value {
        ValueRef::Null => serde_json::Value::Null,
        ValueRef::Integer(number) => number.into(),
        ValueRef::Real(number) => number.into(),
        ValueRef::Text(text) => String::from_utf8_lossy(text).into(),
        ValueRef::Blob(bytes) => serde_json::json!({ "bytes": bytes }),
    }
}
