//! Slots: how much is fetched at once for all recalls together, and whose fetch is next.
//!
//! A fetch needs a slot and room for its bytes. Interactive comes before prefetch, and prefetch before bulk; within a class users take turns, so that
//! one user's ten thousand recalls do not stand before another's single one. Some slots and some room are for interactive fetches alone: those never wait for slow
//! bulk ones to end.
//!
//! Invariants: who is next and does not fit is waited for, nobody of its class or below passes it; a fetch larger than all room goes alone; nothing
//! that holds a permit waits for another one. Room may be held longer than a permit, by content that waits for its reader: it is asked back
//! before anybody waits ([`Spare`]). So there is no deadlock, and nobody waits for ever.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::error::{EngineError, EngineResult};
use crate::admission::Class;

/// After so many fetches of a higher class in a row, one of a lower class that waits goes first, if it fits …
const TURNS: u32 = 16;
/// … and after so many it is waited for until it fits.
const TURNS_MAX: u32 = 64;

/// How much there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotLimits {
    /// Fetches at once.
    pub fetches: usize,
    /// Bytes of content in memory for all of them.
    pub bytes: u64,
}

impl Default for SlotLimits {
    fn default() -> Self {
        // Many small files, or many requests that hang: what they hold in memory is bounded by itself.
        Self { fetches: 256, bytes: 256 << 20 }
    }
}

/// How often who waits for room asks for what others may do without.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// A quarter is for interactive fetches alone.
const RESERVED: u64 = 4;
/// A quarter of the memory is for what was fetched, and stays for its readers.
const HELD: u64 = 4;

/// A fetch that waits.
struct Waiting {
    bytes: u64,
    granted: oneshot::Sender<Permit>,
}

/// The fetches of one class that wait: users in turn, each with his own line.
#[derive(Default)]
struct Line(VecDeque<(u32, VecDeque<Waiting>)>);

impl Line {
    fn push(&mut self, uid: u32, waiting: Waiting) {
        match self.0.iter_mut().find(|(user, _)| *user == uid) {
            Some((_, own)) => own.push_back(waiting),
            None => self.0.push_back((uid, VecDeque::from([waiting]))),
        }
    }

    /// The next one, without those that gave up.
    fn peek(&mut self) -> Option<&Waiting> {
        while let Some((_, own)) = self.0.front_mut() {
            while own.front().is_some_and(|waiting| waiting.granted.is_closed()) {
                own.pop_front();
            }
            if own.is_empty() {
                self.0.pop_front();
            } else {
                break;
            }
        }
        self.0.front()?.1.front()
    }

    /// Takes the next one; its user comes after all others.
    fn pop(&mut self) -> Option<Waiting> {
        let (uid, mut own) = self.0.pop_front()?;
        let waiting = own.pop_front();
        if !own.is_empty() {
            self.0.push_back((uid, own));
        }
        waiting
    }
}

#[derive(Default)]
struct State {
    fetches: usize,
    bytes: u64,
    lines: [Line; Class::ALL.len()],
    /// Fetches of a higher class let in since one of a lower class that waited.
    turns: u32,
    /// Bytes that stay for readers.
    held: u64,
}

/// All slots of an engine.
pub struct Slots {
    /// Of fetches: without what stays for readers.
    limits: SlotLimits,
    held_max: u64,
    state: Mutex<State>,
    spares: Mutex<Vec<Weak<dyn Spare>>>,
}

/// Who may have room of requests that are over.
pub trait Spare: Send + Sync {
    /// Gives back what it can do without. Called without any lock held.
    fn give_back(&self);
}

/// Room for content that stays in memory; given back when it is dropped.
pub struct HeldRoom {
    slots: Arc<Slots>,
    bytes: u64,
}

impl Drop for HeldRoom {
    fn drop(&mut self) {
        self.slots.state.lock().held -= self.bytes;
    }
}

/// Room for the bytes of a request; given back by the last who has it.
pub struct RequestRoom {
    slots: Arc<Slots>,
    bytes: u64,
    over: AtomicBool,
}

