//! `tierfs sync`: the metadata sync of a pair of clusters.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::exit::{self, CliError, Exit};
use super::files::{each_reply, on_mounts};
use super::report::utc;
use super::{Global, output};
use crate::control::protocol::{Progress, Reply, Request, SyncAction};
use crate::sync::{ComparisonStatus, Status};

/// The metadata sync of a pair: names and attributes of the master's share, on the slave.
///
/// What changes on the master is told within a second, or when the slave can be reached again. What was there before the sync, and what changed below
/// the mount, is found by a comparison of the whole share (--reconcile), which runs in the mount and goes on after interruptions. Nothing that
/// only the slave has is overwritten: `tierfs sync status` there lists what is in the way.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, after_help = exit::help(
    "  tierfs sync status /mnt/tiered\n  \
     tierfs sync --reconcile --dry-run /mnt/tiered      (on the master)\n  \
     tierfs sync --reconcile /mnt/tiered                (on the master)\n  \
     tierfs sync --take /mnt/tiered/reports/may.odt     (on the slave: what is there becomes may.odt~own)"))]
pub struct SyncCommand {
    #[command(subcommand)]
    action: Option<Action>,
    /// Compare the whole share with the slave's and make that equal.
    #[arg(long, conflicts_with_all = ["take", "accept_master"])]
    reconcile: bool,
    /// Only show what would be changed.
    #[arg(long, requires = "reconcile")]
    dry_run: bool,
    /// On the slave: rename what only it has under these paths, so that the master's can be there.
    #[arg(long, conflicts_with = "accept_master")]
    take: bool,
    /// On the slave: whoever begins next is the master, though it is another share than before.
    #[arg(long)]
    accept_master: bool,
    /// The mount point, or anything on the mount; with --take, what is in the way.
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Action {
    Status(StatusArgs),
}

/// Show which side this is, what waits, and which names are not the same.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs sync status /mnt/tiered\n  \
     tierfs sync status --json /mnt/tiered | jq '.waiting, .problem'"))]
struct StatusArgs {
    /// The mount point, or anything on the mount.
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

impl SyncCommand {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        let (paths, action) = match &self.action {
            Some(Action::Status(status)) => (vec![status.path.clone()], SyncAction::Status),
            None if self.reconcile => (self.paths.clone(), SyncAction::Compare { dry_run: self.dry_run }),
            None if self.take => (self.paths.clone(), SyncAction::Take { paths: Vec::new() }),
            None if self.accept_master => (self.paths.clone(), SyncAction::AcceptMaster),
            None => {
                return Err(CliError::Usage("say what to do: status, --reconcile, --take or --accept-master".into()));
            }
        };
        if paths.is_empty() || (!self.take && paths.len() > 1) {
            return Err(CliError::Usage("name one mount point (with --take, the paths in the way)".into()));
        }
        let groups = on_mounts(&paths)?;
        let json = global.json;
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        let request = |paths| Request::Sync {
            action: match &action {
                SyncAction::Take { .. } => SyncAction::Take { paths },
                action => action.clone(),
            },
        };
        let mut problem = false;
        let summary = each_reply(groups, &request, &mut |reply| match reply {
            Reply::Sync(status) => {
                problem = status.problem.is_some();
                if json { output::json(&Reply::Sync(status)) } else { show(&status) }
            }
            Reply::SyncCompared(done) if json => output::json(&Reply::SyncCompared(done)),
            Reply::SyncCompared(done) => compared(&done, self.dry_run),
            Reply::SyncDifference(difference) if json => output::json(&Reply::SyncDifference(difference)),
            Reply::SyncDifference(difference) => {
                let path = difference.path.to_path();
                output::line(&format!(
                    "{}: {}",
                    output::plain(&path.display().to_string()),
                    output::plain(&difference.why)
                ));
            }
            Reply::Progress(progress) if json => output::json(&Reply::Progress(progress)),
            Reply::Progress(Progress { files_done, .. }) if terminal => {
                output::note(&format!("comparing: {files_done} names and directories"));
            }
            _ => {}
        })?;
        if json {
            output::json(&Reply::Done(summary));
        }
        Ok(if problem { Exit::Partial } else { Exit::Done })
    }
}

fn compared(done: &ComparisonStatus, dry_run: bool) {
    let ComparisonStatus { directories, entries, counts, .. } = done;
    let would = if dry_run { "would be " } else { "" };
    output::line(&format!(
        "compared {entries} names in {directories} directories: {would}made {}, {would}moved {}, {would}changed {}, {would}removed {}, \
         refused {}",
        counts.made, counts.moved, counts.changed, counts.removed, counts.refused
    ));
}

fn comparison(of: Option<&ComparisonStatus>) -> String {
    match of {
        Some(ComparisonStatus { began, ended, counts, entries, .. }) => {
            let ended = ended.map_or_else(|| "under way".into(), utc);
            let differences = counts.differences();
            format!(
                "{} to {ended}: {entries} names, {differences} differences, {} refused",
                utc(*began),
                counts.refused
            )
        }
        None => "never: what was there before is synced when it changes, or by --reconcile".into(),
    }
}

fn show(status: &Status) {
    let master = status.role == "master";
    let mut lines = vec![
        (
            "role",
            format!(
                "{} of pair {}: {} {} {}",
                status.role,
                status.pair,
                status.here,
                if master { "→" } else { "←" },
                status.there
            ),
        ),
        ("state", status.problem.clone().unwrap_or_else(|| "in order".into())),
        (if master { "told" } else { "heard" }, status.last.map_or_else(|| "nothing yet".into(), utc)),
    ];
    if master {
        lines.push(("waiting", format!("{} of {} changes since the mount", status.waiting, status.changes)));
        lines.push(("sent", format!("{} statements in {} batches", status.statements, status.batches)));
        let counts = &status.counts;
        let done = format!(
            "made {}, moved {}, changed {}, removed {}, refused {}",
            counts.made, counts.moved, counts.changed, counts.removed, counts.refused
        );
        lines.push(("done there", done));
        match &status.comparing {
            Some(running) => lines.push(("comparing", comparison(Some(running)))),
            None => lines.push(("compared", comparison(status.compared.as_ref()))),
        }
    } else {
        lines.push(("known", format!("{} files, directories and others of the master", status.inodes)));
    }
    lines.push(("refused", status.refused.to_string()));
    for (name, value) in lines {
        output::line(&format!("{name:<12}{}", output::plain(&value)));
    }
    for refused in &status.refused_names {
        let path = refused.path.to_path();
        output::line(&format!("  {}: {}", output::plain(&path.display().to_string()), output::plain(&refused.why)));
    }
}
