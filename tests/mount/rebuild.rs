//! `rebuild`: a share is lost, and made again from the bucket alone; every attribute and every byte is compared.

mod populate;
mod snapshot;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use crate::rig::*;
use populate::populate;
use snapshot::{Facts, compare, content, holes, snapshot};

/// On a directory: what reads below it bring back.
const POLICY: &str = "user.tierfs.recall_policy";
/// Files of the usual run; `make rebuild FILES=100000` takes more.
const FILES: usize = 2_000;

#[test]
fn a_lost_share_is_made_again_from_the_bucket() {
    lost_and_made_again(FILES, "ext4", "xfs", false);
}

/// Small files lie in packs: no object has their key.
#[test]
fn a_lost_share_with_packs_is_made_again_from_the_bucket() {
    lost_and_made_again(FILES / 2, "xfs", "ext4", true);
}

#[test]
#[ignore = "minutes; `make rebuild`"]
fn many() {
    let files = std::env::var("TIERFS_FILES").ok().map_or(100_000, |files| files.parse().unwrap());
    lost_and_made_again(files, "xfs", "ext4", false);
}

fn lost_and_made_again(files: usize, kind: &'static str, new_kind: &'static str, pack: bool) {
    let size = (2u64 << 30).max(files as u64 * 40_000);
    let pair = if pack { vec!["--pack", "true"] } else { Vec::new() };
    let setup = Setup { kind, size, retention: "1h", mounted: false, pair, ..Setup::default() };
    let Some(mut rig) = setup.build() else { return };
    let begun = Instant::now();
    populate(&rig.share(), files);
    eprintln!("{files} files are made in {:.1?}", begun.elapsed());
    rig.mount();
    let begun = Instant::now();
    let migrated = rig.try_on(&["migrate", "-r"], &[""]);
    eprintln!("{}; {:.1?}", said(&migrated).lines().last().unwrap_or_default(), begun.elapsed());
    // Empty files have nothing to move; nothing else may stay.
    let states = rig.on(&["--json", "status", "-r"], &[""]);
    let states: serde_json::Value = serde_json::from_str(states.lines().last().unwrap()).unwrap();
    assert!(states["states"]["stub"]["files"].as_u64().unwrap() >= files as u64, "{states}");
    assert_eq!(rig.all_objects().iter().any(|key| key.starts_with(".tierfs/packs/")), pack);
    // What exists when the names are stored, and what does not.
    fs::write(rig.mnt("removed before"), vec![7; 9_000]).unwrap();
    rig.on(&["migrate"], &["removed before"]);
    fs::remove_file(rig.mnt("removed before")).unwrap();
    fs::write(rig.mnt("changed"), vec![1; 3 * CHUNK]).unwrap();
    fs::write(rig.mnt("stale"), vec![5; 100]).unwrap();
    rig.on(&["migrate"], &["changed", "stale"]);
    fs::write(rig.mnt("never archived"), b"only here").unwrap();
    fs::write(rig.mnt("stale"), b"changed since it was archived").unwrap();
    fs::create_dir(rig.mnt("read whole")).unwrap();
    set_xattr(&rig.mnt("read whole"), POLICY, b"full").unwrap();
    let begun = Instant::now();
    let stored = rig.on(&["save-names"], &[""]);
    eprintln!("{}; {:.1?}", stored.trim(), begun.elapsed());
    // Once the last record is at rest, nothing is stored twice.
    wait_for("names at rest", || rig.on(&["save-names"], &[""]).contains("stored names of 0 directories"));
    let mut before = snapshot(&rig.mountpoint());
    // What comes after, the bucket knows by the objects alone.
    fs::write(rig.mnt("later"), vec![2; 2 * CHUNK + 1]).unwrap();
    fs::write(rig.mnt("changed"), vec![3; 5 * CHUNK]).unwrap();
    rig.on(&["migrate"], &["later", "changed"]);
    for name in ["later", "changed"] {
        before.insert(PathBuf::from(name), Facts::of(&rig.mnt(name)));
    }
    // An object does not tell when its file was read last.
    let later = before.get_mut(Path::new("later")).unwrap();
    later.atime = later.mtime;
    for name in ["never archived", "stale"] {
        before.remove(Path::new(name)).unwrap();
    }
    rig.umount();
    rig.lose_share(new_kind, size, "1h");

    let rebuild = |rig: &Rig, more: &[&str]| {
        let share = rig.share().display().to_string();
        rig.tierfs(&[&["--json", "rebuild", "--pair", "cold", "--into", &share], more].concat())
    };
    let seen = rebuild(&rig, &["--dry-run"]);
    code(&seen, 1);
    let looked = told(&seen);
    assert_eq!(fs::read_dir(rig.share()).unwrap().count(), 0, "a dry run makes nothing");
    // Interrupted somewhere, and run again.
    let share = rig.share().display().to_string();
    let mut cut = rig.command(&["rebuild", "--pair", "cold", "--into", &share]);
    let mut cut = cut.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let made_so_far = || {
        let below = |dir: fs::DirEntry| fs::read_dir(dir.path()).map_or(0, |entries| entries.count());
        fs::read_dir(rig.share()).unwrap().flatten().map(below).sum::<usize>()
    };
    wait_for("some files", || made_so_far() > files / 3);
    cut.kill().unwrap();
    cut.wait().unwrap();
    assert!(made_so_far() < files, "the interruption came too late");
    let done = rebuild(&rig, &[]);
    code(&done, 1);
    let made = told(&done);
    let number = |told: &BTreeMap<String, u64>, what: &str| told[what];
    eprintln!(
        "rebuilt {} files in {} ms after an interruption: {} files/s",
        number(&made, "files"),
        number(&made, "ms"),
        number(&made, "files") * 1000 / number(&made, "ms").max(1)
    );
    for (what, count) in [("missing", 2), ("failed", 0), ("newer", 1), ("found", 2)] {
        assert_eq!((number(&made, what), number(&looked, what)), (count, count), "{what}: {}", said(&done));
    }
    assert!(said(&done).contains("never archived") && said(&done).contains("changed since it was archived"));
    // What is done stays as it is.
    let again = told(&rebuild(&rig, &[]));
    assert_eq!((number(&again, "files"), number(&again, "failed")), (0, 0));

    rig.mount();
    let found = rig.mnt("lost+found.tierfs");
    assert_eq!(fs::metadata(&found).unwrap().mode() & 0o7777, 0o700);
    let removed: Vec<_> = fs::read_dir(&found).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(removed.len(), 1, "{removed:?}");
    assert_eq!(fs::read(&removed[0]).unwrap(), vec![7; 9_000]);
    fs::remove_dir_all(&found).unwrap();
    let root = fs::metadata(rig.mountpoint()).unwrap();
    // Removing something from it has moved its time; all else must be as it was.
    let mut after = snapshot(&rig.mountpoint());
    for all in [&mut before, &mut after] {
        all.get_mut(Path::new("")).unwrap().mtime = (0, 0);
    }
    assert!(root.mode() & 0o7777 == 0o755);
    compare(&before, &after, true);
    assert_eq!(xattr(&rig.mnt("read whole"), POLICY).unwrap(), b"full");
    assert!(xattr(&rig.mountpoint(), POLICY).is_err());
    let begun = Instant::now();
    let recalled = rig.on(&["recall", "-r"], &[""]);
    eprintln!("{}; {:.1?}", recalled.trim(), begun.elapsed());
    let count = content(&rig.mountpoint(), |name, bytes| match name {
        b"later" => assert_same(bytes, &vec![2; 2 * CHUNK + 1], "later"),
        b"changed" => assert_same(bytes, &vec![3; 5 * CHUNK], "changed"),
        name => populate::check(name, bytes),
    });
    assert!(count >= files, "{count} files were read");
    let mut last = snapshot(&rig.mountpoint());
    last.get_mut(Path::new("")).unwrap().mtime = (0, 0);
    compare(&before, &last, false);
    for (name, want) in populate::sparse() {
        assert_eq!(holes(&rig.low(name)), want, "{name}");
    }
    rig.on(&["verify", "-r", "--sample", "5%"], &[""]);
}

