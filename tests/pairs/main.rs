//! Two clusters on one machine: two mounts with gateways, each in a network namespace of its own and over a filesystem of its own, a link that is cut,
//! slowed and healed, and users on both sides. `make pairs-rounds ROUNDS=200`; a few rounds are part of `make test`. Needs root, /dev/fuse and iproute2.

#[path = "../common/mod.rs"]
mod common;
#[path = "../mount/tools.rs"]
#[allow(dead_code, reason = "the mount tests use the rest")]
mod tools;

mod dice;
mod link;
mod oracle;
mod proxy;
mod rounds;
mod s3;
mod sides;
mod users;
