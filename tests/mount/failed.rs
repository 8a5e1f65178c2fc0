//! Failures decide by their kind what follows (R14), and those that stay are listed, tried again and dropped (R22).

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tierfs::gateway::faults::{Effect, Rule};

use crate::rig::*;

/// The entries of the list: path inside the mount, task, reason, attempts.
#[track_caller]
fn listed(rig: &Rig) -> Vec<(String, String, String, u64)> {
    let mountpoint = rig.mountpoint();
    let lines = rig.json(&["failed", "list", mountpoint.to_str().unwrap()], 0);
    let text = |line: &Value, field: &str| line[field].as_str().unwrap().to_owned();
    let inside =
        |path: String| path.trim_start_matches(mountpoint.to_str().unwrap()).trim_start_matches('/').to_owned();
    let entries = lines.iter().filter(|line| line["reply"] == "dead_letter");
    let mut entries: Vec<_> = entries
        .map(|line| {
            assert!(!line["message"].as_str().unwrap().is_empty() && line["pair"] == "cold", "{line}");
            (inside(text(line, "path")), text(line, "task"), text(line, "reason"), line["attempts"].as_u64().unwrap())
        })
        .collect();
    entries.sort();
    entries
}

fn entry(path: &str, task: &str, reason: &str, attempts: u64) -> (String, String, String, u64) {
    (path.into(), task.into(), reason.into(), attempts)
}

/// Lets requests for keys with `name` in them fail.
fn poison(rig: &Rig, effect: Effect, method: &str, name: &str) -> tierfs::gateway::faults::RuleId {
    rig.faults.add(Rule::new(effect).method(method).url(name))
}

#[test]
fn the_policy_lists_what_keeps_failing_and_gets_on_with_the_rest() {
    let Some(mut rig) = (Setup { mount: vec!["--archive-after", "1s"], ..Setup::default() }).build() else { return };
    rig.quiet();
    let rule = poison(&rig, Effect::InternalError, "PUT", "poisoned");
    let content = rig.write("poisoned", CHUNK);
    rig.write("good", CHUNK);
    wait_for("the good file", || rig.state("good") == "dual");
    wait_for("the bad file's entry", || !listed(&rig).is_empty());
    assert_eq!(listed(&rig), [entry("poisoned", "archive", "remote", 1)]);
    // Passes go on every second; this file waits for a minute.
    let tries = rig.faults.hits(rule);
    for n in 0..3 {
        let name = format!("later {n}");
        rig.write(&name, CHUNK);
        wait_for("another pass", || rig.state(&name) == "dual");
    }
    assert_eq!((rig.faults.hits(rule), listed(&rig)[0].3), (tries, 1), "tried again at once");
    assert_eq!(rig.info()["failed"], serde_json::json!([1, 0]));
    // A crash forgets nothing, a restart tries nothing.
    rig.crash();
    rig.mount();
    assert_eq!(listed(&rig), [entry("poisoned", "archive", "remote", 1)]);
    // By hand it is tried whenever it is wished for, and counted.
    let output = rig.try_on(&["failed", "retry"], &["poisoned"]);
    code(&output, 1);
    assert!(said(&output).contains("poisoned") && said(&output).contains("1 failed"), "{}", said(&output));
    assert_eq!(listed(&rig), [entry("poisoned", "archive", "remote", 2)]);
    rig.faults.clear();
    assert!(rig.on(&["failed", "retry"], &[""]).contains("retried 1 file"));
    assert_eq!((listed(&rig), rig.state("poisoned").as_str()), (Vec::new(), "dual"));
    rig.same("poisoned", &content);
}

