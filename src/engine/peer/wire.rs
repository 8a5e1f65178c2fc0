//! What the two sides of a pair ask each other: keys below the gateway's own directory, which only the pair's tiering service may use.
//!
//! `.tierfs-gateway/VERB/ID/WHAT/NODE/PATH`: the file's id decides which file is meant. NODE (its inode there, as last heard of) and PATH (its path here, which
//! is the same there but for a rename on its way) only help to find it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::peer::{Answer, Content};
use crate::record::peer_key;
use crate::types::{ContentHash, FileId, Generation, ObjectKey, PairFileId, STAGING_NAME, Timestamp};

/// Longest key that S3 has.
const KEY_BYTES_MAX: usize = 1_024;
/// An answer, and the inode of the side that gives it; zeros where it has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    pub from: FileId,
    pub answer: Answer,
}

/// The header of a call that changes the owner: JSON of [`crate::peer::Call`].
pub const CALL_HEADER: &str = "x-tierfs-call";
/// Of its answer: JSON of [`Told`]. Without it, whatever was answered is no answer.
pub const ANSWER_HEADER: &str = "x-tierfs-answer";
/// The callee's inode, as last heard of.
pub const NODE_HEADER: &str = "x-tierfs-node";
/// The caller's own inode: how it is found from now on, whatever it is called.
pub const FROM_HEADER: &str = "x-tierfs-from";
/// With `ltr`: the root over the hashes of what was staged.
pub const ROOT_HEADER: &str = "x-tierfs-root";
/// The keys of the attribute calls (R6), made as tags of an object.
pub const LOCAL_TO_REMOTE: &str = "ltr_local_to_remote";
pub const REMOTE_TO_LOCAL: &str = "rtl_remote_to_local";

/// No inode: where the other side's is not known.
pub const NOWHERE: FileId = FileId { ino: 0, birth: 0 };

/// Which file is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub id: PairFileId,
    /// Its inode at the side that is asked, as last heard of; all zeros: not known.
    pub node: FileId,
    /// Relative to the share; empty: not told.
    pub path: String,
}

/// What is asked by a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// JSON of what is told ([`Told`]) to [`crate::peer::Call::Head`].
    Facts,
    /// Bytes of a generation.
    Content(Generation),
    /// The hashes of a generation's chunks of so many bytes.
    Manifest(Generation, u32),
    /// To keep a copy for the handover that begins this epoch; hashed by chunks of so many bytes.
    Stage { epoch: u64, content: Content, chunk_size: u32 },
}

impl Named {
    /// `path` is left out where a key cannot carry it.
    pub fn new(id: PairFileId, node: FileId, path: Option<&Path>) -> Self {
        let path = path.and_then(Path::to_str).filter(|path| path.len() < KEY_BYTES_MAX / 2).unwrap_or_default();
        Self { id, node, path: path.to_owned() }
    }

    /// The key of a request.
    pub fn key(&self, verb: Verb) -> ObjectKey {
        let (word, what) = match verb {
            Verb::Facts => ("facts", "-".to_owned()),
            Verb::Content(generation) => ("content", generation.to_string()),
            Verb::Manifest(generation, chunk) => ("manifest", format!("{generation}.{chunk}")),
            Verb::Stage { epoch, content, chunk_size } => {
                let Content { generation, len, mtime } = content;
                ("stage", format!("{epoch}.{generation}.{len}.{}.{}.{chunk_size}", mtime.secs, mtime.nanos))
            }
        };
        ObjectKey(format!("{STAGING_NAME}/{word}/{}/{what}/{}/{}", self.id, self.node, self.path))
    }

    /// The object that an attribute call is made of: never the bucket itself, of which nobody is asked who owns it.
    pub fn call_key(&self) -> String {
        if self.path.is_empty() { format!("{STAGING_NAME}/call/{}", self.id) } else { self.path.clone() }
    }

