//! Requests to a server without credentials: signatures are taken off unread, whoever made them.
//!
//! `s3s` refuses a signed request when it has no keys to check it with, and leaves an `aws-chunked` body encoded when there
//! is no signature. So both are handled here. What a signature would have protected is still checked where it can be: the
//! payload's hash, and the checksum in the trailer.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderName, HeaderValue};
use hyper::http::Extensions;
use hyper::{HeaderMap, Request, Uri};
use parking_lot::Mutex;
use s3s::StdError;

/// Longest line of the chunk framing, and all trailers together, bytes.
const LINE_BYTES_MAX: usize = 1 << 10;
const TRAILERS_MAX: usize = 32;
/// Query parameters of a signature, version 4 and 2, in lower case.
const SIGNATURE_PARAMETERS: [&str; 10] = [
    "x-amz-algorithm",
    "x-amz-credential",
    "x-amz-date",
    "x-amz-expires",
    "x-amz-security-token",
    "x-amz-signature",
    "x-amz-signedheaders",
    "awsaccesskeyid",
    "expires",
    "signature",
];

/// What is known of a request whose signature was taken off; travels in its extensions.
#[derive(Clone, Debug, Default)]
pub struct Unsigned {
    payload_sha256: Option<String>,
    trailers: Arc<Mutex<Option<HeaderMap>>>,
}

impl Unsigned {
    /// The hex hash the payload was signed with.
    pub fn payload_sha256(extensions: &Extensions) -> Option<String> {
        extensions.get::<Self>()?.payload_sha256.clone()
    }

    /// The headers that followed the body, once it has been read.
    pub fn take_trailers(&self) -> Option<HeaderMap> {
        self.trailers.lock().take()
    }
}

/// Takes the signature off `request`, and the chunk framing off its body.
pub fn strip(request: Request<s3s::Body>) -> Request<s3s::Body> {
    let (mut parts, body) = request.into_parts();
    parts.headers.remove(AUTHORIZATION);
    if let Some(uri) = without_signature(&parts.uri) {
        parts.uri = uri;
    }
    let mut unsigned = Unsigned::default();
    let payload = parts.headers.remove("x-amz-content-sha256");
    let payload = payload.as_ref().and_then(|value| value.to_str().ok()).unwrap_or_default();
    let body = if payload.starts_with("STREAMING-") {
        let decoded = parts.headers.get("x-amz-decoded-content-length").cloned();
        let length = decoded.as_ref().and_then(|value| value.to_str().ok()?.parse().ok());
        match decoded {
            Some(decoded) => parts.headers.insert(CONTENT_LENGTH, decoded),
            None => parts.headers.remove(CONTENT_LENGTH),
        };
        s3s::Body::http_body_unsync(Unchunked::new(body, length, unsigned.trailers.clone()))
    } else {
        if payload.len() == 64 && payload.bytes().all(|b| b.is_ascii_hexdigit()) {
            unsigned.payload_sha256 = Some(payload.to_ascii_lowercase());
        }
        body
    };
    parts.extensions.insert(unsigned);
    Request::from_parts(parts, body)
}

/// The URI without the parameters of a presigned request; `None` if it is not one.
fn without_signature(uri: &Uri) -> Option<Uri> {
    let query = uri.query()?;
    let name = |pair: &str| pair.split('=').next().unwrap_or_default().to_ascii_lowercase();
    if !query.split('&').any(|pair| matches!(name(pair).as_str(), "x-amz-signature" | "signature")) {
        return None;
    }
    let kept: Vec<&str> =
        query.split('&').filter(|pair| !SIGNATURE_PARAMETERS.contains(&name(pair).as_str())).collect();
    let path_and_query =
        if kept.is_empty() { uri.path().to_owned() } else { format!("{}?{}", uri.path(), kept.join("&")) };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path_and_query.parse().ok()?);
    Uri::from_parts(parts).ok()
}

/// Why a chunked body cannot be read. `s3/put.rs` shows the text to the client.
#[derive(Debug, thiserror::Error)]
enum ChunkError {
    #[error("the chunk framing is broken")]
    Framing,
    #[error("the body ended within a chunk")]
    Incomplete,
}

