//! The text of a policies file: TOML to rules. What is wrong is told with its line, and the whole file is refused: half of a set of policies is
//! not what anybody wrote.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};
use toml::Spanned;

use super::rule::{Action, Condition, Limits, Order, Rule, Schedule, Trigger};
use crate::catalog::glob::Glob;
use crate::engine::{Choice, is_choosable};
use crate::pair::units::{parse_duration, parse_percent, parse_size};
use crate::types::{BadName, PairName, RecallPolicy};

/// Largest file read, bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// How often a policy runs unless it says so.
const EVERY: Duration = Duration::from_secs(3600);
/// … where the share's fill starts it.
const EVERY_TRIGGERED: Duration = Duration::from_secs(60);
/// How often the index is compared with the share.
const RESCAN_EVERY: Duration = Duration::from_secs(24 * 3600);
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// Why a policies file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("policies {}: {error}", path.display())]
    Unreadable { path: PathBuf, error: std::io::Error },
    #[error("policies {}, line {line}: {reason}", path.display())]
    Invalid { path: PathBuf, line: usize, reason: String },
}

/// A whole file.
#[derive(Clone, Debug, PartialEq)]
pub struct Policies {
    pub rules: Vec<Rule>,
    /// How often the index is compared with the share; `None`: only when it has to be.
    pub rescan: Option<Duration>,
    /// Inodes a second of these scans; 0: no bound.
    pub scan_rate: u64,
}

impl Policies {
    pub fn none() -> Self {
        Self { rules: Vec::new(), rescan: None, scan_rate: 0 }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    index: IndexTable,
    #[serde(default)]
    policy: BTreeMap<Spanned<String>, Spanned<Table>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct IndexTable {
    rescan: Option<Age>,
    rate: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    action: Action,
    set: Option<Spanned<SetTable>>,
    #[serde(default = "yes")]
    enabled: bool,
    #[serde(default)]
    r#match: Match,
    #[serde(default)]
    order: Order,
    #[serde(default)]
    schedule: ScheduleTable,
    #[serde(default)]
    when: Option<Spanned<When>>,
    #[serde(default)]
    limits: LimitsTable,
}

fn yes() -> bool {
    true
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Match {
    unmodified_for: Option<Age>,
    unused_for: Option<Age>,
    unread_for: Option<Age>,
    unopened_for: Option<Age>,
    unchanged_for: Option<Age>,
    larger_than: Option<Size>,
    smaller_than: Option<Size>,
    #[serde(default)]
    users: Vec<User>,
    #[serde(default)]
    groups: Vec<Group>,
    #[serde(default)]
    projects: Vec<u32>,
    #[serde(default)]
    paths: Vec<Pattern>,
    #[serde(default)]
    not_paths: Vec<Pattern>,
    #[serde(default)]
    extensions: Vec<Extension>,
    #[serde(default)]
    xattrs: BTreeMap<String, String>,
    cooler_than: Option<Heat>,
    hotter_than: Option<Heat>,
    opened_at_least: Option<u64>,
    opened_at_most: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetTable {
    pair: Option<Pair>,
    chunk_size: Option<ChunkSize>,
    recall: Option<How>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScheduleTable {
    every: Option<Age>,
    window: Option<Window>,
    #[serde(default)]
    days: Vec<Day>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct When {
    space_above: Option<Percent>,
    space_below: Option<Percent>,
    inodes_above: Option<Percent>,
    user_above: Option<Size>,
    user_quota_above: Option<Percent>,
    user_quota_below: Option<Percent>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitsTable {
    files: Option<u64>,
    bytes: Option<Size>,
    rate: Option<Size>,
    at_once: Option<u64>,
    errors: Option<u64>,
}

/// A value that is read from text.
macro_rules! from_text {
    ($($name:ident($value:ty) = $parse:expr;)*) => {$(
        struct $name($value);
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
                let text = source.deserialize_any(Text)?;
                let parse: fn(&str) -> Result<$value, String> = $parse;
                parse(&text).map(Self).map_err(D::Error::custom)
            }
        }
    )*};
}

/// Text, or a number as text.
struct Text;

impl Visitor<'_> for Text {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text in quotes, or a number")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<String, E> {
        Ok(number.to_string())
    }
}

from_text! {
    Age(u64) = parse_duration;
    Size(u64) = parse_size;
    Percent(u8) = parse_percent;
    User(u32) = user_id;
    Group(u32) = group_id;
    Pattern(Glob) = Glob::new;
    Extension(String) = extension;
    Window((u32, u32)) = window;
    Day(u32) = day;
    Pair(PairName) = |text| text.parse().map_err(|error: BadName| error.to_string());
    ChunkSize(u32) = chunk_size;
    How(RecallPolicy) = |text| text.parse();
}

fn chunk_size(text: &str) -> Result<u32, String> {
    let size = u32::try_from(parse_size(text)?).ok().filter(|size| is_choosable(*size));
    size.ok_or_else(|| format!("{text:?} is no chunk size that can be chosen: write a power of two from 64KiB to 8MiB"))
}

/// A heat that files can be compared with.
pub fn heat(heat: f64) -> Result<f64, String> {
    if heat.is_finite() && heat >= 0.0 {
        Ok(heat)
    } else {
        Err(format!("{heat} is no heat: write a number from 0, like 2.5"))
    }
}

#[derive(Deserialize)]
#[serde(try_from = "f64")]
struct Heat(f64);

impl TryFrom<f64> for Heat {
    type Error = String;

    fn try_from(number: f64) -> Result<Self, String> {
        heat(number).map(Self)
    }
}

/// The number of a user of this machine, from the number or the name.
pub fn user_id(text: &str) -> Result<u32, String> {
    id_of(text, "/etc/passwd", "user")
}

/// The number of a group of this machine, from the number or the name.
pub fn group_id(text: &str) -> Result<u32, String> {
    id_of(text, "/etc/group", "group")
}

fn id_of(text: &str, file: &str, what: &str) -> Result<u32, String> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let lines = std::fs::read_to_string(file).unwrap_or_default();
    let found = lines.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? == text { fields.nth(1)?.parse().ok() } else { None }
    });
    found.ok_or_else(|| format!("{file} has no {what} {text:?}: write the number"))
}

