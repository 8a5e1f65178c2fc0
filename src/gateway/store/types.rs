//! The plain values a store and the protocol exchange. Those with `Serialize` are stored: their field order is part of
//! the format of `dir::record`.

use serde::{Deserialize, Serialize};

use crate::types::Timestamp;

pub type StoreResult<T> = Result<T, StoreError>;

/// Why a store refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("no such bucket: {0}")]
    NoSuchBucket(String),
    #[error("bucket exists: {0}")]
    BucketExists(String),
    #[error("bucket is not empty: {0}")]
    BucketNotEmpty(String),
    #[error("no such object: {0:?}")]
    NoSuchKey(String),
    #[error("no such upload: {0}")]
    NoSuchUpload(String),
    /// The part was replaced or removed since it was looked up.
    #[error("part {0} is not what it was")]
    PartChanged(u16),
    /// `If-Match` or `If-None-Match` does not hold.
    #[error("the condition does not hold")]
    ConditionFailed,
    /// The version that was opened is gone; the object may have a newer one.
    #[error("this version of the object is gone")]
    Gone,
    /// The disk below the store is full, or over quota.
    #[error("no space left for {0}")]
    Full(String),
    #[error("{op} {path}: {source}")]
    Io {
        op: &'static str,
        path: String,
        #[source]
        source: std::io::Error,
    },
    /// A sync failed earlier, so nobody knows what is on stable storage: nothing is written until a restart.
    #[error("the store stopped writing after a failed sync; restart it")]
    Poisoned,
    #[error("the store is shutting down")]
    Closed,
    #[error("{0}")]
    Corrupt(String),
    /// Who asks may not do this.
    #[error("{0}: permission denied")]
    Denied(String),
    #[error("{key:?} cannot be a key here: {why}")]
    BadKey { key: String, why: &'static str },
    #[error("the key, or a name in it, is too long")]
    KeyTooLong,
    /// Something is in the way that is no object.
    #[error("{key:?}: {why}")]
    InTheWay { key: String, why: &'static str },
    #[error("the metadata and tags are too long to be kept with the file")]
    MetadataTooLong,
    #[error("the share is read-only")]
    ReadOnly,
    /// It may work later.
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    NotSupported(String),
    /// The request is understood, and not what may be done here.
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Failed(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketInfo {
    pub name: String,
    pub created: Timestamp,
}

/// Name of an upload in parts, unique for the life of the store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UploadId(pub String);

/// What staged content is to become.
#[derive(Clone, Debug)]
pub enum Target {
    Object { key: String },
    Part { key: String, upload: UploadId, number: u16 },
}

/// Checksum algorithms of S3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Algorithm {
    Crc32,
    Crc32c,
    Crc64Nvme,
    Sha1,
    Sha256,
}

/// A checksum as S3 writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksum {
    pub algorithm: Algorithm,
    /// Base64; a composite one ends in `-` and the number of parts.
    pub value: String,
    /// Over the parts' checksums rather than over the content.
    pub composite: bool,
}

/// Headers kept with an object and given back as they came.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    pub content_type: Option<String>,
    pub content_encoding: Option<String>,
    pub content_language: Option<String>,
    pub content_disposition: Option<String>,
    pub cache_control: Option<String>,
    /// Seconds since 1970.
    pub expires: Option<i64>,
    /// `x-amz-meta-*`: names without the prefix, in order.
    pub user: Vec<(String, String)>,
    /// Storage class, none for `STANDARD`. Kept beside the record's other fields, which had none at first.
    #[serde(skip)]
    pub class: Option<String>,
}

/// An object as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectInfo {
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// Without quotes.
    pub etag: String,
    pub modified: Timestamp,
    pub attributes: Attributes,
    pub tags: Vec<(String, String)>,
    pub checksum: Option<Checksum>,
    /// Sizes of the parts it was uploaded in; empty for a simple PUT.
    pub part_sizes: Vec<u64>,
    /// The upload it was completed from.
    pub upload: Option<UploadId>,
}

/// All that is known only once the last byte has been verified.
#[derive(Clone, Debug, Default)]
pub struct Seal {
    /// Without quotes.
    pub etag: String,
    pub checksum: Option<Checksum>,
    pub attributes: Attributes,
    pub tags: Vec<(String, String)>,
    pub condition: Condition,
}

/// What goes with an attribute call; empty where it was not sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttributeHeaders {
    pub call: String,
    pub node: String,
    pub from: String,
    pub root: String,
}

/// A version asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EtagMatch {
    Any,
    Etag(String),
}

impl EtagMatch {
    pub fn matches(&self, etag: &str) -> bool {
        match self {
            EtagMatch::Any => true,
            EtagMatch::Etag(wanted) => wanted == etag,
        }
    }
}

/// When a write may happen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    pub if_match: Option<EtagMatch>,
    pub if_none_match: Option<EtagMatch>,
}

impl Condition {
    /// Judges against the current ETag of the key, `None` if there is no object.
    /// `If-Match` on a missing object is [`StoreError::NoSuchKey`], as S3 has it.
    pub fn check(&self, key: &str, current: Option<&str>) -> StoreResult<()> {
        if let Some(wanted) = &self.if_match {
            match current {
                None => return Err(StoreError::NoSuchKey(key.to_owned())),
                Some(etag) if !wanted.matches(etag) => return Err(StoreError::ConditionFailed),
                Some(_) => {}
            }
        }
        match (&self.if_none_match, current) {
            (Some(unwanted), Some(etag)) if unwanted.matches(etag) => Err(StoreError::ConditionFailed),
            _ => Ok(()),
        }
    }
}

/// What to list. Keys are compared as bytes.
#[derive(Clone, Debug, Default)]
pub struct ListQuery {
    pub prefix: String,
    pub delimiter: Option<String>,
    /// List what comes after this key or common prefix.
    pub after: Option<String>,
    /// At most this many entries, keys and common prefixes together.
    pub limit: usize,
}

#[derive(Clone, Debug)]
pub enum ListEntry {
    Object(std::sync::Arc<ObjectInfo>),
    CommonPrefix(String),
}

#[derive(Clone, Debug, Default)]
pub struct ListPage {
    /// In byte order.
    pub entries: Vec<ListEntry>,
    /// More follows the last entry.
    pub truncated: bool,
}

/// What an upload in parts begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewUpload {
    pub key: String,
    pub attributes: Attributes,
    pub tags: Vec<(String, String)>,
    /// Algorithm the client named, and whether it wants a composite checksum.
    pub checksum: Option<(Algorithm, bool)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadInfo {
    pub id: UploadId,
    pub new: NewUpload,
    pub initiated: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartInfo {
    /// 1 to 10,000.
    pub number: u16,
    /// Bytes.
    pub size: u64,
    pub etag: String,
    pub modified: Timestamp,
    pub checksum: Option<Checksum>,
    /// Tells uploads of the same number apart; the store's own.
    pub version: u64,
}
