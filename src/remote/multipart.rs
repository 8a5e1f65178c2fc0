//! Large uploads: parts in parallel, one task each, bounded over the whole remote.
//!
//! An upload that does not complete is ended, also when its caller is dropped: by a task of its own, so that neither an
//! error nor a cancellation waits for it; what that task cannot end, the later `delete` of the key does.

use std::sync::Arc;

use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use md5::{Digest, Md5};
use tokio::task::JoinSet;

use crate::ports::{ObjectSource, RemoteErrorKind, RemoteResult, Stored};
use crate::types::{ByteRange, ObjectKey};

use super::Shared;
use super::classify::{COMPLETE, is_not_implemented};
use super::deadline::{body, within};
use super::endpoints::Endpoint;
use super::objects::unquoted;
use super::put::{Expected, confirm_checksum, crc_text, hex, stored, user_metadata};

/// S3's limit.
const PARTS_MAX: u64 = 10_000;
const MIB: u64 = 1 << 20;

/// A part the store has confirmed.
struct SentPart {
    number: i32,
    len: u64,
    etag: String,
    crc: u32,
}

/// An upload begun. Ends it when dropped, unless it completed.
struct Upload {
    shared: Arc<Shared>,
    key: ObjectKey,
    id: String,
    completed: bool,
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.completed {
            return;
        }
        // Without a runtime the process is ending; the next one finds the upload when it deletes the key.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (shared, key) = (self.shared.clone(), self.key.clone());
        runtime.spawn(async move {
            if let Err(error) = shared.end_own_uploads(&key).await {
                tracing::debug!(%error, "an unfinished upload could not be ended; its key's deletion tries again");
            }
        });
    }
}

/// Bytes per part: the configured size, or more where 10,000 such parts do not suffice.
fn part_len(len: u64, configured: u64) -> u64 {
    let least = len.div_ceil(PARTS_MAX);
    if least <= configured { configured } else { least.next_multiple_of(MIB) }
}

impl Shared {
    pub(super) async fn put_parts(
        self: &Arc<Self>,
        key: &ObjectKey,
        len: u64,
        source: Arc<dyn ObjectSource>,
        metadata: &[(String, String)],
    ) -> RemoteResult<Stored> {
        let mut upload = self.begin_upload(key, metadata).await?;
        let parts = self.send_parts(&upload, len, source).await?;
        let stored = self.complete(&upload, len, parts).await?;
        upload.completed = true;
        let stray = self.unfinished.completed(key, &upload.id);
        if stray {
            // An answer to the beginning was lost: that upload has no parts and no name, and must not stay.
            if let Err(error) = self.end_own_uploads(key).await {
                tracing::debug!(%error, "a stray upload could not be ended; its key's deletion tries again");
            }
        }
        Ok(stored)
    }

    async fn begin_upload(self: &Arc<Self>, key: &ObjectKey, metadata: &[(String, String)]) -> RemoteResult<Upload> {
        // Until the answer is here there may be an upload whose name nobody knows.
        self.unfinished.begin(key);
        let mut attempts = self.endpoints.attempts();
        let id = loop {
            if attempts.retried() {
                self.unfinished.lost_answer(key);
            }
            let outcome = self.begin_once(attempts.endpoint(), key, metadata).await;
            if let Some(outcome) = attempts.settle(outcome) {
                break outcome;
            }
        };
        match id {
            Ok(id) => {
                self.unfinished.begun(key, &id);
                Ok(Upload { shared: self.clone(), key: key.clone(), id, completed: false })
            }
            Err(error) => {
                if !error.kind.is_transient() {
                    self.unfinished.refused(key);
                }
                Err(error)
            }
        }
    }

    async fn begin_once(
        &self,
        endpoint: &Endpoint,
        key: &ObjectKey,
        metadata: &[(String, String)],
    ) -> RemoteResult<String> {
        let place = self.place("begin upload of", Some(key), endpoint);
        let request = endpoint
            .client
            .create_multipart_upload()
            .bucket(&self.config.bucket)
            .key(&key.0)
            .checksum_algorithm(ChecksumAlgorithm::Crc32)
            .set_metadata(user_metadata(metadata));
        let answer = within(&self.config.timeouts, 0, None, request.send()).await;
        let answer = answer.map_err(|late| place.timed_out(&format!("no answer in {:.1?}", late.after)))?;
        let answer = answer.map_err(|error| place.failed(&error))?;
        let id = answer.upload_id.filter(|id| !id.is_empty());
        id.ok_or_else(|| place.error(RemoteErrorKind::Rejected, "the store began an upload without an id"))
    }

