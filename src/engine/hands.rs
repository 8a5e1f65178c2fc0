//! Short local steps of many files, carried out by few threads.
//!
//! A step that is given to tokio's pool wakes a thread of its own, and reading or recording a small file costs less than that. Here a thread that has done one
//! step takes the next one that waits; more threads come only while many wait, or while none moves. Invariants: a step that was given is carried out,
//! whether or not anybody waits for it still; no step waits for another one to end longer than [`STUCK`] while there is a thread left.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::oneshot;

use super::blocking;
use super::error::{EngineError, EngineResult};

/// Threads at once, unless they are stuck: enough for a disk that likes many reads at a time.
const HANDS_MAX: usize = 16;
/// So many steps wait before one more thread is worth it.
const STEPS_A_HAND: usize = 8;
/// A step can meet a lease, a lock or a slow disk. When none was taken for so long, one more thread comes.
const STUCK: Duration = Duration::from_millis(5);
/// How long a step is waited for before that is looked at again, at most.
const STUCK_MAX: Duration = Duration::from_millis(80);

type Step = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    waiting: VecDeque<Step>,
    /// Threads that take steps.
    hands: usize,
    /// Steps that were taken.
    taken: u64,
}

/// The steps of one engine.
#[derive(Default)]
pub(super) struct Hands(Mutex<State>);

impl Hands {
    /// Carries out blocking local I/O off the async workers, as [`blocking`] does; `work` should be short.
    pub(super) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> EngineResult<T> {
        if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
            return blocking(work).await;
        }
        let (done, mut ended) = oneshot::channel();
        let mut seen = self.give(Box::new(move || {
            // Who has left needs no answer.
            let _ = done.send(catch_unwind(AssertUnwindSafe(work)));
        }));
        let mut patience = STUCK;
        let answer = loop {
            match tokio::time::timeout(patience, &mut ended).await {
                Ok(answer) => break answer,
                Err(_) => self.help(&mut seen),
            }
            patience = (patience * 2).min(STUCK_MAX);
        };
        match answer {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_) => Err(EngineError::ShuttingDown),
        }
    }

    /// How many steps had been taken before.
    fn give(self: &Arc<Self>, step: Step) -> u64 {
        let mut state = self.0.lock();
        state.waiting.push_back(step);
        let more = state.hands == 0 || (state.hands < HANDS_MAX && state.waiting.len() > state.hands * STEPS_A_HAND);
        let taken = state.taken;
        if more {
            self.start(&mut state);
        }
        taken
    }

    /// Another thread, if steps wait and none was taken since `seen`.
    fn help(self: &Arc<Self>, seen: &mut u64) {
        let mut state = self.0.lock();
        if *seen == state.taken && !state.waiting.is_empty() {
            self.start(&mut state);
        }
        *seen = state.taken;
    }

    fn start(self: &Arc<Self>, state: &mut State) {
        state.hands += 1;
        let this = self.clone();
        drop(super::start_blocking(move || this.work()));
    }

    fn work(&self) {
        loop {
            let step = {
                let mut state = self.0.lock();
                let Some(step) = state.waiting.pop_front() else {
                    state.hands -= 1;
                    return;
                };
                state.taken += 1;
                step
            };
            step();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap()
    }

    /// Steps that come together are carried out by few threads, each once.
    #[test]
    fn steps_share_threads() {
        let runtime = runtime();
        let (hands, done) = (Arc::<Hands>::default(), Arc::<AtomicUsize>::default());
        runtime.block_on(async {
            let all = (0..2000).map(|n| {
                let done = done.clone();
                hands.run(move || {
                    done.fetch_add(1, Ordering::SeqCst);
                    n
                })
            });
            let ended = futures::future::join_all(all).await;
            assert!(ended.into_iter().map(Result::unwrap).eq(0..2000));
        });
        assert_eq!(done.load(Ordering::SeqCst), 2000);
        assert_eq!(hands.0.lock().taken, 2000);
    }

    /// A step that waits for a later one gets what it waits for: nobody queues behind it for good.
    #[test]
    fn who_is_stuck_holds_nobody_up() {
        let runtime = runtime();
        let hands = Arc::<Hands>::default();
        runtime.block_on(async {
            for _ in 0..3 {
                let (first, gets) = mpsc::channel::<()>();
                let (second, gets_too) = mpsc::channel::<()>();
                let stuck = hands.run(move || gets.recv());
                let stuck_too = hands.run(move || gets_too.recv());
                let frees = hands.run(move || first.send(()).and_then(|()| second.send(())));
                let (one, two, three) = tokio::join!(stuck, stuck_too, frees);
                assert!(one.unwrap().is_ok() && two.unwrap().is_ok() && three.unwrap().is_ok());
            }
        });
    }

    /// A step is carried out though nobody waits for it; one that panics panics for who waits, and the thread goes on.
    #[test]
    fn a_step_is_carried_out_once_given() {
        let runtime = runtime();
        let hands = Arc::<Hands>::default();
        runtime.block_on(async {
            let (done, seen) = mpsc::channel();
            {
                let left = hands.run(move || done.send(()));
                tokio::pin!(left);
                let waker = std::task::Waker::noop();
                let _ = std::future::Future::poll(left.as_mut(), &mut std::task::Context::from_waker(waker));
            }
            let (this, panics) = (
                hands.clone(),
                tokio::spawn({
                    let hands = hands.clone();
                    async move { hands.run(|| panic!("on purpose")).await }
                }),
            );
            assert!(panics.await.unwrap_err().is_panic());
            this.run(move || seen.recv()).await.unwrap().unwrap();
        });
    }
}
