//! Sizes, durations and percentages as people write and read them. Pure text, nothing here knows what they are for.
//!
//! Sizes count as in coreutils: `K`, `M`, `G`, `T` and `KiB`, `MiB`, … are powers of 1,024; `KB`, `MB`, … of 1,000.

const SIZE_UNITS: [(&str, u64); 17] = [
    ("", 1),
    ("b", 1),
    ("k", 1 << 10),
    ("kib", 1 << 10),
    ("kb", 1_000),
    ("m", 1 << 20),
    ("mib", 1 << 20),
    ("mb", 1_000_000),
    ("g", 1 << 30),
    ("gib", 1 << 30),
    ("gb", 1_000_000_000),
    ("t", 1 << 40),
    ("tib", 1 << 40),
    ("tb", 1_000_000_000_000),
    ("p", 1 << 50),
    ("pib", 1 << 50),
    ("pb", 1_000_000_000_000_000),
];

const DURATION_UNITS: [(&str, u64); 5] = [("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400), ("w", 604_800)];

/// Bytes from text like `4MiB`, `64K`, `1.5 GB` or `1048576`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a size: write a number and a unit, like 4MiB, 64K or 1048576");
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let unit = unit.trim().to_ascii_lowercase();
    let (_, scale) = SIZE_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    // At most nine decimals, so that the product below fits into 128 bits.
    if whole.is_empty() || fraction.len() > 9 || fraction.contains('.') || (number.contains('.') && fraction.is_empty())
    {
        return Err(bad());
    }
    let whole: u64 = whole.parse().map_err(|_| bad())?;
    let mut bytes = u128::from(whole) * u128::from(*scale);
    if !fraction.is_empty() {
        let digits: u128 = fraction.parse().map_err(|_| bad())?;
        bytes += digits * u128::from(*scale) / 10u128.pow(fraction.len() as u32);
    }
    u64::try_from(bytes).map_err(|_| format!("{text:?} is too large a size: at most 16 EiB"))
}

/// Seconds from text like `24h`, `7d`, `1h30m` or `90s`. A bare `0` is allowed, any other number needs its unit.
pub fn parse_duration(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a duration: write numbers with units s, m, h, d or w, like 24h, 7d or 1h30m");
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(bad());
    }
    let mut seconds = 0u64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let count: u64 = rest[..digits].parse().map_err(|_| bad())?;
        let unit_len = rest[digits..].find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len() - digits);
        let unit = &rest[digits..digits + unit_len];
        let (_, scale) = DURATION_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
        let part = count.checked_mul(*scale).and_then(|part| part.checked_add(seconds));
        // A thousand years is the same as for ever, and far from where clocks overflow.
        seconds =
            part.filter(|sum| *sum <= 1_000 * 365 * 86_400).ok_or_else(|| format!("{text:?} is too long a time"))?;
        rest = rest[digits + unit_len..].trim_start();
    }
    Ok(seconds)
}

/// A percentage from text like `80%` or `80`: 1 to 100.
pub fn parse_percent(text: &str) -> Result<u8, String> {
    let number = text.trim().strip_suffix('%').unwrap_or(text.trim());
    match number.parse::<u8>() {
        Ok(percent @ 1..=100) => Ok(percent),
        _ => Err(format!("{text:?} is not a percentage: write 1% to 100%, like 80%")),
    }
}

/// Bytes for people, three digits: `512 B`, `4.00 MiB`, `17.3 GiB`.
pub fn format_size(bytes: u64) -> String {
    const NAMES: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    // 1023.95 would print as "1024", which belongs to the next unit.
    while value >= 1_023.5 && unit + 1 < NAMES.len() {
        value /= 1_024.0;
        unit += 1;
    }
    let decimals = if unit == 0 || value >= 99.95 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    format!("{value:.decimals$} {}", NAMES[unit])
}

