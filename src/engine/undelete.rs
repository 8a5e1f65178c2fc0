//! Undelete: a generation that is kept for retention becomes the content of a new inode, a stub.
//!
//! Why nothing is lost and nothing deleted that is named. An object goes only by a note about the inode it was made for (`owner`), when that
//! inode's durable record does not name it. So before the new inode N names object K:
//!  1. those whose notes are about K are asked: gone (made durable by a sync of the share), or naming something else, durably, and not
//!     keeping K as superseded. From now on they never note K again: whoever looks at a record and notes its object's deletion does so
//!     under `Engine::noting`, which is held alone meanwhile; what was read before a removal is looked at again under it.
//!  2. all notes of K are handed over to N in one transaction, and none is due for [`GRACE_S`]. K is kept from deletions that were asked for
//!     before (`Keeping`). A note of N deletes nothing: K was not made for it.
//!  3. K is looked at again: it is there. N gets its size, attributes and record, durably, under a name of its own.
//!  4. N gets its name, if nobody has taken it, durably.
//!  5. the notes are taken away.
//!
//! A crash before 3 leaves K noted, so that it can be brought back as long as before, and a file `.tierfs-undelete-…` of nothing or holes; between 3
//! and 4, a stub of that name, which may be renamed; between 4 and 5 notes that are dropped when they are due. What K is not
//! deleted by any more, the collector does, which looks at every record.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use super::cell::Cell;
use super::error::{EngineError, EngineResult, NotKept};
use super::facts::Facts;
use super::{Engine, Target, blocking};
use crate::kill;
use crate::ports::{
    About, Caller, GIVEN_UP, Intent, IntentId, IntentKind, NewNode, OpenFlags, RenameMode, SetAttr, SetTime,
};
use crate::record::{Claim, ObjectRef, Record};
use crate::tier::{Activity, Machine};
use crate::types::{Inode, ObjectKey, Timestamp};

/// So long nothing is deleted that is being brought back, in seconds.
const GRACE_S: i64 = 3600;
/// How long it may take until a file that was removed a moment ago is let go.
const GONE_WITHIN: Duration = Duration::from_secs(5);
const GONE_PAUSE: Duration = Duration::from_millis(250);
/// What makes a new file of the daemon's own.
const OURSELVES: Caller = Caller { uid: 0, gid: 0, pid: 0, umask: 0 };

impl Engine {
    /// Makes the kept object `key` the content of a new file `name` in `dir`. Nothing may be there.
    pub async fn undelete(
        self: &Arc<Self>,
        key: &ObjectKey,
        dir: &Inode,
        name: &OsStr,
    ) -> EngineResult<(Inode, ObjectRef)> {
        self.check_running()?;
        let target = self.keeper_of(key).await?;
        if self.lower.features().read_only {
            return Err(EngineError::ReadOnly);
        }
        let kept = |why| EngineError::NotKept { object: key.to_string(), why };
        if !self.lower.features().trusted_xattrs {
            return Err(kept(NotKept::Untrusted));
        }
        let info = target.remote.head(key).await.map_err(EngineError::remote(dir.id))?;
        let facts = Facts::of(&info).map_err(|why| kept(NotKept::Facts(why.to_string())))?;
        let object = facts.clone().object(&*target.remote, target.pair.clone(), key.clone()).await;
        let object = object.map_err(|why| kept(NotKept::Facts(why.to_string())))?;
        let failed = EngineError::lower(dir.id);
        match self.lower.lookup(dir, name) {
            Err(error) if error.errno() == libc::ENOENT => {}
            Ok(_) => return Err(kept(NotKept::Exists)),
            Err(error) => return Err(failed(error)),
        }
        let aside = OsString::from(format!(".tierfs-undelete-{}.{}", facts.file, self.clock.now().nanos));
        let flags = OpenFlags { write: true, exclusive: true, ..OpenFlags::default() };
        let (node, ..) = self.lower.create(dir, &aside, 0, flags, &OURSELVES).map_err(&failed)?;
        kill::point("undelete.made");
        let done = self.dress_and_name(key, dir, &aside, name, node, &facts, &object).await;
        if done.is_err() {
            // Its notes are about this inode now: gone, the object is kept as long as it would have been.
            if let Err(error) = self.lower.unlink(dir, &aside) {
                tracing::warn!("{} stays after a failed undelete: {error}", aside.display());
            }
        }
        self.announce_name(dir.id, &aside);
        self.announce_name(dir.id, name);
        // Who asked looks for it at once.
        self.announced().await;
        done.map(|()| (node, object))
    }

