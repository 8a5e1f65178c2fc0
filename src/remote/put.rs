//! Uploads in one request, and what large and small uploads share: checksums, the condition, and the proof that an object
//! found in our place is the one we sent.

use std::sync::atomic::Ordering;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use md5::{Digest, Md5};

use crate::ports::{ObjectSource, RemoteErrorKind, RemoteResult, Stored};
use crate::types::{ByteRange, ObjectKey};

use super::Shared;
use super::classify::{Place, is_not_implemented, one_line};
use super::deadline::{body, within};
use super::endpoints::Endpoint;
use super::objects::{check_etag, unquoted};

/// A CRC-32 as S3 writes it.
pub(super) fn crc_text(crc: u32) -> String {
    BASE64_STANDARD.encode(crc.to_be_bytes())
}

/// What a stored object must look like to be ours. Stores word the same content in different ways.
pub(super) struct Expected {
    pub len: u64,
    /// CRC-32 over all bytes.
    pub crc: String,
    /// CRC-32 over the parts' CRCs, with their number: what stores say of objects made of parts.
    pub crc_of_parts: Option<String>,
    /// The ETag by S3's custom (MD5); computed only when it is needed.
    pub etag: Box<dyn Fn() -> Option<String> + Send + Sync>,
}

impl Expected {
    /// Whether a checksum the store tells is ours. `None`: it tells none.
    pub(super) fn agrees(&self, told: Option<&str>) -> Option<bool> {
        told.map(|told| told == self.crc || self.crc_of_parts.as_deref() == Some(told))
    }
}

impl Shared {
    pub(super) async fn put_whole(
        &self,
        key: &ObjectKey,
        len: u64,
        source: &dyn ObjectSource,
        metadata: &[(String, String)],
    ) -> RemoteResult<Stored> {
        let data = self.read_source(key, ByteRange { offset: 0, len }, source).await?;
        self.put_bytes(key, data, metadata).await
    }

    pub(super) async fn put_bytes(
        &self,
        key: &ObjectKey,
        data: Bytes,
        metadata: &[(String, String)],
    ) -> RemoteResult<Stored> {
        let hashed = data.clone();
        let expected = Expected {
            len: data.len() as u64,
            crc: crc_text(crc32fast::hash(&data)),
            crc_of_parts: None,
            etag: Box::new(move || Some(hex(&Md5::digest(&hashed)))),
        };
        let mut attempts = self.endpoints.attempts();
        loop {
            let endpoint = attempts.endpoint();
            let outcome = match self.put_once(endpoint, key, data.clone(), metadata, &expected).await {
                // The first attempt may have stored the object although its answer was lost.
                Err(error) if attempts.retried() && error.kind == RemoteErrorKind::Conflict => {
                    self.prove_ours(endpoint, key, &expected).await.and_then(|ours| ours.ok_or(error))
                }
                outcome => outcome,
            };
            if let Some(outcome) = attempts.settle(outcome) {
                return outcome;
            }
        }
    }

    async fn put_once(
        &self,
        endpoint: &Endpoint,
        key: &ObjectKey,
        data: Bytes,
        metadata: &[(String, String)],
        expected: &Expected,
    ) -> RemoteResult<Stored> {
        let place = self.place("put", Some(key), endpoint);
        loop {
            let condition = self.condition();
            let conditional = condition.is_some();
            let (stream, progress) = body(data.clone());
            let request = endpoint
                .client
                .put_object()
                .bucket(&self.config.bucket)
                .key(&key.0)
                .content_length(data.len() as i64)
                .checksum_crc32(&expected.crc)
                .set_if_none_match(condition)
                .set_metadata(user_metadata(metadata))
                .body(stream)
                .customize()
                .disable_payload_signing();
            let answer = within(&self.config.timeouts, expected.len, progress, request.send()).await;
            let answer = answer.map_err(|late| place.timed_out(&format!("no answer in {:.1?}", late.after)))?;
            match answer {
                Ok(answer) => {
                    confirm_checksum(&place, expected, answer.checksum_crc32())?;
                    return stored(&place, answer.e_tag(), answer.version_id());
                }
                Err(error) if conditional && is_not_implemented(&error) => self.stop_conditions(),
                Err(error) => return Err(place.failed(&error)),
            }
        }
    }

