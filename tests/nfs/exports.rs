//! What NFS clients do all day, over NFSv3 and NFSv4, while files move under them.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::common::run;
use crate::ganesha::{Client, Export, USER};
use crate::handles::reboot_below;
use crate::rig::*;

const VERSIONS: [u32; 2] = [3, 4];

fn export() -> Option<Export> {
    Export::of(Rig::new())
}

#[test]
fn files_and_names() {
    let Some(export) = export() else { return };
    let rig = &export.rig;
    let big = rig.write("big", 20 * CHUNK + 7);
    let small = rig.write("small", 3000);
    for version in VERSIONS {
        let mut client = export.client(version);
        assert_eq!(client.lists(""), ["big", "small"], "NFSv{version}");
        for (slot, (name, content)) in [("big", &big), ("small", &small)].into_iter().enumerate() {
            client.does(&format!("open {slot} 0 /{name}"));
            assert_same(&client.reads(slot as u32, 0, content.len() + 1).unwrap(), content, name);
            assert_eq!(client.field(&format!("fstat {slot}"), "size"), content.len().to_string());
        }
        drop(client);
        // Looking at stubs recalls nothing: Ganesha opens what it is asked about, large or small.
        export.migrate("big");
        export.migrate("small");
        let gets = rig.gets();
        for (name, content) in [("big", &big), ("small", &small)] {
            let mut client = export.client(version);
            assert_eq!(client.lists(""), ["big", "small"]);
            assert_eq!(client.field(&format!("stat /{name}"), "size"), content.len().to_string());
            client.does(&format!("open 0 0 /{name}"));
            assert_eq!(client.field("fstat 0", "size"), content.len().to_string());
        }
        assert_eq!(rig.gets(), gets);
        assert_eq!((rig.state("big").as_str(), rig.state("small").as_str()), ("stub", "stub"));
        // Reading does: the recall is fast, and the client sees nothing of it.
        for (slot, (name, content)) in [("big", &big), ("small", &small)].into_iter().enumerate() {
            let mut client = export.client(version);
            client.does(&format!("open {slot} 0 /{name}"));
            let size = client.field(&format!("stat /{name}"), "size");
            assert_eq!(size, content.len().to_string());
            assert_same(&client.reads_patiently(slot as u32, 0, content.len() + 1), content, name);
        }
        let mut client = export.client(version);
        let content = noise(&format!("new {version}"), 30_000);
        client.does("mkdir /dir");
        client.puts("dir/new", &content);
        rig.same("dir/new", &content);
        assert_eq!(fs::metadata(rig.mnt("dir/new")).unwrap().uid(), USER);
        // A name written over a stub: fetched for nothing, replaced.
        client.does("link /dir/new /dir/second");
        assert_eq!(client.field("stat /dir/second", "nlink"), "2");
        assert_eq!(client.field("stat /dir/second", "ino"), client.field("stat /dir/new", "ino"));
        client.does("rename /dir/new /dir/renamed");
        assert_eq!(client.lists("dir"), ["renamed", "second"]);
        client.does("unlink /dir/renamed");
        assert_eq!(client.field("stat /dir/second", "nlink"), "1");
        client.refuses("stat /dir/renamed", libc::ENOENT);
        rig.same("dir/second", &content);
        drop(client);
        // Part of a stub is written, of which nothing is fetched: the rest is still there afterwards.
        export.migrate("dir/second");
        let gets = rig.gets();
        let mut client = export.client(version);
        client.does("open 0 1 /dir/second");
        client.does("pwrite 0 5000 HELLO");
        assert_eq!((rig.gets(), rig.state("dir/second").as_str()), (gets, "patched"), "NFSv{version}");
        let mut changed = content.clone();
        changed[5000..5005].copy_from_slice(b"HELLO");
        drop(client);
        rig.same("dir/second", &changed);
        // A stub is removed.
        export.migrate("dir/second");
        let mut client = export.client(version);
        client.does("unlink /dir/second");
        assert_eq!(client.lists("dir"), [""; 0]);
        drop(client);
        fs::remove_dir(rig.mnt("dir")).unwrap();
    }
    rig.settled(&["big", "small"]);
}

