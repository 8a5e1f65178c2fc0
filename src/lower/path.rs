//! Where an inode is just now, for people and for object names.
//!
//! Invariant: a path is only told after it was opened and led to the very inode it was asked for.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2, readlink};
use rustix::io::Errno;

use super::Step;
use super::attr::stat_fd;
use super::fdcache::Node;
use super::handle::{FdPath, handle_of, open_handle};
use super::share::Share;
use crate::ports::{FileKind, Lower, LowerResult};

/// Looks again this often when a rename came between.
const ATTEMPTS: usize = 3;

/// The path of `node` below the root of `share`; `None` if it has none, or nobody knows it: to the kernel, an inode that was
/// found by its handle has no name until somebody looks it up again. Of a directory it always knows.
pub(super) fn path_of(share: &Share, node: &Node) -> LowerResult<Option<PathBuf>> {
    if node.inode.id == share.root_node().inode.id {
        return Ok(Some(PathBuf::new()));
    }
    if let Some(path) = path_by(share, node, node.fd())? {
        return Ok(Some(path));
    }
    // Somebody may have come by its name since this descriptor was made from a handle: the kernel gives the newest of its names.
    match open_handle(share.mount_fd(), &node.inode.handle, OFlags::PATH) {
        Ok(fd) => match path_by(share, node, fd.as_fd())? {
            Some(path) => Ok(Some(path)),
            None => path_by_name(share, node),
        },
        Err(error) if error.errno() == libc::ESTALE => Ok(None),
        Err(error) => Err(error),
    }
}

/// By the name under which it was seen.
fn path_by_name(share: &Share, node: &Node) -> LowerResult<Option<PathBuf>> {
    let Some((dir, name)) = share.names().and_then(|names| names.name_of(node.inode.id)) else { return Ok(None) };
    let dir = match share.by_number(dir) {
        Ok((dir, attr)) if attr.kind == FileKind::Directory => dir,
        _ => return Ok(None),
    };
    // Never by its own name there: rows of two moments can go round in a ring.
    let path = if dir.id == share.root_node().inode.id {
        Some(PathBuf::new())
    } else {
        let dir = share.node(&dir)?;
        path_by(share, &dir, dir.fd())?
    };
    let Some(path) = path.map(|path| path.join(name)) else { return Ok(None) };
    Ok(leads_to(share, &path, node)?.then_some(path))
}

fn path_by(share: &Share, node: &Node, fd: BorrowedFd<'_>) -> LowerResult<Option<PathBuf>> {
    for _ in 0..ATTEMPTS {
        let Some(path) = told_by_kernel(share, fd)? else { return Ok(None) };
        if leads_to(share, &path, node)? {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

fn told_by_kernel(share: &Share, fd: BorrowedFd<'_>) -> LowerResult<Option<PathBuf>> {
    let link = |fd: BorrowedFd<'_>| match readlink(FdPath::new(fd).as_c_str(), Vec::new()) {
        Ok(link) => Ok(Some(link.into_bytes())),
        // Deeper than one page of path.
        Err(Errno::NAMETOOLONG) => Ok(None),
        Err(errno) => Err(errno).step("readlink(/proc/self/fd)"),
    };
    // A private mount's own root is "/"; otherwise the share's place in the namespace comes off.
    let (Some(root), Some(full)) = (link(share.root_node().fd())?, link(fd)?) else { return Ok(None) };
    let below = Path::new(OsStr::from_bytes(&full)).strip_prefix(OsStr::from_bytes(&root)).ok();
    Ok(below.filter(|path| !path.as_os_str().is_empty()).map(Path::to_path_buf))
}

fn leads_to(share: &Share, path: &Path, node: &Node) -> LowerResult<bool> {
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat2(share.root_node().fd(), path, flags, Mode::empty(), resolve) {
        Ok(fd) => Ok(stat_fd(&fd)?.id == node.inode.id && handle_of(&fd)? == node.inode.handle),
        Err(_) => Ok(false),
    }
}
