//! Filling a stub: chunks are fetched several at a time, verified, written; then the mtime is put back and all is synced.
//!
//! Nothing is written before the transfer's note is durable, and no write outlives the recall it belongs to.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::task::JoinSet;

use super::archive::OpenNote;
use super::cell::{Cell, has_data};
use super::error::{EngineError, EngineResult};
use super::recall::Recall;
use super::{Engine, blocking, moving};
use crate::kill;
use crate::ports::{Intent, IntentId, IntentKind, JournalError, Keep, LowerFile, RemoteErrorKind, SetAttr, SetTime};
use crate::record::{Claim, ObjectRef};
use crate::remote::manifest::Manifest;
use crate::types::{ByteRange, ContentHash, FileId, ObjectKey, Timestamp};

pub(super) const FOREIGN_DATA: &str = "there is data in it that tierfs did not write";

/// Space that is all zeros is left a hole in units of so many bytes: what ext4 and xfs allocate at least.
const BLOCK: usize = 4096;

/// The transfer's note, once it is durable.
type Noted = Shared<BoxFuture<'static, Result<IntentId, JournalError>>>;

impl Engine {
    /// Writes all chunks, restores the mtime, makes both durable. Sets `touched` once the lower file may be changed.
    pub(super) async fn fill(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        object: &ObjectRef,
        claim: Claim,
        mtime: Timestamp,
        recall: &Arc<Recall>,
        touched: &mut Option<OpenNote>,
    ) -> EngineResult<()> {
        let failed = EngineError::lower(cell.node.id);
        let space = self.lower.space().map_err(&failed)?;
        let available = space.blocks_free * space.fragment_size;
        if object.len > available {
            return Err(EngineError::NoSpace { file: cell.node.id, len: object.len, available });
        }
        let file = self.lower.open(&cell.node, moving(Keep::OwnAndLeft)).map_err(&failed)?;
        if claim == Claim::Stub
            && !self.is_leftover(cell.node.id, &object.key)
            && has_data(&*file, object.len).map_err(&failed)?
        {
            return Err(EngineError::ChangedBelow {
                file: cell.node.id,
                object: object.key.to_string(),
                why: FOREIGN_DATA,
            });
        }
        let note = Intent {
            pair: object.pair.name.clone(),
            key: object.key.clone(),
            manifest: object.has_manifest(),
            node: cell.node,
            kind: IntentKind::Settle { mtime },
        };
        let journal = self.journal.clone();
        let noted = async move {
            let noted = journal.add(note).await;
            kill::point("recall.noted");
            noted
        };
        let noted: Noted = noted.boxed().shared();
        // Under way while the first chunks are fetched; none is written before it is there.
        self.runtime.spawn(noted.clone());
        let hashes = tokio::select! {
            biased;
            hashes = self.chunk_hashes(cell, object) => hashes,
            // Or who empties the file would wait for a remote that does not answer.
            () = recall.until_cancelled() => Err(EngineError::Cancelled),
        };
        let fetched = match hashes {
            Ok(hashes) => self.fetch_all(cell, object, recall, &file, &hashes.into(), &noted).await,
            Err(error) => Err(error),
        };
        *touched = noted.await.ok().map(OpenNote::Settle);
        fetched?;
        kill::point("recall.filled");
        let (lower, node) = (self.lower.clone(), cell.node);
        let restore = SetAttr { mtime: Some(SetTime::At(mtime)), ..Default::default() };
        blocking(move || lower.set_attr(&node, &restore)).await?.map_err(&failed)?;
        kill::point("recall.dated");
        self.barrier.wait(cell.node).await?;
        kill::point("recall.synced");
        Ok(())
    }

    /// Whether what is local of a stub is what an earlier transfer could not free.
    pub(super) fn is_leftover(&self, file: FileId, key: &ObjectKey) -> bool {
        self.leftovers.lock().get(&file).is_some_and(|(left, _)| left == key)
    }

    /// Nothing is left in the file that its record does not tell: the note of what was is done.
    pub(super) fn leftover_is_gone(self: &Arc<Self>, cell: &Arc<Cell>) {
        let left = self.leftovers.lock().remove(&cell.node.id);
        self.spawn_forget_when_durable(cell.clone(), left.map(|(_, note)| note));
    }