/// What the last line of a rebuild says.
fn told(output: &std::process::Output) -> BTreeMap<String, u64> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let last: serde_json::Value =
        serde_json::from_str(text.lines().last().unwrap_or_default()).unwrap_or_else(|_| panic!("{}", said(output)));
    let numbers = last.as_object().unwrap().iter();
    let mut all: BTreeMap<_, _> = numbers.filter_map(|(name, value)| Some((name.clone(), value.as_u64()?))).collect();
    all.insert("ms".into(), (last["seconds"].as_f64().unwrap_or_else(|| panic!("{}", said(output))) * 1000.0) as u64);
    all
}

#[test]
fn what_cannot_be_rebuilt_is_refused() {
    let Some(mut rig) = (Setup { retention: "1h", ..Setup::default() }).build() else { return };
    rig.write("a", 100);
    rig.migrate("a");
    let rebuild = |rig: &Rig, into: &Path| {
        rig.tierfs(&["rebuild".as_ref(), "--pair".as_ref(), "cold".as_ref(), "--into".as_ref(), into.as_os_str()])
    };
    let mounted = rebuild(&rig, &rig.share());
    code(&mounted, 3);
    assert!(said(&mounted).contains("is mounted at"), "{}", said(&mounted));
    let empty = rig.fs.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let nothing = rebuild(&rig, &empty);
    code(&nothing, 3);
    assert!(said(&nothing).contains("no names of a share"), "{}", said(&nothing));
    rig.on(&["save-names"], &[""]);
    rig.umount();
    let full = rebuild(&rig, &rig.share());
    code(&full, 3);
    assert!(said(&full).contains("not empty"), "{}", said(&full));
    code(&rebuild(&rig, &rig.scratch("nowhere")), 3);
    let output =
        as_nobody(Path::new("/"), &format!("{} rebuild --pair cold --into /tmp", env!("CARGO_BIN_EXE_tierfs")));
    assert!(!output.status.success() && said(&output).contains("root"), "{}", said(&output));
    // A damaged tree is told, and nothing is made of it.
    let trees: Vec<_> = rig.all_objects().into_iter().filter(|key| key.contains("/trees/")).collect();
    assert_eq!(trees.len(), 1);
    rig.fault(tierfs::gateway::faults::Effect::CorruptReply { at: 30 }, "GET");
    let damaged = rebuild(&rig, &empty);
    assert!(said(&damaged).contains("failed"), "{}", said(&damaged));
    assert!(!empty.join("a").exists());
    rig.faults.clear();
    code(&rebuild(&rig, &empty), 0);
    assert_eq!(fs::metadata(empty.join("a")).unwrap().len(), 100);
}

