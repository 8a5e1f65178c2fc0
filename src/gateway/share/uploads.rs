//! Uploads in parts. Each is a directory in its user's staging directory: the file `upload` says what it is to become, `part-NNNNN` are its
//! parts, with what is known of each in an attribute. They outlive a restart; only the user who began one sees it.
//!
//! Completing copies the parts into one file: on filesystems that share blocks (XFS, btrfs) that costs nothing, on others as much room
//! again until it is done.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use super::acting::Acting;
use super::error::About;
use super::key::Key;
use super::publish::{NewFile, append};
use super::staging::{UPLOAD, entries, if_there, remove_all};
use crate::gateway::blocking;
use crate::gateway::store::{
    NewUpload, ObjectInfo, PartInfo, Seal, StoreError, StoreResult, Upload, UploadId, UploadInfo,
};
use crate::lower::Dir;
use crate::ports::{Attr, Caller, Lower, LowerFile, NewNode, OpenFlags, RenameMode};
use crate::types::{Inode, Timestamp};

const ABOUT: &str = "upload";
const PART: &str = "part-";
const PART_XATTR: &str = "s3-part";
/// Longest description of an upload, bytes.
const ABOUT_BYTES_MAX: u64 = 64 << 10;
const COPY_BYTES: u64 = 1 << 30;

static COUNT: AtomicU64 = AtomicU64::new(0);

/// A number that no part or upload of this share had before, as good as certainly.
fn unique(now: Timestamp) -> u64 {
    let clock = now.secs as u64 * 1_000_000 + u64::from(now.nanos) / 1_000;
    (clock << 10) + (COUNT.fetch_add(1, Ordering::Relaxed) & 0x3ff)
}

fn part_name(number: u16) -> OsString {
    format!("{PART}{number:05}").into()
}

fn corrupt(what: &str) -> StoreError {
    StoreError::Corrupt(format!("what is kept of an upload cannot be read: {what}"))
}

impl Acting {
    fn upload_name(id: &UploadId) -> StoreResult<OsString> {
        // It comes from a client, and is to be part of a path.
        let fits = id.0.len() == 32 && id.0.bytes().all(|b| b.is_ascii_hexdigit());
        if fits { Ok(format!("{UPLOAD}{}", id.0).into()) } else { Err(StoreError::NoSuchUpload(id.0.clone())) }
    }

    pub fn create_upload(&self, new: NewUpload) -> StoreResult<UploadId> {
        self.check_writable()?;
        self.check_tags(&new.tags)?;
        let key = Key::parse(&new.key)?;
        if key.is_dir {
            return Err(StoreError::BadKey {
                key: new.key,
                why: "a key that ends with / is a directory, which has no content",
            });
        }
        self.replaced(&key)?;
        // Whether the user may make a file there is found out now, by making one.
        self.new_file(&key)?;
        self.begin_upload(new)
    }

    /// The same, where all that is known already.
    pub fn begin_upload(&self, new: NewUpload) -> StoreResult<UploadId> {
        let key = new.key.clone();
        let (share, user) = (self.share(), self.user());
        let staging = self.staging()?;
        let mut hash = blake3::Hasher::new();
        hash.update(&unique(self.shared.fs.engine.now()).to_le_bytes());
        hash.update(&std::process::id().to_le_bytes());
        hash.update(new.key.as_bytes());
        let id = UploadId(hash.finalize().to_hex()[..32].to_owned());
        let who = Caller { uid: user.uid, gid: user.gid, pid: 0, umask: 0 };
        let made = share.make(&staging.node(), &Self::upload_name(&id)?, NewNode::Directory, 0o700, &who);
        let dir = share.dir(&made.about(&key)?.0).about(&key)?;
        let body = postcard::to_stdvec(&new).map_err(|error| StoreError::Failed(error.to_string()))?;
        let (_, file) = share.create_unnamed_as(user, &dir, 0o600).about(&key)?;
        let written = file.write_at(&body, 0).and_then(|()| file.sync(false));
        let linked = written.and_then(|()| share.link_as(user, &*file, &dir, OsStr::new(ABOUT)));
        let synced = linked.and_then(|()| share.sync_node(&dir.node()).and_then(|()| share.sync_node(&staging.node())));
        synced.about(&key)?;
        Ok(id)
    }

