//! The journal on a real file: what was answered survives a reopening and a kill, waiting calls share a commit, and a
//! file that cannot be used is named with the way out and left untouched.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use futures::future::join_all;
use tierfs::journal::SqliteJournal;
use tierfs::ports::{
    FAILED_DROPPED, Failed, IDENTITY, Intent, IntentId, IntentKind, Journal, Reason, Recalled, Succeeded, Task,
};
use tierfs::types::{FileId, Inode, ObjectKey, PairName, RawHandle, Timestamp};

fn pair(name: &str) -> PairName {
    name.parse().unwrap()
}

fn at(secs: i64, nanos: u32) -> Timestamp {
    Timestamp { secs, nanos }
}

/// An inode whose numbers use all 64 bits, with the longest handle.
fn node(n: u64) -> Inode {
    let handle = RawHandle::new(-7, &[n as u8; tierfs::types::HANDLE_BYTES_MAX]).unwrap();
    Inode { id: FileId { ino: u64::MAX - n, birth: 1 << 63 | n }, handle }
}

fn note(name: &str, key: &str, n: u64, kind: IntentKind) -> Intent {
    Intent { pair: pair(name), key: ObjectKey(key.into()), manifest: n % 2 == 1, node: node(n), kind }
}

fn upload(name: &str, key: &str, n: u64) -> Intent {
    note(name, key, n, IntentKind::Upload)
}

fn deletion(name: &str, key: &str, not_before: Timestamp) -> Intent {
    note(name, key, 1, IntentKind::Delete { not_before })
}

fn settlement(name: &str, key: &str, mtime: Timestamp) -> Intent {
    note(name, key, 2, IntentKind::Settle { mtime })
}

fn keys(notes: &[(IntentId, Intent)]) -> Vec<&str> {
    notes.iter().map(|(_, intent)| intent.key.0.as_str()).collect()
}

#[tokio::test]
async fn reopening_keeps_everything_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.db");
    let intents = [
        upload("a", "k1", 1),
        deletion("b", "k2", at(-5, 999_999_999)),
        settlement("b", "k3", at(i64::MIN, 7)),
        upload("b", "naïve\n\u{1}key", 2),
    ];
    let mut ids = Vec::new();
    {
        let journal = SqliteJournal::open(&path).unwrap();
        for intent in &intents {
            ids.push(journal.add(intent.clone()).await.unwrap());
        }
    }
    let journal = SqliteJournal::open(&path).unwrap();
    let unfinished = journal.unfinished(None, 10).await.unwrap();
    assert_eq!(unfinished, [0, 2, 3].map(|n| (ids[n], intents[n].clone())));
    assert_eq!(journal.due(&pair("b"), at(0, 0), 10).await.unwrap(), vec![(ids[1], intents[1].clone())]);
    assert_eq!(journal.counts().await.unwrap(), (3, 1));
    journal.remove(ids[3]).await.unwrap();
    drop(journal);
    // The highest id was removed: it must not come back for another note.
    let journal = SqliteJournal::open(&path).unwrap();
    assert!(journal.add(upload("a", "k4", 4)).await.unwrap() > ids[3]);
}

#[tokio::test]
async fn deletions_come_due_by_pair_and_time_oldest_first() {
    let dir = tempfile::tempdir().unwrap();
    let journal = SqliteJournal::open(dir.path().join("journal.db")).unwrap();
    for (name, key, time) in [
        ("p", "third", at(10, 1)),
        ("p", "first", at(9, 999)),
        ("p", "second", at(10, 0)),
        ("p", "second, noted later", at(10, 0)),
        ("p", "not yet", at(10, 2)),
        ("other", "another pair's", at(1, 0)),
    ] {
        journal.add(deletion(name, key, time)).await.unwrap();
    }
    journal.add(upload("p", "an upload is never due", 1)).await.unwrap();
    journal.add(settlement("p", "nor is a settlement", at(1, 0))).await.unwrap();
    let due = journal.due(&pair("p"), at(10, 1), 10).await.unwrap();
    assert_eq!(keys(&due), ["first", "second", "second, noted later", "third"]);
    assert_eq!(keys(&journal.due(&pair("p"), at(10, 1), 2).await.unwrap()), ["first", "second"]);
    assert_eq!(keys(&journal.due(&pair("p"), at(9, 998), 10).await.unwrap()), [""; 0]);
}

