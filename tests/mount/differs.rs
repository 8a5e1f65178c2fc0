//! What `docs/semantics.md` lists as different from the filesystem below, and what no scenario of `posix.rs` compares. Each test fails when
//! it no longer differs.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};

use crate::rig::*;

#[test]
fn preallocated_space_is_not_kept() {
    for setup in [Setup::default(), Setup::xfs()] {
        let Some(rig) = setup.build() else { return };
        let mut wanted = noise("a", CHUNK);
        fs::write(rig.mnt("a"), &wanted).unwrap();
        let file = OpenOptions::new().write(true).open(rig.mnt("a")).unwrap();
        fallocate(&file, FallocateFlags::empty(), 0, 2 << 20).unwrap();
        drop(file);
        wanted.resize(2 << 20, 0);
        assert!(rig.allocated("a") >= 2 << 20, "{}: {} bytes", rig.kind, rig.allocated("a"));
        rig.migrate("a");
        rig.on(&["recall"], &["a"]);
        rig.same("a", &wanted);
        // What was written is there; what was only kept free is not.
        let back = rig.allocated("a");
        assert!((CHUNK as u64..512 << 10).contains(&back), "{}: {back} bytes", rig.kind);
    }
}

/// The kernel tells FUSE neither of writes by a mapping nor of its end.
#[test]
fn a_mapping_that_outlives_its_descriptor_is_dated_late() {
    let Some(rig) = Rig::new() else { return };
    rig.write("a", CHUNK);
    let file = OpenOptions::new().read(true).write(true).open(rig.mnt("a")).unwrap();
    let mut map = Mapping::of(&file, CHUNK, true);
    drop(file);
    // While it was open for writing its attributes were good for a second only.
    std::thread::sleep(Duration::from_millis(1500));
    let dated = |path: &Path| fs::metadata(path).map(|meta| (meta.mtime(), meta.mtime_nsec())).unwrap();
    let before = dated(&rig.mnt("a"));
    map.set(5000, b"mapped");
    map.sync();
    let below = dated(&rig.low("a"));
    assert_ne!(below, before, "the filesystem below dates it");
    let looked = Instant::now();
    assert_eq!(dated(&rig.mnt("a")), before, "it is dated at once: docs/semantics.md says that it is late");
    while dated(&rig.mnt("a")) == before {
        assert!(looked.elapsed() < Duration::from_secs(70), "late by more than 60 s");
        std::thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(dated(&rig.mnt("a")), below);
}

/// mount(8) asks `mount.fuse` of the package fuse3, where there is one, unless told `-i`.
#[test]
fn remounting_read_only_needs_i() {
    let Some(rig) = Rig::new() else { return };
    rig.write("a", 5000);
    let remount = |args: &[&str]| {
        let output = Command::new("mount").args(args).arg(rig.mountpoint()).current_dir("/").output().unwrap();
        (output.status.success(), said(&output))
    };
    let writable = || File::create(rig.mnt("b")).map(drop);
    let (done, why) = remount(&["-i", "-o", "remount,ro"]);
    assert!(done, "{why}");
    assert_eq!(errno(writable()), Some(libc::EROFS));
    rig.same("a", &noise("a", 5000));
    let (done, why) = remount(&["-i", "-o", "remount,rw"]);
    assert!(done, "{why}");
    writable().unwrap();
    if Path::new("/sbin/mount.fuse").exists() {
        let (_, why) = remount(&["-o", "remount,ro"]);
        assert!(writable().is_ok(), "it works without -i: docs/semantics.md says that it does not: {why}");
    } else {
        eprintln!("not tried without -i: no /sbin/mount.fuse");
    }
}
