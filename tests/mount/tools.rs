//! Small things that every test needs: content, comparisons, attributes, waiting, mappings.

#![allow(unsafe_code, reason = "mmap and truncate by path have no safe wrapper")]

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rustix::fs::XattrFlags;
use rustix::process::{Pid, Signal, kill_process};

pub const NOBODY: u32 = 65_534;
/// How long anything that happens by itself may take, on a machine with much else to do: a deletion takes ten seconds on an idle one.
pub const SOON: Duration = Duration::from_secs(60);

/// Whether a process runs; one that nobody has waited for yet does not.
pub fn alive(pid: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    !stat.rsplit(") ").next().unwrap_or_default().starts_with(['Z', 'X'])
}

/// Ends a process as a crash would.
#[track_caller]
pub fn kill(pid: i32) {
    let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
    wait_for("the killed process' end", || !alive(pid));
}

/// Waits for the end of a process that ends by itself; ends it where that takes longer. Asserts nothing: for the end of a test that may have failed.
pub fn see_off(pid: i32, patience: Duration) {
    let until = Instant::now() + patience;
    while alive(pid) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    if alive(pid) {
        let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
        while alive(pid) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[track_caller]
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within {SOON:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `sh -c script` as nobody, in `dir`.
pub fn as_nobody(dir: &Path, script: &str) -> Output {
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir(dir).uid(NOBODY).gid(NOBODY);
    command.output().unwrap()
}

pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
pub fn code(output: &Output, want: i32) {
    assert_eq!(output.status.code(), Some(want), "{}", said(output));
}

/// Incompressible content that differs by name and place.
pub fn noise(name: &str, len: usize) -> Vec<u8> {
    let mut state = u64::from_le_bytes(blake3::hash(name.as_bytes()).as_bytes()[..8].try_into().unwrap()) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut data: Vec<u8> = std::iter::repeat_with(&mut next).take(len.div_ceil(8)).flatten().collect();
    data.truncate(len);
    data
}

#[track_caller]
pub fn assert_same(found: &[u8], wanted: &[u8], what: &str) {
    if found != wanted {
        let at = found.iter().zip(wanted).position(|(a, b)| a != b);
        let zeros = found.iter().filter(|byte| **byte == 0).count();
        let (len, want) = (found.len(), wanted.len());
        panic!("{what}: content differs from byte {at:?} on; {len} bytes, {zeros} of them zero; wanted {want} bytes");
    }
}

pub fn set_mtime(path: &Path, secs: i64, nanos: i64) {
    let time = rustix::fs::Timespec { tv_sec: secs, tv_nsec: nanos as _ };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

pub fn xattr(path: &Path, name: &str) -> Result<Vec<u8>, i32> {
    let mut buffer = vec![0u8; 65_536];
    let len = rustix::fs::lgetxattr(path, name, &mut buffer[..]).map_err(|errno| errno.raw_os_error())?;
    buffer.truncate(len);
    Ok(buffer)
}

pub fn set_xattr(path: &Path, name: &str, value: &[u8]) -> Result<(), i32> {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).map_err(|errno| errno.raw_os_error())
}

/// truncate(2), by path.
pub fn truncate(path: &Path, len: u64) -> std::io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: `path` ends with a NUL and lives through the call.
    match unsafe { libc::truncate(path.as_ptr(), len as i64) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

pub fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// A mapping of a whole file.
pub struct Mapping {
    at: *mut libc::c_void,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and only its owner unmaps it.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `len` bytes, shared; `write`: for writing too.
    pub fn of(file: &fs::File, len: usize, write: bool) -> Self {
        use std::os::fd::AsRawFd;
        let protection = libc::PROT_READ | if write { libc::PROT_WRITE } else { 0 };
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert_ne!(at, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        Self { at, len }
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped for as long as `self`; nobody writes to it while the slice lives.
        unsafe { std::slice::from_raw_parts(self.at.cast(), self.len) }
    }

    /// Reads what others may be writing meanwhile.
    pub fn copy_out(&self, offset: usize, to: &mut [u8]) {
        assert!(offset + to.len() <= self.len);
        // SAFETY: within the mapping; `to` is not part of it.
        unsafe { std::ptr::copy(self.at.cast::<u8>().add(offset), to.as_mut_ptr(), to.len()) }
    }

    pub fn set(&mut self, offset: usize, data: &[u8]) {
        assert!(offset + data.len() <= self.len);
        // SAFETY: within the mapping, which is writable where this is called.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.at.cast::<u8>().add(offset), data.len()) }
    }

    /// msync(2).
    pub fn sync(&self) {
        // SAFETY: the mapping's own bounds.
        assert_eq!(unsafe { libc::msync(self.at, self.len, libc::MS_SYNC) }, 0);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping's own bounds; no slice of it is left.
        unsafe { libc::munmap(self.at, self.len) };
    }
}
