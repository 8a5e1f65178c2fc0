//! A test aid: makes the endpoint misbehave as networks and stores do. Without rules it costs one look at a flag.
//!
//! Only a program that links the crate can add rules; no command and no request can.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use s3s::StdError;

/// How long a body that is to be cut may take to deliver what comes before the cut.
const CUT_PAUSE: Duration = Duration::from_millis(50);

/// What happens to a request that a rule picks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// 500 InternalError; nothing is done.
    InternalError,
    /// 503 SlowDown; nothing is done.
    SlowDown,
    /// The request is carried out after this time.
    Delay(Duration),
    /// The request is neither read nor answered; the connection stays open.
    Hang,
    /// The connection is reset; nothing is done.
    Reset,
    /// The request is carried out, then the connection is cut in place of an answer.
    LostReply,
    /// The connection is reset after so many bytes of the request's body.
    CutUpload { after: u64 },
    /// A bit of this byte of the request's body is flipped.
    CorruptUpload { at: u64 },
    /// The connection is cut after so many bytes of the answer's body.
    TruncateReply { after: u64 },
    /// A bit of this byte of the answer's body is flipped.
    CorruptReply { at: u64 },
    /// After so many bytes of the answer's body nothing more comes; the connection stays open.
    StallReply { after: u64 },
}

/// Which requests get which effect. Without further limits: every request.
#[derive(Clone, Debug)]
pub struct Rule {
    effect: Effect,
    method: Option<String>,
    url_part: Option<String>,
    skip: u64,
    count: Option<u64>,
    probability: f64,
}

impl Rule {
    pub fn new(effect: Effect) -> Self {
        Self { effect, method: None, url_part: None, skip: 0, count: None, probability: 1.0 }
    }

    /// Only requests with this HTTP method.
    pub fn method(mut self, method: &str) -> Self {
        self.method = Some(method.to_owned());
        self
    }

    /// Only requests whose path and query, as sent, contain `part`.
    pub fn url(mut self, part: &str) -> Self {
        self.url_part = Some(part.to_owned());
        self
    }

    /// Leaves the first `n` matching requests alone.
    pub fn skip(mut self, n: u64) -> Self {
        self.skip = n;
        self
    }

    /// Hits at most `n` requests.
    pub fn times(mut self, n: u64) -> Self {
        self.count = Some(n);
        self
    }

    /// Hits a matching request with this probability, 0 to 1.
    pub fn probability(mut self, p: f64) -> Self {
        self.probability = p;
        self
    }

    fn matches(&self, method: &str, url: &str) -> bool {
        self.method.as_deref().is_none_or(|wanted| wanted == method)
            && self.url_part.as_deref().is_none_or(|part| url.contains(part))
    }
}

/// Names a rule after it was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleId(u64);

struct Active {
    id: RuleId,
    rule: Rule,
    hits: u64,
}

struct State {
    rules: Vec<Active>,
    next_id: u64,
    random: u64,
}

/// The rules of a server. Clones share them; they can change while it runs.
#[derive(Clone)]
pub struct Faults {
    any: Arc<AtomicBool>,
    state: Arc<Mutex<State>>,
}

impl Default for Faults {
    fn default() -> Self {
        Self::seeded(1)
    }
}

impl Faults {
    /// No rules; probabilities are drawn from `seed`, so that a run repeats.
    pub fn seeded(seed: u64) -> Self {
        let state = State { rules: Vec::new(), next_id: 0, random: seed | 1 };
        Self { any: Arc::default(), state: Arc::new(Mutex::new(state)) }
    }

    /// Adds a rule behind those there are; the first that picks a request decides.
    pub fn add(&self, rule: Rule) -> RuleId {
        let mut state = self.state.lock();
        let id = RuleId(state.next_id);
        state.next_id += 1;
        state.rules.push(Active { id, rule, hits: 0 });
        self.any.store(true, Ordering::Release);
        id
    }

    /// How many requests the rule has hit; 0 for one that was removed.
    pub fn hits(&self, id: RuleId) -> u64 {
        self.state.lock().rules.iter().find(|active| active.id == id).map_or(0, |active| active.hits)
    }

    pub fn remove(&self, id: RuleId) {
        let mut state = self.state.lock();
        state.rules.retain(|active| active.id != id);
        self.any.store(!state.rules.is_empty(), Ordering::Release);
    }

    pub fn clear(&self) {
        self.state.lock().rules.clear();
        self.any.store(false, Ordering::Release);
    }

