//! The other side's content for a recall: ranges and hashes of one generation, asked by the file's id.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::super::Engine;
use super::super::cell::stored_record;
use super::super::error::{EngineError, EngineResult};
use super::wire::{Named, Verb};
use crate::ports::{
    Body, Capabilities, ObjectInfo, ObjectSource, Remote, RemoteError, RemoteErrorKind, RemoteResult, Stored,
};
use crate::record::{ObjectRef, PeerState, is_peer_key};
use crate::types::{ByteRange, FileId, Generation, Inode, ObjectKey};

/// One generation of one file at the other side.
struct PeerSource {
    remote: Arc<dyn Remote>,
    named: Named,
    generation: Generation,
    chunk_size: u32,
}

impl PeerSource {
    fn refused<T>(&self, operation: &'static str) -> RemoteResult<T> {
        Err(RemoteError {
            kind: RemoteErrorKind::Rejected,
            operation,
            object: self.named.id.to_string(),
            endpoint: "the pair's other side".into(),
            detail: "a peer's file is no object".into(),
        })
    }

    fn content(&self) -> (ObjectKey, String) {
        (self.named.key(Verb::Content(self.generation)), self.generation.to_string())
    }
}

#[async_trait]
impl Remote for PeerSource {
    async fn put(
        &self,
        _: &ObjectKey,
        _: u64,
        _: Arc<dyn ObjectSource>,
        _: &[(String, String)],
    ) -> RemoteResult<Stored> {
        self.refused("put")
    }

    async fn get(&self, _: &ObjectKey, range: ByteRange, _: Option<&str>) -> RemoteResult<Bytes> {
        let (key, etag) = self.content();
        self.remote.get(&key, range, Some(&etag)).await
    }

    async fn stream(&self, _: &ObjectKey, range: ByteRange, _: Option<&str>) -> RemoteResult<Box<dyn Body>> {
        let (key, etag) = self.content();
        self.remote.stream(&key, range, Some(&etag)).await
    }

    /// Of the manifest.
    async fn get_all(&self, _: &ObjectKey, len_max: u64) -> RemoteResult<Bytes> {
        let key = self.named.key(Verb::Manifest(self.generation, self.chunk_size));
        self.remote.get_all(&key, len_max).await
    }

    async fn head(&self, _: &ObjectKey) -> RemoteResult<ObjectInfo> {
        self.refused("head")
    }

    async fn delete(&self, _: &ObjectKey) -> RemoteResult<()> {
        self.refused("delete")
    }

    async fn list(&self, _: &str, _: Option<&ObjectKey>) -> RemoteResult<Vec<(ObjectKey, u64)>> {
        self.refused("list")
    }

    async fn probe(&self) -> RemoteResult<Capabilities> {
        self.refused("probe")
    }
}

impl Engine {
    /// Where the content of a stub is read from.
    pub(in crate::engine) fn source(&self, file: FileId, object: &ObjectRef) -> EngineResult<Arc<dyn Remote>> {
        let target = self.target_of(file, object)?;
        if !is_peer_key(&object.key) {
            return Ok(target.remote.clone());
        }
        let (node, peer) = match self.cells.live(file) {
            Some(cell) => (cell.node, cell.lock().record.peer.clone()),
            None => {
                let (node, _) = self.lower.by_number(file.ino).map_err(EngineError::lower(file))?;
                (node, stored_record(&*self.lower, &node)?.and_then(|record| record.peer))
            }
        };
        let Some(peer) = peer else {
            let why = super::super::PeerTrouble::NotPaired;
            return Err(EngineError::Peer { file, why });
        };
        Ok(Arc::new(PeerSource {
            remote: target.remote.clone(),
            named: self.named(&node, &peer),
            generation: object.generation,
            chunk_size: object.chunk_size,
        }))
    }

    /// A file as the other side is to find it.
    pub(super) fn named(&self, node: &Inode, peer: &PeerState) -> Named {
        let path = self.lower.path_of(node).ok().flatten();
        Named::new(peer.id, peer.there, path.as_deref())
    }
}
