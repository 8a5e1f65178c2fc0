//! Two sides, each a share with a mount and a gateway, whose pairs have each other.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use rustix::mount::UnmountFlags;
use tierfs::engine::{Engine, Limits, PeerFacts, Target};
use tierfs::journal::SqliteJournal;
use tierfs::lower::Share;
use tierfs::ports::{Lower, SystemClock};
use tierfs::record::{PairRef, PeerState, Phase, Record};
use tierfs::remote::{CredentialsFrom, RemoteConfig, S3Remote};

use crate::common::port::Port;
use crate::common::{LoopFs, can_mount};
use crate::proxy::Proxy;
use crate::tools::*;

pub const CHUNK: usize = 64 << 10;
const RECORD: &str = "trusted.tierfs.record";

pub struct Side {
    pub name: &'static str,
    fs: LoopFs,
    dir: tempfile::TempDir,
    /// Where its gateway is.
    pub addr: SocketAddr,
    _port: Port,
    /// What the other side comes by.
    pub proxy: Proxy,
    /// The point at which the next daemon ends itself.
    pub kill_at: Option<String>,
    daemon: Option<i32>,
}

pub struct Sides {
    pub east: Side,
    pub west: Side,
}

/// A PUT to a side's gateway, by root; the error is S3's code.
pub fn put((bucket, addr): (&str, SocketAddr), key: &str, body: Vec<u8>, if_match: Option<&str>) -> Result<(), String> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = crate::s3::client(&format!("http://{addr}"), "root", "rootsecret");
    let body = aws_sdk_s3::primitives::ByteStream::from(body);
    let put = client.put_object().bucket(bucket).key(key).body(body).set_if_match(if_match.map(str::to_owned));
    runtime.block_on(put.send()).map(drop).map_err(crate::s3::code)
}

impl Side {
    fn new(name: &'static str, kind: &str) -> Self {
        let fs = LoopFs::new(kind, if kind == "xfs" { 320 << 20 } else { 128 << 20 });
        let dir = tempfile::Builder::new().prefix("tierfs-peers-").tempdir().unwrap();
        for path in [dir.path(), fs.scratch()] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::create_dir(fs.path().join(name)).unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        let port = Port::held();
        let addr = port.addr;
        Self { name, fs, dir, addr, _port: port, proxy: Proxy::to(addr), kill_at: None, daemon: None }
    }

    pub fn share(&self) -> PathBuf {
        self.fs.path().join(self.name)
    }

