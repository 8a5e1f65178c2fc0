//! The daemon is killed in the middle of transfers; after the next mount every file is right and no object is left over.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tierfs::gateway::faults::{Effect, Rule};

use crate::rig::*;

/// Files of several shapes, by name; each is dated by its number.
/// The files are many, and one process reads them all.
fn by_one_reader() -> Option<Rig> {
    Setup { mount: vec!["-o", "recall_scan=off"], ..Setup::default() }.build()
}

fn populate(rig: &Rig, files: usize) -> BTreeMap<String, Vec<u8>> {
    (0..files)
        .map(|n| {
            let name = format!("f{n}");
            let len = [700, CHUNK, 3 * CHUNK + 11, 20 * CHUNK][n % 4] + n;
            let content = rig.write(&name, len);
            set_mtime(&rig.mnt(&name), mtime(n), 111_222_333);
            (name, content)
        })
        .collect()
}

fn mtime(n: usize) -> i64 {
    1_400_000_000 + n as i64
}

/// Sizes and times, then content, then objects.
fn check(rig: &Rig, files: &BTreeMap<String, Vec<u8>>, round: &str) {
    for (name, content) in files {
        let n: usize = name[1..].parse().unwrap();
        for path in [rig.mnt(name), rig.low(name)] {
            let m = fs::metadata(&path).unwrap();
            assert_eq!(
                (m.size(), m.mtime(), m.mtime_nsec()),
                (content.len() as u64, mtime(n), 111_222_333),
                "{round}: {}",
                path.display()
            );
        }
        let state = rig.state(name);
        assert!(["resident", "dual", "stub", "partial"].contains(&state.as_str()), "{round}: {name} is {state}");
        if state == "stub" {
            assert!(rig.allocated(name) <= 4096, "{round}: {name}, a stub, has {} bytes", rig.allocated(name));
        }
    }
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    rig.settled_after_crash(&names);
    for (name, content) in files {
        rig.same(name, content);
    }
    // Reads are served before the recall is recorded.
    for name in files.keys() {
        wait_for("the recall's end", || rig.state(name) != "stub");
    }
}

/// Delays between 20 and 400 ms that repeat by seed.
fn delays(seed: u64, rounds: usize) -> Vec<Duration> {
    eprintln!("seed {seed}");
    noise(&format!("{seed}"), rounds * 2)
        .chunks(2)
        .map(|two| Duration::from_millis(20 + u64::from(u16::from_le_bytes([two[0], two[1]])) % 380))
        .collect()
}

fn killed_during(verbs: &[&str], seed: u64) {
    let Some(mut rig) = by_one_reader() else { return };
    let files = populate(&rig, 60);
    for (round, delay) in delays(seed, 5).into_iter().enumerate() {
        if verbs[0] == "recall" {
            rig.on(&["migrate", "-r"], &[""]);
        } else {
            // Back to resident now and then, so that copies are made again, with the old times.
            if round > 0 {
                for (name, content) in files.iter().step_by(2) {
                    fs::write(rig.mnt(name), content).unwrap();
                    set_mtime(&rig.mnt(name), mtime(name[1..].parse().unwrap()), 111_222_333);
                }
            }
            rig.on(&["recall", "-r"], &[""]);
        }
        rig.quiet();
        rig.faults.add(Rule::new(Effect::Delay(Duration::from_millis(30))).probability(0.5));
        let mut args: Vec<std::ffi::OsString> = verbs.iter().map(Into::into).collect();
        args.push(rig.mountpoint().into());
        let mut job = rig.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(delay);
        rig.crash();
        job.wait().unwrap();
        rig.faults.clear();
        rig.mount();
        check(&rig, &files, &format!("round {round}, killed after {delay:?}"));
    }
}

#[test]
fn killed_while_it_migrates_it_loses_nothing() {
    killed_during(&["migrate", "-r"], 1);
}

#[test]
fn killed_while_it_archives_it_loses_nothing() {
    killed_during(&["migrate", "-r", "--archive-only"], 2);
}

#[test]
fn killed_while_it_recalls_it_loses_nothing() {
    killed_during(&["recall", "-r"], 3);
}

