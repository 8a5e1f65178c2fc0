//! What each call costs: the requests the kernel sends for it. Each is a round trip between the caller and the daemon, so this table is
//! the speed of metadata, independent of the machine. It may shrink; what makes it grow has to be worth it.
//!
//! RELEASE and FORGET are sent without anybody waiting; forgetting is left out of the table. What the kernel adds by itself, and
//! no answer of ours can spare:
//!
//! - GETATTR of a directory whose entries changed, when it is next walked; of a file or directory that was read (its atime) or
//!   written, when it is next looked at.
//! - GETXATTR of `security.capability` at the first write after an inode's attributes were fetched, and at truncating and chown.
//! - LOOKUP of a name that is to be created, unless the kernel knows that it is not there.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FlockOperation, SeekFrom, Timespec, Timestamps, fallocate, flock, seek,
};
use tierfs::control::client::Connection;
use tierfs::control::protocol::{Reply, Request};
use tierfs::types::SOCKET_XATTR;

use crate::rig::*;

/// Asks the daemon over its socket, which is no request of the kernel's.
struct Counter(PathBuf);

impl Counter {
    fn new(rig: &Rig) -> Self {
        let mut socket = [0; 4096];
        let len = rustix::fs::getxattr(rig.mountpoint(), SOCKET_XATTR, &mut socket).unwrap();
        Self(PathBuf::from(OsStr::from_bytes(&socket[..len])))
    }

    fn counts(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        let mut take = |reply| {
            if let Reply::Mount(info) = reply {
                counts = info.requests;
            }
            Ok(())
        };
        let mut connection = Connection::open(&self.0, Some(Duration::from_secs(10))).unwrap();
        connection.ask(&Request::Mount, &mut take).unwrap();
        counts.remove("forget");
        counts
    }

