//! Uploads in parts: create, list, complete, abort.

use s3s::dto::*;
use s3s::{S3Request, S3Result, s3_error};

use super::convert::{self, attributes};
use super::{Protocol, digest, get, put};
use crate::gateway::store::{self, Algorithm, NewUpload, ObjectInfo, PartInfo, Seal, StoreError, UploadId};

/// Most parts or uploads in one listing.
const PAGE_MAX: i32 = 1_000;
const KEY_BYTES_MAX: usize = 1_024;

fn limit(asked: Option<i32>) -> S3Result<usize> {
    let asked = asked.unwrap_or(PAGE_MAX).min(PAGE_MAX);
    usize::try_from(asked).map_err(|_| s3_error!(InvalidArgument, "a limit must not be negative"))
}

/// What the client wants for a checksum: CRCs can cover the whole object, the others only the parts' checksums.
fn wanted_checksum(
    algorithm: Option<&ChecksumAlgorithm>,
    kind: Option<&ChecksumType>,
) -> S3Result<Option<(Algorithm, bool)>> {
    let Some(algorithm) = algorithm else { return Ok(None) };
    let algorithm = digest::by_name(algorithm.as_str())?;
    let sha = matches!(algorithm, Algorithm::Sha1 | Algorithm::Sha256);
    let composite = match kind.map(ChecksumType::as_str) {
        None => algorithm != Algorithm::Crc64Nvme,
        Some(ChecksumType::COMPOSITE) => true,
        Some(ChecksumType::FULL_OBJECT) => false,
        Some(other) => return Err(s3_error!(InvalidRequest, "unknown checksum type {other:?}")),
    };
    if (composite && algorithm == Algorithm::Crc64Nvme) || (!composite && sha) {
        let name = digest::name_of(algorithm);
        return Err(s3_error!(InvalidRequest, "{name} does not go with that checksum type"));
    }
    Ok(Some((algorithm, composite)))
}

fn checksum_type(composite: bool) -> ChecksumType {
    ChecksumType::from_static(if composite { ChecksumType::COMPOSITE } else { ChecksumType::FULL_OBJECT })
}

pub async fn create(
    protocol: &Protocol,
    req: S3Request<CreateMultipartUploadInput>,
) -> S3Result<CreateMultipartUploadOutput> {
    let mut input = req.input;
    if input.key.is_empty() || input.key.len() > KEY_BYTES_MAX {
        return Err(s3_error!(KeyTooLongError));
    }
    let new = NewUpload {
        key: input.key.clone(),
        attributes: attributes!(input),
        tags: convert::tags_of_header(input.tagging.as_deref())?,
        checksum: wanted_checksum(input.checksum_algorithm.as_ref(), input.checksum_type.as_ref())?,
    };
    let kind = new.checksum.map(|(_, composite)| checksum_type(composite));
    protocol.want_bucket(&input.bucket).await?;
    let id = protocol.store.create_upload(&input.bucket, new).await.map_err(convert::error)?;
    Ok(CreateMultipartUploadOutput {
        bucket: Some(input.bucket),
        key: convert::xml_text(input.key),
        upload_id: Some(id.0),
        checksum_algorithm: input.checksum_algorithm,
        checksum_type: kind,
        ..CreateMultipartUploadOutput::default()
    })
}

/// The parts the client lists, as they are stored: ascending, present, unchanged, large enough.
fn chosen(protocol: &Protocol, listed: &[CompletedPart], stored: &[PartInfo]) -> S3Result<Vec<PartInfo>> {
    let mut chosen: Vec<PartInfo> = Vec::with_capacity(listed.len());
    for part in listed {
        let number = put::part_number(part.part_number.unwrap_or_default())?;
        if chosen.last().is_some_and(|last| last.number >= number) {
            return Err(s3_error!(InvalidPartOrder));
        }
        let found = stored.binary_search_by_key(&number, |part| part.number).ok().map(|at| &stored[at]);
        let found = found.ok_or_else(|| s3_error!(InvalidPart, "part {number} was not uploaded"))?;
        if part.e_tag.as_ref().is_none_or(|etag| etag.value() != found.etag) {
            return Err(s3_error!(InvalidPart, "the ETag of part {number} is another"));
        }
        let sums = get::checksums(&found.checksum);
        let claims = [
            (&part.checksum_crc32, &sums.checksum_crc32),
            (&part.checksum_crc32c, &sums.checksum_crc32c),
            (&part.checksum_crc64nvme, &sums.checksum_crc64nvme),
            (&part.checksum_sha1, &sums.checksum_sha1),
            (&part.checksum_sha256, &sums.checksum_sha256),
        ];
        if claims.iter().any(|(claimed, stored)| claimed.is_some() && stored.is_some() && claimed != stored) {
            return Err(s3_error!(InvalidPart, "the checksum of part {number} is another"));
        }
        chosen.push(found.clone());
    }
    if chosen.is_empty() {
        return Err(s3_error!(MalformedXML, "no parts are listed"));
    }
    if chosen.iter().rev().skip(1).any(|part| part.size < protocol.part_bytes_min) {
        return Err(s3_error!(EntityTooSmall, "only the last part may be below {} bytes", protocol.part_bytes_min));
    }
    Ok(chosen)
}

