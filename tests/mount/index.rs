//! The index follows what happens through the mount, and a scan finds the rest.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::rig::*;

/// The rows of an answer.
#[track_caller]
pub fn sql(rig: &Rig, statement: &str) -> Vec<Vec<Value>> {
    let lines = rig.json(&["sql", statement], 0);
    let rows = lines.into_iter().filter(|line| line["reply"] == "row");
    rows.map(|line| line["cells"].as_array().unwrap().clone()).collect()
}

#[track_caller]
pub fn scan(rig: &Rig) -> Value {
    let lines = rig.json(&["index", "scan", rig.mountpoint().to_str().unwrap()], 0);
    lines.into_iter().find(|line| line["reply"] == "index").unwrap()
}

#[track_caller]
fn status(rig: &Rig) -> Value {
    rig.json(&["index", "status", rig.mountpoint().to_str().unwrap()], 0).remove(0)
}

/// What is known of an inode, and one of its names.
type Facts = (String, u64, i64, u32, u32, u32, u64);

/// All inodes below a directory as stat(2) tells them, with all their names.
fn below(dir: &Path) -> BTreeMap<u64, (Facts, Vec<PathBuf>)> {
    let mut all = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(path) = open.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let kind = match meta.file_type() {
            kind if kind.is_dir() => "d",
            kind if kind.is_symlink() => "l",
            kind if kind.is_file() => "f",
            _ => "p",
        };
        // Reading moves the access time, and directories' sizes and times are nobody's business.
        let facts = match kind {
            "d" => (kind.into(), 0, 0, meta.mode() & 0o7777, meta.uid(), meta.gid(), 0),
            _ => (kind.into(), meta.size(), meta.mtime(), meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.nlink()),
        };
        let name = path.strip_prefix(dir).unwrap().to_owned();
        all.entry(meta.ino()).or_insert_with(|| (facts, Vec::new())).1.push(name);
        if meta.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    all
}

/// What the index says otherwise than the share; empty: nothing.
fn differences(rig: &Rig) -> Vec<String> {
    let mut share = below(&rig.share());
    let mut wrong = Vec::new();
    for row in sql(rig, "SELECT path, ino, kind, size, mtime, mode, uid, gid, nlink FROM files") {
        let number = |at: usize| row[at].as_u64().unwrap();
        let path = PathBuf::from(row[0].as_str().unwrap_or("?"));
        let kind = row[2].as_str().unwrap().to_owned();
        let dir = kind == "d";
        let unless = |value: u64| if dir { 0 } else { value };
        let (size, mtime, links) = (unless(number(3)), unless(number(4)) as i64, unless(number(8)));
        let facts = (kind, size, mtime, number(5) as u32, number(6) as u32, number(7) as u32, links);
        match share.remove(&number(1)) {
            Some((found, names)) if found == facts && names.contains(&path) => {}
            found => wrong.push(format!("index: {path:?} {facts:?}; share: {found:?}")),
        }
    }
    wrong.extend(share.into_values().map(|found| format!("not in the index: {found:?}")));
    wrong
}

