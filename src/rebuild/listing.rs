//! What is in the buckets: the newest complete tree of each directory, and the newest objects of each file, members of packs included.
//!
//! Memory goes by directories and files, some 60 bytes each; keys are not kept, but listed again where they are needed.

use std::collections::HashMap;

use futures::{StreamExt, stream};

use super::{RebuildError, Result, Source};
use crate::engine::parse_key;
use crate::ports::Remote;
use crate::record::{MANIFEST_SUFFIX, PACKS, PackName};
use crate::remote::packs::read_index;
use crate::tree::{PLACE, PartKey};
use crate::types::{FileId, Generation, ObjectKey};

/// Packs' indexes read at once.
const INDEXES: usize = 16;

/// A tree that is all there: its generation and the lengths of its parts.
#[derive(Clone, Debug)]
pub(super) struct StoredTree {
    /// Which of the pairs has it.
    pub source: u16,
    pub generation: Generation,
    pub parts: Vec<u64>,
}

/// The trees of one share.
#[derive(Debug)]
pub(super) struct Trees {
    pub share: FileId,
    pub newest: HashMap<FileId, StoredTree>,
}

/// Lists everything below `prefix`, page by page.
async fn each(remote: &dyn Remote, prefix: &str, mut take: impl FnMut(ObjectKey, u64)) -> Result<()> {
    let mut after = None;
    loop {
        let page = remote.list(prefix, after.as_ref()).await.map_err(RebuildError::Remote)?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        after = Some(last.clone());
        page.into_iter().for_each(|(key, len)| take(key, len));
    }
}

/// The pairs with their numbers.
fn numbered(sources: &[Source]) -> impl Iterator<Item = (u16, &Source)> {
    (0..).zip(sources)
}

/// The trees of the share that stored its root last; of one named, where it is. Of each directory the newest that any pair has.
pub(super) async fn trees(sources: &[Source], share: Option<FileId>) -> Result<Trees> {
    let mut shares: HashMap<FileId, HashMap<FileId, StoredTree>> = HashMap::new();
    for (number, source) in numbered(sources) {
        trees_of(number, source, &mut shares).await?;
    }
    let age = |id: &FileId| shares[id].get(id).map(|root| root.generation);
    let chosen = match share {
        Some(share) => Some(share).filter(|share| shares.contains_key(share)),
        None => shares.keys().filter(|id| age(id).is_some()).max_by_key(|id| age(id)).copied(),
    };
    let share = chosen.ok_or(RebuildError::NoTrees)?;
    Ok(Trees { share, newest: shares.remove(&share).unwrap_or_default() })
}

async fn trees_of(
    source: u16,
    Source { remote, prefix, .. }: &Source,
    shares: &mut HashMap<FileId, HashMap<FileId, StoredTree>>,
) -> Result<()> {
    let mut partial: Option<(PartKey, Vec<u64>)> = None;
    each(&**remote, PLACE, |key, len| {
        let name = key.0.strip_prefix(prefix.as_str()).unwrap_or(&key.0).trim_start_matches('/');
        let Some(part) = PartKey::of_name(name) else { return };
        let goes_on = partial.take().filter(|(before, lens)| {
            (before.share, before.directory, before.generation) == (part.share, part.directory, part.generation)
                && lens.len() == part.number as usize
        });
        let mut lens = match goes_on {
            Some((_, lens)) => lens,
            None if part.number == 0 => Vec::new(),
            None => return,
        };
        lens.push(len);
        if part.last {
            let tree = StoredTree { source, generation: part.generation, parts: lens };
            let newest = shares.entry(part.share).or_default();
            if newest.get(&part.directory).is_none_or(|known| known.generation < tree.generation) {
                newest.insert(part.directory, tree);
            }
        } else {
            partial = Some((part, lens));
        }
    })
    .await
}

/// An object that holds a generation of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub generation: Generation,
    pub len: u64,
    pub manifest: bool,
    /// Which of the pairs has it.
    pub source: u16,
}

/// Lists the members of all packs as if each were an object: key and length. A pack whose index cannot be read is passed over: its members are missing then.
async fn each_member(remote: &dyn Remote, prefix: &str, mut take: impl FnMut(ObjectKey, u64)) -> Result<()> {
    let mut packs = Vec::new();
    each(remote, PACKS, |key, _| packs.extend(PackName::of_key(prefix, &key))).await?;
    let read = stream::iter(packs).map(|pack| async move {
        let key = pack.key();
        let index = match remote.head(&key).await {
            Ok(info) => read_index(remote, &key, &info).await,
            Err(error) => Err(error),
        };
        (pack, index)
    });
    let mut read = std::pin::pin!(read.buffered(INDEXES));
    while let Some((pack, index)) = read.next().await {
        match index {
            Ok(index) => {
                for member in index.members() {
                    take(pack.member(&member.key, member.range), member.range.len);
                }
            }
            Err(error) if error.kind.is_transient() || error.kind.is_configuration() => {
                return Err(RebuildError::Remote(error));
            }
            Err(error) => tracing::warn!(pack = %pack.key(), "passed over: {error}"),
        }
    }
    Ok(())
}

