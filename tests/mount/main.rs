//! The whole product at work: the real binary, a kernel mount over a loop-mounted ext4 or XFS, and the embedded endpoint in this
//! process, where faults can be put in and requests are counted.
//!
//! One crate, so that it links once; a module a subject. Each test has a filesystem, an endpoint, a pair and a mount of its own, all
//! gone with it. Needs root and /dev/fuse.

#[path = "../common/mod.rs"]
mod common;

mod rig;
mod tools;

mod after_recall;
mod archived;
mod bad_input;
mod bad_remote;
mod crash;
mod differs;
mod failed;
mod gc;
mod index;
mod io_modes;
mod io_rules;
mod known;
mod listing;
mod migrate;
mod namespace;
mod packs;
mod packs_bulk;
mod pairs;
mod pairs_whole;
mod partial;
mod patched;
mod policies;
mod policy;
mod policy_marks;
mod policy_match;
mod policy_runs;
mod posix;
mod quota;
mod rebuild;
mod recall;
mod retained;
mod rounds;
mod scrub;
mod startup;
mod storms;
mod stubs;
mod tamper;
mod undelete;
mod upcalls;
mod verify;
