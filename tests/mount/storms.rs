//! Who may have content brought back, how much at once, and before whom; what runs is listed, and can be ended.

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tierfs::gateway::faults::Effect;

use crate::rig::*;

const SMALL: usize = 3000;
/// More than is recalled by an open.
const LARGE: usize = 40 * CHUNK;

/// Children that are killed and waited for at the end.
struct Children(Vec<Child>);

impl Drop for Children {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Children {
    fn ended(&mut self) -> usize {
        self.0.iter_mut().filter_map(|child| child.try_wait().unwrap()).count()
    }
}

fn mounted(options: &str) -> Option<Rig> {
    let rig = Setup { mount: vec!["-o", options.to_owned().leak()], ..Setup::default() }.build()?;
    fs::set_permissions(rig.mountpoint(), Permissions::from_mode(0o777)).unwrap();
    rig.quiet();
    Some(rig)
}

/// Stubs that anybody may read and write.
fn stubs(rig: &Rig, names: &[String], len: usize) -> Vec<Vec<u8>> {
    let contents = names.iter().map(|name| {
        let content = rig.write(name, len);
        fs::set_permissions(rig.mnt(name), Permissions::from_mode(0o666)).unwrap();
        content
    });
    let contents = contents.collect();
    rig.on(&["migrate"], &names.iter().map(String::as_str).collect::<Vec<_>>());
    contents
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}{n:03}")).collect()
}

