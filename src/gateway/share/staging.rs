//! Where content waits that has no key yet: a directory that neither the mount nor S3 shows, with one below it for each user.
//!
//! A user's is the user's own, so that the kernel checks renames from it like any other, and mode 0700. What is in it: `put-N`, an object
//! about to take a name; `upload-ID`, an upload in parts.

use std::ffi::{OsStr, OsString};
use std::sync::atomic::{AtomicU64, Ordering};

use super::Shared;
use super::acting::Acting;
use super::error::About;
use crate::gateway::store::{StoreError, StoreResult};
use crate::lower::{Dir, Share};
use crate::ports::{Caller, DirEntry, FileKind, Lower, LowerError, LowerFile, LowerResult, NewNode};
use crate::types::{Inode, STAGING_NAME};

/// Uploads that nobody completed for so long are given up when the gateway starts, seconds.
const UPLOAD_LIFE_S: i64 = 7 * 24 * 3600;
const PUT: &str = "put-";
pub const UPLOAD: &str = "upload-";

/// Names taken by this process.
static COUNT: AtomicU64 = AtomicU64::new(0);

/// The directory `name` in `dir`, made for `uid` and `gid` where it is missing.
pub fn directory(share: &Share, dir: &Inode, name: &str, mode: u32, (uid, gid): (u32, u32)) -> StoreResult<Inode> {
    let name = OsStr::new(name);
    let who = Caller { uid, gid, pid: 0, umask: 0 };
    let made = match share.lookup(dir, name) {
        Err(error) if error.errno() == libc::ENOENT => match share.make(dir, name, NewNode::Directory, mode, &who) {
            Err(error) if error.errno() == libc::EEXIST => share.lookup(dir, name),
            made => made,
        },
        found => found,
    };
    let (node, attr) = made.about(STAGING_NAME)?;
    if attr.kind != FileKind::Directory || attr.uid != uid || attr.mode & 0o022 != 0 {
        return Err(StoreError::Failed(format!(
            "{} in the share's root is not the gateway's: move it away below the mount",
            name.display()
        )));
    }
    Ok(node)
}

impl Acting {
    /// The user's own.
    pub fn staging(&self) -> StoreResult<Dir> {
        let (share, user) = (self.share(), self.user());
        let all = directory(share, &share.root(), STAGING_NAME, 0o711, (0, 0))?;
        let own = directory(share, &all, &format!("u{}", user.uid), 0o700, (user.uid, user.gid))?;
        share.dir(&own).about(STAGING_NAME)
    }

    /// Gives a file its first name, out of everybody's sight.
    pub fn stage_file(&self, file: &dyn LowerFile) -> StoreResult<Staged> {
        let dir = self.staging()?;
        let name = OsString::from(format!("{PUT}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
        self.share().link_as(self.user(), file, &dir, &name).about(STAGING_NAME)?;
        Ok(Staged { acting: self.clone(), dir, name, there: true })
    }
}

/// A file in the staging directory; it loses its name there in the end.
pub struct Staged {
    acting: Acting,
    pub dir: Dir,
    pub name: OsString,
    there: bool,
}

impl Staged {
    /// It has another name now.
    pub fn moved(&mut self) {
        self.there = false;
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.there {
            // If this fails, the next start does it.
            let _ = self.acting.share().unlink(&self.dir.node(), &self.name);
        }
    }
}

/// All entries of a directory of ours, which is small.
pub fn entries(share: &Share, dir: &Inode) -> LowerResult<Vec<DirEntry>> {
    let listing = share.open_dir(dir)?;
    let mut all = Vec::new();
    loop {
        let page = listing.read(all.last().map_or(0, |entry: &DirEntry| entry.next_offset))?;
        if page.is_empty() {
            all.retain(|entry| entry.name != "." && entry.name != "..");
            return Ok(all);
        }
        all.extend(page);
    }
}

/// Removes a directory of files.
pub fn remove_all(share: &Share, dir: &Inode, name: &OsStr) -> LowerResult<()> {
    let (node, _) = share.lookup(dir, name)?;
    for entry in entries(share, &node)? {
        share.unlink(&node, &entry.name)?;
    }
    share.remove_dir(dir, name)
}

impl Shared {
    /// Clears away what a crash left, and uploads that nobody came back to.
    pub fn clear_staging(&self) -> LowerResult<()> {
        let share = &*self.share;
        let all = match share.lookup(&share.root(), OsStr::new(STAGING_NAME)) {
            Err(error) if error.errno() == libc::ENOENT => return Ok(()),
            found => found?.0,
        };
        let old = |modified: i64| self.fs.engine.now().secs.saturating_sub(modified) > UPLOAD_LIFE_S;
        for own in entries(share, &all)? {
            let (own, attr) = share.lookup(&all, &own.name)?;
            if attr.kind != FileKind::Directory {
                continue;
            }
            for entry in entries(share, &own)? {
                let name = entry.name.to_string_lossy().into_owned();
                if name.starts_with(PUT) {
                    share.unlink(&own, &entry.name)?;
                } else if name.starts_with(UPLOAD) && old(share.lookup(&own, &entry.name)?.1.mtime.secs) {
                    tracing::info!(upload = name, "an upload that nobody completed is given up");
                    remove_all(share, &own, &entry.name)?;
                }
            }
        }
        Ok(())
    }
}

/// There is no such thing.
pub fn if_there<T>(found: LowerResult<T>) -> LowerResult<Option<T>> {
    match found {
        Err(error) if LowerError::errno(&error) == libc::ENOENT => Ok(None),
        found => found.map(Some),
    }
}
