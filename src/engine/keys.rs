//! Object keys and the metadata that travels with an object.
//!
//! Key: `<prefix>/<path>@<fileid>.<generation>`. The path is for people and for a rebuild from the bucket alone; file id and generation
//! make the key fresh. What is not printable UTF-8 is percent-encoded, `%` itself included, so the path can be read back.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, percent_encode};

use crate::ports::Attr;
use crate::types::{ContentHash, FileId, Generation, ObjectKey};

/// S3's limit for a key, in bytes; a manifest's suffix must fit as well.
const KEY_LEN_MAX: usize = 1024 - crate::record::MANIFEST_SUFFIX.len();
/// Longest path carried in the metadata as it is, in bytes (S3 allows 2 KiB of metadata in all).
const METADATA_PATH_MAX: usize = 1536;
/// In keys: control characters and the escape itself.
const KEY_ESCAPES: &AsciiSet = &CONTROLS.add(b'%');
/// In metadata values, which travel in HTTP headers.
const HEADER_ESCAPES: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'.').remove(b'-').remove(b'_');

/// The key for one generation of a file. `path` is relative to the share.
pub fn object_key(prefix: &str, path: &Path, file: FileId, generation: Generation) -> ObjectKey {
    let tail = format!("@{file}.{generation}");
    let slash = if prefix.is_empty() { "" } else { "/" };
    let room = KEY_LEN_MAX.saturating_sub(prefix.len() + slash.len() + tail.len());
    let mut name = escape_for_key(path.as_os_str().as_bytes());
    if name.len() > room {
        let hash = format!("~{}", &ContentHash::of(path.as_os_str().as_bytes()).to_string()[..32]);
        let mut cut = room.saturating_sub(hash.len());
        while !name.is_char_boundary(cut) {
            cut -= 1;
        }
        name.truncate(cut);
        name.push_str(&hash);
    }
    ObjectKey(format!("{prefix}{slash}{name}{tail}"))
}

/// Text stays text; bytes that are no UTF-8 become `%XX`.
fn escape_for_key(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            let mut buffer = [0; 4];
            let text = c.encode_utf8(&mut buffer);
            if c.is_control() || c == '%' {
                out.extend(text.bytes().map(|byte| format!("%{byte:02X}")));
            } else {
                out.push_str(text);
            }
        }
        out.extend(percent_encode(chunk.invalid(), KEY_ESCAPES));
    }
    out
}

/// User metadata of an object: what a rebuild from the bucket needs. All values are ASCII.
pub fn object_metadata(
    path: &Path,
    file: FileId,
    generation: Generation,
    attr: &Attr,
    root: Option<ContentHash>,
    chunk_size: u32,
) -> Vec<(String, String)> {
    let mut metadata = vec![
        ("tierfs-file".into(), file.to_string()),
        ("tierfs-generation".into(), generation.to_string()),
        ("tierfs-mode".into(), format!("{:o}", attr.mode)),
        ("tierfs-owner".into(), format!("{}:{}", attr.uid, attr.gid)),
        ("tierfs-mtime".into(), format!("{}.{:09}", attr.mtime.secs, attr.mtime.nanos)),
        ("tierfs-chunk".into(), chunk_size.to_string()),
    ];
    // Known beforehand only where the whole content was hashed before the request; else it is in the manifest.
    if let Some(root) = root {
        metadata.push(("tierfs-root".into(), root.to_string()));
    }
    let path = percent_encode(path.as_os_str().as_bytes(), HEADER_ESCAPES).to_string();
    if path.len() <= METADATA_PATH_MAX {
        metadata.push(("tierfs-path".into(), path));
    }
    metadata
}

#[cfg(test)]
mod tests {
    //! Keys are readable, fresh, bounded, and free of what S3 listings cannot carry.

    use std::ffi::OsStr;

    use super::*;

    fn key(prefix: &str, path: &[u8]) -> String {
        object_key(prefix, Path::new(OsStr::from_bytes(path)), FileId { ino: 0x1f, birth: 0xa }, Generation(0x64)).0
    }

    #[test]
    fn names_become_keys() {
        for (prefix, path, expected) in [
            ("", b"a/b.txt".as_slice(), "a/b.txt@1f-a.64"),
            ("p/q", b"a", "p/q/a@1f-a.64"),
            ("", "füß/日本".as_bytes(), "füß/日本@1f-a.64"),
            ("", b"100%", "100%25@1f-a.64"),
            ("", b"\xff\xfe.bin", "%FF%FE.bin@1f-a.64"),
            ("", b"new\nline\x7f", "new%0Aline%7F@1f-a.64"),
            ("", "\u{85}".as_bytes(), "%C2%85@1f-a.64"),
        ] {
            assert_eq!(key(prefix, path), expected);
        }
    }

    #[test]
    fn long_names_are_cut_by_a_hash_and_stay_distinct() {
        let long = |last: u8| [vec![b'x'; 3000], vec![last]].concat();
        let (a, b) = (key("prefix", &long(b'a')), key("prefix", &long(b'b')));
        assert_ne!(a, b);
        assert!(a.len() <= KEY_LEN_MAX && a.ends_with("@1f-a.64"), "{a}");
        // Cutting must not split a character.
        assert!(key("", "ü".repeat(2000).as_bytes()).len() <= KEY_LEN_MAX);
    }
}
