//! Recall on access: once for all who wait, verified, out of others' way; and what replaces content without it.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use tierfs::gateway::faults::{Effect, Rule};

use crate::rig::*;

/// Children that are killed and waited for at the end.
struct Readers(Vec<Child>);

impl Drop for Readers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
        }
        for child in &mut self.0 {
            let _ = child.wait();
        }
    }
}

fn cat(rig: &Rig, name: &str) -> Child {
    Command::new("cat").arg(rig.mnt(name)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn shared_by_sixteen(len: usize) {
    let Some(rig) = Rig::new() else { return };
    rig.quiet();
    let content = rig.write("a", len);
    rig.migrate("a");
    rig.fault(Effect::Delay(Duration::from_millis(100)), "GET");
    let before = rig.requests().content;
    let start = Barrier::new(16);
    std::thread::scope(|scope| {
        for n in 0..16usize {
            let (path, content, start) = (rig.mnt("a"), &content, &start);
            scope.spawn(move || {
                start.wait();
                if n % 2 == 0 {
                    assert_same(&fs::read(path).unwrap(), content, "whole");
                } else {
                    // From somewhere in the middle, as a random reader would.
                    let at = n * content.len() / 20;
                    let mut found = vec![0; 5000];
                    let file = File::open(path).unwrap();
                    file.read_exact_at(&mut found, at as u64).unwrap();
                    assert_same(&found, &content[at..at + 5000], "in the middle");
                }
            });
        }
    });
    wait_for("the recall's end", || rig.state("a") == "dual");
    rig.same("a", &content);
    // Each byte once, and the manifest once.
    let fetched = rig.requests().content - before;
    assert!((len as u64..len as u64 + 2048).contains(&fetched), "{fetched} bytes for {len}");
}

#[test]
fn sixteen_readers_of_a_small_stub_share_one_fetch() {
    shared_by_sixteen(10 * CHUNK);
}

#[test]
fn sixteen_readers_of_a_large_stub_share_one_fetch() {
    shared_by_sixteen(48 * CHUNK);
}

#[test]
fn a_body_that_is_damaged_once_is_fetched_again() {
    let Some(rig) = Rig::new() else { return };
    rig.quiet();
    for (name, len) in [("one", CHUNK / 2), ("small", 5 * CHUNK), ("large", 30 * CHUNK)] {
        let content = rig.write(name, len);
        rig.migrate(name);
        let hits = rig.faults.add(Rule::new(Effect::CorruptReply { at: 77 }).method("GET").skip(1).times(1));
        let cut = rig.faults.add(Rule::new(Effect::TruncateReply { after: 99 }).method("GET").times(1));
        rig.same(name, &content);
        assert!(rig.faults.hits(cut) + rig.faults.hits(hits) >= 1, "{name}: the fault was not met");
        rig.faults.clear();
        wait_for("the recall's end", || rig.state(name) == "dual");
        rig.same(name, &content);
    }
}

#[test]
fn a_body_that_stays_damaged_is_never_served_and_the_stub_stays_one() {
    let Some(rig) = Rig::new() else { return };
    rig.quiet();
    for (name, len) in [("one", CHUNK / 2), ("small", 5 * CHUNK), ("large", 30 * CHUNK)] {
        let content = rig.write(name, len);
        rig.migrate(name);
        let before = fs::metadata(rig.low(name)).unwrap();
        rig.fault(Effect::CorruptReply { at: 30 }, "GET");
        for _ in 0..2 {
            assert_eq!(errno(fs::read(rig.mnt(name))), Some(libc::EIO), "{name}");
        }
        // The chunks of an answer that were right stay.
        wait_for("the recall's end", || ["stub", "partial"].contains(&rig.state(name).as_str()));
        let after = fs::metadata(rig.low(name)).unwrap();
        assert_eq!(
            (after.mtime(), after.mtime_nsec(), after.size()),
            (before.mtime(), before.mtime_nsec(), before.size())
        );
        rig.faults.clear();
        rig.same(name, &content);
    }
    assert!(rig.log().contains("checksum"), "the log says why");
}

#[test]
fn one_damaged_chunk_spoils_no_other() {
    let Some(rig) = Rig::new() else { return };
    rig.quiet();
    let content = rig.write("a", 40 * CHUNK);
    rig.migrate("a");
    // The manifest and some chunks come through, then everything is damaged.
    rig.faults.add(Rule::new(Effect::CorruptReply { at: 500 }).method("GET").skip(9));
    let file = File::open(rig.mnt("a")).unwrap();
    let mut good = 0;
    for chunk in 0..40 {
        let mut found = vec![0; 4096];
        match file.read_exact_at(&mut found, (chunk * CHUNK) as u64) {
            Ok(()) => {
                assert_same(&found, &content[chunk * CHUNK..chunk * CHUNK + 4096], "a chunk that came through");
                good += 1;
            }
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO)),
        }
    }
    assert!(good < 40);
    rig.faults.clear();
    // The same handle goes on.
    let mut found = vec![0; content.len()];
    file.read_exact_at(&mut found, 0).unwrap();
    assert_same(&found, &content, "after the fault");
}

