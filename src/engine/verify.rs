//! Looking whether what the records claim is true: `verify` reads objects again, `check` compares record, object and local content.
//!
//! Invariant: nothing is recalled and no content is changed. What was changed by users meanwhile is no finding.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use md5::{Digest, Md5};
use tokio::sync::OwnedSemaphorePermit;

use super::cell::{Cell, HOLLOW, has_data, load_record, same_content};
use super::error::{EngineError, EngineResult};
use super::fill::{FOREIGN_DATA, data};
use super::orphans::record_of;
use super::pace::Pace;
use super::source::HashingSource;
use super::{Engine, blocking};
use crate::ports::{ObjectSource, OpenFlags, RemoteErrorKind};
use crate::record::{Claim, ObjectRef, Record, is_peer_key};
use crate::tier::{Activity, Refusal};
use crate::types::{ContentHash, FileId, Inode};

/// Chunks of one object read at a time.
const READ_AHEAD: usize = 4;

/// What a check found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// Nothing is remote, or it changed meanwhile.
    Nothing,
    /// The claims are true.
    Sound,
    /// Its object is missing or another, but the local content is whole and counts again, so the next archive makes a new object; or the
    /// content is here in full, or not at all, and the record said otherwise.
    Repaired,
}

impl Engine {
    /// Reads a file's object and compares every chunk with its hash. `None`: nothing is remote, or it changed meanwhile. With `md5`,
    /// the content's MD5 as well, for comparison with other tools (R17).
    pub(super) async fn verify(self: &Arc<Self>, cell: &Arc<Cell>, md5: bool) -> EngineResult<Option<Verified>> {
        let Some((object, _)) = self.claimed(cell)? else { return Ok(None) };
        self.keep_borrowed(cell, &object).await?;
        self.read_if_named(cell, &object, md5, None).await
    }

    /// Reads a file's object at a set pace and compares every chunk with its hash; its length. `None`: nothing is remote, or it changed
    /// meanwhile.
    pub async fn scrub(self: &Arc<Self>, node: &Inode, pace: &Pace) -> EngineResult<Option<u64>> {
        let cell = self.cells.get(node)?;
        let Some((object, _)) = self.claimed(&cell)? else { return Ok(None) };
        let read = self.read_if_named(&cell, &object, false, Some(pace)).await?;
        Ok(read.map(|_| object.len))
    }

    /// Whether a file's record names an object, or cannot be read.
    pub fn may_be_remote(&self, node: &Inode) -> bool {
        record_of(&*self.lower, &self.cells, node).map_or(true, |record| record.object.is_some())
    }

    async fn read_if_named(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        object: &ObjectRef,
        md5: bool,
        pace: Option<&Pace>,
    ) -> EngineResult<Option<Verified>> {
        match self.read_object(cell, object, md5, pace).await {
            // A user wrote or removed the file meanwhile, and the object went.
            Err(_) if !cell.lock().record.names(&object.key) => Ok(None),
            read => read.map(Some),
        }
    }

    fn claimed(&self, cell: &Cell) -> EngineResult<Option<(ObjectRef, Claim)>> {
        let inner = cell.lock();
        // What a peer's file is, is the other side's to tell.
        let Some(object) = inner.record.object.clone().filter(|object| !is_peer_key(&object.key)) else {
            return Ok(None);
        };
        self.check_pair(&cell.node, &inner.record)?;
        Ok(Some((object, inner.machine.claim())))
    }

