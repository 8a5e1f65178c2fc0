//! Two shares of one pair (`role = gpeer`): two mounts with their gateways, in two processes, over two loop filesystems, and between them proxies that
//! lose answers. Needs root and /dev/fuse.

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

mod acceptance;
mod conflicts;
mod crashes;
mod forgery;
mod phases;
mod plain;
mod proxy;
mod round_trips;
mod sides;
mod thrown_away;
