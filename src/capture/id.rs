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
const LEN: usize = 1 + 16 + 8 + 8;

fn encode(id: PairFileId, of: FileId) -> Vec<u8> {
    [&[VERSION][..], &id.0, &of.ino.to_be_bytes(), &of.birth.to_be_bytes()].concat()
}

fn decode(stored: &[u8]) -> Option<(PairFileId, FileId)> {
    let stored: &[u8; LEN] = stored.try_into().ok()?;
    let (version, rest) = stored.split_first()?;
    let (id, rest) = rest.split_first_chunk()?;
    let (ino, rest) = rest.split_first_chunk()?;
    let (birth, _) = rest.split_first_chunk()?;
    let of = FileId { ino: u64::from_be_bytes(*ino), birth: u64::from_be_bytes(*birth) };
    (*version == VERSION).then_some((PairFileId(*id), of))
}

/// The id of an inode; `None`: it never had one, or has somebody else's.
pub fn peer_id(lower: &dyn Lower, node: &Inode) -> LowerResult<Option<PairFileId>> {
    if node.id == lower.root().id {
        return Ok(Some(PairFileId::ROOT));
    }
    let stored = match if_set(lower.xattr(node, OsStr::new(ID_XATTR))) {
        Err(error) if error.errno() == libc::EOPNOTSUPP => None,
        stored => stored?,
    };
    let Some((id, of)) = stored.as_deref().and_then(decode) else { return file_id(lower, node) };
    if of == node.id {
        return Ok(Some(id));
    }
    // A copy, unless the original is gone.
    let original = lower.by_number(of.ino);
    Ok(original.is_err_and(|error| error.errno() == libc::ESTALE).then_some(id))
}

/// The id in a regular file's record, if that was made for this very inode.
fn file_id(lower: &dyn Lower, node: &Inode) -> LowerResult<Option<PairFileId>> {
    let record = lower.load_record(node)?.and_then(|stored| Record::decode(&stored).ok());
    Ok(record.and_then(|record| record.peer).filter(|peer| peer.here == node.id).map(|peer| peer.id))
}

/// Gives an inode that is no regular file its id. As durable as what is done to the share next to it.
pub fn set_peer_id(lower: &dyn Lower, node: &Inode, id: PairFileId) -> LowerResult<()> {
    lower.set_xattr(node, OsStr::new(ID_XATTR), &encode(id, node.id), 0)
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
        let (id, of) = (PairFileId([7; 16]), FileId { ino: 9, birth: u64::MAX });
        let stored = encode(id, of);
        assert_eq!(decode(&stored), Some((id, of)));
        assert_eq!(decode(&stored[1..]), None);
        assert_eq!(decode(&[&[2], &stored[1..]].concat()), None);
    }
}
