//! Files that were recalled and whose objects are to go, in SQL.

use rusqlite::params;

use super::store::{Fault, Store, bound, damaged};
use crate::ports::Recalled;
use crate::types::{FileId, Inode, ObjectKey, PairName, RawHandle, Timestamp};

impl Store {
    pub(super) fn note_recalled(&mut self, recalled: &Recalled) -> Result<(), Fault> {
        let (node, at) = (&recalled.node, recalled.not_before);
        let values = params![
            node.id.ino as i64,
            node.id.birth as i64,
            node.handle.kind(),
            node.handle.bytes(),
            recalled.pair.as_str(),
            recalled.key.0,
            at.secs,
            at.nanos,
        ];
        let sql = "INSERT OR REPLACE INTO recalled (ino, birth, handle_kind, handle, pair, key, at_secs, at_nanos) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
        self.execute(sql, values)
    }

    pub(super) fn recalled_due(
        &mut self,
        pair: &PairName,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<Recalled>, Fault> {
        let sql = "SELECT ino, birth, handle_kind, handle, key, at_secs, at_nanos FROM recalled \
                   WHERE pair = ?1 AND (at_secs, at_nanos) <= (?2, ?3) ORDER BY at_secs, at_nanos, ino LIMIT ?4";
        let rows = self.run(|db| {
            let mut statement = db.prepare_cached(sql)?;
            let found = statement.query_map(params![pair.as_str(), now.secs, now.nanos, bound(limit)], |row| {
                let handle: Vec<u8> = row.get(3)?;
                let id = FileId { ino: row.get::<_, i64>(0)? as u64, birth: row.get::<_, i64>(1)? as u64 };
                let not_before = Timestamp { secs: row.get(5)?, nanos: row.get(6)? };
                let (handle, key) = (RawHandle::new(row.get(2)?, &handle), ObjectKey(row.get(4)?));
                let pair = pair.clone();
                Ok(handle.map(|handle| Recalled { pair, key, node: Inode { id, handle }, not_before }))
            })?;
            found.collect::<Result<Vec<_>, _>>()
        })?;
        let sense = |row: Option<Recalled>| row.ok_or_else(|| self.refuse(damaged("a recalled file makes no sense")));
        rows.into_iter().map(sense).collect()
    }

    pub(super) fn settle_recalled(&mut self, recalled: &Recalled, until: Option<Timestamp>) -> Result<(), Fault> {
        let (id, at) = (recalled.node.id, recalled.not_before);
        let (ino, birth, key) = (id.ino as i64, id.birth as i64, &recalled.key.0);
        const SAME: &str = "WHERE ino = ?1 AND birth = ?2 AND key = ?3 AND at_secs = ?4 AND at_nanos = ?5";
        match until {
            Some(until) => self.execute(
                &format!("UPDATE recalled SET at_secs = ?6, at_nanos = ?7 {SAME}"),
                params![ino, birth, key, at.secs, at.nanos, until.secs, until.nanos],
            ),
            None => self.execute(&format!("DELETE FROM recalled {SAME}"), params![ino, birth, key, at.secs, at.nanos]),
        }
    }
}
