//! The inodes the kernel knows: node id → lower inode.
//!
//! A node id is the lower inode number (the root's is 1), so it is the same after every mount. Entries hold no descriptor:
//! about 110 bytes each, for as long as the kernel remembers the inode.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::types::Inode;

/// The root's node id, by the kernel's convention.
pub const ROOT: u64 = 1;
const SHARDS: usize = 16;

struct Known {
    node: Inode,
    /// Lookups the kernel has not forgotten.
    lookups: u64,
}

/// The table.
pub struct Nodes {
    root: Inode,
    shards: [Mutex<HashMap<u64, Known>>; SHARDS],
}

impl Nodes {
    pub fn new(root: Inode) -> Self {
        Self { root, shards: Default::default() }
    }

    fn shard(&self, id: u64) -> &Mutex<HashMap<u64, Known>> {
        &self.shards[(id ^ (id >> 9)) as usize % SHARDS]
    }

    /// The node id of an inode.
    pub fn id_of(&self, node: &Inode) -> u64 {
        if node.id == self.root.id { ROOT } else { node.id.ino }
    }

    /// The inode behind a node id; `None`: the kernel was not told of it, or has forgotten it.
    pub fn get(&self, id: u64) -> Option<Inode> {
        if id == ROOT {
            return Some(self.root);
        }
        self.shard(id).lock().get(&id).map(|known| known.node)
    }

    /// Notes that the kernel was told of an inode once more.
    pub fn remember(&self, node: &Inode) {
        let id = self.id_of(node);
        if id == ROOT {
            return;
        }
        let mut shard = self.shard(id).lock();
        let known = shard.entry(id).or_insert(Known { node: *node, lookups: 0 });
        // A reused inode number: the kernel learns it from the generation, and will forget the old one's lookups too.
        known.node = *node;
        known.lookups += 1;
    }

    /// The kernel forgets so many lookups. An unknown id is nothing: the entry was made before a restart.
    pub fn forget(&self, id: u64, lookups: u64) {
        let mut shard = self.shard(id).lock();
        if let Some(known) = shard.get_mut(&id) {
            known.lookups = known.lookups.saturating_sub(lookups);
            if known.lookups == 0 {
                shard.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    //! Every answer to the kernel is counted once, and forgotten as often as the kernel says.

    use super::*;
    use crate::types::{FileId, RawHandle};

    fn node(ino: u64, birth: u64) -> Inode {
        Inode { id: FileId { ino, birth }, handle: RawHandle::new(1, &ino.to_ne_bytes()).expect("short") }
    }

    #[test]
    fn lookups_are_counted() {
        let root = node(2, 1);
        let nodes = Nodes::new(root);
        let (file, heir) = (node(12, 5), node(12, 6));
        nodes.remember(&file);
        nodes.remember(&file);
        nodes.forget(12, 1);
        assert_eq!(nodes.get(12), Some(file));
        // The number is used again before the kernel has forgotten the first.
        nodes.remember(&heir);
        nodes.forget(12, 1);
        assert_eq!(nodes.get(12), Some(heir));
        nodes.forget(12, 1);
        assert_eq!(nodes.get(12), None);
        // From before a restart: nothing to forget.
        nodes.forget(12, 7);
        nodes.remember(&root);
        nodes.forget(ROOT, 1);
        assert_eq!((nodes.get(ROOT), nodes.id_of(&root)), (Some(root), ROOT));
    }
}
