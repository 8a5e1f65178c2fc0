//! `make storm`: how long one user's single recalls take while another's `grep -r` goes over stubs, against the same on an idle mount.
//!
//! Invariant: in each round both are measured, one right after the other, of the same files, which are stubs again before; while the storm is measured, it goes on.

use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::page::{self, least, median, most, short};
use super::proxy::Proxy;
use super::rig::{self, Endpoint, LoopFs, Mounted, Result, said};

/// Who greps.
const NOBODY: u32 = 65_534;
/// Where the user who is measured reads, and who greps.
const SINGLE: &str = "single";
const TREE: &str = "tree";
/// Between two reads of the user who is measured.
const PAUSE: Duration = Duration::from_millis(10);
/// Stubs that `grep` has read before anything is measured: it is known by then for what it is.
const UNDER_WAY: Duration = Duration::from_secs(3);
/// How much longer 99 of 100 may take than on an idle mount.
const TARGET: f64 = 2.0;

pub struct Storm {
    pub stubs: usize,
    pub samples: usize,
    pub bytes: usize,
    pub jobs: usize,
    pub options: String,
    pub latency: Duration,
    pub rounds: usize,
}

/// What `grep` is run by; it ends when this is dropped, with all it has started.
struct Grep(Child);

impl Drop for Grep {
    fn drop(&mut self) {
        let group = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.0.wait();
    }
}

/// Milliseconds that 50 and 99 of 100 reads took at most.
#[derive(Clone, Copy)]
struct Times {
    p50: f64,
    p99: f64,
}

/// Fields are dropped in their order: what lies above goes first.
struct Place<'a> {
    storm: &'a Storm,
    mount: Mounted,
    _proxy: Proxy,
    _endpoint: Endpoint,
    _share: LoopFs,
    _objects: LoopFs,
    scratch: tempfile::TempDir,
}

impl<'a> Place<'a> {
    fn new(storm: &'a Storm, disk: &Path) -> Result<Self> {
        let files = (storm.stubs + storm.samples) as u64;
        // An inode and a block each, and their objects with what is told beside them.
        let bytes = (1 << 30) + files * (storm.bytes as u64 + (24 << 10));
        let scratch = rig::scratch(disk)?;
        // Nobody greps in it.
        fs::set_permissions(scratch.path(), Permissions::from_mode(0o755)).map_err(said("scratch"))?;
        let share = LoopFs::new(scratch.path(), "share", bytes)?;
        let objects = LoopFs::new(scratch.path(), "objects", bytes)?;
        let endpoint = Endpoint::new(&objects.path.join("s3"), &rig::credentials)?;
        rig::progress("making files, objects and stubs");
        for (directory, count) in [(TREE, storm.stubs), (SINGLE, storm.samples)] {
            let directory = share.path.join(directory);
            fs::create_dir(&directory).map_err(said("making data"))?;
            for n in 0..count {
                let mut content = vec![0; storm.bytes];
                blake3::Hasher::new().update(name(n).as_bytes()).finalize_xof().fill(&mut content);
                let file = File::create_new(directory.join(name(n)));
                file.and_then(|mut file| file.write_all(&content)).map_err(said("making data"))?;
            }
            rig::check_interrupted()?;
        }
        let proxy = Proxy::new(&endpoint.url, storm.latency)?;
        rig::add_pair(scratch.path(), &share.path, &proxy.url)?;
        let mount = Mounted::start(scratch.path(), "mnt", |path| {
            let mut command = rig::command(rig::TIERFS);
            rig::environment(scratch.path(), &mut command);
            command.arg("mount").args([&share.path, path]).arg("--foreground");
            if !storm.options.is_empty() {
                command.args(["-o", &storm.options]);
            }
            command
        })?;
        let this = Self { storm, mount, _proxy: proxy, _endpoint: endpoint, _share: share, _objects: objects, scratch };
        this.all_stubs()?;
        Ok(this)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.mount.path.join(name)
    }

    /// Has all files be stubs.
    fn all_stubs(&self) -> Result<()> {
        let mut command = rig::command(rig::TIERFS);
        rig::environment(self.scratch.path(), &mut command);
        rig::run(command.args(["migrate", "-r"]).args([self.path(TREE), self.path(SINGLE)])).map(drop)
    }

