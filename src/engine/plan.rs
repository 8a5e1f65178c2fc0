//! Which chunks of an object are local, who waits for which, and what is fetched next. Pure: no I/O, no clock, no waiting.
//!
//! Invariant: a chunk is `Local` only after somebody said that its verified bytes are in the file.

use std::collections::VecDeque;
use std::ops::Range;

use crate::types::ByteRange;

/// Ranges remembered that are to be fetched ahead of readers.
const AHEAD_MAX: usize = 8;

/// A chunk of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunk {
    /// To be fetched.
    Absent,
    /// There are bytes of it in the file that nobody has compared with their hash yet.
    Perhaps,
    /// Being fetched or compared; whether it waits for no more room.
    Underway { has_room: bool },
    /// Verified, in memory only.
    Held,
    /// Verified, in the file.
    Local,
}

/// What to do with a run of chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    Fetch,
    /// Compare what is in the file.
    Compare,
}

/// Chunks that are fetched or compared together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub work: Work,
    pub chunks: Range<usize>,
    /// Somebody waits for some of it.
    pub wanted: bool,
}

/// Somebody who waits for chunks.
#[derive(Debug)]
struct Demand {
    id: u64,
    chunks: Range<usize>,
    /// Until all content is local for good.
    whole: bool,
}

/// The chunks of one object while they come.
#[derive(Debug)]
pub struct Plan {
    chunk_size: u64,
    len: u64,
    chunks: Vec<Chunk>,
    local: usize,
    absent: usize,
    underway: usize,
    /// In the order in which they came, the small before those of everything.
    demands: VecDeque<Demand>,
    next_demand: u64,
    /// What readers will probably want, soonest first.
    ahead: VecDeque<Range<usize>>,
    /// All is to come, whoever waits.
    everything: bool,
    /// Below it nothing is left to do for `everything`.
    cursor: usize,
    /// Only what is in the file already is left to compare, and that is being done.
    finishing: bool,
    /// What nobody wants is compared, where that may make the file whole.
    compares: bool,
}

impl Plan {
    /// Of an object of `len` bytes in chunks of `chunk_size`, none of it local.
    pub fn new(len: u64, chunk_size: u64) -> Self {
        let count = len.div_ceil(chunk_size) as usize;
        Self {
            chunk_size,
            len,
            chunks: vec![Chunk::Absent; count],
            local: 0,
            absent: count,
            underway: 0,
            demands: VecDeque::new(),
            next_demand: 0,
            ahead: VecDeque::new(),
            everything: false,
            cursor: 0,
            finishing: false,
            compares: true,
        }
    }

    /// The chunks that `range` touches.
    pub fn chunks_of(&self, range: ByteRange) -> Range<usize> {
        let end = (range.end().div_ceil(self.chunk_size) as usize).min(self.chunks.len());
        ((range.offset / self.chunk_size) as usize).min(end)..end
    }

    /// All of them.
    pub fn all(&self) -> Range<usize> {
        0..self.chunks.len()
    }

    /// The bytes of a run of chunks.
    pub fn bytes_of(&self, chunks: &Range<usize>) -> ByteRange {
        let offset = chunks.start as u64 * self.chunk_size;
        ByteRange { offset, len: (chunks.end as u64 * self.chunk_size).min(self.len) - offset }
    }

    fn set(&mut self, chunk: usize, to: Chunk) {
        let from = std::mem::replace(&mut self.chunks[chunk], to);
        for (state, by) in [(from, -1), (to, 1)] {
            let counter = match state {
                Chunk::Absent => &mut self.absent,
                Chunk::Underway { .. } => &mut self.underway,
                Chunk::Local => &mut self.local,
                Chunk::Perhaps | Chunk::Held => continue,
            };
            *counter = counter.checked_add_signed(by).expect("each chunk is counted once");
        }
    }

    /// There are bytes in the file where these chunks belong. Only before any is fetched.
    pub fn perhaps(&mut self, chunks: Range<usize>) {
        for chunk in chunks {
            if self.chunks[chunk] == Chunk::Absent {
                self.set(chunk, Chunk::Perhaps);
            }
        }
    }

    pub fn is_local(&self, chunks: Range<usize>) -> bool {
        self.chunks[chunks].iter().all(|chunk| *chunk == Chunk::Local)
    }

