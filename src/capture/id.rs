//! The pair file id of an inode: the same on both sides of a pair, whatever either side's inode numbers and paths are.
//!
//! That of a regular file is in its record, with who owns its content ([`crate::record::PeerState`]). Others keep it in an attribute of their own,
//! with the inode that it was given to. So one that was copied along with a file (`cp -a` below the
//! mount) is told from the original; and one whose original is gone (a share that was restored from a backup) stays with its file.

use std::ffi::OsStr;

use crate::ports::{Lower, LowerError, LowerResult, if_set};
use crate::record::Record;
use crate::types::{FileId, Inode, PairFileId};

/// Hidden by the mount, and on no account sent anywhere.
pub const ID_XATTR: &str = "trusted.tierfs.peer-id";
const VERSION: u8 = 1;
const LEN: usize = 1 + 16 + 2 * (8 + 8);

/// What an inode is on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub id: PairFileId,
    /// Which inode it is at the other side; all zeros where that is not known.
    pub there: FileId,
}

fn encode(is: &Identity, of: FileId) -> Vec<u8> {
    let inode = |inode: FileId| [inode.ino.to_be_bytes(), inode.birth.to_be_bytes()].concat();
    [&[VERSION][..], &is.id.0, &inode(of), &inode(is.there)].concat()
}

fn decode(stored: &[u8]) -> Option<(Identity, FileId)> {
    let stored: &[u8; LEN] = stored.try_into().ok()?;
    let (version, rest) = stored.split_first()?;
    let (id, rest) = rest.split_first_chunk()?;
    let number = |at: usize| Some(u64::from_be_bytes(rest.get(at..at + 8)?.try_into().ok()?));
    let of = FileId { ino: number(0)?, birth: number(8)? };
    let there = FileId { ino: number(16)?, birth: number(24)? };
    (*version == VERSION).then_some((Identity { id: PairFileId(*id), there }, of))
}

/// The id of an inode; `None`: it never had one, or has somebody else's.
pub fn peer_id(lower: &dyn Lower, node: &Inode) -> LowerResult<Option<PairFileId>> {
    Ok(identity(lower, node)?.map(|is| is.id))
}

/// As [`peer_id`], with which inode it is at the other side.
pub fn identity(lower: &dyn Lower, node: &Inode) -> LowerResult<Option<Identity>> {
    if node.id == lower.root().id {
        return Ok(Some(Identity { id: PairFileId::ROOT, there: FileId { ino: 0, birth: 0 } }));
    }
    let stored = match if_set(lower.xattr(node, OsStr::new(ID_XATTR))) {
        Err(error) if error.errno() == libc::EOPNOTSUPP => None,
        stored => stored?,
    };
    let Some((is, of)) = stored.as_deref().and_then(decode) else { return file_identity(lower, node) };
    if of == node.id {
        return Ok(Some(is));
    }
    // A copy, unless the original is gone.
    let original = lower.by_number(of.ino);
    Ok(original.is_err_and(|error| error.errno() == libc::ESTALE).then_some(is))
}

/// The id in a regular file's record, if that was made for this very inode.
fn file_identity(lower: &dyn Lower, node: &Inode) -> LowerResult<Option<Identity>> {
    let record = lower.load_record(node)?.and_then(|stored| Record::decode(&stored).ok());
    let peer = record.and_then(|record| record.peer).filter(|peer| peer.here == node.id);
    Ok(peer.map(|peer| Identity { id: peer.id, there: peer.there }))
}

/// Gives an inode that is no regular file its id. As durable as what is done to the share next to it.
pub fn set_identity(lower: &dyn Lower, node: &Inode, is: &Identity) -> LowerResult<()> {
    lower.set_xattr(node, OsStr::new(ID_XATTR), &encode(is, node.id), 0)
}

/// 128 random bits.
pub fn random_id() -> LowerResult<PairFileId> {
    use std::io::Read as _;
    let mut id = [0; 16];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut id));
    read.map_err(|source| LowerError { op: "read /dev/urandom", source })?;
    Ok(PairFileId(id))
}

/// Makes an inode one that only this side has.
pub fn drop_peer_id(lower: &dyn Lower, node: &Inode) -> LowerResult<()> {
    match lower.remove_xattr(node, OsStr::new(ID_XATTR)) {
        Err(error) if error.errno() == libc::ENODATA => Ok(()),
        dropped => dropped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_reads_back() {
        let of = FileId { ino: 9, birth: u64::MAX };
        let is = Identity { id: PairFileId([7; 16]), there: FileId { ino: 3, birth: 1 << 40 } };
        let stored = encode(&is, of);
        assert_eq!(decode(&stored), Some((is, of)));
        assert_eq!(decode(&stored[1..]), None);
        assert_eq!(decode(&[&[2], &stored[1..]].concat()), None);
    }
}
