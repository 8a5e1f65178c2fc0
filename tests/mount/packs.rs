//! Packs: small files that are archived together share an object, and each of them comes back, goes, and is looked after by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::Value;
use tierfs::gateway::faults::Effect;
use tierfs::record::{Record, place_of};

use crate::rig::*;

const PACKED: [&str; 2] = ["--pack", "true"];

pub fn setup(retention: &'static str) -> Setup {
    // One process reads them all.
    Setup { retention, pair: PACKED.to_vec(), mount: vec!["-o", "recall_scan=off"], ..Setup::default() }
}

/// Small files of many lengths in `dir`, by name.
pub fn populate(rig: &Rig, dir: &str, files: usize) -> BTreeMap<String, Vec<u8>> {
    fs::create_dir_all(rig.mnt(dir)).unwrap();
    let name = |n: usize| format!("{dir}/f{n}");
    (0..files).map(|n| (name(n), rig.write(&name(n), 1 + n * 997 % (CHUNK - 1)))).collect()
}

/// Keys of all packs, without the pair's prefix.
pub fn packs(rig: &Rig) -> BTreeSet<String> {
    rig.all_objects().into_iter().filter(|key| key.starts_with(".tierfs/packs/")).collect()
}

/// The pack that a file's content is in, without the pair's prefix.
#[track_caller]
pub fn pack_of(rig: &Rig, name: &str) -> String {
    let record = rig.record(name).unwrap();
    let object = record.object.as_ref().unwrap();
    let place = place_of(&object.key).unwrap_or_else(|| panic!("{name} is not in a pack: {}", object.key));
    assert_eq!((place.range.len, object.chunks(), record.encode()[4]), (object.len, 1, 5), "{name}");
    place.pack.key().0.strip_prefix("pre/").unwrap().to_owned()
}

/// Those of the files that are in packs. Who comes late, on a busy machine, may have an object of its own.
#[track_caller]
pub fn members<'a>(rig: &Rig, files: &'a BTreeMap<String, Vec<u8>>) -> Vec<&'a str> {
    let in_pack = |name: &&String| {
        let object = rig.record(name).unwrap().object;
        object.is_some_and(|object| place_of(&object.key).is_some())
    };
    let members: Vec<_> = files.keys().filter(in_pack).map(String::as_str).collect();
    assert!(members.len() * 2 >= files.len(), "{} of {} files are in packs", members.len(), files.len());
    members
}

pub fn same(rig: &Rig, files: &BTreeMap<String, Vec<u8>>) {
    files.iter().for_each(|(name, content)| rig.same(name, content));
}

/// Waits until the transfers' notes are gone: the daemon takes them away behind the answer.
pub fn rest(rig: &Rig) {
    wait_for("the notes' end", || rig.info()["intents"][0] == 0);
}

/// What `gc --json` told: packs by what became of them, and the totals.
#[track_caller]
fn gc(rig: &Rig, more: &[&str]) -> (Vec<(String, String)>, Value) {
    let mountpoint = rig.mountpoint();
    let all = rig.json(&[&["gc", "--older-than", "0"], more, &[mountpoint.to_str().unwrap()]].concat(), 0);
    let text = |value: &Value| value.as_str().unwrap().trim_start_matches("pre/").to_owned();
    let told =
        all.iter().filter(|line| line["reply"] == "orphan").map(|line| (text(&line["kind"]), text(&line["key"])));
    (told.collect(), all.last().unwrap()["packs"].clone())
}

#[test]
fn small_files_share_objects_on_ext4() {
    small_files_share_objects(setup("1h"));
}

#[test]
fn small_files_share_objects_on_xfs() {
    small_files_share_objects(Setup { size: Setup::xfs().size, kind: "xfs", ..setup("1h") });
}