    /// Whether these chunks can be served.
    pub fn is_here(&self, chunks: Range<usize>) -> bool {
        self.chunks[chunks].iter().all(|chunk| matches!(chunk, Chunk::Local | Chunk::Held))
    }

    /// Whether all of these chunks are here or on their way.
    pub fn is_coming(&self, chunks: Range<usize>) -> bool {
        !self.chunks[chunks].iter().any(|chunk| matches!(chunk, Chunk::Absent | Chunk::Perhaps))
    }

    /// Whether all content is in the file.
    pub fn is_complete(&self) -> bool {
        self.local == self.chunks.len()
    }

    /// Bytes that are not local yet, at most.
    pub fn missing(&self) -> u64 {
        (self.chunks.len() - self.local) as u64 * self.chunk_size
    }

    /// Whether nobody waits for anything, and nothing is on its way.
    pub fn is_at_rest(&self) -> bool {
        self.demands.is_empty() && self.underway == 0 && !self.everything
    }

    /// Whether more comes: somebody waits, something is on its way, or will be.
    pub fn brings_more(&self) -> bool {
        !self.is_at_rest() || self.ahead.iter().any(|range| !self.is_coming(range.clone()))
    }

    /// Whether anything is on its way.
    pub fn is_underway(&self) -> bool {
        self.underway > 0
    }

    /// Somebody waits for these chunks from now on, or for all content, until [`Plan::withdraw`].
    pub fn want(&mut self, chunks: Option<Range<usize>>) -> u64 {
        let id = self.next_demand;
        self.next_demand += 1;
        let before_the_whole = self.demands.iter().position(|other| other.whole).filter(|_| chunks.is_some());
        let place = before_the_whole.unwrap_or(self.demands.len());
        let whole = chunks.is_none();
        self.demands.insert(place, Demand { id, chunks: chunks.unwrap_or(self.all()), whole });
        id
    }

    pub fn withdraw(&mut self, id: u64) {
        self.demands.retain(|demand| demand.id != id);
    }

    /// All is to come, whoever waits.
    pub fn want_everything(&mut self) {
        self.everything = true;
    }

    /// What is fetched after what is waited for, before what was said earlier; of that, the oldest goes where there is too much. What overlaps
    /// becomes one: two readers near each other must not have each other's chunks given up halfway. Whether any of it is missing.
    pub fn look_ahead(&mut self, ahead: Vec<Range<usize>>) -> bool {
        let missing = ahead.iter().any(|range| !self.is_local(range.clone()));
        for mut range in ahead.into_iter().rev().filter(|range| !range.is_empty()) {
            self.ahead.retain(|old| {
                let touches = old.start <= range.end && range.start <= old.end;
                if touches {
                    range = range.start.min(old.start)..range.end.max(old.end);
                }
                !touches
            });
            let open = range.clone().find(|at| self.chunks[*at] != Chunk::Local);
            range.start = open.unwrap_or(range.end);
            self.ahead.push_front(range);
        }
        self.ahead.truncate(AHEAD_MAX);
        missing
    }

    /// Nobody reads on. Whether that changes anything.
    pub fn look_no_further(&mut self) -> bool {
        !std::mem::take(&mut self.ahead).is_empty()
    }

    /// Nothing is fetched any more that nobody waits for.
    pub fn rest(&mut self) {
        self.ahead.clear();
        self.everything = false;
    }

    /// Those of a run's chunks that are still to come have room from now on, or have to wait for some.
    pub fn have_room(&mut self, chunks: Range<usize>, has_room: bool) {
        for chunk in chunks {
            if matches!(self.chunks[chunk], Chunk::Underway { .. }) {
                self.set(chunk, Chunk::Underway { has_room });
            }
        }
    }

    /// A run's chunk is verified and in the file.
    pub fn arrived(&mut self, chunk: usize) {
        self.set(chunk, Chunk::Local);
    }

    /// A run's chunk is in the file, but is something else: to be fetched.
    pub fn is_spoilt(&mut self, chunk: usize) {
        self.finishing = false;
        self.set(chunk, Chunk::Absent);
        self.cursor = self.cursor.min(chunk);
    }