    /// Sends all parts; returns them in order. On the first failure the rest is cancelled.
    async fn send_parts(
        self: &Arc<Self>,
        upload: &Upload,
        len: u64,
        source: Arc<dyn ObjectSource>,
    ) -> RemoteResult<Vec<SentPart>> {
        let size = part_len(len, self.config.part_size);
        // Parts larger than configured take as many permits as they take memory.
        let permits = u32::try_from(size.div_ceil(self.config.part_size.max(1))).unwrap_or(u32::MAX);
        let permits = permits.clamp(1, u32::try_from(self.config.parts_in_flight.max(1)).unwrap_or(u32::MAX));
        let mut offsets = (0..len.div_ceil(size)).map(|n| n * size).peekable();
        let mut sent = Vec::new();
        // Dropping the set (an error, a cancelled caller) aborts the tasks.
        let mut tasks: JoinSet<RemoteResult<SentPart>> = JoinSet::new();
        while offsets.peek().is_some() || !tasks.is_empty() {
            tokio::select! {
                permit = self.parts.clone().acquire_many_owned(permits), if offsets.peek().is_some() => {
                    // The semaphore is never closed; if it were, sending without a permit is the lesser evil.
                    let permit = permit.ok();
                    let Some(offset) = offsets.next() else { continue };
                    let range = ByteRange { offset, len: size.min(len - offset) };
                    let number = (offset / size + 1) as i32;
                    let (shared, source) = (self.clone(), source.clone());
                    let (key, id) = (upload.key.clone(), upload.id.clone());
                    tasks.spawn(async move {
                        let _permit = permit;
                        shared.send_part(&key, &id, number, range, &*source).await
                    });
                }
                Some(done) = tasks.join_next() => sent.push(self.joined(&upload.key, done)?),
            }
        }
        sent.sort_by_key(|part| part.number);
        Ok(sent)
    }

    fn joined(
        &self,
        key: &ObjectKey,
        done: Result<RemoteResult<SentPart>, tokio::task::JoinError>,
    ) -> RemoteResult<SentPart> {
        done.unwrap_or_else(|error| {
            let place = self.place("put", Some(key), self.endpoints.first());
            Err(place.error(RemoteErrorKind::Source, format!("a part's task did not end: {error}")))
        })
    }

    async fn send_part(
        &self,
        key: &ObjectKey,
        upload_id: &str,
        number: i32,
        range: ByteRange,
        source: &dyn ObjectSource,
    ) -> RemoteResult<SentPart> {
        let data = self.read_source(key, range, source).await?;
        let crc = crc32fast::hash(&data);
        let expected = Expected { len: range.len, crc: crc_text(crc), crc_of_parts: None, etag: Box::new(|| None) };
        let mut attempts = self.endpoints.attempts();
        loop {
            let outcome = self.send_part_once(attempts.endpoint(), key, upload_id, number, &data, &expected).await;
            if let Some(outcome) = attempts.settle(outcome) {
                return outcome.map(|etag| SentPart { number, len: range.len, etag, crc });
            }
        }
    }

    async fn send_part_once(
        &self,
        endpoint: &Endpoint,
        key: &ObjectKey,
        upload_id: &str,
        number: i32,
        data: &Bytes,
        expected: &Expected,
    ) -> RemoteResult<String> {
        let place = self.place("put part of", Some(key), endpoint);
        let (stream, progress) = body(data.clone());
        let request = endpoint
            .client
            .upload_part()
            .bucket(&self.config.bucket)
            .key(&key.0)
            .upload_id(upload_id)
            .part_number(number)
            .content_length(data.len() as i64)
            .checksum_crc32(&expected.crc)
            .body(stream)
            .customize()
            .disable_payload_signing();
        let answer = within(&self.config.timeouts, expected.len, progress, request.send()).await;
        let answer = answer.map_err(|late| place.timed_out(&format!("no answer in {:.1?}", late.after)))?;
        let answer = answer.map_err(|error| place.failed(&error))?;
        confirm_checksum(&place, expected, answer.checksum_crc32())?;
        stored(&place, answer.e_tag(), None).map(|stored| stored.etag)
    }