#[test]
fn what_commands_fail_is_listed_and_leaves_the_list_by_success_or_by_hand() {
    let Some(mut rig) = Rig::new() else { return };
    rig.quiet();
    fs::create_dir(rig.mnt("d")).unwrap();
    for name in ["d/a", "d/b", "c", "open", "missing"] {
        rig.write(name, CHUNK);
    }
    rig.on(&["migrate"], &["missing"]);
    let missing = rig.record("missing").unwrap().object.unwrap().key;
    rig.stop_server();
    rig.remove_object(&missing.0);
    rig.start_server();
    poison(&rig, Effect::InternalError, "PUT", "/pre/d/");
    let open = fs::File::open(rig.mnt("open")).unwrap();
    code(&rig.try_on(&["migrate", "-r"], &["d", "open", "c"]), 1);
    code(&rig.try_on(&["recall"], &["missing"]), 1);
    let missing = entry("missing", "recall", "missing", 1);
    // The file in use is none: it is asked for again when somebody wants to.
    let wanted = [entry("d/a", "migrate", "remote", 1), entry("d/b", "migrate", "remote", 1), missing.clone()];
    assert_eq!(listed(&rig), wanted);
    drop(open);
    // A name changed since is the one that is shown, and both lead to the entry.
    fs::rename(rig.mnt("d/b"), rig.mnt("e")).unwrap();
    let wanted = [entry("d/a", "migrate", "remote", 1), entry("e", "migrate", "remote", 1), missing.clone()];
    assert_eq!(listed(&rig), wanted);
    assert!(rig.on(&["failed", "drop"], &["e"]).contains("dropped 1 entry"));
    // For people, a line each.
    let text = rig.on(&["failed", "list"], &["d"]);
    assert!(
        text.contains("migrate failed once (remote)") && text.contains("d/a") && text.contains("listed 1 entry"),
        "{text}"
    );
    rig.faults.clear();
    rig.on(&["migrate"], &["d/a"]);
    assert_eq!(listed(&rig), std::slice::from_ref(&missing));
    // Whoever succeeds takes it off the list: here a reader.
    rig.migrate("c");
    let rule = poison(&rig, Effect::InternalError, "GET", "/pre/c");
    code(&rig.try_on(&["recall"], &["c"]), 1);
    assert!(
        rig.faults.hits(rule) > 0 && listed(&rig).contains(&entry("c", "recall", "remote", 1)),
        "{:?}",
        listed(&rig)
    );
    rig.faults.clear();
    fs::read(rig.mnt("c")).unwrap();
    wait_for("the end of its entry", || listed(&rig) == [missing.clone()]);
    // What is gone has nothing left to be tried.
    fs::remove_file(rig.mnt("missing")).unwrap();
    rig.on(&["failed", "retry", "--all"], &[]);
    assert_eq!(listed(&rig), []);
    let output = rig.tierfs(&["failed", "drop"]);
    code(&output, 2);
}

#[test]
fn an_outage_is_not_the_files_failure() {
    let Some(mut rig) = (Setup { mount: vec!["--archive-after", "1s"], ..Setup::default() }).build() else { return };
    rig.quiet();
    rig.stop_server();
    let names: Vec<String> = (0..20).map(|n| format!("f{n}")).collect();
    names.iter().for_each(|name| drop(rig.write(name, 1000)));
    // The policy has tried, and waits.
    wait_for("the pass", || rig.log().contains("archiving stopped"));
    assert_eq!(listed(&rig), []);
    let problem = rig.info()["pair_problem"].as_str().expect("the pair is unhealthy").to_owned();
    assert!(problem.contains(&rig.endpoint()), "{problem}");
    let said = rig.on(&["status", "-r"], &[""]);
    assert!(said.contains("cannot be used at present"), "{said}");
    rig.start_server();
    rig.on(&["migrate", "-r", "--archive-only"], &[""]);
    names.iter().for_each(|name| assert_eq!(rig.state(name), "dual"));
    assert_eq!(rig.info()["pair_problem"], Value::Null);
    assert!(!rig.on(&["status", "-r"], &[""]).contains("cannot be used"));
}

#[test]
fn a_pair_at_fault_is_told_until_it_works_again() {
    let Some(mut rig) = (Setup { make_buckets: false, mounted: false, ..Setup::default() }).build() else { return };
    rig.stop_server();
    for dir in ["objects", "uploads"] {
        fs::create_dir_all(rig.scratch(&format!("objects/cold/{dir}"))).unwrap();
    }
    rig.start_server();
    rig.mount();
    rig.quiet();
    rig.write("a", CHUNK);
    assert_eq!(rig.info()["pair_problem"], Value::Null);
    rig.stop_server();
    fs::rename(rig.scratch("objects/cold"), rig.scratch("objects/hidden")).unwrap();
    rig.start_server();
    code(&rig.try_on(&["migrate"], &["a"]), 3);
    let problem = rig.info()["pair_problem"].as_str().expect("the pair is unhealthy").to_owned();
    assert!(problem.contains("bucket cold does not exist"), "{problem}");
    assert_eq!(listed(&rig), [entry("a", "migrate", "configuration", 1)]);
    rig.stop_server();
    fs::rename(rig.scratch("objects/hidden"), rig.scratch("objects/cold")).unwrap();
    rig.start_server();
    rig.on(&["failed", "retry", "--all"], &[]);
    assert_eq!(
        (rig.info()["pair_problem"].clone(), rig.state("a").as_str(), listed(&rig)),
        (Value::Null, "stub", vec![])
    );
}