#[tokio::test]
async fn an_upload_turns_into_a_deletion_and_gone_ids_are_success() {
    let dir = tempfile::tempdir().unwrap();
    let journal = SqliteJournal::open(dir.path().join("journal.db")).unwrap();
    let id = journal.add(upload("p", "k", 1)).await.unwrap();
    journal.set_delete(id, at(5, 0)).await.unwrap();
    assert_eq!(journal.due(&pair("p"), at(5, 0), 9).await.unwrap(), vec![(id, deletion("p", "k", at(5, 0)))]);
    assert_eq!(journal.counts().await.unwrap(), (0, 1));
    journal.set_delete(id, at(7, 0)).await.unwrap();
    assert!(journal.due(&pair("p"), at(6, 0), 9).await.unwrap().is_empty());
    assert!(journal.names_pair(&pair("p")).await.unwrap());
    journal.remove(id).await.unwrap();
    assert!(!journal.names_pair(&pair("p")).await.unwrap());
    journal.remove(id).await.unwrap();
    journal.set_delete(id, at(1, 0)).await.unwrap();
    assert_eq!(journal.counts().await.unwrap(), (0, 0));

    // A settlement names the object its file may live in: it must not turn into that object's removal.
    let settling = settlement("p", "k", at(3, 0));
    let id = journal.add(settling.clone()).await.unwrap();
    journal.set_delete(id, at(1, 0)).await.unwrap();
    assert_eq!(journal.unfinished(None, 9).await.unwrap(), vec![(id, settling)]);
    assert!(journal.due(&pair("p"), at(9, 0), 9).await.unwrap().is_empty());
}

#[tokio::test]
async fn uploads_are_paged_by_id() {
    let dir = tempfile::tempdir().unwrap();
    let journal = SqliteJournal::open(dir.path().join("journal.db")).unwrap();
    let ids = join_all((0..5).map(|n| journal.add(upload("p", &n.to_string(), n)))).await;
    let first = journal.unfinished(None, 3).await.unwrap();
    let rest = journal.unfinished(Some(first[2].0), 3).await.unwrap();
    assert_eq!([keys(&first), keys(&rest)].concat(), ["0", "1", "2", "3", "4"]);
    assert_eq!(ids.len(), 5);
    assert!(journal.unfinished(Some(rest[1].0), 3).await.unwrap().is_empty());
}

#[tokio::test]
async fn calls_that_wait_together_share_a_commit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.db");
    let journal = SqliteJournal::open(&path).unwrap();
    let ids = join_all((0..2_000).map(|n| journal.add(upload("p", &n.to_string(), n)))).await;
    let commits = journal.commits();
    let mut ids: Vec<IntentId> = ids.into_iter().map(Result::unwrap).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 2_000);
    // How many share one depends on how fast the disk syncs meanwhile (7 to 21 seen); without sharing there are 2,000.
    assert!((1..=200).contains(&commits), "{commits} commits for 2,000 notes made at once");
    println!("2,000 concurrent notes took {commits} commits");
    // One after another there is nobody to share with.
    for id in &ids[..5] {
        journal.remove(*id).await.unwrap();
    }
    assert_eq!(journal.commits(), commits + 5);
    // Reads commit nothing.
    journal.counts().await.unwrap();
    assert_eq!(journal.commits(), commits + 5);
}

#[tokio::test]
async fn a_caller_that_is_gone_disturbs_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let journal = SqliteJournal::open(dir.path().join("journal.db")).unwrap();
    for n in 0..50 {
        let call = journal.add(upload("p", &n.to_string(), n));
        let _ = tokio::time::timeout(std::time::Duration::ZERO, call).await;
    }
    let (uploads, _) = journal.counts().await.unwrap();
    assert!(uploads <= 50);
    assert_eq!(journal.unfinished(None, 100).await.unwrap().len() as u64, uploads);
}

