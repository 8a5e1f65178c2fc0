//! The words every floor shares: identities, generations, keys, times.
//!
//! Nothing here does I/O or knows another module of the crate.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Which lower inode a file is: inode number plus a hash of its birth time.
///
/// The inode number alone is reused by the lower filesystem after an unlink; the second half tells a reused
/// inode from the one that was meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileId {
    /// Inode number on the lower filesystem.
    pub ino: u64,
    /// Hash of the inode's birth time (`statx` btime); 0 where the filesystem records none.
    pub birth: u64,
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.ino, self.birth)
    }
}

/// One file on both sides of a pair: given once, and the same in both records, however the file is called and whatever inode it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PairFileId(pub [u8; 16]);

impl PairFileId {
    /// The share's root on either side, which is never given one.
    pub const ROOT: Self = Self([0; 16]);
}

impl fmt::Display for PairFileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::str::FromStr for PairFileId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        // Only as it is written: another spelling would be another name for the same.
        let fits = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        if text.len() != 32 || !text.bytes().all(fits) {
            return Err(());
        }
        u128::from_str_radix(text, 16).map(|id| Self(id.to_be_bytes())).map_err(|_| ())
    }
}

impl std::str::FromStr for FileId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (ino, birth) = text.split_once('-').ok_or(())?;
        let hex = |text: &str| u64::from_str_radix(text, 16).map_err(|_| ());
        Ok(Self { ino: hex(ino)?, birth: hex(birth)? })
    }
}

/// Longest kernel file handle kept inline, in bytes. ext4 needs 8, XFS 12, btrfs 20 (with parent 40).
pub const HANDLE_BYTES_MAX: usize = 40;

/// A kernel file handle (`name_to_handle_at(2)`): finds an inode again without a path, across restarts.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RawHandle {
    kind: i32,
    len: u8,
    bytes: [u8; HANDLE_BYTES_MAX],
}

impl RawHandle {
    /// Wraps a handle of `kind` (the kernel's `handle_type`). `None` if it is longer than [`HANDLE_BYTES_MAX`].
    pub fn new(kind: i32, handle: &[u8]) -> Option<Self> {
        let mut bytes = [0; HANDLE_BYTES_MAX];
        bytes.get_mut(..handle.len())?.copy_from_slice(handle);
        Some(Self { kind, len: handle.len() as u8, bytes })
    }

    /// The kernel's `handle_type`.
    pub fn kind(&self) -> i32 {
        self.kind
    }

    /// The opaque bytes (`f_handle`).
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }
}

impl fmt::Debug for RawHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RawHandle({}:{:02x?})", self.kind, self.bytes())
    }
}

/// A lower inode as a value: who it is and how to find it again. Holds no descriptor and no reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Inode {
    pub id: FileId,
    pub handle: RawHandle,
}

/// A counter that rises with every change of content; it decides every comparison between two copies.
///
/// A new generation is never below the wall clock in microseconds (see [`Generation::after`]), so a record restored from an
/// old backup cannot lead to a generation, and hence an object key, that was used before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation that follows `self` at wall-clock time `now`: strictly greater than `self`.
    pub fn after(self, now: Timestamp) -> Self {
        let clock_us = now.secs.max(0) as u64 * 1_000_000 + u64::from(now.nanos) / 1_000;
        Self(clock_us.max(self.0.saturating_add(1)))
    }
}

/// A number as `{:x}` writes it, and no other way: another spelling would be another key.
pub fn parse_hex(text: &str) -> Option<u64> {
    let number = u64::from_str_radix(text, 16).ok()?;
    (format!("{number:x}") == text).then_some(number)
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// What a record claims of a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Claim {
    /// All content is local; nothing remote is claimed.
    Resident,
    /// Local content and the object are equal.
    Dual,
    /// The object holds the content; local blocks are being freed and must not be served.
    Releasing,
    /// The object holds the content; local blocks are freed.
    Stub,
    /// The object holds the content. Chunks of it may be local: those whose bytes have the hash that the object's manifest gives.
    Partial,
    /// A stub that was written to: what the record's patch says is the file's own, the rest of the content is the object's, and local like that
    /// of `Partial`.
    Patched,
}

impl Claim {
    /// Whether the object holds content, and local bytes are not to be believed as they are.
    pub fn is_remote(self) -> bool {
        match self {
            Self::Resident | Self::Dual => false,
            Self::Releasing | Self::Stub | Self::Partial | Self::Patched => true,
        }
    }
}

