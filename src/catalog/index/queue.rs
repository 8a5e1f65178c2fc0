//! What a scan has yet to read, and how fast it may: shared by the threads that read.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::types::Inode;

/// How long a thread that must wait sleeps before it looks whether it should end.
const PACE_STEP: Duration = Duration::from_millis(100);

/// Directories to be read, and those who read them.
pub(super) struct Queue {
    state: Mutex<Waiting>,
    moved: Condvar,
    stop: AtomicBool,
}

struct Waiting {
    dirs: Vec<Inode>,
    /// Threads that may yet add some.
    busy: usize,
}

impl Queue {
    pub fn new(dirs: Vec<Inode>) -> Self {
        let state = Mutex::new(Waiting { dirs, busy: 0 });
        Self { state, moved: Condvar::new(), stop: AtomicBool::new(false) }
    }

    /// Whether the scan is to stop before all is read.
    pub fn has_ended(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// The next directory; `None` when all is read, or the scan is stopped.
    pub fn next(&self) -> Option<Inode> {
        let mut state = self.state.lock();
        loop {
            if self.has_ended() {
                return None;
            }
            if let Some(dir) = state.dirs.pop() {
                state.busy += 1;
                return Some(dir);
            }
            if state.busy == 0 {
                return None;
            }
            self.moved.wait(&mut state);
        }
    }

    pub fn add(&self, dirs: &[Inode]) {
        if !dirs.is_empty() {
            self.state.lock().dirs.extend_from_slice(dirs);
            self.moved.notify_all();
        }
    }

    pub fn done(&self) {
        self.state.lock().busy -= 1;
        self.moved.notify_all();
    }

    pub fn end(&self) {
        self.stop.store(true, Ordering::SeqCst);
        let _state = self.state.lock();
        self.moved.notify_all();
    }
}

/// Holds a rate over all threads.
pub(super) struct Rate {
    per_s: u64,
    begun: Instant,
    booked: AtomicU64,
}

impl Rate {
    pub fn new(per_s: u64, begun: Instant) -> Self {
        Self { per_s, begun, booked: AtomicU64::new(0) }
    }

    /// Waits until `inodes` more may be looked at.
    pub fn wait(&self, inodes: usize, queue: &Queue) {
        if self.per_s == 0 {
            return;
        }
        let booked = self.booked.fetch_add(inodes as u64, Ordering::Relaxed) + inodes as u64;
        let due = Duration::from_secs_f64(booked as f64 / self.per_s as f64);
        while !queue.has_ended() {
            let left = due.saturating_sub(self.begun.elapsed());
            if left.is_zero() {
                break;
            }
            std::thread::sleep(left.min(PACE_STEP));
        }
    }
}
