//! One change at a time: the directories that it concerns are compared, the others pass by their prints, and the index is right.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, RenameFlags, XattrFlags, renameat_with};
use tierfs::catalog::index::ScanOptions;
use tierfs::ports::Lower;
use tierfs::record::{ObjectRef, PairRef, Record};
use tierfs::types::{Claim, ContentHash, Generation, ObjectKey, Timestamp};

use crate::{ALL, DIRS, Env};

type Change = (&'static str, u64, fn(&Path));

/// What is done below the mount, and how many directories are other ones by it: those whose names or files it concerns, and those above, which
/// have their times.
const CHANGES: &[Change] = &[
    ("nothing", 0, |_| {}),
    ("a mode", 1, |at| fs::set_permissions(at.join("d3/f1"), Permissions::from_mode(0o600)).unwrap()),
    ("the same mode: the change time alone", 1, |at| {
        fs::set_permissions(at.join("d3/f1"), Permissions::from_mode(0o600)).unwrap();
    }),
    ("an owner", 1, |at| std::os::unix::fs::chown(at.join("d3/f2"), Some(5), None).unwrap()),
    ("a group", 1, |at| std::os::unix::fs::lchown(at.join("d3/link"), None, Some(6)).unwrap()),
    ("a time of access", 1, |at| {
        let times = fs::FileTimes::new().set_accessed(SystemTime::UNIX_EPOCH + Duration::from_secs(1_500_000_000));
        File::options().write(true).open(at.join("d3/f3")).unwrap().set_times(times).unwrap();
    }),
    ("an attribute", 1, |at| {
        rustix::fs::setxattr(at.join("d3/f4"), "user.some", b"thing", XattrFlags::empty()).unwrap();
    }),
    ("the mode of a directory", 1, |at| fs::set_permissions(at.join("d4"), Permissions::from_mode(0o700)).unwrap()),
    ("a new file", 2, |at| drop(File::create(at.join("d4/new")).unwrap())),
    ("a file that is gone", 2, |at| fs::remove_file(at.join("d4/new")).unwrap()),
    ("another name", 2, |at| fs::rename(at.join("d4/f1"), at.join("d4/g1")).unwrap()),
    ("a file moved up the order", 3, |at| fs::rename(at.join("d4/g1"), at.join("d7/g1")).unwrap()),
    ("a file moved back", 3, |at| fs::rename(at.join("d7/g1"), at.join("d4/f1")).unwrap()),
    ("a file over another", 3, |at| fs::rename(at.join("d6/f1"), at.join("d5/f1")).unwrap()),
    ("two files exchanged", 3, |at| {
        renameat_with(CWD, at.join("d5/f2"), CWD, at.join("d6/f2"), RenameFlags::EXCHANGE).unwrap();
    }),
    ("a directory's other name", 1, |at| fs::rename(at.join("d6"), at.join("e6")).unwrap()),
    ("a directory's old name", 1, |at| fs::rename(at.join("e6"), at.join("d6")).unwrap()),
    ("two directories exchanged", 3, |at| {
        // They keep their files; each has another name for the directory above it.
        renameat_with(CWD, at.join("d5/below"), CWD, at.join("d6/below"), RenameFlags::EXCHANGE).unwrap();
    }),
    ("a link that leads elsewhere", 2, |at| {
        fs::remove_file(at.join("d5/link")).unwrap();
        symlink("elsewhere", at.join("d5/link")).unwrap();
    }),
    ("the mode of a file with four names in three directories", 3, |at| {
        fs::set_permissions(at.join("d2/fourth"), Permissions::from_mode(0o640)).unwrap();
    }),
    ("one more name", 5, |at| fs::hard_link(at.join("d0/f0"), at.join("d7/fifth")).unwrap()),
    ("one name less", 5, |at| fs::remove_file(at.join("d7/fifth")).unwrap()),
    ("a name moved", 4, |at| fs::rename(at.join("d1/other"), at.join("d2/other")).unwrap()),
    ("a directory of the same number and names", 2, |at| {
        fs::remove_dir(at.join("d7/below")).unwrap();
        fs::create_dir(at.join("d7/below")).unwrap();
    }),
    ("two files whose modes change places", 1, |at| {
        fs::set_permissions(at.join("d7/f1"), Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(at.join("d7/f2"), Permissions::from_mode(0o640)).unwrap();
    }),
];

#[test]
fn what_changed_below_is_compared_and_nothing_else() {
    let Some(env) = Env::printed() else { return };
    for (what, compared, change) in CHANGES {
        change(&env.fs.path());
        let scanned = env.scan();
        assert_eq!(env.differences(), Vec::<String>::new(), "{what}");
        // A directory that came has no print, and is not as one that went; files with several names may be looked at twice.
        let met = scanned.dirs - scanned.as_printed;
        let extra = u64::from(what.starts_with("a directory of the same"));
        assert_eq!(met, compared + extra, "{what}: {scanned:?}");
        env.scan();
        let again = env.scan();
        assert_eq!((again.as_printed, again.changes), (ALL, 0), "{what}");
    }
    env.close();
}

#[test]
fn what_the_mount_tells_of_is_compared() {
    let Some(env) = Env::printed() else { return };
    let recorder = env.index.recorder();
    let root = env.share.root();
    let (dir, _) = env.share.lookup(&root, OsStr::new("d3")).unwrap();
    let (file, _) = env.share.lookup(&dir, OsStr::new("f1")).unwrap();
    // Counts of opens are no business of the listing's, and stay.
    recorder.opened(file.id, 1_800_000_000);
    env.index.take();
    assert_eq!(env.scan().as_printed, ALL);
    // Looked at, though there is nothing new.
    recorder.changed(&file);
    env.index.take();
    assert_eq!(env.scan().as_printed, ALL - 1);
    fs::rename(env.at("d3/f1"), env.at("d5/moved")).unwrap();
    let (to, _) = env.share.lookup(&root, OsStr::new("d5")).unwrap();
    recorder.renamed(&dir, OsStr::new("f1"), &to, OsStr::new("moved"));
    env.index.take();
    // And the directory above, whose row has their old times.
    assert_eq!(env.scan().as_printed, ALL - 3);
    assert_eq!(env.differences(), Vec::<String>::new());
    let opens = "SELECT accesses FROM f WHERE name = 'moved'";
    assert_eq!(env.db().query_row(opens, [], |row| row.get::<_, i64>(0)).unwrap(), 1);
    env.close();
}

#[test]
fn whoever_changes_a_row_takes_the_print() {
    let Some(env) = Env::printed() else { return };
    let one = "(SELECT ino FROM f WHERE name = 'f2' AND parent = inode_of.d3)";
    for statement in [
        "UPDATE f SET birth = birth + 1 WHERE ino = $one",
        "UPDATE f SET kind = 'p' WHERE ino = $one",
        "UPDATE f SET mode = mode + 1 WHERE ino = $one",
        "UPDATE f SET nlink = nlink + 1 WHERE ino = $one",
        "UPDATE f SET uid = uid + 1 WHERE ino = $one",
        "UPDATE f SET gid = gid + 1 WHERE ino = $one",
        "UPDATE f SET project = project + 1 WHERE ino = $one",
        "UPDATE f SET size = size + 1 WHERE ino = $one",
        "UPDATE f SET blocks = blocks + 1 WHERE ino = $one",
        "UPDATE f SET atime = atime + 1 WHERE ino = $one",
        "UPDATE f SET mtime = mtime + 1 WHERE ino = $one",
        "UPDATE f SET ctime_ns = ctime_ns + 1 WHERE ino = $one",
        "UPDATE f SET btime = btime + 1 WHERE ino = $one",
        "UPDATE f SET sealed = 1 WHERE ino = $one",
        "UPDATE f SET name = 'another' WHERE ino = $one",
        "UPDATE f SET parent = $d5 WHERE ino = $one",
        "DELETE FROM f WHERE ino = $one",
        "DELETE FROM f WHERE kind = 'd' AND name = 'd3'",
        "INSERT INTO f SELECT 900000, birth, kind, mode, nlink, uid, gid, project, size, blocks, atime, mtime, ctime_ns, btime, sealed, state, \
         pinned, pair, generation, parent, 'made up', 0, NULL, NULL, NULL, NULL, NULL FROM f WHERE ino = $one",
        "INSERT INTO links VALUES ($d3, 'f3', $one)",
        "DELETE FROM links WHERE name = 'fourth'",
        "DELETE FROM f WHERE ino IN (SELECT ino FROM links)",
    ] {
        let number = |dir| format!("(SELECT ino FROM f WHERE name = '{dir}' AND kind = 'd')");
        let one = one.replace("inode_of.d3", &number("d3"));
        let statement = statement.replace("$one", &one).replace("$d3", &number("d3")).replace("$d5", &number("d5"));
        let changed = env.db().execute(&statement, []).unwrap();
        assert!(changed > 0, "{statement}");
        assert!(!env.differences().is_empty(), "{statement}");
        let scanned = env.scan();
        assert_eq!(env.differences(), Vec::<String>::new(), "{statement}");
        assert!((1..=4).contains(&(ALL - scanned.as_printed)), "{statement}: {scanned:?}");
        env.scan();
        assert_eq!(env.scan().as_printed, ALL, "{statement}");
    }
    env.close();
}

#[test]
fn rows_changed_between_comparing_and_writing_are_compared_again() {
    let Some(env) = Env::printed() else { return };
    let mut db = env.db();
    db.execute("UPDATE prints SET print = NULL", []).unwrap();
    std::thread::scope(|scope| {
        let scan = scope.spawn(|| env.index.scan(ScanOptions { rate: 100, threads: 1 }).unwrap());
        wait_until(|| env.index.scanning().is_some_and(|(_, dirs)| dirs >= 1));
        // Nobody else writes meanwhile; threads read and compare.
        let ours = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
        wait_until(|| env.index.scanning().is_some_and(|(_, dirs)| dirs == ALL));
        ours.execute("UPDATE f SET size = 77 WHERE name = 'f2'", []).unwrap();
        ours.commit().unwrap();
        assert_eq!(scan.join().unwrap().as_printed, 0);
    });
    assert!(!env.differences().is_empty());
    env.scan();
    assert_eq!(env.differences(), Vec::<String>::new());
    env.close();
}

fn wait_until(done: impl Fn() -> bool) {
    for _ in 0..3000 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it never was");
}

#[test]
fn what_is_thrown_away_has_no_prints() {
    let Some(env) = Env::printed() else { return };
    env.index.clear().unwrap();
    assert_eq!(env.scan().as_printed, 0);
    assert_eq!(env.differences(), Vec::<String>::new());
    env.close();
}

/// A first scan reads everything; the daemon died before it had made the table's indexes.
#[test]
fn a_first_filling_cut_off_at_its_end_leaves_nothing_behind() {
    let Some(env) = Env::new() else { return };
    env.scan();
    env.index.close();
    let db = env.db();
    for cut in [
        "UPDATE meta SET value = 'scanning' WHERE name = 'state'",
        "UPDATE meta SET value = '1' WHERE name = 'filling'",
        "DROP INDEX f_name",
        "DROP INDEX f_dirs",
        "DROP TRIGGER f_new",
        "DROP TRIGGER links_new",
    ] {
        db.execute(cut, []).unwrap();
    }
    drop(db);
    fs::remove_file(env.at("d3/f1")).unwrap();
    fs::remove_dir_all(env.at("d4")).unwrap();
    let index = tierfs::catalog::index::Index::open(env.share.clone(), env.index.path()).unwrap();
    let Env { share, fs, .. } = env;
    let env = Env { index, share, fs };
    env.scan();
    assert_eq!(env.differences(), Vec::<String>::new());
    env.scan();
    assert_eq!(env.scan().as_printed, ALL - 2);
    assert_eq!(env.differences(), Vec::<String>::new());
    env.close();
}

#[test]
fn a_scan_that_was_stopped_goes_on_by_prints() {
    let Some(env) = Env::printed() else { return };
    fs::set_permissions(env.at("d3/f1"), Permissions::from_mode(0o600)).unwrap();
    let mut met = 0;
    std::thread::scope(|scope| {
        let scan = scope.spawn(|| env.index.scan(ScanOptions { rate: 50, threads: 1 }).unwrap());
        wait_until(|| env.index.scanning().is_some_and(|(_, dirs)| dirs >= 3));
        env.index.stop_scan();
        let stopped = scan.join().unwrap();
        assert!(stopped.stopped, "{stopped:?}");
        met += stopped.as_printed;
    });
    met += env.scan().as_printed;
    assert_eq!(met, ALL - 1);
    assert_eq!(env.differences(), Vec::<String>::new());
    env.close();
}

/// What the change time does not tell apart: a record stored within the tick in which the file was changed last.
#[test]
fn a_file_that_is_young_is_looked_at_again() {
    let Some(env) = Env::printed() else { return };
    fs::write(env.at("d3/f1"), b"content").unwrap();
    env.scan();
    let young = env.scan();
    assert_eq!((young.as_printed, young.records), (ALL - 1, 1), "{young:?}");
    // The row as it would be if the record of before had been read.
    env.db().execute("UPDATE f SET state = 3 WHERE name = 'f1' AND size > 0", []).unwrap();
    std::thread::sleep(Duration::from_millis(3200));
    // The scan before had found it young, so its record may be another one.
    assert_eq!(env.scan().records, 1);
    assert_eq!(env.differences(), Vec::<String>::new());
    let settled = env.scan();
    assert_eq!((settled.as_printed, settled.records), (ALL, 0));

    // A record moves the change time, and stays.
    let record =
        Record { claim: Claim::Stub, generation: Generation(1), object: Some(object(7)), ..Record::unclaimed() };
    let path = env.at("d3/f1");
    let stored = record.encode();
    rustix::fs::setxattr(&path, "trusted.tierfs.record", &stored, XattrFlags::empty()).unwrap();
    let state = || {
        let of = "SELECT state FROM f WHERE name = 'f1' AND size > 0";
        env.db().query_row(of, [], |row| row.get::<_, i64>(0)).unwrap()
    };
    assert_eq!((env.scan().records, state()), (1, 3));
    std::thread::sleep(Duration::from_millis(3200));
    assert_eq!((env.scan().records, state()), (1, 3));
    assert_eq!((env.scan().as_printed, state()), (ALL, 3));
    assert_eq!(env.differences(), Vec::<String>::new());
    const { assert!(DIRS > 7) };
    env.close();
}

fn object(len: u64) -> ObjectRef {
    ObjectRef {
        pair: PairRef {
            name: "cold".parse().unwrap(),
            local_cluster: "east".parse().unwrap(),
            local_share: "/srv/share".into(),
            remote_cluster: "west".parse().unwrap(),
            remote_share: "cold/east".into(),
        },
        key: ObjectKey("east/d3/f1/1234567890abcdef".into()),
        etag: "\"0123456789abcdef0123456789abcdef\"".into(),
        version: None,
        generation: Generation(1),
        len,
        mtime: Timestamp { secs: 1_600_000_000, nanos: 0 },
        chunk_size: 4 << 20,
        root: ContentHash([7; 32]),
    }
}
