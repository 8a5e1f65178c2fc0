//! What the tests share: a server, content, and how a failure is checked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use tempfile::TempDir;
use tierfs::gateway::faults::{Effect, Faults, Rule};
use tierfs::gateway::{Credentials, Options, Server};
use tierfs::ports::{ObjectSource, Remote, RemoteError, RemoteErrorKind as Kind, SourceError};
use tierfs::remote::{CredentialsFrom, RemoteConfig, S3Remote, Timeouts};
use tierfs::types::{ByteRange, ObjectKey};

pub const ACCESS: &str = "AKIATESTTESTTESTTEST";
pub const SECRET: &str = "a-secret-nobody-may-see";
/// Small, so that a few hundred KiB are a large file; tests of stalls need parts beyond what a socket swallows.
pub const PART: u64 = 64 << 10;

/// A server with its directory, and credentials for it.
pub struct Rig {
    pub dir: TempDir,
    pub server: Server,
    pub faults: Faults,
}

impl Rig {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Options)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = Options::new("127.0.0.1:0".parse().unwrap());
        options.credentials = Some(Credentials { access_key: ACCESS.into(), secret_key: SECRET.into() });
        options.part_bytes_min = 1;
        change(&mut options);
        let faults = options.faults.clone();
        let server = Server::start(&dir.path().join("store"), options).await.unwrap();
        Self { dir, server, faults }
    }

    pub fn config(&self) -> RemoteConfig {
        let file = self.dir.path().join("credentials");
        let text = format!("[default]\naws_access_key_id = {ACCESS}\naws_secret_access_key = {SECRET}\n");
        std::fs::write(&file, text).unwrap();
        let mut config = RemoteConfig::new("east".parse().unwrap(), "bucket", self.server.endpoint());
        config.prefix = "some/prefix".into();
        config.credentials = CredentialsFrom::File { path: file, profile: None };
        config.part_size = PART;
        config.timeouts =
            Timeouts { connect: Duration::from_secs(2), stall: Duration::from_secs(2), rate_min: 1 << 20 };
        config
    }

    pub async fn remote(&self) -> S3Remote {
        let remote = S3Remote::connect(self.config()).await.unwrap();
        // Makes the bucket, and lists the leftovers, so that later request counts are those of the calls alone.
        remote.put(&key("first"), 0, Content::of(b""), &[]).await.unwrap();
        remote.delete(&key("first")).await.unwrap();
        remote
    }

    /// A client to look behind the remote's back.
    pub fn sdk(&self) -> aws_sdk_s3::Client {
        let credentials = aws_credential_types::Credentials::new(ACCESS, SECRET, None, None, "test");
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(aws_sdk_s3::config::BehaviorVersion::latest())
            .endpoint_url(self.server.endpoint())
            .region(aws_sdk_s3::config::Region::new("us-east-1"))
            .force_path_style(true)
            .credentials_provider(credentials)
            .http_client(aws_smithy_http_client::Builder::new().build_http());
        aws_sdk_s3::Client::from_conf(config.build())
    }

    /// Moves an object to an archive class, as a rule of its bucket would.
    pub async fn archive(&self, key: &ObjectKey, class: aws_sdk_s3::types::StorageClass) {
        let copy = self.sdk().copy_object().bucket("bucket").key(&key.0).copy_source(format!("bucket/{key}"));
        copy.storage_class(class).send().await.unwrap();
    }

    pub async fn unfinished_uploads(&self) -> usize {
        self.sdk().list_multipart_uploads().bucket("bucket").send().await.unwrap().uploads().len()
    }

    /// Waits until what runs in the background is done.
    pub async fn unfinished_uploads_go_away(&self) {
        let start = Instant::now();
        while self.unfinished_uploads().await > 0 {
            assert!(start.elapsed() < Duration::from_secs(5), "an unfinished upload stays");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn fault(&self, effect: Effect, method: &str, url: &str, times: u64) {
        self.faults.add(Rule::new(effect).method(method).url(url).times(times));
    }

    pub fn requests(&self) -> u64 {
        self.server.requests().by_method.values().sum()
    }
}

pub fn key(name: &str) -> ObjectKey {
    ObjectKey(format!("some/prefix/{name}"))
}

/// Content in memory that counts how it is read.
pub struct Content {
    data: Bytes,
    reads: AtomicU64,
}

impl Content {
    pub fn of(data: &[u8]) -> Arc<Self> {
        Arc::new(Self { data: Bytes::copy_from_slice(data), reads: AtomicU64::new(0) })
    }
}

#[async_trait]
impl ObjectSource for Content {
    async fn read(&self, range: ByteRange) -> Result<Bytes, SourceError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        Ok(self.data.slice(range.offset as usize..range.end() as usize))
    }
}

/// Bytes that differ everywhere, so that a mixed-up part shows.
pub fn noise(len: u64) -> Vec<u8> {
    let mut state = len | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(len as usize).collect()
}

pub async fn put(remote: &S3Remote, name: &str, data: &[u8]) -> Result<tierfs::ports::Stored, RemoteError> {
    remote.put(&key(name), data.len() as u64, Content::of(data), &[]).await
}

pub async fn get(remote: &S3Remote, name: &str, offset: u64, len: u64) -> Result<Bytes, RemoteError> {
    remote.get(&key(name), ByteRange { offset, len }, None).await
}

/// That a call failed in this way, with these words in its one line.
#[track_caller]
pub fn fails<T: std::fmt::Debug>(outcome: Result<T, RemoteError>, kind: Kind, words: &[&str]) {
    let error = outcome.expect_err("should have failed");
    let text = error.to_string();
    println!("{:?}: {text}", error.kind);
    assert_eq!(error.kind, kind, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
    assert!(!text.contains('\n') && !text.contains(SECRET), "{text}");
}
