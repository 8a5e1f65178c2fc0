//! The clients of a remote, one an endpoint, and which of them to ask.
//!
//! An endpoint that failed is asked last for a while. Health is a hint, never a refusal: with all endpoints failed the
//! one that failed longest ago is asked.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Builder, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    SharedCredentialsProvider, SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_smithy_http_client::tls;

use crate::ports::{RemoteError, RemoteErrorKind, RemoteResult};

use super::bounded::Bounded;
use super::classify::Place;
use super::config::{CredentialsFrom, RemoteConfig};

/// How long a failed endpoint is asked last.
const PENALTY: Duration = Duration::from_secs(30);
/// Idle connections kept an endpoint: as many as small files are moved at once.
pub(super) const IDLE_MAX: usize = 128;
/// Shorter than servers' own (20 s and more), so that a request seldom meets a connection the server just closed.
pub(super) const IDLE_TIME: Duration = Duration::from_secs(15);

/// One endpoint.
pub(super) struct Endpoint {
    pub(super) url: String,
    pub(super) client: Client,
    /// Milliseconds since the start of [`Endpoints`] until which it is asked last.
    shunned_until_ms: AtomicU64,
}

/// All endpoints, in the configured order.
pub(super) struct Endpoints {
    start: Instant,
    all: Vec<Endpoint>,
}

impl Endpoints {
    /// With the provider of their credentials, for requests that the SDK does not send.
    pub(super) async fn connect(config: &RemoteConfig) -> RemoteResult<(Self, SharedCredentialsProvider)> {
        let http = http_client(config);
        let credentials = credentials(config, &http).await?;
        let mut all = Vec::with_capacity(config.endpoints.len());
        for url in &config.endpoints {
            if !is_url(url) {
                let detail = format!(
                    "endpoint {url:?} is not of the form http(s)://host[:port]: `tierfs pair edit {}`",
                    config.pair
                );
                return Err(refused(config, url, RemoteErrorKind::Rejected, detail));
            }
            let client = client(config, url, http.clone(), credentials.clone());
            all.push(Endpoint { url: url.clone(), client, shunned_until_ms: AtomicU64::new(0) });
        }
        if all.is_empty() {
            let detail = format!("the pair has no endpoint: `tierfs pair edit {}`", config.pair);
            return Err(refused(config, "nowhere", RemoteErrorKind::Rejected, detail));
        }
        Ok((Self { start: Instant::now(), all }, credentials))
    }

    /// The endpoint to ask first.
    pub(super) fn first(&self) -> &Endpoint {
        &self.all[self.best(None)]
    }

    /// The endpoint for a retry after `failed`: another one where there is one.
    fn second(&self, failed: usize) -> usize {
        if self.all.len() > 1 { self.best(Some(failed)) } else { failed }
    }

    fn best(&self, except: Option<usize>) -> usize {
        let now = self.now_ms();
        let standing = |at: &usize| {
            let until = self.all[*at].shunned_until_ms.load(Ordering::Relaxed);
            if until <= now { 0 } else { until }
        };
        let candidates = (0..self.all.len()).filter(|at| Some(*at) != except);
        // `min_by_key` keeps the first of equals: the configured order. There is at least one endpoint, and `second`
        // excludes one only if there are more.
        candidates.min_by_key(standing).unwrap_or(0)
    }

    /// A call's attempts: one, and another where that can mend the failure.
    pub(super) fn attempts(&self) -> Attempts<'_> {
        Attempts { endpoints: self, turn: self.turn() }
    }

    /// The same, for who cannot borrow.
    pub(super) fn turn(&self) -> Turn {
        Turn { at: self.best(None), retried: false }
    }

    fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }
}

/// Whose turn it is in a call. The retry comes at once, on another endpoint where there is one; a deadline that passed is
/// not retried on the same endpoint, for the caller was promised an answer by then.
pub(super) struct Turn {
    at: usize,
    retried: bool,
}

