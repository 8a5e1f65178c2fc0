//! This side asks the other to own a file: forward migration to a peer.
//!
//! Order: the generation is published → a copy is staged there, hashed on its way → nobody has changed it, nobody has it open → note (durable) →
//! record *offering* (durable) → the other side is asked, until it has answered → record *stub* (durable) → blocks are freed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::archive::{UPLOAD_MEMORY_MAX, check_fit, disturbed, same_attr};
use super::super::cell::Cell;
use super::super::error::{EngineError, EngineResult, PeerTrouble};
use super::super::source::HashingSource;
use super::super::{Engine, blocking, moving};
use super::wire::Verb;
use crate::kill;
use crate::peer::{self, Call, Event, Local, Staged, Verdict};
use crate::ports::{Attr, Keep, LowerFile, OpenFlags, RemoteErrorKind};
use crate::record::Phase;
use crate::tier::{Event as Step, Refusal, Verdict as Next};
use crate::types::ContentHash;

/// What was staged.
struct Copied {
    staged: Staged,
    attr: Attr,
    root: ContentHash,
}

impl Engine {
    /// Migrates a file to the other side, which owns it from then on; `false`: it does already.
    pub async fn offer(self: &Arc<Self>, cell: &Arc<Cell>) -> EngineResult<bool> {
        self.check_running()?;
        self.peer_target()?;
        if self.lower.features().read_only {
            return Err(EngineError::ReadOnly);
        }
        check_fit(cell, &self.lower.stat(&cell.node).map_err(EngineError::lower(cell.node.id))?)?;
        {
            let mut inner = cell.lock();
            self.known(cell, &mut inner)?;
            let refuse = |why| Err(EngineError::Refused { file: cell.node.id, why });
            match self.peer_of(cell, &inner.record)?.phase {
                Phase::Owner { .. } if inner.machine.pinned() => return refuse(Refusal::Pinned),
                Phase::Owner { .. } if inner.machine.handles() > 0 => return refuse(Refusal::Open),
                Phase::Owner { .. } => {}
                Phase::Stub => return Ok(false),
                Phase::Offering | Phase::Taking => return self.trouble(cell, PeerTrouble::Undecided),
            }
            if let Next::Refuse(why) = inner.machine.apply(Step::ArchiveBegin) {
                return refuse(why);
            }
        }
        self.totals.running.fetch_add(1, Ordering::SeqCst);
        let offered = match self.stage(cell).await {
            Ok(copied) => self.begin_offering(cell, copied).await,
            Err(error) => Err(error),
        };
        if offered.is_err() {
            let mut inner = cell.lock();
            if matches!(inner.machine.activity(), crate::tier::Activity::Archiving { .. }) {
                inner.machine.apply(Step::ArchiveAbandoned);
            }
        }
        cell.changed.notify_waiters();
        let asked = match offered {
            Ok(note) => self.ask_until_decided(cell, note).await,
            Err(error) => Err(error),
        };
        self.totals.running.fetch_sub(1, Ordering::SeqCst);
        asked?;
        self.note_state(cell.node.id);
        let (phase, len) = {
            let inner = cell.lock();
            let peer = inner.record.peer.as_ref();
            (peer.map(|peer| peer.phase), peer.map_or(0, |peer| peer.content.len))
        };
        if phase != Some(Phase::Stub) {
            return self.trouble(cell, PeerTrouble::Refused);
        }
        self.totals.archived_files.fetch_add(1, Ordering::Relaxed);
        self.totals.archived_bytes.fetch_add(len, Ordering::Relaxed);
        Ok(true)
    }

