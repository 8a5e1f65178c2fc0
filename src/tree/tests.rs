//! Trees read back, damage is found, and the stored form stays as it is.

use super::*;

fn part() -> Part {
    let attributes = |n: u32| Attributes {
        mode: 0o2750,
        uid: n,
        gid: 65_534,
        atime: Timestamp { secs: 5, nanos: 6 },
        mtime: Timestamp { secs: -7, nanos: 999_999_999 },
        xattrs: vec![(b"user.x".to_vec(), vec![0, 255])],
    };
    let kinds = [
        Kind::Regular { size: 1 << 40, record: Some(vec![1, 2, 3]) },
        Kind::Regular { size: 0, record: None },
        Kind::Directory,
        Kind::Symlink { target: b"\xff/..".to_vec() },
        Kind::Fifo,
        Kind::Socket,
        Kind::CharDevice { device: 0x105 },
        Kind::BlockDevice { device: 0x801 },
    ];
    let entry = |(n, kind): (usize, Kind)| Entry {
        name: vec![b'a' + n as u8, 0xfe],
        file: FileId { ino: n as u64, birth: u64::MAX >> 1 },
        links: 1 + n as u32,
        kind,
        attributes: attributes(n as u32),
    };
    Part {
        directory: FileId { ino: 2, birth: 3 },
        generation: Generation(0x1234),
        number: 1,
        last: true,
        attributes: attributes(1000),
        entries: kinds.into_iter().enumerate().map(entry).collect(),
    }
}

#[test]
fn the_stored_form_of_version_1_stays() {
    let golden = include_bytes!("golden/v1.bin");
    assert_eq!(part().encode(), golden);
    assert_eq!(Part::decode(golden).unwrap(), part());
}

/// Writes the golden file of a new version; run by hand.
#[test]
#[ignore = "writes into the source"]
fn write_golden() {
    std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/src/tree/golden/v1.bin"), part().encode()).unwrap();
}

#[test]
fn every_damage_is_found() {
    let stored = part().encode();
    for bit in 0..stored.len() * 8 {
        let mut flipped = stored.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(Part::decode(&flipped).is_err(), "bit {bit}");
    }
    for len in 0..stored.len() {
        assert!(Part::decode(&stored[..len]).is_err(), "{len} bytes");
    }
    assert!(Part::decode(&[stored, vec![0]].concat()).is_err());
}

#[test]
fn reading_files_stores_nothing_anew() {
    let mut read = part();
    read.generation = Generation(9);
    read.entries.iter_mut().for_each(|entry| entry.attributes.atime.secs += 1);
    read.entries[2].links += 1;
    assert_eq!(read.content_hash(), part().content_hash());
    for change in [
        (|p: &mut Part| p.attributes.mode ^= 1) as fn(&mut Part),
        |p| p.entries[0].attributes.mtime.nanos -= 1,
        |p| p.entries[0].links += 1,
        |p| p.entries[1].name.push(b'x'),
        |p| p.entries[3].kind = Kind::Symlink { target: b"x".to_vec() },
        |p| drop(p.entries.pop()),
    ] {
        let mut changed = part();
        change(&mut changed);
        assert_ne!(changed.content_hash(), part().content_hash());
    }
}

#[test]
fn keys_are_taken_apart_and_come_in_order() {
    let key = |generation, number, last| PartKey {
        share: FileId { ino: 2, birth: 7 },
        directory: FileId { ino: 0x77, birth: 1 },
        generation: Generation(generation),
        number,
        last,
    };
    let all = [key(0xff, 0, true), key(0x100, 0, false), key(0x100, 1, false), key(0x100, 2, true)];
    let names: Vec<_> = all.iter().map(|key| key.to_name()).collect();
    assert!(names.is_sorted());
    assert_eq!(names[0], ".tierfs/trees/2-7/77-1.00000000000000ff.000000.end");
    for (key, name) in all.iter().zip(&names) {
        assert_eq!(PartKey::of_name(name), Some(*key));
    }
    for bad in ["", ".tierfs/trees/2-7/77-1.ff.000000.end", ".tierfs/trees/2-7/x", ".tierfs/probe/1", "a@1-2.3"] {
        assert_eq!(PartKey::of_name(bad), None, "{bad}");
    }
}
