//! A pair of role gpeer whose endpoint is a plain bucket: it says so, and behaves as one of role gfs.

use std::fs;

use crate::rig::{CHUNK, Rig, Setup, noise, said, wait_for};
use crate::sides::Sides;

/// The usual pair made one of role gpeer, for names too; its endpoint stays the bucket that it is.
fn plain() -> Option<Rig> {
    let rig = Setup { mounted: false, ..Setup::default() }.build()?;
    let output = rig.tierfs(&["pair", "edit", "cold", "--role", "gpeer", "--meta-sync", "master"]);
    assert!(output.status.success(), "{}", said(&output));
    Some(rig)
}

fn shown(rig: &Rig) -> String {
    said(&rig.tierfs(&["pair", "show", "cold"]))
}

#[test]
fn a_plain_bucket_is_used_as_one() {
    let Some(mut rig) = plain() else { return };
    assert!(shown(&rig).contains("a plain store, not the gateway of a share"), "{}", shown(&rig));
    rig.mount();
    wait_for("the probe", || rig.log().contains("the pair's endpoint answers"));
    assert!(rig.info()["pair_problem"].is_null(), "it is used as what it is: {}", rig.info());
    let names = ["d/small", "d/large", "d/gone"];
    let len = |name: &str| if name == "d/small" { 1_000 } else { 5 * CHUNK };
    fs::create_dir(rig.mnt("d")).unwrap();
    for name in names {
        rig.write(name, len(name));
    }
    let before = rig.objects();
    for name in names {
        rig.migrate(name);
        assert_eq!(rig.state(name), "stub");
        assert_eq!(rig.allocated(name) / 8_192, 0);
    }
    let objects = rig.objects();
    assert_eq!(objects.difference(&before).filter(|key| !key.ends_with(".manifest")).count(), 3, "{objects:?}");
    // No mark of a sync, no id, and no message of one in the bucket.
    assert!(!rig.low(".tierfs-gateway/sync").exists());
    assert!(objects.iter().all(|key| key.contains("d/")), "{objects:?}");
    rig.on(&["verify", "-r"], &[""]);
    rig.on(&["check", "-r"], &[""]);
    rig.on(&["recall"], &["d/large"]);
    rig.same("d/small", &noise("d/small", len("d/small")));
    rig.same("d/large", &noise("d/large", len("d/large")));
    // A truncation keeps to what gfs does: nothing comes back.
    let fetched = rig.requests().content;
    fs::write(rig.mnt("d/gone"), "").unwrap();
    assert_eq!((rig.requests().content, rig.state("d/gone")), (fetched, "resident".into()));
    fs::remove_file(rig.mnt("d/gone")).unwrap();
    wait_for("its object's end", || rig.objects().iter().all(|key| !key.contains("gone")));
    let said = rig.on(&["gc", "--dry-run", "--older-than", "0"], &[""]);
    assert!(said.contains("found 0 objects"), "{said}");
    // A share that is lost is made again from it.
    rig.on(&["release"], &["d/large"]);
    rig.on(&["save-names"], &[""]);
    rig.umount();
    let into = rig.scratch("again");
    fs::create_dir(&into).unwrap();
    let output = rig.tierfs(&["rebuild", "--pair", "cold", "--dry-run", "--into", into.to_str().unwrap()]);
    assert!(output.status.success(), "{}", crate::rig::said(&output));
}

/// Nobody has tried the endpoint before the mount: nothing is lost, nothing is migrated, and it is told what to do.
#[test]
fn what_was_not_tried_is_told() {
    let Some(mut rig) = (Setup { mounted: false, ..Setup::default() }).build() else { return };
    let (local, endpoint) = (format!("east:{}", rig.share().display()), rig.endpoint());
    let output = rig.tierfs(&["pair", "remove", "cold"]);
    assert!(output.status.success(), "{}", said(&output));
    let add = ["pair", "add", "cold", "--local", &local, "--remote", "west:s3://cold", "--endpoint", &endpoint];
    let output = rig.tierfs(&[&add[..], &["--role", "gpeer", "--no-probe"]].concat());
    assert!(output.status.success(), "{}", said(&output));
    rig.mount();
    rig.write("f", 3 * CHUNK);
    wait_for("the mount to find out", || rig.info()["pair_problem"].to_string().contains("plain store"));
    let output = rig.try_on(&["migrate"], &["f"]);
    assert!(!output.status.success(), "{}", said(&output));
    rig.same("f", &noise("f", 3 * CHUNK));
    rig.umount();
    let output = rig.tierfs(&["pair", "edit", "cold", "--role", "gpeer"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(shown(&rig).contains("a plain store"), "{}", shown(&rig));
    rig.mount();
    rig.migrate("f");
    rig.same("f", &noise("f", 3 * CHUNK));
}

#[test]
fn a_bucket_is_measured_and_a_share_is_not() {
    let Some(rig) = plain() else { return };
    let before = rig.all_objects();
    let bench = ["pair", "bench", "cold", "--size", "1KiB", "--count", "2", "--at-once", "1"];
    let output = rig.tierfs(&bench);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(rig.all_objects(), before);
    drop(rig);

    let Some((sides, contents)) = Sides::with_files("ext4", &[("file", CHUNK)]) else { return };
    let names =
        || fs::read_dir(sides.west.share()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    let before = names();
    let output = sides.east.tierfs(&["pair", "bench", "gp"]);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(
        said(&output).contains("the gateway of a share: what is put there are people's files"),
        "{}",
        said(&output)
    );
    assert_eq!(names(), before);
    sides.same("file", &contents[0]);
}
