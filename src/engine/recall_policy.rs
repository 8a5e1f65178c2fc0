//! What a read of a stub brings back: as the nearest directory above the file says, else as the pair does.

use std::ffi::OsStr;
use std::sync::atomic::Ordering;

use super::Engine;
use super::error::{EngineError, EngineResult};
use crate::ports::{Lower, LowerResult, if_set};
use crate::types::{Inode, RecallPolicy};

/// Attributes of directories: what reads below bring back; and, on the root alone, that there are such directories.
const HERE: &str = "recall_policy";
const SOMEWHERE: &str = "recall_policies";

/// What trees call it, on whatever share: one that is made again may keep it by another name.
const IN_TREES: &[u8] = b"trusted.tierfs.recall_policy";

fn attribute(lower: &dyn Lower, name: &str) -> String {
    let space = if lower.features().trusted_xattrs { "trusted" } else { "user" };
    format!("{space}.tierfs.{name}")
}

fn policy_here(lower: &dyn Lower, directory: &Inode) -> LowerResult<Option<RecallPolicy>> {
    let stored = if_set(lower.xattr(directory, OsStr::new(&attribute(lower, HERE))))?;
    // Of a newer tierfs, or damaged: as if it were not there.
    Ok(stored.and_then(|word| std::str::from_utf8(&word).ok()?.parse().ok()))
}

fn set_policy(lower: &dyn Lower, directory: &Inode, policy: RecallPolicy) -> LowerResult<()> {
    // First, or a start would not look.
    lower.set_xattr(&lower.root(), OsStr::new(&attribute(lower, SOMEWHERE)), b"1", 0)?;
    lower.set_xattr(directory, OsStr::new(&attribute(lower, HERE)), policy.as_str().as_bytes(), 0)
}

/// What a directory's tree tells of it: an attribute among the others, which a tierfs that does not know it sets as it is.
pub(super) fn policy_for_tree(lower: &dyn Lower, directory: &Inode) -> LowerResult<Option<(Vec<u8>, Vec<u8>)>> {
    let policy = policy_here(lower, directory)?;
    Ok(policy.map(|policy| (IN_TREES.to_vec(), policy.as_str().as_bytes().to_vec())))
}

/// Gives a directory that is made again what its tree tells of it. `false`: the attribute is something else.
pub fn set_policy_of_tree(lower: &dyn Lower, directory: &Inode, name: &[u8], value: &[u8]) -> LowerResult<bool> {
    if name != IN_TREES {
        return Ok(false);
    }
    match std::str::from_utf8(value).ok().and_then(|word| word.parse().ok()) {
        Some(policy) => set_policy(lower, directory, policy).map(|()| true),
        // Of a newer tierfs: the pair's counts.
        None => Ok(true),
    }
}

impl Engine {
    /// What a directory itself says; `None`: nothing.
    pub fn directory_policy(&self, directory: &Inode) -> EngineResult<Option<RecallPolicy>> {
        policy_here(&*self.lower, directory).map_err(EngineError::lower(directory.id))
    }

    /// Has a directory say it for all below that say nothing else. `None`: it says nothing any more.
    pub fn set_directory_policy(&self, directory: &Inode, policy: Option<RecallPolicy>) -> EngineResult<()> {
        let failed = EngineError::lower(directory.id);
        let Some(policy) = policy else {
            return match self.lower.remove_xattr(directory, OsStr::new(&attribute(&*self.lower, HERE))) {
                Err(error) if error.errno() == libc::ENODATA => Ok(()),
                removed => removed.map_err(failed),
            };
        };
        set_policy(&*self.lower, directory, policy).map_err(failed)?;
        self.directory_policies.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Looks whether there are directories that say anything: only then is anybody asked.
    pub(super) fn find_directory_policies(&self) {
        let any = self.lower.xattr(&self.lower.root(), OsStr::new(&attribute(&*self.lower, SOMEWHERE))).is_ok();
        self.directory_policies.store(any, Ordering::SeqCst);
    }

    /// What a read of this file brings back.
    pub(super) fn recall_policy(&self, node: &Inode) -> RecallPolicy {
        let of_pair = self.target.as_ref().map(|target| target.recall).unwrap_or_default();
        if !self.directory_policies.load(Ordering::SeqCst) {
            return of_pair;
        }
        // A file that is being renamed, or has no name, is recalled as the pair says.
        let nearest = || {
            let path = self.lower.path_of(node).ok()??;
            let mut directory = self.lower.root();
            let mut found = policy_here(&*self.lower, &directory).ok()?;
            for name in path.parent()?.iter() {
                directory = self.lower.lookup(&directory, name).ok()?.0;
                found = policy_here(&*self.lower, &directory).ok()?.or(found);
            }
            found
        };
        nearest().unwrap_or(of_pair)
    }
}
