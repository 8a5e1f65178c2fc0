//! Failures of the store and the network, injected at the endpoint.

use std::time::{Duration, Instant};

use tierfs::gateway::faults::{Effect, Rule};
use tierfs::ports::{Remote, RemoteError, RemoteErrorKind as Kind};
use tierfs::remote::S3Remote;

use crate::port::Port;
use crate::rig::*;

#[tokio::test]
async fn one_failure_is_mended_by_one_retry() {
    let rig = Rig::new().await;
    let remote = rig.remote().await;
    let data = noise(10_000);
    for effect in [Effect::InternalError, Effect::SlowDown, Effect::Reset, Effect::LostReply] {
        rig.faults.clear();
        rig.faults.add(Rule::new(effect).times(1));
        let before = rig.requests();
        let name = format!("{effect:?}");
        put(&remote, &name, &data).await.unwrap_or_else(|error| panic!("{effect:?}: {error}"));
        // A lost reply costs one HEAD more: the retry finds the key taken and proves that it is ours.
        let extra = u64::from(effect == Effect::LostReply);
        assert_eq!(rig.requests() - before, 2 + extra, "{effect:?}");
        for call in 0..4 {
            rig.faults.clear();
            rig.faults.add(Rule::new(effect).times(1));
            match call {
                0 => assert_eq!(get(&remote, &name, 0, 10_000).await.unwrap(), data),
                1 => assert_eq!(remote.head(&key(&name)).await.unwrap().len, 10_000),
                2 => assert_eq!(remote.list("", None).await.unwrap().len(), 1),
                _ => remote.delete(&key(&name)).await.unwrap(),
            }
        }
    }
}

