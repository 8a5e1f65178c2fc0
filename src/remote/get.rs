//! Content: exactly the bytes asked for, of the version asked for, or an error; all at once or as they arrive.
//!
//! A body that is cut short is taken up where it ended, once, on condition that the object is still the same. Nothing is read ahead of
//! who asks for it but what one read of the socket gives.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderName};
use tokio::time::Instant;

use crate::ports::{Body, RemoteError, RemoteErrorKind, RemoteResult};
use crate::types::{ByteRange, ObjectKey};

use super::Shared;
use super::classify::{Place, innermost, one_line};
use super::config::Timeouts;
use super::deadline::within;
use super::endpoints::{Endpoint, Turn};
use super::objects::{quoted, unquoted};
use super::refusal::Refusal;
use super::signer::path;

/// Room made in one go before bytes arrive; a longer range grows as it comes.
const RESERVE_MAX: usize = 64 << 20;
/// Most of a refusal's body that is read, in bytes.
const REFUSAL_MAX: usize = 64 << 10;

/// An answer that has begun.
struct Answer {
    headers: HeaderMap,
    body: Incoming,
    /// How much longer its body may keep us waiting.
    patience: Duration,
}

impl Answer {
    fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    fn etag(&self) -> Option<String> {
        self.header(&ETAG).map(unquoted)
    }

    fn len(&self) -> Option<u64> {
        self.header(&CONTENT_LENGTH).and_then(|len| len.trim().parse().ok())
    }

    /// The next bytes, never none of them. Only the time spent waiting here counts: who takes a body may be slower than who sends it.
    async fn next(
        &mut self,
        place: &Place<'_>,
        timeouts: &Timeouts,
        so_far: &(dyn Fn() -> String + Sync),
    ) -> RemoteResult<Option<Bytes>> {
        loop {
            let began = Instant::now();
            let frame = tokio::time::timeout(self.patience.min(timeouts.stall), self.body.frame()).await;
            self.patience = self.patience.saturating_sub(began.elapsed());
            match frame {
                Err(_) => return Err(place.timed_out(&format!("the body stalled after {}", so_far()))),
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => {
                    let detail = format!("the body was cut after {} ({})", so_far(), innermost(&error));
                    return Err(place.error(RemoteErrorKind::Unreachable, detail));
                }
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Ok(Some(data)),
                    _ => {}
                },
            }
        }
    }
}

impl Shared {
    pub(super) async fn get(
        self: &Arc<Self>,
        key: &ObjectKey,
        range: ByteRange,
        etag: Option<&str>,
    ) -> RemoteResult<Bytes> {
        if range.len == 0 {
            return Ok(Bytes::new());
        }
        let mut transfer = Transfer::new(self, key, range, etag);
        let mut bytes = BytesMut::new();
        loop {
            match transfer.step().await? {
                Step::Piece(piece) if piece.len() as u64 == range.len => {
                    // A small object in one piece needs no copy. What follows it, if anything, is not part of the answer.
                    transfer.turn.worked(&self.endpoints);
                    return Ok(piece);
                }
                Step::Piece(piece) => {
                    if bytes.capacity() == 0 {
                        bytes.reserve(usize::try_from(range.len).unwrap_or(usize::MAX).min(RESERVE_MAX));
                    }
                    bytes.extend_from_slice(&piece);
                }
                Step::FromTheBeginning(_) => bytes.clear(),
                Step::End => return Ok(bytes.freeze()),
            }
        }
    }

    pub(super) async fn stream(
        self: &Arc<Self>,
        key: &ObjectKey,
        range: ByteRange,
        etag: Option<&str>,
    ) -> RemoteResult<Box<dyn Body>> {
        let mut transfer = Transfer::new(self, key, range, etag);
        transfer.begin().await?;
        Ok(Box::new(transfer))
    }

    pub(super) async fn get_all(&self, key: &ObjectKey, len_max: u64) -> RemoteResult<Bytes> {
        let mut attempts = self.endpoints.attempts();
        loop {
            let outcome = self.get_all_once(attempts.endpoint(), key, len_max).await;
            if let Some(outcome) = attempts.settle(outcome) {
                // What is too long once is so again: it was no failure of the endpoint.
                return outcome?.ok_or_else(|| {
                    let place = self.place("get", Some(key), attempts.endpoint());
                    let detail = format!("it does not have the 1 to {len_max} bytes that were expected");
                    place.error(RemoteErrorKind::Corrupt, detail)
                });
            }
        }
    }

