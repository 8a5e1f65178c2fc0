//! The generations of files that the store still has: what a record names, and what is kept for the pair's retention after it was
//! changed or removed.
//!
//! Nothing here changes anything. What was given up half way ([`GIVEN_UP`]) is no generation.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::{StreamExt, stream};

use super::cell::load_record;
use super::error::{EngineError, EngineResult};
use super::facts::Facts;
use super::keys::{KeyParts, key_beginning, parse_key};
use super::{Engine, Target};
use crate::ports::{About, FileKind, GIVEN_UP, Intent, IntentId, IntentKind, RemoteErrorKind};
use crate::types::{Generation, Inode, ObjectKey, Timestamp};

/// Notes read at a time.
const BATCH: usize = 1024;
/// Objects asked for at once.
const HEADS: usize = 16;

/// Where a generation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The file's record names it.
    Current,
    /// Its file was changed or removed; kept until then.
    Kept { until: Timestamp },
}

/// One generation of a file in the store.
#[derive(Clone, Debug)]
pub struct Version {
    pub key: ObjectKey,
    pub parts: KeyParts,
    pub manifest: bool,
    pub standing: Standing,
    /// The inode whose record names it, or did.
    pub node: Inode,
    /// Whether that inode is there still.
    pub alive: bool,
    /// What the object tells; `Err`: the store cannot say, or the object is gone.
    pub facts: Result<Facts, String>,
}

impl Version {
    pub fn generation(&self) -> Generation {
        self.parts.generation
    }
}

/// A generation kept, as the journal alone knows it.
#[derive(Clone, Debug)]
pub(super) struct KeptObject {
    pub key: ObjectKey,
    pub parts: KeyParts,
    pub manifest: bool,
    pub node: Inode,
    pub until: Timestamp,
}

impl Engine {
    /// All generations of what is at `path` (relative to the share), or was when they were made; oldest first. `node`: what is there
    /// now, whose generations from other names count, too.
    pub async fn history(self: &Arc<Self>, path: &Path, node: Option<Inode>) -> EngineResult<Vec<Version>> {
        let mut all = Vec::new();
        for target in self.stores()? {
            all.extend(self.history_at(&target, path, node).await?);
        }
        all.sort_by(|a, b| (a.generation(), &a.key).cmp(&(b.generation(), &b.key)));
        Ok(all)
    }

    /// The same, of one pair.
    async fn history_at(
        self: &Arc<Self>,
        target: &Target,
        path: &Path,
        node: Option<Inode>,
    ) -> EngineResult<Vec<Version>> {
        let mut found: BTreeMap<(Generation, ObjectKey), Version> = BTreeMap::new();
        let nothing = || Err(String::new());
        let beginning = About::KeysBeginning(key_beginning(&target.prefix, path, false));
        let mut kept = self.kept(target, beginning, |parts| parts.is_of(path)).await?;
        if let Some(node) = node {
            kept.extend(self.kept(target, About::File(node.id), |_| true).await?);
            if let Some(object) = self.record_now(&node)?.object.filter(|object| object.pair == target.pair)
                && let Some(parts) = parse_key(&target.prefix, &object.key)
            {
                let (key, manifest) = (object.key.clone(), object.has_manifest());
                let standing = Standing::Current;
                let version = Version { key, parts, manifest, standing, node, alive: true, facts: nothing() };
                found.insert((object.generation, object.key), version);
            }
        }
        for KeptObject { key, parts, manifest, node, until } in kept {
            let standing = Standing::Kept { until };
            let alive = self.lower.by_handle(&node.handle).is_ok_and(|(now, attr)| now.id == node.id && attr.nlink > 0);
            let version = Version { key: key.clone(), parts, manifest, standing, node, alive, facts: nothing() };
            // What a record names now is not about to go, whatever an old note says.
            found.entry((version.generation(), key)).or_insert(version);
        }
        let asked = stream::iter(found.into_values()).map(|mut version| async {
            version.facts = self.facts(target, &version.key).await;
            version
        });
        Ok(asked.buffered(HEADS).collect().await)
    }

    async fn facts(&self, target: &Target, key: &ObjectKey) -> Result<Facts, String> {
        match target.remote.head(key).await {
            Ok(info) => Facts::of(&info).map_err(|error| error.to_string()),
            Err(error) if error.kind == RemoteErrorKind::NotFound => Err("the object is gone".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The newest kept generation of each path below `dir`, by path; those whose path only the object's metadata has are asked for it.
    pub async fn kept_below(self: &Arc<Self>, dir: &Path) -> EngineResult<BTreeMap<PathBuf, ObjectKey>> {
        let mut newest: BTreeMap<PathBuf, (Generation, ObjectKey)> = BTreeMap::new();
        for target in self.stores()? {
            let beginning = About::KeysBeginning(key_beginning(&target.prefix, dir, true));
            for kept in self.kept(&target, beginning, |_| true).await? {
                let path = match kept.parts.path() {
                    Some(path) => Some(path),
                    None => self.facts(&target, &kept.key).await.ok().and_then(|facts| facts.path),
                };
                let Some(path) = path.filter(|path| path.starts_with(dir)) else { continue };
                let this = (kept.parts.generation, kept.key);
                let best = newest.entry(path).or_insert_with(|| this.clone());
                if *best < this {
                    *best = this;
                }
            }
        }
        Ok(newest.into_iter().map(|(path, (_, key))| (path, key)).collect())
    }

    /// What is noted for deletion later than now, and was a generation.
    pub(super) async fn kept(
        &self,
        target: &Target,
        about: About,
        wanted: impl Fn(&KeyParts) -> bool,
    ) -> EngineResult<Vec<KeptObject>> {
        let now = self.clock.now();
        let (mut all, mut after): (Vec<KeptObject>, _) = (Vec::new(), None);
        loop {
            let batch: Vec<(IntentId, Intent)> =
                self.journal.noted(&target.pair.name, about.clone(), after, BATCH).await?;
            let Some((last, _)) = batch.last() else { return Ok(all) };
            after = Some(*last);
            for (_, intent) in batch {
                let IntentKind::Delete { not_before: until } = intent.kind else { continue };
                let Some(parts) = parse_key(&target.prefix, &intent.key).filter(&wanted) else { continue };
                if until == GIVEN_UP || until <= now {
                    continue;
                }
                let Intent { key, manifest, node, .. } = intent;
                match all.iter_mut().find(|kept| kept.key == key) {
                    // Noted twice: the earlier time holds.
                    Some(kept) => kept.until = kept.until.min(until),
                    None => all.push(KeptObject { key, parts, manifest, node, until }),
                }
            }
        }
    }

    /// The record of a regular file as it is now.
    fn record_now(&self, node: &Inode) -> EngineResult<crate::record::Record> {
        if let Some(cell) = self.cells.live(node.id) {
            return Ok(cell.lock().record.clone());
        }
        let attr = self.lower.stat(node).map_err(EngineError::lower(node.id))?;
        if attr.kind != FileKind::Regular {
            return Ok(crate::record::Record::unclaimed());
        }
        load_record(&*self.lower, node)
    }

    /// Which inode a note's file is, for messages.
    pub(super) fn where_is(&self, node: &Inode) -> String {
        match self.lower.path_of(node) {
            Ok(Some(path)) => path.display().to_string(),
            _ => format!("inode {}", node.id),
        }
    }
}
