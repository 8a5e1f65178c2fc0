//! Content piece by piece, and objects of unknown length: by faults of the endpoint and by script, each request counted.

use std::io::{Read, Write};
use std::time::Duration;

use bytes::Bytes;
use tierfs::gateway::faults::{Effect, Rule};
use tierfs::ports::{Body, Remote, RemoteError, RemoteErrorKind as Kind};
use tierfs::remote::S3Remote;
use tierfs::types::ByteRange;

use crate::rig::*;
use crate::scripted::{answer, at, scripted};

const MIB: u64 = 1 << 20;

async fn stream(remote: &S3Remote, name: &str, offset: u64, len: u64) -> Result<Box<dyn Body>, RemoteError> {
    remote.stream(&key(name), ByteRange { offset, len }, None).await
}

/// What still comes of a body, and how it ends.
async fn rest(body: &mut dyn Body) -> (Vec<u8>, Result<(), RemoteError>) {
    let mut bytes = Vec::new();
    loop {
        match body.next().await {
            Ok(Some(piece)) => {
                assert!(!piece.is_empty(), "a piece of nothing");
                bytes.extend_from_slice(&piece);
            }
            Ok(None) => {
                assert!(matches!(body.next().await, Ok(None)), "the end stays the end");
                return (bytes, Ok(()));
            }
            Err(error) => {
                let again = body.next().await.expect_err("an error is no end");
                assert_eq!(again.kind, error.kind);
                return (bytes, Err(error));
            }
        }
    }
}

/// A whole stream: its bytes, or the error wherever it came.
async fn all(remote: &S3Remote, name: &str, offset: u64, len: u64) -> Result<Vec<u8>, RemoteError> {
    let (bytes, end) = rest(&mut *stream(remote, name, offset, len).await?).await;
    end.map(|()| bytes)
}

#[tokio::test]
async fn a_stream_gives_its_range_in_pieces() {
    let rig = Rig::new().await;
    let remote = rig.remote().await;
    let data = noise(5 * MIB);
    put(&remote, "k", &data).await.unwrap();
    for (offset, len) in [(0, 5 * MIB), (1, 4 * MIB), (5 * MIB - 1, 1), (7, 0)] {
        let before = rig.requests();
        let got = all(&remote, "k", offset, len).await.unwrap();
        assert_eq!(got, data[offset as usize..(offset + len) as usize]);
        assert_eq!(rig.requests() - before, u64::from(len > 0), "one request for {len} bytes");
    }
    let mut body = stream(&remote, "k", 0, 5 * MIB).await.unwrap();
    let mut pieces = 0;
    while body.next().await.unwrap().is_some() {
        pieces += 1;
    }
    assert!(pieces > 5, "{pieces} pieces are not as they come");
    let connections = rig.server.requests().connections;
    all(&remote, "k", 0, MIB).await.unwrap();
    assert_eq!(rig.server.requests().connections, connections, "a stream read to its end gives its connection back");
    fails(stream(&remote, "missing", 0, 1).await.map(drop), Kind::NotFound, &["get bucket/some/prefix/missing at"]);
    fails(stream(&remote, "k", 0, 5 * MIB + 1).await.map(drop), Kind::Corrupt, &["shorter than it should be"]);
    let other = remote.stream(&key("k"), ByteRange { offset: 0, len: 1 }, Some("other")).await;
    fails(other.map(drop), Kind::Conflict, &["412 PreconditionFailed"]);
}

#[tokio::test]
async fn one_failure_before_the_first_byte_is_mended() {
    let rig = Rig::new().await;
    let remote = rig.remote().await;
    let data = noise(10_000);
    put(&remote, "k", &data).await.unwrap();
    for effect in [Effect::InternalError, Effect::SlowDown, Effect::Reset, Effect::LostReply] {
        for call in ["stream", "get_all"] {
            rig.faults.clear();
            rig.fault(effect, "GET", "/k", 1);
            let before = rig.requests();
            let got = match call {
                "stream" => Bytes::from(all(&remote, "k", 0, 10_000).await.unwrap()),
                _ => remote.get_all(&key("k"), 10_000).await.unwrap(),
            };
            assert_eq!((got, rig.requests() - before), (data.clone().into(), 2), "{call}, {effect:?}");
        }
    }
    for (effect, kind, words) in [
        (Effect::InternalError, Kind::Server, "500 InternalError"),
        (Effect::SlowDown, Kind::SlowDown, "503 SlowDown"),
        (Effect::Reset, Kind::Unreachable, "cannot be reached"),
        (Effect::LostReply, Kind::Unreachable, "cannot be reached"),
    ] {
        rig.faults.clear();
        rig.faults.add(Rule::new(effect));
        let before = rig.requests();
        fails(
            stream(&remote, "k", 0, 7).await.map(drop),
            kind,
            &["get bucket/some/prefix/k at http://127.0.0.1", words],
        );
        fails(remote.get_all(&key("k"), 10_000).await, kind, &["get bucket/some/prefix/k at http://127.0.0.1", words]);
        assert_eq!(rig.requests() - before, 4, "one retry each");
    }
}

