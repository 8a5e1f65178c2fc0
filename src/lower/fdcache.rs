//! A bounded cache of `O_PATH` descriptors by inode.
//!
//! Invariant: never more than `capacity` descriptors are kept here, and none is closed while a call uses it (entries are
//! shared by `Arc`). Eviction is by second chance (CLOCK), so a scan does not throw out what is in use.
//!
//! Of our own, because a cache library puts off the end of what it evicts or removes to its next maintenance: until then an
//! unlinked file would keep its blocks, and the bound would be passed.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::ports::FileKind;
use crate::types::{FileId, Inode};

/// An `O_PATH` descriptor and whose it is. While it lives, the inode number cannot be reused.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) fd: OwnedFd,
    pub(super) inode: Inode,
    pub(super) kind: FileKind,
}

impl Node {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

const SHARDS: usize = 16;

pub(super) struct FdCache {
    shards: [Mutex<Shard>; SHARDS],
}

struct Slot {
    node: Arc<Node>,
    used: bool,
}

struct Shard {
    capacity: usize,
    index: HashMap<FileId, usize>,
    slots: Vec<Slot>,
    hand: usize,
}

impl FdCache {
    /// A cache of about `capacity` descriptors (rounded down to a multiple of the shard count, at least one a shard).
    pub(super) fn new(capacity: usize) -> Self {
        let per_shard = (capacity / SHARDS).max(1);
        let shard = || Mutex::new(Shard { capacity: per_shard, index: HashMap::new(), slots: Vec::new(), hand: 0 });
        Self { shards: std::array::from_fn(|_| shard()) }
    }

    pub(super) fn get(&self, id: &FileId) -> Option<Arc<Node>> {
        let mut shard = self.shard(id).lock();
        let at = *shard.index.get(id)?;
        let slot = &mut shard.slots[at];
        slot.used = true;
        Some(Arc::clone(&slot.node))
    }

    /// Keeps `node`. If the inode is here already, that entry is kept and returned instead.
    pub(super) fn insert(&self, node: Arc<Node>) -> Arc<Node> {
        // What leaves is dropped after the lock: closing may be slow.
        let (kept, _left) = {
            let mut shard = self.shard(&node.inode.id).lock();
            match shard.index.get(&node.inode.id).copied() {
                Some(at) if shard.slots[at].node.inode == node.inode => (Arc::clone(&shard.slots[at].node), Some(node)),
                Some(at) => {
                    // Same number and birth time but another handle: the older one was freed within a clock tick.
                    let old = std::mem::replace(&mut shard.slots[at].node, Arc::clone(&node));
                    (node, Some(old))
                }
                None => {
                    let left = shard.add(Arc::clone(&node));
                    (node, left)
                }
            }
        };
        kept
    }

    /// Forgets the inode if `which` says so of its entry.
    pub(super) fn remove_if(&self, id: &FileId, which: impl FnOnce(&Node) -> bool) {
        let _left = {
            let mut shard = self.shard(id).lock();
            match shard.index.get(id).copied() {
                Some(at) if which(&shard.slots[at].node) => Some(shard.take(at)),
                _ => None,
            }
        };
    }

    /// Descriptors kept just now.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().slots.len()).sum()
    }

    /// Closes every descriptor that no call is using.
    pub(super) fn clear(&self) {
        for shard in &self.shards {
            let _left = {
                let mut shard = shard.lock();
                shard.index.clear();
                shard.hand = 0;
                std::mem::take(&mut shard.slots)
            };
        }
    }

    fn shard(&self, id: &FileId) -> &Mutex<Shard> {
        // Inode numbers of one directory are neighbours: the low bits spread them.
        &self.shards[(id.ino ^ (id.ino >> 7)) as usize % SHARDS]
    }
}

impl Shard {
    /// Adds an entry that is not here yet; returns the one it displaced.
    fn add(&mut self, node: Arc<Node>) -> Option<Arc<Node>> {
        let id = node.inode.id;
        let slot = Slot { node, used: false };
        if self.slots.len() < self.capacity {
            self.index.insert(id, self.slots.len());
            self.slots.push(slot);
            return None;
        }
        // Ends within two rounds: the first clears every mark it passes.
        while std::mem::take(&mut self.slots[self.hand].used) {
            self.hand = (self.hand + 1) % self.slots.len();
        }
        let old = std::mem::replace(&mut self.slots[self.hand], slot).node;
        self.index.remove(&old.inode.id);
        self.index.insert(id, self.hand);
        self.hand = (self.hand + 1) % self.slots.len();
        Some(old)
    }

    fn take(&mut self, at: usize) -> Arc<Node> {
        let gone = self.slots.swap_remove(at).node;
        self.index.remove(&gone.inode.id);
        if let Some(moved) = self.slots.get(at) {
            self.index.insert(moved.node.inode.id, at);
        }
        if self.hand >= self.slots.len() {
            self.hand = 0;
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::RawHandle;

    fn node(ino: u64, generation: u8) -> Arc<Node> {
        let handle = RawHandle::new(1, &[ino as u8, (ino >> 8) as u8, generation]).expect("short");
        Arc::new(Node {
            fd: OwnedFd::from(std::fs::File::open("/dev/null").expect("null")),
            inode: Inode { id: FileId { ino, birth: 7 }, handle },
            kind: FileKind::Regular,
        })
    }

    #[test]
    fn stays_within_its_bound_and_keeps_its_index_true() {
        let cache = FdCache::new(64);
        let mut dice = 1u64;
        for _ in 0..20_000 {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let ino = (dice >> 33) % 500;
            let id = FileId { ino, birth: 7 };
            match (dice >> 20) % 4 {
                0 => cache.remove_if(&id, |_| true),
                1 => drop(cache.insert(node(ino, 0))),
                _ => assert!(cache.get(&id).is_none_or(|found| found.inode.id == id)),
            }
            assert!(cache.len() <= 64);
        }
        for shard in &cache.shards {
            let shard = shard.lock();
            assert_eq!(shard.index.len(), shard.slots.len());
            assert!(shard.index.iter().all(|(id, at)| shard.slots[*at].node.inode.id == *id));
        }
    }

    #[test]
    fn an_entry_in_use_outlives_a_scan() {
        let cache = FdCache::new(64);
        let hot = cache.insert(node(1, 0));
        for ino in 100..1_000 {
            cache.insert(node(ino, 0));
            assert!(Arc::ptr_eq(&hot, &cache.get(&hot.inode.id).expect("kept")), "lost at {ino}");
        }
    }

    #[test]
    fn the_first_entry_wins_but_another_handle_replaces_it() {
        let cache = FdCache::new(64);
        let first = cache.insert(node(1, 0));
        assert!(Arc::ptr_eq(&first, &cache.insert(node(1, 0))));
        let reused = node(1, 1);
        assert!(Arc::ptr_eq(&reused, &cache.insert(Arc::clone(&reused))));
        assert_eq!(cache.len(), 1);
        cache.clear();
        assert_eq!(cache.len(), 0);
    }
}
