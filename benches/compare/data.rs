//! Content of resident files: the same bytes read and written on each side.
//!
//! One thread a side; whose turn is first goes round. Writes start with clean pages. What is measured is overhead, so the share
//! lies in memory: there a call costs least and whatever is added shows most.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

use super::report::Report;
use super::rig::{self, Result, Target, said};
use super::sides::{Side, Sides};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const FILE_BYTES: usize = 128 * MIB;
/// Alignment that O_DIRECT asks for.
const ALIGN: usize = 4096;

/// What is done in one sample, `count` times.
struct Case {
    name: &'static str,
    block: usize,
    count: usize,
    write: bool,
    random: bool,
    direct: bool,
}

const fn case(name: &'static str, block: usize, count: usize, flags: [bool; 3]) -> Case {
    let [write, random, direct] = flags;
    Case { name, block, count, write, random, direct }
}

const CASES: [Case; 10] = [
    case("read 1 MiB, sequential, cached", MIB, 128, [false, false, false]),
    case("write 1 MiB, sequential, cached", MIB, 128, [true, false, false]),
    case("read 4 KiB, sequential, cached", 4 * KIB, 32_768, [false, false, false]),
    case("write 4 KiB, sequential, cached", 4 * KIB, 16_384, [true, false, false]),
    case("read 4 KiB, random, cached", 4 * KIB, 32_768, [false, true, false]),
    case("write 4 KiB, random, cached", 4 * KIB, 16_384, [true, true, false]),
    case("read 1 MiB, O_DIRECT", MIB, 128, [false, false, true]),
    case("write 1 MiB, O_DIRECT", MIB, 128, [true, false, true]),
    case("read 4 KiB, random, O_DIRECT", 4 * KIB, 2_048, [false, true, true]),
    case("write 4 KiB, random, O_DIRECT", 4 * KIB, 2_048, [true, true, true]),
];

/// Rows of the mapped file, by fio: pages are touched without a call, which no safe Rust can do.
const MAPPED: [(&str, &str); 2] = [("read 4 KiB, mmap, sequential", "read"), ("read 4 KiB, mmap, random", "randread")];

/// Wanted of blocks of so many bytes.
fn target(block: usize) -> Target {
    Target::Ratio(if block == MIB { 0.97 } else { 0.85 })
}

/// Makes the files all sides read and write.
pub fn prepare(share: &Path) -> Result<()> {
    let mut block = vec![0; MIB];
    blake3::Hasher::new().finalize_xof().fill(&mut block);
    for name in ["cached", "direct"] {
        let file = File::create_new(share.join(name)).map_err(said(name))?;
        for index in 0..FILE_BYTES / MIB {
            file.write_all_at(&block, (index * MIB) as u64).map_err(said(name))?;
        }
        file.sync_all().map_err(said(name))?;
    }
    Ok(())
}

/// Where each operation of a sample goes: the same for every side.
fn offsets(case: &Case, seed: u64) -> Vec<u64> {
    let blocks = (FILE_BYTES / case.block) as u64;
    let mut state = seed | 1;
    let at = |n: usize| {
        if !case.random {
            return n as u64 % blocks;
        }
        // xorshift64: no pattern that readahead could guess.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % blocks
    };
    (0..case.count).map(at).map(|n| n * case.block as u64).collect()
}

/// MB/s of one sample.
fn sample(case: &Case, side: &Side, number: usize, buffer: &mut [u8]) -> std::io::Result<Vec<f64>> {
    let (name, flags) = if case.direct { ("direct", rustix::fs::OFlags::DIRECT.bits() as i32) } else { ("cached", 0) };
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(side.root.join(name))?;
    let offsets = offsets(case, 0x9E37_79B9_7F4A_7C15 ^ number as u64);
    let buffer = &mut buffer[..case.block];
    if !case.write && !case.direct {
        // A side with a page cache of its own starts with it filled, too.
        (0..FILE_BYTES / case.block).try_for_each(|n| file.read_exact_at(buffer, (n * case.block) as u64))?;
    }
    let began = Instant::now();
    for offset in offsets {
        if case.write { file.write_all_at(buffer, offset)? } else { file.read_exact_at(buffer, offset)? }
    }
    Ok(vec![(case.count * case.block) as f64 / 1e6 / began.elapsed().as_secs_f64()])
}

/// MB/s that fio reads through a mapping.
fn mapped(how: &str, side: &Side) -> std::io::Result<Vec<f64>> {
    let mut fio = rig::command("fio");
    fio.args(["--name=mapped", "--ioengine=mmap", "--bs=4k", "--invalidate=0", "--loops=4", "--output-format=json"])
        .arg(format!("--rw={how}"))
        .arg(format!("--size={FILE_BYTES}"))
        .arg(format!("--filename={}", side.root.join("cached").display()));
    let said = rig::run(&mut fio).map_err(std::io::Error::other)?;
    let json: serde_json::Value = serde_json::from_str(&said)?;
    let rate = json["jobs"][0]["read"]["bw_bytes"].as_f64().filter(|rate| *rate > 0.0);
    Ok(vec![rate.ok_or_else(|| std::io::Error::other("fio gave no rate"))? / 1e6])
}

/// Measures every case and adds a row for each.
pub fn measure(sides: &Sides, samples: usize, report: &mut Report) -> Result<()> {
    let mut space = vec![0; MIB + ALIGN];
    let buffer = aligned(&mut space);
    blake3::Hasher::new().finalize_xof().fill(buffer);
    for case in &CASES {
        let row = [(case.name, "MB/s", target(case.block))];
        sides.measure(&row, samples, case.write, report, |side, number| sample(case, side, number, buffer))?;
    }
    for (name, how) in MAPPED {
        let row = [(name, "MB/s", target(4 * KIB))];
        sides.measure(&row, samples.div_ceil(3), false, report, |side, _| mapped(how, side))?;
    }
    Ok(())
}

/// The first MiB of `space` that starts where O_DIRECT wants it.
fn aligned(space: &mut [u8]) -> &mut [u8] {
    let skip = space.as_ptr().align_offset(ALIGN);
    &mut space[skip..skip + MIB]
}
