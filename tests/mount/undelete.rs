//! `history` and `undelete`: removed files and older generations come back as they were, and what comes back stays.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::rig::*;

fn rig() -> Option<Rig> {
    Setup { retention: "1h", ..Setup::default() }.build()
}

/// What `history --json` says of a file, oldest first: state, generation and object.
fn history(rig: &Rig, name: &str) -> Vec<(String, u64, String)> {
    let told = rig.on(&["--json", "history"], &[name]);
    let lines = told.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let versions = lines.filter(|line| line["reply"] == "version");
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    versions
        .inspect(|line| assert_eq!(line["problem"], serde_json::Value::Null, "{line}"))
        .map(|line| (text(&line["standing"]), line["generation"].as_u64().unwrap(), text(&line["object"])))
        .collect()
}

fn short(key: &str) -> String {
    key.trim_start_matches("pre/").to_owned()
}

#[test]
fn a_removed_file_comes_back_and_stays() {
    let Some(mut rig) = rig() else { return };
    for (name, len) in [("small", 5_000), ("large", 12 * CHUNK + 7)] {
        let content = rig.write(name, len);
        fs::set_permissions(rig.mnt(name), fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::chown(rig.mnt(name), Some(1234), Some(4321)).unwrap();
        set_mtime(&rig.mnt(name), 1_500_000_000, 987_654_321);
        rig.migrate(name);
        let before = fs::metadata(rig.mnt(name)).unwrap();
        let key = rig.record(name).unwrap().object.unwrap().key.0;
        assert_eq!(history(&rig, name).iter().map(|v| v.0.as_str()).collect::<Vec<_>>(), ["current"]);
        fs::remove_file(rig.mnt(name)).unwrap();
        // The kernel remembers that it is not there.
        assert!(!rig.mnt(name).exists() && !fs::read_dir(rig.mnt("")).unwrap().any(|e| e.unwrap().file_name() == name));
        let versions = history(&rig, name);
        assert_eq!((versions.len(), versions[0].0.as_str(), &versions[0].2), (1, "deleted", &key));
        let said = rig.on(&["undelete"], &[name]);
        assert!(said.contains("brought back 1 file"), "{said}");
        wait_for("the kernel's new knowledge", || rig.mnt(name).exists());
        assert!(fs::read_dir(rig.mnt("")).unwrap().any(|entry| entry.unwrap().file_name() == name));
        assert_eq!(rig.state(name), "stub");
        let after = fs::metadata(rig.mnt(name)).unwrap();
        let facts = |m: &fs::Metadata| (m.mode(), m.uid(), m.gid(), m.len(), m.mtime(), m.mtime_nsec());
        assert_eq!(facts(&after), facts(&before));
        assert_eq!(rig.allocated(name) & !4095, rig.allocated(name) & 4096, "{name} is no stub");
        // No note of the removal is left that could take the object away.
        rig.expire();
        assert!(rig.objects().contains(&short(&key)));
        rig.same(name, &content);
        wait_for("the recall's end", || rig.state(name) == "dual");
        rig.on(&["verify"], &[name]);
        assert_eq!(
            fs::read_dir(rig.low(""))
                .unwrap()
                .filter(|e| { e.as_ref().unwrap().file_name().to_string_lossy().starts_with(".tierfs-undelete") })
                .count(),
            0
        );
        // Removed again, it may come back again; for good, the collector takes the object, which was made for another inode.
        fs::remove_file(rig.mnt(name)).unwrap();
        rig.on(&["undelete"], &[name]);
        rig.same(name, &content);
        fs::remove_file(rig.mnt(name)).unwrap();
        rig.expire();
        wait_for("the note's end", || history(&rig, name).is_empty());
        assert!(rig.objects().contains(&short(&key)));
        rig.on(&["gc", "--older-than", "0s"], &[""]);
        assert_eq!(history(&rig, name).len(), 1, "what the collector has noted is shown");
        rig.expire();
        wait_for("the object's end", || !rig.objects().contains(&short(&key)));
        code(&rig.try_on(&["undelete"], &[name]), 3);
    }
    rig.settled(&[]);
}

/// What a killed undelete leaves of its new file.
fn aside(rig: &Rig) -> Vec<String> {
    let names = fs::read_dir(rig.low("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(".tierfs-undelete-")).collect()
}

/// Wherever the daemon dies, the content comes back: by asking again, or from the stub that was made already.
#[test]
fn killed_at_any_step_the_content_is_kept() {
    let Some(mut rig) = rig() else { return };
    let source = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/engine/undelete.rs")).unwrap();
    let points: Vec<_> = source.split("kill::point(\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert!(points.len() >= 8, "{points:?}");
    let mut kept = Vec::new();
    for point in points {
        let content = rig.write(point, 5_000);
        rig.migrate(point);
        let key = rig.record(point).unwrap().object.unwrap().key.0;
        fs::remove_file(rig.mnt(point)).unwrap();
        assert_eq!(history(&rig, point).len(), 1);
        rig.crash();
        rig.kill_at = Some(point.to_owned());
        rig.mount();
        assert!(!rig.try_on(&["undelete"], &[point]).status.success(), "{point} was not reached");
        rig.crash();
        rig.kill_at = None;
        rig.mount();
        let left = aside(&rig);
        let stored = |name: &String| matches!(rig.record(name), Some(record) if record.object.is_some());
        match left.iter().find(|name| stored(name)) {
            _ if rig.mnt(point).exists() => assert!(left.is_empty(), "{point}: {left:?}"),
            Some(stub) => fs::rename(rig.mnt(stub), rig.mnt(point)).unwrap(),
            None => drop(rig.on(&["undelete"], &[point])),
        }
        wait_for("its name", || rig.mnt(point).exists());
        for name in aside(&rig) {
            fs::remove_file(rig.mnt(&name)).unwrap();
        }
        // Nothing that is noted by now may take the object away.
        rig.expire();
        assert!(rig.objects().contains(&short(&key)), "{point}");
        rig.same(point, &content);
        kept.push((point, content));
    }
    wait_for("the notes' end", || kept.iter().all(|(name, _)| history(&rig, name).len() == 1));
    for (name, content) in &kept {
        rig.same(name, content);
        rig.on(&["verify"], &[name]);
    }
}

#[test]
fn older_generations_come_back_beside_the_file() {
    let Some(mut rig) = rig() else { return };
    let contents: Vec<_> = (0..3)
        .map(|n| {
            let content = noise(&format!("{n}"), (n + 1) * CHUNK + n);
            fs::write(rig.mnt("f"), &content).unwrap();
            rig.migrate("f");
            content
        })
        .collect();
    let versions = history(&rig, "f");
    assert_eq!(versions.iter().map(|v| v.0.as_str()).collect::<Vec<_>>(), ["superseded", "superseded", "current"]);
    // Its place is taken.
    let refused = rig.try_on(&["undelete"], &["f"]);
    code(&refused, 3);
    assert!(said(&refused).contains("--to"), "{}", said(&refused));
    let bring = |rig: &Rig, generation: u64, to: &str| {
        let to = rig.mnt(to).display().to_string();
        rig.try_on(&["undelete", "--generation", &generation.to_string(), "--to", &to], &["f"])
    };
    code(&bring(&rig, 12345, "x"), 3);
    code(&bring(&rig, versions[2].1, "x"), 3);
    code(&bring(&rig, versions[0].1, "f"), 3);
    code(&bring(&rig, versions[0].1, "old"), 0);
    code(&bring(&rig, versions[0].1, "again"), 3);
    assert_eq!(history(&rig, "f").len(), 2, "the oldest is another file's now");
    // The current one comes and goes as ever; what was brought back stays when all notes are due.
    rig.expire();
    wait_for("the end of the second generation", || !rig.objects().contains(&short(&versions[1].2)));
    rig.same("old", &contents[0]);
    rig.same("f", &contents[2]);
    fs::write(rig.mnt("old"), b"new").unwrap();
    wait_for("the note", || history(&rig, "old").len() == 1);
    fs::remove_file(rig.mnt("f")).unwrap();
    rig.on(&["undelete"], &["f"]);
    rig.same("f", &contents[2]);
}

#[test]
fn a_removed_tree_comes_back() {
    let Some(mut rig) = rig() else { return };
    let names = ["d/a", "d/sub/b", "d/sub/deep/\u{fc} %41", "d/keep"];
    fs::create_dir_all(rig.mnt("d/sub/deep")).unwrap();
    let long = format!("d/{}", vec!["x".repeat(200); 6].join("/"));
    fs::create_dir_all(rig.mnt(&long)).unwrap();
    let long = format!("{long}/file");
    let names: Vec<&str> = names.into_iter().chain([long.as_str()]).collect();
    let contents: Vec<_> = names.iter().map(|name| rig.write(name, 3_000 + name.len())).collect();
    rig.on(&["migrate", "-r"], &["d"]);
    fs::write(rig.mnt("d/never archived"), b"x").unwrap();
    fs::remove_dir_all(rig.mnt("d")).unwrap();
    fs::create_dir(rig.mnt("d")).unwrap();
    fs::write(rig.mnt("d/keep"), b"another").unwrap();
    let said = rig.on(&["undelete", "-r"], &["d"]);
    assert!(said.contains("brought back 4 files"), "{said}");
    assert_eq!(fs::metadata(rig.mnt("d/sub")).unwrap().mode() & 0o7777, 0o700);
    rig.expire();
    for (name, content) in names.iter().zip(&contents) {
        match *name {
            "d/keep" => rig.same(name, b"another"),
            name => rig.same(name, content),
        }
    }
    let said = rig.on(&["undelete", "-r"], &["d"]);
    assert!(said.contains("brought back 0 files"), "{said}");
}

#[test]
fn what_cannot_come_back_is_refused() {
    let Some(rig) = rig() else { return };
    for name in ["open", "linked", "named"] {
        rig.write(name, CHUNK + 1);
    }
    fs::hard_link(rig.mnt("linked"), rig.mnt("link")).unwrap();
    for name in ["open", "linked", "named"] {
        rig.migrate(name);
    }
    // Somebody still reads it.
    let held = fs::File::open(rig.mnt("open")).unwrap();
    fs::remove_file(rig.mnt("open")).unwrap();
    let output = rig.try_on(&["undelete"], &["open"]);
    assert!(said(&output).contains("still has it open"), "{}", said(&output));
    code(&output, 3);
    let mut held = held;
    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut held, &mut content).unwrap();
    assert_same(&content, &noise("open", CHUNK + 1), "open");
    drop(held);
    wait_for("it is let go", || rig.try_on(&["undelete"], &["open"]).status.success());
    rig.same("open", &content);
    // One of two names leaves nothing behind.
    fs::remove_file(rig.mnt("link")).unwrap();
    code(&rig.try_on(&["undelete"], &["link"]), 3);
    // Another user.
    fs::remove_file(rig.mnt("named")).unwrap();
    for verb in ["undelete", "history"] {
        let script = format!("{} {verb} {}", env!("CARGO_BIN_EXE_tierfs"), rig.mnt("named").display());
        let output = as_nobody(Path::new("/"), &script);
        assert!(!output.status.success() && said(&output).contains("root"), "{}", said(&output));
    }
    // A directory that is gone, and what was never there.
    let to = rig.mnt("no/such/place").display().to_string();
    code(&rig.try_on(&["undelete", "--to", &to], &["named"]), 3);
    code(&rig.try_on(&["undelete"], &["never"]), 3);
    assert!(history(&rig, "never").is_empty());
    // None of it left anything behind, and the object waits.
    let names: Vec<_> = fs::read_dir(rig.low("")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().starts_with(".tierfs")), "{names:?}");
    rig.on(&["undelete"], &["named"]);
    rig.same("named", &noise("named", CHUNK + 1));
}

#[test]
fn without_retention_nothing_is_kept() {
    let Some(rig) = Rig::new() else { return };
    rig.write("f", 100);
    rig.migrate("f");
    fs::write(rig.mnt("f"), b"changed").unwrap();
    rig.settled(&["f"]);
    let output = rig.try_on(&["undelete", "--to", rig.mnt("g").to_str().unwrap()], &["f"]);
    code(&output, 3);
    assert!(said(&output).contains("nothing is kept"), "{}", said(&output));
}
