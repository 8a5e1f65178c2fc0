//! `stat` and what changes it.

use super::error::{FsError, FsResult};
use super::wait::{Blocker, Try};
use super::{Asked, Fs};
use crate::engine::{Admission, EngineError, Patience, same_content};
use crate::kill;
use crate::ports::{Attr, FileKind, SetAttr, SpaceInfo};
use crate::record::Claim;
use crate::tier::Event;
use crate::types::Inode;

impl Fs {
    pub fn attr(&self, id: u64) -> FsResult<Attr> {
        let node = self.node(id)?;
        let attr = self.lower.stat(&node)?;
        Ok(self.shown(&node, attr))
    }

    /// The attributes as users see them: tiering leaves no trace but the freed blocks.
    pub(super) fn shown(&self, node: &Inode, mut attr: Attr) -> Attr {
        if attr.kind != FileKind::Regular {
            return attr;
        }
        // Archivers take a file without blocks for all holes, and skip its content.
        if attr.size > 0 && attr.blocks == 0 {
            attr.blocks = 1;
        }
        if let Some(cell) = self.engine.cells.live(node.id) {
            let inner = cell.lock();
            attr.fleeting = inner.unseen_writers > 0;
            if let Some(mtime) = inner.shown_mtime {
                attr.mtime = mtime;
            }
        }
        attr
    }

    /// Changes attributes; a size change may have to wait for content.
    pub fn try_set_attr(&self, file: &mut Asked, changes: &SetAttr, patience: Patience) -> Try<Attr> {
        let node = match self.asked(file) {
            Ok(node) => node,
            Err(error) => return Try::Done(Err(error)),
        };
        let change = match self.changing_inode(&node) {
            Ok(change) => change,
            Err(error) => return Try::Done(Err(error)),
        };
        let attempt = self.set_attr_inner(node, changes, patience).unwrap_or_else(|error| Try::Done(Err(error)));
        self.recorder().changed(&node);
        if let Some(change) = change {
            change.touched(&node);
        }
        if changes.uid.is_some() {
            // What is registered with the kernel acts as the owner at that time.
            self.let_go(Some(node.id));
        }
        attempt
    }

    fn set_attr_inner(&self, node: Inode, changes: &SetAttr, patience: Patience) -> FsResult<Try<Attr>> {
        self.check_writable()?;
        let event = match changes {
            SetAttr { size: Some(size), .. } => Event::Resize { to_zero: *size == 0 },
            SetAttr { atime: None, mtime: None, .. } => {
                let attr = self.lower.set_attr(&node, changes)?;
                return Ok(Try::Done(Ok(self.shown(&node, attr))));
            }
            _ => Event::SetTimes,
        };
        if event == Event::SetTimes && self.lower.stat(&node)?.kind != FileKind::Regular {
            return Ok(Try::Done(Ok(self.lower.set_attr(&node, changes)?)));
        }
        let cell = self.engine.cells.get(&node)?;
        let Some(_writing) = cell.patching(patience) else {
            return Ok(Try::Blocked(Blocker::thread(&cell)));
        };
        let mut inner = cell.lock();
        if changes.size.is_some() && self.is_replaced(&cell, &inner)? {
            return Err(FsError::Stale);
        }
        // The record must not follow the times of content that is not its object's.
        let beside = event == Event::SetTimes
            && inner.record.claim == Claim::Dual
            && !same_content(&self.lower.stat(&node)?, &inner.record);
        // The other side of a pair was told of these times with the content, or tells them: setting them is a change of content.
        let told = event == Event::SetTimes
            && inner
                .record
                .peer
                .as_ref()
                .is_some_and(|peer| !peer.is_handing_over() && (peer.is_sealed() || peer.is_foreign()));
        let event = if beside || told { Event::Resize { to_zero: false } } else { event };
        match self.engine.admit(&cell, &mut inner, event, patience)? {
            Admission::Go => {}
            other => return Ok(Try::Blocked(Blocker::admission(&cell, other))),
        }
        self.engine.end_filling(&cell, &mut inner)?;
        let base = inner.record.patch.as_ref().map(|patch| patch.base);
        let attr = match (changes.size, base) {
            (Some(size), Some(base)) if size < base => {
                if patience == Patience::None {
                    return Ok(Try::Blocked(Blocker::thread(&cell)));
                }
                let mut attr = None;
                let cut = || self.lower.set_attr(&node, changes).map(|now| attr = Some(now));
                self.engine.cut_patched(&cell, &mut inner, cut, size)?;
                attr.expect("it was cut")
            }
            _ => self.lower.set_attr(&node, changes)?,
        };
        kill::point("attributes.set");
        if base.is_some() {
            drop(inner);
            return Ok(Try::Done(Ok(self.shown(&node, attr))));
        }
        // The record follows the mtime, or the file would look changed below the mount.
        let mut record = inner.record.clone();
        if let Some(object) = record.object.as_mut().filter(|object| object.mtime != attr.mtime) {
            object.mtime = attr.mtime;
            self.lower.save_record(&node, &record.encode()).map_err(EngineError::lower(node.id))?;
            kill::point("attributes.recorded");
            inner.record = record;
        }
        drop(inner);
        Ok(Try::Done(Ok(self.shown(&node, attr))))
    }

    pub fn space(&self) -> FsResult<SpaceInfo> {
        Ok(self.lower.space()?)
    }
}
