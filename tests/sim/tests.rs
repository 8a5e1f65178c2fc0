//! The schedules of `make test`, and of `make sim`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use tierfs::journal::SqliteJournal;
use tierfs::ports::{Intent, IntentId, IntentKind, Journal, Recalled};
use tierfs::types::{FileId, Inode, ObjectKey, PairName, RawHandle, Timestamp};

use crate::bugs::{self, Bug};
use crate::dice::Dice;
use crate::journal::SimJournal;
use crate::plan::{Event, Kind, Plan};
use crate::schedule::{Ended, Spec, random_spec, run};
use crate::scripts;
use crate::stats::Stats;
use crate::world::World;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is a number, not {value:?}")))
}

/// Steps that thousands of schedules come to so often at least; otherwise they show nothing.
const STEPS: [(&str, u64); 8] = [
    ("archived", 1000),
    ("released", 1000),
    ("recalled", 1000),
    ("changed while dual", 200),
    ("cut while stub", 100),
    ("waited", 1000),
    ("pack of one", 100),
    ("pack of several", 10),
];

/// Operations after a crash at which something more goes wrong.
const RECOVERY: usize = 25;
/// Seeds among which a schedule that was printed is looked for.
const SEEDS_MAX: u64 = 100;

/// What many schedules came to.
#[derive(Default)]
struct Total {
    schedules: u64,
    operations: u64,
    stats: Stats,
    /// The first that was found to be wrong.
    broken: Option<(String, Spec, String)>,
}

/// Runs schedules on all cores until there are no more, or one is wrong.
fn run_all(next: &(dyn Fn() -> Option<(String, Spec)> + Sync)) -> Total {
    let total = Mutex::new(Total::default());
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while total.lock().broken.is_none() {
                    let Some((name, spec)) = next() else { return };
                    let ended = run(&spec);
                    let mut total = total.lock();
                    total.schedules += 1;
                    total.operations += ended.operations;
                    total.stats.add(&ended.stats);
                    if let Some(broken) = ended.broken {
                        total.broken.get_or_insert((name, spec, broken));
                    }
                }
            });
        }
    });
    total.into_inner()
}

/// Ends the test where a schedule was wrong, with its last steps.
fn judge(total: &Total) {
    let Some((name, spec, broken)) = &total.broken else { return };
    let told = run(&Spec { told: true, ..spec.clone() }).told;
    let lines: Vec<_> = told.lines().collect();
    let tail = number("SIM_TAIL").unwrap_or(120) as usize;
    for line in &lines[lines.len().saturating_sub(tail)..] {
        eprintln!("{line}");
    }
    panic!("{name}: {broken}\n  events: {:?}\n  again:  {}", spec.plan.0, replay(name, spec));
}

fn replay(name: &str, spec: &Spec) -> String {
    match spec.scripts {
        None => format!("make sim SEED={}", spec.seed),
        Some(_) => format!("make sim SCRIPT='{name}'"),
    }
}

fn by_dice(seeds: impl Iterator<Item = u64> + Send, until: Option<Instant>, bug: Option<Bug>) -> Total {
    let seeds = Mutex::new(seeds);
    run_all(&|| {
        if until.is_some_and(|until| Instant::now() >= until) {
            return None;
        }
        let seed = seeds.lock().next()?;
        Some((format!("seed {seed}"), Spec { bug, ..random_spec(seed) }))
    })
}

/// What can happen at operation `at`, of `kind`. A power loss takes its chances `luck` times.
fn events(kind: Kind, at: u64, luck: u64) -> Vec<Event> {
    let faults = (0..kind.faults().len() as u64).map(Event::Fault);
    let crashes = std::iter::once(Event::Kill).chain((0..luck).map(|luck| Event::PowerLoss(luck * 1_000_003 + at)));
    faults.chain(crashes.filter(|_| kind.changes())).collect()
}

