//! What can go wrong with a transfer, in the classes that decide what follows (the table in protocol.md).

use std::sync::Arc;

use crate::ports::{JournalError, LowerError, RemoteError};
use crate::record::RecordError;
use crate::tier::Refusal;
use crate::types::{FileId, PairName};

/// A transfer, or an access that needed one, failed. One line each: the reason and the way out. Whoever prints it names the
/// file by its path, which the engine does not know for sure.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EngineError {
    #[error("{source}")]
    Lower { file: FileId, source: Arc<LowerError> },
    #[error("{source}")]
    Remote { file: FileId, source: RemoteError },
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(
        "its record is damaged: {why}. Nothing was changed; restore the xattr from a backup, or the file from its object"
    )]
    BadRecord { file: FileId, why: RecordError },
    #[error(
        "it was changed below the mount: {why}. Its object {object} is kept; nothing was changed. To keep what is in the file now, remove its \
         attribute trusted.tierfs.record below the mount"
    )]
    ChangedBelow { file: FileId, object: String, why: &'static str },
    #[error(
        "its content belongs to pair {found} ({found_share}), which is not the one mounted ({mounted}): mount with `--pair {found}`, bring that pair's configuration back, or `tierfs check --adopt` if this pair has its content now"
    )]
    ForeignPair { file: FileId, found: PairName, found_share: String, mounted: String },
    #[error(
        "it shares object {object} with {with}, as a copy made below the mount does. Both are served and the object stays; a copy made \
         through the mount would have its own"
    )]
    Shared { file: FileId, object: String, with: String },
    #[error(
        "its record names object {object}, which was made for another file, and could have been written by anybody who may write the file: \
         it is not followed. Records are safe where the daemon may use trusted.* attributes"
    )]
    Unproven { file: FileId, object: String },
    #[error(
        "it is all holes and has no record, but object {object} was made for it, with as many bytes: its record seems lost, and reads give zeros. {way_out}"
    )]
    RecordLost { file: FileId, object: String, way_out: &'static str },
    #[error("object {object} does not match its checksum at bytes {offset}+{len}, twice: not served")]
    Corrupt { file: FileId, object: String, offset: u64, len: u64 },
    #[error(
        "object {object} is in an archive class; its restore has been under way for {for_s} s: try again when it is done, which takes the store hours, or have \
         readers wait for it (`tierfs pair edit --archived wait`)"
    )]
    Archived { file: FileId, object: String, for_s: u64 },
    #[error("{why}")]
    Peer { file: FileId, why: PeerTrouble },
    #[error("{why}")]
    Refused { file: FileId, why: Refusal },
    #[error("{why}")]
    Unfit { file: FileId, why: Unfit },
    #[error("{len} bytes are to come back, but only {available} are free locally: release or remove other files")]
    NoSpace { file: FileId, len: u64, available: u64 },
    #[error("object {object} cannot be brought back: {why}")]
    NotKept { object: String, why: NotKept },
    #[error("no pair is configured for this mount: `tierfs pair add` one and mount with `--pair NAME`")]
    NoPair,
    #[error(
        "it is to go to pair {pair}, which this mount does not have (it has {mounted}): mount with `--pair {pair}` as well, or choose another (`tierfs set`)"
    )]
    NotMounted { file: FileId, pair: PairName, mounted: String },
    #[error("the share is read-only: content cannot be brought back or freed")]
    ReadOnly,
    #[error("the mount is going away")]
    ShuttingDown,
    #[error("the transfer ended by a defect of tierfs (see its log): mount the share again")]
    Defect,
    #[error("the transfer was cancelled")]
    Cancelled,
    #[error("somebody ended this recall (`tierfs recalls --cancel`): read the file again to start another one")]
    Stopped,
}

/// Why a file is not for tiering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("not a regular file")]
    NotRegular,
    #[error("empty: there is nothing to move")]
    Empty,
    #[error("immutable or append-only")]
    Sealed,
    #[error("retention-locked: it stays as it is (root ends that by `tierfs set --retain off`)")]
    Retained,
    #[error(
        "its record would be too long to store: the share's path, the object's key and what the store calls it are together over 3.9 KiB"
    )]
    RecordTooLong,
}

