//! `tierfs migrate`.

use clap::Args;

use super::Global;
use super::exit::{self, CliError, Exit};
use super::files::{self, Ask, ByXattr, Paths};
use crate::control::by_xattr::Steer;
use crate::control::protocol::Request;

/// Copy files' content to the remote, verify it there, and free the local blocks.
///
/// A file that is open, pinned or changing is skipped and told. Ctrl-C ends the job; the daemon finishes or undoes the
/// step of each file it is at, and what is done stays done. Asking again for the same files is harmless.
/// Without root, a file's owner may ask for it too.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs migrate /mnt/tiered/big.iso\n  \
     tierfs migrate -r --archive-only /mnt/tiered/projects     (copies now, frees nothing)\n  \
     tierfs migrate -r --json /mnt/tiered/old | tail -1"))]
pub struct Migrate {
    #[command(flatten)]
    paths: Paths,
    /// Stop when the remote holds a verified copy; keep the local content.
    #[arg(long)]
    archive_only: bool,
}

impl Migrate {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        let (recursive, archive_only) = (self.paths.recursive, self.archive_only);
        let verb = if archive_only { ("archiving", "archived") } else { ("migrating", "migrated") };
        let by_xattr = if archive_only {
            ByXattr::No("--archive-only needs root: without it, ask for a whole migration of your own files")
        } else {
            ByXattr::Steer(Steer::Migrate)
        };
        let request = |paths| Request::Migrate { paths, recursive, archive_only };
        files::run(global, &self.paths, Ask { verb: Some(verb), request: &request, by_xattr })
    }
}
