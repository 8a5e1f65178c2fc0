//! What every `Lower` must do, whatever is below: the real share and the simulated one pass the same cases.
//!
//! Each case gets an empty share.

pub mod listings;

use std::collections::{BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use tierfs::ports::{
    Attr, Caller, FileKind, Keep, Lower, LowerFile, LowerResult, NewNode, OpenFlags, RenameMode, SeekTo, SetAttr,
    SetTime,
};
use tierfs::types::{Inode, RawHandle, Timestamp};

pub const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 0, umask: 0o022 };
pub const READ: OpenFlags = OpenFlags { read: true, ..NONE };
pub const WRITE: OpenFlags = OpenFlags { write: true, ..NONE };
pub const BOTH: OpenFlags = OpenFlags { read: true, write: true, ..NONE };
const NONE: OpenFlags = OpenFlags {
    read: false,
    write: false,
    truncate: false,
    append: false,
    direct: false,
    sync: false,
    exclusive: false,
    execute: false,
    no_atime: false,
    no_wait: false,
    keep: Keep::Nothing,
};

pub fn os(name: &str) -> &OsStr {
    OsStr::new(name)
}

/// The errno of a call that must fail.
#[track_caller]
pub fn errno<T>(answer: LowerResult<T>) -> i32 {
    match answer {
        Ok(_) => panic!("succeeded"),
        Err(error) => error.errno(),
    }
}

/// Makes a file with this content in the root.
pub fn file(lower: &dyn Lower, name: &str, content: &[u8]) -> Inode {
    let (node, _, open) = lower.create(&lower.root(), os(name), 0o644, BOTH, &ROOT).expect("create");
    open.write_at(content, 0).expect("write");
    node
}

pub fn dir(lower: &dyn Lower, name: &str) -> Inode {
    lower.make(&lower.root(), os(name), NewNode::Directory, 0o755, &ROOT).expect("mkdir").0
}

pub fn content(lower: &dyn Lower, node: &Inode) -> Vec<u8> {
    read_all(&*lower.open(node, READ).expect("open"))
}

pub fn read_all(open: &dyn LowerFile) -> Vec<u8> {
    let mut bytes = vec![0; open.stat().expect("stat").size as usize + 1];
    let len = open.read_at(&mut bytes, 0).expect("read");
    bytes.truncate(len);
    bytes
}

pub fn names(lower: &dyn Lower, node: &Inode) -> Vec<OsString> {
    let open = lower.open_dir(node).expect("open_dir");
    let (mut names, mut offset) = (Vec::new(), 0);
    loop {
        let entries = open.read(offset).expect("readdir");
        let Some(last) = entries.last() else { return names };
        offset = last.next_offset;
        names.extend(entries.into_iter().map(|entry| entry.name).filter(|name| name != "." && name != ".."));
    }
}

pub fn lookup_finds_what_was_made(lower: &dyn Lower) {
    let root = lower.root();
    let (made, attr, open) = lower.create(&root, os("file"), 0o640, BOTH, &ROOT).expect("create");
    open.write_at(b"content", 0).expect("write");
    assert_eq!((attr.kind, attr.mode, attr.size, attr.nlink), (FileKind::Regular, 0o640, 0, 1));
    let (found, attr) = lower.lookup(&root, os("file")).expect("lookup");
    assert_eq!(found, made);
    assert_eq!((attr.size, attr.ino), (7, made.id.ino));
    assert_eq!(lower.stat(&found).expect("stat"), attr);
    assert_eq!(open.stat().expect("fstat"), attr);
    assert_ne!(made.id.birth, 0, "this filesystem keeps birth times");
    assert_eq!(made.id.birth >> 63, 0);
    assert_eq!(errno(lower.lookup(&root, os("missing"))), libc::ENOENT);
    assert_eq!(errno(lower.lookup(&found, os("below"))), libc::ENOTDIR);
    assert_eq!(errno(lower.lookup(&root, os("a/b"))), libc::EINVAL);
    assert_eq!(errno(lower.lookup(&root, os("nul\0inside"))), libc::EINVAL);
}

