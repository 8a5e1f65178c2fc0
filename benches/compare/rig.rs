//! What is measured with: filesystems on loop devices, the real binary as daemon and endpoint, CPU clocks.
//!
//! Invariant: each guard undoes what it made when it is dropped, in the reverse order of making.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::CpuSet;
use tempfile::TempDir;

/// The release binary under test.
pub const TIERFS: &str = env!("CARGO_BIN_EXE_tierfs");
/// How long a daemon may take to come up or to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// Environment that would lead the tools elsewhere.
const FOREIGN: [&str; 6] = [
    "AWS_CA_BUNDLE",
    "AWS_PROFILE",
    "AWS_SESSION_TOKEN",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "RCLONE_CONFIG",
];

/// What a row's median ratio should be.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    None,
    /// At least this.
    Ratio(f64),
    /// Above that of every peer.
    Ahead,
}

/// Set once the process has a mount namespace of its own.
const INSIDE: &str = "TIERFS_BENCH_INSIDE";

/// Messages are for people; nothing branches on them.
pub type Result<T> = std::result::Result<T, String>;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Runs a benchmark with mounts of its own, and says how it failed.
pub fn inside_namespace(run: impl FnOnce() -> Result<()>) -> ExitCode {
    if std::env::var_os(INSIDE).is_none() {
        return enter_namespace();
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Starts this program again with private mounts: whatever happens to it, no mount stays.
fn enter_namespace() -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        eprintln!("bench: mounting needs root: run this as root");
        return ExitCode::FAILURE;
    }
    let error = match std::env::current_exe() {
        Ok(this) => Command::new("unshare")
            .args(["--mount", "--propagation", "private", "--"])
            .arg(this)
            .args(std::env::args_os().skip(1))
            .env(INSIDE, "1")
            .exec(),
        Err(error) => error,
    };
    eprintln!("bench: cannot start unshare (package util-linux): {error}");
    ExitCode::FAILURE
}

/// Remembers SIGINT, SIGTERM and SIGHUP instead of dying of them, so that guards run.
pub fn watch_signals() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(said("signals"))?;
    let (mut int, mut term, mut hup) = {
        let _guard = runtime.enter();
        let watch = |kind| signal(kind).map_err(said("signals"));
        (watch(SignalKind::interrupt())?, watch(SignalKind::terminate())?, watch(SignalKind::hangup())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = int.recv() => {}, _ = term.recv() => {}, _ = hup.recv() => {} }
            INTERRUPTED.store(true, Ordering::SeqCst);
        });
    });
    Ok(())
}

/// To be asked between measurements.
pub fn check_interrupted() -> Result<()> {
    if INTERRUPTED.load(Ordering::SeqCst) { Err("interrupted; everything is cleaned up".into()) } else { Ok(()) }
}

/// An error with what was tried.
pub fn said<E: std::fmt::Display>(what: &str) -> impl Fn(E) -> String + '_ {
    move |error| format!("{what}: {error}")
}

pub fn progress(line: &str) {
    eprintln!("bench: {line}");
}

/// A command without the environment that would lead it elsewhere.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    for name in FOREIGN {
        command.env_remove(name);
    }
    command
}

/// Runs to the end; all it said is the error if it fails.
pub fn run(command: &mut Command) -> Result<String> {
    let what = format!("{:?}", command.get_program());
    let output = command.stdin(Stdio::null()).output().map_err(said(&what))?;
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(out);
    }
    check_interrupted()?;
    Err(format!("{command:?}: {}\n{out}{}", output.status, String::from_utf8_lossy(&output.stderr)))
}

/// A directory that goes away with its content.
pub fn scratch(below: &Path) -> Result<TempDir> {
    let made = tempfile::Builder::new().prefix("tierfs-bench-").tempdir_in(below);
    made.map_err(|error| format!("cannot make a directory in {}: {error}", below.display()))
}

