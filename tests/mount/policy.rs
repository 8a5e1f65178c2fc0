//! What happens by itself: archiving by age, releasing by fill. And the end of a mount.

use std::fs::{self, File};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::rig::*;

#[test]
fn files_that_rest_become_dual_by_themselves() {
    let Some(rig) = (Setup { mount: vec!["--archive-after", "1s"], ..Setup::default() }).build() else { return };
    fs::create_dir_all(rig.mnt("d/e")).unwrap();
    for name in ["a", "d/b", "d/e/c"] {
        rig.write(name, 2 * CHUNK);
    }
    rig.write("pinned", CHUNK);
    rig.write("empty", 0);
    rig.on(&["pin"], &["pinned"]);
    let busy = fs::OpenOptions::new().append(true).create(true).open(rig.mnt("busy")).unwrap();
    rig.write("busy", 100);
    for name in ["a", "d/b", "d/e/c"] {
        wait_for("the file to be archived", || rig.state(name) == "dual");
        assert!(rig.allocated(name) >= 2 * CHUNK as u64, "nothing is released without --release-above");
    }
    assert_eq!((rig.state("busy").as_str(), rig.state("empty").as_str()), ("resident", "resident"));
    drop(busy);
    wait_for("the closed file to be archived", || rig.state("busy") == "dual");
    // A change makes it resident, and it is archived again.
    fs::write(rig.mnt("a"), b"changed").unwrap();
    assert_eq!(rig.state("a"), "resident");
    wait_for("the changed file to be archived", || rig.state("a") == "dual");
    rig.same("a", b"changed");
    rig.settled(&["a", "d/b", "d/e/c", "busy", "pinned"]);
}

#[test]
fn a_filling_share_is_released_coldest_first_down_to_the_low_mark() {
    let Some(mut rig) = (Setup { size: 64 << 20, ..Setup::default() }).build() else { return };
    let names: Vec<String> = (0..20).map(|n| format!("f{n}")).collect();
    for (n, name) in names.iter().enumerate() {
        rig.write(name, 2 << 20);
        // The higher the number, the warmer.
        set_mtime(&rig.mnt(name), 1_500_000_000 + n as i64 * 1000, 0);
    }
    let lower = rig.fs.path();
    let used = || {
        let space = rustix::fs::statvfs(&lower).unwrap();
        let used = space.f_blocks - space.f_bfree;
        used as f64 * 100.0 / (used + space.f_bavail) as f64
    };
    // All are dual when the policy begins, so it could release all at once.
    rig.on(&["migrate", "-r", "--archive-only"], &[""]);
    assert!(used() > 55.0, "{}", used());
    rig.umount();
    let output = rig.try_mount(&["-o", "archive_after=1s,release_above=50%,release_below=30%"]);
    assert!(output.status.success(), "{}", said(&output));
    wait_for("the share to be released", || used() <= 31.0);
    std::thread::sleep(Duration::from_secs(3));
    assert!(used() > 25.0, "more was released than was asked for: {}", used());
    let states: Vec<String> = names.iter().map(|name| rig.state(name)).collect();
    let stubs = states.iter().filter(|state| *state == "stub").count();
    assert!((5..20).contains(&stubs), "{states:?}");
    assert!(states[..stubs.saturating_sub(3)].iter().all(|state| state == "stub"), "the coldest first: {states:?}");
    assert_eq!(states[19], "dual");
    rig.same("f0", &noise("f0", 2 << 20));
}

#[test]
fn an_unmount_in_use_is_refused_and_names_who() {
    let Some(mut rig) = Rig::new() else { return };
    rig.write("a", 30 * CHUNK);
    let mut holder = Command::new("sleep").arg("60").current_dir(rig.mountpoint()).spawn().unwrap();
    let mountpoint = rig.mountpoint();
    let refused = rig.tierfs(&["umount".as_ref(), mountpoint.as_os_str()]);
    holder.kill().unwrap();
    holder.wait().unwrap();
    code(&refused, 3);
    assert!(said(&refused).contains(&format!("process {} (sleep)", holder.id())), "{}", said(&refused));
    let mut holder = Command::new("sleep").arg("60").stdin(File::open(rig.mnt("a")).unwrap()).spawn().unwrap();
    let refused = rig.tierfs(&["umount".as_ref(), mountpoint.as_os_str()]);
    // Refused, it goes on as before.
    rig.on(&["migrate", "--archive-only"], &["a"]);
    holder.kill().unwrap();
    holder.wait().unwrap();
    code(&refused, 3);
    let who = format!("process {} (sleep): has {} open", holder.id(), rig.mnt("a").display());
    assert!(said(&refused).contains(&who), "{}", said(&refused));
    let daemon = rig.daemon.unwrap();
    let begun = Instant::now();
    rig.umount();
    assert!(!alive(daemon), "the daemon is gone when the command returns");
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert!(fs::read_dir(&mountpoint).unwrap().next().is_none());
    rig.mount();
    assert_eq!(rig.state("a"), "dual");
}
