//! A share, an endpoint, a pair and a mount, for one test.
//!
//! Everything lives in the test's own mount namespace and temporary directories; [`Drop`] unmounts and ends the daemon by its
//! process id, also when the test panics, and then shows the daemon's log.

#![allow(unsafe_code, reason = "mmap has no safe wrapper")]

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rustix::fs::XattrFlags;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};
use tierfs::gateway::faults::{Effect, Faults, Rule};
use tierfs::gateway::{Credentials, Options, Requests, Server};
use tierfs::ports::Remote;
use tierfs::record::Record;
use tierfs::remote::{CredentialsFrom, RemoteConfig, S3Remote};
use tokio::runtime::Runtime;

use crate::common::{LoopFs, can_mount};

pub const CHUNK: usize = 64 << 10;
pub const NOBODY: u32 = 65_534;
/// Where a record is kept below the mount.
pub const RECORD: &str = "trusted.tierfs.record";
const ACCESS_KEY: &str = "test";
pub const SECRET_KEY: &str = "testsecret";
const BUCKET: &str = "cold";
/// How long anything that happens by itself may take.
pub const SOON: Duration = Duration::from_secs(15);

/// What a rig is to be like.
#[derive(Clone)]
pub struct Setup {
    pub kind: &'static str,
    /// Bytes of the lower filesystem.
    pub size: u64,
    /// Further arguments of mkfs.
    pub mkfs: &'static [&'static str],
    /// Of `tierfs pair add`.
    pub retention: &'static str,
    /// Further arguments of `tierfs mount`.
    pub mount: Vec<&'static str>,
    /// Whether the endpoint makes missing buckets.
    pub make_buckets: bool,
    /// Whether to mount at once.
    pub mounted: bool,
}

impl Default for Setup {
    fn default() -> Self {
        let mount = Vec::new();
        Self { kind: "ext4", size: 256 << 20, mkfs: &[], retention: "0s", mount, make_buckets: true, mounted: true }
    }
}

impl Setup {
    pub fn xfs() -> Self {
        Self { kind: "xfs", size: 320 << 20, ..Self::default() }
    }

    pub fn build(self) -> Option<Rig> {
        Rig::with(self)
    }
}

pub struct Rig {
    pub fs: LoopFs,
    dir: tempfile::TempDir,
    pub faults: Faults,
    runtime: Runtime,
    server: Option<Server>,
    addr: SocketAddr,
    make_buckets: bool,
    mount_args: Vec<&'static str>,
    /// The secret that children get.
    pub secret: &'static str,
    /// The daemon, while there is one.
    pub daemon: Option<i32>,
}

impl Rig {
    /// The usual one on ext4; `None` where mounting is not possible (which is said).
    pub fn new() -> Option<Self> {
        Setup::default().build()
    }

