//! Pairs of a running mount: edited while transfers run (R8), and several at once.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::index::scan;
use crate::rig::*;

/// Another address of the same endpoint; counts who comes by it, and ends with the test.
struct Door {
    at: SocketAddr,
    came: Arc<AtomicU64>,
    closed: Arc<AtomicBool>,
}

impl Door {
    fn to(endpoint: &str) -> Self {
        let inside: SocketAddr = endpoint.trim_start_matches("http://").parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let door = Self { at: listener.local_addr().unwrap(), came: Arc::default(), closed: Arc::default() };
        let (came, closed) = (door.came.clone(), door.closed.clone());
        std::thread::spawn(move || {
            for outside in listener.incoming() {
                if closed.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(outside), Ok(inside)) = (outside, TcpStream::connect(inside)) else { continue };
                came.fetch_add(1, Ordering::SeqCst);
                for (from, to) in [(&outside, &inside), (&inside, &outside)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    std::thread::spawn(move || pass(from, to));
                }
            }
        });
        door
    }

    fn url(&self) -> String {
        format!("http://{}", self.at)
    }

    fn came(&self) -> u64 {
        self.came.load(Ordering::SeqCst)
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.at);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream) {
    let mut piece = vec![0; 64 << 10];
    while let Ok(len @ 1..) = from.read(&mut piece) {
        if to.write_all(&piece[..len]).is_err() {
            break;
        }
    }
    // Either side's end is the other's.
    let _ = to.shutdown(Shutdown::Write);
}

