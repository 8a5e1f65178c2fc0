//! The state machine of one file: which step is allowed now, and what must be stored before it.
//!
//! Pure: nothing here does I/O, knows the time, holds a lock or waits. The engine feeds events and carries out the verdict; when a
//! verdict asks for something first (save a record, recall, wait), the engine does that and feeds the same event again.
//! Invariants (checked after every event):
//!   * a file that the kernel writes to by itself is claimed `Resident`, and content changes only under `Resident` or `Patched`;
//!   * a passthrough handle is open only on content that is wholly local, and nothing is released under any handle;
//!   * at most one transfer runs.

use crate::types::Claim;

/// Who serves the reads and writes of an inode's open handles; one mode per inode at a time, as the kernel demands
/// (a passthrough and a cached open of one inode exclude each other: EIO).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IoMode {
    Idle,
    /// The kernel reads and writes the lower file itself; so many handles.
    Pass(u32),
    /// The daemon is asked; so many handles.
    Daemon(u32),
}

/// The transfer that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activity {
    None,
    /// Content is being copied out. `disturbed`: it was or may have been changed since the copy began.
    Archiving {
        disturbed: bool,
    },
    /// Blocks are being freed; openers wait.
    Releasing,
    /// Content is being copied in. `cancelled`: nobody needs it any more.
    Recalling {
        cancelled: bool,
    },
    /// The other side of a pair decides who owns the content from now on: it may be read, if it is here, and not changed.
    HandingOver,
}

/// What happens to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A handle for reading. `passthrough`: the kernel may be handed the lower file.
    OpenRead {
        passthrough: bool,
    },
    /// A handle for writing (or both), content kept.
    OpenWrite {
        passthrough: bool,
    },
    /// A handle for writing that cuts the file to zero.
    OpenTruncate {
        passthrough: bool,
    },
    /// A handle was closed; `write`: it was one for writing.
    Close {
        write: bool,
    },
    /// Content is needed by a reader that the daemon serves.
    Read,
    /// A writer whom the daemon serves changes a part of the content.
    Write,
    /// Content changes in a way that needs all of it here.
    Rewrite,
    /// Content changes without a handle of ours: truncation by path.
    Resize {
        to_zero: bool,
    },
    /// Times are set.
    SetTimes,
    ArchiveBegin,
    /// The copy is complete. `unchanged`: size, times and the kernel say nobody wrote since it began.
    ArchiveCopied {
        unchanged: bool,
    },
    ArchiveAbandoned,
    ReleaseBegin,
    /// The releasing record is durable.
    ReleaseMarked,
    /// The blocks are free, durably.
    ReleasePunched,
    ReleaseAbandoned,
    RecallBegin,
    /// All content is local, verified and durable.
    RecallFetched,
    /// The recall ends before all content is local; what is local may stay.
    RecallPaused,
    RecallAbandoned,
    Pin(bool),
    /// Who owns the content is to change: by this side's asking, or the other's.
    HandOverBegin,
    /// That is decided, or was not begun after all: what the record says now.
    HandOverEnded(Claim, Paired),
    /// The record asked for by `Verdict::Save` is stored.
    Saved(Claim),
    /// It may or may not be stored: what is durable is unknown.
    SaveUnknown,
    /// A record was read again from stable storage after [`Event::SaveUnknown`].
    Reestablished(Claim),
}

/// What the engine does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Done, or allowed: go on.
    Go,
    /// Store this claim first, report [`Event::Saved`], then feed the event again. A claim of `Resident` or `Patched` raises the generation.
    /// Durably, except for `Dual`, whose loss is harmless.
    Save(Claim),
    /// Cut the lower file to zero, make that durable, then as for `Save(Resident)`. In this order: a resident record over
    /// punched blocks would serve zeros, while an empty file is the same under any claim.
    TruncateThenSave,
    /// Content must come back first.
    Recall,
    /// The other side of a pair owns content that is thrown away: ownership must come first, and none of the content.
    TakeEmpty,
    /// A recall runs that nobody needs any more: stop it, then wait.
    CancelRecall,
    /// Something short runs; ask again when it ends.
    Wait,
    /// It is so already.
    Already,
    Refuse(Refusal),
}

