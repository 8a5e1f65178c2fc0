//! The real `fs`, `engine` and `record`s on a simulated share, object store, journal and clock: every operation fails or the process dies
//! at it, many interleavings, power losses; an oracle that only stores says what must be there. The same seed gives the same schedule.
//! `docs/simulation.md` tells what is covered.

mod bugs;
mod client;
mod content;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "../suites/dice.rs"]
mod dice;
mod disk;
mod file;
mod inspect;
mod journal;
mod kernel;
mod plan;
mod remote;
mod schedule;
mod scripts;
mod share;
mod stats;
mod tests;
mod truth;
mod world;
