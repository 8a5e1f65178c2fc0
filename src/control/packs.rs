//! The part of `gc` that is about packs: which members records name, and the end of packs that nobody needs. The engine says why that is safe
//! (`engine/sweep.rs`); the order here is that of its steps.
//!
//! Memory goes by packs, some 200 bytes each.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::gc::{Job, Stop};
use super::protocol::{OrphanObject, PackTotals};
use crate::engine::{OrphanRules, StoredPack, Target};
use crate::types::ObjectKey;

fn worded(error: crate::engine::EngineError) -> String {
    error.to_string()
}

impl Job<'_> {
    /// Counts what packs of all pairs have, remembers those that nobody needs, and deletes those remembered for long enough. One look at the share's
    /// records is for all. What cannot be listed now is forgotten, and remembered anew from another run on.
    pub(super) async fn packs(&mut self, places: &[Arc<Target>], rules: &OrphanRules) -> Result<(), String> {
        let engine = self.server.engine.clone();
        let mut packs = Vec::new();
        for target in places {
            match engine.packs(target).await {
                Ok(found) => packs.extend(found),
                Err(error) => self.go_on(target, Err(Stop::Pair(error)))?,
            }
        }
        let noted = engine.noted_packs().await.map_err(worded)?;
        if packs.is_empty() {
            return Ok(());
        }
        let sight = self.see(HashSet::new()).await?;
        let mut named = sight.packs;
        self.tell_blind(&sight.blind).await?;
        for pack in &packs {
            let found = totals(pack, &named);
            *self.summary.packs.get_or_insert_default() += found.clone();
            *self.of_pair(&pack.pair).packs.get_or_insert_default() += found;
        }
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
        let mut gone = HashSet::new();
        for target in places.iter().filter(|_| !look) {
            let of_pair = due.iter().filter(|pack| pack.pair == target.pair.name).cloned().collect();
            match engine.delete_packs(target, of_pair).await {
                Ok(deleted) => gone.extend(deleted.into_iter().map(|pack| (pack.pair, pack.key))),
                Err(error) => self.go_on(target, Err(Stop::Pair(error)))?,
            }
        }
        for pack in needless {
            let deleted = gone.contains(&(pack.pair.clone(), pack.key.clone()));
            self.tell_pack(pack, deleted).await?;
        }
        Ok(())
    }

    async fn tell_pack(&mut self, pack: StoredPack, deleted: bool) -> Result<(), String> {
        let more = PackTotals { needless: 1, deleted: u64::from(deleted), ..PackTotals::default() };
        *self.summary.packs.get_or_insert_default() += more.clone();
        *self.of_pair(&pack.pair).packs.get_or_insert_default() += more;
        let kind = if deleted { "deleted pack" } else { "pack" };
        let begun = (pack.name.generation.0 / 1_000_000) as i64;
        let noted = !self.wish.dry_run;
        let (pair, key, bytes) = (pack.pair.to_string(), pack.key.0, pack.bytes);
        self.tell(OrphanObject { pair, key, kind: kind.into(), bytes, begun, noted }).await
    }
}

fn totals(pack: &StoredPack, named: &HashMap<ObjectKey, u64>) -> PackTotals {
    // A member that several files name is counted for each.
    let live = named.get(&pack.key).copied().unwrap_or(0).min(pack.bytes);
    PackTotals {
        objects: 1,
        bytes: pack.bytes,
        live_bytes: live,
        dead_bytes: pack.bytes - live,
        ..PackTotals::default()
    }
}
