//! Waiting for a transfer: who waits for what, until when, and how a signal ends it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::Fs;
use super::error::{FsError, FsResult};
use crate::engine::{Admission, Cell, Demand, Emptying, Inner, Stall, shown};
use crate::tier::Activity;
use crate::types::ByteRange;

/// How often a waiting request looks whether its process is being killed. fuser turns FUSE_INTERRUPT off, so nobody tells us.
pub(super) const SIGNAL_PERIOD: Duration = Duration::from_millis(200);

/// How long a change waits for the other side of a pair to say who owns the content.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(30);

/// An attempt that either ended or must wait for a transfer and then be made again.
pub enum Try<T> {
    Done(FsResult<T>),
    Blocked(Blocker),
}

impl<T> Try<T> {
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Try<U> {
        match self {
            Self::Done(result) => Try::Done(result.map(f)),
            Self::Blocked(blocker) => Try::Blocked(blocker),
        }
    }
}

/// Who waits.
#[derive(Clone, Copy, Debug)]
pub struct Waiter {
    /// The requesting thread as the daemon sees it; 0 where it does not.
    pub pid: u32,
    /// The user for whom the request is.
    pub uid: u32,
    /// When its request came.
    pub since: Instant,
}

/// What was taken for the next attempt, and may go when this is dropped.
pub enum Taken {
    /// The content, to be thrown away.
    Empty(Emptying),
    /// What is to be read.
    Content(Demand),
}

/// What an attempt waits for.
pub struct Blocker {
    cell: Arc<Cell>,
    on: On,
}

enum On {
    /// All content, or a range of it.
    Content(Option<ByteRange>),
    /// All of a small file, before it is opened for reading.
    Open(ByteRange),
    /// Whether the requester may have content at all, before a stub is opened for reading.
    Leave,
    /// The end of a short step.
    Step,
    /// The other side of a pair, which owns what is thrown away.
    Owner,
    /// A thread that may wait for the disk: each attempt after the first has one.
    Disk,
}

impl On {
    /// As what the wait is counted; one for the disk alone is none.
    fn stall(&self) -> Option<Stall> {
        match self {
            Self::Content(_) => Some(Stall::Content),
            Self::Open(_) => Some(Stall::Open),
            Self::Step | Self::Owner => Some(Stall::Step),
            Self::Leave | Self::Disk => None,
        }
    }
}

impl Blocker {
    /// What an admission that is not `Go` waits for.
    pub(super) fn admission(cell: &Arc<Cell>, admission: Admission) -> Self {
        let on = match admission {
            Admission::Recall => On::Content(None),
            Admission::TakeEmpty => On::Owner,
            Admission::Sync => On::Disk,
            Admission::Wait | Admission::Go => On::Step,
        };
        Self { cell: cell.clone(), on }
    }

    /// A thread that may wait for the disk, and nothing else.
    pub(super) fn thread(cell: &Arc<Cell>) -> Self {
        Self { cell: cell.clone(), on: On::Disk }
    }

    pub(super) fn open(cell: &Arc<Cell>, all: ByteRange) -> Self {
        Self { cell: cell.clone(), on: On::Open(all) }
    }

    pub(super) fn leave(cell: &Arc<Cell>) -> Self {
        Self { cell: cell.clone(), on: On::Leave }
    }

    pub(super) fn content(cell: &Arc<Cell>, range: Option<ByteRange>) -> Self {
        Self { cell: cell.clone(), on: On::Content(range) }
    }
}

impl Fs {
    /// Waits until an attempt is worth making again. Ends early when the requester is being killed, and with
    /// [`FsError::TryLater`] when it is one that can wait elsewhere ([`super::Delay`]); what it waited for goes on.
    ///
    /// What this gives is to be kept until that attempt is over: it was taken for it, and may be taken away after.
    pub async fn unblock(&self, blocker: Blocker, waiter: Waiter) -> FsResult<Option<Taken>> {
        let (begun, stall, file) = (Instant::now(), blocker.on.stall(), blocker.cell.node.id);
        let ended = self.wait(blocker, waiter).await;
        if let Some(stall) = stall {
            self.engine.totals.note_stall(stall, begun.elapsed());
            self.engine.trace.note(file, || {
                let (who, error) = (self.gate.requesters.of(waiter), ended.as_ref().err().map(ToString::to_string));
                json!({ "event": "waited", "on": stall.as_str(), "for": shown(&who), "ms": begun.elapsed().as_millis() as u64, "error": error })
            });
        }
        ended
    }

