//! Where the parts are put together: the mount's daemon, the embedded endpoint, and what `pair` needs of either.

use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::mount::{MountFlags as KernelFlags, UnmountFlags};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::exit::CliError;
use super::mounted_pairs::MountedPairs;
use super::other_end::{has_peer, probe, remote_config, target};
use super::synced::{self, Ingredients};
use super::{DevS3Args, MountArgs, MountFlags, Ready, claims, gateway as gateway_command};
use crate::admission::Rules;
use crate::catalog::index::Index;
use crate::control::announce::AnnounceFile;
use crate::control::background::Background;
use crate::control::metrics;
use crate::control::names::Names;
use crate::control::policies::{Manager, Policies};
use crate::control::policy::Runner;
use crate::control::scrub::{self, Scrub};
use crate::control::server::{Server, Socket, Watch};
use crate::control::space::Keeper;
use crate::control::tasks::Queue;
use crate::engine::{Engine, Limits, SlotLimits, Target};
use crate::fs::{Delay, Fs, FsOptions};
use crate::fuse::{Mount, MountOptions, kernel_can_pass_through};
use crate::gateway::{self, Credentials, Options};
use crate::journal::SqliteJournal;
use crate::lower::{self, Share};
use crate::pair::capabilities::{self, Probed};
use crate::pair::{ClaimCheck, Pair, PairResult, RemoteRole};
use crate::ports::{Clock, FAILED_DROPPED, Journal, Lower, LowerError, SystemClock};
use crate::rebuild::Rebuild;
use crate::record::Record;
use crate::remote::S3Remote;
use crate::sync::Ends;
use crate::types::{ContentHash, FileId, PairName};

/// Most async workers; one a core below that. Blocking work has threads of its own.
const WORKERS_MAX: usize = 4;
/// Seconds the kernel may keep names and attributes: all access is through the mount.
const TTL_S: u64 = 60;
/// Threads for blocking local I/O at most. No work on them waits for other work on them.
const BLOCKING_MAX: usize = 64;
/// How long transfers may take to come to rest when the mount goes away.
const REST_WITHIN: Duration = Duration::from_secs(30);
/// How long announcements may take then.
const TOLD_WITHIN: Duration = Duration::from_secs(5);
/// How long a process that served the share before may take to end.
const CLAIM_WITHIN: Duration = Duration::from_secs(5);

pub(super) fn failed(what: impl std::fmt::Display) -> CliError {
    CliError::Failed(what.to_string())
}

pub(super) fn runtime() -> Result<Runtime, CliError> {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    Builder::new_multi_thread()
        .worker_threads(cores.clamp(2, WORKERS_MAX))
        .max_blocking_threads(BLOCKING_MAX)
        .enable_all()
        .build()
        .map_err(|error| failed(format!("cannot start the runtime: {error}")))
}

/// A share that is to be served, and how.
pub(super) struct Served<'a> {
    pub share: &'a Path,
    /// The one that files go to.
    pub pair: Option<&'a Pair>,
    /// Whose stubs are served, too.
    pub further: &'a [Pair],
    pub config_dir: &'a Path,
    pub read_only: bool,
    pub delay: &'a Delay,
    pub rules: &'a Rules,
    pub recalls: SlotLimits,
    pub state_dir: &'a Path,
    /// How long requests wait for room on a full share; zero where nobody makes any.
    pub space_wait: Duration,
    /// Where finished and failed files are announced.
    pub announce: Option<&'a Path>,
    /// What serves it, for those who come second.
    pub by: String,
}

/// A share with everything above it, recovered and ready for users.
pub(super) struct Parts {
    pub share: Arc<Share>,
    pub lower: Arc<dyn Lower>,
    pub clock: Arc<dyn Clock>,
    pub runtime: Runtime,
    state: ShareState,
    journal: Arc<SqliteJournal>,
    pub pairs: Arc<MountedPairs>,
    pub engine: Arc<Engine>,
    pub fs: Arc<Fs>,
    pub index: Option<Arc<Index>>,
    pub sync: Option<Arc<Ends>>,
    pub read_only: bool,
}

