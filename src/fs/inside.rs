//! Calls for who is inside this process rather than behind the kernel: the S3 gateway. Files are named by inode, and nothing is remembered
//! for anybody.

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;

use super::error::FsResult;
use super::namespace::{Noted, Removal};
use super::open::{Backing, Register};
use super::wait::Try;
use super::{Asked, Fs};
use crate::engine::Patience;
use crate::ports::{Attr, OpenFlags};
use crate::record::Record;
use crate::types::Inode;

/// There is no kernel to hand a file to.
struct NoKernel;

impl Register for NoKernel {
    fn has_kernel(&self) -> bool {
        false
    }

    fn register(&self, _: BorrowedFd<'_>) -> std::io::Result<Backing> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

impl Fs {
    /// The attributes as users see them.
    pub fn attr_of(&self, node: &Inode) -> FsResult<Attr> {
        Ok(self.shown(node, self.lower.stat(node)?))
    }

    pub fn is_read_only(&self) -> bool {
        self.options.read_only
    }

    /// Opens a file for reading; the handle is for [`Fs::try_read`] and [`Fs::release`]. While it is open, users of the mount who open the
    /// file too are served by the daemon, unless somebody had it open before.
    pub fn try_open_inside(&self, node: &Inode, patience: Patience) -> Try<u64> {
        let flags = OpenFlags { read: true, ..Default::default() };
        let mut file = Asked { id: node.id.ino, node: Some(*node), who: None };
        self.try_open(&mut file, flags, patience, &NoKernel).map(|opened| opened.fh)
    }

    /// Takes the name `name` of `dir` away by `remove`, which may put something else there, as [`Fs::try_unlink`] does.
    pub fn try_remove_inside(
        &self,
        dir: &Inode,
        name: &OsStr,
        noted: &Noted,
        remove: &dyn Fn() -> FsResult<()>,
    ) -> FsResult<Option<Removal>> {
        self.check_writable()?;
        self.try_remove(dir, name, noted, remove)
    }

    /// What is recorded of a file, as its users act on it. What is damaged tells nothing.
    pub fn record_of(&self, node: &Inode) -> FsResult<Record> {
        match self.engine.cells.get(node) {
            Err(error) if error.is_damage() => Ok(Record::unclaimed()),
            found => Ok(found?.lock().record.clone()),
        }
    }
}
