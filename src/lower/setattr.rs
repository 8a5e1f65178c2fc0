//! `setattr`, on an `O_PATH` descriptor.
//!
//! Invariant: the fields are applied in the order size, owner, mode, times, for each may undo part of the one before.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Gid, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid, chownat, fstat, utimensat};
use rustix::thread::CapabilitySet;

use super::Step;
use super::creds::{with_capabilities, with_fsetid};
use super::fdcache::Node;
use super::handle::{chmod_fd, truncate_fd};
use crate::ports::{FileKind, LowerError, LowerResult, SetAttr, SetTime};

pub(super) fn apply(node: &Node, changes: &SetAttr) -> LowerResult<()> {
    let fd = node.fd();
    if let Some(size) = changes.size {
        truncate(node, size)?;
    }
    if changes.uid.is_some() || changes.gid.is_some() {
        let (uid, gid) = (changes.uid.map(Uid::from_raw), changes.gid.map(Gid::from_raw));
        // The kernel takes set-id bits from programs whatever the capabilities. Setgid without group-execute is no privilege, and
        // stays with those who may set it; the daemon cannot be asked in their place.
        let mut wanted = CapabilitySet::FSETID;
        // Only the privileged give a file to another user, and quotas do not hold them; owners change groups, and are held.
        if changes.uid.is_some_and(|uid| fstat(fd).is_ok_and(|now| now.st_uid != uid)) {
            wanted |= CapabilitySet::SYS_RESOURCE;
        }
        with_capabilities(wanted, || chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH).step("fchownat"))?;
    }
    if let Some(mode) = changes.mode {
        chmod(fd, mode & 0o7777)?;
    }
    if changes.atime.is_some() || changes.mtime.is_some() {
        let times = Timestamps { last_access: timespec(changes.atime), last_modification: timespec(changes.mtime) };
        utimensat(fd, c"", &times, AtFlags::EMPTY_PATH).step("utimensat")?;
    }
    Ok(())
}

fn truncate(node: &Node, size: u64) -> LowerResult<()> {
    match node.kind {
        FileKind::Regular => {}
        FileKind::Directory => return Err(LowerError::from_errno("truncate", libc::EISDIR)),
        _ => return Err(LowerError::from_errno("truncate", libc::EINVAL)),
    }
    let size = i64::try_from(size).map_err(|_| LowerError::from_errno("truncate", libc::EFBIG))?;
    truncate_fd(node.fd(), size)
}

/// The kernel's FUSE client has decided whether this user may set setgid; a daemon without `CAP_FSETID` would silently
/// lose the bit, so it has the capability for just this call.
fn chmod(fd: BorrowedFd<'_>, mode: u32) -> LowerResult<()> {
    if mode & libc::S_ISGID != 0 { with_fsetid(|| chmod_fd(fd, mode)) } else { chmod_fd(fd, mode) }
}

fn timespec(time: Option<SetTime>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(SetTime::At(at)) => Timespec { tv_sec: at.secs, tv_nsec: at.nanos.into() },
    }
}