/// Puts the parts together, and settles what a crash left.
pub(super) fn assemble(served: &Served<'_>) -> Result<Parts, CliError> {
    let share = Arc::new(open_share(served)?);
    let read_only = served.read_only || share.features().read_only;
    let lower: Arc<dyn Lower> = share.clone();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    // Only now may threads start: they inherit what was dropped.
    let runtime = runtime()?;
    let state = ShareState::open(served)?;
    let journal = Arc::new(SqliteJournal::open(&state.journal).map_err(failed)?);
    runtime.block_on(state.bind(served.share, lower.root().id, &*journal))?;
    let all: Vec<Pair> = served.pair.into_iter().chain(served.further).cloned().collect();
    let dirs = (served.config_dir.to_owned(), served.state_dir.to_owned());
    let pairs = Arc::new(runtime.block_on(MountedPairs::connect(&all, dirs.0, dirs.1))?);
    let mut targets = pairs.targets().into_iter();
    let target = targets.next();
    let probed = served.pair.and_then(|pair| capabilities::load(served.state_dir, &pair.name));
    if let Some(target) = target.as_ref().filter(|target| target.peer && !target.prefix.is_empty()) {
        return Err(failed(format!(
            "pair {} has role gpeer, and so its remote is a whole share: s3://BUCKET without a prefix",
            target.pair.name
        )));
    }
    let handle = runtime.handle().clone();
    let limits = Limits { recalls: served.recalls, ..Limits::default() };
    let engine = Engine::new(lower.clone(), journal.clone(), clock.clone(), target, handle, limits);
    targets.for_each(|further| engine.add_target(further));
    if let Some(path) = served.announce {
        let file = AnnounceFile::open(path)
            .map_err(|error| failed(format!("cannot announce in {}: {error}", path.display())))?;
        engine.announce_to(file);
    }
    if !read_only {
        let settled = runtime.block_on(engine.recover()).map_err(failed)?;
        if settled > 0 {
            tracing::info!(settled, "interrupted transfers were settled");
        }
        runtime.block_on(engine.announce_owed()).map_err(failed)?;
    }
    let index = open_index(share.clone(), &state.index);
    if let Some(index) = &index {
        let recorder = index.recorder().clone();
        engine.on_state(Box::new(move |file| recorder.changed_id(file)));
    }
    let side = synced::side(served.pair, probed, read_only);
    let synced = synced::capture(side, &lower)?;
    let capture = synced.capture.clone();
    let options = FsOptions {
        synced,
        recorder: index.as_ref().map(|index| index.recorder().clone()).unwrap_or_default(),
        read_only,
        // A mapping outlives its passthrough handle; without leases nobody could tell it from a free file.
        passthrough: kernel_can_pass_through() && lower.features().leases,
        socket: Some(state.socket.clone()),
        delay: served.delay.clone(),
        rules: served.rules.clone(),
        space_wait: served.space_wait,
        ..FsOptions::default()
    };
    let fs = Fs::new(lower.clone(), engine.clone(), options, std::process::id());
    let (pair, book, remote) = (served.pair, &*state.sync, pairs.first_remote());
    let of = Ingredients { pair, side, book, lower: &lower, clock: &clock, remote: remote.as_ref(), fs: &fs, capture };
    let sync = synced::ends(of, &runtime)?;
    pairs.tell(&engine, sync.as_ref());
    Ok(Parts { share, lower, clock, runtime, state, journal, pairs, engine, fs, index, sync, read_only })
}

