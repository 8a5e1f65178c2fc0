//! What people run on a filesystem: git, cargo, SQLite, rsync, fio, dbench and stress-ng, on trees whose files are moved away and back
//! meanwhile.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

use crate::mover::while_moving;
use crate::place::{Progress, ends, rig, soak_seed, soak_time, until_enough_moved};
use crate::rig::*;

/// A command in `dir` that must succeed; what it said.
#[track_caller]
fn does(dir: &Path, program: &str, args: &[&str]) -> String {
    let output = tries(dir, program, args);
    assert!(output.status.success(), "{program} {args:?}: {}\n{}", output.status, said(&output));
    said(&output)
}

fn tries(dir: &Path, program: &str, args: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(args).current_dir(dir);
    // Nobody's settings but these.
    for (name, value) in [("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_CONFIG_SYSTEM", "/dev/null")] {
        command.env(name, value);
    }
    for who in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{who}_NAME"), "t").env(format!("GIT_{who}_EMAIL"), "t@example.org");
    }
    ends(&mut command)
}

/// Runs `work` in a new directory of a mount on `kind`, of which all files move; again in another, until enough of them did.
fn moving(what: &str, kind: &'static str, seed: u64, work: impl Fn(&Rig, &Path)) {
    let Some(mut rig) = rig(kind, 4 << 30) else { return };
    let (all, progress) = (rig.mnt("work"), Progress::new());
    fs::create_dir(&all).unwrap();
    until_enough_moved(&mut rig, &format!("{what} on {kind}"), |rig, round| {
        let dir = all.join(format!("r{round}"));
        fs::create_dir(&dir).unwrap();
        let ((), transfers) = while_moving(&[&all], seed ^ (round << 48), || work(rig, &dir));
        progress.say(&format!("{what} on {kind}: good"));
        transfers
    });
}

/// Commits, packs, clones and checks.
fn git(dir: &Path, commits: usize) {
    let (origin, copy) = (dir.join("origin"), dir.join("copy"));
    does(dir, "git", &["init", "-q", "origin"]);
    for n in 0..commits {
        for file in 0..4 {
            fs::write(origin.join(format!("f{}", (n * 3 + file) % 40)), noise(&format!("{n} {file}"), 30_000)).unwrap();
        }
        does(&origin, "git", &["add", "-A"]);
        does(&origin, "git", &["commit", "-q", "-m", &format!("commit {n}")]);
    }
    does(&origin, "git", &["gc", "-q", "--prune=now"]);
    does(dir, "git", &["clone", "-q", "--no-local", "origin", "copy"]);
    does(&copy, "git", &["repack", "-q", "-a", "-d", "-f"]);
    for repository in [&origin, &copy] {
        does(repository, "git", &["fsck", "--full", "--strict"]);
        assert_eq!(does(repository, "git", &["status", "--porcelain"]), "");
        assert_eq!(does(repository, "git", &["rev-list", "--count", "HEAD"]).trim(), commits.to_string());
    }
    does(dir, "diff", &["-r", "--exclude=.git", "origin", "copy"]);
}

/// Builds a crate without dependencies, changes it, builds again.
fn cargo(dir: &Path, rounds: usize) {
    let source = dir.join("crate");
    fs::create_dir_all(source.join("src")).unwrap();
    fs::write(
        source.join("Cargo.toml"),
        "[package]\nname = \"c\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n",
    )
    .unwrap();
    for round in 0..rounds {
        let functions: String = (0..200).map(|n| format!("pub fn f{n}() -> usize {{ {n} + {round} }}\n")).collect();
        fs::write(source.join("src/lib.rs"), functions).unwrap();
        fs::write(source.join("src/main.rs"), "fn main() { println!(\"{}\", c::f7() + c::f100()); }\n").unwrap();
        let target = source.join("target");
        let mut build = Command::new(env!("CARGO"));
        build.args(["run", "-q", "--offline"]).current_dir(&source).env("CARGO_TARGET_DIR", &target);
        let output = ends(build.env_remove("RUSTFLAGS").env("CARGO_BUILD_JOBS", "2"));
        assert_eq!(said(&output).trim(), (107 + 2 * round).to_string(), "round {round}");
    }
}

/// Two processes insert rows, each noting on its standard output what was committed.
const INSERT: &str = r#"
import hashlib, sqlite3, sys
path, mode, worker, rows = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
db = sqlite3.connect(path, timeout=120, isolation_level=None)
# SQLite does not wait for others when it changes the mode, so this is done once before.
if rows == 0:
    assert db.execute("pragma journal_mode = " + mode).fetchone() == (mode,)
    db.execute("create table t (worker integer, n integer, body blob, primary key (worker, n))")