fn small_files_share_objects(setup: Setup) {
    let Some(mut rig) = setup.build() else { return };
    rig.quiet();
    let mut files = populate(&rig, "d", 60);
    files.insert("large".into(), rig.write("large", 3 * CHUNK));
    fs::write(rig.mnt("empty"), b"").unwrap();
    let before: BTreeMap<_, _> = files.keys().map(|name| (name, fs::metadata(rig.mnt(name)).unwrap())).collect();
    let puts = rig.requests().method("PUT");
    rig.on(&["migrate", "-r"], &[""]);
    let puts = rig.requests().method("PUT") - puts;
    let packs = packs(&rig);
    let packed = members(&rig, &files);
    assert_eq!(rig.objects().len(), files.len() - packed.len() + 1, "one each, and the large one's manifest");
    assert_eq!(puts, (packs.len() + files.len() - packed.len() + 1) as u64);
    let named: BTreeSet<_> = packed.iter().map(|name| pack_of(&rig, name)).collect();
    assert_eq!(named, packs);
    for (name, before) in before {
        let after = fs::metadata(rig.mnt(name)).unwrap();
        assert_eq!(rig.state(name), "stub");
        assert_eq!((after.len(), after.mtime(), after.ino()), (before.len(), before.mtime(), before.ino()), "{name}");
    }
    let said = rig.on(&["verify", "-r"], &[""]);
    assert!(said.contains("verified 61 files"), "{said}");
    let said = rig.on(&["check", "-r"], &[""]);
    assert!(said.contains("checked 61 files"), "{said}");
    // A part, of a daemon that knows nothing yet.
    rig.umount();
    rig.mount();
    wait_for("the second probe", || rig.log().matches("the pair's endpoint answers").count() == 2);
    let gets = rig.gets();
    for (name, content) in files.iter().filter(|(name, _)| *name != "large") {
        rig.same(name, content);
    }
    assert_eq!(rig.gets() - gets, 60, "no index is read for a read");
    rig.same("large", &files["large"]);
    wait_for("the recalls' end", || files.keys().all(|name| rig.state(name) == "dual"));
    // Released again, no copy is made anew.
    rig.on(&["release", "-r"], &["d"]);
    rig.on(&["recall", "-r"], &["d"]);
    same(&rig, &files);
    assert_eq!(self::packs(&rig), packs);
    // Written to as a stub, a member is what was written; the others stay.
    rig.on(&["release", "-r"], &["d"]);
    let name = packed[packed.len() - 1].to_owned();
    let name = name.as_str();
    let content = files.get_mut(name).unwrap();
    write_at(&rig.mnt(name), 10, b"changed");
    content[10..17].copy_from_slice(b"changed");
    rig.same(name, content);
    rig.on(&["migrate", "-r"], &[""]);
    same(&rig, &files);
    assert!(packs.is_subset(&self::packs(&rig)));
}

fn write_at(path: &std::path::Path, offset: u64, data: &[u8]) {
    use std::os::unix::fs::FileExt;
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(data, offset).unwrap();
}

#[test]
fn one_alone_gets_an_object_of_its_own() {
    let Some(rig) = setup("1h").build() else { return };
    let content = rig.write("one", 5_000);
    rig.migrate("one");
    assert_eq!((rig.objects().len(), packs(&rig).len()), (1, 0));
    rig.same("one", &content);
}

