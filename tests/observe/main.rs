//! What a mount tells of itself: metrics, announcements, traces, reports. The real binary on a real mount, as in `tests/mount/`, whose rig it shares.

#[path = "../common/mod.rs"]
mod common;
#[path = "../mount/rig.rs"]
#[allow(dead_code, reason = "the mount tests use the rest")]
mod rig;
#[path = "../mount/tools.rs"]
#[allow(dead_code, reason = "the mount tests use the rest")]
mod tools;

mod announce;
mod forgotten;
mod metrics;
mod reports;
mod space;
mod tasks;
mod trace;
