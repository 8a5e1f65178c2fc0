//! One set of files, and the ways to read them: stubs through tierfs, plain objects through rclone and s3fs and by bare GETs.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::bare::Bare;
use super::proxy::Proxy;
use super::rig::{self, Endpoint, LoopFs, Mounted, Result, said};

const MIB: u64 = 1 << 20;
pub const SMALL_BYTES: u64 = 64 << 10;
pub const HEAD_BYTES: u64 = 4 * MIB;
/// Bucket of the plain objects.
const PLAIN: &str = "plain";
/// Blocks of 512 bytes that a stub may keep: its record's.
const STUB_BLOCKS_MAX: u64 = 8;
/// How long a file may take until it is a stub again: a recall in the background goes to its end first.
const STUB_WITHIN: Duration = Duration::from_secs(120);

pub struct Sizes {
    pub large_mib: u64,
    pub heads: usize,
    pub small_files: usize,
}

/// Files by name and length. All lie in one directory.
#[derive(Clone)]
pub struct Set {
    pub names: Vec<String>,
    pub len: u64,
}

/// The share with its objects. Fields are dropped in their order.
pub struct Store {
    pub endpoint: Endpoint,
    pub share: LoopFs,
    _objects: LoopFs,
    pub large: Set,
    pub heads: Set,
    pub small: Set,
    pub rclone: String,
    pub s3fs: String,
    scratch: tempfile::TempDir,
}

impl Store {
    pub fn new(disk: &Path, sizes: &Sizes) -> Result<Self> {
        let rclone = rig::rclone_version()?;
        let s3fs = rig::run(rig::command("s3fs").arg("--version"))
            .map_err(|error| format!("{error}\ns3fs is missing: scripts/install-deps.sh bench installs it"))?;
        let s3fs = s3fs.split_whitespace().find(|word| word.starts_with('V')).unwrap_or_default();
        let set = |what: &str, count: usize, len: u64| Set {
            names: (0..count).map(|n| format!("{what}-{n:05}")).collect(),
            len,
        };
        let large = set("large", 1, sizes.large_mib * MIB);
        let heads = set("head", sizes.heads, HEAD_BYTES);
        let small = set("small", sizes.small_files, SMALL_BYTES);
        let bytes: u64 = [&large, &heads, &small].iter().map(|set| set.len * set.names.len() as u64).sum();
        let scratch = rig::scratch(disk)?;
        let share = LoopFs::new(scratch.path(), "share", 2 * bytes + (1 << 30))?;
        let objects = LoopFs::new(scratch.path(), "objects", 3 * bytes + (1 << 30))?;
        // Without credentials: the bare loop signs nothing.
        let endpoint = Endpoint::new(&objects.path.join("s3"), &|_| ())?;
        rig::add_pair(scratch.path(), &share.path, &endpoint.url)?;
        let store = Self {
            endpoint,
            share,
            _objects: objects,
            large,
            heads,
            small,
            rclone,
            s3fs: format!("s3fs {s3fs}"),
            scratch,
        };
        store.fill()?;
        Ok(store)
    }

    fn sets(&self) -> [&Set; 3] {
        [&self.large, &self.heads, &self.small]
    }

    /// Makes the files, as plain objects and as stubs.
    fn fill(&self) -> Result<()> {
        let failed = said("making data");
        rig::progress("making files, objects and stubs");
        let mut buffer = vec![0; MIB as usize];
        for set in self.sets() {
            for name in &set.names {
                rig::check_interrupted()?;
                let mut file = File::create_new(self.share.path.join(name)).map_err(&failed)?;
                let mut content = blake3::Hasher::new().update(name.as_bytes()).finalize_xof();
                let mut left = set.len;
                while left > 0 {
                    let piece = &mut buffer[..left.min(MIB) as usize];
                    content.fill(piece);
                    file.write_all(piece).map_err(&failed)?;
                    left -= piece.len() as u64;
                }
            }
        }
        let mut copy = rig::rclone(&self.endpoint.url);
        rig::run(
            copy.args(["copy", "--transfers", "16", "--exclude", "lost+found/**"])
                .arg(&self.share.path)
                .arg("bench:plain"),
        )?;
        let scratch = self.directory("filling")?;
        let mount = self.tierfs(&scratch)?;
        rig::run(self.command(&["migrate", "-r"]).arg(&mount.path)).map(drop)
    }

    fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.scratch.path().join(name);
        fs::create_dir(&path).map_err(said("scratch"))?;
        Ok(path)
    }

    fn tierfs(&self, scratch: &Path) -> Result<Mounted> {
        Mounted::new(scratch, &self.share.path, &|command| rig::environment(self.scratch.path(), command))
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = rig::command(rig::TIERFS);
        rig::environment(self.scratch.path(), &mut command);
        command.args(arguments);
        command
    }
}

/// Who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Bare,
    Tierfs,
    Rclone,
    S3fs,
}

pub const SIDES: [Side; 4] = [Side::Bare, Side::Tierfs, Side::Rclone, Side::S3fs];

impl Side {
    pub fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare GET",
            Self::Tierfs => "tierfs",
            Self::Rclone => "rclone mount",
            Self::S3fs => "s3fs",
        }
    }
}

/// All sides, mounted at one latency. Fields are dropped in their order: what lies above goes first.
pub struct Sides {
    pub bare: Bare,
    tierfs: Mounted,
    rclone: Mounted,
    s3fs: Mounted,
    _proxy: Option<Proxy>,
}

impl Sides {
    pub fn new(store: &Store, latency: Duration) -> Result<Self> {
        let scratch = store.directory(&format!("{}ms", latency.as_millis()))?;
        let proxy = (!latency.is_zero()).then(|| Proxy::new(&store.endpoint.url, latency)).transpose()?;
        let url = proxy.as_ref().map_or(&store.endpoint.url, |proxy| &proxy.url);
        rig::run(store.command(&["pair", "edit", "bench", "--no-probe", "--endpoint"]).arg(url))?;
        let tierfs = store.tierfs(&scratch)?;
        let rclone = Mounted::start(&scratch, "rclone", |path| {
            let mut command = rig::rclone(url);
            command.args(["mount", "--read-only"]).arg(format!("bench:{PLAIN}")).arg(path);
            command
        })?;
        let keys = scratch.join("s3fs-keys");
        File::create_new(&keys)
            .and_then(|file| file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600)))
            .and_then(|()| fs::write(&keys, "bench:bench-secret"))
            .map_err(said("keys of s3fs"))?;
        let s3fs = Mounted::start(&scratch, "s3fs", |path| {
            let mut command = rig::command("s3fs");
            command.arg(PLAIN).arg(path).args(["-f", "-o", "use_path_request_style,ro"]);
            command.arg("-o").arg(format!("url={url},passwd_file={}", keys.display()));
            command
        })?;
        Ok(Self { bare: Bare::new(url, PLAIN)?, tierfs, rclone, s3fs, _proxy: proxy })
    }

    /// The mount of a side that is one.
    pub fn mount(&self, side: Side) -> Option<&Mounted> {
        match side {
            Side::Bare => None,
            Side::Tierfs => Some(&self.tierfs),
            Side::Rclone => Some(&self.rclone),
            Side::S3fs => Some(&self.s3fs),
        }
    }

    /// Nothing of `set` is local to this side.
    pub fn chill(&self, store: &Store, side: Side, set: &Set) -> Result<()> {
        let Some(mount) = self.mount(side) else { return Ok(()) };
        if side == Side::Tierfs {
            let began = Instant::now();
            loop {
                let warm = set.names.iter().filter(|name| {
                    let below = fs::metadata(store.share.path.join(name));
                    below.map_or(true, |below| below.blocks() > STUB_BLOCKS_MAX)
                });
                let warm: Vec<_> = warm.map(|name| mount.path.join(name)).collect();
                if warm.is_empty() {
                    break;
                }
                // A stub has no pages; but the kernel may keep those of the file that it was, and throw them away in the open that is measured.
                for path in &warm {
                    forget_pages(path)?;
                }
                rig::check_interrupted()?;
                if began.elapsed() > STUB_WITHIN {
                    return Err(format!("{} do not become stubs again", warm.len()));
                }
                // Refused while a recall in the background goes on.
                if rig::run(store.command(&["migrate"]).args(&warm)).is_err() {
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
            store.share.sync()?;
        }
        for name in &set.names {
            // Opening a small stub would recall it: and a stub has no pages.
            if side != Side::Tierfs {
                forget_pages(&mount.path.join(name))?;
            }
        }
        Ok(())
    }
}

/// Has the kernel drop what it keeps of a file's content.
fn forget_pages(path: &Path) -> Result<()> {
    let said = |error: std::io::Error| format!("{}: {error}", path.display());
    let file = File::open(path).map_err(said)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).map_err(|errno| said(errno.into()))
}
