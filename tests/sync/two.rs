//! East and west: two shares, two pairs that are each other's half, two mounts that are gateways.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;

use crate::common::port::Port;
use crate::common::{LoopFs, can_mount};
use crate::tools::*;

pub const PAIR: &str = "mirror";
pub const BUCKET: &str = "share";

/// One side.
pub struct Side {
    pub name: &'static str,
    other: &'static str,
    pub fs: LoopFs,
    dir: tempfile::TempDir,
    port: Port,
    /// Where the other side is.
    other_addr: SocketAddr,
    role: &'static str,
    pub daemon: Option<i32>,
    pub kill_at: Option<String>,
}

/// Both; east is the master.
pub struct Two {
    pub east: Side,
    pub west: Side,
}

/// What there is under one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub kind: &'static str,
    pub mode: u32,
    pub owner: (u32, u32),
    pub links: u64,
    pub size: u64,
    pub mtime: (i64, i64),
    pub target: Option<PathBuf>,
    pub device: u64,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// The first path of the same inode.
    pub same_as: PathBuf,
}

pub type Tree = BTreeMap<PathBuf, Seen>;

impl Two {
    /// Mounted; `None` where that is not possible (which is said).
    pub fn new() -> Option<Self> {
        Self::of("ext4", "slave")
    }

    pub fn of(kind: &'static str, west_role: &'static str) -> Option<Self> {
        let two = Self::unmounted(kind, west_role)?;
        Some(two.mounted())
    }

    pub fn unmounted(kind: &'static str, west_role: &'static str) -> Option<Self> {
        if !can_mount() {
            return None;
        }
        let (east, west) = (Port::held(), Port::held());
        let east = Side::new("east", "west", kind, (east, west.addr), "master");
        let west = Side::new("west", "east", kind, (west, east.port.addr), west_role);
        Some(Self { east, west })
    }

    pub fn mounted(mut self) -> Self {
        self.west.mount();
        self.east.mount();
        self
    }