#[tokio::test]
async fn a_stream_cut_short_is_taken_up_once() {
    let rig = Rig::new().await;
    let remote = rig.remote().await;
    let data = noise(4 * MIB);
    put(&remote, "k", &data).await.unwrap();
    let before = rig.requests();
    rig.fault(Effect::TruncateReply { after: 2 * MIB }, "GET", "/k", 1);
    assert_eq!(all(&remote, "k", 100, 4 * MIB - 100).await.unwrap(), data[100..]);
    assert_eq!(rig.requests() - before, 2);
    rig.faults.clear();
    rig.faults.add(Rule::new(Effect::TruncateReply { after: MIB }).method("GET"));
    let before = rig.requests();
    let (bytes, end) = rest(&mut *stream(&remote, "k", 0, 4 * MIB).await.unwrap()).await;
    fails(end, Kind::Unreachable, &["cut after", "of 4194304 bytes"]);
    // More than one answer can have given, so the second was asked for the rest only; and what came is right.
    assert!(bytes.len() as u64 > MIB && data.starts_with(&bytes), "{} bytes", bytes.len());
    assert_eq!(rig.requests() - before, 2);
    // An object of unknown length is asked for from its beginning: it is small.
    rig.faults.clear();
    rig.fault(Effect::TruncateReply { after: 2 * MIB }, "GET", "/k", 1);
    let before = rig.requests();
    assert_eq!(remote.get_all(&key("k"), 4 * MIB).await.unwrap(), data);
    assert_eq!(rig.requests() - before, 2);
    rig.faults.clear();
    rig.faults.add(Rule::new(Effect::TruncateReply { after: MIB }).method("GET"));
    let before = rig.requests();
    fails(remote.get_all(&key("k"), 4 * MIB).await, Kind::Unreachable, &["cut after", "of 4194304 bytes"]);
    assert_eq!(rig.requests() - before, 2);
}

#[tokio::test]
async fn what_replaces_an_object_midway_is_not_mixed_with_it() {
    let rig = Rig::new().await;
    let remote = rig.remote().await;
    let old = noise(8 * MIB);
    put(&remote, "k", &old).await.unwrap();
    rig.fault(Effect::TruncateReply { after: 6 * MIB }, "GET", "/k", 1);
    let mut body = stream(&remote, "k", 0, 8 * MIB).await.unwrap();
    let first = body.next().await.unwrap().unwrap();
    let new = vec![7; 8 << 20];
    rig.sdk().put_object().bucket("bucket").key(key("k").0).body(new.into()).send().await.unwrap();
    let before = rig.requests();
    let (more, end) = rest(&mut *body).await;
    fails(end, Kind::Conflict, &["412 PreconditionFailed"]);
    assert!(old.starts_with(&[&first[..], &more].concat()), "bytes of both");
    assert_eq!(rig.requests() - before, 1, "a conflict is not asked for again");
}

#[tokio::test]
async fn a_stalled_stream_is_given_up() {
    let rig = Rig::new().await;
    let mut config = rig.config();
    config.part_size = 8 * MIB;
    config.timeouts.stall = Duration::from_millis(500);
    config.timeouts.connect = Duration::from_millis(500);
    // So slowly that only the stall can end it.
    config.timeouts.rate_min = 1 << 10;
    rig.remote().await;
    let remote = S3Remote::connect(config).await.unwrap();
    let data = noise(4 * MIB);
    put(&remote, "k", &data).await.unwrap();
    rig.fault(Effect::StallReply { after: 100_000 }, "GET", "/k", 1);
    let before = rig.requests();
    let (bytes, end) = rest(&mut *stream(&remote, "k", 0, 4 * MIB).await.unwrap()).await;
    fails(end, Kind::TimedOut, &["stalled after 100000 of 4194304 bytes"]);
    assert_eq!((bytes.len(), rig.requests() - before), (100_000, 1), "a deadline is not retried on the same endpoint");
    rig.faults.clear();
    rig.fault(Effect::StallReply { after: 100_000 }, "GET", "/k", 1);
    fails(remote.get_all(&key("k"), 4 * MIB).await, Kind::TimedOut, &["stalled after 100000 of 4194304 bytes"]);
    rig.faults.clear();
    rig.faults.add(Rule::new(Effect::Hang));
    fails(stream(&remote, "k", 0, 1).await.map(drop), Kind::TimedOut, &["no answer"]);
    fails(remote.get_all(&key("k"), 4 * MIB).await, Kind::TimedOut, &["no answer"]);
    rig.faults.clear();
}

