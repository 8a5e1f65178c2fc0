//! What the S3 endpoint needs of the thing it serves: buckets, whole objects, uploads in parts.
//!
//! The protocol side (`s3/`) knows only these traits; [`super::dir`] is the store over a bare directory, and a store over
//! the tiering engine takes the same place. Promises every store keeps:
//! - an object appears whole or not at all, and only after it is on stable storage;
//! - a condition is judged in the same step that publishes, so of N writers with `If-None-Match: *` exactly one wins;
//! - a call that returns success survives a crash; one that fails left the old object as it was.

mod types;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

pub use types::*;

/// Objects, buckets and uploads. Calls are short: whoever implements them moves blocking work off the async threads.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Makes `bucket`; [`StoreError::BucketExists`] if it is there.
    async fn create_bucket(&self, bucket: &str) -> StoreResult<()>;
    async fn bucket(&self, bucket: &str) -> StoreResult<BucketInfo>;
    /// All buckets in order of name.
    async fn buckets(&self) -> StoreResult<Vec<BucketInfo>>;
    /// Removes an empty bucket without open uploads.
    async fn remove_bucket(&self, bucket: &str) -> StoreResult<()>;

    /// Begins to take in content for `target`. Nothing is visible until [`Upload::publish`]; dropping it discards.
    async fn stage(&self, bucket: &str, target: Target) -> StoreResult<Box<dyn Upload>>;
    async fn head(&self, bucket: &str, key: &str) -> StoreResult<Arc<ObjectInfo>>;
    /// The object as it is now and a reader of exactly that version; a later overwrite or removal does not disturb it,
    /// but until its first read it may turn out [`StoreError::Gone`]: then ask again.
    async fn open(&self, bucket: &str, key: &str) -> StoreResult<(Arc<ObjectInfo>, Arc<dyn Content>)>;
    /// Removes the object; success also if there was none, unless `if_match` asks for a version.
    async fn remove(&self, bucket: &str, key: &str, if_match: Option<EtagMatch>) -> StoreResult<()>;
    async fn list(&self, bucket: &str, query: &ListQuery) -> StoreResult<ListPage>;
    /// Replaces the tags of an object; content, ETag and times stay.
    async fn set_tags(&self, bucket: &str, key: &str, tags: Vec<(String, String)>) -> StoreResult<()>;

    async fn create_upload(&self, bucket: &str, upload: NewUpload) -> StoreResult<UploadId>;
    /// Open uploads whose key begins with `prefix`, in order of key, then id.
    async fn uploads(&self, bucket: &str, prefix: &str) -> StoreResult<Vec<Arc<UploadInfo>>>;
    async fn upload(&self, bucket: &str, key: &str, upload: &UploadId) -> StoreResult<Arc<UploadInfo>>;
    /// An open upload and its parts, in order of number.
    async fn parts(&self, bucket: &str, key: &str, upload: &UploadId) -> StoreResult<(Arc<UploadInfo>, Vec<PartInfo>)>;
    /// Makes the object out of `parts` (numbers in ascending order, as [`Store::parts`] gave them), without copying
    /// their bytes. The upload and its other parts are gone afterwards.
    async fn complete(
        &self,
        bucket: &str,
        key: &str,
        upload: &UploadId,
        parts: Vec<PartInfo>,
        seal: Seal,
    ) -> StoreResult<Arc<ObjectInfo>>;
    async fn abort(&self, bucket: &str, key: &str, upload: &UploadId) -> StoreResult<()>;

    /// The store as the owner of an access key may use it; `None`: nobody knows who asks. The same for everybody, unless the store knows
    /// its users.
    fn used_by(&self, _access_key: Option<&str>) -> Option<Arc<dyn Store>> {
        None
    }

    /// A tag that is a call of a pair's other end (R6): its answer. `None`: here it is a tag like any other, and was set.
    async fn attribute_call(
        &self,
        bucket: &str,
        key: &str,
        tags: Vec<(String, String)>,
        _headers: AttributeHeaders,
    ) -> StoreResult<Option<String>> {
        self.set_tags(bucket, key, tags).await.map(|()| None)
    }

    /// Gives the object `from` the key `to`, in one step, if `condition` holds of what is there.
    async fn rename(
        &self,
        _bucket: &str,
        _from: &str,
        _to: &str,
        _condition: Condition,
    ) -> StoreResult<Arc<ObjectInfo>> {
        Err(StoreError::NotSupported("objects cannot be renamed here".into()))
    }
}

/// Content on its way in.
#[async_trait]
pub trait Upload: Send {
    /// Appends `chunks`. Blocks: call it where blocking is allowed.
    fn write(&mut self, chunks: &[Bytes]) -> StoreResult<()>;
    /// Makes all that was written the target's content, durably, if `seal.condition` holds.
    async fn publish(self: Box<Self>, seal: Seal) -> StoreResult<Arc<ObjectInfo>>;
}

/// Content on its way out.
#[async_trait]
pub trait Content: Send + Sync {
    /// The bytes from `offset`: at least one and at most `len_max` of them. `offset` must lie before the end.
    async fn read(&self, offset: u64, len_max: usize) -> StoreResult<Bytes>;
}
