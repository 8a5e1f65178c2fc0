//! Both sides' users are at work on the same file (R11, R12, R13).

use std::fs;
use std::os::unix::fs::FileExt as _;

use crate::sides::{CHUNK, Sides, put};
use crate::tools::*;

const LEN: usize = 8 * CHUNK;
/// Too large to be brought back when it is opened.
const LARGE: usize = 40 * CHUNK;

/// A file that is open for writing stays where it is, on either side, and says so.
#[test]
fn what_is_written_stays() {
    let Some((sides, contents)) = Sides::with_files("ext4", &[("f", LEN)]) else { return };
    let mut content = contents[0].clone();
    let writer = fs::OpenOptions::new().write(true).open(sides.east.mnt("f")).unwrap();
    writer.write_all_at(b"east", 0).unwrap();
    let output = sides.east.on("migrate", &["f"]);
    assert!(!output.status.success() && said(&output).contains("open"), "{}", said(&output));
    // West cannot have it either: neither read, for it changes, nor write.
    assert!(fs::OpenOptions::new().write(true).open(sides.west.mnt("f")).is_err());
    assert!(sides.east.owns("f"));
    writer.write_all_at(b"more", 4).unwrap();
    drop(writer);
    content[..8].copy_from_slice(b"eastmore");
    wait_for("west to read it", || fs::read(sides.west.mnt("f")).is_ok_and(|found| found == content));
    sides.decided("f");
    sides.same("f", &content);
}

/// Equal size and equal mtime prove nothing: the generation does.
#[test]
fn equal_times_are_no_equal_content() {
    let Some((sides, contents)) = Sides::with_files("ext4", &[("f", LARGE)]) else { return };
    assert_same(&fs::read(sides.west.mnt("f")).unwrap(), &contents[0], "west");
    wait_for("west to own it", || sides.west.owns("f"));
    assert!(sides.decided("f"));
    sides.east.done("recall", "f");
    assert!(!sides.decided("f"));
    let part = fs::File::open(sides.west.mnt("f")).unwrap();
    let mut first = vec![0; 100];
    part.read_exact_at(&mut first, 0).unwrap();
    let new = noise("new", LARGE);
    fs::write(sides.east.mnt("f"), &new).unwrap();
    set_mtime(&sides.east.mnt("f"), 1_600_000_000, 123_456_789);
    drop(part);
    wait_for("west to see it", || fs::read(sides.west.mnt("f")).is_ok_and(|found| found == new));
    sides.decided("f");
    sides.same("f", &new);
}

/// Writers on both sides and migrations at once: no write that was synced is lost, and the two sides agree in the end.
#[test]
fn both_sides_write_at_once() {
    let Some((sides, _)) = Sides::with_files("ext4", &[("f", LEN)]) else { return };
    let written = |path: &std::path::Path, slot: u64| {
        let mut done = 0_u64;
        for round in 1..=12_u64 {
            let until = std::time::Instant::now() + SOON;
            while std::time::Instant::now() < until {
                let Ok(file) = fs::OpenOptions::new().write(true).open(path) else {
                    std::thread::sleep(std::time::Duration::from_millis(30));
                    continue;
                };
                file.write_all_at(&round.to_le_bytes(), slot * 8).unwrap();
                file.sync_all().unwrap();
                done = round;
                break;
            }
        }
        done
    };
    let (on_east, on_west) = (sides.east.mnt("f"), sides.west.mnt("f"));
    let (east, west) = std::thread::scope(|scope| {
        let east = scope.spawn(|| written(&on_east, 0));
        let west = scope.spawn(|| written(&on_west, 1));
        for _ in 0..6 {
            let _ = sides.east.on("migrate", &["f"]);
            let _ = sides.west.on("migrate", &["f"]);
        }
        (east.join().unwrap(), west.join().unwrap())
    });
    assert!(east > 0 && west > 0, "both got through: {east} and {west}");
    sides.decided("f");
    let mut found = Vec::new();
    wait_for("a read", || fs::read(sides.east.mnt("f")).map(|content| found = content).is_ok());
    assert_eq!(u64::from_le_bytes(found[..8].try_into().unwrap()), east, "east's last write");
    assert_eq!(u64::from_le_bytes(found[8..16].try_into().unwrap()), west, "west's last write");
    sides.decided("f");
    sides.same("f", &found);
}

