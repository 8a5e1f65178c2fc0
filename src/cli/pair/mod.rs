//! `tierfs pair`: the commands about pair configuration, one file each.

mod add;
mod bench;
mod edit;
mod list;
mod reload;
mod remove;
mod show;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::exit::{self, CliError, Exit};
use super::{Global, output};
use super::{daemon, other_end};
use crate::control::client::mount_of_share;
use crate::pair::capabilities::{self, Probed};
use crate::pair::units::{exact_duration, exact_size, parse_duration, parse_size};
use crate::pair::{ClaimCheck, Pair, PairError, PairResult, Store, syntax};
use crate::ports::{Clock, SystemClock};

/// Bind shares to remotes.
///
/// Each pair is one TOML file, <config-dir>/pairs.d/NAME.toml. It names where credentials are and never holds any.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs pair add cold --local east:/srv/share --remote west:s3://cold/east --endpoint http://127.0.0.1:9000\n  \
     tierfs pair list\n  \
     tierfs pair show cold --json\n  \
     tierfs pair bench cold"))]
pub struct PairCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Add(add::Add),
    List(list::List),
    Show(show::Show),
    Edit(edit::Edit),
    Reload(reload::Reload),
    Bench(bench::PairBench),
    Remove(remove::Remove),
}

impl PairCommand {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        let store = Store::open(&global.config_dir);
        match &self.command {
            Command::Add(command) => command.run(global, &store),
            Command::List(command) => command.run(global, &store),
            Command::Show(command) => command.run(global, &store),
            Command::Edit(command) => command.run(global, &store),
            Command::Reload(command) => command.run(global, &store),
            Command::Bench(command) => command.run(global, &store),
            Command::Remove(command) => command.run(global, &store),
        }
    }
}

/// A pair as `--json` shows it.
fn as_json(pair: &Pair, probed: Option<Probed>) -> Value {
    json!({
        "name": pair.name.as_str(),
        "local_cluster": pair.local_cluster.as_str(),
        "local_share": pair.local_share.to_string_lossy(),
        "remote_cluster": pair.remote_cluster.as_str(),
        "remote_share": pair.remote_share(),
        "endpoints": pair.endpoints,
        "region": pair.region,
        "remote_role": pair.role.as_str(),
        "meta_sync_role": pair.meta_sync.map(|role| role.as_str()),
        "credentials_file": pair.credentials_file.as_deref().map(Path::to_string_lossy),
        "credentials_profile": pair.credentials_profile,
        "chunk_size": pair.chunk_size,
        "retention_s": pair.retention_s,
        "after_recall": pair.after_recall.as_str(),
        "recall_retention_s": pair.recall_retention_s,
        "recall": pair.recall.as_str(),
        "archived": pair.archived.as_str(),
        "restore_days": pair.restore_days,
        "pack": pair.pack,
        "pack_below": pair.pack_below,
        "probed": probed,
    })
}

/// A pair for people.
fn print(pair: &Pair, probed: Option<Probed>) {
    let unset = || "-".to_owned();
    let row = |key: &str, value: String| output::line(&format!("{key:<20} {}", output::plain(&value)));
    row("name", pair.name.to_string());
    row("local", format!("{}:{}", pair.local_cluster, pair.local_share.display()));
    row("remote", format!("{}:{}", pair.remote_cluster, pair.remote_share()));
    row("endpoints", pair.endpoints.join(", "));
    row("region", pair.region.clone());
    row("remote_role", pair.role.to_string());
    row("meta_sync_role", pair.meta_sync.map_or_else(unset, |role| role.to_string()));
    let source = pair.credentials_file.as_ref().map(|file| file.display().to_string());
    row("credentials_file", source.unwrap_or_else(|| "- (the SDK's standard chain)".into()));
    row("credentials_profile", pair.credentials_profile.clone().unwrap_or_else(unset));
    row("chunk_size", pair.chunk_size.map_or("auto".into(), |size| exact_size(size.into())));
    row("retention", exact_duration(pair.retention_s));
    let has_peer =
        pair.role == crate::pair::RemoteRole::Gpeer && probed.is_none_or(|probed| probed.peer != Some(false));
    let after_recall = match pair.recalled_for_s() {
        _ if has_peer => "the other side's file is the stub".into(),
        None => "the object is kept".into(),
        Some(0) => "the object is deleted".into(),
        Some(kept) => format!("the object is deleted after {}", exact_duration(kept)),
    };
    row("after recall", after_recall);
    row("recall", pair.recall.as_str().into());
    row("archived", pair.archived.as_str().to_owned());
    row("restore_days", pair.restore_days.to_string());
    let below = exact_size(pair.pack_below.into());
    row("pack", if pair.pack { format!("files below {below}") } else { "no".into() });
    let word = |can: bool| if can { "yes" } else { "no" };
    row(
        "endpoint can",
        probed.map_or("not probed yet".into(), |Probed { capabilities: can, peer, .. }| match peer {
            Some(true) => "it is the gateway of a share, and knows this pair".into(),
            Some(false) => {
                "it is a plain store, not the gateway of a share: the pair behaves as one of role gfs".into()
            }
            None => format!(
                "conditional put: {}, checksums: {}, versioning: {}",
                word(can.conditional_put),
                word(can.checksums),
                word(can.versioning)
            ),
        }),
    );
}

