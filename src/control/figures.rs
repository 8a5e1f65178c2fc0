//! What a mount does just now, in one answer: for `tierfs top`.

use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use super::protocol::{Figures, Reply, Summary};
use super::server::{Replies, Server};
use crate::engine::{Moved, RecallStatus};

/// Recalls that are told one by one.
const RECALLS_MAX: usize = 100;
/// The same of tasks.
const TASKS_MAX: usize = 100;

impl Server {
    pub(super) async fn figures(&self, replies: &Replies) -> Reply {
        let counted = tokio::try_join!(self.engine.intent_counts(), self.engine.failed_counts());
        let (notes, failed) = match counted {
            Ok(counts) => counts,
            Err(error) => return Reply::Error { message: error.to_string() },
        };
        let totals = &self.engine.totals;
        let get = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        let ends = |moved: Moved| totals.ends(moved).map(|(end, count)| (end.to_owned(), count)).collect();
        let states = match &self.index {
            Some(index) => self.watch.totals.get(index).await,
            None => None,
        };
        let (states, states_age) = states.map(|(info, age)| (info.files, age.as_secs_f64())).unzip();
        let (recalls, space) = tokio::task::block_in_place(|| (self.foremost_recalls(), self.space_info()));
        let tasks = match self.watch.tasks.get() {
            Some(queue) => queue.foremost(TASKS_MAX).await,
            None => Ok(Vec::new()),
        };
        let tasks = match tasks {
            Ok(tasks) => tasks,
            Err(message) => return Reply::Error { message },
        };
        let (fetches, fetch_bytes) = self.engine.slots.held();
        let figures = Figures {
            time: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            mountpoint: self.mountpoint.display().to_string(),
            pair: self.engine.pair_name(),
            pair_problem: self.pair_problem(),
            archived_bytes: get(&totals.archived_bytes),
            released_bytes: get(&totals.released_bytes),
            recalled_bytes: get(&totals.fetched_bytes),
            transfers: Moved::ALL.map(|moved| (moved.as_str().to_owned(), ends(moved))).into(),
            running: get(&totals.running),
            recalls_fetching: self.engine.recall_counts().map(|(class, n, _)| (class.as_str().to_owned(), n)).into(),
            recalls_resting: self.engine.recall_counts().iter().map(|(.., n)| n).sum(),
            recalls,
            fetches: fetches as u64,
            fetch_bytes,
            requests: self.fs.calls.all().map(|(_, count)| count).sum(),
            open_handles: self.fs.sizes().handles as u64,
            notes,
            failed,
            announcements_waiting: self.engine.announced_files().map_or(0, |announced| announced.waiting),
            states: states.unwrap_or_default(),
            states_age,
            space,
            tasks,
            policies: self.policies.as_ref().map_or_else(Vec::new, |manager| manager.at_a_glance()),
            index_pending: self.index.as_ref().map(|index| index.recorder().pending() as u64),
            index_scan: self.index.as_ref().and_then(|index| index.scanning()),
        };
        // A client that is gone needs no answer.
        let _ = replies.send(Reply::Figures(Box::new(figures))).await;
        Reply::Done(Summary::default())
    }

    /// The recalls with the most to bring.
    fn foremost_recalls(&self) -> Vec<RecallStatus> {
        let mut recalls: Vec<_> =
            self.engine.running_recalls(|_, _| true).into_iter().map(|(_, recall)| recall).collect();
        recalls.sort_by_key(|recall| std::cmp::Reverse(recall.bytes_total - recall.bytes_done.min(recall.bytes_total)));
        recalls.truncate(RECALLS_MAX);
        recalls
    }
}
