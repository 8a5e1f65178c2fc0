//! tierfs: a FUSE overlay over a local share that moves cold files' content to a remote object store and brings it
//! back on read. `docs/architecture.md` tells the floors; imports go down only (`tests/tidy.rs` checks it).

pub mod cli;
pub mod control;
pub mod gateway;
pub mod lower;
pub mod pair;
pub mod ports;
pub mod remote;
pub mod types;
