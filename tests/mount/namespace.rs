//! Names, directories, links, special files, locks and permissions: through the mount as below it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, RenameFlags, mknodat, renameat_with};

use crate::common::run;
use crate::io_rules::descriptors;
use crate::rig::*;

/// Runs `check` on ext4 and then on XFS.
fn both(check: impl Fn(&Rig)) {
    for setup in [Setup::default(), Setup::xfs()] {
        let Some(rig) = setup.build() else { return };
        check(&rig);
    }
}

/// Found by stress-ng as EIO, and worse by reading: a request for a removed file, under way while a new file got its number, opened or cut
/// the new one. (A descriptor of `O_PATH` stands for such a request: the kernel knows the file, and the daemon does not know that.)
#[test]
fn a_removed_files_number_is_not_used_again_while_somebody_knows_it() {
    let Some(rig) = Rig::new() else { return };
    for (replaced, stub) in [(false, false), (true, false), (false, true)] {
        rig.write("a", CHUNK);
        if stub {
            rig.migrate("a");
        }
        let known = rustix::fs::open(rig.mnt("a"), rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        let number = fs::metadata(rig.mnt("a")).unwrap().ino();
        if replaced {
            fs::write(rig.mnt("b"), b"b").unwrap();
            fs::rename(rig.mnt("b"), rig.mnt("a")).unwrap();
        } else {
            fs::remove_file(rig.mnt("a")).unwrap();
        }
        let made = |n: usize| {
            let name = format!("new{n}");
            fs::write(rig.mnt(&name), b"somebody else's").unwrap();
            fs::metadata(rig.mnt(&name)).unwrap().ino()
        };
        assert!((0..20).all(|n| made(n) != number), "its number was used again");
        let stat = rustix::fs::fstat(&known).unwrap();
        assert_eq!((stat.st_ino, stat.st_nlink, stat.st_size), (number, 0, CHUNK as i64));
        drop(known);
        (0..20).for_each(|n| fs::remove_file(rig.mnt(format!("new{n}"))).unwrap());
        // As soon as nobody knows it, it is free like any other.
        wait_for("the number's next file", || {
            let found = (0..20).any(|n| made(n) == number);
            (0..20).for_each(|n| drop(fs::remove_file(rig.mnt(format!("new{n}")))));
            found
        });
        let _ = fs::remove_file(rig.mnt("a"));
    }
}

#[test]
fn names_made_through_the_mount_are_below_and_the_other_way_round() {
    both(|rig| {
        fs::create_dir_all(rig.mnt("a/b/c")).unwrap();
        fs::write(rig.mnt("a/b/file"), b"x").unwrap();
        symlink("b/file", rig.mnt("a/link")).unwrap();
        symlink("nowhere", rig.mnt("dangling")).unwrap();
        fs::hard_link(rig.mnt("a/b/file"), rig.mnt("hard")).unwrap();
        for (name, kind) in [
            ("fifo", FileType::Fifo),
            ("sock", FileType::Socket),
            ("chr", FileType::CharacterDevice),
            ("blk", FileType::BlockDevice),
        ] {
            mknodat(CWD, rig.mnt(name), kind, Mode::from_raw_mode(0o640), rustix::fs::makedev(1, 3)).unwrap();
        }
        for name in ["a", "a/b/file", "a/link", "dangling", "hard", "fifo", "sock", "chr", "blk"] {
            let (above, below) =
                (fs::symlink_metadata(rig.mnt(name)).unwrap(), fs::symlink_metadata(rig.low(name)).unwrap());
            let of = |m: &fs::Metadata| {
                (m.ino(), m.mode(), m.nlink(), m.uid(), m.gid(), m.size(), m.rdev(), m.mtime(), m.mtime_nsec())
            };
            assert_eq!(of(&above), of(&below), "{name}");
        }
        assert_eq!(fs::metadata(rig.mnt("hard")).unwrap().ino(), fs::metadata(rig.mnt("a/b/file")).unwrap().ino());
        assert!(fs::metadata(rig.mnt("fifo")).unwrap().file_type().is_fifo());
        assert_eq!(fs::read_link(rig.mnt("a/link")).unwrap().to_str(), Some("b/file"));
        assert_eq!(fs::read(rig.mnt("a/link")).unwrap(), b"x");
        assert_eq!(errno(fs::read(rig.mnt("dangling"))), Some(libc::ENOENT));
        assert_eq!(errno(fs::create_dir(rig.mnt("a"))), Some(libc::EEXIST));
        assert_eq!(errno(fs::remove_dir(rig.mnt("a"))), Some(libc::ENOTEMPTY));
        assert_eq!(errno(fs::remove_file(rig.mnt("a"))), Some(libc::EISDIR));
        assert_eq!(errno(fs::read_dir(rig.mnt("hard/x"))), Some(libc::ENOTDIR));
        fs::write(rig.low("made-below"), b"below").unwrap();
        rig.same("made-below", b"below");
        fs::remove_dir_all(rig.mnt("a")).unwrap();
        assert!(!rig.low("a").exists());
        assert_eq!(fs::metadata(rig.mnt("hard")).unwrap().nlink(), 1);
    });
}

#[test]
fn rename_with_its_flags() {
    both(|rig| {
        for name in ["one", "two"] {
            rig.write(name, 1000);
        }
        rig.migrate("two");
        let rename = |from: &str, to: &str, flags| {
            renameat_with(CWD, rig.mnt(from), CWD, rig.mnt(to), flags).map_err(|e| e.raw_os_error())
        };
        assert_eq!(rename("one", "two", RenameFlags::NOREPLACE), Err(libc::EEXIST));
        assert_eq!(rename("one", "none", RenameFlags::EXCHANGE), Err(libc::ENOENT));
        rename("one", "two", RenameFlags::EXCHANGE).unwrap();
        assert_eq!((rig.state("one").as_str(), rig.state("two").as_str()), ("stub", "resident"));
        rig.same("one", &noise("two", 1000));
        rig.same("two", &noise("one", 1000));
        rename("one", "three", RenameFlags::NOREPLACE).unwrap();
        fs::create_dir(rig.mnt("dir")).unwrap();
        fs::rename(rig.mnt("three"), rig.mnt("dir/three")).unwrap();
        rig.same("dir/three", &noise("two", 1000));
        assert_eq!(errno(fs::rename(rig.mnt("dir"), rig.mnt("dir/three/x"))), Some(libc::ENOTDIR));
        fs::create_dir(rig.mnt("dir/sub")).unwrap();
        assert_eq!(errno(fs::rename(rig.mnt("dir"), rig.mnt("dir/sub/x"))), Some(libc::EINVAL));
        // Renamed directories take their stubs along.
        rig.migrate("dir/three");
        fs::rename(rig.mnt("dir"), rig.mnt("moved")).unwrap();
        rig.same("moved/three", &noise("two", 1000));
    });
}

#[test]
fn odd_names_migrate_and_come_back() {
    both(|rig| {
        let long = "x".repeat(255);
        let names: [&[u8]; 6] =
            [b"\xff\xfe not utf-8", long.as_bytes(), b"new\nline", "日本 ü".as_bytes(), b" %41@ ", b"-r"];
        for name in names {
            let path = rig.mnt(OsStr::from_bytes(name));
            fs::write(&path, name.repeat(100)).unwrap();
            let output = rig.tierfs(&["migrate".as_ref(), "--".as_ref(), path.as_os_str()]);
            assert!(output.status.success(), "{name:?}: {}", said(&output));
            assert_eq!(xattr(&path, "user.tierfs.state").unwrap(), b"stub");
            assert_same(&fs::read(&path).unwrap(), &name.repeat(100), "content");
        }
        let listed: BTreeSet<Vec<u8>> = fs::read_dir(rig.mountpoint())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().as_bytes().to_vec())
            .collect();
        assert_eq!(listed, names.iter().map(|name| name.to_vec()).collect());
        let too_long = fs::write(rig.mnt("x".repeat(256)), b"");
        assert_eq!(errno(too_long), Some(libc::ENAMETOOLONG));
    });
}

