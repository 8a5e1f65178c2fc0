//! What schedules really came to: one that does nothing finds nothing.

use std::collections::BTreeMap;

use tierfs::record::Claim;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// How often each thing happened, by name.
    pub counts: BTreeMap<String, u64>,
    pub lease_waits: u64,
    pub deletions: u64,
}

impl Stats {
    pub fn count(&mut self, what: impl Into<String>) {
        *self.counts.entry(what.into()).or_default() += 1;
    }

    /// A record replaced another.
    pub fn saved(&mut self, before: Claim, after: Claim) {
        let step = match (before, after) {
            (Claim::Resident, Claim::Dual) => "archived",
            (Claim::Dual, Claim::Releasing) => "releasing",
            (Claim::Releasing, Claim::Stub) => "released",
            (Claim::Stub | Claim::Partial | Claim::Releasing, Claim::Dual) => "recalled",
            (Claim::Stub | Claim::Releasing, Claim::Partial) => "recalled in part",
            (Claim::Partial, Claim::Releasing) => "releasing a part",
            (Claim::Stub | Claim::Partial, Claim::Patched) => "written to while away",
            (Claim::Patched, Claim::Resident) => "patched, then whole",
            (Claim::Dual, Claim::Resident) => "changed while dual",
            (Claim::Stub | Claim::Partial | Claim::Releasing, Claim::Resident) => "cut while stub",
            _ => return,
        };
        self.count(step);
    }

    pub fn add(&mut self, other: &Self) {
        for (what, count) in &other.counts {
            *self.counts.entry(what.clone()).or_default() += count;
        }
        self.lease_waits += other.lease_waits;
        self.deletions += other.deletions;
    }

    pub fn of(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or_default()
    }
}
