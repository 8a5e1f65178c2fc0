//! Who reads a file, and what they will probably read next: sequential and strided readers are found by where their reads are.
//!
//! Pure. Several readers of one file are told apart by their places.

use crate::types::ByteRange;

/// Readers followed at once; the one that has not read for the longest makes room.
const READERS_MAX: usize = 8;
/// How far from where it is expected a read of a sequential reader may be, in bytes: the kernel reads ahead in several requests at once,
/// 4 MiB, which come in any order.
const SLACK: u64 = 4 << 20;
/// Who has read so many bytes in sequence will probably go on: one large `read` may come in many requests.
const SEQUENCE_MIN: u64 = (1 << 20) + (64 << 10);
/// The first window, in bytes.
const WINDOW_FIRST: u64 = 2 << 20;
/// A window is filled again when a fourth of it was read: so a request brings several chunks, and several requests are on their way.
const REFILL: u64 = 4;
/// Strides followed into the future.
const STRIDES_AHEAD: u64 = 4;

/// Somebody who reads on where he was.
#[derive(Clone, Copy, Debug)]
struct Reader {
    /// Where it began, and the furthest end of its reads.
    start: u64,
    next: u64,
    /// Whether a second read has followed the first.
    confirmed: bool,
    window: u64,
    /// Where what was forecast so far ends. It never moves back: what is being fetched would be given up halfway.
    until: u64,
    used: u64,
}

/// The readers of one file.
#[derive(Debug, Default)]
pub struct Readers {
    readers: Vec<Reader>,
    clock: u64,
    last: Option<ByteRange>,
    /// Where the last reads were that continue no other, the last one first.
    jumps: [Option<u64>; 2],
    /// Equal jumps in a row.
    strides: u64,
}

impl Readers {
    /// Notes a read, and says what will probably be read next, soonest first; perhaps beyond the end. `stalled`: its reader had to wait.
    /// `window_max`: bytes to be fetched ahead of one reader at most.
    pub fn note(&mut self, read: ByteRange, stalled: bool, window_max: u64) -> Vec<ByteRange> {
        // Who had to wait reads again.
        if self.last.replace(read) == Some(read) {
            return Vec::new();
        }
        self.clock += 1;
        if let Some(reader) = self.readers.iter_mut().find(|reader| reader.continues(read)) {
            reader.used = self.clock;
            return reader.go_on(read, stalled, window_max);
        }
        if self.readers.len() == READERS_MAX {
            let oldest = self.readers.iter().map(|reader| reader.used).min();
            self.readers.retain(|reader| Some(reader.used) != oldest);
        }
        self.readers.push(Reader {
            start: read.offset,
            next: read.end(),
            confirmed: false,
            window: 0,
            until: 0,
            used: self.clock,
        });
        self.jump(read, window_max)
    }

    /// A read elsewhere: perhaps as far on as the one before.
    fn jump(&mut self, read: ByteRange, window_max: u64) -> Vec<ByteRange> {
        let far = |from: Option<u64>, to: Option<u64>| Some(i128::from(to?) - i128::from(from?));
        let [last, before] = self.jumps;
        let stride = far(last, Some(read.offset));
        self.jumps = [Some(read.offset), last];
        if stride.is_none() || stride != far(before, last) {
            self.strides = 0;
            return Vec::new();
        }
        self.strides += 1;
        let count = STRIDES_AHEAD.min(self.strides * 2).min(window_max / read.len.max(1));
        let stride = stride.unwrap_or(0);
        let place = |n: u64| u64::try_from(i128::from(read.offset) + stride * i128::from(n)).ok();
        let ranges = (1..=count).filter_map(place).map(|offset| ByteRange { offset, len: read.len });
        ranges.collect()
    }
}

impl Reader {
    fn continues(&self, read: ByteRange) -> bool {
        // A first read says little; after it, only what follows at once.
        let slack = if self.confirmed { SLACK } else { 0 };
        read.offset.abs_diff(self.next) <= slack
    }

