//! Room on the share: frees content that is remote too, the coldest first, before the share is full, and for who finds it full.
//!
//! What the kernel writes by itself (passthrough) is seen by nobody until it fails, so the free space is looked at, the more often the nearer a mark is and the
//! faster space goes. Invariant: no more is begun than is missing, and nothing is freed that the engine's own checks keep.

mod pool;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::catalog::index::Index;
use crate::engine::{Asker, Candidate, Engine, JobKind, Outcome};
use crate::fs::Fs;
use crate::ports::{Lower, SpaceInfo};

pub use crate::catalog::index::COLDEST;
use pool::Pool;
pub use pool::{each_file, indexed};

/// Bounds of the pause between two looks.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Bytes a second that may be written at any time without a warning.
const RATE_LEAST: f64 = 256e6;
/// How far ahead of the reserve it is freed, by the rate at which space goes.
const AHEAD: Duration = Duration::from_secs(2);
/// What is left free beyond what somebody misses.
const SLACK: u64 = 8 << 20;
/// Files of one go, so that what is freed is soon seen.
const LOT: usize = 64;
/// What is kept of a large share where nothing is said.
const USUAL_MAX: u64 = 1 << 30;
/// After a go that freed nothing.
const PAUSE_VAIN: Duration = Duration::from_secs(1);
/// As long as it stays vain, up to this.
const PAUSE_VAIN_MAX: Duration = Duration::from_secs(60);

/// An amount of the share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    Bytes(u64),
    /// Of what df(1) reckons as all.
    Percent(u8),
    /// Where nothing is said: a hundredth, at most [`USUAL_MAX`]. For that alone the share is not walked.
    Usual,
}

/// When content is freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceRules {
    /// More than `.0` per cent in use: down to `.1`.
    pub marks: Option<(u8, u8)>,
    /// So much stays available to users.
    pub reserve: Option<Amount>,
    /// How long who finds no room waits for some; zero: he does not.
    pub wait: Duration,
}

impl SpaceRules {
    /// Whether there is anything to do.
    pub fn is_idle(&self) -> bool {
        self.marks.is_none() && self.reserve.is_none() && self.wait.is_zero()
    }

    /// Whether space is to be looked at while nobody asks.
    fn looks(&self) -> bool {
        self.marks.is_some() || self.reserve.is_some()
    }

    /// Whether the share may be walked for what can be freed, with nobody waiting.
    fn walks(&self) -> bool {
        self.marks.is_some() || self.reserve != Some(Amount::Usual)
    }

    /// Whether anything is to be freed, as far as one look tells.
    pub(super) fn wants(&self, space: &SpaceInfo) -> bool {
        look(self, space, 0.0, false).missing > 0
    }

    /// Bytes that stay available to users.
    pub fn reserved(&self, space: &SpaceInfo) -> u64 {
        match self.reserve {
            None => 0,
            Some(Amount::Bytes(bytes)) => bytes.min(all(space)),
            Some(Amount::Percent(pct)) => all(space) / 100 * u64::from(pct),
            Some(Amount::Usual) => (all(space) / 100).min(USUAL_MAX),
        }
    }
}

/// Parts in a hundred, rounded up.
pub(super) fn pct(part: u64, all: u64) -> u64 {
    (u128::from(part) * 100).div_ceil(u128::from(all.max(1))) as u64
}

/// Per cent of the space in use, as df(1) reckons.
pub(super) fn used_pct(space: &SpaceInfo) -> u64 {
    let used = space.blocks.saturating_sub(space.blocks_free);
    pct(used, used + space.blocks_available)
}

/// What df(1) takes for all: without blocks kept for root.
fn all(space: &SpaceInfo) -> u64 {
    (space.blocks.saturating_sub(space.blocks_free) + space.blocks_available) * space.fragment_size
}

fn available(space: &SpaceInfo) -> u64 {
    space.blocks_available * space.fragment_size
}

fn used(space: &SpaceInfo) -> u64 {
    space.blocks.saturating_sub(space.blocks_free) * space.fragment_size
}

/// What a look at the space shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Look {
    /// Bytes to be freed.
    missing: u64,
    /// Bytes that can still be written until some are.
    headroom: u64,
    /// Between the marks, or below the reserve and not yet safely above it.
    freeing: bool,
}

