//! What the metadata sync needs of those who own contents: which facts are to be told of them, how a stub is made, how a file goes.

use std::ffi::OsStr;

use serde::{Deserialize, Serialize};

use crate::ports::{Attr, LowerResult};
use crate::types::{FileId, Generation, Inode, PairFileId, Timestamp};

/// What is known of a regular file's content, by who holds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Bytes.
    pub size: u64,
    pub mtime: Timestamp,
    pub generation: Generation,
    /// How often the content has changed sides.
    pub epoch: u64,
    /// Whether the teller holds the content; else nothing is said of it.
    pub held: bool,
}

/// Contents of regular files, and those who are to be told of changes. All calls may block on local I/O and on the journal.
pub trait Files: Send + Sync {
    /// The file is known to the other side from now on: its id, given once, and as durable as what is done to the share next to it. An error
    /// without a number of the kernel's is about this file alone: its content is where the other side cannot have it.
    fn own(&self, node: &Inode) -> LowerResult<PairFileId>;
    /// The facts of a file that has an id.
    fn facts(&self, node: &Inode, attr: &Attr) -> LowerResult<Facts>;
    /// Whether somebody has it open for writing, so that its facts are not settled.
    fn is_written(&self, file: FileId) -> bool;
    /// Makes an empty file, just made and without a name that anybody sees, the stub of content that the other side holds.
    fn make_stub(&self, node: &Inode, id: PairFileId, facts: &Facts, origin: FileId) -> LowerResult<()>;
    /// Newer facts of content that the other side holds; whether anything changed, to be made durable by the caller. Of content held here,
    /// nothing is changed.
    fn refresh(&self, node: &Inode, facts: &Facts, origin: FileId) -> LowerResult<bool>;
    /// Takes a name away by the rules of removal.
    fn remove(&self, dir: &Inode, name: &OsStr) -> LowerResult<()>;
    /// A name means something else now.
    fn name_changed(&self, dir: FileId, name: &OsStr);
    /// An inode's attributes changed; `owner`: who owns it did.
    fn inode_changed(&self, file: FileId, owner: bool);
    /// Waits, not for long, until the mount knows of what was told.
    fn told(&self);
}
