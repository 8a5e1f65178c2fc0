//! What is about all of a bucket, with two pairs: `gc`, records that are lost, names, and the rebuild from both.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::Value;
use tierfs::gateway::faults::{Effect, Rule};
use tierfs::ports::Remote;
use tierfs::record::{Claim, manifest_key, place_of};
use tierfs::types::ObjectKey;

use crate::gc::leave_upload;
use crate::packs::rest;
use crate::rig::*;

/// Where the second pair is; the first is at west:s3://cold/pre.
#[derive(Clone, Copy)]
struct Far {
    cluster: &'static str,
    bucket: &'static str,
    prefix: &'static str,
}

const APART: Far = Far { cluster: "north", bucket: "far", prefix: "pre" };
const FAR: (&str, &str) = ("far", "pre");
/// Directories of each pair.
const OF: [(&str, &str); 2] = [("cold", "c"), ("far", "f")];

fn add_far(rig: &Rig, far: Far, retention: &str) {
    // No two pairs may have all four identifiers.
    let local = if far.cluster == "west" { "also" } else { "east" };
    let (local, endpoint) = (format!("{local}:{}", rig.share().display()), rig.endpoint());
    let Far { cluster, bucket, prefix } = far;
    let remote = format!("{cluster}:s3://{bucket}/{prefix}");
    let add = ["pair", "add", "far", "--force", "--local", &local, "--remote", &remote, "--endpoint", &endpoint];
    let more = ["--chunk-size", "64KiB", "--retention", retention, "--recall-retention", "24h", "--pack", "true"];
    let output = rig.tierfs(&[&add[..], &more].concat());
    code(&output, 0);
}

/// A mount with two pairs that pack, `cold` and `far`.
fn with_both(far: Far, retentions: [&'static str; 2]) -> Option<Rig> {
    let mount = ["--pair", "cold", "--pair", "far", "-o", "recall_scan=off"].to_vec();
    let pair = ["--pack", "true"].to_vec();
    let setup = Setup { retention: retentions[0], mounted: false, mount, pair, ..Setup::default() };
    let mut rig = setup.build()?;
    add_far(&rig, far, retentions[1]);
    rig.mount();
    fs::create_dir_all(rig.mnt("c")).unwrap();
    fs::create_dir_all(rig.mnt("f")).unwrap();
    rig.on(&["set", "--pair", "far"], &["f"]);
    Some(rig)
}

/// All keys of a bucket, but those that a probe makes.
fn bucket(rig: &Rig, (bucket, prefix): (&str, &str)) -> BTreeSet<String> {
    let remote = rig.remote_at(bucket, prefix);
    let page = rig.block_on(remote.list("", None)).unwrap();
    page.into_iter().map(|(key, _)| key.0).filter(|key| !key.contains(".tierfs-probe")).collect()
}

/// What holds a file's content: its object with its manifest, or its pack.
fn holds(rig: &Rig, name: &str) -> Vec<String> {
    let object = rig.record(name).unwrap().object.unwrap();
    match place_of(&object.key) {
        Some(place) => vec![place.pack.key().0],
        None if object.has_manifest() => vec![object.key.0.clone(), manifest_key(&object.key).0],
        None => vec![object.key.0],
    }
}

/// Files of two packs and two large ones in each pair's directory, archived: contents by name.
fn populate(rig: &Rig) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for (_, dir) in OF {
        for part in ["live", "dead"] {
            fs::create_dir(rig.mnt(format!("{dir}/{part}"))).unwrap();
            for n in 0..10 {
                let name = format!("{dir}/{part}/{n}");
                files.insert(name.clone(), rig.write(&name, 300 + 10 * n));
            }
            let name = format!("{dir}/{part}/large");
            files.insert(name.clone(), rig.write(&name, 3 * CHUNK));
            // Packs are of one job.
            rig.on(&["migrate", "-r"], &[&format!("{dir}/{part}")]);
        }
    }
    rest(rig);
    let packed = |dir: &str| (0..10).filter(|n| holds(rig, &format!("{dir}/{n}"))[0].contains("/packs/")).count();
    for dir in ["c/live", "c/dead", "f/live", "f/dead"] {
        assert!(packed(dir) > 1, "{dir}: {} files are in packs", packed(dir));
    }
    files
}

