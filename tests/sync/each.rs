//! Each kind of change appears on the slave, as it is, and in its mount at once.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

use rustix::fs::{CWD, FileType, Mode, RenameFlags, mknodat, renameat_with};

use crate::common::run;
use crate::tools::*;
use crate::two::{Side, Two};

/// Which inode a name is: numbers are used again at once.
fn inode(side: &Side, name: &str) -> (u64, std::time::SystemTime) {
    let meta = fs::symlink_metadata(side.low(name)).unwrap();
    (meta.ino(), meta.created().unwrap())
}

#[test]
fn what_is_made_appears_with_all_its_attributes() {
    for kind in ["ext4", "xfs"] {
        let Some(two) = Two::of(kind, "slave") else { return };
        let east = &two.east;
        fs::create_dir_all(east.mnt("a/b/c")).unwrap();
        fs::write(east.mnt("a/f"), noise("f", 70_000)).unwrap();
        fs::write(east.mnt("a/b/empty"), "").unwrap();
        symlink("../f", east.mnt("a/b/link")).unwrap();
        fs::hard_link(east.mnt("a/f"), east.mnt("a/b/c/second")).unwrap();
        for (name, kind, device) in
            [("fifo", FileType::Fifo, 0), ("char", FileType::CharacterDevice, 0x103), ("sock", FileType::Socket, 0)]
        {
            mknodat(CWD, east.mnt("a").join(name), kind, Mode::from_raw_mode(0o640), device).unwrap();
        }
        two.equal();
        // Attributes, of each kind of thing.
        fs::set_permissions(east.mnt("a/b"), fs::Permissions::from_mode(0o2751)).unwrap();
        fs::set_permissions(east.mnt("a/f"), fs::Permissions::from_mode(0o4705)).unwrap();
        chown(east.mnt("a/b/c"), Some(1234), Some(4321)).unwrap();
        chown(east.mnt("a/fifo"), Some(77), None).unwrap();
        rustix::fs::chownat(
            CWD,
            east.mnt("a/b/link"),
            Some(rustix::fs::Uid::from_raw(9)),
            None,
            rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
        )
        .unwrap();
        set_xattr(&east.mnt("a/f"), "user.colour", b"red").unwrap();
        set_xattr(&east.mnt("a/b"), "user.colour", b"blue").unwrap();
        set_xattr(&east.mnt("a/f"), "trusted.note", b"kept").unwrap();
        run("setfacl", &["-m", "u:33:rwx,m::rwx", east.mnt("a/b/c").to_str().unwrap()]);
        run("setfacl", &["-d", "-m", "g:44:rx", east.mnt("a/b").to_str().unwrap()]);
        set_mtime(&east.mnt("a/f"), 1_500_000_000, 123_456_789);
        set_mtime(&east.mnt("a/b"), 1_400_000_000, 5);
        set_mtime(&east.mnt("a/b/link"), 1_300_000_000, 6);
        two.equal();
        assert!(two.west.tree()[std::path::Path::new("a/b")].xattrs.contains_key("system.posix_acl_default"));
        // And go again.
        rustix::fs::removexattr(east.mnt("a/f"), "user.colour").unwrap();
        run("setfacl", &["-b", east.mnt("a/b/c").to_str().unwrap()]);
        two.equal();
        // The mount of the slave shows the same, and nothing of what is hidden.
        let shown = two.west.shown();
        assert_eq!(shown.keys().collect::<Vec<_>>(), two.east.shown().keys().collect::<Vec<_>>());
        for (path, seen) in &shown {
            let there = &two.east.shown()[path];
            assert_eq!(
                (seen.kind, seen.mode, seen.owner, seen.size),
                (there.kind, there.mode, there.owner, there.size),
                "{path:?}"
            );
            assert!(!seen.xattrs.keys().any(|name| name.contains("tierfs")), "{path:?} {:?}", seen.xattrs);
        }
        assert!(!fs::exists(two.west.mnt(".tierfs-gateway")).unwrap());
        fs::remove_file(east.mnt("a/f")).unwrap();
        fs::remove_dir_all(east.mnt("a/b")).unwrap();
        two.equal();
        assert_eq!(two.west.tree().len(), 4, "{:?}", two.west.tree().keys());
    }
}