    fn with(setup: Setup) -> Option<Self> {
        if !can_mount() {
            return None;
        }
        assert!(Path::new("/dev/fuse").exists(), "this test needs /dev/fuse");
        let fs = LoopFs::with(setup.kind, setup.size, setup.mkfs, "");
        let dir = tempfile::Builder::new().prefix("tierfs-rig-").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(fs.scratch(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(fs.path().join("share")).unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let mut rig = Self {
            fs,
            dir,
            faults: Faults::default(),
            runtime,
            server: None,
            addr: "127.0.0.1:0".parse().unwrap(),
            make_buckets: setup.make_buckets,
            mount_args: setup.mount,
            secret: SECRET_KEY,
            daemon: None,
        };
        rig.start_server();
        let output = rig.tierfs(&rig.pair_args(setup.retention, setup.make_buckets));
        assert!(output.status.success(), "{}", said(&output));
        if setup.mounted {
            rig.mount();
        }
        Some(rig)
    }

    fn pair_args(&self, retention: &str, probe: bool) -> Vec<String> {
        let local = format!("east:{}", self.share().display());
        let mut args: Vec<String> =
            ["pair", "add", "cold", "--local", &local, "--remote", &format!("west:s3://{BUCKET}/pre"), "--endpoint"]
                .map(str::to_owned)
                .to_vec();
        args.extend([format!("http://{}", self.addr), "--chunk-size".into(), "64KiB".into()]);
        args.extend(["--retention".into(), retention.into()]);
        if !probe {
            args.push("--no-probe".into());
        }
        args
    }

    // Places.

    pub fn share(&self) -> PathBuf {
        self.fs.path().join("share")
    }

    pub fn mountpoint(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// `name` through the mount.
    pub fn mnt(&self, name: impl AsRef<Path>) -> PathBuf {
        self.mountpoint().join(name)
    }

    /// `name` below the mount.
    pub fn low(&self, name: impl AsRef<Path>) -> PathBuf {
        self.share().join(name)
    }

    /// A place outside of both.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    // The endpoint.

    pub fn start_server(&mut self) {
        let mut options = Options::new(self.addr);
        let (access_key, secret_key) = (ACCESS_KEY.to_owned(), SECRET_KEY.to_owned());
        options.credentials = Some(Credentials { access_key, secret_key });
        options.make_buckets = self.make_buckets;
        options.faults = self.faults.clone();
        let server = self.runtime.block_on(Server::start(&self.dir.path().join("objects"), options)).unwrap();
        self.addr = server.addr();
        self.server = Some(server);
    }

    pub fn stop_server(&mut self) {
        if let Some(server) = self.server.take() {
            self.runtime.block_on(server.shutdown());
        }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Takes an object out of the stopped endpoint's directory.
    pub fn remove_object(&self, key: &str) {
        let hash = blake3::hash(key.as_bytes()).to_hex()[..32].to_owned();
        let dir = self.scratch("objects").join(BUCKET).join("objects").join(&hash[..2]);
        let mut removed = 0;
        for entry in fs::read_dir(&dir).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&hash) {
                fs::remove_file(entry.path()).unwrap();
                removed += 1;
            }
        }
        assert!(removed > 0, "{key} is not in {}", dir.display());
    }

    pub fn requests(&self) -> Requests {
        self.server.as_ref().expect("the endpoint runs").requests()
    }

    /// How many objects or ranges were asked for so far.
    pub fn gets(&self) -> u64 {
        self.requests().method("GET")
    }

    pub fn fault(&self, effect: Effect, method: &str) -> tierfs::gateway::faults::RuleId {
        self.faults.add(Rule::new(effect).method(method))
    }

    /// Keys of all objects, without the pair's prefix, and without those of a probe that runs.
    pub fn objects(&self) -> BTreeSet<String> {
        let credentials = self.scratch("credentials");
        let text = format!("[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n");
        fs::write(&credentials, text).unwrap();
        let mut config = RemoteConfig::new("list".parse().unwrap(), BUCKET, format!("http://{}", self.addr));
        config.credentials = CredentialsFrom::File { path: credentials, profile: None };
        config.prefix = "pre".into();
        let mut keys = BTreeSet::new();
        self.runtime.block_on(async {
            let remote = S3Remote::connect(config).await.unwrap();
            let mut after = None;
            loop {
                let page = remote.list("", after.as_ref()).await.unwrap();
                let Some((last, _)) = page.last().cloned() else { return };
                let names = page.into_iter().map(|(key, _)| key.0.trim_start_matches("pre/").to_owned());
                keys.extend(names.filter(|key| !key.starts_with(".tierfs")));
                after = Some(last);
            }
        });
        keys
    }

    /// Waits until the endpoint holds exactly what the records of `names` (relative to the share) refer to.
    #[track_caller]
    pub fn settled(&self, names: &[&str]) {
        let mut wanted = BTreeSet::new();
        for object in names.iter().filter_map(|name| self.record(name)?.object) {
            let short = |key: &str| key.trim_start_matches("pre/").to_owned();
            wanted.insert(short(&object.key.0));
            if object.has_manifest() {
                wanted.insert(short(&object.manifest_key().0));
            }
        }
        let mut found = self.objects();
        let deadline = Instant::now() + SOON;
        while found != wanted && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
            found = self.objects();
        }
        assert_eq!(found, wanted, "objects at the endpoint (left) and those that records name (right)");
    }

    // The commands.

    pub fn command(&self, args: &[impl AsRef<std::ffi::OsStr>]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tierfs"));
        command
            .args(args)
            .current_dir("/")
            .env("TIERFS_CONFIG_DIR", self.scratch("etc"))
            .env("TIERFS_STATE_DIR", self.scratch("state"))
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", self.secret)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("HOME", self.dir.path())
            .env_remove("AWS_CA_BUNDLE")
            .env_remove("AWS_PROFILE");
        command
    }

    pub fn tierfs(&self, args: &[impl AsRef<std::ffi::OsStr>]) -> Output {
        self.command(args).output().unwrap()
    }

    /// A command on files of the mount, which must succeed entirely; what it printed.
    #[track_caller]
    pub fn on(&self, verbs: &[&str], names: &[&str]) -> String {
        let output = self.try_on(verbs, names);
        assert!(output.status.success(), "{verbs:?} {names:?}: {}", said(&output));
        said(&output)
    }

    pub fn try_on(&self, verbs: &[&str], names: &[&str]) -> Output {
        let mut args: Vec<std::ffi::OsString> = verbs.iter().map(|verb| (*verb).into()).collect();
        args.extend(names.iter().map(|name| self.mnt(name).into()));
        self.tierfs(&args)
    }

    #[track_caller]
    pub fn migrate(&self, name: &str) {
        self.on(&["migrate"], &[name]);
        assert_eq!(self.state(name), "stub", "{name} after migrate");
    }

    /// Mounts; panics where that fails.
    #[track_caller]
    pub fn mount(&mut self) {
        let output = self.try_mount(&[]);
        assert!(output.status.success(), "mount: {}", said(&output));
    }

    pub fn try_mount(&mut self, further: &[&str]) -> Output {
        let mut args: Vec<std::ffi::OsString> = vec!["--json".into(), "mount".into()];
        args.extend(self.mount_args.iter().chain(further).map(|arg| (*arg).into()));
        args.extend([self.share().into(), self.mountpoint().into()]);
        let output = self.tierfs(&args);
        if output.status.success() {
            let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            self.daemon = Some(told["pid"].as_i64().unwrap() as i32);
        }
        output
    }

    #[track_caller]
    pub fn umount(&mut self) {
        let output = self.tierfs(&["umount".as_ref(), self.mountpoint().as_os_str()]);
        assert!(output.status.success(), "umount: {}", said(&output));
        self.daemon = None;
    }

    /// Ends the daemon as a crash would, and takes its mount away.
    pub fn crash(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            let _ = kill_process(Pid::from_raw(daemon).unwrap(), Signal::KILL);
            wait_for("the daemon's end", || !alive(daemon));
        }
        let _ = rustix::mount::unmount(self.mountpoint(), UnmountFlags::DETACH);
    }