    /// Uploads a copy of a published generation.
    async fn stage(self: &Arc<Self>, cell: &Arc<Cell>) -> EngineResult<Copied> {
        let failed = EngineError::lower(cell.node.id);
        let changed = || EngineError::Refused { file: cell.node.id, why: Refusal::Changed };
        let flags = OpenFlags { read: true, no_atime: true, ..Default::default() };
        let file = self.lower.open(&cell.node, flags).map_err(&failed)?;
        let (this, on, through) = (self.clone(), cell.clone(), file.clone());
        let (call, attr) = blocking(move || this.publish_to_stage(&on, &*through)).await??;
        let Call::Stage { epoch, content, .. } = call else {
            return self.trouble(cell, PeerTrouble::Contradiction);
        };
        check_fit(cell, &attr)?;
        let target = self.peer_target()?;
        let chunk_size = target.chunk_size(attr.size);
        let named = {
            let inner = cell.lock();
            let peer = self.peer_of(cell, &inner.record)?;
            drop(inner);
            self.named(&cell.node, &peer)
        };
        let key = named.key(Verb::Stage { epoch: epoch.0, content, chunk_size });
        let _memory = self.memory_for(attr.size.min(UPLOAD_MEMORY_MAX)).await?;
        let source = HashingSource::new(file.clone(), attr.size, chunk_size);
        let stored = tokio::select! {
            biased;
            stored = target.remote.put(&key, attr.size, source.clone(), &[]) => stored,
            () = disturbed(cell) => return Err(changed()),
        };
        match stored {
            Err(error)
                if error.kind == RemoteErrorKind::Source && !same_attr(&file.stat().map_err(&failed)?, &attr) =>
            {
                return Err(changed());
            }
            // The other side has the file in another state than this one, or another file of this name.
            Err(error) if matches!(error.kind, RemoteErrorKind::Conflict | RemoteErrorKind::NotFound) => {
                tracing::warn!(file = %cell.node.id, "the other side takes no copy: {error}");
                return self.trouble(cell, PeerTrouble::Refused);
            }
            stored => stored.map_err(EngineError::remote(cell.node.id))?,
        };
        kill::point("peer.staged");
        let root = source.manifest().ok_or_else(changed)?.root();
        Ok(Copied { staged: Staged { epoch, content }, attr, root })
    }

    fn publish_to_stage(&self, cell: &Arc<Cell>, file: &dyn LowerFile) -> EngineResult<(Call, Attr)> {
        let mut inner = cell.lock();
        self.known(cell, &mut inner)?;
        let writers = !file.nobody_writes().map_err(EngineError::lower(cell.node.id))?;
        let local = Local { writers, ..self.local(cell, &inner)? };
        match self.decide_and_store(cell, &mut inner, local, Event::StageBegin, "peer.published")? {
            Verdict::Call(call) => Ok((call, file.stat().map_err(EngineError::lower(cell.node.id))?)),
            Verdict::Refuse(peer::Refusal::OpenForWriting) => {
                Err(EngineError::Refused { file: cell.node.id, why: Refusal::OpenForWriting })
            }
            _ => self.trouble(cell, PeerTrouble::Undecided),
        }
    }

    /// The content is there; from now on it does not change here before the other side has answered.
    async fn begin_offering(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        copied: Copied,
    ) -> EngineResult<crate::ports::IntentId> {
        let note = self.note_handover(cell).await?;
        let (this, on) = (self.clone(), cell.clone());
        let begun = blocking(move || this.store_offer(&on, &copied)).await?;
        if begun.is_err() {
            let unknown = cell.lock().machine.is_unknown();
            // An offer may be stored, or not: that is found out, and what follows from it done.
            match unknown {
                true => self.spawn_ask(cell.clone(), note),
                false => self.journal.remove(note).await?,
            }
        }
        begun.map(|()| note)
    }

    fn store_offer(&self, cell: &Arc<Cell>, copied: &Copied) -> EngineResult<()> {
        let failed = EngineError::lower(cell.node.id);
        let refuse = |why| Err(EngineError::Refused { file: cell.node.id, why });
        let mut inner = cell.lock();
        if inner.machine.handles() > 0 || inner.emptying > 0 {
            return refuse(Refusal::Open);
        }
        // What is kept open for the next opener is no opener.
        self.warm.let_go(cell.node.id);
        let file = match self.lower.open(&cell.node, moving(Keep::Own)) {
            Err(error) if error.errno() == libc::ETXTBSY => return refuse(Refusal::Open),
            opened => opened.map_err(&failed)?,
        };
        let Some(_lease) = file.try_exclusive().map_err(&failed)? else { return refuse(Refusal::Open) };
        let now = file.stat().map_err(&failed)?;
        if now.nlink == 0 || (now.size, now.mtime) != (copied.attr.size, copied.attr.mtime) {
            return refuse(Refusal::Changed);
        }
        if let Next::Refuse(why) = inner.machine.apply(Step::HandOverBegin) {
            return refuse(why);
        }
        if let Some(peer) = &mut inner.record.peer {
            peer.offered = Some(copied.root);
        }
        let local = Local { intended: true, ..self.local(cell, &inner)? };
        let decided = self.decide_and_store(cell, &mut inner, local, Event::OfferBegin(copied.staged), "peer.offering");
        match decided {
            Ok(Verdict::Call(_)) => Ok(()),
            other => {
                if !inner.machine.is_unknown() {
                    self.follow(&mut inner);
                }
                other?;
                refuse(Refusal::Changed)
            }
        }
    }
}
