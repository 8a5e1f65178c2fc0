//! Names that the kernel has forgotten, as after a start of the machine: what the index or a task knows as a number is found all the same.

use std::fs::{self, File};

use rustix::fs::{FallocateFlags, fallocate};

use crate::rig::*;

/// A start of the machine, as far as the share is concerned: nobody has come by a name there since. What is looked up through the mount is known again, so
/// tests must not before they have seen what they are about.
#[track_caller]
fn start_anew(rig: &mut Rig, options: &str) {
    rig.umount();
    rig.fs.unmount();
    rig.fs.mount();
    let output = rig.try_mount(&["-o", options]);
    assert!(output.status.success(), "{}", said(&output));
}

/// Files in directories, and the index filled; their names.
fn filled() -> Option<(Rig, Vec<String>)> {
    let rig = Rig::new()?;
    fs::create_dir_all(rig.mnt("d/e")).unwrap();
    let names: Vec<String> = (0..12).map(|n| format!("{}/f{n}", ["d", "d/e"][n % 2])).collect();
    names.iter().for_each(|name| drop(rig.write(name, 2 << 20)));
    Some((rig, names))
}

fn scan(rig: &Rig) {
    rig.json(&["index", "scan", rig.mountpoint().to_str().unwrap()], 0);
}

#[track_caller]
fn all_are(rig: &Rig, names: &[String], state: &str) {
    for name in names {
        assert_eq!(rig.state(name), state, "{name}");
    }
}

#[test]
fn what_is_old_is_archived() {
    let Some((mut rig, names)) = filled() else { return };
    for name in &names {
        set_mtime(&rig.mnt(name), 1_500_000_000, 0);
    }
    scan(&rig);
    start_anew(&mut rig, "archive_after=1h");
    // Each has an object and a manifest.
    wait_for("all to be archived", || rig.requests().method("PUT") >= 2 * names.len() as u64);
    wait_for("the last record", || names.iter().all(|name| rig.state(name) == "dual"));
}

#[test]
fn what_is_cold_makes_room() {
    let Some((mut rig, names)) = filled() else { return };
    rig.on(&["migrate", "-r", "--archive-only"], &[""]);
    scan(&rig);
    start_anew(&mut rig, "space_wait=30s,space_reserve=off");
    let space = rustix::fs::statvfs(rig.fs.path()).unwrap();
    let new = File::create(rig.mnt("new")).unwrap();
    // More than there is, by less than the files have.
    fallocate(&new, FallocateFlags::empty(), 0, space.f_bfree * space.f_frsize + (8 << 20)).unwrap();
    let freed = names.iter().filter(|name| rig.state(name) == "stub").count();
    assert!(freed >= 4, "{freed} files were freed");
}

/// What is left of a task after a start of the machine; with `renamed`, the files are elsewhere by then.
fn task(indexed: bool, renamed: bool) -> Option<(Rig, Vec<String>, serde_json::Value)> {
    let (mut rig, names) = filled()?;
    if indexed {
        scan(&rig);
    }
    let rate = |rig: &Rig, rate: &str| {
        rig.json(&["tasks", "rate", rate], 0);
    };
    rate(&rig, "off");
    let added = rig.json(&["tasks", "add", "migrate", "-r", rig.mnt("d").to_str().unwrap()], 0).remove(0);
    let told = |rig: &Rig| {
        let tasks = rig.json(&["tasks", "list", "--all"], 0);
        tasks.into_iter().find(|task| task["id"] == added["id"]).unwrap()
    };
    wait_for("all to be queued", || told(&rig)["files"] == names.len() as u64 && told(&rig)["walked"] == true);
    let names = if renamed {
        fs::rename(rig.mnt("d"), rig.mnt("elsewhere")).unwrap();
        names.iter().map(|name| name.replacen('d', "elsewhere", 1)).collect()
    } else {
        names
    };
    start_anew(&mut rig, "task_rate=unlimited");
    wait_for("the task's end", || told(&rig)["state"] == "done");
    let ended = told(&rig);
    Some((rig, names, ended))
}

#[test]
fn a_task_goes_on() {
    let Some((rig, names, ended)) = task(false, false) else { return };
    assert_eq!(ended["done"], names.len(), "{ended}");
    all_are(&rig, &names, "stub");
}

#[test]
fn a_task_goes_on_where_files_were_renamed_if_there_is_an_index() {
    let Some((rig, names, ended)) = task(true, true) else { return };
    assert_eq!(ended["done"], names.len(), "{ended}");
    all_are(&rig, &names, "stub");
}

/// Nobody knows where they are, and this is not passed over as if they were no more.
#[test]
fn what_cannot_be_found_has_failed() {
    let Some((rig, names, ended)) = task(false, true) else { return };
    assert_eq!((&ended["failed"], &ended["skipped"]), (&names.len().into(), &0.into()), "{ended}");
    all_are(&rig, &names, "resident");
}
