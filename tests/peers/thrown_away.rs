//! Content that is thrown away is not fetched, whoever owns it; and it is thrown away only when that is said to have been done (R13).

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::sides::{CHUNK, Side, Sides};
use crate::tools::*;

/// Too large to be brought back when it is opened.
const LARGE: usize = 40 * CHUNK + 77;
/// What facts, hashes and answers may take: less than a chunk.
const ANSWERS_MAX: u64 = 32 << 10;

fn truncated(path: &Path) -> std::io::Result<()> {
    truncate(path, 0)
}

fn put(side: &Side, body: Vec<u8>, if_match: Option<&str>) -> Result<(), String> {
    crate::sides::put((side.name, side.addr), "f", body, if_match)
}

/// What is done on west to a stub of a large file comes about without any of its bytes, and east sees it.
fn fetches_nothing(what: &str, new: Vec<u8>, work: impl FnOnce(&Side)) {
    let Some((sides, _)) = Sides::with_files("ext4", &[("f", LARGE)]) else { return };
    let before = sides.east.proxy.fetched();
    work(&sides.west);
    let after = sides.east.proxy.fetched();
    assert_eq!(after.0, before.0, "{what}: requests for content");
    assert!(after.1 - before.1 < ANSWERS_MAX, "{what}: {} bytes came", after.1 - before.1);
    assert!(sides.west.owns("f"), "{what}: who changes it owns it, at once");
    assert_eq!(fs::read(sides.west.mnt("f")).unwrap(), new, "{what}, on west");
    assert!(sides.decided("f"), "{what}");
    wait_for("east to free what it gave up", || sides.east.allocated("f") < 8_192);
    sides.same("f", &new);
}

#[test]
fn a_truncation_to_zero_fetches_nothing() {
    fetches_nothing("truncate", Vec::new(), |west| truncated(&west.mnt("f")).unwrap());
}

#[test]
fn an_open_that_truncates_fetches_nothing() {
    let new = noise("new", CHUNK + 5);
    fetches_nothing("O_TRUNC", new.clone(), |west| fs::write(west.mnt("f"), &new).unwrap());
}

#[test]
fn a_put_fetches_nothing() {
    let new = noise("new", 3 * CHUNK + 1);
    fetches_nothing("PUT", new.clone(), |west| put(west, new.clone(), None).unwrap());
}

#[test]
fn an_empty_put_fetches_nothing() {
    fetches_nothing("empty PUT", Vec::new(), |west| put(west, Vec::new(), None).unwrap());
}

/// Some of it is here, and somebody has it open: what was read goes, too; no byte comes.
#[test]
fn a_stub_that_is_read_is_thrown_away() {
    let Some((sides, contents)) = Sides::with_files("ext4", &[("f", LARGE)]) else { return };
    let reader = fs::File::open(sides.west.mnt("f")).unwrap();
    let mut part = vec![0; 5_000];
    reader.read_exact_at(&mut part, 20 * CHUNK as u64).unwrap();
    assert_same(&part, &contents[0][20 * CHUNK..][..5_000], "a part");
    truncated(&sides.west.mnt("f")).unwrap();
    assert_eq!(reader.read_at(&mut part, 0).unwrap(), 0, "by the handle from before");
    drop(reader);
    assert!(sides.decided("f"));
    sides.same("f", &[]);
}

/// While somebody has it open there, it stays, whole, on both sides; and so it does while the link is down.
#[test]
fn a_refusal_changes_nothing() {
    let Some((sides, contents)) = Sides::with_files("ext4", &[("f", LARGE)]) else { return };
    let errno = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
    let reader = fs::File::open(sides.east.mnt("f")).unwrap();
    assert_eq!(errno(truncated(&sides.west.mnt("f"))), Some(libc::EBUSY));
    assert!(put(&sides.west, noise("new", 10), None).is_err());
    drop(reader);
    assert!(sides.east.owns("f") && sides.west.pair_of("f").is_some());
    sides.east.proxy.cut(true);
    assert_eq!(errno(truncated(&sides.west.mnt("f"))), Some(libc::ETIMEDOUT));
    assert!(put(&sides.west, noise("new", 10), None).is_err());
    assert!(sides.east.owns("f"));
    sides.east.proxy.cut(false);
    // A PUT that does not come about after the offer: its condition does not hold.
    assert!(put(&sides.west, noise("new", 10), Some("\"no such etag\"")).is_err());
    assert!(!sides.decided("f"), "what was offered goes back");
    sides.same("f", &contents[0]);
}

/// Who asked does not hear the offer: he is told that it failed, the owner takes it back, and nothing was thrown away.
#[test]
fn offers_get_lost() {
    let Some((sides, contents)) = Sides::with_files("ext4", &[("f", LARGE)]) else { return };
    for lost in [1, 3] {
        sides.east.proxy.lose_answers(lost);
        let done = truncated(&sides.west.mnt("f")).is_ok();
        sides.east.proxy.lose_answers(0);
        sides.decided("f");
        sides.same("f", if done { &[] } else { &contents[0] });
        if done {
            fs::write(sides.west.mnt("f"), &contents[0]).unwrap();
        }
        if sides.decided("f") {
            sides.east.done("recall", "f");
        }
    }
    // The owner does not hear that it was taken: it asks again until it does.
    sides.west.proxy.lose_answers(3);
    truncated(&sides.west.mnt("f")).unwrap();
    assert!(sides.decided("f"));
    sides.same("f", &[]);
}

