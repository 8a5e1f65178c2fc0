//! Resident files: the same operation on the same file, below the mount and through it, sample by sample.
//!
//! One thread alternates; who goes first alternates too. Writes start with clean pages on both sides. What is measured is
//! overhead, so the share lies in memory: there a call costs least and whatever is added shows most.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::report::{Report, Row};
use super::rig::{self, LoopFs, Mounted, Result, said};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const FILE_BYTES: usize = 128 * MIB;
/// Alignment that O_DIRECT asks for.
const ALIGN: usize = 4096;

/// What is done in one sample.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    Read { block: usize, random: bool, direct: bool },
    Write { block: usize, random: bool, direct: bool },
    Stat,
    OpenClose,
    Create,
}

/// One operation: what it is called, how often a sample does it, and the least ratio wanted.
struct Case {
    name: &'static str,
    work: Work,
    count: usize,
    target: Option<f64>,
}

const fn io(name: &'static str, work: Work, count: usize, target: Option<f64>) -> Case {
    Case { name, work, count, target }
}

const fn read(block: usize, random: bool, direct: bool) -> Work {
    Work::Read { block, random, direct }
}

const fn write(block: usize, random: bool, direct: bool) -> Work {
    Work::Write { block, random, direct }
}

const CASES: [Case; 13] = [
    io("read 1 MiB, sequential, cached", read(MIB, false, false), 128, Some(0.95)),
    io("write 1 MiB, sequential, cached", write(MIB, false, false), 128, Some(0.95)),
    io("read 4 KiB, sequential, cached", read(4 * KIB, false, false), 32_768, Some(0.8)),
    io("write 4 KiB, sequential, cached", write(4 * KIB, false, false), 16_384, Some(0.8)),
    io("read 4 KiB, random, cached", read(4 * KIB, true, false), 32_768, Some(0.8)),
    io("write 4 KiB, random, cached", write(4 * KIB, true, false), 16_384, Some(0.8)),
    io("read 1 MiB, O_DIRECT", read(MIB, false, true), 128, Some(0.95)),
    io("write 1 MiB, O_DIRECT", write(MIB, false, true), 128, Some(0.95)),
    io("read 4 KiB, O_DIRECT", read(4 * KIB, true, true), 2_048, Some(0.8)),
    io("write 4 KiB, O_DIRECT", write(4 * KIB, true, true), 2_048, Some(0.8)),
    io("stat, warm", Work::Stat, 20_000, None),
    io("open and close", Work::OpenClose, 2_000, None),
    io("create and close", Work::Create, 500, None),
];

/// The share as seen from one side, with the files open.
struct Side {
    directory: PathBuf,
    cached: File,
    direct: File,
    /// Distinguishes the names each side creates.
    name: &'static str,
}

impl Side {
    fn new(root: &Path, name: &'static str) -> Result<Self> {
        let open = |file: &str, flags: i32| {
            OpenOptions::new().read(true).write(true).custom_flags(flags).open(root.join(file)).map_err(said(file))
        };
        let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
        Ok(Self { directory: root.to_owned(), cached: open("cached", 0)?, direct: open("direct", direct)?, name })
    }

    /// Seconds that `count` operations take.
    fn time(&self, case: &Case, offsets: &[u64], buffer: &mut [u8]) -> std::io::Result<f64> {
        let file = |direct| if direct { &self.direct } else { &self.cached };
        let path = self.directory.join("cached");
        let began;
        match case.work {
            Work::Read { block, direct, .. } => {
                began = Instant::now();
                for offset in offsets {
                    file(direct).read_exact_at(&mut buffer[..block], *offset)?;
                }
            }
            Work::Write { block, direct, .. } => {
                began = Instant::now();
                for offset in offsets {
                    file(direct).write_all_at(&buffer[..block], *offset)?;
                }
            }
            Work::Stat => {
                began = Instant::now();
                for _ in 0..case.count {
                    fs::metadata(&path)?;
                }
            }
            Work::OpenClose => {
                began = Instant::now();
                for _ in 0..case.count {
                    File::open(&path)?;
                }
            }
            Work::Create => {
                let names: Vec<_> =
                    (0..case.count).map(|n| self.directory.join(format!("{}-{n}", self.name))).collect();
                began = Instant::now();
                for name in &names {
                    File::create_new(name)?;
                }
                let seconds = began.elapsed().as_secs_f64();
                names.iter().try_for_each(fs::remove_file)?;
                return Ok(seconds);
            }
        }
        Ok(began.elapsed().as_secs_f64())
    }
}

