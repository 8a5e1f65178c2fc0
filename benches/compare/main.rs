//! `make bench`: tierfs against the lower filesystem, against peers, and against rclone, in one run, side by side.
//!
//! Invariant: every ratio is of two measurements made right after each other on the same data, and every figure in the
//! report comes from this run. Nothing is left behind: mounts live in a mount namespace of this process, files in
//! temporary directories, daemons are children that are ended, also when a signal ends the run.

mod data;
mod metadata;
mod page;
mod plot;
mod report;
mod rig;
mod sides;
mod small;
mod transfers;
mod trees;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

/// Measures tierfs against the filesystem below it, mergerfs and bindfs, and against `rclone copy`.
#[derive(Debug, Parser)]
#[command(name = "compare")]
struct Options {
    /// Rounds of each transfer; 5 or more for figures that count.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Samples of each resident operation.
    #[arg(long, default_value_t = 21)]
    samples: usize,
    /// Size of the large file, MiB.
    #[arg(long, default_value_t = 1024)]
    large_mib: u64,
    /// Number of small files, 64 KiB each.
    #[arg(long, default_value_t = 2000)]
    small_files: usize,
    /// Number of files of 16 KiB.
    #[arg(long, default_value_t = 20_000)]
    tiny_files: usize,
    /// A look in less than a minute: 2 rounds, 5 samples, 128 MiB, 400 files of each size.
    #[arg(long)]
    quick: bool,
    /// Only some sections.
    #[arg(long, value_enum)]
    only: Vec<Section>,
    /// Where the share and the endpoint of the transfers lie.
    #[arg(long, default_value = "/var/tmp", value_name = "DIR")]
    disk: PathBuf,
    /// Where the share of the resident operations lies.
    #[arg(long, default_value = "/dev/shm", value_name = "DIR")]
    memory: PathBuf,
    /// Print JSON on standard output instead of tables.
    #[arg(long)]
    json: bool,
    /// Put the tables into docs/benchmarks.md as well.
    #[arg(long)]
    write: bool,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Section {
    Data,
    Metadata,
    Trees,
    Transfers,
    /// Many files of 16 KiB, with packs and without.
    Small,
}

impl Options {
    fn wants(&self, section: Section) -> bool {
        self.only.is_empty() || self.only.contains(&section)
    }
}

fn main() -> ExitCode {
    let mut options = Options::parse();
    if options.quick {
        (options.rounds, options.samples, options.large_mib, options.small_files) = (2, 5, 128, 400);
        options.tiny_files = 400;
    }
    rig::inside_namespace(|| run(&options))
}

fn run(options: &Options) -> rig::Result<()> {
    if options.write && (!options.only.is_empty() || options.rounds < 5 || options.samples < 5) {
        return Err("--write takes a whole run of 5 rounds or more".into());
    }
    rig::watch_signals()?;
    let began = Instant::now();
    let mut report = report::Report::new(options.rounds, options.samples);
    if [Section::Data, Section::Metadata, Section::Trees].into_iter().any(|section| options.wants(section)) {
        let prepare = |share: &std::path::Path| {
            data::prepare(share)?;
            metadata::prepare(share)?;
            trees::prepare(share)
        };
        let sides = sides::Sides::new(&options.memory, prepare, &mut report)?;
        if options.wants(Section::Data) {
            data::measure(&sides, options.samples, &mut report)?;
        }
        if options.wants(Section::Metadata) {
            metadata::measure(&sides, options.samples, &mut report)?;
        }
        if options.wants(Section::Trees) {
            trees::measure(&sides, options.samples, &mut report)?;
        }
    }
    if options.wants(Section::Transfers) {
        let sizes =
            transfers::Sizes { rounds: options.rounds, large_mib: options.large_mib, small_files: options.small_files };
        transfers::measure(&options.disk, &sizes, &mut report)?;
    }
    if options.wants(Section::Small) {
        small::measure(&options.disk, options.tiny_files, small::rounds(options.rounds), &mut report)?;
    }
    report.took_s = began.elapsed().as_secs_f64();
    if options.json {
        println!("{}", report.json());
    } else {
        println!("{}", report.markdown());
    }
    if options.write {
        report.write_document()?;
    }
    Ok(())
}
