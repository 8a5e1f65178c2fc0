//! What a person or a script sees while a request runs: a bar on a terminal, plain lines elsewhere, JSON lines when asked.
//!
//! Progress goes to standard error, results to standard output. Nothing is collected but totals, so the output of any
//! number of files takes the same memory.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::exit::Exit;
use super::output;
use crate::control::protocol::{
    FailedFile, Failure, FileDigest, FileStatus, OrphanObject, PackTotals, Progress, RecallStatus, Reply, StateTotal,
    Summary,
};
use crate::pair::units::{exact_duration, format_rate, format_size};

/// Failures told one by one to a person; the summary counts them all, and `--json` tells all.
const FAILURES_SHOWN_MAX: u64 = 100;
/// Time between two lines of progress where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// The words for what a command does. `None`: it reports (status).
pub type Verb = Option<(&'static str, &'static str)>;

/// Takes the replies of one command, over all its requests.
pub struct Reporter {
    json: bool,
    verb: Verb,
    bar: Option<ProgressBar>,
    started: Instant,
    told: Instant,
    /// Progress of the requests that ended, and of the one that runs.
    before: Progress,
    now: Progress,
    total: Summary,
    failures_told: u64,
    rows_told: u64,
    digests_told: u64,
}

impl Reporter {
    /// A reporter for a command whose words are `verb`.
    pub fn new(json: bool, verb: Verb) -> Self {
        let bar = (!json && verb.is_some() && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(0);
            if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:30}] {percent:>3}% {msg}") {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(verb.map_or("", |(doing, _)| doing));
            bar
        });
        let now = Instant::now();
        Self {
            json,
            verb,
            bar,
            started: now,
            told: now,
            before: Progress::default(),
            now: Progress::default(),
            total: Summary::default(),
            failures_told: 0,
            rows_told: 0,
            digests_told: 0,
        }
    }

    /// Shows one reply.
    pub fn reply(&mut self, reply: Reply) {
        if self.json {
            return output::json(&reply);
        }
        match reply {
            Reply::Progress(progress) => self.progress(progress),
            Reply::File(status) => self.file(&status),
            Reply::Failure(failure) => self.failure(&failure),
            // As md5sum(1) writes it, so that `md5sum -c` reads it.
            Reply::Digest(FileDigest { path, md5 }) => {
                self.digests_told += 1;
                self.above_bar(|| output::line(&format!("{md5}  {}", output::shown(&path.to_path()))));
            }
            Reply::Repaired { path } => {
                let path = output::shown(&path.to_path());
                self.above_bar(|| {
                    output::line(&format!("repaired: {path}: its object was gone; the local content counts again"))
                });
            }
            Reply::Restored { path, generation, .. } => {
                let path = output::shown(&path.to_path());
                self.above_bar(|| output::line(&format!("brought back: {path} (generation {generation})")));
            }
            // `history` shows these by itself.
            Reply::Version(_) => {}
            Reply::Recall(recall) => self.recall(&recall),
            Reply::DeadLetter(failed) => self.failed(&failed),
            Reply::Orphan(orphan) => self.orphan(&orphan),
            // The last line of a request comes as a summary; a mount does not describe itself here.
            // Shown by their commands themselves.
            Reply::Index(_) | Reply::Columns { .. } | Reply::Row { .. } => {}
            Reply::Policy(_) | Reply::Candidate(_) | Reply::Why(_) | Reply::Task(_) | Reply::TaskRate(_) => {}
            Reply::Mount(_) | Reply::Figures(_) | Reply::Done(_) | Reply::Error { .. } => {}
            Reply::Sync(_) | Reply::SyncCompared(_) | Reply::SyncDifference(_) => {}
            Reply::PairReloaded(_) | Reply::Choice(_) => {}
        }
    }

    /// Adds the end of one request.
    pub fn add(&mut self, summary: Summary) {
        self.before.files_total += self.now.files_total;
        self.before.files_done += self.now.files_done;
        self.before.bytes_total += self.now.bytes_total;
        self.before.bytes_done += self.now.bytes_done;
        self.now = Progress::default();
        self.total += summary;
    }

    /// Shows the totals. Without `reached`, no mount answered and there are none.
    pub fn finish(self, reached: bool) -> Exit {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let total = self.total;
        let exit = if total.failed + total.skipped == 0 { Exit::Done } else { Exit::Partial };
        if !reached {
            return exit;
        }
        if self.json {
            output::json(&Reply::Done(total));
            return exit;
        }
        if self.failures_told > FAILURES_SHOWN_MAX {
            output::note(&format!("… and {} more; --json tells all", self.failures_told - FAILURES_SHOWN_MAX));
        }
        if let Some(problem) = &total.pair_problem {
            output::note(&format!("tierfs: the pair cannot be used at present: {}", output::plain(problem)));
        }
        match self.verb {
            // What was printed is for a program; the summary is for people.
            Some((_, done)) if self.digests_told > 0 => output::note(&summary_line(done, &total)),
            Some((_, done)) => {
                kept_table(&total.kept);
                for (pair, found) in total.pairs.iter().filter(|_| total.pairs.len() > 1) {
                    output::line(&format!("pair {pair}: {}, {}", found.files, format_size(found.bytes)));
                }
                if let Some(packs) = &total.packs {
                    let [all, live, dead] = [packs.bytes, packs.live_bytes, packs.dead_bytes].map(format_size);
                    let PackTotals { objects, needless, deleted, .. } = packs;
                    output::line(&format!(
                        "packs: {objects}, {all}: {live} of files, {dead} of none or kept for undelete; {needless} are needless, {deleted} were deleted"
                    ));
                }
                output::line(&summary_line(done, &total));
            }
            // One file's row says all there is; a total of one would repeat it.
            None if self.rows_told == 0 || total.states.values().map(|t| t.files).sum::<u64>() > 1 => {
                states_table(&total)
            }
            None => {}
        }
        exit
    }

    fn progress(&mut self, progress: Progress) {
        self.now = progress;
        let sum = |a: u64, b: u64| a.saturating_add(b);
        let all = Progress {
            files_total: sum(self.before.files_total, progress.files_total),
            files_done: sum(self.before.files_done, progress.files_done),
            bytes_total: sum(self.before.bytes_total, progress.bytes_total),
            bytes_done: sum(self.before.bytes_done, progress.bytes_done),
            walked: progress.walked,
        };
        let text = progress_text(&all, self.started.elapsed());
        if let Some(bar) = &self.bar {
            // Empty files have no bytes to count.
            let by_bytes = all.bytes_total > 0;
            bar.set_length(if by_bytes { all.bytes_total } else { all.files_total });
            bar.set_position(if by_bytes { all.bytes_done } else { all.files_done });
            bar.set_message(text);
        } else if self.told.elapsed() >= LINE_EVERY {
            self.told = Instant::now();
            output::note(&format!("{}: {text}", self.verb.map_or("", |(doing, _)| doing)));
        }
    }

    fn file(&mut self, status: &FileStatus) {
        if self.rows_told == 0 {
            let header = row(["STATE", "SIZE", "LOCAL", "PIN", "ACTIVITY", "PAIR", "PATH"]);
            self.above_bar(|| output::line(&header));
        }
        self.rows_told += 1;
        let text = row([
            status.state.as_str(),
            &format_size(status.size),
            &format_size(status.local),
            if status.pinned { "yes" } else { "-" },
            status.activity.as_deref().unwrap_or(if status.retained { "retained" } else { "-" }),
            status.pair.as_deref().unwrap_or("-"),
            &output::shown(&status.path.to_path()),
        ]);
        self.above_bar(|| output::line(&text));
    }

    fn failed(&mut self, failed: &FailedFile) {
        let FailedFile { task, reason, attempts, last, .. } = failed;
        let path = output::shown(&failed.path.to_path());
        let times = if *attempts == 1 { "once".into() } else { format!("{attempts} times") };
        let what = failed.object.as_ref().map_or(path, |object| output::plain(object));
        let text = format!(
            "{task} failed {times} ({reason}), last {}: {what}: {}",
            utc(*last),
            output::plain(&failed.message)
        );
        self.above_bar(|| output::line(&text));
    }

    fn recall(&mut self, recall: &RecallStatus) {
        let columns = |[inode, class, since, progress, rate, eta, by]: [&str; 7], path: &str| {
            format!("{inode:<9}  {class:<11}  {since:<10}  {progress:<19}  {rate:>11}  {eta:>7}  {by:<24}  {path}")
        };
        if self.rows_told == 0 {
            let header = columns(["INODE", "CLASS", "SINCE", "DONE", "RATE", "ETA", "FOR"], "PATH");
            self.above_bar(|| output::line(&header));
        }
        self.rows_told += 1;
        let progress = format!("{}/{}", format_size(recall.bytes_done), format_size(recall.bytes_total));
        let by = match recall.requesters.first() {
            None => "?".to_owned(),
            Some(who) => {
                let others = recall.requesters.len() as u64 - 1 + recall.more_requesters;
                let others = if others > 0 { format!(" +{others}") } else { String::new() };
                format!("uid {} {}[{}]{others}", who.uid, output::plain(&who.program), who.pid)
            }
        };
        let text = columns(
            [
                &recall.inode.to_string(),
                &recall.class,
                &format!("{} ago", exact_duration(recall.seconds.ceil() as u64)),
                &progress,
                &format_rate(recall.bytes_done, recall.seconds),
                &recall.eta.map_or_else(|| "?".into(), exact_duration),
                &by,
            ],
            &output::shown(&recall.path.to_path()),
        );
        self.above_bar(|| output::line(&text));
    }

    fn orphan(&mut self, orphan: &OrphanObject) {
        let key = format!("{}  {}", orphan.pair, output::plain(&orphan.key));
        let text = match orphan.kind.as_str() {
            "upload" => format!("unfinished upload: {key}"),
            "deleted pack" => format!("deleted: {:>9}  {}  {key}", format_size(orphan.bytes), utc(orphan.begun)),
            "pack" => format!("needless: {:>9}  {}  {key}", format_size(orphan.bytes), utc(orphan.begun)),
            _ => format!("orphan: {:>9}  {}  {key}", format_size(orphan.bytes), utc(orphan.begun)),
        };
        self.above_bar(|| output::line(&text));
    }

    fn failure(&mut self, failure: &Failure) {
        self.failures_told += 1;
        if self.failures_told > FAILURES_SHOWN_MAX {
            return;
        }
        let word = if failure.skipped { "skipped" } else { "failed" };
        let text = format!("{word}: {}: {}", output::shown(&failure.path.to_path()), output::plain(&failure.reason));
        self.above_bar(|| output::note(&text));
    }

    fn above_bar(&self, print: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

fn row(cells: [&str; 7]) -> String {
    let [state, size, local, pin, activity, pair, path] = cells;
    format!("{state:<9}  {size:>9}  {local:>9}  {pin:<3}  {activity:<9}  {pair:<12}  {path}")
}

fn progress_text(all: &Progress, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    let more = if all.walked { "" } else { "+" };
    let mut text = format!(
        "{}/{}{more} files, {}/{}{more}, {}",
        all.files_done,
        all.files_total,
        format_size(all.bytes_done),
        format_size(all.bytes_total),
        format_rate(all.bytes_done, seconds)
    );
    // Before the walk is complete, or after a moment only, any guess would be wild.
    if all.walked && all.bytes_done > 0 && seconds >= 1.0 {
        let left = all.bytes_total.saturating_sub(all.bytes_done) as f64 / (all.bytes_done as f64 / seconds);
        text.push_str(&format!(", ETA {}", exact_duration(left.ceil() as u64)));
    }
    text
}

fn summary_line(done: &str, total: &Summary) -> String {
    let (one, many) = match done {
        "found" | "noted for deletion" => ("object", "objects"),
        "listed" | "dropped" => ("entry", "entries"),
        "running" | "cancelled" => ("recall", "recalls"),
        "stored names of" => ("directory", "directories"),
        _ => ("file", "files"),
    };
    let plural = |n: u64| if n == 1 { one } else { many };
    if one == "entry" {
        return format!("{done} {} {}", total.files, plural(total.files));
    }
    let mut text = format!("{done} {} {}", total.files, plural(total.files));
    if one != "directory" {
        text.push_str(&format!(", {}", format_size(total.bytes)));
    }
    // Pinning and releasing move nothing, so a rate would say nothing.
    if total.files > 0 && matches!(done, "migrated" | "archived" | "recalled" | "verified") {
        text.push_str(&format!(" in {:.1} s ({})", total.seconds, format_rate(total.bytes, total.seconds)));
    }
    let unchanged = match done {
        "verified" | "checked" => "not remote",
        "stored names of" => "unchanged",
        _ => "already as asked",
    };
    for (count, words) in [(total.unchanged, unchanged), (total.skipped, "skipped"), (total.failed, "failed")] {
        if count > 0 {
            text.push_str(&format!("; {count} {words}"));
        }
    }
    text
}

/// What was left alone, where something was.
fn kept_table(kept: &std::collections::BTreeMap<String, StateTotal>) {
    if kept.is_empty() {
        return;
    }
    let row =
        |(why, sum): (&String, &StateTotal)| vec![sum.files.to_string(), format_size(sum.bytes), output::plain(why)];
    output::table(&["LEFT ALONE", "SIZE", "WHY"], &kept.iter().map(row).collect::<Vec<_>>());
}

/// A time as people read it; UTC, since the reader may be anywhere.
pub fn utc(secs: i64) -> String {
    let (days, rest) = (secs.div_euclid(86_400), secs.rem_euclid(86_400));
    // Days to a date of the Gregorian calendar (Hinnant, "chrono-compatible low-level date algorithms").
    let z = days + 719_468;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}Z", rest / 3_600, rest / 60 % 60, rest % 60)
}

