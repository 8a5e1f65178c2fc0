//! A real share whose syncs fail when told to, and a remote in memory: what the real engine needs to be led along a trace.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tierfs::lower::Share;
use tierfs::ports::*;
use tierfs::types::{ByteRange, FileId, Inode, ObjectKey, RawHandle};

type Act = Box<dyn FnOnce() + Send>;

/// What happened below, in order, and which syncs fail.
#[derive(Default)]
pub struct Log {
    pub calls: Mutex<Vec<String>>,
    /// One answer for each sync to come; beyond it all succeed.
    pub syncs: Mutex<std::collections::VecDeque<bool>>,
    /// So many punches to come fail.
    pub broken_punches: Mutex<u32>,
    /// What happens right before a sync, after so many others.
    pub before_sync: Mutex<Option<(usize, Act)>>,
}

impl Log {
    fn note(&self, call: &str) {
        self.calls.lock().push(call.to_owned());
    }

    fn sync(&self, really: impl FnOnce() -> LowerResult<()>) -> LowerResult<()> {
        let due = match &mut *self.before_sync.lock() {
            Some((0, _)) => true,
            Some((left, _)) => {
                *left -= 1;
                false
            }
            None => false,
        };
        if let Some((_, act)) = due.then(|| self.before_sync.lock().take()).flatten() {
            act();
        }
        self.note("sync");
        if self.syncs.lock().pop_front().unwrap_or(true) {
            really()
        } else {
            Err(LowerError::from_errno("fsync", libc::EIO))
        }
    }
}

pub struct Flaky {
    pub share: Share,
    pub log: Arc<Log>,
}

struct FlakyFile(Arc<dyn LowerFile>, Arc<Log>);

impl LowerFile for FlakyFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> LowerResult<usize> {
        self.0.read_at(buf, offset)
    }
    fn write_at(&self, data: &[u8], offset: u64) -> LowerResult<()> {
        self.0.write_at(data, offset)
    }
    fn set_len(&self, len: u64) -> LowerResult<()> {
        self.0.set_len(len)
    }
    fn allocate(&self, mode: i32, offset: u64, len: u64) -> LowerResult<()> {
        self.0.allocate(mode, offset, len)
    }
    fn seek(&self, offset: u64, to: SeekTo) -> LowerResult<u64> {
        self.0.seek(offset, to)
    }
    fn copy_to(&self, offset: u64, to: &dyn LowerFile, to_offset: u64, len: u64) -> LowerResult<usize> {
        self.0.copy_to(offset, to, to_offset, len)
    }
    fn sync(&self, data_only: bool) -> LowerResult<()> {
        self.1.sync(|| self.0.sync(data_only))
    }
    fn stat(&self) -> LowerResult<Attr> {
        self.0.stat()
    }
    fn xattr(&self, name: &OsStr) -> LowerResult<Vec<u8>> {
        self.0.xattr(name)
    }
    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_fd()
    }
    fn punch_all(&self) -> LowerResult<()> {
        self.1.note("punch");
        {
            let mut broken = self.1.broken_punches.lock();
            if *broken > 0 {
                *broken -= 1;
                return Err(LowerError::from_errno("fallocate", libc::EIO));
            }
        }
        self.0.punch_all()
    }
    fn try_exclusive(&self) -> LowerResult<Option<Box<dyn Send + Sync>>> {
        self.0.try_exclusive()
    }
    fn nobody_writes(&self) -> LowerResult<bool> {
        self.0.nobody_writes()
    }
    fn as_owner(&self, act: &mut dyn FnMut()) -> LowerResult<()> {
        self.0.as_owner(act)
    }
}

