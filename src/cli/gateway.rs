//! `tierfs gateway`: a share as S3, by itself; and the same within a mount (`-o gateway=…`).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::daemon::{self, Parts, Served, failed};
use super::exit::{self, CliError, Exit};
use super::mount::{directory, pair_for};
use super::observe::ObserveArgs;
use super::{Global, output, synced};
use crate::admission::Rules;
use crate::control::client::mount_of_share;
use crate::control::metrics;
use crate::control::names::Names;
use crate::control::server::{Server as Figures, Watch};
use crate::engine::SlotLimits;
use crate::fs::Delay;
use crate::gateway::{Identities, Options, Server, ShareOptions, ShareStore, Tls};
use crate::pair::{Pair, Store};
use crate::types::PairName;

/// Where identities are looked for, in the configuration directory.
const IDENTITIES: &str = "identities.toml";

/// Serve a share as S3.
///
/// The share is one bucket, the paths of its files are the keys. Reading a file whose content is in the pair's store brings it back; users are
/// those of this machine, with their permissions and quotas. Prints "listening on http://ADDR" once it can be used, and serves until SIGINT
/// or SIGTERM. One process serves a share: where it is mounted, `tierfs mount -o gateway=ADDR` does both.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs gateway /srv/share --listen 127.0.0.1:9000\n  \
     tierfs gateway /srv/share --listen 0.0.0.0:9443 --tls-cert /etc/tierfs/cert.pem --tls-key /etc/tierfs/key.pem\n  \
     tierfs mount /srv/share /mnt/tiered -o gateway=127.0.0.1:9000\n\n\
     Identities, in a file of mode 0600:\n  \
     [[identity]]\n  access_key = \"alice\"\n  secret_key = \"…\"\n  user = \"alice\"         (or uid = 1000, gid = 1000)"))]
pub struct GatewayCommand {
    /// Directory with the files; not on a tierfs mount itself.
    #[arg(value_name = "SHARE")]
    share: PathBuf,
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9000")]
    listen: SocketAddr,
    /// Who may use it [default: <config-dir>/identities.toml].
    #[arg(long, value_name = "FILE")]
    identities: Option<PathBuf>,
    /// Name of the bucket [default: the name of SHARE].
    #[arg(long, value_name = "NAME")]
    bucket: Option<String>,
    /// Certificate chain in PEM; with it, HTTPS only.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The pair to use; needed where several name the share.
    #[arg(long, value_name = "NAME")]
    pair: Option<PairName>,
    /// Change nothing.
    #[arg(long)]
    read_only: bool,
    /// Serve figures to Prometheus at http://ADDR/metrics (docs/metrics.md); port 0 takes a free one.
    #[arg(long, value_name = "ADDR")]
    metrics: Option<SocketAddr>,
}

/// What was said of a gateway, unchecked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayOptions {
    pub listen: Option<SocketAddr>,
    pub identities: Option<PathBuf>,
    pub bucket: Option<String>,
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
}

/// How to serve a share as S3.
#[derive(Clone, Debug)]
pub struct GatewayArgs {
    pub listen: SocketAddr,
    pub bucket: String,
    /// Read once.
    pub identities: Arc<Identities>,
    pub tls: Option<Tls>,
}

impl GatewayOptions {
    /// Everything that can be known before it starts. `None`: no gateway is wanted.
    pub fn checked(&self, share: &Path, config_dir: &Path) -> Result<Option<GatewayArgs>, CliError> {
        let Some(listen) = self.listen else {
            if *self == Self::default() {
                return Ok(None);
            }
            return Err(CliError::Usage("identities, bucket, tls_cert and tls_key are for -o gateway=ADDR".into()));
        };
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Some(Tls::read(cert, key).map_err(failed)?),
            (None, None) => None,
            _ => return Err(CliError::Usage("a certificate needs its key, and a key its certificate".into())),
        };
        let usual = || config_dir.join(IDENTITIES);
        let identities = Identities::read(&self.identities.clone().unwrap_or_else(usual)).map_err(failed)?;
        let bucket = self.bucket.clone().unwrap_or_else(|| ShareStore::bucket_of(share));
        if tls.is_none() && !listen.ip().is_loopback() {
            tracing::warn!(%listen, "no TLS: contents can be read and changed on the way");
        }
        Ok(Some(GatewayArgs { listen, bucket, identities: Arc::new(identities), tls }))
    }
}