fn extension(text: &str) -> Result<String, String> {
    let bare = text.strip_prefix('.').unwrap_or(text);
    if bare.is_empty() || bare.contains(['/', '*']) {
        return Err(format!("{text:?} is not an extension: write them like \"exr\" or \"tar.gz\""));
    }
    Ok(bare.to_owned())
}

fn window(text: &str) -> Result<(u32, u32), String> {
    let bad = || format!("{text:?} is not a window: write it like \"22:00-06:00\" (UTC)");
    let minute = |time: &str| {
        let (hour, minute) = time.trim().split_once(':')?;
        let (hour, minute): (u32, u32) = (hour.parse().ok()?, minute.parse().ok()?);
        (hour < 24 && minute < 60 || (hour, minute) == (24, 0)).then_some(hour * 60 + minute)
    };
    let (from, to) = text.split_once('-').ok_or_else(bad)?;
    let window = (minute(from).ok_or_else(bad)?, minute(to).ok_or_else(bad)?);
    if window.0 == window.1 { Err(format!("{text:?} is never open")) } else { Ok(window) }
}

fn day(text: &str) -> Result<u32, String> {
    let known = DAYS.iter().position(|day| text.to_ascii_lowercase().starts_with(day));
    known.map(|at| at as u32).ok_or_else(|| format!("{text:?} is no day: write {}", DAYS.join(", ")))
}

