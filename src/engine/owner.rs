//! Whose an object is: the file it was made for, which its key tells.
//!
//! Records can be copied below the mount (`cp -a`, `rsync -X`, a restored backup), and a share made anew from its objects has new inodes: then
//! a file borrows an object that was made for another; so does what `undelete` brings back. Invariants: no note deletes an object but one of the file it was made for, and not
//! even that once somebody else was seen to use it. What nobody deletes is left to the collector, which looks at every record.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::cell::Cell;
use super::error::{EngineError, EngineResult};
use super::intents::is_gone;
use super::keys::parse_end;
use super::orphans::record_of;
use super::{Engine, blocking};
use crate::ports::{Attr, Lower, LowerError, LowerResult, if_set};
use crate::record::{ObjectRef, Record, place_of};
use crate::tier::Refusal;
use crate::types::{FileId, Generation, Inode, ObjectKey};

/// On a file whose objects others use too: none of them is ever deleted by a note. Hidden from users of the mount like everything by this prefix.
const SHARED: &str = "trusted.tierfs.shared";

/// The file that an object was made for. `None`: the key is not one that tierfs makes.
pub fn made_for(key: &ObjectKey) -> Option<FileId> {
    Some(parse_end(key)?.1)
}

/// The generation of its file's content that an object holds.
pub(super) fn generation_of(key: &ObjectKey) -> Option<Generation> {
    Some(parse_end(key)?.2)
}

/// Whether the object was made for `file`.
pub(super) fn is_own(file: FileId, key: &ObjectKey) -> bool {
    made_for(key) == Some(file)
}

/// Whether others were seen to use objects of the file. Who cannot be told must not decide now: neither answer would be right for good.
pub(super) fn is_shared(lower: &dyn Lower, node: &Inode) -> LowerResult<bool> {
    Ok(lower.features().trusted_xattrs && if_set(lower.xattr(node, OsStr::new(SHARED)))?.is_some())
}

/// A path for people, or the file's number.
pub(super) fn name_of(lower: &dyn Lower, node: &Inode) -> String {
    match lower.path_of(node) {
        Ok(Some(path)) => path.display().to_string(),
        _ => format!("inode {}", node.id),
    }
}

/// Keeps apart the deletion of objects and their first use by others. No lock is held while the remote is asked.
#[derive(Default)]
pub(super) struct Keeping {
    /// Shared by those who begin to use an object; alone is who asks which deletions are due.
    asking: RwLock<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Kept since the due deletions were asked for, and perhaps among them.
    kept: HashSet<ObjectKey>,
    /// Whose deletions are under way.
    deleting: HashSet<ObjectKey>,
}

/// The deletion of an object, under way.
pub(super) struct Deleting<'a>(&'a Keeping, ObjectKey);

impl Drop for Deleting<'_> {
    fn drop(&mut self) {
        self.0.state.lock().deleting.remove(&self.1);
    }
}

impl Keeping {
    /// Held while the journal is asked for due deletions.
    pub(super) async fn asking(&self) -> RwLockWriteGuard<'_, ()> {
        let alone = self.asking.write().await;
        self.state.lock().kept.clear();
        alone
    }

    /// Begins a deletion; `None`: somebody needs the object now, or deletes it already.
    pub(super) fn begin(&self, key: &ObjectKey) -> Option<Deleting<'_>> {
        let mut state = self.state.lock();
        let free = !state.kept.contains(key) && state.deleting.insert(key.clone());
        free.then(|| Deleting(self, key.clone()))
    }

    /// Whether the object, and with a member its pack, is kept from now on; no: it is being deleted.
    fn keep(&self, key: &ObjectKey) -> bool {
        let mut state = self.state.lock();
        let pack = place_of(key).map(|place| place.pack.key());
        let free = [Some(key), pack.as_ref()].into_iter().flatten().all(|key| !state.deleting.contains(key));
        if free {
            state.kept.insert(key.clone());
            state.kept.extend(pack);
        }
        free
    }
}

impl Engine {
    /// Whether a file that needs the object no more may have it deleted.
    pub(super) fn may_give_up(&self, node: &Inode, key: &ObjectKey) -> EngineResult<bool> {
        Ok(is_own(node.id, key) && !is_shared(&*self.lower, node).map_err(EngineError::lower(node.id))?)
    }

    /// Before a file is left to an object that was made for another one: from now on no note deletes it. Durable on return.
    pub(super) async fn keep_borrowed(self: &Arc<Self>, cell: &Cell, object: &ObjectRef) -> EngineResult<()> {
        // Who may not write deletes nothing either.
        if is_own(cell.node.id, &object.key) || self.lower.features().read_only {
            return Ok(());
        }
        let _asking = self.keeping.asking.read().await;
        if !self.keep(&object.key) {
            return Err(EngineError::Refused { file: cell.node.id, why: Refusal::ObjectGoing });
        }
        // Nobody is between a look at a record and the note of its object's deletion.
        let _noting = self.noting.write().await;
        let (this, node, key) = (self.clone(), cell.node, object.key.clone());
        let marked = blocking(move || this.mark_owner(&node, &key)).await?;
        marked.map_err(EngineError::lower(cell.node.id))?;
        // After the mark: who adds a note from now on looks at the mark after that.
        Ok(self.journal.withdraw(&object.key).await?)
    }

