//! A share as S3: the real binary, by itself and within a mount, over a loop-mounted filesystem and with a pair's endpoint behind it, driven
//! by the SDK, by raw requests, and by people's tools. Needs root and /dev/fuse.

#[path = "../common/mod.rs"]
mod common;
#[path = "../mount/rig.rs"]
#[allow(dead_code, reason = "the mount tests use the rest")]
mod rig;
#[path = "../gateway/rig.rs"]
#[allow(dead_code, reason = "the endpoint's tests use the rest")]
mod s3;
#[path = "../mount/tools.rs"]
#[allow(dead_code, reason = "the mount tests use the rest")]
mod tools;

mod crash;
mod identities;
mod keys;
mod listing;
mod metrics;
mod mounted;
mod objects;
mod permissions;
mod place;
mod programs;
mod stubs;
