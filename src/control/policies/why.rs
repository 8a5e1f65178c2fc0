//! Why a file is, or is not, tiered: every rule that speaks of it, what keeps each off it, when it comes to it, and who had the file recalled last.

use std::path::Path;

use super::choose::{Picked, Recalled};
use super::memory::due_at;
use super::rule::{Action, Rule};
use super::run::Manager;
use crate::catalog::index::{HEAT_HALF_LIFE_S, now_s};
use crate::catalog::walk::{Found, resolve};
use crate::control::background::{self, Background, put_off};
use crate::control::protocol::{PolicyRun, WhyFile, WhyReason, WhyRule, WirePath};
use crate::control::space::{pct, used_pct};
use crate::control::tasks::JobState;
use crate::control::unfit::{Standing, Unfit};
use crate::engine::{Engine, JobKind, activity_of, again_at};
use crate::pair::units::{exact_duration, exact_size};
use crate::ports::{Clock, FailedEntry, FileKind, SpaceInfo, SystemClock, Task};
use crate::types::{FileState, Inode};

/// What a rule's trigger is measured against.
#[derive(Clone, Copy, Debug, Default)]
struct Fill {
    /// Per cent in use, rounded up.
    space: u64,
    inodes: u64,
    /// Between the marks, on the way down.
    freeing: bool,
    /// Of the owner's quota, where he has one; and whether his files are on the way down.
    quota: Option<u64>,
    quota_freeing: bool,
}

impl Fill {
    fn of(space: &SpaceInfo, freeing: bool) -> Self {
        let inodes = pct(space.files.saturating_sub(space.files_free), space.files);
        Self { space: used_pct(space), inodes, freeing, ..Self::default() }
    }
}

/// When a rule comes to a file that it wants. `last`: its last run.
fn next(rule: &Rule, now: i64, last: Option<&PolicyRun>, fill: Fill) -> WhyReason {
    let trigger = &rule.trigger;
    let over = |above: u8| fill.space > above.into();
    let over_quota = |mark: Option<u8>| mark.zip(fill.quota).is_some_and(|(mark, used)| used > mark.into());
    let pulled = trigger.space_above.is_some_and(over)
        || (fill.freeing && trigger.low_mark().is_some_and(over))
        || trigger.inodes_above.is_some_and(|above| fill.inodes > above.into())
        || over_quota(trigger.user_quota_above)
        || (fill.quota_freeing && over_quota(trigger.user_quota_low_mark()));
    if rule.is_triggered() && !pulled {
        let mut waits = Vec::new();
        waits.extend(
            trigger
                .space_above
                .map(|above| ("space", format!("more than {above}% of the space is in use (now {}%)", fill.space))),
        );
        waits.extend(
            trigger
                .inodes_above
                .map(|above| ("inodes", format!("more than {above}% of the inodes are in use (now {}%)", fill.inodes))),
        );
        waits.extend(
            trigger.user_above.map(|above| ("user", format!("the owner has more than {} here", exact_size(above)))),
        );
        waits.extend(trigger.user_quota_above.map(|above| {
            let now = fill.quota.map_or("has none".into(), |used| format!("now {used}%"));
            ("quota", format!("the owner uses more than {above}% of the quota ({now})"))
        }));
        let text: Vec<&str> = waits.iter().map(|(_, text)| text.as_str()).collect();
        return WhyReason::new(waits.first().map_or("space", |wait| wait.0), format!("when {}", text.join(" or ")));
    }
    let due = due_at(rule, last, now);
    let opens = rule.schedule.opens(due);
    if opens > due {
        return WhyReason::new("window", "when its window opens").at(opens);
    }
    if due > now {
        return WhyReason::new(
            "interval",
            format!("at its next run, every {}", exact_duration(rule.schedule.every.as_secs())),
        )
        .at(due);
    }
    WhyReason::new("due", "at its next run, which is due")
}

impl Manager {
    /// The file at a path. Blocks.
    pub(super) fn node_of(&self, path: &Path) -> Result<Inode, String> {
        Ok(resolve(&*self.lower, path).map_err(|error| error.source.to_string())?.node)
    }

