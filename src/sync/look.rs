//! The master's side of a statement: what a name, a directory or an inode is just now.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use super::wire::{Kind, Node, Statement};
use crate::capture::files::Files;
use crate::capture::id::{Identity, peer_id, random_id, set_identity};
use crate::capture::marks::names_in;
use crate::capture::{Capture, Item, Mark};
use crate::engine::travelling_xattrs;
use crate::ports::{Attr, FileKind, Lower, LowerError, LowerResult};
use crate::tree::Attributes;
use crate::types::{FileId, Inode, PairFileId, STAGING_NAME};

/// Statements of one batch.
pub const STATEMENTS_MAX: usize = 1_000;
/// Bytes of one batch, about.
const BYTES_MAX: usize = 2 << 20;
/// Attributes of one inode that are told, bytes.
const XATTRS_MAX: usize = 512 << 10;
/// What a statement costs beside its names and attributes, about.
const STATEMENT_BYTES: usize = 120;

/// Stands for a directory that has no id and is given none.
pub const NOBODY: PairFileId = PairFileId([0xff; 16]);

/// What goes into one batch.
#[derive(Default)]
pub struct Told {
    pub statements: Vec<Statement>,
    /// Names and inodes in the statements.
    pub entries: usize,
    bytes: usize,
    /// Directories whose names are told, with their ids: their own times come last.
    dirs: BTreeMap<FileId, (PairFileId, Inode)>,
    /// Ids given here: what is in these directories is told anyway.
    pub fresh: Vec<PairFileId>,
    /// Directories that were named.
    pub below: Vec<Inode>,
    /// Names that nothing could be said of, and why.
    pub left: Vec<(FileId, Vec<u8>, String)>,
    /// What was said of files by their names.
    said: HashMap<FileId, Node>,
}

impl Told {
    pub fn is_full(&self) -> bool {
        self.entries >= STATEMENTS_MAX || self.bytes >= BYTES_MAX
    }

    /// Which directory an id stands for in these statements.
    pub fn dir(&self, id: PairFileId) -> Option<Inode> {
        self.dirs.values().find(|(of, _)| *of == id).map(|(_, node)| *node)
    }

    fn weigh(&mut self, name: &[u8], node: Option<&Node>) {
        let xattrs = node.map_or(0, |node| xattr_bytes(&node.attributes.xattrs));
        self.bytes += STATEMENT_BYTES + name.len() + xattrs;
        self.entries += 1;
    }
}

fn xattr_bytes(xattrs: &[(Vec<u8>, Vec<u8>)]) -> usize {
    xattrs.iter().map(|(name, value)| name.len() + value.len()).sum()
}

/// What is found under a name.
enum Found {
    Is(Box<Node>),
    Nothing,
    /// Something that nothing can be said of.
    Left,
}

/// A directory that is being told, part by part. Memory goes by its names.
pub struct Listing {
    pub dir: Inode,
    id: PairFileId,
    /// In order of bytes.
    names: std::vec::IntoIter<OsString>,
    after: Option<Vec<u8>>,
}

pub struct Looker {
    pub lower: Arc<dyn Lower>,
    pub capture: Arc<Capture>,
    pub files: Arc<dyn Files>,
    /// Changes nothing, and gives no ids.
    pub dry: bool,
    /// All directories are told anyway.
    pub whole: bool,
}

pub fn is_gone(error: &LowerError) -> bool {
    matches!(error.errno(), libc::ENOENT | libc::ESTALE | libc::ENOTDIR)
}

