//! The simulated share: the port [`Lower`] over the world's disk, for one process.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::MutexGuard;
use tierfs::ports::*;
use tierfs::record::{Claim, Record};
use tierfs::types::{FileId, Inode, RawHandle};

use crate::bugs::Bug;
use crate::content::Content;
use crate::disk::{Change, Node};
use crate::file::SimFile;
use crate::plan::{Fault, Kind};
use crate::truth::File;
use crate::world::{State, World};

pub const ROOT_INO: u64 = 2;
pub const RECORD: &str = "trusted.tierfs.record";

pub struct SimShare {
    pub world: Arc<World>,
    pub life: u32,
}

pub fn fail<T>(op: &'static str, errno: i32) -> LowerResult<T> {
    Err(LowerError::from_errno(op, errno))
}

/// The operation, or why it does not take place.
pub fn step<'a>(
    world: &'a World,
    life: u32,
    kind: Kind,
    op: &'static str,
    what: impl FnOnce() -> String,
) -> LowerResult<(MutexGuard<'a, State>, Option<Fault>)> {
    let tell = || format!("{op} {}", what());
    let Ok((mut state, fault)) = world.step(life, kind, tell) else { return fail(op, libc::EIO) };
    state.mapped_write();
    match fault {
        Some(Fault::Errno(errno)) => fail(op, errno),
        fault => Ok((state, fault)),
    }
}

pub fn inode(ino: u64, node: &Node) -> Inode {
    let bytes = [(ino as u32).to_le_bytes(), (node.birth as u32).to_le_bytes()].concat();
    Inode { id: FileId { ino, birth: node.birth }, handle: RawHandle::new(1, &bytes).expect("it is short") }
}

pub fn attr(ino: u64, node: &Node) -> Attr {
    Attr {
        ino,
        kind: node.kind,
        mode: node.mode,
        nlink: node.nlink,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: node.content.size,
        blocks: node.content.pages.len() as u64 * crate::content::PAGE / 512,
        block_size: 4096,
        atime: node.mtime,
        mtime: node.mtime,
        ctime: node.ctime,
        btime: node.ctime,
        sealed: false,
        fleeting: false,
    }
}

pub fn record_of(node: &Node) -> Option<Record> {
    node.xattrs.get(OsStr::new(RECORD)).and_then(|stored| Record::decode(stored).ok())
}

impl SimShare {
    fn step(
        &self,
        kind: Kind,
        op: &'static str,
        what: impl FnOnce() -> String,
    ) -> LowerResult<(MutexGuard<'_, State>, Option<Fault>)> {
        step(&self.world, self.life, kind, op, what)
    }

    /// An operation on one inode, which must be there.
    fn on(&self, kind: Kind, op: &'static str, node: &Inode) -> LowerResult<(MutexGuard<'_, State>, Option<Fault>)> {
        let (state, fault) = self.step(kind, op, || format!("{}", node.id.ino))?;
        found(&state, op, node)?;
        Ok((state, fault))
    }

    fn in_dir(
        &self,
        kind: Kind,
        op: &'static str,
        dir: &Inode,
        name: &OsStr,
    ) -> LowerResult<(MutexGuard<'_, State>, Option<u64>)> {
        let (state, _) = self.step(kind, op, || format!("{}/{}", dir.id.ino, name.display()))?;
        let entries = &found(&state, op, dir)?.entries;
        let ino = entries.get(name).copied();
        Ok((state, ino))
    }

    fn add(&self, state: &mut State, dir: u64, name: &OsStr, kind: FileKind, mode: u32) -> (Inode, Attr) {
        // Numbers are used again, as ext4 does.
        let lowest = (12..).find(|ino| !state.disk.seen.nodes.contains_key(ino)).expect("there are enough");
        let ino = if state.dice.once_in(2) { lowest } else { state.next() };
        let birth = state.next();
        let node = Node::new(kind, birth, mode, state.stamp());
        let made = (inode(ino, &node), attr(ino, &node));
        state.truth.files.insert((ino, birth), File::new(Content::default(), node.mtime, mode));
        let at = state.stamp();
        state.disk.change(Change::Create { dir, name: name.to_owned(), ino, node: Box::new(node) }, at);
        made
    }
}

