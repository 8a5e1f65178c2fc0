//! The command line as a person or a script meets it: the real binary, its words and its exit codes.
//!
//! Nothing here mounts or needs a network; `tests/cli_mount.rs` does.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const COMMANDS: [&[&str]; 17] = [
    &[],
    &["mount"],
    &["umount"],
    &["pair"],
    &["pair", "add"],
    &["pair", "list"],
    &["pair", "show"],
    &["pair", "edit"],
    &["pair", "remove"],
    &["pair", "bench"],
    &["migrate"],
    &["recall"],
    &["release"],
    &["pin"],
    &["unpin"],
    &["status"],
    &["dev-s3"],
];

/// A configuration and a state directory of its own for every test.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("share")).unwrap();
        Self { dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn share(&self) -> String {
        format!("east:{}/share", self.path().display())
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_tierfs"))
            .args(args)
            .env("TIERFS_CONFIG_DIR", self.path().join("etc"))
            .env("TIERFS_STATE_DIR", self.path().join("var"))
            .current_dir(self.path())
            .output()
            .unwrap()
    }

    fn add(&self, name: &str, more: &[&str]) -> Output {
        let share = self.share();
        let mut args = vec!["pair", "add", name, "--no-probe", "--local", &share];
        args.extend(["--remote", "west:s3://cold/east", "--endpoint", "http://127.0.0.1:9000"]);
        args.extend(more);
        self.run(&args)
    }
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Checks the exit code, and that standard error is one line that holds every piece.
#[track_caller]
fn refused(output: &Output, code: i32, pieces: &[&str]) {
    let message = err(output);
    assert_eq!(output.status.code(), Some(code), "{message}");
    for piece in pieces {
        assert!(message.contains(piece), "{piece:?} wanted in: {message}");
    }
    if code != 2 {
        assert_eq!(message.trim_end().lines().count(), 1, "one line wanted: {message}");
    }
}

#[track_caller]
fn good(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", err(output));
    out(output)
}

#[test]
fn every_help_has_an_example_and_the_exit_codes() {
    let place = Place::new();
    for command in COMMANDS {
        for flag in ["--help", "-h"] {
            let mut args = command.to_vec();
            args.push(flag);
            let text = good(&place.run(&args));
            assert!(text.contains("Examples:\n  "), "{command:?}: {text}");
            assert!(text.contains("  3  nothing could be done"), "{command:?}: {text}");
            let example = format!("tierfs {}", command.join(" "));
            assert!(text.contains(example.trim_end()), "{command:?}: {text}");
        }
    }
}

#[test]
fn a_pair_lives_from_add_to_remove() {
    let place = Place::new();
    let text = good(&place.add("cold", &["--meta-sync", "master", "--retention", "7d", "--chunk-size", "1MiB"]));
    assert!(text.contains("pairs.d/cold.toml"), "{text}");
    assert!(place.path().join("etc/pairs.d/cold.toml").exists());

    let text = good(&place.run(&["pair", "list"]));
    for piece in ["NAME", "cold", &place.share(), "west:s3://cold/east", "gfs", "master", "http://127.0.0.1:9000"] {
        assert!(text.contains(piece), "{piece}: {text}");
    }
    let all: Value = serde_json::from_str(&good(&place.run(&["--json", "pair", "list"]))).unwrap();
    assert_eq!(all[0]["name"], "cold");

    let show = |key: &str| -> Value {
        let one: Value = serde_json::from_str(&good(&place.run(&["pair", "show", "cold", "--json"]))).unwrap();
        one[key].clone()
    };
    assert_eq!(show("retention_s"), 604_800);
    assert_eq!(show("chunk_size"), 1 << 20);
    assert_eq!(show("probed"), Value::Null);
    assert!(good(&place.run(&["pair", "show", "cold"])).contains("not probed yet"));

    let edit = [
        "pair",
        "edit",
        "cold",
        "--no-probe",
        "--endpoint",
        "http://b:1",
        "--endpoint",
        "http://c:2",
        "--meta-sync",
        "",
    ];
    good(&place.run(&edit));
    assert_eq!(show("endpoints"), serde_json::json!(["http://b:1", "http://c:2"]));
    assert_eq!(show("meta_sync_role"), Value::Null);
    assert_eq!(show("retention_s"), 604_800, "what is not named stays");

    good(&place.run(&["pair", "remove", "cold"]));
    refused(&place.run(&["pair", "show", "cold"]), 3, &["no pair cold", "pair add"]);
    assert_eq!(good(&place.run(&["pair", "list", "--json"])).trim(), "[]");
    good(&place.add("cold", &[]));
}

#[test]
fn the_config_dir_option_goes_before_the_environment() {
    let place = Place::new();
    good(&place.add("cold", &[]));
    let elsewhere = place.run(&["pair", "list", "--json", "--config-dir", "elsewhere"]);
    assert_eq!(good(&elsewhere).trim(), "[]");
    good(&place.run(&["pair", "show", "cold", "--config-dir", "etc"]));
}

#[test]
fn bad_pairs_are_refused_in_words() {
    let place = Place::new();
    good(&place.add("cold", &[]));
    refused(&place.add("cold", &[]), 3, &["pair cold exists", "pair edit"]);
    refused(&place.add("other", &[]), 3, &["same four identifiers"]);
    refused(&place.add("../x", &[]), 2, &["not a valid pair name"]);
    refused(&place.run(&["pair", "edit", "cold"]), 2, &["required"]);
    refused(&place.run(&["pair", "edit", "nosuch", "--retention", "1h"]), 3, &["no pair nosuch", "there is cold"]);
    refused(&place.run(&["pair", "remove", "nosuch"]), 3, &["no pair nosuch"]);
    for (option, value, pieces) in [
        ("--local", "/srv/share", &["CLUSTER:/path"][..]),
        ("--local", "east:share", &["absolute"]),
        ("--remote", "west:/srv", &["s3://"]),
        ("--remote", "west:s3://Cold", &["bucket", "lower-case"]),
        ("--endpoint", "127.0.0.1:9000", &["http://"]),
        ("--endpoint", "http://a/bucket", &["http(s)://host[:port]"]),
        ("--role", "nfs", &["gpeer"]),
        ("--meta-sync", "both", &["master"]),
        ("--chunk-size", "5MiB", &["power of two"]),
        ("--retention", "5", &["units"]),
        ("--credentials-file", "/no/such/file", &["--credentials-file"]),
    ] {
        let share = place.share();
        let mut args = vec!["pair", "add", "new", "--no-probe"];
        for (name, default) in
            [("--local", share.as_str()), ("--remote", "west:s3://new"), ("--endpoint", "http://127.0.0.1:9000")]
        {
            args.extend([name, if name == option { value } else { default }]);
        }
        if !args.contains(&option) {
            args.extend([option, value]);
        }
        refused(&place.run(&args), 2, pieces);
    }
    assert!(!place.path().join("etc/pairs.d/new.toml").exists());
}

#[test]
fn a_share_with_records_keeps_its_pair() {
    let place = Place::new();
    good(&place.add("cold", &[]));
    let file = place.path().join("share/stub");
    std::fs::write(&file, b"").unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    if rustix::fs::setxattr(&file, "user.tierfs.record", b"not a record", flags).is_err() {
        eprintln!("skipped: no user xattrs in the temporary directory");
        return;
    }
    refused(&place.run(&["pair", "remove", "cold"]), 3, &["still in use", "stub", "tierfs recall -r"]);
    std::fs::remove_file(&file).unwrap();
    good(&place.run(&["pair", "remove", "cold"]));
}

#[test]
fn broken_files_are_named_and_do_not_hide_others() {
    let place = Place::new();
    good(&place.add("cold", &[]));
    std::fs::write(place.path().join("etc/pairs.d/bad.toml"), "local_cluster = 'east'\nsecret_key = 'hunter2'\n")
        .unwrap();
    let list = place.run(&["pair", "list"]);
    refused(&list, 1, &["bad.toml:2", "secret_key", "credentials_file"]);
    assert!(out(&list).contains("cold") && !err(&list).contains("hunter2"));
    refused(&place.run(&["pair", "show", "bad"]), 3, &["bad.toml:2"]);
    good(&place.run(&["pair", "show", "cold"]));
    let error = place.run(&["pair", "show", "bad", "--json"]);
    let reply: Value = serde_json::from_str(&out(&error)).unwrap();
    assert_eq!(reply["reply"], "error");
}

#[test]
fn secrets_have_no_option() {
    let place = Place::new();
    for option in ["--secret-key", "--access-key", "--password"] {
        refused(&place.add("cold", &[option, "hunter2"]), 2, &["unexpected argument"]);
    }
    let output = place.add("cold", &["--endpoint", "http://AKIA:hunter2@host"]);
    refused(&output, 2, &["credentials_file"]);
    assert!(!err(&output).contains("hunter2"));
}

#[test]
fn paths_off_every_mount() {
    let place = Place::new();
    std::fs::write(place.path().join("plain"), b"x").unwrap();
    for command in ["migrate", "recall", "release", "pin", "unpin", "status"] {
        let output = place.run(&[command, "plain"]);
        assert_eq!(output.status.code(), Some(3), "{}", err(&output));
        assert!(err(&output).contains("not on a tierfs mount"), "{}", err(&output));
        refused(&place.run(&[command]), 2, &["PATH"]);
    }
    std::os::unix::fs::symlink("plain", place.path().join("link")).unwrap();
    let output = place.run(&["migrate", "link"]);
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    assert!(err(&output).contains("symbolic link"), "{}", err(&output));
    let output = place.run(&["migrate", "--json", "plain", "gone"]);
    let lines: Vec<Value> = out(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert_eq!((&lines[0]["reply"], &lines[2]["reply"]), (&"failure".into(), &"error".into()));
    refused(&place.run(&["status", "--files", "plain"]), 2, &["--recursive"]);
}

#[test]
fn mounts_that_cannot_be() {
    let place = Place::new();
    for dir in ["mnt", "share/in"] {
        std::fs::create_dir(place.path().join(dir)).unwrap();
    }
    std::fs::write(place.path().join("file"), b"").unwrap();
    for (args, code, pieces) in [
        (&["share", "mnt", "-o", "r0"][..], 2, &["-o r0", "no such option"][..]),
        (&["share", "mnt", "-o", "archive_after=5"], 2, &["archive_after=5", "duration"]),
        (&["share", "mnt", "--archive-after", "soon"], 2, &["duration"]),
        (&["share", "mnt", "--release-above", "120"], 2, &["percentage"]),
        (&["share", "mnt", "--release-below", "50"], 2, &["--release-above"]),
        (&["share", "mnt", "--release-above", "50", "-o", "release_below=60"], 2, &["lower than"]),
        (&["share", "mnt", "-o", "ro", "--archive-after", "5m"], 2, &["read-only"]),
        (&["gone", "mnt"], 3, &["share gone", "make it first"]),
        (&["share", "gone"], 3, &["mount point gone", "make it first"]),
        (&["share", "file"], 3, &["not a directory"]),
        (&["share", "share/in"], 3, &["inside each other"]),
        (&["share", "."], 3, &["inside each other"]),
        (&["share", "share"], 3, &["inside each other"]),
        (&["share", "mnt", "--pair", "nosuch"], 3, &["no pair nosuch"]),
        (&["share", "mnt", "--archive-after", "5m"], 3, &["no pair names", "pair add"]),
    ] {
        if code == 3 && !rustix::process::geteuid().is_root() {
            continue;
        }
        let mut all = vec!["mount"];
        all.extend(args);
        refused(&place.run(&all), code, pieces);
        all.push("--foreground");
        refused(&place.run(&all), code, pieces);
    }
    refused(&place.run(&["umount", "mnt"]), 3, &["mnt", "nothing of tierfs is mounted there"]);
    refused(&place.run(&["umount", "/proc"]), 3, &["/proc", "use umount"]);
}

#[test]
fn a_pair_for_another_share_is_refused() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let place = Place::new();
    good(&place.add("cold", &[]));
    for dir in ["mnt", "second"] {
        std::fs::create_dir(place.path().join(dir)).unwrap();
    }
    refused(&place.run(&["mount", "second", "mnt", "--pair", "cold"]), 3, &["pair cold is for share"]);
}