/// Removes the dead ones below the mount; what held them, by pair.
fn kill_dead(rig: &Rig, files: &mut BTreeMap<String, Vec<u8>>) -> [BTreeSet<String>; 2] {
    let mut dead = [BTreeSet::new(), BTreeSet::new()];
    for ((_, dir), keys) in OF.iter().zip(&mut dead) {
        for name in files.keys().filter(|name| name.starts_with(&format!("{dir}/dead/"))) {
            keys.extend(holds(rig, name));
        }
        fs::remove_dir_all(rig.low(format!("{dir}/dead"))).unwrap();
    }
    files.retain(|name, _| !name.contains("/dead/"));
    dead
}

/// What `gc` told: pair, kind and key of each; and its last line.
#[track_caller]
fn gc(rig: &Rig, more: &[&str]) -> (Vec<[String; 3]>, Value) {
    let mountpoint = rig.mountpoint();
    let all = rig.json(&[&["gc", "--older-than", "0"], more, &[mountpoint.to_str().unwrap()]].concat(), 0);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let orphans = all.iter().filter(|line| line["reply"] == "orphan");
    let told = orphans.map(|line| ["pair", "kind", "key"].map(|field| text(&line[field]))).collect();
    (told, all.last().unwrap().clone())
}

fn keys_of(told: &[[String; 3]], pair: &str) -> BTreeSet<String> {
    let of_pair: Vec<_> = told.iter().filter(|[of, ..]| of == pair).map(|[.., key]| key.clone()).collect();
    let keys: BTreeSet<String> = of_pair.iter().cloned().collect();
    assert_eq!(keys.len(), of_pair.len(), "told twice: {told:#?}");
    keys
}

/// A manifest is not told for itself.
fn without_manifests(keys: &BTreeSet<String>) -> BTreeSet<String> {
    keys.iter().filter(|key| !key.ends_with(".manifest")).cloned().collect()
}

#[test]
fn gc_frees_what_is_dead_with_each_pair_and_nothing_else() {
    let Some(rig) = with_both(APART, ["0s", "0s"]) else { return };
    let places = [("cold", "pre"), FAR];
    let mut files = populate(&rig);
    let dead = kill_dead(&rig, &mut files);
    let lost = ObjectKey("pre/lost@12-13.14".into());
    leave_upload(&rig, &rig.remote_at("far", "pre"), &lost);
    let before = places.map(|place| bucket(&rig, place));
    let (told, done) = gc(&rig, &["--dry-run"]);
    for (n, (pair, _)) in OF.iter().enumerate() {
        assert!(dead[n].is_subset(&before[n]));
        let mut want = without_manifests(&dead[n]);
        want.extend((*pair == "far").then(|| lost.0.clone()));
        assert_eq!(keys_of(&told, pair), want, "{pair}");
        assert_eq!(done["pairs"][pair]["files"], want.len(), "{done}");
        assert_eq!(done["pairs"][pair]["packs"]["deleted"], 0, "{done}");
    }
    assert_eq!(places.map(|place| bucket(&rig, place)), before, "nothing was done");

    gc(&rig, &[]);
    wait_for("the orphans' end", || rig.info()["intents"][1] == 0);
    for (n, place) in places.into_iter().enumerate() {
        let taken: BTreeSet<_> = before[n].difference(&bucket(&rig, place)).cloned().collect();
        assert_eq!(taken, dead[n], "{place:?}");
    }
    let unfinished = rig.block_on(rig.remote_at("far", "pre").unfinished_uploads()).unwrap();
    assert_eq!(unfinished, []);
    assert_eq!(gc(&rig, &[]).0, Vec::<[String; 3]>::new());
    files.iter().for_each(|(name, content)| rig.same(name, content));
    let said = rig.on(&["gc", "--older-than", "0"], &[""]);
    assert!(said.contains("pair cold: 0") && said.contains("pair far: 0"), "{said}");
}