/// What a file of a pair's two sides is here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Paired {
    /// The generation fixes the bytes: it is raised before they change.
    pub sealed: bool,
    /// The other side owns the content: it is not changed here before that is.
    pub foreign: bool,
    /// Who owns it is being decided.
    pub handing_over: bool,
}

/// Why something cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    #[error("it is open or mapped")]
    Open,
    #[error("it is open for writing")]
    OpenForWriting,
    #[error("it is pinned (`tierfs unpin` allows it)")]
    Pinned,
    #[error("another transfer of it is running")]
    Busy,
    #[error("it has no verified remote copy yet (`tierfs migrate` makes one)")]
    NotArchived,
    #[error("it changed while it was copied")]
    Changed,
    #[error("the object that it shares is being deleted: `tierfs check` tells whether its content is whole")]
    ObjectGoing,
    #[error("a failed sync left unknown what is on disk")]
    Unknown,
}

/// One file as the process knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    claim: Claim,
    mode: IoMode,
    writers: u32,
    activity: Activity,
    pinned: bool,
    unknown: bool,
    sealed: bool,
    foreign: bool,
}

impl Machine {
    /// A file whose record says `claim`, with no handle and no transfer.
    pub fn new(claim: Claim, pinned: bool) -> Self {
        let (mode, activity) = (IoMode::Idle, Activity::None);
        Self { claim, mode, writers: 0, activity, pinned, unknown: false, sealed: false, foreign: false }
    }

    /// The same of a file that the other side of a pair has, too.
    pub fn paired(self, paired: Paired) -> Self {
        let activity = if paired.handing_over { Activity::HandingOver } else { self.activity };
        Self { activity, sealed: paired.sealed, foreign: paired.foreign, ..self }
    }

    /// Whether somebody has it open for writing through the mount.
    pub fn has_writers(&self) -> bool {
        self.writers > 0
    }

    /// Whether the other side of the pair owns the content.
    pub fn is_foreign(&self) -> bool {
        self.foreign
    }

    pub fn claim(&self) -> Claim {
        self.claim
    }

    pub fn mode(&self) -> IoMode {
        self.mode
    }

    pub fn activity(&self) -> Activity {
        self.activity
    }

    pub fn pinned(&self) -> bool {
        self.pinned
    }

    /// Whether a failed sync left the durable claim unknown.
    pub fn is_unknown(&self) -> bool {
        self.unknown
    }

    /// Whether local bytes are the content.
    pub fn is_local(&self) -> bool {
        matches!(self.claim, Claim::Resident | Claim::Dual) && !self.unknown
    }

    /// Handles open through the mount.
    pub fn handles(&self) -> u32 {
        match self.mode {
            IoMode::Idle => 0,
            IoMode::Pass(n) | IoMode::Daemon(n) => n,
        }
    }

    /// Feeds one event.
    pub fn apply(&mut self, event: Event) -> Verdict {
        let verdict = self.decide(event);
        self.assert_invariants();
        verdict
    }

