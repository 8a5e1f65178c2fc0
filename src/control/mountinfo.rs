//! The kernel's list of mounts (`/proc/self/mountinfo`), and which of them a path lies on.
//!
//! Pure but for [`read`]. The walk follows parents as the kernel does, so a mount that is hidden under a later one is
//! never taken for the one that is seen.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The type our mounts show.
pub const FSTYPE: &str = "fuse.tierfs";

/// One line of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    pub id: u64,
    pub parent: u64,
    /// `major:minor`; equal for all mounts of one filesystem, bind mounts included.
    pub device: String,
    /// The directory of the filesystem that is seen at the mount point: `/`, or deeper for a bind mount.
    pub root: PathBuf,
    pub mount_point: PathBuf,
    pub fstype: String,
    pub source: OsString,
}

impl MountEntry {
    /// Whether this is a mount of ours.
    pub fn is_tierfs(&self) -> bool {
        self.fstype == FSTYPE
    }

    /// `path` (absolute, on this mount) relative to the root of the filesystem; the root itself is empty.
    pub fn inside(&self, path: &Path) -> Option<PathBuf> {
        let below = path.strip_prefix(&self.mount_point).ok()?;
        let root = self.root.strip_prefix("/").unwrap_or(&self.root);
        // Joining an empty path would add a slash, which matters when the mount point is a file.
        Some(if below.as_os_str().is_empty() { root.to_owned() } else { root.join(below) })
    }

    /// The path by which a file of the filesystem is seen on this mount; `None` outside a bind mount's part.
    pub fn outside(&self, inside: &Path) -> Option<PathBuf> {
        let below = Path::new("/").join(inside).strip_prefix(&self.root).ok()?.to_owned();
        Some(if below.as_os_str().is_empty() { self.mount_point.clone() } else { self.mount_point.join(below) })
    }
}

