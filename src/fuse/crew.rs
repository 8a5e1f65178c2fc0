//! Which of the session's threads wait for the next request.
//!
//! The kernel wakes the threads that wait on /dev/fuse in turn, so with several waiting every request wakes another one, with cold caches
//! and often on another CPU: a `chmod` took 29 µs with four, 12 µs with one (Linux 6.18, two CPUs). So as long as requests are
//! answered fast, one thread reads them all and the others stand by. When a request takes long, because the disk is slow or many ask at once,
//! all of them read.
//!
//! Invariant: whenever a request has been worked on for longer than [`TICK`] and nobody reads, a thread that stands by goes to
//! read; so no request waits for another one that waits for something. A mount at rest has all its threads reading, so they all see its end.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// How often the first of those who stand by looks whether it is needed.
const TICK: Duration = Duration::from_millis(2);
/// Ticks without a request after which all go back to read.
const TICKS_AT_REST: u32 = 25;
/// A request that takes longer makes all threads read for a while.
const SLOW: Duration = Duration::from_micros(250);
/// Fast requests after a slow one until one thread reads alone again.
const SLOW_MEMORY: u32 = 64;

/// The threads of one session.
pub(super) struct Crew {
    /// Threads that wait for a request, or are about to.
    reading: AtomicUsize,
    /// Requests begun.
    begun: AtomicU64,
    /// Fast requests to go until the last slow one is forgotten.
    slow: AtomicU32,
    /// Held by the one that looks out for all who stand by.
    lookout: Mutex<Lookout>,
    /// Whether a reader is wanted at once.
    called: Mutex<bool>,
    call: Condvar,
}

/// What the last look showed.
#[derive(Default)]
struct Lookout {
    begun: u64,
    /// Ticks since then without a request.
    idle_ticks: u32,
}

impl Crew {
    /// For `threads` threads, which are about to read.
    pub(super) fn new(threads: usize) -> Self {
        Self {
            reading: AtomicUsize::new(threads),
            begun: AtomicU64::new(0),
            slow: AtomicU32::new(0),
            lookout: Mutex::default(),
            called: Mutex::new(false),
            call: Condvar::new(),
        }
    }

    /// To be called by a thread that has read a request, and kept until the request is answered or handed on.
    pub(super) fn turn(&self) -> Turn<'_> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.reading.fetch_sub(1, Ordering::SeqCst);
        Turn { crew: self, began: Instant::now() }
    }

    /// Counts this thread as reading if more are wanted.
    fn joins(&self) -> bool {
        let wanted = if self.slow.load(Ordering::Relaxed) > 0 { usize::MAX } else { 1 };
        let join = |reading| (reading < wanted).then_some(reading + 1);
        self.reading.fetch_update(Ordering::SeqCst, Ordering::SeqCst, join).is_ok()
    }

    /// Stands by until this thread is wanted as a reader; counts it as one.
    fn stand_by(&self) {
        let mut last = self.lookout.lock();
        loop {
            if self.slow.load(Ordering::Relaxed) > 0 && self.joins() {
                return;
            }
            if last.idle_ticks < TICKS_AT_REST {
                let mut called = self.called.lock();
                if !*called {
                    self.call.wait_for(&mut called, TICK);
                }
                if std::mem::take(&mut *called) {
                    continue;
                }
            }
            let begun = self.begun.load(Ordering::Relaxed);
            let idle = begun == last.begun;
            *last = Lookout { begun, idle_ticks: if idle { last.idle_ticks + 1 } else { 0 } };
            // Nothing has begun for a whole tick and nobody reads: who works is stuck in it.
            let stuck = idle && self.reading.load(Ordering::SeqCst) == 0;
            if stuck || last.idle_ticks >= TICKS_AT_REST {
                self.reading.fetch_add(1, Ordering::SeqCst);
                return;
            }
        }
    }
}

/// A thread's work on one request.
#[must_use]
pub(super) struct Turn<'c> {
    crew: &'c Crew,
    began: Instant,
}

