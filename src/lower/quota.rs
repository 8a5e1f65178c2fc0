//! Quotas as the filesystem below keeps them (quotactl(2)).

#![expect(unsafe_code, reason = "quotactl_fd(2) has no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use crate::ports::Quota;

/// Whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaOf {
    User(u32),
    Group(u32),
    Project(u32),
}

/// `Q_GETQUOTA` and the kinds of `<linux/quota.h>`.
const GET: u32 = 0x80_0007;
const USER: u32 = 0;
const GROUP: u32 = 1;
const PROJECT: u32 = 2;
/// Limits of bytes are in units of this.
const BLOCK: u64 = 1024;

/// `struct if_dqblk`.
#[repr(C)]
#[derive(Default)]
struct Block {
    bytes_hard: u64,
    bytes_soft: u64,
    bytes: u64,
    inodes_hard: u64,
    inodes_soft: u64,
    inodes: u64,
    bytes_time: u64,
    inodes_time: u64,
    valid: u32,
}

/// The filesystem of `dir`; `None`: it keeps no such quota, or nothing of this one. Asking of others needs `CAP_SYS_ADMIN`.
pub fn quota(dir: &Path, of: QuotaOf) -> io::Result<Option<Quota>> {
    quota_at(File::open(dir)?.as_fd(), of)
}

/// As [`quota`], of an open directory.
pub(super) fn quota_at(dir: BorrowedFd<'_>, of: QuotaOf) -> io::Result<Option<Quota>> {
    let (kind, id) = match of {
        QuotaOf::User(id) => (USER, id),
        QuotaOf::Group(id) => (GROUP, id),
        QuotaOf::Project(id) => (PROJECT, id),
    };
    let mut block = Block::default();
    // SAFETY: the descriptor is open, and the kernel writes a `struct if_dqblk` to the last argument, which has its layout and lives through the call.
    let asked = unsafe {
        libc::syscall(libc::SYS_quotactl_fd, dir.as_raw_fd(), GET << 8 | kind, id, std::ptr::from_mut(&mut block))
    };
    if asked == 0 {
        return Ok(Some(Quota {
            bytes: block.bytes,
            bytes_soft: block.bytes_soft.saturating_mul(BLOCK),
            bytes_hard: block.bytes_hard.saturating_mul(BLOCK),
            inodes: block.inodes,
            inodes_soft: block.inodes_soft,
            inodes_hard: block.inodes_hard,
        }));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // Off, not built in, not of this filesystem, or not of this kernel (before 5.14).
        Some(libc::ESRCH | libc::ENOSYS | libc::EOPNOTSUPP | libc::ENOTBLK | libc::EINVAL | libc::ENOENT) => Ok(None),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_there_are_none_there_are_none() {
        assert_eq!(quota(Path::new("/proc"), QuotaOf::User(1)).unwrap(), None);
        assert!(quota(Path::new("/nowhere"), QuotaOf::Project(1)).is_err());
        assert_eq!(std::mem::size_of::<Block>(), 72);
    }
}
