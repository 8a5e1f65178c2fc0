//! Marks: empty files in a directory of ours in the share, one for each directory or inode whose change is not told yet.
//!
//! A mark is made before the change that it is for, in the same filesystem. ext4 and XFS log changes of names and attributes in order, so
//! after a loss of power a change that is there has its mark there, though nobody waited for a sync. On other filesystems a mark is synced.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Mark;
use crate::ports::{Caller, FileKind, Lower, LowerError, LowerResult, NewNode};
use crate::types::{FileId, HANDLE_BYTES_MAX, Inode, RawHandle, STAGING_NAME};

const OURSELVES: Caller = Caller { uid: 0, gid: 0, pid: 0, umask: 0 };
/// Ours in the gateway's directory, which nobody sees.
const PLACE: &str = "sync";
const MARKS: &str = "marks";
/// Says that more changed than is marked.
const WIDE: &str = "wide";
const BARRIER: &str = "barrier";

/// The directory `name` in `dir`, made for root alone where it is missing.
pub fn own_directory(lower: &dyn Lower, dir: &Inode, name: &str, mode: u32) -> LowerResult<Inode> {
    let name = OsStr::new(name);
    let made = match lower.lookup(dir, name) {
        Err(error) if error.errno() == libc::ENOENT => {
            match lower.make(dir, name, NewNode::Directory, mode, &OURSELVES) {
                Err(error) if error.errno() == libc::EEXIST => lower.lookup(dir, name),
                made => made,
            }
        }
        found => found,
    };
    let (node, attr) = made?;
    if attr.kind != FileKind::Directory || attr.uid != 0 || attr.mode & 0o022 != 0 {
        return Err(LowerError::from_errno("mkdir: something that is not tierfs' has this name", libc::EEXIST));
    }
    Ok(node)
}

/// Where the metadata sync keeps what is its own in the share.
pub fn sync_place(lower: &dyn Lower) -> LowerResult<Inode> {
    let staging = own_directory(lower, &lower.root(), STAGING_NAME, 0o711)?;
    own_directory(lower, &staging, PLACE, 0o700)
}

/// All names of a directory, but `.` and `..`.
pub fn names_in(lower: &dyn Lower, dir: &Inode) -> LowerResult<Vec<OsString>> {
    let mut names = Vec::new();
    lower.open_dir(dir)?.each(0, &mut |entry| {
        if entry.name != "." && entry.name != ".." {
            names.push(entry.name.to_owned());
        }
        false
    })?;
    Ok(names)
}

/// Waits until all changes of names and attributes made so far are on stable storage. Data is not.
pub struct Barrier {
    lower: Arc<dyn Lower>,
    dir: Inode,
    /// Changes of attributes are logged in order, so that a later one carries the earlier.
    ordered: bool,
    one: Mutex<()>,
}

impl Barrier {
    /// `dir` is one of ours.
    pub fn new(lower: Arc<dyn Lower>, dir: Inode) -> Self {
        // Where an inode can be found by its number: ext4 and XFS.
        let ordered = lower.by_number(lower.root().id.ino).is_ok();
        Self { lower, dir, ordered, one: Mutex::default() }
    }

    pub fn is_ordered(&self) -> bool {
        self.ordered
    }

    pub fn wait(&self) -> LowerResult<()> {
        if !self.ordered {
            return self.lower.sync_all();
        }
        let _one = self.one.lock();
        // The directory must have changed after all that is to be durable, or its sync would have nothing to do.
        let name = OsStr::new(BARRIER);
        match self.lower.make(&self.dir, name, NewNode::Special(FileKind::Regular, 0), 0, &OURSELVES) {
            Err(error) if error.errno() != libc::EEXIST => return Err(error),
            _ => self.lower.unlink(&self.dir, name)?,
        }
        self.lower.sync_node(&self.dir)
    }
}

/// What marks were found at a start.
#[derive(Default)]
pub struct Found {
    pub marks: Vec<(Mark, Inode)>,
    /// More changed than is marked.
    pub wide: bool,
}

