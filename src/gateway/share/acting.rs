//! One user at work on the share: finding what a key names, making directories, taking away those that nobody asked for.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;

use super::Shared;
use super::error::{About, is_absent};
use super::key::Key;
use super::meta;
use crate::gateway::identities::{Identity, Role};
use crate::gateway::store::{ObjectInfo, StoreError, StoreResult};
use crate::lower::{Access, Dir, Seen, Share};
use crate::ports::{FileKind, Lower, LowerError, User};
use crate::types::PairName;

/// Mode of directories that keys make, before the user's umask.
const DIR_MODE: u32 = 0o777;
/// How often something that came or went meanwhile is tried again.
pub const ATTEMPTS: usize = 16;

/// A user, with their rights and no others.
#[derive(Clone)]
pub struct Acting {
    pub shared: Arc<Shared>,
    who: Arc<Identity>,
}

/// A directory on the way to a key, and those that were made for it: where, and under which name.
pub struct Way {
    pub dir: Dir,
    pub made: Vec<(Dir, OsString)>,
}

impl Acting {
    pub fn new(shared: Arc<Shared>, who: Arc<Identity>) -> Self {
        Self { shared, who }
    }

    pub fn share(&self) -> &Share {
        &self.shared.share
    }

    pub fn user(&self) -> &User {
        &self.who.user
    }

    /// The pair whose other end asks, if it is one.
    pub fn peer_of(&self) -> Option<&PairName> {
        match &self.who.role {
            Role::Peer(pair) => Some(pair),
            Role::User => None,
        }
    }

    pub fn check_writable(&self) -> StoreResult<()> {
        if self.shared.fs.is_read_only() { Err(StoreError::ReadOnly) } else { Ok(()) }
    }

    /// What `key` names, whatever it is; `None`: nothing.
    pub fn look(&self, key: &Key) -> StoreResult<Option<(Dir, Seen)>> {
        let found = self.share().walk_as(self.user(), key.dir()).and_then(|dir| {
            let seen = self.share().look_as(self.user(), &dir, key.name())?;
            Ok((dir, seen))
        });
        match found {
            Err(error) if is_absent(&error) => Ok(None),
            found => found.map(Some).about(key.as_str()),
        }
    }

    /// The object that `key` names: a regular file, or a directory where the key ends with a slash.
    pub fn find(&self, key: &Key) -> StoreResult<(Dir, Seen)> {
        let wanted = if key.is_dir { FileKind::Directory } else { FileKind::Regular };
        let found = self.look(key)?.filter(|(_, seen)| seen.attr.kind == wanted);
        found.ok_or_else(|| StoreError::NoSuchKey(key.as_str().to_owned()))
    }

    /// As [`Acting::find`], for who wants to know more than that it is there.
    pub fn find_readable(&self, key: &Key) -> StoreResult<(Dir, Seen)> {
        let (dir, seen) = self.find(key)?;
        if seen.readable { Ok((dir, seen)) } else { Err(StoreError::Denied(key.as_str().to_owned())) }
    }

    /// The object as its reader sees it.
    pub fn info(&self, key: &Key, seen: &Seen) -> StoreResult<ObjectInfo> {
        let attr = self.shared.fs.attr_of(&seen.node).about(key.as_str())?;
        Ok(meta::info_of(self.share(), key.as_str(), &seen.node, &attr, seen.readable))
    }

    pub fn check_may_write(&self, key: &Key, seen: &Seen) -> StoreResult<()> {
        self.share().check_as(self.user(), &seen.node, Access::WRITE_OK).about(key.as_str())
    }

    /// What a new object would replace; an error if that is no object.
    pub fn replaced(&self, key: &Key) -> StoreResult<Option<Seen>> {
        let in_the_way = |why| Err(StoreError::InTheWay { key: key.as_str().to_owned(), why });
        let Some((_, seen)) = self.look(key)? else { return Ok(None) };
        match (seen.attr.kind, key.is_dir) {
            (FileKind::Regular, false) | (FileKind::Directory, true) => {}
            (FileKind::Directory, false) => return in_the_way("a directory has this name"),
            (FileKind::Regular, true) => return in_the_way("a file has this name"),
            _ => return in_the_way("something that is neither file nor directory has this name"),
        }
        self.check_may_write(key, &seen)?;
        Ok(Some(seen))
    }

