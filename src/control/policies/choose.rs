//! Which files a run takes: what its trigger wants freed, what the index proposes, and how much of that its limits let through.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::rule::{Action, Condition, Rule, Subject, Trigger};
use super::run::Manager;
use crate::catalog::index::{IndexError, IndexResult, Paths, name_of, now_s, reader};
use crate::catalog::walk::{Found, seek};
use crate::ports::{Attr, LowerError, Quota, SpaceInfo};
use crate::types::{FileId, Inode};

/// Files chosen at a time, with their paths: two megabytes or so.
const LOT: usize = 20_000;

/// Why no files can be chosen.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChooseError {
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error("the share's filesystem does not tell users' quotas: {0}")]
    Quotas(#[from] LowerError),
    #[error(
        "the share's filesystem keeps no quotas of users: mount it with usrquota (and see quotaon(8)), or take user_quota_above out"
    )]
    NoQuotas,
}

/// A file that the index proposes.
#[derive(Clone, Debug)]
pub struct Picked {
    pub id: FileId,
    pub path: PathBuf,
    pub size: u64,
    /// Bytes allocated.
    pub local: u64,
    accesses: u64,
    heat: Option<f64>,
    accessed: Option<i64>,
}

/// When a file was last recalled, and by whom.
pub(super) struct Recalled {
    pub at: Option<i64>,
    pub by: Option<String>,
}

/// How much a run may still take.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub files: u64,
    pub bytes: u64,
}

/// A lot of files.
#[derive(Default)]
pub(super) struct Chosen {
    pub files: Vec<Picked>,
    /// Whether there may be more.
    pub full: bool,
    /// All that the run has tried, these too.
    pub tried: HashSet<FileId>,
}

/// Allocated bytes that a trigger wants to have of files. It does not apply where it wants none.
struct Wanted {
    /// Of anybody's.
    share: f64,
    /// Of single users'.
    users: HashMap<u32, f64>,
}

impl Wanted {
    fn is_met(&self) -> bool {
        self.share <= 0.0 && self.users.is_empty()
    }

    /// Whether it wants a file of this user's, which counts from then on.
    fn take(&mut self, uid: u32, local: u64) -> bool {
        let user = self.users.get_mut(&uid);
        if self.share <= 0.0 && user.is_none() {
            return false;
        }
        self.share -= local as f64;
        if let Some(left) = user {
            *left -= local as f64;
            if *left <= 0.0 {
                self.users.remove(&uid);
            }
        }
        true
    }
}

/// Whether more than `pct` per cent of the space are in use, and by how many bytes; as df(1) reckons.
fn over(space: &SpaceInfo, pct: u8) -> f64 {
    let used = space.blocks.saturating_sub(space.blocks_free) as f64;
    let all = used + space.blocks_available as f64;
    (used - all * f64::from(pct) / 100.0) * space.fragment_size as f64
}

/// What is wanted of the share by the marks of space and inodes; `freeing`: between the marks, on the way down.
fn share_wants(trigger: &Trigger, space: &SpaceInfo, freeing: &mut bool) -> f64 {
    if let Some(above) = trigger.inodes_above {
        let used = space.files.saturating_sub(space.files_free);
        if space.files > 0 && used.saturating_mul(100) > space.files.saturating_mul(above.into()) {
            return f64::INFINITY;
        }
    }
    let (Some(above), Some(low)) = (trigger.space_above, trigger.low_mark()) else { return 0.0 };
    let below = over(space, low);
    // Begun above the high mark, it goes on to the low one.
    *freeing = below > 0.0 && (over(space, above) > 0.0 || *freeing);
    if *freeing { below } else { 0.0 }
}