    /// What is to happen to a request.
    pub(super) fn pick(&self, method: &str, url: &str) -> Option<Effect> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let mut state = self.state.lock();
        let State { rules, random, .. } = &mut *state;
        for Active { rule, hits, .. } in rules {
            if !rule.matches(method, url) || rule.count.is_some_and(|count| *hits >= count) {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            if rule.probability < 1.0 && uniform(random) >= rule.probability {
                continue;
            }
            *hits += 1;
            return Some(rule.effect);
        }
        None
    }
}

/// The next number in 0..1 (xorshift).
fn uniform(random: &mut u64) -> f64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    (*random >> 11) as f64 / (1_u64 << 53) as f64
}

/// What befalls a body on its way.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Cut(u64),
    Flip(u64),
    Stall(u64),
}

/// A body with damage.
struct Damaged<B> {
    inner: B,
    damage: Damage,
    passed: u64,
    /// Set when the body is cut, so that the connection goes down hard.
    reset: Option<Arc<AtomicBool>>,
    /// Runs before a cut, so that what was let through arrives.
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
}

#[derive(Debug, thiserror::Error)]
#[error("cut by an injected fault")]
struct Cut;

/// `body` of a request, as `effect` has it; `reset` is told if the connection is to be reset.
pub(super) fn damage_request(body: s3s::Body, effect: Effect, reset: Arc<AtomicBool>) -> s3s::Body {
    let damage = match effect {
        Effect::CutUpload { after } => Damage::Cut(after),
        Effect::CorruptUpload { at } => Damage::Flip(at),
        _ => return body,
    };
    s3s::Body::http_body_unsync(Damaged { inner: body, damage, passed: 0, reset: Some(reset), pause: None })
}

/// `body` of an answer, as `effect` has it.
pub(super) fn damage_reply(body: s3s::Body, effect: Effect) -> s3s::Body {
    let damage = match effect {
        Effect::TruncateReply { after } => Damage::Cut(after),
        Effect::CorruptReply { at } => Damage::Flip(at),
        Effect::StallReply { after } => Damage::Stall(after),
        _ => return body,
    };
    s3s::Body::http_body_unsync(Damaged { inner: body, damage, passed: 0, reset: None, pause: None })
}

impl<B> Body for Damaged<B>
where
    B: Body<Data = Bytes> + Unpin,
    StdError: From<B::Error>,
{
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let left = match self.damage {
            Damage::Cut(at) | Damage::Stall(at) => at.saturating_sub(self.passed),
            Damage::Flip(_) => u64::MAX,
        };
        if left == 0 {
            if let Damage::Stall(_) = self.damage {
                // Nobody will wake this: only the end of the connection ends it.
                return Poll::Pending;
            }
            let pause = self.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep(CUT_PAUSE)));
            std::task::ready!(pause.as_mut().poll(cx));
            if let Some(reset) = &self.reset {
                reset.store(true, Ordering::Release);
            }
            return Poll::Ready(Some(Err(Cut.into())));
        }
        let frame = match std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(e)) => return Poll::Ready(Some(Err(e.into()))),
            None => return Poll::Ready(None),
        };
        let mut data = match frame.into_data() {
            Ok(data) => data,
            Err(other) => return Poll::Ready(Some(Ok(other))),
        };
        data.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        if let Damage::Flip(at) = self.damage
            && let Some(within) = at.checked_sub(self.passed)
            && within < data.len() as u64
        {
            let mut flipped = data.to_vec();
            flipped[within as usize] ^= 1;
            data = flipped.into();
        }
        self.passed += data.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_pick_by_method_url_count_and_chance() {
        let faults = Faults::seeded(7);
        assert_eq!(faults.pick("GET", "/b/k"), None);
        let first = faults.add(Rule::new(Effect::Hang).method("PUT").url("/k").skip(1).times(2));
        let hits: Vec<bool> = (0..5).map(|_| faults.pick("PUT", "/b/k").is_some()).collect();
        assert_eq!(hits, [false, true, true, false, false]);
        assert_eq!(faults.hits(first), 2);
        assert_eq!(faults.pick("GET", "/b/k"), None);
        faults.clear();
        faults.add(Rule::new(Effect::SlowDown).probability(0.3));
        let hits = (0..1000).filter(|_| faults.pick("GET", "/").is_some()).count();
        assert!((250..350).contains(&hits), "{hits} of 1000 at p = 0.3");
    }
}
