//! Extended attributes, by way of `/proc/self/fd` because the `f*xattr` calls refuse `O_PATH` descriptors.
//!
//! Following that link reaches exactly the inode of the descriptor, symlinks included.

use std::ffi::{OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{XattrFlags, fgetxattr, fsetxattr, getxattr, listxattr, removexattr, setxattr};
use rustix::io::Errno;

use super::Step;
use super::handle::FdPath;
use crate::ports::LowerResult;

/// The kernel's bound on a value and on a list (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const BYTES_MAX: usize = 64 * 1024;
/// What nearly every value and list fits in.
const BYTES_USUAL: usize = 1024;

pub(super) fn get(fd: BorrowedFd<'_>, name: &OsStr) -> LowerResult<Vec<u8>> {
    let path = FdPath::new(fd);
    sized(|buffer| getxattr(path.as_c_str(), name, buffer)).step("getxattr")
}

/// Of a descriptor open for I/O: four times as fast, for want of the path.
pub(super) fn get_open(fd: BorrowedFd<'_>, name: &OsStr) -> LowerResult<Vec<u8>> {
    sized(|buffer| fgetxattr(fd, name, buffer)).step("fgetxattr")
}

pub(super) fn list(fd: BorrowedFd<'_>) -> LowerResult<Vec<OsString>> {
    let path = FdPath::new(fd);
    let names = sized(|buffer| listxattr(path.as_c_str(), buffer)).step("listxattr")?;
    Ok(names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| OsStr::from_bytes(name).into())
        .collect())
}

pub(super) fn set(fd: BorrowedFd<'_>, name: &OsStr, value: &[u8], flags: i32) -> LowerResult<()> {
    let flags = XattrFlags::from_bits_retain(flags as u32);
    setxattr(FdPath::new(fd).as_c_str(), name, value, flags).step("setxattr")
}

/// On a descriptor open for I/O, for reading only as well.
pub(super) fn set_open(fd: BorrowedFd<'_>, name: &OsStr, value: &[u8]) -> LowerResult<()> {
    fsetxattr(fd, name, value, XattrFlags::empty()).step("fsetxattr")
}

pub(super) fn remove(fd: BorrowedFd<'_>, name: &OsStr) -> LowerResult<()> {
    removexattr(FdPath::new(fd).as_c_str(), name).step("removexattr")
}

/// Calls with a small buffer, and once more with the largest that can be needed.
fn sized(call: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut small = [0; BYTES_USUAL];
    match call(&mut small) {
        Ok(len) => Ok(small[..len].to_vec()),
        Err(Errno::RANGE) => {
            let mut large = vec![0; BYTES_MAX];
            let len = call(&mut large)?;
            large.truncate(len);
            large.shrink_to_fit();
            Ok(large)
        }
        Err(errno) => Err(errno),
    }
}
