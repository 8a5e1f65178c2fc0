//! Policies act on what they should and on nothing else, and `why` says so.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tierfs::gateway::faults::Effect;

use crate::index::{scan, sql};
use crate::rig::*;

/// A rig that is mounted with these policies.
pub fn with_policies(text: &str) -> Option<Rig> {
    let mut rig = (Setup { mounted: false, ..Setup::default() }).build()?;
    mount_with(&mut rig, text);
    Some(rig)
}

/// Mounts with these policies.
#[track_caller]
pub fn mount_with(rig: &mut Rig, text: &str) {
    let file = rig.scratch("policies.toml");
    fs::write(&file, text).unwrap();
    let option = format!("policies={}", file.display());
    let output = rig.try_mount(&["-o", &option]);
    assert!(output.status.success(), "{}", said(&output));
}

/// What the mount says of a file.
#[track_caller]
pub fn why(rig: &Rig, name: &str) -> Value {
    rig.json(&["why", rig.mnt(name).to_str().unwrap()], 0).remove(0)
}

pub fn rule<'a>(why: &'a Value, name: &str) -> &'a Value {
    why["rules"].as_array().unwrap().iter().find(|rule| rule["name"] == name).unwrap()
}

pub fn policy_run(rig: &Rig, name: &str) -> Value {
    rig.json(&["policy", "run", name], 0).pop().unwrap()
}

pub fn taken(rig: &Rig, name: &str) -> Vec<String> {
    let lines = rig.json(&["policy", "dry-run", name], 0);
    let files = lines.iter().filter(|line| line["reply"] == "candidate");
    let mountpoint = rig.mountpoint();
    let inside = |path: &str| Path::new(path).strip_prefix(&mountpoint).unwrap().display().to_string();
    files.map(|line| inside(line["path"].as_str().unwrap())).collect()
}

const OFF: &str = "enabled = false\n";

