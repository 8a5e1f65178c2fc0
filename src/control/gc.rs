//! `gc`: goes through the bucket of each pair for objects that nobody names. The engine says why that is safe (`engine/orphans.rs`).
//!
//! A pair that cannot be gone through stands in no other's way, and is told in the end.
//!
//! Memory is bounded: so many seeming orphans are held at a time, and each lot is compared with every record of the share before any of
//! it is noted.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::protocol::{Failure, OrphanObject, PairTotals, Progress, Reply, StateTotal, Summary, WirePath};
use super::server::{Replies, Server};
use crate::catalog::walk::{Found, Next, Step, on_own_thread, resolve, walk};
use crate::engine::{Engine, EngineError, Kept, MoveWatch, Orphan, OrphanRules, Page, Target};
use crate::ports::{Clock, FileKind, Lower, SystemClock};
use crate::record::place_of;
use crate::types::{Generation, Inode, ObjectKey, PairName, Timestamp};

/// Seeming orphans held at a time …
const LOT_MAX: usize = 50_000;
/// … and bytes of their keys.
const LOT_BYTES_MAX: usize = 16 << 20;
/// Unreadable places told one by one.
const BLIND_TOLD_MAX: usize = 100;
/// Reasons told apart; with more, somebody has filled the bucket with marks of his own.
const REASONS_MAX: usize = 100;
/// Orphans noted at a time.
const NOTED_AT_ONCE: usize = 1_000;
/// The word that adopts objects without a mark.
const UNMARKED: &str = "unmarked";

/// What a request asks for.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub dry_run: bool,
    pub older_than_s: u64,
    pub adopt: Vec<String>,
}

/// The records of the share could not all be read.
#[derive(Default)]
pub(super) struct Blind {
    pub count: u64,
    told: Vec<(PathBuf, String)>,
}

impl Blind {
    fn add(&mut self, path: &Path, why: String) {
        self.count += 1;
        if self.told.len() < BLIND_TOLD_MAX {
            self.told.push((path.to_owned(), why));
        }
    }
}

impl Server {
    pub(super) async fn collect(self: &Arc<Self>, wish: Wish, replies: &Replies) -> Reply {
        let begun = Instant::now();
        match self.collect_all(&wish, replies).await {
            Ok(summary) => Reply::Done(Summary { seconds: begun.elapsed().as_secs_f64(), ..summary }),
            Err(message) => Reply::Error { message },
        }
    }

    async fn collect_all(self: &Arc<Self>, wish: &Wish, replies: &Replies) -> Result<Summary, String> {
        let worded = |error: EngineError| error.to_string();
        if let Err(reason) = self.engine.check_collectable().map_err(worded)? {
            return Err(format!("no orphans can be told in {}: {reason}", self.share.display()));
        }
        if !wish.dry_run && self.lower.features().read_only {
            return Err("the share is read-only: only --dry-run is possible".into());
        }
        let Some(watch) = self.engine.watch_moves() else {
            return Err("a gc of this mount runs already: wait for its end".into());
        };
        let now = SystemClock.now();
        let age = i64::try_from(wish.older_than_s).unwrap_or(i64::MAX);
        let (unmarked, shares): (Vec<_>, Vec<_>) = wish.adopt.iter().cloned().partition(|share| share == UNMARKED);
        let rules = OrphanRules {
            made_before: Timestamp { secs: now.secs.saturating_sub(age), ..now },
            adopted: shares.into_iter().collect(),
            adopt_unmarked: !unmarked.is_empty(),
        };
        let mut job = Job { server: self, wish, replies, watch, summary: Summary::default(), listed: 0 };
        let places = self.engine.places().map_err(worded)?;
        for target in &places {
            let ended = job.objects(target, &rules).await;
            job.go_on(target, ended)?;
        }
        job.packs(&places, &rules).await?;
        for target in &places {
            let ended = job.uploads(target, &rules).await;
            job.go_on(target, ended)?;
        }
        let problems: Vec<_> = job.summary.pairs.values().filter_map(|totals| totals.problem.clone()).collect();
        match (problems.is_empty(), places.len()) {
            (true, _) => Ok(job.summary),
            (false, 1) => Err(problems.concat()),
            (false, _) => Err(format!(
                "not every pair was gone through, what was found with the others counts: {}",
                problems.join("; ")
            )),
        }
    }
}

/// Why something ended early.
pub(super) enum Stop {
    /// The pair cannot be used; another one may.
    Pair(EngineError),
    All(String),
}

impl From<EngineError> for Stop {
    fn from(error: EngineError) -> Self {
        Self::Pair(error)
    }
}

impl From<String> for Stop {
    fn from(message: String) -> Self {
        Self::All(message)
    }
}

pub(super) struct Job<'a> {
    pub server: &'a Arc<Server>,
    pub wish: &'a Wish,
    replies: &'a Replies,
    watch: MoveWatch,
    pub summary: Summary,
    listed: u64,
}