for n in range(rows):
    body = lambda n: hashlib.blake2b(b"%d %d" % (worker, n)).digest() * (1 + n % 50)
    db.execute("begin immediate")
    db.execute("insert into t values (?, ?, ?)", (worker, n, body(n)))
    if n % 10 == 9:
        db.execute("update t set body = ? where worker = ? and n = ?", (body(n - 5) * 2, worker, n - 5))
    if n % 7 == 3:
        db.execute("rollback")
    else:
        db.execute("commit")
    # Closed and opened again, so that the file can move.
    if n % 5 == 0:
        db.close()
        db = sqlite3.connect(path, timeout=120, isolation_level=None)
"#;

/// What must be in the database afterwards, computed without it.
const VERIFY: &str = r#"
import hashlib, sqlite3, sys
path, rows = sys.argv[1], int(sys.argv[2])
db = sqlite3.connect(path, timeout=120)
assert db.execute("pragma integrity_check").fetchall() == [("ok",)], "integrity_check"
wanted = {}
for worker in (0, 1):
    for n in range(rows):
        if n % 7 == 3:
            continue
        wanted[worker, n] = hashlib.blake2b(b"%d %d" % (worker, n)).digest() * (1 + n % 50)
        if n % 10 == 9 and (worker, n - 5) in wanted:
            wanted[worker, n - 5] *= 2
found = {(worker, n): body for worker, n, body in db.execute("select * from t")}
assert found.keys() == wanted.keys(), sorted(found.keys() ^ wanted.keys())[:10]
for key, body in wanted.items():
    assert found[key] == body, key
"#;

fn sqlite(dir: &Path, mode: &str, rows: u64) {
    let (path, rows) = (dir.join(format!("{mode}.db")), rows.to_string());
    does(dir, "python3", &["-c", INSERT, path.to_str().unwrap(), mode, "0", "0"]);
    std::thread::scope(|scope| {
        for worker in ["0", "1"] {
            let (path, rows) = (path.to_str().unwrap(), rows.as_str());
            scope.spawn(move || does(dir, "python3", &["-c", INSERT, path, mode, worker, rows]));
        }
    });
    does(dir, "python3", &["-c", VERIFY, path.to_str().unwrap(), &rows]);
}

/// Hard links, symbolic links, ACLs, attributes and holes; in, compared, out, compared.
fn rsync(rig: &Rig, dir: &Path, files: usize) {
    // On the same kind of filesystem as the share, which keeps the same attributes.
    let round = dir.file_name().unwrap();
    let (source, back) = (rig.fs.path().join("source").join(round), rig.fs.path().join("back").join(round));
    fs::create_dir_all(source.join("deep/er")).unwrap();
    for n in 0..files {
        let path = source.join(if n % 2 == 0 { format!("f{n}") } else { format!("deep/er/f{n}") });
        fs::write(&path, noise(&format!("{n}"), [0, 1, 5_000, 300_000, 2_000_000][n % 5])).unwrap();
        set_mtime(&path, 1_500_000_000 + n as i64, 123_000_000 + n as i64);
        match n % 5 {
            1 => fs::hard_link(&path, source.join(format!("hard{n}"))).unwrap(),
            2 => symlink(&path, source.join(format!("soft{n}"))).unwrap(),
            3 => set_xattr(&path, "user.note", format!("of {n}").as_bytes()).unwrap(),
            _ => fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap(),
        }
        if n % 4 == 0 {
            does(&source, "setfacl", &["-m", "u:nobody:rwx", path.to_str().unwrap()]);
        }
    }
    let (from, into, out) =
        (format!("{}/", source.display()), format!("{}/", dir.join("in").display()), format!("{}/", back.display()));
    let same = |a: &str, b: &str| {
        // Checksums of both sides, and every attribute: nothing is left to do.
        assert_eq!(does(Path::new("/"), "rsync", &["-aHAXcni", "--delete", a, b]), "", "{a} and {b} differ");
    };
    for _ in 0..2 {
        does(Path::new("/"), "rsync", &["-aHAX", "--delete", &from, &into]);
        same(&from, &into);
    }
    fs::create_dir_all(back.parent().unwrap()).unwrap();
    does(Path::new("/"), "rsync", &["-aHAX", &into, &out]);
    same(&from, &out);
}

