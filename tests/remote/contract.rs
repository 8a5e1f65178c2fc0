//! The contract, on the embedded endpoint and where one is named on a foreign store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tierfs::gateway::faults::Effect;
use tierfs::ports::{Remote, RemoteErrorKind as Kind};
use tierfs::remote::{RemoteConfig, S3Remote};
use tierfs::types::{ByteRange, ObjectKey};

use crate::rig::*;

/// What every store a pair can use must do. `config` has its prefix for this run alone.
async fn contract(config: RemoteConfig) {
    let prefix = config.prefix.clone();
    let part = config.part_size;
    let key = |name: &str| ObjectKey(format!("{prefix}/{name}"));
    let remote = S3Remote::connect(config).await.unwrap();
    let capabilities = remote.probe().await.unwrap();
    println!("{capabilities:?}");
    assert_eq!(remote.list("", None).await.unwrap(), [], "the probe leaves nothing");

    // Any length, in one piece and in many, comes back whole and in ranges, with its metadata.
    for len in [0, 1, part - 1, part, part + 1, 3 * part + part / 2] {
        let data = noise(len);
        let key = key(&format!("sizes/{len}"));
        let metadata = [("mode".to_owned(), "0644".to_owned()), ("a-b".to_owned(), "x y%20".to_owned())];
        let stored = remote.put(&key, len, Content::of(&data), &metadata).await.unwrap();
        let info = remote.head(&key).await.unwrap();
        assert_eq!((info.len, &info.etag), (len, &stored.etag));
        for pair in &metadata {
            assert!(info.metadata.contains(pair), "{:?}", info.metadata);
        }
        assert!(!stored.etag.is_empty() && !stored.etag.contains('"'));
        for range in [(0, len), (0, 1), (len / 3, len / 3), (len.saturating_sub(1), 1)] {
            let range = ByteRange { offset: range.0, len: range.1.min(len - range.0.min(len)) };
            let got = remote.get(&key, range, Some(&stored.etag)).await.unwrap();
            assert_eq!(got, data[range.offset as usize..range.end() as usize], "{len} bytes, {range:?}");
        }
        let over = remote.get(&key, ByteRange { offset: 0, len: len + 1 }, None).await;
        fails(over, Kind::Corrupt, &["shorter"]);
        let other = remote.get(&key, ByteRange { offset: 0, len: len.max(1) }, Some("0123456789")).await;
        if len > 0 {
            fails(other, Kind::Conflict, &[]);
        }
        if capabilities.conditional_put {
            fails(remote.put(&key, len, Content::of(&data), &[]).await, Kind::Conflict, &[]);
        }
    }

    // Keys are bytes to us: what a file name can hold, a key can.
    let odd = [
        "a b+c%41&d=e?f#g;h",
        "quote\"'<tag>",
        "ünïcödé 漢字",
        "back\\slash|pipe~`^{}[]",
        "trailing/slash/",
        "@id.generation",
        "line\nbreak\u{1}\u{7f}control",
        &"long".repeat(200),
    ];
    for name in odd {
        let key = key(&format!("odd/{name}"));
        remote.put(&key, 3, Content::of(b"odd"), &[]).await.unwrap_or_else(|error| panic!("{name:?}: {error}"));
        assert_eq!(remote.get(&key, ByteRange { offset: 0, len: 3 }, None).await.unwrap(), "odd");
    }
    let mut expected: Vec<ObjectKey> = odd.iter().map(|name| key(&format!("odd/{name}"))).collect();
    expected.sort();
    let listed: Vec<ObjectKey> = remote.list("odd/", None).await.unwrap().into_iter().map(|found| found.0).collect();
    assert_eq!(listed, expected);
    let tail = remote.list("odd/", Some(&expected[2])).await.unwrap();
    assert_eq!(tail.len(), expected.len() - 3);
    let sizes = remote.list("sizes/", None).await.unwrap();
    assert!(sizes.contains(&(key(&format!("sizes/{part}")), part)), "{sizes:?}");

    // Deleting is final and repeatable.
    for (found, _) in remote.list("", None).await.unwrap() {
        remote.delete(&found).await.unwrap();
        fails(remote.head(&found).await, Kind::NotFound, &[]);
        fails(remote.get(&found, ByteRange { offset: 0, len: 1 }, None).await, Kind::NotFound, &[]);
        remote.delete(&found).await.unwrap();
    }
    assert_eq!(remote.list("", None).await.unwrap(), []);
}

#[tokio::test]
async fn contract_on_the_embedded_endpoint() {
    let rig = Rig::new().await;
    rig.remote().await;
    contract(rig.config()).await;
    assert_eq!(rig.unfinished_uploads().await, 0);
}

#[tokio::test]
async fn contract_on_a_foreign_store() {
    let Ok(endpoint) = std::env::var("TIERFS_TEST_S3_ENDPOINT") else {
        println!("skipped: TIERFS_TEST_S3_ENDPOINT names no store");
        return;
    };
    let bucket = std::env::var("TIERFS_TEST_S3_BUCKET").unwrap_or_else(|_| "bucket".into());
    let mut config = RemoteConfig::new("foreign".parse().unwrap(), bucket, endpoint);
    config.prefix = format!("tierfs-test-{}", std::process::id());
    config.part_size = 5 << 20;
    contract(config).await;
}

#[tokio::test]
async fn probing_tells_what_the_embedded_endpoint_can_do() {
    let rig = Rig::new().await;
    let remote = rig.remote().await;
    let capabilities = remote.probe().await.unwrap();
    assert!(capabilities.conditional_put && capabilities.checksums && !capabilities.versioning, "{capabilities:?}");
    assert_eq!(rig.sdk().list_objects_v2().bucket("bucket").send().await.unwrap().contents().len(), 0);
    // Also after a failure half way nothing is left.
    rig.fault(Effect::InternalError, "GET", "tierfs-probe", 2);
    fails(remote.probe().await, Kind::Server, &[]);
    assert_eq!(rig.sdk().list_objects_v2().bucket("bucket").send().await.unwrap().contents().len(), 0);
}

#[tokio::test]
async fn many_small_objects_move_at_once() {
    let rig = Rig::new().await;
    let remote = rig.remote().await;
    let data = noise(PART);
    let count = 500;
    let start = Instant::now();
    let numbers = Arc::new(AtomicU64::new(0));
    let workers = (0..32).map(|_| {
        let (remote, numbers, data) = (remote.clone(), numbers.clone(), data.clone());
        tokio::spawn(async move {
            loop {
                let n = numbers.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    return;
                }
                put(&remote, &n.to_string(), &data).await.unwrap();
                assert_eq!(get(&remote, &n.to_string(), 0, PART).await.unwrap(), data);
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
    println!("{count} objects of 64 KiB put and read in {:?}, unoptimised", start.elapsed());
    let requests = rig.server.requests();
    assert_eq!((requests.op("PutObject"), requests.op("GetObject")), (count + 1, count));
    // A worker that finds no idle connection just now opens one more; without reuse there would be one a request.
    assert!(requests.connections <= 128, "{} connections for {} requests", requests.connections, 2 * count);
}
