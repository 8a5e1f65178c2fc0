//! Ranged reads: exactly the bytes asked for, of the version asked for, or an error.
//!
//! A body that is cut short is taken up where it ended, once, on condition that the object is still the same.

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use crate::ports::{RemoteErrorKind, RemoteResult};
use crate::types::{ByteRange, ObjectKey};

use super::Shared;
use super::classify::{Place, innermost, one_line};
use super::deadline::within;
use super::endpoints::Endpoint;
use super::objects::{quoted, unquoted};

/// Room made in one go before bytes arrive; a longer range grows as it comes.
const RESERVE_MAX: usize = 64 << 20;

/// What has arrived so far, and of which version.
struct Partial {
    bytes: BytesMut,
    etag: Option<String>,
}

impl Shared {
    pub(super) async fn get(&self, key: &ObjectKey, range: ByteRange, etag: Option<&str>) -> RemoteResult<Bytes> {
        if range.len == 0 {
            return Ok(Bytes::new());
        }
        let mut partial = Partial { bytes: BytesMut::new(), etag: etag.map(unquoted) };
        let mut attempts = self.endpoints.attempts();
        loop {
            if attempts.retried() && partial.etag.is_none() {
                // Nothing proves that the rest would be of the same version: from the beginning.
                partial.bytes.clear();
            }
            let outcome = self.get_once(attempts.endpoint(), key, range, &mut partial).await;
            if let Some(outcome) = attempts.settle(outcome) {
                return outcome;
            }
        }
    }

    async fn get_once(
        &self,
        endpoint: &Endpoint,
        key: &ObjectKey,
        range: ByteRange,
        partial: &mut Partial,
    ) -> RemoteResult<Bytes> {
        let place = self.place("get", Some(key), endpoint);
        let timeouts = &self.config.timeouts;
        let have = partial.bytes.len() as u64;
        let wanted = ByteRange { offset: range.offset + have, len: range.len - have };
        let deadline = Instant::now() + timeouts.whole(wanted.len);
        let request = endpoint
            .client
            .get_object()
            .bucket(&self.config.bucket)
            .key(&key.0)
            .range(format!("bytes={}-{}", wanted.offset, wanted.end() - 1))
            .set_if_match(partial.etag.as_deref().map(quoted));
        let answer = within(timeouts, 0, None, request.send()).await;
        let answer = answer.map_err(|late| place.timed_out(&format!("no answer in {:.1?}", late.after)))?;
        let mut answer = answer.map_err(|error| place.failed(&error))?;
        check_range(&place, &answer, wanted)?;
        let etag = answer.e_tag().map(unquoted);
        match (&partial.etag, etag) {
            // Some stores ignore If-Match.
            (Some(asked), Some(got)) if *asked != got => {
                let detail = format!("the object is {} now, not {}", one_line(&got), one_line(asked));
                return Err(place.error(RemoteErrorKind::Conflict, detail));
            }
            (None, got) => partial.etag = got,
            _ => {}
        }

        let mut missing = wanted.len;
        loop {
            let by = deadline.min(Instant::now() + timeouts.stall);
            let frame = tokio::time::timeout_at(by, answer.body.next()).await;
            let so_far = || format!("{} of {} bytes", range.len - missing, range.len);
            let frame = frame.map_err(|_| place.timed_out(&format!("the body stalled after {}", so_far())))?;
            let frame = match frame {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    let detail = format!("the body was cut after {} ({})", so_far(), innermost(&error));
                    return Err(place.error(RemoteErrorKind::Unreachable, detail));
                }
                None if missing == 0 => return Ok(partial.bytes.split().freeze()),
                None => {
                    return Err(place.error(RemoteErrorKind::Corrupt, format!("the body ends after {}", so_far())));
                }
            };
            let Some(rest) = missing.checked_sub(frame.len() as u64) else {
                partial.bytes.clear();
                return Err(place.error(RemoteErrorKind::Corrupt, "the body is longer than what was asked for"));
            };
            missing = rest;
            if missing == 0 && partial.bytes.is_empty() {
                // A small object in one frame needs no copy. What follows it, if anything, is not part of the answer.
                return Ok(frame);
            }
            if partial.bytes.capacity() == 0 {
                partial.bytes.reserve(usize::try_from(range.len).unwrap_or(usize::MAX).min(RESERVE_MAX));
            }
            partial.bytes.extend_from_slice(&frame);
        }
    }
}

/// Whether the store answered the range that was asked for.
fn check_range(place: &Place<'_>, answer: &GetObjectOutput, wanted: ByteRange) -> RemoteResult<()> {
    let Some(given) = answer.content_range() else {
        // The whole object: fine if that is what was asked for.
        let whole = answer.content_length().is_some_and(|len| u64::try_from(len) == Ok(wanted.len));
        if wanted.offset == 0 && whole {
            return Ok(());
        }
        return Err(place.error(RemoteErrorKind::Rejected, "the store ignores byte ranges: it cannot serve a pair"));
    };
    let told = one_line(given);
    let bounds = given.strip_prefix("bytes ").and_then(|given| given.split_once('/')).and_then(|(bounds, _)| {
        let (first, last) = bounds.split_once('-')?;
        Some((first.trim().parse::<u64>().ok()?, last.trim().parse::<u64>().ok()?))
    });
    match bounds {
        Some((first, last)) if first == wanted.offset && last.checked_add(1) == Some(wanted.end()) => Ok(()),
        Some((first, last)) if first == wanted.offset && last < wanted.end() => Err(place.error(
            RemoteErrorKind::Corrupt,
            format!("the object is shorter than it should be: {} bytes asked for, {told:?} given", wanted.len),
        )),
        _ => Err(place.error(
            RemoteErrorKind::Rejected,
            format!("bytes {}-{} were asked for, {told:?} answered", wanted.offset, wanted.end() - 1),
        )),
    }
}
