//! The recalls that run, over the socket: shown, and ended.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::protocol::{Reply, Summary};
use super::server::{Replies, Server};
use crate::catalog::walk::resolve;
use crate::engine::RecallStatus;
use crate::types::FileId;

/// Which recalls are meant.
pub(super) struct Which {
    pub paths: Vec<PathBuf>,
    /// Also those of files below the paths.
    pub recursive: bool,
    /// Numbers of inodes.
    pub inodes: Vec<u64>,
    /// End them.
    pub cancel: bool,
}

impl Server {
    pub(super) async fn recalls(self: &Arc<Self>, which: Which, replies: &Replies) -> Reply {
        let begun = Instant::now();
        let cancel = which.cancel;
        let this = self.clone();
        let found = tokio::task::spawn_blocking(move || this.find_recalls(&which)).await.unwrap_or_default();
        let mut summary = Summary::default();
        // All are told at once: one that waits for another's slot would not end before it.
        let ended =
            found.iter().map(|(file, _)| async { if cancel { self.engine.stop_recall(*file).await } else { true } });
        let ended = futures::future::join_all(ended).await;
        for ((_, recall), ended) in found.into_iter().zip(ended) {
            if !ended {
                // By itself, meanwhile.
                summary.unchanged += 1;
                continue;
            }
            summary.files += 1;
            summary.bytes += recall.bytes_total;
            if replies.send(Reply::Recall(recall)).await.is_err() {
                break;
            }
        }
        summary.seconds = begun.elapsed().as_secs_f64();
        Reply::Done(summary)
    }

    fn find_recalls(&self, which: &Which) -> Vec<(FileId, RecallStatus)> {
        // A file of several names is found by each of them.
        let named: Vec<FileId> =
            which.paths.iter().filter_map(|path| Some(resolve(&*self.lower, path).ok()?.node.id)).collect();
        let is_meant = |(file, recall): &(FileId, RecallStatus)| {
            let path = recall.path.to_path();
            let below = which.recursive && which.paths.iter().any(|above| path.starts_with(above));
            below || named.contains(file) || which.inodes.contains(&file.ino)
        };
        self.engine.running_recalls(|_, _| true).into_iter().filter(is_meant).collect()
    }
}