/// "ext4", "tmpfs" … of what holds `path`.
pub fn filesystem_of(path: &Path) -> String {
    let found = run(command("stat").args(["-f", "-c", "%T"]).arg(path)).unwrap_or_default();
    match found.trim() {
        "ext2/ext3" => "ext4".into(),
        other => other.to_owned(),
    }
}

/// Takes a mount away, from under its users if need be.
pub fn unmount(path: &Path) {
    if run(command("umount").arg(path)).is_err() {
        let _ = run(command("umount").arg("-l").arg(path));
    }
}

/// ext4 in a sparse file, mounted by a loop device.
pub struct LoopFs {
    pub path: PathBuf,
}

impl LoopFs {
    /// In `scratch`, as `name`, with Debian's defaults but the reserve for root.
    pub fn new(scratch: &Path, name: &str, bytes: u64) -> Result<Self> {
        let image = scratch.join(format!("{name}.img"));
        File::create_new(&image).and_then(|file| file.set_len(bytes)).map_err(said("image"))?;
        run(command("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
        let path = scratch.join(name);
        fs::create_dir(&path).map_err(said("mount point"))?;
        run(command("mount").args(["-o", "loop"]).arg(&image).arg(&path))?;
        Ok(Self { path })
    }

    /// Everything written so far is on the device.
    pub fn sync(&self) -> Result<()> {
        let root = File::open(&self.path).map_err(said("sync"))?;
        rustix::fs::syncfs(&root).map_err(said("syncfs"))
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        unmount(&self.path);
    }
}

/// A daemon that is told to end, and waited for, when dropped.
pub struct Daemon {
    pub child: Child,
}

impl Daemon {
    /// User and system time it has used so far, in seconds.
    pub fn cpu_s(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        ticks(&stat, 11)
    }

    fn check_running(&mut self, what: &str) -> Result<()> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(format!("{what} ended: {status}")),
            Err(error) => Err(format!("{what}: {error}")),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Has all threads of a process run on `cpus` only.
pub fn bind(process: u32, cpus: &CpuSet) -> Result<()> {
    for task in fs::read_dir(format!("/proc/{process}/task")).map_err(said("threads"))? {
        let task = task.map_err(said("threads"))?.file_name();
        let thread = task.to_str().and_then(|number| number.parse().ok()).and_then(rustix::process::Pid::from_raw);
        match rustix::thread::sched_setaffinity(thread, cpus) {
            // It has ended meanwhile.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(format!("sched_setaffinity: {error}")),
        }
    }
    Ok(())
}

/// Two neighbouring fields of a stat line (user and system ticks), counted from after the process's name, in seconds.
fn ticks(stat: &str, field: usize) -> f64 {
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let sum: u64 = fields.split_whitespace().skip(field).take(2).filter_map(|text| text.parse::<u64>().ok()).sum();
    sum as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// User and system time of all children that were waited for, in seconds.
pub fn children_cpu_s() -> f64 {
    ticks(&fs::read_to_string("/proc/self/stat").unwrap_or_default(), 13)
}

/// A FUSE filesystem, mounted by a process of its own that stays in the foreground.
pub struct Mounted {
    pub path: PathBuf,
    pub daemon: Daemon,
}

impl Mounted {
    /// `share` through tierfs, which is asked with `environment`, beside it.
    pub fn new(scratch: &Path, share: &Path, environment: &dyn Fn(&mut Command)) -> Result<Self> {
        Self::start(scratch, "mnt", |path| {
            let mut command = command(TIERFS);
            environment(&mut command);
            command.arg("mount").args([share, path]).arg("--foreground");
            command
        })
    }

    /// What the command gives for the mount point `name` in `scratch`, which is made. Returns when it is mounted.
    pub fn start(scratch: &Path, name: &str, command: impl FnOnce(&Path) -> Command) -> Result<Self> {
        let path = scratch.join(name);
        fs::create_dir(&path).map_err(said("mount point"))?;
        let log_path = scratch.join(format!("{name}.log"));
        let log = File::create(&log_path).map_err(said("log"))?;
        let before = fs::metadata(&path).map_err(said("mount point"))?.dev();
        let mut command = command(&path);
        let what = command.get_program().to_string_lossy().into_owned();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().map_err(said(&what))?;
        let mut this = Self { path, daemon: Daemon { child } };
        let began = Instant::now();
        while fs::metadata(&this.path).map_err(said("mount point"))?.dev() == before {
            let log = || fs::read_to_string(&log_path).unwrap_or_default();
            this.daemon.check_running(&what).map_err(|error| format!("{error}\n{}", log()))?;
            if began.elapsed() > PATIENCE {
                return Err(format!("{what} does not mount\n{}", log()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(this)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.path);
    }
}

/// `tierfs dev-s3` on a free port.
pub struct Endpoint {
    pub url: String,
    pub daemon: Daemon,
}

impl Endpoint {
    pub fn new(directory: &Path, environment: &dyn Fn(&mut Command)) -> Result<Self> {
        let mut command = command(TIERFS);
        environment(&mut command);
        let mut child = command
            .arg("dev-s3")
            .arg(directory)
            .args(["--listen", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(said("tierfs dev-s3"))?;
        let out = child.stdout.take().ok_or("no pipe from tierfs dev-s3")?;
        let daemon = Daemon { child };
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line).map_err(said("tierfs dev-s3"))?;
        let url = line.trim().strip_prefix("listening on ").ok_or("tierfs dev-s3 did not start")?;
        Ok(Self { url: url.to_owned(), daemon })
    }
}

/// The keys everybody uses.
pub fn credentials(command: &mut Command) {
    command.env("AWS_ACCESS_KEY_ID", "bench").env("AWS_SECRET_ACCESS_KEY", "bench-secret");
}

/// What tierfs is asked with: keys, and directories of its own below `config`.
pub fn environment(config: &Path, command: &mut Command) {
    credentials(command);
    command.env("TIERFS_CONFIG_DIR", config.join("etc")).env("TIERFS_STATE_DIR", config.join("var"));
}

/// rclone with `url` as its remote `bench:`, told by the environment; the flag says that there is no configuration file.
pub fn rclone(url: &str) -> Command {
    let mut command = command("rclone");
    command
        .args(["--config", ""])
        .env("RCLONE_CONFIG_BENCH_TYPE", "s3")
        .env("RCLONE_CONFIG_BENCH_PROVIDER", "Other")
        .env("RCLONE_CONFIG_BENCH_ACCESS_KEY_ID", "bench")
        .env("RCLONE_CONFIG_BENCH_SECRET_ACCESS_KEY", "bench-secret")
        .env("RCLONE_CONFIG_BENCH_ENDPOINT", url);
    command
}

/// Which rclone this is.
pub fn rclone_version() -> Result<String> {
    let version = run(command("rclone").arg("version"))
        .map_err(|error| format!("{error}\nrclone is missing: scripts/install-deps.sh bench installs it"))?;
    Ok(version.lines().next().unwrap_or("rclone").trim_start_matches("rclone ").to_owned())
}

/// Adds a pair of `share` and a prefix of the bucket `bench` at `url`.
pub fn add_pair(config: &Path, share: &Path, url: &str) -> Result<()> {
    add_pair_at(config, share, url, "tierfs", &[])
}

/// The same with the prefix that is wished, and more that `pair add` takes.
pub fn add_pair_at(config: &Path, share: &Path, url: &str, prefix: &str, more: &[&str]) -> Result<()> {
    let mut add = command(TIERFS);
    environment(config, &mut add);
    add.args(["pair", "add", "bench", "--local"]).arg(format!("here:{}", share.display()));
    add.args(["--remote", &format!("there:s3://bench/{prefix}"), "--endpoint", url]);
    run(add.args(more)).map(drop)
}
