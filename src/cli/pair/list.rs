//! `tierfs pair list`.

use clap::Args;
use serde_json::Value;

use super::exit::{self, CliError, Exit};
use super::{Global, as_json, capabilities, output};
use crate::pair::Store;

/// Show all pairs.
///
/// A file that is no valid pair is told on standard error, and the others are shown all the same (exit code 1).
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs pair list\n  \
     tierfs pair list --json | jq -r '.[].name'     (one array)"))]
pub struct List {}

impl List {
    pub(super) fn run(&self, global: &Global, store: &Store) -> Result<Exit, CliError> {
        let mut pairs = Vec::new();
        let mut exit = Exit::Done;
        for entry in store.entries()? {
            match entry.pair {
                Ok(pair) => pairs.push(pair),
                Err(error) => {
                    output::note(&format!("tierfs: {error}"));
                    exit = Exit::Partial;
                }
            }
        }
        if global.json {
            let all = pairs.iter().map(|pair| as_json(pair, capabilities::load(&global.state_dir, &pair.name)));
            output::json(&Value::Array(all.collect()));
            return Ok(exit);
        }
        if pairs.is_empty() {
            output::note(&format!("no pairs in {}: `tierfs pair add` makes one", store.directory().display()));
            return Ok(exit);
        }
        let rows: Vec<_> = pairs
            .iter()
            .map(|pair| {
                vec![
                    pair.name.to_string(),
                    output::plain(&format!("{}:{}", pair.local_cluster, pair.local_share.display())),
                    output::plain(&format!("{}:{}", pair.remote_cluster, pair.remote_share())),
                    pair.role.to_string(),
                    pair.meta_sync.map_or("-", |role| role.as_str()).to_owned(),
                    pair.endpoints.join(","),
                ]
            })
            .collect();
        output::table(&["NAME", "LOCAL", "REMOTE", "ROLE", "META-SYNC", "ENDPOINTS"], &rows);
        Ok(exit)
    }
}
