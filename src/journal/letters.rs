//! The dead-letter list and the remembered values, in SQL.
//!
//! Invariant: the list is bounded; what is dropped for that is counted.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rusqlite::{OptionalExtension, Row, params};

use super::store::{Fault, Store, bound, damaged};
use crate::ports::{FAILED_DROPPED, Failed, FailedEntry, FailedId, IntentId, JournalError, Reason, Succeeded, Task};
use crate::types::{FileId, Inode, ObjectKey, RawHandle, Timestamp};

/// Most entries kept; the one that failed longest ago goes first.
pub(super) const FAILED_MAX: u64 = 100_000;
/// Longest message kept, in bytes.
const MESSAGE_MAX: usize = 1_000;

const COLUMNS: &str = "id, ino, birth, handle_kind, handle, task, object, intent, pair, path, reason, message, attempts, \
                       first_secs, first_nanos, last_secs, last_nanos";

impl Store {
    /// Notes a failure, once more where it is listed already. Returns how often it failed.
    pub(super) fn note_failed(&mut self, failed: &Failed, now: Timestamp, most: u64) -> Result<u64, Fault> {
        let attempts = self.run(|db| {
            let node = &failed.node;
            let (intent, object) = match &failed.deletion {
                Some((intent, key)) => (Some(intent.0 as i64), key.0.as_str()),
                None => (None, ""),
            };
            let sql = "INSERT INTO failed (ino, birth, handle_kind, handle, task, object, intent, pair, path, reason, message, attempts, \
                       first_secs, first_nanos, last_secs, last_nanos) \
                       VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, 1, ?12, ?13, ?12, ?13) \
                       ON CONFLICT (ino, birth, task, object) DO UPDATE SET \
                       handle_kind = excluded.handle_kind, handle = excluded.handle, intent = excluded.intent, pair = excluded.pair, \
                       path = CASE WHEN excluded.path = x'' THEN path ELSE excluded.path END, \
                       reason = excluded.reason, message = excluded.message, attempts = attempts + 1, \
                       last_secs = excluded.last_secs, last_nanos = excluded.last_nanos \
                       RETURNING attempts";
            let values = params![
                node.id.ino as i64,
                node.id.birth as i64,
                node.handle.kind(),
                node.handle.bytes(),
                failed.task.as_str(),
                object,
                intent,
                failed.pair.as_str(),
                failed.path.as_os_str().as_bytes(),
                failed.reason.as_str(),
                cut(&failed.message),
                now.secs,
                now.nanos,
            ];
            db.prepare_cached(sql)?.query_row(values, |row| row.get::<_, i64>(0))
        })?;
        if attempts == 1 {
            self.failed_files += 1;
            while self.failed_files > most {
                self.drop_oldest()?;
            }
        }
        Ok(attempts as u64)
    }

    fn drop_oldest(&mut self) -> Result<(), Fault> {
        self.run(|db| {
            db.execute(
                "DELETE FROM failed WHERE id = (SELECT id FROM failed ORDER BY last_secs, last_nanos, id LIMIT 1)",
                [],
            )?;
            db.execute(
                "INSERT INTO value (name, value) VALUES (?1, '1') \
                 ON CONFLICT (name) DO UPDATE SET value = CAST(CAST(value AS INTEGER) + 1 AS TEXT)",
                [FAILED_DROPPED],
            )
        })?;
        self.failed_files -= 1;
        Ok(())
    }

    /// Takes away what has succeeded after all.
    pub(super) fn clear_failed(&mut self, done: &Succeeded) -> Result<(), Fault> {
        let removed = self.run(|db| {
            let object = done.object.as_ref().map_or("", |key| key.0.as_str());
            let values = params![done.file.ino as i64, done.file.birth as i64, done.task.as_str(), object];
            let sql = "DELETE FROM failed WHERE ino = ?1 AND birth = ?2 AND task = ?3 AND object = ?4";
            db.prepare_cached(sql)?.execute(values)
        })?;
        self.failed_files -= removed as u64;
        Ok(())
    }

    /// Returns how many of `ids` there were.
    pub(super) fn drop_failed(&mut self, ids: &[FailedId]) -> Result<u64, Fault> {
        let removed = self.run(|db| {
            let mut statement = db.prepare_cached("DELETE FROM failed WHERE id = ?1")?;
            ids.iter().try_fold(0, |sum, id| Ok(sum + statement.execute([id.0 as i64])? as u64))
        })?;
        self.failed_files -= removed;
        Ok(removed)
    }

    pub(super) fn failed(&mut self, after: Option<FailedId>, limit: usize) -> Result<Vec<FailedEntry>, Fault> {
        let rows = self.run(|db| {
            let mut statement =
                db.prepare_cached(&format!("SELECT {COLUMNS} FROM failed WHERE id > ?1 ORDER BY id LIMIT ?2"))?;
            let values = params![after.map_or(0, |id| id.0 as i64), bound(limit)];
            statement.query_map(values, |row| Ok((row.get::<_, i64>(0)?, decode(row)?)))?.collect::<Result<Vec<_>, _>>()
        })?;
        let sense = |(id, entry): (i64, Option<FailedEntry>)| {
            entry.ok_or_else(|| self.refuse(damaged(&format!("entry {id} of the dead-letter list makes no sense"))))
        };
        rows.into_iter().map(sense).collect()
    }

