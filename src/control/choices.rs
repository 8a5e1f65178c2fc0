//! What files and directories are told of their next copy and their recalls, over the socket: shown and set.

use std::sync::Arc;

use super::protocol::{ChoiceInfo, Failure, Reply, Summary, WirePath};
use super::server::{Replies, Server};
use crate::catalog::walk::resolve;
use crate::engine::{Choice, Forget, is_choosable};
use crate::ports::FileKind;

/// What is to be said from now on.
#[derive(Clone, Debug, Default)]
pub(super) struct Wish {
    pub choice: Choice,
    pub forget: Forget,
}

impl Wish {
    /// Reads the words of a request. An empty one takes back.
    pub(super) fn of(pair: Option<String>, chunk_size: Option<u32>, recall: Option<String>) -> Result<Self, String> {
        let mut wish = Self::default();
        match pair.as_deref() {
            Some("") => wish.forget.pair = true,
            Some(name) => wish.choice.pair = Some(name.parse().map_err(|e: crate::types::BadName| e.to_string())?),
            None => {}
        }
        match chunk_size {
            Some(0) => wish.forget.chunk_size = true,
            Some(size) if !is_choosable(size) => {
                return Err(format!(
                    "{size} bytes are no chunk size that can be chosen: a power of two, 64KiB to 8MiB"
                ));
            }
            size => wish.choice.chunk_size = size,
        }
        match recall.as_deref() {
            Some("") => wish.forget.recall = true,
            Some(how) => wish.choice.recall = Some(how.parse()?),
            None => {}
        }
        Ok(wish)
    }
}

impl Server {
    pub(super) async fn choose(self: &Arc<Self>, paths: Vec<WirePath>, wish: Wish, replies: &Replies) -> Reply {
        let mut summary = Summary::default();
        for path in paths {
            let (this, at, wanted) = (self.clone(), path.to_path(), wish.clone());
            let done = tokio::task::spawn_blocking(move || this.choose_one(&at, &wanted)).await;
            let told = match done.unwrap_or_else(|error| Err(format!("the work failed: {error}"))) {
                Ok((choice, changed)) => {
                    *(if changed { &mut summary.files } else { &mut summary.unchanged }) += 1;
                    Reply::Choice(ChoiceInfo {
                        path,
                        pair: choice.pair.map(|pair| pair.to_string()),
                        chunk_size: choice.chunk_size,
                        recall: choice.recall.map(|how| how.as_str().to_owned()),
                    })
                }
                Err(reason) => {
                    summary.failed += 1;
                    Reply::Failure(Failure { path, reason, skipped: false })
                }
            };
            if replies.send(told).await.is_err() {
                break;
            }
        }
        Reply::Done(summary)
    }

    /// What is said afterwards, and whether that is new.
    fn choose_one(&self, path: &std::path::Path, wish: &Wish) -> Result<(Choice, bool), String> {
        let worded = |error: crate::engine::EngineError| error.to_string();
        let found = resolve(&*self.lower, path).map_err(|error| error.source.to_string())?;
        if !matches!(found.attr.kind, FileKind::Regular | FileKind::Directory) {
            return Err("only regular files and directories are told anything".into());
        }
        let before = self.engine.choice(&found.node).map_err(worded)?;
        self.engine.unchoose(&found.node, wish.forget).map_err(worded)?;
        self.engine.choose(&found.node, &wish.choice).map_err(worded)?;
        let after = self.engine.choice(&found.node).map_err(worded)?;
        let changed = after != before;
        Ok((after, changed))
    }
}
