//! `history`, `undelete` and `save-names` at the daemon's end of the socket.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::protocol::{Failure, FileVersion, Reply, Summary, VersionState, WirePath};
use super::server::{Replies, Server};
use crate::catalog::walk::resolve;
use crate::engine::{EngineError, NotKept, Standing, Version};
use crate::types::{Inode, ObjectKey};

/// What is to come back, and where to.
pub(super) struct Wish {
    pub path: PathBuf,
    pub generation: Option<u64>,
    pub to: Option<PathBuf>,
    pub recursive: bool,
}

impl Server {
    fn there(&self, path: &Path) -> Option<Inode> {
        resolve(&*self.lower, path).ok().map(|found| found.node)
    }

    pub(super) async fn history(self: &Arc<Self>, paths: Vec<WirePath>, replies: &Replies) -> Reply {
        let begun = Instant::now();
        let mut summary = Summary::default();
        for wire in paths {
            let path = wire.to_path();
            let versions = match self.engine.history(&path, self.there(&path)).await {
                Ok(versions) => versions,
                Err(error) => {
                    summary.failed += 1;
                    let failure = Failure { path: wire, reason: error.to_string(), skipped: false };
                    if replies.send(Reply::Failure(failure)).await.is_err() {
                        break;
                    }
                    continue;
                }
            };
            for version in versions {
                summary.files += 1;
                if replies.send(Reply::Version(told(&wire, version))).await.is_err() {
                    return Reply::Done(summary);
                }
            }
        }
        summary.seconds = begun.elapsed().as_secs_f64();
        Reply::Done(summary)
    }

    pub(super) async fn save_names(self: &Arc<Self>, paths: Vec<WirePath>, always: bool, replies: &Replies) -> Reply {
        let begun = Instant::now();
        let mut summary = Summary::default();
        for path in paths {
            let saved = self.names.save(&path.to_path(), true, always).await;
            summary.files += saved.stored;
            summary.unchanged += saved.directories - saved.stored.min(saved.directories);
            summary.failed += saved.failures.len() as u64;
            for (path, reason) in saved.failures {
                let failure = Failure { path: WirePath::from_path(&path), reason, skipped: false };
                if replies.send(Reply::Failure(failure)).await.is_err() {
                    return Reply::Done(summary);
                }
            }
        }
        summary.seconds = begun.elapsed().as_secs_f64();
        Reply::Done(summary)
    }

    pub(super) async fn undelete(self: &Arc<Self>, wish: Wish, replies: &Replies) -> Reply {
        let begun = Instant::now();
        let mut summary = Summary::default();
        let found = if wish.recursive { self.all_below(&wish).await } else { self.one(&wish).await };
        let found = match found {
            Ok(found) => found,
            Err(message) => return Reply::Error { message },
        };
        for (place, key) in found {
            let reply = match self.bring_back(&place, &key, wish.recursive).await {
                Ok((generation, len)) => {
                    summary.files += 1;
                    summary.bytes += len;
                    Reply::Restored { path: WirePath::from_path(&place), generation, object: key.to_string() }
                }
                Err(error) => {
                    let skipped =
                        matches!(error, EngineError::NotKept { why: NotKept::Exists | NotKept::Named(_), .. });
                    *(if skipped { &mut summary.skipped } else { &mut summary.failed }) += 1;
                    Reply::Failure(Failure { path: WirePath::from_path(&place), reason: error.to_string(), skipped })
                }
            };
            if replies.send(reply).await.is_err() {
                break;
            }
        }
        summary.seconds = begun.elapsed().as_secs_f64();
        Reply::Done(summary)
    }

    /// The generation wished for, and where it is to be.
    async fn one(self: &Arc<Self>, wish: &Wish) -> Result<Vec<(PathBuf, ObjectKey)>, String> {
        let here = self.there(&wish.path);
        let versions = self.engine.history(&wish.path, here).await.map_err(|error| error.to_string())?;
        let kept = versions.iter().filter(|version| matches!(version.standing, Standing::Kept { .. }));
        let found = match wish.generation {
            Some(generation) => kept.rev().find(|version| version.generation().0 == generation),
            None => kept.max_by_key(|version| version.generation()),
        };
        let shown = wish.path.display();
        let Some(version) = found else {
            return Err(match wish.generation {
                Some(generation) => {
                    format!("{shown}: generation {generation} is not kept; `tierfs history` shows what there is")
                }
                None => format!(
                    "{shown}: nothing is kept of it: it was never archived under this name, or its retention is over"
                ),
            });
        };
        let place = wish.to.clone().unwrap_or_else(|| wish.path.clone());
        if self.there(&place).is_some() {
            return Err(format!("{}: there is a file of that name; `--to` takes another one", place.display()));
        }
        Ok(vec![(place, version.key.clone())])
    }

    /// All that was removed below a directory, but for what is there again.
    async fn all_below(self: &Arc<Self>, wish: &Wish) -> Result<Vec<(PathBuf, ObjectKey)>, String> {
        let kept = self.engine.kept_below(&wish.path).await.map_err(|error| error.to_string())?;
        let place = |path: PathBuf| match &wish.to {
            Some(to) => to.join(path.strip_prefix(&wish.path).unwrap_or(&path)),
            None => path,
        };
        let missing = kept.into_iter().filter(|(path, _)| self.there(path).is_none());
        Ok(missing.map(|(path, key)| (place(path), key)).collect())
    }

    async fn bring_back(&self, place: &Path, key: &ObjectKey, make: bool) -> Result<(u64, u64), EngineError> {
        let Some(name) = place.file_name() else {
            return Err(EngineError::NotKept { object: key.to_string(), why: NotKept::Exists });
        };
        let parent = place.parent().unwrap_or(Path::new(""));
        let (engine, parent, make) = (self.engine.clone(), parent.to_owned(), make);
        let dir = tokio::task::spawn_blocking(move || engine.directory(&parent, make)).await;
        let dir = dir.map_err(|_| EngineError::ShuttingDown)??;
        let (_, object) = self.engine.undelete(key, &dir, name).await?;
        Ok((object.generation.0, object.len))
    }
}

fn told(path: &WirePath, version: Version) -> FileVersion {
    let (standing, kept_until) = match version.standing {
        Standing::Current => (VersionState::Current, None),
        Standing::Kept { until } if version.alive => (VersionState::Superseded, Some(until.secs)),
        Standing::Kept { until } => (VersionState::Deleted, Some(until.secs)),
    };
    FileVersion {
        path: path.clone(),
        generation: version.generation().0,
        standing,
        size: version.facts.as_ref().ok().map(|facts| facts.len),
        mtime: version.facts.as_ref().ok().map(|facts| (facts.mtime.secs, facts.mtime.nanos)),
        kept_until,
        object: version.key.to_string(),
        problem: version.facts.err(),
    }
}
