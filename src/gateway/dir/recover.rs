//! What a start makes of a directory: claims it, clears what a crash left, and reads every record into the index.
//!
//! Nothing is deleted on a guess. Staged and trashed files are nobody's by construction; a lower version goes only when
//! the higher one's record reads well; an upload's directory goes only when it has no record of its own, no object refers
//! to it, and every object of the bucket could be read. What cannot be read is left alone and reported.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use rustix::fs::{FlockOperation, XattrFlags};

use super::super::store::{PartInfo, StoreError, UploadId, UploadInfo};
use super::OpenError;
use super::index::{Bucket, Extents, Index, Object, OpenUpload};
use super::layout::{HeadName, Layout, parse_part_name};
use super::record::{self, ObjectRecord, UploadRecord};
use super::trash::Trash;
use crate::types::Timestamp;

/// First line of the lock file: which layout this is.
const FORMAT: &str = "tierfs object directory 1\n";
/// Threads that read records at start.
const READERS: usize = 4;

/// Makes the directory if need be, checks that it can be served, and locks it.
pub fn claim(layout: &Layout) -> Result<File, OpenError> {
    let root = layout.root();
    let not_writable = |source| OpenError::NotWritable { path: root.to_owned(), source };
    match fs::metadata(root) {
        Ok(meta) if !meta.is_dir() => return Err(OpenError::NotADirectory(root.to_owned())),
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => fs::create_dir_all(root).map_err(not_writable)?,
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => return Err(OpenError::NotADirectory(root.to_owned())),
        Err(source) => return Err(OpenError::Unreadable { path: root.to_owned(), source }),
    }
    for dir in [layout.state(), layout.staging(), layout.trash()] {
        match fs::create_dir(&dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(not_writable(e)),
            _ => {}
        }
    }
    let mut options = File::options();
    let mut lock =
        options.read(true).write(true).create(true).truncate(false).open(layout.lock()).map_err(not_writable)?;
    if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Err(OpenError::InUse(root.to_owned()));
    }
    let mut found = String::new();
    lock.read_to_string(&mut found).map_err(not_writable)?;
    match found.as_str() {
        "" => lock.write_all(FORMAT.as_bytes()).and_then(|()| lock.sync_all()).map_err(not_writable)?,
        FORMAT => {}
        _ => return Err(OpenError::Format { path: root.to_owned(), found: found.trim().to_owned() }),
    }
    rustix::fs::fsetxattr(&lock, record::XATTR, b"probe", XattrFlags::empty())
        .map_err(|e| OpenError::NoXattrs { path: root.to_owned(), source: e.into() })?;
    Ok(lock)
}

/// Reads all that is stored; also the highest version seen.
pub fn load(layout: &Layout, trash: &Trash) -> Result<(Index, u64), OpenError> {
    let unreadable = |path: &Path, source| OpenError::Unreadable { path: path.to_owned(), source };
    for dir in [layout.staging(), layout.trash()] {
        for name in names(&dir).map_err(|e| unreadable(&dir, e))? {
            trash.discard(dir.join(name));
        }
    }
    let mut index = Index::default();
    let mut highest = 0;
    for name in names(layout.root()).map_err(|e| unreadable(layout.root(), e))? {
        // Other files in the directory are not ours.
        if name.starts_with('.') || !layout.objects(&name).is_dir() || !layout.uploads(&name).is_dir() {
            continue;
        }
        let (bucket, version) = load_bucket(layout, &name, trash).map_err(|e| unreadable(&layout.bucket(&name), e))?;
        highest = highest.max(version);
        index.buckets.insert(name, bucket);
    }
    Ok((index, highest))
}

fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        // All names of ours are ASCII.
        if let Ok(name) = entry?.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}

/// What one of the 256 directories holds.
#[derive(Default)]
struct Fan {
    objects: Vec<(HeadName, ObjectRecord)>,
    highest: u64,
    /// Something could not be read.
    damaged: bool,
}

fn load_bucket(layout: &Layout, name: &str, trash: &Trash) -> io::Result<(Bucket, u64)> {
    let created = fs::metadata(layout.bucket(name))?;
    let created = created.created().or_else(|_| created.modified())?;
    let since = created.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut bucket = Bucket {
        created: Timestamp { secs: since.as_secs() as i64, nanos: since.subsec_nanos() },
        ..Bucket::default()
    };
    let fans: Vec<u8> =
        names(&layout.objects(name))?.iter().filter_map(|fan| u8::from_str_radix(fan, 16).ok()).collect();
    bucket.fans.extend(&fans);
    let next = parking_lot::Mutex::new(fans.into_iter());
    let read_fans = || -> io::Result<Vec<Fan>> {
        let mut read = Vec::new();
        loop {
            let Some(fan) = next.lock().next() else { return Ok(read) };
            read.push(load_fan(&layout.fan(name, fan))?);
        }
    };
    let loaded: Vec<Fan> = thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(read_fans)).collect();
        let mut all = Vec::new();
        for reader in readers {
            all.extend(reader.join().map_err(|_| io::Error::other("a reader of records panicked"))??);
        }
        io::Result::Ok(all)
    })?;
    let mut highest = 0;
    let mut damaged = false;
    let mut completed = BTreeSet::new();
    for fan in loaded {
        highest = highest.max(fan.highest);
        damaged |= fan.damaged;
        for (head, record) in fan.objects {
            let ObjectRecord { info, parts } = record;
            let extents = match &info.upload {
                Some(upload) if !parts.is_empty() => {
                    completed.insert(upload.clone());
                    let dir = layout.upload(name, upload);
                    Some(Arc::new(Extents::new(dir, parts, trash.clone())))
                }
                _ => None,
            };
            let object = Object { info: Arc::new(info), version: head.version, extents };
            bucket.objects.insert(object.info.key.clone(), Arc::new(object));
        }
    }
    for id in names(&layout.uploads(name))?.into_iter().map(UploadId) {
        load_upload(layout, name, id, &completed, damaged, trash, &mut bucket, &mut highest)?;
    }
    Ok((bucket, highest))
}

