//! What S3 knows of a file beyond the file itself, in an attribute that the mount hides: ETag, checksum, headers, tags.
//!
//! Invariant: an ETag or checksum is believed only while size and mtime are those of the content it was computed from. The generation says
//! nothing here: archiving numbers the copy anew, and the content is the same.

use serde::{Deserialize, Serialize};

use crate::gateway::store::{Attributes, Checksum, ObjectInfo, Seal, StoreError, StoreResult, UploadId};
use crate::lower::Share;
use crate::ports::{Attr, FileKind, Lower, LowerError, if_set};
use crate::types::{Inode, Timestamp};

/// The attribute's name without its space, see [`Share::hidden_xattr`].
const META: &str = "s3";
/// Marks a directory that was made because a key below it was wanted: it goes with the last of them.
const IMPLIED: &str = "s3-implied";
const VERSION: u8 = 1;
/// MD5 of nothing.
const EMPTY_ETAG: &str = "d41d8cd98f00b204e9800998ecf8427e";
const DIRECTORY_TYPE: &str = "application/x-directory";

/// The content that sums were computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    size: u64,
    mtime: Timestamp,
}

impl Stamp {
    fn of(attr: &Attr) -> Self {
        Self { size: attr.size, mtime: attr.mtime }
    }
}

/// Sums over content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sums {
    of: Stamp,
    etag: String,
    checksum: Option<Checksum>,
    /// Runs of parts of the same size: bytes, how many.
    parts: Vec<(u64, u32)>,
    upload: Option<UploadId>,
}

/// What is stored. The order of the fields is the format.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    sums: Option<Sums>,
    attributes: Attributes,
    tags: Vec<(String, String)>,
}

impl Meta {
    /// Of a new object: `attr` is the file with all its content.
    pub fn new(seal: &Seal, part_sizes: &[u64], upload: Option<UploadId>, attr: &Attr) -> Self {
        let mut parts: Vec<(u64, u32)> = Vec::new();
        for size in part_sizes {
            match parts.last_mut() {
                Some((last, count)) if last == size => *count += 1,
                _ => parts.push((*size, 1)),
            }
        }
        let (etag, checksum) = (seal.etag.clone(), seal.checksum.clone());
        let sums = Sums { of: Stamp::of(attr), etag, checksum, parts, upload };
        Self { sums: Some(sums), attributes: seal.attributes.clone(), tags: seal.tags.clone() }
    }

    /// The same with other tags.
    pub fn with_tags(self, tags: Vec<(String, String)>) -> Self {
        Self { tags, ..self }
    }

    /// What is kept with an inode. What cannot be read is as if it were not there: the content does not depend on it.
    pub fn load(share: &Share, node: &Inode) -> Self {
        let stored = match if_set(share.xattr(node, &share.hidden_xattr(META))) {
            Ok(Some(stored)) => stored,
            _ => return Self::default(),
        };
        let decoded = match stored.split_first() {
            Some((&VERSION, body)) => postcard::from_bytes(body).ok(),
            _ => None,
        };
        decoded.unwrap_or_else(|| {
            tracing::warn!(file = %node.id, "what S3 knew of it cannot be read: ETag, metadata and tags are gone");
            Self::default()
        })
    }

    pub fn save(&self, share: &Share, node: &Inode) -> StoreResult<()> {
        let cannot = |reason: &dyn std::fmt::Display| StoreError::Failed(format!("the metadata: {reason}"));
        let body = postcard::to_stdvec(self).map_err(|error| cannot(&error))?;
        let value = [&[VERSION][..], &body].concat();
        share.set_xattr(node, &share.hidden_xattr(META), &value, 0).map_err(|error| match error.errno() {
            libc::ENOSPC | libc::E2BIG | libc::ERANGE if value.len() > 1_000 => StoreError::MetadataTooLong,
            libc::ENOSPC | libc::EDQUOT => StoreError::Full("the metadata".into()),
            _ => cannot(&error),
        })
    }

    /// The object as a client sees it. `told`: whether who asks may read it.
    pub fn info(self, key: String, node: &Inode, attr: &Attr, told: bool) -> ObjectInfo {
        let Self { sums, attributes, tags } = if told { self } else { Self::default() };
        let sums = sums.filter(|sums| sums.of == Stamp::of(attr));
        let (etag, checksum, parts, upload) = match sums {
            Some(sums) => (sums.etag, sums.checksum, sums.parts, sums.upload),
            None => (derived_etag(node, attr), None, Vec::new(), None),
        };
        let part_sizes =
            parts.into_iter().flat_map(|(size, count)| std::iter::repeat_n(size, count as usize)).collect();
        let (size, modified) = (attr.size, attr.mtime);
        ObjectInfo { key, size, etag, modified, attributes, tags, checksum, part_sizes, upload }
    }

