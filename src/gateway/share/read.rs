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
use crate::types::{Inode, Timestamp};

/// Makes attempts until one ends; between them waits for what it waits for. Nobody's process is known, so only the client's leaving ends
/// it: then the future is dropped.
async fn drive<T: Send + 'static>(
    fs: &Arc<Fs>,
    uid: u32,
    attempt: impl Fn(&Fs, Patience) -> Try<T> + Clone + Send + 'static,
) -> FsResult<T> {
    let waiter = Waiter { pid: 0, uid, since: Instant::now() };
    // The first as for the mount's users: a small stub is recalled when it is opened.
    let mut patience = Patience::None;
    let mut taken = None;
    loop {
        let (on, attempt) = (fs.clone(), attempt.clone());
        let tried = tokio::task::spawn_blocking(move || attempt(&on, patience)).await;
        match tried.map_err(|_| FsError::Engine(crate::engine::EngineError::ShuttingDown))? {
            Try::Done(result) => return result,
            Try::Blocked(blocker) => {
                // What was taken for an attempt goes when it is over.
                drop(taken.take());
                taken = fs.unblock(blocker, waiter).await?;
            }
        }
        patience = Patience::Disk;
    }
}

/// An open handle. Made where it is opened, so that one whose client has left is closed as well.
struct Handle {
    fs: Arc<Fs>,
    fh: u64,
}

impl Drop for Handle {
    fn drop(&mut self) {
        // A handle that is not there any more needs no closing.
        let _ = self.fs.release(self.fh);
    }
}

/// An open file.
struct ShareContent {
    handle: Handle,
    key: String,
    uid: u32,
    node: Inode,
    /// What was found: size and mtime.
    found: (u64, Timestamp),
}

/// A directory, or an empty file: never read.
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
            Ok((seen.node, acting.info(&for_key, &seen)?))
        });
        let (node, info) = found.await?;
        let info = Arc::new(info);
        if key.is_dir || info.size == 0 {
            return Ok((info, Arc::new(Nothing)));
        }
        let fs = self.shared.fs.clone();
        let (owned, uid) = (fs.clone(), self.user().uid);
        let open =
            move |fs: &Fs, patience| fs.try_open_inside(&node, patience).map(|fh| Handle { fs: owned.clone(), fh });
        let handle = drive(&fs, uid, open).await.about(key.as_str())?;
        let found = (info.size, info.modified);
        Ok((info, Arc::new(ShareContent { handle, key: key.as_str().to_owned(), uid, node, found })))
    }
}

#[async_trait]
impl Content for ShareContent {
    async fn read(&self, offset: u64, len_max: usize) -> StoreResult<Bytes> {
        let (fh, node, len) = (self.handle.fh, self.node, u32::try_from(len_max).unwrap_or(u32::MAX));
        let read = move |fs: &Fs, _| match fs.try_read(fh, offset, len) {
            Try::Done(read) => Try::Done(read.and_then(|read| Ok((read, fs.attr_of(&node)?)))),
            Try::Blocked(blocker) => Try::Blocked(blocker),
        };
        let (read, now) = drive(&self.handle.fs, self.uid, read).await.about(&self.key)?;
        // Writers of the mount write in place. What was read of a file that has changed is of no version, and must not look whole.
        if read.is_empty() || (now.size, now.mtime) != self.found {
            return Err(StoreError::Gone);
        }
        Ok(read)
    }
}
