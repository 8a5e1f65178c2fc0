//! Fetching for a stub: a request for a run of chunks, each of which is verified as it comes, served, and written.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::time::Instant;

use super::blocking;
use super::bulk::Part;
use super::content::Content;
use super::error::EngineError;
use super::fill::Fill;
use super::plan::Run;
use super::slots::RequestRoom;
use crate::kill;
use crate::ports::{LowerError, RemoteError, RemoteErrorKind, whole};
use crate::types::{ByteRange, ContentHash};

/// Chunks that are asked for before it is known whether they are zeros.
const FEW: usize = 2;

/// Why a request brought no more.
pub(super) enum Bad {
    /// Its bytes are not what they should be: worth another one.
    Body(EngineError),
    Else(EngineError),
    /// Nobody waits for them any more.
    Unwanted,
}

pub(super) fn is_archived(error: &EngineError) -> bool {
    matches!(error, EngineError::Remote { source, .. } if source.kind == RemoteErrorKind::Archived)
}

impl From<EngineError> for Bad {
    fn from(error: EngineError) -> Self {
        Self::Else(error)
    }
}

impl Fill {
    /// Fetches a run in one request, or in several around what is all zeros; a chunk that does not match its hash once more.
    pub(super) async fn fetch(self: &Arc<Self>, run: &Run) -> Result<(), Bad> {
        let mut at = run.chunks.start;
        let mut again = None;
        if run.chunks.len() > FEW {
            // With the hashes at hand, what is all zeros need not be fetched; who waits for little does not wait for them first.
            self.hashes_for(&run.chunks).await?;
        }
        while at < run.chunks.end {
            if self.is_zeros(at) {
                let file = self.file().await?;
                if self.is_patched() {
                    let (this, place) = (self.clone(), self.object.chunk_range(at as u64));
                    blocking(move || this.write_around(&*file, place, None)).await?.map_err(self.failed())?;
                }
                self.recall.arrived(at);
                at += 1;
                continue;
            }
            let end = (at + 1..run.chunks.end).find(|chunk| self.is_zeros(*chunk)).unwrap_or(run.chunks.end);
            let mut fetched = self.request(at..end, run.wanted, &mut at).await;
            if let Err(Bad::Else(error)) = &fetched
                && is_archived(error)
            {
                fetched = self.restored(error.clone(), &(at..run.chunks.end)).await;
            }
            match fetched {
                Err(Bad::Body(_)) if again != Some(at) => again = Some(at),
                fetched => fetched?,
            }
        }
        Ok(())
    }

    /// Whether a chunk's content is zeros, as its place in the file is: then nothing is to be fetched.
    fn is_zeros(&self, chunk: usize) -> bool {
        let Some(hashes) = self.hashes.get() else { return false };
        let len = self.object.chunk_range(chunk as u64).len;
        self.recall.keeps()
            && len == u64::from(self.object.chunk_size)
            && hashes[chunk] == self.engine.zeros.of(self.object.chunk_size)
            && !self.spoilt.lock().contains(&chunk)
    }

