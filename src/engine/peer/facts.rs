//! What the metadata sync makes and tells: a file's owner, and the stub that stands for it at the other side.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

use super::super::cell::Cell;
use super::super::error::{EngineError, EngineResult, PeerTrouble};
use super::super::{Engine, blocking};
use super::state::ownership;
use super::wire::NOWHERE;
use crate::kill;
use crate::peer::{Content, Ownership};
use crate::ports::{Attr, FileKind};
use crate::record::{Attempted, Claim, PeerState, Phase, Record, Seal};
use crate::tier::{Activity, IoMode};
use crate::types::{FileId, Generation, Inode, PairFileId, Timestamp};

/// What one side tells the other of a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PeerFacts {
    pub id: PairFileId,
    pub generation: Generation,
    pub epoch: u64,
    /// Bytes.
    pub size: u64,
    pub mtime: Timestamp,
    /// The inode of who tells this.
    pub there: FileId,
}

impl PeerFacts {
    fn content(&self) -> Content {
        Content { generation: self.generation, len: self.size, mtime: self.mtime }
    }
}

impl Engine {
    /// Gives a regular file its id among the pair's two sides, and this side its content; one that has an id keeps it, whoever owns it. The master's,
    /// before the other side has a stub of it. To be made durable (`Lower::sync_all`) before anybody is told: the other side knows the file by
    /// nothing else. Local I/O only.
    pub fn own_for_peer(self: &Arc<Self>, node: &Inode) -> EngineResult<PeerFacts> {
        let target = self.peer_target()?;
        let cell = self.cells.get(node)?;
        let mut inner = cell.lock();
        self.known(&cell, &mut inner)?;
        let attr = self.lower.stat(node).map_err(EngineError::lower(node.id))?;
        if inner.record.peer.is_some() {
            let peer = self.peer_of(&cell, &inner.record)?;
            return Ok(facts_of(node, &inner.record, &peer, &attr));
        }
        if attr.kind != FileKind::Regular {
            let why = super::super::Unfit::NotRegular;
            return Err(EngineError::Unfit { file: node.id, why });
        }
        if inner.record.claim != Claim::Resident || inner.record.superseded.is_some() {
            return self.trouble(&cell, PeerTrouble::AtStore);
        }
        let peer = PeerState {
            pair: target.pair.name.clone(),
            id: new_id(node, self.now()),
            here: node.id,
            there: NOWHERE,
            epoch: 1,
            // Somebody may have it open for writing.
            phase: Phase::Owner { published: false },
            content: Seal { len: attr.size, mtime: attr.mtime },
            offered: None,
            attempt: 0,
            refused: Attempted::default(),
            was_len: None,
        };
        let generation = inner.record.generation.after(self.now());
        let record = Record { generation, peer: Some(peer.clone()), ..inner.record.clone() };
        self.lower.save_record(node, &record.encode()).map_err(EngineError::lower(node.id))?;
        kill::point("peer.named");
        inner.record = record;
        Ok(facts_of(node, &inner.record, &peer, &attr))
    }

    /// Makes a regular file that was made just now, and is empty, a stub of the other side's file. A file that is a stub of it already
    /// stays what it is; any other is refused. To be made durable by the caller. Local I/O only.
    pub fn make_peer_stub(self: &Arc<Self>, node: &Inode, facts: &PeerFacts) -> EngineResult<()> {
        let target = self.peer_target()?;
        let failed = EngineError::lower(node.id);
        let cell = self.cells.get(node)?;
        let mut inner = cell.lock();
        self.known(&cell, &mut inner)?;
        if inner.record.peer.is_some() {
            let same = self.peer_of(&cell, &inner.record)?.id == facts.id;
            return if same { Ok(()) } else { self.trouble(&cell, PeerTrouble::OtherFile) };
        }
        let attr = self.lower.stat(node).map_err(&failed)?;
        let used = inner.machine.handles() > 0 || inner.machine.activity() != Activity::None;
        let has_content = attr.size > 0 || inner.record.claim != Claim::Resident || inner.record.superseded.is_some();
        if attr.kind != FileKind::Regular || used || has_content {
            return self.trouble(&cell, PeerTrouble::NotEmpty);
        }
        let peer = PeerState {
            pair: target.pair.name.clone(),
            id: facts.id,
            here: node.id,
            there: facts.there,
            epoch: facts.epoch,
            phase: Phase::Stub,
            content: Seal { len: facts.size, mtime: facts.mtime },
            offered: None,
            attempt: 0,
            refused: Attempted::default(),
            was_len: Some(0),
        };
        let own = Ownership { content: facts.content(), ..ownership(&inner.record, &peer) };
        let before = Record { peer: Some(peer), ..inner.record.clone() };
        let record = self.decided(&before, &own, 0)?;
        if !record.fits() {
            let why = super::super::Unfit::RecordTooLong;
            return Err(EngineError::Unfit { file: node.id, why });
        }
        // The record first: holes of that size without it would be read as zeros.
        self.lower.save_record(node, &record.encode()).map_err(&failed)?;
        kill::point("peer.stub.recorded");
        inner.record = record;
        self.follow(&mut inner);
        self.set_size(node, Seal { len: facts.size, mtime: facts.mtime })?;
        kill::point("peer.stub.sized");
        drop(inner);
        self.announce_change(node.id);
        Ok(())
    }

