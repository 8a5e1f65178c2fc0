//! `tierfs pair bench`.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::exit::{self, CliError, Exit};
use super::{Global, daemon, other_end, output};
use crate::pair::units::{format_size, parse_duration, parse_size};
use crate::pair::{Pair, RemoteRole, Store};
use crate::remote::S3Remote;
use crate::remote::bench::{self, Bench, Cut, Op, Plan, Report, Row};
use crate::types::{PairName, usual_chunk_size};

/// Of what is left behind, so many are named to a person; `--json` names all.
const LEFT_SHOWN_MAX: usize = 10;

/// Measure a pair's endpoint: latency, throughput and errors of put, get, ranged get and delete.
///
/// Objects of random bytes are put below the pair's prefix (.tierfs-bench-…), read back, compared and deleted, by the client that transfers use;
/// nothing else in the bucket is touched. ^C ends it, and deletes them first. Works beside a mount, whose transfers then take part of what there is.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs pair bench cold\n  \
     tierfs pair bench cold --size 4KiB --size 256MiB --at-once 1,4,16 --time 1m\n  \
     tierfs pair bench cold --json | jq '.results[] | select(.request == \"get\")'\n  \
     tierfs pair bench cold --sweep      (deletes what a run left that was killed)"))]
pub struct PairBench {
    /// Name of the pair.
    name: PairName,
    /// Length of the objects, 1 byte to 1GiB; repeat it for several [default: 64KiB and 16MiB].
    #[arg(long = "size", value_name = "SIZE", value_parser = size)]
    sizes: Vec<u64>,
    /// Objects of each size, 1 to 10000 [default: 64MiB of them, but 4 to 64, and no fewer than are under way at once].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(bench::COUNT_MAX)))]
    count: Option<u32>,
    /// Requests under way at once, 1 to 256; several are measured one after the other.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,8",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(bench::AT_ONCE_MAX)))]
    at_once: Vec<u32>,
    /// Nothing is measured after that, 1s to 1h; deleting may take longer.
    #[arg(long, value_name = "DURATION", default_value = "20s", value_parser = time)]
    time: Duration,
    /// Measure nothing: delete the objects of runs that were killed, begun two hours ago or earlier.
    #[arg(long, conflicts_with_all = ["sizes", "count", "at_once", "time"])]
    sweep: bool,
}

fn size(text: &str) -> Result<u64, String> {
    let size = parse_size(text)?;
    let fits = (1..=bench::SIZE_MAX).contains(&size);
    if fits { Ok(size) } else { Err(format!("{text:?} is no length of an object to measure with: use 1 to 1GiB")) }
}

fn time(text: &str) -> Result<Duration, String> {
    let time = Duration::from_secs(parse_duration(text)?);
    let fits = (Duration::from_secs(1)..=bench::TIME_MAX).contains(&time);
    if fits { Ok(time) } else { Err(format!("{text:?} is no time to measure for: use 1s to 1h")) }
}

impl PairBench {
    pub(super) fn run(&self, global: &Global, store: &Store) -> Result<Exit, CliError> {
        let pair = store.load(&self.name)?;
        daemon::runtime()?.block_on(async {
            let failed = |reason: String| CliError::Failed(format!("pair {}: {reason}", pair.name));
            let remote =
                S3Remote::connect(other_end::remote_config(&pair)).await.map_err(|error| failed(error.to_string()))?;
            if pair.role == RemoteRole::Gpeer
                && other_end::is_share(&remote).await.map_err(|error| failed(error.to_string()))?
            {
                return Err(failed("its endpoint is the gateway of a share: what is put there are people's files, so nothing is measured".into()));
            }
            if self.sweep {
                return sweep(global, &pair, &remote).await;
            }
            let report = self.measure(global, &pair, remote).await?;
            Ok(if is_clean(&report) { Exit::Done } else { Exit::Partial })
        })
    }

    fn plan(&self, pair: &Pair) -> Plan {
        let sizes = if self.sizes.is_empty() { vec![64 << 10, 16 << 20] } else { self.sizes.clone() };
        // What a read of a large stub asks for at least.
        let range = u64::from(pair.chunk_size.unwrap_or_else(|| usual_chunk_size(0)));
        Plan { sizes, count: self.count, at_once: self.at_once.clone(), range, time: self.time }
    }

    async fn measure(&self, global: &Global, pair: &Pair, remote: S3Remote) -> Result<Report, CliError> {
        let failed = |reason: String| CliError::Failed(format!("pair {}: {reason}", pair.name));
        let watched = |kind| signal(kind).map_err(|error| failed(format!("signals cannot be watched: {error}")));
        let (mut interrupts, mut ends) = (watched(SignalKind::interrupt())?, watched(SignalKind::terminate())?);
        let bench = Bench::new(remote, self.plan(pair));
        let place = format!("{}/{}", pair.bucket, bench.place());
        let (stop, stopped) = watch::channel(false);
        let json = global.json;
        let mut tell = move |op: Op, size, at_once| {
            if !json {
                output::note(&format!("{} of {}, {at_once} at once …", op.as_str(), format_size(size)));
            }
        };
        let begun = std::time::Instant::now();
        let report = {
            let mut running = std::pin::pin!(bench.run(stopped, &mut tell));
            loop {
                tokio::select! {
                    ended = &mut running => break ended.map_err(|error| failed(error.to_string()))?,
                    _ = interrupts.recv() => {}
                    _ = ends.recv() => {}
                }
                if stop.send_replace(true) {
                    return Err(failed(format!("it was ended while it deleted its objects: {place}… may be left")));
                }
                output::note("tierfs: it ends, and deletes its objects first; once more: they are left");
            }
        };
        let seconds = begun.elapsed().as_secs_f64();
        if json {
            output::json(&as_json(pair, &report, seconds));
        } else {
            show(pair, &report, seconds);
        }
        Ok(report)
    }
}

