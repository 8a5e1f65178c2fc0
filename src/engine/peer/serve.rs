//! What the other side asks of this one: facts, content, hashes, and who owns a file.
//!
//! One call changes a file at a time. What is answered is durable; bytes are answered only if their generation was still published after they
//! were read.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::super::archive::OpenNote;
use super::super::cell::{Cell, Inner};
use super::super::error::{EngineError, EngineResult, PeerTrouble};
use super::super::{Engine, blocking, moving};
use super::state::{learn_node, peer_id};
use super::wire::{Named, Told};
use crate::kill;
use crate::peer::{Call, Content, Epoch, Event, Staged, Verdict};
use crate::ports::{Attr, IntentId, Keep, LowerFile, OpenFlags};
use crate::record::{Claim, PeerState, Phase, Record};
use crate::tier::{Activity, Event as Step, Verdict as Next};
use crate::types::{FileId, Generation, Inode, PairFileId};

/// How long a call waits for a transfer of its file.
const REST_WITHIN: Duration = Duration::from_secs(10);
/// How often, and how far apart, it is looked whether a file is closed that the other side wants.
const CLOSED_LOOKS: u32 = 6;
const CLOSED_PAUSE: Duration = Duration::from_millis(40);
/// Bytes copied at a time.
const COPY_BYTES: u64 = 64 << 20;

/// What is staged here for a file: complete, verified, durable.
#[derive(Clone)]
pub struct StagedCopy {
    pub epoch: u64,
    pub content: Content,
    pub file: Arc<dyn LowerFile>,
}

/// Whether a call leads to this side's giving a file up.
fn takes(call: &Call) -> bool {
    matches!(call, Call::Rtl { .. } | Call::Want { .. })
}

/// Lets the next call for a file begin.
struct Calling<'a>(&'a Engine, FileId);

impl Drop for Calling<'_> {
    fn drop(&mut self) {
        self.0.calling.lock().remove(&self.1);
    }
}

impl Engine {
    /// Whether peers of the pair `pair`, which has these four identifiers there, may ask here at all.
    pub fn is_peer(&self, pair: &crate::types::PairName) -> bool {
        self.peer_target().is_ok_and(|target| target.pair.name == *pair)
    }

    /// Whether the four identifiers, as the other side has them, are those of this side's pair: `local_cluster,local_share,remote_cluster,remote_share`.
    pub fn is_other_half(&self, identifiers: &str, bucket: &str) -> bool {
        let Ok(target) = self.peer_target() else { return false };
        let parts: Vec<&str> = identifiers.split(',').collect();
        let [local_cluster, local_share, remote_cluster, remote_share] = parts[..] else { return false };
        let pair = &target.pair;
        local_cluster == pair.remote_cluster.as_str()
            && remote_cluster == pair.local_cluster.as_str()
            && remote_share == format!("s3://{bucket}")
            && !local_share.is_empty()
    }

    /// The file of this id, if it is here.
    pub async fn find_peer_file(self: &Arc<Self>, named: &Named) -> EngineResult<Option<Arc<Cell>>> {
        let (this, named) = (self.clone(), named.clone());
        blocking(move || {
            // One that has no name left is as good as gone, whoever still has it open.
            let there = |found: &(Inode, Attr)| found.0.id == named.node && found.1.nlink > 0;
            let by_number = this.lower.by_number(named.node.ino).ok().filter(there);
            if let Some((node, _)) = by_number
                && let Some(cell) = this.is_of(&node, named.id)?
            {
                return Ok(Some(cell));
            }
            match this.at_path(&named.path) {
                Some(node) => this.is_of(&node, named.id),
                None => Ok(None),
            }
        })
        .await?
    }

    /// The cell of an inode that is the file of this id.
    fn is_of(&self, node: &Inode, id: PairFileId) -> EngineResult<Option<Arc<Cell>>> {
        let cell = match self.cells.get(node) {
            Err(error) if error.is_gone() => return Ok(None),
            found => found?,
        };
        let same = cell.lock().record.peer.as_ref().is_some_and(|peer| peer.id == id);
        Ok(same.then_some(cell))
    }

    pub(super) fn at_path(&self, path: &str) -> Option<Inode> {
        if path.is_empty() {
            return None;
        }
        let mut at = self.lower.root();
        for name in Path::new(path).components() {
            let std::path::Component::Normal(name) = name else { return None };
            at = self.lower.lookup(&at, name).ok()?.0;
        }
        Some(at)
    }

