//! Every metric there is: its name, kind and meaning. docs/metrics.md has the same table, which a test compares; and the text format.

use std::fmt::Write;

use crate::engine::{BOUNDS_S, Histogram};

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from the mount on.
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A metric.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
}

const fn counter(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Counter, help }
}

const fn gauge(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Gauge, help }
}

const fn histogram(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Histogram, help }
}

/// All of them, in the order in which they are served. Names and labels stay once they are here; new ones may come.
pub const FAMILIES: &[Family] = &[
    gauge("tierfs_info", "The mount; always 1."),
    counter("tierfs_archived_bytes_total", "Content copied to the pair and recorded."),
    counter("tierfs_released_bytes_total", "Content freed locally, by the sizes of the files."),
    counter("tierfs_recalled_bytes_total", "Content that came back and was verified, kept or only served."),
    counter("tierfs_transfers_total", "Transfers of files that ended, by how."),
    gauge("tierfs_transfers_running", "Transfers that run."),
    counter("tierfs_recalls_begun_total", "Recalls that somebody asked for, by the class of who was first."),
    gauge("tierfs_recalls", "Recalls that are open, by class, and whether they bring anything just now."),
    gauge("tierfs_recall_fetches", "Requests for content that run for all recalls."),
    gauge("tierfs_recall_memory_bytes", "Memory that these have."),
    histogram("tierfs_stall_seconds", "How long requests of programs waited, by what for."),
    counter("tierfs_remote_requests_total", "Requests to the pair's store that ended, by operation and result."),
    histogram("tierfs_remote_request_seconds", "How long the store took to answer."),
    gauge("tierfs_pair_usable", "1, or 0 while the pair cannot be used."),
    gauge("tierfs_journal_notes", "What is noted in the journal and not done yet."),
    gauge("tierfs_dead_letters", "Entries of the dead-letter list."),
    counter("tierfs_dead_letters_dropped_total", "Entries that the bound of the list cost, ever."),
    counter("tierfs_announcements_total", "Ends of files that were announced, or left to the next start."),
    gauge("tierfs_announcements_waiting", "Ends of files that could not be announced, and are tried again."),
    gauge("tierfs_tasks", "Tasks that are not over, by state."),
    gauge("tierfs_task_files", "Files that are in the queue of tasks."),
    gauge("tierfs_files", "Regular files by state, of the index."),
    gauge("tierfs_file_bytes", "Their sizes."),
    gauge("tierfs_file_local_bytes", "What they have allocated on the share."),
    gauge("tierfs_index_age_seconds", "Since these three were read from the index."),
    gauge("tierfs_index_scan_age_seconds", "Since the end of the last whole scan."),
    gauge("tierfs_index_stale", "1 if something is known to be missing from the index."),
    gauge("tierfs_index_inodes", "Inodes in the index."),
    gauge("tierfs_index_hints", "Hints that wait to be looked into."),
    gauge("tierfs_cache_entries", "Entries of tables in memory."),
    gauge("tierfs_open_handles", "Open handles of files."),
    counter("tierfs_requests_total", "Requests of the kernel, by FUSE's name."),
    gauge("tierfs_space_bytes", "The share's filesystem."),
    gauge("tierfs_space_inodes", "Inodes of the share's filesystem."),
    gauge("tierfs_removed_files", "Files removed through the mount that are still open or known to the kernel."),
    gauge("tierfs_removed_bytes", "What these have allocated."),
    gauge("tierfs_policy_last_run_seconds", "When a policy's last run began, seconds since 1970."),
    gauge("tierfs_policy_last_run_files", "Files of that run, by how they ended."),
    gauge("tierfs_policy_last_run_bytes", "Sizes of the files it changed."),
    gauge("tierfs_policy_last_run_ok", "1, or 0 where it ended early."),
    gauge("process_start_time_seconds", "When the daemon began, seconds since 1970."),
    counter("process_cpu_seconds_total", "Processor time of the daemon."),
    gauge("process_resident_memory_bytes", "Memory of the daemon."),
    gauge("process_open_fds", "Descriptors of the daemon."),
];