    /// The deepest directory on the way to `path` that is there.
    pub fn nearest(&self, path: &Path, key: &Key) -> StoreResult<Dir> {
        let mut at = path;
        loop {
            match self.share().walk_as(self.user(), at) {
                Err(error) if error.errno() == libc::ENOENT => at = at.parent().unwrap_or(Path::new("")),
                found => return found.map_err(|error| not_a_way(error, key)),
            }
        }
    }

    /// The directory `path`, made with all above it where they are missing. Those made are marked: they go with the last key below.
    pub fn make_way(&self, path: &Path, key: &Key) -> StoreResult<Way> {
        let mut way =
            Way { dir: self.share().walk_as(self.user(), Path::new("")).about(key.as_str())?, made: Vec::new() };
        // At once where nothing is missing, which is usual.
        match self.share().walk_as(self.user(), path) {
            Ok(dir) => return Ok(Way { dir, ..way }),
            Err(error) if error.errno() == libc::ENOENT => {}
            Err(error) => return Err(not_a_way(error, key)),
        }
        let mut at = std::path::PathBuf::new();
        for name in path {
            at.push(name);
            way.dir = match self.share().walk_as(self.user(), &at) {
                Err(error) if error.errno() == libc::ENOENT => self.make_dir(&mut way, &at, name, key)?,
                found => found.map_err(|error| not_a_way(error, key))?,
            };
        }
        Ok(way)
    }

    fn make_dir(&self, way: &mut Way, path: &Path, name: &OsStr, key: &Key) -> StoreResult<Dir> {
        let above = way.dir.node();
        let change = self.shared.fs.changing([Some(&above), None]).about(key.as_str())?;
        match self.share().make_dir_as(self.user(), &way.dir, name, DIR_MODE) {
            Ok(dir) => {
                // Without the mark it only stays.
                let _ = meta::set_implied(self.share(), &dir.node());
                if let Some(change) = change {
                    change.born(&above, name, &dir.node());
                }
                way.made.push((way.dir.clone(), name.to_owned()));
                Ok(dir)
            }
            Err(error) if error.errno() == libc::EEXIST => {
                self.share().walk_as(self.user(), path).map_err(|error| not_a_way(error, key))
            }
            Err(error) => Err(error).about(key.as_str()),
        }
    }

    /// Makes names durable and tells the kernel of them.
    pub fn finish(&self, way: &Way, name: &OsStr, key: &Key) -> StoreResult<()> {
        let engine = &self.shared.fs.engine;
        for (dir, name) in &way.made {
            engine.announce_name(dir.node().id, name);
        }
        engine.announce_name(way.dir.node().id, name);
        let mut dirs = way.made.iter().map(|(dir, _)| dir).chain([&way.dir]);
        dirs.try_for_each(|dir| self.share().sync_node(&dir.node())).about(key.as_str())
    }

    /// Removes directories that only keys had made, from `path` upwards, as far as they are empty.
    pub fn prune(&self, path: &Path) {
        let mut at = path;
        while let (Some(name), Some(above)) = (at.file_name(), at.parent()) {
            let (Ok(dir), Ok(above_dir)) =
                (self.share().walk_as(self.user(), at), self.share().walk_as(self.user(), above))
            else {
                return;
            };
            let shown = above_dir.node();
            let Ok(change) = self.shared.fs.changing([Some(&shown), None]) else { return };
            // Not empty, or not theirs to remove: it stays.
            if !meta::is_implied(self.share(), &dir.node())
                || self.shared.fs.is_theirs(&dir.node()).unwrap_or(true)
                || self.share().remove_dir_as(self.user(), &above_dir, name).is_err()
            {
                return;
            }
            if let Some(change) = change {
                change.named(&shown, name);
            }
            self.shared.fs.engine.announce_name(above_dir.node().id, name);
            at = above;
        }
    }
}

/// Why there is no way to a key that is to be made.
fn not_a_way(error: LowerError, key: &Key) -> StoreError {
    let in_the_way = |why| StoreError::InTheWay { key: key.as_str().to_owned(), why };
    match error.errno() {
        libc::ENOTDIR => in_the_way("something on the way to it is no directory"),
        libc::ELOOP => in_the_way("a symbolic link is on the way to it"),
        _ => {
            let failed: StoreResult<()> = Err(error).about(key.as_str());
            failed.err().unwrap_or(StoreError::Closed)
        }
    }
}