impl RequestRoom {
    /// Whether the request has ended: only what it brought is left.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

impl Drop for RequestRoom {
    fn drop(&mut self) {
        self.slots.state.lock().bytes -= self.bytes;
        Slots::let_in(&self.slots);
    }
}

/// A slot and room for bytes; the slot is given back when it is dropped, and the room, unless somebody else has it as well.
pub struct Permit {
    slots: Arc<Slots>,
    room: Arc<RequestRoom>,
    /// It was handed over: until then nothing was brought.
    used: bool,
}

impl Permit {
    /// Its room, for what the request brings.
    pub fn room(&self) -> &Arc<RequestRoom> {
        &self.room
    }
}

impl std::fmt::Debug for Permit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Permit({} bytes)", self.room.bytes)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.room.over.store(true, Ordering::SeqCst);
        self.slots.state.lock().fetches -= 1;
        Slots::let_in(&self.slots);
        if self.used && self.slots.is_waited_for() {
            self.slots.ask_back();
        }
    }
}

impl Slots {
    pub fn new(limits: SlotLimits) -> Arc<Self> {
        let held_max = limits.bytes / HELD;
        let limits = SlotLimits { fetches: limits.fetches.max(1), bytes: limits.bytes - held_max };
        Arc::new(Self { limits, held_max, state: Mutex::default(), spares: Mutex::default() })
    }

    /// Whether there is room for `bytes` that stay for their readers.
    pub fn can_hold(&self, bytes: u64) -> bool {
        self.state.lock().held + bytes <= self.held_max
    }

    /// Room for content that stays for its readers. Nobody waits for it: `None` where there is none.
    pub fn hold(self: &Arc<Self>, bytes: u64) -> Option<HeldRoom> {
        let mut state = self.state.lock();
        if state.held + bytes > self.held_max {
            return None;
        }
        state.held += bytes;
        Some(HeldRoom { slots: self.clone(), bytes })
    }

    /// Waits for a slot and room for `bytes`, for the user `uid`. Who gives up waiting (drops the future) gives everything back.
    pub async fn acquire(self: &Arc<Self>, class: Class, uid: u32, bytes: u64) -> EngineResult<Permit> {
        let (granted, mut mine) = oneshot::channel();
        self.state.lock().lines[class as usize].push(uid, Waiting { bytes, granted });
        Self::let_in(self);
        let mut permit = match mine.try_recv() {
            Ok(permit) => permit,
            Err(_) => {
                self.ask_back();
                mine.await.map_err(|_| EngineError::ShuttingDown)?
            }
        };
        permit.used = true;
        Ok(permit)
    }

    /// Whether somebody waits.
    pub fn is_waited_for(&self) -> bool {
        self.state.lock().lines.iter_mut().any(|line| line.peek().is_some())
    }

    /// From now on `spare` is asked for room when somebody waits.
    pub fn register(&self, spare: Weak<dyn Spare>) {
        let mut spares = self.spares.lock();
        spares.retain(|spare| spare.strong_count() > 0);
        spares.push(spare);
    }

    /// As [`Slots::acquire`], asking again for room that was in use when it was asked for, and may not be any more.
    pub async fn acquire_asking(self: &Arc<Self>, class: Class, uid: u32, bytes: u64) -> EngineResult<Permit> {
        let permit = self.acquire(class, uid, bytes);
        tokio::pin!(permit);
        loop {
            tokio::select! {
                biased;
                permit = &mut permit => return permit,
                () = tokio::time::sleep(ASK_AGAIN) => self.ask_back(),
            }
        }
    }

    fn ask_back(&self) {
        let spares: Vec<_> = self.spares.lock().iter().filter_map(Weak::upgrade).collect();
        for spare in spares {
            if !self.is_waited_for() {
                return;
            }
            spare.give_back();
        }
    }

    /// Fetches that hold a permit now, and their bytes.
    pub fn held(&self) -> (usize, u64) {
        let state = self.state.lock();
        (state.fetches, state.bytes)
    }

    /// Whether most of the room is in use.
    pub fn is_short(&self) -> bool {
        self.state.lock().bytes > self.limits.bytes - self.limits.bytes / 4
    }

    /// Whether a fetch of `class` fits beside those that run.
    fn fits(&self, state: &State, class: Class, bytes: u64) -> bool {
        if state.fetches == 0 && state.bytes == 0 {
            return true;
        }
        // With too few to share, nothing is set aside.
        let (mut fetches, mut room) = (self.limits.fetches, self.limits.bytes);
        if class != Class::Interactive {
            fetches -= fetches / RESERVED as usize;
            room -= room / RESERVED;
        }
        state.fetches < fetches && state.bytes.saturating_add(bytes) <= room
    }