#[test]
fn names_are_stored_after_a_migration_and_old_ones_go() {
    let setup = Setup { retention: "0s", mount: vec!["-o", "save_names=1h"], ..Setup::default() };
    let Some(rig) = setup.build() else { return };
    let trees =
        |rig: &Rig| -> Vec<String> { rig.all_objects().into_iter().filter(|key| key.contains("/trees/")).collect() };
    fs::create_dir_all(rig.mnt("d/e")).unwrap();
    fs::create_dir(rig.mnt("other")).unwrap();
    rig.write("d/e/f", 100);
    rig.migrate("d/e/f");
    // The directory, and those above it by which it is found.
    wait_for("the names", || trees(&rig).len() == 2 || trees(&rig).len() == 3);
    rig.on(&["migrate", "-r"], &["d"]);
    wait_for("the names", || trees(&rig).len() == 3);
    rig.on(&["save-names"], &[""]);
    assert_eq!(trees(&rig).len(), 4);
    let before = trees(&rig);
    fs::set_permissions(rig.mnt("d/e/f"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    fs::remove_dir(rig.mnt("other")).unwrap();
    let said = rig.on(&["save-names"], &[""]);
    assert!(said.contains("stored names of 2 directories; 1 unchanged"), "{said}");
    let after = trees(&rig);
    assert_eq!(after.len(), 3, "{before:?} {after:?}");
    assert_eq!(after.iter().filter(|key| before.contains(key)).count(), 1);
}