#[test]
fn killed_while_files_are_written_it_loses_nothing_that_was_synced() {
    let Some(mut rig) = Rig::new() else { return };
    for round in 0..4 {
        let names: Vec<String> = (0..20).map(|n| format!("w{n}")).collect();
        for name in &names {
            rig.write(name, 2 * CHUNK);
        }
        rig.on(&["migrate", "-r"], &[""]);
        // Writers replace, append to and remove stubs until the daemon is gone; what they saw succeed must hold.
        let paths: Vec<_> = names.iter().map(|name| rig.mnt(name)).collect();
        let writer = std::thread::spawn(move || {
            let mut done = BTreeMap::new();
            for (n, path) in paths.iter().enumerate() {
                let ended = match n % 3 {
                    0 => fs::write(path, b"replaced").map(|()| Some(b"replaced".to_vec())),
                    1 => fs::OpenOptions::new().append(true).open(path).and_then(|mut file| {
                        std::io::Write::write_all(&mut file, b"more")
                            .map(|()| Some([noise(&format!("w{n}"), 2 * CHUNK), b"more".to_vec()].concat()))
                    }),
                    _ => fs::remove_file(path).map(|()| None),
                };
                match ended {
                    Ok(content) => done.insert(n, content),
                    // What was under way may have happened or not.
                    Err(_) => return (done, n),
                };
            }
            (done, paths.len())
        });
        std::thread::sleep(Duration::from_millis(15 + 25 * round));
        rig.kill();
        // Before the mount is taken away, or the writer would go on in the directory below it.
        let (done, cut) = writer.join().unwrap();
        rig.crash();
        rig.mount();
        for (n, name) in names.iter().enumerate() {
            match done.get(&n) {
                Some(Some(content)) => rig.same(name, content),
                Some(None) => assert!(!rig.low(name).exists(), "round {round}: {n} was removed"),
                None if n > cut => rig.same(name, &noise(name, 2 * CHUNK)),
                None => {}
            }
        }
        let left: Vec<&str> = names.iter().map(String::as_str).filter(|name| rig.low(name).exists()).collect();
        rig.settled_after_crash(&left);
    }
}

/// Children that read through the mount; killed at the end.
fn reader(rig: &Rig, name: &str) -> Child {
    Command::new("cat").arg(rig.mnt(name)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn killed_while_readers_wait_they_get_an_error_and_the_next_mount_serves() {
    let Some(mut rig) = Rig::new() else { return };
    rig.quiet();
    let files = populate(&rig, 12);
    rig.on(&["migrate", "-r"], &[""]);
    // Some chunks of each come, then nothing.
    rig.faults.add(Rule::new(Effect::Hang).method("GET").skip(8));
    let mut readers: Vec<Child> = files.keys().map(|name| reader(&rig, name)).collect();
    std::thread::sleep(Duration::from_millis(500));
    let begun = Instant::now();
    rig.crash();
    for reader in &mut readers {
        wait_for("a reader's end", || reader.try_wait().unwrap().is_some());
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    rig.faults.clear();
    rig.mount();
    check(&rig, &files, "after hung readers");
}

#[test]
fn an_orderly_unmount_in_the_middle_of_a_migration_leaves_all_in_order() {
    let Some(mut rig) = by_one_reader() else { return };
    rig.quiet();
    let files = populate(&rig, 60);
    rig.faults.add(Rule::new(Effect::Delay(Duration::from_millis(50))));
    let path = rig.mountpoint();
    let mut job = rig.command(&["migrate".as_ref(), "-r".as_ref(), path.as_os_str()]);
    let mut job = job.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    rig.umount();
    job.wait().unwrap();
    rig.faults.clear();
    // All times are right below, with nobody there to pretend.
    for name in files.keys() {
        let m = fs::metadata(rig.low(name)).unwrap();
        assert_eq!((m.mtime(), m.mtime_nsec()), (mtime(name[1..].parse().unwrap()), 111_222_333), "{name}");
    }
    rig.mount();
    check(&rig, &files, "after the unmount");
}

#[test]
fn a_terminated_daemon_unmounts() {
    let Some(mut rig) = Rig::new() else { return };
    rig.write("a", CHUNK);
    let daemon = rig.daemon.take().unwrap();
    kill_process(Pid::from_raw(daemon).unwrap(), Signal::TERM).unwrap();
    wait_for("the daemon's end", || !alive(daemon));
    assert_eq!(errno(fs::metadata(rig.mnt("a"))), Some(libc::ENOENT), "unmounted, not dead");
    rig.mount();
    rig.same("a", &noise("a", CHUNK));
}
