//! Content on its way out: opened at the first read, read in blocks from a small pool of buffers.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::super::store::{Content, StoreError, StoreResult};
use super::index::Object;
use super::{Shared, io_error};

/// Size of a pooled buffer and so of the largest read, bytes.
pub const BLOCK_BYTES: usize = 256 << 10;
/// Reads up to this length get a buffer of their own: cheaper than a pooled one that outlives them half empty.
const SMALL_READ_BYTES: usize = 96 << 10;
/// Most idle buffers kept.
const BUFFERS_MAX: usize = 64;

/// Buffers that were filled once already: a fresh one costs a page fault per 4 KiB.
#[derive(Debug, Default)]
pub struct Buffers {
    idle: Mutex<Vec<Box<[u8]>>>,
}

/// A filled block; its buffer goes back to the pool.
struct Block {
    buffer: Box<[u8]>,
    len: usize,
    pool: Arc<Buffers>,
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut idle = self.pool.idle.lock();
        if idle.len() < BUFFERS_MAX {
            idle.push(std::mem::take(&mut self.buffer));
        }
    }
}

/// The file read last: index of the part (0 for the head).
type OpenFile = (usize, Arc<File>);

/// A reader of one version of an object.
pub struct DirContent {
    shared: Arc<Shared>,
    object: Arc<Object>,
    /// The object's own file; unused if the bytes are in parts.
    head: PathBuf,
    open: Arc<Mutex<Option<OpenFile>>>,
}

impl DirContent {
    pub fn new(shared: Arc<Shared>, object: Arc<Object>, head: PathBuf) -> Self {
        Self { shared, object, head, open: Arc::default() }
    }
}

#[async_trait]
impl Content for DirContent {
    async fn read(&self, offset: u64, len_max: usize) -> StoreResult<Bytes> {
        let (at, path, within, left) = match &self.object.extents {
            None => (0, self.head.clone(), offset, self.object.info.size.saturating_sub(offset)),
            Some(extents) => extents
                .locate(offset)
                .ok_or_else(|| StoreError::Corrupt(format!("{}: no extent at {offset}", self.object.info.key)))?,
        };
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(len_max).min(BLOCK_BYTES);
        let own = self.object.extents.is_none();
        let (open, pool) = (self.open.clone(), self.shared.buffers.clone());
        super::blocking(move || {
            let cached = open.lock().as_ref().filter(|(open_at, _)| *open_at == at).map(|(_, file)| file.clone());
            let file = match cached {
                Some(file) => file,
                None => {
                    let file = Arc::new(File::open(&path).map_err(|e| match e.kind() {
                        // The object was replaced; part files, on the other hand, wait for their readers.
                        io::ErrorKind::NotFound if own => StoreError::Gone,
                        _ => io_error("open", &path, e),
                    })?);
                    *open.lock() = Some((at, file.clone()));
                    file
                }
            };
            if len <= SMALL_READ_BYTES {
                let mut buffer = vec![0; len];
                file.read_exact_at(&mut buffer, within).map_err(|e| io_error("read", &path, e))?;
                return Ok(buffer.into());
            }
            let buffer = pool.idle.lock().pop().unwrap_or_else(|| vec![0; BLOCK_BYTES].into_boxed_slice());
            let mut block = Block { buffer, len, pool };
            file.read_exact_at(&mut block.buffer[..len], within).map_err(|e| io_error("read", &path, e))?;
            Ok(Bytes::from_owner(block))
        })
        .await
    }
}
