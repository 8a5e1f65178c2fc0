//! Walks over the share below the mount: by inode, never following a symbolic link, never leaving the filesystem.
//!
//! Memory goes by the depth of the tree and the longest directory buffer, not by the number of files. Of files with several names, those are remembered of
//! which not all names were met, up to a bound ([`Links`]).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{OsStr, OsString};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::ports::{Attr, DirEntry, FileKind, Lower, LowerDir, LowerError, LowerResult};
use crate::types::{FileId, Inode, STAGING_NAME};

/// Something found: an inode and its path relative to the share.
#[derive(Clone, Debug)]
pub struct Found {
    pub node: Inode,
    pub attr: Attr,
    pub path: PathBuf,
}

/// What a walk meets.
pub enum Step {
    /// A regular file, once for each inode however many names it has. (Again only after as many others with names still to come as are remembered.)
    File(Found),
    /// A directory or name that could not be read; the walk goes on.
    Failed(PathBuf, LowerError),
}

/// Whether a walk goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Continue,
    Stop,
}

/// Finds a path relative to the share's root. Symbolic links and `..` are refused: the path names exactly one thing.
pub fn resolve(lower: &dyn Lower, path: &Path) -> LowerResult<Found> {
    let root = lower.root();
    let mut found = Found { node: root, attr: lower.stat(&root)?, path: PathBuf::new() };
    for component in path.components() {
        let name = match component {
            Component::Normal(name) => name,
            Component::CurDir => continue,
            _ => return Err(LowerError::from_errno("resolve", libc::EINVAL)),
        };
        let (node, attr) = lower.lookup(&found.node, name)?;
        found = Found { node, attr, path: found.path.join(name) };
    }
    Ok(found)
}

/// Why a file that was seen before is not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// It is no more, or has no name any more.
    Gone,
    /// It is there, but nobody knows its name: the kernel forgets, and there is no index or it knows an older one. Or it could not be looked at.
    Unnamed,
}

/// Finds a file again, under `path` if it is there still, else wherever it is.
pub fn seek(lower: &dyn Lower, file: FileId, path: Option<&Path>) -> Result<Found, Missing> {
    if let Some(Ok(found)) = path.map(|path| resolve(lower, path))
        && found.node.id == file
    {
        return Ok(found);
    }
    let (node, attr) = match lower.by_number(file.ino) {
        Ok((node, attr)) if node.id == file && attr.nlink > 0 => (node, attr),
        Err(error) if error.errno() != libc::ESTALE => return Err(Missing::Unnamed),
        _ => return Err(Missing::Gone),
    };
    match lower.path_of(&node) {
        Ok(Some(path)) => Ok(Found { node, attr, path }),
        _ => Err(Missing::Unnamed),
    }
}

/// Runs a walk on a thread of its own. Not on the runtime's: a walk waits for those who take what it finds, and they
/// need threads of the pool. `None`: it panicked, or no thread could be had.
pub async fn on_own_thread<T: Send + 'static>(walk: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, result) = tokio::sync::oneshot::channel();
    // A receiver that is gone does not care for the result.
    let thread = std::thread::Builder::new().name("walk".into()).spawn(move || drop(done.send(walk())));
    thread.ok()?;
    result.await.ok()
}

/// Where a walk is, to go on from there later: a directory, named below the one before (the first is the start), and how far it was read.
/// Directories that are gone by then are gone on after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub name: OsString,
    /// As the filesystem numbers its entries; valid across restarts.
    pub offset: i64,
}

struct Level {
    node: Inode,
    path: PathBuf,
    dir: Arc<dyn LowerDir>,
    /// Where to read on.
    offset: i64,
    /// Entries read and not yet visited.
    ahead: std::vec::IntoIter<DirEntry>,
    /// Behind the last entry visited.
    visited: i64,
}

fn enter(lower: &dyn Lower, node: Inode, path: PathBuf, offset: i64) -> LowerResult<Level> {
    Ok(Level { dir: lower.open_dir(&node)?, node, path, offset, ahead: Vec::new().into_iter(), visited: offset })
}