    pub fn mountpoint(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    pub fn mnt(&self, name: impl AsRef<Path>) -> PathBuf {
        self.mountpoint().join(name)
    }

    pub fn low(&self, name: impl AsRef<Path>) -> PathBuf {
        self.share().join(name)
    }

    fn command(&self, args: &[impl AsRef<std::ffi::OsStr>]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tierfs"));
        command
            .args(args)
            .current_dir("/")
            .env("TIERFS_CONFIG_DIR", self.dir.path().join("etc"))
            .env("TIERFS_STATE_DIR", self.dir.path().join("state"))
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("HOME", self.dir.path())
            .env_remove("AWS_CA_BUNDLE")
            .env_remove("AWS_PROFILE");
        command
    }

    pub fn tierfs(&self, args: &[impl AsRef<std::ffi::OsStr>]) -> Output {
        self.command(args).output().unwrap()
    }

    /// A command on files of the mount.
    pub fn on(&self, verb: &str, names: &[&str]) -> Output {
        let mut args: Vec<std::ffi::OsString> = vec![verb.into()];
        args.extend(names.iter().map(|name| self.mnt(name).into()));
        self.tierfs(&args)
    }

    #[track_caller]
    pub fn done(&self, verb: &str, name: &str) {
        let output = self.on(verb, &[name]);
        assert!(output.status.success(), "{} {verb} {name}: {}\n{}", self.name, said(&output), self.log());
    }

    /// Writes the identities of this side's gateway, and its half of the pair.
    fn configure(&self, other: &Side, sync: Option<&str>) {
        let entry = |key: &str, more: &str| {
            format!("[[identity]]\naccess_key = \"{key}\"\nsecret_key = \"{key}secret\"\n{more}\n")
        };
        let text = [
            entry("root", "uid = 0\ngid = 0"),
            entry("alice", "uid = 21001\ngid = 21001"),
            entry(other.name, "role = \"peer\"\npair = \"gp\""),
            entry("elsewhere", "role = \"peer\"\npair = \"another\""),
        ];
        let identities = self.dir.path().join("etc/identities.toml");
        fs::write(&identities, text.concat()).unwrap();
        fs::set_permissions(&identities, fs::Permissions::from_mode(0o600)).unwrap();
        let credentials = self.dir.path().join("etc/credentials");
        let text = format!("[default]\naws_access_key_id = {0}\naws_secret_access_key = {0}secret\n", self.name);
        fs::write(&credentials, text).unwrap();
        fs::set_permissions(&credentials, fs::Permissions::from_mode(0o600)).unwrap();
        let local = format!("{}:{}", self.name, self.share().display());
        let remote = format!("{}:s3://{}", other.name, other.name);
        let endpoint = format!("http://{}", other.proxy.addr);
        let mut args = vec![
            "pair",
            "add",
            "gp",
            "--local",
            &local,
            "--remote",
            &remote,
            "--endpoint",
            &endpoint,
            "--role",
            "gpeer",
            "--chunk-size",
            "64KiB",
            "--credentials-file",
            credentials.to_str().unwrap(),
            "--no-probe",
        ];
        args.extend(sync.iter().flat_map(|role| ["--meta-sync", role]));
        let output = self.tierfs(&args);
        assert!(output.status.success(), "{}", said(&output));
    }

    #[track_caller]
    pub fn mount(&mut self) {
        let gateway = format!("gateway={}", self.addr);
        let mut args: Vec<std::ffi::OsString> = ["--json", "mount", "-o", &gateway].map(Into::into).to_vec();
        args.extend([self.share().into(), self.mountpoint().into()]);
        let mut command = self.command(&args);
        if let Some(point) = &self.kill_at {
            command.env("TIERFS_KILL_AT", point);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "mount {}: {}", self.name, said(&output));
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        self.daemon = Some(told["pid"].as_i64().unwrap() as i32);
    }

    #[track_caller]
    pub fn umount(&mut self) {
        let output = self.tierfs(&["umount".as_ref(), self.mountpoint().as_os_str()]);
        assert!(output.status.success(), "umount {}: {}", self.name, said(&output));
        self.daemon = None;
    }

    /// As a start of the machine: the kernel knows of no file how it is called.
    #[track_caller]
    pub fn restart_cold(&mut self) {
        self.umount();
        wait_for("the filesystem's end", || self.fs.try_unmount());
        self.fs.mount();
        self.mount();
    }

    /// Ends the daemon as a crash would, and takes its mount away.
    pub fn crash(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            kill(daemon);
        }
        let _ = rustix::mount::unmount(self.mountpoint(), UnmountFlags::DETACH);
    }

    /// Whether the daemon has ended itself.
    pub fn is_dead(&self) -> bool {
        self.daemon.is_none_or(|daemon| !alive(daemon))
    }

    pub fn log(&self) -> String {
        let mut all = String::new();
        for entry in fs::read_dir(self.dir.path().join("state/log")).into_iter().flatten().flatten() {
            all += &String::from_utf8_lossy(&fs::read(entry.path()).unwrap_or_default());
        }
        all
    }

    /// What is noted in the journal and not done yet.
    #[track_caller]
    pub fn noted(&self) -> u64 {
        let output = self.tierfs(&["--json".as_ref(), "info".as_ref(), self.mountpoint().as_os_str()]);
        let told: serde_json::Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
        told["intents"].as_array().expect("notes are counted").iter().filter_map(serde_json::Value::as_u64).sum()
    }

    /// Waits until no change of owner, no transfer and no deletion is noted.
    #[track_caller]
    pub fn nothing_stays_noted(&self) {
        let say = || {
            format!(
                "{}\n{}",
                said(&self.tierfs(&["--json".as_ref(), "info".as_ref(), self.mountpoint().as_os_str()])),
                self.log()
            )
        };
        wait_for_said(&format!("no question to be open on {}", self.name), || self.noted() == 0, say);
    }