    /// Runs up to `fetches_per_file` chunk fetches at a time until none is pending.
    async fn fetch_all(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        object: &ObjectRef,
        recall: &Arc<Recall>,
        file: &Arc<dyn LowerFile>,
        hashes: &Arc<[ContentHash]>,
        noted: &Noted,
    ) -> EngineResult<()> {
        let mut fetches = JoinSet::new();
        loop {
            while fetches.len() < self.limits.fetches_per_file {
                let Some(chunk) = recall.next_chunk() else { break };
                let (this, cell, object) = (self.clone(), cell.clone(), object.clone());
                let (recall, file, hash, noted) = (recall.clone(), file.clone(), hashes[chunk], noted.clone());
                fetches.spawn_on(
                    async move { this.fetch_chunk(&cell, &object, &recall, file, chunk, hash, noted).await },
                    &self.runtime,
                );
            }
            let failure = match fetches.join_next().await {
                None => return Ok(()),
                Some(Ok(Ok(()))) if !recall.cancelled.load(Ordering::SeqCst) => continue,
                Some(Ok(Ok(()))) => EngineError::Cancelled,
                Some(Ok(Err(error))) => error,
                Some(Err(_)) => EngineError::ShuttingDown,
            };
            // Never aborted: a blocking write would outlive its task, and could land after the file was cut and
            // written anew. Cancelled fetches end at once, writes end by themselves.
            recall.cancel();
            while fetches.join_next().await.is_some() {}
            return Err(failure);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the facts of one fetch, used once")]
    async fn fetch_chunk(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        object: &ObjectRef,
        recall: &Arc<Recall>,
        file: Arc<dyn LowerFile>,
        chunk: usize,
        hash: ContentHash,
        noted: Noted,
    ) -> EngineResult<()> {
        let range = object.chunk_range(chunk as u64);
        let _slot = tokio::select! {
            slot = self.slot_for(cell.node.id, false, range.len) => slot?,
            () = recall.until_cancelled() => return Err(EngineError::Cancelled),
        };
        let target = self.target()?;
        let file_id = cell.node.id;
        for last in [false, true] {
            let fetched = tokio::select! {
                biased;
                fetched = target.remote.get(&object.key, range, Some(&object.etag)) => fetched,
                () = recall.until_cancelled() => return Err(EngineError::Cancelled),
            };
            let body = match fetched {
                Err(error) if error.kind == RemoteErrorKind::Corrupt && !last => continue,
                body => body.map_err(EngineError::remote(file_id))?,
            };
            noted.clone().await?;
            kill::point("recall.fetched");
            let file = file.clone();
            // Hashing and writing 4 MiB takes milliseconds: not on an async worker.
            let written = blocking(move || {
                if body.len() as u64 != range.len || ContentHash::of(&body) != hash {
                    return Ok(false);
                }
                // Punched space reads as zeros already: blocks of zeros stay holes, so sparse files stay sparse.
                for run in runs(&body) {
                    file.write_at(&body[run.clone()], range.offset + run.start as u64)?;
                    kill::point("recall.written");
                }
                Ok(true)
            })
            .await?
            .map_err(EngineError::lower(file_id))?;
            if written {
                recall.chunk_is_local(chunk, range.len);
                return Ok(());
            }
            tracing::warn!(file = %file_id, object = %object.key, offset = range.offset, "a chunk does not match its hash");
        }
        Err(EngineError::Corrupt {
            file: file_id,
            object: object.key.to_string(),
            offset: range.offset,
            len: range.len,
        })
    }

    /// The hash of every chunk: from the record for one chunk, else from the manifest, which must match the record's root.
    pub(super) async fn chunk_hashes(&self, cell: &Cell, object: &ObjectRef) -> EngineResult<Vec<ContentHash>> {
        if !object.has_manifest() {
            return Ok(vec![object.root]);
        }
        let key = object.manifest_key();
        let target = self.target()?;
        let file = cell.node.id;
        let corrupt = |len| EngineError::Corrupt { file, object: key.to_string(), offset: 0, len };
        for last in [false, true] {
            let info = target.remote.head(&key).await.map_err(EngineError::remote(file))?;
            let range = ByteRange { offset: 0, len: info.len };
            if info.len == 0 || info.len > Manifest::encoded_len_max(object.chunks()) {
                return Err(corrupt(info.len));
            }
            let body = target.remote.get(&key, range, None).await.map_err(EngineError::remote(file))?;
            match Manifest::decode(&body) {
                Ok(manifest)
                    if manifest.root() == object.root
                        && manifest.len() == object.len
                        && manifest.chunk_size() == object.chunk_size =>
                {
                    return Ok(manifest.chunks().to_vec());
                }
                Ok(_) => tracing::warn!(object = %key, "the manifest is not that of the record"),
                Err(why) => tracing::warn!(object = %key, "the manifest does not decode: {why}"),
            }
            if last {
                return Err(corrupt(info.len));
            }
        }
        unreachable!("the loop returns in its second round")
    }
}

/// Runs of blocks that are not all zeros.
fn runs(body: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let is_zero = |at: usize| body[at..body.len().min(at + BLOCK)].iter().all(|byte| *byte == 0);
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < body.len() && is_zero(at) {
            at += BLOCK;
        }
        let start = at;
        while at < body.len() && !is_zero(at) {
            at += BLOCK;
        }
        (start < body.len()).then(|| start..at.min(body.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, runs};

    #[test]
    fn zeros_are_left_out_by_blocks() {
        let check = |set: &[usize], len: usize, want: &[(usize, usize)]| {
            let mut body = vec![0; len];
            set.iter().for_each(|at| body[*at] = 1);
            let found: Vec<_> = runs(&body).map(|run| (run.start, run.end)).collect();
            assert_eq!(found, want, "{set:?} of {len}");
        };
        check(&[], 0, &[]);
        check(&[], 3 * BLOCK + 1, &[]);
        check(&[0], 1, &[(0, 1)]);
        check(&[BLOCK - 1], 3 * BLOCK, &[(0, BLOCK)]);
        check(&[BLOCK, 2 * BLOCK], 4 * BLOCK, &[(BLOCK, 3 * BLOCK)]);
        check(&[0, 2 * BLOCK + 5], 2 * BLOCK + 6, &[(0, BLOCK), (2 * BLOCK, 2 * BLOCK + 6)]);
    }
}
