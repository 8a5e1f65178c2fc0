//! A mount and its gateway in one process: each sees at once what the other does.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use crate::place::{BUCKET, Place};
use crate::rig::{CHUNK, Mapping, assert_same, noise, said};
use crate::s3;

#[test]
fn the_mount_sees_what_s3_changes() {
    let Some(place) = Place::mounted() else { return };
    let path = place.rig.mnt("open/f");
    // The kernel remembers that there is nothing, then what there is.
    for round in 0..20 {
        let name = format!("open/new{round}/f");
        let (dir, path) = (place.rig.mnt(format!("open/new{round}")), place.rig.mnt(&name));
        assert!(fs::metadata(&path).is_err() && fs::metadata(&dir).is_err());
        place.put(&place.root, &name, "x").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"x", "{name}");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        place.delete(&place.root, &name).unwrap();
        assert!(fs::metadata(&path).is_err() && fs::metadata(&dir).is_err(), "{name} after its removal");
    }
    for round in 0..20 {
        let content = noise(&format!("round {round}"), 10_000 + round);
        place.put(&place.root, "open/f", content.clone()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), content.len() as u64, "round {round}");
        assert_same(&fs::read(&path).unwrap(), &content, "through the mount");
        assert_eq!(fs::read_dir(place.rig.mnt("open")).unwrap().count(), 1);
    }
    place.rename(&place.root, "open/f", "open/g").unwrap();
    assert!(fs::metadata(&path).is_err() && fs::metadata(place.rig.mnt("open/g")).is_ok());
    // And S3 what the mount does.
    fs::write(place.rig.mnt("open/g"), "by the mount").unwrap();
    assert_eq!(place.get(&place.root, "open/g").unwrap(), b"by the mount");
    fs::rename(place.rig.mnt("open/g"), place.rig.mnt("open/h")).unwrap();
    assert_eq!(
        (place.get(&place.root, "open/g"), place.keys(&place.root, "open/")),
        (Err("NoSuchKey".into()), vec!["open/h".to_owned()])
    );
}

/// Who has the old file open or mapped keeps it; who opens the name anew gets the new one.
#[test]
fn readers_of_the_old_file_keep_it() {
    let Some(place) = Place::mounted() else { return };
    let (old, new) = (noise("old", 5 * CHUNK), noise("new", 3 * CHUNK));
    for migrated in [false, true] {
        place.put(&place.root, "open/f", old.clone()).unwrap();
        if migrated {
            place.rig.migrate("open/f");
        }
        let mut file = File::open(place.rig.mnt("open/f")).unwrap();
        let mut start = vec![0; CHUNK];
        file.read_exact(&mut start).unwrap();
        let mapped = Mapping::of(&file, old.len(), false);
        place.put(&place.root, "open/f", new.clone()).unwrap();
        let mut whole = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut whole).unwrap();
        assert_same(&whole, &old, "the old file");
        assert_same(mapped.bytes(), &old, "mapped");
        assert_same(&fs::read(place.rig.mnt("open/f")).unwrap(), &new, "the new file");
        assert_eq!(file.metadata().unwrap().nlink(), 0);
    }
    place.rig.settled(&[]);
}

/// Writers through the mount and through S3 at once: whoever wins, it is one of them, whole.
#[test]
fn many_at_once_leave_one_content_whole() {
    let Some(place) = Place::mounted() else { return };
    let content = |n: usize| noise(&format!("w{n}"), 100_000 + n);
    let path = place.rig.mnt("open/f");
    place.put(&place.root, "open/f", content(0)).unwrap();
    let puts = (0..12).map(|n| {
        let body = aws_sdk_s3::primitives::ByteStream::from(content(n));
        place.root.client.put_object().bucket(BUCKET).key("open/f").body(body).send()
    });
    let reading = std::thread::spawn(move || {
        for _ in 0..200 {
            let read = fs::read(&path).unwrap();
            let n = read.len() - 100_000;
            assert_same(&read, &noise(&format!("w{n}"), read.len()), "read through the mount");
        }
    });
    for put in place.rig.block_on(futures::future::join_all(puts)) {
        put.map_err(s3::code).unwrap();
    }
    reading.join().unwrap();
    let last = place.get(&place.root, "open/f").unwrap();
    assert_same(&last, &content(last.len() - 100_000), "in the end");
    assert_eq!(place.staged(), 0);
}

/// A GET of a file that is written in place meanwhile ends short rather than mixed.
#[test]
fn a_file_that_changes_while_it_is_sent_is_not_sent_whole() {
    let Some(place) = Place::mounted() else { return };
    let len = 64 << 20;
    place.put(&place.root, "open/f", vec![1; len]).unwrap();
    let got = place.rig.block_on(async {
        let got = place.root.client.get_object().bucket(BUCKET).key("open/f").send().await.unwrap();
        let mut body = got.body;
        let first = body.next().await.unwrap().unwrap();
        assert!(first.iter().all(|byte| *byte == 1));
        // In place: at no time is it shorter.
        let file = File::options().write(true).open(place.rig.mnt("open/f")).unwrap();
        file.write_all_at(&vec![2; len], 0).unwrap();
        let mut rest = Vec::new();
        while let Some(next) = body.next().await {
            match next {
                Ok(bytes) => rest.extend_from_slice(&bytes),
                Err(_) => return None,
            }
        }
        Some(rest)
    });
    assert!(got.is_none(), "a mixture was sent as if it were whole");
    assert_eq!(place.get(&place.root, "open/f").unwrap(), vec![2; len]);
}

/// One process serves a share, and says how it could do both.
#[test]
fn a_share_is_served_once() {
    let Some(mut place) = Place::alone() else { return };
    let output = place.rig.try_mount(&[]);
    assert!(!output.status.success());
    let message = said(&output);
    assert!(message.contains("is served as S3 at") && message.contains("-o gateway="), "{message}");
    place.stop();
    place.rig.mount();
    let message = place.refusal(&[]);
    assert!(message.contains("is mounted at") && message.contains("-o gateway="), "{message}");
    place.rig.umount();
    // A bad gateway leaves no mount.
    for (option, piece) in
        [("gateway=127.0.0.1:0,identities=/none", "/none"), ("gateway=127.0.0.1:0,bucket=NO", "bucket")]
    {
        let output = place.rig.try_mount(&["-o", option]);
        assert!(!output.status.success() && said(&output).contains(piece), "{option}: {}", said(&output));
        assert!(!fs::read_to_string("/proc/self/mounts").unwrap().contains(place.rig.mountpoint().to_str().unwrap()));
    }
}

/// A policy or a command releases a file that a PUT made, and its content comes back the same.
#[test]
fn what_s3_made_migrates_like_any_file() {
    let Some(place) = Place::mounted() else { return };
    let content = noise("m", 7 * CHUNK + 3);
    let etag = place.put(&place.alice, "alice/f", content.clone()).unwrap();
    for _ in 0..3 {
        place.rig.migrate("alice/f");
        assert_eq!(place.head(&place.alice, "alice/f").unwrap().e_tag.unwrap(), etag);
        assert_same(&place.get(&place.alice, "alice/f").unwrap(), &content, "after a migration");
    }
    place.rig.settled(&["alice/f"]);
}