#[tokio::test]
async fn lasting_failures_have_their_kind() {
    let rig = Rig::new().await;
    let remote = rig.remote().await;
    put(&remote, "k", b"content").await.unwrap();
    for (effect, kind, words) in [
        (Effect::InternalError, Kind::Server, "500 InternalError"),
        (Effect::SlowDown, Kind::SlowDown, "503 SlowDown"),
        (Effect::Reset, Kind::Unreachable, "cannot be reached"),
        (Effect::LostReply, Kind::Unreachable, "cannot be reached"),
    ] {
        rig.faults.clear();
        rig.faults.add(Rule::new(effect));
        let before = rig.requests();
        fails(get(&remote, "k", 0, 7).await, kind, &["get bucket/some/prefix/k at http://127.0.0.1", words]);
        assert_eq!(rig.requests() - before, 2, "one retry");
        fails(put(&remote, "new", b"content").await, kind, &["put bucket/some/prefix/new", words]);
        // A HEAD has no body to tell more than its status in.
        let short = words.split_once(" ").map_or(words, |words| words.0);
        fails(remote.head(&key("k")).await, kind, &["head bucket/some/prefix/k", short]);
        fails(remote.list("", None).await, kind, &["list bucket at", words]);
        fails(
            put(&remote, "large", &noise(3 * PART)).await,
            kind,
            &["begin upload of bucket/some/prefix/large", words],
        );
        fails(remote.probe().await, kind, &[words]);
        if effect != Effect::LostReply {
            fails(remote.delete(&key("k")).await, kind, &["delete bucket/some/prefix/k", words]);
        }
    }
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up_in_time() {
    let rig = Rig::new().await;
    let mut config = rig.config();
    config.part_size = 8 << 20;
    config.timeouts.stall = Duration::from_millis(500);
    config.timeouts.connect = Duration::from_millis(500);
    rig.remote().await;
    let remote = S3Remote::connect(config).await.unwrap();
    let large = noise(9 << 20);
    put(&remote, "large", &large).await.unwrap();
    rig.faults.add(Rule::new(Effect::Hang));
    let within = async |what: &str, call: &mut (dyn Future<Output = Result<(), RemoteError>> + Unpin)| {
        let start = Instant::now();
        fails(call.await, Kind::TimedOut, &["timed out", "no answer"]);
        println!("{what} given up after {:?}", start.elapsed());
        // That of a completion goes by the length of the whole.
        assert!(start.elapsed() < Duration::from_secs(15), "{what} took {:?}", start.elapsed());
    };
    let small = async || put(&remote, "a", b"small").await.map(drop);
    within("small put", &mut Box::pin(small())).await;
    // A part larger than what the sockets swallow: the server never reads it.
    let part = async || put(&remote, "b", &large[..8 << 20]).await.map(drop);
    within("large put", &mut Box::pin(part())).await;
    within("get", &mut Box::pin(async { get(&remote, "large", 0, 5).await.map(drop) })).await;
    within("head", &mut Box::pin(async { remote.head(&key("large")).await.map(drop) })).await;
    within("list", &mut Box::pin(async { remote.list("", None).await.map(drop) })).await;
    within("delete", &mut Box::pin(async { remote.delete(&key("large")).await })).await;
    within("restore", &mut Box::pin(async { remote.restore(&key("large"), 1).await.map(drop) })).await;
    within("probe", &mut Box::pin(async { remote.probe().await.map(drop) })).await;
    within("manifest", &mut Box::pin(async { remote.get_all(&key("large"), 10 << 20).await.map(drop) })).await;
    within("begin", &mut Box::pin(async { put(&remote, "c", &large).await.map(drop) })).await;
    rig.faults.clear();
    rig.faults.add(Rule::new(Effect::Hang).url("partNumber=2"));
    within("part", &mut Box::pin(async { put(&remote, "d", &large).await.map(drop) })).await;
    rig.faults.clear();
    rig.faults.add(Rule::new(Effect::Hang).method("POST").url("uploadId="));
    within("completion", &mut Box::pin(async { put(&remote, "e", &large).await.map(drop) })).await;
    rig.unfinished_uploads_go_away().await;
    rig.faults.clear();
    // The body may hang as well as its beginning.
    rig.faults.add(Rule::new(Effect::StallReply { after: 100_000 }).method("GET"));
    let start = Instant::now();
    fails(get(&remote, "large", 0, 1 << 20).await, Kind::TimedOut, &["stalled after", "of 1048576 bytes"]);
    assert!(start.elapsed() < Duration::from_secs(8));
}

#[tokio::test]
async fn a_body_cut_short_is_taken_up_once() {
    let rig = Rig::new().await;
    let remote = rig.remote().await;
    const MIB: u64 = 1 << 20;
    let data = noise(4 * MIB);
    put(&remote, "k", &data).await.unwrap();
    let before = rig.requests();
    rig.fault(Effect::TruncateReply { after: 2 * MIB }, "GET", "/k", 1);
    assert_eq!(get(&remote, "k", 100, 4 * MIB - 100).await.unwrap(), data[100..]);
    assert_eq!(rig.requests() - before, 2);
    rig.faults.clear();
    rig.faults.add(Rule::new(Effect::TruncateReply { after: MIB }).method("GET"));
    let before = rig.requests();
    let error = get(&remote, "k", 0, 4 * MIB).await.unwrap_err();
    let text = error.to_string();
    assert_eq!((error.kind, rig.requests() - before), (Kind::Unreachable, 2), "{text}");
    // More than one answer can have given, so the second was asked for the rest only.
    let got = text.split_once("cut after ").and_then(|(_, rest)| rest.split_once(" of 4194304 bytes"));
    let got: u64 = got.unwrap_or_else(|| panic!("{text}")).0.parse().unwrap();
    assert!(got > MIB, "{text}");
}

#[tokio::test]
async fn damage_on_the_way_up_is_noticed_and_sent_again() {
    let rig = Rig::new().await;
    let remote = rig.remote().await;
    let data = noise(3 * PART);
    rig.fault(Effect::CorruptUpload { at: 5_000 }, "PUT", "/small", 1);
    put(&remote, "small", &data[..10_000]).await.unwrap();
    assert_eq!(get(&remote, "small", 0, 10_000).await.unwrap(), data[..10_000]);
    rig.fault(Effect::CorruptUpload { at: 5_000 }, "PUT", "partNumber=2", 1);
    put(&remote, "large", &data).await.unwrap();
    assert_eq!(get(&remote, "large", 0, 3 * PART).await.unwrap(), data);
    rig.faults.clear();
    rig.faults.add(Rule::new(Effect::CorruptUpload { at: 5_000 }).method("PUT"));
    fails(put(&remote, "never", &data[..10_000]).await, Kind::Corrupt, &["did not arrive as they were sent"]);
    rig.faults.clear();
    fails(remote.head(&key("never")).await, Kind::NotFound, &[]);
}

#[tokio::test]
async fn another_endpoint_takes_over() {
    let rig = Rig::new().await;
    let remote = rig.remote().await;
    put(&remote, "k", b"content").await.unwrap();
    // Nobody listens there, and nobody answers there.
    let closed = Port::held();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for bad in [closed.addr, silent.local_addr().unwrap()] {
        let mut config = rig.config();
        config.timeouts.stall = Duration::from_millis(2_000);
        config.timeouts.connect = Duration::from_millis(2_000);
        config.endpoints.insert(0, format!("http://{bad}"));
        let remote = S3Remote::connect(config).await.unwrap();
        assert_eq!(get(&remote, "k", 0, 7).await.unwrap(), "content");
        // Now the good one comes first.
        let start = Instant::now();
        put(&remote, &format!("by-{}", bad.port()), b"x").await.unwrap();
        remote.delete(&key(&format!("by-{}", bad.port()))).await.unwrap();
        assert!(start.elapsed() < Duration::from_millis(1_900), "{:?}", start.elapsed());
    }
}