    /// Lets in all who are next and fit.
    fn let_in(this: &Arc<Self>) {
        loop {
            let (waiting, permit) = {
                let mut state = this.state.lock();
                let Some(next) = this.next(&mut state) else { return };
                state.fetches += 1;
                state.bytes += next.bytes;
                let room = RequestRoom { slots: this.clone(), bytes: next.bytes, over: AtomicBool::new(false) };
                let permit = Permit { slots: this.clone(), room: Arc::new(room), used: false };
                (next, permit)
            };
            // Not under the lock: one that was given up a moment ago comes back here, and gives its permit back.
            if let Err(left) = waiting.granted.send(permit) {
                drop(left);
            }
        }
    }

    fn next(&self, state: &mut State) -> Option<Waiting> {
        let waits: [Option<u64>; Class::ALL.len()] =
            std::array::from_fn(|n| state.lines[n].peek().map(|waiting| waiting.bytes));
        let first = waits.iter().position(Option::is_some)?;
        let last = waits.iter().rposition(Option::is_some)?;
        let chosen = if last > first && state.turns >= TURNS {
            let fits = self.fits(state, Class::ALL[last], waits[last].unwrap_or(0));
            if fits || state.turns >= TURNS_MAX { last } else { first }
        } else {
            first
        };
        if !self.fits(state, Class::ALL[chosen], waits[chosen].unwrap_or(0)) {
            return None;
        }
        state.turns = if chosen == first && last > first { state.turns + 1 } else { 0 };
        state.lines[chosen].pop()
    }
}

#[cfg(test)]
mod tests {
    //! Who comes after whom, counted; nothing here takes time.

    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    type Asking = Pin<Box<dyn Future<Output = EngineResult<Permit>>>>;

    /// With room for `bytes` of fetches.
    fn slots(fetches: usize, bytes: u64) -> Arc<Slots> {
        let slots = Slots::new(SlotLimits { fetches, bytes: bytes * HELD / (HELD - 1) });
        assert_eq!(slots.limits.bytes, bytes);
        slots
    }

