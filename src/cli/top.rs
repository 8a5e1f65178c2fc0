//! `tierfs top`: what a mount does, again and again.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::exit::{self, CliError, Exit};
use super::files::{each_reply, on_mounts};
use super::report::utc;
use super::{Global, output};
use crate::control::protocol::{Figures, PolicyGlance, PolicyRun, Reply, Request, TaskInfo};
use crate::pair::units::{exact_duration, format_rate, format_size, parse_duration};

/// Home, and clear what is below.
const HOME: &str = "\u{1b}[H\u{1b}[J";
/// Tasks that have a line; others are counted.
const TASKS_SHOWN: usize = 8;
/// The same of policies at work, and of those whose last run did something.
const POLICIES_SHOWN: usize = 8;
const POLICIES_ENDED_SHOWN: usize = 3;
/// Where the terminal does not tell its size.
const SIZE_USUAL: (usize, usize) = (100, 30);

/// Watch what a mount does: throughput, tasks, policies, recalls, what waits, and where the files' content is.
///
/// Refreshed every second; ends with Ctrl-C. Rates are those since the last look.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs top\n  \
     tierfs top --once /mnt/tiered\n  \
     tierfs top --json --every 10s /mnt/tiered"))]
pub struct Top {
    /// The mount; needed where there are several.
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
    /// Look twice, show once, and end.
    #[arg(long)]
    once: bool,
    /// Between two looks.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "1s")]
    every: u64,
}

/// Bytes a second, and requests.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Rates {
    archived: f64,
    released: f64,
    recalled: f64,
    requests: f64,
}

impl Top {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        let mut before = self.look()?;
        let live = !self.once && !global.json && std::io::stdout().is_terminal();
        loop {
            std::thread::sleep(Duration::from_secs(self.every.max(1)));
            let now = self.look()?;
            let rates = rates(&before, &now);
            if global.json {
                let mut value = serde_json::to_value(Reply::Figures(Box::new(now.clone()))).unwrap_or_default();
                value["rates"] = serde_json::json!({
                    "archived": rates.archived, "released": rates.released, "recalled": rates.recalled,
                    "requests": rates.requests,
                });
                output::json(&value);
            } else {
                let size = if live { terminal() } else { (usize::MAX, usize::MAX) };
                let lines = page(&now, &rates, size);
                output::line(&format!("{}{}", if live { HOME } else { "" }, lines.join("\n")));
            }
            if self.once {
                return Ok(Exit::Done);
            }
            before = now;
        }
    }

    fn look(&self) -> Result<Figures, CliError> {
        let groups = on_mounts(self.path.as_slice())?;
        if groups.len() > 1 {
            return Err(CliError::Usage("there are several mounts: name one".into()));
        }
        let mut found = None;
        each_reply(groups, &|_| Request::Figures, &mut |reply| {
            if let Reply::Figures(figures) = reply {
                found = Some(*figures);
            }
        })?;
        found.ok_or_else(|| {
            CliError::Failed("the mount did not tell its figures: is its daemon of this version?".into())
        })
    }
}

fn terminal() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => SIZE_USUAL,
    }
}

fn rates(before: &Figures, now: &Figures) -> Rates {
    let seconds = (now.time - before.time).max(0.001);
    // Another daemon counts anew.
    let rate = |before: u64, now: u64| now.saturating_sub(before) as f64 / seconds;
    Rates {
        archived: rate(before.archived_bytes, now.archived_bytes),
        released: rate(before.released_bytes, now.released_bytes),
        recalled: rate(before.recalled_bytes, now.recalled_bytes),
        requests: rate(before.requests, now.requests),
    }
}

/// A bar of `width` characters, `part` of it full.
fn bar(part: f64, width: usize) -> String {
    let full = (part.clamp(0.0, 1.0) * width as f64).round() as usize;
    format!("{}{}", "█".repeat(full), "·".repeat(width - full))
}

/// Failures of all kinds of transfers, by why.
fn failures(figures: &Figures) -> BTreeMap<&str, u64> {
    let mut all = BTreeMap::new();
    for (end, count) in figures.transfers.values().flatten() {
        if !matches!(end.as_str(), "done" | "skipped" | "ended") && *count > 0 {
            *all.entry(end.as_str()).or_default() += count;
        }
    }
    all
}

