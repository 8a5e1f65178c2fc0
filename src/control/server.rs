//! The daemon's end of the control socket.
//!
//! One task a connection; a client that goes away ends its job. Memory of a job does not grow with the number of its files.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::background::Background;
use super::gc::Wish;
use super::metrics::Cached;
use super::names::Names;
use super::pairs::{PairProblems, ReloadPair};
use super::policies::Manager;
use super::protocol::{
    Failure, FileDigest, FileState, FileStatus, MountInfo, Progress, Reply, Request, SpaceInfo, StateTotal, Summary,
    WirePath,
};
use super::recalls::Which;
use super::scrub::Scrub;
use super::tasks::Queue;
use super::{bring_back, choices};
use crate::admission::Requester;
use crate::catalog::index::{Index, Who};
use crate::catalog::walk::{Found, Next, Step, on_own_thread, resolve, walk};
use crate::engine::{Candidate, Engine, JobKind, Outcome, activity_of, state_of};
use crate::fs::{Fs, requester};
use crate::ports::{Attr, FileKind, Lower};
use crate::sync::Ends;

/// How often progress is told.
const PROGRESS_PERIOD: Duration = Duration::from_millis(200);
/// Files found and not yet taken by the engine.
pub(super) const WALK_AHEAD: usize = 1024;
/// Lines waiting for a slow client.
const REPLIES_AHEAD: usize = 256;
/// How long transfers may take to come to rest before an unmount.
const REST_WITHIN: Duration = Duration::from_secs(45);
/// Longest request accepted, in bytes: room for thousands of paths.
const REQUEST_MAX: u64 = 16 << 20;

/// What the socket serves.
pub struct Server {
    pub lower: Arc<dyn Lower>,
    pub engine: Arc<Engine>,
    pub fs: Arc<Fs>,
    pub share: PathBuf,
    pub mountpoint: PathBuf,
    pub names: Names,
    /// What probes last found wrong; the engine knows the rest.
    pub pair_problems: Arc<PairProblems>,
    /// Reads a pair again.
    pub reload_pair: ReloadPair,
    pub scrub: Option<Arc<Scrub>>,
    /// `None`: it could not be opened, as the log says.
    pub index: Option<Arc<Index>>,
    /// There with an index, with or without rules.
    pub policies: Option<Arc<Manager>>,
    /// There where the pair has a metadata sync.
    pub sync: Option<Arc<Ends>>,
    pub watch: Watch,
}

/// What only reports need.
#[derive(Default)]
pub struct Watch {
    /// How many descriptors of the share are kept.
    pub descriptors: Option<Box<dyn Fn() -> usize + Send + Sync>>,
    /// Where metrics are served.
    pub metrics: Option<std::net::SocketAddr>,
    pub totals: Arc<Cached>,
    pub background: Background,
    /// There where files can be moved.
    pub tasks: std::sync::OnceLock<Arc<Queue>>,
}

/// Which of the files found are taken: each with the same chance, by itself.
struct Sample {
    ppm: u32,
    state: u64,
}

impl Sample {
    fn all() -> Self {
        Self::of(1_000_000)
    }

    /// About so many in a million; others at each call.
    fn of(ppm: u32) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self { ppm, state: now.as_nanos() as u64 | 1 }
    }

    /// Whether the next one is taken.
    fn takes(&mut self) -> bool {
        // SplitMix64 (Steele et al., 2014).
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % 1_000_000 < u64::from(self.ppm)
    }
}

/// A bound socket; its file goes away with it.
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Gone already, or never to be reached again: nothing depends on it.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Socket {
    /// Binds `path`, whose directory is made for root only. A socket left by a dead daemon is replaced.
    pub fn bind(path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, path: path.to_owned() })
    }
}

pub(super) type Replies = mpsc::Sender<Reply>;

/// Counts of a job, told now and then.
#[derive(Default)]
pub(super) struct Counts {
    found: AtomicU64,
    found_bytes: AtomicU64,
    done: AtomicU64,
    done_bytes: AtomicU64,
    walked: AtomicBool,
}

impl Counts {
    /// One more file is to be done.
    pub(super) fn add(&self, attr: &Attr) {
        self.found.fetch_add(1, Ordering::Relaxed);
        self.found_bytes.fetch_add(attr.size, Ordering::Relaxed);
    }