/// Every fault and every crash at every operation of the small workloads whose names begin as `only`, or that one schedule.
/// With `twice`, after each crash also everything at each of the next operations: those of the recovery.
fn exhaustively(only: Option<&str>, seeds: u64, luck: u64, twice: bool) -> Total {
    let (mut firsts, mut seconds) = (Vec::new(), 0);
    for (name, scripts) in scripts::all() {
        if only.is_some_and(|only| !only.starts_with(name) && !name.starts_with(only)) {
            continue;
        }
        // A seed in which the users meet as they should.
        let first = scripts::first_seed(name);
        for seed in first..first + seeds {
            let spec = Spec { seed, scripts: Some(scripts.clone()), plan: Plan::default(), bug: None, told: false };
            let Ended { broken, kinds, .. } = run(&spec);
            assert_eq!(broken, None, "{name}, seed {seed}, without faults");
            for (kind, at) in kinds.into_iter().zip(1..) {
                for event in events(kind, at, luck) {
                    let plan = Plan::one(at, event);
                    firsts.push((format!("{name}/{seed}/{at}/{event:?}"), Spec { seed, plan, ..spec.clone() }));
                }
            }
        }
    }
    if twice {
        firsts.retain(|(_, spec)| spec.plan.0.values().any(|event| !matches!(event, Event::Fault(_))));
        seconds = RECOVERY;
    }
    let firsts = Mutex::new(firsts.into_iter());
    // The second events of the first crash under way.
    let under_way: Mutex<Vec<(String, Spec)>> = Mutex::default();
    run_all(&|| {
        loop {
            let mut under_way = under_way.lock();
            if let Some(next) = under_way.pop() {
                return Some(next);
            }
            let (name, spec) = firsts.lock().next()?;
            let is_it = |name: &str| only.is_none_or(|only| name.starts_with(only) || only.starts_with(name));
            if !is_it(&name) {
                continue;
            }
            if seconds > 0 {
                let (first, _) = spec.plan.0.first_key_value().expect("it has a crash");
                let kinds = run(&spec).kinds.into_iter().zip(1..).skip(*first as usize).take(seconds);
                for (at, event) in kinds.flat_map(|(kind, at)| events(kind, at, 1).into_iter().map(move |e| (at, e))) {
                    let mut plan = spec.plan.clone();
                    plan.0.insert(at, event);
                    under_way.push((format!("{name}/{at}/{event:?}"), Spec { plan, ..spec.clone() }));
                }
            }
            if only.is_none_or(|only| name.starts_with(only)) {
                return Some((name, spec));
            }
            under_way.retain(|(name, _)| only.is_some_and(|only| name.starts_with(only)));
        }
    })
}

#[test]
fn every_fault_and_crash_at_every_operation() {
    let total = exhaustively(None, 1, 1, false);
    report(&total);
    judge(&total);
    assert!(total.schedules > 7_000, "the small workloads have become smaller");
    for (what, least) in
        STEPS.into_iter().chain([("killed during a release", 20), ("power lost with an upload noted", 20)])
    {
        assert!(total.stats.of(what) >= least, "{what}: {}", total.stats.of(what));
    }
}

#[test]
fn by_chance() {
    let total = by_dice(1..4001, None, None);
    report(&total);
    judge(&total);
    let often =
        [("killed during a release", 10), ("power lost with a transfer noted", 10), ("mapped for writing", 100)];
    for (what, least) in STEPS.into_iter().chain(often) {
        assert!(total.stats.of(what) >= least, "{what}: {}", total.stats.of(what));
    }
}

#[test]
fn the_same_seed_is_the_same_schedule() {
    for seed in 1..100 {
        let (one, two) = (run(&random_spec(seed)), run(&random_spec(seed)));
        assert_eq!((one.trace, one.operations, one.broken), (two.trace, two.operations, two.broken), "seed {seed}");
    }
}

