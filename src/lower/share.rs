//! The real share: how its inodes are found, and the [`Lower`] it offers.
//!
//! Invariant: every operation reaches its inode by a descriptor that was checked to be that inode, on the share's own
//! filesystem. The share is entered through a private clone of its mount, without the mounts below it, so nothing here
//! can cross into another filesystem, the daemon's own mount included, wherever that is mounted.

use std::any::Any;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags, fstatvfs, fsync, openat, openat2, readlinkat, statx, syncfs,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::Step;
use super::attr::{stat_fd, stat_name};
use super::creds::{ActingAs, As};
use super::dir::OpenDir;
use super::fdcache::{FdCache, Node};
use super::file::OpenFile;
use super::handle::{handle_of, has_xattr_at, open_handle};
use super::number::{self, ByNumber};
use super::probe::{self, RECORD_TRUSTED, RECORD_USER};
use super::project::project_of;
use super::quota::{QuotaOf, quota_at};
use super::{namespace, path, setattr, xattr};
use crate::ports::{
    Attr, Caller, FileKind, Keep, Lower, LowerDir, LowerError, LowerFeatures, LowerFile, LowerResult, Names, NewNode,
    OpenFlags, Quota, RenameMode, SetAttr, SpaceInfo, if_set,
};
use crate::types::{FileId, Inode, RawHandle};

/// Descriptors kept for known inodes, unless said otherwise.
pub const DESCRIPTORS_MAX_DEFAULT: usize = 8_192;

/// `linux/stat.h`: `stx_mnt_id` is to be a number that is not used again.
const STATX_MNT_ID_UNIQUE: u32 = 0x4000;

/// A directory tree of a local filesystem.
pub struct Share {
    root: Arc<Node>,
    /// The root open for reading: what `open_by_handle_at` wants for a mount.
    mount: OwnedFd,
    /// Used by nothing but `sync_all`, because the kernel reports a write-back error once for each open file.
    sync: Mutex<OwnedFd>,
    /// How often `sync_all` has failed.
    sync_failures: AtomicU64,
    dev: (u32, u32),
    /// Whether the mount is our own clone, in which there is nothing to cross into.
    private: bool,
    features: LowerFeatures,
    instance: Option<u64>,
    by_number: ByNumber,
    cache: FdCache,
    names: OnceLock<Weak<dyn Names>>,
}

impl Share {
    /// Opens the directory `path` as a share, keeping at most [`DESCRIPTORS_MAX_DEFAULT`] descriptors.
    ///
    /// Fails with `ENOTDIR` for anything but a directory, with `EOPNOTSUPP` where the filesystem has no file handles, and
    /// with `EPERM` where the process is not root.
    pub fn open(path: &Path) -> LowerResult<Self> {
        Self::open_with(path, DESCRIPTORS_MAX_DEFAULT)
    }

