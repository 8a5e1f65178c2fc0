//! Removed files that the kernel still knows. Their inodes are kept from being freed until it forgets them.
//!
//! Requests name files by inode number. One for a removed file may be under way, or not even sent, when the filesystem below gives the number to
//! a new file; then it would open, or cut, a file of somebody else. The kernel forgets an inode only when nothing of it is under way.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::Fs;
use crate::types::{FileId, Inode};

/// Kept at a time. Programs that hold on to more removed files than this without opening them see ESTALE or EIO.
const HELD_MAX: usize = 1024;

/// An inode, and what keeps it.
pub(super) struct Hold {
    node: Inode,
    _kept: Arc<dyn Any + Send + Sync>,
}

#[derive(Default)]
pub(super) struct Held {
    holds: Mutex<HashMap<u64, Hold>>,
    /// How many, to be looked at first: nearly always none.
    count: AtomicUsize,
}

impl Held {
    fn put(&self, id: u64, hold: Hold) {
        let mut holds = self.holds.lock();
        if holds.len() < HELD_MAX {
            holds.insert(id, hold);
        }
        self.count.store(holds.len(), Ordering::Release);
    }

    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    pub(super) fn nodes(&self) -> Vec<Inode> {
        self.holds.lock().values().map(|hold| hold.node).collect()
    }

    /// The kernel has forgotten the inode.
    pub(super) fn drop(&self, id: u64) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        // Closed after the lock is given back: its blocks are freed now.
        let _hold = {
            let mut holds = self.holds.lock();
            let hold = holds.remove(&id);
            self.count.store(holds.len(), Ordering::Release);
            hold
        };
    }
}

impl Fs {
    /// To be taken before a removal: what keeps the file that goes with it, if the kernel knows that.
    pub(super) fn hold(&self, last: Option<FileId>) -> Option<Hold> {
        let node = self.nodes.get(last?.ino).filter(|node| Some(node.id) == last)?;
        // Without it only the guard is missing.
        self.lower.pin(&node).ok().map(|kept| Hold { node, _kept: kept })
    }

    /// The removal is done, and not answered yet: until then the kernel cannot have forgotten the file.
    pub(super) fn keep_held(&self, last: Option<FileId>, hold: Option<Hold>) {
        if let (Some(file), Some(hold)) = (last, hold) {
            self.held.put(file.ino, hold);
        }
    }
}
