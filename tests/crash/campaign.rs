//! Rounds of one kind after another: few for every test run, many for the record.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::oracle::Loss;
use crate::place::stopped;
use crate::points;
use crate::scene::{Power, Scene};

/// Points at which a recovery is ended in some rounds of every kind.
const IN_RECOVERY: [&str; 6] =
    ["recover.synced", "recover.settled", "recover.punched", "recover.dated", "recover.recorded", "recover.removed"];
/// Longest that a round works before its loss, in milliseconds.
const WORK_MS: u64 = 250;
/// How long a power round works until it comes to its kill point; then the power goes all the same.
const AT_POINT_WITHIN: Duration = Duration::from_millis(500);
/// Rounds after which all objects are looked at.
const OBJECTS_EVERY: u64 = 50;

/// What ends a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// SIGKILL at a kill point.
    Points,
    /// SIGKILL at any moment.
    Kill,
    Shutdown,
    Disk,
}

impl Kind {
    fn power(self) -> Power {
        match self {
            Self::Points | Self::Kill => Power::Stays,
            Self::Shutdown => Power::Shutdown,
            Self::Disk => Power::Disk,
        }
    }
}

/// Points of the recovery at which this round's daemons die; mostly none.
fn deaths(scene: &mut Scene) -> Vec<String> {
    let deaths = [0, 0, 0, 1, 1, 2][scene.dice.below(6) as usize];
    (0..deaths)
        .map(|_| {
            let point = IN_RECOVERY[scene.dice.below(IN_RECOVERY.len() as u64) as usize];
            format!("{point}:{}", 1 + scene.dice.below(2))
        })
        .collect()
}

fn kill_round(scene: &mut Scene) -> bool {
    scene.work_and_kill(WORK_MS);
    let deaths = deaths(scene);
    scene.recover(&deaths);
    scene.check(Loss::Process);
    true
}

/// The power goes: in the midst of work or at a kill point, perhaps after a process's death, or right after a recovery that believed what it found.
fn power_round(scene: &mut Scene, points: &[String]) -> bool {
    let counts = match scene.dice.below(6) {
        0 => {
            scene.work_and_kill(WORK_MS);
            let deaths = deaths(scene);
            scene.recover_and_cut(&deaths)
        }
        1 => {
            let first = scene.work_and_cut(WORK_MS);
            let deaths = deaths(scene);
            scene.recover_and_cut(&deaths) && first
        }
        2 => {
            kill_round(scene);
            scene.work_and_cut(WORK_MS)
        }
        3 => {
            let point = points[scene.dice.below(points.len() as u64) as usize].clone();
            let count = 1 + scene.dice.below(3);
            points::dies(scene, &point, count, AT_POINT_WITHIN);
            scene.cut_at_rest()
        }
        _ => scene.work_and_cut(WORK_MS),
    };
    let deaths = deaths(scene);
    scene.recover(&deaths);
    scene.check(Loss::Power);
    counts
}

/// How a run of rounds ended.
struct Done {
    counted: u64,
    reached: BTreeMap<String, u64>,
}

/// Until `wanted` rounds have counted; `points`: where they die, in turn.
fn run(scene: &mut Scene, kind: Kind, wanted: u64, points: &[String], progress: bool) -> Done {
    let mut done = Done { counted: 0, reached: points.iter().map(|point| (point.clone(), 0)).collect() };
    let (began, mut rounds, mut tried) = (Instant::now(), 0, 0);
    let mut missed = BTreeMap::<String, u64>::new();
    while done.counted < wanted && !stopped() {
        rounds += 1;
        let counts = match kind {
            Kind::Kill => kill_round(scene),
            Kind::Shutdown | Kind::Disk => power_round(scene, points),
            Kind::Points => {
                let point = &points[done.counted as usize % points.len()];
                tried += 1;
                // The first times as early as can be, then anywhere; what was not reached is tried again, early.
                let first = done.counted < points.len() as u64 || tried > 1;
                let count = if first { 1 } else { 1 + scene.dice.below(8) };
                let died = points::round(scene, point, count);
                if !died {
                    *missed.entry(point.clone()).or_insert(0) += 1;
                }
                if died {
                    tried = 0;
                    *done.reached.get_mut(point).expect("one of them") += 1;
                }
                assert!(tried < 6, "{}: {point} is not reached in {tried} rounds", scene.told());
                died
            }
        };
        done.counted += u64::from(counts);
        assert!(
            rounds < 20 || done.counted * 4 > rounds,
            "{}: {} of {rounds} rounds count",
            scene.told(),
            done.counted
        );
        if rounds.is_multiple_of(OBJECTS_EVERY) {
            scene.check_objects();
        }
        if progress && rounds.is_multiple_of(25) {
            eprintln!(
                "[{:6.1} s] {}: {} rounds of {rounds} count",
                began.elapsed().as_secs_f32(),
                scene.told(),
                done.counted
            );
        }
    }
    if !missed.is_empty() {
        eprintln!("  not reached at once: {missed:?}");
    }
    scene.check_objects();
    let took = began.elapsed();
    let each = took.checked_div(rounds.max(1) as u32).unwrap_or_default();
    eprintln!(
        "{}: {} of {rounds} rounds count, {:.1} s, {each:.2?} each\n  {:?}",
        scene.told(),
        done.counted,
        took.as_secs_f32(),
        scene.tally
    );
    done
}

