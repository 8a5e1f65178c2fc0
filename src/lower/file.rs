//! An open regular file of the share.
//!
//! Invariant: the descriptor closes when the last of the file and its lease guards is dropped.

use std::ffi::OsStr;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, fdatasync, fsync, ftruncate, seek};
use rustix::io::{Errno, pread, pwritev, retry_on_intr};

use super::attr::stat_fd;
use super::creds::with_fsuid;
use super::kept::Kept;
use super::{Step, lease, xattr};
use crate::ports::{Attr, Keep, LowerError, LowerFile, LowerResult, SeekTo};

/// Punching goes beyond the end, to a multiple of this: a block that the end cuts would only be zeroed, not freed.
const PUNCH_ALIGN_BYTES: u64 = 1 << 20;

/// Pieces that one call writes at most: `IOV_MAX`.
const PIECES_MAX: usize = 1024;

pub(super) struct OpenFile {
    fd: Arc<OwnedFd>,
    /// `O_DIRECT`: what follows a short read would be unaligned, so it is not asked for.
    direct: bool,
    /// What the kernel takes from the file at each change, and is given back.
    kept: Option<Kept>,
}

impl OpenFile {
    pub(super) fn new(fd: OwnedFd, direct: bool) -> Self {
        Self { fd: Arc::new(fd), direct, kept: None }
    }

    /// For what keeps privileges.
    pub(super) fn keeping(fd: OwnedFd, keep: Keep) -> Self {
        let fd = Arc::new(fd);
        Self { kept: Some(Kept::new(Arc::clone(&fd), keep)), fd, direct: false }
    }

    /// Makes a change of content: a user's, or tiering's own.
    fn change<T>(&self, change: impl FnOnce() -> LowerResult<T>) -> LowerResult<T> {
        match &self.kept {
            None => with_fsuid(self.stat()?.uid, change)?,
            Some(kept) => kept.through(change),
        }
    }
}

impl LowerFile for OpenFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> LowerResult<usize> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let got = retry_on_intr(|| pread(&self.fd, &mut buf[done..], at)).step("pread")?;
            done += got;
            if got == 0 || self.direct {
                break;
            }
        }
        Ok(done)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> LowerResult<()> {
        self.write_pieces(&[data], offset)
    }

    fn write_pieces(&self, pieces: &[&[u8]], offset: u64) -> LowerResult<()> {
        self.change(|| {
            let mut at = offset;
            for some in pieces.chunks(PIECES_MAX) {
                let mut slices: Vec<_> = some.iter().map(|piece| IoSlice::new(piece)).collect();
                let mut left = &mut slices[..];
                // What is empty goes, for nothing written would look like a failure.
                IoSlice::advance_slices(&mut left, 0);
                while !left.is_empty() {
                    match retry_on_intr(|| pwritev(&self.fd, left, at)).step("pwritev")? {
                        0 => return Err(LowerError::from_errno("pwritev", libc::EIO)),
                        put => {
                            at += put as u64;
                            IoSlice::advance_slices(&mut left, put);
                        }
                    }
                }
            }
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> LowerResult<()> {
        retry_on_intr(|| ftruncate(&self.fd, len)).step("ftruncate")
    }

    fn allocate(&self, mode: i32, offset: u64, len: u64) -> LowerResult<()> {
        let mode = FallocateFlags::from_bits_retain(mode as u32);
        self.change(|| retry_on_intr(|| fallocate(&self.fd, mode, offset, len)).step("fallocate"))
    }

    fn seek(&self, offset: u64, to: SeekTo) -> LowerResult<u64> {
        // The descriptor's own position moves, but nothing reads by it.
        let from = match to {
            SeekTo::Data => SeekFrom::Data(offset),
            SeekTo::Hole => SeekFrom::Hole(offset),
        };
        seek(&self.fd, from).step("lseek")
    }

    fn copy_to(&self, offset: u64, to: &dyn LowerFile, to_offset: u64, len: u64) -> LowerResult<usize> {
        let target = to.as_fd().ok_or_else(|| LowerError::from_errno("copy_file_range", libc::EXDEV))?;
        let (mut from, mut into) = (offset, to_offset);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let mut copy = || {
            retry_on_intr(|| copy_file_range(&self.fd, Some(&mut from), target, Some(&mut into), len))
                .step("copy_file_range")
        };
        let mut copied = Ok(0);
        to.as_owner(&mut || copied = copy())?;
        copied
    }

    fn sync(&self, data_only: bool) -> LowerResult<()> {
        if data_only { fdatasync(&self.fd).step("fdatasync") } else { fsync(&self.fd).step("fsync") }
    }

    fn put_back_privileges(&self) -> LowerResult<()> {
        self.kept.as_ref().map_or(Ok(()), Kept::put_back)
    }

    fn stat(&self) -> LowerResult<Attr> {
        Ok(stat_fd(&self.fd)?.attr)
    }

    fn xattr(&self, name: &OsStr) -> LowerResult<Vec<u8>> {
        xattr::get_open(AsFd::as_fd(&*self.fd), name)
    }

    fn as_owner(&self, act: &mut dyn FnMut()) -> LowerResult<()> {
        let uid = self.stat()?.uid;
        match &self.kept {
            None => with_fsuid(uid, act),
            Some(kept) => kept.through(|| with_fsuid(uid, act)),
        }
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(AsFd::as_fd(&*self.fd))
    }

    fn punch_all(&self) -> LowerResult<()> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let punch = |len| retry_on_intr(|| fallocate(&self.fd, mode, 0, len));
        let size = self.stat()?.size.max(1);
        self.change(|| {
            match punch(size.saturating_add(PUNCH_ALIGN_BYTES - 1) / PUNCH_ALIGN_BYTES * PUNCH_ALIGN_BYTES) {
                // So near the largest size that rounding up passes it.
                Err(Errno::FBIG | Errno::INVAL) => punch(size),
                other => other,
            }
            .step("fallocate(PUNCH_HOLE)")
        })
    }

    fn try_exclusive(&self) -> LowerResult<Option<Box<dyn Send + Sync>>> {
        Ok(lease::try_exclusive(&self.fd)?.map(|guard| Box::new(guard) as Box<dyn Send + Sync>))
    }

    fn nobody_writes(&self) -> LowerResult<bool> {
        lease::nobody_writes(&self.fd)
    }
}
