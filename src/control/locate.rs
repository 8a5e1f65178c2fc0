//! From a path a person typed to a file on a mount, and from a mount to its socket.
//!
//! The last component of a path is never followed: a symlink is itself, and has no content to tier.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rustix::io::Errno;

use super::mountinfo::{MountEntry, covering};
use super::protocol::SOCKET_XATTR;
use super::{ControlError, ControlResult};

/// How long a mount may take to answer a question that needs no remote, seconds.
pub const ANSWER_WITHIN_S: u64 = 10;

/// A file on a mount of ours.
#[derive(Clone, Debug)]
pub struct Located {
    pub mount: MountEntry,
    /// Absolute path as this process sees it.
    pub path: PathBuf,
    /// Path relative to the root of the filesystem; empty for the root.
    pub inside: PathBuf,
}

/// A path that is no file on a mount of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotLocated {
    pub reason: String,
    /// There is nothing to do for it (a symlink), rather than something wrong.
    pub skipped: bool,
}

/// Finds the file that `path` names.
pub fn locate(mounts: &[MountEntry], path: &Path) -> Result<Located, NotLocated> {
    let fail = |reason: String| NotLocated { reason, skipped: false };
    let whole = absolute(path).map_err(|error| fail(why(mounts, path, &error)))?;
    let kind = std::fs::symlink_metadata(&whole).map_err(|error| fail(why(mounts, &whole, &error)))?.file_type();
    if kind.is_symlink() {
        return Err(NotLocated { reason: "a symbolic link is skipped: name what it points to".into(), skipped: true });
    }
    let Some(mount) = covering(mounts, &whole).filter(|mount| mount.is_tierfs()) else {
        return Err(fail(
            "not on a tierfs mount: name a path below a mount point (`findmnt -t fuse.tierfs` lists them)".into(),
        ));
    };
    let inside = mount.inside(&whole).ok_or_else(|| fail("lies outside its mount; is the mount changing?".into()))?;
    Ok(Located { mount: mount.clone(), path: whole, inside })
}

/// As [`locate`], also for what is not there (any more): the nearest directory above it that is there says which mount is meant.
pub fn locate_gone(mounts: &[MountEntry], path: &Path) -> Result<Located, NotLocated> {
    let fail = |reason: String| NotLocated { reason, skipped: false };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        _ => return locate(mounts, path),
    }
    let whole = std::path::absolute(path).map_err(|error| fail(error.to_string()))?;
    if whole.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(fail("a path with `..` below what is gone leads nowhere: name it without".into()));
    }
    for above in whole.ancestors().skip(1) {
        let Ok(there) = std::fs::canonicalize(above) else { continue };
        let below = whole.strip_prefix(above).unwrap_or(Path::new(""));
        let mut found = locate(mounts, &there.join("."))?;
        found.path = there.join(below);
        found.inside = found.inside.join(below);
        return Ok(found);
    }
    Err(fail("no directory above it is there".into()))
}

/// Absolute and free of symlinks, but for the last component, which is kept as it is.
pub fn absolute(path: &Path) -> std::io::Result<PathBuf> {
    let bytes = path.as_os_str().as_bytes();
    // "x/", "x/." and "x/.." mean the directory itself, so a link there is followed as the shell does.
    let follow = path.file_name().is_none() || bytes.ends_with(b"/") || bytes.ends_with(b"/.");
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if !follow => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok(std::fs::canonicalize(parent)?.join(name))
        }
        _ => std::fs::canonicalize(path),
    }
}

fn why(mounts: &[MountEntry], path: &Path, error: &std::io::Error) -> String {
    if error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error()) {
        let mountpoint = covering(mounts, path).map_or(path, |mount| &mount.mount_point).to_owned();
        return ControlError::Dead { mountpoint }.to_string();
    }
    if error.kind() == std::io::ErrorKind::NotFound { "no such file or directory".into() } else { error.to_string() }
}

