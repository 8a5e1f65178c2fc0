//! A start waits for nothing that is remote, however much is left over from before.

use std::fs;

use tierfs::gateway::faults::{Effect, Rule};
use tierfs::journal::SqliteJournal;
use tierfs::ports::{Failed, Intent, IntentKind, Journal, Reason, Task};
use tierfs::types::{FileId, Inode, ObjectKey, RawHandle, Timestamp};

use crate::rig::*;

/// Notes of each kind.
const NOTES: u64 = 3_000;

#[test]
fn thousands_of_notes_and_a_silent_remote_hold_up_nobody() {
    let Some(mut rig) = (Setup { mount: vec!["-o", "archive_after=1s,scrub=1MiB"], ..Setup::default() }).build() else {
        return;
    };
    rig.quiet();
    let content = rig.write("resident", CHUNK);
    wait_for("the archive", || rig.state("resident") == "dual");
    rig.umount();
    let shares = fs::read_dir(rig.scratch("state/shares")).unwrap().flatten();
    let journal = shares.map(|entry| entry.path().join("journal.sqlite")).find(|path| path.exists()).unwrap();
    rig.block_on(leave_notes(&journal));
    // Requests come in and are never answered.
    let silent = rig.faults.add(Rule::new(Effect::Hang));
    let answered = rig.requests().op("GetObject") + rig.requests().op("ListObjectsV2");
    rig.mount();
    rig.same("resident", &content);
    fs::write(rig.mnt("new"), b"new").unwrap();
    rig.same("new", b"new");
    fs::remove_file(rig.mnt("resident")).unwrap();
    // What was asked of the remote by now, if anything, has had no answer and was not given up: nobody can have waited for it.
    assert_eq!(rig.requests().op("GetObject") + rig.requests().op("ListObjectsV2"), answered);
    let log = rig.log();
    let settled = format!("interrupted transfers were settled settled={}", 2 * NOTES);
    assert!(log.contains(&settled), "{settled:?} is not in the log");
    let since = &log[log.find(&settled).unwrap()..];
    assert!(!since.contains("timed out"), "something was waited for");
    let info = rig.info();
    assert_eq!((info["failed"][0].as_u64(), info["intents"][0].as_u64()), (Some(NOTES), Some(0)));
    // The uploads are deletions now, and the removal above has added one.
    assert_eq!(info["intents"][1].as_u64(), Some(2 * NOTES + 1));
    rig.faults.remove(silent);
}

/// Uploads, settlements, deletions and failures of files that are no more.
async fn leave_notes(path: &std::path::Path) {
    let journal = SqliteJournal::open(path).unwrap();
    let node = |n: u64| {
        let handle = RawHandle::new(1, &[(n as u32 + 100_000).to_ne_bytes(), [1; 4]].concat()).unwrap();
        Inode { id: FileId { ino: n + 100_000, birth: 77 }, handle }
    };
    let now = Timestamp { secs: 1_700_000_000, nanos: 0 };
    // Each kind about objects of its own, or one note would do for two.
    let intent = |n: u64, which: usize, kind| Intent {
        pair: "cold".parse().unwrap(),
        key: ObjectKey(format!("pre/x{n}@{}.{which:x}", node(n).id)),
        manifest: n.is_multiple_of(2),
        node: node(n),
        kind,
    };
    let kinds = [IntentKind::Upload, IntentKind::Settle { mtime: now }, IntentKind::Delete { not_before: now }];
    for (which, kind) in kinds.into_iter().enumerate() {
        for added in futures::future::join_all((0..NOTES).map(|n| journal.add(intent(n, which, kind)))).await {
            added.unwrap();
        }
    }
    let failed = (0..NOTES).map(|n| Failed {
        node: node(n),
        task: Task::Archive,
        pair: "cold".parse().unwrap(),
        deletion: None,
        path: format!("x{n}").into(),
        reason: Reason::Remote,
        message: "it failed".into(),
    });
    for noted in futures::future::join_all(failed.map(|failed| journal.note_failed(failed, now))).await {
        noted.unwrap();
    }
}
