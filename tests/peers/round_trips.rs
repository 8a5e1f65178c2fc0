//! Content goes to the other side and comes back; both sides show the same file all along.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use tierfs::record::Phase;

use crate::sides::{CHUNK, Sides};
use crate::tools::*;

const LARGE: usize = 40 * CHUNK + 77;

fn goes_and_comes_back(kind: &str) {
    let files = [("small", 1_000), ("chunk", CHUNK), ("large", LARGE)];
    let Some((sides, contents)) = Sides::with_files(kind, &files) else { return };
    for round in 0..3 {
        for ((name, len), content) in files.iter().zip(&contents) {
            sides.east.done("migrate", name);
            assert!(sides.decided(name), "round {round}: west owns {name}");
            // Who carries the pair's name is the stub (R4).
            assert_eq!((sides.east.state(name), sides.east.pair_of(name)), ("stub".into(), Some("gp".into())));
            assert_eq!((sides.west.state(name), sides.west.pair_of(name)), ("resident".into(), None));
            assert!(sides.east.allocated(name) < 8_192, "{} bytes of {name} stay", sides.east.allocated(name));
            assert!(sides.west.allocated(name) >= *len as u64 / 4096 * 4096);
            assert_eq!(sides.east.shown(name), sides.west.shown(name));
            assert_eq!(sides.east.shown(name), (*len as u64, 1_600_000_000, 123_456_789));
            assert_same(&fs::read(sides.west.mnt(name)).unwrap(), content, "where it is owned");
            sides.east.done("recall", name);
            assert!(!sides.decided(name), "round {round}: east owns {name} again");
            // Freed once the answer is given.
            wait_for("west's stub", || sides.west.state(name) == "stub");
            assert_eq!((sides.west.pair_of(name), sides.east.pair_of(name)), (Some("gp".into()), None));
            assert_eq!(sides.west.shown(name), (*len as u64, 1_600_000_000, 123_456_789));
            wait_for("west's blocks to be freed", || sides.west.allocated(name) < 8_192);
            assert_same(&fs::read(sides.east.mnt(name)).unwrap(), content, "brought back");
        }
    }
}

#[test]
fn content_goes_and_comes_back_on_ext4() {
    goes_and_comes_back("ext4");
}

#[test]
fn content_goes_and_comes_back_on_xfs() {
    goes_and_comes_back("xfs");
}

/// A stub that the metadata sync made is read from the other side without anybody having migrated it.
#[test]
fn a_part_is_read_from_the_other_side() {
    let Some((sides, contents)) = Sides::with_files("ext4", &[("large", LARGE)]) else { return };
    let mut file = fs::File::open(sides.west.mnt("large")).unwrap();
    let mut part = vec![0; 5_000];
    file.seek(SeekFrom::Start(20 * CHUNK as u64 + 9)).unwrap();
    file.read_exact(&mut part).unwrap();
    assert_same(&part, &contents[0][20 * CHUNK + 9..][..5_000], "a part");
    drop(file);
    assert!(sides.east.owns("large") && sides.west.peer("large").phase == Phase::Stub);
    // Read to its end, it is west's.
    assert_same(&fs::read(sides.west.mnt("large")).unwrap(), &contents[0], "all of it");
    wait_for("west to own it", || sides.west.owns("large"));
    assert!(sides.decided("large"));
    sides.same("large", &contents[0]);
}

/// A write on the side that has a stub: its content comes, then ownership, then the change; the other side sees that.
#[test]
fn a_write_to_a_stub_takes_it() {
    let Some((sides, mut contents)) = Sides::with_files("ext4", &[("f", LARGE), ("g", 100)]) else { return };
    for (name, content) in ["f", "g"].into_iter().zip(&mut contents) {
        let file = fs::OpenOptions::new().write(true).open(sides.west.mnt(name)).unwrap();
        assert!(sides.west.owns(name), "who writes owns");
        file.write_all_at(b"written on west", 10).unwrap();
        file.sync_all().unwrap();
        drop(file);
        content[10..25].copy_from_slice(b"written on west");
        assert_same(&fs::read(sides.east.mnt(name)).unwrap(), content, "east, after west wrote");
        sides.decided(name);
        sides.same(name, content);
    }
}

/// To zero, shorter and longer, on the owner's side and on the stub's (R13).
#[test]
fn truncations_are_seen_on_both_sides() {
    let Some((sides, contents)) = Sides::with_files("ext4", &[("f", LARGE)]) else { return };
    let mut content = contents[0].clone();
    let lens = [LARGE as u64 / 2, 0, 3 * CHUNK as u64 + 5, 0, 70_000];
    for (round, len) in lens.into_iter().enumerate() {
        let side = if round % 2 == 0 { &sides.east } else { &sides.west };
        let file = fs::OpenOptions::new().write(true).open(side.mnt("f")).unwrap();
        file.set_len(len).unwrap();
        drop(file);
        content.resize(len as usize, 0);
        let other = if round % 2 == 0 { &sides.west } else { &sides.east };
        // Until the metadata sync tells it, the other side's stat is as it was; a read finds out.
        wait_for("the other side to see it", || fs::read(other.mnt("f")).is_ok_and(|found| found == content));
        sides.decided("f");
        sides.same("f", &content);
    }
}

/// Programs that have it open through all of it read the same.
#[test]
fn handles_outlive_a_change_of_owner() {
    let Some((sides, contents)) = Sides::with_files("ext4", &[("f", LARGE)]) else { return };
    let west = fs::File::open(sides.west.mnt("f")).unwrap();
    let inode = west.metadata().unwrap().ino();
    sides.east.done("migrate", "f");
    let mut found = vec![0; LARGE];
    west.read_exact_at(&mut found, 0).unwrap();
    assert_same(&found, &contents[0], "by a handle from when it was a stub");
    assert_eq!(fs::metadata(sides.west.mnt("f")).unwrap().ino(), inode, "it is the same inode");
    drop(west);
    sides.same("f", &contents[0]);
}

/// A file that the other side does not have is not given to it, and says why; so does an archive, of which a peer has none.
#[test]
fn what_is_not_paired_stays() {
    let Some((sides, _)) = Sides::with_files("ext4", &[("f", 1_000)]) else { return };
    fs::write(sides.east.mnt("alone"), "alone").unwrap();
    let output = sides.east.on("migrate", &["alone"]);
    assert!(!output.status.success() && said(&output).contains("does not have this file yet"), "{}", said(&output));
    assert_eq!(fs::read(sides.east.mnt("alone")).unwrap(), b"alone");
}

/// A rename that the other side has not heard of: the file is found by its inode there, and its content with it.
#[test]
fn a_renamed_file_is_found() {
    let Some((sides, contents)) = Sides::with_files("ext4", &[("f", LARGE)]) else { return };
    assert_same(&fs::read(sides.west.mnt("f")).unwrap(), &contents[0], "west");
    wait_for("west to own it", || sides.west.owns("f"));
    sides.decided("f");
    fs::rename(sides.east.mnt("f"), sides.east.mnt("g")).unwrap();
    assert_same(&fs::read(sides.east.mnt("g")).unwrap(), &contents[0], "east, under its new name");
    wait_for("east to own it", || sides.east.owns("g"));
    assert_same(&fs::read(sides.west.mnt("f")).unwrap(), &contents[0], "west, under the old one");
    wait_for("west to own it again", || sides.west.owns("f"));
}
