//! Ways to read and write: each gives the same bytes through the mount and below it, on resident files and on stubs.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::process::Command;

use rustix::fs::{FallocateFlags, SeekFrom as Whence, copy_file_range, fallocate, seek};

use crate::rig::*;

/// A rig on either filesystem with `resident`, `dual`, `stub` (small) and `large` (a large stub).
fn both(check: impl Fn(&Rig)) {
    for setup in [Setup::default(), Setup::xfs()] {
        let Some(rig) = setup.build() else { return };
        for name in ["resident", "dual", "stub"] {
            rig.write(name, 4 * CHUNK);
        }
        rig.write("large", 30 * CHUNK);
        rig.on(&["migrate", "--archive-only"], &["dual"]);
        rig.on(&["migrate"], &["stub", "large"]);
        check(&rig);
    }
}

fn content(name: &str) -> Vec<u8> {
    noise(name, if name == "large" { 30 * CHUNK } else { 4 * CHUNK })
}

const ALL: [&str; 4] = ["resident", "dual", "stub", "large"];

/// The same content above and below, once what runs has ended.
fn check(rig: &Rig, name: &str, wanted: &[u8]) {
    rig.same(name, wanted);
    wait_for("the end of a recall", || ["resident", "dual"].contains(&rig.state(name).as_str()));
    assert_same(&fs::read(rig.low(name)).unwrap(), wanted, "below");
}

#[test]
fn appends_and_overwrites() {
    both(|rig| {
        for name in ALL {
            let mut wanted = content(name);
            let mut append = OpenOptions::new().append(true).open(rig.mnt(name)).unwrap();
            append.write_all(b"one").unwrap();
            append.write_all(b"two").unwrap();
            wanted.extend_from_slice(b"onetwo");
            OpenOptions::new().write(true).open(rig.mnt(name)).unwrap().write_all_at(b"middle", 70_001).unwrap();
            wanted[70_001..70_007].copy_from_slice(b"middle");
            check(rig, name, &wanted);
        }
    });
}

#[test]
fn direct_io() {
    both(|rig| {
        for name in ALL {
            let mut wanted = content(name);
            let file =
                OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(rig.mnt(name)).unwrap();
            // Direct I/O wants aligned memory.
            let mut memory = vec![0u8; 3 * 4096];
            let skip = memory.as_ptr().align_offset(4096);
            let buffer = &mut memory[skip..skip + 4096];
            file.read_exact_at(buffer, 65_536).unwrap();
            assert_same(buffer, &wanted[65_536..69_632], name);
            buffer.fill(b'd');
            file.write_all_at(buffer, 8192).unwrap();
            wanted[8192..12_288].fill(b'd');
            drop(file);
            check(rig, name, &wanted);
        }
    });
}

#[test]
fn direct_reads_of_stubs() {
    both(|rig| {
        for name in ["stub", "large"] {
            let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(rig.mnt(name)).unwrap();
            let mut memory = vec![0u8; 3 * 4096];
            let skip = memory.as_ptr().align_offset(4096);
            for at in [0, 65_536, 3 * CHUNK] {
                let buffer = &mut memory[skip..skip + 4096];
                file.read_exact_at(buffer, at as u64).unwrap();
                assert_same(buffer, &content(name)[at..at + 4096], name);
            }
            drop(file);
            check(rig, name, &content(name));
        }
    });
}

#[test]
fn shared_mappings_write_through() {
    both(|rig| {
        for name in ALL {
            let mut wanted = content(name);
            let file = OpenOptions::new().read(true).write(true).open(rig.mnt(name)).unwrap();
            let mut map = Mapping::of(&file, wanted.len(), true);
            drop(file);
            assert_same(map.bytes(), &wanted, name);
            map.set(100_000, b"mapped");
            map.sync();
            drop(map);
            wanted[100_000..100_006].copy_from_slice(b"mapped");
            check(rig, name, &wanted);
        }
    });
}