    fn decide(&mut self, event: Event) -> Verdict {
        if self.unknown && !matches!(event, Event::Close { .. } | Event::Reestablished(_) | Event::SaveUnknown) {
            return match event {
                Event::ArchiveAbandoned | Event::ReleaseAbandoned | Event::RecallAbandoned => self.finish(),
                _ => Verdict::Refuse(Refusal::Unknown),
            };
        }
        match event {
            Event::OpenRead { passthrough } => match self.activity {
                Activity::Releasing => Verdict::Wait,
                // Decided against this side, the content may go: nothing of it is handed to the kernel.
                Activity::HandingOver => self.opened(false, false),
                _ => self.opened(passthrough && self.is_local() && !self.foreign, false),
            },
            // The daemon serves it, and is asked again before the first byte changes.
            Event::OpenWrite { .. } if self.can_be_patched() => match self.activity {
                Activity::Recalling { cancelled: true } | Activity::Releasing => Verdict::Wait,
                _ => self.opened(false, true),
            },
            Event::OpenWrite { passthrough } => match self.prepare_change(false) {
                Verdict::Go => self.opened(passthrough, true),
                first => first,
            },
            Event::OpenTruncate { passthrough } => match self.prepare_change(true) {
                Verdict::Go => self.opened(passthrough, true),
                first => first,
            },
            Event::Write => match (self.activity, self.claim) {
                // Both sides know of each other below the record: what is written is never filled.
                (Activity::Recalling { .. }, Claim::Patched) => Verdict::Go,
                _ => self.patch(),
            },
            Event::Resize { to_zero: false } => self.patch(),
            Event::Resize { to_zero: true } => self.prepare_change(true),
            Event::Rewrite => self.prepare_change(false),
            Event::Close { write } => self.closed(write),
            Event::Read if self.is_local() => Verdict::Go,
            Event::Read => Verdict::Recall,
            Event::SetTimes => match self.activity {
                // Both move the times themselves and put back what they found.
                Activity::Releasing | Activity::Recalling { .. } | Activity::HandingOver => Verdict::Wait,
                Activity::Archiving { .. } => {
                    self.activity = Activity::Archiving { disturbed: true };
                    Verdict::Go
                }
                Activity::None => Verdict::Go,
            },
            Event::ArchiveBegin => self.archive_begin(),
            Event::ArchiveCopied { unchanged } => match self.activity {
                Activity::Archiving { disturbed: false } if unchanged && self.writers == 0 => {
                    Verdict::Save(Claim::Dual)
                }
                _ => Verdict::Refuse(Refusal::Changed),
            },
            Event::ReleaseBegin => self.release_begin(),
            Event::ReleaseMarked => {
                assert_eq!((self.activity, self.claim), (Activity::Releasing, Claim::Releasing));
                Verdict::Go
            }
            Event::ReleasePunched => {
                assert_eq!((self.activity, self.claim), (Activity::Releasing, Claim::Releasing));
                Verdict::Save(Claim::Stub)
            }
            Event::RecallBegin => match (self.activity, self.claim) {
                (Activity::Recalling { .. } | Activity::Releasing, _) => Verdict::Wait,
                (_, Claim::Resident | Claim::Dual) => Verdict::Already,
                (Activity::HandingOver, _) => Verdict::Wait,
                (Activity::Archiving { .. }, _) => unreachable!("only resident content is archived"),
                (Activity::None, Claim::Stub | Claim::Partial | Claim::Patched | Claim::Releasing) => {
                    self.activity = Activity::Recalling { cancelled: false };
                    Verdict::Go
                }
            },
            Event::RecallFetched => match (self.activity, self.claim) {
                // No object has what was written meanwhile.
                (Activity::Recalling { .. }, Claim::Patched) => Verdict::Save(Claim::Resident),
                (Activity::Recalling { .. }, _) => Verdict::Save(Claim::Dual),
                _ => unreachable!("a recall ended that had not begun"),
            },
            Event::RecallPaused => match (self.activity, self.claim) {
                (Activity::Recalling { .. }, Claim::Partial | Claim::Patched) => self.finish(),
                (Activity::Recalling { .. }, _) => Verdict::Save(Claim::Partial),
                _ => unreachable!("a recall paused that had not begun"),
            },
            Event::ArchiveAbandoned | Event::ReleaseAbandoned | Event::RecallAbandoned => self.finish(),
            Event::Pin(pinned) => {
                self.pinned = pinned;
                Verdict::Go
            }
            Event::HandOverBegin => self.hand_over_begin(),
            Event::HandOverEnded(claim, paired) => {
                (self.claim, self.sealed, self.foreign) = (claim, paired.sealed, paired.foreign);
                match self.activity {
                    _ if paired.handing_over => self.activity = Activity::HandingOver,
                    Activity::HandingOver => self.activity = Activity::None,
                    _ => {}
                }
                Verdict::Go
            }
            Event::Saved(claim) => self.saved(claim),
            Event::SaveUnknown => {
                self.unknown = true;
                Verdict::Go
            }
            Event::Reestablished(claim) => {
                self.unknown = false;
                self.claim = claim;
                Verdict::Go
            }
        }
    }

