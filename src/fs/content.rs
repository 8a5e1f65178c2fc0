//! Reading and writing through the daemon.

use super::Fs;
use super::error::{FsError, FsResult};
use super::open::OpenFile;
use super::wait::{Blocker, Try};
use crate::ports::SeekTo;
use crate::types::ByteRange;

/// Bytes of a stub that one `copy_file_range` brings back at most; the caller asks on.
const COPY_MAX: u64 = 16 << 20;

impl Fs {
    /// Reads up to `len` bytes at `offset`; short only at the end of the file.
    pub fn try_read(&self, fh: u64, offset: u64, len: u32) -> Try<Vec<u8>> {
        match self.file(fh).and_then(|open| self.read_inner(&open, offset, len)) {
            Ok(attempt) => attempt,
            Err(error) => Try::Done(Err(error)),
        }
    }

    fn read_inner(&self, open: &OpenFile, offset: u64, len: u32) -> FsResult<Try<Vec<u8>>> {
        let file = self.reading_file(open)?;
        // While this handle is open nothing is released: content that is local now stays so.
        let (local, recall, size) = {
            let inner = open.cell.lock();
            let size = inner.record.object.as_ref().map(|object| object.len);
            (inner.machine.is_local(), inner.recall.clone(), size)
        };
        if local {
            let mut buffer = vec![0; len as usize];
            let got = file.read_at(&mut buffer, offset)?;
            buffer.truncate(got);
            return Ok(Try::Done(Ok(buffer)));
        }
        // Not local and nowhere else: a failed sync left its record unknown, and that comes first. It is no empty file.
        let Some(size) = size else { return Ok(Try::Blocked(Blocker::content(&open.cell, None))) };
        let end = (offset + u64::from(len)).min(size);
        if offset >= end {
            return Ok(Try::Done(Ok(Vec::new())));
        }
        let range = ByteRange { offset, len: end - offset };
        if let Some(recall) = recall
            && let Some(bytes) = recall.read(&*file, range)?
        {
            recall.note_read(range);
            return Ok(Try::Done(Ok(bytes)));
        }
        Ok(Try::Blocked(Blocker::content(&open.cell, Some(range))))
    }

    /// Writes through the daemon: only handles opened for writing come here, and those are of resident files.
    pub fn write(&self, fh: u64, offset: u64, data: &[u8]) -> FsResult<()> {
        let open = self.file(fh)?;
        if !open.write {
            return Err(FsError::BadHandle);
        }
        Ok(self.writing_file(&open)?.write_at(data, offset)?)
    }

    pub fn sync(&self, fh: u64, data_only: bool) -> FsResult<()> {
        let open = self.file(fh)?;
        Ok(self.reading_file(&open)?.sync(data_only)?)
    }

    /// `fallocate(2)`.
    pub fn allocate(&self, fh: u64, mode: i32, offset: u64, len: u64) -> FsResult<()> {
        self.check_writable()?;
        let open = self.file(fh)?;
        Ok(self.writing_file(&open)?.allocate(mode, offset, len)?)
    }

    /// `SEEK_DATA` and `SEEK_HOLE`. A stub is all data up to its size: an archiver that skips holes must not skip it.
    pub fn seek(&self, fh: u64, offset: u64, to: SeekTo) -> FsResult<u64> {
        let open = self.file(fh)?;
        let file = self.reading_file(&open)?;
        let (local, size) = {
            let inner = open.cell.lock();
            (inner.machine.is_local(), inner.record.object.as_ref().map(|object| object.len))
        };
        if local {
            return Ok(file.seek(offset, to)?);
        }
        // Without an object, a failed sync left its record unknown.
        let size = size.map_or_else(|| file.stat().map(|attr| attr.size), Ok)?;
        match to {
            _ if offset >= size => Err(crate::ports::LowerError::from_errno("lseek", libc::ENXIO).into()),
            SeekTo::Data => Ok(offset),
            SeekTo::Hole => Ok(size),
        }
    }

    /// `copy_file_range(2)`: the source's content is recalled first.
    pub fn try_copy(&self, from: u64, offset: u64, to: u64, to_offset: u64, len: u64) -> Try<usize> {
        let attempt = || -> FsResult<Try<usize>> {
            let (source, target) = (self.file(from)?, self.file(to)?);
            let (local, recall, size) = {
                let inner = source.cell.lock();
                let size = inner.record.object.as_ref().map(|object| object.len);
                (inner.machine.is_local(), inner.recall.clone(), size)
            };
            if !local {
                // Without an object, a failed sync left its record unknown, and that comes first.
                let Some(size) = size else { return Ok(Try::Blocked(Blocker::content(&source.cell, None))) };
                if offset >= size {
                    return Ok(Try::Done(Ok(0)));
                }
                let range = ByteRange { offset, len: len.min(size - offset).min(COPY_MAX) };
                // What is only served from memory cannot be copied from file to file.
                let wanted = recall.as_ref().is_none_or(|recall| recall.keeps()).then_some(range);
                let blocked = || Ok(Try::Blocked(Blocker::content(&source.cell, wanted)));
                let Some(recall) = recall.filter(|recall| recall.is_available(range)) else { return blocked() };
                let (from, to) = (self.reading_file(&source)?, self.writing_file(&target)?);
                let copied = from.copy_to(offset, &*to, to_offset, range.len)?;
                if !recall.is_available(range) {
                    return blocked();
                }
                recall.note_read(range);
                return Ok(Try::Done(Ok(copied)));
            }
            if !target.write {
                return Err(FsError::BadHandle);
            }
            let (source, target) = (self.reading_file(&source)?, self.writing_file(&target)?);
            Ok(Try::Done(Ok(source.copy_to(offset, &*target, to_offset, len)?)))
        };
        attempt().unwrap_or_else(|error| Try::Done(Err(error)))
    }
}
