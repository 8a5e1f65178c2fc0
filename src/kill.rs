//! Points at which the daemon ends itself as a crash would, where a test asks for it: between any two steps that a crash may part.
//!
//! Only builds with debug assertions have them; in others [`point`] is nothing. `TIERFS_KILL_AT=NAME[:COUNT]` in the daemon's environment
//! has it sent SIGKILL when it passes the point of that name for the COUNT-th time (the first, unless said). A name says
//! what has just been done. `tests/crash/` finds all points in the source, and dies at each.

/// Here a crash is possible: `name` says what has just been done.
#[cfg(debug_assertions)]
pub fn point(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Where to die, and how often that is passed before.
    static ARMED: OnceLock<Option<(String, AtomicU64)>> = OnceLock::new();
    let armed = ARMED.get_or_init(|| {
        let asked = std::env::var("TIERFS_KILL_AT").ok()?;
        let (name, count) = asked.split_once(':').unwrap_or((&asked, "1"));
        let count: u64 = count.parse().expect("TIERFS_KILL_AT=NAME[:COUNT], and COUNT is a number");
        Some((name.to_owned(), AtomicU64::new(count.max(1) - 1)))
    });
    let Some((wanted, left)) = armed else { return };
    if wanted != name || left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
        return;
    }
    // Its own death cannot be refused; nothing is done after it.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    loop {
        std::thread::park();
    }
}

/// Nothing, in a build that is not for tests.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point(_name: &str) {}