    /// Takes in what the owner of a stub's content tells: its generation, size and mtime. What is older than what is known, or is of a file that
    /// this side owns, changes nothing. `true`: something changed. Durable on return.
    pub async fn refresh_peer_stub(self: &Arc<Self>, node: &Inode, facts: &PeerFacts) -> EngineResult<bool> {
        let changed = self.refresh_peer_stub_unsynced(node, facts).await?;
        if changed {
            let cell = self.cells.get(node)?;
            self.barrier.wait(cell.node).await?;
        }
        Ok(changed)
    }

    /// The same for many files, which the caller makes durable together before he tells anybody that it was done.
    pub async fn refresh_peer_stub_unsynced(self: &Arc<Self>, node: &Inode, facts: &PeerFacts) -> EngineResult<bool> {
        let cell = self.cells.get(node)?;
        loop {
            let (this, on, facts) = (self.clone(), cell.clone(), *facts);
            if let Some(changed) = blocking(move || this.try_refresh(&on, &facts)).await?? {
                if changed {
                    self.announce_change(node.id);
                }
                return Ok(changed);
            }
            // Its size is about to change under a recall: that ends first.
            if let Some(recall) = cell.lock().recall.clone() {
                recall.pause();
            }
            // A change of owner, too: a stub is kept as it is while something else takes its name.
            cell.wait_until(|inner| inner.machine.activity() == Activity::None).await;
        }
    }

    /// `None`: a transfer is to end first.
    fn try_refresh(&self, cell: &Arc<Cell>, facts: &PeerFacts) -> EngineResult<Option<bool>> {
        let mut inner = cell.lock();
        self.known(cell, &mut inner)?;
        let peer = self.peer_of(cell, &inner.record)?;
        if peer.id != facts.id {
            return self.trouble(cell, PeerTrouble::OtherFile);
        }
        // One that is not published is told again with what it has become.
        let known = peer.content == Seal { len: facts.size, mtime: facts.mtime };
        let older = facts.generation < inner.record.generation;
        if peer.phase != Phase::Stub || older || (facts.generation == inner.record.generation && known) {
            return Ok(Some(false));
        }
        if inner.machine.activity() != Activity::None {
            return Ok(None);
        }
        // An empty stub is one that the kernel may have open by itself.
        if matches!(inner.machine.mode(), IoMode::Pass(_)) {
            return self.trouble(cell, PeerTrouble::NotEmpty);
        }
        let own = Ownership { content: facts.content(), ..ownership(&inner.record, &peer) };
        let size = self.lower.stat(&cell.node).map_err(EngineError::lower(cell.node.id))?.size;
        let mut record = self.decided(&inner.record, &own, size)?;
        if let Some(peer) = &mut record.peer {
            peer.there = facts.there;
        }
        // The record first: a size that it does not tell of would be taken for somebody's change below.
        self.lower.save_record(&cell.node, &record.encode()).map_err(EngineError::lower(cell.node.id))?;
        kill::point("peer.stub.renewed");
        inner.record = record;
        self.follow(&mut inner);
        self.set_size(&cell.node, Seal { len: facts.size, mtime: facts.mtime })?;
        kill::point("peer.stub.resized");
        Ok(Some(true))
    }

    /// What this side tells of a file's content; `None`: the other side of the pair does not have it. Local I/O only.
    pub fn peer_facts(self: &Arc<Self>, node: &Inode) -> EngineResult<Option<(PeerFacts, Phase)>> {
        let cell = self.cells.get(node)?;
        let inner = cell.lock();
        let Some(peer) = &inner.record.peer else { return Ok(None) };
        let attr = self.lower.stat(node).map_err(EngineError::lower(node.id))?;
        Ok(Some((facts_of(node, &inner.record, peer, &attr), peer.phase)))
    }
}

pub(super) fn facts_of(node: &Inode, record: &Record, peer: &PeerState, attr: &Attr) -> PeerFacts {
    // A transfer may have moved the lower mtime.
    let mtime = record.object.as_ref().map_or(attr.mtime, |object| object.mtime);
    let size = record.object.as_ref().map_or(attr.size, |object| object.len);
    PeerFacts { id: peer.id, generation: record.generation, epoch: peer.epoch, size, mtime, there: node.id }
}

/// 128 bits that no other file of any share has: random, and of this file and moment should the machine's chance be poor.
fn new_id(node: &Inode, now: Timestamp) -> PairFileId {
    let mut hash = blake3::Hasher::new();
    for _ in 0..2 {
        hash.update(&RandomState::new().build_hasher().finish().to_le_bytes());
    }
    for part in [node.id.ino, node.id.birth, now.secs as u64, u64::from(now.nanos), u64::from(std::process::id())] {
        hash.update(&part.to_le_bytes());
    }
    let mut id = [0; 16];
    hash.finalize_xof().fill(&mut id);
    PairFileId(id)
}
