//! What rounds have found, told step by step: each was lost once.

use std::fs::File;
use std::os::unix::fs::FileExt;

use tierfs::gateway::faults::{Effect, Rule};

use crate::load::look;
use crate::oracle::Loss;
use crate::rig::*;
use crate::scene::{Power, Scene};

/// The rounds themselves: on a disk that answers a flush and does nothing they must fail, by what is compared.
#[test]
fn a_disk_that_lies_is_found_out() {
    let Some(mut scene) = Scene::new("ext4", Power::Disk, false, 1) else { return };
    scene.lie();
    for _ in 0..10 {
        scene.work_and_cut(250);
        scene.recover(&[]);
        if let Err(error) = scene.compare(Loss::Power) {
            eprintln!("found: {}", error.lines().next().unwrap_or_default());
            return;
        }
    }
    panic!("ten power losses of a disk that lies, and nothing is missed");
}

/// A daemon dies in a release, the next one settles that, and then the power goes: what was settled must not be half of it. The
/// capability of a program stayed away, and its record said releasing for ever.
#[test]
fn what_a_recovery_has_settled_survives_a_power_loss() {
    for point in ["release.punched", "release.freed", "release.ended"] {
        let Some(mut scene) = Scene::new("ext4", Power::Shutdown, false, 1) else { return };
        scene.rig.crash();
        scene.rig.kill_at = Some(point.to_owned());
        scene.rig.mount();
        let _ = set_xattr(&scene.rig.mnt("fixed2"), "user.tierfs.migrate", b"1");
        wait_for("the daemon's death", || !alive(scene.rig.daemon.expect("it was mounted")));
        scene.rig.crash();
        assert!(scene.recover_and_cut(&[]), "somebody synced the filesystem");
        scene.recover(&[]);
        assert_eq!(scene.rig.state("fixed2"), "stub", "{point}");
        scene.check(Loss::Power);
    }
}

/// A daemon dies as soon as a recalled file counts as dual: nobody touches its content from then on, so its capability must be back by then. It was
/// put back later, and the next release threw its copy away.
#[test]
fn a_recalled_program_is_whole_before_it_counts_as_dual() {
    for point in ["recall.synced", "recall.recorded"] {
        let Some(mut scene) = Scene::new("ext4", Power::Stays, false, 1) else { return };
        scene.rig.migrate("fixed2");
        assert_eq!(scene.rig.state("fixed2"), "stub");
        scene.rig.crash();
        scene.rig.kill_at = Some(point.to_owned());
        scene.rig.mount();
        let _ = std::fs::read(scene.rig.mnt("fixed2"));
        wait_for("the daemon's death", || !alive(scene.rig.daemon.expect("it was mounted")));
        scene.rig.crash();
        scene.recover(&[]);
        if point == "recall.recorded" {
            assert_eq!(scene.rig.state("fixed2"), "dual");
        }
        scene.check(Loss::Process);
        scene.rig.migrate("fixed2");
        scene.check(Loss::Process);
    }
}

/// A file is removed, and nobody syncs that. Its object goes when it is due: from then on the file must not come back.
#[test]
fn a_file_whose_object_was_deleted_does_not_come_back() {
    let Some(mut scene) = Scene::with_retentions("ext4", Power::Shutdown, false, 1, ["0s", "24h"]) else { return };
    let data = scene.rig.write("gone", 3 * CHUNK);
    scene.rig.migrate("gone");
    scene.sync();
    let key = scene.rig.objects().into_iter().find(|key| key.starts_with("gone")).expect("it was archived");
    std::fs::remove_file(scene.rig.mnt("gone")).unwrap();
    wait_for("the deletion", || !scene.rig.objects().contains(&key));
    assert!(scene.cut_at_rest(), "somebody synced the filesystem");
    scene.recover(&[]);
    if scene.rig.mnt("gone").exists() {
        scene.rig.same("gone", &data);
    }
}

/// A file was removed during its recall, and the daemon died. The next one finds it gone and has nothing to settle: it must stay
/// gone, for if it came back, there would be data in a stub of which nobody knows.
#[test]
fn what_a_recovery_finds_gone_stays_gone() {
    let Some(mut scene) = Scene::new("ext4", Power::Shutdown, false, 1) else { return };
    scene.rig.crash();
    scene.rig.kill_at = Some("removal.unlinked".into());
    scene.rig.mount();
    let data = scene.rig.write("gone", 20 * CHUNK);
    scene.rig.migrate("gone");
    scene.sync();
    scene.rig.faults.add(Rule::new(Effect::Hang).method("GET").skip(2));
    let path = scene.rig.mnt("gone");
    let reader = std::thread::spawn(move || std::fs::read(path));
    wait_for("some chunks", || scene.rig.allocated("gone") >= CHUNK as u64);
    scene.sync();
    std::fs::remove_file(scene.rig.mnt("gone")).expect_err("the daemon dies");
    scene.rig.crash();
    reader.join().unwrap().expect_err("it was not all there");
    scene.rig.faults.clear();
    assert!(scene.recover_and_cut(&[]), "somebody synced the filesystem");
    scene.recover(&[]);
    if scene.rig.mnt("gone").exists() {
        scene.rig.same("gone", &data);
    }
}

/// A copy is made of content that nobody has synced; the daemon dies right after the record, somebody else's fsync makes that durable,
/// and the power goes. The file is what its record says, or the record is not there.
#[test]
fn what_a_record_calls_dual_was_durable_before_it() {
    let Some(mut scene) = Scene::new("ext4", Power::Shutdown, false, 1) else { return };
    scene.rig.crash();
    scene.rig.kill_at = Some("archive.recorded".into());
    scene.rig.mount();
    scene.rig.write("copied", 3 * CHUNK);
    scene.sync();
    let path = scene.rig.mnt("copied");
    // In its place: such blocks no journal brings along.
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&noise("other", CHUNK), 0).unwrap();
    drop(file);
    set_xattr(&path, "user.tierfs.migrate", b"1").expect_err("the daemon dies");
    scene.rig.crash();
    File::create(scene.rig.fs.path().join("other")).and_then(|file| file.sync_all()).unwrap();
    assert!(scene.cut_at_rest(), "somebody synced the filesystem");
    scene.recover(&[]);
    assert_eq!(scene.rig.state("copied"), "dual", "the record was made durable");
    look(&path).unwrap();
}
