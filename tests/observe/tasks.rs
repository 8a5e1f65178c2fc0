//! Tasks go on without whoever asked, over crashes and outages, and stop when they are told.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;
use tierfs::gateway::faults::{Effect, Rule};

use crate::rig::*;

const FILES: usize = 1_200;
/// What 99,000 files more in the queue may take. Their bare numbers in a vector, 24 bytes each, would be 3 MB, and half as much more while it grows.
const QUEUED_MAX: i64 = 4 << 20;
/// What carrying out may take, whose threads have 2 MB each or so.
const CARRIED_OUT_MAX: i64 = 64 << 20;

/// Small files in a directory, 1,000 bytes each.
fn fill(rig: &Rig, dir: &str, files: usize) {
    fs::create_dir(rig.mnt(dir)).unwrap();
    for n in 0..files {
        fs::write(rig.mnt(format!("{dir}/{n}")), noise(&n.to_string(), 1_000)).unwrap();
    }
}

#[track_caller]
fn mount(rig: &mut Rig, options: &str) {
    let output = rig.try_mount(&["-o", options]);
    assert!(output.status.success(), "{}", said(&output));
}

#[track_caller]
fn add(rig: &Rig, kind: &str, dir: &str, more: &[&str]) -> Value {
    let path = rig.mnt(dir).display().to_string();
    rig.json(&[&["tasks", "add", kind, "-r", &path], more].concat(), 0).remove(0)
}

fn task(rig: &Rig, id: &Value) -> Value {
    let tasks = rig.json(&["tasks", "list", "--all"], 0);
    tasks.into_iter().find(|task| task["id"] == *id).unwrap_or_else(|| panic!("no task {id}"))
}

#[track_caller]
fn wait_for_state(rig: &Rig, id: &Value, state: &str) -> Value {
    let mut last = Value::Null;
    wait_for(state, || {
        last = task(rig, id);
        last["state"] == state
    });
    last
}

fn stubs(rig: &Rig, dir: &str) -> usize {
    let files = fs::read_dir(rig.low(dir)).unwrap().flatten();
    files.filter(|file| rig.state(&format!("{dir}/{}", file.file_name().to_str().unwrap())) == "stub").count()
}

#[test]
fn a_task_survives_crashes_and_outages() {
    let Some(mut rig) = (Setup { mounted: false, ..Setup::default() }).build() else { return };
    mount(&mut rig, "task_rate=200KiB");
    fill(&rig, "d", FILES);
    let id = add(&rig, "migrate", "d", &[])["id"].clone();
    wait_for("some files", || stubs(&rig, "d") > 20);
    rig.crash();
    mount(&mut rig, "task_rate=200KiB");
    wait_for("some more", || stubs(&rig, "d") > 300);
    // An outage: nothing fails, the task waits.
    rig.stop_server();
    wait_for("the outage to be told", || task(&rig, &id)["problem"].is_string());
    rig.start_server();
    rig.umount();
    mount(&mut rig, "task_rate=unlimited");
    let ended = wait_for_state(&rig, &id, "done");
    assert_eq!(stubs(&rig, "d"), FILES);
    let count = |what: &str| ended[what].as_u64().unwrap();
    assert!(count("files") >= FILES as u64 && count("failed") + count("skipped") == 0, "{ended}");
    assert_eq!(count("done") + count("unchanged"), count("files"), "{ended}");
    assert!(rig.json(&["failed", "list"], 0).iter().all(|line| line["reply"] != "dead_letter"));
    assert!(rig.json(&["tasks", "list"], 0).is_empty());
    // And back.
    let id = add(&rig, "recall", "d", &[])["id"].clone();
    let ended = wait_for_state(&rig, &id, "done");
    assert_eq!((&ended["done"], &ended["done_bytes"]), (&FILES.into(), &(FILES * 1_000).into()));
    for n in [0, 77, FILES - 1] {
        rig.same(&format!("d/{n}"), &noise(&n.to_string(), 1_000));
    }
}

