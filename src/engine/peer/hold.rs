//! A file of the pair kept as it is while something else takes its name, which then is that file: this side owns it, or the owner offers it, and nobody asks
//! otherwise meanwhile.
//!
//! What is offered needs no content: the name's new file has its own, and says in its record that this side owns it in the epoch that the offer begins. The rename
//! that puts it in place is what accepts the offer: before it is durable, the old file is found here, a stub whose content the owner has; after it, the new one.
//! Both are held, so that nobody is told of the one before the other can not come back.

use std::sync::Arc;
use std::time::Duration;

use super::super::cell::Cell;
use super::super::error::{EngineError, EngineResult, PeerTrouble};
use super::super::{Engine, blocking};
use super::empty::Offer;
use super::state::ownership;
use crate::peer::{self, Call, Local, decide};
use crate::record::PeerState;
use crate::tier::{Activity, Event, Verdict};
use crate::types::Inode;

/// How often an offer is asked for that something else overtakes.
const OFFERS: u32 = 3;
/// How long a transfer of the file is waited for.
const REST_WITHIN: Duration = Duration::from_secs(10);

/// A file that is kept as it is until this is dropped.
pub struct OwnerHold {
    engine: Arc<Engine>,
    cell: Arc<Cell>,
    /// What is handed on to what takes the name: of the epoch in which that owns.
    pub peer: PeerState,
}

/// A file that has just got its name, until that is durable: nobody is told who owns it.
pub struct NewHold {
    engine: Arc<Engine>,
    cell: Arc<Cell>,
}

impl NewHold {
    /// Its name may not be durable: the other side is told nothing of it while this process lives.
    pub fn keep_for_good(self) {
        tracing::error!(file = %self.cell.node.id, "it is not known whether its name is on the disk: the pair's other side is told nothing of it until the share is mounted again");
        std::mem::forget(self);
    }
}

impl Drop for NewHold {
    fn drop(&mut self) {
        self.engine.let_hold_go(&self.cell);
    }
}

impl OwnerHold {
    /// Which file it is.
    pub fn file(&self) -> crate::types::FileId {
        self.cell.node.id
    }
}

impl Drop for OwnerHold {
    fn drop(&mut self) {
        self.engine.let_hold_go(&self.cell);
    }
}

impl Engine {
    fn let_hold_go(&self, cell: &Cell) {
        let mut inner = cell.lock();
        if !inner.machine.is_unknown() {
            self.follow(&mut inner);
        }
        drop(inner);
        cell.changed.notify_waiters();
    }

    /// Keeps a file that is about to get its name, if the other side of the pair knows it. Its record is stored.
    pub fn hold_new(self: &Arc<Self>, node: &Inode) -> EngineResult<Option<NewHold>> {
        let cell = self.cells.get(node)?;
        let mut inner = cell.lock();
        if inner.record.peer.is_none() {
            return Ok(None);
        }
        if let Verdict::Refuse(why) = inner.machine.apply(Event::HandOverBegin) {
            return Err(EngineError::Refused { file: node.id, why });
        }
        drop(inner);
        Ok(Some(NewHold { engine: self.clone(), cell }))
    }

    /// Keeps a stub that the owner has offered, so that its content need not come. `None`: it has to.
    async fn hold_offered(self: &Arc<Self>, cell: &Arc<Cell>) -> EngineResult<Option<OwnerHold>> {
        let alone = {
            let inner = cell.lock();
            // Who has it open, or another name of it, keeps the old content: then it has to come.
            inner.machine.is_foreign()
                && inner.machine.claim().is_remote()
                && inner.machine.handles() == 0
                && self.lower.stat(&cell.node).map_err(EngineError::lower(cell.node.id))?.nlink == 1
        };
        if !alone {
            return Ok(None);
        }
        for _ in 0..OFFERS {
            match self.ask_for_offer(cell).await? {
                Offer::Made(call, _) => {
                    let (this, on) = (self.clone(), cell.clone());
                    if let Some(peer) = blocking(move || this.hold_to_accept(&on, call)).await?? {
                        return Ok(Some(OwnerHold { engine: self.clone(), cell: cell.clone(), peer }));
                    }
                }
                Offer::Renewed => {}
                Offer::Needless | Offer::Unknown => return Ok(None),
            }
        }
        Ok(None)
    }

    /// What the file is once the offer is accepted, which is held open: nobody answers it meanwhile. `None`: it was refused before, or is none any more.
    fn hold_to_accept(&self, cell: &Arc<Cell>, call: Call) -> EngineResult<Option<PeerState>> {
        let mut inner = cell.lock();
        self.known(cell, &mut inner)?;
        let peer = self.peer_of(cell, &inner.record)?;
        let next = inner.record.generation.after(self.now());
        // The new file takes the place of the cut: this one's bytes stay what they are.
        let local = Local { emptied: Some(next), cut: true, ..self.local(cell, &inner)? };
        let accepted = match decide(&ownership(&inner.record, &peer), &local, peer::Event::Called(call)) {
            peer::Verdict::Save(new) if new.is_owner() => new,
            _ => return Ok(None),
        };
        let rests = inner.machine.activity() == Activity::None && inner.machine.handles() == 0;
        if !rests || inner.machine.apply(Event::HandOverBegin) != Verdict::Go {
            return Ok(None);
        }
        Ok(self.decided(&inner.record, &accepted, 0)?.peer)
    }

    /// Keeps a file that both sides of a pair have, once this side owns it or the owner offers it. `None`: it is no such file.
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
            if let Some(offered) = self.hold_offered(cell).await? {
                return Ok(Some(offered));
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