#[test]
fn a_directory_of_five_thousand_is_listed_once_each() {
    both(|rig| {
        fs::create_dir(rig.mnt("d")).unwrap();
        for n in 0..5000 {
            File::create(rig.low(format!("d/entry-{n:05}"))).unwrap();
        }
        let names: Vec<_> = fs::read_dir(rig.mnt("d")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 5000);
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), 5000);
        // Removal while listing, as rm -r does it.
        fs::remove_dir_all(rig.mnt("d")).unwrap();
        assert!(!rig.low("d").exists());
    });
}

#[test]
fn an_unlinked_open_file_lives_until_its_close() {
    both(|rig| {
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(rig.mnt("a")).unwrap();
        file.write_all(b"before").unwrap();
        fs::remove_file(rig.mnt("a")).unwrap();
        file.write_all_at(b"after!", 0).unwrap();
        file.set_permissions(Permissions::from_mode(0o600)).unwrap();
        let m = file.metadata().unwrap();
        assert_eq!((m.nlink(), m.len(), m.mode() & 0o777), (0, 6, 0o600));
        let mut found = [0; 6];
        file.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(&found, b"after!");
        fs::write(rig.mnt("a"), b"another").unwrap();
        file.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(&found, b"after!");
    });
}

#[test]
fn other_users_create_with_their_identity_and_by_the_directorys_rules() {
    both(|rig| {
        fs::create_dir(rig.mnt("setgid")).unwrap();
        chown(rig.mnt("setgid"), None, Some(4242)).unwrap();
        fs::set_permissions(rig.mnt("setgid"), Permissions::from_mode(0o2777)).unwrap();
        fs::create_dir(rig.mnt("acl")).unwrap();
        fs::set_permissions(rig.mnt("acl"), Permissions::from_mode(0o777)).unwrap();
        run("setfacl", &["-d", "-m", "u:777:rw,g::r,o::-", rig.mnt("acl").to_str().unwrap()]);
        fs::create_dir(rig.mnt("private")).unwrap();
        fs::set_permissions(rig.mnt("private"), Permissions::from_mode(0o700)).unwrap();
        rig.write("private/secret", 100);
        let script = "umask 022; echo x > setgid/file && mkdir setgid/dir && mkfifo setgid/fifo && ln -s x setgid/link && echo x > acl/file";
        let output = as_nobody(&rig.mountpoint(), script);
        assert!(output.status.success(), "{}", said(&output));
        for name in ["file", "dir", "fifo", "link"] {
            let m = fs::symlink_metadata(rig.low(format!("setgid/{name}"))).unwrap();
            assert_eq!((m.uid(), m.gid()), (NOBODY, 4242), "{name}");
        }
        assert_eq!(fs::metadata(rig.low("setgid/file")).unwrap().mode() & 0o7777, 0o644);
        assert_eq!(fs::metadata(rig.low("setgid/dir")).unwrap().mode() & 0o7777, 0o2755);
        // With a default ACL the umask does not count.
        let acl = run("getfacl", &["-cn", "--absolute-names", rig.low("acl/file").to_str().unwrap()]);
        assert!(acl.contains("user:777:rw-") && acl.contains("other::---"), "{acl}");
        assert_eq!(run("getfacl", &["-cn", "--absolute-names", rig.mnt("acl/file").to_str().unwrap()]), acl);
        for script in [
            "cat private/secret",
            "ls private",
            "echo x > private/new",
            "rm setgid/../private/secret",
            "echo x > new",
            "chown 0 setgid/file",
            "chmod 777 private",
        ] {
            let output = as_nobody(&rig.mountpoint(), script);
            let text = said(&output);
            assert!(
                !output.status.success() && (text.contains("denied") || text.contains("not permitted")),
                "{script}: {text}"
            );
        }
        // A write by another user takes the setuid bit away.
        rig.write("suid", 100);
        fs::set_permissions(rig.mnt("suid"), Permissions::from_mode(0o4777)).unwrap();
        assert!(as_nobody(&rig.mountpoint(), "echo x >> suid").status.success());
        assert_eq!(fs::metadata(rig.mnt("suid")).unwrap().mode() & 0o7777, 0o777);
        assert_eq!(fs::metadata(rig.low("suid")).unwrap().mode() & 0o7777, 0o777);
    });
}

