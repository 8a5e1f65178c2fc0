//! Rules that are drawn by how full the share is, and how many files they take in hand.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use tierfs::gateway::faults::Effect;

use crate::index::scan;
use crate::policies::{policy_run, with_policies};
use crate::policy_runs::reload;
use crate::rig::*;

const FILE: usize = 4 << 20;
const FILES: usize = 12;

/// Bytes in use more than `pct` per cent of the space, as df(1) reckons.
fn over(rig: &Rig, pct: u64) -> i64 {
    let space = rustix::fs::statvfs(rig.fs.path()).unwrap();
    let used = space.f_blocks - space.f_bfree;
    (used as i64 - ((used + space.f_bavail) * pct / 100) as i64) * space.f_frsize as i64
}

/// Dual files, each older than the next.
fn dual_files(rig: &Rig) -> Vec<String> {
    let names: Vec<String> = (0..FILES).map(|n| format!("f{n:02}")).collect();
    for (n, name) in names.iter().enumerate() {
        rig.write(name, FILE);
        set_mtime(&rig.mnt(name), 1_500_000_000 + n as i64 * 1000, 0);
    }
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    rig.on(&["migrate", "--archive-only"], &all);
    scan(rig);
    names
}

/// Takes space beside the share until `bytes` more than `pct` per cent are in use.
fn fill(rig: &Rig, pct: u64, bytes: i64) {
    let missing = u64::try_from(bytes - over(rig, pct)).expect("less than that is in use");
    let filler = fs::File::create(rig.fs.path().join("filler")).unwrap();
    rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, missing).unwrap();
}

fn stubs(rig: &Rig, names: &[String]) -> usize {
    let states: Vec<bool> = names.iter().map(|name| rig.state(name) == "stub").collect();
    let count = states.iter().filter(|stub| **stub).count();
    assert!(states[..count].iter().all(|stub| *stub), "the oldest first: {states:?}");
    count
}

fn marks(name: &str, more: &str) -> String {
    format!(
        "[policy.{name}]\naction = \"release\"\norder = \"oldest\"\nmatch.paths = [\"f*\"]\n\
         when = {{ space_above = \"80%\", space_below = \"70%\" }}\n{more}"
    )
}

#[test]
fn a_share_above_the_mark_is_brought_below_the_other_one() {
    let Some(rig) = with_policies(&marks("room", "schedule.every = \"1s\"\n")) else { return };
    let names = dual_files(&rig);
    assert!(over(&rig, 70) < 0);
    fill(&rig, 80, -(1 << 20));
    assert_eq!(policy_run(&rig, "room")["files"], 0, "between the marks, and never above them");
    assert_eq!(stubs(&rig, &names), 0);
    fs::remove_file(rig.fs.path().join("filler")).unwrap();
    fill(&rig, 80, 1 << 20);
    wait_for("room", || over(&rig, 70) <= 0);
    // It waits for its turn, and there is nothing left to do.
    assert_eq!(policy_run(&rig, "room")["files"], 0);
    let (count, under) = (stubs(&rig, &names), -over(&rig, 70));
    assert!(count < FILES && (0..FILE as i64 + (1 << 20)).contains(&under), "{count} files, {under} bytes below");
    names.iter().for_each(|name| rig.same(name, &noise(name, FILE)));
}

#[test]
fn a_rule_between_its_marks_goes_on_after_a_remount() {
    let by_hand = "enabled = false\nlimits.files = 2\n";
    let Some(mut rig) = with_policies(&marks("room", by_hand)) else { return };
    let names = dual_files(&rig);
    fill(&rig, 80, 1 << 20);
    assert_eq!(policy_run(&rig, "room")["files"], 2);
    assert!(over(&rig, 80) < 0 && over(&rig, 70) > 2 * FILE as i64, "between the marks");
    rig.umount();
    let option = format!("policies={}", rig.scratch("policies.toml").display());
    assert!(rig.try_mount(&["-o", &option]).status.success());
    reload(&rig, &(marks("room", by_hand) + &marks("other", by_hand)));
    assert_eq!(policy_run(&rig, "other")["files"], 0, "it has not been above its mark");
    assert_eq!(policy_run(&rig, "room")["files"], 2);
    assert_eq!(stubs(&rig, &names), 4);
}

#[test]
fn no_more_files_are_in_hand_at_once_than_the_limit_says() {
    let text = "[policy.few]\nenabled = false\naction = \"archive\"\nlimits.at_once = 2\n";
    let Some(rig) = with_policies(text) else { return };
    let names = ["f0", "f1", "f2", "f3", "f4"];
    names.iter().for_each(|name| drop(rig.write(name, CHUNK)));
    scan(&rig);
    rig.quiet();
    rig.fault(Effect::Delay(Duration::from_secs(1)), "PUT");
    let mut run = rig.command(&["policy", "run", "few"]).stdout(Stdio::null()).spawn().unwrap();
    let mut most = 0;
    let status = loop {
        // In one look: asked one by one, files that follow each other seem to be in hand together.
        most = most.max(rig.info()["transfers"].as_u64().unwrap());
        if let Some(status) = run.try_wait().unwrap() {
            break status;
        }
    };
    assert!(status.success());
    assert_eq!(most, 2);
    assert!(names.iter().all(|name| rig.state(name) == "dual"));
}
