//! Adopting: a file whose record names another pair than the one mounted is made one of this pair, because an administrator says so (R7).
//!
//! Only after the pair that is mounted was seen to have what the record says: the object, of that length and version; or the file of that id at the other
//! side, as the counterpart of what it is here.

use std::sync::Arc;

use super::cell::Cell;
use super::error::{EngineError, EngineResult, PeerTrouble};
use super::{Engine, blocking};
use crate::kill;
use crate::record::{Record, is_peer_key};
use crate::tier::{Activity, Refusal};

impl Engine {
    /// Whether the record was changed: `false`, it is this pair's already, or names none.
    pub(super) async fn adopt(self: &Arc<Self>, cell: &Arc<Cell>) -> EngineResult<bool> {
        let target = self.target()?;
        if self.lower.features().read_only {
            return Err(EngineError::ReadOnly);
        }
        let before = cell.lock().record.clone();
        let mut record = before.clone();
        if let Some(object) = &mut record.object {
            object.pair = target.pair.clone();
        }
        if let Some(peer) = &mut record.peer {
            peer.pair = target.pair.name.clone();
        }
        if record == before {
            return Ok(false);
        }
        match (&record.object, &record.peer) {
            (_, Some(peer)) => self.check_peer_record(cell, peer.clone()).await?,
            (Some(object), None) if !is_peer_key(&object.key) && !target.peer => {
                self.confirm_object(cell.node.id, object).await?;
            }
            _ => return Err(EngineError::Peer { file: cell.node.id, why: PeerTrouble::AtStore }),
        }
        tracing::warn!(file = %cell.node.id, pair = %target.pair.name, "adopted, as the administrator says");
        let (this, cell) = (self.clone(), cell.clone());
        blocking(move || this.store_adopted(&cell, &before, record)).await??;
        Ok(true)
    }

    fn store_adopted(&self, cell: &Cell, before: &Record, record: Record) -> EngineResult<()> {
        let failed = EngineError::lower(cell.node.id);
        let mut inner = cell.lock();
        let rests = inner.machine.activity() == Activity::None && !inner.machine.is_unknown();
        if inner.record != *before || !rests {
            return Err(EngineError::Refused { file: cell.node.id, why: Refusal::Changed });
        }
        self.lower.save_record(&cell.node, &record.encode()).map_err(&failed)?;
        kill::point("peer.adopted");
        inner.record = record;
        if let Err(error) = self.lower.sync_node(&cell.node) {
            self.cells.note_unknown(cell, &mut inner);
            return Err(failed(error));
        }
        Ok(())
    }
}
