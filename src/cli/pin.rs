//! `tierfs pin` and `tierfs unpin`.

use clap::Args;

use super::Global;
use super::exit::{self, CliError, Exit};
use super::files::{self, Ask, ByXattr, Paths};
use crate::control::by_xattr::Steer;
use crate::control::protocol::Request;

/// Keep files' content local: neither policies nor commands release a pinned file.
///
/// Pinning a stub does not bring its content back; `tierfs recall` does. Without root, a file's owner may ask for it too.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs pin /mnt/tiered/database.db\n  \
     tierfs pin -r /mnt/tiered/bin && tierfs recall -r /mnt/tiered/bin"))]
pub struct Pin {
    #[command(flatten)]
    paths: Paths,
}

/// Undo a pin: the files may be released again.
///
/// Without root, a file's owner may ask for it too.
#[derive(Debug, Args)]
#[command(after_help = exit::help("  tierfs unpin -r /mnt/tiered/bin"))]
pub struct Unpin {
    #[command(flatten)]
    paths: Paths,
}

impl Pin {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        let recursive = self.paths.recursive;
        let request = |paths| Request::Pin { paths, recursive };
        let by_xattr = ByXattr::Steer(Steer::Pin);
        files::run(global, &self.paths, Ask { verb: Some(("pinning", "pinned")), request: &request, by_xattr })
    }
}

impl Unpin {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        let recursive = self.paths.recursive;
        let request = |paths| Request::Unpin { paths, recursive };
        let by_xattr = ByXattr::Steer(Steer::Unpin);
        files::run(global, &self.paths, Ask { verb: Some(("unpinning", "unpinned")), request: &request, by_xattr })
    }
}
