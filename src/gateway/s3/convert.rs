//! Between the store's values and S3's: errors, ETags, times, attributes, tags.

use std::time::{Duration, UNIX_EPOCH};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use s3s::dto::{self, ETag, ETagCondition};
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};

use crate::gateway::store::{Attributes, Condition, EtagMatch, StoreError};
use crate::types::Timestamp;

/// Most bytes of user metadata, names and values (S3's limit).
const USER_METADATA_BYTES_MAX: usize = 2 << 10;
const TAGS_MAX: usize = 10;
const TAG_KEY_CHARS_MAX: usize = 128;
const TAG_VALUE_CHARS_MAX: usize = 256;

/// What `encoding-type=url` leaves as it is.
const URL_ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

pub fn url_encode(text: &str) -> String {
    utf8_percent_encode(text, URL_ENCODED).to_string()
}

/// `text` if XML 1.0 can carry it. Where an answer only repeats what the client knows, leaving it out is better than an
/// answer that no parser accepts.
pub fn xml_text(text: String) -> Option<String> {
    let fits = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{fffd}' | '\u{10000}'..);
    text.chars().all(fits).then_some(text)
}

/// The S3 error for `error`. What is no fault of the client's goes to the log in full.
pub fn error(error: StoreError) -> S3Error {
    let message = error.to_string();
    let code = match &error {
        StoreError::NoSuchBucket(_) => S3ErrorCode::NoSuchBucket,
        StoreError::BucketExists(_) => S3ErrorCode::BucketAlreadyOwnedByYou,
        StoreError::BucketNotEmpty(_) => S3ErrorCode::BucketNotEmpty,
        StoreError::NoSuchKey(_) => S3ErrorCode::NoSuchKey,
        StoreError::NoSuchUpload(_) => S3ErrorCode::NoSuchUpload,
        StoreError::PartChanged(_) => S3ErrorCode::InvalidPart,
        StoreError::ConditionFailed => S3ErrorCode::PreconditionFailed,
        StoreError::Gone => S3ErrorCode::NoSuchKey,
        StoreError::Full(_) => {
            tracing::error!(%error, "the store is full");
            return custom("InsufficientStorage", hyper::StatusCode::INSUFFICIENT_STORAGE, message);
        }
        StoreError::Closed | StoreError::Unavailable(_) => S3ErrorCode::ServiceUnavailable,
        StoreError::Denied(_) => S3ErrorCode::AccessDenied,
        StoreError::BadKey { .. } => S3ErrorCode::InvalidArgument,
        StoreError::KeyTooLong => S3ErrorCode::KeyTooLongError,
        StoreError::MetadataTooLong => S3ErrorCode::MetadataTooLarge,
        StoreError::NotSupported(_) => S3ErrorCode::NotImplemented,
        StoreError::Refused(_) => return custom("Refused", hyper::StatusCode::UNPROCESSABLE_ENTITY, message),
        StoreError::InTheWay { .. } => return custom("KeyInTheWay", hyper::StatusCode::CONFLICT, message),
        StoreError::ReadOnly => return custom("ReadOnly", hyper::StatusCode::FORBIDDEN, message),
        StoreError::Io { .. } | StoreError::Poisoned | StoreError::Corrupt(_) | StoreError::Failed(_) => {
            tracing::error!(%error, "the store failed");
            S3ErrorCode::InternalError
        }
    };
    S3Error::with_message(code, message)
}

/// An error that S3 has no code for.
fn custom(code: &'static str, status: hyper::StatusCode, message: String) -> S3Error {
    let mut error = S3Error::with_message(S3ErrorCode::Custom(code.into()), message);
    error.set_status_code(status);
    error
}

pub fn etag(value: &str) -> ETag {
    ETag::Strong(value.to_owned())
}

fn etag_match(condition: &ETagCondition) -> EtagMatch {
    match condition {
        ETagCondition::Any => EtagMatch::Any,
        ETagCondition::ETag(etag) => EtagMatch::Etag(etag.value().to_owned()),
    }
}

pub fn opt_etag_match(condition: Option<&ETagCondition>) -> Option<EtagMatch> {
    condition.map(etag_match)
}

pub fn condition(if_match: Option<&ETagCondition>, if_none_match: Option<&ETagCondition>) -> Condition {
    Condition { if_match: opt_etag_match(if_match), if_none_match: opt_etag_match(if_none_match) }
}

pub fn time(at: Timestamp) -> dto::Timestamp {
    let since = Duration::new(at.secs.max(0) as u64, at.nanos);
    dto::Timestamp::from(UNIX_EPOCH + since)
}

/// Seconds since 1970; S3 compares times in whole seconds.
pub fn seconds(at: &dto::Timestamp) -> i64 {
    let mut text = Vec::new();
    // Writing to memory does not fail, and the epoch format is a decimal number.
    let written = at.format(dto::TimestampFormat::EpochSeconds, &mut text);
    let number = written.ok().and_then(|()| std::str::from_utf8(&text).ok()?.parse::<f64>().ok());
    number.map_or(0, |seconds| seconds.floor() as i64)
}

