//! Where the bare-directory store keeps things. No I/O here.
//!
//! ```text
//! DIR/.tierfs/lock                         held while a server runs; the format's version inside
//! DIR/.tierfs/staging/                     uploads not yet published; emptied at start
//! DIR/.tierfs/trash/                       taken out of service, being deleted; emptied at start
//! DIR/<bucket>/objects/<xx>/<hash>.<version>        one file per object
//! DIR/<bucket>/objects/<xx>/<hash>.<version>.meta   its record, if too long for an xattr
//! DIR/<bucket>/uploads/<id>/info           record of an upload that is still open
//! DIR/<bucket>/uploads/<id>/<number>.<version>      parts
//! ```
//!
//! A key never becomes a path: `hash` is 128 bits of BLAKE3 over the key, `xx` its first byte, so that every key S3 allows
//! works (`p` beside `p/q`, `..`, 1,024 bytes, control characters). `version` rises with every write, so a name is never
//! reused and a file never overwritten; of two versions of one hash the higher one is the object.

use std::path::{Path, PathBuf};

use super::super::store::UploadId;

/// Names below one directory.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

/// Name of an object's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeadName {
    pub hash: u128,
    pub version: u64,
}

impl HeadName {
    pub fn new(key: &str, version: u64) -> Self {
        let mut half = [0; 16];
        half.copy_from_slice(&blake3::hash(key.as_bytes()).as_bytes()[..16]);
        Self { hash: u128::from_be_bytes(half), version }
    }

    /// First byte of the hash: which of the 256 directories.
    pub fn fan(&self) -> u8 {
        (self.hash >> 120) as u8
    }

    pub fn parse(name: &str) -> Option<Self> {
        let (hash, version) = name.split_once('.')?;
        if hash.len() != 32 || version.len() != 16 {
            return None;
        }
        Some(Self { hash: u128::from_str_radix(hash, 16).ok()?, version: u64::from_str_radix(version, 16).ok()? })
    }
}

impl std::fmt::Display for HeadName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}.{:016x}", self.hash, self.version)
    }
}

/// Name of a part's file in its upload's directory.
pub fn part_name(number: u16, version: u64) -> String {
    format!("{number:05}.{version:016x}")
}

/// Number and version in a part's name.
pub fn parse_part_name(name: &str) -> Option<(u16, u64)> {
    let (number, version) = name.split_once('.')?;
    if number.len() != 5 || version.len() != 16 {
        return None;
    }
    Some((number.parse().ok()?, u64::from_str_radix(version, 16).ok()?))
}

impl Layout {
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }
    pub fn root(&self) -> &Path {
        &self.root
    }
    pub fn state(&self) -> PathBuf {
        self.root.join(".tierfs")
    }
    pub fn lock(&self) -> PathBuf {
        self.root.join(".tierfs/lock")
    }
    pub fn staging(&self) -> PathBuf {
        self.root.join(".tierfs/staging")
    }
    pub fn trash(&self) -> PathBuf {
        self.root.join(".tierfs/trash")
    }
    pub fn bucket(&self, bucket: &str) -> PathBuf {
        self.root.join(bucket)
    }
    pub fn objects(&self, bucket: &str) -> PathBuf {
        self.root.join(bucket).join("objects")
    }
    pub fn fan(&self, bucket: &str, fan: u8) -> PathBuf {
        self.objects(bucket).join(format!("{fan:02x}"))
    }
    pub fn head(&self, bucket: &str, name: &HeadName) -> PathBuf {
        self.root.join(format!("{bucket}/objects/{:02x}/{name}", name.fan()))
    }
    pub fn uploads(&self, bucket: &str) -> PathBuf {
        self.root.join(bucket).join("uploads")
    }
    pub fn upload(&self, bucket: &str, id: &UploadId) -> PathBuf {
        self.uploads(bucket).join(&id.0)
    }
    pub fn upload_info(&self, bucket: &str, id: &UploadId) -> PathBuf {
        self.upload(bucket, id).join("info")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for key in ["", "a", "a/b", "../x", "é"] {
            let name = HeadName::new(key, 0xfeed);
            assert_eq!(HeadName::parse(&name.to_string()), Some(name));
            assert!(name.to_string().starts_with(&format!("{:02x}", name.fan())));
        }
        assert_eq!(HeadName::parse("zz.00"), None);
        assert_eq!(HeadName::parse(&format!("{}.meta", HeadName::new("a", 1))), None);
        assert_eq!(parse_part_name(&part_name(10_000, 9)), Some((10_000, 9)));
        assert_eq!(parse_part_name("info"), None);
    }
}