#[test]
fn locks_hold_between_processes() {
    let Some(rig) = Rig::new() else { return };
    rig.write("flock", 10);
    rig.write("posix", 10);
    rig.write("ofd", 10);
    rig.write("stub", 30 * CHUNK);
    rig.migrate("stub");
    for (kind, name) in [("flock", "flock"), ("posix", "posix"), ("ofd", "ofd"), ("flock", "stub")] {
        let path = rig.mnt(name);
        let mut holder = Command::new("python3");
        let mut holder = holder.args(["-c", LOCKER, kind]).arg(&path);
        holder = holder.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut holder = holder.spawn().unwrap();
        let mut line = [0; 7];
        holder.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        assert_eq!(&line, b"locked\n", "{kind}");
        let attempt = || {
            said(
                &Command::new("python3")
                    .args(["-c", LOCKER, kind])
                    .arg(&path)
                    .stdin(std::process::Stdio::null())
                    .output()
                    .unwrap(),
            )
        };
        assert_eq!(attempt(), "refused\n", "{kind} on {name}");
        drop(holder.stdin.take());
        holder.wait().unwrap();
        assert_eq!(attempt(), "locked\n", "{kind} on {name}");
    }
    assert_eq!(rig.state("stub"), "stub", "a lock fetches nothing");
}

