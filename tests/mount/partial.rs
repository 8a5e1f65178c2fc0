//! Stubs of which some chunks are local: what a read moves, what stays, what a restart knows of it.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tierfs::gateway::faults::{Effect, Rule};
use tierfs::remote::manifest::Manifest;
use tierfs::types::{ContentHash, Timestamp, usual_chunk_size};

use crate::rig::*;

/// Bytes of content that the endpoint was asked for while `work` runs, manifests included.
fn fetched(rig: &Rig, work: impl FnOnce()) -> u64 {
    let before = rig.requests().content;
    work();
    rig.requests().content - before
}

/// More than any manifest here has.
const MANIFEST: u64 = 40 << 10;

fn read_at(rig: &Rig, name: &str, offset: usize, len: usize) -> Vec<u8> {
    let mut found = vec![0; len];
    File::open(rig.mnt(name)).unwrap().read_exact_at(&mut found, offset as u64).unwrap();
    found
}

/// Has the kernel read nothing but what is asked for.
fn direct(rig: &Rig, name: &str, offset: usize, len: usize) -> Vec<u8> {
    let file = rustix::fs::open(rig.mnt(name), rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    let mut found = vec![0; len];
    File::from(file).read_exact_at(&mut found, offset as u64).unwrap();
    found
}

fn stub(rig: &Rig, name: &str, len: usize) -> Vec<u8> {
    let content = rig.write(name, len);
    rig.migrate(name);
    assert_eq!(rig.state(name), "stub");
    content
}

fn rests(rig: &Rig, name: &str, state: &str) {
    wait_for("the recall's end", || rig.state(name) == state);
}

#[test]
fn a_read_moves_the_chunks_that_it_touches() {
    let Some(rig) = Rig::new() else { return };
    let content = stub(&rig, "a", 512 * CHUNK);
    let mtime = fs::metadata(rig.mnt("a")).unwrap().modified().unwrap();
    for (n, at) in [5 * CHUNK + 7, 400 * CHUNK - 1, 511 * CHUNK, 100 * CHUNK].into_iter().enumerate() {
        let len = CHUNK.min(content.len() - at);
        let moved = fetched(&rig, || assert_same(&direct(&rig, "a", at, len), &content[at..at + len], "a part"));
        let manifest = if n == 0 { MANIFEST } else { 0 };
        assert!(moved <= 2 * CHUNK as u64 + manifest, "{moved} bytes for the read at {at}");
        rests(&rig, "a", "partial");
    }
    let moved = fetched(&rig, || {
        let at = 5 * CHUNK + 9;
        assert_same(&direct(&rig, "a", at, 4000), &content[at..at + 4000], "again");
    });
    assert_eq!(moved, 0, "what is here is not fetched again");
    assert_eq!(fs::metadata(rig.mnt("a")).unwrap().modified().unwrap(), mtime);
    // The last recall may not have ended yet: the file was partial before it.
    wait_for("the time below", || fs::metadata(rig.low("a")).unwrap().modified().unwrap() == mtime);
    assert!(rig.allocated("a") <= 8 * CHUNK as u64);
    rig.same("a", &content);
    rests(&rig, "a", "dual");
}

#[test]
fn parts_survive_a_restart_and_a_crash() {
    for crash in [false, true] {
        let Some(mut rig) = Rig::new() else { return };
        let content = stub(&rig, "a", 64 * CHUNK);
        let file = File::open(rig.mnt("a")).unwrap();
        let read = |rig: &Rig| {
            let at = 10 * CHUNK;
            assert_same(&direct(rig, "a", at, 4 * CHUNK), &content[at..at + 4 * CHUNK], "a part");
        };
        read(&rig);
        // Readers are served before what they read is written.
        wait_for("what was read to be below", || rig.allocated("a") >= 4 * CHUNK as u64);
        if crash {
            // In the midst of it: the file is open, and the record still says stub.
            rig.crash();
            drop(file);
        } else {
            drop(file);
            rig.umount();
        }
        rig.mount();
        rests(&rig, "a", "partial");
        let moved = fetched(&rig, || read(&rig));
        assert!(moved <= MANIFEST, "{moved} bytes were fetched again");
        rests(&rig, "a", "partial");
        rig.same("a", &content);
        rests(&rig, "a", "dual");
    }
}

#[test]
fn a_file_whose_last_chunk_comes_is_dual_by_itself() {
    let Some(mut rig) = Rig::new() else { return };
    let content = stub(&rig, "a", 20 * CHUNK + 5);
    direct(&rig, "a", 4 * CHUNK, 16 * CHUNK);
    for chunk in [3, 0, 20] {
        direct(&rig, "a", chunk * CHUNK, 5);
        rests(&rig, "a", "partial");
    }
    // What is local is known by looking only.
    rig.umount();
    rig.mount();
    let moved = fetched(&rig, || {
        for chunk in [2, 1] {
            direct(&rig, "a", chunk * CHUNK, 5);
        }
    });
    assert!(moved <= 3 * CHUNK as u64 + MANIFEST, "{moved}");
    rests(&rig, "a", "dual");
    let moved = fetched(&rig, || rig.same("a", &content));
    assert_eq!(moved, 0);
}

#[test]
fn a_part_is_released_like_a_whole() {
    let Some(rig) = Rig::new() else { return };
    let content = stub(&rig, "a", 20 * CHUNK);
    direct(&rig, "a", 0, 3 * CHUNK);
    rests(&rig, "a", "partial");
    rig.on(&["release"], &["a"]);
    assert_eq!((rig.state("a"), rig.allocated("a") <= 4096), ("stub".into(), true));
    rig.same("a", &content);
}

#[test]
fn zeros_are_not_fetched() {
    let Some(rig) = Rig::new() else { return };
    let file = File::create(rig.mnt("a")).unwrap();
    file.set_len(100 * CHUNK as u64).unwrap();
    file.write_all_at(&[7; 3 * CHUNK], 50 * CHUNK as u64).unwrap();
    drop(file);
    let content = fs::read(rig.mnt("a")).unwrap();
    rig.migrate("a");
    let moved = fetched(&rig, || rig.on(&["recall"], &["a"]).clear());
    assert!(moved <= 3 * CHUNK as u64 + MANIFEST, "{moved} bytes for three chunks");
    rig.same("a", &content);
    assert!(rig.allocated("a") <= 4 * CHUNK as u64, "{} bytes are allocated", rig.allocated("a"));
}

#[test]
fn a_reader_in_sequence_is_fetched_for_ahead() {
    let Some(rig) = Rig::new() else { return };
    let content = stub(&rig, "a", 512 * CHUNK);
    let before = rig.requests().op("GetObject");
    rig.same("a", &content);
    let gets = rig.requests().op("GetObject") - before;
    assert!(gets <= 512 / 4, "{gets} requests for 512 chunks");
    rests(&rig, "a", "dual");
}

/// The kernel's read-ahead comes in several requests in any order. They were taken for several readers, each of which had the other's
/// requests given up halfway: twice as much was asked for as was needed, each time on a new connection.
#[test]
fn nothing_is_asked_for_twice_for_a_reader_in_sequence() {
    let Some(rig) = (Setup { size: 1 << 30, ..Setup::default() }).build() else { return };
    let content = stub(&rig, "a", 64 << 20);
    let before = rig.requests();
    rig.same("a", &content);
    let after = rig.requests();
    let asked = after.content - before.content;
    assert!(asked <= content.len() as u64 + MANIFEST, "{asked} bytes for {}", content.len());
    let connections = after.connections - before.connections;
    assert!(connections <= 16, "{connections} connections");
}

#[test]
fn a_reader_with_a_stride_is_fetched_for_ahead() {
    let Some(rig) = Rig::new() else { return };
    let content = stub(&rig, "a", 512 * CHUNK);
    let file = File::open(rig.mnt("a")).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    let mut found = [0; 100];
    for n in 0..3 {
        file.read_exact_at(&mut found, n * 40 * CHUNK as u64).unwrap();
    }
    wait_for("the next ones", || rig.allocated("a") >= 4 * CHUNK as u64);
    let moved = fetched(&rig, || {
        file.read_exact_at(&mut found, 120 * CHUNK as u64).unwrap();
        assert_eq!(found, content[120 * CHUNK..][..100]);
    });
    // The one after the next ones may have been asked for meanwhile.
    assert!(moved <= 4 * CHUNK as u64, "{moved}");
}

#[test]
fn policies_say_what_a_read_brings_back() {
    let Some(rig) = Rig::new() else { return };
    for policy in ["partial", "progressive", "full", "pass-through"] {
        fs::create_dir(rig.mnt(policy)).unwrap();
        set_xattr(&rig.mnt(policy), "user.tierfs.recall_policy", policy.as_bytes()).unwrap();
        assert_eq!(xattr(&rig.mnt(policy), "user.tierfs.recall_policy").unwrap(), policy.as_bytes());
        fs::create_dir(rig.mnt(policy).join("below")).unwrap();
        let name = format!("{policy}/below/a");
        let content = stub(&rig, &name, 100 * CHUNK);
        let at = 50 * CHUNK;
        assert_same(&direct(&rig, &name, at, 100), &content[at..at + 100], policy);
        match policy {
            "partial" => rests(&rig, &name, "partial"),
            "pass-through" => {
                assert!(rig.allocated(&name) <= 4096);
                rig.same(&name, &content);
                assert_eq!((rig.state(&name), rig.allocated(&name) <= 4096), ("stub".into(), true));
                // Who wants it all can have it.
                rig.on(&["recall"], &[&name]);
                assert_eq!(rig.state(&name), "dual");
            }
            _ => rests(&rig, &name, "dual"),
        }
        rig.same(&name, &content);
    }
    let refused = set_xattr(&rig.mnt("partial"), "user.tierfs.recall_policy", b"some");
    assert!(refused.is_err());
    rustix::fs::removexattr(rig.mnt("full"), "user.tierfs.recall_policy").unwrap();
    assert!(xattr(&rig.mnt("full"), "user.tierfs.recall_policy").is_err());
    assert!(set_xattr(&rig.mnt("partial/below/a"), "user.tierfs.recall_policy", b"full").is_err());
}

#[test]
fn a_full_policy_answers_when_all_is_there() {
    let Some(rig) = Rig::new() else { return };
    let content = stub(&rig, "a", 300 * CHUNK);
    set_xattr(&rig.mountpoint(), "user.tierfs.recall_policy", b"full").unwrap();
    assert_same(&read_at(&rig, "a", 0, 10), &content[..10], "the beginning");
    assert_eq!(rig.state("a"), "dual");
}

#[test]
fn a_reader_that_is_killed_stops_its_fetch() {
    let Some(rig) = Rig::new() else { return };
    stub(&rig, "a", 256 * CHUNK);
    // Bodies stop in the midst.
    rig.faults.add(Rule::new(Effect::Delay(Duration::from_secs(30))).method("GET"));
    let mut reader = Command::new("cat").arg(rig.mnt("a")).stdout(Stdio::null()).spawn().unwrap();
    wait_for("the request", || rig.gets() > 0);
    reader.kill().unwrap();
    reader.wait().unwrap();
    // Long before the answer.
    wait_for("the recall's end", || {
        rig.on(&["status"], &["a"]).contains("stub") && !rig.on(&["status"], &["a"]).contains("recalling")
    });
    rig.faults.clear();
}

#[test]
fn times_are_set_while_somebody_reads_a_part() {
    let Some(rig) = Rig::new() else { return };
    let content = stub(&rig, "a", 64 * CHUNK);
    let file = File::open(rig.mnt("a")).unwrap();
    let mut found = [0; 100];
    file.read_exact_at(&mut found, 0).unwrap();
    let when = std::time::UNIX_EPOCH + Duration::from_secs(1_234_567_890);
    OpenOptions::new().read(true).open(rig.mnt("a")).unwrap().set_modified(when).unwrap();
    assert_eq!(fs::metadata(rig.mnt("a")).unwrap().modified().unwrap(), when);
    file.read_exact_at(&mut found, 30 * CHUNK as u64).unwrap();
    assert_eq!(found, content[30 * CHUNK..][..100]);
    drop(file);
    rests(&rig, "a", "partial");
    assert_eq!(fs::metadata(rig.mnt("a")).unwrap().modified().unwrap(), when);
    wait_for("the time below", || fs::metadata(rig.low("a")).unwrap().modified().unwrap() == when);
    rig.same("a", &content);
}

#[test]
fn a_part_changed_below_the_mount_is_not_served() {
    let Some(rig) = Rig::new() else { return };
    let content = stub(&rig, "a", 32 * CHUNK);
    direct(&rig, "a", 0, 2 * CHUNK);
    rests(&rig, "a", "partial");
    rig.on(&["check"], &["a"]);
    let before = fs::metadata(rig.low("a")).unwrap();
    let low = OpenOptions::new().write(true).open(rig.low("a")).unwrap();
    low.write_all_at(b"somebody else's", 100).unwrap();
    drop(low);
    let checked = rig.try_on(&["check"], &["a"]);
    assert!(!checked.status.success() && said(&checked).contains("tierfs did not write"), "{}", said(&checked));
    // With the time put back it is taken for torn by a crash: it would be fetched again.
    let after = fs::metadata(rig.low("a")).unwrap();
    set_mtime(&rig.low("a"), before.mtime(), before.mtime_nsec());
    rig.on(&["check"], &["a"]);
    set_mtime(&rig.low("a"), after.mtime(), after.mtime_nsec());
    rustix::fs::fadvise(File::open(rig.mnt("a")).unwrap(), 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let error = File::open(rig.mnt("a")).and_then(|file| file.read_exact_at(&mut [0; 10], 0)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    // Other parts are as they were.
    assert_same(&direct(&rig, "a", 8 * CHUNK, 100), &content[8 * CHUNK..][..100], "another part");
}

/// A store of one large object, all of whose chunks are alike, and its manifest: counts the bytes that it sends of either.
struct Huge {
    url: String,
    content: Arc<AtomicU64>,
}

impl Huge {
    fn start(chunk: Vec<u8>, manifest: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let content = Arc::new(AtomicU64::new(0));
        let (counted, store) = (content.clone(), Arc::new((chunk, manifest)));
        // Both end with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (counted, store) = (counted.clone(), store.clone());
                std::thread::spawn(move || Self::answer(stream, &store.0, &store.1, &counted));
            }
        });
        Self { url, content }
    }

    fn answer(mut stream: TcpStream, chunk: &[u8], manifest: &[u8], content: &AtomicU64) {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read(&mut byte).unwrap_or(0) == 0 {
                return;
            }
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let first = head.lines().next().unwrap_or_default();
        let range =
            head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
        let refused = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let ok = |range: &str, len: u64| {
            let status = if range.is_empty() { "200 OK" } else { "206 Partial Content" };
            format!("HTTP/1.1 {status}\r\netag: \"huge\"\r\n{range}content-length: {len}\r\nconnection: close\r\n\r\n")
        };
        if !first.starts_with("GET ") || !first.contains("huge") {
            let _ = stream.write_all(refused.as_bytes());
        } else if first.contains(".manifest") {
            let _ = stream.write_all(ok("", manifest.len() as u64).as_bytes());
            let _ = stream.write_all(manifest);
        } else {
            let range = range.expect("content is asked for by range");
            let (from, to) = range.trim().split_once('-').unwrap();
            let (from, to): (u64, u64) = (from.parse().unwrap(), to.parse().unwrap());
            let told = format!("content-range: bytes {from}-{to}/{TIB}\r\n");
            let _ = stream.write_all(ok(&told, to - from + 1).as_bytes());
            let mut at = from;
            while at <= to {
                let within = (at % chunk.len() as u64) as usize;
                let some = ((to + 1 - at) as usize).min(chunk.len() - within);
                if stream.write_all(&chunk[within..within + some]).is_err() {
                    return;
                }
                content.fetch_add(some as u64, Ordering::Relaxed);
                at += some as u64;
            }
        }
    }
}