    async fn read_object(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        object: &ObjectRef,
        md5: bool,
        pace: Option<&Pace>,
    ) -> EngineResult<Verified> {
        let file = cell.node.id;
        let hashes = self.stored_hashes(file, object).await?.to_vec();
        let chunks = stream::iter(hashes.into_iter().enumerate());
        // At a pace, one after another: those ahead would only wait with their memory held.
        let ahead = if pace.is_some() { 1 } else { READ_AHEAD };
        let read = chunks.map(|(chunk, hash)| async move {
            if let Some(pace) = pace {
                pace.wait(self, object.chunk_range(chunk as u64).len).await;
            }
            self.read_chunk(file, object, chunk, hash).await
        });
        let read = read.buffered(ahead);
        let fold = |digest: Option<Md5>, (body, _memory): (Bytes, OwnedSemaphorePermit)| async move {
            let Some(mut digest) = digest else { return Ok(None) };
            blocking(move || {
                digest.update(&body);
                Some(digest)
            })
            .await
        };
        let digest = read.try_fold(md5.then(Md5::new), fold).await?;
        Ok(Verified { md5: digest.map(|digest| digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()) })
    }

    async fn read_chunk(
        self: &Arc<Self>,
        file: FileId,
        object: &ObjectRef,
        chunk: usize,
        hash: ContentHash,
    ) -> EngineResult<(Bytes, OwnedSemaphorePermit)> {
        let range = object.chunk_range(chunk as u64);
        let memory = self.memory_for(range.len).await?;
        let target = self.target_of(file, object)?;
        let remote = &target.remote;
        for last in [false, true] {
            let body = match remote.get(&object.key, range, Some(&object.etag)).await {
                Err(error) if error.kind == RemoteErrorKind::Corrupt && !last => continue,
                body => body.map_err(EngineError::remote(file))?,
            };
            let right =
                blocking(move || (body.len() as u64 == range.len && ContentHash::of(&body) == hash).then_some(body));
            if let Some(body) = right.await? {
                return Ok((body, memory));
            }
        }
        Err(EngineError::Corrupt { file, object: object.key.to_string(), offset: range.offset, len: range.len })
    }

    /// Compares a file's record with its object (there, of that length and version) and, where there are local bytes, with those. `path`
    /// is relative to the share. With `repair`, the record of a file whose content is known is set right.
    pub(super) async fn check(self: &Arc<Self>, cell: &Arc<Cell>, path: &Path, repair: bool) -> EngineResult<Checked> {
        if cell.lock().record.peer.is_some() {
            return self.check_peer(cell).await;
        }
        let Some((object, claim)) = self.claimed(cell)? else { return self.check_lost(cell, path, repair).await };
        self.keep_borrowed(cell, &object).await?;
        let remote = self.confirm_object(cell.node.id, &object).await;
        // Of an object that nobody can ask for, nothing can be said.
        let remote = match remote {
            Err(error) if error.is_transient() || error.is_configuration() => return Err(error),
            answered => answered,
        };
        let looks = claim == Claim::Dual || (claim == Claim::Stub && self.has_local_data(cell, object.len).await?);
        let local = match claim {
            // With its mtime as it was, what differs is taken for torn by a crash, and fetched again.
            Claim::Partial if self.is_dated_below(cell, &object)? => Some(self.parts_are(cell, &object).await?),
            _ if looks => Some(self.local_is(cell, &object).await?),
            _ => None,
        };
        {
            let inner = cell.lock();
            let transfers = inner.machine.activity() != Activity::None;
            let moves = transfers && matches!(claim, Claim::Stub | Claim::Partial);
            if !inner.record.names(&object.key) || inner.machine.claim() != claim || moves {
                return Ok(Checked::Nothing);
            }
            // Seen when a record is read; one that was known before may be of a file that was cut or extended below since.
            if claim == Claim::Stub {
                let now = self.lower.stat(&cell.node).map_err(EngineError::lower(cell.node.id))?;
                if now.size != object.len {
                    return Err(self.changed_size(cell, &object));
                }
            }
        }
        let (file, key) = (cell.node.id, object.key.to_string());
        let changed_below = |why| Err(EngineError::ChangedBelow { file, object: key.clone(), why });
        match (remote, claim, local) {
            (_, Claim::Stub | Claim::Partial, Some(false)) => changed_below(FOREIGN_DATA),
            (_, Claim::Stub, Some(true)) if repair => {
                let (this, cell) = (self.clone(), cell.clone());
                blocking(move || this.believe_local(&cell, &object)).await?
            }
            (_, Claim::Stub, Some(true)) => changed_below(
                "its record says that its content is away, but it is all here (`tierfs check --repair` sets that right)",
            ),
            (_, _, Some(false)) => {
                changed_below("its local bytes are not those of its object, though size and mtime are")
            }
            (Ok(()), ..) => {
                let this = self.clone();
                let (node, shared) = (cell.node, object.clone());
                match blocking(move || this.shares_with(&node, &shared)).await?? {
                    Some(with) => Err(EngineError::Shared { file, object: key, with }),
                    None => Ok(Checked::Sound),
                }
            }
            (Err(_), Claim::Dual, Some(true)) if repair => {
                let (this, cell) = (self.clone(), cell.clone());
                blocking(move || this.disown(&cell, &object)).await?
            }
            (Err(error), ..) => Err(error),
        }
    }

