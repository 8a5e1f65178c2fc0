//! `tierfs pair show`.

use clap::Args;

use super::exit::{self, CliError, Exit};
use super::{Global, as_json, capabilities, output, print};
use crate::pair::Store;
use crate::types::PairName;

/// Show one pair, and what its endpoint was found to do.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs pair show cold\n  \
     tierfs pair show cold --json | jq .endpoints"))]
pub struct Show {
    /// Name of the pair.
    name: PairName,
}

impl Show {
    pub(super) fn run(&self, global: &Global, store: &Store) -> Result<Exit, CliError> {
        let pair = store.load(&self.name)?;
        let probed = capabilities::load(&global.state_dir, &pair.name);
        if global.json {
            output::json(&as_json(&pair, probed));
        } else {
            print(&pair, probed);
        }
        Ok(Exit::Done)
    }
}