    /// All that speaks for and against a file. `works`: what the mount does beside policies. Blocks.
    pub(super) fn why(
        &self,
        path: &Path,
        works: &Background,
        failed: &[FailedEntry],
        queued: &[(i64, String, JobState)],
    ) -> Result<WhyFile, String> {
        self.index.take();
        let found = resolve(&*self.lower, path).map_err(|error| error.source.to_string())?;
        if found.attr.kind != FileKind::Regular {
            return Err("only regular files are tiered".into());
        }
        let damaged = Standing { state: FileState::Damaged, pinned: false, retained: false };
        let read = self.standing(&found.node);
        let standing = read.unwrap_or(damaged);
        let known = if self.index.is_empty() { None } else { self.known(&found)? };
        let (picked, recalled) = match known {
            Some((picked, recalled)) => (picked, Some(recalled)),
            None => (Picked::unknown(&found), None),
        };
        let policies = self.policies();
        let rules = policies.rules.iter();
        let project = self.lower.project(&found.node).ok();
        let space = self.lower.space().ok();
        let judge = |rule| self.judge(rule, &found, &picked, (standing, project, space.as_ref()), failed);
        let rules = rules.map(judge).collect();
        let (handles, now) = (self.handles(&found.node), SystemClock.now());
        let subject = background::Subject { attr: &found.attr, standing: read, handles, failed, now };
        let background = works.why(&self.engine, &subject, space.as_ref());
        let (accesses, heat, accessed) = picked.uses();
        let heat = heat.map_or(0.0, |heat| (heat - now_s() as f64 / HEAT_HALF_LIFE_S).exp2());
        Ok(WhyFile {
            path: WirePath::from_path(path),
            state: standing.state,
            project,
            indexed: recalled.is_some(),
            accesses,
            heat,
            accessed,
            recalled: recalled.as_ref().and_then(|recalled| recalled.at),
            recalled_by: recalled.and_then(|recalled| recalled.by),
            against: self.against(&found, standing, failed, queued),
            rules,
            background,
        })
    }

    fn known(&self, found: &Found) -> Result<Option<(Picked, Recalled)>, String> {
        self.picked(&found.node, &found.path).map_err(|error| error.to_string())
    }

    fn judge(
        &self,
        rule: &Rule,
        found: &Found,
        picked: &Picked,
        (standing, project, space): (Standing, Option<u32>, Option<&SpaceInfo>),
        failed: &[FailedEntry],
    ) -> WhyRule {
        let now = now_s();
        let xattr = |name: &str| self.lower.xattr(&found.node, name.as_ref()).ok();
        let project = || project;
        let subject = picked.subject(&found.attr, &project, &xattr);
        let conditions: Vec<(String, bool)> =
            rule.conditions.iter().map(|condition| (condition.to_string(), condition.holds(&subject, now))).collect();
        let against = rule.unfit(&found.attr, standing).as_ref().map(Unfit::reason);
        let against = against
            .or_else(|| self.is_set(rule, &found.node).then(|| WhyReason::new("set", "it says so itself already")))
            .or_else(|| put_off(failed, rule.action.job().and_then(JobKind::task), now))
            .or_else(|| self.busy(rule.action, &found.node))
            .or_else(|| (!rule.enabled).then(|| WhyReason::new("disabled", "the policy is switched off")));
        let applies = against.is_none() && conditions.iter().all(|(_, holds)| *holds);
        let last = self.last_run(&rule.name);
        let mut fill = space.map_or(Fill::default(), |space| Fill::of(space, self.memory.is_freeing(&rule.name)));
        if rule.trigger.user_quota_above.is_some() {
            let quota = self.lower.user_quota(found.attr.uid).ok().flatten();
            fill.quota = quota.and_then(|quota| Some(pct(quota.bytes, quota.bytes_bound()?)));
            fill.quota_freeing = self.memory.freeing_users(&rule.name).contains(&found.attr.uid);
        }
        let next = applies.then(|| next(rule, now, last.as_ref(), fill));
        let last_run = last.and_then(|run| run.ended);
        WhyRule { name: rule.name.clone(), action: rule.action_text(), applies, against, conditions, last_run, next }
    }

    /// What frees content waits until nobody has the file open or mapped.
    fn busy(&self, action: Action, node: &Inode) -> Option<WhyReason> {
        let frees = matches!(action, Action::Release | Action::Migrate);
        let handles = self.handles(node);
        (frees && handles > 0).then(|| Unfit::Open { handles }.reason())
    }

    fn handles(&self, node: &Inode) -> u64 {
        self.engine.cells.live(node.id).map_or(0, |cell| cell.lock().machine.handles().into())
    }