#[test]
fn tasks_are_paused_resumed_cancelled_and_put_before_others() {
    let Some(mut rig) = (Setup { mounted: false, ..Setup::default() }).build() else { return };
    mount(&mut rig, "task_rate=off");
    fill(&rig, "a", 30);
    fill(&rig, "b", 30);
    fill(&rig, "c", 30);
    let (a, b) = (add(&rig, "archive", "a", &[])["id"].clone(), add(&rig, "archive", "b", &[])["id"].clone());
    let c = add(&rig, "archive", "c", &["--priority", "5"])["id"].clone();
    let again = add(&rig, "archive", "a", &[])["id"].clone();
    wait_for("all files", || rig.json(&["tasks", "list"], 0).iter().all(|task| task["walked"] == true));
    let order: Vec<_> = rig.json(&["tasks", "list"], 0).iter().map(|task| task["id"].clone()).collect();
    assert_eq!(order[..3], [c.clone(), a.clone(), b.clone()]);
    assert_eq!((&task(&rig, &again)["files"], &task(&rig, &again)["repeated"]), (&0.into(), &30.into()));
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(rig.state("a/0"), "resident", "nothing runs at this hour");
    for (verb, id) in [("pause", &a), ("cancel", &b)] {
        rig.json(&["tasks", verb, &id.to_string()], 0);
    }
    code(&rig.tierfs(&["tasks", "resume", &b.to_string()]), 3);
    code(&rig.tierfs(&["tasks", "pause", "99"]), 3);
    rig.json(&["tasks", "priority", &a.to_string(), "-3"], 0);
    rig.umount();
    mount(&mut rig, "task_rate=unlimited");
    wait_for_state(&rig, &c, "done");
    wait_for_state(&rig, &again, "done");
    assert_eq!(
        (rig.state("c/7").as_str(), rig.state("a/7").as_str(), rig.state("b/7").as_str()),
        ("dual", "resident", "resident")
    );
    let paused = task(&rig, &a);
    assert_eq!((&paused["state"], &paused["priority"]), (&"paused".into(), &(-3).into()));
    rig.json(&["tasks", "resume", "--all"], 0);
    let ended = wait_for_state(&rig, &a, "done");
    assert_eq!(ended["done"], 30);
    assert_eq!(task(&rig, &b)["state"], "cancelled");
    assert_eq!(rig.state("b/7"), "resident");
}

#[test]
fn what_cannot_be_done_is_told() {
    let Some(rig) = Rig::new() else { return };
    fill(&rig, "d", 5);
    rig.on(&["pin"], &["d/1"]);
    let open = fs::OpenOptions::new().append(true).open(rig.mnt("d/2")).unwrap();
    let id = add(&rig, "migrate", "d", &[])["id"].clone();
    let ended = wait_for_state(&rig, &id, "done");
    assert_eq!((&ended["done"], &ended["skipped"], &ended["failed"]), (&3.into(), &2.into(), &0.into()), "{ended}");
    drop(open);
    // A directory without -r, and what is not there.
    let (dir, gone) = (rig.mnt("d").display().to_string(), rig.mnt("gone").display().to_string());
    let id = rig.json(&["tasks", "add", "release", &dir, &gone], 0).remove(0)["id"].clone();
    let ended = wait_for_state(&rig, &id, "done");
    let problem = ended["problem"].as_str().unwrap();
    assert!(problem.contains("give -r") && problem.contains("gone"), "{problem}");
    let text = said(&rig.tierfs(&["tasks", "list", "--all"]));
    assert!(text.contains("release") && text.contains("done"), "{text}");
    code(&rig.tierfs(&["tasks", "add", "pin", &dir]), 2);
}

fn rates(rig: &Rig, more: &[&str]) -> Value {
    rig.json(&[&["tasks", "rate"], more].concat(), 0).remove(0)
}