#[test]
fn a_policy_takes_what_matches_in_its_order() {
    let text = format!(
        "[policy.films]\n{OFF}action = \"migrate\"\norder = \"largest\"\n\
         match.paths = [\"films/**\"]\nmatch.not_paths = [\"**/keep/**\"]\nmatch.extensions = [\"exr\"]\n\
         match.unmodified_for = \"30d\"\nmatch.larger_than = \"1KiB\"\nmatch.users = [0]\n\
         [policy.marked]\n{OFF}action = \"archive\"\nmatch.xattrs = {{ \"user.class\" = \"arch*\" }}\n\
         [policy.two]\n{OFF}action = \"release\"\nmatch.paths = [\"dual-*\"]\nlimits.files = 2\norder = \"oldest\"\n"
    );
    let Some(rig) = with_policies(&text) else { return };
    for dir in ["films/keep", "other"] {
        fs::create_dir_all(rig.mnt(dir)).unwrap();
    }
    for (name, len) in [
        ("films/small.exr", 3 * CHUNK),
        ("films/big.EXR", 5 * CHUNK),
        ("films/keep/kept.exr", CHUNK),
        ("films/tiny.exr", 100),
        ("films/new.exr", CHUNK),
        ("films/other.tif", CHUNK),
        ("films/hers.exr", CHUNK),
        ("films/pinned.exr", CHUNK),
        ("other/a.exr", CHUNK),
        ("marked", CHUNK),
        ("unmarked", CHUNK),
    ] {
        rig.write(name, len);
    }
    fs::write(rig.mnt("films/new.exr"), noise("new", CHUNK)).unwrap();
    std::os::unix::fs::chown(rig.mnt("films/hers.exr"), Some(1234), None).unwrap();
    rig.on(&["pin"], &["films/pinned.exr"]);
    set_xattr(&rig.mnt("marked"), "user.class", b"archived").unwrap();
    set_xattr(&rig.mnt("unmarked"), "user.class", b"hot").unwrap();
    code(&rig.tierfs(&["policy", "dry-run", "films"]), 3);
    scan(&rig);
    assert_eq!(taken(&rig, "films"), ["films/big.EXR", "films/small.exr"]);
    assert_eq!(rig.state("films/big.EXR"), "resident", "a dry run does nothing");

    let before = why(&rig, "films/small.exr");
    assert_eq!(rule(&before, "films")["against"]["reason"], "disabled");
    let hers = why(&rig, "films/hers.exr");
    let conditions = rule(&hers, "films")["conditions"].as_array().unwrap().clone();
    let failing: Vec<_> = conditions.iter().filter(|condition| condition[1] == false).collect();
    assert_eq!(failing, [&json!(["owned by 0", false])]);
    let pinned = why(&rig, "films/pinned.exr");
    assert_eq!(rule(&pinned, "films")["against"]["text"], "it is pinned");
    assert_eq!(pinned["against"][0]["reason"], "pinned", "{pinned}");

    assert_eq!(policy_run(&rig, "films")["files"], 2);
    for name in ["films/small.exr", "films/big.EXR"] {
        assert_eq!(rig.state(name), "stub", "{name}");
    }
    for name in
        ["films/keep/kept.exr", "films/tiny.exr", "films/new.exr", "films/other.tif", "films/hers.exr", "other/a.exr"]
    {
        assert_eq!(rig.state(name), "resident", "{name}");
    }
    assert_eq!(policy_run(&rig, "films")["files"], 0);
    let after = why(&rig, "films/small.exr");
    assert_eq!(rule(&after, "films")["against"]["text"], "it is stub: nothing to migrate");
    assert!(rule(&after, "films")["last_run"].as_i64().unwrap() > 1_700_000_000);

    assert_eq!(policy_run(&rig, "marked")["files"], 1);
    assert_eq!((rig.state("marked").as_str(), rig.state("unmarked").as_str()), ("dual", "resident"));

    for n in 0..4 {
        let name = format!("dual-{n}");
        rig.write(&name, CHUNK);
        set_mtime(&rig.mnt(&name), 1_500_000_000 + n * 1000, 0);
        rig.on(&["migrate", "--archive-only"], &[&name]);
    }
    assert_eq!(policy_run(&rig, "two")["files"], 2, "its limit");
    let states: Vec<_> = (0..4).map(|n| rig.state(&format!("dual-{n}"))).collect();
    assert_eq!(states, ["stub", "stub", "dual", "dual"], "the oldest first");
    rig.same("films/small.exr", &noise("films/small.exr", 3 * CHUNK));
    // The one that was read is dual, and could be released again.
    wait_for("the match", || {
        let explained = rig.json(&["policy", "explain", "films"], 0).remove(0);
        explained["matches"] == json!([1, 3 * CHUNK])
    });
}

#[test]
fn a_policy_runs_by_itself_and_recalls_too() {
    let text = "[policy.rest]\naction = \"archive\"\nmatch.unmodified_for = \"1d\"\nmatch.paths = [\"old/**\"]\nschedule.every = \"1s\"\n\
                [policy.back]\naction = \"recall\"\nmatch.paths = [\"wanted*\"]\nschedule.every = \"1s\"\n\
                [policy.never]\naction = \"migrate\"\nwhen.space_above = \"99%\"\nschedule.every = \"1s\"\n";
    let Some(rig) = with_policies(text) else { return };
    fs::create_dir(rig.mnt("old")).unwrap();
    rig.write("old/a", CHUNK);
    rig.write("elsewhere", CHUNK);
    wait_for("the archive", || rig.state("old/a") == "dual");
    rig.write("soon", 2 * CHUNK);
    rig.migrate("soon");
    fs::rename(rig.mnt("soon"), rig.mnt("wanted")).unwrap();
    wait_for("the recall", || rig.state("wanted") == "dual");
    wait_for("who had it recalled", || {
        sql(&rig, "SELECT recalled_by FROM files WHERE name = 'wanted'") == [[json!("policy back")]]
    });
    assert_eq!(why(&rig, "wanted")["recalled_by"], "policy back");
    assert_eq!(rig.state("elsewhere"), "resident");
    let list = rig.json(&["policy", "list"], 0);
    let never = list.iter().find(|line| line["name"] == "never").unwrap();
    assert_eq!(
        (&never["last"]["files"], &never["last"]["matched"]),
        (&json!(0), &json!(0)),
        "its trigger does not apply"
    );
    rig.same("wanted", &noise("soon", 2 * CHUNK));
}

