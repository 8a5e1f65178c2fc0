//! What is asked of the index for a condition of a policy never leaves out what the condition holds for: the index proposes, the file decides.

use std::fs;

use tierfs::catalog::index::HEAT_HALF_LIFE_S;
use tierfs::control::policies::{Condition, Subject, parse};
use tierfs::ports::Attr;
use tierfs::types::Timestamp;

use crate::Env;
use crate::rounds::Dice;

const NOW: i64 = 1_600_000_000;
const ROWS: usize = 3_000;
/// Every condition that a file of policies can have, with limits that [`row`] falls on, below and above.
const CONDITIONS: &[&str] = &[
    "unmodified_for = \"100s\"",
    "unused_for = \"100s\"",
    "unread_for = \"100s\"",
    "unopened_for = \"100s\"",
    "unchanged_for = \"100s\"",
    "larger_than = \"1000\"",
    "smaller_than = \"1000\"",
    "users = [7, 4294967295]",
    "groups = [7]",
    "projects = [0, 8]",
    "paths = [\"d0/*.exr\"]",
    "not_paths = [\"*_\"]",
    "extensions = [\"exr\", \"a'b\", \"x_y\", \"5%\", \"é\"]",
    "xattrs = { \"user.class\" = \"arch*\" }",
    "cooler_than = 0.5",
    "hotter_than = 0.5",
    "cooler_than = 0.0",
    "opened_at_least = 3",
    "opened_at_most = 3",
];
const NAMES: &[&str] =
    &["a.exr", "a.EXR", "exr", ".exr", "b.a'b", "c.x_y", "c.xzy", "d.5%", "d.57", "e.é", "e.É", "f_"];

struct Row {
    path: String,
    attr: Attr,
    project: u32,
    accesses: u64,
    heat: Option<f64>,
    accessed: Option<i64>,
    class: Option<&'static [u8]>,
}

fn row(dice: &mut Dice, like: &Attr) -> Row {
    let mut pick = |of: &[i64]| of[dice.below(of.len())];
    let mut time =
        || Timestamp { secs: NOW - pick(&[-5, 0, 99, 100, 101, 5_000]), nanos: pick(&[0, 1, 999_999_999]) as u32 };
    let (atime, mtime, ctime, btime) = (time(), time(), time(), time());
    let size = pick(&[0, 1, 999, 1000, 1001, 1 << 40]) as u64;
    let (uid, gid) = (pick(&[0, 7, 4_294_967_295]) as u32, pick(&[0, 7, 8]) as u32);
    let opened = |heat: f64| heat.log2() + NOW as f64 / HEAT_HALF_LIFE_S;
    let heats =
        [None, Some(opened(0.5)), Some(opened(0.499_999_999_999)), Some(opened(0.500_000_000_001)), Some(opened(9.0))];
    Row {
        path: format!("d0/{}", NAMES[pick(&(0..NAMES.len() as i64).collect::<Vec<_>>()) as usize]),
        attr: Attr { atime, mtime, ctime, btime, size, uid, gid, ..*like },
        project: pick(&[0, 7, 8]) as u32,
        accesses: pick(&[0, 2, 3, 4]) as u64,
        heat: heats[pick(&[0, 1, 2, 3, 4]) as usize],
        accessed: [None, Some(NOW - 100), Some(NOW - 99), Some(NOW - 9_000)][pick(&[0, 1, 2, 3]) as usize],
        class: [None, Some(&b"archive"[..]), Some(&b"hot"[..])][pick(&[0, 1, 2]) as usize],
    }
}

#[test]
fn the_index_leaves_nothing_out_that_a_condition_holds_for() {
    let Some(env) = Env::new() else { return };
    env.scan();
    let db = env.db();
    let ino = {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(env.at("d0/f1")).unwrap().ino() as i64
    };
    let like = tierfs::ports::Lower::by_number(&*env.share, ino as u64).unwrap().1;
    let conditions: Vec<Condition> = CONDITIONS
        .iter()
        .map(|text| {
            let text = format!("[policy.a]\naction = \"pin\"\nmatch.{text}");
            parse(&text).unwrap().rules.remove(0).conditions.remove(0)
        })
        .collect();
    let mut ends = vec![(0, 0); conditions.len()];
    let mut dice = Dice(77);
    for _ in 0..ROWS {
        let row = row(&mut dice, &like);
        let attr = &row.attr;
        let ctime_ns = attr.ctime.secs * 1_000_000_000 + i64::from(attr.ctime.nanos);
        db.execute(
            "UPDATE f SET name = ?2, atime = ?3, mtime = ?4, ctime_ns = ?5, btime = ?6, size = ?7, uid = ?8, gid = ?9, project = ?10, \
             accesses = ?11, heat = ?12, accessed = ?13 WHERE ino = ?1",
            rusqlite::params![
                ino,
                row.path.strip_prefix("d0/"),
                attr.atime.secs,
                attr.mtime.secs,
                ctime_ns,
                attr.btime.secs,
                attr.size as i64,
                attr.uid,
                attr.gid,
                row.project,
                row.accesses as i64,
                row.heat,
                row.accessed
            ],
        )
        .unwrap();
        let xattr = |_: &str| row.class.map(<[u8]>::to_vec);
        let file = Subject {
            path: row.path.as_bytes(),
            attr,
            project: &|| Some(row.project),
            accesses: row.accesses,
            heat: row.heat,
            accessed: row.accessed,
            xattr: &xattr,
        };
        for (condition, (held, refused)) in conditions.iter().zip(&mut ends) {
            if !condition.holds(&file, NOW) {
                *refused += 1;
                continue;
            }
            *held += 1;
            let Some(sql) = condition.sql(NOW) else { continue };
            let sql = format!("SELECT count(*) FROM f WHERE ino = {ino} AND {sql}");
            let proposed: i64 = db.query_row(&sql, [], |row| row.get(0)).unwrap();
            assert_eq!(proposed, 1, "{condition}: {sql}; {} {:?} {:?}", row.path, row.heat, row.attr);
        }
    }
    for (text, (held, refused)) in CONDITIONS.iter().zip(ends) {
        assert!(held > 0 && refused > 0, "{text}: holds for {held}, not for {refused}");
    }
    drop(db);
    env.close();
}
