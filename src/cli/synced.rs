//! Puts the parts of a metadata sync together, where a pair says that the share takes part in one.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;

use super::daemon::failed;
use super::exit::CliError;
use super::other_end::has_peer;
use crate::capture::Capture;
use crate::fs::{Fs, Synced, SyncedFiles};
use crate::pair::capabilities::Probed;
use crate::pair::{MetaSyncRole, Pair, RemoteRole};
use crate::ports::{Clock, Lower, Remote};
use crate::remote::S3Remote;
use crate::sync::wire::Half;
use crate::sync::{Book, Ends, Receiver, Sender, SenderOptions, Side};

/// How long what waits may take to be told when the mount goes away.
const FINISH_WITHIN: Duration = Duration::from_secs(5);

/// Which side of a sync a share is, if it is one.
pub(super) fn side(pair: Option<&Pair>, probed: Option<Probed>, read_only: bool) -> Option<Side> {
    let pair = pair.filter(|pair| pair.role == RemoteRole::Gpeer && !read_only)?;
    if pair.meta_sync.is_some() && !has_peer(pair, probed) {
        tracing::warn!("no metadata sync: the pair's endpoint is a plain store, not the gateway of a share");
        return None;
    }
    pair.meta_sync.map(|role| match role {
        MetaSyncRole::Master => Side::Master,
        MetaSyncRole::Slave => Side::Slave,
    })
}

/// What users' calls are to do. Before anybody is served.
pub(super) fn capture(side: Option<Side>, lower: &Arc<dyn Lower>) -> Result<Synced, CliError> {
    let Some(side) = side else { return Ok(Synced::default()) };
    if !lower.features().trusted_xattrs {
        return Err(failed(
            "the metadata sync keeps the ids of files in trusted.* attributes, which cannot be used on this filesystem: use ext4 or XFS, or \
             take meta_sync_role out of the pair",
        ));
    }
    let capture = Capture::open(lower.clone(), side == Side::Master);
    let capture =
        capture.map_err(|error| failed(format!("cannot take note of changes for the metadata sync: {error}")))?;
    Ok(Synced { capture: Arc::new(capture), slave: side == Side::Slave })
}

/// What both ends are made of.
pub(super) struct Ingredients<'a> {
    pub pair: Option<&'a Pair>,
    pub side: Option<Side>,
    pub book: &'a Path,
    pub lower: &'a Arc<dyn Lower>,
    pub clock: &'a Arc<dyn Clock>,
    pub remote: Option<&'a S3Remote>,
    pub fs: &'a Arc<Fs>,
    pub capture: Arc<Capture>,
}

fn half(pair: &Pair, side: Side) -> Half {
    Half {
        pair: pair.name.to_string(),
        local_cluster: pair.local_cluster.to_string(),
        local_share: pair.local_share.display().to_string(),
        remote_cluster: pair.remote_cluster.to_string(),
        remote_share: pair.remote_share(),
        role: side.as_str().into(),
    }
}

/// Brings to its end what a crash interrupted, and makes both ends, if the share takes part.
pub(super) fn ends(of: Ingredients<'_>, runtime: &Runtime) -> Result<Option<Arc<Ends>>, CliError> {
    let Ingredients { book, lower, clock, fs, capture, .. } = of;
    let (Some(pair), Some(side), Some(remote)) = (of.pair, of.side, of.remote) else { return Ok(None) };
    let remote: Arc<dyn Remote> = Arc::new(remote.clone());
    let files = SyncedFiles::new(fs.clone(), runtime.handle().clone());
    let half = half(pair, side);
    let book = Book::open(book, lower.root().id).map_err(failed)?;
    let receiver = Receiver::open(lower.clone(), files.clone(), clock.clone(), book, (side, half.clone()));
    let receiver = Arc::new(receiver.map_err(|error| failed(format!("the metadata sync cannot begin: {error}")))?);
    let book = receiver.book.clone();
    let (lower, clock) = (lower.clone(), clock.clone());
    let sender = Sender::new(SenderOptions { lower, files, clock, capture, remote, book, side, half });
    Ok(Some(Arc::new(Ends { sender, receiver })))
}

/// Begins to tell.
pub(super) fn start(ends: &Arc<Ends>, runtime: &Runtime) {
    runtime.spawn(ends.sender.clone().run());
}

/// Tells what waits, if it can be told soon.
pub(super) fn finish(ends: Option<&Arc<Ends>>, runtime: &Runtime) {
    if let Some(ends) = ends {
        runtime.block_on(ends.sender.finish(FINISH_WITHIN));
    }
}