/// `rate`: bytes a second that go; `freeing`: the last look's.
fn look(rules: &SpaceRules, space: &SpaceInfo, rate: f64, freeing: bool) -> Look {
    let (all, available, used) = (all(space), available(space), used(space));
    let mut found = Look { missing: 0, headroom: u64::MAX, freeing: false };
    if let Some((above, below)) = rules.marks {
        let at = |pct: u8| (all as f64 * f64::from(pct) / 100.0) as u64;
        if used > at(above) || (freeing && used > at(below)) {
            found.freeing = true;
            found.missing = used - at(below).min(used);
        }
        found.headroom = at(above).saturating_sub(used);
    }
    if rules.reserve.is_some() {
        let reserve = rules.reserved(space);
        let ahead = ((rate * AHEAD.as_secs_f64()) as u64).min(reserve);
        let wanted = reserve + ahead;
        if available < wanted || (freeing && available < wanted + reserve / 8) {
            found.freeing = true;
            found.missing = found.missing.max((wanted + reserve / 8).saturating_sub(available));
        }
        found.headroom = found.headroom.min(available.saturating_sub(wanted));
    }
    found
}

/// Until the next look.
fn pause(headroom: u64, rate: f64) -> Duration {
    let seconds = headroom as f64 / rate.max(RATE_LEAST) / 2.0;
    Duration::try_from_secs_f64(seconds).unwrap_or(PAUSE_MAX).clamp(PAUSE_MIN, PAUSE_MAX)
}

/// Keeps room on one share.
pub struct Keeper {
    lower: Arc<dyn Lower>,
    engine: Arc<Engine>,
    fs: Arc<Fs>,
    index: Option<Arc<Index>>,
    rules: SpaceRules,
}

impl Keeper {
    pub fn new(
        lower: Arc<dyn Lower>,
        engine: Arc<Engine>,
        fs: Arc<Fs>,
        index: Option<Arc<Index>>,
        rules: SpaceRules,
    ) -> Self {
        Self { lower, engine, fs, index, rules }
    }

    /// Works until the runtime ends.
    pub async fn run(self) {
        let mut pool = Pool::new(self.lower.clone(), self.engine.clone(), self.index.clone());
        let (mut freeing, mut vain, mut again) = (false, PAUSE_VAIN, Instant::now());
        // What was available at the last look, and how fast it goes.
        let (mut last, mut rate) = (None::<(Instant, u64)>, 0.0f64);
        loop {
            let space = match self.lower.space() {
                Ok(space) => space,
                Err(error) => {
                    tracing::warn!("cannot tell the share's free space: {error}");
                    tokio::time::sleep(PAUSE_MAX).await;
                    continue;
                }
            };
            let now = Instant::now();
            if let Some((at, before)) = last {
                let seconds = now.duration_since(at).as_secs_f64().max(0.001);
                let gone = before.saturating_sub(available(&space)) as f64 / seconds;
                // At once when it goes faster, slowly when it stops: programs write in bursts.
                rate = gone.max(rate * (-seconds / 5.0).exp());
            }
            last = Some((now, available(&space)));
            let found = look(&self.rules, &space, rate, freeing);
            freeing = found.freeing;
            let left = available(&space).saturating_sub(self.rules.reserved(&space));
            // Where nothing can be freed, it would only be slower.
            self.fs.room.set_scarce(self.rules.reserve.is_some() && left == 0 && !pool.is_barren());
            let asked = self.fs.room.missing();
            // What is freed frees no inodes, and is no more than there is.
            let of_use = (space.files == 0 || space.files_free > 0) && asked.is_none_or(|bytes| bytes <= all(&space));
            let asked_for = asked.map_or(0, |bytes| bytes.saturating_add(SLACK).saturating_sub(available(&space)));
            let missing = found.missing.max(if of_use { asked_for } else { 0 });
            if missing > 0 {
                let pause_left = again.saturating_duration_since(now);
                if asked.is_none() && !pause_left.is_zero() {
                    // Nothing was there, but whether room is scarce is to be known in time.
                    let soon = if left == 0 { PAUSE_VAIN } else { pause(left, rate).min(PAUSE_VAIN) };
                    self.rest(soon.min(pause_left)).await;
                    continue;
                }
                let freed =
                    if self.engine.is_stopping() { 0 } else { self.free(&mut pool, missing, asked.is_some()).await };
                if asked.is_some() && freed == 0 {
                    self.fs.room.has_nothing();
                }
                if freed > 0 {
                    self.fs.room.was_freed();
                    // What was freed is no sign of how fast space goes.
                    (vain, last) = (PAUSE_VAIN, None);
                    continue;
                }
                again = Instant::now() + vain;
                vain = (vain * 2).min(PAUSE_VAIN_MAX);
                if asked.is_some() {
                    self.rest(PAUSE_VAIN).await;
                }
                continue;
            }
            match asked {
                Some(_) if of_use => {
                    // Somebody else made room meanwhile, or what is missing is none: he tries again, and asks for more.
                    self.fs.room.was_freed();
                    self.rest(PAUSE_MIN).await;
                }
                Some(_) => self.fs.room.has_nothing(),
                None if self.rules.looks() => self.rest(pause(found.headroom, rate)).await,
                None => self.fs.room.wanted().await,
            }
        }
    }

