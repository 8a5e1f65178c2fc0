//! Asking the other side who owns a file, until it has said so: an answer is acted upon once it is stored, and no answer means asking again,
//! across restarts.

use std::sync::Arc;
use std::time::Duration;

use super::super::cell::{Cell, Inner};
use super::super::error::{EngineError, EngineResult, PeerTrouble};
use super::super::{Engine, blocking};
use super::state::learn_node;
use super::wire::{LOCAL_TO_REMOTE, Named, REMOTE_TO_LOCAL, Told};
use crate::kill;
use crate::peer::{Call, Event, Local, Verdict};
use crate::ports::{AttributeCall, Intent, IntentId, IntentKind, LowerError};
use crate::record::{Phase, is_peer_key};
use crate::types::ContentHash;

/// Pauses between two questions: doubled from the first up to the last.
const ASK_AGAIN_FIRST: Duration = Duration::from_millis(200);
const ASK_AGAIN_LAST: Duration = Duration::from_secs(30);

impl Engine {
    /// Asks once; `true`: it is decided.
    async fn ask(self: &Arc<Self>, cell: &Arc<Cell>) -> EngineResult<bool> {
        let (this, on) = (self.clone(), cell.clone());
        let asked = blocking(move || {
            let mut inner = on.lock();
            this.check_named(&on, &inner)?;
            this.known(&on, &mut inner)?;
            let peer = this.peer_of(&on, &inner.record)?;
            let local = Local { intended: true, ..Local::default() };
            match this.decide_and_store(&on, &mut inner, local, Event::Resume, "peer.resumed")? {
                Verdict::Call(call) => Ok(Some((call, this.named(&on.node, &peer), peer.offered))),
                _ => Ok::<_, EngineError>(None),
            }
        });
        let Some((call, named, root)) = asked.await?? else { return Ok(true) };
        let Some(told) = self.call(cell, call, &named, root).await? else { return Ok(false) };
        kill::point("peer.answered");
        let (this, on) = (self.clone(), cell.clone());
        blocking(move || {
            let mut inner = on.lock();
            this.known(&on, &mut inner)?;
            let local = Local { intended: true, ..this.local(&on, &inner)? };
            // Stored with what is decided.
            learn_node(&mut inner, told.from);
            this.decide_and_store(&on, &mut inner, local, Event::Answered(told.answer), "peer.decided")?;
            Ok::<_, EngineError>(!inner.record.peer.as_ref().is_some_and(|peer| peer.is_handing_over()))
        })
        .await?
    }

    /// A file without a name, which nobody has open, is gone: nothing of it is left that could be owned, whatever the other side says. Nor would that find it, and
    /// the question would be repeated for ever.
    fn check_named(&self, cell: &Cell, inner: &Inner) -> EngineResult<()> {
        let failed = EngineError::lower(cell.node.id);
        let left = self.lower.stat(&cell.node).map_err(&failed)?.nlink;
        if left == 0 && inner.machine.handles() == 0 {
            return Err(failed(LowerError::from_errno("stat", libc::ESTALE)));
        }
        Ok(())
    }

    /// Sends a call that is repeated. `None`: there was no answer, or none of this protocol.
    async fn call(
        &self,
        cell: &Cell,
        call: Call,
        named: &Named,
        root: Option<ContentHash>,
    ) -> EngineResult<Option<Told>> {
        match self.send(cell, call, named, root).await {
            Ok(None) => {
                tracing::warn!(file = %cell.node.id, "the other side takes attributes and does nothing: it is a plain store, or an older tierfs");
                Ok(None)
            }
            Err(EngineError::Remote { source, .. }) => {
                tracing::info!(file = %cell.node.id, "no answer, it is asked again: {source}");
                Ok(None)
            }
            told => told,
        }
    }

    /// Sends a call, once. `None`: it was taken, and not answered by this protocol.
    pub(super) async fn send(
        &self,
        cell: &Cell,
        call: Call,
        named: &Named,
        root: Option<ContentHash>,
    ) -> EngineResult<Option<Told>> {
        let target = self.peer_target()?;
        let tag = if matches!(call, Call::Rtl { .. } | Call::Want { .. }) { REMOTE_TO_LOCAL } else { LOCAL_TO_REMOTE };
        let text = |error: serde_json::Error| {
            tracing::error!("a call cannot be written down: {error}");
            EngineError::Defect
        };
        let request = AttributeCall {
            key: named.call_key(),
            tag: tag.into(),
            value: target.pair.identifiers(),
            headers: super::wire::headers(&serde_json::to_string(&call).map_err(text)?, named, cell.node.id, root),
            answer: super::wire::ANSWER_HEADER,
        };
        kill::point("peer.asking");
        let answer = target.remote.set_attribute(&request).await.map_err(EngineError::remote(cell.node.id))?;
        Ok(answer.and_then(|answer| serde_json::from_str(&answer).ok()))
    }

