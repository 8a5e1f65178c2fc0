//! Packs that nobody needs any more, and their end. Only who has read every record of the share may say which they are (`control::packs`).
//!
//! Why nothing is taken that somebody needs. A pack is needed while a durable record names a member, or a note is about one. Its members' uploads
//! were noted before it was stored, and a note goes only when the record is durable that names its member, or nothing will. So:
//!  1. packs are listed, and then the journal is asked: a pack without a note has no upload under way, and will never have one again. A record that names no member
//!     of it yet can begin to by `undelete` only, which needs a deletion's note, and leaves it there until the new record is durable. Such a note begins with a
//!     file that names the member.
//!  2. after that, every record is read, with all that got a name meanwhile, undeleted files included. Whose record cannot be read, or is not
//!     known to be durable, may name anything: then nothing is taken at all.
//!  3. the journal is asked again, and then for what got a name since: an `undelete` that ran during the walk has still its note, or has told its file.
//!     From here on no record names a member of what is left, no note is about one, and so neither will ever be.
//!  4. what is left is remembered. Only a later run that finds it again, the pair's retention after that, takes it: time to mend a mistake.
//!  5. the share is synced before anything is deleted: what was only removed in memory would be back after a power loss, and name what is gone.
//!
//! All this is by keys, whichever pair a note or a record is of: two pairs may lie in one place (`places`).
//!
//! What is not seen: stubs that exist in a backup only, and records that are copied below the mount while a run is at it.

use std::collections::{BTreeMap, HashSet};

use super::error::{EngineError, EngineResult};
use super::{Engine, OrphanRules, Target};
use crate::kill;
use crate::ports::About;
use crate::record::{PACKS, PackName, place_of};
use crate::types::{Generation, ObjectKey, PairName};

/// Notes read at a time.
const BATCH: usize = 1024;
/// Name of the value that remembers which packs were found needless, and when: JSON, seconds since 1970 by pair and key.
const NEEDLESS: &str = "packs.needless";
/// So many are remembered; others are found again by a later run.
const NEEDLESS_MAX: usize = 100_000;

/// A pack in the bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPack {
    /// Whose bucket it is in.
    pub pair: PairName,
    pub name: PackName,
    pub key: ObjectKey,
    /// Its length.
    pub bytes: u64,
}

impl Engine {
    /// The packs below a pair's prefix, whoever made them.
    pub async fn packs(&self, target: &Target) -> EngineResult<Vec<StoredPack>> {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let listed = target.remote.list(PACKS, after.as_ref()).await;
            let page = listed.map_err(EngineError::remote(self.lower.root().id))?;
            let Some((last, _)) = page.last() else { return Ok(found) };
            after = Some(last.clone());
            let packs = page.into_iter().filter_map(|(key, bytes)| {
                let name = PackName::of_key(&target.prefix, &key)?;
                Some(StoredPack { pair: target.pair.name.clone(), name, key, bytes })
            });
            found.extend(packs);
        }
    }

    /// Whether the rules let a pack be taken, needless as it may be.
    pub async fn may_sweep(&self, pack: &StoredPack, rules: &OrphanRules) -> EngineResult<bool> {
        let ours = pack.name.share == self.share_id().await? || rules.adopted.contains(&pack.name.share);
        Ok(ours && pack.name.generation < Generation::default().after(rules.made_before))
    }

    /// Packs of which any note is about a member, whichever pair that is of.
    pub async fn noted_packs(&self) -> EngineResult<HashSet<ObjectKey>> {
        let pair = &self.store()?.pair.name;
        let (mut found, mut after) = (HashSet::new(), None);
        loop {
            let about = About::KeysBeginningOfAnyPair(String::new());
            let batch = self.journal.noted(pair, about, after, BATCH).await?;
            let Some((last, _)) = batch.last() else { return Ok(found) };
            after = Some(*last);
            found.extend(batch.iter().filter_map(|(_, note)| Some(place_of(&note.key)?.pack.key())));
        }
    }

    /// Remembers which packs of all pairs were found needless now, and forgets all others. Returns those that were so their pair's retention ago
    /// already. With `look`, nothing is changed.
    pub async fn found_needless(&self, packs: Vec<StoredPack>, look: bool) -> EngineResult<Vec<StoredPack>> {
        let stored = self.journal.value(NEEDLESS).await?;
        let before: BTreeMap<String, i64> =
            stored.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        let now = self.clock.now().secs;
        let name = |pack: &StoredPack| format!("{} {}", pack.pair, pack.key);
        let since = |pack: &StoredPack| before.get(&name(pack)).copied().unwrap_or(now);
        let entries = packs.iter().take(NEEDLESS_MAX).map(|pack| (name(pack), since(pack)));
        let text = serde_json::to_string(&entries.collect::<BTreeMap<_, _>>()).unwrap_or_default();
        if !look {
            self.journal.set_value(NEEDLESS, (!packs.is_empty()).then_some(text)).await?;
        }
        let is_due = |pack: &StoredPack| {
            let retention = self.target_named(&pack.pair).map(|target| self.retention_in(&target));
            retention.is_some_and(|kept_s| now.saturating_sub(since(pack)) >= i64::try_from(kept_s).unwrap_or(i64::MAX))
        };
        Ok(packs.into_iter().filter(is_due).collect())
    }

    /// Deletes packs of a pair that were found needless, steps 1 to 4 done. Returns those that are gone.
    pub async fn delete_packs(&self, target: &Target, packs: Vec<StoredPack>) -> EngineResult<Vec<StoredPack>> {
        if packs.is_empty() {
            return Ok(packs);
        }
        self.sync_share().await?;
        kill::point("sweep.synced");
        // Nothing can be there; who begins to need one is asked all the same.
        let noted = {
            let _alone = self.keeping.asking().await;
            self.noted_packs().await?
        };
        let mut gone = Vec::new();
        for pack in packs.into_iter().filter(|pack| !noted.contains(&pack.key)) {
            let Some(_deleting) = self.keeping.begin(&pack.key) else { continue };
            target.remote.delete(&pack.key).await.map_err(EngineError::remote(self.lower.root().id))?;
            kill::point("sweep.deleted");
            gone.push(pack);
        }
        Ok(gone)
    }
}
