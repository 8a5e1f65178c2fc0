//! What stands between everybody and a store that has packs: calls about a member's key are answered from its pack.
//!
//! Invariants: a call about a member never changes or deletes a pack; no bytes are answered but those of the range that the key tells, on the condition that
//! was asked for. Calls about other keys, packs' own included, go on as they are.

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::pack::{Index, PackError, TRAILER_LEN};
use crate::ports::{
    AttributeCall, Body, Capabilities, ObjectInfo, ObjectSource, Remote, RemoteError, RemoteErrorKind, RemoteResult,
    RestoreState, Stored,
};
use crate::record::{Place, member_parts, place_of};
use crate::types::{ByteRange, ObjectKey};

/// Indexes remembered.
const INDEXES_MAX: usize = 32;
/// What is read of a pack's end first, in bytes: the index of most.
const END_FIRST: u64 = 64 << 10;

/// A store whose packs' members look like objects.
pub struct Packed {
    remote: Arc<dyn Remote>,
    /// The last ones used, by pack and ETag.
    indexes: Mutex<VecDeque<(ObjectKey, String, Arc<Index>)>>,
}

fn refused(kind: RemoteErrorKind, operation: &'static str, key: &ObjectKey, detail: String) -> RemoteError {
    RemoteError { kind, operation, object: key.to_string(), endpoint: "a pack".into(), detail }
}

/// What is in the pack `key`, of which `info` was told.
pub async fn read_index(remote: &dyn Remote, key: &ObjectKey, info: &ObjectInfo) -> RemoteResult<Index> {
    let corrupt = |why: PackError| refused(RemoteErrorKind::Corrupt, "read the index of", key, why.to_string());
    let end = |len: u64| ByteRange { offset: info.len - len, len };
    let first = END_FIRST.min(info.len);
    if first < TRAILER_LEN as u64 {
        return Err(corrupt(PackError::Length));
    }
    let mut tail = remote.get(key, end(first), Some(&info.etag)).await?;
    let len = Index::len_of(&tail[tail.len() - TRAILER_LEN..], info.len).map_err(corrupt)?;
    tail = match first.checked_sub(len) {
        Some(more) => tail.slice(more as usize..),
        None => remote.get(key, end(len), Some(&info.etag)).await?,
    };
    Index::decode(&tail, info.len).map_err(corrupt)
}

impl Packed {
    /// Before `remote`.
    pub fn over(remote: Arc<dyn Remote>) -> Arc<dyn Remote> {
        Arc::new(Self { remote, indexes: Mutex::default() })
    }

    async fn index(&self, pack: &ObjectKey, info: &ObjectInfo) -> RemoteResult<Arc<Index>> {
        let known = |(key, etag, _): &(ObjectKey, String, _)| key == pack && *etag == info.etag;
        if let Some((.., index)) = self.indexes.lock().iter().find(|entry| known(entry)) {
            return Ok(index.clone());
        }
        let index = Arc::new(read_index(&*self.remote, pack, info).await?);
        let mut indexes = self.indexes.lock();
        indexes.truncate(INDEXES_MAX - 1);
        indexes.push_front((pack.clone(), info.etag.clone(), index.clone()));
        Ok(index)
    }

    /// What a HEAD of an object of the member's own would say.
    async fn head_member(&self, key: &ObjectKey, own: &str, place: Place) -> RemoteResult<ObjectInfo> {
        let pack = place.pack.key();
        let info = self.remote.head(&pack).await?;
        let missing = |detail: &str| refused(RemoteErrorKind::NotFound, "head", key, format!("{pack} {detail}"));
        if info.len < place.range.end() {
            return Err(missing("is shorter"));
        }
        let told = ObjectInfo { len: place.range.len, metadata: Vec::new(), ..info.clone() };
        if info.restore != RestoreState::Readable {
            // Its index cannot be read before its content can.
            return Ok(told);
        }
        let index = self.index(&pack, &info).await?;
        let member = index.at(place.range).filter(|member| member.key.0 == own);
        let metadata = member.ok_or_else(|| missing("has no such member"))?.metadata.clone();
        Ok(ObjectInfo { metadata, ..told })
    }
}

