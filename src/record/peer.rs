//! What a record says of a file that both sides of a pair have: who owns the content, and how far a change of that is.
//!
//! Stored after the body of the record, and only where it is present: the records of all other files are as they always were.

use serde::{Deserialize, Serialize};

use super::{ObjectRef, PairRef, Record, RecordError};
use crate::types::{Claim, ContentHash, FileId, Generation, ObjectKey, PairFileId, PairName, Phase, Timestamp};

/// What keys of a peer's files begin with. No object has such a key: it stands for the file at the other side.
const PEER_KEY: &str = ".tierfs-gateway/peer/";

/// A generation's content, as `stat` tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Seal {
    /// Bytes.
    pub len: u64,
    pub mtime: Timestamp,
}

/// One attempt at a change of owner: the epoch that it would begin, and its number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attempted {
    pub epoch: u64,
    pub attempt: u32,
}

/// A file that both sides of a pair have.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PeerState {
    pub pair: PairName,
    pub id: PairFileId,
    /// The inode that this record was made for: copied to another, it says nothing.
    pub here: FileId,
    /// The inode at the other side, as last heard of; all zeros where it is not known.
    pub there: FileId,
    /// Rises by one with every change of owner.
    pub epoch: u64,
    pub phase: Phase,
    /// What is published or offered; of others it may be out of date.
    pub content: Seal,
    /// Of what is offered: the root over its chunks' hashes, which the other side's copy must have.
    pub offered: Option<ContentHash>,
    /// This side's last attempt to begin the next epoch.
    pub attempt: u32,
    /// The last of the other side's attempts that was refused.
    pub refused: Attempted,
    /// The size in bytes that the lower file may still have, while a newer generation's is being given to a stub.
    pub was_len: Option<u64>,
}

impl PeerState {
    /// Whether the other side owns the content.
    pub fn is_foreign(&self) -> bool {
        matches!(self.phase, Phase::Stub | Phase::Taking)
    }

    /// Whether the generation fixes the bytes that are here.
    pub fn is_sealed(&self) -> bool {
        matches!(self.phase, Phase::Owner { published: true } | Phase::Offering)
    }

    /// Whether a change of ownership is asked for and not decided.
    pub fn is_handing_over(&self) -> bool {
        self.phase.is_asking()
    }
}

/// The key that stands for a generation of a peer's file: in records and notes, never at a store.
pub fn peer_key(id: PairFileId, generation: Generation) -> ObjectKey {
    ObjectKey(format!("{PEER_KEY}{id}.{generation}"))
}

/// Whether a key stands for a peer's file.
pub fn is_peer_key(key: &ObjectKey) -> bool {
    key.0.starts_with(PEER_KEY)
}

/// What stands for a peer's content in a stub's record. Its root is not known: the other side tells its chunks' hashes with its generation.
pub fn peer_object(
    pair: PairRef,
    id: PairFileId,
    generation: Generation,
    len: u64,
    mtime: Timestamp,
    chunk_size: u32,
) -> ObjectRef {
    ObjectRef {
        pair,
        key: peer_key(id, generation),
        etag: generation.to_string(),
        version: None,
        generation,
        len,
        mtime,
        chunk_size,
        root: ContentHash([0; 32]),
    }
}

/// Whether owner and content go together.
pub(super) fn check(record: &Record) -> Result<(), RecordError> {
    let Some(peer) = &record.peer else { return Ok(()) };
    let fits = match (peer.phase, record.claim, &record.object) {
        (Phase::Owner { .. } | Phase::Offering, claim, object) => claim == Claim::Resident && object.is_none(),
        // An empty file is whole under any claim.
        (_, Claim::Resident, object) => object.is_none(),
        (Phase::Taking, claim, _) => claim == Claim::Dual,
        (Phase::Stub, claim, _) => claim.is_remote(),
    };
    if !fits {
        return Err(RecordError::Contradiction("who owns the content contradicts where it is"));
    }
    if record.object.as_ref().is_some_and(|object| object.key != peer_key(peer.id, record.generation)) {
        return Err(RecordError::Contradiction("the object is not the peer's file"));
    }
    Ok(())
}