    async fn wait(&self, blocker: Blocker, waiter: Waiter) -> FsResult<Option<Taken>> {
        let (file, cell) = (blocker.cell.node.id, blocker.cell.clone());
        let on = match blocker.on {
            // NFS servers open first, as root, and look afterwards whether their client may: that must recall nothing. The client's
            // first read will.
            On::Open(_) | On::Leave if self.delays.passes_on(&self.gate.requesters.of(waiter).program) => {
                return Ok(None);
            }
            On::Leave if self.gate.refuses(&self.gate.requesters.of(waiter)) => return Err(FsError::Withheld),
            on => on,
        };
        let owned = matches!(on, On::Owner);
        let waiting = async {
            match on {
                On::Disk | On::Leave => Ok(None),
                On::Owner => Ok(Some(Taken::Empty(self.engine.take_empty(&blocker.cell).await?))),
                On::Step => {
                    // Who waits for a recall's cancelled end must not wait for the next recall as well, but cancel it, too.
                    let mut cancelled = false;
                    let rests = |inner: &mut Inner| match inner.machine.activity() {
                        Activity::Recalling { cancelled: true } => {
                            cancelled = true;
                            false
                        }
                        Activity::Recalling { cancelled: false } if !cancelled => {
                            // It may go on for as long as somebody reads, or a large file is long.
                            if let Some(recall) = &inner.recall {
                                recall.pause();
                            }
                            false
                        }
                        Activity::Recalling { cancelled: false } => true,
                        Activity::Releasing | Activity::HandingOver => false,
                        Activity::None | Activity::Archiving { .. } => true,
                    };
                    let rest = blocker.cell.wait_until(rests);
                    let Err(_) = tokio::time::timeout(HANDED_OVER_WITHIN, rest).await else { return Ok(None) };
                    // Who owns the content may stay undecided for as long as the other side of a pair is away.
                    match blocker.cell.lock().machine.activity() {
                        Activity::HandingOver => Err(FsError::Undecided),
                        _ => Ok(None),
                    }
                }
                On::Open(all) => self.bring(&blocker.cell, Some(all), true, waiter).await,
                On::Content(range) => self.bring(&blocker.cell, range, false, waiter).await,
            }
        };
        let mut waiting = Box::pin(waiting);
        // The other side's offer is taken only while somebody waits: sent away each time, he would never get it over a slow link.
        let mut patience = (!owned).then(|| self.delays.patience(file));
        loop {
            let left = patience.map(|patience| patience.saturating_sub(waiter.since.elapsed()));
            let period = left.map_or(SIGNAL_PERIOD, |left| left.min(SIGNAL_PERIOD));
            match tokio::time::timeout(period, &mut waiting).await {
                Ok(result) => return result,
                Err(_) if is_signalled(waiter.pid) => {
                    // From here on nothing comes of it; what has is not taken back.
                    drop(waiting);
                    let emptied = if owned { self.engine.emptied(&cell) } else { None };
                    return emptied.map_or(Err(FsError::Interrupted), |emptied| Ok(Some(Taken::Empty(emptied))));
                }
                Err(_) => {}
            }
            if patience.is_some_and(|patience| waiter.since.elapsed() >= patience) {
                if self.delays.applies(file, &self.gate.requesters.of(waiter).program) {
                    return Err(FsError::TryLater);
                }
                patience = None;
            }
        }
    }
}

/// Whether a thread is being killed, or is gone: it has a signal waiting that it does not block (`/proc/PID/status`, proc(5)), and sleeps in
/// our request, so that it can act on the signal only after our answer; or it has ended, as readers can who wait for pages that read-ahead asked for.
pub(super) fn is_signalled(pid: u32) -> bool {
    if pid == 0 {
        return false;
    }
    let status = match std::fs::read_to_string(format!("/proc/{pid}/status")) {
        Ok(status) => status,
        Err(error) => return error.kind() == std::io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH),
    };
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let of = |name| field(name).and_then(|mask| u64::from_str_radix(mask, 16).ok()).unwrap_or(0);
    let ended = field("State:").is_some_and(|state| state.starts_with(['Z', 'X']));
    ended || (of("SigPnd:") | of("ShdPnd:")) & !of("SigBlk:") & !of("SigIgn:") != 0
}
