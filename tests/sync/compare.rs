//! Comparisons: a fresh slave, a slave that has diverged, a look that changes nothing, what changed while nobody took note.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use crate::tools::*;
use crate::two::Two;

#[test]
fn a_fresh_slave_gets_five_thousand_files() {
    let Some(two) = Two::unmounted("ext4", "slave") else { return };
    // Below the mount, before there was one.
    for d in 0..50 {
        let dir = two.east.low(format!("d{}/e{d}", d % 10));
        fs::create_dir_all(&dir).unwrap();
        for n in 0..100 {
            fs::write(dir.join(format!("f{n}")), format!("{d} {n}")).unwrap();
        }
        symlink("f1", dir.join("link")).unwrap();
        fs::hard_link(dir.join("f2"), two.east.low(format!("d{}/h{d}", d % 10))).unwrap();
    }
    let mut two = two.mounted();
    assert_eq!(two.west.tree().len(), 0);
    // A look first: it says what there is to do, and does nothing, not even give ids.
    let wanted = two.east.tree();
    let seen = two.east.reconcile(&["--dry-run"]);
    assert_eq!(seen["counts"]["made"], wanted.len(), "{seen}");
    assert_eq!(two.west.tree().len(), 0);
    assert!(xattr(&two.east.low("d1"), "trusted.tierfs.peer-id").is_err());
    let before = two.east.status()["batches"].as_u64().unwrap();
    let done = two.east.reconcile(&[]);
    // Some directories a batch, and a thousand names at most.
    let batches = two.east.status()["batches"].as_u64().unwrap() - before;
    assert!(batches < 15, "{batches} batches for {} names", wanted.len());
    two.equal();
    assert_eq!(done["counts"]["refused"], 0, "{done}");
    // Again, and nothing is to be done.
    let again = two.east.reconcile(&["--dry-run"]);
    for what in ["made", "moved", "changed", "removed", "refused"] {
        assert_eq!(again["counts"][what], 0, "{what}: {again}");
    }
    assert_eq!(two.east.status()["refused"], 0);
    // Whoever lost everything but the share still knows what is what.
    two.west.umount();
    fs::remove_dir_all(two.west.scratch("state/shares")).unwrap();
    let inode = fs::metadata(two.west.low("d1/e1/f5")).unwrap().ino();
    two.west.mount();
    fs::rename(two.east.mnt("d1/e1/f5"), two.east.mnt("d2/moved")).unwrap();
    two.equal();
    assert_eq!(fs::metadata(two.west.low("d2/moved")).unwrap().ino(), inode);
}

#[test]
fn a_slave_that_has_diverged_becomes_equal_again() {
    let Some(mut two) = Two::of("xfs", "slave") else { return };
    for d in 0..5 {
        fs::create_dir(two.east.mnt(format!("d{d}"))).unwrap();
        for n in 0..20 {
            fs::write(two.east.mnt(format!("d{d}/f{n}")), "content").unwrap();
        }
    }
    two.equal();
    // Below the mounts: names go, come and move; attributes change.
    let (east, west) = (two.east.share(), two.west.share());
    let inode = fs::metadata(west.join("d1/f1")).unwrap().ino();
    fs::remove_file(east.join("d0/f0")).unwrap();
    fs::rename(east.join("d1/f1"), east.join("d2/elsewhere")).unwrap();
    fs::rename(east.join("d3"), east.join("d4/d3")).unwrap();
    fs::write(east.join("d0/new"), "new").unwrap();
    fs::set_permissions(east.join("d0/f1"), fs::Permissions::from_mode(0o600)).unwrap();
    set_mtime(&east.join("d0"), 1_000_000_000, 1);
    fs::remove_file(west.join("d0/f3")).unwrap();
    fs::set_permissions(west.join("d0/f4"), fs::Permissions::from_mode(0o666)).unwrap();
    fs::rename(west.join("d1/f5"), west.join("d1/f5-moved")).unwrap();
    fs::write(west.join("own"), "the slave's own").unwrap();
    // The kernel knows the old names for a while: nobody has told it.
    for side in [&mut two.east, &mut two.west] {
        side.umount();
        side.mount();
    }
    let seen = two.east.reconcile(&["--dry-run"]);
    assert!(seen["counts"]["removed"].as_u64().unwrap() >= 3, "{seen}");
    assert_eq!(fs::read(two.west.low("own")).unwrap(), b"the slave's own");
    assert!(west.join("d1/f5-moved").exists());
    two.east.reconcile(&[]);
    two.told();
    assert_eq!(fs::read(two.west.low("own")).unwrap(), b"the slave's own");
    fs::remove_file(two.west.mnt("own")).unwrap();
    two.equal();
    assert_eq!(fs::metadata(west.join("d2/elsewhere")).unwrap().ino(), inode);
    wait_for("nothing without a name", || two.west.left().0 == 0);
    // The slave says where to ask.
    let refused = two.west.run(&["sync", "--reconcile"]);
    code(&refused, 3);
    assert!(said(&refused).contains("east") && said(&refused).contains("slave"), "{}", said(&refused));
}

/// A comparison that is interrupted goes on, and ends with all that changed meanwhile.
#[test]
fn a_comparison_goes_on_after_a_crash() {
    let Some(two) = Two::unmounted("ext4", "slave") else { return };
    for d in 0..120 {
        let dir = two.east.low(format!("d{d}"));
        fs::create_dir(&dir).unwrap();
        for n in 0..20 {
            fs::write(dir.join(format!("f{n}")), "x").unwrap();
        }
    }
    let mut two = two.mounted();
    let mut comparing = two.east.command(&["sync", "--reconcile", two.east.mountpoint().to_str().unwrap()]);
    let mut child = comparing.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    wait_for("some of it", || two.west.tree().len() > 200);
    two.east.crash();
    child.wait().unwrap();
    two.east.mount();
    fs::write(two.east.mnt("d3/later"), "later").unwrap();
    fs::rename(two.east.mnt("d7"), two.east.mnt("d8/d7")).unwrap();
    two.equal();
    two.told();
    assert!(!two.east.status()["compared"].is_null());
}
