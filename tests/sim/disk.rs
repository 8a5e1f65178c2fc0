//! The share's disk: what everybody sees, and what a power loss may leave of it.
//!
//! Metadata is journalled: what survives is a beginning of all changes in their order, at least up to what was synced. Data is
//! written back page by page in any order or not at all; a page that has no place on the disk yet, or lost it by a cut or a punch, can survive only with the
//! metadata that gives it one. That is what ext4 (`data=ordered`, delayed allocation) and XFS promise, and no more.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::sync::Arc;

use tierfs::ports::FileKind;
use tierfs::types::Timestamp;

use crate::content::{Content, PAGE, Page};
use crate::dice::Dice;

#[derive(Clone)]
pub struct Node {
    /// Tells inodes that had the same number apart.
    pub birth: u64,
    pub kind: FileKind,
    pub mode: u32,
    pub nlink: u32,
    pub content: Content,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub xattrs: BTreeMap<OsString, Arc<[u8]>>,
    /// Of a directory.
    pub entries: BTreeMap<OsString, u64>,
}

impl Node {
    pub fn new(kind: FileKind, birth: u64, mode: u32, now: Timestamp) -> Self {
        let (content, xattrs, entries) = Default::default();
        Self { birth, kind, mode, nlink: 1, content, mtime: now, ctime: now, xattrs, entries }
    }
}

/// One change of metadata, whole or not at all.
#[derive(Clone)]
pub enum Change {
    Create {
        dir: u64,
        name: OsString,
        ino: u64,
        node: Box<Node>,
    },
    Link {
        dir: u64,
        name: OsString,
        ino: u64,
    },
    Unlink {
        dir: u64,
        name: OsString,
        ino: u64,
    },
    Rename {
        dir: u64,
        name: OsString,
        to_dir: u64,
        to: OsString,
        ino: u64,
        replaced: Option<u64>,
    },
    Size {
        ino: u64,
        size: u64,
    },
    Punch {
        ino: u64,
    },
    /// A write began: times only.
    Touch {
        ino: u64,
    },
    Times {
        ino: u64,
        mtime: Timestamp,
    },
    Mode {
        ino: u64,
        mode: u32,
    },
    Xattr {
        ino: u64,
        name: OsString,
        value: Option<Arc<[u8]>>,
    },
}

impl Change {
    fn concerns(&self, inode: u64) -> bool {
        match self {
            Self::Create { dir, ino, .. } | Self::Link { dir, ino, .. } | Self::Unlink { dir, ino, .. } => {
                inode == *dir || inode == *ino
            }
            Self::Rename { dir, to_dir, ino, replaced, .. } => {
                [*dir, *to_dir, *ino].contains(&inode) || *replaced == Some(inode)
            }
            Self::Size { ino, .. }
            | Self::Punch { ino }
            | Self::Touch { ino }
            | Self::Times { ino, .. }
            | Self::Mode { ino, .. }
            | Self::Xattr { ino, .. } => inode == *ino,
        }
    }

    /// Whether it takes page `index` of `inode` its place.
    fn frees(&self, inode: u64, index: u64) -> bool {
        match self {
            Self::Size { ino, size } => *ino == inode && index * PAGE >= *size,
            Self::Punch { ino } => *ino == inode,
            _ => false,
        }
    }
}

#[derive(Clone, Default)]
pub struct Image {
    pub nodes: BTreeMap<u64, Node>,
}

impl Image {
    fn dir(&mut self, ino: u64, now: Timestamp) -> &mut BTreeMap<OsString, u64> {
        let dir = self.nodes.get_mut(&ino).expect("a directory outlives what is done in it");
        (dir.mtime, dir.ctime) = (now, now);
        &mut dir.entries
    }