/// Where the control socket of the filesystem behind `mount` is. Only root is told.
pub fn socket_of(mounts: &[MountEntry], mount: &MountEntry) -> ControlResult<PathBuf> {
    // The root answers; a bind mount of a part does not show it, but another mount of the same filesystem may.
    let whole = |m: &&MountEntry| m.device == mount.device && m.root == Path::new("/");
    let visible = |m: &&MountEntry| covering(mounts, &m.mount_point).is_some_and(|top| top.id == m.id);
    let ask = if whole(&mount) { mount } else { mounts.iter().filter(whole).find(visible).unwrap_or(mount) };
    let mountpoint = ask.mount_point.clone();
    let silent = ControlError::Silent { mountpoint: mountpoint.clone(), seconds: ANSWER_WITHIN_S };
    let no_socket = |reason: &str| ControlError::NoSocket { mountpoint: mountpoint.clone(), reason: reason.into() };
    let target = mountpoint.clone();
    let answer = within(Duration::from_secs(ANSWER_WITHIN_S), move || xattr(&target, SOCKET_XATTR)).ok_or(silent)?;
    match answer {
        Ok(bytes) if !bytes.is_empty() => Ok(PathBuf::from(std::ffi::OsStr::from_bytes(&bytes))),
        Ok(_) => Err(no_socket("the answer is empty; its daemon may be another version")),
        Err(Errno::NOTCONN | Errno::CONNABORTED) => Err(ControlError::Dead { mountpoint }),
        Err(Errno::PERM | Errno::ACCESS) => Err(no_socket("only root is told: run this as root")),
        Err(Errno::NODATA) if mount.root != Path::new("/") => {
            Err(no_socket("this is a bind mount of a part of it: name a path below the whole mount"))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => {
            Err(no_socket("its daemon may be another version, or you are not root"))
        }
        Err(errno) => Err(no_socket(&std::io::Error::from(errno).to_string())),
    }
}

/// An extended attribute's value, of a symlink itself where `path` is one.
pub fn xattr(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0u8; 4_096];
    let len = rustix::fs::lgetxattr(path, name, &mut value[..])?;
    value.truncate(len);
    Ok(value)
}

/// Runs `question` on a thread of its own and gives up waiting after `limit`. A mount whose daemon is stuck blocks the
/// asking thread in the kernel; the thread is then left behind and ends with the process.
pub fn within<T: Send + 'static>(limit: Duration, question: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        // Nobody may be listening any more, which is no fault.
        let _ = sender.send(question());
    });
    receiver.recv_timeout(limit).ok()
}

#[cfg(test)]
mod tests {
    use super::super::mountinfo::parse;
    use super::*;

    #[test]
    fn links_are_skipped_and_parents_followed() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        std::fs::create_dir(top.join("real")).unwrap();
        std::fs::write(top.join("real/file"), b"x").unwrap();
        std::os::unix::fs::symlink("real", top.join("way")).unwrap();
        std::os::unix::fs::symlink("file", top.join("real/link")).unwrap();
        let list = format!("1 0 0:1 / / rw - ext4 x rw\n2 1 0:2 / {} rw - fuse.tierfs y rw\n", top.display());
        let mounts = parse(list.as_bytes());
        let check = |path: &str, want: Result<&str, &str>| match (locate(&mounts, &top.join(path)), want) {
            (Ok(found), Ok(inside)) => assert_eq!(found.inside, Path::new(inside), "{path}"),
            (Err(not), Err(piece)) => assert!(not.reason.contains(piece), "{path}: {}", not.reason),
            (got, want) => panic!("{path}: {got:?}, wanted {want:?}"),
        };
        check("real/file", Ok("real/file"));
        check("way/file", Ok("real/file"));
        check("way/", Ok("real"));
        check("way/.", Ok("real"));
        check("way/..", Ok(""));
        check("", Ok(""));
        check("way", Err("symbolic link"));
        check("real/link", Err("symbolic link"));
        check("gone", Err("no such file"));
        check("real/file/x", Err("Not a directory"));
        check("/etc", Err("not on a tierfs mount"));
    }

    #[test]
    fn a_stuck_question_is_given_up() {
        assert_eq!(within(Duration::from_secs(5), || 7), Some(7));
        let slow = || std::thread::sleep(Duration::from_secs(5));
        assert_eq!(within(Duration::from_millis(20), slow), None);
    }
}
