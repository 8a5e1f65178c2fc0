//! What becomes of the object of a file whose content is all here again: it goes, at once or after a time, unless something became of the file (R2).

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::rig::*;

fn rig(recall_retention: &'static str) -> Option<Rig> {
    Setup { retention: "1h", recall_retention, ..Setup::default() }.build()
}

/// The time for which objects of recalled files are kept is over, by a clock that the daemon cannot tell from a long wait. Returns of how many
/// files there was anything noted.
pub fn expire(rig: &mut Rig) -> usize {
    noted(rig);
    rig.umount();
    let mut noted = 0;
    for entry in fs::read_dir(rig.state_dir().join("shares")).unwrap().flatten() {
        let journal = rusqlite::Connection::open(entry.path().join("journal.sqlite")).unwrap();
        noted += journal.execute("UPDATE recalled SET at_secs = 1", []).unwrap();
    }
    rig.mount();
    noted
}

/// The ends of all recalls are noted: that comes after their answer.
fn noted(rig: &Rig) {
    wait_for("the recalls' notes", || rig.info()["intents"][0] == 0);
}

pub fn stored(rig: &Rig, name: &str) -> String {
    rig.record(name).unwrap().object.unwrap().key.0.trim_start_matches("pre/").to_owned()
}

#[test]
fn at_once() {
    let Some(rig) = rig("0s") else { return };
    for (name, len) in [("small", 5_000), ("large", 12 * CHUNK + 7)] {
        let content = rig.write(name, len);
        let facts = |m: fs::Metadata| (m.len(), m.mtime(), m.mtime_nsec(), m.mode());
        let before = facts(fs::metadata(rig.mnt(name)).unwrap());
        rig.migrate(name);
        // By a command, and by who reads all of it and has it open meanwhile.
        for by_command in [true, false] {
            let object = stored(&rig, name);
            let reader = File::open(rig.mnt(name)).unwrap();
            if by_command {
                rig.on(&["recall"], &[name]);
            } else {
                rig.same(name, &content);
            }
            wait_for("the end of its object", || rig.state(name) == "resident" && !rig.objects().contains(&object));
            let mut found = vec![0; content.len()];
            reader.read_exact_at(&mut found, 0).unwrap();
            assert_same(&found, &content, name);
            assert_eq!(facts(fs::metadata(rig.mnt(name)).unwrap()), before);
            let record = rig.record(name).unwrap();
            assert!(record.object.is_none() && record.superseded.is_none(), "{record:?}");
            assert_eq!(errno(fs::metadata(rig.mnt("nothing"))), Some(libc::ENOENT));
            drop(reader);
            code(&rig.try_on(&["release"], &[name]), 1);
            rig.migrate(name);
            assert_ne!(stored(&rig, name), object, "a key is never used again");
        }
        rig.same(name, &content);
        wait_for("the last one's end", || rig.state(name) == "resident");
    }
    rig.settled(&["small", "large"]);
    // Nothing is left of it that could be brought back: it is in the file.
    assert!(!rig.on(&["--json", "history"], &["large"]).contains("\"version\""));
}

#[test]
fn after_its_time_and_a_restart() {
    let Some(mut rig) = rig("24h") else { return };
    let names = ["small", "large", "pinned"];
    let contents = names.map(|name| rig.write(name, if name == "small" { 700 } else { 4 * CHUNK }));
    rig.on(&["migrate", "-r"], &[""]);
    rig.on(&["recall", "-r"], &[""]);
    rig.on(&["pin"], &["pinned"]);
    let objects = rig.objects();
    rig.umount();
    rig.mount();
    for name in names {
        assert_eq!(rig.state(name), "dual", "{name}");
    }
    assert_eq!(rig.objects(), objects);
    assert_eq!(expire(&mut rig), names.len());
    for (name, content) in names.iter().zip(&contents) {
        wait_for("its end", || rig.state(name) == "resident");
        rig.same(name, content);
    }
    rig.settled(&names);
    assert_eq!((rig.objects().len(), expire(&mut rig)), (0, 0));
    assert_eq!(rig.virtual_xattr("pinned", "pin").unwrap(), "1");
}