fn reader(rig: &Rig, program: &str, name: &str, uid: u32) -> Child {
    let mut command = Command::new(program);
    command.arg(rig.mnt(name)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.uid(uid).gid(uid).spawn().unwrap()
}

fn read_by(rig: &Rig, program: &str, name: &str, uid: u32) -> Output {
    let mut command = Command::new(program);
    command.arg(rig.mnt(name)).uid(uid).gid(uid).output().unwrap()
}

/// What `tierfs recalls` lists.
#[track_caller]
fn running(rig: &Rig) -> Vec<Value> {
    let mut lines = rig.json(&["recalls", rig.mountpoint().to_str().unwrap()], 0);
    let done = lines.pop().unwrap();
    assert_eq!(done["reply"], "done");
    assert_eq!(done["files"], lines.len());
    lines
}

fn named(rig: &Rig, recall: &Value, name: &str) -> bool {
    recall["path"].as_str() == rig.mnt(name).to_str()
}

#[track_caller]
fn refused(rig: &Rig, output: &Output, what: &str) {
    assert!(!output.status.success(), "{what}: brought back");
    // EREMOTE.
    assert!(said(output).contains("Object is remote"), "{what}: {}", said(output));
    assert!(output.stdout.is_empty(), "{what}: got bytes");
    let _ = rig;
}

#[test]
fn who_may_recall_nothing_is_told_that_it_is_remote() {
    let Some(rig) = mounted("no_recall=uid:65534") else { return };
    for (name, len) in [("small", SMALL), ("large", LARGE)] {
        let content = stubs(&rig, &[name.to_owned()], len).remove(0);
        let gets = rig.gets();
        refused(&rig, &read_by(&rig, "cat", name, NOBODY), name);
        // By the open, for backup programs store zeros after a read that fails.
        let open = as_nobody(&rig.mountpoint(), &format!("exec 3<{name} && echo opened"));
        assert!(!said(&open).contains("opened"), "{name}");
        assert_eq!(rig.state(name), "stub");
        // Nothing has to come for these.
        for change in ["echo more >>", "truncate -s 500"] {
            let output = as_nobody(&rig.mountpoint(), &format!("{change} {name}"));
            assert!(output.status.success(), "{change} {name}: {}", said(&output));
            refused(&rig, &read_by(&rig, "cat", name, NOBODY), change);
        }
        assert_eq!(rig.gets(), gets, "{name}: something was fetched");
        // What is here is everybody's.
        rig.same(name, &content[..500]);
        wait_for("the recall's end", || rig.state(name) == "resident");
        assert_eq!(read_by(&rig, "cat", name, NOBODY).stdout, content[..500]);
        rig.migrate(name);
        let emptied = as_nobody(&rig.mountpoint(), &format!(": >{name}"));
        assert!(emptied.status.success(), "emptying needs no content: {}", said(&emptied));
    }
}

#[test]
fn programs_and_control_groups_may_be_kept_from_recalling() {
    let Some(rig) = mounted("no-recall=prog:head+prog:other") else { return };
    stubs(&rig, &names("f", 2), SMALL);
    refused(&rig, &read_by(&rig, "head", "f000", 0), "head");
    assert!(read_by(&rig, "cat", "f001", 0).status.success());
    drop(rig);
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let Some(own) = own.lines().find_map(|line| line.strip_prefix("0::")) else { return };
    let Some(rig) = mounted(&format!("no_recall=cgroup:{own}")) else { return };
    stubs(&rig, &names("f", 1), SMALL);
    refused(&rig, &read_by(&rig, "cat", "f000", 0), own);
    // A command is no storm.
    rig.on(&["recall"], &["f000"]);
}

#[test]
fn a_mount_may_recall_nothing_by_itself() {
    let Some(rig) = mounted("no_recall=all") else { return };
    let content = stubs(&rig, &names("f", 1), SMALL).remove(0);
    assert_eq!(errno(fs::read(rig.mnt("f000"))), Some(libc::EREMOTE));
    rig.on(&["recall"], &["f000"]);
    rig.same("f000", &content);
}

#[test]
fn a_budget_bounds_what_one_user_has_on_its_way() {
    for (budget, at_once) in [("files=2", 2), ("bytes=6500", 2), ("bytes=100", 1)] {
        let Some(rig) = mounted(&format!("recall_budget=uid:65534:{budget}")) else { return };
        let names = names("f", 7);
        stubs(&rig, &names, SMALL);
        let (gets, hang) = (rig.gets(), rig.fault(Effect::Hang, "GET"));
        let mut storm = Children(names[..6].iter().map(|name| reader(&rig, "cat", name, NOBODY)).collect());
        wait_for("as many requests as there may be", || rig.gets() == gets + at_once);
        // Somebody else is not concerned, and comes after all those that could have been let in.
        let other = Children(vec![reader(&rig, "cat", &names[6], 0)]);
        wait_for("another one's request", || rig.gets() > gets + at_once);
        assert_eq!(rig.gets(), gets + at_once + 1, "{budget}");
        let recalls = running(&rig);
        assert_eq!(recalls.len() as u64, at_once + 1, "{recalls:?}");
        rig.faults.remove(hang);
        // Who waits for the budget can be killed, and takes nothing with him; who has some gives it back in the end.
        let mut killed = storm.0.pop().unwrap();
        killed.kill().unwrap();
        killed.wait().unwrap();
        for recall in recalls {
            rig.json(&["recalls", "--cancel", &recall["inode"].to_string()], 0);
        }
        wait_for("all to have had their turn", || storm.ended() == 5);
        drop(other);
        wait_for("the end of all", || running(&rig).is_empty() && rig.info()["transfers"] == 0);
        let brought = names[..6].iter().filter(|name| rig.state(name) == "dual").count() as u64;
        assert!((5 - at_once..=6 - at_once).contains(&brought), "{budget}: {brought}");
    }
}

/// A control group of its own in the unified hierarchy; removed when it is dropped.
struct Group(PathBuf);

impl Group {
    /// `None`, and a word, where none can be made.
    fn new(name: &str) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let root = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?.split(' ').nth(1)?.to_owned();
        let path = PathBuf::from(root).join(format!("tierfs-test-{}-{name}", std::process::id()));
        fs::create_dir(&path).inspect_err(|error| eprintln!("NOT TESTED: {}: {error}", path.display())).ok()?;
        Some(Self(path))
    }

    /// Its name in `/proc/PID/cgroup`.
    fn name(&self) -> String {
        format!("/{}", self.0.file_name().unwrap().display())
    }

    fn cat(&self, rig: &Rig, name: &str) -> Child {
        let script = format!("echo $$ >{}/cgroup.procs && exec cat {}", self.0.display(), rig.mnt(name).display());
        Command::new("sh").args(["-c", &script]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        wait_for("the group's last process to be gone", || fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn budgets_and_refusals_tell_control_groups_and_programs_apart() {
    let (Some(one), Some(other)) = (Group::new("one"), Group::new("other")) else { return };
    let rules = "recall_budget=cgroup:*:files=1+prog:head:files=1";
    let Some(rig) = mounted(&format!("{rules},no_recall=cgroup:{}", other.name())) else { return };
    let names = names("f", 6);
    stubs(&rig, &names, SMALL);
    let mut refused = other.cat(&rig, &names[5]);
    refused.wait().unwrap();
    assert!(said(&refused.wait_with_output().unwrap()).contains("Object is remote"));
    let (gets, hang) = (rig.gets(), rig.fault(Effect::Hang, "GET"));
    // Two in a group, of which one is let in; and two `head` in that of this test, of which one is, too.
    let mut all = Children(names[..2].iter().map(|name| one.cat(&rig, name)).collect());
    wait_for("one of the group", || running(&rig).len() == 1);
    let groups = |recalls: &[Value]| {
        let of = |recall: &Value| recall["requesters"][0]["cgroup"].as_str().unwrap().to_owned();
        recalls.iter().map(of).collect::<Vec<_>>()
    };
    assert_eq!(groups(&running(&rig)), [one.name()]);
    all.0.extend(names[2..4].iter().map(|name| reader(&rig, "head", name, 0)));
    wait_for("one of each", || running(&rig).len() == 2);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!((running(&rig).len(), rig.gets() - gets), (2, 2), "{:?}", running(&rig));
    rig.faults.remove(hang);
    for recall in running(&rig) {
        rig.json(&["recalls", "--cancel", &recall["inode"].to_string()], 0);
    }
    wait_for("all to have had their turn", || all.ended() == 4);
    drop(all);
}

/// What a policy brings back behind a read that was answered is on its way for who read, until it has come.
#[test]
fn a_budget_counts_what_comes_in_the_background() {
    let Some(rig) = mounted("recall_budget=uid:65534:files=1") else { return };
    let names = names("f", 3);
    let contents = stubs(&rig, &names, LARGE);
    set_xattr(&rig.mountpoint(), "user.tierfs.recall_policy", b"progressive").unwrap();
    // Some chunks come, and then no more.
    let stall = rig.fault(Effect::StallReply { after: 4 * CHUNK as u64 }, "GET");
    let beginning = |name: &str, content: &[u8], uid: u32| {
        let mut command = Command::new("head");
        let output = command.args(["-c", "1000"]).arg(rig.mnt(name)).uid(uid).gid(uid).output().unwrap();
        assert_same(&output.stdout, &content[..1000], "answered before the rest is there");
    };
    beginning(&names[0], &contents[0], NOBODY);
    let recall = running(&rig).remove(0);
    assert!(named(&rig, &recall, &names[0]), "{recall}");
    assert!(recall["bytes_done"].as_u64() >= Some(CHUNK as u64) && recall["rate"].as_u64() > Some(0), "{recall}");
    assert!(recall["eta"].as_u64().is_some(), "{recall}");
    let mut waiting = Children(vec![reader(&rig, "cat", &names[1], NOBODY)]);
    // Somebody else is not concerned, and comes after the one who waits could have been let in.
    beginning(&names[2], &contents[2], 0);
    std::thread::sleep(Duration::from_millis(300));
    let recalls = running(&rig);
    assert!(recalls.len() == 2 && !recalls.iter().any(|recall| named(&rig, recall, &names[1])), "{recalls:?}");
    assert_eq!(waiting.ended(), 0);
    rig.faults.remove(stall);
    rig.on(&["recalls", "--cancel"], &[&names[0]]);
    wait_for("his turn", || waiting.ended() == 1);
    wait_for("all of his", || rig.state(&names[1]) == "dual");
    rig.on(&["recalls", "--cancel"], &[&names[2]]);
}

#[test]
fn what_a_policy_brings_back_is_paid_for() {
    // Two files of 2.5 MiB make debts, which take most of a minute.
    let Some(rig) = mounted("recall_budget=uid:65534:bytes=3MiB/min") else { return };
    set_xattr(&rig.mountpoint(), "user.tierfs.recall_policy", b"full").unwrap();
    let names = names("f", 3);
    stubs(&rig, &names, LARGE);
    let script = "head -qc 1000 f000 f001 | wc -c; timeout 5 head -c 1000 f002 | wc -c";
    let output = as_nobody(&rig.mountpoint(), script);
    assert_eq!(said(&output), "2000\n0\n");
    assert_eq!(names.iter().map(|name| rig.state(name)).collect::<Vec<_>>(), ["dual", "dual", "stub"]);
}

/// Readers of more than there is memory for, of whom each reads on where he was: what is in memory is read to its end before it makes room for another's.
#[test]
fn readers_for_whom_nothing_is_kept_do_not_fetch_the_same_again_and_again() {
    const FILES: usize = 12;
    const LEN: usize = 3 << 20;
    let Some(rig) = mounted("recall_memory=4MiB,recall_scan=off") else { return };
    rig.on(&["set", "--chunk-size", "1MiB", "--recall", "pass-through"], &[""]);
    let names = names("f", FILES);
    let contents = stubs(&rig, &names, LEN);
    let delay = rig.fault(Effect::Delay(Duration::from_millis(20)), "GET");
    let before = rig.requests().content;
    std::thread::scope(|scope| {
        for (name, content) in names.iter().zip(&contents) {
            let path = rig.mnt(name);
            scope.spawn(move || {
                let file = fs::File::open(path).unwrap();
                // As servers of others read.
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
                for (n, wanted) in content.chunks(CHUNK).enumerate() {
                    let mut found = vec![0; wanted.len()];
                    file.read_exact_at(&mut found, (n * CHUNK) as u64).unwrap();
                    assert_same(&found, wanted, name);
                }
            });
        }
    });
    rig.faults.remove(delay);
    let times = (rig.requests().content - before) as f64 / (FILES * LEN) as f64;
    println!("fetched {times:.1} times");
    assert!(times < 2.0, "what is read once was fetched {times:.1} times");
    assert!(names.iter().all(|name| rig.state(name) == "stub"));
}

#[test]
fn what_runs_is_listed_and_can_be_ended() {
    let Some(rig) = mounted("noatime") else { return };
    for (name, len) in [("small", SMALL), ("large", LARGE)] {
        let content = stubs(&rig, &[name.to_owned()], len).remove(0);
        assert!(running(&rig).is_empty());
        let (gets, hang) = (rig.gets(), rig.fault(Effect::Hang, "GET"));
        let mut cat = reader(&rig, "cat", name, NOBODY);
        wait_for("the request", || rig.gets() > gets);
        wait_for("the recall in the list", || running(&rig).len() == 1);
        let recall = running(&rig).remove(0);
        assert!(named(&rig, &recall, name), "{recall}");
        let who = &recall["requesters"][0];
        assert_eq!((who["uid"].as_u64(), who["pid"].as_u64()), (Some(NOBODY.into()), Some(cat.id().into())));
        assert_eq!((&who["program"], &recall["class"]), (&"cat".into(), &"interactive".into()));
        assert_eq!((recall["bytes_total"].as_u64(), recall["bytes_done"].as_u64()), (Some(len as u64), Some(0)));
        assert!(recall["since"].as_i64().unwrap() > 1_700_000_000 && recall["eta"].is_null(), "{recall}");
        let table = rig.on(&["recalls"], &[name]);
        assert!(table.contains("cat[") && table.contains("running 1 recall"), "{table}");
        assert!(table.contains("SINCE") && table.contains("s ago"), "{table}");
        let told = rig.on(&["recalls", "--cancel"], &[name]);
        assert!(told.contains("cancelled 1 recall"), "{told}");
        wait_for("the reader's end", || cat.try_wait().unwrap().is_some());
        let output = cat.wait_with_output().unwrap();
        // ECANCELED; and the kernel, which asks again for each page that read-ahead did not bring, starts it no more.
        assert!(said(&output).contains("Operation canceled"), "{name}: {}", said(&output));
        assert_eq!((running(&rig).len(), rig.state(name).as_str()), (0, "stub"), "{name}");
        rig.faults.remove(hang);
        rig.same(name, &content);
        wait_for("the end", || running(&rig).is_empty());
    }
}

#[test]
fn a_recall_ends_with_the_last_who_waited_for_it() {
    let Some(rig) = mounted("noatime") else { return };
    // A second reader of the same page of a large one waits for the kernel, which asks once.
    for (name, len, readers) in [("small", SMALL, 2), ("large", LARGE, 1)] {
        let content = stubs(&rig, &[name.to_owned()], len).remove(0);
        let (gets, hang) = (rig.gets(), rig.fault(Effect::Hang, "GET"));
        let mut cats: Vec<_> =
            [0, NOBODY].into_iter().take(readers).map(|uid| reader(&rig, "cat", name, uid)).collect();
        let known = |recall: &Value| recall["requesters"].as_array().unwrap().len();
        wait_for("all", || running(&rig).first().is_some_and(|recall| known(recall) == readers));
        wait_for("the request", || rig.gets() > gets);
        let last = cats.pop().unwrap();
        drop(Children(cats));
        assert_eq!(running(&rig).len(), 1, "{name}: one still waits");
        drop(Children(vec![last]));
        wait_for("the end of the recall", || running(&rig).is_empty());
        wait_for("the daemon's rest", || rig.info()["transfers"] == 0);
        // Not because the request was given up: it still hangs.
        assert!(!rig.log().contains("timed out"), "{name}");
        rig.faults.remove(hang);
        assert_eq!(rig.state(name), "stub");
        rig.same(name, &content);
    }
}

/// Directories of more small stubs than it takes to know a scanner, read by one program in the order of names and of the listing, and by a program
/// started for each.
#[test]
fn who_reads_everything_is_served_and_nothing_is_kept() {
    for scans in [true, false] {
        let Some(rig) = mounted(if scans { "recall_scan=8" } else { "recall_scan=off" }) else { return };
        for (dir, script) in [
            ("names", "cat names/*"),
            ("listing", "grep -rh '' listing"),
            ("children", "for file in children/*; do cat $file; done"),
        ] {
            fs::create_dir(rig.mnt(dir)).unwrap();
            let names: Vec<String> =
                (0..60).map(|n| format!("{dir}/{:016x}", (n as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15))).collect();
            for name in &names {
                fs::write(rig.mnt(name), format!("content of {name}\n")).unwrap();
            }
            rig.on(&["migrate", "-r"], &[dir]);
            let output = as_nobody(&rig.mountpoint(), script);
            assert!(output.status.success(), "{}", said(&output));
            let mut found: Vec<_> = said(&output).lines().map(str::to_owned).collect();
            found.sort();
            let mut wanted: Vec<_> = names.iter().map(|name| format!("content of {name}")).collect();
            wanted.sort();
            assert_eq!(found, wanted, "{dir}");
            wait_for("rest", || running(&rig).is_empty() && rig.info()["transfers"] == 0);
            let kept = names.iter().filter(|name| rig.state(name) == "dual").count();
            if scans {
                // The first are not known to be part of a scan; the listing is looked up every eight files.
                assert!((1..=24).contains(&kept), "{dir}: {kept} of {} were kept", names.len());
                // Who reads one file keeps it.
                let left = names.iter().find(|name| rig.state(name) == "stub").unwrap();
                rig.same(left, format!("content of {left}\n").as_bytes());
                wait_for("the recall's end", || rig.state(left) == "dual");
            } else {
                assert_eq!(kept, names.len(), "{dir}");
            }
        }
    }
}

#[test]
fn a_commands_recall_is_bulk_and_can_be_ended() {
    let Some(rig) = mounted("noatime") else { return };
    fs::create_dir(rig.mnt("dir")).unwrap();
    let names: Vec<String> = names("dir/f", 3);
    stubs(&rig, &names, SMALL);
    let (gets, hang) = (rig.gets(), rig.fault(Effect::Hang, "GET"));
    let mut command = rig.command(&["recall".as_ref(), "-r".as_ref(), rig.mnt("dir").as_os_str()]);
    let job = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = u64::from(job.id());
    wait_for("the requests", || rig.gets() == gets + 3);
    wait_for("the list", || running(&rig).len() == 3);
    for recall in running(&rig) {
        assert_eq!(recall["class"], "bulk");
        assert_eq!((&recall["requesters"][0]["pid"], &recall["requesters"][0]["uid"]), (&pid.into(), &0.into()));
    }
    // One, then all below.
    rig.on(&["recall", "--cancel"], &[&names[1]]);
    assert_eq!(running(&rig).len(), 2);
    rig.on(&["recall", "--cancel", "-r"], &["dir"]);
    let output = job.wait_with_output().unwrap();
    code(&output, 1);
    assert!(said(&output).contains("somebody ended this recall"), "{}", said(&output));
    assert!(rig.tierfs(&["failed", "list"]).status.success());
    assert!(said(&rig.tierfs(&["failed", "list"])).contains("listed 0 entries"), "it failed by nobody's fault");
    rig.faults.remove(hang);
}

#[test]
fn users_see_and_end_their_own_only() {
    let Some(rig) = mounted("noatime") else { return };
    let names: Vec<String> = ["roots", "theirs", "asked"].map(str::to_owned).to_vec();
    stubs(&rig, &names, LARGE);
    chown(rig.mnt("theirs"), Some(NOBODY), Some(NOBODY)).unwrap();
    let (gets, hang) = (rig.gets(), rig.fault(Effect::Hang, "GET"));
    let mut readers = Children(vec![
        reader(&rig, "cat", "roots", 0),
        reader(&rig, "cat", "theirs", 0),
        reader(&rig, "cat", "asked", NOBODY),
    ]);
    wait_for("the requests", || rig.gets() >= gets + 3);
    wait_for("the list", || running(&rig).len() == 3);
    let inode_of = |name: &str| {
        let recall = running(&rig).into_iter().find(|recall| named(&rig, recall, name)).unwrap();
        recall["inode"].to_string()
    };
    let as_user = |args: &[&str]| {
        let all = [&["--json"], args].concat();
        rig.command(&all).uid(NOBODY).gid(NOBODY).output().unwrap()
    };
    let output = as_user(&["recalls", rig.mountpoint().to_str().unwrap()]);
    code(&output, 0);
    let seen = said(&output);
    assert!(seen.contains("/theirs") && seen.contains("/asked") && !seen.contains("/roots"), "{seen}");
    // By path, by number, by the attribute, by the command for files.
    let inode = inode_of("roots");
    for name in ["roots", "asked"] {
        let path = rig.mnt(name);
        code(&as_user(&["recalls", "--cancel", path.to_str().unwrap()]), 1);
        code(&as_user(&["recall", "--cancel", path.to_str().unwrap()]), 1);
        let set = as_nobody(&rig.mountpoint(), &format!("setfattr -n user.tierfs.recall -v cancel {name}"));
        assert!(said(&set).contains("not permitted"), "{}", said(&set));
    }
    as_user(&["recalls", "--cancel", &inode]);
    assert_eq!(running(&rig).len(), 3, "a stranger ended somebody's recall");
    assert_eq!(readers.ended(), 0);
    code(&as_user(&["recalls", "--cancel", &inode_of("theirs")]), 0);
    wait_for("one reader's end", || readers.ended() == 1);
    assert_eq!(running(&rig).len(), 2);
    rig.faults.remove(hang);
}

#[test]
fn memory_for_all_recalls_is_bounded_by_one_setting() {
    let Some(rig) = mounted("recall_memory=1MiB") else { return };
    let names = names("f", 24);
    let mut contents = stubs(&rig, &names, CHUNK);
    let (gets, hang) = (rig.gets(), rig.fault(Effect::Hang, "GET"));
    let mut storm = Children(names[1..].iter().map(|name| reader(&rig, "cat", name, NOBODY)).collect());
    // A quarter is for what has come, and waits for its readers.
    let at_once = ((1 << 20) / CHUNK) as u64 * 3 / 4;
    wait_for("as many requests as fit", || rig.gets() == gets + at_once);
    wait_for("all recalls", || running(&rig).len() == names.len() - 1);
    assert_eq!(rig.gets(), gets + at_once);
    // At most one in, for each out.
    for (out, recall) in running(&rig).into_iter().enumerate().take(5) {
        rig.json(&["recalls", "--cancel", &recall["inode"].to_string()], 0);
        assert!(rig.gets() <= gets + at_once + out as u64 + 1);
    }
    rig.faults.remove(hang);
    for recall in running(&rig) {
        rig.json(&["recalls", "--cancel", &recall["inode"].to_string()], 0);
    }
    wait_for("the readers' end", || storm.ended() == names.len() - 1);
    rig.same(&names[0], &contents.swap_remove(0));
}

/// A command that brings back a tree fills what there is to fetch with, but for what is kept for who waits.
#[test]
fn a_read_passes_a_command_that_hangs() {
    let Some(rig) = mounted("recall_memory=1MiB") else { return };
    fs::create_dir(rig.mnt("dir")).unwrap();
    let bulk = names("dir/f", 24);
    stubs(&rig, &bulk, CHUNK);
    let mut content = stubs(&rig, &["mine".to_owned()], CHUNK);
    let (gets, hang) = (rig.gets(), rig.fault(Effect::Hang, "GET"));
    let mut command = rig.command(&["recall".as_ref(), "-r".as_ref(), rig.mnt("dir").as_os_str()]);
    let job = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let at_once = ((1 << 20) / CHUNK) as u64 * 3 / 4 * 3 / 4;
    wait_for("three quarters", || rig.gets() == gets + at_once);
    wait_for("all recalls", || running(&rig).len() == bulk.len());
    assert_eq!(rig.gets(), gets + at_once);
    rig.faults.remove(hang);
    rig.same("mine", &content.remove(0));
    rig.on(&["recall", "--cancel", "-r"], &["dir"]);
    drop(Children(vec![job]));
}

/// Read-ahead is asked for in the background, and the kernel sends only so many such requests at a time: those of one user's slow recalls
/// must not keep another's.
#[test]
fn slow_readers_of_many_large_stubs_hold_up_no_other() {
    let Some(rig) = mounted("noatime") else { return };
    let names = names("f", 150);
    let mut contents = stubs(&rig, &names, 17 * CHUNK);
    let (gets, hang) = (rig.gets(), rig.fault(Effect::Hang, "GET"));
    let mut storm = Children(names[1..].iter().map(|name| reader(&rig, "cat", name, NOBODY)).collect());
    wait_for("all to be asked for", || running(&rig).len() == names.len() - 1 && rig.gets() > gets);
    rig.faults.remove(hang);
    rig.same(&names[0], &contents.swap_remove(0));
    // Not because those before gave up.
    assert_eq!(storm.ended(), 0);
}
