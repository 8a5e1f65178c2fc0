//! Running policies: when one is due, and how its files are handed to the engine, within its limits.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};

use super::at_work::Work;
use super::choose::{Chosen, Left, Picked};
use super::memory::{Memory, is_due};
use super::parse::{Policies, PolicyError, load};
use super::rule::{Action, Rule};
use crate::catalog::index::{Index, IndexError, ScanOptions, Who, now_s};
use crate::catalog::walk::{Found, on_own_thread, seek};
use crate::control::protocol::{PolicyGlance, PolicyRun, Stopped};
use crate::control::unfit::Standing;
use crate::engine::{Asker, Candidate, Choice, Engine, EngineError, EngineResult, JobEvent, JobKind, Outcome};
use crate::ports::{FileKind, Journal, Lower};
use crate::types::Inode;

/// Files that one run remembers to have tried: 16 bytes each.
const TRIED_MAX: usize = 1_000_000;
/// How often it is looked whether something is due.
const TICK: Duration = Duration::from_secs(1);
/// After a scan of the index failed.
const PAUSE_UNREADABLE: Duration = Duration::from_secs(60);

/// Where a run's files are told, one by one.
pub enum Tell {
    Nobody,
    /// Only show what would be taken.
    Candidates(mpsc::Sender<Picked>),
    Events(mpsc::Sender<JobEvent>),
}

/// Rules that take turns. What fills a share does not wait for a rule that works all night.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    Scheduled,
    Triggered,
}

impl Lane {
    fn of(rule: &Rule) -> Self {
        if rule.is_triggered() { Self::Triggered } else { Self::Scheduled }
    }
}

/// The policies of a mount.
pub struct Manager {
    pub(super) lower: Arc<dyn Lower>,
    pub(super) engine: Arc<Engine>,
    pub(super) index: Arc<Index>,
    path: Option<PathBuf>,
    rules: Mutex<Arc<Policies>>,
    pub(super) memory: Memory,
    at_work: Mutex<Vec<Arc<Work>>>,
    /// One run of each lane at a time: two would choose the same files. Of two lanes' runs that do, the engine lets one wait for the other.
    scheduled: tokio::sync::Mutex<()>,
    triggered: tokio::sync::Mutex<()>,
}

impl Manager {
    /// `path`: the file of policies, which was read as `policies`; `journal` remembers how they ran.
    pub async fn open(
        lower: Arc<dyn Lower>,
        engine: Arc<Engine>,
        index: Arc<Index>,
        journal: Arc<dyn Journal>,
        path: Option<PathBuf>,
        policies: Policies,
    ) -> Arc<Self> {
        Arc::new(Self {
            lower,
            engine,
            index,
            path,
            rules: Mutex::new(Arc::new(policies)),
            memory: Memory::open(journal).await,
            at_work: Mutex::default(),
            scheduled: tokio::sync::Mutex::default(),
            triggered: tokio::sync::Mutex::default(),
        })
    }

    pub fn policies(&self) -> Arc<Policies> {
        self.rules.lock().clone()
    }

    /// Reads the file again. What is wrong with it leaves the old ones in force; runs of rules that are other ones now, or none, end.
    pub fn reload(&self) -> Result<usize, PolicyError> {
        let Some(path) = &self.path else { return Ok(0) };
        let policies = Arc::new(load(path)?);
        *self.rules.lock() = policies.clone();
        for work in self.at_work.lock().iter() {
            work.look(&policies, now_s());
        }
        Ok(policies.rules.len())
    }

    /// How a policy's last run went.
    pub fn last_run(&self, name: &str) -> Option<PolicyRun> {
        self.memory.last_run(name)
    }

    /// How far a policy's run is that is at work.
    pub fn running(&self, name: &str) -> Option<PolicyRun> {
        self.at_work.lock().iter().find(|work| work.rule.name == name).map(|work| work.run())
    }