fn keys(rig: &Rig, name: &str, secret: &str) -> std::path::PathBuf {
    let path = rig.scratch(name);
    let text = format!("[default]\naws_access_key_id = test\naws_secret_access_key = {secret}\n");
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn a_pair_is_edited_again_and_again_while_files_move() {
    let Some(rig) = (Setup { recall_retention: "1s", ..Setup::default() }).build() else { return };
    rig.quiet();
    let doors = [Door::to(&rig.endpoint()), Door::to(&rig.endpoint())];
    let credentials = [keys(&rig, "keys-a", SECRET_KEY), keys(&rig, "keys-b", SECRET_KEY)];
    const FILES: usize = 12;
    let contents: Vec<Vec<u8>> =
        (0..FILES).map(|n| rig.write(&format!("f{n}"), [700, 5 * CHUNK, 30 * CHUNK + 7][n % 3] + n)).collect();
    let stop = AtomicBool::new(false);
    let rounds = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let mut users = Vec::new();
        for half in 0..2 {
            let (mountpoint, stop, rounds, contents) = (rig.mountpoint(), &stop, &rounds, &contents);
            let user = scope.spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    for n in (0..FILES).filter(|n| n % 2 == half) {
                        let path = mountpoint.join(format!("f{n}"));
                        let tierfs = |verb: &str| {
                            let output =
                                Command::new(env!("CARGO_BIN_EXE_tierfs")).arg(verb).arg(&path).output().unwrap();
                            assert!(output.status.success(), "{verb} {n}: {}", said(&output));
                        };
                        tierfs("migrate");
                        if n % 3 == 0 {
                            tierfs("recall");
                        }
                        let found = fs::read(&path).unwrap_or_else(|error| panic!("{n}: {error}"));
                        assert_same(&found, &contents[n], "while the pair is edited");
                    }
                    rounds.fetch_add(1, Ordering::SeqCst);
                }
            });
            users.push(user);
        }
        let mut edits = 0;
        // At least some of each, however slow the machine.
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // A user who ended early has found something.
            while (edits < 24 || rounds.load(Ordering::SeqCst) < 6) && !users.iter().any(|user| user.is_finished()) {
                let n = edits % 2;
                let (door, file) = (doors[n].url(), credentials[n].to_str().unwrap().to_owned());
                let settings: [&[&str]; 4] = [
                    &["--endpoint", &door, "--no-probe"],
                    &["--credentials-file", &file, "--no-probe"],
                    &["--chunk-size", ["64KiB", "256KiB"][n], "--retention", ["0s", "1s"][n]],
                    &["--recall", ["full", "partial"][n], "--restore-days", ["3", "9"][n]],
                ];
                let output = rig.tierfs(&[&["pair", "edit", "cold"][..], settings[edits / 2 % 4]].concat());
                code(&output, 0);
                assert!(said(&output).contains("from now on"), "{}", said(&output));
                // It is in use, all the time.
                code(&rig.tierfs(&["pair", "remove", "cold"]), 3);
                edits += 1;
            }
        }));
        stop.store(true, Ordering::SeqCst);
        ended.unwrap();
    });
    assert!(doors.iter().all(|door| door.came() > 0), "both were used");
    for (n, content) in contents.iter().enumerate() {
        rig.same(&format!("f{n}"), content);
    }
    rig.on(&["migrate", "-r"], &[""]);
    let names: Vec<String> = (0..FILES).map(|n| format!("f{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert!(names.iter().all(|name| rig.state(name) == "stub"));
    rig.on(&["verify", "-r"], &[""]);
    rig.settled(&names);
    assert_eq!(rig.json(&["failed", "list"], 0).iter().filter(|line| line["reply"] == "dead_letter").count(), 0);
    // The last edit is what is in force: the next copy has its chunks.
    code(&rig.tierfs(&["pair", "edit", "cold", "--chunk-size", "128KiB"]), 0);
    rig.write("last", 5 * CHUNK);
    rig.migrate("last");
    assert_eq!(rig.record("last").unwrap().object.unwrap().chunk_size, 128 << 10);
}

#[test]
fn rotated_credentials_are_read_again() {
    let Some(rig) = Rig::new() else { return };
    rig.quiet();
    let content = rig.write("a", 3 * CHUNK);
    let file = keys(&rig, "keys", "wrong");
    let file_name = file.to_str().unwrap();
    code(&rig.tierfs(&["pair", "edit", "cold", "--credentials-file", file_name, "--no-probe"]), 0);
    let output = rig.try_on(&["migrate"], &["a"]);
    assert!(!output.status.success(), "{}", said(&output));
    keys(&rig, "keys", SECRET_KEY);
    let output = rig.tierfs(&["pair", "reload", "cold"]);
    code(&output, 0);
    assert!(said(&output).contains("credentials were read again"), "{}", said(&output));
    rig.migrate("a");
    rig.same("a", &content);
    // What cannot be used does not count, and the mount says so.
    fs::remove_file(&file).unwrap();
    let output = rig.tierfs(&["pair", "reload", "cold"]);
    code(&output, 3);
    assert!(said(&output).contains("goes on as it was"), "{}", said(&output));
    rig.on(&["release"], &["a"]);
    rig.same("a", &content);
}

#[test]
fn what_a_mount_keeps_is_refused_with_the_reason() {
    let Some(mut rig) = Rig::new() else { return };
    let content = rig.write("a", 3 * CHUNK);
    rig.migrate("a");
    code(&rig.tierfs(&["pair", "edit", "cold", "--role", "gpeer", "--no-probe"]), 3);
    let path = rig.scratch("etc/pairs.d/cold.toml");
    let text = fs::read_to_string(&path).unwrap();
    for (from, to, why) in [
        ("s3://cold/pre", "s3://other/pre", "bucket"),
        ("s3://cold/pre", "s3://cold/elsewhere", "prefix"),
        ("remote_cluster = \"west\"", "remote_cluster = \"south\"", "clusters"),
        ("\"gfs\"", "\"gpeer\"", "role"),
    ] {
        fs::write(&path, text.replace(from, to)).unwrap();
        let output = rig.tierfs(&["pair", "reload", "cold"]);
        code(&output, 3);
        assert!(said(&output).contains(why) && said(&output).contains("goes on as it was"), "{}", said(&output));
        rig.same("a", &content);
        rig.on(&["release"], &["a"]);
    }
    fs::write(&path, &text).unwrap();
    code(&rig.tierfs(&["pair", "reload", "cold"]), 0);
    // Stubs name it, mounted or not.
    code(&rig.tierfs(&["pair", "remove", "cold"]), 3);
    rig.umount();
    let output = rig.tierfs(&["pair", "remove", "cold"]);
    code(&output, 3);
    assert!(said(&output).contains('a'), "{}", said(&output));
    code(&rig.tierfs(&["pair", "reload", "cold"]), 3);
    rig.mount();
    rig.same("a", &content);
}

/// A rig with a second pair, `far`, whose bucket is another one.
fn with_far(retention: &'static str) -> Option<Rig> {
    let rig = (Setup { mounted: false, retention, ..Setup::default() }).build()?;
    let (local, endpoint) = (format!("east:{}", rig.share().display()), rig.endpoint());
    let output = rig.tierfs(&[
        "pair",
        "add",
        "far",
        "--force",
        "--local",
        &local,
        "--remote",
        "north:s3://far/pre",
        "--endpoint",
        &endpoint,
        "--chunk-size",
        "128KiB",
        "--retention",
        retention,
        "--recall-retention",
        "24h",
    ]);
    code(&output, 0);
    Some(rig)
}

const BOTH: [&str; 4] = ["--pair", "cold", "--pair", "far"];

fn mount_both(rig: &mut Rig, further: &[&str]) {
    let output = rig.try_mount(&[&BOTH[..], further].concat());
    assert!(output.status.success(), "{}", said(&output));
}

fn chunk(rig: &Rig, name: &str) -> usize {
    rig.record(name).unwrap().object.unwrap().chunk_size as usize
}

fn pair_of(rig: &Rig, name: &str) -> String {
    rig.record(name).unwrap().object.unwrap().pair.name.to_string()
}

/// How many files the far bucket has objects of.
fn far_objects(rig: &Rig) -> usize {
    fn count(dir: &std::path::Path) -> usize {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| if entry.path().is_dir() { count(&entry.path()) } else { 1 }).sum()
    }
    count(&rig.scratch("objects/far/objects"))
}

