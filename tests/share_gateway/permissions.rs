//! What the permissions of files deny, S3 denies: modes, groups, ACLs, sticky directories, immutable files, quotas.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::process::Command;

use aws_sdk_s3::types::{Tag, Tagging};

use crate::common::run;
use crate::place::{ALICE, BOB, BOTH, BUCKET, Place, User};
use crate::rig::Setup;
use crate::s3;

const DENIED: &str = "AccessDenied";

fn denied<T: std::fmt::Debug>(result: Result<T, String>) {
    assert_eq!(result.map(drop), Err(DENIED.into()));
}

fn mode(place: &Place, name: &str, mode: u32) {
    fs::set_permissions(place.rig.low(name), fs::Permissions::from_mode(mode)).unwrap();
}

fn tag(place: &Place, user: &User, key: &str, name: &str, value: &str) -> Result<(), String> {
    let tagging = Tagging::builder().tag_set(Tag::builder().key(name).value(value).build().unwrap()).build().unwrap();
    let put = user.client.put_object_tagging().bucket(BUCKET).key(key).tagging(tagging);
    place.rig.block_on(put.send()).map(drop).map_err(s3::code)
}

#[test]
fn a_private_directory_is_private() {
    let Some(place) = Place::alone() else { return };
    place.put(&place.bob, "bob/f", "mine").unwrap();
    let alice = &place.alice;
    denied(place.get(alice, "bob/f"));
    assert_eq!(place.head(alice, "bob/f").map(drop), Err("403".into()));
    denied(place.put(alice, "bob/f", "hers"));
    denied(place.put(alice, "bob/g", "hers"));
    denied(place.put(alice, "bob/new/dir/g", "hers"));
    denied(place.delete(alice, "bob/f"));
    denied(place.copy(alice, "bob/f", "alice/stolen"));
    denied(place.rename(alice, "bob/f", "alice/stolen"));
    denied(place.list_by(alice, "bob/", None, 10));
    denied(tag(&place, alice, "bob/f", "k", "v"));
    let upload = alice.client.create_multipart_upload().bucket(BUCKET).key("bob/g");
    denied(place.rig.block_on(upload.send()).map_err(s3::code));
    assert_eq!(place.get(&place.bob, "bob/f").unwrap(), b"mine");
    assert_eq!(fs::read_dir(place.rig.low("bob")).unwrap().count(), 1);
    // Root is root.
    assert_eq!(place.get(&place.root, "bob/f").unwrap(), b"mine");
}

#[test]
fn each_file_has_its_own_say() {
    let Some(place) = Place::alone() else { return };
    place.put(&place.alice, "alice/f", "hers").unwrap();
    // Read by all, written by the owner.
    assert_eq!(place.get(&place.bob, "alice/f").unwrap(), b"hers");
    for result in [
        place.put(&place.bob, "alice/f", "his").map(drop),
        place.put(&place.bob, "alice/g", "his").map(drop),
        place.put(&place.bob, "alice/sub/", "").map(drop),
        place.delete(&place.bob, "alice/f"),
        place.rename(&place.bob, "alice/f", "open/f").map(drop),
        tag(&place, &place.bob, "alice/f", "k", "v"),
    ] {
        denied(result);
    }
    mode(&place, "alice/f", 0o600);
    denied(place.get(&place.bob, "alice/f"));
    // A listing says that it is there, as `ls -l` does, and no sum of what is in it.
    let listed = place.rig.block_on(place.bob.client.list_objects_v2().bucket(BUCKET).prefix("alice/").send()).unwrap();
    let object = &listed.contents.unwrap()[0];
    assert_ne!(object.e_tag, place.head(&place.alice, "alice/f").unwrap().e_tag);
    // A directory that may be written, and a file in it that may not: it can be removed, as by rm, and not written.
    fs::write(place.rig.low("open/f"), "root's").unwrap();
    denied(place.put(&place.bob, "open/f", "his"));
    place.delete(&place.bob, "open/f").unwrap();
    // Unless the directory is sticky: the kernel knows.
    mode(&place, "open", 0o1777);
    fs::write(place.rig.low("open/f"), "root's").unwrap();
    mode(&place, "open/f", 0o666);
    denied(place.delete(&place.bob, "open/f"));
    denied(place.rename(&place.bob, "open/f", "open/g"));
    denied(place.put(&place.bob, "open/f", "his"));
    assert_eq!(fs::read(place.rig.low("open/f")).unwrap(), b"root's");
    // Groups, the further ones too.
    fs::write(place.rig.low("alice/shared"), "ours").unwrap();
    chown(place.rig.low("alice/shared"), Some(ALICE), Some(BOTH)).unwrap();
    mode(&place, "alice/shared", 0o640);
    assert_eq!(place.get(&place.bob, "alice/shared").unwrap(), b"ours");
    mode(&place, "alice/shared", 0o600);
    denied(place.get(&place.bob, "alice/shared"));
    // ACLs.
    let acl =
        |rule: &str| Command::new("setfacl").args(["-m", rule]).arg(place.rig.low("alice/shared")).status().unwrap();
    assert!(acl(&format!("u:{BOB}:r")).success());
    assert_eq!(place.get(&place.bob, "alice/shared").unwrap(), b"ours");
    denied(tag(&place, &place.bob, "alice/shared", "k", "v"));
    assert!(acl(&format!("u:{BOB}:rw")).success());
    tag(&place, &place.bob, "alice/shared", "k", "v").unwrap();
    // Who may search a directory and not read it finds what they know the name of.
    mode(&place, "alice", 0o711);
    assert_eq!(place.get(&place.bob, "alice/shared").unwrap(), b"ours");
    denied(place.list_by(&place.bob, "alice/", None, 10));
    // And the other way round, nothing.
    mode(&place, "alice", 0o744);
    denied(place.get(&place.bob, "alice/shared"));
    denied(place.list_by(&place.bob, "alice/", None, 10));
    // Immutable files are left alone, by root as well.
    let chattr =
        |flag: &str| Command::new("chattr").arg(flag).arg(place.rig.low("alice/f")).status().unwrap().success();
    assert!(chattr("+i"));
    let (put, deleted) = (place.put(&place.root, "alice/f", "x"), place.delete(&place.root, "alice/f"));
    assert!(chattr("-i"));
    denied(put);
    denied(deleted);
    assert_eq!((fs::read(place.rig.low("alice/f")).unwrap(), place.staged()), (b"hers".to_vec(), 0));
}

