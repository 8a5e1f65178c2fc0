//! Making what a tree tells: local work only.
//!
//! Invariant: a regular file has its name only when it is complete, its record included; what was interrupted before is made anew, and
//! what is there is left as it is.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::engine::set_policy_of_tree;
use crate::ports::{
    Attr, Caller, FileKind, Lower, LowerError, LowerResult, NewNode, OpenFlags, RenameMode, SetAttr, SetTime, if_set,
};
use crate::record::{Claim, Flags, ObjectRef, Record};
use crate::tree::{Attributes, Entry, Kind};
use crate::types::{FileId, Inode, Timestamp};

/// Names of files that are not complete yet.
const ASIDE: &str = ".tierfs-rebuild-";
/// Which inode of the former share one with several names was: a later run finds it by this. Hidden by the mount.
pub(super) const ORIGIN_XATTR: &str = "trusted.tierfs.origin";
const OURSELVES: Caller = Caller { uid: 0, gid: 0, pid: 0, umask: 0 };

/// Whether this is the name of a file that is not complete.
pub(super) fn is_aside(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_bytes().starts_with(ASIDE.as_bytes()))
}

/// What became of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Made {
    New,
    Linked,
    /// It was there.
    Unchanged,
}

/// The content of a file to be made.
pub(super) enum Content<'a> {
    Empty,
    Object(&'a ObjectRef, Flags),
}

pub(super) struct Maker {
    lower: Arc<dyn Lower>,
    aside: AtomicU64,
    /// Files with several names, by the inode they were.
    linked: Mutex<HashMap<FileId, Inode>>,
}

impl Maker {
    pub(super) fn new(lower: Arc<dyn Lower>) -> Self {
        Self { lower, aside: AtomicU64::new(0), linked: Mutex::default() }
    }

    /// Remembers what an earlier run made of a file with several names.
    pub(super) fn recall_origin(&self, node: &Inode) -> LowerResult<()> {
        let stored = if_set(self.lower.xattr(node, OsStr::new(ORIGIN_XATTR)))?;
        let parsed = stored.as_deref().and_then(|text| {
            let (ino, birth) = std::str::from_utf8(text).ok()?.split_once('-')?;
            let hex = |text| u64::from_str_radix(text, 16).ok();
            Some(FileId { ino: hex(ino)?, birth: hex(birth)? })
        });
        if let Some(origin) = parsed {
            self.linked.lock().insert(origin, *node);
        }
        Ok(())
    }

    fn there(&self, dir: &Inode, name: &OsStr) -> LowerResult<Option<(Inode, Attr)>> {
        match self.lower.lookup(dir, name) {
            Err(error) if error.errno() == libc::ENOENT => Ok(None),
            found => found.map(Some),
        }
    }

    /// Takes away what an interrupted run left in a directory.
    pub(super) fn tidy(&self, dir: &Inode) -> LowerResult<()> {
        let mut left = Vec::new();
        let listing = self.lower.open_dir(dir)?;
        listing.each(0, &mut |entry| {
            if entry.name.as_bytes().starts_with(ASIDE.as_bytes()) {
                left.push(entry.name.to_owned());
            }
            false
        })?;
        left.into_iter().try_for_each(|name| self.lower.unlink(dir, &name))
    }

    /// A directory, for root alone until [`Maker::finish_directory`].
    pub(super) fn directory(&self, dir: &Inode, name: &OsStr) -> LowerResult<(Inode, Made)> {
        match self.there(dir, name)? {
            Some((node, attr)) if attr.kind == FileKind::Directory => Ok((node, Made::Unchanged)),
            Some(_) => Err(LowerError::from_errno("mkdir: something else has this name", libc::EEXIST)),
            None => Ok((self.lower.make(dir, name, NewNode::Directory, 0o700, &OURSELVES)?.0, Made::New)),
        }
    }

    /// Gives a directory what is its own; after all in it is made, which moves its times, and would inherit its ACL.
    pub(super) fn finish_directory(&self, node: &Inode, attributes: &Attributes) -> LowerResult<()> {
        self.dress(node, attributes, None)?;
        self.set_times(node, attributes.atime, attributes.mtime)
    }

    fn dress(&self, node: &Inode, attributes: &Attributes, size: Option<u64>) -> LowerResult<()> {
        let Attributes { mode, uid, gid, .. } = *attributes;
        let set = SetAttr { size, uid: Some(uid), gid: Some(gid), mode: Some(mode), ..SetAttr::default() };
        self.lower.set_attr(node, &set)?;
        for (name, value) in &attributes.xattrs {
            if !set_policy_of_tree(&*self.lower, node, name, value)? {
                self.lower.set_xattr(node, OsStr::from_bytes(name), value, 0)?;
            }
        }
        Ok(())
    }

    fn set_times(&self, node: &Inode, atime: Timestamp, mtime: Timestamp) -> LowerResult<()> {
        let times = SetAttr { atime: Some(SetTime::At(atime)), mtime: Some(SetTime::At(mtime)), ..SetAttr::default() };
        self.lower.set_attr(node, &times).map(drop)
    }