/// What no walk enters: the directory itself, the one above it, and what the S3 gateway has not finished.
fn is_skipped(dir: &Path, name: &OsStr) -> bool {
    name == "." || name == ".." || (name == STAGING_NAME && dir.as_os_str().is_empty())
}

/// Files with further names to come that are remembered at least; twice as many at most. 25 bytes each, and the free part of the tables: 13 MB in all.
const LINKS_MAX: usize = 200_000;

/// Files with several names of which not all were met, and how many are still to come.
#[derive(Default)]
struct Links {
    young: HashMap<FileId, u32>,
    /// Those before these; the next to be forgotten.
    old: HashMap<FileId, u32>,
}

impl Links {
    /// A name of a file was met; whether it is the first, as far as is remembered.
    fn is_first(&mut self, file: FileId, names: u32) -> bool {
        for known in [&mut self.young, &mut self.old] {
            if let Entry::Occupied(mut to_come) = known.entry(file) {
                *to_come.get_mut() -= 1;
                if *to_come.get() == 0 {
                    to_come.remove();
                }
                return false;
            }
        }
        if self.young.len() >= LINKS_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(file, names - 1);
        true
    }
}

/// A walk that can be left and gone on with.
pub struct Walk<'l> {
    lower: &'l dyn Lower,
    levels: Vec<Level>,
    /// A start that is no directory.
    single: Option<Found>,
    links: Links,
}

impl<'l> Walk<'l> {
    pub fn new(lower: &'l dyn Lower, start: Found) -> LowerResult<Self> {
        Self::from_place(lower, start, &[])
    }

    /// Goes on where [`Walk::place`] was told. A file with several names may be met once more.
    pub fn from_place(lower: &'l dyn Lower, start: Found, places: &[Place]) -> LowerResult<Self> {
        let mut walk = Self { lower, levels: Vec::new(), single: None, links: Links::default() };
        if start.attr.kind != FileKind::Directory {
            walk.single = Some(start).filter(|start| start.attr.kind == FileKind::Regular);
            return Ok(walk);
        }
        let offset = |at: usize| places.get(at).map_or(0, |place| place.offset);
        walk.levels.push(enter(lower, start.node, start.path, offset(0))?);
        for (at, place) in places.iter().enumerate().skip(1) {
            let above = &walk.levels[at - 1];
            let Ok((node, attr)) = lower.lookup(&above.node, &place.name) else { break };
            if attr.kind != FileKind::Directory {
                break;
            }
            let path = above.path.join(&place.name);
            walk.levels.push(enter(lower, node, path, offset(at))?);
        }
        Ok(walk)
    }

    /// Where the walk is: behind the last step.
    pub fn place(&self) -> Vec<Place> {
        let name = |level: &Level| level.path.file_name().unwrap_or_default().to_owned();
        self.levels.iter().map(|level| Place { name: name(level), offset: level.visited }).collect()
    }

    /// The next file, or what could not be read; `None` at the end.
    pub fn step(&mut self) -> Option<Step> {
        if let Some(single) = self.single.take() {
            return Some(Step::File(single));
        }
        loop {
            let level = self.levels.last_mut()?;
            let Some(entry) = level.ahead.next() else {
                match level.dir.read(level.offset) {
                    Ok(entries) if entries.is_empty() => {
                        self.levels.pop();
                    }
                    Ok(entries) => {
                        level.offset = entries.last().map_or(level.offset, |last| last.next_offset);
                        level.ahead = entries.into_iter();
                    }
                    Err(error) => {
                        let failed = Step::Failed(level.path.clone(), error);
                        self.levels.pop();
                        return Some(failed);
                    }
                }
                continue;
            };
            level.visited = entry.next_offset;
            let wanted = !matches!(entry.kind, Some(kind) if kind != FileKind::Regular && kind != FileKind::Directory);
            if !wanted || is_skipped(&level.path, &entry.name) {
                continue;
            }
            let path = level.path.join(&entry.name);
            return Some(match self.lower.lookup(&level.node, &entry.name) {
                // Removed since the directory was read.
                Err(error) if error.errno() == libc::ENOENT => continue,
                Err(error) => Step::Failed(path, error),
                Ok((node, attr)) if attr.kind == FileKind::Directory => {
                    match enter(self.lower, node, path.clone(), 0) {
                        Ok(below) => {
                            self.levels.push(below);
                            continue;
                        }
                        Err(error) => Step::Failed(path, error),
                    }
                }
                Ok((node, attr)) if attr.kind == FileKind::Regular => {
                    if attr.nlink > 1 && !self.links.is_first(node.id, attr.nlink) {
                        continue;
                    }
                    Step::File(Found { node, attr, path })
                }
                Ok(_) => continue,
            });
        }
    }
}

