//! Content on its way out, through [`Fs`] like any reader's: what is not here is recalled, the range that is asked for first.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use super::acting::Acting;
use super::error::About;
use super::key::Key;
use crate::engine::Patience;
use crate::fs::{Fs, FsError, FsResult, Try, Waiter};
use crate::gateway::blocking;
use crate::gateway::store::{Content, ObjectInfo, StoreError, StoreResult};
use crate::ports::Attr;
use crate::types::Inode;

/// Makes attempts until one ends; between them waits for what it waits for. Nobody's process is known, so only the client's leaving ends
/// it: then the future is dropped.
async fn drive<T: Send + 'static>(
    fs: &Arc<Fs>,
    attempt: impl Fn(&Fs, Patience) -> Try<T> + Clone + Send + 'static,
) -> FsResult<T> {
    let waiter = Waiter { pid: 0, since: Instant::now() };
    // The first as for the mount's users: a small stub is recalled when it is opened.
    let mut patience = Patience::None;
    loop {
        let (on, attempt) = (fs.clone(), attempt.clone());
        let tried = tokio::task::spawn_blocking(move || attempt(&on, patience)).await;
        match tried.map_err(|_| FsError::Engine(crate::engine::EngineError::ShuttingDown))? {
            Try::Done(result) => return result,
            Try::Blocked(blocker) => fs.unblock(blocker, waiter).await?,
        }
        patience = Patience::Disk;
    }
}

/// An open file.
pub struct ShareContent {
    fs: Arc<Fs>,
    key: String,
    node: Inode,
    fh: u64,
    /// What was opened: size and mtime.
    opened: Attr,
}

impl Drop for ShareContent {
    fn drop(&mut self) {
        // A handle that is not there any more needs no closing.
        let _ = self.fs.release(self.fh);
    }
}

/// A directory has no content.
struct Nothing;

#[async_trait]
impl Content for Nothing {
    async fn read(&self, _: u64, _: usize) -> StoreResult<Bytes> {
        Err(StoreError::Gone)
    }
}

impl Acting {
    pub async fn open(self, key: Key) -> StoreResult<(Arc<ObjectInfo>, Arc<dyn Content>)> {
        let (acting, for_key) = (self.clone(), key.clone());
        let found = blocking(move || {
            let (_, seen) = acting.find_readable(&for_key)?;
            Ok((seen, acting.info(&for_key, &seen)?))
        });
        let (seen, info) = found.await?;
        let info = Arc::new(info);
        if key.is_dir || info.size == 0 {
            return Ok((info, Arc::new(Nothing)));
        }
        let fs = self.shared.fs.clone();
        let node = seen.node;
        let fh = drive(&fs, move |fs, patience| fs.try_open_inside(&node, patience)).await.about(key.as_str())?;
        let mut content = ShareContent { fs: fs.clone(), key: key.as_str().to_owned(), node, fh, opened: seen.attr };
        // As shown: a recall at the open has moved the time below.
        content.opened = blocking(move || fs.attr_of(&node).about("")).await?;
        if (content.opened.size, content.opened.mtime) != (info.size, info.modified) {
            // Changed since the look; the reader finds out at its first read, and looks again.
            content.opened.size = info.size;
            content.opened.mtime = info.modified;
        }
        Ok((info, Arc::new(content)))
    }
}

#[async_trait]
impl Content for ShareContent {
    async fn read(&self, offset: u64, len_max: usize) -> StoreResult<Bytes> {
        let (fh, len) = (self.fh, u32::try_from(len_max).unwrap_or(u32::MAX));
        let read = drive(&self.fs, move |fs, _| fs.try_read(fh, offset, len)).await.about(&self.key)?;
        // Writers of the mount write in place. What was read of a file that has changed is of no version, and must not look whole.
        let (fs, node) = (self.fs.clone(), self.node);
        let now = blocking(move || fs.attr_of(&node).about("")).await?;
        if read.is_empty() || (now.size, now.mtime) != (self.opened.size, self.opened.mtime) {
            return Err(StoreError::Gone);
        }
        Ok(Bytes::from(read))
    }
}