    pub(super) fn progress(&self) -> Progress {
        Progress {
            files_total: self.found.load(Ordering::Relaxed),
            files_done: self.done.load(Ordering::Relaxed),
            bytes_total: self.found_bytes.load(Ordering::Relaxed),
            bytes_done: self.done_bytes.load(Ordering::Relaxed),
            walked: self.walked.load(Ordering::Relaxed),
        }
    }
}

impl Server {
    /// Answers connections until the runtime ends.
    pub async fn serve(self: Arc<Self>, socket: Socket) {
        loop {
            match socket.listener.accept().await {
                Ok((stream, _)) => {
                    let this = self.clone();
                    tokio::spawn(async move {
                        if let Err(error) = this.connection(stream).await {
                            tracing::debug!("control connection: {error}");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!("control socket: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: UnixStream) -> io::Result<()> {
        let peer = stream.peer_cred()?;
        let (reader, mut writer) = stream.into_split();
        let mut line = String::new();
        let mut reader = BufReader::new(reader).take(REQUEST_MAX);
        reader.read_line(&mut line).await?;
        let (replies, mut outgoing) = mpsc::channel(REPLIES_AHEAD);
        let request = if peer.uid() == 0 {
            serde_json::from_str::<Request>(&line).map_err(|error| format!("the request is not understood: {error}"))
        } else {
            Err("only root may use the control socket".to_owned())
        };
        let resting = matches!(request, Ok(Request::Quiesce));
        let this = self.clone();
        let who = Arc::new(requester(peer.pid().and_then(|pid| pid.try_into().ok()).unwrap_or(0), peer.uid()));
        let answering = tokio::spawn(async move {
            let last = match request {
                Ok(request) => this.answer(request, who, &replies).await,
                Err(message) => Reply::Error { message },
            };
            // A client that is gone needs no answer.
            let _ = replies.send(last).await;
        });
        while let Some(reply) = outgoing.recv().await {
            let mut line = serde_json::to_vec(&reply).map_err(io::Error::other)?;
            line.push(b'\n');
            if let Err(error) = writer.write_all(&line).await {
                // The client left: closing the channel ends the job after the files in hand.
                drop(outgoing);
                let _ = answering.await;
                return Err(error);
            }
        }
        if resting {
            // At rest as long as the client stays: if it leaves and the mount is still there, work goes on.
            reader.read_line(&mut line).await?;
            self.engine.resume();
        }
        writer.shutdown().await
    }

    async fn answer(self: &Arc<Self>, request: Request, who: Arc<Requester>, replies: &Replies) -> Reply {
        let mut sample = Sample::all();
        let (kind, paths, recursive) = match request {
            Request::Migrate { paths, recursive, archive_only } => {
                (if archive_only { JobKind::ArchiveOnly } else { JobKind::Migrate }, paths, recursive)
            }
            Request::Recall { paths, recursive } => (JobKind::Recall, paths, recursive),
            Request::Release { paths, recursive } => (JobKind::Release, paths, recursive),
            Request::Pin { paths, recursive } => (JobKind::Pin, paths, recursive),
            Request::Unpin { paths, recursive } => (JobKind::Unpin, paths, recursive),
            Request::Retain { paths, recursive, on } => (JobKind::Retain { on }, paths, recursive),
            Request::Verify { paths, recursive, sample_ppm, md5 } => {
                sample = Sample::of(sample_ppm);
                (JobKind::Verify { md5 }, paths, recursive)
            }
            Request::Check { paths, recursive, adopt: true, .. } => (JobKind::Adopt, paths, recursive),
            Request::Check { paths, recursive, repair, .. } => (JobKind::Check { repair }, paths, recursive),
            Request::Status { paths, recursive, files } => return self.status(paths, recursive, files, replies).await,
            Request::History { paths } => return self.history(paths, replies).await,
            Request::Undelete { path, generation, to, recursive } => {
                let wish =
                    bring_back::Wish { path: path.to_path(), generation, to: to.map(|to| to.to_path()), recursive };
                return self.undelete(wish, replies).await;
            }
            Request::SaveNames { paths, always } => return self.save_names(paths, always, replies).await,
            Request::Failed { paths, action } => return self.failed(paths, action, who, replies).await,
            Request::Gc { dry_run, older_than_s, adopt } => {
                return self.collect(Wish { dry_run, older_than_s, adopt }, replies).await;
            }
            Request::Recalls { paths, recursive, inodes, cancel } => {
                let paths = paths.iter().map(WirePath::to_path).collect();
                return self.recalls(Which { paths, recursive, inodes, cancel }, replies).await;
            }
            Request::Index { action } => return self.index(action, replies).await,
            Request::Policy { action } => return self.policy(action, replies).await,
            Request::Tasks { action } => return self.tasks(action, replies).await,
            Request::Why { paths } => return self.why(paths, replies).await,
            Request::Sync { action } => return self.sync(action, replies).await,
            Request::Sql { query } => return self.sql(query, replies).await,
            Request::Choose { paths, pair, chunk_size, recall } => {
                return match choices::Wish::of(pair, chunk_size, recall) {
                    Ok(wish) => self.choose(paths, wish, replies).await,
                    Err(message) => Reply::Error { message },
                };
            }
            Request::ReloadPair { name } => return self.reload(&name, replies).await,
            Request::Mount => return self.mount_info(replies).await,
            Request::Figures => return self.figures(replies).await,
            Request::Quiesce => return self.quiesce().await,
        };
        self.job(who, kind, paths, recursive, sample, replies).await
    }

    pub(super) fn pair_problem(&self) -> Option<String> {
        self.pair_problems.first().or_else(|| self.engine.pair_problem())
    }

    pub(super) fn space_info(&self) -> Option<SpaceInfo> {
        let space = self.lower.space().ok()?;
        // It looks at every open file.
        let (removed_files, removed_bytes) = tokio::task::block_in_place(|| self.fs.removed_space());
        Some(SpaceInfo {
            total: space.blocks * space.fragment_size,
            available: space.blocks_available * space.fragment_size,
            reserve: self.watch.background.space.reserved(&space),
            scarce: self.fs.room.is_scarce(),
            removed_files,
            removed_bytes,
        })
    }

    /// Lets background transfers come to rest, for a bounded time.
    async fn quiesce(&self) -> Reply {
        let begun = Instant::now();
        self.engine.stop();
        while !self.engine.is_idle() && begun.elapsed() < REST_WITHIN {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Reply::Done(Summary { seconds: begun.elapsed().as_secs_f64(), ..Summary::default() })
    }

    async fn mount_info(&self, replies: &Replies) -> Reply {
        let counted = tokio::try_join!(self.engine.intent_counts(), self.engine.failed_counts());
        let (intents, failed) = match counted {
            Ok(counts) => counts,
            Err(error) => return Reply::Error { message: error.to_string() },
        };
        let info = MountInfo {
            share: self.share.display().to_string(),
            mountpoint: self.mountpoint.display().to_string(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            pair: self.engine.pair_name(),
            further_pairs: self.engine.pair_names().iter().skip(1).map(ToString::to_string).collect(),
            pair_problem: self.pair_problem(),
            intents,
            failed,
            scrub: self.scrub.as_ref().map(|scrub| scrub.info()),
            transfers: self.engine.totals.running.load(Ordering::Relaxed),
            space: self.space_info(),
            metrics: self.watch.metrics.map(|at| at.to_string()),
            requests: self.fs.calls.counts().map(|(name, count)| (name.to_owned(), count)).collect(),
        };
        // A client that is gone needs no answer.
        let _ = replies.send(Reply::Mount(info)).await;
        Reply::Done(Summary::default())
    }

    /// Walks the named paths on a thread of its own; files go to `visit`, everything else is reported and counted.
    fn spawn_walk(
        self: &Arc<Self>,
        paths: Vec<WirePath>,
        recursive: bool,
        replies: Replies,
        mut visit: impl FnMut(Found) -> Next + Send + 'static,
    ) -> tokio::task::JoinHandle<Option<Summary>> {
        let this = self.clone();
        tokio::spawn(on_own_thread(move || {
            let mut summary = Summary::default();
            let fail = |path: &Path, reason: String, skipped: bool, summary: &mut Summary| {
                *(if skipped { &mut summary.skipped } else { &mut summary.failed }) += 1;
                let failure = Failure { path: WirePath::from_path(path), reason, skipped };
                match replies.blocking_send(Reply::Failure(failure)) {
                    Ok(()) => Next::Continue,
                    Err(_) => Next::Stop,
                }
            };
            for path in paths {
                let path = path.to_path();
                let start = match resolve(&*this.lower, &path) {
                    Ok(start) => start,
                    Err(error) => {
                        fail(&path, error.source.to_string(), false, &mut summary);
                        continue;
                    }
                };
                match start.attr.kind {
                    FileKind::Regular => {}
                    FileKind::Directory if recursive => {}
                    FileKind::Directory => {
                        fail(&path, "is a directory: give -r to go through it".into(), false, &mut summary);
                        continue;
                    }
                    _ => {
                        fail(&path, "not a regular file".into(), true, &mut summary);
                        continue;
                    }
                }
                let mut stopped = false;
                walk(&*this.lower, start, &mut |step| {
                    let next = match step {
                        Step::File(found) => visit(found),
                        Step::Failed(path, error) => fail(&path, error.to_string(), false, &mut summary),
                    };
                    stopped = next == Next::Stop;
                    next
                });
                if stopped {
                    break;
                }
            }
            summary
        }))
    }

    async fn job(
        self: &Arc<Self>,
        who: Arc<Requester>,
        kind: JobKind,
        paths: Vec<WirePath>,
        recursive: bool,
        mut sample: Sample,
        replies: &Replies,
    ) -> Reply {
        let counts = Arc::new(Counts::default());
        let places: Vec<PathBuf> = match kind {
            JobKind::Migrate | JobKind::ArchiveOnly => paths.iter().map(WirePath::to_path).collect(),
            _ => Vec::new(),
        };
        let (candidates, taken) = mpsc::channel(WALK_AHEAD);
        let (this, counted) = (self.clone(), counts.clone());
        let walking = self.spawn_walk(paths, recursive, replies.clone(), move |found| {
            if !sample.takes() {
                return Next::Continue;
            }
            counted.add(&found.attr);
            if kind == JobKind::Recall {
                this.fs.recorder().wanted_by(found.node.id, Who::Named("a command".into()));
            }
            let candidate = Candidate { node: found.node, attr: found.attr, path: found.path };
            match candidates.blocking_send(candidate) {
                Ok(()) => Next::Continue,
                Err(_) => Next::Stop,
            }
        });
        let ended = self.drive(who, kind, taken, walking, counts, replies).await;
        // Names and attributes go after the content.
        places.into_iter().for_each(|path| self.names.ask(path, recursive));
        ended
    }

    /// Runs a job on what `walking` finds, and tells how it goes.
    pub(super) async fn drive(
        self: &Arc<Self>,
        who: Arc<Requester>,
        kind: JobKind,
        taken: mpsc::Receiver<Candidate>,
        walking: tokio::task::JoinHandle<Option<Summary>>,
        counts: Arc<Counts>,
        replies: &Replies,
    ) -> Reply {
        let begun = Instant::now();
        let (events, mut ended) = mpsc::channel(REPLIES_AHEAD);
        let engine = self.engine.clone();
        let running = tokio::spawn(async move { engine.run_job(who, kind, taken, events).await });
        let (mut summary, mut told) = (Summary::default(), Instant::now());
        let mut ticks = tokio::time::interval(PROGRESS_PERIOD);
        loop {
            let event = tokio::select! {
                event = ended.recv() => match event {
                    Some(event) => Some(event),
                    None => break,
                },
                _ = ticks.tick() => None,
            };
            let mut alive = true;
            if let Some(event) = event {
                counts.done.fetch_add(1, Ordering::Relaxed);
                counts.done_bytes.fetch_add(event.file.attr.size, Ordering::Relaxed);
                if matches!(event.outcome, Outcome::Done | Outcome::Digest(_) | Outcome::Repaired) {
                    summary.files += 1;
                    summary.bytes += event.file.attr.size;
                }
                let path = || WirePath::from_path(&event.file.path);
                match event.outcome {
                    Outcome::Done => {}
                    Outcome::Digest(md5) => {
                        let path = path();
                        alive = replies.send(Reply::Digest(FileDigest { path, md5 })).await.is_ok();
                    }
                    Outcome::Repaired => alive = replies.send(Reply::Repaired { path: path() }).await.is_ok(),
                    Outcome::Unchanged => summary.unchanged += 1,
                    Outcome::Failed(error) => {
                        let skipped = error.is_skip();
                        *(if skipped { &mut summary.skipped } else { &mut summary.failed }) += 1;
                        let path = path();
                        let failure = Failure { path, reason: error.to_string(), skipped };
                        alive = replies.send(Reply::Failure(failure)).await.is_ok();
                    }
                }
            }
            if told.elapsed() >= PROGRESS_PERIOD {
                told = Instant::now();
                counts.walked.store(walking.is_finished(), Ordering::Relaxed);
                alive &= replies.send(Reply::Progress(counts.progress())).await.is_ok();
            }
            if !alive {
                // Dropping the receiver ends the job; what is in hand is finished.
                drop(ended);
                break;
            }
        }
        let ended = running.await;
        match walking.await {
            Ok(Some(walked)) => {
                summary.failed += walked.failed;
                summary.skipped += walked.skipped;
                summary.unchanged += walked.unchanged;
            }
            _ => return Reply::Error { message: "the walk over the share failed: see the daemon's log".into() },
        }
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Reply::Error { message: error.to_string() },
            Err(error) => return Reply::Error { message: format!("the job failed: {error}") },
        }
        summary.seconds = begun.elapsed().as_secs_f64();
        counts.walked.store(true, Ordering::Relaxed);
        // The last progress makes a bar end at its end; a client that left does not care.
        let _ = replies.send(Reply::Progress(counts.progress())).await;
        Reply::Done(summary)
    }

    async fn status(self: &Arc<Self>, paths: Vec<WirePath>, recursive: bool, files: bool, replies: &Replies) -> Reply {
        let begun = Instant::now();
        let totals = Arc::new(parking_lot::Mutex::new(Summary::default()));
        let (this, counted, out) = (self.clone(), totals.clone(), replies.clone());
        let walking = self.spawn_walk(paths, recursive, replies.clone(), move |found| {
            let status = this.file_status(found);
            {
                let mut totals = counted.lock();
                totals.files += 1;
                totals.bytes += status.size;
                let total: &mut StateTotal = totals.states.entry(status.state.to_string()).or_default();
                total.files += 1;
                total.bytes += status.size;
                total.local += status.local;
            }
            if files && out.blocking_send(Reply::File(status)).is_err() { Next::Stop } else { Next::Continue }
        });
        let walked = match walking.await {
            Ok(Some(walked)) => walked,
            _ => return Reply::Error { message: "the walk over the share failed: see the daemon's log".into() },
        };
        let mut summary = totals.lock().clone();
        summary.failed = walked.failed;
        summary.skipped = walked.skipped;
        summary.pair_problem = self.pair_problem();
        summary.seconds = begun.elapsed().as_secs_f64();
        Reply::Done(summary)
    }

    fn file_status(&self, found: Found) -> FileStatus {
        let mut status = FileStatus {
            path: WirePath::from_path(&found.path),
            state: FileState::Damaged,
            size: found.attr.size,
            local: found.attr.blocks * 512,
            pinned: false,
            retained: false,
            activity: None,
            pair: None,
            generation: None,
            object: None,
        };
        if let Ok(cell) = self.engine.cells.get(&found.node) {
            let inner = cell.lock();
            status.state = state_of(&inner);
            status.pinned = inner.machine.pinned();
            status.retained = inner.record.flags.retained;
            status.activity = activity_of(&inner).map(str::to_owned);
            status.generation = Some(inner.record.generation.0).filter(|generation| *generation > 0);
            if let Some(object) = &inner.record.object {
                status.pair = Some(object.pair.name.to_string());
                status.object = Some(object.key.to_string());
                if let Some(seconds) = self.engine.restoring_for_s(&object.key) {
                    status.activity = Some(format!("restoring for {seconds} s"));
                }
            }
        }
        status
    }
}