pub struct Marks {
    lower: Arc<dyn Lower>,
    dir: Inode,
    pub barrier: Barrier,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn name_of(mark: &Mark, node: &Inode) -> OsString {
    let (letter, id) = match mark {
        Mark::Directory(id) => ('d', id),
        Mark::Inode(id) => ('i', id),
    };
    format!("{letter}{:x}-{:x}-{:x}-{}", id.ino, id.birth, node.handle.kind(), hex(node.handle.bytes())).into()
}

fn parse(name: &OsStr) -> Option<(Mark, Inode)> {
    let name = std::str::from_utf8(name.as_bytes()).ok()?;
    let (directory, rest) = match name.split_at_checked(1)? {
        ("d", rest) => (true, rest),
        ("i", rest) => (false, rest),
        _ => return None,
    };
    let mut parts = rest.split('-');
    let mut number = || u64::from_str_radix(parts.next()?, 16).ok();
    let (ino, birth, kind) = (number()?, number()?, number()?);
    let text = parts.next()?;
    if text.len() % 2 != 0 || text.len() > 2 * HANDLE_BYTES_MAX || !text.is_ascii() {
        return None;
    }
    let bytes: Option<Vec<u8>> =
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect();
    let id = FileId { ino, birth };
    let node = Inode { id, handle: RawHandle::new(kind as u32 as i32, &bytes?)? };
    Some((if directory { Mark::Directory(id) } else { Mark::Inode(id) }, node))
}

impl Marks {
    pub fn open(lower: Arc<dyn Lower>) -> LowerResult<Self> {
        let dir = own_directory(&*lower, &sync_place(&*lower)?, MARKS, 0o700)?;
        Ok(Self { barrier: Barrier::new(lower.clone(), dir), lower, dir })
    }

    pub fn found(&self) -> LowerResult<Found> {
        let mut found = Found::default();
        for name in names_in(&*self.lower, &self.dir)? {
            match parse(&name) {
                Some(mark) => found.marks.push(mark),
                None => found.wide |= name == WIDE,
            }
        }
        Ok(found)
    }

    fn make(&self, name: &OsStr) -> LowerResult<()> {
        match self.lower.make(&self.dir, name, NewNode::Special(FileKind::Regular, 0), 0, &OURSELVES) {
            Err(error) if error.errno() != libc::EEXIST => return Err(error),
            _ => {}
        }
        if self.barrier.is_ordered() { Ok(()) } else { self.lower.sync_node(&self.dir) }
    }

    fn remove(&self, name: &OsStr) -> LowerResult<()> {
        match self.lower.unlink(&self.dir, name) {
            Err(error) if error.errno() != libc::ENOENT => Err(error),
            _ => Ok(()),
        }
    }

    pub fn place(&self, mark: &Mark, node: &Inode) -> LowerResult<()> {
        self.make(&name_of(mark, node))
    }

    pub fn clear(&self, mark: &Mark, node: &Inode) -> LowerResult<()> {
        self.remove(&name_of(mark, node))
    }

    /// Makes all of the share durable, content too.
    pub fn sync(&self) -> LowerResult<()> {
        self.lower.sync_all()
    }

    pub fn place_wide(&self) -> LowerResult<()> {
        self.make(OsStr::new(WIDE))
    }

    pub fn clear_wide(&self) -> LowerResult<()> {
        self.remove(OsStr::new(WIDE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_marks_read_back() {
        let id = FileId { ino: 0x1234, birth: u64::MAX };
        for (kind, bytes) in [(1, &[1, 2, 255][..]), (-3, &[0; HANDLE_BYTES_MAX][..])] {
            let node = Inode { id, handle: RawHandle::new(kind, bytes).unwrap() };
            for mark in [Mark::Directory(id), Mark::Inode(id)] {
                let name = name_of(&mark, &node);
                assert!(name.len() < 255);
                assert_eq!(parse(&name), Some((mark, node)));
            }
        }
        for name in ["wide", "barrier", "d", "d1-2", "i1-2-3-0", "i1-2-3-zz", "x1-2-3-00", "d1-2-3-ü"] {
            assert_eq!(parse(OsStr::new(name)), None, "{name}");
        }
    }
}
