//! The peer is down, or one of the two ends as in a crash, while changes come: in the end both are equal.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tierfs::capture::files::Facts;
use tierfs::sync::wire::{Kind, Node};
use tierfs::types::PairFileId;

use crate::hostile::{ROOT, Sends, name, node};
use crate::tools::*;
use crate::two::Two;

/// Changes of all kinds in a few directories, from a seed, until it is told to stop or the mount is gone.
fn changes(root: PathBuf, seed: u64, stop: Arc<AtomicBool>, count: Arc<AtomicU64>) {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut dice = move |n: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % n
    };
    while !stop.load(Ordering::SeqCst) {
        let dir = |n: u64| root.join(format!("d{}", n % 4));
        let name = |a: u64, b: u64| dir(a).join(format!("n{}", b % 24));
        let (a, b, c, d) = (dice(4), dice(24), dice(4), dice(24));
        let (one, two) = (name(a, b), name(c, d));
        // What is not possible just now is as good as what is.
        let _ = match dice(10) {
            0..3 => fs::write(&one, "x".repeat(d as usize)),
            3 => fs::remove_file(&one),
            4 | 5 => fs::rename(&one, &two),
            6 => fs::hard_link(&one, &two),
            7 => fs::create_dir(&one).and_then(|()| fs::write(one.join("in"), "i")),
            8 => fs::remove_dir_all(&one),
            _ => std::os::unix::fs::symlink("x", &one),
        };
        count.fetch_add(1, Ordering::SeqCst);
    }
}

fn begin(two: &Two) {
    for n in 0..4 {
        fs::create_dir(two.east.mnt(format!("d{n}"))).unwrap();
    }
    two.equal();
}

/// Has `seeds` change things until `many` changes are made, does `meanwhile` in their midst.
fn amid(two: &mut Two, seed: u64, many: u64, meanwhile: impl FnOnce(&mut Two)) {
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let workers: Vec<_> = (0..2)
        .map(|n| {
            let (root, stop, count) = (two.east.mountpoint(), stop.clone(), count.clone());
            std::thread::spawn(move || changes(root, seed * 7 + n, stop, count))
        })
        .collect();
    wait_for("changes", || count.load(Ordering::SeqCst) > many);
    meanwhile(two);
    std::thread::sleep(Duration::from_millis(100));
    stop.store(true, Ordering::SeqCst);
    for worker in workers {
        worker.join().unwrap();
    }
}

#[test]
fn what_changes_while_the_peer_is_down_is_told_when_it_is_up() {
    let Some(mut two) = Two::new() else { return };
    begin(&two);
    two.west.umount();
    amid(&mut two, 1, 600, |_| {});
    assert!(two.east.status()["waiting"].as_u64().unwrap() > 0);
    assert!(two.east.left().1 > 0, "it is marked");
    // The master's own restart in between loses nothing.
    two.east.umount();
    two.east.mount();
    two.west.mount();
    two.equal();
    two.told();
    wait_for("no marks and nothing without a name", || two.east.left().1 == 0 && two.west.left().0 == 0);
}

#[test]
fn a_crash_of_the_master_amid_changes_loses_nothing() {
    let Some(mut two) = Two::new() else { return };
    begin(&two);
    for seed in 0..6 {
        amid(&mut two, seed, 150 + 60 * seed, |two| two.east.crash());
        two.east.mount();
        two.equal();
        wait_for("nothing without a name", || two.west.left().0 == 0);
    }
}

#[test]
fn a_crash_of_the_slave_amid_changes_loses_nothing() {
    let Some(mut two) = Two::of("xfs", "slave") else { return };
    begin(&two);
    for seed in 10..16 {
        amid(&mut two, seed, 150 + 60 * (seed - 10), |two| {
            two.west.crash();
            two.west.mount();
        });
        two.equal();
        wait_for("nothing without a name", || two.west.left().0 == 0);
    }
    let again = two.east.reconcile(&["--dry-run"]);
    assert_eq!(again["counts"]["made"], 0, "{again}");
}

/// What the master had told is there after its loss of power, and what was lost with it is taken back from the slave.
#[test]
fn a_loss_of_power_at_the_master_leaves_both_equal() {
    for kind in ["ext4", "xfs"] {
        let Some(mut two) = Two::of(kind, "slave") else { return };
        begin(&two);
        for seed in 30..32 {
            // Older marks would have all of it told anyway.
            wait_for("no marks", || two.east.left().1 == 0);
            amid(&mut two, seed, 200, |two| two.east.lose_power());
            two.east.mount();
            two.equal();
            wait_for("nothing without a name", || two.west.left().0 == 0);
        }
    }
}

/// A name made, one renamed and one linked, which the slave has by now.
fn three_names(two: &Two, round: u32) -> [String; 3] {
    let names = ["made", "renamed", "linked"].map(|name| format!("d0/{name}{round}"));
    fs::write(two.east.mnt(&names[0]), "x").unwrap();
    fs::write(two.east.mnt("d0/old"), "x").unwrap();
    fs::rename(two.east.mnt("d0/old"), two.east.mnt(&names[1])).unwrap();
    fs::hard_link(two.east.mnt(&names[0]), two.east.mnt(&names[2])).unwrap();
    wait_for("the slave to have it", || names.iter().all(|name| two.west.low(name).exists()));
    names
}

