//! `verify` and `check`: they find what is wrong, change nothing, and repair only what can be repaired without loss.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};

use tierfs::gateway::faults::Effect;

use crate::rig::*;

/// `dual`, `stub` and `large` (12 chunks, a stub), and a resident file.
fn rig() -> Option<Rig> {
    let rig = Rig::new()?;
    for (name, chunks) in [("resident", 1), ("dual", 3), ("stub", 1), ("large", 12)] {
        rig.write(name, chunks * CHUNK);
    }
    rig.on(&["migrate", "--archive-only"], &["dual"]);
    rig.on(&["migrate"], &["stub", "large"]);
    Some(rig)
}

const ALL: [&str; 4] = ["resident", "dual", "stub", "large"];

fn key(rig: &Rig, name: &str) -> String {
    rig.record(name).unwrap().object.unwrap().key.0
}

#[test]
fn sound_files_are_read_again_and_stay_as_they_are() {
    let Some(rig) = rig() else { return };
    let before: Vec<_> = ALL.iter().map(|name| (rig.state(name), rig.allocated(name), rig.record(name))).collect();
    let gets = rig.gets();
    let said = rig.on(&["verify", "-r"], &["."]);
    assert!(said.contains("verified 3 files, 1.00 MiB in"), "{said}");
    // 16 chunks, and the manifests of the two files that have one.
    assert_eq!(rig.gets() - gets, 18);
    let gets = rig.gets();
    let said = rig.on(&["check", "-r", "--repair"], &["."]);
    assert!(said.contains("checked 3 files"), "{said}");
    assert_eq!(rig.gets(), gets, "a check reads no contents");
    let after: Vec<_> = ALL.iter().map(|name| (rig.state(name), rig.allocated(name), rig.record(name))).collect();
    assert_eq!(before, after);
}

#[test]
fn md5_is_that_of_md5sum() {
    let Some(rig) = rig() else { return };
    let sums = rig.tierfs(&["verify", "--md5", rig.mnt("large").to_str().unwrap(), rig.mnt("dual").to_str().unwrap()]);
    code(&sums, 0);
    let lines: BTreeSet<_> = String::from_utf8(sums.stdout).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(rig.state("large"), "stub");
    let mut md5sum = std::process::Command::new("md5sum");
    let known = md5sum.arg(rig.mnt("large")).arg(rig.mnt("dual")).output().unwrap();
    for line in String::from_utf8(known.stdout).unwrap().lines() {
        assert!(lines.contains(line), "{line} is not in {lines:?}");
    }
}

#[test]
fn a_sample_is_a_part() {
    let Some(rig) = Rig::new() else { return };
    fs::create_dir(rig.mnt("dir")).unwrap();
    (0..64).for_each(|n| drop(rig.write(&format!("dir/{n}"), 100)));
    rig.on(&["migrate", "-r"], &["dir"]);
    let sampled = |share: &str| -> u64 {
        let output = rig.try_on(&["--json", "verify", "-r", "--sample", share], &["dir"]);
        let last = said(&output).lines().last().unwrap().to_owned();
        serde_json::from_str::<serde_json::Value>(&last).unwrap()["files"].as_u64().unwrap()
    };
    // All or none of 64 at even chances: once in 2^63 runs.
    assert!((1..64).contains(&sampled("50%")));
    assert_eq!(sampled("100%"), 64);
    code(&rig.try_on(&["verify", "--sample", "0%"], &["dir"]), 2);
}

#[test]
fn wrong_and_missing_objects_are_found() {
    let Some(mut rig) = rig() else { return };
    let large = key(&rig, "large");
    let rule = rig.fault(Effect::CorruptReply { at: 7 }, "GET");
    let output = rig.try_on(&["verify"], &["large"]);
    code(&output, 1);
    assert!(said(&output).contains(&large), "{}", said(&output));
    rig.faults.remove(rule);
    rig.on(&["verify"], &["large"]);
    let keys = ["dual", "stub"].map(|name| key(&rig, name));
    rig.stop_server();
    keys.iter().for_each(|key| rig.remove_object(key));
    rig.start_server();
    for verb in ["verify", "check"] {
        let output = rig.try_on(&[verb, "-r"], &["."]);
        code(&output, 1);
        let text = said(&output);
        assert!(text.contains("dual: ") && text.contains("stub: ") && text.contains("2 failed"), "{verb}: {text}");
    }
    // What has its content here gets on; what has it nowhere is told, and keeps its claim: the object may be brought back.
    let content = fs::read(rig.low("dual")).unwrap();
    let output = rig.try_on(&["check", "-r", "--repair"], &["."]);
    code(&output, 1);
    let text = said(&output);
    assert!(text.contains("repaired: ") && text.contains("1 failed"), "{text}");
    assert_eq!((rig.state("dual").as_str(), rig.state("stub").as_str()), ("resident", "stub"));
    rig.migrate("dual");
    rig.on(&["verify"], &["dual"]);
    rig.same("dual", &content);
}

#[test]
fn local_bytes_that_changed_unseen_are_found_and_left_alone() {
    let Some(rig) = rig() else { return };
    // Below the mount, with size and mtime put back: what only the bytes can tell.
    let metadata = fs::metadata(rig.low("dual")).unwrap();
    OpenOptions::new().write(true).open(rig.low("dual")).unwrap().write_all_at(b"other", 70_000).unwrap();
    set_mtime(&rig.low("dual"), metadata.mtime(), metadata.mtime_nsec());
    let (bytes, record) = (fs::read(rig.low("dual")).unwrap(), rig.record("dual"));
    let output = rig.try_on(&["check", "--repair"], &["dual"]);
    code(&output, 1);
    assert!(said(&output).contains("local bytes"), "{}", said(&output));
    assert_eq!((fs::read(rig.low("dual")).unwrap(), rig.record("dual")), (bytes, record));
}

#[test]
fn only_root_may() {
    let Some(rig) = rig() else { return };
    let script = format!("{} verify {}", env!("CARGO_BIN_EXE_tierfs"), rig.mnt("stub").display());
    let output = as_nobody(std::path::Path::new("/"), &script);
    assert!(!output.status.success() && said(&output).contains("root"), "{}", said(&output));
}
