//! Listings of objects, both versions.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use s3s::dto::*;
use s3s::{S3Request, S3Result, s3_error};

use super::{Protocol, convert, digest};
use crate::gateway::store::{ListEntry, ListPage, ListQuery, ObjectInfo};

/// Most entries of one page (S3's limit), and the default.
const PAGE_MAX: i32 = 1_000;

fn limit(max_keys: Option<i32>) -> S3Result<usize> {
    let asked = max_keys.unwrap_or(PAGE_MAX).min(PAGE_MAX);
    usize::try_from(asked).map_err(|_| s3_error!(InvalidArgument, "max-keys must not be negative"))
}

/// Names as the client wants them written.
struct Names {
    url: bool,
}

impl Names {
    fn of(encoding: Option<&EncodingType>) -> S3Result<Self> {
        match encoding.map(EncodingType::as_str) {
            None => Ok(Self { url: false }),
            Some(EncodingType::URL) => Ok(Self { url: true }),
            Some(other) => Err(s3_error!(InvalidArgument, "unknown encoding type {other:?}")),
        }
    }

    fn write(&self, name: &str) -> String {
        if self.url { convert::url_encode(name) } else { name.to_owned() }
    }

    fn opt(&self, name: Option<&str>) -> Option<String> {
        name.map(|name| self.write(name))
    }

    fn object(&self, info: &ObjectInfo) -> Object {
        Object {
            key: Some(self.write(&info.key)),
            size: Some(info.size as i64),
            e_tag: Some(convert::etag(&info.etag)),
            last_modified: Some(convert::time(info.modified)),
            storage_class: Some(info.attributes.class.clone().map_or_else(
                || ObjectStorageClass::from_static(ObjectStorageClass::STANDARD),
                ObjectStorageClass::from,
            )),
            checksum_algorithm: info
                .checksum
                .as_ref()
                .map(|sum| vec![ChecksumAlgorithm::from_static(digest::name_of(sum.algorithm))]),
            ..Object::default()
        }
    }

    fn split(&self, page: &ListPage) -> (ObjectList, CommonPrefixList) {
        let (mut objects, mut prefixes) = (Vec::new(), Vec::new());
        for entry in &page.entries {
            match entry {
                ListEntry::Object(info) => objects.push(self.object(info)),
                ListEntry::CommonPrefix(prefix) => prefixes.push(CommonPrefix { prefix: Some(self.write(prefix)) }),
            }
        }
        (objects, prefixes)
    }
}

/// Where the next page begins.
fn last(page: &ListPage) -> Option<&str> {
    page.truncated.then(|| page.entries.last()).flatten().map(|entry| match entry {
        ListEntry::Object(info) => info.key.as_str(),
        ListEntry::CommonPrefix(prefix) => prefix.as_str(),
    })
}

pub async fn list_v2(protocol: &Protocol, req: S3Request<ListObjectsV2Input>) -> S3Result<ListObjectsV2Output> {
    let input = req.input;
    let names = Names::of(input.encoding_type.as_ref())?;
    let from_token = match &input.continuation_token {
        None => None,
        Some(token) => {
            let raw = BASE64.decode(token).ok().and_then(|raw| String::from_utf8(raw).ok());
            Some(raw.ok_or_else(|| s3_error!(InvalidArgument, "the continuation token is not valid"))?)
        }
    };
    let query = ListQuery {
        prefix: input.prefix.clone().unwrap_or_default(),
        delimiter: input.delimiter.clone(),
        after: from_token.or_else(|| input.start_after.clone()),
        limit: limit(input.max_keys)?,
    };
    let page = protocol.store.list(&input.bucket, &query).await.map_err(convert::error)?;
    let (contents, common_prefixes) = names.split(&page);
    Ok(ListObjectsV2Output {
        name: Some(input.bucket),
        prefix: Some(names.write(&query.prefix)),
        delimiter: names.opt(input.delimiter.as_deref()),
        start_after: names.opt(input.start_after.as_deref()),
        encoding_type: input.encoding_type,
        max_keys: Some(query.limit as i32),
        key_count: Some(page.entries.len() as i32),
        is_truncated: Some(page.truncated),
        continuation_token: input.continuation_token,
        next_continuation_token: last(&page).map(|key| BASE64.encode(key)),
        contents: Some(contents),
        common_prefixes: Some(common_prefixes),
        ..ListObjectsV2Output::default()
    })
}

pub async fn list_v1(protocol: &Protocol, req: S3Request<ListObjectsInput>) -> S3Result<ListObjectsOutput> {
    let input = req.input;
    let names = Names::of(input.encoding_type.as_ref())?;
    let query = ListQuery {
        prefix: input.prefix.clone().unwrap_or_default(),
        delimiter: input.delimiter.clone(),
        after: input.marker.clone().filter(|marker| !marker.is_empty()),
        limit: limit(input.max_keys)?,
    };
    let page = protocol.store.list(&input.bucket, &query).await.map_err(convert::error)?;
    let (contents, common_prefixes) = names.split(&page);
    Ok(ListObjectsOutput {
        name: Some(input.bucket),
        prefix: Some(names.write(&query.prefix)),
        delimiter: names.opt(input.delimiter.as_deref()),
        marker: Some(names.write(input.marker.as_deref().unwrap_or_default())),
        encoding_type: input.encoding_type,
        max_keys: Some(query.limit as i32),
        is_truncated: Some(page.truncated),
        next_marker: names.opt(last(&page)),
        contents: Some(contents),
        common_prefixes: Some(common_prefixes),
        ..ListObjectsOutput::default()
    })
}
