//! `tierfs mount`: checks what was asked, then serves in the foreground or starts itself again in the background.
//!
//! The daemon's current directory is `/`, and nothing here looks at the mount point once the daemon has mounted: a
//! process that serves a mount must never need it.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Args;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;

pub use super::mount_options::MountFlags;

use super::exit::{self, CliError, Exit};
use super::mount_options::{self, Options, parse_rate};
use super::ready::{OK_LINE, READY_FD_VARIABLE, Ready};
use super::{GatewayArgs, Global, ObserveArgs, daemon, output};
use crate::admission::Rules;
use crate::control::client::mount_of_share;
use crate::control::policies::{self, Policies};
use crate::control::space::{Amount, SpaceRules};
use crate::control::tasks::{TASK_FILES, TaskOptions};
use crate::control::{ControlError, mountinfo};
use crate::engine::SlotLimits;
use crate::fs::Delay;
use crate::pair::units::{parse_duration, parse_percent};
use crate::pair::{Pair, RemoteRole, Store};
use crate::types::PairName;

/// How long a background mount may take until it answers. Recovery after a crash is part of it.
const READY_WITHIN_S: i64 = 180;
/// The low watermark lies this far below the high one unless it is given.
const WATERMARK_GAP_PCT: u8 = 10;

/// Mount a share through tierfs.
///
/// SHARE is the directory with the files; users work on MOUNTPOINT from then on. The pair that names the share is used;
/// without one the mount works, and nothing is migrated. Returns when the mount can be used; the daemon's log is
/// <state-dir>/log/<mountpoint>.log. The options with a policy are accepted inside -o as well: archive_after=5m,
/// release_above=80%, release_below=70%, scrub=10MiB, pair=NAME, and the usual options of mount(8), so fstab can say the same. Only there: delay_after=2s and
/// delay_for=ganesha.nfsd:nfsd, how long requests of these programs wait for a recall before they are told to try again; save_names=1h (or
/// off), how often the names and attributes of the whole share are stored in the bucket for `tierfs rebuild`; no_recall, recall_budget, recall_scan and
/// recall_memory, who may have content brought back and how much (docs/recalls.md);
/// gateway=127.0.0.1:9000, which serves the share as S3 from the same process, with the options of `tierfs gateway` as identities=FILE, bucket=NAME,
/// tls_cert=FILE and tls_key=FILE; policies=FILE, rules that choose files to archive, release or recall (`tierfs policy`, docs/policies.md);
/// metrics=127.0.0.1:9187, where Prometheus reads figures (docs/metrics.md); announce=FILE, which gets a line of JSON for each file that is archived,
/// released, recalled or failed (docs/observing.md); space_reserve=5% (or a size, or off; 1%, at most 1GiB, if nothing is said), so much is kept free by releasing the coldest files that are archived, and
/// space_wait=2s (0s for never), how long requests that find the share full wait for that (docs/space.md); task_rate=50MiB+unlimited@22:00-06:00, how fast `tierfs tasks` go, and task_files=500, files of each (docs/tasks.md).
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs mount /srv/share /mnt/tiered\n  \
     tierfs mount /srv/share /mnt/tiered --archive-after 7d --release-above 80%\n  \
     tierfs mount /srv/share /mnt/tiered --pair cold -o ro,noexec --foreground"))]
pub struct MountCommand {
    /// Directory with the files: absolute or relative, not on a tierfs mount itself.
    #[arg(value_name = "SHARE")]
    share: PathBuf,
    /// Empty directory to mount on, outside SHARE.
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,
    /// Comma-separated mount options; may be repeated.
    #[arg(short = 'o', value_name = "OPTS")]
    options: Vec<String>,
    /// Serve in this process and log to standard error.
    #[arg(long)]
    foreground: bool,
    /// The pair to use; needed where several name the share. Repeat it for several of role gfs: files go to the first, unless they are told
    /// otherwise (`tierfs set`, a policy), and the stubs of all are served.
    #[arg(long = "pair", value_name = "NAME")]
    pairs: Vec<PairName>,
    /// Copy files to the remote when they have not changed for this long, like 5m, 12h or 7d.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    archive_after: Option<Duration>,
    /// Start to free local blocks when the share's filesystem is this full, like 80%.
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    release_above: Option<u8>,
    /// Stop freeing at this fill [default: 10 points below --release-above].
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    release_below: Option<u8>,
    /// Read all objects again in the background, so many bytes a second at most, like 10MiB; at most once a day
    /// [default: never].
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    scrub: Option<u64>,
}

