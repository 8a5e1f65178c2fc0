//! Mounting and the session that serves it.
//!
//! The mount is made by mount(2) on a descriptor of ours, so that a process that only holds the mount can be put in front later.
//! The process never touches its own mount: not its path, not its root's attributes.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use fuser::{Config, INodeNo, Notifier, Session, SessionACL};
use rustix::mount::{MountFlags, UnmountFlags};
use tokio::sync::oneshot;

use super::adapter::Adapter;
use crate::fs::Fs;

/// Threads that read requests. With fewer, a single client's creates and renames were slower on two CPUs. Cloned channels would lose requests when the
/// daemon dies.
const SESSION_THREADS: usize = 8;
/// Attribute invalidations waiting to be sent; when full, the kernel's time-out for attributes does the work.
const INVALIDATIONS_MAX: usize = 4096;
/// Read-ahead on stubs in KiB: a chunk. fuser caps what is negotiated at 128.
const READ_AHEAD_KIB: u32 = 4096;

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Flags of mount(2), `MS_RDONLY` among them.
    pub flags: MountFlags,
    /// Shown as the source in /proc/mounts.
    pub source: PathBuf,
    /// Seconds the kernel may keep entries and attributes without asking.
    pub ttl_s: u64,
}

/// Why a mount failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("/dev/fuse: {0}: load the fuse module, or run where the device exists")]
    Device(io::Error),
    #[error("mounting at {mountpoint}: {source}{}", hint(source))]
    Mount { mountpoint: PathBuf, source: io::Error },
    #[error("the kernel's FUSE handshake failed: {0}")]
    Handshake(io::Error),
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => ": mounting needs root (CAP_SYS_ADMIN)",
        Some(libc::ENOENT | libc::ENOTDIR) => ": the mountpoint must be an existing directory",
        _ => "",
    }
}

/// A mounted, not yet served filesystem.
pub struct Mount {
    session: Session<Adapter>,
    mountpoint: PathBuf,
}

impl Mount {
    /// Mounts and shakes hands with the kernel.
    pub fn new(fs: Arc<Fs>, mountpoint: &Path, options: &MountOptions) -> Result<Self, MountError> {
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").map_err(MountError::Device)?;
        let device = OwnedFd::from(device);
        let data =
            format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions", device.as_raw_fd());
        let data = std::ffi::CString::new(data).expect("the options hold no NUL");
        rustix::mount::mount(&options.source, mountpoint, "fuse.tierfs", options.flags, Some(data.as_c_str()))
            .map_err(|error| MountError::Mount { mountpoint: mountpoint.into(), source: error.into() })?;
        let mut config = Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(SESSION_THREADS);
        let adapter = Adapter::new(fs.clone(), options.ttl_s);
        let session = Session::from_fd(adapter, device, SessionACL::All, config).map_err(|error| {
            // Nobody serves it: take it away again rather than leave a mount that hangs.
            let _ = rustix::mount::unmount(mountpoint, UnmountFlags::DETACH);
            MountError::Handshake(error)
        })?;
        raise_read_ahead(mountpoint);
        let (sender, receiver) = sync_channel(INVALIDATIONS_MAX);
        let notifier = session.notifier();
        std::thread::Builder::new()
            .name("notify".into())
            .spawn(move || notify(&receiver, &notifier))
            .map_err(MountError::Handshake)?;
        let weak = Arc::downgrade(&fs);
        let (names, of_names, marks) = (weak.clone(), sender.clone(), sender.clone());
        fs.engine.on_change(Box::new(move |file| {
            if let Some(fs) = weak.upgrade() {
                announce(&sender, Stale::Inode(fs.node_id(file.ino)));
            }
        }));
        fs.engine.on_name(Box::new(move |directory, name| {
            if let Some(fs) = names.upgrade() {
                fs.recorder().named_id(directory, name);
                fs.name_changed(directory, name);
                announce(&of_names, Stale::Name(fs.node_id(directory.ino), name.to_owned()));
            }
        }));
        fs.engine.on_told(Box::new(move |told| announce(&marks, Stale::Mark(told))));
        Ok(Self { session, mountpoint: mountpoint.into() })
    }

    /// Serves until the filesystem is unmounted.
    pub fn serve(self) -> io::Result<()> {
        match self.session.run() {
            // How an aborted connection ends (umount -f): not an error of ours.
            Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => Ok(()),
            ended => ended,
        }
    }

    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }
}

/// What the kernel knows no longer.
enum Stale {
    /// Attributes of an inode.
    Inode(u64),
    /// What a directory has under a name.
    Name(u64, OsString),
    /// Nothing: somebody waits until all before it is told.
    Mark(oneshot::Sender<()>),
}

fn announce(sender: &SyncSender<Stale>, stale: Stale) {
    match sender.try_send(stale) {
        Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
    }
}

/// Tells the kernel of changed attributes and names. A thread of its own that holds no lock, and no data: invalidating that can
/// wait for a page that waits for us.
fn notify(changes: &Receiver<Stale>, notifier: &Notifier) {
    while let Ok(stale) = changes.recv() {
        // What the kernel does not know (ENOENT) needs no telling.
        let _ = match stale {
            Stale::Inode(id) => notifier.inval_inode(INodeNo(id), -1, 0),
            Stale::Name(directory, name) => notifier.inval_entry(INodeNo(directory), &name),
            Stale::Mark(told) => {
                // Who waited may have given up.
                let _ = told.send(());
                Ok(())
            }
        };
    }
}

/// Raises the mount's read-ahead. Its device number comes from /proc/self/mountinfo: asking the mount itself would wait for us.
fn raise_read_ahead(mountpoint: &Path) {
    let raise = || -> io::Result<()> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let escaped = mountpoint.to_string_lossy().replace('\\', "\\134").replace(' ', "\\040");
        let device = mounts
            .lines()
            .rev()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|fields| fields.get(4) == Some(&escaped.as_str()))
            .and_then(|fields| fields.get(2).map(|device| (*device).to_owned()))
            .ok_or(io::ErrorKind::NotFound)?;
        std::fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), READ_AHEAD_KIB.to_string())
    };
    if let Err(error) = raise() {
        tracing::info!("read-ahead stays at the kernel's default: {error}");
    }
}

/// Whether this kernel has FUSE passthrough at all (Linux 6.9, CONFIG_FUSE_PASSTHROUGH); the handshake has the last word.
pub fn kernel_can_pass_through() -> bool {
    let release = rustix::system::uname();
    let release = release.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 9)
}
