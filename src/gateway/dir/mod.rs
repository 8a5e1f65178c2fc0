//! The store over a bare directory: objects are files, their metadata is in xattrs, the index is in memory.
//!
//! [`layout`] tells where things are, [`commit`] in which order they become durable, [`recover`] what a start makes of
//! what a crash left. Needs a filesystem with `user.*` xattrs; one server at a time holds a directory.

mod commit;
mod content;
mod index;
mod layout;
mod record;
mod recover;
mod staged;
mod trash;
mod uploads;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use parking_lot::RwLock;
use tokio::sync::oneshot;

use super::blocking;
use super::store::*;
use crate::types::Timestamp;
use commit::{Job, Queue, RemoveJob};
use index::{Index, Object};
use layout::{HeadName, Layout};
use record::ObjectRecord;
use trash::Trash;

/// A directory that cannot be served. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{0} is not a directory; name a directory, or a path where one can be made")]
    NotADirectory(PathBuf),
    #[error("cannot write to {path}: {source}")]
    NotWritable { path: PathBuf, source: io::Error },
    #[error(
        "the filesystem of {path} does not keep user xattrs ({source}); use one that does, such as ext4, xfs or btrfs"
    )]
    NoXattrs { path: PathBuf, source: io::Error },
    #[error("{0} is being served by another process; stop that one or use another directory")]
    InUse(PathBuf),
    #[error("{path} was written by another version of this program (format {found:?}); use a fresh directory")]
    Format { path: PathBuf, found: String },
    #[error("cannot read {path}: {source}")]
    Unreadable { path: PathBuf, source: io::Error },
}

/// What the threads and requests of one store share.
pub struct Shared {
    layout: Layout,
    /// Open for `syncfs`, since the store was opened: it reports write-back errors of that time.
    root: File,
    index: RwLock<Index>,
    queue: Queue,
    trash: Trash,
    buffers: Arc<content::Buffers>,
    last_version: AtomicU64,
    poisoned: AtomicBool,
}

impl Shared {
    /// A number no earlier call has given, nor any run before: the wall clock in microseconds, made to rise.
    fn next_version(&self) -> u64 {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64);
        let rise = |last: u64| Some(clock.max(last + 1));
        let last = self.last_version.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rise);
        clock.max(last.unwrap_or_default() + 1)
    }

    fn submit(&self, job: Job) -> StoreResult<()> {
        self.queue.push(job)
    }

    /// Refuses all further writes: what is on stable storage is unknown until the next start reads it.
    fn poison(&self, what: &str, error: &dyn std::fmt::Display) {
        self.poisoned.store(true, Ordering::Release);
        tracing::error!(dir = %self.layout.root().display(), %error, "{what} failed; writes are refused until a restart");
    }

    /// Runs `work` on the committing thread, with no other change in flight.
    async fn solo<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let (reply, answer) = oneshot::channel();
        self.submit(Job::Solo(Box::new(move |shared| {
            // A caller that went away needs no answer.
            let _ = reply.send(work(shared));
        })))?;
        answer.await.map_err(|_| {
            if self.poisoned.load(Ordering::Acquire) { StoreError::Poisoned } else { StoreError::Closed }
        })?
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp { secs: since.as_secs() as i64, nanos: since.subsec_nanos() }
}

fn io_error(op: &'static str, path: &Path, source: io::Error) -> StoreError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full(path.display().to_string()),
        _ => StoreError::Io { op, path: path.display().to_string(), source },
    }
}

/// The store over a bare directory.
pub struct DirStore {
    shared: Arc<Shared>,
    committer: Option<thread::JoinHandle<()>>,
    /// Holds the lock on the directory.
    _lock: File,
}

