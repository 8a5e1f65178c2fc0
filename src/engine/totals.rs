//! What the engine has done since the mount: counters and histograms for `tierfs info`, `tierfs top` and the metrics endpoint.
//!
//! Invariant: noting something is a handful of relaxed additions to memory that is there already: no lock, no allocation, whoever reads meanwhile.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::EngineError;
use crate::admission::Class;
use crate::ports::RemoteErrorKind;

/// Upper bounds of a histogram's buckets, seconds; what takes longer is in one more.
pub const BOUNDS_S: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// How long something took, how often.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS_S.len() + 1],
    micros: AtomicU64,
}

impl Histogram {
    pub fn note(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let at = BOUNDS_S.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS_S.len());
        self.buckets[at].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How many took no longer than each bound, then all of them; and the sum, seconds.
    pub fn read(&self) -> ([u64; BOUNDS_S.len() + 1], f64) {
        let mut below = 0;
        let counts = std::array::from_fn(|at| {
            below += self.buckets[at].load(Ordering::Relaxed);
            below
        });
        (counts, self.micros.load(Ordering::Relaxed) as f64 / 1e6)
    }
}

/// A transfer of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    Archive,
    Release,
    Recall,
}

impl Moved {
    pub const ALL: [Self; 3] = [Self::Archive, Self::Release, Self::Recall];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Archive => "archive",
            Self::Release => "release",
            Self::Recall => "recall",
        }
    }
}

/// How a transfer can end: `done`; `skipped` (in use, changed, pinned …); `ended` (nobody wanted it any more, or somebody ended it); else why it
/// failed, in the words of the dead-letter list.
pub const ENDS: [&str; 10] =
    ["done", "skipped", "ended", "remote", "configuration", "checksum", "missing", "refused", "record", "local"];

/// The place in [`ENDS`] of how a transfer ended.
fn end_of(error: Option<&EngineError>) -> usize {
    let word = match error {
        None => "done",
        Some(error) if error.is_skip() => "skipped",
        Some(error) => error.reason().map_or("ended", |reason| reason.as_str()),
    };
    ENDS.iter().position(|end| *end == word).unwrap_or(2)
}

/// What a pair's store is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Ask {
    Put,
    Get,
    Stream,
    GetAll,
    Head,
    Restore,
    Delete,
    List,
    ListUploads,
    EndUploads,
}

impl Ask {
    pub const ALL: [Self; 10] = [
        Self::Put,
        Self::Get,
        Self::Stream,
        Self::GetAll,
        Self::Head,
        Self::Restore,
        Self::Delete,
        Self::List,
        Self::ListUploads,
        Self::EndUploads,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Stream => "stream",
            Self::GetAll => "get_all",
            Self::Head => "head",
            Self::Restore => "restore",
            Self::Delete => "delete",
            Self::List => "list",
            Self::ListUploads => "list_uploads",
            Self::EndUploads => "end_uploads",
        }
    }
}

/// How a request to the store can end, in the order of [`answer_of`].
pub const ANSWERS: [&str; 13] = [
    "ok",
    "not_found",
    "conflict",
    "unreachable",
    "timed_out",
    "slow_down",
    "server",
    "denied",
    "no_such_bucket",
    "corrupt",
    "archived",
    "source",
    "rejected",
];

fn answer_of(error: Option<RemoteErrorKind>) -> usize {
    match error {
        None => 0,
        Some(RemoteErrorKind::NotFound) => 1,
        Some(RemoteErrorKind::Conflict) => 2,
        Some(RemoteErrorKind::Unreachable) => 3,
        Some(RemoteErrorKind::TimedOut) => 4,
        Some(RemoteErrorKind::SlowDown) => 5,
        Some(RemoteErrorKind::Server) => 6,
        Some(RemoteErrorKind::Denied) => 7,
        Some(RemoteErrorKind::NoSuchBucket) => 8,
        Some(RemoteErrorKind::Corrupt) => 9,
        Some(RemoteErrorKind::Archived) => 10,
        Some(RemoteErrorKind::Source) => 11,
        Some(RemoteErrorKind::Rejected) => 12,
    }
}

/// Requests of one kind.
#[derive(Debug, Default)]
pub struct Asked {
    answers: [AtomicU64; ANSWERS.len()],
    /// Until the answer, or for `stream` until its body begins.
    pub seconds: Histogram,
}