#[test]
fn a_removed_member_takes_nothing_from_the_others_and_can_come_back() {
    let Some(mut rig) = setup("1h").build() else { return };
    let files = populate(&rig, "d", 20);
    for name in files.keys() {
        std::os::unix::fs::chown(rig.mnt(name), Some(1234), Some(4321)).unwrap();
    }
    rig.on(&["migrate", "-r"], &["d"]);
    let packs = packs(&rig);
    let packed = members(&rig, &files);
    let (gone, changed, stays) = (packed[0], packed[1], packed[2]);
    let facts = |rig: &Rig, name: &str| {
        let m = fs::metadata(rig.mnt(name)).unwrap();
        (m.mode(), m.uid(), m.gid(), m.len(), m.mtime(), m.mtime_nsec())
    };
    let before = facts(&rig, gone);
    fs::remove_file(rig.mnt(gone)).unwrap();
    fs::write(rig.mnt(changed), b"new").unwrap();
    let said = rig.on(&["undelete"], &[gone]);
    assert!(said.contains("brought back 1 file"), "{said}");
    wait_for("the kernel's new knowledge", || rig.mnt(gone).exists());
    assert_eq!((facts(&rig, gone), rig.state(gone)), (before, "stub".into()));
    // What was brought back stays, and so does everything else, whatever becomes due.
    rig.expire();
    rest(&rig);
    wait_for("due deletions", || rig.info()["intents"][1] == 0);
    let (told, totals) = gc(&rig, &[]);
    assert_eq!((told, totals["deleted"].as_u64()), (vec![], Some(0)));
    assert_eq!(self::packs(&rig), packs);
    for (name, content) in files.iter().filter(|(name, _)| *name != changed) {
        rig.same(name, content);
    }
    rig.on(&["verify"], &[gone, stays]);
    // Removed once more, it has come back from another inode than its key's.
    fs::remove_file(rig.mnt(gone)).unwrap();
    rig.on(&["undelete"], &[gone]);
    rig.same(gone, &files[gone]);
}

#[test]
fn a_pack_goes_when_nobody_needs_anything_of_it() {
    let Some(mut rig) = setup("1h").build() else { return };
    let files = populate(&rig, "d", 12);
    rig.on(&["migrate", "-r"], &["d"]);
    rest(&rig);
    let packs = packs(&rig);
    let packed = members(&rig, &files);
    let sizes: u64 = packed.iter().map(|name| files[*name].len() as u64).sum();
    let (told, totals) = gc(&rig, &["--dry-run"]);
    assert_eq!(
        (told, totals["live_bytes"].as_u64(), totals["objects"].as_u64()),
        (vec![], Some(sizes), Some(packs.len() as u64))
    );
    let last = packed[0];
    for name in files.keys().filter(|name| *name != last) {
        fs::remove_file(rig.mnt(name)).unwrap();
    }
    // Kept for undelete, and then for the one that is left.
    for _ in 0..2 {
        let (told, totals) = gc(&rig, &[]);
        assert!(told.iter().all(|(kind, _)| kind == "pack"), "{told:?}");
        assert_eq!(totals["live_bytes"].as_u64(), Some(files[last].len() as u64));
        rig.expire();
        wait_for("due deletions", || rig.info()["intents"][1] == 0);
    }
    rig.same(last, &files[last]);
    wait_for("the recall's end", || rig.state(last) == "dual");
    rig.migrate(last);
    rest(&rig);
    let kept = pack_of(&rig, last);
    // Named by a record that was moved while nobody looked, below another directory.
    fs::create_dir(rig.mnt("e")).unwrap();
    fs::rename(rig.mnt(last), rig.mnt("e/moved")).unwrap();
    let (told, _) = gc(&rig, &[]);
    assert!(told.iter().all(|(_, key)| *key != kept), "{told:?}");
    fs::remove_file(rig.mnt("e/moved")).unwrap();
    assert_eq!(gc(&rig, &[]).0.iter().filter(|(_, key)| *key == kept).count(), 0, "it can be undeleted");
    rig.expire();
    wait_for("due deletions", || rig.info()["intents"][1] == 0);
    // Found needless by one run; deleted by one that comes later than the retention.
    for _ in 0..2 {
        let (told, totals) = gc(&rig, &[]);
        assert!(told.contains(&("pack".into(), kept.clone())), "{told:?}");
        assert_eq!((totals["live_bytes"].as_u64(), totals["dead_bytes"].as_u64()), (Some(0), totals["bytes"].as_u64()));
        assert!(self::packs(&rig).contains(&kept));
    }
    rig.expire();
    let (told, _) = gc(&rig, &["--dry-run"]);
    assert!(told.contains(&("pack".into(), kept.clone())), "{told:?}");
    // A record that cannot be read may name anything.
    fs::write(rig.mnt("damaged"), b"x").unwrap();
    set_xattr(&rig.low("damaged"), RECORD, b"rubbish").unwrap();
    let mountpoint = rig.mountpoint();
    let refused = rig.tierfs(&["gc", "--older-than", "0", mountpoint.to_str().unwrap()]);
    assert!(!refused.status.success() && said(&refused).contains("may name any of"), "{}", said(&refused));
    assert!(self::packs(&rig).contains(&kept));
    fs::remove_file(rig.low("damaged")).unwrap();
    // Young ones are left alone.
    let young = rig.json(&["gc", mountpoint.to_str().unwrap()], 0);
    assert_eq!(young.last().unwrap()["packs"]["needless"], 0);
    assert!(self::packs(&rig).contains(&kept));
    // That run has forgotten it.
    let (told, _) = gc(&rig, &[]);
    assert!(told.contains(&("pack".into(), kept.clone())), "{told:?}");
    rig.expire();
    let (told, totals) = gc(&rig, &[]);
    assert!(told.contains(&("deleted pack".into(), kept.clone())), "{told:?}");
    assert_eq!((totals["deleted"].as_u64(), self::packs(&rig).len()), (totals["objects"].as_u64(), 0));
}

