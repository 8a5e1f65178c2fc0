//! Uploads in parts: order, ranges across parts, repetition, abort, restart in the middle, what is left behind.

use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumMode, ChecksumType, CompletedMultipartUpload, CompletedPart};

use crate::rig::{BUCKET, Rig, code, content};

async fn begin(rig: &Rig, key: &str) -> String {
    let created = rig.client.create_multipart_upload().bucket(BUCKET).key(key).content_type("a/b").metadata("m", "1");
    created.tagging("t=1").send().await.unwrap().upload_id.unwrap()
}

async fn part(rig: &Rig, key: &str, id: &str, number: i32, body: Vec<u8>) -> CompletedPart {
    let request = rig.client.upload_part().bucket(BUCKET).key(key).upload_id(id).part_number(number);
    let etag = request.body(body.into()).send().await.unwrap().e_tag;
    CompletedPart::builder().part_number(number).set_e_tag(etag).build()
}

async fn complete(rig: &Rig, key: &str, id: &str, parts: Vec<CompletedPart>) -> Result<String, String> {
    let list = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
    let request = rig.client.complete_multipart_upload().bucket(BUCKET).key(key).upload_id(id);
    request.multipart_upload(list).send().await.map(|done| done.e_tag.unwrap()).map_err(code)
}

#[tokio::test]
async fn parts_become_one_object_without_copying() {
    let rig = Rig::new().await;
    let whole = content(1, 1_000_000);
    let id = begin(&rig, "big").await;
    let mut parts = Vec::new();
    // Sent in another order than they are numbered, one of them twice, one in vain.
    for number in [3, 1, 2, 4] {
        let at = (number - 1) as usize * 300_000;
        let body = whole[at..whole.len().min(at + 300_000)].to_vec();
        if number == 2 {
            part(&rig, "big", &id, 2, content(9, 300_000)).await;
        }
        parts.push(part(&rig, "big", &id, number, body).await);
    }
    part(&rig, "big", &id, 77, content(8, 1000)).await;
    parts.sort_by_key(|part| part.part_number);
    assert_eq!(rig.get("big").await, Err("NoSuchKey".into()), "nothing to see yet");
    let inodes_before = rig.files("bucket/uploads");
    let etag = complete(&rig, "big", &id, parts.clone()).await.unwrap();
    assert!(etag.ends_with("-4\""), "{etag}");
    assert_eq!(rig.get("big").await.unwrap(), whole);
    // A completion whose answer was lost is repeated.
    assert_eq!(complete(&rig, "big", &id, parts).await.unwrap(), etag);
    let rig = rig.restart().await;
    assert_eq!(rig.get("big").await.unwrap(), whole);
    assert!(
        rig.files_at_most("bucket/uploads", inodes_before - 1).await < inodes_before,
        "the upload's record and unused parts are gone"
    );
    for (from, to) in [(0, 0), (299_999, 300_000), (250_000, 950_000), (899_999, 999_999), (600_000, 2_000_000)] {
        let got = rig.client.get_object().bucket(BUCKET).key("big").range(format!("bytes={from}-{to}"));
        let got = got.send().await.unwrap();
        let end = to.min(999_999);
        assert_eq!(got.content_range, Some(format!("bytes {from}-{end}/1000000")));
        assert_eq!(got.body.collect().await.unwrap().to_vec(), whole[from..=end], "{from}-{to}");
    }
    let second = rig.client.get_object().bucket(BUCKET).key("big").part_number(2).send().await.unwrap();
    assert_eq!(second.parts_count, Some(4));
    assert_eq!(second.body.collect().await.unwrap().to_vec(), whole[300_000..600_000]);
    let head = rig.client.head_object().bucket(BUCKET).key("big").send().await.unwrap();
    assert_eq!(head.content_type.as_deref(), Some("a/b"));
    assert_eq!(head.metadata.unwrap()["m"], "1");
    let tags = rig.client.get_object_tagging().bucket(BUCKET).key("big").send().await.unwrap();
    assert_eq!(tags.tag_set[0].key(), "t");
    // Once it is overwritten its parts go.
    rig.put("big", "small").await;
    let rig = rig.restart().await;
    assert_eq!(rig.get("big").await.unwrap(), b"small");
    assert_eq!(rig.files_at_most("bucket/uploads", 0).await, 0);
    assert_eq!(rig.files_at_most("bucket/objects", 1).await, 1);
    rig.server.shutdown().await;
}

#[tokio::test]
async fn wrong_completions_are_refused_and_leave_the_upload() {
    let rig = Rig::at(tempfile::tempdir().unwrap(), |options| options.part_bytes_min = 5 << 20).await;
    let id = begin(&rig, "k").await;
    let one = part(&rig, "k", &id, 1, content(1, 100)).await;
    let two = part(&rig, "k", &id, 2, content(2, 100)).await;
    let check = async |parts: Vec<CompletedPart>, want: &str| {
        assert_eq!(complete(&rig, "k", &id, parts).await, Err(want.to_owned()));
    };
    check(vec![two.clone(), one.clone()], "InvalidPartOrder").await;
    check(vec![CompletedPart::builder().part_number(3).e_tag("x").build()], "InvalidPart").await;
    check(vec![CompletedPart::builder().part_number(1).e_tag("x").build()], "InvalidPart").await;
    check(vec![one.clone(), two.clone()], "EntityTooSmall").await;
    assert_eq!(complete(&rig, "other", &id, vec![one.clone()]).await, Err("NoSuchUpload".into()));
    complete(&rig, "k", &id, vec![one]).await.unwrap();
    assert_eq!(rig.get("k").await.unwrap(), content(1, 100));
    rig.server.shutdown().await;
}

