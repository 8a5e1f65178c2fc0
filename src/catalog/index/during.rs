//! What was looked at again while a scan runs.
//!
//! A scan reads a directory and is written later; what an event had looked at in between is newer. Nothing is remembered while no scan runs.

use std::collections::HashSet;

/// Inodes, and names, remembered at most.
const SEEN_MAX: usize = 1 << 20;

/// What the scan under way must not overwrite with what it has read before.
#[derive(Default)]
pub(super) struct During(Option<Seen>);

#[derive(Default)]
struct Seen {
    inodes: HashSet<u64>,
    names: HashSet<(u64, Vec<u8>)>,
}

impl During {
    /// A scan begins or ends.
    pub fn watch(&mut self, on: bool) {
        self.0 = on.then(Seen::default);
    }

    pub fn is_watching(&self) -> bool {
        self.0.is_some()
    }

    /// The inode was just looked at. `false`: that cannot be remembered.
    pub fn saw_inode(&mut self, ino: u64) -> bool {
        let Some(seen) = &mut self.0 else { return true };
        let room = seen.inodes.len() < SEEN_MAX;
        if room {
            seen.inodes.insert(ino);
        }
        room
    }

    /// The name was just looked at. `false`: that cannot be remembered.
    pub fn saw_name(&mut self, parent: u64, name: &[u8]) -> bool {
        let Some(seen) = &mut self.0 else { return true };
        let room = seen.names.len() < SEEN_MAX;
        if room {
            seen.names.insert((parent, name.to_owned()));
        }
        room
    }

    /// Whether what a scan has read of a name may be older than what is known.
    pub fn overtaken(&self, parent: u64, name: &[u8], ino: Option<u64>) -> bool {
        self.0.as_ref().is_some_and(|seen| {
            ino.is_some_and(|ino| seen.inodes.contains(&ino))
                || (!seen.names.is_empty() && seen.names.contains(&(parent, name.to_owned())))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_looked_at_meanwhile_overtakes_a_scan() {
        let mut during = During::default();
        assert!(during.saw_name(1, b"a") && !during.overtaken(1, b"a", Some(5)), "no scan runs");
        during.watch(true);
        assert!(during.saw_name(1, b"a") && during.saw_inode(5));
        assert!(during.overtaken(1, b"a", None) && during.overtaken(1, b"a", Some(7)));
        assert!(during.overtaken(2, b"b", Some(5)));
        assert!(!during.overtaken(1, b"b", Some(7)) && !during.overtaken(2, b"a", None));
        during.watch(false);
        assert!(!during.overtaken(1, b"a", Some(5)));
    }
}
