//! Objects whole: put, get, head, list, delete, keys of every kind, restart.

use aws_sdk_s3::types::{ChecksumMode, Delete, ObjectIdentifier};

use crate::rig::{BUCKET, Rig, code, content};

#[tokio::test]
async fn what_is_put_comes_back() {
    let rig = Rig::new().await;
    for (at, len) in [0, 1, 65_536, 98_304, 98_305, 262_144, 262_145, 1_048_576, 3_333_333].into_iter().enumerate() {
        let key = format!("dir/{len}");
        let sent = content(at as u64, len);
        let etag = rig.put(&key, sent.clone()).await;
        assert_eq!(rig.get(&key).await.unwrap(), sent, "{len} bytes");
        let head = rig.client.head_object().bucket(BUCKET).key(&key).checksum_mode(ChecksumMode::Enabled);
        let head = head.send().await.unwrap();
        assert_eq!(head.content_length, Some(len as i64));
        assert_eq!(head.e_tag, Some(etag));
        assert!(head.checksum_crc32.or(head.checksum_crc64_nvme).is_some(), "a checksum is kept");
    }
    assert_eq!(rig.keys().await.len(), 9);
    rig.server.shutdown().await;
}

#[tokio::test]
async fn metadata_is_kept_across_a_restart() {
    let rig = Rig::new().await;
    let put = rig.client.put_object().bucket(BUCKET).key("k").body(b"v".to_vec().into());
    let put = put.content_type("text/x-test").content_encoding("gzip").cache_control("no-store");
    let put = put.content_disposition("inline").content_language("de").metadata("Colour", "blue é").metadata("b", "2");
    put.send().await.unwrap();
    let rig = rig.restart().await;
    let got = rig.client.get_object().bucket(BUCKET).key("k").send().await.unwrap();
    assert_eq!(got.content_type.as_deref(), Some("text/x-test"));
    assert_eq!(got.content_encoding.as_deref(), Some("gzip"));
    assert_eq!(got.cache_control.as_deref(), Some("no-store"));
    assert_eq!(got.content_disposition.as_deref(), Some("inline"));
    assert_eq!(got.content_language.as_deref(), Some("de"));
    assert_eq!(got.metadata.unwrap()["b"], "2");
    rig.server.shutdown().await;
}

/// Keys that no path could hold, side by side.
fn odd_keys() -> Vec<String> {
    let mut keys: Vec<String> = [
        "p",
        "p/",
        "p/q",
        "p//q",
        "/p",
        "//",
        "a/../b",
        "..",
        "../..",
        "./x",
        "a b+c%20d",
        "ü/é/日本",
        "\u{10ffff}",
        "tab\tnewline\nbell\u{7}",
        "\u{1}",
        "quote\"'<>&",
        ".tierfs/lock",
        "a?b#c",
        "*",
        "\\",
        "a&b=c;d",
        "~",
        "%2e%2e",
    ]
    .map(str::to_owned)
    .into();
    keys.push("x".repeat(1024));
    keys.push("é".repeat(512));
    keys.push(format!("{}/{}", "c".repeat(300), "d".repeat(700)));
    keys
}

#[tokio::test]
async fn every_key_works_and_survives_a_restart() {
    let mut rig = Rig::new().await;
    let mut keys = odd_keys();
    for key in &keys {
        rig.put(key, key.as_bytes()).await;
    }
    keys.sort();
    for round in 0..2 {
        for key in &keys {
            assert_eq!(rig.get(key).await.as_deref(), Ok(key.as_bytes()), "round {round} {key:?}");
        }
        let listed = list_encoded(&rig).await;
        assert_eq!(listed, keys, "round {round}: all keys in byte order");
        rig = rig.restart().await;
    }
    for key in &keys {
        rig.client.delete_object().bucket(BUCKET).key(key).send().await.unwrap();
        assert_eq!(rig.get(key).await, Err("NoSuchKey".into()), "{key:?}");
    }
    assert_eq!(rig.files_at_most("bucket/objects", 0).await, 0, "nothing is left behind");
    let long = rig.client.put_object().bucket(BUCKET).key("x".repeat(1025)).send().await;
    assert_eq!(code(long.unwrap_err()), "KeyTooLongError");
    rig.server.shutdown().await;
}

