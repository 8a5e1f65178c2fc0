//! `tierfs trace`: what happens to one file, as it happens.

use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::fs::{CWD, Mode, OFlags, getxattr, openat};
use rustix::io::Errno;
use serde_json::Value;

use super::exit::{self, CliError, Exit};
use super::report::utc;
use super::{Global, output};
use crate::control::ControlError;
use crate::control::locate::locate;
use crate::control::mountinfo;
use crate::pair::units::parse_duration;

const TRACE_XATTR: &str = "user.tierfs.trace";
/// How often the mount is asked; it remembers events for thirty seconds.
const PERIOD: Duration = Duration::from_millis(200);
/// Longest value that the kernel hands on.
const VALUE_MAX: usize = 64 << 10;

/// Show what happens to a file while it happens: who opens it, who waits for its content, recalls, copies, releases.
///
/// Its owner and root may. What the kernel reads and writes by itself in a file that is open is not seen, only the open and the close.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs trace /mnt/tiered/film.mkv\n  \
     tierfs trace --for 1m --json /mnt/tiered/film.mkv"))]
pub struct Trace {
    /// A regular file on a tierfs mount.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// End after this, like 30s or 5m [default: with Ctrl-C].
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    seconds: Option<u64>,
}

impl Trace {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        let failed = |reason: String| CliError::Failed(format!("{}: {reason}", self.file.display()));
        let mounts = mountinfo::read().map_err(ControlError::NoMountInfo)?;
        locate(&mounts, &self.file).map_err(|not| failed(not.reason))?;
        // The file itself, wherever it is moved; this opens nothing.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let held = openat(CWD, &self.file, flags, Mode::empty()).map_err(|errno| failed(errno.to_string()))?;
        let place = format!("/proc/self/fd/{}", held.as_raw_fd());
        let until = self.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        let mut next = None;
        loop {
            let text = events(&place).map_err(|errno| failed(reason(errno)))?;
            let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
            next = Some(self.tell(global, &lines, next));
            if until.is_some_and(|until| Instant::now() >= until) {
                return Ok(Exit::Done);
            }
            std::thread::sleep(PERIOD);
        }
    }

    /// Shows what is new; the number of the event that comes next. What happened before somebody asked is not shown.
    fn tell(&self, global: &Global, lines: &[Value], next: Option<u64>) -> u64 {
        let number = |line: &Value| line["n"].as_u64().unwrap_or(0);
        let (first, after) =
            (lines.first().map_or(0, number), lines.last().map_or(next.unwrap_or(0), |line| number(line) + 1));
        let Some(mut next) = next else { return after };
        if after < next {
            // Another daemon counts anew.
            next = 0;
        }
        if first > next {
            output::note(&format!("… {} events were too many to be told", first - next));
        }
        for line in lines.iter().filter(|line| number(line) >= next) {
            if global.json {
                output::json(line);
            } else {
                output::line(&output::plain(&shown(line)));
            }
        }
        after
    }
}

fn events(path: &str) -> Result<String, Errno> {
    let mut value = vec![0; VALUE_MAX];
    let len = getxattr(path, TRACE_XATTR, &mut value[..])?;
    value.truncate(len);
    Ok(String::from_utf8_lossy(&value).into_owned())
}

fn reason(errno: Errno) -> String {
    match errno {
        Errno::PERM | Errno::ACCESS => "only its owner or root may watch it".into(),
        Errno::NODATA | Errno::OPNOTSUPP => "not a regular file".into(),
        Errno::STALE | Errno::NOENT => "it is gone".into(),
        Errno::NOTCONN => "the mount's daemon has ended".into(),
        other => std::io::Error::from(other).to_string(),
    }
}

/// An event in words.
fn shown(event: &Value) -> String {
    let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
    let time = event["time"].as_f64().unwrap_or(0.0);
    let clock = utc(time as i64).split_once(' ').map_or(String::new(), |(_, clock)| clock.replace('Z', ""));
    let who = match &event["for"] {
        Value::Object(who) => {
            let program = who["program"].as_str().unwrap_or_default();
            format!(" by uid {} {program}[{}]", who["uid"], who["pid"])
        }
        _ => String::new(),
    };
    let error = match text("error").as_str() {
        "" => String::new(),
        error => format!(": {error}"),
    };
    let what = match text("event").as_str() {
        "opened" if !error.is_empty() => format!("not opened{who} to {}{error}", text("to")),
        "opened" => format!("opened{who} to {}, served by {}", text("to"), text("served_by")),
        "closed" if event["written"] == true => "closed, was open for writing".into(),
        "closed" => "closed".into(),
        "waited" => format!("waited {} ms for {}{who}{error}", event["ms"], waited_for(&text("on"))),
        "recall" => format!("recall asked for{who}, {}", text("class")),
        "begun" => format!("{} begins", text("transfer")),
        "ended" if error.is_empty() => format!("{} done, it is {} now", text("transfer"), text("state")),
        "ended" => format!("{} ended, it is {} now{error}", text("transfer"), text("state")),
        "changed" => "about to change: resident from now on".into(),
        "retained" => if event["retained"] == true { "locked for retention" } else { "retention lock ended" }.into(),
        "pinned" => if event["pinned"] == true { "pinned" } else { "unpinned" }.into(),
        other => format!("{other} {event}"),
    };
    format!("{clock}.{:03}  {what}", (time.fract() * 1000.0) as u64)
}

fn waited_for(on: &str) -> &str {
    match on {
        "content" => "content",
        "open" => "content, to open it",
        "step" => "the end of a transfer",
        "space" => "room on the share",
        other => other,
    }
}
