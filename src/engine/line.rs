//! What the way to the remote can carry, as its last answers show: how far ahead of a reader it pays to fetch.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How far is read ahead of one reader, in bytes: at least, so that several requests run at once, and at most.
const WINDOW_MIN: u64 = 8 << 20;
const WINDOW_MAX: u64 = 64 << 20;
/// The weight of an old value against a new one.
const OLD: u64 = 7;

/// Averages over the last answers.
#[derive(Debug, Default)]
pub struct Line {
    /// From request to the first bytes, in microseconds.
    latency_us: AtomicU64,
    /// Of one answer, in bytes per second.
    rate: AtomicU64,
    memory_is_short: AtomicBool,
    /// Requests for one file at once.
    requests: u64,
}

impl Line {
    pub fn new(requests: usize) -> Self {
        Self { requests: requests as u64, ..Self::default() }
    }

    /// Notes an answer: when its first bytes came, and how long all of its `bytes` took after that.
    pub fn note(&self, first: Duration, rest: Duration, bytes: u64) {
        average(&self.latency_us, first.as_micros() as u64);
        if let Some(rate) = bytes.saturating_mul(1_000_000).checked_div(rest.as_micros() as u64) {
            average(&self.rate, rate);
        }
    }

    /// Says whether most of the memory for content is in use.
    pub fn set_memory_is_short(&self, short: bool) {
        self.memory_is_short.store(short, Ordering::Relaxed);
    }

    /// Bytes to fetch ahead of one reader at most: twice what is on its way when the line is full (the
    /// bandwidth-delay product). A quarter where memory is short.
    pub fn window_max(&self) -> u64 {
        let rate = self.rate.load(Ordering::Relaxed).saturating_mul(self.requests);
        let on_its_way = u128::from(rate) * u128::from(self.latency_us.load(Ordering::Relaxed)) / 1_000_000;
        let window = u64::try_from(2 * on_its_way).unwrap_or(u64::MAX).clamp(WINDOW_MIN, WINDOW_MAX);
        if self.memory_is_short.load(Ordering::Relaxed) { window / 4 } else { window }
    }
}

fn average(into: &AtomicU64, value: u64) {
    // Two at once may lose one of them: it is an estimate.
    let old = into.load(Ordering::Relaxed);
    let new = if old == 0 { value } else { (old.saturating_mul(OLD).saturating_add(value)) / (OLD + 1) };
    into.store(new, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_twice_what_is_on_its_way() {
        let line = Line::new(8);
        assert_eq!(line.window_max(), WINDOW_MIN);
        // 20 ms, 100 MB/s a request.
        line.note(Duration::from_millis(20), Duration::from_millis(10), 1_000_000);
        assert_eq!(line.window_max(), 32_000_000);
        line.set_memory_is_short(true);
        assert_eq!(line.window_max(), 8_000_000);
        line.set_memory_is_short(false);
        // An answer in one piece says nothing of the rate.
        line.note(Duration::from_millis(20), Duration::ZERO, 1_000_000);
        assert_eq!(line.window_max(), 32_000_000);
        line.note(Duration::from_secs(20), Duration::from_millis(1), 1_000_000);
        assert_eq!(line.window_max(), WINDOW_MAX);
    }
}