#[test]
fn a_user_over_his_bound_is_brought_below_it() {
    let text = format!("[policy.bound]\n{OFF}action = \"migrate\"\nwhen.user_above = \"300KiB\"\norder = \"oldest\"\n");
    let Some(rig) = with_policies(&text) else { return };
    for (user, count) in [(1001, 8), (1002, 3)] {
        for n in 0..count {
            let name = format!("u{user}-{n}");
            rig.write(&name, CHUNK);
            std::os::unix::fs::chown(rig.mnt(&name), Some(user), None).unwrap();
            set_mtime(&rig.mnt(&name), 1_500_000_000 + n * 1000, 0);
        }
    }
    scan(&rig);
    // Eight times 64 KiB: 212 KiB too much, which is four files.
    let run = policy_run(&rig, "bound");
    assert_eq!(run["files"], 4, "{run}");
    let stubs = sql(&rig, "SELECT name FROM files WHERE state = 'stub' ORDER BY name");
    assert_eq!(stubs, [[json!("u1001-0")], [json!("u1001-1")], [json!("u1001-2")], [json!("u1001-3")]]);
    assert_eq!(policy_run(&rig, "bound")["files"], 0);
}

#[test]
fn failures_of_one_kind_end_a_run() {
    let text = format!("[policy.all]\n{OFF}action = \"release\"\nlimits = {{ errors = 3, at_once = 1 }}\n");
    let Some(mut rig) = with_policies(&text) else { return };
    let names: Vec<String> = (0..12).map(|n| format!("f{n}")).collect();
    for name in &names {
        rig.write(name, 200);
        rig.on(&["migrate", "--archive-only"], &[name]);
    }
    scan(&rig);
    rig.stop_server();
    for name in &names {
        rig.remove_object(&rig.record(name).unwrap().object.unwrap().key.0);
    }
    rig.start_server();
    let ended = rig.tierfs(&["policy", "run", "all"]);
    code(&ended, 3);
    assert!(said(&ended).contains("3 failures of one kind (missing)"), "{}", said(&ended));
    let list = rig.json(&["policy", "list"], 0).remove(0);
    let failed = list["last"]["failed"].as_u64().unwrap();
    assert!((3..=5).contains(&failed), "{list}");
    assert!(names.iter().all(|name| rig.state(name) == "dual"));
    // What failed is on the list, and is left for a while.
    assert_eq!(
        rig.json(&["failed", "list"], 0).iter().filter(|line| line["reply"] == "dead_letter").count() as u64,
        failed
    );
}

#[test]
fn a_bad_file_is_refused_with_its_line_and_a_better_one_is_taken() {
    let Some(mut rig) = with_policies("[policy.a]\nenabled = false\naction = \"pin\"\n") else { return };
    let file = rig.scratch("policies.toml");
    fs::write(&file, "[policy.a]\naction = \"pin\"\nmatch.larger_than = \"huge\"\n").unwrap();
    for args in [&["policy", "reload"][..], &["policy", "check", file.to_str().unwrap()]] {
        let refused = rig.tierfs(args);
        code(&refused, 3);
        assert!(said(&refused).contains("line 3: \"huge\" is not a size"), "{}", said(&refused));
    }
    assert_eq!(rig.json(&["policy", "list"], 0)[0]["enabled"], false, "the old ones are in force");
    rig.umount();
    let option = format!("policies={}", file.display());
    let refused = rig.try_mount(&["-o", &option]);
    code(&refused, 3);
    assert!(said(&refused).contains("line 3"), "{}", said(&refused));
    fs::write(&file, "[policy.b]\nenabled = false\naction = \"unpin\"\n").unwrap();
    assert!(rig.try_mount(&["-o", &option]).status.success());
    fs::write(&file, "[policy.c]\nenabled = false\naction = \"unpin\"\n").unwrap();
    code(&rig.tierfs(&["policy", "reload"]), 0);
    assert_eq!(rig.json(&["policy", "list"], 0)[0]["name"], "c");
    code(&rig.tierfs(&["policy", "run", "b"]), 3);
}