pub fn found<'a>(state: &'a State, op: &'static str, node: &Inode) -> LowerResult<&'a Node> {
    match state.disk.seen.nodes.get(&node.id.ino).filter(|found| found.birth == node.id.birth) {
        Some(node) => Ok(node),
        None => fail(op, libc::ESTALE),
    }
}

/// No record may claim what is not so.
fn check_record(world: &World, state: &mut State, node: &Inode, stored: &[u8]) {
    let record = match Record::decode(stored) {
        Ok(record) => record,
        Err(why) => return world.broken(state, format!("a record was stored that does not decode: {why}")),
    };
    let before = record_of(&state.disk.seen.nodes[&node.id.ino]).map_or(Claim::Resident, |record| record.claim);
    state.stats.saved(before, record.claim);
    let Some(object) = &record.object else { return };
    // An empty file is whole under any claim.
    if state.disk.seen.nodes[&node.id.ino].content.size == 0 {
        return;
    }
    if record.patch.is_some() {
        // What users have just written is not in the oracle yet.
        return;
    }
    let truth = state.truth.files.get(&(node.id.ino, node.id.birth));
    let stored = crate::remote::stored(state, &object.key);
    let wrong = match (stored, truth) {
        (None, _) => Some("is not there".to_owned()),
        (Some(stored), Some(file)) => {
            Content::of(&stored).difference(&file.content).map(|found| format!("has {found}"))
        }
        (Some(_), None) => None,
    };
    if let Some(wrong) = wrong.filter(|_| state.serving) {
        world.broken(
            state,
            format!("file {}: a {:?} record was stored, but {} {wrong}", node.id.ino, record.claim, object.key),
        );
    }
}

impl Lower for SimShare {
    fn features(&self) -> LowerFeatures {
        LowerFeatures { trusted_xattrs: true, punch_hole: true, leases: true, read_only: false }
    }

    fn root(&self) -> Inode {
        let state = self.world.lock();
        inode(ROOT_INO, &state.disk.seen.nodes[&ROOT_INO])
    }

    fn space(&self) -> LowerResult<SpaceInfo> {
        drop(self.step(Kind::Look, "statfs", String::new)?);
        let (blocks, files) = (1 << 20, 1 << 20);
        Ok(SpaceInfo {
            fragment_size: 4096,
            blocks,
            blocks_free: blocks,
            blocks_available: blocks,
            files,
            files_free: files,
            block_size: 4096,
            name_len_max: 255,
        })
    }

    fn lookup(&self, dir: &Inode, name: &OsStr) -> LowerResult<(Inode, Attr)> {
        let (state, ino) = self.in_dir(Kind::Look, "lookup", dir, name)?;
        let Some(ino) = ino else { return fail("lookup", libc::ENOENT) };
        let node = &state.disk.seen.nodes[&ino];
        Ok((inode(ino, node), attr(ino, node)))
    }

    fn unclaimed(&self, dir: &Inode, name: &OsStr) -> LowerResult<Option<FileId>> {
        let (state, ino) = self.in_dir(Kind::Look, "unclaimed", dir, name)?;
        let Some(ino) = ino else { return fail("unclaimed", libc::ENOENT) };
        let node = &state.disk.seen.nodes[&ino];
        let plain = node.kind == FileKind::Regular && node.nlink == 1 && !node.xattrs.contains_key(OsStr::new(RECORD));
        Ok(plain.then_some(FileId { ino, birth: node.birth }))
    }

    fn by_handle(&self, handle: &RawHandle) -> LowerResult<(Inode, Attr)> {
        let (state, _) = self.step(Kind::Look, "by_handle", || format!("{handle:?}"))?;
        let bytes = handle.bytes();
        let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (ino, birth) = (u64::from(number(0)), u64::from(number(4)));
        match state.disk.seen.nodes.get(&ino) {
            Some(node) if node.birth == birth && !state.has(Bug::HandlesLie) => Ok((inode(ino, node), attr(ino, node))),
            _ => fail("by_handle", libc::ESTALE),
        }
    }

