//! `tierfs report`: age × size × state of what a share has, as tables or as a page with a picture.

mod picture;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::json;

use super::exit::{self, CliError, Exit};
use super::listing::{OFFLINE, ask, dirs, number, path_of};
use super::report::utc;
use super::{Global, output};
use crate::control::protocol::FileState;
use crate::pair::units::format_size;

/// Upper bounds of the ages, days, and their names; what is older is in the last.
const AGES: [(u64, &str); 7] = [
    (1, "under a day"),
    (7, "1 to 7 days"),
    (30, "7 to 30 days"),
    (90, "1 to 3 months"),
    (365, "3 to 12 months"),
    (1_095, "1 to 3 years"),
    (u64::MAX, "over 3 years"),
];
/// Upper bounds of the sizes, bytes, and their names.
const SIZES: [(u64, &str); 7] = [
    (16 << 10, "under 16 KiB"),
    (128 << 10, "16 to 128 KiB"),
    (1 << 20, "128 KiB to 1 MiB"),
    (16 << 20, "1 to 16 MiB"),
    (128 << 20, "16 to 128 MiB"),
    (1 << 30, "128 MiB to 1 GiB"),
    (u64::MAX, "over 1 GiB"),
];
/// Users and directories that are listed.
const TOP: usize = 15;

/// Show what a share has, by age, size and state: as tables, or as one HTML page with a picture and nothing loaded from elsewhere.
///
/// The age is the time since the last use (read, change, or open through the mount), by the index.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs report /mnt/tiered\n  \
     tierfs report --html /tmp/report.html /mnt/tiered/projects"))]
pub struct ReportCommand {
    /// A directory on a tierfs mount.
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Write an HTML page to this file (- for standard output).
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Files of one kind, together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub files: u64,
    /// Of content.
    pub bytes: u64,
    pub online: u64,
    pub offline: u64,
}

impl std::ops::AddAssign for Sum {
    fn add_assign(&mut self, more: Self) {
        self.files += more.files;
        self.bytes += more.bytes;
        self.online += more.online;
        self.offline += more.offline;
    }
}

/// All that is reported.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub place: String,
    pub at: String,
    /// By place in [`AGES`], in [`SIZES`], and state.
    pub cells: BTreeMap<(usize, usize, FileState), Sum>,
    /// Named, the largest first.
    pub users: Vec<(String, Sum)>,
    pub directories: Vec<(String, Sum)>,
}

impl Found {
    /// The sum of the cells that are `wanted`.
    pub fn sum(&self, wanted: impl Fn(usize, usize, FileState) -> bool) -> Sum {
        let mut all = Sum::default();
        let cells = self.cells.iter().filter(|((age, size, state), _)| wanted(*age, *size, *state));
        cells.for_each(|(_, sum)| all += *sum);
        all
    }

    pub fn states(&self) -> impl Iterator<Item = (FileState, Sum)> {
        let sums = FileState::ALL.map(|state| (state, self.sum(|_, _, of| of == state)));
        sums.into_iter().filter(|(_, sum)| sum.files > 0)
    }
}

/// Which bucket a value is in, in SQL.
fn bucket(value: &str, bounds: impl Iterator<Item = u64>) -> String {
    let mut text = "CASE".to_owned();
    for (at, bound) in bounds.enumerate() {
        text += &match bound {
            u64::MAX => format!(" ELSE {at} END"),
            bound => format!(" WHEN {value} < {bound} THEN {at}"),
        };
    }
    text
}

const SUMS: &str = "count(*), coalesce(sum(f.size), 0), coalesce(sum(f.blocks), 0) * 512";

