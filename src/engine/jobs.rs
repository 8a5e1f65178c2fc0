//! Jobs: the same action on many files, several at a time.
//!
//! Invariant: a job holds at most `Limits::transfers` files in hand, and besides [`PACKED_IN_HAND`] that go into packs or come from them, whatever the number of its files.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Engine;
use super::announce::Finished;
use super::bulk::Coming;
use super::cell::HOLLOW;
use super::error::{EngineError, EngineResult, Unfit};
use super::verify::{Checked, Verified};
use crate::admission::Requester;
use crate::ports::{Attr, FileKind};
use crate::tier::Activity;
use crate::types::Inode;

/// Pauses between attempts of one file on transient failures (R14: one immediate retry, then back-off).
const RETRY_PAUSES: [Duration; 3] = [Duration::ZERO, Duration::from_millis(500), Duration::from_secs(3)];

/// Pauses before a file in use is given up: close(2) returns before the kernel has told us, so what was written a moment ago may
/// still look open.
pub const IN_USE_PAUSES: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(150)];

/// The same where the asker holds the inode's lock: setxattr(2) does, and every write and truncation of the file waits for it. Who asks
/// so tries again himself (`control::by_xattr`).
const IN_USE_PAUSES_LOCKED: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(20)];

/// Files in hand that go into packs, or come from them: enough to fill one while another is stored, or fetched.
const PACKED_IN_HAND: usize = 2048;

/// How long a job waits for another transfer of a file.
const REST_WITHIN: Duration = Duration::from_secs(30);

/// What to do with each file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobKind {
    Migrate,
    ArchiveOnly,
    Recall,
    Release,
    Pin,
    Unpin,
    /// Lock for retention, or end that.
    Retain {
        on: bool,
    },
    /// Read the object again; with its MD5 if wished.
    Verify {
        md5: bool,
    },
    /// Compare record, object and local content; mend what can be mended without loss.
    Check {
        repair: bool,
    },
    /// Make files of another pair this one's, where this one has what they need.
    Adopt,
}

/// A file that a job is asked to take.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub node: Inode,
    pub attr: Attr,
    /// Relative to the share.
    pub path: PathBuf,
}

/// How one file ended.
#[derive(Debug)]
pub enum Outcome {
    /// It changed state, or was found sound.
    Done,
    /// It was read again, and this is its content's MD5 in hexadecimal.
    Digest(String),
    /// Its record was wrong, and could be mended without a choice between two contents.
    Repaired,
    /// It was as asked already.
    Unchanged,
    Failed(EngineError),
}

/// One file's end.
#[derive(Debug)]
pub struct JobEvent {
    pub file: Candidate,
    pub outcome: Outcome,
}

/// Who wants a job done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asker {
    /// Somebody who waits for the answer, and has the whole task done or failed.
    Person(Arc<Requester>),
    /// The policy, which comes again by itself: while the remote fails everything, that is no failure of the files.
    Policy,
}

/// Files in a row that a policy's job fails for a reason that may pass, before it gives up for now.
const OUTAGE_FILES: usize = 8;

impl Engine {
    /// As [`Engine::run_job_for`] a person, who is `who`.
    pub async fn run_job(
        self: &Arc<Self>,
        who: Arc<Requester>,
        kind: JobKind,
        candidates: mpsc::Receiver<Candidate>,
        events: mpsc::Sender<JobEvent>,
    ) -> EngineResult<()> {
        self.run_job_for(Asker::Person(who), kind, candidates, events).await
    }

    /// Takes every candidate; reports each end, and keeps the dead-letter list. Stops early, and says why, when the pair's configuration
    /// fails every file (the policy's jobs also when the remote does), and silently when nobody listens to `events` any more; what is in
    /// hand then is finished first.
    pub async fn run_job_for(
        self: &Arc<Self>,
        asker: Asker,
        kind: JobKind,
        candidates: mpsc::Receiver<Candidate>,
        events: mpsc::Sender<JobEvent>,
    ) -> EngineResult<()> {
        let mut running = JoinSet::new();
        let ended = self.take_all(asker, kind, candidates, events, &mut running).await;
        // Never aborted: a transfer that stops where it is leaves its file in transit, and its note, until the next start.
        while running.join_next().await.is_some() {}
        ended
    }

