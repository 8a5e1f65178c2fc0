//! `tierfs quota`: what each user, group or project has stored, here and remote, beside what the filesystem's quotas count and allow.

use std::collections::HashMap;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::exit::{self, CliError, Exit};
use super::files::{each_reply, on_mounts};
use super::{Global, output};
use crate::control::ControlError;
use crate::control::client::mount_info;
use crate::control::mountinfo;
use crate::control::protocol::{Reply, Request};
use crate::lower::{QuotaOf, quota};
use crate::pair::units::format_size;
use crate::ports::Quota;

/// Show what each user (or group, project) has stored: here, remote, and both; and the quota of the share's filesystem.
///
/// Online and offline are by the index: bytes allocated here, and bytes that are remote only. A quota of the filesystem counts and bounds what is online, on all of
/// the filesystem, other directories than the share included. Where it keeps none, its columns are empty.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs quota\n  \
     tierfs quota --by project /mnt/tiered\n  \
     tierfs quota --json /mnt/tiered | jq 'select(.both > 1e12)'"))]
pub struct QuotaCommand {
    /// The mount; needed where there are several.
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
    /// Whose.
    #[arg(long, value_enum, default_value = "user")]
    by: By,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    User,
    Group,
    Project,
}

impl By {
    fn column(self) -> &'static str {
        match self {
            Self::User => "uid",
            Self::Group => "gid",
            Self::Project => "project",
        }
    }

    fn of(self, id: u32) -> QuotaOf {
        match self {
            Self::User => QuotaOf::User(id),
            Self::Group => QuotaOf::Group(id),
            Self::Project => QuotaOf::Project(id),
        }
    }
}

impl QuotaCommand {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        let groups = on_mounts(self.path.as_slice())?;
        let [group] = &groups[..] else {
            return Err(CliError::Usage("there are several mounts: name one".into()));
        };
        let mounts = mountinfo::read().map_err(ControlError::NoMountInfo)?;
        let share = PathBuf::from(mount_info(&mounts, group.mount())?.share);
        let column = self.by.column();
        let query = format!(
            "SELECT {column}, coalesce(sum(online), 0), coalesce(sum(offline), 0), count(*) FILTER (WHERE kind = 'f'), count(*) \
             FROM files GROUP BY {column} ORDER BY 2 DESC"
        );
        let names = names(self.by);
        let (mut rows, mut refused) = (Vec::new(), None);
        each_reply(groups, &|_| Request::Sql { query: query.clone() }, &mut |reply| {
            let Reply::Row { cells } = reply else { return };
            let numbers: Vec<u64> = cells.iter().map(|cell| cell.as_u64().unwrap_or(0)).collect();
            let [id, online, offline, files, inodes] = numbers[..] else { return };
            let id = id as u32;
            let kept = quota(&share, self.by.of(id)).unwrap_or_else(|error| {
                refused = Some(error);
                None
            });
            let name = names.get(&id).cloned();
            if global.json {
                output::json(&json!({
                    column: id, "name": name, "online": online, "offline": offline, "both": online + offline, "files": files,
                    "inodes": inodes, "quota": kept.as_ref().map(|kept| json!({
                        "bytes": kept.bytes, "bytes_soft": kept.bytes_soft, "bytes_hard": kept.bytes_hard,
                        "inodes": kept.inodes, "inodes_soft": kept.inodes_soft, "inodes_hard": kept.inodes_hard,
                    })),
                }));
            }
            let mut row = vec![
                name.unwrap_or_else(|| id.to_string()),
                format_size(online),
                format_size(offline),
                format_size(online + offline),
                files.to_string(),
            ];
            row.extend(limits(kept));
            rows.push(row);
        })?;
        if let Some(error) = refused {
            output::note(&format!("tierfs: the filesystem of {} does not tell its quotas: {error}", share.display()));
        }
        if !global.json {
            let whose = ["USER", "GROUP", "PROJECT"][self.by as usize];
            let header = [whose, "ONLINE", "OFFLINE", "BOTH", "FILES", "QUOTA USED", "SOFT", "HARD"];
            output::table(&header, &rows);
        }
        Ok(Exit::Done)
    }
}

/// What the filesystem counts, and its limits, for people.
fn limits(kept: Option<Quota>) -> [String; 3] {
    let Some(kept) = kept else { return ["-", "-", "-"].map(str::to_owned) };
    let limit = |bytes: u64| if bytes == 0 { "none".to_owned() } else { format_size(bytes) };
    let used = match kept.bytes_hard.max(kept.bytes_soft) {
        0 => format_size(kept.bytes),
        bound => format!("{} ({:.0}%)", format_size(kept.bytes), kept.bytes as f64 * 100.0 / bound as f64),
    };
    [used, limit(kept.bytes_soft), limit(kept.bytes_hard)]
}

/// Names of this machine; projects have theirs in `/etc/projid`.
fn names(by: By) -> HashMap<u32, String> {
    let (file, at) = match by {
        By::User => ("/etc/passwd", 2),
        By::Group => ("/etc/group", 2),
        By::Project => ("/etc/projid", 1),
    };
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let name = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        Some((fields.get(at)?.trim().parse().ok()?, output::plain(fields.first()?)))
    };
    text.lines().filter(|line| !line.starts_with('#')).filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_for_people() {
        assert_eq!(limits(None), ["-", "-", "-"]);
        let kept = Quota { bytes: 1 << 20, bytes_hard: 4 << 20, ..Quota::default() };
        assert_eq!(limits(Some(kept)), ["1.00 MiB (25%)", "none", "4.00 MiB"]);
        assert_eq!(names(By::User).get(&0).map(String::as_str), Some("root"));
    }
}
