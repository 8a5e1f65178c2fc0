//! `gc`: it finds what nobody names, and takes nothing that anybody may need.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value;
use tierfs::gateway::faults::{Effect, Rule};
use tierfs::ports::{ObjectSource, Remote, SourceError};
use tierfs::types::{ByteRange, ObjectKey};

use crate::rig::*;

/// Content of any length.
struct Fives;

#[async_trait]
impl ObjectSource for Fives {
    async fn read(&self, range: ByteRange) -> Result<Bytes, SourceError> {
        Ok(vec![5; range.len as usize].into())
    }
}

/// Puts an object into the bucket by another hand.
fn put(rig: &Rig, key: &str, share: Option<&str>) {
    let metadata: Vec<_> = share.iter().map(|share| ("tierfs-share".to_owned(), share.to_string())).collect();
    let key = ObjectKey(format!("pre/{key}"));
    rig.block_on(rig.remote().put(&key, 5, Arc::new(Fives), &metadata)).unwrap();
}

/// Begins an upload of many parts that nobody ends: its last request gets no answer, its client goes away, and cannot clean up.
pub fn leave_upload(rig: &Rig, remote: &impl Remote, key: &ObjectKey) {
    let rule = rig.faults.add(Rule::new(Effect::Hang).method("POST").url("uploadId="));
    let ending = rig.fault(Effect::InternalError, "DELETE");
    rig.block_on(async {
        let upload = remote.put(key, 17 << 20, Arc::new(Fives), &[]);
        tokio::pin!(upload);
        while rig.faults.hits(rule) == 0 {
            let _ = tokio::time::timeout(Duration::from_millis(20), &mut upload).await;
        }
    });
    wait_for("the attempts to clean up", || rig.faults.hits(ending) == 2);
    rig.faults.clear();
}

/// The keys (without the pair's prefix) that a run found, and what it left alone by why.
struct Found {
    orphans: BTreeSet<String>,
    kept: BTreeMap<String, u64>,
    all: Vec<Value>,
}

#[track_caller]
fn gc(rig: &Rig, args: &[&str]) -> Found {
    let mountpoint = rig.mountpoint();
    let all = rig.json(&[&["gc", "--older-than", "0"], args, &[mountpoint.to_str().unwrap()]].concat(), 0);
    let keys = all.iter().filter(|line| line["reply"] == "orphan").map(|line| line["key"].as_str().unwrap());
    let orphans: BTreeSet<String> = keys.map(|key| key.strip_prefix("pre/").unwrap().to_owned()).collect();
    let done = all.last().unwrap();
    assert_eq!((done["reply"].as_str(), done["files"].as_u64()), (Some("done"), Some(orphans.len() as u64)));
    let kept = done["kept"].as_object().unwrap();
    let kept = kept.iter().map(|(why, total)| (why.clone(), total["files"].as_u64().unwrap())).collect();
    Found { orphans, kept, all }
}

/// The file's object, without the pair's prefix.
fn key(rig: &Rig, name: &str) -> String {
    rig.record(name).unwrap().object.unwrap().key.0.strip_prefix("pre/").unwrap().to_owned()
}

/// Removes a file below the mount: nobody notes that its object is no longer needed.
fn remove_below(rig: &Rig, name: &str) -> String {
    let key = key(rig, name);
    // An upload's note outlives the command, and would become a deletion.
    wait_for("the notes' end", || rig.info()["intents"][0] == 0);
    fs::remove_file(rig.low(name)).unwrap();
    key
}

fn set<'a>(keys: impl IntoIterator<Item = &'a String>) -> BTreeSet<String> {
    keys.into_iter().cloned().collect()
}

#[test]
fn what_nobody_names_goes_and_all_else_stays_on_ext4() {
    what_nobody_names_goes(Setup::default());
}

#[test]
fn what_nobody_names_goes_and_all_else_stays_on_xfs() {
    what_nobody_names_goes(Setup::xfs());
}

