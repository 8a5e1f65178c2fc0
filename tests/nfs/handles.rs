//! Kernel file handles of the mount: what an NFS server keeps of a file. They outlive caches, remounts and moves of content, and
//! never lead to another file.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use tierfs::lower::Share;
use tierfs::ports::Lower;

use crate::rig::*;

/// `handles.py` at work.
struct Handles {
    python: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Handles {
    fn on(rig: &Rig) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/nfs/handles.py");
        let mut python = Command::new("python3")
            .arg(script)
            .arg(rig.mountpoint())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        let (ask, answers) = (python.stdin.take().unwrap(), BufReader::new(python.stdout.take().unwrap()));
        Self { python, ask, answers }
    }

    fn tell(&mut self, verb: &str, argument: &str) -> String {
        writeln!(self.ask, "{verb} {argument}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn take(&mut self, rig: &Rig, name: &str) -> String {
        let handle = self.tell("take", rig.mnt(name).to_str().unwrap());
        assert!(!handle.starts_with("errno"), "{name}: {handle}");
        handle
    }

    /// "INODE SIZE NLINK TYPE CONTENT", or "errno N".
    fn open(&mut self, handle: &str) -> String {
        self.tell("use", handle)
    }
}

impl Drop for Handles {
    fn drop(&mut self) {
        let _ = self.python.kill();
        let _ = self.python.wait();
    }
}

/// The kernel forgets inodes and names that nobody uses, and tells the daemon so.
fn drop_caches() {
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
}

/// Unmounts the filesystem below and mounts it anew, as a reboot does; tierfs is not mounted meanwhile.
pub fn reboot_below(rig: &Rig) {
    assert!(rig.daemon.is_none(), "unmount first");
    wait_for("the end of the filesystem below", || rig.fs.try_unmount());
    rig.fs.mount();
}

fn stale() -> String {
    format!("errno {}", libc::ESTALE)
}

fn each(case: impl Fn(Rig)) {
    for setup in [Setup::default(), Setup::xfs()] {
        let kind = setup.kind;
        let Some(rig) = setup.build() else { return };
        eprintln!("on {kind}");
        case(rig);
    }
}

#[test]
fn handles_outlive_caches_remounts_and_moves_of_content() {
    each(|mut rig| {
        fs::create_dir_all(rig.mnt("d/e/f")).unwrap();
        let big = rig.write("big", 20 * CHUNK + 5);
        let small = rig.write("d/e/f/small", 700);
        fs::hard_link(rig.mnt("d/e/f/small"), rig.mnt("second name")).unwrap();
        symlink("some/where", rig.mnt("d/link")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, rig.mnt("fifo"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .unwrap();
        let names = ["", "d", "d/e", "d/e/f", "d/e/f/small", "second name", "big", "d/link", "fifo"];
        let mut python = Handles::on(&rig);
        let handles: Vec<String> = names.iter().map(|name| python.take(&rig, name)).collect();
        let wanted: Vec<String> = handles.iter().map(|handle| python.open(handle)).collect();
        assert_eq!(handles[4], handles[5], "hard links are one inode");
        for (name, found) in names.iter().zip(&wanted) {
            let want = fs::symlink_metadata(rig.mnt(name)).unwrap();
            assert!(found.starts_with(&format!("{} {} {} ", want.ino(), want.size(), want.nlink())), "{name}: {found}");
        }
        let check = |python: &mut Handles, when: &str| {
            // Deepest first: nothing that leads there was looked up.
            for (n, name) in names.iter().enumerate().rev() {
                assert_eq!(python.open(&handles[n]), wanted[n], "{name:?} {when}");
            }
        };
        for round in 0..3 {
            drop_caches();
            check(&mut python, &format!("after dropped caches, round {round}"));
        }
        rig.migrate("big");
        rig.migrate("d/e/f/small");
        drop_caches();
        check(&mut python, "released");
        drop(python);
        rig.umount();
        rig.mount();
        let mut python = Handles::on(&rig);
        check(&mut python, "after a remount");
        rig.migrate("d/e/f/small");
        rig.on(&["recall"], &["big", "d/e/f/small"]);
        rig.crash();
        rig.mount();
        check(&mut python, "after a crash and a mount");
        // The names still lead to the same inodes, and the kernel's two ways to them agree.
        assert_eq!(python.take(&rig, "d/e/f/small"), handles[4]);
        rig.same("big", &big);
        rig.same("second name", &small);
        rig.migrate("big");
        // A reboot mounts the filesystem below anew as well, by another device.
        drop(python);
        rig.umount();
        reboot_below(&rig);
        rig.mount();
        let mut python = Handles::on(&rig);
        check(&mut python, "after a reboot");
        for (name, handle) in names.iter().zip(&handles) {
            // Node id and generation are what a handle consists of.
            assert_eq!(python.take(&rig, name), *handle, "{name:?} after a reboot");
        }
        drop(python);
        rig.crash();
        reboot_below(&rig);
        rig.mount();
        check(&mut Handles::on(&rig), "after a crash and a reboot");
        rig.same("big", &big);
    });
}

/// XFS puts directories into its parts in turn, and numbers inodes by where they are.
#[test]
fn inode_numbers_of_more_than_32_bits() {
    let Some(mut rig) = (Setup { size: 8 << 40, ..Setup::xfs() }).build() else { return };
    let names: Vec<String> = (0..8).map(|n| format!("d{n}/file")).collect();
    for (n, name) in names.iter().enumerate() {
        fs::create_dir(rig.mnt(format!("d{n}"))).unwrap();
        rig.write(name, 1000 + n);
    }
    let large = names.iter().filter(|name| fs::metadata(rig.mnt(name)).unwrap().ino() > u64::from(u32::MAX)).count();
    assert!(large > 0, "no large number: the test shows nothing");
    let mut python = Handles::on(&rig);
    let handles: Vec<String> = names.iter().map(|name| python.take(&rig, name)).collect();
    let wanted: Vec<String> = handles.iter().map(|handle| python.open(handle)).collect();
    drop(python);
    rig.umount();
    rig.mount();
    let mut python = Handles::on(&rig);
    for (n, name) in names.iter().enumerate() {
        assert_eq!(python.open(&handles[n]), wanted[n], "{name}");
        rig.same(name, &noise(name, 1000 + n));
    }
}

#[test]
fn handles_of_removed_files_are_stale_even_when_the_number_is_used_again() {
    each(|mut rig| {
        let mut python = Handles::on(&rig);
        for remount in [false, true] {
            let name = |n: usize| format!("victim {remount} {n}");
            let names: Vec<String> = (0..8).map(name).collect();
            let mut old = Vec::new();
            for name in &names {
                let content = rig.write(name, 5000);
                old.push((python.take(&rig, name), fs::metadata(rig.mnt(name)).unwrap().ino()));
                assert_eq!(content.len(), 5000);
            }
            for name in &names {
                fs::remove_file(rig.mnt(name)).unwrap();
            }
            for (handle, _) in &old {
                // Closing does not wait for the daemon, which may have the last one open still.
                wait_for("the inode's end", || python.open(handle) == stale());
            }
            // Until one of the numbers is somebody else's.
            let mut new = Vec::new();
            for n in 0..400 {
                let name = format!("heir {remount} {n}");
                rig.write(&name, 9000);
                let ino = fs::metadata(rig.mnt(&name)).unwrap().ino();
                new.push((name, ino));
                if old.iter().any(|(_, old)| *old == ino) && n >= 8 {
                    break;
                }
            }
            let reused = old.iter().filter(|(_, ino)| new.iter().any(|(_, new)| new == ino)).count();
            assert!(reused > 0, "no inode number was used again: the test shows nothing");
            if remount {
                rig.umount();
                rig.mount();
            } else {
                drop_caches();
            }
            for (handle, ino) in &old {
                assert_eq!(python.open(handle), stale(), "the number {ino} is another's now");
            }
            for (name, _) in &new {
                // The failed attempts have not hurt those who have the numbers now.
                rig.same(name, &noise(name, 9000));
            }
        }
    });
}

#[test]
fn an_unlinked_file_is_found_while_it_is_open() {
    each(|rig| {
        let content = rig.write("open", 3 * CHUNK);
        let mut python = Handles::on(&rig);
        let handle = python.take(&rig, "open");
        let below = fs::File::open(rig.low("open")).unwrap();
        let file = fs::File::open(rig.mnt("open")).unwrap();
        fs::remove_file(rig.mnt("open")).unwrap();
        drop_caches();
        let found = python.open(&handle);
        let ino = file.metadata().unwrap().ino();
        assert!(found.starts_with(&format!("{ino} {} 0 ", content.len())), "{found}");
        drop(file);
        // Opened and closed anew while it lives, it is not kept for the next one.
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert_eq!(python.open(&handle), found);
        drop(below);
        wait_for("the inode's end", || python.open(&handle) == stale());
    });
}

/// Below a share that is a part of its filesystem, numbers of other directories must not open them.
#[test]
fn a_forged_handle_opens_no_directory_beside_the_share() {
    each(|rig| {
        fs::create_dir(rig.low("inside")).unwrap();
        let beside = rig.share().parent().unwrap().join("beside");
        fs::create_dir_all(beside.join("below")).unwrap();
        fs::write(beside.join("secret"), "secret").unwrap();
        let mut python = Handles::on(&rig);
        let whole = Share::open(rig.share().parent().unwrap()).unwrap();
        let forge = |path: &str| {
            let mut at = whole.root();
            for name in path.split('/').filter(|name| !name.is_empty()) {
                at = whole.lookup(&at, name.as_ref()).unwrap().0;
            }
            // As fuse_encode_fh makes it: two halves of the node id, and the generation's low half.
            let words = [(at.id.ino >> 32) as u32, at.id.ino as u32, at.id.birth as u32];
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            format!("81{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
        };
        assert_eq!(python.take(&rig, "inside"), forge("share/inside"), "the forgery is a good one");
        assert!(!python.open(&forge("share/inside")).starts_with("errno"));
        for path in ["", "beside", "beside/below", "lost+found"] {
            if path == "lost+found" && !rig.share().parent().unwrap().join(path).exists() {
                continue;
            }
            assert_eq!(python.open(&forge(path)), stale(), "{path:?}");
        }
        // The root has a node id of its own; its number is nobody's.
        let number = forge("share");
        assert!(python.open(&number).starts_with("errno"), "{}", python.open(&number));
    });
}

/// Nothing but the handle leads to the file, and yet what its directory says counts.
#[test]
fn what_a_directory_says_holds_for_handles_after_a_start_of_the_machine() {
    each(|mut rig| {
        fs::create_dir_all(rig.mnt("d/e")).unwrap();
        rig.write("d/e/f", 20 * CHUNK);
        rig.on(&["set", "--recall", "pass-through"], &["d"]);
        rig.migrate("d/e/f");
        rig.json(&["index", "scan", rig.mountpoint().to_str().unwrap()], 0);
        let mut python = Handles::on(&rig);
        let handle = python.take(&rig, "d/e/f");
        let wanted = python.open(&handle);
        drop(python);
        assert_eq!(rig.state("d/e/f"), "stub");
        rig.umount();
        rig.fs.unmount();
        rig.fs.mount();
        rig.mount();
        let mut python = Handles::on(&rig);
        let gets = rig.gets();
        assert_eq!(python.open(&handle), wanted);
        drop(python);
        assert!(rig.gets() > gets, "it was fetched");
        assert_eq!(rig.state("d/e/f"), "stub", "nothing is kept");
    });
}
