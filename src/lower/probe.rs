//! What this lower filesystem can do, found by doing it on a nameless file.
//!
//! Nothing stays behind: the file has no name, or loses it before anything is tried.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FallocateFlags, Mode, OFlags, XattrFlags, fallocate, fsetxattr, ftruncate, openat, unlinkat,
};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities};

use super::attr::stat_fd;
use super::{Step, lease};
use crate::ports::{LowerFeatures, LowerResult};

/// The record's name where the daemon may use `trusted.*`.
pub(super) const RECORD_TRUSTED: &str = "trusted.tierfs.record";
/// The record's name otherwise.
pub(super) const RECORD_USER: &str = "user.tierfs.record";

const PROBE_BYTES: u64 = 256 * 1024;

/// Tries everything in the directory `root`.
pub(super) fn features(root: impl AsFd) -> LowerResult<LowerFeatures> {
    let privileged = capabilities(None).step("capget")?.effective.contains(CapabilitySet::SYS_ADMIN);
    let assumed = |read_only: bool| LowerFeatures {
        trusted_xattrs: privileged,
        punch_hole: !read_only,
        leases: !read_only,
        read_only,
    };
    let file = match nameless_file(root.as_fd()) {
        Ok(file) => Arc::new(file),
        Err(Errno::ROFS) => return Ok(assumed(true)),
        // A full share is the one that needs tiering most. What turns out to be missing fails later, before harm.
        Err(Errno::NOSPC | Errno::DQUOT) => return Ok(assumed(false)),
        Err(errno) => return Err(errno).step("open(O_TMPFILE)"),
    };
    Ok(LowerFeatures {
        trusted_xattrs: privileged && takes_xattr(&file, RECORD_TRUSTED),
        punch_hole: punches(&file)?,
        leases: matches!(lease::try_exclusive(&file), Ok(Some(_))),
        read_only: false,
    })
}

fn nameless_file(root: impl AsFd) -> Result<OwnedFd, Errno> {
    let mode = Mode::RUSR | Mode::WUSR;
    match openat(&root, c".", OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode) {
        // Filesystems without it; EISDIR is how very old kernels say it.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT) => {
            let name = format!(".tierfs-probe-{}-{}", std::process::id(), rustix::thread::gettid().as_raw_nonzero());
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
            let file = openat(&root, &name, flags, mode)?;
            unlinkat(&root, &name, AtFlags::empty())?;
            Ok(file)
        }
        other => other,
    }
}

fn takes_xattr(file: &OwnedFd, name: &str) -> bool {
    matches!(fsetxattr(file, name, b"probe", XattrFlags::empty()), Ok(()) | Err(Errno::NOSPC | Errno::DQUOT))
}

fn punches(file: &OwnedFd) -> LowerResult<bool> {
    if ftruncate(file, PROBE_BYTES).is_err() {
        return Ok(false);
    }
    let blocks = || stat_fd(file).map(|stat| stat.attr.blocks);
    // Fails on a full disk; then the call's own answer must do.
    let allocated = fallocate(file, FallocateFlags::empty(), 0, PROBE_BYTES).is_ok();
    let before = blocks()?;
    let punched = fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, PROBE_BYTES).is_ok();
    Ok(punched && (!allocated || blocks()? < before))
}
