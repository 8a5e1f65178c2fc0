//! The share, or a bare directory, as an S3 endpoint.
//!
//! ```text
//! listen   connections, HTTP, order of the layers      faults     a test aid
//! unsigned requests nobody checks the signature of     counters   what came in
//! s3       the protocol, in terms of ↓
//! store    what the protocol needs: traits and values
//! dir      the store over a bare directory
//! share    the store over a share and its engine
//! identities, tls
//! ```
//!
//! [`Server::start`] serves a directory; [`Server::serve`] puts the same server over any other [`Store`].

mod counters;
mod dir;
mod drain;
pub mod faults;
mod identities;
mod listen;
mod s3;
mod share;
pub mod store;
mod tls;
mod unsigned;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use s3s::auth::{S3Auth, SecretKey};
use s3s::service::S3ServiceBuilder;
use s3s::{S3Result, s3_error};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use counters::Requests;
pub use dir::{DirStore, OpenError};
use faults::Faults;
pub use identities::{Identities, IdentityError, Role};
pub use share::{HELLO, ShareError, ShareOptions, ShareStore};
use store::Store;
pub use tls::{Tls, TlsError};

/// S3's least size of a part that is not the last, bytes.
const PART_BYTES_MIN: u64 = 5 << 20;
/// What a restore takes where nothing else is said: S3's hours would keep people waiting who only try it.
pub const RESTORE_AFTER: Duration = Duration::from_secs(5);

/// Why the endpoint could not start. Each message is one line and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Dir(#[from] OpenError),
    #[error("cannot listen on {addr}: {source}; choose another address, or stop what listens there")]
    Listen { addr: SocketAddr, source: io::Error },
    #[error("the access key must not be empty")]
    EmptyKey,
}

/// The one identity that may use the endpoint.
#[derive(Clone)]
pub struct Credentials {
    pub access_key: String,
    pub secret_key: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

/// How to serve.
#[derive(Clone)]
pub struct Options {
    /// Where to listen; port 0 takes a free one, see [`Server::addr`].
    pub listen: SocketAddr,
    /// `None`: anonymous requests are accepted, and any signature, unless there are `identities`.
    pub credentials: Option<Credentials>,
    /// Many who may use the endpoint; the store tells them apart.
    pub identities: Option<Arc<Identities>>,
    /// `None`: plain HTTP.
    pub tls: Option<Tls>,
    /// ETags of new objects are MD5s where S3's are; off by default, which is faster.
    pub md5_etags: bool,
    /// A PutObject, CopyObject or CreateMultipartUpload to a missing bucket makes it. On by default.
    pub make_buckets: bool,
    /// Parts smaller than this, but for the last, are refused. S3's 5 MiB by default; tests may want less.
    pub part_bytes_min: u64,
    /// How long a restore from an archive class takes; 5 s by default.
    pub restore_after: Duration,
    /// A test aid; empty by default.
    pub faults: Faults,
}

impl Options {
    /// Defaults, at `listen`.
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            credentials: None,
            identities: None,
            tls: None,
            md5_etags: false,
            make_buckets: true,
            part_bytes_min: PART_BYTES_MIN,
            restore_after: RESTORE_AFTER,
            faults: Faults::default(),
        }
    }
}

/// A running endpoint. Dropping it stops it hard; [`Server::shutdown`] in good order.
pub struct Server {
    addr: SocketAddr,
    secure: bool,
    counters: Arc<counters::Counters>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Server {
    /// Serves the directory `dir`, which is made if it is missing. Returns when the endpoint answers.
    /// Must be called within a tokio runtime with I/O and time enabled.
    pub async fn start(dir: &Path, options: Options) -> Result<Self, Error> {
        // The address first: it fails at once, the directory may take a while to read.
        let listener = bind(options.listen).await?;
        let dir = dir.to_owned();
        let opened = tokio::task::spawn_blocking(move || DirStore::open(&dir)).await;
        let store = match opened {
            Ok(opened) => opened?,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        Self::run(listener, Arc::new(store), options)
    }

    /// Serves any store.
    pub async fn serve(store: Arc<dyn Store>, options: Options) -> Result<Self, Error> {
        let listener = bind(options.listen).await?;
        Self::run(listener, store, options)
    }

    fn run(listener: TcpListener, store: Arc<dyn Store>, options: Options) -> Result<Self, Error> {
        let addr = listener.local_addr().map_err(|source| Error::Listen { addr: options.listen, source })?;
        let counters = Arc::new(counters::Counters::default());
        let protocol = s3::Protocol {
            store,
            counters: counters.clone(),
            make_buckets: options.make_buckets,
            restores: Arc::new(s3::restore::Restores::new(options.restore_after)),
            part_bytes_min: options.part_bytes_min,
            md5_etags: options.md5_etags,
        };
        let mut builder = S3ServiceBuilder::new(protocol);
        let open = options.credentials.is_none() && options.identities.is_none();
        if let Some(identities) = options.identities {
            builder.set_auth(ByIdentity(identities));
        } else if let Some(credentials) = options.credentials {
            if credentials.access_key.is_empty() {
                return Err(Error::EmptyKey);
            }
            builder
                .set_auth(OneKey { secret: SecretKey::from(credentials.secret_key), access: credentials.access_key });
        }
        let secure = options.tls.is_some();
        let handler = listen::Handler {
            service: builder.build(),
            counters: counters.clone(),
            faults: options.faults,
            open,
            tls: options.tls,
        };
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(listen::run(listener, Arc::new(handler), stopped));
        Ok(Self { addr, secure, counters, stop, task })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://…` or `https://…`, for clients.
    pub fn endpoint(&self) -> String {
        format!("{}://{}", if self.secure { "https" } else { "http" }, self.addr)
    }

    /// What has come in so far.
    pub fn requests(&self) -> Requests {
        self.counters.read()
    }

    /// Takes no new requests, gives those in flight five seconds, and returns when the store is closed.
    pub async fn shutdown(mut self) {
        // No receiver means that the task has ended.
        let _ = self.stop.send(true);
        // An error here is a panic of the task, which has been reported.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Runs `work` where blocking is allowed.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> store::StoreResult<T> + Send + 'static,
) -> store::StoreResult<T> {
    tokio::task::spawn_blocking(work).await.map_err(|_| store::StoreError::Closed)?
}

async fn bind(addr: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(addr).await.map_err(|source| Error::Listen { addr, source })
}

/// Knows one key.
struct OneKey {
    access: String,
    secret: SecretKey,
}

#[async_trait::async_trait]
impl S3Auth for OneKey {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        if access_key != self.access {
            return Err(unknown_key());
        }
        Ok(self.secret.clone())
    }
}

/// Knows the keys of all identities.
struct ByIdentity(Arc<Identities>);

#[async_trait::async_trait]
impl S3Auth for ByIdentity {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let known = self.0.get(access_key);
        known.map(|identity| SecretKey::from(identity.secret_key())).ok_or_else(unknown_key)
    }
}

fn unknown_key() -> s3s::S3Error {
    s3_error!(InvalidAccessKeyId, "the access key is not known here")
}
