//! A gateway without a mount tells its figures as a mount does: the names of docs/metrics.md, of what there is in it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use crate::place::{BUCKET, Place, User};
use crate::rig::{CHUNK, noise};
use crate::s3;

/// Families in the order in which they are served, and each line's value.
fn scrape(at: &str) -> (Vec<String>, BTreeMap<String, f64>) {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    let families = body.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let lines = body.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
    let values = lines.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect();
    (families.map(str::to_owned).collect(), values)
}

#[test]
fn a_gateway_alone_tells_its_figures() {
    let Some(mut place) = Place::alone() else { return };
    place.put(&place.root, "f", noise("f", 3 * CHUNK)).unwrap();
    place.stop();
    place.through_a_mount(|rig| rig.migrate("f"));

    let mut command = place.gateway_command(&["--metrics", "127.0.0.1:0", "--json"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let told: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line:?}"));
    let at = told["metrics"].as_str().unwrap().trim_start_matches("http://").trim_end_matches("/metrics").to_owned();
    let root = User::new(told["listening"].as_str().unwrap(), "root");
    let found = place.rig.block_on(async {
        let got = root.client.get_object().bucket(BUCKET).key("f").send().await.map_err(s3::code).unwrap();
        got.body.collect().await.unwrap().to_vec()
    });
    let scraped = std::panic::catch_unwind(|| scrape(&at));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(found, noise("f", 3 * CHUNK));

    let (families, values) = scraped.unwrap();
    let text = include_str!("../../docs/metrics.md");
    let documented: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let served: BTreeSet<&str> = families.iter().map(String::as_str).collect();
    assert_eq!(documented.iter().filter(|name| served.contains(*name)).count(), families.len(), "{families:?}");
    let mounts = ["tierfs_tasks", "tierfs_task_files", "tierfs_announcements", "tierfs_policy", "tierfs_index_scan"];
    for name in documented {
        assert_ne!(served.contains(name), mounts.iter().any(|start| name.starts_with(start)), "{name}");
    }
    let value = |name: &str| *values.get(name).unwrap_or_else(|| panic!("{name} in {values:#?}"));
    let info = values.keys().find(|name| name.starts_with("tierfs_info")).unwrap();
    assert!(info.contains("mountpoint=\"\"") && info.contains("pair=\"cold\""), "{info}");
    assert_eq!(value("tierfs_recalled_bytes_total"), (3 * CHUNK) as f64);
    assert_eq!(value("tierfs_pair_usable"), 1.0);
    assert_eq!(value("tierfs_recalls_begun_total{class=\"interactive\"}"), 1.0);
    assert!(value("tierfs_space_bytes{kind=\"total\"}") > 1e8);
    assert!(value("process_resident_memory_bytes") > 1e6);
}

#[test]
fn an_address_that_cannot_be_had_is_told() {
    let Some(mut place) = Place::alone() else { return };
    place.stop();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let said = place.refusal(&["--metrics", &at]);
    assert!(said.contains("cannot serve metrics at 127.0.0.1:"), "{said}");
}
