//! Port to the share below the mount: its namespace, its content, and what tiering needs of it.
//!
//! Inodes are named by value ([`Inode`]); no call takes a path, so nothing here can be redirected by a rename.
//! All calls block on local I/O only. Names and values are raw bytes as the kernel gives them.

use std::any::Any;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::types::{FileId, Inode, RawHandle, Timestamp};

/// A call to the lower filesystem that failed: which one, and the kernel's reason.
#[derive(Debug, thiserror::Error)]
#[error("{op}: {source}")]
pub struct LowerError {
    /// The system call or step, in the words of its man page.
    pub op: &'static str,
    #[source]
    pub source: io::Error,
}

impl LowerError {
    /// The kernel's error number (`EIO` where there was none).
    pub fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(libc::EIO)
    }

    /// An error made here rather than by the kernel.
    pub fn from_errno(op: &'static str, errno: i32) -> Self {
        Self { op, source: io::Error::from_raw_os_error(errno) }
    }
}

pub type LowerResult<T> = Result<T, LowerError>;

/// What kind of thing an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    Regular,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

/// What `stat` says of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    pub ino: u64,
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky (`mode & 07777`).
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    /// Device number of a device inode (`makedev` encoding), 0 otherwise.
    pub rdev: u64,
    /// Bytes.
    pub size: u64,
    /// Allocated space in units of 512 bytes.
    pub blocks: u64,
    /// Preferred I/O size in bytes.
    pub block_size: u32,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    /// Birth time; zero where the filesystem keeps none.
    pub btime: Timestamp,
    /// Immutable (`chattr +i`) or append-only (`+a`): left alone by tiering (R32).
    pub sealed: bool,
    /// Somebody may be changing it without anybody being told: to be asked for again soon. Never said by the share itself.
    pub fleeting: bool,
}

/// What the lower filesystem can do, found by trying at mount time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LowerFeatures {
    /// Records live in `trusted.*`; otherwise in `user.*`.
    pub trusted_xattrs: bool,
    /// `fallocate(FALLOC_FL_PUNCH_HOLE)` frees blocks.
    pub punch_hole: bool,
    /// `fcntl(F_SETLEASE)` works, so a release can be proven exclusive.
    pub leases: bool,
    /// Nothing may be written.
    pub read_only: bool,
}

/// `statfs(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceInfo {
    /// Bytes in a fragment, the unit of the three block counts.
    pub fragment_size: u64,
    pub blocks: u64,
    pub blocks_free: u64,
    pub blocks_available: u64,
    pub files: u64,
    pub files_free: u64,
    /// Preferred I/O size in bytes.
    pub block_size: u64,
    pub name_len_max: u64,
}

/// What somebody uses of a filesystem, and may. Limits of 0 are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Bytes allocated, and how many may be: for a while, and at all.
    pub bytes: u64,
    pub bytes_soft: u64,
    pub bytes_hard: u64,
    pub inodes: u64,
    pub inodes_soft: u64,
    pub inodes_hard: u64,
}

impl Quota {
    /// The lower one of the limits of bytes, where there is one.
    pub fn bytes_bound(&self) -> Option<u64> {
        [self.bytes_soft, self.bytes_hard].into_iter().filter(|limit| *limit > 0).min()
    }
}

/// Who asked: creating calls act as this user, so that ownership, quota and setgid directories come out right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    /// Thread id of the requester as the daemon sees it; 0 when unknown.
    pub pid: u32,
    /// umask to apply where no default ACL does.
    pub umask: u32,
}

/// A user who comes in by another way than the kernel, so that nobody has checked yet what they may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Mode bits that what they make does not get, where no default ACL says otherwise.
    pub umask: u32,
}

/// What tiering leaves alone of the privileges of a file (setuid, setgid, file capabilities), which every change of content costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// New content: none.
    #[default]
    Nothing,
    /// Those it has: the same content comes or goes.
    Own,
    /// Also those that an interrupted transfer left beside it; only while its content is remote, so that nobody else's can have come.
    OwnAndLeft,
}