/// What happens by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Archive a file that has not changed for so long.
    pub archive_after: Option<Duration>,
    /// Release dual files while the lower filesystem is fuller than `.0` per cent, down to `.1`; `.1 < .0`.
    pub release: Option<(u8, u8)>,
    /// Read objects again, so many bytes a second.
    pub scrub: Option<u64>,
}

/// A checked request to mount.
#[derive(Clone, Debug)]
pub struct MountArgs {
    /// Canonical path of an existing directory.
    pub share: PathBuf,
    /// Canonical path of an existing directory that neither holds the share nor lies in it.
    pub mountpoint: PathBuf,
    /// `None`: nothing is migrated. Its `local_share` is the share.
    pub pair: Option<Pair>,
    /// Whose stubs are served, too, and where files may be told to go; all of role gfs then.
    pub further: Vec<Pair>,
    pub policy: Policy,
    pub read_only: bool,
    pub flags: MountFlags,
    pub delay: Delay,
    /// Who may have content brought back.
    pub rules: Rules,
    /// What recalls may use at once.
    pub recalls: SlotLimits,
    /// How often the names of the whole share are stored; `None`: never, nor after migrations.
    pub save_names: Option<Duration>,
    /// The share is served as S3 as well.
    pub gateway: Option<GatewayArgs>,
    /// The file of policies, and what is in it.
    pub policies: Option<(PathBuf, Policies)>,
    pub observe: ObserveArgs,
    pub tasks: TaskOptions,
    /// When content is freed by itself.
    pub space: SpaceRules,
    /// Absolute.
    pub config_dir: PathBuf,
    /// Absolute; may not exist yet.
    pub state_dir: PathBuf,
}

/// How long a request that finds the share full waits for room unless said otherwise.
const SPACE_WAIT: Duration = Duration::from_secs(2);
/// How often the names of a share are stored unless said otherwise.
const SAVE_NAMES_EVERY: Duration = Duration::from_secs(3600);

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map(Duration::from_secs)
}

