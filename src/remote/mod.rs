//! S3: one pair's bucket over HTTP.
//!
//! Invariants: every request ends by its deadline; a call sends at most one retry, at once; no answer is believed that
//! contradicts what was asked (length, range, ETag, checksum); nothing here logs or words a credential.
//!
//! Uploads carry a CRC-32 in a header, known before the first byte is sent: no trailer, which Ceph refuses, and no
//! SHA-256 over the payload, which costs as much as the rest of the request. End to end, the content is protected by
//! the chunk hashes of the [`manifest`].

mod attribute;
pub mod bench;
mod bounded;
mod classify;
mod config;
mod deadline;
mod endpoints;
mod get;
mod http;
pub mod manifest;
mod multipart;
mod objects;
pub mod pack;
pub mod packs;
mod probe;
mod put;
mod refusal;
mod restore;
mod signer;
mod unfinished;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Semaphore;

use crate::ports::{
    AttributeCall, Body, Capabilities, ObjectInfo, ObjectSource, Remote, RemoteErrorKind, RemoteResult, RestoreState,
    Stored,
};
use crate::types::{ByteRange, ObjectKey};

pub use config::{CredentialsFrom, RemoteConfig, Timeouts};

use classify::Place;
use endpoints::{Endpoint, Endpoints};
use http::Http;
use signer::Signer;
use unfinished::Unfinished;

/// One pair's bucket. Cheap to clone; clones share connections, endpoint health and the limit on parts in flight.
#[derive(Clone)]
pub struct S3Remote {
    shared: Arc<Shared>,
}

struct Shared {
    config: RemoteConfig,
    endpoints: Endpoints,
    /// What content comes by; all else goes by the SDK.
    http: Http,
    signer: Signer,
    /// One permit a part in flight, over all uploads: bounds the memory and the connections large files take.
    parts: Arc<Semaphore>,
    /// Cleared for good once the store says it does not know `If-None-Match` on a PUT.
    send_condition: AtomicBool,
    unfinished: Unfinished,
}

impl S3Remote {
    /// Makes the clients; sends no request. Fails if the configuration cannot work: no endpoint, a URL that is none, a
    /// credentials file that cannot be read.
    pub async fn connect(config: RemoteConfig) -> RemoteResult<Self> {
        let (endpoints, credentials) = Endpoints::connect(&config).await?;
        let http = Http::new(&config.endpoints, config.timeouts.connect).map_err(|error| {
            let detail = format!("https cannot be used ({error}): install the system's authorities (ca-certificates)");
            endpoints::refused(&config, &config.endpoints[0], RemoteErrorKind::Rejected, detail)
        })?;
        let signer = Signer::new(credentials, config.region.clone());
        let parts = Arc::new(Semaphore::new(config.parts_in_flight.max(1)));
        let shared = Shared {
            config,
            endpoints,
            http,
            signer,
            parts,
            send_condition: AtomicBool::new(true),
            unfinished: Unfinished::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }
}

impl Shared {
    /// What errors of a request on `key` name.
    fn place<'a>(&'a self, operation: &'static str, key: Option<&'a ObjectKey>, endpoint: &'a Endpoint) -> Place<'a> {
        Place { operation, key, endpoint: &endpoint.url, config: &self.config }
    }

    /// The value for `If-None-Match`, while the store is not known to refuse the header.
    fn condition(&self) -> Option<String> {
        self.send_condition.load(Ordering::Relaxed).then(|| "*".to_owned())
    }
}

#[async_trait]
impl Remote for S3Remote {
    async fn put(
        &self,
        key: &ObjectKey,
        len: u64,
        source: Arc<dyn ObjectSource>,
        metadata: &[(String, String)],
    ) -> RemoteResult<Stored> {
        if len <= self.shared.config.part_size {
            self.shared.put_whole(key, len, &*source, metadata).await
        } else {
            self.shared.put_parts(key, len, source, metadata).await
        }
    }

    async fn get(&self, key: &ObjectKey, range: ByteRange, etag: Option<&str>) -> RemoteResult<Bytes> {
        self.shared.get(key, range, etag).await
    }

    async fn stream(&self, key: &ObjectKey, range: ByteRange, etag: Option<&str>) -> RemoteResult<Box<dyn Body>> {
        self.shared.stream(key, range, etag).await
    }

    async fn get_all(&self, key: &ObjectKey, len_max: u64) -> RemoteResult<Bytes> {
        self.shared.get_all(key, len_max).await
    }

    async fn head(&self, key: &ObjectKey) -> RemoteResult<ObjectInfo> {
        self.shared.head(key).await
    }

    async fn restore(&self, key: &ObjectKey, days: u32) -> RemoteResult<RestoreState> {
        self.shared.restore(key, days).await
    }

    async fn delete(&self, key: &ObjectKey) -> RemoteResult<()> {
        self.shared.delete(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&ObjectKey>) -> RemoteResult<Vec<(ObjectKey, u64)>> {
        self.shared.list(prefix, after).await
    }

    async fn unfinished_uploads(&self) -> RemoteResult<Vec<ObjectKey>> {
        self.shared.unfinished_uploads().await
    }

    async fn end_uploads(&self, key: &ObjectKey) -> RemoteResult<()> {
        self.shared.end_listed_uploads(key).await
    }

    async fn set_attribute(&self, call: &AttributeCall) -> RemoteResult<Option<String>> {
        self.shared.set_attribute(call).await
    }

    async fn probe(&self) -> RemoteResult<Capabilities> {
        self.shared.probe().await
    }
}
