//! Codec of what the bare-directory store keeps beside the bytes: one record for each object, part and open upload.
//!
//! Format: three bytes of magic that name the kind, one byte of version, the fields in postcard encoding, CRC-32 (little
//! endian) of all before it. A record that does not decode is an error of its own; it is never taken for "no record".
//! An object's and a part's record live in the xattr [`XATTR`] of their file; one longer than [`INLINE_BYTES_MAX`] lives
//! in a sidecar file (`.meta`) beside it, and the xattr then holds [`SIDECAR_MARK`].

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::XattrFlags;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::store::{NewUpload, ObjectInfo, PartInfo};
use crate::types::Timestamp;

/// Where a file's record is kept.
pub const XATTR: &str = "user.tierfs.object";
/// Longest record kept in the xattr, bytes: ext4 gives all xattrs of an inode one 4 KiB block.
pub const INLINE_BYTES_MAX: usize = 3_000;
const SIDECAR_MARK: &[u8] = b"TGS\x01";
/// A sidecar longer than this is corrupt: 10,000 parts with all their fields take less.
const RECORD_BYTES_MAX: u64 = 16 << 20;

/// A stored value and the magic that names it.
pub trait Record: Clone + Serialize + DeserializeOwned {
    const MAGIC: [u8; 4];
    /// Where the storage class goes that the record's fields leave out; none where there is no such thing.
    fn class(&mut self) -> Option<&mut Option<String>> {
        None
    }
}

/// One extent of an object completed from parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRef {
    pub number: u16,
    pub version: u64,
    pub size: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRecord {
    pub info: ObjectInfo,
    /// Empty: the bytes are in the file itself. Otherwise they are in the upload's part files, in this order.
    pub parts: Vec<PartRef>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadRecord {
    pub new: NewUpload,
    pub initiated: Timestamp,
}

impl Record for ObjectRecord {
    const MAGIC: [u8; 4] = *b"TGO\x01";
    fn class(&mut self) -> Option<&mut Option<String>> {
        Some(&mut self.info.attributes.class)
    }
}
impl Record for PartInfo {
    const MAGIC: [u8; 4] = *b"TGP\x01";
}
impl Record for UploadRecord {
    const MAGIC: [u8; 4] = *b"TGU\x01";
    fn class(&mut self) -> Option<&mut Option<String>> {
        Some(&mut self.new.attributes.class)
    }
}

/// The magic of a record in a storage class of its own: the class follows the fields. Others are written as they always were.
const fn classed(magic: [u8; 4]) -> [u8; 4] {
    [magic[0], magic[1], magic[2], 2]
}

/// The stored bytes of `record`.
pub fn encode<R: Record>(record: &R) -> io::Result<Vec<u8>> {
    let class = record.clone().class().and_then(|class| class.take());
    let encoded = match class {
        None => postcard::to_extend(record, R::MAGIC.to_vec()),
        Some(class) => postcard::to_extend(&(record, class), classed(R::MAGIC).to_vec()),
    };
    let mut bytes = encoded.map_err(io::Error::other)?;
    let sum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    Ok(bytes)
}

/// The record in `bytes`; `InvalidData` says what is wrong with them.
pub fn decode<R: Record>(bytes: &[u8]) -> io::Result<R> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("record: {what}"));
    let body_len = bytes.len().checked_sub(4).ok_or_else(|| bad("too short"))?;
    let (body, sum) = bytes.split_at(body_len);
    let plain = body.strip_prefix(&R::MAGIC);
    let fields =
        plain.or_else(|| body.strip_prefix(&classed(R::MAGIC))).ok_or_else(|| bad("unknown kind or version"))?;
    if crc32fast::hash(body).to_le_bytes() != sum {
        return Err(bad("checksum mismatch"));
    }
    let unreadable = |e: postcard::Error| bad(&e.to_string());
    if plain.is_some() {
        return postcard::from_bytes(fields).map_err(unreadable);
    }
    let (mut record, class): (R, String) = postcard::from_bytes(fields).map_err(unreadable)?;
    *record.class().ok_or_else(|| bad("of a kind that has no storage class"))? = Some(class);
    Ok(record)
}

/// Path of the sidecar of `file`.
pub fn sidecar_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".meta");
    name.into()
}

/// Gives the not yet published file at `path` its record; true if that took a sidecar (which is synced here).
pub fn write_new<R: Record>(file: impl AsFd, path: &Path, record: &R) -> io::Result<bool> {
    let bytes = encode(record)?;
    if bytes.len() <= INLINE_BYTES_MAX {
        rustix::fs::fsetxattr(file, XATTR, &bytes, XattrFlags::empty())?;
        return Ok(false);
    }
    write_synced(&sidecar_of(path), &bytes)?;
    rustix::fs::fsetxattr(file, XATTR, SIDECAR_MARK, XattrFlags::empty())?;
    Ok(true)
}

