//! Chunks of one file that are verified and in memory: for who is about to read them, and until they are written.
//!
//! Invariant: each has room of its own, within what there is for all recalls: room for what is held, where there is some, else that of the request which
//! brought it. Room of requests is what others wait for: it is given back when they do, unless a reader who waited has all he asked for and is
//! about to read it, or is in the midst of it: not for long. So nobody who holds such room waits for more of it without end, and there is no deadlock.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::time::{Duration, Instant};

use super::content::Content;
use super::slots::{HeldRoom, RequestRoom, Slots};

/// Content of one file that stays in memory for its readers, in bytes at most, as long as there is room for all recalls ([`Slots::hold`]).
const HELD_BYTES: u64 = 16 << 20;
/// Chunks that may be in memory beyond it, or where there is no such room.
const HELD_CHUNKS_MIN: usize = 4;
/// For so long a chunk stays after somebody has read a part of it, although others wait for its room, unless it is older than the other: programs read in
/// small pieces, and each would cost another request for all of the chunk.
const READ_ON: Duration = Duration::from_millis(250);
const READ_ON_MAX: Duration = Duration::from_secs(2);

/// Where a chunk's bytes count.
enum Room {
    Held { _room: HeldRoom },
    Request(Arc<RequestRoom>),
}

/// A chunk in memory.
struct Chunk {
    number: usize,
    content: Content,
    /// It is being written: until then it is nowhere else.
    stays: bool,
    room: Room,
    came: Instant,
    /// When a part of it was read that does not end it.
    read: Option<Instant>,
}

impl Chunk {
    /// Whether letting it go gives room to those who wait for some. As long as the request goes on that brought it, it does not.
    fn is_spare(&self) -> bool {
        !self.stays && matches!(&self.room, Room::Request(room) if room.is_over())
    }

    /// Whether somebody is in the midst of it.
    fn is_read(&self) -> bool {
        self.came.elapsed() < READ_ON_MAX && self.read.is_some_and(|read| read.elapsed() < READ_ON)
    }
}

/// The chunks of one file, the oldest first.
pub(super) struct Held {
    chunks: VecDeque<Chunk>,
    most: usize,
}

/// Chunks that are in memory no longer. What they occupy is freed with this, which is best done without a lock.
#[derive(Default)]
pub(super) struct Gone(Vec<(usize, Content, Option<Room>)>);

impl Gone {
    pub fn numbers(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().map(|(number, ..)| *number)
    }
}

impl Held {
    pub fn new(chunk_size: u64) -> Self {
        Self { chunks: VecDeque::new(), most: ((HELD_BYTES / chunk_size) as usize).max(HELD_CHUNKS_MIN) }
    }

    fn position(&self, number: usize) -> Option<usize> {
        self.chunks.iter().position(|chunk| chunk.number == number)
    }

    pub fn get(&self, number: usize) -> Option<&Content> {
        self.position(number).map(|at| &self.chunks[at].content)
    }

    /// Somebody reads a chunk; `ends`: to its end.
    pub fn note_read(&mut self, number: usize, ends: bool) {
        if let Some(at) = self.position(number) {
            self.chunks[at].read = (!ends).then(Instant::now);
        }
    }

    /// Lets those chunks go that `goes` says.
    pub fn remove(&mut self, mut goes: impl FnMut(usize) -> bool) -> Gone {
        self.remove_chunks(|chunk| goes(chunk.number))
    }

    fn remove_chunks(&mut self, mut goes: impl FnMut(&Chunk) -> bool) -> Gone {
        let (gone, stay) = std::mem::take(&mut self.chunks).into_iter().partition::<Vec<_>, _>(|chunk| goes(chunk));
        self.chunks = stay.into();
        Gone(gone.into_iter().map(|chunk| (chunk.number, chunk.content, Some(chunk.room))).collect())
    }