    /// As [`Share::open`], with a bound on the descriptors kept for known inodes. Raises the process's soft limit of open
    /// files to the hard one, and keeps to half of that whatever was asked.
    pub fn open_with(path: &Path, descriptors_max: usize) -> LowerResult<Self> {
        let plain =
            openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).step("open")?;
        // The clone's would be another each time.
        let instance = instance_of(&plain);
        let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let (root_fd, private) = match open_tree(&plain, c"", clone) {
            Ok(fd) => (fd, true),
            // Refused in some containers and for unbindable mounts; then every step is checked for mount crossings.
            Err(errno) => {
                tracing::warn!(%errno, "no private clone of the share's mount; watching for mount crossings instead");
                (plain, false)
            }
        };
        let open_root =
            || openat(&root_fd, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).step("open");
        let (mount, sync) = (open_root()?, Mutex::new(open_root()?));
        let stat = stat_fd(&root_fd)?;
        let inode = Inode { id: stat.id, handle: handle_of(&root_fd)? };
        // Issuing a handle proves nothing; it must be usable too.
        if stat_fd(open_handle(mount.as_fd(), &inode.handle, OFlags::PATH)?)?.id != stat.id {
            return Err(LowerError::from_errno("open_by_handle_at", libc::EOPNOTSUPP));
        }
        let features = probe::features(&mount)?;
        let by_number = ByNumber::of(mount.as_fd())?;
        let cache = FdCache::new(descriptors_max.min(raise_descriptor_limit() / 2));
        let root = Arc::new(Node { fd: root_fd, inode, kind: FileKind::Directory });
        Ok(Self {
            root,
            mount,
            sync,
            sync_failures: AtomicU64::new(0),
            dev: stat.dev,
            private,
            features,
            instance,
            by_number,
            cache,
            names: OnceLock::new(),
        })
    }

    /// Whom to ask for names that the kernel does not know. Once; not kept alive.
    pub fn set_names(&self, names: Weak<dyn Names>) {
        // There is one for the share's life.
        let _ = self.names.set(names);
    }

    pub(super) fn names(&self) -> Option<Arc<dyn Names>> {
        self.names.get()?.upgrade()
    }

    /// Descriptors kept for known inodes just now.
    pub fn descriptors_cached(&self) -> usize {
        self.cache.len()
    }

    /// Closes all descriptors kept for known inodes; they are found again by handle.
    pub fn drop_cached_descriptors(&self) {
        self.cache.clear();
    }

    pub(super) fn root_node(&self) -> &Node {
        &self.root
    }

    pub(super) fn mount_fd(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }

    pub(super) fn dev(&self) -> (u32, u32) {
        self.dev
    }

    /// The node of an inode known by value; `ESTALE` if that inode is gone.
    pub(super) fn node(&self, inode: &Inode) -> LowerResult<Arc<Node>> {
        Ok(self.node_and_attr(inode)?.0)
    }

    /// Also the attributes, where they had to be read anyway.
    fn node_and_attr(&self, inode: &Inode) -> LowerResult<(Arc<Node>, Option<Attr>)> {
        if let Some(node) = self.cache.get(&inode.id).filter(|node| node.inode == *inode) {
            return Ok((node, None));
        }
        if *inode == self.root.inode {
            return Ok((Arc::clone(&self.root), None));
        }
        let fd = open_handle(self.mount.as_fd(), &inode.handle, OFlags::PATH)?;
        let stat = stat_fd(&fd)?;
        if stat.id != inode.id || stat.dev != self.dev {
            return Err(LowerError::from_errno("open_by_handle_at", libc::ESTALE));
        }
        let node = Arc::new(Node { fd, inode: *inode, kind: stat.attr.kind });
        Ok((self.keep(node, &stat.attr), Some(stat.attr)))
    }

    /// The node of the inode behind `fd`, an `O_PATH` descriptor: attributes, identity and handle all come from it.
    pub(super) fn adopt(&self, fd: OwnedFd) -> LowerResult<(Arc<Node>, Attr)> {
        let stat = stat_fd(&fd)?;
        if stat.dev != self.dev {
            // A btrfs subvolume: its inode numbers are others' too.
            return Err(LowerError::from_errno("openat", libc::EXDEV));
        }
        // Both descriptors are open now, so the number means the same inode in both, and its handle is the known one.
        if let Some(node) = self.cache.get(&stat.id) {
            return Ok((node, stat.attr));
        }
        let inode = Inode { id: stat.id, handle: handle_of(&fd)? };
        Ok((self.keep(Arc::new(Node { fd, inode, kind: stat.attr.kind }), &stat.attr), stat.attr))
    }

    /// Caches a node, unless that would keep the blocks of an unlinked file from being freed.
    fn keep(&self, node: Arc<Node>, attr: &Attr) -> Arc<Node> {
        if attr.nlink == 0 && node.kind == FileKind::Regular { node } else { self.cache.insert(node) }
    }

    /// Finds `name` in the directory `dir`.
    pub(super) fn find(&self, dir: BorrowedFd<'_>, name: &OsStr) -> LowerResult<(Arc<Node>, Attr)> {
        self.adopt(self.open_name(dir, name)?)
    }

    fn open_name(&self, dir: BorrowedFd<'_>, name: &OsStr) -> LowerResult<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if self.private {
            openat(dir, name, flags, Mode::empty()).step("openat")
        } else {
            openat2(dir, name, flags, Mode::empty(), ResolveFlags::NO_XDEV).step("openat2")
        }
    }

    /// Which inode `name` is just now, to forget it once it is unlinked. Nothing else may be built on this.
    pub(super) fn identity(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Option<FileId> {
        let stat = if self.private { stat_name(dir, name) } else { stat_fd(self.open_name(dir, name).ok()?) };
        stat.ok().map(|stat| stat.id)
    }

    /// Lets go of a file that lost a name: a cached descriptor would keep the blocks of an unlinked file allocated.
    /// Directories stay, so that a removed directory can still be looked at by those who are in it.
    pub(super) fn release_unlinked(&self, id: Option<FileId>) {
        if let Some(id) = id {
            self.cache.remove_if(&id, |node| node.kind == FileKind::Regular);
        }
    }

    /// Takes in a file that was just created, by its open descriptor.
    pub(super) fn describe(&self, fd: impl AsFd) -> LowerResult<(Inode, Attr)> {
        let stat = stat_fd(&fd)?;
        Ok((Inode { id: stat.id, handle: handle_of(&fd)? }, stat.attr))
    }

    /// Opens a regular file for I/O. The node's own descriptor keeps the inode, so the handle means the same one.
    pub(super) fn open_content(&self, node: &Node, flags: OFlags) -> LowerResult<OwnedFd> {
        match node.kind {
            FileKind::Regular => open_handle(self.mount.as_fd(), &node.inode.handle, flags),
            FileKind::Directory => Err(LowerError::from_errno("open", libc::EISDIR)),
            FileKind::Symlink => Err(LowerError::from_errno("open", libc::ELOOP)),
            _ => Err(LowerError::from_errno("open", libc::ENXIO)),
        }
    }
}

