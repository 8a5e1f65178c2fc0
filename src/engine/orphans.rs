//! Objects that nobody names and nobody remembers, found by looking at the bucket and handed to the ordinary deletions.
//!
//! Nothing here may take an object that some file needs. What could go wrong, and what keeps it from doing so:
//!
//! * *An upload that runs.* Its note is in the journal from before its first byte until a durable record names the object (or a deletion is
//!   noted). So the journal is asked first, then the inode that the key names, then the journal again: between two states there is no moment
//!   in which neither knows the key. What is younger than the asked-for age is left alone anyway.
//! * *Two shares below one prefix.* Inode numbers and births of two filesystems may be equal. Each object carries the identity of the share
//!   that made it (`tierfs-share`: this journal on this root directory), and only our own are taken; others are counted, and taken only if
//!   the administrator names their identity.
//! * *A copy of the whole filesystem*, or a share made anew below the same path: its journal or its root is another, so its identity is.
//! * *A stub whose inode is not the one in its key*: restored from a backup, or made by a rebuild or an undelete. So before anything is noted,
//!   every record of the share is read (by the caller, see [`Engine::named_by`]), what was renamed meanwhile included ([`Engine::watch_moves`]).
//!   A record that cannot be read may name anything: then nothing is noted at all.
//! * *Several pairs.* Records, notes and inodes are asked by the key alone, so an object that is found with one pair and named by a record of another one
//!   stays; two pairs in one place are no danger (`places`).
//! * *A filesystem that cannot find an inode by its number*: refused.
//! * *A mistake all the same*: an orphan is not deleted but noted for deletion after the pair's retention, and looked at again then.
//!
//! What is not seen: stubs that exist in a backup only, and a second machine that works on a copy of the share together with its state
//! directory, which nothing tells from the first.

use std::collections::{HashMap, HashSet};

use futures::{StreamExt, TryStreamExt, stream};

use super::cell::stored_record;
use super::error::{EngineError, EngineResult};
use super::intents::is_gone;
use super::keys::parse_key;
use super::owner::is_shared;
use super::{Engine, Target, blocking};
use crate::ports::{IDENTITY, Intent, IntentKind, LowerError, RemoteErrorKind};
use crate::record::{MANIFEST_SUFFIX, Record, manifest_key};
use crate::types::{ContentHash, FileId, Generation, Inode, ObjectKey, Timestamp};

/// Name of the metadata that says which share made an object.
pub(super) const SHARE_METADATA: &str = "tierfs-share";
/// What is ours below a prefix and no file's object: left to whoever makes it.
const RESERVED: &str = ".tierfs";
/// Objects asked for their share at a time.
const HEADS: usize = 16;

/// Which objects may be taken.
#[derive(Clone, Debug, Default)]
pub struct OrphanRules {
    /// Nothing made after this is looked at.
    pub made_before: Timestamp,
    /// Identities of shares whose objects count as ours.
    pub adopted: HashSet<String>,
    /// Objects that carry no identity count as ours.
    pub adopt_unmarked: bool,
}

/// An object that seems to be nobody's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// Without a manifest's suffix.
    pub key: ObjectKey,
    pub file: FileId,
    pub generation: Generation,
    /// Of object and manifest together.
    pub bytes: u64,
    /// The inode, where it is there still.
    node: Option<Inode>,
}

/// What became of a listed key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kept {
    /// No object of a file by its key.
    Foreign,
    Young,
    /// A note is about it.
    Noted,
    /// Its file names it.
    Named,
    /// Its file's record cannot be read.
    Unreadable,
    /// Its file is there and does not name it, but others were seen to use its objects, and no note deletes these.
    Shared,
    /// Of the share with this identity.
    OfShare(String),
    /// It carries no identity.
    Unmarked,
}

/// One page of the bucket.
#[derive(Debug, Default)]
pub struct Page {
    pub orphans: Vec<Orphan>,
    /// Objects and bytes.
    pub kept: HashMap<Kept, (u64, u64)>,
    /// Where the next page begins; `None`: this was the last.
    pub next: Option<ObjectKey>,
}

impl Page {
    fn keep(&mut self, why: Kept, bytes: u64) {
        let sum = self.kept.entry(why).or_default();
        sum.0 += 1;
        sum.1 += bytes;
    }
}

