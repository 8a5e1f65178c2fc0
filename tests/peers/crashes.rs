//! Each side is killed at each step of a change of owner; answers get lost; calls come twice. Afterwards one side owns the file, the other is a stub, and
//! both show the content.

use std::fs;
use std::os::unix::fs::FileExt as _;

use crate::sides::{CHUNK, Sides};
use crate::tools::*;

const LEN: usize = 5 * CHUNK + 9;

/// Steps of the side that asks.
const ASKS: [&str; 7] =
    ["peer.published", "peer.staged", "peer.noted", "peer.offering", "peer.asking", "peer.answered", "peer.decided"];
/// Of the side that is asked to take what is offered.
const TAKES_IN: [&str; 6] =
    ["peer.noted", "peer.installing", "peer.copied", "peer.installed", "peer.called", "peer.granted"];

fn survives(west_dies: bool, point: &str, recall: bool) {
    let Some((mut sides, contents)) = Sides::with_files("ext4", &[("f", LEN)]) else { return };
    if recall {
        sides.east.done("migrate", "f");
        assert!(sides.decided("f"));
    }
    {
        let dying = if west_dies { &mut sides.west } else { &mut sides.east };
        dying.umount();
        dying.kill_at = Some(point.into());
        dying.mount();
        dying.kill_at = None;
    }
    let verb = if recall { "recall" } else { "migrate" };
    // Whatever it says: one of the two is killed.
    let mut command = std::process::Command::new("timeout");
    command.args(["20", env!("CARGO_BIN_EXE_tierfs"), verb]).arg(sides.east.mnt("f"));
    let _ = command.output().unwrap();
    let dying = if west_dies { &sides.west } else { &sides.east };
    wait_for(&format!("the end at {point}"), || dying.is_dead());
    let dying = if west_dies { &mut sides.west } else { &mut sides.east };
    dying.crash();
    dying.mount();
    sides.decided("f");
    sides.same("f", &contents[0]);
    // And nothing is stuck.
    let file = fs::OpenOptions::new().write(true).open(sides.east.mnt("f")).unwrap();
    file.write_all_at(b"x", 0).unwrap();
    drop(file);
    let mut content = contents[0].clone();
    content[0] = b'x';
    sides.decided("f");
    sides.same("f", &content);
}

#[test]
fn the_offering_side_dies_at_each_step() {
    for point in ASKS {
        survives(false, point, false);
    }
    for point in ["peer.ended", "release.noted", "release.recorded", "release.punched", "release.ended"] {
        survives(false, point, false);
    }
}

#[test]
fn the_side_that_is_offered_dies_at_each_step() {
    for point in TAKES_IN {
        survives(true, point, false);
    }
}

#[test]
fn the_taking_side_dies_at_each_step() {
    for point in ["recall.noted", "recall.written", "recall.synced", "peer.taking", "peer.asking", "peer.answered"] {
        survives(false, point, true);
    }
    for point in ["peer.decided", "peer.ended"] {
        survives(false, point, true);
    }
}

#[test]
fn the_side_that_is_asked_dies_at_each_step() {
    for point in ["peer.called", "peer.granted", "release.recorded", "release.punched", "release.ended"] {
        survives(true, point, true);
    }
}

/// The call arrives, and nobody hears the answer: it is asked again, and the file never has two owners, nor two stubs.
#[test]
fn answers_get_lost() {
    let Some((sides, contents)) = Sides::with_files("ext4", &[("f", LEN)]) else { return };
    for lost in [1, 2, 5] {
        sides.west.proxy.lose_answers(lost);
        let before = sides.west.proxy.calls();
        // It may be told that nothing is decided yet.
        let _ = sides.east.on("migrate", &["f"]);
        assert!(sides.decided("f"));
        let calls = sides.west.proxy.calls() - before;
        assert!(calls > lost, "{calls} calls, of which {lost} answers were lost\n{}", sides.east.log());
        sides.west.proxy.lose_answers(lost);
        let _ = sides.east.on("recall", &["f"]);
        assert!(!sides.decided("f"));
        sides.same("f", &contents[0]);
        if sides.decided("f") {
            sides.east.done("recall", "f");
        }
    }
}

/// The machine is started anew while a question is open: nobody has looked the file up by then, so the kernel cannot tell its path. The other side was asked
/// about the bucket instead, for ever.
#[test]
fn questions_are_asked_after_a_start_of_the_machine() {
    let Some((mut sides, contents)) = Sides::with_files("ext4", &[("given", LEN), ("taken", LEN)]) else { return };
    sides.west.proxy.lose_answers(u32::MAX);
    let _ = sides.east.on("migrate", &["given"]);
    sides.east.proxy.lose_answers(u32::MAX);
    let _ = sides.west.on("recall", &["taken"]);
    assert!(sides.east.peer("given").is_handing_over() && sides.west.peer("taken").is_handing_over());
    sides.east.restart_cold();
    sides.west.restart_cold();
    sides.west.proxy.lose_answers(0);
    sides.east.proxy.lose_answers(0);
    for (name, content) in ["given", "taken"].iter().zip(&contents) {
        sides.decided(name);
        sides.same(name, content);
    }
}

