//! Kernel file handles, and what else must be asked of an `O_PATH` descriptor in a roundabout way.
//!
//! Invariant: a handle is taken from a descriptor, never from a name.

#![allow(unsafe_code, reason = "file handles, fchmodat2 and truncate have no safe wrapper in rustix")]

use std::ffi::CStr;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::OFlags;

use super::Step;
use crate::ports::{LowerError, LowerResult};
use crate::types::{HANDLE_BYTES_MAX, RawHandle};

/// `struct file_handle` with room for the longest handle this crate keeps.
#[repr(C)]
struct KernelHandle {
    len: u32,
    kind: i32,
    bytes: [u8; HANDLE_BYTES_MAX],
}

/// The handle of the inode behind `fd` (which may be `O_PATH`).
pub(super) fn handle_of(fd: impl AsFd) -> LowerResult<RawHandle> {
    let mut raw = KernelHandle { len: HANDLE_BYTES_MAX as u32, kind: 0, bytes: [0; HANDLE_BYTES_MAX] };
    let mut mount_id = 0;
    // SAFETY: the path is NUL-terminated; `raw` has the layout of `struct file_handle` followed by `raw.len` bytes, and
    // both out pointers live through the call.
    let answer = unsafe {
        libc::name_to_handle_at(
            fd.as_fd().as_raw_fd(),
            c"".as_ptr(),
            (&raw mut raw).cast::<libc::file_handle>(),
            &raw mut mount_id,
            libc::AT_EMPTY_PATH,
        )
    };
    if answer != 0 {
        return Err(io::Error::last_os_error()).step("name_to_handle_at");
    }
    raw.bytes
        .get(..raw.len as usize)
        .and_then(|bytes| RawHandle::new(raw.kind, bytes))
        .ok_or_else(|| LowerError::from_errno("name_to_handle_at", libc::EOVERFLOW))
}

/// Opens the inode `handle` names, on the filesystem of `mount` (which must not be `O_PATH`).
///
/// `ESTALE` covers every way in which there is no such inode any more.
pub(super) fn open_handle(mount: BorrowedFd<'_>, handle: &RawHandle, flags: OFlags) -> LowerResult<OwnedFd> {
    let mut raw = KernelHandle { len: handle.bytes().len() as u32, kind: handle.kind(), bytes: [0; HANDLE_BYTES_MAX] };
    raw.bytes[..handle.bytes().len()].copy_from_slice(handle.bytes());
    loop {
        // SAFETY: `raw` has the layout of `struct file_handle` followed by `raw.len` initialised bytes.
        let fd = unsafe {
            libc::open_by_handle_at(
                mount.as_raw_fd(),
                (&raw mut raw).cast::<libc::file_handle>(),
                (flags | OFlags::CLOEXEC).bits() as i32,
            )
        };
        if fd >= 0 {
            // SAFETY: the kernel has just returned this descriptor to us, and nobody else knows it.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::EINTR) => continue,
            // A handle of a length or type that this filesystem does not issue, or a freed inode found on disk.
            Some(libc::EINVAL | libc::ENOENT) => Err(LowerError::from_errno("open_by_handle_at", libc::ESTALE)),
            _ => Err(error).step("open_by_handle_at"),
        };
    }
}

/// `fchmodat2(fd, "", mode, AT_EMPTY_PATH)`, by way of `/proc` on kernels before 6.6.
pub(super) fn chmod_fd(fd: BorrowedFd<'_>, mode: u32) -> LowerResult<()> {
    // SAFETY: the path is a NUL-terminated literal and the other arguments are plain numbers.
    let answer = unsafe { libc::syscall(libc::SYS_fchmodat2, fd.as_raw_fd(), c"".as_ptr(), mode, libc::AT_EMPTY_PATH) };
    if answer == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::ENOSYS) {
        return Err(error).step("fchmodat2");
    }
    rustix::fs::chmod(FdPath::new(fd).as_c_str(), rustix::fs::Mode::from_raw_mode(mode)).step("chmod")
}

/// `truncate(2)` of the regular file behind `fd`, which may be `O_PATH`.
pub(super) fn truncate_fd(fd: BorrowedFd<'_>, len: i64) -> LowerResult<()> {
    let path = FdPath::new(fd);
    loop {
        // SAFETY: the path is NUL-terminated and lives through the call.
        if unsafe { libc::truncate(path.as_c_str().as_ptr(), len) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error).step("truncate");
        }
    }
}

/// `getxattrat(2)`, Linux 6.13, whose number is the same on every architecture that got it with this name.
const SYS_GETXATTRAT: libc::c_long = 464;

/// `struct xattr_args` of `linux/xattr.h`.
#[repr(C)]
struct XattrArgs {
    value: u64,
    size: u32,
    flags: u32,
}

/// An extended attribute of `name` in `dir`, without opening it or following a link: its length, and as much as `value` has room for. With no room
/// at all only the length is told. `ENOSYS`: the kernel cannot do it so.
pub(super) fn xattr_at(dir: BorrowedFd<'_>, name: &CStr, attribute: &CStr, value: &mut [u8]) -> io::Result<usize> {
    if cfg!(any(target_arch = "mips", target_arch = "mips64")) {
        return Err(io::Error::from_raw_os_error(libc::ENOSYS));
    }
    let address = if value.is_empty() { 0 } else { value.as_mut_ptr() as u64 };
    let mut args = XattrArgs { value: address, size: value.len() as u32, flags: 0 };
    // SAFETY: both strings end with NUL, `args` has the layout and the size that are told and names a buffer of that size; all live
    // through the call.
    let answer = unsafe {
        libc::syscall(
            SYS_GETXATTRAT,
            dir.as_raw_fd(),
            name.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
            attribute.as_ptr(),
            &raw mut args,
            size_of::<XattrArgs>(),
        )
    };
    usize::try_from(answer).map_err(|_| io::Error::last_os_error())
}

/// Whether `name` in `dir` has the extended attribute, without opening it or following a link; `None` where the kernel cannot tell so.
pub(super) fn has_xattr_at(dir: BorrowedFd<'_>, name: &CStr, attribute: &CStr) -> LowerResult<Option<bool>> {
    match xattr_at(dir, name, attribute, &mut []) {
        Ok(_) => Ok(Some(true)),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENODATA) => Ok(Some(false)),
            Some(libc::ENOSYS | libc::EOPNOTSUPP) => Ok(None),
            _ => Err(error).step("getxattrat"),
        },
    }
}

/// The name `/proc/self/fd/N`: for calls that take no `O_PATH` descriptor. Kept on the stack.
pub(super) struct FdPath([u8; 32]);

impl FdPath {
    pub(super) fn new(fd: BorrowedFd<'_>) -> Self {
        let mut name = [0; 32];
        // 14 bytes and at most 10 digits: it fits, and the rest stays NUL.
        let _ = write!(&mut name[..31], "/proc/self/fd/{}", fd.as_raw_fd());
        Self(name)
    }

    pub(super) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or(c"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fd_path_of_the_largest_descriptor_fits() {
        // SAFETY: the descriptor is only named, never used.
        let fd = unsafe { BorrowedFd::borrow_raw(i32::MAX) };
        assert_eq!(FdPath::new(fd).as_c_str(), c"/proc/self/fd/2147483647");
    }
}
