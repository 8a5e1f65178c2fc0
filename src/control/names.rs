//! Keeping the names: the trees of directories are stored after a migration, on demand, and now and then for the whole share.
//!
//! Invariant: what is asked for is done one after another, in the background; what is lost by a crash, or found no room, is made good by
//! the next pass over the whole share.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::sync::mpsc;

use crate::catalog::walk::{Found, Next, directories, on_own_thread, resolve};
use crate::engine::{Engine, EngineError};
use crate::ports::{FileKind, Lower};

/// Directories stored at once.
const AT_ONCE: usize = 16;
/// Requests that wait; more are left to the next pass.
const WAITING_MAX: usize = 64;
/// When the first pass over the share begins, unless it is due sooner.
const FIRST_AFTER: Duration = Duration::from_secs(300);

/// What one request came to.
#[derive(Debug, Default)]
pub struct Saved {
    /// Directories looked at.
    pub directories: u64,
    /// Of those, stored because they had changed.
    pub stored: u64,
    /// Objects deleted that no directory needs.
    pub pruned: u64,
    /// What failed: where and why.
    pub failures: Vec<(PathBuf, String)>,
}

struct Wanted {
    path: PathBuf,
    below: bool,
}

/// Stores trees of one mount.
#[derive(Clone)]
pub struct Names {
    lower: Arc<dyn Lower>,
    engine: Arc<Engine>,
    wanted: Option<mpsc::Sender<Wanted>>,
}

/// Failures told of one request at most.
const FAILURES_MAX: usize = 1_000;

impl Names {
    /// Starts the background work: what is asked for, and every so often the whole share. `None`: neither, only [`Names::save`].
    pub fn start(lower: Arc<dyn Lower>, engine: Arc<Engine>, every: Option<Duration>) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let mut names = Self { lower, engine, wanted: None };
        if let Some(every) = every {
            tokio::spawn(names.clone().work(every, receiver));
            names.wanted = Some(sender);
        }
        names
    }

    /// Asks for a path's directory, with `below` for all below it, in the background.
    pub fn ask(&self, path: PathBuf, below: bool) {
        if let Some(wanted) = &self.wanted {
            // Full: the next pass does it.
            let _ = wanted.try_send(Wanted { path, below });
        }
    }

    async fn work(self, every: Duration, mut wanted: mpsc::Receiver<Wanted>) {
        let first = tokio::time::Instant::now() + every.min(FIRST_AFTER);
        let mut ticks = tokio::time::interval_at(first, every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let (path, below, whole) = tokio::select! {
                asked = wanted.recv() => match asked {
                    Some(Wanted { path, below }) => (path, below, false),
                    None => return,
                },
                _ = ticks.tick() => (PathBuf::new(), true, true),
            };
            let saved = self.save(&path, below, false).await;
            if let Some((path, why)) = saved.failures.first() {
                tracing::warn!(
                    failures = saved.failures.len(),
                    "names could not be stored, {:?} for one: {why}; the next pass tries again",
                    path.display()
                );
            } else if whole && saved.stored + saved.pruned > 0 {
                tracing::info!(directories = saved.directories, stored = saved.stored, "names are stored");
            }
        }
    }

    /// Stores the trees that changed: of `path` (or its directory), with `below` all below it, and of all directories above, by which
    /// it is found again. The whole share without a failure is also tidied.
    pub async fn save(&self, path: &Path, below: bool, always: bool) -> Saved {
        let mut saved = Saved::default();
        let start = match resolve(&*self.lower, path) {
            Ok(found) => found,
            Err(error) => {
                saved.failures.push((path.into(), error.to_string()));
                return saved;
            }
        };
        let is_dir = start.attr.kind == FileKind::Directory;
        let (found, directories_found) = mpsc::channel::<Result<Found, (PathBuf, String)>>(AT_ONCE);
        let (lower, above) = (self.lower.clone(), path.to_owned());
        let walking = on_own_thread(move || {
            for above in above.ancestors().skip(1) {
                if let Ok(dir) = resolve(&*lower, above)
                    && found.blocking_send(Ok(dir)).is_err()
                {
                    return;
                }
            }
            if is_dir && below {
                let next = |sent: bool| if sent { Next::Continue } else { Next::Stop };
                directories(
                    &*lower,
                    start,
                    &mut |dir| next(found.blocking_send(Ok(dir)).is_ok()),
                    &mut |path, error| {
                        // Who does not listen any more is told by the other one.
                        let _ = found.blocking_send(Err((path, error.to_string())));
                    },
                );
            } else if is_dir {
                let _ = found.blocking_send(Ok(start));
            }
        });
        let walking = tokio::spawn(walking);
        let of_channel = stream::unfold(directories_found, |mut channel| async {
            let next = channel.recv().await?;
            Some((next, channel))
        });
        let storing = of_channel.map(|found| async {
            let found = found?;
            match self.engine.save_tree(&found.node, always).await {
                // Removed meanwhile.
                Err(EngineError::Lower { source, .. }) if matches!(source.errno(), libc::ENOENT | libc::ESTALE) => {
                    Ok(false)
                }
                stored => stored.map_err(|error| (found.path, error.to_string())),
            }
        });
        let mut storing = std::pin::pin!(storing.buffer_unordered(AT_ONCE));
        while let Some(stored) = storing.next().await {
            saved.directories += 1;
            match stored {
                Ok(stored) => saved.stored += u64::from(stored),
                Err(failure) if saved.failures.len() < FAILURES_MAX => saved.failures.push(failure),
                Err(_) => {}
            }
        }
        if !matches!(walking.await, Ok(Some(()))) {
            saved.failures.push((path.into(), "the walk over the share failed: see the daemon's log".into()));
        }
        if path.as_os_str().is_empty() && below && saved.failures.is_empty() {
            self.tidy(&mut saved).await;
        }
        saved
    }

    async fn tidy(&self, saved: &mut Saved) {
        match self.engine.prune_trees().await {
            Ok((pruned, again)) => {
                saved.pruned = pruned;
                for dir in again {
                    match self.engine.save_tree(&dir, true).await {
                        Ok(_) => saved.stored += 1,
                        Err(error) => saved.failures.push((PathBuf::new(), error.to_string())),
                    }
                }
            }
            Err(error) => saved.failures.push((PathBuf::new(), error.to_string())),
        }
    }
}