/// Reads a file of policies.
pub fn load(path: &Path) -> Result<Policies, PolicyError> {
    let unreadable = |error| PolicyError::Unreadable { path: path.to_owned(), error };
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > FILE_BYTES_MAX {
        return Err(unreadable(std::io::Error::other("larger than 1 MiB: is this the file?")));
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    parse(&text).map_err(|(line, reason)| PolicyError::Invalid { path: path.to_owned(), line, reason })
}

/// The rules of a text, or the line and reason of what is wrong.
pub fn parse(text: &str) -> Result<Policies, (usize, String)> {
    let line = |at: usize| text[..at.min(text.len())].bytes().filter(|byte| *byte == b'\n').count() + 1;
    let file: File = toml::from_str(text)
        .map_err(|error| (line(error.span().map_or(0, |span| span.start)), error.message().to_owned()))?;
    let mut rules = Vec::new();
    for (name, table) in file.policy {
        let at = line(name.span().start);
        rules.push(rule(name.into_inner(), table.into_inner(), at, &line)?);
    }
    let rescan = file.index.rescan.map_or(Some(RESCAN_EVERY), |age| Some(Duration::from_secs(age.0)));
    Ok(Policies { rules, rescan: rescan.filter(|every| !every.is_zero()), scan_rate: file.index.rate.unwrap_or(0) })
}

fn rule(name: String, table: Table, at: usize, line: &dyn Fn(usize) -> usize) -> Result<Rule, (usize, String)> {
    if name.is_empty() || name.len() > 64 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        return Err((at, format!("{name:?} is no name for a policy: use 1 to 64 letters, digits, '-', '_' or '.'")));
    }
    let when_at = table.when.as_ref().map_or(at, |when| line(when.span().start));
    let when = table.when.map(Spanned::into_inner).unwrap_or_default();
    let trigger = Trigger {
        space_above: when.space_above.map(|percent| percent.0),
        space_below: when.space_below.map(|percent| percent.0),
        inodes_above: when.inodes_above.map(|percent| percent.0),
        user_above: when.user_above.map(|size| size.0),
        user_quota_above: when.user_quota_above.map(|percent| percent.0),
        user_quota_below: when.user_quota_below.map(|percent| percent.0),
    };
    marks("space", trigger.space_above, trigger.space_below).map_err(|reason| (when_at, reason))?;
    marks("user_quota", trigger.user_quota_above, trigger.user_quota_below).map_err(|reason| (when_at, reason))?;
    let set = set(table.action, table.set, at, line)?;
    let matching = table.r#match;
    let mut conditions = Vec::new();
    let mut add = |condition: Option<Condition>| conditions.extend(condition);
    add(matching.unmodified_for.map(|age| Condition::UnmodifiedFor(age.0)));
    add(matching.unused_for.map(|age| Condition::UnusedFor(age.0)));
    add(matching.unread_for.map(|age| Condition::UnreadFor(age.0)));
    add(matching.unopened_for.map(|age| Condition::UnopenedFor(age.0)));
    add(matching.unchanged_for.map(|age| Condition::UnchangedFor(age.0)));
    add(matching.larger_than.map(|size| Condition::LargerThan(size.0)));
    add(matching.smaller_than.map(|size| Condition::SmallerThan(size.0)));
    add(matching.cooler_than.map(|heat| Condition::CoolerThan(heat.0)));
    add(matching.hotter_than.map(|heat| Condition::HotterThan(heat.0)));
    add(matching.opened_at_least.map(Condition::OpenedAtLeast));
    add(matching.opened_at_most.map(Condition::OpenedAtMost));
    fn some<A, B>(values: Vec<A>, condition: impl Fn(Vec<B>) -> Condition, take: impl Fn(A) -> B) -> Option<Condition> {
        (!values.is_empty()).then(|| condition(values.into_iter().map(take).collect()))
    }
    add(some(matching.users, Condition::Users, |user| user.0));
    add(some(matching.groups, Condition::Groups, |group| group.0));
    add(some(matching.projects, Condition::Projects, |project| project));
    add(some(matching.extensions, Condition::Extensions, |extension| extension.0));
    add(some(matching.paths, Condition::Paths, |pattern| pattern.0));
    add(some(matching.not_paths, Condition::NotPaths, |pattern| pattern.0));
    conditions.extend(matching.xattrs.into_iter().map(|(name, pattern)| Condition::Xattr(name, pattern)));
    let triggered = trigger != Trigger::default();
    let every =
        table.schedule.every.map_or(if triggered { EVERY_TRIGGERED } else { EVERY }, |age| Duration::from_secs(age.0));
    Ok(Rule {
        name,
        action: table.action,
        set,
        enabled: table.enabled,
        conditions,
        order: table.order,
        schedule: Schedule {
            every: every.max(Duration::from_secs(1)),
            window: table.schedule.window.map(|window| window.0),
            days: table.schedule.days.into_iter().map(|day| day.0).collect(),
        },
        trigger,
        limits: Limits {
            files: table.limits.files,
            bytes: table.limits.bytes.map(|size| size.0),
            rate: table.limits.rate.map(|size| size.0).filter(|rate| *rate > 0),
            at_once: table.limits.at_once.filter(|files| *files > 0),
            errors: table.limits.errors,
        },
    })
}

