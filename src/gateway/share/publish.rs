//! How new content takes its key's place.
//!
//! 1. The content is written to a file without a name, made in the directory it is for (so owner, group, default ACL and project are
//!    right), by the user and within the user's quota.
//! 2. It gets a name in the staging directory, which nobody sees; then what the old file hands on: owner, mode, ACL, pin, and a generation
//!    above the old one's. With its metadata it is made durable.
//! 3. One rename puts it in place, as the user. Where it takes the place of a file, that is a removal through [`Fs`]: the deletion of the
//!    old content's object is noted before.
//!
//! A crash before 3 leaves a name in the staging directory, for the next start to remove; one after it, the new object.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use super::acting::{ATTEMPTS, Acting, Way};
use super::error::About;
use super::key::Key;
use super::meta::{self, Meta};
use super::staging::Staged;
use super::to_the_end;
use crate::engine::{NewHold, OwnerHold};
use crate::fs::{Fs, FsError, FsResult, Noted};
use crate::gateway::blocking;
use crate::gateway::store::{Condition, ObjectInfo, Seal, StoreError, StoreResult, Upload, UploadId};
use crate::kill;
use crate::lower::{Dir, Seen};
use crate::ports::{Attr, Lower, LowerError, LowerFile, RenameMode, SetAttr};
use crate::record::{Claim, PeerState, Phase, Record};
use crate::types::{Inode, STAGING_NAME};

const FILE_MODE: u32 = 0o666;
const ACL: &str = "system.posix_acl_access";

/// A file that is to become an object.
#[derive(Clone)]
pub struct NewFile {
    pub node: Inode,
    pub file: Arc<dyn LowerFile>,
    /// As it was made.
    born: Attr,
}

impl Acting {
    /// Begins an object. Whether the user may is found out now, before a long upload.
    pub fn begin(&self, key: Key) -> StoreResult<Box<dyn Upload>> {
        self.check_writable()?;
        self.replaced(&key)?;
        if key.is_dir {
            return Ok(Box::new(DirectoryUpload { acting: self.clone(), key }));
        }
        let new = self.new_file(&key)?;
        Ok(Box::new(FileUpload { acting: self.clone(), key, new, at: 0 }))
    }

    pub fn new_file(&self, key: &Key) -> StoreResult<NewFile> {
        let dir = self.nearest(key.dir(), key)?;
        let (node, file) = self.share().create_unnamed_as(self.user(), &dir, FILE_MODE).about(key.as_str())?;
        let born = file.stat().about(key.as_str())?;
        Ok(NewFile { node, file, born })
    }

    /// A file in the gateway's own directory.
    pub fn unnamed_in(&self, dir: &Dir) -> StoreResult<NewFile> {
        let (node, file) = self.share().create_unnamed_as(self.user(), dir, 0o600).about(STAGING_NAME)?;
        let born = file.stat().about(STAGING_NAME)?;
        Ok(NewFile { node, file, born })
    }

    /// Makes `new` the object `key`.
    pub async fn install(
        self,
        key: Key,
        new: NewFile,
        seal: Seal,
        part_sizes: Vec<u64>,
        upload: Option<UploadId>,
    ) -> StoreResult<Arc<ObjectInfo>> {
        let _lock = self.shared.lock(&[&key]).await;
        let (acting, file) = (self.clone(), new.file.clone());
        let mut staged = blocking(move || acting.stage_file(&*file)).await?;
        let held = Arc::new(self.hold_replaced(&key).await?);
        kill::point("peer.put.held");
        for _ in 0..ATTEMPTS {
            let (acting, for_key, file, sealed) = (self.clone(), key.clone(), new.clone(), seal.clone());
            let (sizes, id, old) = (part_sizes.clone(), upload.clone(), held.clone());
            let place = blocking(move || {
                let place = acting.place(&for_key, &sealed.condition)?;
                acting.dress(&for_key, &file, place.replaced.as_ref(), old.as_ref().as_ref())?;
                let attr = file.file.stat().about(for_key.as_str())?;
                let meta = Meta::new(&sealed, &sizes, id, &attr);
                meta.save(acting.share(), &file.node)?;
                acting.shared.fs.to_be_written(&file.node).about(for_key.as_str())?;
                file.file.sync(false).about(for_key.as_str())?;
                Ok((place, meta.info(for_key.as_str().to_owned(), &file.node, &attr, true)))
            });
            let (place, info) = place.await?;
            let fresh = self.hold_new(&key, new.node, held.is_some()).await?;
            if self.put_in_place(&key, (&staged, new.node), &place).await? {
                staged.moved();
                kill::point("peer.put.placed");
                self.known_by_peer(new.node).await;
                let finished = self.finished(&key, place.way).await;
                match fresh {
                    Some(fresh) if finished.is_err() => fresh.keep_for_good(),
                    durable => drop(durable),
                }
                finished?;
                kill::point("peer.put.durable");
                return Ok(Arc::new(info));
            }
        }
        Err(StoreError::Unavailable(format!("{}: it is being replaced too often", key.as_str())))
    }