/// How to open content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFlags {
    pub read: bool,
    pub write: bool,
    pub truncate: bool,
    pub append: bool,
    /// `O_DIRECT`.
    pub direct: bool,
    /// `O_SYNC` or `O_DSYNC` (both become `O_SYNC`).
    pub sync: bool,
    /// `O_EXCL` (with create).
    pub exclusive: bool,
    /// Opened by the kernel to be executed (`FMODE_EXEC`); the share is not told.
    pub execute: bool,
    /// `O_NOATIME`: tiering's own reads leave no trace.
    pub no_atime: bool,
    /// Fails with `EWOULDBLOCK` where somebody's lease would have to be waited for.
    pub no_wait: bool,
    /// Which privileges of the file outlive what is written through this descriptor.
    pub keep: Keep,
}

/// What to make in a directory.
#[derive(Clone, Copy, Debug)]
pub enum NewNode<'a> {
    Directory,
    Symlink(&'a OsStr),
    /// A regular file, fifo, socket or device, by `mknod(2)`: kind and device number.
    Special(FileKind, u64),
}

/// How `rename` treats an existing target (`renameat2(2)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    Replace,
    NoReplace,
    Exchange,
    /// `RENAME_WHITEOUT`.
    Whiteout,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    Now,
    At(Timestamp),
}

/// The changes of one `setattr`; `None` leaves a field alone. Applied in the order size, owner, mode, times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
}

/// `SEEK_DATA` or `SEEK_HOLE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeekTo {
    Data,
    Hole,
}

/// One directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntryRef<'a> {
    pub name: &'a OsStr,
    pub ino: u64,
    /// `None` where the filesystem does not say (`DT_UNKNOWN`).
    pub kind: Option<FileKind>,
    /// Offset of the entry after this one, as the lower filesystem numbers them (`d_off`); valid across restarts.
    pub next_offset: i64,
}

/// One directory entry, to keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    pub name: OsString,
    pub ino: u64,
    pub kind: Option<FileKind>,
    pub next_offset: i64,
}

/// An attribute's value, or that it is not set.
pub fn if_set(found: LowerResult<Vec<u8>>) -> LowerResult<Option<Vec<u8>>> {
    match found {
        Err(error) if error.errno() == libc::ENODATA => Ok(None),
        found => found.map(Some),
    }
}

/// An open lower file. Closing is dropping.
pub trait LowerFile: Send + Sync {
    /// Reads until `buf` is full or the file ends; returns the bytes read.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> LowerResult<usize>;
    /// Writes all of `data`. With [`OpenFlags::append`], at the end whatever `offset` says.
    fn write_at(&self, data: &[u8], offset: u64) -> LowerResult<()>;
    /// Writes pieces one after the other from `offset` on. After an error, some of it may be there.
    fn write_pieces(&self, pieces: &[&[u8]], offset: u64) -> LowerResult<()> {
        let mut at = offset;
        pieces.iter().try_for_each(|piece| {
            self.write_at(piece, at)?;
            at += piece.len() as u64;
            Ok(())
        })
    }
    fn set_len(&self, len: u64) -> LowerResult<()>;
    /// `fallocate(2)` with the kernel's mode bits.
    fn allocate(&self, mode: i32, offset: u64, len: u64) -> LowerResult<()>;
    fn seek(&self, offset: u64, to: SeekTo) -> LowerResult<u64>;
    /// `copy_file_range(2)`; returns bytes copied. Both must come from the same `Lower`.
    fn copy_to(&self, offset: u64, to: &dyn LowerFile, to_offset: u64, len: u64) -> LowerResult<usize>;
    /// `fsync`, or `fdatasync` with `data_only`.
    fn sync(&self, data_only: bool) -> LowerResult<()>;
    fn stat(&self) -> LowerResult<Attr>;
    /// Ends the changes made so far, as closing does: the privileges that they cost are back ([`Keep`]), and with [`Keep::OwnAndLeft`] those that
    /// an interrupted transfer has left beside the file. To be called before a record says that nobody will change the content any more. Not durable on return.
    fn put_back_privileges(&self) -> LowerResult<()> {
        Ok(())
    }
    /// An extended attribute; `ENODATA` where it is not set.
    fn xattr(&self, name: &OsStr) -> LowerResult<Vec<u8>>;
    /// Acts with the uid of the file's owner, so that blocks which the filesystem keeps for root stay root's.
    fn as_owner(&self, act: &mut dyn FnMut()) -> LowerResult<()>;
    /// The descriptor the kernel may read and write directly (FUSE passthrough); `None` in a simulation.
    fn as_fd(&self) -> Option<BorrowedFd<'_>>;
    /// Deallocates all of the content and keeps the size (`PUNCH_HOLE | KEEP_SIZE`). mtime changes; the caller restores it.
    fn punch_all(&self) -> LowerResult<()>;
    /// Asks the kernel whether this is the only open file of the inode, mappings and other processes included
    /// (`F_SETLEASE F_WRLCK`). While the returned guard lives, other openers wait. `None`: somebody else has it.
    /// The caller must hold no other descriptor (but `O_PATH`) or passthrough backing of the inode.
    fn try_exclusive(&self) -> LowerResult<Option<Box<dyn Send + Sync>>>;
    /// Asks whether nobody has the inode open or mapped for writing (`F_SETLEASE F_RDLCK`, given back at once).
    /// `self` must be open for reading only.
    fn nobody_writes(&self) -> LowerResult<bool>;
}

