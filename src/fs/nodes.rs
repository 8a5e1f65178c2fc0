//! The inodes the kernel knows: node id → lower inode.
//!
//! A node id is the lower inode number (the root's is 1), so it is the same after every mount. Entries hold no descriptor, live for as
//! long as the kernel remembers the inode, and are packed: there may be ten million. A table twice as large as needed is made smaller,
//! so what the kernel forgets comes back.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::types::{FileId, Inode, RawHandle};

/// The root's node id, by the kernel's convention.
pub const ROOT: u64 = 1;
const SHARDS: usize = 16;
/// Handles up to so many bytes are kept in their entry: those of ext4 (8) and XFS (12).
const SHORT_HANDLE: usize = 12;
/// Entries below which a shard is not made smaller.
const SHARD_SMALL: usize = 256;

/// A number in halves, so that it needs no padding beside smaller things.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Halves([u32; 2]);

impl From<u64> for Halves {
    fn from(number: u64) -> Self {
        Self([number as u32, (number >> 32) as u32])
    }
}

impl From<Halves> for u64 {
    fn from(Halves([low, high]): Halves) -> Self {
        Self::from(low) | Self::from(high) << 32
    }
}

struct Known {
    birth: Halves,
    /// Lookups the kernel has not forgotten; at its maximum it stays there.
    lookups: u32,
    /// `None`: the handle is long or of an odd kind, and kept apart.
    handle: Option<ShortHandle>,
}

/// The common kernel file handle, packed.
struct ShortHandle {
    kind: u8,
    /// One more than the length, so that `None` above costs nothing.
    len: std::num::NonZeroU8,
    bytes: [u8; SHORT_HANDLE],
}

impl ShortHandle {
    fn new(handle: &RawHandle) -> Option<Self> {
        let mut bytes = [0; SHORT_HANDLE];
        bytes.get_mut(..handle.bytes().len())?.copy_from_slice(handle.bytes());
        let len = std::num::NonZeroU8::new(handle.bytes().len() as u8 + 1)?;
        Some(Self { kind: handle.kind().try_into().ok()?, len, bytes })
    }

    fn unpacked(&self) -> Option<RawHandle> {
        RawHandle::new(self.kind.into(), self.bytes.get(..usize::from(self.len.get()) - 1)?)
    }
}

#[derive(Default)]
struct Shard {
    known: HashMap<Halves, Known>,
    /// Handles that are not short, by node id.
    long_handles: HashMap<Halves, RawHandle>,
}

impl Shard {
    fn get(&self, id: u64) -> Option<Inode> {
        let known = self.known.get(&id.into())?;
        let handle = match &known.handle {
            Some(short) => short.unpacked()?,
            None => *self.long_handles.get(&id.into())?,
        };
        Some(Inode { id: FileId { ino: id, birth: known.birth.into() }, handle })
    }

    fn remember(&mut self, node: &Inode) {
        let id = Halves::from(node.id.ino);
        let handle = ShortHandle::new(&node.handle);
        if handle.is_none() {
            self.long_handles.insert(id, node.handle);
        }
        let birth = node.id.birth.into();
        let known = self.known.entry(id).or_insert(Known { birth, lookups: 0, handle: None });
        if known.lookups > 0 && known.handle.is_none() && handle.is_some() {
            self.long_handles.remove(&id);
        }
        // A reused inode number: the kernel learns it from the generation, and will forget the old one's lookups too.
        (known.birth, known.handle) = (birth, handle);
        known.lookups = known.lookups.saturating_add(1);
    }

    /// Whether it is not known any more.
    fn forget(&mut self, id: u64, lookups: u64) -> bool {
        let id = id.into();
        let Some(known) = self.known.get_mut(&id) else { return true };
        if known.lookups == u32::MAX {
            return false;
        }
        known.lookups = u64::from(known.lookups).saturating_sub(lookups) as u32;
        if known.lookups > 0 {
            return false;
        }
        if self.known.remove(&id).is_some_and(|gone| gone.handle.is_none()) {
            self.long_handles.remove(&id);
        }
        let len = self.known.len();
        // Half empty twice over: what shrinking costs was paid for by the removals.
        if self.known.capacity() > SHARD_SMALL && len < self.known.capacity() / 4 {
            self.known.shrink_to(len * 2);
            self.long_handles.shrink_to(len * 2);
        }
        true
    }
}

/// The table.
pub struct Nodes {
    root: Inode,
    shards: [Mutex<Shard>; SHARDS],
}

impl Nodes {
    pub fn new(root: Inode) -> Self {
        Self { root, shards: Default::default() }
    }

    fn shard(&self, id: u64) -> &Mutex<Shard> {
        &self.shards[(id ^ (id >> 9)) as usize % SHARDS]
    }

    /// Inodes that the kernel knows.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().known.len()).sum()
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
        self.shard(id).lock().get(id)
    }

    /// Notes that the kernel was told of an inode once more.
    pub fn remember(&self, node: &Inode) {
        if node.id != self.root.id {
            self.shard(node.id.ino).lock().remember(node);
        }
    }

    /// The kernel forgets so many lookups. An unknown id is nothing: the entry was made before a restart. Whether it knows the inode no more.
    pub fn forget(&self, id: u64, lookups: u64) -> bool {
        self.shard(id).lock().forget(id, lookups)
    }
}

