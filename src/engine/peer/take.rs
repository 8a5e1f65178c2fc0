//! This side asks to own a file: all of its content has come, and is durable.
//!
//! Order: all content here, verified, dated, synced → note (durable) → record *taking* (durable) → the owner is asked, until it has answered →
//! record *owner* (durable), and only then does a writer go on; or *stub* again.

use std::sync::Arc;

use super::super::archive::OpenNote;
use super::super::cell::Cell;
use super::super::error::{EngineError, EngineResult, PeerTrouble};
use super::super::fill::Fill;
use super::super::{Engine, blocking};
use super::state::learn_node;
use super::wire::{Told, Verb};
use crate::peer::{Answer, Event, Local, Verdict};
use crate::ports::IntentId;
use crate::record::{Claim, PeerState, Phase, Record};
use crate::tier::{Activity, Event as Step, Verdict as Next};
use crate::types::Generation;

/// Longest answer about a file that is read, in bytes.
const FACTS_MAX: u64 = 64 << 10;

impl Engine {
    /// A recall of the other side's content has brought all of it. `touched`: its note.
    pub(in crate::engine) async fn take(
        self: &Arc<Self>,
        fill: &Arc<Fill>,
        touched: Option<OpenNote>,
    ) -> EngineResult<()> {
        let cell = &fill.cell;
        let note = match touched {
            // The same key, and the same end: what a start finds of either is looked at in the same way.
            Some(OpenNote::Settle(note) | OpenNote::Upload(note)) => note,
            None => self.note_handover(cell).await?,
        };
        let begun = {
            let (this, on, brought) = (self.clone(), cell.clone(), fill.object.generation);
            blocking(move || this.begin_taking(&on, Some(brought))).await?
        };
        if let Err(error) = begun {
            self.not_taken(fill, note).await;
            return Err(error);
        }
        cell.changed.notify_waiters();
        self.leftover_is_gone(cell);
        self.asked_to_take(cell, note).await
    }

    /// Nothing was asked, as far as is known: what has come stays a stub's.
    async fn not_taken(self: &Arc<Self>, fill: &Arc<Fill>, note: IntentId) {
        let cell = &fill.cell;
        let (unknown, recalls) = {
            let inner = cell.lock();
            (inner.machine.is_unknown(), matches!(inner.machine.activity(), Activity::Recalling { .. }))
        };
        if unknown {
            return self.spawn_ask(cell.clone(), note);
        }
        if recalls {
            return self.rest_recall(fill, Some(OpenNote::Settle(note))).await;
        }
        let kept = {
            let mut inner = cell.lock();
            // Ownership may have come by the other side's offer meanwhile: then there is nothing of a stub to say.
            let is_stub = inner.machine.is_foreign() && inner.record.object.is_some();
            let claim = if is_stub { Claim::Partial } else { inner.record.claim };
            let record = Record { claim, ..inner.record.clone() };
            let kept = self.lower.save_record(&cell.node, &record.encode());
            if kept.is_ok() {
                inner.record = record;
                self.follow(&mut inner);
            }
            kept
        };
        cell.changed.notify_waiters();
        match kept {
            Ok(()) => self.spawn_forget_when_durable(cell.clone(), Some(OpenNote::Settle(note))),
            Err(error) => tracing::warn!(file = %cell.node.id, "what a recall has brought is not recorded: {error}"),
        }
    }

    /// Asks, and says what came of it.
    async fn asked_to_take(self: &Arc<Self>, cell: &Arc<Cell>, note: IntentId) -> EngineResult<()> {
        self.ask_until_decided(cell, note).await?;
        let phase = cell.lock().record.peer.as_ref().map(|peer| peer.phase);
        match phase {
            Some(Phase::Owner { .. }) => Ok(()),
            _ => self.trouble(cell, PeerTrouble::Refused),
        }
    }

    /// `brought`: the generation whose bytes have come; none are needed of an empty content. By now the stub may be one of a newer generation, of which nothing is
    /// here: taken all the same, its content would be lost.
    fn begin_taking(&self, cell: &Arc<Cell>, brought: Option<Generation>) -> EngineResult<()> {
        let mut inner = cell.lock();
        self.known(cell, &mut inner)?;
        let whole = brought.or_else(|| inner.record.object.is_none().then_some(inner.record.generation));
        if let Next::Refuse(why) = inner.machine.apply(Step::HandOverBegin) {
            return Err(EngineError::Refused { file: cell.node.id, why });
        }
        let local = Local { whole, intended: true, ..self.local(cell, &inner)? };
        let decided = self.decide_and_store(cell, &mut inner, local, Event::TakeBegin, "peer.taking");
        inner.recall = None;
        inner.shown_mtime = None;
        match decided {
            Ok(Verdict::Call(_)) => Ok(()),
            Ok(other) => {
                self.follow(&mut inner);
                tracing::debug!(file = %cell.node.id, "{other:?} to the beginning of a taking");
                self.trouble(cell, PeerTrouble::Refused)
            }
            Err(error) => {
                if !inner.machine.is_unknown() {
                    self.follow(&mut inner);
                }
                Err(error)
            }
        }
    }