    /// How all do: those in force, in their order, then those that are so no more and are at work still.
    pub fn at_a_glance(&self) -> Vec<PolicyGlance> {
        let policies = self.policies();
        let glance = |rule: &Rule| {
            let (running, last) = (self.running(&rule.name), self.last_run(&rule.name));
            PolicyGlance { name: rule.name.clone(), action: rule.action_text(), running, last }
        };
        let mut all: Vec<PolicyGlance> = policies.rules.iter().map(glance).collect();
        let at_work = self.at_work.lock().clone();
        let gone = at_work.iter().filter(|work| policies.rules.iter().all(|rule| rule.name != work.rule.name));
        all.extend(gone.map(|work| glance(&work.rule)));
        all
    }

    /// Ends a policy's run: nothing more is begun. Whether there was one.
    pub fn stop(&self, name: &str) -> bool {
        let at_work = self.at_work.lock();
        let mut meant = at_work.iter().filter(|work| work.rule.name == name).peekable();
        let any = meant.peek().is_some();
        meant.for_each(|work| work.stop(Stopped::Asked));
        any
    }

    /// Runs what is due until the runtime ends.
    pub async fn run(self: Arc<Self>) {
        tokio::join!(self.run_lane(Lane::Scheduled), self.run_lane(Lane::Triggered));
    }

    async fn run_lane(self: &Arc<Self>, lane: Lane) {
        loop {
            tokio::time::sleep(TICK).await;
            let policies = self.policies();
            if policies.rules.iter().all(|rule| !rule.enabled) || self.engine.is_stopping() {
                continue;
            }
            match lane {
                Lane::Scheduled => {
                    if let Err(error) = self.refresh(&policies).await {
                        tracing::warn!("policies wait for the index: {error}");
                        tokio::time::sleep(PAUSE_UNREADABLE).await;
                        continue;
                    }
                }
                // One that is behind costs time, never a file; a share that is full does not wait for a scan.
                Lane::Triggered if self.index.is_empty() => continue,
                Lane::Triggered => {}
            }
            for rule in policies.rules.iter().filter(|rule| rule.enabled && Lane::of(rule) == lane) {
                // After a reload these are the rules no more.
                if !Arc::ptr_eq(&policies, &self.policies()) {
                    break;
                }
                if is_due(rule, self.last_run(&rule.name).as_ref(), now_s()) {
                    let run = self.run_rule(rule, false, &Tell::Nobody).await;
                    if run.files + run.failed > 0 || run.problem.is_some() || run.stopped.is_some() {
                        tracing::info!(
                            policy = rule.name,
                            files = run.files,
                            bytes = run.bytes,
                            failed = run.failed,
                            problem = run.problem,
                            stopped = run.stopped.map(|why| why.to_string()),
                            "policy run"
                        );
                    }
                }
            }
        }
    }

    /// Sees to it that the index is whole and not too old.
    async fn refresh(&self, policies: &Policies) -> Result<(), String> {
        let old = policies.rescan.is_some_and(|every| {
            let every = i64::try_from(every.as_secs()).unwrap_or(i64::MAX);
            self.index.scan_ended().is_none_or(|at| now_s().saturating_sub(at) >= every)
        });
        if self.index.is_fresh() && !old {
            return Ok(());
        }
        let (index, rate) = (self.index.clone(), policies.scan_rate);
        let scanned = on_own_thread(move || index.scan(ScanOptions { rate, threads: 0 })).await;
        match scanned {
            Some(Ok(_)) => Ok(()),
            // Somebody scans by hand: policies go on when that is over.
            Some(Err(IndexError::Busy)) => Err(IndexError::Busy.to_string()),
            Some(Err(error)) => Err(error.to_string()),
            None => Err("the scan failed: see the log".into()),
        }
    }

    /// Runs one policy now; `by_hand`: whatever its schedule says.
    pub async fn run_rule(self: &Arc<Self>, rule: &Rule, by_hand: bool, tell: &Tell) -> PolicyRun {
        let dry = matches!(tell, Tell::Candidates(_));
        let _turn = match Lane::of(rule) {
            // It only looks.
            _ if dry => None,
            Lane::Scheduled => Some(self.scheduled.lock().await),
            Lane::Triggered => Some(self.triggered.lock().await),
        };
        let work = Arc::new(Work::new(rule.clone(), by_hand, now_s()));
        if !dry {
            self.at_work.lock().push(work.clone());
        }
        if let Err(problem) = self.run_lots(&work, tell).await {
            work.fail(problem);
        }
        let run = PolicyRun { ended: Some(now_s()), ..work.run() };
        if !dry {
            self.at_work.lock().retain(|at_work| !Arc::ptr_eq(at_work, &work));
            self.memory.ran(rule, run.clone());
            self.memory.store(&self.policies()).await;
        }
        run
    }

