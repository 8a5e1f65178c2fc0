//! A run at work: how far it is, and what ends it before it is through.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::parse::Policies;
use super::rule::Rule;
use crate::control::protocol::{PolicyRun, Stopped};
use crate::engine::{JobEvent, Outcome};

/// How often at least it is looked whether the run is to end, while it waits.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// One run of a rule.
pub(super) struct Work {
    /// As it was when the run began.
    pub rule: Rule,
    /// Whatever the schedule says.
    by_hand: bool,
    run: Mutex<PolicyRun>,
    ending: watch::Sender<bool>,
}

impl Work {
    pub fn new(rule: Rule, by_hand: bool, began: i64) -> Self {
        let run = Mutex::new(PolicyRun { began, ..PolicyRun::default() });
        Self { rule, by_hand, run, ending: watch::Sender::new(false) }
    }

    /// How far it is.
    pub fn run(&self) -> PolicyRun {
        self.run.lock().clone()
    }

    pub fn matched(&self, files: u64) {
        self.run.lock().matched += files;
    }

    /// A file that a dry run would take.
    pub fn shown(&self, size: u64) {
        let mut run = self.run.lock();
        run.files += 1;
        run.bytes += size;
    }

    /// A file that was not what it was.
    pub fn passed_over(&self) {
        self.run.lock().skipped += 1;
    }

    /// Counts a file's end; for a failure, its kind.
    pub fn ended(&self, event: &JobEvent) -> Option<String> {
        let mut run = self.run.lock();
        match &event.outcome {
            Outcome::Done | Outcome::Repaired | Outcome::Digest(_) => {
                run.files += 1;
                run.bytes += event.file.attr.size;
            }
            Outcome::Unchanged => run.skipped += 1,
            Outcome::Failed(error) if error.is_skip() => run.skipped += 1,
            Outcome::Failed(error) => {
                run.failed += 1;
                return Some(error.reason().map_or("other", |reason| reason.as_str()).to_owned());
            }
        }
        None
    }

    /// Nothing more is begun; the first reason is told.
    pub fn stop(&self, why: Stopped) {
        let mut run = self.run.lock();
        if run.problem.is_none() && run.stopped.is_none() {
            run.stopped = Some(why);
        }
        self.ending.send_replace(true);
    }

    /// As [`Work::stop`], because something is wrong.
    pub fn fail(&self, problem: String) {
        let mut run = self.run.lock();
        if run.stopped.is_none() {
            run.problem.get_or_insert(problem);
        }
        self.ending.send_replace(true);
    }

    pub fn is_ending(&self) -> bool {
        *self.ending.borrow()
    }

    /// Stops the run if the rules that are in force now, or the time, want it.
    pub fn look(&self, rules: &Policies, now: i64) {
        if let Some(why) = self.stopped_by(rules, now) {
            self.stop(why);
        }
    }

    fn stopped_by(&self, rules: &Policies, now: i64) -> Option<Stopped> {
        let Some(rule) = rules.rules.iter().find(|rule| rule.name == self.rule.name) else {
            return Some(Stopped::Gone);
        };
        if self.rule.enabled && !rule.enabled {
            return Some(Stopped::Disabled);
        }
        let (enabled, schedule) = (rule.enabled, rule.schedule.clone());
        if *rule != (Rule { enabled, schedule, ..self.rule.clone() }) {
            return Some(Stopped::Changed);
        }
        (!self.by_hand && !rule.schedule.is_open(now)).then_some(Stopped::Window)
    }

    async fn ends(&self) {
        // An error would be that nobody can end it any more: it lives as long as this.
        let _ = self.ending.subscribe().wait_for(|ending| *ending).await;
    }

    /// Waits for something, but not longer than the run goes on; `None`: it is to end. `look` is asked now and then, and at the end.
    pub async fn wait<T>(&self, wanted: impl Future<Output = T>, look: impl Fn()) -> Option<T> {
        let ending = self.ends();
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        tokio::pin!(wanted, ending);
        loop {
            tokio::select! {
                biased;
                () = &mut ending => return None,
                come = &mut wanted => {
                    look();
                    return (!self.is_ending()).then_some(come);
                }
                _ = ticks.tick() => look(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::policies::parse;

    const HOUR: i64 = 3600;

    fn rules(more: &str) -> Policies {
        parse(&format!("[policy.night]\naction = \"migrate\"\n{more}")).unwrap()
    }

    fn work(rules: &Policies, by_hand: bool) -> Work {
        Work::new(rules.rules[0].clone(), by_hand, 0)
    }

    #[test]
    fn a_window_closes_on_runs_of_the_schedule_only() {
        let rules = rules("schedule.window = \"22:00-06:00\"");
        for (now, closed) in [(23 * HOUR, false), (30 * HOUR - 1, false), (30 * HOUR, true), (45 * HOUR, true)] {
            let work = work(&rules, false);
            work.look(&rules, now);
            assert_eq!((work.run().stopped, work.is_ending()), (closed.then_some(Stopped::Window), closed), "{now}");
        }
        let by_hand = work(&rules, true);
        by_hand.look(&rules, 12 * HOUR);
        assert!(!by_hand.is_ending());
    }

    #[test]
    fn a_reload_stops_what_it_changes() {
        let old = rules("");
        for (new, stopped) in [
            ("", None),
            ("schedule.every = \"3s\"", None),
            ("enabled = false", Some(Stopped::Disabled)),
            ("match.not_paths = [\"keep/**\"]", Some(Stopped::Changed)),
            ("limits.rate = \"1MiB\"", Some(Stopped::Changed)),
        ] {
            let work = work(&old, true);
            work.look(&rules(new), 0);
            assert_eq!(work.run().stopped, stopped, "{new}");
        }
        let gone = work(&old, true);
        gone.look(&Policies::none(), 0);
        gone.stop(Stopped::Asked);
        assert_eq!(gone.run().stopped, Some(Stopped::Gone), "the first reason");
        // One that was off from the beginning is run by hand.
        let off = rules("enabled = false");
        let by_hand = work(&off, true);
        by_hand.look(&off, 0);
        assert!(!by_hand.is_ending());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_hears_of_the_end() {
        let night = rules("schedule.window = \"22:00-06:00\"");
        let work = work(&night, false);
        let began = tokio::time::Instant::now();
        // Closes five seconds from now.
        let now = || 30 * HOUR - 5 + began.elapsed().as_secs() as i64;
        let come = work.wait(tokio::time::sleep(Duration::from_secs(3)), || work.look(&night, now())).await;
        assert!(come.is_some());
        let come = work.wait(std::future::pending::<()>(), || work.look(&night, now())).await;
        assert_eq!((come, work.run().stopped), (None, Some(Stopped::Window)));
        assert_eq!(began.elapsed().as_secs(), 5);
    }
}
