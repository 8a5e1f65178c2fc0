//! What root can do to the share below the mount: files written, cut and copied there, records damaged, removed, set again from backups.
//!
//! Each is found, is named with its path and a reason, and never makes anybody read bytes that are not the file's own.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate};
use tierfs::gateway::faults::Effect;

use crate::common::run;
use crate::rig::*;
use crate::stubs::listed;

/// Marks the file whose object others use too.
const SHARED: &str = "trusted.tierfs.shared";

fn key(rig: &Rig, name: &str) -> String {
    rig.record(name).unwrap().object.unwrap().key.0
}

fn short(key: &str) -> String {
    key.trim_start_matches("pre/").to_owned()
}

/// As `cp -a` does it for root: content (holes), times, and the record.
fn copy_below(rig: &Rig, from: &str, to: &str) {
    let [from_path, to_path] = [from, to].map(|name| rig.low(name).display().to_string());
    run("cp", &["-a", "--sparse=always", &from_path, &to_path]);
    assert_eq!(xattr(&rig.low(to), RECORD), xattr(&rig.low(from), RECORD), "cp -a copies records");
    assert_ne!(fs::metadata(rig.low(from)).unwrap().ino(), fs::metadata(rig.low(to)).unwrap().ino());
}

/// Waits until all deletions that are noted are done or dropped.
#[track_caller]
fn deletions_are_done(rig: &Rig) {
    wait_for("the deletions", || {
        let output = rig.try_on(&["--json", "info"], &[""]);
        let told: serde_json::Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
        told["intents"][1].as_u64().unwrap_or_else(|| panic!("{told}")) == 0
    });
}

/// Writes new content and waits until it was decided what becomes of the object before.
#[track_caller]
fn overwrite(rig: &Rig, name: &str, content: &[u8]) {
    fs::write(rig.mnt(name), content).unwrap();
    wait_for("the superseded object's note", || rig.record(name).unwrap().superseded.is_none());
}

/// That `check` finds fault with each of `names` and no other file, in a line that has the path and `reason`.
#[track_caller]
fn check_names(rig: &Rig, names: &[&str], reason: &str) {
    let output = rig.try_on(&["check", "-r"], &["."]);
    code(&output, 1);
    let text = said(&output);
    for name in names {
        let path = format!("{}: ", rig.mnt(name).display());
        let line = text.lines().find(|line| line.contains(&path)).unwrap_or_else(|| panic!("{path} is not in: {text}"));
        assert!(line.contains(reason), "{reason:?} is not in: {line}");
    }
    assert!(text.contains(&format!("{} failed", names.len())), "{text}");
}

/// Whether the log has a line about the file.
fn is_told(rig: &Rig, name: &str) -> bool {
    let (quoted, plain) = (format!("path=\"{name}\""), format!("path={name} "));
    rig.log().lines().any(|line| line.contains(&quoted) || format!("{line} ").contains(&plain))
}

/// That a file answers EIO to all use of its content, and that the log names it.
#[track_caller]
fn refuses(rig: &Rig, name: &str, what: &str) {
    assert_eq!(errno(fs::read(rig.mnt(name))), Some(libc::EIO), "{what}: read");
    assert_eq!(errno(OpenOptions::new().write(true).open(rig.mnt(name))), Some(libc::EIO), "{what}: open for writing");
    assert_eq!(errno(truncate(&rig.mnt(name), 7)), Some(libc::EIO), "{what}: truncate");
    wait_for("a line in the log", || is_told(rig, name));
}