/// Those at work or to come, foremost first.
fn tasks(tasks: &[TaskInfo], page: &mut Vec<String>) {
    if tasks.is_empty() {
        return;
    }
    page.push(String::new());
    page.push(format!(
        "{:>5} {:<8} {:<8} {:>17} {:>8} {:>6} {:>9}  PATHS",
        "TASK", "KIND", "STATE", "FILES", "FAILED", "DONE", "ETA"
    ));
    for task in tasks.iter().take(TASKS_SHOWN) {
        let eta = task.eta.map_or_else(|| "-".into(), exact_duration);
        let paths: Vec<_> = task.paths.iter().map(|path| path.to_path().display().to_string()).collect();
        let problem = task.problem.as_ref().map_or(String::new(), |problem| format!(" ({problem})"));
        page.push(format!(
            "{:>5} {:<8} {:<8} {:>17} {:>8} {:>5}% {eta:>9}  {}{problem}",
            task.id,
            task.kind,
            task.state,
            task.progress(),
            task.failed,
            if task.walked { task.ended_files().saturating_mul(100) / task.files.max(1) } else { 0 },
            paths.join(" ")
        ));
    }
    if tasks.len() > TASKS_SHOWN {
        page.push(format!("      and {} more: tierfs tasks list", tasks.len() - TASKS_SHOWN));
    }
}

/// Those at work, and those that did something last.
fn policies(policies: &[PolicyGlance], now: i64, page: &mut Vec<String>) {
    if policies.is_empty() {
        return;
    }
    let since = |at: i64| exact_duration(u64::try_from(now.saturating_sub(at)).unwrap_or(0));
    let line = |policy: &PolicyGlance, run: &PolicyRun, state: String, files: String| {
        let stopped = run.stopped.map(|why| why.to_string());
        let why = run.problem.as_ref().or(stopped.as_ref()).map_or(String::new(), |why| format!("  ({why})"));
        let (name, action, bytes) = (&policy.name, &policy.action, format_size(run.bytes));
        format!("{name:<20} {action:<8} {state:<20} {files:>17} {bytes:>10} {:>8} {:>7}{why}", run.skipped, run.failed)
    };
    let at_work: Vec<_> = policies.iter().filter_map(|policy| Some((policy, policy.running.as_ref()?))).collect();
    let did = |run: &&PolicyRun| {
        run.ended.is_some() && (run.files + run.failed > 0 || run.problem.is_some() || run.stopped.is_some())
    };
    let ended = policies.iter().filter_map(|policy| Some((policy, policy.last.as_ref().filter(did)?)));
    let mut ended: Vec<_> = ended.collect();
    ended.sort_by_key(|(_, run)| std::cmp::Reverse(run.ended));
    page.push(String::new());
    page.push(format!(
        "{:<20} {:<8} {:<20} {:>17} {:>10} {:>8} {:>7}",
        "POLICY", "ACTION", "STATE", "FILES", "SIZE", "SKIPPED", "FAILED"
    ));
    for (policy, run) in at_work.iter().take(POLICIES_SHOWN) {
        let files = format!("{}/{}", run.files + run.skipped + run.failed, run.matched);
        page.push(line(policy, run, format!("runs for {}", since(run.began)), files));
    }
    for (policy, run) in ended.iter().take(POLICIES_ENDED_SHOWN) {
        let ago = since(run.ended.unwrap_or(run.began));
        page.push(line(policy, run, format!("ended {ago} ago"), run.files.to_string()));
    }
    page.push(format!("{} of {} run: tierfs policy list", at_work.len(), policies.len()));
}

