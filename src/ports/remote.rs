//! Port to the remote object store of one pair.
//!
//! All calls have deadlines and may be dropped (cancelled) at any await point. An implementation retries a transient
//! failure at most once, immediately, on another endpoint where there is one; more patience is the caller's.

use async_trait::async_trait;
use bytes::Bytes;

use crate::types::{ByteRange, ObjectKey};

/// Why a call failed, in the classes that decide what follows (R14; the table in protocol.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RemoteErrorKind {
    /// No such object.
    NotFound,
    /// The condition of the request was not met, e.g. the key exists.
    Conflict,
    /// No connection: refused, reset, name not resolved, TLS failed.
    Unreachable,
    /// A deadline passed.
    TimedOut,
    /// The store asks to slow down (503 SlowDown, 429).
    SlowDown,
    /// The store failed (other 5xx).
    Server,
    /// Credentials missing or refused, signature wrong, permission lacking.
    Denied,
    /// The bucket does not exist.
    NoSuchBucket,
    /// Bytes do not match their checksum, or a body came short.
    Corrupt,
    /// The object is in an archive class and must be restored first (`InvalidObjectState`).
    Archived,
    /// The local source of an upload failed or changed.
    Source,
    /// Anything else the store refused (other 4xx), or an answer that makes no sense.
    Rejected,
}

impl RemoteErrorKind {
    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_transient(self) -> bool {
        matches!(self, Self::Unreachable | Self::TimedOut | Self::SlowDown | Self::Server)
    }

    /// Whether the pair's configuration is at fault, so that no file of it can succeed.
    pub fn is_configuration(self) -> bool {
        matches!(self, Self::Denied | Self::NoSuchBucket)
    }
}

/// A failed remote call. `Display` is one line that names operation, object, endpoint and reason; it holds no secret.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{operation} {object} at {endpoint}: {detail}")]
pub struct RemoteError {
    pub kind: RemoteErrorKind,
    pub operation: &'static str,
    /// `bucket/key`, or `bucket`.
    pub object: String,
    pub endpoint: String,
    /// The reason and, where there is one, the way out.
    pub detail: String,
}

pub type RemoteResult<T> = Result<T, RemoteError>;

/// Why a source cannot deliver.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SourceError(pub String);

/// Where an upload's bytes come from. A range may be asked for more than once (a retry), ranges in any order and in parallel.
#[async_trait]
pub trait ObjectSource: Send + Sync + 'static {
    /// Exactly `range.len` bytes at `range.offset`, or an error.
    async fn read(&self, range: ByteRange) -> Result<Bytes, SourceError>;
}

/// A successfully stored object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// ETag as the store gave it, without quotes.
    pub etag: String,
    /// Version id where the bucket is versioned.
    pub version: Option<String>,
}

/// Whether an object can be read, as far as its storage class goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RestoreState {
    /// It can: it was never archived, or is restored for a while.
    #[default]
    Readable,
    /// It is in an archive class, and nobody has asked for it.
    Archived,
    /// It is on its way back.
    Restoring,
}

/// What a HEAD says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    pub len: u64,
    pub etag: String,
    /// User metadata, keys in lower case without `x-amz-meta-`.
    pub metadata: Vec<(String, String)>,
    pub restore: RestoreState,
}

/// What an endpoint was found to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Capabilities {
    /// A second PUT with `If-None-Match: *` is refused (412), as it should be; some servers ignore it and answer 200.
    pub conditional_put: bool,
    /// A PUT whose checksum does not match its body is refused and stores nothing.
    pub checksums: bool,
    /// The bucket keeps versions.
    pub versioning: bool,
}

/// The bytes of a range while they arrive.
#[async_trait]
pub trait Body: Send {
    /// The next bytes, never none. `None` after the last of the range: a body that ends early is an error, and so is one that goes on.
    async fn next(&mut self) -> RemoteResult<Option<Bytes>>;
}

/// A body that has come, not empty.
pub fn whole(bytes: Bytes) -> Box<dyn Body> {
    Box::new(Whole(Some(bytes)))
}

struct Whole(Option<Bytes>);

#[async_trait]
impl Body for Whole {
    async fn next(&mut self) -> RemoteResult<Option<Bytes>> {
        Ok(self.0.take().filter(|bytes| !bytes.is_empty()))
    }
}

