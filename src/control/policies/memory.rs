//! What is remembered of policies over a restart, in the journal: how each ran last, and which are on the way down between their marks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::parse::Policies;
use super::rule::Rule;
use crate::control::protocol::{PolicyRun, Stopped};
use crate::ports::Journal;

/// Name of the journal's value.
const VALUE: &str = "policies";
/// Runs that found nothing to do are written down only of rules that come less often than this, seconds: the others are due soon anyway,
/// and each costs a sync.
const OFTEN_S: u64 = 60;

/// As JSON in the journal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    runs: BTreeMap<String, PolicyRun>,
    freeing: BTreeSet<String>,
    /// The same of single users.
    #[serde(default)]
    freeing_users: BTreeMap<String, BTreeSet<u32>>,
    #[serde(skip)]
    changed: bool,
}

pub(super) struct Memory {
    journal: Arc<dyn Journal>,
    known: Mutex<Known>,
    /// One writes at a time: what is older must not come last.
    writing: tokio::sync::Mutex<()>,
}

impl Memory {
    /// What cannot be read costs runs that come too early.
    pub async fn open(journal: Arc<dyn Journal>) -> Self {
        let known = match journal.value(VALUE).await {
            Ok(None) => Known::default(),
            Ok(Some(text)) => serde_json::from_str(&text).unwrap_or_else(|error| {
                tracing::warn!("when policies ran last is not understood, so they are due: {error}");
                Known::default()
            }),
            Err(error) => {
                tracing::warn!("when policies ran last is not known, so they are due: {error}");
                Known::default()
            }
        };
        Self { journal, known: Mutex::new(known), writing: tokio::sync::Mutex::default() }
    }

    pub fn last_run(&self, name: &str) -> Option<PolicyRun> {
        self.known.lock().runs.get(name).cloned()
    }

    pub fn ran(&self, rule: &Rule, run: PolicyRun) {
        let mut known = self.known.lock();
        let acted = run.files + run.failed > 0 || run.stopped.is_some() || run.problem.is_some();
        known.changed |= acted || rule.schedule.every.as_secs() > OFTEN_S;
        known.runs.insert(rule.name.clone(), run);
    }

    pub fn is_freeing(&self, name: &str) -> bool {
        self.known.lock().freeing.contains(name)
    }

    pub fn set_freeing(&self, name: &str, freeing: bool) {
        let mut known = self.known.lock();
        known.changed |= match freeing {
            true => known.freeing.insert(name.to_owned()),
            false => known.freeing.remove(name),
        };
    }

    /// Users between a rule's marks of their quotas, on the way down.
    pub fn freeing_users(&self, name: &str) -> BTreeSet<u32> {
        self.known.lock().freeing_users.get(name).cloned().unwrap_or_default()
    }

    pub fn set_freeing_users(&self, name: &str, users: BTreeSet<u32>) {
        let mut known = self.known.lock();
        let before = match users.is_empty() {
            true => known.freeing_users.remove(name).unwrap_or_default(),
            false => known.freeing_users.insert(name.to_owned(), users.clone()).unwrap_or_default(),
        };
        known.changed |= before != users;
    }

    /// Writes down what changed; of rules that are no more, nothing.
    pub async fn store(&self, rules: &Policies) {
        let _one = self.writing.lock().await;
        let known = {
            let mut known = self.known.lock();
            if !std::mem::take(&mut known.changed) {
                return;
            }
            let is_there = |name: &String| rules.rules.iter().any(|rule| rule.name == *name);
            known.runs.retain(|name, _| is_there(name));
            known.freeing.retain(is_there);
            known.freeing_users.retain(|name, _| is_there(name));
            known.clone()
        };
        let stored = match serde_json::to_string(&known) {
            Ok(text) => self.journal.set_value(VALUE, Some(text)).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = stored {
            self.known.lock().changed = true;
            tracing::warn!("when policies ran last could not be remembered: {error}");
        }
    }
}

/// Whether the schedule wants a run now, after the last one.
pub(super) fn is_due(rule: &Rule, last: Option<&PolicyRun>, now: i64) -> bool {
    rule.schedule.is_open(now) && due_at(rule, last, now) <= now
}

/// When the interval wants the next run, not before `now`; whether its window is open then is another question.
pub(super) fn due_at(rule: &Rule, last: Option<&PolicyRun>, now: i64) -> i64 {
    let Some(last) = last else { return now };
    let from = match last.stopped {
        // It goes on with what is left.
        Some(Stopped::Window | Stopped::Changed | Stopped::Unmount) => return now,
        // Who stopped it did not mean it to begin anew at once.
        Some(Stopped::Asked) => last.ended.unwrap_or(last.began),
        Some(Stopped::Disabled | Stopped::Gone) | None => last.began,
    };
    let every = i64::try_from(rule.schedule.every.as_secs()).unwrap_or(i64::MAX);
    // A clock that was set back puts nothing off for longer than it would have.
    if from > now { now } else { from.saturating_add(every).max(now) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::policies::parse;

    #[test]
    fn what_was_cut_short_goes_on_and_what_was_stopped_waits() {
        let rules =
            parse("[policy.a]\naction = \"pin\"\nschedule = { every = \"100s\", window = \"00:00-01:00\" }").unwrap();
        let due = |began, ended, stopped, now| {
            let last = PolicyRun { began, ended: Some(ended), stopped, ..PolicyRun::default() };
            is_due(&rules.rules[0], Some(&last), now)
        };
        assert!(is_due(&rules.rules[0], None, 0) && !is_due(&rules.rules[0], None, 3600));
        assert_eq!([due(10, 60, None, 109), due(10, 60, None, 110)], [false, true]);
        assert!(due(10, 60, Some(Stopped::Window), 61) && !due(10, 60, Some(Stopped::Window), 3600));
        assert!(due(10, 60, Some(Stopped::Unmount), 61));
        assert_eq!([159, 160].map(|now| due(10, 60, Some(Stopped::Asked), now)), [false, true]);
        assert!(due(2000, 2001, None, 10), "the clock was set back");
    }

    #[test]
    fn what_is_remembered_is_understood_again() {
        let run = PolicyRun { began: 5, ended: Some(6), stopped: Some(Stopped::Window), ..PolicyRun::default() };
        let known = Known {
            runs: BTreeMap::from([("a".to_owned(), run)]),
            freeing: BTreeSet::from(["b".to_owned()]),
            freeing_users: BTreeMap::from([("c".to_owned(), BTreeSet::from([7]))]),
            changed: false,
        };
        assert_eq!(serde_json::from_str::<Known>(&serde_json::to_string(&known).unwrap()).unwrap(), known);
        let old = Known { freeing_users: BTreeMap::new(), runs: BTreeMap::new(), ..known };
        assert_eq!(
            serde_json::from_str::<Known>(r#"{"runs":{},"freeing":["b"]}"#).unwrap(),
            old,
            "of a version before"
        );
    }
}
