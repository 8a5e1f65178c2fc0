//! A disk with a volatile write cache: a file of a small FUSE filesystem, for a loop device to stand on.
//!
//! What is written is kept in memory until a flush (the loop device passes it on as fsync) brings it to the image. At a power cut each
//! sector of a block that was not flushed is, as a seed decides, what it was at the last flush, what was written last, or anything written in
//! between; from then on every request fails. A disk that [`Disk::lies`] is a check of those who check: it must be found out.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, Session,
    SessionACL, WriteFlags,
};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::dice::Dice;

const BLOCK: u64 = 4096;
const SECTOR: usize = 512;
/// Versions of a block that a cut chooses among, besides the flushed one.
const VERSIONS_MAX: usize = 4;

/// What a power cut did to the blocks that were not flushed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cut {
    pub unflushed: u64,
    pub dropped: u64,
    pub kept: u64,
    /// Some sectors of one version, some of another.
    pub torn: u64,
}

struct State {
    image: File,
    size: u64,
    lies: bool,
    volatile: BTreeMap<u64, Vec<Vec<u8>>>,
    alive: bool,
    /// The one file's inode: another after each cut, so that the kernel's cache of it is not believed.
    ino: u64,
}

impl State {
    fn block(&self, number: u64) -> std::io::Result<Vec<u8>> {
        if let Some(block) = self.volatile.get(&number).and_then(|versions| versions.last()) {
            return Ok(block.clone());
        }
        let mut block = vec![0; BLOCK as usize];
        self.image.read_exact_at(&mut block, number * BLOCK)?;
        Ok(block)
    }

    fn read(&self, offset: u64, len: u64) -> std::io::Result<Vec<u8>> {
        let end = (offset + len).min(self.size);
        let mut data = Vec::new();
        let mut at = offset;
        while at < end {
            let block = self.block(at / BLOCK)?;
            let upto = end.min((at / BLOCK + 1) * BLOCK);
            data.extend_from_slice(&block[(at % BLOCK) as usize..(at % BLOCK + upto - at) as usize]);
            at = upto;
        }
        Ok(data)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        let end = offset + data.len() as u64;
        let mut at = offset;
        while at < end {
            let (number, within) = (at / BLOCK, (at % BLOCK) as usize);
            let upto = end.min((number + 1) * BLOCK);
            let part = &data[(at - offset) as usize..(upto - offset) as usize];
            let mut block = if part.len() == BLOCK as usize { vec![0; part.len()] } else { self.block(number)? };
            block[within..within + part.len()].copy_from_slice(part);
            let versions = self.volatile.entry(number).or_default();
            if versions.len() == VERSIONS_MAX {
                versions.remove(0);
            }
            versions.push(block);
            at = upto;
        }
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.lies {
            return Ok(());
        }
        for (number, versions) in std::mem::take(&mut self.volatile) {
            if let Some(block) = versions.last() {
                self.image.write_all_at(block, number * BLOCK)?;
            }
        }
        Ok(())
    }

    fn cut(&mut self, seed: u64) -> std::io::Result<Cut> {
        let mut dice = Dice::new(seed);
        let mut cut = Cut::default();
        // Some cuts lose nearly all, some nearly nothing. A liar loses all: the filesystem is sound, and old.
        let keep_in_8 = if self.lies { 0 } else { dice.below(9) };
        for (number, versions) in std::mem::take(&mut self.volatile) {
            cut.unflushed += 1;
            let mut block = vec![0; BLOCK as usize];
            self.image.read_exact_at(&mut block, number * BLOCK)?;
            let newest = versions.len() - 1;
            // ext4 has its superblock, of two sectors, written whole, or asks for e2fsck.
            if !self.lies && number != 0 && dice.once_in(4) {
                cut.torn += 1;
                for (n, sector) in block.chunks_mut(SECTOR).enumerate() {
                    let choice = dice.below(versions.len() as u64 + 1) as usize;
                    if let Some(version) = versions.get(choice) {
                        sector.copy_from_slice(&version[n * SECTOR..(n + 1) * SECTOR]);
                    }
                }
            } else if dice.below(8) < keep_in_8 {
                cut.kept += 1;
                block.clone_from(
                    &versions[if dice.once_in(4) { dice.below(newest as u64 + 1) as usize } else { newest }],
                );
            } else {
                cut.dropped += 1;
                continue;
            }
            self.image.write_all_at(&block, number * BLOCK)?;
        }
        self.alive = false;
        Ok(cut)
    }
}

