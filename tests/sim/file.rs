//! An open file of the simulated share.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};

use parking_lot::MutexGuard;
use tierfs::ports::*;
use tierfs::record::Claim;
use tierfs::types::Inode;

use crate::bugs::Bug;
use crate::content::PAGE;
use crate::disk::Change;
use crate::plan::{Fault, Kind};
use crate::share::{attr, fail, found, record_of, step, sync};
use crate::world::{State, World};

pub struct SimFile {
    world: Arc<World>,
    life: u32,
    node: Inode,
    id: u64,
}

/// A write lease; other openers wait while it lives.
struct Lease {
    world: Arc<World>,
    life: u32,
    ino: u64,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.world.lock();
        if state.life() == self.life {
            state.leases.remove(&self.ino);
        }
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut state = self.world.lock();
        // What a dead process had open was closed when it ended.
        if state.life() == self.life {
            state.close(self.id);
        }
    }
}

impl SimFile {
    pub fn open(state: &mut State, world: Arc<World>, life: u32, node: Inode, write: bool) -> Self {
        let id = state.open(node.id.ino, write, false);
        Self { world, life, node, id }
    }

    fn step(&self, kind: Kind, op: &'static str) -> LowerResult<(MutexGuard<'_, State>, Option<Fault>)> {
        let ino = self.node.id.ino;
        let (state, fault) = step(&self.world, self.life, kind, op, || format!("{ino}"))?;
        found(&state, op, &self.node)?;
        Ok((state, fault))
    }
}

impl LowerFile for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> LowerResult<usize> {
        let (state, _) = self.step(Kind::Look, "pread")?;
        Ok(state.disk.seen.nodes[&self.node.id.ino].content.read(buf, offset))
    }

    fn write_at(&self, data: &[u8], offset: u64) -> LowerResult<()> {
        let ino = self.node.id.ino;
        let told = || format!("{ino} {offset}+{}", data.len());
        let (mut state, fault) = step(&self.world, self.life, Kind::Store, "pwrite", told)?;
        found(&state, "pwrite", &self.node)?;
        let at = state.stamp();
        if let Some(Fault::Partly(errno)) = fault {
            let part = state.dice.below(data.len() as u64) as usize;
            state.disk.write(ino, offset, &data[..part], at);
            return fail("pwrite", errno);
        }
        state.disk.write(ino, offset, data, at);
        Ok(())
    }

    fn set_len(&self, size: u64) -> LowerResult<()> {
        let (mut state, _) = self.step(Kind::Change, "ftruncate")?;
        let at = state.stamp();
        state.disk.change(Change::Size { ino: self.node.id.ino, size }, at);
        Ok(())
    }

    /// Freed blocks read as zeros: here they are.
    fn allocate(&self, mode: i32, offset: u64, len: u64) -> LowerResult<()> {
        if mode != PUNCH {
            return fail("fallocate", libc::EOPNOTSUPP);
        }
        let size = self.stat()?.size;
        self.write_at(&vec![0; len.min(size.saturating_sub(offset)) as usize], offset)
    }

    fn seek(&self, offset: u64, to: SeekTo) -> LowerResult<u64> {
        let (state, _) = self.step(Kind::Look, "lseek")?;
        let content = &state.disk.seen.nodes[&self.node.id.ino].content;
        if offset >= content.size {
            return fail("lseek", libc::ENXIO);
        }
        let is_data = |index: &u64| content.pages.contains_key(index) == (to == SeekTo::Data);
        let mut pages = offset / PAGE..content.size.div_ceil(PAGE);
        match (pages.find(is_data), to) {
            (Some(index), _) => Ok(offset.max(index * PAGE)),
            (None, SeekTo::Hole) => Ok(content.size),
            (None, SeekTo::Data) => fail("lseek", libc::ENXIO),
        }
    }

    fn copy_to(&self, _: u64, _: &dyn LowerFile, _: u64, _: u64) -> LowerResult<usize> {
        fail("copy_file_range", libc::EXDEV)
    }

    fn sync(&self, _: bool) -> LowerResult<()> {
        let (mut state, fault) = self.step(Kind::Sync, "fsync")?;
        if state.has(Bug::LeasedSyncIdle) && state.leases.contains(&self.node.id.ino) {
            return Ok(());
        }
        sync(&mut state, self.node.id.ino, fault)
    }

    fn stat(&self) -> LowerResult<Attr> {
        let (state, _) = self.step(Kind::Look, "fstat")?;
        Ok(attr(self.node.id.ino, &state.disk.seen.nodes[&self.node.id.ino]))
    }

    fn xattr(&self, name: &OsStr) -> LowerResult<Vec<u8>> {
        let (state, _) = self.step(Kind::Look, "fgetxattr")?;
        match state.disk.seen.nodes[&self.node.id.ino].xattrs.get(name) {
            Some(value) => Ok(value.to_vec()),
            None => fail("fgetxattr", libc::ENODATA),
        }
    }

    fn as_owner(&self, act: &mut dyn FnMut()) -> LowerResult<()> {
        self.world.lock().acting = Some(self.id);
        act();
        self.world.lock().acting = None;
        Ok(())
    }

    /// Any descriptor: who registers it looks at [`State::acting`].
    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        static NULL: OnceLock<std::fs::File> = OnceLock::new();
        Some(NULL.get_or_init(|| std::fs::File::open("/dev/null").expect("/dev/null")).as_fd())
    }

    fn punch_all(&self) -> LowerResult<()> {
        let ino = self.node.id.ino;
        let (mut state, _) = self.step(Kind::Change, "punch")?;
        let mut claimed = None;
        state.disk.outcomes(ino, |node| {
            let Some(node) = node.filter(|node| node.birth == self.node.id.birth && node.content.size > 0) else {
                return;
            };
            let claim = record_of(node).map_or(Claim::Resident, |record| record.claim);
            if !claim.is_remote() {
                claimed = Some(claim);
            }
        });
        if let Some(claim) = claimed {
            self.world.broken(&mut state, format!("file {ino}: blocks are freed while a {claim:?} record may survive"));
        }
        let at = state.stamp();
        state.disk.change(Change::Punch { ino }, at);
        Ok(())
    }

    fn try_exclusive(&self) -> LowerResult<Option<Box<dyn Send + Sync>>> {
        let (mut state, _) = self.step(Kind::Look, "write lease")?;
        let ino = self.node.id.ino;
        let others = state.opens.iter().any(|(id, open)| open.ino == ino && *id != self.id);
        if (others && !state.has(Bug::LeasesLie)) || !state.leases.insert(ino) {
            return Ok(None);
        }
        Ok(Some(Box::new(Lease { world: self.world.clone(), life: self.life, ino })))
    }

    fn nobody_writes(&self) -> LowerResult<bool> {
        let (state, _) = self.step(Kind::Look, "read lease")?;
        let writers = state.opens.values().any(|open| open.ino == self.node.id.ino && open.write);
        Ok(!writers || state.has(Bug::LeasesLie))
    }
}