impl Turn {
    /// Where this attempt goes.
    pub(super) fn endpoint<'a>(&self, endpoints: &'a Endpoints) -> &'a Endpoint {
        &endpoints.all[self.at]
    }

    /// The attempt succeeded.
    pub(super) fn worked(&self, endpoints: &Endpoints) {
        let endpoint = self.endpoint(endpoints);
        // Reading first spares the cache line that all requests share.
        if endpoint.shunned_until_ms.load(Ordering::Relaxed) != 0 {
            endpoint.shunned_until_ms.store(0, Ordering::Relaxed);
        }
    }

    /// The attempt failed: whether that is the end. If not, the next attempt has its place.
    pub(super) fn is_over(&mut self, endpoints: &Endpoints, error: &RemoteError) -> bool {
        if error.kind.is_transient() {
            let until = endpoints.now_ms() + PENALTY.as_millis() as u64;
            self.endpoint(endpoints).shunned_until_ms.store(until, Ordering::Relaxed);
        }
        let next = endpoints.second(self.at);
        let worth_it = match error.kind {
            RemoteErrorKind::TimedOut => next != self.at,
            RemoteErrorKind::Corrupt => true,
            kind => kind.is_transient(),
        };
        if self.retried || !worth_it {
            return true;
        }
        *self = Self { at: next, retried: true };
        tracing::debug!(%error, retry_at = self.endpoint(endpoints).url, "remote request is tried once more");
        false
    }
}

/// The attempts of one call.
pub(super) struct Attempts<'a> {
    endpoints: &'a Endpoints,
    turn: Turn,
}

impl<'a> Attempts<'a> {
    /// Where this attempt goes.
    pub(super) fn endpoint(&self) -> &'a Endpoint {
        self.turn.endpoint(self.endpoints)
    }

    /// Whether this is the second attempt.
    pub(super) fn retried(&self) -> bool {
        self.turn.retried
    }

    /// Takes what an attempt came to: `Some` is the call's outcome, `None` asks for the next attempt.
    pub(super) fn settle<T>(&mut self, outcome: RemoteResult<T>) -> Option<RemoteResult<T>> {
        match &outcome {
            Ok(_) => self.turn.worked(self.endpoints),
            Err(error) if self.turn.is_over(self.endpoints, error) => {}
            Err(_) => return None,
        }
        Some(outcome)
    }
}

fn is_url(url: &str) -> bool {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    rest.is_some_and(|rest| !rest.is_empty() && url.parse::<hyper::Uri>().is_ok_and(|uri| uri.host().is_some()))
}

pub(super) fn refused(config: &RemoteConfig, endpoint: &str, kind: RemoteErrorKind, detail: String) -> RemoteError {
    Place { operation: "connect", key: None, endpoint, config }.error(kind, detail)
}

/// One pool of connections for all endpoints. Plain http spares the reading of the root certificates.
fn http_client(config: &RemoteConfig) -> SharedHttpClient {
    let builder = aws_smithy_http_client::Builder::new().pool_max_idle_per_host(IDLE_MAX).pool_idle_timeout(IDLE_TIME);
    let plain = config.endpoints.iter().all(|url| url.starts_with("http://"));
    // The standard chain may have to ask an https service for credentials.
    if plain && matches!(config.credentials, CredentialsFrom::File { .. }) {
        builder.build_http()
    } else {
        builder.tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring)).build_https()
    }
}

