//! The content of a lower file as the source of an upload, hashed on its way.
//!
//! Invariant: the hash kept of a chunk is of the bytes that were handed out last. If two reads of one range differ, the file changed,
//! and the check at the commit throws the copy away.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::blocking;
use super::hands::Hands;
use crate::kill;
use crate::ports::{LowerFile, ObjectSource, SourceError};
use crate::remote::manifest::Manifest;
use crate::types::{ByteRange, ContentHash};

/// A file being copied out.
pub struct HashingSource {
    file: Arc<dyn LowerFile>,
    len: u64,
    chunk_size: u32,
    hashes: Mutex<Vec<Option<ContentHash>>>,
}

impl HashingSource {
    /// `len` bytes of `file`, hashed by chunks of `chunk_size` bytes.
    pub fn new(file: Arc<dyn LowerFile>, len: u64, chunk_size: u32) -> Arc<Self> {
        let chunks = len.div_ceil(u64::from(chunk_size)) as usize;
        Arc::new(Self { file, len, chunk_size, hashes: Mutex::new(vec![None; chunks]) })
    }

    /// The manifest of what was handed out; `None` unless all of it was.
    pub fn manifest(&self) -> Option<Manifest> {
        let hashes = self.hashes.lock().iter().copied().collect::<Option<Vec<_>>>()?;
        Manifest::new(self.len, self.chunk_size, hashes).ok()
    }

    /// All of a small file.
    pub(super) async fn whole(&self, hands: &Arc<Hands>) -> Result<Bytes, SourceError> {
        let all = ByteRange { offset: 0, len: self.len };
        let read = hands.run(self.reading(all)).await.map_err(|error| SourceError(error.to_string()))?;
        self.keep(all, read)
    }

    /// Reads whole chunks, and hashes them while they are in the processor's cache.
    fn reading(&self, range: ByteRange) -> impl FnOnce() -> ReadChunks + Send + 'static {
        let (file, chunk_size) = (self.file.clone(), self.chunk_size as usize);
        move || {
            let mut buffer = vec![0; range.len as usize];
            let got = file.read_at(&mut buffer, range.offset).map_err(|error| error.to_string())?;
            if got != buffer.len() {
                return Err("the file became shorter".to_owned());
            }
            let hashes: Vec<_> = buffer.chunks(chunk_size).map(ContentHash::of).collect();
            Ok((buffer, hashes))
        }
    }

    fn keep(&self, range: ByteRange, read: ReadChunks) -> Result<Bytes, SourceError> {
        let (buffer, hashes) = read.map_err(SourceError)?;
        kill::point("archive.read");
        let first = (range.offset / u64::from(self.chunk_size)) as usize;
        for (slot, hash) in self.hashes.lock()[first..].iter_mut().zip(hashes) {
            *slot = Some(hash);
        }
        Ok(buffer.into())
    }
}

/// What was read, with the hash of each chunk; or why it was not.
type ReadChunks = Result<(Vec<u8>, Vec<ContentHash>), String>;

#[async_trait]
impl ObjectSource for HashingSource {
    async fn read(&self, range: ByteRange) -> Result<Bytes, SourceError> {
        let chunk_size = u64::from(self.chunk_size);
        let whole = range.len.is_multiple_of(chunk_size) || range.end() == self.len;
        if !range.offset.is_multiple_of(chunk_size) || !whole {
            return Err(SourceError(format!(
                "a part of {}+{} does not consist of whole chunks",
                range.offset, range.len
            )));
        }
        let read = blocking(self.reading(range)).await.map_err(|error| SourceError(error.to_string()))?;
        self.keep(range, read)
    }
}

/// Bytes in memory as the source of an upload: manifests.
pub struct MemorySource(pub Bytes);

#[async_trait]
impl ObjectSource for MemorySource {
    async fn read(&self, range: ByteRange) -> Result<Bytes, SourceError> {
        let (from, to) = (range.offset as usize, range.end() as usize);
        if to > self.0.len() {
            return Err(SourceError("a range past the end of the buffer".into()));
        }
        Ok(self.0.slice(from..to))
    }
}
