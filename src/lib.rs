//! tierfs: a FUSE overlay over a local share that moves cold files' content to a remote object store and brings it
//! back on read. `docs/architecture.md` tells the floors; imports go down only (`tests/tidy.rs` checks it).

pub mod admission;
pub mod capture;
pub mod catalog;
pub mod cli;
pub mod control;
pub mod engine;
pub mod fs;
pub mod fuse;
pub mod gateway;
pub mod journal;
pub mod kill;
pub mod lower;
pub mod pair;
pub mod peer;
pub mod ports;
pub mod rebuild;
pub mod record;
pub mod remote;
pub mod sync;
pub mod tier;
pub mod tree;
pub mod types;
