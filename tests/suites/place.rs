//! Where a suite runs, and what with: a rig large enough, the installed tools, the budget of a soak.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::mover::{Moved, Transfers};
use crate::rig::*;

/// A rig with room (the image is sparse) on `kind`.
pub fn rig(kind: &'static str, size: u64) -> Option<Rig> {
    Setup { kind, size, ..Setup::default() }.build()
}

/// A tool of crates.io, where `scripts/install-deps.sh` puts it.
#[track_caller]
pub fn installed(name: &str) -> PathBuf {
    let tools = std::env::var_os("TIERFS_TOOLS").map(PathBuf::from).unwrap_or_else(|| {
        let home = std::env::var_os("HOME").expect("HOME is set");
        PathBuf::from(home).join(".cache/tierfs/tools")
    });
    let path = tools.join("bin").join(name);
    assert!(path.exists(), "{} is missing: run scripts/install-deps.sh test", path.display());
    path
}

/// Runs a command to its end, whatever that is.
#[track_caller]
pub fn ends(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Archives, releases and recalls of each tree below which nothing was tested.
const FEW: u64 = 3;

/// How often work is done anew where less than that moved: a fast machine is through before the movers have met it.
const TIMES: u64 = 8;

/// Does `work` until enough has moved meanwhile, each time with the number of the round; panics where it never is, because then
/// nothing was tested. Somebody's interruption ends it as well.
#[track_caller]
pub fn until_enough_moved(rig: &mut Rig, what: &str, mut work: impl FnMut(&mut Rig, u64) -> Moved) {
    let mut moved = Moved::default();
    for round in 0..TIMES {
        moved.add(&work(rig, round));
        let (puts, gets) = (rig.requests().method("PUT"), rig.gets());
        eprintln!("{what}, round {round}: {puts} objects or parts put, {gets} ranges fetched; {moved}");
        if stopped() || (puts > 2 && gets > 2 && enough(&moved)) {
            return;
        }
    }
    panic!("{what}: hardly anything moved in {TIMES} rounds: {moved}");
}

/// Whether of each tree files were archived, released and recalled.
fn enough(moved: &Moved) -> bool {
    moved.0.values().all(|Transfers { archived, released, recalled, .. }| {
        [archived, released, recalled].into_iter().all(|count| *count >= FEW)
    })
}

/// Of a soak: SOAK_SEED, or one of this moment, which is printed with what fails.
pub fn soak_seed() -> u64 {
    let given = std::env::var("SOAK_SEED").ok().map(|seed| seed.parse().expect("SOAK_SEED is a number"));
    given.unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 % 1_000_000_000)
}

/// How long each soak that goes by time takes: SOAK_SECONDS, 60 by default.
pub fn soak_time() -> Duration {
    let given = std::env::var("SOAK_SECONDS").ok().map(|seconds| seconds.parse().expect("SOAK_SECONDS is a number"));
    Duration::from_secs(given.unwrap_or(60))
}

/// Says what is done, with the time since the beginning.
pub struct Progress(Instant);

impl Progress {
    pub fn new() -> Self {
        Self(Instant::now())
    }

    pub fn say(&self, what: &str) {
        eprintln!("[{:6.1} s] {what}", self.0.elapsed().as_secs_f32());
    }
}

/// Whether somebody interrupted the soak (SIGINT, SIGTERM): what runs comes to its end and cleans up.
pub fn stopped() -> bool {
    static STOPPED: AtomicBool = AtomicBool::new(false);
    static WATCHED: OnceLock<()> = OnceLock::new();
    WATCHED.get_or_init(|| {
        std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                use tokio::signal::unix::{SignalKind, signal};
                let (mut int, mut term) =
                    (signal(SignalKind::interrupt()).unwrap(), signal(SignalKind::terminate()).unwrap());
                tokio::select! {
                    _ = int.recv() => {}
                    _ = term.recv() => {}
                }
            });
            eprintln!("interrupted: cleaning up");
            STOPPED.store(true, Ordering::SeqCst);
        });
    });
    STOPPED.load(Ordering::SeqCst)
}
