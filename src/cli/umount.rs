//! `tierfs umount`: an orderly end. Transfers come to rest, the kernel unmounts, the daemon ends.
//!
//! The connection that asked the daemon to rest is kept until the kernel has unmounted: when it closes before, the
//! daemon may go on with its work, so a refused unmount does not leave a mount that migrates nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::time::Timespec;

use super::exit::{self, CliError, Exit};
use super::{Global, holders, output};
use crate::control::client::{Connection, mount_info};
use crate::control::locate::{ANSWER_WITHIN_S, absolute, socket_of, within};
use crate::control::mountinfo::{self, MountEntry};
use crate::control::protocol::Request;
use crate::control::{ControlError, ControlResult};

/// How long running transfers may take to finish their step.
const REST_WITHIN: Duration = Duration::from_secs(60);
/// How long the daemon may take to end after the unmount.
const END_WITHIN_S: i64 = 60;

/// Unmount: transfers come to rest, then the daemon ends.
///
/// Returns when the daemon's process is gone. A mount in use is refused, and who uses it is told. A mount whose daemon is
/// dead is unmounted too.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs umount /mnt/tiered\n  \
     tierfs umount --lazy /mnt/tiered     (out of sight at once; ends when its last user is done)"))]
pub struct Umount {
    /// Where the share is mounted.
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,
    /// Take the mount out of sight at once, also while it is in use; the daemon serves those who use it until the last
    /// one is done, and is not waited for.
    #[arg(long)]
    lazy: bool,
}

/// The daemon behind a mount, as far as it can be asked.
enum Daemon {
    /// At rest while the connection lives.
    Resting {
        pid: u32,
        connection: Connection,
    },
    Dead,
    /// It could not be asked; why.
    Unheard(ControlError),
    /// Nobody tried to ask.
    Unasked,
    /// It goes on serving another mount of the same filesystem.
    Shared {
        elsewhere: PathBuf,
    },
}

impl Umount {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        let mounts = mountinfo::read().map_err(ControlError::NoMountInfo)?;
        let mount = find(&mounts, &self.mountpoint)?;
        if !rustix::process::geteuid().is_root() {
            return Err(CliError::Failed(format!(
                "unmounting {} needs root: run this with sudo",
                mount.mount_point.display()
            )));
        }
        // A shell that stands in the mount is told; this process itself need not be in the way.
        std::env::set_current_dir("/").map_err(|error| CliError::Failed(format!("cannot change to /: {error}")))?;
        if !self.lazy {
            refuse_busy(mount, &mounts)?;
        }
        // A lazy unmount asks nothing: it must work when nobody answers, and the daemon has to go on serving.
        let daemon = if self.lazy { Daemon::Unasked } else { bring_to_rest(&mounts, mount) };
        match &daemon {
            // The question hangs in the kernel and keeps the mount busy, so an unmount would be refused.
            Daemon::Unheard(error @ ControlError::Silent { .. }) => {
                let place = mount.mount_point.display();
                return Err(CliError::Failed(format!(
                    "{error}; `tierfs umount --lazy {place}` takes it away all the same"
                )));
            }
            Daemon::Unheard(error) => output::note(&format!("tierfs: {error}; unmounting nevertheless")),
            _ => {}
        }
        // Opened before the unmount, while the number surely means the daemon.
        let process = match &daemon {
            Daemon::Resting { pid, .. } => watch(*pid),
            _ => None,
        };
        let flags = if self.lazy { UnmountFlags::NOFOLLOW | UnmountFlags::DETACH } else { UnmountFlags::NOFOLLOW };
        match rustix::mount::unmount(&mount.mount_point, flags) {
            Ok(()) => {}
            Err(Errno::BUSY) => {
                refuse_busy(mount, &mounts)?;
                return Err(busy(mount, "somebody whom /proc does not show: try again"));
            }
            Err(errno) => {
                let error = std::io::Error::from(errno);
                return Err(CliError::Failed(format!("cannot unmount {}: {error}", mount.mount_point.display())));
            }
        }
        Ok(self.after(global, mount, daemon, process))
    }

    fn after(
        &self,
        global: &Global,
        mount: &MountEntry,
        daemon: Daemon,
        process: Option<std::os::fd::OwnedFd>,
    ) -> Exit {
        let shown = output::shown(&mount.mount_point);
        let (pid, note) = match daemon {
            Daemon::Resting { pid, connection } => {
                // Its end must not have to wait for us.
                drop(connection);
                let ended = process.is_none_or(|process| has_ended(&process));
                let note = format!(
                    "unmounted, but process {pid} of {shown} has not ended after {END_WITHIN_S} s: see its log"
                );
                (Some(pid), (!ended).then_some(note))
            }
            Daemon::Shared { elsewhere } => {
                output::note(&format!("tierfs: the daemon goes on: it is still mounted at {}", elsewhere.display()));
                (None, None)
            }
            Daemon::Dead | Daemon::Unheard(_) | Daemon::Unasked => (None, None),
        };
        if global.json {
            output::json(&serde_json::json!({ "unmounted": shown, "pid": pid, "problem": note }));
        } else if note.is_none() {
            output::line(&format!("unmounted {shown}"));
        }
        match note {
            Some(note) => {
                output::note(&format!("tierfs: {note}"));
                Exit::Partial
            }
            None => Exit::Done,
        }
    }
}

