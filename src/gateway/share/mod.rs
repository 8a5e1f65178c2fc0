//! The store over a share and its engine: one bucket, whose keys are the paths of the share's files.
//!
//! ```text
//! key      which keys are paths            acting   a user at work: finding, making directories
//! read     content, recalled as it is read publish  new content takes a key's place
//! names    removing, renaming              list     keys in order
//! uploads  uploads in parts                staging  what has no key yet
//! meta     ETags, headers, tags            error    what failed
//! sync     messages of a metadata sync
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
use crate::types::{Inode, PairName};
use acting::Acting;
use error::About as _;
use key::Key;

/// Locks for keys; two keys may share one.
const LOCKS: usize = 64;
/// Keys of the attribute calls of a peer's tiering service (R6), made as tags of an object.
const LOCAL_TO_REMOTE: &str = "ltr_local_to_remote";
const REMOTE_TO_LOCAL: &str = "rtl_remote_to_local";

/// Why a share cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    #[error("{0:?} cannot be a bucket's name: give it one of 3 to 63 lower-case letters, digits, dots and hyphens")]
    BadBucket(String),
    #[error("what the gateway left in the share's root cannot be cleared away: {0}")]
    Staging(#[from] LowerError),
}

/// The change of ownership that a peer's tiering service asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handover {
    /// The content came here: this side owns the file from now on.
    ToHere,
    /// The content went to the other side, which owns the file from now on.
    ToPeer,
}

/// Carries out what a peer's tiering service asks for (R6).
#[async_trait]
pub trait Ownership: Send + Sync {
    /// `identifiers`: the pair's four, joined by commas, as the peer has them.
    async fn hand_over(&self, file: Inode, pair: &PairName, to: Handover, identifiers: &str) -> StoreResult<()>;
}

/// What is served.
pub struct ShareOptions {
    pub fs: Arc<Fs>,
    /// The same that `fs` is over.
    pub share: Arc<Share>,
    pub bucket: String,
    pub identities: Arc<Identities>,
    /// `None`: the attribute calls of peers are answered 501.
    pub ownership: Option<Arc<dyn Ownership>>,
    /// `None`: the share takes part in no metadata sync.
    pub sync: Option<Arc<Receiver>>,
}

pub(super) struct Shared {
    fs: Arc<Fs>,
    share: Arc<Share>,
    bucket: String,
    identities: Arc<Identities>,
    ownership: Option<Arc<dyn Ownership>>,
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
        let ShareOptions { fs, share, bucket, identities, ownership, sync } = options;
        if !s3s::path::check_bucket_name(&bucket) {
            return Err(ShareError::BadBucket(bucket));
        }
        let locks = std::array::from_fn(|_| Mutex::default());
        let shared = Arc::new(Shared { fs, share, bucket, identities, ownership, sync, locks });
        if !shared.fs.is_read_only() {
            shared.clear_staging()?;
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

/// Whether a tag is a call rather than a tag.
fn handover(tag: &str) -> Option<Handover> {
    match tag {
        LOCAL_TO_REMOTE => Some(Handover::ToHere),
        REMOTE_TO_LOCAL => Some(Handover::ToPeer),
        _ => None,
    }
}

impl Acting {
    /// Ordinary tags only: the attribute calls are made by PutObjectTagging alone.
    fn check_tags(&self, tags: &[(String, String)]) -> StoreResult<()> {
        match tags.iter().find(|(name, _)| handover(name).is_some()) {
            Some((name, _)) => Err(StoreError::Denied(format!("the tag {name}"))),
            None => Ok(()),
        }
    }

    /// What a peer's tiering service asks for by a tag.
    async fn hand_over(self, key: Key, tags: Vec<(String, String)>) -> StoreResult<()> {
        let refused = |why: &str| StoreError::Denied(format!("{}: {why}", key.as_str()));
        let Some(pair) = self.peer_of().cloned() else {
            return Err(refused("only the tiering service of a pair's other end may make this call"));
        };
        let [(name, value)] = tags.as_slice() else {
            return Err(refused("the call is made with one tag"));
        };
        let (Some(to), 4) = (handover(name), value.split(',').count()) else {
            return Err(refused("the tag's value is the pair's four identifiers, joined by commas"));
        };
        let (acting, for_key) = (self.clone(), key.clone());
        let (_, seen) = blocking(move || acting.find(&for_key)).await?;
        match &self.shared.ownership {
            Some(ownership) => ownership.hand_over(seen.node, &pair, to, value).await,
            None => {
                Err(StoreError::NotSupported("handing files over between two clusters is not supported yet".into()))
            }
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
        if tags.iter().any(|(name, _)| handover(name).is_some()) {
            return acting.hand_over(key, tags).await;
        }
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

    async fn rename(&self, bucket: &str, from: &str, to: &str, condition: Condition) -> StoreResult<Arc<ObjectInfo>> {
        let (acting, from) = self.key(bucket, from)?;
        to_the_end(acting.rename(from, Key::parse(to)?, condition)).await
    }

    async fn create_upload(&self, bucket: &str, upload: NewUpload) -> StoreResult<UploadId> {
        let acting = self.user(bucket)?;
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
