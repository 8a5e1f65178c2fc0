//! What an endpoint can do, found out by trying: with small objects of our own, removed again whatever happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::BucketVersioningStatus;
use bytes::Bytes;

use crate::ports::{Capabilities, RemoteError, RemoteErrorKind, RemoteResult};
use crate::types::{ByteRange, ObjectKey};

use super::Shared;
use super::classify::is_not_implemented;
use super::deadline::within;
use super::endpoints::Endpoint;
use super::put::crc_text;

const CONTENT: &[u8] = b"tierfs tries what this store can do; this object may be removed\n";
const OTHER: &[u8] = b"tierfs: a conditional request should have refused this\n";

/// The objects of one probe, with the versions to remove.
struct Traces {
    versions: Vec<(ObjectKey, Option<String>)>,
}

impl Shared {
    pub(super) async fn probe(self: &Arc<Self>) -> RemoteResult<Capabilities> {
        let endpoint = self.endpoints.first();
        let mut traces = Traces { versions: Vec::new() };
        let outcome = self.try_out(endpoint, &mut traces).await;
        let cleaned = self.clean(endpoint, traces).await;
        let capabilities = outcome?;
        // After the first PUT: some stores (the embedded one) make a missing bucket then. A rebuild needs the listing.
        self.list("", None).await?;
        cleaned.map_err(|error| {
            let detail = format!("objects can be stored but not removed: {}", error.detail);
            RemoteError { detail, ..error }
        })?;
        Ok(capabilities)
    }

    async fn try_out(self: &Arc<Self>, endpoint: &Endpoint, traces: &mut Traces) -> RemoteResult<Capabilities> {
        let key = self.probe_key("object");
        let crc = crc32fast::hash(CONTENT);
        // The plain object comes first: what fails here makes the pair impossible.
        self.try_put(endpoint, &key, CONTENT, crc, false, traces).await?;
        let range = ByteRange { offset: 7, len: CONTENT.len() as u64 - 7 };
        let read = self.get(&key, range, None).await?;
        if read != Bytes::from_static(CONTENT).slice(7..) {
            let place = self.place("probe", Some(&key), endpoint);
            return Err(place.error(RemoteErrorKind::Corrupt, "what was read back is not what was stored"));
        }
        let conditional_put = self.try_put(endpoint, &key, OTHER, crc32fast::hash(OTHER), true, traces).await;
        let conditional_put = match conditional_put {
            Ok(()) => false,
            Err(error) if error.kind == RemoteErrorKind::Conflict => true,
            Err(error) if error.kind == RemoteErrorKind::Rejected => false,
            Err(error) => return Err(error),
        };
        let damaged = self.probe_key("checksum");
        let checksums = match self.try_put(endpoint, &damaged, CONTENT, !crc, false, traces).await {
            Ok(()) => false,
            // Refused is not enough: some stores refuse and keep the object.
            Err(error) if matches!(error.kind, RemoteErrorKind::Corrupt | RemoteErrorKind::Rejected) => {
                match self.head_once(endpoint, &damaged).await {
                    Ok(_) => false,
                    Err(error) if error.kind == RemoteErrorKind::NotFound => true,
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        };
        let versioning = self.has_versions(endpoint).await?;
        Ok(Capabilities { conditional_put, checksums, versioning })
    }

    /// A PUT with exactly what it is given, right or wrong. Notes what it leaves.
    async fn try_put(
        &self,
        endpoint: &Endpoint,
        key: &ObjectKey,
        content: &'static [u8],
        crc: u32,
        conditional: bool,
        traces: &mut Traces,
    ) -> RemoteResult<()> {
        let place = self.place("probe", Some(key), endpoint);
        // Noted before the answer: an answer that is lost may still leave an object.
        let noted = traces.versions.len();
        traces.versions.push((key.clone(), None));
        let request = endpoint
            .client
            .put_object()
            .bucket(&self.config.bucket)
            .key(&key.0)
            .checksum_crc32(crc_text(crc))
            .set_if_none_match(conditional.then(|| "*".to_owned()))
            .body(ByteStream::from_static(content))
            .customize()
            .disable_payload_signing();
        let answer = within(&self.config.timeouts, content.len() as u64, None, request.send()).await;
        let answer = answer.map_err(|late| place.timed_out(&format!("no answer in {:.1?}", late.after)))?;
        match answer {
            Ok(answer) => {
                traces.versions[noted].1 = answer.version_id.filter(|version| version != "null");
                Ok(())
            }
            Err(error) => {
                if conditional && is_not_implemented(&error) {
                    self.stop_conditions();
                }
                let error = place.failed(&error);
                if error.kind.is_configuration() {
                    // Nothing can have been stored, and its removal would only fail for the same reason.
                    traces.versions.truncate(noted);
                }
                Err(error)
            }
        }
    }

    /// A store that does not know versions, or does not let us ask, keeps none as far as we are concerned.
    async fn has_versions(&self, endpoint: &Endpoint) -> RemoteResult<bool> {
        let place = self.place("probe", None, endpoint);
        let request = endpoint.client.get_bucket_versioning().bucket(&self.config.bucket);
        let answer = within(&self.config.timeouts, 0, None, request.send()).await;
        let answer = answer.map_err(|late| place.timed_out(&format!("no answer in {:.1?}", late.after)))?;
        match answer {
            Ok(answer) => Ok(answer.status() == Some(&BucketVersioningStatus::Enabled)),
            Err(error) => match place.failed(&error) {
                error if error.kind.is_transient() => Err(error),
                _ => Ok(false),
            },
        }
    }

    async fn clean(&self, endpoint: &Endpoint, traces: Traces) -> RemoteResult<()> {
        let mut outcome = Ok(());
        // Every one is tried, also after a failure; the first failure is told.
        for (key, version) in traces.versions {
            let removed = self.delete_once(endpoint, &key, version).await;
            outcome = outcome.and(removed);
        }
        outcome
    }

    /// A fresh key below the pair's prefix.
    fn probe_key(&self, what: &str) -> ObjectKey {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!(".tierfs-probe-{now:x}-{:x}-{count:x}-{what}", std::process::id());
        ObjectKey(self.config.below_prefix(&name))
    }
}