    /// Waits, but not if somebody finds no room.
    async fn rest(&self, pause: Duration) {
        // Either means looking again.
        let _ = tokio::time::timeout(pause, self.fs.room.wanted()).await;
    }

    /// Frees files that together have `bytes`, or a lot of them; the bytes freed.
    async fn free(&self, pool: &mut Pool, bytes: u64, asked: bool) -> u64 {
        let (candidates, taken) = mpsc::channel(LOT);
        let (events, mut ended) = mpsc::channel(LOT);
        let engine = self.engine.clone();
        let job = tokio::spawn(async move { engine.run_job_for(Asker::Policy, JobKind::Release, taken, events).await });
        let mut planned = 0;
        let mut files = 0;
        while planned < bytes && files < LOT {
            // Who waits is not to wait for more than one file, if there is one.
            let Some(candidate) = pool.next(asked && files == 0, asked || self.rules.walks()).await else { break };
            planned += local(&candidate);
            files += 1;
            if candidates.send(candidate).await.is_err() {
                break;
            }
        }
        drop(candidates);
        let mut freed = 0;
        while let Some(event) = ended.recv().await {
            match event.outcome {
                Outcome::Done => freed += local(&event.file),
                Outcome::Failed(error) => tracing::debug!(path = %event.file.path.display(), "not released: {error}"),
                _ => {}
            }
        }
        if let Ok(Err(error)) = job.await {
            tracing::warn!("making room stopped: {error}");
        }
        if files > 0 {
            tracing::info!(files, bytes = freed, wanted = bytes, "made room on the share");
        }
        freed
    }
}

/// Bytes that a release of the file frees, at least one so that it counts.
fn local(file: &Candidate) -> u64 {
    (file.attr.blocks * 512).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// `available` GiB of 100.
    fn space(available: u64) -> SpaceInfo {
        SpaceInfo {
            fragment_size: GIB,
            blocks: 105,
            blocks_free: available + 5,
            blocks_available: available,
            files: 100,
            files_free: 50,
            block_size: 4096,
            name_len_max: 255,
        }
    }

    #[test]
    fn marks_begin_above_one_and_go_on_to_the_other() {
        let rules = SpaceRules { marks: Some((80, 70)), ..SpaceRules::default() };
        let missing = |free, freeing| look(&rules, &space(free), 0.0, freeing).missing / GIB;
        assert_eq!([missing(21, false), missing(19, false), missing(21, true), missing(31, true)], [0, 11, 9, 0]);
        assert_eq!(look(&rules, &space(25), 0.0, false).headroom / GIB, 5);
        assert!(look(&rules, &space(19), 0.0, false).freeing && !look(&rules, &space(31), 0.0, true).freeing);
    }

    #[test]
    fn a_reserve_is_kept_ahead_of_who_writes_fast() {
        for reserve in [Amount::Bytes(8 * GIB), Amount::Percent(8)] {
            let rules = SpaceRules { reserve: Some(reserve), ..SpaceRules::default() };
            let missing = |free, rate, freeing| look(&rules, &space(free), rate, freeing).missing / GIB;
            assert_eq!(
                [missing(9, 0.0, false), missing(7, 0.0, false), missing(8, 0.0, true)],
                [0, 2, 1],
                "{reserve:?}"
            );
            // Two GiB a second, two seconds ahead.
            assert_eq!([missing(13, 2.0 * GIB as f64, false), missing(11, 2.0 * GIB as f64, false)], [0, 2]);
            // However fast, no more than as much again.
            assert_eq!([missing(17, 1e15, false), missing(15, 1e15, false)], [0, 2]);
        }
        let usual = SpaceRules { reserve: Some(Amount::Usual), ..SpaceRules::default() };
        assert_eq!(usual.reserved(&space(1)), GIB);
        assert_eq!(usual.reserved(&SpaceInfo { fragment_size: 4096, ..space(1) }), 4096);
        assert!(
            !usual.walks() && SpaceRules { marks: Some((80, 70)), ..usual }.walks() && SpaceRules::default().walks()
        );
        assert_eq!(
            SpaceRules { reserve: Some(Amount::Bytes(u64::MAX)), ..SpaceRules::default() }.reserved(&space(1)) / GIB,
            100
        );
    }

    #[test]
    fn looks_come_more_often_the_nearer_it_gets() {
        assert_eq!(pause(u64::MAX, 0.0), PAUSE_MAX);
        assert_eq!(pause(0, 0.0), PAUSE_MIN);
        let near = pause(GIB, 0.0);
        assert!((Duration::from_secs(2)..Duration::from_secs(3)).contains(&near), "{near:?}");
        assert_eq!(pause(GIB, 1e9).as_millis(), 536);
    }
}
