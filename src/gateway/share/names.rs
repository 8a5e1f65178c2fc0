//! Keys that go, and keys that become others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::acting::{ATTEMPTS, Acting};
use super::error::{About, THEIRS, is_absent};
use super::key::Key;
use crate::fs::{Fs, FsError, Noted};
use crate::gateway::blocking;
use crate::gateway::store::{Condition, EtagMatch, ObjectInfo, StoreError, StoreResult};
use crate::lower::{Dir, Seen};
use crate::ports::Lower;

impl Acting {
    /// Removes the object. A directory goes only if it is empty; else nothing happens, as the keys below it are still there.
    pub async fn remove(self, key: Key, if_match: Option<EtagMatch>) -> StoreResult<()> {
        self.check_writable()?;
        let _lock = self.shared.lock(&[&key]).await;
        for _ in 0..ATTEMPTS {
            let (acting, for_key, wanted) = (self.clone(), key.clone(), if_match.clone());
            let found = blocking(move || {
                let found = match acting.find(&for_key) {
                    Err(StoreError::NoSuchKey(_)) => None,
                    found => Some(found?),
                };
                if let Some(wanted) = wanted {
                    let info = found.as_ref().map(|(_, seen)| acting.info(&for_key, seen)).transpose()?;
                    let condition = Condition { if_match: Some(wanted), if_none_match: None };
                    condition.check(for_key.as_str(), info.as_ref().map(|info| info.etag.as_str()))?;
                }
                Ok(found)
            });
            let Some((dir, seen)) = found.await? else { return Ok(()) };
            if self.shared.fs.is_theirs(&seen.node).about(key.as_str())? {
                return Err(StoreError::InTheWay { key: key.as_str().to_owned(), why: THEIRS });
            }
            if key.is_dir {
                return self.remove_directory(key.clone(), dir).await;
            }
            if self.remove_file(&key, &dir, seen, if_match.is_some()).await? {
                return self.removed(key.clone(), dir).await;
            }
        }
        Err(StoreError::Unavailable(format!("{}: it is being replaced too often", key.as_str())))
    }

    /// `false`: it is another file now.
    async fn remove_file(&self, key: &Key, dir: &Dir, seen: Seen, exactly: bool) -> StoreResult<bool> {
        let (acting, for_key, in_dir) = (self.clone(), key.clone(), dir.clone());
        let moved_on = Arc::new(AtomicBool::new(false));
        let told = moved_on.clone();
        let attempt = move |fs: &Fs, noted: &Noted| {
            fs.try_remove_inside(&in_dir.node(), for_key.name(), noted, &|| {
                let now = acting.share().look_as(acting.user(), &in_dir, for_key.name())?;
                let changed = exactly && (now.attr.size, now.attr.mtime) != (seen.attr.size, seen.attr.mtime);
                if now.node != seen.node || changed {
                    told.store(true, Ordering::SeqCst);
                    return Err(FsError::Stale);
                }
                let node = in_dir.node();
                let change = acting.shared.fs.changing([Some(&node), None])?;
                acting.share().unlink_as(acting.user(), &in_dir, for_key.name())?;
                if let Some(change) = change {
                    change.named(&node, for_key.name());
                }
                Ok(())
            })
        };
        let removed = self.remove_through_fs(Arc::new(attempt)).await;
        self.shared.fs.engine.announce_change(seen.node.id);
        match removed {
            Err(_) if moved_on.load(Ordering::SeqCst) => Ok(false),
            // Somebody else removed it: it is gone, as was wanted.
            Err(FsError::Lower(error)) if error.errno() == libc::ENOENT => Ok(true),
            removed => removed.map(|()| true).about(key.as_str()),
        }
    }

    async fn remove_directory(&self, key: Key, dir: Dir) -> StoreResult<()> {
        let (acting, for_key, above) = (self.clone(), key.clone(), dir.clone());
        let removed = blocking(move || {
            let node = above.node();
            let change = acting.shared.fs.changing([Some(&node), None]).about(for_key.as_str())?;
            let removed = acting.share().remove_dir_as(acting.user(), &above, for_key.name());
            if let Some(change) = change {
                change.named(&node, for_key.name());
            }
            match removed {
                Err(error) if matches!(error.errno(), libc::ENOTEMPTY | libc::EEXIST) => Ok(()),
                Err(error) if is_absent(&error) => Ok(()),
                removed => removed.about(for_key.as_str()),
            }
        });
        removed.await?;
        self.removed(key, dir).await
    }

    /// The name is gone: durably, without the directories that were only there for it, and the mount is told.
    async fn removed(&self, key: Key, dir: Dir) -> StoreResult<()> {
        let acting = self.clone();
        let synced = blocking(move || {
            acting.shared.fs.engine.announce_name(dir.node().id, key.name());
            let synced = acting.share().sync_node(&dir.node()).about(key.as_str());
            acting.prune(key.dir());
            synced
        });
        let synced = synced.await;
        self.shared.fs.engine.announced().await;
        synced
    }

    /// Gives what has the key `from` the key `to`, in one step.
    pub async fn rename(self, from: Key, to: Key, condition: Condition) -> StoreResult<Arc<ObjectInfo>> {
        self.check_writable()?;
        if from.is_dir != to.is_dir {
            let key = to.as_str().to_owned();
            return Err(StoreError::BadKey { key, why: "both keys end with / (directories), or neither does" });
        }
        let _locks = self.shared.lock(&[&from, &to]).await;
        for _ in 0..ATTEMPTS {
            let (acting, source, target, wanted) = (self.clone(), from.clone(), to.clone(), condition.clone());
            let looked = blocking(move || {
                let (dir, seen) = acting.find(&source)?;
                if acting.shared.fs.is_theirs(&seen.node).about(source.as_str())? {
                    return Err(StoreError::InTheWay { key: source.as_str().to_owned(), why: THEIRS });
                }
                let info = acting.info(&source, &seen)?;
                if target.is_dir && target.as_str().starts_with(source.as_str()) {
                    let why = "a directory cannot be renamed into itself";
                    return Err(StoreError::InTheWay { key: target.as_str().to_owned(), why });
                }
                if target.is_dir && acting.look(&target)?.is_some() {
                    let why = "something has this name already";
                    return Err(StoreError::InTheWay { key: target.as_str().to_owned(), why });
                }
                let place = acting.place(&target, &wanted)?;
                if place.replaced.is_some_and(|old| old.node == seen.node) {
                    let why = "it is the same file already";
                    return Err(StoreError::InTheWay { key: target.as_str().to_owned(), why });
                }
                Ok((dir, seen, info, place))
            });
            let (dir, seen, info, place) = looked.await?;
            let source = (dir.clone(), from.name().to_owned());
            if self.put_in_place(&to, (&source, seen.node), &place).await? {
                // The new name first: a crash between the two syncs then leaves two names rather than none.
                self.finished(&to, place.way).await?;
                self.removed(from.clone(), dir).await?;
                return Ok(Arc::new(ObjectInfo { key: to.as_str().to_owned(), ..info }));
            }
        }
        Err(StoreError::Unavailable(format!("{}: it is being replaced too often", to.as_str())))
    }
}
