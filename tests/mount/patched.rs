//! Writing to stubs: nothing comes back for it, what was written survives, and no recall puts older bytes over it.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use crate::common::run;
use crate::rig::*;

/// Bytes of content that the endpoint was asked for while `work` runs, manifests included.
fn fetched(rig: &Rig, work: impl FnOnce()) -> u64 {
    let before = rig.requests().content;
    work();
    rig.requests().content - before
}

fn stub(rig: &Rig, name: &str, len: usize) -> Vec<u8> {
    let content = rig.write(name, len);
    rig.migrate(name);
    assert_eq!(rig.state(name), "stub");
    content
}

fn writer(path: &Path) -> File {
    OpenOptions::new().write(true).open(path).unwrap()
}

/// All that a user may do to a stub without its content.
#[test]
fn what_needs_no_content_moves_none() {
    for rig in [Rig::new(), Setup::xfs().build()] {
        let Some(rig) = rig else { return };
        let len = 20 * CHUNK;
        let mut content = stub(&rig, "a", len);
        for name in ["zero", "trunc", "over", "less"] {
            stub(&rig, name, len);
        }
        let (a, moved) = (rig.mnt("a"), rig.mnt("b"));
        let nothing = |what: &str, work: &mut dyn FnMut()| assert_eq!(fetched(&rig, work), 0, "{what}");
        nothing("stat", &mut || assert_eq!(fs::metadata(&a).unwrap().len(), len as u64));
        assert!(fs::metadata(&a).unwrap().blocks() > 0, "archivers take it for all holes");
        nothing("chmod", &mut || fs::set_permissions(&a, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap());
        nothing("chown", &mut || chown(&a, Some(NOBODY), Some(NOBODY)).unwrap());
        nothing("xattr", &mut || set_xattr(&a, "user.note", b"note").unwrap());
        nothing("utimes", &mut || drop(run("touch", &["-d", "2001-02-03", a.to_str().unwrap()])));
        nothing("link", &mut || fs::hard_link(&a, rig.mnt("link")).unwrap());
        nothing("symlink", &mut || symlink(&a, rig.mnt("symlink")).unwrap());
        nothing("rename", &mut || fs::rename(&a, &moved).and_then(|()| fs::rename(&moved, &a)).unwrap());
        nothing("unlink", &mut || fs::remove_file(rig.mnt("link")).unwrap());
        nothing("seek", &mut || {
            let file = File::open(&a).unwrap();
            assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(5)).unwrap(), 5);
            assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(5)).unwrap(), len as u64);
        });
        nothing("an open for writing", &mut || drop(writer(&a)));
        assert_eq!(rig.state("a"), "stub", "nothing was written");
        nothing("truncate to zero", &mut || writer(&rig.mnt("zero")).set_len(0).unwrap());
        nothing("O_TRUNC", &mut || fs::write(rig.mnt("trunc"), b"new").unwrap());
        nothing("append", &mut || {
            let mut file = OpenOptions::new().append(true).open(&a).unwrap();
            file.write_all(b"and more").unwrap();
            file.sync_all().unwrap();
        });
        content.extend_from_slice(b"and more");
        assert_eq!(rig.state("a"), "patched");
        nothing("a part", &mut || {
            let file = writer(&a);
            file.write_all_at(b"XYZ", 70_001).unwrap();
            file.write_all_at(&[7; 3 * CHUNK], 4 * CHUNK as u64 - 9).unwrap();
        });
        content[70_001..70_004].copy_from_slice(b"XYZ");
        content[4 * CHUNK - 9..][..3 * CHUNK].fill(7);
        nothing("reading what was written", &mut || {
            let mut found = vec![0; 8];
            File::open(&a).unwrap().read_exact_at(&mut found, len as u64).unwrap();
            assert_eq!(found, b"and more");
        });
        nothing("truncate to less", &mut || writer(&rig.mnt("less")).set_len(5 * CHUNK as u64 + 5).unwrap());
        nothing("all of it, without O_TRUNC", &mut || {
            let mut file = writer(&rig.mnt("over"));
            for _ in 0..20 {
                file.write_all(&[9; CHUNK]).unwrap();
            }
        });
        wait_for("nothing of it to be away", || rig.state("over") == "resident");
        nothing("reading it", &mut || rig.same("over", &[9; 20 * CHUNK]));
        rig.same("trunc", b"new");
        rig.same("zero", b"");
        // What is missing comes around what was written.
        rig.same("a", &content);
        wait_for("all of it to be here", || rig.state("a") == "resident");
        rig.same("a", &content);
        rig.same("less", &noise("less", len)[..5 * CHUNK + 5]);
        rig.settled(&["a", "zero", "trunc", "over", "less"]);
    }
}

