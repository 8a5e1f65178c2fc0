//! Content on its way in: PutObject, UploadPart, CopyObject, UploadPartCopy.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use hyper::HeaderMap;
use hyper::header::HeaderValue;
use s3s::dto::*;
use s3s::{S3Error, S3ErrorCode, S3Request, S3Result, TrailingHeaders, s3_error};

use super::convert::{self, attributes};
use super::digest::{Claims, Hasher, Verified};
use super::{Protocol, RENAME_SOURCE, get};
use crate::gateway::store::{Algorithm, Attributes, Content, ObjectInfo, Seal, StoreResult, Target, Upload, UploadId};
use crate::gateway::unsigned::Unsigned;

/// Bytes gathered before they are hashed and written, off the async threads.
const GATHER_BYTES: usize = 1 << 20;
/// A client that sends nothing for so long is given up.
const IDLE_MAX: Duration = Duration::from_secs(300);
/// Largest object or part of one PUT, bytes (S3's limit).
const PUT_BYTES_MAX: u64 = 5 << 30;
/// Bytes copied at a time.
const COPY_BYTES: usize = 256 << 10;

/// What follows a request's body, once it has been read.
pub struct Trailers {
    signed: Option<TrailingHeaders>,
    unsigned: Option<Unsigned>,
}

impl Trailers {
    fn of<T>(req: &mut S3Request<T>) -> Self {
        Self { signed: req.trailing_headers.take(), unsigned: req.extensions.get().cloned() }
    }

    fn take(&self) -> Option<HeaderMap> {
        let signed = self.signed.as_ref().and_then(TrailingHeaders::take);
        signed.or_else(|| self.unsigned.as_ref().and_then(Unsigned::take_trailers))
    }
}

/// An ETag for content whose MD5 nobody asked for: different for every write, and by its `-` no MD5 to any client.
pub fn unique_etag(verified: &Verified) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    if let Some(md5) = &verified.md5 {
        return md5.clone();
    }
    let mut unique = blake3::Hasher::new();
    unique.update(&COUNT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    unique.update(&clock.as_nanos().to_le_bytes());
    unique.update(verified.checksum.as_ref().map_or("", |sum| &sum.value).as_bytes());
    format!("{}-1", &unique.finalize().to_hex()[..32])
}

/// An upload with the hash of what it has taken in.
struct Intake {
    upload: Box<dyn Upload>,
    hasher: Hasher,
}

impl Intake {
    /// Hashes and writes `chunks` where blocking is allowed.
    async fn write(mut self, chunks: Vec<Bytes>) -> S3Result<Self> {
        let written = tokio::task::spawn_blocking(move || -> StoreResult<Self> {
            self.hasher.update(&chunks);
            self.upload.write(&chunks)?;
            Ok(self)
        });
        written.await.map_err(S3Error::internal_error)?.map_err(convert::error)
    }

    /// Takes in all of `body`, writing one batch while the next arrives; gives back the length too.
    async fn fill(self, body: Option<StreamingBlob>) -> S3Result<(Self, u64)> {
        let mut intake = Some(self);
        let mut writing: Option<tokio::task::JoinHandle<S3Result<Self>>> = None;
        let (mut gathered, mut gathered_len, mut total) = (Vec::new(), 0, 0_u64);
        let Some(mut body) = body else { return intake.map(|i| (i, 0)).ok_or_else(lost) };
        loop {
            let next = tokio::time::timeout(IDLE_MAX, body.next()).await;
            let next = next.map_err(|_| s3_error!(RequestTimeout, "the client stopped sending"))?;
            let Some(chunk) = next.transpose().map_err(|e| body_error(e.as_ref()))? else { break };
            total += chunk.len() as u64;
            gathered_len += chunk.len();
            gathered.push(chunk);
            if total > PUT_BYTES_MAX {
                return Err(s3_error!(EntityTooLarge));
            }
            if gathered_len >= GATHER_BYTES {
                let idle = match writing.take() {
                    Some(task) => task.await.map_err(S3Error::internal_error)??,
                    None => intake.take().ok_or_else(lost)?,
                };
                writing = Some(tokio::spawn(idle.write(std::mem::take(&mut gathered))));
                gathered_len = 0;
            }
        }
        let mut idle = match writing {
            Some(task) => task.await.map_err(S3Error::internal_error)??,
            None => intake.take().ok_or_else(lost)?,
        };
        if !gathered.is_empty() {
            idle = idle.write(gathered).await?;
        }
        Ok((idle, total))
    }
}

