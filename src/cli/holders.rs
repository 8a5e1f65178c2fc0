//! Who keeps a mount busy: processes with files, mappings or directories on it, and mounts inside it. Reads /proc only,
//! never the mount itself, so it works on a mount that does not answer.

use std::path::{Path, PathBuf};

use super::output::plain;
use crate::control::mountinfo::MountEntry;

/// Holders told; more would not help anybody.
const TOLD_MAX: usize = 10;

/// Lines like `process 712 (bash): current directory`; empty if nobody is found. Processes of other users are seen by
/// root only.
pub fn of(mount: &MountEntry, mounts: &[MountEntry]) -> Vec<String> {
    let mut found = Vec::new();
    for inner in mounts.iter().filter(|inner| inner.parent == mount.id && inner.id != mount.id) {
        found.push(format!("{} is mounted inside", inner.mount_point.display()));
    }
    // Paths of processes with mounts of their own mean something else; theirs do not keep ours busy.
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let ours = namespace("self");
    let me = std::process::id().to_string();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|pid| pid.bytes().all(|b| b.is_ascii_digit()) && *pid != me) else {
            continue;
        };
        if namespace(pid) != ours {
            continue;
        }
        if let Some(how) = how_process_holds(&entry.path(), mount) {
            let comm = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            found.push(format!("process {pid} ({}): {how}", plain(comm.trim())));
        }
        if found.len() > TOLD_MAX {
            found.truncate(TOLD_MAX);
            found.push("and others".into());
            break;
        }
    }
    found
}

fn how_process_holds(process: &Path, mount: &MountEntry) -> Option<String> {
    let on_mount = |path: PathBuf| path.starts_with(&mount.mount_point);
    for (link, words) in [("cwd", "current directory"), ("root", "root directory"), ("exe", "runs a program from it")] {
        if std::fs::read_link(process.join(link)).is_ok_and(on_mount) {
            return Some(words.into());
        }
    }
    for entry in std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten() {
        // The mount's number is exact; paths may be hidden under other mounts.
        let info = std::fs::read_to_string(process.join("fdinfo").join(entry.file_name())).unwrap_or_default();
        let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse::<u64>().ok());
        if id == Some(mount.id) {
            let path = std::fs::read_link(entry.path()).unwrap_or_default();
            return Some(format!("has {} open", plain(&path.to_string_lossy())));
        }
    }
    let maps = std::fs::read(process.join("maps")).unwrap_or_default();
    let maps = String::from_utf8_lossy(&maps);
    // address perms offset device inode path; the path may hold blanks.
    let mapped = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
    mapped
        .map(Path::new)
        .find(|path| path.starts_with(&mount.mount_point))
        .map(|path| format!("has {} mapped", plain(&path.to_string_lossy())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::mountinfo::{covering, read};

    /// A child with its directory below a mount is found by pid and name.
    #[test]
    fn a_process_is_named() {
        let mounts = read().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        // The real mount's number with a narrower mount point: only what lies below the directory counts by path.
        let mount = MountEntry { id: u64::MAX, mount_point: path.clone(), ..covering(&mounts, &path).unwrap().clone() };
        assert_eq!(of(&mount, &[]), Vec::<String>::new());
        let mut child = std::process::Command::new("sleep").arg("60").current_dir(&path).spawn().unwrap();
        let found = of(&mount, &[]);
        let inner = MountEntry { id: 1, parent: u64::MAX, ..mount.clone() };
        let with_inner = of(&mount, &[inner]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found, vec![format!("process {} (sleep): current directory", child.id())]);
        assert!(with_inner[0].contains("mounted inside"), "{with_inner:?}");
    }
}
