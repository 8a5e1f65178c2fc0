//! What the daemon keeps for inodes that the kernel knows: bounded descriptors, few bytes, and nothing after the kernel forgets.

use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

use crate::rig::*;

const FILES_PER_DIR: u64 = 1000;
/// `DESCRIPTORS_MAX_DEFAULT`, and room for what a daemon has open anyway.
const DESCRIPTORS_MAX: usize = 8_192 + 100;

fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Resident memory of a process in bytes.
fn resident(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Makes `count` empty files below.
fn fill(share: &Path, count: u64) {
    for dir in 0..count / FILES_PER_DIR {
        let dir = share.join(format!("{dir:05}"));
        fs::create_dir(&dir).unwrap();
        for file in 0..FILES_PER_DIR {
            File::create(dir.join(format!("{file:03}"))).unwrap();
        }
    }
}

/// Looks at all of them through the mount; how many there are.
fn look(top: &Path) -> u64 {
    let mut seen = 0;
    for dir in fs::read_dir(top).unwrap() {
        for file in fs::read_dir(dir.unwrap().path()).into_iter().flatten() {
            seen += u64::from(fs::symlink_metadata(file.unwrap().path()).unwrap().is_file());
        }
    }
    seen
}

#[test]
fn descriptors_are_bounded_however_many_files_are_known() {
    let Some(rig) = Rig::new() else { return };
    fill(&rig.share(), 12_000);
    assert_eq!(look(&rig.mountpoint()), 12_000);
    let open = descriptors(rig.daemon.unwrap());
    assert!(open > 4_000, "only {open} descriptors: nothing is cached");
    assert!(open <= DESCRIPTORS_MAX, "{open} descriptors");
}

/// Bytes of the daemon's memory for each inode, as the table of inodes has it when it is fullest.
const EACH_MAX: u64 = 85;
/// What comes with looking at many files, however many: the caches of descriptors and of the index, with what the allocator keeps. Some 55 MB were measured.
const CACHES_MAX: u64 = 100_000_000;

/// The figures of `docs/architecture.md`. Drops the machine's caches of names, twice.
#[test]
#[ignore = "takes a minute or two: make known"]
fn a_million() {
    let count = std::env::var("TIERFS_KNOWN").map_or(1_000_000, |text| text.parse().unwrap());
    let setup = Setup { size: count * 20_000 + (1 << 30), ..Setup::default() };
    let Some(rig) = setup.build() else { return };
    let pid = rig.daemon.unwrap();
    fill(&rig.share(), count);
    rig.quiet();
    let forget = || {
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        std::thread::sleep(std::time::Duration::from_secs(2));
        resident(pid)
    };
    // What the daemon needs to work at all does not count.
    fs::read_dir(rig.mnt("00000")).unwrap().for_each(drop);
    let before = forget();
    let started = Instant::now();
    assert_eq!(look(&rig.mountpoint()), count);
    let (open, after) = (descriptors(pid), resident(pid));
    println!(
        "{count} inodes known in {:?}: {} bytes more, {} each, {open} descriptors",
        started.elapsed(),
        after - before,
        (after - before) / count
    );
    let forgotten = forget();
    println!("before {before} bytes, with them {after}, after they are forgotten {forgotten}");
    assert!(open <= DESCRIPTORS_MAX, "{open} descriptors");
    assert!(after - before <= EACH_MAX * count + CACHES_MAX, "inodes take more than docs/architecture.md says");
    assert!(forgotten.saturating_sub(before) <= CACHES_MAX, "memory does not come back");
}
