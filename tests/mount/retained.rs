//! A retention lock: tiering leaves the file as it is, until root ends it.

use std::fs;

use serde_json::Value;

use crate::after_recall::{expire, stored};
use crate::index::scan;
use crate::rig::*;

/// Three files, resident, dual and a stub, with their content.
const NAMES: [&str; 3] = ["resident", "dual", "stub"];

fn locked(setup: Setup) -> Option<(Rig, [Vec<u8>; 3])> {
    let rig = setup.build()?;
    let contents = NAMES.map(|name| rig.write(name, 3 * CHUNK));
    rig.on(&["migrate", "--archive-only"], &["dual"]);
    rig.migrate("stub");
    let said = rig.on(&["set", "--retain", "on"], &NAMES);
    assert!(said.contains("locked 3 files"), "{said}");
    Some((rig, contents))
}

fn states(rig: &Rig) -> [String; 3] {
    NAMES.map(|name| rig.state(name))
}

/// That nothing is done to any of them by a command.
#[track_caller]
fn left_alone(rig: &Rig) {
    let before = (states(rig), rig.objects());
    for (verbs, name) in [
        (&["migrate"][..], "resident"),
        (&["migrate", "--archive-only"], "resident"),
        (&["migrate"], "dual"),
        (&["release"], "dual"),
        (&["recall"], "stub"),
    ] {
        let output = rig.try_on(verbs, &[name]);
        code(&output, 1);
        assert!(said(&output).contains("retention-locked"), "{verbs:?} {name}: {}", said(&output));
    }
    for (attribute, name) in [("migrate", "resident"), ("release", "dual"), ("recall", "stub")] {
        let set = set_xattr(&rig.mnt(name), &format!("user.tierfs.{attribute}"), b"1");
        assert_eq!(set, Err(libc::EPERM), "{attribute} {name}");
    }
    assert_eq!((states(rig), rig.objects()), before);
}

#[test]
fn neither_archived_nor_released_nor_recalled() {
    let Some((mut rig, contents)) = locked(Setup::default()) else { return };
    left_alone(&rig);
    assert!(rig.record("resident").unwrap().flags.retained, "one that had no record has one");
    let told = rig.json(&["status", rig.mnt("dual").to_str().unwrap()], 0).remove(0);
    assert_eq!(told["retained"], true, "{told}");
    assert!(rig.on(&["status"], &["dual"]).contains("  retained  "));
    assert!(rig.on(&["set", "--retain", "on"], &["dual"]).contains("locked 0 files"));
    rig.umount();
    rig.mount();
    assert_eq!(NAMES.map(|name| rig.virtual_xattr(name, "retain").unwrap()), ["1", "1", "1"]);
    left_alone(&rig);
    // Who reads a stub has its content brought back, as of any, and it stays locked.
    rig.same("stub", &contents[2]);
    wait_for("the recall's end", || rig.state("stub") == "dual");
    assert!(said(&rig.try_on(&["release"], &["stub"])).contains("retention-locked"));
    // It forbids nothing to who may write: that is chattr(1)'s.
    fs::write(rig.mnt("dual"), b"new").unwrap();
    rig.same("dual", b"new");
    assert!(rig.record("dual").unwrap().flags.retained);
    fs::remove_file(rig.mnt("dual")).unwrap();

    fs::create_dir(rig.mnt("d")).unwrap();
    rig.write("d/below", CHUNK);
    rig.on(&["set", "-r", "--retain", "on"], &["d"]);
    assert_eq!(rig.virtual_xattr("d/below", "retain").unwrap(), "1");
    set_xattr(&rig.mnt("d/below"), "user.tierfs.retain", b"0").unwrap();
    rig.migrate("d/below");
    rig.on(&["set", "--retain", "off"], &["resident", "stub"]);
    for (name, content) in [("resident", &contents[0]), ("stub", &contents[2])] {
        rig.migrate(name);
        rig.same(name, content);
    }
}