    pub fn record(&self, name: &str) -> Option<Record> {
        let stored = xattr(&self.low(name), RECORD).ok()?;
        Some(Record::decode(&stored).unwrap())
    }

    #[track_caller]
    pub fn peer(&self, name: &str) -> PeerState {
        self.record(name).and_then(|record| record.peer).expect("both sides have it")
    }

    pub fn owns(&self, name: &str) -> bool {
        matches!(self.peer(name).phase, Phase::Owner { .. })
    }

    /// Whether this side owns it; else it is read, which asks for it once more.
    pub fn owns_or_reads(&self, name: &str) -> bool {
        self.owns(name) || {
            let _ = fs::read(self.mnt(name));
            false
        }
    }

    pub fn state(&self, name: &str) -> String {
        String::from_utf8(xattr(&self.mnt(name), "user.tierfs.state").unwrap()).unwrap()
    }

    /// The pair that holds the content, as users see it.
    pub fn pair_of(&self, name: &str) -> Option<String> {
        xattr(&self.mnt(name), "user.tierfs.pair").ok().map(|pair| String::from_utf8(pair).unwrap())
    }

    pub fn allocated(&self, name: &str) -> u64 {
        fs::metadata(self.low(name)).unwrap().blocks() * 512
    }

    /// What `stat` shows that must be equal on both sides.
    #[track_caller]
    pub fn shown(&self, name: &str) -> (u64, i64, i64) {
        let meta = fs::metadata(self.mnt(name)).unwrap();
        (meta.len(), meta.mtime(), meta.mtime_nsec())
    }

    /// An engine over this side's share while nobody serves it, for what the metadata sync will do.
    fn offline<T>(&self, other: &Side, work: impl FnOnce(&Arc<Engine>, &Arc<Share>) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let share = Arc::new(Share::open(&self.share()).unwrap());
        let journal = Arc::new(SqliteJournal::open(self.dir.path().join("offline.sqlite")).unwrap());
        let mut config = RemoteConfig::new("gp".parse().unwrap(), other.name, format!("http://{}", other.proxy.addr));
        let path = self.dir.path().join("etc/credentials");
        config.credentials = CredentialsFrom::File { path, profile: None };
        let remote = runtime.block_on(S3Remote::connect(config)).unwrap();
        let target = Target {
            pair: PairRef {
                name: "gp".parse().unwrap(),
                local_cluster: self.name.parse().unwrap(),
                local_share: self.share().display().to_string(),
                remote_cluster: other.name.parse().unwrap(),
                remote_share: other.name.into(),
            },
            prefix: String::new(),
            remote: Arc::new(remote),
            chunk_size: Some(CHUNK as u32),
            retention_s: 0,
            recalled_for_s: None,
            peer: true,
            recall: Default::default(),
            restore: Default::default(),
            pack: None,
        };
        let lower: Arc<dyn Lower> = share.clone();
        let (handle, limits) = (runtime.handle().clone(), Limits::default());
        let engine = Engine::new(lower, journal, Arc::new(SystemClock), Some(target), handle, limits);
        work(&engine, &share)
    }

    /// As [`Side::offline`] gives a file of this share an id, and this side its content.
    fn owned(&self, other: &Side, name: &str) -> PeerFacts {
        self.offline(other, |engine, share| {
            let (node, _) = share.lookup(&share.root(), name.as_ref()).unwrap();
            let facts = engine.own_for_peer(&node).unwrap();
            share.sync_all().unwrap();
            facts
        })
    }

    fn stub(&self, other: &Side, name: &str, facts: &PeerFacts) {
        fs::write(self.low(name), "").unwrap();
        self.offline(other, |engine, share| {
            let (node, _) = share.lookup(&share.root(), name.as_ref()).unwrap();
            engine.make_peer_stub(&node, facts).unwrap();
            share.sync_all().unwrap();
        });
    }
}

impl Sides {
    /// Two sides over filesystems of this kind, not mounted; `None` where mounting is not possible (which is said).
    pub fn new(kind: &str) -> Option<Self> {
        Self::of(kind, [None, None])
    }