    fn go_on(&mut self, read: ByteRange, stalled: bool, window_max: u64) -> Vec<ByteRange> {
        self.confirmed = true;
        self.next = self.next.max(read.end());
        if self.next - self.start < SEQUENCE_MIN {
            return Vec::new();
        }
        // Who stalls reads faster than bytes come: twice as far ahead, up to what the line can hold.
        self.window = match self.window {
            0 => WINDOW_FIRST.max(2 * read.len),
            window if stalled => window.saturating_mul(2),
            window => window,
        }
        .min(window_max);
        let left = self.until.saturating_sub(self.next);
        if left > self.window - self.window / REFILL || self.window == 0 {
            return Vec::new();
        }
        self.until = self.until.max(self.next + self.window);
        vec![ByteRange { offset: self.next, len: self.until - self.next }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn at(offset: u64, len: u64) -> ByteRange {
        ByteRange { offset, len }
    }

    #[test]
    fn a_single_read_forecasts_nothing() {
        let mut readers = Readers::default();
        assert_eq!(readers.note(at(0, MIB), true, 64 * MIB), Vec::new());
        assert_eq!(readers.note(at(900 * MIB, MIB), true, 64 * MIB), Vec::new());
        assert_eq!(readers.note(at(17 * MIB, MIB), true, 64 * MIB), Vec::new());
        assert_eq!(readers.note(at(300 * MIB, MIB), true, 64 * MIB), Vec::new());
    }

    #[test]
    fn a_sequential_readers_window_grows_with_its_stalls_up_to_the_limit() {
        let mut readers = Readers::default();
        readers.note(at(0, MIB), true, 8 * MIB);
        assert_eq!(readers.note(at(MIB, MIB), false, 8 * MIB), [at(2 * MIB, 2 * MIB)]);
        assert_eq!(readers.note(at(2 * MIB, MIB), false, 8 * MIB), [at(3 * MIB, 2 * MIB)]);
        assert_eq!(readers.note(at(3 * MIB, MIB), true, 8 * MIB), [at(4 * MIB, 4 * MIB)]);
        assert_eq!(readers.note(at(4 * MIB, MIB), true, 8 * MIB), [at(5 * MIB, 8 * MIB)]);
        // Nothing more until a fourth of it was read.
        assert_eq!(readers.note(at(5 * MIB, MIB), true, 8 * MIB), []);
        assert_eq!(readers.note(at(6 * MIB, MIB), true, 8 * MIB), [at(7 * MIB, 8 * MIB)]);
    }

    #[test]
    fn what_was_forecast_stays_so_when_memory_is_short() {
        let mut readers = Readers::default();
        readers.note(at(0, MIB), true, 8 * MIB);
        readers.note(at(MIB, MIB), true, 8 * MIB);
        readers.note(at(2 * MIB, MIB), true, 8 * MIB);
        assert_eq!(readers.note(at(3 * MIB, MIB), true, 8 * MIB), [at(4 * MIB, 8 * MIB)]);
        for n in 4..11 {
            assert_eq!(readers.note(at(n * MIB, MIB), false, MIB), [], "{n}");
        }
        assert_eq!(readers.note(at(11 * MIB, MIB), false, MIB), [at(12 * MIB, MIB)]);
    }

    #[test]
    fn one_large_read_in_many_requests_is_no_sequence() {
        let mut readers = Readers::default();
        for n in 0..8 {
            assert_eq!(readers.note(at(5000 + n * MIB / 8, MIB / 8), true, 64 * MIB), Vec::new());
        }
        assert_eq!(readers.note(at(5000 + MIB, MIB / 8), true, 64 * MIB), [at(5000 + 9 * MIB / 8, 2 * MIB)]);
    }

    #[test]
    fn requests_of_one_reader_may_change_places() {
        let mut readers = Readers::default();
        readers.note(at(0, MIB), true, 64 * MIB);
        readers.note(at(MIB, MIB), true, 64 * MIB);
        assert_eq!(readers.note(at(3 * MIB, MIB), false, 64 * MIB), [at(4 * MIB, 2 * MIB)]);
        assert_eq!(readers.note(at(2 * MIB, MIB), false, 64 * MIB), [], "nothing was read beyond");
    }

    #[test]
    fn strides_are_found_forwards_and_backwards() {
        for sign in [1_i64, -1] {
            let mut readers = Readers::default();
            let place = |n: i64| at((500 * MIB as i64 + sign * n * 10 * MIB as i64) as u64, 4096);
            assert_eq!(readers.note(place(0), true, 64 * MIB), Vec::new());
            assert_eq!(readers.note(place(1), true, 64 * MIB), Vec::new());
            assert_eq!(readers.note(place(2), true, 64 * MIB), [place(3), place(4)]);
            assert_eq!(readers.note(place(3), true, 64 * MIB), [place(4), place(5), place(6), place(7)]);
        }
    }

    #[test]
    fn readers_are_told_apart() {
        let mut readers = Readers::default();
        let mut last = Vec::new();
        for n in 0..4 {
            for base in [0, 100 * MIB, 250 * MIB] {
                last = readers.note(at(base + n * MIB, MIB), false, 64 * MIB);
                assert_eq!(last.is_empty(), n == 0, "{base} {n}");
            }
        }
        assert_eq!(last, [at(254 * MIB, 2 * MIB)]);
    }
}