/// Tries the endpoint and keeps what was found for `pair show`.
fn probe(global: &Global, pair: &Pair) -> Result<Probed, CliError> {
    let found = other_end::probe(pair).map_err(|reason| {
        CliError::Failed(format!(
            "pair {} was not stored, its endpoint cannot be used: {reason} (--no-probe stores it untried)",
            pair.name
        ))
    })?;
    let now = SystemClock.now();
    // The state directory is a cache here: that it cannot be written is told, and no reason to refuse the pair.
    if let Err(error) = capabilities::save(&global.state_dir, &pair.name, found, now) {
        output::note(&format!("tierfs: {error}"));
    }
    Ok(Probed { at_s: now.secs, capabilities: found.capabilities, peer: found.peer })
}

/// Whether anything hangs on the pair: a mount that runs with it, or files of the share.
fn claims(pair: &Pair) -> PairResult<ClaimCheck> {
    let running = mount_of_share(&pair.local_share)
        .map_err(|error| PairError::Value(format!("cannot find out whether pair {} is in use: {error}", pair.name)))?;
    match running {
        Some((mountpoint, info)) if info.pairs().any(|name| name == pair.name.as_str()) => {
            Ok(ClaimCheck::Mounted { mountpoint, pid: info.pid })
        }
        _ => daemon::claims(pair),
    }
}

/// A credentials file as given on the command line: made absolute, and looked at.
fn credentials_file(path: &Path) -> Result<PathBuf, CliError> {
    let usage = |reason: String| CliError::Usage(format!("--credentials-file: {reason}"));
    let absolute = std::path::absolute(path).map_err(|error| usage(error.to_string()))?;
    let text = absolute.to_str().ok_or_else(|| usage("the path is not UTF-8: rename the file".into()))?;
    let absolute = syntax::credentials_file(text).map_err(usage)?;
    use std::os::unix::fs::PermissionsExt;
    match std::fs::metadata(&absolute) {
        Ok(metadata) if metadata.permissions().mode() & 0o077 != 0 => {
            output::note(&format!("tierfs: {0} can be read by others: chmod 600 {0}", absolute.display()));
        }
        Ok(_) => {}
        // Not repeated in case it is a pasted secret.
        Err(error) => return Err(usage(format!("the file cannot be used: {error}; make it first"))),
    }
    Ok(absolute)
}

fn chunk_size(text: &str) -> Result<ChunkSize, String> {
    if text == "auto" {
        return Ok(ChunkSize(None));
    }
    Ok(ChunkSize(Some(syntax::chunk_size(parse_size(text)?)?)))
}

/// A chunk size as it is asked for; `None`: by the length of each file.
#[derive(Clone, Copy, Debug)]
struct ChunkSize(Option<u32>);

fn pack_below(text: &str) -> Result<u32, String> {
    syntax::pack_below(parse_size(text)?)
}

fn retention(text: &str) -> Result<u64, String> {
    parse_duration(text)
}

/// An empty text takes the setting back.
fn recall_retention(text: &str) -> Result<RecallRetention, String> {
    if text.is_empty() { Ok(RecallRetention(None)) } else { Ok(RecallRetention(Some(parse_duration(text)?))) }
}

/// How long the objects of recalled files are kept, as it is asked for; `None`: as long as superseded ones.
#[derive(Clone, Copy, Debug)]
struct RecallRetention(Option<u64>);
