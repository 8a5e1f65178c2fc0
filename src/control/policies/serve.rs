//! `policy` and `why` at the daemon's end of the socket.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use super::choose::Picked;
use super::rule::{Rule, Schedule, Trigger};
use super::run::{Manager, Tell};
use crate::catalog::index::now_s;
use crate::control::index::on_thread;
use crate::control::protocol::{
    Failure, PolicyAction, PolicyCandidate, PolicyInfo, PolicyRun, Reply, Summary, WhyFile, WirePath,
};
use crate::control::server::{Replies, Server};
use crate::engine::{JobEvent, Outcome};
use crate::pair::units::{exact_duration, exact_size};

impl Server {
    fn managed(&self) -> Result<Arc<Manager>, String> {
        self.policies.clone().ok_or_else(|| "this mount has no index, and so no policies: its log says why".to_owned())
    }

    pub(in crate::control) async fn policy(self: &Arc<Self>, action: PolicyAction, replies: &Replies) -> Reply {
        let begun = Instant::now();
        let ended = match self.managed() {
            Ok(manager) => manager.serve(action, replies).await,
            Err(message) => Err(message),
        };
        match ended {
            Ok(summary) => Reply::Done(Summary { seconds: begun.elapsed().as_secs_f64(), ..summary }),
            Err(message) => Reply::Error { message },
        }
    }

    pub(in crate::control) async fn why(self: &Arc<Self>, paths: Vec<WirePath>, replies: &Replies) -> Reply {
        let manager = match self.managed() {
            Ok(manager) => manager,
            Err(message) => return Reply::Error { message },
        };
        let mut summary = Summary::default();
        for wire in paths {
            let why = self.why_one(&manager, wire.to_path()).await;
            let reply = match why {
                Ok(why) => {
                    summary.files += 1;
                    Reply::Why(why)
                }
                Err(reason) => {
                    summary.failed += 1;
                    Reply::Failure(Failure { path: wire, reason, skipped: false })
                }
            };
            if replies.send(reply).await.is_err() {
                break;
            }
        }
        Reply::Done(summary)
    }

    async fn why_one(&self, manager: &Arc<Manager>, path: PathBuf) -> Result<WhyFile, String> {
        let (this, looked_for) = (manager.clone(), path.clone());
        let node = on_thread(move || Ok(this.node_of(&looked_for))).await.and_then(|node| node)?;
        let failed = self.engine.failed_of(node.id).await.map_err(|error| error.to_string())?;
        let queued = match self.watch.tasks.get() {
            Some(queue) => queue.with(move |store| store.of_file(node.id)).await?,
            None => Vec::new(),
        };
        let (this, works) = (manager.clone(), self.watch.background);
        on_thread(move || Ok(this.why(&path, &works, &failed, &queued))).await.and_then(|why| why)
    }
}

impl Manager {
    async fn serve(self: &Arc<Self>, action: PolicyAction, replies: &Replies) -> Result<Summary, String> {
        match action {
            PolicyAction::List => {
                let policies = self.policies();
                for rule in &policies.rules {
                    tell(replies, Reply::Policy(self.info(rule))).await?;
                }
                Ok(Summary { files: policies.rules.len() as u64, ..Summary::default() })
            }
            PolicyAction::Reload => {
                let count = self.reload().map_err(|error| error.to_string())?;
                Ok(Summary { files: count as u64, ..Summary::default() })
            }
            PolicyAction::Stop { names } => {
                for name in &names {
                    if !self.stop(name) {
                        return Err(format!("policy {name:?} does not run: `tierfs policy list` shows which do"));
                    }
                }
                Ok(Summary { files: names.len() as u64, ..Summary::default() })
            }
            PolicyAction::Explain { names } => {
                let rules = self.named(&names)?;
                for rule in &rules {
                    let mut info = self.info(rule);
                    info.filter = Some(rule.filter(now_s()));
                    let (this, counted) = (self.clone(), rule.clone());
                    info.matches = Some(
                        on_thread(move || {
                            let (mut files, mut bytes) = (0, 0);
                            this.each_match(&counted, now_s(), &mut |file, _| {
                                files += 1;
                                bytes += file.size;
                                true
                            })?;
                            Ok((files, bytes))
                        })
                        .await?,
                    );
                    tell(replies, Reply::Policy(info)).await?;
                }
                Ok(Summary { files: rules.len() as u64, ..Summary::default() })
            }
            PolicyAction::Run { names, dry_run } => {
                let mut total = Summary::default();
                for rule in self.named(&names)? {
                    let run = self.run_for(&rule, dry_run, replies).await?;
                    total.files += run.files;
                    total.bytes += run.bytes;
                    total.skipped += run.skipped;
                    total.failed += run.failed;
                    if let Some(problem) = run.problem {
                        return Err(format!("policy {}: {problem}", rule.name));
                    }
                    if let Some(why) = run.stopped {
                        return Err(format!("policy {}: after {} files {why}", rule.name, run.files));
                    }
                }
                Ok(total)
            }
        }
    }