    /// How long single reads of stubs take, none in the order of its directory: this is somebody at work.
    fn times(&self) -> Result<Times> {
        let mut took = Vec::with_capacity(self.storm.samples);
        for n in 0..self.storm.samples {
            rig::check_interrupted()?;
            let path = self.path(SINGLE).join(name(n * 7919 % self.storm.samples));
            let began = Instant::now();
            let read = fs::read(&path).map_err(said(SINGLE))?;
            took.push(began.elapsed().as_secs_f64() * 1e3);
            if read.len() != self.storm.bytes {
                return Err(format!("{}: {} bytes", path.display(), read.len()));
            }
            std::thread::sleep(PAUSE);
        }
        took.sort_by(f64::total_cmp);
        let at = |part: usize| took[(took.len() * part / 100).min(took.len() - 1)];
        Ok(Times { p50: at(50), p99: at(99) })
    }

    fn grep(&self) -> Result<Grep> {
        let script = match self.storm.jobs {
            1 => "exec grep -rc nothing tree".to_owned(),
            jobs => format!("find tree -type f | xargs -P {jobs} -n 50 grep -c nothing"),
        };
        let mut command = Command::new("sh");
        command.args(["-c", &script]).current_dir(&self.mount.path).uid(NOBODY).gid(NOBODY).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map(Grep).map_err(said("grep"))
    }

    /// One round: on the idle mount, and while `grep` runs.
    fn round(&self, storm_first: bool) -> Result<[Times; 2]> {
        let idle = || {
            self.all_stubs()?;
            self.times()
        };
        let stormy = || {
            self.all_stubs()?;
            let mut grep = self.grep()?;
            std::thread::sleep(UNDER_WAY);
            let times = self.times()?;
            match grep.0.try_wait() {
                Ok(None) => Ok(times),
                _ => Err("grep had read all stubs before the last sample: take more --stubs".to_owned()),
            }
        };
        Ok(if storm_first {
            let stormy = stormy()?;
            [idle()?, stormy]
        } else {
            [idle()?, stormy()?]
        })
    }
}

fn name(n: usize) -> String {
    format!("{n:06}")
}

/// Measures, prints, and with `write` puts the table into docs/recalls.md.
pub fn run(storm: &Storm, disk: &Path, as_json: bool, write: bool) -> Result<()> {
    let began = Instant::now();
    let place = Place::new(storm, disk)?;
    let mut rounds = Vec::new();
    for round in 0..=storm.rounds {
        let times = place.round(round % 2 == 1)?;
        rig::progress(&format!(
            "round {round}: idle p50 {:.1} p99 {:.1} ms, storm p50 {:.1} p99 {:.1} ms",
            times[0].p50, times[0].p99, times[1].p50, times[1].p99
        ));
        // The first round warms up.
        if round > 0 {
            rounds.push(times);
        }
    }
    let of = |side: usize, what: fn(&Times) -> f64| rounds.iter().map(|times| what(&times[side])).collect::<Vec<_>>();
    let ratios: Vec<_> = rounds.iter().map(|[idle, stormy]| stormy.p99 / idle.p99).collect();
    let met = median(&ratios) <= TARGET;
    let about = format!(
        "{} Single reads of stubs of {} KiB by one user, {} ms to the store, {} each in {} rounds.{}",
        page::machine(began.elapsed().as_secs_f64()),
        storm.bytes >> 10,
        storm.latency.as_millis(),
        storm.samples,
        storm.rounds,
        if storm.options.is_empty() { String::new() } else { format!(" Mounted with -o {}.", storm.options) }
    );
    if as_json {
        let sides = ["idle", "storm"].iter().enumerate().map(|(side, name)| {
            (
                (*name).to_owned(),
                json!({ "p50_ms": of(side, |times| times.p50), "p99_ms": of(side, |times| times.p99) }),
            )
        });
        let sides: serde_json::Map<_, _> = sides.collect();
        println!("{}", json!({ "machine": about, "sides": sides, "p99_ratio": ratios, "target": TARGET, "met": met }));
        return Ok(());
    }
    let cell = |values: &[f64]| format!("{} ({}–{})", short(median(values)), short(least(values)), short(most(values)));
    let mut table = format!("{about}\n\n| | p50, ms | p99, ms |\n|---|---|---|\n");
    let storms = match storm.jobs {
        1 => format!("`grep -r` goes over {} stubs all the while", storm.stubs),
        jobs => format!("{jobs} `grep` at a time go over {} stubs all the while", storm.stubs),
    };
    for (side, what) in ["nothing else runs", &storms].iter().enumerate() {
        let (p50, p99) = (of(side, |times| times.p50), of(side, |times| times.p99));
        // Writing into a string cannot fail.
        let _ = writeln!(table, "| {what} | {} | {} |", cell(&p50), cell(&p99));
    }
    let _ = writeln!(
        table,
        "\nThe p99 is {} times that of the idle mount; the target, at most {TARGET}, is {}.",
        cell(&ratios),
        if met { "met" } else { "**missed**" }
    );
    println!("{table}");
    if write { page::write("recalls.md", "make storm", &table) } else { Ok(()) }
}