    /// A directory as an object without content.
    pub fn directory(mut self, key: String, attr: &Attr) -> ObjectInfo {
        self.attributes.content_type.get_or_insert_with(|| DIRECTORY_TYPE.into());
        ObjectInfo {
            key,
            size: 0,
            etag: EMPTY_ETAG.into(),
            modified: attr.mtime,
            attributes: self.attributes,
            tags: self.tags,
            checksum: None,
            part_sizes: Vec::new(),
            upload: None,
        }
    }
}

/// An ETag for content that nobody has hashed. Not in the form of an MD5, so that no client takes it for one.
fn derived_etag(node: &Inode, attr: &Attr) -> String {
    let mut hash = blake3::Hasher::new();
    for number in [node.id.ino, node.id.birth, attr.size, attr.mtime.secs as u64, attr.mtime.nanos.into()] {
        hash.update(&number.to_le_bytes());
    }
    format!("{}-1", &hash.finalize().to_hex()[..32])
}

/// The object that an inode is; `key` ends with a slash for directories.
pub fn info_of(share: &Share, key: &str, node: &Inode, attr: &Attr, told: bool) -> ObjectInfo {
    let meta = if told { Meta::load(share, node) } else { Meta::default() };
    match attr.kind {
        FileKind::Directory => meta.directory(key.to_owned(), attr),
        _ => meta.info(key.to_owned(), node, attr, told),
    }
}

/// Notes that a directory was not asked for by itself.
pub fn set_implied(share: &Share, dir: &Inode) -> Result<(), LowerError> {
    share.set_xattr(dir, &share.hidden_xattr(IMPLIED), b"1", 0)
}

/// Somebody asked for it by itself: it stays when it is empty.
pub fn unset_implied(share: &Share, dir: &Inode) -> Result<(), LowerError> {
    match share.remove_xattr(dir, &share.hidden_xattr(IMPLIED)) {
        Err(error) if error.errno() == libc::ENODATA => Ok(()),
        removed => removed,
    }
}

pub fn is_implied(share: &Share, dir: &Inode) -> bool {
    matches!(if_set(share.xattr(dir, &share.hidden_xattr(IMPLIED))), Ok(Some(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::store::Algorithm;

    #[test]
    fn runs_of_parts_come_back() {
        let seal = Seal {
            etag: "e-4".into(),
            checksum: Some(Checksum { algorithm: Algorithm::Crc32, value: "AAAAAA==".into(), composite: false }),
            tags: vec![("k".into(), "v".into())],
            ..Seal::default()
        };
        let mut attr = attr();
        let sizes = [5, 5, 5, 2];
        let meta = Meta::new(&seal, &sizes, None, &attr);
        let stored = postcard::to_stdvec(&meta).unwrap();
        let meta: Meta = postcard::from_bytes(&stored).unwrap();
        let node = Inode {
            id: crate::types::FileId { ino: 1, birth: 2 },
            handle: crate::types::RawHandle::new(1, &[]).unwrap(),
        };
        let info = meta.clone().info("k".into(), &node, &attr, true);
        assert_eq!((info.part_sizes.as_slice(), info.etag.as_str()), (&sizes[..], "e-4"));
        assert!(info.checksum.is_some());
        // Changed through the mount: headers and tags stay, sums do not.
        attr.mtime.nanos += 1;
        let changed = meta.clone().info("k".into(), &node, &attr, true);
        assert_eq!((changed.checksum, changed.part_sizes.len(), changed.tags.len()), (None, 0, 1));
        assert!(changed.etag != "e-4" && changed.etag.contains('-'));
        // Who may not read it learns no sum.
        attr.mtime.nanos -= 1;
        let hidden = meta.info("k".into(), &node, &attr, false);
        assert!(hidden.etag != "e-4" && hidden.checksum.is_none() && hidden.tags.is_empty());
    }

    fn attr() -> Attr {
        let time = Timestamp { secs: 5, nanos: 6 };
        Attr {
            ino: 1,
            kind: FileKind::Regular,
            mode: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 17,
            blocks: 8,
            block_size: 4096,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            sealed: false,
            fleeting: false,
        }
    }
}
