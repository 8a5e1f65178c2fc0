//! The slave's part of telling: facts of contents that it holds, for the master.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::look::{STATEMENTS_MAX, is_gone};
use super::send::Sender;
use super::wire::{Held, encode};
use super::{SyncError, SyncResult};
use crate::capture::files::Facts;
use crate::capture::id::peer_id;
use crate::capture::{Item, Mark};
use crate::ports::FileKind;
use crate::types::{FileId, PairFileId};

impl Sender {
    /// The slave's part: facts of contents that it holds, for the master.
    pub(super) async fn tell_held(self: &Arc<Self>) -> SyncResult<bool> {
        let taken = self.options.capture.take(STATEMENTS_MAX);
        if taken.is_empty() {
            return Ok(false);
        }
        let (this, items) = (self.clone(), taken.clone());
        let looked = tokio::task::spawn_blocking(move || -> SyncResult<Held> {
            let mut held = Held::default();
            for (_, item) in items {
                let Item::Inode(id) = item else { continue };
                held.files.extend(this.held_file(id)?);
            }
            if !held.files.is_empty() {
                this.options.capture.barrier()?;
            }
            Ok(held)
        });
        let told = match looked.await.map_err(|_| SyncError::Stopped)? {
            Ok(held) if held.files.is_empty() => Ok(()),
            Ok(held) => {
                let path = format!("held/{}", self.held.fetch_add(1, Ordering::Relaxed));
                self.put(&path, encode(&held)).await.map(drop)
            }
            Err(error) => Err(error),
        };
        match told {
            Ok(()) => {
                self.works();
                self.options.capture.confirm(taken);
                Ok(true)
            }
            Err(error) => {
                self.options.capture.put_back(taken);
                Err(error)
            }
        }
    }

    fn held_file(&self, id: FileId) -> SyncResult<Option<(PairFileId, FileId, Facts)>> {
        let lower = &*self.options.lower;
        let found = match self.options.capture.node(Mark::Inode(id)) {
            Some(node) => lower.stat(&node).map(|attr| (node, attr)),
            None => lower.by_number(id.ino),
        };
        let (node, attr) = match found {
            Err(error) if is_gone(&error) => return Ok(None),
            found => found?,
        };
        if node.id != id || attr.kind != FileKind::Regular || attr.nlink == 0 {
            return Ok(None);
        }
        let Some(peer) = peer_id(lower, &node)? else { return Ok(None) };
        let facts = self.options.files.facts(&node, &attr)?;
        let origin = self.options.book.lock().known(peer)?.map(|known| known.origin);
        Ok(origin.filter(|_| facts.held).map(|origin| (peer, origin, facts)))
    }
}
