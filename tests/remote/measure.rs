//! Figures, not a test: what content costs the client, by the SDK, by a bare HTTP client, and by the remote. In release, or they mean little:
//! `cargo test --release --locked --test remote -- --ignored --nocapture measure_`.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tierfs::ports::Remote;
use tierfs::remote::{CredentialsFrom, RemoteConfig, S3Remote};
use tierfs::types::ByteRange;

use crate::rig::{ACCESS, Content, SECRET, key, noise};

const LARGE: u64 = 1 << 30;
const RANGE: u64 = 8 << 20;
const SMALL: u64 = 64 << 10;
const FILES: u64 = 2_000;

/// The endpoint in a process of its own, so that the CPU time of this one is the client's.
struct Endpoint {
    process: Child,
    url: String,
}

impl Endpoint {
    fn start(dir: &std::path::Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_tierfs"))
            .arg("dev-s3")
            .arg(dir)
            .args(["--listen", "127.0.0.1:0"])
            // Without credentials it takes requests signed by anybody, and unsigned ones.
            .env_remove("AWS_ACCESS_KEY_ID")
            .env_remove("AWS_SECRET_ACCESS_KEY")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").expect("the endpoint did not start").to_owned();
        Self { process, url }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// CPU time of this process so far.
fn cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

type Get = Arc<dyn Fn(String, ByteRange) -> BoxFuture<'static, u64> + Send + Sync>;

/// The ways to get a range: each returns how many bytes came.
async fn ways(url: &str, dir: &std::path::Path) -> Vec<(&'static str, Get)> {
    let file = dir.join("credentials");
    std::fs::write(&file, format!("[default]\naws_access_key_id = {ACCESS}\naws_secret_access_key = {SECRET}\n"))
        .unwrap();
    let mut config = RemoteConfig::new("east".parse().unwrap(), "bucket", url);
    config.prefix = "some/prefix".into();
    config.credentials = CredentialsFrom::File { path: file, profile: None };
    let remote = S3Remote::connect(config).await.unwrap();
    let credentials = aws_credential_types::Credentials::new(ACCESS, SECRET, None, None, "test");
    let sdk = aws_sdk_s3::Config::builder()
        .behavior_version(aws_sdk_s3::config::BehaviorVersion::latest())
        .endpoint_url(url)
        .region(aws_sdk_s3::config::Region::new("us-east-1"))
        .force_path_style(true)
        .credentials_provider(credentials)
        .response_checksum_validation(aws_sdk_s3::config::ResponseChecksumValidation::WhenRequired)
        .stalled_stream_protection(aws_sdk_s3::config::StalledStreamProtectionConfig::disabled())
        .http_client(aws_smithy_http_client::Builder::new().pool_max_idle_per_host(128).build_http());
    let sdk = aws_sdk_s3::Client::from_conf(sdk.build());
    let bare = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();

    let by_sdk: Get = Arc::new(move |name, range| {
        let request = sdk.get_object().bucket("bucket").key(key(&name).0);
        Box::pin(async move {
            let range = format!("bytes={}-{}", range.offset, range.end() - 1);
            let mut body = request.range(range).send().await.unwrap().body;
            let mut len = 0;
            while let Some(piece) = body.next().await {
                len += piece.unwrap().len() as u64;
            }
            len
        })
    });
    let root = url.to_owned();
    let by_hyper: Get = Arc::new(move |name, range| {
        let bare = bare.clone();
        let request = hyper::Request::get(format!("{root}/bucket/{}", key(&name)))
            .header("range", format!("bytes={}-{}", range.offset, range.end() - 1))
            .body(Empty::new())
            .unwrap();
        Box::pin(async move {
            let mut body = bare.request(request).await.unwrap().into_body();
            let mut len = 0;
            while let Some(frame) = body.frame().await {
                len += frame.unwrap().into_data().unwrap().len() as u64;
            }
            len
        })
    });
    let it = remote.clone();
    let by_get: Get = Arc::new(move |name, range| {
        let it = it.clone();
        Box::pin(async move { it.get(&key(&name), range, None).await.unwrap().len() as u64 })
    });
    let it = remote.clone();
    let by_stream: Get = Arc::new(move |name, range| {
        let it = it.clone();
        Box::pin(async move {
            let mut body = it.stream(&key(&name), range, None).await.unwrap();
            let mut len = 0;
            while let Some(piece) = body.next().await.unwrap() {
                len += piece.len() as u64;
            }
            len
        })
    });
    remote.put(&key("large"), LARGE, Content::of(&noise(LARGE)), &[]).await.unwrap();
    for file in 0..FILES {
        remote.put(&key(&file.to_string()), SMALL, Content::of(&noise(SMALL)), &[]).await.unwrap();
    }
    vec![
        ("aws-sdk-s3", by_sdk),
        ("bare hyper, unsigned", by_hyper),
        ("Remote::get", by_get),
        ("Remote::stream", by_stream),
    ]
}

/// Gets every one of `items` with `clients` at a time.
async fn run(get: &Get, clients: u64, items: Arc<Vec<(String, ByteRange)>>) -> u64 {
    let next = Arc::new(AtomicU64::new(0));
    let workers = (0..clients).map(|_| {
        let (get, items, next) = (get.clone(), items.clone(), next.clone());
        tokio::spawn(async move {
            let mut bytes = 0;
            while let Some((name, range)) = items.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                bytes += get(name.clone(), *range).await;
            }
            bytes
        })
    });
    join_all(workers).await.into_iter().map(Result::unwrap).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "figures"]
async fn measure_what_content_costs() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let endpoint = Endpoint::start(&dir.path().join("store"));
    let ways = ways(&endpoint.url, dir.path()).await;
    let large: Vec<_> =
        (0..LARGE / RANGE).map(|at| ("large".to_owned(), ByteRange { offset: at * RANGE, len: RANGE })).collect();
    let small: Vec<_> = (0..FILES).map(|file| (file.to_string(), ByteRange { offset: 0, len: SMALL })).collect();
    for (what, clients, items) in [
        ("1 GiB in ranges of 8 MiB", 1, large.clone()),
        ("1 GiB in ranges of 8 MiB", 4, large),
        ("2,000 x 64 KiB", 1, small.clone()),
        ("2,000 x 64 KiB", 32, small),
    ] {
        let items = Arc::new(items);
        // The first round warms up.
        for round in 0..4 {
            for (name, get) in &ways {
                let (start, before) = (Instant::now(), cpu());
                let bytes = run(get, clients, items.clone()).await;
                let (seconds, used) = (start.elapsed().as_secs_f64(), (cpu() - before).as_secs_f64());
                assert_eq!(bytes, items.iter().map(|item| item.1.len).sum::<u64>());
                if round > 0 {
                    println!(
                        "{what}, {clients:2} at once, {name:22} {:6.0} MB/s {:7.0} requests/s; client CPU: {:.3} s/GB, {:4.0} us a request",
                        bytes as f64 / 1e6 / seconds,
                        items.len() as f64 / seconds,
                        used * 1e9 / bytes as f64,
                        used * 1e6 / items.len() as f64,
                    );
                }
            }
        }
    }
}
