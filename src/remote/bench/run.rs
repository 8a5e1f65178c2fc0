//! One run of the benchmark: its steps, what it notes of its objects, and how it clears them away.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Cut, Op, Plan, Report, Row, Unusable};
use crate::ports::{ObjectSource, Remote, RemoteError, RemoteErrorKind, RemoteResult, SourceError};
use crate::remote::S3Remote;
use crate::types::{ByteRange, ObjectKey};

/// How the keys of all runs begin, below the pair's prefix.
const PLACE: &str = ".tierfs-bench-";
/// Ranges read of each object.
const RANGES: u64 = 4;
/// Failures after which a step begins nothing more.
const FAILURES_MAX: usize = 16;
/// Deletions at a time when all is cleared away, and how long that may take.
const CLEAR_AT_ONCE: usize = 8;
const CLEAR_TIME: Duration = Duration::from_secs(60);
/// What was begun so long ago is no run's any more, whatever it may still wait for: twice the longest one.
const SWEEP_AFTER: Duration = Duration::from_secs(7_200);
/// Two objects of one run have the same random bytes, so far apart.
const SHIFT: u64 = 61;

/// Part of the random bytes.
struct Piece(Bytes);

#[async_trait]
impl ObjectSource for Piece {
    async fn read(&self, range: ByteRange) -> Result<Bytes, SourceError> {
        Ok(self.0.slice(range.offset as usize..range.end() as usize))
    }
}

/// An object that was begun.
struct Begun {
    key: ObjectKey,
    number: u64,
    version: Option<String>,
    /// It was put, and not deleted.
    there: bool,
    deleted: bool,
}

/// What came of one request: of which object, after how long, how many bytes of content.
struct Answer {
    of: usize,
    took: Duration,
    outcome: RemoteResult<(u64, Option<String>)>,
}

/// One run.
pub struct Bench {
    remote: S3Remote,
    plan: Plan,
    /// How its keys begin, below the pair's prefix.
    name: String,
    noise: Bytes,
    begun: Vec<Begun>,
    count: u64,
}

