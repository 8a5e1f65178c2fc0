//! A share, an endpoint, a pair and a mount, for one test.
//!
//! Everything lives in the test's own mount namespace and temporary directories; [`Drop`] unmounts and ends the daemon by its
//! process id, also when the test panics, and then shows the daemon's log.

use std::collections::BTreeSet;
use std::fs;
use std::future::Future;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use tierfs::gateway::faults::{Effect, Faults, Rule};
use tierfs::gateway::{Credentials, Options, Requests, Server};
use tierfs::ports::Remote;
use tierfs::record::{Record, is_member, manifest_key};
use tierfs::remote::{CredentialsFrom, RemoteConfig, S3Remote};
use tierfs::types::ObjectKey;
use tokio::runtime::Runtime;

use crate::common::port::Port;
use crate::common::{LoopFs, can_mount};
pub use crate::tools::*;

pub const CHUNK: usize = 64 << 10;
/// Where a record is kept below the mount.
pub const RECORD: &str = "trusted.tierfs.record";
const ACCESS_KEY: &str = "test";
pub const SECRET_KEY: &str = "testsecret";
const BUCKET: &str = "cold";

/// What a rig is to be like.
#[derive(Clone)]
pub struct Setup {
    pub kind: &'static str,
    /// Bytes of the lower filesystem.
    pub size: u64,
    /// Of `tierfs pair add`.
    pub retention: &'static str,
    /// How long objects of recalled files are kept; a day, so that files are dual after a recall.
    pub recall_retention: &'static str,
    /// Further arguments of it.
    pub pair: Vec<&'static str>,
    /// Further arguments of `tierfs mount`.
    pub mount: Vec<&'static str>,
    /// Options of the mount below, each with a comma before it.
    pub below: &'static str,
    /// Whether the daemon's state is kept on the filesystem of the share.
    pub state_below: bool,
    /// Whether the endpoint makes missing buckets.
    pub make_buckets: bool,
    /// Whether to mount at once.
    pub mounted: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            kind: "ext4",
            size: 256 << 20,
            retention: "0s",
            recall_retention: "24h",
            pair: Vec::new(),
            mount: Vec::new(),
            below: "",
            state_below: false,
            make_buckets: true,
            mounted: true,
        }
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
    /// Of the filesystem below.
    pub kind: &'static str,
    dir: tempfile::TempDir,
    pub faults: Faults,
    runtime: Runtime,
    server: Option<Server>,
    port: Port,
    make_buckets: bool,
    pair_more: Vec<&'static str>,
    mount_args: Vec<&'static str>,
    state_below: bool,
    /// How long a restore takes at the endpoint that is started next.
    pub restore_after: Duration,
    /// The point at which the next daemon ends itself (`tierfs::kill`).
    pub kill_at: Option<String>,
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
        let fs = LoopFs::with_options(setup.kind, setup.size, setup.below);
        let dir = tempfile::Builder::new().prefix("tierfs-rig-").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(fs.scratch(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(fs.path().join("share")).unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let mut rig = Self {
            fs,
            kind: setup.kind,
            dir,
            faults: Faults::default(),
            runtime,
            server: None,
            port: Port::held(),
            make_buckets: setup.make_buckets,
            pair_more: setup.pair,
            mount_args: setup.mount,
            state_below: setup.state_below,
            restore_after: Duration::ZERO,
            kill_at: None,
            secret: SECRET_KEY,
            daemon: None,
        };
        rig.start_server();
        let mut args = rig.pair_args(setup.retention, setup.make_buckets);
        args.extend(["--recall-retention", setup.recall_retention].map(Into::into));
        let output = rig.tierfs(&args);
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
        args.extend([self.endpoint(), "--chunk-size".into(), "64KiB".into()]);
        args.extend(["--retention".into(), retention.into()]);
        args.extend(self.pair_more.iter().map(|arg| (*arg).to_owned()));
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

    /// Where the daemon keeps its state.
    pub fn state_dir(&self) -> PathBuf {
        if self.state_below { self.fs.path().join("state") } else { self.scratch("state") }
    }

    // The endpoint.

    pub fn start_server(&mut self) {
        let mut options = Options::new(self.port.addr);
        let (access_key, secret_key) = (ACCESS_KEY.to_owned(), SECRET_KEY.to_owned());
        options.credentials = Some(Credentials { access_key, secret_key });
        options.make_buckets = self.make_buckets;
        options.restore_after = self.restore_after;
        options.faults = self.faults.clone();
        let server = self.runtime.block_on(Server::start(&self.dir.path().join("objects"), options)).unwrap();
        self.server = Some(server);
    }

    pub fn stop_server(&mut self) {
        if let Some(server) = self.server.take() {
            self.runtime.block_on(server.shutdown());
        }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.port.addr)
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

    /// Moves all objects of files to an archive class, as a rule of the bucket would.
    pub fn archive_all(&self, class: &str) {
        let keys = aws_credential_types::Credentials::new(ACCESS_KEY, SECRET_KEY, None, None, "test");
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(aws_sdk_s3::config::BehaviorVersion::latest())
            .endpoint_url(self.endpoint())
            .region(aws_sdk_s3::config::Region::new("us-east-1"))
            .force_path_style(true)
            .credentials_provider(keys)
            .http_client(aws_smithy_http_client::Builder::new().build_http());
        let client = aws_sdk_s3::Client::from_conf(config.build());
        for key in self.objects().iter().map(|key| format!("pre/{key}")) {
            let copy = client.copy_object().bucket(BUCKET).key(&key).copy_source(format!("{BUCKET}/{key}"));
            self.block_on(copy.storage_class(class.into()).send()).unwrap();
        }
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

    /// The pair's bucket, for tests that look or reach into it.
    pub fn remote(&self) -> S3Remote {
        self.remote_at(BUCKET, "pre")
    }

    /// Any bucket of the endpoint, below any prefix.
    pub fn remote_at(&self, bucket: &str, prefix: &str) -> S3Remote {
        let credentials = self.scratch("credentials");
        let text = format!("[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n");
        fs::write(&credentials, text).unwrap();
        let mut config = RemoteConfig::new("list".parse().unwrap(), bucket, format!("http://{}", self.port.addr));
        config.credentials = CredentialsFrom::File { path: credentials, profile: None };
        config.prefix = prefix.into();
        self.runtime.block_on(S3Remote::connect(config)).unwrap()
    }

    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Keys of all objects, without the pair's prefix, and without those of a probe that runs, and of names.
    pub fn objects(&self) -> BTreeSet<String> {
        self.all_objects().into_iter().filter(|key| !key.starts_with(".tierfs")).collect()
    }

    /// As [`Rig::objects`], with all of tierfs' own.
    pub fn all_objects(&self) -> BTreeSet<String> {
        let remote = self.remote();
        let mut keys = BTreeSet::new();
        self.runtime.block_on(async {
            let mut after = None;
            loop {
                let page = remote.list("", after.as_ref()).await.unwrap();
                let Some((last, _)) = page.last().cloned() else { return };
                let names = page.into_iter().map(|(key, _)| key.0.trim_start_matches("pre/").to_owned());
                keys.extend(names);
                after = Some(last);
            }
        });
        keys
    }

    /// Waits until the endpoint holds exactly what the records of `names` (relative to the share) claim.
    #[track_caller]
    pub fn settled(&self, names: &[&str]) {
        self.settles(names, false);
    }

    /// As [`Rig::settled`], after a crash: an object that was superseded then may stay as long as its file's record names it.
    #[track_caller]
    pub fn settled_after_crash(&self, names: &[&str]) {
        self.settles(names, true);
    }

    #[track_caller]
    fn settles(&self, names: &[&str], superseded_may_stay: bool) {
        let add = |set: &mut BTreeSet<String>, key: &ObjectKey, manifest: bool| {
            if is_member(key) {
                // Its pack is none of what is compared.
                return;
            }
            let short = |key: &ObjectKey| key.0.trim_start_matches("pre/").to_owned();
            set.insert(short(key));
            if manifest {
                set.insert(short(&manifest_key(key)));
            }
        };
        let named = || {
            let (mut wanted, mut allowed) = (BTreeSet::new(), BTreeSet::new());
            for record in names.iter().filter_map(|name| self.record(name)) {
                if let Some(object) = record.object {
                    add(&mut wanted, &object.key, object.has_manifest());
                }
                if let Some(old) = record.superseded.filter(|_| superseded_may_stay) {
                    add(&mut allowed, &old.key, old.manifest);
                }
            }
            (wanted, allowed)
        };
        let mut strays: Vec<String> = Vec::new();
        let deadline = Instant::now() + SOON;
        while Instant::now() < deadline {
            // A file may become resident just now.
            let (before, _) = named();
            let found = self.objects();
            let (wanted, allowed) = named();
            strays = found.iter().filter(|key| !wanted.contains(*key) && !allowed.contains(*key)).cloned().collect();
            let missing: Vec<_> = wanted.difference(&found).filter(|key| before.contains(*key)).cloned().collect();
            assert!(missing.is_empty(), "objects that records name are gone: {missing:?}");
            if strays.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("objects that nobody names stay: {strays:?}");
    }

    /// The share, its filesystem and all state are lost; an empty one of another kind takes its place. The bucket stays.
    pub fn lose_share(&mut self, kind: &'static str, size: u64, retention: &str) {
        assert!(self.daemon.is_none(), "unmount first");
        self.fs = LoopFs::new(kind, size);
        self.kind = kind;
        fs::set_permissions(self.fs.scratch(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(self.share()).unwrap();
        for lost in ["state", "etc"] {
            fs::remove_dir_all(self.scratch(lost)).unwrap();
        }
        let output = self.tierfs(&self.pair_args(retention, true));
        assert!(output.status.success(), "{}", said(&output));
    }

    /// Has every deletion that is noted become due, and every needless pack have been so for long, by a clock that the daemon cannot tell from a long wait.
    pub fn expire(&mut self) {
        self.umount();
        for entry in fs::read_dir(self.scratch("state/shares")).unwrap().flatten() {
            let journal = rusqlite::Connection::open(entry.path().join("journal.sqlite")).unwrap();
            journal.execute("UPDATE intent SET at_secs = 1 WHERE kind = 1", []).unwrap();
            let needless = "SELECT value FROM value WHERE name = 'packs.needless'";
            let Ok(needless) = journal.query_row(needless, [], |row| row.get::<_, String>(0)) else { continue };
            let mut since: std::collections::BTreeMap<String, i64> = serde_json::from_str(&needless).unwrap();
            since.values_mut().for_each(|at| *at = 1);
            let text = serde_json::to_string(&since).unwrap();
            journal.execute("UPDATE value SET value = ?1 WHERE name = 'packs.needless'", [text]).unwrap();
        }
        self.mount();
    }

    // The commands.

    pub fn command(&self, args: &[impl AsRef<std::ffi::OsStr>]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tierfs"));
        command.args(args);
        self.dress(&mut command);
        command
    }

    /// Gives a command what tierfs needs of the environment.
    pub fn dress(&self, command: &mut Command) {
        command
            .current_dir("/")
            .env("TIERFS_CONFIG_DIR", self.scratch("etc"))
            .env("TIERFS_STATE_DIR", self.state_dir())
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", self.secret)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("HOME", self.dir.path())
            .env_remove("AWS_CA_BUNDLE")
            .env_remove("AWS_PROFILE");
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
        if !self.mount_args.iter().any(|arg| arg.contains("save_names")) {
            // Requests that a test does not ask for would meet its faults.
            args.extend(["-o", "save_names=off"].map(Into::into));
        }
        args.extend([self.share().into(), self.mountpoint().into()]);
        let mut command = self.command(&args);
        if let Some(point) = &self.kill_at {
            command.env("TIERFS_KILL_AT", point);
        }
        let output = command.output().unwrap();
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

    /// Ends the daemon as a crash would; its mount stays, dead.
    pub fn kill(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            kill(daemon);
        }
    }

    /// Ends the daemon as a crash would, and takes its mount away.
    pub fn crash(&mut self) {
        self.kill();
        let _ = rustix::mount::unmount(self.mountpoint(), UnmountFlags::DETACH);
    }

    /// What a command prints as JSON, line by line; it must end with `code`.
    #[track_caller]
    pub fn json(&self, args: &[&str], want: i32) -> Vec<serde_json::Value> {
        let output = self.tierfs(&[&["--json"], args].concat());
        code(&output, want);
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// What `tierfs info` says.
    #[track_caller]
    pub fn info(&self) -> serde_json::Value {
        self.json(&["info", self.mountpoint().to_str().unwrap()], 0).remove(0)
    }

    /// Waits until the probe at the mount's start is over, so that it does not disturb counts.
    pub fn quiet(&self) {
        wait_for("the probe", || self.log().contains("the pair's endpoint answers"));
    }

    /// What the daemon has said.
    pub fn log(&self) -> String {
        let mut all = String::new();
        for entry in fs::read_dir(self.state_dir().join("log")).into_iter().flatten().flatten() {
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
            see_off(daemon, Duration::from_secs(2));
        }
        self.server.take();
    }
}