/// Verifying jobs by calls, mapping and asynchronous O_DIRECT, over files that are closed between uses; then, all migrated, read again.
fn fio(dir: &Path, seed: u64, mib: u64) {
    let jobs = [("psync", "0"), ("mmap", "0"), ("libaio", "1")];
    let run = |verify_only: bool| {
        let mut args: Vec<String> =
            ["--verify=crc32c", "--verify_fatal=1", "--rw=randwrite", "--bs=4k", "--nrfiles=8", "--openfiles=2"]
                .map(str::to_owned)
                .to_vec();
        args.extend([format!("--directory={}", dir.display()), format!("--randseed={seed}")]);
        args.extend(["--file_service_type=sequential".into(), "--group_reporting".into()]);
        if verify_only {
            args.push("--verify_only=1".into());
        }
        for (engine, direct) in jobs {
            args.extend([format!("--name={engine}"), format!("--ioengine={engine}"), format!("--direct={direct}")]);
            args.extend([format!("--size={mib}m"), "--iodepth=8".into()]);
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        // fio leaves the states of its verification where it stands.
        does(&dir.join(".."), "fio", &args);
    };
    run(false);
    run(true);
}

#[test]
fn git_packs_and_clones_what_moves() {
    moving("git", "ext4", 1, |_, dir| git(dir, 8));
}

#[test]
fn sqlite_keeps_what_was_committed_while_its_files_move() {
    moving("SQLite", "ext4", 2, |_, dir| {
        sqlite(dir, "wal", 40);
        sqlite(dir, "delete", 40);
    });
}

#[test]
fn rsync_copies_in_and_out_what_moves() {
    moving("rsync", "xfs", 3, |rig, dir| rsync(rig, dir, 60));
}

#[test]
fn cargo_builds_while_its_files_move() {
    moving("cargo", "ext4", 4, |_, dir| cargo(dir, 2));
}

#[test]
fn fio_verifies_what_it_wrote_while_files_move() {
    moving("fio", "xfs", 5, |_, dir| fio(dir, 5, 4));
}

/// Names of the stressors that stress-ng says failed.
fn stress_ng(at: &Path, seconds: u64) -> (BTreeSet<String>, String) {
    let temporary = at.join("stress");
    fs::create_dir_all(&temporary).unwrap();
    let timeout = format!("{seconds}s");
    let args = ["--class", "filesystem", "--sequential", "1", "--timeout", &timeout, "--verify", "--temp-path"];
    let mut args = args.to_vec();
    let place = temporary.to_str().unwrap();
    args.push(place);
    let text = said(&tries(Path::new("/"), "stress-ng", &args));
    assert!(text.contains("successful run completed"), "it did not come to its end:\n{text}");
    // stress-ng: fail:  [123] io: sync failed ...
    let failed = text.lines().filter(|line| line.contains(": fail: ") || line.contains(": error: "));
    let names = failed.filter_map(|line| line.split("] ").nth(1)?.split_once(':').map(|(name, _)| name.to_owned()));
    let names: BTreeSet<String> = names.collect();
    assert_eq!(names.is_empty(), !text.contains("unsuccessful run completed"), "not understood:\n{text}");
    (names, text)
}

fn soak_programs(kind: &'static str) {
    let (seed, seconds) = (soak_seed(), soak_time().as_secs());
    eprintln!("programs on {kind}, seed {seed}");
    moving("git", kind, seed, |_, dir| git(dir, 60));
    moving("cargo", kind, seed, |_, dir| cargo(dir, 8));
    for mode in ["wal", "delete"] {
        moving(&format!("SQLite ({mode})"), kind, seed, |_, dir| sqlite(dir, mode, 600));
    }
    moving("rsync", kind, seed, |rig, dir| rsync(rig, dir, 400));
    moving("fio", kind, seed, |_, dir| fio(dir, seed, 32));
    moving("dbench", kind, seed, |_, dir| {
        let said = does(dir, "dbench", &["-D", ".", "-t", &seconds.to_string(), "4"]);
        eprintln!("{}", said.lines().last().unwrap_or_default());
    });
}

#[test]
#[ignore = "long: make soak"]
fn soak_programs_on_ext4() {
    soak_programs("ext4");
}

#[test]
#[ignore = "long: make soak"]
fn soak_programs_on_xfs() {
    soak_programs("xfs");
}

/// Stressors fail on the mount only where they fail below, too.
fn soak_stress_ng(kind: &'static str) {
    let Some(mut rig) = rig(kind, 8 << 30) else { return };
    // There are some fifty, one after the other, first below and then on the mount.
    let each = (soak_time().as_secs() / 20).max(1);
    let (below, _) = stress_ng(&rig.fs.path(), each);
    eprintln!("stress-ng on {kind}, {each} s each: below, {below:?} fail");
    until_enough_moved(&mut rig, &format!("stress-ng on {kind}"), |rig, _| {
        let ((through, text), transfers) =
            while_moving(&[&rig.mountpoint()], soak_seed(), || stress_ng(&rig.mountpoint(), each));
        let more: Vec<_> = through.difference(&below).collect();
        assert!(more.is_empty(), "{more:?} fail on the mount of {kind} only:\n{text}");
        transfers
    });
}

#[test]
#[ignore = "long: make soak"]
fn soak_stress_ng_on_ext4() {
    soak_stress_ng("ext4");
}

#[test]
#[ignore = "long: make soak"]
fn soak_stress_ng_on_xfs() {
    soak_stress_ng("xfs");
}
