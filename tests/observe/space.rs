//! Room is made before a share is full, and for who finds it full: by freeing what is remote too, and nothing else.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::rig::*;

const MIB: usize = 1 << 20;

/// What is available to users on the share, bytes.
fn available(rig: &Rig) -> u64 {
    let space = rustix::fs::statvfs(rig.fs.path()).unwrap();
    space.f_bavail * space.f_frsize
}

/// A share of 96 MiB, filled with archived files of 2 MiB until there are at most `left` MiB; not mounted. The names, the coldest first.
fn filled(left: u64, kind: &'static str) -> Option<(Rig, Vec<String>)> {
    let size = if kind == "xfs" { 320 << 20 } else { 96 << 20 };
    let mut rig = (Setup { kind, size, mount: vec!["-o", "space_wait=0s"], ..Setup::default() }).build()?;
    let mut names = Vec::new();
    while available(&rig) > left * MIB as u64 {
        let name = format!("f{:03}", names.len());
        rig.write(&name, 2 * MIB);
        set_mtime(&rig.mnt(&name), 1_500_000_000 + names.len() as i64 * 1000, 0);
        names.push(name);
        rustix::fs::syncfs(File::open(rig.fs.path()).unwrap()).unwrap();
    }
    rig.on(&["migrate", "-r", "--archive-only"], &[""]);
    rig.umount();
    Some((rig, names))
}

#[track_caller]
fn mount(rig: &mut Rig, options: &str) {
    let output = rig.try_mount(&["-o", options]);
    assert!(output.status.success(), "{}", said(&output));
}

fn stubs(rig: &Rig, names: &[String]) -> Vec<usize> {
    (0..names.len()).filter(|n| rig.state(&names[*n]) == "stub").collect()
}

#[test]
fn who_asks_the_daemon_for_room_gets_what_is_remote_too() {
    for kind in ["ext4", "xfs"] {
        let Some((mut rig, names)) = filled(4, kind) else { return };
        // Without patience: as below.
        mount(&mut rig, "space_wait=0s");
        let new = File::create(rig.mnt("new")).unwrap();
        assert_eq!(fallocate(&new, FallocateFlags::empty(), 0, 30 * MIB as u64), Err(Errno::NOSPC));
        drop(new);
        rig.umount();

        mount(&mut rig, "space_wait=30s");
        let new = File::options().write(true).open(rig.mnt("new")).unwrap();
        fallocate(&new, FallocateFlags::empty(), 0, 30 * MIB as u64).unwrap();
        let freed = stubs(&rig, &names);
        assert!((13..=25).contains(&freed.len()), "{freed:?}");
        assert_eq!(freed, (0..freed.len()).collect::<Vec<_>>(), "the coldest, and no others");
        rig.same(&names[0], &noise(&names[0], 2 * MIB));

        // A write through the daemon: all handles of a file are served alike, and this one was opened while it was a stub.
        let mut reader = File::open(rig.mnt(&names[1])).unwrap();
        reader.read_exact(&mut [0; 10]).unwrap();
        let mut writer = File::options().write(true).open(rig.mnt(&names[1])).unwrap();
        writer.seek(SeekFrom::End(0)).unwrap();
        let block = noise("block", MIB);
        let before = stubs(&rig, &names).len();
        let room = available(&rig) as usize / MIB;
        for _ in 0..room + 10 {
            writer.write_all(&block).unwrap();
        }
        writer.sync_all().unwrap();
        assert!(stubs(&rig, &names).len() > before);
        let mut content = noise(&names[1], 2 * MIB);
        (0..room + 10).for_each(|_| content.extend_from_slice(&block));
        rig.same(&names[1], &content);
        assert!(rig.log().contains("made room on the share"));
        drop((reader, writer));
        for name in &names[2..] {
            rig.same(name, &noise(name, 2 * MIB));
        }
    }
}

#[test]
fn writes_to_what_is_remote_find_room_too() {
    let Some((mut rig, names)) = filled(4, "ext4") else { return };
    mount(&mut rig, "space_wait=30s");
    for name in &names[..8] {
        rig.on(&["release"], &[name]);
    }
    let filler = File::create(rig.mnt("filler")).unwrap();
    let most = available(&rig) - MIB as u64;
    fallocate(&filler, FallocateFlags::empty(), 0, most).unwrap();
    // Together that is more than there is.
    let more = noise("more", 2 * MIB);
    for name in &names[..8] {
        let mut file = File::options().append(true).open(rig.mnt(name)).unwrap();
        file.write_all(&more).unwrap();
    }
    for name in &names[..8] {
        let mut content = noise(name, 2 * MIB);
        content.extend_from_slice(&more);
        rig.same(name, &content);
    }
    assert!(!stubs(&rig, &names[8..]).is_empty(), "others made room");
}