impl Bench {
    pub fn new(remote: S3Remote, plan: Plan) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PLACE}{now:x}-{:x}-{count:x}-", std::process::id());
        let longest = plan.sizes.iter().copied().max().unwrap_or(0);
        let most = plan.at_once.iter().map(|at_once| plan.count(1, *at_once)).max().unwrap_or(0);
        // Random, so that a store that compresses or knows the same content again is measured with neither.
        let mut noise = vec![0; (longest + SHIFT * (most + 1)) as usize];
        blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut noise);
        Self { remote, plan, name, noise: noise.into(), begun: Vec::new(), count: 0 }
    }

    /// How the keys of this run begin, after the bucket's name and a slash.
    pub fn place(&self) -> String {
        self.remote.shared.config.below_prefix(&self.name)
    }

    /// Measures until all is done, the time is over, or `stop` becomes true; then clears away. `tell` hears of each step before it begins.
    pub async fn run(
        mut self,
        mut stop: watch::Receiver<bool>,
        tell: &mut (dyn FnMut(Op, u64, u32) + Send),
    ) -> Result<Report, Unusable> {
        let until = Instant::now() + self.plan.time;
        let tried = tokio::select! {
            biased;
            Ok(_) = stop.wait_for(|stop| *stop) => Err(self.ended("it was interrupted")),
            tried = tokio::time::timeout_at(until, self.try_out()) => {
                tried.unwrap_or_else(|_| Err(self.ended(&format!("no answer in {:?}", self.plan.time))))
            }
        };
        if let Err(error) = tried {
            let (left, _) = if self.begun.is_empty() { Default::default() } else { self.clear_away().await };
            return Err(Unusable { error, left });
        }
        let (mut rows, mut steps_left) = (Vec::new(), self.plan.steps() as u32);
        let cells = self.plan.sizes.iter().flat_map(|size| self.plan.at_once.iter().map(|at_once| (*size, *at_once)));
        let cells: Vec<_> = cells.collect();
        let mut cut = None;
        'all: for (size, at_once) in cells {
            let count = self.plan.count(size, at_once);
            for op in [Op::Put, Op::Get, Op::Range, Op::Delete] {
                if op == Op::Range && size <= self.plan.range {
                    continue;
                }
                let share = until.saturating_duration_since(Instant::now()) / steps_left;
                steps_left -= 1;
                tell(op, size, at_once);
                let (row, ended) = self.step(op, size, at_once, count, Instant::now() + share, until, &mut stop).await;
                rows.push(row);
                cut = ended.or(cut);
                if ended == Some(Cut::Asked) || Instant::now() >= until {
                    break 'all;
                }
            }
            // What the time did not suffice to delete, measured or not.
            self.clear().await;
        }
        let (left, left_because) = self.clear_away().await;
        let others = self.others().await.ok();
        Ok(Report { rows, cut, left, left_because, others })
    }

    /// One small object there and back: it costs the connection, and tells what cannot work at all.
    async fn try_out(&mut self) -> RemoteResult<()> {
        let of = self.begin();
        let content = self.content(self.begun[of].number, SHIFT);
        let key = self.begun[of].key.clone();
        let stored = match self.remote.put(&key, SHIFT, Arc::new(Piece(content.clone())), &[]).await {
            Ok(stored) => stored,
            Err(error) => {
                if error.kind.is_configuration() {
                    // Nothing can have been stored, and its removal would only fail for the same reason.
                    self.begun.clear();
                }
                return Err(error);
            }
        };
        self.begun[of].version = stored.version;
        read(&self.remote, &key, 0, content).await?;
        self.remote.list(&self.name, None).await?;
        delete(&self.remote, &key, self.begun[of].version.clone()).await.map_err(|error| RemoteError {
            detail: format!("objects can be stored but not removed: {}", error.detail),
            ..error
        })?;
        self.begun.clear();
        Ok(())
    }

    /// A key that is new, noted.
    fn begin(&mut self) -> usize {
        let number = self.count;
        self.count += 1;
        let key = ObjectKey(self.remote.shared.config.below_prefix(&format!("{}{number}", self.name)));
        self.begun.push(Begun { key, number, version: None, there: false, deleted: false });
        self.begun.len() - 1
    }

    /// What is put into the object with this number.
    fn content(&self, number: u64, size: u64) -> Bytes {
        let most = (self.noise.len() as u64 - size) / SHIFT + 1;
        let at = (number % most * SHIFT) as usize;
        self.noise.slice(at..at + size as usize)
    }

    /// All requests of a kind. What it returns beside their figures: why they are not all.
    #[expect(clippy::too_many_arguments, reason = "the cell, and three ways to end")]
    async fn step(
        &mut self,
        op: Op,
        size: u64,
        at_once: u32,
        count: u64,
        until: Instant,
        cut_at: Instant,
        stop: &mut watch::Receiver<bool>,
    ) -> (Row, Option<Cut>) {
        let there: Vec<usize> = (0..self.begun.len()).filter(|of| self.begun[*of].there).collect();
        let wanted = match op {
            Op::Put => count,
            Op::Get | Op::Delete => there.len() as u64,
            Op::Range => there.len() as u64 * RANGES,
        };
        let mut row = Row {
            request: op,
            size,
            at_once,
            wanted,
            done: 0,
            errors: 0,
            error: None,
            median_ms: None,
            p99_ms: None,
            max_ms: None,
            seconds: 0.0,
            bytes: 0,
        };
        let (mut flying, mut next, mut took) = (JoinSet::new(), 0, Vec::new());
        let (begun, mut last) = (Instant::now(), Instant::now());
        let cut = loop {
            // At least one wave, however little time there is: a step without a figure tells nothing.
            while next < wanted
                && (flying.len() as u32) < at_once
                && (next < u64::from(at_once) || Instant::now() < until)
                && row.errors < FAILURES_MAX as u64
            {
                let of = match op {
                    Op::Put => self.begin(),
                    _ => there[next as usize % there.len()],
                };
                flying.spawn(self.request(op, of, size, next));
                next += 1;
            }
            let answer = tokio::select! {
                biased;
                Ok(_) = stop.wait_for(|stop| *stop) => break Some(Cut::Asked),
                answer = flying.join_next() => answer,
                () = tokio::time::sleep_until(cut_at) => break Some(Cut::Time),
            };
            let Some(answer) = answer else {
                let failing = row.errors >= FAILURES_MAX as u64;
                break (next < wanted && !failing).then_some(Cut::Time);
            };
            // A request that panicked is a mistake of ours, and no figure.
            let Ok(Answer { of, took: time, outcome }) = answer else { continue };
            last = Instant::now();
            match outcome {
                Ok((bytes, version)) => {
                    row.done += 1;
                    row.bytes += bytes;
                    took.push(time);
                    match op {
                        Op::Put => (self.begun[of].there, self.begun[of].version) = (true, version),
                        Op::Delete => (self.begun[of].there, self.begun[of].deleted) = (false, true),
                        Op::Get | Op::Range => {}
                    }
                }
                Err(error) => {
                    row.errors += 1;
                    row.error.get_or_insert(error.to_string());
                }
            }
        };
        flying.shutdown().await;
        self.begun.retain(|begun| !begun.deleted);
        row.seconds = (last - begun).as_secs_f64();
        took.sort_unstable();
        let at = |percent| rank(&took, percent).map(|time| time.as_secs_f64() * 1e3);
        (row.median_ms, row.p99_ms, row.max_ms) = (at(50), at(99), at(100));
        (row, cut)
    }

    fn request(&self, op: Op, of: usize, size: u64, turn: u64) -> impl Future<Output = Answer> + Send + use<> {
        let remote = self.remote.clone();
        let Begun { key, number, version, .. } = &self.begun[of];
        let (key, version, content) = (key.clone(), version.clone(), self.content(*number, size));
        // Spread over the object, and not in order.
        let range = self.plan.range;
        let offset = if op == Op::Range { (turn * 7 + number * 3) % (size / range) * range } else { 0 };
        async move {
            let begun = Instant::now();
            let outcome = match op {
                Op::Put => {
                    remote.put(&key, size, Arc::new(Piece(content)), &[]).await.map(|stored| (size, stored.version))
                }
                Op::Get => read(&remote, &key, 0, content).await.map(|()| (size, None)),
                Op::Range => {
                    let part = content.slice(offset as usize..(offset + range) as usize);
                    read(&remote, &key, offset, part).await.map(|()| (range, None))
                }
                Op::Delete => delete(&remote, &key, version).await.map(|()| (0, None)),
            };
            Answer { of, took: begun.elapsed(), outcome }
        }
    }

    /// Deletes all that was noted; what could not be deleted stays noted. The last error.
    async fn clear(&mut self) -> Option<RemoteError> {
        let (mut flying, mut failed) = (JoinSet::new(), None);
        let until = Instant::now() + CLEAR_TIME;
        let mut todo: Vec<Begun> = std::mem::take(&mut self.begun);
        todo.reverse();
        let mut waiting: HashMap<u64, Begun> = HashMap::new();
        loop {
            while flying.len() < CLEAR_AT_ONCE
                && Instant::now() < until
                && let Some(begun) = todo.pop()
            {
                let (remote, key, version, number) =
                    (self.remote.clone(), begun.key.clone(), begun.version.clone(), begun.number);
                waiting.insert(number, begun);
                flying.spawn(async move { (number, delete(&remote, &key, version).await) });
            }
            let Ok(Some(ended)) = tokio::time::timeout_at(until, flying.join_next()).await else { break };
            match ended {
                Ok((number, Ok(()))) => drop(waiting.remove(&number)),
                Ok((_, Err(error))) => failed = Some(error),
                Err(_) => {}
            }
        }
        self.begun = waiting.into_values().chain(todo).collect();
        self.begun.sort_by_key(|begun| begun.number);
        failed
    }

    /// Deletes all, then looks: a put whose answer did not come may have stored its object after that. What is left, and why.
    async fn clear_away(&mut self) -> (Vec<ObjectKey>, Option<RemoteError>) {
        let mut failed = self.clear().await;
        for last in [false, true] {
            let listed = match listed(&self.remote, &self.name).await {
                Ok(listed) => listed,
                Err(error) => {
                    failed.get_or_insert(error);
                    break;
                }
            };
            let known = |key: &ObjectKey| self.begun.iter().any(|begun| begun.key == *key);
            let appeared: Vec<ObjectKey> = listed.iter().filter(|key| !known(key)).cloned().collect();
            // The listing is to be believed about what is not there, too.
            self.begun.retain(|begun| listed.contains(&begun.key));
            for key in appeared {
                let number = self.count;
                self.count += 1;
                self.begun.push(Begun { key, number, version: None, there: true, deleted: false });
            }
            if self.begun.is_empty() {
                failed = None;
                break;
            }
            if !last {
                failed = self.clear().await;
            }
        }
        (self.begun.iter().map(|begun| begun.key.clone()).collect(), failed)
    }

    async fn others(&self) -> RemoteResult<u64> {
        let mine = self.place();
        Ok(listed(&self.remote, PLACE).await?.iter().filter(|key| !key.0.starts_with(&mine)).count() as u64)
    }

    /// Why there is nothing to tell.
    fn ended(&self, detail: &str) -> RemoteError {
        let place = self.remote.shared.place("bench", None, self.remote.shared.endpoints.first());
        place.error(RemoteErrorKind::TimedOut, detail)
    }
}

