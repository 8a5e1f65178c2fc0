//! Walks that are left and gone on with: nothing is met twice, nothing is missed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use tierfs::catalog::walk::{Place, Step, Walk, resolve};
use tierfs::ports::Lower;

use crate::Env;

fn next(walk: &mut Walk<'_>) -> Option<PathBuf> {
    match walk.step()? {
        Step::File(found) => Some(found.path),
        Step::Failed(path, error) => panic!("{}: {error}", path.display()),
    }
}

/// A walk from `places` on, or from the beginning.
fn walk_from<'l>(lower: &'l dyn Lower, places: &[Place]) -> Walk<'l> {
    Walk::from_place(lower, resolve(lower, Path::new("")).expect("root"), places).expect("walk")
}

/// Some directories inside each other, empty ones and full ones.
fn populate(top: &Path) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    for dir in ["", "a", "a/b", "a/b/c", "d", "empty", "ü\u{1}"] {
        fs::create_dir_all(top.join(dir)).expect("mkdir");
        for n in 0..if dir == "empty" { 0 } else { 7 } {
            let path = Path::new(dir).join(format!("file {n}"));
            fs::write(top.join(&path), b"x").expect("write");
            files.insert(path);
        }
    }
    std::os::unix::fs::symlink("a", top.join("link")).expect("symlink");
    files
}

pub fn a_walk_goes_on_from_any_place(env: Env) {
    let files = populate(&env.fs.path());
    let share = &*env.share;
    let whole: Vec<_> = std::iter::from_fn({
        let mut walk = walk_from(share, &[]);
        move || next(&mut walk)
    })
    .collect();
    assert_eq!((whole.iter().cloned().collect::<BTreeSet<_>>(), whole.len()), (files.clone(), files.len()));
    for left_after in 0..=files.len() {
        let mut first = walk_from(share, &[]);
        (0..left_after).for_each(|_| drop(next(&mut first)));
        let places = first.place();
        // As another process would, which knows names and numbers only.
        let mut rest = walk_from(share, &places);
        let rest: Vec<_> = std::iter::from_fn(|| next(&mut rest)).collect();
        assert_eq!(rest, whole[left_after..], "left after {left_after} at {places:?}");
    }
}

pub fn a_walk_goes_on_after_what_is_gone(env: Env) {
    let top = env.fs.path();
    let files = populate(&top);
    let share = &*env.share;
    // Left in the deepest directory.
    let mut walk = walk_from(share, &[]);
    let mut seen = BTreeSet::new();
    let mut places = Vec::new();
    while let Some(path) = next(&mut walk) {
        seen.insert(path.clone());
        if path.starts_with("a/b/c") {
            places = walk.place();
            break;
        }
    }
    assert_eq!(places.len(), 4, "{places:?}");
    fs::remove_dir_all(top.join("a/b")).expect("remove");
    let mut walk = walk_from(share, &places);
    while let Some(path) = next(&mut walk) {
        assert!(seen.insert(path.clone()), "{} is met twice", path.display());
    }
    let missed: Vec<_> = files.iter().filter(|path| !path.starts_with("a/b") && !seen.contains(*path)).collect();
    assert!(missed.is_empty(), "missed: {missed:?}");
    // A file in the place of the directory is one of the directory above, and behind the place or before it.
    fs::remove_dir_all(top.join("a")).expect("remove");
    fs::write(top.join("a"), b"x").expect("write");
    let mut walk = walk_from(share, &places);
    assert!(std::iter::from_fn(|| next(&mut walk)).all(|path| path == Path::new("a") || !path.starts_with("a")));
}
