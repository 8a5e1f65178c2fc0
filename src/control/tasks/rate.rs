//! How fast tasks may go at which time of the day, and how many files one has.

use std::fmt;
use std::time::{Duration, Instant};

use crate::pair::units::{exact_size, parse_size};

/// Files of one task, unless the mount says otherwise.
pub const TASK_FILES: usize = 500;
/// What a mount may say at most; so many are in memory, and as many are tried once more after a crash.
pub const TASK_FILES_MAX: usize = 10_000;

/// What a mount says of its tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskOptions {
    pub rates: Rates,
    /// Files of one task.
    pub files: usize,
}

const DAY_MINUTES: u32 = 24 * 60;

/// Bytes a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    Unlimited,
    Bytes(u64),
    /// Nothing begins.
    Off,
}

/// Rates by windows of the day, UTC; the first that is open counts, and what has no window is always open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rates(Vec<(Rate, Option<(u32, u32)>)>);

impl Rates {
    /// Reads `RATE[@HH:MM-HH:MM]`, several with `+` between them; a rate is a size a second, `unlimited` or `off`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let one = |part: &str| {
            let (rate, window) = part.split_once('@').map_or((part, None), |(rate, window)| (rate, Some(window)));
            let rate = match rate {
                "unlimited" => Rate::Unlimited,
                "off" => Rate::Off,
                size => match parse_size(size.strip_suffix("/s").unwrap_or(size)) {
                    Ok(bytes) if bytes > 0 => Rate::Bytes(bytes),
                    _ => return Err(format!("{size:?} is no rate: write one like 50MiB, unlimited or off")),
                },
            };
            Ok((rate, window.map(parse_window).transpose()?))
        };
        Ok(Self(text.split('+').map(one).collect::<Result<_, _>>()?))
    }

    /// The rate at a time, seconds since 1970.
    pub fn at(&self, now: i64) -> Rate {
        let minute = (now.rem_euclid(86_400) / 60) as u32;
        let is_open = |window: &Option<(u32, u32)>| match *window {
            None => true,
            Some((from, to)) if from <= to => (from..to).contains(&minute),
            Some((from, to)) => minute >= from || minute < to,
        };
        self.0.iter().find(|(_, window)| is_open(window)).map_or(Rate::Unlimited, |(rate, _)| *rate)
    }
}

impl fmt::Display for Rates {
    /// As it is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("unlimited");
        }
        for (n, (rate, window)) in self.0.iter().enumerate() {
            let plus = if n > 0 { "+" } else { "" };
            match rate {
                Rate::Unlimited => write!(f, "{plus}unlimited")?,
                Rate::Off => write!(f, "{plus}off")?,
                Rate::Bytes(bytes) => write!(f, "{plus}{}", exact_size(*bytes))?,
            }
            if let Some((from, to)) = window {
                write!(f, "@{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60)?;
            }
        }
        Ok(())
    }
}

/// Keeps the bytes of the files that are begun below a rate. What a file has beyond its share is owed, and the next one begins when that is paid, at the rate
/// that there is by then; so in any time no more bytes begin than the rate allows for it, and one file.
#[derive(Debug)]
pub struct Pacer {
    owed: f64,
    at: Instant,
    /// Bytes a second since then.
    rate: u64,
}

impl Pacer {
    pub fn new(now: Instant) -> Self {
        Self { owed: 0.0, at: now, rate: 0 }
    }

    /// How long until a file may begin, if the rate stays: bytes a second.
    pub fn wait(&mut self, rate: u64, now: Instant) -> Duration {
        let paid = now.saturating_duration_since(self.at).as_secs_f64() * self.rate as f64;
        (self.owed, self.at, self.rate) = ((self.owed - paid).max(0.0), now, rate);
        // A wait beyond all reason is asked for again.
        Duration::try_from_secs_f64(self.owed / rate as f64).unwrap_or(Duration::MAX)
    }

    /// A file of so many bytes begins.
    pub fn begin(&mut self, bytes: u64) {
        self.owed += bytes as f64;
    }

    /// There is no rate now: nothing is owed.
    pub fn forgive(&mut self) {
        self.owed = 0.0;
    }
}

