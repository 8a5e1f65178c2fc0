//! Files that both sides of a pair have (`role = gpeer`): one side owns the content, the other has a stub of it.
//!
//! ```text
//! facts    what the metadata sync makes and tells      seal    a generation that fixes the bytes
//! offer    this side asks the other to own the file    take    this side asks to own it
//! serve    what the other side asks of this one        ask     asking until there is an answer
//! empty    this side asks to own it, to throw the content away
//! source   the other side's content for a recall       wire    keys and headers of what is asked
//! ```
//!
//! Invariants: content is given up, and blocks are freed, only after a durable record says that the other side owns it; what was asked is
//! repeated, after restarts, too, until the side that was asked has decided, and it decides once: a refusal is stored like a grant, and both
//! raise the epoch, so that no late copy of a call is acted upon. (A change of content needs no such step: generations never come back.)

mod ask;
mod check;
mod empty;
mod facts;
mod hold;
mod manifest;
mod offer;
mod serve;
mod source;
mod state;
mod take;
pub mod wire;

pub use empty::Emptying;
pub use facts::PeerFacts;
pub use hold::{NewHold, OwnerHold};
pub(super) use manifest::Manifests;
pub use serve::StagedCopy;

use std::sync::Arc;

use super::cell::{Cell, Inner, demote, paired};
use super::error::{EngineError, EngineResult, PeerTrouble};
use super::owner::name_of;
use super::session::date;
use super::{Engine, Target};
use crate::kill;
use crate::ports::{Lower, SetAttr};
use crate::record::{PeerState, Phase, Record, Seal};
use crate::tier::Event;
use crate::types::Inode;

/// Reads and judges the record of a pair's file, as [`super::load_record`] does with others.
pub(super) fn judge(lower: &dyn Lower, node: &Inode, record: Record) -> EngineResult<Record> {
    let attr = lower.stat(node).map_err(EngineError::lower(node.id))?;
    let peer = record.peer.as_ref().expect("only records of pairs' files come here");
    let changed_below = |why| {
        let object = format!("{} at the other side of pair {}", peer.id, peer.pair);
        Err(EngineError::ChangedBelow { file: node.id, object, why })
    };
    let here = Seal { len: attr.size, mtime: attr.mtime };
    match peer.phase {
        Phase::Owner { .. } if peer.here != node.id => {
            // Copied below the mount (`cp -a`), with its content: another file, which the other side does not have.
            Ok(Record { peer: None, ..record })
        }
        _ if peer.here != node.id => changed_below("its record is that of another file, copied below the mount"),
        Phase::Owner { published: true } if peer.content != here => {
            tracing::warn!(path = name_of(lower, node), "changed below the mount: it has another generation");
            demote(lower, node, record)
        }
        // Its bytes may be the only ones by now, whatever somebody has done to them.
        Phase::Offering if peer.content != here => {
            tracing::warn!(
                path = name_of(lower, node),
                "changed below the mount while the other side was asked to take it"
            );
            Ok(record)
        }
        Phase::Stub => {
            let len = record.object.as_ref().map_or(0, |object| object.len);
            if attr.size == len {
                return Ok(record);
            }
            if peer.was_len != Some(attr.size) {
                return changed_below("its size is not that of the content there");
            }
            // The record is stored before the size is set, and a crash came between.
            if !lower.features().read_only {
                let size = SetAttr { size: Some(len), ..SetAttr::default() };
                let sized = lower.set_attr(node, &size).and_then(|_| lower.set_attr(node, &date(peer.content.mtime)));
                sized.map_err(EngineError::lower(node.id))?;
            }
            Ok(record)
        }
        Phase::Owner { .. } | Phase::Offering | Phase::Taking => Ok(record),
    }
}

impl Engine {
    /// The pair, if its other side is a share.
    pub(super) fn peer_target(&self) -> EngineResult<Arc<Target>> {
        let features = self.lower.features();
        let fits = features.trusted_xattrs && features.leases && features.punch_hole;
        let target = self.target()?;
        if target.peer && fits {
            return Ok(target);
        }
        Err(EngineError::Peer { file: self.lower.root().id, why: PeerTrouble::NoPeer })
    }

    /// Whether migrating means giving content to the other side of the pair.
    pub fn gives_to_peer(&self) -> bool {
        self.target().is_ok_and(|target| target.peer)
    }

    /// What the record of a file says of the pair's other side; an error if that is another pair's.
    pub(super) fn peer_of(&self, cell: &Cell, record: &Record) -> EngineResult<PeerState> {
        let target = self.peer_target()?;
        let Some(peer) = &record.peer else {
            let why = if record.object.is_some() { PeerTrouble::AtStore } else { PeerTrouble::NotPaired };
            return Err(EngineError::Peer { file: cell.node.id, why });
        };
        if peer.pair != target.pair.name {
            return Err(EngineError::ForeignPair {
                file: cell.node.id,
                found: peer.pair.clone(),
                found_share: "the other side's file".into(),
                mounted: target.pair.name.to_string(),
            });
        }
        self.check_pair(&cell.node, record)?;
        Ok(peer.clone())
    }

    /// Stores, durably, what was decided of a file's owner, or that it is to be; the machine follows. `done` names the kill point behind it.
    fn save_owner(&self, cell: &Cell, inner: &mut Inner, record: Record, done: &'static str) -> EngineResult<()> {
        let failed = EngineError::lower(cell.node.id);
        self.lower.save_record(&cell.node, &record.encode()).map_err(&failed)?;
        inner.record = record;
        if let Err(error) = self.lower.sync_node(&cell.node) {
            // Neither this nor what was before can be acted upon until it is known which is stored.
            self.cells.note_unknown(cell, inner);
            return Err(failed(error));
        }
        kill::point(done);
        self.follow(inner);
        Ok(())
    }

    /// Tells the machine what the record says.
    pub(super) fn follow(&self, inner: &mut Inner) {
        let now = paired(&inner.record);
        inner.machine.apply(Event::HandOverEnded(inner.record.claim, now));
    }

    /// Ends the unknown state that a failed sync left, if there is one.
    fn known(&self, cell: &Cell, inner: &mut Inner) -> EngineResult<()> {
        if inner.machine.is_unknown() {
            self.reestablish(cell, inner)?;
        }
        Ok(())
    }

    fn trouble<T>(&self, cell: &Cell, why: PeerTrouble) -> EngineResult<T> {
        Err(EngineError::Peer { file: cell.node.id, why })
    }
}