/// As [`Remote::delete`]; where the bucket keeps versions, of what was put there stays neither the version nor a mark in its place.
async fn delete(remote: &S3Remote, key: &ObjectKey, version: Option<String>) -> RemoteResult<()> {
    match version {
        None => remote.delete(key).await,
        Some(version) => remote.shared.delete_version(key, version).await,
    }
}

/// All keys that begin so, below the pair's prefix.
async fn listed(remote: &S3Remote, name: &str) -> RemoteResult<Vec<ObjectKey>> {
    let mut keys = Vec::new();
    loop {
        let page = remote.list(name, keys.last()).await?;
        if page.is_empty() {
            return Ok(keys);
        }
        keys.extend(page.into_iter().map(|(key, _)| key));
    }
}

/// Reads piece by piece, as a recall does, and compares.
async fn read(remote: &S3Remote, key: &ObjectKey, offset: u64, wanted: Bytes) -> RemoteResult<()> {
    let range = ByteRange { offset, len: wanted.len() as u64 };
    let mut body = remote.stream(key, range, None).await?;
    let mut at = 0;
    while let Some(piece) = body.next().await? {
        if wanted.get(at..at + piece.len()) != Some(&piece[..]) {
            let endpoint = remote.shared.endpoints.first();
            let place = remote.shared.place("get", Some(key), endpoint);
            return Err(place.error(RemoteErrorKind::Corrupt, "what was read back is not what was stored"));
        }
        at += piece.len();
    }
    Ok(())
}

