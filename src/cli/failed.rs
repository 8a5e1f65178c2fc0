//! `tierfs failed`: the dead-letter list.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Global;
use super::exit::{self, CliError, Exit};
use super::files::{ask_mounts, on_mounts};
use crate::control::protocol::{FailedAction, Request};

/// Show, try again or drop what has failed and was given up for now.
///
/// A file is listed when archiving, migrating, releasing or recalling it failed after all attempts, when its object cannot be deleted, or when the
/// background scrub found it damaged. Files that were busy, changed or removed are not. What succeeds later leaves the list by itself. The policy
/// tries a listed file again after a minute, then two, four, up to a day.
#[derive(Debug, Args)]
pub struct FailedCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    List(List),
    /// Try entries once more, now. What succeeds, or is gone, leaves the list; what fails is counted.
    Retry(Chosen),
    /// Take entries off the list, and change nothing else: what fails again comes back.
    Drop(Chosen),
}

/// Show the list: what was tried, why it failed, how often, and when last.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs failed list\n  \
     tierfs failed list /mnt/tiered/projects\n  \
     tierfs failed list --json | jq -r 'select(.reason == \"checksum\").path'"))]
struct List {
    /// Only at or below these [default: every tierfs mount].
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs failed retry --all\n  \
     tierfs failed retry /mnt/tiered/projects\n  \
     tierfs failed drop /mnt/tiered/projects/gone"))]
struct Chosen {
    /// At or below these; they need not exist any more.
    #[arg(value_name = "PATH", required_unless_present = "all")]
    paths: Vec<PathBuf>,
    /// All entries of every tierfs mount.
    #[arg(long, conflicts_with = "paths")]
    all: bool,
}

impl FailedCommand {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        let (paths, action, verb) = match &self.action {
            Action::List(list) => (&list.paths, FailedAction::List, ("listing", "listed")),
            Action::Retry(chosen) => (&chosen.paths, FailedAction::Retry, ("retrying", "retried")),
            Action::Drop(chosen) => (&chosen.paths, FailedAction::Drop, ("dropping", "dropped")),
        };
        let groups = on_mounts(paths)?;
        ask_mounts(global, groups, Some(verb), &|paths| Request::Failed { paths, action })
    }
}
