//! Requests for content, signed as the SDK signs them, with credentials kept as the SDK keeps them.

use std::time::{Duration, SystemTime};

use aws_credential_types::provider::ProvideCredentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::SharedCredentialsProvider;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningParams, SigningSettings,
    UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::client::identity::Identity;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use parking_lot::RwLock;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::sync::Mutex;

use super::classify::innermost;

/// What keeps its character in a path: what S3's signature leaves unescaped.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');
/// The SDK's: how long credentials that do not expire are believed, how long before their end others are renewed, and how long a
/// provider may take.
const BELIEVED: Duration = Duration::from_secs(15 * 60);
const RENEW_BEFORE: Duration = Duration::from_secs(10);
const LOAD_WITHIN: Duration = Duration::from_secs(5);

/// Why a request cannot be made.
pub(super) enum Unsigned {
    Credentials(CredentialsError),
    /// In words: the URL or a header cannot be sent.
    Impossible(String),
}

struct Held {
    identity: Identity,
    until: SystemTime,
}

pub(super) struct Signer {
    provider: SharedCredentialsProvider,
    region: String,
    held: RwLock<Option<Held>>,
    /// Held by who asks the provider: one at a time.
    asking: Mutex<()>,
}

/// `bucket` and `key` as the path of a URL.
pub(super) fn path(bucket: &str, key: &str) -> String {
    format!("/{}/{}", utf8_percent_encode(bucket, PATH), utf8_percent_encode(key, PATH))
}

impl Signer {
    pub(super) fn new(provider: SharedCredentialsProvider, region: String) -> Self {
        Self { provider, region, held: RwLock::new(None), asking: Mutex::new(()) }
    }

    /// A signed GET of `url`.
    pub(super) async fn get(
        &self,
        url: String,
        headers: &[(&'static str, String)],
    ) -> Result<Request<Full<Bytes>>, Unsigned> {
        self.request("GET", url, headers, Bytes::new()).await
    }

    /// A signed PUT of a small body.
    pub(super) async fn put(
        &self,
        url: String,
        headers: &[(&'static str, String)],
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, Unsigned> {
        self.request("PUT", url, headers, body).await
    }

    async fn request(
        &self,
        method: &'static str,
        url: String,
        headers: &[(&'static str, String)],
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, Unsigned> {
        let identity = self.identity().await.map_err(Unsigned::Credentials)?;
        let impossible = |error: &(dyn std::error::Error + 'static)| Unsigned::Impossible(innermost(error));
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name("s3")
            .time(SystemTime::now())
            .settings(settings)
            .build()
            .map_err(|error| impossible(&error))?;
        let signed = headers.iter().map(|(name, value)| (*name, value.as_str()));
        let signable = SignableRequest::new(method, url.as_str(), signed, SignableBody::Bytes(&body));
        let params = SigningParams::V4(params);
        let instructions = signable.and_then(|signable| sign(signable, &params)).map_err(|error| impossible(&error))?;
        let mut request = Request::builder().method(method).uri(&url).header(hyper::header::USER_AGENT, AGENT);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let mut request = request.body(Full::new(body)).map_err(|error| impossible(&error))?;
        instructions.into_parts().0.apply_to_request_http1x(&mut request);
        Ok(request)
    }

    async fn identity(&self) -> Result<Identity, CredentialsError> {
        if let Some(identity) = self.kept() {
            return Ok(identity);
        }
        let _asking = self.asking.lock().await;
        if let Some(identity) = self.kept() {
            return Ok(identity);
        }
        let loaded = tokio::time::timeout(LOAD_WITHIN, self.provider.provide_credentials()).await;
        let loaded = loaded.unwrap_or_else(|_| Err(CredentialsError::provider_timed_out(LOAD_WITHIN)))?;
        let now = SystemTime::now();
        let until = loaded.expiry().map_or(now + BELIEVED, |expiry| expiry - RENEW_BEFORE);
        let identity = Identity::from(loaded);
        *self.held.write() = Some(Held { identity: identity.clone(), until });
        Ok(identity)
    }

    /// The credentials there are, unless they must be renewed.
    fn kept(&self) -> Option<Identity> {
        let held = self.held.read();
        held.as_ref().filter(|held| SystemTime::now() < held.until).map(|held| held.identity.clone())
    }
}

const AGENT: &str = concat!("tierfs/", env!("CARGO_PKG_VERSION"));
