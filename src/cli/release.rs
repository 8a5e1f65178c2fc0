//! `tierfs release`.

use clap::Args;

use super::Global;
use super::exit::{self, CliError, Exit};
use super::files::{self, Ask, ByXattr, Paths};
use crate::control::by_xattr::Steer;
use crate::control::protocol::Request;

/// Free the local blocks of files whose content the remote holds already.
///
/// Only files in state dual are released, and only while nobody has them open or mapped; others are skipped and told.
/// Ctrl-C ends the job between two files. Without root, a file's owner may ask for it too.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs release /mnt/tiered/big.iso\n  \
     tierfs release -r /mnt/tiered/projects"))]
pub struct Release {
    #[command(flatten)]
    paths: Paths,
}

impl Release {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        let recursive = self.paths.recursive;
        let request = |paths| Request::Release { paths, recursive };
        let by_xattr = ByXattr::Steer(Steer::Release);
        files::run(global, &self.paths, Ask { verb: Some(("releasing", "released")), request: &request, by_xattr })
    }
}
