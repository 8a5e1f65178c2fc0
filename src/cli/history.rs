//! `tierfs history`.

use std::path::PathBuf;

use clap::Args;

use super::exit::{self, CliError, Exit};
use super::files::seen_from_here;
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
        version.mtime.map_or_else(dash, |(secs, _)| date(secs)),
        state.into(),
        version.kept_until.map_or_else(dash, |secs| format!("until {}", date(secs))),
        output::shown(&version.path.to_path()),
    ]
}

/// A time in UTC (civil_from_days of Howard Hinnant's date algorithms).
fn date(secs: i64) -> String {
    let (days, rest) = (secs.div_euclid(86_400), secs.rem_euclid(86_400));
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 { month_shifted + 3 } else { month_shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    #[test]
    fn dates() {
        for (secs, text) in [
            (0, "1970-01-01 00:00:00Z"),
            (-1, "1969-12-31 23:59:59Z"),
            (951_782_400, "2000-02-29 00:00:00Z"),
            (1_763_726_318, "2025-11-21 11:58:38Z"),
            (4_107_542_399, "2100-02-28 23:59:59Z"),
        ] {
            assert_eq!(super::date(secs), text);
        }
    }
}