    async fn take_all(
        self: &Arc<Self>,
        asker: Asker,
        kind: JobKind,
        mut candidates: mpsc::Receiver<Candidate>,
        events: mpsc::Sender<JobEvent>,
        running: &mut JoinSet<(bool, JobEvent)>,
    ) -> EngineResult<()> {
        let mut failed_in_a_row = 0;
        let mut open = true;
        let mut listing = (kind == JobKind::Recall).then(|| self.list_recalls());
        // Of those that run, who goes into packs, or comes from one.
        let mut packed = 0;
        while open || !running.is_empty() {
            let room = running.len() - packed < self.limits.transfers && packed < PACKED_IN_HAND;
            tokio::select! {
                candidate = candidates.recv(), if open && room => match candidate {
                    None => {
                        open = false;
                        drop(listing.take());
                    }
                    Some(file) => {
                        // Decided once: a pair can change while the file is in hand.
                        let announced = self.announce(kind, &file);
                        let packs = announced.is_some() || self.is_packed_by(kind, &file);
                        packed += usize::from(packs);
                        let (this, asker) = (self.clone(), asker.clone());
                        running.spawn_on(async move {
                            let who = match &asker {
                                Asker::Person(who) => who.clone(),
                                Asker::Policy => Arc::default(),
                            };
                            let ended = this.run_patiently(kind, &file, &who, &IN_USE_PAUSES).await;
                            drop(announced);
                            let outcome = ended.unwrap_or_else(Outcome::Failed);
                            let later = matches!(&outcome, Outcome::Failed(error) if error.is_transient());
                            if !(later && asker == Asker::Policy) {
                                this.note_end(kind, &file, &outcome).await;
                            }
                            (packs, JobEvent { file, outcome })
                        }, &self.runtime);
                    }
                },
                Some(ended) = running.join_next() => {
                    let (packs, event) = ended.map_err(|_| EngineError::ShuttingDown)?;
                    packed -= usize::from(packs);
                    let stop = match &event.outcome {
                        Outcome::Failed(error) if error.is_configuration() => Some(error.clone()),
                        Outcome::Failed(error) if error.is_transient() && asker == Asker::Policy => {
                            failed_in_a_row += 1;
                            let outage = !self.remote_answers().await;
                            if !outage && let Some(task) = kind.task() {
                                self.note_failure(task, &event.file, error).await;
                            }
                            (outage || failed_in_a_row >= OUTAGE_FILES).then(|| error.clone())
                        }
                        Outcome::Failed(_) => None,
                        _ => {
                            failed_in_a_row = 0;
                            None
                        }
                    };
                    if events.send(event).await.is_err() {
                        return Ok(());
                    }
                    if let Some(error) = stop {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether a job of this kind puts the file into a pack, as far as its attributes tell.
    fn is_packed_by(&self, kind: JobKind, file: &Candidate) -> bool {
        let copies = matches!(kind, JobKind::Migrate | JobKind::ArchiveOnly);
        // Where the file goes takes looks at the share: only if it can matter.
        copies
            && self.all_targets().iter().any(|target| target.pack.is_some())
            && self.target_for(&file.node).is_ok_and(|target| target.packs(file.attr.size))
    }

    /// A file whose content is in a pack comes back with others of the job.
    fn announce(self: &Arc<Self>, kind: JobKind, file: &Candidate) -> Option<Coming> {
        let recalls = kind == JobKind::Recall && file.attr.kind == FileKind::Regular && !self.gives_to_peer();
        let cell = recalls.then(|| self.cells.get(&file.node).ok()).flatten();
        cell.filter(|cell| !cell.lock().record.flags.retained).and_then(|cell| self.announce_recall(cell))
    }

    /// One file, with patience for what passes.
    pub async fn run_one(self: &Arc<Self>, kind: JobKind, file: &Candidate) -> EngineResult<Outcome> {
        self.run_patiently(kind, file, &Arc::default(), &IN_USE_PAUSES).await
    }

    /// One file for somebody who keeps its users from going on meanwhile.
    pub async fn run_locked(
        self: &Arc<Self>,
        kind: JobKind,
        file: &Candidate,
        who: &Arc<Requester>,
    ) -> EngineResult<Outcome> {
        let outcome = self.run_patiently(kind, file, who, &IN_USE_PAUSES_LOCKED).await?;
        // A failure is the asker's to know.
        self.note_end(kind, file, &outcome).await;
        Ok(outcome)
    }

    async fn run_patiently(
        self: &Arc<Self>,
        kind: JobKind,
        file: &Candidate,
        who: &Arc<Requester>,
        in_use: &[Duration],
    ) -> EngineResult<Outcome> {
        if file.attr.kind != FileKind::Regular {
            return Err(EngineError::Unfit { file: file.node.id, why: Unfit::NotRegular });
        }
        let (mut pauses, mut in_use) = (RETRY_PAUSES.iter(), in_use.iter());
        loop {
            let (error, pause) = match self.attempt(kind, file, who).await {
                Err(error) if error.is_transient() => {
                    tracing::info!(path = %file.path.display(), "tried again: {error}");
                    (error, pauses.next())
                }
                Err(error) if error.is_in_use() => (error, in_use.next()),
                Err(error) if error.is_busy() => {
                    // Readers are served before their recall is recorded, so this is common right after a read.
                    if !self.wait_for_rest(file).await {
                        return Err(error);
                    }
                    (error, in_use.next())
                }
                ended => return ended,
            };
            let Some(pause) = pause else { return Err(error) };
            tokio::time::sleep(*pause).await;
        }
    }

    /// Waits for another transfer of the file to end; `false`: it takes too long.
    async fn wait_for_rest(&self, file: &Candidate) -> bool {
        let Ok(cell) = self.cells.get(&file.node) else { return false };
        let rest = cell.wait_until(|inner| inner.machine.activity() == Activity::None);
        tokio::time::timeout(REST_WITHIN, rest).await.is_ok()
    }

    async fn attempt(self: &Arc<Self>, kind: JobKind, file: &Candidate, who: &Arc<Requester>) -> EngineResult<Outcome> {
        let cell = match (self.cells.get(&file.node), kind) {
            (Err(EngineError::ChangedBelow { why: HOLLOW, .. }), JobKind::Check { repair: true }) => {
                return self.mend_hollow(&file.node).await.map(|()| Outcome::Repaired);
            }
            (cell, _) => cell?,
        };
        let changed = match kind {
            JobKind::ArchiveOnly => match self.archive(&cell, &file.path).await {
                Err(EngineError::Unfit { why: Unfit::Empty, .. }) => Ok(false),
                Err(error) => Err(error),
                Ok(archived) => {
                    let moved = archived.note.is_some();
                    self.spawn_end(cell, archived.note, Some(Finished::Archived));
                    Ok(moved)
                }
            },
            JobKind::Migrate if self.gives_to_peer() => match self.offer(&cell).await {
                Err(EngineError::Unfit { why: Unfit::Empty, .. }) => Ok(false),
                ended => ended,
            },
            JobKind::Migrate => match self.archive(&cell, &file.path).await {
                Err(EngineError::Unfit { why: Unfit::Empty, .. }) => Ok(false),
                Err(error) => Err(error),
                Ok(archived) => self.release(&cell, archived.note).await,
            },
            JobKind::Release => self.release(&cell, None).await,
            JobKind::Recall => {
                let retained = {
                    let inner = cell.lock();
                    inner.record.flags.retained && inner.machine.claim().is_remote()
                };
                // Who reads it has it brought back all the same.
                if retained {
                    return Err(EngineError::Unfit { file: file.node.id, why: Unfit::Retained });
                }
                self.recall_for(&cell, who).await
            }
            JobKind::Pin | JobKind::Unpin => {
                let this = self.clone();
                super::blocking(move || this.set_pinned(&cell, kind == JobKind::Pin)).await?
            }
            JobKind::Retain { on } => {
                let this = self.clone();
                super::blocking(move || this.set_retained(&cell, on)).await?
            }
            JobKind::Verify { md5 } => {
                return Ok(match self.verify(&cell, md5).await? {
                    None => Outcome::Unchanged,
                    Some(Verified { md5: Some(md5) }) => Outcome::Digest(md5),
                    Some(Verified { md5: None }) => Outcome::Done,
                });
            }
            JobKind::Adopt => self.adopt(&cell).await,
            JobKind::Check { repair } => {
                return Ok(match self.check(&cell, &file.path, repair).await? {
                    Checked::Nothing => Outcome::Unchanged,
                    Checked::Sound => Outcome::Done,
                    Checked::Repaired => Outcome::Repaired,
                });
            }
        };
        changed.map(|changed| if changed { Outcome::Done } else { Outcome::Unchanged })
    }
}