/// What is in the way of a file that both sides of a pair have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerTrouble {
    #[error("the pair's other side does not have this file yet: metadata sync makes it there (`tierfs sync`)")]
    NotPaired,
    #[error("its content is with a store, by a pair that was used before: recall it by that pair first")]
    AtStore,
    #[error(
        "this share has no peer: the pair's role is not gpeer, the share below keeps no trusted attributes, or it knows no leases"
    )]
    NoPeer,
    #[error(
        "a pair of two shares has no objects and no copies: `tierfs migrate` gives a file's content to the other side"
    )]
    NoCopies,
    #[error("the other side has been asked who owns it, and has not answered yet: that is repeated until it does")]
    Undecided,
    #[error(
        "the other side keeps its content where it is for now: somebody has it open there, or there is no room: try again"
    )]
    Refused,
    #[error("it was changed at the other side meanwhile: try again")]
    Moved,
    #[error("the other side has no such file: `tierfs sync --reconcile` tells what is missing")]
    NotThere,
    #[error("it is being written")]
    BeingWritten,
    #[error("the other side's file of this name is another one: `tierfs sync --reconcile` tells which")]
    OtherFile,
    #[error("it is to stand for the other side's file, but has content, or is in use")]
    NotEmpty,
    #[error(
        "both sides' records contradict each other (a restored backup?): nothing was changed. `tierfs check` on both sides tells what each says"
    )]
    Contradiction,
}

/// Why a generation cannot be brought back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotKept {
    #[error("there is a file of that name; `--to` takes another one")]
    Exists,
    #[error(
        "it is not kept: its time is over, or it is nobody's former content (`tierfs history` shows what there is)"
    )]
    Over,
    #[error("its file is still there: {0}")]
    Named(String),
    #[error(
        "its file was removed, but somebody still has it open; wait until it is closed, or copy it from /proc/PID/fd"
    )]
    StillOpen,
    #[error("objects are being deleted, or its file is being released, just now: try again")]
    Deleting,
    #[error(
        "records of this share are in user attributes, which anybody may write: no file may use another one's object there"
    )]
    Untrusted,
    #[error("somebody opened the new file before it was complete: try again")]
    Touched,
    #[error("{0}")]
    Facts(String),
}

pub type EngineResult<T> = Result<T, EngineError>;

impl EngineError {
    /// Attaches the file to an error of the share below.
    pub fn lower(file: FileId) -> impl Fn(LowerError) -> Self {
        move |source| Self::Lower { file, source: Arc::new(source) }
    }

    /// Attaches the file to an error of the remote.
    pub fn remote(file: FileId) -> impl Fn(RemoteError) -> Self {
        move |source| Self::Remote { file, source }
    }

    /// The file was left alone for a good cause; nothing failed.
    pub fn is_skip(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Unfit { .. } | Self::Peer { .. })
    }

    /// The file's record cannot be read, or contradicts the file.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::BadRecord { .. } | Self::ChangedBelow { .. })
    }

    /// The file is no more.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Lower { source, .. } if super::intents::is_gone(source))
    }

    /// Another transfer of the file is running.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Refused { why: Refusal::Busy, .. })
    }

    /// Somebody has the file open, or had a moment ago.
    pub fn is_in_use(&self) -> bool {
        matches!(self, Self::Refused { why: Refusal::Open | Refusal::OpenForWriting, .. })
            || matches!(self, Self::Peer { why: PeerTrouble::Refused | PeerTrouble::BeingWritten, .. })
    }

    /// Its owner is being decided, or it is being written: the same will be answered otherwise later.
    pub fn is_undecided(&self) -> bool {
        use PeerTrouble::{BeingWritten, Moved, Refused, Undecided};
        matches!(self, Self::Peer { why: BeingWritten | Moved | Refused | Undecided, .. })
    }

    /// Trying again later may help, with nobody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Remote { source, .. } if source.kind.is_transient())
    }

    /// The pair's configuration is at fault: no file can succeed until somebody mends it.
    pub fn is_configuration(&self) -> bool {
        matches!(self, Self::NoPair | Self::ReadOnly)
            || matches!(self, Self::Remote { source, .. } if source.kind.is_configuration())
    }
}