    /// The requests sent while `act` runs and soon after, as text: `create lookup release`, `read×3`.
    fn of(&self, wanted: &str, act: impl FnOnce()) -> String {
        let before = self.counts();
        act();
        let deadline = Instant::now() + Duration::from_secs(3);
        loop {
            let after = self.counts();
            let sent = after.iter().map(|(name, count)| (name, count - before.get(name).unwrap_or(&0)));
            let told: Vec<_> = sent
                .filter(|(_, count)| *count > 0)
                .map(|(name, count)| if count == 1 { name.clone() } else { format!("{name}×{count}") })
                .collect();
            let told = told.join(" ");
            if told == wanted || Instant::now() > deadline {
                return told;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A call, and what it may cost.
type Line<'a> = (&'static str, &'static str, Box<dyn FnOnce() + 'a>);

fn check(rig: &Rig, lines: Vec<Line<'_>>) {
    let counter = Counter::new(rig);
    let mut wrong = String::new();
    for (call, wanted, act) in lines {
        let told = counter.of(wanted, act);
        if told != wanted {
            wrong.push_str(&format!("{call}: wanted \"{wanted}\", got \"{told}\"\n"));
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

fn line<'a>(call: &'static str, wanted: &'static str, act: impl FnOnce() + 'a) -> Line<'a> {
    (call, wanted, Box::new(act))
}

fn look(path: impl AsRef<Path>) {
    fs::metadata(path).unwrap();
}

#[test]
fn files_that_are_known() {
    let Some(rig) = Rig::new() else { return };
    rig.write("file", 64 << 10);
    let at = |name: &str| -> PathBuf { rig.mnt(name) };
    let file = at("file");
    let open = || OpenOptions::new().read(true).write(true).open(rig.mnt("file")).unwrap();
    fs::metadata(&file).unwrap();
    let held = open();
    check(
        &rig,
        vec![
            line("stat", "", || look(&file)),
            line("access", "", || rustix::fs::access(&file, rustix::fs::Access::READ_OK).unwrap()),
            line("fstat", "", || {
                held.metadata().unwrap();
            }),
            line("open, close", "open release", || drop(File::open(&file).unwrap())),
            line("open, read, close", "open release", || drop(fs::read(&file).unwrap())),
            line("open O_TRUNC, write, close", "getxattr×2 open release", || fs::write(&file, b"new").unwrap()),
            line("1000 writes", "", || {
                (0..1000).for_each(|n| held.write_all_at(&[7; 4096], n * 4096).unwrap());
            }),
            line("1000 reads", "", || {
                let mut block = [0; 4096];
                (0..1000).for_each(|n| held.read_exact_at(&mut block, n * 4096).unwrap());
            }),
            line("stat after reading and writing", "getattr", || look(&file)),
            line("fsync", "fsync", || held.sync_all().unwrap()),
            line("flock", "", || flock(&held, FlockOperation::LockExclusive).unwrap()),
            line("fallocate", "fallocate getxattr", || fallocate(&held, FallocateFlags::empty(), 0, 8 << 20).unwrap()),
            line("lseek SEEK_DATA", "lseek", || {
                seek(&held, SeekFrom::Data(0)).unwrap();
            }),
            line("chmod", "setattr", || fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap()),
            line("chown", "getxattr setattr", || std::os::unix::fs::chown(&file, Some(1), Some(1)).unwrap()),
            line("utimensat", "setattr", || {
                let time = Timespec { tv_sec: 1_000_000_000, tv_nsec: 5 };
                let times = Timestamps { last_access: time, last_modification: time };
                rustix::fs::utimensat(CWD, &file, &times, AtFlags::empty()).unwrap();
            }),
            line("ftruncate", "getxattr setattr", || held.set_len(4096).unwrap()),
            line("setxattr", "setxattr", || {
                rustix::fs::setxattr(&file, "user.a", b"1", rustix::fs::XattrFlags::empty()).unwrap()
            }),
            line("getxattr", "getxattr", || {
                rustix::fs::getxattr(&file, "user.a", &mut [0u8; 16]).unwrap();
            }),
            line("listxattr", "listxattr", || {
                rustix::fs::listxattr(&file, &mut [0u8; 256]).unwrap();
            }),
            line("statfs", "statfs", || {
                rustix::fs::statfs(&file).unwrap();
            }),
        ],
    );
    check(&rig, vec![line("close", "release", || drop(held))]);
}

#[test]
fn names() {
    let Some(rig) = Rig::new() else { return };
    let at = |name: &str| -> PathBuf { rig.mnt(name) };
    fs::create_dir(at("dir")).unwrap();
    fs::metadata(at("dir")).unwrap();
    fs::write(rig.low("dir/below"), b"x").unwrap();
    check(
        &rig,
        vec![
            line("stat of a new name", "lookup", || look(at("dir/below"))),
            line("stat of nothing", "lookup", || drop(fs::metadata(at("dir/none")).unwrap_err())),
            line("stat of nothing, again", "", || drop(fs::metadata(at("dir/none")).unwrap_err())),
            line("create, write, close", "create getxattr lookup release", || fs::write(at("dir/a"), b"a").unwrap()),
            line("create where nothing was known to be", "create getattr getxattr release", || {
                fs::write(at("dir/none"), b"b").unwrap();
            }),
            line("create a third", "create getattr getxattr lookup release", || fs::write(at("dir/c"), b"c").unwrap()),
            line("stat of what was created and written", "getattr×2", || look(at("dir/c"))),
            line("read what was created", "getattr open release", || drop(fs::read(at("dir/a")).unwrap())),
            line("rename", "lookup rename", || fs::rename(at("dir/a"), at("dir/b")).unwrap()),
            line("rename over", "getattr lookup rename", || fs::rename(at("dir/c"), at("dir/b")).unwrap()),
            line("unlink", "getattr unlink", || fs::remove_file(at("dir/b")).unwrap()),
            line("link", "getattr link lookup", || fs::hard_link(at("dir/below"), at("dir/second")).unwrap()),
            line("symlink", "getattr lookup symlink", || symlink("target", at("dir/sym")).unwrap()),
            line("readlink", "getattr readlink", || drop(fs::read_link(at("dir/sym")).unwrap())),
            line("readlink, again", "", || drop(fs::read_link(at("dir/sym")).unwrap())),
            line("mkdir", "lookup mkdir", || fs::create_dir(at("dir/sub")).unwrap()),
            line("rmdir", "getattr rmdir", || fs::remove_dir(at("dir/sub")).unwrap()),
            line("mknod of a fifo", "getattr lookup mknod", || {
                rustix::fs::mknodat(CWD, at("dir/fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
            }),
        ],
    );
}

#[test]
fn directories() {
    let Some(rig) = Rig::new() else { return };
    for (dir, count) in [("few", 20), ("many", 2000)] {
        fs::create_dir(rig.low(dir)).unwrap();
        (0..count).for_each(|n| fs::write(rig.low(dir).join(format!("name-{n:04}")), b"x").unwrap());
    }
    let list = |dir: &str| fs::read_dir(rig.mnt(dir)).unwrap().count();
    let list_and_stat =
        |dir: &str| fs::read_dir(rig.mnt(dir)).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum::<u64>();
    // Told once that directories need no opening, the kernel asks no more.
    fs::read_dir(rig.mountpoint()).unwrap().for_each(drop);
    look(rig.mnt("few"));
    look(rig.mnt("many"));
    check(
        &rig,
        vec![
            line("list 20", "readdir readdirplus", || assert_eq!(list("few"), 20)),
            line("list 20 and stat each, warm", "getattr", || assert_eq!(list_and_stat("few"), 20)),
            line("list 2000 and stat each", "readdirplus×12", || assert_eq!(list_and_stat("many"), 2000)),
            line("list 2000, warm", "getattr", || assert_eq!(list("many"), 2000)),
        ],
    );
}

#[test]
fn stubs() {
    let Some(rig) = Rig::new() else { return };
    rig.write("small", 2 * CHUNK);
    rig.write("large", 40 * CHUNK);
    rig.write("other", CHUNK);
    rig.migrate("small");
    rig.migrate("other");
    rig.migrate("large");
    // The kernel is told of freed blocks a little later, and then asks again.
    std::thread::sleep(Duration::from_millis(200));
    ["small", "large", "other"].iter().for_each(|name| look(rig.mnt(name)));
    check(
        &rig,
        vec![
            line("stat of a stub", "", || look(rig.mnt("small"))),
            line("rename of a stub", "lookup rename", || fs::rename(rig.mnt("small"), rig.mnt("s")).unwrap()),
            line("1 KiB of a large stub", "getattr open read release", || {
                let mut file =
                    OpenOptions::new().read(true).custom_flags(libc::O_NOATIME).open(rig.mnt("large")).unwrap();
                file.read_exact(&mut vec![0; 1 << 10]).unwrap();
            }),
            line("O_TRUNC of a stub", "getxattr×2 open release", || {
                OpenOptions::new().write(true).truncate(true).open(rig.mnt("other")).unwrap().write_all(b"x").unwrap();
            }),
        ],
    );
}

#[test]
fn info_tells_what_a_mount_is() {
    let Some(rig) = Rig::new() else { return };
    rig.write("file", CHUNK);
    let info = |args: &[&str], path: &Path| {
        let mut args: Vec<OsString> = args.iter().map(OsString::from).collect();
        args.push(path.into());
        rig.tierfs(&args)
    };
    let shown = info(&["info"], &rig.mountpoint());
    assert!(shown.status.success(), "{}", said(&shown));
    let shown = said(&shown);
    let daemon = format!("process {}", rig.daemon.unwrap());
    for part in [rig.share().to_str().unwrap(), rig.mountpoint().to_str().unwrap(), &daemon, "cold", "create 1"] {
        assert!(shown.contains(part), "{part:?} is not in {shown}");
    }
    let json = info(&["info", "--json"], &rig.mnt("file"));
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["requests"]["create"], 1, "{json}");
    code(&info(&["info"], Path::new("/")), 3);
    code(&info(&["info"], Path::new("/nowhere/at/all")), 3);
}