pub fn dot_and_dotdot(lower: &dyn Lower) {
    let root = lower.root();
    let outer = dir(lower, "outer");
    let (inner, _) = lower.make(&outer, os("inner"), NewNode::Directory, 0o755, &ROOT).expect("mkdir");
    let to = |node: &Inode, name| lower.lookup(node, os(name)).expect("lookup").0;
    assert_eq!(to(&inner, "."), inner);
    assert_eq!(to(&inner, ".."), outer);
    assert_eq!(to(&outer, ".."), root);
    assert_eq!(to(&root, ".."), root);
    assert_eq!(to(&root, "."), root);
}

pub fn every_kind_of_node(lower: &dyn Lower) {
    let root = lower.root();
    let device = rustix::fs::makedev(1, 3);
    let cases = [
        ("dir", NewNode::Directory, FileKind::Directory, 0),
        ("regular", NewNode::Special(FileKind::Regular, 0), FileKind::Regular, 0),
        ("fifo", NewNode::Special(FileKind::Fifo, 0), FileKind::Fifo, 0),
        ("socket", NewNode::Special(FileKind::Socket, 0), FileKind::Socket, 0),
        ("char", NewNode::Special(FileKind::CharDevice, device), FileKind::CharDevice, device),
        ("block", NewNode::Special(FileKind::BlockDevice, device), FileKind::BlockDevice, device),
    ];
    for (name, what, kind, rdev) in cases {
        let (node, attr) = lower.make(&root, os(name), what, 0o750, &ROOT).expect(name);
        assert_eq!((attr.kind, attr.mode, attr.rdev), (kind, 0o750, rdev), "{name}");
        assert_eq!(lower.lookup(&root, os(name)).expect(name).0, node);
        assert_eq!(errno(lower.make(&root, os(name), what, 0o750, &ROOT)), libc::EEXIST);
        // Opening must neither block on a fifo nor reach a device.
        let expected = match kind {
            FileKind::Regular => continue,
            FileKind::Directory => libc::EISDIR,
            _ => libc::ENXIO,
        };
        assert_eq!(errno(lower.open(&node, READ).map(|_| ())), expected, "{name}");
        assert_eq!(errno(lower.create(&root, os(name), 0o600, BOTH, &ROOT).map(|_| ())), expected, "{name}");
        lower.sync_node(&node).expect(name);
    }
    let (link, attr) = lower.make(&root, os("link"), NewNode::Symlink(os("some/where")), 0, &ROOT).expect("symlink");
    assert_eq!((attr.kind, attr.size), (FileKind::Symlink, 10));
    assert_eq!(lower.read_link(&link).expect("readlink"), "some/where");
    assert_eq!(errno(lower.open(&link, READ).map(|_| ())), libc::ELOOP);
    lower.sync_node(&link).expect("sync");
}

pub fn create_opens_what_exists(lower: &dyn Lower) {
    let root = lower.root();
    let first = file(lower, "file", b"old content");
    let (same, attr, open) = lower.create(&root, os("file"), 0o600, BOTH, &ROOT).expect("create again");
    assert_eq!((same, attr.size, attr.mode), (first, 11, 0o644));
    assert_eq!(read_all(&*open), b"old content");
    let truncate = OpenFlags { truncate: true, ..BOTH };
    let (_, attr, _) = lower.create(&root, os("file"), 0o600, truncate, &ROOT).expect("create, truncating");
    assert_eq!(attr.size, 0);
    let exclusive = OpenFlags { exclusive: true, ..BOTH };
    assert_eq!(errno(lower.create(&root, os("file"), 0o600, exclusive, &ROOT).map(|_| ())), libc::EEXIST);
}

