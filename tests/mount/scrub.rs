//! The background scrub: it finds what is damaged, changes nothing, keeps to its rate, and goes on where it was.

use std::time::Duration;

use serde_json::Value;
use tierfs::gateway::faults::{Effect, Rule};

use crate::rig::*;

fn migrated(names: &[&str]) -> Option<Rig> {
    let mut rig = Rig::new()?;
    names.iter().for_each(|name| drop(rig.write(name, CHUNK)));
    rig.on(&["migrate", "-r"], &[""]);
    rig.umount();
    Some(rig)
}

fn mount(rig: &mut Rig, options: &str) {
    let output = rig.try_mount(&["-o", options]);
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn a_damaged_object_is_found_and_listed() {
    let Some(mut rig) = migrated(&["bad", "good", "missing", "removed"]) else { return };
    let gone = rig.record("missing").unwrap().object.unwrap().key;
    rig.stop_server();
    rig.remove_object(&gone.0);
    rig.start_server();
    rig.mount();
    rig.on(&["recall"], &["good"]);
    rig.write("large", 5 * CHUNK);
    rig.write("resident", CHUNK);
    rig.on(&["migrate"], &["large"]);
    std::fs::remove_file(rig.mnt("removed")).unwrap();
    rig.umount();
    let rule = rig.faults.add(Rule::new(Effect::CorruptReply { at: 7 }).method("GET").url("/pre/bad"));
    mount(&mut rig, "scrub=100MiB/s");
    let last = || rig.info()["scrub"]["last"].clone();
    wait_for("the pass", || last() != Value::Null);
    let (last, info) = (last(), rig.info());
    assert_eq!(
        (last["files"].as_u64(), last["bytes"].as_u64(), last["damaged"].as_u64()),
        (Some(2), Some(6 << 16), Some(2))
    );
    assert_eq!((info["scrub"]["rate"].as_u64(), &info["failed"]), (Some(100 << 20), &serde_json::json!([2, 0])));
    // Asked for once more, then believed.
    assert_eq!(rig.faults.hits(rule), 2);
    let listed = rig.json(&["failed", "list"], 0);
    for (name, reason) in [("bad", "checksum"), ("missing", "missing")] {
        let path = rig.mnt(name);
        let found = listed.iter().find(|line| line["path"] == path.to_str().unwrap()).expect("it is listed");
        assert_eq!((found["task"].as_str(), found["reason"].as_str()), (Some("scrub"), Some(reason)), "{found}");
        assert!(rig.log().lines().any(|line| line.contains("the scrub found a damaged file") && line.contains(name)));
    }
    let states = ["bad", "good", "missing", "large", "resident"].map(|name| rig.state(name));
    assert_eq!(states, ["stub", "dual", "stub", "stub", "resident"], "nothing is recalled or changed");
    // What a person reads again and finds right is off the list.
    rig.faults.clear();
    rig.on(&["verify"], &["bad"]);
    assert_eq!(rig.info()["failed"], serde_json::json!([1, 0]));
    let text = rig.on(&["info"], &[""]);
    assert!(text.contains("last pass") && text.contains("2 objects read (384 KiB), 2 damaged"), "{text}");
    // Not before its time again, also after a restart.
    let reads = rig.faults.add(Rule::new(Effect::Delay(Duration::ZERO)).method("GET").url("/pre/good"));
    rig.umount();
    mount(&mut rig, "scrub=100MiB/s");
    wait_for("the scrub", || rig.log().matches("the scrub begins").count() == 2);
    let info = rig.info();
    assert_eq!((&info["scrub"]["pass"], &info["scrub"]["last"]), (&Value::Null, &last));
    assert_eq!(rig.faults.hits(reads), 0);
}

#[test]
fn a_crash_costs_the_scrub_only_what_it_was_at() {
    const FILES: u64 = 9;
    let names: Vec<String> = (0..FILES).map(|n| format!("f{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let Some(mut rig) = migrated(&names) else { return };
    // A file a second, and each second it is remembered where it is.
    mount(&mut rig, "scrub=64KiB");
    rig.quiet();
    wait_for("some files", || rig.info()["scrub"]["pass"]["files"].as_u64() >= Some(4));
    rig.crash();
    // Counts only.
    let reads = rig.faults.add(Rule::new(Effect::Delay(Duration::ZERO)).method("GET").url("/pre/f"));
    mount(&mut rig, "scrub=100MiB");
    let last = || rig.info()["scrub"]["last"].clone();
    wait_for("the pass", || last() != Value::Null);
    assert_eq!((last()["damaged"].as_u64(), rig.info()["failed"].clone()), (Some(0), serde_json::json!([0, 0])));
    let read = rig.faults.hits(reads);
    assert!((1..FILES - 1).contains(&read), "{read} of {FILES} were read again");
    assert!(last()["files"].as_u64() >= Some(FILES), "each was read: {}", last());
}

#[test]
fn a_remote_that_is_away_is_waited_for() {
    let Some(mut rig) = migrated(&["a", "b"]) else { return };
    rig.stop_server();
    mount(&mut rig, "scrub=100MiB");
    let problem = || rig.info()["scrub"]["problem"].clone();
    wait_for("the problem", || problem() != Value::Null);
    assert_eq!(
        (rig.info()["failed"].clone(), rig.info()["scrub"]["last"].clone()),
        (serde_json::json!([0, 0]), Value::Null)
    );
    rig.start_server();
    let last = || rig.info()["scrub"]["last"].clone();
    wait_for("the pass", || last() != Value::Null);
    assert_eq!((last()["files"].as_u64(), last()["damaged"].as_u64()), (Some(2), Some(0)));
}
