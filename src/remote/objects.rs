//! The small requests: head, delete, list.

use std::borrow::Cow;

use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::types::{ChecksumMode, EncodingType};
use percent_encoding::percent_decode_str;

use crate::ports::{ObjectInfo, RemoteErrorKind, RemoteResult};
use crate::types::ObjectKey;

use super::Shared;
use super::classify::{Place, one_line};
use super::deadline::within;
use super::endpoints::Endpoint;
use super::restore::state_of;

/// Most keys one listing returns (S3's own limit).
const LIST_MAX: i32 = 1_000;
/// Longest ETag believed, in bytes. Stores use 32 to 70.
const ETAG_LEN_MAX: usize = 512;

/// An ETag as it is compared and stored: without quotes, and without the mark of a weak one.
pub(super) fn unquoted(etag: &str) -> String {
    etag.trim().trim_start_matches("W/").trim_matches('"').to_owned()
}

/// Fails for an ETag longer than any store's: it would be in records, and in what people read.
pub(super) fn check_etag(place: &Place<'_>, etag: &str) -> RemoteResult<()> {
    if etag.len() <= ETAG_LEN_MAX {
        return Ok(());
    }
    Err(place.error(RemoteErrorKind::Rejected, format!("the store tells an ETag of {} bytes", etag.len())))
}

/// An ETag as it is sent in a condition.
pub(super) fn quoted(etag: &str) -> String {
    format!("\"{etag}\"")
}

/// A key out of a listing. Keys are asked for URL-encoded, since XML cannot carry every character a key may have; a
/// store that does not know the option says so by not echoing it.
pub(super) fn decoded<'a>(key: &'a str, encoding: Option<&EncodingType>) -> Option<Cow<'a, str>> {
    if encoding != Some(&EncodingType::Url) {
        return Some(Cow::Borrowed(key));
    }
    // In this encoding a plus is a space; a real plus is %2B.
    let spaces = key.replace('+', " ");
    percent_decode_str(&spaces).decode_utf8().ok().map(|key| Cow::Owned(key.into_owned()))
}

impl Shared {
    pub(super) async fn head(&self, key: &ObjectKey) -> RemoteResult<ObjectInfo> {
        let mut attempts = self.endpoints.attempts();
        let answer = loop {
            let outcome = self.head_once(attempts.endpoint(), key).await;
            if let Some(outcome) = attempts.settle(outcome) {
                break outcome?;
            }
        };
        let restore = state_of(&answer);
        let mut metadata: Vec<(String, String)> = answer.metadata.unwrap_or_default().into_iter().collect();
        metadata.sort();
        let len = answer.content_length.and_then(|len| u64::try_from(len).ok()).unwrap_or(0);
        Ok(ObjectInfo { len, etag: answer.e_tag.as_deref().map(unquoted).unwrap_or_default(), metadata, restore })
    }

    pub(super) async fn head_once(&self, endpoint: &Endpoint, key: &ObjectKey) -> RemoteResult<HeadObjectOutput> {
        let place = self.place("head", Some(key), endpoint);
        let request = endpoint.client.head_object().bucket(&self.config.bucket).key(&key.0);
        let request = request.checksum_mode(ChecksumMode::Enabled);
        let answer = within(&self.config.timeouts, 0, None, request.send()).await;
        let answer = answer.map_err(|late| place.timed_out(&format!("no answer in {:.1?}", late.after)))?;
        let error = match answer {
            Ok(answer) if answer.content_length.is_none_or(|len| len < 0) => {
                return Err(place.error(RemoteErrorKind::Rejected, "the store does not tell the object's length"));
            }
            Ok(answer) => {
                check_etag(&place, answer.e_tag().unwrap_or_default())?;
                return Ok(answer);
            }
            Err(error) => place.failed(&error),
        };
        // A HEAD's 404 has no body and so no code: it may be the bucket that is missing, and then no object is lost.
        if error.kind == RemoteErrorKind::NotFound
            && let Err(bucket) = self.head_bucket(endpoint).await
            && bucket.kind == RemoteErrorKind::NoSuchBucket
        {
            return Err(bucket);
        }
        Err(error)
    }

    async fn head_bucket(&self, endpoint: &Endpoint) -> RemoteResult<()> {
        let place = self.place("head", None, endpoint);
        let request = endpoint.client.head_bucket().bucket(&self.config.bucket);
        let answer = within(&self.config.timeouts, 0, None, request.send()).await;
        let answer = answer.map_err(|late| place.timed_out(&format!("no answer in {:.1?}", late.after)))?;
        answer.map(drop).map_err(|error| place.failed(&error))
    }