    /// Content is about to change: what must come first so that no record over-claims.
    fn prepare_change(&mut self, to_zero: bool) -> Verdict {
        match (self.activity, self.claim) {
            (Activity::Releasing | Activity::HandingOver, _) => Verdict::Wait,
            // It must be this side's first. What is thrown away stays the other side's until it is, durably; of all else, every byte comes first.
            (Activity::Recalling { .. }, _) if self.foreign && to_zero => Verdict::Wait,
            (_, claim) if self.foreign && to_zero && claim.is_remote() => Verdict::TakeEmpty,
            _ if self.foreign => Verdict::Recall,
            // It may not be undone: what was written is nowhere else.
            (Activity::Recalling { .. }, Claim::Patched) if to_zero => Verdict::Wait,
            (Activity::Recalling { cancelled: false }, _) if to_zero => {
                self.activity = Activity::Recalling { cancelled: true };
                Verdict::CancelRecall
            }
            (Activity::Recalling { cancelled: true }, _) => Verdict::Wait,
            (Activity::Archiving { .. }, Claim::Resident) => {
                self.activity = Activity::Archiving { disturbed: true };
                if self.sealed { Verdict::Save(Claim::Resident) } else { Verdict::Go }
            }
            (_, Claim::Resident) if self.sealed => Verdict::Save(Claim::Resident),
            (_, Claim::Resident) => Verdict::Go,
            (_, Claim::Dual) => Verdict::Save(Claim::Resident),
            (_, claim) if claim.is_remote() && to_zero => Verdict::TruncateThenSave,
            (_, Claim::Stub | Claim::Partial | Claim::Patched | Claim::Releasing) => Verdict::Recall,
        }
    }

    /// Whether a part of the content may change while the rest is away.
    fn can_be_patched(&self) -> bool {
        // What the other side of a pair owns is taken first, all of it.
        matches!(self.claim, Claim::Stub | Claim::Partial | Claim::Patched) && !self.foreign
    }

    /// A part of the content is about to change.
    fn patch(&mut self) -> Verdict {
        match (self.activity, self.claim) {
            (Activity::Releasing | Activity::Recalling { .. }, _) if self.can_be_patched() => Verdict::Wait,
            (Activity::HandingOver, _) => Verdict::Wait,
            (_, Claim::Stub | Claim::Partial) if self.can_be_patched() => Verdict::Save(Claim::Patched),
            (_, Claim::Patched) => Verdict::Go,
            _ => self.prepare_change(false),
        }
    }

    fn opened(&mut self, passthrough: bool, write: bool) -> Verdict {
        self.mode = match self.mode {
            IoMode::Idle if passthrough => IoMode::Pass(1),
            IoMode::Idle => IoMode::Daemon(1),
            IoMode::Pass(n) => IoMode::Pass(n + 1),
            IoMode::Daemon(n) => IoMode::Daemon(n + 1),
        };
        self.writers += u32::from(write);
        Verdict::Go
    }

    fn closed(&mut self, write: bool) -> Verdict {
        self.writers -= u32::from(write);
        self.mode = match self.mode {
            IoMode::Pass(1) | IoMode::Daemon(1) => IoMode::Idle,
            IoMode::Pass(n) => IoMode::Pass(n - 1),
            IoMode::Daemon(n) => IoMode::Daemon(n - 1),
            IoMode::Idle => unreachable!("a handle was closed that was not open"),
        };
        Verdict::Go
    }