/// Lets transfers come to rest.
pub(super) fn come_to_rest(runtime: Runtime, engine: &Engine, index: Option<Arc<Index>>) {
    engine.stop();
    runtime.block_on(async {
        let rest = async {
            while !engine.is_idle() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(REST_WITHIN, rest).await.is_err() {
            tracing::warn!("transfers still run; the next mount settles them");
        }
        let told = async {
            while engine.is_announcing() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        // What is not told by then is told at the next start.
        let _ = tokio::time::timeout(TOLD_WITHIN, told).await;
        engine.close_announcements().await;
    });
    if let Some(index) = index {
        index.close();
    }
    runtime.shutdown_timeout(Duration::from_secs(5));
}

/// Mounts the share and serves it until it is unmounted. Calls `ready.ok()` when the mount answers; an error before that
/// is passed on to whoever waits.
pub fn run(args: &MountArgs, ready: &mut Ready) -> Result<(), CliError> {
    let served = Served {
        share: &args.share,
        pair: args.pair.as_ref(),
        further: &args.further,
        config_dir: &args.config_dir,
        read_only: args.read_only,
        delay: &args.delay,
        rules: &args.rules,
        recalls: args.recalls,
        state_dir: &args.state_dir,
        // Without a pair nothing can be freed.
        space_wait: if args.pair.is_some() && !args.read_only { args.space.wait } else { Duration::ZERO },
        announce: args.observe.announce.as_deref(),
        by: format!("mounted at {}", args.mountpoint.display()),
    };
    let parts = assemble(&served)?;
    // Before the mount: what is wrong with it is to be told, not to leave a mount.
    let gateway = args.gateway.as_ref().map(|gateway| gateway_command::start(gateway, &parts)).transpose()?;
    let metrics = args.observe.bind(&parts.runtime)?;
    let Parts { share, lower, clock, runtime, state, journal, pairs, engine, fs, index, sync, read_only, .. } = parts;
    let socket = {
        let _guard = runtime.enter();
        Socket::bind(&state.socket)
            .map_err(|error| failed(format!("cannot make the control socket {}: {error}", state.socket.display())))?
    };
    let mount_options =
        MountOptions { flags: kernel_flags(&args.flags, read_only), source: args.share.clone(), ttl_s: TTL_S };
    let mount = Mount::new(fs.clone(), &args.mountpoint, &mount_options).map_err(failed)?;
    let names = {
        let _guard = runtime.enter();
        let stores = args.pair.as_ref().is_some_and(|pair| pair.role == RemoteRole::Gfs);
        let every = args.save_names.filter(|_| !read_only && stores);
        Names::start(lower.clone(), engine.clone(), every)
    };
    let scrub =
        args.policy.scrub.map(|rate| Scrub::new(lower.clone(), engine.clone(), journal.clone(), clock.clone(), rate));
    let policies = index.clone().map(|index| {
        let (path, rules) = args.policies.clone().unzip();
        let rules = rules.unwrap_or_else(Policies::none);
        runtime.block_on(Manager::open(lower.clone(), engine.clone(), index, journal, path, rules))
    });
    let served_fs = fs.clone();
    let server = Arc::new(Server {
        policies: policies.clone(),
        names,
        lower: lower.clone(),
        engine: engine.clone(),
        fs,
        share: args.share.clone(),
        mountpoint: args.mountpoint.clone(),
        pair_problems: pairs.problems(),
        reload_pair: pairs.reloader(),
        scrub: scrub.clone(),
        index: index.clone(),
        sync: sync.clone(),
        watch: Watch {
            descriptors: Some(Box::new(move || share.descriptors_cached())),
            metrics: metrics.as_ref().map(|(_, at)| *at),
            background: Background { archive_after: args.policy.archive_after, space: args.space, read_only },
            ..Watch::default()
        },
    });
    runtime.spawn(server.clone().serve(socket));
    if let Some((listener, _)) = metrics {
        runtime.spawn(metrics::serve(listener, server.clone()));
    }
    {
        let _guard = runtime.enter();
        pairs.watch();
        pairs.reload_on_hangup();
    }
    if let Some(scrub) = scrub {
        runtime.spawn(scrub.run());
    }
    if !read_only {
        engine.start_deletions();
        if let Some(policies) = policies {
            runtime.spawn(policies.run());
        }
        if args.pair.is_some() && !args.space.is_idle() {
            let keeper = Keeper::new(lower.clone(), engine.clone(), served_fs, index.clone(), args.space);
            runtime.spawn(keeper.run());
        }
        if args.pair.is_some() {
            let options = args.tasks.clone();
            match Queue::open(&state.tasks, lower.clone(), engine.clone(), server.fs.recorder_handle(), options) {
                Ok(queue) => {
                    let _ = server.watch.tasks.set(queue.clone());
                    runtime.spawn(queue.run());
                }
                Err(error) => tracing::error!("{error}"),
            }
        }
        if let Some(after) = args.policy.archive_after {
            let runner = Runner::new(lower, engine.clone(), index.clone(), clock, after);
            runtime.spawn(Arc::new(runner).run());
        }
    }
    // Watched before anybody is told that the mount is there: an early signal would kill and leave a dead mount.
    let signals = {
        let _guard = runtime.enter();
        signal(SignalKind::terminate()).and_then(|terminate| Ok((terminate, signal(SignalKind::interrupt())?)))
    };
    match signals {
        Ok(signals) => drop(runtime.spawn(unmount_on_signal(args.mountpoint.clone(), signals))),
        Err(error) => tracing::warn!("signals cannot be watched: use `tierfs umount`: {error}"),
    }
    if let Some(ends) = &sync {
        synced::start(ends, &runtime);
    }
    tracing::info!(share = %args.share.display(), mountpoint = %args.mountpoint.display(), "mounted");
    ready.ok();
    let served = mount.serve();
    tracing::info!("unmounted");
    if let Some(gateway) = gateway {
        runtime.block_on(gateway.shutdown());
    }
    synced::finish(sync.as_ref(), &runtime);
    come_to_rest(runtime, &engine, index);
    served.map_err(|error| failed(format!("the session at {} failed: {error}", args.mountpoint.display())))
}

/// A mount works without its index.
fn open_index(share: Arc<Share>, path: &Path) -> Option<Arc<Index>> {
    match Index::open(share, path) {
        Ok(index) => Some(index),
        Err(error) => {
            tracing::error!("no index of the share, and no policies or reports by it: {error}");
            None
        }
    }
}

fn open_share(args: &Served<'_>) -> Result<Share, CliError> {
    let place = args.share.display();
    let privileges = |error: LowerError| failed(format!("cannot prepare the daemon: {error}"));
    lower::ignore_sigio().map_err(privileges)?;
    let share = Share::open(args.share).map_err(|error| failed(format!("cannot open share {place}: {error}")))?;
    lower::drop_privileges().map_err(privileges)?;
    let features = share.features();
    if features.read_only {
        if !args.read_only {
            return Err(failed(format!("share {place} is read-only: mount it with -o ro, or make it writable")));
        }
        return Ok(share);
    }
    if args.pair.is_some() && !features.punch_hole {
        return Err(failed(format!(
            "the filesystem of {place} cannot punch holes, so no space could be freed: use ext4 or xfs, or mount without a pair"
        )));
    }
    if !features.leases {
        tracing::warn!(share = %place, "no leases on this filesystem: a file mapped by somebody cannot be told from a free one");
    }
    Ok(share)
}

/// Where a share's state is kept, by the share's path.
struct ShareState {
    /// Tells which filesystem the journal is about.
    identity: PathBuf,
    journal: PathBuf,
    /// Can be made again at any time.
    index: PathBuf,
    /// What the metadata sync remembers.
    sync: PathBuf,
    tasks: PathBuf,
    socket: PathBuf,
    /// Locked as long as this process serves the share.
    _claim: std::fs::File,
}

impl ShareState {
    fn open(args: &Served<'_>) -> Result<Self, CliError> {
        use std::os::unix::ffi::OsStrExt;
        // A path as a file name could be too long; its hash is not.
        let name = &ContentHash::of(args.share.as_os_str().as_bytes()).to_string()[..16];
        let dir = args.state_dir.join("shares").join(name);
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.and_then(|()| std::fs::write(dir.join("share"), args.share.as_os_str().as_bytes())).map_err(|error| {
            failed(format!("cannot keep state in {}: {error}; --state-dir names another place", dir.display()))
        })?;
        let claim = claim(&dir.join("served"), args)?;
        Ok(Self {
            _claim: claim,
            identity: dir.join("identity"),
            journal: dir.join("journal.sqlite"),
            index: dir.join("index.sqlite"),
            sync: dir.join("sync.sqlite"),
            tasks: dir.join("tasks.sqlite"),
            socket: dir.join("control").join("socket"),
        })
    }

    /// Makes sure that the journal is about this very directory. On another one (the share's filesystem is not mounted, or was made
    /// anew) its inodes are not found, and objects would be deleted that the right share still needs.
    async fn bind(&self, share: &Path, root: FileId, journal: &dyn Journal) -> Result<(), CliError> {
        let cannot = |error: io::Error| failed(format!("{}: {error}", self.identity.display()));
        match std::fs::read_to_string(&self.identity) {
            Ok(known) if known == root.to_string() => return Ok(()),
            Ok(_) => {
                let (transfers, deletions) = journal.counts().await.map_err(failed)?;
                if transfers + deletions > 0 {
                    return Err(failed(format!(
                        "{} is not the directory it was: {} notes about another one are in {}. Mount the share's filesystem there first; if \
                         the share was made anew or restored elsewhere, move that file away",
                        share.display(),
                        transfers + deletions,
                        self.journal.display()
                    )));
                }
                // Failures and the scrub's place in another directory say nothing about this one.
                loop {
                    let entries = journal.failed(None, 1_000).await.map_err(failed)?;
                    if entries.is_empty() {
                        break;
                    }
                    let ids = entries.into_iter().map(|entry| entry.id).collect();
                    journal.drop_failed(ids).await.map_err(failed)?;
                }
                for value in [scrub::VALUE, FAILED_DROPPED] {
                    journal.set_value(value, None).await.map_err(failed)?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(cannot(error)),
        }
        // Durable before the first note is.
        let mut file = std::fs::File::create(&self.identity).map_err(cannot)?;
        file.write_all(root.to_string().as_bytes()).and_then(|()| file.sync_all()).map_err(cannot)?;
        let dir = self.identity.parent().unwrap_or(Path::new("/"));
        std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(cannot)
    }
}

/// Makes this process the one that serves the share; who comes second learns who is.
fn claim(path: &Path, served: &Served<'_>) -> Result<std::fs::File, CliError> {
    let cannot = |error: io::Error| failed(format!("cannot claim {}: {error}", path.display()));
    let options = std::fs::File::options().read(true).write(true).create(true).truncate(false).clone();
    let mut file = options.open(path).map_err(cannot)?;
    // One that is ending takes a moment.
    let until = std::time::Instant::now() + CLAIM_WITHIN;
    loop {
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(rustix::io::Errno::WOULDBLOCK) if std::time::Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let other = std::fs::read_to_string(path).unwrap_or_default();
                return Err(failed(format!(
                    "share {} is {}: one process serves a share. A mount can be its gateway as well: `tierfs mount … -o gateway=ADDR`",
                    served.share.display(),
                    other.trim()
                )));
            }
            Err(errno) => return Err(cannot(errno.into())),
        }
    }
    file.set_len(0).and_then(|()| writeln!(file, "{} (process {})", served.by, std::process::id())).map_err(cannot)?;
    Ok(file)
}

fn kernel_flags(flags: &MountFlags, read_only: bool) -> KernelFlags {
    let mut all = KernelFlags::empty();
    for (set, flag) in [
        (read_only, KernelFlags::RDONLY),
        (flags.nosuid, KernelFlags::NOSUID),
        (flags.nodev, KernelFlags::NODEV),
        (flags.noexec, KernelFlags::NOEXEC),
        (flags.noatime, KernelFlags::NOATIME),
        (flags.nodiratime, KernelFlags::NODIRATIME),
    ] {
        all.set(flag, set);
    }
    all
}

/// SIGTERM and SIGINT unmount. In use, the mount goes out of sight and ends with its last user.
async fn unmount_on_signal(mountpoint: PathBuf, (mut terminate, mut interrupt): (Signal, Signal)) {
    loop {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        let place = mountpoint.clone();
        // Off the workers: the kernel asks this daemon while it unmounts.
        let ended = tokio::task::spawn_blocking(move || unmount(&place)).await;
        if let Ok(Err(error)) = ended {
            tracing::error!("cannot unmount {}: {error}", mountpoint.display());
        }
    }
}

fn unmount(mountpoint: &Path) -> io::Result<()> {
    match rustix::mount::unmount(mountpoint, UnmountFlags::NOFOLLOW) {
        Err(rustix::io::Errno::BUSY) => {
            tracing::warn!("{} is in use: it ends with its last user", mountpoint.display());
            Ok(rustix::mount::unmount(mountpoint, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)?)
        }
        other => Ok(other?),
    }
}

/// Serves the embedded S3 endpoint until a signal ends it. Calls `listening` with the address it is bound to.
pub fn dev_s3(args: &DevS3Args, listening: &dyn Fn(std::net::SocketAddr)) -> Result<(), CliError> {
    let credentials = match (std::env::var("AWS_ACCESS_KEY_ID"), std::env::var("AWS_SECRET_ACCESS_KEY")) {
        (Ok(access_key), Ok(secret_key)) => Some(Credentials { access_key, secret_key }),
        (Err(_), Err(_)) => {
            tracing::warn!("no credentials in the environment: everybody who reaches {} may do anything", args.listen);
            None
        }
        _ => return Err(failed("set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or neither")),
    };
    runtime()?.block_on(async {
        let cannot = |error: io::Error| failed(format!("cannot watch for signals: {error}"));
        let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
        let options = Options { credentials, restore_after: args.restore_after, ..Options::new(args.listen) };
        let server = gateway::Server::start(&args.dir, options).await.map_err(failed)?;
        listening(server.addr());
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        server.shutdown().await;
        Ok(())
    })
}

/// Makes a share of stubs in the directory `into` from the pair's bucket, and reports by `work`.
pub fn rebuild<T>(
    pairs: &[Pair],
    into: &Path,
    options: impl FnOnce(Arc<dyn Lower>, Vec<Target>) -> Arc<Rebuild>,
    work: impl AsyncFnOnce(Arc<Rebuild>) -> T,
) -> Result<T, CliError> {
    // Tried anew: what was found before is lost with the share.
    let mut found = Vec::new();
    for pair in pairs {
        let tried = (pair.role == RemoteRole::Gpeer).then(|| probe(pair).map_err(failed)).transpose()?;
        let probed = tried.map(|found| Probed { at_s: 0, capabilities: found.capabilities, peer: found.peer });
        if has_peer(pair, probed) {
            return Err(failed(format!(
                "pair {} is one of two shares: the other share has the files (`tierfs sync`)",
                pair.name
            )));
        }
        found.push((pair, probed));
    }
    let share = Share::open(into).map_err(|error| failed(format!("cannot open {}: {error}", into.display())))?;
    if share.features().read_only {
        return Err(failed(format!("{} is read-only", into.display())));
    }
    let runtime = runtime()?;
    runtime.block_on(async {
        let mut targets = Vec::new();
        for (pair, probed) in found {
            let remote = Arc::new(S3Remote::connect(remote_config(pair)).await.map_err(failed)?);
            targets.push(target(pair, remote, probed));
        }
        Ok(work(options(Arc::new(share), targets)).await)
    })
}

/// Whether files of the pair's share have content that only the pair can bring back. The share is not mounted with it.
pub fn claims(pair: &Pair) -> PairResult<ClaimCheck> {
    claims::scan(pair, &record_pair)
}

/// The pair that a stored record names: `None` when the record cannot be read, which counts as any pair.
fn record_pair(_path: &Path, stored: &[u8]) -> Option<Option<PairName>> {
    let record = Record::decode(stored).ok()?;
    // What is at the other side, or may be by the time that it answers.
    let away = record.peer.filter(|peer| peer.is_foreign() || peer.is_handing_over());
    Some(record.object.map(|object| object.pair.name).or(away.map(|peer| peer.pair)))
}