/// Entries that [`LowerDir::read`] keeps at a time.
const DIR_ENTRIES_MAX: usize = 1024;

/// An open lower directory.
pub trait LowerDir: Send + Sync {
    /// Gives `take` the entries from `offset` on (0, or some entry's `next_offset`), "." and ".." included, until it says that it has
    /// no room for the one it got, or there are no more. From 0, the directory is read as it is now.
    fn each(&self, offset: i64, take: &mut dyn FnMut(&DirEntryRef<'_>) -> bool) -> LowerResult<()>;

    /// Reads what comes next while nobody waits for it; only speed depends on it.
    fn read_ahead(&self) {}

    /// As many entries from `offset` on as memory is to be spent on; empty at the end.
    fn read(&self, offset: i64) -> LowerResult<Vec<DirEntry>> {
        let mut entries = Vec::new();
        self.each(offset, &mut |entry| {
            let full = entries.len() == DIR_ENTRIES_MAX;
            if !full {
                let DirEntryRef { name, ino, kind, next_offset } = *entry;
                entries.push(DirEntry { name: name.to_owned(), ino, kind, next_offset });
            }
            full
        })?;
        Ok(entries)
    }
    fn sync(&self, data_only: bool) -> LowerResult<()>;
}

/// Mode bits of [`LowerFile::allocate`] that free blocks and keep the size.
pub const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

/// Tells where files were seen. The kernel knows the name of a file only while somebody who came by it has not been forgotten.
pub trait Names: Send + Sync {
    /// The number of a directory and the name there; perhaps of a while ago. Blocks.
    fn name_of(&self, file: FileId) -> Option<(u64, OsString)>;
}

/// The share below the mount.
pub trait Lower: Send + Sync {
    fn features(&self) -> LowerFeatures;
    fn root(&self) -> Inode;
    fn space(&self) -> LowerResult<SpaceInfo>;

    /// Finds `name` in `dir`, following nothing. "." and ".." work for directories; ".." of the root is the root.
    fn lookup(&self, dir: &Inode, name: &OsStr) -> LowerResult<(Inode, Attr)>;
    /// Which file `name` is, if it is a regular one with one name and without a record; `None`: look closer.
    fn unclaimed(&self, dir: &Inode, name: &OsStr) -> LowerResult<Option<FileId>>;
    /// Finds an inode again by a handle stored earlier; `ESTALE` if it is gone or was reused.
    fn by_handle(&self, handle: &RawHandle) -> LowerResult<(Inode, Attr)>;
    /// Finds an inode by its number alone; `ESTALE` if there is none, if it is a directory beside the share, or where the
    /// filesystem cannot be asked. An unlinked inode is found while somebody has it open. The caller must compare births: the
    /// number may have been another file's before.
    fn by_number(&self, ino: u64) -> LowerResult<(Inode, Attr)>;
    /// A path of the inode relative to the share, as the kernel knows it just now; for people and object names only.
    /// `None` for an unlinked inode.
    fn path_of(&self, node: &Inode) -> LowerResult<Option<std::path::PathBuf>>;
    fn stat(&self, node: &Inode) -> LowerResult<Attr>;
    /// Keeps an inode, and so its number, from being used for another one while the value lives, with or without a name. Opens nothing. Where
    /// numbers are never used twice there is nothing to keep.
    fn pin(&self, _node: &Inode) -> LowerResult<Arc<dyn Any + Send + Sync>> {
        Ok(Arc::new(()))
    }
    /// The quota project of a regular file, as it is just now; 0 where the filesystem has none. `EWOULDBLOCK`: somebody holds a lease on the file.
    fn project(&self, _node: &Inode) -> LowerResult<u32> {
        Ok(0)
    }
    /// What a user has allocated on the share's filesystem, and may; `None`: it keeps no quotas of users, or nothing of this one.
    fn user_quota(&self, _uid: u32) -> LowerResult<Option<Quota>> {
        Ok(None)
    }
    fn set_attr(&self, node: &Inode, changes: &SetAttr) -> LowerResult<Attr>;
    fn read_link(&self, node: &Inode) -> LowerResult<OsString>;
    fn make(&self, dir: &Inode, name: &OsStr, what: NewNode<'_>, mode: u32, who: &Caller)
    -> LowerResult<(Inode, Attr)>;
    /// `open(O_CREAT)`: creates `name` as `who`. Existing file: opened (unless `flags.exclusive`).
    fn create(
        &self,
        dir: &Inode,
        name: &OsStr,
        mode: u32,
        flags: OpenFlags,
        who: &Caller,
    ) -> LowerResult<(Inode, Attr, Arc<dyn LowerFile>)>;
    fn link(&self, node: &Inode, dir: &Inode, name: &OsStr) -> LowerResult<Attr>;
    fn rename(&self, dir: &Inode, name: &OsStr, to_dir: &Inode, to: &OsStr, mode: RenameMode) -> LowerResult<()>;
    fn unlink(&self, dir: &Inode, name: &OsStr) -> LowerResult<()>;
    fn remove_dir(&self, dir: &Inode, name: &OsStr) -> LowerResult<()>;
    /// Opens a regular file's content as the daemon (the kernel has checked permissions).
    fn open(&self, node: &Inode, flags: OpenFlags) -> LowerResult<Arc<dyn LowerFile>>;
    fn open_dir(&self, node: &Inode) -> LowerResult<Arc<dyn LowerDir>>;

    /// Extended attributes as they are below; the record's name is filtered by the caller, see [`Lower::record_xattr`].
    fn xattr(&self, node: &Inode, name: &OsStr) -> LowerResult<Vec<u8>>;
    fn set_xattr(&self, node: &Inode, name: &OsStr, value: &[u8], flags: i32) -> LowerResult<()>;
    /// Sets `system.posix_acl_access` as `who`: on a file or directory with setgid the bit stays only if they are in its group
    /// or may keep it (`CAP_FSETID`).
    fn set_acl(&self, node: &Inode, value: &[u8], flags: i32, who: &Caller) -> LowerResult<()>;
    fn list_xattrs(&self, node: &Inode) -> LowerResult<Vec<OsString>>;
    fn remove_xattr(&self, node: &Inode, name: &OsStr) -> LowerResult<()>;

    /// Name of the xattr that holds records on this filesystem.
    fn record_xattr(&self) -> &'static str;
    /// The stored record, not decoded; `None` where there is none.
    fn load_record(&self, node: &Inode) -> LowerResult<Option<Vec<u8>>>;
    /// A number that stays as long as the filesystem below is mounted as it is: across a restart of the daemon, not across its own unmounting or a
    /// power loss. `None`: it cannot be told.
    fn instance(&self) -> Option<u64> {
        None
    }
    /// Stores a record. Durable only after [`Lower::sync_node`] or [`Lower::sync_all`].
    fn save_record(&self, node: &Inode, record: &[u8]) -> LowerResult<()>;
    /// As [`Lower::save_record`], by way of `file`, which is the inode, open: cheaper.
    fn save_record_through(&self, node: &Inode, _file: &dyn LowerFile, record: &[u8]) -> LowerResult<()> {
        self.save_record(node, record)
    }

    /// Makes one inode's data and attributes, record included, durable (`fsync`). Must not need write permission on the inode.
    fn sync_node(&self, node: &Inode) -> LowerResult<()>;
    /// Makes everything durable (`syncfs`). Reports write-back errors since the last call.
    fn sync_all(&self) -> LowerResult<()>;
}
