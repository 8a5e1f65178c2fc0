//! What the mount does to files by itself, beside policies, as `tierfs why` tells it of one file: archiving by age, and freeing for room.

use std::time::Duration;

use super::policy;
use super::protocol::{WhyBackground, WhyReason};
use super::space::{Amount, SpaceRules, used_pct};
use super::unfit::{Standing, Unfit, is_unarchivable, is_unreleasable, is_young};
use crate::engine::{Engine, again_at};
use crate::pair::units::{exact_duration, exact_size, format_size};
use crate::ports::{Attr, FailedEntry, SpaceInfo, Task};
use crate::types::Timestamp;

/// How the mount was told to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Background {
    pub archive_after: Option<Duration>,
    pub space: SpaceRules,
    /// Nothing is moved.
    pub read_only: bool,
}

/// A file, as far as it matters here.
pub struct Subject<'a> {
    pub attr: &'a Attr,
    /// `None`: its record cannot be read.
    pub standing: Option<Standing>,
    /// How many have it open.
    pub handles: u64,
    pub failed: &'a [FailedEntry],
    pub now: Timestamp,
}

impl Background {
    /// What each of its works makes of the file. `space`: the share's, if it can be told.
    pub fn why(&self, engine: &Engine, file: &Subject<'_>, space: Option<&SpaceInfo>) -> Vec<WhyBackground> {
        let nowhere = engine.pair_name().is_none().then(|| WhyReason::new("no_pair", "the mount has no pair"));
        let still = self.read_only.then(|| WhyReason::new("read_only", "the mount or its share is read-only"));
        let still = nowhere.or(still);
        let peer = engine.gives_to_peer().then(|| {
            WhyReason::new("peer", "the pair is one of two shares: content is on one side, and never copied only")
        });
        vec![
            self.archiving(file, still.clone().or(peer)),
            self.marks(file, still.clone(), space),
            self.reserve(file, still, space),
        ]
    }

    fn archiving(&self, file: &Subject<'_>, still: Option<WhyReason>) -> WhyBackground {
        let Some(after) = self.archive_after else { return off("archive_after", "archive") };
        let unfit = || is_unarchivable(file.attr, || file.standing);
        let young = || is_young(file.attr, after, file.now).as_ref().map(Unfit::reason);
        let against = still
            .or_else(|| unfit().as_ref().map(Unfit::reason))
            .or_else(|| failed(file, Task::Archive))
            .or_else(young);
        let every = exact_duration(policy::pause(after).as_secs());
        let next = || WhyReason::new("due", format!("at its next look at the share, {every} after the last"));
        told("archive_after", "archive", exact_duration(after.as_secs()), against, next)
    }

    fn marks(&self, file: &Subject<'_>, still: Option<WhyReason>, space: Option<&SpaceInfo>) -> WhyBackground {
        let Some((above, below)) = self.space.marks else { return off("release_above", "release") };
        let used = space.map_or_else(String::new, |space| format!(" (now {}%)", used_pct(space)));
        let rules = SpaceRules { marks: self.space.marks, ..SpaceRules::default() };
        let next = || {
            let how =
                format!("more than {above}% of the space is in use{used}, down to {below}%, the coldest files first");
            comes(space.is_some_and(|space| rules.wants(space)), &how)
        };
        told(
            "release_above",
            "release",
            format!("{above}%, down to {below}%"),
            still.or_else(|| unfreeable(file)),
            next,
        )
    }

    fn reserve(&self, file: &Subject<'_>, still: Option<WhyReason>, space: Option<&SpaceInfo>) -> WhyBackground {
        let Some(amount) = self.space.reserve else { return off("space_reserve", "release") };
        let value = match amount {
            Amount::Bytes(bytes) => exact_size(bytes),
            Amount::Percent(pct) => format!("{pct}%"),
            Amount::Usual => "1%, at most 1GiB".into(),
        };
        let rules = SpaceRules { reserve: self.space.reserve, ..SpaceRules::default() };
        let next = || {
            let bytes = space.map(|space| (rules.reserved(space), space.blocks_available * space.fragment_size));
            let how = match bytes {
                Some((reserved, available)) => {
                    format!("less than {} is available (now {})", format_size(reserved), format_size(available))
                }
                None => format!("less than {value} is available"),
            };
            comes(space.is_some_and(|space| rules.wants(space)), &format!("{how}, the coldest files first"))
        };
        told("space_reserve", "release", value.clone(), still.or_else(|| unfreeable(file)), next)
    }
}

fn off(option: &str, action: &str) -> WhyBackground {
    let against = Some(WhyReason::new("off", "it is off"));
    WhyBackground { option: option.into(), value: None, action: action.into(), applies: false, against, next: None }
}

fn told(
    option: &str,
    action: &str,
    value: String,
    against: Option<WhyReason>,
    next: impl FnOnce() -> WhyReason,
) -> WhyBackground {
    let applies = against.is_none();
    let next = applies.then(next);
    WhyBackground { option: option.into(), value: Some(value), action: action.into(), applies, against, next }
}

/// Files are freed while something is so.
fn comes(now: bool, how: &str) -> WhyReason {
    if now { WhyReason::new("due", format!("now that {how}")) } else { WhyReason::new("space", format!("when {how}")) }
}

fn unfreeable(file: &Subject<'_>) -> Option<WhyReason> {
    let unfit = is_unreleasable(file.attr, || file.standing.map(|standing| (standing, file.handles)));
    unfit.as_ref().map(Unfit::reason).or_else(|| failed(file, Task::Release))
}

/// What failed is left for a while.
pub(super) fn failed(file: &Subject<'_>, task: Task) -> Option<WhyReason> {
    put_off(file.failed, Some(task), file.now.secs)
}

/// The same task failed before, and is not yet to be tried again.
pub(super) fn put_off(failed: &[FailedEntry], task: Option<Task>, now: i64) -> Option<WhyReason> {
    let entry = failed.iter().find(|entry| Some(entry.failed.task) == task && again_at(entry) > now)?;
    Some(WhyReason::new("failed", "it failed before, and is left for a while").at(again_at(entry)))
}
