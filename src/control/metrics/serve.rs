//! Metrics over HTTP: `GET /metrics` and nothing else. There is no password: who reaches the address may read figures (no names of files).
//!
//! Invariant: connections, their number, headers and waiting are bounded, so that nobody outside can use the daemon up.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::control::server::Server;

const CONNECTIONS_MAX: usize = 16;
/// How long a client may take for a request's head, idle time between two requests included.
const HEAD_WITHIN: Duration = Duration::from_secs(90);
/// How long one connection is kept at all: who does not read his answer must not keep others away.
const CONNECTION_WITHIN: Duration = Duration::from_secs(900);
/// How long gathering may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
const HEAD_BYTES_MAX: usize = 16 << 10;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Takes the address; to be called within the runtime.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Answers until the runtime ends.
pub async fn serve(listener: TcpListener, server: Arc<Server>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // Never closed.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("metrics: cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let server = server.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| answer(server.clone(), request));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_WITHIN)
                .max_buf_size(HEAD_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_WITHIN, connection).await {
                tracing::debug!("metrics: {error}");
            }
            drop(slot);
        });
    }
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(TEXT));
    response
}

async fn answer(server: Arc<Server>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.uri().path() != "/metrics" {
        return Ok(plain(StatusCode::NOT_FOUND, "metrics are at /metrics\n"));
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Ok(refused);
    }
    // On a task of its own: looking at the share may block for a moment.
    let gathering = tokio::spawn(async move { server.metrics().await });
    Ok(match tokio::time::timeout(ANSWER_WITHIN, gathering).await {
        Ok(Ok(text)) => plain(StatusCode::OK, text),
        Ok(Err(_)) => plain(StatusCode::INTERNAL_SERVER_ERROR, "gathering failed: see the daemon's log\n"),
        Err(_) => plain(StatusCode::SERVICE_UNAVAILABLE, "gathering takes too long\n"),
    })
}
