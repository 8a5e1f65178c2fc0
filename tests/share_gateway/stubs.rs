//! Files whose content is in the pair's store: read, replaced, removed through S3.

use std::fs;

use crate::place::{BUCKET, Place};
use crate::rig::{CHUNK, assert_same, noise, wait_for};
use crate::s3;

/// A gateway over a share with `files` migrated: names and lengths.
fn migrated(files: &[(&str, usize)]) -> Option<Place> {
    let mut place = Place::alone()?;
    for (name, len) in files {
        place.put(&place.root, name, noise(name, *len)).unwrap();
    }
    place.stop();
    place.through_a_mount(|rig| files.iter().for_each(|(name, _)| rig.migrate(name)));
    place.start();
    Some(place)
}

#[test]
fn reading_recalls_and_looking_does_not() {
    let Some(place) = migrated(&[("open/small", 5_000), ("open/large", 40 * CHUNK)]) else { return };
    let before = place.rig.gets();
    let etag = place.head(&place.alice, "open/large").unwrap().e_tag;
    assert_eq!(place.keys(&place.alice, "open/").len(), 2);
    // What is of a user's own is known without content, too.
    let tags = place.alice.client.get_object_tagging().bucket(BUCKET).key("open/large");
    place.rig.block_on(tags.send()).unwrap();
    assert_eq!(place.rig.gets(), before);
    // A block for attributes at most.
    assert!(place.rig.allocated("open/large") <= 4096);
    for name in ["open/small", "open/large"] {
        let len = if name == "open/small" { 5_000 } else { 40 * CHUNK };
        assert_same(&place.get(&place.alice, name).unwrap(), &noise(name, len), name);
    }
    // The same content has the same ETag, wherever it was.
    assert_eq!(place.head(&place.alice, "open/large").unwrap().e_tag, etag);
    assert!(place.rig.gets() > before);
}

/// A range costs the chunks it lies in.
#[test]
fn a_range_brings_its_own_chunks_only() {
    let Some(place) = migrated(&[("open/large", 40 * CHUNK)]) else { return };
    let content = noise("open/large", 40 * CHUNK);
    let etag = || place.head(&place.alice, "open/large").unwrap().e_tag.unwrap();
    let first = etag();
    for (at, most) in [(20 * CHUNK + 100, 2), (7 * CHUNK, 1), (39 * CHUNK + 5, 1), (20 * CHUNK + 600, 0)] {
        let before = place.rig.requests().content;
        let range = format!("bytes={at}-{}", at + 999);
        let got = place.get_range(&place.alice, "open/large", Some(&range)).unwrap();
        assert_same(&got, &content[at..at + 1_000], "range");
        let fetched = place.rig.requests().content - before;
        // With the first, the hashes of all chunks.
        assert!(fetched <= (most * CHUNK) as u64, "{fetched} bytes for 1,000 at {at}");
    }
    assert!(place.rig.allocated("open/large") <= 5 * CHUNK as u64);
    assert_eq!(etag(), first);
    assert_same(&place.get(&place.alice, "open/large").unwrap(), &content, "all");
}

#[test]
fn replacing_and_removing_a_stub_fetches_nothing_and_gives_its_object_up() {
    let Some(place) = migrated(&[("open/a", 3 * CHUNK), ("open/b", 3 * CHUNK), ("open/c", 3 * CHUNK)]) else { return };
    let before = place.rig.gets();
    let old = place.rig.record("open/a").unwrap();
    assert_eq!(old.object.as_ref().unwrap().generation, old.generation);
    place.put(&place.root, "open/a", "new").unwrap();
    let new = place.rig.record("open/a").unwrap();
    assert!(new.generation > old.generation && new.object.is_none());
    place.delete(&place.root, "open/b").unwrap();
    place.rename(&place.root, "open/c", "open/d/e").unwrap();
    assert_eq!(place.rig.gets(), before);
    place.rig.settled(&["open/d/e"]);
    assert_eq!(place.get(&place.root, "open/a").unwrap(), b"new");
    assert_same(&place.get(&place.root, "open/d/e").unwrap(), &noise("open/c", 3 * CHUNK), "renamed");
    place.copy(&place.root, "open/d/e", "open/copy").unwrap();
    assert_same(&place.get(&place.root, "open/copy").unwrap(), &noise("open/c", 3 * CHUNK), "copied");
}

#[test]
fn content_that_cannot_come_is_an_error_that_says_so() {
    let Some(mut place) = migrated(&[("open/a", 3 * CHUNK)]) else { return };
    place.rig.stop_server();
    assert_eq!(place.get(&place.root, "open/a"), Err("ServiceUnavailable".into()));
    assert_eq!(place.head(&place.root, "open/a").unwrap().content_length, Some(3 * CHUNK as i64));
    place.rig.start_server();
    wait_for("the content", || place.get(&place.root, "open/a").is_ok_and(|got| got == noise("open/a", 3 * CHUNK)));
}

/// A reader who leaves in the middle leaves no handle behind: the file can be released.
#[test]
fn a_reader_who_leaves_lets_go() {
    let Some(place) = Place::mounted() else { return };
    place.put(&place.root, "open/f", noise("f", 64 * CHUNK)).unwrap();
    let got = place.rig.block_on(place.root.client.get_object().bucket(BUCKET).key("open/f").send()).map_err(s3::code);
    drop(got.unwrap());
    wait_for("the release", || place.rig.try_on(&["migrate"], &["open/f"]).status.success());
    assert_eq!(place.rig.state("open/f"), "stub");
    assert_eq!(fs::metadata(place.rig.mnt("open/f")).unwrap().len(), 64 * CHUNK as u64);
}
