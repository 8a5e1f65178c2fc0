//! The real thing dies: a real mount over ext4 and xfs with a real endpoint is killed at every kill point and at random, and loses power,
//! while files are written, synced, archived, released and recalled. After each loss everything is compared with what may be there
//! (`oracle.rs`).
//!
//! Few rounds are part of `make test`; `make crash` runs as many as wished (`docs/crash-rounds.md`). Needs root, /dev/fuse and loop devices.

#[path = "../common/mod.rs"]
mod common;
#[path = "../suites/dice.rs"]
mod dice;
#[expect(dead_code, reason = "each test binary uses its own part")]
#[path = "../suites/mover.rs"]
mod mover;
#[expect(dead_code, reason = "each test binary uses its own part")]
#[path = "../suites/place.rs"]
mod place;
#[expect(dead_code, reason = "each test binary uses its own part")]
#[path = "../mount/rig.rs"]
mod rig;
#[expect(dead_code, reason = "each test binary uses its own part")]
#[path = "../mount/tools.rs"]
mod tools;

mod campaign;
mod disk;
mod load;
mod oracle;
mod points;
mod scene;
mod stories;
mod survivors;
