//! When policies run, for how long, and what is known of that.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::index::scan;
use crate::policies::{policy_run, with_policies};
use crate::rig::*;

/// Bytes a second of a rule that begins a file of one byte and the next one at once, and the third after an hour.
const SLOW: &str = "limits.rate = \"16\"\norder = \"oldest\"\n";

fn policies_file(rig: &Rig) -> PathBuf {
    rig.scratch("policies.toml")
}

/// These rules are in force from now on.
#[track_caller]
pub fn reload(rig: &Rig, text: &str) {
    fs::write(policies_file(rig), text).unwrap();
    code(&rig.tierfs(&["policy", "reload"]), 0);
}

/// What `policy list` says of a policy.
#[track_caller]
fn listed(rig: &Rig, name: &str) -> Value {
    let list = rig.json(&["policy", "list"], 0);
    list.into_iter().find(|line| line["name"] == name).unwrap()
}

/// Three files of which [`SLOW`] rules take two.
fn three(rig: &Rig, dir: &str) -> [String; 3] {
    fs::create_dir(rig.mnt(dir)).unwrap();
    [1, CHUNK, CHUNK].map({
        let mut n = 0;
        move |len| {
            let name = format!("{dir}/{n}");
            rig.write(&name, len);
            set_mtime(&rig.mnt(&name), 1_500_000_000 + n * 1000, 0);
            n += 1;
            name
        }
    })
}

#[track_caller]
fn two_are_taken(rig: &Rig, names: &[String; 3]) {
    wait_for("the second file", || rig.state(&names[1]) == "stub");
    assert_eq!((rig.state(&names[0]).as_str(), rig.state(&names[2]).as_str()), ("stub", "resident"), "its rate");
}

/// A window of two hours that begins so many hours from now.
fn window(hours: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let at = |hours: i64| {
        let minute = (now / 60 + hours * 60).rem_euclid(24 * 60);
        format!("{:02}:{:02}", minute / 60, minute % 60)
    };
    format!("{}-{}", at(hours), at(hours + 2))
}

