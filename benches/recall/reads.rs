//! What is read, and what it takes.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
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

/// With latency, one in so many files is read: it adds nothing but time to what a smaller number shows.
const FEWER_HEADS: usize = 8;
const FEWER_SMALL: usize = 4;
const FEWER_SMALL_ONE_BY_ONE: usize = 20;

/// Rows that are measured together, of the same reads.
struct Group<'a> {
    titles: Vec<(String, &'static str, Better)>,
    set: &'a Set,
    sides: &'a [Side],
    sample: &'a dyn Fn(Side) -> Result<Sample>,
}

/// All that is measured at one latency.
struct Measuring<'a> {
    store: &'a Store,
    sides: &'a Sides,
    rounds: usize,
    latency_ms: u64,
    rows: &'a mut Vec<Row>,
}

impl Measuring<'_> {
    /// What was measured before an error stays among the rows.
    fn group(&mut self, group: &Group<'_>) -> Result<()> {
        let titles = group.titles.iter();
        let mut found: Vec<Row> =
            titles.map(|(name, unit, better)| Row::new(name, unit, *better, self.latency_ms)).collect();
        let ended = self.rounds(group, &mut found);
        found.retain(Row::is_measured);
        found.iter().for_each(|row| rig::progress(&row.line()));
        self.rows.extend(found);
        ended
    }

    fn rounds(&self, group: &Group<'_>, found: &mut [Row]) -> Result<()> {
        for round in 0..=self.rounds {
            for turn in 0..group.sides.len() {
                let side = group.sides[(round + turn) % group.sides.len()];
                rig::check_interrupted()?;
                self.sides.chill(self.store, side, group.set)?;
                let values = (group.sample)(side).map_err(|error| format!("{}: {error}", side.name()))?;
                // The first round warms up.
                if round > 0 {
                    found.iter_mut().zip(values).for_each(|(row, value)| row.samples[side as usize].extend(value));
                }
            }
        }
        Ok(())
    }
}

/// Measures at one latency. `rows` gets what was measured, also when this ends early.
pub fn measure(store: &Store, sides: &Sides, rounds: usize, latency_ms: u64, rows: &mut Vec<Row>) -> Result<()> {
    let mut measuring = Measuring { store, sides, rounds, latency_ms, rows };
    let large = &store.large;
    let large_gb = large.len as f64 / 1e9;
    let size = large.len / MIB;
    let few = |set: &Set, part: usize| {
        let part = if latency_ms == 0 { 1 } else { part };
        Set { names: set.names[..set.names.len().div_ceil(part)].to_vec(), len: set.len }
    };
    measuring.group(&Group {
        titles: vec![
            (format!("first byte of {size} MiB"), "ms", Better::Less),
            (format!("{size} MiB from end to end"), "MB/s", Better::More),
            (format!("CPU that reading {size} MiB takes"), "s/GB", Better::Less),
            (format!("memory that reading {size} MiB takes"), "MiB", Better::Less),
        ],
        set: large,
        sides: &SIDES,
        sample: &|side| {
            let read = end_to_end(sides, side, large)?;
            Ok(vec![
                Some(read.first.as_secs_f64() * 1e3),
                Some(large_gb * 1e3 / read.whole.as_secs_f64()),
                Some(read.cpu_s / large_gb),
                read.grown_mib,
            ])
        },
    })?;
    let percentiles = |mut took: Vec<Duration>| {
        took.sort();
        let at = |part: usize| Some(took[(took.len() * part / 100).min(took.len() - 1)].as_secs_f64() * 1e3);
        vec![at(50), at(95)]
    };
    let random_titles = |how: &str| {
        ["median", "95 of 100"].map(|what| (format!("random 128 KiB of {size} MiB{how}, {what}"), "ms", Better::Less))
    };
    measuring.group(&Group {
        titles: random_titles("").to_vec(),
        set: large,
        sides: &SIDES,
        sample: &|side| Ok(percentiles(random(sides, side, large)?)),
    })?;
    measuring.group(&Group {
        titles: random_titles(", `progressive`").to_vec(),
        set: large,
        sides: &[Side::Tierfs],
        sample: &|side| {
            let _all = Progressive::new(sides)?;
            Ok(percentiles(random(sides, side, large)?))
        },
    })?;
    let heads = few(&store.heads, FEWER_HEADS);
    let count = heads.names.len();
    measuring.group(&Group {
        titles: vec![(format!("first MiB of {count} files of 4 MiB"), "files/s", Better::More)],
        set: &heads,
        sides: &SIDES,
        sample: &|side| Ok(vec![Some(count as f64 / all(sides, side, &heads, MIB.min(HEAD_BYTES), 1)?.as_secs_f64())]),
    })?;
    for (readers, fewer) in [(1, FEWER_SMALL_ONE_BY_ONE), (READERS, FEWER_SMALL)] {
        let small = few(&store.small, fewer);
        let count = small.names.len();
        measuring.group(&Group {
            titles: vec![(format!("{count} files of 64 KiB, {readers} at a time"), "files/s", Better::More)],
            set: &small,
            sides: &SIDES,
            sample: &|side| {
                Ok(vec![Some(count as f64 / all(sides, side, &small, SMALL_BYTES, readers)?.as_secs_f64())])
            },
        })?;
    }
    Ok(())
}

/// Reads of stubs bring back the rest in the background, until this is dropped.
struct Progressive(PathBuf);

impl Progressive {
    const NAME: &str = "user.tierfs.recall_policy";

    fn new(sides: &Sides) -> Result<Self> {
        let root = sides.mount(Side::Tierfs).ok_or("tierfs has no mount")?.path.clone();
        rustix::fs::setxattr(&root, Self::NAME, b"progressive", rustix::fs::XattrFlags::empty())
            .map_err(said("setting the policy of reads"))?;
        Ok(Self(root))
    }
}

impl Drop for Progressive {
    fn drop(&mut self) {
        // The mount ends with the run.
        let _ = rustix::fs::removexattr(&self.0, Self::NAME);
    }
}

/// What a read of the large file took.
struct WholeRead {
    first: Duration,
    whole: Duration,
    /// Of the process that serves it; of the bare loop, its own.
    cpu_s: f64,
    /// By how many MiB the daemon grew; the bare loop is none.
    grown_mib: Option<f64>,
}

/// The large file, as `cat` reads it: until its first byte, until its last.
fn end_to_end(sides: &Sides, side: Side, set: &Set) -> Result<WholeRead> {
    let name = &set.names[0];
    let Some(mount) = sides.mount(side) else {
        let before = own_cpu_s();
        let first = sides.bare.first_byte(name, 0, BLOCK as u64)?;
        let whole = sides.bare.whole(name, set.len)?;
        return Ok(WholeRead { first, whole, cpu_s: own_cpu_s() - before, grown_mib: None });
    };
    let failed = said("reading");
    let daemon = mount.daemon.child.id();
    // Makes the kernel forget the highest resident size so far.
    fs::write(format!("/proc/{daemon}/clear_refs"), "5").map_err(&failed)?;
    let (memory, cpu_s) = (memory_mib(daemon, "VmRSS:")?, mount.daemon.cpu_s());
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
    let grown_mib = Some(memory_mib(daemon, "VmHWM:")? - memory);
    Ok(WholeRead { first, whole, cpu_s: mount.daemon.cpu_s() - cpu_s, grown_mib })
}

/// User and system time of this process so far, in seconds.
fn own_cpu_s() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
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