pub fn hard_links_share_an_identity(lower: &dyn Lower) {
    let (root, sub) = (lower.root(), dir(lower, "sub"));
    let node = file(lower, "one", b"1");
    let attr = lower.link(&node, &sub, os("two")).expect("link");
    assert_eq!(attr.nlink, 2);
    assert_eq!(lower.lookup(&sub, os("two")).expect("lookup").0, node);
    lower.unlink(&root, os("one")).expect("unlink");
    assert_eq!(lower.stat(&node).expect("stat").nlink, 1);
    assert_eq!(content(lower, &node), b"1");
    assert_eq!(errno(lower.link(&node, &sub, os("two"))), libc::EEXIST);
}

pub fn renames(lower: &dyn Lower) {
    let (root, sub) = (lower.root(), dir(lower, "sub"));
    let (a, b) = (file(lower, "a", b"a"), file(lower, "b", b"b"));
    let at = |dir: &Inode, name| lower.lookup(dir, os(name)).map(|(node, _)| node);
    let rename = |from: &str, dir: &Inode, to: &str, how| lower.rename(&root, os(from), dir, os(to), how);
    assert_eq!(errno(rename("a", &root, "b", RenameMode::NoReplace)), libc::EEXIST);
    rename("a", &root, "b", RenameMode::Exchange).expect("exchange");
    assert_eq!((at(&root, "a").expect("a"), at(&root, "b").expect("b")), (b, a));
    rename("a", &sub, "moved", RenameMode::NoReplace).expect("move");
    assert_eq!(at(&sub, "moved").expect("moved"), b);
    lower.link(&a, &sub, os("second name")).expect("link");
    lower.rename(&sub, os("moved"), &root, os("b"), RenameMode::Replace).expect("replace");
    assert_eq!(at(&root, "b").expect("b"), b);
    assert_eq!(lower.stat(&a).expect("stat").nlink, 1);
    assert_eq!(errno(at(&sub, "moved")), libc::ENOENT);
    rename("b", &sub, "c", RenameMode::Whiteout).expect("whiteout");
    assert_eq!(lower.lookup(&root, os("b")).expect("whiteout").1.kind, FileKind::CharDevice);
    assert_eq!(errno(lower.rename(&root, os("sub"), &sub, os("x"), RenameMode::Replace)), libc::EINVAL);
}

pub fn unlinked_files_live_while_open(lower: &dyn Lower) {
    let root = lower.root();
    let node = file(lower, "file", b"still here");
    let open = lower.open(&node, BOTH).expect("open");
    lower.unlink(&root, os("file")).expect("unlink");
    assert_eq!(open.stat().expect("fstat").nlink, 0);
    assert_eq!(lower.stat(&node).expect("stat by value").nlink, 0);
    assert_eq!(lower.by_handle(&node.handle).expect("by handle").0, node);
    assert_eq!(content(lower, &node), b"still here");
    lower.save_record(&node, b"record").expect("save");
    lower.set_attr(&node, &SetAttr { size: Some(5), ..SetAttr::default() }).expect("truncate");
    assert_eq!(lower.path_of(&node).expect("path"), None);
    drop(open);
    assert_eq!(errno(lower.stat(&node)), libc::ESTALE);
    assert_eq!(errno(lower.by_handle(&node.handle)), libc::ESTALE);
    assert_eq!(errno(lower.open(&node, READ).map(|_| ())), libc::ESTALE);
    let sub = dir(lower, "dir");
    assert_eq!(errno(lower.unlink(&root, os("dir"))), libc::EISDIR);
    lower.make(&sub, os("x"), NewNode::Directory, 0o700, &ROOT).expect("mkdir");
    assert_eq!(errno(lower.remove_dir(&root, os("dir"))), libc::ENOTEMPTY);
    lower.remove_dir(&sub, os("x")).expect("rmdir");
    lower.remove_dir(&root, os("dir")).expect("rmdir");
    assert_eq!(errno(lower.lookup(&root, os("dir"))), libc::ENOENT);
}

