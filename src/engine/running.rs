//! The recalls that run: who asked for each, since when, how far it is; and how one is ended by hand.
//!
//! Invariant: a file is in the list from when somebody was told that its recall runs until that recall has ended, once.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::error::{EngineError, EngineResult};
use super::recall::Recall;
use super::{CUT_WITHIN, Cell, Engine};
use crate::admission::{Class, Requester};
use crate::types::{FileId, Inode, Timestamp, WirePath};

/// Requesters named for one recall; more are counted.
const NAMED_MAX: usize = 16;
/// For so long after a recall was ended by hand those who waited for it start no other one: the kernel asks again by itself for pages that
/// read-ahead did not bring, and would undo what was asked.
const STOPPED_FOR: Duration = Duration::from_secs(5);
/// Recalls ended by hand that are remembered at most.
const STOPPED_MAX: usize = 1024;

/// Something that is let go of when a recall has ended, such as its share of a budget.
pub type Hold = Box<dyn Any + Send + Sync>;

/// Recalls that run, by inode.
#[derive(Default)]
pub(super) struct Running {
    files: Mutex<BTreeMap<FileId, Entry>>,
    stopped: Mutex<VecDeque<Stopped>>,
}

struct Entry {
    node: Inode,
    recall: Arc<Recall>,
    len: u64,
    class: Class,
    since: Timestamp,
    begun: Instant,
    requesters: Vec<Arc<Requester>>,
    /// Processes beyond those.
    more: u64,
    _holds: Vec<Hold>,
}

/// A recall that was ended by hand.
struct Stopped {
    file: FileId,
    at: Instant,
    /// Processes that waited for it; `None`: more than are remembered, so everybody.
    of: Option<Vec<u32>>,
}

/// A recall that runs, for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecallStatus {
    pub path: WirePath,
    /// The inode's number, by which it can be cancelled, too.
    pub inode: u64,
    /// `interactive`, `prefetch` or `bulk`.
    pub class: String,
    pub requesters: Vec<RequesterStatus>,
    /// Further processes that asked for it.
    pub more_requesters: u64,
    /// When it began, seconds since 1970.
    pub since: i64,
    /// How long it has run.
    pub seconds: f64,
    pub bytes_done: u64,
    pub bytes_total: u64,
    /// Bytes a second so far.
    pub rate: u64,
    /// Seconds until it is done at this rate; `None` while nothing has come.
    pub eta: Option<u64>,
}

/// Somebody who asked for a recall.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequesterStatus {
    pub uid: u32,
    /// 0 where it is not known.
    pub pid: u32,
    pub program: String,
    pub cgroup: String,
}

impl Running {
    /// The recall of a file that is to be ended; remembers for whom.
    fn stop(&self, file: FileId) -> Option<Arc<Recall>> {
        let (recall, of) = {
            let files = self.files.lock();
            let entry = files.get(&file)?;
            let of = || entry.requesters.iter().map(|who| who.pid).collect();
            (entry.recall.clone(), (entry.more == 0).then(of))
        };
        let mut stopped = self.stopped.lock();
        let old = |stopped: &Stopped| stopped.at.elapsed() >= STOPPED_FOR;
        while stopped.len() >= STOPPED_MAX || stopped.front().is_some_and(old) {
            stopped.pop_front();
        }
        // Before it ends: who is answered looks here.
        stopped.push_back(Stopped { file, at: Instant::now(), of });
        Some(recall)
    }
}

impl Entry {
    fn status(&self, path: WirePath) -> RecallStatus {
        let seconds = self.begun.elapsed().as_secs_f64();
        let done = self.recall.bytes_done().min(self.len);
        let rate = if seconds > 0.0 { done as f64 / seconds } else { 0.0 };
        RecallStatus {
            path,
            inode: self.node.id.ino,
            class: self.class.as_str().into(),
            requesters: self.requesters.iter().map(|who| told(who)).collect(),
            more_requesters: self.more,
            since: self.since.secs,
            seconds,
            bytes_done: done,
            bytes_total: self.len,
            rate: rate as u64,
            eta: (rate > 0.0).then(|| ((self.len - done) as f64 / rate).ceil() as u64),
        }
    }
}

fn told(who: &Requester) -> RequesterStatus {
    RequesterStatus { uid: who.uid, pid: who.pid, program: who.program.clone(), cgroup: who.cgroup.clone() }
}