/// Which part a side has in a file that both sides of a pair have; stored in records, and told to the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// The content is here. `published`: somebody may have been told of this generation, which fixes the bytes: the next change raises it first.
    Owner { published: bool },
    /// The content is there. Chunks of it may be here, each counted by its hash only.
    Stub,
    /// The other side was asked, or will be, to take ownership. All bytes are here, may be read, and do not change; nothing is freed.
    Offering,
    /// All bytes are here, verified and durable, and the owner was asked, or will be, to give ownership up.
    /// Reads are served from here; writes wait; nothing is freed.
    Taking,
}

impl Phase {
    /// Whether all of the content is in the local file.
    pub fn is_local(self) -> bool {
        !matches!(self, Self::Stub)
    }

    /// Whether a call of this side is open: it is repeated, across restarts, until it is answered.
    pub fn is_asking(self) -> bool {
        matches!(self, Self::Offering | Self::Taking)
    }
}

/// What a read of a stub brings back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecallPolicy {
    /// What is read, and what will probably be read next. It stays.
    #[default]
    Partial,
    /// The same first; the rest follows in the background.
    Progressive,
    /// All of it before the read is answered.
    Full,
    /// What is read is served from memory; nothing stays.
    PassThrough,
}

impl RecallPolicy {
    pub const ALL: [Self; 4] = [Self::Partial, Self::Progressive, Self::Full, Self::PassThrough];

    /// The word in configuration and in `user.tierfs.recall_policy`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Partial => "partial",
            Self::Progressive => "progressive",
            Self::Full => "full",
            Self::PassThrough => "pass-through",
        }
    }
}

impl std::str::FromStr for RecallPolicy {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|policy| policy.as_str() == word).ok_or_else(|| {
            format!("{word:?} is no way to recall; there are {}", Self::ALL.map(Self::as_str).join(", "))
        })
    }
}

/// The full key of a remote object, prefix included, without the bucket. 1 to 1,024 bytes of UTF-8 (S3's limit).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectKey(pub String);

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Chunks have a power of two of bytes in this range.
pub const CHUNK_SIZE_MIN: u32 = 64 << 10;
pub const CHUNK_SIZE_MAX: u32 = 64 << 20;
/// Chunks of one content at most: 64 TiB in chunks of 4 MiB, with 512 MiB of hashes.
pub const CHUNKS_MAX: u64 = 1 << 24;

/// What content is cut into where nobody has said otherwise: as small as keeps the manifest at [`CHUNKS_WANTED`] hashes (2 MiB), within these bounds.
const CUT_MIN: u32 = 1 << 20;
const CUT_MAX: u32 = 8 << 20;
const CHUNKS_WANTED: u64 = 1 << 16;

/// The size of the chunks of a content of `len` bytes, where nobody has said otherwise: whoever reads a little of a file waits for one chunk.
pub fn usual_chunk_size(len: u64) -> u32 {
    let mut size = CUT_MIN;
    while size < CUT_MAX && len.div_ceil(u64::from(size)) > CHUNKS_WANTED {
        size *= 2;
    }
    size
}

/// Whether content can be cut into chunks of so many bytes.
pub fn is_chunk_size(bytes: u32) -> bool {
    bytes.is_power_of_two() && (CHUNK_SIZE_MIN..=CHUNK_SIZE_MAX).contains(&bytes)
}

/// A run of bytes of a file or an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ByteRange {
    pub offset: u64,
    pub len: u64,
}

impl ByteRange {
    /// Which bytes chunk `index` of content of `len` bytes covers, in chunks of `chunk_size` bytes. `None` beyond the last.
    pub fn of_chunk(index: u64, chunk_size: u32, len: u64) -> Option<Self> {
        let size = u64::from(chunk_size);
        let offset = index.checked_mul(size).filter(|offset| *offset < len)?;
        Some(Self { offset, len: size.min(len - offset) })
    }

    /// One past the last byte.
    pub fn end(&self) -> u64 {
        self.offset + self.len
    }
}

/// A BLAKE3 hash: of a chunk, or the root over all chunks of a file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ContentHash(pub [u8; 32]);

impl ContentHash {
    /// Hash of `data`.
    pub fn of(data: &[u8]) -> Self {
        Self(*blake3::hash(data).as_bytes())
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentHash({self})")
    }
}

/// A point in time as the kernel keeps it: seconds since 1970 (may be negative) and nanoseconds 0..1e9 after them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp {
    pub secs: i64,
    pub nanos: u32,
}

impl Timestamp {
    /// Nanoseconds from `earlier` to `self`; negative when `self` is the earlier one.
    pub fn nanos_since(&self, earlier: Timestamp) -> i128 {
        (i128::from(self.secs) - i128::from(earlier.secs)) * 1_000_000_000 + i128::from(self.nanos)
            - i128::from(earlier.nanos)
    }
}

