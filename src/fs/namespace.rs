//! Names: lookup, creation, removal, renaming. Directories never meet tiering; only the last name of a file does.

use std::ffi::{OsStr, OsString};

use super::Fs;
use super::error::{FsError, FsResult};
use crate::engine::load_record;
use crate::ports::{Attr, Caller, FileKind, LowerError, NewNode, RenameMode};
use crate::record::Record;
use crate::types::{FileId, Inode};

/// What a lookup tells the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub id: u64,
    /// Tells a reused inode number from the one before.
    pub generation: u64,
    pub attr: Attr,
}

/// What loses a name by a removal.
#[derive(Default)]
pub struct Doomed {
    /// The file that goes with its last name.
    pub file: Option<FileId>,
    /// What it leaves behind remotely.
    pub leaves: Option<Removal>,
}

/// A removal that leaves objects behind: their deletion is to be noted before it.
pub struct Removal {
    pub node: Inode,
    pub record: Record,
}

impl Fs {
    pub(super) fn entry(&self, node: &Inode, attr: Attr) -> Entry {
        Entry { id: self.nodes.id_of(node), generation: node.id.birth, attr: self.shown(node, attr) }
    }

    /// Finds a name. The kernel must later forget the entry once.
    pub fn lookup(&self, parent: u64, name: &OsStr) -> FsResult<Entry> {
        let (node, attr) =
            if name == "." { self.itself(parent)? } else { self.lower.lookup(&self.node(parent)?, name)? };
        self.nodes.remember(&node);
        Ok(self.entry(&node, attr))
    }

    /// An inode of any kind, for a file handle somebody kept: the kernel compares the generation with the handle's. What the table
    /// has may be gone, and its number another's by now.
    fn itself(&self, id: u64) -> FsResult<(Inode, Attr)> {
        if let Some(node) = self.nodes.get(id) {
            match self.lower.stat(&node) {
                Err(error) if error.errno() == libc::ESTALE => {}
                stat => return Ok((node, stat?)),
            }
        }
        self.found(id)
    }

    pub fn forget(&self, id: u64, lookups: u64) {
        if self.nodes.forget(id, lookups) {
            self.held.drop(id);
        }
    }

    pub fn make(&self, parent: u64, name: &OsStr, what: NewNode<'_>, mode: u32, who: &Caller) -> FsResult<Entry> {
        self.check_writable()?;
        let dir = self.node(parent)?;
        let (node, attr) = self.lower.make(&dir, name, what, mode, who)?;
        self.nodes.remember(&node);
        Ok(self.entry(&node, attr))
    }

    pub fn read_link(&self, id: u64) -> FsResult<OsString> {
        Ok(self.lower.read_link(&self.node(id)?)?)
    }

    pub fn link(&self, id: u64, parent: u64, name: &OsStr) -> FsResult<Entry> {
        self.check_writable()?;
        let (node, dir) = (self.node(id)?, self.node(parent)?);
        let moving = self.engine.moving();
        let attr = self.lower.link(&node, &dir, name)?;
        moving.done(|| Some(node));
        self.nodes.remember(&node);
        Ok(self.entry(&node, attr))
    }

    /// What removing `name` would take away, and leave behind remotely.
    pub fn removal(&self, parent: u64, name: &OsStr) -> FsResult<Doomed> {
        self.check_writable()?;
        let dir = self.node(parent)?;
        // What nobody has open and has no record leaves nothing behind: the common case, and the cheap one.
        match self.lower.unclaimed(&dir, name) {
            Err(error) if error.errno() == libc::ENOENT => return Ok(Doomed::default()),
            Ok(Some(id)) if self.engine.cells.live(id).is_none() => return Ok(Doomed { file: Some(id), leaves: None }),
            _ => {}
        }
        let (node, attr) = match self.lower.lookup(&dir, name) {
            Err(error) if error.errno() == libc::ENOENT => return Ok(Doomed::default()),
            found => found?,
        };
        if attr.kind != FileKind::Regular || attr.nlink > 1 {
            return Ok(Doomed::default());
        }
        let file = Some(node.id);
        let live = self.engine.cells.live(node.id).map(|cell| cell.lock().record.clone());
        let record = match live {
            Some(record) => record,
            None => match load_record(&*self.lower, &node) {
                Ok(record) => record,
                Err(error) => {
                    // A file with a damaged record can be removed; what it named is left for the collector.
                    tracing::warn!(file = %node.id, "removed with its record unread: {error}");
                    return Ok(Doomed { file, leaves: None });
                }
            },
        };
        let leaves = (record.object.is_some() || record.superseded.is_some()).then_some(Removal { node, record });
        Ok(Doomed { file, leaves })
    }

    /// Notes, durably, the deletions a removal leaves.
    pub async fn note_removal(&self, removal: Removal) -> FsResult<()> {
        Ok(self.engine.note_removal(removal.node, removal.record).await?)
    }

    /// `last`: the file that goes with this name, as [`Fs::removal`] found.
    pub fn unlink(&self, parent: u64, name: &OsStr, last: Option<FileId>) -> FsResult<()> {
        self.check_writable()?;
        let hold = self.hold(last);
        self.lower.unlink(&self.node(parent)?, name)?;
        self.keep_held(last, hold);
        self.let_go(last);
        Ok(())
    }

    /// Sees to it that nothing of ours stays open of a file that was removed, or has another owner now.
    pub(super) fn let_go(&self, file: Option<FileId>) {
        let Some(id) = file else { return };
        if let Some(cell) = self.engine.cells.live(id) {
            cell.lock().keeps = false;
        }
        self.engine.warm.let_go(id);
    }

    pub fn remove_dir(&self, parent: u64, name: &OsStr) -> FsResult<()> {
        self.check_writable()?;
        Ok(self.lower.remove_dir(&self.node(parent)?, name)?)
    }

    /// `last`: the file that loses its last name to this, as [`Fs::removal`] found.
    pub fn rename(
        &self,
        parent: u64,
        name: &OsStr,
        to_parent: u64,
        to: &OsStr,
        mode: RenameMode,
        last: Option<FileId>,
    ) -> FsResult<()> {
        self.check_writable()?;
        let (dir, to_dir) = (self.node(parent)?, self.node(to_parent)?);
        let moving = self.engine.moving();
        let hold = self.hold(last);
        self.lower.rename(&dir, name, &to_dir, to, mode)?;
        self.keep_held(last, hold);
        moving.done(|| Some(self.lower.lookup(&to_dir, to).ok()?.0));
        if mode == RenameMode::Exchange {
            moving.done(|| Some(self.lower.lookup(&dir, name).ok()?.0));
        }
        self.let_go(last);
        Ok(())
    }

    /// Whether an error says that the name is not there (the kernel may then remember that).
    pub fn is_absent(error: &FsError) -> bool {
        matches!(error, FsError::Lower(error) if LowerError::errno(error) == libc::ENOENT)
    }
}