fn states_table(total: &Summary) {
    let mut rows = Vec::new();
    let (mut files, mut bytes, mut local) = (0, 0, 0);
    for (state, sum) in &total.states {
        rows.push(vec![state.clone(), sum.files.to_string(), format_size(sum.bytes), format_size(sum.local)]);
        files += sum.files;
        bytes += sum.bytes;
        local += sum.local;
    }
    rows.push(vec!["total".into(), files.to_string(), format_size(bytes), format_size(local)]);
    output::table(&["STATE", "FILES", "SIZE", "LOCAL"], &rows);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_for_people() {
        let half =
            Progress { files_total: 4, files_done: 2, bytes_total: 8_000_000, bytes_done: 4_000_000, walked: true };
        let text = progress_text(&half, Duration::from_secs(2));
        assert_eq!(text, "2/4 files, 3.81 MiB/7.63 MiB, 2.0 MB/s, ETA 2s");
        let text = progress_text(&Progress { walked: false, ..half }, Duration::from_secs(2));
        assert_eq!(text, "2/4+ files, 3.81 MiB/7.63 MiB+, 2.0 MB/s");
        progress_text(&Progress::default(), Duration::ZERO);
    }

    #[test]
    fn times_are_dates() {
        for (secs, text) in [
            (0, "1970-01-01 00:00:00Z"),
            (-1, "1969-12-31 23:59:59Z"),
            (951_782_400, "2000-02-29 00:00:00Z"),
            (1_763_726_318, "2025-11-21 11:58:38Z"),
            (1_795_261_718, "2026-11-21 11:48:38Z"),
            (4_107_542_399, "2100-02-28 23:59:59Z"),
            (4_107_542_400, "2100-03-01 00:00:00Z"),
        ] {
            assert_eq!(utc(secs), text);
        }
    }

    #[test]
    fn summaries_name_only_what_happened() {
        let total = Summary { files: 1, bytes: 1 << 20, seconds: 0.5, skipped: 2, ..Summary::default() };
        assert_eq!(summary_line("migrated", &total), "migrated 1 file, 1.00 MiB in 0.5 s (2.1 MB/s); 2 skipped");
        assert_eq!(summary_line("pinned", &total), "pinned 1 file, 1.00 MiB; 2 skipped");
    }

    #[test]
    fn totals_go_over_all_requests() {
        let mut reporter = Reporter::new(false, None);
        for _ in 0..2 {
            let mut summary = Summary { files: 1, failed: 1, ..Summary::default() };
            summary.states.entry("stub".into()).or_default().files = 3;
            reporter.add(summary);
        }
        assert_eq!((reporter.total.files, reporter.total.states["stub"].files), (2, 6));
        assert_eq!(reporter.finish(true), Exit::Partial);
    }
}