/// The text that is served (version 0.0.4).
#[derive(Default)]
pub struct Page {
    text: String,
    #[cfg(debug_assertions)]
    at: Option<usize>,
}

impl Page {
    /// Begins a metric, which must be one of [`FAMILIES`], each once, in their order.
    pub fn begin(&mut self, name: &'static str) {
        let found = FAMILIES.iter().position(|family| family.name == name);
        #[cfg(debug_assertions)]
        {
            assert!(found.is_some() && found > self.at, "{name} is unknown, or out of its order");
            self.at = found;
        }
        let Some(Family { kind, help, .. }) = found.map(|at| FAMILIES[at]) else { return };
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {}\n", kind.as_str());
    }

    /// A line of a metric. Whole numbers are written as such.
    pub fn line(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.text.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.text, "{}{label}=\"{text}\"", if at == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.text, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    /// A metric of one line.
    pub fn single(&mut self, name: &'static str, value: f64) {
        self.begin(name);
        self.line(name, &[], value);
    }

    /// A metric of one label.
    pub fn each<'a>(&mut self, name: &'static str, label: &str, lines: impl IntoIterator<Item = (&'a str, f64)>) {
        self.begin(name);
        lines.into_iter().for_each(|(text, value)| self.line(name, &[(label, text)], value));
    }

    /// A histogram of one label.
    pub fn histograms<'a>(
        &mut self,
        name: &'static str,
        label: &str,
        all: impl IntoIterator<Item = (&'a str, &'a Histogram)>,
    ) {
        self.begin(name);
        for (text, histogram) in all {
            let (counts, sum) = histogram.read();
            for (at, count) in counts.iter().enumerate() {
                let bound = BOUNDS_S.get(at).map_or("+Inf".to_owned(), f64::to_string);
                self.line(&format!("{name}_bucket"), &[(label, text), ("le", &bound)], *count as f64);
            }
            self.line(&format!("{name}_sum"), &[(label, text)], sum);
            self.line(&format!("{name}_count"), &[(label, text)], counts[BOUNDS_S.len()] as f64);
        }
    }

    pub fn finish(self) -> String {
        self.text
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The rows of the tables in docs/metrics.md: name and kind.
    fn documented() -> Vec<(String, String)> {
        let text = include_str!("../../../docs/metrics.md");
        let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
        let row = |row: &str| {
            let mut cells = row.split('|').map(|cell| cell.trim().trim_matches('`').to_owned());
            Some((cells.next()?, cells.next()?))
        };
        rows.filter_map(row).collect()
    }

    #[test]
    fn the_document_has_every_metric_and_no_other() {
        let here: Vec<_> =
            FAMILIES.iter().map(|family| (family.name.to_owned(), family.kind.as_str().to_owned())).collect();
        assert_eq!(documented(), here, "docs/metrics.md, in this order");
    }

    #[test]
    fn text_is_as_prometheus_reads_it() {
        let mut page = Page::default();
        page.begin("tierfs_info");
        page.line("tierfs_info", &[("share", "a\"b\\c\nd"), ("pair", "p")], 1.0);
        let histogram = Histogram::default();
        histogram.note(Duration::from_millis(2));
        page.histograms("tierfs_stall_seconds", "for", [("content", &histogram)]);
        page.single("tierfs_open_handles", 3.0);
        let text = page.finish();
        assert!(text.contains("tierfs_info{share=\"a\\\"b\\\\c\\nd\",pair=\"p\"} 1\n"), "{text}");
        assert!(text.contains("# TYPE tierfs_stall_seconds histogram\n"), "{text}");
        assert!(text.contains("tierfs_stall_seconds_bucket{for=\"content\",le=\"0.001\"} 0\n"), "{text}");
        assert!(text.contains("tierfs_stall_seconds_bucket{for=\"content\",le=\"0.0025\"} 1\n"), "{text}");
        assert!(text.contains("tierfs_stall_seconds_bucket{for=\"content\",le=\"+Inf\"} 1\n"), "{text}");
        assert!(text.contains("tierfs_stall_seconds_sum{for=\"content\"} 0.002\n"), "{text}");
        assert!(text.ends_with("tierfs_open_handles 3\n"), "{text}");
    }
}