    /// Ends the run if it is time to.
    fn look(&self, work: &Work) {
        work.look(&self.policies(), now_s());
        if self.engine.is_stopping() {
            work.stop(Stopped::Unmount);
        }
    }

    async fn run_lots(self: &Arc<Self>, work: &Arc<Work>, tell: &Tell) -> Result<(), String> {
        let limits = &work.rule.limits;
        let mut tried = match work.rule.action.job().and_then(JobKind::task) {
            Some(task) => self.engine.put_off(task).await.map_err(|error| error.to_string())?,
            None => HashSet::new(),
        };
        let mut left = Left { files: limits.files.unwrap_or(u64::MAX), bytes: limits.bytes.unwrap_or(u64::MAX) };
        let mut kinds = HashMap::new();
        loop {
            self.look(work);
            if work.is_ending() {
                return Ok(());
            }
            let (this, of, dry) = (self.clone(), work.clone(), matches!(tell, Tell::Candidates(_)));
            let chosen = on_own_thread(move || this.choose(&of.rule, left, tried, dry)).await;
            let chosen = chosen.ok_or("choosing files failed: see the log")?;
            let Chosen { files: lot, full, tried: seen } = chosen.map_err(|error| error.to_string())?;
            self.memory.store(&self.policies()).await;
            tried = seen;
            work.matched(lot.len() as u64);
            left.files = left.files.saturating_sub(lot.len() as u64);
            left.bytes = left.bytes.saturating_sub(lot.iter().map(|file| file.size).sum());
            let nothing = lot.is_empty();
            if let Tell::Candidates(shown) = tell {
                for file in lot {
                    work.shown(file.size);
                    if shown.send(file).await.is_err() {
                        return Err("whoever asked is gone".into());
                    }
                }
            } else if !nothing {
                self.act(work, lot, tell, &mut kinds).await?;
            }
            if nothing || !full || left.files == 0 || left.bytes == 0 || tried.len() >= TRIED_MAX {
                return Ok(());
            }
        }
    }

    // Acting.

    /// The file itself, if it still is what the rule wants.
    fn confirm(&self, rule: &Rule, file: &Picked) -> Option<Candidate> {
        let Found { node, attr, path } = seek(&*self.lower, file.id, Some(&file.path)).ok()?;
        let standing = self.standing(&node)?;
        if attr.kind != FileKind::Regular || rule.unfit(&attr, standing).is_some() || self.is_set(rule, &node) {
            return None;
        }
        let now = now_s();
        let xattr = |name: &str| self.lower.xattr(&node, name.as_ref()).ok();
        let mut file = file.clone();
        file.path.clone_from(&path);
        let project = || self.lower.project(&node).ok();
        let subject = file.subject(&attr, &project, &xattr);
        let wanted = rule.conditions.iter().all(|condition| condition.holds(&subject, now));
        wanted.then_some(Candidate { node, attr, path })
    }

    /// Whether the file says itself all that the rule would have it say.
    pub(super) fn is_set(&self, rule: &Rule, node: &Inode) -> bool {
        rule.action == Action::Set && self.engine.choice(node).is_ok_and(|choice| choice.has(&rule.set))
    }

    /// `None`: the file's record cannot be read.
    pub(super) fn standing(&self, node: &Inode) -> Option<Standing> {
        self.engine.known_record(node).ok().as_ref().map(Standing::of)
    }

