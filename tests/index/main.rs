//! Scans of the index on a real share: what a fingerprint lets pass unread is what a comparison would have left as it is.
//!
//! The oracle is an index made anew of the same share: whatever happened to the one under test (changes below the mount, hints, lost hints,
//! other hands on its rows, scans cut off), after one scan in peace the two say the same. Files are empty where no more is needed: records of
//! others are read again until they are two seconds old, and their directories have no print until then.
//!
//! Needs root and `mkfs.ext4`.

mod cases;
#[path = "../common/mod.rs"]
mod common;
mod conditions;
mod rounds;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use common::{LoopFs, can_mount};
use rusqlite::Connection;
use tierfs::catalog::index::{Index, ScanOptions, Scanned, reader};
use tierfs::lower::Share;

const DIRS: usize = 8;
/// With the root, and with one directory below each.
const ALL: u64 = 1 + 2 * DIRS as u64;

struct Env {
    index: Arc<Index>,
    share: Arc<Share>,
    fs: LoopFs,
}

impl Env {
    fn new() -> Option<Self> {
        if !can_mount() {
            return None;
        }
        // Reading would move the directories' access times, which are in their rows.
        let fs = LoopFs::with_options("ext4", 64 << 20, ",noatime");
        let share = Arc::new(Share::open(&fs.path()).expect("share"));
        let index = Index::open(share.clone(), &fs.scratch().join("index")).expect("index");
        let env = Self { index, share, fs };
        fs::remove_dir(env.at("lost+found")).unwrap();
        for n in 0..DIRS {
            let dir = env.at(&format!("d{n}"));
            fs::create_dir_all(dir.join("below")).unwrap();
            for file in 0..6 {
                fs::File::create(dir.join(format!("f{file}"))).unwrap();
            }
            symlink("nowhere", dir.join("link")).unwrap();
        }
        for other in ["d1/other", "d1/third", "d2/fourth"] {
            fs::hard_link(env.at("d0/f0"), env.at(other)).unwrap();
        }
        Some(env)
    }

    /// Scanned until all has its print.
    fn printed() -> Option<Self> {
        let env = Self::new()?;
        env.scan();
        env.scan();
        assert_eq!(env.scan().as_printed, ALL);
        assert_eq!(env.differences(), Vec::<String>::new());
        Some(env)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.fs.path().join(name)
    }

    fn scan(&self) -> Scanned {
        let scanned = self.index.scan(ScanOptions::default()).expect("a scan");
        assert!(!scanned.stopped && scanned.failed == 0, "{scanned:?}");
        scanned
    }

    /// The index's file, as nobody but a test opens it.
    fn db(&self) -> Connection {
        let db = Connection::open(self.index.path()).unwrap();
        db.busy_timeout(Duration::from_secs(10)).unwrap();
        db
    }

    /// What the index says otherwise than one made anew.
    fn differences(&self) -> Vec<String> {
        let path = self.fs.scratch().join("anew");
        for suffix in ["", "-wal", "-shm"] {
            // There may be none.
            let _ = fs::remove_file(self.fs.scratch().join(format!("anew{suffix}")));
        }
        let anew = Index::open(self.share.clone(), &path).unwrap();
        anew.scan(ScanOptions::default()).unwrap();
        let (ours, right) = (said(&self.index), said(&anew));
        anew.close();
        let wrong = ours.difference(&right).map(|row| format!("only here: {row}"));
        wrong.chain(right.difference(&ours).map(|row| format!("missing: {row}"))).collect()
    }

    fn close(self) {
        self.index.close();
    }
}

/// All rows, and all names of files with several; which of these a row has is nobody's business.
fn said(index: &Index) -> BTreeSet<String> {
    let db = reader(index.path()).unwrap();
    let mut said = BTreeSet::new();
    for sql in [
        "SELECT concat_ws(' ', ino, birth, kind, mode, nlink, uid, gid, project, size, blocks, atime, mtime, ctime_ns, btime, sealed, state, \
         pinned, pair, generation, iif(kind <> 'd' AND nlink > 1, parent > 0, concat(parent, ' ', name))) FROM f",
        "SELECT concat_ws(' ', 'name', parent, name, ino) FROM links",
    ] {
        let mut rows = db.prepare(sql).unwrap();
        said.extend(rows.query_map([], |row| row.get::<_, String>(0)).unwrap().map(Result::unwrap));
    }
    said
}
