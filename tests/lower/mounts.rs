//! How the share is entered: its own clone of the mount, no way into others, nothing left behind.

use std::path::Path;

use tierfs::lower::Share;
use tierfs::ports::{Lower, LowerFeatures, NewNode};

use crate::Env;
use crate::common::run;
use crate::contract::{self, READ, ROOT, errno, os};

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

pub fn features_are_found(env: Env) {
    let all = LowerFeatures { trusted_xattrs: true, punch_hole: true, leases: true, read_only: false };
    assert_eq!(env.share.features(), all);
    assert_eq!(env.share.record_xattr(), "trusted.tierfs.record");
    let left: Vec<_> = contract::names(&*env.share, &env.share.root());
    assert!(left.iter().all(|name| name == "lost+found"), "probing left {left:?}");
    let space = env.share.space().expect("statfs");
    assert_eq!((space.fragment_size, space.name_len_max), (4096, 255));
    assert!(space.blocks * space.fragment_size > 100 << 20 && space.blocks_free <= space.blocks);
}

/// Inodes as values stay good over an unmount; so does what the kernel's handle finds.
pub fn handles_survive_a_remount(env: Env) {
    let Env { share, fs } = env;
    let sub = contract::dir(&*share, "sub");
    let node = contract::file(&*share, "file", b"content");
    let (link, _) = share.make(&sub, os("link"), NewNode::Symlink(os("target")), 0, &ROOT).expect("symlink");
    let gone = contract::file(&*share, "gone", b"");
    share.unlink(&share.root(), os("gone")).expect("unlink");
    let root = share.root();
    drop(share);
    fs.unmount();
    fs.mount();
    let share = Share::open(&fs.path()).expect("share");
    assert_eq!(share.root(), root);
    assert_eq!(share.by_handle(&node.handle).expect("by handle").0, node);
    assert_eq!(share.path_of(&node).expect("path"), None, "no name known yet: none is told");
    assert_eq!(share.path_of(&sub).expect("path").as_deref(), Some(Path::new("sub")), "directories know theirs");
    assert_eq!(contract::content(&share, &node), b"content");
    assert_eq!(share.read_link(&link).expect("readlink"), "target");
    assert_eq!(errno(share.stat(&gone)), libc::ESTALE);
    assert_eq!(share.lookup(&share.root(), os("file")).expect("lookup").0, node);
    assert_eq!(share.lookup(&sub, os("..")).expect("lookup").0, root);
    share.drop_cached_descriptors();
    assert_eq!(share.path_of(&node).expect("path").as_deref(), Some(Path::new("file")));
}

/// The share goes on without the mount it was opened through, and keeps nothing busy once it is dropped.
pub fn the_lower_mount_can_go(env: Env) {
    let Env { share, fs } = env;
    let node = contract::file(&*share, "file", b"content");
    fs.unmount();
    assert_eq!(contract::content(&*share, &node), b"content");
    assert_eq!(share.path_of(&node).expect("path").as_deref(), Some(Path::new("file")));
    let image = fs.scratch().join("image");
    assert!(run("losetup", &["-j", text(&image)]).contains("image"), "still in use by the share");
    drop(share);
    // The filesystem is shut down by a kernel thread, a moment later.
    for _ in 0..500 {
        if !run("losetup", &["-j", text(&image)]).contains("image") {
            fs.mount();
            assert_eq!(std::fs::read(fs.path().join("file")).expect("read"), b"content");
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("the dropped share keeps the filesystem busy");
}

pub fn submounts_are_not_crossed(env: Env) {
    let below = contract::dir(&*env.share, "sub");
    let path = env.fs.path().join("sub");
    std::fs::write(path.join("below"), "x").expect("write");
    run("mount", &["-t", "tmpfs", "none", text(&path)]);
    std::fs::write(path.join("above"), "x").expect("write");
    let check = |share: &Share| {
        let sub = share.lookup(&share.root(), os("sub")).expect("lookup").0;
        assert_eq!(sub, below);
        assert_eq!(contract::names(share, &sub), ["below"]);
        assert_eq!(errno(share.lookup(&sub, os("above"))), libc::ENOENT);
        assert_eq!(share.lookup(&sub, os("..")).expect("lookup").0, share.root());
    };
    check(&env.share);
    check(&Share::open(&env.fs.path()).expect("opened while it was mounted"));
    run("umount", &[text(&path)]);
    // Mounted over the share itself, as a mount in place does.
    let top = env.fs.path();
    run("mount", &["-t", "tmpfs", "none", text(&top)]);
    check(&env.share);
    run("umount", &[text(&top)]);
    // A directory of the filesystem as the share: nothing above it.
    let part = Share::open(&path).expect("share");
    assert_eq!(part.root(), below);
    assert_eq!(part.lookup(&part.root(), os("..")).expect("lookup").0, below);
}

/// Unbindable mounts cannot be cloned: then a mount below is refused rather than entered.
pub fn submounts_are_not_crossed_without_a_private_mount(env: Env) {
    contract::dir(&*env.share, "sub");
    let inside = contract::dir(&*env.share, "inside");
    run("mount", &["--make-unbindable", text(&env.fs.path())]);
    let share = Share::open(&env.fs.path()).expect("share");
    let path = env.fs.path().join("sub");
    run("mount", &["-t", "tmpfs", "none", text(&path)]);
    assert_eq!(errno(share.lookup(&share.root(), os("sub"))), libc::EXDEV);
    assert_eq!(errno(share.remove_dir(&share.root(), os("sub"))), libc::EBUSY);
    assert_eq!(share.lookup(&inside, os("..")).expect("lookup").0, share.root());
    assert_eq!(share.lookup(&share.root(), os("..")).expect("lookup").0, share.root());
    let node = contract::file(&share, "file", b"x");
    share.drop_cached_descriptors();
    assert_eq!(share.path_of(&node).expect("path").as_deref(), Some(Path::new("file")));
    assert_eq!(contract::content(&share, &node), b"x");
    share.unlink(&share.root(), os("file")).expect("unlink");
    assert_eq!(errno(share.stat(&node)), libc::ESTALE);
    run("umount", &[text(&path)]);
    share.lookup(&share.root(), os("sub")).expect("nothing mounted there any more");
}

pub fn a_read_only_share_says_so(env: Env) {
    let node = contract::file(&*env.share, "file", b"x");
    let Env { share, fs } = env;
    drop(share);
    run("mount", &["-o", "remount,ro", text(&fs.path())]);
    let share = Share::open(&fs.path()).expect("share");
    assert!(share.features().read_only);
    assert_eq!(contract::content(&share, &node), b"x");
    assert_eq!(errno(share.create(&share.root(), os("new"), 0o644, READ, &ROOT).map(|_| ())), libc::EROFS);
    assert_eq!(errno(share.save_record(&node, b"x")), libc::EROFS);
    assert_eq!(share.load_record(&node).expect("load"), None);
}

#[test]
fn what_cannot_be_a_share() {
    if !crate::can_mount() {
        return;
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    std::fs::write(dir.path().join("file"), "").expect("write");
    let errno = |path: &Path| Share::open(path).err().map(|error| error.errno());
    assert_eq!(errno(&dir.path().join("file")), Some(libc::ENOTDIR));
    assert_eq!(errno(&dir.path().join("missing")), Some(libc::ENOENT));
    assert_eq!(errno(Path::new("/proc")), Some(libc::EOPNOTSUPP));
}