#[cfg(test)]
mod tests {
    //! Every answer to the kernel is counted once, and forgotten as often as the kernel says.

    use super::*;

    fn inode(ino: u64, handle: &[u8]) -> Inode {
        Inode { id: FileId { ino, birth: ino ^ 0xffff_0000_1234_5678 }, handle: RawHandle::new(0x81, handle).unwrap() }
    }

    fn like_xfs(ino: u64) -> Inode {
        inode(ino, &[&ino.to_le_bytes()[..], &[1, 2, 3, 4]].concat())
    }

    fn nodes() -> Nodes {
        Nodes::new(inode(128, &[0; 12]))
    }

    /// What the table has asked of the allocator: hashbrown keeps a control byte beside each bucket, of which an eighth stays free.
    fn bytes(nodes: &Nodes) -> usize {
        let of = |capacity: usize, entry: usize| if capacity == 0 { 0 } else { (capacity * 8 / 7) * (entry + 1) };
        let shards = nodes.shards.iter().map(|shard| {
            let shard = shard.lock();
            of(shard.known.capacity(), size_of::<(Halves, Known)>())
                + of(shard.long_handles.capacity(), size_of::<(Halves, RawHandle)>())
        });
        shards.sum()
    }

    #[test]
    fn what_was_remembered_is_found_until_it_is_forgotten() {
        let nodes = nodes();
        let all = [inode(5, &[]), inode(6, &[7; 8]), like_xfs(1 << 40), inode(8, &[9; 13]), inode(9, &[3; 40])];
        for node in &all {
            nodes.remember(node);
            nodes.remember(node);
            assert_eq!(nodes.get(node.id.ino).unwrap(), *node);
        }
        for node in &all {
            nodes.forget(node.id.ino, 1);
            assert_eq!(nodes.get(node.id.ino).unwrap(), *node);
            nodes.forget(node.id.ino, 1);
            assert!(nodes.get(node.id.ino).is_none());
            nodes.forget(node.id.ino, 1);
        }
        assert!(nodes.shards.iter().all(|shard| shard.lock().long_handles.is_empty()));
        assert_eq!(nodes.get(ROOT).unwrap(), nodes.root);
    }

    #[test]
    fn a_reused_number_is_the_new_inode() {
        let nodes = nodes();
        for (old, new) in [(inode(5, &[1; 8]), inode(5, &[2; 8])), (inode(6, &[1; 20]), inode(6, &[2; 8]))] {
            nodes.remember(&old);
            nodes.remember(&new);
            assert_eq!(nodes.get(old.id.ino).unwrap(), new);
            nodes.forget(old.id.ino, 2);
            assert!(nodes.get(old.id.ino).is_none());
        }
        assert!(nodes.shards.iter().all(|shard| shard.lock().long_handles.is_empty()));
    }

    /// `docs/architecture.md` states these figures.
    #[test]
    fn an_entry_is_small_and_its_memory_comes_back() {
        assert_eq!(size_of::<(Halves, Known)>(), 36);
        let nodes = nodes();
        for ino in 1_000..201_000 {
            nodes.remember(&like_xfs(ino));
        }
        let full = bytes(&nodes);
        assert!(full <= 200_000 * 85, "{} bytes an inode", full / 200_000);
        for ino in 1_000..200_000 {
            nodes.forget(ino, 1);
        }
        assert!(bytes(&nodes) < full / 50, "{} bytes stay of {full}", bytes(&nodes));
        assert_eq!(nodes.get(200_500).unwrap(), like_xfs(200_500));
    }

    /// `cargo test --lib -- --ignored --nocapture ten_million`
    #[test]
    #[ignore = "takes 700 MB: the figures of docs/architecture.md"]
    fn ten_million() {
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
        };
        let (nodes, before) = (nodes(), resident());
        for ino in 0..10_000_000 {
            nodes.remember(&like_xfs(ino + 1_000));
            if [1_000_000, 3_000_000, 10_000_000].contains(&(ino + 1)) {
                let count = ino as usize + 1;
                let (asked, taken) = (bytes(&nodes) / count, (resident() - before) / count);
                println!("{count} inodes: {asked} bytes each asked for, {taken} resident");
                assert!(asked <= 85, "{asked} bytes each of {count}");
                assert!(taken <= 90, "{taken} bytes each of {count} are resident");
                assert!(count < 10_000_000 || asked <= 62, "{asked} bytes each of {count}");
            }
        }
        for ino in 0..10_000_000 {
            nodes.forget(ino + 1_000, 1);
        }
        println!("all forgotten: {} bytes asked for, {} resident", bytes(&nodes), resident() - before);
        assert!(bytes(&nodes) < 1 << 20, "{} bytes stay", bytes(&nodes));
    }

    #[test]
    fn lookups_are_counted() {
        let node = |birth| Inode { id: FileId { ino: 12, birth }, ..inode(12, &[0; 8]) };
        let root = inode(2, &[0; 8]);
        let nodes = Nodes::new(root);
        let (file, heir) = (node(5), node(6));
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