/// Bytes in a form that [`parse_size`] reads back exactly: `4MiB` where it is whole, else the number.
pub fn exact_size(bytes: u64) -> String {
    for (name, scale) in [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes > 0 && bytes.is_multiple_of(scale) {
            return format!("{}{name}", bytes / scale);
        }
    }
    bytes.to_string()
}

/// Seconds in a form that [`parse_duration`] reads back exactly: `24h`, `7d`, `1h30m`, `0`.
pub fn exact_duration(seconds: u64) -> String {
    if seconds == 0 {
        return "0".into();
    }
    // A day reads better as 24h: it is the default and people think of it as hours.
    if seconds == 86_400 {
        return "24h".into();
    }
    let mut text = String::new();
    let mut rest = seconds;
    for (name, scale) in [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)] {
        if rest >= scale {
            text.push_str(&format!("{}{name}", rest / scale));
            rest %= scale;
        }
    }
    text
}

/// A rate for people: `431 MB/s` (powers of 1,000, as storage tools count).
pub fn format_rate(bytes: u64, seconds: f64) -> String {
    if seconds <= 0.0 {
        return "- MB/s".into();
    }
    let rate = bytes as f64 / 1e6 / seconds;
    if rate >= 99.95 { format!("{rate:.0} MB/s") } else { format!("{rate:.1} MB/s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, want) in [
            ("0", Some(0)),
            ("1048576", Some(1 << 20)),
            ("4MiB", Some(4 << 20)),
            ("4 mib", Some(4 << 20)),
            ("4M", Some(4 << 20)),
            ("4MB", Some(4_000_000)),
            ("1.5K", Some(1_536)),
            ("0.5GiB", Some(512 << 20)),
            ("64k", Some(64 << 10)),
            ("16777216T", None),
            ("", None),
            ("MiB", None),
            ("-1", None),
            ("1.", None),
            (".5M", None),
            ("1.2.3M", None),
            ("4 MiBs", None),
            ("4e6", None),
        ] {
            assert_eq!(parse_size(text).ok(), want, "{text:?}");
        }
    }

    #[test]
    fn durations() {
        for (text, want) in [
            ("0", Some(0)),
            ("90s", Some(90)),
            ("5m", Some(300)),
            ("24h", Some(86_400)),
            ("7d", Some(604_800)),
            ("2w", Some(1_209_600)),
            ("1h30m", Some(5_400)),
            ("1h 30m", Some(5_400)),
            ("5", None),
            ("", None),
            ("h", None),
            ("5 m", None),
            ("5x", None),
            ("-5m", None),
            ("99999999999w", None),
        ] {
            assert_eq!(parse_duration(text).ok(), want, "{text:?}");
        }
    }

    #[test]
    fn percentages() {
        for (text, want) in
            [("80%", Some(80)), ("80", Some(80)), ("100%", Some(100)), ("0", None), ("101", None), ("x", None)]
        {
            assert_eq!(parse_percent(text).ok(), want, "{text:?}");
        }
    }

    #[test]
    fn exact_forms_read_back() {
        for bytes in [0, 1, 1_000, 64 << 10, 4 << 20, (4 << 20) + 1, 3 << 40] {
            assert_eq!(parse_size(&exact_size(bytes)), Ok(bytes));
        }
        for seconds in [0, 1, 59, 60, 5_400, 86_400, 86_401, 604_800] {
            assert_eq!(parse_duration(&exact_duration(seconds)), Ok(seconds));
        }
        assert_eq!(exact_size(4 << 20), "4MiB");
        assert_eq!(exact_duration(86_400), "24h");
    }

    #[test]
    fn sizes_for_people() {
        for (bytes, want) in [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_024, "1.00 KiB"),
            (1_536, "1.50 KiB"),
            (10 << 20, "10.0 MiB"),
            (150 << 20, "150 MiB"),
            ((1 << 30) - 1, "1.00 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(format_size(bytes), want);
        }
    }
}
