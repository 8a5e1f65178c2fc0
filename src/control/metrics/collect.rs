//! The figures of a mount, gathered when somebody asks. What takes long (the totals of the index) is kept for a while, with its age.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::families::Page;
use crate::catalog::index::{Index, now_s};
use crate::control::index::on_thread;
use crate::control::protocol::IndexInfo;
use crate::control::server::Server;
use crate::engine::{Ask, Moved, Stall};
use crate::types::FileState;

/// Totals of the index are read again after this, and after this many times what reading them took.
const TOTALS_EVERY: Duration = Duration::from_secs(60);
const TOTALS_EVERY_TIMES: u32 = 20;
/// How long who asks waits for the first ones.
const TOTALS_WITHIN: Duration = Duration::from_secs(5);
/// The unit of the kernel's processor times, a second's part: what it tells user space is always so.
const TICKS_A_SECOND: f64 = 100.0;

/// Totals of the index as they were last read.
#[derive(Default)]
pub struct Cached {
    last: Mutex<Option<Totals>>,
    reading: AtomicBool,
}

#[derive(Clone)]
struct Totals {
    info: IndexInfo,
    at: Instant,
    took: Duration,
}

impl Cached {
    /// The totals, and their age; read anew in the background where they are old. `None`: there are none yet.
    pub(in crate::control) async fn get(self: &Arc<Self>, index: &Arc<Index>) -> Option<(IndexInfo, Duration)> {
        let last = self.last.lock().clone();
        let old = last.as_ref().is_none_or(|totals| {
            totals.at.elapsed() >= TOTALS_EVERY.max(totals.took.saturating_mul(TOTALS_EVERY_TIMES))
        });
        if old && !self.reading.swap(true, Ordering::SeqCst) {
            let (this, index) = (self.clone(), index.clone());
            let reading = tokio::spawn(async move {
                let begun = Instant::now();
                let read = on_thread(move || index.status()).await;
                match read {
                    Ok(info) => *this.last.lock() = Some(Totals { info, at: begun, took: begun.elapsed() }),
                    Err(error) => tracing::warn!("no totals of the index for metrics: {error}"),
                }
                this.reading.store(false, Ordering::SeqCst);
            });
            if last.is_none() {
                // It goes on by itself; whoever asks next finds it.
                let _ = tokio::time::timeout(TOTALS_WITHIN, reading).await;
            }
        }
        self.last.lock().clone().map(|totals| (totals.info, totals.at.elapsed()))
    }
}

impl Server {
    /// All metrics, as text.
    pub async fn metrics(&self) -> String {
        let mut page = Page::default();
        let shown = |path: &std::path::Path| path.display().to_string();
        page.begin("tierfs_info");
        page.line(
            "tierfs_info",
            &[
                ("version", env!("CARGO_PKG_VERSION")),
                ("share", &shown(&self.share)),
                ("mountpoint", &shown(&self.mountpoint)),
                ("pair", &self.engine.pair_name().unwrap_or_default()),
            ],
            1.0,
        );
        self.transfers(&mut page);
        self.remote(&mut page);
        self.notes(&mut page).await;
        self.task_queue(&mut page).await;
        self.totals(&mut page).await;
        self.tables(&mut page);
        self.policy_runs(&mut page);
        process(&mut page);
        page.finish()
    }

