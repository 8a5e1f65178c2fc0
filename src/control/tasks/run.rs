//! The queue at work: files of new jobs are found, tasks are carried out one after the other, as fast as the hour allows.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, mpsc};

use super::rate::{Pacer, Rate, Rates, TaskOptions};
use super::store::{Ended, Item, Job, JobState, Store, StoreResult};
use crate::catalog::index::{Recorder, Who, now_s};
use crate::catalog::walk::{Found, Missing, Next, Step, on_own_thread, resolve, seek, walk};
use crate::engine::{Asker, Candidate, Engine, EngineError, JobEvent, JobKind, Outcome};
use crate::ports::{FileKind, Lower};
use crate::types::{FileId, WirePath};

/// How often it is looked whether something is to be done, when nothing tells.
const TICK: Duration = Duration::from_secs(1);
/// After a task that the store, or the pair, made end early; doubled up to the maximum.
const PAUSE_FIRST: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Jobs whose files are looked for at a time.
const WALKS_MAX: usize = 4;
/// Paths of a job that cannot be read are named up to this.
const PROBLEMS_MAX: usize = 3;

/// The word for a kind of job in the queue.
pub fn kind_of(word: &str) -> Option<JobKind> {
    Some(match word {
        "migrate" => JobKind::Migrate,
        "archive" => JobKind::ArchiveOnly,
        "release" => JobKind::Release,
        "recall" => JobKind::Recall,
        _ => return None,
    })
}

/// Files of a task that could not be looked at.
#[derive(Default)]
struct Lost {
    /// They are no more.
    gone: Vec<FileId>,
    /// They are elsewhere, and nobody knows where.
    unnamed: Vec<FileId>,
}

/// The job that is worked on, since when, and how far it was then.
#[derive(Clone, Copy, Debug)]
pub struct AtWork {
    pub job: i64,
    pub since: Instant,
    pub files: u64,
    pub bytes: u64,
}

/// All tasks of one mount.
pub struct Queue {
    lower: Arc<dyn Lower>,
    engine: Arc<Engine>,
    recorder: Arc<Recorder>,
    store: Mutex<Store>,
    rates: Mutex<Rates>,
    /// Of all tasks together: one that ends early must not forgive what its files cost.
    pacer: Mutex<Pacer>,
    /// Files of one task.
    files: usize,
    /// Files that failed while the store answered, and are tried once more.
    again: Mutex<HashSet<FileId>>,
    stirred: Notify,
    at_work: Mutex<Option<AtWork>>,
    /// Walks at a time.
    walks: Semaphore,
}

impl Queue {
    /// Opens the queue that is kept at `path`.
    pub fn open(
        path: &Path,
        lower: Arc<dyn Lower>,
        engine: Arc<Engine>,
        recorder: Arc<Recorder>,
        options: TaskOptions,
    ) -> Result<Arc<Self>, String> {
        let store = Store::open(path, &lower.root().id.to_string());
        let store = Mutex::new(store.map_err(|error| format!("the tasks in {}: {error}", path.display()))?);
        Ok(Arc::new(Self {
            lower,
            engine,
            recorder,
            store,
            rates: Mutex::new(options.rates),
            pacer: Mutex::new(Pacer::new(Instant::now())),
            files: options.files,
            again: Mutex::default(),
            stirred: Notify::new(),
            at_work: Mutex::default(),
            walks: Semaphore::new(WALKS_MAX),
        }))
    }