impl Turn<'_> {
    /// Says that this request will wait for the disk: somebody else should read meanwhile.
    pub(super) fn will_wait(&self) {
        self.crew.slow.store(SLOW_MEMORY, Ordering::Relaxed);
        if self.crew.reading.load(Ordering::SeqCst) == 0 {
            *self.crew.called.lock() = true;
            self.crew.call.notify_one();
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let crew = self.crew;
        if std::thread::panicking() {
            // This thread ends; it does not count as reading.
            return;
        }
        if self.began.elapsed() > SLOW {
            crew.slow.store(SLOW_MEMORY, Ordering::Relaxed);
        } else {
            // Losing a count to another thread's does not matter.
            let slow = crew.slow.load(Ordering::Relaxed);
            if slow > 0 {
                crew.slow.store(slow - 1, Ordering::Relaxed);
            }
        }
        if !crew.joins() {
            crew.stand_by();
        }
    }
}

#[cfg(test)]
mod tests {
    //! Requests are numbers in a channel here, and reading is taking one.

    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    struct Session {
        crew: Arc<Crew>,
        requests: Option<Sender<Request>>,
        threads: Vec<std::thread::JoinHandle<()>>,
    }

    type Request = Box<dyn FnOnce(&Turn<'_>) + Send>;

    impl Session {
        fn new(threads: usize) -> Self {
            let crew = Arc::new(Crew::new(threads));
            let (requests, queue) = channel::<Request>();
            let queue = Arc::new(Mutex::new(queue));
            let work = |crew: Arc<Crew>, queue: Arc<Mutex<Receiver<Request>>>| {
                std::thread::spawn(move || {
                    loop {
                        let Ok(request) = ({ queue.lock().recv() }) else { return };
                        let turn = crew.turn();
                        request(&turn);
                    }
                })
            };
            let threads = (0..threads).map(|_| work(crew.clone(), queue.clone())).collect();
            Self { crew, requests: Some(requests), threads }
        }

        fn send(&self, request: impl FnOnce(&Turn<'_>) + Send + 'static) {
            self.requests.as_ref().unwrap().send(Box::new(request)).unwrap();
        }

        /// Sends a request and waits for its answer.
        fn ask(&self) {
            let (done, answer) = channel();
            self.send(move |_| done.send(()).unwrap());
            answer.recv_timeout(Duration::from_secs(10)).expect("an answer");
        }

        fn reading(&self) -> usize {
            self.crew.reading.load(Ordering::SeqCst)
        }
    }

    impl Drop for Session {
        /// The end of a session: all threads see it, those that stand by too.
        fn drop(&mut self) {
            self.requests = None;
            for thread in self.threads.drain(..) {
                thread.join().unwrap();
            }
        }
    }

    #[test]
    fn a_stuck_request_holds_up_nobody() {
        let session = Session::new(4);
        let (release, held) = channel::<()>();
        let held = Arc::new(Mutex::new(held));
        for _ in 0..3 {
            let held = held.clone();
            session.send(move |_| {
                let _ = held.lock().recv();
            });
            (0..100).for_each(|_| session.ask());
        }
        drop(release);
        session.ask();
    }

    #[test]
    fn who_says_that_it_waits_is_replaced_at_once() {
        let session = Session::new(2);
        (0..1000).for_each(|_| session.ask());
        let (release, held) = channel::<()>();
        session.send(move |turn| {
            turn.will_wait();
            let _ = held.recv();
        });
        session.ask();
        drop(release);
    }

    #[test]
    fn one_reads_while_requests_are_fast_and_all_at_rest() {
        let session = Session::new(4);
        let deadline = Instant::now() + Duration::from_secs(20);
        // Three are put to stand by; a busy machine makes requests slow, so this may take a while.
        while session.reading() > 1 {
            assert!(Instant::now() < deadline, "{} read", session.reading());
            session.ask();
        }
        while session.reading() < 4 {
            assert!(Instant::now() < deadline + Duration::from_secs(20), "{} read", session.reading());
            std::thread::sleep(TICK);
        }
    }
}
