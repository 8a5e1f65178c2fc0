//! What a recall leaves behind: the object of a file whose content is all here again goes, at once or after the pair's retention for it (R2).
//!
//! A recalled file is dual, and its journal row says until when. Then, if it is dual still, with that very object:
//!
//! 1. Its record becomes resident, durably, with the object as superseded. Before it the object is named and nothing deletes it; after it the
//!    local bytes alone are the content, which they were under *dual* already: the recall made them durable before it said so, and
//!    whoever changes them makes the record resident first.
//! 2. The object's deletion is noted, due at once. A crash before that finds the row again, and the object in `superseded`: then it is
//!    noted as that of any superseded object, for nothing tells whether a writer came between.
//! 3. The row goes.
//!
//! What was released, changed or archived anew meanwhile is left alone: it is not dual, or names another object. The deletion itself is the
//! ordinary one, which looks once more whether any record names the object, and spares what others borrow.

use std::sync::Arc;

use futures::{StreamExt, stream};
use serde_json::json;

use super::cell::{Cell, is_hollow, same_content};
use super::error::{EngineError, EngineResult};
use super::intents::{UNREADABLE_PAUSE_S, is_gone, look_again_if_gone};
use super::{Engine, Target, blocking};
use crate::kill;
use crate::ports::{LowerError, Recalled};
use crate::record::{Claim, Record, is_peer_key};
use crate::tier::{Activity, Event, Verdict};
use crate::types::{Inode, ObjectKey, Timestamp};

/// Rows taken per look at the journal.
const BATCH: usize = 256;
/// Files at once: each waits for a sync.
const AT_ONCE: usize = 16;
/// When a file in use by a transfer is looked at again, in seconds.
const BUSY_PAUSE_S: i64 = 5;

/// What there is to do about a recalled file.
enum Step {
    /// Its object is superseded, durably, and to be deleted from then on; `None`: after the retention.
    Superseded(Arc<Cell>, Option<Timestamp>),
    /// It is not what was recalled any more.
    Left,
    /// A transfer runs.
    Busy,
}

impl Engine {
    /// Notes that `node` has all of the content of `object` again, if its record says so. Durable on return.
    pub(super) async fn note_after_recall(self: &Arc<Self>, node: &Inode, key: &ObjectKey) -> EngineResult<()> {
        let Some(record) = self.record_if_dual(node, key)? else { return Ok(()) };
        let object = record.object.expect("a dual file has an object");
        let Ok(target) = self.target_of(node.id, &object) else { return Ok(()) };
        let Some(kept_s) = target.recalled_for_s else { return Ok(()) };
        let now = self.clock.now();
        let not_before = Timestamp { secs: now.secs.saturating_add_unsigned(kept_s), ..now };
        let recalled = Recalled { pair: object.pair.name, key: object.key, node: *node, not_before };
        self.journal.note_recalled(recalled).await?;
        kill::point("recalled.noted");
        if kept_s == 0 {
            self.deletions.notify_one();
        }
        Ok(())
    }

    /// The record of a file that is dual with this object of a store.
    fn record_if_dual(&self, node: &Inode, key: &ObjectKey) -> EngineResult<Option<Record>> {
        let record = match self.known_record(node) {
            Err(EngineError::Lower { source, .. }) if is_gone(&source) => return Ok(None),
            record => record?,
        };
        Ok(Some(record).filter(|record| record.claim == Claim::Dual && record.names(key) && !is_peer_key(key)))
    }

    /// Gives up the objects of recalled files that are due; `true` when there may be more.
    pub(super) async fn give_up_recalled(self: &Arc<Self>, target: &Target) -> EngineResult<bool> {
        if target.recalled_for_s.is_none() || self.lower.features().read_only {
            return Ok(false);
        }
        let due = self.journal.recalled_due(&target.pair.name, self.clock.now(), BATCH).await?;
        let more = due.len() == BATCH;
        let settled = stream::iter(due).map(|recalled| self.give_up(target, recalled)).buffer_unordered(AT_ONCE);
        let ended: Vec<EngineResult<()>> = settled.collect().await;
        ended.into_iter().collect::<EngineResult<()>>()?;
        Ok(more)
    }

    /// An error is the journal's: the row stays as it is.
    async fn give_up(self: &Arc<Self>, target: &Target, recalled: Recalled) -> EngineResult<()> {
        let (this, row, pair) = (self.clone(), recalled.clone(), target.pair.clone());
        let step = blocking(move || look_again_if_gone(|| this.supersede_recalled(&row, &pair))).await?;
        let pause = match step {
            Ok(Step::Superseded(cell, not_before)) => {
                kill::point("recalled.resident");
                self.note_superseded_until(&cell, not_before).await?;
                kill::point("recalled.given_up");
                None
            }
            Ok(Step::Left) => None,
            Ok(Step::Busy) => Some(BUSY_PAUSE_S),
            Err(error) => {
                tracing::warn!(object = %recalled.key, "it stays for now, as the file that was recalled from it cannot be asked: {error}");
                Some(UNREADABLE_PAUSE_S)
            }
        };
        let now = self.clock.now();
        let until = pause.map(|pause| Timestamp { secs: now.secs + pause, ..now });
        self.journal.settle_recalled(recalled, until).await?;
        kill::point("recalled.settled");
        Ok(())
    }

    /// Step 1.
    fn supersede_recalled(self: &Arc<Self>, recalled: &Recalled, pair: &crate::record::PairRef) -> EngineResult<Step> {
        let failed = |error: LowerError| EngineError::lower(recalled.node.id)(error);
        let Some((node, attr)) = self.noted_inode(&recalled.node)? else { return Ok(Step::Left) };
        // Its removal has noted when the object goes, and until then it can be brought back.
        if attr.nlink == 0 {
            return Ok(Step::Left);
        }
        let cell = self.cells.get(&node)?;
        let mut inner = cell.lock();
        if inner.machine.is_unknown() {
            self.reestablish(&cell, &mut inner)?;
        }
        // By us, before a crash; or by a writer, and then the object has what he changed, and is kept for the retention as ever.
        if inner.record.superseded.as_ref().is_some_and(|old| old.key == recalled.key) {
            drop(inner);
            return Ok(Step::Superseded(cell, None));
        }
        let named = inner.record.object.as_ref().filter(|object| object.key == recalled.key && object.pair == *pair);
        let (Claim::Dual, Some(object), None) = (inner.record.claim, named, &inner.record.peer) else {
            return Ok(Step::Left);
        };
        let attr = self.lower.stat(&node).map_err(failed)?;
        // Left alone in every way (R32), and so is the object.
        if attr.sealed || inner.record.flags.retained {
            return Ok(Step::Left);
        }
        if inner.machine.activity() != Activity::None {
            return Ok(Step::Busy);
        }
        // Changed below the mount while somebody uses it: what that means is judged when it is used next.
        if !same_content(&attr, &inner.record) || is_hollow(&*self.lower, &node, &attr, object, None)? {
            return Ok(Step::Busy);
        }
        let Verdict::Save(Claim::Resident) = inner.machine.apply(Event::Rewrite) else { return Ok(Step::Busy) };
        let generation = inner.record.generation.after(self.clock.now());
        let record = inner.record.clone().into_resident(generation);
        self.save_durably(&cell, &mut inner, record)?;
        drop(inner);
        self.note_state(node.id);
        self.trace.note(node.id, || json!({ "event": "object given up", "object": recalled.key.to_string() }));
        // At once: the file has what is deleted.
        Ok(Step::Superseded(cell, Some(self.clock.now())))
    }
}