impl MountCommand {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        if self.foreground { self.serve(global) } else { self.start(global) }
    }

    /// The daemon's side.
    fn serve(&self, global: &Global) -> Result<Exit, CliError> {
        let mut ready = Ready::from_environment()?;
        let served = self.serve_and_tell(global, &mut ready);
        if let Err(error) = &served {
            ready.fail(&error.to_string());
        }
        served.map(|()| Exit::Done)
    }

    fn serve_and_tell(&self, global: &Global, ready: &mut Ready) -> Result<(), CliError> {
        let args = self.check(global)?;
        let cannot = |what: &str, error: std::io::Error| CliError::Failed(format!("cannot {what}: {error}"));
        if ready.is_awaited() {
            rustix::process::setsid().map_err(|errno| cannot("start a session", errno.into()))?;
            // Standard output was the pipe to the waiting command, which must see its end when we have spoken.
            let null =
                File::options().write(true).open("/dev/null").map_err(|error| cannot("open /dev/null", error))?;
            rustix::stdio::dup2_stdout(&null).map_err(|errno| cannot("close the output", errno.into()))?;
        }
        std::env::set_current_dir("/").map_err(|error| cannot("change to /", error))?;
        if args.pair.is_none() {
            tracing::warn!("no pair names {}: nothing will be migrated", args.share.display());
        }
        daemon::run(&args, ready)
    }

    /// The command's side: starts the daemon and waits until the mount can be used.
    fn start(&self, global: &Global) -> Result<Exit, CliError> {
        // Checked here first, so that plain mistakes are told without a daemon; the daemon checks again.
        let args = self.check(global)?;
        let log = log_path(&args);
        let cannot = |error: std::io::Error| CliError::Failed(format!("cannot start the daemon: {error}"));
        let (reader, writer) = std::io::pipe().map_err(cannot)?;
        let mut command = Command::new(std::env::current_exe().map_err(cannot)?);
        command
            .args(self.daemon_arguments(global, &args))
            .env(READY_FD_VARIABLE, "1")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(open_log(&log)?);
        let mut child = command.spawn().map_err(cannot)?;
        // The command holds a writing end; as long as it lives there would be no end of file.
        drop(command);
        let mut line = String::new();
        if !readable_within(&reader, READY_WITHIN_S).map_err(|errno| cannot(errno.into()))? {
            return Err(CliError::Failed(format!(
                "the mount at {} is not ready after {READY_WITHIN_S} s; process {} goes on trying, see {}; `tierfs umount` or kill it",
                args.mountpoint.display(),
                child.id(),
                log.display()
            )));
        }
        BufReader::new(reader.take(64 << 10)).read_line(&mut line).map_err(cannot)?;
        match line.trim_end() {
            OK_LINE => {
                self.told(global, &args, child.id());
                Ok(Exit::Done)
            }
            "" => {
                let status = child.wait().map(|status| status.to_string()).unwrap_or_default();
                Err(CliError::Failed(format!(
                    "the daemon for {} ended before the mount was ready ({status}): {}; see {}",
                    args.mountpoint.display(),
                    last_line(&log),
                    log.display()
                )))
            }
            reason => Err(CliError::Failed(reason.to_owned())),
        }
    }

    fn told(&self, global: &Global, args: &MountArgs, pid: u32) {
        let pair = args.pair.as_ref().map(|pair| pair.name.as_str());
        let (share, mountpoint) = (output::shown(&args.share), output::shown(&args.mountpoint));
        if global.json {
            output::json(&serde_json::json!({ "share": share, "mountpoint": mountpoint, "pair": pair, "pid": pid }));
        } else {
            let pair = pair.map_or("no pair: nothing will be migrated".into(), |pair| format!("pair {pair}"));
            output::line(&format!("mounted {share} at {mountpoint} ({pair}, process {pid})"));
        }
    }

    /// The command line that makes a daemon do what this one asks.
    fn daemon_arguments(&self, global: &Global, args: &MountArgs) -> Vec<OsString> {
        let mut all: Vec<OsString> = vec!["--config-dir".into(), args.config_dir.clone().into()];
        all.extend(["--state-dir".into(), args.state_dir.clone().into()]);
        all.extend(std::iter::repeat_n("--verbose".into(), global.verbose.into()));
        all.extend(["--log-format".into(), global.log_format.as_str().into()]);
        all.extend(["mount".into(), "--foreground".into()]);
        for list in &self.options {
            all.extend(["-o".into(), list.into()]);
        }
        for pair in args.pair.iter().chain(&args.further) {
            all.extend(["--pair".into(), pair.name.as_str().into()]);
        }
        if let Some(after) = args.policy.archive_after {
            all.extend(["--archive-after".into(), format!("{}s", after.as_secs()).into()]);
        }
        if let Some((above, below)) = args.policy.release {
            all.extend(["--release-above".into(), above.to_string().into()]);
            all.extend(["--release-below".into(), below.to_string().into()]);
        }
        if let Some(rate) = args.policy.scrub {
            all.extend(["--scrub".into(), rate.to_string().into()]);
        }
        all.extend(["--".into(), args.share.clone().into(), args.mountpoint.clone().into()]);
        all
    }

    /// Everything that can be known before the daemon starts.
    fn check(&self, global: &Global) -> Result<MountArgs, CliError> {
        let options = mount_options::parse(&self.options).map_err(CliError::Usage)?;
        let policy = self.policy(&options)?;
        if !rustix::process::geteuid().is_root() {
            return Err(CliError::Failed("mounting needs root: run this with sudo".into()));
        }
        let config_dir = options.config_dir.unwrap_or_else(|| global.config_dir.clone());
        let state_dir = options.state_dir.unwrap_or_else(|| global.state_dir.clone());
        let share = directory("share", &self.share)?;
        let mountpoint = directory("mount point", &self.mountpoint)?;
        places(&share, &mountpoint)?;
        let names = if self.pairs.is_empty() { &options.pairs } else { &self.pairs };
        let (pair, further) = pairs_for(&Store::open(&config_dir), &share, names)?;
        if pair.is_none() && policy != Policy::default() {
            return Err(CliError::Failed(format!(
                "no pair names {}, so there is nowhere to archive to or to read from: `tierfs pair add` makes one",
                share.display()
            )));
        }
        let read = match options.policies {
            Some(path) => {
                let read = policies::load(&path).map_err(|error| CliError::Failed(error.to_string()))?;
                Some((path, read))
            }
            None => None,
        };
        let (usual, rules, recalls) = (Delay::default(), Rules::default(), SlotLimits::default());
        let observe = ObserveArgs { metrics: options.metrics, announce: options.announce };
        observe.check(&share, &mountpoint)?;
        let gateway = options.gateway.checked(&share, &config_dir)?;
        let frees = pair.is_some() && !options.read_only;
        let space = SpaceRules {
            marks: policy.release,
            reserve: options.space_reserve.unwrap_or(frees.then_some(Amount::Usual)),
            wait: options.space_wait.unwrap_or(SPACE_WAIT),
        };
        if space.reserve.is_some() && !frees {
            return Err(CliError::Usage("space_reserve needs a pair and a mount that is not read-only".into()));
        }
        Ok(MountArgs {
            tasks: TaskOptions {
                rates: options.task_rate.unwrap_or_default(),
                files: options.task_files.unwrap_or(TASK_FILES),
            },
            space,
            gateway,
            share,
            mountpoint,
            pair,
            further,
            policy,
            read_only: options.read_only,
            flags: options.flags,
            delay: Delay {
                after: options.delay_after.unwrap_or(usual.after),
                programs: options.delay_for.unwrap_or(usual.programs),
            },
            rules: Rules {
                no_recall: options.no_recall.unwrap_or(rules.no_recall),
                budgets: options.recall_budget.unwrap_or(rules.budgets),
                scan_files: options.recall_scan.unwrap_or(rules.scan_files),
            },
            recalls: SlotLimits { bytes: options.recall_memory.unwrap_or(recalls.bytes), ..recalls },
            save_names: options.save_names.unwrap_or(Some(SAVE_NAMES_EVERY)),
            policies: read,
            observe,
            config_dir,
            state_dir,
        })
    }

    fn policy(&self, options: &Options) -> Result<Policy, CliError> {
        let archive_after = self.archive_after.or(options.archive_after);
        let above = self.release_above.or(options.release_above_pct);
        let below = self.release_below.or(options.release_below_pct);
        let release = match (above, below) {
            (None, None) => None,
            (None, Some(_)) => {
                return Err(CliError::Usage("--release-below needs --release-above, where freeing starts".into()));
            }
            (Some(above), below) => {
                let below = below.unwrap_or(above.saturating_sub(WATERMARK_GAP_PCT));
                if below >= above {
                    let reason = format!("--release-below {below}% must be lower than --release-above {above}%");
                    return Err(CliError::Usage(reason));
                }
                Some((above, below))
            }
        };
        let policy = Policy { archive_after, release, scrub: self.scrub.or(options.scrub) };
        if options.read_only && (archive_after.is_some() || release.is_some()) {
            return Err(CliError::Usage(
                "a read-only mount archives and releases nothing: drop ro or the policy".into(),
            ));
        }
        Ok(policy)
    }
}

