//! Recall: brings an object's content back into the lower file, chunk by chunk, each verified before it is written or served.
//!
//! One recall serves all who wait for any part of a file; it fetches what they wait for, what they will probably read, and the rest only
//! where somebody wants all of it. Order: note (durable) → fetch, verify, write → mtime back → where all is local: sync → record dual, else
//! record partial → sync → note removed. Until the record says dual, nothing local is believed without its hash, so any lost step costs a refetch.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::content::Content;
use super::error::{EngineError, EngineResult};
use super::held::{Gone, Held};
use super::line::Line;
use super::plan::{Plan, Run};
use super::readers::Readers;
use super::slots::{RequestRoom, Slots, Spare};
use crate::ports::{LowerFile, LowerResult};
use crate::types::{ByteRange, RecallPolicy};

/// How long a cut may take that has cancelled a recall. An attempt before it would start another recall for nothing.
pub const CUT_WITHIN: Duration = Duration::from_millis(20);

/// How far is read ahead for readers that are only served, in bytes: no further than is held.
const HELD_WINDOW: u64 = 8 << 20;
/// Bytes of one request at most.
const REQUEST_BYTES: u64 = 8 << 20;

/// What is wanted of a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// `None`: all of it, until it is dual.
    pub range: Option<ByteRange>,
    /// Whether it may stay; else it is only served, from memory.
    pub keep: bool,
}

impl Wish {
    /// All content, for good.
    pub const ALL: Self = Self { range: None, keep: true };

    /// A range, to be kept.
    pub fn range(range: ByteRange) -> Self {
        Self { range: Some(range), keep: true }
    }
}

/// A recall that runs or has run.
pub struct Recall {
    chunk_size: u64,
    state: Mutex<State>,
    /// For who waits for chunks, or for the recall to end.
    moved: Notify,
    /// For who fetches: perhaps nobody wants it any more.
    lessened: Notify,
    /// For the recall itself: there is something to do, or it is to end.
    stirred: Notify,
    cut: AtomicBool,
    paused: AtomicBool,
    /// Whether anything may be written.
    may_keep: bool,
    keeps: AtomicBool,
    /// Something was written, or may have been.
    pub(super) wrote: AtomicBool,
    /// Set before anything written is freed again: from then on no chunk counts as local.
    gone: AtomicBool,
    bytes_done: AtomicU64,
    /// Whether it is asked for room when others wait.
    spares: AtomicBool,
    policy: RecallPolicy,
    line: Arc<Line>,
    slots: Arc<Slots>,
}

struct State {
    plan: Plan,
    readers: Readers,
    /// Chunks that are verified and in memory.
    held: Held,
    /// What became of demands that cannot be met.
    failed: HashMap<u64, EngineError>,
    /// Nobody can join any more.
    closed: bool,
    outcome: Option<EngineResult<()>>,
}

/// What somebody waits for; dropping it takes the wish back. Until then what has come of it stays in memory, if it is nowhere else: whoever waited keeps
/// it until he has read.
pub struct Demand {
    pub recall: Arc<Recall>,
    id: u64,
    range: Option<ByteRange>,
}

impl Demand {
    /// Waits until what was wished for is there. [`EngineError::Cancelled`]: the recall ended before; ask again.
    pub async fn met(&self) -> EngineResult<()> {
        self.recall
            .wait(|state| {
                if let Some(error) = state.failed.remove(&self.id) {
                    return Some(Err(error));
                }
                match self.range {
                    Some(range) if state.serves(range) => Some(Ok(())),
                    _ => state.outcome.clone(),
                }
            })
            .await
    }
}

impl Drop for Demand {
    fn drop(&mut self) {
        let mut state = self.recall.state.lock();
        state.plan.withdraw(self.id);
        state.failed.remove(&self.id);
        // What came is fetched no more; only who gave up leaves something behind that nobody wants.
        let gave_up = !self.range.is_some_and(|range| state.serves(range));
        let at_rest = state.plan.is_at_rest();
        drop(state);
        if gave_up {
            self.recall.lessened.notify_waiters();
        }
        if gave_up || at_rest {
            self.recall.stirred.notify_one();
            self.recall.moved.notify_waiters();
        }
        if self.recall.slots.is_waited_for() {
            self.recall.give_back();
        }
    }
}

impl Spare for Recall {
    fn give_back(&self) {
        let gone = {
            let mut state = self.state.lock();
            let State { plan, held, .. } = &mut *state;
            let torn = plan.torn();
            let gone = held.give_to_others(
                |chunk| plan.is_served(chunk),
                |chunk| torn.iter().any(|chunks| chunks.contains(&chunk)),
            );
            gone.numbers().for_each(|chunk| _ = plan.dropped(chunk));
            gone
        };
        if gone.numbers().next().is_some() {
            // Somebody may wait for a chunk of these and for others that are not here: it has to come again.
            self.stirred.notify_one();
        }
    }
}

