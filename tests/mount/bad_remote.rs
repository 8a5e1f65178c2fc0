//! A remote that is missing, refuses or does not answer: one clear line, the right errno, nothing lost, and all well afterwards.

use std::fs;
use std::time::{Duration, Instant};

use tierfs::gateway::faults::Effect;

use crate::rig::*;

/// What a command said, which must be short and name all of `pieces`.
#[track_caller]
fn clear(output: &std::process::Output, pieces: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{}", said(output));
    for piece in pieces {
        assert!(text.contains(piece), "{piece:?} is not in: {text}");
    }
    let line = text.lines().find(|line| line.contains(pieces[0])).unwrap();
    assert!(line.len() < 600, "a long line: {line}");
    assert!(!said(output).contains("testsecret"), "a secret is told: {text}");
}

#[test]
fn a_missing_bucket_is_named_and_costs_nothing() {
    let Some(mut rig) = (Setup { make_buckets: false, ..Setup::default() }).build() else { return };
    // Kept from the start by a pair that is tried.
    let local = format!("east:{}", rig.share().display());
    let endpoint = rig.endpoint();
    let args =
        ["pair", "add", "other", "--force", "--local", &local, "--remote", "west:s3://gone", "--endpoint", &endpoint];
    let output = rig.tierfs(&args);
    code(&output, 3);
    clear(&output, &["gone", "bucket"]);
    let content = rig.write("a", 3 * CHUNK);
    let output = rig.try_on(&["migrate"], &["a"]);
    clear(&output, &["cold", "bucket"]);
    assert_eq!(set_xattr(&rig.mnt("a"), "user.tierfs.migrate", b"1"), Err(libc::EREMOTEIO));
    assert_eq!(rig.state("a"), "resident");
    rig.same("a", &content);
    // Somebody makes the bucket, and takes it away again while it is needed.
    rig.stop_server();
    fs::create_dir_all(rig.scratch("objects/cold/objects")).unwrap();
    fs::create_dir_all(rig.scratch("objects/cold/uploads")).unwrap();
    rig.start_server();
    rig.migrate("a");
    rig.stop_server();
    fs::rename(rig.scratch("objects/cold"), rig.scratch("objects/hidden")).unwrap();
    rig.start_server();
    assert_eq!(errno(fs::read(rig.mnt("a"))), Some(libc::EREMOTEIO));
    let output = rig.try_on(&["recall"], &["a"]);
    clear(&output, &["cold", "bucket"]);
    assert_eq!(rig.state("a"), "stub");
    rig.stop_server();
    fs::rename(rig.scratch("objects/hidden"), rig.scratch("objects/cold")).unwrap();
    rig.start_server();
    rig.same("a", &content);
}

#[test]
fn wrong_credentials_are_told_and_cost_nothing() {
    let Some(mut rig) = Rig::new() else { return };
    let content = rig.write("stub", 3 * CHUNK);
    let other = rig.write("resident", CHUNK);
    rig.migrate("stub");
    rig.umount();
    rig.secret = "wrong";
    rig.mount();
    assert_eq!(errno(fs::read(rig.mnt("stub"))), Some(libc::EREMOTEIO));
    let output = rig.try_on(&["recall"], &["stub"]);
    clear(&output, &["credentials", "cold"]);
    let output = rig.try_on(&["migrate"], &["resident"]);
    clear(&output, &["credentials", "cold"]);
    assert_eq!((rig.state("stub").as_str(), rig.state("resident").as_str()), ("stub", "resident"));
    rig.same("resident", &other);
    assert!(!rig.log().contains("testsecret") && !rig.log().contains("wrong"), "the log holds a secret");
    rig.umount();
    rig.secret = SECRET_KEY;
    rig.mount();
    rig.same("stub", &content);
    rig.migrate("resident");
    rig.same("resident", &other);
    rig.settled(&["stub", "resident"]);
}

#[test]
fn an_endpoint_that_is_down_is_waited_for_shortly_and_found_again() {
    let Some(mut rig) = Rig::new() else { return };
    let content = rig.write("small", 3 * CHUNK);
    let large = rig.write("large", 40 * CHUNK);
    let other = rig.write("resident", CHUNK);
    rig.on(&["migrate"], &["small", "large"]);
    rig.stop_server();
    for name in ["small", "large"] {
        let begun = Instant::now();
        assert_eq!(errno(fs::read(rig.mnt(name))), Some(libc::ETIMEDOUT));
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        assert_eq!(rig.state(name), "stub");
    }
    let endpoint = rig.endpoint();
    clear(&rig.try_on(&["recall"], &["small"]), &[&endpoint, "cold"]);
    clear(&rig.try_on(&["migrate"], &["resident"]), &[&endpoint, "cold"]);
    rig.same("resident", &other);
    // A restart does not need the endpoint.
    rig.umount();
    rig.mount();
    assert_eq!(errno(fs::read(rig.mnt("small"))), Some(libc::ETIMEDOUT));
    // Removing needs no endpoint either; the object goes later.
    fs::remove_file(rig.mnt("large")).unwrap();
    rig.start_server();
    rig.same("small", &content);
    rig.migrate("resident");
    let _ = large;
    rig.settled(&["small", "resident"]);
}

#[test]
fn uploads_that_fail_on_the_way_leave_neither_claims_nor_objects() {
    let Some(rig) = Rig::new() else { return };
    rig.quiet();
    for (name, len) in [("small", 1000), ("large", 17 << 20)] {
        let content = rig.write(name, len);
        for effect in [Effect::CutUpload { after: 300 }, Effect::CorruptUpload { at: 17 }, Effect::InternalError] {
            let rule = rig.fault(effect, "PUT");
            let output = rig.try_on(&["migrate"], &[name]);
            code(&output, 1);
            assert!(rig.faults.hits(rule) > 0, "{effect:?} was not met");
            rig.faults.clear();
            assert_eq!(rig.state(name), "resident", "{effect:?}");
            rig.same(name, &content);
        }
        // Done, but the answer is lost: the retry must not lose the copy it finds, nor leave one behind.
        rig.faults.add(tierfs::gateway::faults::Rule::new(Effect::LostReply).method("PUT").times(1));
        rig.migrate(name);
        rig.same(name, &content);
    }
    rig.settled(&["small", "large"]);
}

#[test]
fn a_missing_object_is_an_error_of_that_file_only() {
    let Some(mut rig) = Rig::new() else { return };
    rig.write("a", 1000);
    let other = rig.write("b", 1000);
    rig.on(&["migrate"], &["a", "b"]);
    // Both are there; one object's files go.
    let key = rig.record("a").unwrap().object.unwrap().key;
    rig.stop_server();
    rig.remove_object(&key.0);
    rig.start_server();
    assert_eq!(errno(fs::read(rig.mnt("a"))), Some(libc::EIO));
    clear(&rig.try_on(&["recall"], &["a"]), &["a"]);
    assert_eq!(rig.state("a"), "stub");
    rig.same("b", &other);
    // A dual file whose object is gone is not released.
    rig.on(&["recall"], &["b"]);
    let key = rig.record("b").unwrap().object.unwrap().key;
    rig.stop_server();
    rig.remove_object(&key.0);
    rig.start_server();
    code(&rig.try_on(&["release"], &["b"]), 1);
    rig.same("b", &other);
    assert_eq!(rig.state("b"), "dual");
}
