//! Request bodies that can be finished after their request was refused.
//!
//! An answer that comes before the whole request was read makes the connection close with bytes unread, and the kernel then
//! resets it: the client may never see the answer. So what is left of a refused request's body is read and thrown away,
//! within limits.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use parking_lot::Mutex;
use s3s::StdError;

/// Most bytes thrown away; a client that sends more is cut off.
const DRAIN_BYTES_MAX: u64 = 64 << 20;
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);

/// A body that is read through the request it was lent to.
struct Lent {
    body: Arc<Mutex<Incoming>>,
    touched: Arc<AtomicBool>,
}

impl Body for Lent {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        self.touched.store(true, Ordering::Relaxed);
        Pin::new(&mut *self.body.lock()).poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.lock().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.lock().size_hint()
    }
}

/// The lender's side of a body.
pub struct Rest {
    body: Arc<Mutex<Incoming>>,
    touched: Arc<AtomicBool>,
}

/// Lends out `body`; the second half finishes it. `None` if there is nothing to finish.
pub fn lend(body: Incoming) -> (s3s::Body, Option<Rest>) {
    if body.is_end_stream() {
        return (s3s::Body::from(body), None);
    }
    let body = Arc::new(Mutex::new(body));
    let touched = Arc::<AtomicBool>::default();
    let lent = Lent { body: body.clone(), touched: touched.clone() };
    (s3s::Body::http_body_unsync(lent), Some(Rest { body, touched }))
}

impl Rest {
    /// Nobody has begun to read: a client that waits for a go-ahead has not had it.
    pub fn untouched(&self) -> bool {
        !self.touched.load(Ordering::Relaxed)
    }

    /// Reads what is left, within limits.
    pub async fn drain(self) {
        let read = async {
            let mut left = DRAIN_BYTES_MAX;
            loop {
                let frame = std::future::poll_fn(|cx| Pin::new(&mut *self.body.lock()).poll_frame(cx)).await;
                let Some(Ok(frame)) = frame else { return };
                let len = frame.data_ref().map_or(0, |data| data.len() as u64);
                if len >= left {
                    return;
                }
                left -= len;
            }
        };
        // A client slower than that is cut off.
        let _ = tokio::time::timeout(DRAIN_TIME_MAX, read).await;
    }
}
