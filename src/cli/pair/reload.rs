//! `tierfs pair reload`, and what `pair edit` tells a mount.

use clap::Args;

use super::exit::{self, CliError, Exit};
use super::{Global, output};
use crate::control::ControlError;
use crate::control::client::connection_of_share;
use crate::control::protocol::{PairReloaded, Reply, Request};
use crate::pair::{Pair, Store};
use crate::types::PairName;

/// Have a running mount read a pair's file, and its credentials, again.
///
/// For what was edited by hand, and for credentials whose file was written anew; `tierfs pair edit` does it by itself. Transfers that run go
/// on with what they began with. A `tierfs gateway` without a mount does the same when it gets SIGHUP.
#[derive(Debug, Args)]
#[command(after_help = exit::help("  tierfs pair reload cold"))]
pub struct Reload {
    /// Name of the pair.
    name: PairName,
}

impl Reload {
    pub(super) fn run(&self, global: &Global, store: &Store) -> Result<Exit, CliError> {
        let pair = store.load(&self.name)?;
        match tell_mount(&pair)? {
            Some(told) => show(global, &told),
            None => {
                let share = pair.local_share.display();
                return Err(CliError::Failed(format!("no mount of {share} runs with pair {}", self.name)));
            }
        }
        Ok(Exit::Done)
    }
}

/// Has the mount that runs with the pair read it again. `None`: none does.
pub(super) fn tell_mount(pair: &Pair) -> Result<Option<PairReloaded>, CliError> {
    let Some((info, mut connection)) = connection_of_share(&pair.local_share)? else { return Ok(None) };
    if !info.pairs().any(|name| name == pair.name.as_str()) {
        return Ok(None);
    }
    let mut reloaded = None;
    connection.ask(&Request::ReloadPair { name: pair.name.to_string() }, &mut |reply| {
        if let Reply::PairReloaded(told) = reply {
            reloaded = Some(told);
        }
        Ok(())
    })?;
    let silent = || ControlError::Broken { reason: "it did not say what it took over".into() };
    Ok(Some(reloaded.ok_or_else(silent)?))
}

pub(super) fn show(global: &Global, told: &PairReloaded) {
    if global.json {
        return output::json(&Reply::PairReloaded(told.clone()));
    }
    output::line(&said(told));
}

/// In words.
pub(super) fn said(told: &PairReloaded) -> String {
    let changed = if told.changed.is_empty() { "credentials were read again".into() } else { told.changed.join(", ") };
    let mut text = format!("the mount goes by it from now on ({changed})");
    if !told.later.is_empty() {
        text += &format!("; from the next mount on: {}", told.later.join(", "));
    }
    text
}