/// Where each operation of a sample goes: the same for both sides.
fn offsets(case: &Case, seed: u64) -> Vec<u64> {
    let (Work::Read { block, random, .. } | Work::Write { block, random, .. }) = case.work else { return Vec::new() };
    let blocks = (FILE_BYTES / block) as u64;
    let mut state = seed | 1;
    let at = |n: usize| {
        if !random {
            return n as u64 % blocks;
        }
        // xorshift64: no pattern that readahead could guess.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % blocks
    };
    (0..case.count).map(at).map(|n| n * block as u64).collect()
}

/// Measures every case and adds a row for each.
pub fn measure(memory: &Path, samples: usize, report: &mut Report) -> Result<()> {
    let memory = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let scratch = rig::scratch(&memory)?;
    let below = LoopFs::new(scratch.path(), "share", 1 << 30)?;
    let state = scratch.path().to_owned();
    let environment = move |command: &mut std::process::Command| {
        command.env("TIERFS_CONFIG_DIR", state.join("etc")).env("TIERFS_STATE_DIR", state.join("var"));
    };
    let mount = Mounted::new(scratch.path(), &below.path, &environment)?;
    report.resident_on = format!("ext4 on a loop device, its image on {}", rig::filesystem_of(&memory));

    let mut space = vec![0; MIB + ALIGN];
    let buffer = aligned(&mut space);
    blake3::Hasher::new().finalize_xof().fill(buffer);
    for name in ["cached", "direct"] {
        let file = File::create_new(mount.path.join(name)).map_err(said(name))?;
        for block in 0..FILE_BYTES / MIB {
            file.write_all_at(buffer, (block * MIB) as u64).map_err(said(name))?;
        }
    }
    below.sync()?;
    let sides = [Side::new(&below.path, "below")?, Side::new(&mount.path, "mount")?];

    for case in &CASES {
        let is_write = matches!(case.work, Work::Write { .. } | Work::Create);
        let cpu = mount.daemon.cpu_s();
        let mut rates = [Vec::new(), Vec::new()];
        // The first sample warms up and is thrown away.
        for sample in 0..=samples {
            rig::check_interrupted()?;
            let offsets = offsets(case, 0x9E37_79B9_7F4A_7C15 ^ sample as u64);
            for turn in 0..2 {
                let side = (sample + turn) % 2;
                if is_write {
                    below.sync()?;
                }
                let seconds = sides[side].time(case, &offsets, buffer).map_err(said(case.name))?;
                if sample > 0 {
                    rates[side].push(match case.work {
                        Work::Read { block, .. } | Work::Write { block, .. } => {
                            (case.count * block) as f64 / 1e6 / seconds
                        }
                        _ => case.count as f64 / seconds,
                    });
                }
            }
        }
        let unit = if matches!(case.work, Work::Read { .. } | Work::Write { .. }) { "MB/s" } else { "/s" };
        let [base, ours] = rates;
        let row = Row { name: case.name.into(), unit, base, ours, target: case.target };
        rig::progress(&format!("{}; the daemon used {:.2} CPU-s", row.line(), mount.daemon.cpu_s() - cpu));
        report.resident.push(row);
    }
    Ok(())
}

/// The first MiB of `space` that starts where O_DIRECT wants it.
fn aligned(space: &mut [u8]) -> &mut [u8] {
    let skip = space.as_ptr().align_offset(ALIGN);
    &mut space[skip..skip + MIB]
}
