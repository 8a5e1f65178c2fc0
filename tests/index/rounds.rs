//! Changes by dice, beside scans, told or not: after a scan in peace the index is right, and the next one finds everything as printed.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use tierfs::catalog::index::ScanOptions;
use tierfs::ports::Lower;
use tierfs::types::Inode;

use crate::Env;

const ROUNDS: u64 = 25;
const CHANGES: usize = 60;

/// xorshift64*.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }
}

fn dir(dice: &mut Dice) -> PathBuf {
    let dir = PathBuf::from(format!("d{}", dice.below(4)));
    if dice.below(3) == 0 { dir.join("below") } else { dir }
}

fn name(dice: &mut Dice) -> PathBuf {
    let name = format!("f{}", dice.below(8));
    dir(dice).join(name)
}

/// Changes something if it can; the names that it concerned.
fn change(at: &Path, dice: &mut Dice) -> Vec<PathBuf> {
    let (one, other) = (name(dice), name(dice));
    // Half of it finds nothing to change, which is as good.
    match dice.below(8) {
        0 => drop(File::create_new(at.join(&one))),
        1 => drop(fs::remove_file(at.join(&one))),
        2 | 3 => drop(fs::rename(at.join(&one), at.join(&other))),
        4 => drop(fs::hard_link(at.join(&one), at.join(&other))),
        5 => drop(fs::set_permissions(at.join(&one), Permissions::from_mode(0o600 + dice.below(64) as u32))),
        6 => {
            let (from, to) = (dir(dice), dir(dice).join("moved"));
            drop(fs::rename(at.join(from.join("moved")), at.join(&to)).or_else(|_| fs::create_dir(at.join(&to))));
            return vec![from.join("moved"), to];
        }
        _ => {
            let gone = dir(dice).join("moved");
            drop(fs::remove_dir(at.join(&gone)));
            return vec![gone];
        }
    }
    vec![one, other]
}

fn node(env: &Env, path: &Path) -> Option<Inode> {
    let mut at = env.share.root();
    for name in path.iter() {
        at = env.share.lookup(&at, name).ok()?.0;
    }
    Some(at)
}

/// Tells the index, as the mount would.
fn tell(env: &Env, names: &[PathBuf]) {
    for path in names {
        let name: OsString = path.file_name().expect("a name").into();
        if let Some(dir) = path.parent().and_then(|dir| node(env, dir)) {
            env.index.recorder().named(&dir, &name);
            env.index.recorder().changed(&dir);
        }
        if let Some(file) = node(env, path) {
            env.index.recorder().changed(&file);
        }
    }
}

#[test]
fn after_a_scan_in_peace_the_index_is_right() {
    let Some(env) = Env::printed() else { return };
    let (mut compared, mut printed) = (0, 0);
    for round in 1..=ROUNDS {
        let seed = round.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (index, over) = (&env.index, &over);
            scope.spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    index.scan(ScanOptions::default()).expect("a scan");
                }
            });
            let mut dice = Dice(seed);
            for n in 0..CHANGES {
                let names = change(&env.fs.path(), &mut dice);
                // A third of the rounds tells all, a third some, a third nothing.
                if round % 3 == 0 || round % 3 == 1 && dice.below(2) == 0 {
                    tell(&env, &names);
                }
                if n % 10 == 0 {
                    env.index.take();
                }
            }
            over.store(true, Ordering::SeqCst);
        });
        env.index.take();
        let first = env.scan();
        assert_eq!(env.differences(), Vec::<String>::new(), "round {round}");
        env.scan();
        let again = env.scan();
        assert_eq!((again.as_printed, again.changes), (again.dirs, 0), "round {round}");
        compared += first.dirs - first.as_printed;
        printed += first.as_printed;
    }
    // Not all of it by comparing, and not all by prints.
    assert!(compared > 0 && printed > 0, "{compared} {printed}");
    env.close();
}