#[test]
fn permissions_hold_for_clients() {
    let Some(export) = export() else { return };
    let rig = &export.rig;
    let secret = rig.write("secret", 2 * CHUNK);
    std::os::unix::fs::chown(rig.mnt("secret"), Some(USER), Some(USER)).unwrap();
    run("chmod", &["600", rig.mnt("secret").to_str().unwrap()]);
    export.migrate("secret");
    for version in VERSIONS {
        // Another user, and root, who is squashed.
        for user in [USER + 1, 0] {
            let mut client = export.client_as(version, user);
            let read = match client.tries("open 0 0 /secret") {
                Ok(_) => client.reads(0, 0, 100).map(|_| ()),
                Err(why) => Err(why),
            };
            assert_eq!(read.expect_err("must not read").0, libc::EACCES, "NFSv{version}, user {user}");
            assert_eq!(rig.state("secret"), "stub", "and recalls nothing");
            let mut client = export.client_as(version, user);
            client.refuses("open 1 1 /secret", libc::EACCES);
            assert_eq!(rig.state("secret"), "stub", "nor by asking to write");
        }
        let mut client = export.client_as(version, USER + 1);
        client.refuses("unlink /secret", libc::EACCES);
        client.refuses("rename /secret /stolen", libc::EACCES);
    }
    // A client that does not ask first: NFSv3 requests by a handle, as somebody else.
    let mut client = export.client(3);
    client.does("open 0 1 /secret");
    for user in [USER + 1, 0] {
        client.does(&format!("become {user}"));
        assert_eq!(client.reads(0, 0, 100).expect_err("must not read").0, libc::EACCES, "user {user}");
        client.refuses("pwrite 0 0 forged", libc::EACCES);
        client.refuses("truncate 0 /secret", libc::EACCES);
        client.refuses("chmod 777 /secret", libc::EPERM);
    }
    assert_eq!(rig.state("secret"), "stub", "and recalls nothing");
    client.does(&format!("become {USER}"));
    assert_same(&client.reads_patiently(0, 0, secret.len()), &secret, "the owner");
    rig.same("secret", &secret);
}

/// A record that cannot be read makes the content unreadable, and nothing else.
#[test]
fn a_damaged_file_can_be_seen_and_removed() {
    let Some(export) = export() else { return };
    let rig = &export.rig;
    rig.write("damaged", 5000);
    rig.write("fine", 5000);
    set_xattr(&rig.low("damaged"), RECORD, b"nonsense").unwrap();
    for version in VERSIONS {
        let mut client = export.client(version);
        assert_eq!(client.lists(""), ["damaged", "fine"]);
        assert_eq!(client.field("stat /damaged", "size"), "5000");
        assert_eq!(client.field("stat /fine", "size"), "5000");
        client.does("open 0 0 /damaged");
        assert_eq!(client.reads(0, 0, 100).expect_err("no content").0, libc::EIO, "NFSv{version}");
        client.does("open 1 0 /fine");
        assert_eq!(client.reads(1, 0, 5000).unwrap(), noise("fine", 5000));
    }
    export.client(4).does("unlink /damaged");
    assert_eq!(export.client(3).lists(""), ["fine"]);
}

#[test]
fn locks_of_nfsv4_and_of_local_programs_see_each_other() {
    let Some(export) = export() else { return };
    let rig = &export.rig;
    rig.write("file", 4096);
    std::os::unix::fs::chown(rig.mnt("file"), Some(USER), Some(USER)).unwrap();
    let local = |start: u32, len: u32| {
        let script = format!(
            "import fcntl,sys\nf=open(sys.argv[1],'r+')\ntry:\n fcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB,{len},{start})\n \
             print('free')\nexcept OSError as e: print('taken')"
        );
        run("python3", &["-c", &script, rig.mnt("file").to_str().unwrap()]).trim().to_owned()
    };
    // libnfs 4.0 counts its requests wrong after a refused lock: a client for each attempt.
    let contend = |start: u32| {
        let mut client = export.client(4);
        client.does("open 0 1 /file");
        client.tries(&format!("lock 0 1 {start} 100"))
    };
    let mut holder = export.client(4);
    holder.does("open 0 1 /file");
    holder.does("lock 0 1 0 100");
    assert!(contend(50).is_err(), "overlaps");
    assert!(contend(1000).is_ok(), "beside it");
    assert_eq!((local(50, 100).as_str(), local(300, 10).as_str()), ("taken", "free"));
    holder.does("lock 0 0 0 100");
    assert!(contend(50).is_ok(), "given back");
}

