//! A stub whose record is lost looks like a resident file that is all holes, and would be read as zeros. Only its object's key, which
//! carries the inode and the path, can tell: a check asks for it.

use std::path::Path;
use std::sync::Arc;

use super::cell::Cell;
use super::error::{EngineError, EngineResult};
use super::facts::{Facts, FactsError};
use super::keys::object_key;
use super::owner::{generation_of, is_own};
use super::verify::Checked;
use super::{Engine, Target, blocking};
use crate::record::{Claim, ObjectRef, Record};
use crate::tier::Activity;
use crate::types::{Generation, ObjectKey};

impl Engine {
    /// Of a file that claims nothing: whether it is a stub that lost its record. With `repair`, and if mtime and length are those of the
    /// object that was made for it last, it is one again. `path` is relative to the share: a file that was renamed since is not found so.
    pub(super) async fn check_lost(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        path: &Path,
        repair: bool,
    ) -> EngineResult<Checked> {
        if self.store().is_err() {
            return Ok(Checked::Nothing);
        }
        let failed = EngineError::lower(cell.node.id);
        let attr = self.lower.stat(&cell.node).map_err(&failed)?;
        // With a record it is what that says: changed since its last object was made.
        let bare = || cell.lock().record == Record::unclaimed();
        if attr.size == 0 || !bare() || self.has_local_data(cell, attr.size).await? {
            return Ok(Checked::Nothing);
        }
        let Some((target, key)) = self.last_object(cell, path, attr.size).await? else { return Ok(Checked::Nothing) };
        // What is not as it was when the object was made may be a change, and the object on its way out.
        let found = self
            .described(cell, &target, &key)
            .await?
            .filter(|object| object.len == attr.size && object.mtime == attr.mtime);
        if !bare() || self.has_local_data(cell, attr.size).await? {
            return Ok(Checked::Nothing);
        }
        let lost = |way_out| EngineError::RecordLost { file: cell.node.id, object: key.to_string(), way_out };
        match found {
            None => Err(lost("Nothing was changed: its times or the object's metadata are others")),
            Some(_) if !repair => Err(lost("`tierfs check --repair` makes it a stub again")),
            Some(object) => {
                let (this, cell) = (self.clone(), cell.clone());
                blocking(move || this.claim_again(&cell, object)).await?
            }
        }
    }

    /// The newest object under this path that was made for the file and has `len` bytes, and the pair that has it. All pairs are asked: without the answer
    /// of one, nobody knows which is the newest.
    async fn last_object(&self, cell: &Cell, path: &Path, len: u64) -> EngineResult<Option<(Arc<Target>, ObjectKey)>> {
        let mut newest = None;
        for target in self.stores()? {
            if let Some(key) = self.last_object_in(&target, cell, path, len).await?
                && newest.as_ref().is_none_or(|(_, known)| generation_of(known) < generation_of(&key))
            {
                newest = Some((target, key));
            }
        }
        Ok(newest)
    }

    async fn last_object_in(
        &self,
        target: &Target,
        cell: &Cell,
        path: &Path,
        len: u64,
    ) -> EngineResult<Option<ObjectKey>> {
        let any = object_key(&target.prefix, path, cell.node.id, Generation(0)).0;
        let below = any.strip_prefix(&target.prefix).unwrap_or(&any).trim_start_matches('/');
        let of_file = below.strip_suffix('0').unwrap_or(below);
        let listed = target.remote.list(of_file, None).await.map_err(EngineError::remote(cell.node.id))?;
        let asked = any.strip_suffix('0').unwrap_or(&any);
        let mut objects: Vec<_> =
            listed.into_iter().filter(|(key, size)| *size == len && is_own(cell.node.id, key)).collect();
        // A store may list what was not asked for.
        objects.retain(|(key, _)| key.0.starts_with(asked) && !key.0[asked.len()..].contains(['/', '@']));
        let objects = objects.into_iter();
        Ok(objects.map(|(key, _)| key).max_by_key(generation_of))
    }

    /// What a record would say of an object, from what travels with it. `None`: that is not enough.
    async fn described(&self, cell: &Cell, target: &Target, key: &ObjectKey) -> EngineResult<Option<ObjectRef>> {
        let failed = EngineError::remote(cell.node.id);
        let info = target.remote.head(key).await.map_err(&failed)?;
        let Ok(facts) = Facts::of(&info) else { return Ok(None) };
        if generation_of(key) != Some(facts.generation) || info.etag.is_empty() {
            return Ok(None);
        }
        match facts.object(&*target.remote, target.pair.clone(), key.clone()).await {
            Ok(object) => Ok(Some(object)),
            Err(FactsError::Incomplete(_)) => Ok(None),
            Err(FactsError::Remote(error)) => Err(failed(error)),
        }
    }

    /// Under the cell's lock: nothing happened to the file since it was looked at, and it is a stub, durably.
    fn claim_again(self: &Arc<Self>, cell: &Arc<Cell>, object: ObjectRef) -> EngineResult<Checked> {
        let mut inner = cell.lock();
        let idle =
            inner.machine.activity() == Activity::None && inner.machine.handles() == 0 && !inner.machine.is_unknown();
        let attr = self.lower.stat(&cell.node).map_err(EngineError::lower(cell.node.id))?;
        if !idle || inner.record != Record::unclaimed() || (attr.size, attr.mtime) != (object.len, object.mtime) {
            return Ok(Checked::Nothing);
        }
        let record =
            Record { claim: Claim::Stub, generation: object.generation, object: Some(object), ..Record::unclaimed() };
        // What the kernel keeps of it are zeros.
        self.warm.let_go(cell.node.id);
        self.save_durably(cell, &mut inner, record)?;
        drop(inner);
        self.announce_change(cell.node.id);
        Ok(Checked::Repaired)
    }
}
