//! A byte that is not what the client said is noticed before anything becomes visible.

use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumMode};
use tierfs::gateway::faults::{Effect, Rule};

use crate::rig::{BUCKET, Rig, code, content, exchange, http};

#[tokio::test]
async fn checksums_of_every_kind_are_verified_kept_and_given_back() {
    let rig = Rig::new().await;
    let sent = content(1, 200_000);
    use ChecksumAlgorithm::{Crc32, Crc32C, Crc64Nvme, Sha1, Sha256};
    for algorithm in [Crc32, Crc32C, Crc64Nvme, Sha1, Sha256] {
        let put = rig.client.put_object().bucket(BUCKET).key("k").checksum_algorithm(algorithm.clone());
        let put = put.body(sent.clone().into()).send().await.unwrap();
        let get = rig.client.get_object().bucket(BUCKET).key("k").checksum_mode(ChecksumMode::Enabled).send().await;
        let get = get.unwrap();
        let stored =
            (get.checksum_crc32, get.checksum_crc32_c, get.checksum_crc64_nvme, get.checksum_sha1, get.checksum_sha256);
        let given =
            (put.checksum_crc32, put.checksum_crc32_c, put.checksum_crc64_nvme, put.checksum_sha1, put.checksum_sha256);
        assert_eq!(stored, given, "{algorithm:?}");
        let count = [stored.0, stored.1, stored.2, stored.3, stored.4].iter().flatten().count();
        assert_eq!(count, 1, "{algorithm:?}");
    }
    rig.server.shutdown().await;
}

