//! Stubs of which some chunks are local: what a read moves, what stays, what a restart knows of it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use tierfs::gateway::faults::{Effect, Rule};

use crate::rig::*;

/// Bytes of content that the endpoint was asked for while `work` runs, manifests included.
fn fetched(rig: &Rig, work: impl FnOnce()) -> u64 {
    let before = rig.requests().content;
    work();
    rig.requests().content - before
}

/// More than any manifest here has.
const MANIFEST: u64 = 40 << 10;

fn read_at(rig: &Rig, name: &str, offset: usize, len: usize) -> Vec<u8> {
    let mut found = vec![0; len];
    File::open(rig.mnt(name)).unwrap().read_exact_at(&mut found, offset as u64).unwrap();
    found
}

/// Has the kernel read nothing but what is asked for.
fn direct(rig: &Rig, name: &str, offset: usize, len: usize) -> Vec<u8> {
    let file = rustix::fs::open(rig.mnt(name), rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    let mut found = vec![0; len];
    File::from(file).read_exact_at(&mut found, offset as u64).unwrap();
    found
}

fn stub(rig: &Rig, name: &str, len: usize) -> Vec<u8> {
    let content = rig.write(name, len);
    rig.migrate(name);
    assert_eq!(rig.state(name), "stub");
    content
}

fn rests(rig: &Rig, name: &str, state: &str) {
    wait_for("the recall's end", || rig.state(name) == state);
}

#[test]
fn a_read_moves_the_chunks_that_it_touches() {
    let Some(rig) = Rig::new() else { return };
    let content = stub(&rig, "a", 512 * CHUNK);
    let mtime = fs::metadata(rig.mnt("a")).unwrap().modified().unwrap();
    for (n, at) in [5 * CHUNK + 7, 400 * CHUNK - 1, 511 * CHUNK, 100 * CHUNK].into_iter().enumerate() {
        let len = CHUNK.min(content.len() - at);
        let moved = fetched(&rig, || assert_same(&direct(&rig, "a", at, len), &content[at..at + len], "a part"));
        let manifest = if n == 0 { MANIFEST } else { 0 };
        assert!(moved <= 2 * CHUNK as u64 + manifest, "{moved} bytes for the read at {at}");
        rests(&rig, "a", "partial");
    }
    let moved = fetched(&rig, || {
        let at = 5 * CHUNK + 9;
        assert_same(&direct(&rig, "a", at, 4000), &content[at..at + 4000], "again");
    });
    assert_eq!(moved, 0, "what is here is not fetched again");
    assert_eq!(fs::metadata(rig.mnt("a")).unwrap().modified().unwrap(), mtime);
    assert_eq!(fs::metadata(rig.low("a")).unwrap().modified().unwrap(), mtime);
    assert!(rig.allocated("a") <= 8 * CHUNK as u64);
    rig.same("a", &content);
    rests(&rig, "a", "dual");
}

#[test]
fn parts_survive_a_restart_and_a_crash() {
    for crash in [false, true] {
        let Some(mut rig) = Rig::new() else { return };
        let content = stub(&rig, "a", 64 * CHUNK);
        let file = File::open(rig.mnt("a")).unwrap();
        let read = |rig: &Rig| {
            let at = 10 * CHUNK;
            assert_same(&direct(rig, "a", at, 4 * CHUNK), &content[at..at + 4 * CHUNK], "a part");
        };
        read(&rig);
        if crash {
            // In the midst of it: the file is open, and the record still says stub.
            rig.crash();
            drop(file);
        } else {
            drop(file);
            rig.umount();
        }
        rig.mount();
        rests(&rig, "a", "partial");
        let moved = fetched(&rig, || read(&rig));
        assert!(moved <= MANIFEST, "{moved} bytes were fetched again");
        rests(&rig, "a", "partial");
        rig.same("a", &content);
        rests(&rig, "a", "dual");
    }
}

#[test]
fn a_file_whose_last_chunk_comes_is_dual_by_itself() {
    let Some(mut rig) = Rig::new() else { return };
    let content = stub(&rig, "a", 20 * CHUNK + 5);
    direct(&rig, "a", 4 * CHUNK, 16 * CHUNK);
    for chunk in [3, 0, 20] {
        direct(&rig, "a", chunk * CHUNK, 5);
        rests(&rig, "a", "partial");
    }
    // What is local is known by looking only.
    rig.umount();
    rig.mount();
    let moved = fetched(&rig, || {
        for chunk in [2, 1] {
            direct(&rig, "a", chunk * CHUNK, 5);
        }
    });
    assert!(moved <= 3 * CHUNK as u64 + MANIFEST, "{moved}");
    rests(&rig, "a", "dual");
    let moved = fetched(&rig, || rig.same("a", &content));
    assert_eq!(moved, 0);
}

#[test]
fn a_part_is_released_like_a_whole() {
    let Some(rig) = Rig::new() else { return };
    let content = stub(&rig, "a", 20 * CHUNK);
    direct(&rig, "a", 0, 3 * CHUNK);
    rests(&rig, "a", "partial");
    rig.on(&["release"], &["a"]);
    assert_eq!((rig.state("a"), rig.allocated("a") <= 4096), ("stub".into(), true));
    rig.same("a", &content);
}

#[test]
fn zeros_are_not_fetched() {
    let Some(rig) = Rig::new() else { return };
    let file = File::create(rig.mnt("a")).unwrap();
    file.set_len(100 * CHUNK as u64).unwrap();
    file.write_all_at(&[7; 3 * CHUNK], 50 * CHUNK as u64).unwrap();
    drop(file);
    let content = fs::read(rig.mnt("a")).unwrap();
    rig.migrate("a");
    let moved = fetched(&rig, || rig.on(&["recall"], &["a"]).clear());
    assert!(moved <= 3 * CHUNK as u64 + MANIFEST, "{moved} bytes for three chunks");
    rig.same("a", &content);
    assert!(rig.allocated("a") <= 4 * CHUNK as u64, "{} bytes are allocated", rig.allocated("a"));
}

#[test]
fn a_reader_in_sequence_is_fetched_for_ahead() {
    let Some(rig) = Rig::new() else { return };
    let content = stub(&rig, "a", 512 * CHUNK);
    let before = rig.requests().op("GetObject");
    rig.same("a", &content);
    let gets = rig.requests().op("GetObject") - before;
    assert!(gets <= 512 / 4, "{gets} requests for 512 chunks");
    rests(&rig, "a", "dual");
}

#[test]
fn a_reader_with_a_stride_is_fetched_for_ahead() {
    let Some(rig) = Rig::new() else { return };
    let content = stub(&rig, "a", 512 * CHUNK);
    let file = File::open(rig.mnt("a")).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    let mut found = [0; 100];
    for n in 0..3 {
        file.read_exact_at(&mut found, n * 40 * CHUNK as u64).unwrap();
    }
    wait_for("the next ones", || rig.allocated("a") >= 4 * CHUNK as u64);
    let moved = fetched(&rig, || {
        file.read_exact_at(&mut found, 120 * CHUNK as u64).unwrap();
        assert_eq!(found, content[120 * CHUNK..][..100]);
    });
    // The one after the next ones may have been asked for meanwhile.
    assert!(moved <= 4 * CHUNK as u64, "{moved}");
}

#[test]
fn policies_say_what_a_read_brings_back() {
    let Some(rig) = Rig::new() else { return };
    for policy in ["partial", "progressive", "full", "pass-through"] {
        fs::create_dir(rig.mnt(policy)).unwrap();
        set_xattr(&rig.mnt(policy), "user.tierfs.recall_policy", policy.as_bytes()).unwrap();
        assert_eq!(xattr(&rig.mnt(policy), "user.tierfs.recall_policy").unwrap(), policy.as_bytes());
        fs::create_dir(rig.mnt(policy).join("below")).unwrap();
        let name = format!("{policy}/below/a");
        let content = stub(&rig, &name, 100 * CHUNK);
        let at = 50 * CHUNK;
        assert_same(&direct(&rig, &name, at, 100), &content[at..at + 100], policy);
        match policy {
            "partial" => rests(&rig, &name, "partial"),
            "pass-through" => {
                assert!(rig.allocated(&name) <= 4096);
                rig.same(&name, &content);
                assert_eq!((rig.state(&name), rig.allocated(&name) <= 4096), ("stub".into(), true));
                // Who wants it all can have it.
                rig.on(&["recall"], &[&name]);
                assert_eq!(rig.state(&name), "dual");
            }
            _ => rests(&rig, &name, "dual"),
        }
        rig.same(&name, &content);
    }
    let refused = set_xattr(&rig.mnt("partial"), "user.tierfs.recall_policy", b"some");
    assert!(refused.is_err());
    rustix::fs::removexattr(rig.mnt("full"), "user.tierfs.recall_policy").unwrap();
    assert!(xattr(&rig.mnt("full"), "user.tierfs.recall_policy").is_err());
    assert!(set_xattr(&rig.mnt("partial/below/a"), "user.tierfs.recall_policy", b"full").is_err());
}

#[test]
fn a_full_policy_answers_when_all_is_there() {
    let Some(rig) = Rig::new() else { return };
    let content = stub(&rig, "a", 300 * CHUNK);
    set_xattr(&rig.mountpoint(), "user.tierfs.recall_policy", b"full").unwrap();
    assert_same(&read_at(&rig, "a", 0, 10), &content[..10], "the beginning");
    assert_eq!(rig.state("a"), "dual");
}

#[test]
fn a_reader_that_is_killed_stops_its_fetch() {
    let Some(rig) = Rig::new() else { return };
    stub(&rig, "a", 256 * CHUNK);
    // Bodies stop in the midst.
    rig.faults.add(Rule::new(Effect::Delay(Duration::from_secs(30))).method("GET"));
    let mut reader = Command::new("cat").arg(rig.mnt("a")).stdout(Stdio::null()).spawn().unwrap();
    wait_for("the request", || rig.gets() > 0);
    reader.kill().unwrap();
    reader.wait().unwrap();
    // Long before the answer.
    wait_for("the recall's end", || {
        rig.on(&["status"], &["a"]).contains("stub") && !rig.on(&["status"], &["a"]).contains("recalling")
    });
    rig.faults.clear();
}

#[test]
fn times_are_set_while_somebody_reads_a_part() {
    let Some(rig) = Rig::new() else { return };
    let content = stub(&rig, "a", 64 * CHUNK);
    let file = File::open(rig.mnt("a")).unwrap();
    let mut found = [0; 100];
    file.read_exact_at(&mut found, 0).unwrap();
    let when = std::time::UNIX_EPOCH + Duration::from_secs(1_234_567_890);
    OpenOptions::new().read(true).open(rig.mnt("a")).unwrap().set_modified(when).unwrap();
    assert_eq!(fs::metadata(rig.mnt("a")).unwrap().modified().unwrap(), when);
    file.read_exact_at(&mut found, 30 * CHUNK as u64).unwrap();
    assert_eq!(found, content[30 * CHUNK..][..100]);
    drop(file);
    rests(&rig, "a", "partial");
    assert_eq!(fs::metadata(rig.mnt("a")).unwrap().modified().unwrap(), when);
    wait_for("the time below", || fs::metadata(rig.low("a")).unwrap().modified().unwrap() == when);
    rig.same("a", &content);
}

#[test]
fn a_part_changed_below_the_mount_is_not_served() {
    let Some(rig) = Rig::new() else { return };
    let content = stub(&rig, "a", 32 * CHUNK);
    direct(&rig, "a", 0, 2 * CHUNK);
    rests(&rig, "a", "partial");
    let low = OpenOptions::new().write(true).open(rig.low("a")).unwrap();
    low.write_all_at(b"somebody else's", 100).unwrap();
    drop(low);
    rustix::fs::fadvise(File::open(rig.mnt("a")).unwrap(), 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let error = File::open(rig.mnt("a")).and_then(|file| file.read_exact_at(&mut [0; 10], 0)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    // Other parts are as they were.
    assert_same(&direct(&rig, "a", 8 * CHUNK, 100), &content[8 * CHUNK..][..100], "another part");
}
