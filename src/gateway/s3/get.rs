//! Content and metadata on their way out: GetObject, HeadObject, with conditions and ranges.

use std::ops::Range as Span;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use futures::future::BoxFuture;
use hyper::HeaderMap;
use parking_lot::Mutex;
use s3s::dto::*;
use s3s::stream::{ByteStream, RemainingLength};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Result, StdError, s3_error};

use super::{Protocol, convert};
use crate::gateway::store::{self, Algorithm, Content, ObjectInfo, StoreError, StoreResult};

/// Most bytes asked of the store at a time.
const READ_BYTES: usize = 256 << 10;
/// How often a GET starts over because the object was replaced between the look-up and the first read.
const RETRIES_MAX: usize = 16;

/// The stored checksum in the field S3 has for it.
pub fn checksums(stored: &Option<store::Checksum>) -> Checksum {
    let mut sums = Checksum::default();
    let Some(stored) = stored else { return sums };
    let value = Some(stored.value.clone());
    match stored.algorithm {
        Algorithm::Crc32 => sums.checksum_crc32 = value,
        Algorithm::Crc32c => sums.checksum_crc32c = value,
        Algorithm::Crc64Nvme => sums.checksum_crc64nvme = value,
        Algorithm::Sha1 => sums.checksum_sha1 = value,
        Algorithm::Sha256 => sums.checksum_sha256 = value,
    }
    let kind = if stored.composite { ChecksumType::COMPOSITE } else { ChecksumType::FULL_OBJECT };
    sums.checksum_type = Some(ChecksumType::from_static(kind));
    sums
}

/// Conditions of a read, in the order HTTP gives them.
fn check(
    info: &ObjectInfo,
    if_match: Option<&ETagCondition>,
    if_unmodified_since: Option<&Timestamp>,
    if_none_match: Option<&ETagCondition>,
    if_modified_since: Option<&Timestamp>,
) -> S3Result<()> {
    let matches = |condition| convert::opt_etag_match(condition).is_some_and(|wanted| wanted.matches(&info.etag));
    let modified_after = |since: &Timestamp| info.modified.secs > convert::seconds(since);
    let failed = match (if_match, if_unmodified_since) {
        (Some(condition), _) => !matches(Some(condition)),
        (None, Some(since)) => modified_after(since),
        (None, None) => false,
    };
    if failed {
        return Err(s3_error!(PreconditionFailed));
    }
    let unchanged = match (if_none_match, if_modified_since) {
        (Some(condition), _) => matches(Some(condition)),
        (None, Some(since)) => !modified_after(since),
        (None, None) => false,
    };
    if unchanged {
        let mut error = S3Error::new(S3ErrorCode::NotModified);
        let mut headers = HeaderMap::new();
        if let Ok(etag) = convert::etag(&info.etag).to_http_header() {
            headers.insert(hyper::header::ETAG, etag);
        }
        error.set_headers(headers);
        return Err(error);
    }
    Ok(())
}

/// Conditions on the source of a copy: what would be 304 for a read is 412 here.
pub fn check_source(
    info: &ObjectInfo,
    if_match: Option<&ETagCondition>,
    if_none_match: Option<&ETagCondition>,
    if_modified_since: Option<&Timestamp>,
    if_unmodified_since: Option<&Timestamp>,
) -> S3Result<()> {
    let checked = check(info, if_match, if_unmodified_since, if_none_match, if_modified_since);
    checked.map_err(|_| s3_error!(PreconditionFailed))
}