enum State {
    /// The line with the size of the next chunk.
    Size,
    /// Content, so many bytes of it.
    Data(u64),
    /// The line end after a chunk.
    DataEnd,
    /// Lines of trailers.
    Trailers,
    Done,
}

/// The content of an `aws-chunked` body. Chunk signatures are skipped, trailers kept.
struct Unchunked<B> {
    inner: B,
    input: Bytes,
    state: State,
    line: Vec<u8>,
    trailers: HeaderMap,
    deliver: Arc<Mutex<Option<HeaderMap>>>,
    /// What the client said is still to come.
    left: Option<u64>,
}

impl<B> Unchunked<B> {
    fn new(inner: B, left: Option<u64>, deliver: Arc<Mutex<Option<HeaderMap>>>) -> Self {
        Self { inner, input: Bytes::new(), state: State::Size, line: vec![], trailers: HeaderMap::new(), deliver, left }
    }

    /// A complete line without its end, if the input has one.
    fn take_line(&mut self) -> Result<Option<Vec<u8>>, ChunkError> {
        let end = self.input.iter().position(|b| *b == b'\n');
        let take = end.map_or(self.input.len(), |end| end + 1);
        self.line.extend_from_slice(&self.input[..take]);
        self.input.advance(take);
        if self.line.len() > LINE_BYTES_MAX {
            return Err(ChunkError::Framing);
        }
        if end.is_none() {
            return Ok(None);
        }
        let mut line = std::mem::take(&mut self.line);
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(Some(line))
    }

    /// Goes on as far as the input allows; `Some` is content.
    fn step(&mut self) -> Result<Option<Bytes>, ChunkError> {
        while !self.input.is_empty() {
            match self.state {
                State::Size => {
                    let Some(line) = self.take_line()? else { break };
                    let size = line.split(|b| *b == b';').next().and_then(|hex| std::str::from_utf8(hex).ok());
                    let size = size.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
                    self.state = match size.ok_or(ChunkError::Framing)? {
                        0 => State::Trailers,
                        size => State::Data(size),
                    };
                }
                State::Data(left) => {
                    let len = usize::try_from(left).unwrap_or(usize::MAX).min(self.input.len());
                    let left = left - len as u64;
                    self.state = if left == 0 { State::DataEnd } else { State::Data(left) };
                    self.left = self.left.map(|left| left.saturating_sub(len as u64));
                    return Ok(Some(self.input.split_to(len)));
                }
                State::DataEnd => match self.take_line()? {
                    Some(line) if line.is_empty() => self.state = State::Size,
                    Some(_) => return Err(ChunkError::Framing),
                    None => break,
                },
                State::Trailers => match self.take_line()? {
                    Some(line) if line.is_empty() => self.finish(),
                    Some(line) => self.trailer(&line)?,
                    None => break,
                },
                State::Done => self.input.clear(),
            }
        }
        Ok(None)
    }

    fn trailer(&mut self, line: &[u8]) -> Result<(), ChunkError> {
        let colon = line.iter().position(|b| *b == b':').ok_or(ChunkError::Framing)?;
        let name = HeaderName::from_bytes(line[..colon].trim_ascii()).map_err(|_| ChunkError::Framing)?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).map_err(|_| ChunkError::Framing)?;
        if self.trailers.len() >= TRAILERS_MAX {
            return Err(ChunkError::Framing);
        }
        self.trailers.insert(name, value);
        Ok(())
    }

    fn finish(&mut self) {
        *self.deliver.lock() = Some(std::mem::take(&mut self.trailers));
        self.state = State::Done;
    }

    /// The body ended: fine only behind the last chunk.
    fn end(&mut self) -> Result<(), ChunkError> {
        if matches!(self.state, State::Trailers) {
            // Some clients leave out the last empty line, or the line end of the last trailer.
            let line = std::mem::take(&mut self.line);
            if !line.trim_ascii().is_empty() {
                self.trailer(&line)?;
            }
            self.finish();
        }
        if matches!(self.state, State::Done) { Ok(()) } else { Err(ChunkError::Incomplete) }
    }
}

