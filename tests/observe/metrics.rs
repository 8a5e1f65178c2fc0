//! Figures for Prometheus: what is served is what docs/metrics.md says, name by name, and counts what happened.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::rig::*;

/// The answer to a request, as it came.
#[track_caller]
fn http(rig: &Rig, method: &str, path: &str) -> String {
    let at = rig.info()["metrics"].as_str().expect("metrics are served").to_owned();
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Names and kinds in the order they are served, and each line's value.
#[track_caller]
fn scrape(rig: &Rig) -> (Vec<(String, String)>, BTreeMap<String, f64>) {
    let answer = http(rig, "GET", "/metrics");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.to_lowercase().contains("content-type: text/plain; version=0.0.4"), "{head}");
    let (mut families, mut values) = (Vec::new(), BTreeMap::new());
    for line in body.lines() {
        match line.strip_prefix("# TYPE ") {
            Some(family) => {
                let (name, kind) = family.split_once(' ').unwrap();
                families.push((name.to_owned(), kind.to_owned()));
            }
            None if line.starts_with('#') => {}
            None => {
                let (name, value) = line.rsplit_once(' ').unwrap();
                let last = families.last().unwrap();
                let of = name.split('{').next().unwrap();
                let own = ["", "_bucket", "_sum", "_count"].map(|end| format!("{}{end}", last.0));
                assert!(own.contains(&of.to_owned()), "{line} below {last:?}");
                assert!(values.insert(name.to_owned(), value.parse().unwrap()).is_none(), "twice: {line}");
            }
        }
    }
    (families, values)
}

fn documented() -> Vec<(String, String)> {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let cells = rows.map(|row| row.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect::<Vec<_>>());
    cells.map(|cells| (cells[0].clone(), cells[1].clone())).collect()
}

