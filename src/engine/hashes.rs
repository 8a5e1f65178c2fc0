//! The hashes of an object's chunks; those of the objects used last are kept.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;

use super::Engine;
use super::error::{EngineError, EngineResult};
use crate::ports::RemoteErrorKind;
use crate::record::{ObjectRef, is_peer_key};
use crate::remote::manifest::{Manifest, root_of_zeros};
use crate::types::{ContentHash, FileId, ObjectKey};

/// Hashes kept at most; one has 32 bytes, so 16 MiB. The hashes of larger objects are kept as long as they are in use.
const KEPT_MAX: usize = 512 << 10;

/// The manifests used last.
#[derive(Default)]
pub(super) struct Manifests {
    /// With the root that they have together.
    by_key: HashMap<ObjectKey, (ContentHash, Arc<[ContentHash]>)>,
    /// Oldest first.
    order: VecDeque<ObjectKey>,
    hashes: usize,
}

impl Manifests {
    fn get(&self, object: &ObjectRef) -> Option<Arc<[ContentHash]>> {
        let (root, hashes) = self.by_key.get(&object.key)?;
        (*root == object.root && hashes.len() as u64 == object.chunks()).then(|| hashes.clone())
    }

    fn put(&mut self, object: &ObjectRef, hashes: &Arc<[ContentHash]>) {
        if hashes.len() > KEPT_MAX {
            return;
        }
        match self.by_key.insert(object.key.clone(), (object.root, hashes.clone())) {
            Some((_, before)) => self.hashes -= before.len(),
            None => self.order.push_back(object.key.clone()),
        }
        self.hashes += hashes.len();
        while self.hashes > KEPT_MAX {
            let Some(oldest) = self.order.pop_front() else { break };
            self.hashes -= self.by_key.remove(&oldest).map_or(0, |(_, hashes)| hashes.len());
        }
    }
}

/// The hash of a whole chunk of zeros, by its size.
#[derive(Default)]
pub(super) struct Zeros(Mutex<HashMap<u32, ContentHash>>);

impl Zeros {
    pub fn of(&self, chunk_size: u32) -> ContentHash {
        *self.0.lock().entry(chunk_size).or_insert_with(|| root_of_zeros(u64::from(chunk_size), chunk_size))
    }
}

impl Engine {
    /// The hash of every chunk, perhaps as it was read before: an object's key never means other content.
    pub(super) async fn chunk_hashes(&self, file: FileId, object: &ObjectRef) -> EngineResult<Arc<[ContentHash]>> {
        if let Some(hashes) = self.manifests.lock().get(object) {
            return Ok(hashes);
        }
        let hashes = self.stored_hashes(file, object).await?;
        if object.has_manifest() || is_peer_key(&object.key) {
            self.manifests.lock().put(object, &hashes);
        }
        Ok(hashes)
    }

    /// The hash of every chunk, from what is stored now: the record for one chunk, else the manifest, which must have the record's root.
    pub(super) async fn stored_hashes(&self, file: FileId, object: &ObjectRef) -> EngineResult<Arc<[ContentHash]>> {
        // The other side's hashes are told with its generation, and are those of no root that is known before.
        let of_peer = is_peer_key(&object.key);
        if !object.has_manifest() && !of_peer {
            return Ok([object.root].into());
        }
        let key = object.manifest_key();
        let remote = self.source(file, object)?;
        let len_max = Manifest::encoded_len_max(object.chunks());
        for last in [false, true] {
            let body = match remote.get_all(&key, len_max).await {
                Err(error) if error.kind == RemoteErrorKind::Corrupt && !last => continue,
                body => body.map_err(EngineError::remote(file))?,
            };
            match Manifest::decode(&body) {
                Ok(manifest)
                    if (of_peer || manifest.root() == object.root)
                        && manifest.len() == object.len
                        && manifest.chunk_size() == object.chunk_size =>
                {
                    return Ok(manifest.chunks().into());
                }
                Ok(_) => tracing::warn!(object = %key, "the manifest is not that of the record"),
                Err(why) => tracing::warn!(object = %key, "the manifest does not decode: {why}"),
            }
        }
        Err(EngineError::Corrupt { file, object: key.to_string(), offset: 0, len: len_max })
    }
}
