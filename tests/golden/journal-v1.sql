-- A journal as version 1 made it: `.dump` of a file with one note of each kind, and its header.
PRAGMA journal_mode = WAL;
BEGIN;
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
INSERT INTO intent VALUES (3, 'cold', 'pre/a@1f-a.64', 1, 31, 10, 1, x'1f00000001000000', 0, NULL, NULL);
INSERT INTO intent VALUES (4, 'cold', 'pre/b@20-b.65', 0, 32, 11, 1, x'2000000001000000', 1, 1700000000, 5);
INSERT INTO intent VALUES (7, 'cold', 'pre/c@21-8000000000000000.66', 0, 33, -9223372036854775808, 129, x'210000000000000001000000', 2, -5, 999999999);
UPDATE sqlite_sequence SET seq = 9 WHERE name = 'intent';
COMMIT;
PRAGMA application_id = 1953064306;
PRAGMA user_version = 1;