pub fn opt_seconds(at: Option<i64>) -> Option<dto::Timestamp> {
    at.map(|secs| time(Timestamp { secs, nanos: 0 }))
}

/// User metadata in order of name, within S3's limit.
pub fn user_metadata(metadata: Option<dto::Metadata>) -> S3Result<Vec<(String, String)>> {
    let mut user: Vec<(String, String)> = metadata.unwrap_or_default().into_iter().collect();
    if user.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > USER_METADATA_BYTES_MAX {
        return Err(s3_error!(MetadataTooLarge));
    }
    user.sort();
    Ok(user)
}

/// The content encoding without the transport's own `aws-chunked`.
pub fn content_encoding(sent: Option<String>) -> Option<String> {
    let kept: Vec<&str> =
        sent.as_deref()?.split(',').map(str::trim).filter(|e| !e.is_empty() && *e != "aws-chunked").collect();
    (!kept.is_empty()).then(|| kept.join(","))
}

/// Collects the kept headers out of any S3 input that has them.
macro_rules! attributes {
    ($input:expr) => {
        $crate::gateway::store::Attributes {
            content_type: $input.content_type.take(),
            content_encoding: $crate::gateway::s3::convert::content_encoding($input.content_encoding.take()),
            content_language: $input.content_language.take(),
            content_disposition: $input.content_disposition.take(),
            cache_control: $input.cache_control.take(),
            expires: $input.expires.as_ref().map($crate::gateway::s3::convert::seconds),
            user: $crate::gateway::s3::convert::user_metadata($input.metadata.take())?,
            class: $crate::gateway::s3::restore::class($input.storage_class.as_ref())?,
        }
    };
}
pub(super) use attributes;

/// `x-amz-meta-*` as S3 gives it back.
pub fn metadata(attributes: &Attributes) -> Option<dto::Metadata> {
    (!attributes.user.is_empty()).then(|| attributes.user.iter().cloned().collect())
}

fn check_tags(tags: Vec<(String, String)>) -> S3Result<Vec<(String, String)>> {
    if tags.len() > TAGS_MAX {
        return Err(s3_error!(InvalidTag, "an object can have at most {TAGS_MAX} tags"));
    }
    for (at, (key, value)) in tags.iter().enumerate() {
        let fits =
            (1..=TAG_KEY_CHARS_MAX).contains(&key.chars().count()) && value.chars().count() <= TAG_VALUE_CHARS_MAX;
        if !fits || tags[..at].iter().any(|(other, _)| other == key) {
            return Err(s3_error!(InvalidTag, "the tag {key:?} is not valid"));
        }
    }
    Ok(tags)
}

/// Tags as the `x-amz-tagging` header has them: a query string.
pub fn tags_of_header(header: Option<&str>) -> S3Result<Vec<(String, String)>> {
    let decode = |text: &str| {
        let spaced = text.replace('+', " ");
        let decoded = percent_decode_str(&spaced).decode_utf8().map(|text| text.into_owned());
        decoded.map_err(|_| s3_error!(InvalidArgument, "x-amz-tagging is not valid"))
    };
    let pairs = header.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    let tags: S3Result<Vec<_>> = pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(key)?, decode(value)?))
        })
        .collect();
    check_tags(tags?)
}

pub fn tags_of_set(set: Vec<dto::Tag>) -> S3Result<Vec<(String, String)>> {
    check_tags(set.into_iter().map(|tag| (tag.key.unwrap_or_default(), tag.value.unwrap_or_default())).collect())
}

pub fn tag_set(tags: &[(String, String)]) -> dto::TagSet {
    let tag = |(key, value): &(String, String)| dto::Tag { key: Some(key.clone()), value: Some(value.clone()) };
    tags.iter().map(tag).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_in_a_header() {
        let tags = |header| tags_of_header(Some(header)).map_err(|e| e.code().as_str().to_owned());
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(tags("a=b&c=d+e%2F&f"), Ok(vec![pair("a", "b"), pair("c", "d e/"), pair("f", "")]));
        assert_eq!(tags(""), Ok(vec![]));
        assert_eq!(tags("=x"), Err("InvalidTag".into()));
        assert_eq!(tags("a=1&a=2"), Err("InvalidTag".into()));
        assert_eq!(tags("1&2&3&4&5&6&7&8&9&10&11"), Err("InvalidTag".into()));
    }

    #[test]
    fn the_transports_encoding_is_not_the_contents() {
        let kept = |sent: &str| content_encoding(Some(sent.to_owned()));
        assert_eq!(kept("aws-chunked"), None);
        assert_eq!(kept("gzip, aws-chunked"), Some("gzip".into()));
        assert_eq!(kept("gzip"), Some("gzip".into()));
        assert_eq!(kept(""), None);
    }
}