    /// The pair that keeps an object, as its notes tell.
    async fn keeper_of(&self, key: &ObjectKey) -> EngineResult<Arc<Target>> {
        for target in self.stores()? {
            if !self.journal.noted(&target.pair.name, About::Key(key.clone()), None, 1).await?.is_empty() {
                return Ok(target);
            }
        }
        self.store()
    }

    #[expect(clippy::too_many_arguments, reason = "the facts of one undelete, used once")]
    async fn dress_and_name(
        self: &Arc<Self>,
        key: &ObjectKey,
        dir: &Inode,
        aside: &OsStr,
        name: &OsStr,
        node: Inode,
        facts: &Facts,
        object: &ObjectRef,
    ) -> EngineResult<()> {
        let target = self.keeper_of(key).await?;
        let kept = |why| EngineError::NotKept { object: key.to_string(), why };
        let notes = self.take_over(key, node).await?;
        kill::point("undelete.taken");
        // Deleted before, and only its note had stayed?
        let again = target.remote.head(key).await.map_err(EngineError::remote(node.id))?;
        if (again.len, &again.etag) != (object.len, &object.etag) {
            return Err(kept(NotKept::Facts("it changed while it was looked at".into())));
        }
        let (this, dir, aside, name) = (self.clone(), *dir, aside.to_owned(), name.to_owned());
        let (facts, object, key) = (facts.clone(), object.clone(), key.clone());
        // Who walks over the share is told of the file before its notes are gone: one of the two is seen.
        let moving = self.moving();
        let named = blocking(move || {
            let cell = this.cells.get_new(&node)?;
            this.make_stub(&cell, &facts, object)?;
            kill::point("undelete.stored");
            let failed = EngineError::lower(dir.id);
            match this.lower.rename(&dir, &aside, &dir, &name, RenameMode::NoReplace) {
                Err(error) if error.errno() == libc::EEXIST => {
                    return Err(EngineError::NotKept { object: key.to_string(), why: NotKept::Exists });
                }
                renamed => renamed.map_err(&failed)?,
            }
            kill::point("undelete.named");
            this.lower.sync_node(&dir).map_err(&failed)
        });
        let done = async {
            named.await??;
            kill::point("undelete.synced");
            for id in notes {
                self.journal.remove(id).await?;
            }
            kill::point("undelete.done");
            Ok(())
        };
        let done = done.await;
        moving.done(|| Some(node));
        done
    }

    /// Steps 1 and 2: the object is the new inode's from here on. Returns the notes.
    async fn take_over(self: &Arc<Self>, key: &ObjectKey, node: Inode) -> EngineResult<Vec<IntentId>> {
        let target = self.keeper_of(key).await?;
        let pair = &target.pair.name;
        let kept = |why| EngineError::NotKept { object: key.to_string(), why };
        let begun = std::time::Instant::now();
        loop {
            // Not held while a file is waited for, or nobody could remove anything meanwhile.
            let asking = self.nobody_asks().await;
            if !self.keep(key) {
                return Err(kept(NotKept::Deleting));
            }
            let noting = self.noting.write().await;
            let notes = self.journal.noted(pair, About::Key(key.clone()), None, usize::MAX >> 1).await?;
            let now = self.clock.now();
            let is_kept = |note: &Intent| matches!(note.kind, IntentKind::Delete { not_before } if not_before > now);
            let given_up = |note: &Intent| note.kind == IntentKind::Delete { not_before: GIVEN_UP };
            if !notes.iter().any(|(_, note)| is_kept(note)) || notes.iter().any(|(_, note)| given_up(note)) {
                return Err(kept(NotKept::Over));
            }
            kill::point("undelete.asking");
            let (this, asked, at) = (self.clone(), notes.clone(), key.clone());
            match blocking(move || this.let_go_of(&at, &asked)).await? {
                Ok(()) => {}
                Err(EngineError::NotKept { why: NotKept::StillOpen, .. }) if begun.elapsed() < GONE_WITHIN => {
                    drop((noting, asking));
                    tokio::time::sleep(GONE_PAUSE).await;
                    continue;
                }
                Err(error) => return Err(error),
            }
            let not_before = Timestamp { secs: now.secs + GRACE_S, ..now };
            self.journal.repoint(pair, key, node, not_before).await?;
            return Ok(notes.into_iter().map(|(id, _)| id).collect());
        }
    }

