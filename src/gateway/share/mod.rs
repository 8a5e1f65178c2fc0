//! The store over a share and its engine: one bucket, whose keys are the paths of the share's files.
//!
//! ```text
//! key      which keys are paths            acting   a user at work: finding, making directories
//! read     content, recalled as it is read publish  new content takes a key's place
//! names    removing, renaming              list     keys in order
//! uploads  uploads in parts                staging  what has no key yet
//! meta     ETags, headers, tags            error    what failed
//! sync     messages of a metadata sync
//! peer     what a pair's other end asks
//! ```
//!
//! It is a user of [`Fs`] beside the kernel: stubs are recalled by reading, removals note what they leave, and the mount in the same process
//! is told. Permissions are the kernel's: see [`crate::lower::Share::walk_as`] and what follows it.

mod acting;
mod error;
mod key;
mod list;
mod meta;
mod names;
mod peer;
mod publish;
mod read;
mod staging;
mod sync;
mod uploads;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{Mutex, MutexGuard};

use super::blocking;
use super::identities::Identities;
use super::store::*;
use crate::fs::Fs;
use crate::lower::Share;
use crate::ports::{Lower, LowerError};
use crate::sync::Receiver;
use acting::Acting;
use error::About as _;
use key::Key;
pub use peer::HELLO;
use peer::is_attribute_call;

/// Locks for keys; two keys may share one.
const LOCKS: usize = 64;

/// Why a share cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    #[error("{0:?} cannot be a bucket's name: give it one of 3 to 63 lower-case letters, digits, dots and hyphens")]
    BadBucket(String),
    #[error("what the gateway left in the share's root cannot be cleared away: {0}")]
    Staging(#[from] LowerError),
}

/// What is served.
pub struct ShareOptions {
    pub fs: Arc<Fs>,
    /// The same that `fs` is over.
    pub share: Arc<Share>,
    pub bucket: String,
    pub identities: Arc<Identities>,
    /// `None`: the share takes part in no metadata sync.
    pub sync: Option<Arc<Receiver>>,
}

pub(super) struct Shared {
    fs: Arc<Fs>,
    share: Arc<Share>,
    bucket: String,
    identities: Arc<Identities>,
    sync: Option<Arc<Receiver>>,
    locks: [Mutex<()>; LOCKS],
}

impl Shared {
    /// Orders the changes of keys by S3 among themselves.
    async fn lock(&self, keys: &[&Key]) -> Vec<MutexGuard<'_, ()>> {
        let place = |key: &&Key| {
            let mut hasher = DefaultHasher::new();
            key.as_str().hash(&mut hasher);
            hasher.finish() as usize % LOCKS
        };
        let mut places: Vec<usize> = keys.iter().map(place).collect();
        // Always in the same order, or two could wait for each other.
        places.sort_unstable();
        places.dedup();
        let mut guards = Vec::new();
        for place in places {
            guards.push(self.locks[place].lock().await);
        }
        guards
    }
}

/// A share as a store. Without a user it refuses everything; [`Store::used_by`] gives one with.
pub struct ShareStore {
    shared: Arc<Shared>,
    user: Option<Acting>,
}

impl ShareStore {
    /// Clears away what a crash left. Blocks on local I/O.
    pub fn open(options: ShareOptions) -> Result<Self, ShareError> {
        let ShareOptions { fs, share, bucket, identities, sync } = options;
        if !s3s::path::check_bucket_name(&bucket) {
            return Err(ShareError::BadBucket(bucket));
        }
        let locks = std::array::from_fn(|_| Mutex::default());
        let shared = Arc::new(Shared { fs, share, bucket, identities, sync, locks });
        if !shared.fs.is_read_only() {
            shared.clear_staging()?;
            peer::clear_stages(&shared.share, shared.fs.engine.now())?;
        }
        Ok(Self { shared, user: None })
    }