/// A PUT to the gateway is a write: it takes a stub first, and the file stays the one that both sides have.
#[test]
fn a_put_replaces_it_on_both_sides() {
    let Some((sides, _)) = Sides::with_files("ext4", &[("f", LEN)]) else { return };
    let new = noise("put", 3 * CHUNK + 1);
    put((sides.west.name, sides.west.addr), "f", new.clone(), None).unwrap();
    assert!(sides.decided("f"), "who wrote last owns");
    wait_for("east to see it", || fs::read(sides.east.mnt("f")).is_ok_and(|found| found == new));
    sides.decided("f");
    sides.same("f", &new);
}

/// Who opens a file for writing, or cuts it, while a PUT takes its place writes to what the PUT brought: the file is the same one, and a write that was
/// acknowledged after the PUT is in it.
#[test]
fn who_opens_while_a_put_replaces_it_writes_to_the_new_one() {
    let Some((sides, _)) = Sides::with_files("ext4", &[("f", LEN)]) else { return };
    let path = sides.east.mnt("f");
    // One change at a time; opens come at any.
    let changing = std::sync::Mutex::new(());
    let (mut puts, mut refused) = (0, 0);
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut writes = 0u64;
            while !over.load(std::sync::atomic::Ordering::SeqCst) {
                let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
                let changing = changing.lock().unwrap();
                writes += 1;
                file.write_all_at(&writes.to_le_bytes(), 0).unwrap();
                drop(file);
                let found = fs::read(&path).unwrap();
                assert_eq!(found[..8], writes.to_le_bytes(), "write {writes} is in the file");
                if writes.is_multiple_of(3) {
                    truncate(&path, 1_000 + writes).unwrap();
                    assert_eq!(fs::metadata(&path).unwrap().len(), 1_000 + writes, "cut {writes}");
                }
                drop(changing);
                std::thread::sleep(std::time::Duration::from_millis(writes % 7));
            }
            writes
        });
        while puts < 60 && !writer.is_finished() {
            let changing = changing.lock().unwrap();
            match put((sides.east.name, sides.east.addr), "f", noise("put", CHUNK + puts), None) {
                Ok(_) => puts += 1,
                Err(_) => refused += 1,
            }
            drop(changing);
            std::thread::sleep(std::time::Duration::from_millis(refused % 5));
        }
        over.store(true, std::sync::atomic::Ordering::SeqCst);
        let writes = writer.join().unwrap();
        eprintln!("{puts} PUTs, {refused} refused, {writes} writes");
    });
    assert!(sides.east.tierfs(&["check", path.to_str().unwrap()]).status.success());
}

/// A pair stays while stubs name it (R8), and can be edited while it is used.
#[test]
fn a_pair_stays_while_stubs_name_it() {
    let Some((mut sides, contents)) = Sides::with_files("ext4", &[("f", LEN)]) else { return };
    sides.east.done("migrate", "f");
    assert!(sides.decided("f"));
    let refused = |side: &crate::sides::Side, piece: &str| {
        let output = side.tierfs(&["pair", "remove", "gp"]);
        assert!(!output.status.success() && said(&output).contains(piece), "{piece:?} wanted: {}", said(&output));
    };
    refused(&sides.east, "mount");
    let output = sides.east.tierfs(&["pair", "edit", "gp", "--retention", "7d"]);
    assert!(output.status.success(), "{}", said(&output));
    sides.east.umount();
    refused(&sides.east, "f");
    sides.east.mount();
    sides.same("f", &contents[0]);
}

/// Both sides say the same of a file, or `check` tells that they do not.
#[test]
fn a_check_compares_both_sides() {
    let Some((mut sides, contents)) = Sides::with_files("ext4", &[("f", LEN)]) else { return };
    for side in [&sides.east, &sides.west] {
        side.done("check", "f");
    }
    // West's share comes back from a backup of before it owned the file.
    let before = xattr(&sides.west.low("f"), "trusted.tierfs.record").unwrap();
    sides.east.done("migrate", "f");
    assert!(sides.decided("f"));
    sides.west.umount();
    let owned = xattr(&sides.west.low("f"), "trusted.tierfs.record").unwrap();
    let set = |value: &[u8]| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::lsetxattr(sides.west.low("f"), "trusted.tierfs.record", value, flags).unwrap();
    };
    set(&before);
    sides.west.mount();
    for side in [&sides.east, &sides.west] {
        let output = side.on("check", &["f"]);
        assert!(!output.status.success() && said(&output).contains("contradict"), "{}", said(&output));
        // Neither side makes anything of it.
        assert!(!side.on("recall", &["f"]).status.success());
    }
    sides.west.umount();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::lsetxattr(sides.west.low("f"), "trusted.tierfs.record", &owned, flags).unwrap();
    sides.west.mount();
    sides.same("f", &contents[0]);
}
