//! `tierfs index`: the share's index, its state and scans.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::exit::{self, CliError, Exit};
use super::files::{each_reply, on_mounts};
use super::report::utc;
use super::{Global, output};
use crate::control::protocol::{IndexAction, IndexInfo, Progress, Reply, Request};
use crate::pair::units::format_size;

/// The index of the share, which policies, `tierfs sql`, `du` and `find` ask instead of walking over the share.
///
/// It is filled by a scan and kept current by the mount. It is never the truth: an action on a file looks at the file itself. Whatever was
/// changed below the mount is found by the next scan.
#[derive(Debug, Args)]
pub struct IndexCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Status(Status),
    Scan(Scan),
    Rebuild(Rebuild),
}

/// Show whether it is complete, and what is in it.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs index status /mnt/tiered\n  \
     tierfs index status --json /mnt/tiered | jq .stale"))]
struct Status {
    /// The mount point, or anything on the mount.
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

/// Fill the index, or compare all of it with the share. Interrupted, it goes on there when it is next called.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs index scan /mnt/tiered\n  \
     tierfs index scan --rate 20000 /mnt/tiered\n  \
     tierfs index scan --stop /mnt/tiered"))]
struct Scan {
    #[command(flatten)]
    how: How,
    /// Have the scan that runs end where it is.
    #[arg(long)]
    stop: bool,
}

/// Throw the index away, counts of opens included, and fill it again.
#[derive(Debug, Args)]
#[command(after_help = exit::help("  tierfs index rebuild /mnt/tiered"))]
struct Rebuild {
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Args)]
struct How {
    /// The mount point, or anything on the mount.
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Look at so many files a second at most [default: no bound].
    #[arg(long, value_name = "FILES", default_value_t = 0, hide_default_value = true)]
    rate: u64,
    /// Threads that read directories [default: two a core].
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    threads: usize,
}

impl IndexCommand {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        let (path, action) = match &self.action {
            Action::Status(status) => (&status.path, IndexAction::Status),
            Action::Scan(Scan { how, stop: true }) => (&how.path, IndexAction::Stop),
            Action::Scan(Scan { how, .. }) => (&how.path, IndexAction::Scan { rate: how.rate, threads: how.threads }),
            Action::Rebuild(Rebuild { how }) => {
                (&how.path, IndexAction::Rebuild { rate: how.rate, threads: how.threads })
            }
        };
        let groups = on_mounts(std::slice::from_ref(path))?;
        let json = global.json;
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        let summary = each_reply(groups, &|_| Request::Index { action }, &mut |reply| match reply {
            Reply::Index(info) if json => output::json(&Reply::Index(info)),
            Reply::Index(info) => show(&info),
            Reply::Progress(progress) if json => output::json(&Reply::Progress(progress)),
            Reply::Progress(Progress { files_done, .. }) if terminal => {
                output::note(&format!("scanning: {files_done} inodes"));
            }
            _ => {}
        })?;
        if json {
            output::json(&Reply::Done(summary.clone()));
        } else if summary.files > 0 {
            let rate = summary.files as f64 / summary.seconds.max(0.001);
            output::line(&format!("scanned {} inodes in {:.1} s ({rate:.0}/s)", summary.files, summary.seconds));
        }
        if summary.failed > 0 {
            output::note(&format!("{} names or directories could not be read: see the daemon's log", summary.failed));
        }
        Ok(if summary.failed > 0 { Exit::Partial } else { Exit::Done })
    }
}

fn show(info: &IndexInfo) {
    let IndexInfo { inodes, directories, bytes, .. } = info;
    let mut state = info.state.clone();
    if let Some(met) = info.scanning {
        state += &format!(", {met} inodes met so far");
    }
    if info.stale {
        state += "; stale: something may be missing until the next scan";
    }
    let time = |at: Option<i64>| at.map_or_else(|| "never".into(), utc);
    for (name, value) in [
        ("index", state),
        ("last scan", format!("{} to {}", time(info.scan_began), time(info.scan_ended))),
        ("rows", format!("{inodes}, {directories} of them directories, in {}", format_size(*bytes))),
        ("hints", format!("{} since the mount, {} wait, {} lost", info.recorded, info.pending, info.lost)),
    ] {
        output::line(&format!("{name:<12}{value}"));
    }
    let row = |(state, sum): (&String, &crate::control::protocol::StateTotal)| {
        vec![state.clone(), sum.files.to_string(), format_size(sum.bytes), format_size(sum.local)]
    };
    let rows: Vec<_> = info.files.iter().map(row).collect();
    if !rows.is_empty() {
        output::table(&["STATE", "FILES", "SIZE", "LOCAL"], &rows);
    }
}