/// Which bytes are asked for; `None` for all of them.
fn span(info: &ObjectInfo, range: Option<Range>, part: Option<i32>) -> S3Result<Option<Span<u64>>> {
    match (range, part) {
        (Some(_), Some(_)) => Err(s3_error!(InvalidRequest, "a range and a part number exclude each other")),
        (Some(range), None) => match range.check(info.size) {
            Ok(span) if !span.is_empty() => Ok(Some(span)),
            _ => {
                let mut error = s3_error!(InvalidRange);
                let mut headers = HeaderMap::new();
                if let Ok(value) = format!("bytes */{}", info.size).parse() {
                    headers.insert(hyper::header::CONTENT_RANGE, value);
                }
                error.set_headers(headers);
                Err(error)
            }
        },
        (None, Some(number)) => {
            let number = usize::from(super::put::part_number(number)?);
            if info.part_sizes.is_empty() && number == 1 {
                return Ok((info.size > 0).then_some(0..info.size));
            }
            let size = info.part_sizes.get(number - 1);
            let size = size.ok_or_else(|| s3_error!(InvalidRange, "there is no part {number}"))?;
            let start: u64 = info.part_sizes[..number - 1].iter().sum();
            Ok(Some(start..start + size))
        }
        (None, None) => Ok(None),
    }
}

/// Bytes of an object, a block at a time.
struct Body {
    content: Arc<dyn Content>,
    at: u64,
    end: u64,
    /// Read already, for the answer's first block.
    ready: Option<Bytes>,
    /// The mutex makes it `Sync`; it is never locked.
    reading: Option<Mutex<BoxFuture<'static, StoreResult<Bytes>>>>,
}

impl Body {
    fn next_len(&self) -> usize {
        usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(READ_BYTES)
    }
}

impl Stream for Body {
    type Item = Result<Bytes, StdError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let body = self.get_mut();
        if let Some(bytes) = body.ready.take() {
            body.at += bytes.len() as u64;
            return Poll::Ready(Some(Ok(bytes)));
        }
        if body.at >= body.end {
            return Poll::Ready(None);
        }
        let (content, at, len_max) = (&body.content, body.at, body.next_len());
        let reading = body.reading.get_or_insert_with(|| {
            let content = content.clone();
            Mutex::new(Box::pin(async move { content.read(at, len_max).await }))
        });
        let read = std::task::ready!(reading.get_mut().as_mut().poll(cx));
        body.reading = None;
        Poll::Ready(Some(match read {
            Ok(bytes) => {
                body.at += bytes.len() as u64;
                Ok(bytes)
            }
            Err(error) => {
                // The status is sent; only a cut connection can tell the client.
                tracing::error!(%error, "a read failed in the middle of an answer");
                body.at = body.end;
                Err(error.into())
            }
        }))
    }
}

impl ByteStream for Body {
    fn remaining_length(&self) -> RemainingLength {
        RemainingLength::new_exact(usize::try_from(self.end - self.at).unwrap_or(usize::MAX))
    }
}

pub async fn get_object(protocol: &Protocol, req: S3Request<GetObjectInput>) -> S3Result<GetObjectOutput> {
    let input = req.input;
    for _ in 0..RETRIES_MAX {
        let (info, content) = protocol.store.open(&input.bucket, &input.key).await.map_err(convert::error)?;
        check(
            &info,
            input.if_match.as_ref(),
            input.if_unmodified_since.as_ref(),
            input.if_none_match.as_ref(),
            input.if_modified_since.as_ref(),
        )?;
        protocol.restores.check(&input.bucket, &info)?;
        let part = span(&info, input.range, input.part_number)?;
        let whole = part.clone().unwrap_or(0..info.size);
        let mut body = Body { content, at: whole.start, end: whole.end, ready: None, reading: None };
        if whole.is_empty() {
            return Ok(answer(&info, part, input, None));
        }
        // The first block is read before the answer begins: an object that was just replaced is looked up again, and a
        // small one is sent in one go.
        match body.content.read(body.at, body.next_len()).await {
            Ok(bytes) => body.ready = Some(bytes),
            Err(StoreError::Gone) => continue,
            Err(e) => return Err(convert::error(e)),
        }
        let body: s3s::stream::DynByteStream = Box::pin(body);
        return Ok(answer(&info, part, input, Some(StreamingBlob::from(body))));
    }
    Err(s3_error!(SlowDown, "the object is being replaced too often"))
}

