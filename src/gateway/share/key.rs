//! Keys and paths: which keys name something in a share.

use std::ffi::OsStr;
use std::path::Path;

use crate::gateway::store::{StoreError, StoreResult};
use crate::types::STAGING_NAME;

/// S3's limit.
const KEY_BYTES_MAX: usize = 1_024;

/// A key that is a path below the share's root: names between single slashes. With a slash at its end it is a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    text: String,
    /// Where the last name begins.
    name_at: usize,
    pub is_dir: bool,
}

impl Key {
    /// Refuses what no path says, or what would lead elsewhere: `..`, empty names, NUL, the gateway's own directory.
    pub fn parse(text: &str) -> StoreResult<Self> {
        let bad = |why| Err(StoreError::BadKey { key: text.to_owned(), why });
        if text.len() > KEY_BYTES_MAX {
            return Err(StoreError::KeyTooLong);
        }
        let path = text.strip_suffix('/').unwrap_or(text);
        if text.contains('\0') {
            return bad("a name cannot hold NUL");
        }
        if path.split('/').any(str::is_empty) {
            return bad("it has an empty name: write names between single slashes, without one at the start");
        }
        if path.split('/').any(|name| name == "." || name == "..") {
            return bad("`.` and `..` are no names");
        }
        if path.split('/').next() == Some(STAGING_NAME) {
            return bad("that name is kept for the gateway");
        }
        let name_at = path.rfind('/').map_or(0, |at| at + 1);
        Ok(Self { text: text.to_owned(), name_at, is_dir: text.ends_with('/') })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The directory that it is in, relative to the share; empty for the root.
    pub fn dir(&self) -> &Path {
        Path::new(self.text[..self.name_at].trim_end_matches('/'))
    }

    /// The last name.
    pub fn name(&self) -> &OsStr {
        OsStr::new(self.text[self.name_at..].trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_paths() {
        let parts = |text: &str| {
            let key = Key::parse(text).unwrap();
            (key.dir().to_str().unwrap().to_owned(), key.name().to_str().unwrap().to_owned(), key.is_dir)
        };
        let part = |dir: &str, name: &str, is_dir| (dir.to_owned(), name.to_owned(), is_dir);
        assert_eq!(parts("a"), part("", "a", false));
        assert_eq!(parts("a/b/c.txt"), part("a/b", "c.txt", false));
        assert_eq!(parts("a/b/"), part("a", "b", true));
        assert_eq!(parts("a/"), part("", "a", true));
        assert_eq!(parts("x/.tierfs-gateway"), part("x", ".tierfs-gateway", false));
        assert_eq!(parts("..."), part("", "...", false));
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for key in [
            "",
            "/",
            "/a",
            "a//b",
            "a//",
            "//",
            ".",
            "..",
            "../a",
            "a/../b",
            "a/..",
            "a/./b",
            "a\0b",
            "./",
            ".tierfs-gateway",
            ".tierfs-gateway/u0/x",
            ".tierfs-gateway/",
        ] {
            assert!(matches!(Key::parse(key), Err(StoreError::BadKey { .. })), "{key:?}");
        }
        assert!(matches!(Key::parse(&"x".repeat(1_025)), Err(StoreError::KeyTooLong)));
    }
}