    /// Asks until it is decided, and then ends the note. Whether this side has what it asked for: tells nobody.
    pub(super) fn spawn_ask(self: &Arc<Self>, cell: Arc<Cell>, note: IntentId) {
        let this = self.clone();
        self.runtime.spawn(async move {
            let mut pause = ASK_AGAIN_FIRST;
            loop {
                tokio::time::sleep(pause).await;
                if this.is_stopping() {
                    // The note stays, and the next start goes on.
                    return;
                }
                pause = (pause * 2).min(ASK_AGAIN_LAST);
                match this.ask(&cell).await {
                    Ok(true) => return this.decided_after(&cell, note).await,
                    Ok(false) => {}
                    // Removed meanwhile: nothing of it is left that could be owned.
                    Err(error) if error.is_gone() => {
                        if let Err(error) = this.journal.remove(note).await {
                            tracing::warn!(file = %cell.node.id, "a removed file's change of owner stays noted: {error}");
                        }
                        return;
                    }
                    Err(error) => tracing::warn!(file = %cell.node.id, "it stays undecided who owns it: {error}"),
                }
            }
        });
    }

    /// Asks, at once and once more; where there is no answer, it goes on in the background, and the asker is told so.
    pub(super) async fn ask_until_decided(self: &Arc<Self>, cell: &Arc<Cell>, note: IntentId) -> EngineResult<()> {
        for attempt in 0..2 {
            if attempt > 0 {
                tokio::time::sleep(ASK_AGAIN_FIRST).await;
            }
            match self.ask(cell).await {
                Ok(true) => {
                    self.decided_after(cell, note).await;
                    return Ok(());
                }
                Ok(false) => {}
                Err(error) => {
                    self.spawn_ask(cell.clone(), note);
                    return Err(error);
                }
            }
        }
        self.spawn_ask(cell.clone(), note);
        self.trouble(cell, PeerTrouble::Undecided)
    }

    /// It is decided, durably: who waits goes on, and what is not this side's any more is freed.
    async fn decided_after(self: &Arc<Self>, cell: &Arc<Cell>, note: IntentId) {
        cell.changed.notify_waiters();
        self.announce_change(cell.node.id);
        if let Err(error) = self.journal.remove(note).await {
            tracing::warn!(file = %cell.node.id, "a decided change of owner stays noted: {error}");
        }
        kill::point("peer.ended");
        self.free_given_up(cell).await;
    }

    /// Frees what is not this side's any more, unless somebody has it open.
    pub(super) async fn free_given_up(self: &Arc<Self>, cell: &Arc<Cell>) {
        let given_up = {
            let inner = cell.lock();
            let stub = inner.record.peer.as_ref().is_some_and(|peer| peer.phase == Phase::Stub);
            stub && inner.record.object.is_some()
        };
        if given_up && let Err(error) = self.release(cell, None).await {
            tracing::info!(file = %cell.node.id, "its blocks stay for now: {error}");
        }
    }

    /// A note of a change of owner, durable.
    pub(super) async fn note_handover(&self, cell: &Cell) -> EngineResult<IntentId> {
        let intent = {
            let inner = cell.lock();
            let peer = self.peer_of(cell, &inner.record)?;
            let key = super::wire::note_key(&self.named(&cell.node, &peer), inner.record.generation);
            Intent {
                pair: peer.pair,
                key,
                manifest: false,
                node: cell.node,
                kind: IntentKind::Settle { mtime: peer.content.mtime },
            }
        };
        let note = self.journal.add(intent).await?;
        kill::point("peer.noted");
        Ok(note)
    }

    /// At the start: keeps the note of a change of owner that is not decided, to be asked for again. `false`: it is none.
    pub(in crate::engine) fn resumes(&self, id: IntentId, intent: &Intent) -> bool {
        if !is_peer_key(&intent.key) {
            return false;
        }
        let record = super::super::load_record(&*self.lower, &intent.node);
        let open = record.is_ok_and(|record| record.peer.is_some_and(|peer| peer.is_handing_over()));
        if open {
            let path = super::wire::noted_path(&intent.key).to_owned();
            self.undecided.lock().push((id, intent.node, path));
        }
        open
    }

    /// Goes on with what was not decided when the process before this one ended.
    pub(in crate::engine) fn resume_handovers(self: &Arc<Self>) {
        for (note, node, path) in std::mem::take(&mut *self.undecided.lock()) {
            // The kernel knows paths of what somebody has looked up, and after a start of the machine nobody has: the other side would be asked about a file
            // without a path, and would not find one that has another inode there since.
            self.at_path(&path);
            match self.cells.get(&node) {
                Ok(cell) => self.spawn_ask(cell, note),
                Err(error) => tracing::error!(file = %node.id, "who owns it stays undecided: {error}"),
            }
        }
    }
}