    /// The rules of these names; all where none is named.
    fn named(&self, names: &[String]) -> Result<Vec<Rule>, String> {
        let policies = self.policies();
        if policies.rules.is_empty() {
            return Err("the mount has no policies: mount it with -o policies=FILE".into());
        }
        if names.is_empty() {
            return Ok(policies.rules.iter().filter(|rule| rule.enabled).cloned().collect());
        }
        let find = |name: &String| {
            policies.rules.iter().find(|rule| rule.name == *name).cloned().ok_or_else(|| {
                let known: Vec<&str> = policies.rules.iter().map(|rule| rule.name.as_str()).collect();
                format!("there is no policy {name:?}; there are {}", known.join(", "))
            })
        };
        names.iter().map(find).collect()
    }

    async fn run_for(self: &Arc<Self>, rule: &Rule, dry_run: bool, replies: &Replies) -> Result<PolicyRun, String> {
        if dry_run {
            let (shown, mut files) = mpsc::channel::<Picked>(256);
            let (name, replies) = (rule.name.clone(), replies.clone());
            let telling = tokio::spawn(async move {
                while let Some(file) = files.recv().await {
                    let path = WirePath::from_path(&file.path);
                    let candidate = PolicyCandidate { policy: name.clone(), path, size: file.size, local: file.local };
                    if replies.send(Reply::Candidate(candidate)).await.is_err() {
                        break;
                    }
                }
            });
            let tell = Tell::Candidates(shown);
            let run = self.run_rule(rule, true, &tell).await;
            drop(tell);
            telling.await.map_err(|error| format!("the run failed: {error}"))?;
            return Ok(run);
        }
        let (events, mut ended) = mpsc::channel::<JobEvent>(256);
        let replies = replies.clone();
        let telling = tokio::spawn(async move {
            while let Some(event) = ended.recv().await {
                let Outcome::Failed(error) = event.outcome else { continue };
                let path = WirePath::from_path(&event.file.path);
                let failure = Failure { path, reason: error.to_string(), skipped: error.is_skip() };
                if replies.send(Reply::Failure(failure)).await.is_err() {
                    break;
                }
            }
        });
        let tell = Tell::Events(events);
        let run = self.run_rule(rule, true, &tell).await;
        drop(tell);
        telling.await.map_err(|error| format!("the run failed: {error}"))?;
        Ok(run)
    }

    fn info(&self, rule: &Rule) -> PolicyInfo {
        PolicyInfo {
            name: rule.name.clone(),
            action: rule.action_text(),
            enabled: rule.enabled,
            conditions: rule.conditions.iter().map(ToString::to_string).collect(),
            schedule: schedule(&rule.schedule),
            trigger: trigger(&rule.trigger),
            filter: None,
            matches: None,
            running: self.running(&rule.name),
            last: self.last_run(&rule.name),
        }
    }
}

async fn tell(replies: &Replies, reply: Reply) -> Result<(), String> {
    replies.send(reply).await.map_err(|_| "whoever asked is gone".to_owned())
}

fn schedule(schedule: &Schedule) -> String {
    const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
    let mut text = format!("every {}", exact_duration(schedule.every.as_secs()));
    if let Some((from, to)) = schedule.window {
        text += &format!(", {:02}:{:02} to {:02}:{:02} UTC", from / 60, from % 60, to / 60, to % 60);
    }
    if !schedule.days.is_empty() {
        let days: Vec<&str> = schedule.days.iter().filter_map(|day| DAYS.get(*day as usize).copied()).collect();
        text += &format!(", on {}", days.join(" "));
    }
    text
}

fn trigger(trigger: &Trigger) -> Option<String> {
    let mut parts = Vec::new();
    if let Some(above) = trigger.space_above {
        let below = trigger.space_below.map_or(String::new(), |below| format!(", down to {below}%"));
        parts.push(format!("space over {above}% in use{below}"));
    }
    parts.extend(trigger.inodes_above.map(|above| format!("inodes over {above}% in use")));
    parts.extend(trigger.user_above.map(|above| format!("a user with over {} here", exact_size(above))));
    parts.extend(trigger.user_quota_above.map(|above| {
        let below = trigger.user_quota_below.map_or(String::new(), |below| format!(", down to {below}%"));
        format!("a user with over {above}% of the quota in use{below}")
    }));
    (!parts.is_empty()).then(|| parts.join(" or "))
}
