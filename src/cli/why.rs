//! `tierfs why`: what decides about a file.

use std::path::PathBuf;

use clap::Args;

use super::exit::{self, CliError, Exit};
use super::files::{each_reply, on_mounts};
use super::report::utc;
use super::{Global, output};
use crate::control::protocol::{Reply, Request, WhyFile, WhyReason};

/// Show why a file is, or is not, tiered: every policy with what holds and what does not and when it comes to it, how it is used, and who had it recalled last.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs why /mnt/tiered/projects/a/frame.exr\n  \
     tierfs why --json /mnt/tiered/x | jq '.rules[] | select(.applies).name'"))]
pub struct Why {
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

impl Why {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        let groups = on_mounts(&self.files)?;
        let json = global.json;
        let summary = each_reply(groups, &|paths| Request::Why { paths }, &mut |reply| match reply {
            reply if json => output::json(&reply),
            Reply::Why(why) => show(&why),
            Reply::Failure(failure) => {
                let path = output::shown(&failure.path.to_path());
                output::note(&format!("failed: {path}: {}", output::plain(&failure.reason)));
            }
            _ => {}
        })?;
        Ok(if summary.failed > 0 { Exit::Partial } else { Exit::Done })
    }
}

/// With its time.
fn shown(reason: &WhyReason) -> String {
    match (reason.at, reason.reason.as_str()) {
        (None, _) => reason.text.clone(),
        (Some(at), "failed") => format!("{} (policies try again from {})", reason.text, utc(at)),
        (Some(at), _) => format!("{} ({})", reason.text, utc(at)),
    }
}

fn show(why: &WhyFile) {
    output::line(&format!("{}: {}", output::shown(&why.path.to_path()), why.state));
    let line = |text: String| output::line(&format!("  {}", output::plain(&text)));
    if let Some(project) = why.project.filter(|project| *project != 0) {
        line(format!("of quota project {project}"));
    }
    if !why.indexed {
        line("not in the index yet: `tierfs index scan`".into());
    }
    let opened = why.accessed.map_or_else(|| "never opened through the mount".into(), |at| format!("last {}", utc(at)));
    line(format!("opened {} times, {opened}; heat {:.2}", why.accesses, why.heat));
    if let Some(at) = why.recalled {
        line(format!("recalled {} by {}", utc(at), why.recalled_by.as_deref().unwrap_or("unknown")));
    }
    why.against.iter().map(shown).for_each(line);
    if why.rules.is_empty() {
        line("no policies: the mount has none".into());
    }
    let (off, on): (Vec<_>, Vec<_>) = why.background.iter().partition(|work| work.value.is_none());
    for work in on {
        let verdict = match (&work.against, &work.next) {
            (Some(why), _) => format!("no: {}", shown(why)),
            (None, next) => format!("yes, {}", next.as_ref().map_or_else(String::new, shown)),
        };
        let value = work.value.as_deref().unwrap_or_default();
        line(format!("{} {value} ({}): {verdict}", work.option, work.action));
    }
    if !off.is_empty() {
        let names: Vec<&str> = off.iter().map(|work| work.option.as_str()).collect();
        line(format!("off: {}", names.join(", ")));
    }
    for rule in &why.rules {
        let verdict = match (&rule.against, rule.applies) {
            (Some(why), _) => format!("no: {}", shown(why)),
            (None, true) => {
                let last = rule.last_run.map_or(String::new(), |at| format!(" (last run {})", utc(at)));
                format!("yes, {}{last}", rule.next.as_ref().map_or_else(|| "when it next runs".into(), shown))
            }
            (None, false) => "no".into(),
        };
        line(format!("policy {} ({}): {verdict}", rule.name, rule.action));
        for (condition, holds) in &rule.conditions {
            line(format!("    {} {condition}", if *holds { "holds:" } else { "fails:" }));
        }
    }
}
