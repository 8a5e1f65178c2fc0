//! The kernel's requests, one method each: decode, call, reply.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::convert::{attr_to_kernel, device_from_kernel, kind_of_mode, kind_to_kernel, open_flags, set_time};
use super::drive::{NOTHING, Next, backing, caller, finish_empty, reply_xattr};
use super::errno::errno;
use crate::engine::Patience;
use crate::fs::{Asked, Call, Entry, Fs, FsResult, Opened, Try};
use crate::ports::{Attr, NewNode, RenameMode, SeekTo, SetAttr};

/// What is asked of the kernel; each is used if it is there.
const WANTED: [InitFlags; 14] = [
    InitFlags::FUSE_PASSTHROUGH,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_EXPORT_SUPPORT,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
    InitFlags::FUSE_AUTO_INVAL_DATA,
    InitFlags::FUSE_BIG_WRITES,
];
const MAX_WRITE: u32 = 1 << 20;
/// Requests the kernel sends in the background. Read-ahead of stubs takes four for each reader, and what is above waits in one line for all users: one's
/// slow recalls would hold up another's reads.
const MAX_BACKGROUND: u16 = 4096;

/// How long the kernel may keep attributes of files that mappings may be writing to.
const FLEETING_TTL: Duration = Duration::from_secs(1);

/// Serves one session.
pub struct Adapter {
    pub(super) fs: Arc<Fs>,
    ttl: Duration,
    /// Whether the kernel must have an answer to each opening of a directory.
    opens_directories: bool,
}

impl Adapter {
    /// `ttl_s`: seconds the kernel may keep entries and attributes.
    pub fn new(fs: Arc<Fs>, ttl_s: u64) -> Self {
        Self { fs, ttl: Duration::from_secs(ttl_s), opens_directories: true }
    }

    fn note(&self, call: Call) {
        self.fs.calls.note(call);
    }

    fn attr_ttl(&self, attr: &Attr) -> Duration {
        attr_ttl(self.ttl, attr)
    }

    fn reply_entry(&self, reply: ReplyEntry, result: FsResult<Entry>) {
        reply_entry(self.ttl, reply, result);
    }

    /// Makes a name, when there is room for it.
    fn make(&self, request: &Request, reply: ReplyEntry, make: impl Fn(&Fs) -> FsResult<Entry> + Send + 'static) {
        let ttl = self.ttl;
        self.drive(
            request,
            reply,
            move |fs, _, _| Try::Done(make(fs)),
            move |reply, result| reply_entry(ttl, reply, result),
        );
    }

    fn set(&self, request: &Request, id: INodeNo, changes: SetAttr, reply: ReplyAttr) {
        let (ttl, mut file) = (self.ttl, Asked::new(id.0));
        self.drive(
            request,
            reply,
            move |fs, _, patience| fs.try_set_attr(&mut file, &changes, patience),
            move |reply, result| match result {
                Ok(attr) => reply.attr(&attr_ttl(ttl, &attr), &attr_to_kernel(id.0, &attr)),
                Err(error) => reply.error(errno(&error)),
            },
        );
    }
}

fn reply_entry(ttl: Duration, reply: ReplyEntry, result: FsResult<Entry>) {
    match result {
        Ok(entry) => {
            let attr = attr_to_kernel(entry.id, &entry.attr);
            reply.entry_with_ttls(&attr_ttl(ttl, &entry.attr), &ttl, &attr, Generation(entry.generation));
        }
        Err(error) => reply.error(errno(&error)),
    }
}

