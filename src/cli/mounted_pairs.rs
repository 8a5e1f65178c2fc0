//! The pairs that a process serves a share with: made when it starts, and made anew when they were edited (R8).
//!
//! What runs goes on with what it began with: the engine keeps the old pair, and with it its connections, as long as a transfer holds it.
//! What cannot change under a mount is refused with the reason, and then nothing changes.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::AbortHandle;

use super::exit::CliError;
use super::other_end::{has_peer, remote_config, target, watch_pair};
use crate::control::pairs::{PairProblems, ReloadPair};
use crate::control::protocol::PairReloaded;
use crate::engine::{Engine, NotTaken, Target};
use crate::pair::{Pair, RemoteRole, Store, capabilities};
use crate::remote::S3Remote;
use crate::sync::Ends;
use crate::types::PairName;

/// A pair that is served.
struct Mounted {
    pair: Pair,
    remote: S3Remote,
    /// Looks whether its endpoint answers.
    watch: Option<AbortHandle>,
}

/// All pairs of this process, the one that files go to first.
pub(super) struct MountedPairs {
    config_dir: PathBuf,
    state_dir: PathBuf,
    all: Mutex<Vec<Mounted>>,
    engine: OnceLock<Arc<Engine>>,
    sync: OnceLock<Arc<Ends>>,
    problems: Arc<PairProblems>,
    /// One edit after the other.
    one: tokio::sync::Mutex<()>,
}

impl MountedPairs {
    /// Makes the connections; sends no request.
    pub(super) async fn connect(pairs: &[Pair], config_dir: PathBuf, state_dir: PathBuf) -> Result<Self, CliError> {
        let mut all = Vec::new();
        for pair in pairs {
            let remote = connect(pair).await.map_err(CliError::Failed)?;
            all.push(Mounted { pair: pair.clone(), remote, watch: None });
        }
        Ok(Self {
            config_dir,
            state_dir,
            all: Mutex::new(all),
            engine: OnceLock::new(),
            sync: OnceLock::new(),
            problems: Arc::default(),
            one: tokio::sync::Mutex::default(),
        })
    }

    /// The pairs as the engine wants them, the one that files go to first.
    pub(super) fn targets(&self) -> Vec<Target> {
        let all = self.all.lock();
        let made = all.iter().map(|mounted| {
            let probed = capabilities::load(&self.state_dir, &mounted.pair.name);
            target(&mounted.pair, Arc::new(mounted.remote.clone()), probed)
        });
        made.collect()
    }

    /// Who is told of edits; once each.
    pub(super) fn tell(&self, engine: &Arc<Engine>, sync: Option<&Arc<Ends>>) {
        // A second one would be a mistake of assembly; the first stays.
        let _ = self.engine.set(engine.clone());
        if let Some(sync) = sync {
            let _ = self.sync.set(sync.clone());
        }
    }

    /// The connections of the pair that files go to.
    pub(super) fn first_remote(&self) -> Option<S3Remote> {
        self.all.lock().first().map(|mounted| mounted.remote.clone())
    }

    /// What was found wrong with each.
    pub(super) fn problems(&self) -> Arc<PairProblems> {
        self.problems.clone()
    }

    /// Looks whether the endpoints answer, until they do. On the runtime that is entered.
    pub(super) fn watch(&self) {
        for mounted in self.all.lock().iter_mut() {
            self.watch_one(mounted);
        }
    }

    fn watch_one(&self, mounted: &mut Mounted) {
        let name = mounted.pair.name.clone();
        // Who is used as a plain store is asked as one.
        let peer = has_peer(&mounted.pair, capabilities::load(&self.state_dir, &name));
        let role = if peer { RemoteRole::Gpeer } else { RemoteRole::Gfs };
        let watching = tokio::spawn(watch_pair(self.problems.clone(), name, mounted.remote.clone(), role));
        if let Some(before) = mounted.watch.replace(watching.abort_handle()) {
            before.abort();
        }
    }

    /// As the control socket wants it.
    pub(super) fn reloader(self: &Arc<Self>) -> ReloadPair {
        let this = self.clone();
        Box::new(move |name| {
            let this = this.clone();
            Box::pin(async move { this.reload(&name).await })
        })
    }

