//! fsx: random reads, writes, mappings, cuts and holes, compared at each read, on files that are moved away meanwhile.
//!
//! An open file is never released, so every profile closes and opens its file often, with a pause between: of any length, which may end
//! in the middle of a transfer; until the file is a stub; or until it has come back from that. The pauses, and O_DIRECT, which fsx does not
//! know, come from a small library loaded into it (`fsx_shim.c`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use crate::common::run;
use crate::mover::{Moved, while_moving};
use crate::place::{Progress, ends, installed, rig, soak_seed, until_enough_moved};
use crate::rig::*;

/// Longest pause of any length after a close, in microseconds: a copy begins when its file has rested for 20 ms.
const PAUSE_US: &str = "80000";
/// How long a pause waits for the file to move at most, in microseconds: long enough for large files on a busy machine.
const PATIENCE_US: &str = "3000000";
/// Operations from which on there are fewer pauses, for they would take most of the time.
const MANY: u64 = 10_000;
/// Weights of every profile; the rest is what differs.
const COMMON: &str = "close_open = 10\nread = 10\nwrite = 10\ntruncate = 5\nfsync = 0.5\nfdatasync = 0.5\npunch_hole = 3\n\
    sendfile = 3\nposix_fadvise = 2\ncopy_file_range = 3\n";
const MAPPED: &str = "mapread = 10\nmapwrite = 10\nposix_fallocate = 1\n";
const UNMAPPED: &str = "mapread = 0\nmapwrite = 0\n";
/// What O_DIRECT needs. fsx cannot align its posix_fallocate.
const ALIGNED: &str = "[opsize]\nalign = 4096\n";

struct Profile {
    name: &'static str,
    /// What stands before the weights.
    settings: &'static str,
    weights: &'static str,
    direct: bool,
}

const PROFILES: [Profile; 6] = [
    Profile { name: "calls", settings: "", weights: UNMAPPED, direct: false },
    Profile { name: "mapped", settings: "", weights: MAPPED, direct: false },
    Profile { name: "unsynced", settings: "nomsyncafterwrite = true\n", weights: MAPPED, direct: false },
    // Beyond 1 MiB a stub is opened before its content is there.
    Profile { name: "large", settings: "flen = 3000000\n[opsize]\nmax = 300000\n", weights: MAPPED, direct: false },
    Profile { name: "direct", settings: ALIGNED, weights: UNMAPPED, direct: true },
    Profile { name: "direct-mapped", settings: ALIGNED, weights: "mapread = 5\nmapwrite = 5\n", direct: true },
];

/// The library to load into fsx, compiled by the C compiler that building needs, too.
fn shim(rig: &Rig) -> PathBuf {
    let (source, library) =
        (concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suites/fsx_shim.c"), rig.scratch("fsx_shim.so"));
    run("cc", &["-O1", "-Wall", "-shared", "-fPIC", "-o", library.to_str().unwrap(), source, "-ldl"]);
    library
}

fn command(profile: &Profile, dir: &Path, artifacts: &Path, shim: &Path, operations: u64, seed: u64) -> Command {
    let Profile { name, settings, weights, direct } = profile;
    let configuration = artifacts.join(format!("{name}.toml"));
    fs::write(&configuration, format!("{settings}[weights]\n{COMMON}{weights}")).unwrap();
    let mut command = Command::new(installed("fsx"));
    command.arg("-f").arg(configuration).arg("-P").arg(artifacts);
    command.args(["-N", &operations.to_string(), "-S", &seed.to_string()]).arg(dir.join(name)).current_dir("/");
    command.env("LD_PRELOAD", shim).env("FSX_FILE", format!("/{name}")).env("FSX_PAUSE_US", PAUSE_US);
    // Closes for each that has a pause.
    command.env("FSX_PAUSE_ONE_IN", if operations < MANY { "20" } else { "50" }).env("FSX_PATIENCE_US", PATIENCE_US);
    if *direct {
        command.env("FSX_DIRECT", "1");
    }
    command
}

/// The profiles that `SOAK_PROFILES` names (separated by commas), or all.
fn profiles() -> Vec<&'static Profile> {
    let Ok(wanted) = std::env::var("SOAK_PROFILES") else { return PROFILES.iter().collect() };
    let named = |name: &str| PROFILES.iter().find(|profile| profile.name == name);
    wanted
        .split(',')
        .map(|name| named(name).unwrap_or_else(|| panic!("SOAK_PROFILES: there is no profile {name:?}")))
        .collect()
}

/// Runs profiles at once, `operations` each, with movers on their files; with other dice again, until enough moved.
fn fsx(kind: &'static str, operations: u64, seed: u64, profiles: &[&'static Profile]) {
    let Some(mut rig) = rig(kind, 1 << 30) else { return };
    let (dir, artifacts, shim) = (rig.mnt("fsx"), rig.scratch("artifacts"), shim(&rig));
    fs::create_dir(&dir).unwrap();
    fs::create_dir(&artifacts).unwrap();
    let progress = Progress::new();
    until_enough_moved(&mut rig, &format!("fsx on {kind}"), |_, round| {
        let (seed, all) = (seed + round, Mutex::new(Moved::default()));
        eprintln!("fsx on {kind}: {operations} operations a profile, seed {seed}");
        std::thread::scope(|scope| {
            for (n, profile) in profiles.iter().enumerate() {
                let mut command = command(profile, &dir, &artifacts, &shim, operations, seed);
                let (progress, all, file, name) = (&progress, &all, dir.join(profile.name), profile.name);
                scope.spawn(move || {
                    // What moves when it has ended would show nothing.
                    let (output, moved) = while_moving(&[&file], seed ^ (n as u64) << 40, || ends(&mut command));
                    assert!(output.status.success(), "fsx {name} on {kind}, seed {seed}: {}", said(&output));
                    progress.say(&format!("fsx {name} on {kind}: {operations} operations, no mismatch; {moved}"));
                    all.lock().unwrap().add(&moved);
                });
            }
        });
        all.into_inner().unwrap()
    });
}

#[test]
fn fsx_finds_no_mismatch_on_files_that_move() {
    fsx("ext4", 4000, 7, &PROFILES.iter().collect::<Vec<_>>());
}

#[test]
#[ignore = "long: make soak"]
fn soak_fsx_on_ext4() {
    fsx("ext4", 100_000, soak_seed(), &profiles());
}

#[test]
#[ignore = "long: make soak"]
fn soak_fsx_on_xfs() {
    fsx("xfs", 100_000, soak_seed(), &profiles());
}
