//! Ways by dice: deeper than all states of a large world can be visited.

use std::time::{Duration, Instant};

use crate::explorer::{Explored, Kind, Report, ReportOf, Violation, expand};

/// Goes `walks` ways by dice, each until nothing more can happen or `steps` are done, and then as the system goes by itself. The same seed goes the same ways.
pub fn wander<W: Explored>(world: &W, seed: u64, walks: usize, steps: usize) -> ReportOf<W> {
    let began = Instant::now();
    let mut dice = seed.wrapping_mul(2).wrapping_add(1);
    let mut report = Report { states: 0, steps: 0, depth: 0, took: Duration::ZERO, cut: true, violation: None };
    let mut next = Vec::new();
    'walks: for _ in 0..walks {
        let starts = world.initial();
        let mut state = starts[roll(&mut dice, starts.len())].clone();
        let mut trace = Vec::new();
        // The system comes to rest long before so many steps.
        for step in 0..steps + 2_000 {
            report.states += 1;
            let failed = expand(world, &state, &mut next).err();
            let endless = step == steps + 1_999;
            if let Some(what) = failed.or_else(|| endless.then(|| "the system does not come to rest".to_owned())) {
                report.violation = Some(Violation { what, trace, state: Box::new(state) });
                break 'walks;
            }
            let index = if step < steps {
                (!next.is_empty()).then(|| roll(&mut dice, next.len()))
            } else {
                next.iter().position(|next| next.kind == Kind::System)
            };
            let Some(index) = index else { break };
            let taken = next.swap_remove(index);
            trace.push(taken.label);
            state = taken.state;
        }
        report.steps += trace.len();
        report.depth = report.depth.max(trace.len());
    }
    report.took = began.elapsed();
    report
}

/// A number below `sides`.
fn roll(dice: &mut u64, sides: usize) -> usize {
    // Xorshift: good enough for dice.
    *dice ^= *dice << 13;
    *dice ^= *dice >> 7;
    *dice ^= *dice << 17;
    (dice.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides
}
