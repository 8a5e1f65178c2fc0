//! Reading and writing through the daemon.

use std::sync::Arc;

use bytes::Bytes;

use super::Fs;
use super::error::{FsError, FsResult};
use super::open::OpenFile;
use super::wait::{Blocker, Try};
use crate::engine::{Admission, Cell, Patience};
use crate::ports::{LowerFile, SeekTo};
use crate::record::Claim;
use crate::tier::Event;
use crate::types::ByteRange;

/// Bytes of a stub that one `copy_file_range` brings back at most; the caller asks on.
const COPY_MAX: u64 = 16 << 20;
/// Bytes that one `copy_file_range` copies by way of memory at most.
const PIECE_MAX: u64 = 1 << 20;
/// How often a read looks again because what it read was written meanwhile.
const LOOKS_MAX: usize = 4;

/// How many of `data`'s bytes a file has at `offset`.
fn found_of(file: &dyn LowerFile, data: &[u8], offset: u64) -> FsResult<u64> {
    let mut found = vec![0; data.len()];
    let got = file.read_at(&mut found, offset)?;
    Ok(found[..got].iter().zip(data).take_while(|(found, byte)| found == byte).count() as u64)
}

/// Whether all content is local, and no record has to be asked before it is changed.
fn is_resident(cell: &Cell) -> bool {
    let inner = cell.lock();
    inner.machine.is_local() && inner.machine.claim() == Claim::Resident
}

