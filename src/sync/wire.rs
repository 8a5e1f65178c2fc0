//! What the two sides of a metadata sync tell each other: magic, version, postcard body, CRC-32.
//!
//! A statement says what is, never what was done: so a statement that is repeated, or overtaken by a later one of the same thing, does no harm.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::capture::files::Facts;
use crate::tree::Attributes;
use crate::types::{FileId, PairFileId};

const MAGIC: &[u8; 8] = b"tfspsync";
const VERSION: u8 = 1;
const CRC_LEN: usize = 4;
/// Bytes of a message at most.
pub const MESSAGE_MAX: usize = 6 << 20;
/// Longest name, bytes.
const NAME_MAX: usize = 255;

/// A message that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("it is no message of a metadata sync")]
    Magic,
    #[error("it has version {0}, and this tierfs knows {VERSION}: use the same tierfs on both sides")]
    Version(u8),
    #[error("its checksum is wrong")]
    Checksum,
    #[error("it does not decode ({0})")]
    Body(String),
}

/// The stored form of a message.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.push(VERSION);
    let mut out = postcard::to_extend(message, out).expect("plain fields always encode");
    out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
    out
}

/// Never panics, whatever the bytes.
pub fn decode<T: DeserializeOwned>(stored: &[u8]) -> Result<T, WireError> {
    let rest = stored.strip_prefix(MAGIC).ok_or(WireError::Magic)?;
    let (&version, body) = rest.split_first().ok_or(WireError::Checksum)?;
    let body_len = body.len().checked_sub(CRC_LEN).ok_or(WireError::Checksum)?;
    let (body, crc) = body.split_at(body_len);
    if crc != crc32fast::hash(&stored[..stored.len() - CRC_LEN]).to_le_bytes() {
        return Err(WireError::Checksum);
    }
    if version != VERSION {
        return Err(WireError::Version(version));
    }
    let (message, rest) = postcard::take_from_bytes(body).map_err(|error| WireError::Body(error.to_string()))?;
    if rest.is_empty() { Ok(message) } else { Err(WireError::Body("trailing bytes".into())) }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Regular(Facts),
    Directory,
    Symlink {
        target: Vec<u8>,
    },
    Fifo,
    Socket,
    /// Device number (`makedev`).
    CharDevice {
        device: u64,
    },
    BlockDevice {
        device: u64,
    },
}

/// An inode as the master has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// `None`: it was never told, and is not now (a comparison that changes nothing).
    pub id: Option<PairFileId>,
    /// Which inode it is there.
    pub origin: FileId,
    pub links: u32,
    pub kind: Kind,
    pub attributes: Attributes,
}

/// The pair's halves as one side has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Half {
    pub pair: String,
    pub local_cluster: String,
    pub local_share: String,
    pub remote_cluster: String,
    pub remote_share: String,
    /// `master`, `slave`, or empty.
    pub role: String,
}

impl Half {
    /// For messages.
    pub fn place(&self) -> String {
        format!("{}:{}", self.local_cluster, self.local_share)
    }
}

/// Begins a run: what is numbered in an earlier one counts no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    pub run: u64,
    pub master: Half,
    /// The master's root: another one is another share.
    pub share: FileId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Statement {
    /// What a name stands for; `None`: nothing.
    Name { dir: PairFileId, name: Vec<u8>, is: Option<Node> },
    /// An inode, wherever it is.
    Inode(Node),
    /// The names of a directory after `after` up to and with `upto` (`None`: all others) are these and no others. Of one without a node
    /// nothing is said but that it is there.
    Names { dir: PairFileId, after: Option<Vec<u8>>, upto: Option<Vec<u8>>, names: Vec<(Vec<u8>, Option<Node>)> },
    /// An inode is nowhere any more.
    Gone(PairFileId),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    pub run: u64,
    /// From 1 on, without gaps. 0: compare, and change nothing.
    pub number: u64,
    pub statements: Vec<Statement>,
}

/// What was, or would be, done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub made: u64,
    /// Had another name, or gets a further one.
    pub moved: u64,
    /// Attributes.
    pub changed: u64,
    /// Names taken away.
    pub removed: u64,
    pub unchanged: u64,
    pub refused: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Self) {
        let Self { made, moved, changed, removed, unchanged, refused } = other;
        self.made += made;
        self.moved += moved;
        self.changed += changed;
        self.removed += removed;
        self.unchanged += unchanged;
        self.refused += refused;
    }

    /// Everything but what is as it should be.
    pub fn differences(&self) -> u64 {
        self.made + self.moved + self.changed + self.removed + self.refused
    }
}

/// A name that could not become what the master says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    pub dir: PairFileId,
    pub name: Vec<u8>,
    pub why: String,
    /// Something that only the slave has is there.
    pub conflict: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub run: u64,
    pub number: u64,
    pub counts: Counts,
    /// Directories that statements were about, and which are not known.
    pub unknown: Vec<PairFileId>,
    /// Directories made now.
    pub made: Vec<(PairFileId, FileId)>,
    /// Inodes that have no name now, and which the master had as these.
    pub nameless: Vec<(PairFileId, FileId)>,
    pub refused: Vec<Refused>,
}

impl Answer {
    /// Whether there is anything that the master must read.
    pub fn is_plain(&self) -> bool {
        self.unknown.is_empty() && self.made.is_empty() && self.nameless.is_empty() && self.refused.is_empty()
    }
}

/// Facts of contents that the slave holds, for the master.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Id, the master's inode, and the facts.
    pub files: Vec<(PairFileId, FileId, Facts)>,
}

/// Whether bytes can be a name, whoever says so.
pub fn is_name(name: &[u8]) -> bool {
    (1..=NAME_MAX).contains(&name.len()) && name != b"." && name != b".." && !name.iter().any(|b| matches!(b, 0 | b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> Batch {
        let node = Node {
            id: Some(PairFileId([3; 16])),
            origin: FileId { ino: 5, birth: 6 },
            links: 1,
            kind: Kind::Symlink { target: b"../x".to_vec() },
            attributes: Attributes { mode: 0o777, ..Attributes::default() },
        };
        let name = Statement::Name { dir: PairFileId::ROOT, name: b"a".to_vec(), is: Some(node) };
        Batch { run: 7, number: 1, statements: vec![name, Statement::Gone(PairFileId([4; 16]))] }
    }

    #[test]
    fn messages_read_back_and_damage_is_seen() {
        let bytes = encode(&batch());
        assert_eq!(decode::<Batch>(&bytes), Ok(batch()));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(decode::<Batch>(&bad).is_err(), "bit {at}");
            assert!(decode::<Batch>(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn the_layout_stays() {
        let hex: String = encode(&batch()).iter().map(|byte| format!("{byte:02x}")).collect();
        let golden = "7466737073796e63010701020000000000000000000000000000000000016101010303030303030303030303030303030305060102042e2e\
                      2f78ff030000000000000003040404040404040404040404040404046c84c1a8";
        assert_eq!(hex, golden);
    }

    #[test]
    fn names_are_one_step() {
        for (name, good) in [
            (&b"a"[..], true),
            (b".x", true),
            (b"", false),
            (b".", false),
            (b"..", false),
            (b"a/b", false),
            (b"a\0", false),
        ] {
            assert_eq!(is_name(name), good, "{name:?}");
        }
        assert!(is_name(&[b'x'; 255]) && !is_name(&[b'x'; 256]));
    }
}
