//! Objects as clients know them, and as files.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{
    ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart, Delete, ObjectIdentifier, Tag, Tagging,
};

use crate::place::{ALICE, BUCKET, Place};
use crate::rig::{Setup, noise, set_mtime};
use crate::s3;

fn md5(content: &[u8]) -> String {
    use md5::Digest as _;
    let hash = md5::Md5::digest(content);
    format!("\"{}\"", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

#[test]
fn an_object_is_a_file_and_a_file_an_object() {
    for setup in [Setup::default(), Setup::xfs()] {
        let Some(mut place) = Place::over(setup) else { return };
        let content = noise("a", 3_000_000);
        assert_eq!(place.put(&place.alice, "alice/new/dirs/file", content.clone()).unwrap(), md5(&content));
        let low = place.rig.low("alice/new/dirs/file");
        assert!(fs::read(&low).unwrap() == content);
        let made = fs::metadata(&low).unwrap();
        assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (ALICE, ALICE, 0o644));
        let dir = fs::metadata(place.rig.low("alice/new")).unwrap();
        assert_eq!((dir.uid(), dir.mode() & 0o7777), (ALICE, 0o755));
        assert!(place.get(&place.alice, "alice/new/dirs/file").unwrap() == content);
        assert_eq!(place.get_range(&place.alice, "alice/new/dirs/file", Some("bytes=5-9")).unwrap(), content[5..10]);
        assert_eq!(
            place.get_range(&place.alice, "alice/new/dirs/file", Some("bytes=-3")).unwrap(),
            content[2_999_997..]
        );
        assert_eq!(
            place.get_range(&place.alice, "alice/new/dirs/file", Some("bytes=3000000-")),
            Err("InvalidRange".into())
        );
        fs::write(place.rig.low("open/by hand"), "hello").unwrap();
        assert_eq!(place.get(&place.bob, "open/by hand").unwrap(), b"hello");
        assert_eq!(place.head(&place.bob, "open/by hand").unwrap().content_length, Some(5));
        assert_eq!(place.get(&place.bob, "open/none"), Err("NoSuchKey".into()));
        // A zero-byte PUT is how S3 truncates.
        place.put(&place.alice, "alice/new/dirs/file", "").unwrap();
        assert_eq!(fs::metadata(&low).unwrap().len(), 0);
        assert_eq!(place.get(&place.alice, "alice/new/dirs/file").unwrap(), b"");
        assert_eq!(place.staged(), 0);
        place.stop();
    }
}

/// The ETag says whether the content is the same, whoever changed it.
#[test]
fn etags_follow_the_content() {
    let Some(place) = Place::alone() else { return };
    let etag = |key: &str| place.head(&place.root, key).unwrap().e_tag.unwrap();
    assert_eq!(place.put(&place.root, "f", "one").unwrap(), md5(b"one"));
    assert_eq!(etag("f"), md5(b"one"));
    let low = place.rig.low("f");
    // Permissions and names are no content.
    fs::set_permissions(&low, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(etag("f"), md5(b"one"));
    fs::write(&low, "two").unwrap();
    let changed = etag("f");
    assert!(changed != md5(b"one") && changed.contains('-'), "{changed}");
    assert_eq!(etag("f"), changed);
    set_mtime(&low, 1_600_000_000, 5);
    assert_ne!(etag("f"), changed);
}

#[test]
fn metadata_tags_and_checksums_are_kept() {
    let Some(mut place) = Place::alone() else { return };
    let block = |place: &Place, key: &str, algorithm, content: &'static [u8]| {
        let put = place.root.client.put_object().bucket(BUCKET).key(key).body(ByteStream::from_static(content));
        let put =
            put.content_type("text/x-tea").metadata("kind", "green").tagging("a=1&b=2").checksum_algorithm(algorithm);
        place.rig.block_on(put.send()).map_err(s3::code).unwrap()
    };
    let put = block(&place, "t/x", ChecksumAlgorithm::Sha256, b"leaf");
    place.stop();
    place.start();
    let head = place.root.client.head_object().bucket(BUCKET).key("t/x").checksum_mode("ENABLED".into());
    let head = place.rig.block_on(head.send()).unwrap();
    assert_eq!(head.content_type.as_deref(), Some("text/x-tea"));
    assert_eq!(head.metadata.as_ref().unwrap()["kind"], "green");
    assert_eq!((head.checksum_sha256.clone(), head.e_tag.clone()), (put.checksum_sha256.clone(), put.e_tag));
    let tags = |place: &Place| {
        let get = place.root.client.get_object_tagging().bucket(BUCKET).key("t/x");
        let got = place.rig.block_on(get.send()).unwrap();
        got.tag_set.into_iter().map(|tag| format!("{}={}", tag.key, tag.value)).collect::<Vec<_>>()
    };
    assert_eq!(tags(&place), ["a=1", "b=2"]);
    let tag = Tag::builder().key("c").value("3").build().unwrap();
    let tagging = Tagging::builder().tag_set(tag).build().unwrap();
    let set = place.root.client.put_object_tagging().bucket(BUCKET).key("t/x").tagging(tagging);
    place.rig.block_on(set.send()).unwrap();
    assert_eq!(tags(&place), ["c=3"]);
    assert_eq!(place.head(&place.root, "t/x").unwrap().e_tag, head.e_tag);
    // Changed by somebody else: the headers stay, the checksum does not.
    fs::write(place.rig.low("t/x"), "twig").unwrap();
    let head = place.root.client.head_object().bucket(BUCKET).key("t/x").checksum_mode("ENABLED".into());
    let head = place.rig.block_on(head.send()).unwrap();
    assert_eq!((head.content_type.as_deref(), head.checksum_sha256), (Some("text/x-tea"), None));
    // A checksum that does not fit: nothing comes of it.
    let bad = place.root.client.put_object().bucket(BUCKET).key("t/x").body(ByteStream::from_static(b"dust"));
    let bad = place.rig.block_on(bad.checksum_sha256("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").send());
    assert_eq!(s3::code(bad.unwrap_err()), "BadDigest");
    let bad = place.root.client.put_object().bucket(BUCKET).key("t/y").body(ByteStream::from_static(b"dust"));
    let bad = place.rig.block_on(bad.content_md5("AAAAAAAAAAAAAAAAAAAAAA==").send());
    assert_eq!(s3::code(bad.unwrap_err()), "BadDigest");
    assert_eq!(place.get(&place.root, "t/x").unwrap(), b"twig");
    assert_eq!((place.keys(&place.root, "t/"), place.staged()), (vec!["t/x".to_owned()], 0));
    // More than a file can carry beside its content is refused whole.
    let mut put = place.root.client.put_object().bucket(BUCKET).key("t/z").body(ByteStream::from_static(b"z"));
    for n in 0..10 {
        put = put.metadata(format!("m{n}"), "x".repeat(190));
    }
    let tags = (0..10).map(|n| format!("k{n}={}", "y".repeat(250))).collect::<Vec<_>>().join("&");
    assert_eq!(s3::code(place.rig.block_on(put.tagging(tags).send()).unwrap_err()), "MetadataTooLarge");
    assert_eq!(place.get(&place.root, "t/z"), Err("NoSuchKey".into()));
}

#[test]
fn conditions_hold() {
    let Some(place) = Place::alone() else { return };
    let put = |key: &str, content: &'static [u8]| {
        place.root.client.put_object().bucket(BUCKET).key(key).body(ByteStream::from_static(content))
    };
    let code = |put: aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder| {
        place.rig.block_on(put.send()).map(|put| put.e_tag.unwrap()).map_err(s3::code)
    };
    let first = code(put("c/k", b"1").if_none_match("*")).unwrap();
    assert_eq!(code(put("c/k", b"2").if_none_match("*")), Err("PreconditionFailed".into()));
    assert_eq!(code(put("c/k", b"2").if_match("\"no\"")), Err("PreconditionFailed".into()));
    assert_eq!(code(put("c/none", b"2").if_match(&first)), Err("NoSuchKey".into()));
    let second = code(put("c/k", b"2").if_match(&first)).unwrap();
    // Changed below: what the client knew holds no more.
    fs::write(place.rig.low("c/k"), "by hand").unwrap();
    assert_eq!(code(put("c/k", b"3").if_match(&second)), Err("PreconditionFailed".into()));
    let now = place.head(&place.root, "c/k").unwrap();
    let get = || place.root.client.get_object().bucket(BUCKET).key("c/k");
    let status = |get: aws_sdk_s3::operation::get_object::builders::GetObjectFluentBuilder| {
        place.rig.block_on(get.send()).map(drop).map_err(s3::code)
    };
    let etag = now.e_tag.unwrap();
    assert_eq!(status(get().if_none_match(&etag)), Err("304".into()));
    assert_eq!(status(get().if_match(&second)), Err("PreconditionFailed".into()));
    assert_eq!(status(get().if_match(&etag)), Ok(()));
    assert_eq!(status(get().if_modified_since(now.last_modified.unwrap())), Err("304".into()));
    let delete = place.root.client.delete_object().bucket(BUCKET).key("c/k").if_match(&second);
    assert_eq!(s3::code(place.rig.block_on(delete.send()).unwrap_err()), "PreconditionFailed");
    let delete = place.root.client.delete_object().bucket(BUCKET).key("c/k").if_match(&etag);
    place.rig.block_on(delete.send()).unwrap();
    assert!(!place.rig.low("c").exists(), "a directory that only a key had made");
    // Of many who want to be the first, one is.
    let all = (0..16).map(|_| put("race", b"r").if_none_match("*").send());
    let won = place.rig.block_on(futures::future::join_all(all)).into_iter().filter(Result::is_ok).count();
    assert_eq!(won, 1);
}