#[test]
fn a_record_copied_below_never_costs_the_others_their_content() {
    let Some(rig) = Setup::xfs().build() else { return };
    let names = ["removed", "written", "kept", "gone"];
    let contents = names.map(|name| rig.write(name, 3 * CHUNK + 5));
    rig.on(&["migrate"], &names);
    for name in names {
        copy_below(&rig, name, &format!("{name}.copy"));
    }
    copy_below(&rig, "removed", "removed.unread");
    let object = |name: &str| short(&key(&rig, name));
    let objects = names.map(object);
    // A copy that goes, read or not, takes nothing along.
    fs::remove_file(rig.mnt("kept.copy")).unwrap();
    // A copy that is read, or looked at by a check, keeps the object from then on, whatever its owner does.
    rig.same("removed.copy", &contents[0]);
    wait_for("the recall's end", || rig.state("removed.copy") == "dual");
    check_names(&rig, &["removed.copy", "removed.unread", "written.copy", "gone.copy"], "it shares object");
    fs::remove_file(rig.mnt("removed")).unwrap();
    let new = noise("new", CHUNK);
    overwrite(&rig, "written", &new);
    fs::remove_file(rig.mnt("gone.copy")).unwrap();
    fs::remove_file(rig.mnt("gone")).unwrap();
    deletions_are_done(&rig);
    let found = rig.objects();
    objects.iter().for_each(|object| assert!(found.contains(object), "{object} was deleted"));
    for (name, content) in [
        ("removed.copy", &contents[0]),
        ("removed.unread", &contents[0]),
        ("written.copy", &contents[1]),
        ("kept", &contents[2]),
    ] {
        rig.same(name, content);
    }
    rig.same("written", &new);
    let log = rig.log();
    assert!(log.contains("copied below the mount") && log.contains("removed.copy"), "{log}");
    // What is here as well may be freed and fetched again; what was changed gives nothing up.
    wait_for("the recall's end", || rig.state("removed.copy") == "dual");
    rig.on(&["release"], &["removed.copy"]);
    rig.same("removed.copy", &contents[0]);
    overwrite(&rig, "removed.unread", &new);
    rig.migrate("removed.unread");
    deletions_are_done(&rig);
    rig.same("removed.copy", &contents[0]);
    rig.same("removed.unread", &new);
    // Users see nothing of the mark, and cannot set it.
    assert_eq!(xattr(&rig.low("written"), SHARED).as_deref(), Ok(&b"1"[..]));
    assert!(xattr(&rig.mnt("written"), SHARED).is_err() && !listed(&rig.mnt("written")).contains("tierfs"));
    assert!(set_xattr(&rig.mnt("kept"), SHARED, b"1").is_err());
}

/// Nobody knows of a copy that was never used: when its owner gives the object up, it is missed. That is said, and nothing else is served.
#[test]
fn a_copy_whose_object_went_before_it_was_seen_is_named() {
    let Some(rig) = Rig::new() else { return };
    rig.write("a", 3 * CHUNK);
    rig.migrate("a");
    let object = short(&key(&rig, "a"));
    copy_below(&rig, "a", "copy");
    overwrite(&rig, "a", b"new");
    wait_for("the deletion", || !rig.objects().contains(&object));
    assert_eq!(errno(fs::read(rig.mnt("copy"))), Some(libc::EIO));
    check_names(&rig, &["copy"], &object);
    assert!(rig.log().contains("recall failed") && rig.log().contains("no such object"), "{}", rig.log());
}

/// Found by reading: a deletion under way while another file was released on the strength of the same object.
#[test]
fn nothing_is_released_to_an_object_that_is_being_deleted() {
    let Some(rig) = Rig::new() else { return };
    rig.quiet();
    let content = rig.write("a", 3 * CHUNK);
    rig.on(&["migrate", "--archive-only"], &["a"]);
    copy_below(&rig, "a", "copy");
    let object = short(&key(&rig, "a"));
    // Long enough for a release, though nothing depends on that: afterwards the object is missed.
    let slow = rig.fault(Effect::Delay(Duration::from_secs(3)), "DELETE");
    overwrite(&rig, "a", b"new");
    wait_for("the deletion", || rig.faults.hits(slow) > 0);
    assert_ne!(rig.try_on(&["release"], &["copy"]).status.code(), Some(3));
    deletions_are_done(&rig);
    assert!(!rig.objects().contains(&object));
    rig.faults.clear();
    rig.same("copy", &content);
    code(&rig.try_on(&["release"], &["copy"]), 1);
    rig.same("copy", &content);
    assert!(rig.on(&["check", "--repair"], &["copy"]).contains("repaired"));
    rig.migrate("copy");
    rig.same("copy", &content);
}