/// Keys that were listed once more.
#[derive(Debug, Default)]
pub(super) struct Keys {
    pub wanted: HashMap<(FileId, Generation, u16), ObjectKey>,
    pub unknown: Vec<(u16, ObjectKey)>,
}

/// The objects of all files.
#[derive(Debug, Default)]
pub(super) struct Objects {
    newest: HashMap<FileId, (Candidate, bool)>,
    older: HashMap<FileId, Vec<Candidate>>,
}

impl Objects {
    pub(super) async fn list(sources: &[Source]) -> Result<Self> {
        let mut all = Self::default();
        for (number, source) in numbered(sources) {
            all.list_one(number, source).await?;
        }
        Ok(all)
    }

    async fn list_one(&mut self, source: u16, Source { remote, prefix, .. }: &Source) -> Result<()> {
        let (all, remote) = (self, &**remote);
        let mut last: Option<(ObjectKey, FileId)> = None;
        each(remote, "", |key, len| {
            if let Some(parts) = parse_key(prefix, &key) {
                all.add(parts.file, Candidate { generation: parts.generation, len, manifest: false, source });
                last = Some((key, parts.file));
            } else if let Some((object, file)) = last.take()
                && key.0.strip_suffix(MANIFEST_SUFFIX) == Some(&object.0)
                && let Some(parts) = parse_key(prefix, &object)
            {
                // A manifest's key follows its object's in a listing.
                all.of_mut(file, parts.generation, source).into_iter().for_each(|found| found.manifest = true);
            }
        })
        .await?;
        each_member(remote, prefix, |key, len| {
            if let Some(parts) = parse_key(prefix, &key) {
                all.add(parts.file, Candidate { generation: parts.generation, len, manifest: false, source });
            }
        })
        .await
    }

    fn add(&mut self, file: FileId, candidate: Candidate) {
        match self.newest.get_mut(&file) {
            None => drop(self.newest.insert(file, (candidate, false))),
            Some((newest, _)) => {
                let older = if newest.generation < candidate.generation {
                    std::mem::replace(newest, candidate)
                } else {
                    candidate
                };
                self.older.entry(file).or_default().push(older);
            }
        }
    }

    fn of_mut(&mut self, file: FileId, generation: Generation, source: u16) -> Option<&mut Candidate> {
        let newest = self.newest.get_mut(&file).map(|(newest, _)| newest);
        let older = self.older.get_mut(&file).into_iter().flatten();
        let mut all = newest.into_iter().chain(older);
        all.find(|candidate| (candidate.generation, candidate.source) == (generation, source))
    }

    pub(super) fn files(&self) -> usize {
        self.newest.len()
    }

    /// All of a file, newest first; it counts as known from here on.
    pub(super) fn take_note(&mut self, file: FileId) -> Vec<Candidate> {
        let Some((newest, known)) = self.newest.get_mut(&file) else { return Vec::new() };
        *known = true;
        let mut all = vec![*newest];
        all.extend(self.older.get(&file).into_iter().flatten());
        all.sort_by_key(|candidate| std::cmp::Reverse(candidate.generation));
        all
    }

    /// Whether this is the newest object of a file that no tree knows.
    fn is_unknown(&self, file: FileId, generation: Generation, source: u16) -> bool {
        let newest = self.newest.get(&file).filter(|(_, known)| !known);
        newest.is_some_and(|(newest, _)| (newest.generation, newest.source) == (generation, source))
    }

    pub(super) fn unknown(&self) -> usize {
        self.newest.values().filter(|(_, known)| !known).count()
    }

    /// The keys of wanted objects by file, generation and pair, and those of files that no tree knows, each with its pair.
    pub(super) async fn keys(&self, sources: &[Source], wanted: &HashMap<FileId, Vec<Generation>>) -> Result<Keys> {
        let mut keys = Keys::default();
        for (source, Source { remote, prefix, .. }) in numbered(sources) {
            let mut take = |key: ObjectKey, _| {
                let Some(parts) = parse_key(prefix, &key) else { return };
                if wanted.get(&parts.file).is_some_and(|generations| generations.contains(&parts.generation)) {
                    keys.wanted.insert((parts.file, parts.generation, source), key);
                } else if self.is_unknown(parts.file, parts.generation, source) {
                    keys.unknown.push((source, key));
                }
            };
            each(&**remote, "", &mut take).await?;
            each_member(&**remote, prefix, &mut take).await?;
        }
        Ok(keys)
    }
}