    fn poll(asking: &mut Asking) -> Option<Permit> {
        match asking.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(permit) => Some(permit.unwrap()),
            Poll::Pending => None,
        }
    }

    fn ask(slots: &Arc<Slots>, class: Class, uid: u32, bytes: u64) -> Asking {
        let slots = slots.clone();
        let mut asking: Asking = Box::pin(async move { slots.acquire(class, uid, bytes).await });
        assert!(poll(&mut asking).is_none(), "those that wait only");
        asking
    }

    fn now(slots: &Arc<Slots>, class: Class, uid: u32, bytes: u64) -> Permit {
        let mut asking: Asking = Box::pin({
            let slots = slots.clone();
            async move { slots.acquire(class, uid, bytes).await }
        });
        poll(&mut asking).expect("there is room")
    }

    /// Gives one permit back at a time; the names of those let in, in order.
    fn order(mut held: Vec<Permit>, mut asking: Vec<(&'static str, Asking)>) -> String {
        let mut order = String::new();
        while !asking.is_empty() {
            drop(held.pop().expect("somebody is let in each time"));
            let mut waiting = Vec::new();
            for (name, mut one) in asking {
                match poll(&mut one) {
                    Some(permit) => {
                        order += name;
                        held.push(permit);
                    }
                    None => waiting.push((name, one)),
                }
            }
            asking = waiting;
        }
        order
    }

    use Class::{Bulk, Interactive, Prefetch};

    #[test]
    fn users_take_turns_and_classes_go_before() {
        let slots = slots(1, 100);
        let held = vec![now(&slots, Bulk, 1, 1)];
        let mut asking = Vec::new();
        for _ in 0..4 {
            asking.push(("b", ask(&slots, Bulk, 1, 1)));
        }
        asking.push(("p", ask(&slots, Prefetch, 1, 1)));
        for _ in 0..4 {
            asking.push(("i", ask(&slots, Interactive, 1, 1)));
        }
        asking.push(("X", ask(&slots, Interactive, 2, 1)));
        asking.push(("Y", ask(&slots, Bulk, 2, 1)));
        assert_eq!(order(held, asking), "iXiiipbYbbb");
    }

    #[test]
    fn a_lower_class_gets_its_turn() {
        let slots = slots(1, 100);
        let held = vec![now(&slots, Bulk, 1, 1)];
        let mut asking = vec![("b", ask(&slots, Bulk, 1, 1)), ("b", ask(&slots, Bulk, 1, 1))];
        for _ in 0..40 {
            asking.push(("i", ask(&slots, Interactive, 1, 1)));
        }
        let i = "i".repeat(TURNS as usize);
        assert_eq!(order(held, asking), format!("{i}b{i}b{}", "i".repeat(40 - 2 * TURNS as usize)));
    }

    #[test]
    fn a_large_one_of_a_lower_class_is_waited_for_at_last() {
        let slots = slots(2, 100);
        let mut held =
            std::collections::VecDeque::from([now(&slots, Interactive, 1, 10), now(&slots, Interactive, 1, 10)]);
        let mut large = ask(&slots, Bulk, 1, 90);
        // As soon as one is let in the next one asks: the line is never empty.
        let mut let_in = 0;
        let permit = loop {
            let mut next = ask(&slots, Interactive, 1, 10);
            drop(held.pop_front());
            let_in += 1;
            assert!(let_in < 1_000);
            match poll(&mut next) {
                Some(permit) => held.push_back(permit),
                None => {
                    held.clear();
                    break poll(&mut large).expect("alone, at last");
                }
            }
        };
        assert_eq!((let_in, slots.held()), (TURNS_MAX + 1, (1, 90)));
        drop(permit);
    }

    #[test]
    fn some_slots_are_for_who_waits() {
        let slots = slots(8, 800);
        let bulk: Vec<_> = (0..6).map(|_| now(&slots, Bulk, 1, 10)).collect();
        let seventh = ask(&slots, Bulk, 2, 10);
        let _first = now(&slots, Interactive, 3, 10);
        let _second = now(&slots, Interactive, 3, 10);
        let mut third = ask(&slots, Interactive, 3, 10);
        assert_eq!(slots.held(), (8, 80));
        drop(bulk);
        assert!(poll(&mut third).is_some());
        drop(seventh);
    }

    #[test]
    fn room_is_never_exceeded_but_by_one_alone() {
        let slots = slots(100, 1_000);
        let small = now(&slots, Interactive, 1, 400);
        let mut large = ask(&slots, Interactive, 2, 5_000);
        // Nobody of its class or below passes it, or it would wait for ever.
        let mut after = ask(&slots, Interactive, 3, 1);
        let mut below = ask(&slots, Bulk, 3, 1);
        drop(small);
        let alone = poll(&mut large).expect("alone");
        assert!(poll(&mut after).is_none() && poll(&mut below).is_none());
        assert_eq!(slots.held(), (1, 5_000));
        drop(alone);
        let _both = (poll(&mut after).unwrap(), poll(&mut below).unwrap());
        assert_eq!(slots.held(), (2, 2));
    }

    #[test]
    fn bulk_cannot_fill_the_room() {
        let slots = slots(100, 1_000);
        let _some = (now(&slots, Bulk, 1, 400), now(&slots, Bulk, 1, 300));
        let waits = ask(&slots, Bulk, 1, 100);
        let _mine = now(&slots, Interactive, 2, 250);
        drop(waits);
    }

    #[test]
    fn what_stays_has_its_own_room() {
        let slots = Slots::new(SlotLimits { fetches: 8, bytes: 400 });
        let all = now(&slots, Interactive, 1, 300);
        let mut next = ask(&slots, Interactive, 1, 1);
        let (first, second) = (slots.hold(60).unwrap(), slots.hold(40).unwrap());
        assert!(slots.hold(1).is_none() && !slots.can_hold(1));
        drop(first);
        assert!(slots.can_hold(60) && !slots.can_hold(61));
        assert!(poll(&mut next).is_none(), "it is not for fetches");
        let third = slots.hold(60).unwrap();
        assert!(slots.hold(1).is_none());
        drop((second, third, all));
        assert!(slots.hold(100).is_some() && poll(&mut next).is_some());
    }

    #[test]
    fn who_gives_up_holds_nothing() {
        let slots = slots(1, 100);
        let held = now(&slots, Interactive, 1, 1);
        let mut waiting: Vec<_> = (0..5).map(|_| ask(&slots, Interactive, 1, 1)).collect();
        let mut last = waiting.pop().unwrap();
        // One is let in and gives up before it looks.
        let first = waiting.remove(0);
        drop(waiting);
        drop(held);
        assert_eq!(slots.held(), (1, 1));
        drop(first);
        let permit = poll(&mut last).expect("all before it gave up");
        drop(permit);
        assert_eq!(slots.held(), (0, 0));
        // One slot, little room: nothing is set aside, and everybody gets through.
        drop(now(&slots, Bulk, 1, 100));
        drop(now(&slots, Bulk, 1, 1_000));
    }
}
