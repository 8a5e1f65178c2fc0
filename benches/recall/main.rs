//! `make bench-recall`: how local a recall feels. Stubs read through tierfs, the same objects read through `rclone mount` and s3fs, and fetched by
//! a bare loop of ranged GETs, which is the limit; in one run, side by side, without and with latency to the endpoint.
//!
//! Invariant: in each round every side does the same with the same bytes, one right after the other, each from a cold page cache of its files;
//! who goes first changes with the round. Nothing is left behind, as in `benches/compare`, whose rig and pages these are.

mod bare;
#[allow(dead_code, reason = "shared with benches/compare, which uses all of it")]
#[path = "../compare/page.rs"]
mod page;
#[path = "../compare/plot.rs"]
mod plot;
mod proxy;
mod reads;
#[allow(dead_code, reason = "shared with benches/compare, which uses all of it")]
#[path = "../compare/rig.rs"]
mod rig;
mod sides;
mod storm;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

/// Measures reads of what is remote: tierfs, rclone mount, s3fs, and bare GETs.
#[derive(Debug, Parser)]
#[command(name = "recall")]
struct Options {
    /// Rounds that count; one more warms up.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Size of the large file, MiB.
    #[arg(long, default_value_t = 1024)]
    large_mib: u64,
    /// Files of 4 MiB whose first MiB is read.
    #[arg(long, default_value_t = 200)]
    heads: usize,
    /// Files of 64 KiB.
    #[arg(long, default_value_t = 2000)]
    small_files: usize,
    /// Latencies added to each request, ms.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 20])]
    latency_ms: Vec<u64>,
    /// Instead: single recalls of one user while another's `grep -r` goes over stubs, against an idle mount. The latency is the last of --latency-ms.
    #[arg(long)]
    storm: bool,
    /// Stubs that `grep` goes over.
    #[arg(long, default_value_t = 10_000, requires = "storm")]
    stubs: usize,
    /// Single recalls measured each time.
    #[arg(long, default_value_t = 300, requires = "storm")]
    samples: usize,
    /// Bytes of each of these files.
    #[arg(long, default_value_t = 16 << 10, requires = "storm")]
    file_bytes: usize,
    /// How many `grep` run at a time.
    #[arg(long, default_value_t = 1, requires = "storm")]
    jobs: usize,
    /// Options of the mount.
    #[arg(long, default_value = "", requires = "storm")]
    options: String,
    /// A look in about a minute: one round, 128 MiB, 20 heads, 200 files.
    #[arg(long)]
    quick: bool,
    /// Where share and endpoint lie.
    #[arg(long, default_value = "/var/tmp", value_name = "DIR")]
    disk: PathBuf,
    /// Print JSON on standard output instead of the table.
    #[arg(long)]
    json: bool,
    /// Put the table into docs/recall.md as well.
    #[arg(long)]
    write: bool,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let mut options = Options::parse();
    if options.quick {
        (options.rounds, options.large_mib, options.heads, options.small_files) = (1, 128, 20, 200);
    }
    rig::inside_namespace(|| if options.storm { storm(&options) } else { run(&options) })
}

fn storm(options: &Options) -> rig::Result<()> {
    rig::watch_signals()?;
    let storm = storm::Storm {
        stubs: options.stubs,
        samples: options.samples,
        bytes: options.file_bytes,
        jobs: options.jobs,
        options: options.options.clone(),
        latency: Duration::from_millis(options.latency_ms.last().copied().unwrap_or(0)),
        rounds: options.rounds,
    };
    storm::run(&storm, &options.disk, options.json, options.write)
}

fn run(options: &Options) -> rig::Result<()> {
    if options.write && (options.quick || options.rounds < 3) {
        return Err("--write takes a run of 3 rounds or more".into());
    }
    rig::watch_signals()?;
    let began = Instant::now();
    let sizes = sides::Sizes { large_mib: options.large_mib, heads: options.heads, small_files: options.small_files };
    let store = sides::Store::new(&options.disk, &sizes)?;
    let mut rows = Vec::new();
    let ended = options.latency_ms.iter().try_for_each(|latency| {
        let sides = sides::Sides::new(&store, Duration::from_millis(*latency))?;
        reads::measure(&store, &sides, options.rounds, *latency, &mut rows)
    });
    if rows.is_empty() {
        return ended;
    }
    let about = format!(
        "{} ext4 on loop devices, images on {}; {} rounds; rclone {}, {}.{}",
        page::machine(began.elapsed().as_secs_f64()),
        rig::filesystem_of(&options.disk),
        options.rounds,
        store.rclone,
        store.s3fs,
        if ended.is_ok() { "" } else { " The run ended early: rows that are missing were not measured." }
    );
    if options.json {
        println!("{}", table::json(&rows, &about));
    } else {
        println!("{}", table::markdown(&rows, &about));
    }
    if options.write {
        page::write("recall.md", "make bench-recall", &table::markdown(&rows, &about))?;
        page::write_picture("recall.svg", &table::picture(&rows, &about))?;
    }
    ended
}
