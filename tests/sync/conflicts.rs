//! What only the slave has is in the way; a second master; a master that is another share.

use std::fs;

use crate::tools::*;
use crate::two::Two;

#[test]
fn what_only_the_slave_has_is_never_overwritten() {
    let Some(two) = Two::new() else { return };
    let (east, west) = (&two.east, &two.west);
    fs::create_dir(east.mnt("d")).unwrap();
    two.equal();
    fs::write(west.mnt("d/f"), "the slave's").unwrap();
    fs::create_dir(west.mnt("sub")).unwrap();
    fs::write(west.mnt("sub/x"), "the slave's").unwrap();
    // The master makes the same names, and more below one of them.
    fs::write(east.mnt("d/f"), "the master's").unwrap();
    fs::create_dir(east.mnt("sub")).unwrap();
    fs::write(east.mnt("sub/y"), "the master's").unwrap();
    fs::write(east.mnt("d/other"), "fine").unwrap();
    wait_for("the conflicts", || west.status()["refused"] == 2 && west.mnt("d/other").exists());
    assert_eq!(fs::read(west.mnt("d/f")).unwrap(), b"the slave's");
    assert!(!west.mnt("sub/y").exists());
    let status = west.said(&["sync", "status"]);
    for path in ["d/f", "sub"] {
        let line = format!("{}: something that only this side has", west.mnt(path).display());
        assert!(status.contains(&line), "{line} in {status}");
    }
    assert_eq!(east.status()["refused"], 2, "{}", east.said(&["sync", "status"]));
    let before = east.status()["batches"].as_u64().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let asked = east.status()["batches"].as_u64().unwrap() - before;
    assert!(asked <= 2, "it is not told over and over: {asked}");
    // Nothing to take where nothing is in the way, and not at the master.
    for (side, path) in [(west, "d/other"), (west, "d/none"), (east, "d/f")] {
        let path = side.mnt(path);
        code(&side.tierfs(&["sync", "--take", path.to_str().unwrap()]), 3);
    }
    for path in ["d/f", "sub"] {
        let path = west.mnt(path);
        let taken = west.tierfs(&["sync", "--take", path.to_str().unwrap()]);
        code(&taken, 0);
        assert!(said(&taken).contains("~own"), "{}", said(&taken));
    }
    wait_for("the master's", || west.mnt("sub/y").exists() && west.status()["refused"] == 0);
    assert_eq!(fs::read(west.mnt("d/f~own")).unwrap(), b"the slave's");
    assert_eq!(fs::read(west.mnt("sub~own/x")).unwrap(), b"the slave's");
    assert_eq!(fs::metadata(west.mnt("d/f")).unwrap().len(), 12);
    fs::remove_file(west.mnt("d/f~own")).unwrap();
    fs::remove_dir_all(west.mnt("sub~own")).unwrap();
    // What the slave does beside the master's names moves the times of its directories until the master says them again.
    fs::write(east.mnt("d/last"), "").unwrap();
    two.equal();
}

#[test]
fn there_is_one_master() {
    let Some(two) = Two::of("ext4", "master") else { return };
    fs::write(two.east.mnt("from-east"), "e").unwrap();
    fs::write(two.west.mnt("from-west"), "w").unwrap();
    for side in [&two.east, &two.west] {
        wait_for("it says so", || {
            let problem = side.status()["problem"].as_str().unwrap_or_default().to_owned();
            ["east:", "west:", "meta_sync_role", "master"].iter().all(|word| problem.contains(word))
        });
        code(&side.run(&["sync", "status"]), 1);
    }
    assert!(!two.east.mnt("from-west").exists() && !two.west.mnt("from-east").exists());
    // Settled by one of them.
    let mut two = two;
    two.west.umount();
    two.west.set_role("slave");
    fs::remove_file(two.west.low("from-west")).unwrap();
    two.west.mount();
    two.equal();
}

/// The master's filesystem is not mounted, or its share was made anew: what is missing there must not be removed at the slave.
#[test]
fn another_share_is_not_taken_for_the_master() {
    let Some(mut two) = Two::new() else { return };
    fs::create_dir(two.east.mnt("d")).unwrap();
    fs::write(two.east.mnt("d/f"), "f").unwrap();
    two.equal();
    two.east.umount();
    two.east.lose("ext4");
    // The path is part of who it is; the same path, another directory.
    two.west.umount();
    two.west.mount();
    two.east.mount();
    fs::write(two.east.mnt("new"), "new").unwrap();
    wait_for("it is refused", || {
        two.east.status()["problem"].as_str().is_some_and(|why| why.contains("--accept-master"))
    });
    assert!(two.west.mnt("d/f").exists() && !two.west.mnt("new").exists());
    code(&two.west.run(&["sync", "--accept-master"]), 0);
    wait_for("it is told", || two.west.mnt("new").exists());
    // And only a comparison takes away what is not there.
    assert!(two.west.mnt("d/f").exists());
    two.east.reconcile(&[]);
    two.equal();
}

/// The sides change their roles: whoever is the slave now knows by their ids what it had told as the master, and the other way round.
#[test]
fn the_other_side_becomes_the_master() {
    let Some(mut two) = Two::new() else { return };
    fs::create_dir(two.east.mnt("d")).unwrap();
    for name in ["f", "g", "h"] {
        fs::write(two.east.mnt("d").join(name), name).unwrap();
    }
    two.equal();
    for turn in 0..3 {
        for side in [&two.east, &two.west] {
            wait_for("all told", || side.status()["waiting"] == 0);
        }
        two.east.umount();
        two.west.umount();
        let (now, then) = if turn % 2 == 0 { ("slave", "master") } else { ("master", "slave") };
        two.east.set_role(now);
        two.west.set_role(then);
        two.west.mount();
        two.east.mount();
        let (master, slave) = if turn % 2 == 0 { (&two.west, &two.east) } else { (&two.east, &two.west) };
        // By inode, by name, and by a new name.
        let (old, new) = (format!("d/g{}", "x".repeat(turn)), format!("d/g{}", "x".repeat(turn + 1)));
        let inode = |path: &std::path::Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
        let before = inode(&slave.low(&old));
        set_mode(&master.mnt("d/f"), 0o600 + turn as u32);
        fs::rename(master.mnt(&old), master.mnt(&new)).unwrap();
        fs::write(master.mnt(format!("d/new{turn}")), "new").unwrap();
        two.equal();
        assert_eq!(inode(&slave.low(&new)), before, "turn {turn}: a rename is a rename");
        assert_eq!(fs::read(slave.mnt("d/h")).unwrap(), b"h");
        assert_eq!(errno(fs::remove_file(slave.mnt("d/h"))), Some(libc::EROFS));
        wait_for("nothing without a name", || slave.left().0 == 0);
        assert_eq!(master.reconcile(&["--dry-run"])["counts"]["made"], 0);
    }
}

fn set_mode(path: &std::path::Path, mode: u32) {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
}