    /// Reads a pair's file again, and its credentials, and has both count for all that begins from now on.
    pub(super) async fn reload(&self, name: &PairName) -> Result<PairReloaded, String> {
        let _one = self.one.lock().await;
        let Some(engine) = self.engine.get() else { return Err("the mount is not ready yet".into()) };
        let not_taken = |why: NotTaken| {
            format!(
                "pair {name} goes on as it was: {why}. Undo that edit, or unmount first, and recall what hangs on the old pair"
            )
        };
        let new = Store::open(&self.config_dir).load(name).map_err(|error| error.to_string())?;
        let (old, was_watched) = {
            let all = self.all.lock();
            let Some(mounted) = all.iter().find(|mounted| mounted.pair.name == *name) else {
                return Err(not_taken(NotTaken::Unknown));
            };
            (mounted.pair.clone(), mounted.watch.is_some())
        };
        if !new.same_identifiers(&old) {
            return Err(not_taken(NotTaken::OtherPlace));
        }
        if new.role != old.role {
            return Err(not_taken(NotTaken::OtherRole));
        }
        let remote = connect(&new).await.map_err(|reason| format!("pair {name} goes on as it was: {reason}"))?;
        let before = engine.target_named(name);
        let probed = capabilities::load(&self.state_dir, name);
        let mut made = target(&new, Arc::new(remote.clone()), probed);
        // Found at the start, and kept like the role.
        made.peer = before.map_or(made.peer, |before| before.peer);
        engine.replace_target(made).map_err(not_taken)?;
        if let Some(sync) = self.sync.get() {
            sync.sender.reach_by(Arc::new(remote.clone()));
        }
        let told = PairReloaded {
            name: name.to_string(),
            changed: changed(&old, &new),
            later: if new.meta_sync == old.meta_sync { Vec::new() } else { vec!["meta_sync_role".into()] },
        };
        tracing::info!(pair = %name, changed = ?told.changed, "the pair was edited; what begins from now on goes by it");
        let mut all = self.all.lock();
        if let Some(mounted) = all.iter_mut().find(|mounted| mounted.pair.name == *name) {
            // What was wrong with it may be what was mended.
            self.problems.set(name, None);
            (mounted.pair, mounted.remote) = (Pair { meta_sync: old.meta_sync, ..new }, remote);
            if was_watched {
                self.watch_one(mounted);
            }
        }
        Ok(told)
    }

    /// Reloads all pairs whenever the process gets SIGHUP. On the runtime that is entered.
    pub(super) fn reload_on_hangup(self: &Arc<Self>) {
        let mut hangups = match signal(SignalKind::hangup()) {
            Ok(hangups) => hangups,
            Err(error) => return tracing::warn!("SIGHUP cannot be watched: use `tierfs pair reload`: {error}"),
        };
        let this = self.clone();
        tokio::spawn(async move {
            while hangups.recv().await.is_some() {
                let names: Vec<PairName> = this.all.lock().iter().map(|mounted| mounted.pair.name.clone()).collect();
                for name in names {
                    if let Err(reason) = this.reload(&name).await {
                        tracing::error!("{reason}");
                    }
                }
            }
        });
    }
}

async fn connect(pair: &Pair) -> Result<S3Remote, String> {
    S3Remote::connect(remote_config(pair)).await.map_err(|error| error.to_string())
}

/// The settings that differ.
fn changed(old: &Pair, new: &Pair) -> Vec<String> {
    let settings = [
        ("endpoints", old.endpoints != new.endpoints),
        ("region", old.region != new.region),
        ("credentials_file", old.credentials_file != new.credentials_file),
        ("credentials_profile", old.credentials_profile != new.credentials_profile),
        ("chunk_size", old.chunk_size != new.chunk_size),
        ("retention", old.retention_s != new.retention_s),
        ("after_recall", old.after_recall != new.after_recall),
        ("recall_retention", old.recall_retention_s != new.recall_retention_s),
        ("recall", old.recall != new.recall),
        ("archived", old.archived != new.archived),
        ("pack", old.pack != new.pack),
        ("pack_below", old.pack_below != new.pack_below),
        ("restore_days", old.restore_days != new.restore_days),
    ];
    settings.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name.to_owned()).collect()
}
