//! Where an inode waits that has no name for the moment: a directory of ours in the share, which nobody sees.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use crate::capture::id::peer_id;
use crate::capture::marks::{names_in, own_directory, sync_place};
use crate::ports::{FileKind, Lower, LowerError, LowerResult, RenameMode};
use crate::types::{Inode, PairFileId};

const LIMBO: &str = "limbo";
/// Begins the names of what is not complete.
const NEW: &str = "new-";

pub struct Limbo {
    lower: Arc<dyn Lower>,
    pub dir: Inode,
}

impl Limbo {
    pub fn open(lower: Arc<dyn Lower>) -> LowerResult<Self> {
        let dir = own_directory(&*lower, &sync_place(&*lower)?, LIMBO, 0o700)?;
        Ok(Self { lower, dir })
    }

    /// Whether a share has been a slave before.
    pub fn is_there(lower: &dyn Lower) -> LowerResult<bool> {
        match lower.lookup(&sync_place(lower)?, OsStr::new(LIMBO)) {
            Err(error) if error.errno() == libc::ENOENT => Ok(false),
            found => found.map(|_| true),
        }
    }

    /// The name of an inode that is being made.
    pub fn new_name(id: PairFileId) -> OsString {
        format!("{NEW}{id}").into()
    }

    /// Takes away what an interrupted batch left incomplete.
    pub fn tidy(&self) -> LowerResult<()> {
        for name in names_in(&*self.lower, &self.dir)? {
            if name.as_bytes().starts_with(NEW.as_bytes()) {
                self.discard(&name)?;
            }
        }
        Ok(())
    }

    /// Takes away something that was being made.
    pub fn discard(&self, name: &OsStr) -> LowerResult<()> {
        let (_, attr) = self.lower.lookup(&self.dir, name)?;
        match attr.kind {
            FileKind::Directory => self.lower.remove_dir(&self.dir, name),
            _ => self.lower.unlink(&self.dir, name),
        }
    }

    fn names(id: PairFileId, node: &Inode) -> [OsString; 2] {
        // Two of one id: one of them was copied below the mount.
        [id.to_string().into(), format!("{id}-{}", node.id).into()]
    }

    /// What waits of an id, whatever the book says.
    pub fn find(&self, id: PairFileId) -> LowerResult<Option<Inode>> {
        match self.lower.lookup(&self.dir, OsStr::new(&id.to_string())) {
            Ok((node, _)) => Ok((peer_id(&*self.lower, &node)? == Some(id)).then_some(node)),
            Err(error) if error.errno() == libc::ENOENT => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Under which name an inode waits; `None`: it does not.
    pub fn name_of(&self, id: PairFileId, node: &Inode) -> LowerResult<Option<OsString>> {
        for name in Self::names(id, node) {
            match self.lower.lookup(&self.dir, &name) {
                Ok((found, _)) if found.id == node.id => return Ok(Some(name)),
                Err(error) if error.errno() != libc::ENOENT => return Err(error),
                _ => {}
            }
        }
        Ok(None)
    }

    /// Takes an inode's name away and keeps the inode.
    pub fn keep(&self, id: PairFileId, node: &Inode, dir: &Inode, name: &OsStr) -> LowerResult<()> {
        let mut last = LowerError::from_errno("renameat2", libc::EEXIST);
        for waits in Self::names(id, node) {
            match self.lower.rename(dir, name, &self.dir, &waits, RenameMode::NoReplace) {
                Err(error) if error.errno() == libc::EEXIST => last = error,
                kept => return kept,
            }
        }
        Err(last)
    }
}