    fn apply(&mut self, change: &Change, now: Timestamp) {
        match change.clone() {
            Change::Create { dir, name, ino, node } => {
                self.dir(dir, now).insert(name, ino);
                self.nodes.insert(ino, *node);
            }
            Change::Link { dir, name, ino } => {
                self.dir(dir, now).insert(name, ino);
                self.edit(ino, now, |node| node.nlink += 1);
            }
            Change::Unlink { dir, name, ino } => {
                self.dir(dir, now).remove(&name);
                self.edit(ino, now, |node| node.nlink -= 1);
            }
            Change::Rename { dir, name, to_dir, to, ino, replaced } => {
                self.dir(dir, now).remove(&name);
                self.dir(to_dir, now).insert(to, ino);
                replaced.into_iter().for_each(|replaced| self.edit(replaced, now, |node| node.nlink -= 1));
                self.edit(ino, now, |_| {});
            }
            Change::Size { ino, size } => self.edit(ino, now, |node| {
                node.content.set_size(size);
                node.mtime = now;
            }),
            Change::Punch { ino } => self.edit(ino, now, |node| {
                node.content.punch();
                node.mtime = now;
            }),
            Change::Touch { ino } => self.edit(ino, now, |node| node.mtime = now),
            Change::Times { ino, mtime } => self.edit(ino, now, |node| node.mtime = mtime),
            Change::Mode { ino, mode } => self.edit(ino, now, |node| node.mode = mode),
            Change::Xattr { ino, name, value: Some(value) } => {
                self.edit(ino, now, |node| drop(node.xattrs.insert(name, value)));
            }
            Change::Xattr { ino, name, value: None } => self.edit(ino, now, |node| drop(node.xattrs.remove(&name))),
        }
    }

    fn edit(&mut self, ino: u64, now: Timestamp, edit: impl FnOnce(&mut Node)) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            edit(node);
            node.ctime = now;
        }
    }

    fn put(&mut self, write: &Write, extends: bool) {
        let Some(node) = self.nodes.get_mut(&write.ino).filter(|node| node.birth == write.birth) else { return };
        let content = &mut node.content;
        if extends {
            content.size = content.size.max(write.end);
        }
        let mut page = write.page.clone();
        let room = content.len_of(write.index);
        if room == 0 {
            return;
        }
        if page.len() > room {
            page = page[..room].into();
        }
        content.pages.insert(write.index, page);
    }
}

struct Logged {
    seq: u64,
    at: Timestamp,
    change: Change,
}

/// A page in the cache that the disk does not have.
struct Write {
    /// Of the change that says that the write began.
    seq: u64,
    ino: u64,
    /// Its inode's: the number may have been another's before.
    birth: u64,
    index: u64,
    page: Page,
    /// Where the page's bytes end, which may be a new end of the file.
    end: u64,
}

#[derive(Default)]
pub struct Disk {
    /// What everybody sees.
    pub seen: Image,
    /// What is on the disk for certain.
    durable: Image,
    log: VecDeque<Logged>,
    writes: Vec<Write>,
    seq: u64,
    /// Syncing one file commits everything (ext4); otherwise only as much of the journal as it must (XFS).
    eager: bool,
}

impl Disk {
    pub fn new(eager: bool) -> Self {
        Self { eager, ..Self::default() }
    }

    /// All that is there is durable.
    pub fn begin(&mut self) {
        self.durable = self.seen.clone();
    }

    pub fn change(&mut self, change: Change, now: Timestamp) {
        self.seen.apply(&change, now);
        self.seq += 1;
        self.log.push_back(Logged { seq: self.seq, at: now, change });
    }

    pub fn write(&mut self, ino: u64, offset: u64, data: &[u8], now: Timestamp) {
        if data.is_empty() {
            return;
        }
        self.change(Change::Touch { ino }, now);
        let (seq, writes) = (self.seq, &mut self.writes);
        let node = self.seen.nodes.get_mut(&ino).expect("it is open");
        let birth = node.birth;
        node.content.write_each(offset, data, |index, _, page| {
            let end = index * PAGE + page.len() as u64;
            writes.push(Write { seq, ino, birth, index, page: page.clone(), end });
        });
    }

    /// As [`Disk::write`] by a mapping whose page is dirty already: no time moves.
    pub fn write_quietly(&mut self, ino: u64, offset: u64, data: &[u8]) {
        let (seq, writes) = (self.seq, &mut self.writes);
        let node = self.seen.nodes.get_mut(&ino).expect("it is mapped");
        let birth = node.birth;
        node.content.write_each(offset, data, |index, _, page| {
            let end = index * PAGE + page.len() as u64;
            writes.push(Write { seq, ino, birth, index, page: page.clone(), end });
        });
    }

    pub fn is_dirty(&self, ino: u64, index: u64) -> bool {
        self.writes.iter().any(|write| write.ino == ino && write.index == index)
    }

    /// `fsync`.
    pub fn sync(&mut self, ino: u64) {
        let last = self.log.iter().rev().find(|logged| logged.change.concerns(ino)).map_or(0, |logged| logged.seq);
        let end = if self.eager { self.seq } else { last };
        self.commit(end, |write| write.ino == ino);
    }

