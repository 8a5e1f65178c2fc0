//! From the SDK's nested errors to the classes that decide what follows, with one line for the administrator.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use crate::ports::{RemoteError, RemoteErrorKind};
use crate::types::ObjectKey;

use super::config::RemoteConfig;
use super::signer::Unsigned;

/// Longest text of a store or a library quoted in an error, in characters.
const QUOTE_MAX: usize = 200;

/// Names the request that completes an upload of many parts.
pub(super) const COMPLETE: &str = "complete upload of";

/// What an error names.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub operation: &'static str,
    pub key: Option<&'a ObjectKey>,
    pub endpoint: &'a str,
    pub config: &'a RemoteConfig,
}

impl Place<'_> {
    pub(super) fn error(&self, kind: RemoteErrorKind, detail: impl Into<String>) -> RemoteError {
        let bucket = &self.config.bucket;
        let object = self.key.map_or_else(|| bucket.clone(), |key| format!("{bucket}/{}", printable(&key.0)));
        let endpoint = self.endpoint.to_owned();
        RemoteError { kind, operation: self.operation, object, endpoint, detail: detail.into() }
    }

    /// The class and the words for a call that failed in the SDK.
    pub(super) fn failed<E>(&self, error: &SdkError<E, HttpResponse>) -> RemoteError
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        // The SDK reports missing credentials from different phases of a call; wherever they are, they are the reason.
        if let Some(error) = find::<CredentialsError>(error) {
            return self.no_credentials(error);
        }
        match error {
            SdkError::ServiceError(refusal) => {
                let status = refusal.raw().status().as_u16();
                let code = refusal.err().code().unwrap_or_default();
                if code.is_empty() && (200..300).contains(&status) {
                    return self.unreadable(status, error);
                }
                let message = refusal.err().message().unwrap_or_default();
                self.refused(status, code, message)
            }
            SdkError::TimeoutError(_) => self.timed_out("no answer"),
            SdkError::DispatchFailure(failure) if failure.is_timeout() => self.no_connection(),
            SdkError::DispatchFailure(failure) if failure.is_user() => {
                self.error(RemoteErrorKind::Rejected, format!("the request cannot be sent: {}", innermost(error)))
            }
            SdkError::DispatchFailure(_) => self.unreachable(error),
            SdkError::ResponseError(answer) => self.unreadable(answer.raw().status().as_u16(), error),
            SdkError::ConstructionFailure(_) => {
                self.error(RemoteErrorKind::Rejected, format!("the request cannot be made: {}", innermost(error)))
            }
            _ => self.error(RemoteErrorKind::Rejected, innermost(error)),
        }
    }

    pub(super) fn timed_out(&self, what: &str) -> RemoteError {
        self.error(
            RemoteErrorKind::TimedOut,
            format!("timed out: {what}; check that the endpoint is up and its network is not overloaded"),
        )
    }

    pub(super) fn unreachable(&self, error: &(dyn Error + 'static)) -> RemoteError {
        let reason = innermost(error);
        let way_out = if reason.contains("certificate") {
            "make the system trust the authority that signed it, or name its file in SSL_CERT_FILE"
        } else {
            "check that the endpoint is up and its URL is right"
        };
        self.error(RemoteErrorKind::Unreachable, format!("cannot be reached ({reason}): {way_out}"))
    }

    /// A request that the SDK did not send, and that had no answer.
    pub(super) fn not_sent(&self, error: &hyper_util::client::legacy::Error) -> RemoteError {
        if error.is_connect() && find::<tokio::time::error::Elapsed>(error).is_some() {
            return self.no_connection();
        }
        self.unreachable(error)
    }

    fn no_connection(&self) -> RemoteError {
        self.timed_out(&format!("no connection within {:?}", self.config.timeouts.connect))
    }

    /// A request that could not be signed.
    pub(super) fn not_signed(&self, why: Unsigned) -> RemoteError {
        match why {
            Unsigned::Credentials(error) => self.no_credentials(&error),
            Unsigned::Impossible(why) => {
                self.error(RemoteErrorKind::Rejected, format!("the request cannot be made: {why}"))
            }
        }
    }

    fn no_credentials(&self, error: &CredentialsError) -> RemoteError {
        let wanted = self.config.credentials.describe();
        let pair = &self.config.pair;
        let way_out = format!("provide them, or name a file (`tierfs pair edit {pair}`)");
        match error {
            CredentialsError::ProviderTimedOut(_) => self.timed_out(&format!("no credentials from the {wanted}")),
            CredentialsError::CredentialsNotLoaded(_) => {
                self.error(RemoteErrorKind::Denied, format!("no credentials found in the {wanted}; {way_out}"))
            }
            _ => self.error(
                RemoteErrorKind::Denied,
                format!("no usable credentials in the {wanted} ({}); {way_out}", innermost(error)),
            ),
        }
    }

    /// An answer the SDK could not make sense of: cut short, or of something that is not S3.
    fn unreadable(&self, status: u16, error: &(dyn Error + 'static)) -> RemoteError {
        if find::<hyper::Error>(error).is_some() {
            return self.unreachable(error);
        }
        if !(200..300).contains(&status) {
            return self.refused(status, "", "");
        }
        // Only the completion of an upload may say 200 first and fail then: that is S3's way of a late 500.
        let kind = if self.operation == COMPLETE { RemoteErrorKind::Server } else { RemoteErrorKind::Rejected };
        let reason = innermost(error);
        self.error(kind, format!("its answer (status {status}) cannot be read ({reason}): is this an S3 endpoint?"))
    }

    /// A refusal the store explained, by its code first and its status where there is none (HEAD has no body).
    pub(super) fn refused(&self, status: u16, code: &str, message: &str) -> RemoteError {
        use RemoteErrorKind as Kind;
        let pair = &self.config.pair;
        let bucket = &self.config.bucket;
        let said = said(status, code, message);
        let (kind, detail) = match (code, status) {
            ("NoSuchBucket", _) => (
                Kind::NoSuchBucket,
                format!(
                    "bucket {bucket} does not exist there: create it, or edit the pair (`tierfs pair edit {pair}`)"
                ),
            ),
            // The code of a HEAD is the SDK's own word for the status.
            ("" | "NotFound", 404) if self.key.is_none() => (
                Kind::NoSuchBucket,
                format!(
                    "bucket {bucket} does not exist there ({said}): create it, or check that the endpoint is the right \
                     one and edit the pair (`tierfs pair edit {pair}`)"
                ),
            ),
            ("NoSuchKey" | "NotFound" | "NoSuchVersion", _) => (Kind::NotFound, "no such object".to_owned()),
            ("InvalidObjectState", _) => {
                (Kind::Archived, format!("the object is in an archive class and must be restored first ({said})"))
            }
            ("PreconditionFailed" | "ConditionalRequestConflict", _) => {
                (Kind::Conflict, format!("the condition was not met ({said})"))
            }
            ("RequestTimeTooSkewed" | "RequestExpired", _) => {
                (Kind::Denied, format!("the clocks of this machine and the store differ too much ({said}): set them"))
            }
            ("PermanentRedirect" | "TemporaryRedirect" | "AuthorizationHeaderMalformed", _) | (_, 301 | 307 | 308) => (
                Kind::Rejected,
                format!("the bucket belongs to another region or endpoint ({said}): `tierfs pair edit {pair}`"),
            ),
            ("QuotaExceeded" | "XMinioStorageFull" | "EntityTooLarge" | "KeyTooLongError", _) => {
                (Kind::Rejected, format!("the store does not take it ({said})"))
            }
            ("BadDigest" | "InvalidDigest" | "XAmzContentChecksumMismatch" | "XAmzContentSHA256Mismatch", _)
            | ("IncompleteBody", _) => (Kind::Corrupt, format!("the bytes did not arrive as they were sent ({said})")),
            ("RequestTimeout", _) | (_, 408 | 504) => (Kind::TimedOut, format!("the store waited too long ({said})")),
            ("SlowDown" | "SlowDownRead" | "SlowDownWrite" | "Throttling" | "ThrottlingException", _)
            | ("TooManyRequests" | "RequestLimitExceeded" | "BandwidthLimitExceeded" | "ServiceUnavailable", _)
            | (_, 429)
            | ("", 503) => (Kind::SlowDown, format!("the store asks to slow down ({said})")),
            (_, 401 | 403)
            | ("AccessDenied" | "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "ExpiredToken" | "InvalidToken", _) => {
                (
                    Kind::Denied,
                    format!(
                        "access denied ({said}): check the {} and the bucket's permissions",
                        self.config.credentials.describe()
                    ),
                )
            }
            (_, 404) if self.key.is_none() => (
                Kind::NoSuchBucket,
                format!(
                    "bucket {bucket} does not exist there: create it, or edit the pair (`tierfs pair edit {pair}`)"
                ),
            ),
            // A missing upload is not a missing object.
            ("NoSuchUpload", _) => (Kind::Rejected, format!("the upload was ended by somebody else ({said})")),
            (_, 404) => (Kind::NotFound, "no such object".to_owned()),
            (_, 409 | 412) => (Kind::Conflict, format!("the condition was not met ({said})")),
            ("InvalidRange", _) | (_, 416) => {
                (Kind::Corrupt, format!("the object is shorter than it should be ({said})"))
            }
            (_, 501) => (Kind::Rejected, format!("the store cannot do this ({said})")),
            // Also a late failure after a 200: see `unreadable`.
            (_, 200..=299 | 500..) => (Kind::Server, format!("the store failed ({said})")),
            _ => (Kind::Rejected, format!("the store refused ({said})")),
        };
        self.error(kind, detail)
    }
}

/// Whether the store says it does not implement what the request asked for.
pub(super) fn is_not_implemented<E>(error: &SdkError<E, HttpResponse>) -> bool
where
    E: ProvideErrorMetadata,
{
    match error {
        SdkError::ServiceError(refusal) => {
            refusal.raw().status().as_u16() == 501 || refusal.err().code() == Some("NotImplemented")
        }
        SdkError::ResponseError(answer) => answer.raw().status().as_u16() == 501,
        _ => false,
    }
}

fn said(status: u16, code: &str, message: &str) -> String {
    let message = one_line(message);
    match (code.is_empty(), message.is_empty()) {
        (true, true) => format!("status {status}"),
        (true, false) => format!("status {status}: {message}"),
        (false, true) => format!("{status} {code}"),
        (false, false) => format!("{status} {code}: {message}"),
    }
}

fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    std::iter::successors(Some(error), |&error| error.source()).find_map(|error| error.downcast_ref())
}