    /// What the pair's other side has, too, must be this side's before it is replaced, and stay so until it is.
    async fn hold_replaced(&self, key: &Key) -> StoreResult<Option<OwnerHold>> {
        let (acting, for_key) = (self.clone(), key.clone());
        let Some(old) = blocking(move || acting.replaced(&for_key)).await? else { return Ok(None) };
        let engine = &self.shared.fs.engine;
        match engine.cells.get(&old.node) {
            // Damaged, or gone: nothing of it is handed on.
            Err(_) => Ok(None),
            Ok(cell) => engine.hold_owner(&cell).await.map_err(FsError::from).about(key.as_str()),
        }
    }

    /// Keeps what is to take the place of a file that the pair's other side has, too, until its name is durable.
    async fn hold_new(&self, key: &Key, node: Inode, paired: bool) -> StoreResult<Option<NewHold>> {
        if !paired {
            return Ok(None);
        }
        let (engine, about) = (self.shared.fs.engine.clone(), key.as_str().to_owned());
        blocking(move || engine.hold_new(&node).map_err(FsError::from).about(&about)).await
    }

    /// Where an object goes, if `condition` holds of what is there.
    pub fn place(&self, key: &Key, condition: &Condition) -> StoreResult<Place> {
        let replaced = self.replaced(key)?;
        let etag = match &replaced {
            Some(seen) => {
                let attr = self.shared.fs.attr_of(&seen.node).about(key.as_str())?;
                Some(meta::info_of(self.share(), key.as_str(), &seen.node, &attr, true).etag)
            }
            None => None,
        };
        condition.check(key.as_str(), etag.as_deref())?;
        Ok(Place { way: self.make_way(key.dir(), key)?, replaced })
    }

    /// Hands on to `new` what a write to the old file would have left as it was: owner, group, mode, ACL and the pin. Set-id bits go, as with
    /// a write. The generation rises.
    fn dress(&self, key: &Key, new: &NewFile, old: Option<&Seen>, held: Option<&OwnerHold>) -> StoreResult<()> {
        let (share, now) = (self.share(), new.file.stat().about(key.as_str())?);
        let wanted = old.map_or(&new.born, |old| &old.attr);
        if (now.uid, now.gid) != (wanted.uid, wanted.gid) {
            share.give(&*new.file, wanted.uid, wanted.gid).about(key.as_str())?;
        }
        let Some(old) = old else {
            if now.mode != new.born.mode {
                let mode = SetAttr { mode: Some(new.born.mode), ..Default::default() };
                share.set_attr(&new.node, &mode).about(key.as_str())?;
            }
            return Ok(());
        };
        let acl = OsStr::new(ACL);
        match share.xattr(&old.node, acl) {
            Ok(value) => share.set_xattr(&new.node, acl, &value, 0),
            Err(_) => share.remove_xattr(&new.node, acl).or_else(|error| match error.errno() {
                libc::ENODATA | libc::EOPNOTSUPP => Ok(()),
                _ => Err(error),
            }),
        }
        .about(key.as_str())?;
        let mode = SetAttr { mode: Some(old.attr.mode & 0o1777), ..Default::default() };
        share.set_attr(&new.node, &mode).about(key.as_str())?;
        let record = self.shared.fs.record_of(&old.node).about(key.as_str())?;
        let generation = record.generation.after(self.shared.fs.engine.now());
        let (flags, epoch) = (record.flags, record.epoch);
        let peer = match (&record.peer, held) {
            (None, _) => None,
            (Some(_), Some(held)) if held.file() == old.node.id => {
                // It is that file now, at both sides.
                let phase = Phase::Owner { published: false };
                Some(PeerState { here: new.node.id, phase, ..held.peer.clone() })
            }
            (Some(_), _) => {
                return Err(StoreError::Unavailable(format!("{}: it is being replaced just now", key.as_str())));
            }
        };
        let record = Record { claim: Claim::Resident, generation, flags, epoch, peer, ..Record::unclaimed() };
        share.save_record(&new.node, &record.encode()).about(key.as_str())
    }

