//! All attributes of all names below a directory, reached by descriptors, since paths may be too long; and their comparison.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, SeekFrom, openat, seek};

use crate::rig::*;

/// A name in an open directory, as a short path.
pub fn at(dir: &OwnedFd, name: &[u8]) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(OsStr::from_bytes(name))
}

fn open(dir: &OwnedFd, name: &OsStr) -> OwnedFd {
    openat(dir, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty()).unwrap()
}

/// What a name has but for content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    mode: u32,
    owner: (u32, u32),
    pub mtime: (i64, i64),
    pub atime: (i64, i64),
    /// Of directories, every filesystem has its own idea.
    size: Option<u64>,
    links: Option<u64>,
    device: u64,
    target: Option<PathBuf>,
    xattrs: BTreeMap<String, Vec<u8>>,
    ino: u64,
}

impl Facts {
    pub fn of(path: &Path) -> Self {
        let m = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut names = vec![0; 65_536];
        let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
        let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
        // XFS shows ACLs by a second name.
        let names = names.filter(|name| !name.starts_with(b"trusted.SGI_ACL_"));
        let names = names.map(|name| String::from_utf8(name.to_vec()).unwrap());
        Self {
            mode: m.mode(),
            owner: (m.uid(), m.gid()),
            mtime: (m.mtime(), m.mtime_nsec()),
            atime: (m.atime(), m.atime_nsec()),
            size: (!m.is_dir()).then_some(m.len()),
            links: (!m.is_dir()).then_some(m.nlink()),
            device: m.rdev(),
            target: m.is_symlink().then(|| fs::read_link(path).unwrap()),
            xattrs: names.map(|name| (name.clone(), xattr(path, &name).unwrap())).collect(),
            ino: m.ino(),
        }
    }
}

fn walk(dir: &OwnedFd, path: &Path, visit: &mut dyn FnMut(&OwnedFd, &OsStr, &Path)) {
    let mut names: Vec<_> = fs::read_dir(at(dir, b".")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        let path = path.join(&name);
        visit(dir, &name, &path);
        if fs::symlink_metadata(at(dir, name.as_bytes())).unwrap().is_dir() {
            walk(&open(dir, &name), &path, visit);
        }
    }
}

fn root(dir: &Path) -> OwnedFd {
    openat(CWD, dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

pub fn snapshot(dir: &Path) -> BTreeMap<PathBuf, Facts> {
    let mut all = BTreeMap::from([(PathBuf::new(), Facts::of(dir))]);
    walk(&root(dir), Path::new(""), &mut |dir, name, path| {
        all.insert(path.to_owned(), Facts::of(&at(dir, name.as_bytes())));
    });
    all
}

/// Names, attributes, and which names are one file. `unread`: nobody has read the files, so their times of access count.
#[track_caller]
pub fn compare(before: &BTreeMap<PathBuf, Facts>, after: &BTreeMap<PathBuf, Facts>, unread: bool) {
    let only = |a: &BTreeMap<PathBuf, Facts>, b: &BTreeMap<PathBuf, Facts>| -> Vec<PathBuf> {
        a.keys().filter(|path| !b.contains_key(*path)).cloned().collect()
    };
    assert_eq!((only(before, after), only(after, before)), (Vec::new(), Vec::new()), "names differ");
    let mut same: HashMap<u64, u64> = HashMap::new();
    for (path, facts) in before {
        let mut now = after[path].clone();
        let known = *same.entry(facts.ino).or_insert(now.ino);
        assert_eq!(known, now.ino, "{}: another file than its other name", path.display());
        now.ino = facts.ino;
        // Listing a directory reads it, and so does following a link.
        if !unread || facts.size.is_none() || facts.target.is_some() {
            now.atime = facts.atime;
        }
        assert_eq!(&now, facts, "{}", path.display());
    }
    let files: std::collections::HashSet<_> = same.values().collect();
    assert_eq!(files.len(), same.len(), "two files became one");
}

/// Reads every regular file; how many.
pub fn content(dir: &Path, mut check: impl FnMut(&[u8], &[u8])) -> usize {
    let mut count = 0;
    walk(&root(dir), Path::new(""), &mut |dir, name, _| {
        let path = at(dir, name.as_bytes());
        if fs::symlink_metadata(&path).unwrap().is_file() {
            check(name.as_bytes(), &fs::read(&path).unwrap());
            count += 1;
        }
    });
    count
}

/// Where a file has data.
pub fn holes(path: &Path) -> Vec<(u64, u64)> {
    let file = fs::File::open(path).unwrap();
    let (mut extents, mut offset) = (Vec::new(), 0);
    while let Ok(from) = seek(&file, SeekFrom::Data(offset)) {
        offset = seek(&file, SeekFrom::Hole(from)).unwrap();
        extents.push((from, offset));
    }
    extents
}