#[test]
fn what_became_of_the_file_meanwhile_counts() {
    let Some(mut rig) = rig("24h") else { return };
    let names = ["released", "changed", "archived", "removed", "again"];
    let contents = names.map(|name| rig.write(name, 3 * CHUNK));
    rig.on(&["migrate", "-r"], &[""]);
    rig.on(&["recall", "-r"], &[""]);
    noted(&rig);
    rig.on(&["release"], &["released"]);
    fs::write(rig.mnt("changed"), b"new").unwrap();
    fs::write(rig.mnt("archived"), b"newer").unwrap();
    rig.on(&["migrate", "--archive-only"], &["archived"]);
    let removed = stored(&rig, "removed");
    fs::remove_file(rig.mnt("removed")).unwrap();
    let before = rig.objects();
    assert_eq!(expire(&mut rig), names.len());
    wait_for("the end of the one that is as it was", || rig.state("again") == "resident");
    // Objects and manifests of all but that one.
    let gone = || before.difference(&rig.objects()).cloned().collect::<Vec<_>>();
    wait_for("the end of its object", || gone().len() >= 2);
    assert!(gone().iter().all(|key| key.starts_with("again@")) && gone().len() == 2, "{:?}", gone());
    assert_eq!((rig.state("released").as_str(), rig.state("archived").as_str()), ("stub", "dual"));
    rig.same("released", &contents[0]);
    wait_for("the recall's end", || rig.state("released") == "dual");
    // What was changed, and what was removed, is kept for the retention as ever.
    assert!(rig.objects().contains(&removed));
    rig.on(&["undelete"], &["removed"]);
    rig.same("removed", &contents[3]);
    assert!(rig.objects().iter().any(|key| key.starts_with("changed@")));
    // Its recall counts from its own end.
    assert_eq!(rig.state("released"), "dual");
    rig.on(&["verify"], &["released"]);
}

/// Its inode lives as long as somebody has it open, and its record names the object: which is kept for who wants the file back.
#[test]
fn a_removed_file_that_is_open_can_be_brought_back() {
    let Some(rig) = rig("1s") else { return };
    let content = rig.write("a", 3 * CHUNK);
    rig.write("later", 3 * CHUNK);
    rig.on(&["migrate", "-r"], &[""]);
    rig.on(&["recall"], &["a"]);
    noted(&rig);
    let object = stored(&rig, "a");
    let open = File::open(rig.mnt("a")).unwrap();
    fs::remove_file(rig.mnt("a")).unwrap();
    rig.on(&["recall"], &["later"]);
    wait_for("the end of what was recalled later", || rig.state("later") == "resident");
    assert!(rig.objects().contains(&object));
    drop(open);
    wait_for("the file to be back", || rig.try_on(&["undelete"], &["a"]).status.success());
    rig.same("a", &content);
}

#[test]
fn a_pair_may_keep_them() {
    let Some(mut rig) = rig("0s") else { return };
    rig.umount();
    code(&rig.tierfs(&["pair", "edit", "cold", "--after-recall", "keep"]), 0);
    rig.mount();
    rig.write("a", 3 * CHUNK);
    rig.migrate("a");
    rig.on(&["recall"], &["a"]);
    assert_eq!((rig.state("a").as_str(), expire(&mut rig)), ("dual", 0));
    rig.on(&["release"], &["a"]);
    assert_eq!(rig.objects().len(), 2);
}

/// Immutable files are left alone in every way.
#[test]
fn an_immutable_file_keeps_its_object() {
    let Some(mut rig) = rig("24h") else { return };
    rig.write("sealed", 3 * CHUNK);
    rig.write("other", 3 * CHUNK);
    rig.on(&["migrate", "-r"], &[""]);
    rig.on(&["recall", "-r"], &[""]);
    let chattr = |how: &str| std::process::Command::new("chattr").arg(how).arg(rig.low("sealed")).status().unwrap();
    assert!(chattr("+i").success());
    assert_eq!(expire(&mut rig), 2);
    wait_for("the end of the other", || rig.state("other") == "resident");
    let state = rig.state("sealed");
    let chattr = |how: &str| std::process::Command::new("chattr").arg(how).arg(rig.low("sealed")).status().unwrap();
    assert!(chattr("-i").success());
    assert_eq!(state, "dual");
    let sealed = stored(&rig, "sealed");
    wait_for("the end of the other's object", || rig.objects().len() == 2);
    assert!(rig.objects().contains(&sealed));
}

/// Wherever the daemon dies, the file is whole, and its object goes when nothing needs it.
#[test]
fn killed_at_any_step() {
    let Some(mut rig) = (Setup { retention: "0s", recall_retention: "0s", ..Setup::default() }).build() else { return };
    let source = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/engine/after_recall.rs")).unwrap();
    let mut points: Vec<String> =
        source.split("kill::point(\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect();
    assert!(points.len() >= 4, "{points:?}");
    let others = [
        "recall.recorded",
        "note.outlived",
        "dirty.recorded",
        "dirty.synced",
        "superseded.noted",
        "superseded.recorded",
    ];
    points.extend(others.map(str::to_owned));
    points.push("delete.deleted".into());
    for point in &points {
        let name = point.as_str();
        let content = rig.write(name, 3 * CHUNK + 1);
        rig.migrate(name);
        rig.crash();
        rig.kill_at = Some(name.to_owned());
        rig.mount();
        let daemon = rig.daemon.unwrap();
        let _ = rig.try_on(&["recall"], &[name]);
        wait_for(&format!("death at {point}"), || !alive(daemon));
        rig.crash();
        rig.kill_at = None;
        rig.mount();
        rig.same(name, &content);
        wait_for(&format!("the end of its object after {point}"), || {
            rig.state(name) == "resident" && rig.objects().is_empty()
        });
        rig.same(name, &content);
        fs::remove_file(rig.mnt(name)).unwrap();
    }
    rig.settled(&[]);
}
