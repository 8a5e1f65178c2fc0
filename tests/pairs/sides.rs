//! East and west: each a share on a filesystem of its own, a mount, a gateway, and the half of a pair. East is the master of names.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};
use tierfs::record::{PeerState, Record};

use crate::common::{LoopFs, can_mount};
use crate::link::{ADDRESSES, Link};
use crate::proxy::{self, GATEWAY, OTHER, Orders};
use crate::tools::*;

pub const NAMES: [&str; 2] = ["east", "west"];
const PAIR: &str = "gp";

pub struct Side {
    index: usize,
    share: PathBuf,
    // For its end; a mutex because threads share this.
    _fs: std::sync::Mutex<LoopFs>,
    dir: tempfile::TempDir,
    pub orders: Arc<Orders>,
    daemon: Option<i32>,
}

pub struct Sides {
    // Mounts go before the link.
    pub sides: [Side; 2],
    pub link: Link,
}

impl Sides {
    /// Mounted; `None` where that is not possible (which is said).
    pub fn new(kind: &str) -> Option<Self> {
        if !can_mount() {
            return None;
        }
        let link = Link::new();
        let sides = [0, 1].map(|index| Side::new(index, kind, &link));
        let mut both = Self { sides, link };
        for side in &mut both.sides {
            side.mount(&both.link);
        }
        Some(both)
    }

    /// Everything passes, at once.
    pub fn heal(&self) {
        self.link.set(true);
        for side in &self.sides {
            side.orders.delay.store(0, std::sync::atomic::Ordering::SeqCst);
            side.orders.stalled.store(false, std::sync::atomic::Ordering::SeqCst);
            side.orders.broken.store(false, std::sync::atomic::Ordering::SeqCst);
            side.orders.lose.store(0, std::sync::atomic::Ordering::SeqCst);
        }
    }

    /// Ends both daemons: who waits for them gets an error.
    pub fn kill(&self) {
        for daemon in self.sides.iter().filter_map(|side| side.daemon) {
            let _ = kill_process(Pid::from_raw(daemon).unwrap(), Signal::KILL);
        }
    }

    pub fn logs(&self) -> String {
        self.sides.iter().map(|side| format!("--- the log of {} ---\n{}", side.name(), side.log())).collect()
    }
}

impl Side {
    fn new(index: usize, kind: &str, link: &Link) -> Self {
        let fs = LoopFs::new(kind, if kind == "xfs" { 320 << 20 } else { 192 << 20 });
        let dir = tempfile::Builder::new().prefix("tierfs-pairs-").tempdir().unwrap();
        for path in [dir.path(), fs.scratch()] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::create_dir(fs.path().join("share")).unwrap();
        for place in ["mnt", "etc", "etc/pairs.d", "state"] {
            fs::create_dir(dir.path().join(place)).unwrap();
        }
        let share = fs.path().join("share");
        let side = Self { index, share, _fs: fs.into(), dir, orders: proxy::start(link, index), daemon: None };
        side.configure();
        side
    }

    fn configure(&self) {
        let (name, other) = (self.name(), NAMES[1 - self.index]);
        let secret = |path: &str, text: &str| {
            fs::write(self.scratch(path), text).unwrap();
            fs::set_permissions(self.scratch(path), fs::Permissions::from_mode(0o600)).unwrap();
        };
        let identity = |key: &str, more: &str| {
            format!("[[identity]]\naccess_key = \"{key}\"\nsecret_key = \"{key}secret\"\n{more}\n")
        };
        let peer = identity(other, &format!("role = \"peer\"\npair = \"{PAIR}\""));
        secret("etc/identities.toml", &[identity("root", "uid = 0\ngid = 0"), peer].concat());
        secret("etc/keys", &format!("[default]\naws_access_key_id = {name}\naws_secret_access_key = {name}secret\n"));
        let pair = format!(
            "local_cluster = \"{name}\"\nlocal_share = \"{}\"\nremote_cluster = \"{other}\"\nremote_share = \"s3://share\"\n\
             endpoints = [\"http://127.0.0.1:{OTHER}\"]\nremote_role = \"gpeer\"\nmeta_sync_role = \"{}\"\n\
             retention = \"0s\"\nchunk_size = \"64KiB\"\n",
            self.share().display(),
            ["master", "slave"][self.index],
        );
        fs::write(self.scratch(&format!("etc/pairs.d/{PAIR}.toml")), pair).unwrap();
    }

    pub fn name(&self) -> &'static str {
        NAMES[self.index]
    }

    pub fn share(&self) -> &Path {
        &self.share
    }

    fn scratch(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn mnt(&self, name: impl AsRef<Path>) -> PathBuf {
        self.scratch("mnt").join(name)
    }

    fn with_environment<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let (name, secret) = (self.name(), format!("{}secret", self.name()));
        command
            .current_dir("/")
            .env("TIERFS_CONFIG_DIR", self.scratch("etc"))
            .env("TIERFS_STATE_DIR", self.scratch("state"))
            .env("AWS_ACCESS_KEY_ID", name)
            .env("AWS_SECRET_ACCESS_KEY", secret)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("HOME", self.dir.path())
            .env_remove("AWS_CA_BUNDLE")
            .env_remove("AWS_PROFILE")
    }

    pub fn tierfs(&self, args: &[impl AsRef<std::ffi::OsStr>]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tierfs"));
        self.with_environment(command.args(args)).output().unwrap()
    }

    fn mount(&mut self, link: &Link) {
        let gateway = format!("gateway={}:{GATEWAY},bucket=share,save_names=off", ADDRESSES[self.index]);
        let mut command = link.command(self.index, env!("CARGO_BIN_EXE_tierfs"));
        command.args(["--json", "mount", "-o", &gateway]).args([self.share(), &self.scratch("mnt")]);
        let output = self.with_environment(&mut command).output().unwrap();
        assert!(output.status.success(), "mount {}: {}\n{}", self.name(), said(&output), self.log());
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        self.daemon = Some(told["pid"].as_i64().unwrap() as i32);
    }

    pub fn log(&self) -> String {
        let mut all = String::new();
        for entry in fs::read_dir(self.scratch("state/log")).into_iter().flatten().flatten() {
            all += &String::from_utf8_lossy(&fs::read(entry.path()).unwrap_or_default());
        }
        all
    }

    /// What the record says of who owns the file under this name.
    pub fn peer(&self, name: &str) -> Option<PeerState> {
        let stored = xattr(&self.share().join(name), "trusted.tierfs.record").ok()?;
        Record::decode(&stored).expect("a whole record").peer
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.scratch("mnt"), UnmountFlags::DETACH);
        if let Some(daemon) = self.daemon {
            see_off(daemon, Duration::ZERO);
        }
    }
}