struct Served(Arc<Mutex<State>>);

const TTL: Duration = Duration::from_secs(1);

impl Served {
    fn attr(&self, ino: u64) -> FileAttr {
        let (kind, perm) = if ino == 1 { (FileType::Directory, 0o700) } else { (FileType::RegularFile, 0o600) };
        let size = if ino == 1 { 0 } else { self.0.lock().unwrap().size };
        let epoch = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size / 512,
            atime: epoch,
            mtime: epoch,
            ctime: epoch,
            crtime: epoch,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK as u32,
            flags: 0,
        }
    }

    /// Does something with a disk that has power.
    fn with<T>(&self, ino: INodeNo, act: impl FnOnce(&mut State) -> std::io::Result<T>) -> Result<T, Errno> {
        let mut state = self.0.lock().unwrap();
        if !state.alive || ino.0 != state.ino {
            return Err(Errno::EIO);
        }
        act(&mut state).map_err(|_| Errno::EIO)
    }
}

impl Filesystem for Served {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let ino = self.0.lock().unwrap().ino;
        if name.to_str() == Some(&format!("disk{ino}")) {
            reply.entry(&TTL, &self.attr(ino), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino.0));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.with(ino, |state| state.read(offset, u64::from(size))) {
            Ok(data) => reply.data(&data),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.with(ino, |state| state.write(offset, data)) {
            Ok(()) => reply.written(data.len() as u32),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.with(ino, State::flush) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }
}

/// The disk; it is gone when dropped, and the image is what survived.
pub struct Disk {
    state: Arc<Mutex<State>>,
    at: PathBuf,
    session: Option<BackgroundSession>,
}

impl Disk {
    /// Puts a disk before `image`, as a file in the directory `at`, which exists.
    pub fn new(image: &Path, at: &Path) -> Self {
        let image = File::options().read(true).write(true).open(image).unwrap();
        let size = image.metadata().unwrap().len();
        let state = State { image, size, lies: false, volatile: BTreeMap::new(), alive: true, ino: 2 };
        let state = Arc::new(Mutex::new(state));
        let device = File::options().read(true).write(true).open("/dev/fuse").expect("/dev/fuse");
        let data = {
            use std::os::fd::AsRawFd;
            format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd())
        };
        let data = std::ffi::CString::new(data).unwrap();
        rustix::mount::mount("disk", at, "fuse.disk", MountFlags::empty(), Some(data.as_c_str())).unwrap();
        let mut config = Config::default();
        config.n_threads = Some(2);
        let session =
            Session::from_fd(Served(state.clone()), device.into(), SessionACL::Owner, config).unwrap().spawn().unwrap();
        Self { state, at: at.to_owned(), session: Some(session) }
    }

    /// The file that is the disk, until the next cut.
    pub fn file(&self) -> PathBuf {
        self.at.join(format!("disk{}", self.state.lock().unwrap().ino))
    }

    /// From now on a flush is answered, and not done: nothing above can keep its promises.
    pub fn lies(&self) {
        self.state.lock().unwrap().lies = true;
    }

    /// Cuts the power.
    pub fn cut(&self, seed: u64) -> Cut {
        self.state.lock().unwrap().cut(seed).unwrap()
    }

    /// Power is back: the same disk, by another name.
    pub fn restore(&self) {
        let mut state = self.state.lock().unwrap();
        state.alive = true;
        state.ino += 1;
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.at, UnmountFlags::DETACH);
        // The session ends when the last user of the mount has gone, which is not waited for: a loop device may let go late.
        drop(self.session.take());
    }
}