pub(super) fn directory(what: &str, path: &Path) -> Result<PathBuf, CliError> {
    let fail = |reason: String| CliError::Failed(format!("{what} {}: {reason}", path.display()));
    let canonical = std::fs::canonicalize(path).map_err(|error| match error.raw_os_error() {
        Some(code) if code == Errno::NOTCONN.raw_os_error() => {
            ControlError::Dead { mountpoint: path.to_owned() }.into()
        }
        _ if error.kind() == std::io::ErrorKind::NotFound => fail("no such directory: make it first".into()),
        _ => fail(error.to_string()),
    })?;
    match std::fs::metadata(&canonical) {
        Ok(metadata) if metadata.is_dir() => Ok(canonical),
        Ok(_) => Err(fail("is not a directory: name one".into())),
        Err(error) if error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error()) => {
            Err(ControlError::Dead { mountpoint: canonical }.into())
        }
        Err(error) => Err(fail(error.to_string())),
    }
}

/// Refuses places where a mount would hide the share, serve itself, or stand beside another mount of the same share.
fn places(share: &Path, mountpoint: &Path) -> Result<(), CliError> {
    let fail = |reason: String| Err(CliError::Failed(reason));
    let (s, m) = (share.display(), mountpoint.display());
    if mountpoint.starts_with(share) || share.starts_with(mountpoint) {
        return fail(format!(
            "share {s} and mount point {m} lie inside each other: mount on a directory beside the share"
        ));
    }
    let mounts = mountinfo::read().map_err(ControlError::NoMountInfo)?;
    match mountinfo::covering(&mounts, mountpoint) {
        Some(top) if top.is_tierfs() && top.mount_point == mountpoint => {
            return fail(format!("{m} is a tierfs mount already: `tierfs umount {m}` first"));
        }
        _ => {}
    }
    if mountinfo::covering(&mounts, share).is_some_and(|top| top.is_tierfs()) {
        return fail(format!("share {s} lies on a tierfs mount: name the directory below it"));
    }
    if let Some((other, info)) = mount_of_share(share)? {
        let (other, pid) = (other.display(), info.pid);
        return fail(format!("share {s} is mounted at {other} already (process {pid}): a share has one mount"));
    }
    Ok(())
}

