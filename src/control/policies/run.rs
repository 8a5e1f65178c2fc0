//! Running policies: when one is due, which files it takes, and how much of it.

use std::collections::{HashMap, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};

use super::parse::{Policies, PolicyError, load};
use super::rule::{Action, Condition, Rule, Subject};
use crate::catalog::index::{Index, IndexError, IndexResult, Paths, ScanOptions, Who, name_of, now_s, reader};
use crate::catalog::walk::{Found, on_own_thread, resolve};
use crate::control::protocol::PolicyRun;
use crate::engine::{
    Asker, Candidate, Choice, Engine, EngineError, EngineResult, JobEvent, JobKind, Outcome, load_record,
};
use crate::ports::{Attr, FileKind, Lower};
use crate::types::{FileId, FileState, Inode};

/// Files chosen at a time, with their paths: two megabytes or so.
const LOT: usize = 20_000;
/// Files that one run remembers to have tried: 16 bytes each.
const TRIED_MAX: usize = 1_000_000;
/// How often it is looked whether something is due.
const TICK: Duration = Duration::from_secs(1);
/// After a scan of the index failed.
const PAUSE_UNREADABLE: Duration = Duration::from_secs(60);

/// A file that the index proposes.
#[derive(Clone, Debug)]
pub struct Picked {
    pub id: FileId,
    pub path: PathBuf,
    pub size: u64,
    /// Bytes allocated.
    pub local: u64,
    project: u32,
    accesses: u64,
    heat: Option<f64>,
    accessed: Option<i64>,
}

/// How much a run may still take.
struct Budget {
    files: u64,
    bytes: u64,
    /// Of allocated bytes; `None`: no bound.
    local: Option<f64>,
    /// By user; `None`: everybody.
    users: Option<HashMap<u32, u64>>,
}

/// What is to be freed for a trigger; `None`: it does not apply.
struct Triggered {
    local: Option<f64>,
    users: Option<HashMap<u32, u64>>,
}

/// Where a run's files are told, one by one.
pub enum Tell {
    Nobody,
    /// Only show what would be taken.
    Candidates(mpsc::Sender<Picked>),
    Events(mpsc::Sender<JobEvent>),
}

/// The policies of a mount.
pub struct Manager {
    pub(super) lower: Arc<dyn Lower>,
    pub(super) engine: Arc<Engine>,
    pub(super) index: Arc<Index>,
    path: Option<PathBuf>,
    rules: Mutex<Arc<Policies>>,
    runs: Mutex<HashMap<String, PolicyRun>>,
    /// Rules between their two marks, on the way down.
    pub(super) freeing: Mutex<HashSet<String>>,
    /// One run at a time: two would choose the same files.
    one: tokio::sync::Mutex<()>,
}

impl Manager {
    /// `path`: the file of policies, which was read as `policies`.
    pub fn new(
        lower: Arc<dyn Lower>,
        engine: Arc<Engine>,
        index: Arc<Index>,
        path: Option<PathBuf>,
        policies: Policies,
    ) -> Arc<Self> {
        Arc::new(Self {
            lower,
            engine,
            index,
            path,
            rules: Mutex::new(Arc::new(policies)),
            runs: Mutex::default(),
            freeing: Mutex::default(),
            one: tokio::sync::Mutex::default(),
        })
    }

    pub fn policies(&self) -> Arc<Policies> {
        self.rules.lock().clone()
    }

    /// Reads the file again. What is wrong with it leaves the old ones in force.
    pub fn reload(&self) -> Result<usize, PolicyError> {
        let Some(path) = &self.path else { return Ok(0) };
        let policies = load(path)?;
        let count = policies.rules.len();
        *self.rules.lock() = Arc::new(policies);
        Ok(count)
    }

    /// How a policy's last run went.
    pub fn last_run(&self, name: &str) -> Option<PolicyRun> {
        self.runs.lock().get(name).cloned()
    }

