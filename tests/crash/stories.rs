//! What rounds have found, told step by step: each was lost once.

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

/// A file is removed, and nobody syncs that. Its object goes when it is due: from then on the file must not come back.
#[test]
fn a_file_whose_object_was_deleted_does_not_come_back() {
    let Some(mut scene) = Scene::new("ext4", Power::Shutdown, false, 1) else { return };
    let data = scene.rig.write("gone", 3 * CHUNK);
    scene.rig.migrate("gone");
    rustix::fs::syncfs(std::fs::File::open(scene.rig.fs.path()).unwrap()).unwrap();
    let key = scene.rig.objects().into_iter().find(|key| key.starts_with("gone")).expect("it was archived");
    std::fs::remove_file(scene.rig.mnt("gone")).unwrap();
    wait_for("the deletion", || !scene.rig.objects().contains(&key));
    assert!(scene.cut_at_rest(), "somebody synced the filesystem");
    scene.recover(&[]);
    if scene.rig.mnt("gone").exists() {
        scene.rig.same("gone", &data);
    }
}