impl ReportCommand {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        let found = self.find(global)?;
        if let Some(file) = &self.html {
            self.write(file, &picture::page(&found))?;
        } else if !global.json {
            tables(&found);
        }
        Ok(Exit::Done)
    }

    fn find(&self, global: &Global) -> Result<Found, CliError> {
        // Cells are JSON of their own, so the answers are not printed as they come.
        let quiet = Global { json: false, ..global.clone() };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut found = Found { at: utc(now as i64), ..Found::default() };
        found.place = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone()).display().to_string();
        let from = |path: &Path| match path.as_os_str().is_empty() {
            true => (String::new(), "f WHERE f.parent <> 0 AND f.kind = 'f'"),
            false => (dirs(path), "dirs CROSS JOIN f ON f.parent = dirs.ino WHERE f.kind = 'f'"),
        };
        let age = bucket(
            &format!("({now} - max(f.atime, f.mtime, coalesce(f.accessed, 0)))"),
            AGES.iter().map(|(days, _)| days.saturating_mul(86_400)),
        );
        let size = bucket("f.size", SIZES.iter().map(|(bytes, _)| *bytes));
        let statement = |path: &Path| {
            let (with, from) = from(path);
            format!(
                "{with}SELECT {age} AS age, {size} AS size, state_name(f.state), {SUMS}, coalesce(sum({OFFLINE}), 0) FROM {from} GROUP BY 1, 2, 3"
            )
        };
        ask(&quiet, &self.path, &statement, &mut |_, cells| {
            let [age, size, state, sums @ ..] = cells else { return };
            let Some(state) = FileState::ALL.into_iter().find(|known| state == known.as_str()) else { return };
            let key = (number(age) as usize, number(size) as usize, state);
            *found.cells.entry(key).or_default() += sum(sums);
            if global.json {
                let sum = sum(sums);
                output::json(&json!({
                    "age": AGES.get(key.0).map(|(_, name)| name), "size": SIZES.get(key.1).map(|(_, name)| name),
                    "state": state.as_str(), "files": sum.files, "bytes": sum.bytes, "online": sum.online, "offline": sum.offline,
                }));
            }
        })?;
        let top = |what: &str, group: &str, path: &Path| {
            // Directories are those right below, each with all that is in it.
            format!(
                "{}SELECT {what}, {SUMS}, coalesce(sum({OFFLINE}), 0) AS away FROM dirs CROSS JOIN f ON f.parent = dirs.ino \
                 WHERE f.kind = 'f' GROUP BY {group} ORDER BY sum(f.size) DESC LIMIT {TOP}",
                dirs(path)
            )
        };
        ask(&quiet, &self.path, &|path| top("f.uid", "f.uid", path), &mut |_, cells| {
            let [uid, sums @ ..] = cells else { return };
            found.users.push((number(uid).to_string(), sum(sums)));
        })?;
        ask(&quiet, &self.path, &|path| top("path(dirs.top)", "dirs.top", path), &mut |mount, cells| {
            let [path, sums @ ..] = cells else { return };
            found.directories.push((output::shown(&path_of(mount, path)), sum(sums)));
        })?;
        Ok(found)
    }

    fn write(&self, file: &Path, page: &str) -> Result<(), CliError> {
        if file == Path::new("-") {
            output::line(page);
            return Ok(());
        }
        let cannot = |error: std::io::Error| CliError::Failed(format!("cannot write {}: {error}", file.display()));
        // It has names of everybody's files: not for everybody.
        use std::os::unix::fs::OpenOptionsExt;
        let mut options = std::fs::OpenOptions::new();
        let mut open = options.write(true).create(true).truncate(true).mode(0o600).open(file).map_err(cannot)?;
        open.write_all(page.as_bytes()).map_err(cannot)
    }
}

fn sum(cells: &[serde_json::Value]) -> Sum {
    let at = |at: usize| cells.get(at).map_or(0, number);
    Sum { files: at(0), bytes: at(1), online: at(2), offline: at(3) }
}

/// For a terminal.
fn tables(found: &Found) {
    output::line(&output::plain(&format!("{}, {}", found.place, found.at)));
    output::line("");
    let row = |name: &str, sum: Sum| {
        let Sum { files, bytes, online, offline } = sum;
        vec![name.to_owned(), files.to_string(), format_size(bytes), format_size(online), format_size(offline)]
    };
    let mut rows: Vec<_> = found.states().map(|(state, sum)| row(state.as_str(), sum)).collect();
    rows.push(row("total", found.sum(|_, _, _| true)));
    output::table(&["STATE", "FILES", "SIZE", "ONLINE", "OFFLINE"], &rows);
    output::line("");
    let largest = (0..AGES.len()).map(|age| found.sum(|of, _, _| of == age).bytes).max().unwrap_or(0).max(1);
    let mut rows = Vec::new();
    for (age, (_, name)) in AGES.iter().enumerate() {
        let all = found.sum(|of, _, _| of == age);
        let mut cells = row(name, all);
        // What is here alone, here and there, and only there.
        let mut bar = String::new();
        for (states, mark) in [
            (&[FileState::Resident, FileState::Damaged][..], '█'),
            (&[FileState::Dual], '▒'),
            (&[FileState::Stub, FileState::Partial, FileState::Patched, FileState::Releasing], '░'),
        ] {
            let part = found.sum(|of, _, state| of == age && states.contains(&state)).bytes;
            let width = (part as f64 * 30.0 / largest as f64).round() as usize;
            bar.extend(std::iter::repeat_n(mark, width));
        }
        cells.push(bar);
        rows.push(cells);
    }
    output::table(&["LAST USED", "FILES", "SIZE", "ONLINE", "OFFLINE", "█ resident ▒ dual ░ stub"], &rows);
    output::line("");
    let mut header = vec!["SIZE OF FILES"];
    header.extend(AGES.iter().map(|(_, name)| *name));
    let mut rows = Vec::new();
    for (size, (_, name)) in SIZES.iter().enumerate() {
        let cell = |age: usize| match found.sum(|a, s, _| (a, s) == (age, size)).bytes {
            0 => "-".to_owned(),
            bytes => format_size(bytes),
        };
        rows.push(std::iter::once((*name).to_owned()).chain((0..AGES.len()).map(cell)).collect::<Vec<_>>());
    }
    output::table(&header, &rows);
    for (what, list) in [("USER", &found.users), ("DIRECTORY", &found.directories)] {
        output::line("");
        let rows: Vec<_> = list.iter().map(|(name, sum)| row(name, *sum)).collect();
        output::table(&[what, "FILES", "SIZE", "ONLINE", "OFFLINE"], &rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_in_sql() {
        assert_eq!(bucket("x", [1, 5, u64::MAX].into_iter()), "CASE WHEN x < 1 THEN 0 WHEN x < 5 THEN 1 ELSE 2 END");
    }
}