impl Lower for Flaky {
    fn features(&self) -> LowerFeatures {
        self.share.features()
    }
    fn root(&self) -> Inode {
        self.share.root()
    }
    fn space(&self) -> LowerResult<SpaceInfo> {
        self.share.space()
    }
    fn lookup(&self, dir: &Inode, name: &OsStr) -> LowerResult<(Inode, Attr)> {
        self.share.lookup(dir, name)
    }
    fn unclaimed(&self, dir: &Inode, name: &OsStr) -> LowerResult<Option<FileId>> {
        self.share.unclaimed(dir, name)
    }
    fn by_handle(&self, handle: &RawHandle) -> LowerResult<(Inode, Attr)> {
        self.share.by_handle(handle)
    }
    fn by_number(&self, ino: u64) -> LowerResult<(Inode, Attr)> {
        self.share.by_number(ino)
    }
    fn set_acl(&self, node: &Inode, value: &[u8], flags: i32, who: &Caller) -> LowerResult<()> {
        self.share.set_acl(node, value, flags, who)
    }
    fn path_of(&self, node: &Inode) -> LowerResult<Option<PathBuf>> {
        self.share.path_of(node)
    }
    fn stat(&self, node: &Inode) -> LowerResult<Attr> {
        self.share.stat(node)
    }
    fn set_attr(&self, node: &Inode, changes: &SetAttr) -> LowerResult<Attr> {
        self.share.set_attr(node, changes)
    }
    fn read_link(&self, node: &Inode) -> LowerResult<OsString> {
        self.share.read_link(node)
    }
    fn make(
        &self,
        dir: &Inode,
        name: &OsStr,
        what: NewNode<'_>,
        mode: u32,
        who: &Caller,
    ) -> LowerResult<(Inode, Attr)> {
        self.share.make(dir, name, what, mode, who)
    }
    fn create(
        &self,
        dir: &Inode,
        name: &OsStr,
        mode: u32,
        flags: OpenFlags,
        who: &Caller,
    ) -> LowerResult<(Inode, Attr, Arc<dyn LowerFile>)> {
        self.share.create(dir, name, mode, flags, who)
    }
    fn link(&self, node: &Inode, dir: &Inode, name: &OsStr) -> LowerResult<Attr> {
        self.share.link(node, dir, name)
    }
    fn rename(&self, dir: &Inode, name: &OsStr, to_dir: &Inode, to: &OsStr, mode: RenameMode) -> LowerResult<()> {
        self.share.rename(dir, name, to_dir, to, mode)
    }
    fn unlink(&self, dir: &Inode, name: &OsStr) -> LowerResult<()> {
        self.share.unlink(dir, name)
    }
    fn remove_dir(&self, dir: &Inode, name: &OsStr) -> LowerResult<()> {
        self.share.remove_dir(dir, name)
    }
    fn open(&self, node: &Inode, flags: OpenFlags) -> LowerResult<Arc<dyn LowerFile>> {
        Ok(Arc::new(FlakyFile(self.share.open(node, flags)?, self.log.clone())))
    }
    fn open_dir(&self, node: &Inode) -> LowerResult<Arc<dyn LowerDir>> {
        self.share.open_dir(node)
    }
    fn xattr(&self, node: &Inode, name: &OsStr) -> LowerResult<Vec<u8>> {
        self.share.xattr(node, name)
    }
    fn set_xattr(&self, node: &Inode, name: &OsStr, value: &[u8], flags: i32) -> LowerResult<()> {
        self.share.set_xattr(node, name, value, flags)
    }
    fn list_xattrs(&self, node: &Inode) -> LowerResult<Vec<OsString>> {
        self.share.list_xattrs(node)
    }
    fn remove_xattr(&self, node: &Inode, name: &OsStr) -> LowerResult<()> {
        self.share.remove_xattr(node, name)
    }
    fn record_xattr(&self) -> &'static str {
        self.share.record_xattr()
    }
    fn load_record(&self, node: &Inode) -> LowerResult<Option<Vec<u8>>> {
        self.share.load_record(node)
    }
    fn save_record(&self, node: &Inode, record: &[u8]) -> LowerResult<()> {
        self.log.note("save");
        self.share.save_record(node, record)
    }
    fn sync_node(&self, node: &Inode) -> LowerResult<()> {
        self.log.sync(|| self.share.sync_node(node))
    }
    fn sync_all(&self) -> LowerResult<()> {
        self.log.note("sync all");
        self.share.sync_all()
    }
}

