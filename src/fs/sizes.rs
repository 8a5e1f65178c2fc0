//! How large the tables of a mount are, and what space removed files still hold: for reports, never on the way of a request.

use std::collections::HashMap;

use super::Fs;
use crate::types::{FileId, Inode};

/// Entries of the mount's tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Inodes that the kernel knows.
    pub inodes: usize,
    /// Open handles of files.
    pub handles: usize,
    /// Directories in the midst of a listing.
    pub listings: usize,
    /// Removed files that the kernel still knows.
    pub removed: usize,
}

impl Fs {
    pub fn sizes(&self) -> Sizes {
        Sizes {
            inodes: self.nodes.len(),
            handles: self.files.len(),
            listings: self.listings.len(),
            removed: self.held.len(),
        }
    }

    /// Files that were removed through the mount and take space until they are closed: how many, and their allocated bytes. Looks at every open
    /// handle: not for every request.
    pub fn removed_space(&self) -> (u64, u64) {
        let mut open: HashMap<FileId, Inode> = self.held.nodes().into_iter().map(|node| (node.id, node)).collect();
        self.files.each(|file| {
            open.insert(file.cell.node.id, file.cell.node);
        });
        let gone = open.values().filter_map(|node| self.lower.stat(node).ok()).filter(|attr| attr.nlink == 0);
        gone.fold((0, 0), |(files, bytes), attr| (files + 1, bytes + attr.blocks * 512))
    }
}