#[test]
fn uploads_in_parts_outlive_a_restart() {
    let Some(mut place) = Place::alone() else { return };
    let create = place.alice.client.create_multipart_upload().bucket(BUCKET).key("alice/big").metadata("m", "v");
    let upload = place.rig.block_on(create.send()).unwrap().upload_id.unwrap();
    let content = noise("big", 12 << 20);
    let part = |place: &Place, number: i32, body: &[u8]| {
        let part =
            place.alice.client.upload_part().bucket(BUCKET).key("alice/big").upload_id(&upload).part_number(number);
        let etag = place.rig.block_on(part.body(ByteStream::from(body.to_vec())).send()).unwrap().e_tag.unwrap();
        CompletedPart::builder().part_number(number).e_tag(etag).build()
    };
    let mut parts = vec![part(&place, 1, &content[..5 << 20])];
    place.kill();
    assert!(!place.rig.low("alice/big").exists());
    place.start();
    part(&place, 2, b"to be replaced");
    parts.push(part(&place, 2, &content[5 << 20..10 << 20]));
    parts.push(part(&place, 3, &content[10 << 20..]));
    part(&place, 9, b"not wanted in the end");
    let listed = place.alice.client.list_parts().bucket(BUCKET).key("alice/big").upload_id(&upload);
    let listed = place.rig.block_on(listed.send()).unwrap().parts.unwrap();
    assert_eq!(listed.iter().map(|part| part.size.unwrap()).collect::<Vec<_>>(), [5 << 20, 5 << 20, 2 << 20, 21]);
    assert_eq!(place.keys(&place.root, "alice/"), ["alice/"]);
    // It is Alice's, and nobody else's.
    let foreign = place.bob.client.list_parts().bucket(BUCKET).key("alice/big").upload_id(&upload);
    assert_eq!(s3::code(place.rig.block_on(foreign.send()).unwrap_err()), "NoSuchUpload");
    let uploads = |user: &crate::place::User| {
        let listed = place.rig.block_on(user.client.list_multipart_uploads().bucket(BUCKET).send()).unwrap();
        listed.uploads.unwrap_or_default().len()
    };
    assert_eq!((uploads(&place.alice), uploads(&place.bob)), (1, 0));
    let whole = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
    let complete = || {
        let complete =
            place.alice.client.complete_multipart_upload().bucket(BUCKET).key("alice/big").upload_id(&upload);
        place.rig.block_on(complete.multipart_upload(whole.clone()).send()).map_err(s3::code)
    };
    let etag = complete().unwrap().e_tag.unwrap();
    assert!(etag.ends_with("-3\""), "{etag}");
    assert!(place.get(&place.alice, "alice/big").unwrap() == content);
    let head = place.head(&place.alice, "alice/big").unwrap();
    assert_eq!((head.e_tag.unwrap(), head.metadata.unwrap()["m"].as_str()), (etag, "v"));
    assert_eq!(place.staged(), 0);
    // Its answer may be lost: asked again, it is the same.
    complete().unwrap();
    let create = place.alice.client.create_multipart_upload().bucket(BUCKET).key("alice/other");
    let id = place.rig.block_on(create.send()).unwrap().upload_id.unwrap();
    let abort = || {
        let abort = place.alice.client.abort_multipart_upload().bucket(BUCKET).key("alice/other").upload_id(&id);
        place.rig.block_on(abort.send()).map(drop).map_err(s3::code)
    };
    assert_eq!((abort(), abort()), (Ok(()), Err("NoSuchUpload".into())));
}