    /// None if it is empty or longer than `len_max`.
    async fn get_all_once(&self, endpoint: &Endpoint, key: &ObjectKey, len_max: u64) -> RemoteResult<Option<Bytes>> {
        let place = self.place("get", Some(key), endpoint);
        let mut answer = self.ask(&place, endpoint, key, None, None).await?;
        let told = answer.len();
        if told.is_some_and(|len| len == 0 || len > len_max) {
            return Ok(None);
        }
        answer.patience = self.config.timeouts.whole(told.unwrap_or(len_max));
        let mut bytes = BytesMut::new();
        loop {
            let have = bytes.len() as u64;
            let so_far = || match told {
                Some(len) => format!("{have} of {len} bytes"),
                None => format!("{have} bytes"),
            };
            let Some(piece) = answer.next(&place, &self.config.timeouts, &so_far).await? else {
                if told.is_some_and(|len| len != have) {
                    let detail = format!("the body ends after {}", so_far());
                    return Err(place.error(RemoteErrorKind::Corrupt, detail));
                }
                return Ok((have > 0).then(|| bytes.freeze()));
            };
            let with_it = have + piece.len() as u64;
            if with_it > len_max {
                return Ok(None);
            }
            if have == 0 && told == Some(with_it) {
                return Ok(Some(piece));
            }
            if let (0, Some(len)) = (have, told) {
                bytes.reserve(usize::try_from(len).unwrap_or(usize::MAX).min(RESERVE_MAX));
            }
            bytes.extend_from_slice(&piece);
        }
    }

    /// Sends one GET; an answer that is no success is the error it says.
    async fn ask(
        &self,
        place: &Place<'_>,
        endpoint: &Endpoint,
        key: &ObjectKey,
        range: Option<ByteRange>,
        etag: Option<&str>,
    ) -> RemoteResult<Answer> {
        if key.0.is_empty() {
            return Err(place.error(RemoteErrorKind::Rejected, "the request cannot be made: the key is empty"));
        }
        let url = format!("{}{}", endpoint.url.trim_end_matches('/'), path(&self.config.bucket, &key.0));
        let mut headers = Vec::with_capacity(2);
        headers.extend(range.map(|range| ("range", format!("bytes={}-{}", range.offset, range.end() - 1))));
        headers.extend(etag.map(|etag| ("if-match", quoted(etag))));
        let timeouts = &self.config.timeouts;
        let began = async {
            let request = self.signer.get(url, &headers).await.map_err(|why| place.not_signed(why))?;
            let answer = self.http.send(request).await.map_err(|error| place.not_sent(&error))?;
            let (head, body) = answer.into_parts();
            if head.status.is_success() {
                return Ok((head.headers, body));
            }
            match Limited::new(body, REFUSAL_MAX).collect().await {
                Ok(body) => {
                    let said = Refusal::parse(&body.to_bytes());
                    Err(place.refused(head.status.as_u16(), &said.code, &said.message))
                }
                Err(error) if error.is::<hyper::Error>() => Err(place.unreachable(&*error)),
                // Longer than any store's refusal: it is not one.
                Err(_) => Err(place.refused(head.status.as_u16(), "", "")),
            }
        };
        let began = within(timeouts, 0, None, began).await;
        let (headers, body) = began.map_err(|late| place.timed_out(&format!("no answer in {:.1?}", late.after)))??;
        Ok(Answer { headers, body, patience: timeouts.whole(range.map_or(0, |range| range.len)) })
    }
}

/// One range on its way.
struct Transfer {
    shared: Arc<Shared>,
    key: ObjectKey,
    range: ByteRange,
    /// The version: that asked for, or that of the first answer.
    etag: Option<String>,
    /// Bytes handed out.
    given: u64,
    turn: Turn,
    answer: Option<Answer>,
    /// It has come to this end: the last byte, or an error.
    ended: Option<RemoteResult<()>>,
}

enum Step {
    Piece(Bytes),
    /// It goes on with the first byte, for nothing proves that the rest would be of the same version. The reason, for who cannot.
    FromTheBeginning(RemoteError),
    End,
}

impl Transfer {
    fn new(shared: &Arc<Shared>, key: &ObjectKey, range: ByteRange, etag: Option<&str>) -> Self {
        Self {
            shared: shared.clone(),
            key: key.clone(),
            range,
            etag: etag.map(unquoted),
            given: 0,
            turn: shared.endpoints.turn(),
            answer: None,
            ended: (range.len == 0).then_some(Ok(())),
        }
    }

    /// The answer has begun, or the attempts are used up.
    async fn begin(&mut self) -> RemoteResult<()> {
        while self.answer.is_none() && self.ended.is_none() {
            let asked = self.ask().await;
            self.settle(asked)?;
        }
        Ok(())
    }

    async fn step(&mut self) -> RemoteResult<Step> {
        loop {
            self.begin().await?;
            if let Some(ended) = &self.ended {
                return ended.clone().map(|()| Step::End);
            }
            let outcome = self.read().await;
            let reason = outcome.as_ref().err().cloned();
            match (self.settle(outcome)?, reason) {
                (Some(Some(piece)), _) => return Ok(Step::Piece(piece)),
                (Some(None), _) => self.turn.worked(&self.shared.endpoints),
                (None, Some(reason)) if self.ended.is_none() && self.given > 0 && self.etag.is_none() => {
                    self.given = 0;
                    return Ok(Step::FromTheBeginning(reason));
                }
                (None, _) => {}
            }
        }
    }