    fn mark_owner(&self, borrower: &Inode, key: &ObjectKey) -> LowerResult<()> {
        let Some((owner, _)) = self.owner(borrower, key)? else { return Ok(()) };
        if self.has_given_up(&owner, key)? {
            // An older generation that was brought back: the others are the owner's alone.
            return Ok(());
        }
        let set = if_set(self.lower.xattr(&owner, OsStr::new(SHARED)))?.is_some();
        if !set {
            let [from, to] = [&owner, borrower].map(|node| name_of(&*self.lower, node));
            tracing::warn!(
                path = to, object = %key,
                "its record is that of {from}, copied below the mount: both are served, and the object stays whoever changes or goes"
            );
            self.lower.set_xattr(&owner, OsStr::new(SHARED), b"1", 0)?;
        }
        // Also if it was set: by a call whose sync failed, perhaps.
        self.lower.sync_node(&owner)
    }

    /// Whether the object is durably none of the file's any more, and no note of its deletion is still to come from it. To be asked with
    /// `noting` held alone.
    fn has_given_up(&self, owner: &Inode, key: &ObjectKey) -> LowerResult<bool> {
        let Ok(record) = record_of(&*self.lower, &self.cells, owner) else { return Ok(false) };
        let unknown = self.cells.live(owner.id).is_some_and(|cell| cell.lock().machine.is_unknown());
        if unknown || record.names(key) || record.superseded.is_some_and(|old| old.key == *key) {
            return Ok(false);
        }
        self.lower.sync_node(owner)?;
        Ok(true)
    }

    /// Whether the object is kept from now on; no: it is being deleted. To be asked while nobody asks for due deletions
    /// ([`Engine::nobody_asks`]).
    pub(super) fn keep(&self, key: &ObjectKey) -> bool {
        self.keeping.keep(key)
    }

    /// While this is held, nobody asks which deletions are due.
    pub(super) async fn nobody_asks(&self) -> RwLockReadGuard<'_, ()> {
        self.keeping.asking.read().await
    }

    /// The file that a borrowed object was made for, while there is one.
    pub(super) fn owner(&self, borrower: &Inode, key: &ObjectKey) -> LowerResult<Option<(Inode, Attr)>> {
        let Some(owner) = made_for(key) else { return Ok(None) };
        match self.lower.by_number(owner.ino) {
            Ok(found) => Ok(Some(found).filter(|(node, _)| node.id == owner)),
            Err(error) if is_gone(&error) => {
                // Only where files are found by their number at all does "not found" say that it is gone.
                self.lower.by_number(borrower.id.ino).map(|_| None).map_err(|error| match error {
                    error if is_gone(&error) => {
                        LowerError::from_errno("finding a file by its number", libc::EOPNOTSUPP)
                    }
                    error => error,
                })
            }
            Err(error) => Err(error),
        }
    }

    /// Who else names the file's object, as far as its key tells: for reports.
    pub(super) fn shares_with(&self, node: &Inode, object: &ObjectRef) -> EngineResult<Option<String>> {
        let failed = EngineError::lower(node.id);
        if is_own(node.id, &object.key) {
            return Ok(None);
        }
        let Some((owner, attr)) = self.owner(node, &object.key).map_err(&failed)? else { return Ok(None) };
        let stored = self.lower.load_record(&owner).map_err(&failed)?;
        let names = stored.is_some_and(|stored| Record::decode(&stored).is_ok_and(|record| record.names(&object.key)));
        Ok((names && attr.nlink > 0).then(|| name_of(&*self.lower, &owner)))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::keys::object_key;
    use super::*;

    #[test]
    fn a_key_tells_whose_it_is() {
        let file = FileId { ino: 0x1f, birth: 0xdead_beef };
        for path in ["a", "a@b/c.d-e", "x@1-2.3", &"long/".repeat(400), "ü@"] {
            for prefix in ["", "p", "p@7-8.9/q"] {
                let key = object_key(prefix, Path::new(path), file, Generation(0x6_4a3c));
                assert_eq!((made_for(&key), generation_of(&key)), (Some(file), Some(Generation(0x6_4a3c))), "{key}");
            }
        }
        for key in ["", "a", "a@", "a@1", "a@1-2", "a@1-2.", "a@1.2", "a@-.", "a@x-2.3", "a@1-2.x", "a@1-2.3.manifest"]
        {
            let key = ObjectKey(key.into());
            assert_eq!((made_for(&key), generation_of(&key)), (None, None), "{key:?}");
        }
    }
}
