//! Names: lookup, creation, removal, renaming. Directories never meet tiering; only the last name of a file does.

use std::ffi::{OsStr, OsString};

use super::Fs;
use super::error::{FsError, FsResult};
use super::nodes::ROOT;
use crate::kill;
use crate::ports::{Attr, Caller, FileKind, LowerError, NewNode, RenameMode};
use crate::record::Record;
use crate::types::{FileId, Inode, ObjectKey, STAGING_NAME};

/// What a lookup tells the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub id: u64,
    /// Tells a reused inode number from the one before.
    pub generation: u64,
    pub attr: Attr,
}

/// What loses a name by a removal.
enum Doomed {
    /// Nothing that tiering knows; the file that goes with its last name, if one does.
    Unclaimed(Option<FileId>),
    /// A file that goes with its last name, and may leave objects behind.
    Claimed(Inode),
}

/// A removal that would leave objects behind: their deletion is to be noted before it.
pub struct Removal {
    node: Inode,
    record: Record,
}

/// Objects whose deletion is noted for a removal under way.
#[derive(Default)]
pub struct Noted(Vec<ObjectKey>);

impl Noted {
    fn add(&mut self, record: &Record) {
        self.0.extend(record.object.iter().map(|object| object.key.clone()));
        self.0.extend(record.superseded.iter().map(|old| old.key.clone()));
    }

    /// What of a record's objects is not noted yet.
    fn lacks(&self, mut record: Record) -> Option<Record> {
        record.object.take_if(|object| self.0.contains(&object.key));
        record.superseded.take_if(|old| self.0.contains(&old.key));
        (record.object.is_some() || record.superseded.is_some()).then_some(record)
    }
}

impl Fs {
    pub(super) fn entry(&self, node: &Inode, attr: Attr) -> Entry {
        Entry { id: self.nodes.id_of(node), generation: node.id.birth, attr: self.shown(node, attr) }
    }

    /// Whether users of the mount do not see a name: the S3 gateway keeps there what is not whole yet.
    pub(super) fn is_hidden(parent: u64, name: &OsStr) -> bool {
        name == STAGING_NAME && parent == ROOT
    }

    /// `ENOENT` for a hidden name.
    fn check_shown(parent: u64, name: &OsStr) -> FsResult<()> {
        if Self::is_hidden(parent, name) { Err(LowerError::from_errno("lookup", libc::ENOENT).into()) } else { Ok(()) }
    }

    /// Refuses to make something under a hidden name.
    pub(super) fn check_free(parent: u64, name: &OsStr) -> FsResult<()> {
        if Self::is_hidden(parent, name) { Err(FsError::NotPermitted) } else { Ok(()) }
    }

    /// Finds a name. The kernel must later forget the entry once.
    pub fn lookup(&self, parent: u64, name: &OsStr) -> FsResult<Entry> {
        Self::check_shown(parent, name)?;
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
        Self::check_free(parent, name)?;
        let dir = self.node(parent)?;
        let change = self.changing([Some(&dir), None])?;
        let (node, attr) = self.lower.make(&dir, name, what, mode, who)?;
        self.recorder().named(&dir, name);
        match change {
            Some(change) if attr.kind == FileKind::Directory => change.born(&dir, name, &node),
            Some(change) => change.named(&dir, name),
            None => {}
        }
        self.nodes.remember(&node);
        Ok(self.entry(&node, attr))
    }

    pub fn read_link(&self, id: u64) -> FsResult<OsString> {
        Ok(self.lower.read_link(&self.node(id)?)?)
    }

    pub fn link(&self, id: u64, parent: u64, name: &OsStr) -> FsResult<Entry> {
        self.check_writable()?;
        Self::check_free(parent, name)?;
        let (node, dir) = (self.node(id)?, self.node(parent)?);
        self.check_ours(&node)?;
        let change = self.changing([Some(&dir), None])?;
        let moving = self.engine.moving();
        let attr = self.lower.link(&node, &dir, name)?;
        self.recorder().named(&dir, name);
        if let Some(change) = change {
            change.named(&dir, name);
        }
        moving.done(|| Some(node));
        self.nodes.remember(&node);
        Ok(self.entry(&node, attr))
    }

    /// What removing `name` would take away.
    fn doomed(&self, dir: &Inode, name: &OsStr) -> FsResult<Doomed> {
        // What nobody has open and has no record leaves nothing behind: the common case, and the cheap one.
        match self.lower.unclaimed(dir, name) {
            Err(error) if error.errno() == libc::ENOENT => return Ok(Doomed::Unclaimed(None)),
            Ok(Some(id)) if self.engine.cells.live(id).is_none() => return Ok(Doomed::Unclaimed(Some(id))),
            _ => {}
        }
        match self.lower.lookup(dir, name) {
            Err(error) if error.errno() == libc::ENOENT => Ok(Doomed::Unclaimed(None)),
            Ok((_, attr)) if attr.kind != FileKind::Regular || attr.nlink > 1 => Ok(Doomed::Unclaimed(None)),
            found => Ok(Doomed::Claimed(found?.0)),
        }
    }

