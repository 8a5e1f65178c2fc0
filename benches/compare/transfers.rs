//! Transfers: `tierfs migrate` and `recall` against `rclone copy`, the same bytes, to and from the same endpoint.
//!
//! Each round makes fresh data twice, byte for byte the same, under names never used before: one copy for each tool.
//! Both filesystems are synced and both daemons at rest before each timed command; nothing is dropped from the page cache.
//! What came back is compared with what was made, in every round.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::page::median;
use super::report::{CpuRow, Report, Row};
use super::rig::{self, Daemon, Endpoint, LoopFs, Mounted, Result, Target, said};

const MIB: u64 = 1 << 20;
const SMALL_BYTES: u64 = 64 << 10;
/// Blocks of 512 bytes that a stub may keep: its record's.
const STUB_BLOCKS_MAX: u64 = 8;
/// Daemons count as at rest when they have used no CPU for so long.
const REST: Duration = Duration::from_millis(200);
const REST_WITHIN: Duration = Duration::from_secs(15);

pub struct Sizes {
    pub rounds: usize,
    pub large_mib: u64,
    pub small_files: usize,
}

/// What one command took.
#[derive(Clone, Copy, Default)]
pub struct Cost {
    pub seconds: f64,
    /// What a sync of the share takes right afterwards, seconds.
    pub sync_s: f64,
    client_cpu_s: f64,
    server_cpu_s: f64,
}

/// Runs one command from rest to rest: `disks` are clean and nobody works. The time is that of the command; the CPU time is its own and that of `clients`, and includes what
/// follows it.
pub fn timed(
    command: &mut Command,
    share: &LoopFs,
    disks: &[&LoopFs],
    clients: &[&Daemon],
    endpoint: &Daemon,
) -> Result<Cost> {
    let all: Vec<_> = clients.iter().copied().chain([endpoint]).collect();
    let cpu = || (rig::children_cpu_s() + clients.iter().map(|daemon| daemon.cpu_s()).sum::<f64>(), endpoint.cpu_s());
    at_rest(disks, &all)?;
    let before = cpu();
    let began = Instant::now();
    rig::run(command)?;
    let seconds = began.elapsed().as_secs_f64();
    share.sync()?;
    let sync_s = began.elapsed().as_secs_f64() - seconds;
    at_rest(disks, &all)?;
    let after = cpu();
    Ok(Cost { seconds, sync_s, client_cpu_s: after.0 - before.0, server_cpu_s: after.1 - before.1 })
}

/// The medians of what the commands of one tool took of the processors.
pub fn cpu_of(name: &str, tool: &str, costs: &[Cost]) -> CpuRow {
    let of = |part: fn(&Cost) -> f64| median(&costs.iter().map(part).collect::<Vec<_>>());
    let (client_s, endpoint_s) = (of(|cost| cost.client_cpu_s), of(|cost| cost.server_cpu_s));
    CpuRow { name: name.into(), tool: tool.into(), client_s, endpoint_s }
}

/// Everything that runs, in the order in which it must go away.
struct Rig {
    mount: Mounted,
    endpoint: Endpoint,
    share: LoopFs,
    objects: LoopFs,
    config: PathBuf,
}

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tool {
    Tierfs,
    /// With its defaults.
    Rclone,
    /// With about as many requests in flight as tierfs has.
    RcloneWide,
}

const TOOLS: [Tool; 3] = [Tool::Tierfs, Tool::Rclone, Tool::RcloneWide];
/// What [`Tool::RcloneWide`] is given.
pub const WIDE: [&str; 10] = [
    "--transfers",
    "64",
    "--checkers",
    "64",
    "--s3-upload-concurrency",
    "8",
    "--s3-chunk-size",
    "8M",
    "--multi-thread-streams",
    "8",
];

/// What one step cost each tool, in the order of [`TOOLS`]; nothing where it was not measured.
type Step = [Cost; TOOLS.len()];

/// One set of files.
struct Set {
    name: String,
    unit: &'static str,
    /// What the unit counts, of the whole set.
    amount: f64,
    files: usize,
    bytes_each: u64,
    target: f64,
    /// More requests in flight do not help rclone with one file.
    tools: &'static [Tool],
}

impl Rig {
    fn new(scratch: &Path, needed: u64) -> Result<Self> {
        let share = LoopFs::new(scratch, "share", needed)?;
        let objects = LoopFs::new(scratch, "objects", needed)?;
        let config = scratch.to_owned();
        let environment = |command: &mut Command| rig::environment(&config, command);
        let endpoint = Endpoint::new(&objects.path.join("s3"), &environment)?;
        rig::add_pair(&config, &share.path, &endpoint.url)?;
        let mount = Mounted::new(scratch, &share.path, &environment)?;
        Ok(Self { mount, endpoint, share, objects, config })
    }

    fn tierfs(&self, arguments: &[&str], path: &Path) -> Command {
        let mut command = rig::command(rig::TIERFS);
        rig::environment(&self.config, &mut command);
        command.args(arguments).arg(path);
        command
    }