#[test]
fn a_pair_that_is_down_stands_in_no_others_way() {
    let Some(rig) = with_both(APART, ["0s", "0s"]) else { return };
    let mut files = populate(&rig);
    let dead = kill_dead(&rig, &mut files);
    let before = bucket(&rig, FAR);
    rig.faults.add(Rule::new(Effect::InternalError).method("GET").url("/far?"));
    rig.faults.add(Rule::new(Effect::InternalError).method("GET").url("/far/?"));
    let mountpoint = rig.mountpoint();
    let output = rig.tierfs(&["gc", "--older-than", "0", mountpoint.to_str().unwrap()]);
    code(&output, 3);
    assert!(said(&output).contains("not every pair") && said(&output).contains("pair far:"), "{}", said(&output));
    wait_for("the orphans' end", || dead[0].is_disjoint(&bucket(&rig, ("cold", "pre"))));
    rig.faults.clear();
    assert_eq!(bucket(&rig, FAR), before);
    gc(&rig, &[]);
    wait_for("the others' end", || dead[1].is_disjoint(&bucket(&rig, FAR)));
    files.iter().for_each(|(name, content)| rig.same(name, content));
}

#[test]
fn two_pairs_in_one_place_are_gone_through_as_one() {
    one_place(Far { cluster: "west", bucket: "cold", prefix: "pre" });
}

/// What is there is told with each of them.
#[test]
fn two_pairs_in_one_place_that_do_not_know_it_take_nothing_from_each_other() {
    one_place(Far { cluster: "north", bucket: "cold", prefix: "pre" });
}

#[test]
fn a_pair_below_the_other_is_gone_through_for_itself() {
    one_place(Far { cluster: "west", bucket: "cold", prefix: "pre/below" });
}

/// The first pair keeps nothing, the other one an hour: what lies in both is kept an hour.
fn one_place(far: Far) {
    let Some(mut rig) = with_both(far, ["0s", "1h"]) else { return };
    let mut files = populate(&rig);
    // Its deletion is noted for the second pair.
    fs::create_dir(rig.mnt("f/removed")).unwrap();
    for n in 0..10 {
        rig.write(&format!("f/removed/{n}"), 500);
    }
    rig.on(&["migrate", "-r"], &["f/removed"]);
    rest(&rig);
    let removed: BTreeSet<_> = (0..10).flat_map(|n| holds(&rig, &format!("f/removed/{n}"))).collect();
    let [of_cold, of_far] = kill_dead(&rig, &mut files);
    (0..10).for_each(|n| fs::remove_file(rig.mnt(format!("f/removed/{n}"))).unwrap());
    wait_for("the notes", || rig.info()["intents"] == serde_json::json!([0, 10]));
    let before = bucket(&rig, ("cold", "pre"));
    let all: BTreeSet<_> = of_cold.union(&of_far).cloned().collect();
    for more in [&["--dry-run"][..], &[]] {
        let (told, _) = gc(&rig, more);
        let [by_cold, by_far] = OF.map(|(pair, _)| keys_of(&told, pair));
        match (far.cluster, far.prefix) {
            ("west", "pre") => assert_eq!((by_cold, by_far), (without_manifests(&all), BTreeSet::new())),
            ("west", _) => assert_eq!((by_cold, by_far), (without_manifests(&of_cold), without_manifests(&of_far))),
            _ => {
                assert_eq!(by_cold, without_manifests(&all));
                assert!(by_far.is_subset(&by_cold));
            }
        }
    }
    // Noted, and kept.
    let (told, _) = gc(&rig, &[]);
    assert!(told.iter().all(|[_, kind, _]| kind == "pack"), "{told:?}");
    assert_eq!(bucket(&rig, ("cold", "pre")), before);
    rig.on(&["undelete"], &["f/removed/3"]);
    rig.same("f/removed/3", &noise("f/removed/3", 500));
    rig.expire();
    wait_for("due deletions", || rig.info()["intents"][1] == 0);
    gc(&rig, &[]);
    let left = bucket(&rig, ("cold", "pre"));
    assert!(all.is_disjoint(&left), "{:?}", all.intersection(&left));
    assert!(holds(&rig, "f/removed/3").iter().all(|key| left.contains(key) && removed.contains(key)));
    for name in files.keys() {
        assert!(holds(&rig, name).iter().all(|key| left.contains(key)), "{name}");
        rig.on(&["release"], &[name]);
    }
    files.iter().for_each(|(name, content)| rig.same(name, content));
}