    /// `syncfs`.
    pub fn sync_all(&mut self) {
        self.commit(self.seq, |_| true);
    }

    /// A part of what a sync would do.
    pub fn sync_partly(&mut self, ino: u64, dice: &mut Dice) {
        let first = self.log.front().map_or(self.seq, |logged| logged.seq);
        let end = first + dice.below(self.seq - first + 1);
        let mut coins: Vec<bool> = self.writes.iter().map(|_| dice.once_in(2)).collect();
        coins.reverse();
        self.commit(end, |write| {
            let coin = coins.pop().unwrap_or(false);
            // A page without its metadata has no place.
            write.ino == ino && write.seq <= end && coin
        });
    }

    /// Makes changes up to number `end` durable, with the data that `flush` picks.
    fn commit(&mut self, end: u64, mut flush: impl FnMut(&Write) -> bool) {
        let (picked, mut kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.writes).into_iter().partition(|w| flush(w));
        let mut picked = picked.into_iter().peekable();
        while let Some(logged) = self.log.front().filter(|logged| logged.seq <= end) {
            while let Some(write) = picked.next_if(|write| write.seq < logged.seq) {
                self.durable.put(&write, true);
            }
            self.durable.apply(&logged.change, logged.at);
            kept.retain(|write| write.seq >= logged.seq || !logged.change.frees(write.ino, write.index));
            if let Change::Size { ino, size } = logged.change {
                // The cache's page was cut as well.
                let cut = |w: &&mut Write| w.ino == ino && w.seq < logged.seq && w.index == size / PAGE;
                for write in kept.iter_mut().filter(cut) {
                    let keep = write.page.len().min((size % PAGE) as usize);
                    (write.page, write.end) = (write.page[..keep].into(), write.end.min(size));
                }
            }
            self.log.pop_front();
        }
        for write in picked {
            self.durable.put(&write, true);
        }
        self.writes = kept;
    }

    /// Power fails: what is left is seen from now on.
    pub fn lose_power(&mut self, dice: &mut Dice) {
        let first = self.log.front().map_or(self.seq + 1, |logged| logged.seq);
        let end = match dice.below(4) {
            0 => first - 1,
            1 => self.seq,
            _ => first - 1 + dice.below(self.seq + 2 - first),
        };
        let luck = dice.below(4);
        let mut lands = || match luck {
            0 => false,
            1 => true,
            _ => dice.once_in(2),
        };
        let mut writes = std::mem::take(&mut self.writes).into_iter().peekable();
        let mut later = Vec::new();
        while let Some(logged) = self.log.front().filter(|logged| logged.seq <= end) {
            while let Some(write) = writes.next_if(|write| write.seq < logged.seq) {
                if lands() {
                    self.durable.put(&write, true);
                }
            }
            self.durable.apply(&logged.change, logged.at);
            self.log.pop_front();
        }
        for write in writes {
            if !lands() {
            } else if write.seq <= end {
                self.durable.put(&write, true);
            } else {
                later.push(write);
            }
        }
        // In place: only where the page has one, and nothing that did not survive took it away before.
        for write in later {
            let in_place =
                self.durable.nodes.get(&write.ino).is_some_and(|n| n.content.pages.contains_key(&write.index));
            let freed = self.log.iter().any(|l| l.seq <= write.seq && l.change.frees(write.ino, write.index));
            if in_place && !freed {
                self.durable.put(&write, false);
            }
        }
        self.log.clear();
        self.durable.nodes.retain(|_, node| node.nlink > 0);
        self.seen = self.durable.clone();
    }

    /// Every state of an inode that a power loss just now may leave, the present one included; `None`: it is not there.
    pub fn outcomes(&self, ino: u64, mut look: impl FnMut(Option<&Node>)) {
        let mut image = self.durable.clone();
        look(image.nodes.get(&ino).filter(|node| node.nlink > 0));
        for logged in &self.log {
            image.apply(&logged.change, logged.at);
            if logged.change.concerns(ino) {
                look(image.nodes.get(&ino).filter(|node| node.nlink > 0));
            }
        }
    }

    /// Frees an inode that nobody can reach any more. (On the disk it is freed by the next mount at the latest.)
    pub fn reap(&mut self, ino: u64) {
        self.seen.nodes.remove(&ino);
        self.writes.retain(|write| write.ino != ino);
    }
}