#[test]
fn copies_renames_and_removals() {
    let Some(place) = Place::alone() else { return };
    let content = noise("c", 700_000);
    place.put(&place.alice, "alice/a", content.clone()).unwrap();
    place.copy(&place.alice, "alice/a", "open/far/away/copy").unwrap();
    assert!(place.get(&place.alice, "open/far/away/copy").unwrap() == content);
    // A rename is one step, makes the directories it needs, and keeps the file.
    let inode = fs::metadata(place.rig.low("alice/a")).unwrap().ino();
    let etag = place.rename(&place.alice, "alice/a", "alice/x/y/z").unwrap();
    assert_eq!(etag, md5(&content));
    assert_eq!(fs::metadata(place.rig.low("alice/x/y/z")).unwrap().ino(), inode);
    assert_eq!(place.get(&place.alice, "alice/a"), Err("NoSuchKey".into()));
    assert_eq!(place.rename(&place.alice, "alice/a", "alice/b"), Err("NoSuchKey".into()));
    place.put(&place.alice, "alice/old", "old").unwrap();
    place.rename(&place.alice, "alice/x/y/z", "alice/old").unwrap();
    assert_eq!(fs::metadata(place.rig.low("alice/old")).unwrap().ino(), inode);
    assert!(!place.rig.low("alice/x").exists(), "the directories were there for the key only");
    // Whole directories, too.
    place.put(&place.alice, "alice/d/1", "1").unwrap();
    place.rename(&place.alice, "alice/d/", "alice/e/f/").unwrap();
    assert_eq!(place.keys(&place.alice, "alice/"), ["alice/e/f/1", "alice/old"]);
    assert_eq!(place.rename(&place.alice, "alice/e/", "alice/e/f/g/"), Err("KeyInTheWay".into()));
    assert_eq!(place.rename(&place.alice, "alice/e/f/", "open/"), Err("KeyInTheWay".into()));
    assert_eq!(place.rename(&place.alice, "alice/old", "alice/e/"), Err("InvalidArgument".into()));
    // What somebody made with mkdir stays when its last key goes; what a key made goes with it.
    fs::create_dir(place.rig.low("open/made")).unwrap();
    for key in ["open/made/k", "open/implied/deep/k"] {
        place.put(&place.root, key, "k").unwrap();
        place.delete(&place.root, key).unwrap();
        place.delete(&place.root, key).unwrap();
    }
    assert!(place.rig.low("open/made").is_dir() && !place.rig.low("open/implied").exists());
    // A key that ends with a slash is a directory that was asked for.
    place.put(&place.root, "open/marker/", "").unwrap();
    assert_eq!(place.head(&place.root, "open/marker/").unwrap().content_length, Some(0));
    place.put(&place.root, "open/marker/k", "k").unwrap();
    place.delete(&place.root, "open/marker/k").unwrap();
    assert_eq!(place.keys(&place.root, "open/marker"), ["open/marker/"]);
    place.delete(&place.root, "open/marker/").unwrap();
    assert!(!place.rig.low("open/marker").exists());
    let keys = ["alice/old", "alice/e/f/1", "alice/none", "open/far/away/copy"];
    let objects = keys.map(|key| ObjectIdentifier::builder().key(key).build().unwrap());
    let delete = Delete::builder().set_objects(Some(objects.to_vec())).build().unwrap();
    let deleted = place.rig.block_on(place.root.client.delete_objects().bucket(BUCKET).delete(delete).send()).unwrap();
    assert_eq!((deleted.deleted.unwrap_or_default().len(), deleted.errors.unwrap_or_default().len()), (4, 0));
    assert_eq!(place.keys(&place.root, ""), ["alice/", "bob/", "open/made/", "root/"]);
}

