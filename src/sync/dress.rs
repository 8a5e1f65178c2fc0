//! Gives what the slave has the attributes that the master says: owner, mode, extended attributes, times. Of files' contents only the facts of what
//! the master holds, and those by whom they belong to.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::apply::{Applier, Did, Not, Work, kind_of};
use super::wire::{Kind, Node};
use crate::engine::{travelling_xattrs, travels};
use crate::ports::{FileKind, LowerResult, SetAttr, SetTime};
use crate::tree::Attributes;
use crate::types::Inode;

impl Applier {
    /// Gives an inode the attributes that the master says, and counts whether it had others.
    pub(super) fn dress(&self, work: &mut Work<'_>, node: &Inode, is: &Node) -> Did<()> {
        let changed = self.dress_inode(work, node, is, true)?;
        let counts = &mut work.answer.counts;
        *if changed { &mut counts.changed } else { &mut counts.unchanged } += 1;
        Ok(())
    }

    pub(super) fn dress_inode(&self, work: &Work<'_>, node: &Inode, is: &Node, tell: bool) -> Did<bool> {
        let Attributes { mode, uid, gid, atime, mtime, ref xattrs } = is.attributes;
        let attr = self.lower.stat(node)?;
        if attr.kind != kind_of(&is.kind) {
            return Err(Not::Refused { why: "it is of another kind here".into(), conflict: false });
        }
        let mut changed = false;
        if let Kind::Regular(facts) = &is.kind
            && tell
            && facts.held
        {
            // First: set-id bits do not outlive a change of size.
            changed |= if work.dry {
                (attr.size, self.files.facts(node, &attr)?.mtime) != (facts.size, facts.mtime)
            } else {
                self.files.refresh(node, facts, is.origin)?
            };
        }
        let owner = (attr.uid, attr.gid) != (uid, gid);
        changed |= owner;
        if owner && !work.dry {
            let owner = SetAttr { uid: Some(uid), gid: Some(gid), ..SetAttr::default() };
            self.lower.set_attr(node, &owner)?;
        }
        // A change of owner takes them away as well.
        let attr = if changed { self.lower.stat(node)? } else { attr };
        let mode = mode & 0o7777;
        if attr.kind != FileKind::Symlink && attr.mode & 0o7777 != mode {
            changed = true;
            if !work.dry {
                self.lower.set_attr(node, &SetAttr { mode: Some(mode), ..SetAttr::default() })?;
            }
        }
        changed |= self.dress_xattrs(node, xattrs, work.dry)?;
        match &is.kind {
            Kind::Regular(_) => {}
            _ if attr.mtime != mtime => {
                changed = true;
                if !work.dry {
                    let (atime, mtime) = (Some(SetTime::At(atime)), Some(SetTime::At(mtime)));
                    self.lower.set_attr(node, &SetAttr { atime, mtime, ..SetAttr::default() })?;
                }
            }
            _ => {}
        }
        if changed && tell && !work.dry {
            self.files.inode_changed(node.id, owner);
        }
        Ok(changed)
    }

    fn dress_xattrs(&self, node: &Inode, wanted: &[(Vec<u8>, Vec<u8>)], dry: bool) -> LowerResult<bool> {
        let has = travelling_xattrs(&*self.lower, node)?;
        // Whoever told it: nothing of tierfs' own is ever taken.
        let wanted: BTreeMap<&[u8], &[u8]> =
            wanted.iter().filter(|(name, _)| travels(OsStr::from_bytes(name))).map(|(n, v)| (&n[..], &v[..])).collect();
        let mut changed = false;
        for (name, _) in has.iter().filter(|(name, _)| !wanted.contains_key(&name[..])) {
            changed = true;
            if !dry {
                self.lower.remove_xattr(node, OsStr::from_bytes(name))?;
            }
        }
        for (name, value) in wanted {
            if !has.iter().any(|(known, is)| known == name && is == value) {
                changed = true;
                if !dry {
                    self.lower.set_xattr(node, OsStr::from_bytes(name), value, 0)?;
                }
            }
        }
        Ok(changed)
    }
}
