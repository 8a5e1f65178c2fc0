//! An endpoint on a temporary directory and a client for it.

use std::net::SocketAddr;
use std::path::Path;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials as SdkCredentials, Region};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use tempfile::TempDir;
use tierfs::gateway::faults::Faults;
use tierfs::gateway::{Credentials, Options, Server};

pub const BUCKET: &str = "bucket";

pub struct Rig {
    pub dir: TempDir,
    pub server: Server,
    pub client: Client,
    pub faults: Faults,
}

pub fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

pub fn options(faults: &Faults) -> Options {
    let mut options = Options::new(loopback());
    options.faults = faults.clone();
    options.part_bytes_min = 1;
    options
}

pub fn client(endpoint: &str, access: &str, secret: &str) -> Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(endpoint)
        .force_path_style(true)
        .credentials_provider(SdkCredentials::new(access, secret, None, None, "test"))
        .retry_config(RetryConfig::disabled())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .build();
    Client::from_conf(config)
}

impl Rig {
    pub async fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap(), |_| ()).await
    }

    /// A server on what `dir` holds, with `change` made to the options.
    pub async fn at(dir: TempDir, change: impl FnOnce(&mut Options)) -> Self {
        let faults = Faults::default();
        let mut options = options(&faults);
        change(&mut options);
        let keys = options.credentials.clone();
        let Credentials { access_key, secret_key } =
            keys.unwrap_or_else(|| Credentials { access_key: "any".into(), secret_key: "thing".into() });
        let server = Server::start(dir.path(), options).await.unwrap();
        let client = client(&server.endpoint(), &access_key, &secret_key);
        Self { dir, server, client, faults }
    }

    /// Stops the server in good order and starts another on the same directory.
    pub async fn restart(self) -> Self {
        let Rig { dir, server, .. } = self;
        server.shutdown().await;
        Self::at(dir, |_| ()).await
    }

    pub async fn put(&self, key: &str, content: impl Into<Vec<u8>>) -> String {
        let body = ByteStream::from(content.into());
        let put = self.client.put_object().bucket(BUCKET).key(key).body(body).send().await;
        put.unwrap_or_else(|e| panic!("put {key:?}: {e:?}")).e_tag.unwrap()
    }

    /// The content of `key`, or the error's code.
    pub async fn get(&self, key: &str) -> Result<Vec<u8>, String> {
        match self.client.get_object().bucket(BUCKET).key(key).send().await {
            Ok(got) => match got.body.collect().await {
                Ok(body) => Ok(body.to_vec()),
                Err(e) => Err(format!("body: {e:?}")),
            },
            Err(e) => Err(code(e)),
        }
    }

    /// All keys, by listing.
    pub async fn keys(&self) -> Vec<String> {
        let mut pages = self.client.list_objects_v2().bucket(BUCKET).into_paginator().send();
        let mut keys = Vec::new();
        while let Some(page) = pages.next().await {
            keys.extend(page.unwrap().contents.unwrap_or_default().into_iter().filter_map(|object| object.key));
        }
        keys
    }

    /// Files below `sub`, once there are no more than `most` or ten seconds have passed: what no name leads to any more is
    /// deleted by a thread of the server's own.
    pub async fn files_at_most(&self, sub: &str, most: usize) -> usize {
        for _ in 0..200 {
            if self.files(sub) <= most {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        self.files(sub)
    }

    /// Files below `sub` in the server's directory.
    pub fn files(&self, sub: &str) -> usize {
        files(&self.dir.path().join(sub))
    }
}

pub fn files(dir: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries
        .map(|entry| {
            let path = entry.unwrap().path();
            if path.is_dir() { files(&path) } else { 1 }
        })
        .sum()
}

/// S3's code for an error, or its status, or what kind of failure it was.
pub fn code<E: ProvideErrorMetadata>(error: SdkError<E>) -> String {
    match &error {
        SdkError::ServiceError(service) => match service.err().code() {
            Some(code) => code.to_owned(),
            None => service.raw().status().as_u16().to_string(),
        },
        SdkError::DispatchFailure(_) => "dispatch".to_owned(),
        SdkError::ResponseError(_) => "response".to_owned(),
        SdkError::TimeoutError(_) => "timeout".to_owned(),
        _ => "other".to_owned(),
    }
}

/// Content that repeats nowhere, from a seed.
pub fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Sends one request as it is and returns all of the answer.
pub async fn http(addr: SocketAddr, line: &str, headers: &str, body: &[u8]) -> String {
    exchange(addr, line, &format!("Connection: close\r\n{headers}"), body).await
}

/// The same on a connection that the client would keep; returns what has come when the server closes it or falls silent.
pub async fn exchange(addr: SocketAddr, line: &str, headers: &str, body: &[u8]) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    let head = format!("{line} HTTP/1.1\r\nHost: {addr}\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut reply = Vec::new();
    loop {
        let read = tokio::time::timeout(std::time::Duration::from_secs(2), stream.read_buf(&mut reply)).await;
        match read {
            Ok(Ok(1..)) => {}
            _ => return String::from_utf8_lossy(&reply).into_owned(),
        }
    }
}