impl State {
    fn serves(&self, range: ByteRange) -> bool {
        self.plan.is_here(self.plan.chunks_of(range))
    }
}

impl Recall {
    pub(super) fn new(
        (len, chunk_size): (u64, u64),
        may_keep: bool,
        policy: RecallPolicy,
        line: Arc<Line>,
        slots: Arc<Slots>,
    ) -> Arc<Self> {
        Arc::new(Self {
            chunk_size,
            state: Mutex::new(State {
                plan: Plan::new(len, chunk_size),
                readers: Readers::default(),
                held: Held::new(chunk_size),
                failed: HashMap::new(),
                closed: false,
                outcome: None,
            }),
            moved: Notify::new(),
            lessened: Notify::new(),
            stirred: Notify::new(),
            cut: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            may_keep,
            keeps: AtomicBool::new(false),
            wrote: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            bytes_done: AtomicU64::new(0),
            spares: AtomicBool::new(false),
            policy,
            line,
            slots,
        })
    }

    /// Asks the recall to stop because the file is cut to nothing; what it has written is freed again.
    pub fn cancel(&self) {
        self.cut.store(true, Ordering::SeqCst);
        self.stir();
    }

    /// Asks the recall to end soon, with what it has: somebody else has to do with the file. Who waits asks again.
    pub fn pause(&self) {
        self.paused.store(true, Ordering::SeqCst);
        self.stir();
    }

    /// Has the recall look again whether anybody wants anything.
    pub fn stir(&self) {
        self.stirred.notify_one();
        self.lessened.notify_waiters();
    }

    pub(super) async fn stirred(&self) {
        self.stirred.notified().await;
    }

    /// Bytes brought so far.
    pub fn bytes_done(&self) -> u64 {
        self.bytes_done.load(Ordering::Relaxed)
    }

    /// Whether `range` can be read from the lower file now. To be asked again after the read: only if it is still so were the
    /// bytes read the content, and not blocks being freed for a cut.
    pub fn is_available(&self, range: ByteRange) -> bool {
        let state = self.state.lock();
        !self.gone.load(Ordering::SeqCst) && state.plan.is_local(state.plan.chunks_of(range))
    }

    /// Reads `range`, which lies within the object, from what is held in memory and from the lower file; `None`: some of it is not there.
    /// The bytes are the content.
    pub fn read(&self, file: &dyn LowerFile, range: ByteRange) -> LowerResult<Option<Bytes>> {
        let Some(held) = self.held(range) else { return Ok(None) };
        if held.is_empty() {
            let mut buffer = vec![0; range.len as usize];
            let got = file.read_at(&mut buffer, range.offset)?;
            return Ok((got == buffer.len() && self.is_available(range)).then(|| buffer.into()));
        }
        let (mut content, mut at) = (Content::default(), range.offset);
        while at < range.end() {
            let chunk = (at / self.chunk_size) as usize;
            let place = self.place(chunk, range.end());
            let part = ByteRange { offset: at, len: place.end() - at };
            match held.iter().find(|(held, _)| *held == chunk) {
                Some((_, held)) => content.append(held.slice((at - place.offset) as usize, part.len as usize)),
                None => {
                    let mut buffer = vec![0; part.len as usize];
                    let got = file.read_at(&mut buffer, at)?;
                    if got != buffer.len() || !self.is_available(part) {
                        return Ok(None);
                    }
                    content.push(buffer.into());
                }
            }
            at = part.end();
        }
        Ok(Some(content.into_bytes()))
    }

    /// Reads `range` if all of it is in memory.
    pub fn read_held(&self, range: ByteRange) -> Option<Bytes> {
        {
            let state = self.state.lock();
            if !state.plan.chunks_of(range).all(|chunk| state.held.get(chunk).is_some()) {
                return None;
            }
        }
        let mut content = Content::default();
        for (chunk, held) in self.held(range)? {
            let place = self.place(chunk, range.end());
            let start = range.offset.max(place.offset);
            content.append(held.slice((start - place.offset) as usize, (place.end() - start) as usize));
        }
        (content.len() as u64 == range.len).then(|| content.into_bytes())
    }

    /// What of `range` is in memory, in order. `None`: some of it is not here at all.
    fn held(&self, range: ByteRange) -> Option<Vec<(usize, Content)>> {
        let mut state = self.state.lock();
        if self.gone.load(Ordering::SeqCst) || !state.serves(range) {
            return None;
        }
        let mut found = Vec::new();
        for chunk in state.plan.chunks_of(range) {
            let Some(content) = state.held.get(chunk) else { continue };
            found.push((chunk, content.clone()));
            let ends = range.end() >= state.plan.bytes_of(&(chunk..chunk + 1)).end();
            state.held.note_read(chunk, ends);
            // Read to its end, it will hardly be read again; who does finds it in the file.
            if ends && state.plan.is_local(chunk..chunk + 1) {
                state.held.remove(|held| held == chunk);
            }
        }
        Some(found)
    }

