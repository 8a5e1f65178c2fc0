//! What a policy says: which files, what to do with them, when, and how much.

use std::fmt;
use std::time::Duration;

use crate::catalog::glob::{Glob, matches_value};
use crate::catalog::index::{HEAT_HALF_LIFE_S, state_filter};
use crate::control::space::COLDEST;
use crate::control::unfit::{Standing, Unfit};
use crate::engine::{Choice, JobKind};
use crate::pair::units::{exact_duration, exact_size};
use crate::ports::Attr;
use crate::types::FileState;

/// What is done with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Archive,
    Release,
    Migrate,
    Recall,
    Pin,
    Unpin,
    /// Say where its next copy goes, in chunks of which size, and what reads bring back.
    Set,
}

impl Action {
    /// The engine's job; `None`: nothing is moved.
    pub fn job(self) -> Option<JobKind> {
        Some(match self {
            Self::Archive => JobKind::ArchiveOnly,
            Self::Release => JobKind::Release,
            Self::Migrate => JobKind::Migrate,
            Self::Recall => JobKind::Recall,
            Self::Pin => JobKind::Pin,
            Self::Unpin => JobKind::Unpin,
            Self::Set => return None,
        })
    }

    /// States in which there is something to do.
    pub fn states(self) -> &'static [FileState] {
        use FileState::{Dual, Partial, Patched, Releasing, Resident, Stub};
        match self {
            Self::Archive => &[Resident, Patched],
            Self::Release => &[Dual, Partial],
            Self::Migrate => &[Resident, Dual, Partial, Patched],
            Self::Recall => &[Stub, Partial, Patched, Releasing],
            Self::Pin | Self::Unpin | Self::Set => &[Resident, Dual, Releasing, Partial, Patched, Stub],
        }
    }

    /// Whether a pinned file is wanted; `None`: either.
    fn pinned(self) -> Option<bool> {
        match self {
            Self::Release | Self::Migrate | Self::Pin => Some(false),
            Self::Unpin => Some(true),
            Self::Archive | Self::Recall | Self::Set => None,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Archive => "archive",
            Self::Release => "release",
            Self::Migrate => "migrate",
            Self::Recall => "recall",
            Self::Pin => "pin",
            Self::Unpin => "unpin",
            Self::Set => "set",
        })
    }
}

/// One thing that must hold for a file.
#[derive(Clone, Debug, PartialEq)]
pub enum Condition {
    /// Seconds since the content was changed, at least.
    UnmodifiedFor(u64),
    /// Since it was read or changed, as its times or the mount tell.
    UnusedFor(u64),
    /// Since it was read, as its access time tells.
    UnreadFor(u64),
    /// Since it was opened through the mount, if it ever was.
    UnopenedFor(u64),
    /// Since its attributes were changed.
    UnchangedFor(u64),
    LargerThan(u64),
    SmallerThan(u64),
    Users(Vec<u32>),
    Groups(Vec<u32>),
    Projects(Vec<u32>),
    Paths(Vec<Glob>),
    NotPaths(Vec<Glob>),
    /// Without the dot, of any case.
    Extensions(Vec<String>),
    /// Name, and a pattern of its value.
    Xattr(String, String),
    CoolerThan(f64),
    HotterThan(f64),
    OpenedAtLeast(u64),
    OpenedAtMost(u64),
}

/// A file as conditions see it.
pub struct Subject<'a> {
    pub path: &'a [u8],
    pub attr: &'a Attr,
    /// Looks its own quota project up; `None`: it cannot be told.
    pub project: &'a dyn Fn() -> Option<u32>,
    pub accesses: u64,
    /// As it is kept, not as it is now.
    pub heat: Option<f64>,
    pub accessed: Option<i64>,
    /// Looks an extended attribute up.
    pub xattr: &'a dyn Fn(&str) -> Option<Vec<u8>>,
}