    /// Waits until the probe at the mount's start is over, so that it does not disturb counts.
    pub fn quiet(&self) {
        wait_for("the probe", || self.log().contains("the pair's endpoint answers"));
    }

    /// What the daemon has said.
    pub fn log(&self) -> String {
        let mut all = String::new();
        for entry in fs::read_dir(self.scratch("state/log")).into_iter().flatten().flatten() {
            all += &String::from_utf8_lossy(&fs::read(entry.path()).unwrap_or_default());
        }
        all
    }

    // Files.

    /// Writes `len` bytes of noise through the mount, dated a while ago; the content.
    #[track_caller]
    pub fn write(&self, name: &str, len: usize) -> Vec<u8> {
        let data = noise(name, len);
        fs::write(self.mnt(name), &data).unwrap();
        set_mtime(&self.mnt(name), 1_600_000_000, 123_456_789);
        data
    }

    #[track_caller]
    pub fn state(&self, name: &str) -> String {
        self.virtual_xattr(name, "state").unwrap()
    }

    pub fn virtual_xattr(&self, name: &str, attribute: &str) -> Result<String, i32> {
        let value = xattr(&self.mnt(name), &format!("user.tierfs.{attribute}"))?;
        Ok(String::from_utf8(value).unwrap())
    }

    /// The record stored below.
    pub fn record(&self, name: &str) -> Option<Record> {
        let stored = xattr(&self.low(name), RECORD).ok()?;
        Some(Record::decode(&stored).unwrap())
    }

    /// Bytes allocated below.
    pub fn allocated(&self, name: &str) -> u64 {
        fs::symlink_metadata(self.low(name)).unwrap().blocks() * 512
    }