fn is_clean(report: &Report) -> bool {
    let failed = report.rows.iter().any(|row| row.errors > 0);
    !failed && report.left.is_empty() && report.left_because.is_none() && report.cut != Some(Cut::Asked)
}

/// With three digits after the point.
fn rounded(value: Option<f64>) -> Option<f64> {
    value.map(|value| (value * 1e3).round() / 1e3)
}

fn as_json(pair: &Pair, report: &Report, seconds: f64) -> Value {
    let row = |row: &Row| {
        json!({
            "request": row.request,
            "size": row.size,
            "at_once": row.at_once,
            "wanted": row.wanted,
            "done": row.done,
            "errors": row.errors,
            "error": row.error,
            "median_ms": rounded(row.median_ms),
            "p99_ms": rounded(row.p99_ms),
            "max_ms": rounded(row.max_ms),
            "seconds": rounded(Some(row.seconds)),
            "bytes": row.bytes,
            "mb_per_s": rounded(row.mb_per_s()),
            "per_s": rounded(row.per_s()),
        })
    };
    json!({
        "pair": pair.name.as_str(),
        "endpoints": pair.endpoints,
        "seconds": rounded(Some(seconds)),
        "results": report.rows.iter().map(row).collect::<Vec<_>>(),
        "ended_by": report.cut,
        "left": report.left.iter().map(|key| key.0.as_str()).collect::<Vec<_>>(),
        "left_because": report.left_because.as_ref().map(ToString::to_string),
        "of_other_runs": report.others,
    })
}

fn show(pair: &Pair, report: &Report, seconds: f64) {
    let header = ["SIZE", "AT ONCE", "REQUEST", "DONE", "MEDIAN ms", "P99 ms", "MAX ms", "MB/s", "PER s", "ERRORS"];
    let figure = |value: Option<f64>| value.map_or_else(|| "-".into(), |value| format!("{value:.1}"));
    let row = |row: &Row| {
        let done =
            if row.done == row.wanted { row.done.to_string() } else { format!("{} of {}", row.done, row.wanted) };
        vec![
            format_size(row.size),
            row.at_once.to_string(),
            row.request.as_str().to_owned(),
            done,
            figure(row.median_ms),
            figure(row.p99_ms),
            figure(row.max_ms),
            figure(row.mb_per_s()),
            figure(row.per_s()),
            row.errors.to_string(),
        ]
    };
    output::table(&header, &report.rows.iter().map(row).collect::<Vec<_>>());
    let end = match report.cut {
        None => "",
        Some(Cut::Time) => "; the time did not suffice for all of it (--time)",
        Some(Cut::Asked) => "; it was interrupted",
    };
    output::line(&format!("pair {} at {} in {seconds:.1} s{end}", pair.name, pair.endpoints.join(", ")));
    for row in &report.rows {
        if let Some(error) = &row.error {
            let (op, size) = (row.request.as_str(), format_size(row.size));
            output::note(&format!("failed: {op} of {size}, {} at once: {}", row.at_once, output::plain(error)));
        }
    }
    for key in report.left.iter().take(LEFT_SHOWN_MAX) {
        output::note(&format!("left: {}/{}", pair.bucket, output::plain(&key.0)));
    }
    if report.left.len() > LEFT_SHOWN_MAX {
        output::note(&format!("left: {} objects in all; --json names them", report.left.len()));
    }
    if let Some(error) = &report.left_because {
        let what = if report.left.is_empty() { "whether anything is left is not known" } else { "they are left" };
        output::note(&format!("{what}: {}", output::plain(&error.to_string())));
    }
    if let Some(others @ 1..) = report.others {
        let sweep = format!("`tierfs pair bench {} --sweep`", pair.name);
        output::note(&format!("objects of other runs are there: {others} ({sweep} deletes those of killed ones)"));
    }
}

async fn sweep(global: &Global, pair: &Pair, remote: &S3Remote) -> Result<Exit, CliError> {
    let swept = bench::sweep(remote).await;
    let (deleted, failed) = swept.map_err(|error| CliError::Failed(format!("pair {}: {error}", pair.name)))?;
    if global.json {
        let left = failed.iter().map(|(key, error)| json!({ "object": key.0, "reason": error.to_string() }));
        output::json(&json!({ "pair": pair.name.as_str(), "deleted": deleted, "left": left.collect::<Vec<_>>() }));
    } else {
        output::line(&format!("deleted {deleted} objects of earlier runs"));
        for (_, error) in failed.iter().take(LEFT_SHOWN_MAX) {
            output::note(&format!("left: {}", output::plain(&error.to_string())));
        }
    }
    Ok(if failed.is_empty() { Exit::Done } else { Exit::Partial })
}
