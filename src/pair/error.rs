//! What can be wrong with pairs. Every message is one line: the thing, the reason, the way out. None holds a secret.

use std::path::{Path, PathBuf};

use crate::types::PairName;

pub type PairResult<T> = Result<T, PairError>;

/// A pair that cannot be read, stored or used.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// A file in `pairs.d` is not a valid pair.
    #[error("{}:{line}: {}{reason}", path.display(), key.as_ref().map(|key| format!("{key}: ")).unwrap_or_default())]
    Invalid {
        path: PathBuf,
        /// From 1.
        line: usize,
        key: Option<String>,
        reason: String,
    },
    /// A file in `pairs.d` whose name is not a pair name.
    #[error("{}: {reason}; rename the file or move it out of the directory", path.display())]
    FileName { path: PathBuf, reason: String },
    #[error("no pair {name} in {}: {known}", directory.display())]
    Unknown { name: PairName, directory: PathBuf, known: String },
    #[error("pair {name} exists already: `tierfs pair edit {name}` changes it")]
    Exists { name: PairName },
    /// The new pair contradicts one that is there.
    #[error("pair {name} is refused: {reason}")]
    Conflict { name: PairName, reason: String },
    /// A value that did not come from a file.
    #[error("{0}")]
    Value(String),
    #[error("pair {name} is still in use: {reason}")]
    InUse { name: PairName, reason: String },
    #[error("share {} has more than one pair ({names}): choose one with --pair NAME", share.display())]
    Ambiguous { share: PathBuf, names: String },
    #[error("cannot {doing} {}: {error}", path.display())]
    Io { doing: &'static str, path: PathBuf, error: std::io::Error },
}

impl PairError {
    /// For `map_err`: names what was being done to which file.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> PairError {
        let path = path.to_owned();
        move |error| PairError::Io { doing, path, error }
    }
}