#[test]
fn damage_is_found_and_never_served() {
    let Some(mut rig) = setup("1h").build() else { return };
    let files = populate(&rig, "d", 10);
    rig.on(&["migrate", "-r", "--archive-only"], &["d"]);
    let packed = members(&rig, &files);
    let (first, second) = (packed[0], packed[1]);
    rig.on(&["release"], &[first, second]);
    rest(&rig);
    let rule = rig.fault(Effect::CorruptReply { at: 0 }, "GET");
    let bad = rig.try_on(&["verify"], &[first]);
    assert!(!bad.status.success() && said(&bad).contains("checksum"), "{}", said(&bad));
    fs::read(rig.mnt(first)).expect_err("it is not what was archived");
    rig.faults.remove(rule);
    rig.same(first, &files[first]);
    // The pack is lost: members that are whole here count as they are again.
    rig.umount();
    rig.stop_server();
    let pack = pack_of(&rig, packed[2]);
    let lost: Vec<_> = packed.into_iter().filter(|name| pack_of(&rig, name) == pack).collect();
    rig.remove_object(&format!("pre/{pack}"));
    rig.start_server();
    rig.mount();
    let bad = rig.try_on(&["check", "-r"], &["d"]);
    assert!(!bad.status.success(), "{}", said(&bad));
    rig.try_on(&["check", "-r", "--repair"], &["d"]);
    for name in lost.into_iter().filter(|name| ![first, second].contains(name)) {
        assert_eq!(rig.state(name), "resident", "{name}");
        rig.same(name, &files[name]);
    }
}

/// A daemon of its own dies at `point` of a job; what it leaves is not mounted.
pub fn dies_at(rig: &mut Rig, point: &str, job: impl FnOnce(&Rig) -> std::process::Output) {
    rig.umount();
    rig.kill_at = Some(point.into());
    rig.mount();
    let job = job(rig);
    if !point.starts_with("note.") {
        assert!(!job.status.success(), "{point}: {}", said(&job));
    }
    let daemon = rig.daemon.unwrap();
    wait_for("the daemon's death", || !alive(daemon));
    rig.crash();
    rig.kill_at = None;
}

