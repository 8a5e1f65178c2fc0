//! Inodes by value: many of them, fast-changing names, odd attributes.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tierfs::lower::Share;
use tierfs::ports::{Lower, NewNode, OpenFlags, RenameMode, SetAttr};

use crate::Env;
use crate::common::run;
use crate::contract::{self, BOTH, READ, ROOT, errno, os};

pub fn ten_thousand_inodes_with_64_descriptors(env: Env) {
    const FILES: u64 = 10_000;
    let share = Share::open_with(&env.fs.path(), 64).expect("share");
    let descriptors = || std::fs::read_dir("/proc/self/fd").expect("fds").count();
    let before = descriptors();
    let mut known = HashMap::new();
    let dirs: Vec<_> = (0..100).map(|n| contract::dir(&share, &format!("dir {n}"))).collect();
    for n in 0..FILES {
        let dir = &dirs[(n % 100) as usize];
        let (node, _, open) = share.create(dir, os(&format!("file {n}")), 0o644, BOTH, &ROOT).expect("create");
        open.write_at(&n.to_le_bytes(), 0).expect("write");
        known.insert(n, node);
    }
    assert_eq!(known.values().map(|node| node.id).collect::<std::collections::HashSet<_>>().len(), FILES as usize);
    let mut dice = 7u64;
    for round in 0..20_000 {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let n = (dice >> 33) % FILES;
        let node = known[&n];
        match round % 3 {
            0 => assert_eq!(share.stat(&node).expect("stat").ino, node.id.ino),
            1 => assert_eq!(share.lookup(&dirs[(n % 100) as usize], os(&format!("file {n}"))).expect("lookup").0, node),
            _ => assert_eq!(contract::content(&share, &node), n.to_le_bytes()),
        }
        assert!(share.descriptors_cached() <= 64);
    }
    assert!(descriptors() <= before + 64, "{} descriptors, {before} before", descriptors());
    share.drop_cached_descriptors();
    assert_eq!(share.descriptors_cached(), 0);
    assert_eq!(contract::content(&share, &known[&77]), 77u64.to_le_bytes());
}

/// Two files swap names all the time: what a lookup says of the size must belong to the inode it returns.
pub fn a_lookup_never_mixes_files_up(env: Env) {
    let share = Arc::new(Share::open_with(&env.fs.path(), 16).expect("share"));
    let root = share.root();
    let sizes: HashMap<_, _> = [("a", 1), ("b", 2)]
        .map(|(name, size)| (contract::file(&*share, name, &vec![size; size as usize]), size))
        .into();
    let stop = Arc::new(AtomicBool::new(false));
    let swapping = {
        let (share, stop) = (Arc::clone(&share), Arc::clone(&stop));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                share.rename(&root, os("a"), &root, os("b"), RenameMode::Exchange).expect("exchange");
            }
        })
    };
    for round in 0..20_000 {
        let (node, attr) = share.lookup(&root, os(["a", "b"][round % 2])).expect("lookup");
        assert_eq!(attr.size, u64::from(sizes[&node]));
        assert_eq!(attr.ino, node.id.ino);
        if round % 16 == 0 {
            share.drop_cached_descriptors();
            assert_eq!(contract::content(&*share, &node), vec![sizes[&node]; sizes[&node] as usize]);
        }
    }
    stop.store(true, Ordering::Relaxed);
    swapping.join().expect("swapping");
}

pub fn sealed_files_are_told(env: Env) {
    for (flag, name) in [("i", "immutable"), ("a", "append only")] {
        let node = contract::file(&*env.share, name, b"x");
        assert!(!env.share.stat(&node).expect("stat").sealed);
        let path = env.fs.path().join(name);
        run("chattr", &[&format!("+{flag}"), path.to_str().expect("UTF-8")]);
        assert!(env.share.stat(&node).expect("stat").sealed);
        assert!(env.share.lookup(&env.share.root(), os(name)).expect("lookup").1.sealed);
        let changes = SetAttr { mode: Some(0), ..SetAttr::default() };
        assert_eq!(errno(env.share.set_attr(&node, &changes)), libc::EPERM);
        run("chattr", &[&format!("-{flag}"), path.to_str().expect("UTF-8")]);
    }
}