/// An attribute that is set on an object, by a tag that means something to the other side of a pair (R6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttributeCall {
    /// The object's key, without the pair's prefix; not empty.
    pub key: String,
    pub tag: String,
    pub value: String,
    /// Names in lower case.
    pub headers: Vec<(&'static str, String)>,
    /// The header that an answer has.
    pub answer: &'static str,
}

/// One pair's bucket.
#[async_trait]
pub trait Remote: Send + Sync {
    /// Stores `len` bytes under a key never used before; parallel multipart above the implementation's part size.
    /// Returns only when the store has confirmed the whole object, its checksum verified by the store where it can.
    /// After any error the object may or may not exist: the caller owns its removal.
    async fn put(
        &self,
        key: &ObjectKey,
        len: u64,
        source: std::sync::Arc<dyn ObjectSource>,
        metadata: &[(String, String)],
    ) -> RemoteResult<Stored>;
    /// Exactly `range.len` bytes (> 0). With `etag`, of that object version and no other (Conflict otherwise).
    async fn get(&self, key: &ObjectKey, range: ByteRange, etag: Option<&str>) -> RemoteResult<Bytes>;
    /// As [`Remote::get`], piece by piece as it comes: what has come can be used while the rest is under way. Dropping the body ends
    /// the transfer.
    async fn stream(&self, key: &ObjectKey, range: ByteRange, etag: Option<&str>) -> RemoteResult<Box<dyn Body>> {
        let whole = self.get(key, range, etag).await?;
        Ok(self::whole(whole))
    }
    /// All of an object whose length is not known; Corrupt if it is longer than `len_max` bytes (or empty).
    async fn get_all(&self, key: &ObjectKey, len_max: u64) -> RemoteResult<Bytes> {
        let info = self.head(key).await?;
        if info.len == 0 || info.len > len_max {
            return Err(RemoteError {
                kind: RemoteErrorKind::Corrupt,
                operation: "get",
                object: key.to_string(),
                endpoint: String::new(),
                detail: format!("it has {} bytes, where 1 to {len_max} were expected", info.len),
            });
        }
        self.get(key, ByteRange { offset: 0, len: info.len }, Some(&info.etag)).await
    }
    async fn head(&self, key: &ObjectKey) -> RemoteResult<ObjectInfo>;
    /// Asks for an archived object to be readable for so many days, and says where it stands. Asked again while it is under way, or of
    /// an object that can be read, it changes nothing.
    async fn restore(&self, _key: &ObjectKey, _days: u32) -> RemoteResult<RestoreState> {
        Ok(RestoreState::Readable)
    }
    /// Removes an object; an object that is not there is success. Also ends unfinished multipart uploads of this key.
    async fn delete(&self, key: &ObjectKey) -> RemoteResult<()>;
    /// Up to 1,000 keys that start with `prefix` (on top of the pair's own), with lengths, after `after` in key order.
    async fn list(&self, prefix: &str, after: Option<&ObjectKey>) -> RemoteResult<Vec<(ObjectKey, u64)>>;
    /// Keys below the pair's prefix under which uploads of many parts were begun and neither completed nor ended, running ones included.
    /// None where the store cannot tell.
    async fn unfinished_uploads(&self) -> RemoteResult<Vec<ObjectKey>> {
        Ok(Vec::new())
    }
    /// Ends every unfinished upload of a key; its object, if there is one, stays.
    async fn end_uploads(&self, _key: &ObjectKey) -> RemoteResult<()> {
        Ok(())
    }
    /// Makes an attribute call; its answer. `None`: the store took the tag, and means nothing by it.
    async fn set_attribute(&self, call: &AttributeCall) -> RemoteResult<Option<String>> {
        Err(RemoteError {
            kind: RemoteErrorKind::Rejected,
            operation: "set attribute",
            object: call.key.clone(),
            endpoint: String::new(),
            detail: "this remote has no attributes".into(),
        })
    }
    /// Tries what the endpoint can do, with small objects of its own below the pair's prefix that it removes again.
    /// Fails with the reason (Denied, NoSuchBucket, Unreachable …) where the pair cannot work at all.
    async fn probe(&self) -> RemoteResult<Capabilities>;
}
