//! `tierfs recalls`.

use std::path::PathBuf;

use clap::Args;

use super::Global;
use super::exit::{self, CliError, Exit};
use super::files::{ask_mounts, by_attribute, on_mounts, running_seen_by_user};
use super::report::{Reporter, Verb};
use crate::control::by_xattr::Steer;
use crate::control::protocol::{Reply, Request, Summary};

const LISTING: Verb = Some(("listing", "running"));
const CANCELLING: Verb = Some(("cancelling", "cancelled"));

/// Show the recalls that run: who asked for each, since when, how far it is and when it will be done; or end some.
///
/// What has come of a recall that is ended stays, and the file stays a stub; who waits for more gets ECANCELED (for five seconds, also if he tries again). Root sees all recalls. Others see, and
/// may end, those of their own files; they also see what they asked for themselves.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs recalls\n  \
     tierfs recalls /mnt/tiered/projects --json\n  \
     tierfs recalls --cancel /mnt/tiered/big.iso\n  \
     tierfs recalls --cancel 131077                    (as its line shows)"))]
pub struct Recalls {
    /// Only at or below these [default: every tierfs mount].
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// End the recalls of these files: paths, or inode numbers as the list shows them (a file named by digits is ./123).
    #[arg(long, value_name = "PATH|INODE", num_args = 1.., conflicts_with = "paths")]
    cancel: Vec<PathBuf>,
}

impl Recalls {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        let root = rustix::process::geteuid().is_root();
        if !self.cancel.is_empty() {
            return self.end(global, root);
        }
        let groups = on_mounts(&self.paths)?;
        if root {
            let request = |paths| Request::Recalls { paths, recursive: true, inodes: Vec::new(), cancel: false };
            return ask_mounts(global, groups, LISTING, &request);
        }
        let mut reporter = Reporter::new(global.json, LISTING);
        let mut summary = Summary::default();
        for recall in running_seen_by_user(&groups)? {
            summary.files += 1;
            summary.bytes += recall.bytes_total;
            reporter.reply(Reply::Recall(recall));
        }
        reporter.add(summary);
        Ok(reporter.finish(true))
    }

    fn end(&self, global: &Global, root: bool) -> Result<Exit, CliError> {
        let (mut inodes, mut paths) = (Vec::new(), Vec::new());
        for what in &self.cancel {
            match what.to_str().and_then(|text| text.parse::<u64>().ok()) {
                Some(inode) => inodes.push(inode),
                None => paths.push(what.clone()),
            }
        }
        if root {
            // By number on every mount, by path on the mounts that they lie on.
            let mut exit = Exit::Done;
            if !inodes.is_empty() {
                let request =
                    |_| Request::Recalls { paths: Vec::new(), recursive: false, inodes: inodes.clone(), cancel: true };
                exit = ask_mounts(global, on_mounts(&[])?, CANCELLING, &request)?;
            }
            if !paths.is_empty() {
                let request = |paths| Request::Recalls { paths, recursive: false, inodes: Vec::new(), cancel: true };
                exit = exit.and(ask_mounts(global, on_mounts(&paths)?, CANCELLING, &request)?);
            }
            return Ok(exit);
        }
        let numbered = running_seen_by_user(&on_mounts(&[])?)?;
        paths.extend(
            numbered.iter().filter(|recall| inodes.contains(&recall.inode)).map(|recall| recall.path.to_path()),
        );
        let mut reporter = Reporter::new(global.json, CANCELLING);
        by_attribute(paths, false, super::files::ByXattr::Steer(Steer::CancelRecall), &mut reporter);
        Ok(reporter.finish(true))
    }
}
