//! The four ways to one and the same directory tree: native, tierfs, mergerfs, bindfs.
//!
//! Invariant: all sides see the same lower filesystem, and each sample is taken on every side in turn, so what the machine does
//! meanwhile meets them all. The peers get the same cache times as tierfs and the caches they have; what they lack (passthrough, a
//! cached listing) is theirs to lack.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::thread::CpuSet;

use super::report::{PeerRates, Report, Row};
use super::rig::{self, LoopFs, Mounted, Result, Target, said};

/// Bytes of the lower filesystem: the trees of four sides, and 100,000 names.
const SHARE_BYTES: u64 = 4 << 30;

/// One way to the tree.
pub struct Side {
    pub name: &'static str,
    /// The tree's root as this side shows it.
    pub root: PathBuf,
}

impl Side {
    /// A directory of this side's own, seen through it.
    pub fn home(&self) -> PathBuf {
        self.root.join(self.name)
    }
}

/// A filesystem of somebody else's over `share`.
fn peer(scratch: &Path, name: &str, share: &Path) -> Result<Mounted> {
    Mounted::start(scratch, name, |root| {
        let mut command = rig::command(name);
        match name {
            "mergerfs" => command.args([
                "-f",
                "-o",
                "cache.files=auto-full,cache.entry=60,cache.attr=60,cache.negative_entry=60,cache.readdir=true,cache.symlinks=true,minfreespace=0",
            ]),
            _ => command.args(["-f", "--multithreaded", "-o", "entry_timeout=60,attr_timeout=60,negative_timeout=60"]),
        };
        command.arg(share).arg(root);
        command
    })
    .map_err(|error| format!("{error} (Debian's package has the same name)"))
}

/// All sides, mounted. Fields are dropped in their order: what lies above goes first.
pub struct Sides {
    pub all: Vec<Side>,
    peers: Vec<Mounted>,
    pub tierfs: Mounted,
    pub below: LoopFs,
    _scratch: tempfile::TempDir,
}

impl Sides {
    /// A share in `memory` (a directory in memory where there is one), with the file `prepare` makes in it, mounted on every side.
    pub fn new(memory: &Path, prepare: impl FnOnce(&Path) -> Result<()>, report: &mut Report) -> Result<Self> {
        let memory = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let scratch = rig::scratch(&memory)?;
        let below = LoopFs::new(scratch.path(), "share", SHARE_BYTES)?;
        report.resident_on = format!("ext4 on a loop device, its image on {}", rig::filesystem_of(&memory));
        prepare(&below.path)?;
        let state = scratch.path().to_owned();
        let environment = move |command: &mut std::process::Command| {
            command.env("TIERFS_CONFIG_DIR", state.join("etc")).env("TIERFS_STATE_DIR", state.join("var"));
        };
        let tierfs = Mounted::new(scratch.path(), &below.path, &environment)?;
        let peers = report.peers.iter().map(|name| peer(scratch.path(), name, &below.path));
        let peers: Vec<_> = peers.collect::<Result<_>>()?;
        let mut all =
            vec![Side { name: "native", root: below.path.clone() }, Side { name: "tierfs", root: tierfs.path.clone() }];
        all.extend(report.peers.iter().zip(&peers).map(|(name, peer)| Side { name, root: peer.path.clone() }));
        for side in &all {
            fs::create_dir(below.path.join(side.name)).map_err(said("a side's directory"))?;
        }
        Ok(Self { all, peers, tierfs, below, _scratch: scratch })
    }

    /// Does `work` with all daemons, and this process, on one CPU: then nobody is woken on another one.
    pub fn on_one_cpu(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let before = rustix::thread::sched_getaffinity(None).map_err(|error| format!("sched_getaffinity: {error}"))?;
        let mut one = CpuSet::new();
        (0..CpuSet::MAX_CPU).rev().find(|cpu| before.is_set(*cpu)).into_iter().for_each(|cpu| one.set(cpu));
        let daemons = self.peers.iter().chain([&self.tierfs]).map(|mounted| mounted.daemon.child.id());
        let all: Vec<_> = daemons.chain([std::process::id()]).collect();
        let bind = |cpus: &CpuSet| all.iter().try_for_each(|process| rig::bind(*process, cpus));
        bind(&one)?;
        let worked = work();
        bind(&before)?;
        worked
    }

    /// Takes `samples` samples of one group of rows on every side and adds the rows. `sample` gets the side and the number of the sample,
    /// and returns a rate for each row; the first one warms up and is thrown away. A peer that fails a call has no figures for the group.
    pub fn measure(
        &self,
        rows: &[(&str, &'static str, Target)],
        samples: usize,
        settle: bool,
        report: &mut Report,
        mut sample: impl FnMut(&Side, usize) -> std::io::Result<Vec<f64>>,
    ) -> Result<()> {
        let cpu = self.tierfs.daemon.cpu_s();
        let mut rates = vec![vec![Vec::new(); rows.len()]; self.all.len()];
        let mut failed = vec![None; self.all.len()];
        for number in 0..=samples {
            for turn in 0..self.all.len() {
                rig::check_interrupted()?;
                let at = (number + turn) % self.all.len();
                if failed[at].is_some() {
                    continue;
                }
                if settle {
                    self.below.sync()?;
                }
                match sample(&self.all[at], number) {
                    Ok(_) if number == 0 => {}
                    Ok(values) => rates[at].iter_mut().zip(values).for_each(|(row, value)| row.push(value)),
                    Err(error) if at < 2 => return Err(format!("{} ({}): {error}", rows[0].0, self.all[at].name)),
                    Err(error) => failed[at] = Some(error.to_string()),
                }
            }
        }
        for (index, (name, unit, target)) in rows.iter().enumerate() {
            let of = |side: usize| rates[side][index].clone();
            let peers = (2..self.all.len())
                .map(|side| PeerRates { name: self.all[side].name, rates: failed[side].is_none().then(|| of(side)) })
                .collect();
            let row = Row { name: (*name).to_owned(), unit, base: of(0), ours: of(1), peers, target: *target };
            rig::progress(&row.line());
            report.resident.push(row);
        }
        for (side, error) in self.all.iter().zip(&failed).filter_map(|(side, error)| Some((side, error.as_ref()?))) {
            rig::progress(&format!("{} fails it: {error}", side.name));
        }
        rig::progress(&format!("  (tierfs's daemon used {:.2} CPU-s)", self.tierfs.daemon.cpu_s() - cpu));
        Ok(())
    }
}
