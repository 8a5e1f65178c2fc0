//! The quota project of an inode.

#![allow(unsafe_code, reason = "a project is told by an ioctl that has no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::Step;
use crate::ports::LowerResult;

/// `_IOR('X', 31, struct fsxattr)` of `linux/fs.h`, 28 bytes of which the fourth word is the project.
const FS_IOC_FSGETXATTR: libc::c_ulong = 0x801c_581f;

/// Of the inode behind `fd`, which must not be `O_PATH`; 0 where the filesystem has none.
pub(super) fn project_of(fd: BorrowedFd<'_>) -> LowerResult<u32> {
    let mut answer = [0u32; 7];
    // SAFETY: the kernel writes the 28 bytes of a `struct fsxattr`, which the buffer has room for.
    if unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FSGETXATTR as _, answer.as_mut_ptr()) } == 0 {
        return Ok(answer[3]);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOTTY | libc::EOPNOTSUPP | libc::ENOSYS) => Ok(0),
        _ => Err(error).step("ioctl(FS_IOC_FSGETXATTR)"),
    }
}
