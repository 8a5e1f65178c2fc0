//! Shared durability: many files wait for one sync.
//!
//! Invariant: [`Barrier::wait`] returns `Ok` only after a sync that *began* after the call has succeeded.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::error::{EngineError, EngineResult};
use crate::ports::{Lower, LowerFile};
use crate::types::Inode;

/// Up to so many waiting files are synced one by one; more share a `syncfs`, which also writes what others left dirty.
const SINGLE_SYNCS_MAX: usize = 3;

struct Waiter {
    node: Inode,
    file: Option<Arc<dyn LowerFile>>,
    done: oneshot::Sender<EngineResult<()>>,
}

/// When the last group was at least so large, many files are on their way: the next one waits a little for company.
const COMPANY_MIN: usize = 4;
const COMPANY_WAIT: Duration = Duration::from_millis(3);

/// Groups syncs of one share.
pub struct Barrier {
    lower: Arc<dyn Lower>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: Vec<Waiter>,
    running: bool,
}

impl Barrier {
    pub fn new(lower: Arc<dyn Lower>) -> Arc<Self> {
        Arc::new(Self { lower, state: Mutex::default() })
    }

    /// Waits until everything done to `node` before this call is on stable storage.
    pub async fn wait(self: &Arc<Self>, node: Inode) -> EngineResult<()> {
        self.wait_through(node, None).await
    }

    /// As [`Barrier::wait`], through a descriptor at hand. Needed while that holds a lease: a second descriptor would wait for it.
    pub async fn wait_through(self: &Arc<Self>, node: Inode, file: Option<Arc<dyn LowerFile>>) -> EngineResult<()> {
        let (done, result) = oneshot::channel();
        let start = {
            let mut state = self.state.lock();
            state.waiting.push(Waiter { node, file, done });
            !std::mem::replace(&mut state.running, true)
        };
        if start {
            let this = self.clone();
            super::start_blocking(move || this.run());
        }
        result.await.unwrap_or(Err(EngineError::ShuttingDown))
    }

    fn run(&self) {
        let mut last = 0;
        loop {
            if last >= COMPANY_MIN {
                std::thread::sleep(COMPANY_WAIT);
            }
            let batch = {
                let mut state = self.state.lock();
                if state.waiting.is_empty() {
                    state.running = false;
                    return;
                }
                std::mem::take(&mut state.waiting)
            };
            last = batch.len();
            if batch.len() <= SINGLE_SYNCS_MAX {
                for Waiter { node, file, done } in batch {
                    let synced = file.map_or_else(|| self.lower.sync_node(&node), |file| file.sync(false));
                    // A receiver that is gone was cancelled: nobody to tell.
                    let _ = done.send(synced.map_err(EngineError::lower(node.id)));
                }
                continue;
            }
            let result = self.lower.sync_all().map_err(Arc::new);
            for Waiter { node, done, .. } in batch {
                let result = result.clone().map_err(|source| EngineError::Lower { file: node.id, source });
                let _ = done.send(result);
            }
        }
    }
}
