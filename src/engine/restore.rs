//! Content whose object lies in an archive class: its restore is asked for, and who wanted the content waits or is told, as the pair says.
//!
//! Nothing here is durable: the store knows which restores are under way, and says so to whoever asks again.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::error::{EngineError, EngineResult};
use super::{Engine, Target};
use crate::ports::{RemoteError, RemoteErrorKind, RestoreState};
use crate::record::ObjectRef;
use crate::types::{FileId, ObjectKey, Timestamp};

/// How often a store is asked about one object at most, however many want it.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// Between two looks of who waits: at first, and at last.
const WAIT_PAUSE_FIRST: Duration = Duration::from_secs(1);
const WAIT_PAUSE_MAX: Duration = Duration::from_secs(60);
/// Who waits is told that it failed after so long: the slowest class takes two days.
const WAIT_MAX: Duration = Duration::from_secs(72 * 3600);
/// Objects remembered; what is forgotten is looked at again.
const ASKED_MAX: usize = 100_000;

/// What a pair wants done about archived objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestorePolicy {
    /// Readers wait for the restore; otherwise they are told.
    pub wait: bool,
    /// Days a restored object can be read.
    pub days: u32,
}

/// A restore that is under way as far as we know.
#[derive(Clone, Copy)]
struct Asked {
    since: Timestamp,
    looked: Instant,
}

/// The restores of one mount.
#[derive(Default)]
pub(super) struct Restores {
    asked: Mutex<HashMap<ObjectKey, Asked>>,
}

impl Restores {
    /// Whose turn it is to ask the store: `Some` is what somebody else has just found, or is finding, out.
    fn turn(&self, key: &ObjectKey, now: Timestamp) -> Option<Timestamp> {
        let mut asked = self.asked.lock();
        if let Some(known) = asked.get_mut(key) {
            if known.looked.elapsed() < LOOK_PAUSE {
                return Some(known.since);
            }
            known.looked = Instant::now();
            return None;
        }
        if asked.len() >= ASKED_MAX {
            asked.clear();
        }
        asked.insert(key.clone(), Asked { since: now, looked: Instant::now() });
        None
    }

    fn since(&self, key: &ObjectKey) -> Option<Timestamp> {
        self.asked.lock().get(key).map(|asked| asked.since)
    }

    fn forget(&self, key: &ObjectKey) {
        self.asked.lock().remove(key);
    }
}

impl Engine {
    /// For how many seconds an object has been on its way back from an archive class, as far as this mount knows.
    pub fn restoring_for_s(&self, key: &ObjectKey) -> Option<u64> {
        self.restores.since(key).map(|since| self.seconds_since(since))
    }

    /// All of an object's content has come: nothing of it is on its way back any more.
    pub fn restore_is_over(&self, object: &ObjectRef) {
        self.restores.forget(&object.key);
        if object.has_manifest() {
            self.restores.forget(&object.manifest_key());
        }
    }

    fn seconds_since(&self, since: Timestamp) -> u64 {
        u64::try_from(self.clock.now().secs - since.secs).unwrap_or(0)
    }

    /// To be called when a read of `object`, or of its manifest, failed with `error`. `Ok`: it was in an archive class and can be read now, so
    /// read again. Otherwise it cannot, for now: its restore is under way ([`EngineError::Archived`]), or `error` was another one.
    /// Waits as long as the pair wants it and `cancelled` does not end.
    pub async fn restored(
        &self,
        file: FileId,
        object: &ObjectRef,
        error: RemoteError,
        cancelled: impl Future<Output = ()>,
    ) -> EngineResult<()> {
        if error.kind != RemoteErrorKind::Archived {
            return Err(EngineError::Remote { file, source: error });
        }
        let target = self.target_of(file, object)?;
        let policy = target.restore;
        let keys = [Some(object.key.clone()), object.has_manifest().then(|| object.manifest_key())];
        let work = async {
            let began = Instant::now();
            let mut pause = WAIT_PAUSE_FIRST;
            loop {
                let mut since = None;
                for key in keys.iter().flatten() {
                    since = self.ask_for(file, key, &target).await?.or(since);
                }
                let Some(since) = since else { return Ok(()) };
                if !policy.wait || began.elapsed() >= WAIT_MAX {
                    let for_s = self.seconds_since(since);
                    return Err(EngineError::Archived { file, object: object.key.to_string(), for_s });
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(WAIT_PAUSE_MAX);
            }
        };
        tokio::select! {
            biased;
            () = cancelled => Err(EngineError::Cancelled),
            ended = work => ended,
        }
    }

    /// Has an object restored if nobody has yet. `None`: it can be read.
    async fn ask_for(&self, file: FileId, key: &ObjectKey, target: &Target) -> EngineResult<Option<Timestamp>> {
        let now = self.clock.now();
        if let Some(since) = self.restores.turn(key, now) {
            return Ok(Some(since));
        }
        let (remote, days) = (&target.remote, target.restore.days.max(1));
        let state = async {
            match remote.head(key).await?.restore {
                RestoreState::Archived => {
                    let state = remote.restore(key, days).await?;
                    tracing::info!(%file, object = %key, "its object is in an archive class: a restore is asked for");
                    Ok(state)
                }
                state => Ok(state),
            }
        };
        match state.await {
            Ok(RestoreState::Readable) => {
                self.restores.forget(key);
                Ok(None)
            }
            Ok(RestoreState::Archived | RestoreState::Restoring) => Ok(Some(self.restores.since(key).unwrap_or(now))),
            Err(error) => {
                // Nobody has asked, so the next one does.
                self.restores.forget(key);
                Err(EngineError::Remote { file, source: error })
            }
        }
    }
}
