//! Announcements: each file that is done with or failed is told of at least once, whatever crashes, and repeats have the same id.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::rig::*;

/// A rig whose mounts announce in a file of its own; not mounted yet.
fn rig() -> Option<Rig> {
    let rig = (Setup { mounted: false, ..Setup::default() }).build()?;
    fs::create_dir(rig.scratch("told")).unwrap();
    Some(rig)
}

#[track_caller]
fn mount(rig: &mut Rig) {
    let option = format!("announce={}", rig.scratch("told/file").display());
    let output = rig.try_mount(&["-o", &option]);
    assert!(output.status.success(), "{}", said(&output));
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn told(rig: &Rig) -> Vec<Value> {
    lines(&rig.scratch("told/file"))
}

/// Events of a file in their order, each id once.
fn events(rig: &Rig, name: &str) -> Vec<String> {
    let mut seen = BTreeMap::new();
    let mut events = Vec::new();
    for line in told(rig).into_iter().filter(|line| line["path"] == name) {
        if seen.insert(line["id"].as_str().unwrap().to_owned(), ()).is_none() {
            events.push(line["event"].as_str().unwrap().to_owned());
        }
    }
    events
}

#[track_caller]
fn wait_for_events(rig: &Rig, name: &str, wanted: &[&str]) {
    let deadline = std::time::Instant::now() + SOON;
    while events(rig, name) != wanted {
        assert!(std::time::Instant::now() < deadline, "{name}: {:?}, wanted {wanted:?}", events(rig, name));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn each_end_is_told_once_while_nothing_crashes() {
    let Some(mut rig) = rig() else { return };
    mount(&mut rig);
    fs::create_dir(rig.mnt("d")).unwrap();
    for name in ["copied", "d/moved", "empty", "busy"] {
        rig.write(name, if name == "empty" { 0 } else { 3 * CHUNK });
    }
    rig.on(&["migrate", "--archive-only"], &["copied"]);
    wait_for_events(&rig, "copied", &["archived"]);
    rig.on(&["release"], &["copied"]);
    rig.migrate("d/moved");
    rig.on(&["recall"], &["d/moved"]);
    wait_for_events(&rig, "d/moved", &["migrated", "recalled"]);
    // A migration of what is open ends with the copy.
    let open = fs::File::open(rig.mnt("busy")).unwrap();
    code(&rig.try_on(&["migrate"], &["busy", "empty"]), 1);
    wait_for_events(&rig, "busy", &["archived"]);
    drop(open);
    wait_for_events(&rig, "copied", &["archived", "released"]);
    let lines = told(&rig);
    assert_eq!(lines.len(), 5, "{lines:#?}");
    let moved = lines.iter().find(|line| line["event"] == "migrated").unwrap();
    assert_eq!(
        (&moved["state"], &moved["size"], &moved["pair"]),
        (&"stub".into(), &(3 * CHUNK).into(), &"cold".into())
    );
    let key = moved["object"].as_str().unwrap().trim_start_matches("pre/").to_owned();
    assert!(rig.objects().contains(&key), "{key}");

    // A failure, and again.
    rig.stop_server();
    for _ in 0..2 {
        code(&rig.try_on(&["recall"], &["copied"]), 1);
    }
    wait_for_events(&rig, "copied", &["archived", "released", "failed", "failed"]);
    let failed: Vec<_> = told(&rig).into_iter().filter(|line| line["event"] == "failed").collect();
    assert_eq!(
        (&failed[0]["task"], &failed[0]["reason"], &failed[1]["attempts"]),
        (&"recall".into(), &"remote".into(), &2.into())
    );
    rig.start_server();

    // An end in order: nothing is told again.
    let before = told(&rig).len();
    rig.umount();
    mount(&mut rig);
    rig.on(&["recall"], &["copied"]);
    wait_for("the next line", || told(&rig).len() > before);
    assert_eq!(told(&rig).len(), before + 1);
}

#[test]
fn a_rotated_file_is_left_alone_and_a_full_one_waits() {
    let Some(mut rig) = rig() else { return };
    mount(&mut rig);
    let (file, old) = (rig.scratch("told/file"), rig.scratch("told/old"));
    for name in ["a", "b", "c"] {
        rig.write(name, CHUNK);
    }
    rig.migrate("a");
    wait_for_events(&rig, "a", &["migrated"]);
    fs::rename(&file, &old).unwrap();
    rig.migrate("b");
    wait_for_events(&rig, "b", &["migrated"]);
    assert_eq!((lines(&old).len(), lines(&file).len()), (1, 1));
    // Its place is taken: the line waits, the migration does not, and its note stays.
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    rig.migrate("c");
    wait_for("the trouble to be told", || rig.log().contains("announcements cannot be written"));
    assert_eq!(rig.info()["intents"][0], 1);
    fs::remove_dir(&file).unwrap();
    wait_for_events(&rig, "c", &["migrated"]);
    wait_for("the note's end", || rig.info()["intents"][0] == 0);
}

#[test]
fn after_a_crash_what_was_not_told_is_told_and_repeats_have_the_same_id() {
    for (point, name) in [
        ("archive.recorded", "unheard"),
        ("release.ended", "freed"),
        ("recall.recorded", "back"),
        ("note.outlived", "late"),
        ("note.told", "twice"),
    ] {
        let Some(mut rig) = rig() else { return };
        mount(&mut rig);
        rig.write(name, 3 * CHUNK);
        if point == "recall.recorded" {
            rig.migrate(name);
            wait_for_events(&rig, name, &["migrated"]);
        }
        rig.umount();
        let before = told(&rig).len();
        rig.kill_at = Some(point.into());
        mount(&mut rig);
        rig.kill_at = None;
        let daemon = rig.daemon.unwrap();
        let _ = rig.try_on(&[if point == "recall.recorded" { "recall" } else { "migrate" }], &[name]);
        wait_for("the daemon's death", || !alive(daemon));
        let at_death = told(&rig)[before..].to_vec();
        assert_eq!(at_death.len(), usize::from(point == "note.told"), "{point}: {at_death:?}");
        rig.crash();
        mount(&mut rig);
        let after = told(&rig)[before..].to_vec();
        assert!(!after.is_empty(), "{point}: nobody was told");
        let last = after.last().unwrap();
        assert_eq!((&last["event"], &last["path"]), (&"settled".into(), &name.into()), "{point}");
        assert_eq!(last["state"], rig.state(name), "{point}");
        if point == "note.told" {
            assert_eq!((after.len(), &after[0]["id"]), (2, &after[1]["id"]), "{after:?}");
            assert_eq!(after[0]["event"], "migrated");
        }
        rig.umount();
        mount(&mut rig);
        assert_eq!(told(&rig).len(), before + after.len(), "{point}: told once more");
        rig.same(name, &noise(name, 3 * CHUNK));
    }
}

#[test]
fn failures_are_told_again_after_a_crash() {
    let Some(mut rig) = rig() else { return };
    mount(&mut rig);
    rig.write("a", CHUNK);
    rig.stop_server();
    code(&rig.try_on(&["migrate"], &["a"]), 1);
    wait_for_events(&rig, "a", &["failed"]);
    rig.crash();
    rig.start_server();
    mount(&mut rig);
    wait_for("the repeat", || told(&rig).len() == 2);
    let lines = told(&rig);
    assert_eq!(lines[0]["id"], lines[1]["id"]);
}

#[test]
fn a_file_that_the_mount_would_serve_itself_is_refused() {
    let Some(mut rig) = rig() else { return };
    for path in [rig.share().join("file"), rig.mnt("file"), rig.scratch("nowhere/file"), rig.scratch("told")] {
        let refused = rig.try_mount(&["-o", &format!("announce={}", path.display())]);
        code(&refused, 3);
        assert!(said(&refused).contains("announce"), "{}", said(&refused));
    }
}
