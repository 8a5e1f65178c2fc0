//! What a call on a file that is known already asks of the allocator: looking it up, its attributes, opening and closing it. `fs` on a real share,
//! without a kernel: what the FUSE adapter and the kernel add is not counted here (`tests/mount/upcalls.rs` counts the kernel's requests).
//!
//! The numbers are what it takes today. They may shrink; what makes them grow has to be worth it.

#![allow(unsafe_code, reason = "an allocator cannot be made without")]

#[path = "common/mod.rs"]
mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::any::Any;
use std::cell::Cell;
use std::hint::black_box;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use common::{LoopFs, can_mount};
use tierfs::engine::{Engine, Limits, Patience};
use tierfs::fs::{Asked, Fs, FsOptions, ROOT, Register, Service, Try};
use tierfs::journal::SqliteJournal;
use tierfs::lower::Share;
use tierfs::ports::{OpenFlags, SystemClock};

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count() {
    // Not there any more while a thread ends: what that asks for is of no interest.
    let _ = CALLS.try_with(|calls| calls.set(calls.get() + 1));
}

// SAFETY: every call is passed on to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` came from `System` by way of the calls above and below.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as for `dealloc`.
        unsafe { System.realloc(at, layout, size) }
    }
}

const ROUNDS: u64 = 1000;
/// Of all rounds together: tables that grow, and timers.
const SELDOM: u64 = 20;

/// How often this thread asked the allocator for memory in each round, seldom things aside.
fn allocations<T>(mut work: impl FnMut() -> T) -> u64 {
    // What is made once and kept.
    for _ in 0..10 {
        black_box(work());
    }
    let before = CALLS.get();
    for _ in 0..ROUNDS {
        black_box(work());
    }
    let all = CALLS.get() - before;
    assert!(all % ROUNDS <= SELDOM, "{all} in {ROUNDS} rounds: not the same each time");
    all / ROUNDS
}

/// Stands for the kernel, which takes every file.
struct Taker;

impl Register for Taker {
    fn register(&self, _: BorrowedFd<'_>) -> std::io::Result<Arc<dyn Any + Send + Sync>> {
        Ok(Arc::new(()))
    }
}

fn open(fs: &Fs, id: u64, flags: OpenFlags) -> (u64, bool) {
    match fs.try_open(&mut Asked::new(id), flags, Patience::None, &Taker) {
        Try::Done(Ok(opened)) => (opened.fh, matches!(opened.service, Service::Kernel(_))),
        Try::Done(Err(error)) => panic!("open: {error}"),
        Try::Blocked(_) => panic!("an open of a resident file waits"),
    }
}

#[test]
fn known_files_cost_few_allocations() {
    if !can_mount() {
        return;
    }
    tierfs::lower::ignore_sigio().unwrap();
    let below = LoopFs::new("ext4", 64 << 20);
    std::fs::create_dir(below.path().join("dir")).unwrap();
    std::fs::write(below.path().join("dir/file"), b"content").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    {
        let lower = Arc::new(Share::open(&below.path()).unwrap());
        let journal = Arc::new(SqliteJournal::open(below.scratch().join("journal.sqlite")).unwrap());
        let (clock, handle) = (Arc::new(SystemClock), runtime.handle().clone());
        let engine = Engine::new(lower.clone(), journal, clock, None, handle, Limits::default());
        runtime.block_on(engine.recover()).unwrap();
        let fs = Fs::new(lower, engine.clone(), FsOptions::default(), 1);
        let dir = fs.lookup(ROOT, "dir".as_ref()).unwrap().id;
        let file = fs.lookup(dir, "file".as_ref()).unwrap().id;
        let (read, both) = (
            OpenFlags { read: true, ..OpenFlags::default() },
            OpenFlags { read: true, write: true, ..OpenFlags::default() },
        );

        let found = [
            ("lookup", allocations(|| fs.lookup(dir, "file".as_ref()).unwrap())),
            ("lookup of nothing", allocations(|| fs.lookup(dir, "nothing".as_ref()).err().unwrap())),
            ("attributes", allocations(|| fs.attr(file).unwrap())),
            (
                "open and close for reading",
                allocations(|| {
                    let (fh, passes) = open(&fs, file, read);
                    assert!(passes, "the kernel serves it");
                    fs.release(fh).unwrap();
                }),
            ),
            (
                "open and close for writing",
                allocations(|| {
                    let (fh, passes) = open(&fs, file, both);
                    assert!(passes, "the kernel serves it");
                    fs.release(fh).unwrap();
                }),
            ),
            ("attributes of an open file", {
                let (fh, _) = open(&fs, file, both);
                let count = allocations(|| fs.attr(file).unwrap());
                fs.release(fh).unwrap();
                count
            }),
            ("one more open of an open file", {
                let (first, _) = open(&fs, file, read);
                let count = allocations(|| {
                    let (fh, _) = open(&fs, file, read);
                    fs.release(fh).unwrap();
                });
                fs.release(first).unwrap();
                count
            }),
        ];
        assert_eq!(found, WANTED);
        engine.stop();
    }
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
}

/// An open has a handle; the first one a cell, too (a file closed a moment ago is registered with the kernel still).
const WANTED: [(&str, u64); 7] = [
    ("lookup", 0),
    ("lookup of nothing", 0),
    ("attributes", 0),
    ("open and close for reading", 2),
    ("open and close for writing", 2),
    ("attributes of an open file", 0),
    ("one more open of an open file", 1),
];

/// The counter itself sees a growing vector, and nothing where nothing is asked for.
#[test]
fn what_is_asked_for_is_counted() {
    assert_eq!(allocations(Vec::<u64>::new), 0);
    assert_eq!(allocations(|| Box::new(black_box(7))), 1);
    let grown = || {
        let mut grown = Vec::with_capacity(1);
        grown.extend(black_box([1u64, 2, 3]));
        grown
    };
    assert_eq!(allocations(grown), 2);
}
