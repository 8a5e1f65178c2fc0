//! What a rule asks of a file beyond its age and size: each takes the file that is meant, and leaves the other.

use std::fs::{self, File};

use serde_json::json;

use crate::common::run;
use crate::index::{scan, sql};
use crate::policies::{mount_with, policy_run, rule, taken, why};
use crate::rig::*;

/// Says a project below the mount, as an administrator does.
fn set_project(rig: &Rig, name: &str, project: &str, more: &[&str]) {
    let path = rig.low(name);
    run("chattr", &[&["-p", project], more, &[path.to_str().unwrap()]].concat());
}

#[test]
fn a_project_is_the_files_own_when_a_rule_acts() {
    let text = "[policy.a]\nenabled = false\naction = \"archive\"\nmatch.projects = [42]\n";
    let Some(mut rig) = (Setup { mounted: false, ..Setup::xfs() }).build() else { return };
    mount_with(&mut rig, text);
    fs::create_dir(rig.mnt("p")).unwrap();
    set_project(&rig, "p", "42", &["+P"]);
    ["p/stays", "p/moved", "other"].iter().for_each(|name| drop(rig.write(name, CHUNK)));
    scan(&rig);
    set_project(&rig, "p/moved", "43", &[]);
    let mut proposed = taken(&rig, "a");
    proposed.sort();
    assert_eq!(proposed, ["p/moved", "p/stays"], "as the scan saw it");
    for (name, project, holds) in [("p/stays", 42, true), ("p/moved", 43, false), ("other", 0, false)] {
        let why = why(&rig, name);
        let rule = rule(&why, "a");
        assert_eq!(
            (&why["project"], &rule["conditions"]),
            (&json!(project), &json!([["of project 42", holds]])),
            "{name}"
        );
    }
    assert!(rig.on(&["why"], &["p/moved"]).contains("of quota project 43"));
    assert_eq!(policy_run(&rig, "a")["files"], 1);
    assert_eq!(["p/stays", "p/moved", "other"].map(|name| rig.state(name)), ["dual", "resident", "resident"]);
}

/// Gives files of the unmounted share another time of change and of birth, which no call can set.
fn age(rig: &Rig, fields: &[(&str, &str)]) {
    let image = rig.fs.scratch().join("image");
    for (name, field) in fields {
        let command = format!("set_inode_field /share/{name} {field} @1500000000");
        let told = run("debugfs", &["-w", "-R", &command, image.to_str().unwrap()]);
        assert!(!told.contains("set_inode_field:"), "{told}");
    }
}

/// Rules, each of a file `NAME-yes` that it takes and a file `NAME-no` that it does not.
const RULES: &[(&str, &str)] = &[
    ("group", "match.groups = [777]"),
    ("unchanged", "match.unchanged_for = \"1d\""),
    ("unopened", "match.unopened_for = \"1d\""),
    ("unused", "match.unused_for = \"1d\""),
    ("seldom", "match.opened_at_most = 2"),
    ("often", "match.opened_at_least = 3"),
    ("hot", "match.hotter_than = 3.5"),
    ("cold", "match.cooler_than = 3.5"),
];

#[test]
fn each_rule_takes_the_file_that_is_meant_and_leaves_the_other() {
    let rule = |(name, condition): &(&str, &str)| {
        format!("[policy.{name}]\nenabled = false\naction = \"archive\"\nmatch.paths = [\"{name}-*\"]\n{condition}\n")
    };
    let text: String = RULES.iter().map(rule).collect();
    let Some(mut rig) = (Setup { mounted: false, ..Setup::default() }).build() else { return };
    let names = || RULES.iter().flat_map(|(name, _)| [format!("{name}-yes"), format!("{name}-no")]);
    for name in names() {
        fs::write(rig.low(&name), noise(&name, CHUNK)).unwrap();
        set_mtime(&rig.low(&name), 1_600_000_000, 0);
    }
    std::os::unix::fs::chown(rig.low("group-yes"), None, Some(777)).unwrap();
    std::os::unix::fs::chown(rig.low("group-no"), None, Some(778)).unwrap();
    rig.fs.unmount();
    age(&rig, &[("unchanged-yes", "ctime"), ("unopened-yes", "crtime"), ("unopened-no", "crtime")]);
    assert!(rig.fs.try_mount(""));
    mount_with(&mut rig, &text);
    // Uses are kept of files that the index knows.
    scan(&rig);
    for (name, times) in [
        ("unopened-no", 1),
        ("unused-no", 1),
        ("seldom-yes", 2),
        ("seldom-no", 3),
        ("often-yes", 3),
        ("often-no", 2),
        ("hot-yes", 4),
        ("hot-no", 3),
        ("cold-yes", 3),
        ("cold-no", 4),
    ] {
        // Nothing is read: what the mount knows of it, the file's own times do not tell.
        (0..times).for_each(|_| drop(File::open(rig.mnt(name)).unwrap()));
    }
    scan(&rig);
    let uses = "SELECT name, accesses FROM files WHERE name LIKE 'seldom-%' ORDER BY name";
    assert_eq!(sql(&rig, uses), [[json!("seldom-no"), json!(3)], [json!("seldom-yes"), json!(2)]]);
    for (name, _) in RULES {
        assert_eq!(policy_run(&rig, name)["files"], 1, "{name}: {}", why(&rig, &format!("{name}-no")));
        let states = ["yes", "no"].map(|which| rig.state(&format!("{name}-{which}")));
        assert_eq!(states, ["dual", "resident"], "{name}");
    }
    names().for_each(|name| rig.same(&name, &noise(&name, CHUNK)));
}