#[test]
fn why_says_when_and_what_stands_in_the_way() {
    let text = "[policy.soon]\naction = \"archive\"\nmatch.paths = [\"rests\"]\nschedule.every = \"9h\"\n\
                [policy.room]\naction = \"migrate\"\nwhen.space_above = \"99%\"\nschedule.every = \"9h\"\n";
    let Some(mut rig) = with_policies(text) else { return };
    wait_for("the first runs", || rig.json(&["policy", "list"], 0).iter().take(2).all(|line| !line["last"].is_null()));
    rig.write("rests", CHUNK);
    fs::write(rig.mnt("empty"), b"").unwrap();
    rig.write("poisoned", CHUNK);
    let words = |why: &Value| -> Vec<String> {
        let against = why["against"].as_array().unwrap().iter();
        against.map(|reason| reason["reason"].as_str().unwrap().to_owned()).collect()
    };
    let rests = why(&rig, "rests");
    let soon = &rule(&rests, "soon")["next"];
    let began =
        rig.json(&["policy", "list"], 0).iter().find(|line| line["name"] == "soon").unwrap()["last"]["began"].clone();
    assert_eq!((&soon["reason"], soon["at"].as_i64()), (&json!("interval"), Some(began.as_i64().unwrap() + 9 * 3_600)));
    let room = &rule(&rests, "room")["next"];
    assert!(room["text"].as_str().unwrap().contains("more than 99% of the space is in use (now "), "{room}");
    assert_eq!(words(&why(&rig, "empty")), ["empty"]);

    let held = fs::File::open(rig.mnt("rests")).unwrap();
    let open = why(&rig, "rests");
    assert_eq!((words(&open), &rule(&open, "room")["against"]["reason"]), (vec!["open".to_owned()], &json!("open")));
    assert_eq!(rule(&open, "soon")["applies"], true, "what is read can be archived");
    drop(held);

    rig.fault(Effect::InternalError, "PUT");
    code(&rig.try_on(&["migrate"], &["poisoned"]), 1);
    let poisoned = why(&rig, "poisoned");
    let entry = &poisoned["against"][0];
    assert!(
        entry["reason"] == "failed" && entry["text"].as_str().unwrap().contains("migrate failed, 1 so far"),
        "{entry}"
    );
    let put_off = &rule(&poisoned, "room")["against"];
    assert_eq!((&put_off["reason"], &put_off["at"]), (&json!("failed"), &entry["at"]), "{put_off}");
    assert_eq!(rule(&poisoned, "soon")["against"], Value::Null, "what failed was no archive");
    assert!(rig.on(&["why"], &["poisoned"]).contains("policies try again from"));

    // An outage: the task waits, and so does its file.
    rig.stop_server();
    rig.json(&["tasks", "add", "migrate", rig.mnt("rests").to_str().unwrap()], 0);
    wait_for("the file in the queue", || words(&why(&rig, "rests")).contains(&"queued".to_owned()));
}

/// What the mount says it does with a file by one of its options.
fn work(why: &Value, option: &str) -> Value {
    why["background"].as_array().unwrap().iter().find(|work| work["option"] == option).unwrap().clone()
}

fn work_against(rig: &Rig, name: &str, option: &str) -> Value {
    work(&why(rig, name), option)["against"]["reason"].clone()
}