/// Raises the soft limit of open files to the hard one; returns it.
fn raise_descriptor_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        // Keeping the old limit is no failure: the cache adapts.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
    getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

/// `open(2)` flags for content. No `O_NONBLOCK` unless asked for: who meets a lease waits for it.
pub(super) fn content_flags(flags: OpenFlags) -> OFlags {
    let mut bits = match (flags.read, flags.write) {
        (true, true) => OFlags::RDWR,
        (false, true) => OFlags::WRONLY,
        (_, false) => OFlags::RDONLY,
    };
    bits |= OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOCTTY;
    bits.set(OFlags::TRUNC, flags.truncate);
    bits.set(OFlags::APPEND, flags.append);
    bits.set(OFlags::DIRECT, flags.direct);
    bits.set(OFlags::SYNC, flags.sync);
    bits.set(OFlags::NOATIME, flags.no_atime);
    bits.set(OFlags::NONBLOCK, flags.no_wait);
    bits
}

/// What the mount that `path` is on has no other mount has had since the machine was started, with that start: the kernel gives each mount a
/// number that it never gives again (`STATX_MNT_ID_UNIQUE`, Linux 6.8).
fn instance_of(path: &OwnedFd) -> Option<u64> {
    let unique = StatxFlags::from_bits_retain(STATX_MNT_ID_UNIQUE);
    let stat = statx(path, c"", AtFlags::EMPTY_PATH, unique).ok()?;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let known = stat.stx_mask & STATX_MNT_ID_UNIQUE != 0;
    let hash = blake3::hash(format!("{} {}", boot.trim(), stat.stx_mnt_id).as_bytes());
    let (first, _) = hash.as_bytes().split_first_chunk::<8>()?;
    known.then(|| u64::from_le_bytes(*first))
}

impl Lower for Share {
    fn features(&self) -> LowerFeatures {
        self.features
    }

    fn root(&self) -> Inode {
        self.root.inode
    }

    fn space(&self) -> LowerResult<SpaceInfo> {
        let vfs = fstatvfs(&self.mount).step("fstatvfs")?;
        Ok(SpaceInfo {
            fragment_size: vfs.f_frsize,
            blocks: vfs.f_blocks,
            blocks_free: vfs.f_bfree,
            blocks_available: vfs.f_bavail,
            files: vfs.f_files,
            files_free: vfs.f_ffree,
            block_size: vfs.f_bsize,
            name_len_max: vfs.f_namemax,
        })
    }

    fn lookup(&self, dir: &Inode, name: &OsStr) -> LowerResult<(Inode, Attr)> {
        namespace::check_name(name)?;
        if *dir == self.root.inode && name == ".." {
            return Ok((*dir, self.stat(dir)?));
        }
        let (node, attr) = self.find(self.node(dir)?.fd(), name)?;
        Ok((node.inode, attr))
    }

