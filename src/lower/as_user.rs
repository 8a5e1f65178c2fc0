//! What users do who come in by another way than the kernel: nobody has checked yet what they may.
//!
//! Invariant: whatever looks at or changes a name does so in one system call with the user's own ids, groups and capabilities, so the kernel
//! below decides (modes, ACLs, sticky directories, immutable files), and nothing here repeats its rules. No call follows a symbolic
//! link or leaves the share.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid, accessat, fchown, linkat, mkdirat, openat, openat2,
    renameat_with, unlinkat,
};

pub use rustix::fs::Access;

use super::Step;
use super::creds::ActingAs;
use super::dir::OpenDir;
use super::fdcache::Node;
use super::file::OpenFile;
use super::handle::FdPath;
use super::namespace::{check_name, rename_flags};
use super::share::Share;
use crate::ports::{Attr, FileKind, Lower, LowerDir, LowerError, LowerFile, LowerResult, RenameMode, User};
use crate::types::Inode;

/// A directory that a user has come to, kept open.
#[derive(Clone)]
pub struct Dir(Arc<Node>);

impl Dir {
    pub fn node(&self) -> Inode {
        self.0.inode
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }
}

/// What a user sees under a name.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub node: Inode,
    pub attr: Attr,
    /// Whether they may read it.
    pub readable: bool,
}

impl Share {
    /// The directory `path` (relative, without `..`; empty for the root) as `user` comes to it.
    pub fn walk_as(&self, user: &User, path: &Path) -> LowerResult<Dir> {
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let fd = {
            let _as_user = ActingAs::user(user)?;
            openat2(self.root_node().fd(), path, flags, Mode::empty(), resolve).step("openat2")?
        };
        Ok(Dir(self.adopt(fd)?.0))
    }

    /// A directory known by value, as the daemon.
    pub fn dir(&self, node: &Inode) -> LowerResult<Dir> {
        Ok(Dir(self.node(node)?))
    }

    /// What `user` sees under `name`, whatever it is.
    pub fn look_as(&self, user: &User, dir: &Dir, name: &OsStr) -> LowerResult<Seen> {
        check_name(name)?;
        let _as_user = ActingAs::user(user)?;
        self.look(dir, name)
    }

    /// What `user` sees under each of `names`; `None` for what they may not look at, or is gone.
    pub fn look_each_as(&self, user: &User, dir: &Dir, names: &[OsString]) -> LowerResult<Vec<Option<Seen>>> {
        let _as_user = ActingAs::user(user)?;
        Ok(names.iter().map(|name| self.look(dir, name).ok()).collect())
    }

    fn look(&self, dir: &Dir, name: &OsStr) -> LowerResult<Seen> {
        let (node, attr) = self.find(dir.fd(), name)?;
        let readable = may(node.fd(), Access::READ_OK).is_ok();
        Ok(Seen { node: node.inode, attr, readable })
    }

    /// Whether `user` may, as the kernel has it: `EACCES` if not. Not for symbolic links.
    pub fn check_as(&self, user: &User, node: &Inode, access: Access) -> LowerResult<()> {
        let node = self.node(node)?;
        let _as_user = ActingAs::user(user)?;
        may(node.fd(), access)
    }