fn numbers(numbers: &[u32]) -> String {
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

/// The kept form of a heat now; see `catalog::index`.
fn kept(heat: f64, now: i64) -> f64 {
    heat.max(f64::MIN_POSITIVE).log2() + now as f64 / HEAT_HALF_LIFE_S
}

impl Condition {
    /// The condition in SQL; `None`: only a look at the file tells. It may let pass what does not hold, never the other way round.
    pub fn sql(&self, now: i64) -> Option<String> {
        let before = |age: &u64| now.saturating_sub(i64::try_from(*age).unwrap_or(i64::MAX));
        Some(match self {
            Self::UnmodifiedFor(age) => format!("mtime <= {}", before(age)),
            Self::UnusedFor(age) => format!("max(atime, mtime, coalesce(accessed, 0)) <= {}", before(age)),
            Self::UnreadFor(age) => format!("atime <= {}", before(age)),
            Self::UnopenedFor(age) => format!("coalesce(accessed, btime) <= {}", before(age)),
            Self::UnchangedFor(age) => {
                format!("ctime_ns <= {}", before(age).saturating_add(1).saturating_mul(1_000_000_000))
            }
            Self::LargerThan(size) => format!("size > {size}"),
            Self::SmallerThan(size) => format!("size < {size}"),
            Self::Users(users) => format!("uid IN ({})", numbers(users)),
            Self::Groups(groups) => format!("gid IN ({})", numbers(groups)),
            Self::Projects(projects) => format!("project IN ({})", numbers(projects)),
            Self::Extensions(extensions) => {
                let one = |extension: &String| {
                    let literal: String = extension
                        .chars()
                        .flat_map(|c| match c {
                            '\'' => vec!['\'', '\''],
                            '%' | '_' | '\\' => vec!['\\', c],
                            c => vec![c],
                        })
                        .collect();
                    format!("name LIKE '%.{literal}' ESCAPE '\\'")
                };
                format!("({})", extensions.iter().map(one).collect::<Vec<_>>().join(" OR "))
            }
            Self::CoolerThan(heat) => format!("(heat IS NULL OR heat < {:?})", kept(*heat, now)),
            Self::HotterThan(heat) => format!("heat > {:?}", kept(*heat, now)),
            Self::OpenedAtLeast(opens) => format!("accesses >= {opens}"),
            Self::OpenedAtMost(opens) => format!("accesses <= {opens}"),
            Self::Paths(_) | Self::NotPaths(_) | Self::Xattr(..) => return None,
        })
    }

    /// Whether it can be told by the path alone.
    pub fn is_of_path(&self) -> bool {
        matches!(self, Self::Paths(_) | Self::NotPaths(_))
    }

    /// Of one that is told by the path: whether it holds.
    pub fn matches_path(&self, path: &[u8]) -> bool {
        match self {
            Self::Paths(globs) => globs.iter().any(|glob| glob.matches(path)),
            Self::NotPaths(globs) => !globs.iter().any(|glob| glob.matches(path)),
            _ => true,
        }
    }

    pub fn holds(&self, file: &Subject<'_>, now: i64) -> bool {
        let old = |at: i64, age: &u64| now.saturating_sub(at) >= i64::try_from(*age).unwrap_or(i64::MAX);
        let attr = file.attr;
        match self {
            Self::UnmodifiedFor(age) => old(attr.mtime.secs, age),
            Self::UnusedFor(age) => old(attr.atime.secs.max(attr.mtime.secs).max(file.accessed.unwrap_or(0)), age),
            Self::UnreadFor(age) => old(attr.atime.secs, age),
            Self::UnopenedFor(age) => old(file.accessed.unwrap_or(attr.btime.secs), age),
            Self::UnchangedFor(age) => old(attr.ctime.secs, age),
            Self::LargerThan(size) => attr.size > *size,
            Self::SmallerThan(size) => attr.size < *size,
            Self::Users(users) => users.contains(&attr.uid),
            Self::Groups(groups) => groups.contains(&attr.gid),
            Self::Projects(projects) => (file.project)().is_some_and(|project| projects.contains(&project)),
            Self::Paths(_) | Self::NotPaths(_) => self.matches_path(file.path),
            Self::Extensions(extensions) => {
                let name = file.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
                extensions.iter().any(|extension| {
                    let (name, extension) = (name.to_ascii_lowercase(), extension.to_ascii_lowercase());
                    name.strip_suffix(extension.as_bytes()).is_some_and(|stem| stem.ends_with(b"."))
                })
            }
            Self::Xattr(name, pattern) => (file.xattr)(name).is_some_and(|value| matches_value(pattern, &value)),
            Self::CoolerThan(heat) => file.heat.is_none_or(|known| known < kept(*heat, now)),
            Self::HotterThan(heat) => file.heat.is_some_and(|known| known > kept(*heat, now)),
            Self::OpenedAtLeast(opens) => file.accesses >= *opens,
            Self::OpenedAtMost(opens) => file.accesses <= *opens,
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let globs = |globs: &[Glob]| globs.iter().map(Glob::text).collect::<Vec<_>>().join(", ");
        match self {
            Self::UnmodifiedFor(age) => write!(f, "not modified for {}", exact_duration(*age)),
            Self::UnusedFor(age) => write!(f, "not read or modified for {}", exact_duration(*age)),
            Self::UnreadFor(age) => write!(f, "not read for {}", exact_duration(*age)),
            Self::UnopenedFor(age) => write!(f, "not opened through the mount for {}", exact_duration(*age)),
            Self::UnchangedFor(age) => write!(f, "attributes not changed for {}", exact_duration(*age)),
            Self::LargerThan(size) => write!(f, "larger than {}", exact_size(*size)),
            Self::SmallerThan(size) => write!(f, "smaller than {}", exact_size(*size)),
            Self::Users(users) => write!(f, "owned by {}", numbers(users)),
            Self::Groups(groups) => write!(f, "of group {}", numbers(groups)),
            Self::Projects(projects) => write!(f, "of project {}", numbers(projects)),
            Self::Paths(paths) => write!(f, "path is like {}", globs(paths)),
            Self::NotPaths(paths) => write!(f, "path is not like {}", globs(paths)),
            Self::Extensions(extensions) => write!(f, "extension is {}", extensions.join(", ")),
            Self::Xattr(name, pattern) => write!(f, "attribute {name} is like {pattern}"),
            Self::CoolerThan(heat) => write!(f, "heat below {heat}"),
            Self::HotterThan(heat) => write!(f, "heat above {heat}"),
            Self::OpenedAtLeast(opens) => write!(f, "opened {opens} times or more"),
            Self::OpenedAtMost(opens) => write!(f, "opened {opens} times or less"),
        }
    }
}

/// Which files come first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Those used least, and longest ago.
    #[default]
    Coldest,
    Largest,
    Oldest,
    /// As they come; cheapest.
    Any,
}

/// When a policy may run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    pub every: Duration,
    /// Minutes of the day, UTC, from and to; over midnight if the second is the smaller one.
    pub window: Option<(u32, u32)>,
    /// Days of the week on which a window begins, Monday first; empty: all.
    pub days: Vec<u32>,
}