    /// Where a chunk is, up to `end`.
    fn place(&self, chunk: usize, end: u64) -> ByteRange {
        let offset = chunk as u64 * self.chunk_size;
        ByteRange { offset, len: self.chunk_size.min(end - offset) }
    }

    /// A reader reads `range`, and did not have to wait for it: what it will probably read next is fetched.
    pub fn note_read(&self, range: ByteRange) {
        let mut state = self.state.lock();
        if !state.plan.is_complete() && !state.closed {
            self.look_ahead(&mut state, range, false);
        }
    }

    fn look_ahead(&self, state: &mut State, range: ByteRange, stalled: bool) {
        let window_max = self.line.window_max();
        let window_max = match self.keeps() {
            true => window_max,
            // What is fetched ahead and cannot stay would be thrown away before it is read.
            false if self.slots.can_hold(HELD_WINDOW) => window_max.min(HELD_WINDOW),
            false => 0,
        };
        let forecast = state.readers.note(range, stalled, window_max);
        let ahead: Vec<_> = forecast.into_iter().map(|range| state.plan.chunks_of(range)).collect();
        if !ahead.is_empty() && state.plan.look_ahead(ahead) {
            self.stirred.notify_one();
        }
    }

    /// Joins who waits. `None`: the recall is over, and another must begin.
    pub(super) fn join(self: &Arc<Self>, wish: Wish) -> Option<Demand> {
        let mut state = self.state.lock();
        if state.closed || self.is_cut() {
            return None;
        }
        let passes = !self.may_keep || self.policy == RecallPolicy::PassThrough || !wish.keep;
        let range = wish.range.filter(|_| passes || self.policy != RecallPolicy::Full);
        let mut gone = Gone::default();
        // Where there was no room before, there may be some now.
        if (range.is_none() || !passes) && !self.keeps.swap(true, Ordering::SeqCst) {
            gone = state.held.remove(|_| true);
            gone.numbers().for_each(|chunk| _ = state.plan.dropped(chunk));
        }
        let chunks = range.map(|range| state.plan.chunks_of(range));
        let mut comes = chunks.as_ref().is_some_and(|chunks| state.plan.is_coming(chunks.clone()));
        let id = state.plan.want(chunks);
        if let Some(range) = range {
            if self.policy == RecallPolicy::Progressive && !passes {
                state.plan.want_everything();
                comes = false;
            }
            self.look_ahead(&mut state, range, true);
        }
        drop(state);
        drop(gone);
        if !comes {
            self.stirred.notify_one();
        }
        Some(Demand { recall: self.clone(), id, range })
    }