impl Looker {
    /// An inode that there is, with a name.
    fn alive(&self, mark: Mark, id: FileId) -> LowerResult<Option<(Inode, Attr)>> {
        let found = match self.capture.node(mark) {
            Some(node) => self.lower.stat(&node).map(|attr| (node, attr)),
            None => self.lower.by_number(id.ino),
        };
        match found {
            Ok((node, attr)) => Ok((node.id == id && attr.nlink > 0).then_some((node, attr))),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The id of an inode, which is given one if it has none; whether it was.
    fn id(&self, node: &Inode, attr: &Attr) -> LowerResult<(Option<PairFileId>, bool)> {
        let known = peer_id(&*self.lower, node)?;
        if known.is_some() || self.dry {
            return Ok((known, false));
        }
        let id = match attr.kind {
            FileKind::Regular => self.files.own(node)?,
            _ => {
                let id = random_id()?;
                set_identity(&*self.lower, node, &Identity { id, there: FileId { ino: 0, birth: 0 } })?;
                id
            }
        };
        Ok((Some(id), true))
    }

    /// All there is to say of an inode; whether it was never told.
    fn node(&self, node: &Inode, attr: &Attr) -> LowerResult<(Node, bool)> {
        let (id, fresh) = self.id(node, attr)?;
        let kind = match attr.kind {
            FileKind::Regular => Kind::Regular(self.files.facts(node, attr)?),
            FileKind::Directory => Kind::Directory,
            FileKind::Symlink => Kind::Symlink { target: self.lower.read_link(node)?.into_vec() },
            FileKind::Fifo => Kind::Fifo,
            FileKind::Socket => Kind::Socket,
            FileKind::CharDevice => Kind::CharDevice { device: attr.rdev },
            FileKind::BlockDevice => Kind::BlockDevice { device: attr.rdev },
        };
        let mut xattrs = travelling_xattrs(&*self.lower, node)?;
        if xattr_bytes(&xattrs) > XATTRS_MAX {
            tracing::warn!(
                inode = node.id.ino,
                "it has more than {XATTRS_MAX} bytes of attributes: they are not synced"
            );
            xattrs.clear();
        }
        let Attr { mode, uid, gid, atime, mtime, nlink, .. } = *attr;
        let attributes = Attributes { mode, uid, gid, atime, mtime, xattrs };
        if attr.kind == FileKind::Regular && !self.dry && self.files.is_written(node.id) {
            // What is told now is not the last word: it stays marked until it is closed.
            self.capture.look_at_later(node)?;
        }
        Ok((Node { id, origin: node.id, links: nlink, kind, attributes }, fresh))
    }

    /// A name of a directory.
    fn entry(&self, dir: &Inode, name: &OsStr, told: &mut Told) -> LowerResult<Found> {
        let found = self.lower.lookup(dir, name).and_then(|(node, attr)| Ok((self.node(&node, &attr)?, node)));
        match found {
            Ok(((said, fresh), node)) => {
                if matches!(said.kind, Kind::Regular(_)) {
                    told.said.insert(node.id, said.clone());
                }
                if said.kind == Kind::Directory {
                    told.below.push(node);
                    if (fresh && !self.whole) || self.capture.is_born(node.id) {
                        self.capture.told_directory(&node)?;
                        told.fresh.extend(said.id);
                    }
                }
                Ok(Found::Is(Box::new(said)))
            }
            Err(error) if is_gone(&error) => Ok(Found::Nothing),
            Err(error) if error.source.raw_os_error().is_none() => {
                told.left.push((dir.id, name.as_bytes().to_vec(), error.source.to_string()));
                Ok(Found::Left)
            }
            Err(error) => Err(error),
        }
    }

    /// Has the name of a directory told that the other side does not know; what is in it is told when it is made there.
    pub fn climb(&self, dir: &Inode) -> LowerResult<()> {
        let (Ok((above, _)), Some(path)) = (self.lower.lookup(dir, OsStr::new("..")), self.lower.path_of(dir)?) else {
            return Ok(());
        };
        let Some(name) = path.file_name() else { return Ok(()) };
        self.capture.look_at(Item::Name(above.id, name.to_owned()), &above)
    }

    /// The directory that names are told of, by its id. `None`: its own name is told first, and all of it with that.
    fn directory(&self, dir: &Inode) -> LowerResult<Option<PairFileId>> {
        let id = peer_id(&*self.lower, dir)?;
        match id {
            None if self.dry => Ok(Some(NOBODY)),
            None => self.climb(dir).map(|()| None),
            id => Ok(id),
        }
    }

    fn is_hidden(&self, dir: &Inode, name: &OsStr) -> bool {
        name == STAGING_NAME && *dir == self.lower.root()
    }

    /// Looks where an item says. `Some`: a directory to be told by [`Looker::part`].
    pub fn look(&self, item: &Item, told: &mut Told) -> LowerResult<Option<Listing>> {
        match item {
            Item::Name(dir, name) => {
                let Some((dir, _)) = self.alive(Mark::Directory(*dir), *dir)? else { return Ok(None) };
                if self.is_hidden(&dir, name) {
                    return Ok(None);
                }
                let Some(id) = self.directory(&dir)? else { return Ok(None) };
                let is = match self.entry(&dir, name, told)? {
                    Found::Is(is) => Some(*is),
                    Found::Nothing => None,
                    Found::Left => return Ok(None),
                };
                let name = name.as_bytes().to_vec();
                told.weigh(&name, is.as_ref());
                told.dirs.insert(dir.id, (id, dir));
                told.statements.push(Statement::Name { dir: id, name, is });
            }
            Item::Listing(dir) => {
                let Some((dir, _)) = self.alive(Mark::Directory(*dir), *dir)? else { return Ok(None) };
                return self.listing(&dir);
            }
            Item::Inode(id) => {
                let Some((node, attr)) = self.alive(Mark::Inode(*id), *id)? else { return Ok(None) };
                // Who was never told, or is the root, is told by name or not at all.
                if node == self.lower.root() || peer_id(&*self.lower, &node)?.is_none() {
                    return Ok(None);
                }
                let (said, _) = match self.node(&node, &attr) {
                    Err(error) if is_gone(&error) || error.source.raw_os_error().is_none() => return Ok(None),
                    said => said?,
                };
                if told.said.get(id) == Some(&said) {
                    return Ok(None);
                }
                told.weigh(b"", Some(&said));
                told.statements.push(Statement::Inode(said));
            }
        }
        Ok(None)
    }

    /// Begins to tell a directory.
    pub fn listing(&self, dir: &Inode) -> LowerResult<Option<Listing>> {
        let Some(id) = self.directory(dir)? else { return Ok(None) };
        let mut names = match names_in(&*self.lower, dir) {
            Err(error) if is_gone(&error) => return Ok(None),
            names => names?,
        };
        names.retain(|name| !self.is_hidden(dir, name));
        names.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        Ok(Some(Listing { dir: *dir, id, names: names.into_iter(), after: None }))
    }

    /// Tells as much of a directory as a batch has room for; whether that was the rest of it.
    pub fn part(&self, listing: &mut Listing, told: &mut Told) -> LowerResult<bool> {
        let mut names = Vec::new();
        let mut last = None;
        let mut ended = true;
        while let Some(name) = listing.names.next() {
            let is = match self.entry(&listing.dir, &name, told)? {
                Found::Is(is) => Some(Some(*is)),
                Found::Left => Some(None),
                Found::Nothing => None,
            };
            if let Some(is) = is {
                told.weigh(name.as_bytes(), is.as_ref());
                names.push((name.as_bytes().to_vec(), is));
            }
            last = Some(name.into_vec());
            if told.is_full() && listing.names.len() > 0 {
                ended = false;
                break;
            }
        }
        let upto = if ended { None } else { last };
        let after = std::mem::replace(&mut listing.after, upto.clone());
        told.entries += 1;
        told.dirs.insert(listing.dir.id, (listing.id, listing.dir));
        told.statements.push(Statement::Names { dir: listing.id, after, upto, names });
        Ok(ended)
    }

    /// Ends a batch: changes of names have moved the times of their directories.
    pub fn finish(&self, told: &mut Told) -> LowerResult<()> {
        for (id, dir) in told.dirs.values() {
            if *id == PairFileId::ROOT || *id == NOBODY {
                continue;
            }
            let said = self.lower.stat(dir).and_then(|attr| self.node(dir, &attr));
            match said {
                Ok((said, _)) => told.statements.push(Statement::Inode(said)),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether an inode that has no name at the other side has one here. Then its name is told again, where it can be found.
    pub fn is_named(&self, id: PairFileId, origin: FileId) -> LowerResult<bool> {
        if origin.ino == 0 {
            // Nobody knows which it was: it is kept.
            return Ok(true);
        }
        let (node, attr) = match self.lower.by_number(origin.ino) {
            Err(error) if is_gone(&error) => return Ok(false),
            found => found?,
        };
        if node.id != origin || attr.nlink == 0 || peer_id(&*self.lower, &node)? != Some(id) {
            return Ok(false);
        }
        if attr.kind == FileKind::Directory {
            self.climb(&node)?;
        } else if let Some(path) = self.lower.path_of(&node)?
            && let (Some(above), Some(name)) = (path.parent(), path.file_name())
            && let Ok(found) = crate::catalog::walk::resolve(&*self.lower, above)
        {
            self.capture.look_at(Item::Name(found.node.id, name.to_owned()), &found.node)?;
        }
        Ok(true)
    }
}