/// What is wanted of single users by the marks of their quotas; `freeing`: those between the marks, on the way down.
fn users_want(trigger: &Trigger, quotas: &[(u32, Quota)], freeing: &mut BTreeSet<u32>) -> HashMap<u32, f64> {
    let (Some(above), Some(low)) = (trigger.user_quota_above, trigger.user_quota_low_mark()) else {
        freeing.clear();
        return HashMap::new();
    };
    let wants = quotas.iter().filter_map(|(uid, quota)| {
        let bound = quota.bytes_bound()? as f64;
        let over = |pct: u8| quota.bytes as f64 - bound * f64::from(pct) / 100.0;
        // Begun above the high mark, it goes on to the low one.
        let wanted = over(low) > 0.0 && (over(above) > 0.0 || freeing.contains(uid));
        wanted.then(|| (*uid, over(low)))
    });
    let wants: HashMap<u32, f64> = wants.collect();
    *freeing = wants.keys().copied().collect();
    wants
}

impl Manager {
    /// The quotas of all users who have something on the share, of those that have one.
    fn quotas(&self) -> Result<Vec<(u32, Quota)>, ChooseError> {
        let db = reader(self.index.path())?;
        let users = || {
            let mut users = db.prepare("SELECT DISTINCT uid FROM f WHERE parent <> 0")?;
            let users = users.query_map([], |row| Ok(row.get::<_, i64>(0)? as u32))?;
            Ok::<Vec<u32>, IndexError>(users.collect::<Result<_, _>>()?)
        };
        let mut quotas = Vec::new();
        for uid in users()? {
            quotas.extend(self.lower.user_quota(uid)?.map(|quota| (uid, quota)));
        }
        Ok(quotas)
    }

    /// What the rule's trigger wants. A dry run only looks.
    fn wanted(&self, rule: &Rule, dry: bool) -> Result<Wanted, ChooseError> {
        let trigger = &rule.trigger;
        if !rule.is_triggered() {
            return Ok(Wanted { share: f64::INFINITY, users: HashMap::new() });
        }
        let space = self.lower.space().map_err(IndexError::Share)?;
        let mut freeing = self.memory.is_freeing(&rule.name);
        let share = share_wants(trigger, &space, &mut freeing);
        if !dry {
            self.memory.set_freeing(&rule.name, freeing);
        }
        let mut users = HashMap::new();
        if let Some(above) = trigger.user_above {
            let db = reader(self.index.path())?;
            let query = "SELECT uid, sum(blocks) * 512 AS used FROM f WHERE parent <> 0 GROUP BY uid HAVING used > ?1";
            let mut over = db.prepare(query).map_err(IndexError::Database)?;
            let over = over.query_map([above as i64], |row| {
                Ok((row.get::<_, i64>(0)? as u32, row.get::<_, i64>(1)? as f64 - above as f64))
            });
            let over = over.map_err(IndexError::Database)?;
            users = over.collect::<Result<_, _>>().map_err(IndexError::Database)?;
        }
        if trigger.user_quota_above.is_some() {
            let quotas = self.quotas()?;
            let mut freeing = self.memory.freeing_users(&rule.name);
            for (uid, bytes) in users_want(trigger, &quotas, &mut freeing) {
                let wanted = users.entry(uid).or_default();
                *wanted = wanted.max(bytes);
            }
            if !dry {
                self.memory.set_freeing_users(&rule.name, freeing);
            }
            // Something else may have begun it.
            if quotas.is_empty() && users.is_empty() && share <= 0.0 {
                return Err(ChooseError::NoQuotas);
            }
        }
        Ok(Wanted { share, users })
    }