/// What is shown, within so many columns and lines.
fn page(figures: &Figures, rates: &Rates, (columns, lines): (usize, usize)) -> Vec<String> {
    let done = |what: &str, end: &str| figures.transfers.get(what).and_then(|ends| ends.get(end)).copied().unwrap_or(0);
    let pair = match (&figures.pair, &figures.pair_problem) {
        (None, _) => "no pair".to_owned(),
        (Some(name), None) => format!("pair {name}"),
        (Some(name), Some(problem)) => format!("pair {name} UNUSABLE: {problem}"),
    };
    let mut page = vec![format!("{}  {}  {pair}", utc(figures.time as i64), figures.mountpoint)];
    if let Some(space) = &figures.space {
        let used = space.total.saturating_sub(space.available);
        let part = used as f64 / space.total.max(1) as f64;
        let mut line = format!(
            "space     {} {:>3.0}%  {} of {} available",
            bar(part, 30),
            part * 100.0,
            format_size(space.available),
            format_size(space.total)
        );
        if space.removed_bytes > 0 {
            line += &format!(", {} held by removed files", format_size(space.removed_bytes));
        }
        page.push(line);
    }
    page.push(String::new());
    page.push(format!("{:<9} {:>14} {:>14} {:>10} {:>10}", "", "NOW", "SINCE MOUNT", "FILES", "SKIPPED"));
    for (what, name, rate, bytes) in [
        ("archive", "archived", rates.archived, figures.archived_bytes),
        ("recall", "recalled", rates.recalled, figures.recalled_bytes),
        ("release", "released", rates.released, figures.released_bytes),
    ] {
        page.push(format!(
            "{name:<9} {:>14} {:>14} {:>10} {:>10}",
            format_rate(rate as u64, 1.0),
            format_size(bytes),
            done(what, "done"),
            done(what, "skipped")
        ));
    }
    let failures: Vec<_> = failures(figures).iter().map(|(why, count)| format!("{count} {why}")).collect();
    page.push(format!("failed    {}", if failures.is_empty() { "nothing".into() } else { failures.join(", ") }));
    page.push(format!("requests  {:.0}/s, {} open handles", rates.requests, figures.open_handles));
    page.push(String::new());
    let (transfers, deletions) = figures.notes;
    let mut queues = format!(
        "queues    {} transfers run, {transfers} noted, {deletions} deletions wait, {} dead letters",
        figures.running, figures.failed.0
    );
    if figures.announcements_waiting > 0 {
        queues += &format!(", {} announcements wait", figures.announcements_waiting);
    }
    page.push(queues);
    let classes: Vec<_> = figures.recalls_fetching.iter().map(|(class, count)| format!("{count} {class}")).collect();
    page.push(format!(
        "recalls   {}, {} resting; {} requests with {}",
        classes.join(", "),
        figures.recalls_resting,
        figures.fetches,
        format_size(figures.fetch_bytes)
    ));
    if let Some(pending) = figures.index_pending {
        let mut line = format!("index     {pending} changes wait");
        if let Some((inodes, _)) = figures.index_scan {
            line += &format!(", a scan runs: {inodes} inodes so far");
        }
        page.push(line);
    }
    tasks(&figures.tasks, &mut page);
    policies(&figures.policies, figures.time as i64, &mut page);
    if !figures.states.is_empty() {
        page.push(String::new());
        let age = figures.states_age.map_or(String::new(), |age| format!("  ({age:.0} s ago)"));
        page.push(format!("{:<9} {:>12} {:>12} {:>12}{age}", "STATE", "FILES", "SIZE", "LOCAL"));
        let all: u64 = figures.states.values().map(|total| total.bytes).sum();
        for (state, total) in &figures.states {
            page.push(format!(
                "{state:<9} {:>12} {:>12} {:>12}  {}",
                total.files,
                format_size(total.bytes),
                format_size(total.local),
                bar(total.bytes as f64 / all.max(1) as f64, 20)
            ));
        }
    }
    if !figures.recalls.is_empty() {
        page.push(String::new());
        page.push(format!("{:<12} {:>22} {:>10} {:>6}  {:<22} PATH", "CLASS", "DONE", "RATE", "ETA", "FOR"));
    }
    for recall in &figures.recalls {
        let done = format!("{}/{}", format_size(recall.bytes_done), format_size(recall.bytes_total));
        let eta = recall.eta.map_or("?".to_owned(), |eta| format!("{eta}s"));
        let who = recall
            .requesters
            .first()
            .map_or(String::new(), |who| format!("uid {} {}[{}]", who.uid, who.program, who.pid));
        page.push(format!(
            "{:<12} {done:>22} {:>10} {eta:>6}  {who:<22} {}",
            recall.class,
            format_rate(recall.rate, 1.0),
            recall.path.to_path().display()
        ));
    }
    page.truncate(lines.saturating_sub(1));
    page.iter().map(|line| output::plain(line).chars().take(columns).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{StateTotal, WirePath};

    fn figures() -> Figures {
        let mut figures = Figures { time: 1_763_726_318.0, mountpoint: "/mnt".into(), ..Figures::default() };
        figures.archived_bytes = 10 << 20;
        figures.transfers.entry("archive".into()).or_default().extend([("done".into(), 3), ("remote".into(), 2)]);
        figures.states.insert("stub".into(), StateTotal { files: 5, bytes: 100, local: 0 });
        figures
    }

    #[test]
    fn rates_are_of_the_time_between() {
        let before = figures();
        let now = Figures { time: before.time + 2.0, archived_bytes: 14 << 20, ..before.clone() };
        assert_eq!(rates(&before, &now).archived, f64::from(2 << 20));
        let anew = Figures { archived_bytes: 0, ..now };
        assert_eq!(rates(&before, &anew).archived, 0.0);
    }

    #[test]
    fn a_page_fits_the_terminal_and_names_steer_nothing() {
        let mut figures = figures();
        figures.recalls.push(crate::engine::RecallStatus {
            path: WirePath::from_path(std::path::Path::new("a\u{1b}[2J")),
            inode: 1,
            class: "bulk".into(),
            requesters: Vec::new(),
            more_requesters: 0,
            since: 0,
            seconds: 1.0,
            bytes_done: 1,
            bytes_total: 2,
            rate: 1,
            eta: Some(1),
        });
        let all = page(&figures, &Rates::default(), (usize::MAX, usize::MAX));
        let text = all.join("\n");
        assert!(text.contains("2025-11-21 11:58:38Z") && text.contains("no pair"), "{text}");
        assert!(text.contains("failed    2 remote") && text.contains("a\\u{1b}[2J"), "{text}");
        let cut = page(&figures, &Rates::default(), (40, 8));
        assert_eq!(cut.len(), 7);
        assert!(cut.iter().all(|line| line.chars().count() <= 40), "{cut:#?}");
    }

    #[test]
    fn policies_have_their_lines() {
        let run = |began, ended, files| PolicyRun { began, ended, files, matched: 400, ..PolicyRun::default() };
        let policy =
            |name: &str, running, last| PolicyGlance { name: name.into(), action: "migrate".into(), running, last };
        let mut figures = figures();
        let text = |figures: &Figures| page(figures, &Rates::default(), (usize::MAX, usize::MAX)).join("\n");
        assert!(!text(&figures).contains("POLICY"));
        let now = figures.time as i64;
        let cut = PolicyRun { problem: Some("no answer".into()), ..run(now - 100, Some(now - 90), 5) };
        figures.policies = vec![
            policy("idle", None, Some(run(now - 9, Some(now - 8), 0))),
            policy("busy", Some(PolicyRun { skipped: 3, failed: 2, ..run(now - 75, None, 85) }), None),
            policy("cut", None, Some(cut)),
            policy("early", None, Some(run(now - 200, Some(now - 190), 7))),
            policy("earlier", None, Some(run(now - 300, Some(now - 290), 7))),
            policy("earliest", None, Some(run(now - 400, Some(now - 390), 7))),
        ];
        let all = text(&figures);
        let from = all.lines().position(|line| line.starts_with("POLICY")).unwrap();
        let lines: Vec<&str> = all.lines().skip(from + 1).collect();
        let words = |at: usize| lines[at].split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words(0), "busy migrate runs for 1m15s 90/400 0 B 3 2", "{all}");
        assert_eq!(words(1), "cut migrate ended 1m30s ago 5 0 B 0 0 (no answer)", "{all}");
        assert!(words(2).starts_with("early ") && words(3).starts_with("earlier "), "the last ones: {all}");
        assert_eq!(words(4), "1 of 6 run: tierfs policy list", "{all}");
    }

    #[test]
    fn tasks_and_the_index_have_their_lines() {
        let task = |id: i64, state: &str| TaskInfo {
            id,
            kind: "migrate".into(),
            state: state.into(),
            priority: 0,
            paths: vec![WirePath::from_path(std::path::Path::new("projects"))],
            recursive: true,
            created: 1,
            ended: None,
            walked: true,
            files: 400,
            bytes: 1,
            repeated: 0,
            done: 90,
            done_bytes: 1,
            unchanged: 4,
            skipped: 3,
            failed: 3,
            eta: (state == "running").then_some(90),
            problem: (state == "waiting").then(|| "no answer".into()),
        };
        let mut figures = figures();
        let text = |figures: &Figures| page(figures, &Rates::default(), (usize::MAX, usize::MAX)).join("\n");
        assert!(!text(&figures).contains("TASK") && !text(&figures).contains("index"));
        figures.index_pending = Some(12);
        figures.index_scan = Some((5_000, 1));
        figures.tasks = vec![task(7, "running"), task(8, "waiting")];
        let all = text(&figures);
        assert!(all.contains("12 changes wait, a scan runs: 5000 inodes"), "{all}");
        let line = |id: &str| all.lines().find(|line| line.trim_start().starts_with(id)).unwrap().to_owned();
        let words: Vec<_> = line("7 migrate").split_whitespace().map(str::to_owned).collect();
        assert_eq!(words, ["7", "migrate", "running", "100/400", "3", "25%", "1m30s", "projects"], "{all}");
        assert!(line("8 migrate").ends_with("-  projects (no answer)"), "{all}");
        figures.tasks = (0..11).map(|id| task(id, "waiting")).collect();
        assert!(text(&figures).contains("and 3 more"), "{}", text(&figures));
    }
}
