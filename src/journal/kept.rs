//! What is noted about an object or a file, in SQL: for `history` and `undelete`.

use rusqlite::params;

use super::store::{COLUMNS, Fault, Store, bound};
use crate::ports::{About, Intent, IntentId};
use crate::types::{Inode, ObjectKey, PairName, Timestamp};

impl Store {
    pub(super) fn noted(
        &mut self,
        pair: &PairName,
        about: &About,
        after: Option<IntentId>,
        limit: usize,
    ) -> Result<Vec<(IntentId, Intent)>, Fault> {
        let which = match about {
            About::Key(_) => "key = ?4",
            // One past all that begin so: no key holds U+10FFFF.
            About::KeysBeginning(_) | About::KeysBeginningOfAnyPair(_) => "key >= ?4 AND key < ?4 || char(0x10FFFF)",
            About::File(_) => "ino = ?4 AND birth = ?5",
        };
        let of_pair = if matches!(about, About::KeysBeginningOfAnyPair(_)) { "?1 = ?1" } else { "pair = ?1" };
        let sql = format!("SELECT {COLUMNS} FROM intent WHERE {of_pair} AND id > ?2 AND {which} ORDER BY id LIMIT ?3");
        let (pair, after, limit) = (pair.as_str(), after.map_or(0, |id| id.0 as i64), bound(limit));
        match about {
            About::Key(ObjectKey(key)) | About::KeysBeginning(key) | About::KeysBeginningOfAnyPair(key) => {
                self.select(&sql, params![pair, after, limit, key])
            }
            About::File(id) => self.select(&sql, params![pair, after, limit, id.ino as i64, id.birth as i64]),
        }
    }

    /// A settlement stays what it is, as in [`Store::set_delete`].
    pub(super) fn repoint(
        &mut self,
        pair: &PairName,
        key: &ObjectKey,
        node: &Inode,
        not_before: Timestamp,
    ) -> Result<(), Fault> {
        let sql = "UPDATE intent SET kind = 1, ino = ?3, birth = ?4, handle_kind = ?5, handle = ?6, \
                   at_secs = CASE WHEN kind = 1 AND (at_secs, at_nanos) > (?7, ?8) THEN at_secs ELSE ?7 END, \
                   at_nanos = CASE WHEN kind = 1 AND (at_secs, at_nanos) > (?7, ?8) THEN at_nanos ELSE ?8 END \
                   WHERE pair = ?1 AND key = ?2 AND kind IN (0, 1)";
        let values = params![
            pair.as_str(),
            key.0,
            node.id.ino as i64,
            node.id.birth as i64,
            node.handle.kind(),
            node.handle.bytes(),
            not_before.secs,
            not_before.nanos,
        ];
        self.execute(sql, values)
    }
}
