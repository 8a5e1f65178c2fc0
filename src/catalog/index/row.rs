//! One inode as the index knows it: from attributes and a stored record to a row and back.

use rusqlite::types::{ToSqlOutput, Value, ValueRef};
use rusqlite::{Row as SqlRow, ToSql};

use crate::ports::{Attr, FileKind};
use crate::record::Record;
use crate::types::{Claim, FileId, FileState};

/// Half of a file's heat is gone after so many seconds without an open.
pub const HEAT_HALF_LIFE_S: f64 = 7.0 * 86_400.0;

/// A name as bytes: text where it is UTF-8, a blob otherwise.
pub(super) struct Name<'a>(pub &'a [u8]);

impl ToSql for Name<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let value = match std::str::from_utf8(self.0) {
            Ok(_) => ValueRef::Text(self.0),
            Err(_) => ValueRef::Blob(self.0),
        };
        Ok(ToSqlOutput::Borrowed(value))
    }
}

/// The bytes of a stored name.
pub fn name_of(value: ValueRef<'_>) -> &[u8] {
    match value {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes,
        _ => b"",
    }
}

/// What is known of an inode itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub id: FileId,
    pub kind: FileKind,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub project: u32,
    pub size: u64,
    /// In units of 512 bytes.
    pub blocks: u64,
    /// Seconds since 1970; of the change time nanoseconds, since it tells whether the record may be another.
    pub atime: i64,
    pub mtime: i64,
    pub ctime_ns: i64,
    pub btime: i64,
    /// Immutable or append-only.
    pub sealed: bool,
    pub tier: Tier,
}

/// What the record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tier {
    pub state: FileState,
    pub pinned: bool,
    /// Locked for retention.
    pub retained: bool,
    pub pair: Option<String>,
    pub generation: u64,
}

impl Tier {
    pub fn none() -> Self {
        Self { state: FileState::Resident, pinned: false, retained: false, pair: None, generation: 0 }
    }

    /// What a stored record means for a file of these attributes.
    pub fn of(attr: &Attr, stored: Option<&[u8]>) -> Self {
        let Some(stored) = stored else { return Self::none() };
        let Ok(record) = Record::decode(stored) else { return Self { state: FileState::Damaged, ..Self::none() } };
        let changed =
            record.object.as_ref().is_some_and(|object| (object.len, object.mtime) != (attr.size, attr.mtime));
        let state = match record.claim {
            // As the engine judges it when it next meets the file.
            Claim::Dual if changed => FileState::Resident,
            claim if claim.is_remote() && attr.size == 0 => FileState::Resident,
            claim => claim.into(),
        };
        let pair = record.object.filter(|_| state != FileState::Resident).map(|object| object.pair.name.into());
        Self {
            state,
            pinned: record.flags.pinned,
            retained: record.flags.retained,
            pair,
            generation: record.generation.0,
        }
    }
}

pub(super) fn state_number(state: FileState) -> i64 {
    match state {
        FileState::Resident => 0,
        FileState::Dual => 1,
        FileState::Releasing => 2,
        FileState::Stub => 3,
        FileState::Damaged => 4,
        FileState::Partial => 5,
        FileState::Patched => 6,
    }
}

pub(super) fn state_of(number: i64) -> FileState {
    match number {
        0 => FileState::Resident,
        1 => FileState::Dual,
        2 => FileState::Releasing,
        3 => FileState::Stub,
        5 => FileState::Partial,
        6 => FileState::Patched,
        _ => FileState::Damaged,
    }
}

/// Letters of find(1)'s `-type`, which is what people know.
pub(super) fn kind_letter(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Regular => "f",
        FileKind::Directory => "d",
        FileKind::Symlink => "l",
        FileKind::Fifo => "p",
        FileKind::Socket => "s",
        FileKind::CharDevice => "c",
        FileKind::BlockDevice => "b",
    }
}

fn kind_of(letter: &[u8]) -> FileKind {
    match letter {
        b"f" => FileKind::Regular,
        b"d" => FileKind::Directory,
        b"l" => FileKind::Symlink,
        b"p" => FileKind::Fifo,
        b"c" => FileKind::CharDevice,
        b"b" => FileKind::BlockDevice,
        _ => FileKind::Socket,
    }
}

/// Bits of the column `sealed`. What is 0 there is for tiering.
const SEALED: i64 = 1;
const RETAINED: i64 = 2;

/// Columns of [`Facts`], in the order of [`Facts::read`] and [`Facts::values`].
pub(super) const FACTS: &str = "ino, birth, kind, mode, nlink, uid, gid, project, size, blocks, atime, mtime, ctime_ns, btime, sealed, \
                                state, pinned, pair, generation";

impl Facts {
    pub fn new(id: FileId, attr: &Attr, project: u32, tier: Tier) -> Self {
        Self {
            id,
            kind: attr.kind,
            mode: attr.mode,
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            project,
            size: attr.size,
            blocks: attr.blocks,
            atime: attr.atime.secs,
            mtime: attr.mtime.secs,
            ctime_ns: ctime_ns(attr),
            btime: attr.btime.secs,
            sealed: attr.sealed,
            tier,
        }
    }

