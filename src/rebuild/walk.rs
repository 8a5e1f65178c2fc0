//! The way down the trees: directories many at a time, each as its tree tells.
//!
//! Directories get their own attributes at the end, deepest last, when nothing more is made in any.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::task::JoinSet;

use super::listing::{Candidate, StoredTree, Trees};
use super::make::{Content, Made};
use super::{Event, Rebuild, RebuildError, Result, Source, blocking, count};
use crate::record::{Flags, ObjectRef, Record};
use crate::tree::{Attributes, Entry, Kind, Part, PartKey};
use crate::types::{ByteRange, FileId, Generation, Inode, ObjectKey};

/// Directories worked on at once.
const AT_ONCE: usize = 16;

/// A directory to be made: what it was, where it is now (unless only looked at), and its path for messages.
#[derive(Clone)]
struct Place {
    was: FileId,
    now: Inode,
    path: PathBuf,
}

/// A file for which the bucket has an object that its tree does not know.
pub(super) struct Waiting {
    pub dir: Inode,
    pub path: PathBuf,
    pub entry: Entry,
    /// Newer than what the tree knows, newest first.
    pub candidates: Vec<Candidate>,
    /// What the tree knows, if it is there.
    pub known: Option<(ObjectRef, Flags)>,
}

/// A directory that was made.
pub(super) struct Walked {
    pub now: Inode,
    pub path: PathBuf,
    pub attributes: Attributes,
    pub generation: Generation,
}

/// What is to be done when all trees were walked.
#[derive(Default)]
pub(super) struct Rest {
    pub directories: Vec<Walked>,
    pub waiting: Vec<Waiting>,
}

/// What one directory led to.
#[derive(Default)]
struct Outcome {
    below: Vec<Place>,
    waiting: Vec<Waiting>,
    walked: Option<Walked>,
}

impl Rebuild {
    pub(super) async fn walk(self: &Arc<Self>, trees: &Trees) -> Result<Rest> {
        let root = Place { was: trees.share, now: self.options.lower.root(), path: PathBuf::new() };
        let (mut queue, mut running, mut rest) = (vec![root], JoinSet::new(), Rest::default());
        // A directory that was moved may be told by two: the first to come has it.
        let mut seen = HashSet::from([trees.share]);
        loop {
            while running.len() < AT_ONCE
                && let Some(place) = queue.pop()
            {
                let tree = trees.newest.get(&place.was).cloned();
                let (this, share) = (self.clone(), trees.share);
                running.spawn(async move { this.directory(place, tree, share).await });
            }
            let Some(ended) = running.join_next().await else { return Ok(rest) };
            let outcome = ended.map_err(|_| RebuildError::Interrupted)??;
            for place in outcome.below {
                if seen.insert(place.was) {
                    queue.push(place);
                } else {
                    self.fail(&place.path, "another directory tells the same one: its names are there");
                }
            }
            rest.waiting.extend(outcome.waiting);
            rest.directories.extend(outcome.walked);
        }
    }

    async fn directory(self: &Arc<Self>, place: Place, tree: Option<StoredTree>, share: FileId) -> Result<Outcome> {
        count(&self.totals.directories);
        let Some(tree) = tree else {
            self.fail(&place.path, "what is in this directory was never stored");
            return Ok(Outcome::default());
        };
        if !self.options.dry_run {
            let (this, dir) = (self.clone(), place.now);
            blocking(move || this.maker.tidy(&dir)).await?.map_err(RebuildError::Lower)?;
        }
        let mut all = Outcome::default();
        for (number, len) in tree.parts.iter().enumerate() {
            let last = number + 1 == tree.parts.len();
            let key = PartKey { share, directory: place.was, generation: tree.generation, number: number as u32, last };
            let part = match self.part(tree.source, &key.to_name(), *len).await {
                Ok(part) => part,
                Err(RebuildError::Remote(error)) if error.kind.is_transient() => {
                    return Err(RebuildError::Remote(error));
                }
                Err(error) => {
                    self.fail(&place.path, error);
                    continue;
                }
            };
            let (this, here, generation) = (self.clone(), place.clone(), tree.generation);
            let (below, waiting, attributes) = blocking(move || this.make_part(&here, part)).await?;
            all.below.extend(below);
            all.waiting.extend(waiting);
            all.walked = Some(Walked { now: place.now, path: place.path.clone(), attributes, generation });
        }
        Ok(all)
    }

