//! How requests are carried through: attempts, replies, registration of lower files.

use std::future::Future;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{BackingId, Errno, FileAttr, FileType, INodeNo, ReplyCreate, ReplyEmpty, ReplyOpen, ReplyXattr, Request};
use tokio::time::Instant;

use super::adapter::Adapter;
use super::errno::errno;
use crate::engine::Patience;
use crate::fs::{Blocker, Fs, FsError, FsResult, Noted, Patiently, Register, Removal, Service, Try, Waiter};
use crate::ports::Caller;

/// Registers lower files with the kernel through the reply at hand.
impl Register for ReplyOpen {
    fn register(&self, file: BorrowedFd<'_>) -> io::Result<Arc<dyn std::any::Any + Send + Sync>> {
        Ok(Arc::new(self.open_backing(file)?))
    }
}

impl Register for ReplyCreate {
    fn register(&self, file: BorrowedFd<'_>) -> io::Result<Arc<dyn std::any::Any + Send + Sync>> {
        Ok(Arc::new(self.open_backing(file)?))
    }
}

pub(super) fn caller(request: &Request, umask: u32) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid(), umask }
}

pub(super) fn finish_empty(reply: ReplyEmpty, result: FsResult<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(&error)),
    }
}

/// The backing of a handle the kernel serves; `None`: the daemon does.
pub(super) fn backing(service: &Service) -> Option<&BackingId> {
    match service {
        Service::Kernel(backing) => backing.downcast_ref(),
        Service::Daemon => None,
    }
}

/// What a request waits for before its next attempt.
pub(super) enum Wait {
    Over(Blocker),
    /// Room, after this.
    Room(FsError),
}

pub(super) enum Next<T> {
    Finish(FsResult<T>),
    Wait(Wait),
}

impl Fs {
    pub(super) fn next<T>(&self, attempted: Try<T>) -> Next<T> {
        match attempted {
            Try::Done(Err(error)) if self.is_for_room(&error) => Next::Wait(Wait::Room(error)),
            Try::Done(result) => Next::Finish(result),
            Try::Blocked(blocker) => Next::Wait(Wait::Over(blocker)),
        }
    }
}

impl Adapter {
    /// Makes attempts until one ends: the first at once, later ones in a task, after what blocked it is over, on a thread that
    /// may wait for the disk.
    pub(super) fn drive<R: Send + Sync + 'static, T: Send + 'static>(
        &self,
        request: &Request,
        reply: R,
        attempt: impl FnMut(&Fs, &R, Patience) -> Try<T> + Send + 'static,
        finish: impl FnOnce(R, FsResult<T>) + Send + 'static,
    ) {
        self.drive_for(request, 0, reply, attempt, finish);
    }

    /// The same for a request that needs room for `bytes`, if it fails for want of it.
    pub(super) fn drive_for<R: Send + Sync + 'static, T: Send + 'static>(
        &self,
        request: &Request,
        bytes: u64,
        reply: R,
        mut attempt: impl FnMut(&Fs, &R, Patience) -> Try<T> + Send + 'static,
        finish: impl FnOnce(R, FsResult<T>) + Send + 'static,
    ) {
        match self.fs.next(attempt(&self.fs, &reply, Patience::None)) {
            Next::Finish(result) => finish(reply, result),
            Next::Wait(wait) => self.drive_on(request, wait, bytes, reply, |_| None, attempt, finish),
        }
    }

    /// Goes on after a first attempt that has to wait before the next one. `at_hand`: what can be answered without a thread that may wait
    /// for the disk.
    #[expect(clippy::too_many_arguments, reason = "the facts of one request, used once")]
    pub(super) fn drive_on<R: Send + Sync + 'static, T: Send + 'static>(
        &self,
        request: &Request,
        mut wait: Wait,
        bytes: u64,
        reply: R,
        at_hand: impl Fn(&Fs) -> Option<T> + Send + 'static,
        attempt: impl FnMut(&Fs, &R, Patience) -> Try<T> + Send + 'static,
        finish: impl FnOnce(R, FsResult<T>) + Send + 'static,
    ) {
        let fs = self.fs.clone();
        let waiter = Waiter { pid: request.pid(), uid: request.uid(), since: Instant::now() };
        let (mut asked, mut patiently) = ((reply, attempt), Patiently::default());
        self.fs.engine.runtime.spawn(async move {
            loop {
                // What was taken for the attempt stays until it is over.
                let (full, _taken) = match wait {
                    Wait::Over(blocker) => match fs.unblock(blocker, waiter).await {
                        Ok(taken) => (None, taken),
                        Err(error) => (Some(error), None),
                    },
                    Wait::Room(error) => (Some(error), None),
                };
                if let Some(error) = full
                    && !fs.wait_for_room(&error, bytes, waiter, &mut patiently).await
                {
                    return finish(asked.0, Err(error));
                }
                if let Some(ready) = at_hand(&fs) {
                    return finish(asked.0, Ok(ready));
                }
                let fs = fs.clone();
                let attempted = tokio::task::spawn_blocking(move || {
                    let (reply, mut attempt) = asked;
                    let result = fs.next(attempt(&fs, &reply, Patience::Disk));
                    (result, (reply, attempt))
                });
                // A panic or the end of the runtime drops the reply, and that answers EIO.
                let Ok((result, back)) = attempted.await else { return };
                asked = back;
                wait = match result {
                    Next::Finish(result) => return finish(asked.0, result),
                    Next::Wait(wait) => wait,
                };
            }
        });
    }

    /// Takes a name away: at once where that leaves nothing behind remotely, else in a task, after that is noted.
    pub(super) fn remove(
        &self,
        reply: ReplyEmpty,
        attempt: impl Fn(&Fs, &Noted) -> FsResult<Option<Removal>> + Send + Sync + 'static,
    ) {
        let removal = match attempt(&self.fs, &Noted::default()) {
            Ok(Some(removal)) => removal,
            removed => return finish_empty(reply, removed.map(drop)),
        };
        let fs = self.fs.clone();
        self.spawn(async move {
            let removed = fs.note_and_remove(removal, |noted| attempt(&fs, noted)).await;
            finish_empty(reply, removed);
        });
    }

    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.fs.engine.runtime.spawn(work);
    }
}

pub(super) fn reply_xattr(reply: ReplyXattr, size: u32, value: FsResult<Vec<u8>>) {
    match value {
        Err(error) => reply.error(errno(&error)),
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
    }
}

/// Attributes of nothing: for names that are not there, and entries without an inode.
pub(super) const NOTHING: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: SystemTime::UNIX_EPOCH,
    mtime: SystemTime::UNIX_EPOCH,
    ctime: SystemTime::UNIX_EPOCH,
    crtime: SystemTime::UNIX_EPOCH,
    kind: FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
    flags: 0,
};
