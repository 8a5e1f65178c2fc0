//! The pairs of a mount: what they are, and which of them a file is about.
//!
//! The first is the one that files go to unless it is said otherwise; what is stored already names its pair. Settings change while the mount
//! runs ([`Engine::replace_target`]): who begins something takes a pair as it is then, and keeps it to the end. So a copy is made of
//! chunks of one size and over connections of one configuration, whatever is edited meanwhile.

use std::sync::Arc;

use parking_lot::RwLock;

use super::error::{EngineError, EngineResult, PeerTrouble};
use super::health::{Health, Watched};
use super::totals::Totals;
use super::{Engine, Packing, RestorePolicy, owner};
use crate::ports::Remote;
use crate::record::{ObjectRef, PairRef, Record};
use crate::remote::packs::Packed;
use crate::types::{FileId, Inode, ObjectKey, PairName, RecallPolicy, usual_chunk_size};

/// The remote half of a mounted pair.
#[derive(Clone)]
pub struct Target {
    pub pair: PairRef,
    /// What keys start with; no slashes at its ends; may be empty.
    pub prefix: String,
    pub remote: Arc<dyn Remote>,
    /// Bytes per chunk, a power of two; `None`: by the length of the content ([`usual_chunk_size`]).
    pub chunk_size: Option<u32>,
    /// Seconds a superseded or deleted object is kept.
    pub retention_s: u64,
    /// Seconds the object of a file is kept whose content was all brought back; `None`: until the file changes.
    pub recalled_for_s: Option<u64>,
    /// The other end is a share with the same files (`role = gpeer`), unless it was found to be a plain store.
    pub peer: bool,
    /// What a read of a stub brings back, unless its directory says otherwise.
    pub recall: RecallPolicy,
    /// What happens to who wants content that lies in an archive class.
    pub restore: RestorePolicy,
    /// Which files share objects; `None`: none.
    pub pack: Option<Packing>,
}

impl Target {
    /// Bytes per chunk of a content of `len` bytes.
    pub fn chunk_size(&self, len: u64) -> u32 {
        self.chunk_size.unwrap_or_else(|| usual_chunk_size(len))
    }

    /// A key below the pair's prefix.
    pub(super) fn own_key(&self, name: &str) -> ObjectKey {
        ObjectKey(if self.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.prefix) })
    }
}

/// A pair, and how its calls go.
struct Bound {
    target: Arc<Target>,
    health: Arc<Health>,
}

impl Bound {
    /// A pair of which nothing is known yet.
    fn new(target: Target, totals: Arc<Totals>) -> Self {
        let health = Arc::<Health>::default();
        // Also where nothing is packed any more: what was is there.
        let remote = Packed::over(target.remote.clone());
        let remote = Arc::new(Watched { remote, health: health.clone(), totals });
        Self { target: Arc::new(Target { remote, ..target }), health }
    }
}

/// All pairs of a mount, the one that files go to first.
pub(super) struct Targets {
    all: RwLock<Vec<Bound>>,
    totals: Arc<Totals>,
}

impl Targets {
    pub(super) fn new(first: Option<Target>, totals: Arc<Totals>) -> Self {
        let all = first.map(|target| Bound::new(target, totals.clone())).into_iter().collect();
        Self { all: RwLock::new(all), totals }
    }

    fn first(&self) -> Option<Arc<Target>> {
        self.all.read().first().map(|bound| bound.target.clone())
    }

    fn find(&self, wanted: impl Fn(&PairRef) -> bool) -> Option<Arc<Target>> {
        self.all.read().iter().find(|bound| wanted(&bound.target.pair)).map(|bound| bound.target.clone())
    }
}

/// Why a pair's new settings do not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    #[error("the mount does not have it")]
    Unknown,
    #[error("its clusters, share, bucket or prefix are others, and stored stubs carry the old ones")]
    OtherPlace,
    #[error("its role is another one, and a mount keeps the role that it began with")]
    OtherRole,
}

impl Engine {
    /// Adds a pair that files may go to, too, and whose stubs are served. Before anybody is.
    pub fn add_target(&self, target: Target) {
        self.targets.all.write().push(Bound::new(target, self.targets.totals.clone()));
    }

