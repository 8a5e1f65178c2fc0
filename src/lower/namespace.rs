//! Names: making, linking, renaming, removing.
//!
//! Invariant: what is made belongs to the requester from its first moment; there is no chown after the fact, so quotas,
//! setgid directories and default ACLs act as they do without tierfs.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, linkat, mkdirat, mknodat, open, openat, renameat_with, symlinkat,
    unlinkat,
};

use super::Step;
use super::attr::stat_fd;
use super::creds::{ActingAs, As};
use super::fdcache::Node;
use super::handle::FdPath;
use super::share::{Share, content_flags};
use crate::ports::{Attr, Caller, FileKind, LowerError, LowerResult, NewNode, OpenFlags, RenameMode};
use crate::types::Inode;

/// How often a create is tried again when the name comes and goes meanwhile.
const CREATE_ATTEMPTS: usize = 16;

/// A name is one step: nothing that a call could walk along.
pub(super) fn check_name(name: &OsStr) -> LowerResult<()> {
    if name.as_bytes().contains(&b'/') { Err(LowerError::from_errno("name", libc::EINVAL)) } else { Ok(()) }
}

/// Groups and `CAP_FSETID` of the requester matter to a new file that asks for setgid and group-execute: in a setgid
/// directory whose group the requester is not in, the kernel takes the bit away.
fn maker(mode: u32) -> As {
    let setgid_program = libc::S_ISGID | libc::S_IXGRP;
    if mode & setgid_program == setgid_program { As::MakerWithGroups } else { As::Maker }
}

pub(super) fn make(
    share: &Share,
    dir: &Inode,
    name: &OsStr,
    what: NewNode<'_>,
    mode: u32,
    who: &Caller,
) -> LowerResult<(Inode, Attr)> {
    check_name(name)?;
    let dir = share.node(dir)?;
    let bits = Mode::from_raw_mode(mode & 0o7777);
    {
        let _as_requester = ActingAs::new(who, maker(mode))?;
        match what {
            NewNode::Directory => mkdirat(dir.fd(), name, bits).step("mkdirat")?,
            NewNode::Symlink(target) => symlinkat(target, dir.fd(), name).step("symlinkat")?,
            NewNode::Special(kind, device) => {
                mknodat(dir.fd(), name, special_type(kind)?, bits, device).step("mknodat")?
            }
        }
    }
    let (node, attr) = share.find(dir.fd(), name)?;
    Ok((node.inode, attr))
}

fn special_type(kind: FileKind) -> LowerResult<FileType> {
    Ok(match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Fifo => FileType::Fifo,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharacterDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Directory | FileKind::Symlink => return Err(LowerError::from_errno("mknodat", libc::EINVAL)),
    })
}

pub(super) fn create(
    share: &Share,
    dir: &Inode,
    name: &OsStr,
    mode: u32,
    flags: OpenFlags,
    who: &Caller,
) -> LowerResult<(Inode, Attr, OwnedFd)> {
    check_name(name)?;
    let dir = share.node(dir)?;
    let new = content_flags(OpenFlags { truncate: false, ..flags }) | OFlags::CREATE | OFlags::EXCL;
    for _ in 0..CREATE_ATTEMPTS {
        // Always exclusive first: so nothing that is there already, a fifo say, is ever opened by its name.
        let created = {
            let _as_requester = ActingAs::new(who, maker(mode))?;
            openat(dir.fd(), name, new, Mode::from_raw_mode(mode & 0o7777)).step("openat(O_CREAT)")
        };
        match created {
            Ok(fd) => {
                let (inode, attr) = share.describe(fd.as_fd())?;
                return Ok((inode, attr, fd));
            }
            Err(error) if error.errno() == libc::EEXIST && !flags.exclusive => {}
            Err(error) => return Err(error),
        }
        match share.find(dir.fd(), name) {
            Ok((node, _)) => {
                let fd = open_as(&node, flags, who)?;
                // Opening may have truncated it.
                return Ok((node.inode, stat_fd(&fd)?.attr, fd));
            }
            Err(error) if error.errno() == libc::ENOENT => {}
            Err(error) => return Err(error),
        }
    }
    Err(LowerError::from_errno("openat(O_CREAT)", libc::EBUSY))
}

/// Opens a file that was expected not to exist. Nobody above has checked whether the requester may, so the kernel does
/// it here, with all of the requester's rights and none of the daemon's.
fn open_as(node: &Node, flags: OpenFlags, who: &Caller) -> LowerResult<OwnedFd> {
    match node.kind {
        FileKind::Regular => {}
        FileKind::Directory => return Err(LowerError::from_errno("open", libc::EISDIR)),
        FileKind::Symlink => return Err(LowerError::from_errno("open", libc::ELOOP)),
        _ => return Err(LowerError::from_errno("open", libc::ENXIO)),
    }
    let path = FdPath::new(node.fd());
    // The last step of this path is a link by nature.
    let bits = content_flags(flags) - OFlags::NOFOLLOW;
    let _as_requester = ActingAs::new(who, As::Themselves)?;
    open(path.as_c_str(), bits, Mode::empty()).step("open")
}

pub(super) fn link(share: &Share, node: &Inode, dir: &Inode, name: &OsStr) -> LowerResult<Attr> {
    check_name(name)?;
    let (node, dir) = (share.node(node)?, share.node(dir)?);
    linkat(node.fd(), c"", dir.fd(), name, AtFlags::EMPTY_PATH).step("linkat")?;
    Ok(stat_fd(node.fd())?.attr)
}

/// The kernel's word for a mode, and whether it takes the place of what is there.
pub(super) fn rename_flags(mode: RenameMode) -> (RenameFlags, bool) {
    match mode {
        RenameMode::Replace => (RenameFlags::empty(), true),
        RenameMode::NoReplace => (RenameFlags::NOREPLACE, false),
        RenameMode::Exchange => (RenameFlags::EXCHANGE, false),
        RenameMode::Whiteout => (RenameFlags::WHITEOUT, true),
    }
}

pub(super) fn rename(
    share: &Share,
    dir: &Inode,
    name: &OsStr,
    to_dir: &Inode,
    to: &OsStr,
    mode: RenameMode,
) -> LowerResult<()> {
    check_name(name)?;
    check_name(to)?;
    let (dir, to_dir) = (share.node(dir)?, share.node(to_dir)?);
    let (flags, replaces) = rename_flags(mode);
    let replaced = if replaces { share.identity(to_dir.fd(), to) } else { None };
    renameat_with(dir.fd(), name, to_dir.fd(), to, flags).step("renameat2")?;
    share.release_unlinked(replaced);
    Ok(())
}

pub(super) fn unlink(share: &Share, dir: &Inode, name: &OsStr) -> LowerResult<()> {
    check_name(name)?;
    let dir = share.node(dir)?;
    let removed = share.identity(dir.fd(), name);
    unlinkat(dir.fd(), name, AtFlags::empty()).step("unlinkat")?;
    share.release_unlinked(removed);
    Ok(())
}

pub(super) fn remove_dir(share: &Share, dir: &Inode, name: &OsStr) -> LowerResult<()> {
    check_name(name)?;
    unlinkat(share.node(dir)?.fd(), name, AtFlags::REMOVEDIR).step("unlinkat")
}
