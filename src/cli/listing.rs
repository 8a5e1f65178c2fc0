//! `tierfs du`, `ls` and `find`: reports by the index, each a statement of SQL.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::exit::{self, CliError, Exit};
use super::files::{each_reply, on_mounts};
use super::report::utc;
use super::{Global, output};
use crate::catalog::glob::Glob;
use crate::catalog::index::now_s;
use crate::control::mountinfo::MountEntry;
use crate::control::policies::{Condition, group_id, heat, user_id};
use crate::control::protocol::{FileState, Reply, Request, Summary, WirePath};
use crate::pair::units::{format_size, parse_duration, parse_size};
use crate::types::PairName;

/// What is remote only, in bytes.
pub(super) const OFFLINE: &str =
    "CASE WHEN f.state IN (2, 3) THEN f.size WHEN f.state IN (5, 6) THEN max(f.size - f.blocks * 512, 0) ELSE 0 END";
/// Rows whose columns are made equally wide.
const TABLE_ROWS_MAX: usize = 1_000;

/// Show how many bytes are here (online) and how many are remote only (offline), by directory, user, group or project.
///
/// Both together are what a user has stored; online is what quotas of the filesystem count. By the index: every inode counts once, where the
/// index has its name, whatever its other names are.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs du /mnt/tiered/projects\n  \
     tierfs du --by user /mnt/tiered\n  \
     tierfs du --by project --json /mnt/tiered"))]
pub struct Du {
    /// A directory on a tierfs mount.
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// What the sums are of.
    #[arg(long, value_enum, default_value = "directory")]
    by: By,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    Directory,
    User,
    Group,
    Project,
}

