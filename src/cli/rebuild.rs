//! `tierfs rebuild`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::daemon;
use super::exit::{self, CliError, Exit};
use super::{Global, output};
use crate::control::protocol::WirePath;
use crate::engine::Target;
use crate::pair::Store;
use crate::pair::units::format_size;
use crate::rebuild::{Event, Options, Rebuild as Work, Source, Totals};
use crate::types::{FileId, PairName};

/// Between two lines of progress.
const TOLD_EVERY: Duration = Duration::from_secs(2);
/// Lines about files told to a person; the totals count them all, and `--json` tells all.
const EVENTS_SHOWN_MAX: u64 = 100;

/// Make a whole share of stubs from its bucket, or its buckets, alone.
///
/// Names and attributes come from what the mount stored last (`tierfs save-names`), contents from the objects. Files whose content is
/// not in the bucket are told, and not made. Interrupted, it is run again, and goes on; what is done stays as it is. The directory must
/// be empty, on ext4 or xfs, and not mounted; its files are then reached through `tierfs mount`. Needs root.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs rebuild --pair cold --into /srv/share --dry-run\n  \
     tierfs rebuild --pair cold --into /srv/share\n  \
     tierfs rebuild --pair cold --pair far --into /srv/share\n  \
     tierfs mount /srv/share /mnt/tiered"))]
pub struct Rebuild {
    /// The pair whose bucket has the share; once more for each further one that the share had.
    #[arg(long, value_name = "NAME", required = true)]
    pair: Vec<PairName>,
    /// An empty directory, or one of a rebuild that was interrupted.
    #[arg(long, value_name = "DIR")]
    into: PathBuf,
    /// Read everything, make nothing, and tell what would come of it.
    #[arg(long)]
    dry_run: bool,
    /// Which share, where the bucket has had several: its root as in the keys of its names (.tierfs/trees/ROOT/…); the one stored last
    /// unless given.
    #[arg(long, value_name = "ROOT", value_parser = parse_root)]
    root: Option<FileId>,
}

fn parse_root(text: &str) -> Result<FileId, String> {
    let parsed = text.split_once('-').and_then(|(ino, birth)| {
        let hex = |text| u64::from_str_radix(text, 16).ok();
        Some(FileId { ino: hex(ino)?, birth: hex(birth)? })
    });
    parsed.ok_or_else(|| format!("{text:?} is no root: write it as in the keys, like 2-3f00ba12"))
}

/// The last line of `--json`.
#[derive(Serialize)]
#[serde(tag = "reply", rename = "done")]
struct Done {
    directories: u64,
    files: u64,
    bytes: u64,
    links: u64,
    special: u64,
    unchanged: u64,
    missing: u64,
    newer: u64,
    found: u64,
    failed: u64,
    seconds: f64,
    dry_run: bool,
}

#[derive(Serialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
enum Told {
    Missing { path: WirePath, reason: String },
    Newer { path: WirePath },
    Found { path: WirePath, object: String },
    Failure { path: WirePath, reason: String },
}