impl Job<'_> {
    /// Remembers why a pair could not be gone through; goes on unless all is over.
    pub(super) fn go_on(&mut self, target: &Target, ended: Result<(), Stop>) -> Result<(), String> {
        match ended {
            Ok(()) => Ok(()),
            Err(Stop::All(message)) => Err(message),
            Err(Stop::Pair(error)) => {
                let pair = &target.pair.name;
                self.of_pair(pair).problem.get_or_insert_with(|| format!("pair {pair}: {error}"));
                Ok(())
            }
        }
    }

    pub(super) fn of_pair(&mut self, pair: &PairName) -> &mut PairTotals {
        self.summary.pairs.entry(pair.to_string()).or_default()
    }

    /// Objects that nobody names in one pair's bucket.
    async fn objects(&mut self, target: &Target, rules: &OrphanRules) -> Result<(), Stop> {
        self.of_pair(&target.pair.name);
        let (mut lot, mut lot_bytes) = (Vec::new(), 0);
        let mut after = None;
        loop {
            let page = self.server.engine.orphan_page(target, after.as_ref(), rules).await?;
            self.page(&page).await?;
            lot_bytes += page.orphans.iter().map(|orphan| orphan.key.0.len()).sum::<usize>();
            lot.extend(page.orphans);
            after = page.next;
            if after.is_none() || lot.len() >= LOT_MAX || lot_bytes >= LOT_BYTES_MAX {
                self.lot(target, std::mem::take(&mut lot)).await?;
                lot_bytes = 0;
            }
            if after.is_none() {
                return Ok(());
            }
        }
    }

    async fn uploads(&mut self, target: &Target, rules: &OrphanRules) -> Result<(), Stop> {
        let engine = self.server.engine.clone();
        for key in engine.abandoned_uploads(target, rules).await? {
            if !self.wish.dry_run {
                engine.end_uploads(target, &key).await?;
            }
            self.tell_upload(target, key).await?;
        }
        Ok(())
    }

    pub(super) async fn say(&self, reply: Reply) -> Result<(), String> {
        self.replies.send(reply).await.map_err(|_| "whoever asked is gone".to_owned())
    }

    async fn page(&mut self, page: &Page) -> Result<(), String> {
        for (why, (objects, bytes)) in &page.kept {
            add(&mut self.summary.kept, why, *objects, *bytes);
            self.listed += objects;
        }
        self.listed += page.orphans.len() as u64;
        let progress = Progress { files_total: self.listed, files_done: self.listed, ..Progress::default() };
        self.say(Reply::Progress(progress)).await
    }

    /// Compares seeming orphans with all records, and notes those that no record names.
    async fn lot(&mut self, target: &Target, lot: Vec<Orphan>) -> Result<(), Stop> {
        if lot.is_empty() {
            return Ok(());
        }
        let mut orphans: HashMap<ObjectKey, Orphan> = HashMap::with_capacity(lot.len());
        for orphan in lot {
            // An object and its manifest may be of two pages.
            match orphans.entry(orphan.key.clone()) {
                Entry::Occupied(mut known) => known.get_mut().bytes += orphan.bytes,
                Entry::Vacant(place) => drop(place.insert(orphan)),
            }
        }
        let Sight { named, blind, .. } = self.see(orphans.keys().cloned().collect()).await?;
        for key in named {
            if let Some(orphan) = orphans.remove(&key) {
                add(&mut self.summary.kept, &Kept::Named, 1, orphan.bytes);
            }
        }
        self.tell_blind(&blind).await?;
        if blind.count > 0 && !self.wish.dry_run {
            let why = format!(
                "{} records or directories cannot be read (see above), and may name any of {} seeming orphans: nothing more was noted. \
                 Mend or remove those files, then ask again",
                blind.count,
                orphans.len()
            );
            return Err(Stop::All(why));
        }
        let mut orphans: Vec<_> = orphans.into_values().collect();
        orphans.sort_by(|a, b| a.key.cmp(&b.key));
        let noted = !self.wish.dry_run;
        while !orphans.is_empty() {
            let rest = orphans.split_off(orphans.len().min(NOTED_AT_ONCE));
            let mut some = std::mem::replace(&mut orphans, rest);
            if noted {
                some = self.server.engine.note_orphans(target, some).await?;
            }
            for Orphan { key, bytes, generation, .. } in some {
                let (pair, kind, begun) = (target.pair.name.to_string(), "object".into(), begun(generation));
                self.tell(OrphanObject { pair, key: key.0, kind, bytes, begun, noted }).await?;
            }
        }
        Ok(())
    }

    /// What cannot be read is told, and counts as failed.
    pub(super) async fn tell_blind(&mut self, blind: &Blind) -> Result<(), String> {
        for (path, reason) in &blind.told {
            let failure = Failure { path: WirePath::from_path(path), reason: reason.clone(), skipped: false };
            self.say(Reply::Failure(failure)).await?;
        }
        self.summary.failed += blind.count;
        Ok(())
    }

    /// Reads every record of the share: which of `keys` are named, and which packs, and what could not be read.
    pub(super) async fn see(&self, keys: HashSet<ObjectKey>) -> Result<Sight, String> {
        // Moves from before the walk are seen by it.
        self.watch.take().await?;
        let root = resolve(&*self.server.lower, Path::new("")).map_err(|error| format!("the share's root: {error}"))?;
        self.see_all(Sight { keys, ..Sight::default() }, vec![root]).await
    }

    /// The same of what was moved since; the packs that it names.
    pub(super) async fn see_moved(&self) -> Result<(HashMap<ObjectKey, u64>, Blind), String> {
        let todo = self.moved().await?;
        let Sight { packs, blind, .. } = self.see_all(Sight::default(), todo).await?;
        Ok((packs, blind))
    }

    async fn moved(&self) -> Result<Vec<Found>, String> {
        let moved = self.watch.take().await?;
        Ok(moved.iter().filter_map(|node| found_again(&*self.server.lower, node)).collect())
    }

    async fn see_all(&self, mut seen: Sight, mut todo: Vec<Found>) -> Result<Sight, String> {
        while !todo.is_empty() {
            let (lower, engine) = (self.server.lower.clone(), self.server.engine.clone());
            let walked = on_own_thread(move || {
                todo.into_iter().for_each(|start| seen.walk(&*lower, &engine, start));
                seen
            });
            seen = walked.await.ok_or("the walk over the share failed: see the daemon's log")?;
            todo = self.moved().await?;
        }
        Ok(seen)
    }

    async fn tell_upload(&mut self, target: &Target, key: ObjectKey) -> Result<(), String> {
        let (pair, noted) = (target.pair.name.to_string(), !self.wish.dry_run);
        self.tell(OrphanObject { pair, key: key.0, kind: "upload".into(), bytes: 0, begun: 0, noted }).await
    }

    /// Counts something that nobody needs, and tells it.
    pub(super) async fn tell(&mut self, orphan: OrphanObject) -> Result<(), String> {
        self.summary.files += 1;
        self.summary.bytes += orphan.bytes;
        let of_pair = self.summary.pairs.entry(orphan.pair.clone()).or_default();
        of_pair.files += 1;
        of_pair.bytes += orphan.bytes;
        self.say(Reply::Orphan(orphan)).await
    }
}

