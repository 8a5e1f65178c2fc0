//! Paths to and from their form on the socket. Nothing is lost: a path that is not UTF-8 travels as bytes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::protocol::WirePath;

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
