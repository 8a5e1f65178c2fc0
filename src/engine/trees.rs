//! Trees: what the store has of each directory but the content of its files, so that the share can be made again from the bucket.
//!
//! A tree is stored with every pair of the mount, so that each bucket has all names, when it differs from the one stored there last, which an attribute
//! of the directory tells. Invariant: a tree is never replaced and never the only copy of anything; the newest complete one of a directory stays as long
//! as the directory does.
//! Memory goes by a part, not by the directory.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::choices::policy_for_tree;
use super::error::{EngineError, EngineResult};
use super::intents::is_gone;
use super::source::MemorySource;
use super::{Engine, Target, blocking};
use crate::ports::{Attr, FileKind, Lower, LowerError, LowerResult, RemoteErrorKind, if_set};
use crate::tree::{Attributes, Entry, Kind, PART_ENTRIES_MAX, PLACE, Part, PartKey};
use crate::types::{ContentHash, Generation, Inode, ObjectKey, STAGING_NAME, Timestamp};

/// On a directory, what was stored of it last. Hidden by the mount.
const TREE_XATTR: &str = "trusted.tierfs.tree";
/// Parts read ahead of their upload.
const PARTS_AHEAD: usize = 2;

/// A pair's place ([`Target::place_id`]).
type PlaceId = [u8; 8];

/// What is known of the tree stored last.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    hash: ContentHash,
    /// Where it is, and as which generation. Not said by older versions, which had one place only: then it is in any.
    places: Vec<(Option<PlaceId>, Generation)>,
}

impl Known {
    fn encode(&self) -> Vec<u8> {
        let mut encoded = [&b"2"[..], &self.hash.0].concat();
        for (place, generation) in &self.places {
            encoded.extend(place.unwrap_or_default());
            encoded.extend(generation.0.to_be_bytes());
        }
        encoded
    }

    fn decode(stored: &[u8]) -> Option<Self> {
        if let Some(rest) = stored.strip_prefix(b"1") {
            let (generation, hash) = rest.split_first_chunk()?;
            let generation = Generation(u64::from_be_bytes(*generation));
            return Some(Self { hash: ContentHash(hash.try_into().ok()?), places: vec![(None, generation)] });
        }
        let (hash, places) = stored.strip_prefix(b"2")?.split_first_chunk()?;
        let (places, []) = places.as_chunks::<16>() else { return None };
        let place = |place: &[u8; 16]| {
            let (id, generation) = place.split_first_chunk::<8>()?;
            Some((Some(*id), Generation(u64::from_be_bytes(generation.try_into().ok()?))))
        };
        Some(Self { hash: ContentHash(*hash), places: places.iter().map(place).collect::<Option<_>>()? })
    }

    /// The generation of the tree that a place has, of `places` that the mount has now.
    fn in_place(&self, id: PlaceId, places: usize) -> Option<Generation> {
        let is_there = |place: &Option<PlaceId>| place.map_or(places == 1, |place| place == id);
        self.places.iter().find(|(place, _)| is_there(place)).map(|(_, generation)| *generation)
    }

    fn newest(&self) -> Generation {
        self.places.iter().map(|(_, generation)| *generation).max().unwrap_or_default()
    }
}

/// Whether an attribute is the file's own: no record, nothing that another machine would not understand.
pub fn travels(name: &OsStr) -> bool {
    let name = name.as_bytes();
    // On XFS, ACLs have these names as well.
    let ours = [&b"trusted.tierfs."[..], b"user.tierfs.", b"trusted.SGI_ACL_"];
    let ours = ours.iter().any(|prefix| name.starts_with(prefix));
    let wanted = [&b"user."[..], b"system.posix_acl_", b"trusted."].iter().any(|prefix| name.starts_with(prefix));
    !ours && (wanted || name == b"security.capability")
}

/// The attributes of an inode that travel, in order of their names.
pub fn travelling_xattrs(lower: &dyn Lower, node: &Inode) -> LowerResult<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = match lower.list_xattrs(node) {
        Err(error) if error.errno() == libc::EOPNOTSUPP => return Ok(Vec::new()),
        names => names?,
    };
    names.retain(|name| travels(name));
    names.sort();
    let mut found = Vec::with_capacity(names.len());
    for name in names {
        if let Some(value) = if_set(lower.xattr(node, &name))? {
            found.push((name.into_vec(), value));
        }
    }
    Ok(found)
}