    fn unclaimed(&self, dir: &Inode, name: &OsStr) -> LowerResult<Option<FileId>> {
        namespace::check_name(name)?;
        let Ok(c_name) = CString::new(name.as_bytes()) else { return Ok(None) };
        if !self.private {
            return Ok(None);
        }
        let dir = self.node(dir)?;
        let stat = stat_name(dir.fd(), name)?;
        if stat.dev != self.dev || stat.attr.kind != FileKind::Regular || stat.attr.nlink != 1 {
            return Ok(None);
        }
        let Ok(record) = CString::new(self.record_xattr()) else { return Ok(None) };
        Ok((has_xattr_at(dir.fd(), &c_name, &record)? == Some(false)).then_some(stat.id))
    }

    fn by_handle(&self, handle: &RawHandle) -> LowerResult<(Inode, Attr)> {
        let fd = open_handle(self.mount.as_fd(), handle, OFlags::PATH)?;
        match self.adopt(fd) {
            Ok((node, attr)) => Ok((node.inode, attr)),
            Err(error) if error.errno() == libc::EXDEV => Err(LowerError::from_errno(error.op, libc::ESTALE)),
            Err(error) => Err(error),
        }
    }

    fn by_number(&self, ino: u64) -> LowerResult<(Inode, Attr)> {
        let (inode, attr) = self.by_handle(&self.by_number.handle(self.mount.as_fd(), ino)?)?;
        if inode.id.ino != ino {
            return Err(number::stale());
        }
        if attr.kind == FileKind::Directory && !number::is_inside(self, &*self.node(&inode)?)? {
            self.cache.remove_if(&inode.id, |_| true);
            return Err(number::stale());
        }
        Ok((inode, attr))
    }

    fn path_of(&self, node: &Inode) -> LowerResult<Option<PathBuf>> {
        path::path_of(self, &*self.node(node)?)
    }

    fn stat(&self, node: &Inode) -> LowerResult<Attr> {
        let (node, fresh) = self.node_and_attr(node)?;
        let attr = match fresh {
            Some(attr) => attr,
            None => stat_fd(node.fd())?.attr,
        };
        if attr.nlink == 0 {
            self.release_unlinked(Some(node.inode.id));
        }
        Ok(attr)
    }

    fn pin(&self, node: &Inode) -> LowerResult<Arc<dyn Any + Send + Sync>> {
        Ok(self.node(node)?)
    }

    fn set_attr(&self, node: &Inode, changes: &SetAttr) -> LowerResult<Attr> {
        let node = self.node(node)?;
        setattr::apply(&node, changes)?;
        Ok(stat_fd(node.fd())?.attr)
    }

    fn read_link(&self, node: &Inode) -> LowerResult<OsString> {
        let target = readlinkat(self.node(node)?.fd(), c"", Vec::new()).step("readlinkat")?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    fn make(
        &self,
        dir: &Inode,
        name: &OsStr,
        what: NewNode<'_>,
        mode: u32,
        who: &Caller,
    ) -> LowerResult<(Inode, Attr)> {
        namespace::make(self, dir, name, what, mode, who)
    }

    fn create(
        &self,
        dir: &Inode,
        name: &OsStr,
        mode: u32,
        flags: OpenFlags,
        who: &Caller,
    ) -> LowerResult<(Inode, Attr, Arc<dyn LowerFile>)> {
        let (inode, attr, fd) = namespace::create(self, dir, name, mode, flags, who)?;
        Ok((inode, attr, Arc::new(OpenFile::new(fd, flags.direct))))
    }

    fn link(&self, node: &Inode, dir: &Inode, name: &OsStr) -> LowerResult<Attr> {
        namespace::link(self, node, dir, name)
    }

    fn rename(&self, dir: &Inode, name: &OsStr, to_dir: &Inode, to: &OsStr, mode: RenameMode) -> LowerResult<()> {
        namespace::rename(self, dir, name, to_dir, to, mode)
    }

    fn unlink(&self, dir: &Inode, name: &OsStr) -> LowerResult<()> {
        namespace::unlink(self, dir, name)
    }

    fn remove_dir(&self, dir: &Inode, name: &OsStr) -> LowerResult<()> {
        namespace::remove_dir(self, dir, name)
    }

    fn open(&self, node: &Inode, flags: OpenFlags) -> LowerResult<Arc<dyn LowerFile>> {
        let fd = self.open_content(&*self.node(node)?, content_flags(flags))?;
        Ok(Arc::new(match flags.keep {
            Keep::Nothing => OpenFile::new(fd, flags.direct),
            keep => OpenFile::keeping(fd, keep),
        }))
    }

    fn open_dir(&self, node: &Inode) -> LowerResult<Arc<dyn LowerDir>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(self.node(node)?.fd(), c".", flags, Mode::empty()).step("open")?;
        Ok(Arc::new(OpenDir::new(fd)))
    }