/// Before a batch is told, what it says is on the master's disk: else a master that loses its power would not have what its slave has.
#[test]
fn what_is_told_survives_at_the_master() {
    // This one writes nothing by itself for five minutes.
    let Some(mut two) = Two::of("ext4", "slave") else { return };
    begin(&two);
    for round in 0..2 {
        // The share is synced while there are marks.
        wait_for("no marks", || two.east.left().1 == 0);
        let names = three_names(&two, round);
        two.east.lose_power();
        for name in &names {
            assert!(
                two.east.low(name).exists(),
                "{name}: the slave has been told of it, and the master does not have it"
            );
        }
        two.east.mount();
        two.equal();
    }
}

/// Before a batch is answered, what it said is on the slave's disk: the master forgets what was answered.
#[test]
fn what_is_answered_survives_at_the_slave() {
    let Some(mut two) = Two::of("ext4", "slave") else { return };
    begin(&two);
    for round in 0..3 {
        let names = three_names(&two, round);
        two.told();
        two.west.lose_power();
        for name in &names {
            assert!(two.west.low(name).exists(), "{name}: it was answered, and is lost");
        }
        assert!(!two.west.low("d0/old").exists(), "its old name was given up");
        two.west.mount();
        two.equal();
    }
}

#[test]
fn a_loss_of_power_at_the_slave_leaves_both_equal() {
    for kind in ["ext4", "xfs"] {
        let Some(mut two) = Two::of(kind, "slave") else { return };
        begin(&two);
        for seed in 40..43 {
            amid(&mut two, seed, 200, |two| {
                two.west.lose_power();
                two.west.mount();
            });
            two.equal();
            wait_for("nothing without a name", || two.west.left().0 == 0);
        }
    }
}

/// The slave dies when all of a batch is in its share, and nothing of it in its book. In the batch a file comes under one name and goes under another: its
/// id was known by no one then, so the repeated batch made the file once more, under the first name, and when that went, the second inode waited for
/// ever for a name.
#[test]
fn a_batch_that_is_repeated_makes_nothing_twice() {
    for kind in ["ext4", "xfs"] {
        let Some(mut two) = Two::unmounted(kind, "slave") else { return };
        two.west.kill_at = Some("peer.sync.applied".into());
        two.west.mount();
        two.west.kill_at = None;
        let facts = Facts { size: 5, held: true, ..Facts::default() };
        let is = |id: u8, kind: Kind, links: u32| Some(Node { links, ..node(id, kind) });
        let (file, link) = (Kind::Regular(facts), Kind::Symlink { target: b"x".to_vec() });
        let d = PairFileId([9; 16]);
        // One in a directory that came by the same batch, and was renamed in it.
        let statements = vec![
            name(ROOT, b"a", is(1, file.clone(), 1)),
            name(ROOT, b"l", is(2, link.clone(), 1)),
            name(ROOT, b"old", is(9, Kind::Directory, 2)),
            name(d, b"in", is(3, file.clone(), 1)),
            name(ROOT, b"b", is(1, file.clone(), 2)),
            name(ROOT, b"m", is(2, link, 2)),
            name(ROOT, b"new", is(9, Kind::Directory, 2)),
            name(d, b"other", is(3, file, 2)),
            name(ROOT, b"a", None),
            name(ROOT, b"l", None),
            name(ROOT, b"old", None),
            name(d, b"in", None),
        ];
        let peer = Sends::to(&two.west, "east");
        let run = 1 << 60;
        peer.begin(&two.east, run).unwrap();
        peer.batch(run, 1, statements).unwrap_err();
        wait_for("its end", || !alive(two.west.daemon.unwrap()));
        two.west.crash();
        let before = two.west.tree();
        two.west.mount();
        assert_eq!(two.west.left().0, 0, "{kind}: in limbo");
        let names: Vec<PathBuf> = two.west.tree().into_keys().collect();
        assert_eq!(names, ["b", "m", "new", "new/other"].map(PathBuf::from), "{kind}");
        assert_eq!(two.west.tree(), before, "{kind}: the repeated batch");
        peer.begin(&two.east, run + 1).unwrap();
        assert_eq!(peer.batch(run + 1, 1, Vec::new()).unwrap().nameless, [], "{kind}");
    }
}

/// The order is that of the changes: whoever sees the last of a chain sees all of it.
#[test]
fn the_order_is_that_of_the_changes() {
    let Some(two) = Two::new() else { return };
    fs::create_dir(two.east.mnt("chain")).unwrap();
    two.equal();
    let root = two.east.mountpoint();
    let making = std::thread::spawn(move || {
        for n in 0..400 {
            fs::write(root.join(format!("chain/{n:04}")), "").unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let deadline = Instant::now() + SOON;
    loop {
        // Listed first, then looked at: what came before the last one listed is there.
        let mut seen: Vec<String> = fs::read_dir(two.west.low("chain"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        seen.sort();
        if let Some(last) = seen.last() {
            for n in 0..last.parse::<u32>().unwrap() {
                assert!(two.west.low(format!("chain/{n:04}")).exists(), "{last} is there, and {n} is not");
            }
        }
        if seen.len() == 400 {
            break;
        }
        assert!(Instant::now() < deadline, "{} of 400", seen.len());
    }
    making.join().unwrap();
    two.equal();
    assert_eq!(fs::metadata(two.west.mnt("chain/0001")).unwrap().nlink(), 1);
}
