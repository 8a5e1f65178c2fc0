//! How fast tasks may go at which time of the day.

use crate::pair::units::parse_size;

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
        for bad in ["", "fast", "0", "1MiB@6-7", "1MiB@06:00-06:00", "off@25:00-26:00", "1MiB+"] {
            assert!(Rates::parse(bad).is_err(), "{bad:?}");
        }
    }
}
