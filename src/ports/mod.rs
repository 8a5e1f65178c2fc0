//! The traits through which the upper floors meet the world below: the share, the remote, the journal, the clock.
//!
//! The real implementations are in `lower`, `remote` and `journal`; a simulated set can stand in for all of them.

mod announce;
mod failed;
mod journal;
mod lower;
mod remote;

pub use announce::{AnnouncedFailure, AnnouncedFile, Announcement, Announcer};
pub use failed::{Failed, FailedEntry, FailedId, Reason, Succeeded, Task};
pub use journal::{
    About, FAILED_DROPPED, GIVEN_UP, IDENTITY, Intent, IntentId, IntentKind, Journal, JournalError, Recalled,
};
pub use lower::{
    Attr, Caller, DirEntry, DirEntryRef, FileKind, Keep, Lower, LowerDir, LowerError, LowerFeatures, LowerFile,
    LowerResult, Names, NewNode, OpenFlags, PUNCH, Quota, RenameMode, SeekTo, SetAttr, SetTime, SpaceInfo, User,
    if_set,
};
pub use remote::{
    AttributeCall, Body, Capabilities, ObjectInfo, ObjectSource, Remote, RemoteError, RemoteErrorKind, RemoteResult,
    RestoreState, SourceError, Stored, whole,
};

use crate::types::Timestamp;

/// Wall-clock time. Behind a trait so that a simulation decides what time it is.
pub trait Clock: Send + Sync {
    /// Now, as `CLOCK_REALTIME` has it.
    fn now(&self) -> Timestamp;
}

/// The machine's own clock.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Timestamp { secs: now.tv_sec, nanos: now.tv_nsec as u32 }
    }
}