/// A repeated completion, its first answer lost: the object is there and came from this upload.
async fn completed_before(
    protocol: &Protocol,
    input: &CompleteMultipartUploadInput,
) -> Option<std::sync::Arc<ObjectInfo>> {
    let info = protocol.store.head(&input.bucket, &input.key).await.ok()?;
    let listed = input.multipart_upload.as_ref()?.parts.as_ref()?.len();
    let same = info.upload.as_ref().is_some_and(|id| id.0 == input.upload_id) && info.part_sizes.len() == listed;
    same.then_some(info)
}

pub async fn complete(
    protocol: &Protocol,
    req: S3Request<CompleteMultipartUploadInput>,
) -> S3Result<CompleteMultipartUploadOutput> {
    let mut input = req.input;
    let id = UploadId(input.upload_id.clone());
    let info = match protocol.store.parts(&input.bucket, &input.key, &id).await {
        Ok((upload, stored)) => {
            let listed = input.multipart_upload.take().and_then(|list| list.parts).unwrap_or_default();
            let parts = chosen(protocol, &listed, &stored)?;
            let size: u64 = parts.iter().map(|part| part.size).sum();
            if input.mpu_object_size.is_some_and(|claimed| u64::try_from(claimed) != Ok(size)) {
                return Err(s3_error!(InvalidRequest, "the parts have {size} bytes together"));
            }
            let (algorithm, composite) = upload.new.checksum.unwrap_or((Algorithm::Crc64Nvme, false));
            let checksum = digest::combine(&parts, algorithm, composite);
            check_whole(&input, &checksum)?;
            let seal = Seal {
                etag: digest::multipart_etag(&parts),
                checksum,
                attributes: upload.new.attributes.clone(),
                tags: upload.new.tags.clone(),
                condition: convert::condition(input.if_match.as_ref(), input.if_none_match.as_ref()),
            };
            protocol.store.complete(&input.bucket, &input.key, &id, parts, seal).await.map_err(convert::error)?
        }
        Err(missing @ StoreError::NoSuchUpload(_)) => {
            completed_before(protocol, &input).await.ok_or_else(|| convert::error(missing))?
        }
        Err(e) => return Err(convert::error(e)),
    };
    let sums = get::checksums(&info.checksum);
    Ok(CompleteMultipartUploadOutput {
        location: Some(format!("/{}/{}", input.bucket, convert::url_encode(&input.key))),
        bucket: Some(input.bucket),
        key: convert::xml_text(input.key),
        e_tag: Some(convert::etag(&info.etag)),
        checksum_crc32: sums.checksum_crc32,
        checksum_crc32c: sums.checksum_crc32c,
        checksum_crc64nvme: sums.checksum_crc64nvme,
        checksum_sha1: sums.checksum_sha1,
        checksum_sha256: sums.checksum_sha256,
        checksum_type: sums.checksum_type,
        ..CompleteMultipartUploadOutput::default()
    })
}

/// Compares the checksum of the whole object, where the client sent one of the upload's algorithm.
fn check_whole(input: &CompleteMultipartUploadInput, stored: &Option<store::Checksum>) -> S3Result<()> {
    let sums = get::checksums(stored);
    let claims = [
        (&input.checksum_crc32, &sums.checksum_crc32),
        (&input.checksum_crc32c, &sums.checksum_crc32c),
        (&input.checksum_crc64nvme, &sums.checksum_crc64nvme),
        (&input.checksum_sha1, &sums.checksum_sha1),
        (&input.checksum_sha256, &sums.checksum_sha256),
    ];
    for (claimed, stored) in claims {
        match (claimed, stored) {
            (Some(claimed), Some(stored)) if claimed != stored => {
                return Err(s3_error!(BadDigest, "the checksum of the whole did not match that of the parts"));
            }
            (Some(_), None) => {
                return Err(s3_error!(BadDigest, "the upload was not made with that checksum algorithm"));
            }
            _ => {}
        }
    }
    Ok(())
}