impl Engine {
    /// As [`Engine::start_recall`], in the name of `who`. `hold` is let go of when the recall has ended, or is not needed.
    pub async fn start_recall_for(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        who: &Arc<Requester>,
        class: Class,
        hold: Option<Hold>,
    ) -> EngineResult<Option<Arc<Recall>>> {
        if self.was_stopped(cell.node.id, who) {
            return Err(EngineError::Stopped);
        }
        let recall = self.start_recall(cell).await?;
        if let Some(recall) = &recall {
            self.enlist(cell, recall, who, class, hold);
        }
        Ok(recall)
    }

    /// As [`Engine::recall`], in the name of `who`.
    pub async fn recall_for(self: &Arc<Self>, cell: &Arc<Cell>, who: &Arc<Requester>) -> EngineResult<bool> {
        loop {
            let started = self.start_recall_for(cell, who, Class::Bulk, None).await?;
            let Some(recall) = started else { return Ok(false) };
            match self.or_stopped(cell.node.id, who, recall.finished().await) {
                // Somebody cut the file to nothing meanwhile: there is most likely nothing to bring back any more.
                Err(EngineError::Cancelled) => tokio::time::sleep(CUT_WITHIN).await,
                ended => return ended.map(|()| true),
            }
        }
    }

    fn enlist(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        recall: &Arc<Recall>,
        who: &Arc<Requester>,
        class: Class,
        hold: Option<Hold>,
    ) {
        let id = cell.node.id;
        let len = cell.lock().record.object.as_ref().map_or(0, |object| object.len);
        let fresh = {
            let mut files = self.running.files.lock();
            let known = files.get(&id).is_some_and(|entry| Arc::ptr_eq(&entry.recall, recall));
            if !known {
                files.insert(
                    id,
                    Entry {
                        node: cell.node,
                        recall: recall.clone(),
                        len,
                        class,
                        since: self.now(),
                        begun: Instant::now(),
                        requesters: Vec::new(),
                        more: 0,
                        _holds: Vec::new(),
                    },
                );
            }
            let entry = files.get_mut(&id).expect("it is there or was put there");
            entry.class = entry.class.min(class);
            entry._holds.extend(hold);
            if !entry.requesters.iter().any(|known| known.pid == who.pid && known.uid == who.uid) {
                if entry.requesters.len() < NAMED_MAX {
                    entry.requesters.push(who.clone());
                } else {
                    entry.more += 1;
                }
            }
            !known
        };
        if fresh {
            let (this, recall) = (self.clone(), recall.clone());
            self.runtime.spawn(async move {
                let _ = recall.finished().await;
                let gone = {
                    let mut files = this.running.files.lock();
                    let own = files.get(&id).is_some_and(|entry| Arc::ptr_eq(&entry.recall, &recall));
                    if own { files.remove(&id) } else { None }
                };
                // What it holds is let go of outside of the lock.
                drop(gone);
            });
        }
    }

    /// The recalls that run of those files that `wanted` says, each under the path it has now.
    pub fn running_recalls(&self, wanted: impl Fn(&Inode, &[Arc<Requester>]) -> bool) -> Vec<(FileId, RecallStatus)> {
        let files = self.running.files.lock();
        let nodes: Vec<Inode> =
            files.values().filter(|entry| wanted(&entry.node, &entry.requesters)).map(|entry| entry.node).collect();
        drop(files);
        let mut found = Vec::with_capacity(nodes.len());
        for node in nodes {
            let path = self.lower.path_of(&node).ok().flatten().unwrap_or_default();
            if let Some(entry) = self.running.files.lock().get(&node.id) {
                found.push((node.id, entry.status(WirePath::from_path(&path))));
            }
        }
        found
    }

    /// Ends the recall of a file and waits for its end; what it has written is freed, and who waits for it is answered [`EngineError::Stopped`].
    /// `false`: none runs.
    pub async fn stop_recall(&self, file: FileId) -> bool {
        let Some(recall) = self.running.stop(file) else { return false };
        recall.cancel();
        // It is cancelled, or came to its end before.
        let _ = recall.finished().await;
        true
    }

    /// Whether a recall that `who` waited for was ended by hand a moment ago.
    fn was_stopped(&self, file: FileId, who: &Requester) -> bool {
        self.running.stopped.lock().iter().any(|stopped| {
            let his = stopped.of.as_ref().is_none_or(|of| of.contains(&who.pid));
            stopped.file == file && his && stopped.at.elapsed() < STOPPED_FOR
        })
    }

    /// Tells a recall that somebody ended by hand from one that became needless.
    pub fn or_stopped(&self, file: FileId, who: &Requester, ended: EngineResult<()>) -> EngineResult<()> {
        match ended {
            Err(EngineError::Cancelled) if self.was_stopped(file, who) => Err(EngineError::Stopped),
            ended => ended,
        }
    }
}
