//! Codec of what is stored in a file's xattr: magic, version, body, checksum.
//!
//! Layout (`docs/on-disk-format.md`): `"TFS1"`, version (u8), postcard body, CRC-32 (little-endian) of all before it.
//! A record that cannot be decoded is an error, never "no record": a file whose record is damaged must not be taken for
//! a resident one, since its local bytes may be holes.

mod member;
mod patch;
mod peer;

use serde::{Deserialize, Serialize};

pub use peer::{Attempted, PeerState, Seal, is_peer_key, peer_key, peer_object};

use crate::types::{
    ByteRange, CHUNKS_MAX, ClusterId, ContentHash, Generation, ObjectKey, PairName, Timestamp, is_chunk_size,
};
pub use crate::types::{Claim, Phase};
pub use member::{MEMBER_SUFFIX_MAX, PACKS, PackName, Place, is_member, member_parts, place_of};
pub use patch::{PATCH_RANGES_MAX, Patch, Ranges};

const MAGIC: &[u8; 4] = b"TFS1";
/// The newest version known. Stored is the oldest that has what the record says: 2 has claims of parts, 3 has [`Extension`], 4 a peer's file instead,
/// 5 as 3 members of packs.
const VERSION: u8 = 5;
/// What a version that has a peer's file is.
const WITH_PEER: u8 = 4;
/// What a version that has members of packs is.
const WITH_MEMBERS: u8 = 5;
/// Longest record accepted, in bytes: what an ext4 xattr block can hold.
const ENCODED_LEN_MAX: usize = 4096;
/// What numbers in a record may grow by, in bytes: each is stored in as few as it needs.
const GROWTH_MAX: usize = 64;
/// What the ranges of a patch take at most, in bytes: two numbers each.
const PATCH_GROWTH_MAX: usize = PATCH_RANGES_MAX * 20;

/// Administrator's wishes that travel with the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Flags {
    /// Never released.
    pub pinned: bool,
    /// Reads are refused rather than recalled.
    pub no_recall: bool,
    /// Retention-locked: left alone by tiering.
    pub retained: bool,
}

/// The four identifiers and the name of the pair that an object belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PairRef {
    pub name: PairName,
    pub local_cluster: ClusterId,
    pub local_share: String,
    pub remote_cluster: ClusterId,
    /// `bucket` or `bucket/prefix`.
    pub remote_share: String,
}

impl PairRef {
    /// The four identifiers joined by commas, local first (R6).
    pub fn identifiers(&self) -> String {
        format!("{},{},{},s3://{}", self.local_cluster, self.local_share, self.remote_cluster, self.remote_share)
    }
}

/// The object that holds one generation of the content.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ObjectRef {
    pub pair: PairRef,
    pub key: ObjectKey,
    pub etag: String,
    pub version: Option<String>,
    /// The generation of the content that the object holds.
    pub generation: Generation,
    /// Length of the content in bytes.
    pub len: u64,
    /// The file's mtime when it was copied, or as set since; what `stat` shows while the file is a stub.
    pub mtime: Timestamp,
    /// Bytes per chunk of the manifest.
    pub chunk_size: u32,
    /// Root over the chunk hashes; for a file of one chunk, that chunk's hash.
    pub root: ContentHash,
}

impl ObjectRef {
    /// Number of chunks of the content.
    pub fn chunks(&self) -> u64 {
        self.len.div_ceil(u64::from(self.chunk_size))
    }

    /// Which bytes chunk `index` covers; it must be below [`ObjectRef::chunks`].
    pub fn chunk_range(&self, index: u64) -> ByteRange {
        ByteRange::of_chunk(index, self.chunk_size, self.len).expect("the object has this chunk")
    }

    /// Whether a manifest object is stored beside the object: files of one chunk carry their hash in the record.
    pub fn has_manifest(&self) -> bool {
        self.chunks() > 1
    }

    /// Key of the manifest object.
    pub fn manifest_key(&self) -> ObjectKey {
        manifest_key(&self.key)
    }
}

/// Key of the manifest that belongs to the object under `key`.
pub fn manifest_key(key: &ObjectKey) -> ObjectKey {
    ObjectKey(format!("{}{MANIFEST_SUFFIX}", key.0))
}

/// What a manifest's key has more than its object's.
pub const MANIFEST_SUFFIX: &str = ".manifest";

/// An object that the file no longer needs and that no deletion intent names yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Superseded {
    pub pair: PairName,
    pub key: ObjectKey,
    /// A manifest object goes with it.
    pub manifest: bool,
}

