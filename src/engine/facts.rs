//! What an object tells of itself: the user metadata that [`super::keys`] wrote, and its manifest.
//!
//! Invariant: an [`ObjectRef`] made here is complete. An object of several chunks without its manifest was never finished, and is
//! refused: a manifest is stored last, when the copy is known to be of one state of the file.

use std::path::PathBuf;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;

use crate::ports::{ObjectInfo, Remote, RemoteError};
use crate::record::{ObjectRef, PairRef, manifest_key};
use crate::remote::manifest::Manifest;
use crate::types::{
    ByteRange, CHUNKS_MAX, ContentHash, FileId, Generation, ObjectKey, Timestamp, is_chunk_size, parse_hex,
};

use super::keys::{XATTRS, unescape};

/// Why an object cannot be made a file's content.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FactsError {
    #[error("{0}")]
    Remote(RemoteError),
    #[error("it is no complete object of tierfs: {0}")]
    Incomplete(String),
}

/// What a HEAD tells of an object of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The inode that it was copied from.
    pub file: FileId,
    pub generation: Generation,
    /// Permission bits when it was copied.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    /// Bytes per chunk.
    pub chunk_size: u32,
    /// For objects of one chunk.
    pub root: Option<ContentHash>,
    /// Where the file was, relative to the share; `None` where the path was too long for the metadata.
    pub path: Option<PathBuf>,
    /// Extended attributes that travel, when it was copied; `None` where there was no room for them.
    pub xattrs: Option<Vec<(Vec<u8>, Vec<u8>)>>,
    pub len: u64,
    pub etag: String,
}

impl Facts {
    /// Reads the metadata of an object.
    pub fn of(info: &ObjectInfo) -> Result<Self, FactsError> {
        let text = |name: &str| {
            let found = info.metadata.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
            found.ok_or_else(|| FactsError::Incomplete(format!("its metadata has no {name}")))
        };
        let bad = |name: &str| FactsError::Incomplete(format!("its metadata {name} makes no sense"));
        let mtime = text("tierfs-mtime")?;
        let owner = text("tierfs-owner")?;
        let (uid, gid) = owner.split_once(':').ok_or_else(|| bad("tierfs-owner"))?;
        let root = match text("tierfs-root") {
            Ok(root) => Some(parse_hash(root).ok_or_else(|| bad("tierfs-root"))?),
            Err(_) => None,
        };
        let facts = Self {
            file: parse_file(text("tierfs-file")?).ok_or_else(|| bad("tierfs-file"))?,
            generation: parse_generation(text("tierfs-generation")?).ok_or_else(|| bad("tierfs-generation"))?,
            mode: u32::from_str_radix(text("tierfs-mode")?, 8).map_err(|_| bad("tierfs-mode"))? & 0o7777,
            uid: uid.parse().map_err(|_| bad("tierfs-owner"))?,
            gid: gid.parse().map_err(|_| bad("tierfs-owner"))?,
            mtime: parse_time(mtime).ok_or_else(|| bad("tierfs-mtime"))?,
            chunk_size: text("tierfs-chunk")?.parse().map_err(|_| bad("tierfs-chunk"))?,
            root,
            path: text("tierfs-path").ok().map(unescape),
            xattrs: match text(XATTRS) {
                Ok(encoded) => Some(parse_xattrs(encoded).ok_or_else(|| bad(XATTRS))?),
                Err(_) => None,
            },
            len: info.len,
            etag: info.etag.clone(),
        };
        // What a record would refuse.
        if facts.len == 0 || !is_chunk_size(facts.chunk_size) || facts.chunks() > CHUNKS_MAX {
            return Err(FactsError::Incomplete("its length cannot be cut into chunks of its size".into()));
        }
        Ok(facts)
    }

    fn chunks(&self) -> u64 {
        self.len.div_ceil(u64::from(self.chunk_size))
    }

    /// What a record says of the object, its manifest read where it has one.
    pub async fn object(self, remote: &dyn Remote, pair: PairRef, key: ObjectKey) -> Result<ObjectRef, FactsError> {
        let root = if self.len > u64::from(self.chunk_size) {
            self.root_in_manifest(remote, &key).await?
        } else {
            self.root.ok_or_else(|| FactsError::Incomplete("its metadata has no tierfs-root".into()))?
        };
        Ok(ObjectRef {
            pair,
            key,
            etag: self.etag,
            version: None,
            generation: self.generation,
            len: self.len,
            mtime: self.mtime,
            chunk_size: self.chunk_size,
            root,
        })
    }

