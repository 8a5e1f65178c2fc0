//! The recalls that run: who asked for each, since when, how far it is; and how one is ended by hand.
//!
//! Invariant: a file is in the list from when somebody was told that its recall runs until that recall has ended, once.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Notify;

use super::error::{EngineError, EngineResult};
use super::recall::{Demand, Recall, Wish};
use super::slots::Permit;
use super::trace::shown;
use super::{CUT_WITHIN, Cell, Engine};
use crate::admission::{Class, Requester};
use crate::types::{FileId, Inode, Timestamp, WirePath};

/// Requesters of one recall that are named, and that are counted.
const NAMED_MAX: usize = 16;
const KNOWN_MAX: usize = 1024;
/// For so long after a recall was ended by hand those who waited for it start no other one: the kernel asks again by itself for pages that
/// read-ahead did not bring, and would undo what was asked.
const STOPPED_FOR: Duration = Duration::from_secs(5);
/// Recalls ended by hand that are remembered at most.
const STOPPED_MAX: usize = 1024;

/// Recalls that run, by inode.
#[derive(Default)]
pub(super) struct Running {
    files: Mutex<BTreeMap<FileId, Entry>>,
    /// Who is about to have a recall started: it may want its first slot before it is in the list.
    asking: Mutex<HashMap<FileId, VecDeque<(Class, u32)>>>,
    /// Somebody of a higher class joined a recall.
    raised: Notify,
    stopped: Mutex<VecDeque<Stopped>>,
}

struct Entry {
    node: Inode,
    recall: Arc<Recall>,
    /// Of the whole content.
    len: u64,
    class: Class,
    since: Timestamp,
    begun: Instant,
    requesters: Vec<Arc<Requester>>,
    /// All of them, by user and process, as far as that is bounded.
    known: HashSet<(u32, u32)>,
}

/// Takes a note of [`Running::asking`] away.
struct Asking<'e> {
    engine: &'e Engine,
    file: FileId,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut asking = self.engine.running.asking.lock();
        if let Some(line) = asking.get_mut(&self.file) {
            line.pop_front();
            if line.is_empty() {
                asking.remove(&self.file);
            }
        }
    }
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
    /// What was not here when it began; not all of it need be wanted.
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
    /// As what a file's recall is fetched, and for whom. What nobody is known to have asked for is somebody's who waits.
    pub(super) fn class_of(&self, file: FileId) -> (Class, u32) {
        let listed =
            self.files.lock().get(&file).map(|entry| (entry.class, entry.requesters.first().map_or(0, |who| who.uid)));
        let asking = self.asking.lock().get(&file).and_then(|line| line.iter().min().copied());
        listed.into_iter().chain(asking).min().unwrap_or((Class::Interactive, 0))
    }

    /// Waits until somebody of a higher class than `class` wants the file's recall.
    pub(super) async fn until_above(&self, file: FileId, class: Class) {
        loop {
            let raised = self.raised.notified();
            tokio::pin!(raised);
            // Registered before looking, or somebody who joins in between would be missed.
            raised.as_mut().enable();
            if self.class_of(file).0 < class {
                return;
            }
            raised.await;
        }
    }

    /// The recall of a file that is to be ended; remembers for whom.
    fn stop(&self, file: FileId) -> Option<Arc<Recall>> {
        let (recall, of) = {
            let files = self.files.lock();
            let entry = files.get(&file)?;
            let of = || entry.known.iter().map(|(_, pid)| *pid).collect();
            (entry.recall.clone(), (entry.known.len() < KNOWN_MAX).then(of))
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
        let done = self.recall.bytes_done();
        // Counted in whole chunks; the last one is shorter.
        let missing = self.recall.with_plan(|plan| plan.missing()).min(self.len.saturating_sub(done));
        let rate = if seconds > 0.0 { done as f64 / seconds } else { 0.0 };
        RecallStatus {
            path,
            inode: self.node.id.ino,
            class: self.class.as_str().into(),
            requesters: self.requesters.iter().map(|who| told(who)).collect(),
            more_requesters: (self.known.len() - self.requesters.len()) as u64,
            since: self.since.secs,
            seconds,
            bytes_done: done,
            bytes_total: done + missing,
            rate: rate as u64,
            eta: (rate > 0.0).then(|| (missing as f64 / rate).ceil() as u64),
        }
    }
}

fn told(who: &Requester) -> RequesterStatus {
    RequesterStatus { uid: who.uid, pid: who.pid, program: who.program.clone(), cgroup: who.cgroup.clone() }
}

impl Engine {
    /// As [`Engine::start_recall`], in the name of `who`.
    pub async fn start_recall_for(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        wish: Wish,
        who: &Arc<Requester>,
        class: Class,
    ) -> EngineResult<Option<Demand>> {
        let file = cell.node.id;
        if self.was_stopped(file, who) {
            return Err(EngineError::Stopped);
        }
        self.running.asking.lock().entry(file).or_default().push_back((class, who.uid));
        let _asking = Asking { engine: self, file };
        let demand = self.start_recall(cell, wish).await?;
        if let Some(demand) = &demand {
            self.enlist(cell, &demand.recall, who, class);
        }
        Ok(demand)
    }

