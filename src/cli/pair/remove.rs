//! `tierfs pair remove`.

use clap::Args;

use super::exit::{self, CliError, Exit};
use super::{Global, as_json, capabilities, claims, output};
use crate::pair::Store;
use crate::types::PairName;

/// Remove a pair that nothing hangs on.
///
/// Refused while a mount runs with it, and while files of the share name it: without the pair their content could not
/// come back. Recall them first. Objects at the remote are left as they are.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs recall -r /mnt/tiered && tierfs umount /mnt/tiered && tierfs pair remove cold"))]
pub struct Remove {
    /// Name of the pair.
    name: PairName,
}

impl Remove {
    pub(super) fn run(&self, global: &Global, store: &Store) -> Result<Exit, CliError> {
        let pair = store.remove(&self.name, &claims)?;
        if let Err(error) = capabilities::forget(&global.state_dir, &pair.name) {
            output::note(&format!("tierfs: {error}"));
        }
        if global.json {
            output::json(&as_json(&pair, None));
        } else {
            output::line(&format!("pair {} is removed", pair.name));
        }
        Ok(Exit::Done)
    }
}
