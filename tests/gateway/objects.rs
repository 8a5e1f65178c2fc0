//! What objects can besides: ranges, tags, copies, buckets.

use aws_sdk_s3::types::{MetadataDirective, Tag, Tagging, TaggingDirective};

use crate::rig::{BUCKET, Rig, code, content};

#[tokio::test]
async fn ranges_are_cut_as_http_says() {
    let rig = Rig::new().await;
    let whole = content(1, 500_000);
    rig.put("k", whole.clone()).await;
    rig.put("empty", "").await;
    let check = async |key: &str, range: &str, want: Result<std::ops::Range<usize>, &str>| match rig
        .client
        .get_object()
        .bucket(BUCKET)
        .key(key)
        .range(range)
        .send()
        .await
    {
        Ok(got) => {
            let want = want.unwrap_or_else(|code| panic!("{range} should be {code}"));
            assert_eq!(got.content_range, Some(format!("bytes {}-{}/500000", want.start, want.end - 1)));
            assert_eq!(got.content_length, Some(want.len() as i64));
            assert_eq!(got.body.collect().await.unwrap().to_vec(), whole[want], "{range}");
        }
        Err(e) => assert_eq!(Err(code(e).as_str()), want, "{range}"),
    };
    check("k", "bytes=0-0", Ok(0..1)).await;
    check("k", "bytes=100-", Ok(100..500_000)).await;
    check("k", "bytes=-7", Ok(499_993..500_000)).await;
    check("k", "bytes=-900000", Ok(0..500_000)).await;
    check("k", "bytes=250000-499999", Ok(250_000..500_000)).await;
    check("k", "bytes=499999-600000", Ok(499_999..500_000)).await;
    check("k", "bytes=500000-", Err("InvalidRange")).await;
    check("k", "bytes=-0", Err("InvalidRange")).await;
    check("empty", "bytes=0-1", Err("InvalidRange")).await;
    check("empty", "bytes=-1", Err("InvalidRange")).await;
    assert_eq!(rig.get("empty").await.unwrap(), b"");
    rig.server.shutdown().await;
}

fn tagging(tags: &[(&str, String)]) -> Tagging {
    let tag = |(key, value): &(&str, String)| Tag::builder().key(*key).value(value).build().unwrap();
    Tagging::builder().set_tag_set(Some(tags.iter().map(tag).collect())).build().unwrap()
}

async fn tags(rig: &Rig, key: &str) -> Vec<(String, String)> {
    let set = rig.client.get_object_tagging().bucket(BUCKET).key(key).send().await.unwrap().tag_set;
    set.into_iter().map(|tag| (tag.key, tag.value)).collect()
}

#[tokio::test]
async fn tags_are_kept_replaced_and_removed() {
    let mut rig = Rig::new().await;
    let put = rig.client.put_object().bucket(BUCKET).key("k").body(b"content".to_vec().into());
    let etag = put.tagging("a=1&b=x%20y").send().await.unwrap().e_tag;
    assert_eq!(tags(&rig, "k").await, [("a".into(), "1".into()), ("b".into(), "x y".into())]);
    // From none to more than an xattr holds, and back; each survives a restart.
    let long: Vec<(String, String)> = (0..10).map(|n| (format!("tag{n}"), "ü".repeat(256))).collect();
    for set in [vec![], long, vec![("z".to_owned(), "9".to_owned())]] {
        let borrowed: Vec<(&str, String)> = set.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
        let request = rig.client.put_object_tagging().bucket(BUCKET).key("k").tagging(tagging(&borrowed));
        request.send().await.unwrap();
        assert_eq!(tags(&rig, "k").await, set);
        rig = rig.restart().await;
        assert_eq!(tags(&rig, "k").await, set);
        assert_eq!(rig.get("k").await.unwrap(), b"content");
        let head = rig.client.head_object().bucket(BUCKET).key("k").send().await.unwrap();
        assert_eq!(head.e_tag, etag, "tags are no change of content");
    }
    assert_eq!(rig.files_at_most("bucket/objects", 1).await, 1, "no sidecar is left");
    rig.client.delete_object_tagging().bucket(BUCKET).key("k").send().await.unwrap();
    assert_eq!(tags(&rig, "k").await, []);
    let many: Vec<(&str, String)> = (0..11).map(|n| ("t", n.to_string())).collect();
    let refused = rig.client.put_object_tagging().bucket(BUCKET).key("k").tagging(tagging(&many)).send().await;
    assert_eq!(code(refused.unwrap_err()), "InvalidTag");
    let missing = rig.client.put_object_tagging().bucket(BUCKET).key("no").tagging(tagging(&[])).send().await;
    assert_eq!(code(missing.unwrap_err()), "NoSuchKey");
    rig.server.shutdown().await;
}