/// Visits every regular file at and below `start`, until `visit` says stop.
pub fn walk(lower: &dyn Lower, start: Found, visit: &mut dyn FnMut(Step) -> Next) {
    let path = start.path.clone();
    match Walk::new(lower, start) {
        Ok(mut walk) => while walk.step().is_some_and(|step| visit(step) == Next::Continue) {},
        Err(error) => {
            visit(Step::Failed(path, error));
        }
    }
}

/// Visits every directory at and below `start`, those above others first; the path of one that cannot be read goes to `failed`.
/// Stops when `visit` says so.
pub fn directories(
    lower: &dyn Lower,
    start: Found,
    visit: &mut dyn FnMut(Found) -> Next,
    failed: &mut dyn FnMut(PathBuf, LowerError),
) {
    let mut levels = Vec::new();
    let mut found = Some(start);
    loop {
        if let Some(dir) = found.take() {
            let entered = enter(lower, dir.node, dir.path.clone(), 0);
            let path = dir.path.clone();
            if visit(dir) == Next::Stop {
                return;
            }
            match entered {
                Ok(level) => levels.push(level),
                Err(error) => failed(path, error),
            }
        }
        let Some(level) = levels.last_mut() else { return };
        let Some(entry) = level.ahead.next() else {
            match level.dir.read(level.offset) {
                Ok(entries) if !entries.is_empty() => {
                    level.offset = entries.last().map_or(level.offset, |last| last.next_offset);
                    level.ahead = entries.into_iter();
                }
                Ok(_) => drop(levels.pop()),
                Err(error) => {
                    failed(level.path.clone(), error);
                    levels.pop();
                }
            }
            continue;
        };
        let directory = matches!(entry.kind, None | Some(FileKind::Directory));
        if !directory || is_skipped(&level.path, &entry.name) {
            continue;
        }
        let path = level.path.join(&entry.name);
        match lower.lookup(&level.node, &entry.name) {
            Ok((node, attr)) if attr.kind == FileKind::Directory => found = Some(Found { node, attr, path }),
            Ok(_) => {}
            Err(error) if error.errno() == libc::ENOENT => {}
            Err(error) => failed(path, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(ino: u64) -> FileId {
        FileId { ino, birth: 1 }
    }

    #[test]
    fn a_file_is_forgotten_when_all_its_names_were_met() {
        let mut links = Links::default();
        for n in 0..10_000 {
            let firsts = [(); 3].map(|()| links.is_first(file(n), 3));
            assert_eq!(firsts, [true, false, false]);
        }
        assert_eq!((links.young.len(), links.old.len()), (0, 0));
        // One whose other names lie elsewhere stays, and is met once.
        assert_eq!([(); 3].map(|()| links.is_first(file(1), 9)), [true, false, false]);
        assert_eq!(links.young.len(), 1);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut links = Links::default();
        for n in 0..3 * LINKS_MAX as u64 {
            assert!(links.is_first(file(n), 2));
            assert!(links.young.len() <= LINKS_MAX && links.old.len() <= LINKS_MAX);
        }
        let bytes = [&links.young, &links.old].map(|known| known.capacity() * 8 / 7 * 25);
        assert!(bytes.iter().sum::<usize>() < 14_000_000, "{bytes:?}");
        // The last ones are known, the first ones are not.
        assert!(
            !links.is_first(file(3 * LINKS_MAX as u64 - 1), 2) && !links.is_first(file(2 * LINKS_MAX as u64 - 1), 2)
        );
        assert!(links.is_first(file(0), 2));
    }
}
