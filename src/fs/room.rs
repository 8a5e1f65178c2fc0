//! Room on a share that is full: who finds none waits a moment for content that is remote too to be freed, instead of failing at once.
//!
//! Invariant: a wait ends with the first of these: something was freed, nothing can be, its time is over, its requester is being killed. Whoever frees
//! (`control::space`) is told what is missing; nothing here frees anything.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Fs;
use super::error::FsError;
use super::wait::{SIGNAL_PERIOD, Waiter, is_signalled};
use crate::engine::{EngineError, Stall};

/// Requests that wait at a time; each may hold a megabyte that is to be written.
const WAITING_MAX: usize = 256;
/// What is asked for where it is not known how much is missing; doubled with every attempt that still finds too little.
const LEAST: u64 = 1 << 20;
/// Attempts that may double it, and all: what is not for want of blocks (an attribute that does not fit, say) must not empty the share.
const DOUBLED_MAX: u32 = 6;
const ATTEMPTS_MAX: u32 = 16;
/// For so long after nothing could be freed nobody waits.
const NOTHING_FOR: Duration = Duration::from_secs(1);

/// Who waits for room.
pub struct Room {
    wait: Duration,
    /// Below the reserve, as far as whoever frees has looked.
    scarce: AtomicBool,
    state: Mutex<State>,
    wanted: Notify,
    changed: Notify,
}

#[derive(Default)]
struct State {
    waiting: usize,
    /// The most that anybody misses.
    bytes: u64,
    /// Counts what was freed, and what was found not to be there, since the mount.
    freed: u64,
    nothing: u64,
    nothing_at: Option<Instant>,
}

/// Somebody who waits; leaves when it is dropped.
struct Waits<'r>(&'r Room);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.waiting -= 1;
        if state.waiting == 0 {
            state.bytes = 0;
        }
    }
}

/// The waits of one request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Patiently {
    since: Option<Instant>,
    attempts: u32,
}

impl Room {
    /// `wait`: how long one request waits in all; zero: not at all.
    pub(super) fn new(wait: Duration) -> Self {
        Self {
            wait,
            scarce: AtomicBool::new(false),
            state: Mutex::default(),
            wanted: Notify::new(),
            changed: Notify::new(),
        }
    }

    /// How long a request waits at most.
    pub fn patience(&self) -> Duration {
        self.wait
    }

    /// Says whether there is so little room left that who is about to write may soon have to wait for some.
    pub fn set_scarce(&self, scarce: bool) {
        self.scarce.store(scarce, Ordering::Relaxed);
    }

    /// Whether writes should come to the daemon from now on: what the kernel writes by itself cannot wait.
    pub fn is_scarce(&self) -> bool {
        self.scarce.load(Ordering::Relaxed) && !self.wait.is_zero()
    }

    /// What whoever frees waits for: somebody finds no room.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Bytes that are missing; `None`: nobody waits.
    pub fn missing(&self) -> Option<u64> {
        let state = self.state.lock();
        (state.waiting > 0).then_some(state.bytes)
    }

    /// Something was freed.
    pub fn was_freed(&self) {
        let mut state = self.state.lock();
        state.freed += 1;
        state.bytes = 0;
        drop(state);
        self.changed.notify_waiters();
    }

    /// Nothing can be freed just now.
    pub fn has_nothing(&self) {
        let mut state = self.state.lock();
        state.nothing += 1;
        state.nothing_at = Some(Instant::now());
        drop(state);
        self.changed.notify_waiters();
    }

    /// Waits until something was freed; `false`: nothing will be in time.
    async fn wait(&self, bytes: u64, until: Instant) -> bool {
        let (_waits, before) = {
            let mut state = self.state.lock();
            let hopeless = state.nothing_at.is_some_and(|at| at.elapsed() < NOTHING_FOR);
            if hopeless || state.waiting >= WAITING_MAX {
                return false;
            }
            state.waiting += 1;
            state.bytes = state.bytes.max(bytes);
            (Waits(self), (state.freed, state.nothing))
        };
        self.wanted.notify_one();
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before looking, or what is freed in between would be missed.
            changed.as_mut().enable();
            let now = {
                let state = self.state.lock();
                (state.freed, state.nothing)
            };
            if now.0 > before.0 {
                return true;
            }
            if now.1 > before.1 || tokio::time::timeout_at(until, changed).await.is_err() {
                return false;
            }
        }
    }
}

impl FsError {
    /// How many bytes are missing, if room is.
    fn missing(&self) -> Option<u64> {
        match self {
            Self::Lower(error) if error.errno() == libc::ENOSPC => Some(LEAST),
            Self::Engine(EngineError::Lower { source, .. }) if source.errno() == libc::ENOSPC => Some(LEAST),
            Self::Engine(EngineError::NoSpace { len, available, .. }) => {
                Some(len.saturating_sub(*available).max(LEAST))
            }
            _ => None,
        }
    }
}

impl Fs {
    /// Whether a request that ended so is worth another attempt when room was made.
    pub fn is_for_room(&self, error: &FsError) -> bool {
        !self.room.wait.is_zero() && error.missing().is_some()
    }

    /// Waits for room after an attempt that ended with `error`; `false`: the request is to end so. `wanted`: bytes that it is about, 0 where that is not known.
    pub async fn wait_for_room(&self, error: &FsError, wanted: u64, waiter: Waiter, patiently: &mut Patiently) -> bool {
        if !self.is_for_room(error) || patiently.attempts >= ATTEMPTS_MAX {
            return false;
        }
        let begun = Instant::now();
        let until = *patiently.since.get_or_insert(begun) + self.room.wait;
        let least = (LEAST << patiently.attempts.min(DOUBLED_MAX)).max(wanted);
        patiently.attempts += 1;
        let waiting = self.room.wait(error.missing().unwrap_or(0).max(least), until);
        tokio::pin!(waiting);
        let freed = loop {
            match tokio::time::timeout(SIGNAL_PERIOD, &mut waiting).await {
                Ok(freed) => break freed,
                Err(_) if is_signalled(waiter.pid) => break false,
                Err(_) => {}
            }
        };
        self.engine.totals.note_stall(Stall::Space, begun.elapsed());
        freed
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_by_what_is_freed_by_nothing_or_by_time() {
        let room = Arc::new(Room::new(Duration::from_secs(2)));
        let wait = |bytes| {
            let room = room.clone();
            tokio::spawn(async move { room.wait(bytes, Instant::now() + Duration::from_secs(2)).await })
        };
        let (few, many) = (wait(5), wait(7));
        room.wanted().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(room.missing(), Some(7));
        room.was_freed();
        assert!(few.await.unwrap() && many.await.unwrap());
        assert_eq!(room.missing(), None);
        let begun = Instant::now();
        assert!(!wait(1).await.unwrap());
        assert_eq!(begun.elapsed(), Duration::from_secs(2));
        let waiting = wait(1);
        tokio::time::sleep(Duration::from_millis(1)).await;
        room.has_nothing();
        assert!(!waiting.await.unwrap());
        assert!(begun.elapsed() < Duration::from_secs(3));
        assert!(!wait(1).await.unwrap() && room.missing().is_none(), "nobody waits in vain right after that");
        tokio::time::sleep(NOTHING_FOR).await;
        let waiting = wait(1);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(room.missing(), Some(1));
        waiting.abort();
        let _ = waiting.await;
        assert_eq!(room.missing(), None, "who leaves misses nothing");
    }
}
