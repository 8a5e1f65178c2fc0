//! Who is told to try again later rather than kept waiting: servers of others, which have few threads for many clients.
//!
//! Nothing here costs a request that does not wait: the requester is looked at once its time is up.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::wait::Waiter;
use crate::types::FileId;

/// When to answer "try again later" (EAGAIN, from which NFS servers make DELAY and JUKEBOX).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delay {
    /// How long such a request waits first.
    pub after: Duration,
    /// Programs that can pass it on to their clients, as `/proc/PID/comm` has them; empty: everybody waits.
    pub programs: Vec<String>,
}

impl Default for Delay {
    /// The user-space and the kernel's NFS server. Two seconds: most small files are back by then, and a client of NFSv3 that is
    /// put off stays away for five.
    fn default() -> Self {
        Self { after: Duration::from_secs(2), programs: vec!["ganesha.nfsd".into(), "nfsd".into()] }
    }
}

/// For so long after an answer "later" the same file's next one comes soon: the kernel asks again at once for each page that
/// read-ahead did not bring, and impatient clients hold no thread of their server.
const SOON_WITHIN: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_millis(50);
/// Files remembered at most before old ones are thrown out.
const RECENT_MAX: usize = 1024;
/// What the kernel keeps of a program's name (`TASK_COMM_LEN` without its NUL).
const COMM_MAX: usize = 15;

/// The rule, and the files it was used for lately.
pub(super) struct Delays {
    rule: Delay,
    recent: Mutex<HashMap<FileId, Instant>>,
}

impl Delays {
    pub(super) fn new(rule: Delay) -> Self {
        Self { rule, recent: Mutex::default() }
    }

    /// How long a request on this file may wait before it is asked who made it.
    pub(super) fn patience(&self, file: FileId) -> Duration {
        let recently = self.recent.lock().get(&file).is_some_and(|at| at.elapsed() < SOON_WITHIN);
        if recently { SOON.min(self.rule.after) } else { self.rule.after }
    }

    /// Whether the requester is a program that serves others.
    pub(super) fn passes_on(&self, pid: u32) -> bool {
        let is = |name: &str, program: &String| name == &program[..program.floor_char_boundary(COMM_MAX)];
        program_of(pid).is_some_and(|name| self.rule.programs.iter().any(|program| is(&name, program)))
    }

    /// Whether the requester is to be told "later"; noted if so.
    pub(super) fn applies(&self, file: FileId, waiter: Waiter) -> bool {
        let applies = self.passes_on(waiter.pid);
        if applies {
            let mut recent = self.recent.lock();
            if recent.len() >= RECENT_MAX {
                recent.retain(|_, at| at.elapsed() < SOON_WITHIN);
            }
            recent.insert(file, Instant::now());
        }
        applies
    }
}

/// The name of the program that a thread belongs to. `None`: it is gone, or in a process namespace that is not below ours, from
/// which the kernel tells no id.
fn program_of(pid: u32) -> Option<String> {
    if pid == 0 {
        return None;
    }
    // Threads have names of their own; the program's is its first thread's.
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let group: u32 = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()?;
    let name = std::fs::read_to_string(format!("/proc/{group}/comm")).ok()?;
    Some(name.trim_end_matches('\n').to_owned())
}

#[cfg(test)]
mod tests {
    //! Who is told, and how soon.

    use super::*;

    fn named(program: &str) -> Delays {
        Delays::new(Delay { after: Duration::from_secs(9), programs: vec!["other".into(), program.into()] })
    }

    fn file(ino: u64) -> FileId {
        FileId { ino, birth: 1 }
    }

    #[test]
    fn threads_go_by_their_programs_name() {
        let own = std::fs::read_to_string("/proc/self/comm").unwrap();
        let own = own.trim_end();
        let id = std::thread::Builder::new().name("differs".into());
        id.spawn({
            let own = own.to_owned();
            move || {
                let waiter =
                    Waiter { pid: rustix::thread::gettid().as_raw_nonzero().get() as u32, since: Instant::now() };
                assert!(named(&own).applies(file(1), waiter));
                assert!(named(&format!("{own:x<20}")).applies(file(1), waiter) == (own.len() == COMM_MAX));
                assert!(!named("differs").applies(file(1), waiter));
                assert!(!named(&own).applies(file(1), Waiter { pid: 0, ..waiter }));
            }
        })
        .unwrap()
        .join()
        .unwrap();
    }

    #[test]
    fn the_second_answer_comes_soon() {
        let own = std::fs::read_to_string("/proc/self/comm").unwrap();
        let delays = named(own.trim_end());
        assert_eq!(delays.patience(file(1)), Duration::from_secs(9));
        let waiter = Waiter { pid: std::process::id(), since: Instant::now() };
        assert!(delays.applies(file(1), waiter));
        assert_eq!(delays.patience(file(1)), SOON);
        assert_eq!(delays.patience(file(2)), Duration::from_secs(9));
        for ino in 0..3 * RECENT_MAX as u64 {
            delays.applies(file(ino), waiter);
        }
    }
}