/// Takes a lock of a kind on a file without waiting, says how that went, holds it until its input ends.
const LOCKER: &str = r#"
import fcntl, os, struct, sys
fd = os.open(sys.argv[2], os.O_RDONLY if sys.argv[1] == "flock" else os.O_RDWR)
try:
    if sys.argv[1] == "flock":
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    elif sys.argv[1] == "posix":
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 2)
    else:
        fcntl.fcntl(fd, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 2, 5, 0))
    print("locked", flush=True)
except OSError:
    print("refused", flush=True)
sys.stdin.read()
"#;

#[test]
fn statfs_is_that_of_the_share() {
    both(|rig| {
        let (above, below) =
            (rustix::fs::statvfs(rig.mountpoint()).unwrap(), rustix::fs::statvfs(rig.fs.path()).unwrap());
        assert_eq!(
            (above.f_blocks * above.f_frsize, above.f_files, above.f_namemax),
            (below.f_blocks * below.f_frsize, below.f_files, 255)
        );
        assert!(above.f_bavail.abs_diff(below.f_bavail) < 100);
    });
}

#[test]
fn listings_side_by_side_each_see_every_name_once() {
    let Some(rig) = Rig::new() else { return };
    fs::create_dir(rig.low("dir")).unwrap();
    let all: BTreeSet<String> = (0..4000).map(|n| format!("name-{n:05}")).collect();
    all.iter().for_each(|name| drop(fs::File::create(rig.low("dir").join(name)).unwrap()));
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    // In steps of different length, so that the requests cross; the third one begins in the midst.
    let mut listings = [fs::read_dir(rig.mnt("dir")).unwrap(), fs::read_dir(rig.mnt("dir")).unwrap()];
    let mut seen = [Vec::new(), Vec::new()];
    while seen.iter().any(|seen| seen.len() < all.len()) {
        for (n, step) in [(0, 1501), (1, 137)] {
            seen[n].extend(listings[n].by_ref().take(step).map(name));
        }
        assert_eq!(fs::read_dir(rig.mnt("dir")).unwrap().take(300).filter(Result::is_ok).count(), 300);
    }
    for seen in seen {
        assert_eq!(seen.len(), all.len());
        assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), all);
    }
    // What `rm -r` does: names go while the listing goes on.
    let mut removed = 0;
    for entry in fs::read_dir(rig.mnt("dir")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
        removed += 1;
    }
    assert_eq!(removed, all.len());
    fs::remove_dir(rig.mnt("dir")).unwrap();
}

#[test]
fn a_rewound_listing_shows_what_is_there_now() {
    let Some(rig) = Rig::new() else { return };
    fs::create_dir(rig.mnt("dir")).unwrap();
    fs::write(rig.mnt("dir/first"), b"1").unwrap();
    let dir = fs::File::open(rig.mnt("dir")).unwrap();
    let mut dir = rustix::fs::Dir::new(dir).unwrap();
    let names = |dir: &mut rustix::fs::Dir| -> BTreeSet<String> {
        dir.map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned())
            .filter(|name| !name.starts_with('.'))
            .collect()
    };
    assert_eq!(names(&mut dir), BTreeSet::from(["first".to_owned()]));
    fs::write(rig.mnt("dir/second"), b"2").unwrap();
    fs::remove_file(rig.mnt("dir/first")).unwrap();
    dir.rewind();
    assert_eq!(names(&mut dir), BTreeSet::from(["second".to_owned()]));
    // A directory that is gone: open still, and empty.
    fs::remove_file(rig.mnt("dir/second")).unwrap();
    fs::remove_dir(rig.mnt("dir")).unwrap();
    dir.rewind();
    assert!(dir.next().is_none_or(|entry| entry.is_err()), "names in a removed directory");
}

/// The daemon keeps what was just closed open for a moment, and does not look at it each time: a file that is gone it must not keep all the same.
#[test]
fn what_is_removed_below_is_not_kept_open_however_often_it_is_opened() {
    both(|rig| {
        rig.write("a", 100_000);
        let open = || File::open(rig.mnt("a"));
        drop(open().unwrap());
        drop(open().unwrap());
        wait_for("the file to be kept", || descriptors(rig, "a") > 0);
        fs::remove_file(rig.low("a")).unwrap();
        // The kernel believes in the name for 60 s.
        let since = Instant::now();
        loop {
            drop(open());
            std::thread::sleep(Duration::from_millis(100));
            if descriptors(rig, "a") == 0 {
                break;
            }
            assert!(since.elapsed() < Duration::from_secs(30), "it is kept still");
        }
    });
}