    /// Does something with the store, off the async workers.
    pub async fn with<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&mut Store) -> StoreResult<T> + Send + 'static,
    ) -> Result<T, String> {
        let this = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&mut this.store.lock()));
        match done.await {
            Ok(done) => done.map_err(|error| format!("the queue of tasks: {error}")),
            Err(error) => Err(format!("the queue of tasks: {error}")),
        }
    }

    pub fn at_work(&self) -> Option<AtWork> {
        *self.at_work.lock()
    }

    /// The rates in force, and the one at this hour.
    pub fn rates(&self) -> (Rates, Rate) {
        let rates = self.rates.lock();
        (rates.clone(), rates.at(now_s()))
    }

    /// Has other rates be in force until the unmount.
    pub fn set_rates(&self, rates: Rates) {
        *self.rates.lock() = rates;
        self.stir();
    }

    /// Takes a job on. It is durable on return; its files are found in the background.
    pub async fn add(
        self: &Arc<Self>,
        kind: String,
        paths: Vec<WirePath>,
        recursive: bool,
        priority: i64,
    ) -> Result<i64, String> {
        let (word, asked) = (kind.clone(), paths.clone());
        let id = self.with(move |store| store.add(&word, &asked, recursive, priority, now_s())).await?;
        let job = self.with(move |store| store.job(id)).await?.ok_or("the job is gone")?;
        self.start_filling(job);
        Ok(id)
    }

    /// Has the queue look again whether there is something to do.
    pub fn stir(&self) {
        self.stirred.notify_one();
    }

    /// Carries tasks out until the runtime ends.
    pub async fn run(self: Arc<Self>) {
        // What a crash cut short is gone through anew; what is in the queue or done already is found to be so.
        for job in self.with(|store| store.unfilled()).await.unwrap_or_default() {
            self.start_filling(job);
        }
        let mut pause = PAUSE_FIRST;
        loop {
            let off = self.rates().1 == Rate::Off;
            let next = if off || self.engine.is_stopping() {
                None
            } else {
                let files = self.files;
                self.with(move |store| store.next(files)).await.unwrap_or_else(|error| {
                    tracing::warn!("{error}");
                    None
                })
            };
            let Some((job, items)) = next else {
                *self.at_work.lock() = None;
                self.again.lock().clear();
                if let Err(error) = self.with(|store| store.end_jobs(now_s())).await {
                    tracing::warn!("{error}");
                }
                let _ = tokio::time::timeout(TICK, self.stirred.notified()).await;
                continue;
            };
            match self.task(job, items).await {
                Ok(()) => pause = PAUSE_FIRST,
                Err(error) => {
                    tracing::warn!("tasks rest for {} s: {error}", pause.as_secs());
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    /// One task. The error: it ended early, and what is left of it is tried later.
    async fn task(self: &Arc<Self>, job: Job, items: Vec<Item>) -> Result<(), String> {
        let Some(kind) = kind_of(&job.kind) else {
            return self.with(move |store| store.set_state(job.id, JobState::Cancelled, now_s()).map(drop)).await;
        };
        {
            let mut at_work = self.at_work.lock();
            if at_work.is_none_or(|at| at.job != job.id) {
                let files = job.done + job.unchanged + job.skipped + job.failed;
                *at_work = Some(AtWork { job: job.id, since: Instant::now(), files, bytes: job.done_bytes });
            }
        }
        let (candidates, taken) = mpsc::channel(16);
        let (events, mut ended) = mpsc::channel(64);
        let engine = self.engine.clone();
        let working = tokio::spawn(async move { engine.run_job_for(Asker::Policy, kind, taken, events).await });
        let feeding = tokio::spawn(self.clone().feed(job.clone(), kind, items, candidates));
        let (mut sums, mut later) = (Ended::default(), Vec::new());
        while let Some(JobEvent { file, outcome }) = ended.recv().await {
            let id = file.node.id;
            match outcome {
                Outcome::Done | Outcome::Repaired | Outcome::Digest(_) => {
                    sums.done += 1;
                    sums.done_bytes += file.attr.size;
                }
                Outcome::Unchanged => sums.unchanged += 1,
                Outcome::Failed(EngineError::ShuttingDown) => continue,
                Outcome::Failed(error) if error.is_transient() || error.is_configuration() => {
                    later.push(id);
                    continue;
                }
                Outcome::Failed(error) if error.is_skip() => sums.skipped += 1,
                Outcome::Failed(_) => sums.failed += 1,
            }
            sums.files.push(id);
        }
        let lost = feeding.await.map_err(|error| format!("the task failed: {error}"))?;
        sums.skipped += lost.gone.len() as u64;
        sums.failed += lost.unnamed.len() as u64;
        sums.files.extend(lost.gone.into_iter().chain(lost.unnamed));
        let outcome = working.await.map_err(|error| format!("the task failed: {error}"))?;
        let problem = match outcome {
            Ok(()) => None,
            Err(error) if error.is_configuration() || !self.engine.remote_answers().await => Some(error.to_string()),
            Err(_) => None,
        };
        {
            let mut again = self.again.lock();
            if problem.is_none() {
                // The store answers. It may have come back after they failed, so they stay in the queue for one more try; then these are failures of the
                // files, which must not stand in the way of others.
                let (given_up, once): (Vec<_>, Vec<_>) = later.into_iter().partition(|file| again.contains(file));
                sums.failed += given_up.len() as u64;
                sums.files.extend(given_up);
                again.extend(once);
            }
            for file in &sums.files {
                again.remove(file);
            }
        }
        let told = problem.clone();
        self.with(move |store| store.end(&job, &sums, told.as_deref())).await?;
        problem.map_or(Ok(()), Err)
    }

    /// Hands the files of a task on, each after a look at it, as fast as the hour allows; those that could not be found.
    async fn feed(
        self: Arc<Self>,
        job: Job,
        kind: JobKind,
        items: Vec<Item>,
        candidates: mpsc::Sender<Candidate>,
    ) -> Lost {
        let mut lost = Lost::default();
        for item in items {
            if !self.may_begin(job.id, item.size).await {
                break;
            }
            let lower = self.lower.clone();
            let Item { file, path, .. } = item;
            let seen_at = path.clone();
            let sought = tokio::task::spawn_blocking(move || seek(&*lower, file, Some(&seen_at))).await;
            let candidate = match sought {
                Ok(Ok(Found { node, attr, path })) if attr.kind == FileKind::Regular => Candidate { node, attr, path },
                Ok(Err(Missing::Unnamed)) => {
                    let path = path.display();
                    tracing::warn!(
                        task = job.id,
                        inode = file.ino,
                        "{path} was renamed and nobody knows its name now, or it cannot be looked at"
                    );
                    lost.unnamed.push(file);
                    continue;
                }
                _ => {
                    lost.gone.push(file);
                    continue;
                }
            };
            if kind == JobKind::Recall {
                self.recorder.wanted_by(candidate.node.id, Who::Named(format!("task {}", job.id)));
            }
            if candidates.send(candidate).await.is_err() {
                break;
            }
        }
        lost
    }

    /// Waits until a file may begin as fast as the hour allows. `false`: its job is not wanted now.
    async fn may_begin(self: &Arc<Self>, job: i64, size: u64) -> bool {
        loop {
            let wanted = self.with(move |store| store.job(job)).await;
            let wanted = wanted.is_ok_and(|job| job.is_some_and(|job| job.state == JobState::Waiting));
            if !wanted || self.engine.is_stopping() {
                return false;
            }
            let wait = match self.rates().1 {
                Rate::Off => return false,
                Rate::Unlimited => {
                    self.pacer.lock().forgive();
                    return true;
                }
                Rate::Bytes(rate) => self.pacer.lock().wait(rate, Instant::now()),
            };
            if wait.is_zero() {
                self.pacer.lock().begin(size);
                return true;
            }
            // The hour may change meanwhile, or what is wanted.
            tokio::time::sleep(wait.min(TICK)).await;
        }
    }

    fn start_filling(self: &Arc<Self>, job: Job) {
        let this = self.clone();
        tokio::spawn(async move {
            // Never closed.
            let Ok(_walk) = this.walks.acquire().await else { return };
            let (walker, id) = (this.clone(), job.id);
            let found = on_own_thread(move || walker.fill(&job)).await;
            match found {
                Some(Ok(())) => {}
                Some(Err(error)) => tracing::error!(
                    "files of task {id} cannot be queued, and are looked for at the next start: {error}"
                ),
                None => tracing::error!("the search for files of task {id} failed"),
            }
            this.stir();
        });
    }

    /// Finds a job's files. Blocks.
    fn fill(self: &Arc<Self>, job: &Job) -> StoreResult<()> {
        let mut problems: Vec<String> = Vec::new();
        let mut more = 0;
        let mut lot = Vec::with_capacity(self.files);
        let flush = |lot: &mut Vec<Item>| -> StoreResult<bool> {
            let wanted = self.store.lock().fill(job.id, &job.kind, lot)?;
            lot.clear();
            self.stir();
            Ok(wanted && !self.engine.is_stopping())
        };
        for path in &job.paths {
            let path = path.to_path();
            let mut tell = |path: &Path, error: String| match problems.len() {
                0..PROBLEMS_MAX => problems.push(format!("{}: {error}", path.display())),
                _ => more += 1,
            };
            let start = match resolve(&*self.lower, &path) {
                Ok(start) => start,
                Err(error) => {
                    tell(&path, error.source.to_string());
                    continue;
                }
            };
            if start.attr.kind == FileKind::Directory && !job.recursive {
                tell(&path, "is a directory: give -r to go through it".into());
                continue;
            }
            let mut stopped = Ok(true);
            walk(&*self.lower, start, &mut |step| match step {
                Step::File(found) => {
                    lot.push(Item { file: found.node.id, size: found.attr.size, path: found.path });
                    if lot.len() < self.files {
                        return Next::Continue;
                    }
                    stopped = flush(&mut lot);
                    if matches!(stopped, Ok(true)) { Next::Continue } else { Next::Stop }
                }
                Step::Failed(path, error) => {
                    tell(&path, error.to_string());
                    Next::Continue
                }
            });
            if !stopped? {
                // Cancelled; or the daemon ends, and the next one goes through it anew.
                return Ok(());
            }
        }
        if !lot.is_empty() && !flush(&mut lot)? {
            return Ok(());
        }
        if more > 0 {
            problems.push(format!("and {more} more"));
        }
        let problem = (!problems.is_empty()).then(|| problems.join("; "));
        self.store.lock().filled(job.id, problem.as_deref())
    }
}