/// A replaced file's space must come back even though its descriptor was cached.
pub fn space_of_removed_files_comes_back(lower: &dyn Lower) {
    let root = lower.root();
    let big = vec![7; 4 << 20];
    let free = || {
        lower.sync_all().expect("sync");
        let space = lower.space().expect("statfs");
        space.blocks_free * space.fragment_size
    };
    for replace in [false, true] {
        let node = file(lower, "big", &big);
        lower.stat(&node).expect("stat caches it");
        file(lower, "small", b"x");
        let before = free();
        if replace {
            lower.rename(&root, os("small"), &root, os("big"), RenameMode::Replace).expect("rename");
        } else {
            lower.unlink(&root, os("big")).expect("unlink");
        }
        // XFS frees unlinked inodes in the background.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while free() < before + (3 << 20) {
            assert!(std::time::Instant::now() < deadline, "{} bytes free, before {before}", free());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

pub fn set_attr_in_its_order(lower: &dyn Lower) {
    let node = file(lower, "file", b"0123456789");
    let at = |secs, nanos| SetTime::At(Timestamp { secs, nanos });
    let all = SetAttr {
        size: Some(4),
        uid: Some(1000),
        gid: Some(2000),
        mode: Some(0o6755),
        atime: Some(at(5_000_000_000, 999_999_999)),
        mtime: Some(at(-86_400, 1)),
    };
    let attr = lower.set_attr(&node, &all).expect("setattr");
    assert_eq!((attr.size, attr.uid, attr.gid, attr.mode), (4, 1000, 2000, 0o6755));
    assert_eq!(attr.atime, Timestamp { secs: 5_000_000_000, nanos: 999_999_999 }, "beyond 2106");
    assert_eq!(attr.mtime, Timestamp { secs: -86_400, nanos: 1 }, "before 1970");
    assert_eq!(lower.stat(&node).expect("stat"), attr);
    assert_eq!(content(lower, &node), b"0123");
    let attr = lower.set_attr(&node, &SetAttr { uid: Some(1), ..SetAttr::default() }).expect("chown");
    assert_eq!((attr.uid, attr.gid, attr.mode & 0o4000), (1, 2000, 0), "chown clears setuid");
    let attr = lower.set_attr(&node, &SetAttr { mtime: Some(SetTime::Now), ..SetAttr::default() }).expect("touch");
    assert!(attr.mtime.secs > 1_700_000_000);
    assert_eq!(attr.atime.secs, 5_000_000_000, "left alone");
    let sub = dir(lower, "dir");
    assert_eq!(errno(lower.set_attr(&sub, &SetAttr { size: Some(0), ..SetAttr::default() })), libc::EISDIR);
    let (link, _) = lower.make(&lower.root(), os("link"), NewNode::Symlink(os("file")), 0, &ROOT).expect("symlink");
    let owned = lower.set_attr(&link, &SetAttr { uid: Some(77), mtime: Some(at(9, 9)), ..SetAttr::default() });
    assert_eq!(owned.expect("symlink's own").uid, 77);
    assert_eq!(lower.stat(&node).expect("stat").uid, 1, "not the target's");
}

pub fn names_of_any_bytes(lower: &dyn Lower) {
    let root = lower.root();
    let longest = "n".repeat(255);
    let cases: [&[u8]; 5] = [b"\xff\xfe not utf-8 \x80", longest.as_bytes(), b"new\nline", b" ", b"x (deleted)"];
    for name in cases.map(OsStr::from_bytes) {
        let (made, _, _) = lower.create(&root, name, 0o644, BOTH, &ROOT).expect("create");
        assert_eq!(lower.lookup(&root, name).expect("lookup").0, made);
        assert_eq!(lower.path_of(&made).expect("path").as_deref(), Some(name.as_ref()));
    }
    let expected: BTreeSet<OsString> = cases.iter().map(|name| OsStr::from_bytes(name).to_os_string()).collect();
    let listed: BTreeSet<OsString> = names(lower, &root).into_iter().filter(|name| name != "lost+found").collect();
    assert_eq!(listed, expected);
    assert_eq!(errno(lower.lookup(&root, os(&"n".repeat(256)))), libc::ENAMETOOLONG);
    assert_eq!(errno(lower.lookup(&root, os(""))), libc::ENOENT);
}

pub fn content_reads_as_written(lower: &dyn Lower) {
    let node = file(lower, "file", b"");
    let open = lower.open(&node, BOTH).expect("open");
    open.write_at(b"world", 6).expect("write");
    open.write_at(b"hello ", 0).expect("write");
    let mut buffer = [0; 64];
    assert_eq!(open.read_at(&mut buffer, 0).expect("read"), 11);
    assert_eq!(&buffer[..11], b"hello world");
    assert_eq!(open.read_at(&mut buffer, 11).expect("read at end"), 0);
    let append = lower.open(&node, OpenFlags { append: true, ..WRITE }).expect("open");
    append.write_at(b"!", 0).expect("append");
    assert_eq!(content(lower, &node), b"hello world!");
    open.set_len(5).expect("truncate");
    assert_eq!(content(lower, &node), b"hello");
    open.allocate(0, 0, 8192).expect("fallocate");
    assert_eq!(open.stat().expect("stat").size, 8192);
    lower.open(&node, OpenFlags { truncate: true, ..WRITE }).expect("open truncating");
    assert_eq!(open.stat().expect("stat").size, 0);
    assert_eq!(errno(lower.open(&node, READ).expect("open").write_at(b"x", 0)), libc::EBADF);
    open.sync(true).expect("fdatasync");
    open.sync(false).expect("fsync");
}

pub fn copies_between_files(lower: &dyn Lower) {
    let (from, to) = (file(lower, "from", b"0123456789"), file(lower, "to", b"abcdefghij"));
    let (from, to) = (lower.open(&from, READ).expect("open"), lower.open(&to, BOTH).expect("open"));
    assert_eq!(from.copy_to(2, &*to, 5, 3).expect("copy"), 3);
    assert_eq!(read_all(&*to), b"abcde234ij");
    assert_eq!(from.copy_to(10, &*to, 0, 10).expect("copy at end"), 0);
}

pub fn holes_and_punching(lower: &dyn Lower) {
    const MIB: u64 = 1 << 20;
    let node = file(lower, "file", b"");
    let open = lower.open(&node, BOTH).expect("open");
    open.write_at(&vec![1; 65536], 4 * MIB).expect("write");
    open.set_len(8 * MIB + 123).expect("extend");
    open.sync(false).expect("fsync");
    assert_eq!(open.seek(0, SeekTo::Data).expect("data"), 4 * MIB);
    assert_eq!(open.seek(4 * MIB, SeekTo::Hole).expect("hole"), 4 * MIB + 65536);
    assert_eq!(errno(open.seek(5 * MIB, SeekTo::Data)), libc::ENXIO);
    open.write_at(b"tail", 8 * MIB + 119).expect("write");
    open.sync(false).expect("fsync");
    let before = lower.stat(&node).expect("stat");
    assert!(before.blocks > 0);
    open.punch_all().expect("punch");
    open.sync(false).expect("fsync");
    let after = lower.stat(&node).expect("stat");
    assert_eq!((after.blocks, after.size), (0, before.size));
    assert!(content(lower, &node).iter().all(|byte| *byte == 0));
    file(lower, "empty", b"");
    let (empty, _) = lower.lookup(&lower.root(), os("empty")).expect("lookup");
    lower.open(&empty, BOTH).expect("open").punch_all().expect("punching nothing");
    let small = file(lower, "small", b"less than a block");
    let open = lower.open(&small, BOTH).expect("open");
    open.sync(false).expect("fsync");
    open.punch_all().expect("punch");
    open.sync(false).expect("fsync");
    assert_eq!(open.stat().expect("stat").blocks, 0);
    assert_eq!(open.stat().expect("stat").size, 17);
}

pub fn extended_attributes(lower: &dyn Lower) {
    let root = lower.root();
    let (node, sub) = (file(lower, "file", b""), dir(lower, "dir"));
    let (link, _) = lower.make(&root, os("link"), NewNode::Symlink(os("file")), 0, &ROOT).expect("symlink");
    let (fifo, _) = lower.make(&root, os("fifo"), NewNode::Special(FileKind::Fifo, 0), 0o600, &ROOT).expect("mkfifo");
    for (node, name) in [(node, "user.a"), (sub, "user.a"), (link, "trusted.a"), (fifo, "trusted.a")] {
        let name = os(name);
        assert_eq!(errno(lower.xattr(&node, name)), libc::ENODATA);
        lower.set_xattr(&node, name, b"value\0with nul", libc::XATTR_CREATE).expect("set");
        assert_eq!(errno(lower.set_xattr(&node, name, b"", libc::XATTR_CREATE)), libc::EEXIST);
        assert_eq!(lower.xattr(&node, name).expect("get"), b"value\0with nul");
        assert_eq!(lower.list_xattrs(&node).expect("list"), [name]);
        lower.set_xattr(&node, name, b"", libc::XATTR_REPLACE).expect("replace");
        assert_eq!(lower.xattr(&node, name).expect("get"), b"");
        lower.remove_xattr(&node, name).expect("remove");
        assert_eq!(errno(lower.remove_xattr(&node, name)), libc::ENODATA);
        assert_eq!(lower.list_xattrs(&node).expect("list"), [""; 0]);
    }
    let long = vec![b'v'; 3000];
    lower.set_xattr(&node, os("user.long"), &long, 0).expect("set a long one");
    assert_eq!(lower.xattr(&node, os("user.long")).expect("get"), long);
    assert_eq!(errno(lower.set_xattr(&link, os("user.a"), b"", 0)), libc::EPERM);
}

pub fn records(lower: &dyn Lower) {
    let node = file(lower, "file", b"");
    assert_eq!(lower.load_record(&node).expect("load"), None);
    for record in [vec![1; 10], vec![2; 2000], vec![]] {
        lower.save_record(&node, &record).expect("save");
        assert_eq!(lower.load_record(&node).expect("load"), Some(record));
    }
    assert_eq!(lower.list_xattrs(&node).expect("list"), [lower.record_xattr()]);
    lower.set_attr(&node, &SetAttr { mode: Some(0), ..SetAttr::default() }).expect("chmod 0");
    lower.sync_node(&node).expect("sync without permission bits");
    lower.sync_node(&lower.root()).expect("sync of a directory");
    lower.sync_all().expect("syncfs");
    lower.remove_xattr(&node, os(lower.record_xattr())).expect("remove");
    assert_eq!(lower.load_record(&node).expect("load"), None);
}

pub fn handles_are_checked(lower: &dyn Lower) {
    let node = file(lower, "file", b"x");
    let (found, attr) = lower.by_handle(&node.handle).expect("by handle");
    assert_eq!((found, attr.ino), (node, node.id.ino));
    let mut wrong = node;
    wrong.id.birth ^= 1;
    assert_eq!(errno(lower.stat(&wrong)), libc::ESTALE, "another birth time is another file");
    let (other, _, _) = lower.create(&lower.root(), os("other"), 0o600, BOTH, &ROOT).expect("create");
    wrong = Inode { id: node.id, handle: other.handle };
    assert_eq!(errno(lower.stat(&wrong)), libc::ESTALE, "identity and handle must agree");
    for (kind, bytes) in
        [(1, &[][..]), (1, &[0; 40]), (200, &[1; 8]), (node.handle.kind(), &[0xff; 12]), (0xff, &[0; 3])]
    {
        let handle = RawHandle::new(kind, bytes).expect("short");
        assert_eq!(errno(lower.by_handle(&handle)), libc::ESTALE, "{handle:?}");
    }
}

/// An inode number used again must not be taken for the file that had it before.
pub fn a_reused_inode_is_stale(lower: &dyn Lower) {
    let root = lower.root();
    let mut seen: Vec<Inode> = Vec::new();
    let mut reused = 0;
    for round in 0..200 {
        let node = file(lower, "file", format!("{round}").as_bytes());
        reused += usize::from(seen.iter().any(|old| old.id.ino == node.id.ino));
        assert_eq!(content(lower, &node), format!("{round}").as_bytes());
        for old in &seen {
            assert_eq!(errno(lower.stat(old)), libc::ESTALE);
            assert_eq!(errno(lower.open(old, READ).map(|_| ())), libc::ESTALE);
            assert_eq!(errno(lower.by_handle(&old.handle)), libc::ESTALE);
        }
        lower.unlink(&root, os("file")).expect("unlink");
        seen.push(node);
        if seen.len() > 8 {
            seen.remove(0);
        }
    }
    eprintln!("{reused} of 200 files had an inode number used before");
}

/// A number alone leads to the inode of any kind that has it now, and to nothing else.
pub fn numbers_lead_to_their_inodes(lower: &dyn Lower) {
    let root = lower.root();
    let sub = dir(lower, "sub");
    let (below, _) = lower.make(&sub, os("below"), NewNode::Directory, 0o700, &ROOT).expect("mkdir");
    let (link, _) = lower.make(&below, os("link"), NewNode::Symlink(os("target")), 0, &ROOT).expect("symlink");
    let (fifo, _) = lower.make(&below, os("fifo"), NewNode::Special(FileKind::Fifo, 0), 0o600, &ROOT).expect("mkfifo");
    let regular = file(lower, "file", b"content");
    for node in [root, sub, below, link, fifo, regular] {
        let (found, attr) = lower.by_number(node.id.ino).expect("by number");
        assert_eq!((found, attr), (node, lower.stat(&node).expect("stat")));
    }
    for nothing in [0, 1, regular.id.ino + 4_096, u64::from(u32::MAX), 1 << 40, u64::MAX] {
        assert_eq!(errno(lower.by_number(nothing)), libc::ESTALE, "{nothing}");
    }
    let open = lower.open(&regular, READ).expect("open");
    lower.unlink(&root, os("file")).expect("unlink");
    let (found, attr) = lower.by_number(regular.id.ino).expect("unlinked and open");
    assert_eq!((found, attr.nlink), (regular, 0));
    drop(open);
    // Nothing here may keep the space of a file that nobody has.
    assert_eq!(errno(lower.by_number(regular.id.ino)), libc::ESTALE);
    for round in 0..200 {
        let heir = file(lower, &format!("heir {round}"), b"another");
        if heir.id.ino == regular.id.ino {
            let (found, _) = lower.by_number(regular.id.ino).expect("by number");
            assert_eq!(found, heir);
            assert_ne!(found.id.birth, regular.id.birth, "told apart by its birth");
            return;
        }
        // XFS frees inodes in the background.
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    panic!("the inode number was not used again in 200 files");
}

pub fn paths_are_true_or_not_told(lower: &dyn Lower) {
    let (root, sub) = (lower.root(), dir(lower, "sub"));
    let node = file(lower, "file", b"");
    let path = |node: &Inode| lower.path_of(node).expect("path").map(|path| path.to_str().expect("UTF-8").to_owned());
    assert_eq!(path(&root).as_deref(), Some(""));
    assert_eq!(path(&sub).as_deref(), Some("sub"));
    lower.lookup(&root, os("file")).expect("lookup");
    assert_eq!(path(&node).as_deref(), Some("file"));
    lower.rename(&root, os("file"), &sub, os("moved"), RenameMode::Replace).expect("rename");
    assert_eq!(path(&node).as_deref(), Some("sub/moved"));
    lower.rename(&root, os("sub"), &root, os("renamed"), RenameMode::Replace).expect("rename");
    assert_eq!(path(&node).as_deref(), Some("renamed/moved"));
    let open = lower.open(&node, READ).expect("open");
    lower.unlink(&sub, os("moved")).expect("unlink");
    for other in ["moved", "moved (deleted)"] {
        lower.make(&sub, os(other), NewNode::Special(FileKind::Regular, 0), 0o600, &ROOT).expect("another");
    }
    assert_eq!(path(&node), None, "other files have that name now, and what the kernel makes of it");
    drop(open);
}

pub fn leases_between_own_opens(lower: &dyn Lower) {
    let node = file(lower, "file", b"x");
    let open = lower.open(&node, BOTH).expect("open");
    lower.stat(&node).expect("stat caches a descriptor, which must not count");
    drop(open.try_exclusive().expect("lease").expect("alone"));
    let reader = lower.open(&node, READ).expect("open");
    assert!(open.try_exclusive().expect("lease").is_none(), "a reader is there");
    assert!(!reader.nobody_writes().expect("lease"), "a writer is there");
    drop(open);
    assert!(reader.nobody_writes().expect("lease"));
    let second = lower.open(&node, READ).expect("open");
    assert!(reader.nobody_writes().expect("lease"), "readers do not matter");
    assert!(reader.try_exclusive().expect("lease").is_none());
    drop(second);
    let guard = reader.try_exclusive().expect("lease").expect("alone, also by a reading descriptor");
    // Tiering saves and syncs while it holds the lease; neither may wait for itself.
    let started = std::time::Instant::now();
    lower.save_record(&node, b"releasing").expect("save");
    lower.sync_node(&node).expect("sync");
    assert!(started.elapsed().as_secs() < 10, "waited for its own lease");
    drop(guard);
    lower.open(&node, BOTH).expect("given back");
}

/// While a lease is held another open waits; it never fails.
pub fn an_open_waits_for_a_lease(lower: Arc<dyn Lower>) {
    let node = file(&*lower, "file", b"x");
    for flags in [READ, BOTH, OpenFlags { truncate: true, ..WRITE }] {
        let open = lower.open(&node, BOTH).expect("open");
        let guard = open.try_exclusive().expect("lease").expect("alone");
        let (sent, received) = std::sync::mpsc::channel();
        let other = Arc::clone(&lower);
        let thread = std::thread::spawn(move || sent.send(other.open(&node, flags).map(|_| ())));
        let wait = std::time::Duration::from_millis(100);
        assert!(received.recv_timeout(wait).is_err(), "must wait");
        drop(guard);
        received.recv_timeout(std::time::Duration::from_secs(10)).expect("goes on").expect("opens");
        thread.join().expect("thread").expect("sent");
    }
}

pub fn many_threads_at_once(lower: Arc<dyn Lower>) {
    let threads: Vec<_> = (0..8u32)
        .map(|thread| {
            let lower = Arc::clone(&lower);
            std::thread::spawn(move || {
                let who = Caller { uid: 1000 + thread, gid: 2000 + thread, pid: 0, umask: thread };
                let (sub, attr) = lower
                    .make(&lower.root(), os(&format!("dir {thread}")), NewNode::Directory, 0o777, &who)
                    .expect("mkdir");
                assert_owned(&attr, &who, 0o777);
                for n in 0..100 {
                    let name = format!("file {n}");
                    let (node, attr, open) = lower.create(&sub, os(&name), 0o666, BOTH, &who).expect("create");
                    assert_owned(&attr, &who, 0o666);
                    open.write_at(name.as_bytes(), 0).expect("write");
                    assert_eq!(content(&*lower, &node), name.as_bytes());
                    lower.stat(&node).expect("stat");
                    if n % 2 == 0 {
                        lower.unlink(&sub, os(&name)).expect("unlink");
                    }
                }
                names(&*lower, &sub).len()
            })
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.join().expect("thread"), 50);
    }
    let inodes: HashSet<_> = names(&*lower, &lower.root()).into_iter().collect();
    assert!(inodes.len() >= 8);
}

fn assert_owned(attr: &Attr, who: &Caller, mode: u32) {
    assert_eq!((attr.uid, attr.gid, attr.mode), (who.uid, who.gid, mode & !who.umask));
}
