//! Connections for content: HTTP/1.1 over a pool, without the layers the SDK puts around each request.
//!
//! Measured by `tests/remote/measure.rs`: most of what a small GET costs in the SDK is those layers.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Builder, Client, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tower_service::Service;

use super::endpoints::{IDLE_MAX, IDLE_TIME};

/// Most read from a connection at once, bytes; also the largest piece of a body. A little more than half of the smallest chunk of a large file, so that two
/// reads bring one with the answer's head.
const READ_MAX: usize = (512 + 4) << 10;

type Pooled<C> = Client<Timed<C>, Full<Bytes>>;

/// One pool for all endpoints of a remote. Plain http spares the reading of the root certificates.
pub(super) enum Http {
    Plain(Pooled<HttpConnector>),
    Tls(Pooled<HttpsConnector<HttpConnector>>),
}

impl Http {
    /// Fails if there is an `https` endpoint and the system trusts no authority.
    pub(super) fn new(endpoints: &[String], connect_within: Duration) -> io::Result<Self> {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIME)
            .pool_max_idle_per_host(IDLE_MAX)
            .http1_max_buf_size(READ_MAX);
        if endpoints.iter().all(|url| url.starts_with("http://")) {
            return Ok(Self::Plain(pooled(&builder, tcp, connect_within)));
        }
        tcp.enforce_http(false);
        let tls = HttpsConnectorBuilder::new().with_native_roots()?.https_or_http().enable_http1();
        Ok(Self::Tls(pooled(&builder, tls.wrap_connector(tcp), connect_within)))
    }

    /// Sends a request; the answer's body comes as it is asked for. Dropping it ends the transfer.
    pub(super) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Error> {
        match self {
            Self::Plain(client) => client.request(request).await,
            Self::Tls(client) => client.request(request).await,
        }
    }
}

fn pooled<C>(builder: &Builder, connector: C, within: Duration) -> Pooled<C>
where
    Timed<C>: hyper_util::client::legacy::connect::Connect + Clone,
{
    builder.build(Timed { connector, within })
}

/// A connector with a deadline for all of it: name, connection, handshake.
#[derive(Clone)]
pub(super) struct Timed<C> {
    connector: C,
    within: Duration,
}

impl<C> Service<Uri> for Timed<C>
where
    C: Service<Uri>,
    C::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    C::Future: Send + 'static,
{
    type Response = C::Response;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.connector.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connected = tokio::time::timeout(self.within, self.connector.call(uri));
        Box::pin(async move {
            match connected.await {
                Ok(connected) => connected.map_err(Into::into),
                Err(late) => Err(late.into()),
            }
        })
    }
}