    /// Runs what is due until the runtime ends.
    pub async fn run(self: Arc<Self>) {
        loop {
            tokio::time::sleep(TICK).await;
            let policies = self.policies();
            if policies.rules.iter().all(|rule| !rule.enabled) || self.engine.is_stopping() {
                continue;
            }
            if let Err(error) = self.refresh(&policies).await {
                tracing::warn!("policies wait for the index: {error}");
                tokio::time::sleep(PAUSE_UNREADABLE).await;
                continue;
            }
            for rule in policies.rules.iter().filter(|rule| rule.enabled) {
                let now = now_s();
                let every = i64::try_from(rule.schedule.every.as_secs()).unwrap_or(i64::MAX);
                let due = self.last_run(&rule.name).is_none_or(|run| now.saturating_sub(run.began) >= every);
                if due && rule.schedule.is_open(now) {
                    let run = self.run_rule(rule, &Tell::Nobody).await;
                    if run.files + run.failed > 0 || run.problem.is_some() {
                        tracing::info!(
                            policy = rule.name,
                            files = run.files,
                            bytes = run.bytes,
                            failed = run.failed,
                            problem = run.problem,
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

    /// Runs one policy now, whatever its schedule says.
    pub async fn run_rule(self: &Arc<Self>, rule: &Rule, tell: &Tell) -> PolicyRun {
        let _one = self.one.lock().await;
        let mut run = PolicyRun { began: now_s(), ..PolicyRun::default() };
        if let Err(problem) = self.run_lots(rule, tell, &mut run).await {
            run.problem = Some(problem);
        }
        run.ended = Some(now_s());
        if !matches!(tell, Tell::Candidates(_)) {
            self.runs.lock().insert(rule.name.clone(), run.clone());
        }
        run
    }

    async fn run_lots(self: &Arc<Self>, rule: &Rule, tell: &Tell, run: &mut PolicyRun) -> Result<(), String> {
        let put_off = match rule.action.job().and_then(JobKind::task) {
            Some(task) => self.engine.put_off(task).await.map_err(|error| error.to_string())?,
            None => HashSet::new(),
        };
        let mut tried: HashSet<FileId> = put_off;
        let (mut left, mut left_bytes) = (rule.limits.files.unwrap_or(u64::MAX), rule.limits.bytes.unwrap_or(u64::MAX));
        loop {
            let (this, lot_rule) = (self.clone(), rule.clone());
            let (files, bytes) = (left, left_bytes);
            let chosen = on_own_thread(move || this.choose(&lot_rule, files, bytes, tried)).await;
            let chosen = chosen.ok_or("choosing files failed: see the log")?;
            let (lot, full, seen) = chosen.map_err(|error| error.to_string())?;
            tried = seen;
            run.matched += lot.len() as u64;
            left = left.saturating_sub(lot.len() as u64);
            left_bytes = left_bytes.saturating_sub(lot.iter().map(|file| file.size).sum());
            let nothing = lot.is_empty();
            if let Tell::Candidates(shown) = tell {
                for file in lot {
                    run.files += 1;
                    run.bytes += file.size;
                    if shown.send(file).await.is_err() {
                        return Err("whoever asked is gone".into());
                    }
                }
            } else if !nothing {
                self.act(rule, lot, tell, run).await?;
            }
            if nothing || !full || left == 0 || left_bytes == 0 || tried.len() >= TRIED_MAX {
                return Ok(());
            }
        }
    }

    // Choosing.

    /// What a trigger wants freed; `None`: it does not apply now.
    fn triggered(&self, rule: &Rule) -> IndexResult<Option<Triggered>> {
        let trigger = &rule.trigger;
        let mut any = *trigger == Default::default();
        let (mut local, mut users) = (None, None);
        let space = self.lower.space().map_err(IndexError::Share)?;
        if let Some(above) = trigger.space_above {
            let over = |pct: u8| {
                let used = space.blocks.saturating_sub(space.blocks_free) as f64;
                let all = used + space.blocks_available as f64;
                (used - all * f64::from(pct) / 100.0) * space.fragment_size as f64
            };
            let below = trigger.space_below.unwrap_or_else(|| above.saturating_sub(10).max(1));
            let mut freeing = self.freeing.lock();
            // Begun above the high mark, it goes on to the low one.
            if over(below) > 0.0 && (over(above) > 0.0 || freeing.contains(&rule.name)) {
                freeing.insert(rule.name.clone());
                local = Some(over(below));
                any = true;
            } else {
                freeing.remove(&rule.name);
            }
        }
        if let Some(above) = trigger.inodes_above {
            let used = space.files.saturating_sub(space.files_free);
            if space.files > 0 && used.saturating_mul(100) > space.files.saturating_mul(above.into()) {
                any = true;
                local = None;
            }
        }
        if let Some(above) = trigger.user_above {
            let db = reader(self.index.path())?;
            let mut over = db.prepare(
                "SELECT uid, sum(blocks) * 512 AS used FROM f WHERE parent <> 0 GROUP BY uid HAVING used > ?1",
            )?;
            let over = over.query_map([above as i64], |row| {
                Ok((row.get::<_, i64>(0)? as u32, row.get::<_, i64>(1)? as u64 - above))
            })?;
            let over: HashMap<u32, u64> = over.collect::<Result<_, _>>()?;
            any |= !over.is_empty();
            users = Some(over);
        }
        Ok(any.then_some(Triggered { local, users }))
    }

    /// Files that the rule takes, a lot at most, and whether there may be more; `tried` are left out, and grow.
    fn choose(
        &self,
        rule: &Rule,
        files: u64,
        bytes: u64,
        mut tried: HashSet<FileId>,
    ) -> IndexResult<(Vec<Picked>, bool, HashSet<FileId>)> {
        if self.index.is_empty() {
            return Err(IndexError::Empty);
        }
        let Some(Triggered { local, users }) = self.triggered(rule)? else { return Ok((Vec::new(), false, tried)) };
        let mut budget = Budget { files, bytes, local, users };
        let now = now_s();
        let mut lot = Vec::new();
        let mut full = false;
        self.each_match(rule, now, &mut |file, uid| {
            if tried.contains(&file.id) {
                return true;
            }
            // The index does not know what files are told.
            if rule.action == Action::Set && self.find(&file).is_some_and(|(node, ..)| self.is_set(rule, &node)) {
                return true;
            }
            if let Some(left) = budget.users.as_mut().map(|users| users.get_mut(&uid)) {
                match left {
                    Some(left) if *left > 0 => *left = left.saturating_sub(file.local),
                    _ => return true,
                }
            }
            if budget.files == 0 || budget.bytes == 0 || budget.local.is_some_and(|local| local <= 0.0) {
                return false;
            }
            budget.files -= 1;
            budget.bytes = budget.bytes.saturating_sub(file.size);
            budget.local = budget.local.map(|local| local - file.local as f64);
            tried.insert(file.id);
            lot.push(file);
            full = lot.len() >= LOT;
            !full
        })?;
        Ok((lot, full, tried))
    }

    /// Every file that the index says matches, in the rule's order, until `each` says `false`.
    pub(super) fn each_match(
        &self,
        rule: &Rule,
        now: i64,
        each: &mut dyn FnMut(Picked, u32) -> bool,
    ) -> IndexResult<()> {
        self.index.take();
        let db = reader(self.index.path())?;
        let mut paths = Paths::new(self.index.path())?;
        let sql = format!(
            "SELECT ino, birth, parent, name, size, blocks, uid, project, accesses, heat, accessed FROM f WHERE {}{}",
            rule.filter(now),
            rule.order_by()
        );
        let mut matching = db.prepare(&sql)?;
        let mut rows = matching.query([])?;
        let by_path: Vec<&Condition> = rule.conditions.iter().filter(|condition| condition.is_of_path()).collect();
        while let Some(row) = rows.next()? {
            let Some(dir) = paths.of_dir(row.get(2)?)? else { continue };
            let path = dir.join(std::ffi::OsStr::from_bytes(name_of(row.get_ref(3)?)));
            let number = |at: usize| row.get::<_, i64>(at);
            let file = Picked {
                id: FileId { ino: number(0)? as u64, birth: number(1)? as u64 },
                path,
                size: number(4)? as u64,
                local: number(5)? as u64 * 512,
                project: number(7)? as u32,
                accesses: number(8)? as u64,
                heat: row.get(9)?,
                accessed: row.get(10)?,
            };
            if by_path.iter().all(|condition| condition.matches_path(file.path.as_os_str().as_bytes()))
                && !each(file, number(6)? as u32)
            {
                break;
            }
        }
        Ok(())
    }

    // Acting.

    /// The file itself, if it still is what the rule wants.
    fn confirm(&self, rule: &Rule, file: &Picked) -> Option<Candidate> {
        let (node, attr, path) = self.find(file)?;
        let (state, pinned) = self.state(&node)?;
        if attr.kind != FileKind::Regular || rule.unfit(&attr, state, pinned).is_some() || self.is_set(rule, &node) {
            return None;
        }
        let now = now_s();
        let xattr = |name: &str| self.lower.xattr(&node, name.as_ref()).ok();
        let file = Picked { path: path.clone(), ..file.clone() };
        let subject = file.subject(&attr, &xattr);
        let wanted = rule.conditions.iter().all(|condition| condition.holds(&subject, now));
        wanted.then_some(Candidate { node, attr, path })
    }

    /// Whether the file says itself all that the rule would have it say.
    pub(super) fn is_set(&self, rule: &Rule, node: &Inode) -> bool {
        rule.action == Action::Set && self.engine.choice(node).is_ok_and(|choice| choice.has(&rule.set))
    }

    /// By its name, or where it is now.
    fn find(&self, file: &Picked) -> Option<(Inode, Attr, PathBuf)> {
        if let Ok(found) = resolve(&*self.lower, &file.path)
            && found.node.id == file.id
        {
            return Some((found.node, found.attr, file.path.clone()));
        }
        let (node, attr) = self.lower.by_number(file.id.ino).ok()?;
        let path = self.lower.path_of(&node).ok()??;
        (node.id == file.id && attr.nlink > 0).then_some((node, attr, path))
    }

    /// State and pin of a file as the engine has them; `None`: its record cannot be read.
    pub(super) fn state(&self, node: &Inode) -> Option<(FileState, bool)> {
        let (claim, pinned) = match self.engine.cells.live(node.id) {
            Some(cell) => {
                let inner = cell.lock();
                (inner.record.claim, inner.record.flags.pinned)
            }
            None => {
                let record = load_record(&*self.lower, node).ok()?;
                (record.claim, record.flags.pinned)
            }
        };
        Some((claim.into(), pinned))
    }

    async fn act(
        self: &Arc<Self>,
        rule: &Rule,
        lot: Vec<Picked>,
        tell: &Tell,
        run: &mut PolicyRun,
    ) -> Result<(), String> {
        let (candidates, taken) = mpsc::channel(16);
        let (events, mut ended) = mpsc::channel(256);
        let engine = self.engine.clone();
        let job = match rule.action.job() {
            Some(kind) => tokio::spawn(async move { engine.run_job_for(Asker::Policy, kind, taken, events).await }),
            None => tokio::spawn(set_all(engine, rule.set.clone(), taken, events)),
        };
        let stop = Arc::new(AtomicBool::new(false));
        let at_once = rule.limits.at_once.map_or(Semaphore::MAX_PERMITS, |files| files.min(1 << 20) as usize);
        let room = Arc::new(Semaphore::new(at_once));
        let feeding = tokio::spawn(self.clone().feed(rule.clone(), lot, candidates, room.clone(), stop.clone()));
        let mut kinds: HashMap<String, u64> = HashMap::new();
        let mut problem = None;
        while let Some(event) = ended.recv().await {
            room.add_permits(1);
            match &event.outcome {
                Outcome::Done | Outcome::Repaired | Outcome::Digest(_) => {
                    run.files += 1;
                    run.bytes += event.file.attr.size;
                }
                Outcome::Unchanged => run.skipped += 1,
                Outcome::Failed(error) if error.is_skip() => run.skipped += 1,
                Outcome::Failed(error) => {
                    run.failed += 1;
                    let why = error.reason().map_or("other", |reason| reason.as_str());
                    let count = kinds.entry(why.to_owned()).or_default();
                    *count += 1;
                    if rule.limits.errors.is_some_and(|limit| *count >= limit) && problem.is_none() {
                        problem = Some(format!("ended after {count} failures of one kind ({why}), the last: {error}"));
                        stop.store(true, Ordering::SeqCst);
                    }
                }
            }
            if let Tell::Events(events) = tell
                && events.send(event).await.is_err()
            {
                problem.get_or_insert("whoever asked is gone".into());
                stop.store(true, Ordering::SeqCst);
            }
        }
        // Who waits for room must see the end.
        room.close();
        let passed_over = feeding.await.map_err(|error| format!("the run failed: {error}"))?;
        run.skipped += passed_over;
        match job.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(error.to_string()),
            Err(error) => return Err(format!("the run failed: {error}")),
        }
        problem.map_or(Ok(()), Err)
    }

    /// Hands the files of a lot on, each after a look at it, as fast as the limits allow; how many were not what they were.
    async fn feed(
        self: Arc<Self>,
        rule: Rule,
        lot: Vec<Picked>,
        candidates: mpsc::Sender<Candidate>,
        room: Arc<Semaphore>,
        stop: Arc<AtomicBool>,
    ) -> u64 {
        let begun = Instant::now();
        let (mut booked, mut passed_over) = (0u64, 0);
        let rule = Arc::new(rule);
        for file in lot {
            if stop.load(Ordering::SeqCst) || self.engine.is_stopping() {
                break;
            }
            let Ok(permit) = room.acquire().await else { break };
            if let Some(rate) = rule.limits.rate {
                let due = Duration::from_secs_f64(booked as f64 / rate as f64);
                tokio::time::sleep(due.saturating_sub(begun.elapsed())).await;
                booked = booked.saturating_add(file.size);
            }
            let (this, of) = (self.clone(), rule.clone());
            let confirmed = tokio::task::spawn_blocking(move || this.confirm(&of, &file)).await;
            let Ok(Some(candidate)) = confirmed else {
                passed_over += 1;
                continue;
            };
            if rule.action == Action::Recall {
                let who = Who::Named(format!("policy {}", rule.name));
                self.index.recorder().wanted_by(candidate.node.id, who);
            }
            // Given back when the file has ended.
            permit.forget();
            if candidates.send(candidate).await.is_err() {
                break;
            }
        }
        passed_over
    }

    /// The row of a file in the index, as a rule sees it.
    pub(super) fn picked(&self, node: &Inode, path: &Path) -> IndexResult<Option<(Picked, Recalled)>> {
        let db = reader(self.index.path())?;
        let mut row = db.prepare(
            "SELECT size, blocks, project, accesses, heat, accessed, recalled, recalled_by FROM f WHERE ino = ?1 AND birth = ?2",
        )?;
        let mut rows = row.query([node.id.ino as i64, node.id.birth as i64])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let number = |at: usize| row.get::<_, i64>(at);
        let picked = Picked {
            id: node.id,
            path: path.to_owned(),
            size: number(0)? as u64,
            local: number(1)? as u64 * 512,
            project: number(2)? as u32,
            accesses: number(3)? as u64,
            heat: row.get(4)?,
            accessed: row.get(5)?,
        };
        Ok(Some((picked, Recalled { at: row.get(6)?, by: row.get(7)? })))
    }
}

impl Picked {
    /// The file as conditions see it.
    pub(super) fn subject<'a>(&'a self, attr: &'a Attr, xattr: &'a dyn Fn(&str) -> Option<Vec<u8>>) -> Subject<'a> {
        Subject {
            path: self.path.as_os_str().as_bytes(),
            attr,
            project: self.project,
            accesses: self.accesses,
            heat: self.heat,
            accessed: self.accessed,
            xattr,
        }
    }

    /// What is known of a file that the index does not have.
    pub(super) fn unknown(found: &Found) -> Self {
        Self {
            id: found.node.id,
            path: found.path.clone(),
            size: found.attr.size,
            local: found.attr.blocks * 512,
            project: 0,
            accesses: 0,
            heat: None,
            accessed: None,
        }
    }

    pub(super) fn uses(&self) -> (u64, Option<f64>, Option<i64>) {
        (self.accesses, self.heat, self.accessed)
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

/// When a file was last recalled, and by whom.
pub(super) struct Recalled {
    pub at: Option<i64>,
    pub by: Option<String>,
}