#[tokio::test]
async fn damaged_bytes_come_as_they_are() {
    let rig = Rig::new().await;
    let remote = rig.remote().await;
    let data = noise(MIB);
    put(&remote, "k", &data).await.unwrap();
    // The chunk hashes find it: the remote has nothing to check a range with, and changes nothing by itself.
    rig.fault(Effect::CorruptReply { at: 5_000 }, "GET", "/k", 1);
    let got = all(&remote, "k", 0, MIB).await.unwrap();
    let differing: Vec<_> = (0..data.len()).filter(|at| got[*at] != data[*at]).collect();
    assert_eq!(differing, [5_000]);
}

#[tokio::test]
async fn an_object_of_unknown_length_takes_one_request() {
    let rig = Rig::new().await;
    let remote = rig.remote().await;
    for len in [1, 1_000, 3 * MIB] {
        let data = noise(len);
        let name = len.to_string();
        put(&remote, &name, &data).await.unwrap();
        for len_max in [len, len + 1, u64::MAX] {
            let before = rig.requests();
            assert_eq!(remote.get_all(&key(&name), len_max).await.unwrap(), data);
            assert_eq!(rig.requests() - before, 1);
        }
        let before = rig.requests();
        fails(remote.get_all(&key(&name), len - 1).await, Kind::Corrupt, &["expected"]);
        assert_eq!(rig.requests() - before, 1, "what is too long is not asked for again");
    }
    // Its length is told before its first byte, and is enough.
    rig.faults.add(Rule::new(Effect::StallReply { after: 0 }).method("GET"));
    fails(remote.get_all(&key("1000"), 999).await, Kind::Corrupt, &["expected"]);
    rig.faults.clear();
    put(&remote, "empty", b"").await.unwrap();
    fails(remote.get_all(&key("empty"), 10).await, Kind::Corrupt, &["1 to 10 bytes that were expected"]);
    fails(remote.get_all(&key("missing"), 10).await, Kind::NotFound, &["no such object"]);
}

