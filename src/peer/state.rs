//! What one side keeps of a file that two clusters share. All of it is durable, in the file's record.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::types::{Generation, Phase, Timestamp};

/// Names one file at both ends of a pair: 128 random bits, given by the metadata master before it makes the other side's stub.
///
/// A path alone may name another file after a rename. Never given twice: where a stub must be made again (it was removed, or its share restored),
/// the owner saves a new id first, or a late call could find a stub that has forgotten what it refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PairFileId(pub u128);

impl fmt::Display for PairFileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for PairFileId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hex = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let number = hex.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        number.map(Self).ok_or_else(|| format!("{text:?} is no file id: 32 lower-case hexadecimal digits are one"))
    }
}

/// Counts the changes of owner: rises by exactly one with each, so both sides agree who owned in which epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch of a file whose stub was just made.
    pub const FIRST: Self = Self(1);

    /// The epoch that the next change of owner begins.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Numbers one side's attempts at a handover within an epoch, from 1; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attempt(pub u32);

/// One attempt at a handover. Later ones are greater; the two sides count their attempts apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ticket {
    /// The epoch that begins if it is granted.
    pub epoch: Epoch,
    pub attempt: Attempt,
}

/// What `stat` tells of a content, and which one it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Content {
    pub generation: Generation,
    /// Length in bytes.
    pub len: u64,
    pub mtime: Timestamp,
}

/// The durable state of one file on one side.
///
/// Where no pair knows a file there is none. A record that carries one must also name the inode it was made for, as objects' keys do: copied to another
/// file (`cp -a` below the mount), it must not make that file an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ownership {
    pub file: PairFileId,
    /// The last change of owner that this side knows.
    pub epoch: Epoch,
    pub phase: Phase,
    /// Stub and taking: the content last known, which chunks here are of, and what `stat` shows. Offering: what is offered. Owner: the generation is that of
    /// the bytes here; length and mtime are the inode's, and here only as they were when this was saved.
    pub content: Content,
    /// This side's last attempt to begin the epoch after `epoch`.
    pub attempt: Attempt,
    /// The last of the other side's attempts that was refused: neither it nor an earlier one may be granted any more.
    pub refused: Ticket,
}

impl Ownership {
    /// The state at the master, to be durable before the other side's stub can exist. Nobody may have the file open for writing.
    pub fn first_owner(file: PairFileId, content: Content) -> Self {
        Self::new(file, Phase::Owner { published: true }, content)
    }

    /// The state of the stub that is made for it.
    pub fn first_stub(file: PairFileId, content: Content) -> Self {
        Self::new(file, Phase::Stub, content)
    }

    fn new(file: PairFileId, phase: Phase, content: Content) -> Self {
        Self { file, epoch: Epoch::FIRST, phase, content, attempt: Attempt(0), refused: Ticket::default() }
    }

    /// Whether users of this side may change the content without asking the other.
    pub fn is_owner(&self) -> bool {
        matches!(self.phase, Phase::Owner { .. })
    }

    /// The ticket of this side's last attempt.
    pub fn ticket(&self) -> Ticket {
        Ticket { epoch: self.epoch.next(), attempt: self.attempt }
    }

    /// The attempt after the last.
    pub(super) fn asking(self, phase: Phase, content: Content) -> Self {
        Self { phase, content, attempt: Attempt(self.attempt.0.saturating_add(1)), ..self }
    }

    /// The handover has happened: a new epoch, in which this side has tried nothing. What it refused of the epoch after, which the other side had heard of
    /// first, stays refused.
    pub(super) fn handed_over(self, phase: Phase, content: Content) -> Self {
        let epoch = self.epoch.next();
        let refused = if self.refused.epoch > epoch { self.refused } else { Ticket::default() };
        Self { epoch, phase, content, attempt: Attempt(0), refused, ..self }
    }
}