    /// A regular file, under its name once it is complete.
    pub(super) fn file(&self, dir: &Inode, entry: &Entry, content: Content<'_>) -> LowerResult<Made> {
        let name = OsStr::from_bytes(&entry.name);
        let mut linked = (entry.links > 1).then(|| self.linked.lock());
        if let Some((node, attr)) = self.there(dir, name)? {
            let ours = attr.kind == FileKind::Regular && (attr.size == 0 || self.lower.load_record(&node)?.is_some());
            if !ours {
                return Err(LowerError::from_errno("a file without a record has this name", libc::EEXIST));
            }
            if let Some(linked) = &mut linked {
                linked.insert(entry.file, node);
            }
            return Ok(Made::Unchanged);
        }
        if let Some(node) = linked.as_ref().and_then(|linked| linked.get(&entry.file)) {
            self.lower.link(node, dir, name)?;
            return Ok(Made::Linked);
        }
        let aside = OsString::from(format!("{ASIDE}{}", self.aside.fetch_add(1, Ordering::Relaxed)));
        let flags = OpenFlags { write: true, exclusive: true, ..OpenFlags::default() };
        let (node, ..) = self.lower.create(dir, &aside, 0, flags, &OURSELVES)?;
        let made = self.fill_in(&node, entry, content, linked.is_some());
        let made = made.and_then(|()| self.lower.rename(dir, &aside, dir, name, RenameMode::NoReplace));
        if let Err(error) = made {
            // The next run takes it away if this does not.
            let _ = self.lower.unlink(dir, &aside);
            return Err(error);
        }
        if let Some(linked) = &mut linked {
            linked.insert(entry.file, node);
        }
        Ok(Made::New)
    }

    fn fill_in(&self, node: &Inode, entry: &Entry, content: Content<'_>, linked: bool) -> LowerResult<()> {
        let Attributes { atime, mut mtime, .. } = entry.attributes;
        let size = match &content {
            Content::Empty => None,
            Content::Object(object, _) => Some(object.len),
        };
        self.dress(node, &entry.attributes, size)?;
        if linked {
            self.lower.set_xattr(node, OsStr::new(ORIGIN_XATTR), entry.file.to_string().as_bytes(), 0)?;
        }
        if let Content::Object(object, flags) = content {
            let record = Record {
                claim: Claim::Stub,
                generation: object.generation,
                flags,
                object: Some(object.clone()),
                ..Record::unclaimed()
            };
            self.lower.save_record(node, &record.encode())?;
            mtime = object.mtime;
        }
        self.set_times(node, atime, mtime)
    }

    /// A symbolic link, fifo, socket or device.
    pub(super) fn special(&self, dir: &Inode, entry: &Entry) -> LowerResult<Made> {
        let name = OsStr::from_bytes(&entry.name);
        let (what, kind) = match &entry.kind {
            Kind::Symlink { target } => (NewNode::Symlink(OsStr::from_bytes(target)), FileKind::Symlink),
            Kind::Fifo => (NewNode::Special(FileKind::Fifo, 0), FileKind::Fifo),
            Kind::Socket => (NewNode::Special(FileKind::Socket, 0), FileKind::Socket),
            Kind::CharDevice { device } => (NewNode::Special(FileKind::CharDevice, *device), FileKind::CharDevice),
            Kind::BlockDevice { device } => (NewNode::Special(FileKind::BlockDevice, *device), FileKind::BlockDevice),
            Kind::Regular { .. } | Kind::Directory => return Err(LowerError::from_errno("mknod", libc::EINVAL)),
        };
        let mut linked = (entry.links > 1).then(|| self.linked.lock());
        let (node, made) = match self.there(dir, name)? {
            Some((node, attr)) if attr.kind == kind => (node, Made::Unchanged),
            Some(_) => return Err(LowerError::from_errno("mknod: something else has this name", libc::EEXIST)),
            None => match linked.as_ref().and_then(|linked| linked.get(&entry.file)) {
                Some(node) => {
                    self.lower.link(node, dir, name)?;
                    return Ok(Made::Linked);
                }
                None => (self.lower.make(dir, name, what, 0o600, &OURSELVES)?.0, Made::New),
            },
        };
        let Attributes { mode, uid, gid, atime, mtime, ref xattrs } = entry.attributes;
        let owner = SetAttr { uid: Some(uid), gid: Some(gid), ..SetAttr::default() };
        self.lower.set_attr(&node, &owner)?;
        if kind != FileKind::Symlink {
            self.lower.set_attr(&node, &SetAttr { mode: Some(mode), ..SetAttr::default() })?;
        }
        for (name, value) in xattrs {
            self.lower.set_xattr(&node, OsStr::from_bytes(name), value, 0)?;
        }
        self.set_times(&node, atime, mtime)?;
        if let Some(linked) = &mut linked {
            linked.insert(entry.file, node);
        }
        Ok(made)
    }
}
