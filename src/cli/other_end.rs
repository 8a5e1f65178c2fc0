//! What is at the other end of a pair: how it is reached, what the engine is told of it, and what a probe finds there.

use std::sync::Arc;
use std::time::Duration;

use super::daemon::runtime;
use crate::control::pairs::PairProblems;
use crate::engine::{Packing, RestorePolicy, Target};
use crate::gateway;
use crate::pair::capabilities::{self, Found};
use crate::pair::{Pair, RemoteRole, WhenArchived};
use crate::ports::{Capabilities, Remote, RemoteErrorKind, RemoteResult};
use crate::record::PairRef;
use crate::remote::{CredentialsFrom, RemoteConfig, S3Remote};
use crate::types::{ObjectKey, PairName};

/// Longest answer of a gateway to who asks who it is, in bytes.
const HELLO_MAX: u64 = 4 << 10;
/// Files that share an object at least: one alone gains nothing by an index.
const PACKED_MIN: usize = 2;
/// Pauses before a pair that does not answer is tried again, for `mount` status only: transfers try by themselves. The first is short: two sides
/// of a pair are often started one after the other.
const PROBE_PAUSE_FIRST: Duration = Duration::from_secs(1);
const PROBE_PAUSE_MAX: Duration = Duration::from_secs(60);
const PROBE_PEER_PAUSE_MAX: Duration = Duration::from_secs(4);

pub(super) fn remote_config(pair: &Pair) -> RemoteConfig {
    let profile = pair.credentials_profile.clone();
    let mut config = RemoteConfig::new(pair.name.clone(), pair.bucket.clone(), "");
    config.prefix = pair.prefix.clone();
    config.endpoints = pair.endpoints.clone();
    config.region = pair.region.clone();
    config.credentials = match &pair.credentials_file {
        Some(path) => CredentialsFrom::File { path: path.clone(), profile },
        None => CredentialsFrom::Chain { profile },
    };
    // Whole chunks only: a part is hashed chunk by chunk as it is read.
    config.part_size = config.part_size.max(u64::from(pair.chunk_size.unwrap_or(0)));
    config
}

/// Whether a share is at the other end: a pair of role gpeer whose endpoint was not found to be a plain store, as far as it was tried.
pub(super) fn has_peer(pair: &Pair, probed: Option<capabilities::Probed>) -> bool {
    pair.role == RemoteRole::Gpeer && probed.and_then(|probed| probed.peer) != Some(false)
}

/// `probed`: what the last probe found.
pub(super) fn target(pair: &Pair, remote: Arc<dyn Remote>, probed: Option<capabilities::Probed>) -> Target {
    Target {
        pair: PairRef {
            name: pair.name.clone(),
            local_cluster: pair.local_cluster.clone(),
            local_share: pair.local_share.display().to_string(),
            remote_cluster: pair.remote_cluster.clone(),
            remote_share: match pair.prefix.as_str() {
                "" => pair.bucket.clone(),
                prefix => format!("{}/{prefix}", pair.bucket),
            },
        },
        prefix: pair.prefix.clone(),
        remote,
        peer: has_peer(pair, probed),
        chunk_size: pair.chunk_size,
        retention_s: pair.retention_s,
        recalled_for_s: pair.recalled_for_s(),
        recall: pair.recall,
        restore: RestorePolicy { wait: pair.archived == WhenArchived::Wait, days: pair.restore_days },
        pack: pair.pack.then(|| Packing { below: u64::from(pair.pack_below), members_min: PACKED_MIN }),
    }
}

/// Tries the pair's endpoint until it answers; what is wrong is said once and kept for whoever asks.
pub(super) async fn watch_pair(problems: Arc<PairProblems>, pair: PairName, remote: S3Remote, role: RemoteRole) {
    let mut pause = PROBE_PAUSE_FIRST;
    // The other side's start takes no time, and what it was without it is not to be said of it after; a store that is down is often down for long.
    let most = if role == RemoteRole::Gpeer { PROBE_PEER_PAUSE_MAX } else { PROBE_PAUSE_MAX };
    loop {
        match probe_remote(role, &remote).await {
            Ok(Found { peer: Some(false), .. }) => {
                let why = "its endpoint is a plain store, not the gateway of a share: the pair behaves as one of role gfs from the next mount on, \
                           once `tierfs pair edit NAME --role gpeer` has tried it";
                tracing::warn!(%pair, "{why}");
                problems.set(&pair, Some(why.into()));
                return;
            }
            Ok(found) => {
                tracing::info!(%pair, ?found, "the pair's endpoint answers");
                problems.set(&pair, None);
                return;
            }
            Err(error) => {
                tracing::warn!(%pair, "the pair cannot be used at present: {error}");
                problems.set(&pair, Some(error.to_string()));
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(most);
    }
}

/// Tries what the pair's endpoint can do. The error is one line without a secret.
pub fn probe(pair: &Pair) -> Result<Found, String> {
    let runtime = runtime().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let remote = S3Remote::connect(remote_config(pair)).await.map_err(|error| error.to_string())?;
        probe_remote(pair.role, &remote).await.map_err(|error| error.to_string())
    })
}

/// Asks the gateway of a share who it is; tries what a store can do.
async fn probe_remote(role: RemoteRole, remote: &S3Remote) -> RemoteResult<Found> {
    let mut peer = None;
    if role == RemoteRole::Gpeer {
        peer = Some(is_share(remote).await?);
        if peer == Some(true) {
            // Nothing is tried there: its keys are people's files.
            let capabilities = Capabilities { conditional_put: true, checksums: true, versioning: false };
            return Ok(Found { capabilities, peer });
        }
    }
    Ok(Found { capabilities: remote.probe().await?, peer })
}

/// Whether what a pair of role gpeer reaches is the gateway of a share, not a plain store.
pub(super) async fn is_share(remote: &S3Remote) -> RemoteResult<bool> {
    match remote.get_all(&ObjectKey(gateway::HELLO.into()), HELLO_MAX).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind == RemoteErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
