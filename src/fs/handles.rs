//! Open handles: number → what is open.
//!
//! A number carries the epoch of this daemon in its upper half, so that one from before a restart is told apart.

use std::sync::Arc;

use parking_lot::RwLock;

use super::error::{FsError, FsResult};

/// Handles of one kind.
pub struct Handles<T> {
    epoch: u64,
    slots: RwLock<Slots<T>>,
}

struct Slots<T> {
    open: Vec<Option<Arc<T>>>,
    free: Vec<u32>,
}

impl<T> Handles<T> {
    /// `epoch`: any number that differs between two runs of the daemon.
    pub fn new(epoch: u32) -> Self {
        Self { epoch: u64::from(epoch) << 32, slots: RwLock::new(Slots { open: Vec::new(), free: Vec::new() }) }
    }

    fn index(&self, fh: u64) -> FsResult<usize> {
        if fh & !0xffff_ffff == self.epoch { Ok((fh & 0xffff_ffff) as usize) } else { Err(FsError::BadHandle) }
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        let slots = self.slots.read();
        slots.open.len() - slots.free.len()
    }

    /// All that are open, one at a time, without a lock between them.
    pub fn each(&self, mut look: impl FnMut(&T)) {
        let mut at = 0;
        loop {
            let value = match self.slots.read().open.get(at) {
                None => return,
                Some(value) => value.clone(),
            };
            value.iter().for_each(|value| look(value));
            at += 1;
        }
    }

    pub fn insert(&self, value: T) -> u64 {
        let mut slots = self.slots.write();
        let value = Some(Arc::new(value));
        let index = match slots.free.pop() {
            Some(index) => {
                slots.open[index as usize] = value;
                index
            }
            None => {
                slots.open.push(value);
                slots.open.len() as u32 - 1
            }
        };
        self.epoch | u64::from(index)
    }

    pub fn get(&self, fh: u64) -> FsResult<Arc<T>> {
        let index = self.index(fh)?;
        self.slots.read().open.get(index).and_then(Clone::clone).ok_or(FsError::BadHandle)
    }

    pub fn remove(&self, fh: u64) -> FsResult<Arc<T>> {
        let index = self.index(fh)?;
        let mut slots = self.slots.write();
        let value = slots.open.get_mut(index).and_then(Option::take).ok_or(FsError::BadHandle)?;
        slots.free.push(index as u32);
        Ok(value)
    }
}
