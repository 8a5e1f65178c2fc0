//! The engine on a share whose remote's answers are twisted: what comes back is the content or an error, and after an error the stub is as
//! it was.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use tierfs::engine::{Candidate, Engine, JobKind, Limits, Outcome, Target};
use tierfs::journal::SqliteJournal;
use tierfs::lower::Share;
use tierfs::ports::{Lower, SystemClock};
use tierfs::record::{Claim, PairRef, Record};
use tierfs::remote::S3Remote;
use tierfs::tier::Activity;

use crate::fuzz;
use crate::rig::*;
use crate::twist::{Proxy, twist};

const CHUNK: u32 = 64 << 10;

#[test]
fn what_comes_back_is_the_content_or_an_error() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "this test needs root: it opens files by handle");
        return eprintln!("SKIPPED: this test needs root, because it opens files by handle");
    }
    let _ = tierfs::lower::ignore_sigio();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let rig = runtime.block_on(Rig::new());
    let proxy = Proxy::before(rig.server.addr());
    let mut config = rig.config();
    config.endpoints = vec![proxy.url.clone()];
    config.prefix = String::new();
    let remote = runtime.block_on(S3Remote::connect(config)).unwrap();
    let share = rig.dir.path().join("share");
    std::fs::create_dir(&share).unwrap();
    let contents = [noise(1_000), noise(3 * u64::from(CHUNK) + 5)];
    for (n, content) in contents.iter().enumerate() {
        std::fs::write(share.join(n.to_string()), content).unwrap();
    }
    let lower: Arc<dyn Lower> = Arc::new(Share::open(&share).unwrap());
    let journal = Arc::new(SqliteJournal::open(rig.dir.path().join("journal")).unwrap());
    let pair = PairRef {
        name: "p".parse().unwrap(),
        local_cluster: "east".parse().unwrap(),
        local_share: "s".into(),
        remote_cluster: "west".parse().unwrap(),
        remote_share: "bucket".into(),
    };
    let target = Target {
        pair,
        prefix: String::new(),
        remote: Arc::new(remote),
        chunk_size: Some(CHUNK),
        retention_s: 0,
        recalled_for_s: None,
        peer: false,
        recall: Default::default(),
        restore: Default::default(),
        pack: None,
    };
    let engine = Engine::new(
        lower.clone(),
        journal,
        Arc::new(SystemClock),
        Some(target),
        runtime.handle().clone(),
        Limits::default(),
    );
    let candidate = |n: usize| {
        let name = n.to_string();
        let (node, attr) = lower.lookup(&lower.root(), OsStr::new(&name)).unwrap();
        Candidate { node, attr, path: PathBuf::from(name) }
    };
    let run = |kind, n: usize| runtime.block_on(engine.run_one(kind, &candidate(n)));
    for n in 0..contents.len() {
        assert!(matches!(run(JobKind::Migrate, n), Ok(Outcome::Done)));
    }
    let record = |n: usize| Record::decode(&lower.load_record(&candidate(n).node).unwrap().unwrap()).unwrap();
    let cases = (0..contents.len(), proptest::bool::weighted(0.1), vec(twist(), 1..3));
    fuzz("recalls", 40, cases, |(n, verify, twists)| {
        let before = record(n);
        prop_assert_eq!(before.claim, Claim::Stub);
        let path = share.join(n.to_string());
        let mtime = std::fs::metadata(&path).unwrap().mtime_nsec();
        proxy.twist(&twists);
        let job = if verify { JobKind::Verify { md5: true } } else { JobKind::Recall };
        let (kind, file) = (job, candidate(n));
        // Once: patience with what passes is another matter, and takes seconds.
        let cell = engine.cells.get(&file.node).unwrap();
        let outcome = if verify {
            runtime.block_on(engine.run_one(kind, &file))
        } else {
            runtime.block_on(engine.recall(&cell)).map(|_| Outcome::Done)
        };
        // Who asked is told before it has ended.
        runtime.block_on(cell.wait_until(|inner| inner.machine.activity() == Activity::None));
        drop(cell);
        proxy.twist(&[]);
        match outcome {
            Ok(Outcome::Digest(md5)) => {
                use md5::Digest;
                let right: String = md5::Md5::digest(&contents[n]).iter().map(|byte| format!("{byte:02x}")).collect();
                prop_assert_eq!(md5, right);
            }
            Ok(_) => {
                prop_assert!(!verify);
                prop_assert!(std::fs::read(&path).unwrap() == contents[n], "other content came back");
                prop_assert_eq!(std::fs::metadata(&path).unwrap().mtime_nsec(), mtime);
                prop_assert!(matches!(run(JobKind::Release, n), Ok(Outcome::Done)));
            }
            Err(error) => {
                prop_assert!(!error.to_string().contains('\n') && !error.to_string().contains(SECRET), "{error}");
                if record(n).claim == Claim::Partial {
                    // What had come stays, and is the content.
                    let there = std::fs::read(&path).unwrap();
                    let parts = there.chunks(CHUNK as usize).zip(contents[n].chunks(CHUNK as usize));
                    let right =
                        |(there, content): (&[u8], &[u8])| there == content || there.iter().all(|byte| *byte == 0);
                    prop_assert!(parts.into_iter().all(right), "other content came back");
                    prop_assert!(matches!(run(JobKind::Release, n), Ok(Outcome::Done)));
                }
            }
        }
        let after = record(n);
        prop_assert_eq!(
            (after.claim, after.object.as_ref().map(|object| &object.key)),
            (Claim::Stub, before.object.as_ref().map(|object| &object.key))
        );
        let metadata = std::fs::metadata(&path).unwrap();
        prop_assert_eq!((metadata.len(), metadata.mtime_nsec()), (contents[n].len() as u64, mtime));
        prop_assert!(metadata.blocks() <= 8, "{} blocks of a failed recall stay", metadata.blocks());
        Ok(())
    });
    assert!(proxy.twisted.load(std::sync::atomic::Ordering::Relaxed) >= 40);
    for (n, content) in contents.iter().enumerate() {
        assert!(matches!(run(JobKind::Recall, n), Ok(Outcome::Done)));
        assert!(std::fs::read(share.join(n.to_string())).unwrap() == *content);
    }
    runtime.block_on(rig.server.shutdown());
}
