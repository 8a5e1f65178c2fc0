//! Between the kernel's types and ours.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};

use crate::ports::{Attr, FileKind, OpenFlags, SetTime};
use crate::types::Timestamp;

pub fn kind_to_kernel(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// The kind in the type bits of a mode; `None` for bits that mean nothing.
pub fn kind_of_mode(mode: u32) -> Option<FileKind> {
    Some(match mode & libc::S_IFMT {
        // mknod(2): no type means a regular file.
        0 | libc::S_IFREG => FileKind::Regular,
        libc::S_IFIFO => FileKind::Fifo,
        libc::S_IFSOCK => FileKind::Socket,
        libc::S_IFCHR => FileKind::CharDevice,
        libc::S_IFBLK => FileKind::BlockDevice,
        _ => return None,
    })
}

fn time_to_kernel(time: Timestamp) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(time.nanos));
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    if time.secs >= 0 { UNIX_EPOCH + whole + nanos } else { UNIX_EPOCH - whole + nanos }
}

fn time_from_kernel(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp { secs: after.as_secs() as i64, nanos: after.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            match before.subsec_nanos() {
                0 => Timestamp { secs: -(before.as_secs() as i64), nanos: 0 },
                nanos => Timestamp { secs: -(before.as_secs() as i64) - 1, nanos: 1_000_000_000 - nanos },
            }
        }
    }
}

pub fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(time_from_kernel(time)),
    }
}

/// A device number in the kernel's 32-bit form (`new_encode_dev`).
fn device_to_kernel(device: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The reverse of the kernel's 32-bit form.
pub fn device_from_kernel(device: u32) -> u64 {
    rustix::fs::makedev((device & 0xf_ff00) >> 8, (device & 0xff) | ((device >> 12) & 0xf_ff00))
}

pub fn attr_to_kernel(id: u64, attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(id),
        size: attr.size,
        blocks: attr.blocks,
        atime: time_to_kernel(attr.atime),
        mtime: time_to_kernel(attr.mtime),
        ctime: time_to_kernel(attr.ctime),
        crtime: time_to_kernel(attr.btime),
        kind: kind_to_kernel(attr.kind),
        perm: attr.mode as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: device_to_kernel(attr.rdev),
        blksize: attr.block_size,
        flags: 0,
    }
}

/// The flags of open(2).
/// `__FMODE_EXEC` of the kernel's include/linux/fs.h, which comes with the flags of an open by execve(2).
const FMODE_EXEC: i32 = 0x20;

pub fn open_flags(flags: i32) -> OpenFlags {
    let access = flags & libc::O_ACCMODE;
    OpenFlags {
        read: access != libc::O_WRONLY,
        write: access != libc::O_RDONLY,
        truncate: flags & libc::O_TRUNC != 0,
        append: flags & libc::O_APPEND != 0,
        direct: flags & libc::O_DIRECT != 0,
        sync: flags & (libc::O_SYNC | libc::O_DSYNC) != 0,
        exclusive: flags & libc::O_EXCL != 0,
        execute: flags & FMODE_EXEC != 0,
        no_atime: false,
        no_wait: false,
        keep: Default::default(),
    }
}

#[cfg(test)]
mod tests {
    //! Conversions are exact both ways.

    use super::*;

    #[test]
    fn times_survive() {
        for (secs, nanos) in [(0, 0), (1, 5), (-1, 0), (-1, 999_999_999), (-5, 1), (5_000_000_000, 123_456_789)] {
            let time = Timestamp { secs, nanos };
            assert_eq!(time_from_kernel(time_to_kernel(time)), time);
        }
    }

    #[test]
    fn devices_survive() {
        for (major, minor) in [(0, 0), (8, 1), (253, 255), (4095, 1_048_575)] {
            let device = rustix::fs::makedev(major, minor);
            assert_eq!(device_from_kernel(device_to_kernel(device)), device);
        }
    }
}
