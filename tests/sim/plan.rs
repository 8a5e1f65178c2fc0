//! What goes wrong in a schedule, and where: at the operation with a given number.

use std::collections::BTreeMap;

use tierfs::ports::RemoteErrorKind;

use crate::dice::Dice;

/// What an operation does, as far as it decides how it can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Looks at the share, its content or its space.
    Look,
    Open,
    /// Changes metadata of the share.
    Change,
    /// Writes content to the share.
    Store,
    Sync,
    /// Changes the journal.
    Note,
    /// Asks the journal.
    Recollect,
    Put,
    Get,
    Head,
    Delete,
    List,
    /// A user's own step on the share, which does not go through the daemon.
    Direct,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The share refuses; nothing happened.
    Errno(i32),
    /// The share refuses after a part of it happened.
    Partly(i32),
    /// Nothing happened.
    Before(RemoteErrorKind),
    /// It happened, and the answer was lost.
    After(RemoteErrorKind),
    /// It was given up, and happens a minute later all the same.
    Late,
    /// Bytes that are not those asked for.
    Corrupted,
    /// Fewer bytes than asked for.
    Cut,
    /// The journal refuses; nothing is stored.
    Refused,
    /// The journal's sync failed: stored, and nothing more is until it is opened anew.
    Poisoned,
}

use RemoteErrorKind::{Corrupt, Denied, NotFound, Server, SlowDown, TimedOut};

impl Kind {
    pub fn faults(self) -> &'static [Fault] {
        use Fault::*;
        match self {
            Self::Look => &[Errno(libc::EIO), Errno(libc::EINTR)],
            Self::Open => &[Errno(libc::EIO), Errno(libc::EINTR), Errno(libc::ENFILE)],
            Self::Change => &[Errno(libc::EIO), Errno(libc::ENOSPC)],
            Self::Store => &[Errno(libc::ENOSPC), Errno(libc::EIO), Partly(libc::ENOSPC)],
            Self::Sync => &[Errno(libc::EIO), Partly(libc::EIO)],
            Self::Note => &[Refused, Poisoned],
            Self::Recollect => &[Refused],
            Self::Put => &[Before(Server), After(TimedOut), Before(SlowDown), Cut, Before(Denied)],
            Self::Get => &[Before(Server), Before(TimedOut), Before(Corrupt), Corrupted, Cut, Before(NotFound)],
            Self::Head => &[Before(Server), Before(TimedOut), Before(NotFound), Corrupted],
            Self::Delete => &[Before(Server), After(TimedOut), Before(SlowDown), Late],
            Self::List => &[Before(Server)],
            Self::Direct => &[Errno(libc::EIO)],
        }
    }

    /// Whether a crash before it differs from one before the next operation.
    pub fn changes(self) -> bool {
        !matches!(self, Self::Look | Self::Open | Self::Recollect | Self::Get | Self::Head | Self::List)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// One of the faults that the operation can have, by number.
    Fault(u64),
    /// The daemon is killed.
    Kill,
    /// So is everything else; the number decides what the disk has kept.
    PowerLoss(u64),
}

/// Events by the number of the operation they come before, counted from the beginning of the schedule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan(pub BTreeMap<u64, Event>);

impl Plan {
    pub fn one(at: u64, event: Event) -> Self {
        Self([(at, event)].into())
    }

    /// Up to three crashes and six faults within the first `within` operations.
    pub fn random(dice: &mut Dice, within: u64) -> Self {
        let mut plan = Self::default();
        for _ in 0..dice.below(4) {
            let event = if dice.once_in(2) { Event::Kill } else { Event::PowerLoss(dice.roll()) };
            plan.0.insert(1 + dice.below(within), event);
        }
        // Half of the schedules have no faults but crashes: then no access may fail.
        let faults = if dice.once_in(2) { 0 } else { 1 + dice.below(6) };
        for _ in 0..faults {
            plan.0.entry(1 + dice.below(within)).or_insert(Event::Fault(dice.roll()));
        }
        plan
    }
}