#[test]
fn a_hundred_pending_recalls_delay_nobody_else() {
    let Some(rig) = Rig::new() else { return };
    rig.quiet();
    let content = rig.write("resident", CHUNK);
    for n in 0..100 {
        rig.write(&format!("s{n}"), if n < 90 { 3000 } else { 20 * CHUNK });
    }
    rig.on(
        &["migrate"],
        &(0..100).map(|n| format!("s{n}")).collect::<Vec<_>>().iter().map(String::as_str).collect::<Vec<_>>(),
    );
    rig.fault(Effect::Hang, "GET");
    let gets = rig.gets();
    let readers = Readers((0..100).map(|n| cat(&rig, &format!("s{n}"))).collect());
    wait_for("all recalls to hang", || rig.gets() >= gets + 90);
    let begun = Instant::now();
    for n in 0..20 {
        rig.same("resident", &content);
        fs::metadata(rig.mnt(format!("s{n}"))).unwrap();
        fs::write(rig.mnt(format!("new{n}")), b"new").unwrap();
        fs::rename(rig.mnt(format!("new{n}")), rig.mnt(format!("newer{n}"))).unwrap();
    }
    assert_eq!(fs::read_dir(rig.mountpoint()).unwrap().count(), 121);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    // Those who wait can be killed.
    let begun = Instant::now();
    drop(readers);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?} until all were gone", begun.elapsed());
}

#[test]
fn a_reader_of_a_hung_recall_can_be_killed() {
    let Some(rig) = Rig::new() else { return };
    rig.quiet();
    for (name, len) in [("small", 3000), ("large", 40 * CHUNK)] {
        rig.write(name, len);
        rig.migrate(name);
        rig.fault(Effect::Hang, "GET");
        let gets = rig.gets();
        let mut reader = cat(&rig, name);
        wait_for("the recall to hang", || rig.gets() > gets);
        std::thread::sleep(Duration::from_millis(300));
        assert!(reader.try_wait().unwrap().is_none(), "the reader should wait");
        let begun = Instant::now();
        reader.kill().unwrap();
        wait_for("the reader's end", || reader.try_wait().unwrap().is_some());
        assert!(begun.elapsed() < Duration::from_secs(5), "{name}: {:?}", begun.elapsed());
        rig.faults.clear();
    }
}

#[test]
fn truncation_to_nothing_fetches_nothing_and_gives_the_copy_up() {
    let Some(rig) = Rig::new() else { return };
    rig.quiet();
    for name in ["open", "truncate", "ftruncate"] {
        rig.write(name, 20 * CHUNK);
        rig.migrate(name);
    }
    let gets = rig.requests().op("GetObject");
    let mut file = OpenOptions::new().write(true).truncate(true).open(rig.mnt("open")).unwrap();
    file.write_all(b"new").unwrap();
    drop(file);
    truncate(&rig.mnt("truncate"), 0).unwrap();
    assert_eq!(rig.requests().op("GetObject"), gets);
    rig.same("open", b"new");
    rig.same("truncate", b"");
    assert_eq!((rig.state("open"), rig.state("truncate")), ("resident".into(), "resident".into()));
    // An open for writing without O_TRUNC has brought all back already.
    let file = OpenOptions::new().write(true).open(rig.mnt("ftruncate")).unwrap();
    file.set_len(0).unwrap();
    drop(file);
    rig.same("ftruncate", b"");
    rig.settled(&["open", "truncate", "ftruncate"]);
    assert!(rig.objects().is_empty());
}

