//! People's tools against a share. Those that are missing are said, and are a failure in CI.

use std::fs;
use std::process::{Command, Output};

use crate::place::{BUCKET, Place};
use crate::rig::{noise, said};

/// Whether a program works here.
fn have(program: &str) -> bool {
    if Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success()) {
        return true;
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{program} is missing: scripts/install-deps.sh test");
    eprintln!("SKIPPED: {program} is missing: scripts/install-deps.sh test");
    false
}

/// A directory of files as people have them.
fn tree(place: &Place) -> std::path::PathBuf {
    let dir = place.rig.scratch("tree");
    for (name, len) in [("a.txt", 10), ("sub/b c", 70_000), ("sub/deep/ü", 1), ("empty", 0), ("big", 20 << 20)] {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, noise(name, len)).unwrap();
    }
    dir
}

#[track_caller]
fn same(a: &std::path::Path, b: &std::path::Path) {
    let output = Command::new("diff").arg("-r").args([a, b]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

#[track_caller]
fn well(output: &Output) -> String {
    assert!(output.status.success(), "{}", said(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_aws_command_line() {
    let Some(place) = Place::alone() else { return };
    if !have("aws") {
        return;
    }
    let aws = |args: &[&str]| {
        let mut aws = Command::new("aws");
        aws.args(["--endpoint-url", &place.endpoint, "--region", "us-east-1"]).args(args);
        place.rig.dress(&mut aws);
        aws.env("AWS_ACCESS_KEY_ID", "alice")
            .env("AWS_SECRET_ACCESS_KEY", "alicesecret")
            .env("PYENV_ROOT", "/root/.pyenv")
            .env("AWS_PAGER", "");
        aws.output().unwrap()
    };
    let (dir, back) = (tree(&place), place.rig.scratch("back"));
    let (dir_name, back_name) = (dir.to_str().unwrap(), back.to_str().unwrap());
    let there = format!("s3://{BUCKET}/alice/tree");
    well(&aws(&["s3", "sync", dir_name, &there]));
    same(&dir, &place.rig.low("alice/tree"));
    let listed = well(&aws(&["s3", "ls", "--recursive", &format!("s3://{BUCKET}/alice/")]));
    assert_eq!(listed.lines().count(), 5, "{listed}");
    assert!(well(&aws(&["s3", "ls", &format!("s3://{BUCKET}")])).contains("PRE alice/"));
    // Nothing is to be done twice.
    assert_eq!(well(&aws(&["s3", "sync", dir_name, &there])), "");
    well(&aws(&["s3", "sync", &there, back_name]));
    same(&dir, &back);
    well(&aws(&["s3", "mv", &format!("{there}/big"), &format!("{there}/moved/big")]));
    assert!(place.rig.low("alice/tree/moved/big").exists() && !place.rig.low("alice/tree/big").exists());
    let api = ["s3api", "get-object", "--bucket", BUCKET, "--key", "alice/tree/moved/big", "--range", "bytes=100-199"];
    well(&aws(&[&api[..], &[back.join("range").to_str().unwrap()]].concat()));
    assert_eq!(fs::read(back.join("range")).unwrap(), noise("big", 20 << 20)[100..200]);
    assert!(!aws(&["s3", "cp", dir.join("a.txt").to_str().unwrap(), &format!("s3://{BUCKET}/bob/x")]).status.success());
    well(&aws(&["s3", "rm", "--recursive", &there]));
    assert!(!place.rig.low("alice/tree").exists());
}

#[test]
fn s3cmd() {
    let Some(place) = Place::alone() else { return };
    if !have("s3cmd") {
        return;
    }
    let config = place.rig.scratch("s3cfg");
    let host = place.addr();
    fs::write(
        &config,
        format!(
            "[default]\naccess_key = alice\nsecret_key = alicesecret\nhost_base = {host}\nhost_bucket = {host}/%(bucket)\n\
             use_https = False\nsignature_v2 = False\n"
        ),
    )
    .unwrap();
    let s3cmd = |args: &[&str]| {
        let mut s3cmd = Command::new("s3cmd");
        s3cmd.arg("-c").arg(&config).args(["--no-progress", "--multipart-chunk-size-mb=5"]).args(args);
        place.rig.dress(&mut s3cmd);
        s3cmd.output().unwrap()
    };
    let (dir, back) = (tree(&place), place.rig.scratch("back"));
    fs::create_dir(&back).unwrap();
    let from = format!("{}/", dir.display());
    let there = format!("s3://{BUCKET}/alice/tree/");
    well(&s3cmd(&["sync", &from, &there]));
    same(&dir, &place.rig.low("alice/tree"));
    assert_eq!(well(&s3cmd(&["ls", "-r", &there])).lines().count(), 5);
    well(&s3cmd(&["sync", &there, &format!("{}/", back.display())]));
    same(&dir, &back);
    well(&s3cmd(&["mv", &format!("{there}a.txt"), &format!("{there}new/b.txt")]));
    assert!(place.rig.low("alice/tree/new/b.txt").exists());
    assert!(well(&s3cmd(&["info", &format!("{there}new/b.txt")])).contains("MD5"));
    assert!(!s3cmd(&["put", dir.join("a.txt").to_str().unwrap(), &format!("s3://{BUCKET}/bob/x")]).status.success());
    well(&s3cmd(&["del", "-r", "-f", &there]));
    assert!(!place.rig.low("alice/tree").exists());
}

#[test]
fn rclone() {
    let Some(place) = Place::alone() else { return };
    if !have("rclone") {
        return;
    }
    let rclone = |args: &[&str]| {
        let mut rclone = Command::new("rclone");
        rclone.args(["--config", "/dev/null", "--s3-provider", "Other", "--s3-endpoint", &place.endpoint]);
        rclone.args(["--s3-access-key-id", "alice", "--s3-secret-access-key", "alicesecret", "--retries", "1"]);
        rclone.args(["--s3-upload-cutoff", "6Mi", "--s3-chunk-size", "5Mi", "--s3-no-check-bucket"]).args(args);
        place.rig.dress(&mut rclone);
        rclone.output().unwrap()
    };
    let (dir, back) = (tree(&place), place.rig.scratch("back"));
    let (dir_name, there) = (dir.to_str().unwrap(), format!(":s3:{BUCKET}/alice/tree"));
    well(&rclone(&["sync", dir_name, &there]));
    same(&dir, &place.rig.low("alice/tree"));
    well(&rclone(&["check", "--download", dir_name, &there]));
    well(&rclone(&["check", dir_name, &there]));
    well(&rclone(&["copy", &there, back.to_str().unwrap()]));
    same(&dir, &back);
    well(&rclone(&["moveto", &format!("{there}/sub"), &format!("{there}/other/place")]));
    assert!(place.rig.low("alice/tree/other/place/deep/ü").exists() && !place.rig.low("alice/tree/sub").exists());
    assert!(!rclone(&["copy", dir_name, &format!(":s3:{BUCKET}/bob")]).status.success());
    well(&rclone(&["purge", &there]));
    assert!(!place.rig.low("alice/tree").exists());
}
