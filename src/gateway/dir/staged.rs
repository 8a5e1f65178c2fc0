//! Content on its way in: a file nobody else knows, until the committer gives it a name.

use std::fs::{self, File};
use std::io::{self, IoSlice, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::oneshot;

use super::super::store::{ObjectInfo, PartInfo, Seal, StoreError, StoreResult, Target, Upload};
use super::commit::{Job, ObjectJob, PartJob};
use super::record::{self, ObjectRecord, Record};
use super::{Shared, io_error, now};

/// Content of at least this many bytes is synced by its own uploader, so that it does not hold up a batch of small ones.
const SYNC_ALONE_BYTES: u64 = 512 << 10;
/// Slices for one `writev`; the kernel takes 1,024.
const SLICES_MAX: usize = 256;

/// A file in the staging directory; deleted on drop unless it was published.
#[derive(Debug)]
pub struct StagedFile {
    pub path: PathBuf,
    pub file: File,
    pub len: u64,
    /// Bytes and record are on stable storage.
    pub synced: bool,
    /// The record did not fit into the file's xattr.
    pub sidecar: bool,
    /// The record is written.
    recorded: bool,
    published: bool,
}

impl StagedFile {
    pub fn create(shared: &Shared) -> StoreResult<Self> {
        let path = shared.layout.staging().join(format!("{:016x}", shared.next_version()));
        let file = File::create_new(&path).map_err(|e| io_error("create", &path, e))?;
        Ok(Self { path, file, len: 0, synced: false, sidecar: false, recorded: false, published: false })
    }

    fn write(&mut self, chunks: &[Bytes]) -> io::Result<()> {
        for group in chunks.chunks(SLICES_MAX) {
            let mut slices: Vec<IoSlice<'_>> = group.iter().map(|chunk| IoSlice::new(chunk)).collect();
            let mut rest = slices.as_mut_slice();
            IoSlice::advance_slices(&mut rest, 0);
            while !rest.is_empty() {
                match self.file.write_vectored(rest) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(written) => {
                        self.len += written as u64;
                        IoSlice::advance_slices(&mut rest, written);
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }

    /// Writes the record, once.
    pub fn record<R: Record>(&mut self, record: &R) -> StoreResult<()> {
        if !self.recorded {
            self.sidecar =
                record::write_new(&self.file, &self.path, record).map_err(|e| io_error("record", &self.path, e))?;
            self.recorded = true;
        }
        Ok(())
    }

    pub fn sync(&mut self) -> io::Result<()> {
        self.file.sync_all()?;
        self.synced = true;
        Ok(())
    }

    /// Gives the file its final name, and its sidecar first: a sidecar without its file is garbage, the reverse would be
    /// an object without a record.
    pub fn publish(&mut self, to: &std::path::Path) -> io::Result<()> {
        if self.sidecar {
            fs::rename(record::sidecar_of(&self.path), record::sidecar_of(to))?;
        }
        fs::rename(&self.path, to)?;
        self.published = true;
        Ok(())
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if !self.published {
            // Best effort: the next start empties the staging directory.
            let _ = fs::remove_file(&self.path);
            if self.sidecar {
                let _ = fs::remove_file(record::sidecar_of(&self.path));
            }
        }
    }
}

/// One upload, from its first byte to its publication.
pub struct DirUpload {
    shared: Arc<Shared>,
    bucket: String,
    target: Target,
    /// Created with the first byte, where blocking is allowed.
    staged: Option<StagedFile>,
}

impl DirUpload {
    pub fn new(shared: Arc<Shared>, bucket: String, target: Target) -> Self {
        Self { shared, bucket, target, staged: None }
    }

    fn staged(&mut self) -> StoreResult<&mut StagedFile> {
        match &mut self.staged {
            Some(staged) => Ok(staged),
            empty => Ok(empty.insert(StagedFile::create(&self.shared)?)),
        }
    }
}

#[async_trait]
impl Upload for DirUpload {
    fn write(&mut self, chunks: &[Bytes]) -> StoreResult<()> {
        let staged = self.staged()?;
        staged.write(chunks).map_err(|e| io_error("write", &staged.path, e))
    }

    async fn publish(mut self: Box<Self>, seal: Seal) -> StoreResult<Arc<ObjectInfo>> {
        let shared = self.shared.clone();
        let modified = now();
        let mut staged = match self.staged.take() {
            Some(staged) => staged,
            None => {
                let shared = shared.clone();
                super::blocking(move || StagedFile::create(&shared)).await?
            }
        };
        match self.target {
            Target::Object { key } => {
                let info = ObjectInfo {
                    key,
                    size: staged.len,
                    etag: seal.etag,
                    modified,
                    attributes: seal.attributes,
                    tags: seal.tags,
                    checksum: seal.checksum,
                    part_sizes: Vec::new(),
                    upload: None,
                };
                let record = ObjectRecord { info, parts: Vec::new() };
                let (staged, record) = sync_if_large(staged, record).await?;
                let (reply, answer) = oneshot::channel();
                let condition = seal.condition;
                let job = ObjectJob { bucket: self.bucket, record, staged, condition, reply };
                shared.submit(Job::Object(Box::new(job)))?;
                answer.await.map_err(|_| StoreError::Closed)?
            }
            Target::Part { key, upload, number } => {
                let info = PartInfo {
                    number,
                    size: staged.len,
                    etag: seal.etag,
                    modified,
                    checksum: seal.checksum,
                    version: shared.next_version(),
                };
                staged = sync_if_large(staged, info.clone()).await?.0;
                let (reply, answer) = oneshot::channel();
                let job = PartJob { bucket: self.bucket, key, upload, info, staged, reply };
                shared.submit(Job::Part(Box::new(job)))?;
                answer.await.map_err(|_| StoreError::Closed)?
            }
        }
    }
}

async fn sync_if_large<R: Record + Send + 'static>(mut staged: StagedFile, record: R) -> StoreResult<(StagedFile, R)> {
    if staged.len < SYNC_ALONE_BYTES {
        return Ok((staged, record));
    }
    super::blocking(move || {
        staged.record(&record)?;
        staged.sync().map_err(|e| io_error("sync", &staged.path, e))?;
        Ok((staged, record))
    })
    .await
}