/// Replaces the record of a published file, durably and at one stroke: a crash leaves the old or the new one.
pub fn replace<R: Record>(path: &Path, staging: &Path, record: &R) -> io::Result<()> {
    let bytes = encode(record)?;
    let file = File::open(path)?;
    let sidecar = sidecar_of(path);
    if bytes.len() <= INLINE_BYTES_MAX {
        // One setxattr is one journal transaction; a sidecar that is no longer named goes afterwards.
        rustix::fs::fsetxattr(&file, XATTR, &bytes, XattrFlags::empty())?;
        file.sync_all()?;
        return match fs::remove_file(&sidecar) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        };
    }
    // The new sidecar is whole and named before the mark can point at it.
    write_synced(staging, &bytes)?;
    fs::rename(staging, &sidecar)?;
    if let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    rustix::fs::fsetxattr(&file, XATTR, SIDECAR_MARK, XattrFlags::empty())?;
    file.sync_all()
}

/// The record of the file at `path`.
pub fn read<R: Record>(path: &Path) -> io::Result<R> {
    let mut buf = [0; INLINE_BYTES_MAX + 1];
    let len = rustix::fs::lgetxattr(path, XATTR, &mut buf)?;
    let bytes = &buf[..len];
    if bytes != SIDECAR_MARK {
        return decode(bytes);
    }
    let sidecar = sidecar_of(path);
    if fs::metadata(&sidecar)?.len() > RECORD_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "record: sidecar too long"));
    }
    decode(&fs::read(&sidecar)?)
}

/// Writes a new file with `bytes` and syncs it (not its directory).
pub fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::store::{Algorithm, Attributes, Checksum, UploadId};

    fn sample() -> ObjectRecord {
        ObjectRecord {
            info: ObjectInfo {
                key: "a/b".into(),
                size: 300,
                etag: "0f-1".into(),
                modified: Timestamp { secs: 1, nanos: 2 },
                attributes: Attributes {
                    content_type: Some("text/plain".into()),
                    user: vec![("k".into(), "v".into())],
                    ..Attributes::default()
                },
                tags: vec![("t".into(), "u".into())],
                checksum: Some(Checksum { algorithm: Algorithm::Crc32c, value: "AAAAAA==".into(), composite: false }),
                part_sizes: vec![200, 100],
                upload: Some(UploadId("up".into())),
            },
            parts: vec![PartRef { number: 1, version: 7, size: 200 }, PartRef { number: 2, version: 8, size: 100 }],
        }
    }

    /// The bytes of version 1, written once: a change of field order or type must fail here and take a new version.
    #[test]
    fn golden_v1() {
        let object = sample();
        let part = PartInfo {
            number: 10_000,
            size: 5 << 20,
            etag: "0f-1".into(),
            modified: Timestamp { secs: -1, nanos: 999_999_999 },
            checksum: object.info.checksum.clone(),
            version: 1 << 50,
        };
        let new = NewUpload {
            key: object.info.key.clone(),
            attributes: object.info.attributes.clone(),
            tags: object.info.tags.clone(),
            checksum: Some((Algorithm::Sha256, true)),
        };
        let upload = UploadRecord { new, initiated: Timestamp { secs: 5, nanos: 0 } };
        let hex = |bytes: Vec<u8>| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let written = [encode(&object).unwrap(), encode(&part).unwrap(), encode(&upload).unwrap()].map(hex).join("\n");
        assert_eq!(written, include_str!("golden/records_v1.hex").trim());
    }

    /// A record with a storage class: the old fields, then the class.
    #[test]
    fn golden_with_a_class() {
        let mut object = sample();
        let plain = encode(&object).unwrap();
        object.info.attributes.class = Some("GLACIER".into());
        let bytes = encode(&object).unwrap();
        assert_eq!(bytes[..4], *b"TGO\x02");
        assert_eq!(bytes[4..bytes.len() - 4], [&plain[4..plain.len() - 4], b"\x07GLACIER"].concat());
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        every_flip(sample());
        let mut classed = sample();
        classed.info.attributes.class = Some("GLACIER".into());
        every_flip(classed);
    }

    fn every_flip(record: ObjectRecord) {
        let good = encode(&record).unwrap();
        assert_eq!(decode::<ObjectRecord>(&good).unwrap(), record);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode::<ObjectRecord>(&bad).is_err(), "bit {bit}");
        }
        for len in 0..good.len() {
            assert!(decode::<ObjectRecord>(&good[..len]).is_err(), "cut to {len}");
        }
        assert!(decode::<PartInfo>(&good).is_err(), "another kind");
    }

    #[test]
    fn records_of_any_size_are_stored_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("object");
        let file = File::create(&path).unwrap();
        let mut record = sample();
        assert!(!write_new(&file, &path, &record).unwrap());
        assert_eq!(read::<ObjectRecord>(&path).unwrap(), record);
        for value_len in [10, INLINE_BYTES_MAX, 60_000, 50_000, 20] {
            record.info.tags[0].1 = "x".repeat(value_len);
            replace(&path, &dir.path().join("staged"), &record).unwrap();
            assert_eq!(read::<ObjectRecord>(&path).unwrap(), record);
            assert_eq!(sidecar_of(&path).exists(), value_len >= INLINE_BYTES_MAX, "{value_len}");
        }
    }
}
