//! What was written to a stub: which bytes are the file's own, and no longer its object's. Pure.

use serde::{Deserialize, Serialize};

use crate::types::{ByteRange, Timestamp};

/// Ranges in order, none empty, none touching another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ranges(Vec<ByteRange>);

impl Ranges {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = ByteRange> + '_ {
        self.0.iter().copied()
    }

    /// Adds `new`, and joins what touches it.
    pub fn insert(&mut self, new: ByteRange) {
        if new.len == 0 {
            return;
        }
        let start = self.0.partition_point(|range| range.end() < new.offset);
        let end = self.0.partition_point(|range| range.offset <= new.end());
        let touched = &self.0[start..end];
        let offset = touched.first().map_or(new.offset, |first| first.offset.min(new.offset));
        let stop = touched.last().map_or(new.end(), |last| last.end().max(new.end()));
        self.0.splice(start..end, [ByteRange { offset, len: stop - offset }]);
    }

    /// Adds all of `others`.
    pub fn extend(&mut self, others: &Self) {
        others.iter().for_each(|range| self.insert(range));
    }

    /// Takes away what is at `end` and beyond.
    pub fn cut(&mut self, end: u64) {
        self.0.retain_mut(|range| {
            range.len = range.len.min(end.saturating_sub(range.offset));
            range.len > 0
        });
    }

    /// The parts of `range` that are in none of them, in order.
    pub fn missing(&self, range: ByteRange) -> Vec<ByteRange> {
        let mut missing = Vec::new();
        let mut at = range.offset;
        for known in self.iter().filter(|known| known.end() > range.offset && known.offset < range.end()) {
            if known.offset > at {
                missing.push(ByteRange { offset: at, len: known.offset - at });
            }
            at = known.end();
        }
        if at < range.end() {
            missing.push(ByteRange { offset: at, len: range.end() - at });
        }
        missing
    }

    fn are_in_order_below(&self, end: u64) -> bool {
        let mut at = None;
        self.0.iter().all(|range| {
            let apart = at.is_none_or(|at| range.offset > at);
            let stop = range.offset.checked_add(range.len);
            at = stop;
            apart && range.len > 0 && stop.is_some_and(|stop| stop <= end)
        })
    }
}

/// What of a file's content is not its object's. A byte is the file's own if it is at `base` or beyond, in `ours`, or in `fresh` where that
/// counts; every other byte is the object's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Patch {
    /// The object's bytes from here on are gone: the file was longer, or was cut here. At most the object's length, at least 1.
    pub base: u64,
    /// Ranges that were written, below `base`. They are on stable storage.
    pub ours: Ranges,
    /// More of them, which may not be on stable storage yet. They count as long as the filesystem below is mounted as it was when they
    /// were stored: a power loss may have taken them, the death of the daemon cannot.
    pub fresh: Ranges,
    /// Which mount of the filesystem below that was (`Lower::instance`).
    pub instance: u64,
    /// The mtime to be put back if a recall ends in the middle of filling; from before its first byte until the next change by a user.
    pub filling: Option<Timestamp>,
}

/// Ranges that a patch has at most: beyond, the rest of the content is brought back instead.
pub const PATCH_RANGES_MAX: usize = 96;

impl Patch {
    /// Of content of `len` bytes, nothing of which has been written.
    pub fn new(len: u64) -> Self {
        Self { base: len, ..Self::default() }
    }

    /// All ranges that are the file's own, below `base`.
    pub fn own(&self) -> Ranges {
        let mut own = self.ours.clone();
        own.extend(&self.fresh);
        own
    }

    /// The parts of `range` that are the object's.
    pub fn of_object(&self, range: ByteRange) -> Vec<ByteRange> {
        self.of_object_but(&self.own(), range)
    }

    /// The same for who asks of many ranges, and has found [`Patch::own`] once.
    pub fn of_object_but(&self, own: &Ranges, range: ByteRange) -> Vec<ByteRange> {
        let len = self.base.saturating_sub(range.offset).min(range.len);
        if len == 0 { Vec::new() } else { own.missing(ByteRange { len, ..range }) }
    }

    /// Whether nothing is the object's any more.
    pub fn is_whole(&self) -> bool {
        self.of_object(ByteRange { offset: 0, len: self.base }).is_empty()
    }

    /// `range` has been written. Returns whether that changes anything.
    pub fn wrote(&mut self, range: ByteRange, instance: u64) -> bool {
        let news = self.of_object(range);
        let below = ByteRange { offset: range.offset, len: self.base.saturating_sub(range.offset).min(range.len) };
        if news.is_empty() {
            return false;
        }
        self.fresh.insert(below);
        self.instance = instance;
        true
    }