    /// None if what failed is to be tried once more.
    fn settle<T>(&mut self, outcome: RemoteResult<T>) -> RemoteResult<Option<T>> {
        let error = match outcome {
            Ok(value) => return Ok(Some(value)),
            Err(error) => error,
        };
        self.answer = None;
        if self.turn.is_over(&self.shared.endpoints, &error) {
            self.ended = Some(Err(error.clone()));
            return Err(error);
        }
        Ok(None)
    }

    async fn ask(&mut self) -> RemoteResult<()> {
        let endpoint = self.turn.endpoint(&self.shared.endpoints);
        let place = self.shared.place("get", Some(&self.key), endpoint);
        let wanted = ByteRange { offset: self.range.offset + self.given, len: self.range.len - self.given };
        let answer = self.shared.ask(&place, endpoint, &self.key, Some(wanted), self.etag.as_deref()).await?;
        check_range(&place, &answer, wanted)?;
        match (&self.etag, answer.etag()) {
            // Some stores ignore If-Match.
            (Some(asked), Some(got)) if *asked != got => {
                let detail = format!("the object is {} now, not {}", one_line(&got), one_line(asked));
                return Err(place.error(RemoteErrorKind::Conflict, detail));
            }
            (None, got) => self.etag = got,
            _ => {}
        }
        self.answer = Some(answer);
        Ok(())
    }

    /// The next piece, none at the end.
    async fn read(&mut self) -> RemoteResult<Option<Bytes>> {
        let Some(answer) = &mut self.answer else { return Ok(None) };
        let endpoint = self.turn.endpoint(&self.shared.endpoints);
        let place = self.shared.place("get", Some(&self.key), endpoint);
        let (given, len) = (self.given, self.range.len);
        let so_far = || format!("{given} of {len} bytes");
        let longer = || place.error(RemoteErrorKind::Corrupt, "the body is longer than what was asked for");
        if given == len {
            // Nothing is left to ask for again: how the connection ends is no matter, more of a body is.
            let more = !answer.body.is_end_stream()
                && matches!(answer.next(&place, &self.shared.config.timeouts, &so_far).await, Ok(Some(_)));
            let end = if more { Err(longer()) } else { Ok(()) };
            self.ended = Some(end.clone());
            return end.map(|()| None);
        }
        match answer.next(&place, &self.shared.config.timeouts, &so_far).await? {
            None => Err(place.error(RemoteErrorKind::Corrupt, format!("the body ends after {}", so_far()))),
            Some(piece) if piece.len() as u64 > len - given => Err(longer()),
            Some(piece) => {
                self.given += piece.len() as u64;
                Ok(Some(piece))
            }
        }
    }
}

#[async_trait]
impl Body for Transfer {
    async fn next(&mut self) -> RemoteResult<Option<Bytes>> {
        match self.step().await? {
            Step::Piece(piece) => Ok(Some(piece)),
            Step::End => Ok(None),
            // What was handed out cannot be taken back.
            Step::FromTheBeginning(reason) => {
                self.ended = Some(Err(reason.clone()));
                Err(reason)
            }
        }
    }
}

/// Whether the store answered the range that was asked for.
fn check_range(place: &Place<'_>, answer: &Answer, wanted: ByteRange) -> RemoteResult<()> {
    let Some(given) = answer.header(&CONTENT_RANGE) else {
        // The whole object: fine if that is what was asked for.
        if wanted.offset == 0 && answer.len() == Some(wanted.len) {
            return Ok(());
        }
        return Err(place.error(RemoteErrorKind::Rejected, "the store ignores byte ranges: it cannot serve a pair"));
    };
    let told = one_line(given);
    let bounds = given.strip_prefix("bytes ").and_then(|given| given.split_once('/')).and_then(|(bounds, _)| {
        let (first, last) = bounds.split_once('-')?;
        Some((first.trim().parse::<u64>().ok()?, last.trim().parse::<u64>().ok()?))
    });
    match bounds {
        Some((first, last)) if first == wanted.offset && last.checked_add(1) == Some(wanted.end()) => Ok(()),
        Some((first, last)) if first == wanted.offset && last < wanted.end() => Err(place.error(
            RemoteErrorKind::Corrupt,
            format!("the object is shorter than it should be: {} bytes asked for, {told:?} given", wanted.len),
        )),
        _ => Err(place.error(
            RemoteErrorKind::Rejected,
            format!("bytes {}-{} were asked for, {told:?} answered", wanted.offset, wanted.end() - 1),
        )),
    }
}
