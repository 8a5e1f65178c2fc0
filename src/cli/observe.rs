//! What a mount tells of itself while it runs, as the options of `tierfs mount` say it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use super::daemon::failed;
use super::exit::CliError;
use crate::control::metrics;

/// Where a mount's figures go.
#[derive(Clone, Debug, Default)]
pub struct ObserveArgs {
    /// Metrics are served here.
    pub metrics: Option<SocketAddr>,
    /// Each file that is done with, or failed, is announced in this file; neither on the share nor on its mount.
    pub announce: Option<PathBuf>,
}

impl ObserveArgs {
    /// Refuses a file of announcements that the mount would have to write to through itself, or to its own share.
    pub(super) fn check(&self, share: &Path, mountpoint: &Path) -> Result<(), CliError> {
        let Some(path) = &self.announce else { return Ok(()) };
        let dir = path.parent().unwrap_or(Path::new("/"));
        let whole = std::fs::canonicalize(path).or_else(|_| std::fs::canonicalize(dir)).map_err(|error| {
            failed(format!("-o announce={}: {}: {error}: make the directory first", path.display(), dir.display()))
        })?;
        if whole.starts_with(share) || whole.starts_with(mountpoint) {
            return Err(failed(format!(
                "-o announce={}: the file must lie neither on the share nor on its mount",
                path.display()
            )));
        }
        Ok(())
    }

    /// Takes the address of the metrics. What is wrong with it is to be told before there is a mount.
    pub(super) fn bind(&self, runtime: &Runtime) -> Result<Option<(TcpListener, SocketAddr)>, CliError> {
        let Some(address) = self.metrics else { return Ok(None) };
        let _guard = runtime.enter();
        let cannot = |error: std::io::Error| failed(format!("cannot serve metrics at {address}: {error}"));
        let listener = metrics::bind(address).map_err(cannot)?;
        let bound = listener.local_addr().map_err(cannot)?;
        if !bound.ip().is_loopback() {
            tracing::warn!(%bound, "metrics are served to everybody who reaches this address");
        }
        tracing::info!("metrics at http://{bound}/metrics");
        Ok(Some((listener, bound)))
    }
}
