//! Where the pairs of a mount lie. Two may have one bucket, with one prefix or one below the other's.
//!
//! An object in such a place is one object, by whichever pair it is found. So who asks whether it is needed asks by its key alone: records and
//! notes of every pair count. It is looked at once, by the pair whose prefix is the longest, and goes after the longest retention of all that
//! may mean it. Names of buckets tell that, not endpoints: where two pairs only seem to lie in one place, objects stay longer than they must.

use std::sync::Arc;

use super::error::EngineResult;
use super::{Engine, Target};
use crate::types::{ContentHash, ObjectKey};

/// Whether `prefix` is that of a key or of a pair below `above`.
fn is_below(above: &str, name: &str) -> bool {
    above.is_empty() || name.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'))
}

impl Target {
    fn bucket(&self) -> &str {
        self.pair.remote_share.split('/').next().unwrap_or_default()
    }

    /// The same for pairs of the same remote cluster, bucket and prefix.
    pub(super) fn place_id(&self) -> [u8; 8] {
        let place = format!("{}:{}/{}", self.pair.remote_cluster, self.bucket(), self.prefix);
        ContentHash::of(place.as_bytes()).0[..8].try_into().unwrap_or_default()
    }

    /// Whether all of `other` lies in what this one is about, or is the same place.
    fn holds(&self, other: &Target) -> bool {
        self.bucket() == other.bucket() && (self.prefix == other.prefix || is_below(&self.prefix, &other.prefix))
    }
}

impl Engine {
    /// The pairs, if their other ends are stores, the one that files go to first; of several in one place the first alone.
    pub fn places(&self) -> EngineResult<Vec<Arc<Target>>> {
        let mut places: Vec<Arc<Target>> = Vec::new();
        for target in self.stores()? {
            if !places.iter().any(|known| known.place_id() == target.place_id()) {
                places.push(target);
            }
        }
        Ok(places)
    }

    /// Seconds that what is found in a pair's place is kept: the longest that any pair says which may mean it.
    pub(super) fn retention_in(&self, target: &Target) -> u64 {
        let all = self.all_targets();
        let meant = all.iter().filter(|other| target.holds(other) || other.holds(target));
        meant.map(|other| other.retention_s).fold(target.retention_s, u64::max)
    }

    /// Whether a key in a pair's place is looked at with another pair, whose prefix is longer.
    pub(super) fn is_of_another(&self, target: &Target, key: &ObjectKey) -> bool {
        self.all_targets().iter().any(|other| {
            other.pair.remote_cluster == target.pair.remote_cluster
                && other.prefix.len() > target.prefix.len()
                && target.holds(other)
                && is_below(&other.prefix, &key.0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::is_below;

    #[test]
    fn a_prefix_ends_at_a_slash() {
        for (above, name, below) in [
            ("", "a", true),
            ("", "pre/a", true),
            ("pre", "pre/sub", true),
            ("pre", "pre/sub/a@1-2.3", true),
            ("pre", "prefix", false),
            ("pre", "pre", false),
            ("pre/sub", "pre/a", false),
        ] {
            assert_eq!(is_below(above, name), below, "{above:?} {name:?}");
        }
    }
}
