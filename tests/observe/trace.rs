//! `tierfs trace`: what happens to one file, told to its owner and to root while it happens. And the log as JSON.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};

use serde_json::Value;

use crate::rig::*;

struct Tracing {
    child: Child,
    events: Receiver<Value>,
    seen: Vec<Value>,
}

impl Drop for Tracing {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Tracing {
    fn new(rig: &Rig, name: &str) -> Self {
        let args = ["--json".into(), "trace".into(), rig.mnt(name).display().to_string()];
        let mut child = rig.command(&args).stdout(Stdio::piped()).spawn().unwrap();
        let (sender, events) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let _ = sender.send(serde_json::from_str(&line).unwrap());
            }
        });
        Self { child, events, seen: Vec::new() }
    }

    /// Waits for an event, and hands it out.
    #[track_caller]
    fn waits_for(&mut self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        loop {
            if let Some(at) = self.seen.iter().position(&is) {
                return self.seen.remove(at);
            }
            match self.events.recv_timeout(SOON) {
                Ok(event) => self.seen.push(event),
                Err(_) => panic!("{what} is not among {:#?}", self.seen),
            }
        }
    }
}

#[test]
fn what_happens_to_a_file_is_told_as_it_happens() {
    let Some(rig) = Rig::new() else { return };
    rig.write("a", 3 * CHUNK);
    rig.write("other", CHUNK);
    let mut trace = Tracing::new(&rig, "a");
    // It has begun when an open is told.
    wait_for("the trace's begin", || {
        fs::File::open(rig.mnt("a")).unwrap();
        trace.events.recv_timeout(std::time::Duration::from_millis(300)).is_ok_and(|event| event["event"] == "opened")
    });
    rig.migrate("a");
    rig.migrate("other");
    let ended = trace.waits_for("the copy", |event| event["event"] == "ended" && event["transfer"] == "archive");
    assert_eq!((&ended["state"], &ended["error"]), (&"dual".into(), &Value::Null));
    let ended = trace.waits_for("the release", |event| event["event"] == "ended" && event["transfer"] == "release");
    assert_eq!(ended["state"], "stub");
    let script = format!("cat {} > /dev/null", rig.mnt("a").display());
    assert!(as_nobody(std::path::Path::new("/"), &script).status.success());
    let opened = trace.waits_for("the open", |event| event["event"] == "opened" && event["for"]["uid"] == NOBODY);
    assert_eq!((&opened["to"], &opened["for"]["program"]), (&"read".into(), &"cat".into()));
    let waited = trace.waits_for("the wait", |event| event["event"] == "waited");
    assert_eq!((&waited["on"], &waited["for"]["uid"]), (&"open".into(), &NOBODY.into()));
    let recall = trace.waits_for("the recall", |event| event["event"] == "recall");
    assert_eq!((&recall["class"], &recall["for"]["program"]), (&"interactive".into(), &"cat".into()));
    trace.waits_for("its end", |event| {
        event["event"] == "ended" && event["transfer"] == "recall" && event["state"] == "dual"
    });
    fs::rename(rig.mnt("a"), rig.mnt("b")).unwrap();
    fs::write(rig.mnt("b"), b"new").unwrap();
    trace.waits_for("the change, under its new name", |event| event["event"] == "changed");
    rig.on(&["pin"], &["b"]);
    trace.waits_for("the pin", |event| event["event"] == "pinned" && event["pinned"] == true);
    let numbers: Vec<_> = trace.seen.iter().map(|event| event["n"].as_u64().unwrap()).collect();
    assert!(numbers.is_sorted(), "{numbers:?}");
    // Of another file nothing is remembered: nobody asked.
    assert_eq!(rig.virtual_xattr("other", "trace").unwrap(), "");
    let brief = rig.tierfs(&["trace", "--for", "1s", rig.mnt("b").to_str().unwrap()]);
    code(&brief, 0);
}

#[test]
fn only_the_owner_and_root_may_watch() {
    let Some(rig) = Rig::new() else { return };
    rig.write("roots", CHUNK);
    rig.write("his", CHUNK);
    std::os::unix::fs::chown(rig.mnt("his"), Some(NOBODY), None).unwrap();
    let get = |name: &str| {
        let script = format!(
            "python3 -c 'import os; print(len(os.getxattr(\"{}\", \"user.tierfs.trace\")))'",
            rig.mnt(name).display()
        );
        as_nobody(std::path::Path::new("/"), &script)
    };
    let his = get("his");
    assert!(his.status.success(), "{}", said(&his));
    let refused = get("roots");
    assert!(said(&refused).contains("Operation not permitted"), "{}", said(&refused));
    assert_eq!(rig.virtual_xattr("his", "trace").unwrap(), "");
    for (path, why) in [(rig.mountpoint(), "regular"), (rig.scratch("etc"), "tierfs mount")] {
        let refused = rig.tierfs(&["trace", "--for", "1s", path.to_str().unwrap()]);
        code(&refused, 3);
        assert!(said(&refused).contains(why), "{}", said(&refused));
    }
}

#[test]
fn the_log_is_json_where_that_is_asked_for() {
    let Some(mut rig) = (Setup { mounted: false, ..Setup::default() }).build() else { return };
    let output = rig.try_mount(&["--log-format", "json"]);
    assert!(output.status.success(), "{}", said(&output));
    rig.quiet();
    rig.write("a", CHUNK);
    rig.stop_server();
    code(&rig.try_on(&["migrate"], &["a"]), 1);
    let log = rig.log();
    let lines: Vec<Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect();
    let listed = lines.iter().find(|line| line["task"] == "migrate").unwrap_or_else(|| panic!("{log}"));
    assert_eq!((&listed["level"], &listed["path"], &listed["attempts"]), (&"warn".into(), &"a".into(), &1.into()));
    assert!(lines.iter().all(|line| line["seconds"].as_f64().unwrap() > 1e9 && line["message"].is_string()), "{log}");
}