#[test]
fn renames_keep_the_inode() {
    let Some(two) = Two::new() else { return };
    let (east, west) = (&two.east, &two.west);
    fs::create_dir_all(east.mnt("d/sub")).unwrap();
    fs::create_dir(east.mnt("e")).unwrap();
    for name in ["d/x", "d/y", "d/sub/z"] {
        fs::write(east.mnt(name), name).unwrap();
    }
    two.equal();
    let (x, y, z, sub) = (inode(west, "d/x"), inode(west, "d/y"), inode(west, "d/sub/z"), inode(west, "d/sub"));
    // Somebody at the slave has one of them open.
    let held = fs::File::open(west.mnt("d/sub")).unwrap();
    fs::rename(east.mnt("d/x"), east.mnt("e/x2")).unwrap();
    fs::rename(east.mnt("d/sub"), east.mnt("e/sub2")).unwrap();
    two.equal();
    assert_eq!((inode(west, "e/x2"), inode(west, "e/sub2"), inode(west, "e/sub2/z")), (x, sub, z));
    assert_eq!(held.metadata().unwrap().ino(), sub.0);
    // Over another, back and forth, exchanged, and a directory into one that was below it.
    fs::rename(east.mnt("e/x2"), east.mnt("d/y")).unwrap();
    two.equal();
    assert_eq!(inode(west, "d/y"), x);
    assert_ne!(x, y);
    for _ in 0..20 {
        fs::rename(east.mnt("d/y"), east.mnt("d/t")).unwrap();
        fs::rename(east.mnt("d/t"), east.mnt("e/t")).unwrap();
        fs::rename(east.mnt("e/t"), east.mnt("d/y")).unwrap();
    }
    fs::write(east.mnt("d/other"), "o").unwrap();
    two.equal();
    let other = inode(west, "d/other");
    renameat_with(CWD, east.mnt("d/y"), CWD, east.mnt("d/other"), RenameFlags::EXCHANGE).unwrap();
    two.equal();
    assert_eq!((inode(west, "d/y"), inode(west, "d/other")), (other, x));
    fs::create_dir_all(east.mnt("p/q")).unwrap();
    two.equal();
    let (p, q) = (inode(west, "p"), inode(west, "p/q"));
    fs::rename(east.mnt("p/q"), east.mnt("q")).unwrap();
    fs::rename(east.mnt("p"), east.mnt("q/p")).unwrap();
    two.equal();
    assert_eq!((inode(west, "q"), inode(west, "q/p")), (q, p));
    wait_for("nothing without a name", || west.left().0 == 0);
    // A name of a file with two moves, the other stays.
    fs::hard_link(east.mnt("d/y"), east.mnt("e/link")).unwrap();
    two.equal();
    fs::rename(east.mnt("d/y"), east.mnt("q/y")).unwrap();
    two.equal();
    assert_eq!((inode(west, "q/y"), inode(west, "e/link")), (other, other));
    fs::remove_file(east.mnt("e/link")).unwrap();
    two.equal();
    assert_eq!(inode(west, "q/y"), other);
}

#[test]
fn a_thousand_creates_are_few_batches_and_marks_go() {
    let Some(two) = Two::new() else { return };
    let east = &two.east;
    fs::create_dir(east.mnt("many")).unwrap();
    two.equal();
    let before = east.status()["batches"].as_u64().unwrap();
    for n in 0..1_000 {
        fs::write(east.mnt(format!("many/{n}")), "x").unwrap();
    }
    two.equal();
    two.told();
    let status = east.status();
    let batches = status["batches"].as_u64().unwrap() - before;
    assert!(batches <= 60, "{batches} batches: {status}");
    assert!(status["statements"].as_u64().unwrap() < 3_000, "{status}");
    wait_for("no marks", || east.left().1 == 0);
    // Writing again needs no name.
    fs::write(east.mnt("many/7"), "longer").unwrap();
    two.equal();
    assert_eq!(fs::metadata(two.west.mnt("many/7")).unwrap().len(), 6);
    // And is told while the file is open, and when it is closed.
    let mut open = fs::File::options().append(true).open(east.mnt("many/8")).unwrap();
    std::io::Write::write_all(&mut open, b"more").unwrap();
    drop(open);
    two.equal();
}

#[test]
fn the_slaves_users_cannot_take_the_masters_names_away() {
    let Some(two) = Two::new() else { return };
    let (east, west) = (&two.east, &two.west);
    fs::create_dir(east.mnt("d")).unwrap();
    fs::write(east.mnt("d/f"), "f").unwrap();
    two.equal();
    let erofs = Some(libc::EROFS);
    assert_eq!(errno(fs::remove_file(west.mnt("d/f"))), erofs);
    assert_eq!(errno(fs::rename(west.mnt("d/f"), west.mnt("g"))), erofs);
    assert_eq!(errno(fs::rename(west.mnt("d"), west.mnt("e"))), erofs);
    assert_eq!(errno(fs::remove_dir(west.mnt("d"))), erofs);
    assert_eq!(errno(fs::hard_link(west.mnt("d/f"), west.mnt("l"))), erofs);
    // What it makes is its own, beside the master's too.
    fs::write(west.mnt("d/own"), "own").unwrap();
    fs::create_dir(west.mnt("mine")).unwrap();
    assert_eq!(errno(fs::rename(west.mnt("d/own"), west.mnt("d/f"))), erofs);
    fs::rename(west.mnt("d/own"), west.mnt("mine/own")).unwrap();
    fs::rename(west.mnt("mine/own"), west.mnt("d/own2")).unwrap();
    fs::write(east.mnt("d/g"), "g").unwrap();
    wait_for("g", || west.mnt("d/g").exists());
    assert_eq!(fs::read(west.mnt("d/own2")).unwrap(), b"own");
    fs::remove_file(west.mnt("d/own2")).unwrap();
    fs::remove_dir(west.mnt("mine")).unwrap();
    // Gone at the master, with something of the slave's own in it: it stays, and is the slave's.
    fs::write(west.mnt("d/own3"), "own").unwrap();
    fs::remove_dir_all(east.mnt("d")).unwrap();
    wait_for("its own", || !west.mnt("d/f").exists() && west.mnt("d/own3").exists() && west.left().0 == 0);
    let status = west.status();
    assert_eq!((&status["role"], &status["refused"]), (&"slave".into(), &1.into()), "{status}");
    assert!(status["refused_names"][0]["path"].as_str().unwrap().ends_with("/d"), "{status}");
    fs::remove_file(west.mnt("d/own3")).unwrap();
    fs::remove_dir(west.mnt("d")).unwrap();
}