/// What was seen of the share's records.
#[derive(Default)]
pub(super) struct Sight {
    keys: HashSet<ObjectKey>,
    named: HashSet<ObjectKey>,
    /// Packs of which members are named, and those members' bytes.
    pub packs: HashMap<ObjectKey, u64>,
    pub blind: Blind,
}

impl Sight {
    fn walk(&mut self, lower: &dyn Lower, engine: &Arc<Engine>, start: Found) {
        walk(lower, start, &mut |step| {
            match step {
                Step::File(found) => match engine.named_by(&found.node) {
                    Ok(keys) => {
                        for place in keys.iter().filter_map(place_of) {
                            *self.packs.entry(place.pack.key()).or_default() += place.range.len;
                        }
                        self.named.extend(keys.into_iter().filter(|key| self.keys.contains(key)));
                    }
                    // Removed since it was found.
                    Err(error) if error.is_gone() => {}
                    Err(error) => self.blind.add(&found.path, error.to_string()),
                },
                Step::Failed(path, error) => self.blind.add(&path, error.to_string()),
            }
            Next::Continue
        });
    }
}

/// What was moved during a walk, for another one from there. What is gone by now names nothing.
fn found_again(lower: &dyn Lower, node: &Inode) -> Option<Found> {
    let attr = lower.stat(node).ok()?;
    let wanted = matches!(attr.kind, FileKind::Regular | FileKind::Directory);
    let path = lower.path_of(node).ok().flatten().unwrap_or_default();
    wanted.then_some(Found { node: *node, attr, path })
}

/// When an object of this generation was begun, seconds since 1970.
fn begun(generation: Generation) -> i64 {
    (generation.0 / 1_000_000) as i64
}

fn add(kept: &mut BTreeMap<String, StateTotal>, why: &Kept, objects: u64, bytes: u64) {
    let word = match why {
        Kept::OfShare(_) if kept.len() >= REASONS_MAX => "of still other shares".to_owned(),
        Kept::Foreign => "not an object of a file".to_owned(),
        Kept::Young => "too young".into(),
        Kept::Noted => "noted in the journal".into(),
        Kept::Named => "named by a file".into(),
        Kept::Unreadable => "its file cannot be read".into(),
        Kept::Shared => "its file has lent objects".into(),
        Kept::OfShare(share) => format!("of another share ({share})"),
        Kept::Unmarked => format!("of an unknown share ({UNMARKED})"),
    };
    let total = kept.entry(word).or_default();
    total.files += objects;
    total.bytes += bytes;
}
