//! Quotas of the filesystem below act on the right user and project, and begin policies.
//!
//! Needs a kernel with CONFIG_QUOTA and CONFIG_QFMT_V2, and setquota(8). Where the kernel has none this is said, with what it says of
//! itself; a kernel that should have quotas and refuses them is a failure, and so is its lack with `TIERFS_NEED_QUOTA=1`. `make quota` runs
//! them on a kernel that has.

use std::process::Command;

use crate::common::run;
use crate::index::scan;
use crate::policies::{mount_with, policy_run, rule, why};
use crate::posix::compare;
use crate::rig::*;

/// Whether this kernel's configuration, if it shows one, has quotas for the filesystem.
fn kernel_has_quotas(kind: &str) -> Option<bool> {
    let output = Command::new("zcat").arg("/proc/config.gz").output().ok().filter(|output| output.status.success())?;
    let config = String::from_utf8_lossy(&output.stdout).into_owned();
    let wanted: &[&str] = if kind == "xfs" { &["CONFIG_XFS_QUOTA=y"] } else { &["CONFIG_QUOTA=y", "CONFIG_QFMT_V2=y"] };
    Some(wanted.iter().all(|wanted| config.lines().any(|line| line == *wanted)))
}

#[test]
fn quotas_of_ext4_act_on_the_owner_and_the_project() {
    quotas_act(Setup::default());
}

#[test]
fn quotas_of_xfs_act_on_the_owner_and_the_project() {
    quotas_act(Setup::xfs());
}

/// A share whose filesystem keeps quotas, not yet served.
fn with_quotas(setup: Setup) -> Option<Rig> {
    let kind = setup.kind;
    let rig = (Setup { mounted: false, ..setup }).build()?;
    let image = rig.fs.scratch().join("image");
    rig.fs.unmount();
    if kind == "ext4" {
        run("tune2fs", &["-O", "quota,project", "-Q", "usrquota,prjquota", image.to_str().unwrap()]);
    }
    if !rig.fs.try_mount(",usrquota,prjquota") {
        assert_ne!(
            kernel_has_quotas(kind),
            Some(true),
            "this kernel has quotas, and does not mount {kind} with them: see dmesg"
        );
        assert!(std::env::var_os("TIERFS_NEED_QUOTA").is_none(), "this kernel has no quotas for {kind}");
        eprintln!("NOT TESTED: quotas. This kernel has none for {kind}; `make quota` tests on one that has");
        return None;
    }
    Some(rig)
}

#[test]
fn quotas_of_ext4_begin_a_policy() {
    quotas_begin_a_policy(Setup::default());
}

#[test]
fn quotas_of_xfs_begin_a_policy() {
    quotas_begin_a_policy(Setup::xfs());
}

fn quotas_begin_a_policy(setup: Setup) {
    let Some(mut rig) = with_quotas(setup) else { return };
    let top = rig.fs.path();
    let top = top.to_str().unwrap();
    // Soft and hard, of bytes.
    let limit = |soft: &str, hard: &str| run("setquota", &["-u", "2001", soft, hard, "0", "0", top]);
    let marks = "when = { user_quota_above = \"80%\", user_quota_below = \"50%\" }";
    mount_with(&mut rig, &format!("[policy.full]\nenabled = false\naction = \"release\"\n{marks}\n"));
    for (user, n) in (0..10).flat_map(|n| [(2001, n), (2002, n)]) {
        let name = format!("{user}-{n}");
        rig.write(&name, 1 << 20);
        std::os::unix::fs::chown(rig.mnt(&name), Some(user), None).unwrap();
    }
    rig.on(&["migrate", "-r", "--archive-only"], &[""]);
    scan(&rig);
    let dual = |user: u32| (0..10).filter(|n| rig.state(&format!("{user}-{n}")) == "dual").count();
    // No limit; one of which he has two thirds; the same as a soft one, and a hard one that is far.
    for (soft, hard) in [("0", "0"), ("0", "15360"), ("15360", "102400")] {
        limit(soft, hard);
        assert_eq!(policy_run(&rig, "full")["files"], 0, "{soft} and {hard}");
    }
    let waits = rule(&why(&rig, "2001-0"), "full")["against"]["reason"].clone();
    assert_eq!(waits, "disabled");
    limit("12000", "102400");
    assert!(policy_run(&rig, "full")["files"].as_u64() >= Some(4));
    // Half of 12,000 KiB, of files of 1 MiB.
    assert_eq!((dual(2001), dual(2002)), (5, 10));
    assert_eq!(policy_run(&rig, "full")["files"], 0, "he is below");
}

fn quotas_act(setup: Setup) {
    let kind = setup.kind;
    let Some(mut rig) = with_quotas(setup) else { return };
    let top = rig.fs.path();
    let top = top.to_str().unwrap();
    let limit = |block: &str, inodes: &str| run("setquota", &["-u", "2001", "0", block, "0", inodes, top]);
    rig.mount();
    limit("4096", "20");
    compare(&rig, include_str!("posix/quota.py"), "resident", &[]);
    // What comes back needs room as well.
    let content = rig.write("mine", 1 << 20);
    std::os::unix::fs::chown(rig.mnt("mine"), Some(2001), Some(2001)).unwrap();
    rig.migrate("mine");
    limit("64", "0");
    assert_same(&std::fs::read(rig.mnt("mine")).unwrap(), &content, "served, and not kept");
    let recall = rig.command(&["recall", rig.mnt("mine").to_str().unwrap()]).output().unwrap();
    assert!(!recall.status.success() && said(&recall).contains("quota exceeded"), "{}", said(&recall));
    // What had come stays until it is released.
    assert!(["stub", "partial"].contains(&rig.state("mine").as_str()), "{}", rig.state("mine"));
    limit("8192", "0");
    // The report has the kernel's limits beside what is here and what is remote.
    rig.json(&["index", "scan", rig.mountpoint().to_str().unwrap()], 0);
    let users = rig.json(&["quota", rig.mountpoint().to_str().unwrap()], 0);
    let his = users.iter().find(|line| line["uid"] == 2001).unwrap();
    assert_eq!((&his["both"], &his["quota"]["bytes_hard"]), (&(1 << 20).into(), &(8 << 20).into()), "{his}");
    rig.same("mine", &content);
    // A project's directory: whoever writes in it, root's daemon included.
    for (side, dir) in [("below", rig.fs.path().join("project")), ("mount", rig.low("project"))] {
        std::fs::create_dir(&dir).unwrap();
        run("chattr", &["-p", "77", "+P", dir.to_str().unwrap()]);
        run("setquota", &["-P", "77", "0", "4096", "0", "0", top]);
        let dir = if side == "mount" { rig.mnt("project") } else { dir };
        std::os::unix::fs::chown(&dir, Some(NOBODY), Some(NOBODY)).unwrap();
        let output = as_nobody(&dir, "dd if=/dev/urandom of=file bs=64k count=200 status=none");
        // XFS says ENOSPC where a project has no room.
        let reason = if kind == "xfs" { "No space left" } else { "quota exceeded" };
        assert!(said(&output).contains(reason), "{side}: {}", said(&output));
        std::fs::remove_file(dir.join("file")).unwrap();
    }
}