async fn credentials(config: &RemoteConfig, http: &SharedHttpClient) -> RemoteResult<SharedCredentialsProvider> {
    match &config.credentials {
        CredentialsFrom::File { path, profile } => {
            // The SDK takes a missing file for an empty one; the administrator should hear which it is.
            if let Err(error) = std::fs::File::open(path) {
                let detail = format!(
                    "credentials file {}: {error}; create it, or edit the pair (`tierfs pair edit {}`)",
                    path.display(),
                    config.pair
                );
                let endpoint = config.endpoints.first().map_or("nowhere", String::as_str);
                return Err(refused(config, endpoint, RemoteErrorKind::Denied, detail));
            }
            let files = EnvConfigFiles::builder().with_file(EnvConfigFileKind::Credentials, path).build();
            let provider = ProfileFileCredentialsProvider::builder()
                .configure(&ProviderConfig::without_region().with_http_client(http.clone()))
                .profile_files(files)
                .profile_name(profile.as_deref().unwrap_or("default"));
            Ok(SharedCredentialsProvider::new(provider.build()))
        }
        CredentialsFrom::Chain { profile } => {
            let mut loader = aws_config::defaults(BehaviorVersion::latest())
                .http_client(http.clone())
                .region(Region::new(config.region.clone()));
            if let Some(profile) = profile {
                loader = loader.profile_name(profile);
            }
            let endpoint = config.endpoints.first().map_or("nowhere", String::as_str);
            loader.load().await.credentials_provider().ok_or_else(|| {
                let detail = format!("no credentials found in the {}", config.credentials.describe());
                refused(config, endpoint, RemoteErrorKind::Denied, detail)
            })
        }
    }
}

fn client(config: &RemoteConfig, url: &str, http: SharedHttpClient, credentials: SharedCredentialsProvider) -> Client {
    let timeouts = TimeoutConfig::builder().connect_timeout(config.timeouts.connect).build();
    let config = Builder::new()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(url)
        .region(Region::new(config.region.clone()))
        .force_path_style(true)
        .credentials_provider(credentials)
        .http_client(http)
        .interceptor(Bounded)
        // Retries and deadlines are this module's own: the SDK knows neither other endpoints nor the length of bodies.
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts)
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        // Otherwise the SDK puts checksums where not every store takes them; ours go into headers.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    Client::from_conf(config.build())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn three() -> Endpoints {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials");
        std::fs::write(&path, "").unwrap();
        let mut config = RemoteConfig::new("p".parse().unwrap(), "b", "http://a");
        config.endpoints.extend(["http://b".into(), "http://c:80".into()]);
        config.credentials = CredentialsFrom::File { path, profile: None };
        Endpoints::connect(&config).await.unwrap().0
    }

    fn error(kind: RemoteErrorKind) -> RemoteError {
        RemoteError { kind, operation: "get", object: String::new(), endpoint: String::new(), detail: String::new() }
    }

    /// The URLs asked by a call whose attempts fail with `kinds`.
    fn asked(endpoints: &Endpoints, kinds: &[RemoteErrorKind]) -> Vec<String> {
        let mut urls = Vec::new();
        let mut attempts = endpoints.attempts();
        loop {
            urls.push(attempts.endpoint().url.clone());
            assert_eq!(attempts.retried(), urls.len() == 2);
            let outcome = kinds.get(urls.len() - 1).map_or(Ok(()), |kind| Err(error(*kind)));
            if let Some(outcome) = attempts.settle(outcome) {
                assert_eq!(outcome.is_ok(), urls.len() > kinds.len());
                return urls;
            }
        }
    }

    #[tokio::test]
    async fn a_failed_endpoint_is_asked_last() {
        use RemoteErrorKind::{Denied, Server, TimedOut, Unreachable};
        let endpoints = three().await;
        assert_eq!(asked(&endpoints, &[Denied]), ["http://a"]);
        assert_eq!(asked(&endpoints, &[]), ["http://a"]);
        assert_eq!(asked(&endpoints, &[Unreachable]), ["http://a", "http://b"]);
        assert_eq!(asked(&endpoints, &[TimedOut, Server]), ["http://b", "http://c:80"]);
        // All have failed now; the one that failed longest ago comes first, and is healthy after a success.
        assert_eq!(asked(&endpoints, &[]), ["http://a"]);
    }

    #[test]
    fn urls() {
        for good in ["http://h", "https://h:9000", "http://127.0.0.1:80", "http://[::1]:9000"] {
            assert!(is_url(good), "{good}");
        }
        for bad in ["", "h:9000", "s3://b", "http://", "http:// h", "ftp://h"] {
            assert!(!is_url(bad), "{bad}");
        }
    }
}
