//! What an operator tries first, in one go: a file made on east is on west, moves there, is edited on east, as editors do, and moves again while the link goes
//! down in each phase. After each step both ends are looked at: what `stat` shows, and who owns the content.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use tierfs::record::Phase;

use crate::proxy::Cut;
use crate::sides::{CHUNK, Side, Sides};
use crate::tools::*;

const NAME: &str = "project/report.txt";
/// Chunks of more than one request to read, and one to send.
const LEN: usize = 20 * CHUNK + 11;

/// All that must be equal on both sides.
#[derive(Debug, PartialEq)]
struct Shown {
    len: u64,
    mtime: (i64, i64),
    mode: u32,
    owner: (u32, u32),
    nlink: u64,
    note: Vec<u8>,
}

fn shown(path: &Path) -> Option<Shown> {
    let meta = fs::metadata(path).ok()?;
    Some(Shown {
        len: meta.len(),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        mode: meta.mode(),
        owner: (meta.uid(), meta.gid()),
        nlink: meta.nlink(),
        note: xattr(path, "user.note").unwrap_or_default(),
    })
}

/// After a success: both ends show the same, agree in which epoch who owns it, and only the stub carries the pair's name.
#[track_caller]
fn both_agree(sides: &Sides, west_owns: bool) {
    assert_eq!(sides.decided(NAME), west_owns, "who owns it");
    wait_for("equal attributes", || shown(&sides.east.mnt(NAME)) == shown(&sides.west.mnt(NAME)));
    assert!(shown(&sides.east.mnt(NAME)).is_some());
    let (east, west) = (sides.east.peer(NAME), sides.west.peer(NAME));
    assert_eq!((east.id, east.epoch), (west.id, west.epoch));
    let (owner, stub) = if west_owns { (&sides.west, &sides.east) } else { (&sides.east, &sides.west) };
    assert_eq!((owner.pair_of(NAME), stub.pair_of(NAME)), (None, Some("gp".into())));
    assert_eq!(owner.state(NAME), "resident");
    // What it gave up is freed soon.
    wait_for("the stub to be one", || ["stub", "partial"].contains(&&*stub.state(NAME)));
    for side in [&sides.east, &sides.west] {
        wait_for("both to say the same", || side.on("check", &[NAME]).status.success());
    }
}

/// `cat`: who reads all of it has it.
#[track_caller]
fn reads(sides: &Sides, side: &Side, content: &[u8]) {
    wait_for(&format!("{} to read it", side.name), || fs::read(side.mnt(NAME)).is_ok_and(|found| found == content));
    wait_for(&format!("{} to own it", side.name), || side.owns_or_reads(NAME));
    both_agree(sides, side.name == "west");
}

/// Has east own it.
#[track_caller]
fn at_east(sides: &Sides) {
    wait_for("east to own it", || !sides.decided(NAME) || sides.east.on("recall", &[NAME]).status.success());
    assert!(!sides.decided(NAME));
}

/// Has west own it.
#[track_caller]
fn at_west(sides: &Sides) {
    wait_for("west to own it", || sides.decided(NAME) || sides.east.on("migrate", &[NAME]).status.success());
    assert!(sides.decided(NAME));
}

#[test]
fn as_an_operator_would() {
    let Some(sides) = Sides::synced("ext4") else { return };
    // On east create a file; it appears on west.
    let mut content = noise("report", LEN);
    let path = sides.east.mnt(NAME);
    fs::create_dir(path.parent().unwrap()).unwrap();
    fs::write(&path, &content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    rustix::fs::lsetxattr(&path, "user.note", b"a note", rustix::fs::XattrFlags::empty()).unwrap();
    std::os::unix::fs::chown(&path, Some(21_001), Some(21_002)).unwrap();
    set_mtime(&path, 1_600_000_000, 123_456_789);
    wait_for("it to be on west", || shown(&sides.west.mnt(NAME)) == shown(&path));
    both_agree(&sides, false);
    // `cat` and `stat` on both.
    reads(&sides, &sides.east, &content);
    reads(&sides, &sides.west, &content);
    at_east(&sides);

    // Migrate.
    at_west(&sides);
    both_agree(&sides, true);
    assert_eq!(shown(&path).unwrap().mtime, (1_600_000_000, 123_456_789), "as it was");
    wait_for("east to free it", || sides.east.allocated(NAME) < 8_192);
    reads(&sides, &sides.west, &content);

    // An editor opens it on east and writes in place: it comes back.
    let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    assert!(sides.east.owns(NAME), "who writes owns");
    file.write_all_at(b"edited in place", 3 * CHUNK as u64 - 4).unwrap();
    file.sync_all().unwrap();
    drop(file);
    content[3 * CHUNK - 4..][..15].copy_from_slice(b"edited in place");
    both_agree(&sides, false);
    reads(&sides, &sides.west, &content);

    // Another reads it, writes a new file beside it, and renames that over it.
    let id = sides.east.peer(NAME).id;
    let mut new = fs::read(&path).unwrap();
    assert_same(&new, &content, "what the editor has read");
    new.extend_from_slice(b"and a last line\n");
    let beside = path.with_extension("txt~");
    let file = fs::File::create_new(&beside).unwrap();
    file.write_all_at(&new, 0).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o640)).unwrap();
    file.sync_all().unwrap();
    drop(file);
    fs::rename(&beside, &path).unwrap();
    content = new;
    wait_for("the new one on west", || {
        shown(&sides.west.mnt(NAME)).is_some_and(|seen| seen.len == content.len() as u64)
    });
    both_agree(&sides, false);
    assert_ne!(sides.east.peer(NAME).id, id, "it is another file");
    assert!(!sides.west.mnt("project/report.txt~").exists());
    reads(&sides, &sides.west, &content);

    // Migrate again, with the link down in each phase.
    let phases = [
        ("nothing was sent", "/", Cut::Request),
        ("the copy was not sent", "-gateway/stage/", Cut::Request),
        ("the copy's answer was lost", "-gateway/stage/", Cut::Answer),
        ("ownership was not asked for", "?tagging", Cut::Request),
        ("whether it was granted was lost", "?tagging", Cut::Answer),
    ];
    for (phase, what, cut) in phases {
        at_east(&sides);
        both_agree(&sides, false);
        let before = shown(&path);
        sides.west.proxy.cut_at(what, cut);
        let output = sides.east.on("migrate", &[NAME]);
        assert!(!output.status.success(), "{phase}: {}", said(&output));
        assert!(sides.west.proxy.is_cut(), "{phase}: the link was not cut");
        // After the failure: east has it, whole, and shows what it was. West is a stub of it, or owns it, and east does not know.
        assert_eq!(shown(&path), before, "{phase}");
        assert_same(&fs::read(&path).unwrap(), &content, phase);
        let (east, west) = (sides.east.peer(NAME), sides.west.peer(NAME));
        let asked = what == "?tagging";
        assert_eq!(east.phase == Phase::Offering, asked, "{phase}: {east:?}");
        assert_eq!(matches!(west.phase, Phase::Owner { .. }), asked && cut == Cut::Answer, "{phase}: {west:?}");
        let seen = shown(&sides.west.mnt(NAME)).unwrap();
        assert_eq!(Some(&seen), before.as_ref(), "{phase}: on west");
        // Healed, it is decided, both agree, and the next migration does it.
        sides.west.proxy.cut(false);
        sides.decided(NAME);
        both_agree(&sides, sides.decided(NAME));
        at_west(&sides);
        both_agree(&sides, true);
        reads(&sides, &sides.west, &content);
        assert_eq!(shown(&path), before, "{phase}: and after the migration");
    }
}