    /// After a retry found the key taken: `Some` if what is there is what was sent, `None` if it is something else, or
    /// nothing proves that it is not.
    pub(super) async fn prove_ours(
        &self,
        endpoint: &Endpoint,
        key: &ObjectKey,
        expected: &Expected,
    ) -> RemoteResult<Option<Stored>> {
        let found = match self.head_once(endpoint, key).await {
            Ok(found) => found,
            Err(error) if error.kind == RemoteErrorKind::NotFound => {
                // Refused, but not there: an attempt of ours may still be under way.
                let place = self.place("put", Some(key), endpoint);
                return Err(place.error(RemoteErrorKind::Server, "the outcome of a lost answer is unknown"));
            }
            Err(error) => return Err(error),
        };
        let etag = found.e_tag().map(unquoted).unwrap_or_default();
        let same_len = found.content_length().and_then(|len| u64::try_from(len).ok()) == Some(expected.len);
        let same_content =
            expected.agrees(found.checksum_crc32()).unwrap_or_else(|| (expected.etag)().as_ref() == Some(&etag));
        if !same_len || !same_content {
            return Ok(None);
        }
        stored(&self.place("put", Some(key), endpoint), Some(&etag), found.version_id()).map(Some)
    }

    /// Remembers that the store does not know the condition. Safety never depends on it: keys are fresh.
    pub(super) fn stop_conditions(&self) {
        if self.send_condition.swap(false, Ordering::Relaxed) {
            tracing::info!(pair = %self.config.pair, "the store does not implement If-None-Match; it is not sent any more");
        }
    }

    /// Exactly `range.len` bytes of the upload's source.
    pub(super) async fn read_source(
        &self,
        key: &ObjectKey,
        range: ByteRange,
        source: &dyn ObjectSource,
    ) -> RemoteResult<Bytes> {
        if range.len == 0 {
            return Ok(Bytes::new());
        }
        let place = || self.place("put", Some(key), self.endpoints.first());
        let data =
            source.read(range).await.map_err(|error| place().error(RemoteErrorKind::Source, error.to_string()))?;
        if data.len() as u64 != range.len {
            let detail = format!("the source gave {} bytes where {} were asked for", data.len(), range.len);
            return Err(place().error(RemoteErrorKind::Source, detail));
        }
        Ok(data)
    }
}

/// Fails if the store tells another checksum than what was sent; one that tells none is believed.
pub(super) fn confirm_checksum(place: &Place<'_>, expected: &Expected, told: Option<&str>) -> RemoteResult<()> {
    match expected.agrees(told) {
        Some(false) => {
            let told = one_line(told.unwrap_or_default());
            let detail = format!("the store has CRC-32 {told:?}, {:?} was sent", expected.crc);
            Err(place.error(RemoteErrorKind::Corrupt, detail))
        }
        _ => Ok(()),
    }
}

pub(super) fn stored(place: &Place<'_>, etag: Option<&str>, version: Option<&str>) -> RemoteResult<Stored> {
    let etag = etag.map(unquoted).filter(|etag| !etag.is_empty());
    let etag = etag.ok_or_else(|| place.error(RemoteErrorKind::Rejected, "the store confirmed without an ETag"))?;
    check_etag(place, &etag)?;
    // A bucket without versions may still say so.
    Ok(Stored { etag, version: version.filter(|version| *version != "null").map(str::to_owned) })
}

pub(super) fn user_metadata(metadata: &[(String, String)]) -> Option<std::collections::HashMap<String, String>> {
    (!metadata.is_empty()).then(|| metadata.iter().cloned().collect())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