/// Whether a rule can begin above one mark and go on down to the other.
fn marks(of: &str, above: Option<u8>, below: Option<u8>) -> Result<(), String> {
    match (above, below) {
        (None, Some(_)) => Err(format!("{of}_below needs {of}_above, where it begins")),
        (Some(above), Some(below)) if below >= above => {
            Err(format!("{of}_below {below}% must be lower than {of}_above {above}%"))
        }
        _ => Ok(()),
    }
}

/// What a rule says of files' next copies.
fn set(
    action: Action,
    table: Option<Spanned<SetTable>>,
    at: usize,
    line: &dyn Fn(usize) -> usize,
) -> Result<Choice, (usize, String)> {
    let Some(table) = table else {
        return match action {
            Action::Set => Err((at, "action \"set\" needs `set = { … }` with pair, chunk_size or recall".into())),
            _ => Ok(Choice::default()),
        };
    };
    let at = line(table.span().start);
    if action != Action::Set {
        return Err((at, format!("`set` is for action = \"set\", not for {action}")));
    }
    let SetTable { pair, chunk_size, recall } = table.into_inner();
    let choice = Choice {
        pair: pair.map(|pair| pair.0),
        chunk_size: chunk_size.map(|size| size.0),
        recall: recall.map(|how| how.0),
    };
    match choice == Choice::default() {
        true => Err((at, "`set` says nothing: give it pair, chunk_size or recall".into())),
        false => Ok(choice),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
[index]
rescan = "12h"
rate = 20000

[policy.old-projects]
action = "migrate"
order = "largest"
match.unused_for = "30d"
match.larger_than = "1MiB"
match.paths = ["projects/**"]
match.not_paths = ["**/*.tmp"]
match.users = ["root", 1234]
match.extensions = ["exr", ".dpx"]
match.xattrs = { "user.class" = "arch*" }
match.opened_at_most = 3
schedule = { every = "6h", window = "22:00-06:00", days = ["sat", "sunday"] }
limits = { files = 10000, bytes = "1TiB", rate = "100MiB", at_once = 8, errors = 20 }

[policy.full]
action = "release"
when = { space_above = "80%", space_below = 70 }

[policy.to-b]
action = "set"
set = { pair = "b", chunk_size = "8MiB", recall = "full" }
"#;

    #[test]
    fn a_whole_file() {
        let policies = parse(WHOLE).unwrap();
        assert_eq!((policies.rescan, policies.scan_rate), (Some(Duration::from_secs(43_200)), 20_000));
        let [full, old, to_b] = &policies.rules[..] else { panic!("{policies:?}") };
        assert_eq!(
            (full.action, full.trigger.space_above, full.trigger.space_below),
            (Action::Release, Some(80), Some(70))
        );
        assert_eq!(full.schedule.every, EVERY_TRIGGERED);
        assert_eq!((old.action, old.order, old.conditions.len()), (Action::Migrate, Order::Largest, 8));
        assert!(old.conditions.contains(&Condition::Users(vec![0, 1234])));
        assert!(old.conditions.contains(&Condition::UnusedFor(30 * 86_400)));
        assert!(old.conditions.contains(&Condition::Extensions(vec!["exr".into(), "dpx".into()])));
        assert_eq!((old.schedule.window, &old.schedule.days[..]), (Some((1320, 360)), &[5, 6][..]));
        assert_eq!((old.limits.rate, old.limits.errors), (Some(100 << 20), Some(20)));
        let wish =
            Choice { pair: Some("b".parse().unwrap()), chunk_size: Some(8 << 20), recall: Some(RecallPolicy::Full) };
        assert_eq!((to_b.action, &to_b.set), (Action::Set, &wish));
        assert!(parse("").unwrap().rules.is_empty());
    }

    /// Of a list, where the list begins.
    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, line, piece) in [
            ("[policy.a]\naction = \"shred\"", 2, "unknown variant"),
            ("[policy.a]\nmatch.larger_than = \"1MiB\"", 1, "missing field `action`"),
            ("[policy.a]\naction = \"archive\"\nmatch.unused_for = \"soon\"", 3, "not a duration"),
            ("[policy.a]\naction = \"archive\"\n\nmatch.older_than = \"3d\"", 4, "unknown field `older_than`"),
            ("[policy.a]\naction = \"archive\"\nmatch.users = [\"root\",\n  \"nobody-of-this-name\"]", 3, "no user"),
            ("[policy.a]\naction = \"archive\"\nmatch.paths = [\"a[\"]", 3, "without"),
            ("[policy.a]\naction = \"pin\"\nmatch.hotter_than = inf", 3, "inf is no heat"),
            ("[policy.a]\naction = \"pin\"\n\nmatch.hotter_than = nan", 4, "NaN is no heat"),
            ("[policy.a]\naction = \"pin\"\nmatch.cooler_than = -1", 3, "-1 is no heat"),
            ("[policy.a]\naction = \"archive\"\nmatch.extensions = [\"*.x\"]", 3, "not an extension"),
            ("[policy.a]\naction = \"archive\"\nschedule.window = \"22-6\"", 3, "not a window"),
            ("[policy.a]\naction = \"archive\"\nschedule.days = [\"someday\"]", 3, "no day"),
            (
                "[policy.a]\naction = \"release\"\nwhen = { space_above = \"70%\", space_below = \"80%\" }",
                3,
                "lower than",
            ),
            ("[policy.a]\naction = \"release\"\nwhen.space_below = \"80%\"", 3, "needs space_above"),
            ("[policy.a]\naction = \"release\"\nwhen.space_above = \"180%\"", 3, "percentage"),
            (
                "[policy.a]\naction = \"release\"\n\nwhen.user_quota_below = 50",
                4,
                "user_quota_below needs user_quota_above",
            ),
            (
                "[policy.a]\naction = \"release\"\nwhen = { user_quota_above = 50, user_quota_below = \"50%\" }",
                3,
                "user_quota_below 50% must be lower than user_quota_above 50%",
            ),
            ("[policy.a]\naction = \"release\"\nwhen.user_quota_above = \"1GiB\"", 3, "percentage"),
            ("[policy.a]\naction = \"set\"", 1, "needs `set"),
            ("[policy.a]\naction = \"set\"\nset = {}", 3, "says nothing"),
            ("[policy.a]\naction = \"pin\"\nset = { pair = \"b\" }", 3, "not for pin"),
            ("[policy.a]\naction = \"set\"\nset = { pair = \"../b\" }", 3, "pair name"),
            ("[policy.a]\naction = \"set\"\nset.chunk_size = \"5MiB\"", 3, "power of two"),
            ("[policy.a]\naction = \"set\"\nset.chunk_size = \"16MiB\"", 3, "64KiB to 8MiB"),
            ("[policy.a]\naction = \"set\"\n\nset.recall = \"never\"", 4, "never"),
            ("[policy.a]\naction = \"set\"\nset.colour = \"red\"", 3, "unknown field"),
            ("\n[policy.\"a b\"]\naction = \"pin\"", 2, "no name for a policy"),
            ("[policy.a]\naction = \"pin\"\n[policy.a]\naction = \"pin\"", 3, "duplicate"),
            ("[policies.a]\naction = \"pin\"", 1, "unknown field"),
            ("[policy.a]\naction = ", 2, ""),
        ] {
            let (at, reason) = parse(text).unwrap_err();
            assert!(at == line && reason.contains(piece), "{text:?}: line {at}: {reason}");
        }
    }

    #[test]
    fn windows_go_over_midnight() {
        let schedule = |window, days: &[u32]| Schedule { every: EVERY, window, days: days.to_vec() };
        // Thursday, 1970-01-01, 00:00.
        let at = |day: i64, hour: i64| day * 86_400 + hour * 3_600;
        assert!(schedule(None, &[]).is_open(at(0, 5)));
        assert!(schedule(None, &[3]).is_open(at(0, 5)) && !schedule(None, &[4]).is_open(at(0, 5)));
        let night = schedule(Some((1320, 360)), &[5]);
        for (day, hour, open) in
            [(2, 21, false), (2, 22, true), (3, 5, true), (3, 6, false), (3, 23, false), (2, 5, false)]
        {
            assert_eq!(night.is_open(at(day, hour)), open, "day {day}, {hour} o'clock");
        }
        assert!(schedule(Some((480, 1080)), &[]).is_open(at(9, 12)));
        assert!(!schedule(Some((480, 1080)), &[]).is_open(at(9, 18)));
    }
}
