//! Messages of a metadata sync: objects below a key that nobody but a peer's tiering service can use, and that are kept nowhere.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::acting::Acting;
use crate::catalog::walk::on_own_thread;
use crate::gateway::blocking;
use crate::gateway::store::{Attributes, Content, ObjectInfo, Seal, StoreError, StoreResult, Upload};
use crate::sync::wire::MESSAGE_MAX;
use crate::sync::{KEYS, Receiver, SyncError};
use crate::types::{Inode, PairName, Timestamp};

/// A message on its way in.
struct Message {
    receiver: Arc<Receiver>,
    pair: PairName,
    path: String,
    body: Vec<u8>,
}

struct Answer(Bytes);

/// An answer as an object.
type Told = (Arc<ObjectInfo>, Arc<dyn Content>);

fn about(error: SyncError) -> StoreError {
    match error {
        // The other side begins a run anew.
        SyncError::OutOfTurn { .. } => StoreError::ConditionFailed,
        SyncError::Refused(why) => StoreError::Refused(why),
        SyncError::Wire(error) => StoreError::Refused(format!("the message cannot be read: {error}")),
        SyncError::Unknown => StoreError::NoSuchKey("a message of no known kind".into()),
        SyncError::Stopped => StoreError::Closed,
        error @ (SyncError::Book { .. } | SyncError::Lower(_) | SyncError::Remote(_)) => {
            tracing::warn!("a message of the pair's other side was not carried out: {error}");
            StoreError::Unavailable(error.to_string())
        }
    }
}

fn info(path: &str, etag: String, size: u64) -> ObjectInfo {
    ObjectInfo {
        key: format!("{KEYS}{path}"),
        size,
        etag,
        modified: Timestamp::default(),
        attributes: Attributes::default(),
        tags: Vec::new(),
        checksum: None,
        part_sizes: Vec::new(),
        upload: None,
    }
}

impl Acting {
    /// Who takes messages, and from which pair, if a key is one of a message and this is a peer.
    fn messages(&self, key: &str) -> Option<StoreResult<(Arc<Receiver>, PairName, String)>> {
        let path = key.strip_prefix(KEYS)?.to_owned();
        let pair = self.peer_of()?.clone();
        Some(match &self.shared.sync {
            Some(receiver) => Ok((receiver.clone(), pair, path)),
            None => Err(StoreError::Refused(format!(
                "{} takes part in no metadata sync: it is served without a pair of remote_role = \"gpeer\" with a meta_sync_role",
                self.shared.bucket
            ))),
        })
    }

    /// Tells the metadata sync of a file that has taken another one's place.
    pub async fn known_by_peer(&self, node: Inode) {
        let Some(receiver) = self.shared.sync.clone() else { return };
        self.shared.fs.was_written(&node);
        let kept = blocking(move || receiver.replaced(&node).map_err(about)).await;
        if let Err(error) = kept {
            // The master's next word on its name says so again.
            tracing::warn!(inode = node.id.ino, "the metadata sync was not told of a new file: {error}");
        }
    }

    /// Begins to take a message; `None`: the key is none of ours, or who asks is nobody's peer.
    pub fn message(&self, key: &str) -> Option<StoreResult<Box<dyn Upload>>> {
        Some(self.messages(key)?.map(|(receiver, pair, path)| {
            let body = Vec::new();
            Box::new(Message { receiver, pair, path, body }) as Box<dyn Upload>
        }))
    }

    /// What a message was answered.
    pub fn answer(&self, key: &str) -> Option<StoreResult<Told>> {
        Some(self.messages(key)?.and_then(|(receiver, _, path)| {
            let answer = receiver.get(&path).ok_or_else(|| StoreError::NoSuchKey(key.to_owned()))?;
            let info = info(&path, format!("answer-{}", answer.len()), answer.len() as u64);
            Ok((Arc::new(info), Arc::new(Answer(answer)) as Arc<dyn Content>))
        }))
    }
}

#[async_trait]
impl Upload for Message {
    fn write(&mut self, chunks: &[Bytes]) -> StoreResult<()> {
        for chunk in chunks {
            if self.body.len() + chunk.len() > MESSAGE_MAX {
                return Err(StoreError::Refused(format!(
                    "a message of a metadata sync has at most {MESSAGE_MAX} bytes"
                )));
            }
            self.body.extend_from_slice(chunk);
        }
        Ok(())
    }

    async fn publish(self: Box<Self>, _: Seal) -> StoreResult<Arc<ObjectInfo>> {
        let Self { receiver, pair, path, body } = *self;
        let (size, at) = (body.len() as u64, path.clone());
        // On a thread of its own: a removal waits for the journal. To its end, even if the other side has left.
        let taking = tokio::spawn(on_own_thread(move || receiver.put(&pair, &path, &body)));
        let etag = taking.await.map_err(|_| StoreError::Closed)?.ok_or(StoreError::Closed)?.map_err(about)?;
        Ok(Arc::new(info(&at, etag, size)))
    }
}

#[async_trait]
impl Content for Answer {
    async fn read(&self, offset: u64, len_max: usize) -> StoreResult<Bytes> {
        let at = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        Ok(self.0.slice(at..self.0.len().min(at.saturating_add(len_max))))
    }
}