fn attributes(lower: &dyn Lower, node: &Inode, attr: &Attr) -> LowerResult<Attributes> {
    Ok(Attributes {
        mode: attr.mode,
        uid: attr.uid,
        gid: attr.gid,
        atime: attr.atime,
        mtime: attr.mtime,
        xattrs: travelling_xattrs(lower, node)?,
    })
}

fn entry(lower: &dyn Lower, dir: &Inode, name: &OsStr) -> LowerResult<Entry> {
    let (node, attr) = lower.lookup(dir, name)?;
    let kind = match attr.kind {
        FileKind::Regular => Kind::Regular { size: attr.size, record: lower.load_record(&node)? },
        FileKind::Directory => Kind::Directory,
        FileKind::Symlink => Kind::Symlink { target: lower.read_link(&node)?.into_vec() },
        FileKind::Fifo => Kind::Fifo,
        FileKind::Socket => Kind::Socket,
        FileKind::CharDevice => Kind::CharDevice { device: attr.rdev },
        FileKind::BlockDevice => Kind::BlockDevice { device: attr.rdev },
    };
    let attributes = if kind == Kind::Directory { Attributes::default() } else { attributes(lower, &node, &attr)? };
    Ok(Entry { name: name.as_bytes().to_vec(), file: node.id, links: attr.nlink, kind, attributes })
}

/// Hands the parts of a directory's tree to `take` until it says `false`; the hash of them all.
fn read_parts(
    lower: &dyn Lower,
    dir: &Inode,
    generation: Generation,
    take: &mut dyn FnMut(Part) -> bool,
) -> LowerResult<ContentHash> {
    let mut own = attributes(lower, dir, &lower.stat(dir)?)?;
    own.xattrs.extend(policy_for_tree(lower, dir)?);
    let listing = lower.open_dir(dir)?;
    let (mut hashes, mut number, mut offset) = (Vec::new(), 0, 0);
    let mut entries = Vec::new();
    loop {
        let names = listing.read(offset)?;
        offset = names.last().map_or(offset, |last| last.next_offset);
        let last = names.is_empty();
        for found in names {
            if found.name == "." || found.name == ".." || (found.name == STAGING_NAME && *dir == lower.root()) {
                continue;
            }
            match entry(lower, dir, &found.name) {
                Ok(entry) => entries.push(entry),
                // Removed since the directory was read.
                Err(error) if matches!(error.errno(), libc::ENOENT | libc::ESTALE) => {}
                Err(error) => return Err(error),
            }
        }
        while last || entries.len() > PART_ENTRIES_MAX {
            let rest = entries.split_off(entries.len().min(PART_ENTRIES_MAX));
            let last = last && rest.is_empty();
            let (full, attributes) = (std::mem::replace(&mut entries, rest), own.clone());
            let part = Part { directory: dir.id, generation, number, last, attributes, entries: full };
            number += 1;
            hashes.extend_from_slice(&part.content_hash().0);
            if !take(part) || last {
                return Ok(ContentHash::of(&hashes));
            }
        }
    }
}