/// A share may be a part of a filesystem: directories beside it are not found, and the way up is the share's root.
pub fn numbers_beside_the_share(env: Env) {
    let whole = &*env.share;
    let (share, beside) = (contract::dir(whole, "share"), contract::dir(whole, "beside"));
    let (deep, _) = whole.make(&beside, os("deep"), NewNode::Directory, 0o755, &ROOT).expect("mkdir");
    let (mut at, mut inside) = (share, vec![]);
    // Deeper than any path the kernel tells.
    for _ in 0..300 {
        at = whole.make(&at, os(&"d".repeat(20)), NewNode::Directory, 0o755, &ROOT).expect("mkdir").0;
        inside.push(at);
    }
    let part = Share::open(&env.fs.path().join("share")).expect("share");
    for node in [inside[0], inside[1], inside[299]] {
        assert_eq!(part.by_number(node.id.ino).expect("inside").0, node);
    }
    for node in [whole.root(), beside, deep] {
        assert_eq!(errno(part.by_number(node.id.ino)), libc::ESTALE);
        assert_eq!(whole.by_number(node.id.ino).expect("of the whole").0, node);
    }
    assert_eq!(part.by_number(part.root().id.ino).expect("root").0, part.root());
}

#[test]
fn other_filesystems_find_nothing_by_number() {
    if !crate::can_mount() {
        return;
    }
    crate::common::private_mounts();
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().to_str().expect("UTF-8");
    run("mount", &["-t", "tmpfs", "none", path]);
    {
        let share = Share::open(dir.path()).expect("share");
        let node = contract::file(&share, "file", b"x");
        assert_eq!(errno(share.by_number(node.id.ino)), libc::ESTALE);
    }
    run("umount", &[path]);
}

pub fn direct_io(env: Env) {
    #[repr(align(4096))]
    struct Aligned([u8; 16384]);
    let flags = OpenFlags { direct: true, ..BOTH };
    let (node, _, open) = env.share.create(&env.share.root(), os("file"), 0o644, flags, &ROOT).expect("create");
    let data = Aligned([5; 16384]);
    open.write_at(&data.0[..8192], 0).expect("write");
    open.set_len(6000).expect("truncate");
    let mut back = Box::new(Aligned([0; 16384]));
    assert_eq!(open.read_at(&mut back.0, 0).expect("a read over the end"), 6000);
    assert_eq!(back.0[..6000], data.0[..6000]);
    assert_eq!(contract::content(&*env.share, &node), &data.0[..6000]);
    assert_eq!(errno(open.write_at(&data.0[1..], 1)), libc::EINVAL, "it is really direct");
    let quiet = env.share.open(&node, OpenFlags { no_atime: true, ..READ }).expect("open");
    let old = SetAttr { atime: Some(tierfs::ports::SetTime::At(Default::default())), ..SetAttr::default() };
    env.share.set_attr(&node, &old).expect("utimes");
    contract::read_all(&*quiet);
    assert_eq!(env.share.stat(&node).expect("stat").atime, Default::default(), "no trace");
    contract::content(&*env.share, &node);
    assert_ne!(env.share.stat(&node).expect("stat").atime, Default::default(), "an ordinary read leaves one");
    env.share.make(&node, os("below"), NewNode::Directory, 0o755, &ROOT).expect_err("not a directory");
}

pub fn only_a_file_with_one_name_and_no_record_is_unclaimed(env: Env) {
    let lower = &*env.share;
    let root = lower.root();
    let (plain, claimed) = (contract::file(lower, "plain", b"x"), contract::file(lower, "claimed", b"x"));
    lower.save_record(&claimed, b"any").expect("record");
    lower.make(&root, os("link"), NewNode::Symlink(os("plain")), 0o777, &ROOT).expect("symlink");
    contract::dir(lower, "dir");
    let wanted = [("plain", Some(plain.id)), ("claimed", None), ("link", None), ("dir", None)];
    for (name, id) in wanted {
        assert_eq!(lower.unclaimed(&root, os(name)).expect(name), id, "{name}");
    }
    lower.link(&plain, &root, os("second")).expect("link");
    assert_eq!(lower.unclaimed(&root, os("plain")).expect("two names"), None);
    assert_eq!(errno(lower.unclaimed(&root, os("nothing"))), libc::ENOENT);
}
