//! An open directory of the share.
//!
//! Invariant: offsets are the lower filesystem's own (`d_off`), so a listing can go on in another process.

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use parking_lot::Mutex;
use rustix::fs::{RawDir, SeekFrom, fdatasync, fsync, seek};

use super::Step;
use super::attr::kind_of;
use crate::ports::{DirEntry, LowerDir, LowerError, LowerResult};

/// Bytes asked of the kernel at a time: some 800 entries with names of middling length.
const BUFFER_BYTES: usize = 32 * 1024;

pub(super) struct OpenDir {
    fd: OwnedFd,
    cursor: Mutex<Cursor>,
}

struct Cursor {
    /// Where the descriptor stands; `None` after an error, when nobody knows.
    at: Option<i64>,
    buffer: Box<[MaybeUninit<u8>]>,
}

impl OpenDir {
    /// `fd` is a directory open for reading that stands at its start.
    pub(super) fn new(fd: OwnedFd) -> Self {
        let buffer = Box::new_uninit_slice(BUFFER_BYTES);
        Self { fd, cursor: Mutex::new(Cursor { at: Some(0), buffer }) }
    }
}

impl LowerDir for OpenDir {
    fn read(&self, offset: i64) -> LowerResult<Vec<DirEntry>> {
        let mut cursor = self.cursor.lock();
        if cursor.at.take() != Some(offset) {
            let start = u64::try_from(offset).map_err(|_| LowerError::from_errno("lseek", libc::EINVAL))?;
            seek(&self.fd, SeekFrom::Start(start)).step("lseek")?;
        }
        let mut end = offset;
        let mut entries = Vec::new();
        {
            let mut batch = RawDir::new(&self.fd, &mut cursor.buffer);
            while let Some(entry) = batch.next() {
                let entry = entry.step("getdents64")?;
                end = entry.next_entry_cookie() as i64;
                entries.push(DirEntry {
                    name: OsStr::from_bytes(entry.file_name().to_bytes()).to_os_string(),
                    ino: entry.ino(),
                    kind: kind_of(entry.file_type()),
                    next_offset: end,
                });
                // One buffer a call.
                if batch.is_buffer_empty() {
                    break;
                }
            }
        }
        cursor.at = Some(end);
        Ok(entries)
    }

    fn sync(&self, data_only: bool) -> LowerResult<()> {
        if data_only { fdatasync(&self.fd).step("fdatasync") } else { fsync(&self.fd).step("fsync") }
    }
}