#[test]
fn why_tells_of_what_the_mount_does_beside_policies() {
    let Some(mut rig) = (Setup { mounted: false, ..Setup::default() }).build() else { return };
    for name in ["first", "retained", "pinned", "stub"] {
        fs::write(rig.low(name), noise(name, CHUNK)).unwrap();
        set_mtime(&rig.low(name), 1_500_000_000, 0);
    }
    assert!(rig.try_mount(&["-o", "archive_after=1h,release_above=99%"]).status.success());
    for name in ["first", "retained", "pinned", "stub"] {
        wait_for("the first look at the share", || rig.state(name) == "dual");
    }
    rig.on(&["set", "--retain", "on"], &["retained"]);
    rig.on(&["pin"], &["pinned"]);
    rig.on(&["release"], &["stub"]);
    fs::write(rig.mnt("young"), noise("young", CHUNK)).unwrap();
    rig.write("empty", 0);
    // The next look is a minute after the first.
    rig.write("old", CHUNK);
    let of = |name: &str, option: &str| work(&why(&rig, name), option);
    let against = |name, option| work_against(&rig, name, option);

    let old = of("old", "archive_after");
    assert_eq!((&old["value"], &old["applies"], &old["against"]), (&json!("1h"), &json!(true), &Value::Null));
    assert_eq!((&old["next"]["reason"], &old["action"]), (&json!("due"), &json!("archive")));
    let young = of("young", "archive_after");
    let until = fs::metadata(rig.low("young")).unwrap().modified().unwrap();
    let until = until.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 3_600;
    assert_eq!((&young["applies"], &young["against"]["reason"]), (&json!(false), &json!("age")));
    assert_eq!(young["against"]["at"], until, "{young}");
    assert_eq!(young["against"]["text"], "its content has not been unchanged for 1h");
    assert_eq!([against("empty", "archive_after"), against("first", "archive_after")], ["empty", "state"]);

    let first = of("first", "release_above");
    assert_eq!((&first["applies"], &first["next"]["reason"]), (&json!(true), &json!("space")), "{first}");
    assert_eq!(first["value"], "99%, down to 89%");
    assert!(first["next"]["text"].as_str().unwrap().starts_with("when more than 99% of the space is in use (now "));
    for (name, word) in [("retained", "retained"), ("pinned", "pinned"), ("stub", "state"), ("empty", "empty")] {
        for option in ["release_above", "space_reserve"] {
            assert_eq!(against(name, option), word, "{name} and {option}");
        }
    }
    let kept = fs::File::open(rig.mnt("first")).unwrap();
    assert_eq!(against("first", "release_above"), "open");
    drop(kept);
    let reserve = of("first", "space_reserve");
    assert_eq!((&reserve["value"], &reserve["applies"]), (&json!("1%, at most 1GiB"), &json!(true)));
    let text = rig.on(&["why"], &["young"]);
    for piece in
        ["archive_after 1h (archive): no: its content", "release_above 99%, down to 89% (release): no: it is resident"]
    {
        assert!(text.contains(piece), "{piece}: {text}");
    }

    rig.umount();
    rig.mount();
    for option in ["archive_after", "release_above"] {
        assert_eq!(work_against(&rig, "first", option), "off");
    }
    assert!(rig.on(&["why"], &["old"]).contains("off: archive_after, release_above"));
}

#[test]
fn a_share_without_quotas_says_so_to_a_rule_that_goes_by_them() {
    let by_quota =
        format!("{OFF}action = \"release\"\nwhen = {{ user_quota_above = \"80%\", user_quota_below = \"50%\" }}\n");
    let more = format!("{OFF}action = \"archive\"\nwhen = {{ user_quota_above = \"80%\", user_above = \"1KiB\" }}\n");
    let Some(rig) = with_policies(&format!("[policy.quota]\n{by_quota}[policy.more]\n{more}")) else { return };
    rig.write("a", CHUNK);
    scan(&rig);
    let run = rig.tierfs(&["policy", "run", "quota"]);
    code(&run, 3);
    assert!(
        said(&run).contains("policy quota: the share's filesystem keeps no quotas of users: mount it with usrquota")
    );
    let listed = rig.json(&["policy", "list"], 0);
    let quota = listed.iter().find(|line| line["name"] == "quota").unwrap();
    assert_eq!(quota["trigger"], "a user with over 80% of the quota in use, down to 50%");
    assert!(quota["last"]["problem"].as_str().unwrap().contains("no quotas"), "{quota}");
    assert_eq!(policy_run(&rig, "more")["files"], 1, "another trigger does without");
}