#[test]
fn a_share_restored_from_a_backup_has_what_its_objects_still_hold() {
    let Some(mut rig) = Rig::new() else { return };
    let names = ["stub", "dual", "gone", "resident", "deep"];
    let contents = names.map(|name| rig.write(name, 2 * CHUNK + 9));
    rig.on(&["migrate"], &["stub", "gone", "deep"]);
    rig.on(&["migrate", "--archive-only"], &["dual"]);
    let tar = rig.scratch("backup.tar").display().to_string();
    let share = rig.share().display().to_string();
    let xattrs = ["--xattrs", "--xattrs-include=*", "--sparse", "-C", &share];
    run("tar", &[&["-cf", &tar][..], &xattrs, &["."]].concat());
    let gone = short(&key(&rig, "gone"));
    overwrite(&rig, "gone", b"new");
    wait_for("the deletion", || !rig.objects().contains(&gone));
    // Its object's deletion is still to be done when the share comes back.
    rig.fault(Effect::InternalError, "DELETE");
    fs::remove_file(rig.mnt("deep")).unwrap();
    rig.umount();
    for entry in fs::read_dir(rig.share()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
    run("tar", &[&["-xf", &tar][..], &xattrs].concat());
    rig.mount();
    // Used before its object's deletion is due again: it is withdrawn.
    check_names(&rig, &["gone"], &gone);
    rig.faults.clear();
    deletions_are_done(&rig);
    for (name, content) in
        [("stub", &contents[0]), ("dual", &contents[1]), ("resident", &contents[3]), ("deep", &contents[4])]
    {
        rig.same(name, content);
    }
    assert_eq!(errno(fs::read(rig.mnt("gone"))), Some(libc::EIO));
    // Restored files come and go like others, and their objects are left to the collector.
    let before = rig.objects();
    wait_for("the recalls' end", || rig.state("stub") == "dual" && rig.state("deep") == "dual");
    rig.on(&["migrate"], &["stub", "dual", "deep"]);
    rig.same("stub", &contents[0]);
    fs::remove_file(rig.mnt("stub")).unwrap();
    deletions_are_done(&rig);
    assert_eq!(rig.objects(), before);
}

#[test]
fn damaged_records_are_named_and_never_guessed_at() {
    for setup in [Setup::default(), Setup::xfs()] {
        let Some(rig) = setup.build() else { return };
        let content = rig.write("a", 3 * CHUNK);
        rig.write("b", 100);
        rig.on(&["migrate"], &["a", "b"]);
        let good = xattr(&rig.low("a"), RECORD).unwrap();
        let objects = rig.objects();
        let mut bad: Vec<(String, Vec<u8>)> = Vec::new();
        for bit in [0, 8 * 4, 8 * 5, 8 * good.len() / 2 + 3, 8 * good.len() - 1] {
            let mut flipped = good.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            bad.push((format!("bit {bit} flipped"), flipped));
        }
        for len in [0, 1, 4, 5, 9, good.len() / 2, good.len() - 1] {
            bad.push((format!("cut to {len}"), good[..len].to_vec()));
        }
        bad.push(("too long".into(), [&good[..], &[0]].concat()));
        bad.push(("noise".into(), noise("record", good.len())));
        for (what, record) in bad {
            set_xattr(&rig.low("a"), RECORD, &record).unwrap();
            // Whoever used the file a moment ago may still know better.
            wait_for(&what, || rig.state("a") == "damaged");
            refuses(&rig, "a", &what);
            check_names(&rig, &["a"], "its record is damaged");
            assert!(rig.try_on(&["check", "--repair"], &["a"]).status.code() == Some(1), "{what}");
            assert_eq!(xattr(&rig.low("a"), RECORD).unwrap(), record, "{what}: nothing was changed");
            // Its name, mode and times can be changed: nothing of that needs the record.
            fs::rename(rig.mnt("a"), rig.mnt("a2")).unwrap();
            fs::rename(rig.mnt("a2"), rig.mnt("a")).unwrap();
        }
        set_xattr(&rig.low("a"), RECORD, &good).unwrap();
        rig.same("a", &content);
        set_xattr(&rig.low("b"), RECORD, b"TFS1").unwrap();
        fs::remove_file(rig.mnt("b")).unwrap();
        deletions_are_done(&rig);
        assert_eq!(rig.objects(), objects, "what a damaged record named stays, for the collector to judge");
    }
}

/// A deletion looks at the record of the file it was noted for. One that cannot be read held up all others, for ever.
#[test]
fn a_damaged_record_does_not_hold_up_the_deletions_of_others() {
    let Some(rig) = Rig::new() else { return };
    rig.quiet();
    rig.write("a", 100);
    rig.migrate("a");
    let object = short(&key(&rig, "a"));
    let rule = rig.fault(Effect::InternalError, "DELETE");
    fs::write(rig.mnt("a"), b"new content").unwrap();
    wait_for("the superseded object's deletion", || {
        rig.faults.hits(rule) > 0 && rig.record("a").unwrap().superseded.is_none()
    });
    set_xattr(&rig.low("a"), RECORD, b"TFS1 no record at all").unwrap();
    rig.faults.clear();
    fs::write(rig.mnt("b"), b"another").unwrap();
    rig.migrate("b");
    let other = short(&key(&rig, "b"));
    fs::remove_file(rig.mnt("b")).unwrap();
    wait_for("the other's object to go", || !rig.objects().contains(&other));
    wait_for("the damaged one to be named", || {
        // It may be listed only now, and would not be tried again for minutes.
        rig.try_on(&["failed", "retry"], &["a"]);
        rig.log().contains("its record is damaged")
    });
    assert!(rig.objects().contains(&object) && rig.log().contains(&object), "{}", rig.log());
}

/// Somebody has the stub open, so its record is not read again.
#[test]
fn a_stub_in_use_that_is_cut_or_extended_below_is_named() {
    let Some(rig) = Rig::new() else { return };
    let names = ["longer", "shorter"];
    for name in names {
        rig.write(name, 40 * CHUNK);
    }
    rig.on(&["migrate"], &names);
    let held = names.map(|name| fs::File::open(rig.mnt(name)).unwrap());
    for (name, len) in names.iter().zip([41 * CHUNK, 1]) {
        let before = fs::metadata(rig.low(name)).unwrap();
        writable(&rig.low(name)).set_len(len as u64).unwrap();
        set_mtime(&rig.low(name), before.mtime(), before.mtime_nsec());
    }
    check_names(&rig, &names, "it was changed below the mount: its size");
    for (name, file) in names.iter().zip(&held) {
        assert_eq!(errno(file.read_at(&mut [0; 16], 0)), Some(libc::EIO), "{name}");
        wait_for("a line in the log", || is_told(&rig, name));
    }
}

#[test]
fn stubs_changed_below_the_mount() {
    for setup in [Setup::default(), Setup::xfs()] {
        let Some(mut rig) = setup.build() else { return };
        let len = 3 * CHUNK;
        // What is done below, and whether that is damage.
        type Change = fn(&Path, &[u8]);
        let changes: [(&str, Change, bool); 11] = [
            ("head", |path, _| writable(path).write_all_at(b"head", 0).unwrap(), true),
            ("tail", |path, _| writable(path).write_all_at(b"tail", 3 * CHUNK as u64 - 4).unwrap(), true),
            ("zeros", |path, _| writable(path).write_all_at(&[0; 8192], 0).unwrap(), true),
            ("whole", |path, _| fs::write(path, noise("other", 3 * CHUNK)).unwrap(), true),
            ("longer", |path, _| writable(path).set_len(4 * CHUNK as u64).unwrap(), true),
            ("appended", |path, _| writable(path).write_all_at(b"more", 3 * CHUNK as u64).unwrap(), true),
            ("shorter", |path, _| writable(path).set_len(1).unwrap(), true),
            ("punched", |path, _| allocate(path, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE), false),
            ("reserved", |path, _| allocate(path, FallocateFlags::KEEP_SIZE), false),
            ("renamed", |path, _| fs::rename(path, path.with_file_name("renamed.now")).unwrap(), false),
            ("linked", |path, _| fs::hard_link(path, path.with_file_name("linked.too")).unwrap(), false),
        ];
        let names: Vec<&str> = changes.iter().map(|change| change.0).collect();
        let contents: Vec<_> = names.iter().map(|name| rig.write(name, len)).collect();
        rig.on(&["migrate"], &names);
        let objects = rig.objects();
        let mut damaged = Vec::new();
        for ((name, change, damages), content) in changes.iter().zip(&contents) {
            let before = fs::metadata(rig.low(name)).unwrap();
            change(&rig.low(name), content);
            if *damages {
                // Times put back: only the bytes or the size tell.
                set_mtime(&rig.low(name), before.mtime(), before.mtime_nsec());
                damaged.push(*name);
            }
        }
        let below: Vec<_> = damaged.iter().map(|name| fs::read(rig.low(name)).unwrap()).collect();
        for remounted in [false, true] {
            if remounted {
                rig.umount();
                rig.mount();
            }
            for name in &damaged {
                assert_eq!(errno(fs::read(rig.mnt(name))), Some(libc::EIO), "{name}, remounted: {remounted}");
            }
            check_names(&rig, &damaged, "it was changed below the mount");
            let output = rig.try_on(&["check", "-r", "--repair"], &["."]);
            assert!(said(&output).contains(&format!("{} failed", damaged.len())), "{}", said(&output));
            let now: Vec<_> = damaged.iter().map(|name| fs::read(rig.low(name)).unwrap()).collect();
            assert!(now == below, "what somebody wrote is not thrown away");
            for name in ["head", "longer"] {
                wait_for("a line in the log", || is_told(&rig, name));
            }
            assert_eq!(rig.objects(), objects);
        }
        for (name, content) in names.iter().zip(&contents).filter(|(name, _)| !damaged.contains(name)) {
            let name = if *name == "renamed" { "renamed.now" } else { name };
            rig.same(name, content);
        }
        rig.same("linked.too", contents.last().unwrap());
        // An administrator decides: for what is there now, or for the object.
        rustix::fs::removexattr(rig.low("whole"), RECORD).unwrap();
        rig.same("whole", &noise("other", len));
        allocate(&rig.low("head"), FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE);
        rig.same("head", &contents[0]);
        // The right bytes, put there by somebody who had them: nothing is to be chosen.
        let before = fs::metadata(rig.low("tail")).unwrap();
        writable(&rig.low("tail")).write_all_at(&contents[1], 0).unwrap();
        set_mtime(&rig.low("tail"), before.mtime(), before.mtime_nsec());
        assert!(rig.on(&["check", "--repair"], &["tail"]).contains("repaired"));
        assert_eq!(rig.state("tail"), "dual");
        rig.same("tail", &contents[1]);
    }
}

fn writable(path: &Path) -> fs::File {
    OpenOptions::new().write(true).open(path).unwrap()
}

/// `fallocate(2)` of all that a file's size covers.
fn allocate(path: &Path, mode: FallocateFlags) {
    let len = fs::metadata(path).unwrap().len();
    fallocate(writable(path), mode, 0, len.next_multiple_of(1 << 20)).unwrap();
}

/// `rsync -X` sets attributes again where size and time are as in the backup: a record from before or after a release.
#[test]
fn records_from_a_backup_set_again_on_the_same_file() {
    for setup in [Setup::default(), Setup::xfs()] {
        let Some(rig) = setup.build() else { return };
        let names = ["tiny", "large", "here", "zeros"];
        let lens = [700, 5 * CHUNK, 3 * CHUNK, 2 * CHUNK];
        let contents: Vec<_> = names.iter().zip(lens).map(|(name, len)| rig.write(name, len)).collect();
        fs::write(rig.mnt("zeros"), vec![0; 2 * CHUNK]).unwrap();
        // Content that is nothing but holes, and says so rightly.
        truncate(&rig.mnt("zeros"), 0).unwrap();
        truncate(&rig.mnt("zeros"), 2 * CHUNK as u64).unwrap();
        rig.on(&["migrate", "--archive-only"], &names);
        let dual = names.map(|name| xattr(&rig.low(name), RECORD).unwrap());
        rig.on(&["release"], &names);
        let stub = xattr(&rig.low("here"), RECORD).unwrap();
        rig.on(&["recall"], &["here", "zeros"]);
        // Local bytes are called remote. Whoever used the file a moment ago may still know better.
        set_xattr(&rig.low("here"), RECORD, &stub).unwrap();
        wait_for("a fresh look", || rig.state("here") == "stub");
        // Holes are called local.
        for n in [0, 1] {
            set_xattr(&rig.low(names[n]), RECORD, &dual[n]).unwrap();
            wait_for("a fresh look", || rig.state(names[n]) == "damaged");
            refuses(&rig, names[n], "a dual record over holes");
        }
        assert_eq!(errno(fs::read(rig.mnt("here"))), Some(libc::EIO));
        assert_eq!(rig.state("zeros"), "dual");
        rig.same("zeros", &vec![0; 2 * CHUNK]);
        check_names(&rig, &["tiny", "large", "here"], "it was changed below the mount");
        let output = rig.try_on(&["check", "-r", "--repair"], &["."]);
        code(&output, 0);
        let states = names.map(|name| rig.state(name));
        assert_eq!(states, ["stub", "stub", "dual", "dual"].map(str::to_owned));
        for (name, content) in names.iter().zip(&contents).take(3) {
            rig.same(name, content);
        }
    }
}

/// The file's own fault is not to be seen in it: it is all holes, like many a file. Only a check asks whether there is an object for it.
#[test]
fn a_stub_that_lost_its_record_is_found_by_a_check() {
    for setup in [Setup::default(), Setup::xfs()] {
        let Some(rig) = setup.build() else { return };
        fs::create_dir(rig.mnt("dir")).unwrap();
        let names = ["small", "dir/large", "touched"];
        let contents: Vec<_> =
            names.iter().zip([1000, 5 * CHUNK, 100]).map(|(name, len)| rig.write(name, len)).collect();
        rig.on(&["migrate"], &names);
        let records = names.map(|name| rig.record(name).unwrap());
        rig.write("resident", 5000);
        // Somebody's own hole, which is no loss.
        fs::File::create(rig.mnt("hole")).unwrap().set_len(5000).unwrap();
        names.iter().for_each(|name| rustix::fs::removexattr(rig.low(name), RECORD).unwrap());
        set_mtime(&rig.low("touched"), 1, 1);
        check_names(&rig, &names, "its record seems lost");
        let output = rig.try_on(&["check", "-r", "--repair"], &["."]);
        code(&output, 1);
        assert!(said(&output).contains("1 failed"), "{}", said(&output));
        for (name, (content, record)) in names.iter().zip(contents.iter().zip(&records)).take(2) {
            assert_eq!(rig.record(name).as_ref(), Some(record), "{name}");
            rig.same(name, content);
        }
        assert!(rig.record("touched").is_none());
        ["resident", "hole"].iter().for_each(|name| assert_eq!(rig.state(name), "resident"));
    }
}

#[test]
fn a_dual_file_written_below_is_resident_again_and_its_new_bytes_count() {
    let Some(mut rig) = Rig::new() else { return };
    for name in ["mounted", "unmounted"] {
        rig.write(name, 3 * CHUNK);
    }
    rig.on(&["migrate", "--archive-only"], &["mounted", "unmounted"]);
    let new = noise("new", 3 * CHUNK);
    fs::write(rig.low("mounted"), &new).unwrap();
    rig.same("mounted", &new);
    rig.umount();
    fs::write(rig.low("unmounted"), &new).unwrap();
    rig.mount();
    for name in ["mounted", "unmounted"] {
        assert_eq!(rig.state(name), "resident", "{name}");
        assert!(rig.log().contains("changed below the mount since it was archived"), "{}", rig.log());
        rig.migrate(name);
        rig.same(name, &new);
    }
    wait_for("recalls", || rig.state("mounted") == "dual" && rig.state("unmounted") == "dual");
    rig.settled(&["mounted", "unmounted"]);
}

/// Records of one pair, found on a share that is mounted with another: named, left alone, served as nothing.
#[test]
fn a_record_of_another_pair_is_named_and_not_followed() {
    let Some(mut rig) = Rig::new() else { return };
    let content = rig.write("stub", 3 * CHUNK);
    let here = rig.write("dual", 3 * CHUNK);
    rig.migrate("stub");
    rig.on(&["migrate", "--archive-only"], &["dual"]);
    let objects = rig.objects();
    rig.umount();
    let (local, endpoint) = (format!("east:{}", rig.share().display()), rig.endpoint());
    let args = [
        "pair",
        "add",
        "other",
        "--force",
        "--local",
        &local,
        "--remote",
        "west:s3://cold/else",
        "--endpoint",
        &endpoint,
    ];
    code(&rig.tierfs(&args), 0);
    let output = rig.try_mount(&["--pair", "other"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(errno(fs::read(rig.mnt("stub"))), Some(libc::EREMOTEIO));
    rig.same("dual", &here);
    for (verb, name) in
        [("recall", "stub"), ("release", "dual"), ("check", "stub"), ("check", "dual"), ("verify", "stub")]
    {
        let output = rig.try_on(&[verb], &[name]);
        code(&output, 1);
        let text = said(&output);
        assert!(text.contains("belongs to pair cold") && text.contains(name), "{verb}: {text}");
    }
    assert_eq!((rig.state("stub").as_str(), rig.state("dual").as_str()), ("stub", "dual"));
    rig.umount();
    let output = rig.try_mount(&["--pair", "cold"]);
    assert!(output.status.success(), "{}", said(&output));
    rig.same("stub", &content);
    assert!(rig.objects().is_superset(&objects));
}