/// What a key says of its object: the object's own key, and whose content of when it is.
fn parse(prefix: &str, key: &ObjectKey) -> Option<(ObjectKey, FileId, Generation)> {
    let object = ObjectKey(key.0.strip_suffix(MANIFEST_SUFFIX).unwrap_or(&key.0).to_owned());
    let parts = parse_key(prefix, &object)?;
    (!parts.name.starts_with(RESERVED)).then_some((object, parts.file, parts.generation))
}

/// What an inode says of an object.
enum Inquiry {
    Names,
    Shared,
    Silent(Inode),
    Gone,
}

impl Engine {
    /// Tells the objects of this share from those of others: 16 hexadecimal digits for this journal on this root directory.
    pub async fn share_id(&self) -> EngineResult<&str> {
        let make = || async {
            let journal = self.journal.value(IDENTITY).await?.unwrap_or_default();
            let root = self.lower.root().id;
            Ok::<_, EngineError>(ContentHash::of(format!("{journal} {root}").as_bytes()).to_string()[..16].to_owned())
        };
        Ok(self.share_id.get_or_try_init(make).await?)
    }

    /// Whether orphans can be told at all; the reason if not.
    pub fn check_collectable(&self) -> EngineResult<Result<(), &'static str>> {
        self.store()?;
        let root = self.lower.root();
        Ok(match self.lower.by_number(root.id.ino) {
            Ok((found, _)) if found.id == root.id => Ok(()),
            _ => Err(
                "its filesystem finds no inode by its number, so nobody can tell whose an object is (ext4 and xfs do)",
            ),
        })
    }

    /// Looks at one page of a pair's bucket. What it calls orphans is so by the journal, the inode in the key and the object's mark; the share's
    /// other records are the caller's to look at.
    pub async fn orphan_page(
        &self,
        target: &Target,
        after: Option<&ObjectKey>,
        rules: &OrphanRules,
    ) -> EngineResult<Page> {
        let failed = EngineError::remote(self.lower.root().id);
        let listed = target.remote.list("", after).await.map_err(&failed)?;
        let mut page = Page { next: listed.last().map(|(key, _)| key.clone()), ..Page::default() };
        let mut found: HashMap<ObjectKey, Orphan> = HashMap::new();
        let made_before = Generation::default().after(rules.made_before);
        for (key, bytes) in listed {
            match parse(&target.prefix, &key) {
                _ if self.is_of_another(target, &key) => {}
                None => page.keep(Kept::Foreign, bytes),
                Some((_, _, generation)) if generation >= made_before => page.keep(Kept::Young, bytes),
                Some((object, file, generation)) => {
                    let orphan = Orphan { key: object.clone(), file, generation, bytes: 0, node: None };
                    found.entry(object).or_insert(orphan).bytes += bytes;
                }
            }
        }
        let left = self.unnamed(found.into_values().collect(), &mut page).await?;
        let heads = stream::iter(left).map(|orphan| async move {
            let share = self.made_by(target, &orphan.key).await?;
            Ok::<_, EngineError>((orphan, share))
        });
        let left: Vec<(Orphan, Option<Option<String>>)> = heads.buffer_unordered(HEADS).try_collect().await?;
        let ours = self.share_id().await?;
        for (orphan, share) in left {
            match share {
                // Gone meanwhile.
                None => {}
                Some(Some(share)) if share == ours || rules.adopted.contains(&share) => page.orphans.push(orphan),
                // What others wrote there is not believed to be short, or one of few.
                Some(Some(share)) if share.len() != ours.len() => page.keep(Kept::Foreign, orphan.bytes),
                Some(Some(share)) => page.keep(Kept::OfShare(share), orphan.bytes),
                Some(None) if rules.adopt_unmarked => page.orphans.push(orphan),
                Some(None) => page.keep(Kept::Unmarked, orphan.bytes),
            }
        }
        page.orphans.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(page)
    }

    /// Those that neither a note nor their own inode names.
    async fn unnamed(&self, found: Vec<Orphan>, page: &mut Page) -> EngineResult<Vec<Orphan>> {
        let found = self.unnoted(found, page).await?;
        let (lower, cells) = (self.lower.clone(), self.cells.clone());
        let asked = blocking(move || {
            let ask = |orphan: Orphan| {
                let said = inquire(&*lower, &cells, orphan.file, &orphan.key);
                (orphan, said)
            };
            found.into_iter().map(ask).collect::<Vec<_>>()
        });
        let mut left = Vec::new();
        for (orphan, said) in asked.await? {
            match said {
                Ok(Inquiry::Gone) => left.push(Orphan { node: None, ..orphan }),
                Ok(Inquiry::Silent(node)) => left.push(Orphan { node: Some(node), ..orphan }),
                Ok(Inquiry::Names) => page.keep(Kept::Named, orphan.bytes),
                Ok(Inquiry::Shared) => page.keep(Kept::Shared, orphan.bytes),
                Err(error) => {
                    tracing::warn!(object = %orphan.key, "kept, for its file cannot be asked: {error}");
                    page.keep(Kept::Unreadable, orphan.bytes);
                }
            }
        }
        self.unnoted(left, page).await
    }

    async fn unnoted(&self, found: Vec<Orphan>, page: &mut Page) -> EngineResult<Vec<Orphan>> {
        let noted = self.journal.names_keys(found.iter().map(|orphan| orphan.key.clone()).collect()).await?;
        let mut left = Vec::new();
        for (orphan, noted) in found.into_iter().zip(noted) {
            if noted { page.keep(Kept::Noted, orphan.bytes) } else { left.push(orphan) }
        }
        Ok(left)
    }

    /// Which share an object says it was made by; `Some(None)`: it does not say. `None`: it is not there. Of an object that is gone its
    /// manifest is asked.
    async fn made_by(&self, target: &Target, key: &ObjectKey) -> EngineResult<Option<Option<String>>> {
        for key in [key, &manifest_key(key)] {
            match target.remote.head(key).await {
                Ok(info) => {
                    let mark = info.metadata.into_iter().find(|(name, _)| name == SHARE_METADATA);
                    return Ok(Some(mark.map(|(_, share)| share)));
                }
                Err(error) if error.kind == RemoteErrorKind::NotFound => {}
                Err(error) => return Err(EngineError::remote(self.lower.root().id)(error)),
            }
        }
        Ok(None)
    }

    /// The objects that a file's record names. An error: it cannot be read, or nobody knows which one is on the disk, so it may name any.
    pub fn named_by(&self, node: &Inode) -> EngineResult<Vec<ObjectKey>> {
        if self.cells.live(node.id).is_some_and(|cell| cell.lock().machine.is_unknown()) {
            let error =
                LowerError::from_errno("a sync of its record failed, so either of two may be durable", libc::EIO);
            return Err(EngineError::lower(node.id)(error));
        }
        record_of(&*self.lower, &self.cells, node).map(|record| {
            let object = record.object.map(|object| object.key);
            object.into_iter().chain(record.superseded.map(|old| old.key)).collect()
        })
    }

    /// Notes orphans in a pair's bucket for deletion after its retention, those that are still nobody's. Returns these.
    pub async fn note_orphans(&self, target: &Target, orphans: Vec<Orphan>) -> EngineResult<Vec<Orphan>> {
        let orphans = self.unnamed(orphans, &mut Page::default()).await?;
        let now = self.clock.now();
        let kept_s = i64::try_from(self.retention_in(target)).unwrap_or(i64::MAX);
        let not_before = Timestamp { secs: now.secs.saturating_add(kept_s), ..now };
        let root = self.lower.root();
        let notes = orphans.iter().map(|orphan| {
            // An inode that is gone has no handle. That of the root leads to another inode, which the deletion takes for the same.
            let node = orphan.node.unwrap_or(Inode { id: orphan.file, handle: root.handle });
            let kind = IntentKind::Delete { not_before };
            let (pair, key) = (target.pair.name.clone(), orphan.key.clone());
            self.journal.add(Intent { pair, key, manifest: true, node, kind })
        });
        for noted in futures::future::join_all(notes).await {
            noted?;
        }
        self.deletions.notify_one();
        Ok(orphans)
    }

    /// Uploads of many parts that were begun for keys of ours, are over the age and that no note is about. They hold no content that
    /// anybody could read, and no record ever named them.
    pub async fn abandoned_uploads(&self, target: &Target, rules: &OrphanRules) -> EngineResult<Vec<ObjectKey>> {
        let keys = target.remote.unfinished_uploads().await.map_err(EngineError::remote(self.lower.root().id))?;
        let made_before = Generation::default().after(rules.made_before);
        let old = keys.into_iter().filter_map(|key| {
            let (object, _, generation) = parse(&target.prefix, &key)?;
            (generation < made_before && !self.is_of_another(target, &key)).then_some((key, object))
        });
        let (keys, objects): (Vec<_>, Vec<_>) = old.unzip();
        let noted = self.journal.names_keys(objects).await?;
        Ok(keys.into_iter().zip(noted).filter_map(|(key, noted)| (!noted).then_some(key)).collect())
    }

    /// Ends a pair's uploads of a key.
    pub async fn end_uploads(&self, target: &Target, key: &ObjectKey) -> EngineResult<()> {
        target.remote.end_uploads(key).await.map_err(EngineError::remote(self.lower.root().id))
    }
}