    fn transfers(&self, page: &mut Page) {
        let totals = &self.engine.totals;
        let get = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed) as f64;
        page.single("tierfs_archived_bytes_total", get(&totals.archived_bytes));
        page.single("tierfs_released_bytes_total", get(&totals.released_bytes));
        page.single("tierfs_recalled_bytes_total", get(&totals.fetched_bytes));
        let name = "tierfs_transfers_total";
        page.begin(name);
        for moved in Moved::ALL {
            for (end, count) in totals.ends(moved) {
                page.line(name, &[("operation", moved.as_str()), ("result", end)], count as f64);
            }
        }
        page.single("tierfs_transfers_running", get(&totals.running));
        let counts = self.engine.recall_counts();
        let begun = counts.iter().map(|(class, ..)| (class.as_str(), totals.recalls_begun(*class) as f64));
        page.each("tierfs_recalls_begun_total", "class", begun);
        page.begin("tierfs_recalls");
        for (class, fetching, resting) in counts {
            for (state, count) in [("fetching", fetching), ("resting", resting)] {
                page.line("tierfs_recalls", &[("class", class.as_str()), ("state", state)], count as f64);
            }
        }
        let (fetches, bytes) = self.engine.slots.held();
        page.single("tierfs_recall_fetches", fetches as f64);
        page.single("tierfs_recall_memory_bytes", bytes as f64);
        let stalls = Stall::ALL.map(|stall| (stall.as_str(), &totals.stalls[stall as usize]));
        page.histograms("tierfs_stall_seconds", "for", stalls);
    }

    fn remote(&self, page: &mut Page) {
        let totals = &self.engine.totals;
        let name = "tierfs_remote_requests_total";
        page.begin(name);
        for ask in Ask::ALL {
            for (answer, count) in totals.asked(ask).answers() {
                page.line(name, &[("operation", ask.as_str()), ("result", answer)], count as f64);
            }
        }
        let seconds = Ask::ALL.map(|ask| (ask.as_str(), &totals.asked(ask).seconds));
        page.histograms("tierfs_remote_request_seconds", "operation", seconds);
        if self.engine.pair_name().is_some() {
            page.single("tierfs_pair_usable", f64::from(u8::from(self.pair_problem().is_none())));
        }
    }

    async fn notes(&self, page: &mut Page) {
        if let Ok((transfers, deletions)) = self.engine.intent_counts().await {
            let kinds = [("transfer", transfers as f64), ("deletion", deletions as f64)];
            page.each("tierfs_journal_notes", "kind", kinds);
        }
        if let Ok((listed, dropped)) = self.engine.failed_counts().await {
            page.single("tierfs_dead_letters", listed as f64);
            page.single("tierfs_dead_letters_dropped_total", dropped as f64);
        }
        if let Some(announced) = self.engine.announced_files() {
            let ends = [("written", announced.told as f64), ("put_off", announced.put_off as f64)];
            page.each("tierfs_announcements_total", "result", ends);
            page.single("tierfs_announcements_waiting", announced.waiting as f64);
        }
    }

    async fn task_queue(&self, page: &mut Page) {
        let Some(queue) = self.watch.tasks.get() else { return };
        let Ok((waiting, paused, files)) = queue.with(|store| store.lengths()).await else { return };
        page.each("tierfs_tasks", "state", [("waiting", waiting as f64), ("paused", paused as f64)]);
        page.single("tierfs_task_files", files as f64);
    }

    async fn totals(&self, page: &mut Page) {
        let Some(index) = &self.index else { return };
        let Some((info, age)) = self.watch.totals.get(index).await else { return };
        let states = FileState::ALL.map(|state| {
            let total = info.files.get(state.as_str()).copied().unwrap_or_default();
            (state.as_str(), total)
        });
        page.each("tierfs_files", "state", states.map(|(state, total)| (state, total.files as f64)));
        page.each("tierfs_file_bytes", "state", states.map(|(state, total)| (state, total.bytes as f64)));
        page.each("tierfs_file_local_bytes", "state", states.map(|(state, total)| (state, total.local as f64)));
        page.single("tierfs_index_age_seconds", age.as_secs_f64());
        if let Some(ended) = info.scan_ended {
            page.single("tierfs_index_scan_age_seconds", now_s().saturating_sub(ended) as f64);
        }
        page.single("tierfs_index_stale", f64::from(u8::from(info.stale)));
        page.single("tierfs_index_inodes", info.inodes as f64);
        page.single("tierfs_index_hints", index.recorder().pending() as f64);
    }

    fn tables(&self, page: &mut Page) {
        let sizes = self.fs.sizes();
        let entries = [
            ("inodes", sizes.inodes),
            ("descriptors", self.watch.descriptors.as_ref().map_or(0, |count| count())),
            ("cells", self.engine.cells.count()),
            ("warm", self.engine.warm.count()),
            ("listings", sizes.listings),
            ("removed", sizes.removed),
        ];
        page.each("tierfs_cache_entries", "cache", entries.map(|(cache, count)| (cache, count as f64)));
        page.single("tierfs_open_handles", sizes.handles as f64);
        page.each("tierfs_requests_total", "request", self.fs.calls.all().map(|(name, count)| (name, count as f64)));
        if let Ok(space) = self.lower.space() {
            let bytes = |blocks: u64| (blocks * space.fragment_size) as f64;
            let kinds = [
                ("reserve", self.watch.background.space.reserved(&space) as f64),
                ("total", bytes(space.blocks)),
                ("free", bytes(space.blocks_free)),
                ("available", bytes(space.blocks_available)),
            ];
            page.each("tierfs_space_bytes", "kind", kinds);
            let kinds = [("total", space.files as f64), ("free", space.files_free as f64)];
            page.each("tierfs_space_inodes", "kind", kinds);
        }
        // It looks at every open file.
        let (files, bytes) = tokio::task::block_in_place(|| self.fs.removed_space());
        page.single("tierfs_removed_files", files as f64);
        page.single("tierfs_removed_bytes", bytes as f64);
    }

    fn policy_runs(&self, page: &mut Page) {
        let Some(manager) = &self.policies else { return };
        let policies = manager.policies();
        let names = policies.rules.iter().map(|rule| rule.name.as_str());
        let runs: Vec<_> = names.filter_map(|name| Some((name, manager.last_run(name)?))).collect();
        if runs.is_empty() {
            return;
        }
        let label = "policy";
        let began = runs.iter().map(|(name, run)| (*name, run.began as f64));
        page.each("tierfs_policy_last_run_seconds", label, began);
        let name = "tierfs_policy_last_run_files";
        page.begin(name);
        for (policy, run) in &runs {
            for (end, count) in [("done", run.files), ("skipped", run.skipped), ("failed", run.failed)] {
                page.line(name, &[(label, policy), ("result", end)], count as f64);
            }
        }
        let bytes = runs.iter().map(|(name, run)| (*name, run.bytes as f64));
        page.each("tierfs_policy_last_run_bytes", label, bytes);
        let ok = runs.iter().map(|(name, run)| (*name, f64::from(u8::from(run.problem.is_none()))));
        page.each("tierfs_policy_last_run_ok", label, ok);
    }
}

/// What the kernel says of this process (proc(5)).
fn process(page: &mut Page) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name, in parentheses, may hold anything.
    let fields: Vec<f64> = stat
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest)
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    // Counted from the field after the state, the fourth.
    let field = |number: usize| fields.get(number - 4).copied();
    let uptime = std::fs::read_to_string("/proc/uptime").ok();
    let uptime = uptime.and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    if let (Some(started), Some(uptime)) = (field(22), uptime) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        page.single("process_start_time_seconds", (now - uptime + started / TICKS_A_SECOND).round());
    }
    if let (Some(user), Some(system)) = (field(14), field(15)) {
        page.single("process_cpu_seconds_total", (user + system) / TICKS_A_SECOND);
    }
    if let Some(pages) = field(24) {
        page.single("process_resident_memory_bytes", pages * rustix::param::page_size() as f64);
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        // But for the one that reads them.
        page.single("process_open_fds", open.count().saturating_sub(1) as f64);
    }
}