    /// Whether somebody who wants to change a file finds all of its content here, and the other side its owner: then nothing is to be fetched.
    pub(in crate::engine) fn is_to_be_taken(&self, cell: &Cell) -> bool {
        let inner = cell.lock();
        inner.machine.is_foreign() && inner.machine.is_local() && inner.machine.activity() == Activity::None
    }

    /// Takes such a file: an empty one.
    pub(in crate::engine) async fn take_local(self: &Arc<Self>, cell: &Arc<Cell>) -> EngineResult<()> {
        let note = self.note_handover(cell).await?;
        let (this, on) = (self.clone(), cell.clone());
        let begun = blocking(move || this.begin_taking(&on, None)).await?;
        if let Err(error) = begun {
            self.journal.remove(note).await?;
            return Err(error);
        }
        cell.changed.notify_waiters();
        self.asked_to_take(cell, note).await
    }

    /// How a file is at the other side.
    pub(super) async fn ask_facts(&self, cell: &Cell) -> EngineResult<Told> {
        let peer = {
            let inner = cell.lock();
            self.peer_of(cell, &inner.record)?
        };
        let told = self.ask_facts_of(cell, &peer).await?;
        // In memory until something else is stored: a hint, by which it is found again after a rename.
        learn_node(&mut cell.lock(), told.from);
        Ok(told)
    }

    /// The same, of what a record says that may not be the file's yet.
    pub(super) async fn ask_facts_of(&self, cell: &Cell, peer: &PeerState) -> EngineResult<Told> {
        let key = self.named(&cell.node, peer).key(Verb::Facts);
        let asked = self.peer_target()?.remote.get_all(&key, FACTS_MAX).await;
        let body = asked.map_err(EngineError::remote(cell.node.id))?;
        let why = PeerTrouble::Contradiction;
        serde_json::from_slice(&body).map_err(|_| EngineError::Peer { file: cell.node.id, why })
    }

    /// Asks the owner how a stub's content is now, and makes the stub one of that.
    pub async fn refresh_from_peer(self: &Arc<Self>, cell: &Arc<Cell>) -> EngineResult<bool> {
        let told = self.ask_facts(cell).await?;
        match told.answer {
            Answer::Facts(facts)
                if matches!(
                    facts.phase,
                    crate::peer::Phase::Owner { published: true } | crate::peer::Phase::Offering
                ) =>
            {
                let (id, there) = {
                    let inner = cell.lock();
                    let peer = self.peer_of(cell, &inner.record)?;
                    (peer.id, peer.there)
                };
                let facts = super::PeerFacts {
                    id,
                    generation: facts.content.generation,
                    epoch: facts.epoch.0,
                    size: facts.content.len,
                    mtime: facts.content.mtime,
                    there,
                };
                self.refresh_peer_stub(&cell.node, &facts).await
            }
            Answer::Facts(facts) if matches!(facts.phase, crate::peer::Phase::Owner { .. }) => {
                self.trouble(cell, PeerTrouble::BeingWritten)
            }
            _ => Ok(false),
        }
    }

    /// What who waits is told when the content is another at the other side than was asked for: to ask again, as a rule.
    pub(in crate::engine) async fn why_moved(&self, cell: &Cell) -> EngineError {
        use crate::peer::Phase::{Offering, Owner, Stub, Taking};
        let known = cell.lock().record.generation;
        let why = match self.ask_facts(cell).await.map(|told| told.answer) {
            Ok(Answer::Facts(facts)) => match facts.phase {
                Owner { published: false } => PeerTrouble::BeingWritten,
                // The stub becomes one of that.
                Owner { .. } | Offering if facts.content.generation >= known => return EngineError::Cancelled,
                // It is the other side's, which has not heard so yet: its question is repeated.
                Taking => PeerTrouble::Undecided,
                // It has just come here.
                Stub => PeerTrouble::Moved,
                // It was restored from a backup, or so was this side.
                Owner { .. } | Offering => PeerTrouble::Contradiction,
            },
            // Removed since, or on its way to another name: the next try finds out which.
            Ok(_) => PeerTrouble::Moved,
            Err(error) => return error,
        };
        EngineError::Peer { file: cell.node.id, why }
    }

    /// Somebody opens a stub for reading: whether its content is still what is known of it is found out behind his back. He may read what it was; who comes
    /// after does not.
    pub fn look_at_peer(self: &Arc<Self>, cell: &Arc<Cell>) {
        if !self.gives_to_peer() || !self.looking.lock().insert(cell.node.id) {
            return;
        }
        let (this, cell) = (self.clone(), cell.clone());
        self.runtime.spawn(async move {
            if let Err(error) = this.refresh_from_peer(&cell).await {
                tracing::debug!(file = %cell.node.id, "how it is at the pair's other side is not known: {error}");
            }
            this.looking.lock().remove(&cell.node.id);
        });
    }

    /// Whether an error of a recall says that the content was changed at the other side.
    pub(in crate::engine) fn says_moved(&self, error: &EngineError) -> bool {
        matches!(error, EngineError::Remote { source, .. } if source.kind == crate::ports::RemoteErrorKind::Conflict)
    }
}