fn what_nobody_names_goes(setup: Setup) {
    let Some(rig) = setup.build() else { return };
    rig.quiet();
    let contents: Vec<_> = ["stub", "dual", "large"].map(|name| (name, rig.write(name, 3 * CHUNK))).into();
    for name in ["gone", "gone large", "changed"] {
        rig.write(name, if name == "gone" { 100 } else { 3 * CHUNK });
    }
    rig.on(&["migrate", "-r"], &[""]);
    rig.on(&["recall"], &["dual", "changed"]);
    // Resident again; its object is noted for deletion and goes by itself.
    fs::write(rig.mnt("changed"), b"x").unwrap();
    rig.settled(&["stub", "dual", "large", "gone", "gone large"]);
    let orphans = [remove_below(&rig, "gone"), remove_below(&rig, "gone large")];
    // A manifest whose object was lost.
    put(&rig, "half@77-77.5.manifest", None);
    for foreign in ["readme", "a@b", ".tierfs/trees/1", ".tierfs/x@1-2.3", "other@12-13.14", "unmarked@12-13.15"] {
        put(&rig, foreign, (foreign.starts_with("other")).then_some("0123456789abcdef"));
    }
    let before = all_objects(&rig);
    let found = gc(&rig, &["--dry-run"]);
    assert_eq!(found.orphans, set(&orphans));
    assert_eq!(found.kept["named by a file"], 3);
    // The probe's objects may be there at the moment.
    assert!(found.kept["not an object of a file"] >= 4, "{:?}", found.kept);
    assert_eq!(found.kept["of another share (0123456789abcdef)"], 1);
    assert_eq!(found.kept["of an unknown share (unmarked)"], 2, "object and manifest without a mark");
    assert!(found.all.iter().any(|line| line["bytes"] == 100 && line["noted"] == false), "{:?}", found.all);
    assert_eq!((all_objects(&rig), &rig.info()["intents"][1]), (before.clone(), &Value::from(0)), "nothing was done");
    // A day is the least by default.
    let mountpoint = rig.mountpoint();
    let young = rig.json(&["gc", "--dry-run", mountpoint.to_str().unwrap()], 0);
    assert_eq!(young.last().unwrap()["files"], 0);

    assert_eq!(gc(&rig, &[]).orphans, set(&orphans));
    let large = format!("{}.manifest", orphans[1]);
    wait_for("the orphans' end", || rig.info()["intents"][1] == 0);
    let taken: BTreeSet<_> = before.difference(&all_objects(&rig)).cloned().collect();
    assert_eq!(taken, set([&orphans[0], &orphans[1], &large]));
    assert!(gc(&rig, &[]).orphans.is_empty());
    contents.iter().for_each(|(name, content)| rig.same(name, content));
    // For people: a line each, and why the others stay.
    let said = rig.on(&["gc", "--dry-run", "--older-than", "0"], &[""]);
    assert!(said.contains("found 0 objects") && said.contains("named by a file"), "{said}");
}

/// With those below `.tierfs/`, unlike [`Rig::objects`].
fn all_objects(rig: &Rig) -> BTreeSet<String> {
    let page = rig.block_on(rig.remote().list("", None)).unwrap();
    let names = page.into_iter().map(|(key, _)| key.0.strip_prefix("pre/").unwrap().to_owned());
    names.filter(|key| !key.starts_with(".tierfs-probe")).collect()
}

#[test]
fn orphans_are_kept_for_the_pairs_retention() {
    let Some(mut rig) = (Setup { retention: "1h", ..Setup::default() }).build() else { return };
    for name in ["gone", "changed", "removed"] {
        rig.write(name, 100);
    }
    rig.on(&["migrate", "-r"], &[""]);
    fs::write(rig.mnt("changed"), b"x").unwrap();
    fs::remove_file(rig.mnt("removed")).unwrap();
    let orphan = remove_below(&rig, "gone");
    wait_for("the notes", || rig.info()["intents"] == serde_json::json!([0, 2]));
    let objects = rig.objects();
    let found = gc(&rig, &[]);
    assert_eq!((found.orphans, found.kept["noted in the journal"]), (set([&orphan]), 2));
    assert_eq!(rig.info()["intents"], serde_json::json!([0, 3]));
    // It is remembered by now, also after a restart.
    for _ in 0..2 {
        let found = gc(&rig, &[]);
        assert_eq!((found.orphans.len(), found.kept["noted in the journal"]), (0, 3));
        rig.umount();
        rig.mount();
    }
    assert_eq!(rig.objects(), objects);
}