#[test]
fn readers_and_writers_at_once_see_each_other() {
    both(|rig| {
        for name in ["resident", "dual"] {
            let mut wanted = content(name);
            let reader = File::open(rig.mnt(name)).unwrap();
            let writer = OpenOptions::new().write(true).open(rig.mnt(name)).unwrap();
            writer.write_all_at(b"seen at once", 5).unwrap();
            wanted[5..17].copy_from_slice(b"seen at once");
            let mut found = [0; 12];
            reader.read_exact_at(&mut found, 5).unwrap();
            assert_eq!(&found, b"seen at once");
            drop((reader, writer));
            check(rig, name, &wanted);
        }
        // A reader of a large stub stays with the daemon while a writer comes.
        let mut wanted = content("large");
        let reader = File::open(rig.mnt("large")).unwrap();
        let mut found = [0; 12];
        reader.read_exact_at(&mut found, 0).unwrap();
        let writer = OpenOptions::new().write(true).open(rig.mnt("large")).unwrap();
        writer.write_all_at(b"seen at once", 5).unwrap();
        wanted[5..17].copy_from_slice(b"seen at once");
        reader.read_exact_at(&mut found, 5).unwrap();
        assert_eq!(&found, b"seen at once");
        let truncated = OpenOptions::new().write(true).truncate(true).open(rig.mnt("large")).unwrap();
        assert_eq!(reader.metadata().unwrap().len(), 0);
        writer.write_all_at(b"again", 0).unwrap();
        drop((reader, writer, truncated));
        check(rig, "large", b"again");
    });
}

#[test]
fn allocation_punching_and_zeroing() {
    both(|rig| {
        for name in ALL {
            let mut wanted = content(name);
            let file = OpenOptions::new().read(true).write(true).open(rig.mnt(name)).unwrap();
            fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 8192, 65_536).unwrap();
            wanted[8192..8192 + 65_536].fill(0);
            fallocate(&file, FallocateFlags::empty(), wanted.len() as u64, 10_000).unwrap();
            wanted.resize(wanted.len() + 10_000, 0);
            let size = wanted.len() as u64;
            fallocate(&file, FallocateFlags::KEEP_SIZE, size, 100_000).unwrap();
            assert_eq!(file.metadata().unwrap().len(), size);
            fallocate(&file, FallocateFlags::ZERO_RANGE, 100_000, 5000).unwrap();
            wanted[100_000..105_000].fill(0);
            // The hole can be found.
            assert_eq!(seek(&file, Whence::Hole(0)).unwrap(), 8192, "{name}");
            assert_eq!(seek(&file, Whence::Data(8192)).unwrap(), 8192 + 65_536, "{name}");
            drop(file);
            check(rig, name, &wanted);
        }
    });
}

#[test]
fn holes_of_a_stub_are_not_told() {
    both(|rig| {
        // Large, so that the open does not bring it back.
        let file = File::create(rig.mnt("sparse")).unwrap();
        file.write_all_at(b"end", 40 * CHUNK as u64).unwrap();
        drop(file);
        let len = 40 * CHUNK as u64 + 3;
        let below = File::open(rig.low("sparse")).unwrap();
        assert_eq!(seek(&below, Whence::Hole(0)).unwrap(), 0);
        drop(below);
        wait_for("the close to be noticed", || rig.try_on(&["migrate"], &["sparse"]).status.success());
        let file = File::open(rig.mnt("sparse")).unwrap();
        assert_eq!(seek(&file, Whence::Data(0)).unwrap(), 0);
        assert_eq!(seek(&file, Whence::Hole(0)).unwrap(), len);
        assert_eq!(seek(&file, Whence::Data(len)).unwrap_err().raw_os_error(), libc::ENXIO);
        assert_eq!(rig.state("sparse"), "stub");
        let mut wanted = vec![0; len as usize];
        wanted[40 * CHUNK..].copy_from_slice(b"end");
        drop(file);
        check(rig, "sparse", &wanted);
    });
}

