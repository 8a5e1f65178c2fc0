//! What a file operation can answer besides success. Numbers for it exist only in the kernel adapter.

use crate::engine::EngineError;
use crate::ports::LowerError;

/// A failed operation.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The share below refused: its errno is passed on as it is.
    #[error(transparent)]
    Lower(#[from] LowerError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The inode is not known, or is gone.
    #[error("stale inode")]
    Stale,
    /// The record is unreadable or contradicts the file.
    #[error("its record is damaged: there is no content to serve")]
    Damaged,
    #[error("no such handle")]
    BadHandle,
    #[error("no such attribute")]
    NoAttribute,
    /// The caller may not do this, whatever the file's permissions say.
    #[error("not permitted")]
    NotPermitted,
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    #[error("a program runs from this file")]
    Executed,
    #[error("a signal ended the wait")]
    Interrupted,
    /// The requester can wait elsewhere; what it wants is on its way.
    #[error("not there yet: try again later")]
    TryLater,
    /// The other side of a pair has not said yet who owns the content.
    #[error("the pair's other side has not said yet who owns the content: try again when it answers")]
    Undecided,
    /// A rule of the mount (`no_recall`) says that nothing is brought back for this requester.
    #[error("its content is remote, and this mount brings nothing back for who asks")]
    Withheld,
    /// On the slave of a metadata sync.
    #[error("this name is the pair's master's: rename, link and remove it there")]
    Theirs,
    #[error("the mount is read-only")]
    ReadOnly,
}

pub type FsResult<T> = Result<T, FsError>;
