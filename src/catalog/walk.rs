//! Walks over the share below the mount: by inode, never following a symbolic link, never leaving the filesystem.
//!
//! Memory goes by the depth of the tree and the longest directory buffer, not by the number of files.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::ports::{Attr, FileKind, Lower, LowerDir, LowerError, LowerResult};
use crate::types::{FileId, Inode};

/// Something found: an inode and its path relative to the share.
#[derive(Clone, Debug)]
pub struct Found {
    pub node: Inode,
    pub attr: Attr,
    pub path: PathBuf,
}

/// What a walk meets.
pub enum Step {
    /// A regular file, once for each inode however many names it has.
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

struct Level {
    node: Inode,
    path: PathBuf,
    dir: Arc<dyn LowerDir>,
    offset: i64,
    /// Entries read and not yet visited.
    ahead: std::vec::IntoIter<crate::ports::DirEntry>,
}

fn enter(lower: &dyn Lower, node: Inode, path: PathBuf) -> LowerResult<Level> {
    Ok(Level { dir: lower.open_dir(&node)?, node, path, offset: 0, ahead: Vec::new().into_iter() })
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

/// Visits every regular file at and below `start`, until `visit` says stop.
pub fn walk(lower: &dyn Lower, start: Found, visit: &mut dyn FnMut(Step) -> Next) {
    let mut seen_links = HashSet::<FileId>::new();
    if start.attr.kind != FileKind::Directory {
        if start.attr.kind == FileKind::Regular {
            visit(Step::File(start));
        }
        return;
    }
    let mut levels = match enter(lower, start.node, start.path.clone()) {
        Ok(level) => vec![level],
        Err(error) => {
            visit(Step::Failed(start.path, error));
            return;
        }
    };
    while let Some(level) = levels.last_mut() {
        let Some(entry) = level.ahead.next() else {
            match level.dir.read(level.offset) {
                Ok(entries) if entries.is_empty() => {
                    levels.pop();
                }
                Ok(entries) => {
                    level.offset = entries.last().map_or(level.offset, |last| last.next_offset);
                    level.ahead = entries.into_iter();
                }
                Err(error) => {
                    let failed = Step::Failed(level.path.clone(), error);
                    levels.pop();
                    if visit(failed) == Next::Stop {
                        return;
                    }
                }
            }
            continue;
        };
        let wanted = !matches!(entry.kind, Some(kind) if kind != FileKind::Regular && kind != FileKind::Directory);
        if !wanted || entry.name == OsStr::new(".") || entry.name == OsStr::new("..") {
            continue;
        }
        let path = level.path.join(&entry.name);
        let step = match lower.lookup(&level.node, &entry.name) {
            // Removed since the directory was read.
            Err(error) if error.errno() == libc::ENOENT => continue,
            Err(error) => Step::Failed(path, error),
            Ok((node, attr)) if attr.kind == FileKind::Directory => match enter(lower, node, path.clone()) {
                Ok(below) => {
                    levels.push(below);
                    continue;
                }
                Err(error) => Step::Failed(path, error),
            },
            Ok((node, attr)) if attr.kind == FileKind::Regular => {
                if attr.nlink > 1 && !seen_links.insert(node.id) {
                    continue;
                }
                Step::File(Found { node, attr, path })
            }
            Ok(_) => continue,
        };
        if visit(step) == Next::Stop {
            return;
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
            let entered = enter(lower, dir.node, dir.path.clone());
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
        if !directory || entry.name == OsStr::new(".") || entry.name == OsStr::new("..") {
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