    /// Holds a chunk whose bytes count as those of the request that brought it, unless there is room for what is held. Where there is too much, the oldest
    /// ones go that nobody waits for (`awaited`).
    pub fn add(
        &mut self,
        number: usize,
        content: Content,
        stays: bool,
        of_request: &Arc<RequestRoom>,
        slots: &Arc<Slots>,
        awaited: impl Fn(usize) -> bool,
    ) -> Gone {
        let len = content.len() as u64;
        let mut gone = self.remove(|other| other == number);
        gone.0.iter_mut().for_each(|(.., room)| drop(room.take()));
        let mut room = if self.chunks.len() < self.most { slots.hold(len) } else { None };
        while room.is_none() {
            let many = self.chunks.len() >= HELD_CHUNKS_MIN;
            let may_go = |chunk: &Chunk| {
                !chunk.stays && !awaited(chunk.number) && (many || matches!(chunk.room, Room::Held { .. }))
            };
            let Some(oldest) = self.chunks.iter().position(may_go).and_then(|at| self.chunks.remove(at)) else { break };
            drop(oldest.room);
            room = slots.hold(len);
            gone.0.push((oldest.number, oldest.content, None));
        }
        let room = room.map_or_else(|| Room::Request(of_request.clone()), |room| Room::Held { _room: room });
        self.chunks.push_back(Chunk { number, content, stays, room, came: Instant::now(), read: None });
        gone
    }

    /// Whether any chunk has the room of a request.
    pub fn borrows(&self) -> bool {
        self.chunks.iter().any(|chunk| matches!(chunk.room, Room::Request(_)))
    }

    /// A chunk is in the file. It stays in memory as well where there is room for what is held. `None`: it was not here.
    pub fn written(&mut self, number: usize) -> Option<Gone> {
        let at = self.position(number)?;
        self.chunks[at].stays = false;
        Some(self.remove_chunks(|chunk| chunk.number == number && matches!(chunk.room, Room::Request(_))))
    }

    /// Chunks that were to be written were not: they are held like others.
    pub fn let_go(&mut self) {
        self.chunks.iter_mut().for_each(|chunk| chunk.stays = false);
    }

    /// Somebody waits for room: what has that of a request that is over goes, but for what is `needed`.
    pub fn give_back(&mut self, needed: impl Fn(usize) -> bool) -> Gone {
        self.remove_chunks(|chunk| chunk.is_spare() && !needed(chunk.number))
    }