    async fn root_in_manifest(&self, remote: &dyn Remote, key: &ObjectKey) -> Result<ContentHash, FactsError> {
        let key = manifest_key(key);
        let info = remote.head(&key).await.map_err(FactsError::Remote)?;
        if info.len == 0 || info.len > Manifest::encoded_len_max(self.chunks()) {
            return Err(FactsError::Incomplete(format!("its manifest has {} bytes", info.len)));
        }
        let body = remote.get(&key, ByteRange { offset: 0, len: info.len }, None).await.map_err(FactsError::Remote)?;
        let manifest = Manifest::decode(&body).map_err(|why| FactsError::Incomplete(why.to_string()))?;
        if manifest.len() != self.len || manifest.chunk_size() != self.chunk_size {
            return Err(FactsError::Incomplete("its manifest is of another content".into()));
        }
        Ok(manifest.root())
    }
}

fn parse_xattrs(text: &str) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    postcard::from_bytes(&BASE64_STANDARD_NO_PAD.decode(text).ok()?).ok()
}

/// The form of [`FileId`]'s `Display`.
pub(super) fn parse_file(text: &str) -> Option<FileId> {
    let (ino, birth) = text.split_once('-')?;
    Some(FileId { ino: parse_hex(ino)?, birth: parse_hex(birth)? })
}

/// The form of [`Generation`]'s `Display`.
pub(super) fn parse_generation(text: &str) -> Option<Generation> {
    parse_hex(text).map(Generation)
}

fn parse_time(text: &str) -> Option<Timestamp> {
    let (secs, nanos) = text.split_once('.')?;
    let nanos: u32 = nanos.parse().ok()?;
    (nanos < 1_000_000_000).then_some(Timestamp { secs: secs.parse().ok()?, nanos })
}

fn parse_hash(text: &str) -> Option<ContentHash> {
    let mut hash = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (n, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * n..2 * n + 2)?, 16).ok()?;
    }
    Some(ContentHash(hash))
}

#[cfg(test)]
mod tests {
    //! What is written with an object is read back; what is not ours is refused.

    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    use super::super::keys::object_metadata;
    use super::*;
    use crate::ports::{Attr, FileKind};

    fn attr() -> Attr {
        let zero = Timestamp::default();
        Attr {
            ino: 9,
            kind: FileKind::Regular,
            mode: 0o4751,
            nlink: 1,
            uid: 1000,
            gid: 65_534,
            rdev: 0,
            size: 77,
            blocks: 8,
            block_size: 4096,
            atime: zero,
            mtime: Timestamp { secs: -5, nanos: 7 },
            ctime: zero,
            btime: zero,
            sealed: false,
            fleeting: false,
        }
    }

    fn xattrs() -> Vec<(Vec<u8>, Vec<u8>)> {
        vec![(b"user.x".to_vec(), vec![0, 255]), (b"system.posix_acl_access".to_vec(), vec![1; 44])]
    }

    fn info(path: &[u8], root: Option<ContentHash>) -> ObjectInfo {
        let (file, generation) = (FileId { ino: 9, birth: 0xabc }, Generation(0x1234));
        let path = Path::new(OsStr::from_bytes(path));
        let metadata = object_metadata(path, file, generation, &attr(), &xattrs(), root, 65_536);
        ObjectInfo { len: 77, etag: "e".into(), metadata, restore: Default::default() }
    }

    #[test]
    fn metadata_reads_back() {
        for path in [&b"a/b c"[..], b"\xff\xfe/%41", "f\u{fc}\n".as_bytes()] {
            let root = ContentHash::of(b"x");
            let facts = Facts::of(&info(path, Some(root))).unwrap();
            assert_eq!(facts.path.as_deref(), Some(Path::new(OsStr::from_bytes(path))));
            assert_eq!((facts.file, facts.generation), (FileId { ino: 9, birth: 0xabc }, Generation(0x1234)));
            assert_eq!((facts.mode, facts.uid, facts.gid), (0o4751, 1000, 65_534));
            assert_eq!((facts.mtime, facts.root), (attr().mtime, Some(root)));
            assert_eq!(facts.xattrs, Some(xattrs()));
        }
    }

    #[test]
    fn what_lacks_or_makes_no_sense_is_refused() {
        let whole = info(b"a", None);
        for n in 0..whole.metadata.len() {
            let name = whole.metadata[n].0.clone();
            let mut broken = whole.clone();
            broken.metadata[n].1 = "?".into();
            assert_eq!(Facts::of(&broken).is_err(), name != "tierfs-path", "{name}");
            broken.metadata.remove(n);
            assert_eq!(Facts::of(&broken).is_err(), !["tierfs-path", XATTRS].contains(&name.as_str()), "{name}");
        }
        assert!(Facts::of(&ObjectInfo { len: 0, ..whole }).is_err());
    }
}
