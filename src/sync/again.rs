//! A batch that a crash interrupted, or an error: what it has done already is in the slave's share, and not in its book.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::SyncResult;
use super::apply::Applier;
use super::book::Book;
use super::wire::{Answer, Batch, Node, Statement, decode, is_name};
use crate::capture::id::{Identity, identity, peer_id};
use crate::capture::marks::names_in;
use crate::ports::{Attr, FileKind, LowerError, LowerResult};
use crate::record::{Phase, Record};
use crate::types::{Inode, PairFileId};

impl Applier {
    /// Does a batch once more that is kept in the book already.
    pub fn redo(&self, book: &mut Book, batch: &Batch) -> SyncResult<Answer> {
        self.take_up_made(book, batch)?;
        self.carry_out(book, batch)
    }

    /// Before another one takes the place of a batch that did not come to its end.
    pub(super) fn take_up_failed(&self, book: &mut Book) -> SyncResult<()> {
        match book.value("pending")?.as_deref().map(decode::<Batch>) {
            Some(Ok(left)) => self.take_up_made(book, &left),
            _ => Ok(()),
        }
    }

    /// Takes up what was losing its name when a crash came.
    pub fn take_up(&self, book: &mut Book) -> SyncResult<()> {
        self.limbo.tidy()?;
        book.batch(|book| {
            for name in names_in(&*self.lower, &self.limbo.dir)? {
                let (node, attr) = self.lower.lookup(&self.limbo.dir, &name)?;
                let Some(Identity { id, there }) = identity(&*self.lower, &node)? else { continue };
                match self.known(book, id)? {
                    None => book.put(id, &node, there)?,
                    Some(known) if known.id != node.id => {
                        self.drop_second(&name, &node, &attr)?;
                        continue;
                    }
                    Some(_) => {}
                }
                if book.last_name(id)?.is_none() {
                    book.unnamed(id, PairFileId::ROOT, name.as_bytes())?;
                }
            }
            Ok(())
        })
    }

    /// Removes from limbo what is of an id that another inode has: made twice by an older version of this. Only a stub is nobody's content; whatever else
    /// it may be stays.
    fn drop_second(&self, name: &OsStr, node: &Inode, attr: &Attr) -> LowerResult<()> {
        let is_stub = || -> LowerResult<bool> {
            let record = self.lower.load_record(node)?.and_then(|stored| Record::decode(&stored).ok());
            Ok(record.and_then(|record| record.peer).is_some_and(|peer| peer.phase == Phase::Stub))
        };
        let removed = match attr.kind {
            FileKind::Regular if !is_stub()? => Err(LowerError::from_errno("it may have content", libc::EBUSY)),
            FileKind::Directory => self.lower.remove_dir(&self.limbo.dir, name),
            _ => self.files.remove(&self.limbo.dir, name),
        };
        if let Err(error) = removed {
            tracing::warn!(name = %name.display(), "a second inode of one id stays in .tierfs-gateway/sync/limbo: {error}");
        }
        Ok(())
    }

    /// Takes note of what a batch has made whose end is not in the book. Done once more, it would not find under their first names those that it has
    /// renamed since, and make them a second time. Where they are now is another name of the same batch, or limbo.
    pub(super) fn take_up_made(&self, book: &mut Book, batch: &Batch) -> SyncResult<()> {
        self.take_up(book)?;
        book.batch(|book| {
            // In directories that it has made as well, in whatever order.
            while self.find_made(book, batch)? {}
            Ok(())
        })
    }

    fn find_made(&self, book: &Book, batch: &Batch) -> SyncResult<bool> {
        let mut found = false;
        for statement in &batch.statements {
            let (dir, names): (_, Vec<(&[u8], &Node)>) = match statement {
                Statement::Name { dir, name, is: Some(is) } => (dir, vec![(name, is)]),
                Statement::Names { dir, names, .. } => {
                    (dir, names.iter().filter_map(|(name, is)| Some((&name[..], is.as_ref()?))).collect())
                }
                _ => continue,
            };
            let Some(above) = self.directory(book, *dir)? else { continue };
            for (name, is) in names.into_iter().filter(|(name, _)| is_name(name)) {
                let Some(id) = is.id.filter(|id| *id != PairFileId::ROOT) else { continue };
                if self.known(book, id)?.is_some() {
                    continue;
                }
                let node = match self.lower.lookup(&above, OsStr::from_bytes(name)) {
                    Err(error) if matches!(error.errno(), libc::ENOENT | libc::ESTALE) => continue,
                    looked => looked?.0,
                };
                if peer_id(&*self.lower, &node)? == Some(id) {
                    book.put(id, &node, is.origin)?;
                    found = true;
                }
            }
        }
        Ok(found)
    }
}
