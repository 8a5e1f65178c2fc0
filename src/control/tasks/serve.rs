//! `tasks` at the daemon's end of the socket.

use std::sync::Arc;
use std::time::Instant;

use super::rate::{Rate, Rates};
use super::run::{AtWork, Queue, kind_of};
use super::store::{Job, JobState};
use crate::catalog::index::now_s;
use crate::control::protocol::{Reply, Summary, TaskAction, TaskInfo, TaskRate};
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
            TaskAction::Rate { set } => {
                if let Some(text) = set {
                    self.set_rates(Rates::parse(&text)?);
                }
                let (rates, now) = self.rates();
                let now = match now {
                    Rate::Unlimited => None,
                    Rate::Bytes(rate) => Some(rate),
                    Rate::Off => Some(0),
                };
                // A client that is gone needs no answer.
                let _ = replies.send(Reply::TaskRate(TaskRate { rates: rates.to_string(), now })).await;
                return Ok(summary);
            }
        }
        self.stir();
        let at_work = self.at_work();
        for job in shown {
            summary.files += 1;
            if replies.send(Reply::Task(info(job, at_work, Instant::now()))).await.is_err() {
                break;
            }
        }
        Ok(summary)
    }

    /// The foremost jobs that are not over.
    pub(in crate::control) async fn foremost(self: &Arc<Self>, most: usize) -> Result<Vec<TaskInfo>, String> {
        let jobs = self.with(|store| store.jobs(false)).await?;
        let (at_work, now) = (self.at_work(), Instant::now());
        Ok(jobs.into_iter().take(most).map(|job| info(job, at_work, now)).collect())
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

fn info(job: Job, at_work: Option<AtWork>, now: Instant) -> TaskInfo {
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
        let seconds = now.saturating_duration_since(at.since).as_secs_f64();
        (files > 0).then(|| (seconds * left as f64 / files as f64).ceil() as u64)
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn job(ended: u64, files: u64) -> Job {
        Job {
            id: 7,
            kind: "migrate".into(),
            paths: Vec::new(),
            recursive: true,
            priority: 0,
            state: JobState::Waiting,
            filled: true,
            created: 1,
            ended: None,
            files,
            bytes: files * 10,
            repeated: 0,
            done: ended / 2,
            done_bytes: ended * 5,
            unchanged: ended - ended / 2,
            skipped: 0,
            failed: 0,
            problem: None,
            outage: None,
        }
    }

    #[test]
    fn the_time_left_is_that_of_the_files_left_as_fast_as_it_went() {
        let since = Instant::now();
        let at_work = Some(AtWork { job: 7, since, files: 100, bytes: 0 });
        let told = |job: Job, at_work, seconds| {
            let TaskInfo { state, eta, .. } = info(job, at_work, since + Duration::from_secs(seconds));
            (state, eta)
        };
        let running = |eta| ("running".to_owned(), eta);
        // 60 files in 30 s since it began this time; 240 are left.
        assert_eq!(told(job(160, 400), at_work, 30), running(Some(120)));
        assert_eq!(told(job(161, 400), at_work, 30), running(Some(118)));
        assert_eq!(told(job(400, 400), at_work, 30), running(Some(0)));
        // Nobody knows before a file has ended, while files are still being found, or of one that is not worked on.
        assert_eq!(told(job(100, 400), at_work, 30), running(None));
        assert_eq!(told(Job { filled: false, ..job(160, 400) }, at_work, 30), running(None));
        assert_eq!(told(job(160, 400), None, 30), ("waiting".into(), None));
        assert_eq!(told(Job { id: 8, ..job(160, 400) }, at_work, 30), ("waiting".into(), None));
        assert_eq!(told(Job { state: JobState::Paused, ..job(160, 400) }, at_work, 30), ("paused".into(), None));
        assert_eq!(told(Job { filled: false, ..job(0, 0) }, None, 30), ("looking".into(), None));
    }
}
