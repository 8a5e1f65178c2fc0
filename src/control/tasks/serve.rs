//! `tasks` at the daemon's end of the socket.

use std::sync::Arc;

use super::run::{AtWork, Queue, kind_of};
use super::store::{Job, JobState};
use crate::catalog::index::now_s;
use crate::control::protocol::{Reply, Summary, TaskAction, TaskInfo};
use crate::control::server::{Replies, Server};

impl Server {
    pub(in crate::control) async fn tasks(self: &Arc<Self>, action: TaskAction, replies: &Replies) -> Reply {
        let queue = self.watch.tasks.get().cloned();
        let none = "this mount keeps no tasks: it is read-only or has no pair (or the log says why)";
        let ended = match queue {
            Some(queue) => queue.serve(action, replies).await,
            None => Err(none.to_owned()),
        };
        match ended {
            Ok(summary) => Reply::Done(summary),
            Err(message) => Reply::Error { message },
        }
    }
}

impl Queue {
    async fn serve(self: &Arc<Self>, action: TaskAction, replies: &Replies) -> Result<Summary, String> {
        let mut summary = Summary::default();
        let mut shown = Vec::new();
        match action {
            TaskAction::Add { kind, paths, recursive, priority } => {
                if kind_of(&kind).is_none() {
                    return Err(format!("{kind:?} is no kind of task: use migrate, archive, release or recall"));
                }
                let id = self.add(kind, paths, recursive, priority).await?;
                shown.extend(self.with(move |store| store.job(id)).await?);
            }
            TaskAction::List { all } => shown = self.with(move |store| store.jobs(all)).await?,
            TaskAction::Pause { ids } => shown = self.change(ids, JobState::Paused).await?,
            TaskAction::Resume { ids } => shown = self.change(ids, JobState::Waiting).await?,
            TaskAction::Cancel { ids } => shown = self.change(ids, JobState::Cancelled).await?,
            TaskAction::Priority { id, priority } => {
                if !self.with(move |store| store.set_priority(id, priority)).await? {
                    return Err(format!("there is no task {id}, or it is over"));
                }
                shown.extend(self.with(move |store| store.job(id)).await?);
            }
        }
        self.stir();
        let at_work = self.at_work();
        for job in shown {
            summary.files += 1;
            if replies.send(Reply::Task(info(job, at_work))).await.is_err() {
                break;
            }
        }
        Ok(summary)
    }

    /// Without ids: all that are not over.
    async fn change(self: &Arc<Self>, ids: Vec<i64>, state: JobState) -> Result<Vec<Job>, String> {
        let named = !ids.is_empty();
        self.with(move |store| {
            let ids = if named { ids } else { store.jobs(false)?.iter().map(|job| job.id).collect() };
            let mut changed = Vec::new();
            for id in ids {
                if store.set_state(id, state, now_s())? {
                    changed.extend(store.job(id)?);
                } else if named {
                    return Ok(Err(format!("there is no task {id}, or it is over")));
                }
            }
            Ok(Ok(changed))
        })
        .await?
    }
}

fn info(job: Job, at_work: Option<AtWork>) -> TaskInfo {
    let ended = job.done + job.unchanged + job.skipped + job.failed;
    let left = job.files.saturating_sub(ended);
    let state = match job.state {
        JobState::Waiting if at_work.is_some_and(|at| at.job == job.id) => "running",
        JobState::Waiting if !job.filled && left == 0 => "looking",
        state => state.as_str(),
    };
    // By files: what is left of the bytes is known only where all is moved.
    let eta = at_work.filter(|at| at.job == job.id && state == "running" && job.filled).and_then(|at| {
        let files = ended.saturating_sub(at.files);
        (files > 0).then(|| (at.since.elapsed().as_secs_f64() * left as f64 / files as f64).ceil() as u64)
    });
    TaskInfo {
        id: job.id,
        kind: job.kind,
        state: state.into(),
        priority: job.priority,
        paths: job.paths,
        recursive: job.recursive,
        created: job.created,
        ended: job.ended,
        walked: job.filled,
        files: job.files,
        bytes: job.bytes,
        repeated: job.repeated,
        done: job.done,
        done_bytes: job.done_bytes,
        unchanged: job.unchanged,
        skipped: job.skipped,
        failed: job.failed,
        eta,
        problem: job.outage.or(job.problem),
    }
}
