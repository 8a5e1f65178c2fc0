//! Metadata sync of a pair of clusters: what the master's share has by name appears on the slave, as directories and stubs.
//!
//! ```text
//! wire     what is told                    book     what a side remembers
//! look     the master looks at its share   receive  the end that is told
//! send     the loop that tells             apply    names on the slave
//! heed     what follows from an answer     dress    attributes on the slave
//! compare  the whole share, once           leave    what goes from the slave, or stays
//! held     what the slave tells            limbo    what has no name for the moment
//!                                          again    a batch that was interrupted
//! ```
//!
//! What changed is known from [`crate::capture`], whose comment says why no change is lost. What is told is what is there when it is told.
//! The invariants of this module:
//! - A batch is told after what it says is on stable storage, and answered after it is applied, and that on stable storage too; only then
//!   the marks of its changes may go.
//! - Batches are numbered within a run, and applied in order. A number that was applied is answered again and not applied again; one of an
//!   earlier run is refused. So a batch that was delayed does nothing.
//! - An inode is the same on both sides by its id ([`crate::types::PairFileId`]), under whatever names. What loses its last name waits in a
//!   directory that nobody sees until the master has said that it is gone, or what its new name is: so nothing is lost with the order in which
//!   two ends of a rename are told.
//! - What only the slave has is never overwritten, moved or removed.
//! - Ownership of content is set when a stub is made, and never again by this module.

mod again;
mod apply;
mod book;
mod compare;
mod dress;
mod heed;
mod held;
mod leave;
mod limbo;
mod look;
mod receive;
mod send;
mod status;
pub mod wire;

use std::path::PathBuf;
use std::sync::Arc;

pub use apply::Applier;
pub use book::Book;
pub use receive::Receiver;
pub use send::{Sender, SenderOptions};
pub use status::{ComparisonStatus, RefusedStatus, Status};

use crate::ports::{LowerError, RemoteError};

/// Keys of messages begin so, below the gateway's own directory.
pub const KEYS: &str = ".tierfs-gateway/sync/";

/// Why a metadata sync cannot go on. Each message is one line and says what to do, where something can be done.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    #[error("the book of the metadata sync {}: {reason}", path.display())]
    Book { path: PathBuf, reason: String },
    #[error(transparent)]
    Lower(#[from] LowerError),
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error(transparent)]
    Wire(#[from] wire::WireError),
    /// The other side, or this one, does not take part as it should.
    #[error("{0}")]
    Refused(String),
    /// A message of another run, or out of turn: the master begins anew.
    #[error("the numbering has moved on: run {run}, number {number}")]
    OutOfTurn { run: u64, number: u64 },
    #[error("no such message")]
    Unknown,
    #[error("the metadata sync was stopped")]
    Stopped,
}

pub type SyncResult<T> = Result<T, SyncError>;

/// Both ends of one side: what tells, and what is told.
pub struct Ends {
    pub sender: Arc<Sender>,
    pub receiver: Arc<Receiver>,
}

impl Ends {
    /// How it goes. Blocks on local I/O.
    pub fn status(&self) -> SyncResult<Status> {
        Status::of(&self.sender, &self.receiver)
    }
}

/// Which side of a sync this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Master,
    Slave,
}

impl Side {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Slave => "slave",
        }
    }
}
