//! Records and virtual attributes: hidden, not to be forged or carried along, and what steers tiering by them.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, chown};
use std::path::Path;
use std::process::Command;

use crate::common::run;
use crate::rig::*;

/// What getfattr(1) lists of a file, all namespaces.
pub fn listed(path: &Path) -> String {
    run("getfattr", &["--no-dereference", "-d", "-m", "-", "--absolute-names", path.to_str().unwrap()])
}

#[test]
fn a_record_is_below_and_out_of_reach_through_the_mount() {
    let Some(rig) = Rig::new() else { return };
    rig.write("a", CHUNK);
    rig.write("fresh", CHUNK);
    set_xattr(&rig.mnt("a"), "user.note", b"note").unwrap();
    set_xattr(&rig.mnt("a"), "trusted.other", b"other").unwrap();
    rig.migrate("a");
    let stored = xattr(&rig.low("a"), RECORD).unwrap();
    assert_eq!(rig.record("a").unwrap().object.unwrap().len, CHUNK as u64);
    let names = listed(&rig.mnt("a"));
    assert!(names.contains("user.note=\"note\"") && names.contains("trusted.other=\"other\""), "{names}");
    assert!(!names.contains(".tierfs."), "{names}");
    for name in [RECORD, "trusted.tierfs.other", "user.tierfs.record"] {
        for file in ["a", "fresh"] {
            let path = rig.mnt(file);
            assert_eq!(xattr(&path, name), Err(libc::ENODATA), "get {name}");
            assert_eq!(set_xattr(&path, name, &stored), Err(libc::EPERM), "set {name}");
            assert!(rustix::fs::lremovexattr(&path, name).is_err(), "remove {name}");
        }
    }
    assert_eq!(xattr(&rig.low("a"), RECORD).unwrap(), stored);
    assert!(xattr(&rig.low("fresh"), RECORD).is_err());
    rig.same("fresh", &noise("fresh", CHUNK));
    rig.same("a", &noise("a", CHUNK));
}

