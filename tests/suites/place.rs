//! Where a suite runs, and what with: a rig large enough, the installed tools, the budget of a soak.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::mover::Moved;
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

/// Says how much moved; panics where hardly anything did, because then nothing was tested.
#[track_caller]
pub fn moved_enough(rig: &Rig, what: &str, moved: &Moved) {
    let (puts, gets) = (rig.requests().method("PUT"), rig.gets());
    eprintln!("{what}: {puts} objects or parts put, {gets} ranges fetched; {moved}");
    assert!(puts > 2 && gets > 2, "{what}: hardly anything moved");
    for (tree, transfers) in &moved.0 {
        for (done, count) in
            [("archived", transfers.archived), ("released", transfers.released), ("recalled", transfers.recalled)]
        {
            assert!(count >= FEW, "{what}: files of {} were {done} {count} times only: {moved}", tree.display());
        }
    }
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
