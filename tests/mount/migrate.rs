//! Migration and release: what becomes of a file, and when it is left alone.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::{Command, Stdio};
use std::time::Duration;

use tierfs::gateway::faults::Effect;

use crate::common::run;
use crate::rig::*;

/// What must survive tiering: inode, size, mtime, mode, owner, links, ACL, a user attribute.
fn kept(rig: &Rig, name: &str) -> (impl PartialEq + std::fmt::Debug + use<>, impl PartialEq + std::fmt::Debug + use<>) {
    let of = |path: &std::path::Path| {
        let m = fs::symlink_metadata(path).unwrap();
        let acl = xattr(path, "system.posix_acl_access");
        let note = xattr(path, "user.note");
        (m.ino(), m.size(), (m.mtime(), m.mtime_nsec()), m.mode(), (m.uid(), m.gid()), m.nlink(), acl, note)
    };
    (of(&rig.mnt(name)), of(&rig.low(name)))
}

fn round_trips(setup: Setup) {
    let Some(rig) = setup.build() else { return };
    let sizes = [1, CHUNK - 1, CHUNK, CHUNK + 1, 20 * CHUNK, (17 << 20) + 5];
    for len in sizes {
        let name = format!("f{len}");
        let content = rig.write(&name, len);
        let path = rig.mnt(&name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        chown(&path, Some(1234), Some(4321)).unwrap();
        run("setfacl", &["-m", "u:777:r--,g:888:r--", path.to_str().unwrap()]);
        set_xattr(&path, "user.note", b"keep me").unwrap();
        set_mtime(&path, 1_500_000_000, 987_654_321);
        let before = kept(&rig, &name);
        for round in 0..3 {
            rig.migrate(&name);
            assert_eq!(kept(&rig, &name), before, "{name}, a stub, round {round}");
            // A block may be left for attributes, none for content.
            assert!(rig.allocated(&name) <= 4096, "{name}: {} bytes are left", rig.allocated(&name));
            let shown = fs::metadata(&path).unwrap().blocks();
            assert!(shown >= 1, "a stub with no blocks looks like a hole to archivers");
            if round == 1 {
                rig.on(&["recall"], &[&name]);
            }
            rig.same(&name, &content);
            assert_eq!(kept(&rig, &name).0, before.0, "{name}, while it comes back, round {round}");
            // Content is served before all of it is recorded.
            wait_for("the recall's end", || rig.state(&name) == "dual");
            assert_eq!(kept(&rig, &name), before, "{name}, back, round {round}");
            assert_same(&fs::read(rig.low(&name)).unwrap(), &content, "below");
        }
    }
    let names: Vec<String> = sizes.iter().map(|len| format!("f{len}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    // Content that did not change was copied once, whatever the number of rounds.
    rig.settled(&names);
}

#[test]
fn round_trips_of_all_sizes_keep_everything_on_ext4() {
    round_trips(Setup::default());
}

#[test]
fn round_trips_of_all_sizes_keep_everything_on_xfs() {
    round_trips(Setup::xfs());
}

#[test]
fn an_empty_file_is_left_as_it_is() {
    let Some(rig) = Rig::new() else { return };
    rig.write("empty", 0);
    let said = rig.on(&["migrate"], &["empty"]);
    assert!(said.contains("1 already as asked"), "{said}");
    assert_eq!(rig.state("empty"), "resident");
    assert!(rig.objects().is_empty());
}

#[test]
fn sparse_files_come_back_whole_and_sparse() {
    let Some(rig) = Rig::new() else { return };
    let mut content = vec![0u8; 40 * CHUNK + 17];
    content[20 * CHUNK..21 * CHUNK].copy_from_slice(&noise("sparse", CHUNK));
    let file = File::create(rig.mnt("sparse")).unwrap();
    file.set_len(content.len() as u64).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &content[20 * CHUNK..21 * CHUNK], 20 * CHUNK as u64).unwrap();
    drop(file);
    rig.migrate("sparse");
    rig.same("sparse", &content);
    wait_for("the recall's end", || rig.state("sparse") == "dual");
    assert!(rig.allocated("sparse") <= 3 * CHUNK as u64, "{} bytes allocated", rig.allocated("sparse"));
}

#[test]
fn archive_only_stops_at_dual_and_release_sends_nothing_again() {
    let Some(rig) = Rig::new() else { return };
    let content = rig.write("a", 5 * CHUNK);
    rig.on(&["migrate", "--archive-only"], &["a"]);
    assert_eq!(rig.state("a"), "dual");
    assert_eq!(rig.virtual_xattr("a", "pair").unwrap(), "cold");
    assert!(rig.allocated("a") >= 5 * CHUNK as u64);
    let puts = rig.requests().op("PutObject");
    rig.on(&["release"], &["a"]);
    assert_eq!(rig.state("a"), "stub");
    assert!(rig.allocated("a") <= 4096);
    assert_eq!(rig.requests().op("PutObject"), puts);
    rig.same("a", &content);
}

#[test]
fn a_file_open_for_writing_is_skipped_and_told() {
    let Some(rig) = Rig::new() else { return };
    let content = rig.write("a", CHUNK);
    let writer = OpenOptions::new().append(true).open(rig.mnt("a")).unwrap();
    let output = rig.try_on(&["migrate"], &["a"]);
    code(&output, 1);
    assert!(said(&output).contains("open for writing"), "{}", said(&output));
    assert_eq!(rig.state("a"), "resident");
    assert_eq!(set_xattr(&rig.mnt("a"), "user.tierfs.migrate", b"1"), Err(libc::EBUSY));
    drop(writer);
    wait_for("the close to be noticed", || rig.try_on(&["migrate"], &["a"]).status.success());
    assert_eq!(rig.state("a"), "stub");
    rig.same("a", &content);
    rig.settled(&["a"]);
}

#[test]
fn a_file_rewritten_during_its_upload_keeps_the_new_content_and_the_copy_goes() {
    let Some(rig) = Rig::new() else { return };
    rig.quiet();
    rig.write("a", 3 * CHUNK);
    rig.fault(Effect::Delay(Duration::from_millis(1500)), "PUT");
    let (path, new) = (rig.mnt("a"), noise("new", 3 * CHUNK));
    let mut migrating = rig.command(&["migrate".as_ref(), path.as_os_str()]);
    let migrating = migrating.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let child = migrating.spawn().unwrap();
    let puts = rig.requests().method("PUT");
    wait_for("the upload to begin", || rig.requests().method("PUT") > puts);
    // Same length, and the old times: only the change itself gives it away.
    fs::write(&path, &new).unwrap();
    set_mtime(&path, 1_600_000_000, 123_456_789);
    let output = child.wait_with_output().unwrap();
    code(&output, 1);
    rig.faults.clear();
    assert_eq!(rig.state("a"), "resident");
    rig.same("a", &new);
    rig.settled(&["a"]);
    rig.migrate("a");
    rig.same("a", &new);
    rig.settled(&["a"]);
}

/// A file that became shorter before its upload had read it was told as an error of the remote.
#[test]
fn a_file_cut_while_it_is_uploaded_has_changed() {
    let Some(rig) = Rig::new() else { return };
    rig.quiet();
    let content = rig.write("a", 20 << 20);
    let path = rig.mnt("a");
    // The parts are read when the upload in parts has begun.
    let begun = rig.fault(Effect::Delay(Duration::from_millis(1500)), "POST");
    let mut migrating = rig.command(&["migrate".as_ref(), path.as_os_str()]);
    let child = migrating.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    wait_for("the upload to begin", || rig.faults.hits(begun) > 0);
    truncate(&path, 5).unwrap();
    let output = child.wait_with_output().unwrap();
    code(&output, 1);
    assert!(said(&output).contains("changed"), "{}", said(&output));
    rig.faults.clear();
    rig.same("a", &content[..5]);
    rig.settled(&["a"]);
}

/// Found by random rounds: a release that asked for its object while a writer gave that up was told of an error of input and output.
#[test]
fn a_file_opened_for_writing_while_its_object_is_confirmed_is_busy() {
    let Some(rig) = Rig::new() else { return };
    rig.quiet();
    let content = rig.write("a", 3 * CHUNK);
    let path = rig.mnt("a");
    rig.on(&["migrate", "--archive-only"], &["a"]);
    let asked = rig.fault(Effect::Delay(Duration::from_millis(2000)), "HEAD");
    std::thread::scope(|scope| {
        let releasing = scope.spawn(|| set_xattr(&path, "user.tierfs.release", b"1"));
        wait_for("the question", || rig.faults.hits(asked) > 0);
        let deletions = rig.requests().method("DELETE");
        drop(std::fs::OpenOptions::new().write(true).open(&path).unwrap());
        wait_for("the deletion of what was given up", || rig.requests().method("DELETE") > deletions);
        assert_eq!(releasing.join().unwrap(), Err(libc::EBUSY));
    });
    rig.faults.clear();
    assert_eq!(rig.state("a"), "resident");
    rig.same("a", &content);
    rig.settled(&["a"]);
}

#[test]
fn an_open_file_is_not_released() {
    let Some(rig) = Rig::new() else { return };
    let content = rig.write("a", 4 * CHUNK);
    rig.on(&["migrate", "--archive-only"], &["a"]);
    let reader = File::open(rig.mnt("a")).unwrap();
    let output = rig.try_on(&["release"], &["a"]);
    code(&output, 1);
    assert_eq!(set_xattr(&rig.mnt("a"), "user.tierfs.release", b"1"), Err(libc::EBUSY));
    assert_eq!(rig.state("a"), "dual");
    assert!(rig.allocated("a") >= 4 * CHUNK as u64);
    drop(reader);
    wait_for("the close to be noticed", || rig.try_on(&["release"], &["a"]).status.success());
    rig.same("a", &content);
}

#[test]
fn a_file_mapped_after_its_close_is_not_released_and_its_reader_sees_no_zeros() {
    let Some(rig) = Rig::new() else { return };
    let content = rig.write("a", 16 * CHUNK);
    rig.on(&["migrate", "--archive-only"], &["a"]);
    let map = Mapping::of(&File::open(rig.mnt("a")).unwrap(), content.len(), false);
    for _ in 0..5 {
        code(&rig.try_on(&["release"], &["a"]), 1);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(rig.state("a"), "dual");
    fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
    assert_same(map.bytes(), &content, "mapped");
    drop(map);
    wait_for("the end of the mapping to be noticed", || rig.try_on(&["release"], &["a"]).status.success());
    assert_eq!(rig.state("a"), "stub");
    // A mapping of a stub brings its pages back.
    let map = Mapping::of(&File::open(rig.mnt("a")).unwrap(), content.len(), false);
    assert_same(map.bytes(), &content, "a mapped stub");
}

#[test]
fn a_file_held_open_below_the_mount_is_not_released() {
    let Some(rig) = Rig::new() else { return };
    rig.write("a", 4 * CHUNK);
    rig.on(&["migrate", "--archive-only"], &["a"]);
    let below = File::open(rig.low("a")).unwrap();
    code(&rig.try_on(&["release"], &["a"]), 1);
    assert_eq!(rig.state("a"), "dual");
    drop(below);
    rig.on(&["release"], &["a"]);
}

#[test]
fn a_pinned_file_is_copied_but_stays() {
    let Some(rig) = Rig::new() else { return };
    rig.write("a", CHUNK);
    rig.on(&["pin"], &["a"]);
    code(&rig.try_on(&["migrate"], &["a"]), 1);
    assert_ne!(rig.state("a"), "stub");
    assert!(rig.allocated("a") >= CHUNK as u64);
    // A pin holds over changes and remounts.
    fs::write(rig.mnt("a"), noise("b", CHUNK)).unwrap();
    assert_eq!(rig.virtual_xattr("a", "pin").unwrap(), "1");
    code(&rig.try_on(&["release"], &["a"]), 1);
    rig.on(&["unpin"], &["a"]);
    rig.migrate("a");
    rig.same("a", &noise("b", CHUNK));
}

#[test]
fn an_immutable_file_is_left_alone() {
    let Some(rig) = Rig::new() else { return };
    rig.write("a", CHUNK);
    let low = rig.low("a");
    run("chattr", &["+i", low.to_str().unwrap()]);
    let output = rig.try_on(&["migrate"], &["a"]);
    let by_xattr = set_xattr(&rig.mnt("a"), "user.tierfs.migrate", b"1");
    run("chattr", &["-i", low.to_str().unwrap()]);
    code(&output, 1);
    assert!(said(&output).contains("immutable"), "{}", said(&output));
    assert_eq!(by_xattr, Err(libc::EPERM));
    assert_eq!((rig.state("a").as_str(), rig.record("a").is_none()), ("resident", true));
    assert!(rig.objects().is_empty());
}

#[test]
fn hard_links_share_one_copy_that_goes_with_the_last_name() {
    let Some(rig) = Rig::new() else { return };
    let content = rig.write("a", 2 * CHUNK);
    fs::hard_link(rig.mnt("a"), rig.mnt("b")).unwrap();
    let said = rig.on(&["--json", "migrate", "-r"], &[""]);
    let done: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!(done["files"], 1, "{said}");
    assert_eq!((rig.state("a"), rig.state("b")), ("stub".into(), "stub".into()));
    assert_eq!(fs::metadata(rig.mnt("a")).unwrap().ino(), fs::metadata(rig.mnt("b")).unwrap().ino());
    fs::remove_file(rig.mnt("a")).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    rig.settled(&["b"]);
    rig.same("b", &content);
    // Removed earlier, the object would stay as long as the recall has the file open, and half a minute more.
    wait_for("the recall's end", || rig.state("b") == "dual");
    fs::remove_file(rig.mnt("b")).unwrap();
    rig.settled(&[]);
}

#[test]
fn du_and_status_show_the_space_that_came_free() {
    let Some(rig) = Rig::new() else { return };
    fs::create_dir(rig.mnt("d")).unwrap();
    for n in 0..40 {
        rig.write(&format!("d/{n}"), 2 * CHUNK);
    }
    let du = |path: std::path::PathBuf| -> u64 {
        let output = Command::new("du").args(["-sk"]).arg(path).output().unwrap();
        said(&output).split_whitespace().next().unwrap().parse().unwrap()
    };
    assert!(du(rig.mnt("d")) >= 40 * 128);
    rig.on(&["migrate", "-r"], &["d"]);
    assert!(du(rig.low("d")) <= 40 * 4 + 8, "{} KiB", du(rig.low("d")));
    assert!(du(rig.mnt("d")) <= 40 * 4 + 8, "{} KiB", du(rig.mnt("d")));
    let status = rig.on(&["--json", "status", "-r"], &["d"]);
    let last: serde_json::Value = serde_json::from_str(status.lines().last().unwrap()).unwrap();
    assert_eq!(last["states"]["stub"]["files"], 40, "{status}");
    rig.on(&["recall", "-r"], &["d"]);
    for n in 0..40 {
        rig.same(&format!("d/{n}"), &noise(&format!("d/{n}"), 2 * CHUNK));
    }
    let mut more = OpenOptions::new().append(true).open(rig.mnt("d/0")).unwrap();
    more.write_all(b"x").unwrap();
}

#[test]
fn a_migration_right_after_a_read_waits_for_the_recall_to_end() {
    let Some(rig) = Rig::new() else { return };
    let content = rig.write("a", 2 * CHUNK);
    for _ in 0..10 {
        // What was read is served before its recall is recorded.
        rig.on(&["migrate"], &["a"]);
        rig.same("a", &content);
    }
    rig.on(&["migrate"], &["a"]);
    assert_eq!(rig.state("a"), "stub");
}

/// setxattr(2) locks the inode for as long as it is asked, so a writer would wait for a copy that its open has made worthless: an upload that
/// takes an hour would be an hour without a write.
#[test]
fn a_writer_ends_the_copy_that_it_spoils() {
    let Some(rig) = Rig::new() else { return };
    rig.quiet();
    rig.write("a", 3 * CHUNK);
    let path = rig.mnt("a");
    let hanging = rig.fault(Effect::Hang, "PUT");
    let puts = rig.requests().method("PUT");
    std::thread::scope(|scope| {
        let migrating = scope.spawn(|| set_xattr(&path, "user.tierfs.migrate", b"1"));
        wait_for("the upload", || rig.requests().method("PUT") > puts);
        let mut file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all(b"new").unwrap();
        file.set_len(3).unwrap();
        // Long before the remote's deadline.
        wait_for("the copy's end", || migrating.is_finished());
        assert_eq!(migrating.join().unwrap(), Err(libc::EBUSY));
    });
    rig.faults.remove(hanging);
    rig.same("a", b"new");
    rig.migrate("a");
    rig.same("a", b"new");
}

/// A writer gives the object up while a release asks the remote for it: the file is busy, nothing is missing.
#[test]
fn an_object_given_up_during_a_release_is_not_missed() {
    let Some(rig) = Rig::new() else { return };
    rig.quiet();
    rig.write("a", 1000);
    rig.on(&["migrate", "--archive-only"], &["a"]);
    let (path, slow) = (rig.mnt("a"), rig.fault(Effect::Delay(Duration::from_secs(2)), "HEAD"));
    std::thread::scope(|scope| {
        let releasing = scope.spawn(|| set_xattr(&path, "user.tierfs.release", b"1"));
        wait_for("the question", || rig.faults.hits(slow) > 0);
        drop(OpenOptions::new().write(true).truncate(true).open(&path).unwrap());
        // With a retention of nothing, the object is gone before the answer.
        wait_for("the deletion", || rig.objects().is_empty());
        assert_eq!(releasing.join().unwrap(), Err(libc::EBUSY));
    });
}

/// Who comes second is refused or finds a stub; what he had noted ends, though the file is being released by the first.
#[test]
fn releases_of_one_file_at_once_leave_no_note() {
    let Some(rig) = Rig::new() else { return };
    let (content, path) = (rig.write("f", 3 * CHUNK), rig.mnt("f"));
    for round in 0..12 {
        rig.on(&["migrate", "--archive-only"], &["f"]);
        // So that all have looked before one of them marks.
        let rule = rig.fault(Effect::Delay(Duration::from_millis(60)), "HEAD");
        let args = ["release".into(), path.clone().into_os_string()];
        let mut releases: Vec<_> =
            (0..4).map(|_| rig.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()).collect();
        // Who is refused says so; that is not what this is about.
        for release in &mut releases {
            release.wait().unwrap();
        }
        rig.faults.remove(rule);
        assert_eq!(rig.state("f"), "stub", "round {round}");
        wait_for("the notes' end", || rig.info()["intents"] == serde_json::json!([0, 0]));
        rig.same("f", &content);
    }
}