    pub fn values(&self) -> [ToSqlOutput<'_>; 19] {
        let number = |number: i64| ToSqlOutput::Owned(Value::Integer(number));
        let text = |text: &'static str| ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes()));
        [
            number(self.id.ino as i64),
            number(self.id.birth as i64),
            text(kind_letter(self.kind)),
            number(self.mode.into()),
            number(self.nlink.into()),
            number(self.uid.into()),
            number(self.gid.into()),
            number(self.project.into()),
            number(self.size as i64),
            number(self.blocks as i64),
            number(self.atime),
            number(self.mtime),
            number(self.ctime_ns),
            number(self.btime),
            number(i64::from(self.sealed) * SEALED + i64::from(self.tier.retained) * RETAINED),
            number(state_number(self.tier.state)),
            number(self.tier.pinned.into()),
            match &self.tier.pair {
                Some(pair) => ToSqlOutput::Borrowed(ValueRef::Text(pair.as_bytes())),
                None => ToSqlOutput::Owned(Value::Null),
            },
            number(self.tier.generation as i64),
        ]
    }

    /// From a row that begins with [`FACTS`].
    pub fn read(row: &SqlRow<'_>) -> rusqlite::Result<Self> {
        let number = |at: usize| row.get::<_, i64>(at);
        Ok(Self {
            id: FileId { ino: number(0)? as u64, birth: number(1)? as u64 },
            kind: kind_of(name_of(row.get_ref(2)?)),
            mode: number(3)? as u32,
            nlink: number(4)? as u32,
            uid: number(5)? as u32,
            gid: number(6)? as u32,
            project: number(7)? as u32,
            size: number(8)? as u64,
            blocks: number(9)? as u64,
            atime: number(10)?,
            mtime: number(11)?,
            ctime_ns: number(12)?,
            btime: number(13)?,
            sealed: number(14)? & SEALED != 0,
            tier: Tier {
                state: state_of(number(15)?),
                pinned: number(16)? != 0,
                retained: number(14)? & RETAINED != 0,
                pair: row.get(17)?,
                generation: number(18)? as u64,
            },
        })
    }

    /// Whether it has, or may have, more than one name.
    pub fn has_links(&self) -> bool {
        self.nlink > 1 && self.kind != FileKind::Directory
    }
}

/// What [`Facts::ctime_ns`] is for these attributes.
pub(super) fn ctime_ns(attr: &Attr) -> i64 {
    attr.ctime.secs.wrapping_mul(1_000_000_000).wrapping_add(attr.ctime.nanos.into())
}

/// Heat after `opens` more at `at`. It is kept as the logarithm of a sum of opens, each weighing twice as much as one a half-life earlier: what
/// is kept so never changes by itself, and orders files as their heat does.
pub(super) fn heated(heat: Option<f64>, opens: u32, at: i64) -> f64 {
    let more = at as f64 / HEAT_HALF_LIFE_S + f64::from(opens.max(1)).log2();
    match heat {
        None => more,
        Some(heat) => {
            let (high, low) = if heat > more { (heat, more) } else { (more, heat) };
            high + (1.0 + (low - high).exp2()).log2()
        }
    }
}

/// Heat for people: opens, each halved once a half-life.
pub(super) fn heat_now(heat: f64, now: i64) -> f64 {
    (heat - now as f64 / HEAT_HALF_LIFE_S).exp2()
}

/// For tests.
#[cfg(test)]
pub(super) fn some_facts(ino: u64, kind: FileKind, nlink: u32) -> Facts {
    Facts {
        id: FileId { ino, birth: 9 },
        kind,
        mode: 0o644,
        nlink,
        uid: 0,
        gid: 0,
        project: 0,
        size: ino,
        blocks: 8,
        atime: 1,
        mtime: 2,
        ctime_ns: 3,
        btime: 4,
        sealed: false,
        tier: Tier::none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_from_tiering_has_one_column_for_it() {
        for (sealed, retained, column) in [(false, false, 0), (true, false, 1), (false, true, 2), (true, true, 3)] {
            let mut facts = some_facts(1, FileKind::Regular, 1);
            (facts.sealed, facts.tier.retained) = (sealed, retained);
            assert_eq!(facts.values()[14], ToSqlOutput::Owned(Value::Integer(column)));
        }
    }

    #[test]
    fn heat_halves_in_a_half_life_and_adds_up() {
        let (day, now) = (86_400, 1_800_000_000);
        let one = heated(None, 1, now);
        assert!((heat_now(one, now) - 1.0).abs() < 1e-6);
        assert!((heat_now(one, now + 7 * day) - 0.5).abs() < 1e-6);
        let three = heated(Some(one), 2, now);
        assert!((heat_now(three, now) - 3.0).abs() < 1e-6);
        // One open now after four a half-life ago: 1 + 2.
        let later = heated(Some(heated(None, 4, now)), 1, now + 7 * day);
        assert!((heat_now(later, now + 7 * day) - 3.0).abs() < 1e-6);
        // Told late, an open of before counts as one of before.
        let mixed = heated(Some(heated(None, 1, now + 7 * day)), 4, now);
        assert!((heat_now(mixed, now + 7 * day) - 3.0).abs() < 1e-6);
    }
}
