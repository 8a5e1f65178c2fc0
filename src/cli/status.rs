//! `tierfs status`.

use clap::Args;

use super::Global;
use super::exit::{self, CliError, Exit};
use super::files::{self, Ask, ByXattr, Paths};
use crate::control::protocol::Request;

/// Show where files' content is.
///
/// States: resident (all local, nothing remote), dual (local, and an equal remote copy), releasing (local blocks are
/// being freed), stub (remote), damaged (the record contradicts the file: reads fail until an administrator decides).
/// LOCAL counts the blocks a file occupies. With -r, totals by state; with --files, every file too.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs status /mnt/tiered/big.iso\n  \
     tierfs status -r /mnt/tiered\n  \
     tierfs status -r --files --json /mnt/tiered | jq -r 'select(.state == \"stub\").path'"))]
pub struct Status {
    #[command(flatten)]
    paths: Paths,
    /// With -r, show every file and not only the totals.
    #[arg(long, requires = "recursive")]
    files: bool,
}

impl Status {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        let recursive = self.paths.recursive;
        let files = self.files || !recursive;
        let request = |paths| Request::Status { paths, recursive, files };
        files::run(global, &self.paths, Ask { verb: None, request: &request, by_xattr: ByXattr::Status { files } })
    }
}