#[test]
fn files_go_to_the_pair_that_they_are_told() {
    let Some(mut rig) = with_far("0s") else { return };
    mount_both(&mut rig, &[]);
    assert_eq!(rig.info()["further_pairs"], serde_json::json!(["far"]));
    fs::create_dir_all(rig.mnt("d/e")).unwrap();
    rig.on(&["set", "--pair", "far"], &["d"]);
    rig.on(&["set", "--pair", "cold", "--chunk-size", "256KiB"], &["d/e"]);
    let names = ["a", "d/b", "d/e/c", "d/e/own"];
    let contents = names.map(|name| rig.write(name, 9 * CHUNK + 3));
    rig.on(&["set", "--pair", "far", "--recall", "full"], &["d/e/own"]);
    // A pair that the mount does not have is refused, and so is one that is no name.
    let output = rig.try_on(&["set", "--pair", "nowhere"], &["a"]);
    code(&output, 1);
    assert!(said(&output).contains("nowhere") && said(&output).contains("cold, far"), "{}", said(&output));
    code(&rig.try_on(&["set", "--chunk-size", "5MiB"], &["a"]), 2);
    rig.on(&["migrate", "-r"], &[""]);
    assert_eq!(names.map(|name| pair_of(&rig, name)), ["cold", "far", "cold", "far"]);
    assert_eq!(names.map(|name| chunk(&rig, name)), [CHUNK, 2 * CHUNK, 4 * CHUNK, 4 * CHUNK]);
    assert!(far_objects(&rig) > 0);
    rig.on(&["verify", "-r"], &[""]);
    rig.on(&["check", "-r"], &[""]);
    for (name, content) in names.iter().zip(&contents) {
        rig.same(name, content);
        wait_for("the recall's end", || rig.state(name) == "dual");
        rig.on(&["release"], &[name]);
    }
    // What is archived stays where it is; the next copy goes where it is told.
    rig.on(&["set", "--pair", ""], &["d/e/own"]);
    assert_eq!(pair_of(&rig, "d/e/own"), "far");
    fs::write(rig.mnt("d/e/own"), b"new").unwrap();
    rig.migrate("d/e/own");
    assert_eq!(pair_of(&rig, "d/e/own"), "cold");
    // Mounted without it, its stubs are named and not acted upon, and nothing goes elsewhere instead.
    rig.write("d/later", 100);
    rig.umount();
    let output = rig.try_mount(&["--pair", "cold"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(errno(fs::read(rig.mnt("d/b"))), Some(libc::EREMOTEIO));
    rig.same("a", &contents[0]);
    let output = rig.try_on(&["migrate"], &["d/later"]);
    code(&output, 1);
    assert!(said(&output).contains("pair far"), "{}", said(&output));
    assert_eq!((rig.state("d/later").as_str(), rig.state("d/b").as_str()), ("resident", "stub"));
    // The other way round, too; a removal waits for its own pair.
    let before = far_objects(&rig);
    fs::remove_file(rig.mnt("d/b")).unwrap();
    rig.umount();
    let output = rig.try_mount(&["-o", "pair=far:cold"]);
    assert!(output.status.success(), "{}", said(&output));
    wait_for("the end of its object", || far_objects(&rig) < before);
    rig.write("z", 100);
    rig.migrate("z");
    assert_eq!(pair_of(&rig, "z"), "far");
    rig.same("d/e/c", &contents[2]);
    // Neither may go while stubs name it.
    for name in ["cold", "far"] {
        code(&rig.tierfs(&["pair", "remove", name]), 3);
    }
    code(&rig.tierfs(&["pair", "edit", "far", "--chunk-size", "64KiB"]), 0);
    rig.write("y", 2 * CHUNK);
    rig.migrate("y");
    assert_eq!(chunk(&rig, "y"), CHUNK);
}

#[test]
fn what_a_further_pair_keeps_comes_back() {
    let Some(mut rig) = with_far("1h") else { return };
    mount_both(&mut rig, &[]);
    rig.on(&["set", "--pair", "far"], &[""]);
    let content = rig.write("a", 3 * CHUNK);
    rig.migrate("a");
    fs::remove_file(rig.mnt("a")).unwrap();
    assert!(rig.on(&["--json", "history"], &["a"]).contains("\"deleted\""));
    rig.on(&["undelete"], &["a"]);
    assert_eq!((rig.state("a").as_str(), pair_of(&rig, "a").as_str()), ("stub", "far"));
    rig.same("a", &content);
}

#[test]
fn two_pairs_of_which_one_is_a_peer_are_refused() {
    let Some(mut rig) = with_far("0s") else { return };
    code(&rig.tierfs(&["pair", "edit", "far", "--role", "gpeer", "--no-probe"]), 0);
    let output = rig.try_mount(&BOTH);
    code(&output, 3);
    assert!(said(&output).contains("gpeer"), "{}", said(&output));
    let output = rig.try_mount(&["--pair", "cold", "--pair", "cold"]);
    assert!(said(&output).contains("twice"), "{}", said(&output));
}

#[test]
fn a_policy_tells_files_where_to_go() {
    let Some(mut rig) = with_far("0s") else { return };
    let file = rig.scratch("policies.toml");
    let text = "[policy.films]\nenabled = false\naction = \"set\"\nset = { pair = \"far\", chunk_size = \"512KiB\", recall = \"full\" }\n\
                match.extensions = [\"exr\"]\n\
                [policy.nowhere]\nenabled = false\naction = \"set\"\nset.pair = \"nowhere\"\n";
    fs::write(&file, text).unwrap();
    mount_both(&mut rig, &["-o", &format!("policies={}", file.display())]);
    for name in ["a.exr", "b.exr", "c.tif"] {
        rig.write(name, 9 * CHUNK);
    }
    rig.migrate("b.exr");
    scan(&rig);
    let run = |name: &str| rig.json(&["policy", "run", name], 0).pop().unwrap()["files"].as_u64();
    let candidates = |name: &str| {
        rig.json(&["policy", "dry-run", name], 0).iter().filter(|line| line["reply"] == "candidate").count()
    };
    assert_eq!(candidates("films"), 2);
    assert_eq!(run("films"), Some(2));
    // What has it already is left alone.
    assert_eq!((candidates("films"), run("films")), (0, Some(0)));
    let why = rig.json(&["why", rig.mnt("a.exr").to_str().unwrap()], 0).remove(0);
    assert_eq!(why["rules"][0]["against"]["reason"], "set", "{why}");
    assert!(why["rules"][0]["action"].as_str().unwrap().contains("pair far"), "{why}");
    rig.on(&["migrate", "-r"], &[""]);
    assert_eq!(["a.exr", "b.exr", "c.tif"].map(|name| pair_of(&rig, name)), ["far", "cold", "cold"]);
    assert_eq!(rig.record("a.exr").unwrap().object.unwrap().chunk_size, 512 << 10);
    let said = rig.on(&["--json", "set"], &["a.exr"]);
    assert!(said.contains("\"pair\":\"far\"") && said.contains("\"recall\":\"full\""), "{said}");
    let output = rig.tierfs(&["policy", "run", "nowhere"]);
    code(&output, 3);
    assert!(crate::rig::said(&output).contains("does not have"), "{}", crate::rig::said(&output));
}
