//! Objects that a rule of the bucket has moved to an archive class: reading asks for their restore, and waits or says so.

use std::fs;
use std::time::Duration;

use crate::rig::*;

/// A stub whose objects are archived, in a mount whose pair has `archived` and whose store takes `takes` for a restore.
fn archived_stub(takes: Duration, archived: &str) -> Option<(Rig, Vec<u8>)> {
    let mut rig = Rig::new()?;
    rig.umount();
    rig.restore_after = takes;
    rig.stop_server();
    rig.start_server();
    let edited = rig.tierfs(&["pair", "edit", "cold", "--archived", archived, "--restore-days", "2"]);
    assert!(edited.status.success(), "{}", said(&edited));
    rig.mount();
    let content = rig.write("a", 3 * CHUNK);
    rig.migrate("a");
    rig.archive_all("GLACIER");
    Some((rig, content))
}

fn shown(rig: &Rig) -> String {
    said(&rig.try_on(&["status"], &["a"]))
}

#[test]
fn a_reader_is_told_and_the_restore_is_asked_for_once() {
    let Some((mut rig, content)) = archived_stub(Duration::from_secs(3600), "fail") else { return };
    for _ in 0..5 {
        assert_eq!(errno(fs::read(rig.mnt("a"))), Some(libc::EREMOTEIO));
    }
    assert_eq!(rig.requests().op("RestoreObject"), 2, "the object and its manifest");
    assert_eq!(rig.state("a"), "stub");
    assert!(shown(&rig).contains("restoring"), "{}", shown(&rig));
    let output = rig.try_on(&["recall"], &["a"]);
    assert!(!output.status.success() && said(&output).contains("archive class"), "{}", said(&output));
    let output = rig.try_on(&["verify"], &["a"]);
    assert!(said(&output).contains("must be restored first"), "{}", said(&output));
    // The store has done its part: what is readable is read.
    rig.restore_after = Duration::ZERO;
    rig.stop_server();
    rig.start_server();
    let mut tries = 0;
    while fs::read(rig.mnt("a")).is_err() {
        tries += 1;
        assert!(tries < 100, "it is not restored");
        std::thread::sleep(Duration::from_millis(100));
    }
    rig.same("a", &content);
    assert!(!shown(&rig).contains("restoring"), "{}", shown(&rig));
}

#[test]
fn a_reader_waits_where_the_pair_says_so() {
    let Some((rig, content)) = archived_stub(Duration::from_secs(3), "wait") else { return };
    let reader = rig.mnt("a");
    let reader = std::thread::spawn(move || fs::read(reader));
    wait_for("the restore is shown", || shown(&rig).contains("restoring"));
    assert!(reader.join().unwrap().unwrap() == content);
    assert_eq!(rig.requests().op("RestoreObject"), 2, "the object and its manifest");
}

#[test]
fn emptying_a_file_ends_the_wait_for_its_restore() {
    let Some((rig, _)) = archived_stub(Duration::from_secs(3600), "wait") else { return };
    let path = rig.mnt("a");
    let reader = std::thread::spawn(move || fs::read(path));
    wait_for("the restore is shown", || shown(&rig).contains("restoring"));
    fs::OpenOptions::new().write(true).truncate(true).open(rig.mnt("a")).unwrap();
    assert_eq!(reader.join().unwrap().unwrap(), b"");
}
