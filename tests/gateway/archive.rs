//! Storage classes: kept and told; what is archived is not given before it was restored.

use std::time::Duration;

use aws_sdk_s3::types::{
    CompletedMultipartUpload, CompletedPart, MetadataDirective, ObjectStorageClass, RestoreRequest, StorageClass,
};

use crate::rig::{BUCKET, Rig, code, content};

async fn rig(restore_after: Duration) -> Rig {
    Rig::at(tempfile::tempdir().unwrap(), |options| options.restore_after = restore_after).await
}

async fn put(rig: &Rig, key: &str, class: StorageClass) {
    let put = rig.client.put_object().bucket(BUCKET).key(key).storage_class(class).body(b"content".to_vec().into());
    put.send().await.unwrap();
}

/// What a HEAD says: class, and how a restore stands.
async fn head(rig: &Rig, key: &str) -> (Option<StorageClass>, Option<String>) {
    let head = rig.client.head_object().bucket(BUCKET).key(key).send().await.unwrap();
    (head.storage_class, head.restore)
}

async fn restore(rig: &Rig, key: &str) -> String {
    let wish = RestoreRequest::builder().days(2).build();
    let asked = rig.client.restore_object().bucket(BUCKET).key(key).restore_request(wish).send().await;
    asked.map_or_else(code, |_| "ok".to_owned())
}

async fn restored(rig: &Rig, key: &str) -> String {
    for _ in 0..400 {
        if let (_, Some(restore)) = head(rig, key).await
            && restore.contains("false")
        {
            return restore;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{key} is not restored within ten seconds");
}

#[tokio::test]
async fn archived_objects_are_given_once_restored() {
    let rig = rig(Duration::from_millis(300)).await;
    for class in [StorageClass::Glacier, StorageClass::DeepArchive] {
        let key = class.as_str();
        put(&rig, key, class.clone()).await;
        assert_eq!(head(&rig, key).await, (Some(class.clone()), None));
        assert_eq!(rig.get(key).await, Err("InvalidObjectState".into()));
        let copy =
            rig.client.copy_object().bucket(BUCKET).key("copy").copy_source(format!("{BUCKET}/{key}")).send().await;
        assert_eq!(code(copy.unwrap_err()), "InvalidObjectState");
        assert_eq!(restore(&rig, key).await, "ok");
        let until = restored(&rig, key).await;
        assert!(until.contains("expiry-date=\"") && until.ends_with("GMT\""), "{until}");
        assert_eq!(rig.get(key).await.unwrap(), b"content");
        assert_eq!(restore(&rig, key).await, "ok", "it is kept for longer");
        // Another version of it was restored by nobody.
        let other = rig.client.put_object().bucket(BUCKET).key(key).storage_class(StorageClass::Glacier);
        other.body(b"other".to_vec().into()).send().await.unwrap();
        assert_eq!(rig.get(key).await, Err("InvalidObjectState".into()));
    }
    let reply = crate::rig::http(rig.server.addr(), "GET /bucket/GLACIER", "", b"").await;
    assert!(reply.starts_with("HTTP/1.1 403"), "{reply}");
    rig.server.shutdown().await;
}

#[tokio::test]
async fn a_restore_under_way_is_told_and_not_begun_twice() {
    let rig = rig(Duration::from_secs(3600)).await;
    put(&rig, "k", StorageClass::Glacier).await;
    put(&rig, "plain", StorageClass::StandardIa).await;
    assert_eq!(restore(&rig, "k").await, "ok");
    assert_eq!(head(&rig, "k").await.1.as_deref(), Some("ongoing-request=\"true\""));
    assert_eq!(restore(&rig, "k").await, "RestoreAlreadyInProgress");
    assert_eq!(rig.get("k").await, Err("InvalidObjectState".into()));
    assert_eq!(restore(&rig, "plain").await, "InvalidObjectState", "there is nothing to restore");
    assert_eq!(rig.get("plain").await.unwrap(), b"content");
    assert_eq!(restore(&rig, "missing").await, "NoSuchKey");
    rig.server.shutdown().await;
}

#[tokio::test]
async fn classes_are_kept_and_changed_by_a_copy_onto_itself() {
    let rig = rig(Duration::ZERO).await;
    let bad = rig.client.put_object().bucket(BUCKET).key("k").storage_class("ATTIC".into()).body(b"x".to_vec().into());
    assert_eq!(code(bad.send().await.unwrap_err()), "InvalidStorageClass");
    put(&rig, "ia", StorageClass::StandardIa).await;
    put(&rig, "standard", StorageClass::Standard).await;
    assert_eq!(head(&rig, "standard").await, (None, None));
    let to = async |key: &str, class: StorageClass| {
        let copy = rig.client.copy_object().bucket(BUCKET).key(key).copy_source(format!("{BUCKET}/{key}"));
        copy.storage_class(class).send().await.map(drop).map_err(code)
    };
    let etag = async || rig.client.head_object().bucket(BUCKET).key("standard").send().await.unwrap().e_tag;
    let before = etag().await;
    to("standard", StorageClass::DeepArchive).await.unwrap();
    assert_eq!(etag().await, before, "it is the same object in another place");
    assert_eq!(to("ia", StorageClass::StandardIa).await, Err("InvalidRequest".into()), "a copy that changes nothing");
    let again = rig.client.copy_object().bucket(BUCKET).key("ia").copy_source(format!("{BUCKET}/ia"));
    again.metadata_directive(MetadataDirective::Replace).metadata("a", "b").send().await.unwrap();
    assert_eq!(head(&rig, "ia").await.0, None, "the class is that asked for");
    // In parts, and across a restart.
    let parts = rig.client.create_multipart_upload().bucket(BUCKET).key("parts").storage_class(StorageClass::Glacier);
    let id = parts.send().await.unwrap().upload_id.unwrap();
    let Rig { dir, server, .. } = rig;
    server.shutdown().await;
    let rig = Rig::at(dir, |options| options.restore_after = Duration::ZERO).await;
    let part = rig.client.upload_part().bucket(BUCKET).key("parts").upload_id(&id).part_number(1);
    let etag = part.body(content(1, 1000).into()).send().await.unwrap().e_tag;
    let list = CompletedPart::builder().part_number(1).set_e_tag(etag).build();
    let done = rig.client.complete_multipart_upload().bucket(BUCKET).key("parts").upload_id(&id);
    done.multipart_upload(CompletedMultipartUpload::builder().parts(list).build()).send().await.unwrap();
    let rig = rig.restart().await;
    for (key, class) in [("standard", StorageClass::DeepArchive), ("parts", StorageClass::Glacier)] {
        assert_eq!(head(&rig, key).await.0, Some(class));
        assert_eq!(rig.get(key).await, Err("InvalidObjectState".into()));
    }
    let listed = rig.client.list_objects_v2().bucket(BUCKET).send().await.unwrap();
    let classes: Vec<_> = listed.contents().iter().map(|object| object.storage_class().unwrap().clone()).collect();
    assert_eq!(classes, [ObjectStorageClass::Standard, ObjectStorageClass::Glacier, ObjectStorageClass::DeepArchive]);
    rig.server.shutdown().await;
}
