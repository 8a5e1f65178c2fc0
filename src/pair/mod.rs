//! Gpair configuration: what binds a local share to a remote one.
//!
//! A pair is one TOML file in `pairs.d`; it is read, validated once ([`file`], by the rules of [`syntax`]) and then a
//! plain struct. [`store`] owns the directory. Nothing here talks to a remote or to a mount: what needs them comes in as
//! a closure. No secret is ever in a pair: it names the file that holds the credentials.

pub mod capabilities;
mod error;
pub mod file;
pub mod store;
pub mod syntax;
pub mod units;

use std::fmt;
use std::path::PathBuf;

use crate::types::{ClusterId, PairName, RecallPolicy};

pub use error::{PairError, PairResult};
pub use store::{ClaimCheck, Store};

/// Seconds a superseded or deleted object is kept unless the pair says otherwise: a day to notice a mistake.
pub const RETENTION_DEFAULT_S: u64 = 24 * 3600;
/// Days a restored object can be read unless the pair says otherwise: longer than a weekend.
pub const RESTORE_DAYS_DEFAULT: u32 = 7;
/// Files shorter than this are packed unless the pair says otherwise, in bytes.
pub const PACK_BELOW_DEFAULT: u32 = 128 << 10;
/// Region unless the pair says otherwise: what stores that know no regions expect in a signature.
pub const REGION_DEFAULT: &str = "us-east-1";

/// What the remote is (R2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RemoteRole {
    /// A plain object store; its metadata is not managed.
    Gfs,
    /// A share with the same files on a peer cluster.
    Gpeer,
}

/// Which side pushes names and attributes (R3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MetaSyncRole {
    Master,
    Slave,
}

/// What happens to who wants content that lies in an archive class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenArchived {
    /// The restore is asked for, and the reader is told.
    #[default]
    Fail,
    /// The reader waits for the restore.
    Wait,
}

/// What happens to the object of a file whose content was all brought back (R2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AfterRecall {
    /// It is deleted, at once or after a time.
    #[default]
    Delete,
    /// It stays until the file changes or goes: released again, the file need not be copied out again.
    Keep,
}

/// A validated pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    pub name: PairName,
    pub local_cluster: ClusterId,
    /// Absolute path of the share.
    pub local_share: PathBuf,
    pub remote_cluster: ClusterId,
    pub bucket: String,
    /// Without leading or trailing slash; may be empty.
    pub prefix: String,
    /// One or more `http(s)://host[:port]`, tried in order of health.
    pub endpoints: Vec<String>,
    pub region: String,
    pub role: RemoteRole,
    pub meta_sync: Option<MetaSyncRole>,
    /// File in the SDK's shared-credentials format; `None`: the SDK's standard chain.
    pub credentials_file: Option<PathBuf>,
    /// Profile in that file (or in the standard one).
    pub credentials_profile: Option<String>,
    /// Bytes per manifest chunk; a power of two, 64 KiB to 64 MiB. `None`: by the length of each file.
    pub chunk_size: Option<u32>,
    /// Seconds a superseded or deleted object is kept.
    pub retention_s: u64,
    pub after_recall: AfterRecall,
    /// Seconds the object of a recalled file is kept before it is deleted; `None`: as long as superseded ones.
    pub recall_retention_s: Option<u64>,
    /// What a read of a stub brings back.
    pub recall: RecallPolicy,
    pub archived: WhenArchived,
    /// Days a restored object can be read.
    pub restore_days: u32,
    /// Whether small files that are archived together share an object.
    pub pack: bool,
    /// Which files are small: those shorter than this, in bytes; 4 KiB to 1 MiB.
    pub pack_below: u32,
}

impl Pair {
    /// Whether what the pair says goes together; the reason if not.
    pub fn check(&self) -> Result<(), String> {
        if self.pack && self.role == RemoteRole::Gpeer {
            return Err(
                "a pair of two shares (gpeer) has no objects that files could share: leave pack out, or use role gfs"
                    .into(),
            );
        }
        Ok(())
    }

    /// The remote share as text: `s3://bucket/prefix`.
    pub fn remote_share(&self) -> String {
        if self.prefix.is_empty() {
            format!("s3://{}", self.bucket)
        } else {
            format!("s3://{}/{}", self.bucket, self.prefix)
        }
    }

    /// The four identifiers joined by commas, local first (R6). Commas cannot occur in cluster ids or buckets.
    pub fn identifiers(&self) -> String {
        format!("{},{},{},{}", self.local_cluster, self.local_share.display(), self.remote_cluster, self.remote_share())
    }

    /// Seconds the object of a recalled file is kept; `None`: it is not deleted.
    pub fn recalled_for_s(&self) -> Option<u64> {
        match self.after_recall {
            AfterRecall::Keep => None,
            AfterRecall::Delete => Some(self.recall_retention_s.unwrap_or(self.retention_s)),
        }
    }

    /// Whether `other` binds the same two ends in the same direction.
    pub fn same_identifiers(&self, other: &Pair) -> bool {
        self.local_cluster == other.local_cluster
            && self.local_share == other.local_share
            && self.remote_cluster == other.remote_cluster
            && self.bucket == other.bucket
            && self.prefix == other.prefix
    }

    /// Whether `other` is the same gpair as configured on the other side. A remote share is known here as bucket and
    /// prefix, there as a directory: the directory whose path ends in `bucket/prefix` is taken for it.
    pub fn is_other_half(&self, other: &Pair) -> bool {
        let ends_as = |here: &Pair, there: &Pair| {
            let remote = if there.prefix.is_empty() {
                there.bucket.clone()
            } else {
                format!("{}/{}", there.bucket, there.prefix)
            };
            here.local_share.ends_with(remote)
        };
        self.local_cluster == other.remote_cluster
            && self.remote_cluster == other.local_cluster
            && self.local_cluster != self.remote_cluster
            && (ends_as(self, other) || ends_as(other, self))
    }
}

impl RemoteRole {
    /// The word in configuration and output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gfs => "gfs",
            Self::Gpeer => "gpeer",
        }
    }
}

impl MetaSyncRole {
    /// The word in configuration and output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Slave => "slave",
        }
    }
}

impl fmt::Display for RemoteRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for MetaSyncRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for RemoteRole {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "gfs" => Ok(Self::Gfs),
            "gpeer" => Ok(Self::Gpeer),
            _ => Err(format!("{word:?} is not a role: use \"gfs\" (a plain object store) or \"gpeer\" (a share)")),
        }
    }
}

impl AfterRecall {
    /// The word in configuration and output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delete => "delete",
            Self::Keep => "keep",
        }
    }
}

impl std::str::FromStr for AfterRecall {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "delete" => Ok(Self::Delete),
            "keep" => Ok(Self::Keep),
            _ => Err(format!("{word:?} is not known: use \"delete\" (after recall_retention) or \"keep\"")),
        }
    }
}

impl WhenArchived {
    /// The word in configuration and output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fail => "fail",
            Self::Wait => "wait",
        }
    }
}

impl std::str::FromStr for WhenArchived {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "fail" => Ok(Self::Fail),
            "wait" => Ok(Self::Wait),
            _ => Err(format!("{word:?} is not known: use \"fail\" (readers are told) or \"wait\" (they wait)")),
        }
    }
}

impl std::str::FromStr for MetaSyncRole {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "master" => Ok(Self::Master),
            "slave" => Ok(Self::Slave),
            _ => Err(format!("{word:?} is not a metadata sync role: use \"master\" or \"slave\"")),
        }
    }
}
