//! Objects in archive classes: told apart from damage and missing rights, restored once, read then.

use std::time::Duration;

use aws_sdk_s3::types::StorageClass;
use tierfs::ports::{Remote, RemoteErrorKind as Kind, RestoreState};
use tierfs::types::ByteRange;

use crate::rig::*;
use crate::scripted::{at, scripted};

#[tokio::test]
async fn an_archived_object_is_restored_and_read() {
    let rig = Rig::with(|options| options.restore_after = Duration::from_millis(300)).await;
    let remote = rig.remote().await;
    put(&remote, "k", b"content").await.unwrap();
    assert_eq!(remote.head(&key("k")).await.unwrap().restore, RestoreState::Readable);
    assert_eq!(remote.restore(&key("k"), 1).await.unwrap(), RestoreState::Readable, "there is nothing to restore");
    rig.archive(&key("k"), StorageClass::Glacier).await;
    let before = rig.requests();
    fails(get(&remote, "k", 0, 7).await, Kind::Archived, &["must be restored first (403 InvalidObjectState"]);
    fails(remote.get_all(&key("k"), 7).await, Kind::Archived, &["must be restored first"]);
    let stream = remote.stream(&key("k"), ByteRange { offset: 0, len: 7 }, None).await;
    fails(stream.map(drop), Kind::Archived, &["must be restored first"]);
    assert_eq!(rig.requests() - before, 3, "asking again would not help");
    assert_eq!(remote.head(&key("k")).await.unwrap().restore, RestoreState::Archived);
    assert_eq!(remote.restore(&key("k"), 1).await.unwrap(), RestoreState::Restoring);
    let mut looks = 0;
    while remote.head(&key("k")).await.unwrap().restore != RestoreState::Readable {
        looks += 1;
        assert!(looks < 400, "it is not restored within ten seconds");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    assert_eq!(get(&remote, "k", 0, 7).await.unwrap(), "content");
    fails(remote.restore(&key("missing"), 1).await, Kind::NotFound, &["restore bucket/some/prefix/missing"]);
}

#[tokio::test]
async fn a_restore_under_way_is_no_failure() {
    let rig = Rig::with(|options| options.restore_after = Duration::from_secs(3600)).await;
    let remote = rig.remote().await;
    put(&remote, "k", b"content").await.unwrap();
    rig.archive(&key("k"), StorageClass::DeepArchive).await;
    for _ in 0..2 {
        assert_eq!(remote.restore(&key("k"), 3).await.unwrap(), RestoreState::Restoring);
        assert_eq!(remote.head(&key("k")).await.unwrap().restore, RestoreState::Restoring);
    }
}

/// What the embedded endpoint never says.
#[tokio::test]
async fn what_intelligent_tiering_archives_is_archived_too() {
    let rig = Rig::new().await;
    for (headers, state) in [
        ("x-amz-storage-class: INTELLIGENT_TIERING\r\n", RestoreState::Readable),
        (
            "x-amz-storage-class: INTELLIGENT_TIERING\r\nx-amz-archive-status: DEEP_ARCHIVE_ACCESS\r\n",
            RestoreState::Archived,
        ),
        (
            "x-amz-archive-status: ARCHIVE_ACCESS\r\nx-amz-restore: ongoing-request=\"true\"\r\n",
            RestoreState::Restoring,
        ),
        ("x-amz-storage-class: GLACIER_IR\r\n", RestoreState::Readable),
    ] {
        let url = scripted(move |_| {
            format!("HTTP/1.1 200 OK\r\netag: \"e\"\r\ncontent-length: 7\r\nconnection: close\r\n{headers}\r\n")
        });
        assert_eq!(at(&rig, url).await.head(&key("k")).await.unwrap().restore, state, "{headers}");
    }
}