    /// Answers a call for a file that is here. `from`: the caller's inode, if told; `staged`: what is staged for it, with the root that the call says.
    pub async fn peer_called(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        call: Call,
        from: FileId,
        staged: Option<StagedCopy>,
    ) -> EngineResult<Told> {
        if !self.calling.lock().insert(cell.node.id) {
            return self.trouble(cell, PeerTrouble::Undecided);
        }
        let _calling = Calling(self, cell.node.id);
        let mut note = None;
        let told = self.answer_call(cell, call, from, staged, &mut note).await;
        if let Some(note) = note {
            let asks = {
                let inner = cell.lock();
                inner.machine.is_unknown() || inner.record.peer.as_ref().is_some_and(PeerState::is_handing_over)
            };
            // An offer is stored, or may be: it is asked for until it is decided.
            match asks {
                true => self.spawn_ask(cell.clone(), note),
                false => self.journal.remove(note).await?,
            }
        }
        told
    }

    /// `note`: of the handover that this side asks for from then on, where the call leads to one.
    async fn answer_call(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        call: Call,
        from: FileId,
        staged: Option<StagedCopy>,
        note: &mut Option<IntentId>,
    ) -> EngineResult<Told> {
        self.peer_rests(cell).await?;
        if takes(&call) {
            self.is_closed_soon(cell).await?;
        }
        let (mut whole, mut copy) = (None, staged);
        loop {
            let (this, on, staged, intended) = (self.clone(), cell.clone(), copy.clone(), note.is_some());
            let decided =
                blocking(move || this.judge_call(&on, call, from, staged.as_ref(), whole, intended)).await??;
            match (decided, &copy) {
                (Verdict::Intend, _) => *note = Some(self.note_handover(cell).await?),
                (Verdict::Answer(answer), _) => {
                    kill::point("peer.granted");
                    cell.changed.notify_waiters();
                    self.announce_change(cell.node.id);
                    let (this, on) = (self.clone(), cell.clone());
                    self.runtime.spawn(async move { this.free_given_up_by_call(&on, call).await });
                    return Ok(Told { from: cell.node.id, answer });
                }
                (Verdict::Install(content), Some(from)) => match self.install(cell, content, from.file.clone()).await {
                    Ok(()) => whole = Some(content.generation),
                    Err(error) => {
                        // Refused for this attempt, durably; the next one brings it again.
                        tracing::warn!(file = %cell.node.id, "the other side's copy cannot be put in place: {error}");
                        copy = None;
                    }
                },
                (other, _) => {
                    tracing::error!(file = %cell.node.id, "{other:?} to {call:?}");
                    return self.trouble(cell, PeerTrouble::Contradiction);
                }
            }
        }
    }

    /// Gives who has it open a moment: the kernel tells of a close after it has returned.
    async fn is_closed_soon(self: &Arc<Self>, cell: &Arc<Cell>) -> EngineResult<()> {
        for _ in 0..CLOSED_LOOKS {
            let (this, on) = (self.clone(), cell.clone());
            let used = blocking(move || {
                let inner = on.lock();
                let asked = inner.record.peer.as_ref().is_some_and(|peer| matches!(peer.phase, Phase::Owner { .. }));
                if asked { this.is_used(&on, &inner) } else { Ok(false) }
            });
            if !used.await?? {
                return Ok(());
            }
            tokio::time::sleep(CLOSED_PAUSE).await;
        }
        Ok(())
    }

    /// Waits until no transfer of the file runs, for a while.
    async fn peer_rests(&self, cell: &Arc<Cell>) -> EngineResult<()> {
        let rest = cell.wait_until(|inner| match inner.machine.activity() {
            Activity::Releasing => false,
            Activity::Recalling { .. } => {
                if let Some(recall) = &inner.recall {
                    recall.pause();
                }
                false
            }
            // What is stored decides about those.
            Activity::HandingOver | Activity::None | Activity::Archiving { .. } => true,
        });
        match tokio::time::timeout(REST_WITHIN, rest).await {
            Ok(()) => Ok(()),
            Err(_) => self.trouble(cell, PeerTrouble::Undecided),
        }
    }

