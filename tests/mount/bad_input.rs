//! Shares, records and commands that are not as they should be: refused or survived with a clear line and the right errno.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use tierfs::gateway::faults::{Effect, Rule};

use crate::common::run;
use crate::rig::*;

/// Bytes free on the lower filesystem, what is kept for root included.
fn free(rig: &Rig) -> u64 {
    let space = rustix::fs::statvfs(rig.fs.path()).unwrap();
    space.f_bfree * space.f_frsize
}

/// Fills the lower filesystem but for about `leave` bytes.
fn fill(rig: &Rig, leave: u64) {
    let file = File::create(rig.fs.path().join("filler")).unwrap();
    let mut step = 4 << 20;
    let mut len = 0;
    // Metadata takes its share, so the last steps are small.
    while step >= 4096 && free(rig) > leave {
        let fits = free(rig) >= leave + step;
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), len, step) {
            Ok(()) if fits => len += step,
            _ => {
                file.set_len(len).unwrap();
                step /= 2;
            }
        }
    }
    file.sync_all().unwrap();
}

#[test]
fn a_full_disk_ends_a_recall_with_enospc_and_serves_readers_all_the_same() {
    let Some(rig) = (Setup { size: 64 << 20, ..Setup::default() }).build() else { return };
    let small = rig.write("small", 8 * CHUNK);
    let large = rig.write("large", 8 << 20);
    rig.on(&["migrate"], &["small", "large"]);
    fill(&rig, 200 << 10);
    let before = free(&rig);
    for (name, content) in [("small", &small), ("large", &large)] {
        rig.same(name, content);
        // Who opens it for writing needs nothing yet.
        drop(OpenOptions::new().write(true).open(rig.mnt(name)).unwrap());
        let output = rig.try_on(&["recall"], &[name]);
        code(&output, 1);
        assert!(said(&output).contains("free"), "{}", said(&output));
        wait_for("the recall's end", || ["stub", "partial"].contains(&rig.state(name).as_str()));
        // What came before there was no room more is of use, and can go.
        rig.on(&["release"], &[name]);
        assert!(rig.allocated(name) <= 4096);
        assert!(free(&rig) + (64 << 10) >= before, "{before} bytes were free, now {}", free(&rig));
    }
    fs::remove_file(rig.fs.path().join("filler")).unwrap();
    rig.same("small", &small);
    rig.same("large", &large);
}

#[test]
fn a_disk_that_fills_up_during_a_recall_is_survived() {
    let Some(rig) = (Setup { size: 96 << 20, ..Setup::default() }).build() else { return };
    rig.quiet();
    let large = rig.write("large", 12 << 20);
    rig.migrate("large");
    // The first chunks come through, then there is a pause, in which somebody else takes the rest.
    rig.faults.add(Rule::new(Effect::Delay(Duration::from_millis(2000))).method("GET").skip(2).times(8));
    let gets = rig.gets();
    let mut reader = Command::new("cat");
    let reader = reader.arg(rig.mnt("large")).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the pause", || rig.gets() >= gets + 4);
    fill(&rig, 0);
    let output = reader.wait_with_output().unwrap();
    code(&output, 0);
    wait_for("the recall's end", || rig.state("large") == "partial");
    assert!(rig.allocated("large") >= CHUNK as u64, "what had come before stays");
    rig.on(&["release"], &["large"]);
    assert_eq!(fs::metadata(rig.low("large")).unwrap().len(), 12 << 20);
    assert!(rig.allocated("large") <= 4096 && free(&rig) >= CHUNK as u64, "and is free again");
    fs::remove_file(rig.fs.path().join("filler")).unwrap();
    rig.same("large", &large);
}

