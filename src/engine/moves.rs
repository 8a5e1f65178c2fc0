//! What is given another name while somebody walks over the share: a walk may miss it, where it was and where it is.
//!
//! Invariant: what a rename or a link through the mount moved while a watch was there is told by [`MoveWatch::take`], or it fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::Engine;
use crate::types::Inode;

/// Moves remembered.
const MOVES_MAX: usize = 100_000;
/// How long a moment without a rename under way is waited for, in steps of a millisecond.
const STEPS_MAX: usize = 10_000;

#[derive(Default)]
pub(super) struct Moves {
    /// Renames and links under way.
    under_way: AtomicU64,
    /// `None`: nobody watches.
    seen: Mutex<Option<Vec<Inode>>>,
}

/// A rename or link that is under way.
pub struct Moving<'a>(&'a Moves);

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Moving<'_> {
    /// It is done; `find` leads to what was moved.
    pub fn done(&self, find: impl FnOnce() -> Option<Inode>) {
        // Looked at before the search, which costs a lookup.
        if self.0.seen.lock().is_none() {
            return;
        }
        let Some(node) = find() else { return };
        if let Some(seen) = &mut *self.0.seen.lock()
            && seen.len() <= MOVES_MAX
        {
            seen.push(node);
        }
    }
}

/// Remembers moves for as long as it lives.
pub struct MoveWatch(Arc<Engine>);

impl Drop for MoveWatch {
    fn drop(&mut self) {
        *self.0.moves.seen.lock() = None;
    }
}

impl MoveWatch {
    /// What was given another name since the last call. An error: more than can be kept, or they never pause.
    pub async fn take(&self) -> Result<Vec<Inode>, &'static str> {
        let moves = &self.0.moves;
        // One that has moved a file and not told it yet would be missed.
        let mut steps = 0;
        while moves.under_way.load(Ordering::SeqCst) > 0 {
            steps += 1;
            if steps > STEPS_MAX {
                return Err("files are renamed without a pause");
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let seen = moves.seen.lock().replace(Vec::new()).unwrap_or_default();
        if seen.len() > MOVES_MAX { Err("more files were renamed meanwhile than can be followed") } else { Ok(seen) }
    }
}

impl Engine {
    /// To be held while something is given another name.
    pub fn moving(&self) -> Moving<'_> {
        self.moves.under_way.fetch_add(1, Ordering::SeqCst);
        Moving(&self.moves)
    }

    /// Watches from now on. `None`: somebody does already.
    pub fn watch_moves(self: &Arc<Self>) -> Option<MoveWatch> {
        let mut seen = self.moves.seen.lock();
        if seen.is_some() {
            return None;
        }
        *seen = Some(Vec::new());
        Some(MoveWatch(self.clone()))
    }
}