/// Why a name is not acceptable as a [`PairName`] or [`ClusterId`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{name:?} is not a valid {what}: use 1 to 64 letters, digits, '-', '_' or '.', not starting with '.' or '-'")]
pub struct BadName {
    pub what: &'static str,
    pub name: String,
}

fn checked_name(what: &'static str, name: &str) -> Result<String, BadName> {
    let fits = (1..=64).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if fits { Ok(name.to_owned()) } else { Err(BadName { what, name: name.to_owned() }) }
}

macro_rules! checked_name_type {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl std::str::FromStr for $type {
            type Err = BadName;
            fn from_str(name: &str) -> Result<Self, BadName> {
                checked_name($what, name).map(Self)
            }
        }
        impl TryFrom<String> for $type {
            type Error = BadName;
            fn try_from(name: String) -> Result<Self, BadName> {
                name.parse()
            }
        }
        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

checked_name_type!(
    /// Name of a gpair: 1 to 64 of `[A-Za-z0-9._-]`; it is also the stem of the pair's configuration file.
    PairName,
    "pair name"
);
checked_name_type!(
    /// Name of a cluster: the same alphabet as a pair name.
    ClusterId,
    "cluster id"
);

/// Directory in the share's root in which the S3 gateway keeps what is not whole yet. Neither the mount nor S3 shows it, and no walk
/// enters it.
pub const STAGING_NAME: &str = ".tierfs-gateway";

/// Name of the virtual xattr on the mount's root that tells root where the control socket is.
pub const SOCKET_XATTR: &str = "user.tierfs.socket";

/// Name of the virtual xattr on the mount's root that tells which recalls run, one a line.
pub const RECALLS_XATTR: &str = "user.tierfs.recalls";

/// The state of one file as people see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileState {
    Resident,
    Dual,
    Releasing,
    Stub,
    /// A stub of which some chunks are local.
    Partial,
    /// A stub that was written to: some of its content is newer than its object.
    Patched,
    /// The record cannot be read, or contradicts the file: reads answer EIO until an administrator decides.
    Damaged,
}

impl From<Claim> for FileState {
    fn from(claim: Claim) -> Self {
        match claim {
            Claim::Resident => Self::Resident,
            Claim::Dual => Self::Dual,
            Claim::Releasing => Self::Releasing,
            Claim::Stub => Self::Stub,
            Claim::Partial => Self::Partial,
            Claim::Patched => Self::Patched,
        }
    }
}

impl FileState {
    pub const ALL: [Self; 6] = [Self::Resident, Self::Dual, Self::Releasing, Self::Stub, Self::Partial, Self::Damaged];

    /// The word in output and in `user.tierfs.state`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Resident => "resident",
            Self::Dual => "dual",
            Self::Releasing => "releasing",
            Self::Stub => "stub",
            Self::Partial => "partial",
            Self::Patched => "patched",
            Self::Damaged => "damaged",
        }
    }
}

impl fmt::Display for FileState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Files and bytes in one state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateTotal {
    pub files: u64,
    /// Sum of sizes in bytes.
    pub bytes: u64,
    /// Sum of local allocation in bytes.
    pub local: u64,
}

/// A path relative to the mount's root, as commands and the daemon tell each other. Text where it is UTF-8, bytes where it isn't, so that nothing
/// is lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum WirePath {
    Text(String),
    Bytes { bytes: Vec<u8> },
}

impl WirePath {
    /// The wire form of `path`. The mount's root is the empty text.
    pub fn from_path(path: &Path) -> Self {
        match path.to_str() {
            Some(text) => Self::Text(text.to_owned()),
            None => Self::Bytes { bytes: path.as_os_str().as_bytes().to_vec() },
        }
    }

    /// The path meant, exactly.
    pub fn to_path(&self) -> PathBuf {
        match self {
            Self::Text(text) => PathBuf::from(text),
            Self::Bytes { bytes } => PathBuf::from(OsStr::from_bytes(bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_survives_the_wire() {
        for bytes in [&b"a/b"[..], b"", b"\xff\xfe/x", "ü".as_bytes(), b"new\nline \"quoted\""] {
            let path = Path::new(OsStr::from_bytes(bytes));
            let wire = serde_json::to_string(&WirePath::from_path(path)).unwrap();
            assert!(!wire.contains('\n'));
            let back: WirePath = serde_json::from_str(&wire).unwrap();
            assert_eq!(back.to_path(), path);
        }
    }
}
