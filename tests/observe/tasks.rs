//! Tasks go on without whoever asked, over crashes and outages, and stop when they are told.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use crate::rig::*;

const FILES: usize = 1_200;

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
