//! Object keys and the metadata that travels with an object.
//!
//! Key: `<prefix>/<path>@<fileid>.<generation>`. The path is for people and for a rebuild from the bucket alone; file id and generation
//! make the key fresh. What is not printable UTF-8 is percent-encoded, `%` itself included, so the path can be read back. What is told of a key
//! is told of a pack's member, too: its key has the same parts, and behind them its place (`record::member_parts`).

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

use super::facts::{parse_file, parse_generation};
use crate::ports::Attr;
use crate::record::{MEMBER_SUFFIX_MAX, member_parts};
use crate::types::{ContentHash, FileId, Generation, ObjectKey};

/// S3's limit for a key, in bytes; a manifest's suffix must fit as well.
const KEY_LEN_MAX: usize = 1024 - crate::record::MANIFEST_SUFFIX.len();
/// Longest path carried in the metadata as it is, in bytes (S3 allows 2 KiB of metadata in all).
const METADATA_PATH_MAX: usize = 1536;
/// Metadata in all, names and values, in bytes: S3 allows 2 KiB.
const METADATA_MAX: usize = 2000;
/// Extended attributes in the metadata.
pub(super) const XATTRS: &str = "tierfs-xattrs";
/// In keys: control characters and the escape itself.
const KEY_ESCAPES: &AsciiSet = &CONTROLS.add(b'%');
/// In metadata values, which travel in HTTP headers.
const HEADER_ESCAPES: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'.').remove(b'-').remove(b'_');

/// The key for one generation of a file. `path` is relative to the share.
pub fn object_key(prefix: &str, path: &Path, file: FileId, generation: Generation) -> ObjectKey {
    key_within(KEY_LEN_MAX, prefix, path, file, generation)
}

/// The same with room for the place of a pack's member.
pub(super) fn member_base(prefix: &str, path: &Path, file: FileId, generation: Generation) -> ObjectKey {
    key_within(KEY_LEN_MAX - MEMBER_SUFFIX_MAX, prefix, path, file, generation)
}

fn key_within(len_max: usize, prefix: &str, path: &Path, file: FileId, generation: Generation) -> ObjectKey {
    let tail = format!("@{file}.{generation}");
    let slash = if prefix.is_empty() { "" } else { "/" };
    let room = len_max.saturating_sub(prefix.len() + slash.len() + tail.len());
    let mut name = escape_for_key(path.as_os_str().as_bytes());
    if name.len() > room {
        let hash = path_hash(path);
        let mut cut = room.saturating_sub(hash.len());
        while !name.is_char_boundary(cut) {
            cut -= 1;
        }
        name.truncate(cut);
        name.push_str(&hash);
    }
    ObjectKey(format!("{prefix}{slash}{name}{tail}"))
}

/// What a key that was cut carries of its path.
fn path_hash(path: &Path) -> String {
    format!("~{}", &ContentHash::of(path.as_os_str().as_bytes()).to_string()[..32])
}

/// What a key says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyParts {
    /// The path as the key has it, escaped, perhaps cut.
    pub name: String,
    /// The inode that the object was copied from. After a rebuild, or once it was brought back by `undelete`, another one names it.
    pub file: FileId,
    pub generation: Generation,
}

impl KeyParts {
    /// The path relative to the share when the object was made; `None` where the key was cut.
    pub fn path(&self) -> Option<PathBuf> {
        let cut = self.name.len() >= 33
            && self.name.rsplit_once('~').is_some_and(|(_, hash)| hash.len() == 32 && is_hex(hash));
        (!cut).then(|| unescape(&self.name))
    }