    fn xattr(&self, node: &Inode, name: &OsStr) -> LowerResult<Vec<u8>> {
        xattr::get(self.node(node)?.fd(), name)
    }

    fn set_xattr(&self, node: &Inode, name: &OsStr, value: &[u8], flags: i32) -> LowerResult<()> {
        xattr::set(self.node(node)?.fd(), name, value, flags)
    }

    fn set_acl(&self, node: &Inode, value: &[u8], flags: i32, who: &Caller) -> LowerResult<()> {
        let node = self.node(node)?;
        let _as_requester = ActingAs::new(who, As::MakerWithGroups)?;
        xattr::set(node.fd(), OsStr::new("system.posix_acl_access"), value, flags)
    }

    fn project(&self, node: &Inode) -> LowerResult<u32> {
        // Without waiting: who asks is no user of the file, and may be the one who has it leased.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOATIME;
        project_of(self.open_content(&*self.node(node)?, flags)?.as_fd())
    }

    fn user_quota(&self, uid: u32) -> LowerResult<Option<Quota>> {
        quota_at(self.mount.as_fd(), QuotaOf::User(uid)).step("quotactl_fd(Q_GETQUOTA)")
    }

    fn list_xattrs(&self, node: &Inode) -> LowerResult<Vec<OsString>> {
        xattr::list(self.node(node)?.fd())
    }

    fn remove_xattr(&self, node: &Inode, name: &OsStr) -> LowerResult<()> {
        xattr::remove(self.node(node)?.fd(), name)
    }

    fn record_xattr(&self) -> &'static str {
        if self.features.trusted_xattrs { RECORD_TRUSTED } else { RECORD_USER }
    }

    fn load_record(&self, node: &Inode) -> LowerResult<Option<Vec<u8>>> {
        if_set(self.xattr(node, OsStr::new(self.record_xattr())))
    }

    fn instance(&self) -> Option<u64> {
        self.instance
    }

    fn save_record(&self, node: &Inode, record: &[u8]) -> LowerResult<()> {
        self.set_xattr(node, OsStr::new(self.record_xattr()), record, 0)
    }

    fn save_record_through(&self, node: &Inode, file: &dyn LowerFile, record: &[u8]) -> LowerResult<()> {
        match file.as_fd() {
            Some(fd) => xattr::set_open(fd, OsStr::new(self.record_xattr()), record),
            None => self.save_record(node, record),
        }
    }

    /// Cheapest with the file's own open descriptor ([`LowerFile::sync`]), which also sees write-back errors from before
    /// this call that somebody else was told of. Symlinks and special nodes take a `syncfs`.
    fn sync_node(&self, node: &Inode) -> LowerResult<()> {
        let node = self.node(node)?;
        if matches!(node.kind, FileKind::Regular | FileKind::Directory) {
            // Without waiting: if this process holds a write lease on the file, waiting for it would be for ever.
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOATIME;
            match open_handle(self.mount.as_fd(), &node.inode.handle, flags) {
                Ok(fd) => return fsync(&fd).step("fsync"),
                Err(error) if error.errno() == Errno::WOULDBLOCK.raw_os_error() => {}
                Err(error) => return Err(error),
            }
        }
        syncfs(&self.mount).step("syncfs")
    }

    /// The kernel tells a write-back error to one call only. Calls that were waiting for that one get it too, but whoever
    /// gets it must doubt everything that no call before had synced.
    fn sync_all(&self) -> LowerResult<()> {
        let failures_before = self.sync_failures.load(Ordering::Acquire);
        let sync = self.sync.lock();
        let answer = syncfs(&*sync).step("syncfs");
        if answer.is_err() {
            self.sync_failures.fetch_add(1, Ordering::Release);
        } else if self.sync_failures.load(Ordering::Acquire) != failures_before {
            return Err(LowerError::from_errno("syncfs", libc::EIO));
        }
        answer
    }
}