    /// Whether any of the first `len` bytes is in a block below that tierfs did not leave there.
    pub(super) async fn has_local_data(&self, cell: &Cell, len: u64) -> EngineResult<bool> {
        if self.leftovers.lock().contains_key(&cell.node.id) {
            return Ok(false);
        }
        let (lower, node) = (self.lower.clone(), cell.node);
        let look = blocking(move || {
            let file = lower.open(&node, OpenFlags { read: true, no_atime: true, ..Default::default() })?;
            has_data(&*file, len)
        });
        look.await?.map_err(EngineError::lower(cell.node.id))
    }

    /// Of a stub whose bytes were found to be here in full: it is dual. All is durable on return.
    fn believe_local(self: &Arc<Self>, cell: &Arc<Cell>, object: &ObjectRef) -> EngineResult<Checked> {
        let failed = EngineError::lower(cell.node.id);
        let mut inner = cell.lock();
        let still = inner.record.object.as_ref() == Some(object) && inner.machine.claim() == Claim::Stub;
        if !still || inner.machine.is_unknown() || inner.machine.activity() != Activity::None {
            return Ok(Checked::Nothing);
        }
        // The bytes first: a record may claim only what is durable.
        self.lower.sync_node(&cell.node).map_err(&failed)?;
        let mut record = inner.record.clone();
        record.claim = Claim::Dual;
        let attr = self.lower.stat(&cell.node).map_err(&failed)?;
        match record.object.as_mut() {
            Some(object) if object.len == attr.size => object.mtime = attr.mtime,
            _ => return Ok(Checked::Nothing),
        }
        self.save_durably(cell, &mut inner, record)?;
        cell.changed.notify_waiters();
        Ok(Checked::Repaired)
    }

    /// Of a file whose record calls it dual over nothing but holes: it is a stub, if its object is there.
    pub(super) async fn mend_hollow(self: &Arc<Self>, node: &Inode) -> EngineResult<()> {
        let failed = EngineError::lower(node.id);
        let stored = self.lower.load_record(node).map_err(&failed)?.unwrap_or_default();
        let mut record = Record::decode(&stored).map_err(|why| EngineError::BadRecord { file: node.id, why })?;
        let refuse = || EngineError::Refused { file: node.id, why: Refusal::Changed };
        let object = record.object.clone().filter(|_| record.claim == Claim::Dual).ok_or_else(refuse)?;
        self.check_pair(node, &record)?;
        self.confirm_object(node.id, &object).await?;
        let (this, node) = (self.clone(), *node);
        blocking(move || {
            let failed = EngineError::lower(node.id);
            let mend = || {
                let now = this.lower.load_record(&node).map_err(&failed)?;
                // It is still what was looked at, and still damaged for the same reason.
                let same = now.as_deref() == Some(&stored[..]);
                if !same
                    || !matches!(load_record(&*this.lower, &node), Err(EngineError::ChangedBelow { why: HOLLOW, .. }))
                {
                    return Err(EngineError::Refused { file: node.id, why: Refusal::Changed });
                }
                record.claim = Claim::Stub;
                this.lower.save_record(&node, &record.encode()).map_err(&failed)?;
                this.lower.sync_node(&node).map_err(&failed)
            };
            this.cells
                .unless_live(node.id, mend)
                .unwrap_or(Err(EngineError::Refused { file: node.id, why: Refusal::Open }))
        })
        .await?
    }