/// Cannot happen: the intake is either idle or being written.
fn lost() -> S3Error {
    s3_error!(InternalError, "the upload was lost")
}

/// What a broken body means. The types of s3s's own decoders are private; their messages name the case.
fn body_error(error: &(dyn std::error::Error + Send + Sync + 'static)) -> S3Error {
    let text = error.to_string();
    if text.contains("Sha256Mismatch") {
        let mut error = S3Error::new(S3ErrorCode::Custom("XAmzContentSHA256Mismatch".into()));
        error.set_status_code(hyper::StatusCode::BAD_REQUEST);
        error.set_message("the payload is not what was signed");
        error
    } else if text.contains("SignatureMismatch") {
        s3_error!(SignatureDoesNotMatch)
    } else {
        S3Error::with_message(S3ErrorCode::IncompleteBody, format!("the body did not arrive whole: {text}"))
    }
}

/// Stages `target`, takes in the body, verifies it. Nothing is published yet.
async fn receive(
    protocol: &Protocol,
    bucket: &str,
    target: Target,
    body: Option<StreamingBlob>,
    claims: Claims,
    length: Option<i64>,
    trailers: &Trailers,
) -> S3Result<(Box<dyn Upload>, Verified)> {
    let upload = protocol.store.stage(bucket, target).await.map_err(convert::error)?;
    let (intake, received) = Intake { upload, hasher: claims.hasher() }.fill(body).await?;
    if length.is_some_and(|length| u64::try_from(length) != Ok(received)) {
        return Err(s3_error!(IncompleteBody, "received {received} bytes instead of {length:?}"));
    }
    let verified = intake.hasher.verify(trailers.take().as_ref())?;
    Ok((intake.upload, verified))
}

pub async fn put_object(protocol: &Protocol, mut req: S3Request<PutObjectInput>) -> S3Result<PutObjectOutput> {
    if let Some(source) = req.headers.get(RENAME_SOURCE).cloned() {
        return rename(protocol, &source, req.input).await;
    }
    let trailers = Trailers::of(&mut req);
    let claims = Claims::read(&req.headers, None, Unsigned::payload_sha256(&req.extensions))?.md5(protocol.md5_etags);
    let mut input = req.input;
    let attributes = attributes!(input);
    let tags = convert::tags_of_header(input.tagging.as_deref())?;
    let condition = convert::condition(input.if_match.as_ref(), input.if_none_match.as_ref());
    if input.write_offset_bytes.is_some() {
        return Err(s3_error!(NotImplemented, "appending is not supported"));
    }
    protocol.want_bucket(&input.bucket).await?;
    let target = Target::Object { key: input.key };
    let (upload, verified) =
        receive(protocol, &input.bucket, target, input.body, claims, input.content_length, &trailers).await?;
    let seal = Seal { etag: unique_etag(&verified), checksum: verified.checksum, attributes, tags, condition };
    let info = upload.publish(seal).await.map_err(convert::error)?;
    let sums = get::checksums(&info.checksum);
    Ok(PutObjectOutput {
        e_tag: Some(convert::etag(&info.etag)),
        checksum_crc32: sums.checksum_crc32,
        checksum_crc32c: sums.checksum_crc32c,
        checksum_crc64nvme: sums.checksum_crc64nvme,
        checksum_sha1: sums.checksum_sha1,
        checksum_sha256: sums.checksum_sha256,
        checksum_type: sums.checksum_type,
        ..PutObjectOutput::default()
    })
}

/// Renames within a bucket, in one step; the body, if there is one, is not looked at.
async fn rename(protocol: &Protocol, source: &HeaderValue, input: PutObjectInput) -> S3Result<PutObjectOutput> {
    let source = source.to_str().ok().and_then(|source| CopySource::parse(source).ok());
    let Some(CopySource::Bucket { bucket, key, version_id: None }) = source else {
        return Err(s3_error!(InvalidArgument, "{RENAME_SOURCE} takes /bucket/key, percent-encoded"));
    };
    if *bucket != *input.bucket {
        return Err(s3_error!(InvalidArgument, "an object is renamed within its bucket"));
    }
    let condition = convert::condition(input.if_match.as_ref(), input.if_none_match.as_ref());
    let renamed = protocol.store.rename(&input.bucket, &key, &input.key, condition).await;
    let info = renamed.map_err(convert::error)?;
    Ok(PutObjectOutput { e_tag: Some(convert::etag(&info.etag)), ..PutObjectOutput::default() })
}

pub fn part_number(number: i32) -> S3Result<u16> {
    let valid = u16::try_from(number).ok().filter(|number| (1..=10_000).contains(number));
    valid.ok_or_else(|| s3_error!(InvalidArgument, "part numbers go from 1 to 10000, not {number}"))
}

/// The algorithm all parts of an upload have their checksum in.
async fn part_algorithm(protocol: &Protocol, bucket: &str, key: &str, upload: &UploadId) -> S3Result<Algorithm> {
    let info = protocol.store.upload(bucket, key, upload).await.map_err(convert::error)?;
    Ok(info.new.checksum.map_or(Algorithm::Crc64Nvme, |(algorithm, _)| algorithm))
}

pub async fn upload_part(protocol: &Protocol, mut req: S3Request<UploadPartInput>) -> S3Result<UploadPartOutput> {
    let trailers = Trailers::of(&mut req);
    let input = req.input;
    let upload = UploadId(input.upload_id);
    let number = part_number(input.part_number)?;
    let algorithm = part_algorithm(protocol, &input.bucket, &input.key, &upload).await?;
    let payload = Unsigned::payload_sha256(&req.extensions);
    let claims = Claims::read(&req.headers, Some(algorithm), payload)?.md5(protocol.md5_etags);
    let target = Target::Part { key: input.key, upload, number };
    let (upload, verified) =
        receive(protocol, &input.bucket, target, input.body, claims, input.content_length, &trailers).await?;
    let seal = Seal { etag: unique_etag(&verified), checksum: verified.checksum, ..Seal::default() };
    let info = upload.publish(seal).await.map_err(convert::error)?;
    let sums = get::checksums(&info.checksum);
    Ok(UploadPartOutput {
        e_tag: Some(convert::etag(&info.etag)),
        checksum_crc32: sums.checksum_crc32,
        checksum_crc32c: sums.checksum_crc32c,
        checksum_crc64nvme: sums.checksum_crc64nvme,
        checksum_sha1: sums.checksum_sha1,
        checksum_sha256: sums.checksum_sha256,
        ..UploadPartOutput::default()
    })
}

/// Where a copy comes from.
fn source(source: &CopySource) -> S3Result<(&str, &str)> {
    match source {
        CopySource::Bucket { bucket, key, version_id: None } => Ok((bucket, key)),
        CopySource::Bucket { .. } => Err(s3_error!(NotImplemented, "objects have no versions here")),
        _ => Err(s3_error!(NotImplemented, "only a bucket and key can be copied from")),
    }
}

/// Copies `range` of `content` into `target` and hashes it on the way.
async fn copy(
    protocol: &Protocol,
    content: &dyn Content,
    range: std::ops::Range<u64>,
    bucket: &str,
    target: Target,
    hasher: Hasher,
) -> S3Result<(Box<dyn Upload>, Verified)> {
    let upload = protocol.store.stage(bucket, target).await.map_err(convert::error)?;
    let mut intake = Intake { upload, hasher };
    let mut at = range.start;
    while at < range.end {
        let len_max = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(COPY_BYTES);
        let chunk = content.read(at, len_max).await.map_err(convert::error)?;
        at += chunk.len() as u64;
        intake = intake.write(vec![chunk]).await?;
    }
    let verified = intake.hasher.verify(None)?;
    Ok((intake.upload, verified))
}

pub async fn copy_object(protocol: &Protocol, req: S3Request<CopyObjectInput>) -> S3Result<CopyObjectOutput> {
    let mut input = req.input;
    let (from_bucket, from_key) = source(&input.copy_source)?;
    let (info, content) = protocol.store.open(from_bucket, from_key).await.map_err(convert::error)?;
    get::check_source(
        &info,
        input.copy_source_if_match.as_ref(),
        input.copy_source_if_none_match.as_ref(),
        input.copy_source_if_modified_since.as_ref(),
        input.copy_source_if_unmodified_since.as_ref(),
    )?;
    let replaces = |directive: Option<&str>| directive == Some(MetadataDirective::REPLACE);
    let replace_attributes = replaces(input.metadata_directive.as_ref().map(MetadataDirective::as_str));
    protocol.restores.check(from_bucket, &info)?;
    // A copy is in the class that is asked for, whatever its source is in.
    let class = super::restore::class(input.storage_class.as_ref())?;
    let itself = (from_bucket, from_key) == (input.bucket.as_str(), input.key.as_str());
    if itself && !replace_attributes && class == info.attributes.class {
        return Err(s3_error!(InvalidRequest, "a copy onto itself must replace the metadata or the storage class"));
    }
    let kept = || Attributes { class, ..info.attributes.clone() };
    let attributes = if replace_attributes { attributes!(input) } else { kept() };
    let tags = if replaces(input.tagging_directive.as_ref().map(TaggingDirective::as_str)) {
        convert::tags_of_header(input.tagging.as_deref())?
    } else {
        info.tags.clone()
    };
    protocol.want_bucket(&input.bucket).await?;
    let whole = info.checksum.clone().filter(|sum| !sum.composite);
    let wanted = match &input.checksum_algorithm {
        Some(algorithm) => Some(super::digest::by_name(algorithm.as_str())?),
        None => whole.as_ref().map(|sum| sum.algorithm),
    };
    let hasher = Claims::read(&HeaderMap::new(), wanted, None)?.md5(protocol.md5_etags).hasher();
    let target = Target::Object { key: input.key };
    let (upload, verified) = copy(protocol, content.as_ref(), 0..info.size, &input.bucket, target, hasher).await?;
    if let (Some(read), Some(stored)) = (&verified.checksum, &whole)
        && read.algorithm == stored.algorithm
        && read.value != stored.value
    {
        tracing::error!(bucket = from_bucket, key = from_key, "the stored bytes do not match their checksum");
        return Err(s3_error!(InternalError, "the source is damaged"));
    }
    // Same bytes, same MD5. And what only changes its class is the same object, as after the transition by a rule that this stands for.
    let anew = info.etag.contains('-') && (replace_attributes || !itself);
    let etag = if anew || verified.md5.is_some() { unique_etag(&verified) } else { info.etag.clone() };
    let seal = Seal { etag, checksum: verified.checksum, attributes, tags, condition: Default::default() };
    let info = upload.publish(seal).await.map_err(convert::error)?;
    let sums = get::checksums(&info.checksum);
    let copied = CopyObjectResult {
        e_tag: Some(convert::etag(&info.etag)),
        last_modified: Some(convert::time(info.modified)),
        checksum_crc32: sums.checksum_crc32,
        checksum_crc32c: sums.checksum_crc32c,
        checksum_crc64nvme: sums.checksum_crc64nvme,
        checksum_sha1: sums.checksum_sha1,
        checksum_sha256: sums.checksum_sha256,
        checksum_type: sums.checksum_type,
    };
    Ok(CopyObjectOutput { copy_object_result: Some(copied), ..CopyObjectOutput::default() })
}

pub async fn upload_part_copy(
    protocol: &Protocol,
    req: S3Request<UploadPartCopyInput>,
) -> S3Result<UploadPartCopyOutput> {
    let input = req.input;
    let (from_bucket, from_key) = source(&input.copy_source)?;
    let (info, content) = protocol.store.open(from_bucket, from_key).await.map_err(convert::error)?;
    get::check_source(
        &info,
        input.copy_source_if_match.as_ref(),
        input.copy_source_if_none_match.as_ref(),
        input.copy_source_if_modified_since.as_ref(),
        input.copy_source_if_unmodified_since.as_ref(),
    )?;
    protocol.restores.check(from_bucket, &info)?;
    let range = match input.copy_source_range.as_deref() {
        None => 0..info.size,
        Some(text) => {
            let range = Range::parse(text).map_err(|_| s3_error!(InvalidArgument, "{text:?} is not a range"))?;
            range.check(info.size)?
        }
    };
    let upload = UploadId(input.upload_id);
    let number = part_number(input.part_number)?;
    let algorithm = part_algorithm(protocol, &input.bucket, &input.key, &upload).await?;
    let hasher = Claims::read(&HeaderMap::new(), Some(algorithm), None)?.md5(protocol.md5_etags).hasher();
    let target = Target::Part { key: input.key, upload, number };
    let (upload, verified) = copy(protocol, content.as_ref(), range, &input.bucket, target, hasher).await?;
    let seal = Seal { etag: unique_etag(&verified), checksum: verified.checksum, ..Seal::default() };
    let part: std::sync::Arc<ObjectInfo> = upload.publish(seal).await.map_err(convert::error)?;
    let copied = CopyPartResult {
        e_tag: Some(convert::etag(&part.etag)),
        last_modified: Some(convert::time(part.modified)),
        ..CopyPartResult::default()
    };
    Ok(UploadPartCopyOutput { copy_part_result: Some(copied), ..UploadPartCopyOutput::default() })
}