/// The mount meant by `path`, without touching it more than the kernel's own walk does.
fn find<'m>(mounts: &'m [MountEntry], path: &Path) -> Result<&'m MountEntry, CliError> {
    let fail = |reason: String| CliError::Failed(format!("{}: {reason}", path.display()));
    let top_at = |place: &Path| mountinfo::covering(mounts, place).filter(|mount| mount.mount_point == place);
    let plain = absolute(path);
    let mut found = plain.as_deref().ok().and_then(top_at);
    if found.is_none() {
        // Perhaps a link to the mount point. Following it asks the mount, which may not answer.
        let name = path.to_owned();
        let followed = within(Duration::from_secs(ANSWER_WITHIN_S), move || std::fs::canonicalize(name));
        found = followed.and_then(Result::ok).and_then(|place| top_at(&place));
    }
    match (found, plain) {
        (Some(mount), _) if mount.is_tierfs() => Ok(mount),
        (Some(mount), _) => {
            let below = mounts.iter().any(|other| other.is_tierfs() && other.mount_point == mount.mount_point);
            let over =
                if below { "over the tierfs mount: unmount it first" } else { "and not a tierfs mount: use umount" };
            Err(fail(format!("a {} is mounted there, {over}", mount.fstype)))
        }
        (None, Ok(place)) => match mountinfo::covering(mounts, &place).filter(|mount| mount.is_tierfs()) {
            Some(mount) => Err(fail(format!(
                "not a mount point: it lies on {0}; `tierfs umount {0}`",
                mount.mount_point.display()
            ))),
            None => Err(fail("nothing of tierfs is mounted there (`findmnt -t fuse.tierfs` lists the mounts)".into())),
        },
        (None, Err(error)) => Err(fail(error.to_string())),
    }
}

fn refuse_busy(mount: &MountEntry, mounts: &[MountEntry]) -> Result<(), CliError> {
    let found = holders::of(mount, mounts);
    if found.is_empty() { Ok(()) } else { Err(busy(mount, &found.join("; "))) }
}

fn busy(mount: &MountEntry, who: &str) -> CliError {
    let place = mount.mount_point.display();
    CliError::Failed(format!("{place} is in use by {who}. End them, or `tierfs umount --lazy {place}`"))
}

fn bring_to_rest(mounts: &[MountEntry], mount: &MountEntry) -> Daemon {
    let same = |other: &&MountEntry| other.device == mount.device && other.id != mount.id;
    if let Some(other) = mounts.iter().find(same) {
        return Daemon::Shared { elsewhere: other.mount_point.clone() };
    }
    let ask = || -> ControlResult<Daemon> {
        let pid = mount_info(mounts, mount)?.pid;
        let mut connection = Connection::open(&socket_of(mounts, mount)?, Some(REST_WITHIN))?;
        if let Err(error) = connection.ask(&Request::Quiesce, &mut |_| Ok(())) {
            // A transfer that is cut off is undone at the next mount: worth a word, no reason to stay mounted.
            output::note(&format!("tierfs: {error}; unmounting nevertheless"));
        }
        Ok(Daemon::Resting { pid, connection })
    };
    match ask() {
        Ok(daemon) => daemon,
        Err(ControlError::Dead { .. }) => Daemon::Dead,
        Err(error) => Daemon::Unheard(error),
    }
}

fn watch(pid: u32) -> Option<std::os::fd::OwnedFd> {
    pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty()).ok()
}

/// Waits for the process to end, for a bounded time.
fn has_ended(process: &std::os::fd::OwnedFd) -> bool {
    let timeout = Timespec { tv_sec: END_WITHIN_S, tv_nsec: 0 };
    loop {
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)) {
            Err(Errno::INTR) => {}
            Ok(ready) => return ready > 0,
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_meant_is_found_and_others_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        for name in ["a", "a/inner", "covered", "tmp", "none"] {
            std::fs::create_dir(top.join(name)).unwrap();
        }
        std::os::unix::fs::symlink("a", top.join("link")).unwrap();
        let t = top.display();
        let list = format!(
            "1 0 0:1 / / rw - ext4 x rw\n2 1 0:2 / {t}/a rw - fuse.tierfs y rw\n3 1 0:3 / {t}/covered rw - fuse.tierfs y rw\n\
             4 3 0:4 / {t}/covered rw - tmpfs y rw\n5 1 0:5 / {t}/tmp rw - tmpfs y rw\n"
        );
        let mounts = mountinfo::parse(list.as_bytes());
        let check = |name: &str, want: Result<u64, &str>| match (find(&mounts, &top.join(name)), want) {
            (Ok(mount), Ok(id)) => assert_eq!(mount.id, id, "{name}"),
            (Err(error), Err(piece)) => assert!(error.to_string().contains(piece), "{name}: {error}"),
            (got, want) => panic!("{name}: {:?}, wanted {want:?}", got.map(|mount| mount.id)),
        };
        check("a", Ok(2));
        check("a/", Ok(2));
        check("link", Ok(2));
        check("a/inner", Err("tierfs umount"));
        check("covered", Err("unmount it first"));
        check("tmp", Err("use umount"));
        check("none", Err("nothing of tierfs"));
        check("gone/x", Err("No such file"));
    }
}