#[test]
fn lost_records_are_found_with_each_pair() {
    let Some(mut rig) = with_both(APART, ["0s", "0s"]) else { return };
    let names = ["c/large", "f/large", "f/one"];
    let contents: Vec<_> =
        names.iter().zip([3 * CHUNK, 2 * CHUNK, 700]).map(|(name, len)| rig.write(name, len)).collect();
    names.iter().for_each(|name| rig.migrate(name));
    let records = names.map(|name| rig.record(name).unwrap());
    rig.umount();
    names.iter().for_each(|name| rustix::fs::removexattr(rig.low(name), RECORD).unwrap());
    rig.mount();
    // Without the answer of one pair nobody can tell.
    let rule = rig.faults.add(Rule::new(Effect::InternalError).method("GET").url("/far"));
    let output = rig.try_on(&["check", "-r", "--repair"], &["c"]);
    code(&output, 1);
    rig.faults.remove(rule);
    assert!(rig.record("c/large").is_none());
    let output = rig.try_on(&["check", "-r"], &[""]);
    code(&output, 1);
    for name in names {
        assert!(said(&output).contains(name), "{name}: {}", said(&output));
    }
    rig.on(&["check", "-r", "--repair"], &[""]);
    for ((name, before), content) in names.iter().zip(&records).zip(&contents) {
        let now = rig.record(name).unwrap();
        assert_eq!((now.claim, &now.object), (Claim::Stub, &before.object), "{name}");
        rig.same(name, content);
    }
}

fn trees(rig: &Rig, place: (&str, &str)) -> BTreeSet<String> {
    bucket(rig, place).into_iter().filter(|key| key.contains("/trees/")).collect()
}

#[test]
fn names_are_with_each_pair_and_a_share_is_made_again_from_both() {
    let Some(mut rig) = with_both(APART, ["0s", "0s"]) else { return };
    let places = [("cold", "pre"), FAR];
    let mut files = populate(&rig);
    assert!(rig.on(&["save-names"], &[""]).contains("stored names of 7 directories"));
    assert_eq!(places.map(|place| trees(&rig, place).len()), [7, 7]);
    assert!(rig.on(&["save-names"], &[""]).contains("stored names of 0 directories"));
    // What one pair does not take is not stored again with the other, and not forgotten.
    let rule = rig.faults.add(Rule::new(Effect::InternalError).method("PUT").url("/far/"));
    fs::set_permissions(rig.mnt("c/live/3"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let output = rig.try_on(&["save-names"], &[""]);
    assert!(!output.status.success(), "{}", said(&output));
    let halfway = places.map(|place| trees(&rig, place));
    assert_eq!([halfway[0].len(), halfway[1].len()], [8, 7]);
    rig.try_on(&["save-names"], &[""]);
    assert_eq!(trees(&rig, places[0]), halfway[0]);
    rig.faults.remove(rule);
    assert!(rig.on(&["save-names"], &[""]).contains("stored names of 1 directory"));
    // The old one goes with each.
    let all = places.map(|place| trees(&rig, place));
    assert_eq!([all[0].len(), all[1].len()], [7, 7]);
    assert!(all[0].is_subset(&halfway[0]));
    assert!(rig.on(&["save-names"], &[""]).contains("stored names of 0 directories"));
    rig.umount();

    rig.lose_share("xfs", Setup::xfs().size, "0s");
    add_far(&rig, APART, "0s");
    let share = rig.share().display().to_string();
    let rebuild =
        |rig: &Rig, pairs: &[&str], into: &str| rig.tierfs(&[&["--json", "rebuild", "--into", into], pairs].concat());
    // One alone has all names, and its own contents.
    let other = rig.fs.path().join("other");
    fs::create_dir(&other).unwrap();
    let output = rebuild(&rig, &["--pair", "far"], other.to_str().unwrap());
    code(&output, 1);
    let text = said(&output);
    assert_eq!(text.matches("\"missing\"").count() - 1, files.len() / 2, "{text}");
    assert!(text.contains("with the pair cold") && !text.contains("with the pair far"), "{text}");
    code(&rebuild(&rig, &["--pair", "far", "--pair", "far"], &share), 2);
    let output = rebuild(&rig, &["--pair", "far", "--pair", "cold"], &share);
    code(&output, 0);
    rig.mount();
    for (name, content) in &files {
        let pair = if name.starts_with('c') { "cold" } else { "far" };
        assert_eq!(rig.record(name).unwrap().object.unwrap().pair.name.as_str(), pair, "{name}");
        rig.same(name, content);
    }
    files.clear();
}