    /// Renames `from` to `key`. `false`: what is there has changed meanwhile, and is to be looked at again.
    pub async fn put_in_place(
        &self,
        key: &Key,
        (from, node): (&impl Named, Inode),
        place: &Place,
    ) -> StoreResult<bool> {
        let (acting, for_key, to_dir, old) = (self.clone(), key.clone(), place.way.dir.clone(), place.replaced);
        let (from_dir, from_name) = from.named();
        let from_shown = from.is_shown();
        let rename = move |mode| -> Result<(), FsError> {
            let engine = &acting.shared.fs.engine;
            let (to_node, from_node) = (to_dir.node(), from_dir.node());
            let change = acting.shared.fs.changing([Some(&to_node), from_shown.then_some(&from_node)])?;
            let moving = engine.moving();
            let to = (&to_dir, for_key.name());
            acting.share().rename_as(acting.user(), (&from_dir, &from_name), to, mode)?;
            if let Some(change) = change {
                change.named(&to_node, for_key.name());
                if from_shown {
                    change.named(&from_node, &from_name);
                }
            }
            moving.done(|| Some(node));
            Ok(())
        };
        let Some(old) = old else {
            let renamed = blocking(move || Ok(rename(RenameMode::NoReplace))).await?;
            return match renamed {
                // Somebody took the name, or removed the directory that was empty still.
                Err(FsError::Lower(error)) if matches!(error.errno(), libc::EEXIST | libc::ENOENT) => Ok(false),
                renamed => renamed.map(|()| true).about(key.as_str()),
            };
        };
        let (acting, for_key, dir) = (self.clone(), key.clone(), place.way.dir.clone());
        let moved_on = Arc::new(AtomicBool::new(false));
        let told = moved_on.clone();
        // Under the lock of the old file: nothing of it may be asked that takes that lock.
        let attempt = move |fs: &Fs, noted: &Noted| {
            fs.try_remove_inside(&dir.node(), for_key.name(), noted, &|| {
                let now = acting.share().look_as(acting.user(), &dir, for_key.name());
                let same = |now: &Seen| {
                    let facts = |seen: &Seen| (seen.node, seen.attr.size, seen.attr.mtime);
                    facts(now) == facts(&old)
                };
                if !now.as_ref().is_ok_and(same) {
                    told.store(true, Ordering::SeqCst);
                    return Err(FsError::Stale);
                }
                rename(RenameMode::Replace)
            })
        };
        let removed = self.remove_through_fs(Arc::new(attempt)).await;
        self.shared.fs.engine.announce_change(old.node.id);
        match removed {
            Err(_) if moved_on.load(Ordering::SeqCst) => Ok(false),
            Err(FsError::Lower(error)) if error.errno() == libc::ENOENT => Ok(false),
            removed => removed.map(|()| true).about(key.as_str()),
        }
    }

    /// Carries a removal through: the first attempt, then the notes it needs, then again.
    pub async fn remove_through_fs(&self, attempt: Arc<dyn Attempt>) -> FsResult<()> {
        let (fs, first) = (self.shared.fs.clone(), attempt.clone());
        let removal = tokio::task::spawn_blocking(move || first(&fs, &Noted::default())).await;
        let removal = removal.map_err(|_| FsError::Engine(crate::engine::EngineError::ShuttingDown))?;
        match removal? {
            None => Ok(()),
            Some(removal) => {
                let fs = &self.shared.fs;
                fs.note_and_remove(removal, |noted| attempt(fs, noted)).await
            }
        }
    }

