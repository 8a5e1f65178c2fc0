//! Uploads in parts: opened, completed without copying, aborted. Runs on the committing thread, alone.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

use super::super::store::*;
use super::commit::{publish_head, put_in_service, sync_dir};
use super::index::{Extents, Object, OpenUpload};
use super::layout::part_name;
use super::record::{self, ObjectRecord, PartRef, UploadRecord};
use super::staged::StagedFile;
use super::{Shared, io_error, now};

/// Opens an upload: its directory appears with its record inside, so that a start never meets one without.
pub fn create(shared: &Shared, bucket: &str, new: NewUpload) -> StoreResult<UploadId> {
    shared.index.read().bucket(bucket)?;
    let version = shared.next_version();
    let secret = blake3::hash(format!("{bucket}\0{}\0{version}", new.key).as_bytes());
    let id = UploadId(format!("{version:016x}{}", &secret.to_hex()[..16]));
    let stored = UploadRecord { new, initiated: now() };
    let staged = shared.layout.staging().join(&id.0);
    let path = shared.layout.upload(bucket, &id);
    let make = || {
        let bytes = record::encode(&stored)?;
        fs::create_dir(&staged)?;
        record::write_synced(&staged.join("info"), &bytes)?;
        sync_dir(&staged)?;
        fs::rename(&staged, &path)?;
        sync_dir(&shared.layout.uploads(bucket))
    };
    make().map_err(|e| io_error("make upload", &path, e))?;
    let info = Arc::new(UploadInfo { id: id.clone(), new: stored.new, initiated: stored.initiated });
    let open = OpenUpload { info, parts: Default::default() };
    shared.index.write().bucket_mut(bucket)?.uploads.insert(id.clone(), open);
    Ok(id)
}

pub fn list(shared: &Shared, bucket: &str, prefix: &str) -> StoreResult<Vec<Arc<UploadInfo>>> {
    let index = shared.index.read();
    let uploads = index.bucket(bucket)?.uploads.values();
    let mut found: Vec<_> =
        uploads.filter(|upload| upload.info.new.key.starts_with(prefix)).map(|upload| upload.info.clone()).collect();
    found.sort_by(|a, b| (&a.new.key, &a.id).cmp(&(&b.new.key, &b.id)));
    Ok(found)
}

/// Publishes an empty file whose record lists the parts. Only then is the upload's own record unlinked: a crash between
/// leaves both, and a start knows by the object that the upload is complete.
pub fn complete(
    shared: &Shared,
    bucket: &str,
    key: &str,
    id: &UploadId,
    parts: Vec<PartInfo>,
    seal: Seal,
) -> StoreResult<Arc<ObjectInfo>> {
    let replaced = {
        let index = shared.index.read();
        let known = &index.upload(bucket, key, id)?.parts;
        if let Some(changed) = parts.iter().find(|part| known.get(&part.number) != Some(part)) {
            return Err(StoreError::PartChanged(changed.number));
        }
        let current = index.bucket(bucket)?.objects.get(key);
        seal.condition.check(key, current.map(|object| object.info.etag.as_str()))?;
        current.cloned()
    };
    let info = ObjectInfo {
        key: key.to_owned(),
        size: parts.iter().map(|part| part.size).sum(),
        etag: seal.etag,
        modified: now(),
        attributes: seal.attributes,
        tags: seal.tags,
        checksum: seal.checksum,
        part_sizes: parts.iter().map(|part| part.size).collect(),
        upload: Some(id.clone()),
    };
    let refs: Vec<PartRef> =
        parts.iter().map(|part| PartRef { number: part.number, version: part.version, size: part.size }).collect();
    let stored = ObjectRecord { info, parts: refs.clone() };
    let mut staged = StagedFile::create(shared)?;
    staged.record(&stored)?;
    staged.sync().map_err(|e| io_error("sync", &staged.path, e))?;
    let version = shared.next_version();
    let mut dirs = BTreeSet::new();
    publish_head(shared, bucket, key, version, &mut staged, &mut dirs)?;
    for dir in &dirs {
        sync_dir(dir).map_err(|e| {
            // Whether the new object survives a crash is unknown.
            shared.poison("sync of directories", &e);
            io_error("sync", dir, e)
        })?;
    }
    let dir = shared.layout.upload(bucket, id);
    let extents = Arc::new(Extents::new(dir.clone(), refs, shared.trash.clone()));
    let info = Arc::new(stored.info);
    put_in_service(shared, bucket, Object { info: info.clone(), version, extents: Some(extents) }, replaced);
    if let Some(open) = shared.index.write().bucket_mut(bucket)?.uploads.remove(id) {
        let kept: BTreeSet<u64> = parts.iter().map(|part| part.version).collect();
        for part in open.parts.values().filter(|part| !kept.contains(&part.version)) {
            shared.trash.discard(dir.join(part_name(part.number, part.version)));
        }
    }
    let record = shared.layout.upload_info(bucket, id);
    if let Err(e) = fs::remove_file(&record) {
        // Harmless while the object stands; once it is replaced its directory goes as a whole.
        tracing::warn!(path = %record.display(), error = %e, "cannot unlink the record of a completed upload");
    }
    Ok(info)
}

/// Forgets an upload: without its record its directory is garbage.
pub fn abort(shared: &Shared, bucket: &str, key: &str, id: &UploadId) -> StoreResult<()> {
    shared.index.read().upload(bucket, key, id)?;
    let record = shared.layout.upload_info(bucket, id);
    fs::remove_file(&record).map_err(|e| io_error("unlink", &record, e))?;
    let dir = shared.layout.upload(bucket, id);
    let synced = sync_dir(&dir);
    shared.index.write().bucket_mut(bucket)?.uploads.remove(id);
    shared.trash.discard(dir.clone());
    synced.map_err(|e| io_error("sync", &dir, e))
}