    fn rclone(&self, tool: Tool, arguments: &[&str]) -> Command {
        let mut command = rig::rclone(&self.endpoint.url);
        command.args(if tool == Tool::RcloneWide { &WIDE[..] } else { &[] }).args(arguments);
        command
    }

    fn timed(&self, command: &mut Command) -> Result<Cost> {
        let disks = [&self.share, &self.objects];
        timed(command, &self.share, &disks, &[&self.mount.daemon], &self.endpoint.daemon)
    }
}

/// Everything is on the devices and nobody works any more.
fn at_rest(devices: &[&LoopFs], daemons: &[&Daemon]) -> Result<()> {
    devices.iter().try_for_each(|device| device.sync())?;
    let busy = || daemons.iter().map(|daemon| daemon.cpu_s()).sum::<f64>();
    let began = Instant::now();
    let mut last = busy();
    while began.elapsed() < REST_WITHIN {
        std::thread::sleep(REST);
        let now = busy();
        if now == last {
            break;
        }
        last = now;
    }
    rig::check_interrupted()
}

pub fn measure(disk: &Path, sizes: &Sizes, report: &mut Report) -> Result<()> {
    report.rclone = rig::rclone_version()?;
    report.transfers_on = format!("ext4 on two loop devices, their images on {}", rig::filesystem_of(disk));

    let small_bytes = sizes.small_files as u64 * SMALL_BYTES;
    // Three copies of either set at a time, and the objects of a round before.
    let needed = 5 * (sizes.large_mib * MIB).max(small_bytes) + (1 << 30);
    let space = rustix::fs::statvfs(disk).map_err(said("statvfs"))?;
    if space.f_bavail * space.f_frsize < needed * 2 {
        let (disk, wanted) = (disk.display(), needed * 2 / MIB);
        return Err(format!(
            "{disk} has less than {wanted} MiB free: --disk names another place, --large-mib a smaller file"
        ));
    }
    let scratch = rig::scratch(disk)?;
    let rig = Rig::new(scratch.path(), needed)?;
    let sets = [
        Set {
            name: format!("one file of {} MiB", sizes.large_mib),
            unit: "MB/s",
            amount: (sizes.large_mib * MIB) as f64 / 1e6,
            files: 1,
            bytes_each: sizes.large_mib * MIB,
            target: 1.0,
            tools: &TOOLS[..2],
        },
        Set {
            name: format!("{} files of 64 KiB", sizes.small_files),
            unit: "files/s",
            amount: sizes.small_files as f64,
            files: sizes.small_files,
            bytes_each: SMALL_BYTES,
            target: 2.0,
            tools: &TOOLS,
        },
    ];
    for set in &sets {
        measure_set(&rig, set, sizes.rounds, report)?;
    }
    Ok(())
}

fn measure_set(rig: &Rig, set: &Set, rounds: usize, report: &mut Report) -> Result<()> {
    let (mut sent, mut returned) = (Vec::new(), Vec::new());
    // The first round warms up (bucket, connections, the endpoint's directories) and is thrown away.
    for round in 0..=rounds {
        let (out, back) = measure_round(rig, set, round)?;
        let seconds = |step: &Step| {
            let each = set.tools.iter().map(|tool| format!("{:.2}", step[*tool as usize].seconds));
            each.collect::<Vec<_>>().join(" / ")
        };
        rig::progress(&format!(
            "{}, {}: out {} s; back {} s ({})",
            set.name,
            if round == 0 { "warming up".to_owned() } else { format!("round {round}") },
            seconds(&out),
            seconds(&back),
            set.tools.iter().map(|tool| format!("{tool:?}")).collect::<Vec<_>>().join(" / "),
        ));
        if round > 0 {
            sent.push(out);
            returned.push(back);
        }
    }
    for (verb, steps, synced, other) in [
        ("migrate", &sent, false, Tool::Rclone),
        ("migrate", &sent, false, Tool::RcloneWide),
        ("recall", &returned, false, Tool::Rclone),
        ("recall", &returned, true, Tool::Rclone),
        ("recall", &returned, false, Tool::RcloneWide),
        ("recall", &returned, true, Tool::RcloneWide),
    ] {
        if !set.tools.contains(&other) {
            continue;
        }
        let rates = |tool: Tool| {
            let seconds = |cost: Cost| cost.seconds + if synced { cost.sync_s } else { 0.0 };
            steps.iter().map(|step| set.amount / seconds(step[tool as usize])).collect()
        };
        let plain = other == Tool::Rclone && !synced;
        let row = Row {
            name: format!(
                "{verb} {}{}{}",
                set.name,
                if other == Tool::RcloneWide { ", rclone wide" } else { "" },
                if synced { ", both and `sync`" } else { "" }
            ),
            unit: set.unit,
            base: rates(other),
            ours: rates(Tool::Tierfs),
            peers: Vec::new(),
            target: if plain { Target::Ratio(set.target) } else { Target::None },
        };
        rig::progress(&row.line());
        report.transfers.push(row);
    }
    for (verb, steps) in [("migrate", &sent), ("recall", &returned)] {
        for (tool, name) in set.tools.iter().zip(["tierfs", "rclone", "rclone wide"]) {
            let costs: Vec<_> = steps.iter().map(|step| step[*tool as usize]).collect();
            report.cpu.push(cpu_of(&format!("{verb} {}", set.name), name, &costs));
        }
    }
    Ok(())
}

