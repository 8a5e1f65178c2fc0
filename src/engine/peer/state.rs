//! Between what is stored of a pair's file and what is decided of it; and how a decision is stored.
//!
//! What is weakened is stored before bytes are freed; what is claimed was made durable before.

use super::super::cell::{Cell, Inner};
use super::super::error::{EngineError, EngineResult};
use super::super::session::date;
use super::super::{Engine, EngineError as Error};
use super::wire::NOWHERE;
use crate::kill;
use crate::peer::{self, Attempt, Content, Epoch, Local, Ownership, Ticket, Verdict, decide};
use crate::ports::SetAttr;
use crate::record::{Attempted, Claim, PeerState, Phase, Record, Seal, peer_object};
use crate::types::{FileId, Inode, PairFileId};

/// The id as the decisions know it.
pub(super) fn peer_id(id: PairFileId) -> peer::PairFileId {
    peer::PairFileId(u128::from_be_bytes(id.0))
}

/// What is stored of a file, as decisions are made of it.
pub(super) fn ownership(record: &Record, peer: &PeerState) -> Ownership {
    let seal = match &record.object {
        Some(object) => Seal { len: object.len, mtime: object.mtime },
        None => peer.content,
    };
    Ownership {
        file: peer_id(peer.id),
        epoch: Epoch(peer.epoch),
        phase: peer.phase,
        content: Content { generation: record.generation, len: seal.len, mtime: seal.mtime },
        attempt: Attempt(peer.attempt),
        refused: Ticket { epoch: Epoch(peer.refused.epoch), attempt: Attempt(peer.refused.attempt) },
    }
}

impl Engine {
    /// The record of a file whose owner was decided to be as `new` says.
    pub(super) fn decided(&self, before: &Record, new: &Ownership, local_len: u64) -> EngineResult<Record> {
        let target = self.peer_target()?;
        let old = before.peer.clone().expect("decisions are made of pairs' files");
        let phase = new.phase;
        let mut generation = new.content.generation;
        if phase == (Phase::Owner { published: true }) && old.phase == (Phase::Owner { published: false }) {
            // What was told before it was published is of no bytes in particular, and must not be taken for these.
            generation = before.generation.after(self.now());
        }
        let content = Seal { len: new.content.len, mtime: new.content.mtime };
        let foreign = matches!(phase, Phase::Stub | Phase::Taking);
        let object = (foreign && content.len > 0).then(|| {
            let chunk = target.chunk_size(content.len);
            peer_object(target.pair.clone(), old.id, generation, content.len, content.mtime, chunk)
        });
        let claim = match (phase, &object, before.claim) {
            (_, None, _) => Claim::Resident,
            (Phase::Taking, ..) => Claim::Dual,
            (_, Some(_), Claim::Stub) => Claim::Stub,
            (_, Some(_), Claim::Resident) if old.phase == Phase::Stub => Claim::Stub,
            // Some or all of it is here; a release that was cut short goes on as one of parts.
            (_, Some(_), _) => Claim::Partial,
        };
        let was_len = (foreign && local_len != content.len).then_some(local_len);
        let peer = PeerState {
            epoch: new.epoch.0,
            phase,
            content,
            attempt: new.attempt.0,
            refused: Attempted { epoch: new.refused.epoch.0, attempt: new.refused.attempt.0 },
            offered: old.offered.filter(|_| phase == Phase::Offering),
            was_len,
            ..old
        };
        Ok(Record { claim, generation, object, peer: Some(peer), ..before.clone() })
    }

    /// Makes the decisions that only have something stored, durably, and gives back the first that has more to do. With the cell's lock held; local I/O
    /// only. `done` names the kill point behind what is stored.
    pub(super) fn decide_and_store(
        &self,
        cell: &Cell,
        inner: &mut Inner,
        mut local: Local,
        event: peer::Event,
        done: &'static str,
    ) -> EngineResult<Verdict> {
        loop {
            let peer = self.peer_of(cell, &inner.record)?;
            let own = ownership(&inner.record, &peer);
            let new = match decide(&own, &local, event) {
                Verdict::Save(new) => new,
                Verdict::Sync => {
                    self.lower.sync_node(&cell.node).map_err(EngineError::lower(cell.node.id))?;
                    local.synced = true;
                    continue;
                }
                Verdict::Cut => {
                    local = self.cut_stub(cell, inner, local)?;
                    continue;
                }
                verdict => return Ok(verdict),
            };
            let attr = self.lower.stat(&cell.node).map_err(EngineError::lower(cell.node.id))?;
            let record = self.decided(&inner.record, &new, attr.size)?;
            // A stub of other content; or what was taken, whose times are as the owner had them last.
            let owns = own.phase == Phase::Taking && new.phase != Phase::Taking;
            let resize = record.peer.as_ref().is_some_and(|peer| peer.was_len.is_some())
                || (owns && attr.mtime != new.content.mtime && attr.size == new.content.len);
            if let Err(error) = self.save_owner(cell, inner, record, done) {
                if local.cut && !inner.machine.is_unknown() {
                    // It stays a stub, of the size that it had.
                    self.set_size(&cell.node, peer.content)?;
                }
                return Err(error);
            }
            if resize {
                self.set_size(&cell.node, Seal { len: new.content.len, mtime: new.content.mtime })?;
                self.lower.sync_node(&cell.node).map_err(EngineError::lower(cell.node.id))?;
                kill::point("peer.resized");
            }
        }
    }

    /// Cuts a stub's local file to nothing, durably. Before, its record says, durably, that the file may be so: after a crash it is a stub of the size that it
    /// had ([`super::judge`]), and the content is where it was.
    fn cut_stub(&self, cell: &Cell, inner: &mut Inner, local: Local) -> EngineResult<Local> {
        let failed = EngineError::lower(cell.node.id);
        let mut record = inner.record.clone();
        if let Some(peer) = &mut record.peer {
            peer.was_len = Some(0);
        }
        self.save_owner(cell, inner, record, "peer.emptying")?;
        let size = SetAttr { size: Some(0), ..SetAttr::default() };
        self.lower.set_attr(&cell.node, &size).map_err(&failed)?;
        kill::point("peer.cut");
        self.lower.sync_node(&cell.node).map_err(&failed)?;
        kill::point("peer.cut.synced");
        let attr = self.lower.stat(&cell.node).map_err(&failed)?;
        Ok(Local { len: attr.size, mtime: attr.mtime, cut: true, ..local })
    }

    /// Gives a stub the size and mtime of its content.
    pub(super) fn set_size(&self, node: &Inode, content: Seal) -> EngineResult<()> {
        let size = SetAttr { size: Some(content.len), ..SetAttr::default() };
        let set = self.lower.set_attr(node, &size).and_then(|_| self.lower.set_attr(node, &date(content.mtime)));
        set.map(drop).map_err(Error::lower(node.id))
    }

    /// How long and how old a file is just now, as decisions want it. Who has it open is for the caller to say.
    pub(super) fn local(&self, cell: &Cell, inner: &Inner) -> EngineResult<Local> {
        let attr = self.lower.stat(&cell.node).map_err(EngineError::lower(cell.node.id))?;
        Ok(Local { len: attr.size, mtime: inner.shown_mtime.unwrap_or(attr.mtime), ..Local::default() })
    }
}

/// The other side's inode of a file, as it has just told it.
pub(super) fn learn_node(inner: &mut Inner, from: FileId) {
    if let Some(peer) = inner.record.peer.as_mut().filter(|_| from != NOWHERE) {
        peer.there = from;
    }
}
