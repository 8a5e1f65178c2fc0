//! What the kernel's leases notice: everybody who has the file, however they got at it.

#![allow(unsafe_code, reason = "mmap")]

use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use tierfs::ports::Lower;

use crate::Env;
use crate::contract::{self, BOTH, READ};

pub fn an_open_waits_for_a_lease(env: Env) {
    contract::an_open_waits_for_a_lease(env.share);
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn another_process_counts(env: Env) {
    let node = contract::file(&*env.share, "file", b"x");
    let open = env.share.open(&node, READ).expect("open");
    let path = env.fs.path().join("file");
    // Redirections of a shell: a reader, then a writer, from beside the mount.
    for (redirection, writes) in [("<", false), (">>", true)] {
        let script = format!("exec 3{redirection}'{}'; echo ready; read line", path.display());
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = Running(shell.spawn().expect("sh"));
        let mut line = String::new();
        let output = child.0.stdout.take().expect("piped");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).expect("ready");
        assert!(open.try_exclusive().expect("lease").is_none(), "{redirection}");
        assert_eq!(open.nobody_writes().expect("lease"), !writes, "{redirection}");
        drop(child);
        until(|| open.try_exclusive().expect("lease").is_some());
    }
    // A program that runs from the share maps it, and holds no descriptor.
    let program = env.fs.path().join("program");
    std::fs::copy("/bin/sleep", &program).expect("copy");
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("chmod");
    let (node, _) = env.share.lookup(&env.share.root(), "program".as_ref()).expect("lookup");
    let open = env.share.open(&node, READ).expect("open");
    drop(open.try_exclusive().expect("lease").expect("alone"));
    let child = Running(Command::new(&program).arg("60").spawn().expect("starts"));
    assert!(open.try_exclusive().expect("lease").is_none());
    drop(child);
    until(|| open.try_exclusive().expect("lease").is_some());
}

pub fn mappings_count_after_their_close(env: Env) {
    let node = contract::file(&*env.share, "file", &[1; 4096]);
    for (protection, writes) in [(libc::PROT_READ, false), (libc::PROT_READ | libc::PROT_WRITE, true)] {
        let mapped = env.share.open(&node, if writes { BOTH } else { READ }).expect("open");
        let fd = mapped.as_fd().expect("real").as_raw_fd();
        // SAFETY: a fresh shared mapping of a page that exists; nothing refers to it but this function.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, libc::MAP_SHARED, fd, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        drop(mapped);
        let open = env.share.open(&node, READ).expect("open");
        assert!(open.try_exclusive().expect("lease").is_none(), "the mapping outlives its descriptor");
        assert_eq!(open.nobody_writes().expect("lease"), !writes);
        // SAFETY: the mapping made above, whole.
        unsafe { libc::munmap(at, 4096) };
        assert!(open.try_exclusive().expect("lease").is_some());
        assert!(open.nobody_writes().expect("lease"));
    }
}

/// Processes close their files a moment after they were killed.
fn until(condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "did not come true");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