impl DirStore {
    /// Serves `dir`, which is made if it is missing. Blocks while it reads what is there (100,000 objects take a second
    /// or two) and clears away what a crash left.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let layout = Layout::new(dir.to_owned());
        let lock = recover::claim(&layout)?;
        let unreadable = |source| OpenError::Unreadable { path: dir.to_owned(), source };
        let root = File::open(dir).map_err(unreadable)?;
        let trash = Trash::start().map_err(unreadable)?;
        let (index, last_version) = recover::load(&layout, &trash)?;
        let shared = Arc::new(Shared {
            layout,
            root,
            index: RwLock::new(index),
            queue: Queue::default(),
            trash,
            buffers: Arc::default(),
            last_version: AtomicU64::new(last_version),
            poisoned: AtomicBool::new(false),
        });
        let committer = thread::Builder::new().name("gateway-commit".into()).spawn({
            let shared = shared.clone();
            move || commit::run(&shared)
        });
        Ok(Self { shared, committer: Some(committer.map_err(unreadable)?), _lock: lock })
    }

    fn object(&self, bucket: &str, key: &str) -> StoreResult<Arc<Object>> {
        self.shared.index.read().object(bucket, key).cloned()
    }
}

impl Drop for DirStore {
    fn drop(&mut self) {
        // Queued writes are finished before the lock on the directory is given back.
        self.shared.queue.close();
        if let Some(committer) = self.committer.take() {
            let _ = committer.join();
        }
    }
}

#[async_trait]
impl Store for DirStore {
    async fn create_bucket(&self, bucket: &str) -> StoreResult<()> {
        let name = bucket.to_owned();
        self.shared.solo(move |shared| create_bucket(shared, &name)).await
    }

    async fn bucket(&self, bucket: &str) -> StoreResult<BucketInfo> {
        let created = self.shared.index.read().bucket(bucket)?.created;
        Ok(BucketInfo { name: bucket.to_owned(), created })
    }

    async fn buckets(&self) -> StoreResult<Vec<BucketInfo>> {
        Ok(self.shared.index.read().buckets())
    }

    async fn remove_bucket(&self, bucket: &str) -> StoreResult<()> {
        let name = bucket.to_owned();
        self.shared.solo(move |shared| remove_bucket(shared, &name)).await
    }

    async fn stage(&self, bucket: &str, target: Target) -> StoreResult<Box<dyn Upload>> {
        if self.shared.poisoned.load(Ordering::Acquire) {
            return Err(StoreError::Poisoned);
        }
        let index = self.shared.index.read();
        match &target {
            Target::Object { .. } => drop(index.bucket(bucket)?),
            Target::Part { key, upload, .. } => drop(index.upload(bucket, key, upload)?),
        }
        drop(index);
        Ok(Box::new(staged::DirUpload::new(self.shared.clone(), bucket.to_owned(), target)))
    }

    async fn head(&self, bucket: &str, key: &str) -> StoreResult<Arc<ObjectInfo>> {
        Ok(self.object(bucket, key)?.info.clone())
    }

    async fn open(&self, bucket: &str, key: &str) -> StoreResult<(Arc<ObjectInfo>, Arc<dyn Content>)> {
        let object = self.object(bucket, key)?;
        let head = self.shared.layout.head(bucket, &HeadName::new(key, object.version));
        Ok((object.info.clone(), Arc::new(content::DirContent::new(self.shared.clone(), object, head))))
    }