fn load_fan(dir: &Path) -> io::Result<Fan> {
    let mut newest: BTreeMap<u128, u64> = BTreeMap::new();
    let mut heads = Vec::new();
    let mut sidecars = Vec::new();
    let mut fan = Fan::default();
    for name in names(dir)? {
        match HeadName::parse(&name) {
            Some(head) => {
                let version = newest.entry(head.hash).or_default();
                *version = head.version.max(*version);
                fan.highest = fan.highest.max(head.version);
                heads.push(head);
            }
            None => sidecars.extend(name.strip_suffix(".meta").and_then(HeadName::parse)),
        }
    }
    let mut kept = BTreeSet::new();
    // Newest first, so that an older version is judged when its successor is known to read well.
    heads.sort_by(|a, b| b.cmp(a));
    for head in heads {
        let path = dir.join(head.to_string());
        if newest.get(&head.hash) != Some(&head.version) {
            if kept.contains(&head.hash) {
                fs::remove_file(&path)?;
            }
            continue;
        }
        match load_object(&path, &head) {
            Ok(record) => {
                kept.insert(head.hash);
                fan.objects.push((head, record));
            }
            Err(e) => {
                fan.damaged = true;
                tracing::error!(path = %path.display(), error = %e, "object left out: its record cannot be used");
            }
        }
    }
    for sidecar in sidecars {
        if kept.contains(&sidecar.hash) && newest.get(&sidecar.hash) != Some(&sidecar.version) {
            fs::remove_file(dir.join(format!("{sidecar}.meta")))?;
        }
    }
    Ok(fan)
}

/// The record of the object at `path`, checked against what the file is.
fn load_object(path: &Path, head: &HeadName) -> Result<ObjectRecord, StoreError> {
    let io = |e| super::io_error("read record of", path, e);
    let record: ObjectRecord = record::read(path).map_err(io)?;
    if HeadName::new(&record.info.key, head.version) != *head {
        return Err(StoreError::Corrupt("its record is of another key".to_owned()));
    }
    let stored = if record.parts.is_empty() {
        fs::symlink_metadata(path).map_err(io)?.len()
    } else {
        record.parts.iter().map(|part| part.size).sum()
    };
    if stored != record.info.size {
        return Err(StoreError::Corrupt(format!("holds {stored} bytes instead of {}", record.info.size)));
    }
    Ok(record)
}

#[allow(clippy::too_many_arguments, reason = "one step of load_bucket, split off for its length")]
fn load_upload(
    layout: &Layout,
    bucket_name: &str,
    id: UploadId,
    completed: &BTreeSet<UploadId>,
    damaged: bool,
    trash: &Trash,
    bucket: &mut Bucket,
    highest: &mut u64,
) -> io::Result<()> {
    let dir = layout.upload(bucket_name, &id);
    let info = layout.upload_info(bucket_name, &id);
    let mut parts: BTreeMap<u16, PartInfo> = BTreeMap::new();
    for name in names(&dir)? {
        let Some((number, version)) = parse_part_name(&name) else { continue };
        *highest = (*highest).max(version);
        let path = dir.join(&name);
        match record::read::<PartInfo>(&path) {
            Ok(part) if part.number == number && part.version == version => {
                if parts.get(&number).is_none_or(|other| other.version < version) {
                    parts.insert(number, part);
                }
            }
            Ok(_) | Err(_) if completed.contains(&id) => {}
            Ok(_) => tracing::error!(path = %path.display(), "part left out: its record is of another part"),
            Err(e) => tracing::error!(path = %path.display(), error = %e, "part left out: its record cannot be used"),
        }
    }
    if completed.contains(&id) {
        // The crash came between publishing the object and unlinking this.
        return match fs::remove_file(&info) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        };
    }
    match fs::read(&info) {
        Ok(bytes) => match record::decode::<UploadRecord>(&bytes) {
            Ok(UploadRecord { new, initiated }) => {
                let info = Arc::new(UploadInfo { id: id.clone(), new, initiated });
                bucket.uploads.insert(id, OpenUpload { info, parts });
            }
            Err(e) => tracing::error!(path = %info.display(), error = %e, "upload left out: its record cannot be used"),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound && !damaged => trash.discard(dir),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            tracing::warn!(path = %dir.display(), "parts kept: a damaged object may refer to them");
        }
        Err(e) => return Err(e),
    }
    Ok(())
}
