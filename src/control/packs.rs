//! The part of `gc` that is about packs: which members records name, and the end of packs that nobody needs. The engine says why that is safe
//! (`engine/sweep.rs`); the order here is that of its steps.
//!
//! Memory goes by packs, some 200 bytes each.

use std::collections::{HashMap, HashSet};

use super::gc::Job;
use super::protocol::{OrphanObject, PackTotals, Reply};
use crate::engine::{OrphanRules, StoredPack};
use crate::types::ObjectKey;

fn worded(error: crate::engine::EngineError) -> String {
    error.to_string()
}

impl Job<'_> {
    /// Counts what packs have, remembers those that nobody needs, and deletes those remembered for long enough.
    pub(super) async fn packs(&mut self, rules: &OrphanRules) -> Result<(), String> {
        let engine = self.server.engine.clone();
        let mut packs = engine.packs().await.map_err(worded)?;
        let noted = engine.noted_packs().await.map_err(worded)?;
        if packs.is_empty() {
            return Ok(());
        }
        let sight = self.see(HashSet::new()).await?;
        let mut named = sight.packs;
        self.tell_blind(&sight.blind).await?;
        self.summary.packs = Some(totals(&packs, &named));
        let also_noted = engine.noted_packs().await.map_err(worded)?;
        // What got a name since the walk, an undeleted file above all.
        let (moved, blind) = self.see_moved().await?;
        self.tell_blind(&blind).await?;
        named.extend(moved);
        packs.retain(|pack| {
            ![&noted, &also_noted].iter().any(|noted| noted.contains(&pack.key)) && !named.contains_key(&pack.key)
        });
        let mut needless = Vec::new();
        for pack in packs {
            if engine.may_sweep(&pack, rules).await.map_err(worded)? {
                needless.push(pack);
            }
        }
        let look = self.wish.dry_run;
        if sight.blind.count + blind.count > 0 && !look && !needless.is_empty() {
            return Err(format!(
                "{} records or directories cannot be read (see above), and may name any of {} seemingly needless packs: none was deleted. \
                 Mend or remove those files, then ask again",
                sight.blind.count + blind.count,
                needless.len()
            ));
        }
        let due = engine.found_needless(needless.clone(), look).await.map_err(worded)?;
        let gone = if look { Vec::new() } else { engine.delete_packs(due).await.map_err(worded)? };
        let gone: HashSet<_> = gone.into_iter().map(|pack| pack.key).collect();
        for pack in needless {
            let deleted = gone.contains(&pack.key);
            self.tell_pack(pack, deleted).await?;
        }
        Ok(())
    }

    async fn tell_pack(&mut self, pack: StoredPack, deleted: bool) -> Result<(), String> {
        self.summary.files += 1;
        self.summary.bytes += pack.bytes;
        if let Some(totals) = &mut self.summary.packs {
            totals.needless += 1;
            totals.deleted += u64::from(deleted);
        }
        let kind = if deleted { "deleted pack" } else { "pack" };
        let begun = (pack.name.generation.0 / 1_000_000) as i64;
        let noted = !self.wish.dry_run;
        let (key, bytes) = (pack.key.0, pack.bytes);
        self.say(Reply::Orphan(OrphanObject { key, kind: kind.into(), bytes, begun, noted })).await
    }
}

fn totals(packs: &[StoredPack], named: &HashMap<ObjectKey, u64>) -> PackTotals {
    let mut totals = PackTotals::default();
    for pack in packs {
        // A member that several files name is counted for each.
        let live = named.get(&pack.key).copied().unwrap_or(0).min(pack.bytes);
        totals.objects += 1;
        totals.bytes += pack.bytes;
        totals.live_bytes += live;
        totals.dead_bytes += pack.bytes - live;
    }
    totals
}