/// One round: what sending and bringing back cost.
fn measure_round(rig: &Rig, set: &Set, round: usize) -> Result<(Step, Step)> {
    let tag = format!("{}-{round}", set.files);
    let ours = rig.mount.path.join(format!("tierfs-{tag}"));
    let ours_below = rig.share.path.join(format!("tierfs-{tag}"));
    let theirs = rig.share.path.join(format!("rclone-{tag}"));
    let remote = |tool: Tool| format!("bench:bench/{tool:?}/{tag}");
    let returned = |tool: Tool| rig.share.path.join(format!("{tool:?}-back-{tag}"));
    make(&ours, set.files, set.bytes_each, round)?;
    make(&theirs, set.files, set.bytes_each, round)?;
    let digest = digest_of(&ours)?;

    let sent = in_turn(set.tools, round, &|tool| match tool {
        Tool::Tierfs => rig.timed(&mut rig.tierfs(&["migrate", "-r"], &ours)),
        _ => rig.timed(rig.rclone(tool, &["copy"]).arg(&theirs).arg(remote(tool))),
    })?;
    check_stubs(&ours_below)?;
    fs::remove_dir_all(&theirs).map_err(said("cleaning up a round"))?;
    let came_back = in_turn(set.tools, round, &|tool| match tool {
        Tool::Tierfs => rig.timed(&mut rig.tierfs(&["recall", "-r"], &ours)),
        _ => rig.timed(rig.rclone(tool, &["copy", &remote(tool)]).arg(returned(tool))),
    })?;
    for tool in set.tools {
        let copy = if *tool == Tool::Tierfs { &ours_below } else { &returned(*tool) };
        if digest_of(copy)? != digest {
            return Err(format!("{}: what came back is not what was made", copy.display()));
        }
        // Through the mount, so that the daemon knows.
        let gone = if *tool == Tool::Tierfs { &ours } else { copy };
        fs::remove_dir_all(gone).map_err(said("cleaning up a round"))?;
    }
    rig::run(&mut rig.rclone(Tool::Rclone, &["purge", "bench:bench"]))?;
    Ok((sent, came_back))
}

/// Measures every tool; who goes first changes with the round.
fn in_turn(tools: &[Tool], round: usize, measure: &dyn Fn(Tool) -> Result<Cost>) -> Result<Step> {
    let mut costs = [Cost::default(); TOOLS.len()];
    for turn in 0..tools.len() {
        let tool = tools[(round + turn) % tools.len()];
        costs[tool as usize] = measure(tool)?;
    }
    Ok(costs)
}

fn file_name(n: usize) -> String {
    format!("file-{n:05}")
}

/// Fresh files that do not compress; the same for the same round.
pub fn make(directory: &Path, files: usize, bytes_each: u64, round: usize) -> Result<()> {
    fs::create_dir(directory).map_err(said("making data"))?;
    let mut buffer = vec![0; bytes_each.min(MIB) as usize];
    for n in 0..files {
        rig::check_interrupted()?;
        let mut file = File::create_new(directory.join(file_name(n))).map_err(said("making data"))?;
        let mut content = blake3::Hasher::new().update(format!("{round}/{n}").as_bytes()).finalize_xof();
        for _ in 0..bytes_each / buffer.len() as u64 {
            content.fill(&mut buffer);
            file.write_all(&buffer).map_err(said("making data"))?;
        }
    }
    Ok(())
}

/// Hash of all names and contents.
pub fn digest_of(directory: &Path) -> Result<blake3::Hash> {
    let failed = said("reading back");
    let mut names: Vec<_> = fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.file_name())).collect())
        .map_err(&failed)?;
    names.sort();
    let mut all = blake3::Hasher::new();
    let mut buffer = vec![0; MIB as usize];
    for name in names {
        let mut file = File::open(directory.join(&name)).map_err(&failed)?;
        let mut content = blake3::Hasher::new();
        loop {
            match file.read(&mut buffer).map_err(&failed)? {
                0 => break,
                n => content.update(&buffer[..n]),
            };
        }
        all.update(name.as_encoded_bytes()).update(content.finalize().as_bytes());
    }
    Ok(all.finalize())
}

/// Every file has given its blocks back: otherwise the migration measured was none.
pub fn check_stubs(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory).map_err(said("looking at stubs"))? {
        let entry = entry.map_err(said("looking at stubs"))?;
        let blocks = entry.metadata().map_err(said("looking at stubs"))?.blocks();
        if blocks > STUB_BLOCKS_MAX {
            return Err(format!("{} still has {blocks} blocks after migration", entry.path().display()));
        }
    }
    Ok(())
}
