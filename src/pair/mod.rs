//! Gpair configuration: what binds a local share to a remote one.
//!
//! A pair is one TOML file in `pairs.d`; it is read, validated once and then a plain struct.

use std::path::PathBuf;

use crate::types::{ClusterId, PairName};

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
    /// Bytes per manifest chunk; a power of two, 64 KiB to 64 MiB.
    pub chunk_size: u32,
    /// Seconds a superseded or deleted object is kept.
    pub retention_s: u64,
}
