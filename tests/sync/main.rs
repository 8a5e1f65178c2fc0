//! The metadata sync of two clusters: two shares on loop filesystems, two mounts with their gateways on this machine, and what becomes of the
//! slave's share. Needs root and /dev/fuse.

#[path = "../common/mod.rs"]
mod common;
#[path = "../suites/dice.rs"]
mod dice;
#[allow(dead_code, reason = "the crash tests use the rest")]
#[path = "../crash/disk.rs"]
mod disk;
#[path = "../mount/tools.rs"]
#[allow(dead_code, reason = "the mount tests use the rest")]
mod tools;

mod compare;
mod conflicts;
mod crash;
mod delay;
mod each;
mod held;
mod hostile;
mod puts;
mod two;