    fn read_upload(&self, dir: &Inode, id: &UploadId) -> StoreResult<UploadInfo> {
        let (share, gone) = (self.share(), || StoreError::NoSuchUpload(id.0.clone()));
        let (node, attr) = if_there(share.lookup(dir, OsStr::new(ABOUT))).about(&id.0)?.ok_or_else(gone)?;
        let mut body = vec![0; attr.size.min(ABOUT_BYTES_MAX) as usize];
        let file = share.open(&node, OpenFlags { read: true, ..Default::default() }).about(&id.0)?;
        let got = file.read_at(&mut body, 0).about(&id.0)?;
        let new = postcard::from_bytes(&body[..got]).map_err(|error| corrupt(&error.to_string()))?;
        Ok(UploadInfo { id: id.clone(), new, initiated: attr.mtime })
    }

    /// An open upload of this user to `key`.
    pub fn upload(&self, key: &str, id: &UploadId) -> StoreResult<(Dir, UploadInfo)> {
        let gone = || StoreError::NoSuchUpload(id.0.clone());
        let found = if_there(self.share().lookup(&self.staging()?.node(), &Self::upload_name(id)?)).about(&id.0)?;
        let dir = self.share().dir(&found.ok_or_else(gone)?.0).about(&id.0)?;
        let info = self.read_upload(&dir.node(), id)?;
        if info.new.key == key { Ok((dir, info)) } else { Err(gone()) }
    }

    /// All open uploads of this user whose key begins with `prefix`.
    pub fn uploads(&self, prefix: &str) -> StoreResult<Vec<Arc<UploadInfo>>> {
        let (share, staging) = (self.share(), self.staging()?);
        let mut found = Vec::new();
        for entry in entries(share, &staging.node()).about(prefix)? {
            let Some(id) = entry.name.to_str().and_then(|name| name.strip_prefix(UPLOAD)) else { continue };
            let id = UploadId(id.to_owned());
            let Ok((dir, _)) = share.lookup(&staging.node(), &entry.name) else { continue };
            match self.read_upload(&dir, &id) {
                Ok(info) if info.new.key.starts_with(prefix) => found.push(Arc::new(info)),
                // Being made, or completed, just now.
                _ => {}
            }
        }
        found.sort_by(|a, b| (&a.new.key, &a.id.0).cmp(&(&b.new.key, &b.id.0)));
        Ok(found)
    }

    fn part(&self, dir: &Dir, name: &OsStr) -> StoreResult<(Inode, PartInfo)> {
        let (node, attr): (Inode, Attr) = self.share().lookup(&dir.node(), name).about(ABOUT)?;
        let stored = self.share().xattr(&node, &self.share().hidden_xattr(PART_XATTR)).about(ABOUT)?;
        let info: PartInfo = postcard::from_bytes(&stored).map_err(|error| corrupt(&error.to_string()))?;
        if info.size == attr.size { Ok((node, info)) } else { Err(corrupt("a part has another length")) }
    }

    pub fn parts(&self, key: &str, id: &UploadId) -> StoreResult<(Arc<UploadInfo>, Vec<PartInfo>)> {
        let (dir, info) = self.upload(key, id)?;
        let names = entries(self.share(), &dir.node()).about(key)?;
        let names = names.iter().filter(|entry| entry.name.as_bytes().starts_with(PART.as_bytes()));
        let parts: StoreResult<Vec<_>> = names.map(|entry| Ok(self.part(&dir, &entry.name)?.1)).collect();
        let mut parts = parts?;
        parts.sort_by_key(|part| part.number);
        Ok((Arc::new(info), parts))
    }

    pub fn begin_part(&self, key: &str, id: &UploadId, number: u16) -> StoreResult<Box<dyn Upload>> {
        let (dir, _) = self.upload(key, id)?;
        let (node, file) = self.share().create_unnamed_as(self.user(), &dir, 0o600).about(key)?;
        Ok(Box::new(PartUpload { acting: self.clone(), key: key.to_owned(), dir, node, file, number, at: 0 }))
    }

