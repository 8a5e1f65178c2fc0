//! `tierfs set`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::exit::{self, CliError, Exit};
use super::files::{self, Ask, ByXattr, Paths, each_reply, on_mounts};
use super::{Global, output};
use crate::control::protocol::{ChoiceInfo, Reply, Request};
use crate::pair::units::{exact_size, parse_size};
use crate::types::{PairName, RecallPolicy};

/// Say where files go when they are archived next, in chunks of which size, and what a read of their stubs brings back; or lock files for retention.
///
/// A directory says it for all below that say nothing else; what a file says itself comes first. What is archived already stays where it is. Without
/// an option it shows what the files and directories named say themselves. A retention lock is each file's own (-r: of those below a directory that are
/// there now): commands and policies neither archive, release nor recall it. Root only.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs set /mnt/tiered/projects --pair archive --chunk-size 8MiB\n  \
     tierfs set /mnt/tiered/projects --pair ''     (as the directory above says, or the mount)\n  \
     tierfs set /mnt/tiered/projects --recall full\n  \
     tierfs set -r /mnt/tiered/ledgers --retain on"))]
pub struct Set {
    /// Files and directories on a mount.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// A pair that the mount has (`tierfs mount --pair A --pair B`); empty takes it back.
    #[arg(long, value_name = "NAME", value_parser = pair)]
    pair: Option<String>,
    /// A power of two from 64KiB to 8MiB; empty takes it back.
    #[arg(long, value_name = "SIZE", value_parser = chunk_size)]
    chunk_size: Option<u32>,
    /// partial, progressive, full or pass-through; empty takes it back.
    #[arg(long, value_name = "HOW", value_parser = recall)]
    recall: Option<String>,
    /// Lock files for retention, or end that: nobody else than root can.
    #[arg(long, value_enum, conflicts_with_all = ["pair", "chunk_size", "recall"])]
    retain: Option<Switch>,
    /// With --retain: all regular files below the directories named.
    #[arg(short, long, requires = "retain")]
    recursive: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

fn pair(text: &str) -> Result<String, String> {
    if !text.is_empty() {
        text.parse::<PairName>().map_err(|error| error.to_string())?;
    }
    Ok(text.to_owned())
}

/// 0: none.
fn chunk_size(text: &str) -> Result<u32, String> {
    if text.is_empty() {
        return Ok(0);
    }
    let size = u32::try_from(parse_size(text)?).ok().filter(|size| crate::engine::is_choosable(*size));
    size.ok_or_else(|| "write a power of two from 64KiB to 8MiB".into())
}

fn recall(text: &str) -> Result<String, String> {
    if !text.is_empty() {
        text.parse::<RecallPolicy>()?;
    }
    Ok(text.to_owned())
}

impl Set {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        if let Some(switch) = self.retain {
            return self.lock(global, switch == Switch::On);
        }
        let groups = on_mounts(&self.paths)?;
        let request = |paths| Request::Choose {
            paths,
            pair: self.pair.clone(),
            chunk_size: self.chunk_size,
            recall: self.recall.clone(),
        };
        let summary = each_reply(groups, &request, &mut |reply| match reply {
            reply if global.json => output::json(&reply),
            Reply::Choice(choice) => show(&choice),
            Reply::Failure(failure) => {
                let path = output::shown(&failure.path.to_path());
                output::note(&format!("failed: {path}: {}", output::plain(&failure.reason)));
            }
            _ => {}
        })?;
        if global.json {
            output::json(&Reply::Done(summary.clone()));
        }
        Ok(if summary.failed > 0 { Exit::Partial } else { Exit::Done })
    }

    fn lock(&self, global: &Global, on: bool) -> Result<Exit, CliError> {
        let recursive = self.recursive;
        let paths = Paths { paths: self.paths.clone(), recursive };
        let request = |paths| Request::Retain { paths, recursive, on };
        let verb = Some(if on { ("locking", "locked") } else { ("unlocking", "unlocked") });
        let by_xattr = ByXattr::No("a retention lock is root's to set and to end");
        files::run(global, &paths, Ask { verb, request: &request, by_xattr })
    }
}

fn show(choice: &ChoiceInfo) {
    let unsaid = || "-".to_owned();
    output::line(&format!(
        "pair {}  chunk size {}  recall {}  {}",
        choice.pair.clone().unwrap_or_else(unsaid),
        choice.chunk_size.map_or_else(unsaid, |size| exact_size(size.into())),
        choice.recall.clone().unwrap_or_else(unsaid),
        output::shown(&choice.path.to_path())
    ));
}