#[test]
fn users_cannot_forge_records_of_their_own_files() {
    let Some(rig) = Rig::new() else { return };
    rig.write("secret", CHUNK);
    fs::set_permissions(rig.mnt("secret"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    rig.migrate("secret");
    rig.write("mine", CHUNK);
    chown(rig.mnt("mine"), Some(NOBODY), Some(NOBODY)).unwrap();
    let record: String = xattr(&rig.low("secret"), RECORD).unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
    for name in [RECORD, "user.tierfs.record", "user.tierfs.state", "user.tierfs.pair"] {
        let output = as_nobody(&rig.mountpoint(), &format!("setfattr -n {name} -v 0x{record} mine"));
        assert!(!output.status.success() && said(&output).contains("not permitted"), "{name}: {}", said(&output));
    }
    let output = as_nobody(&rig.mountpoint(), "setfattr -x user.tierfs.state mine");
    assert!(!output.status.success());
    rig.same("mine", &noise("mine", CHUNK));
    assert!(!as_nobody(&rig.mountpoint(), "cat secret").status.success());
    assert_eq!(rig.state("secret"), "stub", "a refused read brings nothing back");
}

#[test]
fn copies_carry_no_record_and_no_virtual_attribute() {
    let Some(rig) = Rig::new() else { return };
    for name in ["stub", "dual", "large"] {
        rig.write(name, if name == "large" { 30 * CHUNK } else { 2 * CHUNK });
        set_xattr(&rig.mnt(name), "user.note", name.as_bytes()).unwrap();
    }
    rig.on(&["migrate"], &["stub", "large"]);
    rig.on(&["migrate", "--archive-only"], &["dual"]);
    let outside = rig.scratch("outside");
    for dir in ["cp", "rsync", "tar"] {
        fs::create_dir(rig.mnt(dir)).unwrap();
    }
    fs::create_dir(&outside).unwrap();
    let (mount, out) = (rig.mountpoint(), outside.display().to_string());
    let shell = |script: &str| {
        let output = Command::new("sh").args(["-ec", script]).current_dir(&mount).output().unwrap();
        assert!(output.status.success(), "{script}: {}", said(&output));
    };
    shell("cp -a stub dual large cp/");
    shell(&format!("cp -a stub dual large {out}/"));
    shell(
        "tar --xattrs --xattrs-include='*' -cf tar.tar stub dual large && tar --xattrs --xattrs-include='*' -C tar -xf tar.tar",
    );
    let mut dirs = vec!["cp", "tar"];
    if Command::new("rsync").arg("--version").output().is_ok() {
        shell("rsync -aX stub dual large rsync/");
        dirs.push("rsync");
    } else {
        eprintln!("not tried: rsync is not installed");
    }
    for name in ["stub", "dual", "large"] {
        let content = noise(name, if name == "large" { 30 * CHUNK } else { 2 * CHUNK });
        for dir in &dirs {
            let copy = format!("{dir}/{name}");
            assert!(rig.record(&copy).is_none(), "{copy} has a record");
            assert_eq!(rig.state(&copy), "resident");
            assert_eq!(xattr(&rig.low(&copy), "user.note").unwrap(), name.as_bytes());
            rig.same(&copy, &content);
            assert_eq!(
                fs::metadata(rig.mnt(&copy)).unwrap().mtime_nsec(),
                fs::metadata(rig.mnt(name)).unwrap().mtime_nsec()
            );
        }
        assert!(!listed(&outside.join(name)).contains(".tierfs."));
        assert_same(&fs::read(outside.join(name)).unwrap(), &content, "outside");
    }
}

#[test]
fn virtual_attributes_show_and_steer_for_the_owner_and_root() {
    let Some(rig) = Rig::new() else { return };
    let content = rig.write("a", 2 * CHUNK);
    chown(rig.mnt("a"), Some(NOBODY), Some(NOBODY)).unwrap();
    let set =
        |attribute: &str, value: &str| set_xattr(&rig.mnt("a"), &format!("user.tierfs.{attribute}"), value.as_bytes());
    let nobody = |script: &str| {
        let output = as_nobody(&rig.mountpoint(), script);
        assert!(output.status.success(), "{script}: {}", said(&output));
        said(&output)
    };
    assert_eq!(rig.state("a"), "resident");
    assert_eq!(rig.virtual_xattr("a", "pair"), Err(libc::ENODATA));
    assert_eq!(rig.virtual_xattr("a", "pin").unwrap(), "0");
    for verb in ["migrate", "release", "recall", "record", "nonsense"] {
        assert_eq!(rig.virtual_xattr("a", verb), Err(libc::ENODATA), "{verb}");
    }
    assert_eq!(set("release", "1"), Err(libc::EINVAL), "nothing was archived");
    // The owner.
    nobody("setfattr -n user.tierfs.migrate -v 1 a");
    assert_eq!((rig.state("a").as_str(), rig.allocated("a") <= 4096), ("stub", true));
    assert!(nobody("getfattr --only-values -n user.tierfs.state a").contains("stub"));
    assert_eq!(rig.virtual_xattr("a", "pair").unwrap(), "cold");
    nobody("setfattr -n user.tierfs.recall -v 1 a");
    assert_eq!(rig.state("a"), "dual");
    nobody("setfattr -n user.tierfs.pin -v 1 a");
    assert_eq!(set("release", "1"), Err(libc::EPERM));
    nobody("setfattr -n user.tierfs.pin -v 0 a");
    nobody("setfattr -n user.tierfs.release -v 1 a");
    assert_eq!(rig.state("a"), "stub");
    // Root.
    set("recall", "1").unwrap();
    set("pin", "1").unwrap();
    assert_eq!(rig.virtual_xattr("a", "pin").unwrap(), "1");
    set("pin", "0").unwrap();
    set("migrate", "").unwrap();
    assert_eq!(rig.state("a"), "stub");
    rig.same("a", &content);
    // Values and names that mean nothing.
    assert_eq!(set("pin", "2"), Err(libc::EINVAL));
    assert_eq!(set("pin", "yes"), Err(libc::EINVAL));
    assert_eq!(
        (set("state", "stub"), set("pair", "x"), set("nonsense", "1")),
        (Err(libc::EPERM), Err(libc::EPERM), Err(libc::EPERM))
    );
    assert!(rustix::fs::lremovexattr(rig.mnt("a"), "user.tierfs.pin").is_err());
    rig.write("empty", 0);
    set_xattr(&rig.mnt("empty"), "user.tierfs.migrate", b"1").unwrap();
    assert_eq!(rig.state("empty"), "resident");
    fs::create_dir(rig.mnt("dir")).unwrap();
    assert!(set_xattr(&rig.mnt("dir"), "user.tierfs.migrate", b"1").is_err());
    assert_eq!(xattr(&rig.mnt("dir"), "user.tierfs.state"), Err(libc::ENODATA));
}

#[test]
fn other_users_steer_nothing_even_where_they_may_write() {
    let Some(rig) = Rig::new() else { return };
    rig.write("a", CHUNK);
    fs::set_permissions(rig.mnt("a"), std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    rig.on(&["migrate", "--archive-only"], &["a"]);
    for verb in ["migrate", "release", "recall", "pin"] {
        let output = as_nobody(&rig.mountpoint(), &format!("setfattr -n user.tierfs.{verb} -v 1 a"));
        assert!(!output.status.success() && said(&output).contains("not permitted"), "{verb}: {}", said(&output));
    }
    assert_eq!((rig.state("a").as_str(), rig.virtual_xattr("a", "pin").unwrap().as_str()), ("dual", "0"));
    // Looking is allowed.
    assert!(said(&as_nobody(&rig.mountpoint(), "getfattr --only-values -n user.tierfs.state a")).contains("dual"));
}

#[test]
fn attributes_and_times_change_on_a_stub_without_fetching() {
    let Some(rig) = Rig::new() else { return };
    rig.quiet();
    let content = rig.write("a", 30 * CHUNK);
    rig.migrate("a");
    let gets = rig.requests().op("GetObject");
    let path = rig.mnt("a");
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o604)).unwrap();
    chown(&path, Some(77), Some(88)).unwrap();
    set_xattr(&path, "user.colour", b"blue").unwrap();
    run("setfacl", &["-m", "u:99:r", path.to_str().unwrap()]);
    set_mtime(&path, 1_111_111_111, 222_222_222);
    fs::rename(&path, rig.mnt("b")).unwrap();
    fs::hard_link(rig.mnt("b"), rig.mnt("c")).unwrap();
    assert_eq!(rig.requests().op("GetObject"), gets);
    assert_eq!(rig.state("b"), "stub");
    rig.same("c", &content);
    wait_for("the recall's end", || rig.state("b") == "dual");
    for at in [rig.mnt("b"), rig.low("b"), rig.low("c")] {
        let m = fs::metadata(&at).unwrap();
        assert_eq!((m.mode() & 0o707, m.uid(), m.gid(), m.nlink()), (0o604, 77, 88, 2), "{}", at.display());
        assert_eq!((m.mtime(), m.mtime_nsec()), (1_111_111_111, 222_222_222), "{}", at.display());
    }
    // A time set while the file is dual is no change of content.
    set_mtime(&rig.mnt("b"), 1_222_222_222, 333_333_333);
    rig.migrate("b");
    assert_eq!(fs::metadata(rig.mnt("b")).unwrap().mtime(), 1_222_222_222);
    rig.same("b", &content);
}

/// Beyond 2106 seconds need more than 32 bits, in the record and wherever else a time is kept while content is away.
#[test]
fn times_after_2106_outlive_archive_reboot_and_recall() {
    const LATE: (i64, i64) = (4_300_000_000, 123_456_789);
    for setup in [Setup::default(), Setup::xfs()] {
        let Some(mut rig) = setup.build() else { return };
        let all = [("small", 2 * CHUNK), ("large", 30 * CHUNK), ("parts", 30 * CHUNK), ("stays", CHUNK)];
        let contents: Vec<_> = all.iter().map(|(name, len)| rig.write(name, *len)).collect();
        let dated = |rig: &Rig, when: &str| {
            for (name, len) in all {
                let through = fs::metadata(rig.mnt(name)).unwrap();
                let found = (through.mtime(), through.mtime_nsec());
                assert_eq!((found, through.len()), (LATE, len as u64), "{} {name}, {when}", rig.kind);
                if let Some(object) = rig.record(name).and_then(|record| record.object) {
                    let kept = (object.mtime.secs, i64::from(object.mtime.nanos));
                    assert_eq!(kept, LATE, "{} the record of {name}, {when}", rig.kind);
                }
            }
        };
        for (name, _) in all {
            set_mtime(&rig.mnt(name), LATE.0, LATE.1);
        }
        dated(&rig, "resident");
        rig.on(&["migrate"], &["small", "large", "parts"]);
        dated(&rig, "released");
        rig.umount();
        // As at a reboot: nothing of it is in the kernel's memory.
        wait_for("the end of the filesystem below", || rig.fs.try_unmount());
        rig.fs.mount();
        rig.mount();
        dated(&rig, "after a reboot");
        let mut some = vec![0; CHUNK];
        fs::File::open(rig.mnt("parts")).unwrap().read_exact_at(&mut some, 20 * CHUNK as u64).unwrap();
        assert_same(&some, &contents[2][20 * CHUNK..21 * CHUNK], "a part");
        dated(&rig, "with parts of it");
        rig.on(&["recall"], &["small", "large"]);
        dated(&rig, "recalled");
        for name in ["small", "large"] {
            let below = fs::metadata(rig.low(name)).unwrap();
            assert_eq!((below.mtime(), below.mtime_nsec()), LATE, "{} {name} below", rig.kind);
        }
        // A change of content is noticed by its time, and none is: there is nothing to archive.
        let puts = rig.requests().method("PUT");
        rig.on(&["migrate"], &["small", "large"]);
        assert_eq!(rig.requests().method("PUT"), puts, "{}: archived once more", rig.kind);
        dated(&rig, "released again");
        for ((name, _), content) in all.iter().zip(&contents) {
            rig.same(name, content);
        }
    }
}
