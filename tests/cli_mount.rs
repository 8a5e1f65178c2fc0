//! The commands against a mount: the real binary, a real FUSE mount of type `fuse.tierfs`, a real control socket; only the
//! daemon is a stand-in that notes what it is asked and answers by a script.
//!
//! The stand-in is this test program itself, started with `STAND_IN` set, because an unmount ends with the end of the
//! daemon's process. Skipped, and said so, without root or /dev/fuse.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use serde_json::{Value, json};

#[path = "cli_mount/stand_in.rs"]
mod stand_in;

struct Mounted {
    dir: tempfile::TempDir,
    daemon: Child,
}

impl Mounted {
    /// `None` where mounting is not possible.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            eprintln!("skipped: needs root and /dev/fuse");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["mnt", "bind"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let daemon = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "stand_in_daemon"])
            .env("STAND_IN", dir.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mounted = Self { dir, daemon };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !mounted.dir.path().join("ready").exists() {
            assert!(Instant::now() < deadline, "the stand-in did not mount");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(mounted)
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tierfs"));
        command.args(args).current_dir(self.dir.path()).env("TIERFS_CONFIG_DIR", self.path("etc"));
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// What the stand-in was asked so far.
    fn asked(&self) -> Vec<Value> {
        let log = std::fs::read_to_string(self.path("asked")).unwrap_or_default();
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for name in ["bind", "mnt"] {
            // Usually unmounted by the test already.
            let _ = rustix::mount::unmount(self.path(name), UnmountFlags::DETACH);
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json_lines(output: &Output) -> Vec<Value> {
    out(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[track_caller]
fn code(output: &Output, want: i32) {
    assert_eq!(output.status.code(), Some(want), "out: {}\nerr: {}", out(output), err(output));
}

#[test]
#[ignore = "the other tests start it as their daemon"]
fn stand_in_daemon() {
    if let Some(directory) = std::env::var_os("STAND_IN") {
        stand_in::serve(Path::new(&directory));
    }
}

#[test]
fn files_are_asked_for_by_their_path_from_the_root() {
    let Some(m) = Mounted::new() else { return };
    let output = m.run(&["migrate", "-r", "--archive-only", "mnt/sub", "mnt/a"]);
    code(&output, 0);
    assert!(out(&output).starts_with("archived 2 files, 10 B in "), "{}", out(&output));
    let want = json!({"request": "migrate", "paths": ["sub", "a"], "recursive": true, "archive_only": true});
    assert_eq!(m.asked(), vec![want]);

    // The stand-in skips whatever is called "busy".
    let output = m.run(&["release", "--json", "mnt/a", "mnt/sub/busy"]);
    code(&output, 1);
    let lines = json_lines(&output);
    assert_eq!(lines[0]["reply"], "progress");
    let busy = m.path("mnt/sub/busy").canonicalize().unwrap();
    assert_eq!((&lines[1]["reply"], lines[1]["path"].as_str()), (&json!("failure"), busy.to_str()));
    assert_eq!((&lines[2]["reply"], &lines[2]["files"], &lines[2]["skipped"]), (&json!("done"), &json!(1), &json!(1)));

    // A path that is no file of a mount does not keep the others from being done.
    let output = m.run(&["pin", "mnt/a", "asked"]);
    code(&output, 1);
    assert!(err(&output).contains("not on a tierfs mount") && out(&output).starts_with("pinned 1 file"), "{output:?}");
}

#[test]
fn status_shows_a_row_or_totals() {
    let Some(m) = Mounted::new() else { return };
    let output = m.run(&["status", "mnt/a"]);
    code(&output, 0);
    let row = out(&output);
    for piece in ["STATE", "dual", "5 B", "512 B", "archiving", "cold", "/mnt/a"] {
        assert!(row.contains(piece), "{piece}: {row}");
    }
    assert_eq!(row.lines().count(), 2, "{row}");
    let output = m.run(&["status", "-r", "mnt"]);
    code(&output, 0);
    assert!(out(&output).contains("FILES") && out(&output).contains("total"), "{}", out(&output));
    let asked = m.asked();
    assert_eq!((&asked[0]["files"], &asked[1]["files"]), (&json!(true), &json!(false)));
    assert_eq!(asked[1]["paths"], json!([""]), "the root is the empty path");
}

#[test]
fn a_bind_mount_of_a_part_is_understood() {
    let Some(m) = Mounted::new() else { return };
    rustix::mount::mount_bind(m.path("mnt/sub"), m.path("bind")).unwrap();
    let output = m.run(&["status", "--json", "bind/b"]);
    code(&output, 0);
    assert_eq!(m.asked()[0]["paths"], json!(["sub/b"]));
    let shown = m.path("bind/b").canonicalize().unwrap();
    assert_eq!(json_lines(&output)[0]["path"].as_str(), shown.to_str());
    // The filesystem lives on at the other place: the daemon is neither put to rest nor waited for.
    let output = m.run(&["umount", "mnt"]);
    code(&output, 0);
    assert!(err(&output).contains("still mounted at"), "{}", err(&output));
    assert_eq!(m.asked().len(), 1);
    assert!(m.path("bind/b").exists());
}

#[test]
fn an_orderly_unmount_ends_the_daemon() {
    let Some(mut m) = Mounted::new() else { return };
    let mut holder = Command::new("sleep").arg("60").current_dir(m.path("mnt/sub")).spawn().unwrap();
    let refused = m.run(&["umount", "mnt"]);
    holder.kill().unwrap();
    holder.wait().unwrap();
    code(&refused, 3);
    let who = format!("process {} (sleep): current directory", holder.id());
    assert!(err(&refused).contains(&who) && err(&refused).contains("--lazy"), "{}", err(&refused));
    assert!(m.asked().is_empty(), "a refused unmount leaves the daemon at work: {:?}", m.asked());

    let inside = m.run(&["umount", "mnt/sub"]);
    code(&inside, 3);
    assert!(err(&inside).contains("not a mount point"), "{}", err(&inside));

    let output = m.run(&["umount", "mnt"]);
    code(&output, 0);
    assert!(out(&output).starts_with("unmounted "), "{}", out(&output));
    let words: Vec<_> = m.asked().iter().map(|request| request["request"].clone()).collect();
    assert_eq!(words, ["mount", "quiesce"]);
    // Ended before the command was: there is nothing left to wait for.
    assert!(m.daemon.try_wait().unwrap().is_some());
    code(&m.run(&["umount", "mnt"]), 3);
}

#[test]
fn a_dead_daemon_is_named_and_its_mount_goes() {
    let Some(mut m) = Mounted::new() else { return };
    m.daemon.kill().unwrap();
    m.daemon.wait().unwrap();
    for args in [&["status", "mnt/a"][..], &["migrate", "mnt/a"], &["mount", "mnt", "bind"], &["mount", "bind", "mnt"]]
    {
        let output = m.run(args);
        code(&output, 3);
        assert!(err(&output).contains("is dead: `tierfs umount"), "{args:?}: {}", err(&output));
    }
    code(&m.run(&["umount", "mnt"]), 0);
    assert!(std::fs::read_dir(m.path("mnt")).unwrap().next().is_none());
}

#[test]
fn a_stuck_daemon_hangs_no_command() {
    let Some(m) = Mounted::new() else { return };
    let pid = rustix::process::Pid::from_child(&m.daemon);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let started = Instant::now();
    let output = m.run(&["umount", "mnt"]);
    code(&output, 3);
    assert!(err(&output).contains("did not answer within 10 s"), "{}", err(&output));
    code(&m.run(&["umount", "--lazy", "mnt"]), 0);
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    assert!(std::fs::read_dir(m.path("mnt")).unwrap().next().is_none());
}

#[test]
fn other_users_steer_their_files_through_the_mount() {
    let Some(m) = Mounted::new() else { return };
    let as_nobody = |args: &[&str]| m.command(args).uid(65_534).gid(65_534).output();
    match as_nobody(&["--version"]) {
        Ok(output) if output.status.success() => {}
        _ => {
            eprintln!("skipped: the program cannot be run by another user where it was built");
            return;
        }
    }
    let output = as_nobody(&["migrate", "-r", "mnt"]).unwrap();
    code(&output, 1);
    // The stand-in lets "a" and "b" be migrated and calls "busy" busy.
    assert!(out(&output).starts_with("migrated 2 files, 10 B"), "{}", out(&output));
    assert!(err(&output).contains("busy: the file is in use"), "{}", err(&output));
    let output = as_nobody(&["status", "--json", "mnt/a"]).unwrap();
    code(&output, 0);
    assert_eq!((&json_lines(&output)[0]["state"], &json_lines(&output)[0]["pair"]), (&json!("stub"), &json!("cold")));
    let output = as_nobody(&["migrate", "mnt/a"]).unwrap();
    code(&output, 0);
    assert!(out(&output).contains("1 already as asked"), "{}", out(&output));
    code(&as_nobody(&["migrate", "--archive-only", "mnt/a"]).unwrap(), 3);
    code(&as_nobody(&["umount", "mnt"]).unwrap(), 3);
    assert!(m.asked().is_empty(), "the socket is root's");
}
