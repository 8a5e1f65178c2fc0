//! Objects beyond what the trees know: newer ones of known files, and files that no tree has.
//!
//! An object of one chunk, or one with its manifest, is what its file was at some moment; others were never finished, and are passed
//! over.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use futures::{StreamExt, stream};

use super::listing::Trees;
use super::walk::{Waiting, Walked};
use super::{Event, FOUND_DIR, Rebuild, RebuildError, Result, blocking, count};
use crate::catalog::walk::resolve;
use crate::engine::{Facts, FactsError};
use crate::ports::LowerResult;
use crate::record::{Flags, ObjectRef, Record};
use crate::tree::{Attributes, Entry, Kind};
use crate::types::{FileId, Generation, Inode, ObjectKey};

/// Objects asked for at once.
const HEADS: usize = 32;
/// Longest name of a file, in bytes, on ext4 and xfs.
const NAME_MAX: usize = 255;

impl Rebuild {
    async fn facts(&self, source: u16, key: &ObjectKey) -> std::result::Result<(Facts, ObjectRef), FactsError> {
        let source = &self.options.sources[usize::from(source)];
        let facts = Facts::of(&source.remote.head(key).await.map_err(FactsError::Remote)?)?;
        let object = facts.clone().object(&*source.remote, source.pair.clone(), key.clone()).await?;
        Ok((facts, object))
    }

    /// Files archived after their directory's tree was stored: the newest complete object, or else what the tree knows.
    pub(super) async fn newer(
        self: &Arc<Self>,
        waiting: Vec<Waiting>,
        keys: HashMap<(FileId, Generation, u16), ObjectKey>,
    ) -> Result<()> {
        let keys = &keys;
        let made = stream::iter(waiting).map(|file| async move {
            for candidate in &file.candidates {
                let Some(key) = keys.get(&(file.entry.file, candidate.generation, candidate.source)) else { continue };
                match self.facts(candidate.source, key).await {
                    Ok((facts, object)) => return Ok((file, Some((facts, object)))),
                    Err(FactsError::Remote(error)) if error.kind.is_transient() => {
                        return Err(RebuildError::Remote(error));
                    }
                    Err(why) => tracing::info!(object = %key, "passed over: {why}"),
                }
            }
            Ok((file, None))
        });
        let mut made = std::pin::pin!(made.buffer_unordered(HEADS));
        while let Some(found) = made.next().await {
            let (mut file, newer) = found?;
            let this = self.clone();
            blocking(move || match (newer, file.known) {
                (Some((facts, object)), known) => {
                    let own = &mut file.entry.attributes;
                    (own.mode, own.uid, own.gid, own.mtime) = (facts.mode, facts.uid, facts.gid, facts.mtime);
                    if let Some(xattrs) = facts.xattrs {
                        own.xattrs = xattrs;
                    }
                    count(&this.totals.newer);
                    this.tell(Event::Newer { path: file.path.clone() });
                    let flags = known.map(|(_, flags)| flags).unwrap_or_default();
                    this.make_file(&file.dir, &file.path, &file.entry, &object, flags);
                }
                (None, Some((object, flags))) => this.make_file(&file.dir, &file.path, &file.entry, &object, flags),
                (None, None) => this.miss(&file.path, "it was never archived to the end"),
            })
            .await?;
        }
        Ok(())
    }

    /// Files that no tree knows. One that was archived after its directory's names were stored goes to its place; one before was
    /// removed or moved since, and goes to [`FOUND_DIR`].
    pub(super) async fn unknown(
        self: &Arc<Self>,
        keys: Vec<(u16, ObjectKey)>,
        directories: &[Walked],
        trees: &Trees,
    ) -> Result<()> {
        let stored: HashMap<FileId, Generation> =
            directories.iter().map(|walked| (walked.now.id, walked.generation)).collect();
        let stored = Arc::new(stored);
        let latest = trees.newest.values().map(|tree| tree.generation).max().unwrap_or_default();
        let asked = stream::iter(keys).map(|(source, key)| async move { (self.facts(source, &key).await, key) });
        let mut asked = std::pin::pin!(asked.buffer_unordered(HEADS));
        while let Some((facts, key)) = asked.next().await {
            let (facts, object) = match facts {
                Ok(facts) => facts,
                Err(FactsError::Remote(error)) if error.kind.is_transient() => {
                    return Err(RebuildError::Remote(error));
                }
                Err(why) => {
                    tracing::info!(object = %key, "passed over: {why}");
                    continue;
                }
            };
            count(&self.totals.found);
            if self.options.dry_run {
                continue;
            }
            let (this, stored) = (self.clone(), stored.clone());
            blocking(move || match this.put_found(&facts, &object, &stored, latest) {
                Ok(path) => this.tell(Event::Found { path, object: object.key }),
                Err(error) => this.fail(Path::new(&object.key.0), error),
            })
            .await?;
        }
        Ok(())
    }

    fn put_found(
        &self,
        facts: &Facts,
        object: &ObjectRef,
        stored: &HashMap<FileId, Generation>,
        latest: Generation,
    ) -> LowerResult<std::path::PathBuf> {
        let lower = &*self.options.lower;
        let mut entry = Entry {
            name: Vec::new(),
            file: facts.file,
            links: 1,
            kind: Kind::Regular { size: object.len, record: None },
            attributes: Attributes {
                mode: facts.mode,
                uid: facts.uid,
                gid: facts.gid,
                atime: facts.mtime,
                mtime: facts.mtime,
                xattrs: facts.xattrs.clone().unwrap_or_default(),
            },
        };
        if let Some(path) = &facts.path
            && let (Some(parent), Some(name)) = (path.parent(), path.file_name())
        {
            let dir = resolve(lower, parent).ok().map(|found| found.node);
            let newer = dir.map_or(facts.generation > latest, |dir| {
                stored.get(&dir.id).is_some_and(|generation| facts.generation > *generation)
            });
            let there = match dir.map(|dir| lower.lookup(&dir, name)) {
                Some(Ok((node, _))) => Some(node),
                Some(Err(error)) if error.errno() != libc::ENOENT => return Err(error),
                _ => None,
            };
            if let Some(node) = &there
                && let Some(stored) = lower.load_record(node)?
                && Record::decode(&stored).is_ok_and(|record| record.names(&object.key))
            {
                // An earlier run put it there.
                count(&self.totals.unchanged);
                return Ok(path.clone());
            }
            if newer && there.is_none() {
                let dir = match dir {
                    Some(dir) => dir,
                    None => self.private_directories(parent)?,
                };
                entry.name = name.as_bytes().to_vec();
                self.make_file(&dir, path, &entry, object, Flags::default());
                return Ok(path.clone());
            }
        }
        let dir = self.private_directories(Path::new(FOUND_DIR))?;
        let last = facts.path.as_deref().and_then(Path::file_name).unwrap_or(OsStr::new("file")).as_bytes();
        entry.name = format!("{}.{}-", facts.file, facts.generation).into_bytes();
        entry.name.extend_from_slice(&last[..last.len().min(NAME_MAX - entry.name.len())]);
        let path = Path::new(FOUND_DIR).join(OsStr::from_bytes(&entry.name));
        self.make_file(&dir, &path, &entry, object, Flags::default());
        Ok(path)
    }

    /// A directory by its path; what is missing is made for root alone.
    fn private_directories(&self, path: &Path) -> LowerResult<Inode> {
        path.components().try_fold(self.options.lower.root(), |dir, part| {
            self.maker.directory(&dir, part.as_os_str()).map(|(node, _)| node)
        })
    }
}