    /// `kinds`: failures of the run, by kind.
    async fn act(
        self: &Arc<Self>,
        work: &Arc<Work>,
        lot: Vec<Picked>,
        tell: &Tell,
        kinds: &mut HashMap<String, u64>,
    ) -> Result<(), String> {
        let rule = &work.rule;
        // What is handed over is begun, also when the run has ended meanwhile: so one at most waits there.
        let (candidates, taken) = mpsc::channel(1);
        let (events, mut ended) = mpsc::channel(256);
        let engine = self.engine.clone();
        let job = match rule.action.job() {
            Some(kind) => tokio::spawn(async move { engine.run_job_for(Asker::Policy, kind, taken, events).await }),
            None => tokio::spawn(set_all(engine, rule.set.clone(), taken, events)),
        };
        let at_once = rule.limits.at_once.map_or(Semaphore::MAX_PERMITS, |files| files.min(1 << 20) as usize);
        let room = Arc::new(Semaphore::new(at_once));
        let feeding = tokio::spawn(self.clone().feed(work.clone(), lot, candidates, room.clone()));
        while let Some(event) = ended.recv().await {
            room.add_permits(1);
            if let (Some(kind), Outcome::Failed(error)) = (work.ended(&event), &event.outcome) {
                let count = kinds.entry(kind.clone()).or_default();
                *count += 1;
                if rule.limits.errors.is_some_and(|limit| *count >= limit) {
                    work.fail(format!("ended after {count} failures of one kind ({kind}), the last: {error}"));
                }
            }
            if let Tell::Events(events) = tell
                && events.send(event).await.is_err()
            {
                work.fail("whoever asked is gone".into());
            }
        }
        // Who waits for room must see the end.
        room.close();
        feeding.await.map_err(|error| format!("the run failed: {error}"))?;
        match job.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(format!("the run failed: {error}")),
        }
    }

    /// Hands the files of a lot on, each after a look at it, as fast as the limits allow.
    async fn feed(
        self: Arc<Self>,
        work: Arc<Work>,
        lot: Vec<Picked>,
        candidates: mpsc::Sender<Candidate>,
        room: Arc<Semaphore>,
    ) {
        let begun = Instant::now();
        let mut booked = 0u64;
        for file in lot {
            let ready = async {
                let permit = room.acquire().await.ok()?;
                let slot = candidates.reserve().await.ok()?;
                if let Some(rate) = work.rule.limits.rate {
                    let due = Duration::from_secs_f64(booked as f64 / rate as f64).saturating_sub(begun.elapsed());
                    // The job may end of itself.
                    let _ = tokio::time::timeout(due, candidates.closed()).await;
                }
                Some((permit, slot))
            };
            let Some(Some((permit, slot))) = work.wait(ready, || self.look(&work)).await else { break };
            let (this, of) = (self.clone(), work.clone());
            let confirmed = tokio::task::spawn_blocking(move || this.confirm(&of.rule, &file)).await;
            let Ok(Some(candidate)) = confirmed else {
                work.passed_over();
                continue;
            };
            if work.rule.action == Action::Recall {
                let who = Who::Named(format!("policy {}", work.rule.name));
                self.index.recorder().wanted_by(candidate.node.id, who);
            }
            booked = booked.saturating_add(candidate.attr.size);
            // Given back when the file has ended.
            permit.forget();
            slot.send(candidate);
        }
    }
}

/// Has each file say itself what `choice` does.
async fn set_all(
    engine: Arc<Engine>,
    choice: Choice,
    mut taken: mpsc::Receiver<Candidate>,
    events: mpsc::Sender<JobEvent>,
) -> EngineResult<()> {
    while let Some(file) = taken.recv().await {
        let (chooser, node, wish) = (engine.clone(), file.node, choice.clone());
        let chosen = tokio::task::spawn_blocking(move || chooser.choose(&node, &wish)).await;
        let outcome = match chosen.map_err(|_| EngineError::ShuttingDown)? {
            // Every other file would fail alike.
            Err(error @ (EngineError::NotMounted { .. } | EngineError::ReadOnly)) => return Err(error),
            Err(error) => Outcome::Failed(error),
            Ok(true) => Outcome::Done,
            Ok(false) => Outcome::Unchanged,
        };
        if events.send(JobEvent { file, outcome }).await.is_err() {
            break;
        }
    }
    Ok(())
}