/// Each call comes once more when it is long decided.
#[test]
fn calls_come_again() {
    let Some((sides, _)) = Sides::with_files("ext4", &[("f", LARGE)]) else { return };
    sides.west.proxy.repeat_calls(true);
    sides.east.proxy.repeat_calls(true);
    for round in 0..4 {
        let (side, new) = (if round % 2 == 0 { &sides.west } else { &sides.east }, noise(&round.to_string(), LARGE));
        wait_for("a change", || fs::write(side.mnt("f"), &new).is_ok());
        sides.decided("f");
        sides.same("f", &new);
        let stub = if sides.decided("f") { &sides.east } else { &sides.west };
        truncated(&stub.mnt("f")).unwrap();
        sides.decided("f");
        sides.same("f", &[]);
    }
}

/// PUTs to both gateways, migrations both ways, answers that are lost: what was acknowledged last by one of them is there in the end, whole, on both sides.
#[test]
fn both_sides_replace_it_at_once() {
    let Some((sides, contents)) = Sides::with_files("ext4", &[("f", LARGE)]) else { return };
    let work = |name: &str, addr: SocketAddr, path: &Path| {
        let mut last = None;
        for round in 0..12 {
            let new = noise(&format!("{name} {round}"), (round % 4) * 3 * CHUNK + round);
            let done = match round % 3 {
                2 => truncated(path).is_ok().then(Vec::new),
                _ => crate::sides::put((name, addr), "f", new.clone(), None).is_ok().then_some(new),
            };
            last = done.or(last);
        }
        last
    };
    let [east, west] = [&sides.east, &sides.west].map(|side| (side.name, side.addr, side.mnt("f")));
    let lasts = std::thread::scope(|scope| {
        let [east, west] = [east, west].map(|(name, addr, path)| scope.spawn(move || work(name, addr, &path)));
        while !(east.is_finished() && west.is_finished()) {
            let _ = sides.east.on("migrate", &["f"]);
            sides.west.proxy.lose_answers(1);
            let _ = sides.west.on("migrate", &["f"]);
            sides.east.proxy.lose_answers(1);
        }
        [east.join().unwrap(), west.join().unwrap()]
    });
    sides.east.proxy.lose_answers(0);
    sides.west.proxy.lose_answers(0);
    sides.decided("f");
    let mut found = Vec::new();
    wait_for("a read", || fs::read(sides.east.mnt("f")).map(|content| found = content).is_ok());
    sides.decided("f");
    // Somebody else's may have come between; what was never done is nobody's.
    let acknowledged: Vec<Vec<u8>> = lasts.into_iter().flatten().collect();
    assert!(!acknowledged.is_empty(), "somebody got through");
    assert!(found != contents[0], "what was there before was replaced");
    wait_for("the content of who was last", || {
        fs::read(sides.east.mnt("f")).is_ok_and(|found| acknowledged.contains(&found))
    });
    found = fs::read(sides.east.mnt("f")).unwrap();
    wait_for("west to have it, too", || fs::read(sides.west.mnt("f")).is_ok_and(|there| there == found));
    // And nothing is stuck.
    let last = noise("last", LARGE);
    for side in [&sides.west, &sides.east] {
        wait_for("a change", || fs::write(side.mnt("f"), &last).is_ok());
        sides.decided("f");
        sides.same("f", &last);
    }
}

/// What the dying side was asked to do, and whether it said that it was done.
fn survives(west_dies: bool, point: &str, by_put: bool) {
    let Some((mut sides, contents)) = Sides::with_files("ext4", &[("f", LARGE)]) else { return };
    {
        let dying = if west_dies { &mut sides.west } else { &mut sides.east };
        dying.umount();
        dying.kill_at = Some(point.into());
        dying.mount();
        dying.kill_at = None;
    }
    let new = noise("new", 2 * CHUNK);
    let done = if by_put {
        put(&sides.west, new.clone(), None).is_ok()
    } else {
        // Its own process: it may hang on a dead mount.
        let mut command = std::process::Command::new("timeout");
        command.args(["20", "sh", "-c", ": > \"$0\""]).arg(sides.west.mnt("f"));
        command.output().unwrap().status.success()
    };
    let dying = if west_dies { &sides.west } else { &sides.east };
    wait_for(&format!("the end at {point}"), || dying.is_dead());
    let dying = if west_dies { &mut sides.west } else { &mut sides.east };
    dying.crash();
    dying.mount();
    let emptied = sides.decided("f");
    let new = if by_put { new } else { Vec::new() };
    assert!(emptied || !done, "{point}: it was done, and is not");
    // Until the record that says so is stored, it is what it was.
    let before = ["peer.asking", "peer.emptying", "peer.cut", "peer.cut.synced", "peer.put.held"];
    assert!(!emptied || !west_dies || !before.contains(&point), "{point}: thrown away too early");
    sides.same("f", if emptied { &new } else { &contents[0] });
    // And nothing is stuck.
    for side in [&sides.west, &sides.east] {
        fs::write(side.mnt("f"), point).unwrap();
        sides.decided("f");
        sides.same("f", point.as_bytes());
    }
}

#[test]
fn who_throws_it_away_dies_at_each_step() {
    for point in ["peer.asking", "peer.emptying", "peer.cut", "peer.cut.synced", "peer.called", "peer.granted"] {
        survives(true, point, false);
    }
}

#[test]
fn who_puts_it_dies_at_each_step() {
    for point in ["peer.asking", "peer.put.held", "peer.put.placed", "peer.put.durable"] {
        survives(true, point, true);
    }
}

#[test]
fn who_is_asked_to_offer_dies_at_each_step() {
    for point in
        ["peer.noted", "peer.called", "peer.granted", "peer.asking", "peer.answered", "peer.decided", "peer.ended"]
    {
        survives(false, point, false);
    }
    for point in ["peer.called", "peer.answered", "peer.decided"] {
        survives(false, point, true);
    }
}
