//! A file of the pair kept as it is while something else takes its name, which then is that file: this side owns it, and nobody asks otherwise meanwhile.

use std::sync::Arc;
use std::time::Duration;

use super::super::Engine;
use super::super::cell::Cell;
use super::super::error::{EngineError, EngineResult, PeerTrouble};
use crate::record::PeerState;
use crate::tier::{Activity, Event, Verdict};

/// How long a transfer of the file is waited for.
const REST_WITHIN: Duration = Duration::from_secs(10);

/// A file that is kept as it is until this is dropped.
pub struct OwnerHold {
    engine: Arc<Engine>,
    cell: Arc<Cell>,
    /// What is handed on to what takes the name.
    pub peer: PeerState,
}

impl OwnerHold {
    /// Which file it is.
    pub fn file(&self) -> crate::types::FileId {
        self.cell.node.id
    }
}

impl Drop for OwnerHold {
    fn drop(&mut self) {
        let mut inner = self.cell.lock();
        if !inner.machine.is_unknown() {
            self.engine.follow(&mut inner);
        }
        drop(inner);
        self.cell.changed.notify_waiters();
    }
}

impl Engine {
    /// Keeps a file that both sides of a pair have, after its content has come here for good. `None`: it is no such file.
    pub async fn hold_owner(self: &Arc<Self>, cell: &Arc<Cell>) -> EngineResult<Option<OwnerHold>> {
        loop {
            {
                let mut inner = cell.lock();
                let Some(peer) = inner.record.peer.clone() else { return Ok(None) };
                self.known(cell, &mut inner)?;
                if peer.is_handing_over() {
                    return self.trouble(cell, PeerTrouble::Undecided);
                }
                if !peer.is_foreign() && inner.machine.activity() == Activity::None {
                    return match inner.machine.apply(Event::HandOverBegin) {
                        Verdict::Go => Ok(Some(OwnerHold { engine: self.clone(), cell: cell.clone(), peer })),
                        Verdict::Refuse(why) => Err(EngineError::Refused { file: cell.node.id, why }),
                        other => unreachable!("{other:?} to the beginning of a change of owner"),
                    };
                }
            }
            self.recall(cell).await?;
            let rest = cell.wait_until(|inner| inner.machine.activity() == Activity::None);
            if tokio::time::timeout(REST_WITHIN, rest).await.is_err() {
                return self.trouble(cell, PeerTrouble::Undecided);
            }
        }
    }

    /// Whether a file is kept as it is just now, or is being put in place, rather than asked for.
    pub(super) fn is_kept(&self, inner: &super::Inner) -> bool {
        let asked = inner.record.peer.as_ref().is_some_and(PeerState::is_handing_over);
        inner.machine.activity() == Activity::HandingOver && !asked
    }
}