    /// A directory's names, for whoever may read and search it.
    pub fn list_as(&self, user: &User, dir: &Dir) -> LowerResult<Arc<dyn LowerDir>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = {
            let _as_user = ActingAs::user(user)?;
            openat(dir.fd(), c".", flags, Mode::empty()).step("open")?
        };
        Ok(Arc::new(OpenDir::new(fd)))
    }

    /// A new file without a name yet, with the owner, group, ACL and project that it gets in `dir`. Gone with its last descriptor unless
    /// it is given a name.
    pub fn create_unnamed_as(&self, user: &User, dir: &Dir, mode: u32) -> LowerResult<(Inode, Arc<dyn LowerFile>)> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let fd = {
            let _as_user = ActingAs::user(user)?;
            openat(dir.fd(), c".", flags, Mode::from_raw_mode(mode & 0o777)).step("open(O_TMPFILE)")?
        };
        let (node, _) = self.describe(fd.as_fd())?;
        Ok((node, Arc::new(OpenFile::new(fd, false))))
    }

    /// Gives a file its (first) name.
    pub fn link_as(&self, user: &User, file: &dyn LowerFile, dir: &Dir, name: &OsStr) -> LowerResult<()> {
        check_name(name)?;
        let fd = file.as_fd().ok_or_else(|| LowerError::from_errno("linkat", libc::EXDEV))?;
        let path = FdPath::new(fd);
        let _as_user = ActingAs::user(user)?;
        linkat(CWD, path.as_c_str(), dir.fd(), name, AtFlags::SYMLINK_FOLLOW).step("linkat")
    }

    /// Gives a file to another owner and group, whose quotas hold.
    pub fn give(&self, file: &dyn LowerFile, uid: u32, gid: u32) -> LowerResult<()> {
        let fd = file.as_fd().ok_or_else(|| LowerError::from_errno("fchown", libc::EBADF))?;
        fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).step("fchown")
    }

    /// Makes a directory.
    pub fn make_dir_as(&self, user: &User, dir: &Dir, name: &OsStr, mode: u32) -> LowerResult<Dir> {
        check_name(name)?;
        let made = {
            let _as_user = ActingAs::user(user)?;
            mkdirat(dir.fd(), name, Mode::from_raw_mode(mode & 0o777)).step("mkdirat")?;
            self.find(dir.fd(), name)
        };
        let (node, attr) = made?;
        if attr.kind != FileKind::Directory {
            // Somebody was quicker with another thing.
            return Err(LowerError::from_errno("mkdirat", libc::ENOTDIR));
        }
        Ok(Dir(node))
    }

    pub fn unlink_as(&self, user: &User, dir: &Dir, name: &OsStr) -> LowerResult<()> {
        check_name(name)?;
        let removed = self.identity(dir.fd(), name);
        {
            let _as_user = ActingAs::user(user)?;
            unlinkat(dir.fd(), name, AtFlags::empty()).step("unlinkat")?;
        }
        self.release_unlinked(removed);
        Ok(())
    }

    pub fn remove_dir_as(&self, user: &User, dir: &Dir, name: &OsStr) -> LowerResult<()> {
        check_name(name)?;
        let _as_user = ActingAs::user(user)?;
        unlinkat(dir.fd(), name, AtFlags::REMOVEDIR).step("unlinkat")
    }

    pub fn rename_as(
        &self,
        user: &User,
        (dir, name): (&Dir, &OsStr),
        (to_dir, to): (&Dir, &OsStr),
        mode: RenameMode,
    ) -> LowerResult<()> {
        check_name(name)?;
        check_name(to)?;
        let (flags, replaces) = rename_flags(mode);
        let replaced = if replaces { self.identity(to_dir.fd(), to) } else { None };
        {
            let _as_user = ActingAs::user(user)?;
            renameat_with(dir.fd(), name, to_dir.fd(), to, flags).step("renameat2")?;
        }
        self.release_unlinked(replaced);
        Ok(())
    }

    /// The attribute's name on this filesystem, for what the gateway keeps with a file: hidden by the mount like records.
    pub fn hidden_xattr(&self, name: &str) -> OsString {
        let space = if self.features().trusted_xattrs { "trusted" } else { "user" };
        format!("{space}.tierfs.{name}").into()
    }
}

/// Asks the kernel, with the rights that this thread has on files now.
fn may(fd: BorrowedFd<'_>, access: Access) -> LowerResult<()> {
    accessat(CWD, FdPath::new(fd).as_c_str(), access, AtFlags::EACCESS).step("faccessat2")
}
