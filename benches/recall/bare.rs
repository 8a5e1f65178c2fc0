//! The limit: ranged GETs and nothing else, by a plain HTTP client. No file, no check, no cache.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use super::rig::{Result, said};

/// Bytes of a range of the sequential read, and how many are under way.
const RANGE: u64 = 8 << 20;
const AT_ONCE: u64 = 4;

pub struct Bare {
    bucket: String,
    client: Client<HttpConnector, Empty<Bytes>>,
    runtime: tokio::runtime::Runtime,
}

/// One GET, read to its end: when its first byte came, and how many there were.
async fn get(client: Client<HttpConnector, Empty<Bytes>>, url: String, range: (u64, u64)) -> Result<(Duration, u64)> {
    const WHAT: &str = "bare GET";
    let began = Instant::now();
    let request = Request::get(url)
        .header("range", format!("bytes={}-{}", range.0, range.0 + range.1 - 1))
        .body(Empty::new())
        .map_err(said(WHAT))?;
    let answer = client.request(request).await.map_err(said(WHAT))?;
    if !answer.status().is_success() {
        return Err(format!("bare GET: {}", answer.status()));
    }
    let (mut body, mut len, mut first) = (answer.into_body(), 0, None);
    while let Some(frame) = body.frame().await {
        first.get_or_insert_with(|| began.elapsed());
        len += frame.map_err(said(WHAT))?.data_ref().map_or(0, |data| data.len() as u64);
    }
    if len != range.1 {
        return Err(format!("bare GET: {len} of {} bytes", range.1));
    }
    Ok((first.unwrap_or_default(), len))
}

impl Bare {
    /// `bucket` at `url`, to which anybody may send unsigned requests.
    pub fn new(url: &str, bucket: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let client = Client::builder(TokioExecutor::new()).build_http();
        Ok(Self { bucket: format!("{url}/{bucket}"), client, runtime: runtime.map_err(said("bare GET"))? })
    }

    /// Until the first byte of a range is here.
    pub fn first_byte(&self, name: &str, offset: u64, len: u64) -> Result<Duration> {
        self.runtime
            .block_on(get(self.client.clone(), format!("{}/{name}", self.bucket), (offset, len)))
            .map(|got| got.0)
    }

    pub fn range(&self, name: &str, offset: u64, len: u64) -> Result<Duration> {
        let began = Instant::now();
        self.first_byte(name, offset, len)?;
        Ok(began.elapsed())
    }

    /// All of a large object, several ranges at a time.
    pub fn whole(&self, name: &str, len: u64) -> Result<Duration> {
        let ranges: Vec<_> =
            (0..len).step_by(RANGE as usize).map(|at| (name.to_owned(), at, RANGE.min(len - at))).collect();
        self.all(ranges, AT_ONCE)
    }

    /// Ranges, so many at a time.
    pub fn all(&self, ranges: Vec<(String, u64, u64)>, at_once: u64) -> Result<Duration> {
        let began = Instant::now();
        let (next, ranges) = (Arc::new(AtomicU64::new(0)), Arc::new(ranges));
        self.runtime.block_on(async {
            let workers = (0..at_once).map(|_| {
                let (next, ranges, client, bucket) =
                    (next.clone(), ranges.clone(), self.client.clone(), self.bucket.clone());
                tokio::spawn(async move {
                    while let Some((name, at, len)) = ranges.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                        get(client.clone(), format!("{bucket}/{name}"), (*at, *len)).await?;
                    }
                    Ok::<(), String>(())
                })
            });
            for worker in workers.collect::<Vec<_>>() {
                worker.await.map_err(said("bare GET"))??;
            }
            Ok(began.elapsed())
        })
    }
}