#[test]
fn a_damaged_record_makes_the_file_unreadable_not_empty() {
    let Some(mut rig) = Rig::new() else { return };
    let content = rig.write("a", 3 * CHUNK);
    rig.write("b", CHUNK);
    rig.on(&["migrate"], &["a", "b"]);
    let objects = rig.objects();
    // The daemon knows the good record as long as it is busy with the file.
    rig.umount();
    rig.mount();
    let good = xattr(&rig.low("a"), RECORD).unwrap();
    for at in [0, 4, 5, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        set_xattr(&rig.low("a"), RECORD, &bad).unwrap();
        assert_eq!(errno(fs::read(rig.mnt("a"))), Some(libc::EIO), "byte {at}");
        assert_eq!(errno(OpenOptions::new().append(true).open(rig.mnt("a"))), Some(libc::EIO));
        assert_eq!(errno(File::create(rig.mnt("a"))), Some(libc::EIO), "a new beginning would lose the object");
        assert_eq!(rig.state("a"), "damaged");
        assert_eq!(fs::metadata(rig.mnt("a")).unwrap().len(), content.len() as u64);
        let output = rig.try_on(&["recall"], &["a"]);
        code(&output, 1);
        assert!(said(&output).contains("record is damaged"), "{}", said(&output));
        code(&rig.try_on(&["migrate"], &["a"]), 1);
        assert_eq!(xattr(&rig.low("a"), RECORD).unwrap(), bad, "nothing repairs by guessing");
    }
    set_xattr(&rig.low("a"), RECORD, &good).unwrap();
    assert_eq!(rig.objects(), objects);
    rig.same("a", &content);
    // A damaged file can be removed; what it named stays.
    set_xattr(&rig.low("b"), RECORD, b"TFS1 rubbish").unwrap();
    fs::remove_file(rig.mnt("b")).unwrap();
    assert_eq!(rig.objects(), objects);
}

#[test]
fn a_stub_of_another_pair_is_named_and_left_alone() {
    let Some(mut rig) = Rig::new() else { return };
    let content = rig.write("a", 3 * CHUNK);
    rig.write("b", 30 * CHUNK);
    rig.on(&["migrate"], &["a", "b"]);
    rig.umount();
    // The pair is still needed, so it cannot be removed by mistake.
    let output = rig.tierfs(&["pair", "remove", "cold"]);
    assert!(!output.status.success(), "{}", said(&output));
    fs::rename(rig.scratch("etc/pairs.d/cold.toml"), rig.scratch("cold.toml")).unwrap();
    rig.mount();
    let refused = |rig: &Rig, pieces: &[&str]| {
        for name in ["a", "b"] {
            assert_eq!(errno(fs::read(rig.mnt(name))), Some(libc::EREMOTEIO));
            assert_eq!(errno(File::create(rig.mnt(name))), Some(libc::EREMOTEIO));
            assert_eq!(rig.state(name), "stub");
        }
        let output = rig.try_on(&["recall"], &["a"]);
        assert!(!output.status.success());
        for piece in pieces {
            assert!(said(&output).contains(piece), "{piece}: {}", said(&output));
        }
    };
    refused(&rig, &["pair cold", "none"]);
    fs::write(rig.mnt("new"), b"new").unwrap();
    rig.same("new", b"new");
    code(&rig.try_on(&["migrate"], &["new"]), 3);
    rig.umount();
    let (local, endpoint) = (format!("east:{}", rig.share().display()), rig.endpoint());
    let args = ["pair", "add", "other", "--local", &local, "--remote", "west:s3://other", "--endpoint", &endpoint];
    let output = rig.tierfs(&args);
    assert!(output.status.success(), "{}", said(&output));
    rig.mount();
    refused(&rig, &["pair cold", "--pair cold"]);
    rig.migrate("new");
    rig.umount();
    fs::remove_file(rig.scratch("etc/pairs.d/other.toml")).unwrap();
    fs::rename(rig.scratch("cold.toml"), rig.scratch("etc/pairs.d/cold.toml")).unwrap();
    rig.mount();
    rig.same("a", &content);
    rig.same("b", &noise("b", 30 * CHUNK));
}

#[test]
fn a_read_only_share_is_served_read_only_and_only_if_asked_so() {
    let Some(mut rig) = Rig::new() else { return };
    let content = rig.write("resident", 2 * CHUNK);
    rig.write("dual", CHUNK);
    let stub = rig.write("stub", CHUNK);
    let large = rig.write("large", 30 * CHUNK);
    rig.on(&["migrate", "--archive-only"], &["dual"]);
    rig.on(&["migrate"], &["stub", "large"]);
    rig.umount();
    let lower = rig.fs.path();
    run("mount", &["-o", "remount,ro", lower.to_str().unwrap()]);
    let output = rig.try_mount(&[]);
    code(&output, 3);
    assert!(said(&output).contains("read-only") && said(&output).contains("-o ro"), "{}", said(&output));
    let output = rig.try_mount(&["-o", "ro"]);
    assert!(output.status.success(), "{}", said(&output));
    rig.same("resident", &content);
    rig.same("dual", &noise("dual", CHUNK));
    // What is remote is served, and nothing of it stays.
    rig.same("stub", &stub);
    rig.same("large", &large);
    assert!(!rig.try_on(&["recall"], &["stub"]).status.success());
    assert!(["stub", "large"].iter().all(|name| rig.allocated(name) <= 4096));
    assert_eq!(errno(fs::write(rig.mnt("new"), b"x")), Some(libc::EROFS));
    assert_eq!(errno(fs::remove_file(rig.mnt("stub"))), Some(libc::EROFS));
    assert!(!rig.try_on(&["migrate"], &["resident"]).status.success());
    rig.umount();
    run("mount", &["-o", "remount,rw", lower.to_str().unwrap()]);
    rig.mount();
    rig.same("stub", &stub);
    rig.same("large", &large);
}