    /// Takes `name` away by `remove`, unless that leaves objects behind which are not in `noted`: then nothing is done, and they are told.
    pub(super) fn try_remove(
        &self,
        dir: &Inode,
        name: &OsStr,
        noted: &Noted,
        remove: &dyn Fn() -> FsResult<()>,
    ) -> FsResult<Option<Removal>> {
        let node = match self.doomed(dir, name)? {
            Doomed::Unclaimed(file) => {
                let hold = self.hold(file);
                remove()?;
                self.keep_held(file, hold);
                self.let_go(file);
                return Ok(None);
            }
            Doomed::Claimed(node) => node,
        };
        let hold = self.hold(Some(node.id));
        // Under the lock that an archive is committed under: its object is seen here, or it sees that the file has no name any more.
        let unless_left = |record: Record| match noted.lacks(record) {
            Some(record) => Ok(Some(Removal { node, record })),
            None => remove().map(|()| None),
        };
        let removed = match self.engine.cells.unless_live(node.id, || unless_left(self.stored_record(&node)?)) {
            Ok(removed) => removed,
            Err(cell) => {
                let inner = cell.lock();
                unless_left(inner.record.clone())
            }
        }?;
        if removed.is_none() {
            self.keep_held(Some(node.id), hold);
            self.let_go(Some(node.id));
        }
        Ok(removed)
    }

    /// A record as it is stored: whether it is true does not matter to what it names.
    fn stored_record(&self, node: &Inode) -> FsResult<Record> {
        let Some(stored) = self.lower.load_record(node)? else { return Ok(Record::unclaimed()) };
        Ok(Record::decode(&stored).unwrap_or_else(|why| {
            // Such a file can be removed; what it named is left for the collector.
            tracing::warn!(file = %node.id, "removed with its record unread: {why}");
            Record::unclaimed()
        }))
    }

    /// Notes, durably, the deletions that a removal leaves, then tries it `again`: while it was noted, the file may have got another object.
    pub async fn note_and_remove(
        &self,
        mut removal: Removal,
        again: impl Fn(&Noted) -> FsResult<Option<Removal>>,
    ) -> FsResult<()> {
        let mut noted = Noted::default();
        loop {
            noted.add(&removal.record);
            self.engine.note_removal(removal.node, removal.record).await?;
            match again(&noted)? {
                None => return Ok(()),
                Some(next) => removal = next,
            }
        }
    }

    /// Removes a name. `Some`: not yet, see [`Fs::note_and_remove`].
    pub fn try_unlink(&self, parent: u64, name: &OsStr, noted: &Noted) -> FsResult<Option<Removal>> {
        self.check_writable()?;
        Self::check_shown(parent, name)?;
        let dir = self.node(parent)?;
        self.check_our_name(&dir, name)?;
        let change = self.changing([Some(&dir), None])?;
        let unlink = || {
            self.lower.unlink(&dir, name)?;
            self.recorder().named(&dir, name);
            if let Some(change) = &change {
                change.named(&dir, name);
            }
            kill::point("removal.unlinked");
            Ok(())
        };
        self.try_remove(&dir, name, noted, &unlink)
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
        Self::check_shown(parent, name)?;
        let dir = self.node(parent)?;
        self.check_our_name(&dir, name)?;
        let change = self.changing([Some(&dir), None])?;
        self.lower.remove_dir(&dir, name)?;
        self.recorder().named(&dir, name);
        if let Some(change) = change {
            change.named(&dir, name);
        }
        Ok(())
    }

    /// Renames. `Some`: not yet, since it would take another file's last name, see [`Fs::note_and_remove`].
    pub fn try_rename(
        &self,
        parent: u64,
        name: &OsStr,
        to_parent: u64,
        to: &OsStr,
        mode: RenameMode,
        noted: &Noted,
    ) -> FsResult<Option<Removal>> {
        self.check_writable()?;
        Self::check_shown(parent, name)?;
        Self::check_free(to_parent, to)?;
        let (dir, to_dir) = (self.node(parent)?, self.node(to_parent)?);
        self.check_our_name(&dir, name)?;
        self.check_our_name(&to_dir, to)?;
        let change = self.changing([Some(&dir), Some(&to_dir)])?;
        let rename = || {
            let moving = self.engine.moving();
            self.lower.rename(&dir, name, &to_dir, to, mode)?;
            self.recorder().renamed(&dir, name, &to_dir, to);
            if let Some(change) = &change {
                // The new one is told first, as above.
                change.named(&to_dir, to);
                change.named(&dir, name);
            }
            kill::point("removal.renamed");
            moving.done(|| Some(self.lower.lookup(&to_dir, to).ok()?.0));
            if mode == RenameMode::Exchange {
                moving.done(|| Some(self.lower.lookup(&dir, name).ok()?.0));
            }
            Ok(())
        };
        match mode {
            RenameMode::Replace | RenameMode::Whiteout => self.try_remove(&to_dir, to, noted, &rename),
            RenameMode::NoReplace | RenameMode::Exchange => rename().map(|()| None),
        }
    }

    /// Whether an error says that the name is not there (the kernel may then remember that).
    pub fn is_absent(error: &FsError) -> bool {
        matches!(error, FsError::Lower(error) if LowerError::errno(error) == libc::ENOENT)
    }
}