    pub(super) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::SeqCst)
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// Whether what is fetched goes to the lower file; else it is only served.
    pub fn keeps(&self) -> bool {
        self.keeps.load(Ordering::SeqCst)
    }

    /// There is no room: from now on content is only served, and who waits for all of it is told why it cannot be.
    pub(super) fn stop_keeping(&self, why: &EngineError) {
        self.keeps.store(false, Ordering::SeqCst);
        let mut state = self.state.lock();
        state.held.let_go();
        let gone = state.plan.give_up_the_whole();
        state.failed.extend(gone.into_iter().map(|id| (id, why.clone())));
        drop(state);
        self.moved.notify_waiters();
        self.lessened.notify_waiters();
    }

    /// Whether it brings nothing more: it is to end, or ends.
    pub(super) fn is_ending(&self) -> bool {
        self.is_cut() || self.is_paused() || self.state.lock().closed
    }

    /// Nobody has the file open: nothing is fetched ahead any more.
    pub(super) fn look_no_further(&self) {
        if self.with_plan(|plan| plan.look_no_further()) {
            self.lessened.notify_waiters();
            self.moved.notify_waiters();
        }
    }

    /// Before what was written is freed again.
    pub(super) fn set_gone(&self) {
        self.gone.store(true, Ordering::SeqCst);
    }

    /// Ends it for all who still wait.
    pub(super) fn finish(&self, outcome: EngineResult<()>) {
        let mut state = self.state.lock();
        state.closed = true;
        state.outcome = Some(outcome);
        drop(state);
        self.moved.notify_waiters();
    }

    /// Waits until it brings nothing more, for now or for good.
    pub async fn rested(&self) {
        self.wait(|state| (state.outcome.is_some() || !state.plan.brings_more()).then_some(())).await;
    }

    /// Whether it brings something, or will.
    pub fn brings_more(&self) -> bool {
        let state = self.state.lock();
        state.outcome.is_none() && state.plan.brings_more()
    }

    /// What a read of the file brings back, as it was when this began.
    pub fn policy(&self) -> RecallPolicy {
        self.policy
    }

    /// Waits until it has ended.
    pub(super) async fn finished(&self) {
        self.wait(|state| state.outcome.is_some().then_some(())).await;
    }

    async fn wait<T>(&self, look: impl FnMut(&mut State) -> Option<T>) -> T {
        self.wait_for(&self.moved, look).await
    }

    async fn wait_for<T>(&self, moves: &Notify, mut look: impl FnMut(&mut State) -> Option<T>) -> T {
        loop {
            let moved = moves.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if let Some(result) = look(&mut self.state.lock()) {
                return result;
            }
            moved.await;
        }
    }

    /// Waits until nobody wants any of `chunks` any more, or the recall is to end.
    pub(super) async fn unwanted(&self, chunks: &std::ops::Range<usize>) {
        let ends = |state: &State| self.is_cut() || self.is_paused() || !state.plan.is_still_wanted(chunks);
        self.wait_for(&self.lessened, |state| ends(state).then_some(())).await;
    }

    pub(super) fn with_plan<T>(&self, act: impl FnOnce(&mut Plan) -> T) -> T {
        act(&mut self.state.lock().plan)
    }

    /// The next run, of few enough chunks that several requests share what is wanted soon; `ahead`: also one that nobody waits for yet.
    pub(super) fn next_run(&self, ahead: bool) -> Option<Run> {
        let most = (REQUEST_BYTES / self.chunk_size) as usize;
        let mut state = self.state.lock();
        if self.keeps() {
            return state.plan.next_run(most, ahead);
        }
        // What one reader waits for comes in one request, with room for all of it: several readers, each of whom has a part, could wait for each other.
        let State { plan, held, .. } = &mut *state;
        let torn = plan.torn();
        let gone = held.give_back(|chunk| plan.is_served(chunk) || !torn.iter().any(|chunks| chunks.contains(&chunk)));
        gone.numbers().for_each(|chunk| _ = plan.dropped(chunk));
        let run = plan.next_run(most.max(plan.widest()), ahead);
        drop(state);
        drop(gone);
        run
    }

    /// A chunk is verified, and in the lower file. It stays in memory for its reader as well, where there is room.
    pub(super) fn arrived(&self, chunk: usize) {
        let mut state = self.state.lock();
        state.plan.arrived(chunk);
        let held = state.held.written(chunk);
        drop(state);
        // Who waits for what was held has been told.
        if held.is_none() {
            self.moved.notify_waiters();
        }
    }

    /// A chunk is verified, and in memory, where its bytes have the room of the request that brought it; `stays`: until it is written, too.
    pub(super) fn hold(self: &Arc<Self>, chunk: usize, content: Content, stays: bool, of_request: &Arc<RequestRoom>) {
        self.bytes_done.fetch_add(content.len() as u64, Ordering::Relaxed);
        let mut state = self.state.lock();
        let State { plan, held, .. } = &mut *state;
        plan.is_held(chunk);
        let gone = held.add(chunk, content, stays, of_request, &self.slots, |other| plan.is_awaited(other));
        gone.numbers().filter(|other| *other != chunk).for_each(|other| _ = plan.dropped(other));
        let borrows = held.borrows();
        drop(state);
        drop(gone);
        // Before its request is over, and with it the first time that anything could be asked back.
        if borrows && !self.spares.swap(true, Ordering::SeqCst) {
            let this: Weak<Self> = Arc::downgrade(self);
            self.slots.register(this);
        }
        self.moved.notify_waiters();
    }

    /// What of a run did not come goes back; with an error, who waits for it is told.
    pub(super) fn run_ended(&self, run: &Run, error: Option<EngineError>) {
        let mut state = self.state.lock();
        let mut left = state.plan.run_ended(run);
        if self.keeps() {
            // What could not be written after all has not come either.
            let gone: Vec<_> = run.chunks.clone().filter(|chunk| state.plan.dropped(*chunk)).collect();
            state.held.remove(|held| gone.contains(&held));
            left.extend(gone);
        }
        if let (Some(error), Some(first), Some(last)) = (error, left.iter().min(), left.iter().max()) {
            let demands = state.plan.give_up(*first..last + 1);
            state.failed.extend(demands.into_iter().map(|id| (id, error.clone())));
            drop(state);
            self.moved.notify_waiters();
            self.lessened.notify_waiters();
        } else if !state.plan.brings_more() {
            drop(state);
            self.moved.notify_waiters();
        }
    }

    /// Closes it, if nobody waits for anything and nothing is on its way: nobody can join then.
    pub(super) fn close_at_rest(&self) -> bool {
        let mut state = self.state.lock();
        state.closed = state.plan.is_at_rest() || (self.is_paused() && !state.plan.is_underway());
        state.closed
    }
}