    /// As [`Held::give_back`], for others: what somebody is in the midst of stays, unless he himself waits for more beside it (`torn`).
    pub fn give_to_others(&mut self, needed: impl Fn(usize) -> bool, torn: impl Fn(usize) -> bool) -> Gone {
        self.remove_chunks(|chunk| {
            chunk.is_spare() && !needed(chunk.number) && (!chunk.is_read() || torn(chunk.number))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use bytes::Bytes;

    use super::super::line::Line;
    use super::super::recall::{Demand, Recall, Wish};
    use super::*;
    use crate::admission::Class;
    use crate::engine::{Permit, SlotLimits};
    use crate::types::{ByteRange, RecallPolicy};

    fn content(len: usize) -> Content {
        let mut content = Content::default();
        content.push(Bytes::from(vec![7; len]));
        content
    }

    /// Room for 30 bytes of requests, and 10 that are held.
    async fn request(slots: &Arc<Slots>, bytes: u64) -> Permit {
        slots.acquire(Class::Interactive, 1, bytes).await.unwrap()
    }

    #[tokio::test]
    async fn each_chunk_counts_until_it_goes() {
        let slots = Slots::new(SlotLimits { fetches: 8, bytes: 40 });
        let mut held = Held::new(10);
        let permit = request(&slots, 20).await;
        for number in 0..2 {
            assert_eq!(held.add(number, content(10), false, permit.room(), &slots, |_| true).numbers().count(), 0);
        }
        assert!(!slots.can_hold(1) && slots.held() == (1, 20));
        // Nothing is gained as long as the request goes on.
        assert_eq!(held.give_back(|_| false).numbers().count(), 0);
        drop(permit);
        assert_eq!(slots.held(), (0, 20), "what it brought is still here");
        assert_eq!(held.give_back(|number| number == 1).numbers().count(), 0, "about to be read");
        let gone = held.give_back(|_| false);
        assert_eq!((gone.numbers().collect::<Vec<_>>(), slots.held()), (vec![1], (0, 20)));
        drop(gone);
        assert_eq!((slots.held(), held.get(0).is_some(), held.get(1).is_some()), ((0, 0), true, false));
    }

    #[tokio::test]
    async fn what_is_waited_for_makes_no_room_for_what_comes() {
        let slots = Slots::new(SlotLimits { fetches: 8, bytes: 40 });
        let mut held = Held::new(10);
        let permit = request(&slots, 20).await;
        held.add(0, content(10), false, permit.room(), &slots, |_| true);
        // A reader of both would have one, and then the other, for ever.
        let gone = held.add(1, content(10), false, permit.room(), &slots, |number| number == 0);
        assert_eq!((gone.numbers().count(), held.get(0).is_some()), (0, true));
        let gone = held.add(2, content(10), false, permit.room(), &slots, |_| false);
        assert_eq!(gone.numbers().collect::<Vec<_>>(), [0]);
    }

    #[tokio::test]
    async fn what_is_written_stays_where_there_is_room_for_what_is_held() {
        let slots = Slots::new(SlotLimits { fetches: 8, bytes: 40 });
        let mut held = Held::new(10);
        let permit = request(&slots, 20).await;
        for number in 0..2 {
            held.add(number, content(10), true, permit.room(), &slots, |_| false);
        }
        drop(permit);
        assert_eq!(held.give_back(|_| false).numbers().count(), 0, "being written, it is nowhere else");
        assert_eq!(held.written(0).unwrap().numbers().count(), 0);
        assert_eq!(held.written(1).unwrap().numbers().collect::<Vec<_>>(), [1]);
        assert!(held.written(1).is_none());
        assert_eq!((slots.held(), held.get(0).is_some()), ((0, 0), true));
    }

    /// A file of three chunks, of which nothing may stay.
    fn file(slots: &Arc<Slots>) -> Arc<Recall> {
        Recall::new((30, 10), false, RecallPolicy::PassThrough, Arc::new(Line::new(8)), slots.clone())
    }

    fn bytes(offset: u64, len: u64) -> ByteRange {
        ByteRange { offset, len }
    }

    fn wants(file: &Arc<Recall>, range: ByteRange) -> Demand {
        file.join(Wish { range: Some(range), keep: false }).unwrap()
    }

    fn poll<T>(waiting: Pin<&mut impl Future<Output = T>>) -> Option<T> {
        match waiting.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    /// Carries out the next request of a file, as soon as there is room for it: at once, or this fails.
    fn fetches(file: &Arc<Recall>, slots: &Arc<Slots>) {
        let run = file.next_run(false).unwrap();
        let permit = poll(pin!(slots.acquire(Class::Interactive, 1, 10 * run.chunks.len() as u64))).unwrap().unwrap();
        for chunk in run.chunks.clone() {
            file.hold(chunk, content(10), false, permit.room());
        }
        file.run_ended(&run, None);
    }

    fn reads(file: &Arc<Recall>, range: ByteRange) -> bool {
        file.read_held(range).is_some()
    }

    /// Readers of many files that are only served, each of which stays open.
    #[test]
    fn files_that_are_only_served_stay_within_the_bound_together() {
        let slots = Slots::new(SlotLimits { fetches: 8, bytes: 40 });
        let files: Vec<_> = (0..20).map(|_| file(&slots)).collect();
        for (n, file) in files.iter().enumerate() {
            let first = bytes(0, 10);
            let demand = wants(file, first);
            fetches(file, &slots);
            assert!(reads(file, first), "{n}");
            drop(demand);
            let in_memory = files.iter().filter(|file| reads(file, first)).count();
            assert_eq!(in_memory, (n + 1).min(4), "{n}");
        }
    }

    #[test]
    fn who_is_about_to_read_keeps_it_until_he_has() {
        let slots = Slots::new(SlotLimits { fetches: 8, bytes: 40 });
        let files: Vec<_> = (0..4).map(|_| file(&slots)).collect();
        let mut demands = Vec::new();
        for file in &files {
            demands.push(wants(file, bytes(0, 10)));
            fetches(file, &slots);
        }
        let mut next = pin!(slots.acquire(Class::Interactive, 2, 10));
        assert!(poll(next.as_mut()).is_none(), "all is in use");
        assert!(files.iter().all(|file| reads(file, bytes(0, 10))));
        demands.pop();
        assert!(poll(next.as_mut()).is_some());
        assert_eq!(files.iter().filter(|file| reads(file, bytes(0, 10))).count(), 3);
    }

    /// Room for four chunks: four readers are in the midst of one each, and a fifth waits.
    async fn waits(reads_on: bool) -> Duration {
        let slots = Slots::new(SlotLimits { fetches: 8, bytes: 40 });
        let files: Vec<_> = (0..4).map(|_| file(&slots)).collect();
        for file in &files {
            let first = wants(file, bytes(0, 4));
            fetches(file, &slots);
            assert!(reads(file, bytes(0, 4)));
            drop(first);
        }
        let (begun, mut at) = (Instant::now(), 4);
        let mut fifth = pin!(slots.acquire_asking(Class::Interactive, 2, 10));
        loop {
            tokio::select! {
                biased;
                _permit = &mut fifth => return begun.elapsed(),
                () = tokio::time::sleep(Duration::from_millis(200)) => {
                    let there = files.iter().filter(|file| !reads_on || reads(file, bytes(at % 9, 1))).count();
                    assert_eq!(there, 4, "after {:?}", begun.elapsed());
                    at += 1;
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_somebody_is_in_the_midst_of_stays_for_a_while() {
        let (once, on) = (waits(false).await, waits(true).await);
        assert!((READ_ON..READ_ON + Duration::from_millis(200)).contains(&once), "{once:?}");
        assert!((READ_ON_MAX..READ_ON_MAX + Duration::from_millis(200)).contains(&on), "{on:?}");
    }

    /// What has come for a reader stays while the rest of what he wants comes, too; not while that waits for room.
    #[test]
    fn who_needs_no_more_room_keeps_what_has_come() {
        for has_room in [true, false] {
            let slots = Slots::new(SlotLimits { fetches: 8, bytes: 27 });
            let file = file(&slots);
            let first = wants(&file, bytes(0, 10));
            let second = wants(&file, bytes(5, 10));
            let runs = [file.next_run(false).unwrap(), file.next_run(false).unwrap()];
            assert_eq!(runs.clone().map(|run| run.chunks), [0..1, 1..2]);
            let permits =
                [10, 10].map(|bytes| poll(pin!(slots.acquire(Class::Interactive, 1, bytes))).unwrap().unwrap());
            file.hold(0, content(10), false, permits[0].room());
            file.with_plan(|plan| plan.have_room(1..2, has_room));
            let [of_first, of_second] = permits;
            drop(of_first);
            file.run_ended(&runs[0], None);
            assert!(reads(&file, bytes(0, 10)));
            drop(first);
            let mut other = pin!(slots.acquire(Class::Interactive, 2, 10));
            assert_eq!((poll(other.as_mut()).is_none(), reads(&file, bytes(0, 4))), (has_room, has_room));
            drop((second, of_second));
        }
    }

    /// Each has one chunk of two, and there is room for no more: nobody would ever have both.
    #[test]
    fn readers_across_chunks_do_not_wait_for_each_other() {
        let slots = Slots::new(SlotLimits { fetches: 8, bytes: 27 });
        let files: Vec<_> = (0..2).map(|_| file(&slots)).collect();
        for file in &files {
            let first = wants(file, bytes(0, 10));
            fetches(file, &slots);
            drop(first);
        }
        assert_eq!(slots.held(), (0, 20));
        let demands: Vec<_> = files.iter().map(|file| wants(file, bytes(5, 15))).collect();
        for (file, demand) in files.iter().zip(demands) {
            fetches(file, &slots);
            assert!(poll(pin!(demand.met())).is_some_and(|met| met.is_ok()));
            assert!(reads(file, bytes(5, 15)));
        }
    }
}