/// What a PUT leaves of the file it takes the place of.
#[test]
fn a_replaced_file_hands_on_its_owner_and_mode() {
    let Some(place) = Place::alone() else { return };
    fs::write(place.rig.low("open/shared"), "old").unwrap();
    let low = place.rig.low("open/shared");
    std::os::unix::fs::chown(&low, Some(ALICE), Some(crate::place::BOTH)).unwrap();
    fs::set_permissions(&low, fs::Permissions::from_mode(0o6664)).unwrap();
    place.put(&place.bob, "open/shared", "new").unwrap();
    let now = fs::metadata(&low).unwrap();
    // Set-id bits go, as with any write.
    assert_eq!((now.uid(), now.gid(), now.mode() & 0o7777), (ALICE, crate::place::BOTH, 0o664));
    let first = place.rig.record("open/shared").unwrap().generation;
    place.put(&place.bob, "open/shared", "newer").unwrap();
    assert!(place.rig.record("open/shared").unwrap().generation > first);
    // An ACL of the directory, and one of the file.
    let acl = |args: &[&str], name: &str| {
        let done = std::process::Command::new("setfacl").args(args).arg(place.rig.low(name)).status().unwrap();
        assert!(done.success());
    };
    acl(&["-d", "-m", "u:21009:rw"], "open");
    place.put(&place.bob, "open/deep/new", "x").unwrap();
    acl(&["-m", "u:21008:r"], "open/shared");
    place.put(&place.bob, "open/shared", "newest").unwrap();
    let facl = |name: &str| {
        let output = std::process::Command::new("getfacl").arg("-n").arg(place.rig.low(name)).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(facl("open/deep/new").contains("user:21009:rw"), "{}", facl("open/deep/new"));
    assert!(
        facl("open/shared").contains("user:21008:r--") && !facl("open/shared").contains("21009"),
        "{}",
        facl("open/shared")
    );
}
