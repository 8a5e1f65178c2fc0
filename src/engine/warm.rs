//! Lower files that stay open, and registered with the kernel, for a moment after their last close: what was opened once is often opened
//! again, and then needs neither an open below nor a registration.
//!
//! Invariant: only files open for reading are kept, never one whose last name is gone, and none while the engine asks the kernel whether
//! somebody has the file open (a lease): [`Warm::let_go`] comes first.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::ports::LowerFile;
use crate::types::FileId;

/// How long a file is kept. A file removed below the mount keeps its blocks no longer than twice this and one [`SWEEP`] after its last close.
const KEEP: Duration = Duration::from_secs(2);
const SWEEP: Duration = Duration::from_secs(1);
/// Files kept at most; each is a descriptor of the daemon's and an open file of the kernel's.
const WARM_MAX: usize = 2048;

/// A lower file that the kernel may be given again.
#[derive(Clone)]
pub struct WarmFile {
    pub file: Arc<dyn LowerFile>,
    /// What the kernel gave for it; opaque here.
    pub backing: Arc<dyn Any + Send + Sync>,
    /// When it was last seen to have a name.
    pub named_at: Instant,
}

impl WarmFile {
    /// A file to be kept, unless its last name is gone. `named_at`: when it was last seen to have one, if ever: that holds for [`KEEP`], so that what is
    /// opened again and again is not looked at each time. Who removes it through the mount tells it besides ([`Warm::let_go`]).
    pub fn if_named(
        file: Arc<dyn LowerFile>,
        backing: Arc<dyn Any + Send + Sync>,
        named_at: Option<Instant>,
    ) -> Option<Self> {
        let named_at = match named_at {
            Some(at) if at.elapsed() < KEEP => at,
            _ => file.stat().is_ok_and(|attr| attr.nlink > 0).then(Instant::now)?,
        };
        Some(Self { file, backing, named_at })
    }
}

#[derive(Default)]
struct Files {
    by_id: HashMap<FileId, (WarmFile, Instant)>,
    /// Oldest first; an entry whose file was taken meanwhile, or put again later, means nothing.
    order: VecDeque<(FileId, Instant)>,
    swept: bool,
}

/// The files kept.
pub struct Warm {
    files: Mutex<Files>,
    runtime: Handle,
}

impl Warm {
    pub(super) fn new(runtime: Handle) -> Arc<Self> {
        Arc::new(Self { files: Mutex::default(), runtime })
    }

    /// Files kept just now.
    pub fn count(&self) -> usize {
        self.files.lock().by_id.len()
    }

    /// Takes a file out, to be opened again.
    pub fn take(&self, id: FileId) -> Option<WarmFile> {
        self.files.lock().by_id.remove(&id).map(|(file, _)| file)
    }

    /// Closes a file if it is kept.
    pub fn let_go(&self, id: FileId) {
        // Closed after the lock is given back: it reaches into the kernel.
        let _closed = self.take(id);
    }

    /// Keeps a file, and closes the oldest where there are too many.
    pub fn put(self: &Arc<Self>, id: FileId, file: WarmFile) {
        let now = Instant::now();
        let (_replaced, _oldest, start) = {
            let mut files = self.files.lock();
            let replaced = files.by_id.insert(id, (file, now));
            files.order.push_back((id, now));
            let oldest = if files.by_id.len() > WARM_MAX { files.remove_oldest() } else { None };
            (replaced, oldest, !std::mem::replace(&mut files.swept, true))
        };
        if start {
            self.runtime.spawn(sweep(Arc::downgrade(self)));
        }
    }
}

impl Files {
    fn remove_oldest(&mut self) -> Option<WarmFile> {
        while let Some((id, since)) = self.order.pop_front() {
            if self.by_id.get(&id).is_some_and(|(_, at)| *at == since) {
                return self.by_id.remove(&id).map(|(file, _)| file);
            }
        }
        None
    }

    /// Takes out what is older than `limit`.
    fn expired(&mut self, limit: Instant) -> Vec<WarmFile> {
        let mut expired = Vec::new();
        while self.order.front().is_some_and(|(_, since)| *since <= limit) {
            let Some((id, since)) = self.order.pop_front() else { break };
            if self.by_id.get(&id).is_some_and(|(_, at)| *at == since) {
                expired.extend(self.by_id.remove(&id).map(|(file, _)| file));
            }
        }
        expired
    }
}

/// Closes what is kept for too long, until nothing is kept any more.
async fn sweep(warm: Weak<Warm>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(warm) = warm.upgrade() else { return };
        let (expired, done) = {
            let mut files = warm.files.lock();
            let expired = Instant::now().checked_sub(KEEP).map(|limit| files.expired(limit)).unwrap_or_default();
            files.swept = !files.order.is_empty();
            (expired, !files.swept)
        };
        drop(expired);
        if done {
            return;
        }
    }
}
