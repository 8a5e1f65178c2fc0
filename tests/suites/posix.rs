//! pjdfstest: the mount fails, and skips, nothing that the filesystem below it does not.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::place::{ends, installed, rig};
use crate::rig::*;

/// Users and groups that every Debian has. The cases that remount read-only are wanted too.
const CONFIGURATION: &str = r#"
[features]
posix_fallocate = {}
utime_now = {}
utimensat = {}
rename_ctime = {}
[settings]
naptime = 0.01
allow_remount = REMOUNT
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// Cases known to end otherwise on the mount than below, as `(filesystem, case, how it ends)`. The reasons are in `docs/semantics.md`; the
/// test fails when one of them ends as below, too.
const EXPECTED: [(&str, &str, &str); 1] = [("ext4", "link::link_count_max", "skipped")];

/// How each case ended, by name: `ok`, `skipped` or `FAILED`; and all that was said.
type Outcomes = (BTreeMap<String, String>, String);

/// Runs all cases at `at`. Those that remount read-only have a process of their own: the others leave files open, and a filesystem with
/// open files without a name cannot become read-only.
fn outcomes(rig: &Rig, at: &Path) -> Outcomes {
    let (mut outcomes, mut text) = pjdfstest(rig, at, "");
    assert!(outcomes.len() >= 390, "only {} cases", outcomes.len());
    let (remounting, more) = pjdfstest(rig, at, "erofs");
    assert!(remounting.len() >= 12, "only {} cases that remount", remounting.len());
    outcomes.extend(remounting);
    text += &more;
    (outcomes, text)
}

fn pjdfstest(rig: &Rig, at: &Path, pattern: &str) -> Outcomes {
    let (configuration, other, bin) = (rig.scratch("pjdfstest.toml"), rig.scratch("other"), rig.scratch("bin"));
    for dir in [&other, &bin] {
        fs::create_dir_all(dir).unwrap();
    }
    fs::write(&configuration, CONFIGURATION.replace("REMOUNT", if pattern.is_empty() { "false" } else { "true" }))
        .unwrap();
    // Debian's mount.fuse would be asked to remount, and would mount anew: see docs/semantics.md.
    fs::write(bin.join("mount"), "#!/bin/sh\nexec /bin/mount -i \"$@\"\n").unwrap();
    fs::set_permissions(bin.join("mount"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(installed("pjdfstest"));
    command.env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap())).env("NO_COLOR", "1");
    command.arg("-c").arg(configuration).arg("-p").arg(at).arg("-s").arg(other).current_dir("/");
    if !pattern.is_empty() {
        command.arg(pattern);
    }
    let text = said(&ends(&mut command));
    let outcomes: BTreeMap<_, _> = text
        .lines()
        .filter(|line| !line.starts_with(char::is_whitespace))
        .filter_map(|line| line.rsplit_once(' '))
        .filter(|(_, outcome)| ["ok", "skipped", "FAILED"].contains(outcome))
        .map(|(case, outcome)| (case.trim().to_owned(), outcome.to_owned()))
        .collect();
    let total = text.lines().find(|line| line.starts_with("Summary: "));
    let total = total.unwrap_or_else(|| panic!("no summary:\n{text}"));
    assert!(total.ends_with(&format!(" {} total", outcomes.len())), "not all understood: {total}\n{text}");
    eprintln!("{}: {total}", at.display());
    (outcomes, text)
}

fn no_worse_than_below(kind: &'static str) {
    let Some(rig) = rig(kind, 3 << 30) else { return };
    let (below, _) = outcomes(&rig, &rig.fs.path());
    let (through, text) = outcomes(&rig, &rig.mountpoint());
    let found: Vec<_> = below
        .iter()
        .filter_map(|(case, below)| {
            let through = through.get(case).map_or("missing", String::as_str);
            (through != below).then_some((kind, case.as_str(), through))
        })
        .collect();
    let expected: Vec<_> = EXPECTED.into_iter().filter(|(on, ..)| *on == kind).collect();
    assert_eq!(found, expected, "cases that end otherwise than below; what pjdfstest said on the mount:\n{text}");
    assert!(below.values().filter(|outcome| *outcome == "ok").count() >= 380, "{below:?}");
}

#[test]
fn pjdfstest_passes_on_ext4_what_passes_below() {
    no_worse_than_below("ext4");
}

#[test]
fn pjdfstest_passes_on_xfs_what_passes_below() {
    no_worse_than_below("xfs");
}

/// What `link::link_count_max` would have shown. The C library cannot tell programs the limit of a FUSE filesystem; it holds all the same.
#[test]
fn links_beyond_what_ext4_can_count_are_refused() {
    let Some(rig) = rig("ext4", 1 << 30) else { return };
    fs::create_dir(rig.mnt("links")).unwrap();
    fs::write(rig.mnt("links/file"), b"content").unwrap();
    // The many are made below, which is faster; the kernel has no names of theirs in its cache.
    for n in 0..64_990 {
        fs::hard_link(rig.low("links/file"), rig.low(format!("links/{n}"))).unwrap();
    }
    let refused = (0..20).map(|n| fs::hard_link(rig.mnt("links/file"), rig.mnt(format!("links/more{n}"))));
    let errors: Vec<_> = refused.map(errno).collect();
    let made = errors.iter().filter(|error| error.is_none()).count();
    assert_eq!(made, 9, "{errors:?}");
    assert!(errors[made..].iter().all(|error| *error == Some(libc::EMLINK)), "{errors:?}");
}