/// What a program finds of holes must not make it skip content that is elsewhere.
#[test]
fn programs_that_skip_holes_skip_nothing_of_a_stub() {
    both(|rig| {
        let mut content = vec![0; 40 * CHUNK + 3];
        content[7 * CHUNK..9 * CHUNK].copy_from_slice(&noise("data", 2 * CHUNK));
        content[40 * CHUNK..].copy_from_slice(b"end");
        fs::write(rig.mnt("sparse"), &content).unwrap();
        let into = rig.scratch("into");
        fs::create_dir(&into).unwrap();
        // tar says that the file has changed: a recall moves its ctime.
        let programs = [
            "tar -Scf - sparse | tar -C INTO -Sxf -",
            "cp --sparse=always sparse INTO/",
            "cp --sparse=auto sparse INTO/",
            "rsync -S sparse INTO/",
        ];
        for (n, program) in programs.iter().enumerate() {
            for state in ["stub", "partial", "patched"] {
                wait_for("a stub", || {
                    let _ = rig.try_on(&["migrate"], &["sparse"]);
                    rig.state("sparse") == "stub"
                });
                if state == "partial" {
                    // Below the mount there is a part of its data, and a hole where the rest of it is.
                    let file = File::open(rig.mnt("sparse")).unwrap();
                    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
                    file.read_exact_at(&mut [0; 100], 7 * CHUNK as u64).unwrap();
                    drop(file);
                    wait_for("the recall's end", || rig.state("sparse") == "partial");
                    let below = File::open(rig.low("sparse")).unwrap();
                    assert_eq!(seek(&below, Whence::Hole(7 * CHUNK as u64)).unwrap(), 8 * CHUNK as u64);
                }
                if state == "patched" {
                    let at = (20 + n) * CHUNK;
                    content[at..at + 3].copy_from_slice(b"new");
                    let file = File::options().write(true).open(rig.mnt("sparse")).unwrap();
                    file.write_all_at(b"new", at as u64).unwrap();
                }
                assert_eq!(rig.state("sparse"), state);
                let script = program.replace("INTO", into.to_str().unwrap());
                let output = Command::new("sh").args(["-ec", &script]).current_dir(rig.mountpoint()).output().unwrap();
                assert!(output.status.success(), "{script}: {}", said(&output));
                assert_same(&fs::read(into.join("sparse")).unwrap(), &content, &format!("{program} of a {state} file"));
                fs::remove_file(into.join("sparse")).unwrap();
            }
        }
    });
}

#[test]
fn copy_file_range_from_everything_to_everything() {
    both(|rig| {
        for name in ALL {
            let source = File::open(rig.mnt(name)).unwrap();
            let copy = format!("copy-of-{name}");
            let target = File::create(rig.mnt(&copy)).unwrap();
            let (mut from, mut to) = (1000, 0);
            let len = content(name).len() - 2000;
            let mut left = len;
            while left > 0 {
                let copied =
                    copy_file_range(source.as_fd(), Some(&mut from), target.as_fd(), Some(&mut to), left).unwrap();
                assert!(copied > 0, "{name}: the copy stopped {left} bytes before its end");
                left -= copied;
            }
            drop((source, target));
            check(rig, &copy, &content(name)[1000..1000 + len]);
        }
        // Into a stub: it comes back first.
        rig.on(&["migrate"], &["dual"]);
        let source = File::open(rig.mnt("resident")).unwrap();
        let target = OpenOptions::new().write(true).open(rig.mnt("dual")).unwrap();
        let mut to = 4096;
        let copied = copy_file_range(source.as_fd(), Some(&mut 0), target.as_fd(), Some(&mut to), 5000).unwrap();
        let mut wanted = content("dual");
        wanted[4096..4096 + copied].copy_from_slice(&content("resident")[..copied]);
        drop((source, target));
        check(rig, "dual", &wanted);
    });
}

#[test]
fn o_tmpfile_is_refused_as_documented() {
    let Some(rig) = Rig::new() else { return };
    let answer = OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(rig.mountpoint());
    assert_eq!(errno(answer), Some(libc::EOPNOTSUPP));
}

#[test]
fn sequential_and_random_reads_of_a_large_stub() {
    both(|rig| {
        let wanted = content("large");
        let mut file = File::open(rig.mnt("large")).unwrap();
        // Backwards, in odd pieces.
        let mut at = wanted.len();
        while at > 0 {
            let len = at.min(77_777);
            at -= len;
            let mut found = vec![0; len];
            file.read_exact_at(&mut found, at as u64).unwrap();
            assert_same(&found, &wanted[at..at + len], "backwards");
        }
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut found = Vec::new();
        file.read_to_end(&mut found).unwrap();
        assert_same(&found, &wanted, "forwards");
        assert_eq!(file.read_at(&mut [0; 10], wanted.len() as u64 + 5).unwrap(), 0, "behind the end");
        drop(file);
        check(rig, "large", &wanted);
    });
}

#[test]
fn what_is_written_is_there_after_a_remount() {
    let Some(mut rig) = Rig::new() else { return };
    let wanted = rig.write("a", 30 * CHUNK);
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(rig.mnt("b")).unwrap();
    file.write_all_at(&wanted, 12_345).unwrap();
    file.sync_all().unwrap();
    drop(file);
    rig.migrate("a");
    let inode = fs::metadata(rig.mnt("a")).unwrap().ino();
    rig.umount();
    rig.mount();
    assert_eq!(rig.state("a"), "stub");
    assert_eq!(fs::metadata(rig.mnt("a")).unwrap().ino(), inode);
    rig.same("a", &wanted);
    rig.same("b", &[vec![0; 12_345], wanted].concat());
}
