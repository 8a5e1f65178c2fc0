//! What `statx(2)` says, in the crate's own words, and the identity that follows from it.
//!
//! Invariant: [`birth_of`] never changes its answer for a given birth time. Node ids, NFS handles and object keys made
//! by earlier versions depend on it.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, Statx, StatxAttributes, StatxFlags, StatxTimestamp, makedev, statx};

use super::Step;
use crate::ports::{Attr, FileKind, LowerResult};
use crate::types::{FileId, Timestamp};

/// One `statx` answer: the attributes, whose they are, and on which device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stat {
    pub(super) attr: Attr,
    pub(super) id: FileId,
    pub(super) dev: (u32, u32),
}

/// Attributes of the inode behind `fd`, which may be `O_PATH`.
pub(super) fn stat_fd(fd: impl AsFd) -> LowerResult<Stat> {
    stat_at(fd, c"", AtFlags::EMPTY_PATH)
}

/// Attributes of `name` in `dir`. To be used alone, never beside a handle or descriptor from another lookup.
pub(super) fn stat_name(dir: impl AsFd, name: &std::ffi::OsStr) -> LowerResult<Stat> {
    stat_at(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT)
}

/// As [`stat_name`], of a name that ends with NUL already.
pub(super) fn stat_name_c(dir: impl AsFd, name: &std::ffi::CStr) -> LowerResult<Stat> {
    stat_at(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT)
}

fn stat_at<P: rustix::path::Arg>(fd: impl AsFd, name: P, flags: AtFlags) -> LowerResult<Stat> {
    let stx = statx(fd, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME).step("statx")?;
    let btime = if stx.stx_mask & StatxFlags::BTIME.bits() != 0 { time(&stx.stx_btime) } else { Timestamp::default() };
    let attr = attr(&stx, btime);
    let birth = if stx.stx_mask & StatxFlags::BTIME.bits() != 0 { birth_of(btime) } else { 0 };
    Ok(Stat { attr, id: FileId { ino: stx.stx_ino, birth }, dev: (stx.stx_dev_major, stx.stx_dev_minor) })
}

/// The `birth` half of a [`FileId`]: the birth time in nanoseconds since 1970 as a wrapping 64-bit number, mixed by
/// MurmurHash3's 64-bit finalizer, the top bit cleared; 1 instead of 0.
///
/// The mix is a bijection, so only the cleared bit can make two birth times meet. Mixing matters because NFS keeps the
/// low 32 bits of it as the generation, and kernels stamp in steps of a clock tick.
pub(super) fn birth_of(btime: Timestamp) -> u64 {
    let nanos = btime.secs.wrapping_mul(1_000_000_000).wrapping_add(i64::from(btime.nanos));
    let mut mixed = nanos as u64;
    mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    ((mixed ^ (mixed >> 33)) & (u64::MAX >> 1)).max(1)
}

/// The kind an inode's mode word tells.
pub(super) fn kind_of(file_type: FileType) -> Option<FileKind> {
    Some(match file_type {
        FileType::RegularFile => FileKind::Regular,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::CharacterDevice => FileKind::CharDevice,
        FileType::BlockDevice => FileKind::BlockDevice,
        FileType::Unknown => return None,
    })
}

fn attr(stx: &Statx, btime: Timestamp) -> Attr {
    let raw_mode = u32::from(stx.stx_mode);
    Attr {
        ino: stx.stx_ino,
        // A mode word without a type would be a broken filesystem; a socket is what nobody can open.
        kind: kind_of(FileType::from_raw_mode(raw_mode)).unwrap_or(FileKind::Socket),
        mode: raw_mode & 0o7777,
        nlink: stx.stx_nlink,
        uid: stx.stx_uid,
        gid: stx.stx_gid,
        rdev: makedev(stx.stx_rdev_major, stx.stx_rdev_minor),
        size: stx.stx_size,
        blocks: stx.stx_blocks,
        block_size: stx.stx_blksize,
        atime: time(&stx.stx_atime),
        mtime: time(&stx.stx_mtime),
        ctime: time(&stx.stx_ctime),
        btime,
        sealed: stx.stx_attributes.intersects(StatxAttributes::IMMUTABLE | StatxAttributes::APPEND),
        fleeting: false,
    }
}

fn time(stamp: &StatxTimestamp) -> Timestamp {
    Timestamp { secs: stamp.tv_sec, nanos: stamp.tv_nsec }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn birth_never_changes() {
        let at = |secs, nanos| birth_of(Timestamp { secs, nanos });
        // Golden values: a change here makes every stored node id and key meaningless.
        assert_eq!(at(0, 0), 1);
        assert_eq!(at(0, 1), 0x3456_bcfc_34c2_cb2c);
        assert_eq!(at(1_700_000_000, 123_456_789), 0x4b24_25e9_9a5f_17e9);
        assert_eq!(at(-1, 999_999_999), 0x64b5_720b_4b82_5f21);
        assert_eq!(at(i64::MAX, 999_999_999), 0x64b5_720b_4b82_5f21);
    }

    #[test]
    fn birth_tells_neighbours_apart_in_32_bits() {
        let mut seen = std::collections::HashSet::new();
        for tick in 0..100_000u32 {
            let btime = Timestamp { secs: 1_700_000_000 + i64::from(tick / 250), nanos: tick % 250 * 4_000_000 };
            seen.insert(birth_of(btime) as u32);
        }
        assert!(seen.len() > 99_990, "{} of 100000 distinct", seen.len());
    }
}