    /// A run has ended. What of it is still on its way failed or was given up, and is as it was before.
    pub fn run_ended(&mut self, run: &Run) -> Vec<usize> {
        let left: Vec<_> =
            run.chunks.clone().filter(|chunk| matches!(self.chunks[*chunk], Chunk::Underway { .. })).collect();
        for chunk in &left {
            self.set(*chunk, if run.work == Work::Compare { Chunk::Perhaps } else { Chunk::Absent });
            self.cursor = self.cursor.min(*chunk);
        }
        left
    }

    /// These chunks cannot be had: nothing is fetched any more that nobody waits for, and nobody waits for them. Who did.
    pub fn give_up(&mut self, chunks: Range<usize>) -> Vec<u64> {
        self.rest();
        (self.compares, self.finishing) = (false, false);
        let (gone, stay) = std::mem::take(&mut self.demands)
            .into_iter()
            .partition::<Vec<_>, _>(|demand| demand.chunks.start < chunks.end && chunks.start < demand.chunks.end);
        self.demands = stay.into();
        gone.into_iter().map(|demand| demand.id).collect()
    }

    /// All content cannot be had. Who waited for it.
    pub fn give_up_the_whole(&mut self) -> Vec<u64> {
        self.rest();
        let gone = self.demands.iter().filter(|demand| demand.whole).map(|demand| demand.id).collect();
        self.demands.retain(|demand| !demand.whole);
        gone
    }

    /// A run's chunk is verified, and in memory.
    pub fn is_held(&mut self, chunk: usize) {
        self.set(chunk, Chunk::Held);
    }

    /// A chunk is in memory no longer. Whether it was nowhere else.
    pub fn dropped(&mut self, chunk: usize) -> bool {
        let was_held = self.chunks[chunk] == Chunk::Held;
        if was_held {
            self.set(chunk, Chunk::Absent);
            self.cursor = self.cursor.min(chunk);
        }
        was_held
    }

    /// Those who wait for some chunks, without those who wait for all.
    fn parts(&self) -> impl Iterator<Item = &Range<usize>> {
        self.demands.iter().filter(|demand| !demand.whole).map(|demand| &demand.chunks)
    }

    /// Whether somebody waits for a chunk, or has waited and is about to read it.
    pub fn is_awaited(&self, chunk: usize) -> bool {
        self.parts().any(|chunks| chunks.contains(&chunk))
    }

    /// Whether somebody waits for a chunk, or has waited and is about to read it, and nothing he waits for needs more room than it has.
    pub fn is_served(&self, chunk: usize) -> bool {
        let has_room = |chunk: &Chunk| matches!(chunk, Chunk::Local | Chunk::Held | Chunk::Underway { has_room: true });
        self.parts().any(|chunks| chunks.contains(&chunk) && self.chunks[chunks.clone()].iter().all(has_room))
    }

    /// What somebody waits for, where some of it is in memory and some not on its way.
    pub fn torn(&self) -> Vec<Range<usize>> {
        let has = |chunks: &Range<usize>, kind| self.chunks[chunks.clone()].contains(&kind);
        let is_torn = |chunks: &&Range<usize>| has(chunks, Chunk::Held) && has(chunks, Chunk::Absent);
        self.parts().filter(is_torn).cloned().collect()
    }

    /// The most chunks that one reader waits for.
    pub fn widest(&self) -> usize {
        self.parts().map(ExactSizeIterator::len).max().unwrap_or(0)
    }

    /// Whether somebody wants one of these chunks, or will.
    pub fn is_still_wanted(&self, chunks: &Range<usize>) -> bool {
        let touches = |other: &Range<usize>| other.start < chunks.end && chunks.start < other.end;
        self.finishing
            || self.everything
            || self.ahead.iter().any(touches)
            || self.demands.iter().any(|demand| touches(&demand.chunks))
    }

    /// The next run, of at most `most` chunks; they count as under way. `ahead`: also one that nobody waits for yet.
    pub fn next_run(&mut self, most: usize, ahead: bool) -> Option<Run> {
        let most = most.max(1);
        let (start, limit, wanted) = self.next_start().filter(|(.., wanted)| *wanted || ahead)?;
        let work = if self.chunks[start] == Chunk::Perhaps { Work::Compare } else { Work::Fetch };
        let kind = self.chunks[start];
        let end = (start + 1..limit.min(start + most)).find(|at| self.chunks[*at] != kind);
        let chunks = start..end.unwrap_or(limit.min(start + most));
        for chunk in chunks.clone() {
            self.set(chunk, Chunk::Underway { has_room: false });
        }
        Some(Run { work, chunks, wanted })
    }

