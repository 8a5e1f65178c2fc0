//! The index of a pack: what its members are, by which each can be found, and made a file again, from the bucket alone.
//!
//! A pack is the members' contents one after another, then the index: a postcard body, its length (u32), version (u8), CRC-32 of all of these, magic; numbers
//! little-endian. So it is read from its end, of which the last [`TRAILER_LEN`] bytes have always one length. Invariant: an [`Index`] is consistent, whether
//! built or decoded: its members are in order, apart, and before itself.

use serde::{Deserialize, Serialize};

use crate::types::{ByteRange, ObjectKey};

const MAGIC: &[u8; 8] = b"tfspack\0";
const VERSION: u8 = 1;
/// What is behind the body, in bytes.
pub const TRAILER_LEN: usize = 4 + 1 + 4 + 8;
/// Longest body read, in bytes: no pack is longer.
const BODY_LEN_MAX: u32 = 8 << 20;

/// Why bytes are no index of a pack.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    #[error("it does not end with a pack's magic")]
    Magic,
    #[error("it has version {0}; this tierfs knows {VERSION}: use the newer tierfs that wrote it")]
    Version(u8),
    #[error("its checksum is wrong")]
    Checksum,
    #[error("its index is cut short, or longer than any")]
    Length,
    #[error("its index does not decode ({0})")]
    Body(String),
    #[error("its members are not one after another before the index")]
    Order,
}

/// One file's content in a pack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The key that an object of its own would have.
    pub key: ObjectKey,
    /// Where it is in the pack.
    pub range: ByteRange,
    /// The user metadata that an object of its own would have.
    pub metadata: Vec<(String, String)>,
}

/// What is in a pack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index(Vec<Member>);

impl Index {
    /// Of members in the order of their contents.
    pub fn new(members: Vec<Member>) -> Result<Self, PackError> {
        let mut at = 0;
        let in_order = members.iter().all(|member| {
            let ByteRange { offset, len } = member.range;
            let fits = offset >= at && len > 0;
            let end = offset.checked_add(len);
            at = end.unwrap_or(u64::MAX);
            fits && end.is_some()
        });
        if in_order { Ok(Self(members)) } else { Err(PackError::Order) }
    }

    pub fn members(&self) -> &[Member] {
        &self.0
    }

    /// The member whose content is exactly there.
    pub fn at(&self, range: ByteRange) -> Option<&Member> {
        let found = self.0.binary_search_by_key(&range.offset, |member| member.range.offset);
        Some(&self.0[found.ok()?]).filter(|member| member.range == range)
    }

    /// What follows the contents in the pack.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = postcard::to_stdvec(&self.0).expect("members of plain fields always encode");
        let len = u32::try_from(out.len()).ok().filter(|len| *len <= BODY_LEN_MAX);
        out.extend_from_slice(&len.expect("a pack is bounded").to_le_bytes());
        out.push(VERSION);
        out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
        out.extend_from_slice(MAGIC);
        out
    }

    /// How long the index is with its trailer, by the `trailer` (the last [`TRAILER_LEN`] bytes) of a pack of `pack_len` bytes. What it says is proven by
    /// [`Index::decode`] only.
    pub fn len_of(trailer: &[u8], pack_len: u64) -> Result<u64, PackError> {
        let (body, rest) = trailer.split_first_chunk::<4>().ok_or(PackError::Length)?;
        if trailer.len() != TRAILER_LEN || !rest.ends_with(MAGIC) {
            return Err(PackError::Magic);
        }
        let body = u32::from_le_bytes(*body);
        let len = u64::from(body) + TRAILER_LEN as u64;
        if body > BODY_LEN_MAX || len > pack_len { Err(PackError::Length) } else { Ok(len) }
    }

    /// Reads what [`Index::encode`] wrote, the end of a pack of `pack_len` bytes. Never panics, whatever the bytes.
    pub fn decode(stored: &[u8], pack_len: u64) -> Result<Self, PackError> {
        let trailer = stored.len().checked_sub(TRAILER_LEN).ok_or(PackError::Length)?;
        if Self::len_of(&stored[trailer..], pack_len)? != stored.len() as u64 {
            return Err(PackError::Length);
        }
        let (summed, crc) = stored[..stored.len() - MAGIC.len()].split_at(trailer + 5);
        if crc != crc32fast::hash(summed).to_le_bytes() {
            return Err(PackError::Checksum);
        }
        // After the checksum: a flipped bit is rot, not the future.
        if summed[trailer + 4] != VERSION {
            return Err(PackError::Version(summed[trailer + 4]));
        }
        let broken = |error: postcard::Error| PackError::Body(error.to_string());
        let (members, rest) = postcard::take_from_bytes::<Vec<Member>>(&stored[..trailer]).map_err(broken)?;
        if !rest.is_empty() {
            return Err(PackError::Body("trailing bytes".into()));
        }
        let index = Self::new(members)?;
        let contents = pack_len - stored.len() as u64;
        match index.0.last() {
            Some(last) if last.range.end() > contents => Err(PackError::Order),
            _ => Ok(index),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACK_LEN: u64 = 300;

    fn sample() -> Index {
        let member = |path: &str, offset, len| Member {
            key: ObjectKey(format!("p/{path}@1f-a.64")),
            range: ByteRange { offset, len },
            metadata: vec![("tierfs-mode".into(), "644".into()), ("tierfs-path".into(), path.into())],
        };
        Index::new(vec![member("a", 0, 100), member("d/b", 100, 1)]).unwrap()
    }

    /// These bytes are in people's buckets and must decode forever.
    #[test]
    fn golden_version_1() {
        let golden = include_bytes!("golden/pack-v1.bin");
        assert_eq!(Index::decode(golden, PACK_LEN), Ok(sample()));
        assert_eq!(sample().encode(), golden);
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_noticed() {
        let good = sample().encode();
        assert_eq!(Index::len_of(&good[good.len() - TRAILER_LEN..], PACK_LEN), Ok(good.len() as u64));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Index::decode(&bad, PACK_LEN).is_err(), "bit {bit} flipped unnoticed");
        }
        for len in 0..good.len() {
            assert!(Index::decode(&good[..len], PACK_LEN).is_err(), "cut to {len} unnoticed");
            assert!(Index::decode(&good[len + 1..], PACK_LEN).is_err(), "the first {len} and one lost unnoticed");
        }
        assert_eq!(
            Index::decode(&good, good.len() as u64 + 100),
            Err(PackError::Order),
            "the last member is in the index"
        );
        assert!(Index::decode(&good, good.len() as u64 - 1).is_err());
    }

    #[test]
    fn members_are_in_order() {
        let Index(members) = sample();
        let check = |ranges: [(u64, u64); 2], good: bool| {
            let mut members = members.clone();
            for (member, (offset, len)) in members.iter_mut().zip(ranges) {
                member.range = ByteRange { offset, len };
            }
            assert_eq!(Index::new(members).is_ok(), good, "{ranges:?}");
        };
        check([(5, 1), (7, 2)], true);
        check([(0, 2), (1, 2)], false);
        check([(0, 0), (1, 2)], false);
        check([(1, u64::MAX), (1, 1)], false);
        let index = sample();
        assert_eq!(index.at(ByteRange { offset: 100, len: 1 }).map(|found| &found.key), Some(&members[1].key));
        for (offset, len) in [(0, 99), (1, 99), (100, 2), (101, 1)] {
            assert_eq!(index.at(ByteRange { offset, len }), None);
        }
    }
}