    async fn remove(&self, bucket: &str, key: &str, if_match: Option<EtagMatch>) -> StoreResult<()> {
        let (reply, answer) = oneshot::channel();
        let job = RemoveJob { bucket: bucket.to_owned(), key: key.to_owned(), if_match, reply };
        self.shared.submit(Job::Remove(job))?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    async fn list(&self, bucket: &str, query: &ListQuery) -> StoreResult<ListPage> {
        Ok(index::list(&self.shared.index.read().bucket(bucket)?.objects, query))
    }

    async fn set_tags(&self, bucket: &str, key: &str, tags: Vec<(String, String)>) -> StoreResult<()> {
        let (bucket, key) = (bucket.to_owned(), key.to_owned());
        self.shared.solo(move |shared| set_tags(shared, &bucket, &key, tags)).await
    }

    async fn create_upload(&self, bucket: &str, upload: NewUpload) -> StoreResult<UploadId> {
        let bucket = bucket.to_owned();
        self.shared.solo(move |shared| uploads::create(shared, &bucket, upload)).await
    }

    async fn uploads(&self, bucket: &str, prefix: &str) -> StoreResult<Vec<Arc<UploadInfo>>> {
        uploads::list(&self.shared, bucket, prefix)
    }

    async fn upload(&self, bucket: &str, key: &str, upload: &UploadId) -> StoreResult<Arc<UploadInfo>> {
        Ok(self.shared.index.read().upload(bucket, key, upload)?.info.clone())
    }

    async fn parts(&self, bucket: &str, key: &str, upload: &UploadId) -> StoreResult<(Arc<UploadInfo>, Vec<PartInfo>)> {
        let index = self.shared.index.read();
        let upload = index.upload(bucket, key, upload)?;
        Ok((upload.info.clone(), upload.parts.values().cloned().collect()))
    }

    async fn complete(
        &self,
        bucket: &str,
        key: &str,
        upload: &UploadId,
        parts: Vec<PartInfo>,
        seal: Seal,
    ) -> StoreResult<Arc<ObjectInfo>> {
        let (bucket, key, upload) = (bucket.to_owned(), key.to_owned(), upload.clone());
        self.shared.solo(move |shared| uploads::complete(shared, &bucket, &key, &upload, parts, seal)).await
    }

    async fn abort(&self, bucket: &str, key: &str, upload: &UploadId) -> StoreResult<()> {
        let (bucket, key, upload) = (bucket.to_owned(), key.to_owned(), upload.clone());
        self.shared.solo(move |shared| uploads::abort(shared, &bucket, &key, &upload)).await
    }
}

/// Makes a bucket: its directory appears whole, since a start takes every directory for a bucket.
fn create_bucket(shared: &Shared, bucket: &str) -> StoreResult<()> {
    if shared.index.read().buckets.contains_key(bucket) {
        return Err(StoreError::BucketExists(bucket.to_owned()));
    }
    let staged = shared.layout.staging().join(format!("{:016x}", shared.next_version()));
    let path = shared.layout.bucket(bucket);
    let make = || {
        fs::create_dir(&staged)?;
        fs::create_dir(staged.join("objects"))?;
        fs::create_dir(staged.join("uploads"))?;
        commit::sync_dir(&staged)?;
        fs::rename(&staged, &path)?;
        commit::sync_dir(shared.layout.root())
    };
    make().map_err(|e| io_error("make bucket", &path, e))?;
    let created = index::Bucket { created: now(), ..Default::default() };
    shared.index.write().buckets.insert(bucket.to_owned(), created);
    Ok(())
}

fn remove_bucket(shared: &Shared, bucket: &str) -> StoreResult<()> {
    {
        let mut index = shared.index.write();
        let found = index.bucket(bucket)?;
        if !found.objects.is_empty() || !found.uploads.is_empty() {
            return Err(StoreError::BucketNotEmpty(bucket.to_owned()));
        }
        index.buckets.remove(bucket);
    }
    let path = shared.layout.bucket(bucket);
    let aside = shared.layout.trash().join(format!("{:016x}", shared.next_version()));
    fs::rename(&path, &aside).map_err(|e| io_error("remove bucket", &path, e))?;
    commit::sync_dir(shared.layout.root()).map_err(|e| io_error("sync", shared.layout.root(), e))?;
    shared.trash.discard(aside);
    Ok(())
}

fn set_tags(shared: &Shared, bucket: &str, key: &str, tags: Vec<(String, String)>) -> StoreResult<()> {
    let object = shared.index.read().object(bucket, key)?.clone();
    let info = ObjectInfo { tags, ..(*object.info).clone() };
    let parts = object.extents.as_ref().map_or_else(Vec::new, |extents| extents.parts.clone());
    let head = shared.layout.head(bucket, &HeadName::new(key, object.version));
    let staging = shared.layout.staging().join(format!("{:016x}", shared.next_version()));
    let stored = ObjectRecord { info, parts };
    record::replace(&head, &staging, &stored).map_err(|e| io_error("record", &head, e))?;
    let tagged = Object { info: Arc::new(stored.info), version: object.version, extents: object.extents.clone() };
    shared.index.write().bucket_mut(bucket)?.objects.insert(key.to_owned(), Arc::new(tagged));
    Ok(())
}