#[tokio::test]
async fn copies_take_content_and_what_is_asked_for() {
    let rig = Rig::new().await;
    let sent = content(3, 700_000);
    let put = rig.client.put_object().bucket(BUCKET).key("from ä/+").body(sent.clone().into()).content_type("x/y");
    put.metadata("m", "1").tagging("t=1").send().await.unwrap();
    let source = format!("{BUCKET}/from%20%C3%A4/%2B");
    let copy = |to: &str| rig.client.copy_object().bucket(BUCKET).key(to).copy_source(&source);
    copy("same").send().await.unwrap();
    let head = rig.client.head_object().bucket(BUCKET).key("same").send().await.unwrap();
    assert_eq!((head.content_type.as_deref(), head.metadata.unwrap()["m"].as_str()), (Some("x/y"), "1"));
    assert_eq!(tags(&rig, "same").await.len(), 1);
    let replaced = copy("other").metadata_directive(MetadataDirective::Replace).metadata("n", "2");
    replaced.tagging_directive(TaggingDirective::Replace).send().await.unwrap();
    let head = rig.client.head_object().bucket(BUCKET).key("other").send().await.unwrap();
    assert_eq!(head.metadata.unwrap().keys().collect::<Vec<_>>(), ["n"]);
    assert_eq!(tags(&rig, "other").await, []);
    assert_eq!(code(copy("from ä/+").send().await.unwrap_err()), "InvalidRequest", "onto itself, changing nothing");
    copy("from ä/+").metadata_directive(MetadataDirective::Replace).send().await.unwrap();
    let unmet = copy("never").copy_source_if_match("\"nope\"").send().await;
    assert_eq!(code(unmet.unwrap_err()), "PreconditionFailed");
    let missing = rig.client.copy_object().bucket(BUCKET).key("x").copy_source(format!("{BUCKET}/none")).send().await;
    assert_eq!(code(missing.unwrap_err()), "NoSuchKey");
    // By part, out of a range.
    let id = rig.client.create_multipart_upload().bucket(BUCKET).key("parts").send().await.unwrap().upload_id.unwrap();
    let part = rig.client.upload_part_copy().bucket(BUCKET).key("parts").upload_id(&id).part_number(1);
    let part = part.copy_source(&source).copy_source_range("bytes=100-299999").send().await.unwrap();
    let etag = part.copy_part_result.unwrap().e_tag.unwrap();
    let part = aws_sdk_s3::types::CompletedPart::builder().part_number(1).e_tag(etag).build();
    let list = aws_sdk_s3::types::CompletedMultipartUpload::builder().parts(part).build();
    let done = rig.client.complete_multipart_upload().bucket(BUCKET).key("parts").upload_id(&id).multipart_upload(list);
    done.send().await.unwrap();
    let rig = rig.restart().await;
    for key in ["same", "other", "from ä/+"] {
        assert_eq!(rig.get(key).await.unwrap(), sent, "{key}");
    }
    assert_eq!(rig.get("parts").await.unwrap(), sent[100..300_000]);
    rig.server.shutdown().await;
}

#[tokio::test]
async fn buckets_are_made_listed_and_removed() {
    let rig = Rig::at(tempfile::tempdir().unwrap(), |options| options.make_buckets = false).await;
    let client = &rig.client;
    let put = |bucket: &str| client.put_object().bucket(bucket).key("k").body(vec![1].into()).send();
    assert_eq!(code(put("west").await.unwrap_err()), "NoSuchBucket");
    let create = client.create_multipart_upload().bucket("west").key("k").send().await;
    assert_eq!(code(create.unwrap_err()), "NoSuchBucket");
    assert_eq!(code(client.head_bucket().bucket("west").send().await.unwrap_err()), "NotFound");
    assert_eq!(code(client.list_objects_v2().bucket("west").send().await.unwrap_err()), "NoSuchBucket");
    client.create_bucket().bucket("west").send().await.unwrap();
    client.create_bucket().bucket("east").send().await.unwrap();
    assert_eq!(code(client.create_bucket().bucket("west").send().await.unwrap_err()), "BucketAlreadyOwnedByYou");
    assert_eq!(code(client.create_bucket().bucket("Not_Valid").send().await.unwrap_err()), "InvalidBucketName");
    put("west").await.unwrap();
    let names: Vec<_> = client.list_buckets().send().await.unwrap().buckets.unwrap_or_default();
    assert_eq!(names.iter().map(|bucket| bucket.name().unwrap()).collect::<Vec<_>>(), ["east", "west"]);
    client.get_bucket_location().bucket("west").send().await.unwrap();
    assert_eq!(client.get_bucket_versioning().bucket("west").send().await.unwrap().status, None);
    assert_eq!(code(client.delete_bucket().bucket("west").send().await.unwrap_err()), "BucketNotEmpty");
    client.delete_object().bucket("west").key("k").send().await.unwrap();
    client.delete_bucket().bucket("west").send().await.unwrap();
    client.delete_bucket().bucket("east").send().await.unwrap();
    let rig = rig.restart().await;
    assert_eq!(rig.client.list_buckets().send().await.unwrap().buckets().len(), 0);
    // The default makes what is missing.
    rig.put("k", "v").await;
    assert_eq!(rig.keys().await, ["k"]);
    rig.server.shutdown().await;
}