#[test]
fn mounts_that_cannot_work_are_refused_in_one_line() {
    let Some(mut rig) = Rig::new() else { return };
    rig.umount();
    let second = rig.scratch("second");
    fs::create_dir(&second).unwrap();
    fs::write(rig.scratch("file"), b"").unwrap();
    let share = rig.share();
    let (mnt, inside) = (rig.mountpoint(), share.join("inside"));
    fs::create_dir(&inside).unwrap();
    let (missing, file) = (rig.scratch("missing"), rig.scratch("file"));
    let check = |rig: &Rig, share: &std::path::Path, at: &std::path::Path, further: &[&str], piece: &str| {
        let mut args: Vec<std::ffi::OsString> = vec!["mount".into(), share.into(), at.into()];
        args.extend(further.iter().map(Into::into));
        let output = rig.tierfs(&args);
        assert!(matches!(output.status.code(), Some(2 | 3)), "{}", said(&output));
        let text = said(&output);
        assert!(text.contains(piece), "{piece:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    };
    check(&rig, &missing, &mnt, &[], "missing: no such directory");
    check(&rig, &share, &missing, &[], "missing: no such directory");
    check(&rig, &file, &mnt, &[], "not a directory");
    check(&rig, &share, &inside, &[], "inside each other");
    check(&rig, &share, &mnt, &["--pair", "nope"], "nope");
    check(&rig, &second, &mnt, &["--archive-after", "5m"], "pair add");
    check(&rig, &share, &mnt, &["-o", "r0"], "no such option");
    rig.mount();
    check(&rig, &share, &mnt, &[], "already");
    check(&rig, &share, &second, &[], "already");
    check(&rig, &rig.mnt("inside"), &second, &[], "tierfs mount");
    fs::write(rig.mnt("still"), b"works").unwrap();
}

#[test]
fn only_root_mounts() {
    let Some(mut rig) = Rig::new() else { return };
    rig.umount();
    // The program may lie where others cannot go.
    let copy = rig.scratch("tierfs");
    fs::copy(env!("CARGO_BIN_EXE_tierfs"), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(&copy);
    command.arg("mount").arg(rig.share()).arg(rig.mountpoint()).current_dir("/").uid(NOBODY).gid(NOBODY);
    let output = command.output().unwrap();
    code(&output, 3);
    assert!(said(&output).contains("root"), "{}", said(&output));
}

#[test]
fn a_stub_overwritten_below_the_mount_is_damaged_and_keeps_its_object() {
    let Some(rig) = Rig::new() else { return };
    let content = rig.write("data", 4 * CHUNK);
    rig.write("size", 4 * CHUNK);
    rig.on(&["migrate"], &["data", "size"]);
    let objects = rig.objects();
    let mut below = OpenOptions::new().write(true).open(rig.low("data")).unwrap();
    below.write_all(b"overwritten below").unwrap();
    drop(below);
    OpenOptions::new().write(true).open(rig.low("size")).unwrap().set_len(100).unwrap();
    for name in ["data", "size"] {
        assert_eq!(errno(fs::read(rig.mnt(name))), Some(libc::EIO), "{name}");
    }
    wait_for("the daemon to look afresh", || rig.state("size") == "damaged");
    assert_eq!(rig.objects(), objects);
    let mut start = [0; 17];
    File::open(rig.low("data")).unwrap().read_exact(&mut start).unwrap();
    assert_eq!(&start, b"overwritten below", "what somebody wrote is not thrown away");
    let _ = content;
}

#[test]
fn a_dual_file_changed_below_the_mount_is_not_released() {
    let Some(rig) = Rig::new() else { return };
    rig.write("a", 4 * CHUNK);
    rig.on(&["migrate", "--archive-only"], &["a"]);
    let new = noise("below", 4 * CHUNK);
    fs::write(rig.low("a"), &new).unwrap();
    // Changed back in time, only ctime tells; the size and mtime alone must not be believed by a release that follows a change.
    code(&rig.try_on(&["release"], &["a"]), 1);
    assert!(rig.allocated("a") >= 4 * CHUNK as u64);
    assert_same(&fs::read(rig.low("a")).unwrap(), &new, "below");
}