/// A file's closing is told a moment after close(2).
#[track_caller]
fn follows(rig: &Rig, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let wrong = differences(rig);
        if wrong.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {wrong:#?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn state(rig: &Rig, name: &str) -> Value {
    sql(rig, &format!("SELECT state FROM files WHERE path = '{name}'")).remove(0).remove(0)
}

#[track_caller]
fn becomes(rig: &Rig, name: &str, wanted: &str) {
    wait_for(&format!("{name} to be {wanted} in the index"), || state(rig, name) == wanted);
}

#[test]
fn what_happens_through_the_mount_is_followed() {
    let Some(rig) = Rig::new() else { return };
    rig.write("before", 3000);
    assert_eq!(status(&rig)["state"], "empty");
    code(&rig.tierfs(&["sql", "SELECT 1"]), 3);
    assert_eq!(scan(&rig)["state"], "complete");
    follows(&rig, "the first scan");

    let at = |name: &str| rig.mnt(name);
    fs::create_dir_all(at("d/e")).unwrap();
    rig.write("d/a", 5000);
    rig.write("d/e/deep", 10);
    fs::write(at("d/empty"), b"").unwrap();
    symlink("nowhere", at("d/link")).unwrap();
    follows(&rig, "creation");

    let mut held = OpenOptions::new().append(true).open(at("d/a")).unwrap();
    std::io::Write::write_all(&mut held, &[1; 7000]).unwrap();
    drop(held);
    truncate(&at("d/e/deep"), 3).unwrap();
    follows(&rig, "writing and cutting");

    fs::set_permissions(at("d/a"), fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(at("d/a"), Some(1234), Some(77)).unwrap();
    set_mtime(&at("d/a"), 1_500_000_000, 0);
    fs::set_permissions(at("d"), fs::Permissions::from_mode(0o750)).unwrap();
    follows(&rig, "attributes");

    fs::hard_link(at("d/a"), at("second")).unwrap();
    fs::hard_link(at("d/a"), at("d/e/third")).unwrap();
    follows(&rig, "links");
    fs::remove_file(at("d/a")).unwrap();
    follows(&rig, "the removal of one of three names");
    fs::remove_file(at("second")).unwrap();
    follows(&rig, "the removal of one of two names");

    fs::hard_link(at("d/e/third"), at("d/fourth")).unwrap();
    rig.write("d/over", 12);
    fs::rename(at("d/over"), at("d/fourth")).unwrap();
    follows(&rig, "a renaming over one of two names");

    fs::rename(at("d/e"), at("moved")).unwrap();
    follows(&rig, "the renaming of a directory");
    fs::rename(at("moved/deep"), at("before")).unwrap();
    follows(&rig, "a renaming over a file");
    let exchange = rustix::fs::RenameFlags::EXCHANGE;
    rustix::fs::renameat_with(rustix::fs::CWD, at("moved"), rustix::fs::CWD, at("before"), exchange).unwrap();
    follows(&rig, "an exchange of a directory and a file");
    fs::remove_file(at("d/empty")).unwrap();
    fs::remove_dir_all(at("d")).unwrap();
    follows(&rig, "removal");
    assert_eq!(status(&rig)["lost"], 0);
    assert_eq!(status(&rig)["stale"], false);
}

#[test]
fn states_are_followed() {
    let Some(rig) = Rig::new() else { return };
    scan(&rig);
    rig.write("f", 3 * CHUNK);
    becomes(&rig, "f", "resident");
    rig.on(&["migrate", "--archive-only"], &["f"]);
    becomes(&rig, "f", "dual");
    let known = sql(&rig, "SELECT pair, generation > 0, online >= size, offline FROM files WHERE name = 'f'");
    assert_eq!(known, [[json!("cold"), json!(1), json!(1), json!(0)]]);
    rig.on(&["release"], &["f"]);
    becomes(&rig, "f", "stub");
    let known = sql(&rig, "SELECT online < 8192, offline = size FROM files WHERE name = 'f'");
    assert_eq!(known, [[json!(1), json!(1)]]);
    rig.on(&["pin"], &["f"]);
    wait_for("the pin", || sql(&rig, "SELECT pinned FROM files WHERE name = 'f'") == [[json!(1)]]);
    rig.on(&["recall"], &["f"]);
    becomes(&rig, "f", "dual");
    let by = sql(&rig, "SELECT recalled > 0, recalled_by FROM files WHERE name = 'f'");
    assert_eq!(by, [[json!(1), json!("a command")]]);
    rig.on(&["unpin"], &["f"]);
    rig.migrate("f");
    becomes(&rig, "f", "stub");
    // Who reads it has it recalled.
    let read = as_nobody(&rig.mountpoint(), "cat f | wc -c");
    assert_eq!(said(&read).trim(), (3 * CHUNK).to_string());
    becomes(&rig, "f", "dual");
    let by = sql(&rig, "SELECT recalled_by FROM files WHERE name = 'f'").remove(0).remove(0);
    assert!(by.as_str().unwrap().starts_with(&format!("uid {NOBODY}, process ")), "{by}");
    OpenOptions::new().write(true).open(rig.mnt("f")).unwrap();
    becomes(&rig, "f", "resident");
    // A scan says the same.
    scan(&rig);
    assert_eq!(state(&rig, "f"), "resident");
}

#[test]
fn opens_are_counted_whoever_serves_them() {
    let Some(rig) = Rig::new() else { return };
    rig.write("f", CHUNK);
    rig.write("large", 40 * CHUNK);
    rig.migrate("large");
    scan(&rig);
    for _ in 0..5 {
        // The kernel reads it itself; the open comes to the daemon.
        fs::read(rig.mnt("f")).unwrap();
    }
    for _ in 0..3 {
        let mut file = File::open(rig.mnt("large")).unwrap();
        file.read_exact(&mut [0; 100]).unwrap();
    }
    let counts = || sql(&rig, "SELECT accesses FROM files WHERE kind = 'f' ORDER BY name");
    wait_for("the counts", || counts() == [[json!(5)], [json!(3)]]);
    let heat =
        sql(&rig, "SELECT heat > 4.9 AND heat <= 5.001, accessed > unixepoch() - 100 FROM files WHERE name = 'f'");
    assert_eq!(heat, [[json!(1), json!(1)]]);
    // Neither a new name nor a scan changes them, and a new file of the name begins anew.
    fs::rename(rig.mnt("f"), rig.mnt("g")).unwrap();
    scan(&rig);
    assert_eq!(counts(), [[json!(5)], [json!(3)]]);
    fs::rename(rig.low("g"), rig.low("h")).unwrap();
    fs::create_dir(rig.low("dir")).unwrap();
    fs::rename(rig.low("h"), rig.low("dir/h")).unwrap();
    scan(&rig);
    assert_eq!(sql(&rig, "SELECT path, accesses FROM files WHERE name = 'h'"), [[json!("dir/h"), json!(5)]]);
    fs::remove_file(rig.mnt("dir/h")).unwrap();
    rig.write("dir/h", 10);
    wait_for("the new file", || sql(&rig, "SELECT accesses FROM files WHERE name = 'h' AND size = 10") == [[json!(1)]]);
}

#[test]
fn a_scan_finds_what_changed_below() {
    let Some(rig) = Rig::new() else { return };
    for dir in ["a", "b", "c/d"] {
        fs::create_dir_all(rig.low(dir)).unwrap();
        (0..50).for_each(|n| fs::write(rig.low(dir).join(format!("n{n}")), vec![0; n]).unwrap());
    }
    fs::hard_link(rig.low("a/n1"), rig.low("b/same")).unwrap();
    scan(&rig);
    follows(&rig, "the first scan");
    fs::write(rig.low("a/n7"), b"changed").unwrap();
    fs::remove_dir_all(rig.low("b")).unwrap();
    fs::rename(rig.low("c/d"), rig.low("a/d")).unwrap();
    fs::rename(rig.low("a/n2"), rig.low("a/n3")).unwrap();
    fs::hard_link(rig.low("a/n4"), rig.low("a/n4-too")).unwrap();
    fs::write(rig.low("new"), b"new").unwrap();
    std::os::unix::fs::chown(rig.low("a/n9"), Some(5), Some(5)).unwrap();
    assert!(!differences(&rig).is_empty(), "nobody has told the index");
    scan(&rig);
    let wrong = differences(&rig);
    assert!(wrong.is_empty(), "{wrong:#?}");
    // A record that came below (a restore, say).
    rig.on(&["migrate"], &["a/n9"]);
    let record = xattr(&rig.low("a/n9"), RECORD).unwrap();
    fs::write(rig.low("copy"), b"123456789").unwrap();
    set_xattr(&rig.low("copy"), RECORD, &record).unwrap();
    scan(&rig);
    assert_eq!(state(&rig, "copy"), "stub");
}

#[test]
fn a_scan_that_was_stopped_goes_on() {
    let Some(rig) = Rig::new() else { return };
    for n in 0..40 {
        let dir = rig.low(format!("dir{n:02}"));
        fs::create_dir(&dir).unwrap();
        (0..10).for_each(|n| fs::write(dir.join(format!("n{n}")), b"x").unwrap());
    }
    let mountpoint = rig.mountpoint();
    let mountpoint = mountpoint.to_str().unwrap();
    // One thread, or all directories would be in hand at once.
    let mut slow = rig
        .command(&["--json", "index", "scan", "--rate", "100", "--threads", "1", mountpoint])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the scan to be under way", || status(&rig)["scanning"].as_u64().is_some_and(|met| met > 50));
    code(&rig.tierfs(&["index", "scan", mountpoint]), 3);
    code(&rig.tierfs(&["index", "scan", "--stop", mountpoint]), 0);
    assert_eq!(slow.wait().unwrap().code(), Some(3));
    let stopped = status(&rig);
    assert_eq!(stopped["state"], "stopped", "{stopped}");
    let known = stopped["inodes"].as_u64().unwrap();
    assert!((51..441).contains(&known), "{stopped}");
    let lines = rig.json(&["index", "scan", mountpoint], 0);
    let met = lines.last().unwrap()["files"].as_u64().unwrap();
    assert!(met <= 441 - 50, "it began anew: {met} inodes met after {known} were known");
    assert_eq!(status(&rig)["inodes"], 441);
    follows(&rig, "both halves");
}

#[test]
fn a_scan_beside_work_overwrites_nothing() {
    let Some(rig) = Rig::new() else { return };
    for n in 0..30 {
        let dir = rig.low(format!("dir{n:02}"));
        fs::create_dir(&dir).unwrap();
        (0..10).for_each(|n| fs::write(dir.join(format!("n{n}")), b"x").unwrap());
    }
    scan(&rig);
    let mountpoint = rig.mountpoint();
    let slow = ["--json", "index", "scan", "--rate", "150", "--threads", "1", mountpoint.to_str().unwrap()];
    let mut slow = rig.command(&slow).stdout(std::process::Stdio::null()).spawn().unwrap();
    wait_for("the scan to begin", || status(&rig)["scanning"].as_u64().is_some_and(|met| met > 30));
    let mut rounds = 0;
    while slow.try_wait().unwrap().is_none() {
        // Files go to where the scan was and come from where it was not, and the other way round.
        for (from, to) in [(rounds % 30, (rounds + 13) % 30), (29 - rounds % 30, (rounds + 5) % 30)] {
            let (old, new) = (format!("dir{from:02}/n{}", rounds % 10), format!("dir{to:02}/m{rounds}"));
            if from != to && rig.mnt(&old).exists() {
                fs::rename(rig.mnt(old), rig.mnt(new)).unwrap();
            }
        }
        rig.write(&format!("dir{:02}/new{rounds}", rounds * 7 % 30), 10 + rounds);
        rounds += 1;
        // Slower than the scan, which would otherwise never end.
        std::thread::sleep(Duration::from_millis(30));
    }
    assert_eq!(slow.wait().unwrap().code(), Some(0));
    assert!(rounds > 5, "{rounds} rounds beside the scan");
    follows(&rig, "the scan and the work beside it");
    assert_eq!(status(&rig)["stale"], false);
}

#[test]
fn what_a_dead_daemon_has_not_written_makes_the_index_stale() {
    let Some(mut rig) = Rig::new() else { return };
    rig.write("a", 10);
    scan(&rig);
    rig.umount();
    rig.mount();
    assert_eq!(status(&rig)["stale"], false, "an orderly end leaves no doubt");
    follows(&rig, "after a remount");
    rig.write("b", 10);
    rig.crash();
    rig.mount();
    assert_eq!(status(&rig)["stale"], true);
    assert_eq!(scan(&rig)["stale"], false);
    follows(&rig, "the scan");
    // Damaged or gone, it is made anew, and the mount comes up all the same.
    rig.umount();
    let shares = fs::read_dir(rig.state_dir().join("shares")).unwrap();
    let index = shares.map(|dir| dir.unwrap().path().join("index.sqlite")).next().unwrap();
    fs::write(&index, b"no database at all, but long enough to be read as the header of one").unwrap();
    rig.mount();
    assert_eq!(status(&rig)["state"], "empty");
    scan(&rig);
    follows(&rig, "the new index");
    let rebuilt = rig.json(&["index", "rebuild", rig.mountpoint().to_str().unwrap()], 0);
    assert!(rebuilt.iter().any(|line| line["reply"] == "index" && line["state"] == "complete"), "{rebuilt:?}");
    follows(&rig, "the rebuilt index");
}

#[test]
fn statements_can_only_read() {
    let Some(rig) = Rig::new() else { return };
    rig.write("a", 10);
    scan(&rig);
    let outside = rig.scratch("outside");
    for statement in [
        "DELETE FROM f",
        "UPDATE f SET size = 0",
        "CREATE TABLE t (a)",
        &format!("ATTACH '{}' AS other", outside.display()),
        "ATTACH ':memory:' AS other",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA cache_size",
        "SELECT load_extension('/tmp/x.so')",
        "SELECT 1; DELETE FROM f",
        "SELECT nonsense FROM files",
        "",
    ] {
        let refused = rig.tierfs(&["sql", statement]);
        assert_ne!(refused.status.code(), Some(0), "{statement}: {}", said(&refused));
    }
    assert!(!outside.exists());
    assert_eq!(sql(&rig, "SELECT count(*), max(size) FROM files WHERE kind = 'f'"), [[json!(1), json!(10)]]);
    // Not for everybody: it names everybody's files.
    let mut command = rig.command(&["sql", "SELECT path FROM files"]);
    std::os::unix::process::CommandExt::uid(&mut command, NOBODY);
    assert_eq!(command.output().unwrap().status.code(), Some(3));
}