/// The child of the kill test: notes intents for ever and tells each one that was acknowledged.
async fn note_until_killed(path: &Path) {
    use std::io::Write;
    let journal = SqliteJournal::open(path).unwrap();
    for round in 0u64.. {
        let notes = (0..20).map(|n| round * 20 + n);
        let acknowledged = join_all(notes.map(|n| {
            let journal = &journal;
            async move { journal.add(upload("p", &format!("key-{n}"), n)).await.map(|id| (id, n)) }
        }))
        .await;
        let mut out = std::io::stdout().lock();
        for note in acknowledged {
            let (id, n) = note.unwrap();
            writeln!(out, "noted {} key-{n}", id.0).unwrap();
        }
        out.flush().unwrap();
    }
}

const CHILD: &str = "TIERFS_TEST_JOURNAL_CHILD";

#[tokio::test]
async fn a_kill_loses_nothing_that_was_acknowledged() {
    if let Some(path) = std::env::var_os(CHILD) {
        return note_until_killed(Path::new(&path)).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.db");
    let mut acknowledged = 0;
    let mut told = std::collections::BTreeSet::new();
    for lines_before_kill in [1, 50, 333] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_kill_loses_nothing_that_was_acknowledged", "--nocapture", "--test-threads=1"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut seen = 0;
        let mut take = |line: String| {
            // The test harness may have begun the line.
            if let Some((_, note)) = line.split_once("noted ")
                && let Some((id, key)) = note.split_once(' ')
            {
                told.insert((id.parse::<u64>().unwrap(), key.to_owned()));
                return true;
            }
            false
        };
        while seen < lines_before_kill {
            seen += usize::from(take(lines.next().expect("the child ended by itself")));
        }
        child.kill().unwrap();
        // What it told before it died counts too; the last line may be torn.
        let rest: Vec<String> = lines.collect();
        if let Some((_torn, whole)) = rest.split_last() {
            for line in whole {
                take(line.clone());
            }
        }
        child.wait().unwrap();
        let journal = SqliteJournal::open(&path).unwrap();
        let stored: std::collections::BTreeMap<u64, Intent> =
            journal.unfinished(None, usize::MAX).await.unwrap().into_iter().map(|(id, note)| (id.0, note)).collect();
        for (id, key) in &told {
            let n: u64 = key.strip_prefix("key-").unwrap().parse().unwrap();
            assert_eq!(stored.get(id), Some(&upload("p", key, n)), "note {id} was acknowledged");
        }
        assert!(told.len() > acknowledged);
        acknowledged = told.len();
    }
    println!("{acknowledged} acknowledged notes survived three kills");
}

fn refusal(path: &Path) -> String {
    match SqliteJournal::open(path) {
        Ok(_) => panic!("{} should not open", path.display()),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn a_damaged_file_is_named_with_the_way_out_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.db");
    std::fs::write(&path, vec![0x5a; 8192]).unwrap();
    let text = refusal(&path);
    assert!(text.contains(path.to_str().unwrap()) && text.contains("damaged") && text.contains("move it"), "{text}");
    assert_eq!(std::fs::read(&path).unwrap(), vec![0x5a; 8192]);
    std::fs::remove_file(&path).unwrap();

    // Damage in the middle of a good file: quick_check finds it.
    {
        let journal = SqliteJournal::open(&path).unwrap();
        join_all((0..500).map(|n| journal.add(upload("p", &format!("{n:0200}"), n)))).await;
    }
    let mut bytes = std::fs::read(&path).unwrap();
    assert!(bytes.len() > 10 * 4096, "closing moves the log into the file");
    for page in 1..8 {
        bytes[page * 4096..][..512].fill(0xff);
    }
    std::fs::write(&path, &bytes).unwrap();
    let text = refusal(&path);
    assert!(text.contains(path.to_str().unwrap()) && text.contains("damaged"), "{text}");
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

#[test]
fn a_newer_version_and_a_foreign_database_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.db");
    drop(SqliteJournal::open(&path).unwrap());
    for version in [4, 0, -1] {
        let raw = rusqlite::Connection::open(&path).unwrap();
        raw.pragma_update(None, "user_version", version).unwrap();
        raw.close().unwrap();
        let text = refusal(&path);
        assert!(text.contains(&format!("version {version}")) && text.contains("version 3"), "{text}");
    }

    let path = dir.path().join("foreign.db");
    rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    assert!(refusal(&path).contains("another program"));
}

#[test]
fn a_journal_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.db");
    let first = SqliteJournal::open(&path).unwrap();
    assert!(refusal(&path).contains("in use"));
    drop(first);
    SqliteJournal::open(&path).unwrap();
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().join("missing/journal.db"), dir.path().to_owned(), "/proc/self/journal.db".into()] {
        let text = refusal(&path);
        assert!(text.contains(path.to_str().unwrap()) && text.contains("cannot be opened for writing"), "{text}");
    }
}