    /// Where the next run begins, where it must end, and whether somebody waits for it.
    fn next_start(&mut self) -> Option<(usize, usize, bool)> {
        let open = |chunks: &[Chunk], range: &Range<usize>| {
            range.clone().find(|at| matches!(chunks[*at], Chunk::Absent | Chunk::Perhaps))
        };
        for demand in &self.demands {
            if let Some(start) = open(&self.chunks, &demand.chunks) {
                return Some((start, self.reach(demand.chunks.end), true));
            }
        }
        // What is on its way stays, or it would count as wanted by nobody.
        self.ahead.retain(|range| !self.chunks[range.clone()].iter().all(|chunk| *chunk == Chunk::Local));
        for range in &self.ahead {
            if let Some(start) = open(&self.chunks, range) {
                return Some((start, range.end, false));
            }
        }
        if self.everything {
            let rest = self.cursor..self.chunks.len();
            let found = open(&self.chunks, &rest);
            self.cursor = found.unwrap_or(self.chunks.len());
            return found.map(|start| (start, self.chunks.len(), false));
        }
        // Only what is here already is left to compare: the file may be whole.
        if self.compares && self.absent == 0 && self.local + self.underway < self.chunks.len() {
            self.finishing = true;
            return open(&self.chunks, &self.all()).map(|start| (start, self.chunks.len(), false));
        }
        None
    }

