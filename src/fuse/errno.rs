//! The one place where errors become numbers.

use fuser::Errno;

use crate::engine::{EngineError, PeerTrouble, Unfit};
use crate::fs::FsError;
use crate::ports::RemoteErrorKind;
use crate::tier::Refusal;

/// The number a program sees. `docs/semantics.md` lists them for users.
pub fn errno(error: &FsError) -> Errno {
    Errno::from_i32(match error {
        FsError::Lower(error) => error.errno(),
        FsError::Engine(error) => engine_errno(error),
        FsError::Stale => libc::ESTALE,
        FsError::Damaged => libc::EIO,
        FsError::BadHandle => libc::EBADF,
        FsError::NoAttribute => libc::ENODATA,
        FsError::NotPermitted => libc::EPERM,
        FsError::Invalid(_) => libc::EINVAL,
        FsError::Executed => libc::ETXTBSY,
        FsError::Interrupted => libc::EINTR,
        // NFS servers turn this one into the protocol's DELAY or JUKEBOX.
        FsError::TryLater | FsError::Undecided => libc::EAGAIN,
        // Not EREMOTEIO, which says that something is wrong: "Object is remote" is all there is to say.
        FsError::Withheld => libc::EREMOTE,
        FsError::ReadOnly | FsError::Theirs => libc::EROFS,
    })
}

fn engine_errno(error: &EngineError) -> i32 {
    match error {
        EngineError::Lower { source, .. } => source.errno(),
        EngineError::Remote { source, .. } => match source.kind {
            // It may pass: NFS-Ganesha turns this one into the protocol's "try again later".
            RemoteErrorKind::Unreachable
            | RemoteErrorKind::TimedOut
            | RemoteErrorKind::SlowDown
            | RemoteErrorKind::Server => libc::ETIMEDOUT,
            // The pair is at fault, not the file: EACCES would send people to the file's permissions.
            // So is what is archived: the content is whole, and not here yet.
            RemoteErrorKind::Denied | RemoteErrorKind::NoSuchBucket | RemoteErrorKind::Archived => libc::EREMOTEIO,
            RemoteErrorKind::NotFound
            | RemoteErrorKind::Conflict
            | RemoteErrorKind::Corrupt
            | RemoteErrorKind::Source
            | RemoteErrorKind::Rejected => libc::EIO,
        },
        EngineError::Journal(_) | EngineError::Defect => libc::EIO,
        EngineError::BadRecord { .. }
        | EngineError::ChangedBelow { .. }
        | EngineError::Corrupt { .. }
        // Nobody asks for this through the mount.
        | EngineError::NotKept { .. }
        // Findings of a check; programs do not meet them.
        | EngineError::Shared { .. }
        | EngineError::RecordLost { .. } => libc::EIO,
        EngineError::Unproven { .. } => libc::EIO,
        EngineError::ForeignPair { .. } | EngineError::NotMounted { .. } | EngineError::NoPair | EngineError::Archived { .. } => libc::EREMOTEIO,
        EngineError::Peer { why, .. } => match why {
            PeerTrouble::NotPaired | PeerTrouble::AtStore | PeerTrouble::NoPeer | PeerTrouble::NoCopies => libc::EINVAL,
            PeerTrouble::Undecided => libc::EAGAIN,
            PeerTrouble::Refused | PeerTrouble::Moved | PeerTrouble::BeingWritten => libc::EBUSY,
            PeerTrouble::OtherFile | PeerTrouble::NotThere | PeerTrouble::NotEmpty | PeerTrouble::Contradiction => libc::EIO,
        },
        EngineError::Refused { why, .. } => match why {
            Refusal::Open | Refusal::OpenForWriting | Refusal::Busy | Refusal::Changed | Refusal::ObjectGoing => libc::EBUSY,
            Refusal::Pinned => libc::EPERM,
            Refusal::NotArchived => libc::EINVAL,
            Refusal::Unknown => libc::EIO,
        },
        EngineError::Unfit { why, .. } => match why {
            Unfit::NotRegular | Unfit::Empty => libc::EINVAL,
            Unfit::Sealed | Unfit::Retained => libc::EPERM,
            Unfit::RecordTooLong => libc::ENAMETOOLONG,
        },
        EngineError::NoSpace { .. } => libc::ENOSPC,
        EngineError::ReadOnly => libc::EROFS,
        EngineError::ShuttingDown => libc::ESHUTDOWN,
        EngineError::Cancelled | EngineError::Stopped => libc::ECANCELED,
    }
}
