//! The background scrub: reads every object of the share again, at a set rate, pass after pass, and compares it with its hashes.
//!
//! Nothing is recalled or changed. Where it is is remembered in the journal, so that a restart goes on there; a file that was half read is
//! read again. What is damaged goes to the dead-letter list, and stays with the administrator.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::protocol::{ScrubInfo, ScrubPass, WirePath};
use crate::catalog::walk::{Found, Place, Step, Walk, on_own_thread, resolve};
use crate::engine::{Candidate, Engine, EngineError, EngineResult, Pace};
use crate::ports::{Clock, Journal, Lower, RemoteErrorKind, Task};

/// Name of the journal's value that holds where the scrub is.
pub const VALUE: &str = "scrub";
/// How often that is written at most.
const REMEMBER_EVERY: Duration = Duration::from_secs(1);
/// A pass begins so long after the one before began, or when that ends.
const PASS_EVERY_S: i64 = 24 * 3_600;
/// How often it is looked whether there is something to do.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Attempts at an object that fails as if the remote were away, while it answers other questions.
const ATTEMPTS: u32 = 3;
/// Waiting time after a failure, doubled up to the maximum.
const BACK_OFF_FIRST: Duration = Duration::from_secs(1);
const BACK_OFF_MAX: Duration = Duration::from_secs(60);

/// What is remembered, as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Memory {
    /// Of the pass that runs: names of directories and how far they were read.
    place: Vec<(WirePath, i64)>,
    pass: Option<ScrubPass>,
    last: Option<ScrubPass>,
}

/// Scrubs one mount.
pub struct Scrub {
    lower: Arc<dyn Lower>,
    engine: Arc<Engine>,
    journal: Arc<dyn Journal>,
    clock: Arc<dyn Clock>,
    rate: u64,
    pace: Pace,
    info: Mutex<ScrubInfo>,
}

impl Scrub {
    /// `rate`: bytes a second, over 0.
    pub fn new(
        lower: Arc<dyn Lower>,
        engine: Arc<Engine>,
        journal: Arc<dyn Journal>,
        clock: Arc<dyn Clock>,
        rate: u64,
    ) -> Arc<Self> {
        let info = Mutex::new(ScrubInfo { rate, ..ScrubInfo::default() });
        Arc::new(Self { lower, engine, journal, clock, rate, pace: Pace::new(rate), info })
    }

    /// Where it is and what it found.
    pub fn info(&self) -> ScrubInfo {
        self.info.lock().clone()
    }

    /// Works until the runtime ends.
    pub async fn run(self: Arc<Self>) {
        let mut memory = self.recollect().await;
        self.show(&memory);
        tracing::info!(rate = self.rate, resumed = memory.pass.is_some(), "the scrub begins");
        loop {
            let now = self.clock.now().secs;
            let due = memory.last.is_none_or(|last| (last.begun + PASS_EVERY_S <= now) || last.begun > now);
            if memory.pass.is_none() && due {
                memory.pass = Some(ScrubPass { begun: now, ..ScrubPass::default() });
            }
            let ended = memory.pass.is_none() || self.pass(&mut memory).await;
            tokio::time::sleep(if ended { LOOK_EVERY } else { BACK_OFF_MAX }).await;
        }
    }

    /// What was remembered. What cannot be read costs a pass from the beginning.
    async fn recollect(&self) -> Memory {
        match self.journal.value(VALUE).await {
            Ok(Some(text)) => serde_json::from_str(&text).unwrap_or_else(|error| {
                tracing::warn!("where the scrub was is not understood, so it begins anew: {error}");
                Memory::default()
            }),
            Ok(None) => Memory::default(),
            Err(error) => {
                tracing::warn!("where the scrub was is not known, so it begins anew: {error}");
                Memory::default()
            }
        }
    }

