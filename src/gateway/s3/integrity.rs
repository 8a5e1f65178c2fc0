//! Checksums over requests whose body is XML: s3s decodes those before an operation sees them, so they are checked here.
//!
//! A flipped bit in a list of keys to delete would delete another object.

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use hyper::{Method, Request};
use s3s::{Body, S3Result, s3_error};

use super::digest::Claims;
use crate::gateway::unsigned::Unsigned;

/// Longest checked body, bytes: 1,000 keys of 1,024 bytes, each byte escaped.
const BODY_BYTES_MAX: usize = 8 << 20;

/// Whether the request carries XML that its checksum headers speak of.
fn applies(request: &Request<Body>) -> bool {
    let Some(query) = request.uri().query() else { return false };
    let named = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
    match *request.method() {
        Method::POST => named("delete"),
        Method::PUT => named("tagging"),
        _ => false,
    }
}

/// Reads and checks the body of a request it is needed for; others pass as they are. A body that is still encoded
/// (`aws-chunked`, to be decoded by s3s with its signature) is protected by that.
pub async fn check(request: Request<Body>) -> S3Result<Request<Body>> {
    let payload = request.headers().get("x-amz-content-sha256").map(|value| value.as_bytes());
    if !applies(&request) || payload.is_some_and(|value| value.starts_with(b"STREAMING-")) {
        return Ok(request);
    }
    let (parts, mut body) = request.into_parts();
    let unsigned = parts.extensions.get::<Unsigned>();
    let mut hasher = Claims::read(&parts.headers, None, Unsigned::payload_sha256(&parts.extensions))?.hasher();
    let mut whole = BytesMut::new();
    while let Some(chunk) = body.next().await {
        let chunk: Bytes = chunk.map_err(|e| s3_error!(IncompleteBody, "the body did not arrive whole: {e}"))?;
        if whole.len() + chunk.len() > BODY_BYTES_MAX {
            return Err(s3_error!(MaxMessageLengthExceeded));
        }
        whole.extend_from_slice(&chunk);
        hasher.update(&[chunk]);
    }
    hasher.verify(unsigned.and_then(Unsigned::take_trailers).as_ref())?;
    Ok(Request::from_parts(parts, Body::from(whole.freeze())))
}