    /// The same, mounted, with a metadata sync whose master east is.
    pub fn synced(kind: &str) -> Option<Self> {
        let mut sides = Self::of(kind, [Some("master"), Some("slave")])?;
        sides.mount();
        Some(sides)
    }

    fn of(kind: &str, sync: [Option<&str>; 2]) -> Option<Self> {
        if !can_mount() {
            return None;
        }
        let sides = Self { east: Side::new("east", kind), west: Side::new("west", kind) };
        sides.east.configure(&sides.west, sync[0]);
        sides.west.configure(&sides.east, sync[1]);
        Some(sides)
    }

    /// Files of so many bytes, on east, with stubs on west; their content.
    pub fn with_files(kind: &str, files: &[(&str, usize)]) -> Option<(Self, Vec<Vec<u8>>)> {
        let mut sides = Self::new(kind)?;
        let mut contents = Vec::new();
        for (name, len) in files {
            let content = noise(name, *len);
            fs::write(sides.east.low(name), &content).unwrap();
            set_mtime(&sides.east.low(name), 1_600_000_000, 123_456_789);
            contents.push(content);
            sides.pair_up(name);
        }
        sides.mount();
        Some((sides, contents))
    }

    /// What the metadata sync does of a new file: east, the master, gives it an id, west gets a stub.
    pub fn pair_up(&self, name: &str) {
        let facts = self.east.owned(&self.west, name);
        self.west.stub(&self.east, name, &facts);
    }

    #[track_caller]
    pub fn mount(&mut self) {
        self.east.mount();
        self.west.mount();
    }

    /// Waits until it is decided who owns a file, and one side does; whether that is west.
    #[track_caller]
    pub fn decided(&self, name: &str) -> bool {
        let last = std::cell::RefCell::new(None);
        wait_for_said(
            &format!("an owner of {name}"),
            || {
                let phases = (self.east.peer(name).phase, self.west.peer(name).phase);
                last.replace(Some(phases));
                matches!(phases, (Phase::Owner { .. }, Phase::Stub) | (Phase::Stub, Phase::Owner { .. }))
            },
            || format!("{last:?}\n--- east\n{}\n--- west\n{}", self.east.log(), self.west.log()),
        );
        self.west.owns(name)
    }

    /// Both sides show the same file with this content; whoever reads takes nothing if `west` reads where west owns.
    #[track_caller]
    pub fn same(&self, name: &str, content: &[u8]) {
        // The metadata sync would tell the stub's side of a change; here a read does.
        let stub = if self.decided(name) { &self.east } else { &self.west };
        let looks = || fs::read(stub.mnt(name)).is_ok_and(|found| found == content);
        wait_for_said(&format!("the content of {name}"), looks, || stub.log());
        // Who had it open there a moment ago may have kept it there: the next read asks again.
        let settled = || content.is_empty() || stub.owns_or_reads(name);
        let logs = || format!("--- east\n{}\n--- west\n{}", self.east.log(), self.west.log());
        wait_for_said(&format!("who read {name} to own it"), settled, logs);
        self.decided(name);
        assert_eq!(self.east.shown(name), self.west.shown(name), "{name}: what stat shows");
        assert_eq!(self.east.shown(name).0, content.len() as u64);
        for side in [&self.east, &self.west] {
            let found =
                fs::read(side.mnt(name)).unwrap_or_else(|error| panic!("{}: {error}\n{}", side.name, side.log()));
            assert_same(&found, content, &format!("{name} on {}", side.name));
            if content.is_empty() {
                continue;
            }
            wait_for_said(&format!("who read {name} to own it"), || side.owns_or_reads(name), || side.log());
            self.decided(name);
        }
    }
}

#[track_caller]
fn wait_for_said(what: &str, mut done: impl FnMut() -> bool, say: impl FnOnce() -> String) {
    let deadline = std::time::Instant::now() + SOON;
    while !done() {
        if std::time::Instant::now() >= deadline {
            panic!("{what}: not within {SOON:?}: {}", say());
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.crash();
    }
}