#[test]
fn what_is_kept_is_kept_and_then_a_full_share_is_full() {
    let Some((mut rig, names)) = filled(4, "ext4") else { return };
    mount(&mut rig, "space_wait=30s");
    for name in &names[..4] {
        rig.on(&["pin"], &[name]);
    }
    let chattr = |flag: &str, names: &[String]| {
        for name in names {
            assert!(std::process::Command::new("chattr").arg(flag).arg(rig.low(name)).status().unwrap().success());
        }
    };
    chattr("+i", &names[4..6]);
    chattr("+a", &names[6..8]);
    for name in &names[10..12] {
        rig.on(&["set", "--retain", "on"], &[name]);
    }
    let open: Vec<_> = names[8..10].iter().map(|name| File::open(rig.mnt(name)).unwrap()).collect();
    let new = File::create(rig.mnt("new")).unwrap();
    let size = available(&rig) + (2 * names.len() as u64 - 12) * MIB as u64;
    assert_eq!(fallocate(&new, FallocateFlags::empty(), 0, size), Err(Errno::NOSPC), "more than can be freed");
    wait_for("the rest to be freed", || stubs(&rig, &names).len() == names.len() - 12);
    let kept: Vec<_> = names[..12].iter().map(|name| rig.state(name)).collect();
    assert!(kept.iter().all(|state| state == "dual"), "{kept:?}");
    drop(open);
    chattr("-i", &names[4..6]);
    chattr("-a", &names[6..8]);
    for name in &names {
        rig.same(name, &noise(name, 2 * MIB));
    }
}

#[test]
fn a_reserve_is_kept_ahead_of_what_the_kernel_writes() {
    let Some((mut rig, names)) = filled(40, "ext4") else { return };
    mount(&mut rig, "space_wait=0s,space_reserve=8MiB");
    assert_eq!(rig.info()["space"]["reserve"], 8 * MIB);
    // Passthrough: nobody can wait for it.
    let mut new = File::create(rig.mnt("new")).unwrap();
    let block = noise("block", MIB);
    for _ in 0..40 {
        new.write_all(&block).unwrap();
        new.sync_data().unwrap();
        std::thread::sleep(Duration::from_millis(40));
    }
    assert!(!stubs(&rig, &names).is_empty());
    wait_for("the reserve", || available(&rig) >= 8 * MIB as u64);
    let left = stubs(&rig, &names).len();
    assert!(left < names.len(), "no more than is needed");
    let mut content = Vec::new();
    (0..40).for_each(|_| content.extend_from_slice(&block));
    rig.same("new", &content);
    let log = rig.log();
    assert!(!log.contains("panicked"), "{log}");
}