/// Where in the pack a part of a member is.
fn part_of(key: &ObjectKey, place: &Place, part: ByteRange) -> RemoteResult<(ObjectKey, ByteRange)> {
    match part.offset.checked_add(part.len) {
        Some(end) if part.len > 0 && end <= place.range.len => {
            Ok((place.pack.key(), ByteRange { offset: place.range.offset + part.offset, len: part.len }))
        }
        _ => {
            let detail = format!("{}+{} is not in its {} bytes", part.offset, part.len, place.range.len);
            Err(refused(RemoteErrorKind::Rejected, "get", key, detail))
        }
    }
}

#[async_trait]
impl Remote for Packed {
    async fn put(
        &self,
        key: &ObjectKey,
        len: u64,
        source: Arc<dyn ObjectSource>,
        metadata: &[(String, String)],
    ) -> RemoteResult<Stored> {
        if place_of(key).is_some() {
            let detail = "members are stored with their pack".into();
            return Err(refused(RemoteErrorKind::Rejected, "put", key, detail));
        }
        self.remote.put(key, len, source, metadata).await
    }

    async fn get(&self, key: &ObjectKey, range: ByteRange, etag: Option<&str>) -> RemoteResult<Bytes> {
        match place_of(key) {
            None => self.remote.get(key, range, etag).await,
            Some(place) => {
                let (pack, range) = part_of(key, &place, range)?;
                self.remote.get(&pack, range, etag).await
            }
        }
    }

    async fn stream(&self, key: &ObjectKey, range: ByteRange, etag: Option<&str>) -> RemoteResult<Box<dyn Body>> {
        match place_of(key) {
            None => self.remote.stream(key, range, etag).await,
            Some(place) => {
                let (pack, range) = part_of(key, &place, range)?;
                self.remote.stream(&pack, range, etag).await
            }
        }
    }

    async fn get_all(&self, key: &ObjectKey, len_max: u64) -> RemoteResult<Bytes> {
        match place_of(key) {
            None => self.remote.get_all(key, len_max).await,
            Some(place) if place.range.len > len_max => {
                let detail = format!("it has {} bytes, where {len_max} at most were expected", place.range.len);
                Err(refused(RemoteErrorKind::Corrupt, "get", key, detail))
            }
            Some(place) => self.remote.get(&place.pack.key(), place.range, None).await,
        }
    }

    async fn head(&self, key: &ObjectKey) -> RemoteResult<ObjectInfo> {
        match member_parts(key) {
            None => self.remote.head(key).await,
            Some((own, place)) => self.head_member(key, own, place).await,
        }
    }

    async fn restore(&self, key: &ObjectKey, days: u32) -> RemoteResult<RestoreState> {
        match place_of(key) {
            None => self.remote.restore(key, days).await,
            Some(place) => self.remote.restore(&place.pack.key(), days).await,
        }
    }

    /// A member has no object: others' content is in its pack, which goes when nobody needs any of it.
    async fn delete(&self, key: &ObjectKey) -> RemoteResult<()> {
        match place_of(key) {
            None => self.remote.delete(key).await,
            Some(_) => Ok(()),
        }
    }

    async fn list(&self, prefix: &str, after: Option<&ObjectKey>) -> RemoteResult<Vec<(ObjectKey, u64)>> {
        self.remote.list(prefix, after).await
    }

    async fn unfinished_uploads(&self) -> RemoteResult<Vec<ObjectKey>> {
        self.remote.unfinished_uploads().await
    }

    async fn end_uploads(&self, key: &ObjectKey) -> RemoteResult<()> {
        match place_of(key) {
            None => self.remote.end_uploads(key).await,
            Some(_) => Ok(()),
        }
    }

    async fn set_attribute(&self, call: &AttributeCall) -> RemoteResult<Option<String>> {
        self.remote.set_attribute(call).await
    }

    async fn probe(&self) -> RemoteResult<Capabilities> {
        self.remote.probe().await
    }
}