fn by_hand(rig: &Rig, name: &str) -> Child {
    rig.command(&["policy", "run", name]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_window_that_closes_ends_the_run_and_the_next_one_goes_on() {
    let Some(rig) = with_policies("") else { return };
    let names = three(&rig, "d");
    let night = |hours| {
        let window = window(hours);
        format!("[policy.night]\naction = \"migrate\"\n{SLOW}schedule = {{ every = \"1d\", window = \"{window}\" }}\n")
    };
    reload(&rig, &night(-1));
    two_are_taken(&rig, &names);
    reload(&rig, &night(3));
    wait_for("the end of the run", || listed(&rig, "night")["last"]["stopped"] == "window");
    let night_now = listed(&rig, "night");
    let last = &night_now["last"];
    assert_eq!((&last["files"], &last["problem"], &night_now["running"]), (&json!(2), &Value::Null, &Value::Null));
    assert_eq!(rig.state(&names[2]), "resident");
    // Not a day later.
    reload(&rig, &night(-1));
    wait_for("the third file", || rig.state(&names[2]) == "stub");
}

#[test]
fn a_trigger_does_not_wait_for_a_slow_rule() {
    let rules = format!(
        "[policy.a-slow]\naction = \"migrate\"\n{SLOW}match.paths = [\"slow/**\"]\n\
         [policy.full]\naction = \"migrate\"\nwhen.user_above = \"100KiB\"\nmatch.paths = [\"hers/**\"]\nschedule.every = \"1s\"\n"
    );
    let Some(rig) = with_policies("") else { return };
    let names = three(&rig, "slow");
    reload(&rig, &rules);
    two_are_taken(&rig, &names);
    fs::create_dir(rig.mnt("hers")).unwrap();
    for n in 0..4 {
        let name = format!("hers/{n}");
        rig.write(&name, CHUNK);
        std::os::unix::fs::chown(rig.mnt(&name), Some(1001), None).unwrap();
    }
    let stubs = || (0..4).filter(|n| rig.state(&format!("hers/{n}")) == "stub").count();
    wait_for("the trigger", || stubs() >= 3);
    assert_eq!(listed(&rig, "a-slow")["running"]["files"], 2, "it is at work all the time");
    assert_eq!(rig.state(&names[2]), "resident");
}

#[test]
fn a_run_is_shown_and_stopped() {
    let Some(rig) = with_policies("") else { return };
    let names = three(&rig, "d");
    let rule = format!("[policy.slow]\naction = \"migrate\"\n{SLOW}");
    reload(&rig, &rule);
    two_are_taken(&rig, &names);
    wait_for("both counted", || listed(&rig, "slow")["running"]["files"] == 2);
    let running = listed(&rig, "slow")["running"].clone();
    assert_eq!((&running["bytes"], &running["ended"]), (&json!(1 + CHUNK), &Value::Null));
    assert!(running["began"].as_i64().unwrap() > 1_700_000_000);
    let text = said(&rig.tierfs(&["policy", "list"]));
    assert!(text.contains("    at work since ") && text.contains(": 2 files, "), "{text}");
    let place = rig.mountpoint().display().to_string();
    let top = || rig.json(&["top", "--once", &place], 0).remove(0)["policies"][0].clone();
    let slow = top();
    assert_eq!(
        (&slow["name"], &slow["running"]["files"], &slow["running"]["matched"]),
        (&json!("slow"), &json!(2), &json!(3))
    );
    let text = said(&rig.tierfs(&["top", "--once", &place]));
    assert!(text.contains(" runs for ") && text.contains(" 2/3 ") && text.contains("1 of 1 run: tierfs"), "{text}");

    code(&rig.tierfs(&["policy", "stop", "slow"]), 0);
    wait_for("the end of the run", || listed(&rig, "slow")["running"].is_null());
    let last = listed(&rig, "slow")["last"].clone();
    assert_eq!((&last["stopped"], &last["files"], &last["problem"]), (&json!("asked"), &json!(2), &Value::Null));
    assert_eq!((&top()["running"], &top()["last"]["stopped"]), (&Value::Null, &json!("asked")));
    let text = said(&rig.tierfs(&["top", "--once", &place]));
    assert!(text.contains(" ended ") && text.contains("(it was stopped by hand)"), "{text}");
    let again = rig.tierfs(&["policy", "stop", "slow"]);
    code(&again, 3);
    assert!(said(&again).contains("does not run"), "{}", said(&again));

    // One that is switched off, and one that is gone, at a reload.
    for (rules, why) in [(format!("{rule}enabled = false\n"), "it was switched off"), (String::new(), "taken out")] {
        reload(&rig, &rule);
        rig.write(&names[1], CHUNK);
        set_mtime(&rig.mnt(&names[1]), 1_400_000_000, 0);
        scan(&rig);
        let run = by_hand(&rig, "slow");
        wait_for("the run", || rig.state(&names[1]) == "stub");
        wait_for("it is shown", || listed(&rig, "slow")["running"]["files"] == 1);
        reload(&rig, &rules);
        let ended = run.wait_with_output().unwrap();
        code(&ended, 3);
        assert!(said(&ended).contains(why), "{}", said(&ended));
    }
    assert_eq!(rig.state(&names[2]), "resident");
}

#[test]
fn when_a_policy_ran_is_remembered_over_a_mount() {
    let rules = "[policy.daily]\naction = \"archive\"\nmatch.paths = [\"old/**\"]\nschedule.every = \"1d\"\n\
                 [policy.soon]\naction = \"archive\"\nmatch.paths = [\"soon*\"]\nschedule.every = \"1s\"\n";
    let Some(mut rig) = with_policies("") else { return };
    fs::create_dir(rig.mnt("old")).unwrap();
    rig.write("old/a", CHUNK);
    reload(&rig, rules);
    wait_for("the first run", || rig.state("old/a") == "dual");
    wait_for("its end", || listed(&rig, "daily")["last"]["files"] == 1);
    let last = listed(&rig, "daily")["last"].clone();
    rig.write("old/b", CHUNK);
    rig.umount();
    let option = format!("policies={}", policies_file(&rig).display());
    assert!(rig.try_mount(&["-o", &option]).status.success());
    rig.write("soon", CHUNK);
    // In the order of their names: the other one was looked at before.
    wait_for("the other policy", || rig.state("soon") == "dual");
    assert_eq!(rig.state("old/b"), "resident");
    assert_eq!(listed(&rig, "daily")["last"], last);
}

#[test]
fn bytes_bound_a_run_and_pins_are_taken_back() {
    let rules = "[policy.some]\nenabled = false\naction = \"archive\"\nlimits.bytes = \"100KiB\"\n\
                 [policy.loose]\nenabled = false\naction = \"unpin\"\nmatch.paths = [\"f1\", \"f2\"]\n";
    let Some(rig) = with_policies(rules) else { return };
    let names = ["f0", "f1", "f2", "f3"];
    names.iter().for_each(|name| drop(rig.write(name, CHUNK)));
    rig.on(&["pin"], &["f0", "f1"]);
    scan(&rig);
    assert_eq!(policy_run(&rig, "loose")["files"], 1);
    let pins = names.map(|name| rig.virtual_xattr(name, "pin").unwrap());
    assert_eq!(pins, ["1", "0", "0", "0"]);
    // The file that reaches the bound is the last one.
    assert_eq!(policy_run(&rig, "some")["files"], 2);
    assert_eq!(names.iter().filter(|name| rig.state(name) == "dual").count(), 2);
}

#[test]
fn inodes_in_use_are_a_trigger() {
    let rules = "[policy.many]\naction = \"archive\"\nwhen.inodes_above = \"2%\"\nmatch.paths = [\"f\"]\nschedule.every = \"1s\"\n";
    let Some(rig) = with_policies(rules) else { return };
    rig.write("f", CHUNK);
    scan(&rig);
    assert_eq!(policy_run(&rig, "many")["files"], 0);
    assert_eq!(rig.state("f"), "resident");
    let all = rustix::fs::statvfs(rig.fs.path()).unwrap().f_files;
    let filler = rig.fs.path().join("filler");
    fs::create_dir(&filler).unwrap();
    (0..=all / 50).for_each(|n| fs::write(filler.join(n.to_string()), "").unwrap());
    wait_for("the trigger", || rig.state("f") == "dual");
}