#[test]
fn quotas_hold() {
    let Some(rig) = (Setup { mounted: false, ..Setup::default() }).build() else { return };
    let image = rig.fs.scratch().join("image");
    rig.fs.unmount();
    run("tune2fs", &["-O", "quota", "-Q", "usrquota", image.to_str().unwrap()]);
    if !rig.fs.try_mount(",usrquota") {
        assert!(std::env::var_os("TIERFS_NEED_QUOTA").is_none(), "this kernel has no quotas");
        eprintln!("NOT TESTED: quotas through S3. This kernel has none; `make quota` tests on one that has");
        return;
    }
    let place = Place::with(rig);
    run("setquota", &["-u", &ALICE.to_string(), "0", "2048", "0", "0", place.rig.fs.path().to_str().unwrap()]);
    place.put(&place.alice, "alice/small", vec![1; 1 << 20]).unwrap();
    assert_eq!(place.put(&place.alice, "alice/large", vec![1; 3 << 20]).map(drop), Err("InsufficientStorage".into()));
    assert_eq!((place.keys(&place.root, "alice/"), place.staged()), (vec!["alice/small".to_owned()], 0));
    // What Bob writes into a file of Alice's counts as hers.
    mode(&place, "alice", 0o777);
    mode(&place, "alice/small", 0o666);
    assert_eq!(place.put(&place.bob, "alice/small", vec![2; 3 << 20]).map(drop), Err("InsufficientStorage".into()));
    place.put(&place.bob, "alice/bobs", vec![2; 3 << 20]).unwrap();
    assert_eq!(place.get(&place.alice, "alice/small").unwrap(), vec![1; 1 << 20]);
}

/// A disk that is full refuses, keeps what was there, and takes more when there is room again.
#[test]
fn a_full_disk_refuses_and_recovers() {
    let Some(place) = Place::over(Setup { size: 32 << 20, ..Setup::default() }) else { return };
    place.put(&place.alice, "alice/f", vec![1; 4 << 20]).unwrap();
    assert_eq!(place.put(&place.alice, "alice/f", vec![2; 40 << 20]).map(drop), Err("InsufficientStorage".into()));
    assert_eq!(place.get(&place.alice, "alice/f").unwrap(), vec![1; 4 << 20]);
    for _ in 0..6 {
        place.put(&place.alice, "alice/f", vec![3; 6 << 20]).unwrap();
    }
    assert_eq!((place.keys(&place.alice, "alice/"), place.staged()), (vec!["alice/f".to_owned()], 0));
}

/// The attribute calls of R6: for the tiering service of a pair's other end, and for nobody else.
#[test]
fn only_a_peer_may_make_the_attribute_calls() {
    let Some(place) = Place::alone() else { return };
    place.put(&place.alice, "alice/f", "x").unwrap();
    let peer = User::new(&place.endpoint, "peer");
    let identifiers = "west,/w,east,/e";
    for call in ["ltr_local_to_remote", "rtl_remote_to_local"] {
        for user in [&place.alice, &place.root] {
            denied(tag(&place, user, "alice/f", call, identifiers));
            let put = user.client.put_object().bucket(BUCKET).key("alice/g").tagging(format!("{call}=a%2Cb%2Cc%2Cd"));
            denied(place.rig.block_on(put.send()).map_err(s3::code));
        }
        denied(tag(&place, &peer, "alice/f", call, "not four"));
        // This share's pair is one with a store: it has no other end. `tests/peers/` has those that have one.
        denied(tag(&place, &peer, "alice/f", call, identifiers));
    }
    tag(&place, &peer, "alice/f", "other", "v").unwrap();
    assert_eq!(place.keys(&place.root, "alice/"), ["alice/f"]);
}