    fn judge_call(
        &self,
        cell: &Arc<Cell>,
        call: Call,
        from: FileId,
        staged: Option<&StagedCopy>,
        whole: Option<Generation>,
        intended: bool,
    ) -> EngineResult<Verdict> {
        let mut inner = cell.lock();
        self.known(cell, &mut inner)?;
        // Stored with what is decided.
        learn_node(&mut inner, from);
        let mut local = self.local(cell, &inner)?;
        // Released since it was put in place: then it is put there once more.
        local.whole = whole.filter(|_| !matches!(inner.record.claim, Claim::Stub | Claim::Releasing));
        local.staged = staged.map(|copy| Staged { epoch: Epoch(copy.epoch), content: copy.content });
        local.intended = intended;
        let owner = inner.record.peer.as_ref().is_some_and(|peer| !peer.is_foreign());
        match call {
            // Who reads by the kernel would go on with what is freed after: so it counts like writing.
            _ if owner && takes(&call) => local.writers = self.is_used(cell, &inner)?,
            Call::Head { .. } if owner => local.writers = self.is_written(cell, &inner)?,
            Call::Ltr { .. } => {
                local.held = matches!(inner.machine.mode(), crate::tier::IoMode::Pass(_));
                // Under the lock under which who gives up says so.
                local.emptied = (inner.emptying > 0).then(|| inner.record.generation.after(self.now()));
            }
            _ => {}
        }
        let moves = matches!(inner.machine.activity(), Activity::Releasing | Activity::Recalling { .. });
        if moves || self.is_kept(&inner) {
            return self.trouble(cell, PeerTrouble::Undecided);
        }
        if takes(&call) && matches!(inner.machine.activity(), Activity::Archiving { .. }) {
            // A copy is under way to the very side that asks.
            local.writers = true;
        }
        if takes(&call) && inner.emptying > 0 {
            // It was taken to be thrown away, and he who does that is about to.
            local.writers = true;
        }
        self.decide_and_store(cell, &mut inner, local, Event::Called(call), "peer.called")
    }

    /// Whether anybody has the file open in any way.
    fn is_used(&self, cell: &Cell, inner: &Inner) -> EngineResult<bool> {
        let failed = EngineError::lower(cell.node.id);
        if inner.machine.handles() > 0 {
            return Ok(true);
        }
        self.warm.let_go(cell.node.id);
        let file = match self.lower.open(&cell.node, OpenFlags { no_wait: true, ..moving(Keep::Own) }) {
            Err(error) if matches!(error.errno(), libc::ETXTBSY | libc::EWOULDBLOCK) => return Ok(true),
            opened => opened.map_err(&failed)?,
        };
        Ok(file.try_exclusive().map_err(&failed)?.is_none())
    }

    /// Whether anybody has it open for writing.
    fn is_written(&self, cell: &Cell, inner: &Inner) -> EngineResult<bool> {
        let failed = EngineError::lower(cell.node.id);
        if inner.machine.has_writers() {
            return Ok(true);
        }
        let flags = OpenFlags { read: true, no_atime: true, no_wait: true, ..Default::default() };
        let file = match self.lower.open(&cell.node, flags) {
            Err(error) if error.errno() == libc::EWOULDBLOCK => return Ok(true),
            opened => opened.map_err(&failed)?,
        };
        Ok(!file.nobody_writes().map_err(&failed)?)
    }

    /// Puts a staged copy in the place of a stub's content: same inode, links and handles. Durable on return; the record is not changed but for what may be
    /// here now.
    async fn install(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        content: Content,
        from: Arc<dyn LowerFile>,
    ) -> EngineResult<()> {
        let note = self.note_handover(cell).await?;
        let (this, on) = (self.clone(), cell.clone());
        let begun = blocking(move || this.begin_install(&on)).await?;
        let copied = match begun {
            Ok(()) => {
                let (this, on) = (self.clone(), cell.clone());
                let copied = blocking(move || this.copy_in(&on, content, &*from)).await?;
                let mut inner = cell.lock();
                inner.shown_mtime = None;
                self.follow(&mut inner);
                copied
            }
            Err(error) => Err(error),
        };
        cell.changed.notify_waiters();
        // Whatever came of it, some of the copy may be there, and the record says so: once that is durable, the note has done its work.
        self.spawn_forget_when_durable(cell.clone(), Some(OpenNote::Settle(note)));
        copied
    }