    fn archive_begin(&mut self) -> Verdict {
        match (self.activity, self.claim) {
            (Activity::None, Claim::Resident | Claim::Patched) if self.writers > 0 => {
                Verdict::Refuse(Refusal::OpenForWriting)
            }
            (Activity::None, Claim::Patched) => Verdict::Recall,
            (Activity::None, Claim::Resident) => {
                self.activity = Activity::Archiving { disturbed: false };
                Verdict::Go
            }
            (Activity::None, _) => Verdict::Already,
            _ => Verdict::Refuse(Refusal::Busy),
        }
    }

    fn release_begin(&mut self) -> Verdict {
        match (self.activity, self.claim) {
            (Activity::None, Claim::Stub) => Verdict::Already,
            (Activity::None, Claim::Resident | Claim::Patched) => Verdict::Refuse(Refusal::NotArchived),
            (Activity::None, _) if self.handles() > 0 => Verdict::Refuse(Refusal::Open),
            (Activity::None, _) if self.pinned => Verdict::Refuse(Refusal::Pinned),
            // A release that a crash cut short goes on where it was: the mark is stored, so it is only repeated.
            (Activity::None, Claim::Dual | Claim::Partial | Claim::Releasing) => {
                self.activity = Activity::Releasing;
                Verdict::Save(Claim::Releasing)
            }
            _ => Verdict::Refuse(Refusal::Busy),
        }
    }

    /// An archive that nobody disturbed becomes the question to the other side; so does a recall that has brought all. Somebody who has the file open
    /// by the kernel would go on with what may be freed.
    fn hand_over_begin(&mut self) -> Verdict {
        let in_use = self.writers > 0 || matches!(self.mode, IoMode::Pass(_));
        match self.activity {
            Activity::Archiving { disturbed: true } => Verdict::Refuse(Refusal::Changed),
            _ if in_use => Verdict::Refuse(Refusal::Open),
            Activity::None | Activity::Archiving { .. } | Activity::Recalling { .. } => {
                self.activity = Activity::HandingOver;
                Verdict::Go
            }
            Activity::Releasing | Activity::HandingOver => Verdict::Refuse(Refusal::Busy),
        }
    }

    fn saved(&mut self, claim: Claim) -> Verdict {
        if claim == Claim::Resident {
            self.sealed = false;
        }
        self.claim = claim;
        match (self.activity, claim) {
            (Activity::Archiving { .. } | Activity::Recalling { .. }, Claim::Dual)
            | (Activity::Recalling { .. }, Claim::Partial | Claim::Resident)
            | (Activity::Releasing, Claim::Stub | Claim::Dual) => self.finish(),
            _ => Verdict::Go,
        }
    }

    fn finish(&mut self) -> Verdict {
        self.activity = Activity::None;
        Verdict::Go
    }

    fn assert_invariants(&self) {
        assert!(self.writers <= self.handles(), "{self:?}");
        let writes_unseen = self.writers > 0 && matches!(self.mode, IoMode::Pass(_));
        assert!(!writes_unseen || self.claim == Claim::Resident || self.unknown, "{self:?}");
        let writable = !self.sealed && !self.foreign && self.activity != Activity::HandingOver;
        assert!(self.writers == 0 || writable || self.unknown, "{self:?}");
        match self.mode {
            IoMode::Pass(_) => {
                assert!(matches!(self.claim, Claim::Resident | Claim::Dual) || self.unknown, "{self:?}");
                assert!(self.activity != Activity::Releasing, "{self:?}");
            }
            IoMode::Daemon(_) => assert!(self.activity != Activity::Releasing, "{self:?}"),
            IoMode::Idle => {}
        }
        match self.activity {
            Activity::Archiving { .. } => assert!(self.claim == Claim::Resident || self.unknown, "{self:?}"),
            Activity::Recalling { .. } => assert!(self.claim.is_remote() || self.unknown, "{self:?}"),
            Activity::Releasing | Activity::None | Activity::HandingOver => {}
        }
    }
}

#[cfg(test)]
mod tests;