/// Where nothing is said of a reserve, there is a small one. Nothing is walked for it alone, so without an index nothing is freed ahead, but who opens a file for writing then is
/// served by the daemon, and so can wait.
#[test]
fn who_opens_a_file_where_room_is_scarce_can_wait_for_some() {
    let Some((mut rig, names)) = filled(10, "ext4") else { return };
    // A file that is mapped for writing, its descriptor closed.
    let content = noise("mapped", MIB);
    mount(&mut rig, "space_wait=30s");
    rig.write("mapped", MIB);
    rig.write("old", MIB);
    assert_eq!(
        (rig.info()["space"]["scarce"].as_bool(), rig.info()["space"]["reserve"].as_u64() > Some(0)),
        (Some(false), true)
    );
    let file = File::options().read(true).write(true).open(rig.mnt("mapped")).unwrap();
    let mut map = Mapping::of(&file, MIB, true);
    drop(file);
    let mut early = File::create(rig.mnt("early")).unwrap();
    let filler = File::create(rig.low("filler")).unwrap();
    let refill = || {
        wait_for("the daemon to see it", || {
            // What was freed a moment ago comes with the journal's next commit.
            rustix::fs::syncfs(File::open(rig.fs.path()).unwrap()).unwrap();
            let more = available(&rig).saturating_sub(MIB as u64 / 4);
            let filled = fallocate(&filler, FallocateFlags::empty(), 0, filler.metadata().unwrap().len() + more.max(1));
            filled.is_ok() && rig.info()["space"]["scarce"] == true
        });
    };
    refill();
    assert!(stubs(&rig, &names).is_empty(), "nothing was freed by itself");

    // The mapping is of the file below: a file that has one is served by the kernel as before, or it and the descriptor would not see each other's.
    let file = File::options().read(true).write(true).open(rig.mnt("mapped")).unwrap();
    let mut seen = [0; 8];
    file.read_exact_at(&mut seen, 0).unwrap();
    assert_eq!(seen[..], content[..8]);
    map.set(0, b"by map..");
    file.read_exact_at(&mut seen, 0).unwrap();
    assert_eq!(&seen, b"by map..");
    file.write_all_at(b"by write", 4096).unwrap();
    map.copy_out(4096, &mut seen);
    assert_eq!(&seen, b"by write");
    drop((file, map));

    // One that was opened before is the kernel's, as ever.
    let more = noise("more", 9 * MIB);
    assert_eq!(early.write_all(&more).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    early.set_len(0).unwrap();
    // One that is new, and one that is not.
    for name in ["new", "old"] {
        refill();
        let mut file = File::options().append(true).create(true).open(rig.mnt(name)).unwrap();
        file.write_all(&more).unwrap_or_else(|error| panic!("{name}: {error}"));
        file.sync_all().unwrap();
    }
    rig.same("new", &more);
    rig.same("old", &[noise("old", MIB), more].concat());
    let freed = stubs(&rig, &names);
    assert!(freed.len() >= 9 && freed == (0..freed.len()).collect::<Vec<_>>(), "the coldest: {freed:?}");
    drop(early);
    filler.set_len(0).unwrap();
    for name in &names {
        rig.same(name, &noise(name, 2 * MIB));
    }
}

#[test]
fn the_coldest_are_those_of_the_least_heat() {
    let Some((mut rig, names)) = filled(4, "ext4") else { return };
    // Without a reserve nobody looks for files before they are needed.
    mount(&mut rig, "space_wait=30s,space_reserve=off");
    rig.json(&["index", "scan", rig.mountpoint().to_str().unwrap()], 0);
    // Used often, and before the others; all others but the last once, after that.
    for _ in 0..8 {
        File::open(rig.mnt(&names[0])).unwrap();
    }
    std::thread::sleep(Duration::from_millis(1100));
    let last = names.len() - 1;
    for name in &names[1..last] {
        File::open(rig.mnt(name)).unwrap();
    }
    let heat = |name: &str| {
        let query = format!("SELECT accesses FROM files WHERE name = '{name}'");
        let rows = rig.json(&["sql", "--on", rig.mountpoint().to_str().unwrap(), &query], 0);
        rows.iter().find(|row| row["reply"] == "row").unwrap()["cells"][0].as_u64()
    };
    wait_for("the index", || (heat(&names[0]), heat(&names[last - 1])) == (Some(8), Some(1)));
    let new = File::create(rig.mnt("new")).unwrap();
    fallocate(&new, FallocateFlags::empty(), 0, 12 * MIB as u64).unwrap();
    let freed = stubs(&rig, &names);
    assert!(freed.contains(&last), "the one that nobody opened, though it was changed last: {freed:?}");
    assert!(
        freed.len() > 2 && !freed.contains(&0),
        "not the one that was opened most, though that was before: {freed:?}"
    );
}

#[test]
fn space_of_removed_files_is_told() {
    let Some(rig) = Rig::new() else { return };
    rig.write("a", 3 * MIB);
    let open = File::open(rig.mnt("a")).unwrap();
    fs::remove_file(rig.mnt("a")).unwrap();
    let space = rig.info()["space"].clone();
    assert_eq!(space["removed_files"], 1);
    assert!(space["removed_bytes"].as_u64().unwrap() >= 3 * MIB as u64, "{space}");
    let text = said(&rig.tierfs(&["info", rig.mountpoint().to_str().unwrap()]));
    assert!(text.contains("held by 1 removed files that are still open"), "{text}");
    drop(open);
    wait_for("the space", || rig.info()["space"]["removed_files"] == 0);
}

#[test]
fn by_age_what_the_index_proposes_is_archived() {
    let Some(mut rig) = Rig::new() else { return };
    for name in ["a", "b", "pinned", "new"] {
        rig.write(name, CHUNK);
    }
    rig.on(&["pin"], &["pinned"]);
    rig.json(&["index", "scan", rig.mountpoint().to_str().unwrap()], 0);
    set_mtime(&rig.mnt("new"), 4_000_000_000, 0);
    rig.umount();
    mount(&mut rig, "archive_after=1s");
    for name in ["a", "b", "pinned"] {
        wait_for("the archive", || rig.state(name) == "dual");
    }
    rig.write("later", CHUNK);
    wait_for("the archive of what came later", || rig.state("later") == "dual");
    assert_eq!(rig.state("new"), "resident");
}