impl Engine {
    /// Stores a directory's tree with all pairs that have not got it as it is, or if asked to with all. Returns whether it did. An error: some pair has not got
    /// it; what others have is remembered.
    pub async fn save_tree(self: &Arc<Self>, dir: &Inode, always: bool) -> EngineResult<bool> {
        self.check_running()?;
        let places = self.places()?;
        let (lower, node) = (self.lower.clone(), *dir);
        let failed = EngineError::lower(dir.id);
        let (known, hash, only) = blocking(move || {
            let stored = if_set(lower.xattr(&node, OsStr::new(TREE_XATTR)))?;
            let known = stored.as_deref().and_then(Known::decode);
            let mut only = None;
            let hash = read_parts(&*lower, &node, Generation(0), &mut |part| {
                only = (part.number == 0 && part.last).then_some(part);
                true
            })?;
            Ok::<_, LowerError>((known, hash, only))
        })
        .await?
        .map_err(&failed)?;
        let (had, mut lacking): (Vec<_>, Vec<_>) = places.iter().partition(|place| {
            let there = known.as_ref().filter(|known| !always && known.hash == hash);
            there.is_some_and(|known| known.in_place(place.place_id(), places.len()).is_some())
        });
        if lacking.is_empty() {
            return Ok(false);
        }
        let generation = known.as_ref().map_or(Generation(0), Known::newest).after(self.clock.now());
        let share = self.lower.root().id;
        let mut problem = None;
        let mut put = async |part: Part| {
            let Part { directory, number, last, .. } = part;
            let name = PartKey { share, directory, generation, number, last }.to_name();
            let body = Bytes::from(part.encode());
            let mut left = Vec::new();
            for target in std::mem::take(&mut lacking) {
                let source = Arc::new(MemorySource(body.clone()));
                match target.remote.put(&target.own_key(&name), body.len() as u64, source, &[]).await {
                    Ok(_) => left.push(target),
                    // Another pair leads to the same place, unknown to both.
                    Err(error) if error.kind == RemoteErrorKind::Conflict && !left.is_empty() => left.push(target),
                    Err(error) => problem = problem.take().or(Some(EngineError::remote(directory)(error))),
                }
            }
            lacking = left;
            !lacking.is_empty()
        };
        let hash = match only {
            Some(part) => {
                put(Part { generation, ..part }).await;
                hash
            }
            None => {
                // Read once more rather than kept: it may be large.
                let (sender, mut parts) = mpsc::channel(PARTS_AHEAD);
                let lower = self.lower.clone();
                let reading = tokio::task::spawn_blocking(move || {
                    read_parts(&*lower, &node, generation, &mut |part| sender.blocking_send(part).is_ok())
                });
                while let Some(part) = parts.recv().await {
                    if !put(part).await {
                        break;
                    }
                }
                drop(parts);
                reading.await.map_err(|_| EngineError::ShuttingDown)?.map_err(&failed)?
            }
        };
        if !lacking.is_empty() {
            let mut now: Vec<_> = lacking.iter().map(|place| (Some(place.place_id()), generation)).collect();
            // Changed while it was read: what the others have is older then.
            if let Some(known) = known.filter(|known| known.hash == hash) {
                let of_place = |id: PlaceId| Some((Some(id), known.in_place(id, places.len())?));
                now.extend(had.iter().filter_map(|place| of_place(place.place_id())));
            }
            let known = Known { hash, places: now }.encode();
            let lower = self.lower.clone();
            // Not synced: if this is lost, the tree is stored once more.
            blocking(move || lower.set_xattr(&node, OsStr::new(TREE_XATTR), &known, 0)).await?.map_err(&failed)?;
        }
        problem.map_or(Ok(true), Err)
    }

    /// Deletes the trees of this share that nobody needs, with all pairs: of directories that are gone, and older ones, for longer than the pair's
    /// retention. To be called when all directories were gone through without a failure. Returns how many objects went, and the directories
    /// whose newest tree is not the one stored last: they are to be stored again.
    pub async fn prune_trees(self: &Arc<Self>) -> EngineResult<(u64, Vec<Inode>)> {
        let root = self.lower.root();
        let (mut pruned, mut again) = (0, Vec::new());
        if self.lower.by_number(root.id.ino).is_err() {
            // A filesystem where a number finds nothing: nobody could tell what is gone.
            return Ok((pruned, again));
        }
        for target in self.places()? {
            pruned += self.prune_place(&target, &mut again).await?;
        }
        again.sort_unstable_by_key(|dir: &Inode| (dir.id.ino, dir.id.birth));
        again.dedup();
        Ok((pruned, again))
    }