    async fn complete(&self, upload: &Upload, len: u64, parts: Vec<SentPart>) -> RemoteResult<Stored> {
        let expected = expected_of(len, &parts);
        let list = parts.iter().map(|part| {
            CompletedPart::builder()
                .part_number(part.number)
                .e_tag(format!("\"{}\"", part.etag))
                .checksum_crc32(crc_text(part.crc))
                .build()
        });
        let list = CompletedMultipartUpload::builder().set_parts(Some(list.collect())).build();
        let mut attempts = self.endpoints.attempts();
        loop {
            let endpoint = attempts.endpoint();
            let outcome = match self.complete_once(endpoint, upload, &list, &expected).await {
                // The first attempt may have completed it although its answer was lost: then the key is taken, or the
                // upload is no more.
                Err(error)
                    if attempts.retried()
                        && matches!(error.kind, RemoteErrorKind::Conflict | RemoteErrorKind::Rejected) =>
                {
                    self.prove_ours(endpoint, &upload.key, &expected).await.and_then(|ours| ours.ok_or(error))
                }
                outcome => outcome,
            };
            if let Some(outcome) = attempts.settle(outcome) {
                return outcome;
            }
        }
    }

    async fn complete_once(
        &self,
        endpoint: &Endpoint,
        upload: &Upload,
        list: &CompletedMultipartUpload,
        expected: &Expected,
    ) -> RemoteResult<Stored> {
        let place = self.place(COMPLETE, Some(&upload.key), endpoint);
        loop {
            let condition = self.condition();
            let conditional = condition.is_some();
            let request = endpoint
                .client
                .complete_multipart_upload()
                .bucket(&self.config.bucket)
                .key(&upload.key.0)
                .upload_id(&upload.id)
                .set_if_none_match(condition)
                .multipart_upload(list.clone());
            // A store may copy the parts together now: it gets the time the whole length would take.
            let answer = within(&self.config.timeouts, expected.len, None, request.send()).await;
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
}

/// What the completed object must look like, in each of the ways stores tell it.
fn expected_of(len: u64, parts: &[SentPart]) -> Expected {
    let mut whole = crc32fast::Hasher::new();
    let mut of_parts = crc32fast::Hasher::new();
    for part in parts {
        whole.combine(&crc32fast::Hasher::new_with_initial_len(part.crc, part.len));
        of_parts.update(&part.crc.to_be_bytes());
    }
    let of_parts = BASE64_STANDARD.encode(of_parts.finalize().to_be_bytes());
    let count = parts.len();
    let etags: Vec<String> = parts.iter().map(|part| unquoted(&part.etag)).collect();
    Expected {
        len,
        crc: crc_text(whole.finalize()),
        crc_of_parts: Some(format!("{of_parts}-{count}")),
        etag: Box::new(move || {
            let mut hash = Md5::new();
            for etag in &etags {
                hash.update(unhex(etag)?);
            }
            Some(format!("{}-{count}", hex(&hash.finalize())))
        }),
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_as_small_as_ten_thousand_allow() {
        assert_eq!(part_len(9 * MIB, 8 * MIB), 8 * MIB);
        assert_eq!(part_len(80_000 * MIB, 8 * MIB), 8 * MIB);
        assert_eq!(part_len(80_000 * MIB + 1, 8 * MIB), 9 * MIB);
        assert_eq!(part_len(100 << 10, 64 << 10), 64 << 10);
        let huge = 50 << 40;
        assert!(huge / part_len(huge, 8 * MIB) <= PARTS_MAX);
    }

    #[test]
    fn checksums_of_parts_give_those_of_the_whole() {
        let data: Vec<u8> = (0..1000u32).map(|n| (n * 7) as u8).collect();
        let parts: Vec<SentPart> = data
            .chunks(300)
            .enumerate()
            .map(|(n, part)| SentPart {
                number: n as i32 + 1,
                len: part.len() as u64,
                etag: hex(&Md5::digest(part)),
                crc: crc32fast::hash(part),
            })
            .collect();
        let expected = expected_of(1000, &parts);
        assert_eq!(expected.crc, crc_text(crc32fast::hash(&data)));
        let crcs: Vec<u8> = parts.iter().flat_map(|part| part.crc.to_be_bytes()).collect();
        assert_eq!(expected.crc_of_parts, Some(format!("{}-4", crc_text(crc32fast::hash(&crcs)))));
        let md5s: Vec<u8> = data.chunks(300).flat_map(Md5::digest).collect();
        assert_eq!((expected.etag)(), Some(format!("{}-4", hex(&Md5::digest(md5s)))));
        assert_eq!(expected.agrees(Some("x")), Some(false));
        assert_eq!(expected.agrees(None), None);
    }
}
