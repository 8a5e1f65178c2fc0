//! Files whose content can be freed, the coldest first, in an order that is kept: who waits for room must not wait for millions of rows to be sorted.
//!
//! The index below has all that the question needs, so no row of the table is read. It costs an entry for each dual file that may be freed, and a count of
//! opens of such a file moves it, which makes that about twice the work; a row that is no such file costs its writers two looks at the condition. It is made when the first filling ends, with the indexes of names.

use rusqlite::{Connection, OptionalExtension};

use super::IndexResult;
use crate::types::FileId;

macro_rules! order {
    () => {
        "coalesce(heat, 0), max(atime, mtime, coalesce(accessed, 0)), ino"
    };
}

/// Dual and not pinned, not kept from tiering. SQLite takes the index only for a question with the same words.
macro_rules! freeable {
    () => {
        "state = 1 AND kind = 'f' AND pinned = 0 AND sealed = 0"
    };
}

/// By heat, then by the last use.
pub const COLDEST: &str = concat!(" ORDER BY ", order!());

pub(super) const MAKE: &str = concat!(
    "CREATE INDEX IF NOT EXISTS f_coldest ON f (",
    order!(),
    ", birth, blocks, state, kind, pinned, sealed) WHERE ",
    freeable!(),
    ";"
);
pub(super) const DROP: &str = "DROP INDEX IF EXISTS f_coldest;";

/// Never by a sort: where the index is not there, this is an error.
const FREEABLE: &str =
    concat!("SELECT ino, birth FROM f INDEXED BY f_coldest WHERE ", freeable!(), " AND blocks > 0 ORDER BY ", order!());

/// Dual files with local blocks that nothing keeps from being freed, as far as the index knows; `each` says whether it wants more. None before the first scan has
/// ended.
pub fn each_coldest(db: &Connection, each: &mut dyn FnMut(FileId) -> bool) -> IndexResult<()> {
    let there = db.query_row("SELECT 1 FROM sqlite_schema WHERE name = 'f_coldest'", [], |_| Ok(())).optional()?;
    if there.is_none() {
        return Ok(());
    }
    let mut freeable = db.prepare(FREEABLE)?;
    let mut rows = freeable.query([])?;
    while let Some(row) = rows.next()? {
        let id = FileId { ino: row.get::<_, i64>(0)? as u64, birth: row.get::<_, i64>(1)? as u64 };
        if !each(id) {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::row::{Facts, some_facts, state_number};
    use super::super::store::Store;
    use super::*;
    use crate::ports::FileKind;
    use crate::types::FileState;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("index"), "1-2").unwrap();
        (dir, store)
    }

    fn coldest(store: &Store) -> Vec<u64> {
        let mut found = Vec::new();
        each_coldest(&store.db, &mut |id| {
            found.push(id.ino);
            true
        })
        .unwrap();
        found
    }

    #[test]
    fn the_coldest_are_found_in_order_without_a_sort() {
        let (_dir, mut store) = store();
        store.end_filling().unwrap();
        let plan: Vec<String> = {
            let mut plan = store.db.prepare(&format!("EXPLAIN QUERY PLAN {FREEABLE}")).unwrap();
            plan.query_map([], |row| row.get("detail")).unwrap().map(Result::unwrap).collect()
        };
        assert_eq!(plan, ["SCAN f USING COVERING INDEX f_coldest"], "nothing else: no sort, and no row of the table");
        assert_eq!(state_number(FileState::Dual), 1);

        let put = |store: &mut Store, ino, mtime, change: &dyn Fn(&mut Facts)| {
            let mut facts = some_facts(ino, FileKind::Regular, 1);
            (facts.mtime, facts.tier.state) = (mtime, FileState::Dual);
            change(&mut facts);
            store.put(1, format!("f{ino}").as_bytes(), &facts).unwrap();
        };
        for (ino, mtime) in [(10, 500), (11, 400), (12, 300), (13, 200), (14, 200)] {
            put(&mut store, ino, mtime, &|_| {});
        }
        put(&mut store, 20, 0, &|facts| facts.tier.pinned = true);
        put(&mut store, 21, 0, &|facts| facts.sealed = true);
        put(&mut store, 22, 0, &|facts| facts.tier.retained = true);
        put(&mut store, 23, 0, &|facts| facts.tier.state = FileState::Stub);
        put(&mut store, 24, 0, &|facts| facts.tier.state = FileState::Resident);
        put(&mut store, 25, 0, &|facts| facts.blocks = 0);
        assert_eq!(coldest(&store), [13, 14, 12, 11, 10]);
        // Often, long ago, against once, just now.
        let id = |ino| FileId { ino, birth: 9 };
        let now = 1_800_000_000;
        store.opened(id(13), 1, now).unwrap();
        store.opened(id(12), 8, now - 3600).unwrap();
        assert_eq!(coldest(&store), [14, 11, 10, 13, 12], "by heat, not by the last use");
        // What becomes something else leaves it, and comes back with its heat.
        put(&mut store, 12, 300, &|facts| facts.tier.state = FileState::Stub);
        put(&mut store, 11, 400, &|facts| facts.tier.retained = true);
        assert_eq!(coldest(&store), [14, 10, 13]);
        put(&mut store, 12, 300, &|_| {});
        put(&mut store, 11, 400, &|_| {});
        assert_eq!(coldest(&store), [14, 11, 10, 13, 12]);
    }

    #[test]
    fn while_the_index_is_filled_nobody_is_found_and_nothing_sorted() {
        let (_dir, mut store) = store();
        assert!(coldest(&store).is_empty());
        store.begin_filling().unwrap();
        let mut facts = some_facts(10, FileKind::Regular, 1);
        facts.tier.state = FileState::Dual;
        store.fill(1, [(&b"a"[..], &facts)].into_iter()).unwrap();
        assert!(coldest(&store).is_empty());
        store.end_filling().unwrap();
        assert_eq!(coldest(&store), [10]);
        store.put(1, b"a", &facts).unwrap();
        assert_eq!(coldest(&store), [10]);
    }
}
