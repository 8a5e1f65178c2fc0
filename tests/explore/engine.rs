//! Traces that the exploration found in the code, led along the real engine: over a real share whose syncs fail when told to.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tierfs::engine::{Cell, Engine, Limits, Patience, Target, Wish, load_record};
use tierfs::journal::SqliteJournal;
use tierfs::lower::Share;
use tierfs::ports::{Intent, IntentKind, Journal, Lower, Remote, SystemClock};
use tierfs::record::{Claim, PairRef, Record};
use tierfs::tier::{Activity, Event};
use tierfs::types::{ByteRange, Generation, Inode, Timestamp};

use crate::doubles::{Flaky, Log, Memory};

const CHUNK: usize = 64 << 10;

struct Rig {
    dir: tempfile::TempDir,
    log: Arc<Log>,
    lower: Arc<dyn Lower>,
    remote: Arc<Memory>,
    journal: Arc<SqliteJournal>,
    engine: Arc<Engine>,
    runtime: tokio::runtime::Runtime,
    node: Inode,
}

/// A share with one file of two chunks, an engine with one worker thread.
fn rig() -> Rig {
    let _ = tierfs::lower::ignore_sigio();
    let dir = tempfile::tempdir().unwrap();
    let share = dir.path().join("share");
    std::fs::create_dir(&share).unwrap();
    std::fs::write(share.join("f"), [[1; CHUNK], [2; CHUNK]].concat()).unwrap();
    let log = Arc::new(Log::default());
    let lower: Arc<dyn Lower> = Arc::new(Flaky { share: Share::open(&share).unwrap(), log: log.clone() });
    let remote = Arc::new(Memory { log: log.clone(), ..Memory::default() });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let journal = Arc::new(SqliteJournal::open(dir.path().join("journal")).unwrap());
    let pair = PairRef {
        name: "p".parse().unwrap(),
        local_cluster: "east".parse().unwrap(),
        local_share: "s".into(),
        remote_cluster: "west".parse().unwrap(),
        remote_share: "b".into(),
    };
    let target = Target {
        pair,
        prefix: String::new(),
        remote: remote.clone() as Arc<dyn Remote>,
        chunk_size: Some(CHUNK as u32),
        retention_s: 0,
        recalled_for_s: None,
        peer: false,
        recall: Default::default(),
        restore: Default::default(),
        pack: None,
    };
    let (handle, limits) = (runtime.handle().clone(), Limits::default());
    let engine = Engine::new(lower.clone(), journal.clone(), Arc::new(SystemClock), Some(target), handle, limits);
    let (node, _) = lower.lookup(&lower.root(), OsStr::new("f")).unwrap();
    Rig { dir, log, lower, remote, journal, engine, runtime, node }
}

impl Rig {
    fn cell(&self) -> Arc<Cell> {
        self.engine.cells.get(&self.node).unwrap()
    }

    fn archive(&self) {
        let cell = self.cell();
        self.runtime.block_on(self.engine.archive(&cell, Path::new("f"))).unwrap();
    }

    fn release(&self) -> bool {
        let cell = self.cell();
        self.runtime.block_on(self.engine.release(&cell, None)).is_ok()
    }

    fn record(&self) -> Record {
        load_record(&*self.lower, &self.node).unwrap()
    }

