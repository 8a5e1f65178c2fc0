//! Directories read as a whole, for a scan of millions of files: names first, then each inode in the order of its number, by the
//! directory's descriptor and nothing opened.
//!
//! Invariant: what is seen is a hint of a moment, by name. Whoever acts on a file finds it again by its inode.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Mode, OFlags, openat};

use super::Step;
use super::attr::{stat_fd, stat_name_c};
use super::dir::{entries, parse};
use super::handle::{handle_of, open_handle, xattr_at};
use super::project::project_of;
use super::share::Share;
use crate::ports::{Attr, FileKind, Lower, LowerError, LowerResult};
use crate::types::{FileId, Inode};

/// Bytes asked of the kernel at a time.
const BUFFER_BYTES: usize = 128 * 1024;
/// A record has no more (`record::Record::decode` refuses longer ones).
const RECORD_BYTES_MAX: usize = 4096;

/// One inode as a directory names it.
#[derive(Clone, Copy, Debug)]
pub struct Surveyed<'a> {
    pub name: &'a OsStr,
    pub id: FileId,
    pub attr: Attr,
}

struct Name {
    ino: u64,
    start: u32,
    len: u16,
}

/// A directory that is surveyed, and the buffers for it, which serve for the next one too. Memory goes by the largest directory: its
/// names and 16 bytes each.
pub struct Survey {
    buffer: Box<[u8]>,
    /// Names, each ended by NUL.
    text: Vec<u8>,
    names: Vec<Name>,
    dir: Option<OwnedFd>,
    dev: (u32, u32),
    record: std::ffi::CString,
}

impl Survey {
    pub fn new(share: &Share) -> Self {
        let record = std::ffi::CString::new(share.record_xattr()).unwrap_or_default();
        let buffer = vec![0; BUFFER_BYTES].into();
        Self { buffer, text: Vec::new(), names: Vec::new(), dir: None, dev: share.dev(), record }
    }

    /// Reads the names of a directory; its attributes. `ESTALE`, `ENOTDIR`: it is gone.
    pub fn enter(&mut self, share: &Share, dir: &Inode) -> LowerResult<Attr> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOATIME;
        let fd = open_handle(share.mount_fd(), &dir.handle, flags)?;
        let stat = stat_fd(&fd)?;
        if stat.id != dir.id || stat.dev != self.dev {
            return Err(LowerError::from_errno("open_by_handle_at", libc::ESTALE));
        }
        self.text.clear();
        self.names.clear();
        loop {
            let got = entries(fd.as_fd(), &mut self.buffer)?;
            if got == 0 {
                break;
            }
            let mut at = 0;
            while let Some((entry, len)) = parse(&self.buffer[at..got]) {
                at += len;
                let name = entry.name.as_bytes();
                if name == b"." || name == b".." {
                    continue;
                }
                let Ok(start) = u32::try_from(self.text.len()) else {
                    return Err(LowerError::from_errno("getdents64", libc::EOVERFLOW));
                };
                self.names.push(Name { ino: entry.ino, start, len: name.len() as u16 });
                self.text.extend_from_slice(name);
                self.text.push(0);
            }
        }
        self.names.sort_unstable_by_key(|name| name.ino);
        self.dir = Some(fd);
        Ok(stat.attr)
    }

    /// Entries of the directory.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The name of entry `at`.
    pub fn name(&self, at: usize) -> &OsStr {
        OsStr::from_bytes(self.name_c(at).to_bytes())
    }

    fn name_c(&self, at: usize) -> &CStr {
        let Name { start, len, .. } = self.names[at];
        let start = start as usize;
        CStr::from_bytes_with_nul(&self.text[start..=start + usize::from(len)]).unwrap_or(c"")
    }

    fn dir(&self) -> LowerResult<&OwnedFd> {
        self.dir.as_ref().ok_or_else(|| LowerError::from_errno("openat", libc::EBADF))
    }

    /// Looks at entry `at`. `None`: it is gone, or of another filesystem.
    pub fn look(&self, at: usize) -> LowerResult<Option<Surveyed<'_>>> {
        let name = self.name_c(at);
        match stat_name_c(self.dir()?, name) {
            Ok(stat) if stat.dev != self.dev => Ok(None),
            Ok(stat) => Ok(Some(Surveyed { name: OsStr::from_bytes(name.to_bytes()), id: stat.id, attr: stat.attr })),
            Err(error) if error.errno() == libc::ENOENT => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The stored record of entry `at`.
    pub fn record(&self, at: usize) -> LowerResult<Option<Vec<u8>>> {
        let (dir, name) = (self.dir()?, self.name_c(at));
        let mut value = [0; RECORD_BYTES_MAX];
        let got = match xattr_at(dir.as_fd(), name, &self.record, &mut value) {
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
                // Kernels before 6.13: by the way over /proc, which does not follow the last name either.
                let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
                path.extend_from_slice(name.to_bytes());
                rustix::fs::lgetxattr(&*path, &*self.record, &mut value[..]).map_err(std::io::Error::from)
            }
            got => got,
        };
        match got {
            Ok(len) => Ok(Some(value[..len].to_vec())),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENODATA | libc::ENOENT)) => Ok(None),
            Err(error) => Err(error).step("getxattrat"),
        }
    }

    /// The directory that entry `at` is, to be entered later; `None`: it is another one by now.
    pub fn below(&self, at: usize) -> LowerResult<Option<Inode>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = match openat(self.dir()?, self.name_c(at), flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => return Ok(None),
            opened => opened.step("openat")?,
        };
        let stat = stat_fd(&fd)?;
        if stat.dev != self.dev || stat.attr.kind != FileKind::Directory {
            return Ok(None);
        }
        Ok(Some(Inode { id: stat.id, handle: handle_of(&fd)? }))
    }

    /// The quota project of the directory, which what is made in it inherits (`PROJINHERIT`); 0 where there are none.
    pub fn project(&self) -> u32 {
        self.dir.as_ref().and_then(|dir| project_of(dir.as_fd()).ok()).unwrap_or(0)
    }
}
