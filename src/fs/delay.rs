//! Who is told to try again later rather than kept waiting: servers of others, which have few threads for many clients.
//!
//! Nothing here costs a request that does not wait: the requester is looked at once its time is up.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

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

    /// Whether a program serves others.
    pub(super) fn passes_on(&self, program: &str) -> bool {
        let is = |name: &String| program == &name[..name.floor_char_boundary(COMM_MAX)];
        !program.is_empty() && self.rule.programs.iter().any(is)
    }

    /// Whether a requester of this program is to be told "later"; noted if so.
    pub(super) fn applies(&self, file: FileId, program: &str) -> bool {
        let applies = self.passes_on(program);
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
    fn programs_go_by_what_the_kernel_keeps_of_their_names() {
        assert!(named("ganesha.nfsd").applies(file(1), "ganesha.nfsd"));
        assert!(named("a-very-long-name-of-a-program").applies(file(1), "a-very-long-nam"));
        for unknown in ["", "ganesha", "ganesha.nfsd2"] {
            assert!(!named("ganesha.nfsd").applies(file(1), unknown), "{unknown:?}");
        }
    }

    #[test]
    fn the_second_answer_comes_soon() {
        let delays = named("nfsd");
        assert_eq!(delays.patience(file(1)), Duration::from_secs(9));
        assert!(delays.applies(file(1), "nfsd"));
        assert_eq!(delays.patience(file(1)), SOON);
        assert_eq!(delays.patience(file(2)), Duration::from_secs(9));
        for ino in 0..3 * RECENT_MAX as u64 {
            delays.applies(file(ino), "nfsd");
        }
    }
}