    /// Whether the local bytes are those the object was made of, by the hash in the record.
    async fn local_is(&self, cell: &Cell, object: &ObjectRef) -> EngineResult<bool> {
        let failed = EngineError::lower(cell.node.id);
        let flags = OpenFlags { read: true, no_atime: true, ..Default::default() };
        let file = self.lower.open(&cell.node, flags).map_err(&failed)?;
        let source = HashingSource::new(file, object.len, object.chunk_size);
        for range in (0..object.chunks()).map(|chunk| object.chunk_range(chunk)) {
            let _memory = self.memory_for(range.len).await?;
            if source.read(range).await.is_err() {
                return Ok(false);
            }
        }
        Ok(source.manifest().is_some_and(|manifest| manifest.root() == object.root))
    }

    /// Whether somebody below the mount may have written to a stub: its mtime is not its object's.
    fn is_dated_below(&self, cell: &Cell, object: &ObjectRef) -> EngineResult<bool> {
        let attr = self.lower.stat(&cell.node).map_err(EngineError::lower(cell.node.id))?;
        Ok(attr.mtime != object.mtime)
    }

    /// Whether each chunk of which there are bytes in the file is the object's.
    async fn parts_are(&self, cell: &Cell, object: &ObjectRef) -> EngineResult<bool> {
        let (file, failed) = (cell.node.id, EngineError::lower(cell.node.id));
        let flags = OpenFlags { read: true, no_atime: true, ..Default::default() };
        let content = self.lower.open(&cell.node, flags).map_err(&failed)?;
        let (there, len) = (content.clone(), object.len);
        let found = blocking(move || data(&*there, len)).await?.map_err(&failed)?;
        let chunk_size = u64::from(object.chunk_size);
        let chunks: BTreeSet<u64> =
            found.iter().flat_map(|range| range.offset / chunk_size..range.end().div_ceil(chunk_size)).collect();
        let hashes = self.chunk_hashes(file, object).await?;
        for chunk in chunks {
            let (range, hash, content) = (object.chunk_range(chunk), hashes[chunk as usize], content.clone());
            let _memory = self.memory_for(range.len).await?;
            let read = move || {
                let mut body = vec![0; range.len as usize];
                let got = content.read_at(&mut body, range.offset)?;
                Ok(got == body.len() && ContentHash::of(&body) == hash)
            };
            if !blocking(read).await?.map_err(&failed)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes a dual file's claim on its object back, durably.
    fn disown(self: &Arc<Self>, cell: &Arc<Cell>, object: &ObjectRef) -> EngineResult<Checked> {
        let mut inner = cell.lock();
        let still = inner.record.object.as_ref() == Some(object) && inner.machine.claim() == Claim::Dual;
        if !still || inner.machine.is_unknown() || inner.machine.activity() != Activity::None {
            return Ok(Checked::Nothing);
        }
        let now = self.lower.stat(&cell.node).map_err(EngineError::lower(cell.node.id))?;
        if !same_content(&now, &inner.record) {
            return Ok(Checked::Nothing);
        }
        self.become_resident(cell, &mut inner)?;
        Ok(Checked::Repaired)
    }
}

/// What reading an object again showed: every chunk is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// MD5 of the content in hexadecimal, where it was asked for.
    pub md5: Option<String>,
}