#[test]
fn an_upload_that_runs_is_left_alone() {
    let Some(mut rig) = Rig::new() else { return };
    rig.quiet();
    let content = rig.write("large", 5 * CHUNK);
    // The object is there, its record is not yet.
    let rule = rig.faults.add(Rule::new(Effect::Hang).method("PUT").url(".manifest"));
    // And one of many parts, in the middle.
    let huge = rig.write("huge", 17 << 20);
    let part = rig.faults.add(Rule::new(Effect::Hang).method("PUT").url("partNumber=2"));
    let mut job = rig.command(&["migrate".as_ref(), rig.mnt("large").as_os_str(), rig.mnt("huge").as_os_str()]);
    let mut job = job.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for("the object", || !rig.objects().is_empty() && rig.faults.hits(rule) > 0);
    wait_for("the parts", || rig.faults.hits(part) > 0);
    let found = gc(&rig, &[]);
    assert_eq!((found.orphans.len(), found.kept.get("noted in the journal")), (0, Some(&1)), "{:?}", found.kept);
    let unfinished = || rig.block_on(rig.remote().unfinished_uploads()).unwrap().len();
    assert_eq!(unfinished(), 1);
    // Left by a crash, it is the journal's to delete.
    rig.crash();
    job.wait().unwrap();
    rig.faults.clear();
    rig.mount();
    let unfinished = || rig.block_on(rig.remote().unfinished_uploads()).unwrap().len();
    wait_for("the end of what was left", || unfinished() == 0);
    for (name, content) in [("large", &content), ("huge", &huge)] {
        rig.migrate(name);
        rig.same(name, content);
    }
    rig.settled(&["large", "huge"]);
}

/// Makes a stub by hand below the mount, as a restored backup would: the inode in its object's key is another.
fn restore_below(rig: &Rig, from: &str, to: &str) {
    let size = fs::metadata(rig.low(from)).unwrap().len();
    fs::File::create(rig.low(to)).unwrap().set_len(size).unwrap();
    set_xattr(&rig.low(to), RECORD, &xattr(&rig.low(from), RECORD).unwrap()).unwrap();
    set_mtime(&rig.low(to), 1_600_000_000, 123_456_789);
}

#[test]
fn a_stub_restored_from_a_backup_keeps_its_object_wherever_it_is_moved() {
    let Some(rig) = Rig::new() else { return };
    rig.quiet();
    let content = rig.write("original", 2 * CHUNK);
    rig.migrate("original");
    for dir in ["a", "b"] {
        fs::create_dir(rig.mnt(dir)).unwrap();
        // So that time passes between the looks at the one and at the other.
        (0..300).for_each(|n| fs::write(rig.low(format!("{dir}/{n}")), b"x").unwrap());
    }
    restore_below(&rig, "original", "a/restored");
    remove_below(&rig, "original");
    // Other orphans, so that there is something to look for in the share.
    rig.write("gone", 100);
    rig.migrate("gone");
    let gone = remove_below(&rig, "gone");
    let found = gc(&rig, &["--dry-run"]);
    assert_eq!((&found.orphans, found.kept["named by a file"]), (&set([&gone]), 1));
    // A walk over the share meets it in neither directory, if it is always in the other one; alone or with its directory.
    let stop = Arc::new(AtomicBool::new(false));
    let (top, end) = (rig.mountpoint(), stop.clone());
    let mover = std::thread::spawn(move || {
        fs::create_dir(top.join("a/sub")).unwrap();
        fs::rename(top.join("a/restored"), top.join("a/sub/restored")).unwrap();
        let mut moves = 0u64;
        while !end.load(Ordering::Relaxed) {
            for (from, to) in [("a/sub", "b/sub"), ("b/sub/restored", "b/restored")] {
                fs::rename(top.join(from), top.join(to)).unwrap();
            }
            for (from, to) in [("b/restored", "a/restored"), ("b/sub", "a/sub"), ("a/restored", "a/sub/restored")] {
                fs::rename(top.join(from), top.join(to)).unwrap();
            }
            moves += 5;
        }
        moves
    });
    let runs: Vec<_> = (0..30).map(|_| gc(&rig, &["--dry-run"]).orphans).collect();
    stop.store(true, Ordering::Relaxed);
    let moves = mover.join().unwrap();
    assert!(moves > 100, "{moves} moves");
    for found in runs {
        assert_eq!(found, set([&gone]));
    }
    rig.same("a/sub/restored", &content);
}

