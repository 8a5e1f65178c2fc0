//! A share with everything that must come back.

use std::ffi::{CString, OsStr};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, mkdirat, mknodat, openat};

use super::snapshot::at;
use crate::rig::*;

/// An ACL as the kernel stores it: version, then tag, permissions and id of each entry.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

const ANY: u32 = u32::MAX;
/// The owner, user 1234, group, mask, others.
const ENTRIES: [(u16, u16, u32); 5] = [(1, 7, ANY), (2, 6, 1234), (4, 4, ANY), (16, 6, ANY), (32, 0, ANY)];

/// What file `name` has: a function of the name.
fn bytes_of(name: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(name).into_owned();
    let number = blake3::hash(name).as_bytes()[0] as usize;
    let len = match number {
        0 => 3 * CHUNK + 5,
        1 => CHUNK,
        n => 100 + n * 17,
    };
    noise(&text, len)
}

/// Compares what was read of a file with what was written.
pub fn check(name: &[u8], bytes: &[u8]) {
    let text = String::from_utf8_lossy(name);
    if name.starts_with(b"empty") {
        return assert!(bytes.is_empty());
    }
    if let Some((_, extents)) = sparse().into_iter().find(|(sparse, _)| sparse.as_bytes() == name) {
        let mut want = vec![0; SPARSE_LEN];
        for (from, to) in extents {
            want[from as usize..to as usize].copy_from_slice(&noise(&text, (to - from) as usize));
        }
        return assert_same(bytes, &want, &text);
    }
    assert_same(bytes, &bytes_of(name.strip_prefix(b"also ").unwrap_or(name)), &text);
}

const SPARSE_LEN: usize = 20 * CHUNK;

/// Files with holes, and where their data is: also within a chunk.
pub fn sparse() -> Vec<(&'static str, Vec<(u64, u64)>)> {
    let (block, chunk) = (4096, CHUNK as u64);
    vec![
        ("sparse", vec![(3 * block, 5 * block), (7 * chunk, 8 * chunk + block), (19 * chunk + block, 20 * chunk)]),
        ("all hole", vec![]),
    ]
}

fn write(dir: &OwnedFd, name: &[u8]) -> PathBuf {
    let path = at(dir, name);
    fs::write(&path, bytes_of(name)).unwrap();
    path
}

fn enter(dir: impl AsFd, name: &[u8]) -> OwnedFd {
    let _ = mkdirat(dir.as_fd(), name, Mode::from_raw_mode(0o755));
    openat(dir, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

/// Below the mount, which is faster; `files` usual ones and everything else once.
pub fn populate(share: &Path, files: usize) {
    let root = enter(CWD, share.as_os_str().as_bytes());
    for n in 0..files {
        if n % 250 == 0 {
            enter(&root, format!("d{:04}", n / 250).as_bytes());
        }
        let path = share.join(format!("d{:04}/file {n}", n / 250));
        fs::write(&path, bytes_of(format!("file {n}").as_bytes())).unwrap();
        chown(&path, Some(1000 + n as u32 % 7), Some(2000 + n as u32 % 5)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode([0o644, 0o600, 0o444, 0o7, 0o640][n % 5])).unwrap();
        if n % 10 == 0 {
            set_xattr(&path, "user.number", format!("{n}").as_bytes()).unwrap();
        }
        if n % 50 == 0 {
            fs::hard_link(&path, share.join(format!("d{:04}/also file {n}", n / 500 / 250))).unwrap();
        }
        set_mtime(&path, 1_500_000_000 + n as i64, (n * 9_999_991 % 1_000_000_000) as i64);
    }
    strange(share, &root);
    for (name, extents) in sparse() {
        let file = fs::File::create(share.join(name)).unwrap();
        file.set_len(SPARSE_LEN as u64).unwrap();
        for (from, to) in extents {
            file.write_all_at(&noise(name, (to - from) as usize), from).unwrap();
        }
    }
    let shared = share.join("d0000");
    set_xattr(&shared, "system.posix_acl_default", &acl(&ENTRIES)).unwrap();
    set_xattr(&shared, "user.of a directory", b"\xff\0").unwrap();
    chown(&shared, Some(42), Some(43)).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o2771)).unwrap();
    for n in 0..files.div_ceil(250) {
        set_mtime(&share.join(format!("d{n:04}")), 1_400_000_000 + n as i64, 123);
    }
    fs::set_permissions(share, fs::Permissions::from_mode(0o755)).unwrap();
}

