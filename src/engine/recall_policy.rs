//! What a read of a stub brings back: as the nearest directory above the file says, else as the pair does.

use std::ffi::OsStr;
use std::sync::atomic::Ordering;

use super::Engine;
use super::error::{EngineError, EngineResult};
use crate::ports::{LowerResult, if_set};
use crate::types::{Inode, RecallPolicy};

/// Attributes of directories: what reads below bring back; and, on the root alone, that there are such directories.
const HERE: &str = "recall_policy";
const SOMEWHERE: &str = "recall_policies";

impl Engine {
    fn attribute(&self, name: &str) -> String {
        let space = if self.lower.features().trusted_xattrs { "trusted" } else { "user" };
        format!("{space}.tierfs.{name}")
    }

    fn policy_here(&self, directory: &Inode) -> LowerResult<Option<RecallPolicy>> {
        let stored = if_set(self.lower.xattr(directory, OsStr::new(&self.attribute(HERE))))?;
        // Of a newer tierfs, or damaged: as if it were not there.
        Ok(stored.and_then(|word| std::str::from_utf8(&word).ok()?.parse().ok()))
    }

    /// What a directory itself says; `None`: nothing.
    pub fn directory_policy(&self, directory: &Inode) -> EngineResult<Option<RecallPolicy>> {
        self.policy_here(directory).map_err(EngineError::lower(directory.id))
    }

    /// Has a directory say it for all below that say nothing else. `None`: it says nothing any more.
    pub fn set_directory_policy(&self, directory: &Inode, policy: Option<RecallPolicy>) -> EngineResult<()> {
        let failed = EngineError::lower(directory.id);
        let name = self.attribute(HERE);
        let Some(policy) = policy else {
            return match self.lower.remove_xattr(directory, OsStr::new(&name)) {
                Err(error) if error.errno() == libc::ENODATA => Ok(()),
                removed => removed.map_err(failed),
            };
        };
        // First, or a start would not look.
        self.lower.set_xattr(&self.lower.root(), OsStr::new(&self.attribute(SOMEWHERE)), b"1", 0).map_err(&failed)?;
        self.directory_policies.store(true, Ordering::SeqCst);
        self.lower.set_xattr(directory, OsStr::new(&name), policy.as_str().as_bytes(), 0).map_err(failed)
    }

    /// Looks whether there are directories that say anything: only then is anybody asked.
    pub(super) fn find_directory_policies(&self) {
        let any = self.lower.xattr(&self.lower.root(), OsStr::new(&self.attribute(SOMEWHERE))).is_ok();
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
            let mut found = self.policy_here(&directory).ok()?;
            for name in path.parent()?.iter() {
                directory = self.lower.lookup(&directory, name).ok()?.0;
                found = self.policy_here(&directory).ok()?.or(found);
            }
            found
        };
        nearest().unwrap_or(of_pair)
    }
}