/// What is stored on the lower inode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub claim: Claim,
    /// Generation of the content that the file has now.
    pub generation: Generation,
    /// Fencing epoch: raised by every transition once several nodes share the filesystem.
    pub epoch: u64,
    pub flags: Flags,
    /// Present exactly when the claim is not `Resident`.
    pub object: Option<ObjectRef>,
    /// The object of the content before; kept here until a deletion intent for it is durable, so that an open for
    /// writing waits for one sync and not two.
    pub superseded: Option<Superseded>,
    /// Present exactly when the claim is `Patched`. Stored in the [`Extension`].
    #[serde(skip)]
    pub patch: Option<Patch>,
    /// Present on files that the other side of a pair has, too. Stored after the rest.
    #[serde(skip)]
    pub peer: Option<PeerState>,
}

/// What follows the other fields since version 3.
#[derive(Default, Serialize, Deserialize)]
struct Extension {
    patch: Option<Patch>,
}

fn has_extension(version: u8) -> bool {
    matches!(version, 3 | WITH_MEMBERS)
}

/// Why stored bytes are no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("it does not start with the record's magic")]
    Magic,
    #[error("it has version {0}; this tierfs knows up to {VERSION}: use the newer tierfs that wrote it")]
    Version(u8),
    #[error("its checksum is wrong (bit rot, or written by something else)")]
    Checksum,
    #[error("its body does not decode ({0})")]
    Body(String),
    #[error("its fields contradict each other ({0})")]
    Contradiction(&'static str),
}

impl Record {
    /// Whether this is the record's object.
    pub fn names(&self, key: &ObjectKey) -> bool {
        self.object.as_ref().is_some_and(|object| object.key == *key)
    }

    /// What a file without a record is.
    pub fn unclaimed() -> Self {
        Self {
            claim: Claim::Resident,
            generation: Generation(0),
            epoch: 0,
            flags: Flags::default(),
            object: None,
            superseded: None,
            patch: None,
            peer: None,
        }
    }

    /// The record of a stub that is about to be written to: of `generation`, and all of it still the object's.
    pub fn into_patched(self, generation: Generation) -> Self {
        let patch = self.object.as_ref().map(|object| Patch::new(object.len));
        Self { claim: Claim::Patched, generation, patch, ..self }
    }

    /// The record of changed content: resident, of `generation`, with the old object marked as superseded.
    /// An object that is superseded already must have its intent first.
    pub fn into_resident(self, generation: Generation) -> Self {
        let superseded = match (self.object, self.superseded) {
            // It stands for the other side's file, which is no object to be deleted.
            (Some(object), superseded) if is_peer_key(&object.key) => superseded,
            (Some(object), None) => {
                Some(Superseded { pair: object.pair.name.clone(), manifest: object.has_manifest(), key: object.key })
            }
            (None, superseded) => superseded,
            (Some(_), Some(_)) => unreachable!("check() refuses a record with both"),
        };
        let peer = self.peer.map(|peer| match peer.phase {
            Phase::Owner { .. } => PeerState { phase: Phase::Owner { published: false }, ..peer },
            _ => unreachable!("only an owner's content changes: {peer:?}"),
        });
        Self { claim: Claim::Resident, generation, object: None, superseded, patch: None, peer, ..self }
    }

    fn check(&self) -> Result<(), RecordError> {
        peer::check(self)?;
        let Some(object) = &self.object else {
            return match self.claim {
                Claim::Resident if self.patch.is_none() => Ok(()),
                _ => Err(RecordError::Contradiction("a remote claim without an object")),
            };
        };
        if self.claim == Claim::Resident {
            return Err(RecordError::Contradiction("a resident claim with an object"));
        }
        if self.superseded.is_some() {
            return Err(RecordError::Contradiction("an object and a superseded object"));
        }
        match (&self.patch, self.claim) {
            (Some(patch), Claim::Patched) => {
                if let Some(why) = patch.contradiction(object.len) {
                    return Err(RecordError::Contradiction(why));
                }
                if object.generation >= self.generation {
                    return Err(RecordError::Contradiction("a patched file that is no newer than its object"));
                }
            }
            (Some(_), _) | (None, Claim::Patched) => {
                return Err(RecordError::Contradiction("a patch without the claim of one, or the other way round"));
            }
            (None, _) if object.generation != self.generation => {
                return Err(RecordError::Contradiction("the object is of another generation than the file"));
            }
            (None, _) => {}
        }
        if !(1..=1024).contains(&object.key.0.len()) {
            return Err(RecordError::Contradiction("the object's key is empty or over 1,024 bytes"));
        }
        if object.len == 0 {
            return Err(RecordError::Contradiction("the length is zero"));
        }
        if !is_chunk_size(object.chunk_size) || object.chunks() > CHUNKS_MAX {
            return Err(RecordError::Contradiction("the length cannot be cut into chunks of that size"));
        }
        if let Some(place) = place_of(&object.key)
            && (object.has_manifest() || place.range.len != object.len)
        {
            return Err(RecordError::Contradiction("a member of a pack of another length, or of several chunks"));
        }
        if object.mtime.nanos >= 1_000_000_000 {
            return Err(RecordError::Contradiction("mtime has over 999,999,999 ns"));
        }
        Ok(())
    }