#[test]
fn a_truncation_in_the_middle_keeps_what_is_before_it() {
    let Some(rig) = Rig::new() else { return };
    let content = rig.write("a", 20 * CHUNK);
    rig.migrate("a");
    OpenOptions::new().write(true).open(rig.mnt("a")).unwrap().set_len(3 * CHUNK as u64 + 5).unwrap();
    rig.same("a", &content[..3 * CHUNK + 5]);
    OpenOptions::new().write(true).open(rig.mnt("a")).unwrap().set_len(5 * CHUNK as u64).unwrap();
    let mut grown = content[..3 * CHUNK + 5].to_vec();
    grown.resize(5 * CHUNK, 0);
    rig.same("a", &grown);
    rig.settled(&["a"]);
}

#[test]
fn what_was_written_and_then_read_supersedes_the_copy() {
    let Some(rig) = Rig::new() else { return };
    for (name, len) in [("small", 3 * CHUNK), ("large", 30 * CHUNK)] {
        let mut content = rig.write(name, len);
        rig.migrate(name);
        let first = rig.record(name).unwrap();
        let mut file = OpenOptions::new().append(true).open(rig.mnt(name)).unwrap();
        file.write_all(b"and more").unwrap();
        drop(file);
        content.extend_from_slice(b"and more");
        let file = OpenOptions::new().write(true).open(rig.mnt(name)).unwrap();
        file.write_all_at(b"XYZ", 70_000).unwrap();
        drop(file);
        content[70_000..70_003].copy_from_slice(b"XYZ");
        assert_eq!(rig.state(name), "patched");
        rig.same(name, &content);
        wait_for("the end of the recall", || rig.state(name) == "resident");
        let second = rig.record(name).unwrap();
        assert!(second.generation > first.generation, "{first:?} {second:?}");
        wait_for("the close to be noticed", || rig.try_on(&["migrate"], &[name]).status.success());
        let third = rig.record(name).unwrap();
        assert_ne!(third.object.unwrap().key, first.object.unwrap().key);
        rig.same(name, &content);
    }
    rig.settled(&["small", "large"]);
}

#[test]
fn objects_of_removed_and_replaced_stubs_go() {
    let Some(rig) = Rig::new() else { return };
    rig.quiet();
    for name in ["unlinked", "replaced", "kept", "multi"] {
        rig.write(name, 2 * CHUNK);
    }
    rig.on(&["migrate", "-r"], &[""]);
    assert_eq!(rig.objects().len(), 8);
    let gets = rig.requests().op("GetObject");
    fs::write(rig.mnt("other"), b"other").unwrap();
    fs::remove_file(rig.mnt("unlinked")).unwrap();
    fs::rename(rig.mnt("other"), rig.mnt("replaced")).unwrap();
    fs::rename(rig.mnt("multi"), rig.mnt("renamed")).unwrap();
    rig.settled(&["kept", "renamed"]);
    assert_eq!(rig.requests().op("GetObject"), gets, "none of this needs content");
    rig.same("replaced", b"other");
    rig.same("kept", &noise("kept", 2 * CHUNK));
    rig.same("renamed", &noise("multi", 2 * CHUNK));
}

/// The deletion is noted before the name goes, and due at once: it must not be dropped because the name is still there.
#[test]
fn no_object_of_many_removed_stubs_stays_behind() {
    let Some(rig) = Rig::new() else { return };
    let names: Vec<String> = (0..150).map(|n| format!("f{n}")).collect();
    for name in &names {
        rig.write(name, 1000);
    }
    rig.on(&["migrate", "-r"], &[""]);
    assert_eq!(rig.objects().len(), names.len());
    std::thread::scope(|scope| {
        for some in names.chunks(40) {
            let paths: Vec<_> = some.iter().map(|name| rig.mnt(name)).collect();
            scope.spawn(move || paths.iter().for_each(|path| fs::remove_file(path).unwrap()));
        }
    });
    rig.settled(&[]);
}

