//! The tables, version by version. A new file is made by going through all versions, so that it is like one that was carried over.

/// The version this tierfs writes; it carries older ones over.
pub(super) const VERSION: i32 = 3;

/// `AUTOINCREMENT`: an id is never used again, so a late `remove` cannot hit another note. Integers are SQLite's
/// signed 64 bits; inode number and birth hash are stored as the same bits. `at` is when a deletion is due (kind 1), or
/// the mtime to settle (kind 2).
const VERSION_1: &str = "
    CREATE TABLE intent (
        id          INTEGER PRIMARY KEY AUTOINCREMENT,
        pair        TEXT    NOT NULL,
        key         TEXT    NOT NULL,
        manifest    INTEGER NOT NULL CHECK (manifest IN (0, 1)),
        ino         INTEGER NOT NULL,
        birth       INTEGER NOT NULL,
        handle_kind INTEGER NOT NULL,
        handle      BLOB    NOT NULL,
        kind        INTEGER NOT NULL CHECK (kind IN (0, 1, 2)),
        at_secs     INTEGER,
        at_nanos    INTEGER,
        CHECK ((kind = 0) = (at_secs IS NULL) AND (kind = 0) = (at_nanos IS NULL))
    ) STRICT;
    CREATE INDEX intent_by_pair ON intent (pair, kind, at_secs, at_nanos, id);
    CREATE INDEX intent_unfinished ON intent (id) WHERE kind <> 1;
";

/// `failed` is the dead-letter list, an entry a file and task (and object, for deletions; '' otherwise). `value` holds what the share's
/// daemon must remember and is no note: its own identity, which tells the objects it made from those of others; where the scrub is.
const VERSION_2: &str = "
    CREATE INDEX intent_by_key ON intent (key);
    CREATE TABLE failed (
        id          INTEGER PRIMARY KEY AUTOINCREMENT,
        ino         INTEGER NOT NULL,
        birth       INTEGER NOT NULL,
        handle_kind INTEGER NOT NULL,
        handle      BLOB    NOT NULL,
        task        TEXT    NOT NULL,
        object      TEXT    NOT NULL,
        intent      INTEGER,
        pair        TEXT    NOT NULL,
        path        BLOB    NOT NULL,
        reason      TEXT    NOT NULL,
        message     TEXT    NOT NULL,
        attempts    INTEGER NOT NULL CHECK (attempts > 0),
        first_secs  INTEGER NOT NULL,
        first_nanos INTEGER NOT NULL,
        last_secs   INTEGER NOT NULL,
        last_nanos  INTEGER NOT NULL,
        CHECK ((task = 'delete') = (intent IS NOT NULL)),
        UNIQUE (ino, birth, task, object)
    ) STRICT;
    CREATE INDEX failed_by_age ON failed (last_secs, last_nanos, id);
    CREATE TABLE value (
        name  TEXT PRIMARY KEY,
        value TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    INSERT INTO value (name, value) VALUES ('identity', lower(hex(randomblob(16))));
";

/// `recalled` is what was brought back, one row a file: its object goes after `at`. No note: what it is about is whole without it.
const VERSION_3: &str = "
    CREATE TABLE recalled (
        ino         INTEGER NOT NULL,
        birth       INTEGER NOT NULL,
        handle_kind INTEGER NOT NULL,
        handle      BLOB    NOT NULL,
        pair        TEXT    NOT NULL,
        key         TEXT    NOT NULL,
        at_secs     INTEGER NOT NULL,
        at_nanos    INTEGER NOT NULL,
        PRIMARY KEY (ino, birth)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX recalled_by_time ON recalled (pair, at_secs, at_nanos);
";

/// What leads from `version` (0: an empty file) to [`VERSION`]; `None` where nobody knows.
pub(super) fn steps_from(version: i32) -> Option<&'static [&'static str]> {
    const STEPS: [&str; VERSION as usize] = [VERSION_1, VERSION_2, VERSION_3];
    STEPS.get(usize::try_from(version).ok()?..)
}
