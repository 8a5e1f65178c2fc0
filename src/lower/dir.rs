//! An open directory of the share.
//!
//! Invariant: offsets are the lower filesystem's own (`d_off`), so a listing can go on in another process. What was read and not yet
//! taken stays for the next call: reading it again would cost a seek, after which ext4 sorts the whole block anew.

#![allow(unsafe_code, reason = "getdents64 as rustix has it cannot be left half way and taken up again")]

use std::ffi::{CStr, OsStr};
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use parking_lot::Mutex;
use rustix::fs::{FileType, SeekFrom, fdatasync, fsync, seek};

use super::Step;
use super::attr::kind_of;
use crate::ports::{DirEntryRef, LowerDir, LowerError, LowerResult};

/// Bytes asked of the kernel at a time: some 800 entries with names of middling length.
const BUFFER_BYTES: usize = 32 * 1024;
/// Where the name begins in a `struct linux_dirent64` (getdents(2)); inode, offset, length and type are before it.
const NAME_AT: usize = 19;

pub(super) struct OpenDir {
    fd: OwnedFd,
    cursor: Mutex<Cursor>,
}

struct Cursor {
    /// Where the next entry of the buffer, or of the descriptor, is; `None` after an error, when nobody knows.
    at: Option<i64>,
    buffer: Vec<u8>,
    /// What of the buffer was read and not taken.
    left: std::ops::Range<usize>,
    /// What follows the buffer, when it was read ahead; without room before.
    next: Vec<u8>,
    /// How many of its bytes count (0 at the end); `None`: nothing was read ahead.
    ahead: Option<usize>,
}

impl OpenDir {
    /// `fd` is a directory open for reading that stands at its start.
    pub(super) fn new(fd: OwnedFd) -> Self {
        let cursor = Cursor { at: Some(0), buffer: vec![0; BUFFER_BYTES], left: 0..0, next: Vec::new(), ahead: None };
        Self { fd, cursor: Mutex::new(cursor) }
    }

    /// Reads the next entries into the buffer; `false` at the end.
    fn fill(&self, cursor: &mut Cursor) -> LowerResult<bool> {
        let got = match cursor.ahead.take() {
            Some(got) => {
                mem::swap(&mut cursor.buffer, &mut cursor.next);
                got
            }
            None => entries(self.fd.as_fd(), &mut cursor.buffer)?,
        };
        cursor.left = 0..got;
        Ok(got > 0)
    }
}

/// Reads the next entries of a directory into `buffer`, whose length it answers; 0 at the end.
pub(super) fn entries(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> LowerResult<usize> {
    // SAFETY: the kernel writes at most `buffer.len()` bytes into the buffer, which lives through the call.
    let got = unsafe { libc::syscall(libc::SYS_getdents64, fd.as_raw_fd(), buffer.as_mut_ptr(), buffer.len()) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error()).step("getdents64")
}

/// The entry at the start of `bytes` and its length; `None` for what is no entry.
pub(super) fn parse(bytes: &[u8]) -> Option<(DirEntryRef<'_>, usize)> {
    let number = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let len = usize::from(u16::from_ne_bytes(bytes.get(16..18)?.try_into().ok()?));
    let name = CStr::from_bytes_until_nul(bytes.get(NAME_AT..len)?).ok()?;
    let entry = DirEntryRef {
        name: OsStr::from_bytes(name.to_bytes()),
        ino: number(0)?,
        // Of the type in a mode word, `d_type` is the upper four bits (`IFTODT` of glibc).
        kind: kind_of(FileType::from_raw_mode(u32::from(*bytes.get(18)?) << 12)),
        next_offset: number(8)? as i64,
    };
    Some((entry, len))
}

impl LowerDir for OpenDir {
    fn each(&self, offset: i64, take: &mut dyn FnMut(&DirEntryRef<'_>) -> bool) -> LowerResult<()> {
        let mut cursor = self.cursor.lock();
        let stands = cursor.at.take();
        // From the start, the directory is read as it is now (rewinddir(3)).
        if stands != Some(offset) || offset == 0 {
            let start = u64::try_from(offset).map_err(|_| LowerError::from_errno("lseek", libc::EINVAL))?;
            cursor.left = 0..0;
            cursor.ahead = None;
            seek(&self.fd, SeekFrom::Start(start)).step("lseek")?;
        }
        let mut at = offset;
        loop {
            while !cursor.left.is_empty() {
                let Some((entry, len)) = parse(&cursor.buffer[cursor.left.clone()]) else {
                    return Err(LowerError::from_errno("getdents64", libc::EIO));
                };
                if take(&entry) {
                    cursor.at = Some(at);
                    return Ok(());
                }
                at = entry.next_offset;
                cursor.left.start += len;
            }
            if !self.fill(&mut cursor)? {
                cursor.at = Some(at);
                return Ok(());
            }
        }
    }

    fn read_ahead(&self) {
        // Who has it reads by himself.
        let Some(mut cursor) = self.cursor.try_lock() else { return };
        if cursor.at.is_none() || cursor.ahead.is_some() {
            return;
        }
        cursor.next.resize(BUFFER_BYTES, 0);
        // An error is met again, and told, by who needs the entries.
        cursor.ahead = entries(self.fd.as_fd(), &mut cursor.next).ok();
    }

    fn sync(&self, data_only: bool) -> LowerResult<()> {
        if data_only { fdatasync(&self.fd).step("fdatasync") } else { fsync(&self.fd).step("fsync") }
    }
}
