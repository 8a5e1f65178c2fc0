//! Who made a request: what `/proc` says of the process behind it.
//!
//! Asked only for requests that wait for content. Of a client behind a server (NFS, Samba) nothing is known but the user id under which the server works for
//! it: the process is the server's.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::wait::Waiter;
use crate::admission::Requester;

/// How long what was found is believed: a reader of many stubs is looked at once a second.
const KNOWN_FOR: Duration = Duration::from_secs(1);
const KNOWN_MAX: usize = 256;

/// Requesters seen lately.
#[derive(Default)]
pub(super) struct Requesters(Mutex<HashMap<ThreadAndUser, Found>>);

type ThreadAndUser = (u32, u32);
type Found = (Instant, Arc<Requester>);

impl Requesters {
    pub(super) fn of(&self, waiter: Waiter) -> Arc<Requester> {
        let key = (waiter.pid, waiter.uid);
        let mut known = self.0.lock();
        if let Some((at, who)) = known.get(&key)
            && at.elapsed() < KNOWN_FOR
        {
            return who.clone();
        }
        if known.len() >= KNOWN_MAX {
            known.retain(|_, (at, _)| at.elapsed() < KNOWN_FOR);
        }
        drop(known);
        let who = Arc::new(look_up(waiter.pid, waiter.uid));
        let mut known = self.0.lock();
        if known.len() < KNOWN_MAX {
            known.insert(key, (Instant::now(), who.clone()));
        }
        who
    }
}

/// What is known of the process that a thread belongs to. Nothing but the user, if it is gone or in a process namespace that is not below ours, of which the
/// kernel tells no id.
pub fn look_up(thread: u32, uid: u32) -> Requester {
    let nobody = Requester { uid, ..Requester::default() };
    let Some(Process { pid, parent }) = process_of(thread) else { return nobody };
    let read = |name: &str| read(&format!("/proc/{pid}/{name}")).unwrap_or_default();
    // Lines are HIERARCHY:CONTROLLERS:PATH; the unified hierarchy is number 0.
    let groups = read("cgroup");
    let cgroup = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
    let program = read("comm").trim_end_matches('\n').to_owned();
    Requester { uid, pid, parent, program, cgroup: cgroup.to_owned() }
}

/// A file of `/proc` in one go: they tell no size, and give all that fits at once.
fn read(path: &str) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let (mut bytes, mut len) = (vec![0; 4096], 0);
    loop {
        let read = file.read(&mut bytes[len..])?;
        len += read;
        if len < bytes.len() {
            bytes.truncate(len);
            return Ok(String::from_utf8_lossy(&bytes).into_owned());
        }
        bytes.resize(2 * len, 0);
    }
}

struct Process {
    pid: u32,
    /// 0: init, or unknown.
    parent: u32,
}

/// Threads have names and ids of their own; what counts is their process.
fn process_of(thread: u32) -> Option<Process> {
    if thread == 0 {
        return None;
    }
    let status = read(&format!("/proc/{thread}/status")).ok()?;
    let number = |name: &str| status.lines().find_map(|line| line.strip_prefix(name))?.trim().parse::<u32>().ok();
    let parent = number("PPid:").filter(|parent| *parent > 1).unwrap_or(0);
    Some(Process { pid: number("Tgid:")?, parent })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_their_process() {
        let found = std::thread::Builder::new()
            .name("differs".into())
            .spawn(|| look_up(rustix::thread::gettid().as_raw_nonzero().get() as u32, 7));
        let found = found.unwrap().join().unwrap();
        let own = std::fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!((found.uid, found.pid, found.program.as_str()), (7, std::process::id(), own.trim_end()));
        assert_eq!(found.parent, std::os::unix::process::parent_id());
        assert!(found.cgroup.is_empty() || found.cgroup.starts_with('/'));
    }

    #[test]
    fn of_who_is_gone_only_the_user_is_known() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        for pid in [0, pid] {
            assert_eq!(look_up(pid, 5), Requester { uid: 5, ..Requester::default() });
        }
        let requesters = Requesters::default();
        for uid in 0..2 * KNOWN_MAX as u32 {
            let waiter = Waiter { pid: 0, uid, since: Instant::now() };
            assert_eq!(requesters.of(waiter).uid, uid);
        }
        assert!(requesters.0.lock().len() <= KNOWN_MAX);
    }
}