#[test]
fn an_unlinked_stub_can_be_read_by_who_has_it_open() {
    let Some(rig) = Rig::new() else { return };
    let content = rig.write("a", 40 * CHUNK);
    rig.migrate("a");
    let file = File::open(rig.mnt("a")).unwrap();
    fs::remove_file(rig.mnt("a")).unwrap();
    // Time for a deletion that would come too early.
    std::thread::sleep(Duration::from_millis(700));
    let mut found = vec![0; content.len()];
    file.read_exact_at(&mut found, 0).unwrap();
    assert_same(&found, &content, "unlinked and open");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    assert_eq!(rig.objects().len(), 2);
    // Half a minute after the last close the object goes: more than a test should wait for.
}

#[test]
fn retention_keeps_what_was_removed() {
    let Some(rig) = (Setup { retention: "24h", ..Setup::default() }).build() else { return };
    rig.write("a", CHUNK);
    rig.write("b", CHUNK);
    rig.on(&["migrate", "-r"], &[""]);
    let objects = rig.objects();
    fs::remove_file(rig.mnt("a")).unwrap();
    fs::write(rig.mnt("b"), b"new").unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(rig.objects(), objects);
}

#[test]
fn slow_and_failing_answers_are_told_as_such_and_pass() {
    let Some(rig) = Rig::new() else { return };
    rig.quiet();
    let content = rig.write("a", 3 * CHUNK);
    rig.migrate("a");
    for effect in [Effect::InternalError, Effect::SlowDown, Effect::Reset] {
        let hit = rig.fault(effect, "GET");
        let error = fs::read(rig.mnt("a")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT), "{effect:?}: {error}");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!((1..50).contains(&rig.faults.hits(hit)), "{effect:?}: {} requests", rig.faults.hits(hit));
        rig.faults.clear();
        assert_eq!(rig.state("a"), "stub");
    }
    // Once is not noticed.
    rig.faults.add(Rule::new(Effect::InternalError).method("GET").times(1));
    rig.same("a", &content);
}

/// Found by the exerciser: who waited for a recall that a truncating open made needless got ECANCELED instead of the emptied file.
#[test]
fn who_waits_for_a_file_that_is_emptied_gets_the_empty_file() {
    /// How many bytes who waited finds, to be asked when the other's open has returned: until then its cut may not show yet.
    type Found = Box<dyn FnOnce() -> u64 + Send>;
    let Some(rig) = Rig::new() else { return };
    rig.quiet();
    for (n, len) in [3 * CHUNK, (1 << 20) + CHUNK].into_iter().enumerate() {
        for (m, waits) in [
            (|path| {
                let len = fs::read(path)?.len() as u64;
                Ok(Box::new(move || len) as Found)
            }) as fn(PathBuf) -> std::io::Result<Found>,
            |path| {
                let file = OpenOptions::new().read(true).write(true).open(path)?;
                let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&file, punch, 0, 5)?;
                Ok(Box::new(move || file.metadata().unwrap().len()))
            },
            |path| {
                set_xattr(&path, "user.tierfs.recall", b"1").map_err(std::io::Error::from_raw_os_error)?;
                Ok(Box::new(|| 0))
            },
        ]
        .into_iter()
        .enumerate()
        {
            let name = format!("{n}-{m}");
            rig.write(&name, len);
            rig.migrate(&name);
            let (path, gets) = (rig.mnt(&name), rig.gets());
            let hanging = rig.fault(Effect::Hang, "GET");
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| waits(path.clone()));
                wait_for("the recall", || rig.gets() > gets);
                drop(OpenOptions::new().write(true).truncate(true).open(&path).unwrap());
                assert_eq!(waiting.join().unwrap().unwrap()(), 0, "{name}");
            });
            rig.faults.remove(hanging);
            rig.same(&name, b"");
        }
    }
}