impl Rebuild {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        if !rustix::process::geteuid().is_root() {
            return Err(CliError::Failed("this needs root: it makes files of everybody".into()));
        }
        let store = Store::open(&global.config_dir);
        let pairs = self.pair.iter().map(|name| store.load(name)).collect::<Result<Vec<_>, _>>()?;
        if let Some((_, twice)) = self.pair.iter().enumerate().find(|(n, name)| self.pair[..*n].contains(name)) {
            return Err(CliError::Usage(format!("pair {twice} is named twice")));
        }
        let into = std::fs::canonicalize(&self.into)
            .map_err(|error| CliError::Failed(format!("{}: {error}: make the directory first", self.into.display())))?;
        if let Some((mountpoint, _)) = crate::control::client::mount_of_share(&into)? {
            let place = mountpoint.display();
            return Err(CliError::Failed(format!("{} is mounted at {place}: unmount it first", into.display())));
        }
        for pair in pairs.iter().filter(|pair| pair.local_share != into && !global.json) {
            output::note(&format!(
                "tierfs: pair {} is for {}, not for {}",
                pair.name,
                pair.local_share.display(),
                into.display()
            ));
        }
        let (json, told) = (global.json, AtomicU64::new(0));
        let tell = move |event: Event| tell(event, json, &told);
        let make = |lower, targets: Vec<Target>| {
            let source = |Target { remote, pair, prefix, .. }: Target| Source { remote, pair, prefix };
            Work::new(Options {
                lower,
                sources: targets.into_iter().map(source).collect(),
                share: self.root,
                dry_run: self.dry_run,
                tell: Box::new(tell),
            })
        };
        let (ended, totals) = daemon::rebuild(&pairs, &into, make, async |work| {
            let ended = watch(&work, json).await;
            (ended, work)
        })?;
        let seconds = ended.map_err(|error| CliError::Failed(format!("{error}; what is done stays: run it again")))?;
        let done = self.report(&totals.totals, seconds);
        if json {
            output::json(&done);
        } else {
            output::line(&words(&done));
        }
        Ok(if done.missing + done.failed + done.found == 0 { Exit::Done } else { Exit::Partial })
    }

    fn report(&self, totals: &Totals, seconds: f64) -> Done {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Done {
            directories: get(&totals.directories),
            files: get(&totals.files),
            bytes: get(&totals.bytes),
            links: get(&totals.links),
            special: get(&totals.special),
            unchanged: get(&totals.unchanged),
            missing: get(&totals.missing),
            newer: get(&totals.newer),
            found: get(&totals.found),
            failed: get(&totals.failed),
            seconds,
            dry_run: self.dry_run,
        }
    }
}

/// Runs it, and tells now and then how far it is.
async fn watch(work: &Arc<Work>, json: bool) -> Result<f64, crate::rebuild::RebuildError> {
    let mut running = std::pin::pin!(work.run());
    let mut ticks = tokio::time::interval(TOLD_EVERY);
    let begun = tokio::time::Instant::now();
    loop {
        tokio::select! {
            ended = &mut running => return ended,
            _ = ticks.tick() => {
                let files = work.totals.files.load(Ordering::Relaxed);
                if !json && files > 0 {
                    let rate = files as f64 / begun.elapsed().as_secs_f64();
                    output::note(&format!("rebuilding: {files} files, {rate:.0} a second"));
                }
            }
        }
    }
}

fn tell(event: Event, json: bool, shown: &AtomicU64) {
    let wire = |path: &Path| WirePath::from_path(path);
    if json {
        return output::json(&match event {
            Event::Missing { path, why } => Told::Missing { path: wire(&path), reason: why },
            Event::Newer { path } => Told::Newer { path: wire(&path) },
            Event::Found { path, object } => Told::Found { path: wire(&path), object: object.0 },
            Event::Failed { path, why } => Told::Failure { path: wire(&path), reason: why },
        });
    }
    let line = match event {
        Event::Missing { path, why } => format!("missing: {}: {why}", output::shown(&path)),
        // Nothing is wrong with these.
        Event::Newer { .. } => return,
        Event::Found { path, object } => {
            format!("found: {}: {} was in no directory", output::shown(&path), output::plain(&object.0))
        }
        Event::Failed { path, why } => format!("failed: {}: {why}", output::shown(&path)),
    };
    match shown.fetch_add(1, Ordering::Relaxed) {
        n if n < EVENTS_SHOWN_MAX => output::line(&line),
        EVENTS_SHOWN_MAX => output::note("… and more; --json tells all"),
        _ => {}
    }
}

fn words(done: &Done) -> String {
    let verb = if done.dry_run { "would rebuild" } else { "rebuilt" };
    let mut text = format!(
        "{verb} {} files ({}) and {} links in {} directories in {:.1} s",
        done.files,
        format_size(done.bytes),
        done.links,
        done.directories,
        done.seconds
    );
    if done.seconds > 0.0 && done.files > 0 {
        text.push_str(&format!(" ({:.0} files a second)", done.files as f64 / done.seconds));
    }
    for (count, what) in [
        (done.special, "links and special files"),
        (done.unchanged, "there already"),
        (done.newer, "newer than their names"),
        (done.found, "found beside all names"),
        (done.missing, "missing"),
        (done.failed, "failed"),
    ] {
        if count > 0 {
            text.push_str(&format!("; {count} {what}"));
        }
    }
    text
}