#[test]
fn an_object_that_will_not_go_stands_in_nobodys_way() {
    let Some(mut rig) = Rig::new() else { return };
    rig.quiet();
    let names: Vec<String> = (0..6).map(|n| format!("f{n}")).chain(["stuck".into()]).collect();
    names.iter().for_each(|name| drop(rig.write(name, 100)));
    rig.on(&["migrate", "-r"], &[""]);
    // Or the uploads' notes become deletions, too.
    wait_for("the notes' end", || rig.info()["intents"][0] == 0);
    let rule = poison(&rig, Effect::InternalError, "DELETE", "stuck");
    // The oldest note is that of the one that fails.
    fs::remove_file(rig.mnt("stuck")).unwrap();
    names[..6].iter().for_each(|name| fs::remove_file(rig.mnt(name)).unwrap());
    wait_for("the others' end", || rig.objects().len() == 1);
    wait_for("its entry", || !listed(&rig).is_empty());
    assert_eq!(listed(&rig), [entry("stuck", "delete", "remote", 1)]);
    let tries = rig.faults.hits(rule);
    rig.umount();
    rig.mount();
    assert_eq!((listed(&rig).len(), rig.faults.hits(rule)), (1, tries), "it waits for its time");
    rig.faults.clear();
    rig.on(&["failed", "retry", "--all"], &[]);
    wait_for("its end", || rig.objects().is_empty());
    wait_for("the empty list", || listed(&rig).is_empty());
    assert_eq!(rig.info()["intents"], serde_json::json!([0, 0]));
}