    /// What a key asks; `None`: it is no such key.
    pub fn parse(key: &str) -> Option<(Self, Verb)> {
        let rest = key.strip_prefix(STAGING_NAME)?.strip_prefix('/')?;
        let mut parts = rest.splitn(5, '/');
        let (word, id, what, node) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let path = parts.next()?.to_owned();
        let named = Self { id: id.parse().ok()?, node: node.parse().ok()?, path };
        let hex = |text: &str| u64::from_str_radix(text, 16).ok().map(Generation);
        let verb = match word {
            "facts" => Verb::Facts,
            "content" => Verb::Content(hex(what)?),
            "manifest" => {
                let (generation, chunk) = what.split_once('.')?;
                Verb::Manifest(hex(generation)?, chunk.parse().ok()?)
            }
            "stage" => {
                let parts: Vec<&str> = what.split('.').collect();
                let [epoch, generation, len, secs, nanos, chunk_size] = parts[..] else { return None };
                let mtime = Timestamp { secs: secs.parse().ok()?, nanos: nanos.parse().ok()? };
                let content = Content { generation: hex(generation)?, len: len.parse().ok()?, mtime };
                Verb::Stage { epoch: epoch.parse().ok()?, content, chunk_size: chunk_size.parse().ok()? }
            }
            _ => return None,
        };
        Some((named, verb))
    }
}

/// What goes with an attribute call.
pub(super) fn headers(
    call: &str,
    named: &Named,
    from: FileId,
    root: Option<ContentHash>,
) -> Vec<(&'static str, String)> {
    let mut headers =
        vec![(CALL_HEADER, call.to_owned()), (NODE_HEADER, named.node.to_string()), (FROM_HEADER, from.to_string())];
    headers.extend(root.map(|root| (ROOT_HEADER, root.to_string())));
    headers
}

/// The key that notes of a file's handover have; with its path, which a start may not get from the kernel.
pub(super) fn note_key(named: &Named, generation: Generation) -> ObjectKey {
    ObjectKey(format!("{}/{}", peer_key(named.id, generation).0, named.path))
}

/// The path in a note's key; empty where it has none.
pub(super) fn noted_path(key: &ObjectKey) -> &str {
    // Behind `.tierfs-gateway/peer/ID.GENERATION`.
    key.0.splitn(4, '/').nth(3).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_back() {
        let node = FileId { ino: 0x1f, birth: 0xab };
        let content =
            Content { generation: Generation(0x64a), len: 5, mtime: Timestamp { secs: -7, nanos: 999_999_999 } };
        for path in ["a/b c", "", "ü.txt"] {
            let named = Named::new(PairFileId([0xa1; 16]), node, Some(Path::new(path)));
            for verb in [
                Verb::Facts,
                Verb::Content(Generation(u64::MAX)),
                Verb::Manifest(Generation(1), 1 << 20),
                Verb::Stage { epoch: 9, content, chunk_size: 65_536 },
            ] {
                assert_eq!(Named::parse(&named.key(verb).0), Some((named.clone(), verb)));
            }
        }
        for path in ["a.b/c d", "", "x/.y./z"] {
            let named = Named::new(PairFileId([0xa1; 16]), node, Some(Path::new(path)));
            assert_eq!(noted_path(&note_key(&named, Generation(7))), path);
            assert!(!named.call_key().is_empty());
        }
        assert_eq!(noted_path(&peer_key(PairFileId([0xa1; 16]), Generation(7))), "");
        assert!(Named::new(PairFileId([0; 16]), node, Some(Path::new(&"x".repeat(2_000)))).path.is_empty());
    }

    #[test]
    fn other_keys_ask_nothing() {
        let id = "a1".repeat(16);
        for key in [
            "".to_owned(),
            "a/b".to_owned(),
            format!("facts/{id}/-/0-0/x"),
            ".tierfs-gateway/facts".to_owned(),
            format!(".tierfs-gateway/facts/{id}/-/0-0"),
            format!(".tierfs-gateway/other/{id}/-/0-0/x"),
            format!(".tierfs-gateway/content/{id}/x/0-0/x"),
            format!(".tierfs-gateway/content/{}/1/0-0/x", &id[1..]),
            format!(".tierfs-gateway/stage/{id}/1.2.3/0-0/x"),
        ] {
            assert_eq!(Named::parse(&key), None, "{key}");
        }
    }
}