/// Control characters have no place in XML, so listings are asked for URL-encoded.
async fn list_encoded(rig: &Rig) -> Vec<String> {
    let mut keys = Vec::new();
    let mut token = None;
    loop {
        let page = rig.client.list_objects_v2().bucket(BUCKET).max_keys(7).set_continuation_token(token);
        let page = page.encoding_type(aws_sdk_s3::types::EncodingType::Url).send().await.unwrap();
        for object in page.contents() {
            let raw = percent_encoding::percent_decode_str(object.key().unwrap());
            keys.push(raw.decode_utf8().unwrap().into_owned());
        }
        token = page.next_continuation_token;
        if token.is_none() {
            assert_eq!(page.is_truncated, Some(false));
            return keys;
        }
    }
}

#[tokio::test]
async fn an_overwrite_leaves_one_object_and_one_file() {
    let rig = Rig::new().await;
    for round in 0..5 {
        rig.put("k", content(round, 100_000)).await;
    }
    assert_eq!(rig.get("k").await.unwrap(), content(4, 100_000));
    assert_eq!(rig.files_at_most("bucket/objects", 1).await, 1);
    let rig = rig.restart().await;
    assert_eq!(rig.get("k").await.unwrap(), content(4, 100_000));
    assert_eq!(rig.keys().await, ["k"]);
    rig.server.shutdown().await;
}

#[tokio::test]
async fn deletes_are_idempotent_and_come_in_bulk() {
    let rig = Rig::new().await;
    for at in 0..30 {
        rig.put(&format!("k{at:02}"), "x").await;
    }
    for _ in 0..2 {
        rig.client.delete_object().bucket(BUCKET).key("k00").send().await.unwrap();
    }
    let ids = (0..20).map(|at| ObjectIdentifier::builder().key(format!("k{at:02}")).build().unwrap());
    let delete = Delete::builder().set_objects(Some(ids.collect())).build().unwrap();
    let deleted = rig.client.delete_objects().bucket(BUCKET).delete(delete).send().await.unwrap();
    assert_eq!(deleted.deleted().len(), 20);
    assert!(deleted.errors().is_empty());
    assert_eq!(rig.keys().await.len(), 10);
    let rig = rig.restart().await;
    assert_eq!(rig.keys().await.len(), 10);
    rig.server.shutdown().await;
}

#[tokio::test]
async fn listing_knows_prefix_delimiter_and_pages() {
    let rig = Rig::new().await;
    for key in ["a/1", "a/2", "a/b/3", "c", "d/4", "é"] {
        rig.put(key, "x").await;
    }
    let list = |prefix: &str, delimiter: Option<&str>, after: Option<&str>, max: i32| {
        let request = rig.client.list_objects_v2().bucket(BUCKET).prefix(prefix).max_keys(max);
        request.set_delimiter(delimiter.map(Into::into)).set_start_after(after.map(Into::into)).send()
    };
    let check = async |prefix: &str, delimiter, after, keys: &[&str], prefixes: &[&str]| {
        let page = list(prefix, delimiter, after, 1000).await.unwrap();
        let found: Vec<_> = page.contents().iter().map(|object| object.key().unwrap()).collect();
        let common: Vec<_> = page.common_prefixes().iter().map(|prefix| prefix.prefix().unwrap()).collect();
        assert_eq!((found.as_slice(), common.as_slice()), (keys, prefixes), "{prefix:?} {delimiter:?} {after:?}");
        assert_eq!(page.key_count, Some((keys.len() + prefixes.len()) as i32));
    };
    check("", Some("/"), None, &["c", "é"], &["a/", "d/"]).await;
    check("a/", Some("/"), None, &["a/1", "a/2"], &["a/b/"]).await;
    check("a/", None, Some("a/1"), &["a/2", "a/b/3"], &[]).await;
    check("none", None, None, &[], &[]).await;
    let mut seen = Vec::new();
    let mut pages = rig.client.list_objects_v2().bucket(BUCKET).delimiter("/").max_keys(1).into_paginator().send();
    while let Some(page) = pages.next().await {
        let page = page.unwrap();
        seen.extend(page.contents().iter().map(|object| object.key().unwrap().to_owned()));
        seen.extend(page.common_prefixes().iter().map(|prefix| prefix.prefix().unwrap().to_owned()));
    }
    assert_eq!(seen, ["a/", "c", "d/", "é"]);
    let v1 = rig.client.list_objects().bucket(BUCKET).marker("a/2").max_keys(2).send().await.unwrap();
    let keys: Vec<_> = v1.contents().iter().map(|object| object.key().unwrap()).collect();
    assert_eq!(keys, ["a/b/3", "c"]);
    assert_eq!((v1.is_truncated, v1.next_marker.as_deref()), (Some(true), Some("c")));
    rig.server.shutdown().await;
}