/// List a directory with where each file's content is and how it is used, by the index.
#[derive(Debug, Args)]
#[command(after_help = exit::help("  tierfs ls /mnt/tiered/projects/a"))]
pub struct Ls {
    /// A directory on a tierfs mount.
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

/// Find files by state, path, size, age, owner and use, by the index: no walk over the share.
///
/// All that is asked must hold; of what is repeated, one.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs find /mnt/tiered --state stub --larger-than 1GiB\n  \
     tierfs find /mnt/tiered/projects --state resident --unused-for 30d\n  \
     tierfs find -0 /mnt/tiered --name '*.exr' --opened-at-least 5 | xargs -0 ls -l\n  \
     tierfs find /mnt/tiered --path 'projects/**' --user alice --cooler-than 0.5"))]
pub struct Find {
    /// A directory on a tierfs mount.
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Only files in this state; may be repeated.
    #[arg(long, value_enum)]
    state: Vec<State>,
    /// A pattern of the last name, as in a shell.
    #[arg(long, value_name = "PATTERN")]
    name: Option<String>,
    /// A pattern of the path from the share's root, as `match.paths` of policies: `**` is any number of directories; without a slash it is of a
    /// name anywhere. May be repeated.
    #[arg(long = "path", id = "path-like", value_name = "PATTERN", value_parser = Glob::new)]
    path_like: Vec<Glob>,
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    larger_than: Option<u64>,
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    smaller_than: Option<u64>,
    /// Neither read nor changed for so long: access time, modification time and last open through the mount.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    unused_for: Option<u64>,
    /// Content unchanged for so long.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    unmodified_for: Option<u64>,
    /// Opened through the mount within that time.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    opened_within: Option<u64>,
    /// Not opened through the mount for so long; a file that never was, since it was made.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    unopened_for: Option<u64>,
    /// Owner, by number or name; may be repeated.
    #[arg(long, value_name = "USER", value_parser = user_id)]
    user: Vec<u32>,
    /// Group, by number or name; may be repeated.
    #[arg(long, value_name = "GROUP", value_parser = group_id)]
    group: Vec<u32>,
    /// Quota project's number, as scans read it; may be repeated.
    #[arg(long, value_name = "ID")]
    project: Vec<u32>,
    /// The pair that has the file's copy; may be repeated.
    #[arg(long, value_name = "NAME")]
    pair: Vec<PairName>,
    /// Heat above it: opens through the mount, each halved after a week.
    #[arg(long, value_name = "HEAT", value_parser = heat_of)]
    hotter_than: Option<f64>,
    /// Heat below it; files never opened too.
    #[arg(long, value_name = "HEAT", visible_alias = "colder-than", value_parser = heat_of)]
    cooler_than: Option<f64>,
    /// Opened through the mount so often or more.
    #[arg(long, value_name = "TIMES")]
    opened_at_least: Option<u64>,
    /// Only pinned files.
    #[arg(long)]
    pinned: bool,
    /// Only retention-locked files.
    #[arg(long)]
    retained: bool,
    /// End each path with NUL, for `xargs -0`.
    #[arg(short = '0', long)]
    null: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum State {
    Resident,
    Dual,
    Releasing,
    Stub,
    Partial,
    Patched,
    Damaged,
}

impl State {
    fn of_file(self) -> FileState {
        match self {
            Self::Resident => FileState::Resident,
            Self::Dual => FileState::Dual,
            Self::Releasing => FileState::Releasing,
            Self::Stub => FileState::Stub,
            Self::Partial => FileState::Partial,
            Self::Patched => FileState::Patched,
            Self::Damaged => FileState::Damaged,
        }
    }
}

fn heat_of(text: &str) -> Result<f64, String> {
    heat(text.parse().map_err(|_| "write a number from 0, like 2.5".to_owned())?)
}

/// Text, in SQL.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// That one of some holds, if there are any.
fn any<T>(of: &[T], sql: impl Fn(&T) -> String) -> Option<String> {
    (!of.is_empty()).then(|| format!("({})", of.iter().map(sql).collect::<Vec<_>>().join(" OR ")))
}

/// The inode of a path, in SQL.
fn inode(path: &Path) -> String {
    let hex: String = path.as_os_str().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("inode(x'{hex}')")
}

/// Directories at and below a path, as the table `dirs (top, ino)`; `top`: the one directly below the path that leads there, or the path itself.
pub(super) fn dirs(path: &Path) -> String {
    let start = inode(path);
    format!(
        "WITH RECURSIVE below(top, ino) AS (SELECT ino, ino FROM f WHERE parent = {start} AND kind = 'd' \
         UNION ALL SELECT below.top, f.ino FROM below JOIN f ON f.parent = below.ino WHERE f.kind = 'd'), \
         dirs(top, ino) AS (SELECT {start}, {start} UNION ALL SELECT top, ino FROM below) "
    )
}

/// Asks the mount a path is on; rows go to `each`.
pub(super) fn ask(
    global: &Global,
    path: &Path,
    statement: &dyn Fn(&Path) -> String,
    each: &mut dyn FnMut(&MountEntry, &[Value]),
) -> Result<Summary, CliError> {
    let groups = on_mounts(&[path.to_owned()])?;
    let mount = groups[0].mount().clone();
    let request = |paths: Vec<WirePath>| {
        let inside = paths.first().map(WirePath::to_path).unwrap_or_default();
        Request::Sql { query: statement(&inside) }
    };
    each_reply(groups, &request, &mut |reply| match reply {
        reply @ (Reply::Columns { .. } | Reply::Row { .. }) if global.json => output::json(&reply),
        Reply::Row { cells } => each(&mount, &cells),
        _ => {}
    })
}

pub(super) fn number(cell: &Value) -> u64 {
    cell.as_u64().unwrap_or(0)
}

/// The path in a cell, as it is seen from here.
pub(super) fn path_of(mount: &MountEntry, cell: &Value) -> PathBuf {
    let inside = serde_json::from_value::<WirePath>(cell.clone()).map(|path| path.to_path()).unwrap_or_default();
    mount.outside(&inside).unwrap_or(inside)
}

impl Du {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        let sums = format!(
            "coalesce(sum(f.blocks), 0) * 512 AS online, coalesce(sum({OFFLINE}), 0) AS offline, count(*) FILTER (WHERE f.kind = 'f') AS files"
        );
        let by = self.by;
        let statement = move |path: &Path| {
            let (what, group) = match by {
                By::Directory => ("path(dirs.top) AS path", "dirs.top"),
                By::User => ("f.uid AS uid", "f.uid"),
                By::Group => ("f.gid AS gid", "f.gid"),
                By::Project => ("f.project AS project", "f.project"),
            };
            format!(
                "{}SELECT {what}, {sums} FROM dirs CROSS JOIN f ON f.parent = dirs.ino GROUP BY {group} ORDER BY online + offline DESC",
                dirs(path)
            )
        };
        let mut rows = Vec::new();
        let (mut online, mut offline, mut files) = (0, 0, 0);
        ask(global, &self.path, &statement, &mut |mount, cells| {
            let [what, here, away, count] = cells else { return };
            online += number(here);
            offline += number(away);
            files += number(count);
            let name = match by {
                By::Directory => output::shown(&path_of(mount, what)),
                _ => number(what).to_string(),
            };
            rows.push(vec![
                format_size(number(here)),
                format_size(number(away)),
                format_size(number(here) + number(away)),
                number(count).to_string(),
                name,
            ]);
        })?;
        if !global.json {
            let total = [format_size(online), format_size(offline), format_size(online + offline), files.to_string()];
            rows.push(total.into_iter().chain(["total".to_owned()]).collect());
            let name = ["DIRECTORY", "USER", "GROUP", "PROJECT"][by as usize];
            output::table(&["ONLINE", "OFFLINE", "BOTH", "FILES", name], &rows);
        }
        Ok(Exit::Done)
    }
}

impl Ls {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        let statement = |path: &Path| {
            format!(
                "SELECT name, kind, state, size, online, pinned, sealed & 2, accesses, heat, mtime FROM files WHERE parent = {} ORDER BY name",
                inode(path)
            )
        };
        let header = ["STATE", "SIZE", "LOCAL", "PIN", "LOCK", "OPENS", "HEAT", "MODIFIED", "NAME"];
        let mut rows = Vec::new();
        ask(global, &self.path, &statement, &mut |_, cells| {
            let [name, kind, state, size, online, pinned, retained, opens, heat, mtime] = cells else { return };
            let file = kind == "f";
            let name = serde_json::from_value::<WirePath>(name.clone()).map(|name| name.to_path()).unwrap_or_default();
            rows.push(vec![
                if file { state.as_str().unwrap_or("-").to_owned() } else { "-".into() },
                if file { format_size(number(size)) } else { "-".into() },
                if file { format_size(number(online)) } else { "-".into() },
                if number(pinned) > 0 { "yes".into() } else { "-".into() },
                if number(retained) > 0 { "yes".into() } else { "-".into() },
                number(opens).to_string(),
                format!("{:.1}", heat.as_f64().unwrap_or(0.0)),
                utc(mtime.as_i64().unwrap_or(0)),
                output::shown(&name) + if kind == "d" { "/" } else { "" },
            ]);
            if rows.len() >= TABLE_ROWS_MAX {
                output::table(&header, &std::mem::take(&mut rows));
            }
        })?;
        if !rows.is_empty() {
            output::table(&header, &rows);
        }
        Ok(Exit::Done)
    }
}