    /// Files that the rule takes, a lot at most; `tried` are left out, and grow.
    pub(super) fn choose(
        &self,
        rule: &Rule,
        mut left: Left,
        tried: HashSet<FileId>,
        dry: bool,
    ) -> Result<Chosen, ChooseError> {
        if self.index.is_empty() {
            return Err(IndexError::Empty.into());
        }
        let mut chosen = Chosen { tried, ..Chosen::default() };
        let mut wanted = self.wanted(rule, dry)?;
        if wanted.is_met() {
            return Ok(chosen);
        }
        self.each_match(rule, now_s(), &mut |file, uid| {
            if chosen.tried.contains(&file.id) {
                return true;
            }
            // The index does not know what files are told.
            let is_set =
                || seek(&*self.lower, file.id, Some(&file.path)).is_ok_and(|found| self.is_set(rule, &found.node));
            if rule.action == Action::Set && is_set() {
                return true;
            }
            if left.files == 0 || left.bytes == 0 || wanted.is_met() {
                return false;
            }
            if !wanted.take(uid, file.local) {
                return true;
            }
            left.files -= 1;
            left.bytes = left.bytes.saturating_sub(file.size);
            chosen.tried.insert(file.id);
            chosen.files.push(file);
            chosen.full = chosen.files.len() >= LOT;
            !chosen.full
        })?;
        Ok(chosen)
    }

    /// Every file that the index says matches, in the rule's order, until `each` says `false`.
    pub(super) fn each_match(
        &self,
        rule: &Rule,
        now: i64,
        each: &mut dyn FnMut(Picked, u32) -> bool,
    ) -> IndexResult<()> {
        self.index.take();
        let db = reader(self.index.path())?;
        let mut paths = Paths::new(self.index.path())?;
        let sql = format!(
            "SELECT ino, birth, parent, name, size, blocks, uid, accesses, heat, accessed FROM f WHERE {}{}",
            rule.filter(now),
            rule.order_by()
        );
        let mut matching = db.prepare(&sql)?;
        let mut rows = matching.query([])?;
        let by_path: Vec<&Condition> = rule.conditions.iter().filter(|condition| condition.is_of_path()).collect();
        while let Some(row) = rows.next()? {
            let Some(dir) = paths.of_dir(row.get(2)?)? else { continue };
            let path = dir.join(std::ffi::OsStr::from_bytes(name_of(row.get_ref(3)?)));
            let number = |at: usize| row.get::<_, i64>(at);
            let file = Picked {
                id: FileId { ino: number(0)? as u64, birth: number(1)? as u64 },
                path,
                size: number(4)? as u64,
                local: number(5)? as u64 * 512,
                accesses: number(7)? as u64,
                heat: row.get(8)?,
                accessed: row.get(9)?,
            };
            if by_path.iter().all(|condition| condition.matches_path(file.path.as_os_str().as_bytes()))
                && !each(file, number(6)? as u32)
            {
                break;
            }
        }
        Ok(())
    }

    /// The row of a file in the index, as a rule sees it.
    pub(super) fn picked(&self, node: &Inode, path: &Path) -> IndexResult<Option<(Picked, Recalled)>> {
        let db = reader(self.index.path())?;
        let mut row = db.prepare(
            "SELECT size, blocks, accesses, heat, accessed, recalled, recalled_by FROM f WHERE ino = ?1 AND birth = ?2",
        )?;
        let mut rows = row.query([node.id.ino as i64, node.id.birth as i64])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let number = |at: usize| row.get::<_, i64>(at);
        let picked = Picked {
            id: node.id,
            path: path.to_owned(),
            size: number(0)? as u64,
            local: number(1)? as u64 * 512,
            accesses: number(2)? as u64,
            heat: row.get(3)?,
            accessed: row.get(4)?,
        };
        Ok(Some((picked, Recalled { at: row.get(5)?, by: row.get(6)? })))
    }
}

