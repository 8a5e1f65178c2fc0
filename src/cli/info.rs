//! `tierfs info`: what a mount is and how it does.

use std::path::PathBuf;

use clap::Args;

use super::exit::{self, CliError, Exit};
use super::report::utc;
use super::{Global, output};
use crate::control::ControlError;
use crate::control::client::mount_info;
use crate::control::locate::absolute;
use crate::control::mountinfo;
use crate::control::protocol::{Reply, ScrubInfo, ScrubPass, SpaceInfo};
use crate::pair::units::format_size;

/// Show what a mount is: its share, daemon and pair, what it does now, and what the kernel has asked of it.
///
/// Each request listed was a round trip between a program and the daemon; reads and writes of resident files are none.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs info /mnt/tiered\n  \
     tierfs info --json /mnt/tiered | jq .requests"))]
pub struct Info {
    /// The mount point, or anything on the mount.
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

impl Info {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        let failed = |reason: String| CliError::Failed(format!("{}: {reason}", self.path.display()));
        let path = absolute(&self.path).map_err(|error| failed(error.to_string()))?;
        let mounts = mountinfo::read().map_err(ControlError::NoMountInfo)?;
        let mount = mountinfo::covering(&mounts, &path).filter(|mount| mount.is_tierfs()).ok_or_else(|| {
            failed("nothing of tierfs is mounted there (`findmnt -t fuse.tierfs` lists the mounts)".into())
        })?;
        let info = mount_info(&mounts, mount)?;
        if global.json {
            output::json(&Reply::Mount(info));
            return Ok(Exit::Done);
        }
        let pair = match (&info.pair, &info.pair_problem) {
            (None, _) => "none".to_owned(),
            (Some(_), None) => info.pairs().collect::<Vec<_>>().join(", "),
            (Some(_), Some(problem)) => {
                format!("{}, unusable at present: {problem}", info.pairs().collect::<Vec<_>>().join(", "))
            }
        };
        let (uploads, deletions) = info.intents;
        let failed = match info.failed {
            (0, _) => "nothing".to_owned(),
            (count, 0) => format!("{count} on the list (`tierfs failed list`)"),
            (count, dropped) => {
                format!("{count} on the list (`tierfs failed list`), {dropped} dropped for want of room")
            }
        };
        let scrub = info.scrub.as_ref().map_or("off".to_owned(), scrubbing);
        for (name, value) in [
            ("share", &info.share),
            ("mounted at", &info.mountpoint),
            ("daemon", &format!("process {}, tierfs {}", info.pid, info.version)),
            ("pair", &pair),
            ("transfers", &format!("{} running, {uploads} noted as unfinished", info.transfers)),
            ("deletions", &format!("{deletions} objects wait for theirs")),
            ("failed", &failed),
            ("space", &info.space.as_ref().map_or("?".into(), space)),
            ("scrub", &scrub),
            ("metrics", &info.metrics.map_or("off".into(), |at| format!("http://{at}/metrics"))),
        ] {
            output::line(&output::plain(&format!("{name:<12}{value}")));
        }
        let requests: Vec<_> = info.requests.iter().map(|(name, count)| format!("{name} {count}")).collect();
        output::line(&format!("{:<12}{}", "requests", requests.join(", ")));
        Ok(Exit::Done)
    }
}

/// The share's space, in a line.
fn space(space: &SpaceInfo) -> String {
    let mut text = format!("{} of {} available", format_size(space.available), format_size(space.total));
    if space.reserve > 0 {
        text += &format!(", {} kept so", format_size(space.reserve));
    }
    if space.removed_files > 0 {
        let (files, bytes) = (space.removed_files, format_size(space.removed_bytes));
        text += &format!("; {bytes} held by {files} removed files that are still open");
    }
    text
}

/// What the scrub does, in a line.
fn scrubbing(scrub: &ScrubInfo) -> String {
    let read = |pass: &ScrubPass| {
        format!("{} objects read ({}), {} damaged", pass.files, format_size(pass.bytes), pass.damaged)
    };
    let mut text = format!("at most {}/s", format_size(scrub.rate));
    if let Some(pass) = &scrub.pass {
        text += &format!("; this pass: {}", read(pass));
        if let Some(at) = &scrub.at {
            text += &format!(", at {}", at.to_path().display());
        }
    }
    if let Some(last) = &scrub.last {
        text += &format!("; last pass, ended {}: {}", last.ended.map_or_else(|| "?".into(), utc), read(last));
    }
    if let Some(problem) = &scrub.problem {
        text += &format!("; waits: {problem}");
    }
    text
}
