//! Members of packs that a job brings back together: by few requests, each one verified by itself, whatever becomes of the others or of the request.

use std::collections::BTreeMap;
use std::fs;
use std::process::Stdio;

use tierfs::gateway::faults::{Effect, Rule};

use crate::packs::{dies_at, members, pack_of, packs, populate, rest, same, setup};
use crate::rig::*;

/// A share whose `files` small files are stubs in packs, and a daemon that knows nothing of them yet.
fn stubs(files: usize) -> Option<(Rig, BTreeMap<String, Vec<u8>>)> {
    let mut rig = setup("1h").build()?;
    let files = populate(&rig, "d", files);
    rig.on(&["migrate", "-r"], &["d"]);
    rest(&rig);
    rig.umount();
    rig.mount();
    wait_for("the second probe", || rig.log().matches("the pair's endpoint answers").count() == 2);
    Some((rig, files))
}

fn states(rig: &Rig, files: &BTreeMap<String, Vec<u8>>, state: &str) -> usize {
    files.keys().filter(|name| rig.state(name) == state).count()
}

/// So many requests bring `files` back at most: one a pack and one for who is in none, with some more, for on a busy machine not all come at one time.
fn requests_max(rig: &Rig, files: &BTreeMap<String, Vec<u8>>) -> u64 {
    (packs(rig).len() + files.len() - members(rig, files).len() + files.len() / 8) as u64
}

#[test]
fn a_directory_comes_back_in_few_requests() {
    let Some((rig, files)) = stubs(160) else { return };
    let before: BTreeMap<_, _> = files.keys().map(|name| (name, mtime(&rig.mnt(name)))).collect();
    let (gets, max) = (rig.gets(), requests_max(&rig, &files));
    let told = rig.on(&["recall", "-r"], &["d"]);
    let gets = rig.gets() - gets;
    assert!(gets <= max, "{gets} requests for {} files, at most {max} were expected", files.len());
    assert!(told.contains("160 files"), "{told}");
    assert_eq!(states(&rig, &files, "dual"), files.len());
    same(&rig, &files);
    for (name, before) in before {
        assert_eq!(mtime(&rig.mnt(name)), before, "{name}");
    }
    let names: Vec<_> = files.keys().map(String::as_str).collect();
    rest(&rig);
    rig.settled(&names);
    // Every third one only: what is between them comes with them, or not.
    rig.on(&["release", "-r"], &["d"]);
    let some: Vec<_> = names.iter().copied().step_by(3).collect();
    let gets = rig.gets();
    rig.on(&["recall"], &some);
    assert!(rig.gets() - gets <= max + some.len() as u64 / 4, "{} requests", rig.gets() - gets);
    assert_eq!(states(&rig, &files, "dual"), some.len());
    same(&rig, &files);
}

fn mtime(path: &std::path::Path) -> (i64, i64) {
    use std::os::unix::fs::MetadataExt;
    let found = fs::metadata(path).unwrap();
    (found.mtime(), found.mtime_nsec())
}

#[test]
fn a_damaged_member_harms_itself_only() {
    let Some((rig, files)) = stubs(40) else { return };
    // Of what is fetched together one byte is wrong, and so is one of what each asks for by itself: only the first of each request is concerned.
    let (gets, rule) = (rig.gets(), rig.fault(Effect::CorruptReply { at: 0 }, "GET"));
    let job = rig.try_on(&["recall", "-r"], &["d"]);
    let gets = rig.gets() - gets;
    rig.faults.remove(rule);
    assert!(!job.status.success(), "{}", said(&job));
    let failed = states(&rig, &files, "stub");
    // Each that was damaged was asked for once more by itself.
    assert!(failed > 0 && failed < files.len() / 2 && gets < files.len() as u64, "{failed} failed, {gets} requests");
    assert_eq!(states(&rig, &files, "dual"), files.len() - failed);
    same(&rig, &files);
}

#[test]
fn each_is_asked_for_by_itself_where_it_cannot_be_done_together() {
    for effect in [Effect::InternalError, Effect::TruncateReply { after: 100 }, Effect::Reset] {
        let Some((rig, files)) = stubs(24) else { return };
        let gets = rig.gets();
        rig.faults.add(Rule::new(effect).method("GET").times(4));
        rig.on(&["recall", "-r"], &["d"]);
        assert!(rig.gets() > gets, "{effect:?}");
        assert_eq!(states(&rig, &files, "dual"), files.len(), "{effect:?}");
        same(&rig, &files);
    }
}

#[test]
fn who_waits_for_one_does_not_wait_for_the_others() {
    let Some((rig, files)) = stubs(30) else { return };
    let members: Vec<_> = members(&rig, &files).into_iter().map(str::to_owned).collect();
    let (read, ended) = (&members[3], &members[5]);
    let gets = rig.gets();
    let hang = rig.faults.add(Rule::new(Effect::Hang).method("GET").times(1));
    let mut command = rig.command(&["recall".as_ref(), "-r".as_ref(), rig.mnt("d").as_os_str()]);
    let job = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the first request", || rig.gets() > gets);
    // A reader has a request of his own.
    rig.same(read, &files[read]);
    // One is ended by hand, and then all.
    if rig.state(ended) == "stub" {
        rig.on(&["recall", "--cancel"], &[ended]);
    }
    rig.on(&["recall", "--cancel", "-r"], &["d"]);
    let output = job.wait_with_output().unwrap();
    assert!(!output.status.success() && said(&output).contains("somebody ended this recall"), "{}", said(&output));
    assert!(states(&rig, &files, "stub") > 0, "nothing came of what hung");
    rig.faults.remove(hang);
    wait_for("the transfers' end", || rig.info()["transfers"] == 0);
    same(&rig, &files);
    wait_for("all", || states(&rig, &files, "dual") == files.len());
}

#[test]
fn killed_anywhere_it_comes_back_whole() {
    let Some((mut rig, files)) = stubs(24) else { return };
    let points = [
        "recall.noted:3",
        "recall.fetched:5",
        "recall.written:9",
        "recall.dated:2",
        "recall.synced:1",
        "recall.recorded:7",
        "note.removed:4",
    ];
    for point in points {
        dies_at(&mut rig, point, |rig| rig.try_on(&["recall", "-r"], &["d"]));
        rig.mount();
        rig.on(&["recall", "-r"], &["d"]);
        same(&rig, &files);
        rest(&rig);
        rig.on(&["release", "-r"], &["d"]);
        assert_eq!(states(&rig, &files, "stub"), files.len(), "{point}");
    }
    assert!(pack_of(&rig, members(&rig, &files)[0]).starts_with(".tierfs/packs/"));
}