    fn by_number(&self, ino: u64) -> LowerResult<(Inode, Attr)> {
        let (state, _) = self.step(Kind::Look, "by_number", || format!("{ino}"))?;
        match state.disk.seen.nodes.get(&ino) {
            Some(node) => Ok((inode(ino, node), attr(ino, node))),
            None => fail("by_number", libc::ESTALE),
        }
    }

    fn path_of(&self, node: &Inode) -> LowerResult<Option<PathBuf>> {
        let (state, _) = self.on(Kind::Look, "path_of", node)?;
        let nodes = &state.disk.seen.nodes;
        let entry_of = |ino| {
            let mut entries =
                nodes.iter().flat_map(|(dir, node)| node.entries.iter().map(move |(name, ino)| (dir, name, *ino)));
            entries.find(|(_, _, entry)| *entry == ino).map(|(dir, name, _)| (*dir, name.clone()))
        };
        let mut path = PathBuf::new();
        let mut at = node.id.ino;
        while at != ROOT_INO {
            let Some((dir, name)) = entry_of(at) else { return Ok(None) };
            path = if path.as_os_str().is_empty() { name.into() } else { PathBuf::from(name).join(path) };
            at = dir;
        }
        Ok(Some(path))
    }

    fn stat(&self, node: &Inode) -> LowerResult<Attr> {
        let (state, _) = self.on(Kind::Look, "stat", node)?;
        Ok(attr(node.id.ino, &state.disk.seen.nodes[&node.id.ino]))
    }

    fn set_attr(&self, node: &Inode, changes: &SetAttr) -> LowerResult<Attr> {
        let ino = node.id.ino;
        let told = || format!("{ino} size {:?} mtime {:?} mode {:?}", changes.size, changes.mtime, changes.mode);
        let (mut state, _) = self.step(Kind::Change, "set_attr", told)?;
        found(&state, "set_attr", node)?;
        let at = state.stamp();
        if let Some(size) = changes.size {
            state.disk.change(Change::Size { ino, size }, at);
        }
        if let Some(mode) = changes.mode {
            state.disk.change(Change::Mode { ino, mode }, at);
        }
        if let Some(time) = changes.mtime.filter(|_| !state.has(Bug::TimesIgnored)) {
            let mtime = match time {
                SetTime::Now => at,
                SetTime::At(time) => time,
            };
            state.disk.change(Change::Times { ino, mtime }, at);
        }
        Ok(attr(ino, &state.disk.seen.nodes[&ino]))
    }

    fn read_link(&self, _: &Inode) -> LowerResult<OsString> {
        fail("readlink", libc::EINVAL)
    }

    fn make(&self, dir: &Inode, name: &OsStr, what: NewNode<'_>, mode: u32, _: &Caller) -> LowerResult<(Inode, Attr)> {
        let kind = match what {
            NewNode::Directory => FileKind::Directory,
            NewNode::Special(kind, _) => kind,
            NewNode::Symlink(_) => FileKind::Symlink,
        };
        let (mut state, ino) = self.in_dir(Kind::Change, "make", dir, name)?;
        if ino.is_some() {
            return fail("make", libc::EEXIST);
        }
        Ok(self.add(&mut state, dir.id.ino, name, kind, mode))
    }

    fn create(
        &self,
        dir: &Inode,
        name: &OsStr,
        mode: u32,
        flags: OpenFlags,
        _: &Caller,
    ) -> LowerResult<(Inode, Attr, Arc<dyn LowerFile>)> {
        let (mut state, ino) = self.in_dir(Kind::Change, "create", dir, name)?;
        if ino.is_some() {
            assert!(flags.exclusive, "only so are files created");
            return fail("create", libc::EEXIST);
        }
        let (node, attr) = self.add(&mut state, dir.id.ino, name, FileKind::Regular, mode);
        let file = SimFile::open(&mut state, self.world.clone(), self.life, node, true);
        Ok((node, attr, Arc::new(file)))
    }

