//! Stores by script: what real ones do now and then, and the embedded endpoint never.

use std::sync::Arc;

use tierfs::ports::{Remote, RemoteErrorKind as Kind};
use tierfs::remote::S3Remote;
use tierfs::types::ByteRange;

use crate::rig::*;

/// A store by script: gets the request's first line and headers, gives the whole answer. Bodies of requests are read by
/// their length. Ends with the test's process.
pub fn scripted(mut script: impl FnMut(&str) -> String + Send + 'static) -> String {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut buffer = [0; 65536];
            let head = loop {
                let n = stream.read(&mut buffer).unwrap_or(0);
                request.extend_from_slice(&buffer[..n]);
                let end = request.windows(4).position(|four| four == b"\r\n\r\n");
                if n == 0 || end.is_some() {
                    break end.map_or(request.len(), |end| end + 4);
                }
            };
            let text = String::from_utf8_lossy(&request[..head]).to_ascii_lowercase();
            let len = text.split_once("content-length: ").and_then(|(_, rest)| rest.split_once('\r'));
            let len: usize = len.map_or(0, |(len, _)| len.parse().unwrap());
            while request.len() < head + len {
                let n = stream.read(&mut buffer).unwrap_or(0);
                if n == 0 {
                    break;
                }
                request.extend_from_slice(&buffer[..n]);
            }
            let _ = stream.write_all(script(&String::from_utf8_lossy(&request[..head])).as_bytes());
        }
    });
    url
}

/// Answers every request with `reply`.
fn canned(reply: &'static str) -> String {
    scripted(|_| reply.to_owned())
}

pub fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n{body}", body.len())
}

#[tokio::test]
async fn what_is_no_s3_is_told_as_such() {
    let rig = Rig::new().await;
    let config = rig.config();
    let ask = async |reply: &'static str| {
        let mut config = config.clone();
        config.endpoints = vec![canned(reply)];
        S3Remote::connect(config).await.unwrap().list("", None).await
    };
    let page =
        "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 15\r\nconnection: close\r\n\r\n<p>It works</p>";
    fails(ask(page).await, Kind::Rejected, &["is this an S3 endpoint?"]);
    let not_found =
        "HTTP/1.1 404 Not Found\r\ncontent-type: text/html\r\ncontent-length: 7\r\nconnection: close\r\n\r\n<p>No!\n";
    fails(ask(not_found).await, Kind::NoSuchBucket, &["does not exist there", "check that the endpoint"]);
    let redirect = "HTTP/1.1 301 Moved\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    fails(ask(redirect).await, Kind::Rejected, &["another region or endpoint"]);
    fails(ask("SSH-2.0-OpenSSH_9.2\r\n").await, Kind::Unreachable, &["cannot be reached"]);
    let gateway = "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 11\r\nconnection: close\r\n\r\nBad Gateway";
    fails(ask(gateway).await, Kind::Server, &["502"]);
}

pub async fn at(rig: &Rig, url: String) -> S3Remote {
    let mut config = rig.config();
    config.endpoints = vec![url];
    S3Remote::connect(config).await.unwrap()
}

#[tokio::test]
async fn a_store_without_conditions_is_not_asked_twice() {
    let rig = Rig::new().await;
    let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let log = seen.clone();
    let remote = at(
        &rig,
        scripted(move |request| {
            let conditional = request.to_ascii_lowercase().contains("if-none-match: *");
            log.lock().push(conditional);
            if conditional {
                let body = "<Error><Code>NotImplemented</Code><Message>A header is not implemented</Message></Error>";
                answer("501 Not Implemented", "content-type: application/xml\r\n", body)
            } else {
                answer("200 OK", "etag: \"abc\"\r\n", "")
            }
        }),
    )
    .await;
    assert_eq!(put(&remote, "a", b"x").await.unwrap().etag, "abc");
    put(&remote, "b", b"x").await.unwrap();
    assert_eq!(*seen.lock(), [true, false, false]);
}