    /// What keeps rules off the file, whatever they want.
    fn against(
        &self,
        found: &Found,
        Standing { state, pinned, retained }: Standing,
        failed: &[FailedEntry],
        queued: &[(i64, String, JobState)],
    ) -> Vec<WhyReason> {
        let mut against = Vec::new();
        let mut add = |word, text: String| against.push(WhyReason::new(word, text));
        if state == FileState::Damaged {
            add("damaged", "its record cannot be read, or contradicts it: `tierfs check` tells more".into());
        }
        if found.attr.size == 0 {
            add("empty", "it is empty: there is nothing to tier".into());
        }
        if found.attr.sealed {
            add("sealed", "it is immutable or append-only: left alone".into());
        }
        if retained {
            add("retained", "it is retention-locked: neither archived, released nor recalled".into());
        }
        if pinned {
            add("pinned", "it is pinned: never released".into());
        }
        if let Some(cell) = self.engine.cells.live(found.node.id)
            && let Some(activity) = activity_of(&cell.lock())
        {
            add("active", format!("it is {activity} just now"));
        }
        let handles = self.handles(&found.node);
        if handles > 0 {
            add("open", format!("it is open or mapped ({handles} handles): not released while it is"));
        }
        for (id, kind, state) in queued {
            add("queued", format!("task {id} has it queued: {kind} ({})", state.as_str()));
        }
        for entry in failed {
            let (task, why, times) = (entry.failed.task.as_str(), &entry.failed.message, entry.attempts);
            let text = format!(
                "on the dead-letter list: {task} failed, {times} so far ({}): {why}",
                entry.failed.reason.as_str()
            );
            let listed = WhyReason::new("failed", text);
            // The scrub goes by its own round.
            against.push(if entry.failed.task == Task::Scrub { listed } else { listed.at(again_at(entry)) });
        }
        against.extend(pair_problem(&self.engine));
        against
    }
}

fn pair_problem(engine: &Engine) -> Option<WhyReason> {
    match engine.pair_name() {
        None => Some(WhyReason::new("no_pair", "the mount has no pair: nothing is archived")),
        Some(_) => engine
            .pair_problem()
            .map(|problem| WhyReason::new("pair", format!("the pair cannot be used at present: {problem}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::policies::parse;

    #[test]
    fn when_a_rule_comes_to_a_file() {
        // Thursday, 2020-01-02, 12:00.
        let now = 1_577_966_400;
        let midnight = 1_577_923_200;
        let fill = |space, inodes, freeing| Fill { space, inodes, freeing, ..Fill::default() };
        let quota = |quota, quota_freeing| Fill { quota, quota_freeing, ..Fill::default() };
        for (text, began, fill, word, at) in [
            ("", None, fill(99, 99, false), "due", None),
            ("", Some(now - 3_600), fill(0, 0, false), "due", None),
            ("", Some(now - 600), fill(0, 0, false), "interval", Some(now + 3_000)),
            ("schedule.window = \"22:00-06:00\"", None, fill(0, 0, false), "window", Some(midnight + 22 * 3_600)),
            ("schedule.window = \"11:00-13:00\"", None, fill(0, 0, false), "due", None),
            // The window is over when the interval is.
            (
                "schedule = { every = \"2h\", window = \"11:00-13:00\" }",
                Some(now - 60),
                fill(0, 0, false),
                "window",
                Some(midnight + 86_400 + 11 * 3_600),
            ),
            ("schedule.days = [\"mon\"]", None, fill(0, 0, false), "window", Some(midnight + 4 * 86_400)),
            ("when.space_above = \"80%\"", None, fill(80, 99, false), "space", None),
            ("when.space_above = \"80%\"", None, fill(81, 0, false), "due", None),
            ("when = { space_above = \"80%\", space_below = \"60%\" }", None, fill(61, 0, true), "due", None),
            ("when = { space_above = \"80%\", space_below = \"60%\" }", None, fill(60, 0, true), "space", None),
            ("when.inodes_above = \"90%\"", None, fill(99, 90, false), "inodes", None),
            ("when.inodes_above = \"90%\"", None, fill(0, 91, false), "due", None),
            ("when.user_above = \"1GiB\"", None, fill(99, 99, false), "user", None),
            ("when.user_quota_above = 80", None, quota(Some(80), false), "quota", None),
            ("when.user_quota_above = 80", None, quota(None, true), "quota", None),
            ("when.user_quota_above = 80", None, quota(Some(81), false), "due", None),
            ("when = { user_quota_above = 80, user_quota_below = 60 }", None, quota(Some(61), true), "due", None),
            ("when = { user_quota_above = 80, user_quota_below = 60 }", None, quota(Some(60), true), "quota", None),
        ] {
            let rule = parse(&format!("[policy.a]\naction = \"release\"\n{text}")).unwrap().rules.remove(0);
            let last = began.map(|began| PolicyRun { began, ..PolicyRun::default() });
            let found = next(&rule, now, last.as_ref(), fill);
            assert_eq!((found.reason.as_str(), found.at), (word, at), "{text:?}, {began:?}, {fill:?}: {}", found.text);
        }
        let rule = parse("[policy.a]\naction = \"release\"\nwhen.space_above = \"80%\"").unwrap().rules.remove(0);
        assert_eq!(
            next(&rule, now, None, fill(71, 0, false)).text,
            "when more than 80% of the space is in use (now 71%)"
        );
    }
}