pub(super) fn pair_for(store: &Store, share: &Path, name: Option<&PairName>) -> Result<Option<Pair>, CliError> {
    let Some(name) = name else { return Ok(store.for_share(share)?) };
    let pair = store.load(name)?;
    let its_share = std::fs::canonicalize(&pair.local_share).unwrap_or_else(|_| pair.local_share.clone());
    if its_share != share {
        return Err(CliError::Failed(format!(
            "pair {name} is for share {}, not for {}: choose another pair or share",
            pair.local_share.display(),
            share.display()
        )));
    }
    Ok(Some(pair))
}

/// The pairs of these names, the one that files go to first.
fn pairs_for(store: &Store, share: &Path, names: &[PairName]) -> Result<(Option<Pair>, Vec<Pair>), CliError> {
    let first = pair_for(store, share, names.first())?;
    let mut further: Vec<Pair> = Vec::new();
    for name in names.iter().skip(1) {
        let Some(pair) = pair_for(store, share, Some(name))? else { continue };
        if first.iter().chain(&further).any(|other| other.name == pair.name) {
            return Err(CliError::Usage(format!("pair {name} is named twice")));
        }
        further.push(pair);
    }
    let peer = first.iter().chain(&further).find(|pair| pair.role == RemoteRole::Gpeer);
    match peer.filter(|_| !further.is_empty()) {
        Some(peer) => Err(CliError::Failed(format!(
            "pair {} has role gpeer: its share has the same files, and no other pair beside it",
            peer.name
        ))),
        None => Ok((first, further)),
    }
}

fn log_path(args: &MountArgs) -> PathBuf {
    let name = args.mountpoint.to_string_lossy().trim_matches('/').replace('/', "-");
    // A file name has at most 255 bytes.
    let name: String = name.chars().take(60).collect();
    args.state_dir.join("log").join(format!("{name}.log"))
}

fn open_log(path: &Path) -> Result<File, CliError> {
    let cannot = |error: std::io::Error| {
        CliError::Failed(format!("cannot write the log {}: {error}; --state-dir names another place", path.display()))
    };
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(cannot)?;
    }
    OpenOptions::new().append(true).create(true).mode(0o600).open(path).map_err(cannot)
}

fn readable_within(pipe: &impl std::os::fd::AsFd, seconds: i64) -> Result<bool, Errno> {
    let timeout = Timespec { tv_sec: seconds, tv_nsec: 0 };
    loop {
        let mut waited = [PollFd::new(pipe, PollFlags::IN)];
        match poll(&mut waited, Some(&timeout)) {
            Err(Errno::INTR) => {}
            other => return other.map(|ready| ready > 0),
        }
    }
}

/// What the daemon said last, for a message.
fn last_line(log: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(2_000)))?;
        let mut tail = Vec::new();
        file.take(2_000).read_to_end(&mut tail)?;
        Ok(String::from_utf8_lossy(&tail).trim().lines().last().unwrap_or("its log is empty").to_owned())
    };
    read().unwrap_or_else(|error| error.to_string())
}
