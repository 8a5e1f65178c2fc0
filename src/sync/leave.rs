//! What leaves the slave's share, what stays although the master has it no more, and what a loss of the book left.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use super::SyncResult;
use super::apply::{Applier, Did, Work};
use super::book::{Book, RefusedName};
use crate::capture::id::{Identity, drop_peer_id, identity, peer_id};
use crate::capture::marks::names_in;
use crate::ports::{FileKind, LowerError, LowerResult, RenameMode};
use crate::types::{Inode, PairFileId, STAGING_NAME};

impl Applier {
    /// An inode is nowhere any more at the master.
    pub(super) fn gone(&self, work: &Work<'_>, id: PairFileId) -> Did<()> {
        let known = match self.known(work.book, id)? {
            None => self.limbo.find(id)?,
            known => known,
        };
        let Some(node) = known else {
            work.book.forget(id)?;
            return Ok(());
        };
        // What has a name here got it from the master since.
        let Some(waits) = self.limbo.name_of(id, &node)? else {
            work.book.named(id)?;
            return Ok(());
        };
        if self.lower.stat(&node)?.kind != FileKind::Directory {
            self.files.remove(&self.limbo.dir, &waits)?;
            work.book.forget(id)?;
            return Ok(());
        }
        for name in names_in(&*self.lower, &node)? {
            let (below, attr) = self.lower.lookup(&node, &name)?;
            if let Some(own) = peer_id(&*self.lower, &below)? {
                self.unname(work, (id, &node), &name, (own, &below, &attr))?;
            }
        }
        match self.lower.remove_dir(&self.limbo.dir, &waits) {
            Err(error) if matches!(error.errno(), libc::ENOTEMPTY | libc::EEXIST) => {
                self.give_back(work, id, &node, &waits)?;
            }
            removed => removed?,
        }
        work.book.forget(id)?;
        Ok(())
    }

    /// A directory that the master has removed, with names in it that only this side has, is this side's own from now on.
    fn give_back(&self, work: &Work<'_>, id: PairFileId, node: &Inode, waits: &OsStr) -> Did<()> {
        let was = work.book.last_name(id)?;
        let (dir_id, name) = was.unwrap_or((PairFileId::ROOT, id.to_string().into_bytes()));
        let (dir_id, dir) = match self.directory(work.book, dir_id)? {
            Some(dir) => (dir_id, dir),
            None => (PairFileId::ROOT, self.lower.root()),
        };
        let kept = [&name[..], b"~kept"].concat();
        let other = format!("kept-{id}").into_bytes();
        for name in [name, kept, other] {
            let name = OsStr::from_bytes(&name);
            match self.lower.rename(&self.limbo.dir, waits, &dir, name, RenameMode::NoReplace) {
                Err(error) if matches!(error.errno(), libc::EEXIST | libc::ENAMETOOLONG) => {}
                moved => {
                    moved?;
                    drop_peer_id(&*self.lower, node)?;
                    self.files.name_changed(dir.id, name);
                    let why = "removed at the master; it holds names that only this side has, and stays".to_owned();
                    let (name, since) = (name.as_bytes().to_vec(), self.clock.now().secs);
                    work.book.refuse(&RefusedName { dir: dir_id, name, why, conflict: true, since })?;
                    return Ok(());
                }
            }
        }
        Err(LowerError::from_errno("rename: no name is free for a directory that stays", libc::EEXIST).into())
    }

    /// Fills a book that was lost from what is in the share.
    pub fn fill(&self, book: &mut Book) -> SyncResult<()> {
        book.batch(|book| {
            let mut open = vec![self.lower.root(), self.limbo.dir];
            while let Some(dir) = open.pop() {
                for name in names_in(&*self.lower, &dir)? {
                    if name == STAGING_NAME && dir == self.lower.root() {
                        continue;
                    }
                    let (node, attr) = match self.lower.lookup(&dir, &name) {
                        Err(error) if matches!(error.errno(), libc::ENOENT | libc::ESTALE) => continue,
                        found => found?,
                    };
                    if let Some(Identity { id, there }) = identity(&*self.lower, &node)? {
                        book.put(id, &node, there)?;
                    }
                    if attr.kind == FileKind::Directory {
                        open.push(node);
                    }
                }
            }
            book.set("whole", b"")
        })
    }

    /// Moves what only this side has away from a name that the master has too: to the same name with `~own` at its end, or a number
    /// behind that. Its new name.
    pub fn move_aside(&self, dir: &Inode, name: &OsStr) -> LowerResult<OsString> {
        let (node, _) = self.lower.lookup(dir, name)?;
        if peer_id(&*self.lower, &node)?.is_some() {
            return Err(LowerError::from_errno(
                "rename: it is the master's as well, there is nothing to take",
                libc::EINVAL,
            ));
        }
        for n in 1..1_000 {
            let mut other = name.to_owned();
            other.push(if n == 1 { "~own".to_owned() } else { format!("~own{n}") });
            match self.lower.rename(dir, name, dir, &other, RenameMode::NoReplace) {
                Err(error) if error.errno() == libc::EEXIST => {}
                moved => {
                    moved?;
                    self.lower.sync_node(dir)?;
                    self.files.name_changed(dir.id, name);
                    self.files.name_changed(dir.id, &other);
                    return Ok(other);
                }
            }
        }
        Err(LowerError::from_errno("rename", libc::EEXIST))
    }
}
