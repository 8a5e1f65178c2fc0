//! Deadlines of requests: a whole one for all, and for large bodies one on progress.
//!
//! A fixed time for a large body is either too short for a slow line shared by many parts, or too long for a server
//! that hangs. So an upload is given up when for `stall` no byte of it moved, and in any case below `rate_min`.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::config::Timeouts;

/// Bodies up to this size are handed over whole: they fit the socket's buffer, so their progress tells nothing.
const WHOLE_MAX: usize = 256 << 10;
/// What larger bodies are handed over in.
const FRAME: usize = 256 << 10;

/// The deadline passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Late {
    pub after: Duration,
}

/// When bytes of a body last moved.
pub(super) struct Progress {
    start: Instant,
    last_ms: AtomicU64,
}

impl Progress {
    fn new() -> Self {
        Self { start: Instant::now(), last_ms: AtomicU64::new(0) }
    }

    fn touch(&self) {
        self.last_ms.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.start + Duration::from_millis(self.last_ms.load(Ordering::Relaxed))
    }
}

/// A body in memory that notes when it is drawn from.
struct Watched {
    data: Bytes,
    progress: Arc<Progress>,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.progress.touch();
        if self.data.is_empty() {
            return Poll::Ready(None);
        }
        let len = self.data.len().min(FRAME);
        Poll::Ready(Some(Ok(Frame::data(self.data.split_to(len)))))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.data.len() as u64)
    }
}

/// A request body, with what watches it where it is large.
pub(super) fn body(data: Bytes) -> (ByteStream, Option<Arc<Progress>>) {
    if data.len() <= WHOLE_MAX {
        return (ByteStream::from(data), None);
    }
    let progress = Arc::new(Progress::new());
    let watched = Watched { data, progress: progress.clone() };
    (ByteStream::new(SdkBody::from_body_1_x(watched)), Some(progress))
}

/// Runs a request whose body has `len` bytes (either way) by its deadlines.
pub(super) async fn within<F: Future>(
    timeouts: &Timeouts,
    len: u64,
    progress: Option<Arc<Progress>>,
    request: F,
) -> Result<F::Output, Late> {
    let start = Instant::now();
    let whole = start + timeouts.whole(len);
    let late = || Late { after: start.elapsed() };
    let Some(progress) = progress else {
        return tokio::time::timeout_at(whole, request).await.map_err(|_| late());
    };
    tokio::pin!(request);
    loop {
        // A connection may still have to be made before the first byte moves.
        let next = (progress.last() + timeouts.stall).max(start + timeouts.connect + timeouts.stall).min(whole);
        if next <= Instant::now() {
            return Err(late());
        }
        if let Ok(output) = tokio::time::timeout_at(next, &mut request).await {
            return Ok(output);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUTS: Timeouts =
        Timeouts { connect: Duration::from_millis(50), stall: Duration::from_secs(1), rate_min: 1_000 };
    const MS: fn(u64) -> Duration = Duration::from_millis;

    /// Runs a request that touches its progress every `step` for `length`; how long it took.
    async fn run(len: u64, step: Duration, length: Duration) -> Result<Duration, Duration> {
        let start = Instant::now();
        let progress = Arc::new(Progress::new());
        let moving = progress.clone();
        let request = async move {
            while start.elapsed() < length {
                tokio::time::sleep(step).await;
                moving.touch();
            }
        };
        let outcome = within(&TIMEOUTS, len, Some(progress), request).await;
        outcome.map(|()| start.elapsed()).map_err(|late| late.after)
    }

    #[tokio::test]
    async fn progress_keeps_a_request_alive_a_stall_ends_it() {
        let moving = run(1 << 20, MS(50), MS(2_000));
        let stalled = run(1 << 20, MS(9_000), MS(9_000));
        // 1,000 bytes at 1,000 a second, connect and stall: slower than that is given up although it moves.
        let slow = run(1_000, MS(50), MS(9_000));
        let (moving, stalled, slow) = tokio::join!(moving, stalled, slow);
        assert!(moving.unwrap() >= MS(2_000));
        let stalled = stalled.unwrap_err();
        assert!((MS(1_050)..MS(1_900)).contains(&stalled), "{stalled:?}");
        let slow = slow.unwrap_err();
        assert!((MS(2_050)..MS(4_000)).contains(&slow), "{slow:?}");
    }
}