/// Objects in memory.
#[derive(Default)]
pub struct Memory {
    pub objects: Mutex<HashMap<ObjectKey, Bytes>>,
    pub log: Arc<Log>,
    /// The object under this key cannot be deleted: 403, as of a locked one.
    pub locked: Mutex<Option<ObjectKey>>,
    /// What was asked for.
    pub streams: Mutex<Vec<ByteRange>>,
    /// What is before this offset comes, then the read fails.
    pub broken_at: Mutex<Option<u64>>,
}

fn absent(key: &ObjectKey) -> RemoteError {
    let (kind, operation) = (RemoteErrorKind::NotFound, "get");
    RemoteError { kind, operation, object: key.to_string(), endpoint: "memory".into(), detail: String::new() }
}

/// What comes, and how it ends.
struct Pieces {
    body: Bytes,
    failure: Option<RemoteError>,
}

#[async_trait]
impl Body for Pieces {
    async fn next(&mut self) -> RemoteResult<Option<Bytes>> {
        if !self.body.is_empty() {
            let piece = self.body.len().min(1_000);
            return Ok(Some(self.body.split_to(piece)));
        }
        self.failure.take().map_or(Ok(None), Err)
    }
}

#[async_trait]
impl Remote for Memory {
    async fn put(
        &self,
        key: &ObjectKey,
        len: u64,
        source: Arc<dyn ObjectSource>,
        _: &[(String, String)],
    ) -> RemoteResult<Stored> {
        let body = source.read(ByteRange { offset: 0, len }).await.expect("the source delivers");
        self.objects.lock().insert(key.clone(), body);
        Ok(Stored { etag: "e".into(), version: None })
    }
    async fn get(&self, key: &ObjectKey, range: ByteRange, _: Option<&str>) -> RemoteResult<Bytes> {
        let body = self.objects.lock().get(key).cloned().ok_or_else(|| absent(key))?;
        Ok(body.slice(range.offset as usize..range.end() as usize))
    }
    async fn stream(&self, key: &ObjectKey, range: ByteRange, etag: Option<&str>) -> RemoteResult<Box<dyn Body>> {
        self.streams.lock().push(range);
        let broken = (*self.broken_at.lock()).filter(|at| (range.offset..range.end()).contains(at));
        let whole = ByteRange { offset: range.offset, len: broken.unwrap_or(range.end()) - range.offset };
        let body = if whole.len > 0 { self.get(key, whole, etag).await? } else { Bytes::new() };
        Ok(Box::new(Pieces { body, failure: broken.map(|_| absent(key)) }))
    }
    async fn head(&self, key: &ObjectKey) -> RemoteResult<ObjectInfo> {
        let len = self.objects.lock().get(key).ok_or_else(|| absent(key))?.len() as u64;
        Ok(ObjectInfo { len, etag: "e".into(), metadata: Vec::new(), restore: Default::default() })
    }
    async fn delete(&self, key: &ObjectKey) -> RemoteResult<()> {
        if self.locked.lock().as_ref() == Some(key) {
            return Err(RemoteError { kind: RemoteErrorKind::Denied, operation: "delete", ..absent(key) });
        }
        self.log.note("delete");
        self.objects.lock().remove(key);
        Ok(())
    }
    async fn list(&self, _: &str, _: Option<&ObjectKey>) -> RemoteResult<Vec<(ObjectKey, u64)>> {
        Ok(Vec::new())
    }
    async fn probe(&self) -> RemoteResult<Capabilities> {
        Ok(Capabilities::default())
    }
}
