//! Why a file is not for tiering as it is: what policies, archiving by age and the keeper of room look at alike.

use std::time::Duration;

use super::protocol::WhyReason;
use crate::pair::units::exact_duration;
use crate::ports::Attr;
use crate::record::Record;
use crate::types::{FileState, Timestamp};

/// What the engine says of a file.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    pub state: FileState,
    pub pinned: bool,
    /// Locked for retention.
    pub retained: bool,
}

impl Standing {
    pub fn of(record: &Record) -> Self {
        Self { state: record.claim.into(), pinned: record.flags.pinned, retained: record.flags.retained }
    }
}

/// Why nothing is done with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    Empty,
    Sealed,
    /// There is nothing to do, which is named by its verb.
    State(FileState, String),
    Pinned,
    NotPinned,
    Retained,
    /// Its record cannot be read.
    Unreadable,
    /// Until then its content has not been unchanged for so long. Seconds since 1970.
    Young {
        until: i64,
        rest: Duration,
    },
    /// Nothing is allocated, so nothing can be freed.
    Spaceless,
    Open {
        handles: u64,
    },
}

impl Unfit {
    /// In a word, for people, and until when.
    pub fn reason(&self) -> WhyReason {
        let (word, text) = match self {
            Self::Empty => ("empty", "it is empty".to_owned()),
            Self::Sealed => ("sealed", "it is immutable or append-only".into()),
            Self::State(state, verb) => ("state", format!("it is {state}: nothing to {verb}")),
            Self::Pinned => ("pinned", "it is pinned".into()),
            Self::NotPinned => ("not_pinned", "it is not pinned".into()),
            Self::Retained => ("retained", "it is retention-locked".into()),
            Self::Unreadable => ("damaged", "its record cannot be read".into()),
            Self::Young { until, rest } => {
                let text = format!("its content has not been unchanged for {}", exact_duration(rest.as_secs()));
                return WhyReason::new("age", text).at(*until);
            }
            Self::Spaceless => ("no_space", "it takes no space here".into()),
            Self::Open { handles } => ("open", format!("it is open or mapped ({handles} handles)")),
        };
        WhyReason::new(word, text)
    }
}

/// Whether its content was changed within `rest`.
pub fn is_young(attr: &Attr, rest: Duration, now: Timestamp) -> Option<Unfit> {
    let secs = i64::try_from(rest.as_secs()).unwrap_or(i64::MAX);
    let young = now.nanos_since(attr.mtime) < rest.as_nanos() as i128;
    young.then(|| Unfit::Young { until: attr.mtime.secs.saturating_add(secs), rest })
}

/// Why archiving by age leaves a file alone, its age aside. `standing` is asked for last; `None`: its record cannot be read.
pub fn is_unarchivable(attr: &Attr, standing: impl FnOnce() -> Option<Standing>) -> Option<Unfit> {
    if attr.size == 0 {
        return Some(Unfit::Empty);
    }
    if attr.sealed {
        return Some(Unfit::Sealed);
    }
    match standing() {
        None => Some(Unfit::Unreadable),
        Some(Standing { state, .. }) if state != FileState::Resident => Some(Unfit::State(state, "archive".into())),
        Some(Standing { retained, .. }) => retained.then_some(Unfit::Retained),
    }
}

/// Why nothing of a file is freed for room. `known` tells how it stands, and how many have it open; `None`: its record cannot be read.
pub fn is_unreleasable(attr: &Attr, known: impl FnOnce() -> Option<(Standing, u64)>) -> Option<Unfit> {
    if attr.size == 0 {
        return Some(Unfit::Empty);
    }
    if attr.sealed {
        return Some(Unfit::Sealed);
    }
    match known() {
        None => Some(Unfit::Unreadable),
        Some((Standing { state, .. }, _)) if state != FileState::Dual => Some(Unfit::State(state, "release".into())),
        Some((Standing { pinned: true, .. }, _)) => Some(Unfit::Pinned),
        Some((Standing { retained: true, .. }, _)) => Some(Unfit::Retained),
        Some(_) if attr.blocks == 0 => Some(Unfit::Spaceless),
        Some((_, handles)) => (handles > 0).then_some(Unfit::Open { handles }),
    }
}
