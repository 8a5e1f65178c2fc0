//! Nothing is found in the protocol as it is; every planted bug is.

use std::time::{Duration, Instant};

use crate::bugs::BUGS;
use crate::explorer::{Report, explore};
use crate::state::State;
use crate::worlds::{LARGE, SMALL};

/// States visited at most in each small world.
const SMALL_STATES: usize = 12_000;
/// States visited at most in each large one; `EXPLORE_STATES` says otherwise.
const LARGE_STATES: usize = 3_000_000;

fn tell(report: &Report<State, &'static str>) -> String {
    report.violation.as_ref().map_or_else(String::new, |violation| format!("\n{violation}"))
}

#[test]
fn the_protocol_holds_in_small_worlds() {
    let (began, mut states) = (Instant::now(), 0);
    for named in SMALL {
        for small in [false, true] {
            let report = explore(&named.world(None, small), SMALL_STATES);
            states += report.states;
            assert!(report.violation.is_none(), "{}: {}", named.name, tell(&report));
        }
    }
    println!("{states} states in {} worlds, {:.1} s", 2 * SMALL.len(), began.elapsed().as_secs_f64());
}

#[test]
fn every_planted_bug_is_found() {
    // The machine's assertions end some of them: not worth a backtrace each.
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for (bug, rule) in BUGS {
        let found = SMALL.iter().find_map(|named| {
            let report = explore(&named.world(Some(*bug), false), SMALL_STATES);
            report.violation.map(|violation| (named.name, report.states, violation))
        });
        match found {
            Some((name, states, violation)) => violation.tell_found(bug, rule, name, states),
            None => missed.push(bug),
        }
    }
    // The default hook again, for the assertion.
    drop(std::panic::take_hook());
    println!("{} planted bugs", BUGS.len());
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
        for small in [false, true] {
            let report = explore(&named.world(None, small), limit);
            let size = if small { "recalled inside open" } else { "recalled by ranges" };
            println!("{}, {size}: {report}\n    {:?}{}", named.name, named.bounds, tell(&report));
            states += report.states;
            took += report.took;
            if report.violation.is_some() {
                broken.push(named.name);
            }
        }
    }
    println!("{states} states in all, {:.0} states/s", states as f64 / took.as_secs_f64().max(1e-3));
    assert!(broken.is_empty(), "a rule is broken in: {broken:?}");
}
