//! The hashes of what is published here, for the other side: made when they are asked for, and remembered for a while.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::super::cell::Cell;
use super::super::error::{EngineError, EngineResult};
use super::super::{Engine, blocking};
use crate::ports::OpenFlags;
use crate::remote::manifest::Manifest;
use crate::types::{CHUNKS_MAX, ContentHash, FileId, Generation, is_chunk_size};

/// Manifests remembered, and their bytes.
const KEPT_MAX: usize = 256;
const KEPT_BYTES_MAX: usize = 32 << 20;

type Key = (FileId, Generation, u32);
type Made = Arc<OnceCell<Option<Bytes>>>;

/// The manifests made last, the oldest first.
#[derive(Default)]
pub struct Manifests(Mutex<VecDeque<(Key, Made)>>);

impl Manifests {
    fn get(&self, key: Key) -> Made {
        let mut kept = self.0.lock();
        if let Some((_, made)) = kept.iter().find(|(known, _)| *known == key) {
            return made.clone();
        }
        let bytes = |kept: &VecDeque<(Key, Made)>| -> usize {
            kept.iter().map(|(_, made)| made.get().and_then(|made| made.as_ref()).map_or(0, Bytes::len)).sum()
        };
        while kept.len() >= KEPT_MAX || bytes(&kept) > KEPT_BYTES_MAX {
            kept.pop_front();
        }
        let made = Made::default();
        kept.push_back((key, made.clone()));
        made
    }

    fn forget(&self, key: Key) {
        self.0.lock().retain(|(known, _)| *known != key);
    }
}

impl Engine {
    /// The encoded manifest of a published generation; `None`: the file has another one by now, or cannot be cut so. It is made to its end though who asked
    /// has left.
    pub async fn peer_manifest(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        generation: Generation,
        chunk_size: u32,
    ) -> EngineResult<Option<Bytes>> {
        let key = (cell.node.id, generation, chunk_size);
        let (this, on, made) = (self.clone(), cell.clone(), self.peer_manifests.get(key));
        let task = self.runtime.spawn(async move {
            let made = made.get_or_try_init(|| this.make_manifest(&on, generation, chunk_size)).await.cloned();
            if !matches!(made, Ok(Some(_))) {
                this.peer_manifests.forget(key);
            }
            made
        });
        task.await.map_err(|_| EngineError::ShuttingDown)?
    }

    async fn make_manifest(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        generation: Generation,
        chunk_size: u32,
    ) -> EngineResult<Option<Bytes>> {
        let Some(content) = self.published(cell, generation) else { return Ok(None) };
        let chunk = u64::from(chunk_size);
        if !is_chunk_size(chunk_size) || content.len == 0 || content.len.div_ceil(chunk) > CHUNKS_MAX {
            return Ok(None);
        }
        // Opened for each step: who asks the kernel whether somebody has it open means others.
        let mut hashes = Vec::new();
        let step = (8 << 20) / chunk.min(8 << 20) * chunk;
        let mut at = 0;
        while at < content.len {
            let len = step.min(content.len - at);
            let (lower, node) = (self.lower.clone(), cell.node);
            let read = blocking(move || {
                let flags = OpenFlags { read: true, no_atime: true, ..Default::default() };
                let file = lower.open(&node, flags)?;
                let mut bytes = vec![0; len as usize];
                let got = file.read_at(&mut bytes, at)?;
                Ok((got == bytes.len()).then(|| bytes.chunks(chunk as usize).map(ContentHash::of).collect::<Vec<_>>()))
            });
            let Some(step) = read.await?.map_err(EngineError::lower(cell.node.id))? else { return Ok(None) };
            hashes.extend(step);
            if !self.is_published(cell, generation) {
                return Ok(None);
            }
            at += len;
        }
        let manifest = Manifest::new(content.len, chunk_size, hashes);
        Ok(manifest.ok().map(|manifest| Bytes::from(manifest.encode())))
    }
}