pub async fn abort(
    protocol: &Protocol,
    req: S3Request<AbortMultipartUploadInput>,
) -> S3Result<AbortMultipartUploadOutput> {
    let input = req.input;
    let id = UploadId(input.upload_id);
    protocol.store.abort(&input.bucket, &input.key, &id).await.map_err(convert::error)?;
    Ok(AbortMultipartUploadOutput::default())
}

pub async fn list_parts(protocol: &Protocol, req: S3Request<ListPartsInput>) -> S3Result<ListPartsOutput> {
    let input = req.input;
    let id = UploadId(input.upload_id.clone());
    let (upload, parts) = protocol.store.parts(&input.bucket, &input.key, &id).await.map_err(convert::error)?;
    let limit = limit(input.max_parts)?;
    let after = input.part_number_marker.unwrap_or_default();
    let mut rest = parts.into_iter().filter(|part| i32::from(part.number) > after).peekable();
    let mut page = Vec::new();
    while page.len() < limit
        && let Some(part) = rest.next()
    {
        let sums = get::checksums(&part.checksum);
        page.push(Part {
            part_number: Some(i32::from(part.number)),
            size: Some(part.size as i64),
            e_tag: Some(convert::etag(&part.etag)),
            last_modified: Some(convert::time(part.modified)),
            checksum_crc32: sums.checksum_crc32,
            checksum_crc32c: sums.checksum_crc32c,
            checksum_crc64nvme: sums.checksum_crc64nvme,
            checksum_sha1: sums.checksum_sha1,
            checksum_sha256: sums.checksum_sha256,
        });
    }
    let truncated = limit > 0 && rest.peek().is_some();
    let named = upload.new.checksum;
    Ok(ListPartsOutput {
        bucket: Some(input.bucket),
        key: convert::xml_text(input.key),
        upload_id: Some(input.upload_id),
        max_parts: Some(limit as i32),
        part_number_marker: input.part_number_marker,
        next_part_number_marker: page.last().and_then(|part| part.part_number),
        is_truncated: Some(truncated),
        parts: Some(page),
        checksum_algorithm: named.map(|(algorithm, _)| ChecksumAlgorithm::from_static(digest::name_of(algorithm))),
        checksum_type: named.map(|(_, composite)| checksum_type(composite)),
        ..ListPartsOutput::default()
    })
}

pub async fn list_uploads(
    protocol: &Protocol,
    req: S3Request<ListMultipartUploadsInput>,
) -> S3Result<ListMultipartUploadsOutput> {
    let input = req.input;
    if input.delimiter.as_deref().is_some_and(|d| !d.is_empty()) {
        return Err(s3_error!(NotImplemented, "uploads cannot be listed with a delimiter"));
    }
    let url = input.encoding_type.as_ref().map(EncodingType::as_str) == Some(EncodingType::URL);
    let write = |name: &str| if url { convert::url_encode(name) } else { name.to_owned() };
    let limit = limit(input.max_uploads)?;
    let prefix = input.prefix.clone().unwrap_or_default();
    let found = protocol.store.uploads(&input.bucket, &prefix).await.map_err(convert::error)?;
    let key_marker = input.key_marker.clone().unwrap_or_default();
    let behind = |upload: &store::UploadInfo| {
        key_marker.is_empty()
            || match &input.upload_id_marker {
                Some(id) => (&upload.new.key, &upload.id.0) > (&key_marker, id),
                None => upload.new.key > key_marker,
            }
    };
    let mut rest = found.into_iter().filter(|upload| behind(upload)).peekable();
    let page: Vec<_> = rest.by_ref().take(limit).collect();
    // `take` leaves the iterator just behind the page.
    let truncated = limit > 0 && rest.peek().is_some();
    let last = page.last().filter(|_| truncated).cloned();
    let uploads = page
        .iter()
        .map(|upload| MultipartUpload {
            key: Some(write(&upload.new.key)),
            upload_id: Some(upload.id.0.clone()),
            initiated: Some(convert::time(upload.initiated)),
            ..MultipartUpload::default()
        })
        .collect();
    Ok(ListMultipartUploadsOutput {
        bucket: Some(input.bucket),
        prefix: Some(write(&prefix)),
        key_marker: input.key_marker.as_deref().map(write),
        upload_id_marker: input.upload_id_marker,
        next_key_marker: last.as_ref().map(|upload| write(&upload.new.key)),
        next_upload_id_marker: last.map(|upload| upload.id.0.clone()),
        encoding_type: input.encoding_type,
        max_uploads: Some(limit as i32),
        is_truncated: Some(truncated),
        uploads: Some(uploads),
        ..ListMultipartUploadsOutput::default()
    })
}