    pub async fn complete(
        self,
        key: Key,
        id: UploadId,
        parts: Vec<PartInfo>,
        seal: Seal,
    ) -> StoreResult<Arc<ObjectInfo>> {
        let sizes: Vec<u64> = parts.iter().map(|part| part.size).collect();
        let (acting, for_key, upload) = (self.clone(), key.clone(), id.clone());
        let new = blocking(move || acting.assemble(&for_key, &upload, &parts)).await?;
        let info = self.clone().install(key, new, seal, sizes, Some(id.clone())).await?;
        // The object is there; what is left of the upload is given up with time.
        if let Err(error) = blocking(move || self.abort(&id)).await {
            tracing::warn!(%error, "the parts of a completed upload stay");
        }
        Ok(info)
    }

    /// One file out of parts.
    fn assemble(&self, key: &Key, id: &UploadId, parts: &[PartInfo]) -> StoreResult<NewFile> {
        let new = self.new_file(key)?;
        self.assemble_into(&new, key.as_str(), id, parts)?;
        Ok(new)
    }

    /// Puts the parts of an upload into a new file.
    pub fn assemble_into(&self, new: &NewFile, key: &str, id: &UploadId, parts: &[PartInfo]) -> StoreResult<()> {
        let (dir, _) = self.upload(key, id)?;
        let mut at = 0;
        for part in parts {
            let (node, info) = self.part(&dir, &part_name(part.number))?;
            if info != *part {
                return Err(StoreError::PartChanged(part.number));
            }
            let from = self.share().open(&node, OpenFlags { read: true, ..Default::default() }).about(key)?;
            let mut done = 0;
            while done < info.size {
                let len = (info.size - done).min(COPY_BYTES);
                match from.copy_to(done, &*new.file, at, len).about(key)? {
                    0 => return Err(corrupt("a part is shorter than it was")),
                    copied => {
                        done += copied as u64;
                        at += copied as u64;
                    }
                }
            }
        }
        Ok(())
    }

    /// Removes an upload of this user with its parts.
    pub fn abort(&self, id: &UploadId) -> StoreResult<()> {
        let staging = self.staging()?;
        let removed = if_there(remove_all(self.share(), &staging.node(), &Self::upload_name(id)?)).about(&id.0)?;
        removed.ok_or_else(|| StoreError::NoSuchUpload(id.0.clone()))
    }
}

/// A part on its way in.
struct PartUpload {
    acting: Acting,
    key: String,
    dir: Dir,
    node: Inode,
    file: Arc<dyn LowerFile>,
    number: u16,
    at: u64,
}

impl PartUpload {
    fn keep(&self, seal: Seal) -> StoreResult<ObjectInfo> {
        let (share, user) = (self.acting.share(), self.acting.user());
        let modified = self.file.stat().about(&self.key)?.mtime;
        let version = unique(self.acting.shared.fs.engine.now());
        let (number, size) = (self.number, self.at);
        let info = PartInfo { number, size, etag: seal.etag, modified, checksum: seal.checksum, version };
        let stored = postcard::to_stdvec(&info).map_err(|error| StoreError::Failed(error.to_string()))?;
        share.set_xattr(&self.node, &share.hidden_xattr(PART_XATTR), &stored, 0).about(&self.key)?;
        self.file.sync(false).about(&self.key)?;
        let temporary = OsString::from(format!("new-{version}"));
        let gone = |error: crate::ports::LowerError| match error.errno() {
            // Aborted or completed meanwhile.
            libc::ENOENT => StoreError::NoSuchUpload(self.key.clone()),
            _ => {
                let failed: StoreResult<()> = Err(error).about(&self.key);
                failed.err().unwrap_or(StoreError::Closed)
            }
        };
        share.link_as(user, &*self.file, &self.dir, &temporary).map_err(gone)?;
        let dir = self.dir.node();
        share.rename(&dir, &temporary, &dir, &part_name(number), RenameMode::Replace).map_err(gone)?;
        share.sync_node(&dir).about(&self.key)?;
        Ok(ObjectInfo {
            key: self.key.clone(),
            size,
            etag: info.etag,
            modified,
            attributes: Default::default(),
            tags: Vec::new(),
            checksum: info.checksum,
            part_sizes: Vec::new(),
            upload: None,
        })
    }
}

#[async_trait]
impl Upload for PartUpload {
    fn write(&mut self, chunks: &[Bytes]) -> StoreResult<()> {
        append(&*self.file, &mut self.at, chunks).about(&self.key)
    }

    async fn publish(self: Box<Self>, seal: Seal) -> StoreResult<Arc<ObjectInfo>> {
        blocking(move || self.keep(seal)).await.map(Arc::new)
    }
}