    /// Waits until nobody holds the cell any more.
    fn rest(&self) {
        let until = Instant::now() + Duration::from_secs(60);
        while self.engine.cells.live(self.node.id).is_some() {
            assert!(Instant::now() < until, "somebody holds the cell");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn fail_syncs(&self, answers: &[bool]) {
        *self.log.syncs.lock() = answers.iter().copied().collect();
    }

    fn content(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("share/f")).unwrap()
    }
}

/// A release stuck after it had freed the blocks; the next one's first sync failed, and the file was called dual: zeros were served.
#[test]
fn a_second_release_that_fails_never_calls_freed_blocks_local() {
    let rig = rig();
    rig.archive();
    rig.rest();
    rig.fail_syncs(&[true, false]);
    assert!(!rig.release(), "the sync of the holes fails");
    assert_eq!((rig.record().claim, rig.content()), (Claim::Releasing, vec![0; 2 * CHUNK]));
    rig.fail_syncs(&[false]);
    assert!(!rig.release(), "the sync of the mark fails");
    assert_eq!(rig.record().claim, Claim::Releasing);
    let cell = rig.cell();
    assert!(rig.runtime.block_on(rig.engine.recall(&cell)).unwrap());
    assert_eq!(rig.content(), [[1; CHUNK], [2; CHUNK]].concat());
}

/// An open for writing failed at the sync of its record. The next one found that record in the page cache, and synced nothing.
#[test]
fn what_a_failed_sync_left_unknown_outlives_its_user() {
    let rig = rig();
    rig.archive();
    rig.rest();
    let open = || {
        let cell = rig.cell();
        let event = Event::OpenWrite { passthrough: false };
        rig.engine.admit(&cell, &mut cell.lock(), event, Patience::Disk).map(|_| ())
    };
    rig.fail_syncs(&[false]);
    open().expect_err("its sync fails");
    assert!(rig.cell().lock().machine.is_unknown());
    rig.log.calls.lock().clear();
    open().expect("syncs work again");
    assert_eq!(*rig.log.calls.lock(), ["save", "sync"]);
}

/// A file cut while it was a stub, by a process that died before the record followed: the record must not be durable before the cut.
#[test]
fn a_stub_found_empty_is_synced_before_it_is_resident() {
    let rig = rig();
    rig.archive();
    rig.rest();
    assert!(rig.release());
    rig.rest();
    std::fs::OpenOptions::new().write(true).open(rig.dir.path().join("share/f")).unwrap().set_len(0).unwrap();
    rig.log.calls.lock().clear();
    rig.fail_syncs(&[true, false]);
    assert!(rig.engine.cells.get(&rig.node).is_err(), "the sync of the record fails");
    // Nobody may take for durable what is not.
    assert_eq!(*rig.log.calls.lock(), ["sync", "save", "sync", "save"]);
    let stored = Record::decode(&rig.lower.load_record(&rig.node).unwrap().unwrap()).unwrap();
    assert_eq!(stored.claim, Claim::Stub);
    assert_eq!(rig.record().claim, Claim::Resident);
}

/// An object was deleted because its file was gone, and a power loss might have brought the file back.
#[test]
fn an_object_is_deleted_after_its_files_removal_is_durable() {
    let rig = rig();
    rig.archive();
    rig.rest();
    let record = rig.record();
    let note = Intent {
        pair: "p".parse().unwrap(),
        key: record.object.unwrap().key,
        manifest: false,
        node: rig.node,
        kind: IntentKind::Delete { not_before: Default::default() },
    };
    rig.lower.unlink(&rig.lower.root(), OsStr::new("f")).unwrap();
    rig.log.calls.lock().clear();
    rig.runtime.block_on(rig.journal.add(note)).unwrap();
    rig.engine.start_deletions();
    let until = Instant::now() + Duration::from_secs(60);
    while !rig.log.calls.lock().iter().any(|call| call == "delete") {
        assert!(Instant::now() < until, "not deleted");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(*rig.log.calls.lock(), ["sync all", "delete"]);
}

/// A recall had ended, but for its note, when its file was removed. The note went; a power loss might have brought back the stub, with
/// data in it of which nobody knew.
#[test]
fn a_note_goes_after_its_files_removal_is_durable() {
    let rig = rig();
    rig.archive();
    rig.rest();
    assert!(rig.release());
    rig.rest();
    let lower = rig.lower.clone();
    let removal = Box::new(move || lower.unlink(&lower.root(), OsStr::new("f")).unwrap());
    // The first sync is that of the content, the second that of the record.
    *rig.log.before_sync.lock() = Some((1, removal));
    rig.log.calls.lock().clear();
    let cell = rig.cell();
    assert!(rig.runtime.block_on(rig.engine.recall(&cell)).unwrap());
    drop(cell);
    let until = Instant::now() + Duration::from_secs(60);
    let settles = |(_, intent): &(_, Intent)| matches!(intent.kind, IntentKind::Settle { .. });
    while rig.runtime.block_on(rig.journal.unfinished(None, 10)).unwrap().iter().any(settles) {
        assert!(Instant::now() < until, "the note stays");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(*rig.log.calls.lock(), ["sync", "save", "sync", "sync all"]);
}

/// Where records are in `user.*`, whoever may write a file may write its record, and must not read by it what was made for another file.
#[test]
fn a_record_that_anybody_may_write_leads_to_its_own_objects_only() {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    use tierfs::engine::EngineError;
    let mut sets = capabilities(None).unwrap();
    sets.effective.remove(CapabilitySet::SYS_ADMIN);
    set_capabilities(None, sets).unwrap();
    let rig = rig();
    assert_eq!((rig.lower.features().trusted_xattrs, rig.lower.record_xattr()), (false, "user.tierfs.record"));
    rig.archive();
    rig.rest();
    assert!(rig.release());
    rig.rest();
    let stored = rig.lower.load_record(&rig.node).unwrap().unwrap();
    let forged = rig.dir.path().join("share/forged");
    std::fs::File::create(&forged).unwrap().set_len(2 * CHUNK as u64).unwrap();
    rustix::fs::setxattr(&forged, "user.tierfs.record", &stored, rustix::fs::XattrFlags::empty()).unwrap();
    let (node, _) = rig.lower.lookup(&rig.lower.root(), OsStr::new("forged")).unwrap();
    let cell = rig.engine.cells.get(&node).unwrap();
    let recalled = rig.runtime.block_on(rig.engine.recall(&cell));
    assert!(matches!(recalled, Err(EngineError::Unproven { .. })), "{recalled:?}");
    assert_eq!(std::fs::read(&forged).unwrap(), vec![0; 2 * CHUNK]);
    let cell = rig.cell();
    assert!(rig.runtime.block_on(rig.engine.recall(&cell)).unwrap());
    assert_eq!(rig.content(), [[1; CHUNK], [2; CHUNK]].concat());
}

/// A deletion whose file had a damaged record ended each batch of due deletions: nothing noted after it was ever deleted.
#[test]
fn one_damaged_record_does_not_keep_other_objects() {
    let rig = rig();
    rig.archive();
    rig.rest();
    let share = rig.dir.path().join("share");
    std::fs::write(share.join("damaged"), "x").unwrap();
    let (damaged, _) = rig.lower.lookup(&rig.lower.root(), OsStr::new("damaged")).unwrap();
    rig.lower.save_record(&damaged, b"no record").unwrap();
    let key = rig.record().object.unwrap().key;
    rig.lower.unlink(&rig.lower.root(), OsStr::new("f")).unwrap();
    let another = tierfs::engine::object_key("", std::path::Path::new("damaged"), damaged.id, Generation(1));
    for (node, key, secs) in [(damaged, another, 1), (rig.node, key.clone(), 2)] {
        let kind = IntentKind::Delete { not_before: Timestamp { secs, nanos: 0 } };
        let note = Intent { pair: "p".parse().unwrap(), key, manifest: false, node, kind };
        rig.runtime.block_on(rig.journal.add(note)).unwrap();
    }
    rig.engine.start_deletions();
    let until = Instant::now() + Duration::from_secs(60);
    // What may still be named stays noted.
    while rig.remote.objects.lock().contains_key(&key) || rig.runtime.block_on(rig.journal.counts()).unwrap().1 != 1 {
        assert!(Instant::now() < until, "not deleted");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Who wanted a range of a recall that had failed and was cleaning up asked again and again without ever waiting; on a runtime with as many
/// threads as such readers the cleaning up never came to its turn.
#[test]
fn who_meets_a_failing_recall_waits_for_its_end() {
    let rig = rig();
    rig.archive();
    rig.rest();
    assert!(rig.release());
    rig.rest();
    *rig.remote.broken_at.lock() = Some(0);
    let cell = rig.cell();
    let (engine, first) = (rig.engine.clone(), cell.clone());
    let (done, ended) = std::sync::mpsc::channel();
    rig.runtime.spawn(async move {
        let demand = engine.start_recall(&first, Wish::ALL).await.unwrap().unwrap();
        // As somebody does who cuts the file, while fetches still run.
        demand.recall.cancel();
        let again = engine.start_recall(&first, Wish::ALL).await;
        let _ = done.send(again.map(|recall| recall.is_some()));
    });
    let again = ended.recv_timeout(Duration::from_secs(60));
    if again.is_err() {
        // Its thread never ends.
        std::mem::forget(rig.runtime);
        panic!("it goes round for ever");
    }
    assert!(again.unwrap().unwrap(), "a new recall begins");
    rig.runtime.block_on(cell.wait_until(|inner| inner.machine.activity() == Activity::None));
}

/// A recall that fails halfway keeps what it has brought, and the next one fetches the rest only. Freed blocks of others are another matter.
#[test]
fn what_a_failed_recall_has_brought_stays() {
    let rig = rig();
    rig.archive();
    rig.rest();
    assert!(rig.release());
    rig.rest();
    let content = [[1; CHUNK], [2; CHUNK]].concat();
    let count = || rig.runtime.block_on(rig.engine.intent_counts()).unwrap().0;
    let before = count();
    let notes = || {
        let until = Instant::now() + Duration::from_secs(60);
        while count() > before {
            assert!(Instant::now() < until, "a note stays");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    *rig.remote.broken_at.lock() = Some(CHUNK as u64);
    let cell = rig.cell();
    rig.runtime.block_on(rig.engine.recall(&cell)).expect_err("a chunk is missing");
    drop(cell);
    rig.rest();
    assert_eq!((rig.record().claim, rig.content()), (Claim::Partial, [[1; CHUNK], [0; CHUNK]].concat()));
    notes();
    *rig.remote.broken_at.lock() = None;
    rig.remote.streams.lock().clear();
    let cell = rig.cell();
    assert!(rig.runtime.block_on(rig.engine.recall(&cell)).unwrap());
    assert_eq!(rig.content(), content);
    assert_eq!(*rig.remote.streams.lock(), [ByteRange { offset: CHUNK as u64, len: CHUNK as u64 }]);
    drop(cell);
    rig.rest();
    // Data of somebody else is nothing of ours.
    assert!(rig.release());
    rig.rest();
    let file = std::fs::OpenOptions::new().write(true).open(rig.dir.path().join("share/f")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"below", 0).unwrap();
    drop(file);
    let cell = rig.cell();
    rig.runtime.block_on(rig.engine.recall(&cell)).expect_err("changed below the mount");
    assert_eq!(rig.content()[..5], *b"below");
    notes();
}

/// A part that is in the file and is not what it should be is fetched again where a crash may have torn it, and is somebody else's where the
/// file has been dated since.
#[test]
fn a_part_counts_by_its_hash() {
    for dated in [false, true] {
        let rig = rig();
        rig.archive();
        rig.rest();
        assert!(rig.release());
        rig.rest();
        *rig.remote.broken_at.lock() = Some(CHUNK as u64);
        rig.runtime.block_on(rig.engine.recall(&rig.cell())).expect_err("a chunk is missing");
        rig.rest();
        *rig.remote.broken_at.lock() = None;
        let path = rig.dir.path().join("share/f");
        let before = std::fs::metadata(&path).unwrap().modified().unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[0; 4096], 8192).unwrap();
        if !dated {
            file.set_modified(before).unwrap();
        }
        drop(file);
        let recalled = rig.runtime.block_on(rig.engine.recall(&rig.cell()));
        if dated {
            let error = recalled.expect_err("somebody was there");
            assert!(matches!(error, tierfs::engine::EngineError::ChangedBelow { .. }), "{error}");
        } else {
            assert!(recalled.unwrap());
            assert_eq!(rig.content(), [[1; CHUNK], [2; CHUNK]].concat());
        }
    }
}

/// Each note was settled with a commit of its own: thousands of them held the start up for as many syncs.
#[test]
fn a_start_settles_notes_by_the_batch() {
    let rig = rig();
    let note = |n: u64| Intent {
        pair: "p".parse().unwrap(),
        key: tierfs::types::ObjectKey(format!("x@1-1.{n:x}")),
        manifest: false,
        node: Inode { id: tierfs::types::FileId { ino: 1, birth: 1 }, ..rig.node },
        kind: IntentKind::Upload,
    };
    rig.runtime.block_on(async {
        for added in futures::future::join_all((0..1_000).map(|n| rig.journal.add(note(n)))).await {
            added.unwrap();
        }
        let before = rig.journal.commits();
        assert_eq!(rig.engine.recover().await.unwrap(), 1_000);
        let commits = rig.journal.commits() - before;
        // 256 a batch; calls of one may be split among few commits.
        assert!(commits <= 100, "{commits} commits for 1,000 notes");
        assert_eq!(rig.engine.intent_counts().await.unwrap(), (0, 1_000));
    });
}

/// A store that had locked one object refused its deletion, and none behind it was deleted any more.
#[test]
fn a_locked_object_stands_in_nobodys_way() {
    let rig = rig();
    let key = |n: u64| tierfs::types::ObjectKey(format!("x@{n:x}-1.1"));
    let gone = |n: u64| Inode { id: tierfs::types::FileId { ino: n, birth: 1 }, ..rig.node };
    *rig.remote.locked.lock() = Some(key(0));
    rig.runtime.block_on(async {
        for n in 0..3 {
            rig.remote.objects.lock().insert(key(n), bytes::Bytes::from_static(b"x"));
            let kind = IntentKind::Delete { not_before: tierfs::types::Timestamp { secs: n as i64, nanos: 0 } };
            let note = Intent { pair: "p".parse().unwrap(), key: key(n), manifest: false, node: gone(n), kind };
            rig.journal.add(note).await.unwrap();
        }
    });
    rig.engine.start_deletions();
    let until = Instant::now() + Duration::from_secs(60);
    let left = || rig.remote.objects.lock().keys().cloned().collect::<Vec<_>>();
    while left() != [key(0)] {
        assert!(Instant::now() < until, "left: {:?}", left());
        std::thread::sleep(Duration::from_millis(10));
    }
    let listed = rig.runtime.block_on(rig.engine.failed(None, 9)).unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].failed.deletion.as_ref().unwrap().1.clone(), listed[0].attempts), (key(0), 1));
    assert_eq!(listed[0].failed.reason, tierfs::ports::Reason::Configuration);
    assert_eq!(rig.engine.pair_problem(), None, "others were deleted since");
}