    fn has_member(&self) -> bool {
        let keys = self.object.iter().map(|object| &object.key).chain(self.superseded.iter().map(|old| &old.key));
        keys.into_iter().any(is_member)
    }

    /// Whether the record, and what it becomes when times and claims change, can be stored. Paths, ETags and versions are of any length.
    pub fn fits(&self) -> bool {
        let growth = GROWTH_MAX + self.patch.as_ref().map_or(0, |_| PATCH_GROWTH_MAX);
        self.encoded().len() + growth <= ENCODED_LEN_MAX
    }

    /// The stored form. Panics if the record contradicts itself or is longer than what is read back: storing such a record would lose a file.
    pub fn encode(&self) -> Vec<u8> {
        if let Err(why) = self.check() {
            panic!("refusing to store a broken record: {why}: {self:?}");
        }
        let stored = self.encoded();
        assert!(stored.len() <= ENCODED_LEN_MAX, "refusing to store a record of {} bytes: {self:?}", stored.len());
        stored
    }

    fn encoded(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let version = match self.claim {
            _ if self.peer.is_some() => WITH_PEER,
            _ if self.has_member() => WITH_MEMBERS,
            _ if self.patch.is_some() => 3,
            Claim::Partial => 2,
            _ => 1,
        };
        out.push(version);
        let encodes = "a record of plain fields always encodes";
        let mut out = postcard::to_extend(self, out).expect(encodes);
        if let Some(peer) = &self.peer {
            out = postcard::to_extend(peer, out).expect(encodes);
        } else if has_extension(version) {
            out = postcard::to_extend(&Extension { patch: self.patch.clone() }, out).expect(encodes);
        }
        out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
        out
    }

    /// Decodes what [`Record::encode`] stored. Never panics, whatever the bytes.
    pub fn decode(stored: &[u8]) -> Result<Self, RecordError> {
        let body = stored.strip_prefix(MAGIC).ok_or(RecordError::Magic)?;
        let (&version, body) = body.split_first().ok_or(RecordError::Checksum)?;
        if stored.len() > ENCODED_LEN_MAX {
            return Err(RecordError::Contradiction("longer than any record"));
        }
        let body_len = body.len().checked_sub(4).ok_or(RecordError::Checksum)?;
        let (body, crc) = body.split_at(body_len);
        // The checksum comes before the version: a flipped bit in the version byte is rot, not the future.
        if crc != crc32fast::hash(&stored[..stored.len() - 4]).to_le_bytes() {
            return Err(RecordError::Checksum);
        }
        if !(1..=VERSION).contains(&version) {
            return Err(RecordError::Version(version));
        }
        let broken = |error: postcard::Error| RecordError::Body(error.to_string());
        let (mut record, mut rest) = postcard::take_from_bytes::<Record>(body).map_err(broken)?;
        if version == WITH_PEER {
            let (peer, after) = postcard::take_from_bytes::<PeerState>(rest).map_err(broken)?;
            (record.peer, rest) = (Some(peer), after);
        } else if has_extension(version) {
            let (extension, after) = postcard::take_from_bytes::<Extension>(rest).map_err(broken)?;
            (record.patch, rest) = (extension.patch, after);
        }
        if !rest.is_empty() {
            return Err(RecordError::Body("trailing bytes".into()));
        }
        if version == 1 && record.claim == Claim::Partial {
            return Err(RecordError::Contradiction("a claim that its version does not have"));
        }
        if version < WITH_PEER && record.has_member() {
            return Err(RecordError::Contradiction("a member of a pack, which its version does not have"));
        }
        record.check()?;
        Ok(record)
    }
}

#[cfg(test)]
mod tests;