/// What is asked about a file that is removed meanwhile is asked no more: nothing is left to be decided.
#[test]
fn questions_about_a_removed_file_end() {
    let Some((mut sides, _)) = Sides::with_files("ext4", &[("given", LEN), ("taken", LEN)]) else { return };
    let open = |side: &crate::sides::Side, name: &str| side.peer(name).is_handing_over();
    sides.west.proxy.lose_answers(u32::MAX);
    let _ = sides.east.on("migrate", &["given"]);
    assert!(open(&sides.east, "given"), "its answer is lost");
    sides.east.proxy.lose_answers(u32::MAX);
    let _ = sides.west.on("recall", &["taken"]);
    assert!(open(&sides.west, "taken"));
    assert!(sides.east.noted() > 0 && sides.west.noted() > 0);
    // What was asked has been granted, and what follows from that there is over.
    wait_for("what was given up to be freed", || sides.east.state("taken") == "stub");
    wait_for("what was given to be owned", || sides.west.owns("given"));
    // Both files go, as the metadata sync does it; and one of them while nobody serves it.
    fs::remove_file(sides.east.mnt("given")).unwrap();
    fs::remove_file(sides.west.mnt("given")).unwrap();
    sides.west.umount();
    fs::remove_file(sides.east.mnt("taken")).unwrap();
    fs::remove_file(sides.west.low("taken")).unwrap();
    sides.west.mount();
    for side in [&sides.east, &sides.west] {
        side.nothing_stays_noted();
    }
}

/// While somebody has a removed file open, it is not gone, and neither is the question; then it is.
#[test]
fn a_question_lasts_as_long_as_its_file() {
    let Some((sides, contents)) = Sides::with_files("ext4", &[("f", LEN)]) else { return };
    sides.east.proxy.lose_answers(u32::MAX);
    let _ = sides.west.on("recall", &["f"]);
    let reader = fs::File::open(sides.west.mnt("f")).unwrap();
    fs::remove_file(sides.west.mnt("f")).unwrap();
    let before = sides.east.proxy.calls();
    wait_for("it to be asked again", || sides.east.proxy.calls() > before);
    let mut found = vec![0; LEN];
    reader.read_exact_at(&mut found, 0).unwrap();
    assert_same(&found, &contents[0], "what the reader has");
    assert!(sides.west.noted() > 0);
    drop(reader);
    sides.west.nothing_stays_noted();
}

/// The other side has lost the file, below its mount, while this side asks for it and has all of it: nobody will ever answer. It is read from here, and a
/// copy in its place is a file like any other, which the other side gets; then nothing is asked any more.
#[test]
fn what_the_other_side_lost_can_be_copied() {
    let Some(mut sides) = Sides::synced("ext4") else { return };
    let content = noise("f", LEN);
    fs::write(sides.east.mnt("f"), &content).unwrap();
    wait_for("it to be on west", || sides.west.record("f").is_some());
    wait_for("west to have it", || sides.decided("f") || sides.east.on("migrate", &["f"]).status.success());
    assert!(sides.decided("f"));
    sides.west.proxy.lose_answers(u32::MAX);
    let _ = sides.east.on("recall", &["f"]);
    assert!(sides.east.peer("f").is_handing_over());
    sides.west.umount();
    fs::remove_file(sides.west.low("f")).unwrap();
    sides.west.mount();
    sides.west.proxy.lose_answers(0);
    assert_same(&fs::read(sides.east.mnt("f")).unwrap(), &content, "from here");
    fs::copy(sides.east.mnt("f"), sides.east.mnt("copy")).unwrap();
    fs::rename(sides.east.mnt("copy"), sides.east.mnt("f")).unwrap();
    wait_for("west to have the copy", || fs::read(sides.west.mnt("f")).is_ok_and(|found| found == content));
    sides.decided("f");
    sides.east.nothing_stays_noted();
}

/// Each call comes once more when it is long decided.
#[test]
fn calls_come_twice() {
    let Some((sides, contents)) = Sides::with_files("ext4", &[("f", LEN)]) else { return };
    sides.west.proxy.repeat_calls(true);
    sides.east.proxy.repeat_calls(true);
    let mut content = contents[0].clone();
    for round in 0..6_u8 {
        sides.east.done("migrate", "f");
        assert!(sides.decided("f"));
        let file = fs::OpenOptions::new().write(true).open(sides.west.mnt("f")).unwrap();
        file.write_all_at(&[round], u64::from(round)).unwrap();
        drop(file);
        content[usize::from(round)] = round;
        sides.east.done("recall", "f");
        assert!(!sides.decided("f"));
        sides.same("f", &content);
        if sides.decided("f") {
            sides.east.done("recall", "f");
        }
    }
}

/// The link is down: reads of what is here go on, a migration says that it cannot, nothing is lost; healed, all goes on by itself.
#[test]
fn the_link_is_down() {
    let Some((sides, contents)) = Sides::with_files("ext4", &[("f", LEN)]) else { return };
    sides.west.proxy.cut(true);
    let output = sides.east.on("migrate", &["f"]);
    assert!(!output.status.success(), "{}", said(&output));
    assert!(sides.east.owns("f"));
    assert_same(&fs::read(sides.east.mnt("f")).unwrap(), &contents[0], "the owner's");
    sides.west.proxy.cut(false);
    sides.east.done("migrate", "f");
    assert!(sides.decided("f"));
    sides.west.proxy.cut(true);
    assert!(fs::read(sides.east.mnt("f")).is_err(), "its content is not here");
    sides.west.proxy.cut(false);
    sides.same("f", &contents[0]);
}
