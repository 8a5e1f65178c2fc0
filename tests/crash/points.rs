//! The kill points: all that are in the source (but those of `undelete`, which `tests/mount/undelete.rs` goes through, of packs, which `tests/mount/packs.rs` does, and of
//! a pair's two sides, which `tests/peers/crashes.rs` does), how each is reached,
//! and a round that dies at one.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use tierfs::gateway::faults::{Effect, Rule};

use crate::oracle::Loss;
use crate::rig::*;
use crate::scene::Scene;

/// How long a round works before it gives a point up.
const REACHED_WITHIN: Duration = Duration::from_secs(4);
/// As long for points behind the grace that deletions of removed files have.
const REACHED_LATE_WITHIN: Duration = Duration::from_secs(9);

/// Every point of the source, sorted.
pub fn all() -> Vec<String> {
    let mut points = BTreeSet::new();
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            if entry.path().is_dir() {
                open.push(entry.path());
            } else if let Ok(text) = fs::read_to_string(entry.path()) {
                let found = text.split("kill::point(\"").skip(1).filter_map(|rest| rest.split('"').next());
                let elsewhere =
                    |point: &&str| ["undelete.", "pack.", "sweep.", "peer."].iter().any(|of| point.starts_with(of));
                for point in found.filter(|point| !elsewhere(point)) {
                    assert!(points.insert(point.to_owned()), "two kill points are called {point}");
                }
            }
        }
    }
    assert!(points.len() > 40, "kill points are not found in the source: {points:?}");
    points.into_iter().collect()
}

/// Where a daemon must die first, so that a later one comes to this point.
fn before(point: &str) -> &'static [&'static str] {
    match point {
        "recover.recorded" => &["release.recorded", "release.synced", "release.punched", "release.freed"],
        "recover.punched" => &["release.recorded", "release.synced", "release.punched", "release.freed"],
        "recover.kept" => &["recall.written", "recall.dated"],
        "recover.patched" => &["patch.noted", "patch.synced", "patch.recorded"],
        "recover.synced" => &[],
        _ if point.starts_with("recover.") => &["archive.recorded", "recall.filled", "release.noted", "release.dated"],
        _ if point.starts_with("demote.") => &["truncate.cut", "truncate.synced"],
        "delete.spared" => &["removal.noted"],
        _ => &[],
    }
}

/// One round: the daemon dies when it passes `point` for the `count`-th time, everything is compared. Whether it died there.
pub fn round(scene: &mut Scene, point: &str, count: u64) -> bool {
    let given_up = point.starts_with("recalled.");
    let keep_recalled = |scene: &Scene, how_long: &str| {
        code(&scene.rig.tierfs(&["pair", "edit", "cold", "--recall-retention", how_long]), 0);
    };
    if given_up {
        keep_recalled(scene, "0s");
    }
    let died = round_as_is(scene, point, count);
    if given_up {
        keep_recalled(scene, "24h");
    }
    died
}

fn round_as_is(scene: &mut Scene, point: &str, count: u64) -> bool {
    let first = before(point);
    if !first.is_empty() {
        let first = first[scene.dice.below(first.len() as u64) as usize];
        if !dies(scene, first, 1, REACHED_WITHIN) {
            scene.recover(&[]);
            scene.check(Loss::Process);
            return false;
        }
        if point.starts_with("delete.") {
            scene.recover(&[]);
            scene.check(Loss::Process);
        }
    }
    let died = if point.starts_with("recover.") {
        let before = scene.tally.in_recovery;
        // Twice: the second time it dies in what the first has left.
        let twice = [format!("{point}:{count}"), point.to_owned()];
        scene.recover(&twice);
        scene.tally.in_recovery > before
    } else if point.starts_with("demote.") || point == "delete.spared" {
        // Nobody may change the file that it is about.
        scene.rig.crash();
        scene.rig.kill_at = Some(point.to_owned());
        let mounted = scene.rig.try_mount(&[]).status.success();
        let died = !mounted || scene.touch_until_dead(REACHED_LATE_WITHIN);
        scene.rig.crash();
        scene.recover(&[]);
        died
    } else if point == "recall.undone" {
        let died = dies_emptying(scene, point);
        scene.recover(&[]);
        fs::remove_file(scene.rig.mnt("emptied")).unwrap();
        died
    } else {
        let within = if point.starts_with("delete.") { REACHED_LATE_WITHIN } else { REACHED_WITHIN };
        let died = dies(scene, point, count, within);
        scene.recover(&[]);
        died
    };
    scene.check(Loss::Process);
    died
}

/// A file is emptied in the midst of its recall, which work seldom does. Its object stays until the file is removed in turn.
fn dies_emptying(scene: &mut Scene, point: &str) -> bool {
    scene.rig.crash();
    scene.rig.kill_at = Some(point.to_owned());
    scene.rig.mount();
    scene.rig.kill_at = None;
    let name = "emptied";
    scene.rig.write(name, 40 * CHUNK);
    scene.rig.migrate(name);
    let path = scene.rig.mnt(name);
    scene.rig.faults.add(Rule::new(Effect::Delay(Duration::from_millis(400))).method("GET").skip(2));
    let reader = std::thread::spawn(move || std::fs::read(path));
    wait_for("some chunks", || scene.rig.allocated(name) > CHUNK as u64);
    // It may have been all, and then nothing is undone.
    let _ = truncate(&scene.rig.mnt(name), 0);
    let daemon = scene.rig.daemon.expect("it was mounted");
    let deadline = Instant::now() + REACHED_WITHIN;
    while alive(daemon) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    let died = !alive(daemon);
    scene.rig.crash();
    let _ = reader.join();
    scene.rig.faults.clear();
    scene.tally.kills += u64::from(died);
    died
}

/// Restarts the daemon so that it dies at a point, and works until it does.
pub fn dies(scene: &mut Scene, point: &str, count: u64, within: Duration) -> bool {
    // What runs is at rest: the next daemon finds what it would find after any death.
    scene.rig.crash();
    scene.rig.kill_at = Some(format!("{point}:{count}"));
    let mounted = scene.rig.try_mount(&[]).status.success();
    scene.rig.kill_at = None;
    if !mounted {
        scene.rig.crash();
        return true;
    }
    scene.work_until_dead(within)
}
