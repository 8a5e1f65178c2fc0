//! How a request ended, and what several of them come to.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

use crate::types::StateTotal;

/// The end of a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Files that changed state.
    pub files: u64,
    /// Content bytes of those.
    pub bytes: u64,
    /// Files already as asked.
    pub unchanged: u64,
    pub skipped: u64,
    pub failed: u64,
    pub seconds: f64,
    /// For `status`: totals by state name.
    #[serde(default)]
    pub states: BTreeMap<String, StateTotal>,
    /// For `gc`: what was left alone, by why; `files` are objects.
    #[serde(default)]
    pub kept: BTreeMap<String, StateTotal>,
    /// For `gc`, where there are packs.
    #[serde(default)]
    pub packs: Option<PackTotals>,
    /// For `gc`: what was found in the bucket of each pair.
    #[serde(default)]
    pub pairs: BTreeMap<String, PairTotals>,
    /// For `status`: why the pair cannot be used at present, if so.
    #[serde(default)]
    pub pair_problem: Option<String>,
}

/// What a `gc` found with one pair.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairTotals {
    /// Objects, uploads and packs that nobody needs.
    pub files: u64,
    pub bytes: u64,
    /// Where there are packs.
    pub packs: Option<PackTotals>,
    /// Why it could not be gone through to the end.
    pub problem: Option<String>,
}

/// What packs have and hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackTotals {
    pub objects: u64,
    /// Of the objects.
    pub bytes: u64,
    /// Of members that records name.
    pub live_bytes: u64,
    /// All others: of files that changed or were removed, those that are still kept for `undelete` included, and of indexes.
    pub dead_bytes: u64,
    /// Packs of which nobody needs anything.
    pub needless: u64,
    /// Of these, deleted by this run.
    pub deleted: u64,
}

impl AddAssign for PackTotals {
    fn add_assign(&mut self, more: Self) {
        self.objects += more.objects;
        self.bytes += more.bytes;
        self.live_bytes += more.live_bytes;
        self.dead_bytes += more.dead_bytes;
        self.needless += more.needless;
        self.deleted += more.deleted;
    }
}

/// What several mounts did, together.
impl AddAssign for Summary {
    fn add_assign(&mut self, more: Self) {
        self.files += more.files;
        self.bytes += more.bytes;
        self.unchanged += more.unchanged;
        self.skipped += more.skipped;
        self.failed += more.failed;
        self.seconds += more.seconds;
        for (state, more) in more.states {
            let sum = self.states.entry(state).or_default();
            sum.files += more.files;
            sum.bytes += more.bytes;
            sum.local += more.local;
        }
        for (why, more) in more.kept {
            let sum = self.kept.entry(why).or_default();
            sum.files += more.files;
            sum.bytes += more.bytes;
        }
        if let Some(more) = more.packs {
            *self.packs.get_or_insert_default() += more;
        }
        for (pair, more) in more.pairs {
            let sum = self.pairs.entry(pair).or_default();
            sum.files += more.files;
            sum.bytes += more.bytes;
            if let Some(more) = more.packs {
                *sum.packs.get_or_insert_default() += more;
            }
            sum.problem = sum.problem.take().or(more.problem);
        }
        self.pair_problem = self.pair_problem.take().or(more.pair_problem);
    }
}