/// Reads a file that was written to while its content is away: its own bytes from the file below, the others once they are there.
fn read_patched(cell: &Arc<Cell>, file: &dyn LowerFile, range: ByteRange) -> FsResult<Try<Bytes>> {
    for _ in 0..LOOKS_MAX {
        let (recall, away) = {
            let inner = cell.lock();
            let Some(patch) = &inner.record.patch else { break };
            (inner.recall.clone(), patch.of_object(range))
        };
        let mut buffer = vec![0; range.len as usize];
        let got = file.read_at(&mut buffer, range.offset)?;
        buffer.truncate(got);
        if away.last().is_some_and(|last| last.end() > range.offset + got as u64) {
            // It was cut just now: what is left is shorter, and less of it is the object's.
            continue;
        }
        for part in &away {
            let Some(bytes) = recall.as_ref().map(|recall| recall.read(file, *part)).transpose()?.flatten() else {
                return Ok(Try::Blocked(Blocker::content(cell, Some(*part))));
            };
            let at = (part.offset - range.offset) as usize;
            buffer[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        // Somebody has written or cut what was the object's: older bytes may be on top of newer ones.
        let still = cell
            .lock()
            .record
            .patch
            .as_ref()
            .is_some_and(|patch| away.iter().all(|part| patch.of_object(*part) == [*part]));
        if still || away.is_empty() {
            if let (Some(recall), Some(first), Some(last)) = (recall, away.first(), away.last()) {
                recall.note_read(ByteRange { offset: first.offset, len: last.end() - first.offset });
            }
            return Ok(Try::Done(Ok(buffer.into())));
        }
    }
    Ok(Try::Blocked(Blocker::thread(cell)))
}

impl Fs {
    /// Reads up to `len` bytes at `offset`; short only at the end of the file.
    pub fn try_read(&self, fh: u64, offset: u64, len: u32) -> Try<Bytes> {
        match self.file(fh).and_then(|open| self.read_inner(&open, offset, len)) {
            Ok(attempt) => attempt,
            Err(error) => Try::Done(Err(error)),
        }
    }

    /// What a read of a stub gets that has waited for it: without touching the disk. `None`: not all of it is in memory.
    pub fn read_held(&self, fh: u64, offset: u64, len: u32) -> Option<Bytes> {
        let open = self.file(fh).ok()?;
        let (recall, size) = {
            let inner = open.cell.lock();
            let object =
                inner.record.object.as_ref().filter(|_| inner.record.patch.is_none() && !inner.machine.is_local())?;
            (inner.recall.clone()?, object.len)
        };
        let end = (offset + u64::from(len)).min(size);
        let range = ByteRange { offset, len: end.checked_sub(offset).filter(|len| *len > 0)? };
        let bytes = recall.read_held(range)?;
        recall.note_read(range);
        Some(bytes)
    }

    fn read_inner(&self, open: &OpenFile, offset: u64, len: u32) -> FsResult<Try<Bytes>> {
        let file = self.reading_file(open)?;
        // While this handle is open nothing is released: content that is local now stays so.
        let (local, recall, size, patched) = {
            let inner = open.cell.lock();
            let size = inner.record.object.as_ref().map(|object| object.len);
            (inner.machine.is_local(), inner.recall.clone(), size, inner.record.patch.is_some())
        };
        if local {
            let mut buffer = vec![0; len as usize];
            let got = file.read_at(&mut buffer, offset)?;
            buffer.truncate(got);
            return Ok(Try::Done(Ok(buffer.into())));
        }
        if patched {
            return read_patched(&open.cell, &*file, ByteRange { offset, len: u64::from(len) });
        }
        // Not local and nowhere else: a failed sync left its record unknown, and that comes first. It is no empty file.
        let Some(size) = size else { return Ok(Try::Blocked(Blocker::content(&open.cell, None))) };
        let end = (offset + u64::from(len)).min(size);
        if offset >= end {
            return Ok(Try::Done(Ok(Bytes::new())));
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

    /// Writes through the daemon. What a stub has elsewhere stays there: the record tells what was written.
    pub fn try_write(&self, fh: u64, offset: u64, data: &[u8], patience: Patience) -> Try<()> {
        let written = self.file(fh).and_then(|open| self.write_inner(&open, offset, data, patience));
        written.unwrap_or_else(|error| Try::Done(Err(error)))
    }

    fn write_inner(&self, open: &OpenFile, offset: u64, data: &[u8], patience: Patience) -> FsResult<Try<()>> {
        if !open.write {
            return Err(FsError::BadHandle);
        }
        let (file, cell) = (self.writing_file(open)?, &open.cell);
        if is_resident(cell) {
            return Ok(Try::Done(Ok(file.write_at(data, offset)?)));
        }
        let range = ByteRange { offset, len: data.len() as u64 };
        let Some(_writing) = cell.patching(patience) else {
            return Ok(Try::Blocked(Blocker::thread(cell)));
        };
        {
            let mut inner = cell.lock();
            let full = inner.record.patch.as_ref().is_some_and(|patch| patch.is_full_for(range));
            let full = full || inner.patch_is_stuck;
            // What is in too many pieces is brought back as a whole.
            let event = if full { Event::Rewrite } else { Event::Write };
            match self.engine.admit(cell, &mut inner, event, patience)? {
                Admission::Go => {}
                other => return Ok(Try::Blocked(Blocker::admission(cell, other))),
            }
            self.engine.end_filling(cell, &mut inner)?;
        }
        let written = file.write_at(data, offset);
        // Of a write that failed, what is there is the file's own.
        let len = if written.is_ok() { range.len } else { found_of(&*file, data, offset)? };
        self.engine.wrote(cell, ByteRange { len, ..range })?;
        Ok(Try::Done(Ok(written?)))
    }

    pub fn sync(&self, fh: u64, data_only: bool) -> FsResult<()> {
        let open = self.file(fh)?;
        let patched = open.cell.lock().record.patch.is_some();
        if patched {
            return Ok(self.engine.sync_patched(&open.cell)?);
        }
        Ok(self.reading_file(&open)?.sync(data_only)?)
    }

    /// `fallocate(2)`: of a stub, all content is brought back first.
    pub fn try_allocate(&self, fh: u64, mode: i32, offset: u64, len: u64, patience: Patience) -> Try<()> {
        let attempt = || -> FsResult<Try<()>> {
            self.check_writable()?;
            let open = self.file(fh)?;
            if !is_resident(&open.cell) {
                let mut inner = open.cell.lock();
                match self.engine.admit(&open.cell, &mut inner, Event::Rewrite, patience)? {
                    Admission::Go => {}
                    other => return Ok(Try::Blocked(Blocker::admission(&open.cell, other))),
                }
            }
            Ok(Try::Done(Ok(self.writing_file(&open)?.allocate(mode, offset, len)?)))
        };
        attempt().unwrap_or_else(|error| Try::Done(Err(error)))
    }

    /// `SEEK_DATA` and `SEEK_HOLE`. A stub is all data up to its size: an archiver that skips holes must not skip it.
    pub fn seek(&self, fh: u64, offset: u64, to: SeekTo) -> FsResult<u64> {
        let open = self.file(fh)?;
        let file = self.reading_file(&open)?;
        let (local, size) = {
            let inner = open.cell.lock();
            let object = inner.record.object.as_ref().filter(|_| inner.record.patch.is_none());
            (inner.machine.is_local(), object.map(|object| object.len))
        };
        if local {
            return Ok(file.seek(offset, to)?);
        }
        // Without an object, a failed sync left its record unknown; one that was written to has a size of its own.
        let size = size.map_or_else(|| file.stat().map(|attr| attr.size), Ok)?;
        match to {
            _ if offset >= size => Err(crate::ports::LowerError::from_errno("lseek", libc::ENXIO).into()),
            SeekTo::Data => Ok(offset),
            SeekTo::Hole => Ok(size),
        }
    }

    /// `copy_file_range(2)`: the source's content is recalled first.
    pub fn try_copy(
        &self,
        from: u64,
        offset: u64,
        to: u64,
        to_offset: u64,
        len: u64,
        patience: Patience,
    ) -> Try<usize> {
        let attempt = || -> FsResult<Try<usize>> {
            let (source, target) = (self.file(from)?, self.file(to)?);
            if !target.write {
                return Err(FsError::BadHandle);
            }
            let (local, recall, size, patched) = {
                let inner = source.cell.lock();
                let size = inner.record.object.as_ref().map(|object| object.len);
                (inner.machine.is_local(), inner.recall.clone(), size, inner.record.patch.is_some())
            };
            if patched || !is_resident(&target.cell) {
                // Before the source is read, which may be the same file: a writer sets a stub's recall aside, and would do so for ever.
                match self.write_inner(&target, to_offset, &[], patience)? {
                    Try::Done(Ok(())) => {}
                    Try::Done(Err(error)) => return Err(error),
                    Try::Blocked(blocker) => return Ok(Try::Blocked(blocker)),
                }
                return match self.read_inner(&source, offset, len.min(PIECE_MAX) as u32)? {
                    Try::Done(Ok(bytes)) if bytes.is_empty() => Ok(Try::Done(Ok(0))),
                    Try::Done(Ok(bytes)) => {
                        Ok(self.write_inner(&target, to_offset, &bytes, patience)?.map(|()| bytes.len()))
                    }
                    Try::Done(Err(error)) => Err(error),
                    Try::Blocked(blocker) => Ok(Try::Blocked(blocker)),
                };
            }
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
            let (source, target) = (self.reading_file(&source)?, self.writing_file(&target)?);
            Ok(Try::Done(Ok(source.copy_to(offset, &*target, to_offset, len)?)))
        };
        attempt().unwrap_or_else(|error| Try::Done(Err(error)))
    }
}
