//! What POSIX and Linux promise of files, seen by the same program through the mount and below it: what it says must be the same.
//!
//! The programs are the scenarios in `posix/*.py`. Where the mount differs, the difference is listed with its test, as it is in
//! `docs/semantics.md`: a test fails when it no longer differs, too.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use crate::rig::*;

const PRELUDE: &str = include_str!("posix/prelude.py");

/// What a scenario says through the mount where the filesystem below says something else: label → value.
pub type Differences<'a> = &'a [(&'a str, &'a str)];

/// Runs a scenario in a fresh directory below the mount and in one on it, and compares what they say.
#[track_caller]
pub fn compare(rig: &Rig, scenario: &str, state: &str, differences: Differences) {
    let native = says(rig, scenario, state, "native");
    let mount = says(rig, scenario, state, "mount");
    let known: BTreeMap<_, _> = differences.iter().copied().collect();
    let mut wrong = Vec::new();
    let labels: BTreeSet<_> = native.keys().chain(mount.keys()).collect();
    for label in labels {
        let (below, above) = (native.get(label), mount.get(label));
        match known.get(label.as_str()) {
            None if below != above => wrong.push(format!("{label}: {above:?}, below {below:?}")),
            Some(_) if below == above => wrong.push(format!("{label}: no longer differs from below ({above:?})")),
            Some(known) if above.map(String::as_str) != Some(*known) => {
                wrong.push(format!("{label}: {above:?}, documented is {known:?}, below {below:?}"));
            }
            _ => {}
        }
    }
    wrong
        .extend(known.keys().filter(|label| !native.contains_key(**label)).map(|label| format!("{label}: never said")));
    let kind = &rig.kind;
    assert!(wrong.is_empty(), "{kind}, {state}: the mount differs from the filesystem below:\n{}", wrong.join("\n"));
}

fn says(rig: &Rig, scenario: &str, state: &str, side: &str) -> BTreeMap<String, String> {
    let name = format!("{side}-{state}");
    // Beside the share: the same filesystem.
    let below = if side == "native" { rig.fs.path().join(&name) } else { rig.low(&name) };
    let top = if side == "native" { below.clone() } else { rig.mnt(&name) };
    std::fs::create_dir(&top).unwrap();
    let program = format!("{PRELUDE}\n{scenario}");
    let mut command = Command::new("python3");
    command.args(["-c", &program]).args([top.as_os_str(), below.as_os_str()]).args([state, side]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{side}, {state}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .map(|line| {
            let (label, value) = line.split_once('\t').unwrap_or_else(|| panic!("a scenario said {line:?}"));
            (label.to_owned(), value.to_owned())
        })
        .collect()
}

/// A rig on each kind of filesystem.
fn both(check: impl Fn(&Rig)) {
    for setup in [Setup::default(), Setup::xfs()] {
        let Some(rig) = setup.build() else { return };
        check(&rig);
    }
}

/// The kernel tells FUSE neither who writes through passthrough nor whether they may keep set-id bits: every change of content
/// costs them, root's too. A native root keeps them.
const ROOT_WRITES: Differences = &[
    ("suid/O_TRUNC by root", "'0o777'"),
    ("suid/fallocate by root", "'0o777'"),
    ("suid/truncate by root", "'0o777'"),
    ("suid/truncate to 0 by root", "'0o777'"),
    ("suid/write by root", "'0o777'"),
];

const RIGHTS: &str = include_str!("posix/rights.py");
const CONTENT: &str = include_str!("posix/content.py");

#[test]
fn rights_of_resident_files() {
    both(|rig| compare(rig, RIGHTS, "resident", ROOT_WRITES));
}

#[test]
fn rights_of_stubs() {
    let Some(rig) = Rig::new() else { return };
    compare(&rig, RIGHTS, "stub", ROOT_WRITES);
}

#[test]
fn rights_of_dual_files() {
    let Some(rig) = Setup::xfs().build() else { return };
    compare(&rig, RIGHTS, "dual", ROOT_WRITES);
}

#[test]
fn rights_of_files_that_the_daemon_serves() {
    let Some(rig) = Rig::new() else { return };
    // Pages of a mapping reach the daemon as writes.
    let mapped =
        [("suid/mmap 2767 by another", "('0o767', '0o767')"), ("suid/mmap 6777 by another", "('0o777', '0o777')")];
    compare(&rig, RIGHTS, "held", &[ROOT_WRITES, &mapped].concat());
}

#[test]
fn content_of_resident_files() {
    both(|rig| compare(rig, CONTENT, "resident", &[]));
}

#[test]
fn content_of_stubs() {
    let Some(rig) = Setup::xfs().build() else { return };
    compare(&rig, CONTENT, "stub", &[]);
}

#[test]
fn content_of_files_that_the_daemon_serves() {
    let Some(rig) = Rig::new() else { return };
    compare(&rig, CONTENT, "held", &[]);
}

#[test]
fn names_and_attributes() {
    both(|rig| compare(rig, include_str!("posix/names.py"), "resident", &[]));
}

#[test]
fn locks_and_leases() {
    both(|rig| compare(rig, include_str!("posix/locks.py"), "resident", &[]));
}

#[test]
fn locks_on_files_that_the_daemon_serves() {
    let Some(rig) = Rig::new() else { return };
    compare(&rig, include_str!("posix/locks.py"), "held", &[]);
}

#[test]
fn what_cannot_be_carried_is_still_lacking() {
    both(|rig| {
        let mut lacking = vec![
            ("O_TMPFILE", "'ENOTSUP'"),
            ("RWF_NOWAIT", "'ENOTSUP'"),
            ("fallocate/collapse", "'ENOTSUP'"),
            ("fallocate/insert", "'ENOTSUP'"),
            ("file handles", "False"),
            ("ioctl/FS_IOC_FIEMAP", "'ENOTSUP'"),
            ("ioctl/FS_IOC_FSGETXATTR", "'ENOTTY'"),
            ("ioctl/FS_IOC_GETFLAGS", "'ENOTTY'"),
            ("ioctl/FS_IOC_GETVERSION", "'ENOTTY'"),
            ("ioctl/FS_IOC_SETFLAGS", "'ENOTTY'"),
            ("lock/seen below", "None"),
            ("statx birth", "False"),
            ("syncfs/written below", "False"),
            ("time/-1.9", "-1900000000"),
            ("time/-10.25", "-10250000000"),
        ];
        if rig.kind == "xfs" {
            lacking.extend([("ioctl/FICLONE", "'ENOTSUP'"), ("fallocate/unshare", "'ENOTSUP'")]);
        }
        compare(rig, include_str!("posix/lacking.py"), "resident", &lacking);
    });
}

/// ext4 keeps blocks for root and for `CAP_SYS_RESOURCE`, by the same rules as quotas.
#[test]
fn space_kept_for_root_is_kept_from_users() {
    let Some(rig) = (Setup { size: 64 << 20, ..Setup::default() }).build() else { return };
    compare(&rig, include_str!("posix/space.py"), "resident", &[]);
}