    /// Step 1: no inode of these notes names the object any more, or will; all of that durably.
    fn let_go_of(&self, key: &ObjectKey, notes: &[(IntentId, Intent)]) -> EngineResult<()> {
        let kept = |why| EngineError::NotKept { object: key.to_string(), why };
        for node in notes.iter().map(|(_, note)| note.node) {
            let failed = EngineError::lower(node.id);
            let Some((_, attr)) = self.noted_inode(&node)? else { continue };
            self.warm.let_go(node.id);
            let cell = self.cells.get(&node)?;
            let mut inner = cell.lock();
            if inner.machine.is_unknown() {
                self.reestablish(&cell, &mut inner)?;
            }
            if inner.record.names(key) {
                let named = NotKept::Named(self.where_is(&node));
                return Err(kept(if attr.nlink == 0 { NotKept::StillOpen } else { named }));
            }
            // A sync would wait for the lease of a release, and that for this lock.
            if inner.machine.activity() == Activity::Releasing {
                return Err(kept(NotKept::Deleting));
            }
            if inner.record.superseded.as_ref().is_some_and(|old| old.key == *key) {
                let mut record = inner.record.clone();
                record.superseded = None;
                self.lower.save_record(&node, &record.encode()).map_err(&failed)?;
                inner.record = record;
            }
            // The one without it must be what survives: it would note the object's deletion anew.
            self.lower.sync_node(&node).map_err(&failed)?;
        }
        let failed = EngineError::lower(self.lower.root().id);
        // The removals may be in memory only: a power loss would bring back files that name the object, too.
        self.lower.sync_all().map_err(&failed)
    }

    /// Step 3: the new inode is a stub of the object, durably.
    fn make_stub(&self, cell: &Cell, facts: &Facts, object: ObjectRef) -> EngineResult<()> {
        let failed = EngineError::lower(cell.node.id);
        let mut inner = cell.lock();
        if inner.machine != Machine::new(Claim::Resident, false) {
            return Err(EngineError::NotKept { object: object.key.to_string(), why: NotKept::Touched });
        }
        let node = &cell.node;
        let size = SetAttr { size: Some(object.len), uid: Some(facts.uid), gid: Some(facts.gid), ..SetAttr::default() };
        self.lower.set_attr(node, &size).map_err(&failed)?;
        kill::point("undelete.sized");
        let record = Record {
            claim: Claim::Stub,
            generation: object.generation,
            object: Some(object.clone()),
            ..Record::unclaimed()
        };
        self.lower.save_record(node, &record.encode()).map_err(&failed)?;
        let mtime = Some(SetTime::At(object.mtime));
        let rest = SetAttr { mode: Some(facts.mode), mtime, ..SetAttr::default() };
        self.lower.set_attr(node, &rest).map_err(&failed)?;
        // After owner and mode, which would take a capability, or change an ACL.
        for (name, value) in facts.xattrs.iter().flatten() {
            self.lower.set_xattr(node, OsStr::from_bytes(name), value, 0).map_err(&failed)?;
        }
        self.lower.sync_node(node).map_err(&failed)?;
        inner.record = record;
        inner.machine = Machine::new(Claim::Stub, false);
        Ok(())
    }

    /// Finds a directory relative to the share; missing ones are made if asked for, for root alone.
    pub fn directory(&self, path: &std::path::Path, make: bool) -> EngineResult<Inode> {
        let mut dir = self.lower.root();
        for name in path.components().map(|part| part.as_os_str()) {
            let failed = EngineError::lower(dir.id);
            dir = match self.lower.lookup(&dir, name) {
                Ok((node, _)) => node,
                Err(error) if error.errno() == libc::ENOENT && make => {
                    let (node, _) =
                        self.lower.make(&dir, name, NewNode::Directory, 0o700, &OURSELVES).map_err(&failed)?;
                    self.lower.sync_node(&dir).map_err(&failed)?;
                    self.announce_name(dir.id, name);
                    node
                }
                Err(error) => return Err(failed(error)),
            };
        }
        Ok(dir)
    }
}
