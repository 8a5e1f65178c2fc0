//! The pairs of a mount as the socket knows them: what is wrong with them, and that they were edited.

use std::collections::BTreeMap;
use std::pin::Pin;

use super::protocol::{PairReloaded, Reply, Summary};
use super::server::{Replies, Server};
use crate::types::PairName;

/// Has a pair's file, and its credentials, count from now on.
pub type ReloadPair =
    Box<dyn Fn(PairName) -> Pin<Box<dyn Future<Output = Result<PairReloaded, String>> + Send>> + Send + Sync>;

/// What probes found wrong with the pairs, by name.
#[derive(Default)]
pub struct PairProblems(parking_lot::Mutex<BTreeMap<PairName, String>>);

impl PairProblems {
    /// `None`: nothing is wrong.
    pub fn set(&self, pair: &PairName, problem: Option<String>) {
        let mut all = self.0.lock();
        match problem {
            Some(problem) => all.insert(pair.clone(), problem),
            None => all.remove(pair),
        };
    }

    pub(super) fn first(&self) -> Option<String> {
        self.0.lock().values().next().cloned()
    }
}

impl Server {
    pub(super) async fn reload(&self, name: &str, replies: &Replies) -> Reply {
        let told = match name.parse::<PairName>() {
            Ok(name) => (self.reload_pair)(name).await,
            Err(error) => Err(error.to_string()),
        };
        match told {
            Ok(told) => {
                // A client that is gone needs no answer.
                let _ = replies.send(Reply::PairReloaded(told)).await;
                Reply::Done(Summary::default())
            }
            Err(message) => Reply::Error { message },
        }
    }
}
