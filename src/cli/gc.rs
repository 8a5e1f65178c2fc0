//! `tierfs gc`.

use std::path::PathBuf;

use clap::Args;

use super::Global;
use super::exit::{self, CliError, Exit};
use super::files::{ask_mounts, on_mounts};
use crate::control::protocol::Request;
use crate::pair::units::parse_duration;

/// Find objects in the buckets of the mount's pairs that no file names, and have them deleted after the pair's retention.
///
/// The journal deletes what transfers leave behind by itself; this finds what it does not know: objects of files that were removed below the mount,
/// or whose record was damaged; and with --adopt, those of a share whose state directory was lost. Taken are only objects that this share made, that no record, no note and no
/// running transfer names, and that are old enough. Nothing is taken while any record of the share cannot be read. A stub that exists in a
/// backup only is not seen: restore it first.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs gc --dry-run /mnt/tiered\n  \
     tierfs gc --older-than 7d /mnt/tiered\n  \
     tierfs gc --json --dry-run /mnt/tiered | jq -r 'select(.reply == \"orphan\").key'"))]
pub struct Gc {
    /// The mount point, or anything on the mount. The whole share is looked at.
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Only show what would be deleted.
    #[arg(long)]
    dry_run: bool,
    /// Leave alone what was begun less than this ago.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = parse_duration)]
    older_than: u64,
    /// Also take objects of the share with this identity, as an earlier run has shown it, or `unmarked`: of an unknown share. Only if that
    /// was this share before; may be repeated.
    #[arg(long, value_name = "SHARE")]
    adopt: Vec<String>,
}

impl Gc {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        let groups = on_mounts(std::slice::from_ref(&self.path))?;
        let (dry_run, older_than_s, adopt) = (self.dry_run, self.older_than, self.adopt.clone());
        let verb = if dry_run { ("looking", "found") } else { ("collecting", "noted for deletion") };
        let request = |_| Request::Gc { dry_run, older_than_s, adopt: adopt.clone() };
        ask_mounts(global, groups, Some(verb), &request)
    }
}
