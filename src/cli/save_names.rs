//! `tierfs save-names`.

use clap::Args;

use super::Global;
use super::exit::{self, CliError, Exit};
use super::files::{self, Ask, ByXattr, Paths};
use crate::control::protocol::Request;

/// Store names and attributes of directories in the bucket, so that `tierfs rebuild` can make the share again.
///
/// What did not change since it was stored costs a look at the share only. A mount does the same after each migration, and every hour
/// for the whole share (`-o save_names=1h`).
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs save-names /mnt/tiered\n  \
     tierfs save-names --always /mnt/tiered/projects"))]
pub struct SaveNames {
    #[command(flatten)]
    paths: Paths,
    /// Also what did not change.
    #[arg(long)]
    always: bool,
}

impl SaveNames {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        let request = |paths| Request::SaveNames { paths, always: self.always };
        let by_xattr = ByXattr::No("this needs root: it stores what belongs to everybody");
        files::run(global, &self.paths, Ask { verb: Some(("storing", "stored names of")), request: &request, by_xattr })
    }
}
