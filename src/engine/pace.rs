//! How fast background reading may go.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Engine;

/// How often it is looked whether transfers still run …
const YIELD_STEP: Duration = Duration::from_millis(50);
/// … and how often at most for one chunk: a mount that is never idle is read through all the same, slowly.
const YIELDS_MAX: u32 = 200;

/// So many bytes a second on average, whatever the pieces are. Time comes from the caller.
#[derive(Debug)]
struct Rate {
    bytes_per_s: u64,
    /// When what was booked so far is paid, in ns.
    paid_at_ns: u64,
}

impl Rate {
    /// Books `bytes` at `now_ns`; how long they must wait, in ns. The first wait for nothing, and what was not used is not saved up.
    fn book(&mut self, now_ns: u64, bytes: u64) -> u64 {
        let begins = self.paid_at_ns.max(now_ns);
        let takes = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_s.max(1));
        self.paid_at_ns = begins.saturating_add(u64::try_from(takes).unwrap_or(u64::MAX));
        begins - now_ns
    }
}

/// Holds background reads back to a rate, and while transfers run.
#[derive(Debug)]
pub struct Pace {
    begun: Instant,
    rate: Mutex<Rate>,
}

impl Pace {
    /// `bytes_per_s` > 0.
    pub fn new(bytes_per_s: u64) -> Self {
        Self { begun: Instant::now(), rate: Mutex::new(Rate { bytes_per_s, paid_at_ns: 0 }) }
    }

    /// Waits until `bytes` may be read.
    pub(super) async fn wait(&self, engine: &Engine, bytes: u64) {
        for _ in 0..YIELDS_MAX {
            if engine.is_idle() {
                break;
            }
            tokio::time::sleep(YIELD_STEP).await;
        }
        let wait = self.rate.lock().book(self.begun.elapsed().as_nanos() as u64, bytes);
        tokio::time::sleep(Duration::from_nanos(wait)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::Rate;

    const S: u64 = 1_000_000_000;

    #[test]
    fn bytes_take_their_time_on_average() {
        let mut rate = Rate { bytes_per_s: 100, paid_at_ns: 0 };
        // One that waits as it is told reads at the rate, whatever the pieces.
        let (mut now, mut read) = (5 * S, 0);
        for bytes in [100, 1, 1, 98, 1_000, 0, 7] {
            now += rate.book(now, bytes);
            // What was read before took at least its time.
            assert!(u128::from(now - 5 * S) >= u128::from(read) * u128::from(S) / 100, "{bytes}");
            read += bytes;
        }
        assert_eq!(now, 5 * S + 12 * S, "1,200 bytes before the last took 12 s");
        // A pause is not made up for.
        assert_eq!(rate.book(now + 1_000 * S, 100), 0);
        assert_eq!(rate.book(now + 1_000 * S, 100), S);
    }

    #[test]
    fn extremes_do_not_overflow() {
        let mut rate = Rate { bytes_per_s: 1, paid_at_ns: 0 };
        assert_eq!(rate.book(1, u64::MAX), 0);
        assert_eq!(rate.book(2, u64::MAX), u64::MAX - 2);
        let mut rate = Rate { bytes_per_s: 0, paid_at_ns: 0 };
        assert_eq!((rate.book(0, 1), rate.book(0, 1)), (0, S));
    }
}