    /// How far a run for somebody who waits up to `end` may go on: as far as is fetched next anyway.
    fn reach(&self, end: usize) -> usize {
        if self.everything {
            return self.chunks.len();
        }
        let next = self.ahead.iter().find(|range| range.start <= end && end < range.end);
        next.map_or(end, |range| range.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(work: Work, chunks: Range<usize>, wanted: bool) -> Option<Run> {
        Some(Run { work, chunks, wanted })
    }

    #[test]
    fn what_is_waited_for_comes_first_and_nothing_else() {
        let mut plan = Plan::new(100, 10);
        assert_eq!(plan.next_run(4, true), None);
        let range = ByteRange { offset: 35, len: 10 };
        assert_eq!(plan.chunks_of(range), 3..5);
        let id = plan.want(Some(plan.chunks_of(range)));
        assert_eq!(plan.next_run(4, true), run(Work::Fetch, 3..5, true));
        assert_eq!(plan.next_run(4, true), None);
        plan.arrived(3);
        assert!(!plan.is_local(3..5));
        assert_eq!(plan.run_ended(&Run { work: Work::Fetch, chunks: 3..5, wanted: true }), [4]);
        assert_eq!(plan.next_run(4, true), run(Work::Fetch, 4..5, true));
        plan.arrived(4);
        assert!(plan.is_local(3..5) && !plan.is_at_rest());
        plan.withdraw(id);
        assert!(plan.is_at_rest() && !plan.is_complete());
    }

    #[test]
    fn who_waits_for_little_goes_before_who_waits_for_all() {
        let mut plan = Plan::new(100, 10);
        plan.want(None);
        plan.want(Some(7..8));
        plan.want(Some(5..6));
        assert_eq!(plan.next_run(3, true), run(Work::Fetch, 7..8, true));
        assert_eq!(plan.next_run(3, true), run(Work::Fetch, 5..6, true));
        assert_eq!(plan.next_run(3, true), run(Work::Fetch, 0..3, true));
        assert_eq!(plan.next_run(3, true), run(Work::Fetch, 3..5, true));
        assert_eq!(plan.next_run(3, true), run(Work::Fetch, 6..7, true));
        assert_eq!(plan.next_run(3, true), run(Work::Fetch, 8..10, true));
        assert_eq!(plan.next_run(3, true), None);
    }

    #[test]
    fn a_run_goes_on_into_what_comes_next_anyway() {
        let mut plan = Plan::new(100, 10);
        plan.want(Some(1..2));
        assert!(plan.look_ahead(vec![2..6, 8..9]));
        assert_eq!(plan.next_run(3, true), run(Work::Fetch, 1..4, true));
        assert_eq!(plan.next_run(3, true), run(Work::Fetch, 4..6, false));
        assert_eq!(plan.next_run(3, true), run(Work::Fetch, 8..9, false));
        assert_eq!(plan.next_run(3, true), None);
        assert!(plan.is_still_wanted(&(8..9)) && !plan.is_still_wanted(&(9..10)));
        assert!(plan.look_ahead(std::iter::once(0..1).collect()));
        plan.rest();
        assert_eq!(plan.next_run(3, true), None);
    }

    #[test]
    fn what_is_on_its_way_for_one_reader_is_not_given_up_for_another() {
        let mut plan = Plan::new(200, 10);
        plan.look_ahead(std::iter::once(2..6).collect());
        assert_eq!(plan.next_run(4, true), run(Work::Fetch, 2..6, false));
        plan.arrived(2);
        // Another reads from within it on, and is ahead.
        plan.look_ahead(std::iter::once(5..9).collect());
        assert!(plan.is_still_wanted(&(3..4)));
        assert_eq!(plan.next_run(4, true), run(Work::Fetch, 6..9, false));
        (3..9).for_each(|chunk| plan.arrived(chunk));
        plan.look_ahead(std::iter::once(8..11).collect());
        assert!(!plan.is_still_wanted(&(3..8)), "it is here");
        assert_eq!(plan.next_run(4, true), run(Work::Fetch, 9..11, false));
    }

    #[test]
    fn what_is_in_the_file_is_compared_before_it_is_fetched() {
        let mut plan = Plan::new(95, 10);
        plan.perhaps(2..4);
        plan.want(Some(1..5));
        assert_eq!(plan.next_run(9, true), run(Work::Fetch, 1..2, true));
        assert_eq!(plan.next_run(9, true), run(Work::Compare, 2..4, true));
        plan.arrived(2);
        assert_eq!(plan.run_ended(&Run { work: Work::Compare, chunks: 2..4, wanted: true }), [3]);
        assert_eq!(plan.next_run(9, true), run(Work::Compare, 3..4, true), "nobody has looked");
        plan.is_spoilt(3);
        assert_eq!(plan.next_run(9, true), run(Work::Fetch, 3..5, true));
        assert_eq!(plan.bytes_of(&(9..10)), ByteRange { offset: 90, len: 5 });
    }

    #[test]
    fn a_file_whose_missing_chunks_are_there_is_compared_to_its_end() {
        let mut plan = Plan::new(40, 10);
        plan.perhaps(0..3);
        assert_eq!(plan.next_run(9, true), None, "the last one is not there");
        let id = plan.want(Some(3..4));
        assert_eq!(plan.next_run(9, true), run(Work::Fetch, 3..4, true));
        plan.arrived(3);
        plan.withdraw(id);
        assert_eq!(plan.next_run(2, true), run(Work::Compare, 0..2, false));
        assert!(plan.is_still_wanted(&(0..2)), "or it would be given up, and begun again");
        assert_eq!(plan.next_run(2, true), run(Work::Compare, 2..3, false));
        (0..3).for_each(|chunk| plan.arrived(chunk));
        assert!(plan.is_complete() && plan.is_at_rest());
    }

    #[test]
    fn who_waits_finds_a_place_beside_what_nobody_waits_for() {
        let mut plan = Plan::new(100, 10);
        plan.want_everything();
        assert_eq!(plan.next_run(2, false), None);
        assert_eq!(plan.next_run(2, true), run(Work::Fetch, 0..2, false));
        assert!(plan.is_coming(0..2) && !plan.is_coming(1..3));
        plan.want(Some(1..2));
        assert_eq!(plan.next_run(2, false), None, "it is on its way");
        plan.want(Some(7..8));
        assert_eq!(plan.next_run(2, false), run(Work::Fetch, 7..9, true));
    }

    #[test]
    fn everything_comes_once_also_after_failures() {
        let mut plan = Plan::new(50, 10);
        plan.want_everything();
        assert_eq!(plan.next_run(2, true), run(Work::Fetch, 0..2, false));
        assert_eq!(plan.next_run(9, true), run(Work::Fetch, 2..5, false));
        plan.arrived(0);
        plan.run_ended(&Run { work: Work::Fetch, chunks: 0..2, wanted: false });
        assert_eq!(plan.next_run(9, true), run(Work::Fetch, 1..2, false));
        assert!(plan.is_still_wanted(&(4..5)));
        plan.rest();
        assert!(!plan.is_still_wanted(&(4..5)) && !plan.is_at_rest());
    }
}
