//! Who disturbs: threads that archive, release and recall files of a tree by their virtual attributes.
//!
//! Refusals that `docs/semantics.md` names for busy or changing files are counted; any other error is a finding.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::dice::Dice;
use crate::tools::{set_xattr, xattr};

/// Longest pause between two requests of a thread, in milliseconds: who works with the files shall get on, too.
const PACE_MS: u64 = 20;

/// What was done how often in one tree, by what was asked and how it ended; and what has really moved by it.
#[derive(Default)]
pub struct Transfers {
    asked: BTreeMap<(&'static str, String), u64>,
    pub archived: u64,
    pub released: u64,
    pub recalled: u64,
}

impl Transfers {
    /// A request that was answered with success moved something only where there was something to move.
    fn count_moves(&mut self, verb: &str, before: &str, after: &str) {
        match (verb, before) {
            // An empty file stays as it is.
            ("migrate", "resident" | "patched") if after != "resident" => {
                self.archived += 1;
                self.released += 1;
            }
            ("migrate" | "release", "dual") | ("release", "partial") => self.released += 1,
            ("recall", "stub" | "partial" | "patched") => self.recalled += 1,
            // The kernel had it wait for a migration, and nothing but a recall makes a file dual here.
            ("recall", "resident") if after == "dual" => self.recalled += 1,
            _ => {}
        }
    }

    fn add(&mut self, other: &Self) {
        for (key, count) in &other.asked {
            *self.asked.entry(key.clone()).or_default() += count;
        }
        self.archived += other.archived;
        self.released += other.released;
        self.recalled += other.recalled;
    }
}

/// The same of each tree.
#[derive(Default)]
pub struct Moved(pub BTreeMap<PathBuf, Transfers>);

impl Moved {
    pub fn add(&mut self, other: &Self) {
        for (tree, transfers) in &other.0 {
            self.0.entry(tree.clone()).or_default().add(transfers);
        }
    }
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (tree, moved)) in self.0.iter().enumerate() {
            let all: Vec<_> = moved.asked.iter().map(|((asked, ended), n)| format!("{asked} {ended} {n}")).collect();
            let (name, Transfers { archived, released, recalled, .. }) = (tree.file_name().unwrap_or_default(), moved);
            write!(f, "{}{}: ", if n > 0 { "; " } else { "" }, name.display())?;
            write!(f, "{archived} archived, {released} released, {recalled} recalled ({})", all.join(", "))?;
        }
        Ok(())
    }
}

/// What `tierfs info` would say, and nothing of files that are gone.
fn state(path: &Path) -> String {
    xattr(path, "user.tierfs.state")
        .map_or_else(|_| "gone".into(), |state| String::from_utf8_lossy(&state).into_owned())
}

/// Sets one attribute on files of `tree` until told to stop, with short pauses. `tree` may be a single file. Panics at an error that no busy file explains.
pub fn move_files(verb: &'static str, tree: &Path, seed: u64, stop: &AtomicBool, transfers: &Mutex<Transfers>) {
    let mut dice = Dice::new(seed);
    let attribute = format!("user.tierfs.{verb}");
    while !stop.load(Ordering::Relaxed) {
        let files = files_below(tree);
        if files.is_empty() {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        }
        // A listing serves for a while: walking a tree of thousands for each file would be all this does.
        for _ in 0..files.len().min(64) {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let path = &files[dice.below(files.len() as u64) as usize];
            let (seen, before) = (identity(path), state(path));
            let ended = match set_xattr(path, &attribute, b"1") {
                Ok(()) => "done".to_owned(),
                Err(libc::EBUSY) => "busy".to_owned(),
                // Removed or replaced meanwhile; links and special files cannot be moved.
                Err(libc::ENOENT | libc::ESTALE | libc::ENOTDIR) => "gone".to_owned(),
                // Removed, and its inode number used again: the kernel answers so for the old inode (`docs/semantics.md`).
                Err(libc::EIO) if identity(path) != seen => "gone".to_owned(),
                // Seen once, with a stressor that fills directories; nothing of ours answers so.
                Err(libc::ENOMEM) => "no memory".to_owned(),
                Err(libc::EINVAL | libc::EPERM | libc::EOPNOTSUPP) => "refused".to_owned(),
                Err(errno) => panic!(
                    "{verb} {}: {}; its state is {:?}",
                    path.display(),
                    std::io::Error::from_raw_os_error(errno),
                    state(path)
                ),
            };
            let after = state(path);
            let mut transfers = transfers.lock().unwrap();
            if ended == "done" {
                transfers.count_moves(verb, &before, &after);
            }
            *transfers.asked.entry((verb, ended)).or_default() += 1;
            drop(transfers);
            std::thread::sleep(Duration::from_millis(dice.below(PACE_MS)));
        }
    }
}

/// What tells a file from another of its name, unless it is written to.
pub fn identity(path: &Path) -> Option<(u64, i64, i64)> {
    std::fs::symlink_metadata(path).ok().map(|meta| (meta.ino(), meta.mtime(), meta.mtime_nsec()))
}

/// All regular files below `tree`, as far as they can still be seen.
fn files_below(tree: &Path) -> Vec<PathBuf> {
    let Ok(meta) = std::fs::symlink_metadata(tree) else { return Vec::new() };
    if meta.is_file() {
        return vec![tree.to_owned()];
    }
    let (mut found, mut open) = (Vec::new(), vec![tree.to_owned()]);
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(entry.path()),
                Ok(kind) if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found
}

/// Runs `work` while files of `trees` are migrated, released and recalled by a thread each; what was moved.
pub fn while_moving<T>(trees: &[&Path], seed: u64, work: impl FnOnce() -> T) -> (T, Moved) {
    let stop = AtomicBool::new(false);
    let counts: Vec<Mutex<Transfers>> = trees.iter().map(|_| Mutex::default()).collect();
    let result = std::thread::scope(|scope| {
        let stop = &stop;
        let end = StopAtEnd(stop);
        for (n, (tree, counts)) in trees.iter().zip(&counts).enumerate() {
            for (m, verb) in ["migrate", "release", "recall"].into_iter().enumerate() {
                scope.spawn(move || move_files(verb, tree, seed ^ ((n * 3 + m) as u64) << 32, stop, counts));
            }
        }
        let result = work();
        drop(end);
        result
    });
    let counts = counts.into_iter().map(|counts| counts.into_inner().unwrap());
    (result, Moved(trees.iter().map(|tree| tree.to_path_buf()).zip(counts).collect()))
}

/// Sets a flag when dropped, at a panic as well: or the threads would go on for ever.
pub struct StopAtEnd<'a>(pub &'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