/// The mounts this process sees.
pub fn read() -> std::io::Result<Vec<MountEntry>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// Parses the list; lines in a form unknown to us are left out.
pub fn parse(text: &[u8]) -> Vec<MountEntry> {
    text.split(|b| *b == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    // id parent major:minor root mount_point options [optional fields …] - fstype source super_options
    let mut fields = line.split(|b| *b == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let device = text(fields.next()?)?;
    let root = PathBuf::from(unescape(fields.next()?));
    let mount_point = PathBuf::from(unescape(fields.next()?));
    let _options = fields.next()?;
    fields.find(|field| *field == b"-")?;
    let fstype = text(fields.next()?)?;
    let source = unescape(fields.next().unwrap_or_default());
    Some(MountEntry { id, parent, device, root, mount_point, fstype, source })
}

fn text(field: &[u8]) -> Option<String> {
    String::from_utf8(field.to_vec()).ok()
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// Undoes the kernel's `\ooo` (blank, tab, line break, backslash).
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let octal =
            field.get(at + 1..at + 4).filter(|d| field[at] == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        match octal.and_then(|d| u8::try_from(d.iter().fold(0u32, |sum, b| sum * 8 + u32::from(b - b'0'))).ok()) {
            Some(byte) => {
                bytes.push(byte);
                at += 4;
            }
            None => {
                bytes.push(field[at]);
                at += 1;
            }
        }
    }
    OsString::from_vec(bytes)
}

/// The mount that `path` (absolute, canonical) is seen on.
pub fn covering<'m>(mounts: &'m [MountEntry], path: &Path) -> Option<&'m MountEntry> {
    let is_top = |m: &&MountEntry| !mounts.iter().any(|other| other.id == m.parent && other.id != m.id);
    let Some(mut current) = mounts.iter().find(|m| m.mount_point == Path::new("/") && is_top(m)) else {
        // A view without its root (some chroots): the deepest mount point, the latest among equals.
        return mounts
            .iter()
            .filter(|m| path.starts_with(&m.mount_point))
            .max_by_key(|m| m.mount_point.as_os_str().len());
    };
    // As the kernel walks: from each mount into the child that is met first on the way, the latest of stacked ones.
    // Every step goes to a child and nobody is its own ancestor, so the length of the list bounds it.
    for _ in 0..mounts.len() {
        let children =
            mounts.iter().filter(|m| m.parent == current.id && m.id != current.id && path.starts_with(&m.mount_point));
        let Some(next) = children.rev().min_by_key(|m| m.mount_point.as_os_str().len()) else { break };
        current = next;
    }
    Some(current)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:5 / /dev rw - devtmpfs devtmpfs rw
40 22 0:50 / /mnt/tiered rw,nosuid,nodev shared:7 master:2 - fuse.tierfs /srv/share rw,user_id=0
41 22 0:50 /sub\\040dir/deep /mnt/bind rw - fuse.tierfs /srv/share rw
42 22 0:50 /sub\\040dir/file /mnt/one\\011file rw - fuse.tierfs /srv/share rw
43 40 0:60 / /mnt/tiered/inner rw - tmpfs none rw
44 22 0:51 / /mnt/odd\\134name\\012x rw - fuse.tierfs /srv/b rw
45 22 0:61 / /data rw - tmpfs none rw
46 22 0:52 / /data/t rw - fuse.tierfs /srv/hidden rw
47 22 0:53 / /stack rw - fuse.tierfs /srv/lower rw
48 47 0:62 / /stack rw - tmpfs none rw
49 22 0:63 / /twice rw - tmpfs none rw
50 22 0:54 / /twice rw - fuse.tierfs /srv/c rw
not a line
";

    #[test]
    fn paths_lie_where_the_kernel_walks() {
        let mounts = parse(LIST.as_bytes());
        assert_eq!(mounts.len(), 13);
        for (path, id, inside) in [
            ("/etc/passwd", 22, "etc/passwd"),
            ("/mnt/tiered", 40, ""),
            ("/mnt/tiered/a/b", 40, "a/b"),
            ("/mnt/tieredx", 22, "mnt/tieredx"),
            ("/mnt/tiered/inner/x", 43, "x"),
            ("/mnt/bind", 41, "sub dir/deep"),
            ("/mnt/bind/x", 41, "sub dir/deep/x"),
            ("/mnt/one\tfile", 42, "sub dir/file"),
            ("/mnt/odd\\name\nx/y", 44, "y"),
            // Two mounts hang on the root; /data is met first on the way and hides /data/t below it.
            ("/data/t/x", 45, "t/x"),
            ("/stack/x", 48, "x"),
            ("/twice/x", 50, "x"),
        ] {
            let found = covering(&mounts, Path::new(path)).unwrap();
            assert_eq!(found.id, id, "{path}");
            let got = found.inside(Path::new(path)).unwrap();
            assert_eq!(got, Path::new(inside), "{path}");
            assert_eq!(found.outside(&got).as_deref(), Some(Path::new(path)), "{path}");
        }
        assert_eq!(mounts[3].outside(Path::new("elsewhere")), None);
        assert!(mounts[2].is_tierfs() && !mounts[0].is_tierfs());
        assert_eq!(mounts[2].source, "/srv/share");
    }

    #[test]
    fn a_list_without_its_root_still_answers() {
        let mounts = parse(b"40 22 0:50 / /mnt rw - fuse.tierfs x rw\n41 40 0:51 / /mnt/in rw - fuse.tierfs y rw\n");
        assert_eq!(covering(&mounts, Path::new("/mnt/in/x")).unwrap().id, 41);
        assert_eq!(covering(&mounts, Path::new("/srv")), None);
    }

    #[test]
    fn stray_escapes_stay_as_they_are() {
        for (field, want) in
            [("a\\040b", "a b"), ("a\\04", "a\\04"), ("\\", "\\"), ("\\999", "\\999"), ("\\777x", "\\777x")]
        {
            assert_eq!(unescape(field.as_bytes()), want, "{field:?}");
        }
    }

    #[test]
    fn this_process_has_mounts() {
        let mounts = read().unwrap();
        assert!(covering(&mounts, Path::new("/proc/self")).is_some());
    }
}
