//! A benchmark of a pair's endpoint: objects of its own are put, read, compared and deleted, by the client that transfers use.
//!
//! Nothing else in the bucket is touched, and nothing of a run stays: every key is noted before its object is put, all are deleted whatever
//! happened, and a listing tells at the end what is there all the same. The keys lie beside those of a probe, and are no file's by their names.

mod run;

use std::time::Duration;

use crate::ports::RemoteError;
use crate::types::ObjectKey;

pub use run::{Bench, sweep};

/// Longest object, in bytes: all of it is in memory, once.
pub const SIZE_MAX: u64 = 1 << 30;
/// Most objects of one size, and most requests in flight.
pub const COUNT_MAX: u32 = 10_000;
pub const AT_ONCE_MAX: u32 = 256;
/// Longest time that a run measures.
pub const TIME_MAX: Duration = Duration::from_secs(3_600);
/// Objects of a size where nothing is said: as many as make up these bytes, within bounds.
const BYTES_WANTED: u64 = 64 << 20;
const COUNT_FEW: u64 = 4;
const COUNT_MANY: u64 = 64;

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Lengths of the objects in bytes, 1 to [`SIZE_MAX`].
    pub sizes: Vec<u64>,
    /// Objects of each; so many as make sense unless it is said.
    pub count: Option<u32>,
    /// Requests in flight.
    pub at_once: Vec<u32>,
    /// Bytes of a ranged read; objects that are not longer are read as a whole only.
    pub range: u64,
    /// Nothing is measured after that; what is in hand is given up.
    pub time: Duration,
}

impl Plan {
    fn count(&self, size: u64, at_once: u32) -> u64 {
        let fitting = (BYTES_WANTED / size.max(1)).clamp(COUNT_FEW, COUNT_MANY).max(at_once.into());
        self.count.map_or(fitting, u64::from)
    }

    /// All steps, in their order.
    fn steps(&self) -> usize {
        let of_size = |size: &u64| if *size > self.range { 4 } else { 3 };
        self.sizes.iter().map(of_size).sum::<usize>() * self.at_once.len()
    }
}

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    Put,
    Get,
    Range,
    Delete,
}

impl Op {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Range => "range",
            Self::Delete => "delete",
        }
    }
}

/// How requests of one kind went.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Row {
    pub request: Op,
    /// Of the objects, in bytes.
    pub size: u64,
    pub at_once: u32,
    /// Requests that there were to be.
    pub wanted: u64,
    /// Those that succeeded; the figures are of them.
    pub done: u64,
    pub errors: u64,
    /// The first one.
    pub error: Option<String>,
    /// Nearest rank. None: nothing succeeded.
    pub median_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    pub max_ms: Option<f64>,
    /// From the first request to the last answer.
    pub seconds: f64,
    /// Content alone, in bytes.
    pub bytes: u64,
}

impl Row {
    /// Megabytes (10⁶) of content a second; none for deletions.
    pub fn mb_per_s(&self) -> Option<f64> {
        (self.request != Op::Delete && self.done > 0).then(|| self.bytes as f64 / 1e6 / self.seconds.max(1e-9))
    }

    pub fn per_s(&self) -> Option<f64> {
        (self.done > 0).then(|| self.done as f64 / self.seconds.max(1e-9))
    }
}

/// Why not all was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cut {
    /// Some step's share of the time was over before all its requests were done.
    Time,
    /// Somebody asked.
    Asked,
}

/// What a run found.
#[derive(Clone, Debug)]
pub struct Report {
    pub rows: Vec<Row>,
    pub cut: Option<Cut>,
    /// Objects of this run that are there, or may be.
    pub left: Vec<ObjectKey>,
    /// Why they are; or why nobody knows whether there are more.
    pub left_because: Option<RemoteError>,
    /// Objects of other runs: of ones that were killed, or that measure just now. None: the store did not say.
    pub others: Option<u64>,
}

/// A run that was not begun.
#[derive(Debug, thiserror::Error)]
#[error("{error}{}", perhaps_left(.left))]
pub struct Unusable {
    pub error: RemoteError,
    /// What the first try left.
    pub left: Vec<ObjectKey>,
}

fn perhaps_left(keys: &[ObjectKey]) -> String {
    keys.first().map_or(String::new(), |key| format!("; left behind, perhaps: {key}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_go_by_size() {
        let plan = |count| Plan { sizes: vec![1], count, at_once: vec![1], range: 1, time: Duration::ZERO };
        let of = |size, at_once| plan(None).count(size, at_once);
        assert_eq!((of(1, 1), of(64 << 10, 1), of(16 << 20, 1), of(1 << 30, 1)), (64, 64, 4, 4));
        assert_eq!((of(16 << 20, 8), of(64 << 10, 100)), (8, 100));
        assert_eq!(plan(Some(3)).count(1, 8), 3);
    }
}
