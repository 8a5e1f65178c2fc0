//! Nothing is found in the protocol as it is; every planted bug is.

use std::time::{Duration, Instant};

use crate::bugs::BUGS;
use crate::explorer::explore;
use crate::wander::wander;
use crate::worlds::{LARGE, SMALL, WIDE};

/// States visited at most in each small world.
const SMALL_STATES: usize = 20_000;
/// States visited at most to find a planted bug.
const BUG_STATES: usize = 100_000;
/// States visited at most in each large one; `EXPLORE_STATES` says otherwise.
const LARGE_STATES: usize = 3_000_000;

#[test]
fn the_protocol_holds_in_small_worlds() {
    let (began, mut states) = (Instant::now(), 0);
    for named in SMALL {
        for partial in [false, true] {
            let report = explore(&named.world(None, partial), SMALL_STATES);
            println!("{}: {report}", named.name);
            states += report.states;
            if let Some(violation) = report.violation {
                panic!("{}: {violation}", named.name);
            }
        }
    }
    println!("{states} states in {} worlds, {:.1} s", 2 * SMALL.len(), began.elapsed().as_secs_f64());
}

#[test]
fn every_planted_bug_is_found() {
    // Assertions end some of them: not worth a backtrace each.
    std::panic::set_hook(Box::new(|_| {}));
    let (began, mut missed) = (Instant::now(), Vec::new());
    for (bug, rule, world) in BUGS {
        let named = SMALL.iter().find(|named| named.name == *world).expect("it is one of the small worlds");
        let found = [false, true].into_iter().find_map(|partial| {
            let report = explore(&named.world(Some(*bug), partial), BUG_STATES);
            report.violation.map(|violation| (named.name, report.states, violation))
        });
        match found {
            Some((name, states, violation)) => violation.tell_found(bug, rule, name, states),
            None => missed.push(bug),
        }
    }
    // The default hook again, for the assertion.
    drop(std::panic::take_hook());
    println!("{} planted bugs, {:.1} s", BUGS.len(), began.elapsed().as_secs_f64());
    assert!(missed.is_empty(), "planted and not found: {missed:?}");
}

#[test]
#[ignore = "minutes: `make explore`"]
fn the_protocol_holds_in_large_worlds() {
    let setting = |name: &str| std::env::var(name).ok();
    let limit = setting("EXPLORE_STATES").map_or(LARGE_STATES, |states| states.parse().expect("a number of states"));
    let only = setting("EXPLORE_WORLD").unwrap_or_default();
    let (mut states, mut took, mut broken) = (0, Duration::ZERO, Vec::new());
    for named in LARGE.iter().filter(|named| named.name.contains(&only)) {
        for partial in [false, true] {
            let report = explore(&named.world(None, partial), limit);
            let stub = if partial { "all is in the stub" } else { "nothing is in the stub" };
            println!("{}, {stub}: {report}\n    {:?}", named.name, named.bounds);
            states += report.states;
            took += report.took;
            if let Some(violation) = report.violation {
                println!("{violation}");
                broken.push(named.name);
            }
        }
    }
    println!("{states} states, {:.0} s", took.as_secs_f64());
    assert!(broken.is_empty(), "{broken:?}");
}

/// The worlds are too large to be visited whole: some ways are gone to their end.
fn walks(walks: usize, steps: usize, seed: u64) {
    for partial in [false, true] {
        let report = wander(&WIDE.world(None, partial), seed, walks, steps);
        println!("{walks} ways by seed {seed}: {report}");
        if let Some(violation) = report.violation {
            panic!("seed {seed}: {violation}");
        }
    }
}

#[test]
fn the_protocol_holds_on_long_ways() {
    walks(700, 400, 1);
}

#[test]
#[ignore = "minutes: `make explore`"]
fn the_protocol_holds_on_many_long_ways() {
    let seed = std::env::var("EXPLORE_SEED").map_or(7, |seed| seed.parse().expect("a number"));
    walks(200_000, 600, seed);
}
