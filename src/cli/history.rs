//! `tierfs history`.

use std::path::PathBuf;

use clap::Args;

use super::exit::{self, CliError, Exit};
use super::files::seen_from_here;
use super::report::utc;
use super::{Global, output};
use crate::control::ControlError;
use crate::control::client::Connection;
use crate::control::locate::{locate_gone, socket_of};
use crate::control::mountinfo;
use crate::control::protocol::{FileVersion, Reply, Request, VersionState, WirePath};
use crate::pair::units::format_size;

/// Show the generations of files that the store has.
///
/// The current one, and those of changed and removed files, which are kept for the pair's retention; `tierfs undelete` brings them
/// back. A file need not be there any more. Needs root.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs history /mnt/tiered/report.odt\n  \
     tierfs history --json /mnt/tiered/gone.iso"))]
pub struct History {
    /// Files on a tierfs mount, there or gone.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

impl History {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        if !rustix::process::geteuid().is_root() {
            return Err(CliError::Failed("this needs root: it shows what was removed of everybody's files".into()));
        }
        let mounts = mountinfo::read().map_err(ControlError::NoMountInfo)?;
        let mut exit = Exit::Done;
        let (mut rows, mut problems) = (Vec::new(), Vec::new());
        for file in &self.files {
            let shown = output::shown(file);
            let found =
                locate_gone(&mounts, file).map_err(|not| CliError::Failed(format!("{shown}: {}", not.reason)))?;
            let mut connection = Connection::open(&socket_of(&mounts, &found.mount)?, None)?;
            let request = Request::History { paths: vec![WirePath::from_path(&found.inside)] };
            let mut failed = None;
            let summary = connection.ask(&request, &mut |reply| {
                match seen_from_here(reply, &found.mount) {
                    reply if global.json => output::json(&reply),
                    Reply::Version(version) => {
                        problems.extend(version.problem.clone().map(|why| format!("{}: {why}", version.object)));
                        rows.push(row(&version));
                    }
                    Reply::Failure(failure) => failed = Some(failure.reason),
                    _ => {}
                }
                Ok(())
            })?;
            if let Some(reason) = failed {
                output::note(&format!("tierfs: {shown}: {reason}"));
            }
            if summary.failed > 0 {
                exit = Exit::Partial;
            } else if summary.files == 0 && !global.json {
                output::note(&format!("{shown}: the store has nothing of it"));
            }
        }
        if !rows.is_empty() {
            output::table(&["GENERATION", "SIZE", "MODIFIED", "STATE", "KEPT", "PATH"], &rows);
        }
        problems.iter().for_each(|problem| output::note(problem));
        Ok(exit)
    }
}

fn row(version: &FileVersion) -> Vec<String> {
    let state = match version.standing {
        VersionState::Current => "current",
        VersionState::Superseded => "superseded",
        VersionState::Deleted => "deleted",
    };
    let dash = || "-".to_owned();
    vec![
        version.generation.to_string(),
        version.size.map_or_else(dash, format_size),
        version.mtime.map_or_else(dash, |(secs, _)| utc(secs)),
        state.into(),
        version.kept_until.map_or_else(dash, |secs| format!("until {}", utc(secs))),
        output::shown(&version.path.to_path()),
    ]
}
