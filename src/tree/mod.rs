//! Codec of what the store keeps of a directory: its attributes, its names, and what belongs to each name but the content.
//!
//! A directory is one or more parts, each an object of its own: magic, version, postcard body, CRC-32 (little-endian) of all before it.
//! Their keys tell the share (its root), the directory, the generation and the number of the part; the last part says that it is.

use serde::{Deserialize, Serialize};

use crate::types::{ContentHash, FileId, Generation, Timestamp};

const MAGIC: &[u8; 8] = b"tfstrees";
const VERSION: u8 = 1;
const CRC_LEN: usize = 4;
/// Where trees are, below the pair's prefix.
pub const PLACE: &str = ".tierfs/trees/";
/// Names in a part at most: some 400 bytes each where files are stubs.
pub const PART_ENTRIES_MAX: usize = 2_000;

/// What an inode has besides its content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// As it was when the tree was stored; its change alone stores no tree.
    pub atime: Timestamp,
    pub mtime: Timestamp,
    /// Names and values: `user.*`, ACLs, capabilities; none of tierfs' own.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Size in bytes, and the record as it is stored, where there is one.
    Regular {
        size: u64,
        record: Option<Vec<u8>>,
    },
    /// It has a tree of its own.
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

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Bytes, as the kernel gives them.
    pub name: Vec<u8>,
    /// Equal for names of one inode.
    pub file: FileId,
    /// How many names the inode has, in all directories.
    pub links: u32,
    pub kind: Kind,
    /// Of directories, those in their own tree count.
    pub attributes: Attributes,
}

/// A part of a directory's tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub directory: FileId,
    pub generation: Generation,
    /// From 0.
    pub number: u32,
    pub last: bool,
    /// The directory's own; in each part.
    pub attributes: Attributes,
    pub entries: Vec<Entry>,
}

/// Why bytes are no part of a tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    #[error("it does not start with a tree's magic")]
    Magic,
    #[error("it has version {0}; this tierfs knows up to {VERSION}: use the newer tierfs that wrote it")]
    Version(u8),
    #[error("its checksum is wrong")]
    Checksum,
    #[error("its body does not decode ({0})")]
    Body(String),
}

impl Part {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.push(VERSION);
        let mut out = postcard::to_extend(self, out).expect("plain fields always encode");
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads what [`Part::encode`] wrote. Never panics, whatever the bytes.
    pub fn decode(stored: &[u8]) -> Result<Self, TreeError> {
        let body = stored.strip_prefix(MAGIC).ok_or(TreeError::Magic)?;
        let (&version, body) = body.split_first().ok_or(TreeError::Checksum)?;
        let (body, crc) = body.split_at(body.len().checked_sub(CRC_LEN).ok_or(TreeError::Checksum)?);
        if crc != crc32fast::hash(&stored[..stored.len() - CRC_LEN]).to_le_bytes() {
            return Err(TreeError::Checksum);
        }
        if version != VERSION {
            return Err(TreeError::Version(version));
        }
        let (part, rest) = postcard::take_from_bytes::<Self>(body).map_err(|e| TreeError::Body(e.to_string()))?;
        if rest.is_empty() { Ok(part) } else { Err(TreeError::Body("trailing bytes".into())) }
    }

    /// Hash of what would have to be stored anew if it changed: all but generation and access times.
    pub fn content_hash(&self) -> ContentHash {
        let mut plain = self.clone();
        plain.generation = Generation(0);
        plain.attributes.atime = Timestamp::default();
        plain.entries.iter_mut().for_each(|entry| {
            entry.attributes.atime = Timestamp::default();
            if entry.kind == Kind::Directory {
                // In a tree of its own.
                entry.attributes = Attributes::default();
                entry.links = 0;
            }
        });
        ContentHash::of(&plain.encode())
    }
}

/// Which part of which tree an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartKey {
    /// The share's root.
    pub share: FileId,
    pub directory: FileId,
    pub generation: Generation,
    pub number: u32,
    pub last: bool,
}

impl PartKey {
    /// The key below the pair's prefix. Keys of one tree follow each other in a listing, older ones of a directory before newer.
    pub fn to_name(self) -> String {
        let end = if self.last { ".end" } else { "" };
        let Self { share, directory, generation, number, .. } = self;
        format!("{PLACE}{share}/{directory}.{:016x}.{number:06}{end}", generation.0)
    }

    /// Takes apart what [`PartKey::to_name`] made.
    pub fn of_name(name: &str) -> Option<Self> {
        let file = |text: &str| {
            let (ino, birth) = text.split_once('-')?;
            let hex = |text| u64::from_str_radix(text, 16).ok();
            Some(FileId { ino: hex(ino)?, birth: hex(birth)? })
        };
        let (share, rest) = name.strip_prefix(PLACE)?.split_once('/')?;
        let mut fields = rest.split('.');
        let directory = file(fields.next()?)?;
        let generation = Generation(u64::from_str_radix(fields.next()?, 16).ok()?);
        let number = fields.next()?.parse().ok()?;
        let key = Self { share: file(share)?, directory, generation, number, last: fields.next().is_some() };
        (key.to_name() == name).then_some(key)
    }
}

#[cfg(test)]
mod tests;