#[test]
fn a_record_that_cannot_be_read_may_name_anything() {
    let Some(rig) = Rig::new() else { return };
    rig.quiet();
    for name in ["gone", "damaged"] {
        rig.write(name, 100);
        rig.migrate(name);
    }
    let (orphan, unread) = (remove_below(&rig, "gone"), key(&rig, "damaged"));
    let mut record = xattr(&rig.low("damaged"), RECORD).unwrap();
    record[20] ^= 1;
    set_xattr(&rig.low("damaged"), RECORD, &record).unwrap();
    let objects = rig.objects();
    let output = rig.try_on(&["gc", "--older-than", "0"], &[""]);
    code(&output, 3);
    let text = said(&output);
    assert!(text.contains("damaged") && text.contains("may name any of 1 seeming orphans"), "{text}");
    assert_eq!((rig.objects(), &rig.info()["intents"][1]), (objects, &Value::from(0)));
    let output = rig.try_on(&["--json", "gc", "--dry-run", "--older-than", "0"], &[""]);
    code(&output, 1);
    assert!(said(&output).contains(&orphan) && !said(&output).contains(&format!("orphan\",\"key\":\"pre/{unread}")));
    // Away with it, and all is clear; its object is an orphan by then.
    fs::remove_file(rig.mnt("damaged")).unwrap();
    assert_eq!(gc(&rig, &[]).orphans, set([&orphan, &unread]));
    wait_for("the orphans' end", || rig.objects().is_empty());
}

#[test]
fn another_share_is_another_whatever_its_inodes_are() {
    let Some(mut rig) = Rig::new() else { return };
    for name in ["named", "gone"] {
        rig.write(name, 100);
        rig.migrate(name);
    }
    let orphan = remove_below(&rig, "gone");
    rig.umount();
    // As seen from a copy of the filesystem on another machine, or after the state directory was lost: nobody can tell which.
    fs::remove_dir_all(rig.scratch("state/shares")).unwrap();
    rig.mount();
    rig.quiet();
    let objects = rig.objects();
    let found = gc(&rig, &[]);
    assert!(found.orphans.is_empty());
    let why = found.kept.keys().find(|why| why.starts_with("of another share")).expect("it is told").clone();
    assert_eq!((found.kept[&why], found.kept["named by a file"]), (1, 1));
    let share = why.strip_prefix("of another share (").unwrap().strip_suffix(')').unwrap();
    assert!(gc(&rig, &["--adopt", "0000000000000000", "--adopt", "unmarked"]).orphans.is_empty());
    assert_eq!(rig.objects(), objects);
    assert_eq!(gc(&rig, &["--adopt", share]).orphans, set([&orphan]));
    wait_for("the orphan's end", || !rig.objects().contains(&orphan));
    rig.settled(&["named"]);
}

#[test]
fn uploads_that_nobody_ended_are_ended() {
    let Some(rig) = Rig::new() else { return };
    rig.quiet();
    let remote = rig.remote();
    let lost = ObjectKey("pre/lost@12-13.14".into());
    let foreign = ObjectKey("pre/of somebody else".into());
    for key in [&lost, &foreign] {
        leave_upload(&rig, &remote, key);
    }
    // By a client that knows nothing of them.
    let unfinished = || rig.block_on(rig.remote().unfinished_uploads()).unwrap();
    assert_eq!(unfinished(), [lost.clone(), foreign.clone()]);
    assert_eq!(gc(&rig, &["--dry-run"]).orphans, set([&"lost@12-13.14".to_owned()]));
    assert_eq!(unfinished().len(), 2);
    gc(&rig, &[]);
    assert_eq!(unfinished(), [foreign]);
}

#[test]
fn only_root_may_collect() {
    let Some(rig) = Rig::new() else { return };
    for command in ["gc --dry-run", "failed list", "failed retry --all", "failed drop"] {
        let place = if command.contains("--all") { String::new() } else { rig.mountpoint().display().to_string() };
        let script = format!("{} {command} {place}", env!("CARGO_BIN_EXE_tierfs"));
        let output = as_nobody(std::path::Path::new("/"), &script);
        assert!(!output.status.success() && said(&output).contains("root"), "{command}: {}", said(&output));
    }
    // And nothing but a mount of ours.
    let output = rig.tierfs(&["gc", "/"]);
    code(&output, 3);
    assert!(said(&output).contains("not on a tierfs mount"), "{}", said(&output));
}