    /// As [`Engine::recall`], in the name of `who`.
    pub async fn recall_for(self: &Arc<Self>, cell: &Arc<Cell>, who: &Arc<Requester>) -> EngineResult<bool> {
        loop {
            let started = self.start_recall_for(cell, Wish::ALL, who, Class::Bulk).await?;
            let Some(demand) = started else { return Ok(false) };
            match self.or_stopped(cell.node.id, who, demand.met().await) {
                // Somebody cut the file to nothing meanwhile: there is most likely nothing to bring back any more.
                Err(EngineError::Cancelled) => tokio::time::sleep(CUT_WITHIN).await,
                ended => return ended.map(|()| true),
            }
        }
    }

    fn enlist(self: &Arc<Self>, cell: &Arc<Cell>, recall: &Arc<Recall>, who: &Arc<Requester>, class: Class) {
        let id = cell.node.id;
        let len = cell.lock().record.object.as_ref().map_or(0, |object| object.len);
        let raised;
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
                        known: HashSet::new(),
                    },
                );
            }
            let entry = files.get_mut(&id).expect("it is there or was put there");
            raised = class < entry.class;
            entry.class = entry.class.min(class);
            let is_new = entry.known.len() < KNOWN_MAX && entry.known.insert((who.uid, who.pid));
            if is_new {
                self.trace.note(id, || json!({ "event": "recall", "for": shown(who), "class": class.as_str() }));
            }
            if is_new && entry.requesters.len() < NAMED_MAX {
                entry.requesters.push(who.clone());
            }
            !known
        };
        if raised {
            self.running.raised.notify_waiters();
        }
        if fresh {
            self.totals.note_recall(class);
            let (this, recall) = (self.clone(), recall.clone());
            self.runtime.spawn(async move {
                recall.finished().await;
                let mut files = this.running.files.lock();
                if files.get(&id).is_some_and(|entry| Arc::ptr_eq(&entry.recall, &recall)) {
                    files.remove(&id);
                }
            });
        }
    }

    /// A slot and memory for `bytes` of a file's recall, as its most pressing requester may have it; `ahead`: nobody waits for them yet.
    pub(super) async fn slot_for(&self, file: FileId, ahead: bool, bytes: u64) -> EngineResult<Permit> {
        let wanted = || {
            let (class, uid) = self.running.class_of(file);
            (if ahead { class.max(Class::Prefetch) } else { class }, uid)
        };
        loop {
            let (class, uid) = wanted();
            let permit = self.slots.acquire_asking(class, uid, bytes);
            tokio::pin!(permit);
            loop {
                let raised = self.running.raised.notified();
                tokio::pin!(raised);
                // Registered before looking, or somebody who joins in between would be missed.
                raised.as_mut().enable();
                if wanted().0 < class {
                    // To a better line.
                    break;
                }
                tokio::select! {
                    biased;
                    permit = &mut permit => {
                        self.line.set_memory_is_short(self.slots.is_short());
                        return permit;
                    }
                    () = raised => {}
                }
            }
        }
    }

    /// The recalls that run of those files that `wanted` says, each under the path it has now.
    pub fn running_recalls(&self, wanted: impl Fn(&Inode, &[Arc<Requester>]) -> bool) -> Vec<(FileId, RecallStatus)> {
        let files = self.running.files.lock();
        // One that only waits for its readers to read on brings nothing at present.
        let runs = |entry: &&Entry| !entry.recall.with_plan(|plan| plan.is_at_rest());
        let nodes: Vec<Inode> = files
            .values()
            .filter(runs)
            .filter(|entry| wanted(&entry.node, &entry.requesters))
            .map(|entry| entry.node)
            .collect();
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

    /// Recalls that run, by class: those that bring something, and those that only wait for their readers to read on.
    pub fn recall_counts(&self) -> [(Class, u64, u64); Class::ALL.len()] {
        let files = self.running.files.lock();
        Class::ALL.map(|class| {
            let of = files.values().filter(|entry| entry.class == class);
            let (resting, fetching): (Vec<_>, Vec<_>) =
                of.partition(|entry| entry.recall.with_plan(|plan| plan.is_at_rest()));
            (class, fetching.len() as u64, resting.len() as u64)
        })
    }

    /// Ends the recall of a file and waits for its end; what has come stays, and who waits for more is answered [`EngineError::Stopped`].
    /// `false`: none runs.
    pub async fn stop_recall(&self, file: FileId) -> bool {
        let Some(recall) = self.running.stop(file) else { return false };
        recall.pause();
        recall.finished().await;
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
    pub fn or_stopped<T>(&self, file: FileId, who: &Requester, ended: EngineResult<T>) -> EngineResult<T> {
        match ended {
            Err(EngineError::Cancelled) if self.was_stopped(file, who) => Err(EngineError::Stopped),
            ended => ended,
        }
    }
}