/// Overwriting a part: only the chunks that it covers in part ever come for a reader of that part.
#[test]
fn a_reader_of_what_was_written_gets_the_chunks_at_its_edges_only() {
    let Some(rig) = Rig::new() else { return };
    let mut content = stub(&rig, "a", 200 * CHUNK);
    let (from, to) = (50 * CHUNK + 100, 90 * CHUNK + 100);
    writer(&rig.mnt("a")).write_all_at(&vec![3; to - from], from as u64).unwrap();
    content[from..to].fill(3);
    let inner = 51 * CHUNK..90 * CHUNK;
    let read = |range: std::ops::Range<usize>| {
        let file = rustix::fs::open(rig.mnt("a"), rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
        let mut found = vec![0; range.len()];
        File::from(file).read_exact_at(&mut found, range.start as u64).unwrap();
        assert_same(&found, &content[range], "a part");
    };
    assert_eq!(fetched(&rig, || read(inner)), 0);
    let edges = fetched(&rig, || read(50 * CHUNK..50 * CHUNK + 200));
    assert!((1..=CHUNK as u64 + (40 << 10)).contains(&edges), "{edges} bytes");
    assert_eq!(fetched(&rig, || read(50 * CHUNK..50 * CHUNK + 200)), 0, "it has come");
}

#[test]
fn what_was_written_survives_a_crash_and_no_recall_undoes_it() {
    for rig in [Rig::new(), Setup::xfs().build()] {
        let Some(mut rig) = rig else { return };
        let mut content = stub(&rig, "a", 64 * CHUNK);
        let file = writer(&rig.mnt("a"));
        let mut put = |at: usize, len: usize, byte: u8| {
            file.write_all_at(&vec![byte; len], at as u64).unwrap();
            content.resize(content.len().max(at + len), 0);
            content[at..at + len].fill(byte);
        };
        put(3 * CHUNK + 17, 5000, 1);
        file.sync_all().unwrap();
        // Not synced: the daemon's death takes nothing of it.
        put(3 * CHUNK + 4000, 2 * CHUNK, 2);
        put(64 * CHUNK + 1000, 10, 3);
        put(0, 1, 4);
        rig.crash();
        drop(file);
        rig.mount();
        assert_eq!(rig.state("a"), "patched");
        let mtime = fs::metadata(rig.mnt("a")).unwrap().modified().unwrap();
        let mut part = vec![0; CHUNK];
        File::open(rig.mnt("a")).unwrap().read_exact_at(&mut part, 3 * CHUNK as u64).unwrap();
        assert_same(&part, &content[3 * CHUNK..4 * CHUNK], "the chunk that was written in part");
        // In the midst of filling.
        rig.crash();
        rig.mount();
        rig.same("a", &content);
        wait_for("all of it to be here", || rig.state("a") == "resident");
        assert_eq!(fs::metadata(rig.mnt("a")).unwrap().modified().unwrap(), mtime);
        rig.migrate("a");
        rig.same("a", &content);
        rig.settled_after_crash(&["a"]);
    }
}

/// Readers, a writer and a mapping at once.
#[test]
fn a_patched_file_is_one_file_for_all_who_have_it_open() {
    let Some(rig) = Rig::new() else { return };
    let mut content = stub(&rig, "a", 40 * CHUNK);
    let reader = File::open(rig.mnt("a")).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(rig.mnt("a")).unwrap();
    let check = |content: &[u8], at: usize, len: usize| {
        for file in [&reader, &file] {
            let mut found = vec![0; len];
            file.read_exact_at(&mut found, at as u64).unwrap();
            assert_same(&found, &content[at..at + len], "a part");
        }
    };
    for n in 0..40_usize {
        let at = (n * 7919 * 13) % (39 * CHUNK);
        let len = 1 + (n * 977) % 9000;
        file.write_all_at(&vec![n as u8; len], at as u64).unwrap();
        content[at..at + len].fill(n as u8);
        check(&content, at.saturating_sub(100), len + 100);
        if n == 20 {
            fs::File::options().write(true).open(rig.mnt("a")).unwrap().set_len(39 * CHUNK as u64 + 5).unwrap();
            content.truncate(39 * CHUNK + 5);
        }
    }
    // Written through a mapping, which the kernel writes back by the daemon.
    let script = "import mmap,sys\nf=open(sys.argv[1],'r+b')\nm=mmap.mmap(f.fileno(),0)\nm[123456:123462]=b'mapped'\nm.flush()\nm.close()\n";
    run("python3", &["-c", script, rig.mnt("a").to_str().unwrap()]);
    content[123_456..123_462].copy_from_slice(b"mapped");
    check(&content, 123_000, 1000);
    drop((reader, file));
    rig.same("a", &content);
    rig.settled(&["a"]);
}

/// In too many pieces for its record, a file comes back as a whole; so it does before `fallocate`, and before it is archived again.
#[test]
fn what_cannot_be_told_in_pieces_brings_the_rest_back() {
    let Some(rig) = Rig::new() else { return };
    let mut content = stub(&rig, "pieces", 8 * CHUNK);
    let mut file = writer(&rig.mnt("pieces"));
    for n in 0..200 {
        file.seek(SeekFrom::Start(n * 1000)).unwrap();
        file.write_all(&[n as u8]).unwrap();
        content[n as usize * 1000] = n as u8;
    }
    drop(file);
    assert_eq!(rig.state("pieces"), "resident");
    rig.same("pieces", &content);

    let mut content = stub(&rig, "punched", 8 * CHUNK);
    run("fallocate", &["--punch-hole", "--offset", "5000", "--length", "70000", rig.mnt("punched").to_str().unwrap()]);
    content[5000..75_000].fill(0);
    rig.same("punched", &content);

    let mut content = stub(&rig, "again", 8 * CHUNK);
    writer(&rig.mnt("again")).write_all_at(b"newer", 3 * CHUNK as u64).unwrap();
    content[3 * CHUNK..][..5].copy_from_slice(b"newer");
    let refused = rig.try_on(&["release"], &["again"]);
    assert!(!refused.status.success() && said(&refused).contains("no verified remote copy"), "{}", said(&refused));
    wait_for("the close to be noticed", || rig.try_on(&["migrate"], &["again"]).status.success());
    assert_eq!(rig.state("again"), "stub");
    rig.same("again", &content);
    rig.settled(&["pieces", "punched", "again"]);
}

/// The store is away: what needs none of it works, and what does not fails without harm.
#[test]
fn a_stub_can_be_written_to_while_the_store_is_away() {
    let Some(mut rig) = Rig::new() else { return };
    let mut content = stub(&rig, "log", 20 * CHUNK);
    rig.stop_server();
    for n in 0..50 {
        let mut file = OpenOptions::new().append(true).open(rig.mnt("log")).unwrap();
        let line = format!("line {n}\n");
        file.write_all(line.as_bytes()).unwrap();
        content.extend_from_slice(line.as_bytes());
    }
    let tail = Command::new("tail").args(["-n", "3", rig.mnt("log").to_str().unwrap()]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&tail.stdout), "line 47\nline 48\nline 49\n");
    rig.start_server();
    rig.same("log", &content);
    rig.settled(&["log"]);
}

#[test]
fn a_writer_brings_no_privileges_back() {
    let Some(rig) = Rig::new() else { return };
    rig.write("tool", 20 * CHUNK);
    fs::set_permissions(rig.mnt("tool"), std::os::unix::fs::PermissionsExt::from_mode(0o4777)).unwrap();
    rig.migrate("tool");
    assert_eq!(fs::metadata(rig.mnt("tool")).unwrap().mode() & 0o7777, 0o4777);
    let output = as_nobody(&rig.mountpoint(), "printf evil | dd of=tool bs=1 seek=5 conv=notrunc status=none");
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(fs::metadata(rig.mnt("tool")).unwrap().mode() & 0o7777, 0o777);
    let mut content = noise("tool", 20 * CHUNK);
    content[5..9].copy_from_slice(b"evil");
    rig.same("tool", &content);
    wait_for("all of it to be here", || rig.state("tool") == "resident");
    assert_eq!(fs::metadata(rig.mnt("tool")).unwrap().mode() & 0o7777, 0o777);
}