#[test]
fn killed_anywhere_it_loses_nothing() {
    let Some(mut rig) = setup("1h").build() else { return };
    let files = populate(&rig, "d", 16);
    let points = [
        "pack.noted",
        "pack.stored",
        "pack.confirmed",
        "archive.recorded:1",
        "archive.recorded:7",
        "release.recorded:5",
        "note.removed:3",
    ];
    for point in points {
        dies_at(&mut rig, point, |rig| rig.tierfs(&["migrate", "-r", rig.mountpoint().to_str().unwrap()]));
        // Whatever a record names is there, and is right.
        for name in files.keys() {
            let Some(Record { object: Some(object), .. }) = rig.record(name) else { continue };
            let key = place_of(&object.key).map_or(object.key, |place| place.pack.key()).0;
            assert!(rig.all_objects().contains(key.strip_prefix("pre/").unwrap()), "{point}: {name} names {key}");
        }
        rig.mount();
        same(&rig, &files);
        rig.on(&["verify", "-r"], &["d"]);
        // Resident again, by a change of each, so that all is archived anew.
        for (name, content) in &files {
            fs::write(rig.mnt(name), content).unwrap();
            set_mtime(&rig.mnt(name), 1_600_000_000, 5);
        }
        wait_for("uploads' notes to end", || rig.info()["intents"][0] == 0);
    }
    // What the deaths have left is nobody's.
    rig.on(&["migrate", "-r"], &["d"]);
    rest(&rig);
    let needed: BTreeSet<_> = members(&rig, &files).into_iter().map(|name| pack_of(&rig, name)).collect();
    rig.expire();
    wait_for("due deletions", || rig.info()["intents"][1] == 0);
    gc(&rig, &[]);
    for point in ["sweep.synced", "sweep.deleted"] {
        rig.expire();
        rig.umount();
        rig.kill_at = Some(point.into());
        rig.mount();
        let mountpoint = rig.mountpoint();
        let job = rig.tierfs(&["gc", "--older-than", "0", mountpoint.to_str().unwrap()]);
        assert!(!job.status.success(), "{point}: {}", said(&job));
        let daemon = rig.daemon.unwrap();
        wait_for("the daemon's death", || !alive(daemon));
        rig.crash();
        rig.kill_at = None;
        rig.mount();
        assert!(packs(&rig).is_superset(&needed), "{point}");
    }
    gc(&rig, &[]);
    assert_eq!(packs(&rig), needed);
    same(&rig, &files);
}

#[test]
fn what_is_written_meanwhile_is_not_what_was_packed() {
    let Some(rig) = setup("1h").build() else { return };
    rig.quiet();
    let files = populate(&rig, "d", 10);
    rig.fault(Effect::Delay(std::time::Duration::from_millis(500)), "PUT");
    let mountpoint = rig.mountpoint();
    let args = ["migrate", "-r", mountpoint.to_str().unwrap()];
    let mut job =
        rig.command(&args).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    wait_for("notes", || rig.info()["intents"][0].as_u64() > Some(5));
    fs::write(rig.mnt("d/f3"), b"written meanwhile").unwrap();
    fs::remove_file(rig.mnt("d/f4")).unwrap();
    job.wait().unwrap();
    rig.faults.clear();
    rig.same("d/f3", b"written meanwhile");
    for (name, content) in files.iter().filter(|(name, _)| !["d/f3", "d/f4"].contains(&name.as_str())) {
        assert_eq!(rig.state(name), "stub", "{name}");
        rig.same(name, content);
    }
    rest(&rig);
    let settled: Vec<_> = files.keys().map(String::as_str).filter(|name| *name != "d/f4").collect();
    rig.settled(&settled);
}

#[test]
fn a_store_that_fails_leaves_files_as_they_are() {
    let Some(rig) = setup("0s").build() else { return };
    rig.quiet();
    let files = populate(&rig, "d", 8);
    rig.fault(Effect::InternalError, "PUT");
    let job = rig.try_on(&["migrate", "-r"], &["d"]);
    assert!(!job.status.success(), "{}", said(&job));
    rig.faults.clear();
    for (name, content) in &files {
        assert_eq!(rig.state(name), "resident");
        rig.same(name, content);
    }
    wait_for("the notes' end", || rig.info()["intents"] == serde_json::json!([0, 0]));
    rig.on(&["migrate", "-r"], &["d"]);
    same(&rig, &files);
}
