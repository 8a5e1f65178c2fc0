//! Somebody changes the file, on either side, by the mount or by S3, in each phase of a transfer, which then goes on or comes to nothing (R11, R12, R13):
//! either the change is done, and both sides have it, or it is refused, and nothing of it is found.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::proxy::Cut;
use crate::sides::{CHUNK, Sides, put};
use crate::tools::*;

/// Too large to be brought back when it is opened.
const LEN: usize = 20 * CHUNK + 9;

/// What a request of the transfer is about, and what of it waits meanwhile.
type Phase = (&'static str, &'static str, Cut);

const MIGRATION: [Phase; 4] = [
    ("the copy is not sent", "-gateway/stage/", Cut::Request),
    ("the copy is there", "-gateway/stage/", Cut::Answer),
    ("ownership is not asked for", "?tagging", Cut::Request),
    ("it is granted, and nobody knows", "?tagging", Cut::Answer),
];

const RECALL: [Phase; 5] = [
    ("hashes are not asked for", "-gateway/manifest/", Cut::Request),
    ("no content is here", "-gateway/content/", Cut::Request),
    ("content is on its way", "-gateway/content/", Cut::Answer),
    ("ownership is not asked for", "?tagging", Cut::Request),
    ("it is granted, and nobody knows", "?tagging", Cut::Answer),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Zero,
    Half,
    Longer,
    Write,
    Put,
}

const CHANGES: [Change; 5] = [Change::Zero, Change::Half, Change::Longer, Change::Write, Change::Put];

impl Change {
    /// What the file is after it.
    fn of(self, content: &[u8]) -> Vec<u8> {
        let mut new = content.to_vec();
        match self {
            Self::Zero => new.clear(),
            Self::Half => new.truncate(LEN / 2),
            Self::Longer => new.resize(LEN + 3 * CHUNK, 0),
            Self::Write => new[5 * CHUNK - 3..][..7].copy_from_slice(b"written"),
            Self::Put => new = noise("put", 3 * CHUNK + 1),
        }
        new
    }

    /// Does it. Only what a user is told to try again may come of it else.
    fn by(self, (bucket, addr, path): (&str, SocketAddr, &Path), new: &[u8]) -> Result<(), String> {
        let done = match self {
            Self::Zero | Self::Half | Self::Longer => truncate(path, new.len() as u64),
            Self::Write => fs::OpenOptions::new().write(true).open(path).and_then(|file| {
                file.write_all_at(b"written", 5 * CHUNK as u64 - 3)?;
                file.sync_all()
            }),
            Self::Put => {
                let key = path.file_name().unwrap().to_str().unwrap();
                return put((bucket, addr), key, new.to_vec(), None)
                    .inspect_err(|code| assert_eq!(code, "ServiceUnavailable"));
            }
        };
        done.map_err(|error| {
            let errno = error.raw_os_error();
            let again = [libc::EBUSY, libc::EAGAIN, libc::ETIMEDOUT].map(Some);
            assert!(again.contains(&errno), "{self:?} on {bucket}: {error}");
            error.to_string()
        })
    }
}

/// East asks for a transfer of each file, which is held up in `phase`; meanwhile the file is changed.
fn changes_in(phase: Phase, recall: bool) {
    let verb = if recall { "recall" } else { "migrate" };
    let mut cases = Vec::new();
    for change in CHANGES {
        for on_west in [false, true] {
            for lost in [false, true] {
                if lost && !matches!(change, Change::Half | Change::Zero) {
                    continue;
                }
                cases.push((format!("{change:?}-{on_west}-{lost}"), change, on_west, lost));
            }
        }
    }
    let files: Vec<(&str, usize)> = cases.iter().map(|(name, ..)| (&name[..], LEN)).collect();
    let Some((sides, contents)) = Sides::with_files("ext4", &files) else { return };
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for ((name, change, on_west, lost), content) in cases.iter().zip(contents) {
        if recall {
            sides.east.done("migrate", name);
            assert!(sides.decided(name));
        }
        let (_, what, cut) = phase;
        let side = if *on_west { &sides.west } else { &sides.east };
        let new = change.of(&content);
        let proxy = &sides.west.proxy;
        proxy.hold_at(what, cut);
        let path = side.mnt(name);
        let place = (side.name, side.addr, &*path);
        let mut asks = Command::new(env!("CARGO_BIN_EXE_tierfs"));
        asks.arg(verb).arg(sides.east.mnt(name));
        let done = std::thread::scope(|scope| {
            let transfer = scope.spawn(move || asks.output().unwrap());
            wait_for(&format!("{name}, {phase:?}"), || proxy.holds());
            let changing = scope.spawn(|| change.by(place, &new));
            // Whether it has begun by now, or not, or is done.
            std::thread::sleep(Duration::from_millis(100));
            proxy.cut(*lost);
            proxy.let_go();
            if *lost {
                // It ends, or goes on asking for as long as that takes.
                let until = Instant::now() + Duration::from_secs(2);
                while !transfer.is_finished() && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(20));
                }
                proxy.cut(false);
            }
            let _ = transfer.join().unwrap();
            changing.join().unwrap()
        });
        *counts
            .entry(format!("{change:?}: {}", done.as_ref().map_or_else(|why| &why[..], |()| "done")))
            .or_default() += 1;
        sides.decided(name);
        sides.same(name, if done.is_ok() { &new } else { &content });
        assert_eq!(sides.east.peer(name).id, sides.west.peer(name).id, "{name}: one file");
    }
    println!("{verb}, {}: {counts:?}", phase.0);
}

#[test]
fn a_migration_is_held_before_the_copy() {
    changes_in(MIGRATION[0], false);
}

#[test]
fn a_migration_is_held_after_the_copy() {
    changes_in(MIGRATION[1], false);
}

#[test]
fn a_migration_is_held_before_the_offer() {
    changes_in(MIGRATION[2], false);
}

#[test]
fn a_migration_is_held_after_the_offer() {
    changes_in(MIGRATION[3], false);
}

#[test]
fn a_recall_is_held_before_the_hashes() {
    changes_in(RECALL[0], true);
}

#[test]
fn a_recall_is_held_before_the_content() {
    changes_in(RECALL[1], true);
}

#[test]
fn a_recall_is_held_amid_the_content() {
    changes_in(RECALL[2], true);
}

#[test]
fn a_recall_is_held_before_the_taking() {
    changes_in(RECALL[3], true);
}

#[test]
fn a_recall_is_held_after_the_taking() {
    changes_in(RECALL[4], true);
}