impl<B> Body for Unchunked<B>
where
    B: Body<Data = Bytes> + Unpin,
    StdError: From<B::Error>,
{
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        loop {
            match self.step() {
                Ok(Some(content)) => return Poll::Ready(Some(Ok(Frame::data(content)))),
                Ok(None) => {}
                Err(e) => return Poll::Ready(Some(Err(e.into()))),
            }
            match std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.input = data;
                    }
                }
                Some(Err(e)) => return Poll::Ready(Some(Err(e.into()))),
                None => return Poll::Ready(self.end().err().map(|e| Err(e.into()))),
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt as _;

    /// A body that arrives in pieces of `piece` bytes.
    struct Pieces(Bytes, usize);

    impl Body for Pieces {
        type Data = Bytes;
        type Error = StdError;
        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
            let len = self.1.min(self.0.len());
            let piece = self.0.split_to(len);
            Poll::Ready((len > 0).then_some(Ok(Frame::data(piece))))
        }
    }

    fn decode(wire: &str, piece: usize) -> Result<(Vec<u8>, HeaderMap), String> {
        let delivered = Arc::new(Mutex::new(None));
        let body = Unchunked::new(Pieces(Bytes::copy_from_slice(wire.as_bytes()), piece), None, delivered.clone());
        let mut body = s3s::Body::http_body_unsync(body);
        let mut content = Vec::new();
        while let Some(chunk) = futures::executor::block_on(body.next()) {
            content.extend_from_slice(&chunk.map_err(|e| e.to_string())?);
        }
        let trailers = delivered.lock().take().unwrap_or_default();
        Ok((content, trailers))
    }

    #[test]
    fn framing_comes_off_however_it_is_cut() {
        let signature = "a".repeat(64);
        let cases = [
            "5\r\nhello\r\n6\r\n world\r\n0\r\nx-amz-checksum-crc32:AAAA\r\n\r\n".to_owned(),
            format!(
                "b;chunk-signature={signature}\r\nhello world\r\n0;chunk-signature={signature}\r\nx-amz-checksum-crc32:AAAA\n\r\n"
            ),
            "B\r\nhello world\r\n0\r\nx-amz-checksum-crc32: AAAA".to_owned(),
        ];
        for wire in &cases {
            for piece in 1..wire.len() {
                let (content, trailers) = decode(wire, piece).unwrap();
                assert_eq!(content, b"hello world", "{wire:?} in pieces of {piece}");
                assert_eq!(trailers["x-amz-checksum-crc32"], "AAAA");
            }
        }
        assert_eq!(decode("0\r\n\r\n", 2).unwrap(), (vec![], HeaderMap::new()));
    }

    #[test]
    fn broken_framing_is_an_error() {
        for wire in [
            "",
            "5\r\nhel",
            "5\r\nhello",
            "5\r\nhello\r\n",
            "5\r\nhelloX\r\n0\r\n\r\n",
            "zz\r\n",
            "-1\r\n",
            "0\r\nnocolon\r\n\r\n",
        ] {
            for piece in 1..=wire.len().max(1) {
                assert!(decode(wire, piece).is_err(), "{wire:?}");
            }
        }
        assert!(decode(&"1".repeat(2000), 100).is_err(), "an endless line");
    }

    #[test]
    fn presigned_queries_lose_only_their_signature() {
        let strip = |uri: &str| without_signature(&uri.parse().unwrap()).map(|uri| uri.to_string());
        let signed = "/b/k?partNumber=1&X-Amz-Algorithm=A&X-Amz-Signature=1&X-Amz-Expires=9&uploadId=x";
        assert_eq!(strip(signed), Some("/b/k?partNumber=1&uploadId=x".into()));
        assert_eq!(strip("/b/k?Signature=x&AWSAccessKeyId=y&Expires=1"), Some("/b/k".into()));
        assert_eq!(strip("/b?list-type=2&prefix=Signature"), None);
    }
}
