//! `tierfs undelete`.

use std::path::PathBuf;

use clap::Args;

use super::exit::{self, CliError, Exit};
use super::files::seen_from_here;
use super::report::Reporter;
use super::{Global, output};
use crate::control::ControlError;
use crate::control::client::Connection;
use crate::control::locate::{locate_gone, socket_of};
use crate::control::mountinfo;
use crate::control::protocol::{Request, WirePath};

/// Bring a removed file, or an older generation of one, back as a stub.
///
/// Objects of removed and changed files are kept for the pair's retention; `tierfs history` shows them. What comes back has the
/// content, mtime, owner and mode that it had when it was archived. Nothing that is there is replaced. Needs root.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs undelete /mnt/tiered/gone.iso\n  \
     tierfs undelete -r /mnt/tiered/projects                      (all that was removed below it)\n  \
     tierfs history /mnt/tiered/report.odt\n  \
     tierfs undelete --generation 1763726318000000 --to /mnt/tiered/report.old.odt /mnt/tiered/report.odt"))]
pub struct Undelete {
    /// The file as it was named when it was archived; with -r, a directory.
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Which generation, as `tierfs history` shows it; the newest that is kept unless given.
    #[arg(long, value_name = "N", conflicts_with = "recursive")]
    generation: Option<u64>,
    /// Another place, on the same mount; nothing may be there.
    #[arg(long, value_name = "NEWPATH")]
    to: Option<PathBuf>,
    /// All files removed below the directory. Directories that are gone are made for root alone (mode 0700).
    #[arg(short, long)]
    recursive: bool,
}

impl Undelete {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        if !rustix::process::geteuid().is_root() {
            return Err(CliError::Failed("this needs root: it brings back everybody's files".into()));
        }
        let mounts = mountinfo::read().map_err(ControlError::NoMountInfo)?;
        let find = |path: &PathBuf| {
            locate_gone(&mounts, path)
                .map_err(|not| CliError::Failed(format!("{}: {}", output::shown(path), not.reason)))
        };
        let found = find(&self.path)?;
        let to = self.to.as_ref().map(find).transpose()?;
        if to.as_ref().is_some_and(|to| to.mount.device != found.mount.device) {
            return Err(CliError::Usage("--to must be on the same mount".into()));
        }
        let request = Request::Undelete {
            path: WirePath::from_path(&found.inside),
            generation: self.generation,
            to: to.map(|to| WirePath::from_path(&to.inside)),
            recursive: self.recursive,
        };
        let mut reporter = Reporter::new(global.json, Some(("bringing back", "brought back")));
        let mut connection = Connection::open(&socket_of(&mounts, &found.mount)?, None)?;
        let summary = connection.ask(&request, &mut |reply| {
            reporter.reply(seen_from_here(reply, &found.mount));
            Ok(())
        })?;
        let none = summary.files == 0 && summary.failed + summary.skipped > 0;
        reporter.add(summary);
        let exit = reporter.finish(true);
        if none && !self.recursive {
            return Err(CliError::Failed("nothing was brought back (see above)".into()));
        }
        Ok(exit)
    }
}