#[test]
fn what_is_served_is_what_the_document_says() {
    let Some(mut rig) = (Setup { mounted: false, ..Setup::default() }).build() else { return };
    let file = rig.scratch("policies.toml");
    fs::write(&file, "[policy.pin-it]\naction = \"pin\"\nmatch.paths = [\"pinned*\"]\nenabled = false\n").unwrap();
    let (policies, told) = (file.display(), rig.scratch("told"));
    let option = format!("metrics=127.0.0.1:0,policies={policies},announce={}", told.display());
    let output = rig.try_mount(&["-o", &option]);
    assert!(output.status.success(), "{}", said(&output));
    for name in ["a", "b", "c"] {
        rig.write(name, 3 * CHUNK);
        rig.migrate(name);
    }
    rig.write("pinned", CHUNK);
    rig.same("a", &noise("a", 3 * CHUNK));
    rig.on(&["recall"], &["b"]);
    let busy = fs::File::open(rig.mnt("b")).unwrap();
    code(&rig.try_on(&["release"], &["b"]), 1);
    rig.json(&["index", "scan", rig.mountpoint().to_str().unwrap()], 0);
    rig.json(&["policy", "run", "pin-it"], 0);
    let removed = fs::File::create(rig.mnt("removed")).unwrap();
    removed.write_all_at(&noise("removed", 5 * CHUNK), 0).unwrap();
    removed.sync_all().unwrap();
    fs::remove_file(rig.mnt("removed")).unwrap();

    let (families, values) = scrape(&rig);
    assert_eq!(families, documented(), "docs/metrics.md");
    let value = |name: &str| *values.get(name).unwrap_or_else(|| panic!("{name} in {values:#?}"));
    let size = (3 * CHUNK) as f64;
    assert_eq!(value("tierfs_archived_bytes_total"), 3.0 * size);
    assert_eq!(value("tierfs_released_bytes_total"), 3.0 * size);
    assert_eq!(value("tierfs_recalled_bytes_total"), 2.0 * size);
    assert_eq!(value("tierfs_transfers_total{operation=\"archive\",result=\"done\"}"), 3.0);
    assert_eq!(value("tierfs_transfers_total{operation=\"release\",result=\"done\"}"), 3.0);
    assert_eq!(value("tierfs_transfers_total{operation=\"recall\",result=\"done\"}"), 2.0);
    assert!(value("tierfs_transfers_total{operation=\"release\",result=\"skipped\"}") >= 1.0);
    assert_eq!(value("tierfs_recalls_begun_total{class=\"interactive\"}"), 1.0);
    assert_eq!(value("tierfs_recalls_begun_total{class=\"bulk\"}"), 1.0);
    assert_eq!(value("tierfs_stall_seconds_count{for=\"open\"}"), 1.0);
    assert_eq!(value("tierfs_stall_seconds_bucket{for=\"open\",le=\"+Inf\"}"), 1.0);
    // Three objects and their manifests.
    assert_eq!(value("tierfs_remote_requests_total{operation=\"put\",result=\"ok\"}"), 6.0);
    assert_eq!(value("tierfs_remote_request_seconds_count{operation=\"put\"}"), 6.0);
    assert_eq!(value("tierfs_pair_usable"), 1.0);
    assert_eq!(value("tierfs_files{state=\"stub\"}"), 1.0);
    assert_eq!(value("tierfs_files{state=\"dual\"}"), 2.0);
    assert_eq!(value("tierfs_file_bytes{state=\"stub\"}"), size);
    assert_eq!(value("tierfs_policy_last_run_files{policy=\"pin-it\",result=\"done\"}"), 1.0);
    assert_eq!(value("tierfs_policy_last_run_ok{policy=\"pin-it\"}"), 1.0);
    assert_eq!(value("tierfs_removed_files"), 1.0);
    assert!(value("tierfs_removed_bytes") >= 5.0 * CHUNK as f64);
    assert!(value("tierfs_open_handles") >= 2.0);
    assert!(value("tierfs_requests_total{request=\"open\"}") >= 2.0);
    assert!(value("tierfs_space_bytes{kind=\"total\"}") > 1e8);
    assert!(value("process_resident_memory_bytes") > 1e6 && value("process_open_fds") > 10.0);
    drop((busy, removed));

    assert!(value("tierfs_announcements_total{result=\"written\"}") >= 4.0);
    assert!(http(&rig, "GET", "/").starts_with("HTTP/1.1 404"));
    assert!(http(&rig, "POST", "/metrics").starts_with("HTTP/1.1 405"));
    assert!(http(&rig, "HEAD", "/metrics").starts_with("HTTP/1.1 200"));
    wait_for("the removed file's space", || scrape(&rig).1["tierfs_removed_files"] == 0.0);

    // Counters only grow, and an outage shows.
    let before = scrape(&rig).1;
    rig.stop_server();
    rig.write("d", CHUNK);
    code(&rig.try_on(&["migrate"], &["d"]), 1);
    let (_, after) = scrape(&rig);
    let grew = |name: &str| after[name] > before[name];
    assert!(grew("tierfs_remote_requests_total{operation=\"put\",result=\"unreachable\"}"));
    assert!(grew("tierfs_transfers_total{operation=\"archive\",result=\"remote\"}"));
    assert_eq!((after["tierfs_pair_usable"], after["tierfs_dead_letters"]), (0.0, 1.0));
    for (name, value) in before.iter().filter(|(name, _)| name.contains("_total") || name.contains("_bucket")) {
        assert!(after[name] >= *value, "{name} fell");
    }
}

#[test]
fn an_address_that_cannot_be_had_is_told_before_there_is_a_mount() {
    let Some(mut rig) = (Setup { mounted: false, ..Setup::default() }).build() else { return };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let option = format!("metrics={}", taken.local_addr().unwrap());
    let refused = rig.try_mount(&["-o", &option]);
    code(&refused, 3);
    assert!(said(&refused).contains("cannot serve metrics at 127.0.0.1:"), "{}", said(&refused));
    assert!(fs::read_dir(rig.mountpoint()).unwrap().next().is_none());
    rig.mount();
    assert_eq!(rig.info()["metrics"], serde_json::Value::Null);
}