    /// One request. `at` moves on with each chunk that is there.
    async fn request(self: &Arc<Self>, chunks: Range<usize>, wanted: bool, at: &mut usize) -> Result<(), Bad> {
        let remote = self.engine.source(self.cell.node.id, &self.object)?;
        let range = self.recall.with_plan(|plan| plan.bytes_of(&chunks));
        let kept = self.recall.keeps();
        self.recall.with_plan(|plan| plan.have_room(chunks.clone(), false));
        let in_bulk = self.engine.content_in_bulk(self.cell.node.id, &self.object, range);
        let in_bulk = self.while_wanted(&chunks, in_bulk).await?;
        let (slot, room, begun, mut body);
        match in_bulk {
            // It has its memory.
            Some(Part { content, room: of_all }) => {
                (slot, room, begun, body) = (None, of_all, Instant::now(), whole(content));
            }
            None => {
                // What is written is in memory one chunk after the other; what is only served may be so all at once.
                let in_memory = if kept { u64::from(self.object.chunk_size).min(range.len) } else { range.len };
                let permit = self.while_wanted(&chunks, self.slot(wanted, in_memory)).await??;
                (room, slot, begun) = (permit.room().clone(), Some(permit), Instant::now());
                let stream = remote.stream(&self.object.key, range, Some(&self.object.etag));
                body = self.while_wanted(&chunks, stream).await?.map_err(|error| self.bad(error))?;
            }
        }
        self.recall.with_plan(|plan| plan.have_room(chunks.clone(), true));
        let (mut first, mut piece) = (None, Bytes::new());
        for chunk in chunks.clone() {
            let place = self.object.chunk_range(chunk as u64);
            let left = chunk..chunks.end;
            let (mut content, mut hasher) = (Content::default(), blake3::Hasher::new());
            while (content.len() as u64) < place.len {
                if piece.is_empty() {
                    let next = self.while_wanted(&left, body.next()).await?.map_err(|error| self.bad(error))?;
                    piece = next.ok_or_else(|| Bad::Body(self.corrupt(place)))?;
                    first.get_or_insert_with(|| begun.elapsed());
                }
                let missing = (place.len - content.len() as u64) as usize;
                let part = piece.split_to(missing.min(piece.len()));
                // While it is in the processor's cache. What one read of a connection brings takes some 100 µs, which another thread would cost as well.
                hasher.update(&part);
                content.push(part);
            }
            let found = ContentHash(*hasher.finalize().as_bytes());
            let hashes = self.hashes_for(&left).await?;
            if found != hashes[chunk] {
                let object = &self.object.key;
                tracing::warn!(file = %self.cell.node.id, %object, offset = place.offset, "a chunk does not match its hash");
                return Err(Bad::Body(self.corrupt(place)));
            }
            self.put(chunk, place, content, &room).await?;
            *at = chunk + 1;
            if kept && !self.recall.keeps() {
                // There is room for this one only: the others are asked for with room for all of them.
                return Ok(());
            }
        }
        if slot.is_none() {
            return Ok(());
        }
        let first = first.unwrap_or_default();
        self.engine.line.note(first, begun.elapsed().saturating_sub(first), range.len);
        Ok(())
    }

    /// Waits for the remote as long as somebody wants what it brings.
    pub(super) async fn while_wanted<T>(&self, chunks: &Range<usize>, work: impl Future<Output = T>) -> Result<T, Bad> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = self.recall.unwanted(chunks) => Err(Bad::Unwanted),
        }
    }

    fn bad(&self, error: RemoteError) -> Bad {
        let corrupt = error.kind == RemoteErrorKind::Corrupt;
        let error = EngineError::remote(self.cell.node.id)(error);
        if corrupt { Bad::Body(error) } else { Bad::Else(error) }
    }

    fn corrupt(&self, place: ByteRange) -> EngineError {
        EngineError::Corrupt {
            file: self.cell.node.id,
            object: self.object.key.to_string(),
            offset: place.offset,
            len: place.len,
        }
    }

    /// Serves a chunk that is verified from memory, and writes it where it may stay. Never given up halfway: a write must not outlive its task.
    async fn put(
        self: &Arc<Self>,
        chunk: usize,
        place: ByteRange,
        content: Content,
        room: &Arc<RequestRoom>,
    ) -> Result<(), Bad> {
        let file = self.file().await?;
        let keeps = self.recall.keeps();
        self.engine.totals.fetched_bytes.fetch_add(content.len() as u64, Ordering::Relaxed);
        self.recall.hold(chunk, content.clone(), keeps, room);
        if !keeps {
            return Ok(());
        }
        self.noted().await?;
        kill::point("recall.fetched");
        let _writing = self.writing.lock().await;
        if self.recall.is_cut() {
            return Err(Bad::Unwanted);
        }
        self.recall.wrote.store(true, Ordering::SeqCst);
        let this = self.clone();
        let hole = !self.spoilt.lock().contains(&chunk);
        let write = move || match this.is_patched() {
            true => this.write_around(&*file, place, Some(&content)),
            false => content.write(&*file, place.offset, hole),
        };
        match self.step(write).await? {
            Ok(()) => self.recall.arrived(chunk),
            Err(error) => {
                // Some of it may be there.
                self.spoilt.lock().insert(chunk);
                if !matches!(error.errno(), libc::ENOSPC | libc::EDQUOT) {
                    return Err(Bad::Else(self.failed()(error)));
                }
                // Who reads is served all the same.
                self.recall.stop_keeping(&self.no_space(error));
            }
        }
        Ok(())
    }

    /// A write that found the disk full is told like a recall that would not fit: filesystems keep some free blocks back.
    fn no_space(&self, error: LowerError) -> EngineError {
        match self.engine.lower.space() {
            Ok(space) if error.errno() == libc::ENOSPC => EngineError::NoSpace {
                file: self.cell.node.id,
                len: self.object.len,
                available: space.blocks_available * space.fragment_size,
            },
            _ => self.failed()(error),
        }
    }
}
