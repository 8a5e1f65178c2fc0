//! From errors of the share and the engine to those of a store.

use crate::engine::EngineError;
use crate::fs::FsError;
use crate::gateway::store::{StoreError, StoreResult};
use crate::ports::{LowerError, LowerResult};

/// Why the slave of a metadata sync does not take a key away.
pub const THEIRS: &str = "this name is the pair's master's: replace, rename and remove it there";

/// Names the key that a failure is about.
pub trait About<T> {
    fn about(self, key: &str) -> StoreResult<T>;
}

impl<T> About<T> for LowerResult<T> {
    fn about(self, key: &str) -> StoreResult<T> {
        self.map_err(|error| lower(error, key))
    }
}

impl<T> About<T> for Result<T, FsError> {
    fn about(self, key: &str) -> StoreResult<T> {
        self.map_err(|error| of(error, key))
    }
}

/// There is nothing that a key could lead to: no such name, or no directory, or a symbolic link, on the way.
pub fn is_absent(error: &LowerError) -> bool {
    matches!(error.errno(), libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::EXDEV)
}

fn lower(error: LowerError, key: &str) -> StoreError {
    let key = key.to_owned();
    match error.errno() {
        _ if is_absent(&error) => StoreError::NoSuchKey(key),
        libc::EACCES | libc::EPERM => StoreError::Denied(key),
        libc::ENOSPC | libc::EDQUOT => StoreError::Full(key),
        libc::ENAMETOOLONG => StoreError::KeyTooLong,
        libc::EROFS => StoreError::ReadOnly,
        libc::ESTALE => StoreError::Gone,
        _ => StoreError::Io { op: error.op, path: key, source: error.source },
    }
}

fn of(error: FsError, key: &str) -> StoreError {
    match error {
        FsError::Lower(error) => lower(error, key),
        FsError::Stale => StoreError::Gone,
        FsError::ReadOnly => StoreError::ReadOnly,
        FsError::Theirs => StoreError::InTheWay { key: key.to_owned(), why: THEIRS },
        FsError::NotPermitted | FsError::Withheld => StoreError::Denied(key.to_owned()),
        FsError::TryLater | FsError::Interrupted | FsError::Undecided => {
            StoreError::Unavailable(format!("{key}: {error}"))
        }
        FsError::Engine(error) => match &error {
            EngineError::Lower { source, .. } => {
                let source = LowerError::from_errno(source.op, source.errno());
                lower(source, key)
            }
            EngineError::NoSpace { .. } => StoreError::Full(key.to_owned()),
            EngineError::ReadOnly => StoreError::ReadOnly,
            EngineError::ShuttingDown => StoreError::Closed,
            _ if error.is_transient() || error.is_skip() || error.is_undecided() => {
                StoreError::Unavailable(format!("{key}: {error}"))
            }
            _ => StoreError::Failed(format!("{key}: {error}")),
        },
        FsError::Damaged | FsError::BadHandle | FsError::NoAttribute | FsError::Executed | FsError::Invalid(_) => {
            StoreError::Failed(format!("{key}: {error}"))
        }
    }
}