    async fn remember(&self, memory: &Memory) {
        let stored = match serde_json::to_string(memory) {
            Ok(text) => self.journal.set_value(VALUE, Some(text)).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = stored {
            tracing::warn!("where the scrub is could not be remembered: {error}");
        }
    }

    fn show(&self, memory: &Memory) {
        let mut info = self.info.lock();
        info.pass = memory.pass;
        info.last = memory.last;
    }

    /// Goes on with the pass; `false`: not to its end.
    async fn pass(self: &Arc<Self>, memory: &mut Memory) -> bool {
        let (found, mut files) = mpsc::channel(1);
        let (lower, engine) = (self.lower.clone(), self.engine.clone());
        let places = memory.place.iter().map(|(name, offset)| Place { name: to_name(name), offset: *offset }).collect();
        let walking = tokio::spawn(on_own_thread(move || walk_remote(&*lower, &engine, places, &found)));
        let mut remembered = Instant::now();
        while let Some((file, place)) = files.recv().await {
            self.info.lock().at = Some(WirePath::from_path(&file.path));
            let read = self.read(&file).await;
            let pass = memory.pass.get_or_insert_default();
            match read {
                Ok(None) => {}
                Ok(Some(bytes)) => {
                    pass.files += 1;
                    pass.bytes += bytes;
                }
                Err(_) => pass.damaged += 1,
            }
            memory.place = place;
            self.show(memory);
            if remembered.elapsed() >= REMEMBER_EVERY {
                self.remember(memory).await;
                remembered = Instant::now();
            }
        }
        if !matches!(walking.await, Ok(Some(true))) {
            // The next look begins where this pass got to.
            tracing::warn!("the scrub could not walk over the share to its end; it tries again");
            self.remember(memory).await;
            return false;
        }
        if let Some(pass) = memory.pass.take() {
            let ended = ScrubPass { ended: Some(self.clock.now().secs), ..pass };
            tracing::info!(files = pass.files, bytes = pass.bytes, damaged = pass.damaged, "a scrub pass has ended");
            memory.last = Some(ended);
        }
        memory.place.clear();
        self.show(memory);
        self.remember(memory).await;
        true
    }

    /// Reads one file's object; waits as long as the remote is away. An error: it is on the dead-letter list.
    async fn read(self: &Arc<Self>, file: &Candidate) -> EngineResult<Option<u64>> {
        let (mut pause, mut attempts) = (BACK_OFF_FIRST, 0);
        let outcome = loop {
            while self.engine.is_stopping() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            let error = match self.engine.scrub(&file.node, &self.pace).await {
                Err(error) if error.is_transient() || error.is_configuration() => error,
                // To be read it would have to be restored from its archive class first, which costs.
                Err(EngineError::Remote { source, .. }) if source.kind == RemoteErrorKind::Archived => return Ok(None),
                ended => break ended,
            };
            attempts += 1;
            // Some stores deny what is not there.
            if attempts >= ATTEMPTS && self.engine.remote_answers().await {
                break Err(error);
            }
            self.info.lock().problem = Some(error.to_string());
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(BACK_OFF_MAX);
        };
        self.info.lock().problem = None;
        match &outcome {
            Ok(Some(_)) => self.engine.note_success(&[Task::Scrub], file.node.id).await,
            Ok(None) => {}
            Err(error) if error.reason().is_none() => return Ok(None),
            Err(error) => {
                tracing::error!(path = %file.path.display(), "the scrub found a damaged file: {error}");
                self.engine.note_failure(Task::Scrub, file, error).await;
            }
        }
        outcome
    }
}

fn to_name(name: &WirePath) -> OsString {
    name.to_path().into_os_string()
}

/// Hands on every file that is or may be remote, with where the walk is behind it. Whether it came to the end.
fn walk_remote(
    lower: &dyn Lower,
    engine: &Engine,
    places: Vec<Place>,
    found: &mpsc::Sender<(Candidate, Vec<(WirePath, i64)>)>,
) -> bool {
    let begun = resolve(lower, Path::new("")).and_then(|root| Walk::from_place(lower, root, &places));
    let mut walk = match begun {
        Ok(walk) => walk,
        Err(error) => {
            tracing::warn!("the share's root cannot be read: {error}");
            return false;
        }
    };
    while let Some(step) = walk.step() {
        match step {
            Step::File(Found { node, attr, path }) if engine.may_be_remote(&node) => {
                let place = walk.place().into_iter();
                let place =
                    place.map(|place| (WirePath::from_path(&PathBuf::from(place.name)), place.offset)).collect();
                if found.blocking_send((Candidate { node, attr, path }, place)).is_err() {
                    return false;
                }
            }
            Step::File(_) => {}
            Step::Failed(path, error) => tracing::warn!(path = %path.display(), "left out of this scrub: {error}"),
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_understood_again() {
        let pass = ScrubPass { begun: 5, ended: None, files: 1, bytes: 2, damaged: 3 };
        let place = vec![(WirePath::Text(String::new()), i64::MAX), (WirePath::Bytes { bytes: vec![0xff] }, -1)];
        let memory = Memory { place, pass: Some(pass), last: Some(pass) };
        let text = serde_json::to_string(&memory).unwrap();
        assert_eq!(serde_json::from_str::<Memory>(&text).unwrap(), memory);
        assert!(serde_json::from_str::<Memory>("{}").is_err());
    }
}