fn answer(
    info: &ObjectInfo,
    part: Option<Span<u64>>,
    input: GetObjectInput,
    body: Option<StreamingBlob>,
) -> GetObjectOutput {
    let head = head(info, part.clone());
    // A checksum of the whole says nothing about a range.
    let whole = part.is_none_or(|part| part == (0..info.size));
    let sums = if whole && input.checksum_mode.is_some() { checksums(&info.checksum) } else { Checksum::default() };
    GetObjectOutput {
        body,
        accept_ranges: head.accept_ranges,
        content_length: head.content_length,
        content_range: head.content_range,
        content_type: head.content_type,
        content_encoding: head.content_encoding,
        content_language: head.content_language,
        content_disposition: head.content_disposition,
        cache_control: head.cache_control,
        expires: head.expires,
        e_tag: head.e_tag,
        last_modified: head.last_modified,
        metadata: head.metadata,
        storage_class: head.storage_class,
        parts_count: input.part_number.and(head.parts_count),
        tag_count: (!info.tags.is_empty()).then_some(info.tags.len() as i32),
        checksum_crc32: sums.checksum_crc32,
        checksum_crc32c: sums.checksum_crc32c,
        checksum_crc64nvme: sums.checksum_crc64nvme,
        checksum_sha1: sums.checksum_sha1,
        checksum_sha256: sums.checksum_sha256,
        checksum_type: sums.checksum_type,
        ..GetObjectOutput::default()
    }
}

fn head(info: &ObjectInfo, part: Option<Span<u64>>) -> HeadObjectOutput {
    let attributes = &info.attributes;
    let length = part.as_ref().map_or(info.size, |part| part.end - part.start);
    HeadObjectOutput {
        accept_ranges: Some("bytes".to_owned()),
        content_length: Some(length as i64),
        content_range: part
            .filter(|part| !part.is_empty())
            .map(|part| format!("bytes {}-{}/{}", part.start, part.end - 1, info.size)),
        content_type: Some(attributes.content_type.clone().unwrap_or_else(|| "binary/octet-stream".to_owned())),
        content_encoding: attributes.content_encoding.clone(),
        content_language: attributes.content_language.clone(),
        content_disposition: attributes.content_disposition.clone(),
        cache_control: attributes.cache_control.clone(),
        expires: convert::opt_seconds(attributes.expires),
        e_tag: Some(convert::etag(&info.etag)),
        last_modified: Some(convert::time(info.modified)),
        metadata: convert::metadata(attributes),
        storage_class: attributes.class.clone().map(StorageClass::from),
        parts_count: (!info.part_sizes.is_empty()).then_some(info.part_sizes.len() as i32),
        ..HeadObjectOutput::default()
    }
}

pub async fn head_object(protocol: &Protocol, req: S3Request<HeadObjectInput>) -> S3Result<HeadObjectOutput> {
    let input = req.input;
    let info = protocol.store.head(&input.bucket, &input.key).await.map_err(convert::error)?;
    check(
        &info,
        input.if_match.as_ref(),
        input.if_unmodified_since.as_ref(),
        input.if_none_match.as_ref(),
        input.if_modified_since.as_ref(),
    )?;
    let part = span(&info, input.range, input.part_number)?;
    let sums =
        if part.is_none() && input.checksum_mode.is_some() { checksums(&info.checksum) } else { Checksum::default() };
    let head = head(&info, part);
    Ok(HeadObjectOutput {
        restore: protocol.restores.header(&input.bucket, &info),
        parts_count: input.part_number.and(head.parts_count),
        checksum_crc32: sums.checksum_crc32,
        checksum_crc32c: sums.checksum_crc32c,
        checksum_crc64nvme: sums.checksum_crc64nvme,
        checksum_sha1: sums.checksum_sha1,
        checksum_sha256: sums.checksum_sha256,
        checksum_type: sums.checksum_type,
        ..head
    })
}
