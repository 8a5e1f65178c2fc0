//! Leases: what the kernel knows of everybody who has a file open or mapped.
//!
//! Invariant: a lease lasts no longer than its guard.

#![allow(unsafe_code, reason = "F_SETLEASE and signal dispositions have no safe wrapper in rustix")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use super::Step;
use crate::ports::LowerResult;

/// Ignores `SIGIO` in this process: the kernel sends it when somebody opens a file that has a lease, and its default
/// is to kill. To be called once, before the first lease is taken.
pub fn ignore_sigio() -> LowerResult<()> {
    // SAFETY: SIG_IGN runs no code of ours.
    if unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error()).step("signal");
    }
    Ok(())
}

/// A write lease, given back on drop. Holds the open file, so that it cannot end before.
pub(super) struct Exclusive {
    file: Arc<OwnedFd>,
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        // Fails only if the kernel has broken the lease already, which is the same end.
        let _ = set(&self.file, libc::F_UNLCK);
    }
}

/// `None` if somebody else has the file open or mapped.
pub(super) fn try_exclusive(file: &Arc<OwnedFd>) -> LowerResult<Option<Exclusive>> {
    Ok(granted(set(file, libc::F_WRLCK))?.then(|| Exclusive { file: Arc::clone(file) }))
}

/// Whether nobody has the file open or mapped for writing just now. `file` must be open for reading only.
pub(super) fn nobody_writes(file: &OwnedFd) -> LowerResult<bool> {
    let free = granted(set(file, libc::F_RDLCK))?;
    if free {
        // A writer that came meanwhile waits for this.
        set(file, libc::F_UNLCK).step("fcntl(F_SETLEASE)")?;
    }
    Ok(free)
}

fn granted(answer: io::Result<()>) -> LowerResult<bool> {
    match answer {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(false),
        Err(error) => Err(error).step("fcntl(F_SETLEASE)"),
    }
}

fn set(file: &OwnedFd, kind: i32) -> io::Result<()> {
    // SAFETY: both arguments are numbers; the descriptor is open for as long as the borrow.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