/// A few rounds, as a test; some more where chance or a slow machine had them meet too little.
fn few(fs: &'static str, kind: Kind, state_below: bool, rounds: u64) {
    let Some(mut scene) = Scene::new(fs, kind.power(), state_below, 4) else { return };
    for times in 1..=4 {
        run(&mut scene, kind, rounds, &points::all(), false);
        let tally = &scene.tally;
        let survivors = &tally.survivors;
        let met = [
            // Enough was done, a loss met a transfer, files were tiered, and a cut cost something where one can.
            tally.steps > 20 * rounds && tally.transfers > 5 * rounds,
            survivors.in_transfer > 0,
            survivors.stub > 0 && survivors.dual > 0,
            kind.power() == Power::Stays || tally.losing_cuts > 0,
        ];
        if met == [true; 4] {
            return;
        }
        eprintln!("{}: {times} times {rounds} rounds met too little: {met:?}, {tally:?}", scene.told());
    }
    panic!("nothing was tested: {:?}", scene.tally);
}

/// Each point of one half, once.
fn every_point(fs: &'static str, half: usize) {
    let Some(mut scene) = Scene::new(fs, Power::Stays, false, 5) else { return };
    let mut points: Vec<String> = points::all().into_iter().skip(half).step_by(2).collect();
    // What deletions of removed files need is some seconds old by then.
    points.sort_by_key(|point| point.starts_with("delete."));
    let done = run(&mut scene, Kind::Points, points.len() as u64, &points, false);
    assert!(stopped() || done.reached.values().all(|times| *times > 0), "not reached: {:?}", done.reached);
}

#[test]
fn killed_at_every_point_on_ext4_it_loses_nothing() {
    every_point("ext4", 0);
}

#[test]
fn killed_at_every_point_on_xfs_it_loses_nothing() {
    every_point("xfs", 1);
}

#[test]
fn killed_at_any_moment_it_loses_nothing() {
    few("xfs", Kind::Kill, false, 12);
}

#[test]
fn ext4_loses_power_and_nothing_that_was_synced() {
    few("ext4", Kind::Shutdown, true, 12);
}

#[test]
fn xfs_loses_power_and_nothing_that_was_synced() {
    few("xfs", Kind::Shutdown, false, 12);
}

#[test]
fn a_disk_tears_what_was_not_flushed_and_ext4_keeps_what_was_synced() {
    few("ext4", Kind::Disk, false, 10);
}

#[test]
fn a_disk_tears_what_was_not_flushed_and_xfs_keeps_what_was_synced() {
    few("xfs", Kind::Disk, true, 10);
}

/// `CRASH_ROUNDS` (500) of each kind, or of `CRASH_KIND`, half of them on each filesystem or all on `CRASH_FS`; `CRASH_SEED`.
#[test]
#[ignore = "long: make crash"]
fn many() {
    let of = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let rounds: u64 = of("CRASH_ROUNDS").map_or(500, |rounds| rounds.parse().expect("CRASH_ROUNDS is a number"));
    let seed: u64 = of("CRASH_SEED").map_or_else(
        || std::time::UNIX_EPOCH.elapsed().unwrap_or(Duration::ZERO).as_nanos() as u64 % 1_000_000_000,
        |seed| seed.parse().expect("CRASH_SEED is a number"),
    );
    let kinds = match of("CRASH_KIND").as_deref() {
        None => vec![Kind::Points, Kind::Kill, Kind::Shutdown, Kind::Disk],
        Some("points") => vec![Kind::Points],
        Some("kill") => vec![Kind::Kill],
        Some("shutdown") => vec![Kind::Shutdown],
        Some("disk") => vec![Kind::Disk],
        Some(other) => panic!("CRASH_KIND={other}: points, kill, shutdown or disk"),
    };
    let filesystems: Vec<&'static str> = match of("CRASH_FS").as_deref() {
        None => vec!["ext4", "xfs"],
        Some("ext4") => vec!["ext4"],
        Some("xfs") => vec!["xfs"],
        Some(other) => panic!("CRASH_FS={other}: ext4 or xfs"),
    };
    eprintln!("{rounds} rounds of {kinds:?} on {filesystems:?}, CRASH_SEED={seed}");
    let points = points::all();
    for kind in kinds {
        // With the journal beside the share's filesystem and on it.
        let scenes = filesystems.len() as u64 * if kind.power() == Power::Stays { 1 } else { 2 };
        let each = rounds.div_ceil(scenes);
        let (mut counted, mut reached) = (0, BTreeMap::<String, u64>::new());
        for n in 0..scenes {
            let (fs, below) = (filesystems[n as usize % filesystems.len()], n >= filesystems.len() as u64);
            let Some(mut scene) = Scene::new(fs, kind.power(), below, seed.wrapping_add(n)) else { return };
            let done = run(&mut scene, kind, each, &points, true);
            counted += done.counted;
            for (point, times) in done.reached {
                *reached.entry(point).or_default() += times;
            }
            if stopped() {
                return;
            }
        }
        eprintln!("{kind:?}: {counted} rounds counted");
        if kind == Kind::Points {
            eprintln!("  {reached:?}");
        }
    }
}