/// Who asked went away, and the transfers in hand were dropped where they were: their files stayed in transit, their notes till the next start.
#[test]
fn a_job_that_is_broken_off_finishes_what_it_has_in_hand() {
    let Some(rig) = Rig::new() else { return };
    rig.quiet();
    let names: Vec<String> = (0..12).map(|n| format!("f{n}")).collect();
    let contents: Vec<_> = names.iter().map(|name| rig.write(name, CHUNK)).collect();
    let held: Vec<_> = names.iter().map(|name| fs::File::open(rig.mnt(name)).unwrap()).collect();
    let rule = rig.fault(Effect::Delay(Duration::from_secs(3)), "PUT");
    let mountpoint = rig.mountpoint();
    let args = ["migrate", "-r", "--archive-only", mountpoint.to_str().unwrap()];
    let mut job = rig.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for("the transfers", || rig.faults.hits(rule) >= 12);
    job.kill().unwrap();
    job.wait().unwrap();
    rig.faults.clear();
    wait_for("their end", || rig.info()["transfers"] == 0);
    wait_for("their notes' end", || rig.info()["intents"][0] == 0);
    drop(held);
    rig.on(&["migrate", "-r"], &[""]);
    for (name, content) in names.iter().zip(&contents) {
        assert_eq!(rig.state(name), "stub");
        rig.same(name, content);
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    rig.settled(&names);
}

/// Another worker finished it: success, and no second copy.
#[test]
fn what_another_worker_has_done_is_done() {
    let Some(rig) = Rig::new() else { return };
    rig.quiet();
    let content = rig.write("a", 3 * CHUNK);
    let rule = rig.fault(Effect::Delay(Duration::from_millis(500)), "PUT");
    let workers: Vec<_> = (0..3)
        .map(|_| {
            let mut job = rig.command(&["--json".as_ref(), "migrate".as_ref(), rig.mnt("a").as_os_str()]);
            job.stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let mut done = 0;
    for worker in workers {
        let output = worker.wait_with_output().unwrap();
        code(&output, 0);
        let last: Value = serde_json::from_str(said(&output).lines().last().unwrap()).unwrap();
        done += last["files"].as_u64().unwrap();
        assert_eq!((last["failed"].as_u64(), last["skipped"].as_u64()), (Some(0), Some(0)), "{last}");
    }
    // Object and manifest.
    assert_eq!((done, rig.faults.hits(rule), listed(&rig)), (1, 2, vec![]));
    rig.same("a", &content);
    rig.settled(&["a"]);
}

/// Content changed: rolled back now, and the fresh object goes. Nothing is listed.
#[test]
fn a_copy_that_a_writer_spoils_is_rolled_back_at_once() {
    let Some(rig) = Rig::new() else { return };
    rig.quiet();
    rig.write("a", 3 * CHUNK);
    let rule = rig.faults.add(Rule::new(Effect::Delay(Duration::from_secs(2))).method("PUT").url(".manifest"));
    let mut job = rig.command(&["migrate".as_ref(), rig.mnt("a").as_os_str()]);
    let job = job.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the copy", || rig.faults.hits(rule) > 0);
    fs::write(rig.mnt("a"), b"newer").unwrap();
    let output = job.wait_with_output().unwrap();
    code(&output, 1);
    assert!(said(&output).contains("1 skipped"), "{}", said(&output));
    assert_eq!((rig.state("a").as_str(), listed(&rig)), ("resident", vec![]));
    rig.same("a", b"newer");
    rig.settled(&["a"]);
    assert!(rig.objects().is_empty());
}

/// The file is gone: rolled back now.
#[test]
fn a_file_that_is_removed_while_it_is_copied_leaves_nothing() {
    let Some(rig) = Rig::new() else { return };
    rig.quiet();
    rig.write("a", 3 * CHUNK);
    let rule = rig.faults.add(Rule::new(Effect::Delay(Duration::from_secs(2))).method("PUT").url(".manifest"));
    let mut job = rig.command(&["migrate".as_ref(), rig.mnt("a").as_os_str()]);
    let mut job = job.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for("the copy", || rig.faults.hits(rule) > 0);
    fs::remove_file(rig.mnt("a")).unwrap();
    job.wait().unwrap();
    assert_eq!(listed(&rig), []);
    rig.settled(&[]);
    wait_for("the notes' end", || rig.info()["intents"] == serde_json::json!([0, 0]));
}

/// A small filesystem in memory, for as long as it lives.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(place: std::path::PathBuf) -> Self {
        fs::create_dir_all(&place).unwrap();
        crate::common::run("mount", &["-t", "tmpfs", "-o", "size=1m", "tmpfs", place.to_str().unwrap()]);
        Self(place)
    }

    /// Leaves no room.
    fn fill(&self) {
        use std::io::Write;
        let mut filler = fs::File::create(self.0.join("filler")).unwrap();
        while filler.write_all(&[7; 4096]).is_ok() {}
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// A rollback that fails stayed a note of an upload until the next start. The writer's success is told, not the journal's failure.
#[test]
fn a_rollback_that_fails_is_tried_until_it_is_done() {
    let Some(mut rig) = (Setup { mounted: false, ..Setup::default() }).build() else { return };
    let small = Small::mount(rig.scratch("state/shares"));
    rig.mount();
    rig.quiet();
    rig.write("a", 3 * CHUNK);
    let rule = rig.faults.add(Rule::new(Effect::Delay(Duration::from_secs(2))).method("PUT").url(".manifest"));
    let mut job = rig.command(&["migrate".as_ref(), rig.mnt("a").as_os_str()]);
    let job = job.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the copy", || rig.faults.hits(rule) > 0);
    small.fill();
    fs::write(rig.mnt("a"), b"newer").unwrap();
    let output = job.wait_with_output().unwrap();
    assert!(said(&output).contains("1 skipped") && said(&output).contains("changed"), "{}", said(&output));
    wait_for("the failure", || rig.log().contains("a rollback is tried again later"));
    assert_eq!(rig.info()["intents"], serde_json::json!([1, 0]));
    assert_eq!(rig.objects().len(), 2, "object and manifest");
    fs::remove_file(small.0.join("filler")).unwrap();
    wait_for("the rollback", || rig.objects().is_empty());
    wait_for("its note's end", || rig.info()["intents"] == serde_json::json!([0, 0]));
    rig.same("a", b"newer");
    rig.umount();
    drop(small);
}