    /// One request, unless an upload of this key was interrupted.
    pub(super) async fn delete(&self, key: &ObjectKey) -> RemoteResult<()> {
        // Uploads end first: one that completed after the object was removed would bring it back.
        self.end_uploads(key).await?;
        let mut attempts = self.endpoints.attempts();
        loop {
            let outcome = self.delete_once(attempts.endpoint(), key, None).await;
            if let Some(outcome) = attempts.settle(outcome) {
                return outcome;
            }
        }
    }

    /// As [`Shared::delete`], of one version.
    pub(super) async fn delete_version(&self, key: &ObjectKey, version: String) -> RemoteResult<()> {
        let mut attempts = self.endpoints.attempts();
        loop {
            let outcome = self.delete_once(attempts.endpoint(), key, Some(version.clone())).await;
            if let Some(outcome) = attempts.settle(outcome) {
                return outcome;
            }
        }
    }

    /// Removes the object, or with `version` that version without leaving a delete marker. Not there is success.
    pub(super) async fn delete_once(
        &self,
        endpoint: &Endpoint,
        key: &ObjectKey,
        version: Option<String>,
    ) -> RemoteResult<()> {
        let place = self.place("delete", Some(key), endpoint);
        let request = endpoint.client.delete_object().bucket(&self.config.bucket).key(&key.0).set_version_id(version);
        let answer = within(&self.config.timeouts, 0, None, request.send()).await;
        let answer = answer.map_err(|late| place.timed_out(&format!("no answer in {:.1?}", late.after)))?;
        match answer.map_err(|error| place.failed(&error)) {
            Err(error) if error.kind != RemoteErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    pub(super) async fn list(&self, prefix: &str, after: Option<&ObjectKey>) -> RemoteResult<Vec<(ObjectKey, u64)>> {
        let mut attempts = self.endpoints.attempts();
        loop {
            let outcome = self.list_once(attempts.endpoint(), prefix, after, LIST_MAX).await;
            if let Some(outcome) = attempts.settle(outcome) {
                return outcome;
            }
        }
    }

    pub(super) async fn list_once(
        &self,
        endpoint: &Endpoint,
        prefix: &str,
        after: Option<&ObjectKey>,
        keys_max: i32,
    ) -> RemoteResult<Vec<(ObjectKey, u64)>> {
        let place = self.place("list", None, endpoint);
        let request = endpoint
            .client
            .list_objects_v2()
            .bucket(&self.config.bucket)
            .prefix(self.config.below_prefix(prefix))
            .set_start_after(after.map(|key| key.0.clone()))
            .max_keys(keys_max)
            .encoding_type(EncodingType::Url);
        let answer = within(&self.config.timeouts, 0, None, request.send()).await;
        let answer = answer.map_err(|late| place.timed_out(&format!("no answer in {:.1?}", late.after)))?;
        let answer = answer.map_err(|error| place.failed(&error))?;
        let nonsense = || place.error(RemoteErrorKind::Rejected, "the store listed an object without key or length");
        let mut last = after.map_or("", |key| key.0.as_str()).to_owned();
        let asked = self.config.below_prefix(prefix);
        let listed = answer.contents().iter().map(|object| {
            let key = decoded(object.key()?, answer.encoding_type())?.into_owned();
            Some((ObjectKey(key), u64::try_from(object.size()?).ok()?))
        });
        listed
            .map(|object| {
                let object = object.ok_or_else(nonsense)?;
                // Whoever goes on after the last key of a page would miss objects, or never come to an end.
                if object.0.0 <= last || !object.0.0.starts_with(&asked) {
                    let detail = format!("the store listed {:?} after {last:?} below {asked:?}", one_line(&object.0.0));
                    return Err(place.error(RemoteErrorKind::Rejected, detail));
                }
                last.clone_from(&object.0.0);
                Ok(object)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etags_and_keys_are_unwrapped() {
        assert_eq!(unquoted("\"abc-2\""), "abc-2");
        assert_eq!(unquoted("W/\"abc\""), "abc");
        assert_eq!(unquoted("abc"), "abc");
        assert_eq!(decoded("a%2Fb+c%2Bd%01", Some(&EncodingType::Url)).unwrap(), "a/b c+d\u{1}");
        assert_eq!(decoded("a%2Fb+c", None).unwrap(), "a%2Fb+c");
        assert_eq!(decoded("%ff", Some(&EncodingType::Url)), None);
    }
}