#[test]
fn rates_are_changed_while_a_task_waits_for_its_turn() {
    let Some(mut rig) = (Setup { mounted: false, ..Setup::default() }).build() else { return };
    mount(&mut rig, "task_rate=off,task_files=7");
    fill(&rig, "d", 40);
    let id = add(&rig, "migrate", "d", &[])["id"].clone();
    wait_for("all files", || task(&rig, &id)["walked"] == true);
    assert_eq!(rates(&rig, &[]), serde_json::json!({"reply": "task_rate", "rates": "off", "now": 0}));
    // Tasks of 7 files are lots of 7 in the queue.
    let lots = || -> Vec<i64> {
        let dir = fs::read_dir(rig.state_dir().join("shares")).unwrap().flatten().next().unwrap();
        let queue = rusqlite::Connection::open(dir.path().join("tasks.sqlite")).unwrap();
        let mut lots = queue.prepare("SELECT count(*) FROM item GROUP BY task ORDER BY task").unwrap();
        lots.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    };
    assert_eq!(lots(), [7, 7, 7, 7, 7, 5]);
    // 1,000 bytes a file, 10 a second: the second file is far away, and a rate that is given meanwhile is heeded.
    assert_eq!(rates(&rig, &["10"])["now"], 10);
    wait_for("the first file", || task(&rig, &id)["state"] == "running" && stubs(&rig, "d") >= 1);
    assert!(stubs(&rig, "d") < 5);
    let now = rates(&rig, &["unlimited@00:00-24:00+1MiB"]);
    assert_eq!((&now["rates"], &now["now"]), (&"unlimited@00:00-24:00+1MiB".into(), &Value::Null));
    let ended = wait_for_state(&rig, &id, "done");
    assert_eq!(ended["done"], 40);
    code(&rig.tierfs(&["tasks", "rate", "fast"]), 2);
    let text = said(&rig.tierfs(&["tasks", "rate"]));
    assert!(text.contains("unlimited@00:00-24:00+1MiB (now: unlimited)"), "{text}");
    // After a remount what the mount says is in force.
    rig.umount();
    mount(&mut rig, "task_rate=3MiB");
    assert_eq!(rates(&rig, &[])["rates"], "3MiB");
}

#[test]
fn what_fails_while_the_store_answers_is_tried_once_more() {
    let Some(rig) = Rig::new() else { return };
    rig.quiet();
    fill(&rig, "d", 12);
    // As one that fails while the store comes back: all that one look at the file tries, and nothing after.
    let passing = rig.faults.add(Rule::new(Effect::InternalError).method("PUT").url("/d/5").times(8));
    let id = add(&rig, "migrate", "d", &[])["id"].clone();
    let ended = wait_for_state(&rig, &id, "done");
    assert_eq!(rig.faults.hits(passing), 8);
    assert_eq!((&ended["done"], &ended["failed"]), (&12.into(), &0.into()), "{ended}");
    assert!(rig.json(&["failed", "list"], 0).iter().all(|line| line["reply"] != "dead_letter"));
    // One that never succeeds is given up after the second time.
    fill(&rig, "e", 12);
    let lasting = rig.faults.add(Rule::new(Effect::InternalError).method("PUT").url("/e/5"));
    let id = add(&rig, "migrate", "e", &[])["id"].clone();
    let ended = wait_for_state(&rig, &id, "done");
    assert_eq!((&ended["done"], &ended["failed"]), (&11.into(), &1.into()), "{ended}");
    assert_eq!(rig.faults.hits(lasting), 16);
    assert_eq!(rig.state("e/5"), "resident");
}