    /// How many entries there are; at the opening and after a transaction was given up, when the running count is not known.
    pub(super) fn count_failed(&mut self) -> Result<(), JournalError> {
        let counted = self.run(|db| db.query_row("SELECT count(*) FROM failed", [], |row| row.get::<_, i64>(0)));
        self.failed_files = counted.map_err(|fault| fault.0)? as u64;
        Ok(())
    }

    /// For each key, whether any note names it, of whatever kind and pair.
    pub(super) fn names_keys(&mut self, keys: &[ObjectKey]) -> Result<Vec<bool>, Fault> {
        self.run(|db| {
            let mut statement = db.prepare_cached("SELECT 1 FROM intent WHERE key = ?1 LIMIT 1")?;
            keys.iter().map(|key| statement.exists([&key.0])).collect()
        })
    }

    pub(super) fn value(&mut self, name: &str) -> Result<Option<String>, Fault> {
        self.run(|db| {
            db.prepare_cached("SELECT value FROM value WHERE name = ?1")?.query_row([name], |row| row.get(0)).optional()
        })
    }

    pub(super) fn set_value(&mut self, name: &str, value: Option<&str>) -> Result<(), Fault> {
        self.run(|db| match value {
            Some(value) => db
                .prepare_cached(
                    "INSERT INTO value (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                )?
                .execute([name, value]),
            None => db.prepare_cached("DELETE FROM value WHERE name = ?1")?.execute([name]),
        })
        .map(drop)
    }
}

fn cut(message: &str) -> &str {
    let mut end = message.len().min(MESSAGE_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}

/// `None`: the row breaks a rule of the schema.
fn decode(row: &Row<'_>) -> rusqlite::Result<Option<FailedEntry>> {
    let handle: Vec<u8> = row.get(4)?;
    let (task, reason): (String, String) = (row.get(5)?, row.get(10)?);
    let (pair, path): (String, Vec<u8>) = (row.get(8)?, row.get(9)?);
    let parsed =
        (RawHandle::new(row.get(3)?, &handle), Task::from_word(&task), Reason::from_word(&reason), pair.parse());
    let (Some(handle), Some(task), Some(reason), Ok(pair)) = parsed else { return Ok(None) };
    let id = FileId { ino: row.get::<_, i64>(1)? as u64, birth: row.get::<_, i64>(2)? as u64 };
    let intent: Option<i64> = row.get(7)?;
    let key = ObjectKey(row.get(6)?);
    let failed = Failed {
        node: Inode { id, handle },
        task,
        pair,
        deletion: intent.map(|id| (IntentId(id as u64), key)),
        path: Path::new(OsStr::from_bytes(&path)).to_owned(),
        reason,
        message: row.get(11)?,
    };
    Ok(Some(FailedEntry {
        id: FailedId(row.get::<_, i64>(0)? as u64),
        failed,
        attempts: row.get::<_, i64>(12)? as u64,
        first: Timestamp { secs: row.get(13)?, nanos: row.get(14)? },
        last: Timestamp { secs: row.get(15)?, nanos: row.get(16)? },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(n: u64) -> Failed {
        let node = Inode { id: FileId { ino: n, birth: 2 }, handle: RawHandle::new(1, &[1, 2, 3]).unwrap() };
        let (pair, path) = ("p".parse().unwrap(), format!("f{n}").into());
        let message = "ü".repeat(2_000);
        Failed { node, task: Task::Archive, pair, deletion: None, path, reason: Reason::Remote, message }
    }

    #[test]
    fn the_list_is_bounded_and_counts_what_it_drops() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.db");
        let mut store = Store::open(&path).unwrap();
        for n in 0..10u64 {
            // The first one keeps failing, so it is not the oldest.
            for n in [n, 0] {
                let now = Timestamp { secs: n as i64 + 100, nanos: 0 };
                let now = if n == 0 { Timestamp { secs: 1_000, nanos: 0 } } else { now };
                store.note_failed(&failed(n), now, 4).map_err(|f| f.0).unwrap();
            }
        }
        let listed = store.failed(None, 100).map_err(|f| f.0).unwrap();
        let files: Vec<_> = listed.iter().map(|entry| entry.failed.node.id.ino).collect();
        assert_eq!((files, store.failed_files), (vec![0, 7, 8, 9], 4));
        assert_eq!(store.value(FAILED_DROPPED).map_err(|f| f.0).unwrap().as_deref(), Some("6"));
        assert!(listed[0].failed.message.len() <= MESSAGE_MAX && listed[0].failed.message.ends_with('ü'));
        drop(store);
        assert_eq!(Store::open(&path).unwrap().failed_files, 4);
    }
}
