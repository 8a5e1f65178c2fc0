//! Reports by the index: what they sum up and find is what is there.

use std::fs;

use serde_json::{Value, json};

use crate::index::scan;
use crate::rig::*;

#[track_caller]
fn rows(rig: &Rig, args: &[&str]) -> Vec<Vec<Value>> {
    let lines = rig.json(args, 0).into_iter().filter(|line| line["reply"] == "row");
    lines.map(|line| line["cells"].as_array().unwrap().clone()).collect()
}

/// A small share: stubs and others of two users in some directories, and a file with two names.
fn share() -> Option<Rig> {
    let rig = Rig::new()?;
    for dir in ["a/b", "c"] {
        fs::create_dir_all(rig.mnt(dir)).unwrap();
    }
    for (name, len, user) in
        [("top", CHUNK, 0), ("a/one", 2 * CHUNK, 1001), ("a/b/two", 4 * CHUNK, 1001), ("c/three", 8 * CHUNK, 1002)]
    {
        rig.write(name, len);
        std::os::unix::fs::chown(rig.mnt(name), Some(user), None).unwrap();
    }
    fs::hard_link(rig.mnt("c/three"), rig.mnt("c/again")).unwrap();
    rig.migrate("a/b/two");
    scan(&rig);
    Some(rig)
}

#[test]
fn sums_count_what_is_here_and_what_is_remote() {
    let Some(rig) = share() else { return };
    let mountpoint = rig.mountpoint();
    let root = mountpoint.to_str().unwrap();
    let chunks = |cell: &Value| cell.as_u64().unwrap() / CHUNK as u64;
    let sums = |args: &[&str]| -> Vec<(Value, u64, u64, Value)> {
        let mut sums: Vec<_> = rows(&rig, args)
            .into_iter()
            .map(|row| (row[0].clone(), chunks(&row[1]), chunks(&row[2]), row[3].clone()))
            .collect();
        sums.sort_by_key(|sum| sum.0.to_string());
        sums
    };
    let by_directory = sums(&["du", root]);
    assert_eq!(
        by_directory,
        [(json!(""), 1, 0, json!(1)), (json!("a"), 2, 4, json!(2)), (json!("c"), 8, 0, json!(1))],
        "two names of a file are one file"
    );
    let below = sums(&["du", &format!("{root}/a")]);
    assert_eq!(below, [(json!("a"), 2, 0, json!(1)), (json!("a/b"), 0, 4, json!(1))]);
    let by_user = sums(&["du", "--by", "user", root]);
    assert_eq!(by_user, [(json!(0), 1, 0, json!(1)), (json!(1001), 2, 4, json!(2)), (json!(1002), 8, 0, json!(1))]);
    let by_project = sums(&["du", "--by", "project", &format!("{root}/c")]);
    assert_eq!(by_project, [(json!(0), 8, 0, json!(1))]);
    let shown = said(&rig.tierfs(&["du", root]));
    assert!(shown.contains("OFFLINE") && shown.contains(&format!("{root}/a")), "{shown}");
    assert!(shown.lines().last().unwrap().ends_with("total"), "{shown}");
}

#[test]
fn files_are_found_by_what_tiering_knows_of_them() {
    let Some(rig) = share() else { return };
    let found = |dir: &str, args: &[&str]| -> Vec<String> {
        let path = rig.mnt(dir);
        let output = rig.tierfs(&[&["find", path.to_str().unwrap()], args].concat());
        code(&output, 0);
        let text = String::from_utf8(output.stdout).unwrap();
        let inside = |line: &str| line.strip_prefix(rig.mountpoint().to_str().unwrap()).unwrap().to_owned();
        let mut names: Vec<String> = text.split(['\n', '\0']).filter(|line| !line.is_empty()).map(inside).collect();
        names.sort();
        names
    };
    assert_eq!(found("", &["--state", "stub"]), ["/a/b/two"]);
    assert_eq!(found("c", &["--state", "stub"]), [""; 0]);
    assert_eq!(found("a", &[]), ["/a/b/two", "/a/one"]);
    assert_eq!(found("a", &["--larger-than", "200KiB", "-0"]), ["/a/b/two"]);
    assert_eq!(found("", &["--name", "t[ow]*", "--state", "resident", "--state", "stub"]), ["/a/b/two", "/top"]);
    assert_eq!(found("", &["--user", "1002"]).len(), 1);
    assert_eq!(found("", &["--name", "o'ne"]), [""; 0]);
    assert_eq!(found("", &["--unmodified-for", "365d", "--smaller-than", "100KiB"]), ["/top"]);
    fs::read(rig.mnt("top")).unwrap();
    fs::read(rig.mnt("top")).unwrap();
    wait_for("the opens", || {
        found("", &["--opened-at-least", "3"]) == [""; 0] && found("", &["--opened-at-least", "2"]) == ["/top"]
    });

    let listed = rows(&rig, &["ls", rig.mnt("a").to_str().unwrap()]);
    let shown: Vec<_> = listed.iter().map(|row| (&row[0], &row[1], &row[2])).collect();
    assert_eq!(
        shown,
        [(&json!("b"), &json!("d"), &json!("resident")), (&json!("one"), &json!("f"), &json!("resident"))]
    );
    let shown = said(&rig.tierfs(&["ls", rig.mnt("a/b").to_str().unwrap()]));
    assert!(shown.contains("stub") && shown.contains("two"), "{shown}");
    code(&rig.tierfs(&["find", "/"]), 3);
}