#[tokio::test]
async fn answers_that_contradict_the_request_are_not_believed() {
    let rig = Rig::new().await;
    let ok = |headers: &'static str, body: &'static str| {
        let url = scripted(move |_| answer("200 OK", headers, body));
        at(&rig, url)
    };
    let partial = |headers: &'static str, body: &'static str| {
        let url = scripted(move |_| answer("206 Partial Content", headers, body));
        at(&rig, url)
    };
    let remote = ok("etag: \"e\"\r\nx-amz-checksum-crc32: AAAAAA==\r\n", "").await;
    fails(put(&remote, "k", b"x").await, Kind::Corrupt, &["the store has CRC-32 \"AAAAAA==\""]);
    fails(put(&ok("", "").await, "k", b"x").await, Kind::Rejected, &["without an ETag"]);
    fails(get(&ok("etag: \"e\"\r\n", "whole object").await, "k", 3, 5).await, Kind::Rejected, &["ignores byte ranges"]);
    // The whole object is an answer to a request for all of it.
    assert_eq!(get(&ok("etag: \"e\"\r\n", "whole").await, "k", 0, 5).await.unwrap(), "whole");
    let remote = partial("etag: \"e\"\r\ncontent-range: bytes 4-8/100\r\n", "whole").await;
    fails(get(&remote, "k", 3, 5).await, Kind::Rejected, &["bytes 3-7 were asked for"]);
    // Bodies that end in good order, but too early: the rest is asked for once.
    let short = scripted(|request| {
        let range = request.split_once("bytes=").unwrap().1.split_once("\r\n").unwrap().0;
        let body = if range == "3-7" { "thr" } else { "4" };
        answer("206 Partial Content", &format!("etag: \"e\"\r\ncontent-range: bytes {range}/100\r\n"), body)
    });
    fails(get(&at(&rig, short).await, "k", 3, 5).await, Kind::Corrupt, &["4 of 5 bytes"]);
    let remote = partial("etag: \"other\"\r\ncontent-range: bytes 3-7/100\r\n", "whole").await;
    let range = ByteRange { offset: 3, len: 5 };
    fails(remote.get(&key("k"), range, Some("mine")).await, Kind::Conflict, &["the object is other now, not mine"]);
    assert_eq!(remote.get(&key("k"), range, Some("other")).await.unwrap(), "whole");
}

/// S3 may answer 200 to the completion of an upload before it knows how that ends, and send an error then.
#[tokio::test]
async fn a_completion_that_fails_after_its_200_is_tried_again() {
    let rig = Rig::new().await;
    for recovers in [true, false] {
        let mut completions = 0;
        let url = scripted(move |request| {
            let line = request.lines().next().unwrap();
            let xml = "content-type: application/xml\r\n";
            if line.contains("?uploads") {
                let body = "<InitiateMultipartUploadResult><Bucket>bucket</Bucket><Key>k</Key><UploadId>u1</UploadId>\
                            </InitiateMultipartUploadResult>";
                answer("200 OK", xml, body)
            } else if line.contains("partNumber=") {
                answer("200 OK", "etag: \"part\"\r\n", "")
            } else if line.starts_with("POST") {
                completions += 1;
                let body = if completions > 1 && recovers {
                    "<CompleteMultipartUploadResult><ETag>\"done-2\"</ETag></CompleteMultipartUploadResult>"
                } else {
                    "<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"
                };
                answer("200 OK", xml, body)
            } else {
                answer("204 No Content", "", "")
            }
        });
        let remote = at(&rig, url).await;
        let outcome = put(&remote, "k", &noise(2 * PART)).await;
        if recovers {
            assert_eq!(outcome.unwrap().etag, "done-2");
        } else {
            fails(outcome, Kind::Server, &["complete upload of bucket/some/prefix/k"]);
        }
    }
}

/// After a lost answer the key is taken; only what proves to be ours may be taken for ours.
#[tokio::test]
async fn a_taken_key_is_ours_only_if_it_proves_to_be() {
    let rig = Rig::new().await;
    let data = b"content";
    let md5 = "9a0364b9e99bb480dd25e1f0284c8555";
    for (len, headers, ours) in [
        (7, format!("etag: \"{md5}\"\r\n"), true),
        (7, "etag: \"0123\"\r\n".to_owned(), false),
        (8, format!("etag: \"{md5}\"\r\n"), false),
        (7, "etag: \"0123\"\r\nx-amz-checksum-crc32: jzW6hA==\r\n".to_owned(), false),
        (7, "etag: \"0123\"\r\nx-amz-checksum-crc32: GOOD\r\n".to_owned(), true),
    ] {
        let crc = base64_of(crc32fast::hash(data));
        let headers = headers.replace("GOOD", &crc);
        let mut puts = 0;
        let told = headers.clone();
        let url = scripted(move |request| {
            if request.starts_with("HEAD") {
                return format!("HTTP/1.1 200 OK\r\ncontent-length: {len}\r\nconnection: close\r\n{told}\r\n");
            }
            puts += 1;
            if puts == 1 { String::new() } else { answer("412 Precondition Failed", "", "") }
        });
        let outcome = put(&at(&rig, url).await, "k", data).await;
        if ours {
            assert!(headers.contains(&outcome.unwrap().etag), "{headers}");
        } else {
            fails(outcome, Kind::Conflict, &["put bucket/some/prefix/k"]);
        }
    }
}

fn base64_of(crc: u32) -> String {
    use base64::Engine;
    base64::prelude::BASE64_STANDARD.encode(crc.to_be_bytes())
}
