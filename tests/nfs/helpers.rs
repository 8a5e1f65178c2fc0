//! The helpers of `mount-helpers/` where Ganesha is not needed, and the document that explains them.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::ganesha::helper;
use crate::rig::*;

fn with_tierfs(command: &mut Command) -> &mut Command {
    let tierfs = Path::new(env!("CARGO_BIN_EXE_tierfs")).parent().unwrap();
    command.env("PATH", format!("{}:{}", tierfs.display(), std::env::var("PATH").unwrap_or_default()))
}

#[test]
fn mount_mounts_by_its_helper() {
    let Some(mut rig) = (Setup { mounted: false, ..Setup::default() }).build() else { return };
    // As mount(8) calls it for a line of fstab.
    let mut call = Command::new(helper("mount.tierfs"));
    rig.dress(&mut call);
    let (share, mountpoint) = (rig.share(), rig.mountpoint());
    call.args([&share, &mountpoint]).args(["-n", "-v", "-o", "rw,_netdev,pair=cold,noexec"]);
    let output = with_tierfs(&mut call).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    rig.write("file", 5000);
    rig.migrate("file");
    rig.same("file", &noise("file", 5000));
    let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
    let line = mounts.lines().find(|line| line.contains(mountpoint.to_str().unwrap())).unwrap();
    assert!(line.contains("fuse.tierfs") && line.contains("noexec"), "{line}");
    rig.umount();
    // Codes as mount(8) has them; -f only looks.
    let code = |args: &[&str]| {
        let mut call = Command::new(helper("mount.tierfs"));
        rig.dress(&mut call);
        with_tierfs(call.args([&share, &mountpoint]).args(args)).output().unwrap().status.code()
    };
    assert_eq!(code(&["-o", "no_such_option"]), Some(32));
    assert_eq!(code(&["-Z"]), Some(1));
    assert_eq!(code(&["-f", "-o", "no_such_option"]), Some(0));
}

/// What the document explains is there. Its commands are run by every test that uses Ganesha.
#[test]
fn the_document_names_what_there_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/nfs-ganesha.md")).unwrap();
    for name in ["ganesha.conf", "tierfs-ganesha", "tierfs-fsid.c", "mount.tierfs"] {
        assert!(text.contains(&format!("mount-helpers/{name}")), "{name} is explained");
    }
    let conf = fs::read_to_string(helper("ganesha.conf")).unwrap();
    for setting in ["RPC_Ioq_ThrdMax", "FD_LWMark_Percent", "LRU_Run_Interval", "Attr_Expiration_Time", "Export_Id"] {
        assert!(text.contains(setting) && conf.contains(setting), "{setting} is set and explained");
    }
}