    /// The bucket's name for a share unless another is given: its directory's.
    pub fn bucket_of(share: &Path) -> String {
        share.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn user(&self, bucket: &str) -> StoreResult<Acting> {
        let user = self.user.clone().ok_or_else(|| StoreError::Denied(bucket.to_owned()))?;
        if bucket == self.shared.bucket { Ok(user) } else { Err(StoreError::NoSuchBucket(bucket.to_owned())) }
    }

    fn key(&self, bucket: &str, key: &str) -> StoreResult<(Acting, Key)> {
        Ok((self.user(bucket)?, Key::parse(key)?))
    }

    fn about_bucket(&self) -> StoreResult<BucketInfo> {
        let root = self.shared.share.stat(&self.shared.share.root()).about("")?;
        Ok(BucketInfo { name: self.shared.bucket.clone(), created: root.btime })
    }
}

/// Does work to its end even if who asked for it has left: half of it would leave the mount untold.
async fn to_the_end<T: Send + 'static>(work: impl Future<Output = StoreResult<T>> + Send + 'static) -> StoreResult<T> {
    tokio::spawn(work).await.map_err(|_| StoreError::Closed)?
}

impl Acting {
    /// Ordinary tags only: the attribute calls are made by PutObjectTagging alone.
    fn check_tags(&self, tags: &[(String, String)]) -> StoreResult<()> {
        match tags.iter().find(|(name, _)| is_attribute_call(name)) {
            Some((name, _)) => Err(StoreError::Denied(format!("the tag {name}"))),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Store for ShareStore {
    fn used_by(&self, access_key: Option<&str>) -> Option<Arc<dyn Store>> {
        let shared = self.shared.clone();
        let identity = access_key.and_then(|key| shared.identities.get(key)).cloned();
        let user = identity.map(|identity| Acting::new(shared.clone(), Arc::new(identity)));
        Some(Arc::new(Self { shared, user }))
    }

    async fn create_bucket(&self, bucket: &str) -> StoreResult<()> {
        match self.user(bucket) {
            Ok(_) => Err(StoreError::BucketExists(bucket.to_owned())),
            Err(_) => Err(StoreError::Denied(format!("{bucket}: a share is one bucket, {}", self.shared.bucket))),
        }
    }

    async fn bucket(&self, bucket: &str) -> StoreResult<BucketInfo> {
        self.user(bucket)?;
        self.about_bucket()
    }

    async fn buckets(&self) -> StoreResult<Vec<BucketInfo>> {
        self.user(&self.shared.bucket)?;
        Ok(vec![self.about_bucket()?])
    }

    async fn remove_bucket(&self, bucket: &str) -> StoreResult<()> {
        self.user(bucket)?;
        Err(StoreError::Denied(format!("{bucket}: the bucket is the share")))
    }

    async fn stage(&self, bucket: &str, target: Target) -> StoreResult<Box<dyn Upload>> {
        match target {
            Target::Object { key } if peer::is_peer_key(&key) => self.user(bucket)?.begin_for_peer(&key).await,
            Target::Object { key } => {
                if let Some(message) = self.user(bucket)?.message(&key) {
                    return message;
                }
                let (acting, key) = self.key(bucket, &key)?;
                blocking(move || acting.begin(key)).await
            }
            Target::Part { key, upload, number } => {
                let acting = self.user(bucket)?;
                blocking(move || acting.begin_part(&key, &upload, number)).await
            }
        }
    }

    async fn head(&self, bucket: &str, key: &str) -> StoreResult<Arc<ObjectInfo>> {
        if peer::is_peer_key(key) {
            return Ok(self.user(bucket)?.open_for_peer(key).await?.0);
        }
        let (acting, key) = self.key(bucket, key)?;
        blocking(move || {
            let (_, seen) = acting.find_readable(&key)?;
            acting.info(&key, &seen).map(Arc::new)
        })
        .await
    }

    async fn open(&self, bucket: &str, key: &str) -> StoreResult<(Arc<ObjectInfo>, Arc<dyn Content>)> {
        if let Some(answer) = self.user(bucket)?.answer(key) {
            return answer;
        }
        if peer::is_peer_key(key) {
            return self.user(bucket)?.open_for_peer(key).await;
        }
        let (acting, key) = self.key(bucket, key)?;
        acting.open(key).await
    }

    async fn remove(&self, bucket: &str, key: &str, if_match: Option<EtagMatch>) -> StoreResult<()> {
        let (acting, key) = self.key(bucket, key)?;
        to_the_end(acting.remove(key, if_match)).await
    }

    async fn list(&self, bucket: &str, query: &ListQuery) -> StoreResult<ListPage> {
        let (acting, query) = (self.user(bucket)?, query.clone());
        blocking(move || acting.list(&query)).await
    }

    async fn set_tags(&self, bucket: &str, key: &str, tags: Vec<(String, String)>) -> StoreResult<()> {
        let (acting, key) = self.key(bucket, key)?;
        acting.check_tags(&tags)?;
        acting.check_writable()?;
        let shared = self.shared.clone();
        let _lock = shared.lock(&[&key]).await;
        blocking(move || {
            let (_, seen) = acting.find(&key)?;
            acting.check_may_write(&key, &seen)?;
            let meta = meta::Meta::load(acting.share(), &seen.node).with_tags(tags);
            meta.save(acting.share(), &seen.node)?;
            acting.share().sync_node(&seen.node).about(key.as_str())
        })
        .await
    }

    async fn attribute_call(
        &self,
        bucket: &str,
        key: &str,
        tags: Vec<(String, String)>,
        headers: AttributeHeaders,
    ) -> StoreResult<Option<String>> {
        let acting = self.user(bucket)?;
        acting.attribute_call(key.to_owned(), tags, headers).await.map(Some)
    }

    async fn rename(&self, bucket: &str, from: &str, to: &str, condition: Condition) -> StoreResult<Arc<ObjectInfo>> {
        let (acting, from) = self.key(bucket, from)?;
        to_the_end(acting.rename(from, Key::parse(to)?, condition)).await
    }

    async fn create_upload(&self, bucket: &str, upload: NewUpload) -> StoreResult<UploadId> {
        let acting = self.user(bucket)?;
        if peer::is_peer_key(&upload.key) {
            acting.wanted(&upload.key).await?;
            return blocking(move || acting.begin_upload(upload)).await;
        }
        blocking(move || acting.create_upload(upload)).await
    }

    async fn uploads(&self, bucket: &str, prefix: &str) -> StoreResult<Vec<Arc<UploadInfo>>> {
        let (acting, prefix) = (self.user(bucket)?, prefix.to_owned());
        blocking(move || acting.uploads(&prefix)).await
    }

    async fn upload(&self, bucket: &str, key: &str, upload: &UploadId) -> StoreResult<Arc<UploadInfo>> {
        let (acting, key, id) = (self.user(bucket)?, key.to_owned(), upload.clone());
        blocking(move || Ok(Arc::new(acting.upload(&key, &id)?.1))).await
    }

    async fn parts(&self, bucket: &str, key: &str, upload: &UploadId) -> StoreResult<(Arc<UploadInfo>, Vec<PartInfo>)> {
        let (acting, key, id) = (self.user(bucket)?, key.to_owned(), upload.clone());
        blocking(move || acting.parts(&key, &id)).await
    }

    async fn complete(
        &self,
        bucket: &str,
        key: &str,
        upload: &UploadId,
        parts: Vec<PartInfo>,
        seal: Seal,
    ) -> StoreResult<Arc<ObjectInfo>> {
        if peer::is_peer_key(key) {
            let acting = self.user(bucket)?;
            return to_the_end(acting.complete_for_peer(key.to_owned(), upload.clone(), parts)).await;
        }
        let (acting, key) = self.key(bucket, key)?;
        to_the_end(acting.complete(key, upload.clone(), parts, seal)).await
    }

    async fn abort(&self, bucket: &str, key: &str, upload: &UploadId) -> StoreResult<()> {
        let (acting, key, id) = (self.user(bucket)?, key.to_owned(), upload.clone());
        blocking(move || {
            acting.upload(&key, &id)?;
            acting.abort(&id)
        })
        .await
    }
}