    fn begin_install(&self, cell: &Arc<Cell>) -> EngineResult<()> {
        let mut inner = cell.lock();
        if let Next::Refuse(why) = inner.machine.apply(Step::HandOverBegin) {
            return Err(EngineError::Refused { file: cell.node.id, why });
        }
        let record = Record { claim: Claim::Partial, ..inner.record.clone() };
        if let Err(error) = self.lower.save_record(&cell.node, &record.encode()) {
            self.follow(&mut inner);
            return Err(EngineError::lower(cell.node.id)(error));
        }
        kill::point("peer.installing");
        inner.shown_mtime = record.object.as_ref().map(|object| object.mtime);
        inner.record = record;
        Ok(())
    }

    fn copy_in(&self, cell: &Cell, content: Content, from: &dyn LowerFile) -> EngineResult<()> {
        let failed = EngineError::lower(cell.node.id);
        let to = self.lower.open(&cell.node, moving(Keep::OwnAndLeft)).map_err(&failed)?;
        let mut at = 0;
        while at < content.len {
            match from.copy_to(at, &*to, at, (content.len - at).min(COPY_BYTES)).map_err(&failed)? {
                0 => return self.ended_early(cell),
                copied => at += copied as u64,
            }
        }
        kill::point("peer.copied");
        let seal = crate::record::Seal { len: content.len, mtime: content.mtime };
        self.set_size(&cell.node, seal)?;
        to.put_back_privileges().map_err(&failed)?;
        to.sync(false).map_err(&failed)?;
        kill::point("peer.installed");
        Ok(())
    }

    fn ended_early(&self, cell: &Cell) -> EngineResult<()> {
        Err(EngineError::Refused { file: cell.node.id, why: crate::tier::Refusal::Changed })
    }

    async fn free_given_up_by_call(self: &Arc<Self>, cell: &Arc<Cell>, call: Call) {
        if matches!(call, Call::Rtl { .. }) {
            self.free_given_up(cell).await;
        }
    }

    /// Bytes of a published generation; `None`: the file has another one by now.
    pub async fn peer_read(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        generation: Generation,
        offset: u64,
        len: usize,
    ) -> EngineResult<Option<Bytes>> {
        let (this, on) = (self.clone(), cell.clone());
        blocking(move || {
            let failed = EngineError::lower(on.node.id);
            let flags = OpenFlags { read: true, no_atime: true, no_wait: true, ..Default::default() };
            // Not kept open: who asks the kernel whether somebody has it open means others.
            let file = match this.lower.open(&on.node, flags) {
                Err(error) if error.errno() == libc::EWOULDBLOCK => return this.trouble(&on, PeerTrouble::Undecided),
                opened => opened.map_err(&failed)?,
            };
            let mut bytes = vec![0; len];
            let got = file.read_at(&mut bytes, offset).map_err(&failed)?;
            bytes.truncate(got);
            Ok(this.is_published(&on, generation).then(|| Bytes::from(bytes)))
        })
        .await?
    }

    /// Whether the bytes here are those of a generation, and were all along: what changes raises it first.
    pub fn is_published(&self, cell: &Cell, generation: Generation) -> bool {
        let inner = cell.lock();
        let sealed = inner.record.peer.as_ref().is_some_and(|peer| peer.is_sealed());
        sealed && inner.record.generation == generation && !inner.machine.is_unknown()
    }

    /// Size and mtime of a published generation.
    pub fn published(&self, cell: &Cell, generation: Generation) -> Option<Content> {
        let seal = cell.lock().record.peer.as_ref().map(|peer| peer.content)?;
        let content = Content { generation, len: seal.len, mtime: seal.mtime };
        self.is_published(cell, generation).then_some(content)
    }

    /// Whether a copy for this handover is wanted. The answer of [`crate::peer`] to who offers it.
    pub async fn peer_wants(self: &Arc<Self>, cell: &Arc<Cell>, epoch: u64, content: Content) -> EngineResult<bool> {
        let (this, on) = (self.clone(), cell.clone());
        blocking(move || {
            let mut inner = on.lock();
            this.known(&on, &mut inner)?;
            let peer = this.peer_of(&on, &inner.record)?;
            let call = Call::Stage { file: peer_id(peer.id), epoch: Epoch(epoch), content };
            let local = this.local(&on, &inner)?;
            let decided = this.decide_and_store(&on, &mut inner, local, Event::Called(call), "peer.wanted")?;
            Ok(matches!(decided, Verdict::Keep(_)))
        })
        .await?
    }
}