#[test]
fn top_shows_tasks_and_what_the_index_has_to_do() {
    let Some(mut rig) = (Setup { mounted: false, ..Setup::default() }).build() else { return };
    mount(&mut rig, "task_rate=off");
    fill(&rig, "d", 9);
    let id = add(&rig, "archive", "d", &["--priority", "3"])["id"].clone();
    wait_for("all files", || task(&rig, &id)["walked"] == true);
    let mountpoint = rig.mountpoint().display().to_string();
    let figures = rig.json(&["top", "--once", &mountpoint], 0).remove(0);
    let told = &figures["tasks"][0];
    assert_eq!((&told["id"], &told["state"], &told["files"]), (&id, &"waiting".into(), &9.into()), "{figures}");
    assert!(figures["index_pending"].is_u64() && figures["index_scan"].is_null(), "{figures}");
    assert!(told["paths"][0].as_str().unwrap().ends_with("/mnt/d"), "{told}");
    let text = said(&rig.tierfs(&["top", "--once", &mountpoint]));
    assert!(text.contains("archive") && text.contains("0/9") && text.contains("changes wait"), "{text}");
    rates(&rig, &["unlimited"]);
    wait_for_state(&rig, &id, "done");
    assert_eq!(rig.json(&["top", "--once", &mountpoint], 0).remove(0)["tasks"], serde_json::json!([]));
}

/// Bytes of a process: now, or the most that it had.
fn memory(pid: i32, field: &str) -> i64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<i64>().unwrap() << 10
}

/// How much more memory than before the daemon takes at most, until all tasks are as wanted.
fn grows(rig: &Rig, what: &str, is_over: impl Fn(&Value) -> bool) -> i64 {
    let daemon = rig.daemon.unwrap();
    // Has the kernel forget what it was at most.
    fs::write(format!("/proc/{daemon}/clear_refs"), "5").unwrap();
    let (before, begun) = (memory(daemon, "VmRSS:"), Instant::now());
    while !rig.json(&["tasks", "list", "--all"], 0).iter().all(&is_over) {
        assert!(begun.elapsed() < Duration::from_secs(200), "{what}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let grown = memory(daemon, "VmHWM:") - before;
    eprintln!("{what}: {grown} bytes more, in {:.1?}", begun.elapsed());
    grown
}

#[test]
fn a_task_of_many_files_takes_no_more_memory_than_one_of_few() {
    let Some(mut rig) = (Setup { mounted: false, size: 4 << 30, ..Setup::default() }).build() else { return };
    // Empty ones have nothing to move, and pass through all of the queue.
    for (dir, files) in [("warm", 50_000), ("few", 1_000), ("many", 100_000)] {
        for n in 0..files {
            let below = format!("{dir}/{}", n / 5_000);
            if n % 5_000 == 0 {
                fs::create_dir_all(rig.low(&below)).unwrap();
            }
            fs::File::create(rig.low(format!("{below}/{n}"))).unwrap();
        }
    }
    let (share, mountpoint) = (rig.share(), rig.mountpoint());
    let places = [share.to_str().unwrap(), mountpoint.to_str().unwrap()];
    // What is freed goes back at once: what is seen is what is in use.
    let mut mount = rig.command(&[&["--json", "mount", "-o", "save_names=off,task_rate=off"][..], &places].concat());
    let output = mount.env("MIMALLOC_PURGE_DELAY", "0").output().unwrap();
    code(&output, 0);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    rig.daemon = Some(told["pid"].as_i64().unwrap() as i32);
    let queued = |dir: &str| {
        let id = add(&rig, "archive", dir, &[])["id"].clone();
        (id, grows(&rig, dir, |task| task["walked"] == true))
    };
    // What is cached of 8,192 inodes, and pages of the queue.
    queued("warm");
    let ((_, few), (id, many)) = (queued("few"), queued("many"));
    assert!(many - few < QUEUED_MAX, "{many} bytes for many that wait, {few} for few");
    rig.json(&["tasks", "cancel", &id.to_string()], 0);
    rates(&rig, &["unlimited"]);
    let all = grows(&rig, "51,000 carried out", |task| task["ended"].is_i64());
    assert!(all < CARRIED_OUT_MAX, "{all}");
    let ended = rig.json(&["tasks", "list", "--all"], 0);
    let unchanged: u64 = ended.iter().map(|task| task["unchanged"].as_u64().unwrap()).sum();
    assert_eq!(unchanged, 51_000, "{ended:?}");
}
