//! Finding an inode again when nothing but its number is known, as after a restart of the daemon.
//!
//! Invariant: only what lies in the share is found where that can be known, which is for directories. A file has no way back
//! to its directory; where the share is not a whole filesystem, a number can lead to a file beside it.

#![allow(unsafe_code, reason = "XFS tells generations by an ioctl that has no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{Mode, OFlags, fstatfs, openat};

use super::Step;
use super::attr::stat_fd;
use super::fdcache::Node;
use super::share::Share;
use crate::ports::{LowerError, LowerResult};
use crate::types::RawHandle;

/// `f_type` of statfs(2): ext2, ext3 and ext4 share it.
const EXT_MAGIC: i64 = 0xef53;
const XFS_MAGIC: i64 = 0x5846_5342;

/// `FILEID_INO32_GEN` of the kernel's `exportfs.h`: number and generation, 32 bits each.
const NUMBER_AND_GENERATION: i32 = 1;
/// The same with a number of 64 bits, as XFS writes it (`XFS_FILEID_TYPE_64FLAG`).
const XFS_NUMBER_AND_GENERATION: i32 = 0x81;

/// How a filesystem is asked for an inode by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ByNumber {
    /// Generation 0 in a handle stands for any (`ext4_nfs_get_inode`).
    AnyGeneration,
    /// A handle needs the true generation, and `XFS_IOC_BULKSTAT` tells it (Linux 5.4).
    Bulkstat,
    Unsupported,
}

impl ByNumber {
    pub(super) fn of(mount: BorrowedFd<'_>) -> LowerResult<Self> {
        Ok(match fstatfs(mount).step("fstatfs")?.f_type as i64 {
            EXT_MAGIC => Self::AnyGeneration,
            XFS_MAGIC => Self::Bulkstat,
            _ => Self::Unsupported,
        })
    }

    /// A handle of the inode `number`, if there may be one; `ESTALE` otherwise, and where the filesystem cannot be asked.
    pub(super) fn handle(self, mount: BorrowedFd<'_>, number: u64) -> LowerResult<RawHandle> {
        let handle = match self {
            Self::AnyGeneration => {
                let Ok(number) = u32::try_from(number) else { return Err(stale()) };
                RawHandle::new(NUMBER_AND_GENERATION, &[number.to_ne_bytes(), [0; 4]].concat())
            }
            Self::Bulkstat => {
                let generation = xfs_generation(mount, number)?.to_ne_bytes();
                RawHandle::new(XFS_NUMBER_AND_GENERATION, &[&number.to_ne_bytes()[..], &generation[..]].concat())
            }
            Self::Unsupported => None,
        };
        handle.ok_or_else(stale)
    }
}

pub(super) fn stale() -> LowerError {
    LowerError::from_errno("open_by_handle_at", libc::ESTALE)
}

/// `_IOR('X', 127, struct xfs_bulkstat_req)` of `xfs_fs.h`.
const XFS_IOC_BULKSTAT: libc::c_ulong = 0x8040_587f;
/// `struct xfs_bulk_ireq` (64 bytes) and one `struct xfs_bulkstat` (192 bytes).
const REQUEST_WORDS: usize = (64 + 192) / 8;

/// The generation of an XFS inode; `ESTALE` where there is none of that number.
fn xfs_generation(mount: BorrowedFd<'_>, number: u64) -> LowerResult<u32> {
    let mut request = [0u64; REQUEST_WORDS];
    request[0] = number;
    // flags: none; icount: one answer.
    request[1] = if cfg!(target_endian = "little") { 1 << 32 } else { 1 };
    // SAFETY: the buffer has the header and room for the one answer that the header asks for, and lives through the call.
    let answer = unsafe { libc::ioctl(mount.as_raw_fd(), XFS_IOC_BULKSTAT as _, request.as_mut_ptr()) };
    if answer != 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            // Too large a number; a kernel or a container without the call.
            Some(libc::EINVAL | libc::ENOENT | libc::ENOTTY | libc::EPERM) => Err(stale()),
            _ => Err(error).step("ioctl(XFS_IOC_BULKSTAT)"),
        };
    }
    let half = |word: u64| {
        let bytes = word.to_ne_bytes();
        u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    };
    // `ocount` answers came, from the next inode on that there is; `bs_ino` and `bs_gen` are at 0 and 64 of an answer.
    if half(request[2]) == 1 && request[8] == number { Ok(half(request[16])) } else { Err(stale()) }
}

/// Whether a directory lies in the share: its parents lead to the share's root.
pub(super) fn is_inside(share: &Share, directory: &Node) -> LowerResult<bool> {
    let root = share.root_node().inode.id;
    let mut below = directory.inode.id;
    let mut owned;
    let mut at = directory.fd();
    loop {
        if below == root {
            return Ok(true);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        owned = match openat(at, c"..", flags, Mode::empty()) {
            Ok(parent) => parent,
            // In a private clone, directories beside the share have no way up (`path_connected`).
            Err(rustix::io::Errno::NOENT) => return Ok(false),
            Err(errno) => return Err(errno).step("openat"),
        };
        let above = stat_fd(&owned)?.id;
        if above == below {
            return Ok(false);
        }
        below = above;
        at = std::os::fd::AsFd::as_fd(&owned);
    }
}
