//! Files whose content the slave holds: names and attributes are the master's still, the facts of the content come from the slave.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::tools::*;
use crate::two::{Side, Two};

/// East gives the content of files to west.
#[track_caller]
fn give(two: &Two, names: &[&str]) {
    for name in names {
        let path = two.east.mnt(name);
        let given = two.east.tierfs(&["migrate", path.to_str().unwrap()]);
        code(&given, 0);
    }
}

fn state(side: &Side, name: &str) -> String {
    String::from_utf8(xattr(&side.mnt(name), "user.tierfs.state").unwrap()).unwrap()
}

#[test]
fn the_master_changes_names_and_attributes_and_never_content() {
    let Some(two) = Two::new() else { return };
    let (east, west) = (&two.east, &two.west);
    fs::create_dir(east.mnt("d")).unwrap();
    let (f, g) = (noise("f", 300_000), noise("g", 90_000));
    fs::write(east.mnt("d/f"), &f).unwrap();
    fs::write(east.mnt("d/g"), &g).unwrap();
    two.equal();
    assert_eq!(state(west, "d/f"), "stub");
    give(&two, &["d/f", "d/g"]);
    assert_eq!((state(east, "d/f"), state(west, "d/f")), ("stub".into(), "resident".into()));
    let inode = fs::metadata(west.low("d/f")).unwrap().ino();
    // Attributes, a name, a further name; and a comparison of all of it.
    fs::set_permissions(east.mnt("d/f"), fs::Permissions::from_mode(0o604)).unwrap();
    set_xattr(&east.mnt("d/f"), "user.note", b"x").unwrap();
    fs::rename(east.mnt("d/f"), east.mnt("moved")).unwrap();
    fs::hard_link(east.mnt("moved"), east.mnt("d/second")).unwrap();
    two.equal();
    two.east.reconcile(&[]);
    two.equal();
    let there = fs::metadata(west.low("moved")).unwrap();
    assert_eq!((there.ino(), there.mode() & 0o777, there.nlink()), (inode, 0o604, 2));
    assert_same(&fs::read(west.low("moved")).unwrap(), &f, "the slave's content");
    assert_same(&fs::read(east.mnt("d/second")).unwrap(), &f, "as the master reads it");
    // Gone at the master, gone here, content and all.
    fs::remove_file(east.mnt("d/g")).unwrap();
    two.equal();
    wait_for("nothing without a name", || west.left().0 == 0);
    assert!(!west.mnt("d/g").exists());
}

#[test]
fn the_master_hears_of_what_the_slave_writes() {
    let Some(two) = Two::new() else { return };
    let (east, west) = (&two.east, &two.west);
    fs::write(east.mnt("f"), noise("f", 200_000)).unwrap();
    two.equal();
    give(&two, &["f"]);
    let mut file = fs::File::options().append(true).open(west.mnt("f")).unwrap();
    file.write_all(b"more at the slave").unwrap();
    drop(file);
    let seen = || fs::metadata(east.mnt("f")).unwrap();
    wait_for("its size", || seen().len() == 200_017);
    let there = fs::metadata(west.mnt("f")).unwrap();
    wait_for("its time", || (seen().mtime(), seen().mtime_nsec()) == (there.mtime(), there.mtime_nsec()));
    assert!(fs::read(east.mnt("f")).unwrap().ends_with(b"more at the slave"));
}

/// A PUT at the slave's gateway takes the file's place by another inode: it is the same file to both sides.
#[test]
fn a_file_that_was_replaced_at_the_slave_is_the_same_file() {
    let Some(two) = Two::new() else { return };
    let (east, west) = (&two.east, &two.west);
    fs::write(east.mnt("f"), noise("f", 100_000)).unwrap();
    two.equal();
    give(&two, &["f"]);
    let client = crate::hostile::client(west, "root");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let put = client.put_object().bucket(crate::two::BUCKET).key("f");
    let body = aws_sdk_s3::primitives::ByteStream::from_static(b"put at the slave");
    runtime.block_on(put.body(body).send()).unwrap();
    wait_for("its size", || fs::metadata(east.mnt("f")).unwrap().len() == 16);
    fs::rename(east.mnt("f"), east.mnt("g")).unwrap();
    fs::set_permissions(east.mnt("g"), fs::Permissions::from_mode(0o640)).unwrap();
    two.equal();
    assert_eq!(fs::read(west.low("g")).unwrap(), b"put at the slave");
    assert_eq!(fs::read(east.mnt("g")).unwrap(), b"put at the slave");
    assert_eq!(west.status()["refused"], 0);
}