    async fn part(&self, source: u16, name: &str, len: u64) -> Result<Part> {
        let Source { remote, prefix, .. } = &self.options.sources[usize::from(source)];
        let key = ObjectKey(if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") });
        let body = remote.get(&key, ByteRange { offset: 0, len }, None).await;
        Part::decode(&body.map_err(RebuildError::Remote)?).map_err(|why| RebuildError::Tree { key, why })
    }

    fn make_part(&self, place: &Place, part: Part) -> (Vec<Place>, Vec<Waiting>, Attributes) {
        let (mut below, mut waiting) = (Vec::new(), Vec::new());
        for entry in part.entries {
            let path = place.path.join(OsStr::from_bytes(&entry.name));
            match &entry.kind {
                Kind::Directory => match self.subdirectory(place, &entry) {
                    Ok(now) => below.push(Place { was: entry.file, now, path }),
                    Err(error) => self.fail(&path, error),
                },
                Kind::Regular { size, record } => {
                    let file = Found { dir: place.now, path, size: *size, record: record.clone() };
                    waiting.extend(self.file(file, entry));
                }
                _ if self.options.dry_run => count(&self.totals.special),
                _ => match self.maker.special(&place.now, &entry) {
                    Ok(Made::Unchanged) => count(&self.totals.unchanged),
                    Ok(Made::Linked) => count(&self.totals.links),
                    Ok(Made::New) => count(&self.totals.special),
                    Err(error) => self.fail(&path, error),
                },
            }
        }
        (below, waiting, part.attributes)
    }

    fn subdirectory(&self, place: &Place, entry: &Entry) -> std::result::Result<Inode, crate::ports::LowerError> {
        if self.options.dry_run {
            // Nobody makes anything in it.
            return Ok(place.now);
        }
        let (node, made) = self.maker.directory(&place.now, OsStr::from_bytes(&entry.name))?;
        if made == Made::Unchanged {
            count(&self.totals.unchanged);
        }
        Ok(node)
    }

    /// Makes a file whose content is known; what must be looked at closer is handed back.
    fn file(&self, found: Found, entry: Entry) -> Option<Waiting> {
        let Found { dir, path, size, record } = found;
        let candidates = self.objects.lock().take_note(entry.file);
        let record = match record.as_deref().map(Record::decode).transpose() {
            Ok(record) => record.unwrap_or_else(Record::unclaimed),
            Err(why) => {
                self.fail(&path, format!("its record in the tree: {why}"));
                return None;
            }
        };
        let there = |object: &ObjectRef| {
            let fits = candidates.iter().filter(|candidate| {
                candidate.generation == object.generation
                    && candidate.len == object.len
                    && (candidate.manifest || !object.has_manifest())
            });
            // A copy of the bucket has it, too.
            let pair = |candidate: &Candidate| &self.options.sources[usize::from(candidate.source)].pair;
            let found = fits.max_by_key(|candidate| pair(candidate).name == object.pair.name);
            found.map(|candidate| ObjectRef { pair: pair(candidate).clone(), ..object.clone() })
        };
        let known = record.object.as_ref().and_then(there);
        let newer: Vec<_> =
            candidates.iter().filter(|candidate| candidate.generation > record.generation).copied().collect();
        let known = known.map(|object| (object, record.flags));
        if !newer.is_empty() {
            return Some(Waiting { dir, path, entry, candidates: newer, known });
        }
        match known {
            Some((object, flags)) => self.make_file(&dir, &path, &entry, &object, flags),
            None if size == 0 => self.made(&path, self.empty(&dir, &entry), 0),
            None if candidates.is_empty() => match record.object {
                Some(object) if !self.options.sources.iter().any(|source| source.pair.name == object.pair.name) => {
                    let why = format!("its object was with the pair {}: name that pair as well", object.pair.name);
                    self.miss(&path, &why);
                }
                _ => self.miss(&path, "it was never archived, or its object is gone"),
            },
            None => self.miss(&path, "it was changed since it was archived; an older content is in the bucket"),
        }
        None
    }

    fn empty(&self, dir: &Inode, entry: &Entry) -> std::result::Result<Made, crate::ports::LowerError> {
        if self.options.dry_run { Ok(Made::New) } else { self.maker.file(dir, entry, Content::Empty) }
    }

    pub(super) fn make_file(&self, dir: &Inode, path: &Path, entry: &Entry, object: &ObjectRef, flags: Flags) {
        let made = if self.options.dry_run {
            Ok(Made::New)
        } else {
            self.maker.file(dir, entry, Content::Object(object, flags))
        };
        self.made(path, made, object.len);
    }

    fn made(&self, path: &Path, made: std::result::Result<Made, crate::ports::LowerError>, len: u64) {
        match made {
            Ok(Made::New) => {
                count(&self.totals.files);
                self.totals.bytes.fetch_add(len, std::sync::atomic::Ordering::Relaxed);
            }
            Ok(Made::Linked) => count(&self.totals.links),
            Ok(Made::Unchanged) => count(&self.totals.unchanged),
            Err(error) => self.fail(path, error),
        }
    }

    /// What the trees knew too little of: newer objects, and those of files that no tree knows. Then all directories get what is theirs.
    pub(super) async fn take_up(self: &Arc<Self>, rest: Rest, trees: &Trees) -> Result<()> {
        let wanted: HashMap<FileId, Vec<Generation>> = rest
            .waiting
            .iter()
            .map(|waiting| {
                (waiting.entry.file, waiting.candidates.iter().map(|candidate| candidate.generation).collect())
            })
            .collect();
        let objects = std::mem::take(&mut *self.objects.lock());
        if !wanted.is_empty() || objects.unknown() > 0 {
            let keys = objects.keys(&self.options.sources, &wanted).await?;
            self.newer(rest.waiting, keys.wanted).await?;
            self.unknown(keys.unknown, &rest.directories, trees).await?;
        }
        if self.options.dry_run {
            return Ok(());
        }
        let this = self.clone();
        blocking(move || {
            for Walked { now, path, attributes, .. } in rest.directories.iter().rev() {
                if let Err(error) = this.maker.finish_directory(now, attributes) {
                    this.fail(path, error);
                }
            }
            let (lower, root) = (&this.options.lower, this.options.lower.root());
            lower.sync_all().map_err(RebuildError::Lower)?;
            let begun = OsStr::new(super::BEGUN_XATTR);
            lower.set_xattr(&root, begun, b"done", 0).map_err(RebuildError::Lower)
        })
        .await?
    }

    pub(super) fn tell(&self, event: Event) {
        (self.options.tell)(event);
    }
}

/// A regular file as its tree has it.
struct Found {
    dir: Inode,
    path: PathBuf,
    size: u64,
    record: Option<Vec<u8>>,
}