fn parse_window(text: &str) -> Result<(u32, u32), String> {
    let minute = |text: &str| {
        let (hour, minute) = text.split_once(':')?;
        let (hour, minute) = (hour.parse::<u32>().ok()?, minute.parse::<u32>().ok()?);
        let at = hour.checked_mul(60)?.checked_add(minute)?;
        (minute < 60 && at <= DAY_MINUTES).then_some(at)
    };
    let window = text.split_once('-').and_then(|(from, to)| Some((minute(from)?, minute(to)?)));
    window
        .filter(|(from, to)| from != to)
        .ok_or_else(|| format!("{text:?} is no window: write it like 22:00-06:00 (UTC)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_open_window_counts() {
        let rates = Rates::parse("off@12:00-13:00+unlimited@22:00-06:00+50MiB/s").unwrap();
        let at = |hour: i64, minute: i64| rates.at(1_763_683_200 + hour * 3600 + minute * 60);
        assert_eq!([at(12, 0), at(12, 59), at(13, 0)], [Rate::Off, Rate::Off, Rate::Bytes(50 << 20)]);
        assert_eq!(
            [at(22, 0), at(0, 0), at(5, 59), at(6, 0)],
            [Rate::Unlimited, Rate::Unlimited, Rate::Unlimited, Rate::Bytes(50 << 20)]
        );
        assert_eq!(Rates::default().at(0), Rate::Unlimited);
        assert_eq!(Rates::parse("off@01:00-02:00").unwrap().at(0), Rate::Unlimited);
        for text in ["off@12:00-13:00+unlimited@22:00-06:00+50MiB", "unlimited", "1500@00:00-24:00"] {
            assert_eq!(Rates::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Rates::default().to_string(), "unlimited");
        for bad in ["", "fast", "0", "1MiB@6-7", "1MiB@06:00-06:00", "off@25:00-26:00", "1MiB+"] {
            assert!(Rates::parse(bad).is_err(), "{bad:?}");
        }
    }

    /// Begins files as tasks do, by a clock that only waiting moves; when, and how many bytes each. `rate_at`: bytes a second by seconds since the start.
    fn begun(sizes: &[u64], rate_at: impl Fn(f64) -> u64) -> Vec<(f64, u64)> {
        let start = Instant::now();
        let (mut now, mut pacer) = (start, Pacer::new(start));
        let mut begun = Vec::new();
        for size in sizes {
            loop {
                let wait = pacer.wait(rate_at((now - start).as_secs_f64()), now);
                if wait.is_zero() {
                    break;
                }
                // The queue looks again after a second, whatever is left.
                now += wait.min(Duration::from_secs(1));
            }
            pacer.begin(*size);
            begun.push(((now - start).as_secs_f64(), *size));
        }
        begun
    }

    #[test]
    fn no_more_bytes_begin_than_the_rate_allows() {
        const RATE: u64 = 1 << 20;
        let sizes: Vec<u64> = (0..2_000u64).map(|n| [0, 1, 4_096, 300_000, 5 << 20, 77][n as usize % 6] + n).collect();
        let begun = begun(&sizes, |_| RATE);
        // From any file to any later one: all but the last are paid for.
        for (from, (first_at, _)) in begun.iter().enumerate() {
            let mut bytes = 0;
            for (at, size) in &begun[from..] {
                assert!(bytes as f64 <= (at - first_at) * RATE as f64 + 1.0, "{bytes} bytes from {first_at} to {at}");
                bytes += size;
            }
        }
        // And no slower than it must: the last one begins when the others are paid for.
        let total: u64 = sizes[..sizes.len() - 1].iter().sum();
        let last = begun.last().unwrap().0;
        assert!((last - total as f64 / RATE as f64).abs() < 0.01, "{last}");
    }

    #[test]
    fn what_is_owed_is_paid_at_the_rate_that_there_is_then() {
        // 100 bytes at 10 a second; after four seconds, 60 are owed, at 30 a second.
        let begun = begun(&[100, 1], |s| if s < 3.999 { 10 } else { 30 });
        assert!((begun[1].0 - 6.0).abs() < 0.01, "{begun:?}");
        let now = Instant::now();
        let mut pacer = Pacer::new(now);
        pacer.begin(1_000_000);
        pacer.forgive();
        assert_eq!(pacer.wait(1, now), Duration::ZERO);
        pacer.begin(u64::MAX);
        assert!(pacer.wait(1, now) > Duration::from_secs(1 << 40));
    }
}