impl Find {
    /// What policies ask as well.
    fn conditions(&self) -> Vec<Condition> {
        let some =
            |ids: &Vec<u32>, condition: fn(Vec<u32>) -> Condition| (!ids.is_empty()).then(|| condition(ids.clone()));
        let all = [
            self.larger_than.map(Condition::LargerThan),
            self.smaller_than.map(Condition::SmallerThan),
            self.unused_for.map(Condition::UnusedFor),
            self.unmodified_for.map(Condition::UnmodifiedFor),
            self.unopened_for.map(Condition::UnopenedFor),
            self.opened_at_least.map(Condition::OpenedAtLeast),
            self.hotter_than.map(Condition::HotterThan),
            self.cooler_than.map(Condition::CoolerThan),
            some(&self.user, Condition::Users),
            some(&self.group, Condition::Groups),
            some(&self.project, Condition::Projects),
        ];
        all.into_iter().flatten().collect()
    }

    fn filter(&self) -> String {
        let mut all = vec!["f.kind = 'f'".to_owned()];
        if !self.state.is_empty() {
            let states: Vec<FileState> = self.state.iter().map(|state| state.of_file()).collect();
            all.push(crate::catalog::index::state_filter(&states));
        }
        all.extend(self.name.as_ref().map(|name| format!("f.name GLOB {}", literal(name))));
        let now = now_s();
        all.extend(self.conditions().iter().filter_map(|condition| condition.sql(now)));
        all.extend(self.opened_within.map(|age| format!("f.accessed > {now} - {age}")));
        all.extend(any(&self.pair, |pair| format!("f.pair = {}", literal(pair.as_str()))));
        if self.pinned {
            all.push("f.pinned = 1".into());
        }
        if self.retained {
            all.push("f.sealed & 2".into());
        }
        // Last: paths are put together row by row.
        all.extend(any(&self.path_like, |glob| format!("path_like(path(f.ino), {})", literal(glob.text()))));
        all.join(" AND ")
    }

    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        let statement = |path: &Path| {
            let filter = self.filter();
            let columns = "path(f.ino) AS path, f.size, state_name(f.state) AS state, f.blocks * 512 AS online";
            if path.as_os_str().is_empty() {
                return format!("SELECT {columns} FROM f WHERE f.parent <> 0 AND {filter}");
            }
            format!("{}SELECT {columns} FROM dirs CROSS JOIN f ON f.parent = dirs.ino WHERE {filter}", dirs(path))
        };
        ask(global, &self.path, &statement, &mut |mount, cells| {
            let path = cells.first().map(|cell| path_of(mount, cell)).unwrap_or_default();
            if self.null {
                output::ended_by_nul(&path);
            } else {
                output::line(&output::shown(&path));
            }
        })?;
        Ok(Exit::Done)
    }
}
