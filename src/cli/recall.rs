//! `tierfs recall`.

use clap::Args;

use super::Global;
use super::exit::{self, CliError, Exit};
use super::files::{self, Ask, ByXattr, Paths};
use crate::control::by_xattr::Steer;
use crate::control::protocol::Request;

/// Bring files' content back from the remote.
///
/// Every byte is verified before it counts as local. Reading a file does the same by itself; this does it ahead of time.
/// Ctrl-C ends the job; what is back stays. Without root, a file's owner may ask for it too.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs recall /mnt/tiered/big.iso\n  \
     tierfs recall -r /mnt/tiered/projects\n  \
     tierfs recall --cancel /mnt/tiered/big.iso"))]
pub struct Recall {
    #[command(flatten)]
    paths: Paths,
    /// End recalls of these files that run, whoever asked for them: as `tierfs recalls --cancel`.
    #[arg(long)]
    cancel: bool,
}

impl Recall {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        let recursive = self.paths.recursive;
        if self.cancel {
            let request = |paths| Request::Recalls { paths, recursive, inodes: Vec::new(), cancel: true };
            let by_xattr = ByXattr::Steer(Steer::CancelRecall);
            let ask = Ask { verb: Some(("cancelling", "cancelled")), request: &request, by_xattr };
            return files::run(global, &self.paths, ask);
        }
        let request = |paths| Request::Recall { paths, recursive };
        let by_xattr = ByXattr::Steer(Steer::Recall);
        files::run(global, &self.paths, Ask { verb: Some(("recalling", "recalled")), request: &request, by_xattr })
    }
}
