//! Reports by the index: what they sum up and find is what is there.

use std::fs;

use serde_json::{Value, json};

use crate::common::run;
use crate::index::scan;
use crate::rig::*;

#[track_caller]
fn rows(rig: &Rig, args: &[&str]) -> Vec<Vec<Value>> {
    let lines = rig.json(args, 0).into_iter().filter(|line| line["reply"] == "row");
    lines.map(|line| line["cells"].as_array().unwrap().clone()).collect()
}

/// A small share: stubs and others of some users and groups in some directories, and a file with two names.
fn share() -> Option<Rig> {
    let rig = Rig::new()?;
    for dir in ["a/b", "c"] {
        fs::create_dir_all(rig.mnt(dir)).unwrap();
    }
    for (name, len, user) in
        [("top", CHUNK, 0), ("a/one", 2 * CHUNK, 1001), ("a/b/two", 4 * CHUNK, 1001), ("c/three", 8 * CHUNK, 1002)]
    {
        rig.write(name, len);
        std::os::unix::fs::chown(rig.mnt(name), Some(user), Some(user * 2)).unwrap();
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

/// What `tierfs find` prints, sorted, from the mount point on.
#[track_caller]
fn found(rig: &Rig, dir: &str, args: &[&str]) -> Vec<String> {
    let path = rig.mnt(dir);
    let output = rig.tierfs(&[&["find", path.to_str().unwrap()], args].concat());
    code(&output, 0);
    let text = String::from_utf8(output.stdout).unwrap();
    let inside = |line: &str| line.strip_prefix(rig.mountpoint().to_str().unwrap()).unwrap().to_owned();
    let mut names: Vec<String> = text.split(['\n', '\0']).filter(|line| !line.is_empty()).map(inside).collect();
    names.sort();
    names
}

#[test]
fn files_are_found_by_what_tiering_knows_of_them() {
    let Some(rig) = share() else { return };
    let found = |dir: &str, args: &[&str]| found(&rig, dir, args);
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

#[test]
fn files_are_found_by_owner_pair_path_and_pin() {
    let Some(rig) = share() else { return };
    let found_in = |dir: &str, args: &[&str]| found(&rig, dir, args);
    let found = |args: &[&str]| found_in("", args);
    let three = found(&["--user", "1002"]);
    assert!(three == ["/c/three"] || three == ["/c/again"], "one name of the inode: {three:?}");
    assert_eq!(found(&["--user", "root"]), ["/top"]);
    assert_eq!(found(&["--user", "1001", "--user", "root"]), ["/a/b/two", "/a/one", "/top"]);
    assert_eq!(found(&["--group", "2004"]), three);
    assert_eq!(found(&["--group", "root", "--group", "2002"]), ["/a/b/two", "/a/one", "/top"]);
    assert_eq!(found(&["--group", "1001"]), [""; 0], "that is a user");
    for (flag, file) in [("--user", "/etc/passwd"), ("--group", "/etc/group")] {
        let output = rig.tierfs(&["find", rig.mountpoint().to_str().unwrap(), flag, "nobody-of-this-name"]);
        code(&output, 2);
        assert!(said(&output).contains(&format!("{file} has no")), "{}", said(&output));
    }
    assert_eq!(found(&["--project", "0"]).len(), 4);
    assert_eq!(found(&["--project", "42"]), [""; 0]);

    assert_eq!(found(&["--pair", "cold"]), ["/a/b/two"]);
    assert_eq!(found(&["--pair", "warm"]), [""; 0]);
    assert_eq!(found(&["--pair", "warm", "--pair", "cold"]), ["/a/b/two"]);

    // As `match.paths`: a star ends at a slash, and without a slash it is of a name anywhere.
    assert_eq!(found(&["--path", "a/*"]), ["/a/one"]);
    assert_eq!(found(&["--path", "/a/**"]), ["/a/b/two", "/a/one"]);
    assert_eq!(found(&["--path", "to*"]), ["/top"]);
    assert_eq!(found(&["--path", "tw*"]), ["/a/b/two"]);
    assert_eq!(found(&["--path", "b/two"]), [""; 0], "from the share's root");
    assert_eq!(found(&["--path", "**/t[ow]?", "--path", "o'ne"]), ["/a/b/two", "/top"]);
    assert_eq!(found_in("a/b", &["--path", "a/**"]), ["/a/b/two"], "from the share's root, wherever it looks");
    for (pattern, reason) in [("a[", "without"), ("../a", "from the share's root")] {
        let output = rig.tierfs(&["find", rig.mountpoint().to_str().unwrap(), "--path", pattern]);
        code(&output, 2);
        assert!(said(&output).contains(reason), "{}", said(&output));
    }

    assert_eq!(found(&["--pinned"]), [""; 0]);
    rig.on(&["pin"], &["a/one"]);
    wait_for("the pin", || found(&["--pinned"]) == ["/a/one"]);
    assert_eq!(found(&["--pinned", "--user", "root"]), [""; 0]);
}

#[test]
fn files_are_found_by_when_and_how_much_they_are_used() {
    let Some(rig) = share() else { return };
    let found = |args: &[&str]| found(&rig, "", args);
    let others: Vec<_> = found(&[]).into_iter().filter(|name| name != "/top").collect();
    assert_eq!(others.len(), 3);
    let made = || rows(&rig, &["sql", "SELECT max(btime), unixepoch() FROM files WHERE kind = 'f'"]).remove(0);
    // Opened a while after the last of them was made.
    wait_for("some seconds", || made()[1].as_i64() >= made()[0].as_i64().map(|made| made + 5));
    // Made with times of long ago, and never opened since the index is.
    assert_eq!(found(&["--unused-for", "365d"]).len(), 4);
    assert_eq!(found(&["--opened-within", "1h"]), [""; 0]);
    assert_eq!(found(&["--hotter-than", "0"]), [""; 0]);
    assert_eq!(found(&["--cooler-than", "0.5"]).len(), 4);
    fs::read(rig.mnt("top")).unwrap();
    fs::read(rig.mnt("top")).unwrap();
    wait_for("the opens", || found(&["--opened-at-least", "2"]) == ["/top"]);
    assert_eq!(found(&["--unused-for", "1h"]), others);
    assert_eq!(found(&["--opened-within", "1h"]), ["/top"]);
    assert_eq!(found(&["--opened-within", "0s"]), [""; 0]);
    assert_eq!(found(&["--unopened-for", "1h"]), [""; 0], "they were made just now");
    assert_eq!(found(&["--unopened-for", "0s"]).len(), 4);
    // For as long as they are there: the one that was opened later is too young.
    wait_for("those never opened", || {
        let [made, now] = made().try_into().unwrap();
        let age = format!("{}s", now.as_i64().unwrap() - made.as_i64().unwrap());
        found(&["--unopened-for", &age]) == others
    });
    assert_eq!(found(&["--hotter-than", "1.9"]), ["/top"]);
    assert_eq!(found(&["--hotter-than", "2"]), [""; 0]);
    assert_eq!(found(&["--cooler-than", "1.9"]), others);
    assert_eq!(found(&["--colder-than", "2.1"]).len(), 4);
    for (flag, heat) in [("--hotter-than", "inf"), ("--hotter-than", "nan"), ("--cooler-than", "warm")] {
        let output = rig.tierfs(&["find", rig.mountpoint().to_str().unwrap(), flag, heat]);
        code(&output, 2);
        assert!(said(&output).contains(flag) && said(&output).contains("a number from 0"), "{}", said(&output));
    }
}

/// XFS has project numbers without options of the mount.
#[test]
fn sums_and_finds_go_by_project() {
    let Some(rig) = Setup::xfs().build() else { return };
    fs::create_dir_all(rig.mnt("films/new")).unwrap();
    run("chattr", &["-p", "42", "+P", rig.low("films").to_str().unwrap()]);
    rig.write("top", CHUNK);
    rig.write("films/one", 2 * CHUNK);
    rig.write("films/two", 4 * CHUNK);
    // Made before: a directory of no project.
    rig.write("films/new/three", 8 * CHUNK);
    rig.migrate("films/two");
    scan(&rig);
    let root = rig.mountpoint();
    let mut sums = rows(&rig, &["du", "--by", "project", root.to_str().unwrap()]);
    sums.sort_by_key(|row| row[0].as_u64());
    // XFS may have allocated more than was written.
    let online = |at: usize| sums[at][1].as_u64().unwrap() / CHUNK as u64;
    assert!(online(0) >= 9 && (2..9).contains(&online(1)), "{sums:?}");
    let others: Vec<_> = sums.iter().map(|row| json!([row[0], row[2], row[3]])).collect();
    assert_eq!(others, [json!([0, 0, 2]), json!([42, 4 * CHUNK, 2])]);
    let shown = said(&rig.tierfs(&["du", "--by", "project", root.to_str().unwrap()]));
    assert!(shown.lines().any(|line| line.trim_end().ends_with(" 42")), "{shown}");
    assert_eq!(found(&rig, "", &["--project", "42"]), ["/films/one", "/films/two"]);
    assert_eq!(found(&rig, "", &["--project", "42", "--project", "0"]).len(), 4);
    assert_eq!(found(&rig, "", &["--project", "42", "--state", "stub"]), ["/films/two"]);
}