#[test]
fn the_file_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.db");
    let _journal = SqliteJournal::open(&path).unwrap();
    for name in ["journal.db", "journal.db-wal"] {
        let mode = std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

/// A journal as version 1 left it.
fn version_1(path: &Path) {
    let raw = rusqlite::Connection::open(path).unwrap();
    raw.execute_batch(include_str!("golden/journal-v1.sql")).unwrap();
    raw.close().unwrap();
}

#[tokio::test]
async fn a_journal_of_version_1_is_carried_over_with_all_its_notes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.db");
    version_1(&path);
    let inode = |ino, birth, kind, handle: &[u8]| {
        let id = FileId { ino, birth };
        Inode { id, handle: RawHandle::new(kind, handle).unwrap() }
    };
    let note = |key: &str, manifest, node, kind| Intent {
        pair: pair("cold"),
        key: ObjectKey(key.into()),
        manifest,
        node,
        kind,
    };
    let a = note("pre/a@1f-a.64", true, inode(31, 10, 1, &[31, 0, 0, 0, 1, 0, 0, 0]), IntentKind::Upload);
    let not_before = at(1_700_000_000, 5);
    let b =
        note("pre/b@20-b.65", false, inode(32, 11, 1, &[32, 0, 0, 0, 1, 0, 0, 0]), IntentKind::Delete { not_before });
    let node = inode(33, 1 << 63, 129, &[33, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    let c = note("pre/c@21-8000000000000000.66", false, node, IntentKind::Settle { mtime: at(-5, 999_999_999) });
    // The second opening finds the new version.
    for _ in 0..2 {
        let journal = SqliteJournal::open(&path).unwrap();
        assert_eq!(journal.unfinished(None, 9).await.unwrap(), [(IntentId(3), a.clone()), (IntentId(7), c.clone())]);
        assert_eq!(journal.due(&pair("cold"), not_before, 9).await.unwrap(), [(IntentId(4), b.clone())]);
        assert_eq!((journal.failed_files(), journal.failed(None, 9).await.unwrap()), (0, Vec::new()));
    }
    let journal = SqliteJournal::open(&path).unwrap();
    assert_eq!(journal.add(a).await.unwrap(), IntentId(10), "ids are not used again");
    journal.note_failed(failed(1, Task::Archive), at(1, 0)).await.unwrap();
    drop(journal);
    assert_eq!(schema(&path), {
        let fresh = dir.path().join("fresh.db");
        drop(SqliteJournal::open(&fresh).unwrap());
        schema(&fresh)
    });
}

/// What the file is made of, version included.
fn schema(path: &Path) -> Vec<String> {
    let raw = rusqlite::Connection::open(path).unwrap();
    let mut found = raw.prepare("SELECT name || ': ' || coalesce(sql, '') FROM sqlite_schema ORDER BY name").unwrap();
    let mut all: Vec<String> = found.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let version: i64 = raw.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    all.push(version.to_string());
    all
}

#[tokio::test]
async fn a_journal_that_cannot_be_carried_over_stays_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.db");
    version_1(&path);
    let raw = rusqlite::Connection::open(&path).unwrap();
    // In the way of the last step.
    raw.execute_batch("CREATE TABLE value (x)").unwrap();
    raw.close().unwrap();
    let before = schema(&path);
    refusal(&path);
    assert_eq!(schema(&path), before);
    rusqlite::Connection::open(&path).unwrap().execute_batch("DROP TABLE value").unwrap();
    assert_eq!(SqliteJournal::open(&path).unwrap().counts().await.unwrap(), (2, 1));
}

fn failed(n: u64, task: Task) -> Failed {
    use std::os::unix::ffi::OsStringExt;
    // Any bytes but NUL and slash may be a name.
    let path = std::ffi::OsString::from_vec(vec![b'd', b'/', 0xff, n as u8 + 1]).into();
    let deletion = (task == Task::Delete).then(|| (IntentId(n), ObjectKey(format!("k{n}"))));
    let (pair, message) = (pair("p"), format!("reason {n}"));
    Failed { node: node(n), task, pair, deletion, path, reason: Reason::Checksum, message }
}

#[tokio::test]
async fn a_failure_is_listed_once_a_file_and_task_until_it_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.db");
    {
        let journal = SqliteJournal::open(&path).unwrap();
        for (n, task) in [(1, Task::Archive), (1, Task::Scrub), (2, Task::Delete)] {
            assert_eq!(journal.note_failed(failed(n, task), at(10, 1)).await.unwrap(), 1);
        }
        // Again, for another reason, and somewhere where the path is not known.
        let again = Failed { reason: Reason::Remote, message: "other".into(), ..failed(1, Task::Archive) };
        assert_eq!(journal.note_failed(Failed { path: "".into(), ..again }, at(20, 2)).await.unwrap(), 2);
        // Another object of the same file.
        let other = Some((IntentId(9), ObjectKey("other".into())));
        journal.note_failed(Failed { deletion: other, ..failed(2, Task::Delete) }, at(30, 0)).await.unwrap();
        assert_eq!(journal.failed_files(), 4);
    }
    let journal = SqliteJournal::open(&path).unwrap();
    assert_eq!(journal.failed_files(), 4);
    let listed = journal.failed(None, 9).await.unwrap();
    let archive = &listed[0];
    let want = Failed { reason: Reason::Remote, message: "other".into(), ..failed(1, Task::Archive) };
    assert_eq!((&archive.failed, archive.attempts, archive.first, archive.last), (&want, 2, at(10, 1), at(20, 2)));
    assert_eq!(listed[1].failed, failed(1, Task::Scrub));
    assert_eq!(listed[2].failed, failed(2, Task::Delete));
    assert_eq!(journal.failed(Some(listed[2].id), 9).await.unwrap(), listed[3..]);
    assert_eq!(journal.failed(None, 2).await.unwrap(), listed[..2]);

    let done = |n, task, object: Option<&str>| Succeeded {
        file: node(n).id,
        task,
        object: object.map(|key| ObjectKey(key.into())),
    };
    journal.clear_failed(done(1, Task::Recall, None)).await.unwrap();
    journal.clear_failed(done(2, Task::Delete, Some("neither"))).await.unwrap();
    assert_eq!(journal.failed_files(), 4);
    journal.clear_failed(done(1, Task::Archive, None)).await.unwrap();
    journal.clear_failed(done(2, Task::Delete, Some("k2"))).await.unwrap();
    assert_eq!(journal.drop_failed(listed.iter().map(|entry| entry.id).collect()).await.unwrap(), 2);
    assert_eq!((journal.failed_files(), journal.failed(None, 9).await.unwrap().len()), (0, 0));
    assert_eq!(journal.value(FAILED_DROPPED).await.unwrap(), None, "nothing was dropped for want of room");
}