const TIB: u64 = 1 << 40;

/// The record is made by hand, for nobody has a tebibyte to archive; all else is as ever.
#[test]
fn a_mebibyte_anywhere_in_a_tebibyte_moves_two_chunks_at_most() {
    let Some(mut rig) = Rig::new() else { return };
    rig.write("huge", 2 * CHUNK);
    rig.migrate("huge");
    let mut record = rig.record("huge").unwrap();
    rig.umount();
    let chunk_size = usual_chunk_size(TIB);
    let chunk = noise("huge", chunk_size as usize);
    let hashes = vec![ContentHash::of(&chunk); (TIB / u64::from(chunk_size)) as usize];
    let manifest = Manifest::new(TIB, chunk_size, hashes).unwrap();
    OpenOptions::new().write(true).open(rig.low("huge")).unwrap().set_len(TIB).unwrap();
    let modified = fs::metadata(rig.low("huge")).unwrap();
    let object = record.object.as_mut().unwrap();
    (object.len, object.chunk_size, object.root, object.etag) = (TIB, chunk_size, manifest.root(), "huge".into());
    object.mtime = Timestamp { secs: modified.mtime(), nanos: modified.mtime_nsec() as u32 };
    set_xattr(&rig.low("huge"), RECORD, &record.encode()).unwrap();
    let store = Huge::start(chunk.clone(), manifest.encode());
    let edited = rig.tierfs(&["pair", "edit", "cold", "--endpoint", &store.url, "--no-probe"]);
    assert!(edited.status.success(), "{}", said(&edited));
    rig.mount();
    let file = File::open(rig.mnt("huge")).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    let mut found = vec![0; 1 << 20];
    let mut moved = 0;
    // Within a chunk, over the seam of two, the last one; each far from the others and at no stride.
    for at in [5 * TIB / 7 + 1234, 11 * u64::from(chunk_size) - 4321, TIB - (1 << 20), TIB / 3] {
        file.read_exact_at(&mut found, at).unwrap();
        let right = (0..found.len()).all(|n| found[n] == chunk[((at + n as u64) % u64::from(chunk_size)) as usize]);
        assert!(right, "other bytes at {at}");
        let now = store.content.load(Ordering::Relaxed);
        assert!(now - moved <= 2 * u64::from(chunk_size), "{} bytes for the read at {at}", now - moved);
        moved = now;
    }
    assert_eq!(fs::metadata(rig.mnt("huge")).unwrap().len(), TIB);
    drop(file);
    rests(&rig, "huge", "partial");
}