    async fn prune_place(&self, target: &Target, again: &mut Vec<Inode>) -> EngineResult<u64> {
        let root = self.lower.root();
        let place = format!("{PLACE}{}/", root.id);
        let (mut pruned, mut after) = (0, None);
        let mut group: Vec<(ObjectKey, PartKey)> = Vec::new();
        loop {
            let page = target.remote.list(&place, after.as_ref()).await.map_err(EngineError::remote(root.id))?;
            let end = page.is_empty();
            after = page.last().map(|(key, _)| key.clone()).or(after);
            let parts = page.into_iter().filter_map(|(key, _)| {
                let name = key.0.strip_prefix(target.prefix.as_str())?.trim_start_matches('/');
                Some((PartKey::of_name(name)?, key))
            });
            for (part, key) in parts {
                if group.first().is_some_and(|(_, first)| first.directory != part.directory) {
                    pruned += self.prune_group(target, std::mem::take(&mut group), again).await?;
                }
                group.push((key, part));
            }
            if end {
                return Ok(pruned + self.prune_group(target, group, again).await?);
            }
        }
    }

    /// All trees of one directory, oldest first.
    async fn prune_group(
        &self,
        target: &Target,
        group: Vec<(ObjectKey, PartKey)>,
        again: &mut Vec<Inode>,
    ) -> EngineResult<u64> {
        let Some((_, first)) = group.first() else { return Ok(0) };
        let id = first.directory;
        let places = self.places()?.len();
        let now = Generation(0).after(self.clock.now()).0;
        let limit = Generation(now.saturating_sub(self.retention_in(target).saturating_mul(1_000_000)));
        let known = match self.lower.by_number(id.ino) {
            Ok((node, attr)) if node.id == id && attr.nlink > 0 => {
                let stored = if_set(self.lower.xattr(&node, OsStr::new(TREE_XATTR)));
                let stored = stored.map_err(EngineError::lower(id))?;
                let known = stored.as_deref().and_then(Known::decode);
                let known = known.and_then(|known| known.in_place(target.place_id(), places));
                let newest = group.last().map(|(_, part)| part.generation);
                if known != newest {
                    // An attribute that was lost or came from a backup: the next tree is the newest again, and this one older.
                    again.push(node);
                    return Ok(0);
                }
                known
            }
            Ok(_) => None,
            Err(error) if is_gone(&error) => None,
            Err(error) => return Err(EngineError::lower(id)(error)),
        };
        let mut pruned = 0;
        for (n, (key, part)) in group.iter().enumerate() {
            // Replaced when the next one was stored; of a directory that is gone, nobody knows since when, so its own time counts.
            let next = group[n..].iter().map(|(_, next)| next.generation).find(|next| *next > part.generation);
            let since = next.unwrap_or(part.generation);
            if Some(part.generation) == known || since >= limit {
                continue;
            }
            target.remote.delete(key).await.map_err(EngineError::remote(id))?;
            pruned += 1;
        }
        Ok(pruned)
    }
}

/// When a tree was stored, as its generation tells.
pub fn stored_at(generation: Generation) -> Timestamp {
    Timestamp { secs: (generation.0 / 1_000_000) as i64, nanos: (generation.0 % 1_000_000) as u32 * 1_000 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_where_is_remembered() {
        let hash = ContentHash::of(b"x");
        let known = Known { hash, places: vec![(Some([1; 8]), Generation(7)), (Some([2; 8]), Generation(9))] };
        let stored = known.encode();
        assert_eq!(Known::decode(&stored), Some(known.clone()));
        for cut in 0..stored.len() {
            let whole = (cut + 15).is_multiple_of(16) && cut > 32;
            assert_eq!(Known::decode(&stored[..cut]).is_some(), whole, "{cut}");
        }
        let there = |id: u8| known.in_place([id; 8], 2).map(|generation| generation.0);
        assert_eq!([there(1), there(2), there(3)], [Some(7), Some(9), None]);
        assert_eq!(known.newest(), Generation(9));
        // An older version had one place, whichever that was: it is believed while there is one.
        let old = Known::decode(&[&b"1"[..], &5u64.to_be_bytes(), &hash.0].concat()).unwrap();
        assert_eq!((old.hash, old.in_place([3; 8], 1), old.in_place([3; 8], 2)), (hash, Some(Generation(5)), None));
    }
}