#[tokio::test]
async fn a_success_that_has_no_failure_costs_no_sync() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.db");
    let journal = SqliteJournal::open(&path).unwrap();
    journal.add(upload("p", "k", 1)).await.unwrap();
    let log = || std::fs::metadata(dir.path().join("journal.db-wal")).unwrap().len();
    let before = log();
    journal.clear_failed(Succeeded { file: node(1).id, task: Task::Archive, object: None }).await.unwrap();
    assert_eq!(log(), before, "nothing was written");
}

#[tokio::test]
async fn keys_that_notes_name_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let journal = SqliteJournal::open(dir.path().join("journal.db")).unwrap();
    journal.add(upload("p", "up", 1)).await.unwrap();
    journal.add(deletion("another", "down", at(99, 0))).await.unwrap();
    let keys = ["up", "none", "down", "u"].map(|key| ObjectKey(key.into()));
    assert_eq!(journal.names_keys(keys.into()).await.unwrap(), [true, false, true, false]);
    assert!(journal.names_keys(Vec::new()).await.unwrap().is_empty());
}

#[tokio::test]
async fn values_are_kept_and_each_journal_is_another() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.db");
    let journal = SqliteJournal::open(&path).unwrap();
    let identity = journal.value(IDENTITY).await.unwrap().unwrap();
    assert!(identity.len() == 32 && identity.bytes().all(|byte| byte.is_ascii_hexdigit()), "{identity}");
    for value in ["first", "second"] {
        journal.set_value("place", Some(value.into())).await.unwrap();
    }
    drop(journal);
    let journal = SqliteJournal::open(&path).unwrap();
    assert_eq!(journal.value("place").await.unwrap().as_deref(), Some("second"));
    assert_eq!(journal.value(IDENTITY).await.unwrap(), Some(identity.clone()));
    journal.set_value("place", None).await.unwrap();
    assert_eq!(journal.value("place").await.unwrap(), None);
    let other = SqliteJournal::open(dir.path().join("other.db")).unwrap();
    assert_ne!(other.value(IDENTITY).await.unwrap().unwrap(), identity);
}