    /// Whether writing `range` would make it too long to be stored.
    pub fn is_full_for(&self, range: ByteRange) -> bool {
        // A write makes one more at most.
        if self.ours.count() + self.fresh.count() < PATCH_RANGES_MAX {
            return false;
        }
        let mut with = self.clone();
        with.wrote(range, self.instance);
        with.ours.count() + with.fresh.count() > PATCH_RANGES_MAX
    }

    /// The file was cut to `len` bytes.
    pub fn cut(&mut self, len: u64) {
        self.base = self.base.min(len);
        self.ours.cut(self.base);
        self.fresh.cut(self.base);
    }

    /// `written`, which was fresh, is on stable storage.
    pub fn synced(&mut self, written: &Ranges) {
        self.ours.extend(written);
        let still: Vec<_> = self.fresh.iter().flat_map(|range| self.ours.missing(range)).collect();
        self.fresh = Ranges::default();
        still.into_iter().for_each(|range| self.fresh.insert(range));
    }

    /// Takes what is fresh as lost, unless it is of this `instance` of the filesystem below.
    pub fn settle(&mut self, instance: Option<u64>) {
        if instance != Some(self.instance) {
            self.fresh = Ranges::default();
        }
    }

    pub(super) fn contradiction(&self, object_len: u64) -> Option<&'static str> {
        if !(1..=object_len).contains(&self.base) {
            return Some("a patch that ends beyond its object");
        }
        let in_order = self.ours.are_in_order_below(self.base) && self.fresh.are_in_order_below(self.base);
        (!in_order).then_some("a patch whose ranges are in no order")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(offset: u64, end: u64) -> ByteRange {
        ByteRange { offset, len: end - offset }
    }

    fn found(ranges: &Ranges) -> Vec<(u64, u64)> {
        ranges.iter().map(|range| (range.offset, range.end())).collect()
    }

    #[test]
    fn ranges_join_where_they_touch() {
        let mut ranges = Ranges::default();
        for (offset, end) in [(10, 20), (40, 50), (30, 35), (20, 22), (5, 5), (34, 40)] {
            ranges.insert(range(offset, end));
        }
        assert_eq!(found(&ranges), [(10, 22), (30, 50)]);
        assert_eq!(ranges.missing(range(0, 60)), [range(0, 10), range(22, 30), range(50, 60)]);
        assert_eq!(ranges.missing(range(12, 22)), []);
        ranges.cut(31);
        assert_eq!(found(&ranges), [(10, 22), (30, 31)]);
        ranges.insert(range(0, 100));
        assert_eq!(found(&ranges), [(0, 100)]);
        ranges.cut(0);
        assert!(ranges.is_empty());
    }

    /// Against a byte-wise model: whatever was written is ours, and nothing else.
    #[test]
    fn every_byte_has_one_owner() {
        let mut seed = 7_u64;
        let mut dice = |most: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % most
        };
        for _ in 0..300 {
            let mut patch = Patch::new(64);
            let mut object = [true; 96];
            for _ in 0..40 {
                let offset = dice(90);
                let end = offset + 1 + dice(12);
                match dice(8) {
                    0 => {
                        let len = 1 + dice(80);
                        patch.cut(len);
                        object[(len as usize).min(96)..].fill(false);
                    }
                    1 => {
                        let written = patch.fresh.clone();
                        patch.synced(&written);
                        assert!(patch.fresh.is_empty());
                    }
                    _ => {
                        patch.wrote(range(offset, end), 1);
                        object[offset as usize..(end as usize).min(96)].fill(false);
                    }
                }
                object[64..].fill(false);
                for at in 0..96 {
                    let of_object = !patch.of_object(range(at, at + 1)).is_empty();
                    assert_eq!(of_object, object[at as usize], "byte {at} of {patch:?}");
                }
                assert_eq!(patch.is_whole(), !object.contains(&true));
                assert_eq!(patch.contradiction(64), None);
            }
        }
    }

    #[test]
    fn what_is_fresh_counts_while_the_filesystem_below_lives() {
        let mut patch = Patch::new(100);
        assert!(patch.wrote(range(0, 10), 7) && !patch.wrote(range(2, 9), 7) && !patch.wrote(range(100, 120), 7));
        let first = patch.fresh.clone();
        patch.wrote(range(20, 30), 7);
        patch.synced(&first);
        assert_eq!((found(&patch.ours), found(&patch.fresh)), (vec![(0, 10)], vec![(20, 30)]));
        let mut lost = patch.clone();
        patch.settle(Some(7));
        lost.settle(Some(8));
        assert_eq!((found(&patch.own()), found(&lost.own())), (vec![(0, 10), (20, 30)], vec![(0, 10)]));
        lost.settle(None);
        assert_eq!(found(&lost.own()), [(0, 10)]);
    }
}