    /// Waits until both shares have the same names, attributes and links.
    #[track_caller]
    pub fn equal(&self) {
        let deadline = Instant::now() + SOON;
        loop {
            let (east, west) = (self.east.tree(), self.west.tree());
            if east == west {
                return;
            }
            if Instant::now() > deadline {
                let mut why = String::new();
                for path in east.keys().chain(west.keys().filter(|path| !east.contains_key(*path))) {
                    if east.get(path) != west.get(path) {
                        why +=
                            &format!("{}:\n  east {:?}\n  west {:?}\n", path.display(), east.get(path), west.get(path));
                    }
                    if why.len() > 4_000 {
                        break;
                    }
                }
                panic!("not equal within {SOON:?}:\n{why}\n{}", self.east.said(&["sync", "status"]));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the master has nothing to tell.
    #[track_caller]
    pub fn told(&self) {
        wait_for("all told", || {
            let status = self.east.status();
            status["waiting"] == 0 && status["problem"].is_null() && status["comparing"].is_null()
        });
    }
}

impl Side {
    fn new(
        name: &'static str,
        other: &'static str,
        kind: &'static str,
        (port, other_addr): (Port, SocketAddr),
        role: &'static str,
    ) -> Self {
        let size = if kind == "xfs" { 320 << 20 } else { 128 << 20 };
        // Nothing is on stable storage by itself soon: a loss of power loses it.
        let fs = LoopFs::with_options(kind, size, if kind == "ext4" { ",commit=300" } else { "" });
        let dir = tempfile::Builder::new().prefix("tierfs-two-").tempdir().unwrap();
        for place in [dir.path(), fs.scratch()] {
            fs::set_permissions(place, fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::create_dir(fs.path().join("share")).unwrap();
        for place in ["mnt", "etc", "etc/pairs.d", "state"] {
            fs::create_dir(dir.path().join(place)).unwrap();
        }
        let side = Self { name, other, fs, dir, port, other_addr, role, daemon: None, kill_at: None };
        side.write_pair();
        let identity = |key: &str, more: &str| {
            format!("[[identity]]\naccess_key = \"{key}\"\nsecret_key = \"{key}secret\"\n{more}\n")
        };
        let text = [
            identity("root", "uid = 0\ngid = 0"),
            identity("nobody", &format!("uid = {NOBODY}\ngid = {NOBODY}")),
            identity(other, &format!("role = \"peer\"\npair = \"{PAIR}\"")),
        ];
        let path = side.scratch("etc/identities.toml");
        fs::write(&path, text.concat()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        side
    }

    pub fn write_pair(&self) {
        let text = format!(
            "local_cluster = \"{}\"\nlocal_share = \"{}\"\nremote_cluster = \"{}\"\nremote_share = \"s3://{BUCKET}\"\n\
             endpoints = [\"http://{}\"]\nremote_role = \"gpeer\"\nmeta_sync_role = \"{}\"\nretention = \"0s\"\n",
            self.name,
            self.share().display(),
            self.other,
            self.other_addr,
            self.role
        );
        fs::write(self.scratch(&format!("etc/pairs.d/{PAIR}.toml")), text).unwrap();
    }

    pub fn set_role(&mut self, role: &'static str) {
        self.role = role;
        self.write_pair();
    }

    /// A new share and state; the old ones are lost.
    pub fn lose(&mut self, kind: &'static str) {
        self.lose_share(kind);
        fs::remove_dir_all(self.scratch("state")).unwrap();
        fs::create_dir(self.scratch("state")).unwrap();
    }

    pub fn lose_share(&mut self, kind: &'static str) {
        assert!(self.daemon.is_none(), "unmount first");
        self.fs = LoopFs::new(kind, if kind == "xfs" { 320 << 20 } else { 128 << 20 });
        fs::set_permissions(self.fs.scratch(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(self.share()).unwrap();
        self.write_pair();
    }

    pub fn share(&self) -> PathBuf {
        self.fs.path().join("share")
    }

    pub fn scratch(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn mountpoint(&self) -> PathBuf {
        self.scratch("mnt")
    }

    pub fn mnt(&self, name: impl AsRef<Path>) -> PathBuf {
        self.mountpoint().join(name)
    }

    pub fn low(&self, name: impl AsRef<Path>) -> PathBuf {
        self.share().join(name)
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.port.addr)
    }

    pub fn command(&self, args: &[impl AsRef<std::ffi::OsStr>]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tierfs"));
        command
            .args(args)
            .current_dir("/")
            .env("TIERFS_CONFIG_DIR", self.scratch("etc"))
            .env("TIERFS_STATE_DIR", self.scratch("state"))
            .env("AWS_ACCESS_KEY_ID", self.name)
            .env("AWS_SECRET_ACCESS_KEY", format!("{}secret", self.name))
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("HOME", self.dir.path())
            .env_remove("AWS_CA_BUNDLE")
            .env_remove("AWS_PROFILE");
        command
    }

    pub fn tierfs(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// A command about the mount.
    pub fn run(&self, args: &[&str]) -> Output {
        let mountpoint = self.mountpoint();
        self.tierfs(&[args, &[mountpoint.to_str().unwrap()]].concat())
    }

    pub fn said(&self, args: &[&str]) -> String {
        said(&self.run(args))
    }

    /// What a command about the mount prints as JSON; it must end with `want`.
    #[track_caller]
    pub fn json(&self, args: &[&str], want: i32) -> Vec<serde_json::Value> {
        let output = self.run(&[&["--json"], args].concat());
        code(&output, want);
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[track_caller]
    pub fn status(&self) -> serde_json::Value {
        let output = self.run(&["--json", "sync", "status"]);
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        let first = text.lines().next().unwrap_or_else(|| panic!("no status: {}", said(&output)));
        serde_json::from_str(first).unwrap()
    }

    /// Compares the whole share; what was found.
    #[track_caller]
    pub fn reconcile(&self, more: &[&str]) -> serde_json::Value {
        let told = self.json(&[&["sync", "--reconcile"], more].concat(), 0);
        told.into_iter().find(|line| line["reply"] == "sync_compared").expect("it tells what it found")
    }

    #[track_caller]
    pub fn mount(&mut self) {
        let gateway = format!("gateway={},bucket={BUCKET},save_names=off", self.port.addr);
        let (share, mountpoint) = (self.share(), self.mountpoint());
        let args = ["--json", "mount", "-o", &gateway, share.to_str().unwrap(), mountpoint.to_str().unwrap()];
        let mut command = self.command(&args);
        if let Some(point) = &self.kill_at {
            command.env("TIERFS_KILL_AT", point);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "mount {}: {}\n{}", self.name, said(&output), self.log());
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        self.daemon = Some(told["pid"].as_i64().unwrap() as i32);
    }

    #[track_caller]
    pub fn umount(&mut self) {
        let output = self.run(&["umount"]);
        assert!(output.status.success(), "umount: {}", said(&output));
        self.daemon = None;
    }

    /// Cuts the power: what the filesystem had not written by then is lost. The share is another copy of itself after this.
    pub fn lose_power(&mut self) {
        self.crash();
        // Nobody writes any more but the kernel, now and then: until two copies are equal, there is none of one moment.
        let (one, two) = (self.scratch("copy1"), self.scratch("copy2"));
        let copy = |to: &Path| {
            crate::common::run("cp", &["--sparse=always", self.fs.image().to_str().unwrap(), to.to_str().unwrap()]);
        };
        copy(&two);
        loop {
            fs::rename(&two, &one).unwrap();
            copy(&two);
            if Command::new("cmp").arg("-s").args([&one, &two]).status().unwrap().success() {
                break;
            }
        }
        wait_for("the filesystem's end", || self.fs.try_unmount());
        fs::rename(&one, self.fs.image()).unwrap();
        fs::remove_file(&two).unwrap();
        self.fs.mount();
    }

    /// Ends the daemon as a crash would, and takes its mount away.
    pub fn crash(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            kill(daemon);
        }
        let _ = rustix::mount::unmount(self.mountpoint(), UnmountFlags::DETACH);
    }

    pub fn log(&self) -> String {
        let mut all = String::new();
        for entry in fs::read_dir(self.scratch("state/log")).into_iter().flatten().flatten() {
            all += &String::from_utf8_lossy(&fs::read(entry.path()).unwrap_or_default());
        }
        all
    }

    /// The share as it is below the mount.
    pub fn tree(&self) -> Tree {
        tree(&self.share())
    }

    /// The share as the mount shows it.
    pub fn shown(&self) -> Tree {
        tree(&self.mountpoint())
    }

    /// What waits without a name, and marks of changes: (limbo, marks).
    pub fn left(&self) -> (usize, usize) {
        let count = |name: &str| fs::read_dir(self.low(".tierfs-gateway/sync").join(name)).map_or(0, Iterator::count);
        (count("limbo"), count("marks"))
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the log of {} ---\n{}", self.name, self.log());
        }
        let _ = rustix::mount::unmount(self.mountpoint(), UnmountFlags::DETACH);
        if let Some(daemon) = self.daemon {
            see_off(daemon, Duration::from_secs(8));
        }
    }
}

fn kind(meta: &fs::Metadata) -> &'static str {
    let kind = meta.file_type();
    match () {
        () if kind.is_dir() => "directory",
        () if kind.is_file() => "file",
        () if kind.is_symlink() => "symlink",
        () if kind.is_fifo() => "fifo",
        () if kind.is_socket() => "socket",
        () if kind.is_char_device() => "char",
        () => "block",
    }
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut buffer = vec![0u8; 65_536];
    let len = rustix::fs::llistxattr(path, &mut buffer[..]).unwrap_or(0);
    let names = buffer[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let names = names.map(|name| String::from_utf8_lossy(name).into_owned());
    let hidden = |name: &String| ["trusted.tierfs.", "trusted.SGI_ACL_"].iter().any(|start| name.starts_with(start));
    names.filter(|name| !hidden(name)).filter_map(|name| Some((name.clone(), xattr(path, &name).ok()?))).collect()
}

/// All below a directory. What goes meanwhile is left out.
pub fn tree(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut first: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        let Ok(listing) = fs::read_dir(&dir) else { continue };
        let mut names: Vec<_> = listing.flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        for name in names {
            // What a start tries the other side with is gone soon, unless the start ends as well.
            if name.as_bytes() == b".tierfs-gateway" || name.as_bytes().starts_with(b".tierfs-probe-") {
                continue;
            }
            let path = dir.join(name);
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            let inside = path.strip_prefix(root).unwrap().to_owned();
            if meta.is_dir() {
                open.push(path.clone());
            }
            let same_as = first.entry(meta.ino()).or_insert_with(|| inside.clone()).clone();
            let seen = Seen {
                kind: kind(&meta),
                mode: meta.mode() & 0o7777,
                owner: (meta.uid(), meta.gid()),
                links: if meta.is_dir() { 0 } else { meta.nlink() },
                size: if meta.is_dir() { 0 } else { meta.size() },
                mtime: (meta.mtime(), meta.mtime_nsec()),
                target: fs::read_link(&path).ok(),
                device: meta.rdev(),
                xattrs: xattrs(&path),
                same_as,
            };
            tree.insert(inside, seen);
        }
    }
    // The first path in order, whatever the order of directories was.
    let mut least: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    for (path, seen) in &tree {
        least.entry(seen.same_as.clone()).or_insert_with(|| path.clone());
    }
    for seen in tree.values_mut() {
        seen.same_as = least[&seen.same_as].clone();
    }
    tree
}