#[tokio::test]
async fn streams_that_contradict_the_request_are_not_believed() {
    let rig = Rig::new().await;
    let served = |status: &'static str, headers: &'static str, body: &'static str| {
        at(&rig, scripted(move |_| answer(status, headers, body)))
    };
    let whole = served("200 OK", "etag: \"e\"\r\n", "whole object").await;
    fails(stream(&whole, "k", 3, 5).await.map(drop), Kind::Rejected, &["ignores byte ranges"]);
    assert_eq!(all(&whole, "k", 0, 12).await.unwrap(), b"whole object");
    assert_eq!(whole.get_all(&key("k"), 12).await.unwrap(), "whole object");
    let moved = served("206 Partial Content", "etag: \"e\"\r\ncontent-range: bytes 4-8/100\r\n", "whole").await;
    fails(stream(&moved, "k", 3, 5).await.map(drop), Kind::Rejected, &["bytes 3-7 were asked for"]);
    let long =
        served("206 Partial Content", "etag: \"e\"\r\ncontent-range: bytes 3-7/100\r\n", "longer than five").await;
    fails(all(&long, "k", 3, 5).await, Kind::Corrupt, &["longer than what was asked for"]);
    let other = served("206 Partial Content", "etag: \"other\"\r\ncontent-range: bytes 3-7/100\r\n", "whole").await;
    let asked = other.stream(&key("k"), ByteRange { offset: 3, len: 5 }, Some("mine")).await;
    fails(asked.map(drop), Kind::Conflict, &["the object is other now, not mine"]);
    // Bodies that end in good order, but too early: the rest is asked for once, on condition.
    let asked = std::sync::Arc::new(parking_lot::Mutex::new(Vec::new()));
    let log = asked.clone();
    let short = scripted(move |request| {
        let request = request.to_ascii_lowercase();
        let range = request.split_once("bytes=").unwrap().1.split_once("\r\n").unwrap().0;
        log.lock().push((range.to_owned(), request.contains("if-match: \"e\"")));
        let body = if range == "3-7" { "thr" } else { "4" };
        answer("206 Partial Content", &format!("etag: \"e\"\r\ncontent-range: bytes {range}/100\r\n"), body)
    });
    fails(all(&at(&rig, short).await, "k", 3, 5).await, Kind::Corrupt, &["4 of 5 bytes"]);
    assert_eq!(*asked.lock(), [("3-7".to_owned(), false), ("6-7".to_owned(), true)]);
    // Without an ETag nothing proves that the rest is of the same version: what was handed out cannot be taken back.
    let short = scripted(|_| answer("206 Partial Content", "content-range: bytes 3-7/100\r\n", "thr"));
    let (bytes, end) = rest(&mut *stream(&at(&rig, short).await, "k", 3, 5).await.unwrap()).await;
    fails(end, Kind::Corrupt, &["3 of 5 bytes"]);
    assert_eq!(bytes, b"thr");
    // A length that is not told counts while it is read.
    let endless = |len: usize| {
        let body = "x".repeat(len);
        at(&rig, scripted(move |_| format!("HTTP/1.1 200 OK\r\netag: \"e\"\r\nconnection: close\r\n\r\n{body}")))
    };
    assert_eq!(endless(10).await.get_all(&key("k"), 10).await.unwrap().len(), 10);
    fails(endless(11).await.get_all(&key("k"), 10).await, Kind::Corrupt, &["1 to 10 bytes"]);
    fails(endless(0).await.get_all(&key("k"), 10).await, Kind::Corrupt, &["1 to 10 bytes"]);
}

/// A reader that does not read makes the store wait, and one that goes away ends the transfer: nobody fetches a gibibyte for nothing.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_fetched_that_nobody_takes() {
    const LEN: u64 = 1 << 30;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (waits, waited) = tokio::sync::oneshot::channel();
    let store = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 65536]).unwrap();
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\netag: \"e\"\r\ncontent-length: {LEN}\r\ncontent-range: bytes 0-{}/{LEN}\r\n\r\n",
            LEN - 1
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        let (mut sent, mut waits) = (0, Some(waits));
        loop {
            match stream.write(&[7; 65536]) {
                Ok(n) => sent += n as u64,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    waits.take().map(|waits| waits.send(sent));
                }
                Err(_) => return sent,
            }
            if sent >= LEN {
                return sent;
            }
        }
    });
    let rig = Rig::new().await;
    let remote = at(&rig, url).await;
    let mut body = stream(&remote, "k", 0, LEN).await.unwrap();
    body.next().await.unwrap().unwrap();
    let sent = waited.await.expect("the store never had to wait");
    assert!(sent < 64 * MIB, "{sent} bytes sent to who took one piece");
    drop(body);
    let sent = tokio::task::spawn_blocking(move || store.join().unwrap()).await.unwrap();
    assert!(sent < 64 * MIB, "{sent} bytes sent to who had gone");
}

/// What the SDK asks for and what is asked for without it have the same path: a key must not name two objects.
#[tokio::test]
async fn keys_are_escaped_as_the_sdk_escapes_them() {
    let rig = Rig::new().await;
    let paths = std::sync::Arc::new(parking_lot::Mutex::new(Vec::new()));
    let log = paths.clone();
    let url = scripted(move |request| {
        let target = request.split(' ').nth(1).unwrap();
        log.lock().push(target.split('?').next().unwrap().to_owned());
        answer("404 Not Found", "", "")
    });
    let remote = at(&rig, url.clone()).await;
    let below = at(&rig, format!("{url}/base/")).await;
    let every: String = (1..128).map(char::from).collect();
    for name in [every.as_str(), "a//b/../c/./d", "/", "ünï 漢%2F+", "..", "x/"] {
        for remote in [&remote, &below] {
            paths.lock().clear();
            let _ = remote.head(&key(name)).await;
            let _ = remote.get_all(&key(name), 1).await;
            let asked = paths.lock();
            assert_eq!(asked.first(), asked.last(), "{name:?}");
            assert!(asked.len() >= 2 && asked[0].contains("/bucket/some/prefix/"), "{asked:?}");
        }
    }
}
