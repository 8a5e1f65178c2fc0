//! What is read, and what it takes.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::rig::{self, Result, said};
use super::sides::{HEAD_BYTES, SIDES, SMALL_BYTES, Set, Side, Sides, Store};
use super::table::{Better, Row};

const MIB: u64 = 1 << 20;
/// A read of a program, and of the random ones.
const BLOCK: usize = 128 << 10;
/// Random reads in a round.
const RANDOM: usize = 100;
/// Readers of small files at a time.
const READERS: usize = 16;

/// What one side's sample gave for the rows of a group; memory is missing where there is no daemon.
type Sample = Vec<Option<f64>>;

pub fn measure(store: &Store, sides: &Sides, rounds: usize, latency_ms: u64) -> Result<Vec<Row>> {
    let large_mb = store.large.len as f64 / 1e6;
    // Latency adds nothing to what a smaller number shows, but time.
    let few = |set: &Set| {
        let part = if latency_ms == 0 { 1 } else { 4 };
        Set { names: set.names[..set.names.len().div_ceil(part)].to_vec(), len: set.len }
    };
    let (heads, small) = (few(&store.heads), few(&store.small));
    let size = store.large.len / MIB;
    let mut rows = Vec::new();
    let mut group = |titles: &[(String, &'static str, Better)], set: &Set, sample: &dyn Fn(Side) -> Result<Sample>| {
        let mut found: Vec<Row> =
            titles.iter().map(|(name, unit, better)| Row::new(name, unit, *better, latency_ms)).collect();
        for round in 0..=rounds {
            for turn in 0..SIDES.len() {
                let at = (round + turn) % SIDES.len();
                rig::check_interrupted()?;
                sides.chill(store, SIDES[at], set)?;
                let values = sample(SIDES[at]).map_err(|error| format!("{}: {error}", SIDES[at].name()))?;
                // The first round warms up.
                if round > 0 {
                    found.iter_mut().zip(values).for_each(|(row, value)| row.samples[at].extend(value));
                }
            }
        }
        found.iter().for_each(|row| rig::progress(&row.line()));
        rows.extend(found);
        Ok::<(), String>(())
    };
    group(
        &[
            (format!("first byte of {size} MiB"), "ms", Better::Less),
            (format!("{size} MiB from end to end"), "MB/s", Better::More),
            (format!("memory that reading {size} MiB takes"), "MiB", Better::Less),
        ],
        &store.large,
        &|side| {
            let (first, whole, grown) = end_to_end(sides, side, &store.large)?;
            Ok(vec![Some(first.as_secs_f64() * 1e3), Some(large_mb / whole.as_secs_f64()), grown])
        },
    )?;
    group(
        &[
            (format!("random 128 KiB of {size} MiB, median"), "ms", Better::Less),
            (format!("random 128 KiB of {size} MiB, 95 of 100"), "ms", Better::Less),
        ],
        &store.large,
        &|side| {
            let mut took = random(sides, side, &store.large)?;
            took.sort();
            let at = |part: usize| Some(took[(took.len() * part / 100).min(took.len() - 1)].as_secs_f64() * 1e3);
            Ok(vec![at(50), at(95)])
        },
    )?;
    let count = heads.names.len();
    group(&[(format!("first MiB of {count} files of 4 MiB"), "files/s", Better::More)], &heads, &|side| {
        Ok(vec![Some(count as f64 / all(sides, side, &heads, MIB.min(HEAD_BYTES), 1)?.as_secs_f64())])
    })?;
    let count = small.names.len();
    for readers in [1, READERS] {
        let name = format!("{count} files of 64 KiB, {readers} at a time");
        group(&[(name, "files/s", Better::More)], &small, &|side| {
            Ok(vec![Some(count as f64 / all(sides, side, &small, SMALL_BYTES, readers)?.as_secs_f64())])
        })?;
    }
    Ok(rows)
}

/// The large file, as `cat` reads it: until its first byte, until its last, and by how many MiB its daemon grew.
fn end_to_end(sides: &Sides, side: Side, set: &Set) -> Result<(Duration, Duration, Option<f64>)> {
    let name = &set.names[0];
    let Some(mount) = sides.mount(side) else {
        let first = sides.bare.first_byte(name, 0, BLOCK as u64)?;
        return Ok((first, sides.bare.whole(name, set.len)?, None));
    };
    let failed = said("reading");
    let daemon = mount.daemon.child.id();
    // Makes the kernel forget the highest resident size so far.
    fs::write(format!("/proc/{daemon}/clear_refs"), "5").map_err(&failed)?;
    let before = memory_mib(daemon, "VmRSS:")?;
    let mut buffer = vec![0; BLOCK];
    let began = Instant::now();
    let mut file = File::open(mount.path.join(name)).map_err(&failed)?;
    file.read_exact(&mut buffer[..1]).map_err(&failed)?;
    let first = began.elapsed();
    let mut len = 1;
    loop {
        match file.read(&mut buffer).map_err(&failed)? {
            0 => break,
            n => len += n as u64,
        }
    }
    let whole = began.elapsed();
    if len != set.len {
        return Err(format!("{name}: {len} bytes read of {}", set.len));
    }
    Ok((first, whole, Some(memory_mib(daemon, "VmHWM:")? - before)))
}

fn memory_mib(pid: u32, field: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(said("memory of a daemon"))?;
    let kib = status.lines().find_map(|line| line.strip_prefix(field)?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    kib.map(|kib| kib / 1024.0).ok_or_else(|| format!("{field} is missing"))
}

/// Reads of 128 KiB anywhere, one after the other, on a file that was opened before: the same places for every side.
fn random(sides: &Sides, side: Side, set: &Set) -> Result<Vec<Duration>> {
    let failed = said("reading");
    let name = &set.names[0];
    let file = sides.mount(side).map(|mount| File::open(mount.path.join(name))).transpose().map_err(&failed)?;
    let mut places = blake3::Hasher::new().finalize_xof();
    let mut buffer = vec![0; BLOCK];
    let mut read = || {
        let mut number = [0; 8];
        places.fill(&mut number);
        let offset = u64::from_le_bytes(number) % (set.len / BLOCK as u64) * BLOCK as u64;
        let began = Instant::now();
        match &file {
            Some(file) => file.read_exact_at(&mut buffer, offset).map_err(&failed)?,
            None => drop(sides.bare.range(name, offset, BLOCK as u64)?),
        }
        Ok(began.elapsed())
    };
    (0..RANDOM).map(|_| read()).collect()
}

/// The first `len` bytes of every file, opened and closed, by so many readers.
fn all(sides: &Sides, side: Side, set: &Set, len: u64, readers: usize) -> Result<Duration> {
    let Some(mount) = sides.mount(side) else {
        let ranges = set.names.iter().map(|name| (name.clone(), 0, len)).collect();
        return sides.bare.all(ranges, readers as u64);
    };
    let next = AtomicUsize::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..readers)
            .map(|_| {
                scope.spawn(|| {
                    let mut buffer = vec![0; len as usize];
                    while let Some(name) = set.names.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let mut file = File::open(mount.path.join(name)).map_err(said(name))?;
                        file.read_exact(&mut buffer).map_err(said(name))?;
                    }
                    Ok::<(), String>(())
                })
            })
            .collect();
        readers.into_iter().try_for_each(|reader| reader.join().map_err(|_| "a reader panicked".to_owned())?)
    })?;
    Ok(began.elapsed())
}
