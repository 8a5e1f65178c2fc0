//! NFS on tierfs: file handles as the kernel's export code makes them, and a real NFS-Ganesha with real clients.
//!
//! Ganesha runs by the configuration and the script of `mount-helpers/`, with ports and paths filled in. Needs root, /dev/fuse, gcc,
//! python3, NFS-Ganesha with its VFS module, and libnfs.

#[path = "../common/mod.rs"]
mod common;
#[path = "../mount/rig.rs"]
#[allow(dead_code, reason = "the mount tests use the rest")]
mod rig;
#[path = "../mount/tools.rs"]
#[allow(dead_code, reason = "the mount tests use the rest")]
mod tools;

mod delays;
mod exports;
mod ganesha;
mod handles;
mod helpers;
mod pending;