impl Asked {
    /// How often each answer came, in the order of [`ANSWERS`].
    pub fn answers(&self) -> impl Iterator<Item = (&'static str, u64)> {
        ANSWERS.into_iter().zip(&self.answers).map(|(word, count)| (word, count.load(Ordering::Relaxed)))
    }
}

/// What a request of the kernel waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Stall {
    /// Content that is remote, to read, write or truncate it.
    Content,
    /// A small file's content, as it is opened for reading.
    Open,
    /// A short step of a transfer: a release, or the end of a recall.
    Step,
    /// Room on a share that is full.
    Space,
}

impl Stall {
    pub const ALL: [Self; 4] = [Self::Content, Self::Open, Self::Step, Self::Space];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Content => "content",
            Self::Open => "open",
            Self::Step => "step",
            Self::Space => "space",
        }
    }
}

/// Counters since the mount began.
#[derive(Debug, Default)]
pub struct Totals {
    pub archived_files: AtomicU64,
    pub archived_bytes: AtomicU64,
    pub released_files: AtomicU64,
    /// Sizes of the files released.
    pub released_bytes: AtomicU64,
    /// Files of which all came back, and their sizes.
    pub recalled_files: AtomicU64,
    pub recalled_bytes: AtomicU64,
    /// Content that came back and was found right, kept or only served.
    pub fetched_bytes: AtomicU64,
    /// Transfers running now.
    pub running: AtomicU64,
    transfers: [[AtomicU64; ENDS.len()]; Moved::ALL.len()],
    recalls_begun: [AtomicU64; Class::ALL.len()],
    pub stalls: [Histogram; Stall::ALL.len()],
    asked: [Asked; Ask::ALL.len()],
}

impl Totals {
    /// A transfer has ended.
    pub fn note_end(&self, what: Moved, error: Option<&EngineError>) {
        self.transfers[what as usize][end_of(error)].fetch_add(1, Ordering::Relaxed);
    }

    /// How transfers of one kind ended, in the order of [`ENDS`].
    pub fn ends(&self, what: Moved) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = &self.transfers[what as usize];
        ENDS.into_iter().zip(counts).map(|(word, count)| (word, count.load(Ordering::Relaxed)))
    }

    /// A recall began, for somebody of this class.
    pub fn note_recall(&self, class: Class) {
        self.recalls_begun[class as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn recalls_begun(&self, class: Class) -> u64 {
        self.recalls_begun[class as usize].load(Ordering::Relaxed)
    }

    /// A request of the kernel has waited.
    pub fn note_stall(&self, stall: Stall, took: Duration) {
        self.stalls[stall as usize].note(took);
    }

    /// The store has answered, or failed to.
    pub fn note_answer(&self, ask: Ask, took: Duration, error: Option<RemoteErrorKind>) {
        let asked = &self.asked[ask as usize];
        asked.answers[answer_of(error)].fetch_add(1, Ordering::Relaxed);
        asked.seconds.note(took);
    }

    pub fn asked(&self, ask: Ask) -> &Asked {
        &self.asked[ask as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::Reason;

    #[test]
    fn a_histogram_counts_what_is_below_each_bound() {
        let histogram = Histogram::default();
        for millis in [1, 2, 2000, 400_000] {
            histogram.note(Duration::from_millis(millis));
        }
        let (counts, sum) = histogram.read();
        assert_eq!((counts[0], counts[1], counts[9], counts[10], counts[15], counts[16]), (1, 2, 2, 3, 3, 4));
        assert!((sum - 402.003).abs() < 1e-6, "{sum}");
    }

    #[test]
    fn every_end_has_its_word() {
        for reason in Reason::ALL {
            assert!(ENDS.contains(&reason.as_str()), "{reason:?}");
        }
        assert_eq!(ENDS[end_of(Some(&EngineError::Cancelled))], "ended");
        let totals = Totals::default();
        totals.note_end(Moved::Release, None);
        totals.note_answer(Ask::EndUploads, Duration::ZERO, Some(RemoteErrorKind::Rejected));
        let done: Vec<_> = totals.ends(Moved::Release).filter(|(_, count)| *count > 0).collect();
        assert_eq!(done, [("done", 1)]);
        let answers: Vec<_> = totals.asked(Ask::EndUploads).answers().filter(|(_, count)| *count > 0).collect();
        assert_eq!(answers, [("rejected", 1)]);
        assert_eq!(Ask::ALL.map(|ask| ask as usize), std::array::from_fn(|at| at));
        assert_eq!(Stall::ALL.map(|stall| stall as usize), std::array::from_fn(|at| at));
    }
}