/// A file's record as it is, not judged: what memory knows, or what is stored.
pub(super) fn record_of(lower: &dyn crate::ports::Lower, cells: &super::Cells, node: &Inode) -> EngineResult<Record> {
    let stored = || Ok(stored_record(lower, node)?.unwrap_or_else(Record::unclaimed));
    match cells.unless_live(node.id, stored) {
        Ok(record) => record,
        Err(cell) => Ok(cell.lock().record.clone()),
    }
}

fn inquire(
    lower: &dyn crate::ports::Lower,
    cells: &super::Cells,
    file: FileId,
    key: &ObjectKey,
) -> EngineResult<Inquiry> {
    let find = || match lower.by_number(file.ino) {
        Ok((node, attr)) if attr.nlink == 0 => {
            // Perhaps it only lives by a descriptor of ours, which this lets go of.
            let _ = lower.stat(&node);
            lower.by_number(file.ino)
        }
        found => found,
    };
    let node = match find() {
        Ok((node, _)) if node.id == file => node,
        Ok(_) => return Ok(Inquiry::Gone),
        Err(error) if is_gone(&error) => return Ok(Inquiry::Gone),
        Err(error) => return Err(EngineError::lower(file)(error)),
    };
    if let Some(cell) = cells.live(node.id)
        && cell.lock().machine.is_unknown()
    {
        return Ok(Inquiry::Names);
    }
    let record = record_of(lower, cells, &node)?;
    let superseded = record.superseded.as_ref().is_some_and(|old| old.key == *key);
    Ok(match record.names(key) || superseded {
        true => Inquiry::Names,
        false if is_shared(lower, &node).map_err(EngineError::lower(file))? => Inquiry::Shared,
        false => Inquiry::Silent(node),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_that_we_write_are_ours() {
        let id = |text: &str| {
            let found = parse("pre", &ObjectKey(text.into()));
            found.map(|(key, file, generation)| (key.0, file.ino, file.birth, generation.0))
        };
        let ours = Some(("pre/a/b@1f-a.64".to_owned(), 31, 10, 100));
        assert_eq!(id("pre/a/b@1f-a.64"), ours);
        assert_eq!(id("pre/a/b@1f-a.64.manifest"), ours);
        assert_eq!(id("pre/mail@x@1f-a.64").map(|found| found.1), Some(31));
        for foreign in [
            "pre/a",
            "pre/@1f-a.64",
            "other/a@1f-a.64",
            "prefix/a@1f-a.64",
            "pre/a@1f-a",
            "pre/a@1f.64",
            "pre/a@01f-a.64",
            "pre/a@1F-a.64",
            "pre/a@+1f-a.64",
            "pre/a@1f-a.64.manifest.manifest",
            "pre/a@1f-a.64.old",
            "pre/a@10000000000000000-a.64",
            "pre/.tierfs/tree@1f-a.64",
            "pre/.tierfs-probe-1@1f-a.64",
            "pre/.tierfs-bench-1@1f-a.64",
            "pre/a@1f-a.64/b",
        ] {
            assert_eq!(id(foreign), None, "{foreign}");
        }
        assert!(parse("", &ObjectKey("a@1f-a.64".into())).is_some());
        assert!(parse("", &ObjectKey("/a@1f-a.64".into())).is_some());
    }
}