impl GatewayCommand {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        if !rustix::process::geteuid().is_root() {
            return Err(failed("serving a share needs root: run this with sudo"));
        }
        let share = directory("share", &self.share)?;
        let options = GatewayOptions {
            listen: Some(self.listen),
            identities: self.identities.clone(),
            bucket: self.bucket.clone(),
            tls_cert: self.tls_cert.clone(),
            tls_key: self.tls_key.clone(),
        };
        if let Some((mountpoint, info)) = mount_of_share(&share)? {
            return Err(failed(format!(
                "share {} is mounted at {} (process {}), and one process serves a share: `tierfs mount … -o gateway={}` makes the mount its \
                 gateway as well",
                share.display(),
                mountpoint.display(),
                info.pid,
                self.listen
            )));
        }
        let gateway = options.checked(&share, &global.config_dir)?.ok_or_else(|| failed("no address to listen on"))?;
        let pair = pair_for(&Store::open(&global.config_dir), &share, self.pair.as_ref())?;
        let json = global.json;
        self.serve(&share, pair.as_ref(), &gateway, global, &|endpoint, metrics| {
            let metrics = metrics.map(|at| format!("http://{at}/metrics"));
            if json {
                output::json(&serde_json::json!({ "listening": endpoint, "metrics": metrics }));
            } else {
                output::line(&format!("listening on {endpoint}"));
                if let Some(metrics) = metrics {
                    output::line(&format!("metrics at {metrics}"));
                }
            }
        })?;
        Ok(Exit::Done)
    }

    fn serve(
        &self,
        share: &Path,
        pair: Option<&Pair>,
        gateway: &GatewayArgs,
        global: &Global,
        listening: &dyn Fn(&str, Option<SocketAddr>),
    ) -> Result<(), CliError> {
        let served = Served {
            share,
            pair,
            further: &[],
            config_dir: &global.config_dir,
            read_only: self.read_only,
            delay: &Delay::default(),
            rules: &Rules::default(),
            recalls: SlotLimits::default(),
            state_dir: &global.state_dir,
            space_wait: std::time::Duration::ZERO,
            announce: None,
            by: format!("served as S3 at {}", gateway.listen),
        };
        let parts = daemon::assemble(&served)?;
        let server = start(gateway, &parts)?;
        let metrics = ObserveArgs { metrics: self.metrics, announce: None }.bind(&parts.runtime)?;
        let measured = metrics.as_ref().map(|(_, at)| *at);
        if let Some((listener, _)) = metrics {
            parts.runtime.spawn(metrics::serve(listener, figures(&parts, share, measured)));
        }
        if let Some(ends) = &parts.sync {
            synced::start(ends, &parts.runtime);
        }
        {
            let _guard = parts.runtime.enter();
            parts.pairs.reload_on_hangup();
        }
        if !parts.read_only {
            let _guard = parts.runtime.enter();
            parts.engine.start_deletions();
        }
        let waited = parts.runtime.block_on(async {
            let cannot = |error: std::io::Error| failed(format!("cannot watch for signals: {error}"));
            let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
            let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
            listening(&server.endpoint(), measured);
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            Ok(())
        });
        parts.runtime.block_on(server.shutdown());
        synced::finish(parts.sync.as_ref(), &parts.runtime);
        daemon::come_to_rest(parts.runtime, &parts.engine, parts.index);
        waited
    }
}

/// What tells figures of a gateway that has no mount: no policies, no scrub and no tasks run in it.
fn figures(parts: &Parts, share: &Path, metrics: Option<SocketAddr>) -> Arc<Figures> {
    let names = Names::start(parts.lower.clone(), parts.engine.clone(), None);
    let counted = parts.share.clone();
    Arc::new(Figures {
        policies: None,
        names,
        lower: parts.lower.clone(),
        engine: parts.engine.clone(),
        fs: parts.fs.clone(),
        share: share.to_owned(),
        mountpoint: PathBuf::new(),
        pair_problems: parts.pairs.problems(),
        reload_pair: parts.pairs.reloader(),
        scrub: None,
        index: parts.index.clone(),
        sync: parts.sync.clone(),
        watch: Watch { descriptors: Some(Box::new(move || counted.descriptors_cached())), metrics, ..Watch::default() },
    })
}

/// Starts the gateway over the parts of a daemon. It answers when this returns.
pub(super) fn start(args: &GatewayArgs, parts: &Parts) -> Result<Server, CliError> {
    let options = ShareOptions {
        fs: parts.fs.clone(),
        share: parts.share.clone(),
        bucket: args.bucket.clone(),
        identities: args.identities.clone(),
        sync: parts.sync.as_ref().map(|ends| ends.receiver.clone()),
    };
    let store = ShareStore::open(options).map_err(|error| failed(format!("{error} (--bucket, or -o bucket=)")))?;
    let mut serving = Options::new(args.listen);
    serving.identities = Some(args.identities.clone());
    serving.tls = args.tls.clone();
    serving.make_buckets = false;
    serving.md5_etags = true;
    let server = parts.runtime.block_on(Server::serve(Arc::new(store), serving)).map_err(failed)?;
    tracing::info!(endpoint = server.endpoint(), bucket = args.bucket, "the share is served as S3");
    Ok(server)
}