/// Somebody else needs the object: nothing that would delete it stays, whoever noted it; what settles a file does.
#[tokio::test]
async fn uploads_and_deletions_of_an_object_can_be_withdrawn() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.db");
    {
        let journal = SqliteJournal::open(&path).unwrap();
        let upload = journal.add(upload("a", "kept", 1)).await.unwrap();
        journal.add(deletion("a", "kept", at(1, 0))).await.unwrap();
        journal.add(deletion("b", "kept", at(2, 0))).await.unwrap();
        journal.add(settlement("a", "kept", at(3, 0))).await.unwrap();
        journal.add(deletion("a", "other", at(4, 0))).await.unwrap();
        journal.withdraw(&ObjectKey("kept".into())).await.unwrap();
        journal.withdraw(&ObjectKey("nobody's".into())).await.unwrap();
        // Too late for who still has it in hand.
        journal.set_delete(upload, at(0, 0)).await.unwrap();
    }
    let journal = SqliteJournal::open(&path).unwrap();
    assert_eq!(keys(&journal.due(&pair("a"), at(9, 0), 9).await.unwrap()), ["other"]);
    assert_eq!(keys(&journal.due(&pair("b"), at(9, 0), 9).await.unwrap()), Vec::<&str>::new());
    assert_eq!(keys(&journal.unfinished(None, 9).await.unwrap()), ["kept"]);
}

#[tokio::test]
async fn recalled_files_are_kept_one_row_each_until_they_are_settled() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.db");
    let row = |name: &str, key: &str, n: u64, not_before| Recalled {
        pair: pair(name),
        key: ObjectKey(key.into()),
        node: node(n),
        not_before,
    };
    {
        let journal = SqliteJournal::open(&path).unwrap();
        for recalled in [
            row("p", "late", 1, at(9, 0)),
            row("p", "early", 2, at(5, 999_999_999)),
            row("q", "another pair's", 3, at(1, 0)),
            row("p", "noted anew", 4, at(1, 0)),
            row("p", "noted anew", 4, at(6, 0)),
        ] {
            journal.note_recalled(recalled).await.unwrap();
        }
    }
    let journal = SqliteJournal::open(&path).unwrap();
    let due = journal.recalled_due(&pair("p"), at(9, 0), 9).await.unwrap();
    let want =
        [row("p", "early", 2, at(5, 999_999_999)), row("p", "noted anew", 4, at(6, 0)), row("p", "late", 1, at(9, 0))];
    assert_eq!(due, want);
    assert_eq!(journal.recalled_due(&pair("p"), at(5, 999_999_998), 9).await.unwrap(), []);
    assert_eq!(journal.recalled_due(&pair("p"), at(9, 0), 1).await.unwrap(), want[..1]);
    // What was noted anew since it was read stays as it is.
    let before = row("p", "noted anew", 4, at(1, 0));
    journal.settle_recalled(before.clone(), None).await.unwrap();
    journal.settle_recalled(before, Some(at(100, 0))).await.unwrap();
    journal.settle_recalled(want[0].clone(), Some(at(7, 0))).await.unwrap();
    journal.settle_recalled(want[2].clone(), None).await.unwrap();
    let left = [want[1].clone(), row("p", "early", 2, at(7, 0))];
    assert_eq!(journal.recalled_due(&pair("p"), at(9, 0), 9).await.unwrap(), left);
    // None of them is a note.
    assert_eq!((journal.counts().await.unwrap(), journal.names_pair(&pair("p")).await.unwrap()), ((0, 0), false));
}