#[tokio::test]
async fn a_refused_put_leaves_the_old_object() {
    let rig = Rig::new().await;
    let etag = rig.put("k", "old").await;
    let put = || rig.client.put_object().bucket(BUCKET).key("k").body(content(2, 300_000).into());
    let wrong = [
        put().checksum_crc32("AAAAAA=="),
        put().checksum_crc32_c("AAAAAA=="),
        put().checksum_crc64_nvme("AAAAAAAAAAA="),
        put().checksum_sha1("AAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        put().checksum_sha256("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        put().content_md5("AAAAAAAAAAAAAAAAAAAAAA=="),
    ];
    for request in wrong {
        assert_eq!(code(request.send().await.unwrap_err()), "BadDigest");
    }
    assert_eq!(code(put().content_md5("short").send().await.unwrap_err()), "InvalidDigest");
    assert_eq!(code(put().checksum_crc32("short").send().await.unwrap_err()), "InvalidRequest");
    // Flipped on the way; the checksum comes in the trailer.
    rig.faults.add(Rule::new(Effect::CorruptUpload { at: 250_000 }).method("PUT"));
    assert_eq!(code(put().send().await.unwrap_err()), "BadDigest");
    let upload = rig.client.create_multipart_upload().bucket(BUCKET).key("k").send().await.unwrap().upload_id.unwrap();
    let part = rig.client.upload_part().bucket(BUCKET).key("k").upload_id(upload).part_number(1);
    assert_eq!(code(part.body(content(3, 300_000).into()).send().await.unwrap_err()), "BadDigest");
    rig.faults.clear();
    assert_eq!(rig.get("k").await.unwrap(), b"old");
    let head = rig.client.head_object().bucket(BUCKET).key("k").send().await.unwrap();
    assert_eq!(head.e_tag, Some(etag));
    assert_eq!(rig.files_at_most(".tierfs/staging", 0).await, 0, "nothing is left behind");
    rig.server.shutdown().await;
}

#[tokio::test]
async fn a_flipped_bit_in_a_list_of_deletions_deletes_nothing() {
    let rig = Rig::new().await;
    rig.put("k0", "x").await;
    rig.put("k1", "x").await;
    let id = aws_sdk_s3::types::ObjectIdentifier::builder().key("k0").build().unwrap();
    let delete = aws_sdk_s3::types::Delete::builder().objects(id).build().unwrap();
    let request = || rig.client.delete_objects().bucket(BUCKET).delete(delete.clone()).send();
    for at in 0..120 {
        let rule = rig.faults.add(Rule::new(Effect::CorruptUpload { at }).method("POST"));
        assert_eq!(rig.faults.hits(rule), 0);
        let outcome = request().await;
        rig.faults.remove(rule);
        if outcome.is_ok() {
            // Behind the end of the body: nothing was flipped, k0 went.
            assert!(at > 50, "byte {at}");
            break;
        }
        assert_eq!(rig.keys().await, ["k0", "k1"], "byte {at}");
    }
    assert_eq!(rig.keys().await, ["k1"]);
    rig.server.shutdown().await;
}

#[tokio::test]
async fn raw_requests_are_judged_by_what_arrives() {
    let rig = Rig::new().await;
    rig.put("k", "old").await;
    let addr = rig.server.addr();
    // An MD5 makes the ETag.
    let md5 = "Content-MD5: XUFAKrxLKna5cZ2REBfFkg==\r\n";
    let reply = http(addr, "PUT /bucket/md5", md5, b"hello").await;
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    assert!(reply.to_lowercase().contains("etag: \"5d41402abc4b2a76b9719d911017c592\""), "{reply}");
    // The hash it was signed with, whoever signed.
    let wrong = format!("x-amz-content-sha256: {}\r\nAuthorization: AWS4-HMAC-SHA256 whatever\r\n", "0".repeat(64));
    let reply = http(addr, "PUT /bucket/k", &wrong, b"new").await;
    assert!(reply.starts_with("HTTP/1.1 400") && reply.contains("XAmzContentSHA256Mismatch"), "{reply}");
    // Chunked, with a wrong, a missing, a right trailer; cut short; a wrong length.
    let chunked = |extra: &str| {
        format!(
            "x-amz-content-sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER\r\nx-amz-decoded-content-length: 5\r\n{extra}"
        )
    };
    let announced = chunked("x-amz-trailer: x-amz-checksum-crc32\r\n");
    let cases: [(&str, &[u8], &str); 6] = [
        (&announced, b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n", "BadDigest"),
        (&announced, b"5\r\nhello\r\n0\r\n\r\n", "IncompleteBody"),
        (&announced, b"5\r\nhello\r\n", "IncompleteBody"),
        (&announced, b"4\r\nhell\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n", "IncompleteBody"),
        (&announced, b"5\r\nhelloX", "IncompleteBody"),
        (&announced, b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n", "200"),
    ];
    for (headers, body, want) in cases {
        let reply = http(addr, "PUT /bucket/k", headers, body).await;
        assert!(reply.contains(want), "{want}: {reply}");
        if want != "200" {
            assert_eq!(rig.get("k").await.unwrap(), b"old");
        }
    }
    assert_eq!(rig.get("k").await.unwrap(), b"hello");
    // A refused upload is read to its end, so that the answer arrives.
    let reply = http(addr, "PUT /bucket/k", "If-None-Match: *\r\n", &vec![0; 8 << 20]).await;
    assert!(reply.starts_with("HTTP/1.1 412"), "{reply}");
    let reply = http(addr, "PUT /bucket/k?partNumber=1&uploadId=none", "", &vec![0; 8 << 20]).await;
    assert!(reply.starts_with("HTTP/1.1 404") && reply.contains("NoSuchUpload"), "{reply}");
    rig.server.shutdown().await;
}

/// `aws s3 sync` hung for a minute on the upload that followed an empty file on the same connection: botocore sends
/// `Expect: 100-continue` with an empty body too, and an answer without a go-ahead confuses it about the next one.
#[tokio::test]
async fn an_answer_without_a_go_ahead_ends_the_connection() {
    let rig = Rig::new().await;
    let addr = rig.server.addr();
    let expect = "Expect: 100-continue\r\n";
    let reply = exchange(addr, "PUT /bucket/empty", expect, b"").await.to_lowercase();
    assert!(reply.starts_with("http/1.1 200") && reply.contains("connection: close"), "{reply}");
    let reply = exchange(addr, "PUT /bucket/k?partNumber=1&uploadId=none", expect, b"x").await.to_lowercase();
    assert!(reply.starts_with("http/1.1 404") && reply.contains("connection: close"), "{reply}");
    let reply = exchange(addr, "PUT /bucket/k", expect, b"x").await.to_lowercase();
    assert!(reply.starts_with("http/1.1 100 continue\r\n\r\nhttp/1.1 200"), "{reply}");
    assert!(!reply.contains("connection: close"), "{reply}");
    rig.server.shutdown().await;
}