impl Picked {
    /// The file as conditions see it.
    pub(super) fn subject<'a>(
        &'a self,
        attr: &'a Attr,
        project: &'a dyn Fn() -> Option<u32>,
        xattr: &'a dyn Fn(&str) -> Option<Vec<u8>>,
    ) -> Subject<'a> {
        Subject {
            path: self.path.as_os_str().as_bytes(),
            attr,
            project,
            accesses: self.accesses,
            heat: self.heat,
            accessed: self.accessed,
            xattr,
        }
    }

    /// What is known of a file that the index does not have.
    pub(super) fn unknown(found: &Found) -> Self {
        Self {
            id: found.node.id,
            path: found.path.clone(),
            size: found.attr.size,
            local: found.attr.blocks * 512,
            accesses: 0,
            heat: None,
            accessed: None,
        }
    }

    pub(super) fn uses(&self) -> (u64, Option<f64>, Option<i64>) {
        (self.accesses, self.heat, self.accessed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 100 blocks and 100 inodes, of which these are free.
    fn space(blocks: u64, files: u64) -> SpaceInfo {
        SpaceInfo {
            fragment_size: 10,
            blocks: 100,
            blocks_free: blocks,
            blocks_available: blocks,
            files: 100,
            files_free: files,
            block_size: 10,
            name_len_max: 255,
        }
    }

    #[test]
    fn marks_begin_above_one_and_go_on_to_the_other() {
        let trigger = Trigger { space_above: Some(80), space_below: Some(70), ..Trigger::default() };
        let wants = |free, mut freeing| (share_wants(&trigger, &space(free, 50), &mut freeing), freeing);
        assert_eq!([wants(20, false), wants(19, false), wants(20, true)], [(0.0, false), (110.0, true), (100.0, true)]);
        assert_eq!(wants(30, true), (0.0, false), "at the low mark it is over");
        let inodes = Trigger { inodes_above: Some(90), ..Trigger::default() };
        let wants = |free| share_wants(&inodes, &space(50, free), &mut false);
        assert_eq!([wants(10), wants(9)], [0.0, f64::INFINITY]);
    }

    #[test]
    fn marks_of_quotas_are_each_users_own() {
        let trigger = Trigger { user_quota_above: Some(80), user_quota_below: Some(50), ..Trigger::default() };
        let quota = |bytes, bytes_soft, bytes_hard| Quota { bytes, bytes_soft, bytes_hard, ..Quota::default() };
        let wants = |trigger: &Trigger, quota, on: &[u32]| {
            let mut freeing = on.iter().copied().collect();
            let wanted = users_want(trigger, &[(7, quota), (8, Quota::default())], &mut freeing);
            assert_eq!(wanted.keys().copied().collect::<BTreeSet<_>>(), freeing);
            wanted.get(&7).copied()
        };
        // The lower limit counts, whichever it is.
        assert_eq!(wants(&trigger, quota(80, 0, 100), &[]), None);
        assert_eq!(wants(&trigger, quota(81, 0, 100), &[]), Some(31.0));
        assert_eq!(wants(&trigger, quota(81, 100, 200), &[]), Some(31.0));
        assert_eq!(wants(&trigger, quota(81, 0, 200), &[]), None);
        assert_eq!(wants(&trigger, quota(1_000, 0, 0), &[7]), None, "no limit");
        // Begun, it goes on to the low mark; another user's way down is none of his.
        assert_eq!(wants(&trigger, quota(60, 0, 100), &[7]), Some(10.0));
        assert_eq!(wants(&trigger, quota(60, 0, 100), &[8]), None);
        assert_eq!(wants(&trigger, quota(50, 0, 100), &[7]), None);
        let usual = Trigger { user_quota_above: Some(80), ..Trigger::default() };
        assert_eq!(wants(&usual, quota(81, 0, 100), &[]), Some(11.0), "ten points less");
        assert_eq!(wants(&Trigger { space_above: Some(1), ..Trigger::default() }, quota(99, 0, 100), &[7]), None);
    }

    #[test]
    fn of_several_triggers_one_suffices() {
        let mut wanted = Wanted { share: 0.0, users: HashMap::from([(7, 100.0)]) };
        assert!(!wanted.take(8, 50) && wanted.take(7, 60) && wanted.take(7, 60) && wanted.is_met());
        let mut wanted = Wanted { share: 100.0, users: HashMap::from([(7, 150.0)]) };
        assert!(wanted.take(8, 50) && wanted.take(7, 60), "anybody's, while the share wants any");
        assert!(!wanted.take(8, 1) && wanted.take(7, 90) && wanted.is_met());
    }
}