impl Schedule {
    /// Whether a time, in seconds since 1970, lies in the window.
    pub fn is_open(&self, now: i64) -> bool {
        let (day, minute) = (now.div_euclid(86_400), (now.rem_euclid(86_400) / 60) as u32);
        // 1970 began on a Thursday.
        let on = |day: i64| self.days.is_empty() || self.days.contains(&((day + 3).rem_euclid(7) as u32));
        match self.window {
            None => on(day),
            Some((from, to)) if from <= to => on(day) && (from..to).contains(&minute),
            Some((from, to)) => (on(day) && minute >= from) || (on(day - 1) && minute < to),
        }
    }

    /// The first time from `now` on at which it is open.
    pub fn opens(&self, now: i64) -> i64 {
        // It opens at the beginning of a minute, and no week goes by without.
        let minutes = (1..=8 * 24 * 60).map(|minutes| (now.div_euclid(60) + minutes) * 60);
        std::iter::once(now).chain(minutes).find(|at| self.is_open(*at)).unwrap_or(now)
    }
}

/// What must be so with the share as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trigger {
    /// Per cent of the space in use above which it begins …
    pub space_above: Option<u8>,
    /// … and down to which it goes on.
    pub space_below: Option<u8>,
    /// Per cent of the inodes in use.
    pub inodes_above: Option<u8>,
    /// Only files of users who have more bytes here than this, down to it.
    pub user_above: Option<u64>,
    /// Only files of users who use more per cent of their quota of the share's filesystem than this …
    pub user_quota_above: Option<u8>,
    /// … down to this.
    pub user_quota_below: Option<u8>,
}