/// The last cause of a chain: the SDK's outer layers say only that something failed.
pub(super) fn innermost(error: &(dyn Error + 'static)) -> String {
    let last = std::iter::successors(Some(error), |&error| error.source()).last().unwrap_or(error);
    one_line(&last.to_string())
}

/// Text on one line.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Text from elsewhere on one line, bounded.
pub(super) fn one_line(text: &str) -> String {
    let clean = printable(text.trim());
    match clean.char_indices().nth(QUOTE_MAX) {
        Some((end, _)) => format!("{}…", &clean[..end]),
        None => clean,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_statuses_fall_into_their_classes() {
        use RemoteErrorKind as Kind;
        let config = RemoteConfig::new("east".parse().unwrap(), "b", "http://h:1");
        let key = ObjectKey("k\n1".into());
        let on_object = Place { operation: "get", key: Some(&key), endpoint: "http://h:1", config: &config };
        let on_bucket = Place { key: None, ..on_object };
        for (status, code, kind) in [
            (404, "NoSuchKey", Kind::NotFound),
            (404, "", Kind::NotFound),
            (404, "NoSuchBucket", Kind::NoSuchBucket),
            (404, "NoSuchUpload", Kind::Rejected),
            (412, "PreconditionFailed", Kind::Conflict),
            (412, "", Kind::Conflict),
            (409, "ConditionalRequestConflict", Kind::Conflict),
            (403, "InvalidObjectState", Kind::Archived),
            (403, "", Kind::Denied),
            (403, "AccessDenied", Kind::Denied),
            (403, "RequestTimeTooSkewed", Kind::Denied),
            (400, "ExpiredToken", Kind::Denied),
            (400, "InvalidAccessKeyId", Kind::Denied),
            (401, "Unauthorized", Kind::Denied),
            (403, "QuotaExceeded", Kind::Rejected),
            (301, "PermanentRedirect", Kind::Rejected),
            (400, "BadDigest", Kind::Corrupt),
            (400, "RequestTimeout", Kind::TimedOut),
            (416, "InvalidRange", Kind::Corrupt),
            (429, "", Kind::SlowDown),
            (503, "SlowDown", Kind::SlowDown),
            (503, "", Kind::SlowDown),
            (503, "NoLeader", Kind::Server),
            (500, "InternalError", Kind::Server),
            (502, "", Kind::Server),
            (504, "", Kind::TimedOut),
            (200, "InternalError", Kind::Server),
            (501, "NotImplemented", Kind::Rejected),
            (400, "InvalidArgument", Kind::Rejected),
        ] {
            let error = on_object.refused(status, code, "some\nwords");
            assert_eq!(error.kind, kind, "{status} {code}");
            assert!(!error.to_string().contains('\n'), "{error}");
        }
        assert_eq!(on_bucket.refused(404, "", "").kind, Kind::NoSuchBucket);
        let text = on_bucket.refused(404, "NoSuchBucket", "").to_string();
        assert_eq!(
            text,
            "get b at http://h:1: bucket b does not exist there: create it, or edit the pair (`tierfs pair edit east`)"
        );
        let long = on_object.refused(400, "X", &"y".repeat(10_000)).to_string();
        assert!(long.len() < 400, "{}", long.len());
    }
}