/// The client goes on with the handle it has while the server's mount is made anew, on another device number.
#[test]
fn handles_of_clients_outlive_the_mount() {
    for setup in [Setup::default(), Setup::xfs()] {
        let Some(mut export) = Export::of(setup.build()) else { return };
        fs::create_dir_all(export.rig.mnt("a/b")).unwrap();
        let content = export.rig.write("a/b/file", 20 * CHUNK);
        let mut three = export.client(3);
        three.does("open 0 0 /a/b/file");
        let mut four = export.client(4);
        four.does("open 0 0 /a/b/file");
        let ino = three.field("fstat 0", "ino");
        // One process keeps what it took at first, and takes it never again.
        let mut keeper = export.client(4);
        assert!(keeper.does("handle /tiered/a/b/file").parse::<u32>().unwrap() > 0);
        let check = |export: &Export, three: &mut Client, keeper: &mut Client, four: &mut Client, when: &str| {
            assert_eq!(three.field("fstat 0", "ino"), ino, "{when}");
            let by_handle = keeper.patiently(|client| client.reads_by_handle(5, content.len()));
            assert_same(&by_handle, &content[5..], &format!("NFSv4, {when}"));
            assert_same(&three.reads_patiently(0, 5, content.len() - 5), &content[5..], when);
            assert_eq!(four.field("fstat 0", "size"), content.len().to_string(), "{when}");
            export.rig.same("a/b/file", &content);
        };
        check(&export, &mut three, &mut keeper, &mut four, "at first");
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        check(&export, &mut three, &mut keeper, &mut four, "after dropped caches");
        // An open of NFSv4 holds the file: released, recalled and released once more without it.
        drop(four);
        let mut four = export.client(4);
        export.migrate("a/b/file");
        assert_eq!(three.field("fstat 0", "ino"), ino, "released");
        export.rig.on(&["recall"], &["a/b/file"]);
        export.migrate("a/b/file");
        four.does("open 0 0 /a/b/file");
        check(&export, &mut three, &mut keeper, &mut four, "released and recalled");
        let device = fs::metadata(export.rig.mountpoint()).unwrap().dev();
        export.down();
        // Somebody else takes the mount's device number.
        let mut others = Vec::new();
        while others.len() < 64 && others.last().is_none_or(|other| fs::metadata(other).unwrap().dev() != device) {
            let other = export.rig.scratch(&format!("other-{}", others.len()));
            fs::create_dir(&other).unwrap();
            run("mount", &["-t", "tmpfs", "none", other.to_str().unwrap()]);
            others.push(other);
        }
        export.up();
        four.does("again");
        keeper.does("again");
        assert_ne!(
            fs::metadata(export.rig.mountpoint()).unwrap().dev(),
            device,
            "the test wants another device number"
        );
        check(&export, &mut three, &mut keeper, &mut four, "after a new mount");
        for other in &others {
            run("umount", &[other.to_str().unwrap()]);
        }
        // As a reboot does it: the filesystem below is mounted anew, too. The file is a stub, then whole.
        drop(four);
        export.migrate("a/b/file");
        for when in ["a stub over a reboot", "whole over a reboot"] {
            export.down();
            reboot_below(&export.rig);
            export.up();
            let mut four = export.client(4);
            four.does("open 0 0 /a/b/file");
            keeper.does("again");
            check(&export, &mut three, &mut keeper, &mut four, when);
        }
        // Removed, and its number used again: never another file's content.
        export.rig.write("a/b/other", 100);
        export.rig.on(&["recall"], &["a/b/file"]);
        fs::remove_file(export.rig.mnt("a/b/file")).unwrap();
        for n in 0..50 {
            export.rig.write(&format!("heir {n}"), 100);
        }
        // Ganesha has it open for a moment, and reads what was unlinked.
        wait_for("the file's end", || match three.reads(0, 0, 10) {
            Ok(found) => {
                assert_same(&found, &content[..10], "another file's content");
                false
            }
            Err((errno, _)) => errno == libc::ESTALE,
        });
    }
}

#[test]
fn a_dead_daemon_is_an_error_and_not_a_hang() {
    let Some(mut export) = export() else { return };
    export.rig.write("file", 3000);
    let mut three = export.client(3);
    three.does("open 0 0 /file");
    assert_eq!(three.reads(0, 0, 3000).unwrap().len(), 3000);
    export.rig.kill();
    let error = three.tries("stat /file").expect_err("nobody is there").0;
    assert!([libc::EIO, libc::EREMOTEIO].contains(&error), "{error}");
    // The way back: Ganesha's end, unmount, mount, start.
    // Ganesha is not started on what is dead.
    export.end_ganesha();
    let early = export.sh("tierfs-ganesha start");
    assert!(!early.status.success() && said(&early).contains("is dead"), "{}", said(&early));
    export.remount();
    assert_same(&three.reads(0, 0, 3000).unwrap(), &noise("file", 3000), "after the restart");
    // What is started is not started twice.
    let again = export.sh("tierfs-ganesha start");
    assert!(!again.status.success() && said(&again).contains("runs already"), "{}", said(&again));
}
