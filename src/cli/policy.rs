//! `tierfs policy`: the mount's policies.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::exit::{self, CliError, Exit};
use super::files::{each_reply, on_mounts};
use super::report::utc;
use super::{Global, output};
use crate::control::policies;
use crate::control::protocol::{PolicyAction, PolicyInfo, PolicyRun, Reply, Request};
use crate::pair::units::format_size;

/// The policies of a mount: rules in a file that archive, release, recall or pin files by age, size, owner, path, use and fill.
///
/// A mount has them by `-o policies=FILE`; docs/policies.md describes the file.
#[derive(Debug, Args)]
pub struct PolicyCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show each policy, when it runs, the run that is at work, and how the last one went.
    List(Where),
    Run(Run),
    Stop(Stop),
    DryRun(DryRun),
    Explain(Named),
    Reload(Where),
    Check(Check),
}

#[derive(Debug, Args)]
struct Where {
    /// The mount; needed where there are several.
    #[arg(long, value_name = "PATH")]
    on: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Named {
    /// Policies [default: all that are switched on].
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    place: Where,
}

/// Run policies now, whatever their schedules say; their triggers and limits hold.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs policy run old-projects\n  \
     tierfs policy run --on /mnt/tiered"))]
struct Run {
    #[command(flatten)]
    named: Named,
}

/// End runs of policies: nothing more is begun, and what is in hand is finished.
///
/// A policy that is switched on runs again when its interval has passed since; `enabled = false` and `tierfs policy reload` keep it off.
#[derive(Debug, Args)]
#[command(after_help = exit::help("  tierfs policy stop old-projects"))]
struct Stop {
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    place: Where,
}

/// Show which files a run would take now, in their order, and do nothing.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs policy dry-run old-projects\n  \
     tierfs policy dry-run --json | jq -r 'select(.reply == \"candidate\").path'"))]
struct DryRun {
    #[command(flatten)]
    named: Named,
}

/// Check a file of policies, without a mount.
#[derive(Debug, Args)]
#[command(after_help = exit::help("  tierfs policy check /etc/tierfs/policies.toml"))]
struct Check {
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl PolicyCommand {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        let (place, action) = match &self.action {
            Action::List(place) => (place, PolicyAction::List),
            Action::Reload(place) => (place, PolicyAction::Reload),
            Action::Run(Run { named }) => {
                (&named.place, PolicyAction::Run { names: named.names.clone(), dry_run: false })
            }
            Action::DryRun(DryRun { named }) => {
                (&named.place, PolicyAction::Run { names: named.names.clone(), dry_run: true })
            }
            Action::Stop(Stop { names, place }) => (place, PolicyAction::Stop { names: names.clone() }),
            Action::Explain(named) => (&named.place, PolicyAction::Explain { names: named.names.clone() }),
            Action::Check(check) => return check.run(global),
        };
        let groups = on_mounts(place.on.as_slice())?;
        let json = global.json;
        let acted = matches!(action, PolicyAction::Run { .. });
        let dry = matches!(action, PolicyAction::Run { dry_run: true, .. });
        let summary = each_reply(groups, &|_| Request::Policy { action: action.clone() }, &mut |reply| match reply {
            reply if json => output::json(&reply),
            Reply::Policy(info) => show(&info),
            Reply::Candidate(file) => {
                let path = output::shown(&file.path.to_path());
                output::line(&format!("{}  {:>9}  {path}", file.policy, format_size(file.size)));
            }
            Reply::Failure(failure) => {
                let word = if failure.skipped { "skipped" } else { "failed" };
                let path = output::shown(&failure.path.to_path());
                output::note(&format!("{word}: {path}: {}", output::plain(&failure.reason)));
            }
            _ => {}
        })?;
        if json {
            output::json(&Reply::Done(summary.clone()));
        } else if acted {
            let word = if dry { "would be taken" } else { "done" };
            let mut text = format!("{} files {word}, {}", summary.files, format_size(summary.bytes));
            if summary.skipped + summary.failed > 0 {
                text += &format!("; {} skipped, {} failed", summary.skipped, summary.failed);
            }
            output::line(&text);
        }
        Ok(if summary.failed > 0 { Exit::Partial } else { Exit::Done })
    }
}

impl Check {
    fn run(&self, global: &Global) -> Result<Exit, CliError> {
        let policies = policies::load(&self.file).map_err(|error| CliError::Failed(error.to_string()))?;
        let names: Vec<&str> = policies.rules.iter().map(|rule| rule.name.as_str()).collect();
        if global.json {
            output::json(&serde_json::json!({ "policies": names }));
        } else {
            output::line(&format!("{} policies: {}", names.len(), names.join(", ")));
        }
        Ok(Exit::Done)
    }
}

fn show(info: &PolicyInfo) {
    let off = if info.enabled { "" } else { " (off)" };
    output::line(&format!("{}{off}: {}", info.name, info.action));
    for condition in &info.conditions {
        output::line(&format!("    if {}", output::plain(condition)));
    }
    if let Some(trigger) = &info.trigger {
        output::line(&format!("    when {trigger}"));
    }
    output::line(&format!("    {}", info.schedule));
    if let Some(filter) = &info.filter {
        output::line(&format!("    in SQL: {}", output::plain(filter)));
    }
    if let Some((files, bytes)) = info.matches {
        output::line(&format!("    matches now: {files} files, {}", format_size(bytes)));
    }
    if let Some(running) = &info.running {
        output::line(&format!("    at work since {}", told(running)));
    }
    if let Some(last) = &info.last {
        output::line(&format!("    last run {}", told(last)));
    }
}

/// When a run began, what it did, and why it ended early or is to end.
fn told(run: &PolicyRun) -> String {
    let PolicyRun { files, skipped, failed, .. } = run;
    let (began, bytes) = (utc(run.began), format_size(run.bytes));
    let mut text = format!("{began}: {files} files, {bytes}; {skipped} skipped, {failed} failed");
    let stopped = run.stopped.map(|why| why.to_string());
    if let Some(why) = run.problem.as_ref().or(stopped.as_ref()) {
        text += &format!("; {}", output::plain(why));
    }
    text
}