#[tokio::test]
async fn open_uploads_are_listed_survive_a_restart_and_abort() {
    let rig = Rig::new().await;
    let first = begin(&rig, "a/1").await;
    let second = begin(&rig, "b/1").await;
    part(&rig, "a/1", &first, 2, content(2, 70_000)).await;
    let one = part(&rig, "a/1", &first, 1, content(1, 600_000)).await;
    let rig = rig.restart().await;
    let listed = rig.client.list_multipart_uploads().bucket(BUCKET).send().await.unwrap();
    let listed: Vec<_> =
        listed.uploads().iter().map(|upload| (upload.key().unwrap(), upload.upload_id().unwrap())).collect();
    assert_eq!(listed, [("a/1", first.as_str()), ("b/1", second.as_str())]);
    let page = rig.client.list_multipart_uploads().bucket(BUCKET).max_uploads(1).send().await.unwrap();
    assert_eq!((page.is_truncated, page.next_key_marker.as_deref()), (Some(true), Some("a/1")));
    let behind = rig.client.list_multipart_uploads().bucket(BUCKET).prefix("b").send().await.unwrap();
    assert_eq!(behind.uploads().len(), 1);
    let parts = rig.client.list_parts().bucket(BUCKET).key("a/1").upload_id(&first).send().await.unwrap();
    let parts: Vec<_> = parts.parts().iter().map(|part| (part.part_number.unwrap(), part.size.unwrap())).collect();
    assert_eq!(parts, [(1, 600_000), (2, 70_000)]);
    let page = rig.client.list_parts().bucket(BUCKET).key("a/1").upload_id(&first).max_parts(1).send().await.unwrap();
    assert_eq!((page.is_truncated, page.next_part_number_marker.as_deref()), (Some(true), Some("1")));
    rig.client.abort_multipart_upload().bucket(BUCKET).key("b/1").upload_id(&second).send().await.unwrap();
    let again = rig.client.abort_multipart_upload().bucket(BUCKET).key("b/1").upload_id(&second).send().await;
    assert_eq!(code(again.unwrap_err()), "NoSuchUpload");
    let late = rig.client.upload_part().bucket(BUCKET).key("b/1").upload_id(&second).part_number(1);
    assert_eq!(code(late.body(vec![1].into()).send().await.unwrap_err()), "NoSuchUpload");
    complete(&rig, "a/1", &first, vec![one]).await.unwrap();
    assert_eq!(rig.get("a/1").await.unwrap(), content(1, 600_000));
    let rig = rig.restart().await;
    assert_eq!(rig.get("a/1").await.unwrap(), content(1, 600_000));
    assert_eq!(rig.files_at_most("bucket/uploads", 1).await, 1, "only the one part that is used");
    rig.server.shutdown().await;
}

#[tokio::test]
async fn checksums_of_the_whole_are_made_from_the_parts() {
    let rig = Rig::new().await;
    let whole = content(5, 500_000);
    let cases = [
        (ChecksumAlgorithm::Crc32, ChecksumType::FullObject),
        (ChecksumAlgorithm::Crc32C, ChecksumType::FullObject),
        (ChecksumAlgorithm::Crc64Nvme, ChecksumType::FullObject),
        (ChecksumAlgorithm::Sha256, ChecksumType::Composite),
        (ChecksumAlgorithm::Crc32, ChecksumType::Composite),
    ];
    for (algorithm, kind) in cases {
        let created = rig.client.create_multipart_upload().bucket(BUCKET).key("sum");
        let created = created.checksum_algorithm(algorithm.clone()).checksum_type(kind.clone()).send().await.unwrap();
        let id = created.upload_id.unwrap();
        let mut parts = Vec::new();
        for (at, chunk) in whole.chunks(200_000).enumerate() {
            let request = rig.client.upload_part().bucket(BUCKET).key("sum").upload_id(&id).part_number(at as i32 + 1);
            let request = request.checksum_algorithm(algorithm.clone()).body(chunk.to_vec().into());
            let sent = request.send().await.unwrap();
            let part = CompletedPart::builder().part_number(at as i32 + 1).set_e_tag(sent.e_tag);
            let part = part.set_checksum_crc32(sent.checksum_crc32).set_checksum_crc32_c(sent.checksum_crc32_c);
            let part = part.set_checksum_crc64_nvme(sent.checksum_crc64_nvme).set_checksum_sha256(sent.checksum_sha256);
            parts.push(part.build());
        }
        complete(&rig, "sum", &id, parts).await.unwrap();
        let head = rig.client.head_object().bucket(BUCKET).key("sum").checksum_mode(ChecksumMode::Enabled);
        let head = head.send().await.unwrap();
        assert_eq!(head.checksum_type, Some(kind.clone()), "{algorithm:?}");
        // The same bytes in one piece have the same full-object checksum.
        let put = rig.client.put_object().bucket(BUCKET).key("one").checksum_algorithm(algorithm.clone());
        let put = put.body(whole.clone().into()).send().await.unwrap();
        if kind == ChecksumType::FullObject {
            assert_eq!(
                (head.checksum_crc32, head.checksum_crc32_c, head.checksum_crc64_nvme),
                (put.checksum_crc32, put.checksum_crc32_c, put.checksum_crc64_nvme),
                "{algorithm:?}"
            );
        } else {
            assert!(head.checksum_sha256.or(head.checksum_crc32).unwrap().ends_with("-3"));
        }
        // The SDK checks the checksum of what it gets, where it is over the content.
        assert_eq!(rig.get("sum").await.unwrap(), whole);
    }
    rig.server.shutdown().await;
}