fn strange(share: &Path, root: &OwnedFd) {
    // Names that are no text, that are long, and that look like something else.
    let odd = enter(root, b"odd \xff\xfe dir");
    for name in [&b"\xff\xfe\x80"[..], b"new\nline", b"a@1-2.3", b"%41", "\u{65e5}\u{672c}".as_bytes(), &[b'n'; 255]] {
        write(&odd, name);
    }
    // Deeper than a key, and than the kernel takes a path.
    let mut deep = enter(root, b"deep");
    for level in 0..25 {
        deep = enter(&deep, format!("{level:02}{}", "x".repeat(198)).as_bytes());
        if [6, 24].contains(&level) {
            write(&deep, format!("at level {level}").as_bytes());
        }
    }
    let linked = write(root, b"linked");
    fs::hard_link(&linked, at(&deep, b"also linked")).unwrap();
    // Directories with nothing in them.
    for (name, mode, owner) in [("empty one", 0o1777, 0), ("empty two", 0o2750, 77)] {
        fs::create_dir(share.join(name)).unwrap();
        chown(share.join(name), Some(owner), Some(owner)).unwrap();
        fs::set_permissions(share.join(name), fs::Permissions::from_mode(mode)).unwrap();
        set_mtime(&share.join(name), 1_300_000_000, 999_999_999);
    }
    // What is neither file nor directory.
    symlink("nowhere at all", share.join("link")).unwrap();
    symlink(OsStr::from_bytes(b"\xff/../x"), share.join("odd link")).unwrap();
    std::os::unix::fs::lchown(share.join("link"), Some(5), Some(6)).unwrap();
    set_mtime(&share.join("link"), 1_200_000_000, 5);
    let special = [
        (FileType::Fifo, 0),
        (FileType::Socket, 0),
        (FileType::CharacterDevice, 0x103),
        (FileType::BlockDevice, 0x700),
    ];
    for (n, (kind, device)) in special.into_iter().enumerate() {
        let name = CString::new(format!("special {n}")).unwrap();
        mknodat(root, &name, kind, Mode::from_raw_mode(0o640), device).unwrap();
        set_mtime(&share.join(format!("special {n}")), 1_100_000_000, n as i64);
        chown(share.join(format!("special {n}")), Some(9), Some(9)).unwrap();
    }
    fs::hard_link(share.join("special 0"), share.join("special too")).unwrap();
    // Attributes.
    let dressed = write(root, b"dressed");
    set_xattr(&dressed, "system.posix_acl_access", &acl(&ENTRIES)).unwrap();
    set_xattr(&dressed, "user.large", &noise("large", 2_500)).unwrap();
    set_xattr(&dressed, "trusted.other", b"x").unwrap();
    let program = write(root, b"program");
    chown(&program, Some(1000), Some(1000)).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o6755)).unwrap();
    // CAP_NET_RAW, permitted and effective (VFS_CAP_REVISION_2).
    let capability = [0x0200_0001u32, 1 << 13, 0, 0, 0].map(u32::to_le_bytes).concat();
    set_xattr(&program, "security.capability", &capability).unwrap();
    let old = write(root, b"older than time");
    set_mtime(&old, -5, 7);
    fs::write(share.join("empty"), b"").unwrap();
    set_mtime(&share.join("empty"), 1_000_000_000, 1);
}
