//! `tierfs sql`: a statement that reads the index.

use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use super::exit::{self, CliError, Exit};
use super::files::{each_reply, on_mounts};
use super::{Global, output};
use crate::control::protocol::{Reply, Request};

/// Ask the index of the share in SQL (SQLite's); it can only be read, and only by root.
///
/// The view `files` has a row an inode: path, name, kind (f, d, l …), size, online (bytes allocated here), offline (bytes that are remote only), state,
/// pair, generation, pinned, sealed, uid, gid, project, mode, nlink, atime, mtime, ctime, btime (seconds since 1970), accesses, heat, accessed (last open
/// through the mount), recalled, recalled_by, ino, parent. `inode('some/path')` is the inode of a path below the mount.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs sql \"SELECT state, count(*), sum(size) FROM files WHERE kind = 'f' GROUP BY state\"\n  \
     tierfs sql --json \"SELECT path, heat FROM files ORDER BY heat DESC LIMIT 10\" | jq -r '.cells[0]'\n  \
     tierfs sql --on /mnt/tiered \"SELECT path FROM files WHERE accessed > unixepoch() - 3600\""))]
pub struct Sql {
    /// One SELECT.
    #[arg(value_name = "STATEMENT")]
    statement: String,
    /// The mount; needed where there are several.
    #[arg(long, value_name = "PATH")]
    on: Option<PathBuf>,
}

impl Sql {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        let groups = on_mounts(self.on.as_slice())?;
        if groups.len() > 1 {
            return Err(CliError::Usage("there are several mounts: name one with --on".into()));
        }
        let mut table = Vec::new();
        let mut header = Vec::new();
        let json = global.json;
        let summary =
            each_reply(groups, &|_| Request::Sql { query: self.statement.clone() }, &mut |reply| match reply {
                reply if json => output::json(&reply),
                Reply::Columns { columns } => header = columns,
                Reply::Row { cells } => {
                    table.push(cells.iter().map(shown).collect::<Vec<_>>());
                    if table.len() >= TABLE_ROWS_MAX {
                        print(&header, &std::mem::take(&mut table));
                    }
                }
                _ => {}
            })?;
        if json {
            output::json(&Reply::Done(summary));
        } else {
            print(&header, &table);
        }
        Ok(Exit::Done)
    }
}

/// Rows whose columns are made equally wide; memory is bounded by it.
const TABLE_ROWS_MAX: usize = 1_000;

fn print(header: &[String], rows: &[Vec<String>]) {
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    if !header.is_empty() {
        output::table(&header, rows);
    }
}

/// A cell for people.
fn shown(cell: &Value) -> String {
    match cell {
        Value::Null => "-".into(),
        Value::String(text) => output::plain(text),
        other => output::plain(&other.to_string()),
    }
}