    fn link(&self, node: &Inode, dir: &Inode, name: &OsStr) -> LowerResult<Attr> {
        let (mut state, ino) = self.in_dir(Kind::Change, "link", dir, name)?;
        let target = found(&state, "link", node)?;
        if ino.is_some() {
            return fail("link", libc::EEXIST);
        }
        if target.nlink == 0 {
            return fail("link", libc::ENOENT);
        }
        let at = state.stamp();
        state.disk.change(Change::Link { dir: dir.id.ino, name: name.to_owned(), ino: node.id.ino }, at);
        Ok(attr(node.id.ino, &state.disk.seen.nodes[&node.id.ino]))
    }

    fn rename(&self, dir: &Inode, name: &OsStr, to_dir: &Inode, to: &OsStr, mode: RenameMode) -> LowerResult<()> {
        let (mut state, ino) = self.in_dir(Kind::Change, "rename", dir, name)?;
        let Some(ino) = ino else { return fail("rename", libc::ENOENT) };
        let replaced = found(&state, "rename", to_dir)?.entries.get(to).copied();
        match (mode, replaced) {
            (RenameMode::Replace, Some(replaced)) if replaced == ino => return Ok(()),
            (RenameMode::Replace, _) | (RenameMode::NoReplace, None) => {}
            (RenameMode::NoReplace, Some(_)) => return fail("rename", libc::EEXIST),
            _ => return fail("rename", libc::EINVAL),
        }
        let (name, to, to_dir) = (name.to_owned(), to.to_owned(), to_dir.id.ino);
        let at = state.stamp();
        state.disk.change(Change::Rename { dir: dir.id.ino, name, to_dir, to, ino, replaced }, at);
        replaced.into_iter().for_each(|replaced| state.reap(replaced));
        Ok(())
    }

    fn unlink(&self, dir: &Inode, name: &OsStr) -> LowerResult<()> {
        let (mut state, ino) = self.in_dir(Kind::Change, "unlink", dir, name)?;
        let Some(ino) = ino else { return fail("unlink", libc::ENOENT) };
        let at = state.stamp();
        state.disk.change(Change::Unlink { dir: dir.id.ino, name: name.to_owned(), ino }, at);
        state.reap(ino);
        Ok(())
    }

    fn remove_dir(&self, _: &Inode, _: &OsStr) -> LowerResult<()> {
        fail("rmdir", libc::EPERM)
    }

    fn open(&self, node: &Inode, flags: OpenFlags) -> LowerResult<Arc<dyn LowerFile>> {
        let told = || format!("{}{}", node.id.ino, if flags.write { " for writing" } else { "" });
        let (mut state, _) = self.step(Kind::Open, "open", told)?;
        found(&state, "open", node)?;
        if state.leases.contains(&node.id.ino) {
            // A thread would wait here until the release is over.
            state.stats.lease_waits += u64::from(!flags.no_wait);
            return fail("open", libc::EWOULDBLOCK);
        }
        Ok(Arc::new(SimFile::open(&mut state, self.world.clone(), self.life, *node, flags.write)))
    }

    fn open_dir(&self, node: &Inode) -> LowerResult<Arc<dyn LowerDir>> {
        drop(self.on(Kind::Open, "opendir", node)?);
        Ok(Arc::new(SimDir { world: self.world.clone(), life: self.life, node: *node }))
    }

    fn xattr(&self, node: &Inode, name: &OsStr) -> LowerResult<Vec<u8>> {
        let (state, _) = self.on(Kind::Look, "getxattr", node)?;
        match state.disk.seen.nodes[&node.id.ino].xattrs.get(name) {
            Some(value) => Ok(value.to_vec()),
            None => fail("getxattr", libc::ENODATA),
        }
    }