    #[track_caller]
    pub fn same(&self, name: &str, content: &[u8]) {
        let found = fs::read(self.mnt(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_same(&found, content, name);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the daemon's log ---\n{}", self.log());
        }
        let _ = rustix::mount::unmount(self.mountpoint(), UnmountFlags::DETACH);
        if let Some(daemon) = self.daemon {
            let patience = Instant::now() + Duration::from_secs(2);
            while alive(daemon) && Instant::now() < patience {
                std::thread::sleep(Duration::from_millis(20));
            }
            if alive(daemon) {
                let _ = kill_process(Pid::from_raw(daemon).unwrap(), Signal::KILL);
                while alive(daemon) {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        }
        self.server.take();
    }
}

/// Whether a process runs; one that nobody has waited for yet does not.
pub fn alive(pid: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    !stat.rsplit(") ").next().unwrap_or_default().starts_with(['Z', 'X'])
}

#[track_caller]
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within {SOON:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs `command` and gives up after a time, killing it; `None` then.
pub fn within(limit: Duration, command: &mut Command) -> Option<Output> {
    let mut child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + limit;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() >= deadline {
            child.kill().unwrap();
            // Not waited for: it may hang in the kernel.
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Some(child.wait_with_output().unwrap())
}

/// `sh -c script` as nobody, in `dir`.
pub fn as_nobody(dir: &Path, script: &str) -> Output {
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir(dir).uid(NOBODY).gid(NOBODY);
    command.output().unwrap()
}

pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
pub fn code(output: &Output, want: i32) {
    assert_eq!(output.status.code(), Some(want), "{}", said(output));
}

/// Incompressible content that differs by name and place.
pub fn noise(name: &str, len: usize) -> Vec<u8> {
    let mut state = u64::from_le_bytes(blake3::hash(name.as_bytes()).as_bytes()[..8].try_into().unwrap()) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut data: Vec<u8> = std::iter::repeat_with(&mut next).take(len.div_ceil(8)).flatten().collect();
    data.truncate(len);
    data
}

#[track_caller]
pub fn assert_same(found: &[u8], wanted: &[u8], what: &str) {
    if found != wanted {
        let at = found.iter().zip(wanted).position(|(a, b)| a != b);
        let zeros = found.iter().filter(|byte| **byte == 0).count();
        let (len, want) = (found.len(), wanted.len());
        panic!("{what}: content differs from byte {at:?} on; {len} bytes, {zeros} of them zero; wanted {want} bytes");
    }
}

pub fn set_mtime(path: &Path, secs: i64, nanos: i64) {
    let time = rustix::fs::Timespec { tv_sec: secs, tv_nsec: nanos as _ };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

pub fn xattr(path: &Path, name: &str) -> Result<Vec<u8>, i32> {
    let mut buffer = vec![0u8; 65_536];
    let len = rustix::fs::lgetxattr(path, name, &mut buffer[..]).map_err(|errno| errno.raw_os_error())?;
    buffer.truncate(len);
    Ok(buffer)
}

pub fn set_xattr(path: &Path, name: &str, value: &[u8]) -> Result<(), i32> {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).map_err(|errno| errno.raw_os_error())
}

/// truncate(2), by path.
pub fn truncate(path: &Path, len: u64) -> std::io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: `path` ends with a NUL and lives through the call.
    match unsafe { libc::truncate(path.as_ptr(), len as i64) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

pub fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// A mapping of a whole file.
pub struct Mapping {
    at: *mut libc::c_void,
    len: usize,
}

impl Mapping {
    /// Maps `len` bytes, shared; `write`: for writing too.
    pub fn of(file: &fs::File, len: usize, write: bool) -> Self {
        use std::os::fd::AsRawFd;
        let protection = libc::PROT_READ | if write { libc::PROT_WRITE } else { 0 };
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert_ne!(at, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        Self { at, len }
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped for as long as `self`; nobody writes to it while the slice lives.
        unsafe { std::slice::from_raw_parts(self.at.cast(), self.len) }
    }

    pub fn set(&mut self, offset: usize, data: &[u8]) {
        assert!(offset + data.len() <= self.len);
        // SAFETY: within the mapping, which is writable where this is called.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.at.cast::<u8>().add(offset), data.len()) }
    }

    /// msync(2).
    pub fn sync(&self) {
        // SAFETY: the mapping's own bounds.
        assert_eq!(unsafe { libc::msync(self.at, self.len, libc::MS_SYNC) }, 0);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping's own bounds; no slice of it is left.
        unsafe { libc::munmap(self.at, self.len) };
    }
}
