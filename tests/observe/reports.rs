//! `tierfs top`, `report` and `quota`: what they say is what is there.

use std::fs;

use serde_json::Value;

use crate::rig::*;

/// A mount with an index, two users' files, and one of them remote.
fn rig() -> Option<Rig> {
    let rig = Rig::new()?;
    fs::create_dir(rig.mnt("a<b")).unwrap();
    for (name, len, user) in [("a<b/hers", 3 * CHUNK, 2001), ("a<b/his", 5 * CHUNK, 2002), ("new", CHUNK, 2002)] {
        rig.write(name, len);
        std::os::unix::fs::chown(rig.mnt(name), Some(user), None).unwrap();
    }
    rig.migrate("a<b/hers");
    fs::write(rig.mnt("now"), b"now").unwrap();
    rig.json(&["index", "scan", rig.mountpoint().to_str().unwrap()], 0);
    Some(rig)
}

fn place(rig: &Rig) -> String {
    rig.mountpoint().display().to_string()
}

#[test]
fn top_shows_what_runs_and_what_there_is() {
    let Some(rig) = rig() else { return };
    rig.same("a<b/hers", &noise("a<b/hers", 3 * CHUNK));
    let figures = rig.json(&["top", "--once", &place(&rig)], 0).remove(0);
    assert_eq!(figures["archived_bytes"], 3 * CHUNK);
    assert_eq!(figures["recalled_bytes"], 3 * CHUNK);
    assert_eq!(figures["transfers"]["release"]["done"], 1);
    assert_eq!(figures["states"]["resident"]["files"], 3);
    assert!(figures["rates"]["archived"].is_number() && figures["space"]["total"].as_u64() > Some(0), "{figures}");
    let text = said(&rig.tierfs(&["top", "--once"]));
    assert!(text.contains("archived") && text.contains("STATE") && !text.contains('\u{1b}'), "{text}");
    // A recall that waits for its store is listed.
    rig.write("slow", 40 * CHUNK);
    rig.migrate("slow");
    rig.fault(tierfs::gateway::faults::Effect::Delay(std::time::Duration::from_secs(5)), "GET");
    let reading = rig.mnt("slow");
    let reader = std::thread::spawn(move || fs::read(reading).unwrap().len());
    wait_for("the recall", || {
        let figures = rig.json(&["top", "--once", &place(&rig)], 0).remove(0);
        figures["recalls"].as_array().unwrap().iter().any(|recall| recall["path"] == place(&rig) + "/slow")
    });
    rig.faults.clear();
    assert_eq!(reader.join().unwrap(), 40 * CHUNK);
}

#[test]
fn a_report_adds_up_and_its_page_stands_alone() {
    let Some(rig) = rig() else { return };
    let cells = rig.json(&["report", &place(&rig)], 0);
    let sum = |state: &str, what: &str| -> u64 {
        cells.iter().filter(|cell| cell["state"] == state).map(|cell| cell[what].as_u64().unwrap()).sum()
    };
    assert_eq!((sum("stub", "files"), sum("stub", "offline")), (1, 3 * CHUNK as u64));
    assert_eq!((sum("resident", "files"), sum("resident", "bytes")), (3, 6 * CHUNK as u64 + 3));
    let young = cells.iter().find(|cell| cell["age"] == "under a day" && cell["size"] == "under 16 KiB").unwrap();
    assert_eq!((&young["files"], &young["bytes"]), (&1.into(), &3.into()), "{cells:#?}");
    let below = rig.json(&["report", &format!("{}/a<b", place(&rig))], 0);
    assert_eq!(below.iter().map(|cell| cell["files"].as_u64().unwrap()).sum::<u64>(), 2);
    let text = said(&rig.tierfs(&["report", &place(&rig)]));
    for piece in ["LAST USED", "SIZE OF FILES", "DIRECTORY", "stub", "2002"] {
        assert!(text.contains(piece), "{piece}: {text}");
    }
    let html = rig.scratch("report.html");
    code(&rig.tierfs(&["report", "--html", html.to_str().unwrap(), &place(&rig)]), 0);
    let page = fs::read_to_string(&html).unwrap();
    assert!(page.contains("<svg ") && page.contains("a&lt;b") && !page.contains("a<b"), "{page}");
    for loads in ["http:", "https:", "<script", "src="] {
        assert!(!page.contains(loads), "{loads}");
    }
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(&html).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn quota_shows_both_here_and_remote() {
    let Some(rig) = rig() else { return };
    let users = rig.json(&["quota", &place(&rig)], 0);
    let user = |uid: u64| users.iter().find(|line| line["uid"] == uid).unwrap().clone();
    let (her, him) = (user(2001), user(2002));
    assert_eq!((&her["offline"], &her["files"]), (&(3 * CHUNK).into(), &1.into()), "{users:#?}");
    assert!(her["online"].as_u64().unwrap() < CHUNK as u64, "{her}");
    assert_eq!((&him["offline"], &him["files"]), (&0.into(), &2.into()), "{users:#?}");
    assert!(him["online"].as_u64().unwrap() >= 6 * CHUNK as u64, "{him}");
    assert_eq!(her["quota"], Value::Null, "this filesystem keeps none");
    let text = said(&rig.tierfs(&["quota", "--by", "project"]));
    assert!(text.contains("PROJECT") && text.contains("HARD"), "{text}");
}
