//! The HTTP side: accepts connections, hands requests through the layers, ends in good order.
//!
//! A request passes: count → fault, if a test asked for one → signature off, if nobody checks it → checksum of XML → `s3s` → the store.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, EXPECT, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use s3s::service::S3Service;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::counters::Counters;
use super::faults::{self, Effect, Faults};
use super::tls::Tls;
use super::{drain, s3, unsigned};

/// Most connections at a time; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 1_024;
/// How long requests in flight may take to finish after the end was asked for.
const GRACE: Duration = Duration::from_secs(5);
/// How long a client may take to agree on a key.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// After a failed accept (out of descriptors, say): how long until the next try.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Largest read from a connection, bytes; also bounds the headers.
const READ_BYTES_MAX: usize = 1 << 20;

/// What a connection needs to answer requests.
pub struct Handler {
    pub service: S3Service,
    pub counters: Arc<Counters>,
    pub faults: Faults,
    /// There are no credentials: any signature will do.
    pub open: bool,
    pub tls: Option<Tls>,
}

/// Serves `listener` until `stop` changes; then lets requests in flight finish and drops the handler.
pub async fn run(listener: TcpListener, handler: Arc<Handler>, mut stop: watch::Receiver<bool>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accept = async {
            let slot = slots.clone().acquire_owned().await;
            (slot, listener.accept().await)
        };
        let accepted = tokio::select! {
            accepted = accept => accepted,
            Some(_) = connections.join_next() => continue,
            () = stopped(&mut stop) => break,
        };
        match accepted {
            (Ok(slot), Ok((stream, peer))) => {
                let (handler, stop) = (handler.clone(), stop.clone());
                handler.counters.count_connection();
                connections.spawn(async move {
                    serve(stream, peer, handler, stop).await;
                    drop(slot);
                });
            }
            (_, Err(error)) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            // The semaphore is never closed.
            (Err(_), _) => break,
        }
    }
    drop(listener);
    let all_done = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, all_done).await.is_err() {
        connections.shutdown().await;
    }
    // The store finishes its queue in its destructor, which blocks. The task cannot fail but by a panic there.
    let _ = tokio::task::spawn_blocking(move || drop(handler)).await;
}

async fn serve(stream: TcpStream, peer: SocketAddr, handler: Arc<Handler>, mut stop: watch::Receiver<bool>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "no TCP_NODELAY");
    }
    let reset = Arc::new(AtomicBool::new(false));
    let stream = Connection { stream, reset: reset.clone() };
    let Some(tls) = &handler.tls else { return serve_on(stream, peer, handler, reset, stop).await };
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(HANDSHAKE_WITHIN, tls.accept(stream)) => shaken,
        () = stopped(&mut stop) => return,
    };
    match shaken {
        Ok(Ok(stream)) => serve_on(stream, peer, handler, reset, stop).await,
        Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS"),
        Err(_) => tracing::debug!(%peer, "no TLS handshake in time"),
    }
}

async fn serve_on(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    handler: Arc<Handler>,
    reset: Arc<AtomicBool>,
    mut stop: watch::Receiver<bool>,
) {
    let io = TokioIo::new(stream);
    let service = service_fn(move |request| answer(handler.clone(), reset.clone(), request));
    let connection = http1::Builder::new().max_buf_size(READ_BYTES_MAX).serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // Clients leave in the middle; that is their right.
        tracing::debug!(%peer, %error, "connection ended");
    }
}

/// Returns when the end was asked for, or nobody is left to ask.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await.map(|_| ());
}

/// The connection is to be closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the connection is cut by an injected fault")]
struct CutConnection;

async fn answer(
    handler: Arc<Handler>,
    reset: Arc<AtomicBool>,
    request: Request<Incoming>,
) -> Result<Response<s3s::Body>, s3s::StdError> {
    handler.counters.count_method(request.method());
    let url = request.uri().path_and_query().map_or("", |url| url.as_str());
    let effect = handler.faults.pick(request.method().as_str(), url);
    match effect {
        Some(Effect::InternalError) => {
            return Ok(error_answer(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"));
        }
        Some(Effect::SlowDown) => return Ok(error_answer(StatusCode::SERVICE_UNAVAILABLE, "SlowDown")),
        Some(Effect::Delay(time)) => tokio::time::sleep(time).await,
        Some(Effect::Hang) => return std::future::pending().await,
        Some(Effect::Reset) => {
            reset.store(true, Ordering::Release);
            return Err(CutConnection.into());
        }
        _ => {}
    }
    let (parts, body) = request.into_parts();
    let expects = parts.headers.contains_key(EXPECT);
    let (body, rest) = drain::lend(body);
    let body = match effect {
        Some(effect) => faults::damage_request(body, effect, reset.clone()),
        None => body,
    };
    let mut request = Request::from_parts(parts, body);
    if handler.open {
        request = unsigned::strip(request);
    }
    let mut answered = match s3::integrity::check(request).await {
        Ok(request) => handler.service.call(request).await.map_err(s3s::StdError::from),
        Err(refused) => refused.to_http_response().map_err(s3s::StdError::from),
    };
    if let Ok(answer) = &mut answered {
        if expects && rest.as_ref().is_none_or(|rest| rest.untouched()) {
            // An answer without a go-ahead first, even to an empty body, leaves botocore's connection in a state in which
            // it misses the next answer and waits for a minute.
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        } else if let Some(rest) = rest
            && !answer.status().is_success()
            && !reset.load(Ordering::Acquire)
        {
            rest.drain().await;
        }
    }
    match effect {
        Some(Effect::LostReply) => {
            reset.store(true, Ordering::Release);
            Err(CutConnection.into())
        }
        Some(Effect::CutUpload { .. }) if reset.load(Ordering::Acquire) => Err(CutConnection.into()),
        Some(effect) => Ok(answered?.map(|body| faults::damage_reply(body, effect))),
        None => answered,
    }
}

fn error_answer(status: StatusCode, code: &str) -> Response<s3s::Body> {
    let xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>injected fault</Message></Error>"
    );
    let mut answer = Response::new(s3s::Body::from(xml));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    answer
}

/// A stream that ends with a reset instead of an orderly close if that is asked for.
struct Connection {
    stream: TcpStream,
    reset: Arc<AtomicBool>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.reset.load(Ordering::Acquire) {
            // If it fails the client sees an orderly close: still no answer.
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