    /// Has a pair be as `target` says, for all that begins from now on; what runs goes on as it began.
    pub fn replace_target(&self, target: Target) -> Result<(), NotTaken> {
        let mut all = self.targets.all.write();
        let bound = all.iter_mut().find(|bound| bound.target.pair.name == target.pair.name);
        let bound = bound.ok_or(NotTaken::Unknown)?;
        if bound.target.pair != target.pair || bound.target.prefix != target.prefix {
            return Err(NotTaken::OtherPlace);
        }
        if bound.target.peer != target.peer {
            return Err(NotTaken::OtherRole);
        }
        // What was wrong with it may be what was mended.
        *bound = Bound::new(target, self.targets.totals.clone());
        drop(all);
        // What waited for the endpoint, or for another retention, is looked at again.
        self.deletions.notify_one();
        Ok(())
    }

    /// The pair that files go to unless it is said otherwise.
    pub fn target(&self) -> EngineResult<Arc<Target>> {
        self.targets.first().ok_or(EngineError::NoPair)
    }

    /// All pairs, the one that files go to first.
    pub fn all_targets(&self) -> Vec<Arc<Target>> {
        self.targets.all.read().iter().map(|bound| bound.target.clone()).collect()
    }

    /// The pair of this name.
    pub fn target_named(&self, name: &PairName) -> Option<Arc<Target>> {
        self.targets.find(|pair| pair.name == *name)
    }

    /// The pair that holds an object.
    pub(super) fn target_of(&self, file: FileId, object: &ObjectRef) -> EngineResult<Arc<Target>> {
        self.targets.find(|pair| *pair == object.pair).ok_or_else(|| self.foreign(file, &object.pair))
    }

    fn foreign(&self, file: FileId, found: &PairRef) -> EngineError {
        let said = |pair: &PairRef| format!("{}, {}:{}", pair.name, pair.remote_cluster, pair.remote_share);
        let mounted: Vec<String> = self.all_targets().iter().map(|target| said(&target.pair)).collect();
        EngineError::ForeignPair {
            file,
            found: found.name.clone(),
            found_share: format!("{}:{}", found.remote_cluster, found.remote_share),
            mounted: if mounted.is_empty() { "none".into() } else { mounted.join("; ") },
        }
    }

    /// The pair, if its other end is a store of objects.
    pub(super) fn store(&self) -> EngineResult<Arc<Target>> {
        match self.target()? {
            target if target.peer => Err(EngineError::Peer { file: self.lower.root().id, why: PeerTrouble::NoCopies }),
            target => Ok(target),
        }
    }

    /// All pairs, if their other ends are stores of objects.
    pub(super) fn stores(&self) -> EngineResult<Vec<Arc<Target>>> {
        self.store().map(|_| self.all_targets())
    }

    /// The names of the pairs that are mounted, the one that files go to first.
    pub fn pair_names(&self) -> Vec<PairName> {
        self.targets.all.read().iter().map(|bound| bound.target.pair.name.clone()).collect()
    }

    /// The name of the pair that files go to, for messages.
    pub fn pair_name(&self) -> Option<String> {
        self.targets.first().map(|target| target.pair.name.to_string())
    }

    /// Why a pair cannot be used at present, as the last calls show.
    pub fn pair_problem(&self) -> Option<String> {
        self.targets.all.read().iter().find_map(|bound| bound.health.problem())
    }

    /// Of the mounted pairs' objects only: anything else on a file is named, and never acted upon (R7). The same for a record that anybody
    /// may have written, unless its object was made for this very file.
    pub(super) fn check_pair(&self, node: &Inode, record: &Record) -> EngineResult<Arc<Target>> {
        let Some(object) = &record.object else { return self.target() };
        let target = self.target_of(node.id, object)?;
        // Whoever may write the file below the mount may write such a record, too, and would read what is not his.
        if !self.lower.features().trusted_xattrs && !owner::is_own(node.id, &object.key) {
            return Err(EngineError::Unproven { file: node.id, object: object.key.to_string() });
        }
        Ok(target)
    }
}