#[test]
fn planted_bugs_are_found() {
    let mut missed = Vec::new();
    for bug in bugs::ALL {
        let total = by_dice(1..5000, None, Some(bug));
        match total.broken {
            Some((name, _, broken)) => println!("{bug:?}: {name}, after {} schedules: {broken}", total.schedules),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}

/// As long as asked: `make sim`, with `SIM_SEED` one schedule, with `SIM_SCRIPT` the small workloads whose names begin so.
#[test]
#[ignore = "as long as asked: make sim"]
fn at_length() {
    if let Ok(script) = std::env::var("SIM_SCRIPT") {
        let twice = number("SIM_TWICE").is_some() || script.split('/').count() > 4;
        let seeds = if script.contains('/') { SEEDS_MAX } else { number("SIM_SEEDS").unwrap_or(4) };
        let total = exhaustively(Some(&script), seeds, 4, twice);
        report(&total);
        return judge(&total);
    }
    if let Some(seed) = number("SIM_SEED") {
        let total = by_dice(seed..seed + 1, None, None);
        report(&total);
        return judge(&total);
    }
    let first = number("SIM_FIRST").unwrap_or_else(|| {
        let since = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("the clock is right");
        since.as_secs() * 1_000_000
    });
    let seconds = number("SIM_SECONDS");
    let schedules = number("SIM_SCHEDULES").unwrap_or(if seconds.is_some() { u64::MAX - first } else { 100_000 });
    println!("seeds from {first}");
    let (begun, done) = (Instant::now(), AtomicU64::new(0));
    let until = seconds.map(|seconds| begun + Duration::from_secs(seconds));
    let seeds = (first..first + schedules).inspect(|_| {
        let done = done.fetch_add(1, Ordering::Relaxed);
        if done.is_multiple_of(5000) {
            println!("{done} schedules, {:.0} s", begun.elapsed().as_secs_f64());
        }
    });
    let total = by_dice(seeds, until, None);
    report(&total);
    judge(&total);
}

fn report(total: &Total) {
    println!(
        "{} schedules, {} operations, {} objects deleted",
        total.schedules, total.operations, total.stats.deletions
    );
    for (what, count) in &total.stats.counts {
        println!("{count:10}  {what}");
    }
}

/// The simulated journal answers as the real one does.
#[test]
fn the_model_is_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    let real = SqliteJournal::open(dir.path().join("journal")).unwrap();
    let world = World::new(7, Plan::default(), None, false);
    let mut dice = Dice::new(11);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let life = world.lock().begin();
        let model = SimJournal { world: world.clone(), life };
        let at = |dice: &mut Dice| Timestamp { secs: dice.below(5) as i64, nanos: dice.below(3) as u32 };
        // Each note's id here and there.
        let mut ids: BTreeMap<IntentId, IntentId> = BTreeMap::new();
        let known = |ids: &BTreeMap<IntentId, IntentId>, dice: &mut Dice| {
            let nth = dice.below(ids.len().max(1) as u64) as usize;
            ids.iter().nth(nth).map(|(model, real)| (*model, *real))
        };
        let pairs: [PairName; 2] = ["p".parse().unwrap(), "q".parse().unwrap()];
        for round in 0..2_000 {
            let pair = pairs[dice.below(2) as usize].clone();
            let mut notes = [Vec::new(), Vec::new()];
            match dice.below(12) {
                0..=2 => {
                    let kind = match dice.below(3) {
                        0 => IntentKind::Upload,
                        1 => IntentKind::Delete { not_before: at(&mut dice) },
                        _ => IntentKind::Settle { mtime: at(&mut dice) },
                    };
                    let handle = RawHandle::new(1, &[7; 8]).unwrap();
                    let node = Inode { id: FileId { ino: dice.roll(), birth: dice.roll() }, handle };
                    let intent =
                        Intent { pair, key: ObjectKey(format!("k{round}")), manifest: dice.once_in(2), node, kind };
                    ids.insert(model.add(intent.clone()).await.unwrap(), real.add(intent).await.unwrap());
                }
                3 | 4 => {
                    if let Some((here, there)) = known(&ids, &mut dice) {
                        let at = at(&mut dice);
                        model.set_delete(here, at).await.unwrap();
                        real.set_delete(there, at).await.unwrap();
                    }
                }
                5 => {
                    if let Some((here, there)) = known(&ids, &mut dice) {
                        model.remove(here).await.unwrap();
                        real.remove(there).await.unwrap();
                    }
                }
                6 => {
                    let key = ObjectKey(format!("k{}", dice.below(round + 1)));
                    model.withdraw(&key).await.unwrap();
                    real.withdraw(&key).await.unwrap();
                    let named = [model.names_keys(vec![key.clone()]).await, real.names_keys(vec![key]).await];
                    let [here, there] = named.map(Result::unwrap);
                    assert_eq!(here, there);
                }
                9..=11 => {
                    // Few files, so that they are noted again.
                    let (ino, not_before) = (dice.below(4), at(&mut dice));
                    let handle = RawHandle::new(1, &[7; 8]).unwrap();
                    let node = Inode { id: FileId { ino, birth: 3 }, handle };
                    let key = ObjectKey(format!("r{}", dice.below(2)));
                    if dice.once_in(3) {
                        let recalled = Recalled { pair: pair.clone(), key, node, not_before };
                        model.note_recalled(recalled.clone()).await.unwrap();
                        real.note_recalled(recalled).await.unwrap();
                    }
                    let (now, limit) = (at(&mut dice), dice.below(5) as usize);
                    let due = model.recalled_due(&pair, now, limit).await.unwrap();
                    assert_eq!(due, real.recalled_due(&pair, now, limit).await.unwrap(), "round {round}");
                    if let Some(mut row) = due.into_iter().next() {
                        // Some are of what was noted before.
                        row.not_before.nanos += u32::from(dice.once_in(4));
                        let until = dice.once_in(2).then(|| at(&mut dice));
                        model.settle_recalled(row.clone(), until).await.unwrap();
                        real.settle_recalled(row, until).await.unwrap();
                    }
                }
                7 => {
                    let (now, limit) = (at(&mut dice), dice.below(6) as usize);
                    notes = [model.due(&pair, now, limit).await.unwrap(), real.due(&pair, now, limit).await.unwrap()];
                }
                _ => {
                    let (after, limit) = (known(&ids, &mut dice), dice.below(6) as usize);
                    notes = [
                        model.unfinished(after.map(|(here, _)| here), limit).await.unwrap(),
                        real.unfinished(after.map(|(_, there)| there), limit).await.unwrap(),
                    ];
                }
            }
            let [here, there] = notes;
            let here: Vec<_> = here.into_iter().map(|(id, intent)| (ids[&id], intent)).collect();
            assert_eq!(here, there, "round {round}");
            assert_eq!(model.counts().await.unwrap(), real.counts().await.unwrap(), "round {round}");
            for pair in &pairs {
                assert_eq!(model.names_pair(pair).await.unwrap(), real.names_pair(pair).await.unwrap());
            }
        }
    });
}