impl Trigger {
    /// Per cent of the space in use down to which it goes on, where it is one of space.
    pub fn low_mark(&self) -> Option<u8> {
        low_mark(self.space_above, self.space_below)
    }

    /// Per cent of a user's quota down to which it goes on, where it is one of quotas.
    pub fn user_quota_low_mark(&self) -> Option<u8> {
        low_mark(self.user_quota_above, self.user_quota_below)
    }
}

/// Ten points less, where nothing is said.
fn low_mark(above: Option<u8>, below: Option<u8>) -> Option<u8> {
    let above = above?;
    Some(below.unwrap_or_else(|| above.saturating_sub(10).max(1)))
}

/// How much a run may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub files: Option<u64>,
    pub bytes: Option<u64>,
    /// Bytes a second.
    pub rate: Option<u64>,
    /// Files at once.
    pub at_once: Option<u64>,
    /// Failures of one kind after which a run ends.
    pub errors: Option<u64>,
}

/// One policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    pub name: String,
    pub action: Action,
    /// What the action `set` says; nothing for others.
    pub set: Choice,
    pub enabled: bool,
    pub conditions: Vec<Condition>,
    pub order: Order,
    pub schedule: Schedule,
    pub trigger: Trigger,
    pub limits: Limits,
}

impl Rule {
    /// The filter in SQL, of what it can tell.
    pub fn filter(&self, now: i64) -> String {
        let mut all = vec![
            "kind = 'f'".to_owned(),
            "parent <> 0".into(),
            "sealed = 0".into(),
            "size > 0".into(),
            state_filter(self.action.states()),
        ];
        all.extend(self.action.pinned().map(|pinned| format!("pinned = {}", u8::from(pinned))));
        all.extend(self.conditions.iter().filter_map(|condition| condition.sql(now)));
        all.join(" AND ")
    }

    /// Whether it waits for something of the share as a whole.
    pub fn is_triggered(&self) -> bool {
        self.trigger != Trigger::default()
    }

    pub fn order_by(&self) -> &'static str {
        match self.order {
            Order::Coldest => COLDEST,
            Order::Largest => " ORDER BY size DESC, ino",
            Order::Oldest => " ORDER BY mtime, ino",
            Order::Any => "",
        }
    }

    /// The action, and what it says.
    pub fn action_text(&self) -> String {
        let Choice { pair, chunk_size, recall } = &self.set;
        let said = [
            pair.as_ref().map(|pair| format!("pair {pair}")),
            chunk_size.map(|size| format!("chunk size {}", exact_size(size.into()))),
            recall.map(|how| format!("recall {}", how.as_str())),
        ];
        let said: Vec<String> = said.into_iter().flatten().collect();
        if said.is_empty() { self.action.to_string() } else { format!("{} {}", self.action, said.join(", ")) }
    }

    /// Why the file's own state keeps the rule off it, if it does.
    pub fn unfit(&self, attr: &Attr, Standing { state, pinned, retained }: Standing) -> Option<Unfit> {
        if attr.size == 0 {
            return Some(Unfit::Empty);
        }
        if attr.sealed {
            return Some(Unfit::Sealed);
        }
        if !self.action.states().contains(&state) {
            return Some(Unfit::State(state, self.action.to_string()));
        }
        match self.action.pinned() {
            Some(false) if pinned => Some(Unfit::Pinned),
            Some(true) if !pinned => Some(Unfit::NotPinned),
            _ => retained.then_some(Unfit::Retained),
        }
    }
}
