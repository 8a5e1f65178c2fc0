//! Names and attributes: calls per second on each side, one thread.
//!
//! Each side works in a directory of its own, so no side meets what another has cached. "Cold" is after the kernel dropped its caches of
//! names, inodes and pages, of all filesystems.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::report::Report;
use super::rig::{self, Result, Target, said};
use super::sides::{Side, Sides};

/// Entries of the large directory.
const MANY: usize = 100_000;
/// Small files that are opened and looked at.
const FILES: usize = 2_000;
/// Files made and removed in one sample.
const MADE: usize = 500;

/// Makes what all sides look at.
pub fn prepare(share: &Path) -> Result<()> {
    let many = share.join("many");
    fs::create_dir(&many).map_err(said("many"))?;
    for n in 0..MANY {
        File::create_new(many.join(format!("entry-{n:06}"))).map_err(said("many"))?;
    }
    let files = share.join("files");
    fs::create_dir(&files).map_err(said("files"))?;
    for n in 0..FILES {
        fs::write(files.join(format!("file-{n:04}")), [n as u8; 4096]).map_err(said("files"))?;
    }
    Ok(())
}

/// Has the kernel drop all it can.
pub fn drop_caches(below: &rig::LoopFs) -> std::io::Result<()> {
    below.sync().map_err(std::io::Error::other)?;
    fs::write("/proc/sys/vm/drop_caches", "3")
}

/// `count` of something per second of `work`.
fn rate(count: usize, work: impl FnOnce() -> std::io::Result<()>) -> std::io::Result<f64> {
    let began = Instant::now();
    work()?;
    Ok(count as f64 / began.elapsed().as_secs_f64())
}

fn names(directory: &Path, what: &str, count: usize) -> Vec<PathBuf> {
    (0..count).map(|n| directory.join(format!("{what}-{n:04}"))).collect()
}

fn list(directory: &Path) -> std::io::Result<()> {
    let listed = fs::read_dir(directory)?.count();
    if listed == MANY { Ok(()) } else { Err(std::io::Error::other(format!("{listed} of {MANY} entries listed"))) }
}

fn open(side: &Side) -> std::io::Result<Vec<f64>> {
    let path = side.root.join("cached");
    Ok(vec![rate(FILES, || (0..FILES).try_for_each(|_| File::open(&path).map(drop)))?])
}

/// Makes, renames and removes files: a rate each.
fn life(side: &Side) -> std::io::Result<Vec<f64>> {
    let home = side.home();
    let (old, new) = (names(&home, "made", MADE), names(&home, "moved", MADE));
    let created = rate(MADE, || {
        old.iter().try_for_each(|name| {
            let mut file = File::create_new(name)?;
            file.write_all(&[7; 1024])
        })
    })?;
    let changed =
        rate(MADE, || old.iter().try_for_each(|name| fs::set_permissions(name, fs::Permissions::from_mode(0o600))))?;
    let renamed = rate(MADE, || old.iter().zip(&new).try_for_each(|(old, new)| fs::rename(old, new)))?;
    let removed = rate(MADE, || new.iter().try_for_each(fs::remove_file))?;
    Ok(vec![created, changed, renamed, removed])
}

fn directories(side: &Side) -> std::io::Result<Vec<f64>> {
    let names = names(&side.home(), "dir", MADE);
    let rate =
        rate(MADE, || names.iter().try_for_each(|name| fs::create_dir(name).and_then(|()| fs::remove_dir(name))));
    Ok(vec![rate?])
}

/// Measures every call and adds its rows.
pub fn measure(sides: &Sides, samples: usize, report: &mut Report) -> Result<()> {
    const STATS: usize = 20_000;
    sides.measure(&[("stat one file, warm", "/s", Target::Ratio(0.8))], samples, false, report, |side, _| {
        let path = side.root.join("cached");
        Ok(vec![rate(STATS, || (0..STATS).try_for_each(|_| fs::metadata(&path).map(drop)))?])
    })?;
    sides.measure(&[("stat 2,000 files, warm", "/s", Target::Ratio(0.8))], samples, false, report, |side, _| {
        let names = names(&side.root.join("files"), "file", FILES);
        Ok(vec![rate(FILES, || names.iter().try_for_each(|name| fs::metadata(name).map(drop)))?])
    })?;
    sides.measure(&[("open, close", "/s", Target::Ahead)], samples, false, report, |side, _| open(side))?;
    sides.measure(
        &[("open, read 4 KiB, close, 2,000 files", "/s", Target::Ahead)],
        samples,
        false,
        report,
        |side, _| {
            let names = names(&side.root.join("files"), "file", FILES);
            let mut buffer = [0; 8192];
            let rate = rate(FILES, || {
                names.iter().try_for_each(|name| match File::open(name)?.read(&mut buffer)? {
                    4096 => Ok(()),
                    other => Err(std::io::Error::other(format!("{other} bytes read"))),
                })
            })?;
            Ok(vec![rate])
        },
    )?;
    let rows = [
        ("create, write 1 KiB, close", "/s", Target::Ahead),
        ("chmod", "/s", Target::Ahead),
        ("rename", "/s", Target::Ahead),
        ("unlink", "/s", Target::Ahead),
    ];
    sides.measure(&rows, samples, true, report, |side, _| life(side))?;
    sides.measure(&[("mkdir, rmdir", "/s", Target::Ahead)], samples, true, report, |side, _| directories(side))?;
    sides.on_one_cpu(|| {
        let row = |name| (name, "/s", Target::None);
        sides.measure(&[row("open, close: all on one CPU")], samples, false, report, |side, _| open(side))?;
        let rows = ["create, write 1 KiB, close: one CPU", "chmod: one CPU", "rename: one CPU", "unlink: one CPU"];
        sides.measure(&rows.map(row), samples, true, report, |side, _| life(side))?;
        sides.measure(&[row("mkdir, rmdir: one CPU")], samples, true, report, |side, _| directories(side))
    })?;
    let few = samples.div_ceil(4);
    sides.measure(&[("readdir of 100,000 entries, warm", "/s", Target::Ahead)], few, false, report, |side, _| {
        let directory = side.root.join("many");
        list(&directory)?;
        Ok(vec![rate(MANY, || list(&directory))?])
    })?;
    sides.measure(&[("readdir of 100,000 entries, cold", "/s", Target::Ahead)], few, false, report, |side, _| {
        drop_caches(&sides.below)?;
        Ok(vec![rate(MANY, || list(&side.root.join("many")))?])
    })
}