    fn set_xattr(&self, node: &Inode, name: &OsStr, value: &[u8], _: i32) -> LowerResult<()> {
        let told = || {
            let claim = if name == RECORD { Record::decode(value).ok() } else { None };
            let claim = claim.map(|record| (record.claim, record.generation, record.superseded.is_some()));
            format!("{} {} {claim:?}", node.id.ino, name.display())
        };
        let (mut state, _) = self.step(Kind::Change, "setxattr", told)?;
        found(&state, "setxattr", node)?;
        if name == RECORD {
            check_record(&self.world, &mut state, node, value);
            if state.has(Bug::RecordsNotSaved) && state.dice.once_in(4) {
                return Ok(());
            }
        }
        let (at, value) = (state.stamp(), Some(Arc::from(value)));
        state.disk.change(Change::Xattr { ino: node.id.ino, name: name.to_owned(), value }, at);
        Ok(())
    }

    fn set_acl(&self, node: &Inode, value: &[u8], flags: i32, _: &Caller) -> LowerResult<()> {
        self.set_xattr(node, OsStr::new("system.posix_acl_access"), value, flags)
    }

    fn list_xattrs(&self, node: &Inode) -> LowerResult<Vec<OsString>> {
        let (state, _) = self.on(Kind::Look, "listxattr", node)?;
        Ok(state.disk.seen.nodes[&node.id.ino].xattrs.keys().cloned().collect())
    }

    fn remove_xattr(&self, node: &Inode, name: &OsStr) -> LowerResult<()> {
        let (mut state, _) = self.on(Kind::Change, "removexattr", node)?;
        if !state.disk.seen.nodes[&node.id.ino].xattrs.contains_key(name) {
            return fail("removexattr", libc::ENODATA);
        }
        let at = state.stamp();
        state.disk.change(Change::Xattr { ino: node.id.ino, name: name.to_owned(), value: None }, at);
        Ok(())
    }

    fn record_xattr(&self) -> &'static str {
        RECORD
    }

    fn load_record(&self, node: &Inode) -> LowerResult<Option<Vec<u8>>> {
        if_set(self.xattr(node, OsStr::new(RECORD)))
    }

    fn instance(&self) -> Option<u64> {
        let state = self.world.lock();
        Some(if state.has(Bug::MountsAlike) { 1 } else { state.mounted })
    }

    fn save_record(&self, node: &Inode, record: &[u8]) -> LowerResult<()> {
        self.set_xattr(node, OsStr::new(RECORD), record, 0)
    }

    fn sync_node(&self, node: &Inode) -> LowerResult<()> {
        let (mut state, fault) = self.on(Kind::Sync, "fsync", node)?;
        sync(&mut state, node.id.ino, fault)
    }

    fn sync_all(&self) -> LowerResult<()> {
        let (mut state, fault) = self.step(Kind::Sync, "syncfs", String::new)?;
        if let Some(Fault::Partly(errno)) = fault {
            return fail("syncfs", errno);
        }
        if !state.has(Bug::SyncfsIdle) {
            state.disk.sync_all();
        }
        Ok(())
    }
}

pub fn sync(state: &mut State, ino: u64, fault: Option<Fault>) -> LowerResult<()> {
    if let Some(Fault::Partly(errno)) = fault {
        let State { disk, dice, .. } = state;
        disk.sync_partly(ino, dice);
        return fail("fsync", errno);
    }
    if !state.has(Bug::FsyncIdle) {
        state.disk.sync(ino);
    }
    Ok(())
}

struct SimDir {
    world: Arc<World>,
    life: u32,
    node: Inode,
}

impl LowerDir for SimDir {
    fn each(&self, offset: i64, take: &mut dyn FnMut(&DirEntryRef<'_>) -> bool) -> LowerResult<()> {
        let (state, _) = step(&self.world, self.life, Kind::Look, "readdir", String::new)?;
        let entries = found(&state, "readdir", &self.node)?.entries.clone();
        drop(state);
        for ((name, ino), next_offset) in entries.iter().zip(1..).skip(offset as usize) {
            if take(&DirEntryRef { name, ino: *ino, kind: None, next_offset }) {
                break;
            }
        }
        Ok(())
    }

    fn sync(&self, _: bool) -> LowerResult<()> {
        let (mut state, fault) =
            step(&self.world, self.life, Kind::Sync, "fsync", || format!("directory {}", self.node.id.ino))?;
        sync(&mut state, self.node.id.ino, fault)
    }
}