/// The time that so many per cent do not exceed, of ordered ones: nearest rank.
fn rank(ordered: &[Duration], percent: usize) -> Option<Duration> {
    let rank = (ordered.len() * percent).div_ceil(100).max(1);
    ordered.get(rank - 1).copied()
}

/// Deletes what earlier runs left that were killed; those begun within the last two hours may still measure, and are left. How many objects
/// were deleted, and which were not, and why.
pub async fn sweep(remote: &S3Remote) -> RemoteResult<(u64, Vec<(ObjectKey, RemoteError)>)> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let before = now.saturating_sub(SWEEP_AFTER).as_secs();
    let (mut deleted, mut failed) = (0, Vec::new());
    let prefix = remote.shared.config.below_prefix("");
    for key in listed(remote, PLACE).await? {
        let name = key.0.strip_prefix(&prefix).unwrap_or(&key.0);
        if begun_at(name).is_none_or(|begun| begun > before) {
            continue;
        }
        match remote.delete(&key).await {
            Ok(()) => deleted += 1,
            Err(error) => failed.push((key, error)),
        }
    }
    Ok((deleted, failed))
}

/// When the run was begun that made this object; None: no run made it. Seconds since 1970.
fn begun_at(name: &str) -> Option<u64> {
    let mut parts = name.strip_prefix(PLACE)?.split('-');
    let mut hex = || u64::from_str_radix(parts.next()?, 16).ok();
    let begun = hex()?;
    hex()?;
    hex()?;
    let number = parts.next()?;
    (parts.next().is_none() && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())).then_some(begun)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        let ms = |n: usize, percent| rank(&times[..n], percent).map(|time| time.as_millis());
        assert_eq!((ms(0, 50), ms(0, 99)), (None, None));
        assert_eq!((ms(1, 50), ms(1, 99)), (Some(1), Some(1)));
        assert_eq!((ms(4, 50), ms(4, 99)), (Some(2), Some(4)));
        assert_eq!((ms(200, 50), ms(200, 99), ms(200, 100)), (Some(100), Some(198), Some(200)));
    }

    #[test]
    fn only_its_own_names_are_swept() {
        assert_eq!(begun_at(".tierfs-bench-5f-1a-0-12"), Some(0x5f));
        for foreign in [
            ".tierfs-bench-",
            ".tierfs-bench-5f-1a-0",
            ".tierfs-bench-5f-1a-0-",
            ".tierfs-bench-5f-1a-0-x",
            ".tierfs-bench-5f-1a-0-1-2",
            ".tierfs-bench-zz-1a-0-1",
            ".tierfs-probe-5f-1a-0-1",
            "a/.tierfs-bench-5f-1a-0-1",
            ".tierfs-bench-5f-1a-0-1@1f-a.64",
        ] {
            assert_eq!(begun_at(foreign), None, "{foreign}");
        }
    }
}
