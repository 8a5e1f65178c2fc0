//! The benchmark of an endpoint: what it measures, and that nothing of it stays, whatever happens.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tierfs::gateway::faults::{Effect, Rule};
use tierfs::ports::{Remote, RemoteErrorKind as Kind};
use tierfs::remote::bench::{self, Bench, Cut, Op, Plan, Report, Unusable};
use tokio::sync::watch;

use crate::rig::{ACCESS, Content, PART, Rig, SECRET, key};

/// Of the tests' plans: four parts, in ranges that do not divide it.
const LARGE: u64 = 4 * PART + 1;
const RANGE: u64 = PART;
/// In requests for objects, not in listings.
const OBJECTS: &str = "/bucket/some/prefix/.tierfs-bench-";

fn plan() -> Plan {
    Plan { sizes: vec![1, LARGE], count: Some(6), at_once: vec![1, 3], range: RANGE, time: Duration::from_secs(60) }
}

async fn run(rig: &Rig, plan: Plan) -> Result<Report, Unusable> {
    let (_stop, stopped) = watch::channel(false);
    Bench::new(rig.remote().await, plan).run(stopped, &mut |_, _, _| ()).await
}

/// All keys of the bucket.
async fn there(rig: &Rig) -> Vec<String> {
    let listed = rig.sdk().list_objects_v2().bucket("bucket").send().await.unwrap();
    listed.contents().iter().map(|object| object.key().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_benchmark_measures_all_and_leaves_what_it_found() {
    let rig = Rig::new().await;
    let others = ["some/prefix/a", "some/prefix/.tierfs-bench-x", "elsewhere", "some/prefix/.tierfs-probe-1"];
    for other in others {
        rig.sdk().put_object().bucket("bucket").key(other).send().await.unwrap();
    }
    let before = there(&rig).await;
    let mut told = Vec::new();
    let (_stop, stopped) = watch::channel(false);
    let bench = Bench::new(rig.remote().await, plan());
    let report = bench.run(stopped, &mut |op, size, at_once| told.push((op, size, at_once))).await.unwrap();
    assert_eq!(there(&rig).await, before);
    assert_eq!((report.cut, report.left.len(), report.left_because.is_none()), (None, 0, true));
    assert_eq!(report.others, Some(1), "the one that looks like one");

    let of_size = |size, at_once| {
        let ops = [Op::Put, Op::Get, Op::Range, Op::Delete];
        ops.into_iter().filter(move |op| size > RANGE || *op != Op::Range).map(move |op| (op, size, at_once))
    };
    let wanted: Vec<_> =
        [(1, 1), (1, 3), (LARGE, 1), (LARGE, 3)].into_iter().flat_map(|(s, n)| of_size(s, n)).collect();
    assert_eq!(told, wanted);
    assert_eq!(report.rows.iter().map(|row| (row.request, row.size, row.at_once)).collect::<Vec<_>>(), wanted);
    for row in &report.rows {
        let count = if row.request == Op::Range { 24 } else { 6 };
        assert_eq!((row.wanted, row.done, row.errors), (count, count, 0), "{row:?}");
        let times = [row.median_ms, row.p99_ms, row.max_ms].map(Option::unwrap);
        assert!(0.0 < times[0] && times[0] <= times[1] && times[1] <= times[2], "{row:?}");
        assert!(times[2] / 1e3 <= row.seconds, "{row:?}");
        match row.request {
            Op::Put | Op::Get => assert_eq!(row.bytes, 6 * row.size, "{row:?}"),
            Op::Range => assert_eq!(row.bytes, 24 * RANGE, "{row:?}"),
            Op::Delete => assert_eq!((row.bytes, row.mb_per_s()), (0, None), "{row:?}"),
        }
    }
}

#[tokio::test]
async fn as_many_requests_as_asked_for_are_under_way() {
    let rig = Rig::new().await;
    rig.fault(Effect::Delay(Duration::from_millis(150)), "GET", "tierfs-bench", u64::MAX);
    let report = run(&rig, Plan { sizes: vec![100], count: Some(6), ..plan() }).await.unwrap();
    let gets = report.rows.iter().filter(|row| row.request == Op::Get);
    let seconds: Vec<f64> = gets.map(|row| row.seconds).collect();
    assert!(seconds[0] >= 0.9 && (0.3..0.9).contains(&seconds[1]), "one, then three at a time: {seconds:?}");
}

#[tokio::test]
async fn what_comes_back_is_compared() {
    let rig = Rig::new().await;
    // The first GET of an object is the trial's.
    rig.faults.add(Rule::new(Effect::CorruptReply { at: 500 }).method("GET").url(OBJECTS).skip(1).times(1));
    let report = run(&rig, Plan { sizes: vec![1_000], at_once: vec![1], ..plan() }).await.unwrap();
    let get = report.rows.iter().find(|row| row.request == Op::Get).unwrap();
    assert_eq!((get.done, get.errors), (5, 1));
    assert!(get.error.as_ref().unwrap().contains("what was read back is not what was stored"), "{get:?}");
    assert!(there(&rig).await.is_empty());
}

#[tokio::test]
async fn what_cannot_be_deleted_is_told() {
    let rig = Rig::new().await;
    let remote = rig.remote().await;
    let after_the_trial = Rule::new(Effect::InternalError).method("DELETE").url("tierfs-bench");
    let rule = rig.faults.add(after_the_trial.skip(1));
    let (_stop, stopped) = watch::channel(false);
    let report = Bench::new(remote.clone(), Plan { sizes: vec![10], at_once: vec![2], ..plan() })
        .run(stopped, &mut |_, _, _| ())
        .await
        .unwrap();
    let delete = report.rows.iter().find(|row| row.request == Op::Delete).unwrap();
    assert_eq!((delete.done, delete.errors), (0, 6));
    let left: Vec<String> = report.left.iter().map(|key| key.0.clone()).collect();
    assert_eq!(left, there(&rig).await, "what is there, and all of it");
    let of_a_file = |key| tierfs::engine::parse_key("some/prefix", key).is_some();
    assert!(!report.left.iter().any(of_a_file), "{left:?}");
    assert_eq!((left.len(), report.left_because.as_ref().unwrap().kind), (6, Kind::Server));

    // Too young to be somebody else's leavings; then old enough.
    rig.faults.remove(rule);
    assert_eq!(bench::sweep(&remote).await.unwrap().0, 0);
    assert_eq!(there(&rig).await.len(), 6);
    for name in [".tierfs-bench-5f-1a-0-0", ".tierfs-bench-5f-1a-0-1", ".tierfs-bench-notes"] {
        remote.put(&key(name), 1, Content::of(b"x"), &[]).await.unwrap();
    }
    let (deleted, failed) = bench::sweep(&remote).await.unwrap();
    assert_eq!((deleted, failed.len()), (2, 0));
    let mut wanted = left;
    wanted.push(key(".tierfs-bench-notes").0);
    assert_eq!(there(&rig).await, wanted);
}

#[tokio::test]
async fn an_end_that_is_asked_for_leaves_nothing() {
    let rig = Rig::new().await;
    // In the middle of parts that are uploaded.
    rig.fault(Effect::Delay(Duration::from_secs(5)), "PUT", "partNumber=2", u64::MAX);
    let bench = Bench::new(rig.remote().await, Plan { sizes: vec![LARGE], at_once: vec![3], ..plan() });
    let (stop, stopped) = watch::channel(false);
    let begun = Instant::now();
    let running = tokio::spawn(async move { bench.run(stopped, &mut |_, _, _| ()).await.unwrap() });
    while rig.unfinished_uploads().await < 3 {
        assert!(begun.elapsed() < Duration::from_secs(5), "the uploads do not begin");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.send_replace(true);
    let report = running.await.unwrap();
    assert_eq!((report.cut, report.left.len()), (Some(Cut::Asked), 0));
    assert_eq!(report.rows.iter().map(|row| (row.request, row.done)).collect::<Vec<_>>(), [(Op::Put, 0)]);
    assert!(there(&rig).await.is_empty());
    rig.unfinished_uploads_go_away().await;
}

#[tokio::test]
async fn the_time_is_kept_and_shared_out() {
    let rig = Rig::new().await;
    rig.faults.add(Rule::new(Effect::Delay(Duration::from_millis(100))).url("tierfs-bench"));
    let slow = Plan { sizes: vec![10], count: Some(10_000), time: Duration::from_secs(3), ..plan() };
    let begun = Instant::now();
    let report = run(&rig, slow).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(report.cut, Some(Cut::Time));
    // Both cells, all requests, some of each, none as many as wanted of the puts.
    assert_eq!(report.rows.len(), 6);
    for row in &report.rows {
        assert!(row.done > 0 && row.errors == 0, "{row:?}");
        assert!(row.seconds < 2.5, "{row:?}");
    }
    assert!(report.rows.iter().filter(|row| row.request == Op::Put).all(|row| row.done < row.wanted));
    assert!(there(&rig).await.is_empty() && report.left.is_empty());
}

#[tokio::test]
async fn one_that_hangs_is_cut() {
    let rig = Rig::new().await;
    rig.faults.add(Rule::new(Effect::Hang).method("GET").url(OBJECTS).skip(1));
    let begun = Instant::now();
    let hanging = Plan { sizes: vec![10], time: Duration::from_millis(1_500), ..plan() };
    let report = run(&rig, hanging).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!((report.cut, report.left.len()), (Some(Cut::Time), 0));
    assert!(there(&rig).await.is_empty());
}

#[tokio::test]
async fn a_store_that_takes_nothing_is_told_at_once() {
    let rig = Rig::new().await;
    rig.remote().await;
    let mut config = rig.config();
    let file = rig.dir.path().join("wrong");
    std::fs::write(&file, format!("[default]\naws_access_key_id = {ACCESS}\naws_secret_access_key = wrong\n")).unwrap();
    config.credentials = tierfs::remote::CredentialsFrom::File { path: file, profile: None };
    let remote = tierfs::remote::S3Remote::connect(config).await.unwrap();
    let (_stop, stopped) = watch::channel(false);
    let refused = Bench::new(remote, plan()).run(stopped, &mut |_, _, _| ()).await.unwrap_err();
    assert_eq!((refused.error.kind, refused.left.len()), (Kind::Denied, 0));

    // May be written, not emptied.
    rig.fault(Effect::InternalError, "DELETE", "tierfs-bench", u64::MAX);
    let refused = run(&rig, plan()).await.unwrap_err();
    let message = refused.to_string();
    assert!(message.contains("objects can be stored but not removed"), "{message}");
    assert!(message.contains("; left behind, perhaps: some/prefix/.tierfs-bench-"), "{message}");
    assert_eq!(there(&rig).await, refused.left.iter().map(|key| key.0.clone()).collect::<Vec<_>>());
}

/// The command, with a pair of its own.
struct Cli {
    dir: tempfile::TempDir,
}

impl Cli {
    fn new(endpoint: &str) -> Self {
        let cli = Self { dir: tempfile::tempdir().unwrap() };
        let share = format!("east:{}", cli.dir.path().display());
        let add = ["pair", "add", "cold", "--no-probe", "--local", &share, "--remote", "west:s3://bucket/some/prefix"];
        let added = cli.command(&add).args(["--endpoint", endpoint]).output().unwrap();
        assert!(added.status.success(), "{added:?}");
        cli
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tierfs"));
        command.args(args).env("TIERFS_CONFIG_DIR", self.dir.path().join("etc"));
        command.env("TIERFS_STATE_DIR", self.dir.path().join("var"));
        command.env("AWS_ACCESS_KEY_ID", ACCESS).env("AWS_SECRET_ACCESS_KEY", SECRET);
        command
    }

    /// Beside the server, which runs on this thread's runtime.
    async fn bench(&self, args: &[&str]) -> Output {
        let mut command = self.command(&["pair", "bench", "cold"]);
        command.args(args);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }
}

fn words(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn the_command_shows_a_table_or_json() {
    let rig = Rig::new().await;
    let cli = Cli::new(&rig.server.endpoint());
    let ran = cli.bench(&["--size", "10", "--size", "3MiB", "--count", "2", "--at-once", "1,2"]).await;
    let (out, err) = (words(&ran.stdout), words(&ran.stderr));
    assert_eq!(ran.status.code(), Some(0), "{out}\n{err}");
    assert_eq!(out.lines().count(), 1 + 14 + 1, "{out}");
    for piece in ["SIZE", "MEDIAN ms", "P99 ms", "MB/s", "3.00 MiB", "range", "pair cold at http://"] {
        assert!(out.contains(piece), "{piece}: {out}");
    }
    assert!(err.contains("put of 3.00 MiB, 2 at once …") && err.lines().count() == 14, "{err}");

    let ran = cli.bench(&["--size", "2MiB", "--count", "2", "--at-once", "1", "--json"]).await;
    let report: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!((ran.status.code(), words(&ran.stderr).as_str()), (Some(0), ""));
    assert_eq!(
        (&report["pair"], &report["ended_by"], &report["left"]),
        (&"cold".into(), &Value::Null, &Value::Array(vec![]))
    );
    let results = report["results"].as_array().unwrap();
    let requests: Vec<&str> = results.iter().map(|row| row["request"].as_str().unwrap()).collect();
    assert_eq!(requests, ["put", "get", "range", "delete"]);
    assert_eq!(
        (&results[1]["bytes"], &results[1]["errors"], &results[2]["bytes"]),
        (&(4 << 20).into(), &0.into(), &(8 << 20).into())
    );
    for figure in ["median_ms", "p99_ms", "mb_per_s", "per_s"] {
        assert!(results[1][figure].as_f64().unwrap() > 0.0, "{figure}: {report}");
    }
    assert!(there(&rig).await.is_empty());
}

#[tokio::test]
async fn an_interrupted_command_deletes_first() {
    let rig = Rig::new().await;
    rig.fault(Effect::Delay(Duration::from_millis(100)), "GET", "tierfs-bench", u64::MAX);
    let cli = Cli::new(&rig.server.endpoint());
    let mut command =
        cli.command(&["pair", "bench", "cold", "--json", "--size", "10", "--count", "300", "--time", "1m"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while rig.server.requests().op("GetObject") < 3 {
        assert!(begun.elapsed() < Duration::from_secs(20), "it does not begin");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    let ran = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    assert_eq!(ran.status.code(), Some(1), "{}", words(&ran.stderr));
    let report: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(report["ended_by"], "asked");
    assert_eq!(report["left"], Value::Array(vec![]));
    assert!(there(&rig).await.is_empty());
}

#[tokio::test]
async fn the_command_says_what_is_wrong() {
    let rig = Rig::new().await;
    let cli = Cli::new(&rig.server.endpoint());
    let nosuch = cli.command(&["pair", "bench", "nosuch"]).output().unwrap();
    assert_eq!(nosuch.status.code(), Some(3));
    assert!(words(&nosuch.stderr).contains("there is cold"), "{nosuch:?}");
    for (args, piece) in [
        (["--size", "0"], "use 1 to 1GiB"),
        (["--size", "2GiB"], "use 1 to 1GiB"),
        (["--time", "2h"], "use 1s to 1h"),
        (["--at-once", "0"], "1..=256"),
        (["--count", "10001"], "1..=10000"),
    ] {
        let refused = cli.bench(&args).await;
        assert_eq!(refused.status.code(), Some(2), "{args:?}");
        assert!(words(&refused.stderr).contains(piece), "{args:?}: {}", words(&refused.stderr));
    }
    let port = crate::port::Port::held();
    let down = Cli::new(&format!("http://{}", port.addr)).bench(&[]).await;
    let err = words(&down.stderr);
    assert_eq!(down.status.code(), Some(3), "{err}");
    assert!(err.contains("pair cold: put bucket/some/prefix/.tierfs-bench-") && err.contains("refused"), "{err}");
    let denied = tokio::task::spawn_blocking({
        let mut command = cli.command(&["pair", "bench", "cold"]);
        move || command.env("AWS_SECRET_ACCESS_KEY", "wrong").output().unwrap()
    });
    let err = words(&denied.await.unwrap().stderr);
    assert!(err.contains("pair cold: put bucket/") && !err.contains("left behind"), "{err}");
    assert_eq!(err.trim_end().lines().count(), 1, "{err}");
}