    /// Whether this is the key of `path`.
    pub fn is_of(&self, path: &Path) -> bool {
        self.name == escape_for_key(path.as_os_str().as_bytes()) || self.name.ends_with(&path_hash(path))
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// A key without a member's place.
fn own_part(key: &ObjectKey) -> &str {
    member_parts(key).map_or(key.0.as_str(), |(own, _)| own)
}

/// Takes a key apart; `None` for what is no key of a file's content (a manifest, a tree, somebody else's object).
pub fn parse_key(prefix: &str, key: &ObjectKey) -> Option<KeyParts> {
    let name = match prefix {
        "" => own_part(key),
        prefix => own_part(key).strip_prefix(prefix)?.strip_prefix('/')?,
    };
    let (name, file, generation) = parse_own_end(name)?;
    (!name.is_empty()).then(|| KeyParts { name: name.to_owned(), file, generation })
}

/// What a key has before its last `@`, and whose content of when it names behind. One spelling only: what we never wrote is not ours.
pub(super) fn parse_end(key: &ObjectKey) -> Option<(&str, FileId, Generation)> {
    parse_own_end(own_part(key))
}

fn parse_own_end(key: &str) -> Option<(&str, FileId, Generation)> {
    let (name, end) = key.rsplit_once('@')?;
    let (file, generation) = end.split_once('.')?;
    Some((name, parse_file(file)?, parse_generation(generation)?))
}

/// How the keys of `path` begin, and with `below`, those of all that is in it, as far as keys that may be cut can tell. Who uses it
/// looks closer ([`KeyParts::is_of`]).
pub(super) fn key_beginning(prefix: &str, path: &Path, below: bool) -> String {
    let slash = if prefix.is_empty() { "" } else { "/" };
    let mut name = escape_for_key(path.as_os_str().as_bytes());
    if below && !name.is_empty() {
        name.push('/');
    }
    // What is behind `@` has at most 52 bytes, and the hash of a path 33; a member's place comes on top.
    let behind = 96 + MEMBER_SUFFIX_MAX;
    let mut cut = KEY_LEN_MAX.saturating_sub(prefix.len() + slash.len() + behind).min(name.len());
    while !name.is_char_boundary(cut) {
        cut -= 1;
    }
    if cut == name.len() && !below {
        name.push('@');
        cut += 1;
    }
    name.truncate(cut);
    format!("{prefix}{slash}{name}")
}

/// The bytes that an escaped path stands for.
pub(super) fn unescape(text: &str) -> PathBuf {
    PathBuf::from(OsString::from_vec(percent_decode_str(text).collect()))
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

/// User metadata of an object: what bringing it back needs beside the trees. All values are ASCII. `xattrs` are carried where there is
/// room for them.
pub fn object_metadata(
    path: &Path,
    file: FileId,
    generation: Generation,
    attr: &Attr,
    xattrs: &[(Vec<u8>, Vec<u8>)],
    root: Option<ContentHash>,
    chunk_size: u32,
) -> Vec<(String, String)> {
    let mut metadata: Vec<(String, String)> = vec![
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
    // An empty list says that there are none; none at all, that nobody knows.
    let xattrs = BASE64_STANDARD_NO_PAD.encode(postcard::to_stdvec(xattrs).unwrap_or_default());
    let used: usize = metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
    if used + XATTRS.len() + xattrs.len() <= METADATA_MAX {
        metadata.push((XATTRS.into(), xattrs));
    }
    metadata
}

#[cfg(test)]
mod tests {
    //! Keys are readable, fresh, bounded, and free of what S3 listings cannot carry.

    use std::ffi::OsStr;

    use super::*;
    use crate::record::PackName;
    use crate::types::ByteRange;

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

    #[test]
    fn keys_are_taken_apart_again() {
        let file = FileId { ino: 0x1f, birth: 0xa };
        for prefix in ["", "p/q"] {
            for path in [&b"a/b.txt"[..], b"\xff@1-2.3/%", "new\nline~".as_bytes(), &[b'x'; 3000]] {
                let path = Path::new(OsStr::from_bytes(path));
                let (share, tag) = ("0123456789abcdef".to_owned(), "0123456789abcdef".to_owned());
                let pack = PackName { prefix: prefix.into(), share, generation: Generation(u64::MAX), tag };
                let range = ByteRange { offset: u64::MAX >> 1, len: u64::MAX >> 1 };
                let member = pack.member(&member_base(prefix, path, file, Generation(0x64)), range);
                assert!(member.0.len() <= 1024 && crate::record::is_member(&member));
                for key in [object_key(prefix, path, file, Generation(0x64)), member] {
                    let parts = parse_key(prefix, &key).unwrap();
                    assert_eq!((parts.file, parts.generation), (file, Generation(0x64)));
                    assert!(parts.is_of(path) && !parts.is_of(Path::new("other")));
                    let long = path.as_os_str().len() > 1000;
                    assert_eq!(parts.path(), (!long).then(|| path.to_owned()));
                    assert!(key.0.starts_with(&key_beginning(prefix, path, false)), "{key}");
                    assert_ne!(long, key_beginning(prefix, path, false).ends_with('@'));
                }
            }
        }
        let inside = object_key("p", Path::new("d/e/f"), file, Generation(1));
        assert!(inside.0.starts_with(&key_beginning("p", Path::new("d"), true)));
        assert!(inside.0.starts_with(&key_beginning("p", Path::new(""), true)));
        for other in ["p/a@1-2.3.manifest", "p/a@1-2", "p/a@1-2.03", "p/a@1-2.X", "q/a@1-2.3", "p/@1-2.3"] {
            assert_eq!(parse_key("p", &ObjectKey(other.into())), None, "{other}");
        }
    }
}