    /// Makes what was put in place durable, and known to the mount.
    pub async fn finished(&self, key: &Key, way: Way) -> StoreResult<()> {
        let (acting, for_key) = (self.clone(), key.clone());
        let synced = blocking(move || acting.finish(&way, for_key.name(), &for_key)).await;
        self.shared.fs.engine.announced().await;
        synced
    }
}

/// An attempt at a removal; `Some`: something is to be noted first.
pub trait Attempt: Fn(&Fs, &Noted) -> FsResult<Option<crate::fs::Removal>> + Send + Sync {}

impl<F: Fn(&Fs, &Noted) -> FsResult<Option<crate::fs::Removal>> + Send + Sync> Attempt for F {}

/// Where an object goes.
pub struct Place {
    pub way: Way,
    /// What is there now.
    pub replaced: Option<Seen>,
}

/// Something with a name that a rename begins at.
pub trait Named {
    fn named(&self) -> (Dir, std::ffi::OsString);
    /// Whether others than the gateway see it there.
    fn is_shown(&self) -> bool;
}

impl Named for Staged {
    fn named(&self) -> (Dir, std::ffi::OsString) {
        (self.dir.clone(), self.name.clone())
    }

    fn is_shown(&self) -> bool {
        false
    }
}

impl Named for (Dir, std::ffi::OsString) {
    fn named(&self) -> (Dir, std::ffi::OsString) {
        self.clone()
    }

    fn is_shown(&self) -> bool {
        true
    }
}

/// An object's content on its way in.
struct FileUpload {
    acting: Acting,
    key: Key,
    new: NewFile,
    at: u64,
}

#[async_trait]
impl Upload for FileUpload {
    fn write(&mut self, chunks: &[Bytes]) -> StoreResult<()> {
        append(&*self.new.file, &mut self.at, chunks).about(self.key.as_str())
    }

    async fn publish(self: Box<Self>, seal: Seal) -> StoreResult<Arc<ObjectInfo>> {
        let Self { acting, key, new, .. } = *self;
        acting.check_tags(&seal.tags)?;
        to_the_end(acting.install(key, new, seal, Vec::new(), None)).await
    }
}

/// Writes at the end.
pub fn append(file: &dyn LowerFile, at: &mut u64, chunks: &[Bytes]) -> Result<(), LowerError> {
    for chunk in chunks {
        file.write_at(chunk, *at)?;
        *at += chunk.len() as u64;
    }
    Ok(())
}

/// A key that ends with a slash: a directory that stays when it is empty.
struct DirectoryUpload {
    acting: Acting,
    key: Key,
}

#[async_trait]
impl Upload for DirectoryUpload {
    fn write(&mut self, chunks: &[Bytes]) -> StoreResult<()> {
        match chunks.iter().all(Bytes::is_empty) {
            true => Ok(()),
            false => {
                let key = self.key.as_str().to_owned();
                Err(StoreError::BadKey { key, why: "a key that ends with / is a directory, which has no content" })
            }
        }
    }

    async fn publish(self: Box<Self>, seal: Seal) -> StoreResult<Arc<ObjectInfo>> {
        let Self { acting, key } = *self;
        acting.check_tags(&seal.tags)?;
        to_the_end(acting.make_directory(key, seal)).await
    }
}

impl Acting {
    async fn make_directory(self, key: Key, seal: Seal) -> StoreResult<Arc<ObjectInfo>> {
        let acting = self;
        let _lock = acting.shared.lock(&[&key]).await;
        let (actor, for_key) = (acting.clone(), key.clone());
        let made = blocking(move || {
            let (acting, key) = (actor, for_key);
            let current = acting.replaced(&key)?;
            let info = current.as_ref().map(|seen| acting.info(&key, seen)).transpose()?;
            seal.condition.check(key.as_str(), info.as_ref().map(|info| info.etag.as_str()))?;
            let way = acting.make_way(&key.dir().join(key.name()), &key)?;
            let node = way.dir.node();
            meta::unset_implied(acting.share(), &node).about(key.as_str())?;
            let attr = acting.share().stat(&node).about(key.as_str())?;
            let meta = Meta::new(&seal, &[], None, &attr);
            meta.save(acting.share(), &node)?;
            Ok((way, meta.directory(key.as_str().to_owned(), &attr)))
        });
        let (way, info) = made.await?;
        acting.finished(&key, way).await?;
        Ok(Arc::new(info))
    }
}