/// A write clears setuid, setgid and capabilities below without our seeing it: such attributes are always asked for. What a mapping
/// may be changing is asked for each second: a log or database that is looked at often costs no more than that.
fn attr_ttl(ttl: Duration, attr: &Attr) -> Duration {
    match attr {
        attr if attr.mode & (libc::S_ISUID | libc::S_ISGID) != 0 => Duration::ZERO,
        attr if attr.fleeting => ttl.min(FLEETING_TTL),
        _ => ttl,
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for flag in WANTED {
            if config.add_capabilities(flag).is_err() {
                tracing::info!("this kernel lacks {flag:?}");
            }
        }
        // Linux 5.1.
        self.opens_directories = config.add_capabilities(InitFlags::FUSE_NO_OPENDIR_SUPPORT).is_err();
        // All four can only be refused for values out of the crate's range, and these are in it.
        let _ = config.set_max_stack_depth(1);
        let _ = config.set_max_write(MAX_WRITE);
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_congestion_threshold(MAX_BACKGROUND * 3 / 4);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.note(Call::Lookup);
        let result = self.fs.lookup(parent.0, name);
        if result.as_ref().is_err_and(Fs::is_absent) {
            // Node 0: the kernel may remember that there is nothing.
            return reply.entry(&self.ttl, &NOTHING, Generation(0));
        }
        self.reply_entry(reply, result);
    }

    fn forget(&self, _request: &Request, id: INodeNo, lookups: u64) {
        self.note(Call::Forget);
        self.fs.forget(id.0, lookups);
    }

    fn getattr(&self, _request: &Request, id: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.note(Call::Getattr);
        match self.fs.attr(id.0) {
            Ok(attr) => reply.attr(&self.attr_ttl(&attr), &attr_to_kernel(id.0, &attr)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn setattr(
        &self,
        request: &Request,
        id: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.note(Call::Setattr);
        let changes = SetAttr {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
        };
        self.set(request, id, changes, reply);
    }

    fn readlink(&self, _request: &Request, id: INodeNo, reply: ReplyData) {
        self.note(Call::Readlink);
        match self.fs.read_link(id.0) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.note(Call::Mknod);
        let Some(kind) = kind_of_mode(mode) else { return reply.error(Errno::EINVAL) };
        let (who, name, rdev) = (caller(request, umask), name.to_owned(), device_from_kernel(rdev));
        self.make(request, reply, move |fs| {
            fs.make(parent.0, &name, NewNode::Special(kind, rdev), mode & 0o7777, &who)
        });
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.note(Call::Mkdir);
        let (who, name) = (caller(request, umask), name.to_owned());
        self.make(request, reply, move |fs| fs.make(parent.0, &name, NewNode::Directory, mode & 0o7777, &who));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        self.note(Call::Symlink);
        let (who, name, target) = (caller(request, 0), name.to_owned(), target.as_os_str().to_owned());
        self.make(request, reply, move |fs| fs.make(parent.0, &name, NewNode::Symlink(&target), 0o777, &who));
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.note(Call::Unlink);
        let name = name.to_owned();
        self.remove(reply, move |fs, noted| fs.try_unlink(parent.0, &name, noted));
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.note(Call::Rmdir);
        finish_empty(reply, self.fs.remove_dir(parent.0, name));
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        to_parent: INodeNo,
        to: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.note(Call::Rename);
        let mode = match flags {
            RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            RenameFlags::RENAME_WHITEOUT => RenameMode::Whiteout,
            flags if flags.is_empty() => RenameMode::Replace,
            _ => return reply.error(Errno::EINVAL),
        };
        let (name, to) = (name.to_owned(), to.to_owned());
        self.remove(reply, move |fs, noted| fs.try_rename(parent.0, &name, to_parent.0, &to, mode, noted));
    }

    fn link(&self, _request: &Request, id: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.note(Call::Link);
        self.reply_entry(reply, self.fs.link(id.0, parent.0, name));
    }

    fn open(&self, request: &Request, id: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.note(Call::Open);
        let (flags, mut file) = (open_flags(flags.0), Asked::new(id.0).by(request.uid(), request.pid()));
        self.drive(
            request,
            reply,
            move |fs, reply, patience| fs.try_open(&mut file, flags, patience, reply),
            |reply, result| match result {
                Ok(Opened { fh, service }) => match backing(&service) {
                    Some(id) => reply.opened_passthrough(FileHandle(fh), FopenFlags::FOPEN_NOFLUSH, id),
                    None => reply.opened(FileHandle(fh), FopenFlags::FOPEN_NOFLUSH),
                },
                Err(error) => reply.error(errno(&error)),
            },
        );
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.note(Call::Create);
        let (flags, who, name) = (open_flags(flags), caller(request, umask), name.to_owned());
        let ttl = self.ttl;
        self.drive(
            request,
            reply,
            move |fs, reply, patience| fs.try_create(parent.0, &name, mode & 0o7777, flags, &who, patience, reply),
            move |reply, result| match result {
                Ok((entry, Opened { fh, service })) => {
                    let (attr, generation) = (attr_to_kernel(entry.id, &entry.attr), Generation(entry.generation));
                    let (fh, flags) = (FileHandle(fh), FopenFlags::FOPEN_NOFLUSH);
                    match backing(&service) {
                        Some(id) => reply.created_passthrough(&ttl, &attr, generation, fh, flags, id),
                        None => reply.created(&ttl, &attr, generation, fh, flags),
                    }
                }
                Err(error) => reply.error(errno(&error)),
            },
        );
    }

    fn read(
        &self,
        request: &Request,
        _id: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.note(Call::Read);
        let finish = |reply: ReplyData, result: FsResult<Bytes>| match result {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(errno(&error)),
        };
        match self.fs.next(self.fs.try_read(fh.0, offset, size)) {
            Next::Finish(result) => finish(reply, result),
            Next::Wait(wait) => {
                let at_hand = move |fs: &Fs| fs.read_held(fh.0, offset, size);
                let again = move |fs: &Fs, _: &ReplyData, _| fs.try_read(fh.0, offset, size);
                self.drive_on(request, wait, 0, reply, at_hand, again, finish);
            }
        }
    }

    fn write(
        &self,
        request: &Request,
        _id: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.note(Call::Write);
        let written = data.len() as u32;
        let finish = move |reply: ReplyWrite, result| match result {
            Ok(()) => reply.written(written),
            Err(error) => reply.error(errno(&error)),
        };
        match self.fs.next(self.fs.try_write(fh.0, offset, data, Patience::None)) {
            Next::Finish(result) => finish(reply, result),
            // Bytes of it that were written before there was no room are written again.
            Next::Wait(wait) => {
                let data = data.to_vec();
                let again = move |fs: &Fs, _: &ReplyWrite, patience| fs.try_write(fh.0, offset, &data, patience);
                self.drive_on(request, wait, u64::from(written), reply, |_| None, again, finish);
            }
        }
    }

    fn flush(&self, _request: &Request, _id: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        self.note(Call::Flush);
        reply.ok();
    }

    fn release(
        &self,
        _request: &Request,
        _id: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.note(Call::Release);
        finish_empty(reply, self.fs.release(fh.0));
    }

    fn fsync(&self, _request: &Request, _id: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.note(Call::Fsync);
        finish_empty(reply, self.fs.sync(fh.0, datasync));
    }

    fn opendir(&self, _request: &Request, _id: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.note(Call::Opendir);
        if self.opens_directories {
            return reply.opened(FileHandle(0), FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE);
        }
        // The kernel asks no more, opens directories by itself, and caches their listings.
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, _request: &Request, id: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.note(Call::Readdir);
        let listed = self.fs.read_dir(id.0, offset, |entry| {
            let kind = entry.kind.map_or(FileType::RegularFile, kind_to_kernel);
            reply.add(INodeNo(self.fs.node_id(entry.ino)), entry.next_offset as u64, kind, entry.name)
        });
        match listed {
            Ok(rest) => {
                reply.ok();
                rest.read_ahead();
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        id: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.note(Call::Readdirplus);
        let listed = self.fs.read_dir(id.0, offset, |entry| {
            let dots = entry.name == "." || entry.name == "..";
            let next = entry.next_offset as u64;
            if dots {
                // The kernel shows these two, and remembers no inode for them.
                let mut attr = NOTHING;
                attr.kind = FileType::Directory;
                attr.ino = INodeNo(self.fs.node_id(entry.ino));
                return reply.add(attr.ino, next, entry.name, &Duration::ZERO, &attr, Generation(0));
            }
            // A name that vanished since the directory was read is not listed.
            let Ok(found) = self.fs.lookup(id.0, entry.name) else { return false };
            let attr = attr_to_kernel(found.id, &found.attr);
            let (ino, generation) = (INodeNo(found.id), Generation(found.generation));
            let full = reply.add(ino, next, entry.name, &self.attr_ttl(&found.attr), &attr, generation);
            if full {
                // It was not told to the kernel, so the kernel will not forget it.
                self.fs.forget(found.id, 1);
            }
            full
        });
        match listed {
            Ok(rest) => {
                reply.ok();
                rest.read_ahead();
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn releasedir(&self, _request: &Request, _id: INodeNo, _fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.note(Call::Releasedir);
        reply.ok();
    }

    fn fsyncdir(&self, _request: &Request, id: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.note(Call::Fsyncdir);
        finish_empty(reply, self.fs.sync_dir(id.0, datasync));
    }

    fn statfs(&self, _request: &Request, _id: INodeNo, reply: ReplyStatfs) {
        self.note(Call::Statfs);
        match self.fs.space() {
            Ok(space) => reply.statfs(
                space.blocks,
                space.blocks_free,
                space.blocks_available,
                space.files,
                space.files_free,
                space.block_size as u32,
                space.name_len_max as u32,
                space.fragment_size as u32,
            ),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn setxattr(
        &self,
        request: &Request,
        id: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.note(Call::Setxattr);
        let command = match self.fs.set_xattr(id.0, name, value, flags, &caller(request, 0)) {
            Ok(None) => return reply.ok(),
            Ok(Some(command)) => command,
            Err(error) => return reply.error(errno(&error)),
        };
        let fs = self.fs.clone();
        self.spawn(async move { finish_empty(reply, fs.run_command(command).await) });
    }

    fn getxattr(&self, request: &Request, id: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.note(Call::Getxattr);
        reply_xattr(reply, size, self.fs.xattr(id.0, name, &caller(request, 0)));
    }

    fn listxattr(&self, request: &Request, id: INodeNo, size: u32, reply: ReplyXattr) {
        self.note(Call::Listxattr);
        reply_xattr(reply, size, self.fs.list_xattrs(id.0, &caller(request, 0)));
    }

    fn removexattr(&self, request: &Request, id: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.note(Call::Removexattr);
        finish_empty(reply, self.fs.remove_xattr(id.0, name, &caller(request, 0)));
    }

    fn ioctl(
        &self,
        _request: &Request,
        _id: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.note(Call::Ioctl);
        reply.error(Errno::ENOTTY);
    }

    fn fallocate(
        &self,
        request: &Request,
        _id: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.note(Call::Fallocate);
        let allocate = move |fs: &Fs, _: &ReplyEmpty, patience| fs.try_allocate(fh.0, mode, offset, length, patience);
        self.drive_for(request, length, reply, allocate, finish_empty);
    }

    fn lseek(&self, _request: &Request, _id: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        self.note(Call::Lseek);
        let to = match whence {
            libc::SEEK_DATA => SeekTo::Data,
            libc::SEEK_HOLE => SeekTo::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        match u64::try_from(offset) {
            // As ext4 and XFS say it.
            Err(_) => reply.error(Errno::ENXIO),
            Ok(offset) => match self.fs.seek(fh.0, offset, to) {
                Ok(found) => reply.offset(found as i64),
                Err(error) => reply.error(errno(&error)),
            },
        }
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _id_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _id_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.note(Call::CopyFileRange);
        // The answer has 32 bits.
        let len = len.min(u64::from(u32::MAX) & !0xfff);
        self.drive(
            request,
            reply,
            move |fs, _, patience| fs.try_copy(fh_in.0, offset_in, fh_out.0, offset_out, len, patience),
            |reply, result| match result {
                Ok(copied) => reply.written(copied as u32),
                Err(error) => reply.error(errno(&error)),
            },
        );
    }
}