#[test]
fn only_root_sets_and_ends_it() {
    let Some((rig, _)) = locked(Setup::default()) else { return };
    rig.write("free", CHUNK);
    for name in ["dual", "free"] {
        std::os::unix::fs::chown(rig.mnt(name), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let mine = |script: &str| as_nobody(&rig.mountpoint(), script);
    code(&mine("setfattr -n user.tierfs.pin -v 1 free"), 0);
    for (name, value) in [("free", "1"), ("dual", "0")] {
        let output = mine(&format!("setfattr -n user.tierfs.retain -v {value} {name}"));
        assert!(!output.status.success() && said(&output).contains("not permitted"), "{}", said(&output));
        assert!(!mine(&format!("setfattr -x user.tierfs.retain {name}")).status.success());
        let switch = if value == "1" { "on" } else { "off" };
        let output = mine(&format!("{} set --retain {switch} {name}", env!("CARGO_BIN_EXE_tierfs")));
        assert!(!output.status.success() && said(&output).contains("root"), "{}", said(&output));
    }
    assert_eq!(["free", "dual"].map(|name| rig.virtual_xattr(name, "retain").unwrap()), ["0", "1"]);
    // To see it is everybody's.
    assert!(said(&mine("getfattr -n user.tierfs.retain dual")).contains("\"1\""));
    assert!(said(&mine(&format!("{} status dual", env!("CARGO_BIN_EXE_tierfs")))).contains("  retained  "));
    assert_eq!(set_xattr(&rig.mnt("free"), "user.tierfs.retain", b"yes"), Err(libc::EINVAL));
}

#[test]
fn policies_pass_it_by() {
    let policy = |action| format!("[policy.{action}]\nenabled = false\naction = \"{action}\"\n");
    let Some((mut rig, _)) = locked(Setup::default()) else { return };
    rig.umount();
    let file = rig.scratch("policies.toml");
    fs::write(&file, ["archive", "release", "migrate", "recall"].map(policy).concat()).unwrap();
    let output = rig.try_mount(&["-o", &format!("policies={},archive_after=1s", file.display())]);
    assert!(output.status.success(), "{}", said(&output));
    scan(&rig);
    rig.write("free", CHUNK);
    set_mtime(&rig.mnt("free"), 1_500_000_000, 0);
    set_mtime(&rig.mnt("resident"), 1_500_000_000, 0);
    wait_for("what is not locked to be archived by age", || rig.state("free") == "dual");
    for action in ["archive", "release", "migrate", "recall"] {
        let run: Value = rig.json(&["policy", "run", action], 0).pop().unwrap();
        assert_eq!(run["failed"], 0, "{action}: {run}");
    }
    assert_eq!(states(&rig), NAMES);
    assert_eq!(rig.state("free"), "dual", "it was released, and recalled");
    let why = rig.json(&["why", rig.mnt("dual").to_str().unwrap()], 0).remove(0);
    assert_eq!(why["against"][0]["reason"], "retained", "{why}");
    assert!(why["rules"].as_array().unwrap().iter().any(|rule| rule["against"]["reason"] == "retained"), "{why}");
    let found = rig.on(&["find", "--retained"], &[""]);
    let mut found: Vec<_> = found.lines().map(|line| line.rsplit('/').next().unwrap()).collect();
    found.sort_unstable();
    assert_eq!(found, ["dual", "resident", "stub"]);
    // The index hears of its end.
    rig.on(&["set", "--retain", "off"], &NAMES);
    wait_for("the index", || rig.on(&["find", "--retained"], &[""]).is_empty());
}

/// A file whose content is all here again gives up its object, but not one that is locked.
#[test]
fn its_object_stays() {
    let Some((mut rig, contents)) = locked(Setup { retention: "1h", recall_retention: "24h", ..Setup::default() })
    else {
        return;
    };
    rig.write("other", 3 * CHUNK);
    rig.migrate("other");
    rig.on(&["recall"], &["other"]);
    rig.same("stub", &contents[2]);
    wait_for("the recall's end", || rig.state("stub") == "dual");
    let object = stored(&rig, "stub");
    assert_eq!(expire(&mut rig), 2);
    wait_for("the end of the other", || rig.state("other") == "resident");
    wait_for("the end of the other's object", || !rig.objects().iter().any(|key| key.starts_with("other@")));
    rig.on(&["gc"], &[""]);
    assert_eq!(rig.state("stub"), "dual");
    assert!(rig.objects().contains(&object));
    rig.on(&["verify"], &["stub"]);
}

#[test]
fn a_share_that_is_rebuilt_has_it_too() {
    let Some((mut rig, contents)) = locked(Setup { retention: "1h", ..Setup::default() }) else { return };
    wait_for("names at rest", || rig.on(&["save-names"], &[""]).contains("stored names of 0 directories"));
    rig.umount();
    rig.lose_share("ext4", 256 << 20, "1h");
    let share = rig.share().display().to_string();
    // What was never archived is missing.
    code(&rig.tierfs(&["rebuild", "--pair", "cold", "--into", &share]), 1);
    rig.mount();
    for (name, content) in NAMES.iter().zip(&contents).skip(1) {
        assert_eq!((rig.state(name).as_str(), rig.virtual_xattr(name, "retain").unwrap().as_str()), ("stub", "1"));
        assert!(said(&rig.try_on(&["recall"], &[name])).contains("retention-locked"));
        rig.same(name, content);
    }
}
