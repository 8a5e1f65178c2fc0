//! What rounds have found, told step by step: each was lost once.

use crate::oracle::Loss;
use crate::rig::*;
use crate::scene::{Power, Scene};

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
